//! The N-th operation fails, for every N until a run has no failure (SQLite's method): nothing is acknowledged that is not
//! stored, and the store opens again.

use crate::kit::*;
use postrider_core::command::Outcome;
use postrider_core::port::*;
use postrider_store::faulty::{Fault, FaultyFiles};
use postrider_store::{EmbeddedConfig, EmbeddedStore};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

fn work(store: &EmbeddedStore, promises: &mut Promises) -> Result<(), StoreError> {
    for n in 0..14 {
        promises.accept(store, n, &[(n % 2) as u32])?;
        if n % 2 == 1 {
            promises.acknowledge(store, (n % 2) as u32)?;
        }
        if n == 6 || n == 10 {
            // A checkpoint that fails is tried again later; it is no reason to stop.
            let _ = store.checkpoint_now();
        }
    }
    Ok(())
}

fn fail_everywhere(fault: Fault, for_good: bool) {
    let mut n = 1;
    loop {
        let files = FaultyFiles::new(n);
        let mut promises = Promises::default();
        files.fail_at(n, fault, for_good);
        let opened = open(&files);
        if let Ok(store) = &opened {
            let mut commands = vec![create_app()];
            commands.extend((0..2).map(|no| register(&format!("device-{no}"))));
            if run(store, commands).is_ok() {
                let result = work(store, &mut promises);
                if matches!(result, Err(StoreError::Failed(_))) {
                    assert!(matches!(store.refuses(), Some(StoreError::Failed(_))), "operation {n}");
                    assert!(run(store, vec![accept(77, &[0])]).is_err());
                }
            }
        }
        let happened = files.has_failed();
        // The power goes too: only what was synced counts.
        let after = files.cut_power();
        drop(opened);
        let store = open(&after).unwrap_or_else(|error| panic!("{fault:?} at operation {n}: {error}"));
        assert!(store.problems().is_empty(), "{fault:?} at operation {n}: {:?}", store.problems());
        promises.assert_kept(&store, 2);
        populate_rest(&store, 2);
        promises.accept(&store, 500, &[1]).unwrap();
        promises.assert_kept(&store, 2);
        if !happened {
            assert!(n > 100, "{n}");
            return;
        }
        n += 1;
    }
}

#[test]
fn any_one_operation_may_fail() {
    fail_everywhere(Fault::Io, false);
}

#[test]
fn the_disk_may_fail_for_good_at_any_operation() {
    fail_everywhere(Fault::Io, true);
}

#[test]
fn any_one_operation_may_find_the_disk_full() {
    fail_everywhere(Fault::Full, false);
}

#[test]
fn the_disk_may_be_full_for_good_at_any_operation() {
    fail_everywhere(Fault::Full, true);
}

#[test]
fn any_write_may_stop_half_way() {
    fail_everywhere(Fault::Short, false);
}

#[test]
fn a_failed_sync_ends_the_store_and_is_never_tried_again() {
    let files = FaultyFiles::new(1);
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let told = reasons.clone();
    let config = EmbeddedConfig {
        on_fatal: Some(Arc::new(move |_, why: &str| told.lock().unwrap().push(why.to_owned()))),
        ..small(DIR)
    };
    let store = EmbeddedStore::open(config, Arc::new(files.clone())).unwrap();
    populate(&store, 1);
    // The write goes through, the sync behind it does not.
    files.fail_at(2, Fault::Io, false);
    let failed = run(&store, vec![accept(1, &[0])]);
    assert!(matches!(&failed, Err(StoreError::Failed(why)) if why.contains("sync")), "{failed:?}");
    let operations = files.operations();
    assert!(matches!(run(&store, vec![delivered(0, 1)]), Err(StoreError::Failed(_))));
    assert!(matches!(store.refuses(), Some(StoreError::Failed(_))));
    assert_eq!(inbox(&store, 0), vec![], "what is not stored is not shown");
    store.close();
    assert_eq!(files.operations(), operations, "{:?}", files.log().last());
    assert_eq!(reasons.lock().unwrap().len(), 1);
}

