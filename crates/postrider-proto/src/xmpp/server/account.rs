//! Accounts made by their devices (XEP-0077), and the sign-in from before SASL (XEP-0078).
//!
//! The password comes in clear inside of TLS; `<digest/>` is not offered, since it would need one that is kept in clear.

use super::ServerConnection;
use super::Session;
use super::sasl::{SignIn, Step};
use super::stanza::{Asked, Iq, What};
use crate::xmpp::error::{StanzaError, StreamError};
use crate::xmpp::jid;
use crate::xmpp::ns;
use crate::xmpp::request::{AccountAction, AccountOutcome, Request};
use crate::xmpp::xml::{Element, raw, text_element};
use crate::{ConnectRefusal, Event, Millis, Output, Text};
use bytes::Bytes;

const FORM: &str = "<query xmlns=\"jabber:iq:register\"><instructions>Choose a name and a password.</instructions>\
                    <username/><password/></query>";

impl ServerConnection {
    /// What may be asked before sign-in: nothing else than to be let in.
    pub(super) fn handle_account_iq(
        &mut self,
        element: &Element,
        out: &mut Output,
    ) -> Result<(), StreamError> {
        if !matches!(element.attribute("type"), Some("get" | "set")) {
            return Err(StreamError::NOT_AUTHORIZED);
        }
        let iq = match Iq::of(element) {
            Ok(iq) => iq,
            Err(error) => {
                self.write_iq_error(element.attribute("id").unwrap_or_default(), error, &mut out.bytes);
                return Ok(());
            }
        };
        let id = iq.id;
        let config = &self.config;
        let is_offered = match iq.child.map(|child| (child.ns(), child.name())) {
            Some((ns::REGISTER, "query")) => config.offers_registration,
            Some((ns::LEGACY_AUTH, "query")) => config.offers_legacy_auth,
            _ => return Err(StreamError::NOT_AUTHORIZED),
        };
        let (Some(child), true) = (iq.child, is_offered) else {
            self.write_iq_error(id, StanzaError::SERVICE_UNAVAILABLE, &mut out.bytes);
            return Ok(());
        };
        let handled = match (self.may_sign_in(), child.ns(), iq.is_set) {
            (false, _, _) => Err(StanzaError::NOT_ACCEPTABLE),
            (true, ns::REGISTER, false) => {
                self.write_iq_result(id, None, FORM, &mut out.bytes);
                Ok(())
            }
            (true, ns::REGISTER, true) => self.handle_register(id, child, out),
            (true, _, false) => {
                self.write_legacy_fields(id, child, &mut out.bytes);
                Ok(())
            }
            (true, _, true) => self.handle_legacy_sign_in(id, child, out),
        };
        if let Err(error) = handled {
            self.write_iq_error(id, error, &mut out.bytes);
        }
        Ok(())
    }

    fn handle_register(&mut self, id: &str, query: &Element, out: &mut Output) -> Result<(), StanzaError> {
        let (user, password) = self.credentials(query, ns::REGISTER)?;
        if let Some(negotiation) = &mut self.negotiation {
            negotiation.step = Step::AwaitAccount(id.into());
        }
        let action = AccountAction::Create { password };
        out.events.push(Event::Xmpp(Box::new(Request::Account { token: 0, user, action })));
        Ok(())
    }

    pub(super) fn handle_registered(&mut self, outcome: AccountOutcome, out: &mut Output) {
        let Some(negotiation) = &mut self.negotiation else { return };
        let Step::AwaitAccount(id) = std::mem::replace(&mut negotiation.step, Step::Ready) else { return };
        match error_of(outcome) {
            None => self.write_iq_result(&id, None, "", &mut out.bytes),
            Some(error) => {
                self.write_iq_error(&id, error, &mut out.bytes);
                self.count_failure(out);
            }
        }
    }

    fn write_legacy_fields(&mut self, id: &str, query: &Element, bytes: &mut Vec<u8>) {
        let mut xml = Vec::new();
        raw(&mut xml, "<query xmlns=\"jabber:iq:auth\">");
        let user = query.child_text(ns::LEGACY_AUTH, "username").unwrap_or_default();
        text_element(&mut xml, "username", &user);
        raw(&mut xml, "<password/><resource/></query>");
        self.write_iq_result(id, None, &String::from_utf8_lossy(&xml), bytes);
    }

