//! The opening handshake (RFC 6455 §4): pure functions over what the HTTP server read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// §1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What the 101 answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// For `Sec-WebSocket-Accept`.
    pub accept: String,
    /// For `Sec-WebSocket-Protocol`: the first of the client's that the server knows. With none in common the
    /// header is left out; where one is needed, as for MQTT (MQTT-6.0.0-3), the caller answers 400.
    pub subprotocol: Option<&'static str>,
}

/// Why a request does not become a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("the method is not GET")]
    Method,
    #[error("no upgrade to websocket is asked for")]
    NotAnUpgrade,
    #[error("Sec-WebSocket-Version is not 13")]
    Version,
    #[error("Sec-WebSocket-Key is missing, doubled, or not 16 bytes in base64")]
    Key,
}

impl HandshakeError {
    /// The HTTP status to answer. With 426 goes the header `Sec-WebSocket-Version: 13` (§4.4).
    pub fn status(self) -> u16 {
        match self {
            HandshakeError::Method => 405,
            HandshakeError::NotAnUpgrade | HandshakeError::Key => 400,
            HandshakeError::Version => 426,
        }
    }
}

impl Handshake {
    /// Judges a request (§4.2.1). Names of headers may have any case. The origin is judged by the caller, who knows its list.
    pub fn of<'a>(
        method: &str,
        headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
        subprotocols: &[&'static str],
    ) -> Result<Handshake, HandshakeError> {
        let (mut is_upgrade, mut is_connection_upgrade) = (false, false);
        let (mut keys, mut versions) = (Vec::new(), Vec::new());
        let mut subprotocol = None;
        for (name, value) in headers {
            let Ok(value) = std::str::from_utf8(value) else { continue };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "upgrade" => is_upgrade |= has_token(value, "websocket"),
                "connection" => is_connection_upgrade |= has_token(value, "upgrade"),
                "sec-websocket-key" => keys.push(value),
                "sec-websocket-version" => versions.push(value),
                "sec-websocket-protocol" => {
                    let known = |wanted: &str| subprotocols.iter().copied().find(|known| *known == wanted);
                    subprotocol = subprotocol.or_else(|| value.split(',').map(str::trim).find_map(known));
                }
                _ => {}
            }
        }
        if method != "GET" {
            return Err(HandshakeError::Method);
        }
        if !is_upgrade || !is_connection_upgrade {
            return Err(HandshakeError::NotAnUpgrade);
        }
        if versions != ["13"] {
            return Err(HandshakeError::Version);
        }
        let &[key] = keys.as_slice() else { return Err(HandshakeError::Key) };
        if STANDARD.decode(key).map_or(0, |nonce| nonce.len()) != 16 {
            return Err(HandshakeError::Key);
        }
        Ok(Handshake { accept: accept_key(key), subprotocol })
    }
}

/// A token in a comma-separated list, in any case.
fn has_token(list: &str, token: &str) -> bool {
    list.split(',').any(|one| one.trim().eq_ignore_ascii_case(token))
}

/// `Sec-WebSocket-Accept` for a key (§4.2.2); a client compares with it.
pub fn accept_key(key: &str) -> String {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    STANDARD.encode(digest)
}

/// The head of a client's request. `key` is 16 random bytes in base64, drawn by the caller.
pub fn client_request(host: &str, path: &str, key: &str, subprotocol: Option<&str>) -> String {
    let subprotocol =
        subprotocol.map_or_else(String::new, |name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{subprotocol}\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &[u8]); 4] = [
        ("Upgrade", b"WebSocket"),
        ("connection", b"keep-alive, Upgrade"),
        ("Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", b"13"),
    ];

    fn without(name: &str) -> Vec<(&'static str, &'static [u8])> {
        GOOD.into_iter().filter(|(header, _)| *header != name).collect()
    }

    fn with(
        base: Vec<(&'static str, &'static [u8])>,
        name: &'static str,
        value: &'static [u8],
    ) -> Vec<(&'static str, &'static [u8])> {
        base.into_iter().chain([(name, value)]).collect()
    }

    #[test]
    fn the_key_of_the_rfc_gives_the_accept_of_the_rfc() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let handshake = Handshake::of("GET", GOOD, &["mqtt"]).unwrap();
        assert_eq!(handshake, Handshake { accept: "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".into(), subprotocol: None });
    }

    #[test]
    fn the_clients_first_subprotocol_that_is_known_is_taken() {
        let headers = with(GOOD.to_vec(), "Sec-WebSocket-Protocol", b"soap, mqttv3.1 ,mqtt");
        assert_eq!(
            Handshake::of("GET", headers, &["mqtt", "mqttv3.1"]).unwrap().subprotocol,
            Some("mqttv3.1")
        );
    }

    #[test]
    fn a_request_that_is_none_is_answered_with_its_status() {
        let status = |method: &str, headers: Vec<(&'static str, &'static [u8])>| {
            Handshake::of(method, headers, &[]).map_err(HandshakeError::status).unwrap_err()
        };
        assert_eq!(status("POST", GOOD.to_vec()), 405);
        assert_eq!(status("GET", without("Upgrade")), 400);
        assert_eq!(status("GET", without("connection")), 400);
        assert_eq!(status("GET", without("Sec-WebSocket-Key")), 400);
        assert_eq!(status("GET", with(GOOD.to_vec(), "sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")), 400);
        assert_eq!(status("GET", with(without("Sec-WebSocket-Key"), "sec-websocket-key", b"c2hvcnQ=")), 400);
        assert_eq!(status("GET", without("Sec-WebSocket-Version")), 426);
        assert_eq!(
            status("GET", with(without("Sec-WebSocket-Version"), "Sec-WebSocket-Version", b"12")),
            426
        );
    }
}
