//! What happens to deliveries: they are created, take steps, and end in exactly one way.

use super::app::{App, Entry, FirstAnswer, Inbox};
use super::forward::end_of_forwarded;
use super::leaving::comes_from_outside;
use super::message::{Message, Targeted};
use super::timers::Timer;
use super::volatile::Over;
use super::{Effects, Ledger, State};
use crate::command::*;
use crate::id::*;
use crate::model::*;
use crate::seeded::{self, Bug};

/// How a delivery ends.
pub(super) type End = (Step, Reason);

impl State {
    pub(super) fn accept(
        &mut self,
        new: &NewMessage,
        blob: BlobRef,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        self.saw(new.accepted_at);
        let seq = self.seq;
        let asked = if seeded::is(Bug::RequestKeyOfAnyApp) { AppNo(0) } else { new.app };
        let app = self.open_app_mut(asked)?;
        if let Some((earlier, answer)) = app.earlier(new.idempotency.as_ref()) {
            let same = new.idempotency.is_some_and(|i| i.request == earlier.request);
            let FirstAnswer::Message { id, seq, targeted } = *answer else {
                return Err(Refusal::IdempotencyMismatch);
            };
            if !same {
                return Err(Refusal::IdempotencyMismatch);
            }
            effects.released.push(blob);
            return Ok(Outcome::Accepted(Acceptance {
                id,
                seq,
                targeted,
                repeated: true,
                full: 0,
                holder: None,
            }));
        }
        has_room(app, new)?;
        let (direct, full) = self.direct_targets(new, blob, effects);
        let mut message = Message::new(new, &direct, blob, &self.rules);
        let targeted = self.create_deliveries(&mut message, new, &direct);
        if targeted == 0 && full > 0 {
            return Err(Refusal::InboxFull);
        }
        let answer = FirstAnswer::Message { id: new.id, seq, targeted };
        self.remember(new.app, new.idempotency.as_ref(), answer);
        let app = &mut self.apps[new.app.0 as usize];
        app.counters.messages += 1;
        app.counters.created += targeted;
        app.open += targeted;
        app.kept.take(blob);
        let queued = event(&message, only(&direct), (Step::Queued, Reason::None), targeted, new.accepted_at);
        let queued = ReceiptEvent { submission: new.submission.clone(), ..queued };
        self.ledger(new.app, effects).record(queued, new.tracked);
        if let Some(report) = message.report_mut().filter(|_| new.submission.is_some()) {
            report.position = self.events;
        }
        let app = &mut self.apps[new.app.0 as usize];
        if let Some(id) = message.id() {
            app.reports.insert(id, seq);
        }
        if message.open > 0 {
            self.timers.set(super::ends_at(new.expires_at), Timer::EndMessage(seq));
        }
        let is_keyed = message.group().is_some();
        let cast = message.cast(seq);
        self.messages.insert(seq, message);
        if matches!(new.targets, Targets::Broadcast(_))
            && let Some(open) = self.messages.get(&seq).and_then(Message::broadcast)
        {
            app.casts.begin(cast, open, &self.messages);
        }
        if is_keyed {
            self.collapse(seq, effects);
        }
        self.close_if_ended(seq, effects);
        let holder = matches!(new.targets, Targets::Shared(_)).then(|| only(&direct)).flatten();
        Ok(Outcome::Accepted(Acceptance { id: new.id, seq, targeted, repeated: false, full, holder }))
    }

    /// Those of the direct targets that exist and have room, after eviction where that makes room; and how many had none.
    fn direct_targets(
        &mut self,
        new: &NewMessage,
        blob: BlobRef,
        effects: &mut Effects,
    ) -> (Vec<Target>, u64) {
        let shared;
        let list = match &new.targets {
            Targets::Direct(list) => list,
            Targets::Broadcast(_) => return (Vec::new(), 0),
            Targets::Shared(_) => {
                shared = self.shared_target(new, blob).into_iter().collect::<Vec<_>>();
                &shared
            }
        };
        let mut targets = Vec::with_capacity(list.len());
        let mut full = 0;
        for target in list {
            let at = DeviceRef { app: new.app, device: target.device };
            if self.apps[new.app.0 as usize].device(target.device).is_none() {
                continue;
            }
            if self.make_room(at, new, u64::from(blob.len), effects) {
                targets.push(target.clone());
            } else {
                full += 1;
            }
        }
        (targets, full)
    }

