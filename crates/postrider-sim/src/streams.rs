//! A small client of XMPP, of two kinds: an ordinary one, with stream management (XEP-0198) and receipts (XEP-0184), and an
//! androidpn phone, which answers no message and only the ping behind it, with an error.

use crate::outgoing::read_envelope;
use crate::plan::StreamPlan;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use postrider_core::id::MessageId;
use postrider_proto::xmpp::{Element, Piece, Reader, StanzaLimits, XmlLimits};
use std::collections::BTreeMap;

const DOMAIN: &str = "push.example";
const CLIENT: &str = "jabber:client";
const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
const SM: &str = "urn:xmpp:sm:3";
const NOTIFICATION: &str = "androidpn:iq:notification";
const PRESENCE: &str = "<presence/>";
const ENABLE: &str = "<enable xmlns='urn:xmpp:sm:3' resume='true'/>";
/// How long it waits to be let in, and for an answer to its own question.
const PATIENCE_MS: u64 = 10_000;
const LIMITS: StanzaLimits = StanzaLimits { bytes_max: 1 << 20, parts_max: 4_096 };

/// Where the client is on its way to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    SigningIn,
    /// Signed in, and the stream begins anew.
    Anew,
    Resuming,
    Binding,
    Ready,
    /// The client said goodbye.
    Over,
}

/// What the server said that a device acts on.
#[derive(Debug)]
pub enum Heard {
    /// The way to a session is done; on a stream of before, or on a new one.
    Ready {
        resumed: bool,
    },
    Push {
        id: MessageId,
        n: u64,
    },
    /// What another device wrote.
    Peer {
        text: String,
    },
    /// It wants to know what has arrived.
    Asked(Question),
    /// The client told how far it has read, without being asked.
    Told(Vec<MessageId>),
    Refused {
        why: String,
    },
    /// Its count of what the client sent is above what was sent.
    Overcounted {
        told: u32,
        said: u32,
    },
}

/// How the client shows what has arrived, when it gets to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// `<r/>`: by its count.
    Count,
    /// A ping: by the answer to that one.
    Ping(u32),
    /// A message wants a receipt.
    Receipt(MessageId),
}

/// What a client keeps of a stream, to resume it.
#[derive(Debug)]
pub struct Earlier {
    id: String,
    received: u32,
    said: u32,
    unacked: Vec<MessageId>,
}

/// Stream management, once enabled.
#[derive(Debug)]
struct Managed {
    /// Where the stream can be resumed.
    id: Option<String>,
    received: u32,
}

/// The client's end of one connection.
pub struct Stream {
    plan: StreamPlan,
    user: String,
    secret: String,
    reader: Reader,
    stage: Stage,
    earlier: Option<Earlier>,
    managed: Option<Managed>,
    /// Stanzas sent since `<enable/>`.
    said: u32,
    /// Pushes read, and how many of them were acknowledged by a count or a ping.
    log: Vec<MessageId>,
    acked: usize,
    /// Pings to be answered: their ids, and how much of the log each covers.
    pings: BTreeMap<u32, (String, usize)>,
    next: u32,
    pub is_inactive: bool,
    began_at: u64,
    written_at: u64,
    asked_at: Option<u64>,
}

impl Stream {
    /// A client, and what it says first.
    pub fn dial(
        plan: StreamPlan,
        (user, secret): (String, &str),
        earlier: Option<Earlier>,
        now: u64,
    ) -> (Stream, Vec<u8>) {
        let mut stream = Stream {
            plan,
            user,
            secret: secret.to_owned(),
            reader: Reader::default(),
            stage: Stage::Opening,
            earlier,
            managed: None,
            said: 0,
            log: Vec::new(),
            acked: 0,
            pings: BTreeMap::new(),
            next: 1,
            is_inactive: false,
            began_at: now,
            written_at: now,
            asked_at: None,
        };
        let mut bytes = header();
        if plan.pipelines {
            stream.sign_in(&mut bytes);
        }
        (stream, bytes)
    }

    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    /// What may be resumed. A stream that was ended in order is not, and neither is one of an androidpn phone.
    pub fn into_earlier(self) -> Option<Earlier> {
        if self.stage == Stage::Over {
            return None;
        }
        let Some(Managed { id, received }) = self.managed else { return self.earlier };
        let unacked = self.log.get(self.acked..).unwrap_or_default().to_vec();
        Some(Earlier { id: id?, received, said: self.said, unacked })
    }

