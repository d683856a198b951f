//! What app servers of androidpn's console know: a form that sends, and lists as JSON. There where the setting
//! `androidpn.api` says so.
//!
//! Fields may stand in the query or in a form body, as a servlet reads them. The app's key comes in `Authorization` or in the
//! form's `apiKey`; where the operator allows the old ways, requests from this machine need none.

use super::auth::{Peer, allow_bearer, allow_header};
use super::error::{ApiError, Code};
use super::json::{FORM, read_form};
use super::{Api, ask, messages, sockets};
use crate::http::ByProxy;
use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{FromRequest, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use postrider_core::audience::Audience;
use postrider_core::delivery::accept::Push;
use postrider_core::id::*;
use postrider_core::model::{DeviceView, KeyScope};
use postrider_core::port::DeviceFilter;
use serde::Serialize;
use serde_json::json;
use std::net::IpAddr;
use utoipa::ToSchema;

/// Bytes of a form that has its key inside, and has to be read before the key is known.
const KEY_FORM_BYTES_MAX: usize = 16 * 1024;

/// A request by an app's server.
pub struct Console {
    app: AppNo,
    fields: Vec<(String, String)>,
}

impl Console {
    /// The first field of that name.
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn wants_to_send(&self) -> bool {
        self.field("action") == Some("send")
    }
}

impl FromRequest<Api> for Console {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        if !api.limits.androidpn {
            return Err(Code::NoSuchRoute.into());
        }
        let (parts, body) = request.into_parts();
        if parts.method == Method::HEAD {
            // Its `GET` may send.
            return Err(Code::MethodNotAllowed.into());
        }
        let query = parts.uri.query().unwrap_or_default();
        let mut fields: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let in_query = fields.iter().any(|(name, _)| name == "action");
        // Who shows a key in a header is judged before a long body is read, and who shows none may
        // send only a short one.
        let is_known = if parts.headers.contains_key(header::AUTHORIZATION) {
            allow_header(&parts, api, KeyScope::Read).await?;
            true
        } else {
            is_keyless(&parts, api)
        };
        let bytes_max = if is_known { api.limits.body_bytes_max } else { KEY_FORM_BYTES_MAX };
        if parts.method == Method::POST {
            fields.extend(form(&parts, body, in_query, bytes_max, api).await?);
        }
        let wanted =
            if fields.iter().any(|(name, _)| name == "action") { KeyScope::Send } else { KeyScope::Read };
        let app = app_of(&parts, api, wanted, &fields).await?;
        Ok(Console { app, fields })
    }
}

/// A request that says all in its query needs no form.
async fn form(
    parts: &Parts,
    body: HttpBody,
    in_query: bool,
    bytes_max: usize,
    api: &Api,
) -> Result<Vec<(String, String)>, ApiError> {
    let is_typed = parts.headers.contains_key(header::CONTENT_TYPE);
    if in_query && !is_typed {
        return Ok(Vec::new());
    }
    let bytes_max = bytes_max.min(api.limits.body_bytes_max);
    let bytes = read_form(parts, body, bytes_max, api).await?;
    Ok(form_urlencoded::parse(&bytes).into_owned().collect())
}

async fn app_of(
    parts: &Parts,
    api: &Api,
    wanted: KeyScope,
    fields: &[(String, String)],
) -> Result<AppNo, ApiError> {
    let key = fields.iter().find(|(name, _)| name == "apiKey").map(|(_, key)| key);
    if !parts.headers.contains_key(header::AUTHORIZATION) {
        match key {
            Some(key) => return allow_bearer(key, parts, api, wanted).await,
            None if is_keyless(parts, api) && may_do(parts, wanted) => return Ok(api.default_app),
            None => {}
        }
    }
    allow_header(parts, api, wanted).await
}

/// Without a key, only a form sends: browsers say with a `POST` of which page it is, and pictures send none.
fn may_do(parts: &Parts, wanted: KeyScope) -> bool {
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    wanted == KeyScope::Read || (parts.method == Method::POST && kind.eq_ignore_ascii_case(FORM))
}

/// The `Host` is this machine's name for itself: a page whose name was made to lead here has its own.
fn asks_for_loopback(parts: &Parts) -> bool {
    let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_own = |ip: IpAddr| ip.to_canonical().is_loopback();
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(is_own)
}

