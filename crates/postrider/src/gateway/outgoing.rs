//! Messages on their way to peers: live ones, retained ones, and what lies in the inbox.

use super::Protocol;
use super::conn::{Conn, Waiting};
use super::driver::Driver;
use super::mqtt::{self, Wanted};
use crate::planted;
use postrider_core::access::PEER_TOPIC;
use postrider_core::delivery::drain::Outgoing;
use postrider_core::delivery::publish::Publish as CorePublish;
use postrider_core::delivery::receipt::Ack;
use postrider_core::id::UnixMillis;
use postrider_core::model::{Content, Reason, Step};
use postrider_core::port::{ConnectionRef, Live, LiveTarget, Position};
use postrider_proto::{Cursor, Deliver, Delivered, Fanned, Publish, Qos};
use std::sync::Arc;

/// Encoded messages kept for the next connections of a broadcast.
const FANNED_KEPT: usize = 64;

/// From then on a message is late, and its receiver is told since when it was there (XEP-0203).
const LATE_MS: u64 = 5_000;

impl Driver {
    /// A publish to its live subscribers: those of this worker at once, the others by mail to theirs.
    pub(super) fn fan_out(&mut self, publish: Publish, request: &CorePublish, targets: Vec<LiveTarget>) {
        if targets.is_empty() {
            return;
        }
        let now = self.shared.engine.clock.now();
        let expires_at = request.expiry_secs.map(|secs| now + u64::from(secs) * 1000);
        let shard = self.shard();
        let mut others: Vec<Vec<LiveTarget>> = self.workers.iter().map(|_| Vec::new()).collect();
        let mut fanned = Fanned::new(publish);
        for target in targets {
            if target.connection.shard == shard {
                let at = target.connection;
                self.guarded_if_there(at, |d| {
                    d.deliver_live(&mut fanned, &request.content, target, expires_at)
                });
            } else if let Some(theirs) = others.get_mut(usize::from(target.connection.shard)) {
                theirs.push(target);
            }
        }
        for (worker, theirs) in self.workers.iter().zip(others).filter(|(_, t)| !t.is_empty()) {
            let live = Live { content: request.content.clone(), expires_at };
            let count = theirs.len();
            if !worker.post_live(live, theirs) {
                self.shared.metrics.count_dropped("worker_busy", count);
            }
        }
    }

    pub(super) fn deliver_live_mail(&mut self, live: &Live, targets: Vec<LiveTarget>) {
        let mut fanned = Fanned::new(mqtt::publish_of(&live.content));
        for target in targets {
            let at = target.connection;
            self.guarded_if_there(at, |d| {
                d.deliver_live(&mut fanned, &live.content, target, live.expires_at)
            });
        }
    }

    fn deliver_live(
        &mut self,
        fanned: &mut Fanned,
        content: &Arc<Content>,
        target: LiveTarget,
        expires_at: Option<UnixMillis>,
    ) {
        let config = &self.shared.config;
        let (out_max, waiting_max) = (config.out_bytes_max, config.waiting_max);
        let waiting_bytes_max = config.waiting_bytes_max;
        let at = target.connection;
        planted::panic_in("live", &content.payload);
        let Some(conn) = self.find(at).filter(|c| c.is_open()) else { return };
        let waits = target.qos > 0 && (conn.is_waiting() || conn.protocol.as_mut().window() == 0);
        if waits {
            let waiting = Waiting { content: content.clone(), target, expires_at };
            if !conn.busy().waiting.push(waiting, waiting_max, waiting_bytes_max) {
                self.dropped("queue_full");
            }
            return;
        }
        if target.qos == 0 && conn.backlog() > out_max {
            // Perhaps only this turn was too much for the buffer: the socket may take it.
            self.write(at.slot);
            if self.find(at).is_none_or(|c| !c.is_open() || c.backlog() > out_max) {
                return self.dropped("slow_reader");
            }
        }
        let Some(conn) = self.find(at) else { return };
        let delivery = if target.qos > 0 { conn.live_token() } else { 0 };
        let how = Deliver {
            delivery,
            qos: mqtt::qos_of(target.qos),
            retain: target.retain,
            dup: false,
            subscription_ids: &target.subscription_ids,
            expiry_left_secs: None,
            cursor: None,
            late_since: None,
        };
        self.put(at.slot, fanned, how, expires_at);
    }

