//! What the core asks of the world: a store, a clock, chance.
//!
//! Every method of [`Store`] is one transition or one question of the domain, never a row operation, so that an
//! engine with another shape (SQL, a cluster) can stand behind it. One contract test suite runs against all of them.

use crate::command::*;
use crate::id::*;
use crate::jobs::{JobFilter, JobKind, JobName, JobStats, JobView};
use crate::model::*;
use crate::webhooks::Webhook;
use std::sync::Arc;

/// Called once, when all commands of a batch are on stable storage (or never will be).
/// Runs on a thread of the store's: it must be short and must not call back into [`Store::submit`] and wait.
pub type Done = Box<dyn FnOnce(Result<Vec<Outcome>, StoreError>) + Send>;

/// The store.
pub trait Store: Send + Sync + 'static {
    /// Executes the commands in order, with nothing of other callers between those of one batch, makes them durable and
    /// then tells. Returns at once. A full queue or a store that takes nothing tells [`StoreError`] at once.
    fn submit(&self, commands: Vec<Command>, done: Done);

    /// Written to a connection; kept in memory only, since a restart sends again.
    fn sent(&self, app: AppNo, deliveries: &[(DeviceNo, Seq)], now: UnixMillis);

    /// Open deliveries of a device behind `position`, durable ones only, unexpired ones only, urgent ones first. At most `max`.
    fn pending(&self, at: DeviceRef, position: Position, max: usize, now: UnixMillis) -> Vec<Pending>;

    /// Those of the deliveries that are open in the device's inbox, in the same order.
    fn open_deliveries(&self, at: DeviceRef, seqs: &[Seq]) -> Vec<Seq>;

    /// Reads a message's content. [`StoreError::Corrupt`] when it is damaged: then it is never delivered.
    fn content(&self, blob: BlobRef) -> Result<Arc<Content>, StoreError>;

    fn app_by_id(&self, id: &str) -> Option<AppNo>;
    fn apps(&self) -> Vec<AppView>;
    /// A closed app that still has something.
    fn closing_app(&self) -> Option<AppNo>;
    fn app(&self, app: AppNo) -> Option<AppView>;
    /// By the SHA-256 of the key; revoked ones are not found. `None` for the app: a key of the platform.
    fn key(&self, hash: &[u8; 32]) -> Option<(Option<AppNo>, StoredKey)>;
    /// The platform's own keys for `None`.
    fn keys(&self, app: Option<AppNo>) -> Vec<StoredKey>;

    fn device_by_id(&self, app: AppNo, id: &str) -> Option<DeviceRef>;
    fn device(&self, at: DeviceRef) -> Option<DeviceView>;
    fn device_ids(&self, app: AppNo, devices: &[DeviceNo]) -> Vec<Option<String>>;
    /// What signing in needs: the hash of the secret, what proves it, and the session.
    fn sign_in(&self, at: DeviceRef) -> Option<SignIn>;
    /// There is such a device, and it has a secret: it is no anonymous client's session.
    fn is_registered(&self, at: DeviceRef) -> bool;
    /// The same, and `None` where there is no such device.
    fn has_secret(&self, at: DeviceRef) -> Option<bool>;
    /// When the device was last there: in memory, and with the next checkpoint.
    fn seen(&self, at: DeviceRef, now: UnixMillis);
    /// Whether it is time to store that the device is there ([`crate::command::Command::Seen`]): what is stored of it is a
    /// day old, or it registered itself and was never there.
    fn is_seen_due(&self, at: DeviceRef, now: UnixMillis) -> bool;
    /// The devices of an app that registered themselves.
    fn own_devices(&self, app: AppNo) -> OwnDevices;
    /// Devices with a number above `after`, in order of number, at most `max`, that fit the filter.
    fn devices(
        &self,
        app: AppNo,
        filter: &DeviceFilter,
        after: Option<DeviceNo>,
        max: usize,
    ) -> Vec<DeviceView>;

    /// Of the first `look` devices behind `after` that fit the filter: when each was last seen, or registered where it never was;
    /// and where to look on, where there are more. `look` is at least 1.
    fn devices_seen(
        &self,
        app: AppNo,
        filter: &DeviceFilter,
        after: Option<DeviceNo>,
        look: usize,
    ) -> (Vec<(DeviceNo, UnixMillis)>, Option<DeviceNo>);

    fn all_devices(&self, app: AppNo) -> DeviceSet;
    fn devices_with_alias(&self, app: AppNo, alias: &str) -> DeviceSet;
    fn devices_with_tag(&self, app: AppNo, tag: &str) -> DeviceSet;
    fn devices_on(&self, app: AppNo, platform: Platform) -> DeviceSet;

    /// Every stored session with its subscriptions: to rebuild the subscription index at start.
    fn sessions(&self) -> Vec<(DeviceRef, String, StoredSession, Vec<StoredSubscription>)>;
    /// What lies in a device's inbox for its shared subscriptions, on stable storage or not.
    fn shared_entries(&self, at: DeviceRef) -> Vec<SharedEntry>;
    /// Where a device is the only connected member of a shared subscription: members that are away and hold something, found
    /// among the first `max`.
    fn members_away(&self, at: DeviceRef, share: &str, max: usize) -> Vec<DeviceRef>;
    /// Messages on topics that match `filter` and have not expired.
    fn retained(&self, app: AppNo, filter: &str, max: usize, now: UnixMillis) -> Vec<Retained>;

    fn retained_count(&self, app: AppNo) -> usize;
    /// Bytes of their contents.
    fn retained_bytes(&self, app: AppNo) -> u64;
    fn live_broadcasts(&self, app: AppNo) -> usize;
    /// Whether messages of other devices may wait for the device.
    fn hears_peers(&self, at: DeviceRef) -> bool;
    /// Open messages of an app, and the bytes of their contents.
    fn kept(&self, app: AppNo) -> (u64, u64);
    /// The digest of the request that was accepted with this key: its repetition gets the first answer, whatever has changed
    /// since.
    fn request_of(&self, app: AppNo, key: u128) -> Option<u128>;

    fn message(&self, app: AppNo, id: MessageId) -> Option<MessageView>;
    /// Whether there is a report on the message.
    fn knows_message(&self, app: AppNo, id: MessageId) -> bool;
    /// The messages of an app, newest first, with an id below `before`.
    fn messages(&self, app: AppNo, before: Option<MessageId>, max: usize) -> Vec<MessageView>;
    /// The devices of a message that are in `step` now (`None`: in any), in order of number, above `after`.
    fn deliveries(
        &self,
        app: AppNo,
        id: MessageId,
        step: Option<Step>,
        after: Option<DeviceNo>,
        max: usize,
    ) -> Vec<DeliveryView>;
    fn delivery(&self, app: AppNo, id: MessageId, device: DeviceNo) -> Option<DeliveryView>;

    /// Receipts of an app with a position above `after`, at most `max`.
    fn events(&self, app: AppNo, after: u64, max: usize) -> Result<EventPage, StoreError>;
    /// Behind which receipt those begin that happened at `at` or later.
    fn receipt_before(&self, at: UnixMillis) -> Result<u64, StoreError>;
    /// Position of the newest receipt that can be read.
    fn last_receipt(&self) -> u64;
    /// Which start of this history gave out the receipt: the same answer for ever, as long as that
    /// start is remembered.
    fn epoch_of(&self, receipt: u64) -> u64;
    fn webhook(&self, app: AppNo, id: &str) -> Option<Webhook>;
    /// Those of an app, in the order of their ids.
    fn webhooks(&self, app: AppNo) -> Vec<Webhook>;
    /// Those of all apps, by name.
    fn webhook_ids(&self) -> Vec<(AppNo, String)>;
    /// What cursors given out from now on carry, beside their position.
    fn epoch(&self) -> u64;
    /// Whether a cursor with this epoch gave out this place of this history: else it is from before a restore, of a copy, or
    /// never was given out, and its bearer must start again.
    fn knows(&self, epoch: u64, place: Place) -> bool;
    /// The starts of a server that this history is made of, in order of time. The last one is the present one; none is
    /// added while the store is open.
    fn starts(&self) -> Vec<Start>;
    /// The last command on stable storage.
    fn last_command(&self) -> Seq;
    /// A secret of this store that stays the same, for cursors that tell nothing.
    fn cursor_key(&self) -> [u8; 32];

    fn job(&self, no: JobNo) -> Option<JobView>;
    fn job_named(&self, name: &JobName) -> Option<JobView>;
    /// Of the first `look` jobs behind `after` those that fit the filter, in order of number; and
    /// where to look on, where there are more. `look` is at least 1.
    fn jobs(&self, filter: JobFilter, after: Option<JobNo>, look: usize) -> (Vec<JobView>, Option<JobNo>);
    /// The jobs of each kind, counted as they come and go.
    fn job_stats(&self) -> Vec<JobStats>;

    /// Counts every delivery anew and compares with the books.
    fn audit(&self) -> Audit;
    fn stats(&self) -> StoreStats;
    /// When [`Command::Expire`] next has something to do.
    fn next_expiry(&self) -> Option<UnixMillis>;
    /// Why nothing is accepted now, where that is so.
    fn refuses(&self) -> Option<StoreError>;
    /// What an operator should know although everything is accepted.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    /// The latest time in any command: the clock must not start before it.
    fn last_time(&self) -> UnixMillis;
}

