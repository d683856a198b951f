//! When open messages end. Most have ended long before, and those are not to be kept until then: with a life of weeks that
//! would be every message of these weeks.

use crate::id::*;
use std::collections::BTreeMap;

/// Open messages by the second in which they end; among them ended ones, fewer than there are open ones.
#[derive(Debug, Default)]
pub(super) struct Expiries(BTreeMap<u64, Second>);

#[derive(Debug, Default)]
struct Second {
    /// In the order in which they were accepted.
    seqs: Vec<Seq>,
    /// So many of `seqs` have ended, at most.
    ended: usize,
}

impl Expiries {
    pub fn add(&mut self, second: u64, seq: Seq) {
        self.0.entry(second).or_default().seqs.push(seq);
    }

    /// The order of acceptance, where they were added in another one.
    pub fn sort(&mut self) {
        self.0.values_mut().for_each(|second| second.seqs.sort_unstable());
    }

    pub fn next_second(&self) -> Option<u64> {
        self.0.first_key_value().map(|(second, _)| *second)
    }

    /// Takes one out that is due in `second` or was before; it may have ended.
    pub fn take_due(&mut self, second: u64) -> Option<Seq> {
        while let Some(mut due) = self.0.first_entry().filter(|due| *due.key() <= second) {
            if let Some(seq) = due.get_mut().seqs.pop() {
                return Some(seq);
            }
            due.remove();
        }
        None
    }

    /// One of this second has ended. Once that may be half of them, those that have go.
    pub fn count_ended(&mut self, second: u64, is_open: impl Fn(Seq) -> bool) {
        let Some(found) = self.0.get_mut(&second) else { return };
        found.ended += 1;
        if found.ended * 2 > found.seqs.len() {
            found.seqs.retain(|seq| is_open(*seq));
            found.seqs.shrink_to_fit();
            found.ended = 0;
        }
        if found.seqs.is_empty() {
            self.0.remove(&second);
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.values().map(|second| second.seqs.len()).sum()
    }
}
