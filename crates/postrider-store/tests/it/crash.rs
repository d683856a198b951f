//! The power fails, or the process is killed: what was acknowledged is there, what was not may be, nothing else is.

use crate::kit::*;
use postrider_core::port::*;
use postrider_store::Files;
use postrider_store::faulty::FaultyFiles;
use postrider_store::{EmbeddedConfig, EmbeddedStore, Stepped, SyncMode, check};
use std::path::Path;
use std::sync::Arc;

/// Some work that closes segments, makes a checkpoint and writes receipts; ends at the first error.
fn work(store: &EmbeddedStore, promises: &mut Promises) -> Result<(), StoreError> {
    for n in 0..36 {
        promises.accept(store, n, &[(n % 3) as u32, ((n + 1) % 3) as u32])?;
        if n % 2 == 1 {
            promises.acknowledge(store, (n % 3) as u32)?;
        }
        if n == 17 || n == 30 {
            store.checkpoint_now()?;
        }
        if n % 6 == 0 {
            // A group of several sectors, of which any may get through.
            promises.accept_many(store, 100 + n * 10..100 + n * 10 + 10, 2)?;
        }
    }
    Ok(())
}

#[test]
fn power_may_fail_at_every_sync_and_nothing_acknowledged_is_lost() {
    for seed in 0..3 {
        let mut n = 1;
        loop {
            let files = FaultyFiles::new(seed * 1000 + n);
            let mut promises = Promises::default();
            files.power_fails_at_sync(n);
            if let Ok(store) = open(&files) {
                let (tell, told) = std::sync::mpsc::channel();
                let mut commands = vec![create_app()];
                commands.extend((0..3).map(|no| register(&format!("device-{no}"))));
                store.submit(commands, Box::new(move |result| drop(tell.send(result))));
                if told.recv().unwrap().is_ok() {
                    let _ = work(&store, &mut promises);
                }
                let happened = files.has_failed();
                let after = files.cut_power();
                drop(store);
                reopened(&after, &mut promises, n);
                if !happened {
                    assert!(n > 60, "{n}");
                    break;
                }
            } else {
                reopened(&files.cut_power(), &mut promises, n);
            }
            n += 1;
        }
    }
}

fn reopened(files: &FaultyFiles, promises: &mut Promises, n: u64) {
    let store = open(files).unwrap_or_else(|error| panic!("power failed at sync {n}: {error}"));
    assert!(store.problems().is_empty(), "power failed at sync {n}: {:?}", store.problems());
    promises.assert_kept(&store, 3);
    populate_rest(&store, 3);
    // It goes on, and a second failure on top does no more harm.
    promises.accept(&store, 900, &[0]).unwrap();
    let again = files.cut_power();
    drop(store);
    let store = open(&again).unwrap();
    promises.assert_kept(&store, 3);
    assert!(receipts_are_dense(&store));
}

fn receipts_are_dense(store: &dyn Store) -> bool {
    let page = store.events(APP, 0, 100_000).unwrap();
    !page.missed
        && page.events.first().is_none_or(|first| first.position == 1)
        && page.events.windows(2).all(|pair| pair[0].position + 1 == pair[1].position)
}

#[test]
fn receipts_that_a_crash_took_come_again_at_the_same_positions() {
    let files = FaultyFiles::new(3);
    let store = open(&files).unwrap();
    let mut promises = Promises::default();
    populate(&store, 3);
    work(&store, &mut promises).unwrap();
    let before = store.events(APP, 0, 100_000).unwrap();
    let epoch = store.epoch();
    let after = files.cut_power();
    drop(store);
    let store = open(&after).unwrap();
    assert_eq!(store.events(APP, 0, 100_000).unwrap(), before);
    assert!(store.knows(epoch, Place::Receipt(before.next)), "a cursor stays good over a crash");
    assert_eq!(store.watch_events().latest(), before.next);
}

/// What a backup of the folder is: all that was written, as other files. Chance goes another way there.
fn copy(files: &FaultyFiles, way: u64) -> FaultyFiles {
    let copy = files.fork();
    (0..way).for_each(|_| drop(copy.entropy()));
    copy
}

fn end_of(store: &EmbeddedStore) -> (u64, [Place; 2]) {
    let seq = inbox(store, 0).last().unwrap().seq;
    (store.epoch(), [Place::Command(seq), Place::Receipt(store.watch_events().latest())])
}

