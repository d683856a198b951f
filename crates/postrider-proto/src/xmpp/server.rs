//! `xmpp::ServerConnection`: the server's side of one connection.
//!
//! ```text
//!              ┌── STARTTLS ──┐    ┌─ refused ─┐
//!   stream ──► negotiation ◄──┘ ◄──┘           │
//!                  ├─ SASL ── Event::Connect ──┴─► stream anew ─► bind or resume ─► session ─► closed
//!                  └─ jabber:iq:auth ── Event::Connect ─────────────────────────────► session
//! ```
//!
//! While an answer is awaited that decides how to go on, what the peer sends is kept back. All else is answered in the
//! order in which it is ready. Who may sign in, and where messages go, is decided by who reads the events.
//!
//! The parts are in files of their own: `stream` (header, features, TLS), `sasl`, `account` (registration and sign-in of old
//! clients), `bind` (resource, resumption), `stanza` (what a session's peer asks), `pubsub` (topics), `outbound` (messages
//! for the peer, and how their arrival is known).

mod account;
mod bind;
mod outbound;
mod pubsub;
mod sasl;
mod stanza;
mod stream;

use super::config::ServerConfig;
use super::error::StreamError;
use super::reader::{Piece, Reader};
use super::request::Answer;
use super::scram::ChannelBinding;
use super::xml::Element;
use crate::{Close, Deliver, Delivered, Event, Fanned, Goodbye, Millis, Output, Reply, ServerProtocol};
use outbound::Outbound;
use sasl::Step;
use sha2::{Digest, Sha256};
use stanza::Pending;
use std::sync::Arc;

pub use outbound::SavedStream;

/// One XMPP connection as the server sees it. Small when signed in, since there are a million of them: a test watches its size.
#[derive(Debug)]
pub struct ServerConnection {
    config: Arc<ServerConfig>,
    reader: Reader,
    /// What came ahead of an answer that is awaited.
    ahead: Vec<u8>,
    /// Until there is a session.
    negotiation: Option<Box<Negotiation>>,
    session: Option<Box<Session>>,
    chance: Chance,
    /// What the peer calls us.
    domain: Box<str>,
    heard_at: Millis,
    /// Over WebSocket (RFC 7395): each element stands alone, and a zero byte follows it.
    is_framed: bool,
    /// Our stream header was sent.
    is_open: bool,
    is_closed: bool,
}

/// What is known until there is a session.
#[derive(Debug)]
struct Negotiation {
    began_at: Millis,
    channel: ChannelBinding,
    is_tls: bool,
    /// `<proceed/>` was sent.
    awaits_tls: bool,
    failures: u8,
    step: Step,
    /// After SASL.
    signed_in: Option<sasl::SignedIn>,
}

/// A peer with a full address.
#[derive(Debug)]
struct Session {
    /// `local@domain/resource`.
    full: Box<str>,
    /// Where the resource begins, behind its slash.
    resource_at: u16,
    /// The device's name, which the local part escapes.
    user: Box<str>,
    pending: Vec<Pending>,
    /// Stanzas read.
    received: u32,
    next_token: u32,
    is_androidpn: bool,
    /// Sent available presence, with a priority that is not negative.
    is_available: bool,
    /// XEP-0352.
    is_inactive: bool,
    /// `<r/>` came while some stanzas were not done.
    owes_ack: bool,
    outbound: Outbound,
}

impl Session {
    fn new(user: &str, local: &str, domain: &str, resource: &str) -> Self {
        Session {
            full: format!("{local}@{domain}/{resource}").into(),
            resource_at: (local.len() + domain.len() + 2) as u16,
            user: user.into(),
            pending: Vec::new(),
            received: 0,
            next_token: 1,
            is_androidpn: false,
            is_available: false,
            is_inactive: false,
            owes_ack: false,
            outbound: Outbound::default(),
        }
    }

    fn bare(&self) -> &str {
        &self.full[..usize::from(self.resource_at) - 1]
    }

