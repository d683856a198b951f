//! The HTTP server: accepts, bounds and ends connections; HTTP/1.1 and HTTP/2 are hyper's.
//!
//! Every wait of a peer has an end here (L24, L25, L28): the first head, a head that drips, an idle connection, a peer that
//! does not read. Each connection notes its progress in a few atomics, and its own task looks at them once in a while:
//! no timer is touched per request. Bodies have their own clock where they are read (`api/json.rs`).

mod body;
mod forwarded;
mod head;
mod heads;
mod progress;
mod proxied;
mod seats;
mod socket;
mod takeover;

use crate::api::auth::Peer;
use crate::api::error::{ApiError, Code};
use crate::api::health::HttpMetrics;
use crate::networks::Networks;
use crate::planted;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
pub use forwarded::ByProxy;
pub use head::Kind;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
pub use progress::Hangup;
use progress::{Guarded, Progress, Underway, Verdict};
use seats::{Busy, Seat, Seats, turn_away};
use socket::Watched;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use takeover::{Back, Taken};
pub use takeover::{Freed, Takeover, upgraded};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt;

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
    /// Proxies whose word about their clients' addresses is taken.
    pub trusted_proxies: Networks,
    /// Proxies whose connections begin with a PROXY header.
    pub proxies: Networks,
    /// How long requests may go on after the order to stop.
    pub drain_max: Duration,
}

