//! Tests of whole conversations, in virtual time and without sockets. Test names are sentences of the specifications.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions; here are their helpers too")]

mod codec;
mod conversation;
mod hostile;
mod limits;
mod old_clients;
mod resumption;
mod support;
mod websocket;
mod xmpp;
