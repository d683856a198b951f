//! Publish-subscribe (XEP-0060) over topics: a node is a topic, and for subscriptions also a topic filter. The peer's own account
//! answers like the server (XEP-0163).

use super::ServerConnection;
use super::stanza::{Asked, Iq, What};
use crate::xmpp::body::{payload_element, payload_of};
use crate::xmpp::error::StanzaError;
use crate::xmpp::ns;
use crate::xmpp::request::{Answer, Request};
use crate::xmpp::xml::{Element, attribute, raw};
use crate::{
    Event, Output, Publish, PublishOutcome, Qos, Reply, RetainHandling, SubscribeOutcome, Subscription, Text,
};
use bytes::Bytes;

/// A node's name in bytes.
const TOPIC_BYTES_MAX: usize = 512;
const TOPIC_LEVELS_MAX: usize = 16;

const UNSUPPORTED: StanzaError = StanzaError::FEATURE_NOT_IMPLEMENTED
    .with("<unsupported xmlns=\"http://jabber.org/protocol/pubsub#errors\"/>");
const NODEID_REQUIRED: StanzaError =
    StanzaError::BAD_REQUEST.with("<nodeid-required xmlns=\"http://jabber.org/protocol/pubsub#errors\"/>");
const INVALID_JID: StanzaError =
    StanzaError::BAD_REQUEST.with("<invalid-jid xmlns=\"http://jabber.org/protocol/pubsub#errors\"/>");
const INVALID_PAYLOAD: StanzaError =
    StanzaError::BAD_REQUEST.with("<invalid-payload xmlns=\"http://jabber.org/protocol/pubsub#errors\"/>");
const NOT_SUBSCRIBED: StanzaError = StanzaError::UNEXPECTED_REQUEST
    .with("<not-subscribed xmlns=\"http://jabber.org/protocol/pubsub#errors\"/>");

impl ServerConnection {
    pub(super) fn handle_pubsub(
        &mut self,
        iq: &Iq<'_>,
        pubsub: &Element,
        is_set: bool,
        out: &mut Output,
    ) -> Result<(), StanzaError> {
        let action =
            pubsub.children().find(|child| child.ns() == ns::PUBSUB).ok_or(StanzaError::BAD_REQUEST)?;
        match (action.name(), is_set) {
            ("subscribe", true) => self.handle_subscribe(iq, action, out),
            ("unsubscribe", true) => self.handle_unsubscribe(iq, action, out),
            ("publish", true) => self.handle_publish(iq, pubsub, action, out),
            ("items", false) => self.handle_items(iq, action, out),
            ("subscribe" | "unsubscribe" | "publish" | "items", _) => Err(StanzaError::BAD_REQUEST),
            _ => Err(UNSUPPORTED),
        }
    }

    /// §6.1.3.1: a peer subscribes nobody but itself.
    fn check_jid(&self, action: &Element) -> Result<(), StanzaError> {
        let own = self.session.as_ref().is_some_and(|session| {
            let is_own = |jid: &str| {
                jid.eq_ignore_ascii_case(session.bare()) || jid.eq_ignore_ascii_case(&session.full)
            };
            action.attribute("jid").is_some_and(is_own)
        });
        if own { Ok(()) } else { Err(INVALID_JID) }
    }

    fn handle_subscribe(
        &mut self,
        iq: &Iq<'_>,
        action: &Element,
        out: &mut Output,
    ) -> Result<(), StanzaError> {
        self.check_jid(action)?;
        let topic = topic_of(action)?;
        let filter = Subscription {
            filter: topic.clone(),
            share: None,
            qos: Qos::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::SendIfNew,
            valid: true,
        };
        let token = self.ask(Asked::by(iq, What::Subscribe { topic: topic.as_str().into() }))?;
        out.events.push(Event::Subscribe { token, filters: vec![filter], id: None });
        Ok(())
    }

    fn handle_unsubscribe(
        &mut self,
        iq: &Iq<'_>,
        action: &Element,
        out: &mut Output,
    ) -> Result<(), StanzaError> {
        self.check_jid(action)?;
        let topic = topic_of(action)?;
        let token = self.ask(Asked::by(iq, What::Unsubscribe))?;
        out.events.push(Event::Unsubscribe { token, filters: vec![topic] });
        Ok(())
    }

    fn handle_publish(
        &mut self,
        iq: &Iq<'_>,
        pubsub: &Element,
        action: &Element,
        out: &mut Output,
    ) -> Result<(), StanzaError> {
        let topic = topic_of(action)?;
        if topic.contains(['+', '#']) {
            return Err(StanzaError::ITEM_NOT_FOUND);
        }
        let mut items = action.children().filter(|item| item.is(ns::PUBSUB, "item"));
        let (Some(item), None) = (items.next(), items.next()) else { return Err(StanzaError::BAD_REQUEST) };
        let payload = payload_of(item).ok_or(INVALID_PAYLOAD)?;
        let asked =
            What::Publish { topic: topic.as_str().into(), item: item.attribute("id").map(Into::into) };
        let token = self.ask(Asked::by(iq, asked))?;
        let publish = Publish {
            topic,
            payload: Bytes::from(payload),
            qos: Qos::AtLeastOnce,
            retain: wants_persistence(pubsub),
            ..Publish::default()
        };
        out.events.push(Event::Publish { token, publish });
        Ok(())
    }

