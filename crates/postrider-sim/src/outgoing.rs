//! Inbox and live messages to connections, as in `gateway/outgoing.rs`.

use crate::act::Wanted;
use crate::ledger::{About, Sending};
use crate::server::{Protocol, Server, TRANSIENT, Turn, reference};
use bytes::Bytes;
use postrider_core::access::{Access, INBOX_TOPIC, PEER_TOPIC};
use postrider_core::delivery::drain::Outgoing;
use postrider_core::delivery::receipt::Ack;
use postrider_core::id::*;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_core::topics::SessionNo;
use postrider_proto as proto;
use postrider_proto::{Deliver, Delivered, Fanned, Qos};
use std::sync::Arc;

/// What a connection's buffer holds before draining stops.
const OUT_MAX: usize = 2_048;
/// As the gateway tells the receivers of late messages.
const LATE_MS: u64 = 5_000;
/// What the network holds of one connection.
pub const PIPE_MAX: usize = 1_024;

impl Server {
    /// From the beginning: something older than what was seen came to lie there.
    pub fn drain_anew(&mut self, link: u64) {
        if let Some(conn) = self.conns.get_mut(&link) {
            conn.position = Position::default();
        }
        self.want_drain(link);
    }

    pub fn drain(&mut self, link: u64, t: &mut Turn<'_>) {
        while self.drain_once(link, t) {}
    }

    /// True when there was something, and all of it was in flight.
    fn drain_once(&mut self, link: u64, t: &mut Turn<'_>) -> bool {
        let Some(conn) = self.conns.get_mut(&link).filter(|c| !c.closing) else { return false };
        let Some(session) = conn.session else { return false };
        let window = conn.protocol.as_mut().window();
        if window == 0 || conn.out.len() > OUT_MAX {
            conn.more = true;
            return false;
        }
        let mut position = conn.position;
        let held_back = conn.protocol.as_mut().holds_back().then_some(position.normal);
        if held_back.is_some() {
            // Behind the end of the lane nothing is found.
            position.normal = u64::MAX;
        }
        let deliveries = self.engine.drain(session, &mut position, window);
        let Some(conn) = self.conns.get_mut(&link) else { return false };
        position.normal = held_back.unwrap_or(position.normal);
        conn.position = position;
        conn.more = deliveries.len() == window;
        let (filled, mut in_flight) = (conn.more, 0);
        let mut sent = Vec::new();
        for delivery in deliveries {
            if self.conns.get(&link).is_some_and(|c| !c.sent.iter().any(|(seq, _)| *seq == delivery.seq)) {
                self.send(link, session, delivery, &mut sent, t);
            } else {
                in_flight += 1;
            }
        }
        if !sent.is_empty() {
            let at = self.engine.sent(session, &sent);
            if let Some(conn) = self.conns.get_mut(&link) {
                conn.sent.extend(sent.iter().map(|seq| (*seq, at)));
            }
        }
        filled && in_flight == window
    }

    pub fn send(
        &mut self,
        link: u64,
        session: SessionNo,
        d: Outgoing,
        sent: &mut Vec<Seq>,
        t: &mut Turn<'_>,
    ) {
        let durable = self.stepper.durable();
        let Some(conn) = self.conns.get_mut(&link) else { return };
        let how = Deliver {
            delivery: d.seq,
            qos: Qos::from_u8(d.qos).unwrap_or_default(),
            retain: d.retain,
            dup: d.sent_before,
            subscription_ids: &[],
            expiry_left_secs: None,
            cursor: None,
            late_since: (t.now.saturating_sub(d.accepted_at) > LATE_MS).then_some(d.accepted_at),
        };
        let before = conn.out.len();
        let delivered =
            conn.protocol.as_mut().handle_deliver(&mut fanned(&d.content), how, t.now, &mut conn.out);
        let end = match delivered {
            Delivered::Written => {
                // A PUBREL, for what the peer has already or to free an id, is no transmission.
                let written = conn.out.get(before..).unwrap_or_default();
                let behind_release =
                    if written.first() == Some(&0x62) { written.get(4) } else { written.first() };
                let is_mqtt = matches!(conn.protocol, Protocol::Mqtt(_));
                if !is_mqtt || behind_release.is_some_and(|first| first >> 4 == 3) {
                    note_sending(conn.at, (link, durable), &d, &self.engine.access, t);
                    self.check_handed_on(t);
                }
                if how.qos != Qos::AtMostOnce {
                    return sent.push(d.seq);
                }
                (Step::HandedOver, Reason::NoAcknowledgement)
            }
            Delivered::TooLarge => (Step::Rejected, Reason::TooLarge),
            Delivered::WindowFull | Delivered::NotReady => {
                conn.position.urgent = conn.position.urgent.min(d.seq - 1);
                conn.position.normal = conn.position.normal.min(d.seq - 1);
                conn.more = true;
                return;
            }
        };
        self.acks.push(Ack { session, seq: d.seq, step: end.0, reason: end.1, sent_at: None });
    }

    pub fn deliver_live(&mut self, content: &Arc<Content>, target: LiveTarget, t: &mut Turn<'_>) {
        let link = u64::from(target.connection.slot);
        let Some(conn) = self.conns.get_mut(&link).filter(|c| !c.closing) else { return };
        if target.qos > 0 && (!conn.waiting.is_empty() || conn.protocol.as_mut().window() == 0) {
            if conn.waiting.len() < 100 {
                conn.waiting.push_back((content.clone(), target));
            }
            return;
        }
        self.put_live(link, content, &target, t);
    }

