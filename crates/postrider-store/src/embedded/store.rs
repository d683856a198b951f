//! `port::Store` for the embedded store: commands go to the queue, questions to the state.

use super::EmbeddedStore;
use super::history::Reached;
use super::notes::Pressure;
use super::queue::{Batch, call};
use postrider_core::command::Command;
use postrider_core::id::*;
use postrider_core::jobs::*;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_core::seeded::{self, Bug};
use postrider_core::state::Live;
use postrider_core::webhooks::Webhook;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLockReadGuard, RwLockWriteGuard};

impl EmbeddedStore {
    fn state(&self) -> RwLockReadGuard<'_, Live> {
        self.shared.state()
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, Live> {
        self.shared.state_mut()
    }

    /// The state with everything that was noted, for those who report on it.
    fn noted_state(&self) -> RwLockReadGuard<'_, Live> {
        if !self.shared.notes.is_empty() {
            self.shared.notes.apply(&mut self.state_mut());
        }
        self.state()
    }

    fn relieve(&self, pressure: Pressure) {
        match pressure {
            Pressure::None => {}
            Pressure::WhenFree => {
                if let Ok(mut state) = self.shared.state.try_write() {
                    self.shared.notes.apply(&mut state);
                }
            }
            Pressure::Now => self.shared.notes.apply(&mut self.state_mut()),
        }
    }

    fn with_last_seen(&self, mut view: DeviceView) -> DeviceView {
        view.last_seen_at = view.last_seen_at.max(self.shared.notes.last_seen(view.at));
        view
    }
}

/// Views made while the state is held: each may combine the sets of a million devices.
const VIEWS_AT_ONCE: usize = 8;
/// Devices shown while the state is held.
const DEVICES_AT_ONCE: usize = 128;

impl Store for EmbeddedStore {
    fn submit(&self, commands: Vec<Command>, done: Done) {
        if let Some(why) = self.shared.queue.closed() {
            return call(done, Err(why));
        }
        let refused = match Batch::new(commands, done) {
            Ok(batch) => self.shared.queue.push(batch).err(),
            Err((done, why)) => return call(done, Err(why)),
        };
        if let Some(refused) = refused {
            let (batch, why) = *refused;
            batch.tell(Err(why));
        }
    }

    fn sent(&self, app: AppNo, deliveries: &[(DeviceNo, Seq)], now: UnixMillis) {
        self.relieve(self.shared.notes.sent(app, deliveries, now));
    }

    fn seen(&self, at: DeviceRef, now: UnixMillis) {
        self.relieve(self.shared.notes.seen(at, now));
    }

    fn pending(&self, at: DeviceRef, position: Position, max: usize, now: UnixMillis) -> Vec<Pending> {
        let state = self.state();
        let durable = self.shared.durable.load(Ordering::Acquire);
        let durable = if seeded::is(Bug::DurableIgnored) { Seq::MAX } else { durable };
        let mut pending = state.pending(at, position, max, now, durable);
        self.shared.notes.mark_sent(at, &mut pending);
        pending
    }

    fn device(&self, at: DeviceRef) -> Option<DeviceView> {
        let state = self.state();
        state.device(at).map(|view| self.with_last_seen(view))
    }

    fn devices(
        &self,
        app: AppNo,
        filter: &DeviceFilter,
        after: Option<DeviceNo>,
        max: usize,
    ) -> Vec<DeviceView> {
        let slice = |after: Option<&DeviceView>, first, max: usize| {
            let state = self.state();
            let views = state.devices(app, filter, after.map_or(first, |view| Some(view.at.device)), max);
            views.into_iter().map(|view| self.with_last_seen(view)).collect()
        };
        in_slices(max, DEVICES_AT_ONCE, |last, max| slice(last, after, max))
    }

    fn message(&self, app: AppNo, id: MessageId) -> Option<MessageView> {
        self.noted_state().message(app, id)
    }

    fn messages(&self, app: AppNo, before: Option<MessageId>, max: usize) -> Vec<MessageView> {
        in_slices(max, VIEWS_AT_ONCE, |last: Option<&MessageView>, max| {
            self.noted_state().messages(app, last.map_or(before, |view| Some(view.id)), max)
        })
    }

    fn deliveries(
        &self,
        app: AppNo,
        id: MessageId,
        step: Option<Step>,
        after: Option<DeviceNo>,
        max: usize,
    ) -> Vec<DeliveryView> {
        self.noted_state().deliveries(app, id, step, after, max)
    }

    fn delivery(&self, app: AppNo, id: MessageId, device: DeviceNo) -> Option<DeliveryView> {
        self.noted_state().delivery(app, id, device)
    }

