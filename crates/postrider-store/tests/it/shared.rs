//! What members of shared subscriptions leave goes on to others (MQTT 5 §4.8.2), and nothing is lost or doubled by it.

use crate::kit::*;
use postrider_core::Engine;
use postrider_core::access::Access;
use postrider_core::delivery::publish::{Collected, Publish};
use postrider_core::delivery::receipt::{Ack, ReceiptSource};
use postrider_core::id::*;
use postrider_core::limits::Limits;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_core::session::{Attach, Client, Detach};
use postrider_store::MemoryStore;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Connections that note who is told to look from the beginning.
#[derive(Default)]
struct Noted(Mutex<Vec<u32>>);

impl Connections for Noted {
    fn wake(&self, _: &[ConnectionRef]) {}

    fn wake_anew(&self, connections: &[ConnectionRef]) {
        self.0.lock().unwrap().extend(connections.iter().map(|c| c.slot));
    }

    fn deliver(&self, _: &Live, targets: Vec<LiveTarget>) {
        assert!(targets.is_empty(), "what is shared at QoS 1 and 2 lies in an inbox");
    }

    fn close(&self, _: ConnectionRef, _: Farewell) {}
}

/// A member that is connected.
struct Member {
    session: u32,
    slot: u32,
    position: Position,
    /// Not sent again on the same connection.
    in_flight: Vec<Seq>,
}

struct Group {
    store: MemoryStore,
    engine: Engine,
    woken: Arc<Noted>,
    clock: Arc<HandClock>,
    slots: u32,
    filter: &'static str,
}

impl Group {
    fn new() -> Group {
        let store = MemoryStore::new();
        run_one(&store, create_app());
        Group::over(store)
    }

    /// A life of a server.
    fn over(store: MemoryStore) -> Group {
        let clock = Arc::new(HandClock(AtomicU64::new(store.last_time().saturating_sub(NOW) + 1)));
        let chance = Arc::new(Counting(AtomicU64::new(1)));
        let limits = Limits { connects_per_minute_max: 0, inbox_max: 20, ..Limits::default() };
        let engine = Engine::new(Arc::new(store.clone()), limits, Access::open(), clock.clone(), chance);
        let woken = Arc::new(Noted::default());
        engine.attach_connections(woken.clone());
        Group { store, engine, woken, clock, slots: 0, filter: "jobs" }
    }

    /// An anonymous client, with a session that ends with its connection where nothing is said.
    fn connect(&mut self, name: &str, expiry_secs: u32) -> Member {
        self.slots += 1;
        let device = self.store.device_by_id(APP, name).map(|at| at.device);
        let attach = Attach {
            client: Client { app: APP, id: name.into(), device },
            connection: connection(self.slots),
            clean: expiry_secs == 0,
            expiry_secs,
            will: None,
            takes_pushes: false,
            hears_peers: false,
        };
        let session = self.engine.connect(attach).ok().unwrap().session;
        Member { session, slot: self.slots, position: Position::default(), in_flight: Vec::new() }
    }

    fn subscribe(&self, member: &Member, share: Option<&str>, qos: u8, id: u32) {
        let (tell, told) = std::sync::mpsc::channel();
        let wanted = StoredSubscription {
            filter: self.filter.into(),
            share: share.map(Into::into),
            qos,
            no_local: false,
            retain_as_published: false,
            id: Some(id),
        };
        self.engine.subscribe(member.session, vec![wanted], Box::new(move |codes| tell.send(codes).unwrap()));
        assert_eq!(told.recv().unwrap(), [Ok(qos)]);
    }

    fn join(&mut self, name: &str, expiry_secs: u32) -> Member {
        let member = self.connect(name, expiry_secs);
        self.subscribe(&member, Some("work"), 2, 7);
        member
    }

    fn leave(&self, member: &Member) {
        self.engine.disconnect(member.session, connection(member.slot), Detach::default());
    }

