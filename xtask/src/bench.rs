//! Benchmarks that start their servers themselves: `bench/NAME.py`, beside the driver `bench/run.py`.

use crate::steps::{self, Done};
use std::process::Command;

/// Those that can be named here; others need peers or a generator that is built apart.
const NAMES: [&str; 2] = ["cliffs", "fairness"];

/// Builds the server where none is named, and runs the script with what stands behind its name.
pub fn run(args: &[String]) -> Done {
    let (name, rest) =
        args.split_first().ok_or_else(|| format!("a benchmark is needed: {}", NAMES.join(", ")))?;
    if !NAMES.contains(&name.as_str()) {
        return Err(format!("there is no benchmark {name}; there are: {}", NAMES.join(", ")));
    }
    let script = format!("bench/{name}.py");
    // The standard library is enough for it.
    let mut python = Command::new("python3");
    python.arg(script).args(rest);
    if !rest.iter().any(|word| word == "--server") {
        steps::cargo(&["build", "--release", "--locked", "-p", "postrider"])?;
        python.args(["--server", "target/release/postrider"]);
    }
    steps::run(python)
}
