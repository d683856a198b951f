//! How everybody else reaches a worker: the store's thread, other workers, the HTTP side.

use super::listener::Incoming;
use super::{GatewayMetrics, Reply};
use mio::Waker;
use postrider_core::port::*;
use postrider_core::session::SignInError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What can be told to a worker.
pub enum Mail {
    Wake(ConnectionRef),
    /// The same, and what was seen is to be looked at again.
    WakeAnew(ConnectionRef),
    Live(Live, Vec<LiveTarget>),
    Close(ConnectionRef, Farewell),
    /// The first is taken over by the second: it leaves, and then tells.
    Succeed {
        old: ConnectionRef,
        new: ConnectionRef,
    },
    /// It has not signed in, and a newer connection needs its place.
    MakeRoom(ConnectionRef),
    /// The older connection has left.
    Proceed(ConnectionRef),
    /// What a JWT says of the device that signs in is stored, or cannot be said.
    Vouched(ConnectionRef, Result<(), SignInError>),
    /// An answer that had to wait for the store.
    Reply(ConnectionRef, Reply),
    Replies(Vec<(ConnectionRef, Reply)>),
    /// A socket that began as HTTP.
    Adopt(Box<Incoming>),
    /// Acknowledgements that came by a request.
    Acknowledged(ConnectionRef, Vec<u64>),
    /// Begin to stop: accept no more, say goodbye to all.
    Shutdown,
}

/// Wakes that lie in a box; beyond it the worker looks after all its connections instead.
const WAKES_MAX: usize = 100_000;

/// One worker's box. Wakes are bounded in number, and live messages in bytes (a worker that stalls must not gather all that is
/// published meanwhile); every other letter stands for something that is bounded elsewhere: a connection, a commit, a
/// publisher's receive maximum.
pub struct Mailbox {
    inner: Mutex<Letters>,
    live_bytes_max: usize,
    /// The worker has been called and has not yet looked: another call would be a system call for nothing.
    called: AtomicBool,
    waker: Waker,
}

#[derive(Default)]
struct Letters {
    letters: Vec<Mail>,
    wakes: usize,
    live_bytes: usize,
    /// There were too many wakes to keep each.
    wakes_all: bool,
}

/// What a live message costs in a box.
fn cost(live: &Live, targets: &[LiveTarget]) -> usize {
    live.content.payload.len() + 200 + std::mem::size_of_val(targets)
}

impl Letters {
    /// Puts a letter in; false where there is no room for it.
    fn put(&mut self, mail: Mail, live_bytes_max: usize) -> bool {
        match &mail {
            Mail::Wake(_) if self.wakes >= WAKES_MAX => {
                self.wakes_all = true;
                return true;
            }
            Mail::Wake(_) => self.wakes += 1,
            Mail::Live(live, targets) => {
                let bytes = self.live_bytes + cost(live, targets);
                if bytes > live_bytes_max && self.live_bytes > 0 {
                    return false;
                }
                self.live_bytes = bytes;
            }
            _ => {}
        }
        self.letters.push(mail);
        true
    }
}

impl Mailbox {
    pub fn new(waker: Waker, live_bytes_max: usize) -> Mailbox {
        Mailbox { inner: Mutex::default(), live_bytes_max, called: AtomicBool::new(false), waker }
    }

    pub fn post(&self, mail: Mail) {
        _ = self.post_all([mail]);
    }

    /// A live message; false where more of them wait than the worker can take in.
    pub fn post_live(&self, live: Live, targets: Vec<LiveTarget>) -> bool {
        self.post_all([Mail::Live(live, targets)])
    }

    /// False where one of them was dropped.
    pub fn post_all(&self, mail: impl IntoIterator<Item = Mail>) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = true;
        for one in mail {
            taken &= inner.put(one, self.live_bytes_max);
        }
        drop(inner);
        if !self.called.swap(true, Ordering::AcqRel)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "a gateway worker could not be woken");
        }
        taken
    }

    /// Empties the box; true where every connection is to be looked after, since single wakes were too many.
    pub fn take(&self, into: &mut Vec<Mail>) -> bool {
        self.called.store(false, Ordering::Release);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut inner.letters, into);
        (inner.wakes, inner.live_bytes) = (0, 0);
        std::mem::take(&mut inner.wakes_all)
    }
}

/// All workers, as the core sees them.
pub struct Workers {
    pub boxes: Vec<Arc<Mailbox>>,
    pub metrics: GatewayMetrics,
}

impl Workers {
    fn of(&self, connection: ConnectionRef) -> Option<&Arc<Mailbox>> {
        self.boxes.get(usize::from(connection.shard))
    }
}

impl Connections for Workers {
    fn wake(&self, connections: &[ConnectionRef]) {
        for (shard, mailbox) in self.boxes.iter().enumerate() {
            let mut mine = connections.iter().filter(|c| usize::from(c.shard) == shard).peekable();
            if mine.peek().is_some() {
                _ = mailbox.post_all(mine.map(|c| Mail::Wake(*c)));
            }
        }
    }

    fn wake_anew(&self, connections: &[ConnectionRef]) {
        for connection in connections {
            if let Some(mailbox) = self.of(*connection) {
                mailbox.post(Mail::WakeAnew(*connection));
            }
        }
    }

    fn deliver(&self, live: &Live, targets: Vec<LiveTarget>) {
        let mut by_shard: Vec<Vec<LiveTarget>> = self.boxes.iter().map(|_| Vec::new()).collect();
        for target in targets {
            if let Some(mine) = by_shard.get_mut(usize::from(target.connection.shard)) {
                mine.push(target);
            }
        }
        for (mailbox, mine) in self.boxes.iter().zip(by_shard).filter(|(_, mine)| !mine.is_empty()) {
            let count = mine.len();
            if !mailbox.post_live(live.clone(), mine) {
                self.metrics.count_dropped("worker_busy", count);
            }
        }
    }

    fn close(&self, connection: ConnectionRef, why: Farewell) {
        if let Some(mailbox) = self.of(connection) {
            mailbox.post(Mail::Close(connection, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_core::model::Content;

    fn at(slot: u32) -> ConnectionRef {
        ConnectionRef { shard: 0, slot, generation: 0 }
    }

    fn live(bytes: usize) -> Mail {
        let content = Content { topic: None, payload: vec![0; bytes].into(), properties: None };
        Mail::Live(Live { content: Arc::new(content), expires_at: None }, Vec::new())
    }

    #[test]
    fn live_messages_for_a_worker_that_stalls_are_bounded_in_bytes() {
        let mut letters = Letters::default();
        assert!(letters.put(live(5_000), 4_000), "a single one goes whatever its size");
        assert!(!letters.put(live(10), 4_000) && letters.put(Mail::Wake(at(1)), 4_000));
        let mut letters = Letters::default();
        assert!((0..3).all(|_| letters.put(live(1_000), 4_000)) && !letters.put(live(1_000), 4_000));
        assert_eq!(letters.letters.len(), 3);
    }

    #[test]
    fn wakes_that_are_too_many_to_keep_become_one_for_all() {
        let mut letters = Letters::default();
        for slot in 0..WAKES_MAX as u32 {
            assert!(letters.put(Mail::Wake(at(slot)), 0));
        }
        assert!(!letters.wakes_all);
        assert!(letters.put(Mail::Wake(at(7)), 0));
        assert!(letters.wakes_all);
        assert_eq!(letters.letters.len(), WAKES_MAX);
    }
}
