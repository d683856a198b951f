//! Upgrading the data folder of a stopped server, and telling before what that will do.
//!
//! A server does the same when it starts on the folder (`embedded::upgrade`).

use crate::check::stopped;
use crate::embedded::config::EmbeddedConfig;
use crate::embedded::folder::{Folder, Identity};
use crate::embedded::record::Written;
use crate::embedded::upgrade::{self, KnownRules, UpgradePlan};
use crate::embedded::{EmbeddedStore, OpenError};
use crate::files::Files;
use std::path::Path;
use std::sync::Arc;

/// What a program writes into its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrote {
    /// How bytes are to be read.
    pub format: u32,
    /// How commands are executed.
    pub rules: u32,
    pub release: String,
}

impl From<Written> for Wrote {
    fn from(Written { format, rules, release }: Written) -> Wrote {
        Wrote { format, rules, release: release.to_string() }
    }
}

/// A folder, and what this program would do to it.
#[derive(Debug)]
pub struct UpgradeReport {
    /// Who wrote the newest file.
    pub folder: Wrote,
    pub program: Wrote,
    /// The error: why this program cannot go on with the folder.
    pub plan: Result<UpgradePlan, OpenError>,
}

/// Looks at a folder whose server is stopped, and changes nothing.
pub fn upgrade_check(dir: &Path, files: Arc<dyn Files>) -> Result<UpgradeReport, OpenError> {
    check_knowing(dir, files, KnownRules::OURS)
}

/// The same for a program that knows other rules.
#[doc(hidden)]
pub fn check_knowing(
    dir: &Path,
    files: Arc<dyn Files>,
    known: KnownRules,
) -> Result<UpgradeReport, OpenError> {
    let _lock = stopped(dir, &*files)?;
    let Some(identity) = Identity::read(dir, &*files)? else {
        return Err(OpenError::Damaged("the STORE files are gone".to_owned()));
    };
    let folder = Folder::new(dir.to_path_buf(), files, &identity, known);
    let written = upgrade::newest_written(&folder)?;
    let plan = upgrade::plan(&folder).and_then(|plan| match plan.free_bytes {
        Some(free) if !plan.has_room() => {
            Err(OpenError::NoRoomToUpgrade { needed: plan.needed_bytes(), free })
        }
        _ => Ok(plan),
    });
    Ok(UpgradeReport { folder: written.into(), program: Written::NOW.into(), plan })
}

/// Upgrades a folder whose server is stopped, where that is needed. Tells what was there before.
pub fn upgrade_stopped(dir: &Path, files: Arc<dyn Files>) -> Result<UpgradeReport, OpenError> {
    let report = upgrade_check(dir, files.clone())?;
    if report.plan.as_ref().is_ok_and(|plan| plan.is_needed) {
        let config =
            EmbeddedConfig { reserve_bytes: 0, allow_open_to_others: true, ..EmbeddedConfig::new(dir) };
        EmbeddedStore::open(config, files)?.close();
    }
    Ok(report)
}
