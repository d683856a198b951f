//! The body of a request, which the server can still read to its end when the handler did not.
//!
//! An answer may come before the body was read. The connection can then go on only if the body is
//! read after all; else it ends, and says so in the answer: a proxy that keeps connections would give
//! the next user's request to one that is about to close.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// What of an unread body is read for the connection's sake: it mostly came with the head.
const REST_BYTES_MAX: usize = 64 * 1024;
const REST_TIME_MAX: Duration = Duration::from_millis(50);

struct Inner {
    body: Incoming,
    is_at_end: bool,
}

/// A body that the handler and the server both hold.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Inner>>);

impl Shared {
    pub fn new(body: Incoming) -> Shared {
        Shared(Arc::new(Mutex::new(Inner { is_at_end: body.is_end_stream(), body })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries for a moment to read the body to its end; whether it was read so far. `may_ask`: reading may tell
    /// a client to send it that waits for the word (`Expect: 100-continue`).
    pub async fn finish(mut self, may_ask: bool) -> bool {
        if !self.inner().is_at_end && may_ask {
            let rest = async {
                let mut bytes = 0;
                while bytes <= REST_BYTES_MAX {
                    match self.frame().await {
                        Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, Bytes::len),
                        _ => break,
                    }
                }
            };
            _ = tokio::time::timeout(REST_TIME_MAX, rest).await;
        }
        self.inner().is_at_end
    }
}

impl Body for Shared {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut inner = self.inner();
        let frame = Pin::new(&mut inner.body).poll_frame(cx);
        inner.is_at_end |= matches!(frame, Poll::Ready(None)) || inner.body.is_end_stream();
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner().body.size_hint()
    }
}
