//! Checkpoints: the state as of some command in one file, so that the journal before it can go.
//!
//! The checkpointer is recovery, run ahead of time on a thread of its own: it loads the previous checkpoint, executes the
//! closed segments, and writes what comes out. The writer is not stopped. Contents that are still needed are copied out
//! of the segments (and out of content files that are mostly dead) into new content files; then the references of the
//! live state are swapped.
//!
//! ```text
//!  1 copy contents, sync   2 write checkpoint-N.tmp, sync   3 rename, sync the folder   4 swap references   5 sweep
//! ```
//!
//! A crash before 3 leaves files that nobody names; after 3 there are two ways to the same state. The checkpoint before
//! the newest is kept, with all it needs: damage to the newest costs nothing, and readers that still hold a reference
//! from before the swap find its file.

use super::folder::{Checkpoint, Folder, Name, Segment};
use super::record::{self, FRAME_LEN, HEADER_LEN, Manifest};
use super::recover::{self, Unusable};
use super::replay::{Replay, Source};
use super::{OpenError, Shared};
use crate::files::File;
use postrider_core::id::Seq;
use postrider_core::model::BlobRef;
use postrider_core::seeded::{self, Bug};
use postrider_core::state::rules::RULES;
use postrider_core::state::{Live, State, Volatile};
use postrider_core::stored;
use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// Content files are closed at this size: a reference has 32 bits.
const CONTENTS_BYTES_MAX: u64 = 1 << 30;
/// Bytes of the state in a frame, and bytes copied at once.
const CHUNK: usize = 1024 * 1024;
/// Synced after so many bytes, so that the writer's syncs never stand behind a long one of ours.
const SYNC_EVERY: u64 = 4 * 1024 * 1024;