    fn resource(&self) -> &str {
        &self.full[usize::from(self.resource_at)..]
    }
}

/// Names that nobody guesses, out of a seed that is drawn for each connection.
#[derive(Debug)]
struct Chance {
    seed: [u8; 32],
    drawn: u32,
}

impl Chance {
    /// 32 digits.
    fn draw(&mut self) -> String {
        self.drawn += 1;
        let digest = Sha256::new().chain_update(self.seed).chain_update(self.drawn.to_be_bytes()).finalize();
        digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl ServerConnection {
    /// `seed`: drawn by chance for this connection and no other; all its unguessable names come from it.
    pub fn new(config: Arc<ServerConfig>, seed: [u8; 32], now: Millis) -> Self {
        let negotiation = Negotiation {
            began_at: now,
            channel: ChannelBinding::default(),
            is_tls: false,
            awaits_tls: false,
            failures: 0,
            step: Step::Ready,
            signed_in: None,
        };
        ServerConnection {
            config,
            reader: Reader::default(),
            ahead: Vec::new(),
            negotiation: Some(Box::new(negotiation)),
            session: None,
            chance: Chance { seed, drawn: 0 },
            domain: Box::default(),
            heard_at: now,
            is_framed: false,
            is_open: false,
            is_closed: false,
        }
    }

    /// For RFC 7395; `is_tls`: the WebSocket is a secure one.
    pub(crate) fn framed(config: Arc<ServerConfig>, seed: [u8; 32], is_tls: bool, now: Millis) -> Self {
        let mut connection = ServerConnection::new(config, seed, now);
        connection.reader = Reader::framed();
        connection.is_framed = true;
        if let Some(negotiation) = &mut connection.negotiation {
            negotiation.is_tls = is_tls;
        }
        connection
    }

    /// TLS is up: after [`Output::start_tls`], or from the beginning on a listener with direct TLS, before any bytes.
    pub fn handle_tls(&mut self, channel: ChannelBinding) {
        if let Some(negotiation) = &mut self.negotiation {
            negotiation.channel = channel;
            negotiation.is_tls = true;
            negotiation.awaits_tls = false;
            self.restart();
        }
    }

    /// The peer has a full address, and is not closing.
    pub fn is_connected(&self) -> bool {
        self.session.is_some() && !self.is_closed
    }

    pub fn is_androidpn(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_androidpn)
    }

    /// The device's name, the domain and the resource of a session.
    pub fn address(&self) -> Option<(&str, &str, &str)> {
        self.session.as_ref().map(|session| (&*session.user, &*self.domain, session.resource()))
    }

    /// A message of WebSocket ended: so has each element.
    pub(crate) fn handle_message_end(&mut self, out: &mut Output) {
        if !self.is_closed && !self.reader.is_between_stanzas() && self.ahead.is_empty() {
            self.fail(super::reader::XmlError::NotWellFormed.into(), out);
        }
    }

    /// A new stream begins on the same connection.
    fn restart(&mut self) {
        self.reader.restart();
        self.is_open = false;
    }

    fn is_waiting(&self) -> bool {
        self.negotiation.as_ref().is_some_and(|negotiation| negotiation.step.is_waiting())
    }

    fn read(&mut self, bytes: &[u8], now: Millis, out: &mut Output) {
        let mut input = bytes;
        while !self.is_closed {
            if self.is_waiting() {
                return self.keep_back(input, out);
            }
            if self.negotiation.as_ref().is_some_and(|negotiation| negotiation.awaits_tls) {
                // Whatever came behind `<starttls/>` in clear was put there by who knows whom (A12).
                return;
            }
            let stanza = match self.session {
                Some(_) => self.config.after_auth,
                None => self.config.before_auth,
            };
            match self.reader.next(&mut input, &self.config.xml, stanza) {
                Ok(Some(piece)) => self.handle_piece(piece, now, out),
                Ok(None) => return,
                Err(error) => self.fail(error.into(), out),
            }
        }
    }

    fn keep_back(&mut self, bytes: &[u8], out: &mut Output) {
        self.ahead.extend_from_slice(bytes);
        if self.ahead.len() > self.config.before_auth.bytes_max {
            self.fail(StreamError::POLICY_VIOLATION.text("too much ahead of an answer"), out);
        }
    }

    fn handle_piece(&mut self, piece: Piece, now: Millis, out: &mut Output) {
        let handled = match piece {
            Piece::Open(header) => self.handle_open(&header, out),
            Piece::Close => {
                self.handle_close(out);
                Ok(())
            }
            Piece::Stanza(element) if self.is_framed && element.ns() == super::ns::FRAMING => {
                match element.name() {
                    "close" => {
                        self.handle_close(out);
                        Ok(())
                    }
                    _ => self.handle_open(&element, out),
                }
            }
            Piece::Stanza(_) if !self.is_open => Err(StreamError::INVALID_NAMESPACE),
            Piece::Stanza(element) => self.handle_element(element, now, out),
        };
        if let Err(error) = handled {
            self.fail(error, out);
        }
        self.probe_if_wanted(now, &mut out.bytes);
        let is_overfull = self.session.as_ref().is_some_and(|s| s.outbound.is_overfull(&self.config));
        if is_overfull {
            self.fail(StreamError::POLICY_VIOLATION.text("too much unacknowledged"), out);
        }
    }

    fn handle_element(&mut self, element: Element, now: Millis, out: &mut Output) -> Result<(), StreamError> {
        match (&self.session, &self.negotiation) {
            (Some(_), _) => self.handle_session_element(element, out),
            (None, Some(negotiation)) if negotiation.signed_in.is_some() => {
                self.handle_bind_element(&element, now, out)
            }
            _ => self.handle_negotiation_element(&element, out),
        }
    }

    /// The peer ends its stream in order.
    fn handle_close(&mut self, out: &mut Output) {
        if self.session.is_some() {
            // XEP-0198 §5: a stream that was closed cannot be resumed.
            self.session.iter_mut().for_each(|session| session.outbound.forbid_resumption());
            out.events.push(Event::Disconnect { with_will: false, session_expiry_secs: None });
        }
        self.end("disconnect", out);
    }

    /// Ends the stream over something that is wrong.
    fn fail(&mut self, error: StreamError, out: &mut Output) {
        if self.is_closed {
            return;
        }
        if self.negotiation.as_ref().is_some_and(|negotiation| negotiation.awaits_tls) {
            // The peer waits for a handshake: words in clear would only confuse it.
            return self.close(error.condition, false, out);
        }
        if !self.is_open {
            self.write_header(&mut out.bytes);
        }
        error.write(self.is_framed, &mut out.bytes);
        self.end_element(&mut out.bytes);
        self.end(error.condition, out);
    }

    /// Says the end of the stream. Gently, so that the peer reads it.
    fn end(&mut self, kind: &'static str, out: &mut Output) {
        if self.is_closed {
            return;
        }
        if self.is_framed {
            super::xml::raw(&mut out.bytes, "<close xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\"/>");
            self.end_element(&mut out.bytes);
        } else if self.is_open {
            super::xml::raw(&mut out.bytes, "</stream:stream>");
        }
        self.close(kind, true, out);
    }

    fn close(&mut self, kind: &'static str, gentle: bool, out: &mut Output) {
        self.is_closed = true;
        self.ahead = Vec::new();
        self.reader.restart();
        // A stream that its peer did not come to resume can still be, on the next connection.
        self.negotiation.take_if(|negotiation| negotiation.signed_in.is_none());
        out.close.get_or_insert(Close { kind, gentle });
    }

    /// Over WebSocket each element is a message of its own; XML has no zero byte, so that shows where one ends.
    fn end_element(&self, bytes: &mut Vec<u8>) {
        if self.is_framed {
            bytes.push(0);
        }
    }

    /// Writes something that is no stanza, whole and with its namespace.
    fn write_element(&self, xml: &str, bytes: &mut Vec<u8>) {
        super::xml::raw(bytes, xml);
        self.end_element(bytes);
    }
}

impl ServerProtocol for ServerConnection {
    fn handle_bytes(&mut self, bytes: &[u8], now: Millis, out: &mut Output) {
        if self.is_closed || bytes.is_empty() {
            return;
        }
        // COMPAT: slixmpp and others try direct TLS on the plain port first, and fall back when that is closed at once.
        if bytes[0] == 0x16 && !self.is_open && self.reader.is_between_stanzas() {
            return self.close("tls_hello", false, out);
        }
        self.heard_at = now;
        self.read(bytes, now, out);
    }

