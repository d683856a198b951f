//! Time and chance as the operating system gives them: the only place of this product that reads a clock or draws.

use postrider_core::id::UnixMillis;
use postrider_core::port::{Chance, Clock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Steady: the wall clock at the start plus what has passed since on the monotonic clock, so that no jump of the wall clock
/// expires a message early or sends one late (P12). It never starts behind what the store has seen.
pub struct SteadyClock {
    start: UnixMillis,
    since: Instant,
}

/// A difference between wall clock and store that is worth a warning: somebody set a clock.
const JUMP_MS: u64 = 60_000;

impl SteadyClock {
    pub fn starting_after(last: UnixMillis) -> SteadyClock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as UnixMillis);
        if last > wall + JUMP_MS {
            let behind_secs = (last - wall) / 1000;
            tracing::warn!(
                behind_secs,
                "the wall clock is behind the last stored time; time goes on from the stored one"
            );
        }
        SteadyClock { start: wall.max(last), since: Instant::now() }
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> UnixMillis {
        self.start + self.since.elapsed().as_millis() as UnixMillis
    }
}

/// The operating system's generator, for ids and secrets.
pub struct OsChance;

impl Chance for OsChance {
    fn bits128(&self) -> u128 {
        let mut bytes = [0; 16];
        // Without randomness no secret can be made, and a weak one would be worse than the end.
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        u128::from_le_bytes(bytes)
    }
}

/// A new secret of 256 bits: `prefix` and 43 characters.
pub fn new_secret(prefix: &str, chance: &dyn Chance) -> String {
    use base64::Engine as _;
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&chance.bits128().to_le_bytes());
    bytes[16..].copy_from_slice(&chance.bits128().to_le_bytes());
    format!("{prefix}{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}

/// Lets the process have as many open files as the system allows it: each connection is one, and the usual soft limit
/// of 1,024 is for programs with a handful. Returns how many it may have now.
pub fn raise_open_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    getrlimit(Resource::Nofile).current
}
