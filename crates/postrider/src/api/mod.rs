//! The HTTP API: what app servers, operators and devices ask over HTTP. It translates and decides nothing.
//!
//! [`routes`] lists every route. A handler's first argument says whom it serves (`auth`), its others what it reads
//! (`json`: strictly), and every refusal is a row of one table (`error`). `openapi` describes the same routes; a test
//! holds the two together. The operations listener is `health`.

mod androidpn;
mod apps;
mod attributes;
pub mod auth;
mod conditional;
mod cursors;
mod demo;
mod device_list;
mod devices;
pub mod error;
pub mod errors_page;
mod events;
pub mod health;
mod inbox;
mod jobs;
pub mod json;
mod message_list;
mod messages;
mod objects;
pub mod openapi;
mod reports;
mod sockets;
mod start;
mod times;
mod topics;
mod trail;
mod turns;
pub mod warnings;
mod webhooks;
pub mod wording;

use crate::gateway::Door;
use crate::names::SealedNames;
use crate::platform::OsChance;
use crate::proof::Proofs;
use crate::tokens::Tokens;
use auth::Buckets;
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use error::{ApiError, Code};
pub use events::EventsChanged;
pub use health::ApiMetrics;
use postrider_core::Engine;
use postrider_core::id::{AppNo, DeviceRef, UnixMillis};
use postrider_core::model::ProofKeys;
use postrider_core::port::Store;
use postrider_outbound::webhooks::{Show, Webhooks};
use serde::{Serialize, Serializer};
use std::future::Future;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use trail::Trail;
use turns::{InTurns, Payer, Turn, Turns};

/// What all handlers share. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub engine: Engine,
    /// Told when the receipt stream grew: those who wait for events of the apps concerned look again.
    pub events_changed: Arc<EventsChanged>,
    pub limits: Arc<ApiLimits>,
    pub metrics: ApiMetrics,
    /// The app of devices that name none, as on the gateways.
    pub default_app: AppNo,
    /// Where sockets that stop speaking HTTP go.
    pub door: Arc<dyn Door>,
    pub tokens: Arc<Tokens>,
    pub proofs: Proofs,
    pub webhooks: Webhooks,
    /// `/openapi.json`, once somebody asked for it.
    document: Arc<OnceLock<String>>,
    failures: Arc<Buckets<IpAddr>>,
    pushes: Arc<Buckets<AppNo>>,
    /// KiB of bodies.
    bodies: Arc<Buckets<Payer>>,
    polls: Arc<events::Polls>,
    /// Pulls that found nothing, and those that found something.
    pulls: Arc<Buckets<DeviceRef>>,
    drains: Arc<Buckets<DeviceRef>>,
    /// Acknowledgements of nothing.
    bad_acks: Arc<Buckets<DeviceRef>>,
    /// Devices that registered themselves: by address, and by the key that they used.
    registrations: Arc<Buckets<IpAddr>>,
    key_registrations: Arc<Buckets<auth::KeyHash>>,
    /// Devices that change what is stored of them.
    changes: Arc<Buckets<DeviceRef>>,
    request_ids: Arc<trail::RequestIds>,
    turns: Arc<Turns>,
    /// What deliveries and places in an inbox are called.
    names: Arc<SealedNames>,
}

