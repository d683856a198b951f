//! What happens to a connection because time passes.

use super::conn::Phase;
use super::driver::Driver;
use postrider_proto::{Goodbye, Millis, Output};

impl Driver {
    /// Enters the connection into the wheel for its next deadline, where that lies before the entry it has.
    pub(super) fn rearm(&mut self, slot: u32) {
        let Some(deadline) = self.next_deadline(slot) else { return };
        let place = (slot, self.reference(slot).generation);
        let armed = self.conn(slot).map_or(0, |c| Millis::from(c.armed));
        // A later deadline is found out when the entry comes up.
        if armed * 1_000 > self.now && armed * 1_000 <= deadline {
            return;
        }
        let tick = self.wheel.arm(place, deadline);
        if let Some(conn) = self.conn(slot) {
            conn.armed = tick as u32;
        }
    }

    fn next_deadline(&mut self, slot: u32) -> Option<Millis> {
        let (now, slow_ms) = (self.now, self.shared.config.slow_reader_ms);
        let conn = self.conn(slot)?;
        let protocol = if conn.phase == Phase::Open { conn.protocol.as_mut().next_timeout() } else { None };
        let slow = conn.blocked_since().map(|since| since + slow_ms);
        let paused = conn.paused.then_some(now + 1_000);
        [protocol, conn.deadline(), slow, paused].into_iter().flatten().min()
    }

    pub(super) fn look_at_deadlines(&mut self) {
        let mut all = Vec::new();
        if self.wheel.next() <= self.now {
            self.retry_listeners();
        }
        self.wheel.due(self.now, |tick, places| all.extend(places.into_iter().map(|p| (tick, p))));
        for (tick, (slot, generation)) in all {
            let same =
                self.conn(slot).is_some_and(|c| c.generation == generation && u64::from(c.armed) == tick);
            if same {
                self.guarded(slot, |d| d.look_at(slot));
            }
        }
    }

    fn look_at(&mut self, slot: u32) {
        let (now, slow_ms) = (self.now, self.shared.config.slow_reader_ms);
        let Some(conn) = self.conn(slot) else { return };
        conn.armed = 0;
        if conn.deadline().is_some_and(|d| d <= now) {
            return self.close_now(slot, "lingered");
        }
        if conn.blocked_since().is_some_and(|since| since + slow_ms <= now) {
            self.shared.metrics.slow_readers_closed.inc();
            self.say_goodbye(slot, Goodbye::SlowReader);
            return self.close_now(slot, "slow_reader");
        }
        if conn.paused {
            self.resume(slot);
        }
        if self.has_waited(slot) {
            return self.give_back(slot, true);
        }
        let due = self.conn(slot).filter(|c| c.is_open()).and_then(|c| c.protocol.as_mut().next_timeout());
        if due.is_some_and(|d| d <= now) {
            let mut output: Output = std::mem::take(&mut self.output);
            if let Some(conn) = self.conn(slot) {
                conn.protocol.as_mut().handle_timeout(now, &mut output);
            }
            self.act_on(slot, output);
        }
        // Wakes are best effort: should one ever be lost, this finds what it was for.
        self.want_drain(slot);
        self.rearm(slot);
    }

    /// The publisher's budget has refilled: read on.
    fn resume(&mut self, slot: u32) {
        let (now, rate, burst) =
            (self.now, self.shared.config.publishes_per_sec, self.shared.config.publishes_burst);
        let Some(conn) = self.conn(slot) else { return };
        let budget = conn.busy.as_mut().and_then(|b| b.budget.as_mut());
        if budget.is_none_or(|b| b.refill(rate, burst, now)) {
            conn.paused = false;
            self.readable(slot);
        }
    }
}
