//! Step 1. From a request to a committed message. `Ok` is told only after the commit.

use crate::Engine;
use crate::audience::{Audience, Population, Unmatched, Verdict};
use crate::command::*;
use crate::delivery::repeats::{Asked, First, Known};
use crate::delivery::request::{self, digest};
use crate::id::*;
use crate::limits::Limits;
use crate::model::*;
use crate::port::*;
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::sync::Arc;

/// What a sender wants delivered.
#[derive(Clone, Debug)]
pub struct Push {
    pub audience: Audience,
    pub exclude: Option<Audience>,
    /// Shown to the user: `{title, body, image, …}`.
    pub notification: Option<Map<String, Value>>,
    pub data: Option<PushData>,
    pub ttl_secs: Option<u64>,
    pub collapse_key: Option<String>,
    pub priority: Priority,
    /// `None`: the newest of its collapse key, or all where it has none.
    pub backlog: Option<Backlog>,
    /// Only to devices connected now, without a row in the store.
    pub transient: bool,
    pub reject_when_full: bool,
    pub idempotency_key: Option<String>,
    /// Whose key it is: the same key of another caller names another request.
    pub idempotency_owner: u128,
    /// Id of the key that sends it, for the report.
    pub sent_by: String,
}

impl Push {
    /// An empty one with nothing special about it.
    pub fn to(audience: Audience) -> Push {
        Push {
            audience,
            exclude: None,
            notification: None,
            data: None,
            ttl_secs: None,
            collapse_key: None,
            priority: Priority::Normal,
            backlog: None,
            transient: false,
            reject_when_full: false,
            idempotency_key: None,
            idempotency_owner: 0,
            sent_by: String::new(),
        }
    }
}

/// The part of a push for the app on the device.
#[derive(Clone, Debug)]
pub enum PushData {
    /// Travels inside the envelope, as its sender wrote it: its numbers have more digits than ours hold.
    Json(Box<RawValue>),
    /// Travels as it is, without an envelope.
    Raw(Bytes),
}

/// The answer to an accepted push.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    pub id: MessageId,
    pub targeted: u64,
    /// Devices that had no room, with `reject_when_full`.
    pub full: u64,
    pub repeated: bool,
    pub transient: bool,
    pub unmatched: UnmatchedNames,
}

/// Names of a push's audience, and of what it excludes, that no device answered to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnmatchedNames {
    pub audience: Vec<Unmatched>,
    pub exclude: Vec<Unmatched>,
}

/// Why a push was not accepted. What the caller can do differs, so each is a variant.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AcceptError {
    #[error("{field}: {why}")]
    Invalid { field: &'static str, why: String },
    #[error("the payload has {bytes} bytes, at most {max} are allowed")]
    TooLarge { bytes: usize, max: usize },
    #[error("no device of this app has the id or alias {0}")]
    UnknownDevice(String),
    #[error("the idempotency key was used with another request")]
    IdempotencyMismatch,
    #[error("the inbox of every device is full")]
    InboxFull,
    #[error("too many broadcasts are still open")]
    TooManyBroadcasts,
    #[error("the app's open messages take all the room that they may")]
    AppFull,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What an audience would reach now.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    pub count: u64,
    pub connected: u64,
    pub by_platform: Vec<(Platform, u64)>,
    pub unmatched: UnmatchedNames,
    /// For a device asked about: in or out, and which clause decided.
    pub verdict: Option<Verdict>,
}

/// Gets the results in the order of the requests.
pub type AcceptDone = Box<dyn FnOnce(Vec<Result<Accepted, AcceptError>>) + Send>;

/// One request on its way: decided at once, or waiting for the commit.
enum Prepared {
    Now(Result<Accepted, AcceptError>),
    Stored { id: MessageId, unmatched: UnmatchedNames },
}

