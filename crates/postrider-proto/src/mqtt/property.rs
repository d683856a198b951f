//! The properties of MQTT 5 (§2.2.2): their identifiers, types, and the packets that each may stand in.
//!
//! One table drives the reading; what a packet does with a value is written at that packet, in `codec`. Writing is direct.

use super::codec::{ProtocolError, Reader};
use crate::{PublishProperties, Text};
use bytes::Bytes;

pub const PAYLOAD_FORMAT: u8 = 0x01;
pub const MESSAGE_EXPIRY: u8 = 0x02;
pub const CONTENT_TYPE: u8 = 0x03;
pub const RESPONSE_TOPIC: u8 = 0x08;
pub const CORRELATION_DATA: u8 = 0x09;
pub const SUBSCRIPTION_ID: u8 = 0x0B;
pub const SESSION_EXPIRY: u8 = 0x11;
pub const ASSIGNED_CLIENT_ID: u8 = 0x12;
pub const SERVER_KEEPALIVE: u8 = 0x13;
pub const AUTH_METHOD: u8 = 0x15;
pub const AUTH_DATA: u8 = 0x16;
pub const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
pub const WILL_DELAY: u8 = 0x18;
pub const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
pub const RESPONSE_INFORMATION: u8 = 0x1A;
pub const SERVER_REFERENCE: u8 = 0x1C;
pub const REASON_STRING: u8 = 0x1F;
pub const RECEIVE_MAXIMUM: u8 = 0x21;
pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
pub const TOPIC_ALIAS: u8 = 0x23;
pub const MAXIMUM_QOS: u8 = 0x24;
pub const RETAIN_AVAILABLE: u8 = 0x25;
pub const USER_PROPERTY: u8 = 0x26;
pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;
pub const WILDCARD_AVAILABLE: u8 = 0x28;
pub const SUBSCRIPTION_IDS_AVAILABLE: u8 = 0x29;
pub const SHARED_AVAILABLE: u8 = 0x2A;

/// Where a block of properties stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Place {
    Will = 1,
    Connect = 1 << 1,
    ConnAck = 1 << 2,
    Publish = 1 << 3,
    /// PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK: a reason string and user properties.
    Ack = 1 << 4,
    Subscribe = 1 << 5,
    Unsubscribe = 1 << 6,
    Disconnect = 1 << 7,
    Auth = 1 << 8,
}

/// The type of a property's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A byte that is 0 or 1: all byte properties are (§2.2.2.2), maximum QoS too.
    Flag,
    U16,
    U32,
    VarInt,
    Text,
    Binary,
    Pair,
}

/// The value of a property as read.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Flag(bool),
    U16(u16),
    U32(u32),
    Text(Text),
    Binary(Bytes),
    Pair(Text, Text),
}

/// Type of a property and the places where it may stand (table 2-4); `None` for identifiers that are none.
pub fn describe(id: u8) -> Option<(Type, u16)> {
    const WILL: u16 = Place::Will as u16;
    const CONNECT: u16 = Place::Connect as u16;
    const CONNACK: u16 = Place::ConnAck as u16;
    const PUBLISH: u16 = Place::Publish as u16;
    const ACK: u16 = Place::Ack as u16;
    const SUBSCRIBE: u16 = Place::Subscribe as u16;
    const DISCONNECT: u16 = Place::Disconnect as u16;
    const AUTH: u16 = Place::Auth as u16;
    Some(match id {
        PAYLOAD_FORMAT => (Type::Flag, PUBLISH | WILL),
        MESSAGE_EXPIRY => (Type::U32, PUBLISH | WILL),
        CONTENT_TYPE | RESPONSE_TOPIC => (Type::Text, PUBLISH | WILL),
        CORRELATION_DATA => (Type::Binary, PUBLISH | WILL),
        SUBSCRIPTION_ID => (Type::VarInt, PUBLISH | SUBSCRIBE),
        SESSION_EXPIRY => (Type::U32, CONNECT | CONNACK | DISCONNECT),
        ASSIGNED_CLIENT_ID | RESPONSE_INFORMATION => (Type::Text, CONNACK),
        SERVER_KEEPALIVE => (Type::U16, CONNACK),
        AUTH_METHOD => (Type::Text, CONNECT | CONNACK | AUTH),
        AUTH_DATA => (Type::Binary, CONNECT | CONNACK | AUTH),
        REQUEST_PROBLEM_INFORMATION | REQUEST_RESPONSE_INFORMATION => (Type::Flag, CONNECT),
        WILL_DELAY => (Type::U32, WILL),
        SERVER_REFERENCE => (Type::Text, CONNACK | DISCONNECT),
        REASON_STRING => (Type::Text, CONNACK | ACK | DISCONNECT | AUTH),
        RECEIVE_MAXIMUM | TOPIC_ALIAS_MAXIMUM => (Type::U16, CONNECT | CONNACK),
        TOPIC_ALIAS => (Type::U16, PUBLISH),
        MAXIMUM_QOS | RETAIN_AVAILABLE => (Type::Flag, CONNACK),
        WILDCARD_AVAILABLE | SUBSCRIPTION_IDS_AVAILABLE | SHARED_AVAILABLE => (Type::Flag, CONNACK),
        USER_PROPERTY => (Type::Pair, u16::MAX),
        MAXIMUM_PACKET_SIZE => (Type::U32, CONNECT | CONNACK),
        _ => return None,
    })
}

