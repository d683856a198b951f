//! Repository chores: `cargo xtask test` is all that CI runs, `cargo xtask tidy` the checks that no compiler makes.

mod bench;
mod hostile;
mod soak;
mod steps;
mod tidy;

use std::process::ExitCode;

const HELP: &str = "\
Chores of this repository.

  cargo xtask test [--only STEP[,STEP…]]   everything that has to hold; installs what it needs
  cargo xtask tidy                         crate edges, lengths of files and functions, paths in the docs
  cargo xtask docs                         writes the generated docs anew
  cargo xtask bench NAME [ARGUMENT…]       runs bench/NAME.py on a release build, such as `bench cliffs`
  cargo xtask soak [--minutes N] [--seeds N]
                                           fresh seeds of the simulation, N a round (1000), all abuse of the
                                           real binary and long fuzzing, in turn (60 minutes); ends with a table of the balances";

fn help() -> String {
    format!("{HELP}\n\nSteps of `test`, in order: {}.", steps::names())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1)).cloned();
    let result = match args.first().map(String::as_str) {
        Some("test") => steps::test(option("--only").as_deref()),
        Some("tidy") => tidy::check().map(|said| eprintln!("{said}")),
        Some("docs") => steps::docs(),
        Some("bench") => bench::run(&args[1..]),
        Some("soak") => soak::soak(
            option("--minutes").as_deref().unwrap_or("60"),
            option("--seeds").as_deref().unwrap_or("1000"),
        ),
        Some("help" | "-h" | "--help") => {
            eprintln!("{}", help());
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{}", help());
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}
