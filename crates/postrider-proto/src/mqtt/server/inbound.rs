//! What the peer publishes, and what it subscribes to.
//!
//! A token names the packet that an answer belongs to: its id in the low half, in the high half what kind of answer it is.

use super::sign_in::payload_is_as_said;
use super::{Phase, ServerConnection};
use crate::mqtt::codec::{self, ProtocolError};
use crate::mqtt::inflight::{Arrived, Inflight};
use crate::mqtt::packet::{Ack, Kind, PublishPacket, Subscribe, code};
use crate::mqtt::topic;
use crate::{Event, Millis, Output, PublishOutcome, Qos, SubscribeOutcome, Subscription, Text};

const QOS1: u32 = 1 << 16;
const QOS2: u32 = 2 << 16;

impl ServerConnection {
    pub(super) fn handle_publish(
        &mut self,
        packet: PublishPacket,
        out: &mut Output,
    ) -> Result<(), ProtocolError> {
        // MQTT-3.3.4-6.
        if !packet.subscription_ids.is_empty() {
            return Err(ProtocolError::PROTOCOL);
        }
        let mut publish = packet.publish;
        if let Some(alias) = packet.alias {
            self.resolve_alias(alias, &mut publish.topic)?;
        }
        // MQTT-3.2.2-11.
        if publish.qos > self.config.maximum_qos {
            return Err(ProtocolError::QOS);
        }
        // MQTT-3.2.2-14. A 3.x client could not be told: its publish goes on, and may be refused like any other.
        if publish.retain && !self.config.retain_available && self.level.is_v5() {
            return Err(ProtocolError::RETAIN);
        }
        if !payload_is_as_said(&publish) {
            return Err(ProtocolError::PAYLOAD_FORMAT);
        }
        let id = packet.id;
        let token = match publish.qos {
            Qos::AtMostOnce => 0,
            Qos::AtLeastOnce => {
                self.admit_qos1()?;
                QOS1 | u32::from(id)
            }
            Qos::ExactlyOnce => match self.admit_qos2(id)? {
                Arrived::First => QOS2 | u32::from(id),
                Arrived::Pending => return Ok(()),
                Arrived::Received => {
                    self.push_ack(Kind::PubRec, id, 0, out);
                    return Ok(());
                }
            },
        };
        out.events.push(Event::Publish { token, publish });
        Ok(())
    }

    /// MQTT 5 §3.3.2.3.4.
    fn resolve_alias(&mut self, alias: u16, topic: &mut Text) -> Result<(), ProtocolError> {
        let index = usize::from(alias);
        if alias == 0 || alias > self.config.topic_alias_maximum {
            return Err(ProtocolError::TOPIC_ALIAS);
        }
        if topic.is_empty() {
            let known = self.aliases.as_ref().and_then(|aliases| aliases.inbound.get(index - 1));
            let known = known.filter(|known| !known.is_empty()).ok_or(ProtocolError::PROTOCOL)?;
            *topic = known.clone();
            return Ok(());
        }
        let known = &mut self.aliases.get_or_insert_default().inbound;
        if known.len() < index {
            known.resize(index, Text::default());
        }
        if known[index - 1] != *topic {
            // A copy: the topic at hand is a slice of the whole message, and would keep it.
            known[index - 1] = Text::from(topic.as_str());
        }
        Ok(())
    }

    /// Only MQTT 5 clients were told a Receive Maximum (MQTT-3.3.4-7).
    fn admit_qos1(&mut self) -> Result<(), ProtocolError> {
        if self.level.is_v5() {
            self.check_receive_maximum()?;
            self.unanswered += 1;
        }
        Ok(())
    }

    fn admit_qos2(&mut self, id: u16) -> Result<Arrived, ProtocolError> {
        let is_known = self.inflight.as_ref().is_some_and(|inflight| inflight.has_arrived(id));
        if !is_known {
            self.check_receive_maximum()?;
        }
        let (next_id, unsure) = (self.next_id, self.unsure);
        let inflight = self.inflight.get_or_insert_with(|| Box::new(Inflight::with_unsure(next_id, unsure)));
        Ok(inflight.arrive(id))
    }

    fn check_receive_maximum(&self) -> Result<(), ProtocolError> {
        let unreleased = self.inflight.as_ref().map_or(0, |inflight| inflight.inbound_len());
        let (open, max) = match self.level.is_v5() {
            true => (unreleased + usize::from(self.unanswered), self.config.receive_maximum.max(1)),
            false => (unreleased, self.config.awaiting_release_max.max(1)),
        };
        if open >= usize::from(max) { Err(ProtocolError::RECEIVE_MAXIMUM) } else { Ok(()) }
    }

