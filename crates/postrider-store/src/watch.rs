//! Telling those who wait for receipts that there are new ones, without telling which: they read them from the store.

use postrider_core::id::AppNo;
use postrider_core::model::ReceiptEvent;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

type Hook = Box<dyn Fn(u64, &BTreeSet<AppNo>) + Send + Sync>;

/// The position of the newest receipt, and whom to tell when it grows.
#[derive(Default)]
pub struct EventWatch {
    latest: AtomicU64,
    /// Apps with receipts that nobody was told of yet.
    apps: Mutex<BTreeSet<AppNo>>,
    hooks: Mutex<Vec<Hook>>,
}

impl EventWatch {
    /// Position of the newest receipt that can be read.
    pub fn latest(&self) -> u64 {
        self.latest.load(Ordering::Acquire)
    }

    /// From now on `hook` is called whenever the newest position grew, with that and the apps that have new receipts. It runs on a thread of the store's: it
    /// must be short, such as waking a task.
    pub fn on_new(&self, hook: impl Fn(u64, &BTreeSet<AppNo>) + Send + Sync + 'static) {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(hook));
    }

    /// Sets the position without telling anybody: at start.
    pub(crate) fn start_at(&self, position: u64) {
        self.latest.store(position, Ordering::Release);
    }

    /// These are about to be readable.
    pub(crate) fn note(&self, events: &[ReceiptEvent]) {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = None;
        for event in events.iter().filter(|event| last.replace(event.app) != Some(event.app)) {
            apps.insert(event.app);
        }
    }

    pub(crate) fn tell(&self, position: u64) {
        if self.latest.fetch_max(position, Ordering::AcqRel) < position {
            let apps = std::mem::take(&mut *self.apps.lock().unwrap_or_else(PoisonError::into_inner));
            let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
            hooks.iter().for_each(|hook| hook(position, &apps));
        }
    }
}
