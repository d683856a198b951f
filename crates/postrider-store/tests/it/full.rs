//! The disk is full or nearly: new messages are refused, acknowledgements go on, and it ends when space is back.

use crate::kit::*;
use postrider_core::command::*;
use postrider_core::port::*;
use postrider_store::faulty::{Fault, FaultyFiles};
use postrider_store::{EmbeddedConfig, EmbeddedStore};
use std::sync::Arc;

/// The same on a real file system of 64 MiB:
/// `unshare -rm sh -c 'mount -t tmpfs -o size=64m none /mnt && POSTRIDER_SMALL_DISK=/mnt/data cargo test … -- --ignored'`.
#[test]
#[ignore = "needs a small disk"]
fn a_real_small_disk_is_filled_and_emptied() {
    let dir = std::path::PathBuf::from(std::env::var("POSTRIDER_SMALL_DISK").unwrap());
    let config = EmbeddedConfig {
        segment_bytes: 4 << 20,
        min_free_bytes: 8 << 20,
        min_free_percent: 10,
        reserve_bytes: 4 << 20,
        ..EmbeddedConfig::new(&dir)
    };
    let open = || EmbeddedStore::open(config.clone(), Arc::new(postrider_store::OsFiles)).unwrap();
    let store = open();
    populate(&store, 2);
    let big = |n: u64| {
        let payload = vec![n as u8; 16 << 10];
        let content =
            postrider_core::model::Content { topic: None, payload: payload.into(), properties: None };
        let new = NewMessage { content: Some(Arc::new(content)), inbox_max: 100_000, ..message(n, &[0]) };
        Command::Accept(Box::new(NewMessage { inbox_bytes_max: u32::MAX, ..new }))
    };
    let mut accepted = Vec::new();
    let refused = (0..10_000).find_map(|n| match run(&store, vec![big(n)]) {
        Ok(outcomes) => {
            accepted.push(acceptance(&outcomes[0]).seq);
            None
        }
        Err(error) => Some(error),
    });
    assert!(matches!(refused, Some(StoreError::StorageLow { .. })), "{refused:?}");
    assert!(accepted.len() > 1_000);
    // Somebody else takes the rest, to the last byte.
    let filler = dir.parent().unwrap().join("filler");
    let mut taker = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut taker, &[0; 4096]).is_ok() {}
    let mut acknowledged = 0;
    for seq in &accepted {
        match run(&store, vec![delivered(0, *seq)]) {
            Ok(_) => acknowledged += 1,
            Err(StoreError::StorageLow { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(acknowledged, accepted.len(), "acknowledgements find room in the reserve");
    drop(taker);
    std::fs::remove_file(&filler).unwrap();
    store.checkpoint_now().unwrap();
    run_one(&store, accept(20_000, &[1]));
    store.checkpoint_now().unwrap();
    assert_eq!(store.refuses(), None);
    run_one(&store, accept(20_001, &[1]));
    assert_balanced(&store);
    drop(store);
    let store = open();
    assert!(store.problems().is_empty());
    assert_eq!((inbox(&store, 0).len(), inbox(&store, 1).len()), (0, 2));
}

pub const KIB: u64 = 1024;

pub fn limited(files: &FaultyFiles) -> EmbeddedStore {
    let config = EmbeddedConfig {
        min_free_bytes: 16 * KIB,
        min_free_percent: 10,
        reserve_bytes: 8 * KIB,
        segment_bytes: 8 * KIB,
        ..small(DIR)
    };
    EmbeddedStore::open(config, Arc::new(files.clone())).unwrap()
}

/// Accepts until refused; how many were taken.
pub fn fill(store: &EmbeddedStore, promises: &mut Promises, from: u64) -> u64 {
    for n in from.. {
        match promises.accept(store, n, &[(n % 2) as u32]) {
            Ok(()) => {}
            Err(StoreError::StorageLow { .. }) => return n - from,
            Err(error) => panic!("{error}"),
        }
        assert!(n < 10_000, "never refused");
    }
    0
}

#[test]
fn when_space_is_low_new_messages_are_refused_and_acknowledgements_taken() {
    let files = FaultyFiles::new(1);
    files.set_quota(Some(128 * KIB));
    let store = limited(&files);
    let mut promises = Promises::default();
    populate(&store, 2);
    assert!(fill(&store, &mut promises, 0) > 50);
    assert!(matches!(store.refuses(), Some(StoreError::StorageLow { .. })));
    assert!(matches!(run(&store, vec![register("more")]), Err(StoreError::StorageLow { .. })));
    for _ in 0..50 {
        promises.acknowledge(&store, 0).unwrap();
        promises.acknowledge(&store, 1).unwrap();
    }
    run(&store, vec![expire(NOW)]).unwrap();
    run(&store, vec![Command::Retain { app: APP, topic: "t".into(), message: None }]).unwrap();
    promises.assert_kept(&store, 2);
    // Somebody makes room: the very next look takes messages again.
    files.set_quota(Some(256 * KIB));
    assert_eq!(store.refuses(), None);
    promises.accept(&store, 5_000, &[0]).unwrap();
    promises.assert_kept(&store, 2);
    drop(store);
    promises.assert_kept(&limited(&files), 2);
}

#[test]
fn the_reserve_is_given_up_for_acknowledgements_and_laid_by_again() {
    let files = FaultyFiles::new(1);
    files.set_quota(Some(160 * KIB));
    let store = limited(&files);
    let has_reserve = || files.paths().iter().any(|(path, _)| path.ends_with("reserve"));
    assert!(has_reserve());
    let mut promises = Promises::default();
    populate(&store, 2);
    fill(&store, &mut promises, 0);
    // Others fill the disk to the last byte.
    files.set_quota(Some(files.used()));
    for _ in 0..40 {
        promises.acknowledge(&store, 0).unwrap();
        promises.acknowledge(&store, 1).unwrap();
    }
    assert!(!has_reserve());
    files.set_quota(Some(512 * KIB));
    promises.accept(&store, 5_000, &[0]).unwrap();
    assert!(has_reserve());
    promises.assert_kept(&store, 2);
}

#[test]
fn a_store_starts_on_a_full_disk_by_its_reserve() {
    let files = FaultyFiles::new(1);
    files.set_quota(Some(160 * KIB));
    let store = limited(&files);
    let mut promises = Promises::default();
    populate(&store, 2);
    fill(&store, &mut promises, 0);
    drop(store);
    // Others filled the disk to the last byte while the store was closed.
    files.set_quota(Some(files.used()));
    let store = limited(&files);
    promises.assert_kept(&store, 2);
    for round in 0..40 {
        promises.acknowledge(&store, round % 2).unwrap();
    }
    assert!(matches!(promises.accept(&store, 5_000, &[0]), Err(StoreError::StorageLow { .. })));
    files.set_quota(Some(512 * KIB));
    promises.accept(&store, 5_001, &[0]).unwrap();
    promises.assert_kept(&store, 2);
}

#[test]
fn when_even_the_reserve_is_used_up_groups_are_refused_whole_and_nothing_is_lost() {
    let files = FaultyFiles::new(1);
    files.set_quota(Some(128 * KIB));
    let store = limited(&files);
    let mut promises = Promises::default();
    populate(&store, 2);
    fill(&store, &mut promises, 0);
    files.set_quota(Some(files.used()));
    let mut refused = 0;
    for round in 0..2_000 {
        match promises.acknowledge(&store, round % 2) {
            Ok(()) => {}
            Err(StoreError::StorageLow { .. }) => {
                // It was not done, and will be tried again.
                promises.ending.clear();
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
        if refused == 3 {
            break;
        }
    }
    assert_eq!(refused, 3);
    promises.assert_kept(&store, 2);
    files.set_quota(Some(512 * KIB));
    promises.acknowledge(&store, 0).unwrap();
    promises.accept(&store, 5_000, &[1]).unwrap();
    promises.assert_kept(&store, 2);
    let files = files.cut_power();
    drop(store);
    promises.assert_kept(&limited(&files), 2);
}

#[test]
fn a_disk_that_is_full_in_mid_commit_undoes_the_group_and_goes_on() {
    // The watch sees space, the write does not get it: quotas of users, thin volumes.
    for n in 0..6 {
        let files = FaultyFiles::new(n);
        let store = open(&files).unwrap();
        let mut promises = Promises::default();
        populate(&store, 2);
        for i in 0..20 {
            promises.accept(&store, i, &[(i % 2) as u32]).unwrap();
        }
        if n % 2 == 1 {
            store.checkpoint_now().unwrap();
        }
        let before = store.stats().open_deliveries;
        files.fail_at(1, Fault::Full, false);
        let batch = vec![accept(100, &[0]), accept(101, &[1]), delivered(0, 4)];
        assert!(matches!(run(&store, batch), Err(StoreError::StorageLow { .. })), "{:?}", files.log().last());
        assert_eq!(store.stats().open_deliveries, before);
        assert!(store.message(APP, id(100)).is_none());
        promises.assert_kept(&store, 2);
        let next = acceptance(&run_one(&store, accept(102, &[0]))).seq;
        promises.tried.insert(102, vec![0]);
        assert_eq!(next, promises.accepted.values().map(|(seq, _)| *seq).max().unwrap() + 1);
        let events = store.events(APP, 0, 10_000).unwrap().events;
        assert!(events.windows(2).all(|pair| pair[0].position + 1 == pair[1].position));
        let files = files.cut_power();
        drop(store);
        promises.assert_kept(&open(&files).unwrap(), 2);
    }
}
