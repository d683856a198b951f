//! What is known only while the process lives, beside the state: which deliveries were written to a
//! connection and when, and when devices were last seen.
//!
//! No command says it, so it is no part of [`State`], which always is what its commands made of it.
//! It goes into a checkpoint as parts of its own, so that a restart in order forgets little of it.

use super::State;
use super::message::Message;
use crate::id::*;
use crate::model::{DeviceSet, Step};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, VecDeque};

/// Devices in a page of [`Seen`].
pub(crate) const PAGE: usize = 1_024;

/// Room for so many messages with marks is kept while there are none.
const KEPT: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub struct Volatile {
    sent: FxHashMap<Seq, Sent>,
    /// By app.
    seen: Vec<Seen>,
    /// Deliveries that commands ended, each with the number of its command: looked at once that is
    /// on stable storage, since until then they may be written to a connection again.
    over: VecDeque<(Seq, Over)>,
}

/// What a command did to deliveries, for those who know something about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The delivery ended, or is another device's now.
    Delivery(DeviceRef, Seq),
    /// The message is forgotten.
    Message(Seq),
}

/// Devices to which a message was written, with the time of the first writing.
#[derive(Debug)]
enum Sent {
    One(DeviceNo, UnixMillis),
    Many(Box<SentMany>),
}

#[derive(Debug, Default)]
struct SentMany {
    devices: DeviceSet,
    at: BTreeMap<u32, UnixMillis>,
}

/// When the devices of an app were last seen, by number; 0: not in this life. In pages, so that a
/// million devices take eight bytes each, and growing moves none of them.
#[derive(Debug, Default)]
struct Seen {
    pages: Vec<Option<Box<[UnixMillis; PAGE]>>>,
}

impl Sent {
    fn at(&self, device: DeviceNo) -> Option<UnixMillis> {
        match self {
            Sent::One(one, at) => (*one == device).then_some(*at),
            Sent::Many(many) => many.at.get(&device.0).copied(),
        }
    }

    fn mark(&mut self, device: DeviceNo, at: UnixMillis) {
        if let Sent::One(one, first_at) = *self {
            if one == device {
                return;
            }
            let mut many = Box::<SentMany>::default();
            many.mark(one, first_at);
            *self = Sent::Many(many);
        }
        if let Sent::Many(many) = self {
            many.mark(device, at);
        }
    }
}

impl SentMany {
    fn mark(&mut self, device: DeviceNo, at: UnixMillis) {
        if self.devices.insert(device.0) {
            self.at.insert(device.0, at);
        }
    }
}

impl Volatile {
    /// The delivery was written to a connection; the first time counts.
    pub(crate) fn mark_sent(&mut self, seq: Seq, device: DeviceNo, at: UnixMillis) {
        match self.sent.get_mut(&seq) {
            Some(sent) => sent.mark(device, at),
            None => _ = self.sent.insert(seq, Sent::One(device, at)),
        }
    }

    pub(crate) fn sent_at(&self, seq: Seq, device: DeviceNo) -> Option<UnixMillis> {
        self.sent.get(&seq)?.at(device)
    }

    pub(super) fn is_sent(&self, seq: Seq, device: DeviceNo) -> bool {
        self.sent_at(seq, device).is_some()
    }

    /// The devices to which the message was written.
    pub(super) fn sent_to(&self, seq: Seq) -> Option<DeviceSet> {
        Some(match self.sent.get(&seq)? {
            Sent::One(device, _) => [device.0].into(),
            Sent::Many(many) => many.devices.clone(),
        })
    }

    /// The device was there; the latest time counts.
    pub(crate) fn see(&mut self, at: DeviceRef, now: UnixMillis) {
        let app = at.app.0 as usize;
        if self.seen.len() <= app {
            self.seen.resize_with(app + 1, Seen::default);
        }
        let (pages, device) = (&mut self.seen[app].pages, at.device.0 as usize);
        if pages.len() <= device / PAGE {
            pages.resize_with(device / PAGE + 1, || None);
        }
        let page = pages[device / PAGE].get_or_insert_with(|| Box::new([0; PAGE]));
        page[device % PAGE] = page[device % PAGE].max(now);
    }

