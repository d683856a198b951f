//! The stored form of the whole state: a list of fields, each a part small enough to be written on
//! its own, so that writing a large state needs no second one in memory.

use super::beside;
use super::codec::*;
use super::second;
use crate::command::Idempotency;
use crate::id::*;
use crate::model::*;
use crate::port::Counters;
use crate::state::app::{App, Device, Entry, FirstAnswer, Inbox, Session};
use crate::state::jobs::Job;
use crate::state::message::{Bulk, Extra, Message, Report, RoadNo, Row, Targeted, Whom};
use crate::state::rows::Rows;
use crate::state::{Live, State, Volatile};
use crate::webhooks::Webhook;
use rustc_hash::FxHashMap;
use std::io::{self, Write};
use std::sync::Arc;

/// Numbers in one field of a long list.
pub(super) const LIST_PART: usize = 4096;

/// What an image begins with.
struct Head {
    seq: Seq,
    last_time: UnixMillis,
    events: u64,
    jobs_opened: u64,
}
record!(Head { 1 seq, 2 last_time, 3 events, 4 jobs_opened });

/// An app without its devices and messages.
struct AppPart {
    id: String,
    name: String,
    created_at: UnixMillis,
    keys: Vec<StoredKey>,
    /// Device numbers given so far; those without a device part were deleted.
    device_numbers: u32,
    /// Made anew from the retained messages when it is read.
    retained_due: UnixMillis,
    counters: Counters,
    closed_at: Option<UnixMillis>,
}
record!(AppPart {
    1 id, 2 name, 3 created_at, 4 keys, 5 device_numbers, 6 retained_due, 7 counters, 8 closed_at,
});

struct DevicePart {
    at: DeviceRef,
    device: Box<Device>,
}
record!(DevicePart { 1 at, 2 device });

struct InboxPart {
    at: DeviceRef,
    entries: Numbers,
    bytes: u64,
    urgent: u32,
}
record!(InboxPart { 1 at, 2 entries, 3 bytes, 4 urgent });

struct EntryIdsPart {
    at: DeviceRef,
    seq: Seq,
    ids: Vec<u32>,
}
record!(EntryIdsPart { 1 at, 2 seq, 3 ids });

struct BroadcastsPart {
    app: AppNo,
    seqs: Numbers,
}
record!(BroadcastsPart { 1 app, 2 seqs });

struct HistoryPart {
    app: AppNo,
    seqs: Numbers,
}
record!(HistoryPart { 1 app, 2 seqs });

struct RetainedPart {
    app: AppNo,
    retained: Retained,
}
record!(RetainedPart { 1 app, 2 retained });

struct RoadPart {
    app: AppNo,
    name: Arc<str>,
}
record!(RoadPart { 1 app, 2 name });

struct RequestPart {
    app: AppNo,
    request: Idempotency,
    answer: FirstAnswer,
}
record!(RequestPart { 1 app, 2 request, 3 answer });

struct WebhookPart {
    app: AppNo,
    webhook: Webhook,
}
record!(WebhookPart { 1 app, 2 webhook });

struct MessagePart {
    seq: Seq,
    message: Message,
}
record!(MessagePart { 1 seq, 2 message });

struct ProofPart {
    at: DeviceRef,
    keys: ProofKeys,
}
record!(ProofPart { 1 at, 2 keys });

struct JobPart {
    no: JobNo,
    job: Job,
}
record!(JobPart { 1 no, 2 job });

record!(Device {
    1 id, 2 secret_hash, 3 profile, 4 created_at, 5 last_seen_at, 6 session, 7 origin, 8 hears_peers,
});
record!(Session { 1 stored, 2 subscriptions });
record!(Message { 1 accepted_at, 2 expires_at, 3 blob, 4 app, 5 open, 6 whom, 7 extra });
record!(Extra { 1 few, 2 broadcast, 3 priority, 4 group, 5 collapse_key, 6 report, 7 share });
record!(Report { 1 id, 2 targeted, 3 reached, 4 rows, 5 bulk, 6 cancelled_at, 7 position });
record!(Row { 1 device, 2 after_ms, 3 step, 4 reason, 5 road });
named!(RoadNo);
record!(Bulk { 1 devices, 2 step, 3 reason, 4 at });

/// A list, however it lies in memory.
impl Field for Rows {
    type Gathered = Rows;

    fn put_field(&self, tag: u32, out: &mut Vec<u8>) {
        self.for_each_in_order(|row| row.put_value(tag, out));
    }

    fn gather(gathered: &mut Rows, raw: Raw<'_>) -> Result<(), Bad> {
        gathered.push(Row::get_value(raw)?);
        Ok(())
    }

