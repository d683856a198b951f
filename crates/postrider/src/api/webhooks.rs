//! Webhooks of an app: where its receipts are posted to.

use super::auth::{ByApp, Manages, Reads};
use super::error::{ApiError, Code};
use super::json::{Body, Input, OptionalBody, Path};
use super::{Api, Time, ask, cursors, times};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use postrider_core::command::{Outcome, Refusal};
use postrider_core::id::{AppNo, UnixMillis};
use postrider_core::model::Step;
use postrider_core::port::StoreError;
use postrider_core::webhooks::{PutWebhook, SealedSecret, Webhook as Stored, WebhookSettings, WebhookStop};
use postrider_outbound::sign::Secret;
use postrider_outbound::webhooks::{SecretError, Status};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Events of one request, where nothing is said, and at most.
const BATCH_DEFAULT: u32 = 100;
const BATCH_MAX: u32 = 500;
/// How long an older secret signs beside a new one, where nothing is said, and at most.
const OVERLAP_SECS: u64 = 24 * 3_600;
const OVERLAP_SECS_MAX: u64 = 30 * 24 * 3_600;
/// Secrets that sign at the same time.
const SECRETS_MAX: usize = 3;
/// Tries against others who change the same webhook.
const TRIES: usize = 4;

/// A webhook to make, or what an existing one shall be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookRequest {
    /// Where events are posted to: `https://…` with a host that has public addresses only.
    url: String,
    /// The steps that are sent; left out: all that the receipt stream has.
    #[serde(default)]
    #[schema(schema_with = super::openapi::steps, required = false)]
    events: Vec<Step>,
    /// What signs: `whsec_` and 24 to 64 bytes in base64. Left out, a new webhook gets one, and an
    /// existing one keeps its own. Another one than before signs from now on; the one before signs
    /// beside it for a day.
    secret: Option<String>,
    /// Whether events are sent; else they wait, as long as receipts are kept.
    #[serde(default = "yes")]
    #[schema(default = true)]
    enabled: bool,
    /// Events of one request, at most: 1 to 500, 100 where nothing is said.
    #[schema(minimum = 1, maximum = 500)]
    batch_max: Option<u32>,
}

impl Input for WebhookRequest {}

fn yes() -> bool {
    true
}

/// A webhook: what it does, and how it is going. Never its secret, except once, when it was made.
#[derive(Debug, Serialize, ToSchema)]
pub struct Webhook {
    id: String,
    url: String,
    /// The steps that are sent; none: all.
    #[schema(schema_with = super::openapi::steps)]
    events: Vec<Step>,
    batch_max: u32,
    enabled: bool,
    state: WebhookState,
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// All events before it are done with: a cursor of `GET /v1/events`.
    cursor: String,
    /// How old the oldest event is that was not delivered yet; 0: all are.
    lag_secs: u64,
    #[schema(value_type = Option<String>, format = DateTime)]
    delivered_at: Option<Time>,
    events_delivered: u64,
    /// Events that were given up.
    events_failed: u64,
    /// Attempts in a row that failed.
    failed_attempts: u32,
    #[schema(value_type = Option<String>, format = DateTime)]
    failing_since: Option<Time>,
    #[schema(value_type = Option<String>, format = DateTime)]
    next_attempt_at: Option<Time>,
    /// Until when each secret signs, the newest first; null: until there is another one.
    #[schema(value_type = Vec<Option<String>>)]
    secrets_sign_until: Vec<Option<Time>>,
    /// The secret: shown once, when the server has made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

/// How a webhook is going: it sends; the receiver did not take the last request, which is sent
/// again; its owner switched it off; the receiver said `410 Gone`; or its secret cannot be opened.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WebhookState {
    Active,
    Retrying,
    Disabled,
    Gone,
    Parked,
}

