//! `store check`, `store upgrade`.

use super::Failure;
use super::screen::{Screen, Style, count, counted};
use clap::Subcommand;
use postrider_store::{CheckReport, OsFiles, UpgradePlan, UpgradeReport};
use serde_json::json;
use std::path::{Path, PathBuf};
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
    /// Take a data folder of an earlier release over. `serve` does the same when it starts; stop the
    /// server and copy the folder first, since the earlier release refuses it afterwards.
    Upgrade {
        /// Only tell who wrote the folder, what would be done, and whether there is room for it.
        /// Changes nothing; exits with 1 where the folder cannot be taken over.
        #[arg(long)]
        check: bool,
        /// The data folder.
        #[arg(default_value = "postrider-data")]
        dir: PathBuf,
    },
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    match args.what {
        What::Check { dir } => {
            let report = postrider_store::check_stopped(&dir, Arc::new(OsFiles)).map_err(Failure::failed)?;
            show(&report, screen);
            if report.is_good() { Ok(()) } else { Err(Failure::Quiet(1)) }
        }
        What::Upgrade { check, dir } => upgrade(&dir, check, screen),
    }
}

fn upgrade(dir: &Path, only_check: bool, screen: &Screen) -> Result<(), Failure> {
    let files = Arc::new(OsFiles);
    let done = if only_check {
        postrider_store::upgrade_check(dir, files)
    } else {
        postrider_store::upgrade_stopped(dir, files)
    };
    let report = done.map_err(Failure::failed)?;
    if screen.json {
        screen.value(&upgrade_json(&report, only_check));
    } else {
        show_upgrade(&report, dir, only_check, screen);
    }
    if report.plan.is_ok() { Ok(()) } else { Err(Failure::Quiet(1)) }
}

fn upgrade_json(report: &UpgradeReport, only_check: bool) -> serde_json::Value {
    let UpgradeReport { folder, program, plan } = report;
    let plan_is = |of: fn(&UpgradePlan) -> serde_json::Value| plan.as_ref().map_or(json!(null), of);
    json!({
        "format": folder.format, "rules": folder.rules, "release": folder.release,
        "program": { "format": program.format, "rules": program.rules, "release": program.release },
        "possible": plan.is_ok(), "reason": plan.as_ref().err().map(ToString::to_string),
        "needed": plan_is(|plan| json!(plan.is_needed)),
        "upgraded": !only_check && plan.as_ref().is_ok_and(|plan| plan.is_needed),
        "closed_in_order": plan_is(|plan| json!(plan.clean)),
        "replayed_commands": plan_is(|plan| json!(plan.commands)),
        "checkpoint_bytes": plan_is(|plan| json!(plan.checkpoint_bytes)),
        "needed_bytes": plan_is(|plan| json!(plan.needed_bytes())),
        "free_bytes": plan_is(|plan| json!(plan.free_bytes)),
        "problems": plan_is(|plan| plan.problems.iter().map(ToString::to_string).collect()),
    })
}

