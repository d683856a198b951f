//! `ws::MqttOverWs`: an inner protocol over binary WebSocket messages (MQTT 5 §6).
//!
//! Packets and frames know nothing of each other: a packet may be cut over frames, a frame may hold many (MQTT-6.0.0-2).
//! So payloads are unmasked in small parts and handed on at once, and nothing is buffered here.

use super::WsConfig;
use super::close::CloseCode;
use super::frame;
use super::reader::{self, Control, Data, Piece, Reader};
use crate::{Close, Deliver, Delivered, Fanned, Goodbye, Millis, Output, Reply, ServerProtocol};
use std::sync::Arc;

/// How much is unmasked at a time: larger than nearly all packets of devices, small enough for the stack.
const PART_BYTES: usize = 4 * 1024;

#[derive(Debug)]
pub struct MqttOverWs<P> {
    config: Arc<WsConfig>,
    reader: Reader,
    inner: P,
    is_closed: bool,
}

impl<P: ServerProtocol> MqttOverWs<P> {
    pub fn new(config: Arc<WsConfig>, inner: P) -> Self {
        MqttOverWs { config, reader: Reader::default(), inner, is_closed: false }
    }

    pub fn inner(&self) -> &P {
        &self.inner
    }

    pub fn inner_mut(&mut self) -> &mut P {
        &mut self.inner
    }

    /// Lets the inner protocol speak, and makes a frame of what it said.
    fn with_inner(&mut self, code: CloseCode, out: &mut Output, speak: impl FnOnce(&mut P, &mut Output)) {
        let start = out.bytes.len();
        speak(&mut self.inner, out);
        if self.is_closed {
            // A late answer: it matters to the inner protocol's session, and no longer to the peer.
            out.bytes.truncate(start);
            return;
        }
        frame::wrap_binary(start, &mut out.bytes);
        if let Some(close) = &mut out.close {
            let is_goodbye = close.kind == "disconnect";
            reader::write_close(if is_goodbye { CloseCode::NORMAL } else { code }, &mut out.bytes);
            // The code is to be read; a peer that said goodbye itself reads none.
            close.gentle |= !is_goodbye;
            self.is_closed = true;
        }
    }

    fn handle_data(&mut self, data: &Data<'_>, now: Millis, out: &mut Output) -> Result<(), CloseCode> {
        // MQTT-6.0.0-1.
        if data.is_text {
            return Err(CloseCode::UNSUPPORTED_DATA);
        }
        self.with_inner(CloseCode::POLICY, out, |inner, out| {
            let mut part = [0; PART_BYTES];
            let mut at = 0;
            while at < data.masked.len() && out.close.is_none() {
                let len = data.copy_part(at, &mut part);
                inner.handle_bytes(&part[..len], now, out);
                at += len;
            }
        });
        Ok(())
    }

    fn handle_control(&mut self, control: &Control, out: &mut Output) -> Result<(), CloseCode> {
        if reader::answer_control(control, &mut out.bytes)? {
            self.end("peer_closed", false, out);
        }
        Ok(())
    }

    fn end(&mut self, kind: &'static str, gentle: bool, out: &mut Output) {
        self.is_closed = true;
        out.close.get_or_insert(Close { kind, gentle });
    }
}

impl<P: ServerProtocol> ServerProtocol for MqttOverWs<P> {
    fn handle_bytes(&mut self, bytes: &[u8], now: Millis, out: &mut Output) {
        let mut input = bytes;
        while !self.is_closed {
            let handled = match self.reader.next(&mut input, now, &self.config) {
                Ok(Some(Piece::Data(data))) => self.handle_data(&data, now, out),
                Ok(Some(Piece::Control(control))) => self.handle_control(&control, out),
                Ok(None) => return,
                Err(code) => Err(code),
            };
            if let Err(code) = handled {
                reader::write_close(code, &mut out.bytes);
                self.end(code.word, true, out);
            }
        }
    }

    fn handle_reply(&mut self, reply: Reply, now: Millis, out: &mut Output) {
        self.with_inner(CloseCode::POLICY, out, |inner, out| inner.handle_reply(reply, now, out));
    }

    fn handle_deliver(
        &mut self,
        message: &mut Fanned,
        how: Deliver<'_>,
        now: Millis,
        bytes: &mut Vec<u8>,
    ) -> Delivered {
        if self.is_closed {
            return Delivered::NotReady;
        }
        let start = bytes.len();
        let delivered = self.inner.handle_deliver(message, how, now, bytes);
        frame::wrap_binary(start, bytes);
        delivered
    }

    fn handle_timeout(&mut self, now: Millis, out: &mut Output) {
        self.with_inner(CloseCode::KEEPALIVE, out, |inner, out| inner.handle_timeout(now, out));
    }

    fn handle_goodbye(&mut self, why: Goodbye, now: Millis, out: &mut Output) {
        self.with_inner(why.into(), out, |inner, out| inner.handle_goodbye(why, now, out));
    }

    fn next_timeout(&self) -> Option<Millis> {
        if self.is_closed { None } else { self.inner.next_timeout() }
    }

    fn window(&self) -> usize {
        if self.is_closed { 0 } else { self.inner.window() }
    }
}
