//! How everybody else reaches a worker: the store's thread, other workers, the HTTP side.

use super::Reply;
use super::listener::Incoming;
use mio::Waker;
use postrider_core::port::*;
use postrider_core::session::SignInError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What can be told to a worker.
pub enum Mail {
    Wake(ConnectionRef),
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

/// One worker's box. Unbounded in count, but each letter stands for something bounded elsewhere: a connection's window, a
/// commit, a publisher's receive maximum.
pub struct Mailbox {
    letters: Mutex<Vec<Mail>>,
    /// The worker has been called and has not yet looked: another call would be a system call for nothing.
    called: AtomicBool,
    waker: Waker,
}

impl Mailbox {
    pub fn new(waker: Waker) -> Mailbox {
        Mailbox { letters: Mutex::default(), called: AtomicBool::new(false), waker }
    }

    pub fn post(&self, mail: Mail) {
        self.post_all([mail]);
    }

    pub fn post_all(&self, mail: impl IntoIterator<Item = Mail>) {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).extend(mail);
        if !self.called.swap(true, Ordering::AcqRel)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "a gateway worker could not be woken");
        }
    }

    pub fn take(&self, into: &mut Vec<Mail>) {
        self.called.store(false, Ordering::Release);
        std::mem::swap(&mut *self.letters.lock().unwrap_or_else(PoisonError::into_inner), into);
    }
}

/// All workers, as the core sees them.
pub struct Workers(pub Vec<Arc<Mailbox>>);

impl Workers {
    fn of(&self, connection: ConnectionRef) -> Option<&Arc<Mailbox>> {
        self.0.get(usize::from(connection.shard))
    }
}

impl Connections for Workers {
    fn wake(&self, connections: &[ConnectionRef]) {
        for (shard, mailbox) in self.0.iter().enumerate() {
            let mut mine = connections.iter().filter(|c| usize::from(c.shard) == shard).peekable();
            if mine.peek().is_some() {
                mailbox.post_all(mine.map(|c| Mail::Wake(*c)));
            }
        }
    }

    fn deliver(&self, live: &Live, targets: Vec<LiveTarget>) {
        let mut by_shard: Vec<Vec<LiveTarget>> = self.0.iter().map(|_| Vec::new()).collect();
        for target in targets {
            if let Some(mine) = by_shard.get_mut(usize::from(target.connection.shard)) {
                mine.push(target);
            }
        }
        for (mailbox, mine) in self.0.iter().zip(by_shard).filter(|(_, mine)| !mine.is_empty()) {
            mailbox.post(Mail::Live(live.clone(), mine));
        }
    }

    fn close(&self, connection: ConnectionRef, why: Farewell) {
        if let Some(mailbox) = self.of(connection) {
            mailbox.post(Mail::Close(connection, why));
        }
    }
}