    fn handle_legacy_sign_in(
        &mut self,
        id: &str,
        query: &Element,
        out: &mut Output,
    ) -> Result<(), StanzaError> {
        let (user, password) = self.credentials(query, ns::LEGACY_AUTH)?;
        let resource = query.child_text(ns::LEGACY_AUTH, "resource").unwrap_or_default();
        if !jid::is_part(&resource) {
            return Err(StanzaError::NOT_ACCEPTABLE);
        }
        let sign_in = SignIn::Legacy { id: id.into(), user, resource: resource.into() };
        self.ask_to_connect(sign_in, Some(Bytes::from(password.into_bytes())), out);
        Ok(())
    }

    pub(super) fn finish_legacy_sign_in(
        &mut self,
        id: &str,
        user: &Text,
        resource: &str,
        now: Millis,
        out: &mut Output,
    ) {
        let local = jid::escape_local(user);
        let mut session = Session::new(user, &local, &self.domain, resource);
        session.is_androidpn = resource == self.config.androidpn_resource && !resource.is_empty();
        // The address goes with the answer: this client has no other way to learn it.
        self.begin_session(session, now);
        self.write_iq_result(id, None, "", &mut out.bytes);
    }

    /// The stream stays open: the client forgets its account and registers anew on it.
    pub(super) fn refuse_legacy_sign_in(&mut self, id: &str, refusal: ConnectRefusal, out: &mut Output) {
        let error = match refusal {
            ConnectRefusal::RateExceeded | ConnectRefusal::Unavailable | ConnectRefusal::Busy => {
                StanzaError::RESOURCE_CONSTRAINT
            }
            ConnectRefusal::NotAuthorized | ConnectRefusal::Banned => StanzaError::FORBIDDEN,
            _ => StanzaError::NOT_AUTHORIZED,
        };
        self.write_iq_error(id, error, &mut out.bytes);
        self.count_failure(out);
    }

    /// XEP-0077 by who has an account: `get` tells so, `set` changes the password or removes it.
    pub(super) fn handle_own_account(
        &mut self,
        iq: &Iq<'_>,
        query: &Element,
        out: &mut Output,
    ) -> Result<(), StanzaError> {
        let Some(session) = &self.session else { return Ok(()) };
        if !self.config.offers_registration {
            return Err(StanzaError::SERVICE_UNAVAILABLE);
        }
        let user = session.user.to_string();
        if !iq.is_set {
            let mut xml = Vec::new();
            raw(&mut xml, "<query xmlns=\"jabber:iq:register\"><registered/>");
            text_element(&mut xml, "username", &user);
            raw(&mut xml, "<password/></query>");
            self.write_iq_result(iq.id, iq.to, &String::from_utf8_lossy(&xml), &mut out.bytes);
            return Ok(());
        }
        let action = if query.child(ns::REGISTER, "remove").is_some() {
            AccountAction::Remove
        } else {
            let (named, password) = self.credentials(query, ns::REGISTER)?;
            if *named != *user {
                return Err(StanzaError::NOT_ALLOWED);
            }
            AccountAction::ChangePassword { password }
        };
        let token = self.ask(Asked::by(iq, What::Account))?;
        out.events.push(Event::Xmpp(Box::new(Request::Account { token, user: user.into(), action })));
        Ok(())
    }

    /// The name and the password, in whatever order they stand.
    fn credentials(&self, query: &Element, ns: &str) -> Result<(Text, String), StanzaError> {
        let user = query.child_text(ns, "username").filter(|user| !user.is_empty());
        let password = query.child_text(ns, "password").filter(|password| !password.is_empty());
        let (Some(user), Some(password)) = (user, password) else { return Err(StanzaError::NOT_ACCEPTABLE) };
        let user = self.device_name(&user).filter(|_| password.len() <= self.config.password_bytes_max);
        Ok((user.ok_or(StanzaError::NOT_ACCEPTABLE)?, password))
    }
}

pub(super) fn error_of(outcome: AccountOutcome) -> Option<StanzaError> {
    match outcome {
        AccountOutcome::Done => None,
        AccountOutcome::Conflict => Some(StanzaError::CONFLICT),
        AccountOutcome::NotAllowed => Some(StanzaError::NOT_ALLOWED),
        AccountOutcome::NotAcceptable => Some(StanzaError::NOT_ACCEPTABLE),
        AccountOutcome::Unavailable => Some(StanzaError::RESOURCE_CONSTRAINT),
    }
}