    /// Encodes a message into the connection's buffer.
    fn put(
        &mut self,
        slot: u32,
        fanned: &mut Fanned,
        how: Deliver<'_>,
        expires_at: Option<UnixMillis>,
    ) -> Delivered {
        let now = self.now;
        let expiry_left_secs = expires_at.map(|at| mqtt::expiry_left(at, self.shared.engine.clock.now()));
        let how = Deliver { expiry_left_secs, ..how };
        let mut spare =
            self.conns[slot as usize].as_ref().filter(|c| c.out.capacity() == 0).and(self.spare.pop());
        let Some(conn) = self.conn(slot) else { return Delivered::NotReady };
        if let Some(buffer) = spare.take() {
            conn.out = buffer;
        }
        let Conn { protocol, out, .. } = conn;
        let delivered = protocol.as_mut().handle_deliver(fanned, how, now, out);
        match delivered {
            Delivered::Written => self.shared.metrics.messages_out.inc(),
            Delivered::TooLarge => {
                self.dropped("too_large");
                0
            }
            _ => 0,
        };
        self.mark_dirty(slot);
        delivered
    }

    fn dropped(&self, reason: &str) {
        self.shared.metrics.count_dropped(reason, 1);
    }

    pub(super) fn send_retained(&mut self, slot: u32, wanted: &Wanted) {
        let Some(session) = self.conn(slot).and_then(|c| c.session) else { return };
        let connection = self.reference(slot);
        let ids: Vec<u32> = wanted.id.into_iter().collect();
        for retained in self.shared.engine.retained(session, &wanted.filter) {
            let qos = retained.qos.min(wanted.qos);
            let target = LiveTarget { connection, qos, retain: true, subscription_ids: ids.clone() };
            let expires_at = (retained.expires_at != UnixMillis::MAX).then_some(retained.expires_at);
            let mut fanned = Fanned::new(mqtt::publish_of(&retained.content));
            self.deliver_live(&mut fanned, &retained.content, target, expires_at);
        }
    }

    pub(super) fn wake(&mut self, at: ConnectionRef) {
        match self.find(at).map(|c| &c.protocol) {
            Some(Protocol::Poll(_)) => self.guarded(at.slot, |d| d.give_back(at.slot, true)),
            Some(_) => self.want_drain(at.slot),
            None => {}
        }
    }

    /// There were more wakes than could be kept: every connection looks.
    pub(super) fn wake_all(&mut self) {
        for slot in 0..self.conns.len() as u32 {
            self.wake(self.reference(slot));
        }
    }

    /// Something older than what was seen came to lie in the inbox. What is in flight is not sent again.
    pub(super) fn wake_anew(&mut self, at: ConnectionRef) {
        if let Some(conn) = self.find(at) {
            conn.position = Position::default();
        }
        self.wake(at);
    }

    pub(super) fn want_drain(&mut self, slot: u32) {
        if let Some(conn) = self.conn(slot).filter(|c| !c.is_draining && c.is_open() && c.session.is_some()) {
            conn.is_draining = true;
            self.draining.push(slot);
        }
    }

    pub(super) fn drain_woken(&mut self) {
        for slot in std::mem::take(&mut self.draining) {
            if let Some(conn) = self.conn(slot) {
                conn.is_draining = false;
            }
            self.guarded(slot, |d| d.drain(slot));
        }
    }

    fn drain(&mut self, slot: u32) {
        // What is in flight already takes up a drain that began anew: then it goes on behind that.
        while self.drain_once(slot) {}
    }

    /// True when there was something, and all of it was in flight.
    fn drain_once(&mut self, slot: u32) -> bool {
        let out_max = self.shared.config.out_bytes_max;
        let Some(conn) = self.conn(slot).filter(|c| c.is_open()) else { return false };
        let window = conn.protocol.as_mut().window();
        if window == 0 || conn.backlog() > out_max {
            conn.more = true;
            return false;
        }
        let Some(session) = conn.session else { return false };
        let mut position = conn.position;
        let held_back = conn.protocol.as_mut().holds_back().then_some(position.normal);
        if held_back.is_some() {
            // Behind the end of the lane nothing is found.
            position.normal = u64::MAX;
        }
        let deliveries = self.shared.engine.drain(session, &mut position, window);
        let filled = deliveries.len() == window;
        let Some(conn) = self.conn(slot) else { return false };
        position.normal = held_back.unwrap_or(position.normal);
        conn.position = position;
        conn.more = filled;
        let mut sent = Vec::with_capacity(deliveries.len());
        let mut in_flight = 0;
        for delivery in deliveries {
            if self.conn(slot).is_some_and(|c| c.is_sent(delivery.seq)) {
                in_flight += 1;
                continue;
            }
            self.send(slot, delivery, &mut sent);
        }
        if !sent.is_empty() {
            let at = self.shared.engine.sent(session, &sent);
            if let Some(conn) = self.conn(slot) {
                conn.busy().sent.extend(sent.iter().map(|seq| (*seq, at)));
            }
        }
        filled && in_flight == window
    }