fn knows(store: &EmbeddedStore, (epoch, places): (u64, [Place; 2])) -> bool {
    let both = places.map(|place| store.knows(epoch, place));
    assert_eq!(both[0], both[1]);
    both[0]
}

#[test]
fn cursors_of_what_a_restore_took_away_are_not_known_and_those_from_before_are() {
    let files = FaultyFiles::new(3);
    let store = open(&files).unwrap();
    populate(&store, 1);
    let push = |store: &EmbeddedStore, numbers: std::ops::Range<u64>| {
        numbers.for_each(|n| drop(run_one(store, accept(n, &[0]))));
    };
    push(&store, 0..5);
    let before = end_of(&store);
    // One copy of a stopped folder, and one taken while the server runs.
    let running = copy(&files, 10);
    drop(store);
    let stopped = copy(&files, 20);
    let store = open(&files).unwrap();
    assert!(knows(&store, before), "a restart costs nobody anything");
    let starts = store.starts();
    let [.., first, second] = &*starts else { panic!("two starts at least: {starts:?}") };
    assert_eq!([first.id, second.id], [before.0, store.epoch()]);
    assert_eq!((first.after, Place::Command(second.after)), (0, before.1[0]));
    push(&store, 5..10);
    let lost = end_of(&store);
    drop(store);
    for (n, backup) in [stopped, running].into_iter().enumerate() {
        let again = copy(&backup, 30);
        let restored = open(&backup).unwrap();
        assert!(knows(&restored, before), "copy {n}");
        assert!(!knows(&restored, lost), "copy {n}");
        // Its own history goes beyond the position, which means another push now.
        push(&restored, 20..40);
        assert!(!knows(&restored, lost), "copy {n}");
        let of_the_first = end_of(&restored);
        drop(restored);
        assert!(knows(&open(&backup).unwrap(), of_the_first), "copy {n}");
        // The same copy, started once more somewhere else.
        let second = open(&again).unwrap();
        push(&second, 60..90);
        assert!(!knows(&second, of_the_first) && !knows(&second, lost) && knows(&second, before), "copy {n}");
    }
    let original = open(&files).unwrap();
    assert!(knows(&original, lost) && knows(&original, before));
    let (epoch, _) = end_of(&original);
    assert!(!original.knows(epoch, Place::Receipt(u64::MAX)), "never given out");
}

#[test]
fn a_killed_process_loses_nothing_even_with_sync_relaxed() {
    let files = FaultyFiles::new(3);
    let relaxed = EmbeddedConfig { sync: SyncMode::Relaxed, ..small(DIR) };
    let store = EmbeddedStore::open(relaxed.clone(), Arc::new(files.clone())).unwrap();
    let mut promises = Promises::default();
    populate(&store, 3);
    work(&store, &mut promises).unwrap();
    let after = files.kill();
    drop(store);
    let store = EmbeddedStore::open(relaxed, Arc::new(after)).unwrap();
    promises.assert_kept(&store, 3);
}

/// Found by the simulation (seed 242): what a killed process had written, and the next one took for stored, was still in the
/// operating system's memory only.
#[test]
fn what_a_killed_process_left_unsynced_is_lasting_once_it_was_recovered() {
    for seed in 0..20 {
        let files = FaultyFiles::new(seed);
        let (store, mut stepper) = EmbeddedStore::open_stepped(small(DIR), Arc::new(files.clone())).unwrap();
        let commands = vec![create_app(), register("device-0"), accept(1, &[0])];
        store.submit(commands, Box::new(|_| {}));
        assert_eq!(stepper.step(), Stepped::Written);
        let killed = files.kill();
        drop((store, stepper));
        let store = open(&killed).unwrap();
        assert!(store.message(APP, id(1)).is_some(), "the operating system has it");
        let after = killed.cut_power();
        drop(store);
        let store = open(&after).unwrap();
        assert!(store.message(APP, id(1)).is_some() && store.problems().is_empty(), "seed {seed}");
    }
}

