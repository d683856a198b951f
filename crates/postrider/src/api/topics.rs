//! Topics: publish as the app's server, and look who listens.

use super::auth::{ByApp, Reads, Sends};
use super::error::{ApiError, Code};
use super::json::{Body, Input, Path, Query, on_one_line};
use super::{Api, Time, ask, idempotency_key};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use postrider_core::delivery::accept::check_name;
use postrider_core::delivery::publish::{Publish, Taken};
use postrider_core::id::{AppNo, UnixMillis};
use postrider_core::model::{Content, ContentProperties};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;
use utoipa::ToSchema;

/// L12.
const TOPIC_BYTES_MAX: usize = 512;
const TOPIC_LEVELS_MAX: usize = 16;

/// A message for a topic: exactly one of the three payloads.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// The topic, where the path does not name it.
    topic: Option<String>,
    /// As it is, in UTF-8.
    payload_text: Option<String>,
    /// Any bytes, in base64.
    payload_base64: Option<String>,
    /// Any JSON value; its text is the payload.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Value>)]
    payload_json: Option<Box<RawValue>>,
    /// 0, 1 (where nothing is said) or 2.
    qos: Option<u8>,
    /// Keep it on the topic for those who subscribe later; an empty payload takes the kept one away.
    #[serde(default)]
    retain: bool,
    expiry_secs: Option<u32>,
    content_type: Option<String>,
}

impl Input for PublishRequest {}

/// A null is a payload too.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// A message was published.
#[derive(Debug, Serialize, ToSchema)]
pub struct Published {
    topic: String,
    /// Sessions that it went to, connected or not.
    sessions: usize,
    /// The request was a repetition: nothing was done, this is the first answer.
    #[serde(skip_serializing_if = "super::is_false")]
    repeated: bool,
}

/// `POST /v1/topics/{topic}/publish`.
pub async fn publish(
    ByApp(app, caller): ByApp<Sends>,
    State(api): State<Api>,
    Path(topic): Path<String>,
    headers: HeaderMap,
    Body(request): Body<PublishRequest>,
) -> Result<(StatusCode, Json<Published>), ApiError> {
    if request.topic.as_ref().is_some_and(|named| *named != topic) {
        return Err(Code::InvalidField.at("/topic", "The path names another topic."));
    }
    let key = (caller.idempotency_owner(), idempotency_key(&headers)?);
    publish_to(&api, app, key, topic, request).await
}

/// `POST /v1/topics/publish`: the same behind proxies that decode paths, where `%2F` becomes `/`.
pub async fn publish_named(
    ByApp(app, caller): ByApp<Sends>,
    State(api): State<Api>,
    headers: HeaderMap,
    Body(mut request): Body<PublishRequest>,
) -> Result<(StatusCode, Json<Published>), ApiError> {
    let topic = request.topic.take();
    let topic = topic.ok_or_else(|| Code::InvalidField.at("/topic", "The body has to name the `topic`."))?;
    let key = (caller.idempotency_owner(), idempotency_key(&headers)?);
    publish_to(&api, app, key, topic, request).await
}

async fn publish_to(
    api: &Api,
    app: AppNo,
    (owner, key): (u128, Option<String>),
    topic: String,
    request: PublishRequest,
) -> Result<(StatusCode, Json<Published>), ApiError> {
    check_topic(&topic)?;
    check_key(api, key.as_deref())?;
    let qos = request.qos.unwrap_or(1);
    if qos > 2 {
        return Err(Code::InvalidField.at("/qos", "`qos` is 0, 1 or 2."));
    }
    if request.content_type.as_ref().is_some_and(|t| t.len() > 128 || t.chars().any(char::is_control)) {
        return Err(Code::InvalidField.at("/content_type", "At most 128 bytes, without control characters."));
    }
    let payload = payload(&request)?;
    let json = request.payload_json.is_some();
    super::messages::charge(api, app, 1)?;
    let properties = ContentProperties {
        payload_is_utf8: request.payload_base64.is_none(),
        expires: request.expiry_secs.is_some(),
        content_type: request.content_type.or_else(|| json.then(|| JSON.to_owned())),
        ..ContentProperties::default()
    };
    let content = Content { topic: Some(topic.clone()), payload, properties: Some(Box::new(properties)) };
    let publish =
        Publish { content: Arc::new(content), qos, retain: request.retain, expiry_secs: request.expiry_secs };
    let mut refused = None;
    let answer = ask(|done: Box<dyn FnOnce(_) + Send>| {
        refused = match &key {
            Some(key) => {
                let key = (owner, key.as_str());
                api.engine.publish_once(app, publish, key, done).err()
            }
            None => {
                let told = |sessions: Result<_, _>| {
                    done(sessions.map(|sessions| Taken { sessions, repeated: false }));
                };
                api.engine.publish_from_app(app, publish, Box::new(told)).err()
            }
        };
    })
    .await;
    if let Some(error) = refused {
        return Err(error.into());
    }
    let Taken { sessions, repeated } = answer??;
    Ok((StatusCode::ACCEPTED, Json(Published { topic, sessions, repeated })))
}

