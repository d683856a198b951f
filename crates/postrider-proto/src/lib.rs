//! The wire protocols of postrider, pure: bytes, `now` and answers come in; bytes, deadlines and events go out.
//!
//! Nothing here opens a socket, reads a clock, draws a random number or knows what postrider is. So every protocol
//! can be fuzzed, run against its own client in virtual time, and driven by any kind of loop.
//!
//! The contract of a server-side protocol ([`ServerProtocol`]):
//! - the driver hands in what happened by a `handle_*` call and passes an [`Output`] of its own, which it reuses for all
//!   its connections, so that an idle connection owns no buffer;
//! - after each `handle_*` the driver takes everything out of the [`Output`]: bytes to write, events to act on, and whether to close;
//! - some events want an answer: it comes back by `handle_reply`, in the order of the events;
//! - `next_timeout` says when to call `handle_timeout`, at the latest.

mod date;
mod fanned;
pub mod json;
pub mod mqtt;
pub mod proxy;
pub mod seeded;
mod text;
pub mod ws;
pub mod xmpp;

pub use date::date_time;
pub use fanned::Fanned;
pub use text::Text;

use bytes::Bytes;

/// The topic of a push: it is for the device itself, whatever it subscribes to.
pub const PUSH_TOPIC: &str = "$push/inbox";

/// Milliseconds on a monotonic clock of the caller's; only differences matter.
pub type Millis = u64;

/// Quality of service: how often the peer wants to be asked (MQTT 5 §4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Qos {
    #[default]
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl Qos {
    /// 0, 1 or 2; anything else is none of them.
    pub fn from_u8(value: u8) -> Option<Qos> {
        match value {
            0 => Some(Qos::AtMostOnce),
            1 => Some(Qos::AtLeastOnce),
            2 => Some(Qos::ExactlyOnce),
            _ => None,
        }
    }
}

/// What a `handle_*` call brought forth. Owned by the driver and reused.
#[derive(Debug, Default)]
pub struct Output {
    /// To be written to the peer, in this order.
    pub bytes: Vec<u8>,
    /// To be acted on, in this order.
    pub events: Vec<Event>,
    /// When set: write `bytes`, then close. Nothing of the peer's is read as protocol any more.
    pub close: Option<Close>,
    /// Write `bytes`, then begin TLS on this socket: what the peer sends from now on is its handshake, and a handshake that
    /// fails ends the connection. When it is done, the protocol is told ([`xmpp::ServerConnection::handle_tls`]).
    pub start_tls: bool,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// Why, as one word of a fixed list, for logs and metrics: `"malformed"`, `"keepalive"`, `"taken_over"` …
    pub kind: &'static str,
    /// Half-close, then read on until the peer closes or two seconds have passed: set when the peer is to read a reason first.
    pub gentle: bool,
}

/// What a peer wants, or did. `token`s are the protocol's own and come back in the [`Reply`].
#[derive(Debug)]
pub enum Event {
    /// The peer signs in. Answer: [`Reply::Connect`]. Comes first, and not again once it was accepted.
    Connect(Box<Connect>),
    /// The peer publishes. Answer [`Reply::Publish`] when `publish.qos` is above 0; `token` is 0 otherwise.
    Publish { token: u32, publish: Publish },
    /// Answer: [`Reply::Subscribe`], one code a filter.
    Subscribe { token: u32, filters: Vec<Subscription>, id: Option<u32> },
    /// Answer: [`Reply::Unsubscribe`], one code a filter.
    Unsubscribe { token: u32, filters: Vec<Text> },
    /// The peer acknowledged a delivery (PUBACK or PUBCOMP): it is `delivered`.
    Acked { delivery: u64 },
    /// The peer refused a delivery for ever (PUBACK or PUBREC with a reason ≥ 0x80).
    Refused { delivery: u64, code: u8 },
    /// What became of a message on the device: its id, and `displayed`, `clicked` and so on. Answer, where `token` is
    /// not 0: [`Reply::Publish`].
    Receipt { token: u32, id: Text, step: Text },
    /// The peer asks whether we are there, and for the time. Answer: [`Reply::Ping`].
    Ping,
    /// The peer said goodbye in order. `with_will`: publish the will all the same (MQTT 5, 0x04).
    Disconnect { with_will: bool, session_expiry_secs: Option<u32> },
    /// The window opened, or urgency counts no more, by something else than an acknowledgement: the inbox is worth a look.
    WindowOpened,
    /// What only XMPP asks.
    Xmpp(Box<xmpp::Request>),
}

