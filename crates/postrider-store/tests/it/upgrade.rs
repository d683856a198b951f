//! Folders of earlier releases are taken over as wholes, or left as they are.

use crate::golden::{assert_shows, folder, said, shown};
use crate::kit::*;
use postrider_core::state::rules::RULES;
use postrider_store::faulty::{Fault, FaultyFiles};
use postrider_store::{
    EmbeddedConfig, EmbeddedStore, Files, KnownRules, OpenError, UpgradePlan, check_knowing, upgrade_check,
    upgrade_stopped,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Folders of earlier rules, and what they showed.
const OLD: [&str; 2] = ["first-rules", "second"];

fn plan(files: &FaultyFiles) -> UpgradePlan {
    upgrade_check(Path::new(DIR), Arc::new(files.clone())).unwrap().plan.unwrap()
}

/// Files with what is in them. Zeros at the end of a segment are space that was never used.
fn contents(files: &FaultyFiles) -> BTreeMap<PathBuf, Vec<u8>> {
    let named = files.paths().into_iter().filter(|(path, _)| !path.ends_with("LOCK"));
    named
        .map(|(path, _)| {
            let mut bytes = files.bytes(&path).unwrap();
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            (path, bytes)
        })
        .collect()
}

fn open_knowing(files: &FaultyFiles, rules: KnownRules) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(EmbeddedConfig { rules, ..small(DIR) }, Arc::new(files.clone()))
}

/// A later release that has no rules before the present ones.
fn without_the_first_rules() -> KnownRules {
    KnownRules { oldest: 2, present: RULES, last_release_with: |_| Some("7.8.9") }
}

/// A release to come, to which the present rules are old.
fn of_tomorrow() -> KnownRules {
    KnownRules { present: RULES + 1, ..KnownRules::OURS }
}

#[test]
fn the_present_rules_begin_behind_a_checkpoint() {
    for name in OLD {
        let files = folder(name);
        let before = plan(&files);
        assert!(before.is_needed && before.has_room() && before.checkpoint_bytes > 0, "{before:?}");
        assert!(before.commands > 0 && !before.clean && before.problems.is_empty(), "{before:?}");
        let upgraded = assert_shows(&files, name);
        let after = upgrade_check(Path::new(DIR), Arc::new(upgraded.clone())).unwrap();
        assert_eq!(after.folder, after.program);
        let after = after.plan.unwrap();
        assert!(!after.is_needed && after.needed_bytes() == 0);
        assert_eq!((after.seq, after.commands), (before.seq, 0), "{name}: all is in the checkpoint");
        // No rules but the present ones are needed from now on.
        drop(open_knowing(&upgraded, without_the_first_rules()).unwrap());
        let store = open(&upgraded.kill()).unwrap();
        run_one(&store, expire(u64::MAX / 2));
        let now = shown(&store);
        let killed = upgraded.kill();
        drop(store);
        assert_eq!(shown(&open(&killed).unwrap()), now, "{name}");
    }
}

#[test]
fn a_folder_closed_in_order_is_upgraded_too() {
    // A checkpoint that has all: it is written anew under the same name.
    let files = folder("second");
    let journals: Vec<PathBuf> = files.paths().into_iter().map(|(path, _)| path).collect();
    for path in journals.iter().filter(|path| path.to_string_lossy().contains("journal-0000000000000096")) {
        files.remove(path).unwrap();
    }
    let last = data("journal-0000000000000084-00000003.log");
    files.truncate(&last, 48);
    let before = plan(&files);
    assert!(before.is_needed && before.commands == 0, "{before:?}");
    let store = open(&files).unwrap();
    let now = shown(&store);
    let killed = files.kill();
    drop(store);
    assert!(!plan(&killed).is_needed);
    assert_eq!(shown(&open(&killed).unwrap()), now);
}

#[test]
fn the_power_may_fail_at_each_sync_of_the_first_start_and_nothing_is_lost() {
    for name in OLD {
        let mut n = 1;
        loop {
            let files = folder(name);
            files.power_fails_at_sync(n);
            let opened = open(&files);
            let happened = files.has_failed();
            let after = files.cut_power();
            drop(opened);
            assert_shows(&assert_shows(&after, name), name);
            if !happened {
                assert!(n > 5, "{n}");
                break;
            }
            n += 1;
        }
    }
}

#[test]
fn the_process_may_be_killed_after_each_operation_of_the_first_start_and_nothing_is_lost() {
    for name in OLD {
        let mut n = 1;
        loop {
            let files = folder(name);
            files.fail_at(n, Fault::Io, true);
            let opened = open(&files);
            let happened = files.has_failed();
            // Dead from here: what it does on its way out does not reach the disk.
            let after = files.kill();
            drop(opened);
            let report = upgrade_check(Path::new(DIR), Arc::new(after.clone())).unwrap();
            let is_taken_over = report.folder == report.program;
            assert_eq!(report.plan.unwrap().is_needed, !is_taken_over, "{name} after operation {n}");
            assert_shows(&after, name);
            if !happened {
                assert!(n > 50, "{n}");
                break;
            }
            n += 1;
        }
    }
}

#[test]
fn a_folder_of_the_third_format_and_old_rules_is_upgraded_by_a_release_to_come() {
    let mut n = 1;
    loop {
        let files = folder("third");
        files.power_fails_at_sync(n);
        let opened = open_knowing(&files, of_tomorrow());
        let happened = files.has_failed();
        let after = files.cut_power();
        drop(opened);
        let store = open_knowing(&after, of_tomorrow()).unwrap();
        assert_eq!(shown(&store), said("third"), "sync {n}");
        if !happened {
            assert!(n > 5, "{n}");
            break;
        }
        n += 1;
    }
}

