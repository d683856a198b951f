//! `mqtt::ServerConnection`: the broker's side of one connection.
//!
//! ```text
//!   AwaitConnect ── CONNECT ──► AwaitAnswer ── Reply::Connect(Ok) ──► Connected ── DISCONNECT, error ──► Closed
//! ```
//!
//! Bytes after the CONNECT are kept back until it is answered. Whole packets are read straight from the slice that the
//! driver hands in; only a cut one is kept, and its buffer grows with what arrived, never with what was declared.
//! Who may do what, and where messages go, is decided by who reads the events.
//!
//! The phases are written in files of their own: `sign_in`, `inbound` (the peer publishes and subscribes), `outbound`
//! (messages for the peer).

mod inbound;
mod outbound;
mod sign_in;

use super::codec::{self, Header, ProtocolError, encode_refusal};
use super::config::ServerConfig;
use super::inflight::Inflight;
use super::packet::{Disconnect, Kind, Level, Packet, code};
use crate::{
    Close, ConnectRefusal, Deliver, Delivered, Event, Fanned, Goodbye, Millis, Output, Reply, ServerProtocol,
    Text,
};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    AwaitConnect,
    /// CONNECT was read, its answer is not there yet.
    AwaitAnswer,
    Connected,
    Closed,
}

/// Topic aliases of both directions: only there for peers that use them.
#[derive(Debug, Default)]
struct Aliases {
    /// What the peer defined: alias 1 is the first. Empty text: not defined.
    inbound: Vec<Text>,
    /// What we defined.
    outbound: Vec<Text>,
}

/// One MQTT connection as the server sees it. Small, since there are a million of them: a test watches its size.
#[derive(Debug)]
pub struct ServerConnection {
    config: Arc<ServerConfig>,
    /// A cut packet, or what was sent ahead of our CONNACK.
    held: Vec<u8>,
    inflight: Option<Box<Inflight>>,
    aliases: Option<Box<Aliases>>,
    /// When the last whole packet came; before CONNECT, when the connection began.
    heard_at: Millis,
    /// The minute that `bad_acks` counts.
    bad_ack_minute: u32,
    peer_packet_bytes_max: u32,
    bad_acks: u16,
    /// PUBRELs of ids that the peer perhaps held, not answered yet.
    releases: u16,
    /// As in `inflight`, while there is none.
    unsure: u16,
    /// The packet id to go on with when `inflight` is made anew.
    next_id: u16,
    /// QoS 1 publishes of an MQTT 5 peer that were not answered.
    unanswered: u16,
    inflight_max: u16,
    keepalive_secs: u16,
    /// Aliases that we may define.
    peer_alias_maximum: u16,
    phase: Phase,
    level: Level,
    /// The peer is another broker: it gets none of its own messages back, and retain flags as they were published.
    is_bridge: bool,
    /// A packet came after our CONNACK went out, so the peer knows what that said.
    has_heard: bool,
    /// The keep-alive is ours and not the one that the peer asked for.
    is_keepalive_ours: bool,
    /// The session expiry was lowered to our maximum.
    is_expiry_lowered: bool,
    /// CONNECT asked for a session that ends with the connection.
    is_expiry_zero: bool,
}

impl ServerConnection {
    pub fn new(config: Arc<ServerConfig>, now: Millis) -> Self {
        ServerConnection {
            config,
            held: Vec::new(),
            inflight: None,
            releases: 0,
            unsure: 0,
            aliases: None,
            heard_at: now,
            bad_ack_minute: 0,
            peer_packet_bytes_max: u32::MAX,
            bad_acks: 0,
            next_id: 1,
            unanswered: 0,
            inflight_max: 0,
            keepalive_secs: 0,
            peer_alias_maximum: 0,
            phase: Phase::AwaitConnect,
            level: Level::V311,
            is_bridge: false,
            has_heard: false,
            is_keepalive_ours: false,
            is_expiry_lowered: false,
            is_expiry_zero: false,
        }
    }

    /// The peer's protocol level, once its CONNECT was read.
    pub fn level(&self) -> Option<Level> {
        (self.phase != Phase::AwaitConnect).then_some(self.level)
    }

    /// The peer has said something since it was let in. What came together with its CONNECT shows nothing.
    pub fn has_heard(&self) -> bool {
        self.has_heard
    }

    /// The keep-alive in force; 0 for none.
    pub fn keepalive_secs(&self) -> u16 {
        self.keepalive_secs
    }

