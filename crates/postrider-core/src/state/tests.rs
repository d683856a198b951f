//! The rules of the state machine, by example and by chance.

mod backlog;
mod expiry;
mod forget;
mod forward;
mod jobs;
mod replay;
mod rules;
mod shares;

use super::*;
use crate::port::Position;
use proptest::prelude::*;
use std::sync::Arc;

const APP: AppNo = AppNo(0);
const HOUR: u64 = 3_600_000;

/// A state with one app and some devices, driven by hand.
struct World {
    state: Live,
    effects: Effects,
    now: UnixMillis,
    ids: u128,
    /// What a restart would find: an image, and the commands behind it.
    image: Vec<u8>,
    journal: Vec<(Vec<u8>, BlobRef)>,
}

impl World {
    fn new(devices: u32) -> World {
        let mut world = World {
            state: Live::default(),
            effects: Effects::default(),
            now: 1_000_000,
            ids: 0,
            image: Vec::new(),
            journal: Vec::new(),
        };
        world.run(Command::CreateApp { id: "a".into(), name: "A".into(), at: 1 });
        (0..devices).for_each(|n| _ = world.register(&format!("d{n}")));
        world
    }

    fn run(&mut self, mut command: Command) -> Outcome {
        let len = command.content().map_or(0, |c| c.payload.len() as u32);
        let blob = BlobRef { file: 1, offset: self.state.seq() as u32, len };
        command.take_content();
        let mut bytes = Vec::new();
        crate::stored::put_command(&command, &mut bytes);
        self.journal.push((bytes, blob));
        self.state.execute(&command, blob, &mut self.effects)
    }

    fn register(&mut self, id: &str) -> Outcome {
        self.register_in(APP, id)
    }

    fn register_in(&mut self, app: AppNo, id: &str) -> Outcome {
        self.run(Command::Register(Box::new(Registration {
            origin: None,
            quota: None,
            app,
            id: id.into(),
            secret_hash: Some([1; 32]),
            profile: Profile { tags: vec!["t".into()], ..Profile::default() },
            now: self.now,
            idempotency: None,
        })))
    }

    fn message(&mut self, targets: Targets) -> NewMessage {
        self.ids += 1;
        NewMessage {
            app: APP,
            id: MessageId::new(self.now, self.ids),
            targets,
            accepted_at: self.now,
            expires_at: self.now + HOUR,
            priority: Priority::Normal,
            collapse_key: None,
            backlog: Backlog::All,
            idempotency: None,
            tracked: true,
            push: true,
            reject_when_full: false,
            inbox_max: 3,
            inbox_bytes_max: 1_000,
            peer_inbox_max: 0,
            room: None,
            submission: None,
            content: Some(Arc::new(Content { payload: vec![0; 10].into(), ..Content::default() })),
        }
    }

    fn send(&mut self, change: impl FnOnce(&mut NewMessage)) -> Acceptance {
        let mut message = self.message(direct(&[0]));
        change(&mut message);
        match self.run(Command::Accept(Box::new(message))) {
            Outcome::Accepted(accepted) => accepted,
            other => panic!("{other:?}"),
        }
    }

    fn step(&mut self, device: u32, which: Which, step: Step) -> usize {
        let progress =
            Progress { device: DeviceNo(device), which, step, reason: Reason::None, sent_at: None };
        match self.run(Command::Progress { app: APP, steps: vec![progress], now: self.now }) {
            Outcome::Progressed { taken } => taken,
            other => panic!("{other:?}"),
        }
    }

    fn pending(&self, device: u32) -> Vec<Seq> {
        let at = DeviceRef { app: APP, device: DeviceNo(device) };
        let found = self.state.pending(at, Position::default(), 100, self.now, Seq::MAX);
        found.into_iter().map(|p| p.seq).collect()
    }

    fn step_of(&self, id: MessageId, device: u32) -> (Step, Reason) {
        let view = self.state.delivery(APP, id, DeviceNo(device)).expect("targeted");
        (view.step, view.reason)
    }

