//! Messages for the peer, and how their arrival is known.
//!
//! ```text
//!   stanzas sent:   … 7 [8: delivery] 9 [10: delivery] ◄─ probe covers 10
//!                                                         └─ answered: 8 and 10 are delivered
//! ```
//!
//! With stream management (XEP-0198) the probe is `<r/>`, and any `<a h=…/>` acknowledges what it counts. Without, it is an IQ ping
//! behind the messages: stanzas are handled in order, so its answer, be it a result or an error, shows that what came before was
//! handled. That also works for phones that never answer a message, such as androidpn's. At most one probe is under way: the
//! next one goes out when it is answered, if there is something new to ask for. A receipt (XEP-0184) settles its message at once.
//!
//! What is not acknowledged when the connection ends is simply still in the inbox.

use super::ServerConnection;
use super::stanza::write_iq;
use crate::seeded::{self, Bug};
use crate::xmpp::body::{Body, Kind};
use crate::xmpp::config::ServerConfig;
use crate::xmpp::error::StreamError;
use crate::xmpp::ns;
use crate::xmpp::xml::{Element, attribute, escaped, raw, text_element};
use crate::{Deliver, Delivered, Event, Fanned, Millis, Output, Qos, date_time};
use std::collections::VecDeque;

/// So many stanzas other than deliveries are sent with stream management before the peer is asked for its count.
const UNASKED_MAX: usize = 16;

/// The way to the peer. Numbers count stanzas and wrap around, as XEP-0198 has it.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    /// What is unacknowledged, in the order of sending.
    queue: VecDeque<Entry>,
    sent: u32,
    unsettled: u16,
    probe: Option<Probe>,
    /// What the last probe covered: its answer may have covered less, and then asking again at once would go round in circles.
    asked: u32,
    management: Option<Box<Management>>,
}

#[derive(Debug)]
struct Entry {
    number: u32,
    what: Sent,
}

#[derive(Debug)]
enum Sent {
    Delivery {
        delivery: u64,
        message: Box<str>,
    },
    /// Settled by a receipt.
    Settled,
    /// Something else, kept for a peer that may resume.
    Stanza(Box<[u8]>),
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    covers: u32,
    sent_at: Millis,
}

/// XEP-0198, once enabled.
#[derive(Debug)]
struct Management {
    /// The name to resume by, where that was asked for.
    id: Option<Box<str>>,
    /// What was sent and received before.
    sent_before: u32,
    received_before: u32,
    /// The peer's last count.
    acked: u32,
    /// Of the stanzas kept.
    kept_bytes: usize,
}

/// What is left of a stream that its peer may resume: kept with the session, given back with [`crate::Accepted::stream`].
#[derive(Debug)]
pub struct SavedStream {
    outbound: Outbound,
    handled: u32,
    saved_at: Millis,
    pub(super) resource: Box<str>,
    pub(super) is_available: bool,
}

impl SavedStream {
    /// What it takes in memory, near enough.
    pub fn bytes(&self) -> usize {
        let kept = self.outbound.management.as_ref().map_or(0, |management| management.kept_bytes);
        kept + self.outbound.queue.len() * 100 + 400
    }

    pub(super) fn is_named(&self, name: &str) -> bool {
        let id = self.outbound.management.as_ref().and_then(|management| management.id.as_deref());
        id.is_some_and(|id| id == name)
    }

    pub(super) fn has_ended(&self, now: Millis, resume_ms: u64) -> bool {
        now.saturating_sub(self.saved_at) > resume_ms
    }

    /// The peer's stanzas that were handled, as its own count has it.
    pub(super) fn handled(&self) -> u32 {
        let before = self.outbound.management.as_ref().map_or(0, |management| management.received_before);
        self.handled.wrapping_sub(before)
    }
}

/// Whether `a` comes after `b` on the circle.
fn is_after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

impl Outbound {
    pub fn unsettled(&self) -> usize {
        usize::from(self.unsettled)
    }

    pub fn probe_sent_at(&self) -> Option<Millis> {
        self.probe.map(|probe| probe.sent_at)
    }

    pub fn forbid_resumption(&mut self) {
        if let Some(management) = &mut self.management {
            management.id = None;
        }
    }

    pub fn is_overfull(&self, config: &ServerConfig) -> bool {
        self.queue.len() > config.resume_stanzas_max
            || self.management.as_ref().is_some_and(|m| m.kept_bytes > config.resume_bytes_max)
    }

    #[cfg(test)]
    pub fn owns_heap(&self) -> bool {
        self.queue.capacity() > 0 || self.management.is_some()
    }

    fn can_resume(&self) -> bool {
        self.management.as_ref().is_some_and(|management| management.id.is_some())
    }