/// From this machine itself: not by way of a proxy on it, and not at the bidding of a page that a browser on it shows.
/// Proxies that say nothing of themselves cannot be told apart, save those that speak HTTP/1.0.
fn is_keyless(parts: &Parts, api: &Api) -> bool {
    let peer = parts.extensions.get::<Peer>().is_some_and(|peer| peer.0.ip().to_canonical().is_loopback());
    let headers = &parts.headers;
    let by_proxies =
        ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via"];
    let is_forwarded = by_proxies.iter().any(|h| headers.contains_key(*h));
    let is_foreign =
        headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
    let is_proxy = parts.extensions.get::<ByProxy>().is_some() || parts.version < Version::HTTP_11;
    api.limits.androidpn_keyless
        && peer
        && !is_proxy
        && asks_for_loopback(parts)
        && !is_forwarded
        && !is_foreign
        && sockets::is_origin_allowed(headers, &[])
}

/// `POST` and `GET /notification.do?action=send`: sends, and leads back to the form.
pub async fn form_send(State(api): State<Api>, console: Console) -> Result<Response, ApiError> {
    if console.wants_to_send() {
        send(&api, &console).await?;
        return Ok((StatusCode::FOUND, [(header::LOCATION, "notification.do")]).into_response());
    }
    let fields = ["action", "broadcast", "username", "title", "message", "uri"];
    Ok(Json(json!({ "action": "send", "fields": fields })).into_response())
}

/// What came of it, in androidpn's words.
#[derive(Debug, Serialize, ToSchema)]
pub struct Sent {
    #[schema(example = "0")]
    result: &'static str,
    #[schema(example = "success")]
    description: &'static str,
    message_id: String,
}

/// `POST` and `GET /notification_api.do?action=send`.
pub async fn api_send(State(api): State<Api>, console: Console) -> Result<Json<Sent>, ApiError> {
    if !console.wants_to_send() {
        return Err(Code::InvalidParameter.at("action", "The only `action` is `send`."));
    }
    let message_id = send(&api, &console).await?.to_string();
    Ok(Json(Sent { result: "0", description: "success", message_id }))
}

async fn send(api: &Api, console: &Console) -> Result<MessageId, ApiError> {
    let audience = match (console.field("broadcast").unwrap_or("Y"), console.field("username")) {
        ("Y" | "y", _) => Audience::All,
        (_, Some(username)) if !username.is_empty() => Audience::Device(username.to_owned()),
        _ => {
            return Err(Code::InvalidParameter.at("username", "Without `broadcast`, a `username` is needed."));
        }
    };
    let given = |name| console.field(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let notification = messages::Notification::plain(given("title"), given("message"), given("uri"));
    let notification = messages::shown(notification)?;
    let push = Push { notification: Some(notification), ..Push::to(audience) };
    messages::charge(api, console.app, 1)?;
    let results = ask(|done| api.engine.accept(console.app, vec![push], done)).await?;
    Ok(results.into_iter().next().ok_or(Code::Internal)??.id)
}

/// A user of the console: a device.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConsoleUser {
    username: String,
    #[schema(value_type = String, format = DateTime)]
    created: super::Time,
    online: bool,
}

/// Users, the oldest first; at most one page.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConsoleUsers {
    users: Vec<ConsoleUser>,
}

/// `GET /user.do` and `/user_api.do`: the registered devices.
pub async fn users(State(api): State<Api>, console: Console) -> Json<ConsoleUsers> {
    list(&api, console.app, |_| true)
}

/// `GET /session.do`: those that are connected.
pub async fn sessions(State(api): State<Api>, console: Console) -> Json<ConsoleUsers> {
    list(&api, console.app, |user| user.online)
}

fn list(api: &Api, app: AppNo, wanted: fn(&ConsoleUser) -> bool) -> Json<ConsoleUsers> {
    let (store, page) = (&api.engine.store, api.limits.page_max);
    let user = |view: DeviceView| ConsoleUser {
        online: api.engine.is_connected(view.at),
        username: view.id,
        created: super::Time(view.created_at),
    };
    let (mut users, mut after) = (Vec::new(), None);
    loop {
        let views = store.devices(app, &DeviceFilter::default(), after, page);
        let Some(last) = views.last().map(|view| view.at.device) else { break };
        after = Some(last);
        users.extend(views.into_iter().map(user).filter(wanted));
        if users.len() >= page {
            users.truncate(page);
            break;
        }
    }
    Json(ConsoleUsers { users })
}
