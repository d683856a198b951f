//! The fifteen packets of MQTT as types: one set for 3.1, 3.1.1 and 5, for both directions.
//!
//! What a version lacks is `None`, empty or 0 there. What only its form matters for (reason strings and user properties
//! of acknowledgements, response information) is checked by the codec and not kept.

use crate::{Publish, Subscription, Text, Will};
use bytes::Bytes;

/// The protocol level as CONNECT states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// MQTT 3.1, `MQIsdp`.
    V31 = 3,
    /// MQTT 3.1.1.
    V311 = 4,
    /// MQTT 5.
    V5 = 5,
}

impl Level {
    pub fn is_v5(self) -> bool {
        self == Level::V5
    }
}

/// The type nibble of the fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    Connect = 1,
    ConnAck = 2,
    Publish = 3,
    PubAck = 4,
    PubRec = 5,
    PubRel = 6,
    PubComp = 7,
    Subscribe = 8,
    SubAck = 9,
    Unsubscribe = 10,
    UnsubAck = 11,
    PingReq = 12,
    PingResp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl Kind {
    /// 1 to 15; 0 is reserved (§2.1.2).
    pub fn from_u8(value: u8) -> Option<Kind> {
        Some(match value {
            1 => Kind::Connect,
            2 => Kind::ConnAck,
            3 => Kind::Publish,
            4 => Kind::PubAck,
            5 => Kind::PubRec,
            6 => Kind::PubRel,
            7 => Kind::PubComp,
            8 => Kind::Subscribe,
            9 => Kind::SubAck,
            10 => Kind::Unsubscribe,
            11 => Kind::UnsubAck,
            12 => Kind::PingReq,
            13 => Kind::PingResp,
            14 => Kind::Disconnect,
            15 => Kind::Auth,
            _ => return None,
        })
    }

    /// The flags that the fixed header must carry (MQTT-2.2.2-1); PUBLISH has its own.
    pub fn flags(self) -> u8 {
        match self {
            Kind::PubRel | Kind::Subscribe | Kind::Unsubscribe => 0b0010,
            _ => 0,
        }
    }

    /// Only a server may send it (MQTT 5 §2.1.2).
    pub fn is_from_server_only(self) -> bool {
        matches!(self, Kind::ConnAck | Kind::SubAck | Kind::UnsubAck | Kind::PingResp)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Packet {
    Connect(Box<Connect>),
    ConnAck(Box<ConnAck>),
    Publish(PublishPacket),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe(Subscribe),
    SubAck(SubAck),
    Unsubscribe(Unsubscribe),
    UnsubAck(UnsubAck),
    PingReq,
    PingResp,
    Disconnect(Box<Disconnect>),
    Auth(Box<Auth>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Connect {
    pub level: Level,
    /// Another broker, by the bit that bridges of 3.x set.
    pub is_bridge: bool,
    pub client_id: Text,
    /// Clean Session in 3.x.
    pub clean_start: bool,
    pub keepalive_secs: u16,
    pub user: Option<Text>,
    pub password: Option<Bytes>,
    pub will: Option<Box<Will>>,
    pub properties: ConnectProperties,
}

/// MQTT 5 §3.1.2.11.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnectProperties {
    pub session_expiry_secs: Option<u32>,
    pub receive_maximum: Option<u16>,
    pub packet_bytes_max: Option<u32>,
    pub topic_alias_maximum: Option<u16>,
    pub request_response_information: Option<bool>,
    pub request_problem_information: Option<bool>,
    pub auth_method: Option<Text>,
    pub auth_data: Option<Bytes>,
    pub user: Vec<(Text, Text)>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnAck {
    pub session_present: bool,
    /// A return code in 3.x, a reason code in 5.
    pub code: u8,
    pub properties: ConnAckProperties,
}

/// MQTT 5 §3.2.2.3. `None` means what the specification says about absence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnAckProperties {
    pub session_expiry_secs: Option<u32>,
    pub receive_maximum: Option<u16>,
    pub maximum_qos: Option<u8>,
    pub retain_available: Option<bool>,
    pub packet_bytes_max: Option<u32>,
    pub assigned_client_id: Option<Text>,
    pub topic_alias_maximum: Option<u16>,
    pub reason: Option<Text>,
    pub user: Vec<(Text, Text)>,
    pub wildcard_available: Option<bool>,
    pub subscription_ids_available: Option<bool>,
    pub shared_available: Option<bool>,
    pub server_keepalive_secs: Option<u16>,
    pub response_information: Option<Text>,
    pub server_reference: Option<Text>,
    pub auth_method: Option<Text>,
    pub auth_data: Option<Bytes>,
}

/// A PUBLISH as it stands on the wire: the message, and what belongs to this hop only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PublishPacket {
    pub publish: Publish,
    /// 0 at QoS 0.
    pub id: u16,
    pub alias: Option<u16>,
    pub subscription_ids: Vec<u32>,
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    pub id: u16,
    /// 0 in 3.x.
    pub code: u8,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Subscribe {
    pub id: u16,
    pub subscription_id: Option<u32>,
    pub filters: Vec<Subscription>,
    /// Filters beyond the limit: counted, not kept.
    pub excess: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SubAck {
    pub id: u16,
    pub codes: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Unsubscribe {
    pub id: u16,
    /// As sent, with `$share/{group}/`.
    pub filters: Vec<Text>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UnsubAck {
    pub id: u16,
    /// Empty in 3.x.
    pub codes: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Disconnect {
    pub code: u8,
    pub session_expiry_secs: Option<u32>,
    pub reason: Option<Text>,
    pub server_reference: Option<Text>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Auth {
    pub code: u8,
    pub method: Option<Text>,
    pub data: Option<Bytes>,
    pub reason: Option<Text>,
}

/// Reason codes of MQTT 5 that this crate uses by name (§2.4).
pub mod code {
    pub const SUCCESS: u8 = 0x00;
    pub const DISCONNECT_WITH_WILL: u8 = 0x04;
    pub const NO_MATCHING_SUBSCRIBERS: u8 = 0x10;
    pub const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;
    pub const UNSPECIFIED: u8 = 0x80;
    pub const MALFORMED_PACKET: u8 = 0x81;
    pub const PROTOCOL_ERROR: u8 = 0x82;
    pub const UNSUPPORTED_VERSION: u8 = 0x84;
    pub const CLIENT_ID_INVALID: u8 = 0x85;
    pub const BAD_CREDENTIALS: u8 = 0x86;
    pub const NOT_AUTHORIZED: u8 = 0x87;
    pub const SERVER_UNAVAILABLE: u8 = 0x88;
    pub const SERVER_BUSY: u8 = 0x89;
    pub const BANNED: u8 = 0x8A;
    pub const SERVER_SHUTTING_DOWN: u8 = 0x8B;
    pub const BAD_AUTH_METHOD: u8 = 0x8C;
    pub const KEEPALIVE_TIMEOUT: u8 = 0x8D;
    pub const SESSION_TAKEN_OVER: u8 = 0x8E;
    pub const FILTER_INVALID: u8 = 0x8F;
    pub const TOPIC_INVALID: u8 = 0x90;
    pub const PACKET_ID_NOT_FOUND: u8 = 0x92;
    pub const RECEIVE_MAXIMUM_EXCEEDED: u8 = 0x93;
    pub const TOPIC_ALIAS_INVALID: u8 = 0x94;
    pub const PACKET_TOO_LARGE: u8 = 0x95;
    pub const QUOTA_EXCEEDED: u8 = 0x97;
    pub const PAYLOAD_FORMAT_INVALID: u8 = 0x99;
    pub const RETAIN_NOT_SUPPORTED: u8 = 0x9A;
    pub const QOS_NOT_SUPPORTED: u8 = 0x9B;
    pub const SHARED_NOT_SUPPORTED: u8 = 0x9E;
    pub const CONNECTION_RATE_EXCEEDED: u8 = 0x9F;
    pub const MAXIMUM_CONNECT_TIME: u8 = 0xA0;
    pub const SUBSCRIPTION_IDS_NOT_SUPPORTED: u8 = 0xA1;
    pub const WILDCARD_NOT_SUPPORTED: u8 = 0xA2;
}
