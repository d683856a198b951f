//! Frames of a client's, cut anywhere → pieces of messages and whole control frames.
//!
//! Nothing of a message is kept here: its bytes are handed on as they come, still masked, so that a stream (MQTT) needs no
//! buffer at all. A header is kept in place when it is cut, a control frame (125 bytes at most) in a buffer that goes with it.

use super::WsConfig;
use super::close::CloseCode;
use super::frame::{self, CONTROL_BYTES_MAX, FrameHeader, HEADER_BYTES_MAX, Opcode, Side};
use crate::Millis;

/// What came next.
#[derive(Debug)]
pub(super) enum Piece<'a> {
    Data(Data<'a>),
    Control(Control),
}

/// A part of a data message: as much of a frame's payload as was there.
#[derive(Debug)]
pub(super) struct Data<'a> {
    pub is_text: bool,
    pub is_compressed: bool,
    /// Still masked.
    pub masked: &'a [u8],
    mask: [u8; 4],
    mask_offset: usize,
    /// The message ends here.
    pub is_last: bool,
}

impl Data<'_> {
    pub fn append_to(&self, message: &mut Vec<u8>) {
        let start = message.len();
        message.extend_from_slice(self.masked);
        frame::apply_mask(&mut message[start..], self.mask, self.mask_offset);
    }

    /// Copies up to `into.len()` bytes from `at` on, unmasked, and says how many.
    pub fn copy_part(&self, at: usize, into: &mut [u8]) -> usize {
        let part = &self.masked[at..];
        let len = part.len().min(into.len());
        into[..len].copy_from_slice(&part[..len]);
        frame::apply_mask(&mut into[..len], self.mask, self.mask_offset + at);
        len
    }
}

#[derive(Debug)]
pub(super) struct Control {
    pub opcode: Opcode,
    payload: [u8; CONTROL_BYTES_MAX],
    payload_len: usize,
}

impl Control {
    pub fn payload(&self) -> &[u8] {
        &self.payload[..self.payload_len]
    }
}

#[derive(Debug, Default)]
pub(super) struct Reader {
    /// A cut header.
    head: [u8; HEADER_BYTES_MAX],
    head_len: u8,
    is_in_frame: bool,
    /// Whether compressed messages were agreed on, and whether the one under way is such.
    pub takes_compressed: bool,
    is_compressed: bool,
    fin: bool,
    opcode: Opcode,
    /// Of the message under way; `Continuation` for none.
    message_opcode: Opcode,
    mask: [u8; 4],
    fragments: u32,
    frame_len: usize,
    /// Of the frame under way.
    frame_read: usize,
    /// Bytes that the message has with all its frames so far, as declared.
    message_len: usize,
    /// A cut control frame, still masked.
    control: Vec<u8>,
    control_frames: u32,
    control_since: Millis,
}