    /// A stanza that is no delivery was written.
    fn count(&mut self, stanza: &[u8]) {
        self.sent = self.sent.wrapping_add(1);
        if self.can_resume() {
            self.queue.push_back(Entry { number: self.sent, what: Sent::Stanza(stanza.into()) });
            self.management.iter_mut().for_each(|m| m.kept_bytes += stanza.len());
        }
    }

    fn count_delivery(&mut self, delivery: u64, message: &str) {
        self.sent = self.sent.wrapping_add(1);
        self.unsettled += 1;
        let what = Sent::Delivery { delivery, message: message.into() };
        self.queue.push_back(Entry { number: self.sent, what });
    }

    /// Everything up to that number arrived.
    fn settle(&mut self, up_to: u32, events: &mut Vec<Event>) {
        while let Some(entry) = self.queue.pop_front_if(|entry| !is_after(entry.number, up_to)) {
            match entry.what {
                Sent::Delivery { delivery, .. } => {
                    self.unsettled -= 1;
                    events.push(Event::Acked { delivery });
                }
                Sent::Stanza(bytes) => {
                    self.management.iter_mut().for_each(|m| m.kept_bytes -= bytes.len());
                }
                Sent::Settled => {}
            }
        }
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }

    /// Something lies there that no probe asks for.
    fn wants_probe(&self) -> bool {
        self.probe.is_none()
            && is_after(self.sent, self.asked)
            && (self.unsettled > 0 || self.queue.len() >= UNASKED_MAX)
    }
}

impl ServerConnection {
    pub(super) fn deliver(
        &mut self,
        message: &mut Fanned,
        how: Deliver<'_>,
        now: Millis,
        bytes: &mut Vec<u8>,
    ) -> Delivered {
        let is_acked = how.qos != Qos::AtMostOnce;
        let Some(session) = self.session.as_ref().filter(|_| !self.is_closed) else {
            return Delivered::NotReady;
        };
        let body = message.body();
        // What one device sends to another that is connected, an IQ say, does not ask for its presence.
        if !session.is_available && (is_acked || body.kind != Kind::Stanza) {
            return Delivered::NotReady;
        }
        if is_acked && session.outbound.unsettled() >= self.config.inflight_max {
            return Delivered::WindowFull;
        }
        let id = body.id.clone().unwrap_or_else(|| format!("{:x}", how.delivery).into());
        let start = bytes.len();
        if session.is_androidpn && body.kind != Kind::Stanza {
            self.write_notification(body, &id, &session.full, bytes);
        } else {
            self.write_message(body, &id, &session.full, how.late_since, bytes);
        }
        let Some(session) = &mut self.session else { return Delivered::NotReady };
        if is_acked {
            session.outbound.count_delivery(how.delivery, &id);
        } else {
            session.outbound.count(&bytes[start..]);
        }
        self.frame(start, bytes);
        if is_acked {
            self.probe_if_wanted(now, bytes);
        }
        Delivered::Written
    }

    fn write_message(&self, body: &Body, id: &str, to: &str, late_since: Option<u64>, bytes: &mut Vec<u8>) {
        let xml = match body.kind {
            Kind::Stanza => &body.xml,
            kind => {
                raw(bytes, "<message");
                attribute(bytes, "type", if kind == Kind::Push { "normal" } else { "headline" });
                attribute(bytes, "id", id);
                attribute(bytes, "from", &self.domain);
                attribute(bytes, "to", to);
                raw(bytes, ">");
                &body.xml
            }
        };
        let end = match body.kind {
            // In front of its end tag, a delay may be put.
            Kind::Stanza => xml.windows(2).rposition(|w| w == b"</").unwrap_or(xml.len()),
            _ => xml.len(),
        };
        bytes.extend_from_slice(&xml[..end]);
        let is_open = body.kind != Kind::Stanza || xml.starts_with(b"<message") && end < xml.len();
        if let Some(since) = late_since.filter(|_| is_open) {
            raw(bytes, "<delay");
            attribute(bytes, "xmlns", ns::DELAY);
            attribute(bytes, "from", &self.domain);
            attribute(bytes, "stamp", &date_time(since));
            raw(bytes, "/>");
        }
        bytes.extend_from_slice(&xml[end..]);
        if body.kind != Kind::Stanza {
            raw(bytes, "</message>");
        }
    }

    /// COMPAT: androidpn knows pushes in this form only.
    fn write_notification(&self, body: &Body, id: &str, to: &str, bytes: &mut Vec<u8>) {
        write_iq(bytes, "set", id, None, Some(to), |bytes| {
            raw(bytes, "<notification");
            attribute(bytes, "xmlns", ns::ANDROIDPN);
            raw(bytes, ">");
            text_element(bytes, "id", id);
            text_element(bytes, "apiKey", &self.config.androidpn_api_key);
            bytes.extend_from_slice(&body.notification);
            raw(bytes, "</notification>");
        });
    }