/// What `payload_json` is, where the request says nothing else.
const JSON: &str = "application/json";

fn check_key(api: &Api, key: Option<&str>) -> Result<(), ApiError> {
    let max = api.engine.limits.idempotency_key_bytes_max;
    Ok(check_name("Idempotency-Key", key, max)?)
}

fn payload(request: &PublishRequest) -> Result<Bytes, ApiError> {
    match (&request.payload_text, &request.payload_base64, &request.payload_json) {
        (Some(text), None, None) => Ok(Bytes::from(text.clone())),
        (None, Some(base64), None) => from_base64("/payload_base64", base64),
        (None, None, Some(json)) => Ok(Bytes::copy_from_slice(on_one_line(json.clone()).get().as_bytes())),
        _ => Err(Code::InvalidField
            .at("/payload_text", "Exactly one of `payload_text`, `payload_base64` and `payload_json`.")),
    }
}

/// Base64 as RFC 4648 has it, with padding.
pub fn from_base64(field: &str, text: &str) -> Result<Bytes, ApiError> {
    let bytes = BASE64_STANDARD.decode(text);
    bytes.map(Bytes::from).map_err(|error| Code::InvalidField.at(field, format!("Not base64: {error}.")))
}

/// Topics that begin with `$` are the server's own.
fn check_topic(topic: &str) -> Result<(), ApiError> {
    let why = if topic.is_empty() {
        "A topic has at least one letter."
    } else if topic.len() > TOPIC_BYTES_MAX {
        "A topic has at most 512 bytes."
    } else if topic.split('/').count() > TOPIC_LEVELS_MAX {
        "A topic has at most 16 levels."
    } else if topic.contains(['+', '#']) {
        "A topic to publish to has no wildcards."
    } else if topic.starts_with('$') {
        "Topics that begin with `$` belong to the server."
    } else if topic.chars().any(|c| c.is_control() || c == '\u{fffd}') {
        "A topic has no control characters."
    } else {
        return Ok(());
    };
    Err(Code::InvalidTopic.at("topic", why))
}

/// A topic.
#[derive(Debug, Serialize, ToSchema)]
pub struct Topic {
    topic: String,
    /// Sessions that subscribe to it, connected or not.
    subscribers: usize,
    retained: Option<RetainedMessage>,
}

/// The message that waits on the topic for new subscribers.
#[derive(Debug, Serialize, ToSchema)]
pub struct RetainedMessage {
    qos: u8,
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Time>,
}

/// `GET /v1/topics/{topic}`.
pub async fn show(
    ByApp(app, _): ByApp<Reads>,
    State(api): State<Api>,
    Path(topic): Path<String>,
) -> Result<Json<Topic>, ApiError> {
    look_at(&api, app, topic)
}

/// `GET /v1/topics/publish`: a topic with the name of the call beside it.
pub async fn show_publish(
    ByApp(app, _): ByApp<Reads>,
    State(api): State<Api>,
) -> Result<Json<Topic>, ApiError> {
    look_at(&api, app, "publish".into())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicQuery {
    topic: String,
}

/// `GET /v1/topics`: the topic that the query names.
pub async fn show_named(
    ByApp(app, _): ByApp<Reads>,
    State(api): State<Api>,
    Query(query): Query<TopicQuery>,
) -> Result<Json<Topic>, ApiError> {
    look_at(&api, app, query.topic)
}

fn look_at(api: &Api, app: AppNo, topic: String) -> Result<Json<Topic>, ApiError> {
    check_topic(&topic)?;
    let engine = &api.engine;
    let retained = engine.store.retained(app, &topic, 1, engine.clock.now()).into_iter().next();
    let retained = retained.map(|r| RetainedMessage {
        qos: r.qos,
        expires_at: Some(r.expires_at).filter(|at| *at != UnixMillis::MAX).map(Time),
    });
    Ok(Json(Topic { subscribers: engine.topic_subscribers(app, &topic), topic, retained }))
}
