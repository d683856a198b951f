//! Folders whose journal was executed by the rules of an earlier release.
//!
//! Such a journal is replayed by its own rules. Then the state is written as a checkpoint, and only
//! behind that comes the first command that the present rules execute. So no segment mixes rules,
//! and a later release needs the old ones only for folders that it meets before they were opened by
//! a release between.
//!
//! ```text
//!  1 recover without changing anything: what is needed, is there room   2 recover   3 receipts, sync
//!  4 contents, checkpoint-N.tmp, sync   5 rename, sync the folder: upgraded   6 all else of a start
//! ```
//!
//! A crash before 5 leaves the folder as it was but for rows of receipts, which come again from the
//! journal, and files that nobody names. A disk that becomes full before 5 has these taken away.

use super::checkpoint::{self, Failure};
use super::events::{self, EventLog};
use super::folder::{EMPTY_LEN, Folder, Name, RESERVE};
use super::record::{self, FRAME_LEN, HEADER_LEN, Header, Written};
use super::recover::{self, Recovered, Repair};
use super::{OpenError, Problem};
use postrider_core::id::Seq;
use postrider_core::state::rules::{self, OLDEST_RULES, RULES};
use postrider_core::state::{Live, State};
use postrider_core::stored;
use std::collections::HashSet;
use std::io::{self, Write};

/// What a start writes beside the upgrade: the first segment, the list of starts.
const START_BYTES: u64 = 64 * 1024;

/// The rules that a program knows: the present ones, and the oldest by which it can replay.
#[derive(Clone, Copy, Debug)]
pub struct KnownRules {
    pub oldest: u32,
    pub present: u32,
    /// The last release that can replay by rules older than these.
    pub last_release_with: fn(u32) -> Option<&'static str>,
}

impl KnownRules {
    /// Of this release.
    pub const OURS: KnownRules =
        KnownRules { oldest: OLDEST_RULES, present: RULES, last_release_with: rules::last_release_with };

    /// Files of a later release are not understood, whatever is in them.
    pub fn refuse_newer(&self, file: &str, written: Written) -> Result<(), OpenError> {
        let Written { rules, release, .. } = written;
        if rules <= self.present {
            return Ok(());
        }
        Err(OpenError::NewerRules { file: file.to_owned(), rules, release: release.to_string() })
    }

    /// Whether commands that were executed by these rules can be executed again.
    pub fn allow(&self, file: &str, rules: u32) -> Result<(), OpenError> {
        if rules >= self.oldest {
            return Ok(());
        }
        let release = (self.last_release_with)(rules).unwrap_or("that wrote it").to_owned();
        Err(OpenError::DroppedRules { file: file.to_owned(), rules, release })
    }

    fn are_newer_than(&self, rules: Option<u32>) -> bool {
        rules.is_some_and(|rules| rules < self.present)
    }
}

/// What opening a folder by this program does beside what each start does.
#[derive(Clone, Debug, Default)]
pub struct UpgradePlan {
    /// The folder was written by the rules of an earlier release.
    pub is_needed: bool,
    /// Number of the last command.
    pub seq: Seq,
    /// Commands behind the newest checkpoint, which are replayed.
    pub commands: u64,
    /// It was closed in order.
    pub clean: bool,
    pub problems: Vec<Problem>,
    /// Of the checkpoint that is written, with the contents that are copied for it.
    pub checkpoint_bytes: u64,
    /// Receipts that are in the journal and not in their own files.
    pub receipts_bytes: u64,
    /// `None`: the disk does not say it.
    pub free_bytes: Option<u64>,
    /// What can be given up for it.
    pub reserve_bytes: u64,
}

impl UpgradePlan {
    pub fn needed_bytes(&self) -> u64 {
        if self.is_needed { self.checkpoint_bytes + self.receipts_bytes + START_BYTES } else { 0 }
    }

    pub fn has_room(&self) -> bool {
        self.free_bytes.is_none_or(|free| free.saturating_add(self.reserve_bytes) >= self.needed_bytes())
    }
}

/// Looks at everything and changes nothing.
pub fn plan(folder: &Folder) -> Result<UpgradePlan, OpenError> {
    let io = |error| OpenError::io("the data folder", error);
    let told = events::last_position(folder).map_err(io)?;
    let mut receipts_bytes = 0;
    let mut sink = |rows: Vec<postrider_core::model::ReceiptEvent>| {
        let mut bytes = Vec::new();
        rows.iter().filter(|row| row.position > told).for_each(|row| {
            stored::put_event(row, &mut bytes);
            receipts_bytes += FRAME_LEN as u64;
        });
        receipts_bytes += bytes.len() as u64;
        Ok(())
    };
    let Recovered { mut state, problems, inventory, clean, records, rules, .. } =
        recover::recover(folder, Repair::No, &mut sink)?;
    *folder.inventory() = inventory;
    let mut plan = UpgradePlan {
        is_needed: folder.known.are_newer_than(rules),
        seq: state.seq(),
        commands: records,
        clean,
        problems,
        receipts_bytes,
        free_bytes: folder.files.space(&folder.dir).ok().map(|space| space.free),
        reserve_bytes: file_len(folder, RESERVE),
        ..UpgradePlan::default()
    };
    if plan.is_needed {
        plan.checkpoint_bytes = image_bytes(&state) + checkpoint::copied_bytes(folder, &mut state);
    }
    Ok(plan)
}

