//! What the peer of a session asks and tells: IQ, message, presence (RFC 6120 §8, RFC 6121).
//!
//! A device has one connection, so its bare and its full address mean the same, and nothing has to be copied between resources.
//! Where no host is set, every domain is this server: phones are set to its name or to its address. There is no federation.

use super::ServerConnection;
use crate::xmpp::error::{StanzaError, StreamError};
use crate::xmpp::jid::{Jid, unescape_local};
use crate::xmpp::ns;
use crate::xmpp::request::{Answer, Request, Stanza, StanzaOutcome};
use crate::xmpp::xml::{Element, attribute, raw};
use crate::{Event, Output, Reply, Text};
use bytes::Bytes;

/// A request: an IQ of type `get` or `set`.
pub(super) struct Iq<'a> {
    pub id: &'a str,
    pub to: Option<&'a str>,
    pub is_set: bool,
    pub child: Option<&'a Element>,
}

impl<'a> Iq<'a> {
    /// RFC 6120 §8.2.3: an id, a type, one child.
    pub fn of(element: &'a Element) -> Result<Iq<'a>, StanzaError> {
        let id = element.attribute("id").ok_or(StanzaError::BAD_REQUEST)?;
        let is_set = match element.attribute("type") {
            Some("set") => true,
            Some("get") => false,
            _ => return Err(StanzaError::BAD_REQUEST),
        };
        let mut children = element.children();
        match (children.next(), children.next()) {
            (Some(child), None) => Ok(Iq { id, to: element.attribute("to"), is_set, child: Some(child) }),
            _ => Err(StanzaError::BAD_REQUEST),
        }
    }
}

/// A stanza that waits for an answer from inside.
#[derive(Debug)]
pub(super) struct Pending {
    token: u32,
    /// Its number among the stanzas read.
    number: u32,
    asked: Asked,
}

/// What it was, as far as its answer needs it.
#[derive(Debug)]
pub(super) struct Asked {
    pub id: Box<str>,
    pub to: Option<Box<str>>,
    pub what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Account,
    /// Forwarded. The name and whether its sender is told when that fails.
    Stanza {
        name: &'static str,
        bounces: bool,
    },
    Publish {
        topic: Box<str>,
        item: Option<Box<str>>,
    },
    Subscribe {
        topic: Box<str>,
    },
    Unsubscribe,
    Items {
        topic: Box<str>,
    },
}

impl Asked {
    pub fn by(iq: &Iq<'_>, what: What) -> Asked {
        Asked { id: iq.id.into(), to: iq.to.map(Into::into), what }
    }
}

/// Whom a stanza is for.
enum Target {
    /// The server, or the peer's own account.
    Server,
    Account,
    Device(Text),
    /// Another domain without a name in front.
    Elsewhere,
    /// Somebody at a host that this server is not.
    Foreign,
    Nobody,
}

impl ServerConnection {
    pub(super) fn handle_session_element(
        &mut self,
        element: Element,
        out: &mut Output,
    ) -> Result<(), StreamError> {
        match (element.ns(), element.name()) {
            (ns::CLIENT, "iq" | "message" | "presence") => self.handle_stanza(element, out),
            (ns::SM, _) => self.handle_sm_element(&element, out),
            (ns::CSI, "active") => {
                self.set_inactive(false, out);
                Ok(())
            }
            (ns::CSI, "inactive") => {
                self.set_inactive(true, out);
                Ok(())
            }
            _ => Err(StreamError::UNSUPPORTED_STANZA_TYPE),
        }
    }

    fn set_inactive(&mut self, is_inactive: bool, out: &mut Output) {
        let Some(session) = &mut self.session else { return };
        if session.is_inactive && !is_inactive {
            out.events.push(Event::WindowOpened);
        }
        session.is_inactive = is_inactive;
    }

    fn handle_stanza(&mut self, element: Element, out: &mut Output) -> Result<(), StreamError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        session.received = session.received.wrapping_add(1);
        // RFC 6120 §8.1.2.1: nobody speaks for somebody else.
        let is_own = |from: &str| {
            from.eq_ignore_ascii_case(session.bare()) || from.eq_ignore_ascii_case(&session.full)
        };
        if element.attribute("from").is_some_and(|from| !is_own(from)) {
            return Err(StreamError::INVALID_FROM);
        }
        match element.name() {
            "iq" => self.handle_iq(element, out),
            "message" => self.handle_message(element, out),
            _ => self.handle_presence(element, out),
        }
        Ok(())
    }

