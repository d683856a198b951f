//! The reference store: the same state machine, nothing on disk. For tests, simulation and trying things out.
//!
//! Commands are executed when they are submitted, on the caller's thread. A test can make the next batches fail, and can
//! hold completions back: what is held is executed but does not count as stored, as if the disk were slow.

use crate::embedded::record;
use crate::watch::EventWatch;
use postrider_core::command::{Command, Outcome};
use postrider_core::id::*;
use postrider_core::jobs::*;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_core::state::{Effects, Live};

use postrider_core::webhooks::Webhook;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Contents are addressed in files of this size, as on disk.
const FILE_BYTES: u64 = 1 << 30;

/// See the module. Clones share one store.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
    watch: Arc<EventWatch>,
    epoch: u64,
}

#[derive(Default)]
struct Inner {
    state: Live,
    contents: HashMap<BlobRef, Arc<Content>>,
    /// Where the next content would lie.
    next_place: u64,
    events: Vec<ReceiptEvent>,
    /// Events whose commands count as stored.
    told_events: usize,
    durable: Seq,
    faults: VecDeque<StoreError>,
    refuses: Option<StoreError>,
    holding: bool,
    held: VecDeque<Held>,
    commands: u64,
    commits: u64,
}

/// A batch that was executed and is not told yet.
struct Held {
    seq: Seq,
    events: usize,
    done: Done,
    outcomes: Vec<Outcome>,
    /// Contents that nobody needs any more when it is stored.
    released: Vec<BlobRef>,
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new()
    }
}

/// The state behind the lock, to be asked.
struct StateGuard<'a>(MutexGuard<'a, Inner>);

impl std::ops::Deref for StateGuard<'_> {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.0.state
    }
}

impl std::ops::DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut Live {
        &mut self.0.state
    }
}

impl MemoryStore {
    pub fn new() -> MemoryStore {
        MemoryStore::with_epoch(1)
    }

    pub fn with_epoch(epoch: u64) -> MemoryStore {
        MemoryStore { inner: Arc::default(), watch: Arc::default(), epoch }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> StateGuard<'_> {
        StateGuard(self.inner())
    }

    fn state_mut(&self) -> StateGuard<'_> {
        StateGuard(self.inner())
    }

    /// The next batch gets this error, and nothing of it is done. Called twice: the next two.
    pub fn fail_next(&self, error: StoreError) {
        self.inner().faults.push_back(error);
    }

    /// Until it is set to `None`: every batch gets this error and `refuses` tells it. `StorageLow` spares the batches that
    /// bring nothing new, as on disk.
    pub fn refuse(&self, why: Option<StoreError>) {
        self.inner().refuses = why;
    }

    /// From now batches are executed but not told, until they are released.
    pub fn hold(&self) {
        self.inner().holding = true;
    }

    /// How many batches are held.
    pub fn held(&self) -> usize {
        self.inner().held.len()
    }

    /// Tells the `count` oldest held batches; holding goes on.
    pub fn release(&self, count: usize) {
        for _ in 0..count {
            let mut inner = self.inner();
            let Some(held) = inner.held.pop_front() else { return };
            inner.commits += 1;
            inner.durable = held.seq;
            self.watch.note(&inner.events[inner.told_events..held.events]);
            inner.told_events = held.events;
            inner.state.settle(held.seq);
            held.released.iter().for_each(|blob| _ = inner.contents.remove(blob));
            let latest = inner.events[..held.events].last().map_or(0, |event| event.position);
            drop(inner);
            self.watch.tell(latest);
            (held.done)(Ok(held.outcomes));
        }
    }

    /// Tells all held batches and holds no more.
    pub fn release_all(&self) {
        let held = {
            let mut inner = self.inner();
            inner.holding = false;
            inner.held.len()
        };
        self.release(held);
    }

    /// To be told of new receipts.
    pub fn watch_events(&self) -> Arc<EventWatch> {
        self.watch.clone()
    }
}

impl Inner {
    /// The error for a batch, where it is to have one.
    fn fault(&mut self, grows: bool) -> Option<StoreError> {
        self.faults.pop_front().or_else(|| match &self.refuses {
            Some(StoreError::StorageLow { .. }) if !grows => None,
            other => other.clone(),
        })
    }