/// A start of a server on a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Drawn at the start.
    pub id: u64,
    /// The last command before it.
    pub after: Seq,
}

/// Why the store did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Space is low: new messages are refused, acknowledgements still taken.
    #[error("storage is low: {free_bytes} bytes free")]
    StorageLow { free_bytes: u64 },
    /// Too many commands wait.
    #[error("the store is overloaded")]
    Overloaded,
    /// The disk failed; nothing more is taken and the process should end.
    #[error("the store failed: {0}")]
    Failed(String),
    #[error("a stored record is damaged: {0}")]
    Corrupt(String),
    #[error("no such record")]
    Missing,
    #[error("the store is closed")]
    Closed,
}

/// A place in one of the two orders of a store's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind that command.
    Command(Seq),
    /// Behind that receipt.
    Receipt(u64),
}

/// How far a connection has drained its inbox, in each lane: urgent ones, all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub urgent: Seq,
    pub normal: Seq,
}

/// An open delivery, to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    pub seq: Seq,
    /// Of tracked messages.
    pub id: Option<MessageId>,
    pub blob: BlobRef,
    pub accepted_at: UnixMillis,
    pub expires_at: UnixMillis,
    pub urgent: bool,
    /// As the subscription has it; ignored for pushes.
    pub qos: u8,
    pub retain: bool,
    pub subscription_ids: Vec<u32>,
    /// It was sent before, in this life of the server.
    pub sent_before: bool,
    /// By a shared subscription: it may be another's tomorrow.
    pub is_shared: bool,
}

