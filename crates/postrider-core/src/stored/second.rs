//! The first and second form of what is stored, as releases before 0.2 wrote it: structs in
//! postcard, field by field. **Frozen**: these types say what lies on disks and never change. Only
//! read; what is read becomes the types of today.
//!
//! A unit variant is its number in postcard, so the enums of today are numbers here, and become
//! variants by the table in `nouns`, whose first numbers are the order of that time.

use super::codec::{Bad, Raw, Value};
use crate::command::*;
use crate::id::*;
use crate::model::*;
use crate::port::Counters;
use crate::state::State;
use crate::state::app::{App, Device, Entry, FirstAnswer, Inbox, Session};
use crate::state::message::{Bulk, Extra, Message, Report, RoadNo, Row, Targeted, Whom};
use crate::state::rules::Rules;
use bytes::Bytes;
use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Bad> {
    postcard::from_bytes(bytes).map_err(|_| Bad::Malformed)
}

/// A number of that time as the variant of today.
fn variant<T: Value>(number: u32) -> Result<T, Bad> {
    T::get_value(Raw::Number(u64::from(number)))
}

fn all<A, B>(list: impl IntoIterator<Item = A>, of: impl Fn(A) -> Result<B, Bad>) -> Result<Vec<B>, Bad> {
    list.into_iter().map(of).collect()
}

pub fn command(bytes: &[u8]) -> Result<Command, Bad> {
    read::<Command2>(bytes)?.today()
}

pub fn content(bytes: &[u8]) -> Result<Content, Bad> {
    let Content2 { topic, payload, properties } = read(bytes)?;
    let properties = properties.map(|p| {
        Box::new(ContentProperties {
            payload_is_utf8: p.payload_is_utf8,
            expires: p.expires,
            content_type: p.content_type,
            response_topic: p.response_topic,
            correlation: p.correlation,
            user: p.user,
        })
    });
    // Read in place, the payload would keep the whole file's buffer in memory.
    Ok(Content { topic, payload: Bytes::copy_from_slice(&payload), properties })
}

pub fn event(bytes: &[u8]) -> Result<ReceiptEvent, Bad> {
    let row: Event2 = read(bytes)?;
    Ok(ReceiptEvent {
        position: row.position,
        at: row.at,
        app: AppNo(row.app),
        message: MessageId(row.message),
        device: row.device.map(DeviceNo),
        step: variant(row.step)?,
        reason: variant(row.reason)?,
        count: row.count,
        submission: None,
        road: None,
    })
}

/// A state, with the keys that prove secrets behind it; the first form has none.
pub fn state(bytes: &[u8]) -> Result<State, Bad> {
    let (state, behind) = postcard::take_from_bytes::<State2>(bytes).map_err(|_| Bad::Malformed)?;
    let mut state = state.today()?;
    if !behind.is_empty() {
        let keys: Vec<(Device2Ref, Box<[u8]>)> = read(behind)?;
        state.proof_keys.extend(keys.into_iter().map(|(at, keys)| (at.today(), keys)));
    }
    Ok(state)
}

#[derive(Clone, Copy, Deserialize)]
struct Device2Ref {
    app: u32,
    device: u32,
}

impl Device2Ref {
    fn today(self) -> DeviceRef {
        DeviceRef { app: AppNo(self.app), device: DeviceNo(self.device) }
    }
}

#[derive(Deserialize)]
struct Content2 {
    topic: Option<String>,
    payload: Bytes,
    properties: Option<Box<Properties2>>,
}

