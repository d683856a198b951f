//! A message in memory, as small as it can be, and the report on the tracked ones.

use super::casts::Cast;
use super::rows::Rows;
use super::rules::Rules;
use crate::command::NewMessage;
use crate::id::*;
use crate::model::*;

/// Forty bytes; whatever is rare lies in `extra`. A publish to one device's session needs no more.
#[derive(Debug)]
pub(crate) struct Message {
    pub accepted_at: UnixMillis,
    pub expires_at: UnixMillis,
    /// `len` 0: released.
    pub blob: BlobRef,
    pub app: AppNo,
    /// Deliveries not ended.
    pub open: u32,
    pub whom: Whom,
    pub extra: Option<Box<Extra>>,
}

/// A message that leaves all others with its collapse key as they are.
pub(super) const KEEP_ALL: u16 = u16::MAX;

/// Whom it was for.
#[derive(Debug)]
pub(crate) enum Whom {
    One(DeviceNo),
    /// In `extra.few`.
    Few,
    /// In `extra.broadcast`.
    Broadcast,
    /// One member of a shared subscription, in `extra.few`; `extra.share` names the subscription.
    Shared,
}

#[derive(Debug)]
pub(crate) struct Extra {
    pub few: Vec<DeviceNo>,
    /// A broadcast's devices that are still open.
    pub broadcast: Option<DeviceSet>,
    pub priority: Priority,
    /// Hash of the collapse key, and how many pending ones of it a device keeps.
    pub group: Option<(u64, u16)>,
    pub collapse_key: Option<String>,
    /// Of a message of a shared subscription: its name, by [`share_name`].
    pub share: Option<String>,
    pub report: Option<Report>,
}

/// What became of a tracked message: sets of devices by the step they reached, and every step with its time.
#[derive(Debug)]
pub(crate) struct Report {
    pub id: MessageId,
    pub targeted: Targeted,
    /// For a broadcast: who reached which step. A direct message is counted from `rows`.
    pub reached: Vec<(Step, DeviceSet)>,
    pub rows: Rows,
    /// Steps that all open devices took at once.
    pub bulk: Vec<Bulk>,
    pub cancelled_at: Option<UnixMillis>,
    /// Of the row of the receipt stream that has the submission; 0: there is none.
    pub position: u64,
}

#[derive(Debug)]
pub(crate) enum Targeted {
    Direct,
    Broadcast(DeviceSet),
}

/// One step of one device, in twelve bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub device: DeviceNo,
    /// Milliseconds since the message was accepted.
    pub after_ms: u32,
    pub step: Step,
    pub reason: Reason,
    /// Of [`Step::Forwarded`].
    pub road: RoadNo,
}

/// A road by its place among those of its app, from 1 on; 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoadNo(pub u16);

impl RoadNo {
    pub const NONE: RoadNo = RoadNo(0);
}

#[derive(Debug)]
pub(crate) struct Bulk {
    pub devices: DeviceSet,
    pub step: Step,
    pub reason: Reason,
    pub at: UnixMillis,
}

impl Message {
    pub fn new(new: &NewMessage, targets: &[Target], blob: BlobRef, rules: &Rules) -> Message {
        let group = match (&new.collapse_key, new.backlog) {
            (None, Backlog::All) => None,
            (key, backlog) => {
                let keep = rules.kept(key.as_deref(), backlog);
                Some((hash(key.as_deref().unwrap_or("")), keep))
            }
        };
        let (whom, few, broadcast) = match (&new.targets, targets) {
            (Targets::Broadcast(_), _) => (Whom::Broadcast, Vec::new(), true),
            (Targets::Shared(_), list) => (Whom::Shared, list.iter().map(|t| t.device).collect(), false),
            (Targets::Direct(_), [one]) => (Whom::One(one.device), Vec::new(), false),
            (Targets::Direct(_), list) => (Whom::Few, list.iter().map(|t| t.device).collect(), false),
        };
        let plain = few.is_empty()
            && !broadcast
            && group.is_none()
            && new.priority == Priority::Normal
            && !new.tracked;
        let report = new.tracked.then(|| Report {
            id: new.id,
            targeted: Targeted::Direct,
            reached: Vec::new(),
            rows: Rows::default(),
            bulk: Vec::new(),
            cancelled_at: None,
            position: 0,
        });
        let extra = (!plain || matches!(whom, Whom::Few | Whom::Shared)).then(|| {
            let collapse_key = new.collapse_key.clone();
            let share = match &new.targets {
                Targets::Shared(shared) => Some(shared.share.clone()),
                _ => None,
            };
            Box::new(Extra {
                few,
                broadcast: None,
                priority: new.priority,
                group,
                collapse_key,
                share,
                report,
            })
        });
        let (accepted_at, expires_at) = (new.accepted_at, new.expires_at);
        Message { accepted_at, expires_at, blob, app: new.app, open: 0, whom, extra }
    }

    pub fn id(&self) -> Option<MessageId> {
        Some(self.report()?.id)
    }

    pub fn report(&self) -> Option<&Report> {
        self.extra.as_ref()?.report.as_ref()
    }

    pub fn report_mut(&mut self) -> Option<&mut Report> {
        self.extra.as_mut()?.report.as_mut()
    }

    pub fn group(&self) -> Option<u64> {
        Some(self.extra.as_ref()?.group?.0)
    }

