//! Step 2, for messages on topics: find the subscribers, split them by what they can be given.
//!
//! - connected, QoS 0 or a session that ends with its connection → live, at once, without a row;
//! - a member of a shared subscription at QoS 1 or 2 → its inbox, whatever its session: so another can go on with it;
//! - a lasting session at QoS 1 or 2, connected or not → its inbox, by a commit, like any push;
//! - away and QoS 0 → nothing.

use crate::Engine;
use crate::command::*;
use crate::delivery::repeats::{Asked, First, Known};
use crate::delivery::request::{self, digest};
use crate::id::*;
use crate::model::*;
use crate::port::*;
use crate::topics::{SessionNo, TooManyFilters};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A message on a topic.
#[derive(Clone, Debug)]
pub struct Publish {
    /// With its topic.
    pub content: Arc<Content>,
    pub qos: u8,
    pub retain: bool,
    pub expiry_secs: Option<u32>,
}

/// What became of a publish, so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    pub matched: usize,
    /// Something must be committed before the publisher is told: `commands` grew.
    pub durable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("publishing to this topic is not allowed")]
    NotAllowed,
    #[error("retained messages are not allowed")]
    RetainNotAllowed,
    #[error("too many retained messages")]
    RetainedFull,
    #[error("the payload is too large")]
    TooLarge,
    #[error("the app's open messages take all the room that they may")]
    AppFull,
    #[error("too many wildcard filters lie on the way of this topic")]
    TooManyFilters,
    #[error("the idempotency key was used with another request")]
    IdempotencyMismatch,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether the commands of a publish were all taken. Where the room of an app ended while they
/// waited, its publisher is told as if it had ended before.
pub fn all_taken(outcomes: &[Outcome]) -> Result<(), PublishError> {
    let refused = outcomes.iter().find_map(|outcome| match outcome {
        Outcome::Refused(Refusal::AppFull) => Some(PublishError::AppFull),
        Outcome::Refused(Refusal::RetainedFull) => Some(PublishError::RetainedFull),
        _ => None,
    });
    refused.map_or(Ok(()), Err)
}

/// A publish of an app's server was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Sessions that it went to, connected or not.
    pub sessions: usize,
    /// It came before, with the same key: nothing was done.
    pub repeated: bool,
}

/// Where a publish is collected: live targets, and commands for the next commit.
#[derive(Default)]
pub struct Collected {
    pub live: Vec<LiveTarget>,
    pub commands: Vec<Command>,
}

impl Engine {
    /// Routes a publish of a session. The caller sends `live` to the connections and commits `commands`.
    pub fn publish(
        &self,
        from: SessionNo,
        publish: &Publish,
        into: &mut Collected,
    ) -> Result<Routed, PublishError> {
        let hub = self.hub();
        let Some(session) = hub.get(from) else { return Err(PublishError::NotAllowed) };
        let app = session.app;
        self.may_publish(&session.client, publish)?;
        self.route(&hub, app, Some(from), publish, into)
    }

    /// The gate for what devices bring in; wills pass it too, when they are left and when they are published.
    fn may_publish(&self, client: &str, publish: &Publish) -> Result<(), PublishError> {
        let topic = publish.content.topic.as_deref().unwrap_or("");
        if !self.access.may_publish(client, topic) {
            return Err(PublishError::NotAllowed);
        }
        if publish.retain && !self.access.retain {
            return Err(PublishError::RetainNotAllowed);
        }
        if publish.content.payload.len() > self.limits.payload_bytes_max {
            return Err(PublishError::TooLarge);
        }
        Ok(())
    }

    /// May a client leave this will? One about a server's own state is taken from everybody: a bridge leaves it without
    /// being asked, and could not connect otherwise. Where it may not be published it is dropped when its time comes.
    pub fn may_leave_will(&self, client: &str, will: &crate::session::Will) -> Result<(), PublishError> {
        let (content, qos, retain, expiry_secs) =
            (will.content.clone(), will.qos, will.retain, will.expiry_secs);
        let is_state_of_server = content.topic.as_deref().is_some_and(|topic| topic.starts_with("$SYS/"));
        match self.may_publish(client, &Publish { content, qos, retain, expiry_secs }) {
            Err(PublishError::NotAllowed | PublishError::RetainNotAllowed) if is_state_of_server => Ok(()),
            answer => answer,
        }
    }

    /// Publishes in the name of a client that is not connected: a will. Refused where its rights have gone.
    pub(crate) fn publish_as(&self, app: AppNo, client: &str, from: Option<SessionNo>, publish: Publish) {
        let mut collected = Collected::default();
        let routed = self.may_publish(client, &publish).and_then(|()| {
            let hub = self.hub();
            self.route(&hub, app, from, &publish, &mut collected)
        });
        if let Err(error) = routed {
            tracing::info!(client, topic = publish.content.topic, %error, "a will was not published");
            return;
        }
        self.deliver_live(&publish, collected.live);
        self.commit(collected.commands, Box::new(|_| {}));
    }

