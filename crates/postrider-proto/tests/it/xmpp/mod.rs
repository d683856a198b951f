//! XMPP: conversations as files, hostile input as tables.

mod conversation;
mod hostile;
mod websocket;
