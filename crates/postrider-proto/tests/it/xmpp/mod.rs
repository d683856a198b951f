//! XMPP: conversations as files, hostile input as tables.

mod conversation;
#[path = "../../../../postrider-fuzz/src/xmpp.rs"]
mod fuzz_body;
mod hostile;
mod websocket;
