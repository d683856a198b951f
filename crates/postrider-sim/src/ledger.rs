//! The checker: what was asked for, promised, sent, acknowledged and ended, seen from outside, and the promises that hold
//! between them. The first one broken ends the run.

use postrider_core::id::*;
use postrider_core::model::*;
use std::collections::{BTreeMap, BTreeSet};

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// One of a fixed list of words.
    pub rule: &'static str,
    pub what: String,
    /// The story of the delivery that went wrong.
    pub trace: Vec<String>,
}

/// What a line of the trace is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    pub push: Option<u64>,
    pub device: Option<usize>,
}

/// A push as its sender knows it.
#[derive(Clone, Debug)]
pub struct Push {
    pub app: AppNo,
    pub audience: Whom,
    pub ttl_secs: u64,
    pub collapse: Option<String>,
    pub key: Option<String>,
    pub outcome: Outcome,
    pub cancel_asked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    Devices(Vec<String>),
    Tagged,
    All,
}

/// What the sender was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Unknown,
    Accepted(MessageId),
    Transient,
    Refused,
}

/// A device of this life: deleted and registered again it is another one.
#[derive(Clone, Debug)]
pub struct Known {
    pub index: usize,
    pub name: String,
    pub qos0: bool,
    pub delete_asked: bool,
}

/// A message that goes to a device now.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    pub at: DeviceRef,
    pub seq: Seq,
    pub id: MessageId,
    pub n: u64,
    pub link: u64,
    pub durable: Seq,
    pub urgent: bool,
    pub now: UnixMillis,
}

/// See the module.
#[derive(Default)]
pub struct Ledger {
    pub pushes: BTreeMap<u64, Push>,
    pub devices: BTreeMap<DeviceRef, Known>,
    by_id: BTreeMap<MessageId, u64>,
    seqs: BTreeMap<Seq, MessageId>,
    order: BTreeMap<MessageId, u64>,
    ends: BTreeMap<(MessageId, DeviceRef), (Step, Reason)>,
    ended_for_all: BTreeMap<MessageId, Step>,
    /// A provider took it, and that is durable.
    forwarded: BTreeSet<(MessageId, DeviceRef)>,
    /// Acknowledged by the device, wholly.
    acked: BTreeSet<(MessageId, usize)>,
    /// Taken by the server in this life of it, and no commit failed since.
    taken: BTreeSet<(DeviceRef, Seq)>,
    /// Taken, and perhaps not stored: these may go out again, also on the same connection.
    refused: BTreeSet<(DeviceRef, Seq)>,
    first_sent: BTreeSet<(DeviceRef, Seq)>,
    furthest: BTreeMap<(DeviceRef, bool), Seq>,
    on_link: BTreeSet<(u64, Seq)>,
    received: BTreeMap<(u64, usize), MessageId>,
    /// What clients of XMPP have shown.
    shown: BTreeSet<(MessageId, usize)>,
    pub broken: Option<Violation>,
    lines: Vec<(UnixMillis, About, String)>,
    pub hash: u64,
    pub transmissions: u64,
    pub acks_taken: u64,
    pub repeats: u64,
    pub topics: crate::topics::Topics,
}

impl Ledger {
    pub fn note(&mut self, now: UnixMillis, about: About, line: String) {
        for byte in line.bytes().chain(now.to_le_bytes()) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        self.lines.push((now, about, line));
    }

    pub fn break_rule(&mut self, rule: &'static str, about: About, what: String) {
        if self.broken.is_some() {
            return;
        }
        let all = std::env::var_os("SIM_WHOLE_TRACE").is_some();
        let touches = |a: &About| {
            let same_push = a.push == about.push && about.push.is_some();
            let same_device = a.device == about.device && about.device.is_some();
            match (a.push, a.device) {
                (None, None) => true,
                (Some(_), None) => same_push,
                (None, Some(_)) => same_device,
                (Some(_), Some(_)) if rule == "order" => same_device,
                (Some(_), Some(_)) => {
                    (about.push.is_none() || same_push) && (about.device.is_none() || same_device)
                }
            }
        };
        let begin = self.lines.first().map_or(0, |l| l.0);
        let mut trace: Vec<String> = self
            .lines
            .iter()
            .filter(|(_, a, _)| all || touches(a))
            .map(|(at, _, line)| format!("{:>9.3}s {line}", (at - begin) as f64 / 1000.0))
            .collect();
        if trace.len() > 400 && !all {
            trace.drain(..trace.len() - 400);
        }
        self.broken = Some(Violation { rule, what, trace });
    }