    fn gap(&self) -> i64 {
        self.state.audit().apps.iter().map(|(_, a)| a.gap()).sum()
    }
}

/// The state as it comes back from a checkpoint.
fn restarted(state: &Live) -> Live {
    let mut bytes = Vec::new();
    crate::stored::write_state(state, &mut bytes).unwrap();
    let mut written = crate::stored::Written::default();
    while crate::stored::write_volatile(state.volatile(), &mut written, &mut bytes) {}
    let mut back = crate::stored::read_state(3, &bytes).unwrap();
    back.rebuild();
    back
}

fn direct(devices: &[u32]) -> Targets {
    let target =
        |no: &u32| Target { device: DeviceNo(*no), qos: 1, retain: false, subscription_ids: Vec::new() };
    Targets::Direct(devices.iter().map(target).collect())
}

fn broadcast(devices: &[u32]) -> Targets {
    Targets::Broadcast(devices.iter().copied().collect())
}

#[test]
fn who_registered_a_device_and_whether_it_was_there_is_kept() {
    let mut world = World::new(1);
    for id in ["own-1", "own-2"] {
        let registration = Registration {
            origin: Some(Origin::Demo),
            quota: None,
            app: APP,
            id: id.into(),
            secret_hash: Some([1; 32]),
            profile: Profile::default(),
            now: 5,
            idempotency: None,
        };
        world.run(Command::Register(Box::new(registration)));
    }
    let at = |no| DeviceRef { app: APP, device: DeviceNo(no) };
    assert_eq!(world.run(Command::Seen { at: at(1), now: 9 }), Outcome::Done);
    assert_eq!(world.run(Command::Seen { at: at(9), now: 9 }), Outcome::Refused(Refusal::NoSuchDevice));
    for state in [&world.state, &restarted(&world.state)] {
        assert_eq!(
            state.own_devices(APP),
            crate::port::OwnDevices { count: 2, never_seen: Some((at(2), 5)) }
        );
        assert_eq!(state.device(at(1)).unwrap().last_seen_at, Some(9));
        assert_eq!(state.device(at(1)).unwrap().origin, Some(Origin::Demo));
    }
}

#[test]
fn an_entry_stays_until_it_is_acknowledged_and_then_never_comes_back() {
    let mut w = World::new(1);
    let a = w.send(|_| {});
    let b = w.send(|_| {});
    assert_eq!(w.pending(0), [a.seq, b.seq]);
    assert_eq!(w.step(0, Which::Seq(a.seq), Step::Delivered), 1);
    assert_eq!(w.step(0, Which::Seq(a.seq), Step::Delivered), 0);
    assert_eq!(w.pending(0), [b.seq]);
    assert_eq!(w.step_of(a.id, 0), (Step::Delivered, Reason::None));
    assert_eq!(w.effects.released.len(), 1);
    assert_eq!(w.gap(), 0);
}

#[test]
fn nothing_is_seen_before_it_is_durable() {
    let mut w = World::new(1);
    let a = w.send(|_| {});
    let at = DeviceRef { app: APP, device: DeviceNo(0) };
    assert!(w.state.pending(at, Position::default(), 9, w.now, a.seq - 1).is_empty());
    assert_eq!(w.state.pending(at, Position::default(), 9, w.now, a.seq).len(), 1);
}

