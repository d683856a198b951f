//! What is between "sent" and "settled" on one session, both ways (MQTT 5 §4.3, §4.4).
//!
//! ```text
//!              first_id                                    next id
//!   outbound:  │ await PUBACK │ done │ await PUBCOMP │ await PUBACK │      a ring, in the order of sending
//!   inbound:   { id 7: event raised, no answer yet } { id 9: PUBREC sent }  QoS 2 only
//! ```
//!
//! Packet ids are given in a row, so an id finds its entry by subtraction. An entry that was settled out of order stays as
//! a hole until those before it are settled too. A window of ids that rolls on, instead of the lowest free one, keeps a
//! late acknowledgement from hitting a newer message, and a QoS 2 id from being taken for a duplicate by the receiver.
//!
//! It outlives the connection where the session does: messages not acknowledged are then *stale* until they are offered
//! again, which finds their old id by their delivery token; those that were released (QoS 2) go on with PUBREL.

use crate::Qos;
use std::collections::VecDeque;

/// Packet ids are 1 to 65,535.
const IDS: u32 = 65_535;

/// How many entries the ring may have for each that the window allows, before a hole at its head stops it.
const RING_PER_WINDOW: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// QoS 1, sent.
    AwaitPuback,
    /// QoS 2, sent.
    AwaitPubrec,
    /// QoS 2, received by the peer; PUBREL sent.
    AwaitPubcomp,
    /// Like the first two, but sent by an earlier connection and not yet again.
    StaleQos1,
    StaleQos2,
    /// A SUBSCRIBE or UNSUBSCRIBE of a client's own: it needs an id and no window.
    Request,
    Done,
}

impl State {
    fn is_stale(self) -> bool {
        matches!(self, State::StaleQos1 | State::StaleQos2)
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    delivery: u64,
    state: State,
    /// The peer was told to let go of the id before; where that was lost with a connection, it is to be told again.
    releases: bool,
}

#[derive(Clone, Copy, Debug)]
struct Inbound {
    id: u16,
    /// PUBREC was sent; before that the answer to the event is awaited.
    is_received: bool,
}

/// The in-flight state of a session. Small, and only there while something is in flight.
#[derive(Clone, Debug)]
pub struct Inflight {
    outbound: VecDeque<Entry>,
    /// The id of `outbound[0]`, or the next one to give when it is empty.
    first_id: u16,
    /// Entries neither done nor stale.
    live: usize,
    stale: usize,
    /// So many entries at the head are from an earlier connection: only they can be offered a second time.
    resumed: usize,
    inbound: Vec<Inbound>,
    /// So many ids, from the next one on, may still be held by the peer as received (QoS 2) from a state that was lost.
    unsure: u16,
}

/// What to do with a message that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserved {
    /// Send it with this id; `release` it first.
    New {
        id: u16,
        release: bool,
    },
    /// Send it with this id, its old one, and DUP; `release` it first.
    Again {
        id: u16,
        release: bool,
    },
    /// The peer has it already; PUBREL is on its way. Nothing to send.
    Released,
    WindowFull,
}

/// What an acknowledgement meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The end of this delivery.
    Done { delivery: u64 },
    /// PUBREC taken: PUBREL is to follow.
    Release,
    /// No such id, or not in that state.
    Unknown,
}

/// What became of a QoS 2 PUBLISH of the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    First,
    /// A duplicate, and the first is not answered yet.
    Pending,
    /// A duplicate of one that was answered: PUBREC again.
    Received,
}

impl Inflight {
    /// What it takes in memory, near enough.
    pub fn bytes(&self) -> usize {
        (self.outbound.len() + self.inbound.len()) * 32 + 200
    }

    /// For a session whose state was lost (a crash) while the client may remember ids of it: with `first_id` drawn by
    /// chance a new QoS 2 message is hardly taken for a duplicate of an old one.
    pub fn starting_at(first_id: u16) -> Box<Self> {
        Box::new(Inflight::new(first_id))
    }

