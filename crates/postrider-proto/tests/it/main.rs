//! Tests of whole conversations, in virtual time and without sockets. Test names are sentences of the specifications.

mod codec;
mod conversation;
mod hostile;
mod limits;
mod old_clients;
mod support;
mod websocket;
