//! Devices that poll, alone or beside a connection, and the server's side of it: what `api/inbox.rs` and
//! `gateway/adopted.rs` do over HTTP. What a poll brings is acknowledged by another request.

use crate::devices::SECRET;
use crate::ledger::About;
use crate::outgoing::{note_sending, read_envelope};
use crate::server::{Mail, Server, Turn, reference};
use crate::world::{Happening, World};
use postrider_core::delivery::receipt::ReceiptSource;
use postrider_core::id::*;
use postrider_core::port::{Position, Store};

/// A request for what lies in an inbox.
#[derive(Clone, Debug)]
pub struct Poll {
    pub device: usize,
    app: AppNo,
    name: String,
    after: Position,
    limit: usize,
    wait_ms: u64,
}

/// A poll that the server holds until there is something.
pub struct Waiting {
    poll: Poll,
    at: DeviceRef,
    until: u64,
}

/// What a poll is answered with; a message of a topic has no id.
#[derive(Clone, Debug)]
pub enum Answered {
    Page { deliveries: Vec<(Seq, Option<MessageId>)>, next: Position },
    Refused,
}

impl Server {
    /// A poll comes in. `no` names it, as a connection would be named.
    pub fn poll(&mut self, no: u64, poll: Poll, t: &mut Turn<'_>) {
        let client = self.engine.sign_in(poll.app, &poll.name, SECRET.as_bytes());
        let Some(device) = client.ok().and_then(|c| c.device) else {
            return self.answered.push((no, Answered::Refused));
        };
        let at = DeviceRef { app: poll.app, device };
        _ = t.know(at, &poll.name);
        if poll.wait_ms == 0 || self.engine.has_pending(at, poll.after) {
            return self.answer_poll(no, at, &poll, t);
        }
        // First the place in the list, then the look: what comes in between wakes it.
        let waits = self.engine.wait(at, reference(no));
        let (until, after) = (t.now + poll.wait_ms, poll.after);
        self.polls.insert(no, Waiting { poll, at, until });
        if !waits || self.engine.has_pending(at, after) {
            self.give_back(no, t);
        }
    }

    /// A waiting poll is answered: something is there, or its time is over.
    pub fn give_back(&mut self, no: u64, t: &mut Turn<'_>) {
        let Some(Waiting { poll, at, .. }) = self.polls.remove(&no) else { return };
        self.engine.stop_waiting(at, reference(no));
        match self.store.sign_in(at) {
            Some(_) => self.answer_poll(no, at, &poll, t),
            None => self.answered.push((no, Answered::Refused)),
        }
    }

    pub fn end_waits(&mut self, t: &mut Turn<'_>) {
        let over: Vec<u64> = self.polls.iter().filter(|(_, w)| w.until <= t.now).map(|(no, _)| *no).collect();
        over.into_iter().for_each(|no| self.give_back(no, t));
    }

    fn answer_poll(&mut self, no: u64, at: DeviceRef, poll: &Poll, t: &mut Turn<'_>) {
        let mut next = poll.after;
        let mut found = self.engine.pull(at, &poll.name, &mut next, poll.limit + 1);
        found.truncate(poll.limit);
        if let Some(last) = found.last() {
            next = last.position;
        }
        let durable = self.stepper.durable();
        let mut deliveries = Vec::with_capacity(found.len());
        for one in &found {
            note_sending(Some(at), (no, durable), one, &self.engine.access, t);
            deliveries.push((one.seq, read_envelope(&one.content.payload).map(|(id, ..)| id)));
        }
        let seqs: Vec<Seq> = found.iter().map(|d| d.seq).collect();
        if !seqs.is_empty() {
            self.engine.sent_to(at, &seqs);
        }
        self.answered.push((no, Answered::Page { deliveries, next }));
    }

    /// A request that acknowledges. Its answer changes nothing for the device: what was not taken comes again.
    fn acknowledge(&mut self, app: AppNo, name: &str, seqs: &[Seq], t: &mut Turn<'_>) {
        let client = self.engine.sign_in(app, name, SECRET.as_bytes());
        let Some(device) = client.ok().and_then(|c| c.device) else { return };
        let at = DeviceRef { app, device };
        for seq in seqs {
            t.ledger.ack_taken(at, *seq);
        }
        let (mail, engine, acked) = (self.mail.clone(), self.engine.clone(), seqs.to_vec());
        let done = move |taken: Result<usize, _>| {
            if let Some(connection) = engine.connection_of(at).filter(|_| taken.is_ok()) {
                mail.post(Mail::Acknowledged(connection, acked));
            }
        };
        self.engine.record_receipts(ReceiptSource::Request { at, seqs, done: Box::new(done) });
    }
}

