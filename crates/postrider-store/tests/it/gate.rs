//! The one gate (invariant 5), on every way by which a message reaches a device, with rights that go in the middle: a
//! subscription was granted, the message may even lie there, and then the rule says no.

use crate::kit::*;
use postrider_core::Engine;
use postrider_core::access::Access;
use postrider_core::delivery::publish::Publish;
use postrider_core::limits::Limits;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_core::session::{Attach, Attached, Client, Detach, Will};
use postrider_store::MemoryStore;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const TOPIC: &str = "house/safe";

/// How a message on a topic comes to a device.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Live,
    Replay,
    Retained,
    Will,
    Shared,
}

const WAYS: [Way; 5] = [Way::Live, Way::Replay, Way::Retained, Way::Will, Way::Shared];

/// Connections that note to which slot a live message goes.
#[derive(Default)]
struct Noted(Mutex<Vec<u32>>);

impl Connections for Noted {
    fn wake(&self, _: &[ConnectionRef]) {}

    fn wake_anew(&self, _: &[ConnectionRef]) {}

    fn deliver(&self, _: &Live, targets: Vec<LiveTarget>) {
        self.0.lock().unwrap().extend(targets.iter().map(|t| t.connection.slot));
    }

    fn close(&self, _: ConnectionRef, _: Farewell) {}
}

/// One life of a server; the store goes on to the next.
struct Life {
    engine: Engine,
    live: Arc<Noted>,
    clock: Arc<HandClock>,
}

impl Life {
    fn of(store: &MemoryStore, access: Access) -> Life {
        let clock = Arc::new(HandClock::default());
        let chance = Arc::new(Counting(AtomicU64::new(1)));
        let engine = Engine::new(Arc::new(store.clone()), Limits::default(), access, clock.clone(), chance);
        let live = Arc::new(Noted::default());
        engine.attach_connections(live.clone());
        Life { engine, live, clock }
    }

    fn connect(&self, name: &str, will: Option<Will>) -> Attached {
        let at = self.engine.store.device_by_id(APP, name).unwrap();
        let client = Client { app: APP, id: name.into(), device: Some(at.device) };
        let attach = Attach {
            client,
            connection: connection(at.device.0),
            clean: false,
            expiry_secs: 3600,
            will,
            takes_pushes: false,
            hears_peers: false,
        };
        self.engine.connect(attach).ok().unwrap()
    }

    fn leave(&self, name: &str, session: u32) {
        let at = self.engine.store.device_by_id(APP, name).unwrap();
        self.engine.disconnect(session, connection(at.device.0), Detach::default());
    }

    fn subscribe(&self, session: u32, share: Option<&str>, qos: u8) {
        let (tell, told) = std::sync::mpsc::channel();
        let wanted = StoredSubscription {
            filter: "house/#".into(),
            share: share.map(Into::into),
            qos,
            no_local: false,
            retain_as_published: false,
            id: None,
        };
        self.engine.subscribe(session, vec![wanted], Box::new(move |codes| tell.send(codes).unwrap()));
        assert_eq!(told.recv().unwrap(), [Ok(qos)]);
    }

    fn publish(&self, qos: u8, retain: bool) {
        let (tell, told) = std::sync::mpsc::channel();
        let publish = Publish { content: said(), qos, retain, expiry_secs: None };
        let done = Box::new(move |sessions| tell.send(sessions).unwrap());
        self.engine.publish_from_app(APP, publish, done).unwrap();
        told.recv().unwrap().unwrap();
    }

    /// What lies in the inbox for the device, as its connection gets it.
    fn drained(&self, session: u32) -> usize {
        self.engine.drain(session, &mut Position::default(), 10).len()
    }

    fn live_slots(&self) -> Vec<u32> {
        std::mem::take(&mut self.live.0.lock().unwrap())
    }
}

fn connection(slot: u32) -> ConnectionRef {
    ConnectionRef { shard: 0, slot, generation: 1 }
}

fn said() -> Arc<Content> {
    Arc::new(Content { topic: Some(TOPIC.into()), payload: "x".into(), properties: None })
}

fn will(delay_secs: u32) -> Will {
    Will { content: said(), qos: 0, retain: false, expiry_secs: None, delay_secs }
}

fn open_house() -> Access {
    let all = vec!["house/#".to_owned()];
    Access { publish: all.clone(), subscribe: all, retain: true, ..Access::default() }
}

fn house_with_a_closed_safe() -> Access {
    Access { subscribe_deny: vec![TOPIC.into()], ..open_house() }
}

