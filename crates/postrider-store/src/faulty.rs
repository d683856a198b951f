//! A disk in memory that misbehaves on purpose: for tests and simulation, never for data.
//!
//! It keeps for every file what is on the platter and what was only written, and for the folder which names are
//! lasting. [`FaultyFiles::cut_power`] throws away what was not synced, except for sectors that chance lets through.
//! Any operation can be made to fail, the disk can have a quota, and bits can be flipped behind the store's back.

use crate::files::{File, Files, Space};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is written to a disk at once, at the least.
const SECTOR: usize = 512;

/// Lines kept of what was done.
const LOG_MAX: usize = 10_000;

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device has an error.
    Io,
    /// No space is left.
    Full,
    /// Half of the bytes are written, then the device has an error.
    Short,
    /// The process may open no more files.
    Descriptors,
    /// A bug: whoever does it panics.
    Panic,
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Fault::Io | Fault::Short => io::Error::from_raw_os_error(5),
            Fault::Full => io::Error::from_raw_os_error(28),
            Fault::Descriptors => io::Error::from_raw_os_error(24),
            Fault::Panic => panic!("a bug, on purpose"),
        }
    }
}

/// See the module. Clones share one disk.
#[derive(Clone)]
pub struct FaultyFiles {
    disk: Arc<Mutex<Disk>>,
    /// Handles of an earlier power-on are dead.
    power_on: u64,
}

struct Disk {
    names: BTreeMap<PathBuf, u64>,
    lasting_names: BTreeMap<PathBuf, u64>,
    /// Changes of names since the last sync of their folder.
    unsynced_names: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    inodes: HashMap<u64, Inode>,
    next_inode: u64,
    power_on: u64,
    locked: BTreeSet<PathBuf>,
    operations: u64,
    syncs: u64,
    fail_at: Option<(u64, Fault, bool)>,
    /// What is done to files whose line in the log begins with one of these.
    fail_lines: Option<(Vec<String>, Fault)>,
    power_fails_at_sync: Option<u64>,
    /// Every sync fails; what was written stays unsynced.
    syncs_fail: bool,
    quota: Option<u64>,
    random: u64,
    log: Vec<String>,
}

#[derive(Default)]
struct Inode {
    now: Vec<u8>,
    lasting: Vec<u8>,
    unsynced: Vec<Change>,
}

enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

/// One change of the folder, atomic as it is on any file system.
struct NameChange {
    gone: Option<PathBuf>,
    come: Option<(PathBuf, u64)>,
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<PathBuf, u64>) {
        if let Some(path) = self.gone {
            names.remove(&path);
        }
        names.extend(self.come);
    }

    fn dir(&self) -> Option<&Path> {
        self.gone.as_ref().or(self.come.as_ref().map(|(path, _)| path))?.parent()
    }
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Change::Write { offset, bytes } => write(to, *offset, bytes),
            Change::SetLen(len) => to.resize(*len, 0),
        }
    }
}

fn write(to: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if to.len() < end {
        to.resize(end, 0);
    }
    to[offset..end].copy_from_slice(bytes);
}

