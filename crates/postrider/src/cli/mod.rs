//! The command line. One file a command; each parses its arguments, asks the server, shows the answer.
//!
//! `screen` is how things look, `remote` is how the server is asked. Nothing here decides anything about messages.

mod app;
mod bench;
mod config;
mod demo;
mod device;
mod errors;
mod jobs;
mod key;
mod listen;
mod message;
mod push;
mod remote;
mod screen;
mod serve;
mod store;
mod webhook;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use remote::Refusal;
use screen::Screen;
use serde_json::json;
use std::process::ExitCode;

const AFTER_HELP: &str = "\
First steps:
  postrider demo                          a server, a device and a first push, explained step by step
  postrider serve --data ./data           a server; prints its keys until you have noted them
  postrider listen                        act as a device, and show what arrives
  postrider push --all --title Hello --body 'First push' --wait

The commands that ask a server take --server (or POSTRIDER_SERVER) and --key (or POSTRIDER_APP_KEY).

Exit codes: 0 done; 1 refused or failed; 2 wrong usage or configuration; 3 the server cannot be reached.
Of `serve` also: 70 a part of it ended by a bug; 74 the disk failed. Start it again after either.";

/// A self-hosted message push platform that knows what became of every message.
#[derive(Debug, Parser)]
#[command(name = "postrider", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(serve::Args),
    /// Show everything at once: a server, a device, a first push, step by step.
    Demo(demo::Args),
    /// Send a push.
    Push(Box<push::Args>),
    /// Act as a device: print notifications as they arrive.
    Listen(listen::Args),
    /// Look at messages: their reports, their way, cancelling.
    Message(message::Args),
    /// Register devices, look at them, tag them.
    Device(device::Args),
    /// Webhooks: where an app's receipts are posted to.
    Webhook(webhook::Args),
    /// Apps (tenants) and their keys. Needs the administrator's key.
    App(app::Args),
    /// Jobs: slow work that goes on by itself. Needs the administrator's key.
    Jobs(jobs::Args),
    /// The first keys, and new ones for whoever has lost them.
    Key(key::Args),
    /// Measure a running server.
    Bench(bench::Args),
    /// Check a configuration, or print an example.
    Config(config::Args),
    /// Look after a data folder.
    Store(store::Args),
    /// Explain a code of the API, or print all of them (Markdown).
    Errors(errors::Args),
    /// Print the OpenAPI document of the HTTP API.
    Openapi,
    /// Print a script that completes commands in your shell.
    #[command(after_help = "Example: postrider completion bash > /etc/bash_completion.d/postrider")]
    Completion {
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// The server said no.
    Refused(Box<Refusal>),
    /// It was asked wrongly, or its configuration is wrong.
    Usage(String),
    Unreachable {
        server: String,
        why: String,
        /// What names another.
        option: &'static str,
    },
    Failed(String),
    /// The server could not go on; the code says why (sysexits).
    Ended {
        exit_code: u8,
        why: String,
    },
    /// Said already; only the exit code is left.
    Quiet(u8),
}

impl Failure {
    pub fn failed(why: impl std::fmt::Display) -> Failure {
        Failure::Failed(why.to_string())
    }

    fn exit_code(&self) -> u8 {
        match self {
            Failure::Refused(_) | Failure::Failed(_) => 1,
            Failure::Quiet(code) => *code,
            Failure::Usage(_) => 2,
            Failure::Unreachable { .. } => 3,
            Failure::Ended { exit_code, .. } => *exit_code,
        }
    }

    fn show(&self, screen: &Screen) {
        match self {
            Failure::Refused(refusal) => refusal.show(screen),
            Failure::Usage(why) => screen.error("usage", why, None),
            Failure::Unreachable { server, why, option } => screen.error(
                "unreachable",
                &format!("no answer from {server}: {why}"),
                Some(&format!(
                    "Is it running? Start one with `postrider serve`, or name another with {option}."
                )),
            ),
            Failure::Ended { why, .. } => {
                screen.error("ended", why, Some("Start it again; the log tells more."))
            }
            Failure::Failed(why) => screen.error("failed", why, None),
            Failure::Quiet(_) => {}
        }
    }
}

/// Parses the command line of the process and carries it out.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let screen = Screen::of_process(cli.json);
    match carry_out(cli.command, &screen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.show(&screen);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn carry_out(command: Command, screen: &Screen) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(args, screen),
        Command::Demo(args) => demo::run(args, screen),
        Command::Push(args) => push::run(*args, screen),
        Command::Listen(args) => listen::run(args, screen),
        Command::Message(args) => message::run(args, screen),
        Command::Device(args) => device::run(args, screen),
        Command::Webhook(args) => webhook::run(args, screen),
        Command::App(args) => app::run(args, screen),
        Command::Jobs(args) => jobs::run(args, screen),
        Command::Key(args) => key::run(args, screen),
        Command::Bench(args) => bench::run(args, screen),
        Command::Config(args) => config::run(args, screen),
        Command::Store(args) => store::run(args, screen),
        Command::Errors(args) => errors::run(args, screen),
        Command::Openapi => {
            screen.text(&crate::api::openapi::text());
            Ok(())
        }
        Command::Completion { shell } => {
            document(screen, completion(shell));
            Ok(())
        }
    }
}

/// A text that is made for a file: as it is, or as JSON's only field.
fn document(screen: &Screen, text: String) {
    if screen.json {
        screen.value(&json!({ "text": text }));
    } else {
        screen.text(&text);
    }
}

fn completion(shell: Shell) -> String {
    let (mut script, mut command) = (Vec::new(), Cli::command());
    clap_complete::generate(shell, &mut command, "postrider", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_lines_of_the_help_parse() {
        for line in [
            "postrider demo --data x",
            "postrider demo --lan",
            "postrider demo --listen 192.168.1.7",
            "postrider serve --data x --config y --set mqtt.app=z",
            "postrider --json listen --device d --secret s",
            "postrider push --device D --title T --body B --ttl 60 --wait --json",
            "postrider push --tag a --tag b --data {} --collapse-key k --server http://h:1 --key k",
            "postrider message trace 123 --device d",
            "postrider message trace 123 d",
            "postrider device register --platform ios --tag a --alias b",
            "postrider device tag d a",
            "postrider device list --connected false --seen-before 2026-08-01T00:00:00Z --sort last_seen",
            "postrider device prune --unseen 90d --dry-run",
            "postrider device clear d",
            "postrider app rename shop The-shop",
            "postrider app delete shop --confirm shop",
            "postrider app key add default --scope send",
            "postrider app key add default --scope register",
            "postrider jobs --kind webhook --state waiting --app shop",
            "postrider jobs retry 12",
            "postrider key reset --data x --app y --revoke",
            "postrider key seen --data x",
            "postrider bench push --devices 10 --messages 100 --rate 5",
            "postrider config check --config x",
            "postrider store check ./data",
            "postrider store upgrade --check ./data",
            "postrider --json store upgrade",
            "postrider errors invalid_field",
            "postrider completion zsh",
        ] {
            if let Err(error) = Cli::try_parse_from(line.split(' ')) {
                panic!("{line}: {error}");
            }
        }
        for line in [
            "postrider",
            "postrider push --title T",
            "postrider push --all --device d",
            "postrider message trace 1 d --device d",
            "postrider bench",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn a_script_is_made_for_every_shell() {
        for shell in Shell::value_variants() {
            assert!(completion(*shell).contains("postrider"), "{shell:?}");
        }
    }
}
