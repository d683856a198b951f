//! Before sign-in: SASL (RFC 6120 §6), and where the other ways in begin.

use super::ServerConnection;
use crate::xmpp::error::StreamError;
use crate::xmpp::jid::{self, unescape_local};
use crate::xmpp::ns;
use crate::xmpp::request::Request;
use crate::xmpp::scram::{Scram, ScramError, ScramHash, ScramKeys, is_same_user};
use crate::xmpp::server::outbound::SavedStream;
use crate::xmpp::xml::{Element, raw};
use crate::{Accepted, Connect, ConnectRefusal, Event, Millis, Output, Text};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

/// Where a sign-in is.
#[derive(Debug)]
pub(super) enum Step {
    Ready,
    /// `<auth/>` came without an initial response, and an empty challenge went out.
    AwaitInitial(Mechanism),
    AwaitKeys(Box<Scram>),
    /// The challenge went out.
    Scram(Box<Scram>, Box<ScramKeys>),
    /// [`Event::Connect`] is raised.
    AwaitConnect(SignIn),
    /// A registration is under way, by the request of this id.
    AwaitAccount(Box<str>),
}

impl Step {
    /// For an answer from inside.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self, Step::AwaitKeys(_) | Step::AwaitConnect(_) | Step::AwaitAccount(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mechanism {
    Plain,
    Scram(ScramHash, bool),
}

impl Mechanism {
    fn named(name: &str) -> Option<Mechanism> {
        match name {
            "PLAIN" => Some(Mechanism::Plain),
            "SCRAM-SHA-1" => Some(Mechanism::Scram(ScramHash::Sha1, false)),
            "SCRAM-SHA-256" => Some(Mechanism::Scram(ScramHash::Sha256, false)),
            "SCRAM-SHA-1-PLUS" => Some(Mechanism::Scram(ScramHash::Sha1, true)),
            "SCRAM-SHA-256-PLUS" => Some(Mechanism::Scram(ScramHash::Sha256, true)),
            _ => None,
        }
    }
}

/// Who asked to be let in, and how to tell him.
#[derive(Debug)]
pub(super) enum SignIn {
    /// With what goes along with the success.
    Sasl { user: Text, additional: Option<String> },
    /// XEP-0078.
    Legacy { id: Box<str>, user: Text, resource: Box<str> },
}

/// Let in, and still without a resource.
#[derive(Debug)]
pub(super) struct SignedIn {
    pub user: Text,
    /// What the session's last connection left behind.
    pub saved: Option<Box<SavedStream>>,
}

/// The conditions of RFC 6120 §6.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure(&'static str);

impl From<ScramError> for Failure {
    fn from(error: ScramError) -> Failure {
        Failure(match error {
            ScramError::Malformed | ScramError::BindingType => "malformed-request",
            ScramError::Authzid => "invalid-authzid",
            ScramError::Proof => "not-authorized",
        })
    }
}

impl ServerConnection {
    pub(super) fn handle_negotiation_element(
        &mut self,
        element: &Element,
        out: &mut Output,
    ) -> Result<(), StreamError> {
        match (element.ns(), element.name()) {
            (ns::TLS, "starttls") => self.handle_start_tls(out),
            (ns::SASL, name) => {
                let handled = match name {
                    "auth" => self.handle_auth(element, out),
                    "response" => self.handle_response(element, out),
                    "abort" => Err(Failure("aborted")),
                    _ => Err(Failure("malformed-request")),
                };
                if let Err(failure) = handled {
                    self.fail_sign_in(failure, out);
                }
            }
            (ns::COMPRESS, "compress") => self.refuse_compression(&mut out.bytes),
            (ns::CLIENT, "iq") => return self.handle_account_iq(element, out),
            (ns::SM, "enable" | "resume") => self.refuse_sm("unexpected-request", &mut out.bytes),
            _ => return Err(StreamError::NOT_AUTHORIZED),
        }
        Ok(())
    }

