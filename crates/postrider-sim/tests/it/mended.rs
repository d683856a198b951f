//! What the simulation found in the core, each as small as it can be told.

use postrider_core::Engine;
use postrider_core::access::Access;
use postrider_core::command::*;
use postrider_core::delivery::publish::Publish;
use postrider_core::delivery::receipt::{Ack, ReceiptSource};
use postrider_core::id::*;
use postrider_core::limits::Limits;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_core::session::{Attach, Client, Detach};
use postrider_store::MemoryStore;
use std::sync::Arc;

struct Still;

impl Clock for Still {
    fn now(&self) -> UnixMillis {
        1_700_000_000_000
    }
}

impl Chance for Still {
    fn bits128(&self) -> u128 {
        7
    }
}

const APP: AppNo = AppNo(0);

/// An engine, with a device that is connected.
fn engine(store: &MemoryStore) -> (Engine, u32) {
    engine_with(store, Access::open())
}

fn engine_with(store: &MemoryStore, access: Access) -> (Engine, u32) {
    let registration = Registration {
        origin: None,
        quota: None,
        app: APP,
        id: "d".into(),
        secret_hash: Some([1; 32]),
        profile: Profile::default(),
        now: Still.now(),
        idempotency: None,
    };
    let app = Command::CreateApp { id: "a".into(), name: String::new(), at: Still.now() };
    store.submit(vec![app, Command::Register(Box::new(registration))], Box::new(|_| {}));
    let engine =
        Engine::new(Arc::new(store.clone()), Limits::default(), access, Arc::new(Still), Arc::new(Still));
    let session = engine.connect(attach(1)).unwrap().session;
    (engine, session)
}

fn attach(slot: u32) -> Attach {
    Attach {
        client: Client { app: APP, id: "d".into(), device: Some(DeviceNo(0)) },
        connection: ConnectionRef { shard: 0, slot, generation: 0 },
        clean: false,
        expiry_secs: 60,
        will: None,
        takes_pushes: false,
        hears_peers: false,
    }
}

/// A message that lies in the device's inbox.
fn message(content: Content, push: bool) -> Command {
    let target = Target { device: DeviceNo(0), qos: 1, retain: false, subscription_ids: Vec::new() };
    Command::Accept(Box::new(NewMessage {
        app: APP,
        id: MessageId(5),
        targets: Targets::Direct(vec![target]),
        accepted_at: Still.now(),
        expires_at: Still.now() + 60_000,
        priority: Priority::Normal,
        collapse_key: None,
        backlog: Backlog::All,
        idempotency: None,
        tracked: true,
        push,
        reject_when_full: false,
        inbox_max: 10,
        inbox_bytes_max: 10_000,
        peer_inbox_max: 0,
        room: None,
        submission: None,
        content: Some(Arc::new(content)),
    }))
}

#[test]
fn a_retained_message_is_found_while_its_commit_is_under_way() {
    let store = MemoryStore::new();
    let (engine, session) = engine(&store);
    store.hold();
    let content = Content { topic: Some("t/x".into()), payload: "here".into(), properties: None };
    let publish = Publish { content: Arc::new(content), qos: 1, retain: true, expiry_secs: None };
    engine.publish_from_app(APP, publish, Box::new(|_| {})).unwrap();
    let found = engine.retained(session, "t/#");
    assert_eq!(found.len(), 1);
    store.release_all();
    assert_eq!(engine.retained(session, "t/#").len(), 1);
}

#[test]
fn an_acknowledgement_that_a_full_disk_refused_is_stored_when_there_is_room() {
    let store = MemoryStore::new();
    let (engine, session) = engine(&store);
    engine.commit(vec![message(Content::default(), true)], Box::new(|_| {}));
    let at = DeviceRef { app: APP, device: DeviceNo(0) };
    let open = || store.pending(at, Position::default(), 10, Still.now());
    let seq = open()[0].seq;
    store.fail_next(StoreError::StorageLow { free_bytes: 0 });
    let (step, reason) = (Step::Delivered, Reason::None);
    let acks = [Ack { session, seq, step, reason, sent_at: None }];
    engine.record_receipts(ReceiptSource::Connections(&acks));
    assert_eq!(open().len(), 1, "refused");
    assert!(engine.drain(session, &mut Position::default(), 10).is_empty(), "and yet not sent again");
    engine.tick();
    assert!(open().is_empty());
}

#[test]
fn the_end_of_what_a_device_may_not_have_is_stored_when_a_full_disk_has_room_again() {
    let store = MemoryStore::new();
    let denies = Access { subscribe_deny: vec!["t/secret".into()], ..Access::open() };
    let (engine, session) = engine_with(&store, denies);
    let content = Content { topic: Some("t/secret".into()), ..Content::default() };
    engine.commit(vec![message(content, false)], Box::new(|_| {}));
    let at = DeviceRef { app: APP, device: DeviceNo(0) };
    let open = || store.pending(at, Position::default(), 10, Still.now()).len();
    store.fail_next(StoreError::StorageLow { free_bytes: 0 });
    assert!(engine.drain(session, &mut Position::default(), 10).is_empty(), "the gate");
    assert_eq!(open(), 1, "refused");
    engine.tick();
    assert_eq!(open(), 0);
}

#[test]
fn who_takes_over_from_a_connection_that_has_not_left_is_told_that_state_is_missing() {
    let (engine, session) = engine(&MemoryStore::new());
    let second = engine.connect(attach(2)).unwrap();
    assert_eq!((second.session, second.state_lost), (session, true));
    let left = |slot: u32| ConnectionRef { shard: 0, slot, generation: 0 };
    let saved = || Detach { saved: Some(Box::new(7)), ..Detach::default() };
    engine.disconnect(session, left(1), saved());
    engine.disconnect(session, left(2), saved());
    let third = engine.connect(attach(3)).unwrap();
    assert!(third.saved.is_some() && !third.state_lost);
}

#[test]
fn what_was_lost_to_another_protocol_stays_lost_whatever_that_one_leaves() {
    let (engine, session) = engine(&MemoryStore::new());
    let left = |slot: u32| ConnectionRef { shard: 0, slot, generation: 0 };
    let saved = || Detach { saved: Some(Box::new(7)), ..Detach::default() };
    engine.disconnect(session, left(1), saved());
    let other = engine.connect(Attach { takes_pushes: true, ..attach(2) }).unwrap();
    assert!(other.saved.is_some());
    engine.disconnect(session, left(2), saved());
    let first = engine.connect(attach(3)).unwrap();
    assert!(first.saved.is_some() && first.state_lost, "what it finds is the other's");
    engine.disconnect(session, left(3), saved());
    assert!(!engine.connect(attach(4)).unwrap().state_lost, "and this is its own");
}