fn shown(api: &Api, app: AppNo, stored: Stored, secret: Option<String>) -> Webhook {
    let now = api.engine.clock.now();
    let status = api.webhooks.status(app, &stored.id);
    let progress = &stored.progress;
    let epoch = api.engine.store.epoch();
    let signs_until = stored.signing(now).map(|secret| secret.until.map(Time)).collect();
    Webhook {
        state: state(&stored, status),
        cursor: cursors::of_receipt(&*api.engine.store, epoch, progress.position),
        lag_secs: status.waiting_since.map_or(0, |since| now.saturating_sub(since) / 1_000),
        delivered_at: progress.delivered_at.map(Time),
        events_delivered: progress.delivered,
        events_failed: progress.given_up,
        failed_attempts: progress.attempts,
        failing_since: progress.failing_since.map(Time),
        next_attempt_at: Some(progress.next_at).filter(|at| *at > now && stored.stopped.is_none()).map(Time),
        enabled: stored.stopped != Some(WebhookStop::ByOwner),
        created_at: Time(stored.created_at),
        batch_max: stored.settings.batch_max,
        secrets_sign_until: signs_until,
        id: stored.id,
        url: stored.settings.url,
        events: stored.settings.steps,
        secret,
    }
}

fn state(stored: &Stored, status: Status) -> WebhookState {
    match stored.stopped {
        Some(WebhookStop::ByOwner) => WebhookState::Disabled,
        Some(WebhookStop::Gone) => WebhookState::Gone,
        None if status.is_parked => WebhookState::Parked,
        None if stored.progress.attempts > 0 => WebhookState::Retrying,
        None => WebhookState::Active,
    }
}

fn check_id(id: &str) -> Result<(), ApiError> {
    let fits = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    if id.is_empty() || id.len() > 64 || !id.bytes().all(fits) {
        return Err(Code::InvalidParameter.at("id", "1 to 64 letters, digits, `-`, `_` or `.`."));
    }
    Ok(())
}

fn stored(api: &Api, app: AppNo, id: &str) -> Result<Stored, ApiError> {
    api.engine.store.webhook(app, id).ok_or_else(|| Code::NoSuchWebhook.into())
}

fn read_secret(text: &str) -> Result<Secret, ApiError> {
    Secret::parse(text).map_err(|why| Code::InvalidField.at("/secret", why.to_string()))
}

fn unavailable(why: SecretError) -> ApiError {
    tracing::error!(%why, "a webhook's secret is not to be had");
    Code::SecretsUnavailable.into()
}

async fn settings(api: &Api, request: &WebhookRequest) -> Result<WebhookSettings, ApiError> {
    let batch_max = request.batch_max.unwrap_or(BATCH_DEFAULT);
    if !(1..=BATCH_MAX).contains(&batch_max) {
        return Err(Code::InvalidField.at("/batch_max", format!("`batch_max` is from 1 to {BATCH_MAX}.")));
    }
    let mut steps = request.events.clone();
    steps.sort_unstable();
    steps.dedup();
    let refused =
        |why: postrider_outbound::guard::BadUrl| Code::WebhookUrlRefused.at("/url", why.to_string());
    api.webhooks.check_url(&request.url).await.map_err(refused)?;
    Ok(WebhookSettings { url: request.url.clone(), steps, batch_max })
}

/// Secrets of a webhook with a new one in front; those before it sign until `until`.
fn rotated(
    old: &[SealedSecret],
    new: SealedSecret,
    (now, until): (UnixMillis, UnixMillis),
) -> Vec<SealedSecret> {
    let older = old.iter().map(|secret| {
        let ends = secret.until.map_or(until, |ends| ends.min(until));
        SealedSecret { until: Some(ends), ..secret.clone() }
    });
    let older = older.filter(|secret| secret.until.is_some_and(|ends| ends > now));
    std::iter::once(new).chain(older).take(SECRETS_MAX).collect()
}

fn new_secret(api: &Api) -> Result<Secret, ApiError> {
    Secret::of_bytes(&api.engine.chance.bytes::<32>()).map_err(|_| Code::Internal.into())
}

/// What came of one try to change a webhook.
enum Changed {
    Done,
    /// Somebody else was faster.
    Stale,
}

async fn submit(api: &Api, put: PutWebhook) -> Result<Changed, ApiError> {
    let (app, id, max) = (put.app, put.id.clone(), put.webhooks_max);
    let outcomes = ask(|done| api.engine.put_webhook(put, done)).await??;
    match outcomes.first() {
        Some(Outcome::Done) => {
            api.webhooks.changed(app, &id);
            Ok(Changed::Done)
        }
        Some(Outcome::Refused(Refusal::Stale)) => Ok(Changed::Stale),
        Some(Outcome::Refused(Refusal::NoSuchApp)) => Err(Code::NoSuchApp.into()),
        Some(Outcome::Refused(Refusal::QuotaExceeded)) => {
            Err(Code::WebhookQuota.because(format!("An app has at most {max} webhooks.")))
        }
        other => Err(unexpected(other)),
    }
}

