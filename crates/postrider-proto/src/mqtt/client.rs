//! `mqtt::ClientConnection`: the client's side of one connection, for tests, the command line and the benchmark.
//!
//! Like the server's side it has no IO: its methods append to a buffer of the caller's, [`ClientConnection::handle_bytes`]
//! reads what the server sent. It speaks all levels, keeps the rules of its side (windows, maximum packet size,
//! aliases of the server) and resumes a session. It does not reconnect, and it does not queue: a full window is an error.

mod config;

use super::codec::{self, Header, Limits, ProtocolError, PublishFrame};
use super::inflight::{Arrived, Inflight, Reserved, Settled};
use super::packet::*;
use crate::fanned::is_writable;
use crate::{Millis, Publish, Qos, RetainHandling, Subscription, Text};
pub use config::ClientConfig;
use std::collections::VecDeque;
use std::sync::Arc;

/// What a `handle_*` call brought forth.
#[derive(Debug, Default)]
pub struct ClientOutput {
    pub bytes: Vec<u8>,
    pub events: Vec<ClientEvent>,
    /// When set: write `bytes`, then close; the word says why.
    pub close: Option<&'static str>,
}

#[derive(Debug, PartialEq)]
pub enum ClientEvent {
    Connected {
        session_present: bool,
        properties: Box<ConnAckProperties>,
    },
    /// The server refused the sign-in.
    Refused {
        code: u8,
        reason: Option<Text>,
    },
    /// `receipt` is there above QoS 0; with `acks_by_hand` it wants [`ClientConnection::ack`].
    Message {
        publish: Publish,
        subscription_ids: Vec<u32>,
        receipt: Option<Receipt>,
    },
    /// A publish above QoS 0 reached its end: accepted where `code` is below 0x80.
    Published {
        token: u64,
        code: u8,
    },
    Subscribed {
        id: u16,
        codes: Vec<u8>,
    },
    Unsubscribed {
        id: u16,
        codes: Vec<u8>,
    },
    Pong,
    /// The server's own DISCONNECT (MQTT 5).
    Disconnected {
        code: u8,
        reason: Option<Text>,
    },
}

/// Names a message to be acknowledged by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub id: u16,
    pub qos: Qos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("not connected")]
    NotConnected,
    #[error("too many publishes unacknowledged")]
    WindowFull,
    #[error("larger than the server takes")]
    TooLarge,
}

/// What outlives the connection.
#[derive(Debug)]
pub struct ClientSession {
    inflight: Inflight,
    unacked: VecDeque<(u64, Publish)>,
    next_token: u64,
}

impl ClientSession {
    /// Publishes that were not acknowledged.
    pub fn unacked(&self) -> usize {
        self.unacked.len()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    AwaitConnack,
    Connected,
    Closed,
}

#[derive(Debug)]
pub struct ClientConnection {
    config: Arc<ClientConfig>,
    held: Vec<u8>,
    inflight: Inflight,
    /// Publishes above QoS 0 with their tokens, in the order of their sending.
    unacked: VecDeque<(u64, Publish)>,
    next_token: u64,
    /// What the server's aliases stand for.
    aliases: Vec<Text>,
    written_at: Millis,
    /// When a ping was sent that is not answered.
    pinged_at: Option<Millis>,
    keepalive_secs: u16,
    window_max: u16,
    server_packet_bytes_max: usize,
    phase: Phase,
}

impl ClientConnection {
    pub fn new(config: Arc<ClientConfig>) -> Self {
        let session = ClientSession { inflight: Inflight::new(1), unacked: VecDeque::new(), next_token: 1 };
        Self::resume(config, session)
    }

    /// Goes on with the session of an earlier connection, if the server still has it.
    pub fn resume(config: Arc<ClientConfig>, session: ClientSession) -> Self {
        ClientConnection {
            held: Vec::new(),
            inflight: session.inflight,
            unacked: session.unacked,
            next_token: session.next_token,
            aliases: Vec::new(),
            written_at: 0,
            pinged_at: None,
            keepalive_secs: config.keepalive_secs,
            window_max: config.inflight_max,
            server_packet_bytes_max: usize::MAX,
            phase: Phase::New,
            config,
        }
    }

    pub fn into_session(mut self) -> ClientSession {
        self.inflight.detach();
        ClientSession { inflight: self.inflight, unacked: self.unacked, next_token: self.next_token }
    }

    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// How many more publishes above QoS 0 may be sent now.
    pub fn window(&self) -> usize {
        if self.phase == Phase::Connected { self.inflight.window(usize::from(self.window_max)) } else { 0 }
    }

