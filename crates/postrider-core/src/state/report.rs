//! Questions about tracked messages: what became of them and of their deliveries.
//!
//! A message may have gone to millions of devices, so their sets are read where they lie and only combined where the answer needs it.

use super::State;
use super::app::App;
use super::message::{Message, Report, Targeted};
use super::volatile::Volatile;
use crate::id::*;
use crate::model::*;
use crate::port::*;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Which devices ever reached which step.
type Sets<'a> = BTreeMap<Step, Cow<'a, DeviceSet>>;

impl State {
    fn tracked_seq(&self, app: AppNo, id: MessageId) -> Option<Seq> {
        self.app_ref(app)?.reports.get(&id).copied().filter(|seq| self.messages.contains_key(seq))
    }

    pub fn knows_message(&self, app: AppNo, id: MessageId) -> bool {
        self.tracked_seq(app, id).is_some()
    }

    /// `beside` knows who was sent it and has not answered.
    pub(super) fn message_with(&self, app: AppNo, id: MessageId, beside: &Volatile) -> Option<MessageView> {
        Told::of(self.tracked_seq(app, id)?, self, beside).map(|told| told.view())
    }

    pub(super) fn messages_with(
        &self,
        app: AppNo,
        before: Option<MessageId>,
        max: usize,
        beside: &Volatile,
    ) -> Vec<MessageView> {
        let end = before.map_or(Bound::Unbounded, Bound::Excluded);
        let Some(app) = self.app_ref(app) else { return Vec::new() };
        let newest_first = app.reports.range((Bound::Unbounded, end)).rev();
        let mine = newest_first.filter_map(|(_, seq)| Told::of(*seq, self, beside));
        mine.map(|told| told.view()).take(max).collect()
    }

    pub(super) fn deliveries_with(
        &self,
        app: AppNo,
        id: MessageId,
        (step, after, max): (Option<Step>, Option<DeviceNo>, usize),
        beside: &Volatile,
    ) -> Vec<DeliveryView> {
        let told = self.tracked_seq(app, id).and_then(|seq| Told::of(seq, self, beside));
        let Some(told) = told else { return Vec::new() };
        let devices = match step {
            Some(step) => Cow::Owned(told.in_step(step)),
            None => told.report.targeted_set(told.message),
        };
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.0));
        let page = devices.range((from, Bound::Unbounded)).take(max);
        page.map(|no| told.delivery(DeviceNo(no))).collect()
    }

    pub(super) fn delivery_with(
        &self,
        app: AppNo,
        id: MessageId,
        device: DeviceNo,
        beside: &Volatile,
    ) -> Option<DeliveryView> {
        let told = Told::of(self.tracked_seq(app, id)?, self, beside)?;
        told.message.is_for(device).then(|| told.delivery(device))
    }
}

/// A tracked message, and what is known of its deliveries in the state and beside it.
#[derive(Clone, Copy)]
struct Told<'a> {
    seq: Seq,
    message: &'a Message,
    report: &'a Report,
    app: &'a App,
    beside: &'a Volatile,
}

impl Report {
    fn targeted_set(&self, message: &Message) -> Cow<'_, DeviceSet> {
        match &self.targeted {
            Targeted::Broadcast(set) => Cow::Borrowed(set),
            Targeted::Direct => Cow::Owned(message.direct().into_iter().map(|d| d.0).collect()),
        }
    }
}

impl<'a> Told<'a> {
    fn of(seq: Seq, state: &'a State, beside: &'a Volatile) -> Option<Told<'a>> {
        let message = state.messages.get(&seq)?;
        let app = state.app_ref(message.app)?;
        Some(Told { seq, message, report: message.report()?, app, beside })
    }

    fn reached(self) -> Sets<'a> {
        let Told { report, message, .. } = self;
        let mut sets: Sets<'_> =
            report.reached.iter().map(|(step, set)| (*step, Cow::Borrowed(set))).collect();
        if matches!(report.targeted, Targeted::Direct) {
            for row in report.rows.iter() {
                sets.entry(row.step).or_default().to_mut().insert(row.device.0);
            }
        }
        for bulk in &report.bulk {
            match sets.get_mut(&bulk.step) {
                Some(set) => *set.to_mut() |= &bulk.devices,
                None => _ = sets.insert(bulk.step, Cow::Borrowed(&bulk.devices)),
            }
        }
        if let Some(sent) = self.beside.sent_to(self.seq) {
            *sets.entry(Step::Sent).or_default().to_mut() |= sent;
        }
        sets.insert(Step::Queued, report.targeted_set(message));
        sets
    }

    /// The devices that are in the step now: it is the highest that they reached.
    fn in_step(self, step: Step) -> DeviceSet {
        let mut sets = self.reached();
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

impl Told<'_> {
    fn view(self) -> MessageView {
        let Told { message, report, .. } = self;
        let mut reasons = report.rows.reasons();
        for bulk in report.bulk.iter().filter(|bulk| bulk.reason != Reason::None) {
            let of = reasons.entry((bulk.step, bulk.reason as u8)).or_insert((bulk.reason, 0));
            of.1 += bulk.devices.len();
        }
        let extra = message.extra.as_deref();
        let sets = self.reached();
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

    fn delivery(self, device: DeviceNo) -> DeliveryView {
        let Told { message, report, app, .. } = self;
        let start = message.accepted_at;
        let moment = |step, reason, at| Moment { step, reason, at, road: None };
        let first = [Step::Accepted, Step::Queued].map(|step| moment(step, Reason::None, start));
        let mut timeline = first.to_vec();
        timeline.extend(report.steps_of(device).map(|row| Moment {
            road: app.road(row.road).cloned(),
            ..moment(row.step, row.reason, start + u64::from(row.after_ms))
        }));
        let bulks = report.bulk.iter().filter(|b| b.devices.contains(device.0));
        timeline.extend(bulks.map(|b| moment(b.step, b.reason, b.at)));
        if let Some(at) = self.beside.sent_at(self.seq, device)
            && timeline.iter().all(|moment| moment.step != Step::Sent)
        {
            timeline.push(moment(Step::Sent, Reason::None, at));
        }
        timeline.sort_by_key(|moment| (moment.at, moment.step));
        let last = timeline.iter().max_by_key(|moment| moment.step);
        let (step, reason) = last.map_or((Step::Queued, Reason::None), |last| (last.step, last.reason));
        DeliveryView { device, step, reason, timeline }
    }
}
