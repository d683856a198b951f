//! Requests that leave no row in the store: transient messages, and publishes on topics. Their keys are remembered in memory,
//! so a repetition is known as long as the server runs, and as long as not too many others came in between.

use crate::id::*;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The first answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct First {
    pub id: MessageId,
    /// Devices, or sessions, that it was for.
    pub count: u64,
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    New,
    Repeated(First),
    /// The same request is not on stable storage yet.
    UnderWay,
    Other,
}

/// See the module. Each app has a table of its own, so that none forgets for another.
#[derive(Default)]
pub(crate) struct Repeats(Mutex<FxHashMap<AppNo, Table>>);

#[derive(Default)]
struct Table {
    by_key: FxHashMap<u128, Entry>,
    /// In the order in which they came; as each is kept for the same time, in the order in which they go.
    order: VecDeque<(u128, UnixMillis)>,
}

#[derive(Clone, Copy)]
struct Entry {
    request: u128,
    keep_until: UnixMillis,
    answer: Option<First>,
}

/// A request with a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub app: AppNo,
    pub key: u128,
    pub request: u128,
}

impl Repeats {
    pub fn look_up(&self, asked: Asked, now: UnixMillis) -> Known {
        let all = self.lock();
        all.get(&asked.app).map_or(Known::New, |table| table.look_up(asked, now))
    }

    /// Remembers a request that is new; else says what is known of it. Beyond `max` keys the oldest is forgotten.
    pub fn begin(
        &self,
        asked: Asked,
        answer: Option<First>,
        (now, keep_until): (UnixMillis, UnixMillis),
        max: usize,
    ) -> Known {
        let mut all = self.lock();
        let table = all.entry(asked.app).or_default();
        let known = table.look_up(asked, now);
        if known == Known::New {
            table.make_room(now, max);
            table.by_key.insert(asked.key, Entry { request: asked.request, keep_until, answer });
            table.order.push_back((asked.key, keep_until));
        }
        known
    }

    /// The answer to a request that was begun without; none: it failed, and may be tried again.
    pub fn settle(&self, asked: Asked, answer: Option<First>) {
        let mut all = self.lock();
        let Some(table) = all.get_mut(&asked.app) else { return };
        match (table.by_key.get_mut(&asked.key), answer) {
            (Some(entry), Some(_)) if entry.request == asked.request => entry.answer = answer,
            (Some(entry), None) if entry.request == asked.request => _ = table.by_key.remove(&asked.key),
            _ => {}
        }
    }

    /// Keys remembered, of all apps.
    pub fn len(&self) -> usize {
        self.lock().values().map(|table| table.by_key.len()).sum()
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<AppNo, Table>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn look_up(&self, asked: Asked, now: UnixMillis) -> Known {
        match self.by_key.get(&asked.key).filter(|entry| entry.keep_until > now) {
            None => Known::New,
            Some(entry) if entry.request != asked.request => Known::Other,
            Some(Entry { answer: Some(first), .. }) => Known::Repeated(*first),
            Some(_) => Known::UnderWay,
        }
    }

    fn make_room(&mut self, now: UnixMillis, max: usize) {
        while let Some((key, keep_until)) = self.order.front().copied() {
            if keep_until > now && self.order.len() < max.max(1) {
                break;
            }
            self.order.pop_front();
            // It may have failed and come again since: then it has another place in the order.
            if self.by_key.get(&key).is_some_and(|entry| entry.keep_until == keep_until) {
                self.by_key.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: AppNo = AppNo(0);

    fn asked(key: u128) -> Asked {
        Asked { app: APP, key, request: key }
    }

    #[test]
    fn a_key_is_remembered_for_its_time_and_the_oldest_goes_first() {
        let repeats = Repeats::default();
        let first = |count: u64| Some(First { id: MessageId(count.into()), count });
        for key in 0..5u64 {
            assert_eq!(repeats.begin(asked(key.into()), first(key), (key, key + 100), 3), Known::New);
        }
        assert_eq!(repeats.len(), 3);
        assert_eq!(repeats.look_up(asked(1), 5), Known::New);
        assert_eq!(repeats.begin(asked(4), first(9), (5, 105), 3), Known::Repeated(first(4).unwrap()));
        assert_eq!(repeats.look_up(Asked { request: 7, ..asked(4) }, 5), Known::Other);
        assert_eq!(repeats.look_up(Asked { app: AppNo(1), ..asked(4) }, 5), Known::New);
        assert_eq!(repeats.look_up(asked(4), 104), Known::New, "its time is over");
    }

    #[test]
    fn a_request_under_way_is_done_once_and_one_that_failed_may_come_again() {
        let repeats = Repeats::default();
        assert_eq!(repeats.begin(asked(1), None, (0, 100), 10), Known::New);
        assert_eq!(repeats.begin(asked(1), None, (1, 101), 10), Known::UnderWay);
        repeats.settle(asked(1), None);
        assert_eq!(repeats.begin(asked(1), None, (2, 102), 10), Known::New);
        let first = First { id: MessageId(0), count: 3 };
        repeats.settle(asked(1), Some(first));
        assert_eq!(repeats.look_up(asked(1), 101), Known::Repeated(first));
        assert_eq!(repeats.look_up(asked(1), 102), Known::New);
    }
}