impl Api {
    pub fn new(
        engine: Engine,
        default_app: AppNo,
        events_changed: Arc<EventsChanged>,
        limits: ApiLimits,
        (tokens, proofs): (Arc<Tokens>, Proofs),
        (door, webhooks): (Arc<dyn Door>, Webhooks),
    ) -> Api {
        let second = 1_000_000;
        let every = |per_sec: u64| if per_sec == 0 { 0 } else { second / per_sec.min(second) };
        Api {
            names: Arc::new(SealedNames::of(&*engine.store)),
            request_ids: Arc::new(trail::RequestIds::new(&OsChance)),
            turns: Arc::new(Turns::new(limits.threads)),
            engine,
            events_changed,
            metrics: ApiMetrics::default(),
            default_app,
            door,
            webhooks,
            tokens,
            drains: Arc::new(Buckets::new(limits.drains_burst, second / 10, limits.pulls_devices_max)),
            proofs,
            pulls: Arc::new(Buckets::new(limits.pulls_burst, second, limits.pulls_devices_max)),
            bad_acks: Arc::new(Buckets::new(
                inbox::ACKS_MAX as u64,
                (60 * second).checked_div(limits.bad_acks_per_minute_max.into()).unwrap_or(0),
                limits.pulls_devices_max,
            )),
            registrations: Arc::new(Buckets::new(
                limits.registrations_burst,
                limits.registration_secs.saturating_mul(second),
                limits.auth_addresses_max,
            )),
            key_registrations: Arc::new(Buckets::new(
                limits.key_registrations_burst,
                every(limits.key_registrations_per_sec),
                limits.auth_addresses_max,
            )),
            changes: Arc::new(Buckets::new(limits.changes_burst, second, limits.pulls_devices_max)),
            failures: Arc::new(Buckets::new(
                limits.auth_failures_burst,
                limits.auth_failure_secs * second,
                limits.auth_addresses_max,
            )),
            pushes: Arc::new(Buckets::new(limits.pushes_burst, every(limits.pushes_per_sec), usize::MAX)),
            bodies: Arc::new(Buckets::new(
                limits.bytes_burst / 1024,
                every(limits.bytes_per_sec / 1024),
                usize::MAX,
            )),
            polls: Arc::default(),
            document: Arc::default(),
            limits: Arc::new(limits),
        }
    }
}

#[cfg(test)]
impl Api {
    fn polls_waiting(&self) -> usize {
        self.polls.waiting()
    }
}

/// Every maximum of the API; numbers in brackets are those of the reliability study. What a message may be is in core.
#[derive(Clone, Debug)]
pub struct ApiLimits {
    /// Bytes of a body, and of a batch (L26).
    pub body_bytes_max: usize,
    pub batch_bytes_max: usize,
    /// Messages of a batch (L26).
    pub batch_max: usize,
    /// How long a body may take in all, before its rate counts, and the least rate (L25).
    pub body_time_max: Duration,
    pub body_grace: Duration,
    pub body_bytes_per_sec_min: usize,
    /// Wrong credentials from one address: at once, then one in so many seconds (L31); addresses remembered.
    pub auth_failures_burst: u64,
    pub auth_failure_secs: u64,
    pub auth_addresses_max: usize,
    /// Devices that register themselves from one address (by a key of the scope `register`, or on the
    /// demonstration page): at once, then one in so many seconds; 0: no limit.
    pub registrations_burst: u64,
    pub registration_secs: u64,
    /// And with one key, from all addresses: at once, then so many a second; 0: no limit.
    pub key_registrations_burst: u64,
    pub key_registrations_per_sec: u64,
    /// Changes that a device makes of what is stored of it: at once, then one a second.
    pub changes_burst: u64,
    /// Messages of an app (L35); 0 a second: no limit.
    pub pushes_per_sec: u64,
    pub pushes_burst: u64,
    /// Bytes of the bodies of an app's requests: in a second, 0 for no limit, and at once all the same. Requests by
    /// keys of the scope `register` have as much again.
    pub bytes_per_sec: u64,
    pub bytes_burst: u64,
    /// Entries of a page, where the request says nothing, and at most.
    pub page_default: usize,
    pub page_max: usize,
    /// Requests of one app that wait for events, and how long one waits (L29).
    pub polls_max: usize,
    pub poll_max: Duration,
    /// Webhooks of an app.
    pub webhooks_max: u32,
    /// Pulls of one device that find nothing: at once, then one a second (L29); devices remembered.
    pub pulls_burst: u64,
    /// And of those that find something: at once, then ten a second.
    pub drains_burst: u64,
    pub pulls_devices_max: usize,
    /// Acknowledgements of nothing that one device may send in a minute, after the first 1,000; 0: no limit.
    pub bad_acks_per_minute_max: u32,
    /// Pages of other origins that may connect, and read answers; `*` allows all.
    pub origins: Vec<String>,
    /// The page for trying it out, where any visitor gets a device.
    pub demo: bool,
    /// Threads that run handlers.
    pub threads: usize,
    /// `/_test/echo`.
    pub echo: bool,
    /// permessage-deflate for clients that offer it (L23).
    pub compression: bool,
    /// `/xmpp-websocket`.
    pub xmpp: bool,
    /// The forms of androidpn's console; from this machine itself without a key.
    pub androidpn: bool,
    pub androidpn_keyless: bool,
}