impl Default for HttpConfig {
    fn default() -> HttpConfig {
        HttpConfig {
            head_time_max: Duration::from_secs(10),
            // Proxies give up a connection that they keep after 60 seconds, and must come first.
            idle_max: Duration::from_secs(75),
            write_stall_max: Duration::from_secs(30),
            head_bytes_max: 16 * 1024,
            head_fields_max: 64,
            uri_bytes_max: 8 * 1024,
            streams_max: 100,
            resets_max: 100,
            connections_max: 10_000,
            connections_per_address_max: 2_000,
            trusted_proxies: Networks::default(),
            proxies: Networks::default(),
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
    metrics: HttpMetrics,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let stopping = stop.clone();
    let seats = Seats::new(metrics);
    let unnamed = tokio::sync::Semaphore::new(UNNAMED_MAX);
    let server = Arc::new(Server { builder: builder(&config), router, config, stopping, seats, unnamed });
    let mut connections = JoinSet::new();
    loop {
        planted::panic_in_thread("http");
        tokio::select! {
            () = raised(&mut stop) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if server.config.proxies.contain(peer.ip()) => {
                    _ = connections.spawn(server.clone().converse_for_proxy(stream, peer));
                }
                Ok((stream, peer)) => {
                    if let Some(seat) = server.seat(&stream, peer) {
                        connections.spawn(server.clone().converse(stream, peer, seat));
                    }
                }
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
        // Who has sent a whole request may close that side at once, and still gets the answer.
        .half_close(true)
        // `Progress` keeps both times, and tells who is late; this one would close without a word.
        .header_read_timeout(config.idle_max + config.head_time_max)
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

/// Said to a peer whose head did not come to its end in time (RFC 9110 §15.5.9).
const HEAD_LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Connections of proxies whose header has not come.
const UNNAMED_MAX: usize = 2_000;

struct Server {
    builder: auto::Builder<TokioExecutor>,
    router: Router,
    config: HttpConfig,
    stopping: watch::Receiver<bool>,
    seats: Arc<Seats>,
    /// Connections of proxies that may wait for their header.
    unnamed: tokio::sync::Semaphore,
}

impl Server {
    /// A seat for the connection; where there is none, the peer is told.
    fn seat(&self, stream: &TcpStream, peer: SocketAddr) -> Option<Seat> {
        let seat = self.seats.take(peer.ip(), &self.config);
        if seat.is_none() {
            self.seats.metrics.refused.inc();
            turn_away(stream);
        }
        seat
    }

    /// A connection of a proxy, which says first for whom it is.
    async fn converse_for_proxy(self: Arc<Self>, mut stream: TcpStream, peer: SocketAddr) {
        let Ok(unnamed) = self.unnamed.try_acquire() else {
            self.seats.metrics.refused.inc();
            return turn_away(&stream);
        };
        let named = tokio::time::timeout(self.config.head_time_max, proxied::source(&mut stream)).await;
        match named.unwrap_or_else(|_| Err(io::Error::other("no PROXY header came in time"))) {
            Ok(source) => {
                drop(unnamed);
                let peer = source.unwrap_or(peer);
                if let Some(seat) = self.seat(&stream, peer) {
                    self.clone().converse(stream, peer, seat).await;
                }
            }
            Err(why) => {
                self.seats.metrics.refused.inc();
                tracing::debug!(%peer, %why, "a connection of a proxy named in proxy_protocol.http was refused");
                proxied::refuse(&stream);
            }
        }
    }

    /// One connection, from accept to its end.
    async fn converse(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, seat: Seat) {
        _ = stream.set_nodelay(true);
        let progress = Arc::new(Progress::new());
        let stream = Arc::new(stream);
        let socket = Arc::downgrade(&stream);
        let io = TokioIo::new(Watched { stream, progress: progress.clone() });
        let seat = Arc::new(seat);
        let service = hyper::service::service_fn({
            let (server, progress, seat) = (self.clone(), progress.clone(), seat.clone());
            move |request| server.clone().respond(request, peer, progress.clone(), seat.busy())
        });
        let mut conversation = Box::pin(self.builder.serve_connection_with_upgrades(io, service));
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
                () = progress.taken.notified() => {
                    drop(seat);
                    let stream = socket.upgrade();
                    drop(conversation);
                    return self.hand_over(stream, peer, &progress);
                }
                () = seat.given_away() => {
                    // A request that came at that very moment is answered.
                    if progress.requests.load(Relaxed) == 0 {
                        let stream = socket.upgrade().filter(|_| !progress.is_h2.load(Relaxed));
                        _ = stream.map(|stream| turn_away(&stream));
                        break;
                    }
                }
                () = tokio::time::sleep(look) => {
                    if socket.upgrade().is_some_and(|stream| socket::is_read_closed(&stream)) {
                        progress.peer_closed();
                    }
                    match progress.verdict(config) {
                        Verdict::Fine => {}
                        Verdict::Idle if progress.is_h2.load(Relaxed) && !leaving => {
                            leaving = true;
                            conversation.as_mut().graceful_shutdown();
                        }
                        Verdict::HeadLate => {
                            _ = socket.upgrade().map(|stream| stream.try_write(HEAD_LATE));
                            break;
                        }
                        Verdict::Idle | Verdict::Stuck => break,
                    }
                }
                () = raised(&mut stopping), if !leaving => {
                    leaving = true;
                    conversation.as_mut().graceful_shutdown();
                }
            }
        }
        drop(seat);
    }

    /// The conversation is over, and its socket is given to whom its last answer named.
    fn hand_over(self: Arc<Self>, stream: Option<Arc<TcpStream>>, peer: SocketAddr, progress: &Progress) {
        let take = progress.take.lock().unwrap_or_else(PoisonError::into_inner).take();
        let stream = stream.and_then(Arc::into_inner).and_then(|s| s.into_std().ok());
        if let (Some(taken), Some(stream)) = (take, stream) {
            (taken.take)(Freed {
                stream,
                peer: taken.peer,
                headers: taken.headers,
                closes: taken.closes,
                socket_peer: peer,
                server: self,
            });
        }
    }

    /// Answers the request that a socket was taken over with, and serves the connection on.
    async fn go_on<F: Future<Output = Response>>(
        self: Arc<Self>,
        Back { stream, peer, mut headers, closes }: Back,
        answer: impl FnOnce() -> F,
    ) {
        let Ok(mut stream) = TcpStream::from_std(stream) else { return };
        if closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let Some(seat) = self.seats.take(peer.ip(), &self.config) else { return turn_away(&stream) };
        let Ok(whole) = takeover::on_the_wire(answer().await, &headers).await else { return };
        let written = tokio::time::timeout(self.config.write_stall_max, stream.write_all(&whole)).await;
        if written.is_ok_and(|w| w.is_ok()) && !closes {
            self.converse(stream, peer, seat).await;
        }
    }

    /// The client of a request that came through trusted proxies, whose host becomes the request's.
    /// Otherwise the peer itself, whatever the request says.
    fn see_through_proxies<B>(&self, request: &mut Request<B>, peer: SocketAddr) -> SocketAddr {
        let trusted = &self.config.trusted_proxies;
        if !trusted.contain(peer.ip()) {
            return peer;
        }
        request.extensions_mut().insert(ByProxy);
        if let Some(host) = forwarded::host(request.headers()) {
            request.headers_mut().insert(header::HOST, host);
        }
        forwarded::client(request.headers(), peer, trusted)
    }

    /// The router's answer, and the body of the request where it has one.
    async fn answer(&self, kind: &Kind, request: Request<Incoming>) -> (Response, Option<body::Shared>) {
        let checked = kind.check(&request, &self.config);
        let (head, incoming) = request.into_parts();
        let shared = kind.has_body.then(|| body::Shared::new(incoming));
        let body = shared.clone().map_or_else(Body::empty, Body::new);
        let response = match checked {
            Ok(()) => match self.router.clone().oneshot(Request::from_parts(head, body)).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err(error) => error.into_response(),
        };
        (response, shared)
    }

    async fn respond(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        progress: Arc<Progress>,
        busy: Busy,
    ) -> Result<Response<Guarded>, std::convert::Infallible> {
        let underway = Underway::begin(&progress, busy);
        let kind = Kind::of(&request, underway.has_clean_head);
        if kind.has_body {
            // hyper would hand the socket over whatever the answer is.
            request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
        }
        let peer = self.see_through_proxies(&mut request, peer);
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(Stopping(self.stopping.clone()));
        request.extensions_mut().insert(underway.hangup());
        let (mut response, body) = self.answer(&kind, request).await;
        let takeover = response.extensions_mut().remove::<Takeover>();
        let leaves = takeover.is_some() || response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if leaves && kind.has_body {
            response = ApiError::from(Code::BodyNotAllowed).into_response();
        } else if let Some(takeover) = takeover.filter(|_| !kind.is_head) {
            match takeover.take().filter(|_| progress.is_at_end()) {
                Some(take) => {
                    let headers = std::mem::take(response.headers_mut());
                    progress.free(Taken { take, peer, headers, closes: kind.is_last });
                }
                // It did not wait for its answer with the next request, which would be lost with
                // the buffer it is in.
                None => response = ApiError::from(Code::Unavailable).into_response(),
            }
            if progress.is_taken() {
                // Dropped with the conversation.
                std::future::pending::<()>().await;
            }
        }
        let is_body_read = match body {
            Some(body) if kind.is_h1 && !leaves => body.finish(!kind.waits_for_word).await,
            body => body.is_none(),
        };
        kind.fit(&mut response, is_body_read);
        progress.answer_moved();
        Ok(response.map(|body| Guarded { body, underway }))
    }
}