#[test]
fn what_a_command_takes_away_is_seen_until_that_command_is_durable() {
    let mut w = World::new(2);
    let latest = |m: &mut NewMessage| {
        m.inbox_max = 4;
        m.collapse_key = Some("score".into());
        m.backlog = Backlog::Latest;
    };
    let cast = w.send(|m| m.targets = broadcast(&[0, 1]));
    let old = w.send(latest);
    let kept: Vec<Seq> = (0..2).map(|_| w.send(|_| {}).seq).collect();
    let durable = w.state.seq();
    w.state.settle(durable);
    let at = DeviceRef { app: APP, device: DeviceNo(0) };
    let seen = |w: &World, durable| -> Vec<Seq> {
        w.state.pending(at, Position::default(), 9, w.now, durable).iter().map(|p| p.seq).collect()
    };
    let before = seen(&w, durable);
    assert_eq!(before, [cast.seq, old.seq, kept[0], kept[1]]);

    let newer = w.send(latest);
    let cancelled = w.run(Command::Cancel { app: APP, message: cast.id, now: w.now });
    assert_eq!(cancelled, Outcome::Cancelled { open: 2 });
    assert_eq!(w.step_of(old.id, 0).0, Step::Superseded);
    assert_eq!(seen(&w, durable), before, "nothing of it is on stable storage");
    assert_eq!(seen(&w, newer.seq), [cast.seq, kept[0], kept[1], newer.seq]);
    assert_eq!(seen(&w, w.state.seq()), [kept[0], kept[1], newer.seq]);

    let evicting = w.send(|_| {});
    assert_eq!(seen(&w, newer.seq + 1), [kept[0], kept[1], newer.seq]);
    assert_eq!(seen(&w, evicting.seq), [kept[1], newer.seq, evicting.seq]);
    w.state.settle(evicting.seq);
    assert_eq!(seen(&w, durable), [kept[1]], "it is over and forgotten");
    assert_eq!(w.gap(), 0);
}

#[test]
fn a_device_cannot_acknowledge_what_is_anothers() {
    let mut w = World::new(2);
    let a = w.send(|_| {});
    assert_eq!(w.step(1, Which::Seq(a.seq), Step::Delivered), 0);
    assert_eq!(w.step(1, Which::Id(a.id), Step::Displayed), 0);
    assert_eq!(w.pending(0), [a.seq]);
}

#[test]
fn what_was_displayed_was_delivered_and_a_late_receipt_undoes_no_end() {
    let mut w = World::new(1);
    let a = w.send(|_| {});
    assert_eq!(w.step(0, Which::Id(a.id), Step::Clicked), 1);
    assert_eq!(w.step_of(a.id, 0).0, Step::Clicked);
    let view = w.state.message(APP, a.id).unwrap();
    assert_eq!((view.reached[Step::Delivered as usize], view.now[Step::Clicked as usize]), (1, 1));
    let b = w.send(|_| {});
    w.run(Command::Cancel { app: APP, message: b.id, now: w.now });
    assert_eq!(w.step(0, Which::Id(b.id), Step::Displayed), 0);
    assert_eq!(w.step_of(b.id, 0), (Step::Cancelled, Reason::Recalled));
    assert_eq!(w.gap(), 0);
}

#[test]
fn a_full_inbox_evicts_the_oldest_of_the_least_urgent_with_a_receipt() {
    let mut w = World::new(1);
    let high = w.send(|m| m.priority = Priority::High);
    let normal = w.send(|_| {});
    let low = w.send(|m| m.priority = Priority::Low);
    let next = w.send(|_| {});
    assert_eq!(w.step_of(low.id, 0), (Step::Evicted, Reason::QueueFull));
    assert_eq!(w.pending(0), [high.seq, normal.seq, next.seq]);
    let mut refused = w.message(direct(&[0]));
    refused.reject_when_full = true;
    assert_eq!(w.run(Command::Accept(Box::new(refused))), Outcome::Refused(Refusal::InboxFull));
    assert_eq!(w.gap(), 0);
}

#[test]
fn the_newest_of_a_collapse_key_supersedes_the_older_ones() {
    let mut w = World::new(3);
    let key = |m: &mut NewMessage| {
        m.collapse_key = Some("score".into());
        m.backlog = Backlog::Latest;
    };
    let first = w.send(key);
    let cast = w.send(|m| {
        key(m);
        m.targets = broadcast(&[0, 1, 2]);
    });
    assert_eq!(w.step_of(first.id, 0), (Step::Superseded, Reason::Collapsed));
    let last = w.send(|m| {
        key(m);
        m.targets = direct(&[1]);
    });
    assert_eq!(w.step_of(cast.id, 1), (Step::Superseded, Reason::Collapsed));
    assert_eq!((w.pending(0), w.pending(1), w.pending(2)), (vec![cast.seq], vec![last.seq], vec![cast.seq]));
    assert_eq!(w.gap(), 0);
}

