//! Expiry goes on until nothing is due, in commands of a bounded size, one after the other.

use crate::kit::*;
use postrider_core::Engine;
use postrider_core::access::Access;
use postrider_core::command::*;
use postrider_core::id::*;
use postrider_core::limits::Limits;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_store::MemoryStore;
use std::sync::Arc;

const DUE: UnixMillis = NOW + 10_000;
const MESSAGES: u64 = 7_000;

/// The time after all has become due.
struct Late;

impl Clock for Late {
    fn now(&self) -> UnixMillis {
        DUE + 1_000
    }
}

impl Chance for Late {
    fn bits128(&self) -> u128 {
        3
    }
}

/// Thousands of messages and sessions that are due in the same second.
fn store_with_much_due() -> (MemoryStore, Engine) {
    let store = MemoryStore::new();
    populate(&store, 3_000);
    let due = |n: u64| {
        let message = NewMessage { expires_at: DUE, ..message(n, &[n as u32 % 3_000]) };
        Command::Accept(Box::new(message))
    };
    run(&store, (0..MESSAGES).map(due).collect()).unwrap();
    let engine = Engine::new(
        Arc::new(store.clone()),
        Limits::default(),
        Access::open(),
        Arc::new(Late),
        Arc::new(Late),
    );
    for no in 0..3_000 {
        let at = device(no);
        let open = Command::OpenSession { at, expiry_secs: 5, fresh: false, now: NOW };
        run(&store, vec![open, Command::LeaveSession { at, expiry_secs: 5, now: NOW }]).unwrap();
    }
    (store, engine)
}

fn assert_all_ended(store: &MemoryStore) {
    assert_eq!(store.next_expiry(), None);
    assert_eq!(store.app(APP).unwrap().counters.ended[Step::Expired as usize], MESSAGES);
    assert!(store.sessions().is_empty());
    assert_balanced(store);
}

#[test]
fn one_tick_ends_all_that_is_due() {
    let (store, engine) = store_with_much_due();
    engine.tick();
    assert_all_ended(&store);
}

#[test]
fn no_second_round_of_expiry_is_queued_while_one_waits_for_the_disk() {
    let (store, engine) = store_with_much_due();
    store.hold();
    (0..5).for_each(|_| engine.tick());
    assert_eq!(store.held(), 1);
    let mut commands = 0;
    while store.held() > 0 {
        assert_eq!(store.held(), 1);
        store.release(1);
        commands += 1;
    }
    assert!(commands > 3, "a command ends a bounded number of them");
    assert_all_ended(&store);
}

#[test]
fn a_round_that_the_store_refused_is_begun_again_by_a_later_tick() {
    let (store, engine) = store_with_much_due();
    store.fail_next(StoreError::Overloaded);
    engine.tick();
    assert!(store.next_expiry().is_some());
    engine.tick();
    assert_all_ended(&store);
}
