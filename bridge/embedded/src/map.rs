//! Hash maps for the writer's thread, which looks several keys up for each operation: rows, ids and short names.
//!
//! The hash is one multiplication for eight bytes, under a random key: clients choose some of the names, and must not
//! be able to choose ones that collide. It is weaker than the standard library's against an attacker who could watch
//! the timing of single look-ups, which nobody outside the process can.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

pub(super) type Map<K, V> = HashMap<K, V, Keyed>;

/// Makes hashers of one random key.
#[derive(Clone)]
pub(super) struct Keyed {
    start: u64,
    factor: u64,
}

impl Default for Keyed {
    fn default() -> Self {
        let random = RandomState::new();
        Self { start: random.hash_one(0), factor: random.hash_one(1) | 1 }
    }
}

impl BuildHasher for Keyed {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding { state: self.start, factor: self.factor }
    }
}

/// Multiplies what it is given, and folds the product's halves into one.
pub(super) struct Folding {
    state: u64,
    factor: u64,
}

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.factor);
        // The sum of the halves: neither end of the product alone depends on all bits of the word.
        self.state = ((product >> 64) as u64).wrapping_add(product as u64);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn neighbours_land_apart() {
        let keyed = Keyed::default();
        for bits in [0, 57] {
            // The low bits choose a map's place, the high seven tell its entries apart.
            let places: HashSet<u64> = (0..10_000i64).map(|row| (keyed.hash_one((row, 1i64)) >> bits) & 127).collect();
            assert_eq!(places.len(), 128);
        }
        let all: HashSet<u64> = (0..10_000i64).map(|row| keyed.hash_one(row)).collect();
        assert_eq!(all.len(), 10_000);
    }
}