fn file_len(folder: &Folder, name: &str) -> u64 {
    folder.files.open(&folder.path(name), false).and_then(|file| file.len()).unwrap_or(0)
}

fn image_bytes(state: &State) -> u64 {
    struct Count(u64);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Nothing here can fail.
    let _ = stored::write_state(state, &mut count);
    count.0
}

/// By whom the newest of the folder's files that are in use was written: a folder never goes back.
pub fn newest_written(folder: &Folder) -> Result<Written, OpenError> {
    let headers = headers_in_use(folder).map_err(|error| OpenError::io("the data folder", error))?;
    Ok(headers.iter().map(|header| header.written).max().unwrap_or(folder.written))
}

/// Headers of the newest checkpoint and of the segments that are not covered by it, in order; those
/// that are damaged are left out.
fn headers_in_use(folder: &Folder) -> io::Result<Vec<Header>> {
    let names = folder.files.list(&folder.dir)?;
    let names = names.iter().map(|name| Name::parse(name));
    let (mut base, mut journals) = (0, Vec::new());
    for name in names {
        match name {
            Name::Checkpoint { seq } => base = base.max(seq),
            Name::Journal { first, file } => journals.push((first, file)),
            _ => {}
        }
    }
    journals.sort_unstable();
    let mut headers = Vec::new();
    if base > 0 {
        headers.extend(header(folder, Name::Checkpoint { seq: base }, record::CHECKPOINT)?);
    }
    for (i, (first, file)) in journals.iter().enumerate() {
        let is_covered = journals.get(i + 1).is_some_and(|(next, _)| *next <= base + 1);
        if !is_covered {
            let name = Name::Journal { first: *first, file: *file };
            headers.extend(header(folder, name, record::JOURNAL)?);
        }
    }
    Ok(headers)
}

fn header(folder: &Folder, name: Name, magic: [u8; 8]) -> io::Result<Option<Header>> {
    let file = folder.files.open(&folder.path(&name.text()), false)?;
    if file.len()? < EMPTY_LEN {
        return Ok(None);
    }
    let mut bytes = [0; HEADER_LEN];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Header::decode(&bytes, magic).ok())
}

/// A folder that is about to be upgraded, as it was before.
pub struct Before {
    names: HashSet<String>,
    receipts: u64,
}

/// Refuses to open a folder that has to be upgraded on a disk without room for it. `None`: no upgrade.
pub fn prepare(folder: &Folder, events: &EventLog) -> Result<Option<Before>, OpenError> {
    let io = |error| OpenError::io("the data folder", error);
    let headers = headers_in_use(folder).map_err(io)?;
    if headers.iter().all(|header| header.written.rules == folder.known.present) {
        return Ok(None);
    }
    let plan = plan(folder)?;
    *folder.inventory() = Default::default();
    if !plan.is_needed {
        return Ok(None);
    }
    let (needed, free) = (plan.needed_bytes(), plan.free_bytes.unwrap_or(u64::MAX));
    if !plan.has_room() {
        return Err(OpenError::NoRoomToUpgrade { needed, free });
    }
    if free < needed {
        folder.remove(RESERVE).and_then(|()| folder.files.sync_dir(&folder.dir)).map_err(io)?;
    }
    let names = folder.files.list(&folder.dir).map_err(io)?.into_iter().collect();
    Ok(Some(Before { names, receipts: events.last() }))
}

/// Writes the checkpoint behind which the present rules begin.
pub fn write(folder: &Folder, events: &EventLog, live: &mut Live) -> Result<(), OpenError> {
    let written = events
        .sync(folder)
        .map_err(Failure::Io)
        .and_then(|()| checkpoint::of_recovered_state(folder, live))
        .map_err(|failure| match failure {
            Failure::Io(error) => error,
            other => io::Error::other(other.to_string()),
        });
    let checkpoint = written.map_err(OpenError::NotUpgraded)?;
    let mut inventory = folder.inventory();
    inventory.checkpoints.retain(|old| old.seq < checkpoint.seq);
    inventory.checkpoints.push(checkpoint);
    Ok(())
}

impl Before {
    /// Takes away what an upgrade that failed has written; best effort, since another try does it too.
    pub fn restore(&self, folder: &Folder, events: &EventLog) {
        let _ = events.rewind(folder, self.receipts);
        let Ok(names) = folder.files.list(&folder.dir) else { return };
        for name in names.iter().filter(|name| !self.names.contains(*name)) {
            if matches!(Name::parse(name), Name::Contents { .. } | Name::Events { .. } | Name::Unfinished) {
                let _ = folder.remove(name);
            }
        }
        let _ = folder.files.sync_dir(&folder.dir);
    }
}
