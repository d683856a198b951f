//! Devices that nobody uses any more: where a setting says so, those that were not seen for so long
//! are deleted, a few at a time. And of those that are used, the time is put on stable storage once
//! a day, so that a crash does not make a live device look like one that is gone.

use crate::Engine;
use crate::command::Outcome;
use crate::id::*;
use crate::port::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How old the stored time of a device may become while it is used.
pub const SEEN_EVERY_MS: u64 = 86_400_000;
/// Devices that one round looks at, and deletes.
const LOOK: usize = 2_000;
const DELETE: usize = 100;
/// From one round to the next, and from one walk through all devices to the next.
const ROUND_MS: u64 = 1_000;
const WALK_MS: u64 = 3_600_000;
/// After the start: those that a crash has cut off come back first.
const GRACE_MS: u64 = 3_600_000;

/// How far the walk is.
#[derive(Default)]
pub(crate) struct Pruning {
    place: Mutex<Place>,
    is_busy: AtomicBool,
    pruned: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct Place {
    app: u32,
    after: Option<DeviceNo>,
    next_at: UnixMillis,
}

impl Pruning {
    fn place(&self) -> Place {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_on_from(&self, place: Place) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }
}

impl Engine {
    /// Devices that were deleted because nobody used them.
    pub fn devices_pruned(&self) -> u64 {
        self.pruning.pruned.load(Ordering::Relaxed)
    }

    /// One round of the walk, where one is due.
    pub(crate) fn prune_unseen(&self, now: UnixMillis) {
        let unseen_ms = u64::try_from(self.limits.prune_unseen.as_millis()).unwrap_or(u64::MAX);
        let place = self.pruning.place();
        let is_due = now >= place.next_at.max(self.started.saturating_add(GRACE_MS));
        if unseen_ms == 0 || !is_due || self.pruning.is_busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let app = AppNo(place.app);
        let filter = DeviceFilter::default();
        let (seen, last) = self.store.devices_seen(app, &filter, place.after, LOOK);
        let old = |(device, at): (DeviceNo, UnixMillis)| {
            (at.saturating_add(SEEN_EVERY_MS) <= now).then_some((DeviceRef { app, device }, at))
        };
        let mut unseen = Vec::new();
        let mut cut_off_at = None;
        for (at, last_seen) in seen.into_iter().filter_map(old) {
            if self.is_connected(at) {
                self.seen(at);
            } else if last_seen.saturating_add(unseen_ms) <= now {
                if unseen.len() == DELETE {
                    // The next round goes on with this one.
                    cut_off_at = at.device.0.checked_sub(1).map(DeviceNo);
                    break;
                }
                unseen.push(at);
            }
        }
        self.pruning.go_on_from(match cut_off_at.or(last) {
            Some(device) => Place { app: place.app, after: Some(device), next_at: now + ROUND_MS },
            None => self.next_app(place.app, now),
        });
        self.delete_unseen(app, unseen);
    }

    fn next_app(&self, app: u32, now: UnixMillis) -> Place {
        let next = self.store.apps().into_iter().map(|view| view.no.0).filter(|no| *no > app).min();
        match next {
            Some(app) => Place { app, after: None, next_at: now + ROUND_MS },
            None => Place { app: 0, after: None, next_at: now + WALK_MS },
        }
    }

    fn delete_unseen(&self, app: AppNo, devices: Vec<DeviceRef>) {
        if !devices.is_empty() {
            let (app, count) = (self.app_name(app), devices.len());
            tracing::info!(app, count, "devices that were not seen for too long are deleted");
        }
        // The next round waits for the last of these.
        let round = Arc::new(Round(self.clone()));
        for at in devices {
            let round = round.clone();
            let done: Done = Box::new(move |outcomes| {
                let is_gone = |outcome: &Outcome| matches!(outcome, Outcome::Done | Outcome::HandedOn(_));
                if outcomes.is_ok_and(|all| all.last().is_some_and(is_gone)) {
                    round.0.pruning.pruned.fetch_add(1, Ordering::Relaxed);
                }
            });
            self.delete_device(at, done);
        }
    }
}

/// Lives until the last deletion of a round is told.
struct Round(Engine);

impl Drop for Round {
    fn drop(&mut self) {
        self.0.pruning.is_busy.store(false, Ordering::Release);
    }
}
