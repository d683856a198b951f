//! The HTTP server: accepts, bounds and ends connections; HTTP/1.1 and HTTP/2 are hyper's.
//!
//! Every wait of a peer has an end here (L24, L25, L28): the first head, a head that drips, an idle connection, a peer that
//! does not read. Each connection notes its progress in a few atomics, and its own task looks at them once in a while:
//! no timer is touched per request. Bodies have their own clock where they are read (`api/json.rs`).

use crate::api::auth::{Peer, network};
use crate::api::error::{ApiError, Code};
use crate::api::health::HttpMetrics;
use crate::gateway::GiveBack;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Version, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::{self, upgrade};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

/// In the extensions of an answer: there is none, the socket goes elsewhere. Of HTTP/1.1 only.
#[derive(Clone)]
pub struct Takeover(Arc<Mutex<Option<Take>>>);

type Take = Box<dyn FnOnce(Freed) + Send>;

impl Takeover {
    pub fn new(take: impl FnOnce(Freed) + Send + 'static) -> Takeover {
        Takeover(Arc::new(Mutex::new(Some(Box::new(take)))))
    }
}

/// A socket whose request was read, and whose answer was not begun.
pub struct Freed {
    pub stream: std::net::TcpStream,
    pub peer: SocketAddr,
    /// Those that the answer would have had.
    pub headers: HeaderMap,
    server: Arc<Server>,
}