    fn handle_auth(&mut self, element: &Element, out: &mut Output) -> Result<(), Failure> {
        if !self.may_sign_in() {
            return Err(Failure("encryption-required"));
        }
        // A challenge that is not answered is a try like any other; a stream has only a few.
        let is_open = |n: &super::Negotiation| matches!(n.step, Step::Scram(..));
        if self.negotiation.as_deref().is_some_and(is_open) {
            self.count_failure(out);
            if self.is_closed {
                return Ok(());
            }
        }
        let name = element.attribute("mechanism").unwrap_or_default();
        let mechanism = Mechanism::named(name).ok_or(Failure("invalid-mechanism"))?;
        let Some(negotiation) = &mut self.negotiation else { return Ok(()) };
        if matches!(mechanism, Mechanism::Scram(_, true)) && !negotiation.channel.is_there() {
            return Err(Failure("invalid-mechanism"));
        }
        match element.text().trim() {
            "" => {
                negotiation.step = Step::AwaitInitial(mechanism);
                self.write_element("<challenge xmlns=\"urn:ietf:params:xml:ns:xmpp-sasl\"/>", &mut out.bytes);
                Ok(())
            }
            // RFC 6120 §6.4.2: an initial response that is there and empty.
            "=" => self.handle_initial(mechanism, &[], out),
            text => self.handle_initial(mechanism, &decoded(text)?, out),
        }
    }

    fn handle_response(&mut self, element: &Element, out: &mut Output) -> Result<(), Failure> {
        let Some(negotiation) = &mut self.negotiation else { return Ok(()) };
        let message = decoded(element.text().trim())?;
        match std::mem::replace(&mut negotiation.step, Step::Ready) {
            Step::AwaitInitial(mechanism) => self.handle_initial(mechanism, &message, out),
            Step::Scram(scram, keys) => {
                let message = std::str::from_utf8(&message).map_err(|_| Failure("malformed-request"))?;
                let user = self.device_of(&scram.user)?;
                let additional = scram.finish(&keys, message).inspect_err(|error| {
                    if *error == ScramError::Proof {
                        out.events.push(Event::Xmpp(Box::new(Request::WrongProof { user: user.clone() })));
                    }
                })?;
                self.ask_to_connect(SignIn::Sasl { user, additional: Some(additional) }, None, out);
                Ok(())
            }
            _ => Err(Failure("malformed-request")),
        }
    }

    fn handle_initial(
        &mut self,
        mechanism: Mechanism,
        message: &[u8],
        out: &mut Output,
    ) -> Result<(), Failure> {
        let message = std::str::from_utf8(message).map_err(|_| Failure("malformed-request"))?;
        match mechanism {
            Mechanism::Plain => self.handle_plain(message, out),
            Mechanism::Scram(hash, is_plus) => {
                let nonce = self.chance.draw();
                let Some(negotiation) = &mut self.negotiation else { return Ok(()) };
                let scram = match Scram::begin(hash, is_plus, message, &negotiation.channel, &nonce) {
                    // COMPAT: libraries that know tls-unique only, which TLS 1.3 has not, try it with each mechanism before they
                    // fall back. Nothing was guessed by that, so it is not counted.
                    Err(error @ ScramError::BindingType) => {
                        self.write_failure(error.into(), out);
                        return Ok(());
                    }
                    begun => begun?,
                };
                let user = self.device_of(&scram.user)?;
                let Some(negotiation) = &mut self.negotiation else { return Ok(()) };
                negotiation.step = Step::AwaitKeys(Box::new(scram));
                out.events.push(Event::Xmpp(Box::new(Request::Keys { user, hash })));
                Ok(())
            }
        }
    }

