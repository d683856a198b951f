//! Jobs by example, and jobs and timers by chance beside a naive model.

use super::*;
use crate::jobs::*;
use std::collections::BTreeMap;

const MAX: u64 = u64::MAX;

fn webhook(subject: u64) -> JobName {
    JobName { app: Some(APP), kind: JobKind::Webhook, subject }
}

impl World {
    fn open_job(&mut self, subject: u64, due_at: UnixMillis) -> JobNo {
        match self.run(Command::OpenJob { name: webhook(subject), cursor: 0, due_at, now: self.now }) {
            Outcome::JobOpened { job, .. } => job,
            other => panic!("{other:?}"),
        }
    }

    fn claim(&mut self, max: u32, until: UnixMillis) -> Vec<ClaimedJob> {
        let (kind, now) = (JobKind::Webhook, self.now);
        match self.run(Command::ClaimJobs { kind, worker: 7, max, until, now, only: None }) {
            Outcome::JobsClaimed(jobs) => jobs,
            other => panic!("{other:?}"),
        }
    }

    fn settle(&mut self, job: &ClaimedJob, cursor: u64, outcome: JobOutcome) -> Outcome {
        let (no, lease, now) = (job.no, job.lease, self.now);
        self.run(Command::SettleJob { job: no, lease, cursor: Some(cursor), outcome, now })
    }

    fn wake(&mut self, job: JobNo, failed_too: bool) {
        assert_eq!(self.run(Command::WakeJobs { jobs: vec![job], failed_too, now: self.now }), Outcome::Done);
    }

    fn time_passes(&mut self, until: UnixMillis) {
        self.now = until;
        self.run(Command::Expire { now: until, limit: 100, history_before: 0, history_max: 100 });
    }

    fn state_of(&self, job: JobNo) -> JobState {
        self.state.job(job).unwrap().state
    }
}

#[test]
fn a_job_is_opened_once_and_found_again_by_its_name() {
    let mut w = World::new(0);
    let job = w.open_job(1, 0);
    let again = w.run(Command::OpenJob { name: webhook(1), cursor: 9, due_at: MAX, now: w.now });
    assert_eq!(again, Outcome::JobOpened { job, existed: true });
    assert_eq!(w.state.job_named(&webhook(1)).unwrap().cursor, 0);
    assert_eq!(w.run(Command::CloseJob { job, now: w.now }), Outcome::Done);
    assert_ne!(w.open_job(1, 0), job, "a number is never given twice");
    let nobodys = JobName { app: Some(AppNo(9)), ..webhook(1) };
    let refused = w.run(Command::OpenJob { name: nobodys, cursor: 0, due_at: 0, now: w.now });
    assert_eq!(refused, Outcome::Refused(Refusal::NoSuchApp));
}

#[test]
fn a_claimed_job_goes_to_nobody_else_until_its_lease_runs_out() {
    let mut w = World::new(0);
    let (first, second) = (w.open_job(1, 0), w.open_job(2, 0));
    let lease_ends = w.now + 1_000;
    let claimed = w.claim(1, lease_ends);
    assert_eq!(claimed[0].no, first);
    assert_eq!(w.claim(5, lease_ends)[0].no, second);
    assert_eq!(w.claim(5, lease_ends), []);
    w.time_passes(lease_ends - 1);
    assert_eq!(w.claim(5, MAX), []);
    w.time_passes(lease_ends);
    let again = w.claim(5, lease_ends + 1_000);
    assert_eq!(again.iter().map(|job| job.no).collect::<Vec<_>>(), [first, second]);
    assert_eq!(w.state.job(first).unwrap().leases_lost, 1);
    // Who had it before has no say any more, and changes nothing.
    let late = w.settle(&claimed[0], 5, JobOutcome::Closed);
    assert_eq!(late, Outcome::Refused(Refusal::LeaseLost));
    assert_eq!(w.settle(&again[0], 6, JobOutcome::Again), Outcome::Done);
    assert_eq!(w.settle(&again[0], 7, JobOutcome::Again), Outcome::Refused(Refusal::LeaseLost));
    assert_eq!(w.state.job(first).unwrap().cursor, 6);
}

