//! Frames (RFC 6455 §5.2): headers of both sides, masking, and whole frames of the client's for tests and tools.

use super::close::CloseCode;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    #[default]
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    pub fn from_u8(value: u8) -> Option<Opcode> {
        Some(match value {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return None,
        })
    }

    pub fn is_control(self) -> bool {
        self as u8 >= 8
    }
}

/// The longest header: two bytes, eight of length, four of mask.
pub const HEADER_BYTES_MAX: usize = 14;

/// The longest payload of a control frame (§5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub fin: bool,
    /// RSV1: the message that begins here is compressed (RFC 7692 §6).
    pub is_compressed: bool,
    pub opcode: Opcode,
    pub mask: Option<[u8; 4]>,
    pub payload_len: u64,
    /// Its own length.
    pub header_len: usize,
}

/// Who wrote a frame: clients mask, servers do not (§5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// Reads a frame header of `side`'s: `None` when it is cut. What is wrong is found at the first byte that shows it.
pub fn read_header(bytes: &[u8], side: Side) -> Result<Option<FrameHeader>, CloseCode> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    // The others of the reserved bits are of no extension that we know (§5.2).
    let opcode =
        Opcode::from_u8(first & 0x0F).filter(|_| first & 0x30 == 0).ok_or(CloseCode::PROTOCOL_ERROR)?;
    let (fin, is_compressed) = (first & 0x80 != 0, first & 0x40 != 0);
    if opcode.is_control() && (!fin || is_compressed) {
        return Err(CloseCode::PROTOCOL_ERROR);
    }
    let Some(&second) = bytes.get(1) else { return Ok(None) };
    let (is_masked, short_len) = (second & 0x80 != 0, second & 0x7F);
    if is_masked != (side == Side::Client)
        || (opcode.is_control() && usize::from(short_len) > CONTROL_BYTES_MAX)
    {
        return Err(CloseCode::PROTOCOL_ERROR);
    }
    let len_bytes = match short_len {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let Some(long) = bytes.get(2..2 + len_bytes) else { return Ok(None) };
    let long_len = long.iter().fold(0u64, |len, &byte| len << 8 | u64::from(byte));
    let payload_len = match short_len {
        // "The minimal number of bytes MUST be used"; the top bit of the longest form is 0.
        126 if long_len < 126 => return Err(CloseCode::PROTOCOL_ERROR),
        127 if long_len < 0x1_0000 || long_len >> 63 != 0 => return Err(CloseCode::PROTOCOL_ERROR),
        126 | 127 => long_len,
        short => u64::from(short),
    };
    let mut header_len = 2 + len_bytes;
    let mut mask = None;
    if is_masked {
        let Some(&[a, b, c, d]) = bytes.get(header_len..header_len + 4) else { return Ok(None) };
        mask = Some([a, b, c, d]);
        header_len += 4;
    }
    Ok(Some(FrameHeader { fin, is_compressed, opcode, mask, payload_len, header_len }))
}

/// Appends a frame header in its shortest form.
pub fn write_header(
    opcode: Opcode,
    fin: bool,
    payload_len: usize,
    mask: Option<[u8; 4]>,
    bytes: &mut Vec<u8>,
) {
    let (header, header_len) = header_of(opcode, fin, payload_len, mask);
    bytes.extend_from_slice(&header[..header_len]);
}

fn header_of(
    opcode: Opcode,
    fin: bool,
    payload_len: usize,
    mask: Option<[u8; 4]>,
) -> ([u8; HEADER_BYTES_MAX], usize) {
    let mut header = [0; HEADER_BYTES_MAX];
    let mask_bit = if mask.is_some() { 0x80 } else { 0 };
    header[0] = u8::from(fin) << 7 | opcode as u8;
    let mut header_len = match payload_len {
        0..=125 => {
            header[1] = mask_bit | payload_len as u8;
            2
        }
        126..=0xFFFF => {
            header[1] = mask_bit | 126;
            header[2..4].copy_from_slice(&(payload_len as u16).to_be_bytes());
            4
        }
        _ => {
            header[1] = mask_bit | 127;
            header[2..10].copy_from_slice(&(payload_len as u64).to_be_bytes());
            10
        }
    };
    if let Some(mask) = mask {
        header[header_len..header_len + 4].copy_from_slice(&mask);
        header_len += 4;
    }
    (header, header_len)
}

/// Appends a whole frame of the server's with a compressed message.
pub(super) fn write_compressed(opcode: Opcode, payload: &[u8], bytes: &mut Vec<u8>) {
    let start = bytes.len();
    write_frame(opcode, payload, bytes);
    bytes[start] |= 0x40;
}