    /// The same where the client surely may: in time the ids come round to those that it holds, and it would take the
    /// message under such an id for one that it has. So before each id's first use it is told to let go of it.
    pub fn after_loss(first_id: u16) -> Box<Self> {
        Box::new(Inflight { unsure: IDS as u16, ..Inflight::new(first_id) })
    }

    pub(crate) fn unsure(&self) -> u16 {
        self.unsure
    }

    pub(crate) fn with_unsure(next_id: u16, unsure: u16) -> Self {
        Inflight { unsure, ..Inflight::new(next_id) }
    }

    /// Whether the peer may hold the id that was given out just now.
    fn use_up_unsure(&mut self) -> bool {
        let was_unsure = self.unsure > 0;
        self.unsure = self.unsure.saturating_sub(1);
        was_unsure
    }

    pub(crate) fn new(first_id: u16) -> Self {
        Inflight {
            outbound: VecDeque::new(),
            first_id: first_id.max(1),
            live: 0,
            stale: 0,
            resumed: 0,
            inbound: Vec::new(),
            unsure: 0,
        }
    }

    /// Nothing is in flight either way.
    pub fn is_empty(&self) -> bool {
        self.outbound.is_empty() && self.inbound.is_empty()
    }

    /// Deliveries sent and not settled, the stale ones included.
    pub fn unsettled(&self) -> usize {
        self.live + self.stale
    }

