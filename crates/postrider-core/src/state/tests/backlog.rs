//! Collapse keys and drains, compared with a model that looks at everything.

use super::*;
use std::collections::BTreeMap;

/// A message of the model.
#[derive(Clone, Debug)]
struct Sent {
    seq: Seq,
    id: MessageId,
    urgent: bool,
    key: Option<u8>,
    open: Vec<u32>,
}

/// All messages in order; every question goes through all of them.
#[derive(Default)]
struct Model {
    sent: Vec<Sent>,
    superseded: BTreeMap<(Seq, u32), ()>,
}

impl Model {
    fn send(&mut self, new: Sent, backlog: Backlog) {
        self.sent.push(new.clone());
        let (Some(_), Some(keep)) = (new.key, backlog.keep()) else { return };
        for device in &new.open {
            let with_key = |m: &&mut Sent| m.key == new.key && m.open.contains(device);
            let pending: Vec<&mut Sent> = self.sent.iter_mut().filter(with_key).collect();
            let surplus = pending.len().saturating_sub(keep);
            for old in pending.into_iter().take(surplus) {
                old.open.retain(|d| d != device);
                self.superseded.insert((old.seq, *device), ());
            }
        }
    }

    fn end(&mut self, seq: Seq, device: u32) {
        for message in self.sent.iter_mut().filter(|m| m.seq == seq) {
            message.open.retain(|d| *d != device);
        }
    }

    /// Urgent ones first, each lane in order.
    fn drain(&self, device: u32, position: Position) -> Vec<Seq> {
        let lane = |urgent: bool, after: Seq| {
            let mine = move |m: &&Sent| m.urgent == urgent && m.seq > after && m.open.contains(&device);
            self.sent.iter().filter(mine).map(|m| m.seq)
        };
        lane(true, position.urgent).chain(lane(false, position.normal)).collect()
    }
}

const DEVICES: u32 = 12;

#[derive(Clone, Debug)]
enum Act {
    Send { to: Vec<u32>, broadcast: bool, urgent: bool, key: Option<u8>, backlog: Backlog },
    Ack { device: u32, nth: usize },
    Cancel { nth: usize },
    Delete { device: u32 },
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let backlog = prop_oneof![
        4 => Just(Backlog::Latest),
        2 => Just(Backlog::All),
        3 => (1u16..5).prop_map(Backlog::Last),
    ];
    let to = proptest::collection::btree_set(0..DEVICES, 1..8);
    let send = (to, any::<bool>(), any::<bool>(), proptest::option::weighted(0.8, 0u8..2), backlog);
    let send = send.prop_map(|(to, broadcast, urgent, key, backlog)| Act::Send {
        to: to.into_iter().collect(),
        broadcast,
        urgent,
        key,
        backlog: if key.is_some() { backlog } else { Backlog::All },
    });
    prop_oneof![
        12 => send,
        8 => (0..DEVICES, 0usize..6).prop_map(|(device, nth)| Act::Ack { device, nth }),
        1 => (0usize..200).prop_map(|nth| Act::Cancel { nth }),
        1 => (0..DEVICES).prop_map(|device| Act::Delete { device }),
        1 => Just(Act::Restart),
    ]
}

struct Both {
    world: World,
    model: Model,
    deleted: Vec<u32>,
}

impl Both {
    fn act(&mut self, act: Act) {
        match act {
            Act::Send { mut to, broadcast: as_broadcast, urgent, key, backlog } => {
                to.retain(|device| !self.deleted.contains(device));
                let accepted = self.world.send(|m| {
                    m.targets = if as_broadcast { broadcast(&to) } else { direct(&to) };
                    m.priority = if urgent { Priority::High } else { Priority::Normal };
                    m.collapse_key = key.map(|key| format!("key {key}"));
                    m.backlog = backlog;
                    m.inbox_max = 10_000;
                    m.inbox_bytes_max = 1_000_000;
                });
                let (seq, id) = (accepted.seq, accepted.id);
                self.model.send(Sent { seq, id, urgent, key, open: to }, backlog);
            }
            Act::Ack { device, nth } => {
                let Some(seq) = self.world.pending(device).get(nth).copied() else { return };
                assert_eq!(self.world.step(device, Which::Seq(seq), Step::Delivered), 1);
                self.model.end(seq, device);
            }
            Act::Cancel { nth } => {
                let Some(sent) = self.model.sent.get_mut(nth) else { return };
                sent.open.clear();
                let message = sent.id;
                self.world.run(Command::Cancel { app: APP, message, now: self.world.now });
            }
            Act::Delete { device } => {
                let at = DeviceRef { app: APP, device: DeviceNo(device) };
                self.world.run(Command::DeleteDevice { at, now: self.world.now });
                self.model.sent.iter_mut().for_each(|m| m.open.retain(|d| *d != device));
                self.deleted.push(device);
            }
            Act::Restart => self.world.state = restarted(&self.world.state),
        }
    }