/// Why there is no checkpoint.
#[derive(Debug)]
pub enum Failure {
    /// Tried again when the next segment is closed.
    Io(io::Error),
    /// What is on disk is not what was written: the live state knows better.
    Damaged(String),
    /// The store is closing.
    Stopped,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Io(error) => write!(f, "{error}"),
            Failure::Damaged(what) => write!(f, "damaged: {what}"),
            Failure::Stopped => f.write_str("the store is closing"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

/// Makes a checkpoint out of the closed segments, if there is anything new in them.
pub fn in_background(shared: &Shared) -> Result<bool, Failure> {
    let _one_at_a_time = shared.checkpointing.lock().unwrap_or_else(PoisonError::into_inner);
    let (base, segments) = {
        let inventory = shared.folder.inventory();
        let base = inventory.checkpoints.last().map_or(0, |checkpoint| checkpoint.seq);
        let closed = inventory.segments.iter().filter(|segment| segment.last > base);
        (base, closed.copied().collect::<Vec<Segment>>())
    };
    if segments.is_empty() {
        return Ok(false);
    }
    let state = load(shared, base, &segments)?;
    finish(shared, state)?;
    Ok(true)
}

/// The previous checkpoint and the segments behind it, accepting nothing that is not as it was written.
fn load(shared: &Shared, base: Seq, segments: &[Segment]) -> Result<State, Failure> {
    let folder = &shared.folder;
    let state = if base == 0 {
        State::default()
    } else {
        let name = Name::Checkpoint { seq: base }.text();
        let bytes = folder.read(&name)?;
        match recover::read_checkpoint(folder, &name, &bytes, true) {
            Ok((_, image)) => image.map(|image| image.live).unwrap_or_default().into_parts().0,
            Err(Unusable::Damaged(at)) => return Err(Failure::Damaged(format!("{name} at {at}"))),
            Err(Unusable::Refuse(error)) => return Err(Failure::Damaged(error.to_string())),
        }
    };
    let mut no_events = |_| Ok(());
    let mut replay = Replay::new(state, folder.known, &mut no_events);
    for segment in segments {
        if shared.is_closing() {
            return Err(Failure::Stopped);
        }
        let name = segment.name();
        let bytes = folder.read(&name)?;
        let source = Source {
            name: &name,
            file: segment.file,
            salt: folder.salt(segment.file),
            rules: segment.rules,
            bytes: &bytes,
            last: false,
        };
        replay.segment(&source).map_err(|error| match error {
            OpenError::Io { source, .. } => Failure::Io(source),
            other => Failure::Damaged(other.to_string()),
        })?;
        if let Some(problem) = replay.problems.first() {
            return Err(Failure::Damaged(problem.to_string()));
        }
        if replay.state.seq() != segment.last {
            return Err(Failure::Damaged(format!("{name} ends at {}", replay.state.seq())));
        }
    }
    let mut state = replay.state;
    state.follow(RULES);
    Ok(state)
}

fn finish(shared: &Shared, mut state: State) -> Result<(), Failure> {
    // The receipts of all that is in it were appended long ago; from now the journal is not needed for them.
    shared.events.sync(&shared.folder)?;
    shared.notes.apply(&mut shared.state_mut());
    // A slice at a time: the live state is free in between.
    let mut place = stored::Written::default();
    let mut beside = |out: &mut Vec<u8>| stored::write_volatile(shared.state().volatile(), &mut place, out);
    let (moved, written) = write(&shared.folder, &mut state, &mut beside)?;
    // Freed before the live state is walked: for a moment there were two.
    drop(state);
    let _calm = shared.maintenance.lock().unwrap_or_else(PoisonError::into_inner);
    shared.folder.inventory().checkpoints.push(written);
    {
        let mut live = shared.state_mut();
        live.for_each_blob(&mut |blob| moved.apply(blob));
    }
    done(shared)
}

/// A checkpoint of the live state itself, which stands still meanwhile: at close, and when the disk lost what memory has.
/// Only for the thread that writes, or when it is gone.
pub fn of_live_state(shared: &Shared) -> Result<(), Failure> {
    let _calm = shared.maintenance.lock().unwrap_or_else(PoisonError::into_inner);
    shared.events.sync(&shared.folder)?;
    let written = {
        let mut live = shared.state_mut();
        if shared.folder.inventory().checkpoints.last().is_some_and(|last| last.seq >= live.seq()) {
            return Ok(());
        }
        shared.notes.apply(&mut live);
        let (state, volatile) = live.parts_mut();
        write(&shared.folder, state, &mut slices_of(volatile))?.1
    };
    shared.folder.inventory().checkpoints.push(written);
    done(shared)
}

/// A checkpoint of a state that was just recovered: from now its commands are executed by the present
/// rules. It may have the number of one that is there already, which it then takes the place of.
pub fn of_recovered_state(folder: &Folder, live: &mut Live) -> Result<Checkpoint, Failure> {
    let (state, volatile) = live.parts_mut();
    state.follow(RULES);
    Ok(write(folder, state, &mut slices_of(volatile))?.1)
}

/// Bytes of contents that a checkpoint would copy.
pub fn copied_bytes(folder: &Folder, state: &mut State) -> u64 {
    let blobs = blobs_of(state);
    let (_, go) = choose(folder, &blobs);
    let copied = blobs.iter().filter(|blob| go.contains(&blob.file));
    copied.map(|blob| u64::from(blob.len) + FRAME_LEN as u64).sum()
}

fn done(shared: &Shared) -> Result<(), Failure> {
    shared.stats.checkpoints.fetch_add(1, Ordering::Relaxed);
    Ok(shared.folder.sweep()?)
}

/// Where contents went.
#[derive(Default)]
struct Moved {
    /// By file and offset.
    places: HashMap<u64, (u32, u32), Mix>,
}

type Mix = std::hash::BuildHasherDefault<PlaceHasher>;

/// Places are spread well by one multiplication, and there may be millions, looked up under the lock.
#[derive(Default)]
struct PlaceHasher(u64);

impl std::hash::Hasher for PlaceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(self.0 ^ u64::from(*byte)));
    }

    fn write_u64(&mut self, place: u64) {
        self.0 = place.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

fn place(blob: &BlobRef) -> u64 {
    (u64::from(blob.file) << 32) | u64::from(blob.offset)
}

impl Moved {
    fn apply(&self, blob: &mut BlobRef) {
        if let Some((file, offset)) = self.places.get(&place(blob)) {
            (blob.file, blob.offset) = (*file, *offset);
        }
    }
}

/// Appends the next slice of what is known beside the state; false where there is none any more.
type Beside<'a> = dyn FnMut(&mut Vec<u8>) -> bool + 'a;

fn slices_of(volatile: &Volatile) -> impl FnMut(&mut Vec<u8>) -> bool + '_ {
    let mut place = stored::Written::default();
    move |out| stored::write_volatile(volatile, &mut place, out)
}