    /// What the index of broadcasts has to know of it.
    pub fn cast(&self, seq: Seq) -> Cast {
        Cast { seq, urgent: self.priority() == Priority::High, group: self.group() }
    }

    pub fn priority(&self) -> Priority {
        self.extra.as_ref().map_or(Priority::Normal, |e| e.priority)
    }

    /// The name of the shared subscription that it is a message of.
    pub fn share(&self) -> Option<&str> {
        match (&self.whom, &self.extra) {
            (Whom::Shared, Some(extra)) => extra.share.as_deref(),
            _ => None,
        }
    }

    /// Another member has it now.
    pub fn set_holder(&mut self, device: DeviceNo) {
        if let Some(extra) = &mut self.extra {
            extra.few = vec![device];
        }
    }

    /// The broadcast's open devices.
    pub fn broadcast(&self) -> Option<&DeviceSet> {
        self.extra.as_ref()?.broadcast.as_ref()
    }

    pub fn broadcast_mut(&mut self) -> Option<&mut DeviceSet> {
        self.extra.as_mut()?.broadcast.as_mut()
    }

    /// The devices of a direct message.
    pub fn direct(&self) -> Vec<DeviceNo> {
        match (&self.whom, &self.extra) {
            (Whom::One(device), _) => vec![*device],
            (Whom::Few | Whom::Shared, Some(extra)) => extra.few.clone(),
            _ => Vec::new(),
        }
    }

    /// When the last delivery ended, where all did and there is a report.
    pub fn ended_at(&self) -> UnixMillis {
        let Some(report) = self.report() else { return self.accepted_at };
        let bulk = report.bulk.iter().map(|bulk| bulk.at).max();
        (self.accepted_at + u64::from(report.rows.ended_after_ms())).max(bulk.unwrap_or(0))
    }

    /// Whether it was for the device.
    pub fn is_for(&self, device: DeviceNo) -> bool {
        match (&self.whom, self.extra.as_deref()) {
            (Whom::One(one), _) => *one == device,
            (Whom::Few, Some(extra)) => extra.few.contains(&device),
            (Whom::Broadcast, Some(Extra { report: Some(report), .. })) => match &report.targeted {
                Targeted::Broadcast(set) => set.contains(device.0),
                Targeted::Direct => false,
            },
            _ => false,
        }
    }

    /// Notes a step of a device in the report; false if it was noted before.
    pub fn note(&mut self, device: DeviceNo, step: Step, reason: Reason, at: UnixMillis) -> bool {
        let accepted_at = self.accepted_at;
        let Some(report) = self.report_mut() else { return true };
        let after_ms = at.saturating_sub(accepted_at).min(u64::from(u32::MAX)) as u32;
        report.note(Row { device, after_ms, step, reason, road: RoadNo::NONE })
    }

    /// Notes that a provider took it; false if it took it before, or there is no report.
    pub fn note_forwarded(&mut self, device: DeviceNo, road: RoadNo, at: UnixMillis) -> bool {
        let accepted_at = self.accepted_at;
        let Some(report) = self.report_mut() else { return false };
        let after_ms = at.saturating_sub(accepted_at).min(u64::from(u32::MAX)) as u32;
        let row = Row { device, after_ms, step: Step::Forwarded, reason: Reason::None, road };
        if report.rows.of(device).any(|r| r.step == row.step && r.road == road) {
            return false;
        }
        if let Targeted::Broadcast(_) = report.targeted {
            report.set_mut(Step::Forwarded).insert(device.0);
        }
        report.rows.push(row);
        true
    }

    /// Those of a broadcast's devices to which a provider is bringing it.
    pub fn forwarded(&self) -> Option<&DeviceSet> {
        let reached = &self.report()?.reached;
        reached.iter().find(|(step, _)| *step == Step::Forwarded).map(|(_, set)| set)
    }

    /// Notes a step that all of `devices` took at once.
    pub fn note_all(&mut self, devices: DeviceSet, step: Step, reason: Reason, at: UnixMillis) {
        if let Some(report) = self.report_mut() {
            report.bulk.push(Bulk { devices, step, reason, at });
        }
    }
}

impl Report {
    fn note(&mut self, row: Row) -> bool {
        let new = match self.targeted {
            Targeted::Direct => !self.rows.of(row.device).any(|r| r.step == row.step),
            Targeted::Broadcast(_) => self.set_mut(row.step).insert(row.device.0),
        };
        if new {
            self.rows.push(row);
        }
        new
    }

    fn set_mut(&mut self, step: Step) -> &mut DeviceSet {
        let place = self.reached.iter().position(|(s, _)| *s == step).unwrap_or_else(|| {
            self.reached.push((step, DeviceSet::new()));
            self.reached.len() - 1
        });
        &mut self.reached[place].1
    }

    pub fn has(&self, device: DeviceNo, step: Step) -> bool {
        match self.targeted {
            Targeted::Direct => self.steps_of(device).any(|r| r.step == step),
            Targeted::Broadcast(_) => {
                self.reached.iter().any(|(s, set)| *s == step && set.contains(device.0))
            }
        }
    }

    pub fn steps_of(&self, device: DeviceNo) -> impl Iterator<Item = &Row> {
        self.rows.of(device)
    }
}

/// FNV-1a: collapse keys of one app may collide only by intent of that app's own sender.
fn hash(key: &str) -> u64 {
    key.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
