//! From CONNECT to CONNACK.

use super::{Phase, ServerConnection};
use crate::mqtt::codec::{self, Header, Protocol, ProtocolError, encode_refusal};
use crate::mqtt::packet::{self, Ack, ConnAck, ConnAckProperties, Kind, Level, Packet, code};
use crate::{Accepted, Connect, ConnectRefusal, Event, Millis, Output, Qos, Text};

impl ServerConnection {
    pub(super) fn handle_connect(
        &mut self,
        header: Header,
        body: &[u8],
        out: &mut Output,
    ) -> Result<(), ProtocolError> {
        match codec::protocol_of(body)? {
            Protocol::Known { level, is_bridge } => (self.level, self.is_bridge) = (level, is_bridge),
            Protocol::UnknownLevel(level) => {
                self.refuse_level(level, out);
                return Ok(());
            }
        }
        // From here on the peer can be told what is wrong.
        self.phase = Phase::AwaitAnswer;
        let Packet::Connect(connect) = codec::decode(header, body, self.level, &self.config.limits)? else {
            return Err(ProtocolError::PROTOCOL);
        };
        self.check_connect(&connect)?;
        self.note_wishes(&connect);
        let session_expiry_secs = match (connect.level, connect.clean_start) {
            (Level::V5, _) => self.granted_expiry_secs(&connect),
            (_, true) => 0,
            (_, false) => u32::MAX,
        };
        out.events.push(Event::Connect(Box::new(Connect {
            level: connect.level as u8,
            client_id: connect.client_id,
            clean_start: connect.clean_start,
            session_expiry_secs,
            user: connect.user,
            password: connect.password,
            token: None,
            takes_pushes: false,
            is_proven: false,
            will: connect.will,
            keepalive_secs: connect.keepalive_secs,
        })));
        Ok(())
    }

    /// MQTT-3.1.2-2: levels that there are not, answered in the words of the nearest one that there is. A bridge falls back to
    /// an older level when it reads the answer of 3.1.1.
    fn refuse_level(&mut self, level: u8, out: &mut Output) {
        let is_newer = level > Level::V5 as u8 && level & codec::BRIDGE_BIT == 0;
        let (words_of, code) =
            if is_newer { (Level::V5, code::UNSUPPORTED_VERSION) } else { (Level::V311, 1) };
        encode_refusal(words_of, code, &mut out.bytes);
        self.close(ProtocolError::UNSUPPORTED_VERSION.kind, true, out);
    }

    fn check_connect(&self, connect: &packet::Connect) -> Result<(), ProtocolError> {
        if connect.properties.auth_method.is_some() {
            return Err(ProtocolError::AUTH_METHOD);
        }
        // MQTT-3.1.3-8 of 3.1.1: who wants a session needs a name for it. MQTT 5 gets one assigned.
        let is_nameless_session =
            connect.client_id.is_empty() && !connect.clean_start && !connect.level.is_v5();
        if is_nameless_session || !self.config.accepts_client_id(&connect.client_id) {
            return Err(ProtocolError::CLIENT_ID);
        }
        if let Some(will) = &connect.will {
            if will.publish.qos > self.config.maximum_qos {
                return Err(ProtocolError::QOS);
            }
            if will.publish.retain && !self.config.retain_available && connect.level.is_v5() {
                return Err(ProtocolError::RETAIN);
            }
            if !payload_is_as_said(&will.publish) {
                return Err(ProtocolError::PAYLOAD_FORMAT);
            }
        }
        Ok(())
    }

    /// Keeps what the connection needs to know of the CONNECT.
    fn note_wishes(&mut self, connect: &packet::Connect) {
        let wishes = &connect.properties;
        self.inflight_max = self.config.inflight_max.min(wishes.receive_maximum.unwrap_or(u16::MAX)).max(1);
        self.peer_packet_bytes_max = wishes.packet_bytes_max.unwrap_or(u32::MAX);
        self.peer_alias_maximum =
            wishes.topic_alias_maximum.unwrap_or(0).min(self.config.topic_alias_maximum);
        self.is_expiry_zero = connect.level.is_v5() && wishes.session_expiry_secs.unwrap_or(0) == 0;
        self.keepalive_secs = connect.keepalive_secs;
        if let (Level::V5, Some(longest)) = (connect.level, self.config.server_keepalive_secs)
            && (connect.keepalive_secs == 0 || connect.keepalive_secs > longest)
        {
            self.keepalive_secs = longest;
            self.is_keepalive_ours = true;
        }
    }

    fn granted_expiry_secs(&mut self, connect: &packet::Connect) -> u32 {
        let asked = connect.properties.session_expiry_secs.unwrap_or(0);
        let granted = asked.min(self.config.session_expiry_secs_max);
        self.is_expiry_lowered = granted != asked;
        granted
    }