impl Engine {
    /// Accepts pushes of one app; each stands for itself. `done` is called once all accepted ones are on stable storage.
    pub fn accept(&self, app: AppNo, pushes: Vec<Push>, done: AcceptDone) {
        let now = self.clock.now();
        let mut commands = Vec::with_capacity(pushes.len());
        let prepared: Vec<Prepared> = pushes
            .into_iter()
            .map(|push| match self.prepare(app, push, now) {
                Ok(Ready::Stored(message, unmatched)) => {
                    let id = message.id;
                    commands.push(Command::Accept(message));
                    Prepared::Stored { id, unmatched }
                }
                Ok(Ready::Sent(accepted)) => Prepared::Now(Ok(accepted)),
                Err(error) => Prepared::Now(Err(error)),
            })
            .collect();
        let answer = move |outcomes: Result<Vec<Outcome>, StoreError>| {
            let mut stored = outcomes.map(Vec::into_iter);
            let results = prepared.into_iter().map(|p| match p {
                Prepared::Now(result) => result,
                Prepared::Stored { id, unmatched } => match &mut stored {
                    Ok(outcomes) => {
                        let told = |outcome| told(id, outcome, unmatched);
                        outcomes.next().map_or(Err(StoreError::Missing.into()), told)
                    }
                    Err(error) => Err(error.clone().into()),
                },
            });
            done(results.collect());
        };
        if commands.is_empty() {
            return answer(Ok(Vec::new()));
        }
        self.commit(commands, Box::new(answer));
    }

    fn prepare(&self, app: AppNo, push: Push, now: UnixMillis) -> Result<Ready, AcceptError> {
        let limits = &self.limits;
        check_names(&push, limits)?;
        let ttl_secs = push.ttl_secs.unwrap_or(limits.ttl_default.as_secs());
        if ttl_secs > limits.ttl_max.as_secs() {
            return Err(invalid("ttl_secs", format!("at most {}", limits.ttl_max.as_secs())));
        }
        let expires_at = now + ttl_secs * 1000;
        let id = MessageId::new(now, self.chance.bits128());
        let idempotency = self.request_of_push(app, &push, ttl_secs, now);
        let is_transient = push.transient || ttl_secs == 0;
        if let Some((asked, is_stored)) = idempotency
            && let Some(accepted) = self.repeated(app, asked, is_transient, is_stored)?
        {
            return Ok(Ready::Sent(accepted));
        }
        let (set, unmatched) = self.resolve(app, &push.audience, push.exclude.as_ref());
        // The device may have gone since the first time: a repetition still gets the first answer (P2).
        let is_repeated = idempotency.is_some_and(|(_, is_stored)| is_stored);
        let idempotency = idempotency.map(|(idempotency, _)| idempotency);
        if set.is_empty() && push.audience.names_devices() && !is_repeated {
            let name = unmatched.audience.into_iter().next().map(|u| u.name);
            return Err(AcceptError::UnknownDevice(name.unwrap_or_default()));
        }
        let payload = envelope(&self.app_name(app), id, &push, now, expires_at);
        if payload.len() > limits.payload_bytes_max {
            return Err(AcceptError::TooLarge { bytes: payload.len(), max: limits.payload_bytes_max });
        }
        let content = Arc::new(Content { topic: None, payload, properties: raw_properties(&push) });
        if is_transient {
            let sent = self.send_once(app, id, idempotency, &set, content)?;
            return Ok(Ready::Sent(Accepted { unmatched, ..sent }));
        }
        let targets = targets_of(set, limits.direct_max);
        if matches!(targets, Targets::Broadcast(_))
            && self.store.live_broadcasts(app) >= limits.broadcasts_max
            && !is_repeated
        {
            return Err(AcceptError::TooManyBroadcasts);
        }
        if self.is_full(app) && !is_repeated {
            return Err(AcceptError::AppFull);
        }
        let backlog =
            push.backlog.unwrap_or(if push.collapse_key.is_some() { Backlog::Latest } else { Backlog::All });
        let submission = Some(self.submission_of(&push));
        let message = Box::new(NewMessage {
            id,
            accepted_at: now,
            expires_at,
            priority: push.priority,
            collapse_key: push.collapse_key,
            backlog,
            idempotency,
            tracked: true,
            push: true,
            reject_when_full: push.reject_when_full,
            submission,
            ..self.new_message(app, targets, content)
        });
        Ok(Ready::Stored(message, unmatched))
    }

