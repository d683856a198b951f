//! Checkpoints: they change nothing that can be asked, let old journal go, and may be interrupted anywhere.

use crate::contract::{assert_same, random_command};
use crate::kit::*;
use postrider_core::command::*;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_store::faulty::FaultyFiles;
use postrider_store::{EmbeddedStore, MemoryStore, check};
use std::path::Path;
use std::sync::Arc;

fn names(files: &FaultyFiles, what: &str) -> usize {
    files
        .paths()
        .iter()
        .filter(|(path, _)| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(what)))
        .count()
}

#[test]
fn old_journal_goes_with_the_second_checkpoint_and_contents_stay_readable() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    let mut promises = Promises::default();
    populate(&store, 4);
    for round in 0..6 {
        for n in 0..60 {
            promises.accept(&store, round * 60 + n, &[(n % 4) as u32]).unwrap();
            if n % 3 > 0 {
                promises.acknowledge(&store, (n % 4) as u32).unwrap();
            }
        }
        assert!(store.checkpoint_now().unwrap());
        promises.assert_kept(&store, 4);
        assert!(names(&files, "checkpoint-") <= 2);
    }
    assert!(!store.checkpoint_now().unwrap(), "nothing new");
    // Only what came since the spare checkpoint is left: one round.
    assert!(names(&files, "journal-") < 10, "{:?}", files.paths());
    assert_eq!(store.stats().checkpoints, 6);
    store.close();
    let report = check(Path::new(DIR), Arc::new(files.clone())).unwrap();
    assert!(report.is_good() && report.clean, "{report:?}");
    drop(store);
    let store = open(&files).unwrap();
    assert!(store.problems().is_empty());
    promises.assert_kept(&store, 4);
}

#[test]
fn a_reference_from_before_a_checkpoint_is_still_readable_after_it() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    populate(&store, 1);
    run_one(&store, accept(1, &[0]));
    let old = inbox(&store, 0)[0].blob;
    store.checkpoint_now().unwrap();
    let new = inbox(&store, 0)[0].blob;
    assert_ne!(old, new);
    assert_eq!(store.content(old).unwrap(), store.content(new).unwrap());
    run_one(&store, accept(2, &[0]));
    store.checkpoint_now().unwrap();
    assert_eq!(store.content(old), Err(StoreError::Missing));
    assert_eq!(*store.content(inbox(&store, 0)[0].blob).unwrap(), *content(1));
}

#[test]
fn what_was_sent_and_seen_comes_back_with_the_checkpoint_that_followed() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    populate(&store, 2);
    run_one(&store, accept(1, &[0, 1]));
    let seq = inbox(&store, 1)[0].seq;
    store.sent(APP, &[(device(1).device, seq)], NOW + 3);
    store.seen(device(1), NOW + 5);
    assert!(store.checkpoint_now().unwrap());
    store.seen(device(1), NOW + 9);
    let shown = |store: &EmbeddedStore| {
        let timeline = store.delivery(APP, id(1), device(1).device).unwrap().timeline;
        (timeline, store.device(device(1)).unwrap().last_seen_at, inbox(store, 1)[0].sent_before)
    };
    let (timeline, seen, sent_before) = shown(&store);
    assert_eq!((seen, sent_before), (Some(NOW + 9), true));
    let last = timeline.last().unwrap();
    assert_eq!((last.step, last.at), (Step::Sent, NOW + 3));
    // Killed: nothing more is written.
    let files = files.kill();
    std::mem::forget(store);
    let store = open(&files).unwrap();
    assert_eq!(shown(&store), (timeline, Some(NOW + 5), true));
}

