//! Which positions this folder ever gave out: one line for each start of a server on it.
//!
//! A folder that was restored from a copy cannot know it by what is in it. So each start draws an id of its own, which goes into
//! every cursor, and writes down where its history begins. A cursor is good if its start is in the list and its position lies
//! before the next start began. A copy has the list as it was, and goes on with a start that the original never had, and the
//! other way round: what either gave out since is of no start that the other knows, or lies behind its end. It needs no clock,
//! nobody has to tell the server of the restore, and a plain restart costs no client anything.
//!
//! A start whose line could not be written (the disk is full) still has its own id; the next one then knows nothing of it, and
//! clients begin anew.

use super::OpenError;
use super::record::{self, HEADER_LEN, Header};
use crate::files::{Files, read_all};
use postrider_core::id::Seq;
use postrider_core::port::{self, Place};
use std::io;
use std::path::Path;

/// What is in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It was never started on by a program that keeps such a list.
    Nothing,
    /// What it says cannot be believed; no cursor is good any more.
    Damage,
    List(History),
}

/// The file.
pub const HISTORY: &str = "HISTORY";
/// Starts that are remembered; a cursor from before the oldest begins anew.
const STARTS_MAX: usize = 1_000;
const LINE: usize = 24;

/// A start of a server on this folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    pub id: u64,
    /// The last command and the last receipt before it.
    pub seq: Seq,
    pub event: u64,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// In order of time; the last one is the present one.
    starts: Vec<Start>,
}

impl History {
    /// A history whose only start had this id and began with the store.
    pub fn beginning_with(id: u64) -> History {
        History { starts: vec![Start { id, seq: 0, event: 0 }] }
    }

    /// Begins another start. Those that claim to have begun behind it gave out positions that are gone.
    pub fn begin(&mut self, start: Start) {
        self.starts.retain(|old| old.seq <= start.seq && old.event <= start.event);
        self.starts.push(start);
        let surplus = self.starts.len().saturating_sub(STARTS_MAX);
        self.starts.drain(..surplus);
    }

    /// Id of the present start.
    pub fn present(&self) -> u64 {
        self.starts.last().map_or(0, |start| start.id)
    }

    /// Id of the start that gave out a receipt; 0 where it is no longer remembered.
    pub fn start_of(&self, receipt: u64) -> u64 {
        self.starts.iter().rev().find(|start| start.event < receipt).map_or(0, |start| start.id)
    }

    /// All of them, for those who name what one of them stored.
    pub fn starts(&self) -> Vec<port::Start> {
        self.starts.iter().map(|start| port::Start { id: start.id, after: start.seq }).collect()
    }

    /// Whether that start gave out that place, in this history. `now`: how far the present one is.
    pub fn knows(&self, id: u64, place: Place, now: Reached) -> bool {
        let Some(at) = self.starts.iter().rposition(|start| start.id == id) else { return false };
        let end = self.starts.get(at + 1).map_or(now, |next| Reached { seq: next.seq, event: next.event });
        match place {
            Place::Command(seq) => seq <= end.seq,
            Place::Receipt(event) => event <= end.event,
        }
    }

    pub fn read(dir: &Path, files: &dyn Files) -> Result<Found, OpenError> {
        let file = match files.open(&dir.join(HISTORY), false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            opened => opened.map_err(|error| OpenError::io(HISTORY, error))?,
        };
        let bytes = read_all(&*file).map_err(|error| OpenError::io(HISTORY, error))?;
        Ok(History::decode(&bytes).map_or(Found::Damage, Found::List))
    }

