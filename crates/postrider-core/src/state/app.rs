//! One app: its devices and the sets they form, inboxes, broadcasts, retained messages, books.

use super::casts::Broadcasts;
use super::shares::Members;
use crate::command::Idempotency;
use crate::id::*;
use crate::model::*;
use crate::port::Counters;
use crate::seeded::{self, Bug};
use crate::webhooks::Webhook;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct App {
    pub id: String,
    pub name: String,
    pub created_at: UnixMillis,
    /// It was deleted; what it had goes step by step.
    pub closed_at: Option<UnixMillis>,
    pub keys: Vec<StoredKey>,
    pub webhooks: BTreeMap<String, Webhook>,
    /// By number; `None` where a device was deleted.
    pub devices: Vec<Option<Box<Device>>>,
    pub inboxes: FxHashMap<u32, Inbox>,
    /// Subscription ids of the few entries that have some.
    pub entry_ids: BTreeMap<(u32, Seq), Vec<u32>>,
    /// Live broadcasts, in order.
    pub broadcasts: BTreeSet<Seq>,
    pub retained: BTreeMap<String, Retained>,
    /// Bytes of their contents on disk.
    pub retained_bytes: u64,
    pub requests: FxHashMap<u128, (Idempotency, FirstAnswer)>,
    /// The keys of `requests`, in the order in which they came.
    pub requests_order: VecDeque<u128>,
    pub counters: Counters,
    /// Names of the roads that providers took, in the order in which they first came.
    pub roads: Vec<Arc<str>>,
    /// Tracked messages that ended wholly, in the order in which they did.
    pub history: VecDeque<Seq>,

    // Indexes, made again by `rebuild`.
    pub by_id: HashMap<String, DeviceNo>,
    pub by_alias: HashMap<String, DeviceSet>,
    pub by_tag: HashMap<String, DeviceSet>,
    pub by_platform: FxHashMap<u8, DeviceSet>,
    /// Registered ones.
    pub all: DeviceSet,
    pub anonymous: DeviceSet,
    /// Those that registered themselves; and of them those that were never there. A number is given
    /// once, in order, so the least is the oldest.
    pub own: DeviceSet,
    pub never_seen: DeviceSet,
    /// Open direct deliveries of messages with a collapse key: hash of the key, device, message.
    pub keyed: BTreeSet<(u64, u32, Seq)>,
    /// Which of `broadcasts` are open for a device.
    pub casts: Broadcasts,
    /// Messages with a report.
    pub reports: BTreeMap<MessageId, Seq>,
    /// Open deliveries, counted as they come and go.
    pub open: u64,
    /// Shared subscriptions of the sessions that are kept, by name.
    pub shares: FxHashMap<String, Members>,
    /// What its open messages take.
    pub kept: Kept,
    /// When the messages of `history` ended, in the same order.
    pub history_ends: VecDeque<UnixMillis>,
    /// Retained messages that end some time, by when they do.
    retained_ends: BTreeSet<(UnixMillis, String)>,
}

/// What open messages take of the store: counted as they come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub messages: u64,
    /// Of contents.
    pub bytes: u64,
}

impl Kept {
    pub fn take(&mut self, blob: BlobRef) {
        self.messages += 1;
        self.bytes += u64::from(blob.len);
    }

    pub fn give_back(&mut self, blob: BlobRef) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(u64::from(blob.len));
    }
}

/// What a repeated request is answered with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FirstAnswer {
    Message { id: MessageId, seq: Seq, targeted: u64 },
    Device(DeviceNo),
}

#[derive(Debug)]
pub(crate) struct Device {
    pub id: String,
    pub secret_hash: Option<[u8; 32]>,
    pub profile: Profile,
    pub created_at: UnixMillis,
    pub last_seen_at: Option<UnixMillis>,
    pub session: Option<Box<Session>>,
    pub origin: Option<Origin>,
    /// Its protocol understands messages of other devices.
    pub hears_peers: bool,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub stored: StoredSession,
    pub subscriptions: Vec<StoredSubscription>,
}

