//! The one thread that changes the store: group after group, in order.
//!
//! ```text
//! queue ─► refuse what does not fit the disk ─► execute all in memory ─► one write ─► one sync ─► receipts ─► tell all
//! ```
//!
//! Every command is journaled, also one that the state refused: it used up a number, and only a journal without holes can
//! tell that a record is missing. What is in memory but not on disk stays hidden (`durable`). A failed write or sync
//! ends the store: nobody is told that anything was stored, and the sync is never tried again, because after one failure
//! a second success would mean nothing. Only a full disk is survived: the group is undone and refused.

use super::config::{FailedBy, SyncMode};
use super::folder::{EMPTY_LEN, Name, Segment};
use super::queue::{Batch, Errand, Next};
use super::record::{self, Head, Kind};
use super::recover::{self, Repair};
use super::replay::blob_of;
use super::{Shared, checkpoint};
use crate::files::{File, is_full, is_passing};
use crate::planted;
use postrider_core::command::Outcome;
use postrider_core::id::Seq;
use postrider_core::port::StoreError;
use postrider_core::seeded::{self, Bug};
use postrider_core::state::Effects;
use postrider_core::state::rules::RULES;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// Commands executed before readers get their turn at the state.
const TURN: usize = 256;
/// A buffer that grew beyond this is given back.
const BUFFER_KEPT: usize = 4 * 1024 * 1024;

/// See the module.
pub struct Writer {
    shared: Arc<Shared>,
    segment: Current,
    buffer: Vec<u8>,
}

/// The segment being written.
struct Current {
    file: Arc<dyn File>,
    number: u32,
    first: Seq,
    len: u64,
    /// All before this is on stable storage.
    synced: u64,
    /// Up to here the disk has promised room.
    allocated: u64,
    /// Beyond this length another segment is begun.
    ends_at: u64,
}

/// A group that is executed and written, and not on stable storage yet.
pub struct Staged {
    group: Vec<Batch>,
    outcomes: Vec<Vec<Outcome>>,
    effects: Effects,
}

/// A group that is on stable storage; nobody was told yet.
pub struct Stored {
    group: Vec<Batch>,
    outcomes: Vec<Vec<Outcome>>,
}

impl Stored {
    pub fn tell(self) {
        self.group.into_iter().zip(self.outcomes).for_each(|(batch, outcomes)| batch.tell(Ok(outcomes)));
    }
}

/// What ended a group's way.
enum Trouble {
    /// The disk is full; everything is as before the group.
    Full,
    Fatal(String),
    /// A bug of the state machine's.
    Panicked,
}

fn fatal(what: &str) -> impl FnOnce(io::Error) -> Trouble + '_ {
    move |error| Trouble::Fatal(format!("{what}: {error}"))
}

impl Writer {
    /// Begins a segment of its own: one that was written in an earlier life is never written to again.
    pub fn new(shared: Arc<Shared>, first: Seq) -> io::Result<Writer> {
        let segment = begin_segment(&shared, first)?;
        Ok(Writer { shared, segment, buffer: Vec::new() })
    }

    /// Works until the queue is closed and empty, then seals the journal.
    pub fn run(mut self) {
        let (commands_max, bytes_max) =
            (self.shared.config.group_commands_max, self.shared.config.group_bytes_max);
        loop {
            match self.shared.queue.take(commands_max, bytes_max) {
                Next::Group(group) => self.group(group),
                Next::Errand(errand) => self.errand(errand),
                Next::End => break,
            }
            if self.shared.has_failed() {
                return;
            }
        }
        if let Err(error) = self.seal() {
            self.fail(FailedBy::Disk, &format!("sealing the journal: {error}"), Vec::new());
        }
    }

    fn group(&mut self, group: Vec<Batch>) {
        let began = Instant::now();
        if let Some(staged) = self.stage(group)
            && let Some(stored) = self.settle(staged)
        {
            self.shared.stats.commit_micros.fetch_add(micros(began), Ordering::Relaxed);
            stored.tell();
        }
        if self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
    }

    /// Takes what waits, if anything does.
    pub fn take_waiting(&self) -> Option<Vec<Batch>> {
        let config = &self.shared.config;
        self.shared.queue.take_waiting(config.group_commands_max, config.group_bytes_max)
    }

