//! The rules of jobs (see [`crate::jobs`]): who may have one, and when it is due again.

use super::State;
use super::timers::{Timer, Timers};
use crate::command::*;
use crate::id::*;
use crate::jobs::*;
use crate::seeded::{self, Bug};
use std::collections::{BTreeMap, BTreeSet};

/// A job as it is stored.
#[derive(Debug)]
pub(crate) struct Job {
    pub name: JobName,
    pub cursor: u64,
    pub state: JobState,
    pub opened_at: UnixMillis,
    /// Leases given so far.
    pub leases: u64,
    /// It was woken while a worker had it.
    pub woken: bool,
    pub failures: u32,
    pub last_error: Option<String>,
    pub failed_at: Option<UnixMillis>,
    pub leases_lost: u32,
}

/// All open jobs.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    /// Numbers given so far.
    pub opened: u64,
    pub records: BTreeMap<JobNo, Job>,

    // Indexes, made again by `rebuild`.
    by_name: BTreeMap<JobName, JobNo>,
    due: BTreeMap<JobKind, BTreeSet<(UnixMillis, JobNo)>>,
    count: BTreeMap<JobKind, [u64; 4]>,
}

impl Jobs {
    fn open(&mut self, name: JobName, cursor: u64, due_at: UnixMillis, now: UnixMillis) -> JobNo {
        self.opened += 1;
        let no = JobNo(self.opened);
        let state = state_until(due_at, now);
        let job = Job {
            name,
            cursor,
            state,
            opened_at: now,
            leases: 0,
            woken: false,
            failures: 0,
            last_error: None,
            failed_at: None,
            leases_lost: 0,
        };
        self.records.insert(no, job);
        no
    }

    /// Puts a job into every index it belongs to.
    fn index(&mut self, no: JobNo, timers: &mut Timers) {
        let Some(job) = self.records.get(&no) else { return };
        self.by_name.insert(job.name, no);
        self.count.entry(job.name.kind).or_default()[job.state.place()] += 1;
        match job.state {
            JobState::Due { since } => _ = self.due.entry(job.name.kind).or_default().insert((since, no)),
            _ => timer(job.state).into_iter().for_each(|at| timers.set(at, Timer::WakeJob(no))),
        }
    }

    /// Takes a job out of the indexes that its state puts it into.
    fn unindex(&mut self, no: JobNo, timers: &mut Timers) {
        let Some(job) = self.records.get(&no) else { return };
        self.count.entry(job.name.kind).or_default()[job.state.place()] -= 1;
        match job.state {
            JobState::Due { since } => _ = self.due.entry(job.name.kind).or_default().remove(&(since, no)),
            _ => timer(job.state).into_iter().for_each(|at| timers.cancel(at, Timer::WakeJob(no))),
        }
    }

    /// Changes a job, and its place in the indexes with it.
    fn change<T>(&mut self, no: JobNo, timers: &mut Timers, change: impl FnOnce(&mut Job) -> T) -> Option<T> {
        self.unindex(no, timers);
        let changed = self.records.get_mut(&no).map(change);
        self.index(no, timers);
        changed
    }

    fn close(&mut self, no: JobNo, timers: &mut Timers) -> Option<Job> {
        self.unindex(no, timers);
        let job = self.records.remove(&no)?;
        self.by_name.remove(&job.name);
        Some(job)
    }

    fn is_due(&self, kind: JobKind, no: JobNo) -> bool {
        let job = self.records.get(&no).filter(|job| job.name.kind == kind);
        job.is_some_and(|job| matches!(job.state, JobState::Due { .. }))
    }

    fn first_due(&self, kind: JobKind) -> Option<(UnixMillis, JobNo)> {
        self.due.get(&kind)?.first().copied()
    }
}

/// When something happens to a job in that state by itself.
fn timer(state: JobState) -> Option<UnixMillis> {
    match state {
        JobState::Waiting { until } | JobState::Leased(Lease { until, .. }) => {
            (until != UnixMillis::MAX).then_some(until)
        }
        JobState::Due { .. } | JobState::Parked => None,
    }
}

fn state_until(due_at: UnixMillis, now: UnixMillis) -> JobState {
    if due_at <= now { JobState::Due { since: now } } else { JobState::Waiting { until: due_at } }
}

impl Job {
    /// A worker has no right to it any more.
    fn give_back(&mut self, state: JobState) {
        self.state = state;
        self.woken = false;
    }

    fn settle(&mut self, outcome: &JobOutcome, now: UnixMillis) {
        if let JobOutcome::Failed { error, .. } | JobOutcome::Parked { error } = outcome {
            self.failures = self.failures.saturating_add(1);
            self.last_error = Some(error.clone());
            self.failed_at = Some(now);
        } else {
            self.failures = 0;
        }
        match *outcome {
            JobOutcome::Rest { until } if !self.woken => self.give_back(state_until(until, now)),
            JobOutcome::Again | JobOutcome::Rest { .. } | JobOutcome::Closed => {
                self.give_back(JobState::Due { since: now });
            }
            JobOutcome::Keep { until } => {
                if let JobState::Leased(lease) = &mut self.state {
                    lease.until = until;
                }
            }
            JobOutcome::Failed { retry_at, .. } => self.give_back(state_until(retry_at, now)),
            JobOutcome::Parked { .. } => self.give_back(JobState::Parked),
        }
    }
}