    /// Signed in, and not closing.
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// The state to keep when the session outlives the connection; `None` when nothing is in flight.
    ///
    /// Answers to publishes that are still to come should be handed in before, also after a close: a QoS 2 publish
    /// without its answer is forgotten, and the peer's second sending of it is then a new one.
    pub fn take_inflight(&mut self) -> Option<Box<Inflight>> {
        let (next_id, unsure) = (self.next_id, self.unsure);
        let nothing = || (unsure > 0).then(|| Box::new(Inflight::with_unsure(next_id, unsure)));
        let mut inflight = self.inflight.take().or_else(nothing)?;
        // Should the connection go on all the same, it uses none of the ids that are kept.
        self.next_id = inflight.next_id();
        inflight.detach();
        (!inflight.is_empty() || inflight.unsure() > 0).then_some(inflight)
    }

    /// Reads whole packets off `bytes`; the answer is how many bytes they had.
    fn consume(&mut self, bytes: &[u8], now: Millis, out: &mut Output) -> usize {
        let mut at = 0;
        while at < bytes.len() && matches!(self.phase, Phase::AwaitConnect | Phase::Connected) {
            let header = match self.next_header(&bytes[at..]) {
                Ok(Some(header)) if header.total_len() <= bytes.len() - at => header,
                Ok(_) => break,
                Err(error) => {
                    self.fail(error, out);
                    break;
                }
            };
            let body = &bytes[at + header.header_len..at + header.total_len()];
            at += header.total_len();
            self.heard_at = now;
            if let Err(error) = self.handle_packet(header, body, now, out) {
                self.fail(error, out);
            }
        }
        at
    }

    /// The header at the start of `bytes`, refused as early as its bytes allow.
    fn next_header(&self, bytes: &[u8]) -> Result<Option<Header>, ProtocolError> {
        if self.phase == Phase::Connected {
            return codec::header(bytes, Some(self.level), self.config.packet_bytes_max);
        }
        // MQTT-3.1.0-1: nothing but a CONNECT is worth a second byte.
        if bytes.first().is_some_and(|&first| first >> 4 != Kind::Connect as u8) {
            return Err(ProtocolError::new("connect_expected", code::PROTOCOL_ERROR));
        }
        codec::header(bytes, None, self.config.packet_bytes_max_before_auth)
    }

    fn handle_packet(
        &mut self,
        header: Header,
        body: &[u8],
        now: Millis,
        out: &mut Output,
    ) -> Result<(), ProtocolError> {
        if self.phase == Phase::AwaitConnect {
            return self.handle_connect(header, body, out);
        }
        // MQTT-3.1.0-2 for a second CONNECT; §2.1.2 for what only servers send; AUTH needs a method, and we took none.
        if header.kind.is_from_server_only() || matches!(header.kind, Kind::Connect | Kind::Auth) {
            return Err(ProtocolError::PROTOCOL);
        }
        match codec::decode(header, body, self.level, &self.config.limits)? {
            Packet::Publish(packet) => self.handle_publish(packet, out),
            Packet::PubAck(ack) => self.handle_puback(ack, now, out),
            Packet::PubRec(ack) => self.handle_pubrec(ack, now, out),
            Packet::PubRel(ack) => self.handle_pubrel(ack, now, out),
            Packet::PubComp(ack) => self.handle_pubcomp(ack, now, out),
            Packet::Subscribe(packet) => self.handle_subscribe(packet, out),
            Packet::Unsubscribe(packet) => {
                let token = u32::from(packet.id);
                out.events.push(Event::Unsubscribe { token, filters: packet.filters });
                Ok(())
            }
            Packet::PingReq => {
                codec::encode(&Packet::PingResp, self.level, &mut out.bytes);
                Ok(())
            }
            Packet::Disconnect(packet) => self.handle_disconnect(&packet, out),
            _ => Err(ProtocolError::PROTOCOL),
        }
    }

    fn handle_disconnect(&mut self, packet: &Disconnect, out: &mut Output) -> Result<(), ProtocolError> {
        // §3.14.2.2.2: a session that was to end with the connection cannot be made to last at its end.
        if self.is_expiry_zero && packet.session_expiry_secs.is_some_and(|secs| secs > 0) {
            return Err(ProtocolError::PROTOCOL);
        }
        let session_expiry_secs =
            packet.session_expiry_secs.map(|secs| secs.min(self.config.session_expiry_secs_max));
        // MQTT-3.14.4-3: only reason 0 takes the will away.
        out.events.push(Event::Disconnect { with_will: packet.code != code::SUCCESS, session_expiry_secs });
        // COMPAT: SAM reads on until the server closes, so the close is at once and not gentle.
        self.close("disconnect", false, out);
        Ok(())
    }

