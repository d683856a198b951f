//! `ws::XmppOverWs`: XMPP over WebSocket (RFC 7395). Each text message holds one whole element, so whole messages are what it takes.

use super::frame::{self, Opcode};
use super::{CloseCode, Message, ServerConnection, WsConfig, WsOutput};
use crate::{Deliver, Delivered, Fanned, Goodbye, Millis, Output, Reply, ServerProtocol, xmpp};
use std::sync::Arc;

#[derive(Debug)]
pub struct XmppOverWs {
    ws: ServerConnection,
    inner: xmpp::ServerConnection,
    /// Of a message before sign-in.
    bytes_max_before_auth: usize,
}

impl XmppOverWs {
    /// `is_tls`: the WebSocket is a secure one, and sign-in with it. `seed`: see [`xmpp::ServerConnection::new`].
    pub fn new(
        ws: Arc<WsConfig>,
        config: Arc<xmpp::ServerConfig>,
        seed: [u8; 32],
        is_tls: bool,
        now: Millis,
    ) -> Self {
        let bytes_max_before_auth = config.before_auth.bytes_max;
        XmppOverWs {
            ws: ServerConnection::new(ws, now),
            inner: xmpp::ServerConnection::framed(config, seed, is_tls, now),
            bytes_max_before_auth,
        }
    }

    pub fn inner(&self) -> &xmpp::ServerConnection {
        &self.inner
    }

    pub fn inner_mut(&mut self) -> &mut xmpp::ServerConnection {
        &mut self.inner
    }

    /// Lets XMPP speak, and makes messages of what it said.
    fn with_inner(&mut self, out: &mut Output, speak: impl FnOnce(&mut xmpp::ServerConnection, &mut Output)) {
        let start = out.bytes.len();
        speak(&mut self.inner, out);
        if self.ws.is_closed() {
            // A late answer: it matters to the session, and no longer to the peer.
            return out.bytes.truncate(start);
        }
        wrap_elements(start, &mut out.bytes);
        if let Some(close) = out.close {
            let code = if close.kind == "disconnect" { CloseCode::NORMAL } else { CloseCode::POLICY };
            self.close(code, out);
        }
    }

    fn close(&mut self, code: CloseCode, out: &mut Output) {
        let mut said = WsOutput::default();
        self.ws.close(code, &mut said);
        out.bytes.extend_from_slice(&said.bytes);
        if let Some(close) = said.close {
            out.close.get_or_insert(close);
        }
    }
}

/// Each element ends with a zero byte, and becomes one text message.
fn wrap_elements(start: usize, bytes: &mut Vec<u8>) {
    let elements = bytes.split_off(start);
    for element in elements.split(|byte| *byte == 0).filter(|element| !element.is_empty()) {
        frame::write_frame(Opcode::Text, element, bytes);
    }
}

impl ServerProtocol for XmppOverWs {
    fn handle_bytes(&mut self, bytes: &[u8], now: Millis, out: &mut Output) {
        let mut heard = WsOutput::default();
        self.ws.handle_bytes(bytes, now, &mut heard);
        let is_ws_closed = heard.close.is_some();
        for message in heard.messages {
            match message {
                Message::Text(_) if out.close.is_some() => break,
                Message::Text(text) => {
                    let speak = |inner: &mut xmpp::ServerConnection, out: &mut Output| {
                        inner.handle_bytes(text.as_bytes(), now, out);
                        inner.handle_message_end(out);
                    };
                    if is_ws_closed {
                        // What it said before it left counts, but there is nobody to answer.
                        let start = out.bytes.len();
                        speak(&mut self.inner, out);
                        out.bytes.truncate(start);
                    } else {
                        self.with_inner(out, speak);
                    }
                }
                Message::Binary(_) => self.close(CloseCode::UNSUPPORTED_DATA, out),
            }
        }
        out.bytes.extend_from_slice(&heard.bytes);
        if let Some(close) = heard.close {
            out.close.get_or_insert(close);
        } else if !self.inner.is_connected() && self.ws.buffered() > self.bytes_max_before_auth {
            self.close(CloseCode::POLICY, out);
        }
    }

    fn handle_reply(&mut self, reply: Reply, now: Millis, out: &mut Output) {
        self.with_inner(out, |inner, out| inner.handle_reply(reply, now, out));
    }

    fn handle_deliver(
        &mut self,
        message: &mut Fanned,
        how: Deliver<'_>,
        now: Millis,
        bytes: &mut Vec<u8>,
    ) -> Delivered {
        if self.ws.is_closed() {
            return Delivered::NotReady;
        }
        let start = bytes.len();
        let delivered = self.inner.handle_deliver(message, how, now, bytes);
        wrap_elements(start, bytes);
        delivered
    }

    fn handle_timeout(&mut self, now: Millis, out: &mut Output) {
        self.with_inner(out, |inner, out| inner.handle_timeout(now, out));
    }

    fn handle_goodbye(&mut self, why: Goodbye, now: Millis, out: &mut Output) {
        self.with_inner(out, |inner, out| inner.handle_goodbye(why, now, out));
    }

    fn next_timeout(&self) -> Option<Millis> {
        if self.ws.is_closed() { None } else { self.inner.next_timeout() }
    }

    fn window(&self) -> usize {
        if self.ws.is_closed() { 0 } else { self.inner.window() }
    }

    fn holds_back(&self) -> bool {
        self.inner.holds_back()
    }
}
