//! Everything that is kept, in memory, as one deterministic state machine.
//!
//! [`State::execute`] is the only way to change what is durable. It reads no clock and draws no chance: executed again,
//! the same commands give the same state. Embedded storage journals the commands; recovery executes them once more.
//!
//! ```text
//!   messages: seq -> Message ── content in the store's files (BlobRef)
//!      ▲           └─ Extra: report (sets of devices by step), broadcast (set of devices still open)
//!      │
//!   App ── inboxes: device -> [entry, entry, …]     direct messages: one small entry a device
//!       └─ broadcasts: [seq, seq, …]                large audiences: one row, read through the `open` sets
//! ```

pub(crate) mod app;
mod apps;
mod casts;
mod collapse;
mod deliver;
mod devices;
mod forward;
pub(crate) mod jobs;
mod leaving;
mod live;
pub(crate) mod message;
mod read;
mod report;
pub(crate) mod rows;
pub mod rules;
mod shares;
#[cfg(test)]
mod tests;
mod timers;
pub(crate) mod volatile;
mod webhooks;

use crate::command::*;
use crate::id::*;
use crate::model::*;
use crate::port::Counters;
use crate::seeded::{self, Bug};
use app::{App, FirstAnswer};
pub use devices::apply_change;
use jobs::Jobs;
use leaving::Leaving;
pub use live::Live;
use message::Message;
use rules::Rules;
use rustc_hash::FxHashMap;
use std::collections::HashMap;
use timers::{Timer, Timers};
pub use volatile::{Over, Volatile};

/// See the module.
#[derive(Debug, Default)]
pub struct State {
    /// Number of the last command executed.
    pub(crate) seq: Seq,
    /// Latest time in any command.
    pub(crate) last_time: UnixMillis,
    /// Number of receipt events so far.
    pub(crate) events: u64,
    pub(crate) apps: Vec<App>,
    pub(crate) platform_keys: Vec<StoredKey>,
    pub(crate) messages: FxHashMap<Seq, Message>,

    /// Of the devices that can prove their secret without showing it.
    pub(crate) proof_keys: FxHashMap<DeviceRef, ProofKeys>,
    pub(crate) jobs: Jobs,

    // Indexes, made again by `rebuild`.
    timers: Timers,
    apps_by_id: HashMap<String, AppNo>,
    keys_by_hash: HashMap<[u8; 32], (Option<AppNo>, usize)>,

    // Of the commit under way.
    leaving: Leaving,
    /// Those of an earlier release, while its journal is executed again.
    pub(crate) rules: Rules,
}

/// What an execution brings forth beside its outcome.
#[derive(Debug, Default)]
pub struct Effects {
    /// Rows for the receipt stream, in order, with positions.
    pub events: Vec<ReceiptEvent>,
    /// Contents that nobody needs any more.
    pub released: Vec<BlobRef>,
    /// For what is known beside the state: deliveries that ended.
    pub over: Vec<Over>,
}

