//! Step 4. Inbox → connection, as far as the connection's window goes.
//!
//! The position belongs to the connection and starts at zero, so a new connection begins with the oldest open delivery.
//! What is stored is only which deliveries are open.

use crate::Engine;
use crate::access::PEER_TOPIC;
use crate::command::{Progress, Which};
use crate::delivery::receipt::ReceiptSource;
use crate::id::*;
use crate::model::*;
use crate::port::*;
use crate::seeded::{self, Bug};
use crate::topics::SessionNo;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// A delivery to be written to the connection now.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Names the delivery in [`Engine::ack`].
    pub seq: Seq,
    /// Of messages with a report.
    pub message: Option<MessageId>,
    pub content: Arc<Content>,
    pub qos: u8,
    pub retain: bool,
    pub subscription_ids: Vec<u32>,
    pub sent_before: bool,
    pub accepted_at: UnixMillis,
    /// Where the message has a life to tell of.
    pub expires_at: UnixMillis,
    /// Where one is who has got this one too.
    pub position: Position,
}

/// Whose inbox it is, and how it is read.
struct Reader {
    at: DeviceRef,
    client: Arc<str>,
    /// `None`: it has not asked for pushes.
    push_qos: Option<u8>,
    hears_peers: bool,
}

/// The disk does not give a content out: it and those behind it wait for the next drain, so that none is overtaken.
struct Unreadable;

impl Outgoing {
    /// The message's id, where the payload does not tell it: raw bytes travel without an envelope.
    pub fn unsaid_id(&self) -> Option<MessageId> {
        let is_raw = self.content.topic.is_none() && self.content.properties.is_some();
        self.message.filter(|_| is_raw)
    }
}

impl Engine {
    /// Takes up to `max` deliveries behind `position`, which moves along. Fewer than `max`: nothing more is there now.
    pub fn drain(&self, session: SessionNo, position: &mut Position, max: usize) -> Vec<Outgoing> {
        self.reader(session).map_or(Vec::new(), |reader| self.take(&reader, position, max))
    }

    /// The same for a device that reads its inbox without a session: it polls.
    pub fn pull(&self, at: DeviceRef, device: &str, position: &mut Position, max: usize) -> Vec<Outgoing> {
        self.take(&Reader { at, client: device.into(), push_qos: Some(1), hears_peers: false }, position, max)
    }

    fn take(&self, reader: &Reader, position: &mut Position, max: usize) -> Vec<Outgoing> {
        let (now, at) = (self.clock.now(), reader.at);
        let mut outgoing = Vec::new();
        // Asked for before the store is: an acknowledgement that is committed in between is found in one place or the other.
        let acked = self.acking.of(at);
        let hands_on = self.handing.is_under_way(at);
        while outgoing.len() < max {
            let wanted = max - outgoing.len();
            let page = self.store.pending(at, *position, wanted, now);
            let last = page.len() < wanted;
            for pending in page {
                let before = *position;
                let lane = if pending.urgent { &mut position.urgent } else { &mut position.normal };
                *lane = (*lane).max(pending.seq);
                let lost = seeded::is(Bug::InflightLost) && pending.sent_before;
                if acked.contains(&pending.seq) || lost || (hands_on && pending.is_shared) {
                    continue;
                }
                match self.outgoing(reader, pending, *position) {
                    Ok(one) => outgoing.extend(one),
                    Err(Unreadable) => {
                        *position = before;
                        return outgoing;
                    }
                }
            }
            if last {
                break;
            }
        }
        outgoing
    }

    fn reader(&self, session: SessionNo) -> Option<Reader> {
        let hub = self.hub();
        let s = hub.get(session)?;
        let at = DeviceRef { app: s.app, device: s.device? };
        let (client, push_qos, hears_peers) = (s.client.clone(), s.push_qos(), s.hears_peers);
        Some(Reader { at, client, push_qos, hears_peers })
    }

    fn outgoing(
        &self,
        reader: &Reader,
        pending: Pending,
        position: Position,
    ) -> Result<Option<Outgoing>, Unreadable> {
        let Reader { at, client, push_qos, .. } = reader;
        let at = *at;
        let content = match self
            .contents
            .get(pending.seq)
            .map_or_else(|| self.store.content(pending.blob), Ok)
        {
            Ok(content) => content,
            Err(StoreError::Corrupt(why)) => {
                tracing::error!(
                    device = &**client,
                    seq = pending.seq,
                    why,
                    "a damaged message is not delivered"
                );
                self.end(at, pending.seq, Step::Rejected, Reason::Corrupt);
                return Ok(None);
            }
            // Ended meanwhile: its content is gone.
            Err(StoreError::Missing) => return Ok(None),
            Err(error) => {
                tracing::error!(device = &**client, seq = pending.seq, %error, "a message cannot be read now");
                return Err(Unreadable);
            }
        };
        let qos = match &content.topic {
            // A push waits until the device subscribes to its inbox.
            None => match push_qos {
                Some(qos) => *qos,
                None => return Ok(None),
            },
            // It waits for a connection that understands it.
            Some(topic) if topic == PEER_TOPIC && !reader.hears_peers => return Ok(None),
            Some(topic) if topic == PEER_TOPIC => 1,
            Some(topic) if !self.access.may_receive(client, topic) && !seeded::is(Bug::ReplaySkipsGate) => {
                self.end(at, pending.seq, Step::Rejected, Reason::NotAllowed);
                return Ok(None);
            }
            Some(_) => pending.qos,
        };
        Ok(Some(Outgoing {
            seq: pending.seq,
            message: pending.id,
            content,
            qos,
            retain: pending.retain,
            subscription_ids: pending.subscription_ids,
            sent_before: pending.sent_before,
            accepted_at: pending.accepted_at,
            expires_at: pending.expires_at,
            position,
        }))
    }

    fn end(&self, at: DeviceRef, seq: Seq, step: Step, reason: Reason) {
        let step = Progress { device: at.device, which: Which::Seq(seq), step, reason, sent_at: None };
        self.record_receipts(ReceiptSource::Server { app: at.app, ends: vec![step] });
    }
}

/// Contents of messages that somebody connected is about to get, bounded in bytes, oldest out first.
pub(crate) struct Contents {
    bytes_max: usize,
    inner: Mutex<ContentsInner>,
}

#[derive(Default)]
struct ContentsInner {
    by_seq: FxHashMap<Seq, Arc<Content>>,
    order: VecDeque<Seq>,
    bytes: usize,
}

impl Contents {
    pub fn new(bytes_max: usize) -> Contents {
        Contents { bytes_max, inner: Mutex::default() }
    }

    pub fn get(&self, seq: Seq) -> Option<Arc<Content>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).by_seq.get(&seq).cloned()
    }

    pub fn put(&self, seq: Seq, content: Arc<Content>) {
        let size = |c: &Content| c.payload.len() + 200;
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.bytes += size(&content);
        if inner.by_seq.insert(seq, content).is_none() {
            inner.order.push_back(seq);
        }
        while inner.bytes > self.bytes_max
            && let Some(oldest) = inner.order.pop_front()
        {
            if let Some(old) = inner.by_seq.remove(&oldest) {
                inner.bytes -= size(&old);
            }
        }
    }
}