    fn about(&self, id: MessageId, at: DeviceRef) -> About {
        About { push: self.by_id.get(&id).copied(), device: self.devices.get(&at).map(|d| d.index) }
    }

    pub fn push_of(&self, id: MessageId) -> Option<u64> {
        self.by_id.get(&id).copied()
    }

    pub fn push_of_seq(&self, seq: Seq) -> Option<u64> {
        self.seqs.get(&seq).and_then(|id| self.push_of(*id))
    }

    /// A new life of the server: what it held in memory only is gone.
    pub fn forget_taken(&mut self) {
        self.refused.append(&mut self.taken);
    }

    /// The sender was told that its push is kept.
    pub fn accepted(&mut self, n: u64, id: MessageId) {
        let Some(push) = self.pushes.get_mut(&n) else { return };
        match push.outcome {
            Outcome::Accepted(first) if first != id && push.key.is_some() => {
                let what = format!("push {n} was answered {first}, and then {id} for the same key");
                self.break_rule("one answer a key", About { push: Some(n), device: None }, what);
            }
            _ => push.outcome = Outcome::Accepted(id),
        }
        if let Some(other) = self.by_id.insert(id, n).filter(|other| *other != n) {
            let what = format!("push {n} was answered with {id}, which is push {other}");
            self.break_rule("one answer a key", About { push: Some(n), device: None }, what);
        }
    }

    /// A stored push is written to a device's connection.
    pub fn sending(&mut self, s: Sending) {
        self.transmissions += 1;
        self.by_id.entry(s.id).or_insert(s.n);
        let about = About { push: Some(s.n), device: self.devices.get(&s.at).map(|d| d.index) };
        let end_for_all = self.end_for_all(s.id);
        let mut broken = |rule, what: String| self_break(&mut self.broken, rule, what);
        if s.seq > s.durable {
            broken("commit, then tell", format!("{} goes out, {} is durable", s.seq, s.durable));
        }
        if !self.on_link.insert((s.link, s.seq)) && !self.refused.contains(&(s.at, s.seq)) {
            broken("once a connection", format!("{} goes out twice on connection {}", s.seq, s.link));
        }
        if self.taken.contains(&(s.at, s.seq)) {
            broken("never after the ack", format!("{} goes out after its acknowledgement was taken", s.seq));
        }
        if let Some(end) = self.ends.get(&(s.id, s.at)) {
            broken("never after the end", format!("{} goes out after it ended {end:?}", s.id));
        }
        if let Some(end) = end_for_all {
            broken("never after the end", format!("{} goes out after it ended {end:?} for all", s.id));
        }
        if let Some(other) = self.seqs.insert(s.seq, s.id).filter(|other| *other != s.id) {
            broken("one message a number", format!("{} is {} and was {other}", s.seq, s.id));
        }
        if self.first_sent.insert((s.at, s.seq)) {
            let furthest = self.furthest.entry((s.at, s.urgent)).or_default();
            if s.seq < *furthest {
                let what = format!("{} is first sent after {}", s.seq, *furthest);
                self_break(&mut self.broken, "order", what);
            }
            *furthest = s.seq.max(*furthest);
        } else {
            self.repeats += 1;
        }
        self.check_push(&s);
        self.settle_break(about);
    }