impl State {
    /// There is one job of a name: the second to open it finds the first. Whether it was there.
    pub(super) fn open_job(
        &mut self,
        name: JobName,
        cursor: u64,
        due_at: UnixMillis,
        now: UnixMillis,
    ) -> (JobNo, bool) {
        self.saw(now);
        if let Some(no) = self.jobs.by_name.get(&name) {
            return (*no, true);
        }
        let no = self.jobs.open(name, cursor, due_at, now);
        self.jobs.index(no, &mut self.timers);
        (no, false)
    }

    pub(super) fn open_job_command(
        &mut self,
        name: JobName,
        cursor: u64,
        due_at: UnixMillis,
        now: UnixMillis,
    ) -> Result<Outcome, Refusal> {
        if let Some(app) = name.app {
            self.open_app_mut(app)?;
        }
        let (job, existed) = self.open_job(name, cursor, due_at, now);
        Ok(Outcome::JobOpened { job, existed })
    }

    /// Gives out jobs that are due, the longest due first. Each goes to one worker, until its lease
    /// runs out: then [`Command::Expire`] makes it due again.
    pub(super) fn claim_jobs(
        &mut self,
        (kind, only): (JobKind, Option<JobNo>),
        worker: u64,
        max: u32,
        until: UnixMillis,
        now: UnixMillis,
    ) -> Outcome {
        self.saw(now);
        let next = |jobs: &Jobs| match only {
            Some(no) => jobs.is_due(kind, no).then_some(no),
            None => jobs.first_due(kind).map(|(_, no)| no),
        };
        let mut claimed = Vec::new();
        while claimed.len() < max as usize
            && let Some(no) = next(&self.jobs)
        {
            let given = self.jobs.change(no, &mut self.timers, |job| {
                job.leases += 1;
                job.give_back(JobState::Leased(Lease { no: job.leases, worker, until }));
                let Job { name, cursor, leases, failures, .. } = *job;
                ClaimedJob { no, name, cursor, lease: leases, failures }
            });
            claimed.extend(given);
        }
        if seeded::is(Bug::LeaseGivenTwice) {
            for job in &claimed {
                self.jobs.due.entry(kind).or_default().insert((now, job.no));
            }
        }
        Outcome::JobsClaimed(claimed)
    }

    /// Only who has the lease may say what came of the job: somebody else may have it by now.
    pub(super) fn settle_job(
        &mut self,
        no: JobNo,
        lease: u64,
        cursor: Option<u64>,
        outcome: &JobOutcome,
        now: UnixMillis,
    ) -> Result<Outcome, Refusal> {
        self.saw(now);
        self.check_lease(no, lease)?;
        if *outcome == JobOutcome::Closed {
            self.jobs.close(no, &mut self.timers);
            return Ok(Outcome::Done);
        }
        self.jobs.change(no, &mut self.timers, |job| {
            job.cursor = cursor.unwrap_or(job.cursor);
            job.settle(outcome, now);
        });
        Ok(Outcome::Done)
    }

    /// Whether the lease is the one that counts.
    pub(super) fn check_lease(&self, no: JobNo, lease: u64) -> Result<(), Refusal> {
        let job = self.jobs.records.get(&no).ok_or(Refusal::NoSuchJob)?;
        match job.state {
            JobState::Leased(given) if given.no == lease => Ok(()),
            _ => Err(Refusal::LeaseLost),
        }
    }

    /// Those that are no more are passed over: who wakes them need not know.
    pub(super) fn wake_jobs(&mut self, jobs: &[JobNo], failed_too: bool, now: UnixMillis) -> Outcome {
        self.saw(now);
        for no in jobs {
            self.jobs.change(*no, &mut self.timers, |job| match job.state {
                JobState::Waiting { .. } | JobState::Parked if failed_too || job.failures == 0 => {
                    job.state = JobState::Due { since: now };
                }
                JobState::Leased(_) => job.woken = true,
                JobState::Waiting { .. } | JobState::Parked | JobState::Due { .. } => {}
            });
        }
        Outcome::Done
    }

    pub(super) fn rewind_job(&mut self, no: JobNo, cursor: u64, now: UnixMillis) -> Result<Outcome, Refusal> {
        self.saw(now);
        self.begin_again(no, cursor, JobState::Due { since: now }).ok_or(Refusal::NoSuchJob)?;
        Ok(Outcome::Done)
    }

    /// Whoever has the job loses it.
    pub(super) fn begin_again(&mut self, no: JobNo, cursor: u64, state: JobState) -> Option<()> {
        self.jobs.change(no, &mut self.timers, |job| {
            job.cursor = cursor;
            job.failures = 0;
            job.give_back(state);
        })
    }

    pub(super) fn job_no(&self, name: &JobName) -> Option<JobNo> {
        self.jobs.by_name.get(name).copied()
    }