    /// A stanza was written from `start` on: it is counted, and framed where it has to be.
    pub(super) fn seal(&mut self, start: usize, bytes: &mut Vec<u8>) {
        if let Some(session) = &mut self.session {
            session.outbound.count(&bytes[start..]);
        }
        self.frame(start, bytes);
    }

    /// RFC 7395 §3.3.3: each stanza carries its namespace.
    fn frame(&self, start: usize, bytes: &mut Vec<u8>) {
        if self.is_framed {
            let name_end = bytes[start..].iter().position(|b| b" />".contains(b)).unwrap_or(0);
            let name_end = start + name_end;
            bytes.splice(name_end..name_end, b" xmlns=\"jabber:client\"".iter().copied());
            bytes.push(0);
        }
    }

    pub(super) fn probe_if_wanted(&mut self, now: Millis, bytes: &mut Vec<u8>) {
        if self.session.as_ref().is_some_and(|session| session.outbound.wants_probe()) && !self.is_closed {
            self.probe(now, bytes);
        }
    }

    /// Asks the peer to show that it is there and has handled what it was sent.
    pub(super) fn probe(&mut self, now: Millis, bytes: &mut Vec<u8>) {
        let Some(session) = &mut self.session else { return };
        let covers = session.outbound.sent;
        session.outbound.probe = Some(Probe { covers, sent_at: now });
        session.outbound.asked = covers;
        if session.outbound.management.is_some() {
            return self.write_element("<r xmlns=\"urn:xmpp:sm:3\"/>", bytes);
        }
        let start = bytes.len();
        let id = format!("probe-{covers}");
        write_iq(bytes, "get", &id, Some(&self.domain), Some(&session.full), |bytes| {
            raw(bytes, "<ping xmlns=\"urn:xmpp:ping\"/>");
        });
        self.seal(start, bytes);
    }

    /// A result or an error: if it is the probe's, all that was sent before it was handled.
    pub(super) fn handle_iq_answer(&mut self, element: &Element, out: &mut Output) {
        let Some(session) = &mut self.session else { return };
        let Some(probe) = session.outbound.probe else { return };
        let is_its = element.attribute("id").and_then(|id| id.strip_prefix("probe-"));
        if is_its.and_then(|number| number.parse().ok()) == Some(probe.covers) {
            let later = seeded::is(Bug::PingCoversLater);
            session.outbound.probe = None;
            let covers = if later { session.outbound.sent } else { probe.covers };
            session.outbound.settle(covers, &mut out.events);
        }
    }

    /// A receipt for one message.
    pub(super) fn settle_named(&mut self, id: &str, out: &mut Output) {
        let Some(session) = &mut self.session else { return };
        for entry in &mut session.outbound.queue {
            if let Sent::Delivery { delivery, message } = &entry.what
                && **message == *id
            {
                out.events.push(Event::Acked { delivery: *delivery });
                entry.what = Sent::Settled;
                session.outbound.unsettled -= 1;
                return;
            }
        }
    }

    pub(super) fn handle_sm_element(
        &mut self,
        element: &Element,
        out: &mut Output,
    ) -> Result<(), StreamError> {
        let is_enabled = self.session.as_ref().is_some_and(|s| s.outbound.management.is_some());
        match (element.name(), is_enabled) {
            ("r", true) => {
                self.session.iter_mut().for_each(|session| session.owes_ack = true);
                self.pay_ack(out);
            }
            ("a", true) => {
                let h = element.attribute("h").and_then(|h| h.parse().ok());
                self.handle_count(h.ok_or(StreamError::POLICY_VIOLATION)?, out)?;
            }
            ("enable", false) => self.enable(element, out),
            ("enable" | "resume" | "r" | "a", _) => self.refuse_sm("unexpected-request", &mut out.bytes),
            _ => return Err(StreamError::UNSUPPORTED_STANZA_TYPE),
        }
        Ok(())
    }

    fn enable(&mut self, element: &Element, out: &mut Output) {
        let wants_resumption = matches!(element.attribute("resume"), Some("true" | "1"));
        let id = wants_resumption.then(|| self.chance.draw());
        let Some(session) = &mut self.session else { return };
        raw(&mut out.bytes, "<enabled xmlns=\"urn:xmpp:sm:3\"");
        if let Some(id) = &id {
            attribute(&mut out.bytes, "id", id);
            attribute(&mut out.bytes, "resume", "true");
            attribute(&mut out.bytes, "max", &(self.config.resume_ms / 1_000).to_string());
        }
        raw(&mut out.bytes, "/>");
        session.outbound.management = Some(Box::new(Management {
            id: id.map(Into::into),
            sent_before: session.outbound.sent,
            received_before: session.received,
            acked: 0,
            kept_bytes: 0,
        }));
        self.end_element(&mut out.bytes);
    }

