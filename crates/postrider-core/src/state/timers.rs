//! Everything that happens later: one queue, which one command empties ([`Command::Expire`]).
//!
//! The queue is an index: what is stored says when each of its timers is due, and `rebuild` sets them
//! again. Each kind of [`Timer`] has a lane of its own, in the most compact form for it. A command
//! goes through the lanes in a fixed order, and gives each a share of its limit to itself, so that a
//! million deliveries that expire at once keep no session and no job waiting.
//!
//! **A new kind**: a variant of [`Timer`], a lane, and what `State::expire` does when it is due.
//!
//! [`Command::Expire`]: crate::command::Command::Expire

use crate::id::*;
use std::collections::{BTreeMap, BTreeSet};

/// What happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// The open deliveries of a message end, by whole seconds.
    EndMessage(Seq),
    /// A session ends to which nobody came back.
    EndSession(DeviceRef),
    /// A job that waited is due, or the lease on it runs out.
    WakeJob(JobNo),
    /// The oldest report of an app ended then: it is forgotten a while later.
    ForgetReports(AppNo),
    /// The oldest request key of an app has to be kept until then.
    ForgetRequests(AppNo),
    /// The first retained message of an app ends.
    ForgetRetained(AppNo),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Timers {
    messages: Messages,
    sessions: BTreeSet<(UnixMillis, DeviceRef)>,
    jobs: BTreeSet<(UnixMillis, JobNo)>,
    reports: AppLane,
    requests: AppLane,
    retained: AppLane,
    crowded: Crowded,
}

impl Timers {
    /// For an app there is one timer of a kind: the new time takes the place of the old one.
    pub fn set(&mut self, at: UnixMillis, timer: Timer) {
        match timer {
            Timer::EndMessage(seq) => self.messages.add(at / 1000, seq),
            Timer::EndSession(device) => _ = self.sessions.insert((at, device)),
            Timer::WakeJob(job) => _ = self.jobs.insert((at, job)),
            Timer::ForgetReports(app) => self.reports.set(app, Some(at)),
            Timer::ForgetRequests(app) => self.requests.set(app, Some(at)),
            Timer::ForgetRetained(app) => self.retained.set(app, Some(at)),
        }
    }

    /// Takes a timer away before its time. That of a message stays: [`Self::message_ended`].
    pub fn cancel(&mut self, at: UnixMillis, timer: Timer) {
        match timer {
            Timer::EndMessage(_) => {}
            Timer::EndSession(device) => _ = self.sessions.remove(&(at, device)),
            Timer::WakeJob(job) => _ = self.jobs.remove(&(at, job)),
            Timer::ForgetReports(app) => self.reports.set(app, None),
            Timer::ForgetRequests(app) => self.requests.set(app, None),
            Timer::ForgetRetained(app) => self.retained.set(app, None),
        }
    }

    /// When the first of those is due whose time is to be kept. What is forgotten has no such time.
    pub fn next_due(&self) -> Option<UnixMillis> {
        let message = self.messages.next_second().map(|second| second.saturating_mul(1000));
        let session = self.sessions.first().map(|(at, _)| *at);
        let job = self.jobs.first().map(|(at, _)| *at);
        message.into_iter().chain(session).chain(job).min()
    }

    /// A message that is due; it may have ended.
    pub fn take_message(&mut self, now: UnixMillis) -> Option<Seq> {
        self.messages.take_due(now / 1000)
    }

    pub fn take_session(&mut self, now: UnixMillis) -> Option<DeviceRef> {
        take_due(&mut self.sessions, now)
    }

    pub fn take_job(&mut self, now: UnixMillis) -> Option<JobNo> {
        take_due(&mut self.jobs, now)
    }

    /// One of the messages that end at `at` has ended before.
    pub fn message_ended(&mut self, at: UnixMillis, is_open: impl Fn(Seq) -> bool) {
        self.messages.count_ended(at / 1000, is_open);
    }

    /// The order of acceptance, where messages were added in another one.
    pub fn sort_messages(&mut self) {
        self.messages.sort();
    }

    /// The apps with a report of a message that ended before `before`, and those with too many
    /// reports; in order of number.
    pub fn apps_with_old_reports(&self, before: UnixMillis) -> Vec<AppNo> {
        let mut apps = self.reports.due_before(before);
        apps.extend(&self.crowded.apps);
        apps.sort_unstable();
        apps.dedup();
        apps
    }

    /// The apps with something to forget at `now`, of `requests` or `retained`; in order of number.
    pub fn apps_with_old_requests(&self, now: UnixMillis) -> Vec<AppNo> {
        self.requests.due_before(now.saturating_add(1))
    }