#[test]
fn a_history_replayed_from_any_checkpoint_is_the_same_history() {
    for seed in 0..6 {
        let memory = MemoryStore::new();
        let mut files = FaultyFiles::new(seed);
        let mut store = open(&files).unwrap();
        let mut random = Random(seed);
        populate(&memory, 8);
        populate(&store, 8);
        for n in 0..300 {
            let command = random_command(&mut random, n);
            let expected = run(&memory, vec![command.clone()]).unwrap();
            assert_eq!(run(&store, vec![command]).unwrap(), expected, "seed {seed} command {n}");
            match random.below(30) {
                0 => _ = store.checkpoint_now().unwrap(),
                1 => {
                    // A power cut, as all was told: nothing may be missing.
                    let after = files.cut_power();
                    drop(store);
                    files = after;
                    store = open(&files).unwrap();
                    assert!(store.problems().is_empty(), "{:?}", store.problems());
                }
                _ => {}
            }
        }
        assert_same(&memory, &store);
    }
}

#[test]
fn expiry_within_a_second_is_the_same_after_a_restart() {
    let files = FaultyFiles::new(1);
    let memory = MemoryStore::new();
    let store = open(&files).unwrap();
    let commands = |store: &dyn Store| {
        populate(store, 1);
        for (n, expires_at) in [(1, NOW + 1_900), (2, NOW + 1_100), (3, NOW + 1_950), (4, NOW + 1_200)] {
            run_one(store, Command::Accept(Box::new(NewMessage { expires_at, ..message(n, &[0]) })));
        }
        run_one(store, expire(NOW + 1_500));
    };
    commands(&memory);
    commands(&store);
    store.checkpoint_now().unwrap();
    drop(store);
    let store = open(&files).unwrap();
    for now in [NOW + 1_800, NOW + 2_000, NOW + 2_500] {
        let next = Command::Expire { now, limit: 1, history_before: 0, history_max: 100 };
        assert_eq!(run_one(&store, next.clone()), run_one(&memory, next));
        assert_same(&memory, &store);
    }
}

#[test]
fn a_checkpoint_interrupted_anywhere_loses_nothing() {
    // The same work each time; the power fails at the n-th sync of the checkpoint, for each n.
    let mut n = 1;
    loop {
        let files = FaultyFiles::new(n);
        let store = open(&files).unwrap();
        let mut promises = Promises::default();
        populate(&store, 3);
        for i in 0..80 {
            promises.accept(&store, i, &[(i % 3) as u32]).unwrap();
        }
        store.checkpoint_now().unwrap();
        for i in 80..120 {
            promises.accept(&store, i, &[(i % 3) as u32]).unwrap();
            promises.acknowledge(&store, (i % 3) as u32).unwrap();
        }
        files.power_fails_at_sync(n);
        let made = store.checkpoint_now();
        let happened = files.has_failed();
        let after = files.cut_power();
        drop(store);
        let store = open(&after).unwrap();
        assert!(store.problems().is_empty(), "sync {n}: {:?}", store.problems());
        promises.assert_kept(&store, 3);
        promises.accept(&store, 1000, &[0]).unwrap();
        store.checkpoint_now().unwrap();
        promises.assert_kept(&store, 3);
        if !happened {
            assert!(made.unwrap());
            assert!(n > 5, "only {n} syncs in a checkpoint?");
            return;
        }
        n += 1;
    }
}

#[test]
fn a_damaged_newest_checkpoint_is_replaced_by_the_one_before() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    let mut promises = Promises::default();
    populate(&store, 2);
    for round in 0..3 {
        for n in 0..40 {
            promises.accept(&store, round * 40 + n, &[(n % 2) as u32]).unwrap();
        }
        store.checkpoint_now().unwrap();
    }
    let epoch = store.epoch();
    drop(store);
    let checkpoints: Vec<_> = files
        .paths()
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "state"))
        .collect();
    assert_eq!(checkpoints.len(), 2);
    files.flip_bit(&checkpoints[1].0, checkpoints[1].1 / 2, 3);
    let store = open(&files).unwrap();
    assert_eq!(store.problems().len(), 1, "{:?}", store.problems());
    assert_eq!(store.stats().quarantined, 1);
    assert!(!store.knows(epoch, Place::Receipt(1)), "positions may have changed");
    promises.assert_kept(&store, 2);
}