    /// Replaces the file.
    pub fn write(&self, dir: &Path, files: &dyn Files, store_id: u64) -> io::Result<()> {
        let unfinished = dir.join(format!("{HISTORY}.tmp"));
        match files.remove(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = files.create(&unfinished)?;
        file.write_all_at(&self.encode(store_id)?, 0)?;
        file.sync()?;
        files.rename(&unfinished, &dir.join(HISTORY))?;
        files.sync_dir(dir)
    }

    fn encode(&self, store_id: u64) -> io::Result<Vec<u8>> {
        let header = Header::new(record::HISTORY, store_id, 0, 0);
        let mut bytes = header.encode().to_vec();
        let mut lines = Vec::with_capacity(self.starts.len() * LINE);
        for Start { id, seq, event } in &self.starts {
            [*id, *seq, *event].iter().for_each(|number| lines.extend_from_slice(&number.to_le_bytes()));
        }
        record::append_frame(&lines, &mut bytes).map_err(io::Error::other)?;
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Option<History> {
        Header::decode(bytes, record::HISTORY).ok()?;
        let lines = record::open_frame(bytes.get(HEADER_LEN..)?)?;
        let number =
            |line: &[u8], at: usize| Some(u64::from_le_bytes(line.get(at * 8..at * 8 + 8)?.try_into().ok()?));
        let start = |line: &[u8]| {
            Some(Start { id: number(line, 0)?, seq: number(line, 1)?, event: number(line, 2)? })
        };
        let starts: Option<Vec<Start>> = lines.chunks(LINE).map(start).collect();
        starts.filter(|starts| !starts.is_empty()).map(|starts| History { starts })
    }
}

/// How far a history is, by both counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    pub seq: Seq,
    pub event: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faulty::FaultyFiles;

    const NOW: Reached = Reached { seq: 90, event: 900 };

    fn knows(history: &History, id: u64, seq: Seq) -> bool {
        let both = [Place::Command(seq), Place::Receipt(seq * 10)].map(|place| history.knows(id, place, NOW));
        assert_eq!(both[0], both[1], "start {id}, position {seq}");
        both[0]
    }

    #[test]
    fn a_place_is_known_up_to_where_the_next_start_began() {
        let mut history = History::beginning_with(1);
        history.begin(Start { id: 2, seq: 40, event: 400 });
        history.begin(Start { id: 3, seq: 70, event: 700 });
        assert_eq!(history.present(), 3);
        for (id, last) in [(1, 40), (2, 70), (3, 90)] {
            assert!(knows(&history, id, 0) && knows(&history, id, last) && !knows(&history, id, last + 1));
        }
        assert!(!knows(&history, 4, 0));
    }

    #[test]
    fn a_copy_and_its_original_know_of_each_other_what_they_have_in_common() {
        let mut original = History::beginning_with(1);
        original.begin(Start { id: 2, seq: 40, event: 400 });
        let mut copy = original.clone();
        original.begin(Start { id: 3, seq: 50, event: 500 });
        // Taken while the original ran, and started where it was then.
        copy.begin(Start { id: 4, seq: 45, event: 450 });
        assert!(knows(&original, 2, 50) && knows(&copy, 2, 45) && !knows(&copy, 2, 46));
        assert!(!knows(&original, 4, 1) && !knows(&copy, 3, 1));
    }

    #[test]
    fn starts_are_found_again_and_a_damaged_list_is_none() {
        let (files, dir) = (FaultyFiles::new(1), Path::new("/data"));
        files.create_dir(dir).unwrap();
        assert_eq!(History::read(dir, &files).unwrap(), Found::Nothing);
        let mut history = History::beginning_with(7);
        for id in 8..1_200 {
            history.begin(Start { id, seq: id, event: id });
        }
        assert_eq!(history.starts.len(), STARTS_MAX);
        history.write(dir, &files, 5).unwrap();
        assert_eq!(History::read(dir, &files.cut_power()).unwrap(), Found::List(history.clone()));
        let whole = history.encode(5).unwrap();
        for bit in (HEADER_LEN * 8)..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(History::decode(&bytes), None, "bit {bit}");
        }
        (0..whole.len()).for_each(|len| assert_eq!(History::decode(&whole[..len]), None, "cut to {len}"));
    }
}
