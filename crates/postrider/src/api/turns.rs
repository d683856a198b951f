//! Shares the server's threads among apps: while another app calls too, the requests of one take half of them at most.
//!
//! A handler runs in pieces, between the places where it waits; each piece of a request whose caller is known takes a
//! turn of its app, and what is done aside takes one of as many others. A piece that gets none waits in the order of
//! asking. So an app that calls as fast as it can makes others wait for the length of one piece, not for its queue.
//! An app that is alone takes what there is.

use postrider_core::id::{AppNo, UnixMillis};
use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An app counts as one that calls for so long after a request of it.
const CALLS_FOR_MS: u64 = 1_000;

/// The turns of all apps.
pub struct Turns {
    of_each: usize,
    apps: Mutex<Apps>,
}

#[derive(Default)]
struct Apps {
    shares: HashMap<AppNo, Arc<Share>>,
    /// The app that called last and the last other one, each with its time: so any app knows whether another calls.
    latest: Option<(AppNo, UnixMillis)>,
    other: Option<(AppNo, UnixMillis)>,
}

struct Share {
    pieces: Arc<Semaphore>,
    aside: Arc<Semaphore>,
}

impl Share {
    fn of(turns: usize) -> Share {
        Share { pieces: Arc::new(Semaphore::new(turns)), aside: Arc::new(Semaphore::new(turns)) }
    }
}

impl Apps {
    /// Notes a request of the app; true if another calls too.
    fn note(&mut self, app: AppNo, now: UnixMillis) -> bool {
        if self.latest.is_some_and(|(latest, _)| latest != app) {
            self.other = self.latest;
        }
        self.latest = Some((app, now));
        self.other.is_some_and(|(_, at)| now.saturating_sub(at) < CALLS_FOR_MS)
    }
}

impl Turns {
    /// `threads`: those that run handlers.
    pub fn new(threads: usize) -> Turns {
        Turns { of_each: (threads / 2).max(1), apps: Mutex::default() }
    }

    /// The app's turns for a request of now; none while no other app calls.
    fn share(&self, app: AppNo, now: UnixMillis) -> Option<Arc<Share>> {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        apps.note(app, now)
            .then(|| apps.shares.entry(app).or_insert_with(|| Arc::new(Share::of(self.of_each))).clone())
    }
}

/// Whose allowance of bytes a request takes: the one of the app's server, or that of the app's public keys, so that
/// whoever has one of those takes nothing from the app's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Payer {
    pub app: AppNo,
    pub is_public: bool,
}

/// Of one request, in its extensions: whose turns it takes and who pays for its body, once that is known.
#[derive(Clone, Default)]
pub struct Turn(Arc<Known>);

#[derive(Default)]
struct Known {
    share: OnceLock<Arc<Share>>,
    payer: OnceLock<Payer>,
}

impl Turn {
    /// The caller is of this app, and pays where it shows a key. Comes back with a turn of the app, where it needs one.
    pub async fn take(&self, turns: &Turns, (app, payer): (AppNo, Option<Payer>), now: UnixMillis) {
        if let Some(payer) = payer {
            _ = self.0.payer.set(payer);
        }
        if self.0.share.get().is_none()
            && let Some(share) = turns.share(app, now)
        {
            _ = self.0.share.set(share);
            // The piece under way began without a turn: it ends here, and the next one takes one.
            tokio::task::yield_now().await;
        }
    }

    pub fn payer(&self) -> Option<Payer> {
        self.0.payer.get().copied()
    }
}

thread_local! {
    /// Of the piece that runs on this thread.
    static RUNNING: RefCell<Option<Arc<Share>>> = const { RefCell::new(None) };
}

/// A turn for what the running piece does aside; none where it needs none. To be awaited before that is begun.
pub fn aside() -> impl Future<Output = Option<OwnedSemaphorePermit>> {
    let share = RUNNING.with_borrow(Clone::clone);
    // The semaphore is never closed.
    async move { share?.aside.clone().acquire_owned().await.ok() }
}

type Waiting = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// A handler that runs in turns.
pub struct InTurns<F> {
    handler: Pin<Box<F>>,
    turn: Turn,
    waiting: Option<Waiting>,
}

impl<F> InTurns<F> {
    pub fn new(handler: F, turn: Turn) -> InTurns<F> {
        InTurns { handler: Box::pin(handler), turn, waiting: None }
    }
}