    fn sign_in(&mut self, out: &mut Vec<u8>) {
        self.stage = Stage::SigningIn;
        let Stream { user, secret, .. } = self;
        let xml = if self.plan.is_androidpn {
            format!(
                "<iq id='auth' type='set'><query xmlns='jabber:iq:auth'><username>{user}</username>\
                 <password>{secret}</password><resource>AndroidpnClient</resource></query></iq>"
            )
        } else {
            let plain = STANDARD.encode(format!("\0{user}\0{secret}"));
            format!("<auth xmlns='{SASL}' mechanism='PLAIN'>{plain}</auth>")
        };
        out.extend_from_slice(xml.as_bytes());
    }

    /// Signed in: the stream of before, or a new resource.
    fn enter(&mut self, heard: &mut Vec<Heard>, out: &mut Vec<u8>) {
        let Some(Earlier { id, received, unacked, .. }) = &self.earlier else { return self.bind(out) };
        self.stage = Stage::Resuming;
        heard.push(Heard::Told(unacked.clone()));
        let xml = format!("<resume xmlns='{SM}' previd='{id}' h='{received}'/>");
        out.extend_from_slice(xml.as_bytes());
    }

    fn bind(&mut self, out: &mut Vec<u8>) {
        self.stage = Stage::Binding;
        self.earlier = None;
        let bind = "<iq id='bind' type='set'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
                    <resource>r</resource></bind></iq>";
        out.extend_from_slice(bind.as_bytes());
        if self.plan.pipelines {
            self.arrive(out);
        }
    }

    /// What it says first in a session: that it is there, and that it counts.
    fn arrive(&mut self, out: &mut Vec<u8>) {
        let StreamPlan { manages, counts_late, .. } = self.plan;
        if !manages {
            return self.say(PRESENCE, out);
        }
        if counts_late {
            self.say(PRESENCE, out);
        }
        out.extend_from_slice(ENABLE.as_bytes());
        self.said = 0;
        if !counts_late {
            self.say(PRESENCE, out);
        }
    }

    fn say(&mut self, stanza: &str, out: &mut Vec<u8>) {
        self.said += 1;
        out.extend_from_slice(stanza.as_bytes());
    }

