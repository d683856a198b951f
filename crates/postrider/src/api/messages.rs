//! Messages: send one or many, estimate an audience. What became of them is told by `reports`.

use super::auth::{ByApp, Key, Reads, Sends};
use super::error::{ApiError, Code, Problem};
use super::json::{self, Body, Input, RawBody};
use super::topics::from_base64;
use super::warnings::{self, Warning, WarningCode};
use super::{Api, ApiLimits, aside, ask, idempotency_key};
use crate::planted;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use postrider_core::audience::{Audience, Verdict};
use postrider_core::delivery::accept::{AcceptError, Accepted, Push, PushData};
use postrider_core::delivery::request::digest;
use postrider_core::id::*;
use postrider_core::model::{Backlog, Priority};
use postrider_core::port::StoreError;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A message to send.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageRequest {
    #[schema(schema_with = super::openapi::audience)]
    audience: Audience,
    /// Devices of the audience that are not to get it.
    #[schema(schema_with = super::openapi::audience, required = false)]
    exclude: Option<Audience>,
    notification: Option<Notification>,
    /// Any JSON value, for the app on the device; travels in the envelope.
    #[schema(value_type = Option<Value>)]
    data: Option<Box<RawValue>>,
    /// Instead of all that: the payload as it is, without an envelope.
    data_text: Option<String>,
    /// The same, for any bytes, in base64.
    data_base64: Option<String>,
    /// Seconds until it is no longer worth delivering: up to 2,592,000, where nothing is said 2,419,200. 0: only to
    /// devices that are connected now.
    ttl_secs: Option<u64>,
    /// Of messages with the same key, devices keep only the newest (see `backlog`).
    collapse_key: Option<String>,
    #[schema(schema_with = super::openapi::priority, required = false)]
    priority: Option<Priority>,
    /// How many pending messages of its collapse key a device keeps: `"all"`, `"latest"` or `{"last": n}`.
    #[schema(schema_with = super::openapi::backlog, required = false)]
    backlog: Option<Backlog>,
    durability: Option<Durability>,
    on_full: Option<OnFull>,
    /// As the header Idempotency-Key; for the messages of a batch.
    idempotency_key: Option<String>,
}

impl Input for MessageRequest {}

/// What is shown to the user.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Notification {
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subtitle: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// Address of a picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icon: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    color: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sound: Option<String>,
    /// The number on the app's icon.
    #[serde(skip_serializing_if = "Option::is_none")]
    badge: Option<u32>,
    /// Shown together with others of the group.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    /// The app's kind of notification, as users configure it.
    #[serde(skip_serializing_if = "Option::is_none")]
    category: Option<String>,
    /// What a tap opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    click: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actions: Option<Vec<Action>>,
}

/// A button of a notification.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Action {
    id: String,
    title: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    icon: Option<String>,
    /// What a tap on it opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    click: Option<String>,
}

/// `synced`: on stable storage before the answer. `transient`: to devices connected now, without being stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    Synced,
    Transient,
}

/// What happens where a device's inbox is full: its oldest message goes, or this one does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFull {
    Evict,
    Reject,
}

/// A message was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct AcceptedMessage {
    message_id: String,
    /// Devices that it is for.
    targeted: u64,
    /// What was done: `transient` also where `ttl_secs` is 0.
    durability: Durability,
    /// Devices that had no room, where the message asked not to evict.
    #[serde(skip_serializing_if = "Option::is_none")]
    inbox_full: Option<u64>,
    /// The request was a repetition: nothing was done, this is the first answer.
    #[serde(skip_serializing_if = "super::is_false")]
    repeated: bool,
    /// Ids and aliases of the audience, and of what it excludes, that no device of the app has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    unknown: Vec<String>,
    /// What is odd about the audience, such as a tag that no device has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    warnings: Vec<Warning>,
}

impl From<Accepted> for AcceptedMessage {
    fn from(accepted: Accepted) -> AcceptedMessage {
        let nobody = match accepted.transient {
            true => WarningCode::NobodyConnected,
            false => WarningCode::NobodyTargeted,
        };
        let nobody = (accepted.targeted == 0).then_some(nobody);
        let (unknown, warnings) = warnings::of(accepted.unmatched, nobody);
        AcceptedMessage {
            message_id: accepted.id.to_string(),
            targeted: accepted.targeted,
            durability: if accepted.transient { Durability::Transient } else { Durability::Synced },
            inbox_full: Some(accepted.full).filter(|n| *n > 0),
            repeated: accepted.repeated,
            unknown,
            warnings,
        }
    }
}

/// Takes messages out of the app's allowance (L35, A32: of the app, whatever key is used).
pub fn charge(api: &Api, app: AppNo, messages: usize) -> Result<(), ApiError> {
    let allowed = api.pushes.take(app, messages as u64, api.engine.clock.now());
    allowed.map_err(|secs| Code::RateLimited.retry_after(secs))
}

/// Who sends.
struct Sender {
    key_id: String,
    idempotency_owner: u128,
}

impl Sender {
    fn of(key: &Key<Sends>) -> Sender {
        Sender { key_id: key.id().to_owned(), idempotency_owner: key.idempotency_owner() }
    }
}