impl Freed {
    /// How the socket comes back: the request is answered with what `answer` brings, and the connection goes on.
    pub fn split<F>(
        self,
        answer: impl FnOnce(bool) -> F + Send + 'static,
    ) -> (std::net::TcpStream, SocketAddr, GiveBack)
    where
        F: Future<Output = Response> + Send + 'static,
    {
        let Freed { stream, peer, headers, server } = self;
        let runtime = tokio::runtime::Handle::current();
        let give_back = move |stream, has_waited| {
            let continued = server.go_on(stream, peer, headers, move || answer(has_waited));
            runtime.spawn(continued);
        };
        (stream, peer, Box::new(give_back))
    }
}

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
    metrics: HttpMetrics,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let stopping = stop.clone();
    let seats = Arc::new(Seats { metrics, ..Seats::default() });
    let server = Arc::new(Server { builder: builder(&config), router, config, stopping, seats });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = raised(&mut stop) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match server.seats.take(peer.ip(), &server.config) {
                    Some(seat) => _ = connections.spawn(server.clone().converse(stream, peer, seat)),
                    None => {
                        server.seats.metrics.refused.inc();
                        turn_away(&stream);
                    }
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

/// Answered without a look at the request: it costs next to nothing, and a client that waits can come again.
fn turn_away(stream: &TcpStream) {
    let answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    _ = stream.try_write(answer);
}

/// How many connections there are, in all and from each address.
#[derive(Default)]
struct Seats {
    taken: Mutex<(usize, HashMap<IpAddr, usize>)>,
    metrics: HttpMetrics,
}

struct Seat(Arc<Seats>, IpAddr);

impl Seats {
    fn take(self: &Arc<Self>, address: IpAddr, config: &HttpConfig) -> Option<Seat> {
        let address = network(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *taken;
        let own = by_address.get(&address).copied().unwrap_or(0);
        if *all >= config.connections_max || own >= config.connections_per_address_max {
            return None;
        }
        *all += 1;
        by_address.insert(address, own + 1);
        self.metrics.connections.inc();
        Some(Seat(self.clone(), address))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 -= 1;
        self.0.metrics.connections.dec();
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
    seats: Arc<Seats>,
}

impl Server {
    /// One connection, from accept to its end.
    async fn converse(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, seat: Seat) {
        _ = stream.set_nodelay(true);
        let progress = Arc::new(Progress::new());
        let stream = Arc::new(stream);
        let socket = Arc::downgrade(&stream);
        let io = TokioIo::new(Watched { stream, progress: progress.clone() });
        let service = hyper::service::service_fn({
            let (server, progress) = (self.clone(), progress.clone());
            move |request| server.clone().respond(request, peer, progress.clone())
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
                () = tokio::time::sleep(look) => match progress.verdict(config) {
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
                },
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
        if let (Some((take, headers)), Some(stream)) = (take, stream) {
            take(Freed { stream, peer, headers, server: self });
        }
    }

    /// Answers the request that a socket was taken over with, and serves the connection on.
    async fn go_on<F: Future<Output = Response>>(
        self: Arc<Self>,
        stream: std::net::TcpStream,
        peer: SocketAddr,
        headers: HeaderMap,
        answer: impl FnOnce() -> F,
    ) {
        let Ok(mut stream) = TcpStream::from_std(stream) else { return };
        let Some(seat) = self.seats.take(peer.ip(), &self.config) else { return turn_away(&stream) };
        let Ok(whole) = on_the_wire(answer().await, &headers).await else { return };
        let written = tokio::time::timeout(self.config.write_stall_max, stream.write_all(&whole)).await;
        if written.is_ok_and(|w| w.is_ok()) {
            self.converse(stream, peer, seat).await;
        }
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
        if let Some(takeover) = response.extensions_mut().remove::<Takeover>() {
            match takeover
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
                .filter(|_| progress.is_at_end())
            {
                Some(take) => progress.free(take, std::mem::take(response.headers_mut())),
                // It did not wait for its answer with the next request, which would be lost with the buffer it is in.
                None => response = ApiError::from(Code::Unavailable).into_response(),
            }
            if progress.is_taken() {
                // Dropped with the conversation.
                std::future::pending::<()>().await;
            }
        }
        if last {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        progress.answer_moved();
        Ok(response.map(|body| Guarded { body, underway }))
    }
}

/// An answer as HTTP/1.1 has it, with the headers that it does not have itself.
async fn on_the_wire(answer: Response, more: &HeaderMap) -> Result<Vec<u8>, axum::Error> {
    let (parts, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut whole = format!("HTTP/1.1 {}\r\n", parts.status).into_bytes();
    let others = more.iter().filter(|(name, _)| !parts.headers.contains_key(*name));
    for (name, value) in parts.headers.iter().chain(others).filter(|(n, _)| *n != header::CONTENT_LENGTH) {
        whole.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    whole.extend(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    whole.extend(body);
    Ok(whole)
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
struct Progress {
    start: Instant,
    requests: AtomicUsize,
    had_request: AtomicBool,
    is_h2: AtomicBool,
    bytes_seen: AtomicBool,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    stalled_since: AtomicU64,
    /// When an answer that has more to say last went on; 0: none has. In HTTP/2 a peer that grants no window stops an answer
    /// without stopping the socket.
    answer_moved_at: AtomicU64,
    ends: Mutex<Ends>,
    /// Who takes the socket, and with which headers.
    take: Mutex<Option<(Take, HeaderMap)>>,
    taken: Notify,
}

/// Where heads end in what was read since the last request.
#[derive(Debug, Default)]
struct Ends {
    /// Of CR LF CR LF.
    matched: u8,
    heads: u32,
    /// The request that is under way came alone, to its last byte.
    is_alone: bool,
}

impl Ends {
    fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.matched = match (self.matched, byte) {
                (0 | 2 | 4, b'\r') => (self.matched % 4) + 1,
                (1 | 3, b'\n') => self.matched + 1,
                (_, b'\r') => 1,
                _ => 0,
            };
            self.heads += u32::from(self.matched == 4);
        }
    }

    fn begin(&mut self) {
        *self = Ends { is_alone: self.heads == 1 && self.matched == 4, ..Ends::default() };
    }
}

enum Verdict {
    Fine,
    Idle,
    /// A head has begun and does not end.
    HeadLate,
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
            answer_moved_at: AtomicU64::new(0),
            ends: Mutex::default(),
            take: Mutex::default(),
            taken: Notify::new(),
        }
    }

    fn ends(&self) -> std::sync::MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing was read behind the head of the request under way.
    fn is_at_end(&self) -> bool {
        self.ends().is_alone
    }

    fn free(&self, take: Take, headers: HeaderMap) {
        *self.take.lock().unwrap_or_else(PoisonError::into_inner) = Some((take, headers));
        self.taken.notify_one();
    }

    fn is_taken(&self) -> bool {
        self.take.lock().unwrap_or_else(PoisonError::into_inner).is_some()
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
        if over(&self.stalled_since, config.write_stall_max)
            || over(&self.answer_moved_at, config.write_stall_max)
        {
            return Verdict::Stuck;
        }
        if self.requests.load(Relaxed) > 0 {
            return Verdict::Fine;
        }
        let first_is_late = !self.had_request.load(Relaxed) && over(&self.idle_since, config.head_time_max);
        if first_is_late || over(&self.head_since, config.head_time_max) {
            let begun = self.head_since.load(Relaxed) > 0;
            return if begun { Verdict::HeadLate } else { Verdict::Stuck };
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
            self.ends().read(bytes);
        } else {
            self.ends().is_alone = false;
        }
    }

    fn answer_moved(&self) {
        self.answer_moved_at.store(self.now(), Relaxed);
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
        progress.ends().begin();
        Underway(progress.clone())
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Relaxed);
        if self.0.requests.fetch_sub(1, Relaxed) == 1 {
            self.0.answer_moved_at.store(0, Relaxed);
        }
    }
}

/// The body of an answer: while it lives, its request is underway.
struct Guarded {
    body: Body,
    underway: Underway,
}

impl hyper::body::Body for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(_) => self.underway.0.answer_moved(),
            // It is ours to go on.
            Poll::Pending => self.underway.0.answer_moved_at.store(0, Relaxed),
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that notes its progress. Held by the conversation alone, and looked up when the conversation gives it up.
struct Watched {
    stream: Arc<TcpStream>,
    progress: Arc<Progress>,
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read_buf(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
                Ok(_) => break,
            }
        }
        if buf.filled().len() > before {
            self.progress.read(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl Watched {
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        send: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.stream.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                other => return other.map(|r| r.map(|()| 0)),
            }
            match send(&self.stream) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.poll_send(cx, |stream| stream.try_write(buf));
        self.progress.wrote(&result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.poll_send(cx, |stream| stream.try_write_vectored(bufs));
        self.progress.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&*self.stream).shutdown(std::net::Shutdown::Write))
    }
}

/// The socket of a connection that was upgraded, with the bytes already read from it.
pub async fn upgraded(upgrade: hyper::upgrade::OnUpgrade) -> io::Result<(std::net::TcpStream, Bytes)> {
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    let parts = upgrade::downcast::<TokioIo<Watched>>(upgraded)
        .map_err(|_| io::Error::other("the connection is not a plain socket"))?;
    let stream = Arc::into_inner(parts.io.into_inner().stream);
    let stream = stream.ok_or_else(|| io::Error::other("the socket is still in use"))?;
    Ok((stream.into_std()?, parts.read_buf))
}