    fn is_foreign(&self, domain: &str) -> bool {
        !self.config.host.is_empty() && !domain.eq_ignore_ascii_case(&self.config.host)
    }

    fn target_of(&self, to: Option<&str>) -> Target {
        let Some(session) = &self.session else { return Target::Nobody };
        let Some(to) = to else { return Target::Account };
        match Jid::parse(to) {
            None => Target::Nobody,
            Some(jid) if self.is_foreign(jid.domain) => Target::Foreign,
            Some(Jid { local: Some(local), .. }) => {
                let name = unescape_local(local);
                if name.eq_ignore_ascii_case(&session.user) {
                    Target::Account
                } else {
                    Target::Device(name.into())
                }
            }
            Some(jid) if jid.domain.eq_ignore_ascii_case(&self.domain) => Target::Server,
            Some(_) => Target::Elsewhere,
        }
    }

    fn handle_iq(&mut self, element: Element, out: &mut Output) {
        let target = self.target_of(element.attribute("to"));
        let is_answer = matches!(element.attribute("type"), Some("result" | "error"));
        match (target, is_answer) {
            (Target::Server | Target::Account, true) => self.handle_iq_answer(&element, out),
            (Target::Device(_), false) if element.attribute("to").is_some_and(|to| !to.contains('/')) => {
                // RFC 6121 §8.5.2.1.3: the server answers for the bare address, and has nothing to say of others' accounts.
                self.refuse(&element, StanzaError::SERVICE_UNAVAILABLE, out);
            }
            (Target::Device(name), is_answer) => match Iq::of(&element) {
                Err(error) if !is_answer => self.refuse(&element, error, out),
                _ => self.forward(element, name, false, !is_answer, out),
            },
            (_, true) => {}
            (Target::Nobody, false) => self.refuse(&element, StanzaError::JID_MALFORMED, out),
            (Target::Foreign, false) => self.refuse(&element, StanzaError::REMOTE_SERVER_NOT_FOUND, out),
            (Target::Elsewhere, false) => self.refuse(&element, StanzaError::ITEM_NOT_FOUND, out),
            (target, false) => {
                let handled = Iq::of(&element).and_then(|iq| match iq.child {
                    Some(child) => self.answer_iq(&iq, child, matches!(target, Target::Server), out),
                    None => Err(StanzaError::BAD_REQUEST),
                });
                if let Err(error) = handled {
                    self.refuse(&element, error, out);
                }
            }
        }
    }

    fn answer_iq(
        &mut self,
        iq: &Iq<'_>,
        child: &Element,
        is_for_server: bool,
        out: &mut Output,
    ) -> Result<(), StanzaError> {
        let xml = match (child.ns(), child.name(), iq.is_set) {
            (ns::PING, "ping", false) | (ns::SESSION, "session", true) => String::new(),
            // XEP-0280: there is one connection a device, so no other of its resources has anything to copy.
            (ns::CARBONS, "enable" | "disable", true) if !is_for_server => String::new(),
            // Nobody is on it: devices are reached without.
            (ns::ROSTER, "query", false) => "<query xmlns=\"jabber:iq:roster\"/>".to_owned(),
            (ns::ROSTER, "query", true) | (ns::BIND, "bind", _) => return Err(StanzaError::NOT_ALLOWED),
            (ns::DISCO_INFO, "query", false) => self.disco_info(child, is_for_server)?,
            (ns::DISCO_ITEMS, "query", false) if child.attribute("node").is_none() => {
                "<query xmlns=\"http://jabber.org/protocol/disco#items\"/>".to_owned()
            }
            (ns::DISCO_ITEMS, "query", false) => return Err(StanzaError::ITEM_NOT_FOUND),
            (ns::REGISTER, "query", _) => return self.handle_own_account(iq, child, out),
            (ns::PUBSUB, "pubsub", is_set) => return self.handle_pubsub(iq, child, is_set, out),
            _ => return Err(StanzaError::SERVICE_UNAVAILABLE),
        };
        self.write_iq_result(iq.id, iq.to, &xml, &mut out.bytes);
        Ok(())
    }

