//! Time and chance as the operating system gives them: the only place of this product that reads a clock or draws. And its
//! files that nobody else may read.

use postrider_core::id::UnixMillis;
use postrider_core::port::{Chance, Clock};
use postrider_store::TimeMark;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Steady: the wall clock at the start plus what has passed since on the monotonic clock, so that no jump of the wall clock
/// expires a message early or sends one late (P12). A jump while the server was down is known by a mark of an earlier
/// start of the same boot. It never starts behind what the store has seen.
pub struct SteadyClock {
    start: UnixMillis,
    since: Instant,
    boot: Option<SinceBoot>,
}

/// A difference between clocks that is worth a warning: somebody set one.
const JUMP_MS: u64 = 60_000;

impl SteadyClock {
    /// `last`: the last time that the store has seen. `mark`: what `mark` gave at an earlier start.
    pub fn starting_after(last: UnixMillis, mark: Option<TimeMark>) -> SteadyClock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as UnixMillis);
        let boot = SinceBoot::read();
        let reckoned = boot.as_ref().zip(mark).and_then(|(boot, mark)| boot.reckon(mark));
        SteadyClock { start: start_at(wall, reckoned, last), since: Instant::now(), boot }
    }

    /// For the next start; `None` where the system does not tell of its boots.
    pub fn mark(&self) -> Option<TimeMark> {
        let SinceBoot { boot, millis } = *self.boot.as_ref()?;
        Some(TimeMark { boot, since_boot_ms: millis, at: self.start })
    }
}

/// `reckoned`: what time it must be, counted from the mark by the kernel, which nobody can set. Where the wall clock says
/// much else, it was set, and messages must not notice.
fn start_at(wall: UnixMillis, reckoned: Option<UnixMillis>, last: UnixMillis) -> UnixMillis {
    if let Some(reckoned) = reckoned.filter(|reckoned| reckoned.abs_diff(wall) > JUMP_MS) {
        let moved_secs = (i128::from(wall) - i128::from(reckoned)) / 1000;
        tracing::warn!(
            moved_secs,
            "the wall clock was set since this machine booted; time goes on as if it had not been. If it is right now: \
             stop, remove the file CLOCK from the data folder, start"
        );
        return reckoned.max(last);
    }
    if last > wall + JUMP_MS {
        let behind_secs = (last - wall) / 1000;
        tracing::warn!(
            behind_secs,
            "the wall clock is behind the last stored time; time goes on from the stored one"
        );
    }
    wall.max(last)
}

/// Which boot of the machine this is, and how long it has been up, sleep included.
struct SinceBoot {
    boot: u128,
    millis: u64,
}

impl SinceBoot {
    fn read() -> Option<SinceBoot> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let boot = u128::from_str_radix(&id.trim().replace('-', ""), 16).ok()?;
        let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let millis = u64::try_from(up.tv_sec).ok()? * 1000 + u64::try_from(up.tv_nsec).ok()? / 1_000_000;
        Some(SinceBoot { boot, millis })
    }

    /// What time it is by a mark of this boot.
    fn reckon(&self, mark: TimeMark) -> Option<UnixMillis> {
        let passed = self.millis.checked_sub(mark.since_boot_ms).filter(|_| mark.boot == self.boot)?;
        mark.at.checked_add(passed)
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
    format!("{prefix}{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(chance.bytes::<32>()))
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

/// How many files this process has open.
pub fn open_files() -> u64 {
    // Where the system does not tell, as many as a server has at its start.
    std::fs::read_dir("/proc/self/fd").map_or(64, |fds| fds.count() as u64)
}

/// Writes a file that only its owner may read, in place of an older one, on stable storage. Whoever reads it meanwhile
/// finds the old one or the new one, whole.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let unfinished = path.with_extension("tmp");
    match std::fs::remove_file(&unfinished) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    // A new file: nobody's link is followed, and nobody else has it open.
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = 1_790_000_000_000;
    const YEAR: u64 = 365 * 86_400_000;

    #[test]
    fn a_wall_clock_that_was_set_in_this_boot_moves_nothing() {
        for set in [NOW + YEAR, NOW - YEAR, NOW + JUMP_MS + 1, NOW - JUMP_MS - 1] {
            assert_eq!(start_at(set, Some(NOW), NOW - 5), NOW);
            assert_eq!(start_at(set, Some(NOW), NOW + 5), NOW + 5, "never behind what is stored");
        }
    }

    #[test]
    fn without_a_mark_or_with_a_small_difference_the_wall_clock_is_believed() {
        assert_eq!(start_at(NOW + YEAR, None, NOW), NOW + YEAR);
        assert_eq!(start_at(NOW + 1000, Some(NOW), 0), NOW + 1000);
        assert_eq!(start_at(NOW - YEAR, None, NOW), NOW, "never behind what is stored");
    }

    #[test]
    fn a_mark_counts_in_its_own_boot_only() {
        let mark = TimeMark { boot: 1, since_boot_ms: 1000, at: NOW };
        let after = |boot, millis| SinceBoot { boot, millis }.reckon(mark);
        assert_eq!(after(1, 1500), Some(NOW + 500));
        assert_eq!(after(2, 1500), None);
        assert_eq!(after(1, 900), None, "before its own mark");
        let clock = SteadyClock::starting_after(0, None);
        let found = clock.mark().expect("Linux tells of its boots");
        assert!(SinceBoot::read().unwrap().reckon(found).unwrap() >= clock.start);
    }
}