impl<F: Future> Future for InTurns<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let Some(share) = this.turn.0.share.get().cloned() else { return this.handler.as_mut().poll(cx) };
        let Poll::Ready(turn) = poll_turn(&mut this.waiting, &share, cx) else { return Poll::Pending };
        let earlier = RUNNING.replace(Some(share));
        let polled = this.handler.as_mut().poll(cx);
        RUNNING.set(earlier);
        drop(turn);
        polled
    }
}

/// A turn for the next piece, behind those that wait already.
fn poll_turn(
    waiting: &mut Option<Waiting>,
    share: &Share,
    cx: &mut Context<'_>,
) -> Poll<Option<OwnedSemaphorePermit>> {
    if waiting.is_none()
        && let Ok(turn) = share.pieces.clone().try_acquire_owned()
    {
        return Poll::Ready(Some(turn));
    }
    let pieces = &share.pieces;
    let asked = waiting.get_or_insert_with(|| {
        let pieces = pieces.clone();
        Box::pin(async { pieces.acquire_owned().await.ok() })
    });
    let polled = asked.as_mut().poll(cx);
    if polled.is_ready() {
        *waiting = None;
    }
    polled
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    const GREEDY: AppNo = AppNo(1);
    const OTHER: AppNo = AppNo(2);

    #[test]
    fn an_app_needs_turns_only_while_another_calls() {
        let turns = Turns::new(4);
        assert!(turns.share(GREEDY, 1_000).is_none() && turns.share(GREEDY, 1_001).is_none());
        assert!(turns.share(OTHER, 1_002).is_some() && turns.share(GREEDY, 1_003).is_some());
        assert!(turns.share(GREEDY, 1_500).is_some(), "the other one called half a second ago");
        assert!(turns.share(GREEDY, 2_100).is_none(), "and then no more");
        assert_eq!(Turns::new(1).of_each, 1, "one thread serves all in turn");
    }

    /// How many handlers of an app ran and did something aside at the same moment, of many begun together.
    async fn at_once(turns: Arc<Turns>, app: AppNo) -> (usize, usize) {
        let counts: Arc<[AtomicUsize; 4]> = Arc::default();
        let handlers = (0..20).map(|_| {
            let (turns, counts, turn) = (turns.clone(), counts.clone(), Turn::default());
            let taken = turn.clone();
            let handler = async move {
                taken.take(&turns, (app, None), 5_000).await;
                let work = |now: usize, most: usize| {
                    let running = counts[now].fetch_add(1, Ordering::SeqCst) + 1;
                    counts[most].fetch_max(running, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(1));
                    counts[now].fetch_sub(1, Ordering::SeqCst);
                };
                work(0, 1);
                let permit = aside().await;
                let counts = counts.clone();
                let work = move || {
                    let running = counts[2].fetch_add(1, Ordering::SeqCst) + 1;
                    counts[3].fetch_max(running, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(1));
                    counts[2].fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                };
                tokio::task::spawn_blocking(work).await.unwrap();
            };
            tokio::spawn(InTurns::new(handler, turn))
        });
        for handler in handlers.collect::<Vec<_>>() {
            handler.await.unwrap();
        }
        (counts[1].load(Ordering::SeqCst), counts[3].load(Ordering::SeqCst))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn while_another_app_calls_one_takes_half_of_the_threads_at_most() {
        let turns = Arc::new(Turns::new(4));
        _ = turns.share(OTHER, 5_000);
        let (pieces, aside) = at_once(turns.clone(), GREEDY).await;
        assert!(pieces <= 2 && aside <= 2, "{pieces} {aside}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_request_that_is_given_up_while_it_waits_keeps_no_turn() {
        let turns = Turns::new(2);
        _ = turns.share(OTHER, 5_000);
        let share = turns.share(GREEDY, 5_000).unwrap();
        let held = share.pieces.clone().acquire_owned().await.unwrap();
        let turn = Turn::default();
        _ = turn.0.share.set(share.clone());
        let mut waiting = Box::pin(InTurns::new(async {}, turn.clone()));
        assert!(std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await);
        drop(waiting);
        drop(held);
        InTurns::new(async {}, turn).await;
        assert_eq!(share.pieces.available_permits(), 1);
    }
}