/// Appends a whole frame of the server's.
pub fn write_frame(opcode: Opcode, payload: &[u8], bytes: &mut Vec<u8>) {
    write_header(opcode, true, payload.len(), None, bytes);
    bytes.extend_from_slice(payload);
}

/// Makes one binary frame of what was appended to `bytes` since `start`; of nothing, none.
pub(super) fn wrap_binary(start: usize, bytes: &mut Vec<u8>) {
    let payload_len = bytes.len() - start;
    if payload_len == 0 {
        return;
    }
    let (header, header_len) = header_of(Opcode::Binary, true, payload_len, None);
    bytes.resize(bytes.len() + header_len, 0);
    bytes.copy_within(start..start + payload_len, start + header_len);
    bytes[start..start + header_len].copy_from_slice(&header[..header_len]);
}

/// Masks, or unmasks, a part of a payload that begins `offset` bytes after the payload's beginning (§5.3).
pub fn apply_mask(payload: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut turned = mask;
    turned.rotate_left(offset % 4);
    // By words: the compiler makes wide instructions of it.
    let word = u32::from_ne_bytes(turned);
    let mut chunks = payload.chunks_exact_mut(4);
    for chunk in &mut chunks {
        let masked = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]) ^ word;
        chunk.copy_from_slice(&masked.to_ne_bytes());
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(turned) {
        *byte ^= key;
    }
}

/// Appends a frame of a client's; the mask is drawn by the caller, since nothing here draws random numbers.
pub fn write_client_frame(opcode: Opcode, fin: bool, payload: &[u8], mask: [u8; 4], bytes: &mut Vec<u8>) {
    write_header(opcode, fin, payload.len(), Some(mask), bytes);
    let start = bytes.len();
    bytes.extend_from_slice(payload);
    apply_mask(&mut bytes[start..], mask, 0);
}

/// Reads a whole frame of a server's off `bytes`: its header and payload; `None` when it is cut.
pub fn read_server_frame(bytes: &[u8]) -> Result<Option<(FrameHeader, &[u8])>, CloseCode> {
    let Some(header) = read_header(bytes, Side::Server)? else { return Ok(None) };
    let payload_len = usize::try_from(header.payload_len).map_err(|_| CloseCode::TOO_LARGE)?;
    let end = header.header_len.checked_add(payload_len).ok_or(CloseCode::TOO_LARGE)?;
    Ok(bytes.get(header.header_len..end).map(|payload| (header, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 6455 §5.7.
    #[test]
    fn the_examples_of_the_rfc_are_read_and_written() {
        let masked_hello = [0x81, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58];
        let mut written = Vec::new();
        write_client_frame(Opcode::Text, true, b"Hello", [0x37, 0xFA, 0x21, 0x3D], &mut written);
        assert_eq!(written, masked_hello);
        let header = read_header(&masked_hello, Side::Client).unwrap().unwrap();
        assert_eq!((header.fin, header.opcode, header.payload_len), (true, Opcode::Text, 5));

        let mut written = Vec::new();
        write_frame(Opcode::Text, b"Hello", &mut written);
        assert_eq!(written, [0x81, 0x05, 0x48, 0x65, 0x6C, 0x6C, 0x6F]);

        let mut written = Vec::new();
        write_header(Opcode::Binary, true, 256, None, &mut written);
        assert_eq!(written, [0x82, 0x7E, 0x01, 0x00]);
        written.clear();
        write_header(Opcode::Binary, true, 65_536, None, &mut written);
        assert_eq!(written, [0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_payload_masked_in_parts_is_the_payload_masked_whole() {
        let whole: Vec<u8> = (0..=255).collect();
        let mut masked = whole.clone();
        apply_mask(&mut masked, [1, 2, 3, 4], 0);
        for cut in 0..whole.len() {
            let mut parts = whole.clone();
            let (head, tail) = parts.split_at_mut(cut);
            apply_mask(head, [1, 2, 3, 4], 0);
            apply_mask(tail, [1, 2, 3, 4], cut);
            assert_eq!(parts, masked);
        }
    }

    #[test]
    fn what_was_appended_becomes_one_binary_frame() {
        for len in [0usize, 1, 125, 126, 65_535, 65_536] {
            let mut bytes = vec![9; 3];
            bytes.resize(3 + len, 7);
            wrap_binary(3, &mut bytes);
            let mut expected = vec![9; 3];
            if len > 0 {
                write_frame(Opcode::Binary, &vec![7; len], &mut expected);
            }
            assert_eq!(bytes, expected);
        }
    }
}