    fn finish(gathered: Rows) -> Result<Rows, Bad> {
        Ok(gathered)
    }
}

/// Whom a message was for: the one device, or nothing where the extra tells.
impl Record for Whom {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Whom::One(device) => device.put_value(1, out),
            Whom::Few => {}
            Whom::Broadcast => true.put_value(2, out),
            Whom::Shared => true.put_value(3, out),
        }
    }

    fn get(bytes: &[u8]) -> Result<Self, Bad> {
        match Fields(bytes).next().transpose()? {
            None => Ok(Whom::Few),
            Some((1, raw)) => Value::get_value(raw).map(Whom::One),
            Some((2, _)) => Ok(Whom::Broadcast),
            Some((3, _)) => Ok(Whom::Shared),
            Some((tag, _)) => Err(Bad::UnknownField(tag)),
        }
    }
}
nested!(Whom);

impl Record for Targeted {
    fn put(&self, out: &mut Vec<u8>) {
        if let Targeted::Broadcast(set) = self {
            set.put_value(1, out);
        }
    }

    fn get(bytes: &[u8]) -> Result<Self, Bad> {
        match Fields(bytes).next().transpose()? {
            None => Ok(Targeted::Direct),
            Some((1, raw)) => Value::get_value(raw).map(Targeted::Broadcast),
            Some((tag, _)) => Err(Bad::UnknownField(tag)),
        }
    }
}
nested!(Targeted);

impl Record for FirstAnswer {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            FirstAnswer::Message { id, seq, targeted } => {
                id.put_value(1, out);
                seq.put_field(2, out);
                targeted.put_field(3, out);
            }
            FirstAnswer::Device(device) => device.put_value(4, out),
        }
    }

    fn get(bytes: &[u8]) -> Result<Self, Bad> {
        let (mut id, mut seq, mut targeted) = (Slot::default(), Slot::default(), Slot::default());
        for field in Fields(bytes) {
            match field? {
                (1, raw) => id.gather(raw)?,
                (2, raw) => seq.gather(raw)?,
                (3, raw) => targeted.gather(raw)?,
                (4, raw) => return Value::get_value(raw).map(FirstAnswer::Device),
                (tag, _) => return Err(Bad::UnknownField(tag)),
            }
        }
        Ok(FirstAnswer::Message { id: id.finish()?, seq: seq.finish()?, targeted: targeted.finish()? })
    }
}
nested!(FirstAnswer);

/// Many numbers, eight bytes each.
pub(super) struct Numbers(pub Vec<u64>);

impl Value for Numbers {
    fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
        let bytes: Vec<u8> = self.0.iter().flat_map(|number| number.to_le_bytes()).collect();
        put_bytes(tag, &bytes, out);
    }

    fn get_value(raw: Raw<'_>) -> Result<Self, Bad> {
        let (numbers, rest) = raw.bytes()?.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(Bad::Malformed);
        }
        Ok(Numbers(numbers.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()))
    }

    fn absent() -> Option<Self> {
        Some(Numbers(Vec::new()))
    }

    fn is_absent(&self) -> bool {
        self.0.is_empty()
    }
}
once!(Numbers);

// The tags of an image's parts.
const HEAD: u32 = 1;
const APP: u32 = 2;
const DEVICE: u32 = 3;
const INBOX: u32 = 4;
const ENTRY_IDS: u32 = 5;
const BROADCASTS: u32 = 6;
const RETAINED: u32 = 7;
const REQUEST: u32 = 8;
const PLATFORM_KEY: u32 = 9;
const MESSAGE: u32 = 10;
const HISTORY: u32 = 11;
const PROOF: u32 = 12;
const JOB: u32 = 26;
const WEBHOOK: u32 = 36;
// 46 and 47: what is known beside the state.
const ROAD: u32 = 48;

/// Writes parts as they are made.
struct Parts<'a> {
    out: &'a mut dyn Write,
    part: Vec<u8>,
}

impl Parts<'_> {
    fn write(&mut self, tag: u32, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.part.clear();
        put_nested(tag, &mut self.part, fill);
        self.out.write_all(&self.part)
    }

    /// A part whose first field names its device or app, and what `rest` puts behind it.
    fn write_of(&mut self, tag: u32, owner: &impl Value, rest: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.write(tag, |out| {
            owner.put_value(1, out);
            rest(out);
        })
    }
}

/// Writes the whole state.
pub fn write_state(state: &State, out: &mut dyn Write) -> io::Result<()> {
    write_parts(state, Order::AsTheyLie, out)
}

/// Writes the whole state so that equal states give equal bytes.
pub(super) fn write_state_in_order(state: &State, out: &mut dyn Write) -> io::Result<()> {
    write_parts(state, Order::Sorted, out)
}

