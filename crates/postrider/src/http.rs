//! The HTTP server: accepts, bounds and ends connections; HTTP/1.1 and HTTP/2 are hyper's.
//!
//! Every wait of a peer has an end here (L24, L25, L28): the first head, a head that drips, an idle connection, a peer that
//! does not read. Each connection notes its progress in a few atomics, and its own task looks at them once in a while:
//! no timer is touched per request. Bodies have their own clock where they are read (`api/json.rs`).

use crate::api::Api;
use crate::api::auth::{Peer, network};
use crate::api::error::{ApiError, Code};
use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::{self, upgrade};
use postrider_proto::ws::{Handshake, HandshakeError};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt;

/// Takes over a socket that became a WebSocket, with the bytes already read from it.
pub type Adopt = Arc<dyn Fn(std::net::TcpStream, SocketAddr, Bytes) + Send + Sync>;

/// Settings of a listener.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// From the first byte of a head to its end; also from the connection to its first request (L25).
    pub head_time_max: Duration,
    /// Between requests (L25).
    pub idle_max: Duration,
    /// How long a peer may take nothing of an answer (P14).
    pub write_stall_max: Duration,
    /// L24.
    pub head_bytes_max: usize,
    pub head_fields_max: usize,
    pub uri_bytes_max: usize,
    /// L28.
    pub streams_max: u32,
    pub resets_max: usize,
    /// Connections in all, and from one address or IPv6 network (L5).
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    /// How long requests may go on after the order to stop.
    pub drain_max: Duration,
}

impl Default for HttpConfig {
    fn default() -> HttpConfig {
        HttpConfig {
            head_time_max: Duration::from_secs(10),
            idle_max: Duration::from_secs(60),
            write_stall_max: Duration::from_secs(30),
            head_bytes_max: 16 * 1024,
            head_fields_max: 64,
            uri_bytes_max: 8 * 1024,
            streams_max: 100,
            resets_max: 100,
            connections_max: 10_000,
            connections_per_address_max: 2_000,
            drain_max: Duration::from_secs(5),
        }
    }
}

/// Given to each request: becomes true when the server is to stop, so that nobody goes on waiting.
#[derive(Clone, Debug)]
pub struct Stopping(pub watch::Receiver<bool>);

