//! The store's folder: what its files are called, which there are, and reading contents out of them.
//!
//! A file is named by what is in it, so that the name repeats the header: a damaged header costs nothing. Files that
//! hold contents have a number, which [`BlobRef`] leads to.

use super::record::{self, FRAME_LEN, HEADER_LEN, Header, Written};
use super::upgrade::KnownRules;
use crate::files::{File, Files, read_all};
use postrider_core::id::Seq;
use postrider_core::model::{BlobRef, Content};
use postrider_core::port::StoreError;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

pub const RESERVE: &str = "reserve";
pub const LOCK: &str = "LOCK";
/// The store's identity, twice, since without it nothing can be read.
pub const STORE: [&str; 2] = ["STORE", "STORE.copy"];
const QUARANTINE: &str = "quarantine";

/// What a name says of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Journal {
        first: Seq,
        file: u32,
    },
    Contents {
        file: u32,
    },
    Checkpoint {
        seq: Seq,
    },
    Events {
        first: u64,
    },
    /// Left by something that did not come to its end.
    Unfinished,
    Other,
}

impl Name {
    pub fn parse(name: &str) -> Name {
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let small = |text: &str| u32::from_str_radix(text, 16).ok();
        let known = match name.rsplit_once('.') {
            Some((_, "tmp")) => Some(Name::Unfinished),
            Some((stem, "log")) => match stem.split_once('-') {
                Some(("journal", rest)) => rest.split_once('-').and_then(|(first, file)| {
                    Some(Name::Journal { first: number(first)?, file: small(file)? })
                }),
                Some(("contents", file)) => small(file).map(|file| Name::Contents { file }),
                Some(("events", first)) => number(first).map(|first| Name::Events { first }),
                _ => None,
            },
            Some((stem, "state")) => {
                stem.strip_prefix("checkpoint-").and_then(number).map(|seq| Name::Checkpoint { seq })
            }
            _ => None,
        };
        known.unwrap_or(Name::Other)
    }

    pub fn text(self) -> String {
        match self {
            Name::Journal { first, file } => format!("journal-{first:016x}-{file:08x}.log"),
            Name::Contents { file } => format!("contents-{file:08x}.log"),
            Name::Checkpoint { seq } => format!("checkpoint-{seq:016x}.state"),
            Name::Events { first } => format!("events-{first:016x}.log"),
            Name::Unfinished | Name::Other => String::new(),
        }
    }
}

/// A closed journal segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub file: u32,
    pub first: Seq,
    pub last: Seq,
    pub len: u64,
    /// By which its commands are executed.
    pub rules: u32,
}

impl Segment {
    pub fn name(&self) -> String {
        Name::Journal { first: self.first, file: self.file }.text()
    }
}

/// A finished checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub seq: Seq,
    /// What it took to write it: its state, and the contents that were copied.
    pub bytes: u64,
    /// Of its own file.
    pub state_bytes: u64,
    pub contents: Vec<(u32, u64)>,
}

/// Which files make up the store, beside the segment being written.
#[derive(Default)]
pub struct Inventory {
    /// In order.
    pub segments: Vec<Segment>,
    /// In order; two are kept, so that damage to the newest loses nothing.
    pub checkpoints: Vec<Checkpoint>,
}

/// See the module.
pub struct Folder {
    pub dir: PathBuf,
    pub files: Arc<dyn Files>,
    pub store_id: u64,
    /// By what the folder was made.
    pub written: Written,
    pub known: KnownRules,
    inventory: Mutex<Inventory>,
    handles: RwLock<HashMap<u32, Arc<dyn File>>>,
    next_file: AtomicU32,
    /// File number and length, packed, up to which the segment being written is on stable storage.
    readable: AtomicU64,
}

