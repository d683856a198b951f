//! What can be done to the stored state: every change is one [`Command`], with all time and chance already in it.
//!
//! Commands are executed one after the other by `State::execute`, which decides by nothing but the state and the
//! command. So a journal of commands *is* the state, and recovery is execution once more.

use crate::id::*;
use crate::jobs::{ClaimedJob, JobKind, JobName, JobOutcome};
use crate::model::*;
use crate::webhooks::{MoveWebhook, PutWebhook};
use std::sync::Arc;

/// One change, atomic and durable as a whole.
#[derive(Clone, Debug)]
pub enum Command {
    CreateApp {
        id: String,
        name: String,
        at: UnixMillis,
    },
    /// `app` none: a key of the platform.
    AddKey {
        app: Option<AppNo>,
        key: StoredKey,
        /// Keys that the app may have; 0: as many as come.
        keys_max: u32,
    },
    RevokeKey {
        app: Option<AppNo>,
        key_id: String,
        at: UnixMillis,
    },
    Register(Box<Registration>),
    ChangeDevice {
        at: DeviceRef,
        change: ProfileChange,
    },
    /// Ends its deliveries `erased` and forgets everything of it.
    DeleteDevice {
        at: DeviceRef,
        now: UnixMillis,
    },
    /// A session that is to outlive its connection; keeps the subscriptions unless `fresh`.
    OpenSession {
        at: DeviceRef,
        expiry_secs: u32,
        fresh: bool,
        now: UnixMillis,
    },
    /// The connection ended: from now the session's expiry runs.
    LeaveSession {
        at: DeviceRef,
        expiry_secs: u32,
        now: UnixMillis,
    },
    /// The session is over: its subscriptions go, and what lay in the inbox for them; pushes stay.
    EndSession {
        at: DeviceRef,
        now: UnixMillis,
    },
    Subscribe {
        at: DeviceRef,
        subscriptions: Vec<StoredSubscription>,
    },
    Unsubscribe {
        at: DeviceRef,
        filters: Vec<(Option<String>, String)>,
    },
    Accept(Box<NewMessage>),
    /// Steps of deliveries: acknowledgements, refusals, receipts of the app on the device.
    Progress {
        app: AppNo,
        steps: Vec<Progress>,
        now: UnixMillis,
    },
    /// A provider took these deliveries, to bring them to their devices by its road. They stay open.
    Forward(Box<Forward>),
    Cancel {
        app: AppNo,
        message: MessageId,
        now: UnixMillis,
    },
    /// Time passed: ends deliveries and sessions whose time is over at `now`; forgets the reports of messages that ended
    /// before `history_before`, and the oldest above `history_max`. At most `limit` of each; the outcome says if there are more.
    Expire {
        now: UnixMillis,
        limit: u32,
        history_before: UnixMillis,
        history_max: u32,
    },
    /// Put a message on its topic, or take it away (`None`).
    Retain {
        app: AppNo,
        topic: String,
        message: Option<RetainedMessage>,
    },
    /// A device comes to be that can prove its secret without showing it.
    Enroll {
        registration: Box<Registration>,
        proof_keys: ProofKeys,
    },
    /// Another secret; what proved the old one goes.
    ChangeSecret {
        at: DeviceRef,
        secret_hash: [u8; 32],
        proof_keys: ProofKeys,
    },
    /// A device that registered itself was there for the first time.
    Seen {
        at: DeviceRef,
        now: UnixMillis,
    },
    /// Whether the device's protocol understands messages of other devices: they wait only for those that do.
    HearPeers {
        at: DeviceRef,
        hears: bool,
    },
    /// Ends all that waits for a device `cancelled`; the device stays.
    ClearInbox {
        at: DeviceRef,
        now: UnixMillis,
    },
    RenameApp {
        app: AppNo,
        name: String,
    },
    /// The app is no more: its keys and its id go at once, what it has is taken away by [`Command::EmptyApp`].
    CloseApp {
        app: AppNo,
        now: UnixMillis,
    },
    /// Takes away some of what a closed app still has: deliveries end `erased`, at most about `limit` of them.
    EmptyApp {
        app: AppNo,
        limit: u32,
        now: UnixMillis,
    },
    /// Messages of shared subscriptions go from one member to others.
    HandOn(Box<HandOn>),
    /// A job that is due at `due_at`; where there is one of that name, nothing changes.
    OpenJob {
        name: JobName,
        cursor: u64,
        due_at: UnixMillis,
        now: UnixMillis,
    },
    /// Gives a worker jobs that are due, until its lease ends; `only`: that one and no other.
    ClaimJobs {
        kind: JobKind,
        worker: u64,
        max: u32,
        until: UnixMillis,
        now: UnixMillis,
        only: Option<JobNo>,
    },
    /// What a worker says of a job that it has; refused without the lease.
    SettleJob {
        job: JobNo,
        lease: u64,
        /// `None`: it has come no further.
        cursor: Option<u64>,
        outcome: JobOutcome,
        now: UnixMillis,
    },
    /// Jobs that rest are due; `failed_too`: also those that wait because they failed.
    WakeJobs {
        jobs: Vec<JobNo>,
        failed_too: bool,
        now: UnixMillis,
    },
    /// A job begins again from `cursor`, whoever has it.
    RewindJob {
        job: JobNo,
        cursor: u64,
        now: UnixMillis,
    },
    CloseJob {
        job: JobNo,
        now: UnixMillis,
    },
    PutWebhook(Box<PutWebhook>),
    DropWebhook {
        app: AppNo,
        id: String,
    },
    /// How far a webhook has got.
    MoveWebhook(Box<MoveWebhook>),
    /// A webhook begins anew behind a receipt.
    ReplayWebhook {
        app: AppNo,
        id: String,
        position: u64,
    },
}