    fn publish(&self, numbers: std::ops::Range<u32>, qos: u8) {
        for number in numbers {
            let payload = number.to_string().into();
            let content = Arc::new(Content { topic: Some("jobs".into()), payload, properties: None });
            let (tell, told) = std::sync::mpsc::channel();
            let publish = Publish { content, qos, retain: false, expiry_secs: None };
            let done = Box::new(move |sessions| tell.send(sessions).unwrap());
            self.engine.publish_from_app(APP, publish, done).unwrap();
            told.recv().unwrap().unwrap();
        }
    }

    /// Takes up to `max`, as a connection does that goes on where it was, and writes them.
    fn take(&self, member: &mut Member, max: usize) -> Vec<(u32, Seq)> {
        if self.woken.0.lock().unwrap().contains(&member.slot) {
            self.woken.0.lock().unwrap().retain(|slot| *slot != member.slot);
            member.position = Position::default();
        }
        let mut taken = Vec::new();
        let mut is_more = true;
        while taken.is_empty() && is_more {
            taken = self.engine.drain(member.session, &mut member.position, max);
            is_more = taken.len() == max;
            taken.retain(|o| !member.in_flight.contains(&o.seq));
        }
        member.in_flight.extend(taken.iter().map(|o| o.seq));
        assert!(taken.iter().all(|o| o.subscription_ids == [7]), "each by its own subscription");
        let seqs: Vec<Seq> = taken.iter().map(|o| o.seq).collect();
        self.engine.sent(member.session, &seqs);
        let number = |o: &postrider_core::delivery::drain::Outgoing| {
            (std::str::from_utf8(&o.content.payload).unwrap().parse().unwrap(), o.seq)
        };
        taken.iter().map(number).collect()
    }

    fn ack(&self, member: &Member, seq: Seq) {
        let (step, reason) = (Step::Delivered, Reason::None);
        let acks = [Ack { session: member.session, seq, step, reason, sent_at: None }];
        self.engine.record_receipts(ReceiptSource::Connections(&acks));
    }

    /// Everything that the member can get, acknowledged.
    fn work_off(&self, member: &mut Member) -> Vec<u32> {
        let mut done = Vec::new();
        loop {
            let some = self.take(member, 10);
            if some.is_empty() {
                done.sort_unstable();
                return done;
            }
            for (number, seq) in some {
                self.ack(member, seq);
                done.push(number);
            }
        }
    }

    fn books_balance(&self) {
        let audit = self.store.audit();
        assert!(audit.apps.iter().all(|(_, app)| app.gap() == 0), "{audit:?}");
    }
}

fn connection(slot: u32) -> ConnectionRef {
    ConnectionRef { shard: 0, slot, generation: 1 }
}

fn numbers(taken: &[(u32, Seq)]) -> Vec<u32> {
    taken.iter().map(|(number, _)| *number).collect()
}

#[test]
fn what_a_member_did_not_acknowledge_goes_to_another_when_its_session_ends() {
    let mut group = Group::new();
    let (mut stuck, mut good) = (group.join("stuck", 0), group.join("good", 0));
    group.publish(0..10, 1);
    let held = group.take(&mut stuck, 1);
    assert_eq!(held.len(), 1);
    let mut done = group.work_off(&mut good);
    assert!(!done.is_empty() && done.len() < 10, "each has its turn: {done:?}");
    group.leave(&stuck);
    done.extend(group.work_off(&mut good));
    done.sort_unstable();
    assert_eq!(done, (0..10).collect::<Vec<_>>(), "sent to the first one {held:?}");
    group.books_balance();
}

