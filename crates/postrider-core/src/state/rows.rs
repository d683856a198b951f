//! The steps of a message's devices with their times.
//!
//! A message to one device has two or three, in a plain list. A broadcast has millions: they lie in chunks by device, so
//! that those of one device are found, and new ones added, without going through the others.

use super::message::Row;
use crate::id::*;
use crate::model::*;
use std::collections::BTreeMap;

/// More rows than these lie in chunks of at most as many.
const CHUNK: usize = 256;

/// See the module.
#[derive(Debug)]
pub(crate) enum Rows {
    Few(Vec<Row>),
    Many(Box<Chunks>),
}

/// How many rows have a reason, by step and reason.
pub(crate) type Reasons = BTreeMap<(Step, u8), (Reason, u64)>;

/// By the first device of each chunk; the first chunk begins at 0.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    by_device: BTreeMap<u32, Vec<Row>>,
    reasons: Reasons,
    /// Of the last row that ended a delivery.
    ended_after_ms: u32,
}

impl Default for Rows {
    fn default() -> Rows {
        Rows::Few(Vec::new())
    }
}

impl Rows {
    pub fn push(&mut self, row: Row) {
        match self {
            Rows::Few(rows) if rows.len() < CHUNK => rows.push(row),
            Rows::Few(rows) => {
                let mut chunks = Box::new(Chunks::default());
                std::mem::take(rows).into_iter().chain([row]).for_each(|row| chunks.push(row));
                *self = Rows::Many(chunks);
            }
            Rows::Many(chunks) => chunks.push(row),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Row> {
        let (few, many) = match self {
            Rows::Few(rows) => (Some(rows), None),
            Rows::Many(chunks) => (None, Some(chunks.by_device.values().flatten())),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }

    /// In an order that depends on the rows and not on how they came to lie.
    pub fn for_each_in_order(&self, mut f: impl FnMut(&Row)) {
        match self {
            Rows::Few(rows) => rows.iter().for_each(f),
            Rows::Many(chunks) => {
                for chunk in chunks.by_device.values() {
                    let mut rows: Vec<&Row> = chunk.iter().collect();
                    rows.sort_by_key(|row| row.device);
                    rows.into_iter().for_each(&mut f);
                }
            }
        }
    }

    pub fn of(&self, device: DeviceNo) -> impl Iterator<Item = &Row> {
        let rows: &[Row] = match self {
            Rows::Few(rows) => rows,
            Rows::Many(chunks) => chunks.around(device),
        };
        rows.iter().filter(move |row| row.device == device)
    }

    pub fn reasons(&self) -> Reasons {
        match self {
            Rows::Few(rows) => {
                let mut reasons = Reasons::new();
                rows.iter().for_each(|row| count_reason(&mut reasons, row));
                reasons
            }
            Rows::Many(chunks) => chunks.reasons.clone(),
        }
    }

    /// How long after the message was accepted the last delivery ended, of those that ended one by one.
    pub fn ended_after_ms(&self) -> u32 {
        match self {
            Rows::Few(rows) => {
                rows.iter().filter(|row| row.step.ends()).map(|row| row.after_ms).max().unwrap_or(0)
            }
            Rows::Many(chunks) => chunks.ended_after_ms,
        }
    }

    pub fn shrink_to_fit(&mut self) {
        match self {
            Rows::Few(rows) => rows.shrink_to_fit(),
            Rows::Many(chunks) => chunks.by_device.values_mut().for_each(Vec::shrink_to_fit),
        }
    }
}

fn count_reason(reasons: &mut Reasons, row: &Row) {
    if row.reason != Reason::None {
        reasons.entry((row.step, row.reason as u8)).or_insert((row.reason, 0)).1 += 1;
    }
}

impl Chunks {
    fn around(&self, device: DeviceNo) -> &[Row] {
        self.by_device.range(..=device.0).next_back().map_or(&[], |(_, chunk)| chunk)
    }

    fn push(&mut self, row: Row) {
        count_reason(&mut self.reasons, &row);
        if row.step.ends() {
            self.ended_after_ms = self.ended_after_ms.max(row.after_ms);
        }
        let Some((_, chunk)) = self.by_device.range_mut(..=row.device.0).next_back() else {
            self.by_device.insert(0, vec![row]);
            return;
        };
        chunk.push(row);
        if chunk.len() > CHUNK
            && let Some((first, upper)) = split(chunk)
        {
            self.by_device.insert(first, upper);
        }
    }
}

/// Takes the upper half out of a chunk, by device; `None` where it is all one device's.
fn split(chunk: &mut Vec<Row>) -> Option<(u32, Vec<Row>)> {
    // In order of device; the rows of one device stay in the order in which they came.
    chunk.sort_by_key(|row| row.device);
    let middle = chunk[chunk.len() / 2].device;
    let lower = chunk.partition_point(|row| row.device < middle);
    let at = if lower > 0 { lower } else { chunk.partition_point(|row| row.device <= middle) };
    let first = chunk.get(at)?.device.0;
    let upper = chunk.split_off(at);
    Some((first, upper))
}

impl From<Vec<Row>> for Rows {
    fn from(list: Vec<Row>) -> Rows {
        if list.len() <= CHUNK {
            return Rows::Few(list);
        }
        let mut rows = Rows::default();
        list.into_iter().for_each(|row| rows.push(row));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::message::RoadNo;
    use proptest::prelude::*;

    fn row(device: u32, after_ms: u32, step: Step) -> Row {
        let reason = if step == Step::Expired { Reason::Ttl } else { Reason::None };
        Row { device: DeviceNo(device), after_ms, step, reason, road: RoadNo::NONE }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn the_rows_of_a_device_are_those_that_were_added_however_many_others_there_are(
            devices in proptest::collection::vec(prop_oneof![0..40u32, 0..100_000u32], 0..3_000),
        ) {
            let steps = [Step::Sent, Step::Delivered, Step::Expired];
            let all: Vec<Row> =
                devices.iter().zip(0..).map(|(d, n)| row(*d, n, steps[n as usize % 3])).collect();
            let mut rows = Rows::default();
            all.iter().for_each(|row| rows.push(*row));
            let back = Rows::from(rows.iter().copied().collect::<Vec<Row>>());
            prop_assert_eq!(back.iter().count(), all.len());
            for rows in [&rows, &back] {
                for device in devices.iter().take(60).chain(&[40, 99_999]) {
                    let device = DeviceNo(*device);
                    let mine = |row: &&Row| row.device == device;
                    let times = |row: &Row| row.after_ms;
                    let found: Vec<u32> = rows.of(device).map(times).collect();
                    let expected: Vec<u32> = all.iter().filter(mine).map(times).collect();
                    prop_assert_eq!(found, expected);
                }
                let expired = all.iter().filter(|row| row.step == Step::Expired).count() as u64;
                let counted = rows.reasons().values().map(|(_, n)| n).sum::<u64>();
                prop_assert_eq!(counted, expired);
                let ended = all.iter().filter(|row| row.step != Step::Sent).map(|row| row.after_ms).max();
                prop_assert_eq!(rows.ended_after_ms(), ended.unwrap_or(0));
            }
        }
    }
}