    fn check_push(&mut self, s: &Sending) {
        let known = self.devices.get(&s.at).cloned();
        let Some(push) = self.pushes.get(&s.n) else {
            return self_break(&mut self.broken, "no phantom", format!("nobody sent push {}", s.n));
        };
        let meant = match (&push.audience, &known) {
            (Whom::Devices(names), Some(known)) => names.contains(&known.name),
            (_, known) => known.is_some(),
        };
        if !meant || push.app != s.at.app {
            let what = format!("push {} was not meant for {:?}", s.n, known.map(|k| k.name));
            return self_break(&mut self.broken, "no phantom", what);
        }
        if s.now >= s.id.at() + push.ttl_secs * 1000 {
            let what = format!(
                "push {} goes out {} ms after its end",
                s.n,
                s.now - s.id.at() - push.ttl_secs * 1000
            );
            return self_break(&mut self.broken, "never after expiry", what);
        }
        if push.key.is_some()
            && let Some(other) = self.received.insert((s.n, known.map_or(0, |k| k.index)), s.id)
            && other != s.id
        {
            let what = format!("push {} goes out as {} and as {other}", s.n, s.id);
            self_break(&mut self.broken, "one answer a key", what);
        }
    }

    /// Gives the rule that was just broken its trace.
    fn settle_break(&mut self, about: About) {
        if self.broken.as_ref().is_some_and(|b| b.trace.is_empty())
            && let Some(Violation { rule, what, .. }) = self.broken.take()
        {
            self.break_rule(rule, about, what);
        }
    }

    /// True the first time.
    pub fn shown(&mut self, id: MessageId, device: usize) -> bool {
        self.shown.insert((id, device))
    }

    /// Whether a device that it was for has shown it.
    pub fn is_shown(&self, id: MessageId) -> bool {
        self.shown.range((id, 0)..=(id, usize::MAX)).next().is_some()
    }

    pub fn accepted_pushes(&self) -> impl Iterator<Item = (AppNo, MessageId)> {
        self.pushes.values().filter_map(|push| match push.outcome {
            Outcome::Accepted(id) => Some((push.app, id)),
            _ => None,
        })
    }

    /// The device acknowledged a push, wholly.
    pub fn device_acked(&mut self, id: MessageId, device: usize) {
        self.acked.insert((id, device));
    }

    /// The server took an acknowledgement.
    pub fn ack_taken(&mut self, at: DeviceRef, seq: Seq) {
        self.acks_taken += 1;
        self.taken.insert((at, seq));
    }

    /// A row of the receipt stream: durable, and final where it is an end.
    pub fn receipt(&mut self, e: &ReceiptEvent) {
        if e.step == Step::Queued {
            self.order.insert(e.message, e.position);
        }
        if e.step == Step::Forwarded
            && let Some(device) = e.device
        {
            let at = DeviceRef { app: e.app, device };
            self.forwarded.insert((e.message, at));
            if let Some(end) = self.ends.get(&(e.message, at)) {
                let what = format!("{} goes to a provider after it ended {end:?}", e.message);
                self.break_rule("never after the end", self.about(e.message, at), what);
            }
        }
        if !e.step.ends() {
            return;
        }
        let Some(device) = e.device else {
            self.ended_for_all.insert(e.message, e.step);
            return self.check_end(e, None);
        };
        let at = DeviceRef { app: e.app, device };
        if let Some(before) = self.ends.insert((e.message, at), (e.step, e.reason)) {
            let what = format!("{} ended {before:?} and then {:?}", e.message, (e.step, e.reason));
            self.break_rule("one end", self.about(e.message, at), what);
        }
        self.check_end(e, Some(at));
    }