#[test]
fn a_lasting_session_keeps_what_it_was_sent_until_it_ends_and_gives_away_the_rest_at_once() {
    let mut group = Group::new();
    let (mut away, mut good) = (group.join("away", 60), group.join("good", 60));
    group.publish(0..10, 1);
    let held = numbers(&group.take(&mut away, 2));
    group.leave(&away);
    let mut done = group.work_off(&mut good);
    assert_eq!(done.len() + held.len(), 10);
    assert!(held.iter().all(|number| !done.contains(number)), "{held:?} may be asked for again");
    group.clock.0.fetch_add(61_000, Ordering::SeqCst);
    group.engine.tick();
    done.extend(group.work_off(&mut good));
    done.sort_unstable();
    assert_eq!(done, (0..10).collect::<Vec<_>>());
    group.books_balance();
}

#[test]
fn who_comes_back_in_time_gets_again_what_it_was_sent() {
    let mut group = Group::new();
    let (mut away, good) = (group.join("away", 60), group.join("good", 60));
    group.publish(0..4, 1);
    let held = numbers(&group.take(&mut away, 1));
    group.leave(&away);
    let mut back = group.connect("away", 60);
    assert_eq!(numbers(&group.take(&mut back, 10)), held);
    drop(good);
}

#[test]
fn qos_2_that_is_under_way_goes_to_nobody_else_and_the_rest_of_it_does() {
    let mut group = Group::new();
    let (mut stuck, mut good) = (group.join("stuck", 0), group.join("good", 0));
    group.publish(0..10, 2);
    let held = numbers(&group.take(&mut stuck, 1));
    group.leave(&stuck);
    let done = group.work_off(&mut good);
    let others: Vec<u32> = (0..10).filter(|number| !held.contains(number)).collect();
    assert_eq!(done, others);
    group.books_balance();
}

#[test]
fn a_member_that_unsubscribes_keeps_what_is_under_way_and_leaves_the_rest() {
    let mut group = Group::new();
    let (mut first, mut good) = (group.join("first", 0), group.join("good", 0));
    group.publish(0..10, 1);
    let held = group.take(&mut first, 2);
    let (tell, told) = std::sync::mpsc::channel();
    let filters = vec![(Some("work".to_owned()), "jobs".to_owned())];
    group.engine.unsubscribe(first.session, filters, Box::new(move |existed| tell.send(existed).unwrap()));
    assert_eq!(told.recv().unwrap(), [true]);
    assert_eq!(group.take(&mut first, 10), []);
    let mut done = group.work_off(&mut good);
    held.iter().for_each(|(_, seq)| group.ack(&first, *seq));
    done.extend(numbers(&held));
    done.sort_unstable();
    assert_eq!(done, (0..10).collect::<Vec<_>>());
    group.books_balance();
}

#[test]
fn a_device_that_is_deleted_leaves_its_work_to_others() {
    let mut group = Group::new();
    let (mut first, mut good) = (group.join("first", 60), group.join("good", 0));
    group.publish(0..10, 1);
    group.take(&mut first, 2);
    group.engine.delete_device(group.store.device_by_id(APP, "first").unwrap(), Box::new(|_| {}));
    assert_eq!(group.work_off(&mut good), (0..10).collect::<Vec<_>>());
    group.books_balance();
}

#[test]
fn what_waits_for_members_that_are_all_away_goes_to_the_first_that_comes() {
    let mut group = Group::new();
    for name in ["a", "b", "c"] {
        let member = group.join(name, 600);
        group.leave(&member);
    }
    group.publish(0..9, 1);
    let mut back = group.connect("b", 600);
    assert_eq!(group.work_off(&mut back), (0..9).collect::<Vec<_>>());
    group.leave(&back);
    group.publish(9..12, 1);
    // A new one that subscribes is one as well.
    let mut fresh = group.join("d", 0);
    assert_eq!(group.work_off(&mut fresh), (9..12).collect::<Vec<_>>());
    group.books_balance();
}

#[test]
fn what_an_earlier_life_of_the_server_had_under_way_at_qos_2_stays_with_its_member() {
    let mut before = Group::new();
    let mut holder = before.join("holder", 600);
    before.publish(0..2, 2);
    before.publish(2..4, 1);
    before.take(&mut holder, 1);
    let mut after = Group::over(before.store.clone());
    let mut other = after.join("other", 600);
    assert_eq!(after.work_off(&mut other), [2, 3], "of QoS 2 nobody knows what was sent");
    let mut back = after.connect("holder", 600);
    assert_eq!(after.work_off(&mut back), [0, 1]);
    after.books_balance();
}

