//! The live broadcasts of an app, so that those open for one device are found without looking at the others.
//!
//! Which devices a broadcast is still open for lies in its message. Here the broadcasts lie in order, in blocks, and blocks
//! in parts; each keeps a set of all devices that any broadcast in it *may* be open for. A device that is not in
//! that set passes the whole block by. All of it is an index: it is made again after a start.

use super::message::Message;
use crate::id::*;
use crate::model::DeviceSet;
use rustc_hash::FxHashMap;

pub(super) type Messages = FxHashMap<Seq, Message>;

/// Broadcasts in a block, blocks in a part.
const BLOCK: usize = 32;
const PART: usize = 64;
/// So few are looked at one by one, without a set of their own.
const FEW: usize = 4;

/// Everything that is known of an app's live broadcasts beside the messages themselves.
#[derive(Debug, Default)]
pub(crate) struct Broadcasts {
    urgent: Casts,
    normal: Casts,
    /// By the hash of the collapse key.
    groups: FxHashMap<u64, Casts>,
    /// How many are open for each device.
    counts: OpenCounts,
}

/// What the index has to know of a broadcast.
#[derive(Clone, Copy)]
pub(crate) struct Cast {
    pub seq: Seq,
    pub urgent: bool,
    pub group: Option<u64>,
}

impl Broadcasts {
    /// A broadcast begins; its message is known, and open for `devices`. Broadcasts begin in order.
    pub fn begin(&mut self, cast: Cast, devices: &DeviceSet, messages: &Messages) {
        self.lane_mut(cast.urgent).push(cast.seq, devices, messages);
        if let Some(group) = cast.group {
            self.groups.entry(group).or_default().push(cast.seq, devices, messages);
        }
        self.counts.add(devices);
    }

    /// It is open for one device less; the message says so already.
    pub fn leave(&mut self, cast: Cast, device: DeviceNo, messages: &Messages) {
        self.counts.subtract_one(device);
        self.lane_mut(cast.urgent).leave(cast.seq, device, messages);
        if let Some(group) = cast.group.and_then(|group| self.groups.get_mut(&group)) {
            group.leave(cast.seq, device, messages);
        }
    }

    /// It is open for these devices no more; the message says so already.
    pub fn leave_all(&mut self, cast: Cast, devices: &DeviceSet, messages: &Messages) {
        self.counts.subtract(devices);
        self.lane_mut(cast.urgent).thin(cast.seq, messages);
        if let Some(group) = cast.group.and_then(|group| self.groups.get_mut(&group)) {
            group.thin(cast.seq, messages);
        }
    }