/// A sign-in.
#[derive(Debug)]
pub struct Connect {
    /// 3 (MQTT 3.1), 4 (3.1.1), 5; 0 for other protocols.
    pub level: u8,
    /// May be empty: then the server chooses one.
    pub client_id: Text,
    pub clean_start: bool,
    /// How long the session outlives the connection. 3.x: 0 with clean session, else `u32::MAX`.
    pub session_expiry_secs: u32,
    pub user: Option<Text>,
    pub password: Option<Bytes>,
    /// In place of a name and a password: a token that says who it is.
    pub token: Option<Text>,
    /// Pushes are taken without a subscription to [`PUSH_TOPIC`].
    pub takes_pushes: bool,
    /// The peer has proven to know the password of `user` (SCRAM): there is none to check.
    pub is_proven: bool,
    pub will: Option<Box<Will>>,
    pub keepalive_secs: u16,
}

/// What the server publishes in the peer's name when the connection ends badly.
#[derive(Clone, Debug, PartialEq)]
pub struct Will {
    pub publish: Publish,
    pub delay_secs: u32,
}

/// A message as published. Cheap to clone: topic and payload are slices of one buffer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Publish {
    pub topic: Text,
    pub payload: Bytes,
    pub qos: Qos,
    pub retain: bool,
    pub dup: bool,
    pub properties: Option<Box<PublishProperties>>,
}

/// The application's properties of an MQTT 5 PUBLISH that travel from publisher to subscriber (§3.3.2.3).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PublishProperties {
    pub payload_is_utf8: bool,
    pub expiry_secs: Option<u32>,
    pub content_type: Option<Text>,
    pub response_topic: Option<Text>,
    pub correlation: Option<Bytes>,
    pub user: Vec<(Text, Text)>,
}

/// One filter of a SUBSCRIBE, already checked for form.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// The filter without its `$share/{group}/`.
    pub filter: Text,
    /// The group of a shared subscription.
    pub share: Option<Text>,
    pub qos: Qos,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub retain_handling: RetainHandling,
    /// Well-formed by the specification; false is answered 0x8F (3.x: 0x80) without asking anybody.
    pub valid: bool,
}

/// MQTT 5 §3.8.3.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetainHandling {
    #[default]
    Send,
    SendIfNew,
    DoNotSend,
}

/// The answer to an [`Event`] that wants one.
#[derive(Debug)]
pub enum Reply {
    Connect(Result<Box<Accepted>, ConnectRefusal>),
    Publish {
        token: u32,
        outcome: PublishOutcome,
    },
    /// One answer a filter, in order.
    Subscribe {
        token: u32,
        outcomes: Vec<SubscribeOutcome>,
    },
    /// For each filter, whether a subscription was there.
    Unsubscribe {
        token: u32,
        existed: Vec<bool>,
    },
    Ping {
        /// Milliseconds since 1970.
        time_ms: u64,
    },
    Xmpp(xmpp::Answer),
}

/// A sign-in granted.
#[derive(Debug, Default)]
pub struct Accepted {
    pub session_present: bool,
    /// The identifier that the server chose, when the peer sent none.
    pub assigned_client_id: Option<Text>,
    /// The expiry granted, where it differs from what was asked for.
    pub session_expiry_secs: Option<u32>,
    /// The in-flight state that the session's last connection left behind.
    pub inflight: Option<Box<mqtt::Inflight>>,
    /// The same of XMPP: the stream that may be resumed.
    pub stream: Option<Box<xmpp::SavedStream>>,
    /// For protocols that greet.
    pub welcome: Option<Box<Welcome>>,
}

