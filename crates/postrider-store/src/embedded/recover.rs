//! From files to a state: the newest good checkpoint, and the journal behind it.
//!
//! Nothing healthy is ever deleted here. A write that was never finished is cut off the last segment; damage is copied to
//! `quarantine/`, told and stepped over. Only where nothing can be said for certain (no good checkpoint, and the journal
//! does not reach back to the first command) the store refuses to open.

use super::folder::{Checkpoint, Folder, Inventory, Name, Segment};
use super::record::{self, BadHeader, HEADER_LEN, Header, Manifest, Written};
use super::replay::{Replay, Sink, Source};
use super::{OpenError, Problem};
use postrider_core::id::Seq;
use postrider_core::state::{Live, State, Volatile};
use postrider_core::stored;
use std::collections::BTreeSet;

/// What was found.
pub struct Recovered {
    pub state: State,
    /// As the newest checkpoint has it.
    pub volatile: Volatile,
    pub problems: Vec<Problem>,
    pub inventory: Inventory,
    /// The store was closed in order.
    pub clean: bool,
    /// It was written without waiting for the disk.
    pub relaxed: bool,
    /// Commands of the journal that were executed.
    pub records: u64,
    /// By which the last of these was executed, or those that the checkpoint is made of; `None` in an
    /// empty folder.
    pub rules: Option<u32>,
}

/// Whether recovery may touch the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Cut off what was never finished, put damage aside.
    Yes,
    /// Only look.
    No,
}

/// Reads the whole folder; receipts of replayed commands go to `sink`.
pub fn recover<'a>(folder: &Folder, repair: Repair, sink: &'a mut Sink<'a>) -> Result<Recovered, OpenError> {
    let names = folder.files.list(&folder.dir).map_err(|error| OpenError::io("the data folder", error))?;
    let names: Vec<Name> = names.iter().map(|name| Name::parse(name)).collect();
    let mut journals = journals(folder, &names);
    let Base { live: base, rules: base_rules, inventory, mut problems } =
        newest_checkpoint(folder, &names, repair)?;
    let (base, volatile) = base.into_parts();
    if base.seq() == 0 && journals.first().is_some_and(|first| first.first > 1) {
        return Err(OpenError::Damaged("every checkpoint, and the journal's beginning is gone".to_owned()));
    }
    // What a damaged header would say is what the file before it says: rules change at checkpoints only.
    let mut rules = base_rules.unwrap_or(folder.written.rules);
    let mut replay = Replay::new(base, folder.known, sink);
    let mut relaxed = false;
    let count = journals.len();
    let firsts: Vec<Seq> = journals.iter().map(|segment| segment.first).collect();
    for (i, segment) in journals.iter_mut().enumerate() {
        let next = firsts.get(i + 1);
        let handle = folder
            .files
            .open(&folder.path(&segment.name()), false)
            .map_err(|error| OpenError::io(&segment.name(), error))?;
        folder.keep_handle(segment.file, handle);
        if let Some(next) = next.filter(|next| **next <= replay.state.seq() + 1) {
            (segment.last, segment.len, segment.rules) =
                (next - 1, file_len(folder, &segment.name())?, rules);
            continue;
        }
        let bytes = folder.read(&segment.name()).map_err(|error| OpenError::io(&segment.name(), error))?;
        if let Some(header) = check_header(folder, segment, &bytes, &mut replay.problems)? {
            relaxed |= header.flags & record::FLAG_RELAXED != 0;
            rules = header.written.rules;
        }
        segment.rules = rules;
        let (name, last) = (segment.name(), i + 1 == count);
        let source = Source {
            name: &name,
            file: segment.file,
            salt: folder.salt(segment.file),
            rules,
            bytes: &bytes,
            last,
        };
        let before = replay.problems.len();
        let valid = replay.segment(&source)?;
        (segment.last, segment.len) = (replay.state.seq(), valid as u64);
        if repair == Repair::Yes {
            set_aside(folder, &bytes, &replay.problems[before..])?;
            make_lasting(folder, &name, valid as u64, (bytes.len() as u64, last))?;
        }
    }
    let clean = replay.sealed || count == 0;
    problems.append(&mut replay.problems);
    let (state, records, rules) = (replay.state, replay.records, replay.rules.or(base_rules));
    let inventory = Inventory { segments: journals, ..inventory };
    Ok(Recovered { state, volatile, problems, inventory, clean, relaxed, records, rules })
}

fn journals(folder: &Folder, names: &[Name]) -> Vec<Segment> {
    let mut journals = Vec::new();
    for name in names {
        match *name {
            Name::Journal { first, file } => {
                folder.has_file_number(file);
                journals.push(Segment { file, first, last: first.saturating_sub(1), len: 0, rules: 0 });
            }
            Name::Contents { file } => folder.has_file_number(file),
            _ => {}
        }
    }
    journals.sort_by_key(|segment| (segment.first, segment.file));
    journals
}

