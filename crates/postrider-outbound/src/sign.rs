//! Signatures after Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`, with every secret that
//! signs at the time, so that a receiver may change from one to the other whenever it likes.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

/// What secrets begin with, so that scanners find them where they should not be.
const PREFIX: &str = "whsec_";
/// Bytes of a secret: as Standard Webhooks has it.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Characters of the longest secret.
pub const SECRET_TEXT_MAX: usize = PREFIX.len() + 88;

/// A secret in clear. It is wiped when it is dropped, and never shown by a log.
#[derive(Clone, PartialEq)]
pub struct Secret(Zeroizing<Vec<u8>>);

/// It is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A secret is `whsec_` and 24 to 64 bytes in base64.")]
pub struct NoSecret;

impl Secret {
    pub fn of_bytes(bytes: &[u8]) -> Result<Secret, NoSecret> {
        if BYTES.contains(&bytes.len()) { Ok(Secret(bytes.to_vec().into())) } else { Err(NoSecret) }
    }

    /// Reads `whsec_…`.
    pub fn parse(text: &str) -> Result<Secret, NoSecret> {
        let encoded = text.strip_prefix(PREFIX).filter(|_| text.len() <= SECRET_TEXT_MAX).ok_or(NoSecret)?;
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(encoded).map_err(|_| NoSecret)?);
        Secret::of_bytes(&bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// As its owner gets it.
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PREFIX}{}", BASE64_STANDARD.encode(&*self.0)))
    }

    fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        // Keys of every length fit.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).unwrap_or_else(|_| Hmac::new(&[0; 64].into()));
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// The header `webhook-signature`. `timestamp`: seconds since 1970.
pub fn signatures(secrets: &[Secret], id: &str, timestamp: u64, body: &[u8]) -> String {
    let each: Vec<String> = secrets.iter().map(|secret| secret.sign(id, timestamp, body)).collect();
    each.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_example_in_the_standard() {
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let made = signatures(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(made, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_secret_signs_while_both_are_good() {
        let one = Secret::of_bytes(&[1; 24]).unwrap();
        let two = Secret::of_bytes(&[2; 64]).unwrap();
        let both = signatures(&[one.clone(), two.clone()], "a", 1, b"x");
        let apart = [signatures(&[one], "a", 1, b"x"), signatures(&[two], "a", 1, b"x")];
        assert_eq!(both, apart.join(" "));
    }

    #[test]
    fn a_secret_is_read_as_it_was_shown_and_nothing_else_is_one() {
        let secret = Secret::of_bytes(&[7; 32]).unwrap();
        assert!(Secret::parse(&secret.text()).unwrap() == secret);
        for text in [
            "",
            "whsec_",
            "whsec_AAAA",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS!",
        ] {
            assert!(Secret::parse(text).is_err(), "{text}");
        }
        assert!(Secret::parse(&format!("whsec_{}", BASE64_STANDARD.encode([0; 65]))).is_err());
    }
}