    /// Publishes sent and not acknowledged.
    pub fn unacked(&self) -> usize {
        self.unacked.len()
    }

    /// Sends CONNECT: to be called first.
    pub fn connect(&mut self, now: Millis, bytes: &mut Vec<u8>) {
        self.phase = Phase::AwaitConnack;
        self.send(&Packet::Connect(Box::new(self.config.connect_packet())), now, bytes);
    }

    /// Publishes. The token comes back in [`ClientEvent::Published`]; at QoS 0 it is 0 and does not.
    pub fn publish(
        &mut self,
        publish: Publish,
        now: Millis,
        bytes: &mut Vec<u8>,
    ) -> Result<u64, ClientError> {
        if self.phase != Phase::Connected {
            return Err(ClientError::NotConnected);
        }
        let packet = PublishPacket { publish, ..PublishPacket::default() };
        let frame = PublishFrame::from_packet(&packet, self.config.level);
        if !is_writable(&packet.publish) || frame.total_len() > self.server_packet_bytes_max {
            return Err(ClientError::TooLarge);
        }
        if packet.publish.qos == Qos::AtMostOnce {
            frame.write(bytes);
            self.written_at = now;
            return Ok(0);
        }
        let token = self.next_token;
        match self.inflight.reserve(token, packet.publish.qos, usize::from(self.window_max)) {
            Reserved::New { id, .. } => PublishFrame { id, ..frame }.write(bytes),
            _ => return Err(ClientError::WindowFull),
        }
        self.next_token += 1;
        self.written_at = now;
        self.unacked.push_back((token, packet.publish));
        Ok(token)
    }

    /// Subscribes; the answer comes as [`ClientEvent::Subscribed`] with the id given here.
    pub fn subscribe(
        &mut self,
        filters: Vec<Subscription>,
        subscription_id: Option<u32>,
        now: Millis,
        bytes: &mut Vec<u8>,
    ) -> u16 {
        let id = self.inflight.reserve_request();
        self.send(&Packet::Subscribe(Subscribe { id, subscription_id, filters, excess: 0 }), now, bytes);
        id
    }

    pub fn unsubscribe(&mut self, filters: Vec<Text>, now: Millis, bytes: &mut Vec<u8>) -> u16 {
        let id = self.inflight.reserve_request();
        self.send(&Packet::Unsubscribe(Unsubscribe { id, filters }), now, bytes);
        id
    }

    /// Acknowledges a message by hand: `code` 0, or why it is refused (MQTT 5).
    pub fn ack(&mut self, receipt: Receipt, code: u8, now: Millis, bytes: &mut Vec<u8>) {
        let ack = Ack { id: receipt.id, code };
        if receipt.qos == Qos::ExactlyOnce {
            self.inflight.answer(receipt.id, code >= 0x80);
            self.send(&Packet::PubRec(ack), now, bytes);
        } else {
            self.send(&Packet::PubAck(ack), now, bytes);
        }
    }

    pub fn ping(&mut self, now: Millis, bytes: &mut Vec<u8>) {
        self.pinged_at.get_or_insert(now);
        self.send(&Packet::PingReq, now, bytes);
    }

    /// Says goodbye; close when it is written.
    pub fn disconnect(&mut self, packet: Disconnect, now: Millis, bytes: &mut Vec<u8>) {
        self.send(&Packet::Disconnect(Box::new(packet)), now, bytes);
        self.phase = Phase::Closed;
    }

    fn send(&mut self, packet: &Packet, now: Millis, bytes: &mut Vec<u8>) {
        codec::encode(packet, self.config.level, bytes);
        self.written_at = now;
    }

    /// When [`Self::handle_timeout`] wants to be called, at the latest.
    pub fn next_timeout(&self) -> Option<Millis> {
        let keepalive_ms = u64::from(self.keepalive_secs) * 1_000;
        match (self.phase, keepalive_ms) {
            (Phase::Connected, 1..) => Some(self.pinged_at.unwrap_or(self.written_at) + keepalive_ms),
            _ => None,
        }
    }