#[test]
fn a_full_member_is_passed_over_and_the_last_one_loses_its_oldest() {
    let mut group = Group::new();
    let (mut full, mut good) = (group.join("full", 0), group.join("good", 0));
    let mut done = Vec::new();
    for round in 0..6u32 {
        group.publish(round * 10..(round + 1) * 10, 1);
        done.extend(group.work_off(&mut good));
    }
    assert_eq!(group.store.device(group.store.device_by_id(APP, "full").unwrap()).unwrap().inbox_len, 20);
    done.extend(group.work_off(&mut full));
    done.sort_unstable();
    assert_eq!(done, (0..60).collect::<Vec<_>>());
}

#[test]
fn a_plain_subscription_beside_a_shared_one_gets_its_own_copy_which_ends_with_the_session() {
    let mut group = Group::new();
    let (both, mut good) = (group.join("both", 0), group.join("good", 0));
    group.subscribe(&both, None, 1, 7);
    group.publish(0..10, 1);
    group.leave(&both);
    assert_eq!(group.work_off(&mut good), (0..10).collect::<Vec<_>>(), "none twice");
    group.books_balance();
}

#[test]
fn a_message_that_was_on_its_way_to_a_member_that_left_goes_to_another() {
    let mut group = Group::new();
    let (first, mut good) = (group.join("first", 0), group.join("good", 0));
    // Routed while both are there, committed when one is gone.
    let mut collected = Collected::default();
    for number in 0..4 {
        let payload = number.to_string().into();
        let content = Arc::new(Content { topic: Some("jobs".into()), payload, properties: None });
        let publish = Publish { content, qos: 1, retain: false, expiry_secs: None };
        group.engine.publish(good.session, &publish, &mut collected).unwrap();
    }
    group.leave(&first);
    group.engine.commit(collected.commands, Box::new(|_| {}));
    assert_eq!(group.work_off(&mut good), [0, 1, 2, 3]);
}

#[test]
fn a_random_coming_and_going_loses_nothing_and_doubles_nothing_that_was_acknowledged() {
    let mut chance = 12_345u64;
    let mut draw = move |max: u64| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) % max
    };
    let mut group = Group::new();
    let mut members: BTreeMap<u64, Member> = BTreeMap::new();
    let (mut published, mut done) = (0u32, Vec::new());
    for _ in 0..3_000 {
        let who = draw(4);
        match draw(6) {
            0 if !members.contains_key(&who) => {
                // Even ones have lasting sessions, which keep the group alive while nobody is connected.
                let expiry_secs = if who % 2 == 0 { 3_600 } else { 0 };
                let member = group.join(&format!("m{who}"), expiry_secs);
                members.insert(who, member);
            }
            1 => {
                if let Some(member) = members.remove(&who) {
                    group.leave(&member);
                }
            }
            2 | 3
                if published - (done.len() as u32) < 15 && group.store.device_by_id(APP, "m0").is_some() =>
            {
                group.publish(published..published + 1, 1);
                published += 1;
            }
            _ => {
                if let Some(member) = members.get_mut(&who) {
                    for (number, seq) in group.take(member, 2) {
                        if draw(3) > 0 {
                            group.ack(member, seq);
                            done.push(number);
                        }
                    }
                }
            }
        }
    }
    for (_, member) in std::mem::take(&mut members) {
        group.leave(&member);
    }
    for name in ["m0", "m2"] {
        let mut member = group.connect(name, 3_600);
        done.extend(group.work_off(&mut member));
    }
    done.sort_unstable();
    assert!(published > 100);
    assert_eq!(done, (0..published).collect::<Vec<_>>());
    group.books_balance();
}