#[test]
fn a_worker_that_says_so_keeps_its_lease() {
    let mut w = World::new(0);
    let job = w.open_job(1, 0);
    let claimed = w.claim(1, w.now + 1_000).remove(0);
    assert_eq!(w.settle(&claimed, 3, JobOutcome::Keep { until: w.now + 5_000 }), Outcome::Done);
    w.time_passes(w.now + 4_999);
    assert_eq!(w.claim(1, MAX), []);
    assert_eq!(w.settle(&claimed, 4, JobOutcome::Keep { until: w.now + 10 }), Outcome::Done);
    w.time_passes(w.now + 10);
    assert_eq!((w.claim(1, MAX).len(), w.state.job(job).unwrap().cursor), (1, 4));
}

#[test]
fn a_failed_job_waits_for_its_time_and_forgets_its_failures_when_it_works() {
    let mut w = World::new(0);
    let job = w.open_job(1, 0);
    for failures in 1..=3 {
        let claimed = w.claim(1, MAX).remove(0);
        let error = format!("no answer {failures}");
        let retry_at = w.now + 1_000;
        assert_eq!(claimed.failures, failures - 1);
        w.settle(&claimed, 1, JobOutcome::Failed { retry_at, error });
        let view = w.state.job(job).unwrap();
        assert_eq!((view.failures, view.failed_at), (failures, Some(w.now)));
        assert_eq!(view.last_error, Some(format!("no answer {failures}")));
        // Something to do is no reason to try it before its time.
        w.wake(job, false);
        assert_eq!(w.claim(1, MAX), []);
        w.time_passes(retry_at);
    }
    let claimed = w.claim(1, MAX).remove(0);
    w.settle(&claimed, 2, JobOutcome::Parked { error: "gone".into() });
    w.wake(job, false);
    assert_eq!(w.state_of(job), JobState::Parked);
    w.wake(job, true);
    let claimed = w.claim(1, MAX).remove(0);
    assert_eq!(claimed.failures, 4);
    w.settle(&claimed, 2, JobOutcome::Rest { until: MAX });
    assert_eq!(w.state.job(job).unwrap().failures, 0);
}

#[test]
fn a_wake_that_comes_while_a_worker_has_the_job_is_not_lost() {
    let mut w = World::new(0);
    let job = w.open_job(1, MAX);
    assert_eq!((w.claim(1, MAX), w.state.next_expiry()), (vec![], None));
    w.wake(job, false);
    let claimed = w.claim(1, MAX).remove(0);
    w.wake(job, false);
    w.settle(&claimed, 1, JobOutcome::Rest { until: MAX });
    let claimed = w.claim(1, MAX).remove(0);
    w.settle(&claimed, 1, JobOutcome::Rest { until: MAX });
    assert_eq!(w.claim(1, MAX), []);
}

#[test]
fn a_worker_may_ask_for_the_job_that_it_means() {
    let mut w = World::new(0);
    let (first, second) = (w.open_job(1, 0), w.open_job(2, 0));
    let claim = |w: &mut World, only| {
        let (kind, until, now) = (JobKind::Webhook, MAX, w.now);
        w.run(Command::ClaimJobs { kind, worker: 7, max: 1, until, now, only: Some(only) })
    };
    let Outcome::JobsClaimed(jobs) = claim(&mut w, second) else { panic!() };
    assert_eq!(jobs[0].no, second);
    assert_eq!(claim(&mut w, second), Outcome::JobsClaimed(vec![]), "it is not due any more");
    assert_eq!(claim(&mut w, JobNo(9)), Outcome::JobsClaimed(vec![]));
    assert_eq!(w.claim(9, MAX)[0].no, first);
}

