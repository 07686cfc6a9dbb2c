//! Random numbers that can be had again: every generator says its seed, and `CRISP_SEED` sets it.
//!
//! Must not know: what they are for.

use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
    /// What it was made of.
    pub seed: u64,
}

impl Random {
    /// Takes the seed from `CRISP_SEED`, else from the clock, and prints it.
    #[expect(clippy::print_stderr, reason = "a run that fails later, or hangs, must be repeatable")]
    pub fn announced(test: &str) -> Self {
        let given = std::env::var("CRISP_SEED").ok().and_then(|text| text.parse().ok());
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        let seed = given.unwrap_or_else(clock);
        eprintln!("{test}: CRISP_SEED={seed}");
        Self { state: seed, seed }
    }

    /// The numbers of this seed.
    pub fn seeded(seed: u64) -> Self {
        Self { state: seed, seed }
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 when there is none.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.number() % end as u64) as usize }
    }

    /// Puts `list` into another order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            list.swap(end, self.below(end + 1));
        }
    }

    /// `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.number() as u8).collect()
    }

    /// One of `list`, which is not empty.
    pub fn one_of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// `bytes` with something wrong: bits turned, bytes cut off, doubled, replaced, or put in.
    pub fn spoil(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut spoilt = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(spoilt.len());
            match self.below(6) {
                0 | 1 if !spoilt.is_empty() => spoilt[at] ^= 1 << self.below(8),
                2 => spoilt.truncate(at),
                3 => {
                    let end = at + self.below(spoilt.len() - at);
                    let piece = spoilt[at..end].to_vec();
                    spoilt.splice(at..at, piece);
                }
                4 if !spoilt.is_empty() => spoilt[at] = *self.one_of(&[0, 0x7f, 0x80, 0xff]),
                _ => {
                    let length = 1 + self.below(8);
                    let piece = self.bytes(length);
                    spoilt.splice(at..at, piece);
                }
            }
        }
        spoilt
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn one_seed_gives_one_sequence() {
        let draw = |seed| {
            let mut random = Random { state: seed, seed };
            (random.bytes(8), random.spoil(b"some bytes"), random.below(1))
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_eq!(draw(9).2, 0);
    }
}
