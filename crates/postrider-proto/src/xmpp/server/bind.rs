//! From SASL to a session: a resource is bound (RFC 6120 §7), or a stream is resumed (XEP-0198).

use super::sasl::SignedIn;
use super::stanza::Iq;
use super::{ServerConnection, Session};
use crate::xmpp::error::{StanzaError, StreamError};
use crate::xmpp::jid;
use crate::xmpp::ns;
use crate::xmpp::server::outbound::SavedStream;
use crate::xmpp::xml::{Element, attribute, raw, text_element};
use crate::{Event, Millis, Output};

impl ServerConnection {
    pub(super) fn handle_bind_element(
        &mut self,
        element: &Element,
        now: Millis,
        out: &mut Output,
    ) -> Result<(), StreamError> {
        match (element.ns(), element.name()) {
            (ns::SM, "resume") => self.handle_resume(element, now, out),
            (ns::SM, "enable") => {
                self.refuse_sm("unexpected-request", &mut out.bytes);
                Ok(())
            }
            (ns::COMPRESS, "compress") => {
                self.refuse_compression(&mut out.bytes);
                Ok(())
            }
            // RFC 6120 §8.2.3: an answer is never answered.
            (ns::CLIENT, "iq") if !matches!(element.attribute("type"), Some("result" | "error")) => {
                let id = element.attribute("id").unwrap_or_default().to_owned();
                match Iq::of(element) {
                    Ok(Iq { child: Some(child), is_set: true, .. }) if child.is(ns::BIND, "bind") => {
                        self.handle_bind(&id, child, now, out);
                    }
                    Ok(_) => return Err(StreamError::NOT_AUTHORIZED.text("no resource is bound")),
                    Err(error) => self.write_iq_error(&id, error, &mut out.bytes),
                }
                Ok(())
            }
            _ => Err(StreamError::NOT_AUTHORIZED.text("no resource is bound")),
        }
    }

    fn handle_bind(&mut self, id: &str, bind: &Element, now: Millis, out: &mut Output) {
        let wanted = bind.child_text(ns::BIND, "resource").unwrap_or_default();
        let resource = if wanted.is_empty() { self.chance.draw() } else { wanted };
        if !jid::is_part(&resource) {
            return self.write_iq_error(id, StanzaError::BAD_REQUEST, &mut out.bytes);
        }
        let Some(SignedIn { user, .. }) = self.negotiation.as_mut().and_then(|n| n.signed_in.take()) else {
            return;
        };
        let session = Session::new(&user, &jid::escape_local(&user), &self.domain, &resource);
        let mut xml = Vec::new();
        raw(&mut xml, "<bind xmlns=\"urn:ietf:params:xml:ns:xmpp-bind\">");
        text_element(&mut xml, "jid", &session.full);
        raw(&mut xml, "</bind>");
        // Before there is a session: the answer has no address, since this is where the peer learns its own.
        self.write_iq_result(id, None, &String::from_utf8_lossy(&xml), &mut out.bytes);
        self.begin_session(session, now);
    }

    pub(super) fn begin_session(&mut self, session: Session, now: Millis) {
        self.session = Some(Box::new(session));
        self.negotiation = None;
        self.heard_at = now;
    }

    /// XEP-0198 §5. What is gone or belongs to somebody else is not found; then the peer binds, and all that it has not
    /// acknowledged comes anew from its inbox.
    fn handle_resume(&mut self, element: &Element, now: Millis, out: &mut Output) -> Result<(), StreamError> {
        let acked = element.attribute("h").and_then(|h| h.parse::<u32>().ok());
        let wanted = element.attribute("previd").unwrap_or_default();
        let Some(signed_in) = self.negotiation.as_mut().and_then(|n| n.signed_in.as_mut()) else {
            return Ok(());
        };
        let Some(saved) = signed_in.saved.take_if(|saved| saved.is_named(wanted)) else {
            self.refuse_sm("item-not-found", &mut out.bytes);
            return Ok(());
        };
        let Some(acked) = acked else {
            signed_in.saved = Some(saved);
            self.refuse_sm("bad-request", &mut out.bytes);
            return Ok(());
        };
        if saved.has_ended(now, self.config.resume_ms) {
            // The count is told all the same: so the peer knows which of its messages came.
            let handled = saved.handled();
            self.write_failed("item-not-found", Some(handled), &mut out.bytes);
            return Ok(());
        }
        let user = signed_in.user.clone();
        let SavedStream { resource, is_available, .. } = &*saved;
        let mut session = Session::new(&user, &jid::escape_local(&user), &self.domain, resource);
        session.is_available = *is_available;
        // Active, whatever it was (XEP-0352): the peer may have woken up meanwhile, and would get nothing but what is urgent.
        self.begin_session(session, now);
        self.resume(*saved, acked, out)?;
        out.events.push(Event::WindowOpened);
        Ok(())
    }

    pub(super) fn refuse_sm(&self, condition: &str, bytes: &mut Vec<u8>) {
        self.write_failed(condition, None, bytes);
    }

    fn write_failed(&self, condition: &str, handled: Option<u32>, bytes: &mut Vec<u8>) {
        raw(bytes, "<failed xmlns=\"urn:xmpp:sm:3\"");
        if let Some(handled) = handled {
            attribute(bytes, "h", &handled.to_string());
        }
        raw(bytes, "><");
        raw(bytes, condition);
        attribute(bytes, "xmlns", ns::STANZA_ERRORS);
        raw(bytes, "/></failed>");
        self.end_element(bytes);
    }
}
