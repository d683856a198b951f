//! Stream header, features, STARTTLS (RFC 6120 §4, §5).

use super::ServerConnection;
use crate::Output;
use crate::xmpp::error::StreamError;
use crate::xmpp::jid::Jid;
use crate::xmpp::ns;
use crate::xmpp::xml::{Element, attribute, raw};

/// What we call ourselves when the peer does not tell how it calls us.
const NAMELESS: &str = "localhost";

impl ServerConnection {
    pub(super) fn handle_open(&mut self, header: &Element, out: &mut Output) -> Result<(), StreamError> {
        if self.is_open {
            return Err(StreamError::from(crate::xmpp::XmlError::InvalidXml));
        }
        let name = if self.is_framed { (ns::FRAMING, "open") } else { (ns::STREAMS, "stream") };
        let to = header.attribute("to").and_then(Jid::parse).filter(|to| to.resource.is_none());
        let asked = to.map(|to| to.domain);
        let host = self.config.host.as_str();
        // Where no host is set, any is ours: phones are set to an address as often as to a name. It is taken over before
        // anything is answered.
        let is_foreign = !host.is_empty() && asked.is_some_and(|asked| !asked.eq_ignore_ascii_case(host));
        let own = if host.is_empty() { asked.unwrap_or(NAMELESS) } else { host };
        self.domain = own.into();
        let version = header.attribute("version").and_then(|v| v.split_once('.'));
        self.write_header(&mut out.bytes);
        if is_foreign {
            return Err(StreamError::HOST_UNKNOWN);
        }
        if !header.is(name.0, name.1) || (!self.is_framed && &*self.reader.content_namespace() != ns::CLIENT)
        {
            return Err(StreamError::INVALID_NAMESPACE);
        }
        if version.is_none_or(|(major, _)| major != "1") {
            return Err(StreamError::UNSUPPORTED_VERSION);
        }
        self.write_features(&mut out.bytes);
        Ok(())
    }

    pub(super) fn write_header(&mut self, bytes: &mut Vec<u8>) {
        let id = self.chance.draw();
        if self.domain.is_empty() {
            self.domain = NAMELESS.into();
        }
        if self.is_framed {
            raw(bytes, "<open xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\"");
        } else {
            raw(bytes, "<?xml version=\"1.0\" encoding=\"UTF-8\"?><stream:stream");
            attribute(bytes, "xmlns", ns::CLIENT);
            attribute(bytes, "xmlns:stream", ns::STREAMS);
        }
        attribute(bytes, "from", &self.domain);
        attribute(bytes, "id", &id);
        raw(bytes, " xml:lang=\"en\" version=\"1.0\"");
        raw(bytes, if self.is_framed { "/>" } else { ">" });
        self.end_element(bytes);
        self.is_open = true;
    }

    fn write_features(&self, bytes: &mut Vec<u8>) {
        let Some(negotiation) = &self.negotiation else { return };
        raw(bytes, "<stream:features");
        if self.is_framed {
            attribute(bytes, "xmlns:stream", ns::STREAMS);
        }
        raw(bytes, ">");
        let start = bytes.len();
        if negotiation.signed_in.is_some() {
            raw(bytes, "<bind xmlns=\"urn:ietf:params:xml:ns:xmpp-bind\"/>");
            raw(bytes, "<session xmlns=\"urn:ietf:params:xml:ns:xmpp-session\"><optional/></session>");
            raw(bytes, "<sm xmlns=\"urn:xmpp:sm:3\"><optional/></sm><csi xmlns=\"urn:xmpp:csi:0\"/>");
        } else {
            let may_sign_in = self.may_sign_in();
            if self.may_start_tls() {
                raw(bytes, "<starttls xmlns=\"urn:ietf:params:xml:ns:xmpp-tls\">");
                raw(bytes, if may_sign_in { "</starttls>" } else { "<required/></starttls>" });
            }
            if may_sign_in {
                self.write_mechanisms(bytes);
                if self.config.offers_legacy_auth {
                    raw(bytes, "<auth xmlns=\"http://jabber.org/features/iq-auth\"/>");
                }
                if self.config.offers_registration {
                    raw(bytes, "<register xmlns=\"http://jabber.org/features/iq-register\"/>");
                }
            }
        }
        if bytes.len() == start {
            bytes.pop();
            raw(bytes, "/>");
        } else {
            raw(bytes, "</stream:features>");
        }
        self.end_element(bytes);
    }

    fn write_mechanisms(&self, bytes: &mut Vec<u8>) {
        let Some(negotiation) = &self.negotiation else { return };
        raw(bytes, "<mechanisms xmlns=\"urn:ietf:params:xml:ns:xmpp-sasl\">");
        let channel = &negotiation.channel;
        let bound = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS"];
        let offered = bound.into_iter().filter(|_| channel.is_there());
        for mechanism in offered.chain(["SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN"]) {
            raw(bytes, "<mechanism>");
            raw(bytes, mechanism);
            raw(bytes, "</mechanism>");
        }
        raw(bytes, "</mechanisms>");
        if channel.is_there() {
            raw(bytes, "<sasl-channel-binding xmlns=\"urn:xmpp:sasl-cb:0\">");
            for name in channel.names() {
                raw(bytes, "<channel-binding");
                attribute(bytes, "type", name);
                raw(bytes, "/>");
            }
            raw(bytes, "</sasl-channel-binding>");
        }
    }

    fn may_start_tls(&self) -> bool {
        let is_tls = self.negotiation.as_ref().is_some_and(|negotiation| negotiation.is_tls);
        self.config.offers_tls && !is_tls && !self.is_framed
    }

    pub(super) fn may_sign_in(&self) -> bool {
        self.config.allows_plaintext
            || self.negotiation.as_ref().is_some_and(|negotiation| negotiation.is_tls)
    }

    /// XEP-0138: for good, since what is compressed together with secrets gives them away.
    pub(super) fn refuse_compression(&self, bytes: &mut Vec<u8>) {
        let failure = "<failure xmlns=\"http://jabber.org/protocol/compress\"><setup-failed/></failure>";
        self.write_element(failure, bytes);
    }

    pub(super) fn handle_start_tls(&mut self, out: &mut Output) {
        if !self.may_start_tls() {
            // RFC 6120 §5.4.2.2: the failure ends the stream.
            self.write_element("<failure xmlns=\"urn:ietf:params:xml:ns:xmpp-tls\"/>", &mut out.bytes);
            return self.end("starttls_refused", out);
        }
        self.write_element("<proceed xmlns=\"urn:ietf:params:xml:ns:xmpp-tls\"/>", &mut out.bytes);
        out.start_tls = true;
        if let Some(negotiation) = &mut self.negotiation {
            negotiation.awaits_tls = true;
        }
    }
}
