//! The stored form of what is known beside the state: parts behind those of the image, which no
//! command made and no digest counts.

use super::codec::*;
use super::image::{LIST_PART, Numbers};
use crate::id::*;
use crate::state::Volatile;
use crate::state::volatile::PAGE;

/// The tags of these parts, in one order with those of the image.
pub(super) const SENT: u32 = 46;
pub(super) const SEEN: u32 = 47;

/// Deliveries that were written to a connection and are not answered.
struct SentPart {
    seq: Seq,
    /// A device and a time, a device and a time, …
    marks: Numbers,
}
record!(SentPart { 1 seq, 2 marks });

/// When devices were last seen: from the one with the number on, 0 where it was not.
struct SeenPart {
    from: DeviceRef,
    times: Numbers,
}
record!(SeenPart { 1 from, 2 times });

/// How far the writing of it is: it is written in slices, so that its owner is free in between.
#[derive(Debug, Default)]
pub struct Written {
    /// Messages whose marks are still to be written, the next one last, as they were at the first slice; and the device
    /// from which that one goes on.
    sent: Option<Vec<Seq>>,
    from: u32,
    seen: (usize, usize),
}

/// Appends the next slice; false where there is none any more.
pub fn write_volatile(volatile: &Volatile, written: &mut Written, out: &mut Vec<u8>) -> bool {
    let left = written.sent.get_or_insert_with(|| volatile.sent_seqs().into_iter().rev().collect());
    let mut room = LIST_PART;
    while room > 0
        && let Some(seq) = left.last().copied()
    {
        let marks = volatile.sent_from(seq, written.from, room);
        let next = marks.last().filter(|_| marks.len() == room).and_then(|(device, _)| device.checked_add(1));
        written.from = next.unwrap_or(0);
        if next.is_none() {
            left.pop();
        }
        // Those that are over by now took time too.
        room -= marks.len().max(1);
        if !marks.is_empty() {
            let marks = Numbers(marks.into_iter().flat_map(|(device, at)| [u64::from(device), at]).collect());
            put_nested(SENT, out, |out| SentPart { seq, marks }.put(out));
        }
    }
    if room < LIST_PART {
        return true;
    }
    let Some(((app, page), times)) = volatile.seen_from(written.seen) else { return false };
    written.seen = (app, page + 1);
    let from = DeviceRef { app: AppNo(app as u32), device: DeviceNo((page * PAGE) as u32) };
    let part = SeenPart { from, times: Numbers(times.to_vec()) };
    put_nested(SEEN, out, |out| part.put(out));
    true
}

/// Reads a part; `devices` says how many device numbers an app has given.
pub(super) fn read_part(
    volatile: &mut Volatile,
    devices: impl Fn(AppNo) -> usize,
    (tag, bytes): (u32, &[u8]),
) -> Result<(), Bad> {
    if tag == SENT {
        let SentPart { seq, marks } = Record::get(bytes)?;
        let (marks, rest) = marks.0.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(Bad::Malformed);
        }
        for [device, at] in marks {
            let device = u32::try_from(*device).map_err(|_| Bad::Malformed)?;
            volatile.mark_sent(seq, DeviceNo(device), *at);
        }
        return Ok(());
    }
    let SeenPart { from, times } = Record::get(bytes)?;
    for (no, at) in (from.device.0..).zip(times.0).filter(|(_, at)| *at > 0) {
        if no as usize >= devices(from.app) {
            return Err(Bad::Malformed);
        }
        volatile.see(DeviceRef { app: from.app, device: DeviceNo(no) }, at);
    }
    Ok(())
}