fn store_with(devices: &[&str]) -> MemoryStore {
    let store = MemoryStore::new();
    run_one(&store, create_app());
    devices.iter().for_each(|name| _ = run_one(&store, register(name)));
    store
}

/// The device subscribes, the server comes back with `access`, and the message takes its way: how often it arrives.
fn arrivals(way: Way, access: Access) -> usize {
    let store = store_with(&["reader", "writer"]);
    let before = Life::of(&store, open_house());
    let reader = before.connect("reader", None).session;
    before.subscribe(reader, (way == Way::Shared).then_some("g"), u8::from(way == Way::Replay));
    match way {
        Way::Replay => {
            before.leave("reader", reader);
            before.publish(1, false);
        }
        Way::Retained => before.publish(1, true),
        _ => {}
    }
    let after = Life::of(&store, access);
    let attached = after.connect("reader", None);
    assert!(attached.present, "{way:?}: the session and what it subscribed to are still there");
    match way {
        Way::Live | Way::Shared => after.publish(0, false),
        Way::Will => {
            let writer = after.connect("writer", Some(will(0))).session;
            after.leave("writer", writer);
        }
        Way::Replay | Way::Retained => {}
    }
    let got = match way {
        Way::Retained => after.engine.retained(attached.session, "house/#").len(),
        Way::Replay => after.drained(attached.session),
        Way::Live | Way::Shared | Way::Will => after.live_slots().len(),
    };
    // Whatever the answer was, it is the same when asked again.
    assert_eq!(after.drained(attached.session), if way == Way::Replay { got } else { 0 });
    got
}

#[test]
fn no_way_leads_around_a_right_that_was_taken_away() {
    for way in WAYS {
        assert_eq!(arrivals(way, open_house()), 1, "{way:?}, allowed");
        assert_eq!(arrivals(way, house_with_a_closed_safe()), 0, "{way:?}, revoked");
    }
}

#[test]
fn a_message_that_may_not_be_replayed_any_more_ends_instead_of_lying_there() {
    let store = store_with(&["reader"]);
    let before = Life::of(&store, open_house());
    let reader = before.connect("reader", None).session;
    before.subscribe(reader, None, 1);
    before.leave("reader", reader);
    before.publish(1, false);
    let inbox = || store.device(device(0)).unwrap().inbox_len;
    assert_eq!(inbox(), 1);
    let after = Life::of(&store, house_with_a_closed_safe());
    assert_eq!((after.drained(after.connect("reader", None).session), inbox()), (0, 0));
}

#[test]
fn a_shared_message_goes_to_a_member_that_may_have_it() {
    // Of the three only one keeps its right, by its name: it gets every message of the group.
    let own = Access { subscribe: vec!["{device}/safe".into()], ..open_house() };
    assert!(own.may_receive("house", TOPIC) && !own.may_receive("first", TOPIC));
    let store = store_with(&["first", "house", "third"]);
    let everybody = Life::of(&store, open_house());
    for name in ["first", "house", "third"] {
        everybody.subscribe(everybody.connect(name, None).session, Some("g"), 0);
    }
    let after = Life::of(&store, own);
    for name in ["first", "house", "third"] {
        after.connect(name, None);
    }
    (0..6).for_each(|_| after.publish(0, false));
    let house = store.device_by_id(APP, "house").unwrap().device.0;
    assert_eq!(after.live_slots(), [house; 6]);
}

#[test]
fn a_deleted_device_leaves_no_will_and_gets_nothing() {
    let store = store_with(&["reader", "writer"]);
    let life = Life::of(&store, open_house());
    life.subscribe(life.connect("reader", None).session, None, 0);
    for deleted in [false, true] {
        let writer = life.connect("writer", Some(will(60))).session;
        life.leave("writer", writer);
        if deleted {
            life.engine.delete_device(store.device_by_id(APP, "writer").unwrap(), Box::new(|_| {}));
        }
        life.clock.0.fetch_add(61_000, Ordering::SeqCst);
        life.engine.tick();
        assert_eq!(life.live_slots().len(), usize::from(!deleted), "the delayed will; deleted: {deleted}");
    }
    let session = life.connect("reader", None).session;
    life.engine.delete_device(store.device_by_id(APP, "reader").unwrap(), Box::new(|_| {}));
    life.publish(1, true);
    assert_eq!((life.live_slots(), life.drained(session)), (vec![], 0));
    assert!(life.engine.retained(session, "house/#").is_empty());
}
