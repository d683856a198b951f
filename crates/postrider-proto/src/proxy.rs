//! The header of the PROXY protocol, versions 1 and 2: what a proxy says about the client before the client's own bytes.
//!
//! The specification is HAProxy's `proxy-protocol.txt`. Only connections of proxies that the settings name are read so: a
//! header is believed without any proof.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The first bytes of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const HEAD_V2: usize = 16;
/// The first bytes of version 1.
const PREFIX: &[u8] = b"PROXY ";
/// `PROXY UNKNOWN` and its line end.
const LINE_MIN: usize = 15;
/// Version 1, with its line end.
const LINE_MAX: usize = 107;
/// Addresses take 36 bytes; the rest are extensions of the proxy's, which nobody here reads.
const PAYLOAD_MAX: usize = 2_048;

/// The longest header that is read.
pub const HEADER_MAX: usize = HEAD_V2 + PAYLOAD_MAX;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// A header that takes the first `len` bytes. No source: the proxy speaks for itself (a health check), or for a client
    /// that has no internet address; then its own address counts.
    Header { len: usize, source: Option<SocketAddr> },
    /// So far it may be a header. So many bytes more belong to it for certain, and perhaps others behind them.
    Incomplete { at_least: usize },
}

/// Why the first bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAHeader(pub &'static str);

/// Reads the header at the beginning of what a connection sent.
pub fn read(bytes: &[u8]) -> Result<Read, NotAHeader> {
    let signature = &SIGNATURE[..bytes.len().min(SIGNATURE.len())];
    if bytes.starts_with(signature) {
        return match HEAD_V2.checked_sub(bytes.len()) {
            None | Some(0) => read_v2(bytes),
            // Nothing was read yet: version 1 is shorter.
            Some(HEAD_V2) => Ok(Read::Incomplete { at_least: LINE_MIN }),
            Some(at_least) => Ok(Read::Incomplete { at_least }),
        };
    }
    if bytes.starts_with(&PREFIX[..bytes.len().min(PREFIX.len())]) {
        return read_v1(bytes);
    }
    Err(NotAHeader("the connection does not begin with a PROXY header"))
}

/// Whether these may be the first bytes of a header, for a word about proxies that the settings do not name.
pub fn is_likely(bytes: &[u8]) -> bool {
    bytes.starts_with(PREFIX) || bytes.starts_with(&SIGNATURE)
}

fn read_v1(bytes: &[u8]) -> Result<Read, NotAHeader> {
    let window = &bytes[..bytes.len().min(LINE_MAX)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        if bytes.len() >= LINE_MAX {
            return Err(NotAHeader("a PROXY line has no end within 107 bytes"));
        }
        return Ok(Read::Incomplete { at_least: LINE_MIN.saturating_sub(bytes.len()).max(1) });
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| NotAHeader("a PROXY line is not text"))?;
    let source = source_of_line(line).ok_or(NotAHeader("a PROXY line has no valid addresses"))?;
    Ok(Read::Header { len: end + 2, source })
}

/// `PROXY TCP4 SOURCE DESTINATION PORT PORT`, or `PROXY UNKNOWN` with anything behind it.
fn source_of_line(line: &str) -> Option<Option<SocketAddr>> {
    let mut words = line.split(' ');
    if words.next() != Some("PROXY") {
        return None;
    }
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let (source, destination, from, to) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let port = |text: &str| -> Option<u16> {
        let is_plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        text.parse().ok().filter(|_| is_plain)
    };
    let (source, _) = (address(source)?, address(destination)?);
    let (from, _) = (port(from)?, port(to)?);
    words.next().is_none().then_some(Some(SocketAddr::new(source, from)))
}

fn read_v2(bytes: &[u8]) -> Result<Read, NotAHeader> {
    let (version, family) = (bytes[12], bytes[13]);
    let payload_len = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if version >> 4 != 2 {
        return Err(NotAHeader("a PROXY header is of an unknown version"));
    }
    if payload_len > PAYLOAD_MAX {
        return Err(NotAHeader("a PROXY header is too long"));
    }
    let len = HEAD_V2 + payload_len;
    let Some(payload) = bytes.get(HEAD_V2..len) else {
        return Ok(Read::Incomplete { at_least: len - bytes.len() });
    };
    let source = match (version & 0x0f, family) {
        // The proxy's own connection.
        (0, _) => None,
        (1, 0x11) => Some(v4_source(payload).ok_or(NotAHeader("a PROXY header lacks its addresses"))?),
        (1, 0x21) => Some(v6_source(payload).ok_or(NotAHeader("a PROXY header lacks its addresses"))?),
        // Clients of UNIX sockets, datagrams, and what the proxy could not tell.
        (1, _) => None,
        _ => return Err(NotAHeader("a PROXY header has an unknown command")),
    };
    Ok(Read::Header { len, source })
}

