//! XMPP, the server's side, without IO. What is supported is in `docs/protocol/xmpp.md`.
//!
//! | file | what it knows |
//! | --- | --- |
//! | `xml` | elements in memory, writing them |
//! | `reader` | bytes cut anywhere → stream header, stanzas, stream end, with all limits kept while reading |
//! | `ns`, `jid`, `error` | namespaces, addresses, the errors of stanzas and streams |
//! | `scram` | SCRAM and channel binding |
//! | `body` | a push or a topic's message as the inside of a stanza, encoded once for all receivers |
//! | `request` | what the protocol asks of who reads its events, beyond what all protocols ask |
//! | `server` | the server's side of one connection |

mod body;
mod config;
mod error;
mod jid;
mod ns;
mod reader;
mod request;
mod scram;
mod server;
mod xml;

pub(crate) use body::Body;
pub use body::STANZA_TOPIC;
pub use config::ServerConfig;
pub use jid::{Jid, escape_local, unescape_local};
pub use reader::{Piece, Reader, StanzaLimits, XmlError, XmlLimits};
pub use request::{AccountAction, AccountOutcome, Answer, NotAllowed, Request, Stanza, StanzaOutcome};
pub use scram::{ChannelBinding, ScramHash, ScramKeys};
pub use server::{SavedStream, ServerConnection};
pub use xml::Element;
