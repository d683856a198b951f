//! `jobs`: slow work that goes on by itself, and what hinders it.

use super::Failure;
use super::remote::{AdminRemote, Api};
use super::screen::{Screen, count};
use clap::Subcommand;
use serde_json::{Value, json};

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  postrider jobs --state waiting\n  postrider jobs retry 12"
)]
pub struct Args {
    #[command(flatten)]
    remote: AdminRemote,
    #[command(flatten)]
    filter: Filter,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Args)]
struct Filter {
    /// Only jobs of this app.
    #[arg(long)]
    app: Option<String>,
    /// Only jobs of this kind, such as webhook.
    #[arg(long)]
    kind: Option<String>,
    /// Only jobs in this state: due, waiting, leased or parked.
    #[arg(long)]
    state: Option<String>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Try a job that failed or is parked at once.
    Retry {
        /// Its number, as the list shows it.
        id: u64,
    },
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    let api = args.remote.api()?;
    match args.what {
        None => list(&api, args.filter, screen),
        Some(What::Retry { id }) => {
            api.post(&format!("/v1/admin/jobs/{id}/retry"), &Value::Null)?;
            if screen.json {
                screen.value(&json!({ "due": id }));
            } else {
                screen.line(format!("The job {id} is due."));
            }
            Ok(())
        }
    }
}

fn list(api: &Api, filter: Filter, screen: &Screen) -> Result<(), Failure> {
    let Filter { app, kind, state } = filter;
    let jobs = api.list("/v1/admin/jobs", &[("app", app), ("kind", kind), ("state", state)], "jobs")?;
    if screen.json {
        screen.value(&json!({ "jobs": jobs }));
    } else if jobs.is_empty() {
        screen.line("There are no such jobs.");
    } else {
        let head = ["id", "kind", "app", "subject", "state", "due", "failures", "last error"];
        screen.table(&head, &jobs.iter().map(row).collect::<Vec<_>>());
    }
    Ok(())
}

fn row(job: &Value) -> Vec<String> {
    let text = |name: &str| job[name].as_str().unwrap_or("").to_owned();
    let number = |name: &str| job[name].as_u64().unwrap_or(0);
    // A job that is due is so since then, one that waits will be so then.
    let due = job["due_since"].as_str().or(job["next_at"].as_str()).unwrap_or("").to_owned();
    vec![
        number("id").to_string(),
        text("kind"),
        text("app"),
        number("subject").to_string(),
        text("state"),
        due,
        count(number("failures")),
        text("last_error"),
    ]
}