    /// Evicts from a full inbox, oldest of the least urgent first, or says that there is no room.
    fn make_room(&mut self, at: DeviceRef, new: &NewMessage, bytes: u64, effects: &mut Effects) -> bool {
        loop {
            let Some(inbox) = self.apps[at.app.0 as usize].inboxes.get(&at.device.0) else { return true };
            if new.peer_inbox_max > 0 && inbox.peers() >= new.peer_inbox_max as usize {
                return false;
            }
            let fits = inbox.entries.len() < new.inbox_max as usize
                && (inbox.entries.is_empty() || inbox.bytes + bytes <= u64::from(new.inbox_bytes_max));
            if fits {
                return true;
            }
            // A push takes the place of a message of another device first, and needs no leave for it.
            let gives_way =
                |victim: &Entry| !new.reject_when_full || (victim.peer() && new.peer_inbox_max == 0);
            let Some(victim) = inbox.victim().filter(gives_way) else { return false };
            let evicted = (Step::Evicted, Reason::QueueFull);
            if seeded::is(Bug::EvictionWithoutReceipt) {
                self.end_one(at, victim.seq(), evicted, new.accepted_at, &mut Effects::default());
                continue;
            }
            self.end_one(at, victim.seq(), evicted, new.accepted_at, effects);
        }
    }

    fn create_deliveries(&mut self, message: &mut Message, new: &NewMessage, direct: &[Target]) -> u64 {
        let seq = self.seq;
        let app = &mut self.apps[new.app.0 as usize];
        if let Targets::Broadcast(set) = &new.targets {
            let set = set & &app.all;
            message.open = set.len() as u32;
            if let Some(report) = message.report_mut() {
                report.targeted = Targeted::Broadcast(set.clone());
            }
            if let Some(extra) = &mut message.extra
                && message.open > 0
            {
                extra.broadcast = Some(set);
                app.broadcasts.insert(seq);
            }
            return u64::from(message.open);
        }
        let group = message.group();
        for target in direct {
            let inbox = app.inboxes.entry(target.device.0).or_default();
            let entry = Entry::new(seq, target, new.push, new.priority);
            let entry = if new.peer_inbox_max > 0 { entry.of_peer() } else { entry };
            inbox.push(entry, message.blob.len);
            if !target.subscription_ids.is_empty() {
                app.entry_ids.insert((target.device.0, seq), target.subscription_ids.clone());
            }
            if let Some(group) = group {
                app.keyed.insert((group, target.device.0, seq));
            }
        }
        message.open = direct.len() as u32;
        u64::from(message.open)
    }

    pub(super) fn is_open(&self, seq: Seq, device: DeviceNo) -> bool {
        let Some(message) = self.messages.get(&seq) else { return false };
        match message.broadcast() {
            Some(open) => open.contains(device.0),
            None => {
                let inbox = self.apps[message.app.0 as usize].inboxes.get(&device.0);
                inbox.is_some_and(|inbox| inbox.holds(seq))
            }
        }
    }

    pub(super) fn progress(
        &mut self,
        app: AppNo,
        steps: &[Progress],
        now: UnixMillis,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        self.saw(now);
        self.app_mut(app)?;
        let mut taken = 0;
        for step in steps {
            let seq = match step.which {
                Which::Seq(seq) => Some(seq),
                Which::Id(id) => self.apps[app.0 as usize].reports.get(&id).copied(),
            };
            let known = seq.filter(|seq| self.messages.get(seq).is_some_and(|m| m.app == app));
            taken += usize::from(known.is_some_and(|seq| self.take_step(app, seq, step, now, effects)));
        }
        Ok(Outcome::Progressed { taken })
    }

    /// One step of one delivery; false if it is not this device's, comes again, or comes too late.
    fn take_step(
        &mut self,
        app: AppNo,
        seq: Seq,
        step: &Progress,
        now: UnixMillis,
        effects: &mut Effects,
    ) -> bool {
        let at = DeviceRef { app, device: step.device };
        let open = self.is_open(seq, step.device);
        if open
            && let Some(sent_at) = step.sent_at
            && let Some(message) = self.messages.get_mut(&seq)
        {
            message.note(step.device, Step::Sent, Reason::None, sent_at);
        }
        if !step.step.by_app() {
            return open && step.step.ends() && self.end_one(at, seq, (step.step, step.reason), now, effects);
        }
        // What was displayed or clicked did arrive, also where the acknowledgement is still on its way.
        if open {
            self.end_one(at, seq, (Step::Delivered, Reason::None), now, effects);
        }
        let Some(message) = self.messages.get_mut(&seq) else { return false };
        let was_delivered = message.report().is_some_and(|r| r.has(step.device, Step::Delivered));
        if !was_delivered || !message.note(step.device, step.step, step.reason, now) {
            return false;
        }
        let row = event(message, Some(step.device), (step.step, step.reason), 1, now);
        self.ledger(app, effects).record(row, true);
        true
    }