impl State {
    /// Executes the next command; its number is `self.seq() + 1`. `blob` says where its content will lie.
    pub fn execute(&mut self, command: &Command, blob: BlobRef, effects: &mut Effects) -> Outcome {
        self.seq += 1;
        let result = match command {
            Command::CreateApp { id, name, at } => self.create_app(id, name, *at),
            Command::AddKey { app, key, keys_max } => self.add_key(*app, key, *keys_max),
            Command::RevokeKey { app, key_id, at } => self.revoke_key(*app, key_id, *at),
            Command::Register(registration) => self.register(registration),
            Command::ChangeDevice { at, change } => self.change_device(*at, change),
            Command::DeleteDevice { at, now } => self.delete_device(*at, *now, effects),
            Command::OpenSession { at, expiry_secs, fresh, now } => {
                self.open_session(*at, *expiry_secs, *fresh, *now, effects)
            }
            Command::LeaveSession { at, expiry_secs, now } => self.leave_session(*at, *expiry_secs, *now),
            Command::EndSession { at, now } => self.end_session(*at, *now, effects),
            Command::Subscribe { at, subscriptions } => self.subscribe(*at, subscriptions),
            Command::Unsubscribe { at, filters } => self.unsubscribe(*at, filters),
            Command::Accept(message) => self.accept(message, blob, effects),
            Command::Progress { app, steps, now } => self.progress(*app, steps, *now, effects),
            Command::Forward(forward) => self.forward(forward, effects),
            Command::Cancel { app, message, now } => self.cancel(*app, *message, *now, effects),
            Command::Expire { now, limit, history_before, history_max } => {
                let history = (*history_before, *history_max);
                Ok(match self.rules {
                    Rules::First(_) => self.expire_by_first_rules(*now, *limit, history, effects),
                    Rules::Present => self.expire(*now, *limit, history, effects),
                })
            }
            Command::Retain { app, topic, message } => {
                self.retain(*app, topic, message.as_ref(), blob, effects)
            }
            Command::Enroll { registration, proof_keys } => self.enroll(registration, proof_keys),
            Command::ChangeSecret { at, secret_hash, proof_keys } => {
                self.change_secret(*at, *secret_hash, proof_keys)
            }
            Command::Seen { at, now } => self.first_seen(*at, *now),
            Command::HearPeers { at, hears } => self.hear_peers(*at, *hears),
            Command::ClearInbox { at, now } => self.clear_inbox(*at, *now, effects),
            Command::RenameApp { app, name } => self.rename_app(*app, name),
            Command::CloseApp { app, now } => self.close_app(*app, *now),
            Command::EmptyApp { app, limit, now } => self.empty_app(*app, *limit, *now, effects),
            Command::HandOn(hand_on) => self.hand_on_command(hand_on, effects),
            Command::OpenJob { name, cursor, due_at, now } => {
                self.open_job_command(*name, *cursor, *due_at, *now)
            }
            Command::ClaimJobs { kind, worker, max, until, now, only } => {
                Ok(self.claim_jobs((*kind, *only), *worker, *max, *until, *now))
            }
            Command::SettleJob { job, lease, cursor, outcome, now } => {
                self.settle_job(*job, *lease, *cursor, outcome, *now)
            }
            Command::WakeJobs { jobs, failed_too, now } => Ok(self.wake_jobs(jobs, *failed_too, *now)),
            Command::RewindJob { job, cursor, now } => self.rewind_job(*job, *cursor, *now),
            Command::CloseJob { job, now } => self.close_job(*job, *now),
            Command::PutWebhook(put) => self.put_webhook(put),
            Command::DropWebhook { app, id } => self.drop_webhook(*app, id),
            Command::MoveWebhook(moved) => self.move_webhook(moved),
            Command::ReplayWebhook { app, id, position } => self.replay_webhook(*app, id, *position),
        };
        result.unwrap_or_else(|refusal| {
            if blob.len > 0 {
                effects.released.push(blob);
            }
            Outcome::Refused(refusal)
        })
    }

    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// All commands up to `durable` are on stable storage: what they ended needs to be seen by nobody any more.
    pub fn settle(&mut self, durable: Seq) {
        self.leaving.settle(durable);
    }

    /// For the seeded bug of that name: the last number is given once more.
    #[doc(hidden)]
    pub fn reuse_seq(&mut self) {
        if seeded::is(Bug::SeqReused) {
            self.seq = self.seq.saturating_sub(1);
        }
    }

    /// After reading a stored image: makes the indexes, which are not stored.
    pub fn rebuild(&mut self) {
        for (i, app) in self.apps.iter_mut().enumerate() {
            let no = AppNo(i as u32);
            app.rebuild();
            if app.closed_at.is_none() {
                self.apps_by_id.insert(app.id.clone(), no);
            }
            for (k, key) in app.keys.iter().enumerate() {
                self.keys_by_hash.insert(key.hash, (Some(no), k));
            }
            for (device, session) in app.sessions() {
                if let Some(end) = session.ends_at() {
                    self.timers.set(end, Timer::EndSession(DeviceRef { app: no, device }));
                }
            }
        }
        for (k, key) in self.platform_keys.iter().enumerate() {
            self.keys_by_hash.insert(key.hash, (None, k));
        }
        let mut keyed = Vec::new();
        for (seq, message) in &self.messages {
            let app = &mut self.apps[message.app.0 as usize];
            if let Some(id) = message.id() {
                app.reports.insert(id, *seq);
            }
            if message.open == 0 {
                continue;
            }
            app.open += u64::from(message.open);
            app.kept.take(message.blob);
            self.timers.set(ends_at(message.expires_at), Timer::EndMessage(*seq));
            let Some(group) = message.group() else { continue };
            let is_open = |device: &DeviceNo| app.inboxes.get(&device.0).is_some_and(|i| i.holds(*seq));
            let devices = message.direct().into_iter().filter(is_open);
            keyed.extend(devices.map(|device| (message.app, (group, device.0, *seq))));
        }
        self.timers.sort_messages();
        for app in &mut self.apps {
            let ended = |seq: &Seq| self.messages.get(seq).map_or(0, Message::ended_at);
            app.history_ends = app.history.iter().map(ended).collect();
        }
        // A set is made much faster of what is in order.
        keyed.sort_unstable();
        keyed.into_iter().for_each(|(app, entry)| _ = self.apps[app.0 as usize].keyed.insert(entry));
        for app in &mut self.apps {
            for seq in &app.broadcasts {
                let Some(message) = self.messages.get(seq) else { continue };
                let Some(open) = message.broadcast() else { continue };
                app.casts.begin(message.cast(*seq), open, &self.messages);
            }
        }
        (0..self.apps.len()).for_each(|no| self.set_app_timers(AppNo(no as u32)));
        self.rebuild_jobs();
    }