#[test]
fn a_backlog_of_two_keeps_the_newest_two() {
    let mut w = World::new(1);
    let sent: Vec<_> = (0..3).map(|_| w.send(|m| m.backlog = Backlog::Last(2)).seq).collect();
    assert_eq!(w.pending(0), sent[1..]);
}

#[test]
fn urgent_messages_overtake_and_each_lane_keeps_its_order() {
    let mut w = World::new(1);
    let a = w.send(|_| {});
    let b = w.send(|m| m.targets = broadcast(&[0]));
    let c = w.send(|m| m.priority = Priority::High);
    assert_eq!(w.pending(0), [c.seq, a.seq, b.seq]);
}

#[test]
fn a_message_ends_at_its_expiry_and_not_a_second_before() {
    let mut w = World::new(2);
    let a = w.send(|m| m.targets = direct(&[0, 1]));
    let cast = w.send(|m| m.targets = broadcast(&[0, 1]));
    let expire = |now| Command::Expire { now, limit: 100, history_before: 0, history_max: 100 };
    let end = w.now + HOUR;
    w.run(expire(end - 1));
    assert_eq!(w.step_of(a.id, 0).0, Step::Queued);
    w.run(expire(end));
    for id in [a.id, cast.id] {
        assert_eq!(w.step_of(id, 1), (Step::Expired, Reason::Ttl));
        assert_eq!(w.state.message(APP, id).unwrap().now[Step::Expired as usize], 2);
    }
    assert_eq!((w.gap(), w.state.next_expiry()), (0, None));
}

#[test]
fn what_has_ended_does_not_wait_for_its_expiry() {
    let mut w = World::new(1);
    let stays = w.send(|_| {});
    for _ in 0..1_000 {
        let ends = w.send(|_| {});
        assert_eq!(w.step(0, Which::Id(ends.id), Step::Delivered), 1);
        assert!(w.state.timers.messages_len() <= 2);
    }
    let end = w.now + HOUR;
    w.run(Command::Expire { now: end, limit: 100, history_before: 0, history_max: 100 });
    assert_eq!(w.step_of(stays.id, 0), (Step::Expired, Reason::Ttl));
    assert_eq!((w.gap(), w.state.next_expiry()), (0, None));
}

#[test]
fn a_repeated_request_gets_the_first_answer_and_another_one_is_refused() {
    let mut w = World::new(1);
    let request = |request| Some(Idempotency { key: 7, request, keep_until: u64::MAX, keys_max: 0 });
    let first = w.send(|m| m.idempotency = request(1));
    let again = w.send(|m| m.idempotency = request(1));
    assert_eq!((again.id, again.repeated), (first.id, true));
    let mut other = w.message(direct(&[0]));
    other.idempotency = request(2);
    assert_eq!(w.run(Command::Accept(Box::new(other))), Outcome::Refused(Refusal::IdempotencyMismatch));
    assert_eq!(w.pending(0), [first.seq]);
}

#[test]
fn deleting_a_device_erases_what_is_open_and_nothing_else() {
    let mut w = World::new(2);
    let a = w.send(|m| m.targets = direct(&[0, 1]));
    let cast = w.send(|m| m.targets = broadcast(&[0, 1]));
    w.run(Command::DeleteDevice { at: DeviceRef { app: APP, device: DeviceNo(0) }, now: w.now });
    assert_eq!(w.step_of(a.id, 0), (Step::Erased, Reason::Unregistered));
    assert_eq!(w.pending(1), [a.seq, cast.seq]);
    assert!(w.state.device_by_id(APP, "d0").is_none() && w.state.devices_with_tag(APP, "t").len() == 1);
    assert_eq!(w.gap(), 0);
}