    /// Publishes for the app's own server: no gate but the limits. `done` gets the number of sessions it went to.
    pub fn publish_from_app(
        &self,
        app: AppNo,
        publish: Publish,
        done: Box<dyn FnOnce(Result<usize, PublishError>) + Send>,
    ) -> Result<(), PublishError> {
        if publish.content.payload.len() > self.limits.payload_bytes_max {
            return Err(PublishError::TooLarge);
        }
        let mut collected = Collected::default();
        let routed = {
            let hub = self.hub();
            self.route(&hub, app, None, &publish, &mut collected)?
        };
        self.deliver_live(&publish, collected.live);
        if collected.commands.is_empty() {
            done(Ok(routed.matched));
        } else {
            let told = move |outcomes: Result<Vec<Outcome>, StoreError>| {
                let taken = outcomes.map_err(PublishError::from).and_then(|all| all_taken(&all));
                done(taken.map(|()| routed.matched));
            };
            self.commit(collected.commands, Box::new(told));
        }
        Ok(())
    }

    /// The same, once for each key: as long as the server runs, and as long as keys of transient messages are remembered.
    pub fn publish_once(
        &self,
        app: AppNo,
        publish: Publish,
        (owner, key): (u128, &str),
        done: Box<dyn FnOnce(Result<Taken, PublishError>) + Send>,
    ) -> Result<(), PublishError> {
        let key = digest(format!("topic\n{owner:032x}\n{key}").as_bytes());
        let asked = Asked { app, key, request: request::of_publish(&publish) };
        let now = self.clock.now();
        let keep_until = now + self.limits.idempotency_keep.as_millis() as u64;
        match self.repeats.begin(asked, None, (now, keep_until), self.limits.transient_keys_max) {
            Known::New => {}
            Known::Repeated(first) => {
                done(Ok(Taken { sessions: first.count as usize, repeated: true }));
                return Ok(());
            }
            // It is not known yet what comes of it.
            Known::UnderWay => {
                done(Err(StoreError::Overloaded.into()));
                return Ok(());
            }
            Known::Other => return Err(PublishError::IdempotencyMismatch),
        }
        let engine = self.clone();
        let told = Box::new(move |sessions: Result<usize, PublishError>| {
            let first = |sessions: &usize| First { id: MessageId(0), count: *sessions as u64 };
            engine.repeats.settle(asked, sessions.as_ref().ok().map(first));
            done(sessions.map(|sessions| Taken { sessions, repeated: false }));
        });
        let refused = self.publish_from_app(app, publish, told);
        if refused.is_err() {
            self.repeats.settle(asked, None);
        }
        refused
    }

    fn deliver_live(&self, publish: &Publish, targets: Vec<LiveTarget>) {
        if !targets.is_empty() {
            let expires_at = publish.expiry_secs.map(|secs| self.clock.now() + u64::from(secs) * 1000);
            self.connections().deliver(&Live { content: publish.content.clone(), expires_at }, targets);
        }
    }

    fn route(
        &self,
        hub: &crate::hub::Hub,
        app: AppNo,
        from: Option<SessionNo>,
        publish: &Publish,
        into: &mut Collected,
    ) -> Result<Routed, PublishError> {
        let topic = publish.content.topic.as_deref().unwrap_or("");
        let (commands_before, live_before) = (into.commands.len(), into.live.len());
        let mut matched = 0;
        let (mut stored, mut shared) = (Vec::new(), Vec::new());
        let all_may = self.access.receives_all();
        if let Some(app_hub) = hub.apps.get(&app) {
            let may =
                |no: SessionNo| hub.get(no).filter(|s| all_may || self.access.may_receive(&s.client, topic));
            let member = |no| may(no).map(|s| s.connection.is_some());
            let looked = app_hub.topics.for_each_match(topic, from, member, |m| {
                let Some(session) = may(m.session).filter(|s| !s.storing) else { return };
                matched += 1;
                let qos = m.qos.min(publish.qos);
                let retain = publish.retain && m.retain_as_published;
                let device = session.device.filter(|_| session.stored && qos > 0);
                match (session.connection, device) {
                    (_, Some(member)) if let Some(share) = &m.share => {
                        let (share, qos, retain) = (share.to_string(), publish.qos, publish.retain);
                        shared.push(SharedTarget { share, member, qos, retain });
                    }
                    (_, Some(device)) => stored.push(Target { device, qos, retain, subscription_ids: m.ids }),
                    (Some(connection), None) => {
                        into.live.push(LiveTarget { connection, qos, retain, subscription_ids: m.ids });
                    }
                    (None, None) => {}
                }
            });
            looked.map_err(|TooManyFilters| PublishError::TooManyFilters)?;
        }
        let retained = match publish.retain {
            _ if !(stored.is_empty() && shared.is_empty()) && self.is_full(app) => Err(PublishError::AppFull),
            true => self.retain_command(app, topic, publish).map(Some),
            false => Ok(None),
        };
        match retained {
            Ok(command) => into.commands.extend(command),
            Err(refused) => {
                // Nobody gets it, so that its publisher can try again without sending it to some twice.
                into.live.truncate(live_before);
                return Err(refused);
            }
        }
        if !stored.is_empty() {
            into.commands.push(self.accept_publish(app, publish, Targets::Direct(stored)));
        }
        // Each by itself: a group's message goes on to other members without those of others.
        let shared = shared.into_iter().map(|target| Targets::Shared(Box::new(target)));
        into.commands.extend(shared.map(|targets| self.accept_publish(app, publish, targets)));
        Ok(Routed { matched, durable: into.commands.len() > commands_before })
    }

