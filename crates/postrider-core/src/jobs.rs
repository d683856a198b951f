//! Jobs: slow work that survives a crash. A job is a record in the state with a cursor; a worker
//! claims it for a time (a lease), does some of it, and settles: with the place it came to, or with
//! what went wrong and when to try again. What a job does is its worker's affair.
//!
//! ```text
//!            claim                       settle: Rest
//!   due ───────────────► leased ──────────────────────────► waiting
//!    ▲                     │ settle: Again; lease ran out      │ its time came; wake
//!    └─────────────────────┴───────────────────────────────────┘
//!   settle: Parked ─► parked ─► wake        settle: Closed ─► gone
//! ```
//!
//! The rules are in `state/jobs.rs`. Whoever does outside work for a job may do it twice: a crash
//! between the work and the settlement loses the latter. So the work has to be idempotent, or to
//! carry an id by which its receiver knows a repetition: a job's cursor is one.

use crate::Engine;
use crate::command::*;
use crate::id::*;
use crate::port::*;
use std::sync::Arc;

/// Characters of an error that a job keeps.
const ERROR_CHARS_MAX: usize = 200;
/// No lease is for longer: a job whose worker is gone would wait as long.
const LEASE_MS_MAX: u64 = 3_600_000;

/// What a job does. Each kind has its own workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobKind {
    /// Takes away what a closed app still has. Its worker is [`Engine::tick`], which needs no lease:
    /// one command is one piece of the work, and the state tells what is left.
    EmptyApp,
    /// Brings the receipts of an app to a webhook; the cursor is the position of the last one. The
    /// worker of the webhook claims it by its number (`Webhook::job`).
    Webhook,
}

impl JobKind {
    pub const ALL: [JobKind; 2] = [JobKind::EmptyApp, JobKind::Webhook];

    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            JobKind::EmptyApp => "empty_app",
            JobKind::Webhook => "webhook",
        }
    }
}

/// Names a job by what it is for. There is one open job of a name at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobName {
    /// None: it is the platform's.
    pub app: Option<AppNo>,
    pub kind: JobKind,
    /// A number that means something to the kind, such as that of a webhook.
    pub subject: u64,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// A worker may claim it.
    Due { since: UnixMillis },
    /// Until its time comes, or until it is woken ([`UnixMillis::MAX`]).
    Waiting { until: UnixMillis },
    /// A worker has it.
    Leased(Lease),
    /// It waits for an operator.
    Parked,
}

impl JobState {
    pub const NAMES: [&str; 4] = ["due", "waiting", "leased", "parked"];

    /// The place of its name in [`Self::NAMES`].
    pub fn place(self) -> usize {
        match self {
            JobState::Due { .. } => 0,
            JobState::Waiting { .. } => 1,
            JobState::Leased(_) => 2,
            JobState::Parked => 3,
        }
    }

    pub fn name(self) -> &'static str {
        JobState::NAMES[self.place()]
    }
}

/// A worker's right to work on a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Grows with each lease on the job: what settles it has to name it.
    pub no: u64,
    /// As the worker calls itself.
    pub worker: u64,
    pub until: UnixMillis,
}

/// A job as its worker gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedJob {
    pub no: JobNo,
    pub name: JobName,
    pub cursor: u64,
    pub lease: u64,
    /// Failures in a row so far.
    pub failures: u32,
}

/// What a worker says of a job that it has claimed. All but `Keep` give the lease back; all but the
/// failures set the count of failures to 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    /// There is more to do at once.
    Again,
    /// There is nothing to do until then; [`UnixMillis::MAX`]: until it is woken.
    Rest { until: UnixMillis },
    /// The worker goes on with the same lease, until then.
    Keep { until: UnixMillis },
    /// It did not work, and is to be tried again then.
    Failed { retry_at: UnixMillis, error: String },
    /// It did not work, and nobody tries again until it is woken.
    Parked { error: String },
    /// It is done for ever.
    Closed,
}

/// A job as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct JobView {
    pub no: JobNo,
    pub name: JobName,
    pub cursor: u64,
    pub state: JobState,
    pub opened_at: UnixMillis,
    /// In a row.
    pub failures: u32,
    pub last_error: Option<String>,
    pub failed_at: Option<UnixMillis>,
    /// Leases that ran out: their workers were ended or are stuck.
    pub leases_lost: u32,
}

/// Which jobs a list shows; `None` fits all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    pub app: Option<AppNo>,
    pub kind: Option<JobKind>,
    /// A place in [`JobState::NAMES`].
    pub state: Option<usize>,
}

/// The jobs of a kind, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobStats {
    pub kind: JobKind,
    /// In the order of [`JobState::NAMES`].
    pub count: [u64; 4],
    /// Since when the oldest of those that are due is due.
    pub due_since: Option<UnixMillis>,
}