/// Copies contents, rewrites the references of `state` and writes it: steps 1 to 3.
fn write(
    folder: &Folder,
    state: &mut State,
    beside: &mut Beside<'_>,
) -> Result<(Moved, Checkpoint), Failure> {
    let mut blobs = blobs_of(state);
    let (stay, go) = choose(folder, &blobs);
    blobs.retain(|blob| go.contains(&blob.file));
    let mut copier =
        Copier { folder, made: Vec::new(), moved: Moved::default(), window: Vec::new(), unsynced: 0 };
    let copied = copier.copy(&blobs);
    let (made, moved) = (std::mem::take(&mut copier.made), copier.moved);
    let abandon = |error: Failure| {
        // Best effort: a sweep finds them otherwise.
        for contents in &made {
            let _ = folder.remove(&Name::Contents { file: contents.number }.text());
        }
        error
    };
    copied.map_err(abandon)?;
    for contents in &made {
        contents.file.sync().map_err(|error| abandon(error.into()))?;
        folder.keep_handle(contents.number, contents.file.clone());
    }
    if !seeded::is(Bug::CheckpointDropsContent) {
        state.for_each_blob(&mut |blob| moved.apply(blob));
    }
    let mut contents = stay;
    contents.extend(made.iter().map(|contents| (contents.number, contents.len)));
    let seq = state.seq();
    let manifest = Manifest { seq, next_file: folder.next_file_number(), contents };
    let state_bytes = write_state(folder, state, beside, &manifest)?;
    let copied: u64 = made.iter().map(|contents| contents.len).sum();
    Ok((moved, Checkpoint { seq, bytes: state_bytes + copied, state_bytes, contents: manifest.contents }))
}

/// Contents that are still needed, in the order in which they lie.
fn blobs_of(state: &mut State) -> Vec<BlobRef> {
    let mut blobs = Vec::new();
    state.for_each_blob(&mut |blob| blobs.push(*blob));
    blobs.sort_unstable_by_key(place);
    blobs.dedup();
    blobs
}

/// Content files that stay as they are, and the files whose contents are copied: every journal segment, and content files
/// of which less than half is still needed.
fn choose(folder: &Folder, blobs: &[BlobRef]) -> (Vec<(u32, u64)>, HashSet<u32>) {
    let known: HashMap<u32, u64> = {
        let inventory = folder.inventory();
        inventory.checkpoints.last().map(|last| last.contents.iter().copied().collect()).unwrap_or_default()
    };
    let mut needed: HashMap<u32, u64> = HashMap::new();
    for blob in blobs {
        *needed.entry(blob.file).or_default() += u64::from(blob.len) + FRAME_LEN as u64;
    }
    let mut stay: Vec<(u32, u64)> = known
        .iter()
        .filter(|(file, len)| needed.get(file).is_some_and(|needed| needed * 2 >= **len))
        .map(|(file, len)| (*file, *len))
        .collect();
    stay.sort_unstable();
    let staying: HashSet<u32> = stay.iter().map(|(file, _)| *file).collect();
    let go = needed.into_keys().filter(|file| !staying.contains(file)).collect();
    (stay, go)
}

struct Contents {
    number: u32,
    file: Arc<dyn File>,
    len: u64,
}

struct Copier<'a> {
    folder: &'a Folder,
    made: Vec<Contents>,
    moved: Moved,
    /// Of the file being made, not written yet.
    window: Vec<u8>,
    unsynced: u64,
}