impl World {
    pub fn device_polls(&mut self, device: usize) {
        let d = &self.devices[device];
        if self.server.is_none() || !d.registered {
            return self.after(2_000, Happening::DevicePolls { device });
        }
        let (app, name, cursor) = (AppNo(d.plan.app), d.name.clone(), d.cursor);
        let goes_on = self.random.permille(400) && !self.calm;
        let wait_ms = if self.random.permille(500) { self.random.between(500, 8_000) } else { 0 };
        let limit = if self.calm { 50 } else { self.random.between(1, 8) as usize };
        let after = if goes_on { cursor } else { Position::default() };
        let poll = Poll { device, app, name, after, limit, wait_ms };
        let no = self.next_link;
        self.next_link += 1;
        self.devices[device].poll = Some(no);
        let latency = self.latency();
        if self.calm || !self.random.permille(self.plan.request_lost) {
            self.after(latency, Happening::PollArrives { no, poll, life: self.life });
        }
        self.after(wait_ms + 3_000, Happening::PollFails { device, no });
    }

    pub fn poll_arrives(&mut self, no: u64, poll: Poll, life: u64) {
        let about = About { push: None, device: Some(poll.device) };
        self.note(about, format!("device {}: polls, {no}: {poll:?}", poll.device));
        let device = poll.device;
        self.with_server(life, |server, t| server.poll(no, poll, t));
        self.poll_of.insert(no, device);
        self.turn_planned_now();
    }

    pub fn poll_leaves(&mut self, no: u64, answer: Answered) {
        let Some(device) = self.poll_of.remove(&no) else { return };
        let latency = self.latency();
        if self.calm || !self.random.permille(self.plan.answer_lost) {
            self.after(latency, Happening::PollAnswered { device, no, answer });
        }
    }

    pub fn poll_fails(&mut self, device: usize, no: u64) {
        if self.devices[device].poll == Some(no) {
            self.devices[device].poll = None;
            self.plan_poll(device);
        }
    }

    fn plan_poll(&mut self, device: usize) {
        let within = if self.calm { 500 } else { 4_000 };
        let wait = self.random.between(1, within);
        self.after(wait, Happening::DevicePolls { device });
    }

    pub fn poll_answered(&mut self, device: usize, no: u64, answer: Answered) {
        if self.devices[device].poll != Some(no) {
            return;
        }
        self.devices[device].poll = None;
        self.plan_poll(device);
        let Answered::Page { deliveries, next } = answer else { return };
        let about = About { push: None, device: Some(device) };
        self.note(about, format!("device {device}: poll {no} brings {deliveries:?}"));
        self.devices[device].cursor = next;
        if !deliveries.is_empty() {
            let max = if self.calm { 50 } else { self.devices[device].plan.ack_max_ms };
            let wait = self.random.between(0, max);
            self.after(wait, Happening::DevicePostsAcks { device, deliveries });
        }
    }

    /// Acknowledges what a poll brought; now and then only a part of it, and not in order.
    pub fn device_posts_acks(&mut self, device: usize, mut deliveries: Vec<(Seq, Option<MessageId>)>) {
        if !self.calm && self.random.permille(200) {
            let left_out = self.random.below(deliveries.len() as u64) as usize;
            deliveries.swap_remove(left_out);
        }
        for id in deliveries.iter().filter_map(|(_, id)| *id) {
            self.ledger.device_acked(id, device);
            let about = About { push: self.ledger.push_of(id), device: Some(device) };
            self.note(about, format!("device {device}: acknowledges {id} by a request"));
        }
        let seqs: Vec<Seq> = deliveries.iter().map(|(seq, _)| *seq).collect();
        let latency = self.latency();
        if !seqs.is_empty() && (self.calm || !self.random.permille(self.plan.request_lost)) {
            self.after(latency, Happening::AcksArrive { device, seqs });
        }
    }

    pub fn acks_arrive(&mut self, device: usize, seqs: &[Seq]) {
        let (app, name) = (AppNo(self.devices[device].plan.app), self.devices[device].name.clone());
        self.with_server(self.life, |server, t| server.acknowledge(app, &name, seqs, t));
    }
}