impl Session {
    /// When the session ends, where nobody comes back; `None` while connected or if it never does.
    pub fn ends_at(&self) -> Option<UnixMillis> {
        let left = self.stored.left_at?;
        (self.stored.expiry_secs != u32::MAX).then(|| left + u64::from(self.stored.expiry_secs) * 1000)
    }
}

/// A device's undelivered direct messages, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pub entries: VecDeque<Entry>,
    pub bytes: u64,
    /// How many are urgent: nearly always 0, and then the urgent lane costs nothing.
    pub urgent: u32,
}

/// Reference to a message and how it is to be sent, in eight bytes: `seq << 8 | flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(pub(crate) u64);

impl Entry {
    const QOS: u64 = 0b11;
    const RETAIN: u64 = 1 << 2;
    /// Releases before 0.2 marked here what was written to a connection.
    const SENT_BEFORE: u64 = 1 << 3;
    const PUSH: u64 = 1 << 4;
    const PRIORITY_SHIFT: u32 = 5;
    /// A message of another device: the first to give way.
    const PEER: u64 = 1 << 7;

    pub fn new(seq: Seq, target: &Target, push: bool, priority: Priority) -> Entry {
        let retain = if target.retain { Entry::RETAIN } else { 0 };
        let push = if push { Entry::PUSH } else { 0 };
        let priority = (priority as u64) << Entry::PRIORITY_SHIFT;
        Entry(seq << 8 | priority | push | retain | (u64::from(target.qos) & Entry::QOS))
    }

    pub fn seq(self) -> Seq {
        self.0 >> 8
    }

    pub fn qos(self) -> u8 {
        (self.0 & Entry::QOS) as u8
    }

    pub fn retain(self) -> bool {
        self.0 & Entry::RETAIN != 0
    }

    pub fn push(self) -> bool {
        self.0 & Entry::PUSH != 0
    }

    /// Takes the mark of an earlier release away; whether there was one.
    pub fn take_sent_before(&mut self) -> bool {
        let marked = self.0 & Entry::SENT_BEFORE != 0;
        self.0 &= !Entry::SENT_BEFORE;
        marked
    }

    pub fn priority(self) -> u64 {
        self.0 >> Entry::PRIORITY_SHIFT & 0b11
    }

    pub fn peer(self) -> bool {
        self.0 & Entry::PEER != 0
    }

    pub fn of_peer(self) -> Entry {
        Entry(self.0 | Entry::PEER)
    }

    pub fn urgent(self) -> bool {
        self.priority() == Priority::High as u64
    }
}

impl Inbox {
    pub fn push(&mut self, entry: Entry, bytes: u32) {
        self.entries.push_back(entry);
        self.bytes += u64::from(bytes);
        self.urgent += u32::from(entry.urgent());
    }

    /// Where it belongs by its number, which need not be the newest.
    pub fn insert(&mut self, entry: Entry, bytes: u32) {
        let place = self.entries.partition_point(|e| e.seq() < entry.seq());
        self.entries.insert(place, entry);
        self.bytes += u64::from(bytes);
        self.urgent += u32::from(entry.urgent());
    }

    pub fn place(&self, seq: Seq) -> Option<usize> {
        self.entries.binary_search_by_key(&seq, |e| e.seq()).ok()
    }

    pub fn holds(&self, seq: Seq) -> bool {
        self.place(seq).is_some()
    }

    pub fn remove(&mut self, seq: Seq, bytes: u32) -> Option<Entry> {
        let entry = self.entries.remove(self.place(seq)?)?;
        self.bytes -= u64::from(bytes);
        self.urgent -= u32::from(entry.urgent());
        Some(entry)
    }

