//! One connection: a transport, a protocol, and the little that lies between them.

use super::transport::Transport;
use super::{Protocol, TRANSIENT};
use crate::tokens::Proof;
use postrider_core::id::{Seq, UnixMillis};
use postrider_core::model::Content;
use postrider_core::port::{ConnectionRef, LiveTarget, Position};
use postrider_core::topics::SessionNo;
use postrider_proto::{Event, Millis};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

pub struct Conn {
    pub transport: Transport,
    pub protocol: Protocol,
    pub peer: IpAddr,
    pub generation: u32,
    pub session: Option<SessionNo>,
    /// To be written; empty (and without memory) nearly always.
    pub out: Vec<u8>,
    pub written: u32,
    /// The wheel's tick that counts; entries of other ticks are leftovers.
    pub armed: u32,
    /// How far the inbox is drained.
    pub position: Position,
    pub busy: Option<Box<Busy>>,
    pub next_live: u32,
    /// Publishes of the peer whose commit is under way.
    pub uncommitted: u16,
    pub phase: Phase,
    pub lane: Lane,
    pub signed_in: bool,
    /// The ticket of its place until it has signed in, then the time of that: one number, since every connection has it.
    pub(super) ticket_or_time: u64,
    pub is_dirty: bool,
    pub is_draining: bool,
    /// The peer has sent all that it will send.
    pub is_ending: bool,
    /// Not read from while it does not take its answers.
    pub is_held: bool,
    /// The last drain filled the window: more may lie there.
    pub more: bool,
    pub paused: bool,
    pub orderly: bool,
    /// Signed in by a ticket: reads the inbox and acknowledges, nothing else.
    pub only_reads: bool,
    /// It was challenged to prove a password, and has not answered.
    pub owes_proof: bool,
    /// TLS begins as soon as everything is written.
    pub starts_tls: bool,
    /// The protocol is to be told when TLS is up.
    pub awaits_tls: bool,
    pub reads: Reads,
}

/// What a connection has only while something is going on.
#[derive(Default)]
pub struct Busy {
    /// When each unacknowledged delivery was written.
    pub sent: VecDeque<(Seq, UnixMillis)>,
    /// Live messages above QoS 0 that wait for the window.
    pub waiting: WaitingQueue,
    /// When a closing connection is cut off.
    pub deadline: Option<Millis>,
    /// The peer takes nothing since.
    pub blocked_since: Option<Millis>,
    pub budget: Option<Budget>,
    /// Acknowledgements of nothing that it may still send.
    pub bad_acks: Option<Budget>,
    pub goodbye_expiry_secs: Option<u32>,
    /// A change of its account is under way.
    pub changes_account: bool,
    /// A sign-in that waits for the client's older connection to leave.
    pub parked: Option<Box<Parked>>,
    /// What the peer said behind a SUBSCRIBE that has to be answered first.
    pub held: Option<VecDeque<Event>>,
    /// The newer connection that waits for this one to leave.
    pub successor: Option<ConnectionRef>,
}

/// A sign-in that was checked, and by whom.
pub struct Parked {
    pub connect: postrider_proto::Connect,
    pub client: postrider_core::session::Client,
    pub assigned: Option<String>,
    /// What the device showed.
    pub proof: Proof,
}

/// A live message that waits for the window.
pub struct Waiting {
    pub content: Arc<Content>,
    pub target: LiveTarget,
    pub expires_at: Option<UnixMillis>,
}

/// How a connection counts (`admission.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// With its ticket ([`Conn::ticket`]) while it has not signed in.
    Counted,
    /// It is let in only to be told that there is no place.
    Refused,
    /// Its proxy has not said yet for whom it is.
    Unnamed,
}

impl Waiting {
    /// What it costs to keep, near enough: contents are shared, but nobody may rely on that.
    fn bytes(&self) -> usize {
        let topic = self.content.topic.as_ref().map_or(0, String::len);
        self.content.payload.len() + topic + 200
    }
}

/// Live messages in the order in which they came, bounded in number and in bytes.
#[derive(Default)]
pub struct WaitingQueue {
    queue: VecDeque<Waiting>,
    bytes: usize,
}