    pub(super) fn close_job(&mut self, no: JobNo, now: UnixMillis) -> Result<Outcome, Refusal> {
        self.saw(now);
        self.jobs.close(no, &mut self.timers).map(|_| Outcome::Done).ok_or(Refusal::NoSuchJob)
    }

    pub(super) fn close_job_named(&mut self, name: &JobName) {
        if let Some(no) = self.jobs.by_name.get(name).copied() {
            self.jobs.close(no, &mut self.timers);
        }
    }

    /// An app is closed: nothing is done for it any more, but what it has is taken away.
    pub(super) fn close_jobs_of(&mut self, app: AppNo) {
        for no in self.jobs_of(app) {
            self.jobs.close(no, &mut self.timers);
        }
    }

    fn jobs_of(&self, app: AppNo) -> Vec<JobNo> {
        let first = JobName { app: Some(app), kind: JobKind::ALL[0], subject: 0 };
        let of_app = self.jobs.by_name.range(first..).take_while(|(name, _)| name.app == Some(app));
        of_app.map(|(_, no)| *no).collect()
    }

    /// A job whose time came is due, and so is one whose worker has not settled it in time.
    pub(super) fn wake_due_jobs(&mut self, now: UnixMillis, limit: u32) {
        for _ in 0..limit {
            let Some(no) = self.timers.take_job(now) else { return };
            self.jobs.change(no, &mut self.timers, |job| {
                if let JobState::Leased(_) = job.state {
                    job.leases_lost = job.leases_lost.saturating_add(1);
                }
                job.give_back(JobState::Due { since: now });
            });
        }
    }

    /// One more piece of a closed app is gone; `more`: there are others. Apps take turns.
    pub(super) fn settle_emptying(&mut self, app: AppNo, more: bool, now: UnixMillis) {
        let name = emptying(app);
        match self.jobs.by_name.get(&name).copied() {
            Some(no) if more => {
                self.jobs.change(no, &mut self.timers, |job| job.state = JobState::Due { since: now });
            }
            _ => self.close_job_named(&name),
        }
    }

    /// Makes the indexes of what was read.
    pub(super) fn rebuild_jobs(&mut self) {
        let numbers: Vec<JobNo> = self.jobs.records.keys().copied().collect();
        for no in numbers {
            if seeded::is(Bug::JobTimersLost) {
                let mut lost = Timers::default();
                self.jobs.index(no, &mut lost);
                continue;
            }
            self.jobs.index(no, &mut self.timers);
        }
        // A release without jobs emptied closed apps too: where none was ever opened, the state is of
        // such a one.
        if self.jobs.opened == 0 {
            let closed = self.apps.iter().enumerate().filter_map(|(no, app)| Some((no, app.closed_at?)));
            let closed: Vec<_> = closed.map(|(no, at)| (AppNo(no as u32), at)).collect();
            for (app, at) in closed {
                self.open_job(emptying(app), 0, at, at);
            }
        }
    }

    /// See [`crate::port::Store::closing_app`].
    pub fn closing_app(&self) -> Option<AppNo> {
        let (_, no) = self.jobs.first_due(JobKind::EmptyApp)?;
        self.jobs.records.get(&no)?.name.app
    }

    pub fn job(&self, no: JobNo) -> Option<JobView> {
        let job = self.jobs.records.get(&no)?;
        Some(JobView {
            no,
            name: job.name,
            cursor: job.cursor,
            state: job.state,
            opened_at: job.opened_at,
            failures: job.failures,
            last_error: job.last_error.clone(),
            failed_at: job.failed_at,
            leases_lost: job.leases_lost,
        })
    }

    pub fn job_named(&self, name: &JobName) -> Option<JobView> {
        self.job(*self.jobs.by_name.get(name)?)
    }

    /// See [`crate::port::Store::jobs`].
    pub fn jobs(
        &self,
        filter: JobFilter,
        after: Option<JobNo>,
        look: usize,
    ) -> (Vec<JobView>, Option<JobNo>) {
        let fits = |job: &JobView| {
            filter.app.is_none_or(|app| job.name.app == Some(app))
                && filter.kind.is_none_or(|kind| job.name.kind == kind)
                && filter.state.is_none_or(|state| job.state.place() == state)
        };
        let first = JobNo(after.map_or(0, |after| after.0.saturating_add(1)));
        let looked: Vec<JobNo> = self.jobs.records.range(first..).take(look).map(|(no, _)| *no).collect();
        let has_more = |last: &JobNo| self.jobs.records.range(JobNo(last.0 + 1)..).next().is_some();
        let next = looked.last().copied().filter(has_more);
        (looked.into_iter().filter_map(|no| self.job(no)).filter(fits).collect(), next)
    }

    pub fn job_stats(&self) -> Vec<JobStats> {
        let stats = |kind| JobStats {
            kind,
            count: self.jobs.count.get(&kind).copied().unwrap_or_default(),
            due_since: self.jobs.first_due(kind).map(|(since, _)| since),
        };
        JobKind::ALL.into_iter().map(stats).collect()
    }
}

/// The job that empties a closed app.
pub(super) fn emptying(app: AppNo) -> JobName {
    JobName { app: Some(app), kind: JobKind::EmptyApp, subject: 0 }
}