    pub fn apps_with_old_retained(&self, now: UnixMillis) -> Vec<AppNo> {
        self.retained.due_before(now.saturating_add(1))
    }

    /// How many reports an app keeps, as the last command had it. `None`: there was none yet.
    pub fn reports_max(&self) -> Option<u32> {
        self.crowded.max
    }

    /// The bound is another one from now on; [`Self::count_reports`] has to be called for every app.
    pub fn set_reports_max(&mut self, max: u32) {
        self.crowded = Crowded { max: Some(max), apps: BTreeSet::new() };
    }

    /// An app has so many reports now.
    pub fn count_reports(&mut self, app: AppNo, count: usize) {
        let Some(max) = self.crowded.max else { return };
        if count > max as usize {
            self.crowded.apps.insert(app);
        } else if !self.crowded.apps.is_empty() {
            self.crowded.apps.remove(&app);
        }
    }

    /// An app has one report more; `first_ended`: when the message of its oldest ended.
    pub fn report_kept(&mut self, app: AppNo, first_ended: Option<UnixMillis>, count: usize) {
        self.reports.set(app, first_ended);
        self.count_reports(app, count);
    }

    #[cfg(test)]
    pub fn messages_len(&self) -> usize {
        self.messages.0.values().map(|second| second.seqs.len()).sum()
    }
}

fn take_due<T: Copy + Ord>(lane: &mut BTreeSet<(UnixMillis, T)>, now: UnixMillis) -> Option<T> {
    let due = lane.first().copied().filter(|(at, _)| *at <= now)?;
    lane.remove(&due);
    Some(due.1)
}

/// Apps with more reports than are kept.
#[derive(Debug, Default)]
struct Crowded {
    max: Option<u32>,
    apps: BTreeSet<AppNo>,
}

/// One timer for each app.
#[derive(Debug, Default)]
struct AppLane {
    due: BTreeSet<(UnixMillis, AppNo)>,
    /// By app.
    of: Vec<Option<UnixMillis>>,
}

impl AppLane {
    fn set(&mut self, app: AppNo, at: Option<UnixMillis>) {
        let no = app.0 as usize;
        if self.of.get(no).copied().flatten() == at {
            return;
        }
        if self.of.len() <= no {
            self.of.resize(no + 1, None);
        }
        if let Some(old) = std::mem::replace(&mut self.of[no], at) {
            self.due.remove(&(old, app));
        }
        if let Some(at) = at {
            self.due.insert((at, app));
        }
    }

    /// In order of number, which is the order in which they share a command's limit.
    fn due_before(&self, before: UnixMillis) -> Vec<AppNo> {
        let mut due: Vec<AppNo> = self.due.range(..(before, AppNo(0))).map(|(_, app)| *app).collect();
        due.sort_unstable();
        due
    }
}

/// Open messages by the second in which they end; among them ended ones, fewer than there are open
/// ones. Most have ended long before their second, and those are not to be kept until then: with a
/// life of weeks that would be every message of these weeks.
#[derive(Debug, Default)]
struct Messages(BTreeMap<u64, Second>);

#[derive(Debug, Default)]
struct Second {
    /// In the order in which they were accepted.
    seqs: Vec<Seq>,
    /// So many of `seqs` have ended, at most.
    ended: usize,
}

impl Messages {
    fn add(&mut self, second: u64, seq: Seq) {
        self.0.entry(second).or_default().seqs.push(seq);
    }

    fn sort(&mut self) {
        self.0.values_mut().for_each(|second| second.seqs.sort_unstable());
    }

    fn next_second(&self) -> Option<u64> {
        self.0.first_key_value().map(|(second, _)| *second)
    }

    /// Takes one out that is due in `second` or was before.
    fn take_due(&mut self, second: u64) -> Option<Seq> {
        while let Some(mut due) = self.0.first_entry().filter(|due| *due.key() <= second) {
            if let Some(seq) = due.get_mut().seqs.pop() {
                return Some(seq);
            }
            due.remove();
        }
        None
    }

    /// One of this second has ended. Once that may be half of them, those that have go.
    fn count_ended(&mut self, second: u64, is_open: impl Fn(Seq) -> bool) {
        let Some(found) = self.0.get_mut(&second) else { return };
        found.ended += 1;
        if found.ended * 2 > found.seqs.len() {
            found.seqs.retain(|seq| is_open(*seq));
            found.seqs.shrink_to_fit();
            found.ended = 0;
        }
        if found.seqs.is_empty() {
            self.0.remove(&second);
        }
    }
}
