//! What `cargo xtask test` does, step by step.

use crate::{hostile, tidy};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

pub type Done = Result<(), String>;
type Step = (&'static str, fn() -> Done);

/// Debian packages, with a program that tells whether they are there.
const PACKAGES: [(&str, &str); 12] = [
    ("python3", "python3"),
    ("curl", "curl"),
    ("jq", "jq"),
    ("mosquitto_pub", "mosquitto-clients"),
    ("mosquitto", "mosquitto"),
    ("nginx", "nginx"),
    ("haproxy", "haproxy"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("faketime", "faketime"),
    ("chromium", "chromium"),
    ("go-sendxmpp", "go-sendxmpp"),
];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// What has to hold, in this order.
const STEPS: [Step; 14] = [
    ("tools", tools),
    ("fmt", || cargo(&["fmt", "--all", "--check"])),
    ("clippy", || cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])),
    ("tidy", || tidy::check().map(|said| eprintln!("{said}"))),
    ("unit", || cargo(&["test", "--workspace", "--locked"])),
    ("sdk", sdk),
    ("build", || cargo(&["build", "--package", "postrider", "--locked"])),
    ("judges", judges),
    ("conformance", conformance),
    ("hostile", hostile::live),
    ("kill9", kill9),
    ("flaws", flaws),
    ("abuse", || python(&["conformance/abuse.py", "--server", "target/debug/postrider"])),
    ("fuzz", hostile::fuzz),
];

/// Their names.
pub fn names() -> String {
    STEPS.map(|(name, _)| name).join(", ")
}

pub fn test(only: Option<&str>) -> Done {
    let wanted: Option<Vec<&str>> = only.map(|list| list.split(',').collect());
    let unknown = wanted.iter().flatten().find(|wanted| STEPS.iter().all(|(name, _)| name != *wanted));
    if let Some(unknown) = unknown {
        return Err(format!("there is no step {unknown}; there are {}", names()));
    }
    let mut times = Vec::new();
    for (name, step) in STEPS {
        if wanted.as_ref().is_some_and(|w| !w.contains(&name)) {
            continue;
        }
        eprintln!("── {name}");
        let start = Instant::now();
        step().map_err(|why| format!("step {name}: {why}"))?;
        times.push(format!("{name} {} s", start.elapsed().as_secs()));
    }
    eprintln!("── all steps passed: {}", times.join(", "));
    Ok(())
}

/// Writes the generated docs anew: the tests that compare them write instead.
pub fn docs() -> Done {
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--package", "postrider", "--locked"]).env("UPDATE", "1");
    run(command)
}

pub fn run(mut command: Command) -> Done {
    command.current_dir(root()).stdin(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?} ended with {status}")),
        Err(error) => Err(format!("{command:?} could not start: {error}")),
    }
}

pub fn cargo(args: &[&str]) -> Done {
    let mut command = Command::new(env!("CARGO"));
    command.args(args);
    run(command)
}

fn is_there(program: &str) -> bool {
    let found = |dir: PathBuf| dir.join(program).is_file();
    // Servers lie where only root's PATH looks.
    found("/usr/sbin".into())
        || std::env::var_os("PATH").is_some_and(|paths| std::env::split_paths(&paths).any(found))
}

/// Installs what is missing: as root by apt, else it says what to install.
fn tools() -> Done {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(p, _)| !is_there(p)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        install(&missing)?;
    }
    let venv = root().join(".tools/python");
    if !venv.join("bin/python").is_file() && make_venv(&venv).is_err() {
        // Debian's python3 comes without the part that makes environments.
        install(&["python3-venv"])?;
        make_venv(&venv)?;
    }
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "-r", "conformance/requirements.txt"]);
    run(pip)?;
    npm_ci("conformance/node")
}

fn npm_ci(folder: &str) -> Done {
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--silent", "--prefix", folder]);
    run(npm)
}

/// The browser SDK: its types, its unit tests, whether what the server embeds is what the source gives, and whether the
/// examples of its README compile.
fn sdk() -> Done {
    npm_ci("sdk/web")?;
    for script in ["typecheck", "test", "check", "examples"] {
        let mut npm = Command::new("npm");
        npm.args(["run", "--silent", "--prefix", "sdk/web", script]);
        run(npm)?;
    }
    Ok(())
}

fn make_venv(at: &Path) -> Done {
    let mut command = Command::new("python3");
    command.args(["-m", "venv"]).arg(at);
    run(command)
}

fn install(packages: &[&str]) -> Done {
    let list = packages.join(" ");
    if !is_there("apt-get") {
        return Err(format!("the tests need these programs, which could not be found: {list}"));
    }
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        run(command)
    };
    let why = |e| {
        format!(
            "the tests need the Debian packages {list}, and installing them failed ({e}); try: sudo apt-get install {list}"
        )
    };
    apt(&["update", "-qq"]).map_err(why)?;
    apt(&[&["install", "-y", "-qq", "--no-install-recommends"], packages].concat()).map_err(why)
}

pub fn python_command(args: &[&str]) -> Command {
    let mut command = Command::new(root().join(".tools/python/bin/python"));
    command.args(args);
    command
}

pub fn python(args: &[&str]) -> Done {
    run(python_command(args))
}

/// The tests of what judges: the ledger's oracle, and the power cut.
fn judges() -> Done {
    python(&["-m", "unittest", "discover", "--quiet", "--start-directory", "conformance"])
}

fn conformance() -> Done {
    python(&["conformance/run.py", "--server", "target/debug/postrider"])
}

/// What androidpn was known for, with few phones and much that goes wrong, then with many sessions that come and go.
fn flaws() -> Done {
    ["conformance/three_flaws.py", "conformance/steady.py"]
        .into_iter()
        .try_for_each(|judge| python(&[judge, "--server", "target/debug/postrider"]))
}

/// Pushes over HTTP to registered devices, then publishes of devices to lasting sessions.
fn kill9() -> Done {
    for (mode, cycles) in [("http", "20"), ("mqtt", "10"), ("web", "10"), ("xmpp", "5")] {
        let server = "target/debug/postrider";
        python(&["conformance/kill9.py", "--server", server, "--mode", mode, "--cycles", cycles])?;
    }
    Ok(())
}