fn unexpected(outcome: Option<&Outcome>) -> ApiError {
    StoreError::Failed(format!("unexpected outcome {outcome:?}")).into()
}

pub async fn put(
    ByApp(app, _): ByApp<Manages>,
    State(api): State<Api>,
    Path(id): Path<String>,
    Body(request): Body<WebhookRequest>,
) -> Result<Json<Webhook>, ApiError> {
    check_id(&id)?;
    let given = request.secret.as_deref().map(read_secret).transpose()?;
    let settings = settings(&api, &request).await?;
    for _ in 0..TRIES {
        let old = api.engine.store.webhook(app, &id);
        let now = api.engine.clock.now();
        let seal = |secret: &Secret| api.webhooks.seal(app, &id, secret).map_err(unavailable);
        let (secrets, made) = match (&old, &given) {
            (Some(old), None) => (old.secrets.clone(), None),
            (Some(old), Some(given)) if api.webhooks.signs_with(app, old, given) => {
                (old.secrets.clone(), None)
            }
            (Some(old), Some(given)) => {
                (rotated(&old.secrets, seal(given)?, (now, now + OVERLAP_SECS * 1_000)), None)
            }
            (None, Some(given)) => (vec![seal(given)?], None),
            (None, None) => {
                let secret = new_secret(&api)?;
                (vec![seal(&secret)?], Some(secret.text().to_string()))
            }
        };
        let put = PutWebhook {
            app,
            id: id.clone(),
            seen: old.as_ref().map_or(0, |old| old.version),
            settings: settings.clone(),
            secrets,
            enabled: request.enabled,
            webhooks_max: api.limits.webhooks_max,
            now,
        };
        if let Changed::Done = submit(&api, put).await? {
            return Ok(Json(shown(&api, app, stored(&api, app, &id)?, made)));
        }
    }
    Err(Code::WebhookChanged.into())
}

/// The webhooks of an app.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookList {
    webhooks: Vec<Webhook>,
}

pub async fn list(ByApp(app, _): ByApp<Reads>, State(api): State<Api>) -> Json<WebhookList> {
    let all = api.engine.store.webhooks(app);
    Json(WebhookList { webhooks: all.into_iter().map(|stored| shown(&api, app, stored, None)).collect() })
}

pub async fn show(
    ByApp(app, _): ByApp<Reads>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Webhook>, ApiError> {
    Ok(Json(shown(&api, app, stored(&api, app, &id)?, None)))
}

pub async fn remove(
    ByApp(app, _): ByApp<Manages>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let outcomes = ask(|done| api.engine.drop_webhook(app, &id, done)).await??;
    api.webhooks.changed(app, &id);
    match outcomes.first() {
        Some(Outcome::Done) => Ok(StatusCode::NO_CONTENT),
        Some(Outcome::Refused(_)) => Err(Code::NoSuchWebhook.into()),
        other => Err(unexpected(other)),
    }
}

/// What a test event came to. Of what the receiver answered, nothing else is told.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookTested {
    /// `status_2xx` where the receiver took it; else as in the list of failures.
    outcome: &'static str,
    duration_ms: u64,
}

pub async fn test(
    ByApp(app, _): ByApp<Manages>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<WebhookTested>, ApiError> {
    let webhook = stored(&api, app, &id)?;
    let tested = api.webhooks.test(app, &webhook).await;
    let tested = tested.ok_or_else(|| Code::WebhookTestUnderWay.retry_after(1))?.map_err(unavailable)?;
    Ok(Json(WebhookTested { outcome: tested.outcome, duration_ms: tested.took.as_millis() as u64 }))
}

/// Another secret for a webhook.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebhookSecretRequest {
    /// Left out: the server makes one.
    secret: Option<String>,
    /// How long the ones before still sign beside it; 0: no longer. A day where nothing is said.
    overlap_secs: Option<u64>,
}

impl Input for WebhookSecretRequest {}