/// Deliveries that a provider took with one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    pub app: AppNo,
    /// The provider's name, as the app knows it.
    pub road: Arc<str>,
    pub deliveries: Vec<(DeviceNo, Seq)>,
    pub now: UnixMillis,
}

/// What a member of shared subscriptions gives up.
#[derive(Clone, Debug, PartialEq)]
pub struct HandOn {
    pub at: DeviceRef,
    /// Under way to this member.
    pub stay: Vec<Seq>,
    /// Only messages of these subscriptions, by [`share_name`]; `None`: of all.
    pub shares: Option<Vec<String>>,
    /// Only to members that are connected.
    pub only_here: bool,
    /// How much a member's inbox holds: deliveries, bytes of content.
    pub inbox_max: u32,
    pub inbox_bytes_max: u32,
}

impl Command {
    /// Brings something new to keep, so that it is refused while space is low. What is not here must always find room: it
    /// ends something, or it is how devices come back and acknowledge, or it is how somebody is shut out. A new command has
    /// to decide.
    pub fn grows(&self) -> bool {
        match self {
            Command::CreateApp { .. }
            | Command::Register(_)
            | Command::Enroll { .. }
            | Command::Subscribe { .. }
            | Command::OpenJob { .. }
            | Command::Accept(_)
            | Command::PutWebhook(_) => true,
            Command::Retain { message, .. } => message.is_some(),
            Command::ChangeDevice { change, .. } => change.grows(),
            // One for each device that is there, which cannot acknowledge without it.
            Command::OpenSession { .. } | Command::LeaveSession { .. } | Command::EndSession { .. } => false,
            // Few, of administrators: a key that was lost or leaked can be replaced on a full disk too.
            Command::AddKey { .. } | Command::RevokeKey { .. } | Command::ChangeSecret { .. } => false,
            // A mark on what is there already.
            Command::Seen { .. } | Command::HearPeers { .. } => false,
            // Work that is there already goes on: the server sees to how fast it fails.
            Command::ClaimJobs { .. }
            | Command::SettleJob { .. }
            | Command::WakeJobs { .. }
            | Command::RewindJob { .. }
            | Command::CloseJob { .. } => false,
            Command::DeleteDevice { .. }
            | Command::Unsubscribe { .. }
            | Command::Progress { .. }
            | Command::Forward(_)
            | Command::Cancel { .. }
            | Command::Expire { .. }
            | Command::ClearInbox { .. }
            | Command::CloseApp { .. }
            | Command::EmptyApp { .. }
            | Command::HandOn(_)
            | Command::DropWebhook { .. }
            | Command::MoveWebhook(_)
            | Command::ReplayWebhook { .. } => false,
            Command::RenameApp { .. } => false,
        }
    }

    /// May be executed before commands that were submitted earlier: it names only what is on stable storage, and ends
    /// something that waits for it.
    pub fn overtakes(&self) -> bool {
        matches!(self, Command::Progress { .. })
    }

    /// What is stored beside the command and read back by its [`BlobRef`].
    pub fn content(&self) -> Option<&Arc<Content>> {
        match self {
            Command::Accept(message) => message.content.as_ref(),
            Command::Retain { message: Some(retained), .. } => retained.content.as_ref(),
            _ => None,
        }
    }

    /// The command without its content, as it goes into the journal.
    pub fn take_content(&mut self) -> Option<Arc<Content>> {
        match self {
            Command::Accept(message) => message.content.take(),
            Command::Retain { message: Some(retained), .. } => retained.content.take(),
            _ => None,
        }
    }
}

/// A device that comes to be.
#[derive(Clone, Debug)]
pub struct Registration {
    pub app: AppNo,
    pub id: String,
    /// SHA-256 of the device's secret; none for anonymous clients of a listener that allows them.
    pub secret_hash: Option<[u8; 32]>,
    pub profile: Profile,
    pub now: UnixMillis,
    pub idempotency: Option<Idempotency>,
    /// Who registers it; nobody where an anonymous client's session is kept.
    pub origin: Option<Origin>,
    pub quota: Option<DeviceQuota>,
}

