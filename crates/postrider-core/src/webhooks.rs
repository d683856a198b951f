//! Webhooks: where an app's receipts are posted to, and how far each has got.
//!
//! A webhook owns a place in the receipt stream. What is posted at once is a batch: it is stored
//! *before* it is sent, so that a batch that is sent again, also by the next start of the server,
//! holds the same events and has the same id. This crate keeps the books; who connects to
//! receivers is another crate. Secrets come sealed and stay so here.

use crate::Engine;
use crate::command::Command;
use crate::id::*;
use crate::jobs::{JobKind, JobName, JobOutcome};
use crate::model::Step;
use crate::port::Done;

/// Failures of a webhook that are remembered; older ones go.
pub const FAILURES_MAX: usize = 50;

/// A webhook with its place in the receipt stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Webhook {
    pub id: String,
    /// Of this webhook and no other, also of the same id: it names its job.
    pub number: u64,
    pub settings: WebhookSettings,
    /// The newest first; each of them signs. Never empty.
    pub secrets: Vec<SealedSecret>,
    pub created_at: UnixMillis,
    /// Grows with each change by its owner. Who works for the webhook names the version that he
    /// saw, and what he reports about an older one is refused.
    pub version: u64,
    /// Why nothing is sent, where that is so.
    pub stopped: Option<WebhookStop>,
    pub progress: WebhookProgress,
    /// The newest last.
    pub failures: Vec<WebhookFailure>,
}

/// What the owner of a webhook decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WebhookSettings {
    pub url: String,
    /// The steps that are sent; empty: all.
    pub steps: Vec<Step>,
    /// Events of one request, at most.
    pub batch_max: u32,
}

/// A secret that signs requests, as it is stored: only the holder of the key file can read it.
#[derive(Clone, PartialEq)]
pub struct SealedSecret {
    pub sealed: Box<[u8]>,
    /// It signs no longer than that; the newest has no end.
    pub until: Option<UnixMillis>,
}

impl std::fmt::Debug for SealedSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedSecret").field("until", &self.until).finish_non_exhaustive()
    }
}

/// Why a webhook sends nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookStop {
    /// Its owner switched it off.
    ByOwner,
    /// The receiver answered `410 Gone`.
    Gone,
}

/// How far a webhook has got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WebhookProgress {
    /// All up to this receipt is done with.
    pub position: u64,
    /// What is being sent.
    pub sending: Option<WebhookBatch>,
    /// Failed attempts to send it.
    pub attempts: u32,
    /// When the first of them failed.
    pub failing_since: Option<UnixMillis>,
    /// No attempt before.
    pub next_at: UnixMillis,
    pub delivered_at: Option<UnixMillis>,
    /// Events delivered, and events given up, in all.
    pub delivered: u64,
    pub given_up: u64,
}

/// Events that are sent in one request: those of the app with the steps of the webhook, behind
/// [`WebhookProgress::position`] and up to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebhookBatch {
    pub to: u64,
    /// Which history gave out `to`: it is in the id of the request.
    pub epoch: u64,
    pub events: u32,
}

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookFailure {
    pub at: UnixMillis,
    /// `status_5xx`, `timeout`, …: see the crate that connects to receivers.
    pub what: String,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// `webhook-id` of the request.
    pub request_id: String,
    pub events: u32,
    /// It was the last one: the events will not be sent.
    pub gave_up: bool,
}

/// A webhook to make or to change.
#[derive(Clone, Debug, PartialEq)]
pub struct PutWebhook {
    pub app: AppNo,
    pub id: String,
    /// The version that was changed; 0: there was none.
    pub seen: u64,
    pub settings: WebhookSettings,
    pub secrets: Vec<SealedSecret>,
    pub enabled: bool,
    /// Webhooks of the app, at most.
    pub webhooks_max: u32,
    pub now: UnixMillis,
}

/// What came of working for a webhook.
#[derive(Clone, Debug, PartialEq)]
pub struct MoveWebhook {
    pub app: AppNo,
    pub id: String,
    pub version: u64,
    pub progress: WebhookProgress,
    pub failure: Option<WebhookFailure>,
    pub stop: Option<WebhookStop>,
    /// On the webhook's job: without it nothing of this counts.
    pub lease: u64,
    /// What the job does next.
    pub outcome: JobOutcome,
    pub now: UnixMillis,
}

impl Webhook {
    /// The job that brings it its receipts.
    pub fn job(&self, app: AppNo) -> JobName {
        JobName { app: Some(app), kind: JobKind::Webhook, subject: self.number }
    }

    /// Whether events with this step are sent.
    pub fn wants(&self, step: Step) -> bool {
        self.settings.steps.is_empty() || self.settings.steps.contains(&step)
    }

    /// The secrets that sign now, the newest first.
    pub fn signing(&self, now: UnixMillis) -> impl Iterator<Item = &SealedSecret> {
        self.secrets.iter().filter(move |secret| secret.until.is_none_or(|until| now < until))
    }
}

impl WebhookProgress {
    /// The batch that is being sent is over, one way or the other.
    pub fn end_batch(&mut self, batch: WebhookBatch) {
        self.position = self.position.max(batch.to);
        self.sending = None;
        self.retry_at_once();
    }

    /// What failed so far counts no more.
    pub(crate) fn retry_at_once(&mut self) {
        (self.attempts, self.failing_since, self.next_at) = (0, None, 0);
    }

    /// It is over, and its events were not delivered.
    pub fn give_up(&mut self, batch: WebhookBatch) {
        self.given_up += u64::from(batch.events);
        self.end_batch(batch);
    }
}

impl Engine {
    /// Makes or changes a webhook. A new one begins with the receipts that come from now on.
    pub fn put_webhook(&self, put: PutWebhook, done: Done) {
        self.store.submit(vec![Command::PutWebhook(Box::new(put))], done);
    }

    pub fn drop_webhook(&self, app: AppNo, id: &str, done: Done) {
        self.store.submit(vec![Command::DropWebhook { app, id: id.to_owned() }], done);
    }

    /// Lets a webhook begin anew behind a receipt.
    pub fn replay_webhook(&self, app: AppNo, id: &str, position: u64, done: Done) {
        self.store.submit(vec![Command::ReplayWebhook { app, id: id.to_owned(), position }], done);
    }

    pub fn move_webhook(&self, moved: MoveWebhook, done: Done) {
        self.store.submit(vec![Command::MoveWebhook(Box::new(moved))], done);
    }
}