    /// A message with nothing special about it, as one of a device is, by the limits of today. It ends with the session it
    /// is for, or when the usual time is over.
    pub(super) fn new_message(&self, app: AppNo, targets: Targets, content: Arc<Content>) -> NewMessage {
        let (limits, now) = (&self.limits, self.clock.now());
        NewMessage {
            app,
            id: MessageId(0),
            targets,
            accepted_at: now,
            expires_at: now + limits.ttl_default.as_millis() as u64,
            priority: Priority::Normal,
            collapse_key: None,
            backlog: Backlog::All,
            idempotency: None,
            tracked: false,
            push: false,
            reject_when_full: false,
            inbox_max: limits.inbox_max,
            inbox_bytes_max: limits.inbox_bytes_max,
            peer_inbox_max: 0,
            room: Some(Room {
                messages_max: limits.app_messages_max,
                bytes_max: limits.app_bytes_max,
                broadcasts_max: limits.broadcasts_max as u64,
            }),
            submission: None,
            content: Some(content),
        }
    }

    /// The app's open messages take all the room that they may. What waits for the writer is not counted yet: the state
    /// looks again when it executes the command.
    pub(super) fn is_full(&self, app: AppNo) -> bool {
        let (messages, bytes) = self.store.kept(app);
        messages >= self.limits.app_messages_max || bytes >= self.limits.app_bytes_max
    }

    /// What names the request, and whether the store knows it.
    fn request_of_push(
        &self,
        app: AppNo,
        push: &Push,
        ttl_secs: u64,
        now: UnixMillis,
    ) -> Option<(Idempotency, bool)> {
        let key = push.idempotency_key.as_deref()?;
        let shortest = self.limits.idempotency_keep.as_millis() as u64;
        let keep_until = now + shortest.max((ttl_secs * 1000).min(3 * 86_400_000));
        let keys_max = self.limits.idempotency_keys_max;
        let before = self.remembered_before(app, digest(key.as_bytes()), request::of_push_before(push));
        if let Some((key, request)) = before {
            return Some((Idempotency { key, request, keep_until, keys_max }, true));
        }
        let key = digest(format!("message\n{:032x}\n{key}", push.idempotency_owner).as_bytes());
        let is_stored = self.store.request_of(app, key).is_some();
        Some((Idempotency { key, request: request::of_push(push), keep_until, keys_max }, is_stored))
    }

    /// The first answer, where a request came before that left no row. A key names one request: whichever way it was sent.
    fn repeated(
        &self,
        app: AppNo,
        Idempotency { key, request, .. }: Idempotency,
        is_transient: bool,
        is_stored: bool,
    ) -> Result<Option<Accepted>, AcceptError> {
        match self.repeats.look_up(Asked { app, key, request }, self.clock.now()) {
            Known::Repeated(first) if is_transient => Ok(Some(told_again(first))),
            Known::New if !(is_transient && is_stored) => Ok(None),
            _ => Err(AcceptError::IdempotencyMismatch),
        }
    }

    /// The transient lane: to those who are connected, once for each key.
    fn send_once(
        &self,
        app: AppNo,
        id: MessageId,
        idempotency: Option<Idempotency>,
        set: &DeviceSet,
        content: Arc<Content>,
    ) -> Result<Accepted, AcceptError> {
        let targets = self.live_targets(app, set);
        let first = First { id, count: targets.len() as u64 };
        if let Some(Idempotency { key, request, keep_until, .. }) = idempotency {
            let asked = Asked { app, key, request };
            let (times, max) = ((self.clock.now(), keep_until), self.limits.transient_keys_max);
            match self.repeats.begin(asked, Some(first), times, max) {
                Known::New => {}
                Known::Repeated(first) => return Ok(told_again(first)),
                Known::UnderWay | Known::Other => return Err(AcceptError::IdempotencyMismatch),
            }
        }
        self.send_live(content, targets);
        Ok(Accepted { repeated: false, ..told_again(first) })
    }

