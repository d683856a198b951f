//! The nouns of the domain, as they are stored and as they are told. No rules here.

use crate::id::*;
use bytes::Bytes;
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What tells whether a device knows its secret when it does not show it, in the encoding of the gateway that asks; empty: it
/// has to show it.
pub type ProofKeys = Box<[u8]>;

/// A set of devices of one app, by number.
pub type DeviceSet = RoaringBitmap;

/// What kind of installation a device is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Platform {
    Android,
    Ios,
    Harmony,
    Web,
    Desktop,
    Iot,
    #[default]
    Other,
}

impl Platform {
    pub const ALL: [Platform; 7] = [
        Platform::Android,
        Platform::Ios,
        Platform::Harmony,
        Platform::Web,
        Platform::Desktop,
        Platform::Iot,
        Platform::Other,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Platform::Android => "android",
            Platform::Ios => "ios",
            Platform::Harmony => "harmony",
            Platform::Web => "web",
            Platform::Desktop => "desktop",
            Platform::Iot => "iot",
            Platform::Other => "other",
        }
    }
}

/// The value of a device's attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    Text(String),
    Number(f64),
    Bool(bool),
    /// What older versions kept as a `Number` stays one.
    Integer(i64),
}

/// What an installation says of itself when it registers, or an app server says of it later.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    pub platform: Platform,
    pub alias: Option<String>,
    pub tags: Vec<String>,
    pub attributes: BTreeMap<String, Attribute>,
    /// Tokens of outside providers, by the provider's name.
    pub provider_tokens: BTreeMap<String, String>,
}

/// Who registered a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The app's server.
    #[default]
    AppServer,
    /// The device itself, with a key that everybody may know.
    RegisterKey,
    /// A visitor of the demonstration page.
    Demo,
    /// The device itself, by XMPP's registration (XEP-0077).
    Xmpp,
}

impl Origin {
    /// The device registered itself, without the app's server having a say.
    pub fn is_own(self) -> bool {
        self != Origin::AppServer
    }

    pub fn name(self) -> &'static str {
        match self {
            Origin::AppServer => "app_server",
            Origin::RegisterKey => "register_key",
            Origin::Demo => "demo",
            Origin::Xmpp => "xmpp",
        }
    }
}

/// A change to a device; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProfileChange {
    pub platform: Option<Platform>,
    /// `Some(None)` takes the alias away.
    pub alias: Option<Option<String>>,
    /// All tags anew.
    pub tags: Option<Vec<String>>,
    pub add_tags: Vec<String>,
    pub remove_tags: Vec<String>,
    /// Merged; a `None` value removes the attribute.
    pub attributes: BTreeMap<String, Option<Attribute>>,
    pub provider_tokens: BTreeMap<String, Option<String>>,
}

impl ProfileChange {
    /// Adds something, rather than only taking away.
    pub fn grows(&self) -> bool {
        self.alias.as_ref().is_some_and(Option::is_some)
            || self.tags.as_ref().is_some_and(|tags| !tags.is_empty())
            || !self.add_tags.is_empty()
            || self.attributes.values().any(Option::is_some)
            || self.provider_tokens.values().any(Option::is_some)
    }
}

/// A device as it is shown.
#[derive(Clone, Debug)]
pub struct DeviceView {
    pub at: DeviceRef,
    pub id: String,
    pub profile: Profile,
    pub anonymous: bool,
    /// Who registered it; not known of devices from before that was kept, and of anonymous clients.
    pub origin: Option<Origin>,
    pub created_at: UnixMillis,
    pub last_seen_at: Option<UnixMillis>,
    pub subscriptions: Vec<StoredSubscription>,
    /// Undelivered messages, broadcasts included.
    pub inbox_len: usize,
    pub session: Option<StoredSession>,
}

/// A session that outlives its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSession {
    pub expiry_secs: u32,
    /// When the last connection ended, where it has; the session ends `expiry_secs` later.
    pub left_at: Option<UnixMillis>,
}

/// A subscription to a topic filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSubscription {
    pub filter: String,
    /// Group of a shared subscription.
    pub share: Option<String>,
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    /// The subscriber's own number for it, told with each message.
    pub id: Option<u32>,
}