/// What a peer that is let in may be told.
#[derive(Debug)]
pub struct Welcome {
    pub app: Text,
    pub device: Text,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// What it can sign in with next time, and until when.
    pub ticket: Option<(Text, u64)>,
}

/// A sign-in refused; each is a CONNACK code of every level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectRefusal {
    ClientIdInvalid,
    BadCredentials,
    NotAuthorized,
    /// Too often (MQTT 5: 0x9F).
    RateExceeded,
    Banned,
    /// Shutting down, or the store takes nothing.
    Unavailable,
    /// There is no place for another connection (MQTT 5: 0x89).
    Busy,
    TopicInvalid,
    QuotaExceeded,
    RetainNotSupported,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    Accepted,
    /// Accepted, and nobody subscribes (MQTT 5: 0x10).
    NoSubscribers,
    NotAuthorized,
    QuotaExceeded,
    TopicInvalid,
    PayloadInvalid,
    /// The store takes nothing now: the connection closes without an acknowledgement, so that the peer sends again.
    Unavailable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscribeOutcome {
    Granted(Qos),
    /// With the code for MQTT 5; 3.x answers 0x80 always.
    Refused(u8),
}

/// Why the server ends a connection of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    TakenOver,
    ServerShuttingDown,
    /// The device was deleted, or its right to connect was taken away.
    Revoked,
    QuotaExceeded,
    SlowReader,
    /// It acknowledges what it was never sent.
    BadAcks,
    /// Its place goes to a newer connection: too many have not signed in.
    Busy,
    Unavailable,
    SessionExpired,
}

/// One message on its way to one peer.
#[derive(Clone, Copy, Debug)]
pub struct Deliver<'a> {
    /// Names the delivery in [`Event::Acked`]; any value unique among the peer's unacknowledged ones. Unused at QoS 0.
    pub delivery: u64,
    /// Already lowered to the subscription's.
    pub qos: Qos,
    pub retain: bool,
    /// It was (or may have been) sent to this peer before.
    pub dup: bool,
    pub subscription_ids: &'a [u32],
    /// What is left of the message's life, where it has an expiry.
    pub expiry_left_secs: Option<u32>,
    /// Where in its inbox the peer is with this one; live messages are in no inbox.
    pub cursor: Option<Cursor>,
    /// When the message was accepted, in milliseconds since 1970 (UTC), for one that comes late: XMPP tells it.
    pub late_since: Option<u64>,
}

/// A place in a device's inbox: behind which urgent delivery, and behind which other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub urgent: u64,
    pub normal: u64,
}

/// What became of a [`Deliver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    Written,
    /// The window is full: nothing was written, offer it again when [`ServerProtocol::window`] is above 0.
    WindowFull,
    /// Larger than the peer's maximum packet size: to be treated as done (MQTT-3.1.2-25).
    TooLarge,
    /// Not signed in, or closing.
    NotReady,
}

/// The server's side of one connection, any protocol.
pub trait ServerProtocol {
    /// Bytes of the peer, cut anywhere.
    fn handle_bytes(&mut self, bytes: &[u8], now: Millis, out: &mut Output);
    /// The answer to an event.
    fn handle_reply(&mut self, reply: Reply, now: Millis, out: &mut Output);
    /// A message for the peer. Bytes are appended to `bytes`.
    fn handle_deliver(
        &mut self,
        message: &mut Fanned,
        how: Deliver<'_>,
        now: Millis,
        bytes: &mut Vec<u8>,
    ) -> Delivered;
    /// Time passed: to be called at [`Self::next_timeout`] or later.
    fn handle_timeout(&mut self, now: Millis, out: &mut Output);
    /// The server ends it: the protocol's own farewell goes to `out`.
    fn handle_goodbye(&mut self, why: Goodbye, now: Millis, out: &mut Output);
    /// When [`Self::handle_timeout`] wants to be called; it may be later than the last answer, never earlier (lazy timers re-ask).
    fn next_timeout(&self) -> Option<Millis>;
    /// How many more acknowledged deliveries the peer takes now.
    fn window(&self) -> usize;
    /// The peer sleeps: of what the window takes, give it only what is urgent.
    fn holds_back(&self) -> bool {
        false
    }
}
