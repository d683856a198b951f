//! `store check`.

use super::Failure;
use super::screen::{Screen, Style, count, counted};
use clap::Subcommand;
use postrider_store::{CheckReport, OsFiles};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Read every record of a data folder and tell what is damaged. Changes nothing; stop the server first.
    Check {
        /// The data folder.
        #[arg(default_value = "postrider-data")]
        dir: PathBuf,
    },
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    let What::Check { dir } = args.what;
    let report = postrider_store::check_stopped(&dir, Arc::new(OsFiles)).map_err(Failure::failed)?;
    show(&report, screen);
    if report.is_good() { Ok(()) } else { Err(Failure::Quiet(1)) }
}

fn show(report: &CheckReport, screen: &Screen) {
    let gaps: Vec<_> = report.audit.apps.iter().filter(|(_, app)| app.gap() != 0).collect();
    if screen.json {
        let files =
            report.files.iter().map(|f| json!({ "name": f.name, "bytes": f.bytes, "whole": f.whole }));
        let problems = report.problems.iter().map(ToString::to_string);
        let gaps = gaps.iter().map(|(no, app)| json!({ "app": format!("{no:?}"), "gap": app.gap() }));
        return screen.value(&json!({
            "good": report.is_good(), "closed_in_order": report.clean,
            "open_messages": report.open_messages, "open_deliveries": report.open_deliveries,
            "files": files.collect::<Vec<_>>(), "problems": problems.collect::<Vec<_>>(), "gaps": gaps.collect::<Vec<_>>(),
        }));
    }
    let rows: Vec<Vec<String>> =
        report.files.iter().map(|f| vec![f.name.clone(), count(f.bytes), count(f.whole)]).collect();
    screen.table(&["file", "bytes", "whole records"], &rows);
    let deliveries = counted(report.open_deliveries, "delivery", "deliveries");
    let are = if report.open_messages == 1 { "is" } else { "are" };
    let messages = counted(report.open_messages, "message", "messages");
    screen.line(format!("\n{messages} with {deliveries} {are} open."));
    if !report.clean {
        screen.line("It was not closed in order; the unfinished end of the last file is no damage.");
    }
    for problem in &report.problems {
        screen.line(format!("{} {problem}", screen.style(Style::Bad, "damage:")));
    }
    for (no, app) in gaps {
        let gap = app.gap();
        screen
            .line(format!("{} {no:?}: created − ended − open is {gap}", screen.style(Style::Bad, "books:")));
    }
    if report.is_good() {
        screen.line(screen.style(Style::Good, "Everything can be read, and the books balance."));
    }
}
