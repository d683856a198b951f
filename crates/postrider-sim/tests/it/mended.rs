//! What the simulation found in the core, each as small as it can be told.

use postrider_core::Engine;
use postrider_core::access::Access;
use postrider_core::command::*;
use postrider_core::delivery::publish::Publish;
use postrider_core::delivery::receipt::Ack;
use postrider_core::id::*;
use postrider_core::limits::Limits;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_core::session::{Attach, Client};
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
    let registration = Registration {
        app: APP,
        id: "d".into(),
        secret_hash: Some([1; 32]),
        profile: Profile::default(),
        now: Still.now(),
        idempotency: None,
    };
    let app = Command::CreateApp { id: "a".into(), name: String::new(), at: Still.now() };
    store.submit(vec![app, Command::Register(Box::new(registration))], Box::new(|_| {}));
    let engine = Engine::new(
        Arc::new(store.clone()),
        Limits::default(),
        Access::open(),
        Arc::new(Still),
        Arc::new(Still),
    );
    let attach = Attach {
        client: Client { app: APP, id: "d".into(), device: Some(DeviceNo(0)) },
        connection: ConnectionRef { shard: 0, slot: 1, generation: 0 },
        clean: false,
        expiry_secs: 60,
        will: None,
        takes_pushes: false,
    };
    let session = engine.connect(attach).unwrap().session;
    (engine, session)
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
    let target = Target { device: DeviceNo(0), qos: 1, retain: false, subscription_ids: Vec::new() };
    let message = NewMessage {
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
        push: true,
        reject_when_full: false,
        inbox_max: 10,
        inbox_bytes_max: 10_000,
        content: Some(Arc::new(Content::default())),
    };
    engine.commit(vec![Command::Accept(Box::new(message))], Box::new(|_| {}));
    let at = DeviceRef { app: APP, device: DeviceNo(0) };
    let open = || store.pending(at, Position::default(), 10, Still.now());
    let seq = open()[0].seq;
    store.fail_next(StoreError::StorageLow { free_bytes: 0 });
    engine.ack(&[Ack { session, seq, step: Step::Delivered, reason: Reason::None, sent_at: None }]);
    assert_eq!(open().len(), 1, "refused");
    assert!(engine.drain(session, &mut Position::default(), 10).is_empty(), "and yet not sent again");
    engine.tick();
    assert!(open().is_empty());
}
