//! Deliveries that a command took away before their device had them, while that command is not on stable storage yet.
//!
//! Readers see them until it is. Were they hidden at once, newer messages would go out in their place; and if the power
//! failed in that moment, the command would be lost, the older ones would be back, and come after the newer ones.

use crate::id::*;
use crate::model::*;
use crate::port::Pending;
use rustc_hash::FxHashMap;

/// See the module. Empty nearly always: it holds what the commit under way ends.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    direct: FxHashMap<DeviceRef, Vec<Left>>,
    broadcasts: Vec<(AppNo, DeviceSet, Left)>,
    /// Deliveries that came from another device's inbox, and the numbers of the commands that brought them.
    arriving: FxHashMap<(DeviceRef, Seq), Seq>,
}

/// A delivery as it was, and the number of the command that ended it.
#[derive(Debug)]
struct Left {
    by: Seq,
    pending: Pending,
}

/// Whether such an end comes from somebody else than the device: then it counts once it is on stable storage.
pub(super) fn comes_from_outside(step: Step) -> bool {
    matches!(step, Step::Superseded | Step::Evicted | Step::Cancelled)
}

impl Leaving {
    pub fn one(&mut self, at: DeviceRef, by: Seq, pending: Pending) {
        self.direct.entry(at).or_default().push(Left { by, pending });
    }

    pub fn some(&mut self, app: AppNo, devices: DeviceSet, by: Seq, pending: Pending) {
        self.broadcasts.push((app, devices, Left { by, pending }));
    }

    /// A delivery comes from another device: seen here once that is on stable storage.
    pub fn arrives(&mut self, at: DeviceRef, seq: Seq, by: Seq) {
        self.arriving.insert((at, seq), by);
    }

    pub fn is_arriving(&self, at: DeviceRef, seq: Seq, durable: Seq) -> bool {
        !self.arriving.is_empty() && self.arriving.get(&(at, seq)).is_some_and(|by| *by > durable)
    }

    /// What commands above `durable` ended for a device, in order.
    pub fn of(&self, at: DeviceRef, durable: Seq) -> Vec<&Pending> {
        let direct = self.direct.get(&at).into_iter().flatten();
        let casts =
            self.broadcasts.iter().filter(|(app, set, _)| *app == at.app && set.contains(at.device.0));
        let all = direct.chain(casts.map(|(_, _, left)| left));
        let mut found: Vec<&Pending> =
            all.filter(|left| left.by > durable).map(|left| &left.pending).collect();
        found.sort_unstable_by_key(|pending| pending.seq);
        found
    }

    /// Whether the delivery is shown on, so that it may still be written to its device.
    pub fn holds(&self, at: DeviceRef, seq: Seq) -> bool {
        let is_it = |left: &Left| left.pending.seq == seq;
        let is_of = |app: AppNo, set: &DeviceSet| app == at.app && set.contains(at.device.0);
        self.direct.get(&at).is_some_and(|all| all.iter().any(is_it))
            || self.broadcasts.iter().any(|(app, set, left)| is_it(left) && is_of(*app, set))
    }

    /// All up to `durable` is on stable storage.
    pub fn settle(&mut self, durable: Seq) {
        self.direct.retain(|_, all| {
            all.retain(|left| left.by > durable);
            !all.is_empty()
        });
        self.broadcasts.retain(|(_, _, left)| left.by > durable);
        self.arriving.retain(|_, by| *by > durable);
    }

    pub fn blobs_mut(&mut self) -> impl Iterator<Item = &mut BlobRef> {
        let direct = self.direct.values_mut().flatten();
        let casts = self.broadcasts.iter_mut().map(|(_, _, left)| left);
        direct.chain(casts).map(|left| &mut left.pending.blob)
    }
}
