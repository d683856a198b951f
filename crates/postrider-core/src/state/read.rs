//! Questions to the state. Nothing here changes it. Those that [`super::Live`] answers better are its own.

use super::State;
use super::app::{App, Device, Entry};
use super::message::Message;
use crate::id::*;
use crate::model::*;
use crate::port::*;
use crate::pruning::SEEN_EVERY_MS;
use crate::seeded::{self, Bug};

impl State {
    /// See [`Store::is_seen_due`].
    pub fn is_seen_due(&self, at: DeviceRef, now: UnixMillis) -> bool {
        let Some(app) = self.app_ref(at.app) else { return false };
        let is_old = |device: &Device| {
            let stored = device.last_seen_at.unwrap_or(device.created_at);
            stored.saturating_add(SEEN_EVERY_MS) <= now
        };
        app.never_seen.contains(at.device.0) || app.device(at.device).is_some_and(is_old)
    }

    /// See [`Store::own_devices`].
    pub fn own_devices(&self, app: AppNo) -> OwnDevices {
        let Some(tenant) = self.app_ref(app) else { return OwnDevices::default() };
        let oldest = tenant.never_seen.min().map(DeviceNo);
        let never_seen = oldest.and_then(|device| {
            let at = DeviceRef { app, device };
            Some((at, tenant.device(device)?.created_at))
        });
        OwnDevices { count: tenant.own.len(), never_seen }
    }

    /// See [`Store::pending`]; what is above `durable` is not on stable storage yet and stays hidden.
    pub(super) fn pending(
        &self,
        at: DeviceRef,
        position: Position,
        max: usize,
        now: UnixMillis,
        durable: Seq,
    ) -> Vec<Pending> {
        let Some(app) = self.app_ref(at.app) else { return Vec::new() };
        let leaving = self.leaving.of(at, durable);
        let mut found = Vec::new();
        for lane in
            [Lane { urgent: true, after: position.urgent }, Lane { urgent: false, after: position.normal }]
        {
            let wanted = max - found.len();
            let open = self.pending_lane(app, at, lane, (now, durable));
            let leaving =
                leaving.iter().copied().filter(|p| lane.holds(p) && p.seq <= durable && p.expires_at > now);
            found.extend(in_order(open, leaving.cloned(), |p| p.seq).take(wanted));
        }
        found
    }

    /// Those of the deliveries that are open in the device's inbox.
    pub fn open_deliveries(&self, at: DeviceRef, seqs: &[Seq]) -> Vec<Seq> {
        let is_own = |seq: &&Seq| self.messages.get(seq).is_some_and(|m| m.app == at.app);
        seqs.iter().filter(is_own).filter(|seq| self.is_open(**seq, at.device)).copied().collect()
    }

    /// One open delivery.
    pub(super) fn pending_at(&self, at: DeviceRef, seq: Seq) -> Option<Pending> {
        let (app, message) = (self.app_ref(at.app)?, self.messages.get(&seq)?);
        let entry = match message.broadcast() {
            Some(open) => {
                open.contains(at.device.0).then_some(())?;
                None
            }
            None => {
                let inbox = app.inboxes.get(&at.device.0)?;
                Some(inbox.entries[inbox.place(seq)?])
            }
        };
        Some(pending_of(app, at.device, seq, message, entry))
    }

