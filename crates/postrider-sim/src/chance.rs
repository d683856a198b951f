//! The one source of chance, and the one clock. Nothing else in a simulation draws or tells.

use postrider_core::port::{Chance, Clock};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 ≤ … < n.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// From … to, both included.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True in so many of a thousand cases.
    pub fn permille(&mut self, of_thousand: u64) -> bool {
        self.below(1000) < of_thousand
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        if list.is_empty() { None } else { list.get(self.below(list.len() as u64) as usize) }
    }
}

/// Virtual time, in milliseconds since 1970; it moves when the world moves it.
#[derive(Debug)]
pub struct SimClock(AtomicU64);

impl SimClock {
    pub fn new(at: u64) -> SimClock {
        SimClock(AtomicU64::new(at))
    }

    pub fn set(&self, at: u64) {
        self.0.store(at, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The engine's chance: seeded, and apart from the world's, so that one more draw inside shifts nothing outside.
#[derive(Debug)]
pub struct SimChance(Mutex<Random>);

impl SimChance {
    pub fn new(seed: u64) -> SimChance {
        SimChance(Mutex::new(Random::new(seed)))
    }
}

impl Chance for SimChance {
    fn bits128(&self) -> u128 {
        let mut random = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        u128::from(random.next()) << 64 | u128::from(random.next())
    }
}