    /// Ends the delivery of one message to one device; false if it was not open.
    pub(super) fn end_one(
        &mut self,
        at: DeviceRef,
        seq: Seq,
        end: End,
        now: UnixMillis,
        effects: &mut Effects,
    ) -> bool {
        if comes_from_outside(end.0) {
            self.show_until_durable(at, seq);
        }
        let Some(message) = self.messages.get_mut(&seq) else { return false };
        let end = if message.is_forwarded(at.device) { end_of_forwarded(end) } else { end };
        let app = &mut self.apps[at.app.0 as usize];
        let is_broadcast = message.broadcast().is_some();
        let was_open = match message.broadcast_mut() {
            Some(open) if seeded::is(Bug::BroadcastStaysOpen) => open.contains(at.device.0),
            Some(open) => open.remove(at.device.0),
            None => take_entry(&mut app.inboxes, at.device, seq, message.blob.len),
        };
        if !was_open {
            return false;
        }
        effects.over.push(Over::Delivery(at, seq));
        app.entry_ids.remove(&(at.device.0, seq));
        app.open -= 1;
        message.open -= 1;
        message.note(at.device, end.0, end.1, now);
        let tracked = message.report().is_some();
        let row = event(message, Some(at.device), end, 1, now);
        let cast = message.cast(seq);
        if is_broadcast {
            app.casts.leave(cast, at.device, &self.messages);
        } else if let Some(group) = cast.group {
            app.keyed.remove(&(group, at.device.0, seq));
        }
        self.ledger(at.app, effects).record(row, tracked);
        self.close_if_ended(seq, effects);
        true
    }

    /// A delivery that is about to end is seen on, until that is on stable storage.
    fn show_until_durable(&mut self, at: DeviceRef, seq: Seq) {
        if let Some(pending) = self.pending_at(at, seq) {
            self.leaving.one(at, self.seq, pending);
        }
    }

    /// Ends the message for those of `devices` for which it is open.
    pub(super) fn end_some(
        &mut self,
        seq: Seq,
        devices: &DeviceSet,
        end: End,
        now: UnixMillis,
        effects: &mut Effects,
    ) {
        let Some(message) = self.messages.get_mut(&seq) else { return };
        let app = message.app;
        let Some(open) = message.broadcast_mut() else {
            for device in message.direct().into_iter().filter(|d| devices.contains(d.0)) {
                self.end_one(DeviceRef { app, device }, seq, end, now, effects);
            }
            return;
        };
        let ending = &*open & devices;
        if end_of_forwarded(end) != end
            && let Some(forwarded) = message.forwarded().map(|set| set & &ending).filter(|f| !f.is_empty())
        {
            self.end_some(seq, &forwarded, end_of_forwarded(end), now, effects);
            return self.end_some(seq, &(ending - forwarded), end, now, effects);
        }
        let Some(open) = message.broadcast_mut() else { return };
        *open -= &ending;
        let count = ending.len();
        if count == 0 {
            return;
        }
        message.open -= count as u32;
        if comes_from_outside(end.0) {
            self.leaving.some(app, ending.clone(), self.seq, super::read::pending_of_all(seq, message));
        }
        message.note_all(ending.clone(), end.0, end.1, now);
        let (row, tracked) = (event(message, None, end, count, now), message.report().is_some());
        let cast = message.cast(seq);
        let tenant = &mut self.apps[app.0 as usize];
        tenant.open -= count;
        tenant.casts.leave_all(cast, &ending, &self.messages);
        self.ledger(app, effects).record(row, tracked);
        self.close_if_ended(seq, effects);
    }

    /// Ends the message for every device for which it is open.
    pub(super) fn end_all_open(
        &mut self,
        seq: Seq,
        step: Step,
        reason: Reason,
        now: UnixMillis,
        effects: &mut Effects,
    ) {
        let Some(message) = self.messages.get(&seq) else { return };
        let app = message.app;
        match message.broadcast().cloned() {
            Some(open) => self.end_some(seq, &open, (step, reason), now, effects),
            None => {
                for device in message.direct() {
                    self.end_one(DeviceRef { app, device }, seq, (step, reason), now, effects);
                }
            }
        }
    }

    pub(super) fn cancel(
        &mut self,
        app: AppNo,
        id: MessageId,
        now: UnixMillis,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        self.saw(now);
        let known = self.app_ref(app).and_then(|app| app.reports.get(&id)).copied();
        let seq = known.ok_or(Refusal::NoSuchMessage)?;
        let message = self.messages.get_mut(&seq).ok_or(Refusal::NoSuchMessage)?;
        let open = u64::from(message.open);
        if let Some(report) = message.report_mut() {
            report.cancelled_at.get_or_insert(now);
        }
        self.end_all_open(seq, Step::Cancelled, Reason::Recalled, now, effects);
        Ok(Outcome::Cancelled { open })
    }