    /// RFC 4616: `[authzid] NUL authcid NUL password`.
    fn handle_plain(&mut self, message: &str, out: &mut Output) -> Result<(), Failure> {
        let mut parts = message.split('\0');
        let (authzid, user, password) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(authzid), Some(user), Some(password), None) => (authzid, user, password),
            _ => return Err(Failure("malformed-request")),
        };
        if user.is_empty() || password.is_empty() {
            return Err(Failure("malformed-request"));
        }
        if password.len() > self.config.password_bytes_max {
            return Err(Failure("not-authorized"));
        }
        // A10: who signs in as one acts as that one.
        if !authzid.is_empty() && !is_same_user(authzid, user) {
            return Err(Failure("invalid-authzid"));
        }
        let sign_in = SignIn::Sasl { user: self.device_of(user)?, additional: None };
        self.ask_to_connect(sign_in, Some(Bytes::copy_from_slice(password.as_bytes())), out);
        Ok(())
    }

    /// Without a password: it is proven.
    pub(super) fn ask_to_connect(&mut self, sign_in: SignIn, password: Option<Bytes>, out: &mut Output) {
        let (SignIn::Sasl { user, .. } | SignIn::Legacy { user, .. }) = &sign_in;
        out.events.push(Event::Connect(Box::new(Connect {
            level: 0,
            client_id: user.clone(),
            clean_start: false,
            session_expiry_secs: u32::MAX,
            user: Some(user.clone()),
            is_proven: password.is_none(),
            password,
            token: None,
            takes_pushes: true,
            will: None,
            keepalive_secs: 0,
        })));
        if let Some(negotiation) = &mut self.negotiation {
            negotiation.step = Step::AwaitConnect(sign_in);
        }
    }

    pub(super) fn handle_keys(&mut self, keys: ScramKeys, out: &mut Output) {
        let Some(negotiation) = &mut self.negotiation else { return };
        let Step::AwaitKeys(mut scram) = std::mem::replace(&mut negotiation.step, Step::Ready) else {
            return;
        };
        let challenge = STANDARD.encode(scram.challenge(&keys));
        negotiation.step = Step::Scram(scram, Box::new(keys));
        let xml = format!("<challenge xmlns=\"{}\">{challenge}</challenge>", ns::SASL);
        self.write_element(&xml, &mut out.bytes);
    }

    /// The peer may come again later; it did nothing wrong itself.
    pub(super) fn refuse_challenge(&mut self, out: &mut Output) {
        let is_due = |n: &super::Negotiation| matches!(n.step, Step::AwaitKeys(_));
        if self.negotiation.as_deref().is_some_and(is_due) {
            self.write_failure(Failure("temporary-auth-failure"), out);
        }
    }

    pub(super) fn handle_connect_answer(
        &mut self,
        answer: Result<Box<Accepted>, ConnectRefusal>,
        now: Millis,
        out: &mut Output,
    ) {
        let Some(negotiation) = &mut self.negotiation else { return };
        let Step::AwaitConnect(sign_in) = std::mem::replace(&mut negotiation.step, Step::Ready) else {
            return;
        };
        match (sign_in, answer) {
            (SignIn::Sasl { user, additional }, Ok(accepted)) => {
                negotiation.signed_in = Some(SignedIn { user, saved: accepted.stream });
                let additional = additional.map(|text| STANDARD.encode(text)).unwrap_or_default();
                raw(&mut out.bytes, "<success xmlns=\"urn:ietf:params:xml:ns:xmpp-sasl\"");
                match additional.as_str() {
                    "" => raw(&mut out.bytes, "/>"),
                    text => raw(&mut out.bytes, &format!(">{text}</success>")),
                }
                self.end_element(&mut out.bytes);
                self.restart();
            }
            (SignIn::Sasl { .. }, Err(refusal)) => self.fail_sign_in(failure_of(refusal), out),
            (SignIn::Legacy { id, user, resource }, Ok(_)) => {
                self.finish_legacy_sign_in(&id, &user, &resource, now, out);
            }
            (SignIn::Legacy { id, .. }, Err(refusal)) => self.refuse_legacy_sign_in(&id, refusal, out),
        }
    }

    fn fail_sign_in(&mut self, failure: Failure, out: &mut Output) {
        self.write_failure(failure, out);
        self.count_failure(out);
    }

    fn write_failure(&mut self, failure: Failure, out: &mut Output) {
        if let Some(negotiation) = &mut self.negotiation {
            negotiation.step = Step::Ready;
        }
        let xml = format!("<failure xmlns=\"{}\"><{}/></failure>", ns::SASL, failure.0);
        self.write_element(&xml, &mut out.bytes);
    }

    /// The device's name of a user name, which may be escaped as a local part is. It has to be fit for an address.
    pub(super) fn device_name(&self, user: &str) -> Option<Text> {
        let name = unescape_local(user);
        let is_fit = name.len() <= self.config.user_bytes_max && jid::is_part(&jid::escape_local(&name));
        is_fit.then(|| Text::from(name))
    }

    fn device_of(&self, user: &str) -> Result<Text, Failure> {
        self.device_name(user).ok_or(Failure("not-authorized"))
    }

    /// L21: a stream that fails too often ends.
    pub(super) fn count_failure(&mut self, out: &mut Output) {
        let Some(negotiation) = &mut self.negotiation else { return };
        negotiation.failures += 1;
        if negotiation.failures >= self.config.auth_attempts_max {
            self.fail(StreamError::POLICY_VIOLATION.text("too many attempts to sign in"), out);
        }
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, Failure> {
    STANDARD.decode(text).map_err(|_| Failure("incorrect-encoding"))
}

fn failure_of(refusal: ConnectRefusal) -> Failure {
    Failure(match refusal {
        ConnectRefusal::NotAuthorized | ConnectRefusal::Banned => "account-disabled",
        ConnectRefusal::RateExceeded
        | ConnectRefusal::Unavailable
        | ConnectRefusal::Busy
        | ConnectRefusal::QuotaExceeded => "temporary-auth-failure",
        _ => "not-authorized",
    })
}
