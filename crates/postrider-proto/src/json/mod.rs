//! Our own protocol: JSON frames, over WebSocket or as server-sent events, without IO.
//!
//! `docs/protocol/websocket.md` and `docs/protocol/http.md` describe it for those who write a client.
//!
//! | file | what it knows |
//! | --- | --- |
//! | `frame` | the frames of both sides, as text |
//! | `names` | what deliveries and places in an inbox are called in them |
//! | `socket` | `json::SocketConnection`: the protocol over a WebSocket |
//! | `stream` | `json::EventStream`: the server's half of it as server-sent events |

mod frame;
mod names;
mod socket;
mod stream;

pub(crate) use frame::body_of;
pub use frame::{delivery_name, read_delivery, write_delivery};
pub use names::{Names, PlainNames, plain_number};
pub use socket::SocketConnection;
pub use stream::EventStream;

use crate::ConnectRefusal;
use std::sync::Arc;

/// What a listener allows peers that speak JSON.
#[derive(Clone, Debug)]
pub struct JsonConfig {
    /// How often a client has to be heard of where it does not say.
    pub heartbeat_secs: u32,
    pub heartbeat_secs_min: u32,
    pub heartbeat_secs_max: u32,
    /// Comments keep an event stream alive in proxies.
    pub comment_secs: u32,
    /// From the handshake to the `hello` (L2).
    pub hello_ms: u64,
    /// Deliveries without an acknowledgement (L14).
    pub window: usize,
    /// Requests of one connection that are not answered yet.
    pub requests_max: usize,
    /// Frames that cannot be read, before the connection ends.
    pub bad_frames_max: u8,
    pub topic_bytes_max: usize,
    pub topic_levels_max: usize,
    /// Filters of one `subscribe` (L13).
    pub filters_max: usize,
    /// What deliveries and places in an inbox are called.
    pub names: Arc<dyn Names>,
}

impl Default for JsonConfig {
    fn default() -> Self {
        JsonConfig {
            heartbeat_secs: 55,
            heartbeat_secs_min: 10,
            heartbeat_secs_max: 1_200,
            comment_secs: 25,
            hello_ms: 5_000,
            window: 32,
            requests_max: 64,
            bad_frames_max: 20,
            topic_bytes_max: 512,
            topic_levels_max: 16,
            filters_max: 16,
            names: Arc::new(PlainNames),
        }
    }
}

/// A refused sign-in: the code of the error frame, the HTTP status, and when to try again (milliseconds; `None`: never).
pub(crate) fn refusal(why: ConnectRefusal) -> (&'static str, u16, &'static str, Option<u32>) {
    match why {
        ConnectRefusal::BadCredentials | ConnectRefusal::ClientIdInvalid => {
            ("bad_credentials", 401, "The device is unknown, or the credentials are wrong or old.", None)
        }
        ConnectRefusal::RateExceeded => {
            ("too_often", 429, "The device connects too often, or too many sign-ins failed.", Some(60_000))
        }
        ConnectRefusal::Unavailable => {
            ("unavailable", 503, "The server takes no connection now.", Some(2_000))
        }
        ConnectRefusal::Busy => {
            ("too_many_connections", 503, "There is no place for another connection now.", Some(2_000))
        }
        ConnectRefusal::QuotaExceeded => ("quota_exceeded", 403, "A limit of the app is reached.", None),
        ConnectRefusal::NotAuthorized
        | ConnectRefusal::Banned
        | ConnectRefusal::TopicInvalid
        | ConnectRefusal::RetainNotSupported => {
            ("not_allowed", 403, "The device may not connect here.", None)
        }
    }
}
