//! Providers: a delivery that one of them took goes on by its road, and stays open here. The device may
//! still come for it, and its acknowledgement ends it; where none comes, nobody will ever know more than
//! that the provider took it.

use super::app::App;
use super::deliver::{End, event};
use super::message::{Message, RoadNo};
use super::{Effects, State};
use crate::command::*;
use crate::id::*;
use crate::model::*;
use crate::seeded::{self, Bug};
use std::sync::Arc;

/// Roads of an app that are told apart; a delivery that goes by one more is forwarded without its name.
const ROADS_MAX: usize = 1_000;

/// How something ends that a provider took, where it would end otherwise so: what nobody came for in
/// time was handed over.
pub(super) fn end_of_forwarded(end: End) -> End {
    match end {
        (Step::Expired, reason) if !seeded::is(Bug::ForwardedExpires) => (Step::HandedOver, reason),
        other => other,
    }
}

impl App {
    /// The number of a road, which it gets when it is first named.
    fn road_no(&mut self, name: &Arc<str>) -> RoadNo {
        let place = self.roads.iter().position(|road| road == name).or_else(|| {
            let has_room = self.roads.len() < ROADS_MAX;
            has_room.then(|| {
                self.roads.push(name.clone());
                self.roads.len() - 1
            })
        });
        place.map_or(RoadNo::NONE, |place| RoadNo(place as u16 + 1))
    }

    /// The name of a road.
    pub fn road(&self, no: RoadNo) -> Option<&Arc<str>> {
        self.roads.get(usize::from(no.0).checked_sub(1)?)
    }
}

impl Message {
    pub(super) fn is_forwarded(&self, device: DeviceNo) -> bool {
        self.report().is_some_and(|report| report.has(device, Step::Forwarded))
    }
}

impl State {
    /// Notes those that are open and have a report; what ended meanwhile, or went this road before, is
    /// passed over. Tells how many there were, so that a caller knows what its request was of use for.
    pub(super) fn forward(&mut self, forward: &Forward, effects: &mut Effects) -> Result<Outcome, Refusal> {
        let Forward { app, road, deliveries, now } = forward;
        self.saw(*now);
        let no = self.open_app_mut(*app)?.road_no(road);
        let mut taken = 0;
        for (device, seq) in deliveries {
            if !self.is_open(*seq, *device) {
                continue;
            }
            let Some(message) = self.messages.get_mut(seq).filter(|message| message.app == *app) else {
                continue;
            };
            if !message.note_forwarded(*device, no, *now) {
                continue;
            }
            taken += 1;
            let row = event(message, Some(*device), (Step::Forwarded, Reason::None), 1, *now);
            let row = ReceiptEvent { road: Some(road.clone()), ..row };
            self.ledger(*app, effects).record(row, true);
            if seeded::is(Bug::ForwardedEnds) {
                let at = DeviceRef { app: *app, device: *device };
                self.end_one(at, *seq, (Step::HandedOver, Reason::None), *now, effects);
            }
        }
        Ok(Outcome::Progressed { taken })
    }
}
