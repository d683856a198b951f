//! Deriving the keys of a password takes milliseconds, in which a worker serves thousands: a thread of its own does it, for
//! one account after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

type Job = Box<dyn FnOnce() + Send>;

/// The queue of the one thread; it ends with it.
pub struct Accounts {
    jobs: Sender<Job>,
    /// Jobs that wait. A channel with a bound of its own would take memory for all of them at once.
    waiting: Arc<AtomicUsize>,
    max: usize,
    /// Until the first job comes: most servers never have one.
    idle: Mutex<Option<Receiver<Job>>>,
}

impl Accounts {
    /// `max`: jobs that may wait.
    pub fn new(max: usize) -> Accounts {
        let (jobs, queue) = channel();
        Accounts { jobs, waiting: Arc::default(), max: max.max(1), idle: Mutex::new(Some(queue)) }
    }

    /// False, and the job is dropped, where too many wait.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let more = |waiting| (waiting < self.max).then_some(waiting + 1);
        let has_room = self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok();
        has_room && self.jobs.send(Box::new(job)).is_ok() && self.is_running()
    }

    /// Starts the thread with the first job.
    fn is_running(&self) -> bool {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = idle.take() else { return true };
        let waiting = self.waiting.clone();
        let thread = std::thread::Builder::new().name("accounts".into());
        let started = thread.spawn(move || work(&queue, &waiting));
        if let Err(error) = &started {
            tracing::error!(%error, "no account can be changed: its thread could not be started");
        }
        started.is_ok()
    }
}

fn work(queue: &Receiver<Job>, waiting: &AtomicUsize) {
    while let Ok(job) = queue.recv() {
        waiting.fetch_sub(1, Ordering::AcqRel);
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a change of an account panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_many_takes_no_memory_before_they_come() {
        let accounts = Accounts::new(usize::MAX);
        let (tell, told) = channel();
        assert!(accounts.submit(move || tell.send(()).unwrap()));
        told.recv().unwrap();
    }

    #[test]
    fn jobs_are_done_in_order_and_only_so_many_may_wait() {
        let accounts = Accounts::new(2);
        let (begun, has_begun) = channel();
        let (go, gone) = channel::<()>();
        assert!(accounts.submit(move || {
            begun.send(()).unwrap();
            _ = gone.recv();
        }));
        has_begun.recv().unwrap();
        let (tell, told) = channel();
        for n in 0..2 {
            let tell = tell.clone();
            assert!(accounts.submit(move || tell.send(n).unwrap()));
        }
        assert!(!accounts.submit(|| panic!("there was no room for it")));
        go.send(()).unwrap();
        assert_eq!((told.recv(), told.recv()), (Ok(0), Ok(1)));
    }

    #[test]
    fn a_job_that_panics_ends_no_other() {
        let accounts = Accounts::new(2);
        assert!(accounts.submit(|| panic!("planted")));
        let (tell, told) = channel();
        // The first may still lie in the queue.
        while !accounts.submit({
            let tell = tell.clone();
            move || tell.send(()).unwrap()
        }) {}
        told.recv().unwrap();
    }
}