    /// Tells how many of the peer's stanzas are handled, when it asked: as soon as all are.
    pub(super) fn pay_ack(&mut self, out: &mut Output) {
        let handled = self.handled();
        let Some(session) = &mut self.session else { return };
        let Some(management) = &session.outbound.management else { return };
        if !session.owes_ack || !session.pending.is_empty() {
            return;
        }
        session.owes_ack = false;
        raw(&mut out.bytes, "<a xmlns=\"urn:xmpp:sm:3\"");
        attribute(&mut out.bytes, "h", &handled.wrapping_sub(management.received_before).to_string());
        raw(&mut out.bytes, "/>");
        self.end_element(&mut out.bytes);
    }

    /// XEP-0198 §4: the peer has handled `h` of our stanzas.
    fn handle_count(&mut self, h: u32, out: &mut Output) -> Result<(), StreamError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let outbound = &mut session.outbound;
        let Some(management) = &mut outbound.management else { return Ok(()) };
        let up_to = management.sent_before.wrapping_add(h);
        if is_after(up_to, outbound.sent) {
            return Err(StreamError::HANDLED_COUNT_TOO_HIGH);
        }
        outbound.probe = None;
        // One that goes back says nothing new.
        if !is_after(management.acked, h) {
            management.acked = h;
            let one = u32::from(seeded::is(Bug::CountOneTooHigh));
            outbound.settle(up_to.wrapping_add(one), &mut out.events);
        }
        Ok(())
    }

    /// The state to keep when the session outlives the connection; `None` when the peer cannot resume. A connection that ended
    /// between sign-in and resumption gives back what it was given.
    pub fn take_saved_stream(&mut self, now: Millis) -> Option<Box<SavedStream>> {
        if let Some(signed_in) = self.negotiation.as_mut().and_then(|n| n.signed_in.as_mut()) {
            return signed_in.saved.take();
        }
        let handled = self.handled();
        let session = self.session.as_mut().filter(|session| session.outbound.can_resume())?;
        let outbound = std::mem::take(&mut session.outbound);
        // What was sent before stream management was enabled is not counted, though it may still wait for its answer.
        let uncounted = outbound.management.as_ref().map_or(0, |management| management.received_before);
        Some(Box::new(SavedStream {
            outbound,
            handled: if is_after(uncounted, handled) { uncounted } else { handled },
            saved_at: now,
            resource: session.resource().into(),
            is_available: session.is_available,
        }))
    }

    /// Goes on where an earlier connection stopped. Deliveries that did not arrive come from the inbox; all else is sent again.
    pub(super) fn resume(
        &mut self,
        saved: SavedStream,
        acked: u32,
        out: &mut Output,
    ) -> Result<(), StreamError> {
        let SavedStream { mut outbound, handled, .. } = saved;
        outbound.probe = None;
        let Some(session) = &mut self.session else { return Ok(()) };
        session.received = handled;
        session.outbound = outbound;
        let previd = session.outbound.management.as_ref().and_then(|m| m.id.clone()).unwrap_or_default();
        self.handle_count(acked, out)?;
        let Some(session) = &mut self.session else { return Ok(()) };
        if seeded::is(Bug::ResumptionSettlesAll) {
            session.outbound.settle(session.outbound.sent, &mut out.events);
        }
        let Some(management) = &mut session.outbound.management else { return Ok(()) };
        session.outbound.sent = management.sent_before.wrapping_add(acked);
        session.outbound.asked = session.outbound.sent;
        session.outbound.unsettled = 0;
        management.kept_bytes = 0;
        let counted = handled.wrapping_sub(management.received_before);
        let left = std::mem::take(&mut session.outbound.queue);
        raw(&mut out.bytes, "<resumed xmlns=\"urn:xmpp:sm:3\" previd=\"");
        escaped(&mut out.bytes, &previd);
        raw(&mut out.bytes, "\"");
        attribute(&mut out.bytes, "h", &counted.to_string());
        raw(&mut out.bytes, "/>");
        self.end_element(&mut out.bytes);
        for entry in left {
            if let Sent::Stanza(stanza) = entry.what {
                let start = out.bytes.len();
                out.bytes.extend_from_slice(&stanza);
                self.seal(start, &mut out.bytes);
            }
        }
        Ok(())
    }
}