#[test]
fn an_anonymous_client_goes_with_its_session_and_a_registered_one_stays() {
    let mut w = World::new(1);
    let registration = Registration {
        origin: None,
        quota: None,
        app: APP,
        id: "anon".into(),
        secret_hash: None,
        profile: Profile::default(),
        now: w.now,
        idempotency: None,
    };
    w.run(Command::Register(Box::new(registration)));
    for device in [0, 1] {
        let at = DeviceRef { app: APP, device: DeviceNo(device) };
        w.run(Command::OpenSession { at, expiry_secs: 10, fresh: false, now: w.now });
        w.run(Command::LeaveSession { at, expiry_secs: 10, now: w.now });
    }
    let publish = |m: &mut NewMessage| (m.push, m.tracked, m.targets) = (false, false, direct(&[0, 1]));
    w.send(publish);
    let push = w.send(|_| {});
    let now = w.now + 10_000;
    w.run(Command::Expire { now, limit: 100, history_before: 0, history_max: 100 });
    assert!(w.state.device_by_id(APP, "anon").is_none());
    // What came for the session ended with it; the push stays for the device.
    assert_eq!(w.pending(0), [push.seq]);
    assert_eq!(w.gap(), 0);
}

#[test]
fn proof_keys_come_with_the_first_enrollment_change_with_the_secret_and_go_with_the_device() {
    let mut w = World::new(0);
    let idempotency = Some(Idempotency { key: 1, request: 1, keep_until: UnixMillis::MAX, keys_max: 0 });
    let registration = Box::new(Registration {
        origin: None,
        quota: None,
        app: APP,
        id: "d".into(),
        secret_hash: Some([1; 32]),
        profile: Profile::default(),
        now: w.now,
        idempotency,
    });
    let enroll = |keys: &[u8], registration: &Registration| Command::Enroll {
        registration: Box::new(registration.clone()),
        proof_keys: keys.into(),
    };
    let at = DeviceRef { app: APP, device: DeviceNo(0) };
    let keys = |w: &World| w.state.sign_in(at).and_then(|s| s.proof_keys);
    assert_eq!(w.run(enroll(b"a", &registration)), Outcome::Registered { at, existed: false });
    // A repetition, and somebody else who wants the name.
    assert_eq!(w.run(enroll(b"b", &registration)), Outcome::Registered { at, existed: true });
    let stranger = Registration { idempotency: None, ..*registration };
    assert_eq!(w.run(enroll(b"c", &stranger)), Outcome::Refused(Refusal::Exists));
    assert_eq!(keys(&w).as_deref(), Some(&b"a"[..]));
    let change = |keys: &[u8]| Command::ChangeSecret { at, secret_hash: [2; 32], proof_keys: keys.into() };
    assert_eq!(w.run(change(b"d")), Outcome::Done);
    assert_eq!(keys(&w).as_deref(), Some(&b"d"[..]));
    assert_eq!(
        (w.run(change(b"")), keys(&w)),
        (Outcome::Done, None),
        "what proved the old secret is no good"
    );
    w.run(change(b"e"));
    w.run(Command::DeleteDevice { at, now: w.now });
    assert_eq!(w.run(change(b"f")), Outcome::Refused(Refusal::NoSuchDevice));
    assert!(w.state.proof_keys.is_empty());
}

#[test]
fn a_retained_message_goes_when_its_life_is_over_and_its_content_is_released() {
    let mut w = World::new(0);
    let content = Some(Arc::new(Content { payload: vec![0; 7].into(), ..Content::default() }));
    for (topic, expires_at) in [("short", w.now + 10), ("long", UnixMillis::MAX)] {
        let message = Some(RetainedMessage { qos: 1, expires_at, room: None, content: content.clone() });
        w.run(Command::Retain { app: APP, topic: topic.into(), message });
    }
    assert_eq!(w.state.retained(APP, "#", 9, w.now).len(), 2);
    w.run(Command::Expire { now: w.now + 10, limit: 100, history_before: 0, history_max: 100 });
    assert_eq!((w.state.retained_count(APP), w.effects.released.len()), (1, 1));
}