    fn execute(&mut self, commands: Vec<Command>, done: Done) {
        let mut effects = Effects::default();
        let mut outcomes = Vec::with_capacity(commands.len());
        for mut command in commands {
            let blob = command.take_content().map_or(BlobRef::default(), |content| self.keep(content));
            outcomes.push(self.state.execute(&command, blob, &mut effects));
            self.commands += 1;
        }
        self.events.append(&mut effects.events);
        let (seq, events, released) = (self.state.seq(), self.events.len(), effects.released);
        self.held.push_back(Held { seq, events, done, outcomes, released });
    }

    fn keep(&mut self, content: Arc<Content>) -> BlobRef {
        let mut frame = Vec::new();
        // The length counts against inboxes, so it has to be the one that it would have on disk.
        let len =
            record::append_content(&content, &mut frame).map_or(1, |()| frame.len() - record::FRAME_LEN);
        let file = (self.next_place / FILE_BYTES + 1) as u32;
        let blob = BlobRef { file, offset: (self.next_place % FILE_BYTES) as u32, len: len as u32 };
        self.next_place += frame.len() as u64;
        self.contents.insert(blob, content);
        blob
    }
}

impl Store for MemoryStore {
    fn submit(&self, commands: Vec<Command>, done: Done) {
        let mut inner = self.inner();
        let grows = commands.iter().any(Command::grows);
        if let Some(fault) = inner.fault(grows) {
            drop(inner);
            return done(Err(fault));
        }
        inner.execute(commands, done);
        let holding = inner.holding;
        drop(inner);
        if !holding {
            self.release(1);
        }
    }

    fn sent(&self, app: AppNo, deliveries: &[(DeviceNo, Seq)], now: UnixMillis) {
        self.state_mut().sent(app, deliveries, now);
    }

    fn pending(&self, at: DeviceRef, position: Position, max: usize, now: UnixMillis) -> Vec<Pending> {
        let inner = self.inner();
        inner.state.pending(at, position, max, now, inner.durable)
    }

    fn content(&self, blob: BlobRef) -> Result<Arc<Content>, StoreError> {
        self.inner().contents.get(&blob).cloned().ok_or(StoreError::Missing)
    }

    fn events(&self, app: AppNo, after: u64, max: usize) -> Result<EventPage, StoreError> {
        let inner = self.inner();
        let told = &inner.events[..inner.told_events];
        let start = told.partition_point(|event| event.position <= after);
        let mut page = EventPage { events: Vec::new(), next: after, missed: false };
        for event in &told[start..] {
            if page.events.len() == max {
                break;
            }
            page.next = event.position;
            page.events.extend((event.app == app).then(|| event.clone()));
        }
        Ok(page)
    }

    fn receipt_before(&self, at: UnixMillis) -> Result<u64, StoreError> {
        let inner = self.inner();
        let told = &inner.events[..inner.told_events];
        Ok(told.partition_point(|event| event.at < at) as u64)
    }

    fn last_receipt(&self) -> u64 {
        self.watch.latest()
    }

    fn epoch_of(&self, _: u64) -> u64 {
        self.epoch
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn knows(&self, epoch: u64, place: Place) -> bool {
        let inner = self.inner();
        let last = |events: &[ReceiptEvent]| events.last().map_or(0, |event| event.position);
        epoch == self.epoch
            && match place {
                Place::Command(seq) => seq <= inner.durable,
                Place::Receipt(event) => event <= last(&inner.events[..inner.told_events]),
            }
    }

    fn starts(&self) -> Vec<Start> {
        vec![Start { id: self.epoch, after: 0 }]
    }

    fn last_command(&self) -> Seq {
        self.inner().durable
    }

    fn cursor_key(&self) -> [u8; 32] {
        [0; 32]
    }

    fn stats(&self) -> StoreStats {
        let inner = self.inner();
        let (open_messages, open_deliveries) = inner.state.open_counts();
        StoreStats {
            commands: inner.commands,
            commits: inner.commits,
            open_messages,
            open_deliveries,
            queue: inner.held.len() as u64,
            ..StoreStats::default()
        }
    }

    fn refuses(&self) -> Option<StoreError> {
        self.inner().refuses.clone()
    }

    fn seen(&self, at: DeviceRef, now: UnixMillis) {
        self.state_mut().seen(at, now);
    }

    crate::delegate_reads!();
    crate::delegate_reads!(views);
}