/// What a message contains, as it goes to devices: encoded once, stored once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    /// Set: goes out on this topic as it is. Not set: a push, which goes to the device's inbox topic as `payload`.
    pub topic: Option<String>,
    pub payload: Bytes,
    pub properties: Option<Box<ContentProperties>>,
}

/// What publisher and subscriber of a topic tell each other beside the payload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContentProperties {
    pub payload_is_utf8: bool,
    /// The publisher gave the message a life, so subscribers are told what is left of it.
    pub expires: bool,
    pub content_type: Option<String>,
    pub response_topic: Option<String>,
    pub correlation: Option<Bytes>,
    pub user: Vec<(String, String)>,
}

/// How urgent a message is; high overtakes, low is evicted first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

/// How many pending messages of one collapse key a device keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backlog {
    #[default]
    All,
    Latest,
    Last(u16),
}

impl Backlog {
    /// The number kept, where there is one.
    pub fn keep(self) -> Option<usize> {
        match self {
            Backlog::All => None,
            Backlog::Latest => Some(1),
            Backlog::Last(n) => Some(usize::from(n).max(1)),
        }
    }
}

/// One device of a direct message, and how it is to get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub device: DeviceNo,
    pub qos: u8,
    pub retain: bool,
    pub subscription_ids: Vec<u32>,
}

/// Whom a message goes to, resolved at accept.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    Direct(Vec<Target>),
    Broadcast(DeviceSet),
    /// One member of a shared subscription.
    Shared(Box<SharedTarget>),
}

/// A shared subscription, and the member whose turn it is. It may be another that gets the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedTarget {
    /// See [`share_name`].
    pub share: String,
    pub member: DeviceNo,
    /// As it was published; the member's subscription may lower it.
    pub qos: u8,
    pub retain: bool,
}

/// A shared subscription is named by its group and its filter; a group has no slash in it.
pub fn share_name(group: &str, filter: &str) -> String {
    format!("{group}/{filter}")
}

impl Targets {
    pub fn len(&self) -> u64 {
        match self {
            Targets::Direct(list) => list.len() as u64,
            Targets::Broadcast(set) => set.len(),
            Targets::Shared(_) => 1,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The steps of a delivery. The order of the variants is the order of the ladder: a delivery is in the
/// highest that it reached. Which of them end it says [`Step::ends`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Step {
    Accepted,
    Queued,
    Sent,
    /// A provider took it, to bring it to the device by another road. It ends nothing: the delivery
    /// stays open and in the inbox until the device acknowledges it, or its time is over.
    Forwarded,
    Delivered,
    Displayed,
    Dismissed,
    Replied,
    Clicked,
    Expired,
    Superseded,
    Evicted,
    Cancelled,
    Rejected,
    Erased,
    HandedOver,
}

impl Step {
    pub const ALL: [Step; 16] = [
        Step::Accepted,
        Step::Queued,
        Step::Sent,
        Step::Forwarded,
        Step::Delivered,
        Step::Displayed,
        Step::Dismissed,
        Step::Replied,
        Step::Clicked,
        Step::Expired,
        Step::Superseded,
        Step::Evicted,
        Step::Cancelled,
        Step::Rejected,
        Step::Erased,
        Step::HandedOver,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Step::Accepted => "accepted",
            Step::Queued => "queued",
            Step::Sent => "sent",
            Step::Forwarded => "forwarded",
            Step::Delivered => "delivered",
            Step::Displayed => "displayed",
            Step::Dismissed => "dismissed",
            Step::Replied => "replied",
            Step::Clicked => "clicked",
            Step::Expired => "expired",
            Step::Superseded => "superseded",
            Step::Evicted => "evicted",
            Step::Cancelled => "cancelled",
            Step::Rejected => "rejected",
            Step::Erased => "erased",
            Step::HandedOver => "handed_over",
        }
    }

    /// The delivery is over with this step: it leaves the inbox, and the books count it as ended so.
    pub fn ends(self) -> bool {
        match self {
            Step::Accepted | Step::Queued | Step::Sent | Step::Forwarded => false,
            // They come after an end.
            Step::Displayed | Step::Dismissed | Step::Replied | Step::Clicked => false,
            Step::Delivered
            | Step::Expired
            | Step::Superseded
            | Step::Evicted
            | Step::Cancelled
            | Step::Rejected
            | Step::Erased
            | Step::HandedOver => true,
        }
    }

    /// Reported by the app on the device after delivery.
    pub fn by_app(self) -> bool {
        matches!(self, Step::Displayed | Step::Dismissed | Step::Replied | Step::Clicked)
    }
}

/// Why a delivery ended as it did: one fixed list, the same in every API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Reason {
    #[default]
    None,
    Ttl,
    NotConnected,
    Collapsed,
    QueueFull,
    Recalled,
    Unregistered,
    Refused,
    NotAllowed,
    TooLarge,
    NoAcknowledgement,
    Corrupt,
    SessionEnded,
}