impl Reader {
    /// Takes the next piece off `input`; `None` when there is nothing more to take.
    pub fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
        now: Millis,
        config: &WsConfig,
    ) -> Result<Option<Piece<'a>>, CloseCode> {
        if !self.is_in_frame {
            let Some(header) = self.take_header(input)? else { return Ok(None) };
            self.begin_frame(header, now, config)?;
        } else if input.is_empty() {
            return Ok(None);
        }
        let len = (self.frame_len - self.frame_read).min(input.len());
        let (masked, rest) = input.split_at(len);
        *input = rest;
        let mask_offset = self.frame_read;
        self.frame_read += len;
        let is_frame_end = self.frame_read == self.frame_len;
        self.is_in_frame = !is_frame_end;
        if self.opcode.is_control() {
            self.control.extend_from_slice(masked);
            return Ok(is_frame_end.then(|| Piece::Control(self.end_control())));
        }
        let is_text = self.message_opcode == Opcode::Text;
        let is_last = is_frame_end && self.fin;
        if is_last {
            self.message_opcode = Opcode::Continuation;
        }
        let is_compressed = self.is_compressed;
        Ok(Some(Piece::Data(Data { is_text, is_compressed, masked, mask: self.mask, mask_offset, is_last })))
    }

    /// Takes a whole header off `input`, byte by byte once it was cut.
    fn take_header(&mut self, input: &mut &[u8]) -> Result<Option<FrameHeader>, CloseCode> {
        if self.head_len == 0
            && let Some(header) = frame::read_header(input, Side::Client)?
        {
            *input = &input[header.header_len..];
            return Ok(Some(header));
        }
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            self.head[usize::from(self.head_len)] = byte;
            self.head_len += 1;
            if let Some(header) = frame::read_header(&self.head[..usize::from(self.head_len)], Side::Client)?
            {
                self.head_len = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    /// Judges a frame by its header, before any of its payload is taken.
    fn begin_frame(&mut self, header: FrameHeader, now: Millis, config: &WsConfig) -> Result<(), CloseCode> {
        let is_within = self.message_opcode != Opcode::Continuation;
        if header.opcode.is_control() {
            self.count_control(now, config)?;
        } else if is_within != (header.opcode == Opcode::Continuation) {
            // A continuation of nothing, or a new message inside of another (§5.4).
            return Err(CloseCode::PROTOCOL_ERROR);
        }
        // Only the first frame of a message says it, and only where it was agreed on.
        if header.is_compressed && (is_within || !self.takes_compressed) {
            return Err(CloseCode::PROTOCOL_ERROR);
        }
        let frame_len = usize::try_from(header.payload_len).unwrap_or(usize::MAX);
        if frame_len > config.frame_bytes_max {
            return Err(CloseCode::TOO_LARGE);
        }
        if !header.opcode.is_control() {
            if !is_within {
                self.is_compressed = header.is_compressed;
                (self.message_opcode, self.message_len, self.fragments) = (header.opcode, 0, 0);
            }
            self.fragments = self.fragments.saturating_add(1);
            if self.fragments > config.fragments_max {
                return Err(CloseCode::POLICY);
            }
            self.message_len = self.message_len.saturating_add(frame_len);
            if self.message_len > config.message_bytes_max {
                return Err(CloseCode::TOO_LARGE);
            }
        }
        self.is_in_frame = true;
        self.fin = header.fin;
        self.opcode = header.opcode;
        self.mask = header.mask.unwrap_or_default();
        (self.frame_len, self.frame_read) = (frame_len, 0);
        Ok(())
    }

    fn count_control(&mut self, now: Millis, config: &WsConfig) -> Result<(), CloseCode> {
        if now.saturating_sub(self.control_since) >= config.control_window_ms {
            (self.control_since, self.control_frames) = (now, 0);
        }
        self.control_frames += 1;
        if self.control_frames > config.control_frames_max { Err(CloseCode::POLICY) } else { Ok(()) }
    }

    fn end_control(&mut self) -> Control {
        let masked = std::mem::take(&mut self.control);
        let mut payload = [0; CONTROL_BYTES_MAX];
        let payload_len = masked.len().min(CONTROL_BYTES_MAX);
        payload[..payload_len].copy_from_slice(&masked[..payload_len]);
        frame::apply_mask(&mut payload[..payload_len], self.mask, 0);
        Control { opcode: self.opcode, payload, payload_len }
    }
}

/// Judges the payload of a peer's close frame (§5.5.1, §7.4): its code where it has one.
fn read_close(payload: &[u8]) -> Result<Option<u16>, CloseCode> {
    match *payload {
        [] => Ok(None),
        [_] => Err(CloseCode::PROTOCOL_ERROR),
        [high, low, ref reason @ ..] => {
            let code = u16::from_be_bytes([high, low]);
            if !super::close::may_be_sent(code) {
                return Err(CloseCode::PROTOCOL_ERROR);
            }
            std::str::from_utf8(reason).map_err(|_| CloseCode::INVALID_UTF8)?;
            Ok(Some(code))
        }
    }
}

/// Appends a close frame of ours.
pub(super) fn write_close(code: CloseCode, bytes: &mut Vec<u8>) {
    frame::write_header(Opcode::Close, true, 2 + code.word.len(), None, bytes);
    bytes.extend_from_slice(&code.code.to_be_bytes());
    bytes.extend_from_slice(code.word.as_bytes());
}

/// Appends the answer to a peer's close frame: its own code back, or none.
fn write_close_answer(code: Option<u16>, bytes: &mut Vec<u8>) {
    match code {
        Some(code) => frame::write_frame(Opcode::Close, &code.to_be_bytes(), bytes),
        None => frame::write_frame(Opcode::Close, &[], bytes),
    }
}

/// Answers a ping and a close (§5.5). True after a close: the peer has read all that it wants to, and the server closes at
/// once (§7.1.1).
pub(super) fn answer_control(control: &Control, bytes: &mut Vec<u8>) -> Result<bool, CloseCode> {
    match control.opcode {
        Opcode::Ping => frame::write_frame(Opcode::Pong, control.payload(), bytes),
        Opcode::Close => write_close_answer(read_close(control.payload())?, bytes),
        _ => {}
    }
    Ok(control.opcode == Opcode::Close)
}