    /// First part of a commit: executes and writes a group. `None`: nothing of it was done, and it was told so.
    pub fn stage(&mut self, group: Vec<Batch>) -> Option<Staged> {
        let shared = self.shared.clone();
        let low = shared.space.look(&shared.folder);
        if !low {
            shared.space.lay_by(&shared.folder);
        }
        if shared.events.is_overdue(&shared.folder) {
            group.into_iter().for_each(|batch| batch.tell(Err(StoreError::Overloaded)));
            return None;
        }
        planted::panic_in("writer");
        let (refused, mut group): (Vec<Batch>, Vec<Batch>) =
            group.into_iter().partition(|batch| low && batch.grows);
        refused.into_iter().for_each(|batch| batch.tell(Err(shared.space.refusal())));
        if group.is_empty() {
            return None;
        }
        let mut effects = Effects::default();
        match self.execute_and_write(&group, &mut effects) {
            Ok(outcomes) => {
                if seeded::is(Bug::ToldBeforeSync) {
                    group.iter_mut().zip(&outcomes).for_each(|(batch, o)| batch.tell_at_once(Ok(o.clone())));
                }
                Some(Staged { group, outcomes, effects })
            }
            Err(Trouble::Full) => {
                shared.space.look(&shared.folder);
                group.into_iter().for_each(|batch| batch.tell(Err(shared.space.refusal())));
                None
            }
            Err(Trouble::Fatal(why)) => {
                self.fail(FailedBy::Disk, &why, group);
                None
            }
            Err(Trouble::Panicked) => {
                self.fail(FailedBy::Panic, "the state machine panicked", group);
                None
            }
        }
    }

    fn execute_and_write(
        &mut self,
        group: &[Batch],
        effects: &mut Effects,
    ) -> Result<Vec<Vec<Outcome>>, Trouble> {
        self.make_room(group.iter().map(|batch| batch.bytes() as u64).sum())?;
        let outcomes = self.execute(group, effects)?;
        self.write()?;
        Ok(outcomes)
    }

    /// Second part: the sync. What comes back is on stable storage and waits only to be told.
    pub fn settle(&mut self, staged: Staged) -> Option<Stored> {
        match self.sync(&staged) {
            Ok(()) => Some(Stored { group: staged.group, outcomes: staged.outcomes }),
            Err(why) => {
                self.fail(FailedBy::Disk, &why, staged.group);
                None
            }
        }
    }