impl FaultyFiles {
    /// An empty disk; `seed` decides all of its chances.
    pub fn new(seed: u64) -> FaultyFiles {
        let disk = Disk {
            names: BTreeMap::new(),
            lasting_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            dirs: BTreeSet::new(),
            inodes: HashMap::new(),
            next_inode: 1,
            power_on: 0,
            locked: BTreeSet::new(),
            operations: 0,
            syncs: 0,
            fail_at: None,
            fail_lines: None,
            power_fails_at_sync: None,
            syncs_fail: false,
            quota: None,
            random: seed,
            log: Vec::new(),
        };
        FaultyFiles { disk: Arc::new(Mutex::new(disk)), power_on: 0 }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The `n`-th operation from now (1 is the next) fails; all later ones too, if `for_good`.
    pub fn fail_at(&self, n: u64, fault: Fault, for_good: bool) {
        let mut disk = self.disk();
        disk.fail_at = Some((disk.operations + n, fault, for_good));
    }

    /// From now every operation fails whose line in the log begins with one of these, such as `write events-`; none: all go
    /// well again.
    pub fn fail_lines(&self, beginnings: &[&str], fault: Fault) {
        let beginnings: Vec<String> = beginnings.iter().map(|beginning| (*beginning).to_owned()).collect();
        self.disk().fail_lines = Some((beginnings, fault)).filter(|(lines, _)| !lines.is_empty());
    }

    /// At the `n`-th sync from now the power fails before anything of it is lasting: it and all later operations fail.
    pub fn power_fails_at_sync(&self, n: u64) {
        let mut disk = self.disk();
        disk.power_fails_at_sync = Some(disk.syncs + n);
    }

    /// From now every sync fails, and everything else works.
    pub fn fail_syncs(&self) {
        self.disk().syncs_fail = true;
    }

    /// Whether a fault that was asked for has happened.
    pub fn has_failed(&self) -> bool {
        let disk = self.disk();
        disk.fail_at.is_some_and(|(at, ..)| disk.operations >= at)
            || disk.power_fails_at_sync.is_some_and(|at| disk.syncs >= at)
    }

    /// No more faults.
    pub fn heal(&self) {
        let mut disk = self.disk();
        (disk.fail_at, disk.power_fails_at_sync, disk.syncs_fail) = (None, None, false);
    }

    /// How many bytes all files together may have.
    pub fn set_quota(&self, bytes: Option<u64>) {
        self.disk().quota = bytes;
    }

    pub fn used(&self) -> u64 {
        self.disk().used()
    }

    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    pub fn syncs(&self) -> u64 {
        self.disk().syncs
    }

    /// What was done so far, a line for each operation: to see what a failing test did.
    pub fn log(&self) -> Vec<String> {
        self.disk().log.clone()
    }

    /// The power goes and comes back: the answer is the disk as it is found then. Everything that was synced is there;
    /// of the rest each sector is there by chance. All handles of before are dead, the old store cannot write any more.
    pub fn cut_power(&self) -> FaultyFiles {
        let mut disk = self.disk();
        disk.power_on += 1;
        disk.locked.clear();
        (disk.fail_at, disk.power_fails_at_sync, disk.syncs_fail) = (None, None, false);
        let mut random = disk.random;
        let mode = next(&mut random) % 4;
        for (i, change) in std::mem::take(&mut disk.unsynced_names).into_iter().enumerate() {
            // None, all, those done by some moment, or any of them: a file system promises no order.
            let through = match mode {
                0 => false,
                1 => true,
                2 => i < 3,
                _ => chance(&mut random, 2),
            };
            if through {
                change.apply(&mut disk.lasting_names);
            }
        }
        disk.names = disk.lasting_names.clone();
        let mut numbers: Vec<u64> = disk.inodes.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            if let Some(inode) = disk.inodes.get_mut(&number) {
                inode.lose_power(&mut random);
            }
        }
        disk.random = random;
        let kept: BTreeSet<u64> = disk.names.values().copied().collect();
        disk.inodes.retain(|number, _| kept.contains(number));
        FaultyFiles { disk: self.disk.clone(), power_on: disk.power_on }
    }

    /// The process dies, the machine stays: written data is kept, the lock is free, handles of before are dead.
    pub fn kill(&self) -> FaultyFiles {
        let mut disk = self.disk();
        disk.power_on += 1;
        disk.locked.clear();
        (disk.fail_at, disk.power_fails_at_sync, disk.syncs_fail) = (None, None, false);
        FaultyFiles { disk: self.disk.clone(), power_on: disk.power_on }
    }

    /// The files with their lengths, by name.
    pub fn paths(&self) -> Vec<(PathBuf, u64)> {
        let disk = self.disk();
        disk.names.iter().map(|(path, inode)| (path.clone(), disk.inodes[inode].now.len() as u64)).collect()
    }

    pub fn flip_bit(&self, path: &Path, byte: u64, bit: u8) {
        self.tamper(path, |bytes| bytes[byte as usize] ^= 1 << (bit & 7));
    }

    pub fn truncate(&self, path: &Path, len: u64) {
        self.tamper(path, |bytes| bytes.truncate(len as usize));
    }

    /// The bytes of a file, as a reader sees them.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.disk();
        disk.names.get(path).map(|inode| disk.inodes[inode].now.clone())
    }

    /// A copy of the whole disk, on its own from now.
    pub fn fork(&self) -> FaultyFiles {
        let disk = self.disk();
        let copy = FaultyFiles::new(disk.random);
        {
            let mut new = copy.disk();
            new.names = disk.names.clone();
            new.lasting_names = disk.names.clone();
            new.dirs = disk.dirs.clone();
            new.next_inode = disk.next_inode;
            for (number, inode) in &disk.inodes {
                let bytes = inode.now.clone();
                new.inodes
                    .insert(*number, Inode { lasting: bytes.clone(), now: bytes, unsynced: Vec::new() });
            }
        }
        copy
    }

    fn tamper(&self, path: &Path, change: impl Fn(&mut Vec<u8>)) {
        let mut disk = self.disk();
        if let Some(inode) = disk.names.get(path).copied().and_then(|number| disk.inodes.get_mut(&number)) {
            change(&mut inode.now);
            change(&mut inode.lasting);
        }
    }

    /// Counts an operation, and fails it if that is its fate.
    fn begin(&self, what: impl FnOnce() -> String) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.disk();
        disk.operations += 1;
        if self.power_on != disk.power_on {
            return Err(Fault::Io.error());
        }
        if disk.power_fails_at_sync.is_some_and(|at| disk.syncs >= at) {
            return Err(Fault::Io.error());
        }
        if disk.log.len() == LOG_MAX {
            disk.log.clear();
        }
        let line = what();
        let fate = disk.fate().or_else(|| disk.fate_of(&line));
        disk.log.push(line);
        let Some(fault) = fate else { return Ok(disk) };
        drop(disk);
        Err(fault.error())
    }
}

