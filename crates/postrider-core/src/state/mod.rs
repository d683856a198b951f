//! Everything that is kept, in memory, as one deterministic state machine.
//!
//! [`State::execute`] is the only way to change what is durable. It reads no clock and draws no chance: executed again,
//! the same commands give the same state. Embedded storage journals the commands; recovery executes them once more.

use crate::command::*;
use crate::id::*;
use crate::model::*;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Number of the last command executed.
    seq: Seq,
}

/// What an execution brings forth beside its outcome.
#[derive(Debug, Default)]
pub struct Effects {
    /// Rows for the receipt stream, in order, with positions.
    pub events: Vec<ReceiptEvent>,
    /// Contents that nobody needs any more.
    pub released: Vec<BlobRef>,
}

impl State {
    /// Executes the next command; its number is `self.seq() + 1`. `blob` says where its content will lie.
    pub fn execute(&mut self, command: &Command, blob: BlobRef, effects: &mut Effects) -> Outcome {
        let _ = (command, blob, effects);
        self.seq += 1;
        Outcome::Done
    }

    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// After deserialization: rebuilds the indexes that are not stored.
    pub fn rebuild(&mut self) {}

    /// Every content that is still needed, to be moved by a checkpoint. Calls `f` with each reference, which it may change.
    pub fn for_each_blob(&mut self, f: &mut dyn FnMut(&mut BlobRef)) {
        let _ = f;
    }
}
