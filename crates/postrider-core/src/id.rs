//! Names and numbers. Each is a type of its own, so that none can be given where another is meant.

use std::fmt;

/// An app (tenant) within this store: dense, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppNo(pub u32);

/// A device within its app: dense, never reused, so that sets of devices are compact bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNo(pub u32);

/// A device of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceRef {
    pub app: AppNo,
    pub device: DeviceNo,
}

/// A job: grows with each that is opened, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobNo(pub u64);

/// The place of a command in the store's one order: grows by one with each command, survives restarts.
/// A message carries the number of the command that accepted it; a device's deliveries are ordered by it.
pub type Seq = u64;

/// Wall-clock milliseconds since 1970, by the server's own steady clock (see `port::Clock`).
pub type UnixMillis = u64;

/// What a message is known by outside: 48 bits of time, 80 bits of chance; sorts by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u128);

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl MessageId {
    pub fn new(at: UnixMillis, chance: u128) -> MessageId {
        MessageId((u128::from(at & 0xffff_ffff_ffff) << 80) | (chance & ((1 << 80) - 1)))
    }

    /// When the message was accepted, as the id tells.
    pub fn at(self) -> UnixMillis {
        (self.0 >> 80) as u64
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 26];
        for (i, c) in text.iter_mut().rev().enumerate() {
            *c = ALPHABET[(self.0 >> (5 * i)) as usize & 31];
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for MessageId {
    type Err = ();

    fn from_str(text: &str) -> Result<MessageId, ()> {
        if text.len() != 26 || text.as_bytes()[0] > b'7' {
            return Err(());
        }
        text.bytes().try_fold(MessageId(0), |id, c| {
            let digit = ALPHABET.iter().position(|a| *a == c).ok_or(())?;
            Ok(MessageId((id.0 << 5) | digit as u128))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_being_written_and_read_and_sort_by_time() {
        let early = MessageId::new(1_700_000_000_000, u128::MAX);
        let late = MessageId::new(1_700_000_000_001, 0);
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(early.to_string().parse(), Ok(early));
        assert_eq!(early.at(), 1_700_000_000_000);
        assert!("zzzzzzzzzzzzzzzzzzzzzzzzzz".parse::<MessageId>().is_err());
    }
}
