//! Executing journaled commands once more: what recovery, the checkpointer and `check` have in common.
//!
//! A damaged record is skipped and told; its number is used up by a command that does nothing, so that all later ones
//! keep theirs. Whether bad bytes at the end are a write that was never finished or damage is decided here too.
//!
//! Each segment's commands are executed by the rules by which they were executed first.

use super::record::{self, HEAD_LEN, HEADER_LEN, Head, Kind, Parsed};
use super::upgrade::KnownRules;
use super::{OpenError, Problem};
use postrider_core::command::Command;
use postrider_core::id::Seq;
use postrider_core::model::{BlobRef, ReceiptEvent};
use postrider_core::seeded::{self, Bug};
use postrider_core::state::{Effects, State};
use postrider_core::stored;
use std::io;
use std::ops::Range;

/// Where the receipts of replayed commands go.
pub type Sink<'a> = dyn FnMut(Vec<ReceiptEvent>) -> io::Result<()> + 'a;

/// A hole in the order greater than this is not bridged: then the folder's files do not belong together.
const HOLE_MAX: u64 = 100_000_000;
/// Receipts gathered before they go to the sink.
const EVENTS_AT_ONCE: usize = 4_096;

/// See the module.
pub struct Replay<'a> {
    pub state: State,
    pub problems: Vec<Problem>,
    /// The last record read was a seal.
    pub sealed: bool,
    pub records: u64,
    /// By which the last command was executed; `None`: none was.
    pub rules: Option<u32>,
    known: KnownRules,
    effects: Effects,
    sink: &'a mut Sink<'a>,
}

/// One segment to be replayed.
pub struct Source<'a> {
    pub name: &'a str,
    pub file: u32,
    pub salt: u64,
    /// By which its commands are executed.
    pub rules: u32,
    pub bytes: &'a [u8],
    /// Nothing was written after it: its end may be torn.
    pub last: bool,
}

impl Source<'_> {
    fn problem(&self, range: Range<usize>, what: impl Into<String>) -> Problem {
        Problem {
            file: self.name.to_owned(),
            offset: range.start as u64,
            len: range.len() as u64,
            what: what.into(),
        }
    }

    /// A later record that says that what is at `offset` was once whole proves damage; without one it was never whole.
    fn is_torn(&self, offset: usize, after: Seq) -> bool {
        if !self.last || seeded::is(Bug::TornTailAccepted) {
            return false;
        }
        let plausible = after..=after + (self.bytes.len() / HEAD_LEN) as u64 + 1;
        let mut at = offset + 1;
        while let Some(found) = record::resync(self.bytes, at, plausible.clone(), self.salt) {
            if Head::decode(&self.bytes[found..], self.salt).is_some_and(|head| head.group as usize > offset)
            {
                return false;
            }
            at = found + 1;
        }
        true
    }
}

