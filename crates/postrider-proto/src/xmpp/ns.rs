//! Namespaces.

pub const XML: &str = "http://www.w3.org/XML/1998/namespace";
pub const CLIENT: &str = "jabber:client";
pub const STREAMS: &str = "http://etherx.jabber.org/streams";
pub const FRAMING: &str = "urn:ietf:params:xml:ns:xmpp-framing";
pub const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
pub const STANZA_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
pub const TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
pub const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
pub const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
pub const SESSION: &str = "urn:ietf:params:xml:ns:xmpp-session";
pub const ROSTER: &str = "jabber:iq:roster";
pub const DISCO_INFO: &str = "http://jabber.org/protocol/disco#info";
pub const DISCO_ITEMS: &str = "http://jabber.org/protocol/disco#items";
pub const PUBSUB: &str = "http://jabber.org/protocol/pubsub";
pub const REGISTER: &str = "jabber:iq:register";
pub const LEGACY_AUTH: &str = "jabber:iq:auth";
pub const PING: &str = "urn:xmpp:ping";
pub const SM: &str = "urn:xmpp:sm:3";
pub const CSI: &str = "urn:xmpp:csi:0";
pub const RECEIPTS: &str = "urn:xmpp:receipts";
pub const MARKERS: &str = "urn:xmpp:chat-markers:0";
pub const JSON: &str = "urn:xmpp:json:0";
pub const DELAY: &str = "urn:xmpp:delay";
pub const DATA_FORMS: &str = "jabber:x:data";
pub const COMPRESS: &str = "http://jabber.org/protocol/compress";
pub const CARBONS: &str = "urn:xmpp:carbons:2";
pub const ANDROIDPN: &str = "androidpn:iq:notification";
/// Our own: payloads that are neither XML nor JSON.
pub const PAYLOAD: &str = "urn:postrider:payload:0";