fn push_of(request: MessageRequest, key: Option<String>, sender: &Sender) -> Result<Push, ApiError> {
    planted::panic_in("handler", request.data_text.as_deref().unwrap_or_default().as_bytes());
    let data = match (request.data, request.data_text, request.data_base64) {
        (data, None, None) => data.map(json::on_one_line).map(PushData::Json),
        (None, Some(text), None) => Some(PushData::Raw(Bytes::from(text))),
        (None, None, Some(base64)) => Some(PushData::Raw(from_base64("/data_base64", &base64)?)),
        _ => {
            let why = "At most one of `data`, `data_text` and `data_base64`.";
            return Err(Code::InvalidField.at("/data", why));
        }
    };
    let idempotency_key = match (key, request.idempotency_key) {
        (Some(_), Some(_)) => {
            let why = "Either the header or the field, not both.";
            return Err(Code::InvalidField.at("/idempotency_key", why));
        }
        (header, field) => header.or(field),
    };
    Ok(Push {
        audience: request.audience,
        exclude: request.exclude,
        notification: request.notification.map(shown).transpose()?,
        data,
        ttl_secs: request.ttl_secs,
        collapse_key: request.collapse_key,
        priority: request.priority.unwrap_or_default(),
        backlog: request.backlog,
        transient: request.durability == Some(Durability::Transient),
        reject_when_full: request.on_full == Some(OnFull::Reject),
        idempotency_key,
        idempotency_owner: sender.idempotency_owner,
        sent_by: sender.key_id.clone(),
    })
}

impl Notification {
    /// A title, a text, and where a tap leads.
    pub fn plain(title: Option<String>, body: Option<String>, click: Option<String>) -> Notification {
        Notification { title, body, click, ..Notification::default() }
    }
}

/// The notification as it goes out, without control characters (A35): it is shown by parsers that are not ours.
pub fn shown(notification: Notification) -> Result<Map<String, Value>, ApiError> {
    let Ok(Value::Object(map)) = serde_json::to_value(notification) else {
        return Err(Code::Internal.into());
    };
    let actions = map.get("actions").and_then(Value::as_array).into_iter().flatten();
    let fields = map.iter().chain(actions.filter_map(Value::as_object).flatten());
    for (name, value) in fields {
        let (has_lines, is_body) = (["title", "subtitle", "body"].contains(&&**name), name == "body");
        // Forms of web pages send CR LF.
        let fits = |c| (has_lines && (c == '\n' || c == '\r')) || (is_body && c == '\t');
        let bad = |c: char| c.is_control() && !fits(c);
        if value.as_str().is_some_and(|text| text.contains(bad)) {
            let other = if has_lines { " other than line breaks" } else { "" };
            let why = format!("`{name}` must not contain control characters{other}.");
            return Err(Code::InvalidField.at(format!("/notification/{name}"), why));
        }
    }
    Ok(map)
}

/// So many clauses of audiences are worked out at once on the way; more are, aside.
const CLAUSES_INLINE: usize = 4;

/// Each clause may be a set of a million devices: many of them must not keep other requests waiting.
async fn accept(
    api: &Api,
    app: AppNo,
    pushes: Vec<Push>,
) -> Result<Vec<Result<Accepted, AcceptError>>, ApiError> {
    let clauses = |push: &Push| push.audience.size().0 + push.exclude.as_ref().map_or(0, |e| e.size().0);
    if pushes.iter().map(clauses).sum::<usize>() <= CLAUSES_INLINE {
        return ask(|done| api.engine.accept(app, pushes, done)).await;
    }
    let engine = api.engine.clone();
    let (tell, told) = tokio::sync::oneshot::channel();
    aside(move || engine.accept(app, pushes, Box::new(move |results| _ = tell.send(results)))).await?;
    told.await.map_err(|_| Code::Unavailable.retry_after(1))
}

pub async fn send(
    ByApp(app, key): ByApp<Sends>,
    State(api): State<Api>,
    headers: HeaderMap,
    Body(request): Body<MessageRequest>,
) -> Result<(StatusCode, Json<AcceptedMessage>), ApiError> {
    let push = push_of(request, idempotency_key(&headers)?, &Sender::of(&key))?;
    charge(&api, app, 1)?;
    let results = accept(&api, app, vec![push]).await?;
    let accepted = results.into_iter().next().ok_or(Code::Internal)??;
    Ok((StatusCode::ACCEPTED, Json(accepted.into())))
}

/// Many messages, each standing for itself.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    /// At most 500.
    #[schema(max_items = 500)]
    messages: Vec<MessageRequest>,
}

impl Input for BatchRequest {
    fn bytes_max(limits: &ApiLimits) -> usize {
        limits.batch_bytes_max
    }
}

/// The results, in the order of the messages.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchResults {
    results: Vec<BatchResult>,
}

/// What came of one message of a batch.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum BatchResult {
    Accepted(AcceptedMessage),
    Refused(Problem),
}