impl<'a> Replay<'a> {
    pub fn new(state: State, known: KnownRules, sink: &'a mut Sink<'a>) -> Replay<'a> {
        Replay {
            state,
            problems: Vec::new(),
            sealed: false,
            records: 0,
            rules: None,
            known,
            effects: Effects::default(),
            sink,
        }
    }

    /// Replays a segment; answers up to where it is of use. What lies behind that was never finished.
    pub fn segment(&mut self, source: &Source<'_>) -> Result<usize, OpenError> {
        let mut at = HEADER_LEN;
        loop {
            let parsed = record::parse(source.bytes, at, source.salt);
            let good = matches!(parsed, Parsed::Record { .. } | Parsed::End);
            if !good && source.is_torn(at, self.state.seq()) {
                break;
            }
            match parsed {
                Parsed::End => break,
                Parsed::Record { head, command } => at = self.record(source, at, &head, command)?,
                Parsed::BadContent { head, command } => {
                    let range = at + HEAD_LEN + command.len()..at + head.record_len();
                    self.problems.push(source.problem(range, format!("content of record {}", head.seq)));
                    at = self.record(source, at, &head, command)?;
                }
                Parsed::BadCommand { head } => {
                    let end = at + head.record_len();
                    self.problems.push(source.problem(at..end, format!("record {}", head.seq)));
                    self.skip_to(head.seq)?;
                    at = end;
                }
                Parsed::BadHead => {
                    let from = self.state.seq();
                    let most = ((source.bytes.len() - at) / HEAD_LEN) as u64 + 1;
                    let next = record::resync(source.bytes, at + 1, from..=from + most, source.salt);
                    let end = next.unwrap_or(source.bytes.len());
                    self.problems.push(source.problem(at..end, format!("after record {from}")));
                    at = end;
                }
            }
        }
        self.flush()?;
        Ok(at)
    }

    fn record(
        &mut self,
        source: &Source<'_>,
        at: usize,
        head: &Head,
        bytes: &[u8],
    ) -> Result<usize, OpenError> {
        let end = at + head.record_len();
        self.sealed = head.kind == Kind::Seal;
        if self.sealed {
            self.fill_hole(source, at, head.seq)?;
            return Ok(end);
        }
        if head.seq <= self.state.seq() {
            return Ok(end);
        }
        self.fill_hole(source, at, head.seq - 1)?;
        let Ok(command) = stored::get_command(bytes) else {
            // The checksum holds, so this is no damage: another version wrote what this one cannot read.
            self.problems.push(source.problem(at..end, format!("record {} is not understood", head.seq)));
            self.skip_to(head.seq)?;
            return Ok(end);
        };
        self.follow(source)?;
        let blob = blob_of(source.file, at, head);
        self.state.execute(&command, blob, &mut self.effects);
        self.state.settle(head.seq);
        self.effects.released.clear();
        self.effects.over.clear();
        self.records += 1;
        if self.effects.events.len() >= EVENTS_AT_ONCE {
            self.flush()?;
        }
        Ok(end)
    }

    /// Executes by the rules of the segment from now on. Segments that need not be executed may have any.
    fn follow(&mut self, source: &Source<'_>) -> Result<(), OpenError> {
        if self.rules == Some(source.rules) {
            return Ok(());
        }
        self.known.allow(source.name, source.rules)?;
        if !self.state.follow(source.rules) {
            let what = format!("{} goes back to the rules {}", source.name, source.rules);
            return Err(OpenError::Damaged(what));
        }
        self.rules = Some(source.rules);
        Ok(())
    }

    /// Records up to `seq` should have come and did not.
    fn fill_hole(&mut self, source: &Source<'_>, at: usize, seq: Seq) -> Result<(), OpenError> {
        let from = self.state.seq();
        if seq <= from {
            return Ok(());
        }
        self.problems.push(source.problem(at..at, format!("records {} to {seq} are missing", from + 1)));
        self.skip_to(seq)
    }

    fn skip_to(&mut self, seq: Seq) -> Result<(), OpenError> {
        if seq.saturating_sub(self.state.seq()) > HOLE_MAX {
            return Err(OpenError::Damaged(format!("the records before {seq}")));
        }
        // Time 0 and nothing to do: an order that only counts.
        let nothing = Command::Expire { now: 0, limit: 0, history_before: 0, history_max: u32::MAX };
        while self.state.seq() < seq {
            self.state.execute(&nothing, BlobRef::default(), &mut self.effects);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), OpenError> {
        if self.effects.events.is_empty() {
            return Ok(());
        }
        (self.sink)(std::mem::take(&mut self.effects.events)).map_err(|error| OpenError::io("events", error))
    }
}

/// Where a record's content lies: its frame follows the command.
pub fn blob_of(file: u32, at: usize, head: &Head) -> BlobRef {
    match head.content_len as usize {
        0 => BlobRef::default(),
        len => BlobRef {
            file,
            offset: (at + HEAD_LEN + head.command_len as usize) as u32,
            len: (len - record::FRAME_LEN) as u32,
        },
    }
}