    pub(crate) fn seen_at(&self, at: DeviceRef) -> Option<UnixMillis> {
        let device = at.device.0 as usize;
        let page = self.seen.get(at.app.0 as usize)?.pages.get(device / PAGE)?.as_deref()?;
        Some(page[device % PAGE]).filter(|at| *at > 0)
    }

    pub(super) fn note_over(&mut self, by: Seq, over: impl Iterator<Item = Over>) {
        self.over.extend(over.map(|over| (by, over)));
    }

    /// The state of the commands up to `durable` is on stable storage: forgets what it knows better.
    pub(super) fn settle(&mut self, state: &State, durable: Seq) {
        while let Some((_, over)) = self.over.pop_front_if(|(by, _)| *by <= durable) {
            match over {
                _ if self.sent.is_empty() => {}
                Over::Message(seq) => _ = self.sent.remove(&seq),
                Over::Delivery(at, seq) => self.review(state, at, seq),
            }
        }
        if self.sent.is_empty() && self.sent.capacity() > KEPT {
            self.sent = FxHashMap::default();
        }
    }

    /// The commands above `seq` never happened.
    pub(super) fn undo(&mut self, seq: Seq) {
        self.over.retain(|(by, _)| *by <= seq);
    }

    fn review(&mut self, state: &State, at: DeviceRef, seq: Seq) {
        let Some(sent) = self.sent.get_mut(&seq) else { return };
        if state.messages.get(&seq).is_some_and(|message| is_wanted(state, message, at.device, seq)) {
            return;
        }
        let is_empty = match sent {
            Sent::One(one, _) => *one == at.device,
            Sent::Many(many) => {
                many.devices.remove(at.device.0);
                many.at.remove(&at.device.0);
                many.at.is_empty()
            }
        };
        if is_empty {
            self.sent.remove(&seq);
        }
    }

    /// Looks at everything once: what was stored beside an older state may be over.
    pub(super) fn review_all(&mut self, state: &State) {
        self.sent.retain(|seq, sent| {
            let Some(message) = state.messages.get(seq) else { return false };
            match sent {
                Sent::One(device, _) => is_wanted(state, message, *device, *seq),
                Sent::Many(many) => {
                    many.at.retain(|device, _| is_wanted(state, message, DeviceNo(*device), *seq));
                    many.devices = many.at.keys().copied().collect();
                    !many.at.is_empty()
                }
            }
        });
    }

    /// The messages with marks, in order.
    pub(crate) fn sent_seqs(&self) -> Vec<Seq> {
        let mut seqs: Vec<Seq> = self.sent.keys().copied().collect();
        seqs.sort_unstable();
        seqs
    }

    /// Up to `max` marks of a message, by device, from one on.
    pub(crate) fn sent_from(&self, seq: Seq, from: u32, max: usize) -> Vec<(u32, UnixMillis)> {
        match self.sent.get(&seq) {
            Some(Sent::One(device, at)) if device.0 >= from => vec![(device.0, *at)],
            Some(Sent::Many(many)) => many.at.range(from..).take(max).map(|(d, at)| (*d, *at)).collect(),
            _ => Vec::new(),
        }
    }

    /// The first page that has something, from a place (app, page) on.
    pub(crate) fn seen_from(&self, from: (usize, usize)) -> Option<((usize, usize), &[UnixMillis; PAGE])> {
        let apps = self.seen.iter().enumerate().skip(from.0);
        let pages = apps.flat_map(|(app, seen)| {
            let first = if app == from.0 { from.1 } else { 0 };
            let pages = seen.pages.iter().enumerate().skip(first);
            pages.filter_map(move |(page, times)| Some(((app, page), times.as_deref()?)))
        });
        pages.into_iter().next()
    }
}

/// Whether a mark is still of use: the delivery is open, or its report does not know of it.
fn is_wanted(state: &State, message: &Message, device: DeviceNo, seq: Seq) -> bool {
    let is_known = |report: &super::message::Report| report.has(device, Step::Sent);
    state.is_open(seq, device) || message.report().is_some_and(|report| !is_known(report))
}