    fn disco_info(&self, query: &Element, is_for_server: bool) -> Result<String, StanzaError> {
        if query.attribute("node").is_some() {
            return Err(StanzaError::ITEM_NOT_FOUND);
        }
        let identities = match is_for_server {
            true => [("server", "im"), ("pubsub", "service")],
            false => [("account", "registered"), ("pubsub", "pep")],
        };
        let registration = self.config.offers_registration.then_some(ns::REGISTER);
        let features = [
            ns::DISCO_INFO,
            ns::DISCO_ITEMS,
            ns::PING,
            ns::RECEIPTS,
            ns::MARKERS,
            ns::JSON,
            ns::CARBONS,
            "urn:xmpp:delay",
            "http://jabber.org/protocol/pubsub#publish",
            "http://jabber.org/protocol/pubsub#subscribe",
            "http://jabber.org/protocol/pubsub#retrieve-items",
            "http://jabber.org/protocol/pubsub#auto-create",
            "msgoffline",
        ];
        let mut xml = format!("<query xmlns=\"{}\">", ns::DISCO_INFO);
        for (category, kind) in identities {
            xml.push_str(&format!("<identity category=\"{category}\" type=\"{kind}\" name=\"postrider\"/>"));
        }
        for feature in features.into_iter().chain(registration) {
            xml.push_str(&format!("<feature var=\"{feature}\"/>"));
        }
        xml.push_str("</query>");
        Ok(xml)
    }

    fn handle_message(&mut self, element: Element, out: &mut Output) {
        let kind = element.attribute("type").unwrap_or("normal");
        let is_error = kind == "error";
        match self.target_of(element.attribute("to")) {
            Target::Server | Target::Account if self.handle_receipts(&element, out) || is_error => {}
            Target::Device(name) => {
                if kind == "groupchat" {
                    return self.refuse(&element, StanzaError::SERVICE_UNAVAILABLE, out);
                }
                let is_lasting = matches!(kind, "chat" | "normal") && has_content(&element);
                self.forward(element, name, is_lasting, is_lasting, out);
            }
            Target::Account => {
                let name = self.session.as_ref().map(|s| Text::from(&*s.user)).unwrap_or_default();
                let is_lasting = has_content(&element);
                self.forward(element, name, is_lasting, is_lasting, out);
            }
            Target::Nobody => self.refuse(&element, StanzaError::JID_MALFORMED, out),
            Target::Foreign => self.refuse(&element, StanzaError::REMOTE_SERVER_NOT_FOUND, out),
            Target::Server | Target::Elsewhere => {
                self.refuse(&element, StanzaError::SERVICE_UNAVAILABLE, out)
            }
        }
    }

    /// XEP-0184 and XEP-0333: what the peer tells of our messages. True when the message was about that.
    fn handle_receipts(&mut self, element: &Element, out: &mut Output) -> bool {
        let mut is_receipt = false;
        for child in element.children() {
            let step = match (child.ns(), child.name()) {
                (ns::RECEIPTS, "received") | (ns::MARKERS, "received") => None,
                (ns::MARKERS, "displayed") => Some("displayed"),
                (ns::MARKERS, "acknowledged") => Some("clicked"),
                _ => continue,
            };
            is_receipt = true;
            let Some(id) = child.attribute("id").filter(|id| id.len() <= 128) else { continue };
            // Who has displayed it has it.
            self.settle_named(id, out);
            if let Some(step) = step {
                out.events.push(Event::Receipt {
                    token: 0,
                    id: Text::from(id),
                    step: Text::from_static(step),
                });
            }
        }
        is_receipt
    }

