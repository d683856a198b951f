//! WebSocket (RFC 6455), the server's side, without IO.
//!
//! | file | what it knows |
//! | --- | --- |
//! | `handshake` | whether an HTTP request may become a WebSocket, and the answer to it |
//! | `frame` | frames: headers, masking; also the client's side of them |
//! | `close` | every code that a connection is closed with, and whether the client may try again |
//! | `deflate` | messages compressed, one by one, where both sides want it |
//! | `reader` | frames cut anywhere → pieces of messages, with all rules and limits kept |
//! | `server` | `ws::ServerConnection`: whole messages |
//! | `mqtt` | `ws::MqttOverWs`: a byte stream for an inner protocol |
//! | `xmpp` | `ws::XmppOverWs`: an element a message |
//!
//! Without an agreement on permessage-deflate a compressed frame is a protocol error (L23).

mod close;
mod deflate;
pub mod frame;
mod handshake;
mod mqtt;
mod reader;
mod server;
mod xmpp;

pub use close::{CLOSE_CODES, CloseCode};
pub use deflate::Deflate;
pub use handshake::{Handshake, HandshakeError, accept_key, client_request};
pub use mqtt::MqttOverWs;
pub use server::{Message, ServerConnection, WsOutput};
pub use xmpp::XmppOverWs;

/// What a listener allows its WebSocket peers.
#[derive(Clone, Debug)]
pub struct WsConfig {
    pub frame_bytes_max: usize,
    pub message_bytes_max: usize,
    /// Frames of one message.
    pub fragments_max: u32,
    /// Pings, pongs and such in one window of time.
    pub control_frames_max: u32,
    pub control_window_ms: u64,
    /// How many times its size a compressed message may become (L23).
    pub inflate_ratio_max: usize,
}

impl Default for WsConfig {
    /// For listeners that face the internet (reliability.md L22).
    fn default() -> Self {
        WsConfig {
            frame_bytes_max: 64 * 1024,
            message_bytes_max: 64 * 1024,
            fragments_max: 64,
            control_frames_max: 20,
            control_window_ms: 10_000,
            inflate_ratio_max: 20,
        }
    }
}

impl WsConfig {
    /// For an echo endpoint that a conformance suite drives: 16 MiB, in as many frames as it likes.
    pub fn for_echo_tests() -> Self {
        WsConfig {
            frame_bytes_max: 16 << 20,
            message_bytes_max: 16 << 20,
            fragments_max: u32::MAX,
            control_frames_max: u32::MAX,
            control_window_ms: 10_000,
            inflate_ratio_max: 1 << 20,
        }
    }
}