    /// One lane: the device's own entries merged with the broadcasts that are open for it, by their place in the order.
    fn pending_lane<'a>(
        &'a self,
        app: &'a App,
        DeviceRef { app: app_no, device }: DeviceRef,
        Lane { urgent, after }: Lane,
        (now, durable): (UnixMillis, Seq),
    ) -> impl Iterator<Item = Pending> + 'a {
        let inbox = app.inboxes.get(&device.0).filter(|inbox| !urgent || inbox.urgent > 0);
        let own_from = inbox.map_or(0, |inbox| inbox.entries.partition_point(|e| e.seq() <= after));
        let own = inbox.into_iter().flat_map(move |inbox| inbox.entries.range(own_from..));
        let own = own.filter(move |e| e.urgent() == urgent).map(|e| (e.seq(), Some(*e)));
        let casts = app.casts.lane(urgent).open_for(device, after, &self.messages);
        let merged = in_order(own, casts.map(|seq| (seq, None)), |(seq, _)| *seq);
        let at = DeviceRef { app: app_no, device };
        let on_disk = merged
            .take_while(move |(seq, _)| *seq <= durable)
            .filter(move |(seq, _)| !self.leaving.is_arriving(at, *seq, durable));
        let known = on_disk.filter_map(move |(seq, entry)| Some((seq, entry, self.messages.get(&seq)?)));
        let alive =
            known.filter(move |(_, _, message)| message.expires_at > now || seeded::is(Bug::ExpiryOnlySwept));
        alive.map(move |(seq, entry, message)| pending_of(app, device, seq, message, entry))
    }

    pub fn app_by_id(&self, id: &str) -> Option<AppNo> {
        self.apps_by_id.get(id).copied()
    }

    pub fn apps(&self) -> Vec<AppView> {
        let open = |no: &u32| self.apps[*no as usize].closed_at.is_none();
        (0..self.apps.len() as u32).filter(open).filter_map(|no| self.app(AppNo(no))).collect()
    }

    pub fn app(&self, no: AppNo) -> Option<AppView> {
        let app = self.app_ref(no)?;
        Some(AppView {
            no,
            id: app.id.clone(),
            name: app.name.clone(),
            created_at: app.created_at,
            devices: app.all.len(),
            counters: app.counters,
            open: app.open,
        })
    }

    pub fn key(&self, hash: &[u8; 32]) -> Option<(Option<AppNo>, StoredKey)> {
        let (app, place) = *self.keys_by_hash.get(hash)?;
        let keys = match app {
            Some(app) => &self.app_ref(app)?.keys,
            None => &self.platform_keys,
        };
        keys.get(place).filter(|k| k.revoked_at.is_none()).map(|k| (app, k.clone()))
    }

    pub fn keys(&self, app: Option<AppNo>) -> Vec<StoredKey> {
        match app {
            Some(app) => self.app_ref(app).map_or(Vec::new(), |a| a.keys.clone()),
            None => self.platform_keys.clone(),
        }
    }

    pub fn device_by_id(&self, app: AppNo, id: &str) -> Option<DeviceRef> {
        let of = self.app_ref(app).filter(|app| app.closed_at.is_none())?;
        Some(DeviceRef { app, device: *of.by_id.get(id)? })
    }

    pub(super) fn device(&self, at: DeviceRef) -> Option<DeviceView> {
        let app = self.app_ref(at.app)?;
        let device = app.device(at.device)?;
        let session = device.session.as_deref();
        Some(DeviceView {
            at,
            id: device.id.clone(),
            profile: device.profile.clone(),
            anonymous: device.secret_hash.is_none(),
            origin: device.origin,
            created_at: device.created_at,
            last_seen_at: device.last_seen_at,
            subscriptions: session.map_or(Vec::new(), |s| s.subscriptions.clone()),
            inbox_len: Self::inbox_len(app, at.device),
            session: session.map(|s| s.stored),
        })
    }

    fn inbox_len(app: &App, device: DeviceNo) -> usize {
        app.casts.open_count(device) + app.inboxes.get(&device.0).map_or(0, |inbox| inbox.entries.len())
    }

    pub fn device_ids(&self, app: AppNo, devices: &[DeviceNo]) -> Vec<Option<String>> {
        let app = self.app_ref(app);
        devices.iter().map(|no| Some(app?.device(*no)?.id.clone())).collect()
    }

    pub fn is_registered(&self, at: DeviceRef) -> bool {
        self.has_secret(at) == Some(true)
    }

    pub fn has_secret(&self, at: DeviceRef) -> Option<bool> {
        Some(self.app_ref(at.app)?.device(at.device)?.secret_hash.is_some())
    }

    pub fn sign_in(&self, at: DeviceRef) -> Option<SignIn> {
        let app = self.app_ref(at.app).filter(|app| app.closed_at.is_none())?;
        let device = app.device(at.device)?;
        let session = device.session.as_deref();
        Some(SignIn {
            secret_hash: device.secret_hash,
            proof_keys: self.proof_keys.get(&at).cloned(),
            session: session.map(|s| s.stored),
            subscriptions: session.map_or(Vec::new(), |s| s.subscriptions.clone()),
        })
    }

    pub(super) fn devices(
        &self,
        app: AppNo,
        filter: &DeviceFilter,
        after: Option<DeviceNo>,
        max: usize,
    ) -> Vec<DeviceView> {
        let set = self.fitting(app, filter, after);
        let views = set.iter().filter_map(|no| self.device(DeviceRef { app, device: DeviceNo(no) }));
        views.take(max).collect()
    }

    /// See [`Store::devices_seen`].
    pub(super) fn devices_seen(
        &self,
        app: AppNo,
        filter: &DeviceFilter,
        after: Option<DeviceNo>,
        look: usize,
    ) -> (Vec<(DeviceNo, UnixMillis)>, Option<DeviceNo>) {
        let Some(tenant) = self.app_ref(app) else { return (Vec::new(), None) };
        let set = self.fitting(app, filter, after);
        let looked = set.iter().take(look).map(DeviceNo);
        let seen = looked.filter_map(|no| {
            let device = tenant.device(no)?;
            Some((no, device.last_seen_at.unwrap_or(device.created_at)))
        });
        let last = if set.len() > look as u64 { set.select(look as u32 - 1).map(DeviceNo) } else { None };
        (seen.collect(), last)
    }

    /// The devices that fit a filter, behind `after`.
    fn fitting(&self, app: AppNo, filter: &DeviceFilter, after: Option<DeviceNo>) -> DeviceSet {
        let Some(tenant) = self.app_ref(app) else { return DeviceSet::new() };
        let empty = DeviceSet::new();
        let is_anonymous = filter.anonymous == Some(true);
        let mut set = if is_anonymous { tenant.anonymous.clone() } else { tenant.all.clone() };
        if let Some(platform) = filter.platform {
            set &= tenant.by_platform.get(&(platform as u8)).unwrap_or(&empty);
        }
        if let Some(tag) = &filter.tag {
            set &= tenant.by_tag.get(tag).unwrap_or(&empty);
        }
        if let Some(alias) = &filter.alias {
            set &= tenant.by_alias.get(alias).unwrap_or(&empty);
        }
        if let Some(after) = after {
            set.remove_range(..=after.0);
        }
        set
    }

    pub fn all_devices(&self, app: AppNo) -> DeviceSet {
        self.app_ref(app).map_or(DeviceSet::new(), |a| a.all.clone())
    }

    pub fn devices_with_alias(&self, app: AppNo, alias: &str) -> DeviceSet {
        self.app_ref(app).and_then(|a| a.by_alias.get(alias)).cloned().unwrap_or_default()
    }

    pub fn devices_with_tag(&self, app: AppNo, tag: &str) -> DeviceSet {
        self.app_ref(app).and_then(|a| a.by_tag.get(tag)).cloned().unwrap_or_default()
    }

    pub fn devices_on(&self, app: AppNo, platform: Platform) -> DeviceSet {
        self.app_ref(app).and_then(|a| a.by_platform.get(&(platform as u8))).cloned().unwrap_or_default()
    }

    pub fn sessions(&self) -> Vec<(DeviceRef, String, StoredSession, Vec<StoredSubscription>)> {
        let numbered = self.apps.iter().enumerate().map(|(no, app)| (AppNo(no as u32), app));
        let all = numbered.flat_map(|(no, app)| app.sessions().map(move |(device, s)| (no, app, device, s)));
        let told = all.filter_map(|(no, app, device, s)| {
            let id = app.device(device)?.id.clone();
            Some((DeviceRef { app: no, device }, id, s.stored, s.subscriptions.clone()))
        });
        told.collect()
    }

    pub fn retained(&self, app: AppNo, filter: &str, max: usize, now: UnixMillis) -> Vec<Retained> {
        let Some(app) = self.app_ref(app) else { return Vec::new() };
        let prefix = filter.split(['+', '#']).next().unwrap_or("");
        // `sport/#` also matches `sport`: the level before the wildcard bounds the search, without its slash.
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let near = app.retained.range(prefix.to_owned()..).take_while(|(topic, _)| topic.starts_with(prefix));
        let found = near.filter(|(topic, r)| r.expires_at > now && crate::topics::matches(filter, topic));
        found.take(max).map(|(_, r)| r.clone()).collect()
    }

    pub fn retained_count(&self, app: AppNo) -> usize {
        self.app_ref(app).map_or(0, |a| a.retained.len())
    }

    pub fn retained_bytes(&self, app: AppNo) -> u64 {
        self.app_ref(app).map_or(0, |a| a.retained_bytes)
    }

    pub fn live_broadcasts(&self, app: AppNo) -> usize {
        self.app_ref(app).map_or(0, |a| a.broadcasts.len())
    }

    pub fn request_of(&self, app: AppNo, key: u128) -> Option<u128> {
        Some(self.app_ref(app)?.requests.get(&key)?.0.request)
    }

    pub fn audit(&self) -> Audit {
        let numbers = (0..self.apps.len() as u32).map(AppNo);
        Audit { apps: numbers.filter_map(|no| Some((no, self.audit_app(no)?))).collect() }
    }

    /// Counts the deliveries of one app anew.
    pub fn audit_app(&self, no: AppNo) -> Option<AppAudit> {
        let app = self.app_ref(no)?;
        let direct: u64 = app.inboxes.values().map(|inbox| inbox.entries.len() as u64).sum();
        let casts = app.broadcasts.iter().filter_map(|seq| self.messages.get(seq)?.broadcast());
        let open = direct + casts.map(|set| set.len()).sum::<u64>();
        Some(AppAudit { created: app.counters.created, ended: app.counters.ended.iter().sum(), open })
    }

    /// Messages and deliveries that are open.
    pub fn open_counts(&self) -> (u64, u64) {
        let messages = self.apps.iter().map(|app| app.kept.messages).sum();
        (messages, self.apps.iter().map(|app| app.counters.open()).sum())
    }

    /// Whether messages of other devices may wait for the device.
    pub fn hears_peers(&self, at: DeviceRef) -> bool {
        self.app_ref(at.app).and_then(|app| app.device(at.device)).is_some_and(|device| device.hears_peers)
    }

    /// Open messages of an app, and the bytes of their contents.
    pub fn kept(&self, app: AppNo) -> (u64, u64) {
        self.app_ref(app).map_or((0, 0), |app| (app.kept.messages, app.kept.bytes))
    }

    pub fn next_expiry(&self) -> Option<UnixMillis> {
        self.next_due()
    }

    pub fn last_time(&self) -> UnixMillis {
        self.last_time
    }

    /// Equal for two states that are the same: see [`crate::stored::digest`].
    pub fn digest(&self) -> u128 {
        crate::stored::digest(self)
    }

    pub fn last_event(&self) -> u64 {
        self.events
    }
}

