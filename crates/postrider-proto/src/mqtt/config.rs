//! What a listener allows its MQTT clients. One per listener, shared by its connections.

use super::codec::Limits;
use crate::Qos;

/// Settings of a server-side connection. The default is for listeners that face the internet (reliability.md §3.2).
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Before CONNECT is answered (L9); also bounds what a client may send ahead of the answer (L8).
    pub packet_bytes_max_before_auth: usize,
    /// After it (L9). Told to MQTT 5 clients as Maximum Packet Size.
    pub packet_bytes_max: usize,
    /// Until the CONNECT is complete (L2).
    pub connect_timeout_ms: u64,
    /// Client ids outside of `[A-Za-z0-9._:@/ -]` are refused, `#` and `+` with them.
    pub client_id_is_strict: bool,
    /// Form and number of what a packet holds (L11, L12, L13).
    pub limits: Limits,
    /// Topic aliases that a client may define (L12); also how many the server uses towards it.
    pub topic_alias_maximum: u16,
    /// QoS 1 and 2 publishes that an MQTT 5 client may have unacknowledged (L14); 65,535 is not told.
    pub receive_maximum: u16,
    /// QoS 2 publishes of a 3.x client that await their PUBREL: it cannot be told a maximum, so beyond it the connection ends.
    pub awaiting_release_max: u16,
    /// Deliveries unacknowledged by a client (L14). MQTT 5 clients may ask for less.
    pub inflight_max: u16,
    /// The longest keep-alive. MQTT 5 clients that ask for more, or for none, are told it; 3.x clients cannot be told,
    /// and are held to their own.
    pub server_keepalive_secs: Option<u16>,
    /// When a 3.x client, or an MQTT 5 one with no keep-alive, is cut for its silence although it promised nothing shorter;
    /// 0: never.
    pub keepalive_zero_secs: u32,
    pub retain_available: bool,
    pub wildcard_available: bool,
    pub shared_available: bool,
    pub maximum_qos: Qos,
    /// Longer ones are lowered to it, and MQTT 5 clients are told.
    pub session_expiry_secs_max: u32,
    /// Acknowledgements of unknown ids in a minute, beyond which the connection ends (A18).
    pub bad_acks_per_minute_max: u16,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            packet_bytes_max_before_auth: 16 * 1024,
            packet_bytes_max: 64 * 1024,
            connect_timeout_ms: 5_000,
            client_id_is_strict: true,
            limits: Limits::default(),
            topic_alias_maximum: 16,
            receive_maximum: 32,
            awaiting_release_max: 32,
            inflight_max: 32,
            server_keepalive_secs: Some(1_200),
            keepalive_zero_secs: 3_600,
            retain_available: true,
            wildcard_available: true,
            shared_available: true,
            maximum_qos: Qos::ExactlyOnce,
            session_expiry_secs_max: u32::MAX,
            bad_acks_per_minute_max: 100,
        }
    }
}

impl ServerConfig {
    /// Whether the identifier is made of what identifiers may be made of. The empty one is another matter.
    pub(crate) fn accepts_client_id(&self, id: &str) -> bool {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@/ -".contains(&byte);
        !self.client_id_is_strict || id.bytes().all(is_plain)
    }
}
