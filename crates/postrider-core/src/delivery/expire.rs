//! Step 6. Time passes. The binary calls [`Engine::tick`] a few times a second; nothing here keeps a timer of its own.

use crate::Engine;
use crate::command::*;
use crate::id::*;
use crate::port::*;
use crate::session::{Client, Will};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Deliveries, sessions and reports that one command ends, at most, so that a mass expiry does not hold up everybody else.
const EXPIRE_BATCH: u32 = 2_000;
/// Sessions in memory that end while the hub is held.
const IDLE_BATCH: usize = 256;

/// One command's turn. Its submitter comes out of `submit`, and its outcome is told, in either order: whoever is second goes on.
#[derive(Default)]
struct Turn {
    one_is_done: AtomicBool,
    more: AtomicBool,
}

impl Turn {
    fn is_second(&self) -> bool {
        self.one_is_done.swap(true, Ordering::AcqRel)
    }

    fn more(&self) -> bool {
        self.more.load(Ordering::Acquire)
    }
}

impl Engine {
    /// Does what is due: expiry in the store, acknowledgements put off, sessions in memory, delayed wills.
    pub fn tick(&self) {
        let now = self.clock.now();
        let is_due = self.store.next_expiry().is_some_and(|due| due <= now) || self.sweep_due(now);
        // While one round goes on, it sees to what becomes due meanwhile.
        if is_due && !self.expiring.swap(true, Ordering::AcqRel) {
            self.expire();
        }
        self.store_put_off_acks();
        while self.end_idle(now) {}
        for (app, client, will) in self.wills.due(now) {
            self.publish_will(app, &client, &will);
        }
        self.connects.forget(now);
        self.empty_closed_app();
        self.prune_unseen(now);
    }

    /// Ends some sessions in memory whose time is over; true if there may be more of them.
    fn end_idle(&self, now: UnixMillis) -> bool {
        let mut hub = self.hub_mut();
        for _ in 0..IDLE_BATCH {
            let Some((_, session)) = hub.idle.first().copied().filter(|(ends_at, _)| *ends_at <= now) else {
                return false;
            };
            hub.remove(session);
        }
        true
    }

    /// Command after command, until nothing is due any more; others' commands come in between.
    fn expire(&self) {
        loop {
            let turn = Arc::new(Turn::default());
            self.expire_some(&turn);
            if !turn.is_second() {
                return;
            }
            if !turn.more() {
                return self.expiring.store(false, Ordering::Release);
            }
        }
    }

    fn expire_some(&self, turn: &Arc<Turn>) {
        let (engine, turn, now) = (self.clone(), turn.clone(), self.clock.now());
        let history_before = now.saturating_sub(self.limits.history_keep.as_millis() as u64);
        let command = Command::Expire {
            now,
            limit: EXPIRE_BATCH,
            history_before,
            history_max: self.limits.history_max,
        };
        let done: Done = Box::new(move |mut outcomes| {
            if let Ok(outcomes) = &mut outcomes {
                engine.wake_takers(outcomes);
            }
            if let Ok([Outcome::Expired { sessions, more, .. }]) = outcomes.as_deref() {
                engine.close_expired(sessions);
                engine.nudge_job_workers();
                turn.more.store(*more, Ordering::Release);
            }
            match turn.is_second() {
                true if turn.more() => engine.expire(),
                true => engine.expiring.store(false, Ordering::Release),
                false => {}
            }
        });
        self.store.submit(vec![command], done);
    }

    fn close_expired(&self, sessions: &[DeviceRef]) {
        let mut closing = Vec::new();
        let mut hub = self.hub_mut();
        for at in sessions {
            let Some(no) = hub.apps.get(&at.app).and_then(|a| a.devices.get(&at.device)).copied() else {
                continue;
            };
            // Someone may have come back in this very moment: then the connection has to begin anew.
            closing.extend(hub.get(no).and_then(|s| s.connection));
            hub.remove(no);
        }
        drop(hub);
        closing.iter().for_each(|c| self.connections().close(*c, Farewell::SessionEnded));
    }

    /// Old reports and request keys are swept once a minute, whether or not anything expires.
    fn sweep_due(&self, now: UnixMillis) -> bool {
        let mut last = self.last_sweep.lock().unwrap_or_else(PoisonError::into_inner);
        let due = now >= *last + 60_000;
        if due {
            *last = now;
        }
        due
    }
}