    /// Pings after a silence of one keep-alive; gives the server up when a ping is not answered for as long.
    pub fn handle_timeout(&mut self, now: Millis, out: &mut ClientOutput) {
        if self.next_timeout().is_none_or(|at| now < at) {
            return;
        }
        if self.pinged_at.is_some() {
            return self.close("ping_timeout", out);
        }
        self.ping(now, &mut out.bytes);
    }

    /// Bytes of the server, cut anywhere.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Millis, out: &mut ClientOutput) {
        if self.held.is_empty() {
            let used = self.consume(bytes, now, out);
            self.hold(&bytes[used..]);
            return;
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let used = self.consume(&held, now, out);
        self.hold(&held[used..]);
    }

    fn hold(&mut self, bytes: &[u8]) {
        if self.phase != Phase::Closed {
            self.held.extend_from_slice(bytes);
        }
    }

    fn consume(&mut self, bytes: &[u8], now: Millis, out: &mut ClientOutput) -> usize {
        let mut at = 0;
        while at < bytes.len() && matches!(self.phase, Phase::AwaitConnack | Phase::Connected) {
            let level = self.config.level;
            let header = match codec::header(&bytes[at..], Some(level), self.config.packet_bytes_max) {
                Ok(Some(header)) if header.total_len() <= bytes.len() - at => header,
                Ok(_) => break,
                Err(error) => {
                    self.close(error.kind, out);
                    break;
                }
            };
            let body = &bytes[at + header.header_len..at + header.total_len()];
            at += header.total_len();
            if let Err(error) = self.handle_packet(header, body, now, out) {
                self.close(error.kind, out);
            }
        }
        at
    }

    fn handle_packet(
        &mut self,
        header: Header,
        body: &[u8],
        now: Millis,
        out: &mut ClientOutput,
    ) -> Result<(), ProtocolError> {
        let packet = codec::decode(header, body, self.config.level, &Limits::of_protocol())?;
        if (self.phase == Phase::AwaitConnack) != matches!(packet, Packet::ConnAck(_)) {
            return Err(ProtocolError::PROTOCOL);
        }
        match packet {
            Packet::ConnAck(connack) => self.handle_connack(*connack, now, out),
            Packet::Publish(packet) => return self.handle_publish(packet, now, out),
            Packet::PubAck(ack) => {
                let settled = self.inflight.handle_puback(ack.id);
                self.report(settled, ack.code, out);
            }
            Packet::PubRec(ack) => self.handle_pubrec(ack, now, out),
            Packet::PubRel(ack) => {
                let code = if self.inflight.release(ack.id) { 0 } else { code::PACKET_ID_NOT_FOUND };
                self.send(&Packet::PubComp(Ack { id: ack.id, code }), now, &mut out.bytes);
            }
            Packet::PubComp(ack) => {
                let settled = self.inflight.handle_pubcomp(ack.id);
                self.report(settled, 0, out);
            }
            Packet::SubAck(SubAck { id, codes }) => {
                self.inflight.finish_request(id);
                out.events.push(ClientEvent::Subscribed { id, codes });
            }
            Packet::UnsubAck(UnsubAck { id, codes }) => {
                self.inflight.finish_request(id);
                out.events.push(ClientEvent::Unsubscribed { id, codes });
            }
            Packet::PingResp => {
                self.pinged_at = None;
                out.events.push(ClientEvent::Pong);
            }
            Packet::Disconnect(packet) if self.config.level.is_v5() => {
                out.events.push(ClientEvent::Disconnected { code: packet.code, reason: packet.reason });
                self.close("disconnected", out);
            }
            _ => return Err(ProtocolError::PROTOCOL),
        }
        Ok(())
    }

    fn handle_connack(&mut self, connack: ConnAck, now: Millis, out: &mut ClientOutput) {
        if connack.code != 0 {
            let reason = connack.properties.reason;
            out.events.push(ClientEvent::Refused { code: connack.code, reason });
            return self.close("refused", out);
        }
        self.phase = Phase::Connected;
        let properties = connack.properties;
        self.keepalive_secs = properties.server_keepalive_secs.unwrap_or(self.keepalive_secs);
        self.window_max = self.config.inflight_max.min(properties.receive_maximum.unwrap_or(u16::MAX));
        self.server_packet_bytes_max = properties.packet_bytes_max.map_or(usize::MAX, |bytes| bytes as usize);
        // 3.1 cannot say whether it has the session: who asked to keep it goes by that it was kept.
        let is_kept_unsaid = self.config.level == Level::V31 && !self.config.clean_start;
        if !connack.session_present && !is_kept_unsaid {
            self.inflight = Inflight::new(1);
        }
        self.send_unacked_again(now, out);
        let properties = Box::new(properties);
        out.events.push(ClientEvent::Connected { session_present: connack.session_present, properties });
    }

