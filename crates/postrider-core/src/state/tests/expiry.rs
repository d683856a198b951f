//! What is due ends in bounded commands, and reports are kept by when their messages ended.

use super::*;

fn expire(now: UnixMillis, limit: u32) -> Command {
    let keep = 30 * 24 * HOUR;
    Command::Expire { now, limit, history_before: now.saturating_sub(keep), history_max: 1_000_000 }
}

fn more(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Expired { more, .. } => *more,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_ends_so_many_deliveries_and_says_that_there_are_more() {
    let mut w = World::new(4);
    for _ in 0..3 {
        w.send(|m| m.targets = direct(&[0, 1, 2]));
    }
    w.send(|m| m.targets = broadcast(&[0, 1, 2, 3]));
    let due = w.now + HOUR;
    let first = w.run(expire(due, 4));
    assert_eq!(first, Outcome::Expired { messages: 2, sessions: vec![], handed_on: vec![], more: true });
    let second = w.run(expire(due, 4));
    assert_eq!(second, Outcome::Expired { messages: 2, sessions: vec![], handed_on: vec![], more: false });
    assert_eq!(w.gap(), 0);
}

#[test]
fn sessions_end_in_bounded_commands_too() {
    let mut w = World::new(5);
    for no in 0..5 {
        let at = DeviceRef { app: APP, device: DeviceNo(no) };
        w.run(Command::OpenSession { at, expiry_secs: 1, fresh: false, now: w.now });
        w.run(Command::LeaveSession { at, expiry_secs: 1, now: w.now });
    }
    let mut ended = Vec::new();
    loop {
        let outcome = w.run(expire(w.now + 1_000, 2));
        let Outcome::Expired { sessions, more, .. } = outcome else { panic!() };
        assert!(sessions.len() <= 2);
        ended.extend(sessions);
        if !more {
            break;
        }
    }
    assert_eq!(ended.len(), 5);
}

/// A message with a life of weeks ends long after it was accepted; its report is kept from then on.
#[test]
fn a_report_is_kept_by_the_end_of_its_message() {
    let mut w = World::new(2);
    const DAY: u64 = 24 * HOUR;
    let start = w.now;
    let expires = w.send(|m| m.expires_at = start + 30 * DAY);
    let cast = w.send(|m| {
        m.targets = broadcast(&[0, 1]);
        m.expires_at = start + 30 * DAY;
    });
    w.now = start + 20 * DAY;
    assert_eq!(w.step(0, Which::Id(cast.id), Step::Delivered), 1);
    assert_eq!(w.step(1, Which::Id(cast.id), Step::Delivered), 1);
    let kept = |w: &World| [expires.id, cast.id].map(|id| w.state.message(APP, id).is_some());
    w.run(expire(start + 30 * DAY, 100));
    assert_eq!(w.step_of(expires.id, 0).0, Step::Expired, "not gone with the command that ended it");
    // The same after a start, which finds out anew when they ended.
    w.state = restarted(&w.state);
    w.run(expire(start + 49 * DAY, 100));
    assert_eq!(kept(&w), [true, true]);
    w.run(expire(start + 50 * DAY + 1, 100));
    assert_eq!(kept(&w), [true, false]);
    w.run(expire(start + 60 * DAY + 1, 100));
    assert_eq!(kept(&w), [false, false]);
}

#[test]
fn old_reports_and_request_keys_go_in_bounded_commands() {
    let mut w = World::new(1);
    for key in 0..7 {
        let sent = w.send(|m| {
            m.idempotency = Some(Idempotency { key, request: 1, keep_until: m.accepted_at, keys_max: 0 })
        });
        assert_eq!(w.step(0, Which::Id(sent.id), Step::Delivered), 1);
    }
    let far = w.now + 40 * 24 * HOUR;
    let commands = (0..10).take_while(|_| more(&w.run(expire(far, 3)))).count();
    assert_eq!(commands, 2);
    assert!(w.state.messages(APP, None, 10).is_empty() && w.state.request_of(APP, 6).is_none());
}

/// Each is found by its end, however many others there are, and whatever was put in its place.
#[test]
fn retained_messages_go_one_by_one_as_they_end() {
    let mut w = World::new(0);
    let retain = |w: &mut World, topic: &str, expires_at| {
        let message = RetainedMessage { qos: 0, expires_at, room: None, content: None };
        w.run(Command::Retain { app: APP, topic: topic.into(), message: Some(message) });
    };
    let start = w.now;
    for n in 0..10 {
        retain(&mut w, &format!("t/{n}"), start + 1_000 * (n + 1));
    }
    retain(&mut w, "t/0", start + 9_500);
    retain(&mut w, "t/1", UnixMillis::MAX);
    w.run(Command::Retain { app: APP, topic: "t/2".into(), message: None });
    // Those of their own second, and the two that end later or never.
    for (secs, left) in [(3, 7 + 2), (6, 4 + 2), (9, 1 + 2), (10, 1)] {
        w.run(expire(start + secs * 1_000, 1));
        assert_eq!(w.state.retained_count(APP), left, "after {secs} s");
        w.state = restarted(&w.state);
    }
}