/// Wills that wait for their delay (MQTT 5 §3.1.3.2.2).
#[derive(Default)]
pub(crate) struct Wills(Mutex<WillsInner>);

/// A will and whose it is.
type Waiting = (AppNo, Arc<str>, Box<Will>);

#[derive(Default)]
struct WillsInner {
    by_time: BTreeMap<(UnixMillis, u64), Waiting>,
    by_client: FxHashMap<(AppNo, Arc<str>), (UnixMillis, u64)>,
    count: u64,
    bytes: usize,
    dropped: u64,
}

impl WillsInner {
    fn forget(&mut self, key: (UnixMillis, u64)) -> Option<Waiting> {
        let waiting = self.by_time.remove(&key)?;
        self.bytes -= size(&waiting.2);
        Some(waiting)
    }
}

/// What a will takes in memory, near enough.
fn size(will: &Will) -> usize {
    let topic = will.content.topic.as_ref().map_or(0, String::len);
    will.content.payload.len() + topic + 300
}

impl Wills {
    /// Beyond so many waiting wills, or bytes of them, the new one is dropped, with a warning.
    pub fn add(
        &self,
        due: UnixMillis,
        app: AppNo,
        client: Arc<str>,
        will: Box<Will>,
        (max, bytes_max): (usize, usize),
    ) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = inner.bytes + size(&will);
        if inner.by_time.len() >= max || bytes > bytes_max {
            inner.dropped += 1;
            tracing::warn!(client = &*client, "too many delayed wills wait; this one is dropped");
            return;
        }
        inner.bytes = bytes;
        inner.count += 1;
        let key = (due, inner.count);
        inner.by_time.insert(key, (app, client.clone(), will));
        inner.by_client.insert((app, client), key);
    }

    /// The client came back in time (MQTT-3.1.3-9): its will waits no longer.
    pub fn take(&self, app: AppNo, client: &str) -> Option<Box<Will>> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.by_client.is_empty() {
            return None;
        }
        let key = inner.by_client.remove(&(app, client.into()))?;
        inner.forget(key).map(|(_, _, will)| will)
    }

    fn due(&self, now: UnixMillis) -> Vec<Waiting> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        while let Some(first) =
            inner.by_time.first_key_value().map(|(key, _)| *key).filter(|key| key.0 <= now)
            && let Some((app, client, will)) = inner.forget(first)
        {
            inner.by_client.remove(&(app, client.clone()));
            due.push((app, client, will));
        }
        due
    }
}

impl Wills {
    /// How many were dropped because too many waited.
    pub fn dropped(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).dropped
    }
}

/// How often each client connects (L33): a fixed window of a minute, only of those who came in it.
#[derive(Default)]
pub(crate) struct Connects(Mutex<Window>);

#[derive(Default)]
struct Window {
    since: UnixMillis,
    counts: FxHashMap<(AppNo, String), u32>,
}

impl Connects {
    pub fn allow(&self, client: &Client, now: UnixMillis, per_minute_max: u32) -> bool {
        if per_minute_max == 0 {
            return true;
        }
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.since == 0 {
            window.since = now;
        }
        let count = window.counts.entry((client.app, client.id.clone())).or_default();
        *count += 1;
        *count <= per_minute_max
    }

    fn forget(&self, now: UnixMillis) {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.since + 60_000 <= now {
            *window = Window { since: now, counts: FxHashMap::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Content;

    #[test]
    fn delayed_wills_are_bounded_in_bytes_and_give_them_back() {
        let wills = Wills::default();
        let will = |len: usize| {
            let content = Content { topic: Some("t".into()), payload: vec![0; len].into(), properties: None };
            Box::new(Will {
                content: Arc::new(content),
                qos: 0,
                retain: false,
                expiry_secs: None,
                delay_secs: 9,
            })
        };
        let add = |due, client: &str, len| {
            wills.add(due, AppNo(0), client.into(), will(len), (3, 3_000));
            wills.0.lock().unwrap().by_time.len()
        };
        assert_eq!((add(1, "a", 2_000), add(2, "b", 2_000), add(3, "c", 100)), (1, 1, 2));
        assert_eq!(wills.dropped(), 1);
        assert!(wills.take(AppNo(0), "c").is_some() && wills.due(1).len() == 1);
        assert_eq!(wills.0.lock().unwrap().bytes, 0);
        assert_eq!((add(4, "d", 10), add(4, "e", 10), add(4, "f", 10), add(4, "g", 10)), (1, 2, 3, 3));
    }
}