/// Reads a block of properties and hands each to `each`, after its form, its place and its number were checked.
///
/// All but user properties (and, in a PUBLISH, subscription identifiers) may stand once (§2.2.2.2).
pub(super) fn read(
    reader: &mut Reader<'_>,
    place: Place,
    limits: &super::Limits,
    mut each: impl FnMut(u8, Value) -> Result<(), ProtocolError>,
) -> Result<(), ProtocolError> {
    let len = reader.varint()? as usize;
    let end = reader.narrow(len)?;
    let mut seen = 0u64;
    let (mut user_count, mut user_bytes) = (0usize, 0usize);
    while !reader.is_at_end() {
        // The identifier is a variable byte integer; all that exist fit one byte.
        let id = u8::try_from(reader.varint()?).map_err(|_| ProtocolError::MALFORMED)?;
        let (kind, places) = describe(id).ok_or(ProtocolError::MALFORMED)?;
        if places & place as u16 == 0 {
            return Err(ProtocolError::MALFORMED);
        }
        let may_repeat = id == USER_PROPERTY || (id == SUBSCRIPTION_ID && place == Place::Publish);
        if !may_repeat && seen & (1 << id) != 0 {
            return Err(ProtocolError::PROTOCOL);
        }
        seen |= 1 << id;
        let before = reader.left();
        if id == USER_PROPERTY {
            user_count += 1;
            if user_count > limits.user_properties_max {
                return Err(ProtocolError::QUOTA);
            }
        }
        let value = read_value(reader, kind)?;
        if id == USER_PROPERTY {
            user_bytes += before - reader.left();
            if user_bytes > limits.user_property_bytes_max {
                return Err(ProtocolError::QUOTA);
            }
        }
        each(id, value)?;
    }
    reader.widen(end);
    Ok(())
}

fn read_value(reader: &mut Reader<'_>, kind: Type) -> Result<Value, ProtocolError> {
    Ok(match kind {
        Type::Flag => match reader.u8()? {
            0 => Value::Flag(false),
            1 => Value::Flag(true),
            _ => return Err(ProtocolError::PROTOCOL),
        },
        Type::U16 => Value::U16(reader.u16()?),
        Type::U32 => Value::U32(reader.u32()?),
        Type::VarInt => Value::U32(reader.varint()?),
        Type::Text => Value::Text(reader.text()?),
        Type::Binary => Value::Binary(reader.binary()?),
        Type::Pair => Value::Pair(reader.text()?, reader.text()?),
    })
}

