//! What deliveries and places in an inbox are called outside: names that tell nothing, and that
//! mean nothing in another history.
//!
//! A delivery is a number in the order of all commands of the server. That number is nobody's
//! business, and after a restore from a copy it is given once more, to another message. So a name
//! is one block of AES: the number, and the id of the server's start that stored the delivery
//! (`ARCHITECTURE.md`, invariant 7). A restart knows the earlier starts and gives a delivery the
//! same name again, by which a client knows a repeat. In a folder that was restored, another start
//! has the number, and the name is not one that was given out.

use aes::Aes128;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use postrider_core::port::{Place, Position, Start, Store};
use postrider_proto::Cursor;
use postrider_proto::json::{Names, plain_number};
use sha2::Sha256;

/// A number that no delivery has: what a name of another history stands for.
const OF_NONE: u64 = (1 << 63) - 1;
/// Letters of a name.
const LETTERS: usize = 22;

/// A number that only the server can make of these bytes: nobody else has the key. `what` keeps the numbers of one use
/// from those of another.
pub fn keyed(key: &[u8; 32], what: &str, bytes: &[u8]) -> [u8; 32] {
    // Keys of every length fit this.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&[0; 64].into()));
    mac.update(what.as_bytes());
    mac.update(&[0]);
    mac.update(bytes);
    mac.finalize().into_bytes().into()
}

/// What a block names. The halves of a cursor are no deliveries, and not each other.
#[derive(Clone, Copy)]
enum Kind {
    Delivery = 0,
    Urgent = 1,
    Normal = 2,
}

/// See the module. What it needs of the store does not change while the server runs.
pub struct SealedNames {
    cipher: Aes128,
    /// In order of time.
    starts: Box<[Start]>,
}

impl std::fmt::Debug for SealedNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedNames").finish_non_exhaustive()
    }
}

/// Why a cursor is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadCursor {
    /// It is no cursor.
    Malformed,
    /// It was not given out in this history.
    Foreign,
}

impl SealedNames {
    pub fn of(store: &dyn Store) -> SealedNames {
        let derived = keyed(&store.cursor_key(), "names of deliveries", &[]);
        let half: [u8; 16] = std::array::from_fn(|i| derived[i]);
        SealedNames { cipher: Aes128::new(&Array::from(half)), starts: store.starts().into() }
    }

    /// The start that executed a command. What came before the oldest that is known counts as its.
    fn start_of(&self, number: u64) -> u64 {
        match &*self.starts {
            // Nearly everything that is under way was stored by the present one.
            [.., last] if number > last.after => last.id,
            starts => {
                let later = starts.partition_point(|start| start.after < number);
                starts.get(later.saturating_sub(1)).map_or(0, |start| start.id)
            }
        }
    }

    /// The plain block.
    fn word(&self, kind: Kind, number: u64) -> u64 {
        self.start_of(number).wrapping_add(kind as u64)
    }

    fn seal(&self, kind: Kind, number: u64) -> [u8; 16] {
        let mut block = [0; 16];
        block[..8].copy_from_slice(&self.word(kind, number).to_le_bytes());
        block[8..].copy_from_slice(&number.to_le_bytes());
        let mut block = Array::from(block);
        self.cipher.encrypt_block(&mut block);
        block.into()
    }

    /// The number, where it was given out in this history.
    fn open(&self, kind: Kind, sealed: [u8; 16]) -> Option<u64> {
        let mut block = Array::from(sealed);
        self.cipher.decrypt_block(&mut block);
        let block: [u8; 16] = block.into();
        let (word, number) = block.split_first_chunk::<8>()?;
        let number = u64::from_le_bytes(number.try_into().ok()?);
        (u64::from_le_bytes(*word) == self.word(kind, number)).then_some(number)
    }

    /// A cursor as it was given out, of this release or of one that did not seal them.
    pub fn read_cursor(&self, store: &dyn Store, text: &str) -> Result<Position, BadCursor> {
        if let Some((epoch, position)) = plain_cursor(text) {
            let last = Place::Command(position.urgent.max(position.normal));
            return store.knows(epoch, last).then_some(position).ok_or(BadCursor::Foreign);
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| BadCursor::Malformed)?;
        let (urgent, normal) = bytes.split_first_chunk::<16>().ok_or(BadCursor::Malformed)?;
        let normal = normal.try_into().map_err(|_| BadCursor::Malformed)?;
        let opened = self.open(Kind::Urgent, *urgent).zip(self.open(Kind::Normal, normal));
        let (urgent, normal) = opened.ok_or(BadCursor::Foreign)?;
        Ok(Position { urgent, normal })
    }
}

impl Names for SealedNames {
    fn write_delivery(&self, number: u64, into: &mut String) {
        BASE64_URL_SAFE_NO_PAD.encode_string(self.seal(Kind::Delivery, number), into);
    }