    pub fn put_live(&mut self, link: u64, content: &Arc<Content>, target: &LiveTarget, t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        conn.next_live = conn.next_live.wrapping_add(1);
        let delivery = if target.qos > 0 { TRANSIENT | u64::from(conn.next_live) } else { 0 };
        let how = Deliver {
            delivery,
            qos: Qos::from_u8(target.qos).unwrap_or_default(),
            retain: target.retain,
            dup: false,
            subscription_ids: &[],
            expiry_left_secs: None,
            cursor: None,
            late_since: None,
        };
        let delivered =
            conn.protocol.as_mut().handle_deliver(&mut fanned(content), how, t.now, &mut conn.out);
        if let Some(at) = conn.at.filter(|_| delivered == Delivered::Written) {
            note_topic(at, (link, "a live message"), content, &self.engine.access, t);
            self.check_handed_on(t);
        }
    }

    /// A shared message may go to another member once the one that had it has left.
    fn check_handed_on(&self, t: &mut Turn<'_>) {
        let Some((link, what)) = t.ledger.topics.handed_on.take() else { return };
        if self.conns.get(&link).is_some_and(|c| c.session.is_some()) {
            t.ledger.break_rule("one of a group", About::default(), what);
        }
    }

    /// Retained messages, behind the answer to a SUBSCRIBE.
    pub fn send_retained(&mut self, link: u64, wanted: &Wanted, t: &mut Turn<'_>) {
        let Some(session) = self.conns.get(&link).and_then(|c| c.session) else { return };
        for retained in self.engine.retained(session, &wanted.filter) {
            let qos = retained.qos.min(wanted.qos);
            let (connection, subscription_ids) = (reference(link), Vec::new());
            let target = LiveTarget { connection, qos, retain: true, subscription_ids };
            self.deliver_live(&retained.content, target, t);
        }
    }

    pub fn continue_waiting(&mut self, link: u64, t: &mut Turn<'_>) {
        while let Some(conn) = self.conns.get_mut(&link).filter(|c| !c.closing && !c.waiting.is_empty()) {
            if conn.protocol.as_mut().window() == 0 {
                return;
            }
            let Some((content, target)) = conn.waiting.pop_front() else { break };
            self.put_live(link, &content, &target, t);
        }
        if self.conns.get(&link).is_some_and(|c| c.more) {
            self.want_drain(link);
        }
    }

    pub fn flush(&mut self, t: &mut Turn<'_>) {
        let links: Vec<u64> = self.conns.keys().copied().collect();
        for link in links {
            let Some(conn) = self.conns.get_mut(&link) else { continue };
            let n = conn.out.len().min(PIPE_MAX.saturating_sub(conn.in_pipe));
            if n > 0 {
                let bytes: Vec<u8> = conn.out.drain(..n).collect();
                conn.in_pipe += n;
                self.written.push((link, bytes));
                if conn.out.len() <= OUT_MAX {
                    self.continue_waiting(link, t);
                }
            }
            if self.conns.get(&link).is_some_and(|c| c.closing && c.out.is_empty()) {
                self.forget(link);
            }
        }
    }
}

fn fanned(content: &Content) -> Fanned {
    let topic = match &content.topic {
        Some(topic) => proto::Text::from(topic.as_str()),
        None => proto::Text::from_static(INBOX_TOPIC),
    };
    Fanned::new(proto::Publish { topic, payload: content.payload.clone(), ..proto::Publish::default() })
}

/// Which push a payload is.
pub fn read_envelope(payload: &Bytes) -> Option<(MessageId, u64, bool)> {
    let value: serde_json::Value = serde_json::from_slice(payload).ok()?;
    let id = value.get("id")?.as_str()?.parse().ok()?;
    let data = value.get("data")?;
    Some((id, data.get("n")?.as_u64()?, data.get("urgent")?.as_bool()?))
}

/// A message on a topic, on its way to a device's connection or poll.
pub struct Goes<'a> {
    pub topic: &'a str,
    pub at: DeviceRef,
    pub index: usize,
    pub link: u64,
    pub may_receive: bool,
}

impl Goes<'_> {
    pub fn about(&self) -> About {
        About { push: None, device: Some(self.index) }
    }
}

fn note_topic(
    at: DeviceRef,
    (link, what): (u64, &str),
    content: &Content,
    access: &Access,
    t: &mut Turn<'_>,
) {
    let Some(topic) = content.topic.as_deref() else { return };
    let Some(known) = t.ledger.devices.get(&at) else { return };
    if topic == PEER_TOPIC {
        let about = About { push: None, device: Some(known.index) };
        return t.ledger.note(t.now, about, format!("server: {what} of another device goes out on {link}"));
    }
    let may_receive = access.may_receive(&known.name, topic);
    let goes = Goes { topic, at, index: known.index, link, may_receive };
    t.ledger.note(t.now, goes.about(), format!("server: {what} on {topic} goes out on {link}"));
    t.ledger.topic_sent(&goes, &content.payload);
}

pub fn note_sending(
    at: Option<DeviceRef>,
    (link, durable): (u64, Seq),
    d: &Outgoing,
    access: &Access,
    t: &mut Turn<'_>,
) {
    let Some(at) = at else { return };
    let device = t.ledger.devices.get(&at).map(|k| k.index);
    let name = t.ledger.devices.get(&at).map(|k| k.name.clone()).unwrap_or_default();
    if d.content.topic.is_some() {
        return note_topic(at, (link, &d.seq.to_string()), &d.content, access, t);
    }
    let Some((id, n, urgent)) = read_envelope(&d.content.payload) else {
        let about = About { push: None, device };
        return t.ledger.break_rule("no phantom", about, format!("{} is no push of ours", d.seq));
    };
    let about = About { push: Some(n), device };
    t.ledger.note(t.now, about, format!("server: push {n} ({}) goes out on {link} to {name}", d.seq));
    t.ledger.sending(Sending { at, seq: d.seq, id, n, link, durable, urgent, now: t.now });
}