#[test]
fn a_job_that_begins_again_is_taken_from_its_worker() {
    let mut w = World::new(0);
    let job = w.open_job(1, 0);
    let claimed = w.claim(1, MAX).remove(0);
    assert_eq!(w.run(Command::RewindJob { job, cursor: 2, now: w.now }), Outcome::Done);
    assert_eq!(w.settle(&claimed, 9, JobOutcome::Again), Outcome::Refused(Refusal::LeaseLost));
    assert_eq!(w.claim(1, MAX)[0].cursor, 2);
    w.run(Command::CloseJob { job, now: w.now });
    assert_eq!(w.settle(&claimed, 9, JobOutcome::Again), Outcome::Refused(Refusal::NoSuchJob));
}

#[test]
fn jobs_come_back_with_their_timers_after_a_start() {
    let mut w = World::new(0);
    let jobs: Vec<JobNo> = (0..5).map(|subject| w.open_job(subject, 0)).collect();
    let claimed = w.claim(4, w.now + 1_000);
    w.settle(&claimed[1], 1, JobOutcome::Failed { retry_at: w.now + 500, error: "e".into() });
    w.settle(&claimed[2], 1, JobOutcome::Parked { error: "p".into() });
    w.settle(&claimed[3], 1, JobOutcome::Rest { until: MAX });
    let before: Vec<_> = jobs.iter().map(|no| w.state.job(*no)).collect();
    w.state = restarted(&w.state);
    assert_eq!(jobs.iter().map(|no| w.state.job(*no)).collect::<Vec<_>>(), before);
    assert_eq!(w.state.next_expiry(), Some(w.now + 500));
    assert_eq!(w.state.job_stats()[1].count, [1, 2, 1, 1]);
    w.time_passes(w.now + 1_000);
    let due: Vec<JobNo> = w.claim(9, MAX).into_iter().map(|job| job.no).collect();
    assert_eq!(due, [jobs[4], jobs[0], jobs[1]]);
    assert_eq!(w.open_job(99, 0), JobNo(6));
}

#[test]
fn a_closed_app_has_no_jobs_but_the_one_that_empties_it() {
    let mut w = World::new(3);
    let job = w.open_job(1, 0);
    w.run(Command::CloseApp { app: APP, now: w.now });
    assert_eq!((w.state.job(job), w.state.closing_app()), (None, Some(APP)));
    w.state = restarted(&w.state);
    let mut rounds = 0;
    while let Some(app) = w.state.closing_app() {
        w.run(Command::EmptyApp { app, limit: 1, now: w.now });
        rounds += 1;
    }
    assert_eq!((rounds, w.state.jobs(JobFilter::default(), None, 9)), (4, (vec![], None)));
    // Not emptied anew after each start.
    assert_eq!(restarted(&w.state).closing_app(), None);
}

/// Images of releases without jobs say only that an app is closed.
#[test]
fn an_app_that_an_earlier_release_closed_is_emptied() {
    let mut w = World::new(1);
    w.run(Command::CloseApp { app: APP, now: w.now });
    w.state.state.jobs = Jobs::default();
    assert_eq!(restarted(&w.state).closing_app(), Some(APP));
}

#[test]
fn jobs_are_listed_in_pages_and_by_what_they_are() {
    let mut w = World::new(0);
    let jobs: Vec<JobNo> = (0..5).map(|subject| w.open_job(subject, 0)).collect();
    let claimed = w.claim(1, MAX).remove(0);
    let list = |filter, after, look| {
        let (views, next) = w.state.jobs(filter, after, look);
        (views.into_iter().map(|view| view.no).collect::<Vec<_>>(), next)
    };
    assert_eq!(list(JobFilter::default(), None, 3), (jobs[..3].to_vec(), Some(jobs[2])));
    assert_eq!(list(JobFilter::default(), Some(jobs[2]), 3), (jobs[3..].to_vec(), None));
    let leased = JobFilter { state: Some(claimed_place()), ..JobFilter::default() };
    assert_eq!(list(leased, None, 9), (vec![claimed.no], None));
    let emptying = JobFilter { kind: Some(JobKind::EmptyApp), ..JobFilter::default() };
    assert_eq!(list(emptying, None, 9), (vec![], None));
    assert_eq!(list(JobFilter { app: Some(AppNo(1)), ..JobFilter::default() }, None, 2).0, []);
}

