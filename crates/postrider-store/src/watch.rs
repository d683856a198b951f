//! Telling those who wait for receipts that there are new ones, without telling which: they read them from the store.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

type Hook = Box<dyn Fn(u64) + Send + Sync>;

/// The position of the newest receipt, and whom to tell when it grows.
#[derive(Default)]
pub struct EventWatch {
    latest: AtomicU64,
    hooks: Mutex<Vec<Hook>>,
}

impl EventWatch {
    /// Position of the newest receipt that can be read.
    pub fn latest(&self) -> u64 {
        self.latest.load(Ordering::Acquire)
    }

    /// From now on `hook` is called with the newest position whenever it grew. It runs on a thread of the store's: it
    /// must be short, such as waking a task.
    pub fn on_new(&self, hook: impl Fn(u64) + Send + Sync + 'static) {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(hook));
    }

    /// Sets the position without telling anybody: at start.
    pub(crate) fn start_at(&self, position: u64) {
        self.latest.store(position, Ordering::Release);
    }

    pub(crate) fn tell(&self, position: u64) {
        if self.latest.fetch_max(position, Ordering::AcqRel) < position {
            self.hooks.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|hook| hook(position));
        }
    }
}