#[test]
fn everybody_who_waits_is_told_when_the_store_fails() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    populate(&store, 1);
    files.fail_at(1, Fault::Io, true);
    let told = Arc::new(AtomicU64::new(0));
    for n in 0..200 {
        let told = told.clone();
        let done: Done = Box::new(move |result| {
            assert!(matches!(result, Err(StoreError::Failed(_))));
            told.fetch_add(1, Ordering::SeqCst);
        });
        store.submit(vec![accept(n, &[0])], done);
    }
    store.close();
    assert_eq!(told.load(Ordering::SeqCst), 200);
}

#[test]
fn a_full_queue_refuses_at_once_and_takes_again_later() {
    let files = FaultyFiles::new(1);
    let config = EmbeddedConfig { queue_commands_max: 4, ..small(DIR) };
    let store = EmbeddedStore::open(config, Arc::new(files)).unwrap();
    populate(&store, 1);
    // The writer is kept busy by whom it tells.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (tell, busy) = std::sync::mpsc::channel();
    let block: Done = Box::new(move |_| {
        tell.send(()).unwrap();
        let _ = wait.recv();
    });
    store.submit(vec![accept(1, &[0])], block);
    busy.recv().unwrap();
    let (tell, results) = std::sync::mpsc::channel();
    for n in 2..8 {
        let tell = tell.clone();
        let done: Done = Box::new(move |result| tell.send((n, result.map(|_| ()))).unwrap());
        store.submit(vec![accept(n, &[0])], done);
    }
    let refused: Vec<_> = results.try_iter().collect();
    assert_eq!(refused, vec![(6, Err(StoreError::Overloaded)), (7, Err(StoreError::Overloaded))]);
    go.send(()).unwrap();
    let taken: Vec<_> = results.iter().take(4).collect();
    assert_eq!(taken, (2..6).map(|n| (n, Ok(()))).collect::<Vec<_>>());
    run_one(&store, accept(9, &[0]));
    assert_eq!(inbox(&store, 0).len(), 6);
}

#[test]
fn a_batch_larger_than_the_queue_is_taken_when_nothing_waits() {
    let config = EmbeddedConfig { queue_commands_max: 4, queue_bytes_max: 100, ..small(DIR) };
    let store = EmbeddedStore::open(config, Arc::new(FaultyFiles::new(1))).unwrap();
    populate(&store, 20);
    let outcomes = run(&store, (0..50).map(|n| accept(n, &[(n % 20) as u32])).collect()).unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Accepted(_))));
}

#[test]
fn a_caller_that_panics_does_not_stop_the_store() {
    let store = open(&FaultyFiles::new(1)).unwrap();
    populate(&store, 1);
    store.submit(vec![accept(1, &[0])], Box::new(|_| panic!("a bug of the caller's")));
    run_one(&store, accept(2, &[0]));
    assert_eq!(inbox(&store, 0).len(), 2);
}

#[test]
fn many_callers_at_once_get_each_their_own_answers() {
    let store = Arc::new(open(&FaultyFiles::new(1)).unwrap());
    populate(&*store, 8);
    let threads: Vec<_> = (0..8u64)
        .map(|caller| {
            let store = store.clone();
            std::thread::spawn(move || {
                for i in 0..100 {
                    let n = caller * 1000 + i;
                    let outcomes = run(&*store, vec![accept(n, &[caller as u32])]).unwrap();
                    assert_eq!(acceptance(&outcomes[0]).id, id(n));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    for no in 0..8 {
        let order: Vec<_> = inbox(&*store, no).iter().map(|p| p.id.unwrap()).collect();
        assert_eq!(order, (0..100).map(|i| id(u64::from(no) * 1000 + i)).collect::<Vec<_>>());
    }
    let stats = store.stats();
    assert_eq!((stats.commands, stats.open_deliveries), (809, 800));
    assert!(stats.commits <= 801);
}
