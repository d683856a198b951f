//! What a provider took: it ends nothing, until the device or the clock does.

use super::*;

impl World {
    fn forward(&mut self, road: &str, deliveries: &[(u32, Seq)]) -> usize {
        let deliveries = deliveries.iter().map(|(device, seq)| (DeviceNo(*device), *seq)).collect();
        let forward = Forward { app: APP, road: road.into(), deliveries, now: self.now };
        match self.run(Command::Forward(Box::new(forward))) {
            Outcome::Progressed { taken } => taken,
            other => panic!("{other:?}"),
        }
    }

    fn expire(&mut self, now: UnixMillis) {
        self.now = now;
        self.run(Command::Expire { now, limit: 100, history_before: 0, history_max: 100 });
    }

    fn roads(&self, id: MessageId, device: u32) -> Vec<(Step, Option<String>)> {
        let view = self.state.delivery(APP, id, DeviceNo(device)).unwrap();
        let told = view.timeline.into_iter().skip(2);
        told.map(|moment| (moment.step, moment.road.map(|road| road.to_string()))).collect()
    }
}

#[test]
fn what_a_provider_took_stays_open_and_a_late_acknowledgement_ends_it_delivered() {
    let mut w = World::new(2);
    for targets in [direct(&[0, 1]), broadcast(&[0, 1])] {
        let a = w.send(|m| m.targets = targets);
        assert_eq!(w.forward("fcm", &[(0, a.seq)]), 1);
        assert_eq!((w.step_of(a.id, 0), w.pending(0)), ((Step::Forwarded, Reason::None), vec![a.seq]));
        let view = w.state.message(APP, a.id).unwrap();
        assert_eq!((view.now[Step::Forwarded as usize], view.now[Step::Queued as usize]), (1, 1));
        assert_eq!(w.gap(), 0);
        w.now += 60_000;
        assert_eq!(w.step(0, Which::Seq(a.seq), Step::Delivered), 1);
        assert_eq!((w.step_of(a.id, 0).0, w.pending(0)), (Step::Delivered, Vec::new()));
        assert_eq!(w.forward("sms", &[(0, a.seq)]), 0, "what was planned for it goes no more");
        let fcm = Some("fcm".to_owned());
        assert_eq!(w.roads(a.id, 0), [(Step::Forwarded, fcm), (Step::Delivered, None)]);
        assert_eq!((w.gap(), w.step(1, Which::Seq(a.seq), Step::Delivered)), (0, 1));
    }
}

#[test]
fn at_its_expiry_what_was_forwarded_is_handed_over_and_the_rest_expires() {
    let mut w = World::new(4);
    let few = w.send(|m| m.targets = direct(&[0, 1, 2]));
    let all = w.send(|m| m.targets = broadcast(&[0, 1, 2, 3]));
    w.forward("fcm", &[(1, few.seq), (1, all.seq), (2, all.seq)]);
    w.step(2, Which::Seq(all.seq), Step::Delivered);
    w.effects.events.clear();
    w.expire(w.now + HOUR);
    let (expired, over) = ((Step::Expired, Reason::Ttl), (Step::HandedOver, Reason::Ttl));
    let ends = |w: &World, id| (0..3).map(|device| w.step_of(id, device)).collect::<Vec<_>>();
    assert_eq!(ends(&w, few.id), [expired, over, expired]);
    assert_eq!(ends(&w, all.id), [expired, over, (Step::Delivered, Reason::None)]);
    assert_eq!(w.effects.events.iter().map(|e| e.count).sum::<u64>(), 6);
    // Nobody undoes an end: the device came too late.
    assert_eq!(w.step(1, Which::Seq(all.seq), Step::Delivered), 0);
    let counters = w.state.app(APP).unwrap().counters;
    assert_eq!(counters.ended[Step::HandedOver as usize], 2);
    assert_eq!(counters.ended[Step::Forwarded as usize], 0);
    assert_eq!((w.gap(), w.state.open_counts()), (0, (0, 0)));
}

#[test]
fn a_road_is_told_once_and_two_roads_are_told_apart_also_after_a_restart() {
    let mut w = World::new(1);
    let a = w.send(|m| m.targets = broadcast(&[0]));
    let plain = w.send(|m| m.tracked = false);
    assert_eq!(w.forward("fcm", &[(0, a.seq), (0, a.seq), (7, a.seq), (0, plain.seq)]), 1);
    w.now += 1;
    assert_eq!((w.forward("fcm", &[(0, a.seq)]), w.forward("sms", &[(0, a.seq)])), (0, 1));
    let told = [Some("fcm".to_owned()), Some("sms".to_owned())];
    let roads: Vec<_> = w.effects.events.iter().filter(|e| e.step == Step::Forwarded).collect();
    assert_eq!(roads.iter().map(|e| e.road.as_deref()).collect::<Vec<_>>(), [Some("fcm"), Some("sms")]);
    w.state = restarted(&w.state);
    assert_eq!(w.roads(a.id, 0), told.map(|road| (Step::Forwarded, road)));
    w.expire(w.now + HOUR);
    assert_eq!(w.step_of(a.id, 0), (Step::HandedOver, Reason::Ttl));
}

#[test]
fn other_ends_stay_what_they_are() {
    let mut w = World::new(3);
    let recalled = w.send(|m| m.targets = broadcast(&[0, 1, 2]));
    let erased = w.send(|m| m.targets = direct(&[1]));
    w.forward("fcm", &[(0, recalled.seq), (1, erased.seq)]);
    w.run(Command::Cancel { app: APP, message: recalled.id, now: w.now });
    w.run(Command::DeleteDevice { at: DeviceRef { app: APP, device: DeviceNo(1) }, now: w.now });
    assert_eq!(w.step_of(recalled.id, 0), (Step::Cancelled, Reason::Recalled));
    assert_eq!(w.step_of(erased.id, 1), (Step::Erased, Reason::Unregistered));
    assert_eq!(w.gap(), 0);
}
