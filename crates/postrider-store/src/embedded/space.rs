//! Watching the free space, and the reserve that is given up so that acknowledgements still find room.
//!
//! No thread and no timer: the disk is asked once a group, which costs nothing beside the sync, and by whoever asks
//! whether new messages are taken. So refusing ends with the first look after space came back.

use super::config::EmbeddedConfig;
use super::folder::{Folder, RESERVE};
use crate::files::Space;
use postrider_core::port::StoreError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// See the module.
pub struct SpaceWatch {
    min_free_bytes: u64,
    min_free_percent: u64,
    reserve_bytes: u64,
    low: AtomicBool,
    has_reserve: AtomicBool,
    free: AtomicU64,
}

impl SpaceWatch {
    pub fn new(config: &EmbeddedConfig, folder: &Folder) -> SpaceWatch {
        let has_reserve = folder.files.open(&folder.path(RESERVE), false).is_ok();
        let watch = SpaceWatch {
            min_free_bytes: config.min_free_bytes,
            min_free_percent: u64::from(config.min_free_percent),
            reserve_bytes: config.reserve_bytes,
            low: AtomicBool::new(false),
            has_reserve: AtomicBool::new(has_reserve),
            free: AtomicU64::new(u64::MAX),
        };
        watch.look(folder);
        watch
    }

    /// Asks the disk. Where it does not answer, all stays as it was: the next write will tell.
    pub fn look(&self, folder: &Folder) -> bool {
        let Ok(space) = folder.files.space(&folder.dir) else { return self.is_low() };
        self.free.store(space.free, Ordering::Relaxed);
        let low = self.is_below(space);
        if self.low.swap(low, Ordering::Relaxed) != low {
            if low {
                tracing::warn!(free = space.free, "space is low: new messages are refused");
            } else {
                tracing::info!(free = space.free, "space is back: new messages are taken");
            }
        }
        low
    }

    fn is_below(&self, space: Space) -> bool {
        space.free < self.min_free_bytes
            || u128::from(space.free) * 100 < u128::from(space.total) * u128::from(self.min_free_percent)
    }

    pub fn is_low(&self) -> bool {
        self.low.load(Ordering::Relaxed)
    }

    /// As of the last look.
    pub fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    pub fn refusal(&self) -> StoreError {
        StoreError::StorageLow { free_bytes: self.free() }
    }

    /// There is room for `bytes` and a good deal more.
    pub fn has_plenty(&self, bytes: u64) -> bool {
        !self.is_low() && self.free().saturating_sub(self.min_free_bytes) > bytes.saturating_mul(2)
    }

    /// Lays the reserve by, where there is plenty and none is laid by yet.
    pub fn lay_by(&self, folder: &Folder) {
        if self.reserve_bytes == 0 || self.has_reserve.load(Ordering::Relaxed) {
            return;
        }
        if !self.has_plenty(self.reserve_bytes) {
            return;
        }
        let path = folder.path(RESERVE);
        let laid_by = folder.files.create(&path).and_then(|file| file.allocate(self.reserve_bytes));
        match laid_by {
            Ok(()) => self.has_reserve.store(true, Ordering::Relaxed),
            Err(error) => {
                tracing::warn!(%error, "no reserve of space can be laid by");
                let _ = folder.files.remove(&path);
            }
        }
    }

    /// Gives the reserve up; false if there is none (any more).
    pub fn give_up_reserve(&self, folder: &Folder) -> bool {
        if !self.has_reserve.swap(false, Ordering::Relaxed) {
            return false;
        }
        tracing::warn!("the reserve of space is given up");
        // Lasting at once is not needed, but a quota may count the file until then.
        let removed = folder.remove(RESERVE).and_then(|()| folder.files.sync_dir(&folder.dir));
        self.look(folder);
        removed.is_ok()
    }
}
