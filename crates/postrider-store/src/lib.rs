//! Where postrider keeps what it was given: the only crate that touches files.
//!
//! Two stores stand behind `postrider_core::port::Store`, and one contract test suite runs against both:
//!
//! - [`MemoryStore`]: the reference. Executes at once, forgets everything when it goes.
//! - [`EmbeddedStore`]: a folder of append-only files. One journal of commands holds registry, messages and receipts, so
//!   that each change is one atomic commit and there is one way to recover; a state machine in memory, rebuilt from
//!   the journal, answers all questions.
//!
//! ```text
//!  submit ─► queue ─► writer: execute a group ─► one write ─► one fdatasync ─► tell all callers
//!                                  │                                │
//!                        State (in memory)         journal-*.log ───┴──► events-*.log
//!                                                        │
//!                     checkpointer: previous checkpoint + closed segments ─► checkpoint-*.state, contents-*.log
//! ```
//!
//! No decision about a message is taken here: that is the state machine's (`postrider_core::state`).

mod check;
mod delegate;
mod embedded;
pub mod faulty;
pub mod files;
mod memory;
pub mod planted;
mod time_mark;
mod upgrade;
mod watch;

pub use check::{CheckReport, FileReport, check, check_stopped};
pub use embedded::config::{EmbeddedConfig, FailedBy, FatalHook, SyncMode};
pub use embedded::stepped::{Stepped, Stepper};
pub use embedded::upgrade::{KnownRules, UpgradePlan};
pub use embedded::{EmbeddedStore, OpenError, Problem};
pub use files::{Files, OsFiles};
pub use memory::MemoryStore;
pub use time_mark::TimeMark;
#[doc(hidden)]
pub use upgrade::check_knowing;
pub use upgrade::{UpgradeReport, Wrote, upgrade_check, upgrade_stopped};
pub use watch::EventWatch;