impl WaitingQueue {
    /// False, and nothing is kept, where there is no room.
    pub fn push(&mut self, waiting: Waiting, count_max: usize, bytes_max: usize) -> bool {
        let bytes = self.bytes + waiting.bytes();
        if self.queue.len() >= count_max || bytes > bytes_max {
            return false;
        }
        self.bytes = bytes;
        self.queue.push_back(waiting);
        true
    }

    pub fn pop(&mut self) -> Option<Waiting> {
        let first = self.queue.pop_front()?;
        self.bytes -= first.bytes();
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
        Some(first)
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn clear(&mut self) {
        *self = WaitingQueue::default();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Open,
    /// Write what is left, then close at once.
    Closing,
    /// Write what is left, close our side, read until the peer closes its own.
    ClosingGently,
    Lingering,
    /// The socket is done; the session is left when the last commit for it has come.
    Settling,
}

/// Publishes a connection may send (limit L16): a bucket that refills with time.
pub struct Budget {
    tokens: f64,
    at: Millis,
}

impl Budget {
    pub fn new(burst: u32, now: Millis) -> Budget {
        Budget { tokens: f64::from(burst), at: now }
    }

    /// Takes one; false when the bucket was empty, which then goes into debt.
    pub fn take(&mut self, per_sec: u32, burst: u32, now: Millis) -> bool {
        self.take_at(f64::from(per_sec), burst, now)
    }

    /// The same at a rate below one a second.
    pub fn take_at(&mut self, per_sec: f64, burst: u32, now: Millis) -> bool {
        self.refill_at(per_sec, burst, now);
        self.tokens -= 1.0;
        self.tokens >= 0.0
    }

    pub fn refill(&mut self, per_sec: u32, burst: u32, now: Millis) -> bool {
        self.refill_at(f64::from(per_sec), burst, now)
    }

    fn refill_at(&mut self, per_sec: f64, burst: u32, now: Millis) -> bool {
        let secs = now.saturating_sub(self.at) as f64 / 1000.0;
        self.at = now;
        self.tokens = (self.tokens + secs * per_sec).min(f64::from(burst));
        self.tokens >= 1.0
    }
}

/// What a connection said in this second, in reads and KiB; two bytes, since every connection has it.
#[derive(Default)]
pub struct Reads {
    count: u8,
    /// Modulo 256.
    second: u8,
}

impl Reads {
    /// One more read; false from the 255th in a second on, counting each KiB for another one.
    pub fn count(&mut self, bytes: usize, now: Millis) -> bool {
        let second = (now / 1_000) as u8;
        if second != self.second {
            *self = Reads { count: 0, second };
        }
        self.count = self.count.saturating_add((1 + bytes / 1_024).try_into().unwrap_or(u8::MAX));
        self.count < u8::MAX
    }
}

impl Conn {
    /// Names its place while it has not signed in; 0 when it is known.
    pub fn ticket(&self) -> u64 {
        if self.signed_in { 0 } else { self.ticket_or_time }
    }

    /// It waits no longer to sign in; gives the ticket by which it did.
    pub fn take_ticket(&mut self) -> u64 {
        if self.signed_in { 0 } else { std::mem::take(&mut self.ticket_or_time) }
    }

    /// It signed in; gives the ticket by which it waited.
    pub fn sign_in(&mut self, at: UnixMillis) -> u64 {
        let ticket = self.take_ticket();
        (self.signed_in, self.ticket_or_time) = (true, at);
        ticket
    }

    /// 0 until it has.
    pub fn signed_in_at(&self) -> UnixMillis {
        if self.signed_in { self.ticket_or_time } else { 0 }
    }

    /// Bytes not yet taken by the socket.
    pub fn backlog(&self) -> usize {
        self.out.len() - self.written as usize
    }

    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// A token for a live delivery, which no inbox entry can have.
    pub fn live_token(&mut self) -> u64 {
        self.next_live = self.next_live.wrapping_add(1);
        TRANSIENT | u64::from(self.next_live)
    }

    pub fn busy(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    /// Gives back what a quiet connection does not need.
    pub fn rest(&mut self) {
        let is_quiet = |b: &mut Box<Busy>| {
            b.sent.is_empty()
                && b.waiting.is_empty()
                && b.deadline.is_none()
                && b.blocked_since.is_none()
                && b.budget.is_none()
                && b.bad_acks.is_none()
                && b.goodbye_expiry_secs.is_none()
                && !b.changes_account
                && b.parked.is_none()
                && b.held.is_none()
                && b.successor.is_none()
        };
        self.busy.take_if(is_quiet);
    }

    /// Whether what the peer says waits for the answer to a SUBSCRIBE.
    pub fn is_holding(&self) -> bool {
        self.busy.as_ref().is_some_and(|b| b.held.is_some())
    }

    pub fn is_waiting(&self) -> bool {
        self.busy.as_ref().is_some_and(|b| !b.waiting.is_empty())
    }

    pub fn blocked_since(&self) -> Option<Millis> {
        self.busy.as_ref()?.blocked_since
    }

    pub fn deadline(&self) -> Option<Millis> {
        self.busy.as_ref()?.deadline
    }

    /// Whether the delivery was written and is not acknowledged.
    pub fn is_sent(&self, seq: Seq) -> bool {
        self.busy.as_ref().is_some_and(|b| b.sent.iter().any(|(s, _)| *s == seq))
    }

    /// When the delivery was written; forgets it.
    pub fn take_sent(&mut self, seq: Seq) -> Option<UnixMillis> {
        let sent = &mut self.busy.as_mut()?.sent;
        let place = sent.iter().position(|(s, _)| *s == seq)?;
        let at = sent.remove(place).map(|(_, at)| at);
        self.rest();
        at
    }

    /// Writes as much as the socket takes, in one call when it takes all. `spare` gets the buffer back when it is empty.
    pub fn flush(&mut self, spare: &mut Vec<Vec<u8>>) -> std::io::Result<()> {
        while self.backlog() > 0 {
            match self.transport.write(&self.out[self.written as usize..])? {
                0 => return Ok(()),
                n => self.written += n as u32,
            }
        }
        self.transport.flush()?;
        self.written = 0;
        let mut empty = std::mem::take(&mut self.out);
        if empty.capacity() > 0 && empty.capacity() <= 256 * 1024 && spare.len() < 256 {
            empty.clear();
            spare.push(empty);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ten million connections cost: nothing may grow unseen.
    #[test]
    fn a_connection_at_rest_is_as_small_as_the_figures_say() {
        assert!(size_of::<Conn>() <= 232, "{}", size_of::<Conn>());
    }

    #[test]
    fn a_flood_of_reads_is_stopped_until_the_next_second() {
        let mut reads = Reads::default();
        assert!((0..254).all(|_| reads.count(1, 5_000)));
        assert!(!reads.count(1, 5_999) && !reads.count(1, 5_999));
        assert!((0..254).all(|n| reads.count(1_023, 6_000 + n)));
        assert!(!reads.count(1, 6_500) && reads.count(1, 7_000));
        assert!((0..3).all(|_| reads.count(65_536, 8_000)) && !reads.count(65_536, 8_000));
        assert!(!reads.count(usize::MAX, 9_000));
    }

    #[test]
    fn live_messages_that_wait_are_bounded_in_number_and_in_bytes() {
        let waiting = |len: usize| Waiting {
            content: Arc::new(Content {
                topic: Some("t".into()),
                payload: vec![0; len].into(),
                properties: None,
            }),
            target: LiveTarget {
                connection: ConnectionRef { shard: 0, slot: 0, generation: 0 },
                qos: 1,
                retain: false,
                subscription_ids: Vec::new(),
            },
            expires_at: None,
        };
        let mut queue = WaitingQueue::default();
        let fits = |queue: &mut WaitingQueue, len| queue.push(waiting(len), 3, 2_000);
        assert!(
            fits(&mut queue, 1_000)
                && !fits(&mut queue, 1_000)
                && fits(&mut queue, 10)
                && fits(&mut queue, 20)
        );
        assert!(!fits(&mut queue, 0), "the fourth");
        assert_eq!(queue.pop().unwrap().content.payload.len(), 1_000);
        assert!(fits(&mut queue, 1_000));
        while queue.pop().is_some() {}
        assert!(queue.is_empty() && queue.bytes == 0);
    }

    #[test]
    fn a_budget_allows_its_burst_then_its_rate() {
        let mut budget = Budget::new(5, 0);
        assert!((0..5).all(|_| budget.take(2, 5, 0)));
        assert!(!budget.take(2, 5, 0) && !budget.refill(2, 5, 500));
        assert!(budget.refill(2, 5, 1_500) && budget.take(2, 5, 1_500));
    }
}