    fn handle_reply(&mut self, reply: Reply, now: Millis, out: &mut Output) {
        match reply {
            Reply::Connect(answer) => self.handle_connect_answer(answer, now, out),
            Reply::Xmpp(Answer::Keys(keys)) => self.handle_keys(*keys, out),
            Reply::Xmpp(Answer::NoKeys) => self.refuse_challenge(out),
            Reply::Xmpp(Answer::Account { token: 0, outcome }) => self.handle_registered(outcome, out),
            other => self.handle_answer(other, out),
        }
        if !self.is_waiting() {
            let ahead = std::mem::take(&mut self.ahead);
            self.read(&ahead, now, out);
        }
    }

    fn handle_deliver(
        &mut self,
        message: &mut Fanned,
        how: Deliver<'_>,
        now: Millis,
        bytes: &mut Vec<u8>,
    ) -> Delivered {
        self.deliver(message, how, now, bytes)
    }

    fn handle_timeout(&mut self, now: Millis, out: &mut Output) {
        if self.next_timeout().is_none_or(|at| now < at) {
            return;
        }
        match &self.session {
            Some(session) if session.outbound.probe_sent_at().is_some() => {
                self.fail(StreamError::CONNECTION_TIMEOUT, out);
                out.close = Some(Close { kind: "keepalive", gentle: false });
            }
            Some(_) => self.probe(now, &mut out.bytes),
            None if self.is_open => self.fail(StreamError::CONNECTION_TIMEOUT, out),
            None => self.close("connect_timeout", false, out),
        }
    }