impl Folder {
    pub fn new(dir: PathBuf, files: Arc<dyn Files>, identity: &Identity, known: KnownRules) -> Folder {
        Folder {
            dir,
            files,
            store_id: identity.store_id,
            written: identity.written,
            known,
            inventory: Mutex::default(),
            handles: RwLock::default(),
            next_file: AtomicU32::new(1),
            readable: AtomicU64::new(0),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What a file's record heads are salted with.
    pub fn salt(&self, file: u32) -> u64 {
        self.store_id.rotate_left(32) ^ u64::from(file)
    }

    pub fn inventory(&self) -> MutexGuard<'_, Inventory> {
        self.inventory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take_file_number(&self) -> u32 {
        self.next_file.fetch_add(1, Ordering::Relaxed)
    }

    pub fn next_file_number(&self) -> u32 {
        self.next_file.load(Ordering::Relaxed)
    }

    /// Numbers up to `file` are in use.
    pub fn has_file_number(&self, file: u32) {
        self.next_file.fetch_max(file + 1, Ordering::Relaxed);
    }

    pub fn header(&self, magic: [u8; 8], file: u32, first: u64) -> Header {
        Header::new(magic, self.store_id, file, first)
    }

    pub fn keep_handle(&self, file: u32, handle: Arc<dyn File>) {
        self.handles.write().unwrap_or_else(PoisonError::into_inner).insert(file, handle);
    }

    pub fn handle(&self, file: u32) -> Option<Arc<dyn File>> {
        self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&file).cloned()
    }

    pub fn set_readable(&self, file: u32, len: u64) {
        self.readable.store((u64::from(file) << 32) | (len & 0xffff_ffff), Ordering::Release);
    }

    fn is_readable(&self, blob: BlobRef) -> bool {
        let readable = self.readable.load(Ordering::Acquire);
        let end = u64::from(blob.offset) + FRAME_LEN as u64 + u64::from(blob.len);
        (readable >> 32) as u32 != blob.file || end <= readable & 0xffff_ffff
    }

    /// Reads a content and believes nothing of it that its checksum does not say.
    pub fn content(&self, blob: BlobRef) -> Result<Content, StoreError> {
        let handle = self.handle(blob.file).filter(|_| blob.len > 0).ok_or(StoreError::Missing)?;
        if !self.is_readable(blob) {
            return Err(StoreError::Missing);
        }
        let place = || format!("content at {}:{}+{}", blob.file, blob.offset, blob.len);
        let mut frame = vec![0; FRAME_LEN + blob.len as usize];
        match handle.read_exact_at(&mut frame, u64::from(blob.offset)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(StoreError::Corrupt(place()));
            }
            Err(error) => return Err(StoreError::Failed(format!("{}: {error}", place()))),
        }
        let is_its_own = record::u32_at(&frame, 0) == blob.len;
        record::decode_content(&frame).filter(|_| is_its_own).ok_or_else(|| StoreError::Corrupt(place()))
    }

    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        read_all(&*self.files.open(&self.path(name), false)?)
    }

    /// A new file that has its name only when its header is lasting: a named file without a good header is damaged,
    /// never merely young.
    pub fn create_with_header(&self, name: &str, header: &Header) -> io::Result<Arc<dyn File>> {
        let unfinished = self.path(&format!("{name}.tmp"));
        let file = self.files.create(&unfinished)?;
        let finished = file
            .write_all_at(&header.encode(), 0)
            .and_then(|()| file.sync())
            .and_then(|()| self.files.rename(&unfinished, &self.path(name)));
        if let Err(error) = finished {
            // Best effort: it is swept at the next start otherwise.
            let _ = self.files.remove(&unfinished);
            return Err(error);
        }
        self.files.sync_dir(&self.dir)?;
        Ok(file)
    }

    /// Copies damaged bytes aside for whoever looks into it; the original stays as it is.
    pub fn quarantine(&self, name: &str, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let dir = self.path(QUARANTINE);
        self.files.create_dir(&dir)?;
        let path = dir.join(format!("{name}-{offset:08x}.bin"));
        match self.files.create(&path) {
            Ok(file) => file.write_all_at(bytes, 0),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes what neither of the two kept checkpoints, nor the state recovered from them, can need.
    pub fn sweep(&self) -> io::Result<()> {
        let (checkpoints, segments, contents) = {
            let mut inventory = self.inventory();
            let old = inventory.checkpoints.len().saturating_sub(2);
            let checkpoints: Vec<Seq> = inventory.checkpoints.drain(..old).map(|c| c.seq).collect();
            // With one checkpoint only, the whole journal is its spare.
            let covered = if inventory.checkpoints.len() < 2 { 0 } else { inventory.checkpoints[0].seq };
            let gone: Vec<Segment> =
                inventory.segments.iter().filter(|s| s.last <= covered).copied().collect();
            inventory.segments.retain(|s| s.last > covered);
            let needed: Vec<u32> =
                inventory.checkpoints.iter().flat_map(|c| c.contents.iter().map(|(file, _)| *file)).collect();
            (checkpoints, gone, needed)
        };
        for seq in &checkpoints {
            self.remove(&Name::Checkpoint { seq: *seq }.text())?;
        }
        if !checkpoints.is_empty() {
            // A checkpoint that came back after a crash must not come back without what it needs.
            self.files.sync_dir(&self.dir)?;
        }
        for segment in &segments {
            self.remove(&segment.name())?;
        }
        let mut closed: Vec<u32> = segments.iter().map(|s| s.file).collect();
        for name in self.files.list(&self.dir)? {
            if let Name::Contents { file } = Name::parse(&name)
                && !contents.contains(&file)
            {
                self.remove(&name)?;
                closed.push(file);
            }
        }
        // Readers in flight hold the handle themselves.
        let mut handles = self.handles.write().unwrap_or_else(PoisonError::into_inner);
        closed.iter().for_each(|file| drop(handles.remove(file)));
        Ok(())
    }

    pub fn remove(&self, name: &str) -> io::Result<()> {
        match self.files.remove(&self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Bytes of all files but the segment being written.
    pub fn closed_bytes(&self) -> u64 {
        let inventory = self.inventory();
        let segments: u64 = inventory.segments.iter().map(|s| s.len).sum();
        let mut contents: Vec<(u32, u64)> =
            inventory.checkpoints.iter().flat_map(|c| c.contents.iter().copied()).collect();
        contents.sort_unstable();
        contents.dedup();
        let states: u64 = inventory.checkpoints.iter().map(|c| c.state_bytes).sum();
        segments + states + contents.iter().map(|(_, len)| len).sum::<u64>()
    }
}

/// Reads and writes the store's identity.
pub struct Identity {
    pub store_id: u64,
    pub epoch: u64,
    pub written: Written,
}

impl Identity {
    /// The first good copy; `Ok(None)` where there is none at all.
    pub fn read(dir: &Path, files: &dyn Files) -> Result<Option<Identity>, super::OpenError> {
        let mut damaged = false;
        for name in STORE {
            let bytes = match files.open(&dir.join(name), false).and_then(|file| read_all(&*file)) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(super::OpenError::io(name, error)),
            };
            match Header::decode(&bytes, record::STORE) {
                Ok(Header { store_id, first: epoch, written, .. }) => {
                    return Ok(Some(Identity { store_id, epoch, written }));
                }
                Err(record::BadHeader::Newer(version)) => {
                    return Err(super::OpenError::Newer { file: name.to_owned(), version });
                }
                Err(record::BadHeader::Damaged) => damaged = true,
            }
        }
        if damaged {
            return Err(super::OpenError::Damaged("both STORE files".to_owned()));
        }
        Ok(None)
    }

    pub fn write(&self, dir: &Path, files: &dyn Files) -> io::Result<()> {
        let header = Header::new(record::STORE, self.store_id, 0, self.epoch);
        for name in STORE {
            let unfinished = dir.join(format!("{name}.tmp"));
            match files.remove(&unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = files.create(&unfinished)?;
            file.write_all_at(&header.encode(), 0)?;
            file.sync()?;
            files.rename(&unfinished, &dir.join(name))?;
            files.sync_dir(dir)?;
        }
        Ok(())
    }
}

/// The length of a file with only a header.
pub const EMPTY_LEN: u64 = HEADER_LEN as u64;