/// In which order the entries of a hash map are written: it is no part of what they say.
#[derive(Clone, Copy)]
enum Order {
    AsTheyLie,
    Sorted,
}

impl Order {
    fn of<'a, K: Ord, V>(self, map: &'a FxHashMap<K, V>) -> Box<dyn Iterator<Item = (&'a K, &'a V)> + 'a> {
        match self {
            Order::AsTheyLie => Box::new(map.iter()),
            Order::Sorted => {
                let mut entries: Vec<(&K, &V)> = map.iter().collect();
                entries.sort_unstable_by(|a, b| a.0.cmp(b.0));
                Box::new(entries.into_iter())
            }
        }
    }
}

fn write_parts(state: &State, order: Order, out: &mut dyn Write) -> io::Result<()> {
    let mut parts = Parts { out, part: Vec::new() };
    let head = Head {
        seq: state.seq,
        last_time: state.last_time,
        events: state.events,
        jobs_opened: state.jobs.opened,
    };
    parts.write(HEAD, |out| head.put(out))?;
    for (i, app) in state.apps.iter().enumerate() {
        write_app(&mut parts, AppNo(i as u32), app, order)?;
    }
    for key in &state.platform_keys {
        parts.write(PLATFORM_KEY, |out| key.put(out))?;
    }
    for (seq, message) in order.of(&state.messages) {
        parts.write_of(MESSAGE, seq, |out| message.put_value(2, out))?;
    }
    for (at, keys) in order.of(&state.proof_keys) {
        parts.write_of(PROOF, at, |out| keys.put_value(2, out))?;
    }
    for (no, job) in &state.jobs.records {
        parts.write_of(JOB, no, |out| job.put_value(2, out))?;
    }
    Ok(())
}

fn write_app(parts: &mut Parts<'_>, no: AppNo, app: &App, order: Order) -> io::Result<()> {
    let part = AppPart {
        id: app.id.clone(),
        name: app.name.clone(),
        created_at: app.created_at,
        keys: app.keys.clone(),
        device_numbers: app.devices.len() as u32,
        retained_due: app.first_retained_end().unwrap_or(UnixMillis::MAX),
        counters: app.counters,
        closed_at: app.closed_at,
    };
    parts.write(APP, |out| part.put(out))?;
    for webhook in app.webhooks.values() {
        parts.write_of(WEBHOOK, &no, |out| webhook.put_value(2, out))?;
    }
    let at = |device| DeviceRef { app: no, device: DeviceNo(device) };
    for (i, device) in app.devices.iter().enumerate() {
        if let Some(device) = device {
            parts.write_of(DEVICE, &at(i as u32), |out| device.put_value(2, out))?;
        }
    }
    for (device, inbox) in order.of(&app.inboxes) {
        let Inbox { entries, bytes, urgent } = inbox;
        parts.write_of(INBOX, &at(*device), |out| {
            Numbers(entries.iter().map(|entry| entry.0).collect()).put_value(2, out);
            bytes.put_field(3, out);
            urgent.put_field(4, out);
        })?;
    }
    for ((device, seq), ids) in &app.entry_ids {
        parts.write_of(ENTRY_IDS, &at(*device), |out| {
            seq.put_field(2, out);
            ids.put_field(3, out);
        })?;
    }
    let broadcasts: Vec<Seq> = app.broadcasts.iter().copied().collect();
    for seqs in broadcasts.chunks(LIST_PART) {
        parts.write_of(BROADCASTS, &no, |out| Numbers(seqs.to_vec()).put_value(2, out))?;
    }
    // In parts of one length, however it lies in memory: the same list gives the same bytes.
    let mut history = app.history.iter().copied();
    loop {
        let seqs: Vec<Seq> = history.by_ref().take(LIST_PART).collect();
        if seqs.is_empty() {
            break;
        }
        parts.write_of(HISTORY, &no, |out| Numbers(seqs).put_value(2, out))?;
    }
    for road in &app.roads {
        parts.write_of(ROAD, &no, |out| road.put_value(2, out))?;
    }
    for retained in app.retained.values() {
        parts.write_of(RETAINED, &no, |out| retained.put_value(2, out))?;
    }
    for (request, answer) in app.requests_order.iter().filter_map(|key| app.requests.get(key)) {
        parts.write_of(REQUEST, &no, |out| {
            request.put_value(2, out);
            answer.put_value(3, out);
        })?;
    }
    Ok(())
}

