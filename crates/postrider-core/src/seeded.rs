//! Deliberate bugs, each a place where the rules are easily broken: the simulation must find every one (`docs/seeded-bugs.md`).
//!
//! Without the feature `seeded-bugs` there is nothing here but a `false` known at compile time.

/// The bugs that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    ToldBeforeSync,
    SyncSkipped,
    SyncErrorIgnored,
    DurableIgnored,
    AckKeptInMemory,
    AckUnderWayIgnored,
    ExpiryOnlySwept,
    ExpiryRoundsDown,
    InflightLost,
    EvictionWithoutReceipt,
    RequestForgotten,
    RequestKeyOfAnyApp,
    ReplaySkipsGate,
    TakeoverUnregisters,
    CollapseTakesNewest,
    TornTailAccepted,
    SeqReused,
    BroadcastStaysOpen,
    WakeLost,
    UndoForgotten,
    CheckpointDropsContent,
    SeenWithoutCommand,
    LeaseGivenTwice,
    JobTimersLost,
    ForwardedEnds,
    ForwardedExpires,
}

impl Bug {
    pub const ALL: [Bug; 26] = [
        Bug::ToldBeforeSync,
        Bug::SyncSkipped,
        Bug::SyncErrorIgnored,
        Bug::DurableIgnored,
        Bug::AckKeptInMemory,
        Bug::AckUnderWayIgnored,
        Bug::ExpiryOnlySwept,
        Bug::ExpiryRoundsDown,
        Bug::InflightLost,
        Bug::EvictionWithoutReceipt,
        Bug::RequestForgotten,
        Bug::RequestKeyOfAnyApp,
        Bug::ReplaySkipsGate,
        Bug::TakeoverUnregisters,
        Bug::CollapseTakesNewest,
        Bug::TornTailAccepted,
        Bug::SeqReused,
        Bug::BroadcastStaysOpen,
        Bug::WakeLost,
        Bug::UndoForgotten,
        Bug::CheckpointDropsContent,
        Bug::SeenWithoutCommand,
        Bug::LeaseGivenTwice,
        Bug::JobTimersLost,
        Bug::ForwardedEnds,
        Bug::ForwardedExpires,
    ];
}

#[cfg(feature = "seeded-bugs")]
mod planted {
    use super::Bug;
    use std::cell::Cell;

    thread_local!(static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) });

    /// From now this thread runs with the bug, or with none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// Whether the bug is planted.
    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "seeded-bugs")]
pub use planted::{is, plant};

/// Whether the bug is planted: never.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}
