//! Secrets as they are stored: sealed with XChaCha20-Poly1305 by a key that lies apart from the
//! data, so that a copy of the data alone opens none of them.
//!
//! Each secret is bound to the place it belongs to (the *context*): moved elsewhere in the data, it
//! does not open. Stored are a version, which key sealed it, the nonce and the sealed bytes.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const KEY_ID: usize = 4;
const NONCE: usize = 24;
const KEY: usize = 32;
/// Keys that a file may hold.
const KEYS_MAX: usize = 16;

/// Keys: the first one seals, all of them open.
pub struct Keys(Vec<Key>);

struct Key {
    id: [u8; KEY_ID],
    cipher: XChaCha20Poly1305,
}

/// Why there are no keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key is 64 hexadecimal digits; one in each line, the first of which seals")]
pub struct NoKeys;

/// Why a sealed secret does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    #[error("no key that is known sealed it")]
    OtherKey,
    #[error("it is damaged, or belongs elsewhere")]
    Damaged,
}

impl Keys {
    /// Reads keys, one in each line.
    pub fn parse(text: &str) -> Result<Keys, NoKeys> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Vec<Key> = lines.map(Key::parse).collect::<Result<_, _>>()?;
        if keys.is_empty() || keys.len() > KEYS_MAX { Err(NoKeys) } else { Ok(Keys(keys)) }
    }

    /// `nonce`: chance, new for each secret.
    pub fn seal(&self, context: &str, plain: &[u8], nonce: [u8; NONCE]) -> Option<Box<[u8]>> {
        let key = self.0.first()?;
        let payload = Payload { msg: plain, aad: context.as_bytes() };
        let sealed = key.cipher.encrypt(&XNonce::from(nonce), payload).ok()?;
        Some([&[VERSION], &key.id[..], &nonce, &sealed].concat().into())
    }

    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let rest = sealed.strip_prefix(&[VERSION]).ok_or(Unopened::Damaged)?;
        let (id, rest) = rest.split_first_chunk::<KEY_ID>().ok_or(Unopened::Damaged)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>().ok_or(Unopened::Damaged)?;
        let key = self.0.iter().find(|key| key.id == *id).ok_or(Unopened::OtherKey)?;
        let payload = Payload { msg: sealed, aad: context.as_bytes() };
        let opened = key.cipher.decrypt(&XNonce::from(*nonce), payload);
        opened.map(Zeroizing::new).map_err(|_| Unopened::Damaged)
    }
}

impl Key {
    fn parse(text: &str) -> Result<Key, NoKeys> {
        let mut bytes = Zeroizing::new([0u8; KEY]);
        if text.len() != 2 * KEY || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoKeys);
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = text
                .get(2 * i..2 * i + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or(NoKeys)?;
        }
        let hash = Sha256::new().chain_update(b"postrider secrets key").chain_update(*bytes).finalize();
        let id = std::array::from_fn(|i| hash[i]);
        let cipher = XChaCha20Poly1305::new_from_slice(&*bytes).map_err(|_| NoKeys)?;
        Ok(Key { id, cipher })
    }
}

/// A key as a line of a key file.
pub fn key_line(key: &[u8; KEY]) -> Zeroizing<String> {
    Zeroizing::new(key.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Keys {
        let lines: Vec<_> = bytes.iter().map(|byte| key_line(&[*byte; 32]).to_string()).collect();
        Keys::parse(&lines.join("\n")).unwrap()
    }

    #[test]
    fn a_secret_opens_where_it_was_sealed_and_nowhere_else() {
        let one = keys(&[1]);
        let sealed = one.seal("app 0, webhook a", b"secret", [9; 24]).unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(one.open("app 0, webhook a", &sealed).as_deref(), Ok(&b"secret".to_vec()));
        assert_eq!(one.open("app 1, webhook a", &sealed), Err(Unopened::Damaged));
        for at in 0..sealed.len() {
            let mut other = sealed.clone();
            other[at] ^= 1;
            assert!(one.open("app 0, webhook a", &other).is_err(), "byte {at}");
            assert!(one.open("app 0, webhook a", &sealed[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let old = keys(&[1]).seal("c", b"x", [0; 24]).unwrap();
        let both = keys(&[2, 1]);
        assert!(both.open("c", &old).is_ok());
        let new = both.seal("c", b"x", [0; 24]).unwrap();
        assert!(keys(&[2]).open("c", &new).is_ok());
        assert_eq!(keys(&[1]).open("c", &new), Err(Unopened::OtherKey));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in
            ["", "# nothing", "00", &"g".repeat(64), &"0".repeat(63), &"é".repeat(32), &"+1".repeat(32)]
        {
            assert!(Keys::parse(text).is_err(), "{text}");
        }
        assert!(Keys::parse(&format!("# new\n{}\n\n{}\n", "0a".repeat(32), "0B".repeat(32))).is_ok());
    }
}
