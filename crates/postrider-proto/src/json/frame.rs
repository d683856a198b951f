//! The frames: what a client's text means, and the text of ours.

use super::Names;
use super::names::plain_number;
use crate::{Deliver, Fanned, PUSH_TOPIC, Publish, Text};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::fmt::Write;

/// Nesting of a frame (L27).
const DEPTH_MAX: usize = 32;
/// Deliveries of one `ack`.
const ACKS_MAX: usize = 1_000;
/// Tokens of live messages have the top bit set; in a frame they are `t` and the rest, since JSON's numbers end before.
pub(super) const LIVE: u64 = 1 << 63;

/// A frame of the client's.
#[derive(Debug)]
pub(super) enum Frame {
    Hello(Hello),
    Ack(Vec<u64>),
    Receipt { id: Text, step: Text, reference: Option<u32> },
    Subscribe { topics: Vec<Text>, qos: u8, reference: Option<u32> },
    Unsubscribe { topics: Vec<Text>, reference: Option<u32> },
    Publish { publish: Publish, reference: Option<u32> },
    Ping,
}

#[derive(Debug, Deserialize)]
pub(super) struct Hello {
    pub device: Option<String>,
    pub secret: Option<String>,
    pub token: Option<String>,
    pub heartbeat_secs: Option<u32>,
    #[serde(default)]
    pub clean: bool,
    pub session_expiry_secs: Option<u32>,
    pub user_agent: Option<String>,
}

#[derive(Deserialize)]
struct Tag<'a> {
    #[serde(borrow, rename = "type")]
    kind: std::borrow::Cow<'a, str>,
}

#[derive(Deserialize)]
struct Ack {
    deliveries: Vec<String>,
}

#[derive(Deserialize)]
struct Receipt {
    id: String,
    step: String,
    #[serde(rename = "ref")]
    reference: Option<u32>,
}

#[derive(Deserialize)]
struct Topics {
    topics: Vec<String>,
    qos: Option<u8>,
    #[serde(rename = "ref")]
    reference: Option<u32>,
}

#[derive(Deserialize)]
struct PublishFrame<'a> {
    topic: String,
    #[serde(borrow)]
    json: Option<&'a RawValue>,
    text: Option<String>,
    base64: Option<String>,
    #[serde(default)]
    retain: bool,
    qos: Option<u8>,
    #[serde(rename = "ref")]
    reference: Option<u32>,
}

/// Reads a frame; what is wrong is told in a sentence.
pub(super) fn read(text: &str, names: &dyn Names) -> Result<Frame, String> {
    if is_too_deep(text) {
        return Err(format!("More than {DEPTH_MAX} levels deep."));
    }
    if !text.trim_ascii_start().starts_with('{') {
        // A list would be taken for a frame by the order of its fields.
        return Err("A frame is a JSON object.".into());
    }
    let tag: Tag<'_> = parse(text)?;
    match &*tag.kind {
        "ping" => Ok(Frame::Ping),
        "hello" => parse(text).map(Frame::Hello),
        "ack" => parse::<Ack>(text).and_then(|ack| deliveries(&ack.deliveries, names)).map(Frame::Ack),
        "receipt" => parse::<Receipt>(text).map(|receipt| Frame::Receipt {
            id: receipt.id.as_str().into(),
            step: receipt.step.as_str().into(),
            reference: receipt.reference,
        }),
        "subscribe" => {
            let Topics { topics, qos, reference } = parse(text)?;
            Ok(Frame::Subscribe { topics: texts(&topics), qos: quality(qos)?, reference })
        }
        "unsubscribe" => {
            let Topics { topics, reference, .. } = parse(text)?;
            Ok(Frame::Unsubscribe { topics: texts(&topics), reference })
        }
        "publish" => publish(parse(text)?),
        other => Err(format!("There is no frame of the type {:?}.", shortened(other))),
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("{error}."))
}

fn texts(topics: &[String]) -> Vec<Text> {
    topics.iter().map(|t| t.as_str().into()).collect()
}

/// Our sessions take 0 or 1; asking for 2 is asking for 1.
fn quality(qos: Option<u8>) -> Result<u8, String> {
    match qos.unwrap_or(1) {
        qos @ 0..=2 => Ok(qos.min(1)),
        _ => Err("`qos` is 0 or 1.".into()),
    }
}

