//! Who may connect at all: counts of connections in all, before sign-in, and by address (limits L4–L6).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Zero means no limit.
#[derive(Clone, Debug)]
pub struct AdmissionLimits {
    pub connections_max: usize,
    /// Connections that have not signed in, in all and by address.
    pub unauthenticated_max: usize,
    pub unauthenticated_per_address_max: usize,
    pub per_address_max: usize,
    /// Wrong credentials of one address before it is only told that it tries too often (L31), and after how many seconds
    /// one more is heard.
    pub failures_burst: u32,
    pub failure_secs: u64,
    /// Accounts that devices of one address make for themselves (A21): at once, and after how many seconds one more.
    pub registrations_burst: u32,
    pub registration_secs: u64,
}

impl Default for AdmissionLimits {
    fn default() -> AdmissionLimits {
        AdmissionLimits {
            connections_max: 0,
            unauthenticated_max: 2_000,
            unauthenticated_per_address_max: 50,
            per_address_max: 2_000,
            failures_burst: 30,
            failure_secs: 60,
            registrations_burst: 20,
            registration_secs: 60,
        }
    }
}

#[derive(Debug, Default)]
pub struct Admission {
    limits: AdmissionLimits,
    total: AtomicUsize,
    waiting: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, Counts>>,
    failures: Leaking,
    registrations: Leaking,
}

/// How often something happened, by address.
#[derive(Debug, Default)]
struct Leaking(Mutex<HashMap<IpAddr, Bucket>>);

/// Leaks one in a while.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    count: u32,
    since_ms: u64,
}

/// Addresses that are remembered; beyond it all knowledge is given up.
const ADDRESSES_MAX: usize = 100_000;

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    all: usize,
    waiting: usize,
}

fn above(count: usize, max: usize) -> bool {
    max > 0 && count > max
}

/// An IPv6 customer has a /64, so that is what counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

impl Admission {
    pub fn new(limits: AdmissionLimits) -> Admission {
        Admission { limits, ..Admission::default() }
    }

    /// Takes a place for a new connection, or says which limit is reached.
    pub fn enter(&self, address: IpAddr) -> Result<(), &'static str> {
        let limits = &self.limits;
        let mut all = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = all.entry(network(address)).or_default();
        let refusal = if above(self.total.load(Ordering::Relaxed) + 1, limits.connections_max) {
            Some("connections")
        } else if above(self.waiting.load(Ordering::Relaxed) + 1, limits.unauthenticated_max) {
            Some("unauthenticated")
        } else if above(counts.waiting + 1, limits.unauthenticated_per_address_max) {
            Some("unauthenticated_per_address")
        } else if above(counts.all + 1, limits.per_address_max) {
            Some("per_address")
        } else {
            None
        };
        if let Some(limit) = refusal {
            if counts.all == 0 {
                all.remove(&network(address));
            }
            return Err(limit);
        }
        counts.all += 1;
        counts.waiting += 1;
        self.total.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The connection signed in.
    pub fn signed_in(&self, address: IpAddr) {
        let mut all = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = all.get_mut(&network(address)) {
            counts.waiting = counts.waiting.saturating_sub(1);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// The connection ended, signed in or not.
    pub fn leave(&self, address: IpAddr, signed_in: bool) {
        let mut all = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = all.get_mut(&network(address)) {
            counts.all = counts.all.saturating_sub(1);
            counts.waiting = counts.waiting.saturating_sub(usize::from(!signed_in));
            if counts.all == 0 {
                all.remove(&network(address));
            }
        }
        self.total.fetch_sub(1, Ordering::Relaxed);
        if !signed_in {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// An address tried with wrong credentials; false when it did so too often to be told more than that.
    pub fn count_failure(&self, address: IpAddr, now_ms: u64) -> bool {
        self.failures.count(address, now_ms, self.limits.failures_burst, self.limits.failure_secs)
    }

    /// A device of the address makes an account; false when too many did.
    pub fn count_registration(&self, address: IpAddr, now_ms: u64) -> bool {
        let limits = &self.limits;
        self.registrations.count(address, now_ms, limits.registrations_burst, limits.registration_secs)
    }

    pub fn unauthenticated(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }
}

impl Leaking {
    /// One more; false, and not counted, where the bucket is full. A burst of 0: no limit.
    fn count(&self, address: IpAddr, now_ms: u64, burst: u32, secs: u64) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= ADDRESSES_MAX {
            all.clear();
        }
        let bucket = all.entry(network(address)).or_insert(Bucket { count: 0, since_ms: now_ms });
        bucket.leak(now_ms, secs * 1_000);
        let fits = burst == 0 || bucket.count < burst;
        bucket.count += u32::from(fits);
        fits
    }
}

impl Bucket {
    fn leak(&mut self, now: u64, every_ms: u64) {
        let gone = (now.saturating_sub(self.since_ms) / every_ms.max(1)).min(u64::from(u32::MAX));
        self.count = self.count.saturating_sub(gone as u32);
        self.since_ms += gone * every_ms.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_guesses_is_told_once_a_minute_after_its_burst() {
        let admission = Admission::new(AdmissionLimits::default());
        let (evil, good) = ("127.0.0.9".parse().unwrap(), "127.0.0.1".parse().unwrap());
        assert!((0..30).all(|_| admission.count_failure(evil, 0)));
        assert!(!admission.count_failure(evil, 59_999) && admission.count_failure(good, 0));
        assert!(admission.count_failure(evil, 60_000) && !admission.count_failure(evil, 60_001));
        assert!((0..30).all(|_| admission.count_failure(evil, 60_000 * 40)));
    }

    #[test]
    fn an_address_that_does_not_sign_in_cannot_take_every_place() {
        let limits = AdmissionLimits { unauthenticated_per_address_max: 2, ..AdmissionLimits::default() };
        let admission = Admission::new(limits);
        let (evil, good) = ("127.0.0.9".parse().unwrap(), "127.0.0.1".parse().unwrap());
        assert!(admission.enter(evil).is_ok() && admission.enter(evil).is_ok());
        assert_eq!(admission.enter(evil), Err("unauthenticated_per_address"));
        assert!(admission.enter(good).is_ok());
        admission.signed_in(evil);
        assert!(admission.enter(evil).is_ok());
        for signed_in in [true, false, false] {
            admission.leave(evil, signed_in);
        }
        admission.leave(good, false);
        assert_eq!((admission.total(), admission.unauthenticated()), (0, 0));
        assert!(admission.by_address.lock().unwrap().is_empty());
    }

    #[test]
    fn a_whole_ipv6_network_counts_as_one_address() {
        assert_eq!(network("2001:db8::1".parse().unwrap()), network("2001:db8::ffff:2".parse().unwrap()));
        assert_ne!(network("2001:db8::1".parse().unwrap()), network("2001:db8:0:1::1".parse().unwrap()));
    }
}
