//! A fast hash for the maps of this store.
//!
//! The standard one withstands keys that an attacker chose, which costs a tenth of the time of a task here. Nothing hostile
//! reaches a store that lives in a test; and the same keys give the same hashes in every run.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map with the fast hash.
pub(crate) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<FastHasher>>;

/// Folds eight bytes at a time by a multiplication, and spreads the high bits at the end.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FastHasher(u64);

/// An odd number whose bits look random: two to the 64 divided by the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl FastHasher {
    fn fold(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }
}

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.fold(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.fold(u64::from_le_bytes(last));
    }

    fn write_u8(&mut self, byte: u8) {
        self.fold(u64::from(byte));
    }

    fn write_usize(&mut self, number: usize) {
        self.fold(number as u64);
    }

    fn finish(&self) -> u64 {
        // The map takes the place from the low bits and a tag from the high ones: both must depend on every byte.
        (self.0 ^ (self.0 >> 32)).wrapping_mul(FACTOR)
    }
}
