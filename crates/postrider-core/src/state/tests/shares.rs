//! What one app, or one device, takes is bounded for itself, and never at the cost of another.

use super::*;

const OTHER: AppNo = AppNo(1);

/// A second app with one device.
fn with_neighbour() -> World {
    let mut w = World::new(1);
    assert_eq!(
        w.run(Command::CreateApp { id: "other".into(), name: "Other".into(), at: w.now }),
        Outcome::AppCreated(OTHER)
    );
    w.run(Command::Register(Box::new(Registration {
        app: OTHER,
        id: "d0".into(),
        secret_hash: Some([1; 32]),
        profile: Profile::default(),
        now: w.now,
        idempotency: None,
        origin: None,
    })));
    w
}

#[test]
fn reports_of_a_busy_app_do_not_push_out_those_of_another() {
    let mut w = with_neighbour();
    let delivered = |w: &mut World, app| {
        let sent = w.send(|m| m.app = app);
        let progress = Progress {
            device: DeviceNo(0),
            which: Which::Id(sent.id),
            step: Step::Delivered,
            reason: Reason::None,
            sent_at: None,
        };
        w.run(Command::Progress { app, steps: vec![progress], now: w.now });
        sent.id
    };
    let quiet = delivered(&mut w, OTHER);
    let busy: Vec<MessageId> = (0..10).map(|_| delivered(&mut w, APP)).collect();
    w.state = restarted(&w.state);
    w.run(Command::Expire { now: w.now, limit: 100, history_before: 0, history_max: 4 });
    assert!(w.state.message(OTHER, quiet).is_some());
    let kept: Vec<bool> = busy.iter().map(|id| w.state.message(APP, *id).is_some()).collect();
    assert_eq!(kept, [[false; 6].as_slice(), &[true; 4]].concat());
}

#[test]
fn an_app_keeps_so_many_request_keys_and_the_oldest_go() {
    let mut w = World::new(1);
    let request = |key| Some(Idempotency { key, request: 1, keep_until: u64::MAX, keys_max: 3 });
    for key in 0..5 {
        assert!(!w.send(|m| m.idempotency = request(key)).repeated);
    }
    assert!(w.state.request_of(APP, 1).is_none() && w.state.request_of(APP, 2).is_some());
    assert!(w.send(|m| m.idempotency = request(4)).repeated);
}

#[test]
fn what_open_messages_take_is_counted_as_they_come_and_go() {
    let mut w = World::new(3);
    let one = w.send(|_| {});
    let cast = w.send(|m| m.targets = broadcast(&[0, 1, 2]));
    w.send(|m| m.targets = direct(&[9]));
    assert_eq!(w.state.kept(APP), (2, 20));
    assert_eq!(restarted(&w.state).kept(APP), (2, 20));
    w.step(0, Which::Id(one.id), Step::Delivered);
    w.step(0, Which::Id(one.id), Step::Displayed);
    assert_eq!(w.state.kept(APP), (1, 10));
    w.run(Command::Cancel { app: APP, message: cast.id, now: w.now });
    assert_eq!((w.state.kept(APP), w.gap()), ((0, 0), 0));
}

/// The inbox of the tests holds three.
#[test]
fn messages_of_other_devices_never_take_the_place_of_pushes() {
    let mut w = World::new(1);
    let peer = |m: &mut NewMessage| (m.peer_inbox_max, m.reject_when_full) = (2, true);
    let from_peers = [w.send(peer), w.send(peer)];
    let third = w.message(direct(&[0]));
    let third = NewMessage { peer_inbox_max: 2, reject_when_full: true, ..third };
    assert_eq!(w.run(Command::Accept(Box::new(third))), Outcome::Refused(Refusal::InboxFull));
    // Also one that asks not to evict: what gives way is no push.
    let pushes: Vec<Acceptance> = (0..3).map(|_| w.send(|m| m.reject_when_full = true)).collect();
    assert_eq!(w.pending(0), pushes.iter().map(|p| p.seq).collect::<Vec<_>>());
    assert_eq!(w.step_of(from_peers[0].id, 0), (Step::Evicted, Reason::QueueFull));
    let late = NewMessage { peer_inbox_max: 2, reject_when_full: true, ..w.message(direct(&[0])) };
    assert_eq!(w.run(Command::Accept(Box::new(late))), Outcome::Refused(Refusal::InboxFull));
    assert_eq!(w.gap(), 0);
}

#[test]
fn whether_a_device_hears_others_outlives_a_restart() {
    let mut w = World::new(1);
    let at = DeviceRef { app: APP, device: DeviceNo(0) };
    assert!(!w.state.hears_peers(at));
    assert_eq!(w.run(Command::HearPeers { at, hears: true }), Outcome::Done);
    assert!(restarted(&w.state).hears_peers(at));
}
