//! What a head must be, beyond what hyper asks of it.

use super::HttpConfig;
use crate::api::error::{ApiError, Code};
use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, Version, header};
use axum::response::Response;
use hyper::body::Body as _;

/// Whether bytes of a body follow the head, or may follow it. Such a request never leaves the HTTP
/// server before its body is read: whoever takes the socket over would leave the body to be read as
/// the next request (RFC 9112 §11.2, request smuggling).
fn announces_body<B: hyper::body::Body>(request: &Request<B>) -> bool {
    let fields = request.headers();
    let has_length = fields.get_all(header::CONTENT_LENGTH).iter().any(|length| length != "0");
    has_length || fields.contains_key(header::TRANSFER_ENCODING) || !request.body().is_end_stream()
}

fn says_close<B>(request: &Request<B>) -> bool {
    let options = request.headers().get_all(header::CONNECTION).iter();
    let mut words = options.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    words.any(|word| word.trim().eq_ignore_ascii_case("close"))
}

/// What of a request decides how its answer may look.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub is_h1: bool,
    is_chunked: bool,
    has_clean_head: bool,
    /// The connection ends with the answer, since the request says so.
    pub is_last: bool,
    /// It sends its body only when it is told to go on.
    pub waits_for_word: bool,
    pub has_body: bool,
    pub is_head: bool,
}

impl Kind {
    pub fn of<B: hyper::body::Body>(request: &Request<B>, has_clean_head: bool) -> Kind {
        Kind {
            is_h1: request.version() < Version::HTTP_2,
            is_chunked: request.headers().contains_key(header::TRANSFER_ENCODING),
            has_clean_head,
            is_last: says_close(request),
            waits_for_word: request.headers().contains_key(header::EXPECT),
            has_body: announces_body(request),
            is_head: request.method() == Method::HEAD,
        }
    }

    pub fn check<B>(&self, request: &Request<B>, config: &HttpConfig) -> Result<(), ApiError> {
        if !self.has_clean_head {
            let why = "A line of the head ends with LF alone; each must end with CR LF.";
            return Err(Code::InvalidHeader.because(why));
        }
        check_head(request, config)
    }

    /// What has to be so whatever answered.
    pub fn fit(&self, response: &mut Response, is_body_read: bool) {
        // Where a body or a head ends is what smuggled requests are made of (RFC 9112 §6.3): nothing
        // follows one whose end others may see elsewhere, nor one that nobody will read.
        let ends = self.is_chunked || !self.has_clean_head || !is_body_read;
        if self.is_h1 && ends {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.is_head {
            let length = response.body().size_hint().exact();
            if let Some(length) = length.filter(|length| *length > 0) {
                response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length.into());
            }
            *response.body_mut() = Body::empty();
        }
    }
}

/// What hyper leaves to its user (H83).
fn check_head<B>(request: &Request<B>, config: &HttpConfig) -> Result<(), ApiError> {
    let uri = request.uri();
    let uri_bytes = uri.path_and_query().map_or(0, |p| p.as_str().len());
    if uri_bytes > config.uri_bytes_max {
        return Err(Code::UriTooLong.into());
    }
    // HTTP/2 has its own limit for the whole list.
    let fields = request.headers();
    let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if fields.len() > config.head_fields_max || bytes + uri_bytes > config.head_bytes_max {
        return Err(Code::HeadTooLarge.into());
    }
    let mut hosts = fields.get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    let h1 = request.version() == Version::HTTP_11;
    if second.is_some() || (h1 && host.is_none()) {
        return Err(Code::InvalidHost.into());
    }
    // An absolute target (RFC 9112 §3.2.2) must be for the host that the header names.
    match (uri.authority(), host) {
        (Some(authority), Some(host))
            if !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            Err(Code::InvalidHost.into())
        }
        _ => Ok(()),
    }
}
