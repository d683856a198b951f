//! Deliberate bugs in what takes arrival for proven: the simulation must find every one (`docs/seeded-bugs.md`). As in
//! `postrider-core`, which this crate does not know.
//!
//! Without the feature `seeded-bugs` there is nothing here but a `false` known at compile time.

/// The bugs that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    CountOneTooHigh,
    PingCoversLater,
    ResumptionSettlesAll,
}

impl Bug {
    pub const ALL: [Bug; 3] = [Bug::CountOneTooHigh, Bug::PingCoversLater, Bug::ResumptionSettlesAll];
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