    /// The oldest of the least urgent.
    pub fn victim(&self) -> Option<Entry> {
        self.entries.iter().copied().min_by_key(|e| (!e.peer(), e.priority(), e.seq()))
    }

    /// Messages of other devices that wait.
    pub fn peers(&self) -> usize {
        self.entries.iter().filter(|entry| entry.peer()).count()
    }
}

impl App {
    pub fn new(id: &str, name: &str, at: UnixMillis) -> App {
        App {
            id: id.to_owned(),
            name: name.to_owned(),
            created_at: at,
            closed_at: None,
            keys: Vec::new(),
            webhooks: BTreeMap::new(),
            devices: Vec::new(),
            inboxes: FxHashMap::default(),
            entry_ids: BTreeMap::new(),
            broadcasts: BTreeSet::new(),
            retained: BTreeMap::new(),
            retained_bytes: 0,
            requests: FxHashMap::default(),
            requests_order: VecDeque::new(),
            counters: Counters::default(),
            roads: Vec::new(),
            by_id: HashMap::new(),
            by_alias: HashMap::new(),
            by_tag: HashMap::new(),
            by_platform: FxHashMap::default(),
            all: DeviceSet::new(),
            anonymous: DeviceSet::new(),
            own: DeviceSet::new(),
            never_seen: DeviceSet::new(),
            keyed: BTreeSet::new(),
            casts: Broadcasts::default(),
            reports: BTreeMap::new(),
            open: 0,
            kept: Kept::default(),
            history: VecDeque::new(),
            history_ends: VecDeque::new(),
            retained_ends: BTreeSet::new(),
            shares: FxHashMap::default(),
        }
    }

    pub fn has_old_report(&self, before: UnixMillis, max: u32) -> bool {
        self.history.len() > max as usize || self.history_ends.front().is_some_and(|ended| *ended < before)
    }

    pub fn rebuild(&mut self) {
        for no in 0..self.devices.len() as u32 {
            if self.devices[no as usize].is_some() {
                self.index(DeviceNo(no));
                self.join_shares(DeviceNo(no));
            }
        }
    }

    pub fn device(&self, no: DeviceNo) -> Option<&Device> {
        self.devices.get(no.0 as usize)?.as_deref()
    }

    pub fn device_mut(&mut self, no: DeviceNo) -> Option<&mut Device> {
        self.devices.get_mut(no.0 as usize)?.as_deref_mut()
    }

    pub fn sessions(&self) -> impl Iterator<Item = (DeviceNo, &Session)> {
        let numbered = self.devices.iter().enumerate();
        numbered.filter_map(|(no, d)| Some((DeviceNo(no as u32), d.as_deref()?.session.as_deref()?)))
    }

    /// Puts a device into every set it belongs to.
    pub fn index(&mut self, no: DeviceNo) {
        let Some(device) = self.devices.get(no.0 as usize).and_then(|d| d.as_deref()) else { return };
        self.by_id.insert(device.id.clone(), no);
        // Whoever did not register is nobody's audience: such a client lives by topics.
        if device.secret_hash.is_none() {
            self.anonymous.insert(no.0);
            return;
        }
        self.all.insert(no.0);
        if device.origin.is_some_and(Origin::is_own) {
            self.own.insert(no.0);
            if device.last_seen_at.is_none() {
                self.never_seen.insert(no.0);
            }
        }
        self.by_platform.entry(device.profile.platform as u8).or_default().insert(no.0);
        if let Some(alias) = &device.profile.alias {
            self.by_alias.entry(alias.clone()).or_default().insert(no.0);
        }
        for tag in &device.profile.tags {
            self.by_tag.entry(tag.clone()).or_default().insert(no.0);
        }
    }

