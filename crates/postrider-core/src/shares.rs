//! Shared subscriptions: what a member leaves is handed on to another one (MQTT 5 §4.8.2).
//!
//! Messages at QoS 1 and 2 lie in the inbox of a member from the beginning, also where its session ends with its
//! connection, so that they can go on to the next one in the same commit in which the member goes.

use crate::Engine;
use crate::command::*;
use crate::hub::Session;
use crate::id::*;
use crate::model::share_name;
use crate::port::*;
use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Members that are away and are looked into when one comes.
const AWAY_MAX: usize = 1_000;

/// Why a member hands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parting {
    /// It may come back for what it was sent. Others get the rest, where there are some.
    Away,
    /// It goes on, without the subscription.
    Unsubscribed,
    /// For good. What it did not acknowledge is sent to another; of QoS 2 only what it never got.
    Over,
}

impl Session {
    /// The shared subscriptions, by name.
    pub fn shares(&self) -> Vec<String> {
        let named = |s: &crate::hub::SessionSub| Some(share_name(s.share.as_deref()?, &s.filter));
        self.subscriptions.iter().filter_map(named).collect()
    }
}

impl Engine {
    /// What a member gives up; `shares` none: of all its shared subscriptions. Until that is committed it gets nothing of it.
    pub(crate) fn hand_on(
        &self,
        at: DeviceRef,
        why: Parting,
        shares: Option<Vec<String>>,
    ) -> Option<Command> {
        self.handing.begin(at);
        let entries = self.store.shared_entries(at);
        if entries.is_empty() {
            self.handing.end(at);
            return None;
        }
        // What an earlier life of the server sent is not known.
        let perhaps_sent = |e: &SharedEntry| e.is_sent || (e.qos == 2 && e.accepted_at < self.started);
        let stays = |e: &&SharedEntry| perhaps_sent(e) && (why != Parting::Over || e.qos == 2);
        Some(Command::HandOn(Box::new(HandOn {
            at,
            stay: entries.iter().filter(stays).map(|e| e.seq).collect(),
            shares,
            only_here: why == Parting::Away,
            inbox_max: self.limits.inbox_max,
            inbox_bytes_max: self.limits.inbox_bytes_max,
        })))
    }

    /// Commits what a connect changes: the shared subscriptions of a session that it ended, and those that it came back to.
    pub(crate) fn submit_connect(
        &self,
        at: Option<DeviceRef>,
        (left, shares): (Option<Vec<String>>, Vec<String>),
        mut commands: Vec<Command>,
    ) {
        if let Some(at) = at.filter(|_| left.is_some()) {
            commands.splice(0..0, self.hand_on(at, Parting::Over, left));
        }
        match at.filter(|_| !shares.is_empty()) {
            Some(at) => self.submit_arrival(at, shares, commands, Box::new(|_| {})),
            None => self.submit_quietly(commands),
        }
    }

    /// Commits what the end of a connection changes; `hands_on`: a member, marked as handing on, whose session is kept or not.
    pub(crate) fn submit_parting_of(
        &self,
        hands_on: Option<DeviceRef>,
        is_kept: bool,
        mut commands: Vec<Command>,
    ) {
        if let Some(at) = hands_on {
            let why = if is_kept { Parting::Away } else { Parting::Over };
            // Before the session's end, which would end them; after a leave, which makes it one of those that are away.
            let place = if is_kept { commands.len() } else { 0 };
            commands.splice(place..place, self.hand_on(at, why, None));
            self.handing.end(at);
        }
        self.submit_quietly(commands);
    }

    /// Commits changes of sessions, and wakes who got something by them.
    pub(crate) fn submit_parting(&self, commands: Vec<Command>, done: Done) {
        let engine = self.clone();
        let of = |command: &Command| match command {
            Command::HandOn(hand_on) => Some(hand_on.at),
            _ => None,
        };
        let givers: Vec<DeviceRef> = commands.iter().filter_map(of).collect();
        let done: Done = Box::new(move |outcomes| {
            givers.iter().for_each(|at| engine.handing.end(*at));
            engine.wake_anew(&givers);
            done(outcomes.map(|mut outcomes| {
                engine.wake_takers(&mut outcomes);
                outcomes
            }));
        });
        self.store.submit(commands, done);
    }

    /// The same for a member that comes: what lies with those who are away goes to it when it is the only one there.
    pub(crate) fn submit_arrival(
        &self,
        at: DeviceRef,
        shares: Vec<String>,
        commands: Vec<Command>,
        done: Done,
    ) {
        if shares.is_empty() {
            return self.submit_parting(commands, done);
        }
        let engine = self.clone();
        let done: Done = Box::new(move |outcomes| {
            if outcomes.is_ok() {
                engine.gather(at, &shares);
            }
            done(outcomes);
        });
        self.submit_parting(commands, done);
    }

    fn gather(&self, at: DeviceRef, shares: &[String]) {
        let mut commands = Vec::new();
        for share in shares {
            for from in self.store.members_away(at, share, AWAY_MAX) {
                // Who comes back after this is sent nothing; who is back by now keeps what it has.
                self.handing.begin(from);
                if self.connection_of(from).is_none() {
                    commands.extend(self.hand_on(from, Parting::Away, Some(vec![share.clone()])));
                }
                self.handing.end(from);
            }
        }
        self.submit_quietly(commands);
    }

    /// Wakes who got messages of others. For those who wait for the outcomes nothing is different by that.
    pub(crate) fn wake_takers(&self, outcomes: &mut [Outcome]) {
        let mut takers = Vec::new();
        for outcome in outcomes {
            match outcome {
                Outcome::HandedOn(some) => {
                    takers.append(some);
                    *outcome = Outcome::Done;
                }
                Outcome::Expired { handed_on, .. } => takers.append(handed_on),
                _ => {}
            }
        }
        self.wake_anew(&takers);
    }

    fn wake_anew(&self, devices: &[DeviceRef]) {
        if devices.is_empty() {
            return;
        }
        let hub = self.hub();
        let connections = devices.iter().filter_map(|at| hub.by_device(*at)?.connection).collect::<Vec<_>>();
        drop(hub);
        self.connections().wake_anew(&connections);
    }
}

/// Devices whose shared messages are about to go to others, by a commit that is under way. A connection that comes in that
/// moment must not get them as well.
#[derive(Default)]
pub(crate) struct Handing {
    /// How many there are, so that a drain nearly always asks no more than this.
    count: AtomicUsize,
    devices: Mutex<FxHashMap<DeviceRef, u32>>,
}

impl Handing {
    pub fn begin(&self, at: DeviceRef) {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        *devices.entry(at).or_default() += 1;
        self.count.store(devices.len(), Ordering::SeqCst);
    }

    pub fn end(&self, at: DeviceRef) {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = devices.get_mut(&at) {
            *count -= 1;
            if *count == 0 {
                devices.remove(&at);
            }
        }
        self.count.store(devices.len(), Ordering::SeqCst);
    }

    pub fn is_under_way(&self, at: DeviceRef) -> bool {
        self.count.load(Ordering::SeqCst) > 0
            && self.devices.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&at)
    }
}
