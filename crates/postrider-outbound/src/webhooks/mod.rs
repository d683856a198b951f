//! Sends receipts to webhooks: a worker for each, so that a receiver that is slow or away holds up
//! no other.
//!
//! A worker takes the receipts of its app behind its webhook's place, stores which of them it is
//! about to send, sends them in one request, and stores what came of it. One request is in flight
//! for a webhook at a time, so its events arrive in order. A worker that has sent all rests until
//! the store tells of new receipts of its app.
//!
//! A webhook's work is a job of the store (`postrider_core::jobs`): its worker holds a lease on it while
//! it sends, and gives it back with the time of the next attempt, or when there is nothing to do.

mod batch;
mod bells;
mod worker;

use crate::attempts::{self, Policy};
use crate::client::{Client, Post};
use crate::guard::{BadUrl, Endpoint};
use crate::seal::Keys;
use crate::sign::{Secret, signatures};
use batch::envelope;
use bells::{Bell, Bells};
use postrider_core::Engine;
use postrider_core::id::{AppNo, UnixMillis};
use postrider_core::jobs::{JobFilter, JobKind, JobState};
use postrider_core::model::ReceiptEvent;
use postrider_core::port::JobWorkers;
use postrider_core::webhooks::{SealedSecret, Webhook};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use worker::Worker;

/// Events as the API shows them: what is sent is what `GET /v1/events` gives.
pub type Show = Arc<dyn Fn(AppNo, Vec<ReceiptEvent>) -> Vec<Value> + Send + Sync>;
/// The keys that open and seal secrets, or why there are none. `true`: one is made where there is
/// none.
pub type KeyRing = Arc<dyn Fn(bool) -> Result<Arc<Keys>, String> + Send + Sync>;

/// How webhooks are sent.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub policy: Policy,
    /// Requests in flight to all receivers.
    pub in_flight_max: usize,
}

type Name = (AppNo, String);

/// See the module. Clones are the same one.
#[derive(Clone)]
pub struct Webhooks(Arc<Shared>);

struct Shared {
    engine: Engine,
    client: Client,
    policy: Policy,
    in_flight: Semaphore,
    show: Show,
    keys: KeyRing,
    bells: Bells,
    /// Webhooks that were made, changed or dropped since the dispatcher looked.
    changed: Mutex<HashSet<Name>>,
    wake: Notify,
    statuses: Mutex<HashMap<Name, Status>>,
    testing: Mutex<HashSet<Name>>,
    counts: Mutex<HashMap<AppNo, Counts>>,
}

/// What a worker knows of its webhook that is not stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// When the oldest event happened that was not delivered yet; none: all are.
    pub waiting_since: Option<UnixMillis>,
    /// Its secret does not open: nothing is sent until it gets another one, or the key is back.
    pub is_parked: bool,
}

/// What was sent for an app since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub delivered: u64,
    pub failed: u64,
    pub events: u64,
    pub events_given_up: u64,
}

/// What a test call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tested {
    /// `status_2xx`, `timeout`, …
    pub outcome: &'static str,
    pub took: Duration,
}

/// Why a secret cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("no key for secrets: {0}")]
    Key(String),
    #[error("a secret does not open: {0}")]
    Unopened(String),
}

impl Webhooks {
    pub fn new(engine: Engine, client: Client, settings: Settings, show: Show, keys: KeyRing) -> Webhooks {
        let bells = Bells::starting_at(engine.store.last_receipt());
        let shared = Arc::new(Shared {
            engine: engine.clone(),
            client,
            policy: settings.policy,
            in_flight: Semaphore::new(settings.in_flight_max),
            show,
            keys,
            bells,
            changed: Mutex::default(),
            wake: Notify::new(),
            statuses: Mutex::default(),
            testing: Mutex::default(),
            counts: Mutex::default(),
        });
        engine.attach_job_workers(Arc::new(DueJobs(Arc::downgrade(&shared))));
        Webhooks(shared)
    }

