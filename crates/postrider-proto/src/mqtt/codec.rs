//! Bytes ↔ packets: one codec for levels 3, 4 and 5, used by both ends.
//!
//! Decoding goes in two steps, so that a peer's declared length is judged before a byte of the body is kept:
//! [`header`] reads the fixed header and refuses what is wrong or too large already there; [`decode`] takes the whole body.
//! It is a total function: any bytes give a packet or a [`ProtocolError`], never a panic.
//!
//! A packet that carries text or payload copies its body once into a shared buffer; topic, payload and properties are
//! slices of it. Acknowledgements and pings copy nothing.

mod decode;
mod encode;
mod read;

pub use decode::{BRIDGE_BIT, Protocol, decode, protocol_of};
pub(crate) use encode::{Places, encode_ack, encode_codes, encode_refusal, publish_first_byte};
pub use encode::{PublishFrame, encode};
pub(crate) use read::Reader;

use super::packet::{Kind, Level, code};
use super::topic::TopicError;

/// What the peer did wrong: a word for logs and metrics, and the reason code for MQTT 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} (0x{code:02X})")]
pub struct ProtocolError {
    pub kind: &'static str,
    pub code: u8,
}

impl ProtocolError {
    pub const MALFORMED: Self = Self::new("malformed", code::MALFORMED_PACKET);
    pub const PROTOCOL: Self = Self::new("protocol_error", code::PROTOCOL_ERROR);
    pub const TOO_LARGE: Self = Self::new("packet_too_large", code::PACKET_TOO_LARGE);
    pub const UNSUPPORTED_VERSION: Self = Self::new("unsupported_version", code::UNSUPPORTED_VERSION);
    pub const CLIENT_ID: Self = Self::new("client_id_invalid", code::CLIENT_ID_INVALID);
    pub const CREDENTIALS: Self = Self::new("credentials_too_long", code::BAD_CREDENTIALS);
    pub const AUTH_METHOD: Self = Self::new("auth_method", code::BAD_AUTH_METHOD);
    pub const TOPIC: Self = Self::new("topic_invalid", code::TOPIC_INVALID);
    pub const TOPIC_ALIAS: Self = Self::new("topic_alias_invalid", code::TOPIC_ALIAS_INVALID);
    pub const RECEIVE_MAXIMUM: Self = Self::new("receive_maximum", code::RECEIVE_MAXIMUM_EXCEEDED);
    pub const QUOTA: Self = Self::new("quota_exceeded", code::QUOTA_EXCEEDED);
    pub const PAYLOAD_FORMAT: Self = Self::new("payload_format", code::PAYLOAD_FORMAT_INVALID);
    pub const RETAIN: Self = Self::new("retain_not_supported", code::RETAIN_NOT_SUPPORTED);
    pub const QOS: Self = Self::new("qos_not_supported", code::QOS_NOT_SUPPORTED);
    pub const SHARED: Self = Self::new("shared_not_supported", code::SHARED_NOT_SUPPORTED);
    pub const WILDCARD: Self = Self::new("wildcard_not_supported", code::WILDCARD_NOT_SUPPORTED);

    pub const fn new(kind: &'static str, code: u8) -> Self {
        ProtocolError { kind, code }
    }
}

impl From<TopicError> for ProtocolError {
    /// For names; a filter that is not well-formed is answered in the SUBACK instead.
    fn from(error: TopicError) -> Self {
        match error {
            // MQTT-4.7.3-1 says no code; an empty name without an alias is a protocol error by §3.3.2.1.
            TopicError::Empty => ProtocolError::PROTOCOL,
            TopicError::ControlCharacter => ProtocolError::MALFORMED,
            TopicError::Wildcard | TopicError::TooLong | TopicError::TooManyLevels | TopicError::Share => {
                ProtocolError::TOPIC
            }
        }
    }
}

/// What a peer may send at most; each is checked before anything is allocated for it.
#[derive(Clone, Debug)]
pub struct Limits {
    pub client_id_bytes_max: usize,
    pub user_bytes_max: usize,
    pub password_bytes_max: usize,
    pub topic_bytes_max: usize,
    pub topic_levels_max: usize,
    /// Per packet: how many user properties, and how many bytes they have together.
    pub user_properties_max: usize,
    pub user_property_bytes_max: usize,
    /// Filters of one SUBSCRIBE; those beyond are answered 0x97 (3.x: 0x80).
    pub filters_max: usize,
}

impl Default for Limits {
    /// For listeners that face the internet (reliability.md L11–L13).
    fn default() -> Self {
        Limits {
            client_id_bytes_max: 128,
            user_bytes_max: 128,
            password_bytes_max: 1_024,
            topic_bytes_max: 512,
            topic_levels_max: 16,
            user_properties_max: 16,
            user_property_bytes_max: 4_096,
            filters_max: 16,
        }
    }
}

impl Limits {
    /// As wide as the protocol itself: for a client, which trusts its server, and for tests.
    pub fn of_protocol() -> Self {
        Limits {
            client_id_bytes_max: 65_535,
            user_bytes_max: 65_535,
            password_bytes_max: 65_535,
            topic_bytes_max: 65_535,
            topic_levels_max: 65_536,
            user_properties_max: usize::MAX,
            user_property_bytes_max: usize::MAX,
            filters_max: usize::MAX,
        }
    }
}

/// The fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// The low four bits.
    pub flags: u8,
    /// Its own length, 2 to 5.
    pub header_len: usize,
    pub body_len: usize,
}

impl Header {
    pub fn total_len(self) -> usize {
        self.header_len + self.body_len
    }
}

/// Reads the fixed header: `None` when it is cut. `level` is `None` before CONNECT.
///
/// `packet_bytes_max` counts the whole packet, as Maximum Packet Size does (MQTT 5 §3.1.2.11.4).
pub fn header(
    bytes: &[u8],
    level: Option<Level>,
    packet_bytes_max: usize,
) -> Result<Option<Header>, ProtocolError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (kind, flags) = (Kind::from_u8(first >> 4).ok_or(ProtocolError::MALFORMED)?, first & 0x0F);
    check_flags(kind, flags, level)?;
    let mut body_len = 0usize;
    for index in 0..4 {
        let Some(&byte) = bytes.get(1 + index) else { return Ok(None) };
        body_len |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            // MQTT-1.5.5-1 is new in 5.
            if byte == 0 && index > 0 && level == Some(Level::V5) {
                return Err(ProtocolError::MALFORMED);
            }
            let header = Header { kind, flags, header_len: 2 + index, body_len };
            return if header.total_len() > packet_bytes_max {
                Err(ProtocolError::TOO_LARGE)
            } else {
                Ok(Some(header))
            };
        }
    }
    Err(ProtocolError::MALFORMED)
}

fn check_flags(kind: Kind, flags: u8, level: Option<Level>) -> Result<(), ProtocolError> {
    if kind == Kind::Auth && level.is_some_and(|level| !level.is_v5()) {
        return Err(ProtocolError::MALFORMED);
    }
    // COMPAT: wmqtt sets DUP on its pings and sends PUBREL with flags 0. A CONNECT is judged when its level is known.
    let is_lenient = level == Some(Level::V31) || kind == Kind::Connect;
    if kind != Kind::Publish && !is_lenient && flags != kind.flags() {
        return Err(ProtocolError::MALFORMED);
    }
    Ok(())
}
