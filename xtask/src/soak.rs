//! The long run: fresh seeds of the simulation, kills, all other abuse of the real binary and fuzzing, in turn, until time is up.

use crate::hostile;
use crate::steps::{self, Done};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SERVER: &str = "target/release/postrider";
/// The first seed: far from those that the tests run.
const BASE: u64 = 10_000_000;
/// The columns of a balance line, in the order in which `conformance/ledger.py` writes them.
const COLUMNS: [&str; 10] = [
    "accepted",
    "delivered",
    "expired",
    "lost",
    "phantom",
    "dup_unexplained",
    "misorder",
    "early",
    "late",
    "gap",
];
const ABUSE: [&str; 7] = ["recovery", "checkpoint", "pause", "stop", "power", "disk", "clock"];

/// The long form: everything that is kept for a while has reached its bound when the measurement begins.
const STEADY: [&str; 10] =
    ["--sessions", "10000", "--rate", "2000", "--seconds", "300", "--warm", "75", "--churn", "1"];

/// What all rounds of one kind add up to.
#[derive(Default)]
struct Tally {
    rounds: u64,
    failed: u64,
    sums: BTreeMap<String, u64>,
}

impl Tally {
    fn add_balance(&mut self, line: &str) {
        for (name, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
            *self.sums.entry(name.to_owned()).or_default() += value.parse::<u64>().unwrap_or(0);
        }
    }

    fn row(&self, name: &str) -> String {
        let sum = |column: &&str| self.sums.get(*column).map_or("–".to_owned(), u64::to_string);
        let sums: Vec<String> = COLUMNS.iter().map(sum).collect();
        format!("| {name} | {} | {} | {} |", self.rounds, self.failed, sums.join(" | "))
    }
}

/// For so many minutes, what has begun brought to its end; `seeds` of the simulation a round. What fails is told and
/// counted, and the rest goes on.
pub fn soak(minutes: &str, seeds: &str) -> Done {
    let number = |name: &str, text: &str| text.parse().map_err(|_| format!("{name} {text}: not a number"));
    let (minutes, seeds): (u64, u64) = (number("--minutes", minutes)?, number("--seeds", seeds)?);
    steps::cargo(&["build", "--release", "--package", "postrider", "--locked"])?;
    let start = Instant::now();
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    let kinds: Vec<&str> = ["simulation"]
        .into_iter()
        .chain(ABUSE)
        .chain(["kill9 http", "kill9 mqtt", "kill9 web", "kill9 xmpp", "flaws", "steady", "fuzz"])
        .collect();
    'rounds: for round in 0.. {
        for kind in &kinds {
            if start.elapsed() >= Duration::from_secs(minutes * 60) {
                break 'rounds;
            }
            eprintln!("── soak, round {round}, minute {}: {kind}", start.elapsed().as_secs() / 60);
            let tally = tallies.entry(kind).or_default();
            tally.rounds += 1;
            if let Err(why) = turn(kind, round, seeds, tally) {
                tally.failed += 1;
                eprintln!("FAIL {why}");
            }
        }
    }
    print_table(&tallies, start.elapsed().as_secs() / 60, seeds);
    let failed: u64 = tallies.values().map(|tally| tally.failed).sum();
    if failed == 0 { Ok(()) } else { Err(format!("{failed} rounds failed")) }
}

fn turn(kind: &str, round: u64, seeds: u64, tally: &mut Tally) -> Done {
    if kind == "simulation" {
        let mut command = Command::new(env!("CARGO"));
        command.args(["test", "--package", "postrider-sim", "--locked", "--", "--nocapture", "fresh"]);
        command.env("SIM_BASE", (BASE + round * seeds).to_string()).env("SIM_SEEDS", seeds.to_string());
        return steps::run(command);
    }
    if kind == "fuzz" {
        return hostile::soak(SERVER);
    }
    let args = match kind.split_once(' ') {
        Some((_, mode)) => {
            vec!["conformance/kill9.py", "--server", SERVER, "--mode", mode, "--cycles", "100"]
        }
        None if kind == "flaws" => vec!["conformance/three_flaws.py", "--server", SERVER, "--cycles", "50"],
        None if kind == "steady" => [&["conformance/steady.py", "--server", SERVER], &STEADY[..]].concat(),
        None => vec!["conformance/abuse.py", "--server", SERVER, "--only", kind, "--times", "5"],
    };
    watch(steps::python_command(&args), tally)
}

/// Runs it, passes on what it says as it says it, and adds up its balance lines.
fn watch(mut command: Command, tally: &mut Tally) -> Done {
    command.current_dir(steps::root()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{command:?} could not start: {error}"))?;
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()) {
        let line = line.map_err(|error| format!("{command:?}: {error}"))?;
        eprintln!("{line}");
        if let Some(balance) = line.strip_prefix("balance ") {
            tally.add_balance(balance);
        }
    }
    let status = child.wait().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}")) }
}

fn print_table(tallies: &BTreeMap<&str, Tally>, minutes: u64, seeds: u64) {
    eprintln!(
        "\nSoak of {minutes} minutes; a round of the simulation has {seeds} seeds, of kill9 100 kills.\n"
    );
    eprintln!("| what | rounds | failed | {} |", COLUMNS.join(" | "));
    eprintln!("| --- |{}", " --- |".repeat(COLUMNS.len() + 2));
    tallies.iter().for_each(|(name, tally)| eprintln!("{}", tally.row(name)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balance_lines_add_up_by_name() {
        let mut tally = Tally { rounds: 2, ..Tally::default() };
        tally.add_balance("accepted=10 delivered=9 expired=1 lost=0 gap=0");
        tally.add_balance("accepted=5 delivered=5 expired=0 lost=2 gap=0");
        assert_eq!(tally.row("power"), "| power | 2 | 0 | 15 | 14 | 1 | 2 | – | – | – | – | – | 0 |");
    }
}
