//! The store's promises: one contract for both stores, then what only a disk can do to one of them.

#![allow(clippy::unwrap_used)]

mod checkpoint;
mod contract;
mod crash;
mod expiry;
mod faults;
mod full;
mod gate;
mod golden;
mod ill;
mod jobs;
mod kit;
mod low;
mod pruning;
mod rot;
mod shared;
mod upgrade;
mod webhooks;