fn publish(frame: PublishFrame<'_>) -> Result<Frame, String> {
    let payload = match (frame.json, frame.text, frame.base64) {
        (Some(json), None, None) => Bytes::copy_from_slice(json.get().as_bytes()),
        (None, Some(text), None) => Bytes::from(text),
        (None, None, Some(base64)) => {
            STANDARD.decode(base64).map(Bytes::from).map_err(|_| "`base64` cannot be decoded.".to_owned())?
        }
        (None, None, None) if frame.retain => Bytes::new(),
        _ => return Err("Exactly one of `json`, `text` and `base64`.".into()),
    };
    let properties = frame.json.map(|_| {
        Box::new(crate::PublishProperties {
            content_type: Some(Text::from_static("application/json")),
            ..Default::default()
        })
    });
    let qos = crate::Qos::from_u8(quality(frame.qos)?).unwrap_or_default();
    let topic = frame.topic.as_str().into();
    let publish = Publish { topic, payload, qos, retain: frame.retain, dup: false, properties };
    Ok(Frame::Publish { publish, reference: frame.reference })
}

fn deliveries(told: &[String], names: &dyn Names) -> Result<Vec<u64>, String> {
    if told.len() > ACKS_MAX {
        return Err(format!("At most {ACKS_MAX} deliveries in one `ack`."));
    }
    let all: Option<Vec<u64>> = told.iter().map(|name| read_delivery(name, names)).collect();
    all.ok_or_else(|| "A delivery is not one that was given out.".to_owned())
}

/// The number that a delivery's name in a frame stands for.
pub fn read_delivery(name: &str, names: &dyn Names) -> Option<u64> {
    match name.strip_prefix('t').and_then(plain_number) {
        Some(live) => Some(live | LIVE),
        None => names.read_delivery(name).filter(|number| !is_live(*number)),
    }
}

/// The name of a delivery in a frame.
pub fn delivery_name(delivery: u64, names: &dyn Names) -> String {
    let mut name = String::new();
    append_name(delivery, names, &mut name);
    name
}

fn append_name(delivery: u64, names: &dyn Names, into: &mut String) {
    match is_live(delivery) {
        true => _ = write!(into, "t{}", delivery & !LIVE),
        false => names.write_delivery(delivery, into),
    }
}

/// Whether a delivery number is of a live message, which is in no inbox.
pub(super) fn is_live(delivery: u64) -> bool {
    delivery & LIVE != 0
}

