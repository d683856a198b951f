//! XMPP: conversations as files, hostile input as tables.

mod conversation;
#[path = "../../../../../fuzz/bodies/xmpp_server_bytes.rs"]
mod fuzz_body;
mod hostile;
mod websocket;