fn file_len(folder: &Folder, name: &str) -> Result<u64, OpenError> {
    folder
        .files
        .open(&folder.path(name), false)
        .and_then(|file| file.len())
        .map_err(|error| OpenError::io(name, error))
}

/// The header repeats the name, so damage to it costs nothing; a newer version or another store's file is refused.
fn check_header(
    folder: &Folder,
    segment: &Segment,
    bytes: &[u8],
    problems: &mut Vec<Problem>,
) -> Result<Option<Header>, OpenError> {
    match Header::decode(bytes, record::JOURNAL) {
        Ok(header) if header.store_id != folder.store_id => Err(OpenError::Foreign(segment.name())),
        Ok(header) => folder.known.refuse_newer(&segment.name(), header.written).map(|()| Some(header)),
        Err(BadHeader::Newer(version)) => Err(OpenError::Newer { file: segment.name(), version }),
        Err(BadHeader::Damaged) => {
            let len = bytes.len().min(HEADER_LEN) as u64;
            problems.push(Problem { file: segment.name(), offset: 0, len, what: "header".to_owned() });
            Ok(None)
        }
    }
}

/// Where recovery begins.
struct Base {
    live: Live,
    /// By which it was made; `None`: it is empty.
    rules: Option<u32>,
    inventory: Inventory,
    problems: Vec<Problem>,
}

/// The state of the newest checkpoint that is whole, and an inventory of the good ones.
fn newest_checkpoint(folder: &Folder, names: &[Name], repair: Repair) -> Result<Base, OpenError> {
    let seqs: BTreeSet<Seq> = names
        .iter()
        .filter_map(|name| match name {
            Name::Checkpoint { seq } => Some(*seq),
            _ => None,
        })
        .collect();
    let mut found = Found::default();
    for seq in seqs.into_iter().rev() {
        let name = Name::Checkpoint { seq }.text();
        let bytes = folder.read(&name).map_err(|error| OpenError::io(&name, error))?;
        match read_checkpoint(folder, &name, &bytes, found.base.is_none()) {
            Ok((manifest, state)) => found.take(folder, name, (manifest, bytes.len() as u64), state),
            Err(Unusable::Refuse(error)) => return Err(error),
            Err(Unusable::Damaged(offset)) => {
                let len = bytes.len() as u64 - offset;
                found.problems.push(Problem {
                    file: name.clone(),
                    offset,
                    len,
                    what: "checkpoint".to_owned(),
                });
                found.unusable.push(name);
            }
        }
    }
    found.settle();
    if repair == Repair::Yes {
        for name in &found.unusable {
            let aside = folder.path(&format!("{name}.damaged"));
            folder.files.rename(&folder.path(name), &aside).map_err(|error| OpenError::io(name, error))?;
        }
    }
    let (live, rules) = match found.base {
        Some(Image { live, written }) => (live, Some(written.rules)),
        None => (Live::default(), None),
    };
    Ok(Base { live, rules, inventory: found.inventory, problems: found.problems })
}

/// The state of a checkpoint with what was known beside it, and who wrote it.
pub struct Image {
    pub live: Live,
    pub written: Written,
}

/// The checkpoints looked at so far, newest first.
#[derive(Default)]
struct Found {
    base: Option<Image>,
    inventory: Inventory,
    problems: Vec<Problem>,
    unusable: Vec<String>,
    /// Whole, but contents that it needs are not: the last resort.
    incomplete: Option<(String, Checkpoint, Image)>,
}

impl Found {
    fn take(
        &mut self,
        folder: &Folder,
        name: String,
        (manifest, bytes): (Manifest, u64),
        state: Option<Image>,
    ) {
        folder.has_file_number(manifest.next_file.saturating_sub(1));
        let before = self.problems.len();
        keep_contents(folder, &name, &manifest, &mut self.problems);
        let checkpoint = checkpoint_of(&manifest, bytes);
        match state {
            Some(state) if self.problems.len() > before && self.incomplete.is_none() => {
                self.incomplete = Some((name, checkpoint, state));
            }
            state => {
                self.base = self.base.take().or(state);
                self.inventory.checkpoints.insert(0, checkpoint);
            }
        }
    }

    /// An incomplete checkpoint is used where there is no better one.
    fn settle(&mut self) {
        match self.incomplete.take() {
            Some((_, checkpoint, state)) if self.base.is_none() => {
                self.base = Some(state);
                self.inventory.checkpoints.push(checkpoint);
            }
            Some((name, ..)) => self.unusable.push(name),
            None => {}
        }
    }
}

