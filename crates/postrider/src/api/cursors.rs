//! Cursors that tell nothing but where to read on: sealed with a key of the store's, since what they hold (how many commands
//! there were, of all apps) is nobody's business, and bound to the history that gave them out.

use super::Api;
use super::error::{ApiError, Code};
use crate::names::keyed;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use postrider_core::port::{Place, Store};

/// Bytes of the seal, which is also where the stream that hides the rest comes from.
const SEAL: usize = 8;
const PLAIN: usize = 32;

/// Where the next page of a list begins. `kind` keeps the cursor of one list from another.
pub fn of_list(api: &Api, kind: &str, at: u128) -> String {
    let store = &api.engine.store;
    seal(&**store, kind, (store.epoch(), store.last_command(), at))
}

pub fn read_list(api: &Api, kind: &str, text: Option<&str>) -> Result<Option<u128>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let store = &api.engine.store;
    let (epoch, command, at) = open(&**store, kind, text).ok_or(Code::InvalidCursor)?;
    match store.knows(epoch, Place::Command(command)) {
        true => Ok(Some(at)),
        false => Err(Code::CursorFromOtherHistory.into()),
    }
}

/// Behind a receipt. The epoch is that of the moment in which the page was read.
pub fn of_receipt(store: &dyn Store, epoch: u64, position: u64) -> String {
    seal(store, "receipt", (epoch, position, 0))
}

/// What a receipt is known by: always the same, whoever asks and however often the server started.
pub fn receipt_id(store: &dyn Store, position: u64) -> String {
    let place = [store.epoch_of(position), position].map(u64::to_le_bytes).concat();
    let whole = keyed(&store.cursor_key(), "id of receipt", &place);
    format!("evt_{}", BASE64_URL_SAFE_NO_PAD.encode(&whole[..15]))
}

pub fn read_receipt(api: &Api, text: &str) -> Result<u64, ApiError> {
    let store = &api.engine.store;
    let sealed = open(&**store, "receipt", text).map(|(epoch, position, _)| (epoch, position));
    let (epoch, position) = sealed.or_else(|| plain(text)).ok_or(Code::InvalidCursor)?;
    match store.knows(epoch, Place::Receipt(position)) {
        true => Ok(position),
        false => Err(Code::CursorFromOtherHistory.into()),
    }
}

/// `<epoch>-<position>`, as they were given out before they were sealed.
fn plain(text: &str) -> Option<(u64, u64)> {
    let (epoch, position) = text.split_once('-')?;
    Some((u64::from_str_radix(epoch, 16).ok()?, position.parse().ok()?))
}

fn seal(store: &dyn Store, kind: &str, (epoch, number, at): (u64, u64, u128)) -> String {
    let mut plain = [0; PLAIN];
    plain[..8].copy_from_slice(&epoch.to_le_bytes());
    plain[8..16].copy_from_slice(&number.to_le_bytes());
    plain[16..].copy_from_slice(&at.to_le_bytes());
    let key = store.cursor_key();
    let tag = tag(&key, kind, &plain);
    let mut bytes = tag.to_vec();
    bytes.extend(plain.iter().zip(stream(&key, &tag)).map(|(byte, other)| byte ^ other));
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn open(store: &dyn Store, kind: &str, text: &str) -> Option<(u64, u64, u128)> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
    let (seal, hidden) = bytes.split_first_chunk::<SEAL>()?;
    let hidden: &[u8; PLAIN] = hidden.try_into().ok()?;
    let key = store.cursor_key();
    let stream = stream(&key, seal);
    let plain: [u8; PLAIN] = std::array::from_fn(|i| hidden[i] ^ stream[i]);
    if tag(&key, kind, &plain) != *seal {
        return None;
    }
    let word = |at: usize| Some(u64::from_le_bytes(plain.get(at..at + 8)?.try_into().ok()?));
    Some((word(0)?, word(8)?, u128::from_le_bytes(plain[16..].try_into().ok()?)))
}

fn tag(key: &[u8; 32], kind: &str, plain: &[u8; PLAIN]) -> [u8; SEAL] {
    let whole = keyed(key, &format!("cursor of {kind}"), plain);
    std::array::from_fn(|i| whole[i])
}

fn stream(key: &[u8; 32], seal: &[u8; SEAL]) -> [u8; PLAIN] {
    keyed(key, "cursor stream", seal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_store::MemoryStore;

    #[test]
    fn a_cursor_opens_as_it_was_sealed_and_no_other_does() {
        let store = MemoryStore::new();
        let held = (7, 184, 3 << 100);
        let text = seal(&store, "device", held);
        assert_eq!(open(&store, "device", &text), Some(held));
        assert_eq!(open(&store, "message", &text), None);
        for at in 0..text.len() {
            for letter in ["A", "B", "-", "x"] {
                let mut other = text.clone();
                other.replace_range(at..=at, letter);
                assert!(other == text || open(&store, "device", &other).is_none(), "{other}");
            }
            assert_eq!(open(&store, "device", &text[..at]), None);
        }
    }

    #[test]
    fn neighbours_have_nothing_in_common() {
        let store = MemoryStore::new();
        let bytes = |at| BASE64_URL_SAFE_NO_PAD.decode(seal(&store, "receipt", (7, at, 0))).unwrap();
        let same = bytes(1000).iter().zip(bytes(1001)).filter(|(a, b)| **a == *b).count();
        assert!(same < 8, "{same} of 40 bytes");
    }
}
