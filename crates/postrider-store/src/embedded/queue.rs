//! What waits for the writer: batches of commands, already encoded, bounded in number and bytes.

use super::record::{self, Encoded};
use postrider_core::command::{Command, Outcome};
use postrider_core::port::{Done, StoreError};
use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Larger batches cannot be addressed within one file together with what is there.
const BATCH_BYTES_MAX: usize = 1 << 30;

/// Commands of one caller, with their bodies end to end.
pub struct Batch {
    pub commands: Vec<Command>,
    pub encoded: Vec<Encoded>,
    pub bodies: Vec<u8>,
    /// Brings new things to keep: refused while space is low.
    pub grows: bool,
    done: Option<Done>,
}

impl Batch {
    /// Encodes on the caller's thread: the one writer only numbers and copies.
    pub fn new(mut commands: Vec<Command>, done: Done) -> Result<Batch, (Done, StoreError)> {
        // A push of the usual size; what is larger grows.
        let mut bodies = Vec::with_capacity(1024);
        let mut encoded = Vec::with_capacity(commands.len());
        let grows = commands.iter().any(Command::grows);
        for command in &mut commands {
            match record::encode_body(command, &mut bodies) {
                Ok(one) if bodies.len() <= BATCH_BYTES_MAX => encoded.push(one),
                _ => return Err((done, StoreError::Overloaded)),
            }
        }
        Ok(Batch { commands, encoded, bodies, grows, done: Some(done) })
    }

    /// What it takes in the journal.
    pub fn bytes(&self) -> usize {
        self.bodies.len() + self.commands.len() * record::HEAD_LEN
    }

    /// Tells the caller. A caller that panics does not take the writer with it.
    pub fn tell(mut self, result: Result<Vec<Outcome>, StoreError>) {
        self.tell_at_once(result);
    }

    pub fn tell_at_once(&mut self, result: Result<Vec<Outcome>, StoreError>) {
        if let Some(done) = self.done.take() {
            call(done, result);
        }
    }
}

pub fn call(done: Done, result: Result<Vec<Outcome>, StoreError>) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| done(result))).is_err() {
        tracing::error!("a caller of the store panicked when it was told");
    }
}

/// A batch that is dropped untold (only a bug can do that) is told at least that.
impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            call(done, Err(StoreError::Closed));
        }
    }
}

/// Something for the writer to do between groups.
pub enum Errand {
    /// Close the segment and begin another.
    Roll(SyncSender<Result<(), StoreError>>),
    /// Write a checkpoint of the live state: the way out when the journal on disk was damaged behind our back.
    Checkpoint(SyncSender<Result<(), StoreError>>),
}

pub enum Item {
    Batch(Batch),
    Errand(Errand),
}

/// What the writer is to do next.
pub enum Next {
    Group(Vec<Batch>),
    Errand(Errand),
    /// Closed, and nothing waits.
    End,
}

#[derive(Default)]
struct Inner {
    items: VecDeque<Item>,
    commands: usize,
    bytes: usize,
    /// Why nothing more is taken.
    closed: Option<StoreError>,
}

impl Inner {
    /// All that waits, up to the next errand and the bounds.
    fn next(&mut self, commands_max: usize, bytes_max: usize) -> Next {
        let mut group = Vec::new();
        let (mut commands, mut bytes) = (0, 0);
        while let Some(item) = self.items.pop_front() {
            match item {
                Item::Errand(errand) if group.is_empty() => return Next::Errand(errand),
                Item::Batch(batch)
                    if group.is_empty()
                        || (commands + batch.commands.len() <= commands_max
                            && bytes + batch.bytes() <= bytes_max) =>
                {
                    commands += batch.commands.len();
                    bytes += batch.bytes();
                    group.push(batch);
                }
                item => {
                    self.items.push_front(item);
                    break;
                }
            }
        }
        self.commands -= commands;
        self.bytes -= bytes;
        Next::Group(group)
    }
}

/// See the module.
pub struct Queue {
    inner: Mutex<Inner>,
    filled: Condvar,
    commands_max: usize,
    bytes_max: usize,
}

impl Queue {
    pub fn new(commands_max: usize, bytes_max: usize) -> Queue {
        Queue { inner: Mutex::default(), filled: Condvar::new(), commands_max, bytes_max }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty queue takes any batch, else a large one would never get in.
    pub fn push(&self, batch: Batch) -> Result<(), Box<(Batch, StoreError)>> {
        let (commands, bytes) = (batch.commands.len(), batch.bytes());
        let mut inner = self.inner();
        if let Some(why) = inner.closed.clone() {
            return Err(Box::new((batch, why)));
        }
        let full = inner.commands + commands > self.commands_max || inner.bytes + bytes > self.bytes_max;
        if full && inner.commands > 0 {
            return Err(Box::new((batch, StoreError::Overloaded)));
        }
        inner.commands += commands;
        inner.bytes += bytes;
        inner.items.push_back(Item::Batch(batch));
        drop(inner);
        self.filled.notify_one();
        Ok(())
    }

    /// Errands are few and always find room.
    pub fn push_errand(&self, errand: Errand) -> Result<(), StoreError> {
        let mut inner = self.inner();
        if let Some(why) = inner.closed.clone() {
            return Err(why);
        }
        inner.items.push_back(Item::Errand(errand));
        drop(inner);
        self.filled.notify_one();
        Ok(())
    }

    /// Waits for something to do. A group is all that waits, up to the next errand and the bounds.
    pub fn take(&self, commands_max: usize, bytes_max: usize) -> Next {
        let mut inner = self.inner();
        while inner.items.is_empty() {
            if inner.closed.is_some() {
                return Next::End;
            }
            inner = self.filled.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.next(commands_max, bytes_max)
    }

    /// The group that waits now; `None` if there is none.
    pub fn take_waiting(&self, commands_max: usize, bytes_max: usize) -> Option<Vec<Batch>> {
        let mut inner = self.inner();
        match inner.items.front()? {
            Item::Batch(_) => match inner.next(commands_max, bytes_max) {
                Next::Group(group) => Some(group),
                _ => None,
            },
            Item::Errand(_) => None,
        }
    }

    /// From now nothing is taken; what waits stays. The first reason stands.
    pub fn close(&self, why: StoreError) {
        let mut inner = self.inner();
        // A failure is told even by a store that was closing.
        if inner.closed.is_none() || matches!(why, StoreError::Failed(_)) {
            inner.closed = Some(why);
        }
        drop(inner);
        self.filled.notify_all();
    }

    /// Everything that waits, to be told that it was in vain.
    pub fn drain(&self) -> Vec<Item> {
        let mut inner = self.inner();
        (inner.commands, inner.bytes) = (0, 0);
        inner.items.drain(..).collect()
    }

    pub fn closed(&self) -> Option<StoreError> {
        self.inner().closed.clone()
    }

    pub fn len(&self) -> usize {
        self.inner().commands
    }
}