/// Serves until `stop` holds true, then lets running requests end for a while. The caller's runtime drives it.
pub async fn serve(
    listener: std::net::TcpListener,
    router: Router,
    config: HttpConfig,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let stopping = stop.clone();
    let server = Arc::new(Server { builder: builder(&config), router, config, stopping });
    let seats = Arc::new(Seats::default());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = raised(&mut stop) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match seats.take(peer.ip(), &server.config) {
                    Some(seat) => _ = connections.spawn(server.clone().converse(stream, peer, seat)),
                    None => turn_away(&stream),
                },
                Err(error) => {
                    // Mostly too many open files: wait until some are closed.
                    tracing::warn!(%error, "no HTTP connection could be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(ended) = connections.join_next() => report(ended),
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(server.config.drain_max, drained).await.is_err() {
        tracing::info!(connections = connections.len(), "HTTP connections were cut off at the end");
    }
    Ok(())
}

/// Until the order to stop; also where nobody is left who could give it.
async fn raised(stop: &mut watch::Receiver<bool>) {
    _ = stop.wait_for(|stop| *stop).await;
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        tracing::error!("the task of an HTTP connection panicked");
    }
}

fn builder(config: &HttpConfig) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // The shorter time for a head that has begun is kept by `Progress`.
        .header_read_timeout(config.idle_max)
        .max_headers(config.head_fields_max)
        .max_buf_size(config.head_bytes_max.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.streams_max)
        .max_pending_accept_reset_streams(config.resets_max)
        .max_local_error_reset_streams(config.resets_max)
        .max_header_list_size(config.head_bytes_max as u32)
        .max_send_buf_size(64 * 1024)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// Answered without a look at the request: it costs next to nothing, and a client that waits can come again.
fn turn_away(stream: &TcpStream) {
    let answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    _ = stream.try_write(answer);
}

/// How many connections there are, in all and from each address.
#[derive(Default)]
struct Seats(Mutex<(usize, HashMap<IpAddr, usize>)>);

struct Seat(Arc<Seats>, IpAddr);

impl Seats {
    fn take(self: &Arc<Self>, address: IpAddr, config: &HttpConfig) -> Option<Seat> {
        let address = network(address);
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *taken;
        let own = by_address.get(&address).copied().unwrap_or(0);
        if *all >= config.connections_max || own >= config.connections_per_address_max {
            return None;
        }
        *all += 1;
        by_address.insert(address, own + 1);
        Some(Seat(self.clone(), address))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 -= 1;
        if let Some(own) = taken.1.get_mut(&self.1) {
            *own -= 1;
            if *own == 0 {
                taken.1.remove(&self.1);
            }
        }
    }
}

struct Server {
    builder: auto::Builder<TokioExecutor>,
    router: Router,
    config: HttpConfig,
    stopping: watch::Receiver<bool>,
}

impl Server {
    /// One connection, from accept to its end.
    async fn converse(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, seat: Seat) {
        _ = stream.set_nodelay(true);
        let progress = Arc::new(Progress::new());
        let io = TokioIo::new(Watched { stream, progress: progress.clone() });
        let service = hyper::service::service_fn({
            let (server, progress) = (self.clone(), progress.clone());
            move |request| server.clone().respond(request, peer, progress.clone())
        });
        let mut conversation = pin!(self.builder.serve_connection_with_upgrades(io, service));
        let mut stopping = self.stopping.clone();
        let config = &self.config;
        let look = (config.head_time_max.min(config.idle_max).min(config.write_stall_max) / 4)
            .clamp(Duration::from_millis(10), Duration::from_secs(1));
        let mut leaving = false;
        loop {
            tokio::select! {
                ended = conversation.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, %error, "an HTTP connection ended badly");
                    }
                    break;
                }
                () = tokio::time::sleep(look) => match progress.verdict(config) {
                    Verdict::Fine => {}
                    Verdict::Idle if progress.is_h2.load(Relaxed) && !leaving => {
                        leaving = true;
                        conversation.as_mut().graceful_shutdown();
                    }
                    Verdict::Idle | Verdict::Stuck => break,
                },
                () = raised(&mut stopping), if !leaving => {
                    leaving = true;
                    conversation.as_mut().graceful_shutdown();
                }
            }
        }
        drop(seat);
    }

    async fn respond(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        progress: Arc<Progress>,
    ) -> Result<Response<Guarded>, std::convert::Infallible> {
        let underway = Underway::begin(&progress);
        // Where a chunked body ends is what smuggled requests are made of (RFC 9112 §6.3): nothing follows it.
        let last = request.version() == Version::HTTP_11
            && request.headers().contains_key(header::TRANSFER_ENCODING);
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(Stopping(self.stopping.clone()));
        let mut response = match check_head(&request, &self.config) {
            Ok(()) => match self.router.clone().oneshot(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err(error) => error.into_response(),
        };
        if last {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|body| Guarded { body, _underway: underway }))
    }
}

/// What hyper leaves to its user (H83).
fn check_head<B>(request: &Request<B>, config: &HttpConfig) -> Result<(), ApiError> {
    let uri = request.uri();
    let uri_bytes = uri.path_and_query().map_or(0, |p| p.as_str().len());
    if uri_bytes > config.uri_bytes_max {
        return Err(Code::UriTooLong.into());
    }
    // HTTP/2 has its own limit for the whole list.
    let fields = request.headers();
    let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if fields.len() > config.head_fields_max || bytes + uri_bytes > config.head_bytes_max {
        return Err(Code::HeadTooLarge.into());
    }
    let mut hosts = fields.get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    let h1 = request.version() == Version::HTTP_11;
    if second.is_some() || (h1 && host.is_none()) {
        return Err(Code::InvalidHost.into());
    }
    // An absolute target (RFC 9112 §3.2.2) must be for the host that the header names.
    match (uri.authority(), host) {
        (Some(authority), Some(host))
            if !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            Err(Code::InvalidHost.into())
        }
        _ => Ok(()),
    }
}

/// How far a connection is; times are milliseconds since its begin, plus one, so that 0 means "not".
#[derive(Debug)]
struct Progress {
    start: Instant,
    requests: AtomicUsize,
    had_request: AtomicBool,
    is_h2: AtomicBool,
    bytes_seen: AtomicBool,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    stalled_since: AtomicU64,
}

enum Verdict {
    Fine,
    Idle,
    Stuck,
}