impl Disk {
    fn used(&self) -> u64 {
        self.inodes.values().map(|inode| inode.now.len() as u64).sum()
    }

    fn fate(&self) -> Option<Fault> {
        let (at, fault, for_good) = self.fail_at?;
        (self.operations == at || (for_good && self.operations > at)).then_some(fault)
    }

    fn fate_of(&self, line: &str) -> Option<Fault> {
        let (beginnings, fault) = self.fail_lines.as_ref()?;
        beginnings.iter().any(|beginning| line.starts_with(beginning)).then_some(*fault)
    }

    fn sync_is_cut(&mut self) -> bool {
        self.syncs += 1;
        self.syncs_fail || self.power_fails_at_sync.is_some_and(|at| self.syncs >= at)
    }

    fn check_quota(&self, inode: u64, len: u64) -> io::Result<()> {
        let has = self.inodes.get(&inode).map_or(0, |i| i.now.len() as u64);
        let more = len.saturating_sub(has);
        match self.quota {
            Some(quota) if more > 0 && self.used() + more > quota => Err(Fault::Full.error()),
            _ => Ok(()),
        }
    }

    /// A removed file loses its bytes when the removal is lasting, even for those who have it open: stricter than a
    /// real disk, so that a reader who relies on a file that may go is found out.
    fn drop_unnamed(&mut self) {
        let named: BTreeSet<u64> = self.names.values().chain(self.lasting_names.values()).copied().collect();
        self.inodes.retain(|number, _| named.contains(number));
    }

    fn rename(&mut self, gone: Option<PathBuf>, come: Option<(PathBuf, u64)>) {
        NameChange { gone: gone.clone(), come: come.clone() }.apply(&mut self.names);
        self.unsynced_names.push(NameChange { gone, come });
    }
}

