//! Randomness as a tree of named streams: a new draw in one place moves no other.

use sha2::{Digest, Sha256};

/// The root of a tree of random streams.
#[derive(Clone, Debug)]
pub struct Entropy {
    seed: [u8; 32],
}

impl Entropy {
    /// Seeded by the operating system.
    #[must_use]
    pub fn real() -> Self {
        Self { seed: rand::random() }
    }

    /// The same seed gives the same streams, for tests and simulation.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"holdfast-entropy");
        hash.update(seed.to_le_bytes());
        Self { seed: hash.finalize().into() }
    }

    /// The stream of this name, from its beginning.
    #[must_use]
    pub fn stream(&self, name: &str) -> Stream {
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update(name.as_bytes());
        Stream { key: hash.finalize().into(), drawn: 0 }
    }

    /// A fresh stream for one pass of a controller over one key: differs between passes on the
    /// real root because `pass` does.
    #[must_use]
    pub fn pass(&self, controller: &str, key: &str, pass: u64) -> Stream {
        self.stream(&format!("{controller}/{key}/{pass}"))
    }
}

/// A stream of random numbers; plain data, so that it may be part of what a plan sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u8; 32],
    drawn: u64,
}

impl Stream {
    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(self.drawn.to_le_bytes());
        self.drawn += 1;
        let bytes: [u8; 32] = hash.finalize().into();
        u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]])
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        let wide = u128::from(self.next_u64()) * u128::from(bound);
        u64::try_from(wide >> 64).expect("invariant: a 128-bit number shifted by 64 fits 64 bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_per_seed_and_differ_per_name() {
        let root = Entropy::seeded(7);
        let draw = |name: &str| root.stream(name).next_u64();
        assert_eq!(draw("a"), draw("a"));
        assert_ne!(draw("a"), draw("b"));
        assert_ne!(draw("a"), Entropy::seeded(8).stream("a").next_u64());
        let mut stream = root.stream("a");
        assert_ne!(stream.next_u64(), stream.next_u64());
    }

    #[test]
    fn below_stays_below() {
        let mut stream = Entropy::seeded(1).stream("x");
        assert!((0..1000).all(|_| stream.below(7) < 7));
        assert_eq!(stream.below(0), 0);
    }
}
