//! A device receives over plain HTTP: a stream of events, a poll that waits, a pull; and acknowledges by requests.
//! What the messages look like is the JSON protocol's business (`docs/protocol/http.md`).

use super::auth::{ByReader, ByReceiver, Peer};
use super::conditional::IfNoneMatch;
use super::error::{ApiError, Code};
use super::json::{Body, Input, Path, Query};
use super::sockets::reserve;
use super::{Api, ask, page_size};
use crate::gateway::{Begin, Place, Speaks, Wait, publish_of};
use crate::http::{Freed, Takeover};
use crate::names::BadCursor;
use axum::Json;
use axum::extract::{Extension, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use postrider_core::delivery::drain::Outgoing;
use postrider_core::delivery::receipt::ReceiptSource;
use postrider_core::id::{DeviceRef, Seq};
use postrider_core::port::Position;
use postrider_core::session::Client;
use postrider_proto::json::{Names, read_delivery, write_delivery};
use postrider_proto::{Cursor, Deliver, Fanned, Qos};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use utoipa::ToSchema;

/// Deliveries of one request that acknowledges.
pub(super) const ACKS_MAX: usize = 1_000;
/// Of live messages, which are in no inbox.
const LIVE_MAX: usize = 64;
/// When a client that found nothing, and did not wait for it, may come back.
const POLL_AFTER_SECS: u64 = 10;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamQuery {
    after: Option<String>,
    /// Checked by `ByReader`.
    #[serde(rename = "ticket")]
    _ticket: Option<String>,
}

/// `GET /v1/stream`.
pub async fn stream(
    ByReader { at, proof }: ByReader,
    State(api): State<Api>,
    (method, version): (Method, Version),
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
    Query(query): Query<StreamQuery>,
) -> Result<Response, ApiError> {
    need_http1(version)?;
    if method == Method::HEAD {
        // What a stream would begin with; it opens none, and takes over no connection.
        let kind = HeaderValue::from_static("text/event-stream");
        return Ok(([(header::CONTENT_TYPE, kind)], ()).into_response());
    }
    let last = headers.get("last-event-id").map(|v| v.to_str().unwrap_or_default());
    // A place in another history, or none at all: begin with the oldest that is not acknowledged.
    let position =
        last.or(query.after.as_deref()).and_then(|text| position(&api, text).ok()).unwrap_or_default();
    let device = device_id(&api, at)?;
    let client = Client { app: at.app, id: device, device: Some(at.device) };
    let place = reserve(&api, peer, true)?;
    let door = api.door.clone();
    Ok(taken_over(move |freed: Freed| {
        let Freed { stream, headers, .. } = freed;
        let line = |(name, value): (&axum::http::HeaderName, &HeaderValue)| {
            value.to_str().map_or(String::new(), |value| format!("{name}: {value}\r\n"))
        };
        let headers = headers.iter().filter(|(name, _)| *name != header::CONTENT_LENGTH).map(line).collect();
        let begin = Begin { client, proof, position, headers };
        door.adopt(stream, place, Speaks::EventStream(Box::new(begin)), Bytes::new());
    }))
}

fn taken_over(take: impl FnOnce(Freed) + Send + 'static) -> Response {
    let mut response = StatusCode::OK.into_response();
    response.extensions_mut().insert(Takeover::new(take));
    response
}

fn need_http1(version: Version) -> Result<(), ApiError> {
    if version == Version::HTTP_11 { Ok(()) } else { Err(Code::NeedsHttp11.into()) }
}

fn device_id(api: &Api, at: DeviceRef) -> Result<String, ApiError> {
    let id = api.engine.store.device_ids(at.app, &[at.device]).into_iter().next().flatten();
    id.ok_or_else(|| Code::BadCredentials.into())
}

fn position(api: &Api, text: &str) -> Result<Position, ApiError> {
    api.names.read_cursor(&*api.engine.store, text).map_err(|why| match why {
        BadCursor::Malformed => Code::InvalidCursor.into(),
        BadCursor::Foreign => Code::CursorFromOtherHistory.into(),
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InboxQuery {
    after: Option<String>,
    /// Seconds that the answer may be held back until there is something.
    wait: Option<u64>,
    limit: Option<usize>,
    #[serde(rename = "ticket")]
    _ticket: Option<String>,
}

/// What a poll asks for.
#[derive(Clone)]
struct Poll {
    at: DeviceRef,
    device: String,
    from: Position,
    limit: usize,
    known: IfNoneMatch,
    /// HEAD: nothing is given to the device, and nothing waits.
    is_head: bool,
}

/// `GET /v1/inbox`.
pub async fn poll(
    ByReader { at, .. }: ByReader,
    State(api): State<Api>,
    (method, version): (Method, Version),
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
    Query(query): Query<InboxQuery>,
) -> Result<Response, ApiError> {
    let wait = Duration::from_secs(query.wait.unwrap_or(0));
    let max = api.limits.poll_max;
    if wait > max {
        let sentence = format!("`wait` is at most {} seconds.", max.as_secs());
        return Err(Code::InvalidParameter.at("wait", sentence));
    }
    let poll = Poll {
        at,
        device: device_id(&api, at)?,
        from: query.after.as_deref().map_or(Ok(Position::default()), |text| position(&api, text))?,
        limit: page_size(&api, query.limit)?,
        known: IfNoneMatch::of(&headers),
        is_head: method == Method::HEAD,
    };
    let (page, poll) = Page::aside(&api, poll).await?;
    let is_news = !page.is_empty() && !poll.known.has(&page.tag);
    if !page.is_empty() {
        // Who does not acknowledge what it gets gets the same again, and need not get it as fast as it can ask.
        let drained = api.drains.take(at, 1, api.engine.clock.now());
        drained.map_err(|secs| Code::PollsTooOften.retry_after(secs))?;
    }
    if is_news {
        return Ok(page.answer(&api, &poll, 0));
    }
    if !wait.is_zero() && !poll.is_head {
        need_http1(version)?;
        let place = reserve(&api, peer, true)?;
        return Ok(wait_for(api, poll, wait, place));
    }
    // Nothing new: who asks that too often is told to wait (L29).
    match api.pulls.take(at, 1, api.engine.clock.now()) {
        Ok(()) => Ok(page.answer(&api, &poll, POLL_AFTER_SECS)),
        Err(secs) => Err(Code::PollsTooOften.retry_after(secs)),
    }
}

/// Lets the gateway hold the connection until there is something to say.
fn wait_for(api: Api, poll: Poll, wait: Duration, place: Place) -> Response {
    let secret = secret_now(&api, poll.at);
    taken_over(move |freed| {
        let (device, position) = (poll.at, poll.from);
        let door = api.door.clone();
        let (stream, _, give_back) = freed.split(move |has_waited| async move {
            if !has_waited {
                let sentence = "As many polls of this device wait as may.";
                let refusal = ApiError {
                    message: Some(sentence.into()),
                    ..Code::PollsTooOften.retry_after(POLL_AFTER_SECS)
                };
                return refusal.into_response();
            }
            // While it waited the device may have been deleted, or its secret changed.
            if secret.is_some() && secret == secret_now(&api, poll.at) {
                match Page::aside(&api, poll).await {
                    Ok((page, poll)) => page.answer(&api, &poll, 0),
                    Err(error) => error.into_response(),
                }
            } else {
                ApiError::from(Code::BadCredentials).into_response()
            }
        });
        let wait = Wait { device, position, wait_ms: wait.as_millis() as u64, give_back };
        door.adopt(stream, place, Speaks::Poll(Box::new(wait)), Bytes::new());
    })
}

/// The hash of the device's secret, where there is such a device.
fn secret_now(api: &Api, at: DeviceRef) -> Option<[u8; 32]> {
    api.engine.store.sign_in(at)?.secret_hash
}

/// What lies in an inbox behind a place.
struct Page {
    deliveries: Vec<Outgoing>,
    next: Position,
    more: bool,
    tag: HeaderValue,
}

impl Page {
    /// Contents may have to be read from files; where nothing lies there, none is.
    async fn aside(api: &Api, poll: Poll) -> Result<(Page, Poll), ApiError> {
        if !api.engine.has_pending(poll.at, poll.from) {
            return Ok((Page::of(api, &poll), poll));
        }
        let reader = api.clone();
        super::aside(move || (Page::of(&reader, &poll), poll)).await
    }

    fn of(api: &Api, poll: &Poll) -> Page {
        let mut next = poll.from;
        let mut deliveries = api.engine.pull(poll.at, &poll.device, &mut next, poll.limit + 1);
        let more = deliveries.len() > poll.limit;
        deliveries.truncate(poll.limit);
        if let Some(last) = deliveries.last() {
            next = last.position;
        }
        let mut hasher = DefaultHasher::new();
        (api.engine.store.epoch(), more).hash(&mut hasher);
        deliveries.iter().for_each(|d| d.seq.hash(&mut hasher));
        let tag = format!("\"{:016x}\"", hasher.finish());
        let tag = HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static("\"0\""));
        Page { deliveries, next, more, tag }
    }

    fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// `after`: in how many seconds the device may come back.
    fn answer(&self, api: &Api, poll: &Poll, after: u64) -> Response {
        if !poll.is_head {
            api.engine.seen(poll.at);
        }
        let tag = (header::ETAG, self.tag.clone());
        if poll.known.has(&self.tag) {
            return (StatusCode::NOT_MODIFIED, [tag]).into_response();
        }
        let seqs: Vec<Seq> = self.deliveries.iter().map(|d| d.seq).collect();
        if !seqs.is_empty() && !poll.is_head {
            api.engine.sent_to(poll.at, &seqs);
        }
        let mut body = br#"{"messages":["#.to_vec();
        for (i, delivery) in self.deliveries.iter().enumerate() {
            if i > 0 {
                body.push(b',');
            }
            write_frame(api, delivery, &mut body);
        }
        let mut end = String::from(r#"],"next":""#);
        api.names.write_cursor(cursor(self.next), &mut end);
        _ = write!(end, r#"","more":{},"poll_after_secs":{after}}}"#, self.more);
        body.extend_from_slice(end.as_bytes());
        let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        ([kind, tag], body).into_response()
    }
}

fn cursor(Position { urgent, normal }: Position) -> Cursor {
    Cursor { urgent, normal }
}

/// A delivery as the frame that a WebSocket would carry.
fn write_frame(api: &Api, delivery: &Outgoing, body: &mut Vec<u8>) {
    let how = Deliver {
        delivery: delivery.seq,
        // Whatever its subscription said: here it is acknowledged.
        qos: Qos::AtLeastOnce,
        retain: delivery.retain,
        dup: delivery.sent_before,
        subscription_ids: &[],
        expiry_left_secs: None,
        cursor: Some(cursor(delivery.position)),
        late_since: None,
    };
    let id = delivery.unsaid_id().map(|id| id.to_string().into());
    write_delivery(&mut Fanned::with_id(publish_of(&delivery.content), id), &how, &*api.names, body);
}

/// Deliveries to acknowledge.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AckRequest {
    /// The `delivery` of each, as it came.
    #[schema(example = json!(["mH0x3kq5bVYw2nT7s9RLAg"]))]
    deliveries: Vec<String>,
}

impl Input for AckRequest {}

/// They are on stable storage.
#[derive(Debug, Serialize, ToSchema)]
pub struct Acknowledged {
    /// How many of them were open.
    acknowledged: usize,
}

/// A device that acknowledges, and has not told of too much that it never got: that is found out before the body is read.
pub struct ByAcknowledger(DeviceRef);

impl FromRequestParts<Api> for ByAcknowledger {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let ByReceiver { at, .. } = ByReceiver::from_request_parts(parts, api).await?;
        let look = api.bad_acks.look(&at, api.engine.clock.now());
        look.map(|()| ByAcknowledger(at)).map_err(|secs| Code::AcksTooOften.retry_after(secs))
    }
}

/// `POST /v1/inbox/acks` and `POST /v1/stream/acks`: the same. A connection that wrote some of them goes on.
pub async fn acknowledge(
    ByAcknowledger(at): ByAcknowledger,
    State(api): State<Api>,
    Body(request): Body<AckRequest>,
) -> Result<Json<Acknowledged>, ApiError> {
    if request.deliveries.len() > ACKS_MAX {
        return Err(Code::InvalidField.at("/deliveries", format!("At most {ACKS_MAX}.")));
    }
    let known: Option<Vec<u64>> =
        request.deliveries.iter().map(|name| read_delivery(name, &*api.names)).collect();
    let all =
        known.ok_or_else(|| Code::InvalidField.at("/deliveries", "Not a delivery that was given out."))?;
    // Those of live messages are in no inbox; only their connection counts them.
    let seqs: Vec<Seq> = all.iter().copied().filter(|d| d & crate::gateway::TRANSIENT == 0).collect();
    let sorted = api.engine.sort_acks(at, &seqs);
    // No connection has more live messages under way than that.
    let invented = (all.len() - seqs.len()).saturating_sub(LIVE_MAX) + sorted.unknown;
    if invented > 0 {
        let unknown = api.bad_acks.take_or_empty(at, invented as u64, api.engine.clock.now());
        unknown.map_err(|secs| Code::AcksTooOften.retry_after(secs))?;
    }
    let acknowledged = match sorted.open {
        open if open.is_empty() => 0,
        open => {
            let record = |done| api.engine.record_receipts(ReceiptSource::Request { at, seqs: &open, done });
            ask(record).await??
        }
    };
    if let Some(connection) = api.engine.connection_of(at) {
        api.door.acknowledged(connection, all);
    }
    Ok(Json(Acknowledged { acknowledged }))
}

/// What a device can sign in with for a while, where it cannot show its secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct Ticket {
    ticket: String,
    /// Milliseconds since 1970.
    expires_at: u64,
}

/// `POST /v1/devices/{id}/tickets`. A ticket may be renewed, but never beyond the end of the first.
pub async fn ticket(
    ByReceiver { at, proof }: ByReceiver,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Ticket>), ApiError> {
    if api.engine.store.device_by_id(at.app, &id) != Some(at) {
        return Err(Code::NotAllowed.because("A device may speak for itself only."));
    }
    let (ticket, expires_at) = api.tokens.ticket(&api.engine, at, &id, proof).ok_or(Code::BadCredentials)?;
    Ok((StatusCode::CREATED, Json(Ticket { ticket, expires_at })))
}