    /// App by app, so that others get at the state in between.
    fn audit(&self) -> Audit {
        let apps = (0..).map_while(|no| Some((AppNo(no), self.state().audit_app(AppNo(no))?)));
        Audit { apps: apps.collect() }
    }

    fn content(&self, blob: BlobRef) -> Result<Arc<Content>, StoreError> {
        let content = self.shared.folder.content(blob);
        if let Err(StoreError::Corrupt(what)) = &content {
            tracing::error!(what, "a stored content is damaged");
            self.shared.stats.quarantined.fetch_add(1, Ordering::Relaxed);
        }
        content.map(Arc::new)
    }

    fn events(&self, app: AppNo, after: u64, max: usize) -> Result<EventPage, StoreError> {
        self.shared.events.page(app, after, max)
    }

    fn receipt_before(&self, at: UnixMillis) -> Result<u64, StoreError> {
        self.shared.events.before(at)
    }

    fn last_receipt(&self) -> u64 {
        self.shared.events.last()
    }

    fn epoch_of(&self, receipt: u64) -> u64 {
        self.history.start_of(receipt)
    }

    fn epoch(&self) -> u64 {
        self.history.present()
    }

    fn knows(&self, epoch: u64, place: Place) -> bool {
        let now =
            Reached { seq: self.shared.durable.load(Ordering::Acquire), event: self.shared.events.last() };
        self.history.knows(epoch, place, now)
    }

    fn starts(&self) -> Vec<Start> {
        self.history.starts()
    }

    fn last_command(&self) -> Seq {
        self.shared.durable.load(Ordering::Acquire)
    }

    fn cursor_key(&self) -> [u8; 32] {
        let id = self.shared.folder.store_id.to_le_bytes();
        std::array::from_fn(|i| id[i % id.len()])
    }

    fn stats(&self) -> StoreStats {
        let shared = &self.shared;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (open_messages, open_deliveries) = self.state().open_counts();
        let stats = &shared.stats;
        StoreStats {
            commands: of(&stats.commands),
            commits: of(&stats.commits),
            bytes_written: of(&stats.bytes_written),
            disk_bytes: shared.folder.closed_bytes() + of(&stats.segment_bytes) + shared.events.disk_bytes(),
            open_messages,
            open_deliveries,
            queue: shared.queue.len() as u64,
            commit_micros_total: of(&stats.commit_micros),
            sync_micros_total: of(&stats.sync_micros),
            checkpoints: of(&stats.checkpoints),
            quarantined: of(&stats.quarantined),
            receipts_waiting_bytes: shared.events.waiting_bytes(),
        }
    }

    fn refuses(&self) -> Option<StoreError> {
        if let Some(why) = self.shared.queue.closed() {
            return Some(why);
        }
        // Looked at anew while it is low, else nobody would notice that space came back.
        let shared = &self.shared;
        (shared.space.is_low() && shared.space.look(&shared.folder)).then(|| shared.space.refusal())
    }

    fn warnings(&self) -> Vec<String> {
        self.shared.events.trouble(&self.shared.folder).into_iter().collect()
    }

    crate::delegate_reads!();
}

/// A long list, a slice at a time: the state is free in between. `slice` gets the last one so far, and how many to give.
fn in_slices<T>(max: usize, at_once: usize, slice: impl Fn(Option<&T>, usize) -> Vec<T>) -> Vec<T> {
    let mut all = Vec::new();
    while all.len() < max {
        let wanted = at_once.min(max - all.len());
        let more = slice(all.last(), wanted);
        let is_last = more.len() < wanted;
        all.extend(more);
        if is_last {
            break;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::config::EmbeddedConfig;
    use crate::faulty::FaultyFiles;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn a_state_that_a_panic_left_half_changed_is_not_used_on() {
        let config =
            EmbeddedConfig { min_free_bytes: 0, min_free_percent: 0, ..EmbeddedConfig::new("/data") };
        let store = EmbeddedStore::open(config, Arc::new(FaultyFiles::new(1))).unwrap();
        let changing = catch_unwind(AssertUnwindSafe(|| {
            let _state = store.state_mut();
            panic!("in the middle of a change");
        }));
        assert!(changing.is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| store.apps())).is_err(), "what it would say may be wrong");
        assert!(matches!(store.refuses(), Some(StoreError::Failed(_))));
        let (tell, told) = std::sync::mpsc::channel();
        store.submit(Vec::new(), Box::new(move |result| drop(tell.send(result))));
        assert!(matches!(told.recv().unwrap(), Err(StoreError::Failed(_))));
        store.close();
    }
}
