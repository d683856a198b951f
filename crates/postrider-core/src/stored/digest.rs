//! A number that two states share if they are the same, and practically never else.

use super::image::write_state_in_order;
use crate::state::State;
use sha2::{Digest, Sha256};
use std::io::{self, Write};

struct Hashed(Sha256);

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Of everything that is stored of the state, the places of contents included. What is known beside
/// the state ([`crate::state::Volatile`]) does not count.
pub fn digest(state: &State) -> u128 {
    let mut hashed = Hashed(Sha256::new());
    // Hashing does not fail.
    let _ = write_state_in_order(state, &mut hashed);
    let hash: [u8; 32] = hashed.0.finalize().into();
    hash.first_chunk().map_or(0, |first| u128::from_be_bytes(*first))
}