/// Counts brackets outside of strings; whether they match is the parser's business.
fn is_too_deep(text: &str) -> bool {
    let (mut depth, mut in_string, mut is_escaped) = (0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return true;
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

pub(super) fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// A JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// Appends the frame of a delivery; the part that all receivers share is made once.
pub fn write_delivery(message: &mut Fanned, how: &Deliver<'_>, names: &dyn Names, into: &mut Vec<u8>) {
    let is_push = &*message.publish().topic == PUSH_TOPIC;
    let mut own = String::from(if is_push { r#"{"type":"push","# } else { r#"{"type":"message","# });
    if how.qos != crate::Qos::AtMostOnce {
        own.push_str(r#""delivery":""#);
        append_name(how.delivery, names, &mut own);
        own.push_str(r#"","#);
    }
    if let Some(cursor) = how.cursor {
        own.push_str(r#""cursor":""#);
        names.write_cursor(cursor, &mut own);
        own.push_str(r#"","#);
    }
    if how.dup {
        own.push_str(r#""again":true,"#);
    }
    if how.retain {
        own.push_str(r#""retained":true,"#);
    }
    into.extend_from_slice(own.as_bytes());
    into.extend_from_slice(message.json_body());
}

/// Whether every reader will take it: a string with half a character in it, which some refuse, counts as none.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(text).is_ok()
}

/// What of a message's frame is the same for all receivers, its closing brace included.
pub(crate) fn body_of(publish: &Publish, id: Option<&str>) -> Vec<u8> {
    let mut body = String::new();
    let content_type = publish.properties.as_ref().and_then(|p| p.content_type.as_deref());
    let is_push = &*publish.topic == PUSH_TOPIC;
    if !is_push {
        _ = write!(body, r#""topic":{},"#, quoted(&publish.topic));
    }
    // An envelope tells its id itself.
    if let Some(id) = id {
        _ = write!(body, r#""id":{},"#, quoted(id));
    }
    // A push says what it is only where it is not our envelope.
    let may_be_json = content_type == Some("application/json") || (is_push && content_type.is_none());
    match std::str::from_utf8(&publish.payload) {
        Ok(text) if may_be_json && is_json(text) => {
            body.push_str(if is_push { r#""message":"# } else { r#""json":"# });
            // Between tokens a line's end is as good as a space, and in a string there is none: so no line is ever broken.
            body.extend(text.chars().map(|c| if matches!(c, '\n' | '\r') { ' ' } else { c }));
        }
        Ok(text) if !is_push => _ = write!(body, r#""text":{}"#, quoted(text)),
        _ => _ = write!(body, r#""base64":"{}""#, STANDARD.encode(&publish.payload)),
    }
    body.push('}');
    body.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::PlainNames;

    fn read(text: &str) -> Result<Frame, String> {
        super::read(text, &PlainNames)
    }

    #[test]
    fn deliveries_have_names_that_are_read_back() {
        for number in [0, 1, 184, (1 << 53) + 1, LIVE | 7] {
            assert_eq!(read_delivery(&delivery_name(number, &PlainNames), &PlainNames), Some(number));
        }
        for bad in
            ["", "t", "-1", "+1", " 1", "1 ", "0x1", "9223372036854775808", "t9223372036854775808", "１"]
        {
            assert_eq!(read_delivery(bad, &PlainNames), None, "{bad}");
        }
    }

    #[test]
    fn a_frame_is_read_strictly_where_it_matters_and_leniently_where_it_grows() {
        assert!(matches!(read(r#"{"type":"ping","new":1}"#), Ok(Frame::Ping)));
        for bad in [
            "",
            "[]",
            r#"["ping"]"#,
            "1",
            "null",
            "{}",
            r#"{"type":1}"#,
            r#"{"type":"nothing"}"#,
            r#"{"type":"ack"}"#,
            r#"{"type":"ack","deliveries":[1]}"#,
            r#"{"type":"ack","deliveries":["x"]}"#,
            r#"{"type":"ping","type":"ping"}"#,
            r#"{"type":"ping"} {}"#,
            r#"{"type":"subscribe","topics":"a"}"#,
            r#"{"type":"subscribe","topics":["a"],"qos":3}"#,
            r#"{"type":"publish","topic":"a"}"#,
            r#"{"type":"publish","topic":"a","text":"x","json":1}"#,
            r#"{"type":"publish","topic":"a","base64":"*"}"#,
            r#"{"type":"receipt","id":"x","step":"displayed","ref":-1}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let deep = |n: usize| {
            format!(r#"{{"type":"publish","topic":"a","json":{}{}}}"#, "[".repeat(n), "]".repeat(n))
        };
        assert!(read(&deep(31)).is_ok() && read(&deep(32)).is_err() && read(&"[".repeat(60_000)).is_err());
    }

    #[test]
    fn payloads_travel_as_json_text_or_base64_and_break_no_line() {
        let body = |topic: &str, payload: &'static [u8], content_type: Option<&'static str>| {
            let properties = content_type.map(|c| {
                Box::new(crate::PublishProperties {
                    content_type: Some(Text::from_static(c)),
                    ..Default::default()
                })
            });
            let publish =
                Publish { topic: topic.into(), payload: payload.into(), properties, ..Publish::default() };
            String::from_utf8(body_of(&publish, None)).unwrap()
        };
        assert_eq!(body(PUSH_TOPIC, b"{\"a\":\n1}", None), "\"message\":{\"a\": 1}}");
        assert_eq!(body(PUSH_TOPIC, b"{\"a\":1", None), "\"base64\":\"eyJhIjox\"}");
        assert_eq!(body(PUSH_TOPIC, br#""\ud83d""#, None), "\"base64\":\"Ilx1ZDgzZCI=\"}");
        assert_eq!(body(PUSH_TOPIC, b"{}", Some("application/octet-stream")), "\"base64\":\"e30=\"}");
        assert_eq!(body("t/\"x", b"a\nb", None), "\"topic\":\"t/\\\"x\",\"text\":\"a\\nb\"}");
        assert_eq!(body("t", b"[1]", Some("application/json")), "\"topic\":\"t\",\"json\":[1]}");
        assert_eq!(body("t", b"[1", Some("application/json")), "\"topic\":\"t\",\"text\":\"[1\"}");
        assert_eq!(body("t", b"\xff", None), "\"topic\":\"t\",\"base64\":\"/w==\"}");
    }
}
