//! What lives is what its commands made of it: executed again from their stored form, in whatever
//! pieces, they give the same state.

use super::*;
use crate::stored;

/// What is known beside the state, and sessions: things that must leave no trace without a command.
#[derive(Clone, Debug)]
enum Beside {
    Rule(Act),
    Sent {
        device: u32,
        message: usize,
    },
    SentAndAcked {
        device: u32,
        message: usize,
    },
    Seen(u32),
    Session {
        device: u32,
        fresh: bool,
    },
    Leave(u32),
    /// An image is taken here, and replay begins anew from it.
    Checkpoint,
}

fn beside() -> impl Strategy<Value = Beside> {
    prop_oneof![
        12 => act().prop_map(Beside::Rule),
        4 => (0..6u32, 0..40usize).prop_map(|(device, message)| Beside::Sent { device, message }),
        4 => (0..6u32, 0..40usize)
            .prop_map(|(device, message)| Beside::SentAndAcked { device, message }),
        2 => (0..6u32).prop_map(Beside::Seen),
        1 => (0..6u32, any::<bool>()).prop_map(|(device, fresh)| Beside::Session { device, fresh }),
        1 => (0..6u32).prop_map(Beside::Leave),
        1 => Just(Beside::Checkpoint),
    ]
}

fn at(device: u32) -> DeviceRef {
    DeviceRef { app: APP, device: DeviceNo(device) }
}

fn go_on(w: &mut World, sent: &mut Vec<Acceptance>, what: Beside) {
    let now = w.now;
    match what {
        Beside::Rule(act) => perform(w, sent, act),
        Beside::Sent { device, message } => {
            if let Some(accepted) = sent.get(message) {
                w.state.sent(APP, &[(DeviceNo(device), accepted.seq)], now);
            }
        }
        Beside::SentAndAcked { device, message } => {
            let Some(accepted) = sent.get(message) else { return };
            w.state.sent(APP, &[(DeviceNo(device), accepted.seq)], now);
            let progress = Progress {
                device: DeviceNo(device),
                which: Which::Seq(accepted.seq),
                step: Step::Delivered,
                reason: Reason::None,
                sent_at: Some(now),
            };
            w.run(Command::Progress { app: APP, steps: vec![progress], now: now + 5 });
        }
        Beside::Seen(device) => w.state.seen(at(device), now),
        Beside::Session { device, fresh } => {
            _ = w.run(Command::OpenSession { at: at(device), expiry_secs: 60, fresh, now });
        }
        Beside::Leave(device) => {
            _ = w.run(Command::LeaveSession { at: at(device), expiry_secs: 60, now });
        }
        Beside::Checkpoint => {
            let mut image = Vec::new();
            stored::write_state(&w.state, &mut image).unwrap();
            (w.image, w.journal) = (image, Vec::new());
        }
    }
    let seq = w.state.seq();
    w.state.settle(seq);
}

fn replayed(w: &World) -> State {
    let (mut state, _) = match &w.image[..] {
        [] => (State::default(), Volatile::default()),
        image => {
            let mut live = stored::read_state(3, image).unwrap();
            live.rebuild();
            live.into_parts()
        }
    };
    let mut effects = Effects::default();
    for (command, blob) in &w.journal {
        state.execute(&stored::get_command(command).unwrap(), *blob, &mut effects);
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_replay_gives_the_state_that_lives_whatever_is_known_beside_it(
        acts in proptest::collection::vec(beside(), 1..80),
    ) {
        let mut w = World::new(6);
        let mut sent = Vec::new();
        for act in acts {
            go_on(&mut w, &mut sent, act);
        }
        prop_assert_eq!(w.state.digest(), replayed(&w).digest());
        prop_assert_eq!(w.state.digest(), restarted(&w.state).digest());
    }
}

#[test]
fn what_was_sent_and_seen_is_shown_and_comes_back_with_a_checkpoint() {
    let mut w = World::new(2);
    let (direct_one, cast) = (w.send(|_| {}), w.send(|m| m.targets = broadcast(&[0, 1])));
    let before = w.state.digest();
    w.state.sent(APP, &[(DeviceNo(0), direct_one.seq), (DeviceNo(1), cast.seq)], w.now + 7);
    w.state.sent(APP, &[(DeviceNo(1), cast.seq)], w.now + 9);
    w.state.seen(at(1), w.now + 8);
    w.state.seen(at(1), w.now + 3);
    assert_eq!(w.state.digest(), before, "the state itself knows nothing of it");
    for state in [&w.state, &restarted(&w.state)] {
        assert_eq!(state.delivery(APP, direct_one.id, DeviceNo(0)).unwrap().step, Step::Sent);
        let view = state.delivery(APP, cast.id, DeviceNo(1)).unwrap();
        let last = view.timeline.last().unwrap();
        assert_eq!((last.step, last.at), (Step::Sent, w.now + 7));
        assert_eq!(state.message(APP, cast.id).unwrap().now[Step::Sent as usize], 1);
        assert_eq!(state.deliveries(APP, cast.id, Some(Step::Sent), None, 9).len(), 1);
        assert_eq!(state.device(at(1)).unwrap().last_seen_at, Some(w.now + 8));
        let (seen, _) = state.devices_seen(APP, &crate::port::DeviceFilter::default(), None, 9);
        assert_eq!(seen, [(DeviceNo(0), w.now), (DeviceNo(1), w.now + 8)]);
        let pending = state.pending(at(1), Position::default(), 9, w.now, Seq::MAX);
        assert!(pending.iter().all(|one| one.sent_before));
    }
}

#[test]
fn marks_go_when_they_are_of_no_use() {
    let mut w = World::new(2);
    let plain = w.send(|m| m.tracked = false);
    let told = w.send(|m| m.targets = broadcast(&[0, 1]));
    let both = [(DeviceNo(0), plain.seq), (DeviceNo(0), told.seq), (DeviceNo(1), told.seq)];
    w.state.sent(APP, &both, w.now);
    let marks = |w: &World| -> usize {
        let volatile = w.state.volatile();
        volatile.sent_seqs().into_iter().map(|seq| volatile.sent_from(seq, 0, 99).len()).sum()
    };
    assert_eq!(marks(&w), 3);
    w.step(0, Which::Seq(plain.seq), Step::Delivered);
    w.state.settle(plain.seq);
    assert_eq!(marks(&w), 3, "it may be written again until its end is on stable storage");
    w.state.settle(w.state.seq());
    assert_eq!(marks(&w), 2);
    // The report has no row of it: only the mark knows that it was sent.
    let end = w.now + HOUR;
    w.run(Command::Expire { now: end, limit: 9, history_before: 0, history_max: 9 });
    w.state.settle(w.state.seq());
    let steps: Vec<Step> = w
        .state
        .delivery(APP, told.id, DeviceNo(1))
        .unwrap()
        .timeline
        .iter()
        .map(|moment| moment.step)
        .collect();
    assert_eq!(steps, [Step::Accepted, Step::Queued, Step::Sent, Step::Expired]);
    w.run(Command::Expire { now: end, limit: 9, history_before: end + 1, history_max: 9 });
    w.state.settle(w.state.seq());
    assert_eq!((w.state.message(APP, told.id), marks(&w)), (None, 0));
    w.state.sent(APP, &[(DeviceNo(0), plain.seq)], w.now);
    assert_eq!(marks(&w), 0, "what is over is not marked");
}