    fn sync(&mut self, staged: &Staged) -> Result<(), String> {
        let segment = &mut self.segment;
        let began = Instant::now();
        if self.shared.config.sync == SyncMode::Synced {
            let synced = if seeded::is(Bug::SyncSkipped) { Ok(()) } else { segment.file.sync() };
            let synced = if seeded::is(Bug::SyncErrorIgnored) { Ok(()) } else { synced };
            synced.map_err(|error| format!("syncing the journal: {error}"))?;
            segment.synced = segment.len;
        }
        let shared = &self.shared;
        let stats = &shared.stats;
        let commands: usize = staged.group.iter().map(|batch| batch.commands.len()).sum();
        let bytes: u64 = staged.group.iter().map(|batch| batch.bytes() as u64).sum();
        stats.sync_micros.fetch_add(micros(began), Ordering::Relaxed);
        stats.bytes_written.fetch_add(bytes, Ordering::Relaxed);
        stats.segment_bytes.store(segment.len, Ordering::Relaxed);
        stats.commands.fetch_add(commands as u64, Ordering::Relaxed);
        shared.folder.set_readable(segment.number, segment.len);
        shared.durable.fetch_add(commands as u64, Ordering::Release);
        // Receipts that cannot be written wait, and the journal has them: no reason to tell anybody that it failed.
        _ = shared.events.append(&shared.folder, &staged.effects.events);
        stats.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A segment with room, and a disk with room, before anything is executed.
    fn make_room(&mut self, bytes: u64) -> Result<(), Trouble> {
        let shared = self.shared.clone();
        let fits =
            |segment: &Current| segment.len + bytes <= segment.allocated || bytes <= shared.space.free();
        if !fits(&self.segment) {
            shared.space.give_up_reserve(&shared.folder);
            if !fits(&self.segment) {
                return Err(Trouble::Full);
            }
        }
        let ends = self.segment.len + bytes > self.segment.ends_at && self.segment.len > EMPTY_LEN;
        if ends {
            match self.roll() {
                // Then the segment becomes longer than it should be.
                Err(error) if is_full(&error) => {
                    shared.space.give_up_reserve(&shared.folder);
                }
                Err(error) if is_passing(&error) => self.roll_later(&error),
                other => other.map_err(fatal("beginning a journal segment"))?,
            }
        }
        if self.segment.len + bytes > u64::from(u32::MAX) { Err(Trouble::Full) } else { Ok(()) }
    }

    /// No file can be opened now. The segment grows by another quarter of its size before the next try, so that not every
    /// group tries in vain.
    fn roll_later(&mut self, error: &io::Error) {
        tracing::warn!(%error, "no journal segment can be begun now; this one becomes longer");
        self.segment.ends_at = self.segment.len + self.shared.config.segment_bytes / 4;
    }

    /// Executes in turns, so that readers wait for a few hundred commands at most. A panic here is a bug of the state
    /// machine; the command that caused it is not in the journal yet, so the next start does not meet it again.
    fn execute(&mut self, group: &[Batch], effects: &mut Effects) -> Result<Vec<Vec<Outcome>>, Trouble> {
        self.buffer.clear();
        let executed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.turns(group, effects)));
        executed.map_err(|_| Trouble::Panicked)
    }

    fn turns(&mut self, group: &[Batch], effects: &mut Effects) -> Vec<Vec<Outcome>> {
        let mut all = Vec::with_capacity(group.len());
        let salt = self.shared.folder.salt(self.segment.number);
        let lock = || self.shared.state_mut();
        let mut state = lock();
        // What was noted before these commands came, their acknowledgements' deliveries among it.
        self.shared.notes.apply(&mut state);
        // The group before this one is on stable storage.
        state.settle(self.shared.durable.load(Ordering::Acquire));
        let mut turn = 0;
        for batch in group {
            let mut outcomes = Vec::with_capacity(batch.commands.len());
            let mut body = 0;
            for (command, encoded) in batch.commands.iter().zip(&batch.encoded) {
                let head = Head {
                    seq: state.seq() + 1,
                    group: self.segment.synced as u32,
                    kind: Kind::Command,
                    command_len: encoded.command_len,
                    content_len: encoded.content_len,
                    command_crc: encoded.command_crc,
                };
                let at = self.segment.len as usize + self.buffer.len();
                self.buffer.extend_from_slice(&head.encode(salt));
                self.buffer.extend_from_slice(&batch.bodies[body..body + encoded.body_len()]);
                body += encoded.body_len();
                outcomes.push(state.execute(command, blob_of(self.segment.number, at, &head), effects));
                effects.released.clear();
                turn += 1;
                if turn % TURN == 0 {
                    drop(state);
                    state = lock();
                }
            }
            all.push(outcomes);
        }
        all
    }

    /// Writes the buffer behind what is there. On a full disk the reserve is given up and the same bytes are tried once
    /// more; if that fails too, the group is undone.
    fn write(&mut self) -> Result<(), Trouble> {
        let mut result = self.segment.file.write_all_at(&self.buffer, self.segment.len);
        if met_full_disk(&result) && self.shared.space.give_up_reserve(&self.shared.folder) {
            result = self.segment.file.write_all_at(&self.buffer, self.segment.len);
        }
        if met_full_disk(&result) {
            self.undo().map_err(|why| Trouble::Fatal(format!("undoing a group on a full disk: {why}")))?;
            return Err(Trouble::Full);
        }
        result.map_err(fatal("writing the journal"))?;
        self.segment.len += self.buffer.len() as u64;
        Ok(())
    }

    /// Memory is ahead of the disk: takes the half-written group off the segment, and makes the state anew from the files.
    fn undo(&mut self) -> Result<(), String> {
        tracing::warn!("the disk is full: undoing a group");
        let shared = &self.shared;
        let text = |error: io::Error| error.to_string();
        self.segment.file.set_len(self.segment.len).map_err(text)?;
        self.segment.file.sync().map_err(text)?;
        self.segment.allocated = 0;
        let _calm = shared.maintenance.lock().unwrap_or_else(PoisonError::into_inner);
        let mut no_events = |_| Ok(());
        if seeded::is(Bug::UndoForgotten) {
            return Ok(());
        }
        let mut recovered = recover::recover(&shared.folder, Repair::No, &mut no_events)
            .map_err(|error| error.to_string())?;
        recovered.state.follow(RULES);
        let durable = shared.durable.load(Ordering::Acquire);
        if recovered.state.seq() != durable {
            return Err(format!("found {} commands instead of {durable}", recovered.state.seq()));
        }
        shared.note_problems(&recovered.problems);
        shared.state_mut().undo_to(recovered.state);
        Ok(())
    }

    /// Closes the segment and begins another.
    pub fn roll(&mut self) -> io::Result<()> {
        if self.segment.synced < self.segment.len {
            self.segment.file.sync()?;
            self.segment.synced = self.segment.len;
        }
        let shared = &self.shared;
        let last = shared.durable.load(Ordering::Acquire);
        let next = begin_segment(shared, last + 1)?;
        let closed = std::mem::replace(&mut self.segment, next);
        // What was allocated and not used; nothing is lost if this fails.
        if let Err(error) = closed.file.set_len(closed.len) {
            tracing::warn!(%error, "a closed segment keeps its unused space");
        }
        let segment =
            Segment { file: closed.number, first: closed.first, last, len: closed.len, rules: RULES };
        shared.folder.inventory().segments.push(segment);
        shared.segment_closed();
        Ok(())
    }

    pub fn errand(&mut self, errand: Errand) {
        match errand {
            Errand::Roll(tell) => {
                let rolled = if self.segment.len > EMPTY_LEN { self.roll() } else { Ok(()) };
                let told = match &rolled {
                    Ok(()) => Ok(()),
                    Err(error) if is_full(error) => Err(self.shared.space.refusal()),
                    Err(error) if is_passing(error) => Err(StoreError::Overloaded),
                    Err(error) => Err(StoreError::Failed(error.to_string())),
                };
                if let Err(StoreError::Failed(why)) = &told {
                    self.fail(FailedBy::Disk, &format!("beginning a journal segment: {why}"), Vec::new());
                }
                let _ = tell.send(told);
            }
            Errand::Checkpoint(tell) => {
                let made = checkpoint::of_live_state(&self.shared);
                let _ = tell.send(made.map_err(|error| StoreError::Failed(error.to_string())));
            }
        }
    }

    /// The last record of a store that is closed in order: from now on nothing before it may be missing.
    fn seal(&mut self) -> io::Result<()> {
        let shared = &self.shared;
        let mut segment = Segment {
            file: self.segment.number,
            first: self.segment.first,
            last: shared.durable.load(Ordering::Acquire),
            len: self.segment.len,
            rules: RULES,
        };
        if self.segment.synced < self.segment.len {
            self.segment.file.sync()?;
        }
        let head = Head {
            seq: segment.last,
            group: segment.len as u32,
            kind: Kind::Seal,
            command_len: 0,
            content_len: 0,
            command_crc: crc32c::crc32c(&[]),
        };
        let bytes = head.encode(shared.folder.salt(segment.file));
        let sealed = self.segment.file.write_all_at(&bytes, segment.len);
        if !met_full_disk(&sealed) {
            sealed?;
            segment.len += bytes.len() as u64;
        }
        self.segment.file.set_len(segment.len)?;
        self.segment.file.sync()?;
        shared.folder.inventory().segments.push(segment);
        Ok(())
    }

    /// The store is over: everybody is told so.
    fn fail(&self, by: FailedBy, why: &str, group: Vec<Batch>) {
        let error = StoreError::Failed(why.to_owned());
        self.shared.fail(by, why);
        group.into_iter().for_each(|batch| batch.tell(Err(error.clone())));
        self.shared.abandon_queue();
    }
}

fn met_full_disk(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(is_full)
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

fn begin_segment(shared: &Shared, first: Seq) -> io::Result<Current> {
    let number = shared.folder.take_file_number();
    let mut header = shared.folder.header(record::JOURNAL, number, first);
    if shared.config.sync == SyncMode::Relaxed {
        header.flags |= record::FLAG_RELAXED;
    }
    let name = Name::Journal { first, file: number }.text();
    let file = shared.folder.create_with_header(&name, &header)?;
    let mut allocated = 0;
    if shared.space.has_plenty(shared.config.segment_bytes) {
        // With its blocks allocated, a segment grows without the file system's own journal; not every disk can.
        match file.allocate(shared.config.segment_bytes) {
            Ok(()) => allocated = shared.config.segment_bytes,
            Err(error) => tracing::debug!(%error, "no space is allocated ahead"),
        }
    }
    shared.folder.keep_handle(number, file.clone());
    shared.folder.set_readable(number, EMPTY_LEN);
    let ends_at = shared.config.segment_bytes;
    Ok(Current { file, number, first, len: EMPTY_LEN, synced: EMPTY_LEN, allocated, ends_at })
}