/// Called with the jobs that were claimed.
pub type Claimed = Box<dyn FnOnce(Result<Vec<ClaimedJob>, StoreError>) + Send>;

/// What was claimed, of the outcomes of a claim.
fn claimed(done: Claimed) -> Done {
    Box::new(move |outcomes| {
        done(outcomes.map(|mut outcomes| match outcomes.pop() {
            Some(Outcome::JobsClaimed(jobs)) => jobs,
            _ => Vec::new(),
        }));
    })
}

impl Engine {
    /// Opens a job that is due at `due_at`, or finds the one of that name:
    /// [`Outcome::JobOpened`](crate::command::Outcome).
    pub fn open_job(&self, name: JobName, cursor: u64, due_at: UnixMillis, done: Done) {
        self.submit_job(Command::OpenJob { name, cursor, due_at, now: self.clock.now() }, done);
    }

    /// Claims up to `max` jobs that are due, those that have been so for longest first. The lease ends
    /// at `until`: from then on somebody else may get them.
    pub fn claim_jobs(&self, kind: JobKind, worker: u64, max: u32, until: UnixMillis, done: Claimed) {
        let now = self.clock.now();
        let until = until.min(now + LEASE_MS_MAX);
        let command = Command::ClaimJobs { kind, worker, max, until, now, only: None };
        self.store.submit(vec![command], claimed(done));
    }

    /// Claims one job, also one that rests or waits for its next try: its worker knows that it is time.
    pub fn claim_job(&self, job: &JobView, worker: u64, until: UnixMillis, done: Claimed) {
        let (kind, max, now) = (job.name.kind, 1, self.clock.now());
        let until = until.min(now + LEASE_MS_MAX);
        let wake = Command::WakeJobs { jobs: vec![job.no], failed_too: true, now };
        let claim = Command::ClaimJobs { kind, worker, max, until, now, only: Some(job.no) };
        self.store.submit(vec![wake, claim], claimed(done));
    }

    /// Says what came of a claimed job, and how far it has come (`None`: no further). Refused with
    /// [`Refusal::LeaseLost`] where the lease is not the worker's any more: then nothing of it counts.
    pub fn settle_job(&self, job: JobNo, lease: u64, cursor: Option<u64>, outcome: JobOutcome, done: Done) {
        self.submit_job(self.settlement(job, lease, cursor, outcome), done);
    }

    fn settlement(&self, job: JobNo, lease: u64, cursor: Option<u64>, mut outcome: JobOutcome) -> Command {
        if let JobOutcome::Failed { error, .. } | JobOutcome::Parked { error } = &mut outcome {
            *error = error.chars().take(ERROR_CHARS_MAX).collect();
        }
        let now = self.clock.now();
        if let JobOutcome::Keep { until } = &mut outcome {
            *until = (*until).min(now + LEASE_MS_MAX);
        }
        Command::SettleJob { job, lease, cursor, outcome, now }
    }

    /// Makes jobs due that rest: there is something to do. One that a worker has is due again when
    /// it rests. One that failed waits on.
    pub fn wake_jobs(&self, jobs: Vec<JobNo>, done: Done) {
        self.submit_job(Command::WakeJobs { jobs, failed_too: false, now: self.clock.now() }, done);
    }

    /// Makes a job due at once, also one that failed or is parked.
    pub fn retry_job(&self, job: JobNo, done: Done) {
        let command = Command::WakeJobs { jobs: vec![job], failed_too: true, now: self.clock.now() };
        self.submit_job(command, done);
    }

    /// Lets a job begin again from `cursor`. Its worker loses its lease.
    pub fn rewind_job(&self, job: JobNo, cursor: u64, done: Done) {
        self.submit_job(Command::RewindJob { job, cursor, now: self.clock.now() }, done);
    }

    /// The job is no more, whoever has it.
    pub fn close_job(&self, job: JobNo, done: Done) {
        self.submit_job(Command::CloseJob { job, now: self.clock.now() }, done);
    }

    fn submit_job(&self, command: Command, done: Done) {
        let engine = self.clone();
        let done: Done = Box::new(move |outcomes| {
            if outcomes.is_ok() {
                engine.nudge_job_workers();
            }
            done(outcomes);
        });
        self.store.submit(vec![command], done);
    }

    /// Gives the engine its way to the workers; once, before the first claim.
    pub fn attach_job_workers(&self, workers: Arc<dyn JobWorkers>) {
        _ = self.job_workers.set(workers);
    }

    /// Tells the workers of each kind that has jobs which are due.
    pub fn nudge_job_workers(&self) {
        let Some(workers) = self.job_workers.get() else { return };
        for stats in self.store.job_stats() {
            if stats.due_since.is_some() {
                workers.jobs_due(stats.kind);
            }
        }
    }
}