/// How many devices an app may have. Limits travel in the commands: what is decided before the
/// queue does not know what waits in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceQuota {
    pub all_max: u64,
    /// Those of them that registered themselves.
    pub own_max: u64,
}

/// What the open messages of an app may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub messages_max: u64,
    /// Of their contents.
    pub bytes_max: u64,
    pub broadcasts_max: u64,
}

/// What the retained messages of an app may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetainedRoom {
    pub messages_max: u64,
    pub bytes_max: u64,
}

/// Names one request of a caller for good: repeated, it gets the first answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// Hash of the caller's key.
    pub key: u128,
    /// Hash of the request: the same key with another request is refused.
    pub request: u128,
    pub keep_until: UnixMillis,
    /// How many the app keeps at most: beyond it the oldest go. 0: as many as come.
    pub keys_max: u32,
}

/// A message with everything decided that is decided before it is stored.
#[derive(Clone, Debug)]
pub struct NewMessage {
    pub app: AppNo,
    pub id: MessageId,
    pub targets: Targets,
    pub accepted_at: UnixMillis,
    pub expires_at: UnixMillis,
    pub priority: Priority,
    pub collapse_key: Option<String>,
    pub backlog: Backlog,
    pub idempotency: Option<Idempotency>,
    /// Reports are kept for it (messages of the API); publishes of devices are only counted.
    pub tracked: bool,
    /// Goes to the devices' inbox topic; else it is a publish on a topic, which ends with the session it was for.
    pub push: bool,
    /// Full inbox: refuse this one rather than evict the oldest.
    pub reject_when_full: bool,
    /// How much a device's inbox holds: deliveries, bytes of content.
    pub inbox_max: u32,
    pub inbox_bytes_max: u32,
    /// Above 0: a message of another device, and how many of those may wait in the inbox.
    pub peer_inbox_max: u32,
    /// `None`: as much as comes.
    pub room: Option<Room>,
    /// For the report of a tracked message.
    pub submission: Option<Arc<Submission>>,
    pub content: Option<Arc<Content>>,
}

/// A message to put on a topic.
#[derive(Clone, Debug)]
pub struct RetainedMessage {
    pub qos: u8,
    pub expires_at: UnixMillis,
    /// `None`: as much as comes.
    pub room: Option<RetainedRoom>,
    pub content: Option<Arc<Content>>,
}

/// One step of one delivery, by a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub device: DeviceNo,
    pub which: Which,
    pub step: Step,
    pub reason: Reason,
    /// When it was written to the connection, where known.
    pub sent_at: Option<UnixMillis>,
}

/// How a step names its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// By its place in the order, as a connection knows it.
    Seq(Seq),
    /// By its id, as the app on the device knows it.
    Id(MessageId),
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Done,
    AppCreated(AppNo),
    /// `existed`: a repeated request, answered as the first time.
    Registered {
        at: DeviceRef,
        existed: bool,
    },
    Accepted(Acceptance),
    /// How many of the steps were new and legal.
    Progressed {
        taken: usize,
    },
    Cancelled {
        open: u64,
    },
    Expired {
        messages: u32,
        sessions: Vec<DeviceRef>,
        /// As in [`Outcome::HandedOn`].
        handed_on: Vec<DeviceRef>,
        more: bool,
    },
    /// `more`: the closed app still has something.
    Emptied {
        more: bool,
    },
    /// `existed`: there was one of that name.
    JobOpened {
        job: JobNo,
        existed: bool,
    },
    JobsClaimed(Vec<ClaimedJob>),
    Refused(Refusal),
    /// These devices have messages now that others had before, and which may lie behind what they have seen.
    HandedOn(Vec<DeviceRef>),
}

/// A message accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Acceptance {
    pub id: MessageId,
    pub seq: Seq,
    pub targeted: u64,
    /// A repeated request: nothing was stored, this is the first one's answer.
    pub repeated: bool,
    /// Devices that refused it because their inbox is full.
    pub full: u64,
    /// The member of a shared subscription that got it.
    pub holder: Option<DeviceNo>,
}

/// Why the state does not take a command. Nothing of it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NoSuchApp,
    NoSuchDevice,
    NoSuchMessage,
    NoSuchKey,
    NoSuchJob,
    /// The lease on the job ran out, and somebody else may have it.
    LeaseLost,
    NoSuchWebhook,
    /// It was changed meanwhile.
    Stale,
    Exists,
    /// The same idempotency key came with another request.
    IdempotencyMismatch,
    QuotaExceeded,
    InboxFull,
    /// The app's open messages take all the room that they may.
    AppFull,
    TooManyBroadcasts,
    RetainedFull,
    TooManyDevices,
    TooManyOwnDevices,
    TooManyKeys,
}