    /// It is open for nobody any more.
    pub fn end(&mut self, cast: Cast, messages: &Messages) {
        self.lane_mut(cast.urgent).remove(cast.seq, messages);
        if let Some(group) = cast.group
            && let Some(casts) = self.groups.get_mut(&group)
        {
            casts.remove(cast.seq, messages);
            if casts.parts.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    pub fn lane(&self, urgent: bool) -> &Casts {
        if urgent { &self.urgent } else { &self.normal }
    }

    fn lane_mut(&mut self, urgent: bool) -> &mut Casts {
        if urgent { &mut self.urgent } else { &mut self.normal }
    }

    /// Those with the collapse key.
    pub fn group(&self, group: u64) -> Option<&Casts> {
        self.groups.get(&group)
    }

    /// How many are open for the device.
    pub fn open_count(&self, device: DeviceNo) -> usize {
        self.counts.of(device)
    }
}

/// Broadcasts in order.
#[derive(Debug, Default)]
pub(crate) struct Casts {
    parts: Vec<Part>,
}

#[derive(Debug, Default)]
struct Part {
    blocks: Vec<Block>,
    reach: Reach,
}

#[derive(Debug, Default)]
struct Block {
    seqs: Vec<Seq>,
    reach: Reach,
}

/// Whom something may be open for: nobody else, but perhaps not all of them. `None`: not known, it has to be looked at.
#[derive(Debug, Default)]
struct Reach {
    devices: Option<DeviceSet>,
    /// How often it lost devices or broadcasts since it was exact.
    stale: usize,
}

impl Reach {
    fn may_hold(&self, device: DeviceNo) -> bool {
        self.devices.as_ref().is_none_or(|devices| devices.contains(device.0))
    }

    fn may_meet(&self, other: &DeviceSet) -> bool {
        self.devices.as_ref().is_none_or(|devices| !devices.is_disjoint(other))
    }

    fn widen(&mut self, devices: &DeviceSet) {
        if let Some(all) = &mut self.devices {
            *all |= devices;
        }
    }
}

fn open_set(messages: &Messages, seq: Seq) -> Option<&DeviceSet> {
    messages.get(&seq)?.broadcast()
}

fn is_open(messages: &Messages, seq: Seq, device: DeviceNo) -> bool {
    open_set(messages, seq).is_some_and(|open| open.contains(device.0))
}

impl Block {
    /// Devices take the oldest first, so the newest is the one to tell soonest that there is more.
    fn holds(&self, device: DeviceNo, messages: &Messages) -> bool {
        self.seqs.iter().rev().any(|seq| is_open(messages, *seq, device))
    }

    /// Told by its set, where it has one.
    fn may_hold(&self, device: DeviceNo, messages: &Messages) -> bool {
        match &self.reach.devices {
            Some(devices) => devices.contains(device.0),
            None => self.holds(device, messages),
        }
    }

    /// Looks at each of its broadcasts, where there are enough of them.
    fn look(&mut self, messages: &Messages) {
        let union = || self.seqs.iter().filter_map(|seq| open_set(messages, *seq)).fold(DeviceSet::new(), or);
        self.reach = Reach { devices: (self.seqs.len() >= FEW).then(union), stale: 0 };
    }
}

fn or(mut all: DeviceSet, more: &DeviceSet) -> DeviceSet {
    all |= more;
    all
}

impl Part {
    /// Made of what its blocks know, and of what lies in those that know nothing.
    fn look(&mut self, messages: &Messages) {
        let union = || {
            let known = self.blocks.iter().filter_map(|block| block.reach.devices.as_ref());
            let unknown = self.blocks.iter().filter(|block| block.reach.devices.is_none());
            let sets = unknown.flat_map(|b| &b.seqs).filter_map(|seq| open_set(messages, *seq));
            known.chain(sets).fold(DeviceSet::new(), or)
        };
        self.reach = Reach { devices: (self.blocks.len() >= FEW).then(union), stale: 0 };
    }

    fn len(&self) -> usize {
        self.blocks.iter().map(|block| block.seqs.len()).sum()
    }
}

impl Casts {
    fn push(&mut self, seq: Seq, devices: &DeviceSet, messages: &Messages) {
        if self.parts.last().is_none_or(Part::is_full) {
            self.parts.push(Part::default());
        }
        let Some(part) = self.parts.last_mut() else { return };
        if part.blocks.last().is_none_or(|block| block.seqs.len() >= BLOCK) {
            part.blocks.push(Block::default());
        }
        let Some(block) = part.blocks.last_mut() else { return };
        block.seqs.push(seq);
        if block.reach.devices.is_some() {
            block.reach.widen(devices);
        } else if block.seqs.len() >= FEW {
            block.look(messages);
        }
        if part.reach.devices.is_some() {
            part.reach.widen(devices);
        } else if part.blocks.len() >= FEW {
            part.look(messages);
        }
    }

    /// Its part and block.
    fn find(&self, seq: Seq) -> Option<(usize, usize)> {
        let part = self.parts.partition_point(|part| part.first() <= seq).checked_sub(1)?;
        let block = self.parts[part].blocks.partition_point(|block| block.seqs[0] <= seq).checked_sub(1)?;
        Some((part, block))
    }

    fn leave(&mut self, seq: Seq, device: DeviceNo, messages: &Messages) {
        let Some((p, b)) = self.find(seq) else { return };
        let part = &mut self.parts[p];
        let block = &mut part.blocks[b];
        if block.reach.devices.is_none() && part.reach.devices.is_none() || block.holds(device, messages) {
            return;
        }
        if let Some(devices) = &mut block.reach.devices {
            devices.remove(device.0);
        }
        if let Some(devices) = &mut part.reach.devices
            && !part.blocks.iter().rev().any(|block| block.may_hold(device, messages))
        {
            devices.remove(device.0);
        }
    }

    /// A broadcast lost many devices at once: now and then the sets are made anew.
    fn thin(&mut self, seq: Seq, messages: &Messages) {
        let Some((p, b)) = self.find(seq) else { return };
        self.note_loss(p, b, messages);
    }

    fn note_loss(&mut self, p: usize, b: usize, messages: &Messages) {
        let part = &mut self.parts[p];
        let block = &mut part.blocks[b];
        block.reach.stale += 1;
        if block.reach.stale * 2 > block.seqs.len() {
            block.look(messages);
        }
        part.reach.stale += 1;
        if part.reach.stale * 2 > part.len() {
            part.look(messages);
        }
    }

    fn remove(&mut self, seq: Seq, messages: &Messages) {
        let Some((p, b)) = self.find(seq) else { return };
        let blocks = &mut self.parts[p].blocks;
        let Ok(place) = blocks[b].seqs.binary_search(&seq) else { return };
        blocks[b].seqs.remove(place);
        let is_small = |block: Option<&Block>, other: usize| {
            block.is_some_and(|block| block.seqs.len() + other <= BLOCK / 2)
        };
        let len = blocks[b].seqs.len();
        if len == 0 {
            blocks.remove(b);
        } else if is_small(blocks.get(b + 1), len) {
            let next = blocks.remove(b + 1);
            blocks[b].seqs.extend(next.seqs);
            blocks[b].look(messages);
        } else {
            return self.note_loss(p, b, messages);
        }
        if self.parts[p].blocks.is_empty() {
            self.parts.remove(p);
            return;
        }
        self.unite_parts(p, messages);
    }

    /// Parts that became small are put together, so that there are not more of them than the broadcasts need.
    fn unite_parts(&mut self, p: usize, messages: &Messages) {
        let len = self.parts[p].blocks.len();
        if self.parts.get(p + 1).is_some_and(|next| next.blocks.len() + len <= PART / 2) {
            let next = self.parts.remove(p + 1);
            self.parts[p].blocks.extend(next.blocks);
            self.parts[p].look(messages);
            return;
        }
        let part = &mut self.parts[p];
        part.reach.stale += 1;
        if part.reach.stale * 2 > part.len() {
            part.look(messages);
        }
    }

    /// All of them, in order.
    pub fn seqs(&self) -> impl Iterator<Item = Seq> + '_ {
        self.parts.iter().flat_map(|part| &part.blocks).flat_map(|block| block.seqs.iter().copied())
    }

    /// Those open for the device behind a place in the order, oldest first.
    pub fn open_for<'a>(
        &'a self,
        device: DeviceNo,
        after: Seq,
        messages: &'a Messages,
    ) -> impl Iterator<Item = Seq> + 'a {
        let first = self.parts.partition_point(|part| part.last() <= after);
        let parts = self.parts[first..].iter().filter(move |part| part.reach.may_hold(device));
        let blocks = parts.flat_map(|part| part.blocks.iter());
        let blocks = blocks.filter(move |b| b.reach.may_hold(device) && b.seqs.last() > Some(&after));
        let seqs = blocks.flat_map(|block| block.seqs.iter().copied());
        seqs.filter(move |seq| *seq > after && is_open(messages, *seq, device))
    }

    /// Those that may be open for some of the devices, newest first, with the devices that they are open for.
    pub fn meeting<'a>(
        &'a self,
        devices: &'a DeviceSet,
        messages: &'a Messages,
    ) -> impl Iterator<Item = (Seq, &'a DeviceSet)> + 'a {
        let parts = self.parts.iter().rev().filter(|part| part.reach.may_meet(devices));
        let blocks = parts.flat_map(|part| part.blocks.iter().rev());
        let seqs = blocks.filter(|block| block.reach.may_meet(devices)).flat_map(|b| b.seqs.iter().rev());
        seqs.filter_map(|seq| Some((*seq, open_set(messages, *seq)?)))
    }
}