impl Inode {
    fn lose_power(&mut self, random: &mut u64) {
        for change in std::mem::take(&mut self.unsynced) {
            match change {
                Change::SetLen(_) if chance(random, 2) => change.apply(&mut self.lasting),
                Change::SetLen(_) => {}
                Change::Write { offset, bytes } => {
                    // The disk may have written any of the sectors, in any order.
                    let mode = next(random) % 4;
                    let mut at = 0;
                    while at < bytes.len() {
                        let end = bytes.len().min(at + SECTOR - (offset + at) % SECTOR);
                        let through = match mode {
                            0 => false,
                            1 => true,
                            2 => chance(random, 2),
                            _ => at < bytes.len() / 2,
                        };
                        if through {
                            write(&mut self.lasting, offset + at, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        self.now.clone_from(&self.lasting);
    }
}

/// SplitMix64: small, seeded, good enough for tests.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn chance(state: &mut u64, of: u64) -> bool {
    next(state).is_multiple_of(of)
}

struct FaultyFile {
    files: FaultyFiles,
    inode: u64,
    name: String,
}

struct FaultyLock {
    files: FaultyFiles,
    path: PathBuf,
}

impl Drop for FaultyLock {
    fn drop(&mut self) {
        let mut disk = self.files.disk();
        if disk.power_on == self.files.power_on {
            disk.locked.remove(&self.path);
        }
    }
}

fn not_found() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

fn short_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

impl FaultyFiles {
    fn handle(&self, inode: u64, path: &Path) -> Arc<dyn File> {
        Arc::new(FaultyFile { files: self.clone(), inode, name: short_name(path) })
    }
}

impl Files for FaultyFiles {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.begin(|| format!("mkdir {}", short_name(dir)))?.dirs.insert(dir.to_path_buf());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.begin(|| format!("list {}", short_name(dir)))?;
        Ok(disk.names.keys().filter(|path| path.parent() == Some(dir)).map(|path| short_name(path)).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.begin(|| format!("create {}", short_name(path)))?;
        if disk.names.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let inode = disk.next_inode;
        disk.next_inode += 1;
        disk.inodes.insert(inode, Inode::default());
        disk.rename(None, Some((path.to_path_buf(), inode)));
        Ok(self.handle(inode, path))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        let disk = self.begin(|| format!("open {} write={write}", short_name(path)))?;
        let inode = *disk.names.get(path).ok_or_else(not_found)?;
        Ok(self.handle(inode, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.begin(|| format!("rename {} {}", short_name(from), short_name(to)))?;
        let inode = *disk.names.get(from).ok_or_else(not_found)?;
        disk.rename(Some(from.to_path_buf()), Some((to.to_path_buf(), inode)));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.begin(|| format!("remove {}", short_name(path)))?;
        if !disk.names.contains_key(path) {
            return Err(not_found());
        }
        disk.rename(Some(path.to_path_buf()), None);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.begin(|| format!("sync_dir {}", short_name(dir)))?;
        if disk.sync_is_cut() {
            return Err(Fault::Io.error());
        }
        for change in std::mem::take(&mut disk.unsynced_names) {
            if change.dir() == Some(dir) {
                change.apply(&mut disk.lasting_names);
            } else {
                disk.unsynced_names.push(change);
            }
        }
        disk.drop_unnamed();
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let disk = self.disk();
        if self.power_on != disk.power_on {
            return Err(Fault::Io.error());
        }
        let total = disk.quota.unwrap_or(1 << 40);
        Ok(Space { free: total.saturating_sub(disk.used()), total })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut disk = self.begin(|| "lock".to_owned())?;
        if !disk.locked.insert(path.to_path_buf()) {
            return Err(io::Error::from(io::ErrorKind::WouldBlock));
        }
        Ok(Box::new(FaultyLock { files: self.clone(), path: path.to_path_buf() }))
    }

    fn is_open_to_others(&self, _dir: &Path) -> io::Result<bool> {
        Ok(false)
    }

    fn shut_to_others(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn entropy(&self) -> io::Result<u64> {
        Ok(next(&mut self.disk().random))
    }
}

impl File for FaultyFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let disk = match self.files.begin(|| format!("read {} {offset}+{}", self.name, buf.len())) {
            // A full disk can be read.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => self.files.disk(),
            begun => begun?,
        };
        let inode = disk.inodes.get(&self.inode).ok_or_else(not_found)?;
        let end = offset as usize + buf.len();
        let bytes =
            inode.now.get(offset as usize..end).ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let begun = self.files.begin(|| format!("write {} {offset}+{}", self.name, buf.len()));
        let mut bytes = buf;
        let (mut disk, mut result) = match begun {
            Ok(disk) => (disk, Ok(())),
            Err(error) => {
                // Even a failed write may leave half of its bytes.
                let disk = self.files.disk();
                if disk.fate() != Some(Fault::Short) || self.files.power_on != disk.power_on {
                    return Err(error);
                }
                bytes = &buf[..buf.len() / 2];
                (disk, Err(error))
            }
        };
        if let Err(full) = disk.check_quota(self.inode, offset + bytes.len() as u64) {
            bytes = &bytes[..bytes.len() / 2];
            if disk.check_quota(self.inode, offset + bytes.len() as u64).is_err() {
                return Err(full);
            }
            result = Err(full);
        }
        let change = Change::Write { offset: offset as usize, bytes: bytes.to_vec() };
        disk.inodes.get_mut(&self.inode).ok_or_else(not_found)?.change(change);
        result
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.files.begin(|| format!("sync {}", self.name))?;
        if disk.sync_is_cut() {
            return Err(Fault::Io.error());
        }
        let inode = disk.inodes.get_mut(&self.inode).ok_or_else(not_found)?;
        for change in std::mem::take(&mut inode.unsynced) {
            change.apply(&mut inode.lasting);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let disk = self.files.begin(|| format!("len {}", self.name))?;
        Ok(disk.inodes.get(&self.inode).ok_or_else(not_found)?.now.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.files.begin(|| format!("set_len {} {len}", self.name))?;
        disk.check_quota(self.inode, len)?;
        disk.inodes.get_mut(&self.inode).ok_or_else(not_found)?.change(Change::SetLen(len as usize));
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut disk = self.files.begin(|| format!("allocate {} {len}", self.name))?;
        disk.check_quota(self.inode, len)?;
        let inode = disk.inodes.get_mut(&self.inode).ok_or_else(not_found)?;
        let len = inode.now.len().max(len as usize);
        inode.change(Change::SetLen(len));
        Ok(())
    }
}

impl Inode {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.unsynced.push(change);
    }
}