    /// The delivery tokens that are not settled, in the order of their first sending.
    pub fn deliveries(&self) -> impl Iterator<Item = u64> + '_ {
        self.outbound
            .iter()
            .filter(|entry| !matches!(entry.state, State::Request | State::Done))
            .map(|entry| entry.delivery)
    }

    /// The id that the next new message will get.
    pub(crate) fn next_id(&self) -> u16 {
        nth_id(self.first_id, self.outbound.len())
    }

    /// How many more new messages may be sent. Stale ones take no room: they are offered again by the same window.
    pub(crate) fn window(&self, max: usize) -> usize {
        if self.outbound.len() - self.stale_head() >= ring_max(max) {
            return 0;
        }
        max.saturating_sub(self.live)
    }

    /// Stale entries at the head of the ring, which may be dropped to let it go on.
    fn stale_head(&self) -> usize {
        if self.stale == 0 {
            return 0;
        }
        self.outbound.iter().take_while(|entry| entry.state.is_stale() || entry.state == State::Done).count()
    }

    /// Takes an id for a message about to be sent; one that was sent by an earlier connection gets its old one.
    pub(crate) fn reserve(&mut self, delivery: u64, qos: Qos, max: usize) -> Reserved {
        if let Some(reserved) = self.reserve_again(delivery, max) {
            return reserved;
        }
        if self.live >= max {
            return Reserved::WindowFull;
        }
        if self.outbound.len() >= ring_max(max) {
            self.drop_stale_head();
            if self.outbound.len() >= ring_max(max) {
                return Reserved::WindowFull;
            }
        }
        let id = self.next_id();
        let state = if qos == Qos::ExactlyOnce { State::AwaitPubrec } else { State::AwaitPuback };
        let release = self.use_up_unsure() && qos == Qos::ExactlyOnce;
        self.outbound.push_back(Entry { delivery, state, releases: release });
        self.live += 1;
        Reserved::New { id, release }
    }

    fn reserve_again(&mut self, delivery: u64, max: usize) -> Option<Reserved> {
        let wanted = |entry: &Entry| {
            entry.delivery == delivery && (entry.state.is_stale() || entry.state == State::AwaitPubcomp)
        };
        let index = self.outbound.iter().take(self.resumed).position(wanted)?;
        if self.outbound[index].state == State::AwaitPubcomp {
            return Some(Reserved::Released);
        }
        if self.live >= max {
            return Some(Reserved::WindowFull);
        }
        let entry = &mut self.outbound[index];
        entry.state = if entry.state == State::StaleQos2 { State::AwaitPubrec } else { State::AwaitPuback };
        let release = entry.releases && entry.state == State::AwaitPubrec;
        self.stale -= 1;
        self.live += 1;
        Some(Reserved::Again { id: nth_id(self.first_id, index), release })
    }

    /// Forgets a message that was to be sent again and cannot be (too large for this connection).
    pub(crate) fn forget_stale(&mut self, delivery: u64) {
        let wanted = |entry: &Entry| entry.delivery == delivery && entry.state.is_stale();
        if let Some(index) = self.outbound.iter().position(wanted) {
            self.finish(index);
        }
    }

    /// An id for a packet that is a request and no message.
    pub(crate) fn reserve_request(&mut self) -> u16 {
        let id = self.next_id();
        self.outbound.push_back(Entry { delivery: 0, state: State::Request, releases: false });
        id
    }

    pub(crate) fn finish_request(&mut self, id: u16) {
        self.settle(id, |state| state == State::Request);
    }

    fn drop_stale_head(&mut self) {
        for index in 0..self.stale_head() {
            if self.outbound[index].state.is_stale() {
                self.outbound[index].state = State::Done;
                self.stale -= 1;
            }
        }
        self.trim();
    }

    pub(crate) fn handle_puback(&mut self, id: u16) -> Settled {
        self.settle(id, |state| matches!(state, State::AwaitPuback | State::StaleQos1))
    }

    /// With `is_refused` the hand-shake ends here (MQTT 5 §4.3.3).
    pub(crate) fn handle_pubrec(&mut self, id: u16, is_refused: bool) -> Settled {
        if is_refused {
            return self.settle(id, |state| matches!(state, State::AwaitPubrec | State::StaleQos2));
        }
        let Some(index) = self.index_of(id) else { return Settled::Unknown };
        let entry = &mut self.outbound[index];
        match entry.state {
            State::AwaitPubrec => entry.state = State::AwaitPubcomp,
            State::StaleQos2 => {
                entry.state = State::AwaitPubcomp;
                self.stale -= 1;
                self.live += 1;
            }
            State::AwaitPubcomp => {}
            _ => return Settled::Unknown,
        }
        Settled::Release
    }

    pub(crate) fn handle_pubcomp(&mut self, id: u16) -> Settled {
        self.settle(id, |state| state == State::AwaitPubcomp)
    }

    fn settle(&mut self, id: u16, is_expected: impl Fn(State) -> bool) -> Settled {
        match self.index_of(id) {
            Some(index) if is_expected(self.outbound[index].state) => {
                let delivery = self.outbound[index].delivery;
                self.finish(index);
                Settled::Done { delivery }
            }
            _ => Settled::Unknown,
        }
    }

    fn finish(&mut self, index: usize) {
        let entry = &mut self.outbound[index];
        match entry.state {
            State::AwaitPuback | State::AwaitPubrec | State::AwaitPubcomp => self.live -= 1,
            State::StaleQos1 | State::StaleQos2 => self.stale -= 1,
            State::Request | State::Done => {}
        }
        entry.state = State::Done;
        self.trim();
    }

    /// Takes settled entries off the head, each once in its life.
    fn trim(&mut self) {
        while self.outbound.front().is_some_and(|entry| entry.state == State::Done) {
            self.outbound.pop_front();
            self.first_id = nth_id(self.first_id, 1);
            self.resumed = self.resumed.saturating_sub(1);
        }
    }

    fn index_of(&self, id: u16) -> Option<usize> {
        if id == 0 {
            return None;
        }
        let distance = (u32::from(id) + IDS - u32::from(self.first_id)) % IDS;
        let index = distance as usize;
        (index < self.outbound.len()).then_some(index)
    }

    /// The connection is gone: what was sent and not settled is to be sent again.
    ///
    /// A QoS 2 publish of the peer's that was not answered is forgotten: the peer did not get PUBREC and sends it again.
    /// So the driver should hand in the answers that are still to come before it takes the state.
    pub(crate) fn detach(&mut self) {
        for entry in &mut self.outbound {
            entry.state = match entry.state {
                State::AwaitPuback => State::StaleQos1,
                State::AwaitPubrec => State::StaleQos2,
                State::Request => State::Done,
                other => other,
            };
        }
        self.trim();
        self.resumed = self.outbound.len();
        self.stale = self.outbound.iter().filter(|entry| entry.state.is_stale()).count();
        self.live = self.outbound.iter().filter(|entry| entry.state == State::AwaitPubcomp).count();
        self.inbound.retain(|inbound| inbound.is_received);
    }

    /// The ids whose PUBREL is to be sent again, in order (MQTT-4.4.0-1).
    pub(crate) fn released_ids(&self) -> impl Iterator<Item = u16> + '_ {
        let entries = self.outbound.iter().enumerate();
        entries
            .filter(|(_, entry)| entry.state == State::AwaitPubcomp)
            .map(|(index, _)| nth_id(self.first_id, index))
    }

    /// A QoS 2 PUBLISH of the peer's.
    pub(crate) fn arrive(&mut self, id: u16) -> Arrived {
        match self.inbound.iter().find(|inbound| inbound.id == id) {
            Some(inbound) if inbound.is_received => Arrived::Received,
            Some(_) => Arrived::Pending,
            None => {
                self.inbound.push(Inbound { id, is_received: false });
                Arrived::First
            }
        }
    }

    /// Whether a QoS 2 PUBLISH with this id would be a duplicate.
    pub(crate) fn has_arrived(&self, id: u16) -> bool {
        self.inbound.iter().any(|inbound| inbound.id == id)
    }

    /// QoS 2 publishes of the peer's that are not released.
    pub(crate) fn inbound_len(&self) -> usize {
        self.inbound.len()
    }

    /// The answer to a QoS 2 publish: true when PUBREC is to be sent. A refused one is forgotten (MQTT 5 §4.3.3).
    pub(crate) fn answer(&mut self, id: u16, is_refused: bool) -> bool {
        let Some(index) = self.inbound.iter().position(|inbound| inbound.id == id && !inbound.is_received)
        else {
            return false;
        };
        if is_refused {
            self.inbound.swap_remove(index);
        } else {
            self.inbound[index].is_received = true;
        }
        true
    }

    /// PUBREL of the peer's: false when its id is not known, or not answered yet.
    pub(crate) fn release(&mut self, id: u16) -> bool {
        let Some(index) = self.inbound.iter().position(|inbound| inbound.id == id && inbound.is_received)
        else {
            return false;
        };
        self.inbound.swap_remove(index);
        true
    }
}

