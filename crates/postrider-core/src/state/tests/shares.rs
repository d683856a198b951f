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
    w.register_in(OTHER, "d0");
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

/// What is decided before the queue does not know what waits in it: these all come in one batch.
#[test]
fn limits_that_a_burst_has_passed_in_the_queue_hold_when_it_is_executed() {
    let mut w = World::new(2);
    let room = Room { messages_max: 3, bytes_max: 1_000, broadcasts_max: 1 };
    let burst = |w: &mut World, room: Room, targets: &dyn Fn() -> Targets| {
        let all: Vec<NewMessage> =
            (0..6).map(|_| NewMessage { room: Some(room), ..w.message(targets()) }).collect();
        let outcomes = all.into_iter().map(|message| w.run(Command::Accept(Box::new(message))));
        outcomes
            .map(|outcome| match outcome {
                Outcome::Accepted(_) => None,
                Outcome::Refused(refusal) => Some(refusal),
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
    };
    let taken_then = |taken: usize, refusal| [vec![None; taken], vec![Some(refusal); 6 - taken]].concat();
    let to_all = || broadcast(&[0, 1]);
    assert_eq!(burst(&mut w, room, &to_all), taken_then(1, Refusal::TooManyBroadcasts));
    assert_eq!(burst(&mut w, room, &|| direct(&[0])), taken_then(2, Refusal::AppFull));
    // Ten bytes each, and three are open.
    let room = Room { messages_max: 100, bytes_max: 45, broadcasts_max: 100 };
    assert_eq!(burst(&mut w, room, &|| direct(&[1])), taken_then(2, Refusal::AppFull));
    assert_eq!((w.state.kept(APP), w.gap()), ((5, 50), 0));
}

#[test]
fn a_request_that_was_taken_is_answered_again_although_the_app_is_full_now() {
    let mut w = World::new(1);
    let change = |m: &mut NewMessage| {
        m.room = Some(Room { messages_max: 1, bytes_max: 1_000, broadcasts_max: 1 });
        m.idempotency = Some(Idempotency { key: 1, request: 1, keep_until: u64::MAX, keys_max: 0 });
    };
    let first = w.send(change);
    let again = w.send(change);
    assert_eq!((again.id, again.repeated), (first.id, true));
}

#[test]
fn quotas_of_devices_keys_and_retained_messages_hold_when_they_are_executed() {
    let mut w = World::new(0);
    let quota = Some(DeviceQuota { all_max: 3, own_max: 2 });
    let register = |w: &mut World, id: &str, origin, secret_hash| {
        let registration = Registration {
            app: APP,
            id: id.into(),
            secret_hash,
            profile: Profile::default(),
            now: w.now,
            idempotency: None,
            origin,
            quota,
        };
        match w.run(Command::Register(Box::new(registration))) {
            Outcome::Registered { .. } => None,
            Outcome::Refused(refusal) => Some(refusal),
            other => panic!("{other:?}"),
        }
    };
    let secret = Some([1; 32]);
    let own = ["a", "b", "c"].map(|id| register(&mut w, id, Some(Origin::RegisterKey), secret));
    assert_eq!(own, [None, None, Some(Refusal::TooManyOwnDevices)]);
    let others = ["d", "e"].map(|id| register(&mut w, id, Some(Origin::AppServer), secret));
    assert_eq!(others, [None, Some(Refusal::TooManyDevices)]);
    // Sessions of anonymous clients are counted with their own kind.
    let anonymous = ["f", "g", "h"].map(|id| register(&mut w, id, None, None));
    assert_eq!(anonymous, [None, None, Some(Refusal::TooManyOwnDevices)]);

    let keys = [1, 2, 3].map(|n| {
        let key = StoredKey {
            id: n.to_string(),
            name: String::new(),
            scope: KeyScope::App,
            hash: [n; 32],
            created_at: w.now,
            revoked_at: None,
        };
        w.run(Command::AddKey { app: Some(APP), key, keys_max: 2 })
    });
    assert_eq!(keys, [Outcome::Done, Outcome::Done, Outcome::Refused(Refusal::TooManyKeys)]);

    let mut retain = |topic: &str, bytes: usize, (messages_max, bytes_max)| {
        let content = Content { payload: vec![0; bytes].into(), ..Content::default() };
        let message = Some(RetainedMessage {
            qos: 1,
            expires_at: UnixMillis::MAX,
            room: Some(RetainedRoom { messages_max, bytes_max }),
            content: Some(Arc::new(content)),
        });
        w.run(Command::Retain { app: APP, topic: topic.into(), message })
    };
    let full = Outcome::Refused(Refusal::RetainedFull);
    assert_eq!([retain("a", 10, (1, 100)), retain("b", 10, (1, 100))], [Outcome::Done, full.clone()]);
    // In the place of another, where there is room for both.
    assert_eq!([retain("a", 90, (1, 100)), retain("a", 20, (1, 100))], [Outcome::Done, full]);
}