    /// With the session present as what they were (MQTT-4.4.0-1), without it as new ones: none is lost.
    fn send_unacked_again(&mut self, now: Millis, out: &mut ClientOutput) {
        let released: Vec<u16> = self.inflight.released_ids().collect();
        for id in released {
            self.send(&Packet::PubRel(Ack { id, code: 0 }), now, &mut out.bytes);
        }
        for (token, publish) in &self.unacked {
            // All were in one window before; a server that shrank it gets them all the same.
            let (id, dup) = match self.inflight.reserve(*token, publish.qos, usize::from(u16::MAX)) {
                Reserved::New { id, .. } => (id, false),
                Reserved::Again { id, .. } => (id, true),
                Reserved::Released | Reserved::WindowFull => continue,
            };
            let packet = PublishPacket { publish: publish.clone(), id, ..PublishPacket::default() };
            PublishFrame { dup, ..PublishFrame::from_packet(&packet, self.config.level) }
                .write(&mut out.bytes);
        }
    }

    fn handle_publish(
        &mut self,
        packet: PublishPacket,
        now: Millis,
        out: &mut ClientOutput,
    ) -> Result<(), ProtocolError> {
        let PublishPacket { mut publish, id, alias, subscription_ids } = packet;
        if let Some(alias) = alias {
            self.resolve_alias(alias, &mut publish.topic)?;
        }
        let qos = publish.qos;
        let receipt = (qos > Qos::AtMostOnce).then_some(Receipt { id, qos });
        if qos == Qos::ExactlyOnce {
            match self.inflight.arrive(id) {
                Arrived::First => {}
                Arrived::Pending => return Ok(()),
                Arrived::Received => {
                    self.send(&Packet::PubRec(Ack { id, code: 0 }), now, &mut out.bytes);
                    return Ok(());
                }
            }
        }
        out.events.push(ClientEvent::Message { publish, subscription_ids, receipt });
        match receipt {
            Some(receipt) if !self.config.acks_by_hand => self.ack(receipt, 0, now, &mut out.bytes),
            _ => {}
        }
        Ok(())
    }

    fn resolve_alias(&mut self, alias: u16, topic: &mut Text) -> Result<(), ProtocolError> {
        let index = usize::from(alias);
        if alias > self.config.topic_alias_maximum {
            return Err(ProtocolError::TOPIC_ALIAS);
        }
        if topic.is_empty() {
            let known = self.aliases.get(index - 1).filter(|known| !known.is_empty());
            *topic = known.ok_or(ProtocolError::PROTOCOL)?.clone();
            return Ok(());
        }
        if self.aliases.len() < index {
            self.aliases.resize(index, Text::default());
        }
        self.aliases[index - 1] = Text::from(topic.as_str());
        Ok(())
    }

    fn handle_pubrec(&mut self, ack: Ack, now: Millis, out: &mut ClientOutput) {
        let settled = self.inflight.handle_pubrec(ack.id, ack.code >= 0x80);
        let release_code = match settled {
            Settled::Release => Some(0),
            Settled::Unknown if ack.code < 0x80 => Some(code::PACKET_ID_NOT_FOUND),
            _ => None,
        };
        if let Some(code) = release_code {
            self.send(&Packet::PubRel(Ack { id: ack.id, code }), now, &mut out.bytes);
        }
        self.report(settled, ack.code, out);
    }

    fn report(&mut self, settled: Settled, code: u8, out: &mut ClientOutput) {
        let Settled::Done { delivery: token } = settled else { return };
        // Nearly always the first: servers acknowledge in order.
        if let Some(index) = self.unacked.iter().position(|(unacked, _)| *unacked == token) {
            self.unacked.remove(index);
        }
        out.events.push(ClientEvent::Published { token, code });
    }

    fn close(&mut self, kind: &'static str, out: &mut ClientOutput) {
        self.phase = Phase::Closed;
        self.held = Vec::new();
        out.close.get_or_insert(kind);
    }
}

impl Subscription {
    /// A plain subscription, with the options at their defaults.
    pub fn new(filter: &str, qos: Qos) -> Self {
        Subscription {
            filter: Text::from(filter),
            share: None,
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
            valid: true,
        }
    }
}