/// Reads an image of the format's version, and what was known beside it. Its indexes are not made
/// yet: `Live::rebuild`.
pub fn read_state(version: u32, bytes: &[u8]) -> Result<Live, Bad> {
    let (mut state, mut volatile) = (State::default(), Volatile::default());
    if version < 3 {
        state = second::state(bytes)?;
    } else {
        for field in Fields(bytes) {
            match field? {
                (tag @ (beside::SENT | beside::SEEN), raw) => {
                    let devices = |app: AppNo| state.apps.get(app.0 as usize).map_or(0, |a| a.devices.len());
                    beside::read_part(&mut volatile, devices, (tag, raw.bytes()?))?;
                }
                (tag, raw) => read_part(&mut state, tag, raw.bytes()?)?,
            }
        }
    }
    take_sent_marks(&mut state, &mut volatile);
    Ok(Live::beside(state, volatile))
}

/// Earlier releases marked in the inboxes what was written to a connection. Where there is a report,
/// it has a row of it.
fn take_sent_marks(state: &mut State, volatile: &mut Volatile) {
    for app in &mut state.apps {
        for (device, inbox) in &mut app.inboxes {
            for entry in inbox.entries.iter_mut() {
                if !entry.take_sent_before() {
                    continue;
                }
                let message = state.messages.get(&entry.seq());
                if let Some(message) = message.filter(|message| message.report().is_none()) {
                    volatile.mark_sent(entry.seq(), DeviceNo(*device), message.accepted_at);
                }
            }
        }
    }
}

fn read_part(state: &mut State, tag: u32, bytes: &[u8]) -> Result<(), Bad> {
    match tag {
        HEAD => {
            let Head { seq, last_time, events, jobs_opened } = Record::get(bytes)?;
            (state.seq, state.last_time, state.events) = (seq, last_time, events);
            state.jobs.opened = jobs_opened;
        }
        APP => state.apps.push(app_of(Record::get(bytes)?)),
        DEVICE => {
            let DevicePart { at, device } = Record::get(bytes)?;
            let slot = app(state, at.app)?.devices.get_mut(at.device.0 as usize);
            *slot.ok_or(Bad::Malformed)? = Some(device);
        }
        INBOX => {
            let InboxPart { at, entries, bytes, urgent } = Record::get(bytes)?;
            let entries = entries.0.into_iter().map(Entry).collect();
            app(state, at.app)?.inboxes.insert(at.device.0, Inbox { entries, bytes, urgent });
        }
        ENTRY_IDS => {
            let EntryIdsPart { at, seq, ids } = Record::get(bytes)?;
            app(state, at.app)?.entry_ids.insert((at.device.0, seq), ids);
        }
        BROADCASTS => {
            let BroadcastsPart { app: no, seqs } = Record::get(bytes)?;
            app(state, no)?.broadcasts.extend(seqs.0);
        }
        RETAINED => {
            let RetainedPart { app: no, retained } = Record::get(bytes)?;
            let (app, topic) = (app(state, no)?, retained.topic.clone());
            app.retain(&topic, Some(retained));
        }
        ROAD => {
            let RoadPart { app: no, name } = Record::get(bytes)?;
            app(state, no)?.roads.push(name);
        }
        REQUEST => {
            let RequestPart { app: no, request, answer } = Record::get(bytes)?;
            let app = app(state, no)?;
            app.requests.insert(request.key, (request, answer));
            app.requests_order.push_back(request.key);
        }
        PLATFORM_KEY => state.platform_keys.push(Record::get(bytes)?),
        MESSAGE => {
            let MessagePart { seq, message } = Record::get(bytes)?;
            app(state, message.app)?;
            state.messages.insert(seq, message);
        }
        HISTORY => {
            let HistoryPart { app: no, seqs } = Record::get(bytes)?;
            app(state, no)?.history.extend(seqs.0);
        }
        PROOF => {
            let ProofPart { at, keys } = Record::get(bytes)?;
            state.proof_keys.insert(at, keys);
        }
        JOB => {
            let JobPart { no, job } = Record::get(bytes)?;
            state.jobs.records.insert(no, job);
        }
        WEBHOOK => {
            let WebhookPart { app: no, webhook } = Record::get(bytes)?;
            app(state, no)?.webhooks.insert(webhook.id.clone(), webhook);
        }
        tag => return Err(Bad::UnknownField(tag)),
    }
    Ok(())
}

fn app(state: &mut State, no: AppNo) -> Result<&mut App, Bad> {
    state.apps.get_mut(no.0 as usize).ok_or(Bad::Malformed)
}

fn app_of(part: AppPart) -> App {
    let mut app = App::new(&part.id, &part.name, part.created_at);
    app.keys = part.keys;
    app.devices.resize_with(part.device_numbers as usize, || None);
    app.counters = part.counters;
    app.closed_at = part.closed_at;
    app
}
