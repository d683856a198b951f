//! Errors as XMPP says them, to one stanza or to the whole stream.

use super::ns;
use super::reader::XmlError;
use super::xml::{attribute, raw, text_element};

/// What is answered to one stanza (RFC 6120 §8.3.3), with its type and the number that clients from before it look for
/// (XEP-0086): androidpn finds out by the `401` that it has to register again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StanzaError {
    pub condition: &'static str,
    pub kind: &'static str,
    pub code: u16,
    /// A condition of pubsub's own (XEP-0060), written as an element.
    pub detail: Option<&'static str>,
}

const fn error(condition: &'static str, kind: &'static str, code: u16) -> StanzaError {
    StanzaError { condition, kind, code, detail: None }
}

impl StanzaError {
    pub const BAD_REQUEST: StanzaError = error("bad-request", "modify", 400);
    pub const CONFLICT: StanzaError = error("conflict", "cancel", 409);
    pub const FEATURE_NOT_IMPLEMENTED: StanzaError = error("feature-not-implemented", "cancel", 501);
    pub const FORBIDDEN: StanzaError = error("forbidden", "auth", 403);
    pub const INTERNAL_SERVER_ERROR: StanzaError = error("internal-server-error", "wait", 500);
    pub const ITEM_NOT_FOUND: StanzaError = error("item-not-found", "cancel", 404);
    pub const JID_MALFORMED: StanzaError = error("jid-malformed", "modify", 400);
    pub const NOT_ACCEPTABLE: StanzaError = error("not-acceptable", "modify", 406);
    pub const NOT_ALLOWED: StanzaError = error("not-allowed", "cancel", 405);
    pub const NOT_AUTHORIZED: StanzaError = error("not-authorized", "auth", 401);
    pub const REMOTE_SERVER_NOT_FOUND: StanzaError = error("remote-server-not-found", "cancel", 404);
    pub const RESOURCE_CONSTRAINT: StanzaError = error("resource-constraint", "wait", 500);
    pub const SERVICE_UNAVAILABLE: StanzaError = error("service-unavailable", "cancel", 503);
    pub const UNEXPECTED_REQUEST: StanzaError = error("unexpected-request", "wait", 400);

    pub const fn with(self, detail: &'static str) -> StanzaError {
        StanzaError { detail: Some(detail), ..self }
    }

    pub(crate) fn write(self, out: &mut Vec<u8>) {
        raw(out, "<error");
        attribute(out, "code", &self.code.to_string());
        attribute(out, "type", self.kind);
        raw(out, "><");
        raw(out, self.condition);
        attribute(out, "xmlns", ns::STANZA_ERRORS);
        raw(out, "/>");
        raw(out, self.detail.unwrap_or_default());
        raw(out, "</error>");
    }
}

/// What ends a stream (RFC 6120 §4.9.3). The condition is also the word for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamError {
    pub condition: &'static str,
    /// More about it, as an element.
    pub detail: Option<&'static str>,
    pub text: &'static str,
}

const fn ends(condition: &'static str) -> StreamError {
    StreamError { condition, detail: None, text: "" }
}

impl StreamError {
    pub const CONFLICT: StreamError = ends("conflict");
    pub const CONNECTION_TIMEOUT: StreamError = ends("connection-timeout");
    pub const HOST_UNKNOWN: StreamError = ends("host-unknown");
    pub const INVALID_FROM: StreamError = ends("invalid-from");
    pub const INVALID_NAMESPACE: StreamError = ends("invalid-namespace");
    pub const NOT_AUTHORIZED: StreamError = ends("not-authorized");
    pub const POLICY_VIOLATION: StreamError = ends("policy-violation");
    pub const RESOURCE_CONSTRAINT: StreamError = ends("resource-constraint");
    pub const SYSTEM_SHUTDOWN: StreamError = ends("system-shutdown");
    pub const UNSUPPORTED_STANZA_TYPE: StreamError = ends("unsupported-stanza-type");
    pub const UNSUPPORTED_VERSION: StreamError = ends("unsupported-version");
    /// XEP-0198 §4: an `h` above what was sent.
    pub const HANDLED_COUNT_TOO_HIGH: StreamError = StreamError {
        condition: "undefined-condition",
        detail: Some("<handled-count-too-high xmlns=\"urn:xmpp:sm:3\"/>"),
        text: "more acknowledged than sent",
    };

    pub(crate) const fn text(self, text: &'static str) -> StreamError {
        StreamError { text, ..self }
    }

    /// Without the end tag of the stream.
    pub(crate) fn write(self, is_framed: bool, out: &mut Vec<u8>) {
        raw(out, "<stream:error");
        if is_framed {
            attribute(out, "xmlns:stream", ns::STREAMS);
        }
        raw(out, "><");
        raw(out, self.condition);
        attribute(out, "xmlns", ns::STREAM_ERRORS);
        raw(out, "/>");
        if !self.text.is_empty() {
            let start = out.len();
            text_element(out, "text", self.text);
            let namespace = format!(" xmlns=\"{}\" xml:lang=\"en\"", ns::STREAM_ERRORS);
            out.splice(start + 5..start + 5, namespace.bytes());
        }
        raw(out, self.detail.unwrap_or_default());
        raw(out, "</stream:error>");
    }
}

impl From<XmlError> for StreamError {
    fn from(error: XmlError) -> StreamError {
        ends(match error {
            XmlError::BadFormat => "bad-format",
            XmlError::BadNamespacePrefix => "bad-namespace-prefix",
            XmlError::InvalidXml => "invalid-xml",
            XmlError::NotWellFormed => "not-well-formed",
            XmlError::PolicyViolation => "policy-violation",
            XmlError::RestrictedXml => "restricted-xml",
            XmlError::UnsupportedEncoding => "unsupported-encoding",
        })
    }
}
