//! Step 5. What devices say of their deliveries becomes steps on the ladder.

use crate::Engine;
use crate::command::*;
use crate::delivery::forward::Road;
use crate::id::*;
use crate::model::*;
use crate::port::*;
use crate::seeded::{self, Bug};
use crate::topics::SessionNo;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// One acknowledgement, or another end, that a connection learned of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    pub session: SessionNo,
    pub seq: Seq,
    pub step: Step,
    pub reason: Reason,
    pub sent_at: Option<UnixMillis>,
}

/// What the app on the device tells of a message by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceReceipt {
    pub message: MessageId,
    pub step: Step,
}

/// What [`Engine::sort_acks`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SortedAcks {
    /// Open in the device's inbox, each once.
    pub open: Vec<Seq>,
    /// Named twice, ended before, of another device, or never given out.
    pub unknown: usize,
}

/// Steps of one command, where many were put off.
const STEPS_PER_COMMAND: usize = 10_000;

/// Told how many of the steps were new and legal, once they are on stable storage.
pub type Taken = Box<dyn FnOnce(Result<usize, StoreError>) + Send>;

/// Who tells of steps. It says how deliveries are named, and what becomes of steps that the store does
/// not take.
pub enum ReceiptSource<'a> {
    /// Connections of this node, many at a time. A device tells them once: where the store has no room
    /// they wait until it has, and nothing is sent again meanwhile.
    Connections(&'a [Ack]),
    /// The server found out that deliveries are over. Nobody will tell again, so they wait as well.
    Server { app: AppNo, ends: Vec<Progress> },
    /// A device that acknowledges by a request, and waits for the answer.
    Request { at: DeviceRef, seqs: &'a [Seq], done: Taken },
    /// The app on the device, of messages by their ids. What only a server may tell is passed over, and so
    /// are deliveries that are not this device's.
    App { at: DeviceRef, receipts: &'a [DeviceReceipt], done: Taken },
    /// A provider took deliveries. Those that have ended meanwhile, or went this road before, are passed
    /// over, and `done` does not count them.
    Provider { app: AppNo, road: &'a Road, deliveries: Vec<(DeviceNo, Seq)>, done: Taken },
}

impl Engine {
    /// The one way in for steps of deliveries. An acknowledgement removes its delivery from the inbox in
    /// the commit that notes it; until then no drain finds it.
    pub fn record_receipts(&self, source: ReceiptSource<'_>) {
        let now = self.clock.now();
        match source {
            ReceiptSource::Connections(acks) => {
                for (app, steps) in self.steps_of(acks) {
                    self.acking.begin(&all_named(app, &steps));
                    self.store_acks(app, steps, now);
                }
            }
            ReceiptSource::Server { app, ends } => {
                self.acking.begin(&all_named(app, &ends));
                self.store_acks(app, ends, now);
            }
            ReceiptSource::Request { at, seqs, done } => {
                let step = |seq: &Seq| delivered(at.device, Which::Seq(*seq));
                let steps: Vec<Progress> = seqs.iter().map(step).collect();
                let acked = all_named(at.app, &steps);
                self.acking.begin(&acked);
                let engine = self.clone();
                let done: Taken = Box::new(move |taken| {
                    engine.acking.end(&acked);
                    done(taken);
                });
                self.submit_steps(Command::Progress { app: at.app, steps, now }, done);
            }
            ReceiptSource::App { at, receipts, done } => {
                let allowed = receipts.iter().filter(|r| r.step == Step::Delivered || r.step.by_app());
                let step = |r: &DeviceReceipt| Progress {
                    step: r.step,
                    ..delivered(at.device, Which::Id(r.message))
                };
                let steps = allowed.map(step).collect();
                self.submit_steps(Command::Progress { app: at.app, steps, now }, done);
            }
            ReceiptSource::Provider { app, road, deliveries, done } => {
                let forward = Forward { app, road: road.name().clone(), deliveries, now };
                self.submit_steps(Command::Forward(Box::new(forward)), done);
            }
        }
    }

    /// What connections learned, by app; those whose session is gone are passed over.
    fn steps_of(&self, acks: &[Ack]) -> BTreeMap<AppNo, Vec<Progress>> {
        let mut by_app: BTreeMap<AppNo, Vec<Progress>> = BTreeMap::new();
        let hub = self.hub();
        for ack in acks {
            let Some((app, device)) = hub.get(ack.session).and_then(|s| Some((s.app, s.device?))) else {
                continue;
            };
            let Ack { seq, step, reason, sent_at, .. } = *ack;
            let which = Which::Seq(seq);
            by_app.entry(app).or_default().push(Progress { device, which, step, reason, sent_at });
        }
        by_app
    }

    fn store_acks(&self, app: AppNo, steps: Vec<Progress>, now: UnixMillis) {
        let engine = self.clone();
        let kept = steps.clone();
        if seeded::is(Bug::AckKeptInMemory) {
            return;
        }
        let done: Done = Box::new(move |outcome| match outcome {
            // The device will not repeat it: it is kept and stored when the store accepts writes, and nothing is
            // sent twice.
            Err(StoreError::StorageLow { .. } | StoreError::Overloaded)
                if engine.acking.put_off(app, &kept, engine.limits.put_off_acks_max) => {}
            outcome => {
                let acked = all_named(app, &kept);
                engine.acking.end(&acked);
                if let Err(error) = outcome {
                    tracing::warn!(%error, count = acked.len(), "acknowledgements were not stored: they are sent again");
                }
            }
        });
        self.store.submit(vec![Command::Progress { app, steps, now }], done);
    }

    /// Acknowledgements that the store refused are offered to it again.
    pub(crate) fn store_put_off_acks(&self) {
        let now = self.clock.now();
        for (app, steps) in self.acking.take_put_off() {
            for some in steps.chunks(STEPS_PER_COMMAND) {
                self.store_acks(app, some.to_vec(), now);
            }
        }
    }

    /// Acknowledgements that wait until the store takes them.
    pub fn put_off_acks(&self) -> usize {
        self.acking.put_off_count()
    }

    /// Sorts what a device says it has received. Only open deliveries of its own inbox are worth a command: numbers are
    /// the device's words, and a command for each that was never given out would let one device stop the writer for all.
    pub fn sort_acks(&self, at: DeviceRef, seqs: &[Seq]) -> SortedAcks {
        let mut wanted = seqs.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        let repeated = seqs.len() - wanted.len();
        let under_way = self.acking.of(at);
        // Asked for before the store is: one that is committed in between is found in one place or the other.
        wanted.retain(|seq| !under_way.contains(seq));
        let asked = wanted.len();
        let open = self.store.open_deliveries(at, &wanted);
        SortedAcks { unknown: repeated + asked - open.len(), open }
    }

    /// The same for one delivery of a session, which its connection did not write itself.
    pub fn is_open_for(&self, session: SessionNo, seq: Seq) -> bool {
        self.session_device(session).is_some_and(|at| !self.sort_acks(at, &[seq]).open.is_empty())
    }

    /// Handed to a device that polled.
    pub fn sent_to(&self, at: DeviceRef, seqs: &[Seq]) {
        let deliveries: Vec<_> = seqs.iter().map(|seq| (at.device, *seq)).collect();
        self.store.sent(at.app, &deliveries, self.clock.now());
    }

    /// Written to a connection.
    pub fn sent(&self, session: SessionNo, seqs: &[Seq]) -> UnixMillis {
        let now = self.clock.now();
        let at = self.hub().get(session).and_then(|s| Some((s.app, s.device?)));
        if let Some((app, device)) = at {
            let deliveries: Vec<_> = seqs.iter().map(|seq| (device, *seq)).collect();
            self.store.sent(app, &deliveries, now);
        }
        now
    }

    /// A command that tells of steps, for somebody who waits.
    fn submit_steps(&self, command: Command, done: Taken) {
        let done: Done = Box::new(move |outcomes| {
            done(outcomes.map(|o| match o.first() {
                Some(Outcome::Progressed { taken }) => *taken,
                _ => 0,
            }));
        });
        self.store.submit(vec![command], done);
    }

    /// Whether messages on the topic may go to the session's device.
    pub fn session_may_receive(&self, session: SessionNo, topic: &str) -> bool {
        self.hub().get(session).is_some_and(|s| self.access.may_receive(&s.client, topic))
    }

    /// The device of a session, where it has one.
    pub fn session_device(&self, session: SessionNo) -> Option<DeviceRef> {
        let hub = self.hub();
        let s = hub.get(session)?;
        Some(DeviceRef { app: s.app, device: s.device? })
    }
}

fn delivered(device: DeviceNo, which: Which) -> Progress {
    Progress { device, which, step: Step::Delivered, reason: Reason::None, sent_at: None }
}

fn all_named(app: AppNo, steps: &[Progress]) -> Vec<(DeviceRef, Seq)> {
    steps.iter().filter_map(|step| named(app, step)).collect()
}

fn named(app: AppNo, step: &Progress) -> Option<(DeviceRef, Seq)> {
    match step.which {
        Which::Seq(seq) => Some((DeviceRef { app, device: step.device }, seq)),
        Which::Id(_) => None,
    }
}

/// Acknowledgements whose commit is under way: a connection that comes back in that moment must not get the message again.
#[derive(Default)]
pub(crate) struct Acking {
    under_way: Mutex<FxHashMap<DeviceRef, FxHashSet<Seq>>>,
    put_off: Mutex<PutOff>,
}

/// Refused by the store while space is low: open deliveries that devices acknowledged, bounded in number.
#[derive(Default)]
struct PutOff {
    by_app: BTreeMap<AppNo, Vec<Progress>>,
    count: usize,
}

impl Acking {
    fn begin(&self, acked: &[(DeviceRef, Seq)]) {
        let mut all = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        acked.iter().for_each(|(at, seq)| _ = all.entry(*at).or_default().insert(*seq));
    }

    fn end(&self, acked: &[(DeviceRef, Seq)]) {
        let mut all = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, seq) in acked {
            if let Some(seqs) = all.get_mut(at) {
                seqs.remove(seq);
                if seqs.is_empty() {
                    all.remove(at);
                }
            }
        }
    }

    /// False, and nothing is kept, where more than `max` would wait then.
    fn put_off(&self, app: AppNo, steps: &[Progress], max: usize) -> bool {
        let mut put_off = self.put_off.lock().unwrap_or_else(PoisonError::into_inner);
        if put_off.count + steps.len() > max {
            return false;
        }
        put_off.count += steps.len();
        put_off.by_app.entry(app).or_default().extend_from_slice(steps);
        true
    }

    fn take_put_off(&self) -> BTreeMap<AppNo, Vec<Progress>> {
        std::mem::take(&mut *self.put_off.lock().unwrap_or_else(PoisonError::into_inner)).by_app
    }

    fn put_off_count(&self) -> usize {
        self.put_off.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    pub fn of(&self, at: DeviceRef) -> FxHashSet<Seq> {
        if seeded::is(Bug::AckUnderWayIgnored) {
            return FxHashSet::default();
        }
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).get(&at).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(device: u32, seq: Seq) -> Progress {
        let (step, reason) = (Step::Delivered, Reason::None);
        Progress { device: DeviceNo(device), which: Which::Seq(seq), step, reason, sent_at: None }
    }

    #[test]
    fn acknowledgements_under_way_are_known_until_their_commit_comes_and_then_leave_nothing() {
        let acking = Acking::default();
        let (a, b) = (
            DeviceRef { app: AppNo(0), device: DeviceNo(1) },
            DeviceRef { app: AppNo(0), device: DeviceNo(2) },
        );
        let of_a: Vec<_> = (0..100_000).map(|seq| (a, seq)).collect();
        acking.begin(&of_a);
        acking.begin(&[(b, 7), (b, 7)]);
        assert!(acking.of(a).len() == 100_000 && acking.of(b).contains(&7));
        acking.end(&of_a);
        assert!(acking.of(a).is_empty() && acking.of(b).len() == 1);
        acking.end(&[(b, 7)]);
        assert!(acking.under_way.lock().unwrap().is_empty());
    }

    #[test]
    fn acknowledgements_that_are_put_off_are_bounded_in_number() {
        let acking = Acking::default();
        assert!(acking.put_off(AppNo(0), &[step(1, 1), step(1, 2)], 3));
        assert!(!acking.put_off(AppNo(0), &[step(1, 3), step(1, 4)], 3));
        assert!(acking.put_off(AppNo(1), &[step(1, 5)], 3));
        assert_eq!(acking.put_off_count(), 3);
        assert_eq!(acking.take_put_off().values().map(Vec::len).sum::<usize>(), 3);
        assert_eq!(acking.put_off_count(), 0);
    }
}
