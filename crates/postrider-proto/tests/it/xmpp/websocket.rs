//! XMPP over WebSocket (RFC 7395).

use super::conversation::SEED;
use crate::support::plain;
use bytes::Bytes;
use postrider_proto::ws::{WsConfig, XmppOverWs, frame};
use postrider_proto::xmpp::ServerConfig;
use postrider_proto::{Accepted, Event, Fanned, Output, Publish, Qos, Reply, ServerProtocol};
use std::sync::Arc;

struct Peer {
    tunnel: XmppOverWs,
    events: Vec<Event>,
    close: Option<&'static str>,
}

impl Peer {
    fn new() -> Self {
        let config = Arc::new(ServerConfig::default());
        let tunnel = XmppOverWs::new(Arc::new(WsConfig::default()), config, SEED, true, 0);
        Peer { tunnel, events: Vec::new(), close: None }
    }

    /// One text message; the messages that come back, a close frame as its code.
    fn say(&mut self, text: &str) -> Vec<String> {
        let mut bytes = Vec::new();
        frame::write_client_frame(frame::Opcode::Text, true, text.as_bytes(), [1, 2, 3, 4], &mut bytes);
        let mut out = Output::default();
        self.tunnel.handle_bytes(&bytes, 0, &mut out);
        self.take(out)
    }

    fn reply(&mut self, reply: Reply) -> Vec<String> {
        let mut out = Output::default();
        self.tunnel.handle_reply(reply, 0, &mut out);
        self.take(out)
    }

    fn take(&mut self, out: Output) -> Vec<String> {
        self.events.extend(out.events);
        self.close = self.close.or(out.close.map(|close| close.kind));
        messages(&out.bytes)
    }
}

/// Unmasked frames as text.
fn messages(mut bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while let [first, len, rest @ ..] = bytes {
        let (len, rest) = match len {
            126 => (usize::from(rest[0]) << 8 | usize::from(rest[1]), &rest[2..]),
            len => (usize::from(*len), rest),
        };
        let payload = &rest[..len];
        found.push(match first {
            0x81 => String::from_utf8(payload.to_vec()).unwrap(),
            0x88 => format!("close {}", u16::from_be_bytes([payload[0], payload[1]])),
            other => panic!("a frame {other:#x}"),
        });
        bytes = &rest[len..];
    }
    found
}

const OPEN: &str = "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='d' version='1.0'/>";

fn signed_in() -> Peer {
    let mut peer = Peer::new();
    let said = peer.say(OPEN);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].starts_with("<open xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\" from=\"d\" id="),
        "{said:?}"
    );
    assert!(
        said[1].starts_with("<stream:features xmlns:stream=\"http://etherx.jabber.org/streams\"><mechanisms")
    );
    assert!(!said[1].contains("starttls"));
    assert!(
        peer.say("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AHUAcHc=</auth>")
            .is_empty()
    );
    let success = peer.reply(Reply::Connect(Ok(Box::<Accepted>::default())));
    assert_eq!(success, ["<success xmlns=\"urn:ietf:params:xml:ns:xmpp-sasl\"/>"]);
    assert_eq!(peer.say(OPEN).len(), 2);
    let bind = "<iq xmlns='jabber:client' id='b' type='set'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
                <resource>r</resource></bind></iq>";
    assert_eq!(
        peer.say(bind),
        [
            "<iq xmlns=\"jabber:client\" type=\"result\" id=\"b\"><bind xmlns=\"urn:ietf:params:xml:ns:xmpp-bind\"><jid>u@d/r</jid></bind></iq>"
        ]
    );
    peer
}

#[test]
fn each_element_is_a_message_with_its_own_namespace() {
    let mut peer = signed_in();
    let said = peer.say("<presence xmlns='jabber:client'/>");
    assert_eq!(said, ["<presence xmlns=\"jabber:client\" from=\"u@d/r\" to=\"u@d/r\"/>"]);
    let payload = Bytes::from_static(br#"{"id":"m1"}"#);
    let mut fanned = Fanned::new(Publish { payload, ..Publish::default() });
    let mut bytes = Vec::new();
    peer.tunnel.handle_deliver(&mut fanned, plain(7, Qos::AtLeastOnce), 0, &mut bytes);
    let said = messages(&bytes);
    assert!(said[0].starts_with("<message xmlns=\"jabber:client\" type=\"normal\" id=\"m1\""), "{said:?}");
    assert!(said[1].starts_with("<iq xmlns=\"jabber:client\" type=\"get\" id=\"probe-"), "{said:?}");
    let id = said[1].split('"').nth(5).unwrap();
    peer.say(&format!("<iq xmlns='jabber:client' type='result' id='{id}'/>"));
    assert!(matches!(peer.events.last(), Some(Event::Acked { delivery: 7 })));
}

#[test]
fn close_is_answered_with_close() {
    let mut peer = signed_in();
    let said = peer.say("<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>");
    assert_eq!(said, ["<close xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\"/>", "close 1000"]);
    assert_eq!(peer.close, Some("disconnect"));
    assert!(matches!(peer.events.last(), Some(Event::Disconnect { .. })));
}

#[test]
fn a_message_that_is_no_whole_element_ends_the_stream() {
    for bad in ["<presence xmlns='jabber:client'>", "<presence", "<presence/>", "<?xml version='1.0'?><x/>"] {
        let mut peer = signed_in();
        let said = peer.say(bad);
        assert!(
            said[0].starts_with("<stream:error xmlns:stream=\"http://etherx.jabber.org/streams\"><"),
            "{bad}: {said:?}"
        );
        assert_eq!(
            said[1..],
            ["<close xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\"/>", "close 1008"],
            "{bad}"
        );
    }
}

#[test]
fn before_sign_in_a_message_is_small_while_it_comes() {
    let mut peer = Peer::new();
    let mut bytes = Vec::new();
    frame::write_client_frame(frame::Opcode::Text, true, &[b' '; 20_000], [0; 4], &mut bytes);
    let mut out = Output::default();
    peer.tunnel.handle_bytes(&bytes[..12_000], 0, &mut out);
    assert_eq!(messages(&out.bytes), ["close 1008"]);
}
