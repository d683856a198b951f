//! Whole systems in virtual time: the real engine, the real protocol state machines and the real embedded store, with a
//! network, a disk, devices and app servers that misbehave as one seed decides. [`run`] is the way in.
//!
//! | file | what it is |
//! | --- | --- |
//! | `plan` | what a seed decides beforehand: sizes, characters, which faults |
//! | `world` | the queue of happenings, and the network |
//! | `server`, `act`, `outgoing` | one life of the server: engine, store, and a driver like the real one |
//! | `devices`, `sockets` | devices with a connection: MQTT, and JSON over WebSocket |
//! | `streams`, `stanzas` | devices that speak XMPP, and what only that asks of the server |
//! | `paths` | paths that go dead without a word, and devices that sleep |
//! | `cycles` | phones that reconnect a thousand times |
//! | `polls` | devices that poll, and the server's side of it |
//! | `requests` | app servers |
//! | `jobs` | slow work and its workers |
//! | `providers` | those who take deliveries to other roads |
//! | `faults` | what befalls the server; the looks at it meanwhile and at the end |
//! | `ledger`, `topics` | the checker: the promises, seen from outside |
//!
//! What it does not cover: threads, sockets, TLS, HTTP and the kernel. Those are tested with the real binary.

mod act;
mod chance;
mod cycles;
mod devices;
mod disk;
mod faults;
mod jobs;
mod ledger;
mod outgoing;
mod paths;
mod plan;
mod polls;
mod providers;
mod requests;
mod server;
mod sockets;
mod stanzas;
mod streams;
mod topics;
mod world;

pub use cycles::{Cycles, PROMISED_MS, reconnect_cycles};
pub use ledger::Violation;
pub use plan::Plan;

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    /// Of every line of the trace: the same seed gives the same.
    pub hash: u64,
    pub virtual_ms: u64,
    pub happenings: u64,
    /// Lives of the server, pushes asked for, transmissions, how many of those were repeats, ends.
    pub lives: u64,
    pub pushes: u64,
    pub transmissions: u64,
    pub repeats: u64,
    pub ends: usize,
    pub violation: Option<Violation>,
}

/// Runs the world of a seed until its reckoning, or until a promise is broken.
pub fn run(seed: u64) -> Report {
    run_plan(Plan::of(seed))
}

/// The same with a plan that was changed by hand.
pub fn run_plan(plan: Plan) -> Report {
    let mut world = world::World::new(plan);
    world.run();
    world.report()
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(violation) = &self.violation else {
            return write!(
                f,
                "seed {}: {} pushes, {} transmissions ({} again), {} ends, {} lives",
                self.seed, self.pushes, self.transmissions, self.repeats, self.ends, self.lives
            );
        };
        writeln!(f, "seed {} broke \"{}\": {}", self.seed, violation.rule, violation.what)?;
        violation.trace.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}