    /// What whole elements in the bytes say; what is cut waits for the rest.
    pub fn read(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Vec<Heard> {
        self.asked_at = None;
        let mut heard = Vec::new();
        while let Ok(Some(piece)) = self.reader.next(&mut input, &XmlLimits::default(), LIMITS) {
            match piece {
                Piece::Open(_) => {}
                // The device sees the end of the connection, too.
                Piece::Close => {}
                Piece::Stanza(element) => self.hear(&element, &mut heard, out),
            }
        }
        heard
    }

    fn hear(&mut self, element: &Element, heard: &mut Vec<Heard>, out: &mut Vec<u8>) {
        match (element.ns(), element.name()) {
            ("http://etherx.jabber.org/streams", "features") if self.stage == Stage::Opening => {
                self.sign_in(out);
            }
            ("http://etherx.jabber.org/streams", "features") if self.stage == Stage::Anew => {
                self.enter(heard, out);
            }
            ("http://etherx.jabber.org/streams", "error") => {
                heard.push(Heard::Refused { why: condition(element) });
            }
            (SASL, "success") => {
                self.reader = Reader::default();
                self.stage = Stage::Anew;
                out.extend_from_slice(&header());
                if self.plan.pipelines {
                    self.enter(heard, out);
                }
            }
            (SASL, "failure") => heard.push(Heard::Refused { why: condition(element) }),
            (SM, name) => self.hear_management(name, element, heard, out),
            (CLIENT, _) => self.hear_stanza(element, heard, out),
            _ => {}
        }
    }

    fn hear_management(&mut self, name: &str, element: &Element, heard: &mut Vec<Heard>, out: &mut Vec<u8>) {
        let told = element.attribute("h").and_then(|h| h.parse::<u32>().ok());
        match name {
            "enabled" => {
                let id = element.attribute("id").map(str::to_owned);
                self.managed = Some(Managed { id, received: 0 });
            }
            "failed" if self.stage == Stage::Resuming => self.bind(out),
            "resumed" => {
                let Some(Earlier { id, received, said, .. }) = self.earlier.take() else { return };
                let told = told.unwrap_or_default();
                self.check_count(told, said, heard);
                self.managed = Some(Managed { id: Some(id), received });
                self.stage = Stage::Ready;
                self.said = told;
                if told < said {
                    // Of what the server did not take, its presence matters; all else is not said again.
                    self.say(PRESENCE, out);
                }
                heard.push(Heard::Ready { resumed: true });
            }
            "r" => heard.push(Heard::Asked(Question::Count)),
            "a" => self.check_count(told.unwrap_or_default(), self.said, heard),
            _ => {}
        }
    }

    fn check_count(&self, told: u32, said: u32, heard: &mut Vec<Heard>) {
        if told > said {
            heard.push(Heard::Overcounted { told, said });
        }
    }

    fn hear_stanza(&mut self, element: &Element, heard: &mut Vec<Heard>, out: &mut Vec<u8>) {
        if let Some(managed) = &mut self.managed {
            managed.received += 1;
        }
        let id = element.attribute("id").unwrap_or_default();
        match (element.name(), element.attribute("type").unwrap_or("normal")) {
            ("iq", "result") if matches!((id, self.stage), ("bind", Stage::Binding)) => {
                self.stage = Stage::Ready;
                if !self.plan.pipelines {
                    self.arrive(out);
                }
                heard.push(Heard::Ready { resumed: false });
            }
            ("iq", "result") if matches!((id, self.stage), ("auth", Stage::SigningIn)) => {
                self.stage = Stage::Ready;
                self.say("<iq id='roster' type='get'><query xmlns='jabber:iq:roster'/></iq>", out);
                self.say(PRESENCE, out);
                heard.push(Heard::Ready { resumed: false });
            }
            ("iq", "error") if self.stage != Stage::Ready => {
                heard.push(Heard::Refused { why: condition(element) });
            }
            ("iq", "set") => self.hear_notification(element, heard),
            ("iq", "get") => {
                self.pings.insert(self.next, (id.to_owned(), self.log.len()));
                heard.push(Heard::Asked(Question::Ping(self.next)));
                self.next += 1;
            }
            ("message", "normal") => self.hear_message(element, heard),
            ("message", "chat") => {
                let text = element.child_text(CLIENT, "body").unwrap_or_default();
                heard.push(Heard::Peer { text });
            }
            _ => {}
        }
    }

    fn hear_notification(&mut self, element: &Element, heard: &mut Vec<Heard>) {
        let notification = element.child(NOTIFICATION, "notification");
        let shown = notification.and_then(|found| found.child_text(NOTIFICATION, "message"));
        _ = self.hear_envelope(shown.unwrap_or_default(), heard);
    }

    fn hear_message(&mut self, element: &Element, heard: &mut Vec<Heard>) {
        let envelope = element.child_text("urn:xmpp:json:0", "json").unwrap_or_default();
        let asks = element.child("urn:xmpp:receipts", "request").is_some();
        if let Some(id) = self.hear_envelope(envelope, heard).filter(|_| asks && self.plan.receipts) {
            heard.push(Heard::Asked(Question::Receipt(id)));
        }
    }

    fn hear_envelope(&mut self, envelope: String, heard: &mut Vec<Heard>) -> Option<MessageId> {
        let (id, n, _) = read_envelope(&Bytes::from(envelope))?;
        self.log.push(id);
        heard.push(Heard::Push { id, n });
        Some(id)
    }

    /// Answers what it was asked; which pushes it acknowledges by that.
    pub fn answer(&mut self, question: Question, out: &mut Vec<u8>) -> Vec<MessageId> {
        let covered = match question {
            Question::Receipt(id) => {
                // XEP-0184, perhaps for a message that came on an earlier stream.
                let message = format!(
                    "<message to='{DOMAIN}'><received xmlns='urn:xmpp:receipts' id='{id}'/></message>"
                );
                self.say(&message, out);
                return vec![id];
            }
            Question::Count => {
                let Some(managed) = &self.managed else { return Vec::new() };
                let xml = format!("<a xmlns='{SM}' h='{}'/>", managed.received);
                out.extend_from_slice(xml.as_bytes());
                self.log.len()
            }
            Question::Ping(no) => {
                let Some((id, covered)) = self.pings.remove(&no) else { return Vec::new() };
                let xml = match self.plan.is_androidpn {
                    true => format!(
                        "<iq id='{id}' to='{DOMAIN}' type='error'><error code='501' type='CANCEL'>\
                         <feature-not-implemented xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
                    ),
                    false => format!("<iq id='{id}' to='{DOMAIN}' type='result'/>"),
                };
                self.say(&xml, out);
                covered
            }
        };
        let begin = self.acked;
        self.acked = covered.max(begin);
        self.log.get(begin..self.acked).unwrap_or_default().to_vec()
    }

    /// Says the same once more.
    pub fn repeat(&mut self, out: &mut Vec<u8>) {
        self.said += u32::from(!out.starts_with(b"<a"));
        out.extend_from_within(..);
    }

    /// Acknowledgements of what was never sent.
    pub fn forge(&mut self, number: u64, out: &mut Vec<u8>) {
        let beyond = 60_000 + number;
        match self.managed {
            Some(_) => out.extend_from_slice(format!("<a xmlns='{SM}' h='{beyond}'/>").as_bytes()),
            None => self.say(&format!("<iq id='probe-{beyond}' to='{DOMAIN}' type='result'/>"), out),
        }
        self.say(&format!("<message><received xmlns='urn:xmpp:receipts' id='{beyond}'/></message>"), out);
    }

    pub fn subscribe(&mut self, topic: &str, out: &mut Vec<u8>) {
        let me = self.user.replace('/', "\\2f");
        let xml = format!(
            "<iq id='s' type='set'><pubsub xmlns='http://jabber.org/protocol/pubsub'>\
             <subscribe node='{topic}' jid='{me}@{DOMAIN}'/></pubsub></iq>"
        );
        self.say(&xml, out);
    }

    pub fn publish(&mut self, topic: &str, text: &str, retain: bool, out: &mut Vec<u8>) {
        let options = "<publish-options><x xmlns='jabber:x:data' type='submit'>\
                       <field var='pubsub#persist_items'><value>1</value></field></x></publish-options>";
        let options = if retain { options } else { "" };
        let xml = format!(
            "<iq id='p' type='set'><pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='{topic}'><item>\
             <text xmlns='urn:postrider:payload:0'>{text}</text></item></publish>{options}</pubsub></iq>"
        );
        self.say(&xml, out);
    }

    /// A message for another device of the same app.
    pub fn write_to(&mut self, device: &str, text: &str, out: &mut Vec<u8>) {
        let to = device.replace('/', "\\2f");
        let xml = format!("<message id='c' type='chat' to='{to}@{DOMAIN}'><body>{text}</body></message>");
        self.say(&xml, out);
    }

    /// XEP-0352.
    pub fn set_inactive(&mut self, is_inactive: bool, out: &mut Vec<u8>) {
        self.is_inactive = is_inactive;
        let state = if is_inactive { "inactive" } else { "active" };
        out.extend_from_slice(format!("<{state} xmlns='urn:xmpp:csi:0'/>").as_bytes());
    }

    pub fn close(&mut self, out: &mut Vec<u8>) {
        self.say("<presence type='unavailable'/>", out);
        out.extend_from_slice(b"</stream:stream>");
        self.stage = Stage::Over;
    }

    /// A sign of life where it is time for one; `false`: the server is silent, and the connection is over. A phone of androidpn
    /// only sends blanks, and waits for the network to tell it.
    pub fn look_at_clock(&mut self, now: u64, out: &mut Vec<u8>) -> bool {
        if !self.is_ready() {
            return now < self.began_at + PATIENCE_MS;
        }
        if self.asked_at.is_some_and(|at| now >= at + PATIENCE_MS) {
            return false;
        }
        if now >= self.written_at + self.plan.keepalive_ms {
            self.written_at = now;
            match (self.plan.is_androidpn, &self.managed) {
                (true, _) => {
                    return {
                        out.push(b' ');
                        true
                    };
                }
                (_, Some(_)) => out.extend_from_slice(b"<r xmlns='urn:xmpp:sm:3'/>"),
                (_, None) => self.say("<iq id='k' type='get'><ping xmlns='urn:xmpp:ping'/></iq>", out),
            }
            self.asked_at.get_or_insert(now);
        }
        true
    }
}

fn header() -> Vec<u8> {
    format!(
        "<?xml version='1.0'?><stream:stream to='{DOMAIN}' xmlns='jabber:client' \
         xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>"
    )
    .into_bytes()
}

/// The first thing that an error names.
fn condition(element: &Element) -> String {
    let inner = element.child(CLIENT, "error").unwrap_or(element);
    inner.children().next().map_or_else(|| element.name().to_owned(), |child| child.name().to_owned())
}
