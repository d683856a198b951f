//! MQTT, both ends, without IO.
//!
//! **Supported**: MQTT 3.1 (protocol name `MQIsdp`, level 3), 3.1.1 (level 4) and 5, each whole, but for enhanced
//! authentication (AUTH is refused with 0x8C). One codec and one set of packet types serve all three and both ends:
//!
//! | file | what it knows |
//! | --- | --- |
//! | `packet` | the fifteen packets as types |
//! | `codec` | bytes ↔ packets, with the limits kept while decoding |
//! | `property` | the properties of MQTT 5: their types, and where they may stand |
//! | `topic` | names, filters, shared subscriptions, matching |
//! | `inflight` | packet ids ↔ delivery tokens, the hand-shakes of QoS 1 and 2 |
//! | `server` | the broker's side of one connection |
//! | `client` | the client's side: for tests, the command line and the benchmark |
//!
//! **Where the versions differ**:
//! - *3.1* is what the oldest clients speak, and they are not strict about it, so the decoder is lenient for level 3 and
//!   for no other: the low four bits of every type but PUBLISH are ignored, so is bit 0 of the CONNECT flags, a packet
//!   id may be 0, a user flag may stand without a user. The first byte of its CONNACK is 0 always.
//! - *3.1.1* has no way to tell an error but CONNACK and SUBACK codes: what is wrong otherwise closes the connection,
//!   and a publish that is not allowed is acknowledged and dropped (§3.3.5).
//! - *5* answers with reason codes and never with reason strings or user properties of its own, so Request Problem
//!   Information changes nothing; Response Information is not offered, so asking for it does not either.
//!   After a DISCONNECT or a refusing CONNACK the close is gentle, so that it is read.

mod client;
pub mod codec;
mod config;
mod inflight;
pub mod packet;
pub mod property;
mod server;
pub mod topic;

pub use client::{
    ClientConfig, ClientConnection, ClientError, ClientEvent, ClientOutput, ClientSession, Receipt,
};
pub use codec::{Limits, ProtocolError};
pub use config::ServerConfig;
pub use inflight::Inflight;
pub use packet::{Level, Packet};
pub use server::ServerConnection;
pub use topic::{matches, parse_filter};