    fn accept_publish(&self, app: AppNo, publish: &Publish, targets: Targets) -> Command {
        let ttl_default = self.limits.ttl_default.as_secs();
        let ttl_secs = publish.expiry_secs.map_or(ttl_default, u64::from).min(self.limits.ttl_max.as_secs());
        let plain = self.new_message(app, targets, publish.content.clone());
        Command::Accept(Box::new(NewMessage { expires_at: plain.accepted_at + ttl_secs * 1000, ..plain }))
    }

    /// An empty payload takes the retained message away (MQTT-3.3.1-6).
    fn retain_command(&self, app: AppNo, topic: &str, publish: &Publish) -> Result<Command, PublishError> {
        let message = if publish.content.payload.is_empty() {
            None
        } else {
            Some(self.to_retain(app, topic, publish)?)
        };
        // From the moment of the live copies on, not only from the commit.
        self.retaining.begin(app, topic, message.clone());
        Ok(Command::Retain { app, topic: topic.to_owned(), message })
    }

    fn to_retain(&self, app: AppNo, topic: &str, publish: &Publish) -> Result<RetainedMessage, PublishError> {
        let now = self.clock.now();
        let is_full = self.store.retained_count(app) >= self.limits.retained_max;
        if is_full && self.store.retained(app, topic, 1, now).is_empty() {
            return Err(PublishError::RetainedFull);
        }
        // Also where it takes the place of another one: nobody says that that was as large.
        let bytes = self.store.retained_bytes(app) + publish.content.payload.len() as u64;
        if bytes > self.limits.retained_bytes_max {
            return Err(PublishError::RetainedFull);
        }
        let expires_at = publish.expiry_secs.map_or(UnixMillis::MAX, |secs| now + u64::from(secs) * 1000);
        let room = RetainedRoom {
            messages_max: self.limits.retained_max as u64,
            bytes_max: self.limits.retained_bytes_max,
        };
        let content = Some(publish.content.clone());
        Ok(RetainedMessage { qos: publish.qos, expires_at, room: Some(room), content })
    }

    /// Retained messages for a new subscription of a session, through the same gate as everything else.
    pub fn retained(&self, session: SessionNo, filter: &str) -> Vec<RetainedOut> {
        let Some((app, client)) = self.hub().get(session).map(|s| (s.app, s.client.clone())) else {
            return Vec::new();
        };
        let now = self.clock.now();
        // Begun before the store is asked: what is committed in between is found in one place or the other.
        let under_way = self.retaining.matching(app, filter);
        let mut found: BTreeMap<String, (u8, UnixMillis, Arc<Content>)> = BTreeMap::new();
        for stored in self.store.retained(app, filter, self.limits.retained_sent_max, now) {
            if let Ok(content) = self.store.content(stored.blob) {
                found.insert(stored.topic, (stored.qos, stored.expires_at, content));
            }
        }
        for (topic, message) in under_way {
            match message {
                Some(RetainedMessage { qos, expires_at, content: Some(content), .. }) => {
                    found.insert(topic, (qos, expires_at, content));
                }
                _ => _ = found.remove(&topic),
            }
        }
        let allowed = found.into_iter().filter(|(topic, _)| self.access.may_receive(&client, topic));
        allowed.map(|(_, (qos, expires_at, content))| RetainedOut { qos, expires_at, content }).collect()
    }
}

/// A retained message for a new subscription.
#[derive(Clone, Debug)]
pub struct RetainedOut {
    pub qos: u8,
    pub expires_at: UnixMillis,
    pub content: Arc<Content>,
}

/// Retained messages whose commit is under way. Who subscribes in that moment is behind the live copy and would be before
/// the stored one: this is where it finds the message.
#[derive(Default)]
pub(crate) struct Retaining(Mutex<BTreeMap<(AppNo, String), UnderWay>>);

struct UnderWay {
    message: Option<RetainedMessage>,
    commits: usize,
}

impl Retaining {
    fn begin(&self, app: AppNo, topic: &str, message: Option<RetainedMessage>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry((app, topic.to_owned())).or_insert(UnderWay { message: None, commits: 0 });
        entry.message = message;
        entry.commits += 1;
    }

    /// The commit came, or failed.
    pub fn end(&self, app: AppNo, topic: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (app, topic.to_owned());
        if let Some(entry) = all.get_mut(&key) {
            entry.commits -= 1;
            if entry.commits == 0 {
                all.remove(&key);
            }
        }
    }

    fn matching(&self, app: AppNo, filter: &str) -> Vec<(String, Option<RetainedMessage>)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = all.iter().filter(|((a, topic), _)| *a == app && crate::topics::matches(filter, topic));
        mine.map(|((_, topic), entry)| (topic.clone(), entry.message.clone())).collect()
    }
}