    /// The devices that an audience means now, and the names that no device answers to.
    fn resolve(
        &self,
        app: AppNo,
        audience: &Audience,
        exclude: Option<&Audience>,
    ) -> (DeviceSet, UnmatchedNames) {
        let people = People { engine: self, app };
        let mut unmatched = UnmatchedNames::default();
        let mut set = audience.resolve_noting(&people, &mut unmatched.audience);
        if let Some(exclude) = exclude {
            set -= exclude.resolve_noting(&people, &mut unmatched.exclude);
        }
        (set, unmatched)
    }

    /// A dry run: whom it would reach, and how a named device fares.
    pub fn estimate(
        &self,
        app: AppNo,
        audience: &Audience,
        exclude: Option<&Audience>,
        device: Option<&str>,
    ) -> Result<Estimate, AcceptError> {
        check_audience(audience, &self.limits)?;
        exclude.map_or(Ok(()), |e| check_audience(e, &self.limits))?;
        let people = People { engine: self, app };
        let (set, unmatched) = self.resolve(app, audience, exclude);
        let verdict = match device {
            None => None,
            Some(id) => {
                let no = people.device(id).ok_or_else(|| AcceptError::UnknownDevice(id.to_owned()))?;
                let excluded = exclude.map(|e| e.explain(no, &people)).filter(|v| v.included);
                Some(match excluded {
                    Some(v) => Verdict { included: false, clause: format!("exclude.{}", v.clause) },
                    None => audience.explain(no, &people),
                })
            }
        };
        let by_platform =
            Platform::ALL.iter().map(|p| (*p, self.store.devices_on(app, *p).intersection_len(&set)));
        Ok(Estimate {
            count: set.len(),
            connected: self.connected_devices(app).intersection_len(&set),
            by_platform: by_platform.filter(|(_, n)| *n > 0).collect(),
            unmatched,
            verdict,
        })
    }
}

/// Checked and built; or, of the transient lane, already gone.
enum Ready {
    Stored(Box<NewMessage>, UnmatchedNames),
    Sent(Accepted),
}

/// The answer to a transient message that came before.
fn told_again(first: First) -> Accepted {
    Accepted {
        id: first.id,
        targeted: first.count,
        full: 0,
        repeated: true,
        transient: true,
        unmatched: UnmatchedNames::default(),
    }
}

fn told(id: MessageId, outcome: Outcome, unmatched: UnmatchedNames) -> Result<Accepted, AcceptError> {
    match outcome {
        Outcome::Accepted(a) => Ok(Accepted {
            id: a.id,
            targeted: a.targeted,
            full: a.full,
            repeated: a.repeated,
            transient: false,
            unmatched,
        }),
        Outcome::Refused(Refusal::IdempotencyMismatch) => Err(AcceptError::IdempotencyMismatch),
        Outcome::Refused(Refusal::InboxFull) => Err(AcceptError::InboxFull),
        Outcome::Refused(Refusal::AppFull) => Err(AcceptError::AppFull),
        Outcome::Refused(Refusal::TooManyBroadcasts) => Err(AcceptError::TooManyBroadcasts),
        other => Err(StoreError::Failed(format!("message {id}: unexpected outcome {other:?}")).into()),
    }
}

fn invalid(field: &'static str, why: impl Into<String>) -> AcceptError {
    AcceptError::Invalid { field, why: why.into() }
}

fn check_names(push: &Push, limits: &Limits) -> Result<(), AcceptError> {
    check_audience(&push.audience, limits)?;
    push.exclude.as_ref().map_or(Ok(()), |e| check_audience(e, limits))?;
    check_name("collapse_key", push.collapse_key.as_deref(), limits.name_bytes_max)?;
    check_name("Idempotency-Key", push.idempotency_key.as_deref(), limits.idempotency_key_bytes_max)?;
    if push.notification.is_none() && push.data.is_none() {
        return Err(invalid("notification", "a message needs `notification` or `data`"));
    }
    if push.notification.is_some() && matches!(push.data, Some(PushData::Raw(_))) {
        return Err(invalid(
            "data",
            "raw bytes travel without an envelope, so they cannot carry a notification",
        ));
    }
    if push.backlog == Some(Backlog::Last(0)) {
        return Err(invalid("backlog", "`last` needs a number above 0"));
    }
    Ok(())
}