    /// Every content that is still needed, to be moved by a checkpoint. Calls `f` with each reference, which it may change.
    pub fn for_each_blob(&mut self, f: &mut dyn FnMut(&mut BlobRef)) {
        self.messages.values_mut().filter(|m| m.blob.len > 0).for_each(|m| f(&mut m.blob));
        for app in &mut self.apps {
            app.retained.values_mut().for_each(|r| f(&mut r.blob));
            app.count_retained();
        }
        self.leaving.blobs_mut().filter(|blob| blob.len > 0).for_each(f);
    }

    /// Does what is due at `now`: ends deliveries and sessions, wakes jobs, then forgets old reports
    /// and request keys. Each of these kinds gets a share of `limit` to itself, so that a command
    /// takes a bounded time and none of them waits for another.
    fn expire(
        &mut self,
        now: UnixMillis,
        limit: u32,
        history: (UnixMillis, u32),
        effects: &mut Effects,
    ) -> Outcome {
        self.saw(now);
        // A message counts as many times as it has devices of its own; a broadcast ends for all of them at once.
        let weight = |message: &Message| if message.broadcast().is_some() { 1 } else { message.open };
        let messages = self.expire_messages(now, limit, weight, effects);
        let (sessions, handed_on) = self.expire_sessions(now, limit, effects);
        self.wake_due_jobs(now, limit);
        let reports_left = self.forget_old(limit, history, effects);
        let requests_left = self.forget_requests(now, limit);
        self.forget_retained(now, effects);
        let more = self.next_due().is_some_and(|due| due <= now) || reports_left || requests_left;
        // With no room for anything, asking again is of no use.
        Outcome::Expired { messages, sessions, handed_on, more: more && limit > 0 }
    }

    /// How many messages ended. `weight`: how much of the limit each takes.
    fn expire_messages(
        &mut self,
        now: UnixMillis,
        limit: u32,
        weight: impl Fn(&Message) -> u32,
        effects: &mut Effects,
    ) -> u32 {
        let (mut messages, mut left) = (0, limit);
        while left > 0 {
            let Some(seq) = self.timers.take_message(now) else { break };
            let Some(message) = self.messages.get(&seq).filter(|m| m.open > 0) else { continue };
            left = left.saturating_sub(weight(message));
            self.end_all_open(seq, Step::Expired, Reason::Ttl, now, effects);
            messages += 1;
        }
        messages
    }

    /// The sessions, and who got messages of them. A session counts once, and once for each message of its inbox.
    fn expire_sessions(
        &mut self,
        now: UnixMillis,
        limit: u32,
        effects: &mut Effects,
    ) -> (Vec<DeviceRef>, Vec<DeviceRef>) {
        let (mut sessions, mut handed_on, mut left) = (Vec::new(), Vec::new(), limit);
        while left > 0
            && let Some(at) = self.timers.take_session(now)
        {
            let inbox = self.app_ref(at.app).and_then(|app| app.inboxes.get(&at.device.0));
            let waiting = inbox.map_or(0, |inbox| inbox.entries.len() as u32);
            left = left.saturating_sub(waiting.saturating_add(1));
            let Ok(outcome) = self.end_session(at, now, effects) else { continue };
            sessions.push(at);
            if let Outcome::HandedOn(takers) = outcome {
                handed_on.extend(takers);
            }
        }
        (sessions, handed_on)
    }

    /// Forgets reports of messages that ended before `before`, and of each app the oldest above `max`; true if there are
    /// more of them. A busy app so never takes the reports of another.
    fn forget_old(&mut self, limit: u32, (before, max): (UnixMillis, u32), effects: &mut Effects) -> bool {
        if self.timers.reports_max() != Some(max) {
            self.timers.set_reports_max(max);
            let counts = self.apps.iter().enumerate().map(|(no, app)| (AppNo(no as u32), app.history.len()));
            counts.for_each(|(no, count)| self.timers.count_reports(no, count));
        }
        let (mut left, mut more) = (limit, false);
        for no in self.timers.apps_with_old_reports(before) {
            let app = &mut self.apps[no.0 as usize];
            while left > 0 && app.has_old_report(before, max) {
                left -= 1;
                app.history_ends.pop_front();
                let Some(seq) = app.history.pop_front() else { continue };
                forget(seq, &mut self.messages, app, effects);
            }
            more |= app.has_old_report(before, max);
            self.set_app_timers(no);
        }
        more
    }