impl Progress {
    fn new() -> Progress {
        Progress {
            start: Instant::now(),
            requests: AtomicUsize::new(0),
            had_request: AtomicBool::new(false),
            is_h2: AtomicBool::new(false),
            bytes_seen: AtomicBool::new(false),
            idle_since: AtomicU64::new(1),
            head_since: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64 + 1
    }

    fn verdict(&self, config: &HttpConfig) -> Verdict {
        let now = self.now();
        let over = |since: &AtomicU64, max: Duration| {
            let since = since.load(Relaxed);
            since > 0 && now.saturating_sub(since) > max.as_millis() as u64
        };
        if over(&self.stalled_since, config.write_stall_max) {
            return Verdict::Stuck;
        }
        if self.requests.load(Relaxed) > 0 {
            return Verdict::Fine;
        }
        let first_is_late = !self.had_request.load(Relaxed) && over(&self.idle_since, config.head_time_max);
        if first_is_late || over(&self.head_since, config.head_time_max) {
            return Verdict::Stuck;
        }
        if over(&self.idle_since, config.idle_max) { Verdict::Idle } else { Verdict::Fine }
    }

    fn read(&self, bytes: &[u8]) {
        if !self.bytes_seen.swap(true, Relaxed) {
            // The preface of HTTP/2; no method begins with it.
            self.is_h2.store(bytes.starts_with(b"PRI"), Relaxed);
        }
        // In HTTP/2 any frame may come between requests; there the idle time alone counts.
        if self.requests.load(Relaxed) == 0 && !self.is_h2.load(Relaxed) {
            _ = self.head_since.compare_exchange(0, self.now(), Relaxed, Relaxed);
        }
    }

    fn wrote<T>(&self, result: &Poll<T>) {
        match result {
            Poll::Pending => _ = self.stalled_since.compare_exchange(0, self.now(), Relaxed, Relaxed),
            Poll::Ready(_) => self.stalled_since.store(0, Relaxed),
        }
    }
}

/// A request that is not answered to the end.
struct Underway(Arc<Progress>);

impl Underway {
    fn begin(progress: &Arc<Progress>) -> Underway {
        progress.requests.fetch_add(1, Relaxed);
        progress.had_request.store(true, Relaxed);
        progress.head_since.store(0, Relaxed);
        Underway(progress.clone())
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Relaxed);
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

/// The body of an answer: while it lives, its request is underway.
struct Guarded {
    body: Body,
    _underway: Underway,
}

impl hyper::body::Body for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that notes its progress.
struct Watched {
    stream: TcpStream,
    progress: Arc<Progress>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.progress.read(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.progress.wrote(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.progress.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// `GET /mqtt`: the socket becomes a WebSocket that speaks MQTT, and leaves this server for the gateway. Who it is, MQTT asks.
pub async fn upgrade_to_mqtt(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let peer = peer.ok_or(Code::InvalidUpgrade)?.0.0;
    let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let handshake = Handshake::of(request.method().as_str(), headers, &["mqtt"]).map_err(|e| match e {
        HandshakeError::Version => Code::WebSocketVersion.into(),
        other => Code::InvalidUpgrade.because(format!("{other}.")),
    })?;
    // MQTT-6.0.0-3.
    let subprotocol = handshake.subprotocol.ok_or_else(|| {
        Code::InvalidUpgrade.at("Sec-WebSocket-Protocol", "The subprotocol `mqtt` is needed.")
    })?;
    check_origin(&request, &api.limits.origins)?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Err(error) = hand_over(upgrade, peer, api.adopt).await {
            tracing::debug!(%peer, %error, "a WebSocket was not handed over");
        }
    });
    let accept = HeaderValue::from_str(&handshake.accept).map_err(|_| Code::Internal)?;
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    Ok(response)
}

/// A page may connect to the host that it came from, and where its origin is allowed (RFC 6455 §10.2). Others than
/// browsers send no origin.
fn check_origin(request: &Request, allowed: &[String]) -> Result<(), ApiError> {
    let Some(origin) = request.headers().get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().map_err(|_| Code::ForeignOrigin)?;
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let own = origin.split_once("://").is_some_and(|(_, of)| of.eq_ignore_ascii_case(host));
    let listed = allowed.iter().any(|a| a == "*" || a.eq_ignore_ascii_case(origin));
    if own || listed { Ok(()) } else { Err(Code::ForeignOrigin.into()) }
}

async fn hand_over(upgrade: hyper::upgrade::OnUpgrade, peer: SocketAddr, adopt: Adopt) -> io::Result<()> {
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    let parts = upgrade::downcast::<TokioIo<Watched>>(upgraded)
        .map_err(|_| io::Error::other("the connection is not a plain socket"))?;
    let stream = parts.io.into_inner().stream.into_std()?;
    adopt(stream, peer, parts.read_buf);
    Ok(())
}
