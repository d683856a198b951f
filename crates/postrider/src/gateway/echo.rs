//! The echo that outside WebSocket suites judge our stack by: every message goes back as it came. Off by default.

use postrider_proto::ws::{Message, ServerConnection, WsOutput};
use postrider_proto::{Deliver, Delivered, Fanned, Goodbye, Millis, Output, Reply, ServerProtocol};

pub struct Echo(pub ServerConnection);

/// Suites pause for a while, but not for ever.
const SILENCE_MS: Millis = 60_000;

impl ServerProtocol for Echo {
    fn handle_bytes(&mut self, bytes: &[u8], now: Millis, out: &mut Output) {
        let mut read = WsOutput { bytes: std::mem::take(&mut out.bytes), ..WsOutput::default() };
        self.0.handle_bytes_each(bytes, now, &mut read, |ws, message, bytes| match message {
            Message::Text(text) => ws.send_text(text, bytes),
            Message::Binary(payload) => ws.send_binary(payload, bytes),
        });
        out.bytes = read.bytes;
        out.close = out.close.or(read.close);
    }

    fn handle_reply(&mut self, _: Reply, _: Millis, _: &mut Output) {}

    fn handle_deliver(&mut self, _: &mut Fanned, _: Deliver<'_>, _: Millis, _: &mut Vec<u8>) -> Delivered {
        Delivered::NotReady
    }

    fn handle_timeout(&mut self, now: Millis, out: &mut Output) {
        if self.next_timeout().is_some_and(|due| due <= now) {
            self.handle_goodbye(Goodbye::SessionExpired, now, out);
        }
    }

    fn handle_goodbye(&mut self, why: Goodbye, _: Millis, out: &mut Output) {
        let mut end = WsOutput::default();
        self.0.close(why.into(), &mut end);
        out.bytes.extend_from_slice(&end.bytes);
        out.close = out.close.or(end.close);
    }

    fn next_timeout(&self) -> Option<Millis> {
        (!self.0.is_closed()).then(|| self.0.heard_at() + SILENCE_MS)
    }

    fn window(&self) -> usize {
        0
    }
}
