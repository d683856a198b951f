//! What became of messages: reports, lists, deliveries; cancelling; and what devices tell of theirs.

use super::auth::{ByApp, ByReceiver, Reads, Sends};
use super::error::{ApiError, Code};
use super::events::reason;
use super::json::{Body, Input, Path, Query};
use super::{Api, Time, ask, cursors, page_of, page_size};
use axum::Json;
use axum::extract::State;
use postrider_core::command::{Outcome, Refusal};
use postrider_core::delivery::receipt::{DeviceReceipt, ReceiptSource};
use postrider_core::id::*;
use postrider_core::model::{Priority, Step, Submission};
use postrider_core::port::{self, DeliveryView, MessageView, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A message and what became of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Message {
    message_id: String,
    #[schema(value_type = String, format = DateTime)]
    accepted_at: Time,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    cancelled_at: Option<Time>,
    #[schema(schema_with = super::openapi::priority)]
    priority: Priority,
    collapse_key: Option<String>,
    /// Devices that it was for.
    targeted: u64,
    /// Deliveries by the state they are in; their sum is `targeted`.
    states: BTreeMap<&'static str, u64>,
    /// Deliveries that ever came to a step.
    reached: BTreeMap<&'static str, u64>,
    reasons: Vec<ReasonCount>,
    /// Id of the key that sent it.
    sent_by: Option<String>,
    /// Whom it was for, as its sender said it; lists of names are cut after ten.
    #[schema(value_type = Option<Object>)]
    audience: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    exclude: Option<Box<RawValue>>,
    /// Title and text of its notification, cut where they are long; only where `limits.report_texts` is on.
    title: Option<String>,
    body: Option<String>,
}

/// How many deliveries ended in a state for a reason.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReasonCount {
    #[schema(schema_with = super::openapi::step)]
    state: &'static str,
    #[schema(schema_with = super::openapi::reason)]
    reason: &'static str,
    count: u64,
}

impl Message {
    pub fn of(view: MessageView, sent: Option<&Submission>) -> Message {
        let named = |of: [u64; Step::ALL.len()]| {
            let all = Step::ALL.into_iter().map(|step| (step.name(), of[step as usize]));
            all.filter(|(_, n)| *n > 0).collect()
        };
        let reasons = view.reasons.into_iter().map(|(step, reason, count)| ReasonCount {
            state: step.name(),
            reason: reason.name(),
            count,
        });
        Message {
            message_id: view.id.to_string(),
            accepted_at: Time(view.accepted_at),
            expires_at: Time(view.expires_at),
            cancelled_at: view.cancelled_at.map(Time),
            priority: view.priority,
            collapse_key: view.collapse_key,
            targeted: view.targeted,
            states: named(view.now),
            reached: named(view.reached),
            reasons: reasons.collect(),
            sent_by: sent.map(|s| s.key.clone()).filter(|key| !key.is_empty()),
            audience: sent.and_then(|s| RawValue::from_string(s.audience.clone()).ok()),
            exclude: sent.and_then(|s| RawValue::from_string(s.exclude.clone()?).ok()),
            title: sent.and_then(|s| s.title.clone()),
            body: sent.and_then(|s| s.body.clone()),
        }
    }
}

/// A text that is not an id names no message.
pub fn message_id(text: &str) -> Result<MessageId, ApiError> {
    text.parse().map_err(|()| Code::NoSuchMessage.into())
}

fn known(api: &Api, app: AppNo, id: MessageId) -> Result<(), ApiError> {
    api.engine.store.knows_message(app, id).then_some(()).ok_or_else(|| Code::NoSuchMessage.into())
}

pub async fn show(
    ByApp(app, _): ByApp<Reads>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Message>, ApiError> {
    let view = api.engine.store.message(app, message_id(&id)?).ok_or(Code::NoSuchMessage)?;
    let engine = api.engine.clone();
    let shown = move || {
        let sent = engine.submission(app, &view);
        Message::of(view, sent.as_deref())
    };
    Ok(Json(super::aside(shown).await?))
}

/// One delivery: a message on its way to a device.
#[derive(Debug, Serialize, ToSchema)]
pub struct Delivery {
    /// Null where the device was deleted.
    device_id: Option<String>,
    #[schema(schema_with = super::openapi::step)]
    state: Step,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = super::openapi::reason, required = false)]
    reason: Option<&'static str>,
    /// Every step, in order of time.
    timeline: Vec<Moment>,
}

/// A step of a delivery.
#[derive(Debug, Serialize, ToSchema)]
pub struct Moment {
    #[schema(schema_with = super::openapi::step)]
    step: Step,
    #[schema(value_type = String, format = DateTime)]
    at: Time,
    /// The same, in milliseconds since 1970.
    at_unix_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = super::openapi::reason, required = false)]
    reason: Option<&'static str>,
    /// Of `forwarded`: the road that it went.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    road: Option<String>,
}