    fn handle_items(&mut self, iq: &Iq<'_>, action: &Element, out: &mut Output) -> Result<(), StanzaError> {
        let topic = topic_of(action)?;
        if topic.contains(['+', '#']) {
            return Err(StanzaError::ITEM_NOT_FOUND);
        }
        let token = self.ask(Asked::by(iq, What::Items { topic: topic.as_str().into() }))?;
        out.events.push(Event::Xmpp(Box::new(Request::Items { token, topic })));
        Ok(())
    }

    pub(super) fn handle_topic_answer(&mut self, reply: Reply, asked: &Asked, out: &mut Output) {
        let answered = match (reply, &asked.what) {
            (Reply::Publish { outcome, .. }, What::Publish { topic, item }) => {
                self.publish_answer(outcome, topic, item.as_deref())
            }
            (Reply::Subscribe { outcomes, .. }, What::Subscribe { topic }) => match outcomes.first() {
                Some(SubscribeOutcome::Granted(_)) => Ok(self.subscribed(topic)),
                _ => Err(StanzaError::FORBIDDEN),
            },
            (Reply::Unsubscribe { existed, .. }, What::Unsubscribe) => match existed.first() {
                Some(true) => Ok(String::new()),
                _ => Err(NOT_SUBSCRIBED),
            },
            (Reply::Xmpp(Answer::Items { items, .. }), What::Items { topic }) => match items {
                Ok(items) => Ok(items_of(topic, &items)),
                Err(_) => Err(StanzaError::FORBIDDEN),
            },
            _ => return,
        };
        match answered {
            Ok(xml) => self.write_iq_result(&asked.id, asked.to.as_deref(), &xml, &mut out.bytes),
            Err(error) => self.write_error("iq", &asked.id, asked.to.as_deref(), error, &mut out.bytes),
        }
    }

    fn publish_answer(
        &self,
        outcome: PublishOutcome,
        topic: &str,
        item: Option<&str>,
    ) -> Result<String, StanzaError> {
        match outcome {
            PublishOutcome::Accepted | PublishOutcome::NoSubscribers => {}
            PublishOutcome::NotAuthorized => return Err(StanzaError::FORBIDDEN),
            PublishOutcome::QuotaExceeded => return Err(StanzaError::RESOURCE_CONSTRAINT),
            PublishOutcome::TopicInvalid => return Err(StanzaError::ITEM_NOT_FOUND),
            PublishOutcome::PayloadInvalid => return Err(INVALID_PAYLOAD),
            PublishOutcome::Unavailable => return Err(StanzaError::INTERNAL_SERVER_ERROR),
        }
        let mut xml = Vec::new();
        raw(&mut xml, "<pubsub xmlns=\"http://jabber.org/protocol/pubsub\"><publish");
        attribute(&mut xml, "node", topic);
        raw(&mut xml, "><item");
        if let Some(item) = item {
            attribute(&mut xml, "id", item);
        }
        raw(&mut xml, "/></publish></pubsub>");
        Ok(text_of(xml))
    }

    fn subscribed(&self, topic: &str) -> String {
        let jid = self.session.as_ref().map_or("", |session| session.bare());
        let mut xml = Vec::new();
        raw(&mut xml, "<pubsub xmlns=\"http://jabber.org/protocol/pubsub\"><subscription");
        attribute(&mut xml, "node", topic);
        attribute(&mut xml, "jid", jid);
        raw(&mut xml, " subscription=\"subscribed\"/></pubsub>");
        text_of(xml)
    }
}

/// The name of a node, fit for a topic or a filter (L12).
fn topic_of(action: &Element) -> Result<Text, StanzaError> {
    let node = action.attribute("node").filter(|node| !node.is_empty()).ok_or(NODEID_REQUIRED)?;
    let node = Text::from(node);
    let is_filter = crate::mqtt::parse_filter(&node, TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX).is_ok();
    // Names that begin with `$` are for the server's own use.
    if is_filter && !node.starts_with('$') { Ok(node) } else { Err(StanzaError::ITEM_NOT_FOUND) }
}

/// §7.1.5: whether the last message is to be kept for those who come later.
fn wants_persistence(pubsub: &Element) -> bool {
    let form = pubsub.child(ns::PUBSUB, "publish-options").and_then(|o| o.child(ns::DATA_FORMS, "x"));
    let field = form.and_then(|form| {
        form.children().find(|field| field.attribute("var") == Some("pubsub#persist_items"))
    });
    let value = field.and_then(|field| field.child_text(ns::DATA_FORMS, "value"));
    matches!(value.as_deref().map(str::trim), Some("1" | "true"))
}

fn items_of(topic: &str, items: &[Publish]) -> String {
    let mut xml = Vec::new();
    raw(&mut xml, "<pubsub xmlns=\"http://jabber.org/protocol/pubsub\"><items");
    attribute(&mut xml, "node", topic);
    raw(&mut xml, ">");
    for publish in items {
        raw(&mut xml, "<item>");
        payload_element(&publish.payload, &mut xml);
        raw(&mut xml, "</item>");
    }
    raw(&mut xml, "</items></pubsub>");
    text_of(xml)
}

/// All that is written is text.
fn text_of(xml: Vec<u8>) -> String {
    String::from_utf8(xml).unwrap_or_default()
}