    /// Ends the connection over something that the peer did (MQTT 5 §4.13; 3.x has no words for it).
    fn fail(&mut self, error: ProtocolError, out: &mut Output) {
        match (self.phase, self.level) {
            (Phase::Closed, _) => {}
            (Phase::AwaitAnswer, level) => self.refuse_sign_in(level, error, out),
            (Phase::Connected, Level::V5) => {
                self.say_disconnect(error.code, out);
                self.close(error.kind, true, out);
            }
            _ => self.close(error.kind, false, out),
        }
    }

    fn refuse_sign_in(&mut self, level: Level, error: ProtocolError, out: &mut Output) {
        let code = match (level, error.code) {
            (Level::V5, code) => code,
            (_, code::CLIENT_ID_INVALID) => 2,
            (_, code::BAD_CREDENTIALS) => 4,
            _ => return self.close(error.kind, false, out),
        };
        encode_refusal(level, code, &mut out.bytes);
        self.close(error.kind, true, out);
    }

    fn say_disconnect(&self, code: u8, out: &mut Output) {
        let packet = Packet::Disconnect(Box::new(Disconnect { code, ..Disconnect::default() }));
        codec::encode(&packet, self.level, &mut out.bytes);
    }

    fn close(&mut self, kind: &'static str, gentle: bool, out: &mut Output) {
        self.phase = Phase::Closed;
        self.held = Vec::new();
        self.aliases = None;
        out.close.get_or_insert(Close { kind, gentle });
    }

    /// The silence after which the peer is taken for dead, in ms; `None`: it may be silent for ever.
    fn silence_max_ms(&self) -> Option<u64> {
        // MQTT-3.1.2-22 of 5, -24 of 3.1.1: one and a half times the keep-alive.
        let own = (self.keepalive_secs > 0).then(|| u64::from(self.keepalive_secs) * 1_500);
        let ours = match self.config.keepalive_zero_secs {
            0 => None,
            // A longer keep-alive than our limit was promised openly only in MQTT 5, where we told our own.
            _ if self.is_keepalive_ours => None,
            secs => Some(u64::from(secs) * 1_000),
        };
        match (own, ours) {
            (Some(own), Some(ours)) => Some(own.min(ours)),
            (own, ours) => own.or(ours),
        }
    }
}

impl ServerProtocol for ServerConnection {
    fn handle_bytes(&mut self, bytes: &[u8], now: Millis, out: &mut Output) {
        let mut rest = bytes;
        self.has_heard |= self.phase == Phase::Connected;
        // First the cut packet, with no byte more than it needs: so it is freed, and what follows is read in place.
        while !self.held.is_empty()
            && !rest.is_empty()
            && matches!(self.phase, Phase::AwaitConnect | Phase::Connected)
        {
            let missing = match self.next_header(&self.held) {
                Ok(Some(header)) => header.total_len() - self.held.len(),
                Ok(None) => 1,
                Err(error) => return self.fail(error, out),
            };
            let (taken, left) = rest.split_at(missing.min(rest.len()));
            self.held.extend_from_slice(taken);
            rest = left;
            if taken.len() == missing {
                let packet = std::mem::take(&mut self.held);
                if self.consume(&packet, now, out) == 0 && self.phase != Phase::Closed {
                    self.held = packet;
                }
            }
        }
        let used = self.consume(rest, now, out);
        self.hold(&rest[used..], out);
    }

    fn handle_reply(&mut self, reply: Reply, now: Millis, out: &mut Output) {
        match reply {
            Reply::Connect(answer) => {
                self.handle_connect_answer(answer, now, out);
                let held = std::mem::take(&mut self.held);
                let used = self.consume(&held, now, out);
                self.hold(&held[used..], out);
            }
            Reply::Publish { token, outcome } => self.handle_publish_answer(token, outcome, out),
            Reply::Subscribe { token, outcomes } => self.handle_subscribe_answer(token, &outcomes, out),
            Reply::Unsubscribe { token, existed } => self.handle_unsubscribe_answer(token, &existed, out),
            // Pings of MQTT are answered here, and nothing of XMPP's is asked.
            Reply::Ping { .. } | Reply::Xmpp(_) => {}
        }
    }

    fn handle_deliver(
        &mut self,
        message: &mut Fanned,
        how: Deliver<'_>,
        _now: Millis,
        bytes: &mut Vec<u8>,
    ) -> Delivered {
        self.deliver(message, how, bytes)
    }

    fn handle_timeout(&mut self, now: Millis, out: &mut Output) {
        if self.next_timeout().is_none_or(|at| now < at) {
            return;
        }
        match self.phase {
            Phase::AwaitConnect => self.close("connect_timeout", false, out),
            _ => self.fail(ProtocolError::new("keepalive", code::KEEPALIVE_TIMEOUT), out),
        }
    }