impl Part {
    fn is_full(&self) -> bool {
        self.blocks.len() >= PART && self.blocks.last().is_some_and(|block| block.seqs.len() >= BLOCK)
    }

    fn first(&self) -> Seq {
        self.blocks.first().and_then(|block| block.seqs.first()).copied().unwrap_or(0)
    }

    fn last(&self) -> Seq {
        self.blocks.last().and_then(|block| block.seqs.last()).copied().unwrap_or(0)
    }
}

/// A small number for each device, as binary digits: one set of devices for each place. Adding one for a
/// million devices is a few operations on sets.
#[derive(Debug, Default)]
pub(crate) struct OpenCounts {
    digits: Vec<DeviceSet>,
}

impl OpenCounts {
    fn add(&mut self, devices: &DeviceSet) {
        let mut carry = devices.clone();
        for digit in &mut self.digits {
            let next = &*digit & &carry;
            *digit ^= &carry;
            carry = next;
            if carry.is_empty() {
                return;
            }
        }
        if !carry.is_empty() {
            self.digits.push(carry);
        }
    }

    fn subtract(&mut self, devices: &DeviceSet) {
        let mut borrow = devices.clone();
        for digit in &mut self.digits {
            let next = &borrow - &*digit;
            *digit ^= &borrow;
            borrow = next;
            if borrow.is_empty() {
                break;
            }
        }
        self.shrink();
    }

    fn subtract_one(&mut self, device: DeviceNo) {
        for digit in &mut self.digits {
            if digit.remove(device.0) {
                break;
            }
            digit.insert(device.0);
        }
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.digits.pop_if(|digit| digit.is_empty()).is_some() {}
    }

    fn of(&self, device: DeviceNo) -> usize {
        let places = self.digits.iter().enumerate();
        places.filter(|(_, digit)| digit.contains(device.0)).map(|(place, _)| 1 << place).sum()
    }
}