    pub(super) fn handle_connect_answer(
        &mut self,
        answer: Result<Box<Accepted>, ConnectRefusal>,
        now: Millis,
        out: &mut Output,
    ) {
        if self.phase != Phase::AwaitAnswer {
            return;
        }
        match answer {
            Ok(accepted) => self.accept(*accepted, now, out),
            Err(refusal) => {
                let (kind, v3_code, v5_code) = refusal_codes(refusal);
                let code = if self.level.is_v5() { v5_code } else { v3_code };
                encode_refusal(self.level, code, &mut out.bytes);
                self.close(kind, true, out);
            }
        }
    }

    fn accept(&mut self, accepted: Accepted, now: Millis, out: &mut Output) {
        let session_present = accepted.session_present;
        // A 3.1 client is not told whether its session is there, so where its ids begin matters also without one.
        let inflight = accepted.inflight.filter(|_| session_present || self.level == Level::V31);
        let properties = self.connack_properties(accepted.assigned_client_id, accepted.session_expiry_secs);
        let connack = ConnAck { session_present, code: 0, properties };
        let start = out.bytes.len();
        codec::encode(&Packet::ConnAck(Box::new(connack)), self.level, &mut out.bytes);
        if !self.fits_peer(start, out) {
            return;
        }
        self.phase = Phase::Connected;
        self.heard_at = now;
        self.inflight = inflight;
        if let Some(inflight) = &mut self.inflight {
            // For a state that was cloned, or taken over from a connection that lives still.
            inflight.detach();
            for id in inflight.released_ids() {
                codec::encode_ack(Kind::PubRel, Ack { id, code: 0 }, self.level, &mut out.bytes);
            }
        }
        self.drop_empty_inflight();
    }

    /// What the client has to know: only where it differs from what it would assume.
    fn connack_properties(
        &self,
        assigned_client_id: Option<Text>,
        expiry_secs: Option<u32>,
    ) -> ConnAckProperties {
        let config = &self.config;
        let lowered = self.is_expiry_lowered.then_some(config.session_expiry_secs_max);
        ConnAckProperties {
            session_expiry_secs: expiry_secs.or(lowered),
            receive_maximum: (config.receive_maximum < u16::MAX).then_some(config.receive_maximum.max(1)),
            maximum_qos: (config.maximum_qos < Qos::ExactlyOnce).then_some(config.maximum_qos as u8),
            retain_available: (!config.retain_available).then_some(false),
            packet_bytes_max: u32::try_from(config.packet_bytes_max).ok(),
            assigned_client_id,
            topic_alias_maximum: (config.topic_alias_maximum > 0).then_some(config.topic_alias_maximum),
            wildcard_available: (!config.wildcard_available).then_some(false),
            shared_available: (!config.shared_available).then_some(false),
            server_keepalive_secs: self.is_keepalive_ours.then_some(self.keepalive_secs),
            ..ConnAckProperties::default()
        }
    }

    /// MQTT-3.1.2-24: what is larger than the peer takes is not sent. An answer that cannot be left out ends the connection.
    pub(super) fn fits_peer(&mut self, start: usize, out: &mut Output) -> bool {
        if out.bytes.len() - start <= self.peer_packet_bytes_max as usize {
            return true;
        }
        out.bytes.truncate(start);
        self.close("peer_packet_limit", false, out);
        false
    }
}

/// The word, the code of 3.x and the code of MQTT 5. 3.x has five codes: what it lacks is said with the nearest.
fn refusal_codes(refusal: ConnectRefusal) -> (&'static str, u8, u8) {
    match refusal {
        ConnectRefusal::ClientIdInvalid => ("client_id_invalid", 2, code::CLIENT_ID_INVALID),
        ConnectRefusal::BadCredentials => ("bad_credentials", 4, code::BAD_CREDENTIALS),
        ConnectRefusal::NotAuthorized => ("not_authorized", 5, code::NOT_AUTHORIZED),
        ConnectRefusal::RateExceeded => ("rate_exceeded", 3, code::CONNECTION_RATE_EXCEEDED),
        ConnectRefusal::Banned => ("banned", 5, code::BANNED),
        ConnectRefusal::Unavailable => ("unavailable", 3, code::SERVER_UNAVAILABLE),
        ConnectRefusal::Busy => ("busy", 3, code::SERVER_BUSY),
        ConnectRefusal::TopicInvalid => ("topic_invalid", 5, code::TOPIC_INVALID),
        ConnectRefusal::QuotaExceeded => ("quota_exceeded", 3, code::QUOTA_EXCEEDED),
        ConnectRefusal::RetainNotSupported => ("retain_not_supported", 5, code::RETAIN_NOT_SUPPORTED),
    }
}

/// MQTT 5 §3.3.2.3.2: a payload said to be UTF-8 is.
pub(super) fn payload_is_as_said(publish: &crate::Publish) -> bool {
    let is_said = publish.properties.as_ref().is_some_and(|properties| properties.payload_is_utf8);
    !is_said || std::str::from_utf8(&publish.payload).is_ok()
}