    /// The store has receipts up to `position` now, new ones of these apps. Short: it is called on
    /// a thread of the store's.
    pub fn told(&self, position: u64, apps: &BTreeSet<AppNo>) {
        self.0.bells.told(position, apps);
    }

    /// A webhook was made, changed or dropped.
    pub fn changed(&self, app: AppNo, id: &str) {
        lock(&self.0.changed).insert((app, id.to_owned()));
        self.0.wake.notify_one();
    }

    /// All webhooks of an app were dropped.
    pub fn app_closed(&self, app: AppNo) {
        self.0.bells.ring(app);
    }

    /// Works until `stopping` says so. An error: a worker ended by a bug.
    pub async fn run(self, mut stopping: watch::Receiver<bool>) -> Result<(), String> {
        let mut workers = JoinSet::new();
        let mut running: HashMap<Name, Arc<Bell>> = HashMap::new();
        let mut wanted: HashSet<Name> = self.0.engine.store.webhook_ids().into_iter().collect();
        loop {
            for name in wanted.drain() {
                if let Some(bell) = running.get(&name) {
                    bell.ring();
                } else if self.0.engine.store.webhook(name.0, &name.1).is_some() {
                    let bell = self.0.bells.add(name.0);
                    running.insert(name.clone(), bell.clone());
                    workers.spawn(Worker::new(self.0.clone(), name, bell).run(stopping.clone()));
                }
            }
            if *stopping.borrow() {
                break;
            }
            tokio::select! {
                () = self.0.wake.notified() => {}
                _ = stopping.changed() => {}
                Some(ended) = workers.join_next() => wanted.extend(self.ended(ended, &mut running)?),
            }
            wanted.extend(lock(&self.0.changed).drain());
        }
        while let Some(ended) = workers.join_next().await {
            self.ended(ended, &mut running)?;
        }
        Ok(())
    }

    /// A worker ends when its webhook is gone, which may have come back since.
    fn ended(
        &self,
        ended: Result<Name, tokio::task::JoinError>,
        running: &mut HashMap<Name, Arc<Bell>>,
    ) -> Result<Option<Name>, String> {
        let name = ended.map_err(|error| format!("the worker of a webhook ended: {error}"))?;
        if let Some(bell) = running.remove(&name) {
            self.0.bells.remove(name.0, &bell);
        }
        lock(&self.0.statuses).remove(&name);
        Ok(Some(name))
    }

