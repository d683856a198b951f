//! The state of a running server: the state that its commands made, and what is known beside it.

use super::message::Message;
use super::volatile::Volatile;
use super::{Effects, State};
use crate::command::{Command, Outcome};
use crate::id::*;
use crate::model::*;
use crate::port::*;
use crate::seeded::{self, Bug};
use std::ops::Deref;

/// See the module. Whoever asks it asks the state, and gets what is known beside it in the answer.
#[derive(Debug, Default)]
pub struct Live {
    pub(super) state: State,
    pub(super) volatile: Volatile,
}

impl Deref for Live {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl Live {
    /// A state, and what was known beside it or beside an older one.
    pub fn new(state: State, mut volatile: Volatile) -> Live {
        volatile.review_all(&state);
        Live { state, volatile }
    }

    /// A state that has no indexes yet, and what was stored beside it.
    pub(crate) fn beside(state: State, volatile: Volatile) -> Live {
        Live { state, volatile }
    }

    pub fn into_parts(self) -> (State, Volatile) {
        (self.state, self.volatile)
    }

    /// For a checkpoint, which moves the contents of the one and writes both.
    pub fn parts_mut(&mut self) -> (&mut State, &Volatile) {
        (&mut self.state, &self.volatile)
    }

    pub fn volatile(&self) -> &Volatile {
        &self.volatile
    }

    /// See [`State::execute`].
    pub fn execute(&mut self, command: &Command, blob: BlobRef, effects: &mut Effects) -> Outcome {
        let outcome = self.state.execute(command, blob, effects);
        self.volatile.note_over(self.state.seq, effects.over.drain(..));
        outcome
    }

    /// See [`State::settle`].
    pub fn settle(&mut self, durable: Seq) {
        self.state.settle(durable);
        self.volatile.settle(&self.state, durable);
    }

    /// The last commands never happened: `state` is what the ones before made.
    pub fn undo_to(&mut self, state: State) {
        self.state = state;
        self.volatile.undo(self.state.seq);
    }

    /// See [`State::for_each_blob`].
    pub fn for_each_blob(&mut self, f: &mut dyn FnMut(&mut BlobRef)) {
        self.state.for_each_blob(f);
    }

    /// See [`State::rebuild`].
    pub fn rebuild(&mut self) {
        self.state.rebuild();
    }

    /// See [`Store::sent`]. What ended meanwhile is not marked any more, unless nobody was told yet.
    pub fn sent(&mut self, app: AppNo, deliveries: &[(DeviceNo, Seq)], now: UnixMillis) {
        let Some(inboxes) = self.state.app_ref(app).map(|app| &app.inboxes) else { return };
        for (device, seq) in deliveries {
            let at = DeviceRef { app, device: *device };
            // Most are direct, and then their message need not be looked for.
            let is_direct = || inboxes.get(&device.0).is_some_and(|inbox| inbox.holds(*seq));
            let is_broadcast = || {
                let message = self.state.messages.get(seq).filter(|message| message.app == app);
                message.and_then(Message::broadcast).is_some_and(|open| open.contains(device.0))
            };
            if is_direct() || is_broadcast() || self.state.leaving.holds(at, *seq) {
                self.volatile.mark_sent(*seq, *device, now);
            }
        }
    }

    /// See [`Store::seen`].
    pub fn seen(&mut self, at: DeviceRef, now: UnixMillis) {
        if self.state.app_ref(at.app).is_none_or(|app| app.device(at.device).is_none()) {
            return;
        }
        self.volatile.see(at, now);
        if seeded::is(Bug::SeenWithoutCommand)
            && let Ok(app) = self.state.app_mut(at.app)
            && let Some(device) = app.device_mut(at.device)
        {
            device.last_seen_at = device.last_seen_at.max(Some(now));
        }
    }

    /// See [`Store::pending`].
    pub fn pending(
        &self,
        at: DeviceRef,
        position: Position,
        max: usize,
        now: UnixMillis,
        durable: Seq,
    ) -> Vec<Pending> {
        let mut pending = self.state.pending(at, position, max, now, durable);
        for one in &mut pending {
            one.sent_before |= self.volatile.is_sent(one.seq, at.device);
        }
        pending
    }

    /// See [`Store::shared_entries`].
    pub fn shared_entries(&self, at: DeviceRef) -> Vec<SharedEntry> {
        let mut entries = self.state.shared_entries(at);
        for entry in &mut entries {
            entry.is_sent |= self.volatile.is_sent(entry.seq, at.device);
        }
        entries
    }

    pub fn device(&self, at: DeviceRef) -> Option<DeviceView> {
        self.state.device(at).map(|view| self.with_last_seen(view))
    }

    pub fn devices(
        &self,
        app: AppNo,
        filter: &DeviceFilter,
        after: Option<DeviceNo>,
        max: usize,
    ) -> Vec<DeviceView> {
        let views = self.state.devices(app, filter, after, max);
        views.into_iter().map(|view| self.with_last_seen(view)).collect()
    }

    /// See [`Store::devices_seen`].
    pub fn devices_seen(
        &self,
        app: AppNo,
        filter: &DeviceFilter,
        after: Option<DeviceNo>,
        look: usize,
    ) -> (Vec<(DeviceNo, UnixMillis)>, Option<DeviceNo>) {
        let (mut seen, next) = self.state.devices_seen(app, filter, after, look);
        for (device, last) in &mut seen {
            let here = self.volatile.seen_at(DeviceRef { app, device: *device });
            *last = here.map_or(*last, |here| here.max(*last));
        }
        (seen, next)
    }

    pub fn message(&self, app: AppNo, id: MessageId) -> Option<MessageView> {
        self.state.message_with(app, id, &self.volatile)
    }

    pub fn messages(&self, app: AppNo, before: Option<MessageId>, max: usize) -> Vec<MessageView> {
        self.state.messages_with(app, before, max, &self.volatile)
    }

    pub fn deliveries(
        &self,
        app: AppNo,
        id: MessageId,
        step: Option<Step>,
        after: Option<DeviceNo>,
        max: usize,
    ) -> Vec<DeliveryView> {
        self.state.deliveries_with(app, id, (step, after, max), &self.volatile)
    }

    pub fn delivery(&self, app: AppNo, id: MessageId, device: DeviceNo) -> Option<DeliveryView> {
        self.state.delivery_with(app, id, device, &self.volatile)
    }

    fn with_last_seen(&self, mut view: DeviceView) -> DeviceView {
        view.last_seen_at = view.last_seen_at.max(self.volatile.seen_at(view.at));
        view
    }

    /// For the seeded bug of that name: see [`State::reuse_seq`].
    #[doc(hidden)]
    pub fn reuse_seq(&mut self) {
        self.state.reuse_seq();
    }
}
