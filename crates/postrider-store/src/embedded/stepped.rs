//! The embedded store without threads, moved by hand: for simulation, where the moment between a write and its sync, and
//! between the sync and its telling, is a moment of virtual time in which anything can happen.

use super::config::EmbeddedConfig;
use super::queue::Errand;
use super::recover::{self, Repair};
use super::writer::{Staged, Stored, Writer};
use super::{EmbeddedStore, OpenError, Shared, checkpoint};
use crate::files::Files;
use postrider_core::id::Seq;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What the store's threads would do, one call after the other.
pub struct Stepper {
    writer: Writer,
    shared: Arc<Shared>,
    under_way: UnderWay,
}

/// How far the group is that is being committed.
enum UnderWay {
    Nothing,
    Written(Staged),
    Synced(Stored),
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// Nothing waits.
    Idle,
    /// A group is executed and written.
    Written,
    /// It is on stable storage.
    Synced,
    /// Its callers were told.
    Told,
    /// The group was refused (the disk is full), or the store has failed: its callers were told.
    Refused,
}

impl EmbeddedStore {
    /// Opens a store whose commits are made by [`Stepper::step`] and by nobody else.
    pub fn open_stepped(
        config: EmbeddedConfig,
        files: Arc<dyn Files>,
    ) -> Result<(EmbeddedStore, Stepper), OpenError> {
        let (store, writer) = EmbeddedStore::recover(config, files)?;
        let shared = store.shared.clone();
        Ok((store, Stepper { writer, shared, under_way: UnderWay::Nothing }))
    }
}

impl Stepper {
    /// One step of the commit under way, or the first of the next one.
    pub fn step(&mut self) -> Stepped {
        let (next, done) = match std::mem::replace(&mut self.under_way, UnderWay::Nothing) {
            UnderWay::Nothing => match self.writer.take_waiting() {
                None => (UnderWay::Nothing, Stepped::Idle),
                Some(group) => match self.writer.stage(group) {
                    Some(staged) => (UnderWay::Written(staged), Stepped::Written),
                    None => (UnderWay::Nothing, Stepped::Refused),
                },
            },
            UnderWay::Written(staged) => match self.writer.settle(staged) {
                Some(stored) => (UnderWay::Synced(stored), Stepped::Synced),
                None => (UnderWay::Nothing, Stepped::Refused),
            },
            UnderWay::Synced(stored) => {
                stored.tell();
                (UnderWay::Nothing, Stepped::Told)
            }
        };
        self.under_way = next;
        done
    }

    /// Closes the segment and makes a checkpoint; between two groups only. False if there was nothing to do, or it failed.
    pub fn checkpoint(&mut self) -> bool {
        if !matches!(self.under_way, UnderWay::Nothing) || self.has_failed() {
            return false;
        }
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        self.writer.errand(Errand::Roll(tell));
        matches!(told.recv(), Ok(Ok(()))) && matches!(checkpoint::in_background(&self.shared), Ok(true))
    }

    /// Digests of the live state, and of the one that the files give anew; between two groups only.
    pub fn live_and_replayed(&self) -> Result<(u128, u128), OpenError> {
        let mut no_events = |_| Ok(());
        let replayed = recover::recover(&self.shared.folder, Repair::No, &mut no_events)?;
        Ok((self.shared.state().digest(), replayed.state.digest()))
    }

    /// Number of the last command on stable storage.
    pub fn durable(&self) -> Seq {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// Nothing waits and nothing is under way.
    pub fn is_idle(&self) -> bool {
        matches!(self.under_way, UnderWay::Nothing) && self.shared.queue.len() == 0
    }

    /// The store has failed for good: the process would end now.
    pub fn has_failed(&self) -> bool {
        self.shared.has_failed()
    }
}

/// What waits is dropped, as when a process dies: its callers hold the store, and the store holds them.
impl Drop for Stepper {
    fn drop(&mut self) {
        self.shared.queue.close(postrider_core::port::StoreError::Closed);
        drop(self.shared.queue.drain());
    }
}