impl Default for ApiLimits {
    fn default() -> ApiLimits {
        ApiLimits {
            body_bytes_max: 256 * 1024,
            batch_bytes_max: 4 * 1024 * 1024,
            batch_max: 500,
            body_time_max: Duration::from_secs(30),
            body_grace: Duration::from_secs(5),
            body_bytes_per_sec_min: 1024,
            registrations_burst: 20,
            registration_secs: 10,
            key_registrations_burst: 1_000,
            key_registrations_per_sec: 10,
            changes_burst: 30,
            auth_failures_burst: 30,
            auth_failure_secs: 60,
            auth_addresses_max: 100_000,
            pushes_per_sec: 1_000,
            pushes_burst: 5_000,
            bytes_per_sec: 4 * 1024 * 1024,
            bytes_burst: 16 * 1024 * 1024,
            page_default: 100,
            page_max: 1_000,
            polls_max: 32,
            poll_max: Duration::from_secs(60),
            webhooks_max: 20,
            pulls_burst: 10,
            drains_burst: 100,
            pulls_devices_max: 100_000,
            bad_acks_per_minute_max: 100,
            origins: Vec::new(),
            demo: false,
            threads: 2,
            echo: false,
            compression: false,
            xmpp: false,
            androidpn: false,
            androidpn_keyless: false,
        }
    }
}

/// One row of the route table.
pub struct Route {
    pub method: Method,
    pub path: &'static str,
    handler: Box<dyn FnOnce(MethodFilter) -> MethodRouter<Api>>,
}