impl Copier<'_> {
    /// Copies contents as they are, with their checksums: one that is damaged stays so, and is found when it is read.
    fn copy(&mut self, blobs: &[BlobRef]) -> Result<(), Failure> {
        let mut ahead = Ahead::default();
        for blob in blobs {
            let frame = ahead.frame(self.folder, blob)?;
            self.begin_if_full(frame.len())?;
            let Some(current) = self.made.last_mut() else { continue };
            self.moved.places.insert(place(blob), (current.number, current.len as u32));
            self.window.extend_from_slice(frame);
            current.len += frame.len() as u64;
            if self.window.len() >= CHUNK {
                self.flush()?;
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if let Some(current) = self.made.last() {
            current.file.write_all_at(&self.window, current.len - self.window.len() as u64)?;
            self.unsynced += self.window.len() as u64;
            if self.unsynced >= SYNC_EVERY {
                current.file.sync()?;
                self.unsynced = 0;
            }
        }
        self.window.clear();
        Ok(())
    }

    fn begin_if_full(&mut self, more: usize) -> Result<(), Failure> {
        if self.made.last().is_some_and(|current| current.len + more as u64 <= CONTENTS_BYTES_MAX) {
            return Ok(());
        }
        self.flush()?;
        let number = self.folder.take_file_number();
        let header = self.folder.header(record::CONTENTS, number, 0).encode();
        let file = self.folder.files.create(&self.folder.path(&Name::Contents { file: number }.text()))?;
        self.made.push(Contents { number, file: file.clone(), len: header.len() as u64 });
        file.write_all_at(&header, 0)?;
        Ok(())
    }
}

/// Reads ahead in the file that contents are copied from: they come in order.
#[derive(Default)]
struct Ahead {
    file: u32,
    start: u64,
    bytes: Vec<u8>,
}

impl Ahead {
    fn frame(&mut self, folder: &Folder, blob: &BlobRef) -> Result<&[u8], Failure> {
        let (offset, len) = (u64::from(blob.offset), FRAME_LEN + blob.len as usize);
        let inside = blob.file == self.file
            && offset >= self.start
            && offset + len as u64 <= self.start + self.bytes.len() as u64;
        if !inside {
            self.fill(folder, blob.file, offset, len)?;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.bytes[from..from + len])
    }

    fn fill(&mut self, folder: &Folder, file: u32, offset: u64, len: usize) -> Result<(), Failure> {
        (self.file, self.start) = (file, offset);
        // Zeros are no frame: what cannot be had is copied as damage.
        self.bytes.clear();
        self.bytes.resize(len, 0);
        let Some(handle) = folder.handle(file) else { return Ok(()) };
        let has = handle.len()?.saturating_sub(offset);
        if has >= len as u64 {
            self.bytes.resize(len.max(CHUNK).min(has as usize), 0);
            handle.read_exact_at(&mut self.bytes, offset)?;
        }
        Ok(())
    }
}

/// Writes the state under its name: header, manifest, the state in frames, and a frame of nothing as the end.
fn write_state(
    folder: &Folder,
    state: &State,
    beside: &mut Beside<'_>,
    manifest: &Manifest,
) -> Result<u64, Failure> {
    let name = Name::Checkpoint { seq: manifest.seq }.text();
    let unfinished = folder.path(&format!("{name}.tmp"));
    folder.remove(&format!("{name}.tmp"))?;
    let written = folder.files.create(&unfinished).map_err(Failure::Io).and_then(|file| {
        let mut frames =
            Frames { file: &*file, at: HEADER_LEN as u64, chunk: Vec::new(), frame: Vec::new(), unsynced: 0 };
        file.write_all_at(&folder.header(record::CHECKPOINT, 0, manifest.seq).encode(), 0)?;
        postcard::to_io(manifest, &mut frames).map_err(io::Error::other)?;
        frames.end_frame()?;
        {
            let mut buffered = io::BufWriter::with_capacity(64 * 1024, &mut frames);
            stored::write_state(state, &mut buffered)?;
            let mut slice = Vec::new();
            while beside(&mut slice) {
                buffered.write_all(&slice)?;
                slice.clear();
            }
            buffered.flush()?;
        }
        frames.end_frame()?;
        frames.end_frame()?;
        file.sync()?;
        Ok(frames.at)
    });
    match written {
        Ok(bytes) => {
            let replaces = folder.inventory().checkpoints.iter().any(|other| other.seq == manifest.seq);
            folder.files.rename(&unfinished, &folder.path(&name))?;
            if let Err(error) = folder.files.sync_dir(&folder.dir) {
                // Whether it is there after a crash, nobody knows; better not. Unless it stands where
                // another one stood: one of both will be there.
                if !replaces {
                    let _ = folder.files.remove(&folder.path(&name));
                }
                return Err(error.into());
            }
            Ok(bytes)
        }
        Err(error) => {
            let _ = folder.files.remove(&unfinished);
            Err(error)
        }
    }
}

struct Frames<'a> {
    file: &'a dyn File,
    at: u64,
    chunk: Vec<u8>,
    frame: Vec<u8>,
    unsynced: u64,
}

impl Frames<'_> {
    /// Writes what is gathered as one frame, even if that is nothing.
    fn end_frame(&mut self) -> io::Result<()> {
        self.frame.clear();
        record::append_frame(&self.chunk, &mut self.frame).map_err(io::Error::other)?;
        self.file.write_all_at(&self.frame, self.at)?;
        self.at += self.frame.len() as u64;
        self.unsynced += self.frame.len() as u64;
        if self.unsynced >= SYNC_EVERY {
            self.file.sync()?;
            self.unsynced = 0;
        }
        self.chunk.clear();
        Ok(())
    }
}

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK {
            self.end_frame()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