/// A short name without control characters, where there is one.
pub fn check_name(field: &'static str, name: Option<&str>, bytes_max: usize) -> Result<(), AcceptError> {
    match name {
        Some("") => Err(invalid(field, "must not be empty")),
        Some(name) if name.len() > bytes_max => Err(invalid(field, format!("at most {bytes_max} bytes"))),
        Some(name) if name.chars().any(char::is_control) => {
            Err(invalid(field, "control characters are not allowed"))
        }
        _ => Ok(()),
    }
}

fn check_audience(audience: &Audience, limits: &Limits) -> Result<(), AcceptError> {
    let (clauses, names) = audience.size();
    if clauses > limits.audience_clauses_max {
        return Err(invalid("audience", format!("at most {} clauses", limits.audience_clauses_max)));
    }
    if names > limits.recipients_max {
        let max = limits.recipients_max;
        return Err(invalid("audience", format!("at most {max} names; use a tag or a topic for more")));
    }
    audience.invalid().map_or(Ok(()), |why| Err(invalid("audience", why)))
}

/// Raw bytes are marked, so that nobody takes them for an envelope.
fn raw_properties(push: &Push) -> Option<Box<ContentProperties>> {
    let is_raw = matches!(push.data, Some(PushData::Raw(_)));
    is_raw.then(|| {
        let content_type = Some("application/octet-stream".to_owned());
        Box::new(ContentProperties { content_type, ..ContentProperties::default() })
    })
}

/// A few devices one by one, more of them as a set.
fn targets_of(set: DeviceSet, direct_max: usize) -> Targets {
    if set.len() as usize > direct_max {
        return Targets::Broadcast(set);
    }
    let target = |no| Target { device: DeviceNo(no), qos: 1, retain: false, subscription_ids: Vec::new() };
    Targets::Direct(set.iter().map(target).collect())
}

/// What the device gets: the envelope of the design, §12, or the sender's raw bytes.
fn envelope(app: &str, id: MessageId, push: &Push, now: UnixMillis, expires_at: UnixMillis) -> Bytes {
    if let Some(PushData::Raw(bytes)) = &push.data {
        return bytes.clone();
    }
    let data = match &push.data {
        Some(PushData::Json(data)) => Some(&**data),
        _ => None,
    };
    let envelope = Envelope {
        app,
        collapse_key: push.collapse_key.as_deref(),
        data,
        expires_at,
        id: id.to_string(),
        notification: push.notification.as_ref(),
        sent_at: now,
    };
    // Names are strings and numbers are finite: such a struct has a text.
    Bytes::from(serde_json::to_vec(&envelope).unwrap_or_default())
}

/// What a device finds around a push, by the names of its fields.
#[derive(Serialize)]
struct Envelope<'a> {
    app: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    collapse_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    expires_at: UnixMillis,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    notification: Option<&'a Map<String, Value>>,
    sent_at: UnixMillis,
}

struct People<'a> {
    engine: &'a Engine,
    app: AppNo,
}

impl Population for People<'_> {
    fn all(&self) -> DeviceSet {
        self.engine.store.all_devices(self.app)
    }

    fn device(&self, id: &str) -> Option<DeviceNo> {
        Some(self.engine.store.device_by_id(self.app, id)?.device)
    }

    fn alias(&self, alias: &str) -> DeviceSet {
        self.engine.store.devices_with_alias(self.app, alias)
    }

    fn tag(&self, tag: &str) -> DeviceSet {
        self.engine.store.devices_with_tag(self.app, tag)
    }

    fn topic(&self, topic: &str) -> DeviceSet {
        self.engine.topic_devices(self.app, topic)
    }

    fn platform(&self, platform: Platform) -> DeviceSet {
        self.engine.store.devices_on(self.app, platform)
    }
}
