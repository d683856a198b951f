//! Questions about tracked messages: what became of them and of their deliveries.
//!
//! A message may have gone to millions of devices, so their sets are read where they lie and only combined where the answer needs it.

use super::State;
use super::message::{Message, Report, Targeted};
use crate::id::*;
use crate::model::*;
use crate::port::*;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Which devices ever reached which step.
type Sets<'a> = BTreeMap<Step, Cow<'a, DeviceSet>>;

impl State {
    fn tracked(&self, app: AppNo, id: MessageId) -> Option<&Message> {
        self.messages.get(self.app_ref(app)?.reports.get(&id)?)
    }

    pub fn knows_message(&self, app: AppNo, id: MessageId) -> bool {
        self.tracked(app, id).is_some()
    }

    pub fn message(&self, app: AppNo, id: MessageId) -> Option<MessageView> {
        let message = self.tracked(app, id)?;
        Some(view_of(message, message.report()?))
    }

    pub fn messages(&self, app: AppNo, before: Option<MessageId>, max: usize) -> Vec<MessageView> {
        let end = before.map_or(Bound::Unbounded, Bound::Excluded);
        let Some(app) = self.app_ref(app) else { return Vec::new() };
        let newest_first = app.reports.range((Bound::Unbounded, end)).rev();
        let mine = newest_first.filter_map(|(_, seq)| self.messages.get(seq));
        mine.filter_map(|m| Some(view_of(m, m.report()?))).take(max).collect()
    }

    pub fn deliveries(
        &self,
        app: AppNo,
        id: MessageId,
        step: Option<Step>,
        after: Option<DeviceNo>,
        max: usize,
    ) -> Vec<DeliveryView> {
        let Some(message) = self.tracked(app, id) else { return Vec::new() };
        let Some(report) = message.report() else { return Vec::new() };
        let devices = match step {
            Some(step) => Cow::Owned(report.in_step(message, step)),
            None => report.targeted_set(message),
        };
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.0));
        let page = devices.range((from, Bound::Unbounded)).take(max);
        page.map(|no| delivery_of(message, report, DeviceNo(no))).collect()
    }

    pub fn delivery(&self, app: AppNo, id: MessageId, device: DeviceNo) -> Option<DeliveryView> {
        let message = self.tracked(app, id)?;
        let report = message.report()?;
        message.is_for(device).then(|| delivery_of(message, report, device))
    }
}

impl Report {
    fn targeted_set(&self, message: &Message) -> Cow<'_, DeviceSet> {
        match &self.targeted {
            Targeted::Broadcast(set) => Cow::Borrowed(set),
            Targeted::Direct => Cow::Owned(message.direct().into_iter().map(|d| d.0).collect()),
        }
    }

    fn reached(&self, message: &Message) -> Sets<'_> {
        let mut sets: Sets<'_> = self.reached.iter().map(|(step, set)| (*step, Cow::Borrowed(set))).collect();
        if matches!(self.targeted, Targeted::Direct) {
            for row in self.rows.iter() {
                sets.entry(row.step).or_default().to_mut().insert(row.device.0);
            }
        }
        for bulk in &self.bulk {
            match sets.get_mut(&bulk.step) {
                Some(set) => *set.to_mut() |= &bulk.devices,
                None => _ = sets.insert(bulk.step, Cow::Borrowed(&bulk.devices)),
            }
        }
        sets.insert(Step::Queued, self.targeted_set(message));
        sets
    }

    /// The devices that are in the step now: it is the highest that they reached.
    fn in_step(&self, message: &Message, step: Step) -> DeviceSet {
        let mut sets = self.reached(message);
        let mut devices = sets.remove(&step).unwrap_or_default().into_owned();
        sets.range(step..).for_each(|(_, higher)| devices -= &**higher);
        devices
    }
}

/// How many devices are in each step now: each counts in the highest that it reached.
fn count_now(sets: &Sets<'_>) -> [u64; Step::ALL.len()] {
    let mut counts = [0; Step::ALL.len()];
    let mut higher: Cow<'_, DeviceSet> = Cow::default();
    for (n, (step, set)) in sets.iter().rev().enumerate() {
        counts[*step as usize] = set.len() - set.intersection_len(&higher);
        match n {
            0 => higher = Cow::Borrowed(set),
            // Nothing comes after the lowest.
            _ if n + 1 == sets.len() => {}
            _ => *higher.to_mut() |= &**set,
        }
    }
    counts
}

fn count_reached(sets: &Sets<'_>) -> [u64; Step::ALL.len()] {
    let mut counts = [0; Step::ALL.len()];
    sets.iter().for_each(|(step, set)| counts[*step as usize] = set.len());
    counts
}

fn view_of(message: &Message, report: &Report) -> MessageView {
    let mut reasons = report.rows.reasons();
    for bulk in report.bulk.iter().filter(|bulk| bulk.reason != Reason::None) {
        reasons.entry((bulk.step, bulk.reason as u8)).or_insert((bulk.reason, 0)).1 += bulk.devices.len();
    }
    let extra = message.extra.as_deref();
    let sets = report.reached(message);
    MessageView {
        id: report.id,
        accepted_at: message.accepted_at,
        expires_at: message.expires_at,
        priority: message.priority(),
        collapse_key: extra.and_then(|e| e.collapse_key.clone()),
        targeted: sets.get(&Step::Queued).map_or(0, |set| set.len()),
        now: count_now(&sets),
        reached: count_reached(&sets),
        reasons: reasons.into_iter().map(|((step, _), (reason, n))| (step, reason, n)).collect(),
        cancelled_at: report.cancelled_at,
        submission_at: report.position,
        blob: (message.blob.len > 0).then_some(message.blob),
    }
}

fn delivery_of(message: &Message, report: &Report, device: DeviceNo) -> DeliveryView {
    let start = message.accepted_at;
    let mut timeline = vec![(Step::Accepted, Reason::None, start), (Step::Queued, Reason::None, start)];
    timeline.extend(report.steps_of(device).map(|r| (r.step, r.reason, start + u64::from(r.after_ms))));
    let bulks = report.bulk.iter().filter(|b| b.devices.contains(device.0));
    timeline.extend(bulks.map(|b| (b.step, b.reason, b.at)));
    timeline.sort_by_key(|(step, _, at)| (*at, *step));
    let (step, reason, _) = timeline.iter().copied().max_by_key(|(step, _, _)| *step).unwrap_or((
        Step::Queued,
        Reason::None,
        start,
    ));
    DeliveryView { device, step, reason, timeline }
}