    fn handle_goodbye(&mut self, why: Goodbye, _now: Millis, out: &mut Output) {
        let error = match why {
            Goodbye::TakenOver => StreamError::CONFLICT,
            Goodbye::ServerShuttingDown | Goodbye::Unavailable => StreamError::SYSTEM_SHUTDOWN,
            Goodbye::Revoked => StreamError::NOT_AUTHORIZED,
            Goodbye::BadAcks => StreamError::POLICY_VIOLATION.text("what was not sent is acknowledged"),
            Goodbye::QuotaExceeded | Goodbye::Busy => StreamError::RESOURCE_CONSTRAINT,
            Goodbye::SlowReader => StreamError::POLICY_VIOLATION.text("what was sent is not taken"),
            Goodbye::SessionExpired => StreamError::CONNECTION_TIMEOUT,
        };
        self.fail(error, out);
    }

    fn next_timeout(&self) -> Option<Millis> {
        if self.is_closed {
            return None;
        }
        let config = &self.config;
        match (&self.session, &self.negotiation) {
            (Some(session), _) => Some(match session.outbound.probe_sent_at() {
                Some(at) => at + config.answer_timeout_ms,
                // It owes an acknowledgement, and its last count did not cover all.
                None if session.outbound.unsettled() > 0 => {
                    self.heard_at + config.probe_after_ms.min(config.answer_timeout_ms)
                }
                None => self.heard_at + config.probe_after_ms,
            }),
            (None, Some(negotiation)) => {
                // The first header has a time of its own; the whole has one that nothing extends.
                let is_begun = self.is_open || negotiation.is_tls || negotiation.awaits_tls;
                let allowed = if is_begun { config.auth_timeout_ms } else { config.connect_timeout_ms };
                Some(negotiation.began_at + allowed)
            }
            (None, None) => None,
        }
    }

