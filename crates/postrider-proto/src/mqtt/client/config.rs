//! How a client signs in.

use crate::mqtt::packet::{Connect, ConnectProperties, Level};
use crate::{Text, Will};
use bytes::Bytes;

/// Shared by the connections that sign in alike.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub level: Level,
    pub client_id: Text,
    pub clean_start: bool,
    pub keepalive_secs: u16,
    pub user: Option<Text>,
    pub password: Option<Bytes>,
    pub will: Option<Box<Will>>,
    /// MQTT 5: how long the session outlives the connection.
    pub session_expiry_secs: Option<u32>,
    /// MQTT 5: how many messages the server may send unacknowledged.
    pub receive_maximum: Option<u16>,
    /// MQTT 5: aliases that the server may define; 0 for none.
    pub topic_alias_maximum: u16,
    /// The largest packet taken. MQTT 5 servers are told when it is below the protocol's own.
    pub packet_bytes_max: usize,
    /// Publishes unacknowledged at once; an MQTT 5 server may allow less.
    pub inflight_max: u16,
    /// Messages are acknowledged by the caller and not on receipt.
    pub acks_by_hand: bool,
}

/// The longest packet that there is: a header of 5 bytes and a body of 268,435,455 (§2.1.4).
const PACKET_BYTES_MAX: usize = 268_435_460;

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            level: Level::V5,
            client_id: Text::default(),
            clean_start: true,
            keepalive_secs: 60,
            user: None,
            password: None,
            will: None,
            session_expiry_secs: None,
            receive_maximum: None,
            topic_alias_maximum: 0,
            packet_bytes_max: PACKET_BYTES_MAX,
            inflight_max: 1_000,
            acks_by_hand: false,
        }
    }
}

impl ClientConfig {
    /// The CONNECT of this configuration.
    pub fn connect_packet(&self) -> Connect {
        let told_bytes_max =
            (self.packet_bytes_max < PACKET_BYTES_MAX).then_some(self.packet_bytes_max as u32);
        let properties = ConnectProperties {
            session_expiry_secs: self.session_expiry_secs,
            receive_maximum: self.receive_maximum,
            packet_bytes_max: told_bytes_max,
            topic_alias_maximum: (self.topic_alias_maximum > 0).then_some(self.topic_alias_maximum),
            ..ConnectProperties::default()
        };
        Connect {
            level: self.level,
            client_id: self.client_id.clone(),
            is_bridge: false,
            clean_start: self.clean_start,
            keepalive_secs: self.keepalive_secs,
            user: self.user.clone(),
            password: self.password.clone(),
            will: self.will.clone(),
            properties: if self.level.is_v5() { properties } else { ConnectProperties::default() },
        }
    }
}