fn claimed_place() -> usize {
    JobState::Leased(Lease { no: 1, worker: 1, until: 1 }).place()
}

/// What a job is to be, said in the plainest way.
#[derive(Clone, Debug, Default)]
struct Model {
    /// When it is due: the time it became so, or will.
    due: Option<u64>,
    lease: Option<(u64, u64)>,
    leases: u64,
    failures: u32,
    cursor: u64,
    woken: bool,
    parked: bool,
}

impl Model {
    fn is_due(&self) -> bool {
        self.lease.is_none() && !self.parked && self.due.is_some_and(|due| due == 0)
    }
}

#[derive(Clone, Debug)]
enum Act {
    Open { subject: u64, wait: u64 },
    Claim { max: u32, keep: u64 },
    Settle { claim: prop::sample::Index, outcome: u8, wait: u64 },
    Wake { subject: u64, failed_too: bool },
    Close { subject: u64 },
    Send { wait: u64 },
    Leave { device: u32, secs: u32 },
    Pass { ms: u64, limit: u32 },
    Restart,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let wait = || prop_oneof![Just(0u64), 1..5_000u64, Just(MAX)];
    let act = prop_oneof![
        (0..6u64, wait()).prop_map(|(subject, wait)| Act::Open { subject, wait }),
        (1..4u32, 1..4_000u64).prop_map(|(max, keep)| Act::Claim { max, keep }),
        (any::<prop::sample::Index>(), 0..6u8, wait()).prop_map(|(claim, outcome, wait)| Act::Settle {
            claim,
            outcome,
            wait
        }),
        (0..6u64, any::<bool>()).prop_map(|(subject, failed_too)| Act::Wake { subject, failed_too }),
        (0..6u64).prop_map(|subject| Act::Close { subject }),
        (1..6_000u64).prop_map(|wait| Act::Send { wait }),
        (0..3u32, 1..5u32).prop_map(|(device, secs)| Act::Leave { device, secs }),
        (0..3_000u64, 1..5u32).prop_map(|(ms, limit)| Act::Pass { ms, limit }),
        Just(Act::Restart),
    ];
    prop::collection::vec(act, 1..120)
}

/// The model of everything that can be due.
struct Naive {
    jobs: BTreeMap<JobNo, Model>,
    /// Messages that are open, by when they end.
    messages: Vec<(u64, MessageId)>,
    /// Sessions that were left, by when they end.
    sessions: BTreeMap<u32, u64>,
}

impl Naive {
    /// Makes due what is due at `now`.
    fn pass(&mut self, now: UnixMillis) {
        for job in self.jobs.values_mut() {
            if job.lease.is_some_and(|(_, until)| until <= now) {
                (job.lease, job.woken, job.due) = (None, false, Some(0));
            } else if job.lease.is_none() && !job.parked && job.due.is_some_and(|due| due <= now) {
                job.due = Some(0);
            }
        }
    }