#[test]
fn without_any_good_checkpoint_and_without_the_whole_journal_nothing_is_opened_or_deleted() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    populate(&store, 1);
    for n in 0..4 {
        run_one(&store, accept(n, &[0]));
        store.checkpoint_now().unwrap();
    }
    drop(store);
    for (path, len) in files.paths() {
        if path.extension().is_some_and(|e| e == "state") {
            files.flip_bit(&path, len / 2, 1);
        }
    }
    let before = files.paths().len();
    let refused = open(&files).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("restore a backup"), "{refused}");
    let journals = names(&files, "journal-");
    assert!(files.paths().len() >= before && journals > 0);
}

#[test]
fn a_journal_damaged_behind_our_back_is_healed_from_memory() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    let mut promises = Promises::default();
    populate(&store, 2);
    for n in 0..60 {
        promises.accept(&store, n, &[(n % 2) as u32]).unwrap();
    }
    // The head of some record in the first, closed segment.
    let (path, _) =
        files.paths().into_iter().find(|(p, _)| p.to_string_lossy().contains("journal-")).unwrap();
    files.flip_bit(&path, 50, 0);
    assert!(store.checkpoint_now().unwrap());
    assert!(store.stats().quarantined > 0);
    drop(store);
    let store = open(&files).unwrap();
    promises.assert_kept(&store, 2);
}

#[test]
fn closing_makes_a_checkpoint_where_that_is_cheap() {
    let files = FaultyFiles::new(1);
    let config = postrider_store::EmbeddedConfig { close_checkpoint_bytes: 64 * 1024, ..small(DIR) };
    let store = EmbeddedStore::open(config, Arc::new(files.clone())).unwrap();
    let mut promises = Promises::default();
    populate(&store, 2);
    for n in 0..60 {
        promises.accept(&store, n, &[(n % 2) as u32]).unwrap();
    }
    store.close();
    assert_eq!(names(&files, "checkpoint-"), 1);
    assert_eq!(run(&store, vec![accept(99, &[0])]), Err(StoreError::Closed));
    assert_eq!(store.refuses(), Some(StoreError::Closed));
    promises.assert_kept(&store, 2);
    drop(store);
    promises.assert_kept(&open(&files).unwrap(), 2);
}

#[test]
fn a_checkpoint_comes_by_itself_when_enough_was_closed() {
    let files = FaultyFiles::new(1);
    let config = postrider_store::EmbeddedConfig { checkpoint_bytes: 16 * 1024, ..small(DIR) };
    let store = EmbeddedStore::open(config, Arc::new(files)).unwrap();
    populate(&store, 1);
    for n in 0.. {
        run_one(&store, accept(n, &[0]));
        if store.stats().checkpoints >= 2 {
            break;
        }
        assert!(n < 100_000, "no checkpoint was made");
    }
    assert_balanced(&store);
}

fn enroll(name: &str, keys: &[u8]) -> Command {
    let Command::Register(registration) = register(name) else { unreachable!("it makes nothing else") };
    Command::Enroll { registration, proof_keys: keys.into() }
}

#[test]
fn proof_keys_are_there_after_a_checkpoint_and_after_a_replay() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    populate(&store, 1);
    run_one(&store, enroll("keys", b"first"));
    store.checkpoint_now().unwrap();
    run_one(&store, enroll("more", b"second"));
    let (at, secret_hash) = (device(1), [9; 32]);
    run_one(&store, Command::ChangeSecret { at, secret_hash, proof_keys: b"changed".as_slice().into() });
    drop(store);
    let store = open(&files.kill()).unwrap();
    let kept = |no| store.sign_in(device(no)).unwrap();
    assert_eq!(kept(0).proof_keys, None);
    assert_eq!(kept(1).proof_keys.as_deref(), Some(&b"changed"[..]));
    assert_eq!(kept(1).secret_hash, Some(secret_hash));
    assert_eq!(kept(2).proof_keys.as_deref(), Some(&b"second"[..]));
}