    fn check(&self, after: usize) {
        let seq_of = |place: usize| self.model.sent.get(place).map_or(0, |m| m.seq);
        let position = Position { urgent: seq_of(after), normal: seq_of(after / 2) };
        for device in (0..DEVICES).filter(|device| !self.deleted.contains(device)) {
            let at = DeviceRef { app: APP, device: DeviceNo(device) };
            for position in [Position::default(), position] {
                let found = self.world.state.pending(at, position, 1_000, self.world.now, Seq::MAX);
                let found: Vec<Seq> = found.into_iter().map(|p| p.seq).collect();
                assert_eq!(found, self.model.drain(device, position), "device {device}, {position:?}");
            }
            let view = self.world.state.device(at).expect("registered");
            assert_eq!(view.inbox_len, self.model.drain(device, Position::default()).len());
        }
        for ((seq, device), ()) in &self.model.superseded {
            let message = self.model.sent.iter().find(|m| m.seq == *seq).expect("sent");
            assert_eq!(self.world.step_of(message.id, *device), (Step::Superseded, Reason::Collapsed));
        }
        assert_eq!(self.world.gap(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_collapses_and_what_a_drain_finds_is_what_the_model_says(
        acts in proptest::collection::vec(act(), 1..220),
        after in 0usize..200,
    ) {
        let mut both = Both { world: World::new(DEVICES), model: Model::default(), deleted: Vec::new() };
        for (n, act) in acts.into_iter().enumerate() {
            both.act(act);
            if n % 8 == 0 {
                both.check(after.min(n));
            }
        }
        both.check(after);
    }
}

/// Hundreds of live broadcasts to overlapping crowds, so that blocks and parts of the index come, thin out and go.
#[test]
fn hundreds_of_live_broadcasts_are_found_for_each_device() {
    let mut both = Both { world: World::new(DEVICES), model: Model::default(), deleted: Vec::new() };
    for n in 0..3_000u32 {
        let to: Vec<u32> = (0..DEVICES).filter(|d| n.wrapping_mul(2_654_435_761) >> d & 3 == 0).collect();
        let key = n.is_multiple_of(5).then_some((n % 3) as u8);
        let backlog = if n.is_multiple_of(10) { Backlog::Last(3) } else { Backlog::All };
        both.act(Act::Send { to, broadcast: true, urgent: n.is_multiple_of(7), key, backlog });
        let device = n % DEVICES;
        (0..n % 3).for_each(|nth| both.act(Act::Ack { device, nth: nth as usize * 40 }));
    }
    both.check(1_500);
    both.act(Act::Restart);
    both.check(1_500);
    for device in 0..DEVICES {
        while !both.world.pending(device).is_empty() {
            both.act(Act::Ack { device, nth: 0 });
        }
    }
    both.check(0);
    assert_eq!(both.world.state.live_broadcasts(APP), 0);
}

#[test]
fn a_shared_key_ends_nothing_of_other_devices_and_all_keeps_all() {
    let mut w = World::new(3);
    let key = |to: Targets, backlog| {
        move |m: &mut NewMessage| {
            (m.targets, m.collapse_key, m.backlog) = (to, Some("unread".into()), backlog);
        }
    };
    let all: Vec<Seq> = (0..3).map(|_| w.send(key(direct(&[0]), Backlog::All)).seq).collect();
    assert_eq!(w.pending(0), all);
    let one = w.send(key(direct(&[1]), Backlog::Latest)).seq;
    assert_eq!((w.pending(0), w.pending(1)), (all.clone(), vec![one]));
    // A broadcast that keeps three: of the first device's four the oldest goes, of the others nothing.
    let cast = w.send(key(broadcast(&[0, 1, 2]), Backlog::Last(3))).seq;
    assert_eq!(w.pending(0), [all[1], all[2], cast]);
    assert_eq!((w.pending(1), w.pending(2)), (vec![one, cast], vec![cast]));
}
