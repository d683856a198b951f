//! Hostile peers against the built binary, and fuzzing: the steps `hostile` and `fuzz` of the tests, and their long forms.

use crate::steps::{Done, cargo, python, root, run};
use std::process::Command;

const SERVER: &str = "target/debug/postrider";
const PLANTED: &str = "target/debug/postrider-planted-panics";
/// Of each target, in the tests and in soak.
const FUZZ_SECS: &str = "20";
const FUZZ_LONG_SECS: &str = "300";

/// Floods, the search for secrets, rights that go in the middle, settings at their ends, and panics in a binary that was built to have them.
pub fn live() -> Done {
    python(&["conformance/floods.py", "--server", SERVER])?;
    python(&["conformance/leaks.py", "--server", SERVER])?;
    python(&["conformance/gate.py", "--server", SERVER])?;
    python(&["conformance/bounds.py", "--server", SERVER])?;
    cargo(&["build", "--package", "postrider", "--locked", "--features", "planted-panics"])?;
    let copied = std::fs::copy(root().join(SERVER), root().join(PLANTED));
    // The server without them goes back to its place, whatever comes of the copy.
    cargo(&["build", "--package", "postrider", "--locked"])?;
    copied.map_err(|error| format!("{PLANTED}: {error}"))?;
    python(&["conformance/panics.py", "--server", PLANTED])?;
    python(&["conformance/ill.py", "--server", SERVER, "--planted", PLANTED])
}

/// Every decoder: its kept corpus, then mutations of it, on the stable compiler.
pub fn fuzz() -> Done {
    fuzz_for(FUZZ_SECS)
}

fn fuzz_for(secs: &str) -> Done {
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--workspace", "--locked", "--", "fuzz_", "--nocapture", "--test-threads", "2"]);
    command.env("FUZZ_SECS", secs);
    run(command)
}

/// What takes long: fuzzing for minutes, and the time that refusals take.
pub fn soak(server: &str) -> Done {
    fuzz_for(FUZZ_LONG_SECS)?;
    python(&["conformance/timing.py", "--server", server])
}