    /// Whether a URL may be saved. A name that has no address now may get one: it is checked at
    /// each connection all the same.
    pub async fn check_url(&self, url: &str) -> Result<(), BadUrl> {
        const PATIENCE: Duration = Duration::from_secs(3);
        let client = &self.0.client;
        let endpoint = Endpoint::parse(url, client.rules())?;
        match tokio::time::timeout(PATIENCE, client.resolve(&endpoint)).await {
            Ok(Ok(addresses)) => client.rules().check_all(&addresses),
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }

    /// Sends a test event now. `None`: a test of this webhook is under way.
    pub async fn test(&self, app: AppNo, webhook: &Webhook) -> Option<Result<Tested, SecretError>> {
        let name = (app, webhook.id.clone());
        let _turn = Turn::begin(&self.0.testing, name)?;
        let secrets = match self.0.open_all(app, webhook) {
            Ok(secrets) => secrets,
            Err(error) => return Some(Err(error)),
        };
        let now = self.0.engine.clock.now();
        let id = format!("test_{:032x}", self.0.engine.chance.bits128());
        let body = envelope("webhook.test", now, &json!({ "webhook_id": webhook.id }));
        let post = signed(&secrets, id, now, body);
        let begun = Instant::now();
        let sent = {
            let _place = self.0.in_flight.acquire().await;
            self.0.client.post(&mut None, &webhook.settings.url, &post, now).await
        };
        Some(Ok(Tested { outcome: attempts::words(&sent), took: begun.elapsed() }))
    }

    /// Seals a secret for a webhook.
    pub fn seal(&self, app: AppNo, id: &str, secret: &Secret) -> Result<SealedSecret, SecretError> {
        let keys = (self.0.keys)(true).map_err(SecretError::Key)?;
        let sealed = keys.seal(&context(app, id), secret.bytes(), self.0.engine.chance.bytes());
        let sealed = sealed.ok_or_else(|| SecretError::Key("it seals nothing".into()))?;
        Ok(SealedSecret { sealed, until: None })
    }

    /// Whether the newest secret of a webhook is this one.
    pub fn signs_with(&self, app: AppNo, webhook: &Webhook, secret: &Secret) -> bool {
        let newest = webhook.secrets.first();
        newest.is_some_and(|newest| self.0.open(app, &webhook.id, newest).is_ok_and(|open| open == *secret))
    }

    pub fn status(&self, app: AppNo, id: &str) -> Status {
        lock(&self.0.statuses).get(&(app, id.to_owned())).copied().unwrap_or_default()
    }

    pub fn counts(&self, app: AppNo) -> Counts {
        lock(&self.0.counts).get(&app).copied().unwrap_or_default()
    }
}

/// Webhooks whose jobs came to be due without their workers' doing: an operator wants another try.
struct DueJobs(Weak<Shared>);

/// Jobs that one nudge looks at; workers look by themselves too.
const DUE_MAX: usize = 1_000;

impl JobWorkers for DueJobs {
    fn jobs_due(&self, kind: JobKind) {
        let Some(shared) = self.0.upgrade().filter(|_| kind == JobKind::Webhook) else { return };
        let due = JobState::Due { since: 0 }.place();
        let filter = JobFilter { kind: Some(kind), state: Some(due), app: None };
        let (jobs, _) = shared.engine.store.jobs(filter, None, DUE_MAX);
        let apps: BTreeSet<AppNo> = jobs.iter().filter_map(|job| job.name.app).collect();
        apps.into_iter().for_each(|app| shared.bells.ring(app));
    }
}

impl Shared {
    fn open(&self, app: AppNo, id: &str, sealed: &SealedSecret) -> Result<Secret, SecretError> {
        let keys = (self.keys)(false).map_err(SecretError::Key)?;
        let unopened = |why: String| SecretError::Unopened(why);
        let opened = keys.open(&context(app, id), &sealed.sealed).map_err(|why| unopened(why.to_string()))?;
        Secret::of_bytes(&opened).map_err(|why| unopened(why.to_string()))
    }

    /// The secrets that sign now.
    fn open_all(&self, app: AppNo, webhook: &Webhook) -> Result<Vec<Secret>, SecretError> {
        let now = self.engine.clock.now();
        webhook.signing(now).map(|sealed| self.open(app, &webhook.id, sealed)).collect()
    }

    fn count(&self, app: AppNo, count: impl FnOnce(&mut Counts)) {
        count(lock(&self.counts).entry(app).or_default());
    }
}

/// What a sealed secret belongs to.
fn context(app: AppNo, id: &str) -> String {
    format!("postrider-webhook/1|{}|{id}", app.0)
}

fn signed(secrets: &[Secret], id: String, now: UnixMillis, body: Vec<u8>) -> Post {
    let timestamp = now / 1_000;
    let signatures = signatures(secrets, &id, timestamp, &body);
    Post { id, timestamp, signatures, body: body.into() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of a kind at a time, until it is dropped.
struct Turn<'a>(&'a Mutex<HashSet<Name>>, Name);

impl<'a> Turn<'a> {
    fn begin(turns: &'a Mutex<HashSet<Name>>, name: Name) -> Option<Turn<'a>> {
        let is_free = lock(turns).insert(name.clone());
        // Lazily: what is made here gives the turn back when it is dropped.
        is_free.then(|| Turn(turns, name))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(self.0).remove(&self.1);
    }
}

/// For the words of a failure that is no attempt.
const NO_LONGER_KEPT: &str = "no_longer_kept";

#[cfg(test)]
mod tests;
