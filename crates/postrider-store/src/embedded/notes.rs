//! What was noted a moment ago: which deliveries were written to connections, and when devices were seen.
//!
//! It is put beside the state now and then, with a group of commands that has the state in hand anyway. Until then it
//! lies here under a lock of its own, so that those who write to connections do not wait for the state, nor stop its readers.
//! Who holds both took the state first.

use postrider_core::id::*;
use postrider_core::port::Pending;
use postrider_core::state::Live;
use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// With so many notes the state takes them when it is free at that moment; with so many it has to.
const MANY: usize = 4_096;
const TOO_MANY: usize = 65_536;

/// See the module.
#[derive(Default)]
pub struct Notes {
    inner: Mutex<Inner>,
    /// How many there are, to be asked without the lock.
    count: AtomicUsize,
}

#[derive(Default)]
struct Inner {
    /// The first time counts.
    sent: FxHashMap<(DeviceRef, Seq), UnixMillis>,
    /// The last time counts.
    seen: FxHashMap<DeviceRef, UnixMillis>,
}

/// How badly the notes want to go into the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    None,
    WhenFree,
    Now,
}

impl Notes {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    fn counted(&self, inner: &Inner) -> Pressure {
        let count = inner.sent.len() + inner.seen.len();
        self.count.store(count, Ordering::Release);
        match count {
            0..MANY => Pressure::None,
            MANY..TOO_MANY => Pressure::WhenFree,
            _ => Pressure::Now,
        }
    }

    pub fn sent(&self, app: AppNo, deliveries: &[(DeviceNo, Seq)], now: UnixMillis) -> Pressure {
        let mut inner = self.inner();
        for (device, seq) in deliveries {
            inner.sent.entry((DeviceRef { app, device: *device }, *seq)).or_insert(now);
        }
        self.counted(&inner)
    }

    pub fn seen(&self, at: DeviceRef, now: UnixMillis) -> Pressure {
        let mut inner = self.inner();
        inner.seen.insert(at, now);
        self.counted(&inner)
    }

    /// Puts all notes beside the state.
    pub fn apply(&self, state: &mut Live) {
        if self.is_empty() {
            return;
        }
        let mut inner = self.inner();
        for ((at, seq), time) in inner.sent.drain() {
            state.sent(at.app, &[(at.device, seq)], time);
        }
        inner.seen.drain().for_each(|(at, time)| state.seen(at, time));
        self.counted(&inner);
    }

    /// Marks those that were sent already. The caller holds the state that they were read from.
    pub fn mark_sent(&self, at: DeviceRef, pending: &mut [Pending]) {
        if self.is_empty() || pending.is_empty() {
            return;
        }
        let inner = self.inner();
        for one in pending {
            one.sent_before |= inner.sent.contains_key(&(at, one.seq));
        }
    }

    /// When the device was seen last, by the notes. The caller holds the state.
    pub fn last_seen(&self, at: DeviceRef) -> Option<UnixMillis> {
        if self.is_empty() { None } else { self.inner().seen.get(&at).copied() }
    }
}
