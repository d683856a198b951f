//! What can be set for an embedded store.

use super::upgrade::KnownRules;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1024 * 1024;

/// When a command counts as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// The disk has said that it is on stable storage. Nothing acknowledged is lost, whatever fails.
    #[default]
    Synced,
    /// The operating system has it. Survives the death of the process, **not** of the machine: what was acknowledged in
    /// the last half minute or so may be lost with the power. For tests and for those who know that they want it.
    Relaxed,
}

/// What made a store fail for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedBy {
    /// The disk did not do what it has to.
    Disk,
    /// A bug of ours: a thread of the store ended, or a panic left the state half changed.
    Panic,
}

/// Is told what made the store fail, and why.
pub type FatalHook = Arc<dyn Fn(FailedBy, &str) + Send + Sync>;

/// How an embedded store is to be; [`EmbeddedConfig::new`] gives sane values.
#[derive(Clone)]
pub struct EmbeddedConfig {
    pub dir: PathBuf,
    pub sync: SyncMode,
    /// Commands that share one sync, at most; a batch is not split.
    pub group_commands_max: usize,
    pub group_bytes_max: usize,
    /// What may wait for the writer; beyond it `Overloaded`.
    pub queue_commands_max: usize,
    pub queue_bytes_max: usize,
    /// Size at which a journal segment is closed.
    pub segment_bytes: u64,
    /// A checkpoint is made when so much journal was closed since the last, or as much as the last one's size.
    pub checkpoint_bytes: u64,
    /// And when so much time passed, so that deleted data leaves the disk.
    pub checkpoint_every: Duration,
    /// At close, a checkpoint is made if no more than this has to be written for it.
    pub close_checkpoint_bytes: u64,
    pub events_segment_bytes: u64,
    /// The receipt stream keeps this much, by size and by age.
    pub events_bytes_max: u64,
    pub events_age_max: Duration,
    /// Below either, new messages and devices are refused with `StorageLow`.
    pub min_free_bytes: u64,
    pub min_free_percent: u8,
    /// Kept to be given up when the disk is full, so that acknowledgements still find room.
    pub reserve_bytes: u64,
    /// Accept a data folder that others than its owner can look into.
    pub allow_open_to_others: bool,
    /// The rules that the program knows. Another release knows others: for tests.
    #[doc(hidden)]
    pub rules: KnownRules,
    /// Called once with the reason when the store has failed for good: the process should end.
    pub on_fatal: Option<FatalHook>,
}

impl EmbeddedConfig {
    pub fn new(dir: impl Into<PathBuf>) -> EmbeddedConfig {
        EmbeddedConfig {
            dir: dir.into(),
            sync: SyncMode::Synced,
            group_commands_max: 4_000,
            group_bytes_max: (8 * MIB) as usize,
            queue_commands_max: 100_000,
            queue_bytes_max: (64 * MIB) as usize,
            segment_bytes: 64 * MIB,
            checkpoint_bytes: 64 * MIB,
            checkpoint_every: Duration::from_secs(6 * 3600),
            close_checkpoint_bytes: 256 * MIB,
            events_segment_bytes: 16 * MIB,
            events_bytes_max: 1024 * MIB,
            events_age_max: Duration::from_secs(30 * 24 * 3600),
            min_free_bytes: 1024 * MIB,
            min_free_percent: 10,
            reserve_bytes: 64 * MIB,
            allow_open_to_others: false,
            rules: KnownRules::OURS,
            on_fatal: None,
        }
    }
}

impl fmt::Debug for EmbeddedConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedConfig")
            .field("dir", &self.dir)
            .field("sync", &self.sync)
            .finish_non_exhaustive()
    }
}
