//! The worker of one webhook.

use super::batch::{Gathered, envelope, gather, request_id};
use super::bells::Bell;
use super::{NO_LONGER_KEPT, Name, SecretError, Shared, Status, lock, signed};
use crate::attempts::{self, Attempt, Settled};
use crate::client::{Link, Post};
use crate::sign::Secret;
use postrider_core::command::{Outcome, Refusal};
use postrider_core::id::{JobNo, UnixMillis};
use postrider_core::jobs::{JobOutcome, JobState, JobView, Lease};
use postrider_core::model::ReceiptEvent;
use postrider_core::port::StoreError;
use postrider_core::webhooks::{
    MoveWebhook, Webhook, WebhookBatch, WebhookFailure, WebhookProgress, WebhookStop,
};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

/// What a worker that rests looks after all the same.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Until it asks a store again that refused.
const STORE_WAIT: Duration = Duration::from_secs(1);
/// How long a request in flight may still take when the server stops. It is sent again by the next
/// start, with the same id.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// A place that is so far behind what was looked at is stored although nothing was sent: the next
/// start need not look through all that again.
const LOOKED_MAX: u64 = 20_000;

/// How long a worker may keep its webhook to itself without a word: longer than any request takes. A
/// process that ends loses nothing by that: the next start of the server is the same worker.
const LEASE_MS: u64 = 300_000;
/// What workers of this server call themselves. There is one server for a data folder, and one worker
/// for a webhook: a lease of an earlier life is the worker's own.
const WORKER: u64 = 1;

/// See the module.
pub struct Worker {
    shared: Arc<Shared>,
    name: Name,
    bell: Arc<Bell>,
    /// Number and version of the webhook that what follows belongs to: one that was dropped may be there
    /// anew, with the versions of the old one.
    seen: (u64, u64),
    /// All up to here was looked at.
    looked: u64,
    /// There was nothing behind it.
    is_caught_up: bool,
    /// The right to work on the webhook, until then.
    lease: Option<(u64, UnixMillis)>,
    link: Option<Link>,
    /// A batch that was just begun; later attempts read it anew.
    begun: Option<(WebhookBatch, Vec<ReceiptEvent>)>,
}

