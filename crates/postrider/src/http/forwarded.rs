//! Which client a request came from, where trusted proxies stand before this server.
//!
//! Each proxy adds the address that it was called from on the right. So the chain is read from the
//! right, and the first address that is no trusted proxy's is the client: what stands to the left of
//! it was written by that client, and may be anything.

use crate::networks::Networks;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use std::net::{IpAddr, SocketAddr};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// In the extensions of a request: it came through a trusted proxy.
#[derive(Clone, Copy, Debug)]
pub struct ByProxy;

/// The client, as the proxies tell of it.
pub fn client(headers: &HeaderMap, proxy: SocketAddr, trusted: &Networks) -> SocketAddr {
    let old = chain(headers, &X_FORWARDED_FOR, |line| split(line, b',').map(address).collect());
    let new = chain(headers, &header::FORWARDED, |line| {
        split(line, b',').map(|element| parameter(element, "for").and_then(address)).collect()
    });
    let last_untrusted = |chain: Vec<Option<SocketAddr>>| {
        let mut last = proxy;
        for hop in chain.into_iter().rev() {
            // A name that hides an address, or nonsense: the proxy that passed it on is all that is known.
            let Some(hop) = hop else { break };
            last = hop;
            if !trusted.contain(hop.ip()) {
                break;
            }
        }
        last
    };
    match (old.map(last_untrusted), new.map(last_untrusted)) {
        // A proxy writes one of the two and may pass the other on as its client wrote it. Where they
        // disagree neither is believed.
        (Some(old), Some(new)) if old.ip() != new.ip() => proxy,
        (Some(client), _) | (None, Some(client)) => client,
        (None, None) => proxy,
    }
}

/// The host that the client asked for, where the nearest proxy tells another than it asks for.
pub fn host(headers: &HeaderMap) -> Option<HeaderValue> {
    let last = |name: &HeaderName| headers.get_all(name).iter().next_back();
    let host = match (last(&X_FORWARDED_HOST), last(&header::FORWARDED)) {
        (Some(list), _) => split(list.as_bytes(), b',').last()?,
        (None, Some(list)) => parameter(split(list.as_bytes(), b',').last()?, "host")?,
        (None, None) => return None,
    };
    HeaderValue::from_bytes(host).ok().filter(|host| !host.is_empty())
}

/// All hops of a header, from the outermost proxy to the nearest; `None` where the header is not there.
fn chain(
    headers: &HeaderMap,
    name: &HeaderName,
    read: impl Fn(&[u8]) -> Vec<Option<SocketAddr>>,
) -> Option<Vec<Option<SocketAddr>>> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    Some(lines.flat_map(|line| read(line.as_bytes())).collect())
}

/// The parts between separators that stand outside of quotes, without blanks around them.
fn split(text: &[u8], separator: u8) -> impl DoubleEndedIterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let mut ends = Vec::new();
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ if *byte == separator && !is_quoted => ends.push(at),
            _ => {}
        }
    }
    ends.push(text.len());
    let mut start = 0;
    let parts: Vec<&[u8]> = ends
        .into_iter()
        .map(|end| {
            let part = &text[start..end];
            start = end + 1;
            part.trim_ascii()
        })
        .collect();
    parts.into_iter()
}

/// A parameter of an element of `Forwarded` (RFC 7239 §4), without its quotes.
fn parameter<'a>(element: &'a [u8], name: &str) -> Option<&'a [u8]> {
    split(element, b';').find_map(|pair| {
        let at = pair.iter().position(|b| *b == b'=')?;
        let (key, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        key.eq_ignore_ascii_case(name.as_bytes()).then(|| unquoted(value))
    })
}

/// Addresses and hosts need no escapes, so that a quoted string is what stands between its quotes.
fn unquoted(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\"").and_then(|t| t.strip_suffix(b"\"")).unwrap_or(text)
}

/// An address with or without a port; IPv6 in brackets or bare.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(unquoted(text)).ok()?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address);
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    Some(SocketAddr::new(bare.parse::<IpAddr>().ok()?, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_of(lines: &[(&'static str, &'static str)]) -> String {
        let trusted = ["10.0.0.0/8", "fd00::/8", "127.0.0.1"].map(|n| n.parse().unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        client(&headers, ([127, 0, 0, 1], 9).into(), &trusted.into_iter().collect()).ip().to_string()
    }

    #[test]
    fn the_rightmost_address_that_no_trusted_proxy_has_is_the_client() {
        for (name, list, expected) in [
            ("x-forwarded-for", "203.0.113.7", "203.0.113.7"),
            ("x-forwarded-for", "198.51.100.1, 203.0.113.7", "203.0.113.7"),
            ("x-forwarded-for", "198.51.100.1, 203.0.113.7 , 10.1.1.1,10.2.2.2", "203.0.113.7"),
            ("x-forwarded-for", "10.1.1.1, 10.2.2.2", "10.1.1.1"),
            ("x-forwarded-for", "203.0.113.7:4711", "203.0.113.7"),
            ("x-forwarded-for", "2001:db8::7, [fd00::1]:80", "2001:db8::7"),
            ("x-forwarded-for", "203.0.113.7, unknown, 10.1.1.1", "10.1.1.1"),
            ("x-forwarded-for", "203.0.113.7, nonsense", "127.0.0.1"),
            ("x-forwarded-for", "", "127.0.0.1"),
            ("forwarded", "for=203.0.113.7", "203.0.113.7"),
            ("forwarded", "for=198.51.100.1, For=\"203.0.113.7:80\";proto=https;by=10.0.0.1", "203.0.113.7"),
            ("forwarded", "for=\"[2001:db8::7]:4711\" ;host=\"a,b;c\", for=10.1.1.1", "2001:db8::7"),
            ("forwarded", "for=203.0.113.7, for=_hidden, for=10.1.1.1", "10.1.1.1"),
            ("forwarded", "proto=https", "127.0.0.1"),
        ] {
            assert_eq!(client_of(&[(name, list)]), expected, "{name}: {list}");
        }
    }

    #[test]
    fn lines_of_a_header_are_one_list_and_two_headers_must_agree() {
        let old = "x-forwarded-for";
        assert_eq!(client_of(&[(old, "198.51.100.1"), (old, "203.0.113.7")]), "203.0.113.7");
        assert_eq!(client_of(&[(old, "203.0.113.7"), ("forwarded", "for=203.0.113.7")]), "203.0.113.7");
        assert_eq!(client_of(&[(old, "203.0.113.7"), ("forwarded", "for=198.51.100.1")]), "127.0.0.1");
        assert_eq!(client_of(&[]), "127.0.0.1");
    }

    #[test]
    fn the_host_is_what_the_nearest_proxy_says() {
        let host_of = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            host(&headers).map(|host| host.to_str().unwrap().to_owned())
        };
        let x = "x-forwarded-host";
        assert_eq!(host_of(&[(x, "evil.example, app.example")]).as_deref(), Some("app.example"));
        assert_eq!(host_of(&[("forwarded", "for=x;host=a, host=\"b:8\"")]).as_deref(), Some("b:8"));
        assert_eq!(host_of(&[(x, "")]), None);
        assert_eq!(host_of(&[]), None);
    }
}