impl Delivery {
    pub fn of(view: DeliveryView, device_id: Option<String>) -> Delivery {
        let moment = |moment: port::Moment| Moment {
            step: moment.step,
            at: Time(moment.at),
            at_unix_ms: moment.at,
            reason: reason(moment.reason),
            road: moment.road.map(|road| road.to_string()),
        };
        Delivery {
            device_id,
            state: view.step,
            reason: reason(view.reason),
            timeline: view.timeline.into_iter().map(moment).collect(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeliveryQuery {
    state: Option<Step>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// A page of deliveries of one message.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryPage {
    deliveries: Vec<Delivery>,
    /// Give it back as `cursor` for the next page; null on the last one.
    next_cursor: Option<String>,
}

pub async fn deliveries(
    ByApp(app, _): ByApp<Reads>,
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<DeliveryQuery>,
) -> Result<Json<DeliveryPage>, ApiError> {
    let id = message_id(&id)?;
    let store = &api.engine.store;
    known(&api, app, id)?;
    let limit = page_size(&api, query.limit)?;
    let after = cursors::read_list(&api, "delivery-", query.cursor.as_deref())?.map(|no| DeviceNo(no as u32));
    let reader = store.clone();
    let views = super::aside(move || reader.deliveries(app, id, query.state, after, limit + 1)).await?;
    let (views, next_cursor) =
        page_of(views, limit, |v| cursors::of_list(&api, "delivery-", v.device.0.into()));
    let devices: Vec<DeviceNo> = views.iter().map(|v| v.device).collect();
    let ids = store.device_ids(app, &devices);
    let deliveries = views.into_iter().zip(ids).map(|(view, id)| Delivery::of(view, id)).collect();
    Ok(Json(DeliveryPage { deliveries, next_cursor }))
}

pub async fn delivery(
    ByApp(app, _): ByApp<Reads>,
    State(api): State<Api>,
    Path((id, device)): Path<(String, String)>,
) -> Result<Json<Delivery>, ApiError> {
    let id = message_id(&id)?;
    let store = &api.engine.store;
    known(&api, app, id)?;
    let at = store.device_by_id(app, &device).ok_or(Code::NoSuchDevice)?;
    let view = store.delivery(app, id, at.device).ok_or(Code::NoSuchDelivery)?;
    Ok(Json(Delivery::of(view, Some(device))))
}

/// A message was cancelled.
#[derive(Debug, Serialize, ToSchema)]
pub struct Cancelled {
    message_id: String,
    /// Deliveries that were still open and are not made any more.
    cancelled: u64,
}

pub async fn cancel(
    ByApp(app, _): ByApp<Sends>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Cancelled>, ApiError> {
    let message = message_id(&id)?;
    match ask(|done| api.engine.cancel(app, message, done)).await??.first() {
        Some(Outcome::Cancelled { open }) => Ok(Json(Cancelled { message_id: id, cancelled: *open })),
        Some(Outcome::Refused(Refusal::NoSuchMessage)) => Err(Code::NoSuchMessage.into()),
        other => Err(StoreError::Failed(format!("unexpected outcome {other:?}")).into()),
    }
}

/// What the app on the device did with a message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReceiptRequest {
    step: ReceiptStep,
}

impl Input for ReceiptRequest {}

/// The steps that a device may tell of.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReceiptStep {
    Delivered,
    Displayed,
    Dismissed,
    Replied,
    Clicked,
}

/// A receipt was recorded.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReceiptTaken {
    /// False where the step was known already, or came too late to count.
    recorded: bool,
}

pub async fn receipt(
    ByReceiver { at, .. }: ByReceiver,
    State(api): State<Api>,
    Path(id): Path<String>,
    Body(request): Body<ReceiptRequest>,
) -> Result<Json<ReceiptTaken>, ApiError> {
    let message = message_id(&id)?;
    // Whether a message that is not the device's exists is none of its business.
    api.engine.store.delivery(at.app, message, at.device).ok_or(Code::NoSuchMessage)?;
    let step = match request.step {
        ReceiptStep::Delivered => Step::Delivered,
        ReceiptStep::Displayed => Step::Displayed,
        ReceiptStep::Dismissed => Step::Dismissed,
        ReceiptStep::Replied => Step::Replied,
        ReceiptStep::Clicked => Step::Clicked,
    };
    let receipts = [DeviceReceipt { message, step }];
    let record = |done| api.engine.record_receipts(ReceiptSource::App { at, receipts: &receipts, done });
    let taken = ask(record).await??;
    Ok(Json(ReceiptTaken { recorded: taken > 0 }))
}