/// What to do next.
enum Next {
    Again,
    /// Nothing until then, unless something changes.
    Until(UnixMillis),
    /// Nothing until something changes.
    Rest,
    /// The store did not do it.
    StoreRefuses,
    /// The secret does not open.
    Parked,
    /// The webhook is no more.
    End,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, name: Name, bell: Arc<Bell>) -> Worker {
        let (seen, looked, is_caught_up) = ((0, 0), 0, false);
        Worker { shared, name, bell, seen, looked, is_caught_up, lease: None, link: None, begun: None }
    }

    pub async fn run(mut self, mut stopping: watch::Receiver<bool>) -> Name {
        while !*stopping.borrow() {
            let next = tokio::select! {
                next = self.step() => next,
                () = stopped(&mut stopping) => {
                    // What is under way is dropped here: the books say that it was begun.
                    break;
                }
            };
            let wait = match next {
                Next::Again => continue,
                Next::End => break,
                Next::Rest => LOOK_AGAIN,
                Next::StoreRefuses => {
                    sleep(STORE_WAIT).await;
                    continue;
                }
                Next::Parked => {
                    // Looking for the key reads a file: not with each receipt.
                    sleep(STORE_WAIT).await;
                    LOOK_AGAIN
                }
                Next::Until(at) => {
                    let now = self.shared.engine.clock.now();
                    Duration::from_millis(at.saturating_sub(now)).min(LOOK_AGAIN)
                }
            };
            tokio::select! {
                _ = timeout(wait, self.bell.heard()) => {}
                _ = stopping.changed() => {}
            }
        }
        self.name
    }

    async fn step(&mut self) -> Next {
        let (app, id) = &self.name;
        let Some(webhook) = self.shared.engine.store.webhook(*app, id) else { return Next::End };
        if (webhook.number, webhook.version) != self.seen {
            self.seen = (webhook.number, webhook.version);
            (self.looked, self.is_caught_up) = (webhook.progress.position, false);
            (self.lease, self.link, self.begun) = (None, None, None);
        }
        let is_due = self.job(&webhook).is_some_and(|job| matches!(job.state, JobState::Due { .. }));
        if webhook.stopped.is_some() {
            self.link = None;
            return if is_due { self.lay_down(&webhook).await } else { Next::Rest };
        }
        // Looked at before there is anything to send: an operator learns of it at the start.
        let secrets = match self.shared.open_all(self.name.0, &webhook) {
            Ok(secrets) => secrets,
            Err(why) => return self.park(&webhook, &why).await,
        };
        self.note(|status| status.is_parked = false);
        if webhook.progress.next_at > self.shared.engine.clock.now() && !is_due {
            let failing_since = webhook.progress.failing_since;
            // After a restart the events themselves are not known yet.
            self.note(|status| status.waiting_since = status.waiting_since.or(failing_since));
            return Next::Until(webhook.progress.next_at);
        }
        match webhook.progress.sending {
            None => self.begin(webhook).await,
            Some(batch) => self.send(webhook, &secrets, batch).await,
        }
    }

    /// Looks for receipts to send, and stores which these are before anything is sent.
    async fn begin(&mut self, webhook: Webhook) -> Next {
        if self.is_caught_up && !self.has_news() {
            return self.rest(&webhook).await;
        }
        let max = webhook.settings.batch_max.max(1) as usize;
        let Ok(gathered) = self.gather(&webhook, (self.looked, u64::MAX), max).await else {
            return Next::StoreRefuses;
        };
        let Gathered { rows, looked, is_end, missed } = gathered;
        let mut progress = webhook.progress.clone();
        let failure = missed.then(|| self.no_longer_kept(0));
        let Some(first) = rows.first() else {
            (self.looked, self.is_caught_up) = (looked, is_end);
            self.note_waiting(None);
            if missed {
                progress.position = looked;
                return self.store(webhook, Settled { progress, failure, stop: None }).await;
            }
            return if is_end { self.rest(&webhook).await } else { Next::Again };
        };
        let epoch = self.shared.engine.store.epoch_of(looked);
        let batch = WebhookBatch { to: looked, epoch, events: rows.len() as u32 };
        progress.position = first.position - 1;
        progress.sending = Some(batch);
        self.note_waiting(Some(first.at));
        let next = self.store(webhook, Settled { progress, failure, stop: None }).await;
        if matches!(next, Next::Again) {
            (self.looked, self.is_caught_up) = (looked, is_end);
            self.begun = Some((batch, rows));
        }
        next
    }

    /// Whether there are new receipts of the app; what lies before them need not be looked at.
    fn has_news(&mut self) -> bool {
        let Some(behind) = self.bell.take_news() else { return false };
        self.looked = self.looked.max(behind);
        // Until it was read: a read that fails must not let the next news lead past this.
        self.is_caught_up = false;
        true
    }

    /// There is nothing to send.
    async fn rest(&mut self, webhook: &Webhook) -> Next {
        self.note_waiting(None);
        if let Some(quiet) = self.shared.bells.quiet_up_to(&self.bell) {
            self.looked = self.looked.max(quiet);
        }
        if self.looked.saturating_sub(webhook.progress.position) < LOOKED_MAX {
            return self.lay_down(webhook).await;
        }
        let mut progress = webhook.progress.clone();
        progress.position = self.looked;
        match self.store(webhook.clone(), Settled { progress, failure: None, stop: None }).await {
            Next::Again => Next::Rest,
            other => other,
        }
    }

    async fn send(&mut self, webhook: Webhook, secrets: &[Secret], batch: WebhookBatch) -> Next {
        if let Err(next) = self.claim(&webhook).await {
            return next;
        }
        let from = webhook.progress.position;
        let begun = self.begun.take().filter(|(begun, _)| *begun == batch);
        let rows = match begun {
            Some((_, rows)) => rows,
            None => match self.gather(&webhook, (from, batch.to), batch.events as usize).await {
                Ok(gathered) => gathered.rows,
                Err(_) => return Next::StoreRefuses,
            },
        };
        self.looked = self.looked.max(batch.to);
        let key = self.shared.engine.store.cursor_key();
        let id = request_id(&key, self.name.0, &self.name.1, (from, batch));
        let Some(newest) = rows.last().map(|row| row.at) else {
            let failure = Some(self.no_longer_kept(batch.events));
            let mut progress = webhook.progress.clone();
            progress.give_up(batch);
            return self.store(webhook, Settled { progress, failure, stop: None }).await;
        };
        self.note_waiting(rows.first().map(|row| row.at));
        let attempt = self.attempt(&webhook, (secrets, id.clone()), (newest, rows)).await;
        self.note_attempt(&webhook, &attempt, batch);
        let now = self.shared.engine.clock.now();
        let chance = self.shared.engine.chance.bits128() as u64;
        let settled = attempts::settle(&webhook.progress, &attempt, &id, self.shared.policy, (now, chance));
        self.store(webhook, settled).await
    }

    async fn attempt(
        &mut self,
        webhook: &Webhook,
        (secrets, id): (&[Secret], String),
        (newest, rows): (UnixMillis, Vec<ReceiptEvent>),
    ) -> Attempt {
        let shared = self.shared.clone();
        let events = (shared.show)(self.name.0, rows);
        let body = envelope("delivery.events", newest, &json!({ "events": events }));
        let _place = shared.in_flight.acquire().await;
        let now = shared.engine.clock.now();
        let post: Post = signed(secrets, id, now, body);
        shared.client.post(&mut self.link, &webhook.settings.url, &post, now).await
    }

    fn note_attempt(&self, webhook: &Webhook, attempt: &Attempt, batch: WebhookBatch) {
        let (app, id) = &self.name;
        let said = attempts::words(attempt);
        let is_taken = said == "status_2xx";
        self.shared.count(*app, |counts| {
            if is_taken {
                counts.delivered += 1;
                counts.events += u64::from(batch.events);
            } else {
                counts.failed += 1;
            }
        });
        if !is_taken {
            let attempt = webhook.progress.attempts + 1;
            tracing::warn!(
                app = app.0,
                webhook = id,
                said,
                attempt,
                "a webhook's receiver did not take a request"
            );
        }
    }

    /// Stores what came to be; the work on it is over only when that is on stable storage.
    async fn store(&mut self, webhook: Webhook, settled: Settled) -> Next {
        let Settled { progress, failure, stop } = settled;
        if failure.as_ref().is_some_and(|failure| failure.gave_up) {
            let given_up = failure.as_ref().map_or(0, |failure| u64::from(failure.events));
            self.shared.count(self.name.0, |counts| counts.events_given_up += given_up);
            tracing::error!(
                app = self.name.0.0,
                webhook = self.name.1,
                events = given_up,
                "events of a webhook are given up"
            );
        }
        let lease = match self.claim(&webhook).await {
            Ok(lease) => lease,
            Err(next) => return next,
        };
        let now = self.shared.engine.clock.now();
        let outcome = outcome_of(&progress, failure.as_ref(), stop, now);
        self.lease = match outcome {
            JobOutcome::Keep { until } => Some((lease, until)),
            _ => None,
        };
        let moved = MoveWebhook {
            app: self.name.0,
            id: self.name.1.clone(),
            version: webhook.version,
            progress,
            failure,
            stop,
            lease,
            outcome,
            now,
        };
        loop {
            let (tell, told) = oneshot::channel();
            let done = Box::new(move |outcome| _ = tell.send(outcome));
            self.shared.engine.move_webhook(moved.clone(), done);
            let outcome = told.await.unwrap_or(Err(StoreError::Closed));
            match outcome.map(|outcomes| outcomes.into_iter().next()) {
                Ok(Some(Outcome::Refused(Refusal::Stale | Refusal::LeaseLost))) => {
                    self.lease = None;
                    return Next::Again;
                }
                Ok(Some(Outcome::Refused(_))) => return Next::End,
                Ok(_) => return Next::Again,
                // What was sent is not sent again for that: the books are asked to take it until they do.
                Err(_) => sleep(STORE_WAIT).await,
            }
        }
    }

    fn job(&self, webhook: &Webhook) -> Option<JobView> {
        self.shared.engine.store.job_named(&webhook.job(self.name.0))
    }

    /// The right to work on the webhook: a lease on its job.
    async fn claim(&mut self, webhook: &Webhook) -> Result<u64, Next> {
        let engine = &self.shared.engine;
        let now = engine.clock.now();
        if let Some((lease, _)) = self.lease.filter(|(_, until)| *until > now) {
            return Ok(lease);
        }
        let job = self.job(webhook).ok_or(Next::StoreRefuses)?;
        match job.state {
            JobState::Leased(Lease { no, worker: WORKER, until }) if until > now => {
                self.lease = Some((no, until));
                return Ok(no);
            }
            JobState::Leased(Lease { until, .. }) if until > now => return Err(Next::Until(until)),
            _ => {}
        }
        let (until, (tell, told)) = (now + LEASE_MS, oneshot::channel());
        engine.claim_job(&job, WORKER, until, Box::new(move |jobs| _ = tell.send(jobs)));
        let jobs = told.await.unwrap_or(Err(StoreError::Closed)).map_err(|_| Next::StoreRefuses)?;
        // A lease that ran out just now is noticed by the next look at timers.
        let job = jobs.first().ok_or(Next::Until(now + 1_000))?;
        self.lease = Some((job.lease, until));
        Ok(job.lease)
    }

    /// There is nothing to do: the job rests, once it has for a while, until there is.
    async fn lay_down(&mut self, webhook: &Webhook) -> Next {
        let Some(job) = self.job(webhook) else { return Next::Rest };
        let now = self.shared.engine.clock.now();
        let rests = match (self.lease, job.state) {
            (Some((_, until)), _) => until < now + LEASE_MS / 2,
            (None, JobState::Leased(Lease { worker, .. })) => worker == WORKER,
            (None, JobState::Due { .. } | JobState::Parked) => true,
            (None, JobState::Waiting { .. }) => false,
        };
        if rests {
            self.settle(webhook, job.no, JobOutcome::Rest { until: UnixMillis::MAX }).await;
        }
        Next::Rest
    }

    /// Gives the job back as it is. Where the store does not do it now, the next look does.
    async fn settle(&mut self, webhook: &Webhook, job: JobNo, outcome: JobOutcome) {
        let Ok(lease) = self.claim(webhook).await else { return };
        self.lease = None;
        let (tell, told) = oneshot::channel();
        let done = Box::new(move |outcomes| drop(tell.send(outcomes)));
        self.shared.engine.settle_job(job, lease, None, outcome, done);
        _ = told.await;
    }

    async fn gather(&self, webhook: &Webhook, range: (u64, u64), max: usize) -> Result<Gathered, StoreError> {
        let (store, app, webhook) = (self.shared.engine.store.clone(), self.name.0, webhook.clone());
        let reading = tokio::task::spawn_blocking(move || gather(&*store, app, &webhook, range, max));
        let read = reading.await.map_err(|error| StoreError::Failed(error.to_string()))?;
        if let Err(error) = &read {
            tracing::error!(%error, "receipts cannot be read for a webhook");
        }
        read
    }

    /// Nothing is sent until somebody gives the webhook another secret, or the server its key.
    async fn park(&mut self, of: &Webhook, why: &SecretError) -> Next {
        self.link = None;
        let now = self.shared.engine.clock.now();
        let mut was_parked = false;
        self.note(|status| {
            was_parked = status.is_parked;
            *status = Status { waiting_since: status.waiting_since.or(Some(now)), is_parked: true };
        });
        if !was_parked {
            let app = self.shared.engine.store.app(self.name.0).map_or(String::new(), |app| app.id);
            tracing::error!(app, webhook = self.name.1, %why, "a webhook is parked");
        }
        if let Some(job) = self.job(of).filter(|job| job.state != JobState::Parked) {
            self.settle(of, job.no, JobOutcome::Parked { error: "secret".to_owned() }).await;
        }
        Next::Parked
    }

    fn no_longer_kept(&self, events: u32) -> WebhookFailure {
        WebhookFailure {
            at: self.shared.engine.clock.now(),
            what: NO_LONGER_KEPT.to_owned(),
            attempt: 0,
            request_id: String::new(),
            events,
            gave_up: true,
        }
    }

    /// All was delivered, or the oldest event that was not is of `since`.
    fn note_waiting(&self, since: Option<UnixMillis>) {
        self.note(|status| *status = Status { waiting_since: since, is_parked: false });
    }

    fn note(&self, change: impl FnOnce(&mut Status)) {
        change(lock(&self.shared.statuses).entry(self.name.clone()).or_default());
    }
}

/// What the job does after this: it goes on at once, waits for the next attempt, or for an operator.
fn outcome_of(
    progress: &WebhookProgress,
    failure: Option<&WebhookFailure>,
    stop: Option<WebhookStop>,
    now: UnixMillis,
) -> JobOutcome {
    let error = failure.map_or(String::new(), |failure| failure.what.clone());
    match stop {
        Some(_) => JobOutcome::Parked { error },
        None if progress.next_at > now => JobOutcome::Failed { retry_at: progress.next_at, error },
        None => JobOutcome::Keep { until: now + LEASE_MS },
    }
}

/// Until the server stops and what is in flight had its time.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    while !*stopping.borrow() {
        if stopping.changed().await.is_err() {
            break;
        }
    }
    sleep(STOP_PATIENCE).await;
}
