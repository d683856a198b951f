//! Collapse keys: of the messages with one key that wait for a device, it keeps the newest few.
//!
//! Each device is counted for itself, its direct messages and the broadcasts that are open for it together. What other devices
//! have waiting with the same key is not looked at.

use super::app::App;
use super::casts::{Casts, Messages};
use super::message::KEEP_ALL;
use super::{Effects, State};
use crate::id::*;
use crate::model::*;
use crate::seeded::{self, Bug};

const SUPERSEDED: (Step, Reason) = (Step::Superseded, Reason::Collapsed);

impl State {
    /// A message with a collapse key was accepted: its devices keep the newest of that key, this one counted.
    pub(super) fn collapse(&mut self, newest: Seq, effects: &mut Effects) {
        let Some(message) = self.messages.get(&newest) else { return };
        let Some((group, keep)) = message.extra.as_ref().and_then(|extra| extra.group) else { return };
        let by_first_rules = self.rules.are_the_first();
        if keep == KEEP_ALL && !by_first_rules {
            return;
        }
        let (app, at, keep) = (message.app, message.accepted_at, usize::from(keep.max(1)));
        let broadcast = message.broadcast().cloned();
        if let Some(devices) = broadcast.as_ref().filter(|_| by_first_rules) {
            return self.collapse_by_first_rules(newest, devices, (group, keep), effects);
        }
        let Some(devices) = broadcast else {
            for device in message.direct() {
                self.collapse_one(DeviceRef { app, device }, (group, keep), newest, at, effects);
            }
            return;
        };
        let Some(tenant) = self.app_ref(app) else { return };
        let mixed = with_direct(tenant, group, &devices);
        let surplus = tenant
            .casts
            .group(group)
            .map_or(Vec::new(), |casts| surplus(casts, newest, &(&devices - &mixed), keep, &self.messages));
        for (seq, ending) in surplus {
            self.end_some(seq, &ending, SUPERSEDED, at, effects);
        }
        for device in mixed {
            let device = DeviceNo(device);
            self.collapse_one(DeviceRef { app, device }, (group, keep), newest, at, effects);
        }
    }

    fn collapse_one(
        &mut self,
        at: DeviceRef,
        (group, keep): (u64, usize),
        newest: Seq,
        now: UnixMillis,
        effects: &mut Effects,
    ) {
        let Some(app) = self.app_ref(at.app) else { return };
        let mut pending: Vec<Seq> = direct(app, group, at.device).collect();
        if let Some(casts) = app.casts.group(group) {
            pending.extend(casts.open_for(at.device, 0, &self.messages));
            pending.sort_unstable();
        }
        let surplus = pending.len().saturating_sub(keep);
        if seeded::is(Bug::CollapseTakesNewest) && surplus > 0 {
            pending = vec![newest];
        }
        for old in pending.into_iter().take(surplus) {
            self.end_one(at, old, SUPERSEDED, now, effects);
        }
    }
}

/// A device's own messages with the key, in order.
fn direct(app: &App, group: u64, device: DeviceNo) -> impl Iterator<Item = Seq> {
    let of_device = (group, device.0, Seq::MIN)..=(group, device.0, Seq::MAX);
    app.keyed.range(of_device).map(|(_, _, seq)| *seq)
}

/// Those of the devices that have direct messages with the key. Costs as many steps as the smaller of both sides has devices.
fn with_direct(app: &App, group: u64, devices: &DeviceSet) -> DeviceSet {
    let mut found = DeviceSet::new();
    let mut wanted = devices.iter();
    while let Some(device) = wanted.next() {
        let next = app.keyed.range((group, device, Seq::MIN)..=(group, u32::MAX, Seq::MAX)).next();
        let Some((_, holder, _)) = next else { break };
        if *holder == device {
            found.insert(device);
        } else {
            wanted.advance_to(*holder);
        }
    }
    found
}

/// What is above the newest `keep` of the key, for devices that have broadcasts of it only: which broadcasts end for whom.
/// Counts all devices at once: how many more each may keep, in binary, one set of devices for each digit.
fn surplus(
    casts: &Casts,
    newest: Seq,
    devices: &DeviceSet,
    keep: usize,
    messages: &Messages,
) -> Vec<(Seq, DeviceSet)> {
    let older_kept = keep - 1;
    // Each counter begins so far below its end that it runs over with the last that is kept.
    let digits = older_kept.next_power_of_two().trailing_zeros();
    let start = (1 << digits) - older_kept;
    let digit = |place: u32| if start >> place & 1 == 1 { devices.clone() } else { DeviceSet::new() };
    let mut counters: Vec<DeviceSet> = (0..digits).map(digit).collect();
    let mut full = if older_kept == 0 { devices.clone() } else { DeviceSet::new() };
    let mut ends = Vec::new();
    for (seq, open) in casts.meeting(devices, messages).filter(|(seq, _)| *seq != newest) {
        let open = open & devices;
        let ending = &open & &full;
        let mut carry = open - &full;
        for counter in &mut counters {
            let next = &*counter & &carry;
            *counter ^= &carry;
            carry = next;
        }
        full |= carry;
        if !ending.is_empty() {
            ends.push((seq, ending));
        }
    }
    ends.reverse();
    ends
}
