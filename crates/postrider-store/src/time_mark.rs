//! What time it was at a moment that the next start can find again, in the data folder.
//!
//! A server that starts cannot tell by the wall clock alone whether time has passed or somebody set the clock. Within one
//! boot of the machine the kernel counts on, so a mark of both together tells. It is a help and never needed: without
//! it, or where it is damaged, the wall clock is believed.

use crate::EmbeddedStore;
use crate::files::{Files, read_all};
use postrider_core::id::UnixMillis;
use std::io;
use std::path::Path;

/// The file; removing it while the server is stopped makes the next start believe the wall clock.
pub const CLOCK: &str = "CLOCK";
const MAGIC: &[u8; 4] = b"pClk";
const LEN: usize = 40;

/// So much after this boot it was that time, by the server's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeMark {
    pub boot: u128,
    pub since_boot_ms: u64,
    pub at: UnixMillis,
}

impl TimeMark {
    fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..20].copy_from_slice(&self.boot.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.since_boot_ms.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.at.to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<TimeMark> {
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        if bytes.len() != LEN || !body.starts_with(MAGIC) || crc32c::crc32c(body) != u32::from_le_bytes(*sum)
        {
            return None;
        }
        Some(TimeMark {
            boot: u128::from_le_bytes(body[4..20].try_into().ok()?),
            since_boot_ms: u64::from_le_bytes(body[20..28].try_into().ok()?),
            at: u64::from_le_bytes(body[28..36].try_into().ok()?),
        })
    }

    fn read(dir: &Path, files: &dyn Files) -> Option<TimeMark> {
        let file = files.open(&dir.join(CLOCK), false).ok()?;
        TimeMark::decode(&read_all(&*file).ok()?)
    }

    fn write(&self, dir: &Path, files: &dyn Files) -> io::Result<()> {
        let unfinished = dir.join(format!("{CLOCK}.tmp"));
        match files.remove(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = files.create(&unfinished)?;
        file.write_all_at(&self.encode(), 0)?;
        file.sync()?;
        files.rename(&unfinished, &dir.join(CLOCK))?;
        files.sync_dir(dir)
    }
}

impl EmbeddedStore {
    /// The mark of the last start that left one.
    pub fn time_mark(&self) -> Option<TimeMark> {
        let folder = self.folder();
        TimeMark::read(&folder.dir, &*folder.files)
    }

    /// Leaves a mark for the next start, on stable storage.
    pub fn keep_time_mark(&self, mark: &TimeMark) -> io::Result<()> {
        let folder = self.folder();
        mark.write(&folder.dir, &*folder.files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faulty::FaultyFiles;

    const MARK: TimeMark = TimeMark { boot: 7 << 100, since_boot_ms: 123_456, at: 1_790_000_000_000 };

    #[test]
    fn a_mark_is_found_again_after_a_power_cut_and_the_newer_one_holds() {
        let files = FaultyFiles::new(1);
        let dir = Path::new("/data");
        files.create_dir(dir).unwrap();
        assert_eq!(TimeMark::read(dir, &files), None);
        MARK.write(dir, &files).unwrap();
        let files = files.cut_power();
        assert_eq!(TimeMark::read(dir, &files), Some(MARK));
        let newer = TimeMark { at: MARK.at + 1, ..MARK };
        newer.write(dir, &files).unwrap();
        assert_eq!(TimeMark::read(dir, &files.cut_power()), Some(newer));
    }

    #[test]
    fn a_damaged_mark_is_none() {
        let whole = MARK.encode();
        assert_eq!(TimeMark::decode(&whole), Some(MARK));
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(TimeMark::decode(&bytes), None, "bit {bit}");
        }
        (0..whole.len()).for_each(|len| assert_eq!(TimeMark::decode(&whole[..len]), None, "cut to {len}"));
    }
}