/// Takes one of the properties that travel with a message; gives back what is not one of them.
pub(super) fn take_publish(
    into: &mut Option<Box<PublishProperties>>,
    id: u8,
    value: Value,
) -> Result<Option<Value>, ProtocolError> {
    if !matches!(
        id,
        PAYLOAD_FORMAT | MESSAGE_EXPIRY | CONTENT_TYPE | RESPONSE_TOPIC | CORRELATION_DATA | USER_PROPERTY
    ) {
        return Ok(Some(value));
    }
    let into = into.get_or_insert_default();
    match (id, value) {
        (PAYLOAD_FORMAT, Value::Flag(is_utf8)) => into.payload_is_utf8 = is_utf8,
        (MESSAGE_EXPIRY, Value::U32(secs)) => into.expiry_secs = Some(secs),
        (CONTENT_TYPE, Value::Text(text)) => into.content_type = Some(text),
        (RESPONSE_TOPIC, Value::Text(topic)) => {
            // MQTT-3.3.2-14.
            if topic.is_empty() || super::topic::has_wildcard(&topic) {
                return Err(ProtocolError::PROTOCOL);
            }
            into.response_topic = Some(topic);
        }
        (CORRELATION_DATA, Value::Binary(bytes)) => into.correlation = Some(bytes),
        (_, Value::Pair(name, value)) => into.user.push((name, value)),
        _ => return Err(ProtocolError::MALFORMED),
    }
    Ok(None)
}

/// The bytes that a variable byte integer takes.
pub fn varint_len(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

pub fn put_varint(bytes: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

/// Length-prefixed bytes. What is longer than the prefix can say is cut: only our own side can cause that.
pub fn put_binary(bytes: &mut Vec<u8>, value: &[u8]) {
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(&value[..usize::from(len)]);
}

/// Writes properties one by one; those that are `None` are left out.
pub(super) struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    pub fn flag(&mut self, id: u8, value: Option<bool>) {
        if let Some(value) = value {
            self.0.extend_from_slice(&[id, u8::from(value)]);
        }
    }

    pub fn u8(&mut self, id: u8, value: Option<u8>) {
        if let Some(value) = value {
            self.0.extend_from_slice(&[id, value]);
        }
    }

    pub fn u16(&mut self, id: u8, value: Option<u16>) {
        if let Some(value) = value {
            self.0.push(id);
            self.0.extend_from_slice(&value.to_be_bytes());
        }
    }

    pub fn u32(&mut self, id: u8, value: Option<u32>) {
        if let Some(value) = value {
            self.0.push(id);
            self.0.extend_from_slice(&value.to_be_bytes());
        }
    }

    pub fn varint(&mut self, id: u8, value: u32) {
        self.0.push(id);
        put_varint(self.0, value as usize);
    }

    pub fn text(&mut self, id: u8, value: Option<&Text>) {
        self.binary(id, value.map(Text::as_bytes));
    }

    pub fn binary(&mut self, id: u8, value: Option<&Bytes>) {
        if let Some(value) = value {
            self.0.push(id);
            put_binary(self.0, value);
        }
    }

    pub fn user(&mut self, pairs: &[(Text, Text)]) {
        for (name, value) in pairs {
            self.0.push(USER_PROPERTY);
            put_binary(self.0, name.as_bytes());
            put_binary(self.0, value.as_bytes());
        }
    }

    /// What travels with a message, but its expiry, which changes on the way.
    pub fn publish(&mut self, properties: &PublishProperties) {
        self.flag(PAYLOAD_FORMAT, properties.payload_is_utf8.then_some(true));
        self.text(CONTENT_TYPE, properties.content_type.as_ref());
        self.text(RESPONSE_TOPIC, properties.response_topic.as_ref());
        self.binary(CORRELATION_DATA, properties.correlation.as_ref());
        self.user(&properties.user);
    }
}

/// The length of what [`Writer::publish`] writes.
pub(super) fn publish_len(properties: &PublishProperties) -> usize {
    let text = |text: &Option<Text>| text.as_ref().map_or(0, |text| 3 + text.len());
    usize::from(properties.payload_is_utf8) * 2
        + text(&properties.content_type)
        + text(&properties.response_topic)
        + properties.correlation.as_ref().map_or(0, |bytes| 3 + bytes.len())
        + properties.user.iter().map(|(name, value)| 5 + name.len() + value.len()).sum::<usize>()
}