/// One lane of an inbox, behind a position.
#[derive(Clone, Copy)]
struct Lane {
    urgent: bool,
    after: Seq,
}

impl Lane {
    fn holds(self, pending: &Pending) -> bool {
        pending.urgent == self.urgent && pending.seq > self.after
    }
}

/// Two orders as one.
fn in_order<T>(
    a: impl Iterator<Item = T>,
    b: impl Iterator<Item = T>,
    seq: fn(&T) -> Seq,
) -> impl Iterator<Item = T> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(first), Some(other)) if seq(first) > seq(other) => b.next(),
        (Some(_), _) => a.next(),
        (None, _) => b.next(),
    })
}

/// A broadcast, to whichever of its devices.
pub(super) fn pending_of_all(seq: Seq, message: &Message) -> Pending {
    Pending {
        seq,
        id: message.id(),
        blob: message.blob,
        accepted_at: message.accepted_at,
        expires_at: message.expires_at,
        urgent: message.priority() == Priority::High,
        qos: 1,
        retain: false,
        subscription_ids: Vec::new(),
        sent_before: false,
        is_shared: message.share().is_some(),
    }
}

fn pending_of(app: &App, device: DeviceNo, seq: Seq, message: &Message, entry: Option<Entry>) -> Pending {
    let report = message.report();
    Pending {
        qos: entry.map_or(1, |e| e.qos()),
        retain: entry.is_some_and(|e| e.retain()),
        subscription_ids: app.entry_ids.get(&(device.0, seq)).cloned().unwrap_or_default(),
        sent_before: report.is_some_and(|report| report.has(device, Step::Sent)),
        ..pending_of_all(seq, message)
    }
}
