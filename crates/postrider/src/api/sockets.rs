//! Requests that become WebSockets: `/mqtt` speaks MQTT, `/ws` our JSON protocol, `/xmpp-websocket` XMPP (RFC 7395). Who it
//! is, the protocol asks.

use super::Api;
use super::auth::Peer;
use super::error::{ApiError, Code};
use crate::gateway::{Full, Place, Speaks};
use crate::http::upgraded;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use postrider_proto::ws::{Deflate, Handshake, HandshakeError};
use std::net::SocketAddr;

/// `GET /mqtt`.
pub async fn mqtt(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Result<Response, ApiError> {
    let handshake = handshake(&request, &["mqtt"])?;
    if handshake.subprotocol.is_none() {
        // MQTT-6.0.0-3.
        return Err(Code::InvalidUpgrade.at("Sec-WebSocket-Protocol", "The subprotocol `mqtt` is needed."));
    }
    switch(&api, peer, request, &handshake, (Speaks::MqttOverWebSocket, None))
}

/// `GET /ws`.
pub async fn json(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Result<Response, ApiError> {
    let handshake = handshake(&request, &["postrider.v1"])?;
    let (deflate, extensions) = compression(&api, &request);
    switch(&api, peer, request, &handshake, (Speaks::Json(deflate), extensions))
}

/// `GET /xmpp-websocket`: there where XMPP listens at all.
pub async fn xmpp(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Result<Response, ApiError> {
    if !api.limits.xmpp {
        return Err(Code::NoSuchRoute.into());
    }
    let handshake = handshake(&request, &["xmpp"])?;
    if handshake.subprotocol.is_none() {
        // RFC 7395 §3.1.
        return Err(Code::InvalidUpgrade.at("Sec-WebSocket-Protocol", "The subprotocol `xmpp` is needed."));
    }
    switch(&api, peer, request, &handshake, (Speaks::XmppOverWebSocket, None))
}

/// `GET /_test/echo`: off unless the settings say otherwise, and then like a path that is not there.
pub async fn echo(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Result<Response, ApiError> {
    if !api.limits.echo {
        return Err(Code::NoSuchRoute.into());
    }
    let handshake = handshake(&request, &[])?;
    let (deflate, extensions) = compression(&api, &request);
    switch(&api, peer, request, &handshake, (Speaks::Echo(deflate), extensions))
}

fn handshake(request: &Request, subprotocols: &[&'static str]) -> Result<Handshake, ApiError> {
    let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    Handshake::of(request.method().as_str(), headers, subprotocols).map_err(|e| match e {
        HandshakeError::Version => Code::WebSocketVersion.into(),
        other => Code::InvalidUpgrade.because(format!("{other}.")),
    })
}

/// Compressed messages, where the settings and the client want them; and the header that agrees.
fn compression(api: &Api, request: &Request) -> (Option<Deflate>, Option<String>) {
    let headers = request.headers().get_all(header::SEC_WEBSOCKET_EXTENSIONS);
    let offers = headers.iter().filter_map(|h| h.to_str().ok()).filter(|_| api.limits.compression);
    Deflate::negotiate(offers).unzip()
}

/// Answers 101; the socket follows the answer to the gateway.
fn switch(
    api: &Api,
    peer: Option<Extension<Peer>>,
    mut request: Request,
    handshake: &Handshake,
    (speaks, extensions): (Speaks, Option<String>),
) -> Result<Response, ApiError> {
    let peer = peer.ok_or(Code::InvalidUpgrade)?.0.0;
    if !is_origin_allowed(request.headers(), &api.limits.origins) {
        return Err(Code::ForeignOrigin.into());
    }
    // Before the answer: behind `101` nobody could be told that there is no place.
    let place = reserve(api, peer, matches!(speaks, Speaks::Echo(_)))?;
    let upgrade = hyper::upgrade::on(&mut request);
    let door = api.door.clone();
    tokio::spawn(async move {
        match upgraded(upgrade).await {
            Ok((stream, first)) => door.adopt(stream, place, speaks, first),
            Err(error) => tracing::debug!(%peer, %error, "a WebSocket was not handed over"),
        }
    });
    let accept = HeaderValue::from_str(&handshake.accept).map_err(|_| Code::Internal)?;
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(subprotocol) = handshake.subprotocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    }
    if let Some(extensions) = extensions.and_then(|text| HeaderValue::try_from(text).ok()) {
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, extensions);
    }
    Ok(response)
}

/// A place for a connection that leaves the HTTP server. `is_known`: its client has proved who it is.
pub fn reserve(api: &Api, peer: SocketAddr, is_known: bool) -> Result<Place, ApiError> {
    api.door.reserve(peer, is_known).map_err(|full| match full {
        Full::Connections => Code::TooManyConnections.retry_after(2),
        Full::Address => Code::TooManyFromAddress.retry_after(10),
        Full::Stopping => Code::Unavailable.into(),
    })
}

/// A page may connect to the host that it came from, and where its origin is allowed (RFC 6455 §10.2). Others than
/// browsers send no origin.
pub fn is_origin_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let own = origin.split_once("://").is_some_and(|(_, of)| of.eq_ignore_ascii_case(host));
    own || allowed.iter().any(|a| a == "*" || a.eq_ignore_ascii_case(origin))
}
