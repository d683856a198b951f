//! `ws::ServerConnection`: whole messages over one WebSocket.

use super::WsConfig;
use super::close::CloseCode;
use super::deflate::Deflate;
use super::frame::{self, Opcode};
use super::reader::{self, Control, Data, Piece, Reader};
use crate::{Close, Millis, Text};
use bytes::Bytes;
use std::sync::Arc;

/// A data message of the peer's.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Text(Text),
    Binary(Bytes),
}

/// What [`ServerConnection::handle_bytes`] brought forth. Owned by the driver and reused.
#[derive(Debug, Default)]
pub struct WsOutput {
    /// To be written to the peer.
    pub bytes: Vec<u8>,
    pub messages: Vec<Message>,
    /// When set: write `bytes`, then close.
    pub close: Option<Close>,
}

/// The server's side of one WebSocket after its handshake. Pings are answered here; nothing else is said unasked.
#[derive(Debug)]
pub struct ServerConnection {
    config: Arc<WsConfig>,
    reader: Reader,
    /// The message under way, as received.
    message: Vec<u8>,
    /// So much of a text under way is known to be UTF-8.
    utf8_checked: usize,
    heard_at: Millis,
    deflate: Option<Deflate>,
    is_closed: bool,
}

impl ServerConnection {
    pub fn new(config: Arc<WsConfig>, now: Millis) -> Self {
        let reader = Reader::default();
        ServerConnection {
            config,
            reader,
            message: Vec::new(),
            utf8_checked: 0,
            heard_at: now,
            deflate: None,
            is_closed: false,
        }
    }

    /// With messages compressed as the handshake agreed.
    pub fn with_deflate(mut self, deflate: Option<Deflate>) -> Self {
        self.reader.takes_compressed = deflate.is_some();
        self.deflate = deflate;
        self
    }

    /// When the last bytes of the peer came: any, a pong too.
    pub fn heard_at(&self) -> Millis {
        self.heard_at
    }

    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Bytes of the message under way.
    pub(crate) fn buffered(&self) -> usize {
        self.message.len()
    }

    /// Bytes of the peer, cut anywhere.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Millis, out: &mut WsOutput) {
        self.handle_bytes_each(bytes, now, out, |_, _, _| {});
    }

    /// The same, with each message answered at once, before the control frames behind it are.
    pub fn handle_bytes_each(
        &mut self,
        bytes: &[u8],
        now: Millis,
        out: &mut WsOutput,
        mut answer: impl FnMut(&mut Self, &Message, &mut Vec<u8>),
    ) {
        let mut input = bytes;
        self.heard_at = now;
        while !self.is_closed {
            let told = out.messages.len();
            let handled = match self.reader.next(&mut input, now, &self.config) {
                Ok(Some(Piece::Data(data))) => self.handle_data(&data, out),
                Ok(Some(Piece::Control(control))) => self.handle_control(&control, out),
                Ok(None) => return,
                Err(code) => Err(code),
            };
            if let Err(code) = handled {
                self.close(code, out);
            }
            for message in &out.messages[told..] {
                answer(self, message, &mut out.bytes);
            }
        }
    }

    fn handle_data(&mut self, data: &Data<'_>, out: &mut WsOutput) -> Result<(), CloseCode> {
        data.append_to(&mut self.message);
        if data.is_compressed {
            if !data.is_last {
                return Ok(());
            }
            let (bytes_max, ratio_max) = (self.config.message_bytes_max, self.config.inflate_ratio_max);
            self.message = Deflate::inflate(&self.message, bytes_max, ratio_max)?;
        }
        if data.is_text {
            self.check_utf8(data.is_last)?;
        }
        if data.is_last {
            self.utf8_checked = 0;
            let message = Bytes::from(std::mem::take(&mut self.message));
            out.messages.push(match data.is_text {
                true => Message::Text(Text::checked(message)),
                false => Message::Binary(message),
            });
        }
        Ok(())
    }

    /// Finds what is no UTF-8 at its first byte (§8.1), also in the middle of a frame; a character may be cut.
    fn check_utf8(&mut self, is_last: bool) -> Result<(), CloseCode> {
        match std::str::from_utf8(&self.message[self.utf8_checked..]) {
            Ok(_) => self.utf8_checked = self.message.len(),
            Err(error) if error.error_len().is_none() && !is_last => self.utf8_checked += error.valid_up_to(),
            Err(_) => return Err(CloseCode::INVALID_UTF8),
        }
        Ok(())
    }

    fn handle_control(&mut self, control: &Control, out: &mut WsOutput) -> Result<(), CloseCode> {
        if reader::answer_control(control, &mut out.bytes)? {
            self.end("peer_closed", false, out);
        }
        Ok(())
    }

    pub fn send_text(&mut self, text: &str, bytes: &mut Vec<u8>) {
        self.send(Opcode::Text, text.as_bytes(), bytes);
    }

    /// Text that is known to be UTF-8.
    pub fn send_utf8(&mut self, text: &[u8], bytes: &mut Vec<u8>) {
        self.send(Opcode::Text, text, bytes);
    }

    pub fn send_binary(&mut self, payload: &[u8], bytes: &mut Vec<u8>) {
        self.send(Opcode::Binary, payload, bytes);
    }

    /// Asks for a pong, which moves [`Self::heard_at`].
    pub fn ping(&mut self, bytes: &mut Vec<u8>) {
        self.send(Opcode::Ping, &[], bytes);
    }

    /// After the close frame nothing is sent (§5.5.1).
    fn send(&mut self, opcode: Opcode, payload: &[u8], bytes: &mut Vec<u8>) {
        if self.is_closed {
            return;
        }
        let deflate = self.deflate.filter(|_| !opcode.is_control());
        match deflate.and_then(|deflate| deflate.compress(payload)) {
            Some(compressed) => frame::write_compressed(opcode, &compressed, bytes),
            None => frame::write_frame(opcode, payload, bytes),
        }
    }

    /// Ends the connection from our side.
    pub fn close(&mut self, code: CloseCode, out: &mut WsOutput) {
        if !self.is_closed {
            reader::write_close(code, &mut out.bytes);
            self.end(code.word, true, out);
        }
    }

    fn end(&mut self, kind: &'static str, gentle: bool, out: &mut WsOutput) {
        self.is_closed = true;
        self.message = Vec::new();
        out.close.get_or_insert(Close { kind, gentle });
    }
}