    /// Whether an end is one that may be.
    fn check_end(&mut self, e: &ReceiptEvent, at: Option<DeviceRef>) {
        let push = self.by_id.get(&e.message).and_then(|n| self.pushes.get(n));
        let known = at.and_then(|at| self.devices.get(&at));
        let wrong = match (e.step, e.reason) {
            (Step::Delivered, _) => known
                .is_none_or(|k| !self.acked.contains(&(e.message, k.index)))
                .then_some("delivered, and nobody acknowledged it"),
            (Step::HandedOver, Reason::Ttl) => {
                let (id, early) =
                    (e.message, push.is_some_and(|p| e.at < e.message.at() + p.ttl_secs * 1000));
                let was_taken = |at: &DeviceRef| self.forwarded.contains(&(id, *at));
                let any_was = || self.forwarded.iter().any(|(message, _)| *message == id);
                let is_right = at.as_ref().map_or_else(any_was, was_taken) && !early;
                (!is_right).then_some("handed over, and no provider took it, or its time was not over")
            }
            (Step::Expired, Reason::Ttl)
                if at.is_some_and(|at| self.forwarded.contains(&(e.message, at))) =>
            {
                Some("expired, and a provider took it")
            }
            (Step::HandedOver, _) => {
                known.is_none_or(|k| !k.qos0).then_some("handed over, and it is acknowledged")
            }
            (Step::Expired, Reason::Ttl) => {
                push.is_some_and(|p| e.at < e.message.at() + p.ttl_secs * 1000).then_some("expired early")
            }
            // Looked at in the end, when it is known who came after.
            (Step::Superseded, Reason::Collapsed) => None,
            (Step::Cancelled, _) => push.is_some_and(|p| !p.cancel_asked).then_some("cancelled by nobody"),
            (Step::Erased, _) => {
                known.is_none_or(|k| !k.delete_asked).then_some("erased, and the device was not deleted")
            }
            (Step::Evicted, Reason::QueueFull) => None,
            _ => Some("an end that has no cause"),
        };
        if let Some(wrong) = wrong {
            let about = at.map_or(About { push: self.push_of(e.message), device: None }, |at| {
                self.about(e.message, at)
            });
            let what = format!("{} ended {:?} at {}: {wrong}", e.message, (e.step, e.reason, at), e.at);
            self.break_rule("ends have causes", about, what);
        }
    }

    /// A message of the same key, accepted later. One whose answer is still under way counts too.
    fn has_newer(&self, id: MessageId) -> bool {
        let Some(n) = self.push_of(id) else { return true };
        let Some(old) = self.pushes.get(&n) else { return true };
        let later = |other: u64, p: &Push| match p.outcome {
            Outcome::Accepted(newer) => self.order.get(&newer) > self.order.get(&id),
            // Never answered, perhaps accepted all the same.
            Outcome::Unknown => other != n,
            _ => false,
        };
        self.pushes.iter().any(|(n, p)| p.app == old.app && p.collapse == old.collapse && later(*n, p))
    }

    /// A message that ended superseded although nothing of its key came after it.
    pub fn superseded_by_nothing(&self) -> Option<(MessageId, String)> {
        let one = self.ends.iter().filter(|(_, end)| end.0 == Step::Superseded).map(|((id, _), _)| *id);
        let all = self.ended_for_all.iter().filter(|(_, step)| **step == Step::Superseded).map(|(id, _)| *id);
        let id = one.chain(all).find(|id| !self.has_newer(*id))?;
        Some((id, format!("{id} is superseded, and nothing newer has its key")))
    }

    /// At the end, when all is quiet: what was accepted for a device and has no end.
    pub fn end_of(&self, id: MessageId, at: DeviceRef) -> Option<Step> {
        self.ends.get(&(id, at)).map(|e| e.0).or_else(|| self.ended_for_all.get(&id).copied())
    }

    /// An end that took the message from everybody. What is superseded ends for some, and the row does
    /// not say for whom.
    fn end_for_all(&self, id: MessageId) -> Option<Step> {
        let is_for_all = |step: &Step| matches!(step, Step::Expired | Step::Cancelled | Step::HandedOver);
        self.ended_for_all.get(&id).copied().filter(is_for_all)
    }

    /// Whether it is known to be over for the device.
    pub fn has_ended(&self, id: MessageId, at: DeviceRef) -> bool {
        self.ends.contains_key(&(id, at)) || self.end_for_all(id).is_some()
    }

    pub fn ends(&self) -> usize {
        self.ends.len()
    }
}

fn self_break(broken: &mut Option<Violation>, rule: &'static str, what: String) {
    broken.get_or_insert(Violation { rule, what, trace: Vec::new() });
}