    fn window(&self) -> usize {
        let session = self.session.as_ref().filter(|session| session.is_available && !self.is_closed);
        session.map_or(0, |session| self.config.inflight_max.saturating_sub(session.outbound.unsettled()))
    }

    fn holds_back(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_inactive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Accepted, Publish, Qos};

    const OPEN: &str = "<stream:stream to='d' xmlns='jabber:client' \
                        xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";
    const AUTH: &str = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AHUAcHc=</auth>";
    const BIND: &str =
        "<iq id='b' type='set'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq><presence/>";

    fn feed(connection: &mut ServerConnection, bytes: &str) -> String {
        let mut out = Output::default();
        connection.handle_bytes(bytes.as_bytes(), 0, &mut out);
        String::from_utf8(out.bytes).expect("what is written is text")
    }

    fn signed_in() -> ServerConnection {
        let config = ServerConfig { allows_plaintext: true, ..ServerConfig::default() };
        let mut connection = ServerConnection::new(Arc::new(config), [1; 32], 0);
        feed(&mut connection, &format!("{OPEN}{AUTH}"));
        connection.handle_reply(Reply::Connect(Ok(Box::<Accepted>::default())), 0, &mut Output::default());
        feed(&mut connection, &format!("{OPEN}{BIND}"));
        assert!(connection.is_connected() && connection.window() > 0);
        connection
    }

    /// Heap beyond the session and its address.
    fn owns_more(connection: &ServerConnection) -> bool {
        let session = connection.session.as_ref().expect("a session");
        connection.ahead.capacity() > 0
            || connection.negotiation.is_some()
            || connection.reader.owns_heap()
            || session.pending.capacity() > 0
            || session.outbound.owns_heap()
    }

    #[test]
    fn an_idle_connection_owns_its_session_and_no_buffer() {
        let bytes = size_of::<ServerConnection>() + size_of::<Session>();
        assert!(bytes <= 344, "a session takes {bytes} bytes");
        let mut connection = signed_in();
        assert!(!owns_more(&connection));
        feed(&mut connection, "<iq id='1' type='get'><ping xmlns='urn:");
        assert!(owns_more(&connection), "a cut stanza is kept");
        feed(&mut connection, "xmpp:ping'/></iq> ");
        assert!(!owns_more(&connection));

        let mut fanned = Fanned::new(Publish::default());
        let how = Deliver {
            delivery: 1,
            qos: Qos::AtLeastOnce,
            retain: false,
            dup: false,
            subscription_ids: &[],
            expiry_left_secs: None,
            cursor: None,
            late_since: None,
        };
        let mut bytes = Vec::new();
        connection.handle_deliver(&mut fanned, how, 0, &mut bytes);
        assert!(owns_more(&connection), "a delivery is remembered");
        let text = String::from_utf8(bytes).expect("what is written is text");
        let id = text.split("id=\"probe-").nth(1).and_then(|rest| rest.split('"').next()).expect("a probe");
        feed(&mut connection, &format!("<iq id='probe-{id}' type='result'/>"));
        assert!(!owns_more(&connection));
    }

    #[test]
    fn names_come_from_the_seed_and_never_twice() {
        let mut chance = Chance { seed: [1; 32], drawn: 0 };
        let drawn: Vec<String> = (0..100).map(|_| chance.draw()).collect();
        let mut other = Chance { seed: [2; 32], drawn: 0 };
        assert!(drawn.iter().all(|name| name.len() == 32 && *name != other.draw()));
        assert_eq!(drawn.iter().collect::<std::collections::HashSet<_>>().len(), 100);
    }
}
