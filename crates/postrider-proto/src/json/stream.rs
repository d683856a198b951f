//! `json::EventStream`: the server's half of the protocol as server-sent events (WHATWG HTML §9.2), in the chunks of an HTTP/1.1
//! answer. The request was read, and its caller known, before this begins; acknowledgements come by requests of their own.

use super::{JsonConfig, frame};
use crate::{Close, Deliver, Delivered, Fanned, Goodbye, Millis, Output, Reply, ServerProtocol, ws};
use std::sync::Arc;

#[derive(Debug)]
pub struct EventStream {
    config: Arc<JsonConfig>,
    /// Written, not acknowledged.
    inflight: Vec<u64>,
    /// When the next comment is due.
    comment_at: Millis,
    /// Header lines of the answer that the HTTP side wants there; taken when they are written.
    headers: String,
    is_open: bool,
    is_closed: bool,
}

/// How long a client waits before it connects again (milliseconds).
const RETRY_MS: u32 = 2_000;
/// After an end that connecting again does not mend; `EventSource` cannot be told to stay away.
const STAY_AWAY_MS: u32 = 60_000;

impl EventStream {
    /// `headers`: further lines for the answer's head, each with its CRLF.
    pub fn new(config: Arc<JsonConfig>, headers: String, now: Millis) -> Self {
        let comment_at = now + u64::from(config.comment_secs) * 1_000;
        EventStream { config, inflight: Vec::new(), comment_at, headers, is_open: false, is_closed: false }
    }

    /// The device acknowledged these by a request; the window opens by as much as was under way here.
    pub fn handle_acked(&mut self, deliveries: &[u64]) {
        self.inflight.retain(|d| !deliveries.contains(d));
        if self.inflight.is_empty() {
            self.inflight = Vec::new();
        }
    }

    fn close(&mut self, kind: &'static str, out: &mut Output) {
        self.is_closed = true;
        out.close.get_or_insert(Close { kind, gentle: true });
    }
}

/// One chunk of an HTTP/1.1 body (RFC 9112 §7.1).
fn write_chunk(payload: &[u8], bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(format!("{:x}\r\n", payload.len()).as_bytes());
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(b"\r\n");
}

impl ServerProtocol for EventStream {
    /// A client has nothing to say before its answer has ended.
    fn handle_bytes(&mut self, _: &[u8], _: Millis, _: &mut Output) {}

    fn handle_reply(&mut self, reply: Reply, _: Millis, out: &mut Output) {
        let Reply::Connect(outcome) = reply else { return };
        let headers = std::mem::take(&mut self.headers);
        match outcome {
            Ok(accepted) => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-store\r\n\
                     x-accel-buffering: no\r\nx-content-type-options: nosniff\r\ntransfer-encoding: chunked\r\n{headers}\r\n"
                );
                out.bytes.extend_from_slice(head.as_bytes());
                let welcome = super::socket::welcome(&accepted, self.config.comment_secs);
                let first = format!("retry: {RETRY_MS}\nevent: welcome\ndata: {welcome}\n\n");
                write_chunk(first.as_bytes(), &mut out.bytes);
                self.is_open = true;
            }
            Err(why) => {
                let (code, status, sentence, retry) = super::refusal(why);
                let body = format!(r#"{{"error":{{"code":"{code}","message":"{sentence}"}}}}"#);
                let retry = retry.map_or(String::new(), |ms| format!("retry-after: {}\r\n", ms / 1_000));
                let head = format!(
                    "HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\ncache-control: no-store\r\n{retry}{headers}\
                     connection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                out.bytes.extend_from_slice(head.as_bytes());
                self.close(code, out);
            }
        }
    }

    fn handle_deliver(
        &mut self,
        message: &mut Fanned,
        how: Deliver<'_>,
        now: Millis,
        bytes: &mut Vec<u8>,
    ) -> Delivered {
        if !self.is_open || self.is_closed {
            return Delivered::NotReady;
        }
        let is_acked = how.qos != crate::Qos::AtMostOnce;
        if is_acked && self.window() == 0 {
            return Delivered::WindowFull;
        }
        let mut event = Vec::with_capacity(message.publish().payload.len() + 160);
        if let Some(cursor) = how.cursor {
            let mut id = String::from("id: ");
            self.config.names.write_cursor(cursor, &mut id);
            event.extend_from_slice(id.as_bytes());
            event.push(b'\n');
        }
        event.extend_from_slice(b"data: ");
        frame::write_delivery(message, &how, &*self.config.names, &mut event);
        event.extend_from_slice(b"\n\n");
        write_chunk(&event, bytes);
        self.comment_at = now + u64::from(self.config.comment_secs) * 1_000;
        if is_acked {
            self.inflight.push(how.delivery);
        }
        Delivered::Written
    }

    fn handle_timeout(&mut self, now: Millis, out: &mut Output) {
        if self.is_open && !self.is_closed && now >= self.comment_at {
            write_chunk(b": heartbeat\n\n", &mut out.bytes);
            self.comment_at = now + u64::from(self.config.comment_secs) * 1_000;
        }
    }

    fn handle_goodbye(&mut self, why: Goodbye, _: Millis, out: &mut Output) {
        if self.is_closed {
            return;
        }
        let code = ws::CloseCode::from(why);
        if self.is_open {
            let bye = super::socket::bye(code);
            let retry = if code.may_retry { RETRY_MS } else { STAY_AWAY_MS };
            let last = format!("event: bye\nretry: {retry}\ndata: {bye}\n\n");
            write_chunk(last.as_bytes(), &mut out.bytes);
            out.bytes.extend_from_slice(b"0\r\n\r\n");
        }
        self.close(code.word, out);
    }

    fn next_timeout(&self) -> Option<Millis> {
        (!self.is_closed).then_some(self.comment_at)
    }

    fn window(&self) -> usize {
        if self.is_open && !self.is_closed {
            self.config.window.saturating_sub(self.inflight.len())
        } else {
            0
        }
    }
}