#[test]
fn without_room_the_folder_is_left_as_it_is() {
    for name in OLD {
        let files = folder(name);
        let (before, plan) = (contents(&files), plan(&files));
        for free in [0, 1, 4096, plan.needed_bytes() / 2, plan.needed_bytes() - 1] {
            files.set_quota(Some(files.used() + free));
            let why = open(&files).map(|_| ()).unwrap_err().to_string();
            let words = format!("needs {} bytes of free space, and {free} are free", plan.needed_bytes());
            assert!(why.contains(&words), "{why}");
            assert_eq!(contents(&files), before, "{name} with {free}");
            let report = upgrade_check(Path::new(DIR), Arc::new(files.clone())).unwrap();
            assert!(report.plan.unwrap_err().to_string().contains(&words));
        }
        files.set_quota(Some(files.used() + plan.needed_bytes()));
        assert_shows(&files, name);
    }
}

/// Somebody else fills the disk meanwhile, or the disk said more than was true.
#[test]
fn a_disk_that_becomes_full_during_the_upgrade_leaves_the_folder_to_either_release() {
    for (name, fault) in OLD.into_iter().flat_map(|name| [(name, Fault::Full), (name, Fault::Io)]) {
        let (mut n, mut refused) = (1, 0);
        loop {
            let files = folder(name);
            let before = contents(&files);
            files.fail_lines(&[], fault);
            files.fail_at(n, fault, false);
            let opened = open(&files);
            let happened = files.has_failed();
            files.heal();
            if let Err(error) = opened {
                refused += 1;
                assert!(!error.to_string().is_empty());
                if let OpenError::NotUpgraded(_) = error {
                    assert_eq!(contents(&files), before, "{name} after operation {n}: {error}");
                }
                assert_shows(&files, name);
            } else {
                drop(opened);
            }
            if !happened {
                break;
            }
            n += 1;
        }
        assert!(refused > 20, "{refused}");
    }
}

#[test]
fn the_reserve_is_given_up_where_the_upgrade_needs_it() {
    let files = folder("first-rules");
    let needed = plan(&files).needed_bytes();
    files.create(&data("reserve")).unwrap().allocate(needed).unwrap();
    files.set_quota(Some(files.used() + 100));
    assert_shows(&files, "first-rules");
}

#[test]
fn rules_that_are_not_known_any_more_are_refused_and_the_release_is_named_that_knows_them() {
    let files = folder("first-rules");
    let before = contents(&files);
    let why = open_knowing(&files, without_the_first_rules()).map(|_| ()).unwrap_err().to_string();
    assert!(why.contains("rules 1") && why.contains("start release 7.8.9"), "{why}");
    let report = check_knowing(Path::new(DIR), Arc::new(files.clone()), without_the_first_rules()).unwrap();
    assert_eq!((report.folder.format, report.folder.rules), (2, 1));
    assert_eq!(report.plan.unwrap_err().to_string(), why);
    assert_eq!(contents(&files), before);
    // As it says: a release between writes a checkpoint, and then it works.
    let report = upgrade_stopped(Path::new(DIR), Arc::new(files.clone())).unwrap();
    assert!(report.plan.unwrap().is_needed);
    let store = open_knowing(&files, without_the_first_rules()).unwrap();
    assert_eq!(shown(&store), said("first-rules"));
}

/// Writes other rules into a header, as a later release would.
fn put_rules(files: &FaultyFiles, path: &Path, rules: u32) {
    let file = files.open(path, true).unwrap();
    let mut header = [0; 48];
    file.read_exact_at(&mut header, 0).unwrap();
    header[36..40].copy_from_slice(&rules.to_le_bytes());
    let crc = crc32c::crc32c(&header[..44]);
    header[44..].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&header, 0).unwrap();
}

#[test]
fn files_of_newer_rules_are_refused_whatever_is_in_them() {
    let newest = ["checkpoint-0000000000000072.state", "journal-000000000000008d-00000005.log"];
    for name in newest {
        let files = folder("third");
        put_rules(&files, &data(name), RULES + 1);
        let before = contents(&files);
        let why = open(&files).map(|_| ()).unwrap_err().to_string();
        assert!(why.contains(&format!("{name} was written by the rules {}", RULES + 1)), "{why}");
        assert!(why.contains("use the newer program"), "{why}");
        assert_eq!(contents(&files), before);
        let report = upgrade_check(Path::new(DIR), Arc::new(files.clone())).unwrap();
        assert_eq!(report.plan.unwrap_err().to_string(), why);
    }
}

#[test]
fn a_damaged_header_does_not_change_the_rules() {
    let files = folder("first-rules");
    for (path, _) in files.paths().iter().filter(|(path, _)| path.to_string_lossy().contains("journal-")) {
        files.flip_bit(path, 37, 0);
    }
    let store = open(&files).unwrap();
    assert_eq!(shown(&store), said("first-rules"));
    drop(store);
    // Behind the upgrade all is of the present rules.
    let upgraded = assert_shows(&folder("first-rules"), "first-rules");
    let store = open(&upgraded).unwrap();
    run_one(&store, expire(u64::MAX / 2));
    let now = shown(&store);
    let killed = upgraded.kill();
    drop(store);
    let paths = killed.paths();
    let is_journal = |(path, _): &&(PathBuf, u64)| path.to_string_lossy().contains("journal-");
    killed.flip_bit(&paths.iter().rfind(is_journal).unwrap().0, 37, 0);
    let store = open(&killed).unwrap();
    assert_eq!(store.problems().len(), 1);
    assert_eq!(shown(&store), now);
}
