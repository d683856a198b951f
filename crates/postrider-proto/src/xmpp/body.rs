//! A message as XMPP shows it: what stands inside of the stanza, the same for all its receivers.

use super::ns;
use super::reader::{Piece, Reader, StanzaLimits, XmlLimits};
use super::xml::{attribute, escaped, is_char, raw, text_element};
use crate::{PUSH_TOPIC, Publish};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// The topic under which a stanza of one device waits for another: the payload is the stanza, ready to be sent.
pub const STANZA_TOPIC: &str = "$peer/inbox";

/// One message, encoded once.
#[derive(Debug)]
pub(crate) struct Body {
    pub kind: Kind,
    /// The message's own id, where it has one.
    pub id: Option<Box<str>>,
    /// The inside of the stanza, or the stanza itself.
    pub xml: Vec<u8>,
    /// The inside of an androidpn notification behind its id and key.
    pub notification: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Push,
    Topic,
    Stanza,
}

impl Body {
    pub fn of(publish: &Publish) -> Body {
        match publish.topic.as_str() {
            "" | PUSH_TOPIC => push(&publish.payload),
            STANZA_TOPIC => {
                let xml = publish.payload.to_vec();
                Body { kind: Kind::Stanza, id: None, xml, notification: Vec::new() }
            }
            topic => topic_event(topic, &publish.payload),
        }
    }
}

fn push(payload: &[u8]) -> Body {
    let envelope: Value = serde_json::from_slice(payload).unwrap_or(Value::Null);
    let shown = |name: &str| envelope["notification"][name].as_str().filter(|text| !text.is_empty());
    let (title, body, click) = (shown("title"), shown("body"), shown("click"));
    let mut xml = Vec::with_capacity(payload.len() + 512);
    if let Some(title) = title {
        text_element(&mut xml, "subject", title);
    }
    if let Some(body) = body.or(title) {
        text_element(&mut xml, "body", body);
    }
    payload_element(payload, &mut xml);
    raw(&mut xml, "<request xmlns=\"urn:xmpp:receipts\"/><markable xmlns=\"urn:xmpp:chat-markers:0\"/>");
    let id = envelope["id"].as_str().filter(|id| id.len() <= 128).map(Into::into);
    // What has nothing to show is shown as it is: this client knows nothing else.
    let text = std::str::from_utf8(payload).unwrap_or_default();
    let data_only = title.is_none() && body.is_none();
    let message = body.or(data_only.then_some(text)).unwrap_or_default();
    let notification = notification(title.unwrap_or_default(), message, click.unwrap_or_default());
    Body { kind: Kind::Push, id, xml, notification }
}

/// XEP-0060 §7.1.2.1. Without item ids: what is kept is the last message of a topic, and nothing is looked up by an id.
fn topic_event(topic: &str, payload: &[u8]) -> Body {
    let mut xml = Vec::with_capacity(payload.len() + 256);
    raw(&mut xml, "<event xmlns=\"http://jabber.org/protocol/pubsub#event\"><items");
    attribute(&mut xml, "node", topic);
    raw(&mut xml, "><item>");
    payload_element(payload, &mut xml);
    raw(&mut xml, "</item></items></event>");
    let text = std::str::from_utf8(payload).unwrap_or_default();
    Body { kind: Kind::Topic, id: None, xml, notification: notification(topic, text, "") }
}

fn notification(title: &str, message: &str, uri: &str) -> Vec<u8> {
    let mut xml = Vec::new();
    text_element(&mut xml, "title", title);
    text_element(&mut xml, "message", message);
    text_element(&mut xml, "uri", uri);
    xml
}

/// Any payload as one element: XML as it is, JSON in its container (XEP-0335), text and bytes in elements of our own.
pub(crate) fn payload_element(payload: &[u8], out: &mut Vec<u8>) {
    let text = std::str::from_utf8(payload).ok().filter(|text| text.chars().all(is_char));
    match text {
        Some(text) if text.starts_with('<') && write_xml(text, out) => {}
        Some(text) if serde_json::from_str::<Value>(text).is_ok() => {
            wrapped("json", ns::JSON, text, out);
        }
        Some(text) => wrapped("text", ns::PAYLOAD, text, out),
        None => wrapped("base64", ns::PAYLOAD, &STANDARD.encode(payload), out),
    }
}

fn wrapped(name: &str, ns: &str, text: &str, out: &mut Vec<u8>) {
    raw(out, "<");
    raw(out, name);
    attribute(out, "xmlns", ns);
    raw(out, ">");
    escaped(out, text);
    raw(out, "</");
    raw(out, name);
    raw(out, ">");
}

/// False, with nothing written, when it is not one whole element.
fn write_xml(text: &str, out: &mut Vec<u8>) -> bool {
    let (mut reader, mut input) = (Reader::framed(), text.as_bytes());
    let stanza = StanzaLimits { bytes_max: text.len(), parts_max: 1_024 };
    let mut next = || reader.next(&mut input, &XmlLimits::default(), stanza);
    match (next(), next()) {
        // An element without a namespace would take on the one that it is put into.
        (Ok(Some(Piece::Stanza(element))), Ok(None))
            if reader.is_between_stanzas() && !element.ns().is_empty() =>
        {
            element.write("", out);
            true
        }
        _ => false,
    }
}

/// The payload of a published item: the reverse of [`payload_element`].
pub(crate) fn payload_of(item: &super::xml::Element) -> Option<Vec<u8>> {
    let mut children = item.children();
    let Some(element) = children.next() else { return Some(Vec::new()) };
    if children.next().is_some() {
        return None;
    }
    if element.is(ns::JSON, "json") || element.is(ns::PAYLOAD, "text") {
        return Some(element.text().into_bytes());
    }
    if element.is(ns::PAYLOAD, "base64") {
        return STANDARD.decode(element.text().trim()).ok();
    }
    let mut payload = Vec::new();
    element.write("", &mut payload);
    Some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_finds_an_element_and_comes_back() {
        let rows: [(&[u8], &str); 6] = [
            (
                br#"{"a":"<&>"}"#,
                r#"<json xmlns="urn:xmpp:json:0">{&quot;a&quot;:&quot;&lt;&amp;&gt;&quot;}</json>"#,
            ),
            (b"hot", r#"<text xmlns="urn:postrider:payload:0">hot</text>"#),
            (b"\xFF\x00", r#"<base64 xmlns="urn:postrider:payload:0">/wA=</base64>"#),
            (b"a\x01", r#"<base64 xmlns="urn:postrider:payload:0">YQE=</base64>"#),
            (br#"<x xmlns="u"><y>1</y></x>"#, r#"<x xmlns="u"><y>1</y></x>"#),
            (b"<x>", r#"<text xmlns="urn:postrider:payload:0">&lt;x&gt;</text>"#),
        ];
        for (payload, expected) in rows {
            let mut xml = Vec::new();
            payload_element(payload, &mut xml);
            assert_eq!(String::from_utf8_lossy(&xml), expected);
            let item = format!("<item xmlns='p'>{expected}</item>");
            let piece = Reader::framed().next(
                &mut item.as_bytes(),
                &XmlLimits::default(),
                StanzaLimits { bytes_max: 1_000, parts_max: 10 },
            );
            let Ok(Some(Piece::Stanza(item))) = piece else { panic!("{item} should be an element") };
            assert_eq!(payload_of(&item).as_deref(), Some(payload));
        }
    }
}