fn route<H, T>(method: Method, path: &'static str, handler: H) -> Route
where
    H: Handler<T, Api>,
    T: 'static,
{
    Route { method, path, handler: Box::new(move |filter| on(filter, handler)) }
}

// tidy: table
/// Every route there is.
pub fn routes() -> Vec<Route> {
    use Method as M;
    vec![
        route(M::POST, "/v1/devices", devices::register),
        route(M::GET, "/v1/devices", device_list::list),
        route(M::GET, "/v1/devices/{id}", devices::show),
        route(M::PATCH, "/v1/devices/{id}", devices::change),
        route(M::DELETE, "/v1/devices/{id}", devices::remove),
        route(M::POST, "/v1/devices/{id}/secret", devices::change_secret),
        route(M::PUT, "/v1/devices/{id}/tags/{tag}", devices::add_tag),
        route(M::DELETE, "/v1/devices/{id}/tags/{tag}", devices::remove_tag),
        route(M::PUT, "/v1/devices/{id}/alias", devices::set_alias),
        route(M::DELETE, "/v1/devices/{id}/alias", devices::remove_alias),
        route(M::DELETE, "/v1/devices/{id}/inbox", devices::clear_inbox),
        route(M::POST, "/v1/devices/prune", device_list::prune),
        route(M::POST, "/v1/messages", messages::send),
        route(M::GET, "/v1/messages", message_list::list),
        route(M::POST, "/v1/messages/batch", messages::send_batch),
        route(M::POST, "/v1/messages/estimate", messages::estimate),
        route(M::GET, "/v1/messages/{id}", reports::show),
        route(M::DELETE, "/v1/messages/{id}", reports::cancel),
        route(M::GET, "/v1/messages/{id}/deliveries", reports::deliveries),
        route(M::GET, "/v1/messages/{id}/deliveries/{device}", reports::delivery),
        route(M::POST, "/v1/messages/{id}/receipts", reports::receipt),
        route(M::GET, "/v1/events", events::read),
        route(M::GET, "/v1/webhooks", webhooks::list),
        route(M::PUT, "/v1/webhooks/{id}", webhooks::put),
        route(M::GET, "/v1/webhooks/{id}", webhooks::show),
        route(M::DELETE, "/v1/webhooks/{id}", webhooks::remove),
        route(M::POST, "/v1/webhooks/{id}/test", webhooks::test),
        route(M::POST, "/v1/webhooks/{id}/secret", webhooks::rotate),
        route(M::POST, "/v1/webhooks/{id}/replay", webhooks::replay),
        route(M::GET, "/v1/webhooks/{id}/failures", webhooks::failures),
        route(M::GET, "/v1/topics", topics::show_named),
        route(M::POST, "/v1/topics/publish", topics::publish_named),
        route(M::GET, "/v1/topics/publish", topics::show_publish),
        route(M::GET, "/v1/topics/{topic}", topics::show),
        route(M::POST, "/v1/topics/{topic}/publish", topics::publish),
        route(M::POST, "/v1/apps", apps::create),
        route(M::GET, "/v1/apps", apps::list),
        route(M::GET, "/v1/apps/{id}", apps::show),
        route(M::PATCH, "/v1/apps/{id}", apps::change),
        route(M::DELETE, "/v1/apps/{id}", apps::remove),
        route(M::POST, "/v1/apps/{id}/keys", apps::add_key),
        route(M::GET, "/v1/apps/{id}/keys", apps::keys),
        route(M::DELETE, "/v1/apps/{id}/keys/{key}", apps::revoke_key),
        route(M::POST, "/v1/admin/audit", apps::audit),
        route(M::GET, "/v1/admin/jobs", jobs::list),
        route(M::POST, "/v1/admin/jobs/{id}/retry", jobs::retry),
        route(M::GET, "/openapi.json", openapi::serve),
        route(M::GET, errors_page::PATH, errors_page::serve),
        route(M::POST, "/v1/devices/{id}/tickets", inbox::ticket),
        route(M::GET, "/v1/inbox", inbox::poll),
        route(M::POST, "/v1/inbox/acks", inbox::acknowledge),
        route(M::GET, "/v1/stream", inbox::stream),
        route(M::POST, "/v1/stream/acks", inbox::acknowledge),
        route(M::GET, "/mqtt", sockets::mqtt),
        route(M::GET, "/ws", sockets::json),
        route(M::GET, "/xmpp-websocket", sockets::xmpp),
        route(M::GET, "/_test/echo", sockets::echo),
        route(M::POST, "/notification.do", androidpn::form_send),
        route(M::GET, "/notification.do", androidpn::form_send),
        route(M::POST, "/notification_api.do", androidpn::api_send),
        route(M::GET, "/notification_api.do", androidpn::api_send),
        route(M::GET, "/user.do", androidpn::users),
        route(M::GET, "/user_api.do", androidpn::users),
        route(M::GET, "/session.do", androidpn::sessions),
        route(M::GET, "/", start::page),
        route(M::GET, "/sdk/{file}", demo::sdk),
        route(M::GET, "/demo", demo::page),
        route(M::GET, "/demo/{file}", demo::file),
        route(M::POST, "/demo/devices", demo::register),
        route(M::POST, "/demo/push", demo::push),
        route(M::GET, "/demo/messages/{id}", demo::timeline),
    ]
}

/// All routes, ready to be served.
pub fn router(api: Api) -> Router {
    let routed = routes().into_iter().fold(Router::new(), |router, Route { method, path, handler }| {
        let filter = MethodFilter::try_from(method).expect("the table has common methods only");
        router.route(path, handler(filter))
    });
    routed
        .method_not_allowed_fallback(|| async { ApiError::from(Code::MethodNotAllowed) })
        .fallback(|| async { ApiError::from(Code::NoSuchRoute) })
        .layer(axum::middleware::from_fn_with_state(api.clone(), around))
        .with_state(api)
}

/// Around every request: it is counted, timed, and its panic stays its own (P15).
async fn around(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let trail = Trail::begin(&api, &mut request);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("none", |p| p.as_str()).to_owned();
    let origin = foreign_page(&api, request.headers());
    if method == Method::OPTIONS && origin.is_some() && request.headers().contains_key(ASKS_METHOD) {
        return allow(StatusCode::NO_CONTENT.into_response(), origin, true);
    }
    let turn = Turn::default();
    request.extensions_mut().insert(turn.clone());
    let handled = InTurns::new(contained(next.run(request)), turn);
    let mut response = handled.await.unwrap_or_else(|| {
        api.metrics.panics.inc();
        tracing::error!(%method, route, "a request handler panicked");
        ApiError::from(Code::Internal).into_response()
    });
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    api.metrics.count(&method, route, response.status(), start.elapsed());
    trail.end(&api, &mut response);
    allow(response, origin, false)
}

const ASKS_METHOD: &str = "access-control-request-method";

/// The origin of a page of another site that may use this server.
fn foreign_page(api: &Api, headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(header::ORIGIN).filter(|_| sockets::is_origin_allowed(headers, &api.limits.origins)).cloned()
}

/// Lets a page read the answer (WHATWG Fetch §3.2); before its request, which ones it may make. No cookie is ever looked at.
fn allow(mut response: Response, origin: Option<HeaderValue>, is_preflight: bool) -> Response {
    let Some(origin) = origin else { return response };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    let exposed = HeaderValue::from_static("etag, retry-after, x-request-id");
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    if is_preflight {
        let methods = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE");
        let asked = "authorization, content-type, idempotency-key, if-none-match, last-event-id";
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(asked));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
    }
    response
}

