//! What is broken is told, and takes nothing else with it: receipts that cannot be written, descriptors that have run out,
//! threads that panic.

use crate::kit::*;
use postrider_core::port::*;
use postrider_store::faulty::{Fault, FaultyFiles};
use postrider_store::{EmbeddedConfig, EmbeddedStore, FailedBy};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Everything that is in the receipt stream now, in order.
fn positions(store: &dyn Store) -> Vec<u64> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = store.events(APP, after, 1000).unwrap();
        assert!(!page.missed);
        if page.events.is_empty() {
            return all;
        }
        all.extend(page.events.iter().map(|event| event.position));
        after = page.next;
    }
}

fn accept_and_acknowledge(store: &dyn Store, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let outcome = run_one(store, accept(n, &[0]));
        assert_eq!(acceptance(&outcome).id, id(n));
    }
    for pending in inbox(store, 0) {
        run_one(store, delivered(0, pending.seq));
    }
}

#[test]
fn receipts_that_cannot_be_written_wait_and_nothing_else_does() {
    for fault in [Fault::Io, Fault::Full, Fault::Descriptors] {
        let files = FaultyFiles::new(1);
        let store = open(&files).unwrap();
        populate(&store, 1);
        accept_and_acknowledge(&store, 0..10);
        let before = positions(&store).len();
        assert!(before > 0);
        files.fail_lines(&["write events-", "create events-"], fault);
        accept_and_acknowledge(&store, 10..60);
        assert_eq!(store.refuses(), None, "{fault:?}");
        assert_eq!(store.warnings().len(), 1, "{fault:?}");
        assert!(store.stats().receipts_waiting_bytes > 0);
        assert_eq!(positions(&store).len(), before, "{fault:?}");
        files.fail_lines(&[], fault);
        assert_eq!(store.warnings(), Vec::<String>::new(), "{fault:?}: asking tries once more");
        let all = positions(&store);
        assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>(), "{fault:?}");
        assert!(all.len() > before);
        assert_eq!(store.stats().receipts_waiting_bytes, 0);
    }
}

#[test]
fn receipts_that_still_wait_at_the_end_are_made_again_at_the_next_start() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    populate(&store, 1);
    files.fail_lines(&["write events-", "create events-"], Fault::Io);
    accept_and_acknowledge(&store, 0..30);
    store.close();
    drop(store);
    files.fail_lines(&[], Fault::Io);
    let after = files.cut_power();
    let store = open(&after).unwrap();
    let all = positions(&store);
    assert!(all.len() >= 60, "{all:?}");
    assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>());
}

#[test]
fn after_a_failed_sync_of_receipts_the_journal_stays_and_makes_them_again() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    populate(&store, 1);
    accept_and_acknowledge(&store, 0..5);
    files.fail_lines(&["sync events-"], Fault::Io);
    assert!(store.checkpoint_now().is_err());
    accept_and_acknowledge(&store, 5..60);
    files.fail_lines(&[], Fault::Io);
    accept_and_acknowledge(&store, 60..65);
    assert!(store.checkpoint_now().is_err(), "a sync that succeeds later means nothing");
    assert_eq!((store.refuses(), store.warnings().len()), (None, 1));
    let told = positions(&store);
    let after = files.cut_power();
    drop(store);
    let store = open(&after).unwrap();
    assert_eq!(positions(&store), told, "the power took what was not synced, and the journal had it");
    assert_eq!(store.warnings(), Vec::<String>::new());
    assert!(store.checkpoint_now().is_ok());
}

#[test]
fn a_store_without_descriptors_goes_on_and_loses_nothing() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    populate(&store, 1);
    files.fail_lines(&["create", "open", "list", "sync_dir"], Fault::Descriptors);
    let mut promises = Promises::default();
    for n in 0..200 {
        promises.accept(&store, n, &[0]).unwrap();
    }
    assert!(store.checkpoint_now().is_err());
    assert_eq!(store.refuses(), None);
    files.fail_lines(&[], Fault::Descriptors);
    for n in 200..300 {
        promises.accept(&store, n, &[0]).unwrap();
    }
    assert!(store.checkpoint_now().unwrap());
    let after = files.cut_power();
    drop(store);
    let store = open(&after).unwrap();
    assert!(store.problems().is_empty(), "{:?}", store.problems());
    promises.assert_kept(&store, 1);
}

type Noted = Arc<Mutex<Vec<(FailedBy, String)>>>;

/// A store whose failing is written down.
fn noting(config: EmbeddedConfig, files: &FaultyFiles) -> (EmbeddedStore, Noted) {
    let noted = Arc::new(Mutex::new(Vec::new()));
    let told = noted.clone();
    let on_fatal = move |by, why: &str| told.lock().unwrap().push((by, why.to_owned()));
    let config = EmbeddedConfig { on_fatal: Some(Arc::new(on_fatal)), ..config };
    (EmbeddedStore::open(config, Arc::new(files.clone())).unwrap(), noted)
}

#[test]
fn a_writer_that_panics_ends_the_store_and_everybody_is_told() {
    let files = FaultyFiles::new(1);
    let (store, noted) = noting(small(DIR), &files);
    populate(&store, 1);
    files.fail_lines(&["write journal-"], Fault::Panic);
    assert!(run(&store, vec![accept(1, &[0])]).is_err());
    let (tell, told) = std::sync::mpsc::channel();
    for n in 2..50 {
        let tell = tell.clone();
        store.submit(vec![accept(n, &[0])], Box::new(move |result| tell.send(result).unwrap()));
    }
    drop(tell);
    // Each is told, and none is left waiting for a thread that is gone.
    let results: Vec<_> = told.iter().collect();
    assert_eq!(results.len(), 48);
    assert!(results.iter().all(|result| matches!(result, Err(StoreError::Failed(_) | StoreError::Closed))));
    assert!(matches!(store.refuses(), Some(StoreError::Failed(_))));
    store.close();
    let noted = noted.lock().unwrap();
    assert!(
        matches!(noted.as_slice(), [(FailedBy::Panic, why)] if why.contains("store-writer")),
        "{noted:?}"
    );
}

#[test]
fn a_checkpointer_that_panics_ends_the_store() {
    let files = FaultyFiles::new(1);
    let (store, noted) = noting(EmbeddedConfig { checkpoint_bytes: 4 * 1024, ..small(DIR) }, &files);
    populate(&store, 1);
    files.fail_lines(&["create checkpoint-"], Fault::Panic);
    let until = Instant::now() + Duration::from_secs(60);
    let mut n = 0;
    while store.refuses().is_none() {
        assert!(Instant::now() < until, "nobody said that the checkpointer is gone");
        let _ = run(&store, vec![accept(n, &[0])]);
        n += 1;
    }
    store.close();
    let noted = noted.lock().unwrap();
    assert!(matches!(noted.as_slice(), [(FailedBy::Panic, why)] if why.contains("checkpoint")), "{noted:?}");
}
