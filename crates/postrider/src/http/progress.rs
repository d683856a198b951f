//! How far a connection and its requests are.

use super::HttpConfig;
use super::heads::Heads;
use super::seats::Busy;
use super::takeover::Taken;
use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How far a connection is; times are milliseconds since its begin, plus one, so that 0 means "not".
pub struct Progress {
    start: Instant,
    pub requests: AtomicUsize,
    had_request: AtomicBool,
    pub is_h2: AtomicBool,
    bytes_seen: AtomicBool,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    stalled_since: AtomicU64,
    /// When an answer that has more to say last went on; 0: none has. In HTTP/2 a peer that grants no window stops an answer
    /// without stopping the socket.
    answer_moved_at: AtomicU64,
    heads: Mutex<Heads>,
    /// Who takes the socket.
    pub take: Mutex<Option<Taken>>,
    pub taken: Notify,
    /// The peer of a request under way sends nothing more.
    hung_up: Notify,
}

/// Given to each request: tells one that waits that nobody may be left to hear its answer.
#[derive(Clone)]
pub struct Hangup(Arc<Progress>);

impl Hangup {
    /// Until the peer closes its side, or all.
    pub async fn heard(&self) {
        self.0.hung_up.notified().await;
    }
}

pub enum Verdict {
    Fine,
    Idle,
    /// A head has begun and does not end.
    HeadLate,
    Stuck,
}

impl Progress {
    pub fn new() -> Progress {
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
            heads: Mutex::default(),
            take: Mutex::default(),
            taken: Notify::new(),
            hung_up: Notify::new(),
        }
    }

    fn heads(&self) -> std::sync::MutexGuard<'_, Heads> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing was read behind the head of the request under way.
    pub fn is_at_end(&self) -> bool {
        self.heads().is_at_end()
    }

    pub fn free(&self, taken: Taken) {
        *self.take.lock().unwrap_or_else(PoisonError::into_inner) = Some(taken);
        self.taken.notify_one();
    }

    pub fn is_taken(&self) -> bool {
        self.take.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Where one request at a time is under way, its handler is told that the peer sends nothing more.
    pub fn peer_closed(&self) {
        if self.requests.load(Relaxed) > 0 && !self.is_h2.load(Relaxed) {
            self.hung_up.notify_one();
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64 + 1
    }

    pub fn verdict(&self, config: &HttpConfig) -> Verdict {
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

    pub fn read(&self, bytes: &[u8]) {
        if !self.bytes_seen.swap(true, Relaxed) {
            // The preface of HTTP/2; no method begins with it.
            self.is_h2.store(bytes.starts_with(b"PRI"), Relaxed);
        }
        // In HTTP/2 any frame may come between requests; there the idle time alone counts.
        if self.is_h2.load(Relaxed) {
            return;
        }
        if self.requests.load(Relaxed) == 0 {
            _ = self.head_since.compare_exchange(0, self.now(), Relaxed, Relaxed);
        }
        self.heads().read(bytes);
    }

    pub fn answer_moved(&self) {
        self.answer_moved_at.store(self.now(), Relaxed);
    }

    pub fn wrote<T>(&self, result: &Poll<T>) {
        match result {
            Poll::Pending => _ = self.stalled_since.compare_exchange(0, self.now(), Relaxed, Relaxed),
            Poll::Ready(_) => self.stalled_since.store(0, Relaxed),
        }
    }
}

/// A request that is not answered to the end.
pub struct Underway {
    progress: Arc<Progress>,
    /// Each line of its head ended with CR LF.
    pub has_clean_head: bool,
    /// Its connection makes no room for others meanwhile.
    _busy: Busy,
}

impl Underway {
    pub fn begin(progress: &Arc<Progress>, busy: Busy) -> Underway {
        progress.requests.fetch_add(1, Relaxed);
        progress.had_request.store(true, Relaxed);
        progress.head_since.store(0, Relaxed);
        let has_clean_head = progress.heads().begin();
        Underway { progress: progress.clone(), has_clean_head, _busy: busy }
    }

    pub fn hangup(&self) -> Hangup {
        Hangup(self.progress.clone())
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let progress = &self.progress;
        progress.idle_since.store(progress.now(), Relaxed);
        if progress.requests.fetch_sub(1, Relaxed) == 1 {
            progress.answer_moved_at.store(0, Relaxed);
        }
    }
}

/// The body of an answer: while it lives, its request is underway.
pub struct Guarded {
    pub body: Body,
    pub underway: Underway,
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
            Poll::Ready(_) => self.underway.progress.answer_moved(),
            // It is ours to go on.
            Poll::Pending => self.underway.progress.answer_moved_at.store(0, Relaxed),
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
