//! The one source of randomness: picks among instances, jitter, ids.
//!
//! Each thread has a generator of its own, seeded by the operating system. After [`seed`] the sequence of a
//! thread repeats, which is what a simulation of the whole process on one thread needs.
//!
//! It is no source of secrets.

use std::cell::RefCell;

use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng as _};

thread_local! {
    static GENERATOR: RefCell<SmallRng> = RefCell::new(rand::make_rng());
}

/// Makes the sequence of this thread repeatable.
pub fn seed(seed: u64) {
    GENERATOR.with_borrow_mut(|generator| *generator = SmallRng::seed_from_u64(seed));
}

/// Returns a number within a range, each with the same chance.
///
/// # Panics
/// When the range is empty.
pub fn range<T: SampleUniform>(range: impl SampleRange<T>) -> T {
    GENERATOR.with_borrow_mut(|generator| generator.random_range(range))
}

/// Returns a fraction, 0 to 1 (without 1).
#[must_use]
pub fn fraction() -> f64 {
    GENERATOR.with_borrow_mut(RngExt::random)
}

/// Returns 64 random bits, never all zero: for ids.
#[must_use]
pub fn id() -> u64 {
    GENERATOR.with_borrow_mut(|generator| generator.random_range(1..=u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence() -> (Vec<u64>, u32, f64) {
        ((0..4).map(|_| id()).collect(), range(0..1000), fraction())
    }

    #[test]
    fn a_seed_repeats_the_sequence() {
        seed(7);
        let first = sequence();
        assert_ne!(sequence(), first);
        seed(7);
        assert_eq!(sequence(), first);
    }

    #[test]
    fn threads_have_sequences_of_their_own() {
        let other = std::thread::spawn(sequence).join().unwrap();
        assert_ne!(sequence(), other);
    }
}