    fn read_delivery(&self, name: &str) -> Option<u64> {
        if plain_number(name).is_some() {
            // Earlier releases gave out bare numbers. Which history they are of cannot be told.
            return Some(OF_NONE);
        }
        if name.len() != LETTERS {
            return None;
        }
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(name).ok()?;
        Some(self.open(Kind::Delivery, sealed.try_into().ok()?).unwrap_or(OF_NONE))
    }

    fn write_cursor(&self, Cursor { urgent, normal }: Cursor, into: &mut String) {
        let mut both = [0; 32];
        both[..16].copy_from_slice(&self.seal(Kind::Urgent, urgent));
        both[16..].copy_from_slice(&self.seal(Kind::Normal, normal));
        BASE64_URL_SAFE_NO_PAD.encode_string(both, into);
    }
}

/// `<epoch>-<urgent>-<normal>`, as it was given out before it was sealed.
fn plain_cursor(text: &str) -> Option<(u64, Position)> {
    let mut parts = text.split('-');
    let epoch = parts.next().filter(|part| part.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let epoch = u64::from_str_radix(epoch, 16).ok()?;
    let position = Position { urgent: plain_number(parts.next()?)?, normal: plain_number(parts.next()?)? };
    parts.next().is_none().then_some((epoch, position))
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_store::MemoryStore;

    fn names(starts: &[(u64, u64)]) -> SealedNames {
        let starts = starts.iter().map(|(id, after)| Start { id: *id, after: *after });
        SealedNames { starts: starts.collect(), ..SealedNames::of(&MemoryStore::new()) }
    }

    fn name(names: &SealedNames, number: u64) -> String {
        let mut name = String::new();
        names.write_delivery(number, &mut name);
        name
    }

    #[test]
    fn a_restart_keeps_the_names_and_a_restored_copy_knows_only_those_from_before_it() {
        let first = names(&[(70, 0)]);
        let second = names(&[(70, 0), (71, 40)]);
        // Made when the first start had come to 30, and started then.
        let copy = names(&[(70, 0), (72, 30)]);
        for number in 1..40 {
            assert_eq!(name(&first, number), name(&second, number));
            assert_eq!(second.read_delivery(&name(&first, number)), Some(number));
            let known = if number <= 30 { number } else { OF_NONE };
            assert_eq!(copy.read_delivery(&name(&first, number)), Some(known), "{number}");
        }
        assert_eq!(copy.read_delivery(&name(&second, 41)), Some(OF_NONE));
        assert_eq!(second.read_delivery(&name(&copy, 31)), Some(OF_NONE));
    }

    #[test]
    fn names_tell_nothing_and_others_are_of_no_delivery() {
        let names = names(&[(70, 0)]);
        let (one, next) = (name(&names, 184), name(&names, 185));
        let same = one.bytes().zip(next.bytes()).filter(|(a, b)| a == b).count();
        assert!(one.len() == LETTERS && same < 6, "{one} {next}");
        let mut other = one.clone();
        other.replace_range(3..4, if &one[3..4] == "A" { "B" } else { "A" });
        assert_eq!(names.read_delivery(&other), Some(OF_NONE));
        assert_eq!(names.read_delivery("184"), Some(OF_NONE), "an earlier release's");
        for bad in ["", "-1", "x", &one[1..], &format!("{one}A"), &"*".repeat(LETTERS)] {
            assert_eq!(names.read_delivery(bad), None, "{bad}");
        }
    }

    #[test]
    fn cursors_open_as_they_were_sealed_and_those_of_earlier_releases_too() {
        let store = MemoryStore::new();
        let names = SealedNames::of(&store);
        let mut text = String::new();
        names.write_cursor(Cursor { urgent: 7, normal: 184 }, &mut text);
        assert_eq!(names.read_cursor(&store, &text), Ok(Position { urgent: 7, normal: 184 }));
        let swapped = BASE64_URL_SAFE_NO_PAD.decode(&text).map(|b| [&b[16..], &b[..16]].concat());
        let swapped = BASE64_URL_SAFE_NO_PAD.encode(swapped.unwrap());
        assert_eq!(names.read_cursor(&store, &swapped), Err(BadCursor::Foreign));
        assert_eq!(names.read_cursor(&store, "1-0-0"), Ok(Position::default()));
        assert_eq!(names.read_cursor(&store, "1-0-9"), Err(BadCursor::Foreign));
        for bad in ["", "-", "1-0", "1-0-0-0", "g-0-0", "1-+0-0", &text[1..]] {
            assert_eq!(names.read_cursor(&store, bad), Err(BadCursor::Malformed), "{bad}");
        }
    }
}