    /// The answer may come after the end of the connection: then it matters to the session only.
    pub(super) fn handle_publish_answer(&mut self, token: u32, outcome: PublishOutcome, out: &mut Output) {
        let id = token as u16;
        let code = match outcome {
            PublishOutcome::Accepted => code::SUCCESS,
            PublishOutcome::NoSubscribers => code::NO_MATCHING_SUBSCRIBERS,
            PublishOutcome::NotAuthorized => code::NOT_AUTHORIZED,
            PublishOutcome::QuotaExceeded => code::QUOTA_EXCEEDED,
            PublishOutcome::TopicInvalid => code::TOPIC_INVALID,
            PublishOutcome::PayloadInvalid => code::PAYLOAD_FORMAT_INVALID,
            // No acknowledgement: so the peer sends it again when it is back. SERVER_BUSY is for DISCONNECT what
            // 0x88 is for CONNACK (table 2-6).
            PublishOutcome::Unavailable => {
                return self.fail(ProtocolError::new("unavailable", code::SERVER_BUSY), out);
            }
        };
        // 3.x knows no refusal of a publish: "it MUST either make a positive acknowledgement … or close the Network
        // Connection" (MQTT-3.3.5-2). So what is not allowed is acknowledged and dropped.
        let code = if self.level.is_v5() { code } else { code::SUCCESS };
        match token & !0xFFFF {
            QOS1 => {
                self.unanswered = self.unanswered.saturating_sub(1);
                if self.phase == Phase::Connected {
                    self.push_ack(Kind::PubAck, id, code, out);
                }
            }
            QOS2 => {
                let is_awaited =
                    self.inflight.as_mut().is_some_and(|inflight| inflight.answer(id, code >= 0x80));
                if is_awaited && self.phase == Phase::Connected {
                    self.push_ack(Kind::PubRec, id, code, out);
                }
                self.drop_empty_inflight();
            }
            _ => {}
        }
    }

    /// Releases a QoS 2 publish. An unknown id is answered too, or the peer would never be rid of it (MQTT-4.3.3-2).
    pub(super) fn handle_pubrel(
        &mut self,
        ack: Ack,
        now: Millis,
        out: &mut Output,
    ) -> Result<(), ProtocolError> {
        let is_known = self.inflight.as_mut().is_some_and(|inflight| inflight.release(ack.id));
        if is_known {
            self.push_ack(Kind::PubComp, ack.id, 0, out);
            self.drop_empty_inflight();
            return Ok(());
        }
        self.push_ack(Kind::PubComp, ack.id, code::PACKET_ID_NOT_FOUND, out);
        self.count_bad_ack(now, out);
        Ok(())
    }

    pub(super) fn handle_subscribe(
        &mut self,
        packet: Subscribe,
        out: &mut Output,
    ) -> Result<(), ProtocolError> {
        // The token has 16 bits for them; a peer that needs more is not worth the answer.
        let excess = u16::try_from(packet.excess).map_err(|_| ProtocolError::QUOTA)?;
        let mut filters = packet.filters;
        for filter in &mut filters {
            self.check_availability(filter)?;
            filter.no_local |= self.is_bridge && filter.share.is_none();
            filter.retain_as_published |= self.is_bridge;
        }
        let token = u32::from(excess) << 16 | u32::from(packet.id);
        out.events.push(Event::Subscribe { token, filters, id: packet.subscription_id });
        Ok(())
    }

    /// MQTT-3.2.2.3.11 and .13: who was told and asks all the same is out; who could not be told gets a refusal.
    fn check_availability(&self, filter: &mut Subscription) -> Result<(), ProtocolError> {
        let is_wildcard =
            !self.config.wildcard_available && filter.valid && topic::has_wildcard(&filter.filter);
        let is_shared = !self.config.shared_available && filter.share.is_some();
        match (is_wildcard, is_shared, self.level.is_v5()) {
            (true, _, true) => return Err(ProtocolError::WILDCARD),
            (_, true, true) => return Err(ProtocolError::SHARED),
            (false, false, _) => {}
            _ => filter.valid = false,
        }
        Ok(())
    }

    pub(super) fn handle_subscribe_answer(
        &mut self,
        token: u32,
        outcomes: &[SubscribeOutcome],
        out: &mut Output,
    ) {
        if self.phase != Phase::Connected {
            return;
        }
        let is_v5 = self.level.is_v5();
        let code_of = |outcome: &SubscribeOutcome| match outcome {
            SubscribeOutcome::Granted(qos) => *qos as u8,
            SubscribeOutcome::Refused(code) if is_v5 => *code,
            SubscribeOutcome::Refused(_) => code::UNSPECIFIED,
        };
        let codes: Vec<u8> = outcomes.iter().map(code_of).collect();
        let excess_code = if is_v5 { code::QUOTA_EXCEEDED } else { code::UNSPECIFIED };
        let excess = ((token >> 16) as usize, excess_code);
        let start = out.bytes.len();
        codec::encode_codes(Kind::SubAck, token as u16, &codes, excess, self.level, &mut out.bytes);
        self.fits_peer(start, out);
    }

    pub(super) fn handle_unsubscribe_answer(&mut self, token: u32, existed: &[bool], out: &mut Output) {
        if self.phase != Phase::Connected {
            return;
        }
        let code_of = |&existed: &bool| if existed { code::SUCCESS } else { code::NO_SUBSCRIPTION_EXISTED };
        let codes: Vec<u8> =
            if self.level.is_v5() { existed.iter().map(code_of).collect() } else { Vec::new() };
        let start = out.bytes.len();
        codec::encode_codes(Kind::UnsubAck, token as u16, &codes, (0, 0), self.level, &mut out.bytes);
        self.fits_peer(start, out);
    }

    pub(super) fn push_ack(&self, kind: Kind, id: u16, code: u8, out: &mut Output) {
        codec::encode_ack(kind, Ack { id, code }, self.level, &mut out.bytes);
    }
}
