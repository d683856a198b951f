//! Watches over the threads of this process: one that ends while it should run makes the server unready, and then ends the
//! process in order, with an exit code that tells what happened. A server that looks alive and does half of its work is
//! worse than one that ends and is started again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;

/// A part of the server ended by a bug: restart me, and report it (sysexits' EX_SOFTWARE).
pub const EXIT_PART_ENDED: u8 = 70;
/// The disk failed: restart me, after looking at the disk (sysexits' EX_IOERR).
pub const EXIT_STORE_FAILED: u8 = 74;

/// How long `/readyz` tells the reason before the process begins to stop, so that whoever probes it can see it.
pub const TOLD_FOR: Duration = Duration::from_secs(2);
/// How long stopping may take after that. What is broken may also be what stopping waits for.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// Why the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub exit_code: u8,
    pub why: String,
}

/// See the module. Clones are the same one.
#[derive(Clone, Default)]
pub struct Supervisor(Arc<Inner>);

#[derive(Default)]
struct Inner {
    ended: OnceLock<Ended>,
    stopping: AtomicBool,
    called: Notify,
}

impl Supervisor {
    /// The server cannot go on; the first reason counts.
    pub fn fail(&self, exit_code: u8, why: &str) {
        if self.0.ended.set(Ended { exit_code, why: why.to_owned() }).is_err() {
            return;
        }
        tracing::error!(why, exit_code, "the server cannot go on; the process ends");
        self.0.called.notify_one();
        let last_resort = move || {
            std::thread::sleep(TOLD_FOR + STOPPED_WITHIN);
            tracing::error!("stopping in order took too long");
            std::process::exit(i32::from(exit_code));
        };
        if std::thread::Builder::new().name("last-resort".into()).spawn(last_resort).is_err() {
            std::process::exit(i32::from(exit_code));
        }
    }

    /// Why the server cannot go on, if that is so.
    pub fn ended(&self) -> Option<&Ended> {
        self.0.ended.get()
    }

    /// Until the server cannot go on.
    pub async fn failed(&self) {
        while self.ended().is_none() {
            self.0.called.notified().await;
        }
    }

    /// From now on threads end because they are asked to.
    pub fn stopping(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether the process is about to end in order.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Relaxed)
    }

    /// Runs the work of a thread.
    pub fn watch(&self, name: &str, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.fail(EXIT_PART_ENDED, &format!("the thread {name} panicked"));
        } else if !self.is_stopping() {
            self.fail(EXIT_PART_ENDED, &format!("the thread {name} ended"));
        }
    }

    /// The same for a task; the answer says whether it ended in order.
    pub async fn watch_task<E: std::fmt::Display>(
        self,
        name: &'static str,
        task: tokio::task::JoinHandle<Result<(), E>>,
    ) {
        let ended = match task.await {
            Ok(Ok(())) if self.is_stopping() => return,
            Ok(Ok(())) => "ended".to_owned(),
            Ok(Err(error)) => format!("ended: {error}"),
            Err(error) if error.is_panic() => "panicked".to_owned(),
            // Only the runtime's end cancels it.
            Err(_) => return,
        };
        self.fail(EXIT_PART_ENDED, &format!("{name} {ended}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_or_ends_too_early_is_why_the_process_ends() {
        let supervisor = Supervisor::default();
        supervisor.watch("first", || panic!("on purpose"));
        supervisor.watch("second", || {});
        let ended = supervisor.ended().unwrap();
        assert_eq!((ended.exit_code, ended.why.as_str()), (EXIT_PART_ENDED, "the thread first panicked"));
        let supervisor = Supervisor::default();
        supervisor.watch("second", || {});
        assert_eq!(supervisor.ended().unwrap().why, "the thread second ended");
    }

    #[test]
    fn a_thread_that_ends_when_it_is_asked_to_is_no_failure() {
        let supervisor = Supervisor::default();
        supervisor.stopping();
        supervisor.watch("any", || {});
        assert_eq!(supervisor.ended(), None);
    }
}
