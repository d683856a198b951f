//! Jobs and their workers: they open jobs, claim them, are slow, die with the server, say the same
//! twice; and what is promised of jobs, seen from outside.

use crate::chance::Random;
use crate::ledger::About;
use crate::world::{Happening, World};
use postrider_core::command::{Outcome, Refusal};
use postrider_core::id::*;
use postrider_core::jobs::*;
use postrider_core::port::{Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Pieces of work that a job has.
const PIECES: u64 = 6;

/// What the server told a worker or whoever opens jobs.
#[derive(Debug)]
enum Told {
    Opened(JobNo),
    Claimed { life: u64, at: UnixMillis, until: UnixMillis, jobs: Vec<ClaimedJob> },
    Settled { job: JobNo, lease: u64, cursor: u64, outcome: JobOutcome, result: Outcome },
}

/// A job that a worker of this life has.
#[derive(Debug)]
struct Held {
    job: ClaimedJob,
    life: u64,
    /// When the worker is done with some of it.
    settles_at: UnixMillis,
}

/// What is known of a job from outside.
#[derive(Debug, Default)]
struct Known {
    /// The lease told last, and until when it is good.
    lease: Option<(u64, UnixMillis)>,
    /// Where the server must have it at least, and can have it at most.
    settled: u64,
    submitted: u64,
    /// A worker has asked for its end.
    may_be_closed: bool,
}

/// See the module.
pub struct Jobs {
    /// `None`: a world without jobs.
    random: Option<Random>,
    told: Arc<Mutex<Vec<Told>>>,
    held: Vec<Held>,
    known: BTreeMap<JobNo, Known>,
    /// Leases that were settled, as far as was told.
    ended: BTreeSet<(JobNo, u64)>,
    /// Leases that may have been settled: it was asked for.
    may_be_ended: BTreeSet<(JobNo, u64)>,
    opened: u64,
}

impl Jobs {
    pub fn new(seed: Option<u64>) -> Jobs {
        Jobs {
            random: seed.map(Random::new),
            told: Arc::default(),
            held: Vec::new(),
            known: BTreeMap::new(),
            ended: BTreeSet::new(),
            may_be_ended: BTreeSet::new(),
            opened: 0,
        }
    }

    fn take_told(&self) -> Vec<Told> {
        std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes note of what was told; what promise it breaks.
    fn note(&mut self, told: Told, calm: bool, random: &mut Random) -> Result<(), (&'static str, String)> {
        match told {
            Told::Opened(job) => _ = self.known.entry(job).or_default(),
            Told::Claimed { life, at, until, jobs } => {
                for job in jobs {
                    self.check_claim(&job, at)?;
                    let known = self.known.entry(job.no).or_default();
                    known.lease = Some((job.lease, until));
                    // Some take longer than they may.
                    let took = random.between(1, if calm { 200 } else { (until - at) * 3 / 2 });
                    self.held.push(Held { job, life, settles_at: at + took });
                }
            }
            Told::Settled { job, lease, cursor, outcome, result } => match result {
                Outcome::Refused(Refusal::LeaseLost | Refusal::NoSuchJob) => {}
                Outcome::Done => {
                    self.check_settled(job, lease, &outcome)?;
                    let known = self.known.entry(job).or_default();
                    known.settled = known.settled.max(cursor);
                }
                other => return Err(("one lease", format!("{job:?} was settled with {other:?}"))),
            },
        }
        Ok(())
    }

    fn check_claim(&self, job: &ClaimedJob, at: UnixMillis) -> Result<(), (&'static str, String)> {
        let Some(known) = self.known.get(&job.no) else { return Ok(()) };
        if let Some((lease, until)) = known.lease
            && until > at
            && !self.may_be_ended.contains(&(job.no, lease))
        {
            let what = format!("{job:?} was given out at {at}, and lease {lease} is good until {until}");
            return Err(("one lease", what));
        }
        if known.lease.is_some_and(|(lease, _)| lease >= job.lease) {
            return Err(("one lease", format!("{job:?} came with an old lease: {known:?}")));
        }
        if job.cursor < known.settled || job.cursor > known.submitted {
            return Err(("settled is kept", format!("{job:?} begins elsewhere: {known:?}")));
        }
        Ok(())
    }

    fn check_settled(
        &mut self,
        job: JobNo,
        lease: u64,
        outcome: &JobOutcome,
    ) -> Result<(), (&'static str, String)> {
        let known = self.known.entry(job).or_default();
        if known.lease.is_some_and(|(newer, _)| newer > lease) {
            return Err(("one lease", format!("{job:?} was settled by lease {lease}: {known:?}")));
        }
        match outcome {
            JobOutcome::Keep { until } => known.lease = Some((lease, *until)),
            _ if !self.ended.insert((job, lease)) => {
                return Err(("one lease", format!("lease {lease} of {job:?} was settled twice")));
            }
            _ => {}
        }
        Ok(())
    }
}

impl World {
    /// From the beginning on, where the world has jobs.
    pub fn jobs_begin(&mut self) {
        if self.jobs.random.is_some() {
            self.after(300, Happening::WorkersAct);
        }
    }

    /// Some work is done, some is claimed, and some comes to be.
    pub fn workers_act(&mut self) {
        let Some(mut random) = self.jobs.random.take() else { return };
        self.after(random.between(50, 600), Happening::WorkersAct);
        self.note_jobs(&mut random);
        if self.server.is_some() {
            if !self.calm && random.permille(150) {
                self.open_job(&mut random);
            }
            self.settle_jobs(&mut random);
            self.claim_jobs(&mut random);
            self.wake_jobs(&mut random);
        }
        self.jobs.random = Some(random);
    }

    fn note_jobs(&mut self, random: &mut Random) {
        for told in self.jobs.take_told() {
            self.note(About::default(), format!("jobs: {told:?}"));
            if let Err((rule, what)) = self.jobs.note(told, self.calm, random) {
                self.ledger.break_rule(rule, About::default(), what);
            }
        }
        let life = self.life;
        self.jobs.held.retain(|held| held.life == life);
    }

    fn open_job(&mut self, random: &mut Random) {
        let Some(server) = &self.server else { return };
        self.jobs.opened += 1;
        let app = Some(AppNo(random.below(2) as u32));
        let name = JobName { app, kind: JobKind::Webhook, subject: self.jobs.opened };
        let due_at = if random.permille(500) { self.now } else { self.now + random.between(1, 5_000) };
        let told = self.jobs.told.clone();
        let done = move |outcomes: Result<Vec<Outcome>, StoreError>| {
            if let Ok([Outcome::JobOpened { job, .. }]) = outcomes.as_deref() {
                told.lock().unwrap_or_else(PoisonError::into_inner).push(Told::Opened(*job));
            }
        };
        server.engine.open_job(name, 0, due_at, Box::new(done));
    }

    fn claim_jobs(&mut self, random: &mut Random) {
        let Some(server) = &self.server else { return };
        let (life, at) = (self.life, self.now);
        let until = at + random.between(200, 6_000);
        let told = self.jobs.told.clone();
        let done = move |jobs: Result<Vec<ClaimedJob>, StoreError>| {
            if let Some(jobs) = jobs.ok().filter(|jobs| !jobs.is_empty()) {
                let claimed = Told::Claimed { life, at, until, jobs };
                told.lock().unwrap_or_else(PoisonError::into_inner).push(claimed);
            }
        };
        let max = if self.calm { 10 } else { random.between(1, 3) as u32 };
        server.engine.claim_jobs(JobKind::Webhook, life, max, until, Box::new(done));
    }

    /// Those whose work is done for now say how it went; now and then twice.
    fn settle_jobs(&mut self, random: &mut Random) {
        let (now, calm) = (self.now, self.calm);
        let (ready, busy): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.jobs.held).into_iter().partition(|held| held.settles_at <= now);
        self.jobs.held = busy;
        for Held { job, life, .. } in ready {
            let cursor = job.cursor + 1;
            let outcome = if cursor >= PIECES {
                JobOutcome::Closed
            } else if calm || random.permille(500) {
                JobOutcome::Again
            } else {
                let error = "refused".to_owned();
                match random.below(5) {
                    0 => JobOutcome::Rest { until: now + random.between(0, 3_000) },
                    1 => JobOutcome::Rest { until: u64::MAX },
                    2 => JobOutcome::Keep { until: now + random.between(1, 3_000) },
                    3 => JobOutcome::Parked { error },
                    _ => JobOutcome::Failed { retry_at: now + random.between(0, 5_000), error },
                }
            };
            let again = random.permille(200);
            self.settle_job(&job, cursor, &outcome);
            if again {
                self.settle_job(&job, cursor, &outcome);
            }
            if let JobOutcome::Keep { until } = outcome {
                let settles_at = now + random.between(1, (until - now) * 2);
                self.jobs.held.push(Held { job: ClaimedJob { cursor, ..job }, life, settles_at });
            }
        }
    }

    fn settle_job(&mut self, claim: &ClaimedJob, cursor: u64, outcome: &JobOutcome) {
        let Some(server) = &self.server else { return };
        let known = self.jobs.known.entry(claim.no).or_default();
        known.submitted = known.submitted.max(cursor);
        known.may_be_closed |= *outcome == JobOutcome::Closed;
        if let JobOutcome::Keep { until } = outcome {
            // It may so end earlier than it did.
            let lease = known.lease.as_mut().filter(|(no, _)| *no == claim.lease);
            lease.into_iter().for_each(|(_, ends)| *ends = (*ends).min(*until));
        } else {
            self.jobs.may_be_ended.insert((claim.no, claim.lease));
        }
        let (told, job, lease, said) = (self.jobs.told.clone(), claim.no, claim.lease, outcome.clone());
        let done = move |outcomes: Result<Vec<Outcome>, StoreError>| {
            if let Some(result) = outcomes.ok().and_then(|mut outcomes| outcomes.pop()) {
                let settled = Told::Settled { job, lease, cursor, outcome: said, result };
                told.lock().unwrap_or_else(PoisonError::into_inner).push(settled);
            }
        };
        server.engine.settle_job(job, lease, Some(cursor), outcome.clone(), Box::new(done));
    }

    /// Something comes for those that rest; an operator looks after those that are parked.
    fn wake_jobs(&mut self, random: &mut Random) {
        let Some(server) = &self.server else { return };
        if !self.calm && !random.permille(100) {
            return;
        }
        let (jobs, _) = server.store.jobs(JobFilter::default(), None, 1_000);
        for job in jobs {
            match job.state {
                JobState::Waiting { until: u64::MAX } => {
                    server.engine.wake_jobs(vec![job.no], Box::new(|_| {}))
                }
                JobState::Parked => server.engine.retry_job(job.no, Box::new(|_| {})),
                _ => {}
            }
        }
    }

    /// A job that was told to be opened is there until its end was asked for.
    pub fn check_jobs(&mut self) {
        let Some(server) = &self.server else { return };
        let is_lost =
            |(no, known): &(&JobNo, &Known)| !known.may_be_closed && server.store.job(**no).is_none();
        if let Some((no, known)) = self.jobs.known.iter().find(is_lost) {
            let what = format!("{no:?} is gone: {known:?}");
            self.ledger.break_rule("jobs are kept", About::default(), what);
        }
    }

    /// In calm times every job comes to its end.
    pub fn reckon_jobs(&mut self) {
        self.check_jobs();
        let Some(server) = &self.server else { return };
        let (jobs, _) = server.store.jobs(JobFilter::default(), None, 1_000);
        if let Some(job) = jobs.first() {
            self.ledger.break_rule("liveness", About::default(), format!("nobody does the rest of {job:?}"));
        }
    }
}