    /// Whether the limit did not suffice for all.
    fn forget_requests(&mut self, now: UnixMillis, limit: u32) -> bool {
        let mut left = limit;
        for no in self.timers.apps_with_old_requests(now) {
            left -= self.apps[no.0 as usize].forget_requests(now, left);
            self.set_app_timers(no);
        }
        left == 0
    }

    fn forget_retained(&mut self, now: UnixMillis, effects: &mut Effects) {
        for no in self.timers.apps_with_old_retained(now) {
            self.apps[no.0 as usize].forget_retained(now, &mut effects.released);
            self.set_app_timers(no);
        }
    }

    /// A repetition of the request gets the same answer, until the key is forgotten.
    fn remember(&mut self, no: AppNo, request: Option<&Idempotency>, answer: FirstAnswer) {
        if request.is_some() {
            self.apps[no.0 as usize].remember(request, answer);
            self.set_app_timers(no);
        }
    }

    /// What is first to be forgotten of an app may be another than before.
    fn set_app_timers(&mut self, no: AppNo) {
        let Some(app) = self.apps.get(no.0 as usize) else { return };
        let timers = &mut self.timers;
        timers.count_reports(no, app.history.len());
        for (timer, at) in [
            (Timer::ForgetReports(no), app.history_ends.front().copied()),
            (Timer::ForgetRequests(no), app.first_request_until()),
            (Timer::ForgetRetained(no), app.first_retained_end()),
        ] {
            match at {
                Some(at) => timers.set(at, timer),
                None => timers.cancel(0, timer),
            }
        }
    }

    /// When something of what [`Self::expire`] ends is due.
    fn next_due(&self) -> Option<UnixMillis> {
        self.timers.next_due()
    }

    fn saw(&mut self, at: UnixMillis) {
        self.last_time = self.last_time.max(at);
    }

    fn app_mut(&mut self, app: AppNo) -> Result<&mut App, Refusal> {
        self.apps.get_mut(app.0 as usize).ok_or(Refusal::NoSuchApp)
    }

    /// An app that is not closed: one that may get something.
    fn open_app_mut(&mut self, app: AppNo) -> Result<&mut App, Refusal> {
        self.app_mut(app)
            .and_then(|app| if app.closed_at.is_none() { Ok(app) } else { Err(Refusal::NoSuchApp) })
    }

    fn app_ref(&self, app: AppNo) -> Option<&App> {
        self.apps.get(app.0 as usize)
    }

    fn retain(
        &mut self,
        app: AppNo,
        topic: &str,
        message: Option<&RetainedMessage>,
        blob: BlobRef,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let no = app;
        let app = self.open_app_mut(no)?;
        if let Some(room) = message.and_then(|new| new.room) {
            // Also where it takes the place of another one: nobody says that that was as large.
            let has_room = app.retained_bytes + u64::from(blob.len) <= room.bytes_max;
            let fits = app.retained.contains_key(topic) || (app.retained.len() as u64) < room.messages_max;
            if !(has_room && fits) {
                return Err(Refusal::RetainedFull);
            }
        }
        let (qos, expires_at) = message.map_or((0, 0), |new| (new.qos, new.expires_at));
        let kept = message.map(|_| Retained { topic: topic.to_owned(), qos, expires_at, blob });
        let old = app.retain(topic, kept);
        effects.released.extend(old.map(|r| r.blob));
        self.set_app_timers(no);
        Ok(Outcome::Done)
    }
}

/// A message of the app is known no more.
fn forget(seq: Seq, messages: &mut FxHashMap<Seq, Message>, app: &mut App, effects: &mut Effects) {
    effects.over.push(Over::Message(seq));
    if let Some(id) = messages.remove(&seq).and_then(|message| message.id()) {
        app.reports.remove(&id);
    }
}

/// Messages are ended by whole seconds, up to one late (`pending` hides them to the millisecond): so that a second's
/// messages are due all together, and replaying a journal from any point ends the same ones with the same command.
fn ends_at(expires_at: UnixMillis) -> UnixMillis {
    let second =
        if seeded::is(Bug::ExpiryRoundsDown) { expires_at / 1000 } else { expires_at.div_ceil(1000) };
    second.saturating_mul(1000)
}

/// Adds a step to the books and the receipt stream.
struct Ledger<'a> {
    events: &'a mut u64,
    counters: &'a mut Counters,
    effects: &'a mut Effects,
}

impl Ledger<'_> {
    /// `count` deliveries of one message came to `step`; `device` is named when it is one.
    fn record(&mut self, event: ReceiptEvent, tracked: bool) {
        if event.step.ends() {
            self.counters.ended[event.step as usize] += event.count;
        }
        if tracked {
            *self.events += 1;
            self.effects.events.push(ReceiptEvent { position: *self.events, ..event });
        }
    }
}