/// Runs a future; `None` when it panicked.
async fn contained<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        let mut poll = || work.as_mut().poll(cx);
        match catch_unwind(AssertUnwindSafe(&mut poll)) {
            Ok(Poll::Ready(value)) => Poll::Ready(Some(value)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

/// Awaits what the engine tells by a callback: `ask(|done| engine.accept(app, pushes, done)).await`.
/// When the caller goes away meanwhile, the engine's work goes on.
pub async fn ask<T: Send + 'static>(start: impl FnOnce(Box<dyn FnOnce(T) + Send>)) -> Result<T, ApiError> {
    let (tell, told) = oneshot::channel();
    start(Box::new(move |answer| _ = tell.send(answer)));
    told.await.map_err(|_| Code::Unavailable.retry_after(1))
}

/// How webhooks show events: as the API does.
pub fn show_events(store: Arc<dyn Store>) -> Show {
    Arc::new(move |app, events| {
        let rows = events::rows(&*store, app, store.epoch(), events);
        rows.iter().map(|row| serde_json::to_value(row).unwrap_or_default()).collect()
    })
}

/// Runs what takes long aside, so that other requests go on.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let turn = turns::aside().await;
    let work = move || {
        let done = work();
        drop(turn);
        done
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| Code::Internal.into())
}

/// What SCRAM needs of a new secret.
async fn proof_keys(api: &Api, secret: &str) -> Result<ProofKeys, ApiError> {
    let (proofs, chance, secret) = (api.proofs, api.engine.chance.clone(), secret.to_owned());
    match proofs.are_kept {
        true => aside(move || proofs.keys(&secret, &*chance)).await,
        false => Ok(ProofKeys::default()),
    }
}

/// The caller's name for this request (P2, A33).
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().ok().filter(|_| values.next().is_none());
    key.map(|key| Some(key.to_owned())).ok_or_else(|| {
        Code::InvalidHeader.at("Idempotency-Key", "One Idempotency-Key, in visible ASCII letters.")
    })
}

/// The size of a page.
fn page_size(api: &Api, limit: Option<usize>) -> Result<usize, ApiError> {
    let max = api.limits.page_max;
    match limit.unwrap_or(api.limits.page_default.min(max)) {
        n @ 1.. if n <= max => Ok(n),
        _ => Err(Code::InvalidParameter.at("limit", format!("`limit` is from 1 to {max}."))),
    }
}

/// A page of what was asked for with room for one more, which tells whether there is a next one; and the cursor of that.
fn page_of<T>(mut views: Vec<T>, limit: usize, place: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
    let more = views.len() > limit;
    views.truncate(limit);
    let next = views.last().filter(|_| more).map(place);
    (views, next)
}

/// A time, shown as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub UnixMillis);

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&postrider_proto::date_time(self.0))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// For `skip_serializing_if`.
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
pub mod tests;