/// An open delivery of a shared subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedEntry {
    pub seq: Seq,
    pub qos: u8,
    /// In this life of the server.
    pub is_sent: bool,
    pub accepted_at: UnixMillis,
}

/// The devices of an app that registered themselves, without the app's server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnDevices {
    pub count: u64,
    /// The oldest of those that were never there, and when it registered.
    pub never_seen: Option<(DeviceRef, UnixMillis)>,
}

/// What a sign-in is checked against.
#[derive(Clone, Debug, PartialEq)]
pub struct SignIn {
    pub secret_hash: Option<[u8; 32]>,
    pub proof_keys: Option<ProofKeys>,
    pub session: Option<StoredSession>,
    pub subscriptions: Vec<StoredSubscription>,
}

/// An app as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct AppView {
    pub no: AppNo,
    pub id: String,
    pub name: String,
    pub created_at: UnixMillis,
    pub devices: u64,
    pub counters: Counters,
    /// Open deliveries, counted as they come and go.
    pub open: u64,
}

impl AppView {
    /// The books as they are kept, beside [`Store::audit`] which counts anew.
    pub fn books(&self) -> AppAudit {
        AppAudit { created: self.counters.created, ended: self.counters.ended.iter().sum(), open: self.open }
    }
}

/// The books of an app: every delivery ever created is open or ended in exactly one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub messages: u64,
    pub created: u64,
    /// Deliveries that ended, by the [`Step`] that ended them.
    pub ended: [u64; Step::ALL.len()],
}

impl Counters {
    /// What must still be open for the books to balance.
    pub fn open(&self) -> u64 {
        self.created - self.ended.iter().sum::<u64>()
    }
}

/// Which devices a page shows; `None` fits all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceFilter {
    pub platform: Option<Platform>,
    pub tag: Option<String>,
    pub alias: Option<String>,
    /// `Some(true)`: the clients without a registration; else the registered devices.
    pub anonymous: Option<bool>,
}

