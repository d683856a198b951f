//! Messages for the peer, and its acknowledgements of them.

use super::{Phase, ServerConnection};
use crate::fanned::Stamp;
use crate::mqtt::codec::{self, ProtocolError, PublishFrame};
use crate::mqtt::inflight::{Inflight, Reserved, Settled};
use crate::mqtt::packet::{Ack, Kind, code};
use crate::{Deliver, Delivered, Event, Fanned, Millis, Output, Qos, Text};

/// How an outgoing PUBLISH names its topic to a peer that takes aliases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alias {
    None,
    /// Topic and alias: from now on the alias will do.
    Define(u16),
    Known(u16),
}

impl ServerConnection {
    pub(super) fn deliver(
        &mut self,
        message: &mut Fanned,
        how: Deliver<'_>,
        bytes: &mut Vec<u8>,
    ) -> Delivered {
        if self.phase != Phase::Connected {
            return Delivered::NotReady;
        }
        let is_plain = self.peer_alias_maximum == 0 && how.subscription_ids.is_empty();
        if is_plain || !self.level.is_v5() {
            self.deliver_shared(message, how, bytes)
        } else {
            self.deliver_own(message, how, bytes)
        }
    }

    /// A copy of the frame that all peers share, with this peer's stamp on it.
    fn deliver_shared(&mut self, message: &mut Fanned, how: Deliver<'_>, bytes: &mut Vec<u8>) -> Delivered {
        if !message.is_writable() {
            return self.give_up(how.delivery);
        }
        let frame_len = message.frame_len(self.level, how.qos, how.expiry_left_secs);
        if frame_len > self.peer_packet_bytes_max as usize {
            return self.give_up(how.delivery);
        }
        let (id, is_again) = match self.reserve(how, bytes) {
            Ok(reserved) => reserved,
            Err(delivered) => return delivered,
        };
        let Deliver { qos, retain, .. } = how;
        let stamp = Stamp { qos, retain, dup: how.dup || is_again, id, expiry_secs: how.expiry_left_secs };
        message.write(self.level, stamp, bytes);
        Delivered::Written
    }

    /// A frame of the peer's own: it takes aliases, or subscribed with an identifier.
    fn deliver_own(&mut self, message: &mut Fanned, how: Deliver<'_>, bytes: &mut Vec<u8>) -> Delivered {
        let publish = message.publish();
        let alias = self.choose_alias(&publish.topic);
        let mut frame = PublishFrame {
            level: self.level,
            publish,
            qos: how.qos,
            retain: how.retain,
            dup: how.dup,
            id: 0,
            alias: match alias {
                Alias::None => None,
                Alias::Define(alias) | Alias::Known(alias) => Some(alias),
            },
            names_topic: !matches!(alias, Alias::Known(_)),
            expiry_secs: how.expiry_left_secs,
            subscription_ids: how.subscription_ids,
        };
        if !message.is_writable() || frame.total_len() > self.peer_packet_bytes_max as usize {
            return self.give_up(how.delivery);
        }
        match self.reserve(how, bytes) {
            Ok((id, is_again)) => {
                frame.id = id;
                frame.dup |= is_again;
            }
            Err(delivered) => return delivered,
        }
        if let Alias::Define(_) = alias {
            // A copy: the topic at hand may be a slice of the whole message, and would keep it.
            let topic = Text::from(publish.topic.as_str());
            self.aliases.get_or_insert_default().outbound.push(topic);
        }
        frame.write(bytes);
        Delivered::Written
    }

    /// The first topics get the aliases that there are; a device hears of few topics, so none is ever taken back.
    fn choose_alias(&self, topic: &Text) -> Alias {
        let known: &[Text] = self.aliases.as_ref().map_or(&[], |aliases| &aliases.outbound);
        if let Some(index) = known.iter().position(|known| known == topic) {
            return Alias::Known(index as u16 + 1);
        }
        if known.len() < usize::from(self.peer_alias_maximum) {
            return Alias::Define(known.len() as u16 + 1);
        }
        Alias::None
    }

