//! The page for trying it out, and the browser SDK that it uses. The page is there where the setting `http.demo` says so: each
//! visitor gets a device of the default app and may send to that device, and to nobody else.

use super::auth::{ByDevice, Peer, charge_registration};
use super::error::{ApiError, Code};
use super::json::{Body, Input, Path, check_is_json, on_one_line};
use super::messages::{Notification, shown};
use super::reports::{Delivery, message_id};
use super::sockets::is_origin_allowed;
use super::{Api, ask, proof_keys};
use crate::platform::new_secret;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use include_dir::{Dir, include_dir};
use postrider_core::audience::Audience;
use postrider_core::delivery::accept::{Push, PushData};
use postrider_core::devices::NewDevice;
use postrider_core::model::{Origin, Platform, Profile};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

static PAGE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/demo");
static SDK: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/sdk");

/// What the page may load: its own files.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// How long a push of a visitor lives.
const TTL_SECS_MAX: u64 = 24 * 3_600;

fn enabled(api: &Api) -> Result<(), ApiError> {
    if api.limits.demo { Ok(()) } else { Err(Code::NoSuchRoute.into()) }
}

/// `GET /demo`.
pub async fn page(State(api): State<Api>) -> Result<Response, ApiError> {
    enabled(&api)?;
    file_of(&PAGE, "index.html", "no-cache")
}

/// `GET /demo/{file}`.
pub async fn file(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, ApiError> {
    enabled(&api)?;
    file_of(&PAGE, &name, "no-cache")
}

/// `GET /sdk/{file}`: always there; any page may load it.
pub async fn sdk(Path(name): Path<String>) -> Result<Response, ApiError> {
    let mut response = file_of(&SDK, &name, "public, max-age=3600")?;
    let anyone = (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response.headers_mut().insert(anyone.0, anyone.1);
    Ok(response)
}

fn file_of(dir: &Dir<'static>, name: &str, cache: &'static str) -> Result<Response, ApiError> {
    let file = dir.get_file(name).ok_or(Code::NoSuchRoute)?;
    let kind = match name.rsplit_once('.').map_or("", |(_, end)| end) {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "ts" => "application/typescript; charset=utf-8",
        "json" | "map" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "webmanifest" => "application/manifest+json",
        _ => "application/octet-stream",
    };
    let headers: [(HeaderName, &'static str); 4] = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, cache),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    Ok((headers, file.contents()).into_response())
}

/// A visitor's device.
#[derive(Debug, Serialize, ToSchema)]
pub struct Visitor {
    device_id: String,
    device_secret: String,
}

/// `POST /demo/devices`.
pub async fn register(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Visitor>), ApiError> {
    enabled(&api)?;
    // A page of another site can neither say that it sends JSON without asking first, nor be of this host.
    check_is_json(&headers)?;
    if !is_origin_allowed(&headers, &api.limits.origins) {
        return Err(Code::ForeignOrigin.into());
    }
    charge_registration(&api, peer.map(|Extension(peer)| peer), None)?;
    let secret = new_secret("", &*api.engine.chance);
    let profile = Profile { platform: Platform::Web, tags: vec!["demo".into()], ..Profile::default() };
    let proof_keys = proof_keys(&api, &secret).await?;
    let device = NewDevice {
        id: None,
        secret: secret.clone(),
        is_secret_brought: false,
        proof_keys,
        profile,
        origin: Origin::Demo,
        idempotency_key: None,
        idempotency_owner: 0,
    };
    let registered = super::devices::registered(&api, api.default_app, device).await?;
    let ids = api.engine.store.device_ids(api.default_app, &[registered.at.device]);
    let device_id = ids.into_iter().next().flatten().ok_or(Code::NoSuchDevice)?;
    Ok((StatusCode::CREATED, Json(Visitor { device_id, device_secret: secret })))
}

/// What a visitor sends to the own device.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OwnPush {
    notification: Option<Notification>,
    #[schema(value_type = Option<Object>)]
    data: Option<Box<RawValue>>,
    ttl_secs: Option<u64>,
}

impl Input for OwnPush {}

/// It was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct OwnMessage {
    message_id: String,
}

/// `POST /demo/push`.
pub async fn push(
    ByDevice(at): ByDevice,
    State(api): State<Api>,
    Body(request): Body<OwnPush>,
) -> Result<(StatusCode, Json<OwnMessage>), ApiError> {
    enabled(&api)?;
    let own = api.engine.store.device_ids(at.app, &[at.device]).into_iter().next().flatten();
    let push = Push {
        notification: request.notification.map(shown).transpose()?,
        data: request.data.map(on_one_line).map(PushData::Json),
        ttl_secs: Some(request.ttl_secs.unwrap_or(3_600).clamp(1, TTL_SECS_MAX)),
        ..Push::to(Audience::Device(own.ok_or(Code::BadCredentials)?))
    };
    let taken = api.pushes.take(at.app, 1, api.engine.clock.now());
    taken.map_err(|secs| Code::RateLimited.retry_after(secs))?;
    let mut results = ask(|done| api.engine.accept(at.app, vec![push], done)).await?;
    let accepted = results.pop().ok_or(Code::Internal)??;
    Ok((StatusCode::ACCEPTED, Json(OwnMessage { message_id: accepted.id.to_string() })))
}

/// `GET /demo/messages/{id}`.
pub async fn timeline(
    ByDevice(at): ByDevice,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Delivery>, ApiError> {
    enabled(&api)?;
    let delivery =
        api.engine.store.delivery(at.app, message_id(&id)?, at.device).ok_or(Code::NoSuchMessage)?;
    Ok(Json(Delivery::of(delivery, None)))
}