    fn handle_presence(&mut self, mut element: Element, out: &mut Output) {
        let Some(session) = &mut self.session else { return };
        let to = element.attribute("to").map(str::to_owned);
        match (element.attribute("type"), to) {
            (None, None) => {
                let priority = element.child_text(ns::CLIENT, "priority");
                let priority = priority.and_then(|p| p.trim().parse::<i8>().ok()).unwrap_or(0);
                // RFC 6121 §8.5.2.1.1: with a negative one, nothing that is for the bare address.
                session.is_available = priority >= 0;
                if session.is_available {
                    out.events.push(Event::WindowOpened);
                }
                if !session.is_androidpn {
                    // §4.2.2: to all of the peer's own resources, which is itself.
                    element.set("from", &session.full);
                    element.set("to", &session.full);
                    let start = out.bytes.len();
                    element.write(ns::CLIENT, &mut out.bytes);
                    self.seal(start, &mut out.bytes);
                }
            }
            (Some("unavailable"), None) => session.is_available = false,
            // §3.1.3: nobody shows its presence to others, so the answer is no.
            (Some("subscribe"), Some(to)) => {
                let start = out.bytes.len();
                raw(&mut out.bytes, "<presence type=\"unsubscribed\"");
                attribute(&mut out.bytes, "from", to.split('/').next().unwrap_or_default());
                attribute(&mut out.bytes, "to", session.bare());
                raw(&mut out.bytes, "/>");
                self.seal(start, &mut out.bytes);
            }
            (
                None
                | Some("unavailable" | "unsubscribe" | "unsubscribed" | "subscribed" | "probe" | "error"),
                _,
            ) => {}
            _ => self.refuse(&element, StanzaError::BAD_REQUEST, out),
        }
    }

    /// Hands a stanza on, with the sender's address on it.
    fn forward(&mut self, mut element: Element, to: Text, is_lasting: bool, bounces: bool, out: &mut Output) {
        let Some(session) = &self.session else { return };
        let name = if element.name() == "iq" { "iq" } else { "message" };
        element.set("from", &session.full);
        // Most are shorter. It is kept for long, so what is given on has no room to spare.
        let mut bytes = Vec::with_capacity(512);
        element.write(ns::CLIENT, &mut bytes);
        let asked = Asked {
            id: element.attribute("id").unwrap_or_default().into(),
            to: element.attribute("to").map(Into::into),
            what: What::Stanza { name, bounces },
        };
        match self.ask(asked) {
            Ok(token) => {
                let stanza = Stanza { to, is_lasting, bytes: Bytes::copy_from_slice(&bytes) };
                out.events.push(Event::Xmpp(Box::new(Request::Stanza { token, stanza })));
            }
            Err(error) if bounces => self.refuse(&element, error, out),
            Err(_) => {}
        }
    }

    /// Notes a question to the inside; the token for it.
    pub(super) fn ask(&mut self, asked: Asked) -> Result<u32, StanzaError> {
        let session = self.session.as_mut().ok_or(StanzaError::SERVICE_UNAVAILABLE)?;
        if session.pending.len() >= self.config.requests_max {
            return Err(StanzaError::RESOURCE_CONSTRAINT);
        }
        let token = session.next_token;
        session.next_token = token.checked_add(1).unwrap_or(1);
        session.pending.push(Pending { token, number: session.received, asked });
        Ok(token)
    }

    /// The inside has answered.
    pub(super) fn handle_answer(&mut self, reply: Reply, out: &mut Output) {
        let token = match &reply {
            Reply::Publish { token, .. }
            | Reply::Subscribe { token, .. }
            | Reply::Unsubscribe { token, .. }
            | Reply::Xmpp(
                Answer::Account { token, .. } | Answer::Items { token, .. } | Answer::Stanza { token, .. },
            ) => *token,
            Reply::Connect(_) | Reply::Ping { .. } | Reply::Xmpp(Answer::Keys(_) | Answer::NoKeys) => {
                return;
            }
        };
        let Some(session) = &mut self.session else { return };
        let Some(place) = session.pending.iter().position(|pending| pending.token == token) else { return };
        let asked = session.pending.remove(place).asked;
        if session.pending.is_empty() {
            session.pending = Vec::new();
        }
        if self.is_closed {
            return;
        }
        match (reply, &asked.what) {
            (Reply::Xmpp(Answer::Stanza { outcome, .. }), What::Stanza { name, bounces }) => {
                if let Some(error) = error_of(outcome).filter(|_| *bounces) {
                    self.write_error(name, &asked.id, asked.to.as_deref(), error, &mut out.bytes);
                }
            }
            (Reply::Xmpp(Answer::Account { outcome, .. }), _) => match super::account::error_of(outcome) {
                None => self.write_iq_result(&asked.id, asked.to.as_deref(), "", &mut out.bytes),
                Some(error) => self.write_error("iq", &asked.id, asked.to.as_deref(), error, &mut out.bytes),
            },
            (reply, _) => self.handle_topic_answer(reply, &asked, out),
        }
        self.pay_ack(out);
    }

