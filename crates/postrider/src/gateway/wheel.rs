//! Deadlines of many connections for eight bytes each: a hashed wheel of one-second slots.
//!
//! An entry only says "look at this connection then". Whoever looks asks the connection for its true deadline and enters it
//! again if that lies later, so traffic costs the wheel nothing: a ping moves no entry.

use postrider_proto::Millis;

const SLOTS: usize = 512;
const TICK_MS: Millis = 1_000;

/// A connection's place: slot and generation.
pub type Place = (u32, u32);

#[derive(Debug)]
pub struct Wheel {
    slots: Vec<Vec<Place>>,
    /// The tick up to which all were looked at.
    at: u64,
}

impl Wheel {
    pub fn new(now: Millis) -> Wheel {
        Wheel { slots: (0..SLOTS).map(|_| Vec::new()).collect(), at: now / TICK_MS }
    }

    /// Enters a connection for a look at `deadline` or up to a second later, at most eight minutes from now.
    /// Returns the tick, by which an entry that was overtaken by an earlier one can be told.
    pub fn arm(&mut self, place: Place, deadline: Millis) -> u64 {
        let tick = deadline.div_ceil(TICK_MS).clamp(self.at + 1, self.at + SLOTS as u64 - 1);
        self.slots[tick as usize % SLOTS].push(place);
        tick
    }

    /// Hands out everything whose time has come, with its tick.
    pub fn due(&mut self, now: Millis, mut f: impl FnMut(u64, Vec<Place>)) {
        while self.at < now / TICK_MS {
            self.at += 1;
            let due = std::mem::take(&mut self.slots[self.at as usize % SLOTS]);
            if !due.is_empty() {
                f(self.at, due);
            }
        }
    }

    /// When to call [`Self::due`] next.
    pub fn next(&self) -> Millis {
        (self.at + 1) * TICK_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_up_at_its_deadline_or_within_a_second_after() {
        let mut wheel = Wheel::new(10_500);
        let tick = wheel.arm((1, 0), 12_200);
        let mut seen = Vec::new();
        wheel.due(12_199, |_, due| seen.extend(due));
        assert!(seen.is_empty());
        wheel.due(13_200, |at, due| {
            assert_eq!(at, tick);
            seen.extend(due);
        });
        assert_eq!(seen, [(1, 0)]);
    }

    #[test]
    fn a_deadline_beyond_the_wheel_comes_up_for_another_look() {
        let mut wheel = Wheel::new(0);
        wheel.arm((7, 1), 3_600_000);
        let mut looks = 0;
        wheel.due(600_000, |_, due| looks += due.len());
        assert_eq!(looks, 1);
    }
}
