//! One message on its way to many peers.
//!
//! MQTT peers differ in the first byte (QoS, retain, DUP), the packet id and the seconds of life left. So there are few
//! frames, each is encoded when the first peer needs it, and for the others it is copied and patched. XMPP peers differ in
//! the address on the stanza, and share all that is in it.

use crate::mqtt::Level;
use crate::mqtt::codec::{Places, PublishFrame, publish_first_byte};
use crate::xmpp::Body;
use crate::{Publish, Qos};

/// A message prepared for many peers: what can be encoded once is encoded once, on first use.
#[derive(Debug)]
pub struct Fanned {
    publish: Publish,
    /// The message's id, where its payload does not tell it.
    id: Option<Box<str>>,
    /// By [`Shape`].
    frames: [Frame; Shape::COUNT],
    is_writable: bool,
    /// The shared part of its JSON frame; empty until needed.
    json: Vec<u8>,
    /// The inside of its stanza.
    body: Option<Box<Body>>,
}

/// Empty until needed: a PUBLISH is never empty.
#[derive(Debug, Default)]
struct Frame {
    bytes: Vec<u8>,
    places: Places,
}

/// What changes the layout of a frame.
#[derive(Clone, Copy, Debug)]
struct Shape {
    is_v5: bool,
    has_id: bool,
    has_expiry: bool,
}

impl Shape {
    const COUNT: usize = 8;

    fn index(self) -> usize {
        usize::from(self.is_v5) << 2 | usize::from(self.has_id) << 1 | usize::from(self.has_expiry)
    }
}

/// What is one peer's own in a copy of a shared frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub qos: Qos,
    pub retain: bool,
    pub dup: bool,
    pub id: u16,
    pub expiry_secs: Option<u32>,
}

impl Fanned {
    pub fn new(publish: Publish) -> Self {
        Fanned::with_id(publish, None)
    }

    /// A message whose payload does not tell its id: protocols with a place for it tell it beside.
    pub fn with_id(publish: Publish, id: Option<Box<str>>) -> Self {
        let is_writable = is_writable(&publish);
        Fanned { publish, id, frames: Default::default(), is_writable, json: Vec::new(), body: None }
    }

    pub fn publish(&self) -> &Publish {
        &self.publish
    }

    pub fn into_publish(self) -> Publish {
        self.publish
    }

    /// What of its JSON frame all receivers share.
    pub(crate) fn json_body(&mut self) -> &[u8] {
        if self.json.is_empty() {
            self.json = crate::json::body_of(&self.publish, self.id.as_deref());
        }
        &self.json
    }

    /// The inside of its stanza.
    pub(crate) fn body(&mut self) -> &Body {
        self.body.get_or_insert_with(|| {
            let mut body = Body::of(&self.publish);
            body.id = body.id.or_else(|| self.id.clone());
            Box::new(body)
        })
    }

    /// Whether MQTT can carry it at all: its texts have at most 65,535 bytes.
    pub(crate) fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// The length of the frame that [`Self::write`] would append.
    pub(crate) fn frame_len(&mut self, level: Level, qos: Qos, expiry_secs: Option<u32>) -> usize {
        self.frame(level, qos, expiry_secs).bytes.len()
    }

    /// Appends the frame of that level with one peer's stamp on it.
    pub(crate) fn write(&mut self, level: Level, stamp: Stamp, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        let frame = self.frame(level, stamp.qos, stamp.expiry_secs);
        bytes.extend_from_slice(&frame.bytes);
        let places = frame.places;
        bytes[start] = publish_first_byte(stamp.qos, stamp.retain, stamp.dup);
        if stamp.qos != Qos::AtMostOnce {
            let at = start + places.id;
            bytes[at..at + 2].copy_from_slice(&stamp.id.to_be_bytes());
        }
        if let (Level::V5, Some(secs)) = (level, stamp.expiry_secs) {
            let at = start + places.expiry;
            bytes[at..at + 4].copy_from_slice(&secs.to_be_bytes());
        }
    }

    fn frame(&mut self, level: Level, qos: Qos, expiry_secs: Option<u32>) -> &Frame {
        let is_v5 = level.is_v5();
        let shape =
            Shape { is_v5, has_id: qos != Qos::AtMostOnce, has_expiry: is_v5 && expiry_secs.is_some() };
        let frame = &mut self.frames[shape.index()];
        if frame.bytes.is_empty() {
            let whole = PublishFrame {
                level,
                publish: &self.publish,
                qos,
                retain: false,
                dup: false,
                id: 0,
                alias: None,
                names_topic: true,
                expiry_secs: expiry_secs.filter(|_| is_v5),
                subscription_ids: &[],
            };
            frame.places = whole.write_with_places(&mut frame.bytes);
        }
        frame
    }
}

/// Every length-prefixed part fits its prefix, and the whole fits a remaining length with room for the peer's own parts.
pub(crate) fn is_writable(publish: &Publish) -> bool {
    const PART_MAX: usize = 65_535;
    const PAYLOAD_MAX: usize = 200 * 1024 * 1024;
    let properties_fit = publish.properties.as_ref().is_none_or(|properties| {
        let texts = [&properties.content_type, &properties.response_topic];
        texts.into_iter().flatten().all(|text| text.len() <= PART_MAX)
            && properties.correlation.as_ref().is_none_or(|bytes| bytes.len() <= PART_MAX)
            && properties.user.len() <= 256
            && properties.user.iter().all(|(name, value)| name.len() <= PART_MAX && value.len() <= PART_MAX)
    });
    properties_fit && publish.topic.len() <= PART_MAX && publish.payload.len() <= PAYLOAD_MAX
}