#[derive(Deserialize)]
struct Properties2 {
    payload_is_utf8: bool,
    expires: bool,
    content_type: Option<String>,
    response_topic: Option<String>,
    correlation: Option<Bytes>,
    user: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Event2 {
    position: u64,
    at: u64,
    app: u32,
    message: u128,
    device: Option<u32>,
    step: u32,
    reason: u32,
    count: u64,
}

#[derive(Deserialize)]
enum Attribute2 {
    Text(String),
    Number(f64),
    Bool(bool),
}

impl Attribute2 {
    fn today(self) -> Attribute {
        match self {
            Attribute2::Text(text) => Attribute::Text(text),
            Attribute2::Number(number) => Attribute::Number(number),
            Attribute2::Bool(flag) => Attribute::Bool(flag),
        }
    }
}

#[derive(Deserialize)]
struct Profile2 {
    platform: u32,
    alias: Option<String>,
    tags: Vec<String>,
    attributes: BTreeMap<String, Attribute2>,
    provider_tokens: BTreeMap<String, String>,
}

impl Profile2 {
    fn today(self) -> Result<Profile, Bad> {
        Ok(Profile {
            platform: variant(self.platform)?,
            alias: self.alias,
            tags: self.tags,
            attributes: self.attributes.into_iter().map(|(name, a)| (name, a.today())).collect(),
            provider_tokens: self.provider_tokens,
        })
    }
}

#[derive(Deserialize)]
struct ProfileChange2 {
    platform: Option<u32>,
    alias: Option<Option<String>>,
    tags: Option<Vec<String>>,
    add_tags: Vec<String>,
    remove_tags: Vec<String>,
    attributes: BTreeMap<String, Option<Attribute2>>,
    provider_tokens: BTreeMap<String, Option<String>>,
}

impl ProfileChange2 {
    fn today(self) -> Result<ProfileChange, Bad> {
        let attributes = self.attributes.into_iter();
        Ok(ProfileChange {
            platform: self.platform.map(variant).transpose()?,
            alias: self.alias,
            tags: self.tags,
            add_tags: self.add_tags,
            remove_tags: self.remove_tags,
            attributes: attributes.map(|(name, a)| (name, a.map(Attribute2::today))).collect(),
            provider_tokens: self.provider_tokens,
        })
    }
}

#[derive(Deserialize)]
struct Subscription2 {
    filter: String,
    share: Option<String>,
    qos: u8,
    no_local: bool,
    retain_as_published: bool,
    id: Option<u32>,
}

impl Subscription2 {
    fn today(self) -> StoredSubscription {
        StoredSubscription {
            filter: self.filter,
            share: self.share,
            qos: self.qos,
            no_local: self.no_local,
            retain_as_published: self.retain_as_published,
            id: self.id,
        }
    }
}

#[derive(Deserialize)]
struct Key2 {
    id: String,
    name: String,
    scope: u32,
    hash: [u8; 32],
    created_at: u64,
    revoked_at: Option<u64>,
}

impl Key2 {
    fn today(self) -> Result<StoredKey, Bad> {
        Ok(StoredKey {
            id: self.id,
            name: self.name,
            scope: variant(self.scope)?,
            hash: self.hash,
            created_at: self.created_at,
            revoked_at: self.revoked_at,
        })
    }
}

#[derive(Clone, Copy, Deserialize)]
struct Idempotency2 {
    key: u128,
    request: u128,
    keep_until: u64,
}

impl Idempotency2 {
    fn today(self) -> Idempotency {
        Idempotency { key: self.key, request: self.request, keep_until: self.keep_until, keys_max: 0 }
    }
}

#[derive(Deserialize)]
struct Registration2 {
    app: u32,
    id: String,
    secret_hash: Option<[u8; 32]>,
    profile: Profile2,
    now: u64,
    idempotency: Option<Idempotency2>,
}

impl Registration2 {
    fn today(self) -> Result<Box<Registration>, Bad> {
        Ok(Box::new(Registration {
            app: AppNo(self.app),
            id: self.id,
            secret_hash: self.secret_hash,
            profile: self.profile.today()?,
            now: self.now,
            idempotency: self.idempotency.map(Idempotency2::today),
            origin: None,
            quota: None,
        }))
    }
}

#[derive(Deserialize)]
struct Target2 {
    device: u32,
    qos: u8,
    retain: bool,
    subscription_ids: Vec<u32>,
}

impl Target2 {
    fn today(self) -> Target {
        Target {
            device: DeviceNo(self.device),
            qos: self.qos,
            retain: self.retain,
            subscription_ids: self.subscription_ids,
        }
    }
}

#[derive(Deserialize)]
enum Targets2 {
    Direct(Vec<Target2>),
    Broadcast(DeviceSet),
}

#[derive(Deserialize)]
enum Backlog2 {
    All,
    Latest,
    Last(u16),
}

#[derive(Deserialize)]
struct NewMessage2 {
    app: u32,
    id: u128,
    targets: Targets2,
    accepted_at: u64,
    expires_at: u64,
    priority: u32,
    collapse_key: Option<String>,
    backlog: Backlog2,
    idempotency: Option<Idempotency2>,
    tracked: bool,
    push: bool,
    reject_when_full: bool,
    inbox_max: u32,
    inbox_bytes_max: u32,
}

impl NewMessage2 {
    fn today(self) -> Result<Box<NewMessage>, Bad> {
        Ok(Box::new(NewMessage {
            app: AppNo(self.app),
            id: MessageId(self.id),
            targets: match self.targets {
                Targets2::Direct(list) => Targets::Direct(list.into_iter().map(Target2::today).collect()),
                Targets2::Broadcast(set) => Targets::Broadcast(set),
            },
            accepted_at: self.accepted_at,
            expires_at: self.expires_at,
            priority: variant(self.priority)?,
            collapse_key: self.collapse_key,
            backlog: match self.backlog {
                Backlog2::All => Backlog::All,
                Backlog2::Latest => Backlog::Latest,
                Backlog2::Last(n) => Backlog::Last(n),
            },
            idempotency: self.idempotency.map(Idempotency2::today),
            tracked: self.tracked,
            push: self.push,
            reject_when_full: self.reject_when_full,
            inbox_max: self.inbox_max,
            inbox_bytes_max: self.inbox_bytes_max,
            peer_inbox_max: 0,
            room: None,
            submission: None,
            content: None,
        }))
    }
}

#[derive(Deserialize)]
struct RetainedMessage2 {
    qos: u8,
    expires_at: u64,
}

#[derive(Deserialize)]
struct Progress2 {
    device: u32,
    which: Which2,
    step: u32,
    reason: u32,
    sent_at: Option<u64>,
}

#[derive(Deserialize)]
enum Which2 {
    Seq(u64),
    Id(u128),
}

impl Progress2 {
    fn today(self) -> Result<Progress, Bad> {
        Ok(Progress {
            device: DeviceNo(self.device),
            which: match self.which {
                Which2::Seq(seq) => Which::Seq(seq),
                Which2::Id(id) => Which::Id(MessageId(id)),
            },
            step: variant(self.step)?,
            reason: variant(self.reason)?,
            sent_at: self.sent_at,
        })
    }
}

#[derive(Deserialize)]
enum Command2 {
    CreateApp { id: String, name: String, at: u64 },
    AddKey { app: Option<u32>, key: Key2 },
    RevokeKey { app: Option<u32>, key_id: String, at: u64 },
    Register(Box<Registration2>),
    ChangeDevice { at: Device2Ref, change: ProfileChange2 },
    DeleteDevice { at: Device2Ref, now: u64 },
    OpenSession { at: Device2Ref, expiry_secs: u32, fresh: bool, now: u64 },
    LeaveSession { at: Device2Ref, expiry_secs: u32, now: u64 },
    EndSession { at: Device2Ref, now: u64 },
    Subscribe { at: Device2Ref, subscriptions: Vec<Subscription2> },
    Unsubscribe { at: Device2Ref, filters: Vec<(Option<String>, String)> },
    Accept(Box<NewMessage2>),
    Progress { app: u32, steps: Vec<Progress2>, now: u64 },
    Cancel { app: u32, message: u128, now: u64 },
    Expire { now: u64, limit: u32, history_before: u64, history_max: u32 },
    Retain { app: u32, topic: String, message: Option<RetainedMessage2> },
    Enroll { registration: Box<Registration2>, proof_keys: Box<[u8]> },
    ChangeSecret { at: Device2Ref, secret_hash: [u8; 32], proof_keys: Box<[u8]> },
}

impl Command2 {
    fn today(self) -> Result<Command, Bad> {
        use Command as C;
        use Command2 as O;
        Ok(match self {
            O::CreateApp { id, name, at } => C::CreateApp { id, name, at },
            O::AddKey { app, key } => C::AddKey { app: app.map(AppNo), key: key.today()?, keys_max: 0 },
            O::RevokeKey { app, key_id, at } => C::RevokeKey { app: app.map(AppNo), key_id, at },
            O::Register(registration) => C::Register(registration.today()?),
            O::ChangeDevice { at, change } => C::ChangeDevice { at: at.today(), change: change.today()? },
            O::DeleteDevice { at, now } => C::DeleteDevice { at: at.today(), now },
            O::OpenSession { at, expiry_secs, fresh, now } => {
                C::OpenSession { at: at.today(), expiry_secs, fresh, now }
            }
            O::LeaveSession { at, expiry_secs, now } => C::LeaveSession { at: at.today(), expiry_secs, now },
            O::EndSession { at, now } => C::EndSession { at: at.today(), now },
            O::Subscribe { at, subscriptions } => {
                let subscriptions = subscriptions.into_iter().map(Subscription2::today).collect();
                C::Subscribe { at: at.today(), subscriptions }
            }
            O::Unsubscribe { at, filters } => C::Unsubscribe { at: at.today(), filters },
            O::Accept(message) => C::Accept(message.today()?),
            O::Progress { app, steps, now } => {
                C::Progress { app: AppNo(app), steps: all(steps, Progress2::today)?, now }
            }
            O::Cancel { app, message, now } => {
                C::Cancel { app: AppNo(app), message: MessageId(message), now }
            }
            O::Expire { now, limit, history_before, history_max } => {
                C::Expire { now, limit, history_before, history_max }
            }
            O::Retain { app, topic, message } => {
                let message = message.map(|RetainedMessage2 { qos, expires_at }| RetainedMessage {
                    qos,
                    expires_at,
                    room: None,
                    content: None::<Arc<Content>>,
                });
                C::Retain { app: AppNo(app), topic, message }
            }
            O::Enroll { registration, proof_keys } => {
                C::Enroll { registration: registration.today()?, proof_keys }
            }
            O::ChangeSecret { at, secret_hash, proof_keys } => {
                C::ChangeSecret { at: at.today(), secret_hash, proof_keys }
            }
        })
    }
}

#[derive(Deserialize)]
struct State2 {
    seq: u64,
    last_time: u64,
    events: u64,
    apps: Vec<App2>,
    platform_keys: Vec<Key2>,
    messages: FxHashMap<u64, Message2>,
    history: VecDeque<u64>,
}

impl State2 {
    fn today(self) -> Result<State, Bad> {
        let mut state = State::default();
        (state.seq, state.last_time, state.events) = (self.seq, self.last_time, self.events);
        state.apps = all(self.apps, App2::today)?;
        state.platform_keys = all(self.platform_keys, Key2::today)?;
        for (seq, message) in self.messages {
            state.messages.insert(seq, message.today()?);
        }
        // One list for all apps then, one for each now.
        for seq in &self.history {
            let app = state.messages.get(seq).map(|message| message.app.0 as usize);
            if let Some(app) = app.and_then(|app| state.apps.get_mut(app)) {
                app.history.push_back(*seq);
            }
        }
        state.rules = Rules::first(self.history);
        Ok(state)
    }
}

#[derive(Deserialize)]
struct App2 {
    id: String,
    name: String,
    created_at: u64,
    keys: Vec<Key2>,
    devices: Vec<Option<Box<Device2>>>,
    inboxes: FxHashMap<u32, Inbox2>,
    entry_ids: BTreeMap<(u32, u64), Vec<u32>>,
    broadcasts: Vec<u64>,
    retained: BTreeMap<String, Retained2>,
    _retained_due: u64,
    requests: FxHashMap<u128, (Idempotency2, FirstAnswer2)>,
    requests_order: VecDeque<u128>,
    counters: Counters2,
}

impl App2 {
    fn today(self) -> Result<App, Bad> {
        let mut app = App::new(&self.id, &self.name, self.created_at);
        app.keys = all(self.keys, Key2::today)?;
        app.devices = all(self.devices, |device| device.map(|d| d.today()).transpose())?;
        app.inboxes = self.inboxes.into_iter().map(|(device, i)| (device, i.today())).collect();
        app.entry_ids = self.entry_ids;
        app.broadcasts = self.broadcasts.into_iter().collect();
        let retained = self.retained.into_iter();
        retained.for_each(|(topic, r)| _ = app.retain(&topic, Some(r.today())));
        let requests = self.requests.into_iter();
        app.requests = requests.map(|(key, (i, a))| (key, (i.today(), a.today()))).collect();
        app.requests_order = self.requests_order;
        app.counters = self.counters.today()?;
        Ok(app)
    }
}

#[derive(Deserialize)]
enum FirstAnswer2 {
    Message { id: u128, seq: u64, targeted: u64 },
    Device(u32),
}

impl FirstAnswer2 {
    fn today(self) -> FirstAnswer {
        match self {
            FirstAnswer2::Message { id, seq, targeted } => {
                FirstAnswer::Message { id: MessageId(id), seq, targeted }
            }
            FirstAnswer2::Device(device) => FirstAnswer::Device(DeviceNo(device)),
        }
    }
}

#[derive(Deserialize)]
struct Device2 {
    id: String,
    secret_hash: Option<[u8; 32]>,
    profile: Profile2,
    created_at: u64,
    last_seen_at: Option<u64>,
    session: Option<Box<Session2>>,
}

#[derive(Deserialize)]
struct Session2 {
    stored: StoredSession2,
    subscriptions: Vec<Subscription2>,
}

#[derive(Deserialize)]
struct StoredSession2 {
    expiry_secs: u32,
    left_at: Option<u64>,
}

impl Device2 {
    fn today(self) -> Result<Box<Device>, Bad> {
        let session = self.session.map(|session| {
            let StoredSession2 { expiry_secs, left_at } = session.stored;
            let subscriptions = session.subscriptions.into_iter();
            Box::new(Session {
                stored: StoredSession { expiry_secs, left_at },
                subscriptions: subscriptions.map(Subscription2::today).collect(),
            })
        });
        Ok(Box::new(Device {
            id: self.id,
            origin: None,
            secret_hash: self.secret_hash,
            profile: self.profile.today()?,
            created_at: self.created_at,
            last_seen_at: self.last_seen_at,
            session,
            hears_peers: false,
        }))
    }
}

#[derive(Deserialize)]
struct Inbox2 {
    entries: VecDeque<u64>,
    bytes: u64,
    urgent: u32,
}

impl Inbox2 {
    fn today(self) -> Inbox {
        let entries = self.entries.into_iter().map(Entry).collect();
        Inbox { entries, bytes: self.bytes, urgent: self.urgent }
    }
}

#[derive(Deserialize)]
struct Blob2 {
    file: u32,
    offset: u32,
    len: u32,
}

impl Blob2 {
    fn today(self) -> BlobRef {
        BlobRef { file: self.file, offset: self.offset, len: self.len }
    }
}

#[derive(Deserialize)]
struct Retained2 {
    topic: String,
    qos: u8,
    expires_at: u64,
    blob: Blob2,
}

impl Retained2 {
    fn today(self) -> Retained {
        let Retained2 { topic, qos, expires_at, blob } = self;
        Retained { topic, qos, expires_at, blob: blob.today() }
    }
}

#[derive(Deserialize)]
struct Counters2 {
    messages: u64,
    created: u64,
    ended: [u64; 15],
}

impl Counters2 {
    fn today(self) -> Result<Counters, Bad> {
        let mut counters = Counters { messages: self.messages, created: self.created, ..Counters::default() };
        for (number, count) in (0..).zip(self.ended) {
            let step: Step = variant(number)?;
            counters.ended[step as usize] = count;
        }
        Ok(counters)
    }
}

#[derive(Deserialize)]
struct Message2 {
    accepted_at: u64,
    expires_at: u64,
    blob: Blob2,
    app: u32,
    open: u32,
    whom: Whom2,
    extra: Option<Box<Extra2>>,
}

#[derive(Deserialize)]
enum Whom2 {
    One(u32),
    Few,
    Broadcast,
}

#[derive(Deserialize)]
struct Extra2 {
    few: Vec<u32>,
    broadcast: Option<DeviceSet>,
    priority: u32,
    group: Option<(u64, u16)>,
    collapse_key: Option<String>,
    report: Option<Report2>,
}

#[derive(Deserialize)]
struct Report2 {
    id: u128,
    targeted: Targeted2,
    reached: Vec<(u32, DeviceSet)>,
    rows: Vec<Row2>,
    bulk: Vec<Bulk2>,
    cancelled_at: Option<u64>,
}

#[derive(Deserialize)]
enum Targeted2 {
    Direct,
    Broadcast(DeviceSet),
}

#[derive(Deserialize)]
struct Row2 {
    device: u32,
    after_ms: u32,
    step: u32,
    reason: u32,
}

#[derive(Deserialize)]
struct Bulk2 {
    devices: DeviceSet,
    step: u32,
    reason: u32,
    at: u64,
}

impl Message2 {
    fn today(self) -> Result<Message, Bad> {
        Ok(Message {
            accepted_at: self.accepted_at,
            expires_at: self.expires_at,
            blob: self.blob.today(),
            app: AppNo(self.app),
            open: self.open,
            whom: match self.whom {
                Whom2::One(device) => Whom::One(DeviceNo(device)),
                Whom2::Few => Whom::Few,
                Whom2::Broadcast => Whom::Broadcast,
            },
            extra: self.extra.map(|extra| extra.today().map(Box::new)).transpose()?,
        })
    }
}

impl Extra2 {
    fn today(self) -> Result<Extra, Bad> {
        Ok(Extra {
            few: self.few.into_iter().map(DeviceNo).collect(),
            broadcast: self.broadcast,
            priority: variant(self.priority)?,
            group: self.group,
            collapse_key: self.collapse_key,
            share: None,
            report: self.report.map(Report2::today).transpose()?,
        })
    }
}

impl Report2 {
    fn today(self) -> Result<Report, Bad> {
        Ok(Report {
            id: MessageId(self.id),
            targeted: match self.targeted {
                Targeted2::Direct => Targeted::Direct,
                Targeted2::Broadcast(set) => Targeted::Broadcast(set),
            },
            reached: all(self.reached, |(step, set)| Ok((variant(step)?, set)))?,
            rows: all(self.rows, |row| {
                Ok(Row {
                    device: DeviceNo(row.device),
                    after_ms: row.after_ms,
                    step: variant(row.step)?,
                    reason: variant(row.reason)?,
                    road: RoadNo::NONE,
                })
            })?
            .into(),
            bulk: all(self.bulk, |bulk| {
                Ok(Bulk {
                    devices: bulk.devices,
                    step: variant(bulk.step)?,
                    reason: variant(bulk.reason)?,
                    at: bulk.at,
                })
            })?,
            cancelled_at: self.cancelled_at,
            position: 0,
        })
    }
}