    /// The packet id to send with, and whether it was sent with it before. `Err`: nothing is to be written.
    fn reserve(&mut self, how: Deliver<'_>, bytes: &mut Vec<u8>) -> Result<(u16, bool), Delivered> {
        if how.qos == Qos::AtMostOnce {
            return Ok((0, false));
        }
        let (next_id, unsure) = (self.next_id, self.unsure);
        let inflight = self.inflight.get_or_insert_with(|| Box::new(Inflight::with_unsure(next_id, unsure)));
        match inflight.reserve(how.delivery, how.qos, usize::from(self.inflight_max)) {
            Reserved::New { id, release } => Ok((self.release(id, release, bytes), false)),
            Reserved::Again { id, release } => Ok((self.release(id, release, bytes), true)),
            Reserved::Released => Err(Delivered::Written),
            Reserved::WindowFull => Err(Delivered::WindowFull),
        }
    }

    /// Tells the peer to let go of an id that it may hold from a state that was lost.
    fn release(&mut self, id: u16, release: bool, bytes: &mut Vec<u8>) -> u16 {
        if release {
            codec::encode_ack(Kind::PubRel, Ack { id, code: 0 }, self.level, bytes);
            self.releases = self.releases.saturating_add(1);
        }
        id
    }

    fn give_up(&mut self, delivery: u64) -> Delivered {
        if let Some(inflight) = &mut self.inflight {
            inflight.forget_stale(delivery);
            self.drop_empty_inflight();
        }
        Delivered::TooLarge
    }

    pub(super) fn handle_puback(
        &mut self,
        ack: Ack,
        now: Millis,
        out: &mut Output,
    ) -> Result<(), ProtocolError> {
        let settled =
            self.inflight.as_mut().map_or(Settled::Unknown, |inflight| inflight.handle_puback(ack.id));
        self.report(settled, ack.code, now, out);
        Ok(())
    }

    pub(super) fn handle_pubrec(
        &mut self,
        ack: Ack,
        now: Millis,
        out: &mut Output,
    ) -> Result<(), ProtocolError> {
        let is_refused = ack.code >= 0x80;
        let settled = match &mut self.inflight {
            Some(inflight) => inflight.handle_pubrec(ack.id, is_refused),
            None => Settled::Unknown,
        };
        match settled {
            Settled::Release => self.push_ack(Kind::PubRel, ack.id, 0, out),
            // 3.x has no word for it, and a PUBREL would be a lie.
            Settled::Unknown if self.level.is_v5() && !is_refused => {
                self.push_ack(Kind::PubRel, ack.id, code::PACKET_ID_NOT_FOUND, out);
            }
            _ => {}
        }
        self.report(settled, ack.code, now, out);
        Ok(())
    }

    pub(super) fn handle_pubcomp(
        &mut self,
        ack: Ack,
        now: Millis,
        out: &mut Output,
    ) -> Result<(), ProtocolError> {
        let settled =
            self.inflight.as_mut().map_or(Settled::Unknown, |inflight| inflight.handle_pubcomp(ack.id));
        if settled == Settled::Unknown && self.releases > 0 {
            // The answer to a release of an id that the peer perhaps held.
            self.releases -= 1;
            return Ok(());
        }
        // A code in a PUBCOMP says that the peer had forgotten the id, not that it did not get the message.
        self.report(settled, code::SUCCESS, now, out);
        Ok(())
    }

    fn report(&mut self, settled: Settled, code: u8, now: Millis, out: &mut Output) {
        match settled {
            Settled::Done { delivery } if code >= 0x80 => out.events.push(Event::Refused { delivery, code }),
            Settled::Done { delivery } => out.events.push(Event::Acked { delivery }),
            Settled::Release => return,
            Settled::Unknown => return self.count_bad_ack(now, out),
        }
        self.drop_empty_inflight();
    }

    /// Acknowledgements of nothing are ignored, but not for ever (A18).
    pub(super) fn count_bad_ack(&mut self, now: Millis, out: &mut Output) {
        let minute = (now / 60_000) as u32;
        if minute != self.bad_ack_minute {
            self.bad_ack_minute = minute;
            self.bad_acks = 0;
        }
        self.bad_acks = self.bad_acks.saturating_add(1);
        if self.bad_acks > self.config.bad_acks_per_minute_max {
            self.close("bad_acks", false, out);
        }
    }

    /// An idle connection owns no in-flight state; only the next packet id is remembered.
    pub(super) fn drop_empty_inflight(&mut self) {
        if let Some(inflight) = self.inflight.take_if(|inflight| inflight.is_empty()) {
            (self.next_id, self.unsure) = (inflight.next_id(), inflight.unsure());
        }
    }
}
