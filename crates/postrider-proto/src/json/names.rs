//! What deliveries and places in an inbox are called in frames: whoever drives the protocol decides.

use crate::Cursor;
use std::fmt::{Debug, Write};

/// Names for the numbers of deliveries and for cursors. The same number always gets the same name.
pub trait Names: Debug + Send + Sync {
    /// Appends the name of a delivery in an inbox.
    fn write_delivery(&self, number: u64, into: &mut String);
    /// The number that a name stands for. A name that could have been given out and was not may
    /// get a number that no delivery has; `None` for what is no name at all.
    fn read_delivery(&self, name: &str) -> Option<u64>;
    /// Appends the name of a place in an inbox.
    fn write_cursor(&self, cursor: Cursor, into: &mut String);
}

/// The numbers themselves, for those who have nothing to hide and one history only.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainNames;

impl Names for PlainNames {
    fn write_delivery(&self, number: u64, into: &mut String) {
        _ = write!(into, "{number}");
    }

    fn read_delivery(&self, name: &str) -> Option<u64> {
        plain_number(name)
    }

    fn write_cursor(&self, Cursor { urgent, normal }: Cursor, into: &mut String) {
        _ = write!(into, "{urgent}-{normal}");
    }
}

/// Digits and nothing else, below the numbers of live messages.
pub fn plain_number(digits: &str) -> Option<u64> {
    let is_plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|n| is_plain && *n < super::frame::LIVE)
}