    /// Takes a device out of every set it belongs to.
    pub fn unindex(&mut self, no: DeviceNo) {
        let Some(device) = self.devices.get(no.0 as usize).and_then(|d| d.as_deref()) else { return };
        self.all.remove(no.0);
        self.anonymous.remove(no.0);
        self.own.remove(no.0);
        self.never_seen.remove(no.0);
        self.by_id.remove(&device.id);
        if let Some(set) = self.by_platform.get_mut(&(device.profile.platform as u8)) {
            set.remove(no.0);
        }
        if let Some(alias) = &device.profile.alias {
            remove_from(&mut self.by_alias, alias, no);
        }
        for tag in &device.profile.tags {
            remove_from(&mut self.by_tag, tag, no);
        }
    }

    /// Finds what an earlier request with this key was answered with.
    pub fn earlier(&self, idempotency: Option<&Idempotency>) -> Option<&(Idempotency, FirstAnswer)> {
        self.requests.get(&idempotency?.key)
    }

    pub fn remember(&mut self, idempotency: Option<&Idempotency>, answer: FirstAnswer) {
        if let Some(request) = idempotency.filter(|_| !seeded::is(Bug::RequestForgotten))
            && self.requests.insert(request.key, (*request, answer)).is_none()
        {
            self.requests_order.push_back(request.key);
            while request.keys_max > 0 && self.requests_order.len() > request.keys_max as usize {
                if let Some(oldest) = self.requests_order.pop_front() {
                    self.requests.remove(&oldest);
                }
            }
        }
    }

    /// Puts a message on a topic, or takes it away; what lay there before.
    pub fn retain(&mut self, topic: &str, message: Option<Retained>) -> Option<Retained> {
        let old = self.retained.remove(topic);
        if let Some(old) = &old {
            self.retained_bytes = self.retained_bytes.saturating_sub(u64::from(old.blob.len));
            self.retained_ends.remove(&(old.expires_at, topic.to_owned()));
        }
        if let Some(new) = message {
            self.retained_bytes += u64::from(new.blob.len);
            if new.expires_at != UnixMillis::MAX {
                self.retained_ends.insert((new.expires_at, topic.to_owned()));
            }
            self.retained.insert(topic.to_owned(), new);
        }
        old
    }

    /// When the first retained message ends.
    pub fn first_retained_end(&self) -> Option<UnixMillis> {
        self.retained_ends.first().map(|(ends_at, _)| *ends_at)
    }

    /// Their bytes anew: after they were copied elsewhere.
    pub fn count_retained(&mut self) {
        self.retained_bytes = self.retained.values().map(|r| u64::from(r.blob.len)).sum();
    }

    /// Retained messages whose life is over go; their contents are released.
    pub fn forget_retained(&mut self, now: UnixMillis, released: &mut Vec<BlobRef>) {
        while let Some((_, topic)) = self.retained_ends.first().filter(|(ends_at, _)| *ends_at <= now) {
            let topic = topic.clone();
            released.extend(self.retain(&topic, None).map(|r| r.blob));
        }
    }

    /// Until when the oldest request key has to be kept.
    pub fn first_request_until(&self) -> Option<UnixMillis> {
        let oldest = self.requests_order.front()?;
        Some(self.requests.get(oldest).map_or(0, |(request, _)| request.keep_until))
    }

    /// Requests are forgotten in the order in which they came, at most `max` of them: one that is kept longer holds back
    /// those behind it. How many those were.
    pub fn forget_requests(&mut self, now: UnixMillis, max: u32) -> u32 {
        let mut forgotten = 0;
        while forgotten < max
            && let Some(key) = self.requests_order.front()
        {
            if self.requests.get(key).is_some_and(|(request, _)| request.keep_until > now) {
                break;
            }
            self.requests.remove(key);
            self.requests_order.pop_front();
            forgotten += 1;
        }
        forgotten
    }
}

fn remove_from(index: &mut HashMap<String, DeviceSet>, key: &str, no: DeviceNo) {
    if let Some(set) = index.get_mut(key) {
        set.remove(no.0);
        if set.is_empty() {
            index.remove(key);
        }
    }
}
