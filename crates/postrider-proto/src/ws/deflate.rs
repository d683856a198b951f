//! permessage-deflate (RFC 7692), each message by itself.
//!
//! Context takeover is refused for both sides: a connection at rest then owns no dictionary, which would be 40 KB and more,
//! and a message cannot be told by what another one made of it. What a peer sends is inflated with an eye on the limits (L23).

use super::close::CloseCode;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// The window of what we send, as the client wants it: 9 to 15 bits.
    window_bits: u8,
}

/// Messages shorter than this are sent as they are.
const WORTH_IT_BYTES: usize = 64;
/// So much may come out whatever the ratio is.
const FREE_BYTES: usize = 4 * 1024;
/// The end of each block, which is not sent (§7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];

impl Deflate {
    /// Takes the first of a client's offers (`Sec-WebSocket-Extensions`) that can be kept, with the header that says so.
    pub fn negotiate<'a>(offers: impl IntoIterator<Item = &'a str>) -> Option<(Deflate, String)> {
        offers.into_iter().flat_map(|header| header.split(',')).find_map(Deflate::accept)
    }

    fn accept(offer: &str) -> Option<(Deflate, String)> {
        let mut parts = offer.split(';').map(str::trim);
        if parts.next() != Some("permessage-deflate") {
            return None;
        }
        let mut window_bits = None;
        let mut seen = Vec::new();
        for parameter in parts {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let (name, value) = (name.trim(), value.trim().trim_matches('"'));
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
            match (name, value) {
                ("server_no_context_takeover" | "client_no_context_takeover", "") => {}
                // An upper bound for the client's window, or the word that it knows such bounds: it may have the largest.
                ("client_max_window_bits", "") => {}
                ("client_max_window_bits", bits) if is_bits(bits).is_some() => {}
                // zlib's smallest window is 9 bits.
                ("server_max_window_bits", bits) => window_bits = Some(is_bits(bits).filter(|b| *b > 8)?),
                _ => return None,
            }
        }
        let mut answer =
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover".to_owned();
        if let Some(bits) = window_bits {
            answer += &format!("; server_max_window_bits={bits}");
        }
        Some((Deflate { window_bits: window_bits.unwrap_or(15) }, answer))
    }

    /// The message as it is to be sent, where that is shorter.
    pub(super) fn compress(self, payload: &[u8]) -> Option<Vec<u8>> {
        if payload.len() < WORTH_IT_BYTES {
            return None;
        }
        let mut compress = Compress::new_with_window_bits(Compression::fast(), false, self.window_bits);
        let mut out = Vec::with_capacity(payload.len());
        loop {
            let read = compress.total_in() as usize;
            compress.compress_vec(&payload[read..], &mut out, FlushCompress::Sync).ok()?;
            let is_done = compress.total_in() as usize == payload.len() && out.len() < out.capacity();
            if is_done {
                break;
            }
            if out.len() >= payload.len() {
                return None;
            }
            out.reserve(64);
        }
        out.truncate(out.strip_suffix(&TAIL)?.len());
        (out.len() < payload.len()).then_some(out)
    }

    /// A peer's message, up to a size and to so many times its own.
    pub(super) fn inflate(payload: &[u8], bytes_max: usize, ratio_max: usize) -> Result<Vec<u8>, CloseCode> {
        let bound = bytes_max.min(payload.len().saturating_mul(ratio_max).max(FREE_BYTES));
        let mut inflate = Decompress::new(false);
        let mut out = Vec::new();
        for part in [payload, &TAIL] {
            let begun = inflate.total_in() as usize;
            loop {
                let read = inflate.total_in() as usize - begun;
                let (before, room) = (out.len(), out.capacity() - out.len());
                if room == 0 {
                    // One more than is allowed, so that its first byte is seen.
                    let more = out.len().max(512).min(bound + 1 - out.len().min(bound));
                    out.reserve_exact(more);
                }
                let status = inflate
                    .decompress_vec(&part[read..], &mut out, FlushDecompress::Sync)
                    .map_err(|_| CloseCode::INVALID_UTF8)?;
                if out.len() > bound {
                    return Err(CloseCode::TOO_LARGE);
                }
                let is_read = inflate.total_in() as usize - begun == part.len();
                // A last block ends the data; what a peer puts behind it is not looked at (§7.2.3.5 has one in the middle).
                if status == Status::StreamEnd {
                    return Ok(out);
                }
                if is_read && out.len() < out.capacity() {
                    break;
                }
                if !is_read && out.len() == before && out.len() < out.capacity() {
                    return Err(CloseCode::INVALID_UTF8);
                }
            }
        }
        Ok(out)
    }
}

fn is_bits(text: &str) -> Option<u8> {
    let plain = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|bits| plain && (8..=15).contains(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_offer_that_can_be_kept_is_taken() {
        let bits = |offers: &str| Deflate::negotiate([offers]).map(|(deflate, _)| deflate.window_bits);
        assert_eq!(bits("permessage-deflate"), Some(15));
        assert_eq!(bits("permessage-deflate; client_max_window_bits"), Some(15));
        assert_eq!(
            bits("x-webkit-deflate-frame, permessage-deflate; server_max_window_bits=\"10\""),
            Some(10)
        );
        assert_eq!(bits("permessage-deflate; server_max_window_bits=8, permessage-deflate"), Some(15));
        for bad in [
            "",
            "deflate",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; x",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=09",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        ] {
            assert_eq!(bits(bad), None, "{bad}");
        }
    }

    /// §7.2.3.1 and §7.2.3.5.
    #[test]
    fn the_examples_of_the_rfc_are_read() {
        let examples: [&[u8]; 3] = [
            &[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00],
            &[0x00, 0x05, 0x00, 0xFA, 0xFF, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00],
            &[0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00],
        ];
        for example in examples {
            assert_eq!(Deflate::inflate(example, 100, 20), Ok(b"Hello".to_vec()));
        }
        assert_eq!(Deflate::inflate(&[0xFF; 9], 100, 20), Err(CloseCode::INVALID_UTF8));
    }

    #[test]
    fn what_goes_in_comes_out_and_a_bomb_does_not() {
        for (bits, len) in [(9, 100), (15, 100), (9, 100_000), (12, 100_000)] {
            let payload: Vec<u8> =
                (0..len).map(|i: u32| b"{\"price\": }"[(u64::from(i).pow(2) % 11) as usize]).collect();
            let sent = Deflate { window_bits: bits }.compress(&payload).unwrap();
            assert!(sent.len() < payload.len());
            assert_eq!(Deflate::inflate(&sent, len as usize, usize::MAX >> 20), Ok(payload));
            assert_eq!(
                Deflate::inflate(&sent, len as usize - 1, usize::MAX >> 20),
                Err(CloseCode::TOO_LARGE)
            );
        }
        let bomb = Deflate { window_bits: 15 }.compress(&vec![0; 1 << 20]).unwrap();
        assert_eq!(Deflate::inflate(&bomb, 1 << 21, 20), Err(CloseCode::TOO_LARGE));
        assert_eq!(Deflate { window_bits: 15 }.compress(b"short"), None);
    }
}