    /// Ends those of a device's direct deliveries that `which` picks.
    pub(super) fn end_inbox(
        &mut self,
        at: DeviceRef,
        which: fn(&Entry) -> bool,
        end: End,
        now: UnixMillis,
        effects: &mut Effects,
    ) {
        let Some(inbox) = self.apps[at.app.0 as usize].inboxes.get(&at.device.0) else { return };
        let ending: Vec<Seq> = inbox.entries.iter().filter(|e| which(e)).map(|e| e.seq()).collect();
        for seq in ending {
            self.end_one(at, seq, end, now, effects);
        }
    }

    /// Takes a device out of the broadcasts that are open for it.
    pub(super) fn leave_broadcasts(
        &mut self,
        at: DeviceRef,
        end: End,
        now: UnixMillis,
        effects: &mut Effects,
    ) {
        let Some(app) = self.app_ref(at.app) else { return };
        let of = |urgent| app.casts.lane(urgent).open_for(at.device, 0, &self.messages);
        let mut open: Vec<Seq> = of(true).chain(of(false)).collect();
        if self.rules.are_the_first() {
            open.sort_unstable();
        }
        for seq in open {
            self.end_one(at, seq, end, now, effects);
        }
    }

    /// A message that ended for everybody needs its content no more; its report is kept a while, if it has one.
    fn close_if_ended(&mut self, seq: Seq, effects: &mut Effects) {
        let Some(message) = self.messages.get_mut(&seq).filter(|m| m.open == 0) else { return };
        if message.broadcast().is_some() {
            self.end_broadcast(seq);
            return self.close_if_ended(seq, effects);
        }
        let app = &mut self.apps[message.app.0 as usize];
        app.kept.give_back(message.blob);
        if message.blob.len > 0 {
            effects.released.push(std::mem::take(&mut message.blob));
        }
        let (no, ends_at) = (message.app, super::ends_at(message.expires_at));
        match message.report_mut() {
            Some(report) => {
                report.rows.shrink_to_fit();
                app.history_ends.push_back(message.ended_at());
                app.history.push_back(seq);
                self.timers.report_kept(no, app.history_ends.front().copied(), app.history.len());
                self.rules.note_ended(seq);
            }
            None => {
                effects.over.push(Over::Message(seq));
                self.messages.remove(&seq);
            }
        }
        self.timers
            .message_ended(ends_at, |seq| self.messages.get(&seq).is_some_and(|message| message.open > 0));
    }

    fn end_broadcast(&mut self, seq: Seq) {
        let Some(message) = self.messages.get_mut(&seq) else { return };
        let (app, cast) = (message.app, message.cast(seq));
        if let Some(extra) = &mut message.extra {
            extra.broadcast = None;
        }
        let app = &mut self.apps[app.0 as usize];
        app.broadcasts.remove(&seq);
        app.casts.end(cast, &self.messages);
    }

    pub(super) fn ledger<'a>(&'a mut self, app: AppNo, effects: &'a mut Effects) -> Ledger<'a> {
        Ledger { events: &mut self.events, counters: &mut self.apps[app.0 as usize].counters, effects }
    }
}

/// Whether the app's open messages leave room for another one.
fn has_room(app: &App, new: &NewMessage) -> Result<(), Refusal> {
    let Some(room) = new.room else { return Ok(()) };
    if app.kept.messages >= room.messages_max || app.kept.bytes >= room.bytes_max {
        return Err(Refusal::AppFull);
    }
    let is_broadcast = matches!(new.targets, Targets::Broadcast(_));
    if is_broadcast && app.broadcasts.len() as u64 >= room.broadcasts_max {
        return Err(Refusal::TooManyBroadcasts);
    }
    Ok(())
}

/// The device, where there is just one.
fn only(targets: &[Target]) -> Option<DeviceNo> {
    match targets {
        [one] => Some(one.device),
        _ => None,
    }
}

pub(super) fn take_entry(
    inboxes: &mut rustc_hash::FxHashMap<u32, Inbox>,
    device: DeviceNo,
    seq: Seq,
    bytes: u32,
) -> bool {
    let Some(inbox) = inboxes.get_mut(&device.0) else { return false };
    let taken = inbox.remove(seq, bytes).is_some();
    if inbox.entries.is_empty() {
        inboxes.remove(&device.0);
    }
    taken
}

pub(super) fn event(
    message: &Message,
    device: Option<DeviceNo>,
    end: End,
    count: u64,
    at: UnixMillis,
) -> ReceiptEvent {
    ReceiptEvent {
        position: 0,
        at,
        app: message.app,
        message: message.id().unwrap_or(MessageId(0)),
        device,
        step: end.0,
        reason: end.1,
        count,
        submission: None,
        road: None,
    }
}