/// A message and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageView {
    pub id: MessageId,
    pub accepted_at: UnixMillis,
    pub expires_at: UnixMillis,
    pub priority: Priority,
    pub collapse_key: Option<String>,
    pub targeted: u64,
    /// Deliveries by the step they are in now; each delivery counts once.
    pub now: [u64; Step::ALL.len()],
    /// Deliveries that ever reached the step.
    pub reached: [u64; Step::ALL.len()],
    pub reasons: Vec<(Step, Reason, u64)>,
    pub cancelled_at: Option<UnixMillis>,
    /// Position of the receipt that has the submission; 0: there is none.
    pub submission_at: u64,
    /// The content, while it is still kept (until every delivery has ended).
    pub blob: Option<BlobRef>,
}

/// One delivery.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveryView {
    pub device: DeviceNo,
    pub step: Step,
    pub reason: Reason,
    /// Each step with its time, in order of time, from `Accepted` on.
    pub timeline: Vec<Moment>,
}

/// One step of a delivery.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    pub step: Step,
    pub reason: Reason,
    pub at: UnixMillis,
    /// Of [`Step::Forwarded`]: the road that it went, where it is known.
    pub road: Option<Arc<str>>,
}

/// A page of the receipt stream.
#[derive(Clone, Debug, PartialEq)]
pub struct EventPage {
    pub events: Vec<ReceiptEvent>,
    /// Where to read on; equals `after` when nothing new is there.
    pub next: u64,
    /// Events between `after` and the first kept one are gone (retention).
    pub missed: bool,
}

/// The result of counting everything anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    pub apps: Vec<(AppNo, AppAudit)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppAudit {
    pub created: u64,
    pub ended: u64,
    /// Counted in the inboxes and broadcasts.
    pub open: u64,
}

impl AppAudit {
    /// 0, or something was lost or invented.
    pub fn gap(&self) -> i64 {
        self.created as i64 - self.ended as i64 - self.open as i64
    }
}

/// For metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StoreStats {
    pub commands: u64,
    pub commits: u64,
    pub bytes_written: u64,
    pub disk_bytes: u64,
    pub open_messages: u64,
    pub open_deliveries: u64,
    pub queue: u64,
    pub commit_micros_total: u64,
    pub sync_micros_total: u64,
    pub checkpoints: u64,
    pub quarantined: u64,
    /// Bytes of receipts that could not be written to their file so far.
    pub receipts_waiting_bytes: u64,
}

/// Where time comes from. Two clocks in one: both grow steadily, whatever the wall clock does.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time at the start of the process plus what has passed since, never behind the store's last time.
    fn now(&self) -> UnixMillis;
}

/// Where chance comes from: a generator of the operating system's, or a seeded one in tests.
pub trait Chance: Send + Sync + 'static {
    fn bits128(&self) -> u128;
}

impl dyn Chance {
    /// So many bytes: keys, secrets, seeds.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        bytes
            .chunks_mut(16)
            .for_each(|some| some.copy_from_slice(&self.bits128().to_le_bytes()[..some.len()]));
        bytes
    }
}

/// Names a live connection of this node for good: a reused slot has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionRef {
    pub shard: u16,
    pub slot: u32,
    pub generation: u32,
}

/// One connection that is to get a live message.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveTarget {
    pub connection: ConnectionRef,
    pub qos: u8,
    pub retain: bool,
    pub subscription_ids: Vec<u32>,
}

/// A message that goes to connections without being stored: QoS 0, TTL 0, or sessions that end with their connection.
#[derive(Clone, Debug)]
pub struct Live {
    pub content: Arc<Content>,
    pub expires_at: Option<UnixMillis>,
}

/// Why the core wants a connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    TakenOver,
    Revoked,
    SessionEnded,
}

/// How the core reaches those who work on jobs. Nothing here waits.
pub trait JobWorkers: Send + Sync + 'static {
    /// There are jobs of this kind to claim. Payload-free and best effort, as a wake is: a worker also
    /// looks by itself now and then.
    fn jobs_due(&self, kind: JobKind);
}

/// How the core reaches this node's connections. Nothing here waits.
pub trait Connections: Send + Sync + 'static {
    /// Look into the inbox. Payload-free and best effort: a lost wake costs latency only.
    fn wake(&self, connections: &[ConnectionRef]);
    /// Look into the inbox from its beginning: something came to lie there that is older than what was seen.
    fn wake_anew(&self, connections: &[ConnectionRef]);
    /// A live message; dropped where a connection's queue is full.
    fn deliver(&self, live: &Live, targets: Vec<LiveTarget>);
    fn close(&self, connection: ConnectionRef, why: Farewell);
}