    fn settle(&mut self, claim: &ClaimedJob, cursor: u64, outcome: &JobOutcome, now: u64) -> bool {
        let Some(job) = self.jobs.get_mut(&claim.no) else { return false };
        if job.lease.is_none_or(|(no, _)| no != claim.lease) {
            return false;
        }
        job.cursor = cursor;
        let at = |until: u64| if until <= now { Some(0) } else { Some(until).filter(|until| *until < MAX) };
        job.failures = match outcome {
            JobOutcome::Failed { .. } | JobOutcome::Parked { .. } => job.failures + 1,
            _ => 0,
        };
        match *outcome {
            JobOutcome::Keep { until } => {
                job.lease = Some((claim.lease, until));
                return true;
            }
            JobOutcome::Closed => {
                self.jobs.remove(&claim.no);
                return true;
            }
            JobOutcome::Again => job.due = Some(0),
            JobOutcome::Rest { .. } if job.woken => job.due = Some(0),
            JobOutcome::Rest { until } => job.due = at(until),
            JobOutcome::Failed { retry_at, .. } => job.due = at(retry_at),
            JobOutcome::Parked { .. } => job.parked = true,
        }
        (job.lease, job.woken) = (None, false);
        true
    }
}

fn outcome(kind: u8, until: u64) -> JobOutcome {
    let error = String::from("e");
    match kind {
        0 => JobOutcome::Again,
        1 => JobOutcome::Rest { until },
        2 => JobOutcome::Keep { until },
        3 => JobOutcome::Failed { retry_at: until, error },
        4 => JobOutcome::Parked { error },
        _ => JobOutcome::Closed,
    }
}

/// Runs commands of a small limit until nothing is due, as the engine does: each kind of timer gets on
/// with each of them.
fn pass(w: &mut World, naive: &mut Naive, limit: u32) {
    naive.pass(w.now);
    let now = w.now;
    let due_sessions = naive.sessions.values().filter(|end| **end <= now).count();
    let due_messages = naive.messages.iter().filter(|(end, _)| end.div_ceil(1000) * 1000 <= now).count();
    let (mut messages, mut sessions) = (0, 0);
    for round in 1.. {
        let expire = Command::Expire { now, limit, history_before: 0, history_max: 1_000 };
        let Outcome::Expired { messages: m, sessions: s, more, .. } = w.run(expire) else { panic!() };
        assert!(m <= limit && s.len() <= limit as usize);
        (messages, sessions) = (messages + m as usize, sessions + s.len());
        // None waits for another kind: each gets its whole share of each command.
        assert!(messages >= due_messages.min(round), "{messages} of {due_messages} in {round}");
        assert!(sessions >= due_sessions.min(round), "{sessions} of {due_sessions} in {round}");
        if !more {
            break;
        }
    }
    assert_eq!((messages, sessions), (due_messages, due_sessions));
    naive.messages.retain(|(end, _)| end.div_ceil(1000) * 1000 > now);
    naive.sessions.retain(|_, end| *end > now);
}

fn check(w: &World, naive: &Naive) {
    let (views, _) = w.state.jobs(JobFilter::default(), None, 1_000);
    assert_eq!(views.len(), naive.jobs.len());
    let mut count = [0; 4];
    for view in views {
        let model = &naive.jobs[&view.no];
        count[view.state.place()] += 1;
        let expected = match (model.lease, model.parked, model.due) {
            (Some((no, until)), ..) => JobState::Leased(Lease { no, worker: 7, until }),
            (None, true, _) => JobState::Parked,
            (None, false, Some(0)) => match view.state {
                due @ JobState::Due { .. } => due,
                other => panic!("{other:?} instead of due"),
            },
            (None, false, until) => JobState::Waiting { until: until.unwrap_or(MAX) },
        };
        assert_eq!(view.state, expected);
        assert_eq!((view.cursor, view.failures), (model.cursor, model.failures));
    }
    let stats = w.state.job_stats()[1];
    assert_eq!(stats.count, count);
    assert_eq!(stats.due_since.is_some(), count[0] > 0);
}

/// The state and the model, side by side.
struct Both {
    w: World,
    naive: Naive,
    claims: Vec<ClaimedJob>,
}