#[test]
fn a_relaxed_store_that_lost_its_end_says_that_positions_are_new() {
    for seed in 0..40 {
        let files = FaultyFiles::new(seed);
        let relaxed = EmbeddedConfig { sync: SyncMode::Relaxed, ..small(DIR) };
        let store = EmbeddedStore::open(relaxed.clone(), Arc::new(files.clone())).unwrap();
        let mut promises = Promises::default();
        populate(&store, 3);
        work(&store, &mut promises).unwrap();
        let (epoch, told) = (store.epoch(), store.watch_events().latest());
        let after = files.cut_power();
        drop(store);
        let store = EmbeddedStore::open(relaxed, Arc::new(after)).unwrap();
        let kept = store.watch_events().latest();
        assert_eq!(store.knows(epoch, Place::Receipt(told)), kept == told, "seed {seed}: {kept} of {told}");
        assert_balanced(&store);
        if store.app(APP).is_none_or(|app| app.devices == 0) {
            continue;
        }
        // Receipts go on at the position that the state has, whatever of them was on disk.
        let before = store.events(APP, 0, 100_000).unwrap();
        run_one(&store, accept(700, &[0]));
        let page = store.events(APP, before.next, 10).unwrap();
        assert_eq!(page.events.len(), 1, "seed {seed}");
        assert_eq!((page.events[0].message, page.events[0].position), (id(700), before.next + 1));
    }
}

#[test]
fn a_content_cannot_pose_as_a_record() {
    // A sender who could write a head of ours into a message would have it executed after a torn write.
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    populate(&store, 1);
    run_one(&store, accept(1, &[0]));
    let (path, _) =
        files.paths().into_iter().find(|(p, _)| p.to_string_lossy().contains("journal-")).unwrap();
    let mut stolen = files.bytes(&path).unwrap();
    stolen.truncate(stolen.iter().rposition(|byte| *byte != 0).unwrap() + 1);
    let mut forged = message(2, &[0]);
    forged.content = Some(Arc::new(postrider_core::model::Content {
        topic: None,
        payload: stolen.clone().into(),
        properties: None,
    }));
    // Another store, whose salt the sender does not know.
    let other = FaultyFiles::new(99);
    let victim = open(&other).unwrap();
    populate(&victim, 1);
    run_one(&victim, postrider_core::command::Command::Accept(Box::new(forged)));
    run_one(&victim, accept(3, &[0]));
    let (path, _) =
        other.paths().into_iter().find(|(p, _)| p.to_string_lossy().contains("journal-")).unwrap();
    let bytes = other.bytes(&path).unwrap();
    assert!(bytes.windows(stolen.len()).any(|window| window == stolen), "it is in this segment");
    let victim_after = other.kill();
    drop(victim);
    // Damage every head in turn: reading goes on at true records only.
    for at in (48..bytes.len()).step_by(7) {
        let fork = victim_after.fork();
        fork.flip_bit(&path, at as u64, 1);
        let store = open(&fork).unwrap();
        assert!(store.message(APP, id(1)).is_none(), "byte {at}");
    }
}

#[test]
fn a_folder_is_used_by_one_process_only() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    let refused = open(&files).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("in use by another process"), "{refused}");
    drop(store);
    open(&files).unwrap();
}

#[test]
fn on_a_real_disk_a_store_is_private_locked_and_survives_a_restart() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let files = Arc::new(postrider_store::OsFiles);
    let config = EmbeddedConfig { reserve_bytes: 4096, ..small(&path) };
    let store = EmbeddedStore::open(config.clone(), files.clone()).unwrap();
    assert!(EmbeddedStore::open(config.clone(), files.clone()).is_err());
    let mut promises = Promises::default();
    populate(&store, 3);
    work(&store, &mut promises).unwrap();
    store.close();
    drop(store);
    for entry in std::fs::read_dir(&path).unwrap() {
        let mode = entry.as_ref().unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{entry:?}");
    }
    let report = check(Path::new(&path), files.clone()).unwrap();
    assert!(report.is_good() && report.clean, "{report:?}");
    let store = EmbeddedStore::open(config.clone(), files.clone()).unwrap();
    promises.assert_kept(&store, 3);
    drop(store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let refused = EmbeddedStore::open(config, files).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("chmod 700"), "{refused}");
}

#[test]
fn a_newer_format_is_refused() {
    let files = FaultyFiles::new(1);
    drop(open(&files).unwrap());
    // What a later version would write: another version, and a checksum that is right.
    let store = data("STORE");
    let mut header = files.bytes(&store).unwrap();
    header[8] = 200;
    let crc = crc32c::crc32c(&header[..44]).to_le_bytes();
    let had = files.bytes(&store).unwrap();
    for (at, (new, old)) in header[..44].iter().chain(&crc).zip(&had).enumerate() {
        for bit in 0..8 {
            if (new ^ old) >> bit & 1 == 1 {
                files.flip_bit(&store, at as u64, bit);
            }
        }
    }
    let refused = open(&files).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("format 200, newer"), "{refused}");
}
