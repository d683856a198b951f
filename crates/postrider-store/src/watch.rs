//! Telling those who wait for receipts that there are new ones, without telling which: they read them from the store.

use postrider_core::id::AppNo;
use postrider_core::model::ReceiptEvent;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

type Hook = Box<dyn Fn(u64, &BTreeSet<AppNo>) + Send + Sync>;

/// The position of the newest receipt, and whom to tell when it grows.
#[derive(Default)]
pub struct EventWatch {
    latest: AtomicU64,
    /// Apps with receipts that nobody was told of yet, each with the position of its newest one.
    apps: Mutex<BTreeMap<AppNo, u64>>,
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
        // Most groups are of one app, or come in runs of one.
        let runs = events.chunk_by(|one, next| one.app == next.app);
        runs.filter_map(<[_]>::last).for_each(|last| _ = apps.insert(last.app, last.position));
    }

    pub(crate) fn tell(&self, position: u64) {
        // Held throughout, so that hooks hear of positions in their order.
        let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.latest.fetch_max(position, Ordering::AcqRel) < position {
            let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
            let told: BTreeSet<AppNo> = apps.keys().copied().collect();
            // Some of their receipts may still wait to be written: they are told of again.
            apps.retain(|_, newest| *newest > position);
            drop(apps);
            hooks.iter().for_each(|hook| hook(position, &told));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_core::id::MessageId;
    use postrider_core::model::{Reason, Step};
    use std::sync::Arc;

    fn event(position: u64, app: u32) -> ReceiptEvent {
        ReceiptEvent {
            position,
            at: 0,
            app: AppNo(app),
            message: MessageId(0),
            device: None,
            step: Step::Accepted,
            reason: Reason::None,
            count: 1,
            submission: None,
            road: None,
        }
    }

    #[test]
    fn an_app_is_told_of_again_when_receipts_that_waited_can_be_read() {
        let watch = EventWatch::default();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = heard.clone();
        watch.on_new(move |position, apps| hears.lock().unwrap().push((position, apps.clone())));
        watch.note(&[event(1, 7), event(2, 8), event(3, 8), event(4, 7)]);
        watch.tell(2);
        watch.tell(2);
        watch.tell(4);
        watch.tell(5);
        let both = BTreeSet::from([AppNo(7), AppNo(8)]);
        assert_eq!(*heard.lock().unwrap(), [(2, both.clone()), (4, both), (5, BTreeSet::new())]);
    }
}
