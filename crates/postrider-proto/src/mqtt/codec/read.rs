//! A cursor over the body of one packet.

use super::ProtocolError;
use crate::Text;
use bytes::Bytes;

type Result<T> = std::result::Result<T, ProtocolError>;

/// Reads the primitive types of §1.5. Everything that would go beyond the end is malformed.
pub(crate) struct Reader<'a> {
    body: &'a [u8],
    at: usize,
    /// Reading stops here; a block of properties narrows it for a while.
    end: usize,
    /// The body as a shared buffer, made when the first slice of it is wanted.
    shared: Option<Bytes>,
}

impl<'a> Reader<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Reader { body, at: 0, end: body.len(), shared: None }
    }

    pub fn left(&self) -> usize {
        self.end - self.at
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.end
    }

    /// Narrows reading to the next `len` bytes; [`Self::widen`] with the answer takes it back.
    pub fn narrow(&mut self, len: usize) -> Result<usize> {
        if len > self.left() {
            return Err(ProtocolError::MALFORMED);
        }
        Ok(std::mem::replace(&mut self.end, self.at + len))
    }

    pub fn widen(&mut self, end: usize) {
        self.end = end;
    }

    /// What is left, unread.
    pub fn peek(&self) -> &'a [u8] {
        &self.body[self.at..self.end]
    }

    pub fn skip(&mut self, len: usize) -> Result<()> {
        self.take(len).map(|_| ())
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        if len > self.left() {
            return Err(ProtocolError::MALFORMED);
        }
        let bytes = &self.body[self.at..self.at + len];
        self.at += len;
        Ok(bytes)
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub fn u16(&mut self) -> Result<u16> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub fn u32(&mut self) -> Result<u32> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A variable byte integer, in its shortest form only (MQTT-1.5.5-1).
    pub fn varint(&mut self) -> Result<u32> {
        let mut value = 0;
        for index in 0..4 {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7F) << (7 * index);
            if byte & 0x80 == 0 {
                return if byte == 0 && index > 0 { Err(ProtocolError::MALFORMED) } else { Ok(value) };
            }
        }
        Err(ProtocolError::MALFORMED)
    }

    /// Length-prefixed bytes, borrowed.
    pub fn binary_ref(&mut self) -> Result<&'a [u8]> {
        let len = usize::from(self.u16()?);
        self.take(len)
    }

    /// A UTF-8 string, borrowed: no ill-formed sequences, no surrogates, no U+0000 (MQTT-1.5.4-1, -2).
    pub fn str_ref(&mut self) -> Result<&'a str> {
        let text = std::str::from_utf8(self.binary_ref()?).map_err(|_| ProtocolError::MALFORMED)?;
        if text.as_bytes().contains(&0) {
            return Err(ProtocolError::MALFORMED);
        }
        Ok(text)
    }

    pub fn binary(&mut self) -> Result<Bytes> {
        let len = self.binary_ref()?.len();
        Ok(self.slice(len))
    }

    pub fn text(&mut self) -> Result<Text> {
        let len = self.str_ref()?.len();
        Ok(Text::checked(self.slice(len)))
    }

    pub fn rest(&mut self) -> Bytes {
        let len = self.left();
        self.at = self.end;
        self.slice(len)
    }

    /// The `len` bytes just read, as a slice of the shared body.
    pub fn slice(&mut self, len: usize) -> Bytes {
        if len == 0 {
            return Bytes::new();
        }
        let body = self.body;
        let shared = self.shared.get_or_insert_with(|| Bytes::copy_from_slice(body));
        shared.slice(self.at - len..self.at)
    }
}