fn show_upgrade(report: &UpgradeReport, dir: &Path, only_check: bool, screen: &Screen) {
    let UpgradeReport { folder, program, plan } = report;
    screen.line(format!(
        "{} was written by release {}: format {}, rules {}.",
        dir.display(),
        folder.release,
        folder.format,
        folder.rules
    ));
    let (format, rules) = (program.format, program.rules);
    screen.line(format!("This is release {}: format {format}, rules {rules}.", program.release));
    let plan = match plan {
        Ok(plan) => plan,
        Err(why) => return screen.line(format!("{} {why}.", screen.style(Style::Bad, "It cannot go on:"))),
    };
    for problem in &plan.problems {
        screen.line(format!("{} {problem}", screen.style(Style::Bad, "damage:")));
    }
    if !plan.is_needed {
        let good = "Nothing has to be done: this release goes on with the folder as it is.";
        return screen.line(screen.style(Style::Good, good));
    }
    let free = plan.free_bytes.map_or("an unknown number".to_owned(), count);
    screen.line(format!(
        "{} by the rules {}, then a checkpoint of {} bytes is written. That needs {} bytes of free \
         space; {free} are free.",
        counted(plan.commands, "command is executed again", "commands are executed again"),
        folder.rules,
        count(plan.checkpoint_bytes),
        count(plan.needed_bytes()),
    ));
    screen.line(if only_check {
        screen.style(
            Style::Good,
            "It can be upgraded. Copy it first: the earlier release refuses it afterwards.",
        )
    } else {
        screen.style(Style::Good, "It is upgraded.")
    });
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

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_store::{EmbeddedConfig, EmbeddedStore, upgrade_check};

    /// A copy of a folder that an earlier release wrote.
    fn folder(name: &str) -> tempfile::TempDir {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../postrider-store/tests/golden").join(name);
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(golden).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        copy
    }

    fn crc32c(bytes: &[u8]) -> u32 {
        let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
    }

    fn told(dir: &Path) -> serde_json::Value {
        upgrade_json(&upgrade_check(dir, Arc::new(OsFiles)).unwrap(), true)
    }

    fn upgrade_of(dir: &Path, check: bool) -> Result<(), Failure> {
        let screen = Screen { json: false, color: false };
        run(Args { what: What::Upgrade { check, dir: dir.to_path_buf() } }, &screen)
    }

    fn names(dir: &Path) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.retain(|name| name != "LOCK");
        names.sort();
        names
    }

    #[test]
    fn a_folder_of_an_earlier_release_is_told_about_and_then_upgraded() {
        let copy = folder("first-rules");
        let (dir, before) = (copy.path(), names(copy.path()));
        upgrade_of(dir, true).unwrap();
        let check = told(dir);
        assert_eq!((&check["format"], &check["rules"]), (&json!(2), &json!(1)));
        assert_eq!(
            (&check["needed"], &check["possible"], &check["upgraded"]),
            (&json!(true), &json!(true), &json!(false))
        );
        assert!(check["replayed_commands"].as_u64() > Some(50), "{check}");
        assert!(check["needed_bytes"].as_u64() > check["checkpoint_bytes"].as_u64(), "{check}");
        assert_eq!(names(dir), before, "nothing was changed");
        upgrade_of(dir, false).unwrap();
        let after = told(dir);
        assert_eq!((&after["needed"], &after["needed_bytes"]), (&json!(false), &json!(0)));
        assert_eq!(
            (&after["format"], &after["rules"]),
            (&after["program"]["format"], &after["program"]["rules"])
        );
        let now = names(dir);
        upgrade_of(dir, false).unwrap();
        assert_eq!(names(dir), now, "once is enough");
    }

    #[test]
    fn a_folder_of_newer_rules_cannot_be_taken_over_and_the_reason_is_said() {
        let copy = folder("third");
        let newest = copy.path().join("journal-000000000000008d-00000005.log");
        let mut bytes = std::fs::read(&newest).unwrap();
        bytes[36] = 99;
        let crc = crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&newest, bytes).unwrap();
        assert!(matches!(upgrade_of(copy.path(), true), Err(Failure::Quiet(1))));
        assert!(matches!(upgrade_of(copy.path(), false), Err(Failure::Quiet(1))));
        let check = told(copy.path());
        assert_eq!(
            (&check["rules"], &check["possible"], &check["needed"]),
            (&json!(99), &json!(false), &json!(null))
        );
        assert!(check["reason"].as_str().unwrap().contains("use the newer program"), "{check}");
    }

    #[test]
    fn no_folder_another_folder_and_a_running_server_are_told_apart() {
        let why = |dir: &Path| match upgrade_of(dir, true) {
            Err(Failure::Failed(why)) => why,
            other => panic!("{other:?}"),
        };
        let dir = tempfile::tempdir().unwrap();
        assert!(why(&dir.path().join("nothing")).contains("there is no folder"));
        assert!(why(dir.path()).contains("is no data folder"));
        let config = EmbeddedConfig {
            reserve_bytes: 0,
            allow_open_to_others: true,
            ..EmbeddedConfig::new(dir.path())
        };
        let store = EmbeddedStore::open(config, Arc::new(OsFiles)).unwrap();
        assert!(why(dir.path()).contains("is running: stop it first"));
        store.close();
    }
}
