//! XMPP: conversations as files, hostile input as tables.

mod conversation;