impl Reason {
    pub const ALL: [Reason; 13] = [
        Reason::None,
        Reason::Ttl,
        Reason::NotConnected,
        Reason::Collapsed,
        Reason::QueueFull,
        Reason::Recalled,
        Reason::Unregistered,
        Reason::Refused,
        Reason::NotAllowed,
        Reason::TooLarge,
        Reason::NoAcknowledgement,
        Reason::Corrupt,
        Reason::SessionEnded,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Reason::None => "",
            Reason::Ttl => "ttl",
            Reason::NotConnected => "not_connected",
            Reason::Collapsed => "collapsed",
            Reason::QueueFull => "queue_full",
            Reason::Recalled => "recalled",
            Reason::Unregistered => "unregistered",
            Reason::Refused => "refused",
            Reason::NotAllowed => "not_allowed",
            Reason::TooLarge => "too_large",
            Reason::NoAcknowledgement => "no_acknowledgement",
            Reason::Corrupt => "corrupt",
            Reason::SessionEnded => "session_ended",
        }
    }
}

/// What was sent, to whom and by which key, as reports show it. It lies in the receipt stream, with
/// the row that tells that the message was accepted, and so is kept as long as that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Submission {
    /// Id of the key (or subject of the token) that sent it; empty where nobody did by a key.
    pub key: String,
    /// The audience as JSON, shortened where it names very many.
    pub audience: String,
    pub exclude: Option<String>,
    /// Of the notification, shortened; none where contents are not kept.
    pub title: Option<String>,
    pub body: Option<String>,
}

/// One row of the receipt stream.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceiptEvent {
    /// Grows by one an event, over the whole store.
    pub position: u64,
    pub at: UnixMillis,
    pub app: AppNo,
    pub message: MessageId,
    /// `None`: all devices of the message for which it was still open.
    pub device: Option<DeviceNo>,
    pub step: Step,
    pub reason: Reason,
    /// How many deliveries the row stands for.
    pub count: u64,
    /// Of [`Step::Forwarded`]: the road that it went.
    pub road: Option<Arc<str>>,
    /// With the first row of a message that an app server sent.
    pub submission: Option<Arc<Submission>>,
}

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyScope {
    /// Everything within one app.
    App,
    /// Send and read reports within one app.
    Send,
    /// Read within one app.
    Read,
    /// Make apps and keys.
    Admin,
    /// Register new devices within one app, and nothing else: for a page or an app that everybody can look into.
    Register,
}

/// A key of an app (or of the platform), as it is kept: never the key itself.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredKey {
    pub id: String,
    pub name: String,
    pub scope: KeyScope,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    pub created_at: UnixMillis,
    pub revoked_at: Option<UnixMillis>,
}

/// Where in the store's files a message's content lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlobRef {
    pub file: u32,
    pub offset: u32,
    pub len: u32,
}

/// A message that stays on its topic and greets new subscribers.
#[derive(Clone, Debug, PartialEq)]
pub struct Retained {
    pub topic: String,
    pub qos: u8,
    pub expires_at: UnixMillis,
    pub blob: BlobRef,
}
