//! Jobs over both stores: whoever works on them is nudged, and a lease outlives the process that took it.

use crate::kit::*;
use postrider_core::Engine;
use postrider_core::access::Access;
use postrider_core::command::*;
use postrider_core::jobs::*;
use postrider_core::limits::Limits;
use postrider_core::port::*;
use postrider_store::MemoryStore;
use postrider_store::faulty::FaultyFiles;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const LEASE_MS: u64 = 5_000;

#[derive(Clone, Default)]
struct Nudges(Arc<Mutex<Vec<JobKind>>>);

impl JobWorkers for Nudges {
    fn jobs_due(&self, kind: JobKind) {
        self.0.lock().unwrap().push(kind);
    }
}

impl Nudges {
    fn take(&self) -> Vec<JobKind> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn name(subject: u64) -> JobName {
    JobName { app: Some(APP), kind: JobKind::Webhook, subject }
}

fn engine(store: Arc<dyn Store>, clock: Arc<HandClock>) -> Engine {
    let chance = Arc::new(Counting(AtomicU64::new(1)));
    Engine::new(store, Limits::default(), Access::open(), clock, chance)
}

/// Does something and waits until it is told.
fn told<T: Send + 'static>(start: impl FnOnce(Box<dyn FnOnce(T) + Send>)) -> T {
    let (tell, told) = std::sync::mpsc::channel();
    start(Box::new(move |result| drop(tell.send(result))));
    told.recv().unwrap()
}

fn claim(engine: &Engine) -> Vec<ClaimedJob> {
    let until = engine.clock.now() + LEASE_MS;
    told(|done| engine.claim_jobs(JobKind::Webhook, 1, 10, until, done)).unwrap()
}

fn settle(engine: &Engine, job: &ClaimedJob, outcome: JobOutcome) -> Outcome {
    told(|done| engine.settle_job(job.no, job.lease, Some(job.cursor + 1), outcome, done)).unwrap().remove(0)
}

#[test]
fn workers_are_nudged_when_a_job_comes_to_be_due() {
    let (store, clock, nudges) = (MemoryStore::new(), Arc::new(HandClock::default()), Nudges::default());
    populate(&store, 0);
    let engine = engine(Arc::new(store), clock.clone());
    engine.attach_job_workers(Arc::new(nudges.clone()));
    told(|done| engine.open_job(name(1), 0, NOW + 10_000, done)).unwrap();
    engine.tick();
    assert_eq!((nudges.take(), claim(&engine)), (vec![], vec![]));
    clock.0.store(10_000, Ordering::SeqCst);
    engine.tick();
    assert_eq!(nudges.take(), [JobKind::Webhook]);
    let job = claim(&engine).remove(0);
    assert_eq!(settle(&engine, &job, JobOutcome::Rest { until: u64::MAX }), Outcome::Done);
    assert_eq!(nudges.take(), []);
    told(|done| engine.wake_jobs(vec![job.no], done)).unwrap();
    assert_eq!(nudges.take(), [JobKind::Webhook]);
    // A lease that runs out is noticed as well.
    assert_eq!(claim(&engine).len(), 1);
    clock.0.fetch_add(LEASE_MS, Ordering::SeqCst);
    engine.tick();
    assert_eq!(nudges.take(), [JobKind::Webhook]);
}

#[test]
fn no_lease_is_for_ever() {
    let (store, clock) = (MemoryStore::new(), Arc::new(HandClock::default()));
    populate(&store, 0);
    let engine = engine(Arc::new(store), clock.clone());
    told(|done| engine.open_job(name(1), 0, NOW, done)).unwrap();
    let job = told(|done| engine.claim_jobs(JobKind::Webhook, 1, 1, u64::MAX, done)).unwrap().remove(0);
    assert_eq!(settle(&engine, &job, JobOutcome::Keep { until: u64::MAX }), Outcome::Done);
    clock.0.store(3_600_000, Ordering::SeqCst);
    engine.tick();
    assert_eq!(claim(&engine).len(), 1);
}

/// With and without a checkpoint in between: the worker is gone with the process, and its lease is good
/// until it runs out.
#[test]
fn a_lease_outlives_the_process_that_took_it_and_then_runs_out() {
    for checkpoint in [false, true] {
        let (files, clock) = (FaultyFiles::new(1), Arc::new(HandClock::default()));
        let store = Arc::new(open(&files).unwrap());
        populate(&*store, 0);
        let before = engine(store.clone(), clock.clone());
        told(|done| before.open_job(name(1), 7, NOW, done)).unwrap();
        let lost = claim(&before).remove(0);
        assert_eq!((lost.cursor, lost.lease), (7, 1));
        if checkpoint {
            store.checkpoint_now().unwrap();
        }
        drop((before, store));
        let after = engine(Arc::new(open(&files.kill()).unwrap()), clock.clone());
        clock.0.store(LEASE_MS - 1, Ordering::SeqCst);
        after.tick();
        assert_eq!(claim(&after), []);
        clock.0.store(LEASE_MS, Ordering::SeqCst);
        while after.store.job(lost.no).unwrap().leases_lost == 0 {
            after.tick();
            std::thread::yield_now();
        }
        let again = claim(&after).remove(0);
        assert_eq!((again.no, again.cursor, again.lease), (lost.no, 7, 2));
        assert_eq!(settle(&after, &lost, JobOutcome::Again), Outcome::Refused(Refusal::LeaseLost));
        assert_eq!(settle(&after, &again, JobOutcome::Closed), Outcome::Done);
        assert_eq!(after.store.job(lost.no), None);
    }
}