    /// Whether the receiver is told since when the message was there. What another device sent, and what then lay in the
    /// inbox before this connection came, is late however short the wait was (XEP-0203, 2).
    fn is_late(&mut self, slot: u32, delivery: &Outgoing, now: UnixMillis) -> bool {
        let is_of_peer = || delivery.content.topic.as_deref() == Some(PEER_TOPIC);
        now.saturating_sub(delivery.accepted_at) > LATE_MS
            || (is_of_peer()
                && self.conn(slot).is_some_and(|conn| delivery.accepted_at < conn.signed_in_at()))
    }

    fn send(&mut self, slot: u32, delivery: Outgoing, sent: &mut Vec<u64>) {
        planted::panic_in("drain", &delivery.content.payload);
        let place = self.fanned.iter().position(|(seq, _)| *seq == delivery.seq);
        let mut entry = match place.and_then(|p| self.fanned.remove(p)) {
            Some(entry) => entry,
            None => {
                let id = delivery.unsaid_id().map(|id| id.to_string().into());
                (delivery.seq, Fanned::with_id(mqtt::publish_of(&delivery.content), id))
            }
        };
        let Position { urgent, normal } = delivery.position;
        let now = self.shared.engine.clock.now();
        let cursor = Cursor { urgent, normal };
        let how = Deliver {
            delivery: delivery.seq,
            qos: mqtt::qos_of(delivery.qos),
            retain: delivery.retain,
            dup: delivery.sent_before,
            subscription_ids: &delivery.subscription_ids,
            expiry_left_secs: None,
            cursor: Some(cursor),
            late_since: self.is_late(slot, &delivery, now).then_some(delivery.accepted_at),
        };
        let tells_expiry = delivery.content.properties.as_ref().is_some_and(|p| p.expires);
        let expires_at = tells_expiry.then_some(delivery.expires_at);
        let delivered = self.put(slot, &mut entry.1, how, expires_at);
        if self.fanned.len() == FANNED_KEPT {
            self.fanned.pop_front();
        }
        self.fanned.push_back(entry);
        let end = match delivered {
            Delivered::Written if how.qos != Qos::AtMostOnce => return sent.push(delivery.seq),
            // Nothing will come back for it, so this is all that can be known.
            Delivered::Written => (Step::HandedOver, Reason::NoAcknowledgement),
            Delivered::TooLarge => (Step::Rejected, Reason::TooLarge),
            Delivered::WindowFull | Delivered::NotReady => return self.offer_again(slot, delivery.seq),
        };
        if let Some(session) = self.conn(slot).and_then(|c| c.session) {
            self.acks.push(Ack { session, seq: delivery.seq, step: end.0, reason: end.1, sent_at: None });
        }
    }

    /// The window closed under our hands: the position goes back before this one.
    fn offer_again(&mut self, slot: u32, seq: u64) {
        if let Some(conn) = self.conn(slot) {
            conn.position.urgent = conn.position.urgent.min(seq - 1);
            conn.position.normal = conn.position.normal.min(seq - 1);
            conn.more = true;
        }
    }

    /// Room in the window or in the buffer: live messages that waited go first, then the inbox.
    pub(super) fn continue_waiting(&mut self, slot: u32) {
        while let Some(conn) = self.conn(slot).filter(|c| c.is_open() && c.is_waiting()) {
            if conn.protocol.as_mut().window() == 0 {
                return;
            }
            let Some(Waiting { content, target, expires_at }) = conn.busy().waiting.pop() else {
                break;
            };
            conn.rest();
            if expires_at.is_some_and(|at| at <= self.shared.engine.clock.now()) {
                continue;
            }
            let how = Deliver {
                delivery: self.conn(slot).map_or(0, Conn::live_token),
                qos: mqtt::qos_of(target.qos),
                retain: target.retain,
                dup: false,
                subscription_ids: &target.subscription_ids,
                expiry_left_secs: None,
                cursor: None,
                late_since: None,
            };
            self.put(slot, &mut Fanned::new(mqtt::publish_of(&content)), how, expires_at);
        }
        if self.conn(slot).is_some_and(|c| c.more) {
            self.want_drain(slot);
        }
    }
}