impl From<Result<AcceptedMessage, ApiError>> for BatchResult {
    fn from(result: Result<AcceptedMessage, ApiError>) -> BatchResult {
        match result {
            Ok(accepted) => BatchResult::Accepted(accepted),
            Err(error) => BatchResult::Refused(error.problem()),
        }
    }
}

pub async fn send_batch(
    ByApp(app, key): ByApp<Sends>,
    State(api): State<Api>,
    headers: HeaderMap,
    RawBody(bytes, _): RawBody<BatchRequest>,
) -> Result<Json<BatchResults>, ApiError> {
    let requests = read_batch(&bytes)?;
    let max = api.limits.batch_max;
    if requests.is_empty() || requests.len() > max {
        return Err(Code::InvalidField.at("/messages", format!("From 1 to {max} messages.")));
    }
    let (batch_key, sender) = (idempotency_key(&headers)?, Sender::of(&key));
    if batch_key.as_ref().is_some_and(|key| key.len() > api.engine.limits.idempotency_key_bytes_max) {
        let max = api.engine.limits.idempotency_key_bytes_max;
        return Err(Code::InvalidHeader.at("Idempotency-Key", format!("At most {max} bytes.")));
    }
    charge(&api, app, requests.len())?;
    let mut pushes = Vec::with_capacity(requests.len());
    let mut refused = Vec::with_capacity(requests.len());
    for (i, request) in requests.into_iter().enumerate() {
        let push = request.and_then(|request| {
            // The key of the batch names each of its messages by its place.
            let of_batch = batch_key.as_ref().filter(|_| request.idempotency_key.is_none());
            let key = of_batch.map(|key| format!("{:032x}", digest(format!("batch\n{key}\n{i}").as_bytes())));
            push_of(request, key, &sender)
        });
        match push {
            Ok(push) => {
                pushes.push(push);
                refused.push(None);
            }
            Err(error) => refused.push(Some(error)),
        }
    }
    let mut accepted = accept(&api, app, pushes).await?.into_iter();
    let results = refused.into_iter().map(|refused| match refused {
        Some(error) => Err(error).into(),
        None => {
            let result = accepted.next().unwrap_or(Err(StoreError::Missing.into()));
            result.map(AcceptedMessage::from).map_err(ApiError::from).into()
        }
    });
    Ok(Json(BatchResults { results: results.collect() }))
}

/// The messages of a batch. A wrong one is refused alone: so where not all can be read at one go, each is read by itself.
fn read_batch(bytes: &[u8]) -> Result<Vec<Result<MessageRequest, ApiError>>, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OneByOne {
        messages: Vec<Box<RawValue>>,
    }

    if let Some(batch) = json::try_read::<BatchRequest>(bytes) {
        return Ok(batch.messages.into_iter().map(Ok).collect());
    }
    let batch: OneByOne = json::read_into(bytes)?;
    Ok(batch.messages.iter().map(|message| json::read_into(message.get().as_bytes())).collect())
}

/// An audience to estimate.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EstimateRequest {
    #[schema(schema_with = super::openapi::audience)]
    audience: Audience,
    #[schema(schema_with = super::openapi::audience, required = false)]
    exclude: Option<Audience>,
    /// The id of a device: is it in or out, and why?
    device: Option<String>,
}

impl Input for EstimateRequest {}

/// Whom a message would reach now.
#[derive(Debug, Serialize, ToSchema)]
pub struct Estimate {
    count: u64,
    connected: u64,
    by_platform: BTreeMap<&'static str, u64>,
    device: Option<DeviceVerdict>,
    /// Ids and aliases of the audience, and of what it excludes, that no device of the app has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    unknown: Vec<String>,
    /// What is odd about the audience, such as a tag that no device has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    warnings: Vec<Warning>,
}

/// How one device fares.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeviceVerdict {
    included: bool,
    /// The clause that decided, as a path into the expression.
    clause: String,
}

impl From<Verdict> for DeviceVerdict {
    fn from(verdict: Verdict) -> DeviceVerdict {
        DeviceVerdict { included: verdict.included, clause: verdict.clause }
    }
}

pub async fn estimate(
    ByApp(app, _): ByApp<Reads>,
    State(api): State<Api>,
    Body(request): Body<EstimateRequest>,
) -> Result<Json<Estimate>, ApiError> {
    let EstimateRequest { audience, exclude, device } = request;
    let engine = api.engine.clone();
    let estimate = move || engine.estimate(app, &audience, exclude.as_ref(), device.as_deref());
    let estimate = aside(estimate).await?;
    let estimate = estimate.map_err(|error| match ApiError::from(error) {
        e if e.code == Code::UnknownRecipient => Code::NoSuchDevice.at("/device", "No such device."),
        e => e,
    })?;
    let nobody = (estimate.count == 0).then_some(WarningCode::NobodyTargeted);
    let (unknown, warnings) = warnings::of(estimate.unmatched, nobody);
    Ok(Json(Estimate {
        count: estimate.count,
        connected: estimate.connected,
        by_platform: estimate.by_platform.into_iter().map(|(p, n)| (p.name(), n)).collect(),
        device: estimate.verdict.map(DeviceVerdict::from),
        unknown,
        warnings,
    }))
}