/// The new secret: shown this once.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookSecret {
    secret: String,
    /// Until when the one before signs too.
    #[schema(value_type = String, format = DateTime)]
    previous_signs_until: Time,
}

pub async fn rotate(
    ByApp(app, _): ByApp<Manages>,
    State(api): State<Api>,
    Path(id): Path<String>,
    OptionalBody(request): OptionalBody<WebhookSecretRequest>,
) -> Result<Json<WebhookSecret>, ApiError> {
    let overlap = request.overlap_secs.unwrap_or(OVERLAP_SECS);
    if overlap > OVERLAP_SECS_MAX {
        let why = format!("`overlap_secs` is at most {OVERLAP_SECS_MAX}.");
        return Err(Code::InvalidField.at("/overlap_secs", why));
    }
    let given = request.secret.as_deref().map(read_secret).transpose()?;
    let secret = given.map_or_else(|| new_secret(&api), Ok)?;
    for _ in 0..TRIES {
        let old = stored(&api, app, &id)?;
        let now = api.engine.clock.now();
        let until = now + overlap * 1_000;
        let sealed = api.webhooks.seal(app, &id, &secret).map_err(unavailable)?;
        let put = PutWebhook {
            app,
            id: id.clone(),
            seen: old.version,
            secrets: rotated(&old.secrets, sealed, (now, until)),
            settings: old.settings,
            enabled: old.stopped.is_none(),
            webhooks_max: api.limits.webhooks_max,
            now,
        };
        if let Changed::Done = submit(&api, put).await? {
            let text = secret.text().to_string();
            return Ok(Json(WebhookSecret { secret: text, previous_signs_until: Time(until) }));
        }
    }
    Err(Code::WebhookChanged.into())
}

/// From where on events are sent again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// A cursor of `GET /v1/events` or of an event, or a time: RFC 3339, or milliseconds since
    /// 1970.
    from: String,
}

impl Input for ReplayRequest {}

pub async fn replay(
    ByApp(app, _): ByApp<Manages>,
    State(api): State<Api>,
    Path(id): Path<String>,
    Body(request): Body<ReplayRequest>,
) -> Result<Json<Webhook>, ApiError> {
    stored(&api, app, &id)?;
    let position = match times::parse_time(&request.from) {
        Some(at) => {
            let store = api.engine.store.clone();
            super::aside(move || store.receipt_before(at)).await??
        }
        None => cursors::read_receipt(&api, &request.from).map_err(|error| match error.code {
            Code::InvalidCursor => {
                Code::InvalidField.at("/from", "A cursor of `GET /v1/events`, or a time in RFC 3339.")
            }
            _ => error,
        })?,
    };
    let outcomes = ask(|done| api.engine.replay_webhook(app, &id, position, done)).await??;
    api.webhooks.changed(app, &id);
    match outcomes.first() {
        Some(Outcome::Done) => Ok(Json(shown(&api, app, stored(&api, app, &id)?, None))),
        Some(Outcome::Refused(_)) => Err(Code::NoSuchWebhook.into()),
        other => Err(unexpected(other)),
    }
}

/// The last attempts of a webhook that failed, the newest first: at most 50.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookFailures {
    failures: Vec<WebhookFailure>,
}

/// An attempt that failed.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookFailure {
    #[schema(value_type = String, format = DateTime)]
    at: Time,
    /// `status_3xx`, `status_4xx`, `status_5xx`, `gone`, `timeout`, `connect`, `tls`, `lookup`,
    /// `address_refused`, `url_refused`, `broken`; `no_longer_kept`: the events were too old.
    outcome: String,
    /// From 1; 0 where nothing was tried.
    attempt: u32,
    /// The header `webhook-id` of the request; empty where there was none.
    webhook_id: String,
    events: u32,
    /// The events will not be sent any more.
    gave_up: bool,
}

pub async fn failures(
    ByApp(app, _): ByApp<Reads>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<WebhookFailures>, ApiError> {
    let failures = stored(&api, app, &id)?.failures.into_iter().rev().map(|failure| WebhookFailure {
        at: Time(failure.at),
        outcome: failure.what,
        attempt: failure.attempt,
        webhook_id: failure.request_id,
        events: failure.events,
        gave_up: failure.gave_up,
    });
    Ok(Json(WebhookFailures { failures: failures.collect() }))
}