#[derive(Clone, Debug)]
enum Act {
    Send { devices: Vec<u32>, cast: bool, key: Option<u8>, priority: u8, tracked: bool },
    Step { device: u32, message: usize, step: usize },
    Forward { device: u32, message: usize, road: bool },
    Cancel(usize),
    Delete(u32),
    Pass(u64),
    Reload,
}

fn act() -> impl Strategy<Value = Act> {
    let devices = proptest::collection::vec(0..6u32, 1..5);
    let send = (devices, any::<bool>(), proptest::option::of(0..2u8), 0..3u8, any::<bool>());
    prop_oneof![
        6 => send.prop_map(|(devices, cast, key, priority, tracked)| Act::Send { devices, cast, key, priority, tracked }),
        8 => (0..6u32, 0..40usize, 0..Step::ALL.len()).prop_map(|(device, message, step)| Act::Step { device, message, step }),
        4 => (0..6u32, 0..40usize, any::<bool>()).prop_map(|(device, message, road)| Act::Forward { device, message, road }),
        1 => (0..40usize).prop_map(Act::Cancel),
        1 => (0..6u32).prop_map(Act::Delete),
        2 => (1..HOUR).prop_map(Act::Pass),
        1 => Just(Act::Reload),
    ]
}

fn perform(w: &mut World, sent: &mut Vec<Acceptance>, act: Act) {
    match act {
        Act::Send { mut devices, cast, key, priority, tracked } => {
            devices.sort_unstable();
            devices.dedup();
            let accepted = w.send(|m| {
                m.targets = if cast { broadcast(&devices) } else { direct(&devices) };
                m.collapse_key = key.map(|k| format!("k{k}"));
                m.priority = [Priority::Low, Priority::Normal, Priority::High][usize::from(priority)];
                m.tracked = tracked || cast;
            });
            sent.push(accepted);
        }
        Act::Step { device, message, step } => {
            if let Some(accepted) = sent.get(message) {
                w.step(device, Which::Seq(accepted.seq), Step::ALL[step]);
            }
        }
        Act::Forward { device, message, road } => {
            if let Some(accepted) = sent.get(message) {
                let deliveries = vec![(DeviceNo(device), accepted.seq)];
                let road = if road { "a" } else { "b" }.into();
                w.run(Command::Forward(Box::new(Forward { app: APP, road, deliveries, now: w.now })));
            }
        }
        Act::Cancel(message) => {
            if let Some(id) = sent.get(message).map(|a| a.id) {
                w.run(Command::Cancel { app: APP, message: id, now: w.now });
            }
        }
        Act::Delete(device) => {
            w.run(Command::DeleteDevice { at: DeviceRef { app: APP, device: DeviceNo(device) }, now: w.now });
        }
        Act::Pass(ms) => {
            w.now += ms;
            w.run(Command::Expire { now: w.now, limit: 100, history_before: 0, history_max: 1_000 });
        }
        Act::Reload => {
            w.state = restarted(&w.state);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Conservation (P1), and: a report counts every targeted device exactly once.
    #[test]
    fn whatever_happens_every_delivery_is_open_or_ended_in_one_way(acts in proptest::collection::vec(act(), 1..60)) {
        let mut w = World::new(6);
        let mut sent = Vec::new();
        for act in acts {
            perform(&mut w, &mut sent, act);
            prop_assert_eq!(w.gap(), 0);
            for accepted in &sent {
                if let Some(view) = w.state.message(APP, accepted.id) {
                    prop_assert_eq!(view.now.iter().sum::<u64>(), view.targeted);
                    prop_assert_eq!(view.targeted, accepted.targeted);
                }
            }
        }
        let (_, open) = w.state.open_counts();
        let in_inboxes: usize = (0..6).map(|d| w.state.device(DeviceRef { app: APP, device: DeviceNo(d) }).map_or(0, |v| v.inbox_len)).sum();
        prop_assert_eq!(open as usize, in_inboxes);
        for (i, event) in w.effects.events.iter().enumerate() {
            prop_assert_eq!(event.position, i as u64 + 1);
        }
    }
}