    /// Stanzas handled: those before the first that waits for an answer.
    pub(super) fn handled(&self) -> u32 {
        let Some(session) = &self.session else { return 0 };
        let waiting = session.pending.iter().map(|pending| session.received.wrapping_sub(pending.number));
        waiting.max().map_or(session.received, |behind| session.received.wrapping_sub(behind + 1))
    }

    /// Answers a request that cannot be done. Errors and results get no answer (§8.3.1).
    fn refuse(&mut self, element: &Element, error: StanzaError, out: &mut Output) {
        if matches!(element.attribute("type"), Some("error" | "result")) {
            return;
        }
        let id = element.attribute("id").unwrap_or_default();
        self.write_error(element.name(), id, element.attribute("to"), error, &mut out.bytes);
    }

    pub(super) fn write_error(
        &mut self,
        name: &str,
        id: &str,
        to: Option<&str>,
        error: StanzaError,
        bytes: &mut Vec<u8>,
    ) {
        let start = bytes.len();
        let own = self.session.as_ref().map(|session| &*session.full);
        raw(bytes, "<");
        raw(bytes, name);
        write_head("error", id, to, own, bytes);
        raw(bytes, ">");
        error.write(bytes);
        raw(bytes, "</");
        raw(bytes, name);
        raw(bytes, ">");
        self.seal(start, bytes);
    }

    pub(super) fn write_iq_error(&mut self, id: &str, error: StanzaError, bytes: &mut Vec<u8>) {
        self.write_error("iq", id, None, error, bytes);
    }

    /// `to`: whom the request was for, who answers it therefore.
    pub(super) fn write_iq_result(&mut self, id: &str, to: Option<&str>, xml: &str, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        let own = self.session.as_ref().map(|session| &*session.full);
        write_iq(bytes, "result", id, to, own, |bytes| raw(bytes, xml));
        self.seal(start, bytes);
    }
}

/// Writes a whole IQ.
pub(super) fn write_iq(
    bytes: &mut Vec<u8>,
    kind: &str,
    id: &str,
    from: Option<&str>,
    to: Option<&str>,
    inside: impl FnOnce(&mut Vec<u8>),
) {
    raw(bytes, "<iq");
    write_head(kind, id, from, to, bytes);
    raw(bytes, ">");
    let start = bytes.len();
    inside(bytes);
    if bytes.len() == start {
        bytes.pop();
        raw(bytes, "/>");
    } else {
        raw(bytes, "</iq>");
    }
}

fn write_head(kind: &str, id: &str, from: Option<&str>, to: Option<&str>, bytes: &mut Vec<u8>) {
    attribute(bytes, "type", kind);
    if !id.is_empty() {
        attribute(bytes, "id", id);
    }
    if let Some(from) = from {
        attribute(bytes, "from", from);
    }
    if let Some(to) = to {
        attribute(bytes, "to", to);
    }
}

/// Something that is worth keeping for a device that is away (XEP-0160 §3): not that somebody types.
fn has_content(message: &Element) -> bool {
    const CHAT_STATES: &str = "http://jabber.org/protocol/chatstates";
    message.children().any(|child| child.ns() != CHAT_STATES && !child.is(ns::CLIENT, "thread"))
}

fn error_of(outcome: StanzaOutcome) -> Option<StanzaError> {
    match outcome {
        StanzaOutcome::Accepted => None,
        StanzaOutcome::Unavailable => Some(StanzaError::SERVICE_UNAVAILABLE),
        StanzaOutcome::NotAllowed => Some(StanzaError::FORBIDDEN),
        StanzaOutcome::QuotaExceeded => Some(StanzaError::RESOURCE_CONSTRAINT),
        StanzaOutcome::TryLater => Some(StanzaError::INTERNAL_SERVER_ERROR),
    }
}