fn v4_source(payload: &[u8]) -> Option<SocketAddr> {
    let at: [u8; 12] = payload.get(..12)?.try_into().ok()?;
    let address = Ipv4Addr::new(at[0], at[1], at[2], at[3]);
    Some(SocketAddr::new(address.into(), u16::from_be_bytes([at[8], at[9]])))
}

fn v6_source(payload: &[u8]) -> Option<SocketAddr> {
    let at = payload.get(..36)?;
    let address: [u8; 16] = at[..16].try_into().ok()?;
    Some(SocketAddr::new(Ipv6Addr::from(address).into(), u16::from_be_bytes([at[32], at[33]])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    const V4: [u8; 12] = [203, 0, 113, 7, 192, 0, 2, 1, 0xd9, 0x03, 0x07, 0x5b];

    fn source(bytes: &[u8]) -> Option<SocketAddr> {
        match read(bytes) {
            Ok(Read::Header { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_versions_tell_the_source_and_leave_what_follows() {
        let v6: Vec<u8> = [&Ipv6Addr::LOCALHOST.octets()[..], &[0; 16], &[0, 80, 0, 81]].concat();
        let mut extended = V4.to_vec();
        extended.extend([0x04, 0, 3, 1, 2, 3]);
        for (header, expected) in [
            (b"PROXY TCP4 203.0.113.7 192.0.2.1 55555 1883\r\n".to_vec(), Some("203.0.113.7:55555")),
            (b"PROXY TCP6 2001:db8::7 ::1 5 1883\r\n".to_vec(), Some("[2001:db8::7]:5")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 what ever\r\n".to_vec(), None),
            (v2(1, 0x11, &V4), Some("203.0.113.7:55555")),
            (v2(1, 0x11, &extended), Some("203.0.113.7:55555")),
            (v2(1, 0x21, &v6), Some("[::1]:80")),
            (v2(0, 0x11, &V4), None),
            (v2(0, 0, &[]), None),
            (v2(1, 0x31, &[0; 216]), None),
        ] {
            let mut bytes = header.clone();
            bytes.extend_from_slice(b"\x10\x0crest");
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(read(&bytes), Ok(Read::Header { len: header.len(), source: expected }), "{header:?}");
            // However it is cut, it is waited for.
            for cut in 0..header.len() {
                let Ok(Read::Incomplete { at_least }) = read(&header[..cut]) else {
                    panic!("{cut} of {header:?}")
                };
                assert!(at_least > 0 && cut + at_least <= header.len(), "{cut} of {header:?}");
            }
            assert!(is_likely(&bytes) && is_likely(&header[..12]) && !is_likely(&header[..5]));
        }
        assert_eq!(source(b"PROXY TCP4 1.2.3.4 5.6.7.8 0 65535\r\n"), Some("1.2.3.4:0".parse().unwrap()));
    }

    #[test]
    fn anything_else_is_no_header() {
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        let unknown_version = [&SIGNATURE[..], &[0x11, 0x11, 0, 0]].concat();
        let oversized = [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
        for bytes in [
            b"\x10\x0c\0\x04MQTT".to_vec(),
            b"<?xml".to_vec(),
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 192.0.2.1 55555\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 192.0.2.1 55555 1883 x\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 192.0.2.1 65536 1883\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 192.0.2.1 +5 1883\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 192.0.2.1 05 1883\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 5 1883\r\n".to_vec(),
            b"PROXY TCP6 1.2.3.4 ::1 5 1883\r\n".to_vec(),
            b"PROXY UDP4 1.2.3.4 1.2.3.4 5 1883\r\n".to_vec(),
            b"PROXY  TCP4 1.2.3.4 1.2.3.4 5 1883\r\n".to_vec(),
            b"PROXY TCP4 \xff.2.3.4 1.2.3.4 5 1883\r\n".to_vec(),
            long,
            unknown_version,
            oversized,
            v2(2, 0x11, &V4),
            v2(1, 0x11, &V4[..11]),
            v2(1, 0x21, &V4),
        ] {
            assert!(read(&bytes).is_err(), "{bytes:?}");
        }
    }
}
