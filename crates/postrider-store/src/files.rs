//! The file layer: the few operations the embedded store needs of a disk, behind a trait.
//!
//! Everything the store does to its folder goes through [`Files`], so that a test can fail any operation, fill the
//! disk or cut the power (see `faulty.rs`). It knows nothing of records; it never retries and never hides an error.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A folder's worth of file operations.
pub trait Files: Send + Sync + 'static {
    /// Makes the folder and its parents, readable by the owner only. Nothing happens if it is there.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Names of the plain files in a folder, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// A new file, to write and read; fails where one is already.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// An existing file, to read, and to write if `write`.
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>>;
    /// Replaces what has the name `to`. Lasting only after [`Files::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes names (created, renamed, removed) of a folder lasting.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    fn space(&self, dir: &Path) -> io::Result<Space>;
    /// Takes the folder for this process until the answer is dropped; `WouldBlock` when another has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
    /// Whether others than the owner may look into the folder.
    fn is_open_to_others(&self, dir: &Path) -> io::Result<bool>;
    /// Shuts the folder for everybody but the owner.
    fn shut_to_others(&self, dir: &Path) -> io::Result<()>;
    /// Chance, for the names of new stores.
    fn entropy(&self) -> io::Result<u64>;
}

/// An open file. Reads and writes name their place, so one handle serves all threads.
pub trait File: Send + Sync {
    /// Fills `buf`, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf`; after an error any part of it may be there.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the content (not the name) lasting.
    fn sync(&self) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file off or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves the blocks up to `len`, which read as zeros.
    fn allocate(&self, len: u64) -> io::Result<()>;
}

/// How full the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub free: u64,
    pub total: u64,
}

/// The disk has no room, or the owner of the files may have no more of it.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The disk has no room, or this process may open no more files: trying again later may help.
pub fn is_passing(error: &io::Error) -> bool {
    let out_of_descriptors = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
    is_full(error)
        || out_of_descriptors.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Reads a whole file.
pub fn read_all(file: &dyn File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The disk of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsFiles;

struct OsFile(std::fs::File);

/// A link where a file of ours should be is somebody's trick, or a mistake.
const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

/// Folders that are locked stay open, and so can be synced when no more files may be opened.
static LOCKED: Mutex<Vec<(PathBuf, Weak<std::fs::File>)>> = Mutex::new(Vec::new());

fn locked_dir(dir: &Path) -> Option<Arc<std::fs::File>> {
    let locked = LOCKED.lock().unwrap_or_else(PoisonError::into_inner);
    locked.iter().rev().filter(|(path, _)| path == dir).find_map(|(_, open)| open.upgrade())
}

impl Files for OsFiles {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Arc::new(OsFile(file)))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(OsFile(std::fs::OpenOptions::new().read(true).write(write).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match locked_dir(dir) {
            Some(open) => open.sync_all(),
            None => std::fs::File::open(dir)?.sync_all(),
        }
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(Space { free: stat.f_bavail * stat.f_frsize, total: stat.f_blocks * stat.f_frsize })
    }

    /// Locks the folder itself too: a file in it can be removed by somebody who tidies up, and then be made anew and
    /// locked by a second process.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let folder = Arc::new(std::fs::File::open(dir)?);
        match folder.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            // Some network file systems lock no folders; the file below is what they have.
            Err(std::fs::TryLockError::Error(error)) => {
                tracing::debug!(%error, "the data folder itself cannot be locked");
            }
        }
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(NO_FOLLOW)
            .open(path)?;
        file.try_lock().map_err(io::Error::from)?;
        let mut locked = LOCKED.lock().unwrap_or_else(PoisonError::into_inner);
        locked.retain(|(_, open)| open.strong_count() > 0);
        locked.push((dir.to_path_buf(), Arc::downgrade(&folder)));
        Ok(Box::new((file, folder)))
    }

    fn is_open_to_others(&self, dir: &Path) -> io::Result<bool> {
        use std::os::unix::fs::PermissionsExt;
        Ok(std::fs::metadata(dir)?.permissions().mode() & 0o077 != 0)
    }

    fn shut_to_others(&self, dir: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
    }

    fn entropy(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        let mut have = 0;
        while have < bytes.len() {
            have += rustix::rand::getrandom(&mut bytes[have..], rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(u64::from_le_bytes(bytes))
    }
}

impl File for OsFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.0, buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, len)?)
    }
}
