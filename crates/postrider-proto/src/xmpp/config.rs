//! What a listener allows its XMPP clients. One per listener, shared by its connections.

use super::reader::{StanzaLimits, XmlLimits};

/// Settings of a server-side connection. The default is for listeners that face the internet (reliability.md §3.2).
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The one host that this server is; empty: whatever clients call it.
    pub host: String,
    pub xml: XmlLimits,
    /// A stanza before and after sign-in (L17). Before, it also bounds what a client may send ahead of an answer.
    pub before_auth: StanzaLimits,
    pub after_auth: StanzaLimits,
    /// A name and a password (L11).
    pub user_bytes_max: usize,
    pub password_bytes_max: usize,
    /// Until the stream header is there (L2).
    pub connect_timeout_ms: u64,
    /// From the connection's begin to the sign-in, whatever is said meanwhile (L3).
    pub auth_timeout_ms: u64,
    /// Failed sign-ins of one stream, then it ends (L21).
    pub auth_attempts_max: u8,
    /// The listener can switch to TLS: STARTTLS is offered while it has not.
    pub offers_tls: bool,
    /// Sign-in and registration without TLS. For loopback and tests.
    pub allows_plaintext: bool,
    /// XEP-0077, for devices that make their own account. Whether one may is decided by who reads the events.
    pub offers_registration: bool,
    /// XEP-0078, for clients from before SASL.
    pub offers_legacy_auth: bool,
    /// Clients that sign in with this resource get the androidpn dialect; empty: none do.
    pub androidpn_resource: String,
    /// What stands in `<apiKey>` of androidpn notifications.
    pub androidpn_api_key: String,
    /// Deliveries unacknowledged by a client (L14).
    pub inflight_max: usize,
    /// Stanzas kept for a client that may resume, and their bytes (L20).
    pub resume_stanzas_max: usize,
    pub resume_bytes_max: usize,
    /// How long after its connection a stream may be resumed (L20).
    pub resume_ms: u64,
    /// Stanzas of a client that wait for their answer from inside; a client that pipelines sends a thousand in one read.
    pub requests_max: usize,
    /// The silence after which the client is asked whether it is there.
    pub probe_after_ms: u64,
    /// How long it may take to answer that, or to acknowledge what it was sent.
    pub answer_timeout_ms: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            host: String::new(),
            xml: XmlLimits::default(),
            before_auth: StanzaLimits { bytes_max: 10_000, parts_max: 64 },
            after_auth: StanzaLimits { bytes_max: 64 * 1024, parts_max: 1_024 },
            user_bytes_max: 128,
            password_bytes_max: 1_024,
            connect_timeout_ms: 5_000,
            auth_timeout_ms: 15_000,
            auth_attempts_max: 3,
            offers_tls: true,
            allows_plaintext: false,
            offers_registration: false,
            offers_legacy_auth: false,
            androidpn_resource: "AndroidpnClient".to_owned(),
            androidpn_api_key: String::new(),
            inflight_max: 32,
            resume_stanzas_max: 1_000,
            resume_bytes_max: 1 << 20,
            resume_ms: 600_000,
            requests_max: 2_048,
            probe_after_ms: 180_000,
            answer_timeout_ms: 60_000,
        }
    }
}
