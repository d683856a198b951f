//! What ties a request to the log: its `X-Request-Id`, and at `debug` one line with all that came of it.

use super::Api;
use super::auth::{Caller, Peer};
use super::error::Code;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::response::Response;
use postrider_core::port::Chance;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tracing::Level;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A caller's own id is kept where it is no longer than this.
const ID_LEN_MAX: usize = 64;

/// Ids of requests: they differ within a run of the server by a counter, and between runs by what they begin with.
#[derive(Debug)]
pub struct RequestIds {
    run: u32,
    next: AtomicU64,
}

impl RequestIds {
    pub fn new(chance: &dyn Chance) -> RequestIds {
        RequestIds { run: chance.bits128() as u32, next: AtomicU64::new(1) }
    }

    /// The caller's (a proxy's, say), where it is one that can stand in a line; else a new one.
    fn of(&self, headers: &HeaderMap) -> HeaderValue {
        let is_plain = |value: &&HeaderValue| {
            (1..=ID_LEN_MAX).contains(&value.len())
                && value.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(b))
        };
        headers.get(REQUEST_ID).filter(is_plain).cloned().unwrap_or_else(|| {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            HeaderValue::try_from(format!("{:08x}-{number:x}", self.run))
                .unwrap_or(HeaderValue::from_static("none"))
        })
    }
}

/// Who turned out to call, noted by `auth` while the request is handled.
#[derive(Clone, Debug, Default)]
pub struct Noted(Arc<OnceLock<Caller>>);

impl Noted {
    pub fn note(&self, caller: &Caller) {
        _ = self.0.set(caller.clone());
    }
}

/// A request that is being handled.
pub struct Trail {
    id: HeaderValue,
    line: Option<(Noted, Method, String, Option<SocketAddr>)>,
    start: Instant,
}

impl Trail {
    pub fn begin(api: &Api, request: &mut Request) -> Trail {
        let id = api.request_ids.of(request.headers());
        let line = tracing::enabled!(Level::DEBUG).then(|| {
            let noted = Noted::default();
            request.extensions_mut().insert(noted.clone());
            let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
            // The route, not the path: what callers write into a path or a query by mistake may be a secret.
            let route = request.extensions().get::<MatchedPath>().map_or("none", |route| route.as_str());
            (noted, request.method().clone(), route.to_owned(), peer)
        });
        Trail { id, line, start: Instant::now() }
    }

    pub fn end(self, api: &Api, response: &mut Response) {
        if let Some((noted, method, route, peer)) = self.line {
            let (app, by) = noted.0.get().map_or_else(Default::default, |caller| said_of(api, caller));
            let code = response.extensions().get::<Code>().map(|code| code.name());
            let ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
            let (id, status) = (self.id.to_str().unwrap_or_default(), response.status().as_u16());
            let peer = peer.map(tracing::field::display);
            tracing::debug!(id, %method, route, status, code, app, by, peer, ms, "request");
        }
        response.headers_mut().insert(REQUEST_ID, self.id);
    }
}

/// The app, and the id of the key or of the device.
fn said_of(api: &Api, caller: &Caller) -> (Option<String>, Option<String>) {
    let store = &api.engine.store;
    let app_id = |app| store.app(app).map(|view| view.id);
    match caller {
        Caller::Admin => (None, Some("admin".into())),
        Caller::App { app, id, .. } => (app_id(*app), Some(id.clone())),
        Caller::Device { at, .. } => {
            (app_id(at.app), store.device_ids(at.app, &[at.device]).into_iter().next().flatten())
        }
    }
}
