//! Random numbers that are the same for ever: a seed in a bug report keeps its meaning.

/// SplitMix64: small, fast, and any seed will do. Not for secrets.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator with this seed.
    pub fn new(seed: u64) -> SplitMix64 {
        SplitMix64(seed)
    }

    /// The next number.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number less than `bound`, 0 if that is 0; evenly enough for picking blocks.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high word of the product.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the published generator.
    #[test]
    fn a_seed_keeps_its_meaning() {
        let mut random = SplitMix64::new(1_234_567);
        let numbers = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(numbers.map(|_| random.next_u64()), numbers);
    }

    #[test]
    fn numbers_below_a_bound_are_all_of_them() {
        let mut random = SplitMix64::new(1);
        let mut seen = [false; 10];
        (0..1000).for_each(|_| seen[random.below(10) as usize] = true);
        assert_eq!((seen, random.below(1), random.below(0)), ([true; 10], 0, 0));
    }
}
