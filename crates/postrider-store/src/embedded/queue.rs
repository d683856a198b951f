//! What waits for the writer: batches of commands, already encoded, bounded in number and bytes.
//!
//! There are two lanes. What devices acknowledge goes first, up to half of each group: it frees memory and windows, and
//! must not wait behind a sender's bulk. It may be executed before what was submitted earlier, for it names only
//! deliveries that are on stable storage already. Within a lane the order is that of submission.

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
    /// Goes before those that do not.
    overtakes: bool,
    done: Option<Done>,
}

impl Batch {
    /// Encodes on the caller's thread: the one writer only numbers and copies.
    pub fn new(mut commands: Vec<Command>, done: Done) -> Result<Batch, (Done, StoreError)> {
        // A push of the usual size; what is larger grows.
        let mut bodies = Vec::with_capacity(1024);
        let mut encoded = Vec::with_capacity(commands.len());
        let grows = commands.iter().any(Command::grows);
        let overtakes = !commands.is_empty() && commands.iter().all(Command::overtakes);
        for command in &mut commands {
            match record::encode_body(command, &mut bodies) {
                Ok(one) if bodies.len() <= BATCH_BYTES_MAX => encoded.push(one),
                _ => return Err((done, StoreError::Overloaded)),
            }
        }
        Ok(Batch { commands, encoded, bodies, grows, overtakes, done: Some(done) })
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

/// How much of something there is.
#[derive(Clone, Copy, Default)]
struct Amount {
    commands: usize,
    bytes: usize,
}

impl Amount {
    fn of(batch: &Batch) -> Amount {
        Amount { commands: batch.commands.len(), bytes: batch.bytes() }
    }

    fn plus(self, more: Amount) -> Amount {
        Amount { commands: self.commands + more.commands, bytes: self.bytes + more.bytes }
    }

    fn minus(self, less: Amount) -> Amount {
        Amount { commands: self.commands - less.commands, bytes: self.bytes - less.bytes }
    }

    fn is_within(self, max: Amount) -> bool {
        self.commands <= max.commands && self.bytes <= max.bytes
    }
}

#[derive(Default)]
struct Inner {
    /// Acknowledgements, and how much of them there is.
    express: VecDeque<Batch>,
    express_amount: Amount,
    /// All else.
    items: VecDeque<Item>,
    amount: Amount,
    /// Why nothing more is taken.
    closed: Option<StoreError>,
}

impl Inner {
    fn is_empty(&self) -> bool {
        self.express.is_empty() && self.items.is_empty()
    }

    /// All that waits, up to the next errand and the bounds.
    fn next(&mut self, max: Amount) -> Next {
        let mut group = Vec::new();
        let mut taken = Amount::default();
        // A lane that alone has something has the whole group.
        let share = if self.items.is_empty() { 1 } else { 2 };
        let express_max = Amount { commands: max.commands / share, bytes: max.bytes / share };
        while let Some(batch) = self.express.front()
            && (group.is_empty() || taken.plus(Amount::of(batch)).is_within(express_max))
        {
            taken = taken.plus(Amount::of(batch));
            group.extend(self.express.pop_front());
        }
        self.express_amount = self.express_amount.minus(taken);
        let overtook = taken;
        while let Some(item) = self.items.pop_front() {
            match item {
                Item::Errand(errand) if group.is_empty() => return Next::Errand(errand),
                Item::Batch(batch) if group.is_empty() || taken.plus(Amount::of(&batch)).is_within(max) => {
                    taken = taken.plus(Amount::of(&batch));
                    group.push(batch);
                }
                item => {
                    self.items.push_front(item);
                    break;
                }
            }
        }
        self.amount = self.amount.minus(taken.minus(overtook));
        Next::Group(group)
    }
}

/// See the module.
pub struct Queue {
    inner: Mutex<Inner>,
    filled: Condvar,
    /// Of each lane.
    max: Amount,
}

impl Queue {
    pub fn new(commands_max: usize, bytes_max: usize) -> Queue {
        let max = Amount { commands: commands_max, bytes: bytes_max };
        Queue { inner: Mutex::default(), filled: Condvar::new(), max }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty lane takes any batch, else a large one would never get in.
    pub fn push(&self, batch: Batch) -> Result<(), Box<(Batch, StoreError)>> {
        let mut inner = self.inner();
        if let Some(why) = inner.closed.clone() {
            return Err(Box::new((batch, why)));
        }
        let waiting = if batch.overtakes { &mut inner.express_amount } else { &mut inner.amount };
        let with_it = waiting.plus(Amount::of(&batch));
        if !with_it.is_within(self.max) && waiting.commands > 0 {
            return Err(Box::new((batch, StoreError::Overloaded)));
        }
        *waiting = with_it;
        match batch.overtakes {
            true => inner.express.push_back(batch),
            false => inner.items.push_back(Item::Batch(batch)),
        }
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
        while inner.is_empty() {
            if inner.closed.is_some() {
                return Next::End;
            }
            inner = self.filled.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.next(Amount { commands: commands_max, bytes: bytes_max })
    }

    /// The group that waits now; `None` if there is none.
    pub fn take_waiting(&self, commands_max: usize, bytes_max: usize) -> Option<Vec<Batch>> {
        let mut inner = self.inner();
        let is_errand = matches!(inner.items.front(), Some(Item::Errand(_)));
        if inner.express.is_empty() && (is_errand || inner.items.is_empty()) {
            return None;
        }
        match inner.next(Amount { commands: commands_max, bytes: bytes_max }) {
            Next::Group(group) => Some(group),
            _ => None,
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
        (inner.amount, inner.express_amount) = Default::default();
        let express = std::mem::take(&mut inner.express).into_iter().map(Item::Batch);
        express.chain(std::mem::take(&mut inner.items)).collect()
    }

    pub fn closed(&self) -> Option<StoreError> {
        self.inner().closed.clone()
    }

    pub fn len(&self) -> usize {
        let inner = self.inner();
        inner.amount.plus(inner.express_amount).commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_core::id::{AppNo, DeviceNo, DeviceRef};

    fn batch(command: Command, commands: usize) -> Batch {
        Batch::new(vec![command; commands], Box::new(|_| ())).map_err(|_| ()).unwrap()
    }

    fn bulk(commands: usize) -> Batch {
        let at = DeviceRef { app: AppNo(0), device: DeviceNo(0) };
        batch(Command::ClearInbox { at, now: 0 }, commands)
    }

    fn acks(commands: usize) -> Batch {
        batch(Command::Progress { app: AppNo(0), steps: Vec::new(), now: 0 }, commands)
    }

    /// The sizes of the next group's batches, acknowledgements as negative numbers.
    fn next(queue: &Queue) -> Vec<i64> {
        let size = |batch: &Batch| batch.commands.len() as i64 * if batch.overtakes { -1 } else { 1 };
        match queue.take(10, 1 << 20) {
            Next::Group(group) => group.iter().map(size).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn acknowledgements_go_before_bulk_and_leave_it_half_of_each_group() {
        let queue = Queue::new(100, 1 << 20);
        let push = |batch| queue.push(batch).map_err(|_| ()).unwrap();
        (0..3).for_each(|_| push(bulk(3)));
        (0..3).for_each(|_| push(acks(2)));
        assert_eq!(next(&queue), [-2, -2, 3, 3]);
        assert_eq!(next(&queue), [-2, 3]);
        push(acks(8));
        assert_eq!(next(&queue), [-8], "alone they have all of it");
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_full_lane_of_bulk_refuses_no_acknowledgement() {
        let queue = Queue::new(10, 1 << 20);
        assert!(queue.push(bulk(10)).is_ok() && queue.push(bulk(1)).is_err());
        assert!(queue.push(acks(10)).is_ok() && queue.push(acks(1)).is_err());
        assert_eq!((queue.len(), queue.drain().len(), queue.len()), (20, 2, 0));
        assert!(queue.push(bulk(50)).is_ok(), "an empty lane takes any batch");
    }
}