    fn handle_goodbye(&mut self, why: Goodbye, now: Millis, out: &mut Output) {
        let (kind, code) = match why {
            Goodbye::TakenOver => ("taken_over", code::SESSION_TAKEN_OVER),
            Goodbye::ServerShuttingDown => ("shutting_down", code::SERVER_SHUTTING_DOWN),
            Goodbye::Revoked => ("revoked", code::NOT_AUTHORIZED),
            Goodbye::QuotaExceeded => ("quota_exceeded", code::QUOTA_EXCEEDED),
            Goodbye::SlowReader => ("slow_reader", code::QUOTA_EXCEEDED),
            Goodbye::BadAcks => ("bad_acks", code::QUOTA_EXCEEDED),
            Goodbye::Busy => ("busy", code::SERVER_BUSY),
            Goodbye::Unavailable => ("unavailable", code::SERVER_BUSY),
            Goodbye::SessionExpired => ("session_expired", code::MAXIMUM_CONNECT_TIME),
        };
        if self.phase == Phase::AwaitAnswer {
            let is_full = why == Goodbye::Busy;
            let refusal = if is_full { ConnectRefusal::Busy } else { ConnectRefusal::Unavailable };
            return self.handle_connect_answer(Err(refusal), now, out);
        }
        self.fail(ProtocolError::new(kind, code), out);
    }

    fn next_timeout(&self) -> Option<Millis> {
        match self.phase {
            Phase::AwaitConnect => Some(self.heard_at + self.config.connect_timeout_ms),
            Phase::Connected => self.silence_max_ms().map(|silence| self.heard_at + silence),
            // The answer is the server's own to give, and it has its own deadline for it.
            Phase::AwaitAnswer | Phase::Closed => None,
        }
    }

    fn window(&self) -> usize {
        if self.phase != Phase::Connected {
            return 0;
        }
        let max = usize::from(self.inflight_max);
        self.inflight.as_ref().map_or(max, |inflight| inflight.window(max))
    }
}

impl ServerConnection {
    /// Keeps what cannot be read yet: the head of a cut packet, or what was sent ahead of our CONNACK.
    fn hold(&mut self, bytes: &[u8], out: &mut Output) {
        if bytes.is_empty() || self.phase == Phase::Closed {
            return;
        }
        self.held.extend_from_slice(bytes);
        if self.phase == Phase::AwaitAnswer && self.held.len() > self.config.packet_bytes_max_before_auth {
            self.close("ahead_of_answer", false, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Publish, Qos};
    use bytes::Bytes;

    const CONNECT: &[u8] = b"\x10\x0E\0\x04MQTT\x05\x02\0\x3C\0\0\x01c";
    const TINY_CONNECT: &[u8] = b"\x10\x0D\0\x04MQTT\x04\x02\0\x3C\0\x01c";

    fn connected(connect: &[u8]) -> ServerConnection {
        let mut connection = ServerConnection::new(Arc::default(), 0);
        let mut out = Output::default();
        connection.handle_bytes(connect, 0, &mut out);
        connection.handle_reply(Reply::Connect(Ok(Box::default())), 0, &mut out);
        assert!(connection.is_connected());
        connection
    }

    fn owns_heap(connection: &ServerConnection) -> bool {
        connection.held.capacity() > 0 || connection.inflight.is_some() || connection.aliases.is_some()
    }

    #[test]
    fn an_idle_connection_owns_no_heap_but_its_client_id() {
        for connect in [CONNECT, TINY_CONNECT] {
            let mut connection = connected(connect);
            assert!(!owns_heap(&connection));
            let mut out = Output::default();
            connection.handle_bytes(b"\xC0", 0, &mut out);
            assert!(owns_heap(&connection), "a cut packet is kept");
            connection.handle_bytes(b"\0", 0, &mut out);
            assert!(!owns_heap(&connection));

            let mut fanned = Fanned::new(Publish { topic: Text::from("t"), ..Publish::default() });
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
            connection.handle_deliver(&mut fanned, how, 0, &mut out.bytes);
            assert!(owns_heap(&connection), "a delivery in flight is kept");
            connection.handle_bytes(b"\x40\x02\0\x01", 0, &mut out);
            assert!(!owns_heap(&connection));
        }
    }

    #[test]
    fn a_cut_packet_takes_memory_as_it_comes_and_not_as_it_was_declared() {
        let mut connection = connected(TINY_CONNECT);
        let mut out = Output::default();
        // A PUBLISH that says it has 60,000 bytes.
        connection.handle_bytes(&[0x30, 0xE0, 0xD4, 0x03, 0, 1, b't'], 0, &mut out);
        assert!(connection.held.capacity() < 64);
        connection.handle_bytes(&Bytes::from(vec![b'x'; 1_000]), 0, &mut out);
        assert!(connection.held.capacity() < 2_100);
    }
}