fn checkpoint_of(manifest: &Manifest, state_bytes: u64) -> Checkpoint {
    let contents = manifest.contents.iter().map(|(_, len)| len).sum::<u64>();
    Checkpoint {
        seq: manifest.seq,
        bytes: state_bytes + contents,
        state_bytes,
        contents: manifest.contents.clone(),
    }
}

/// Opens the content files of a checkpoint; one that is missing or short is told, its contents will not be readable.
fn keep_contents(folder: &Folder, checkpoint: &str, manifest: &Manifest, problems: &mut Vec<Problem>) {
    for (file, len) in &manifest.contents {
        let name = Name::Contents { file: *file }.text();
        let opened =
            folder.files.open(&folder.path(&name), false).and_then(|handle| Ok((handle.len()?, handle)));
        let found = opened.map(|(found, handle)| {
            folder.keep_handle(*file, handle);
            found
        });
        if !matches!(found, Ok(found) if found >= *len) {
            let what = format!("contents that {checkpoint} needs are missing");
            problems.push(Problem { file: name, offset: found.unwrap_or(0), len: *len, what });
        }
    }
}

/// Why a checkpoint is not used.
pub enum Unusable {
    Damaged(u64),
    Refuse(OpenError),
}

/// Reads a checkpoint that is whole; of the state only if it is wanted.
pub fn read_checkpoint(
    folder: &Folder,
    name: &str,
    bytes: &[u8],
    with_state: bool,
) -> Result<(Manifest, Option<Image>), Unusable> {
    let written = match Header::decode(bytes, record::CHECKPOINT) {
        Ok(header) if header.store_id != folder.store_id => {
            return Err(Unusable::Refuse(OpenError::Foreign(name.to_owned())));
        }
        Ok(header) => header.written,
        Err(BadHeader::Newer(version)) => {
            return Err(Unusable::Refuse(OpenError::Newer { file: name.to_owned(), version }));
        }
        Err(BadHeader::Damaged) => return Err(Unusable::Damaged(0)),
    };
    folder.known.refuse_newer(name, written).map_err(Unusable::Refuse)?;
    let mut at = HEADER_LEN;
    let mut manifest = None;
    let mut image = Vec::new();
    // A frame of nothing is the end.
    loop {
        let frame = record::open_frame(&bytes[at.min(bytes.len())..]).ok_or(Unusable::Damaged(at as u64))?;
        at += record::FRAME_LEN + frame.len();
        match (frame.is_empty(), &manifest) {
            (true, _) => break,
            (false, None) => {
                let read = postcard::from_bytes::<Manifest>(frame);
                manifest = Some(read.map_err(|_| Unusable::Damaged(HEADER_LEN as u64))?);
            }
            (false, Some(_)) if with_state => image.extend_from_slice(frame),
            (false, Some(_)) => {}
        }
    }
    let manifest = manifest.ok_or(Unusable::Damaged(at as u64))?;
    if !with_state {
        return Ok((manifest, None));
    }
    let damaged = |_| Unusable::Damaged(HEADER_LEN as u64);
    let mut live = stored::read_state(written.format, &image).map_err(damaged)?;
    live.rebuild();
    // Where it cannot, that matters only if there are commands to be executed by these rules.
    live.parts_mut().0.follow(written.rules);
    if live.seq() != manifest.seq {
        return Err(Unusable::Damaged(HEADER_LEN as u64));
    }
    Ok((manifest, Some(Image { live, written })))
}

fn set_aside(folder: &Folder, bytes: &[u8], problems: &[Problem]) -> Result<(), OpenError> {
    for problem in problems.iter().filter(|problem| problem.len > 0) {
        let start = (problem.offset as usize).min(bytes.len());
        let end = (start + problem.len as usize).min(bytes.len());
        folder
            .quarantine(&problem.file, start, &bytes[start..end])
            .map_err(|error| OpenError::io("quarantine", error))?;
    }
    Ok(())
}

/// Takes what was never finished off a segment (what was never used, if it is not the last), for good, before anything
/// is written behind it. And makes the end of the last one lasting: what a killed process had written and not synced is
/// found here, counts from now on, and may so far be in the operating system's memory only.
fn make_lasting(folder: &Folder, name: &str, valid: u64, (len, last): (u64, bool)) -> Result<(), OpenError> {
    if valid < len || last {
        let synced = folder.files.open(&folder.path(name), true).and_then(|file| {
            if valid < len {
                file.set_len(valid)?;
            }
            file.sync()
        });
        synced.map_err(|error| OpenError::io(name, error))?;
    }
    Ok(())
}