impl Both {
    fn open(&mut self, subject: u64, wait: u64) {
        let due_at = self.w.now.saturating_add(wait);
        let existed = self.w.state.job_named(&webhook(subject)).is_some();
        let job = self.w.open_job(subject, due_at);
        assert_eq!(self.naive.jobs.contains_key(&job), existed);
        let due = if wait == 0 { Some(0) } else { Some(due_at).filter(|due| *due < MAX) };
        self.naive.jobs.entry(job).or_insert(Model { due, ..Model::default() });
    }

    fn claim(&mut self, max: u32, keep: u64) {
        let until = self.w.now + keep;
        let due = self.naive.jobs.values().filter(|job| job.is_due()).count();
        let claimed = self.w.claim(max, until);
        assert_eq!(claimed.len(), due.min(max as usize));
        for claim in &claimed {
            let job = self.naive.jobs.get_mut(&claim.no).unwrap();
            assert!(job.is_due());
            job.leases += 1;
            let expected = (job.leases, job.cursor, job.failures);
            assert_eq!((claim.lease, claim.cursor, claim.failures), expected);
            job.lease = Some((claim.lease, until));
        }
        self.claims.extend(claimed);
    }

    /// Also with leases that ran out, and with those that were settled.
    fn settle(&mut self, which: prop::sample::Index, cursor: u64, outcome: &JobOutcome) {
        if self.claims.is_empty() {
            return;
        }
        let claim = self.claims[which.index(self.claims.len())].clone();
        let taken = self.w.settle(&claim, cursor, outcome.clone()) == Outcome::Done;
        assert_eq!(taken, self.naive.settle(&claim, cursor, outcome, self.w.now));
    }

    fn wake(&mut self, subject: u64, failed_too: bool) {
        let Some(view) = self.w.state.job_named(&webhook(subject)) else { return };
        self.w.wake(view.no, failed_too);
        let job = self.naive.jobs.get_mut(&view.no).unwrap();
        if job.lease.is_some() {
            job.woken = true;
        } else if failed_too || job.failures == 0 {
            (job.parked, job.due) = (false, Some(0));
        }
    }

    fn act(&mut self, act: &Act, i: u64) {
        let now = self.w.now;
        match *act {
            Act::Open { subject, wait } => self.open(subject, wait),
            Act::Claim { max, keep } => self.claim(max, keep),
            Act::Settle { claim, outcome: kind, wait } => {
                self.settle(claim, i, &outcome(kind, now.saturating_add(wait)));
            }
            Act::Wake { subject, failed_too } => self.wake(subject, failed_too),
            Act::Close { subject } => {
                let Some(view) = self.w.state.job_named(&webhook(subject)) else { return };
                self.w.run(Command::CloseJob { job: view.no, now });
                self.naive.jobs.remove(&view.no);
            }
            Act::Send { wait } => {
                let sent = self.w.send(|m| {
                    m.expires_at = now + wait;
                    (m.inbox_max, m.inbox_bytes_max) = (1_000, 1_000_000);
                });
                self.naive.messages.push((now + wait, sent.id));
            }
            Act::Leave { device, secs } => {
                let at = DeviceRef { app: APP, device: DeviceNo(device) };
                self.w.run(Command::OpenSession { at, expiry_secs: secs, fresh: false, now });
                self.w.run(Command::LeaveSession { at, expiry_secs: secs, now });
                self.naive.sessions.insert(device, now + u64::from(secs) * 1000);
            }
            Act::Pass { ms, limit } => {
                self.w.now += ms;
                pass(&mut self.w, &mut self.naive, limit);
            }
            Act::Restart => self.w.state = restarted(&self.w.state),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn jobs_and_timers_do_what_a_naive_model_does(acts in acts()) {
        let naive = Naive { jobs: BTreeMap::new(), messages: Vec::new(), sessions: BTreeMap::new() };
        let mut both = Both { w: World::new(3), naive, claims: Vec::new() };
        for (i, act) in acts.iter().enumerate() {
            both.act(act, i as u64);
            check(&both.w, &both.naive);
        }
        prop_assert_eq!(both.w.gap(), 0);
    }
}
