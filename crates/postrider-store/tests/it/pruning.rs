//! Devices that were not seen for long are deleted where a setting says so, and none that is there.

use crate::kit::*;
use postrider_core::Engine;
use postrider_core::access::Access;
use postrider_core::id::*;
use postrider_core::limits::Limits;
use postrider_core::port::*;
use postrider_core::session::{Attach, Client};
use postrider_store::faulty::FaultyFiles;
use postrider_store::{EmbeddedStore, MemoryStore};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

struct Nobody;

impl Connections for Nobody {
    fn wake(&self, _: &[ConnectionRef]) {}
    fn wake_anew(&self, _: &[ConnectionRef]) {}
    fn deliver(&self, _: &Live, _: Vec<LiveTarget>) {}
    fn close(&self, _: ConnectionRef, _: Farewell) {}
}

fn engine(store: Arc<dyn Store>, days: u64) -> (Engine, Arc<HandClock>) {
    let clock = Arc::new(HandClock::default());
    let limits = Limits { prune_unseen: Duration::from_millis(days * DAY), ..Limits::default() };
    let chance = Arc::new(Counting(AtomicU64::new(1)));
    let engine = Engine::new(store, limits, Access::default(), clock.clone(), chance);
    engine.attach_connections(Arc::new(Nobody));
    (engine, clock)
}

fn connect(engine: &Engine, no: u32) {
    let client = Client { app: APP, id: format!("device-{no}"), device: Some(DeviceNo(no)) };
    let attach = Attach {
        client,
        connection: ConnectionRef { shard: 0, slot: no, generation: 0 },
        clean: false,
        expiry_secs: 0,
        will: None,
        takes_pushes: true,
        hears_peers: false,
    };
    assert!(engine.connect(attach).is_ok());
}

/// So many seconds of the server's, a round in each.
fn run_for(engine: &Engine, clock: &HandClock, secs: u64) {
    for _ in 0..secs {
        clock.0.fetch_add(1_000, Ordering::SeqCst);
        engine.tick();
    }
}

fn at(clock: &HandClock, time: u64) {
    clock.0.store(time, Ordering::SeqCst);
}

fn left(store: &dyn Store) -> Vec<u32> {
    store.all_devices(APP).iter().collect()
}

#[test]
fn devices_that_were_not_seen_for_so_long_go_and_those_that_are_there_stay() {
    let store = MemoryStore::new();
    populate(&store, 5);
    run_one(&store, accept(1, &[0]));
    let (engine, clock) = engine(Arc::new(store.clone()), 30);
    connect(&engine, 1);
    at(&clock, 20 * DAY);
    engine.seen(device(2));
    at(&clock, 31 * DAY);
    connect(&engine, 3);
    run_for(&engine, &clock, 3);
    // What waited for them is over with them.
    assert_eq!(left(&store), [1, 2, 3]);
    assert_eq!(engine.devices_pruned(), 2);
    assert_balanced(&store);
    at(&clock, 50 * DAY + 2 * HOUR);
    run_for(&engine, &clock, 3);
    assert_eq!(left(&store), [1, 3], "connected for fifty days");
}

#[test]
fn many_devices_go_a_hundred_a_round_and_each_is_looked_at() {
    let store = MemoryStore::new();
    populate(&store, 5_000);
    let (engine, clock) = engine(Arc::new(store.clone()), 30);
    at(&clock, 29 * DAY);
    for no in (0..5_000).filter(|no| no % 20 > 0) {
        engine.seen(device(no));
    }
    at(&clock, 31 * DAY);
    run_for(&engine, &clock, 1);
    assert_eq!(left(&store).len(), 4_900);
    run_for(&engine, &clock, 10);
    assert_eq!((left(&store).len(), engine.devices_pruned()), (4_750, 250));
    assert!(left(&store).iter().all(|no| no % 20 > 0));
}

#[test]
fn without_the_setting_and_in_the_first_hour_nobody_is_deleted() {
    for days in [0, 1] {
        let store = MemoryStore::new();
        populate(&store, 2);
        let (engine, clock) = engine(Arc::new(store.clone()), days);
        // The clock of a server that starts now: devices are from a month ago.
        let begun = engine.clock.now();
        assert_eq!(begun, NOW);
        run_for(&engine, &clock, 60);
        assert_eq!(left(&store).len(), 2);
        at(&clock, 300 * DAY);
        run_for(&engine, &clock, 3);
        assert_eq!(left(&store).len(), if days == 0 { 2 } else { 0 });
    }
}

/// The time of a poll lies in memory until the next checkpoint; once a day it is a command.
#[test]
fn a_crash_does_not_make_a_device_that_polls_look_gone() {
    let files = FaultyFiles::new(1);
    let open =
        |files: &FaultyFiles| Arc::new(EmbeddedStore::open(small(DIR), Arc::new(files.clone())).unwrap());
    let store = open(&files);
    populate(&*store, 2);
    let (first, clock) = engine(store.clone(), 30);
    for day in 1..=40 {
        at(&clock, day * DAY);
        first.seen(device(0));
    }
    // The last of the commands is on stable storage.
    run_one(&*store, expire(NOW));
    let after = files.cut_power();
    drop(first);
    drop(store);
    let store = open(&after);
    let (second, clock) = engine(store.clone(), 30);
    at(&clock, 40 * DAY + 2 * HOUR);
    run_for(&second, &clock, 3);
    run_one(&*store, expire(NOW));
    assert_eq!(left(&*store), [0]);
}
