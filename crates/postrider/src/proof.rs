//! What is kept of a device's secret so that it can be proven without being shown (SCRAM): for each hash a salt and two keys.

use postrider_core::model::ProofKeys;
use postrider_core::port::Chance;
use postrider_proto::xmpp::{ScramHash, ScramKeys};

/// RFC 7677 §4 asks for this many at least.
pub const ITERATIONS: u32 = 4_096;

const SALT_BYTES: usize = 16;
const HASHES: [(ScramHash, usize); 2] = [(ScramHash::Sha1, 20), (ScramHash::Sha256, 32)];

/// Whether keys are kept at all.
#[derive(Clone, Copy, Debug)]
pub struct Proofs {
    pub are_kept: bool,
}

impl Proofs {
    /// Takes a few milliseconds of the processor; empty where none are kept.
    pub fn keys(self, secret: &str, chance: &dyn Chance) -> ProofKeys {
        if self.are_kept { derive(secret, chance) } else { ProofKeys::default() }
    }
}

fn derive(secret: &str, chance: &dyn Chance) -> ProofKeys {
    let mut encoded = ITERATIONS.to_be_bytes().to_vec();
    for (hash, _) in HASHES {
        let salt: [u8; SALT_BYTES] = chance.bits128().to_be_bytes();
        let keys = ScramKeys::derive(hash, secret, &salt, ITERATIONS);
        [&keys.salt, &keys.stored_key, &keys.server_key].into_iter().for_each(|part| encoded.extend(part));
    }
    encoded.into()
}

/// What was derived, for one hash.
pub fn keys_of(proof_keys: &[u8], wanted: ScramHash) -> Option<ScramKeys> {
    let (iterations, mut rest) = proof_keys.split_first_chunk::<4>()?;
    for (hash, key_bytes) in HASHES {
        let (salt, behind) = rest.split_at_checked(SALT_BYTES)?;
        let (stored_key, behind) = behind.split_at_checked(key_bytes)?;
        let (server_key, behind) = behind.split_at_checked(key_bytes)?;
        rest = behind;
        if hash == wanted {
            return Some(ScramKeys {
                salt: salt.to_vec(),
                iterations: u32::from_be_bytes(*iterations),
                stored_key: stored_key.to_vec(),
                server_key: server_key.to_vec(),
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::OsChance;

    #[test]
    fn what_is_derived_is_read_back_for_each_hash() {
        let encoded = derive("secret", &OsChance);
        for hash in [ScramHash::Sha1, ScramHash::Sha256] {
            let keys = keys_of(&encoded, hash).unwrap();
            assert!(keys == ScramKeys::derive(hash, "secret", &keys.salt, ITERATIONS));
            assert!(keys != ScramKeys::derive(hash, "Secret", &keys.salt, ITERATIONS));
        }
        for cut in 0..encoded.len() {
            assert!(keys_of(&encoded[..cut], ScramHash::Sha256).is_none());
        }
        assert!(keys_of(&[], ScramHash::Sha1).is_none());
    }
}