fn ring_max(window_max: usize) -> usize {
    (window_max * RING_PER_WINDOW).clamp(64, IDS as usize / 2)
}

/// The id that stands `distance` after `id`; 0 is no id.
fn nth_id(id: u16, distance: usize) -> u16 {
    let zero_based = (u32::from(id) - 1 + (distance as u32 % IDS)) % IDS;
    zero_based as u16 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_given_in_a_row_and_skip_zero_when_they_wrap() {
        let mut inflight = Inflight::new(65_535);
        assert_eq!(inflight.reserve(1, Qos::AtLeastOnce, 10), Reserved::New { id: 65_535, release: false });
        assert_eq!(inflight.reserve(2, Qos::AtLeastOnce, 10), Reserved::New { id: 1, release: false });
        assert_eq!(inflight.handle_puback(65_535), Settled::Done { delivery: 1 });
        assert_eq!(inflight.handle_puback(65_535), Settled::Unknown);
        assert_eq!(inflight.handle_puback(1), Settled::Done { delivery: 2 });
        assert!(inflight.is_empty());
        assert_eq!(inflight.next_id(), 2);
    }

    #[test]
    fn the_window_is_full_until_something_is_settled() {
        let mut inflight = Inflight::new(1);
        assert_eq!(inflight.window(2), 2);
        inflight.reserve(1, Qos::AtLeastOnce, 2);
        inflight.reserve(2, Qos::ExactlyOnce, 2);
        assert_eq!((inflight.window(2), inflight.reserve(3, Qos::AtLeastOnce, 2)), (0, Reserved::WindowFull));
        assert_eq!(inflight.handle_pubrec(2, false), Settled::Release);
        assert_eq!(inflight.window(2), 0);
        assert_eq!(inflight.handle_pubcomp(2), Settled::Done { delivery: 2 });
        assert_eq!(inflight.window(2), 1);
    }

    #[test]
    fn acknowledgements_out_of_order_leave_holes_that_close() {
        let mut inflight = Inflight::new(1);
        for delivery in 1..=4 {
            inflight.reserve(delivery, Qos::AtLeastOnce, 4);
        }
        assert_eq!(inflight.handle_puback(3), Settled::Done { delivery: 3 });
        assert_eq!(inflight.handle_puback(3), Settled::Unknown);
        assert_eq!(inflight.handle_puback(1), Settled::Done { delivery: 1 });
        assert_eq!(inflight.handle_puback(4), Settled::Done { delivery: 4 });
        assert_eq!(inflight.handle_puback(2), Settled::Done { delivery: 2 });
        assert!(inflight.is_empty());
    }

    #[test]
    fn a_message_that_is_never_acknowledged_stops_the_ring_and_not_the_memory() {
        let mut inflight = Inflight::new(1);
        assert_eq!(inflight.reserve(0, Qos::AtLeastOnce, 16), Reserved::New { id: 1, release: false });
        let mut sent = 1;
        while let Reserved::New { id, .. } = inflight.reserve(sent, Qos::AtLeastOnce, 16) {
            inflight.handle_puback(id);
            sent += 1;
        }
        assert_eq!((sent, inflight.window(16)), (64, 0));
        inflight.handle_puback(1);
        assert_eq!(inflight.window(16), 16);
    }

    #[test]
    fn after_a_resumption_old_deliveries_get_their_old_ids() {
        let mut inflight = Inflight::new(7);
        inflight.reserve(70, Qos::AtLeastOnce, 4);
        inflight.reserve(80, Qos::ExactlyOnce, 4);
        inflight.reserve(90, Qos::ExactlyOnce, 4);
        inflight.handle_pubrec(9, false);
        inflight.detach();
        assert_eq!(inflight.window(4), 3);
        assert_eq!(inflight.released_ids().collect::<Vec<_>>(), [9]);
        assert_eq!(inflight.reserve(70, Qos::AtLeastOnce, 4), Reserved::Again { id: 7, release: false });
        assert_eq!(inflight.reserve(80, Qos::ExactlyOnce, 4), Reserved::Again { id: 8, release: false });
        assert_eq!(inflight.reserve(100, Qos::AtLeastOnce, 4), Reserved::New { id: 10, release: false });
        assert_eq!(inflight.handle_pubcomp(9), Settled::Done { delivery: 90 });
    }

    #[test]
    fn a_released_delivery_offered_again_is_not_sent_again() {
        let mut inflight = Inflight::new(1);
        inflight.reserve(5, Qos::ExactlyOnce, 4);
        inflight.handle_pubrec(1, false);
        inflight.detach();
        assert_eq!(inflight.reserve(5, Qos::ExactlyOnce, 4), Reserved::Released);
    }

    #[test]
    fn stale_messages_that_nobody_offers_again_do_not_stop_the_session() {
        let mut inflight = Inflight::new(1);
        for delivery in 0..4 {
            inflight.reserve(delivery, Qos::AtLeastOnce, 4);
        }
        inflight.detach();
        for delivery in 100..1_000 {
            assert!(inflight.window(4) > 0);
            let Reserved::New { id, .. } = inflight.reserve(delivery, Qos::AtLeastOnce, 4) else {
                panic!("stuck at {delivery}")
            };
            assert_eq!(inflight.handle_puback(id), Settled::Done { delivery });
        }
    }

    #[test]
    fn an_inbound_qos2_id_is_a_duplicate_until_it_is_released() {
        let mut inflight = Inflight::new(1);
        assert_eq!(inflight.arrive(9), Arrived::First);
        assert_eq!(inflight.arrive(9), Arrived::Pending);
        assert!(!inflight.release(9));
        assert!(inflight.answer(9, false));
        assert_eq!(inflight.arrive(9), Arrived::Received);
        assert!(inflight.release(9));
        assert!(!inflight.release(9));
        assert_eq!(inflight.arrive(9), Arrived::First);
    }
}
