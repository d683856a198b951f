//! The only connection loop. One turn of a worker:
//!
//! ```text
//!   wait ─► sockets: read, let the protocol speak, act on its events
//!        ─► mail: answers of the store, wakes, live messages of other workers
//!        ─► commit what this turn's publishes need; record its acknowledgements; drain inboxes of woken connections
//!        ─► write to each dirty connection, once
//!        ─► record what ended by being written
//!        ─► look at the connections whose deadline came
//! ```

use super::conn::{Conn, Lane, Phase, Reads};
use super::echo::Echo;
use super::listener::{Incoming, Listens, Speaks};
use super::mailbox::{Mail, Mailbox};
use super::mqtt::Wanted;
use super::poll::WaitingPoll;
use super::transport::{Received, Transport};
use super::wheel::Wheel;
use super::{Begin, Protocol, Reply, Shared, label};
use crate::planted;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use postrider_core::delivery::publish::Collected;
use postrider_core::delivery::receipt::Ack;
use postrider_core::port::{ConnectionRef, Farewell, Position};
use postrider_core::session::Detach;
use postrider_core::topics::SessionNo;
use postrider_proto::json::{EventStream, SocketConnection};
use postrider_proto::ws::{self, MqttOverWs, WsConfig, XmppOverWs};
use postrider_proto::{
    Close, Fanned, Goodbye, Millis, Output, PublishOutcome, mqtt as mqtt_proto, xmpp as xmpp_proto,
};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

const WAKER: Token = Token(usize::MAX);
/// Tokens from here on are listeners.
pub(super) const LISTENERS: usize = usize::MAX - 64;
const SCRATCH_BYTES: usize = 64 * 1024;
/// Reads of one connection in one turn, so that a flood does not starve the others.
const READS_PER_TURN: usize = 4;
/// How long a peer may take to close after our farewell.
pub(super) const LINGER_MS: Millis = 2_000;
/// How long a connection whose socket is gone waits for the store.
const SETTLE_MS: Millis = 10_000;

pub(crate) struct Driver {
    shard: u16,
    pub(super) poll: Poll,
    pub mailbox: Arc<Mailbox>,
    pub workers: Vec<Arc<Mailbox>>,
    pub(super) shared: Arc<Shared>,
    pub(super) listeners: Vec<(TcpListener, Listens)>,
    pub(super) conns: Vec<Option<Box<Conn>>>,
    pub(super) free: Vec<u32>,
    generations: Vec<u32>,
    pub(super) wheel: Wheel,
    pub(super) now: Millis,

    // Scratch, reused by every turn.
    scratch: Vec<u8>,
    pub(super) output: Output,
    pub(super) spare: Vec<Vec<u8>>,
    letters: Vec<Mail>,
    pub(super) dirty: Vec<u32>,
    pub(super) draining: Vec<u32>,
    pub(super) again: Vec<u32>,
    pub(super) collected: Collected,
    /// Answers that wait for the commit, with which of `collected.commands` each waits for.
    pub(super) replies: Vec<(ConnectionRef, u32, PublishOutcome, Range<usize>)>,
    pub(super) acks: Vec<Ack>,
    /// Acknowledgements since the last commit of them whose delivery this worker's connections did not write.
    pub(super) strays: HashSet<(SessionNo, u64)>,
    /// Retained messages to send behind a SUBSCRIBE's answer, which is still on its way from the store.
    pub(super) wanted: HashMap<(ConnectionRef, u32), Vec<Wanted>>,
    /// The latest messages that were drained, encoded: a broadcast is encoded once, not once a device.
    pub(super) fanned: std::collections::VecDeque<(u64, Fanned)>,
    /// When a header of a proxy was last complained of.
    pub(super) header_warned_at: Millis,
    stopping_until: Option<Millis>,
    /// Listeners that could not accept, to be tried again with the next tick.
    pub(super) listeners_later: Vec<usize>,
}

impl Driver {
    pub fn new(
        shard: u16,
        shared: Arc<Shared>,
        listeners: Vec<(TcpListener, Listens)>,
    ) -> io::Result<Driver> {
        let poll = Poll::new()?;
        let live_bytes_max = shared.config.mailbox_bytes_max;
        let mailbox = Arc::new(Mailbox::new(mio::Waker::new(poll.registry(), WAKER)?, live_bytes_max));
        let mut listeners = listeners;
        for (i, (listener, _)) in listeners.iter_mut().enumerate() {
            poll.registry().register(listener, Token(LISTENERS + i), Interest::READABLE)?;
        }
        Ok(Driver {
            shard,
            poll,
            mailbox,
            workers: Vec::new(),
            shared,
            listeners,
            conns: Vec::new(),
            free: Vec::new(),
            generations: Vec::new(),
            wheel: Wheel::new(0),
            now: 0,
            scratch: vec![0; SCRATCH_BYTES],
            output: Output::default(),
            spare: Vec::new(),
            letters: Vec::new(),
            dirty: Vec::new(),
            draining: Vec::new(),
            again: Vec::new(),
            collected: Collected::default(),
            replies: Vec::new(),
            acks: Vec::new(),
            strays: HashSet::new(),
            wanted: HashMap::new(),
            fanned: std::collections::VecDeque::new(),
            header_warned_at: 0,
            stopping_until: None,
            listeners_later: Vec::new(),
        })
    }

    pub fn shard(&self) -> u16 {
        self.shard
    }

    pub fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            let wait = if self.again.is_empty() { self.wheel.next().saturating_sub(self.now) } else { 0 };
            if let Err(error) = self.poll.poll(&mut events, Some(Duration::from_millis(wait)))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "waiting for sockets failed");
                return;
            }
            planted::panic_in_thread("gateway");
            self.now = self.shared.start.elapsed().as_millis() as Millis;
            self.turn(&events);
            if self.stopping_until.is_some_and(|until| until <= self.now || self.is_empty()) {
                return self.drop_all();
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.conns.len() == self.free.len()
    }

    fn turn(&mut self, events: &Events) {
        for slot in std::mem::take(&mut self.again) {
            self.guarded(slot, |d| d.readable(slot));
        }
        for event in events.iter() {
            match event.token() {
                WAKER => {}
                Token(t) if t >= LISTENERS => self.accept(t - LISTENERS),
                Token(slot) => {
                    let slot = slot as u32;
                    if event.is_writable()
                        && self.conn(slot).is_some_and(|c| c.backlog() > 0 || c.transport.has_pending())
                    {
                        self.mark_dirty(slot);
                    }
                    if let Some(conn) = self.conn(slot) {
                        conn.is_ending |= event.is_read_closed() || event.is_error();
                    }
                    if event.is_readable() || event.is_read_closed() || event.is_error() {
                        self.guarded(slot, |d| d.readable(slot));
                    }
                }
            }
        }
        self.read_mail();
        self.commit_publishes();
        // Before inboxes are drained: what was acknowledged just now is neither among the written ones any more nor among
        // those whose end the core knows, and a drain from the beginning would send it again.
        self.record_acks();
        self.drain_woken();
        self.write_dirty();
        self.record_acks();
        self.look_at_deadlines();
        self.write_dirty();
    }

    /// A panic ends the connection in whose name it happened, and nothing else (P15).
    pub(super) fn guarded(&mut self, slot: u32, f: impl FnOnce(&mut Driver)) {
        if catch_unwind(AssertUnwindSafe(|| f(self))).is_err() {
            self.shared.metrics.panics.inc();
            tracing::error!(slot, "a connection was ended by a panic in its handling");
            // What it had taken is gone with it.
            self.output = Output::default();
            self.scratch.resize(SCRATCH_BYTES, 0);
            self.close_now(slot, "panic");
        }
    }

    /// The same for a connection that may have ended meanwhile.
    pub(super) fn guarded_if_there(&mut self, at: ConnectionRef, f: impl FnOnce(&mut Driver)) {
        if self.find(at).is_some() {
            self.guarded(at.slot, f);
        }
    }

    pub(super) fn conn(&mut self, slot: u32) -> Option<&mut Conn> {
        self.conns.get_mut(slot as usize)?.as_deref_mut()
    }

    pub(super) fn reference(&self, slot: u32) -> ConnectionRef {
        let generation = self.generations.get(slot as usize).copied().unwrap_or_default();
        ConnectionRef { shard: self.shard, slot, generation }
    }

    /// The connection that a reference means, if it is still the same.
    pub(super) fn find(&mut self, at: ConnectionRef) -> Option<&mut Conn> {
        self.conn(at.slot).filter(|c| c.generation == at.generation)
    }

    pub(super) fn add(&mut self, incoming: Incoming, (lane, ticket): (Lane, u64)) -> io::Result<()> {
        let Incoming { mut stream, peer, speaks, first, .. } = incoming;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            self.generations.push(0);
            (self.conns.len() - 1) as u32
        });
        // Both at once and for good: an edge-triggered socket tells each change once, and is never asked again.
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut stream, Token(slot as usize), interest) {
            self.free.push(slot);
            return Err(error);
        }
        let generation = self.generations[slot as usize];
        let awaits_tls = matches!(speaks, Speaks::XmppTls(_));
        let (transport, protocol, begin) = match self.speaker(stream, speaks) {
            Ok(speaker) => speaker,
            Err(error) => {
                self.free.push(slot);
                return Err(error);
            }
        };
        let is_poll = matches!(protocol, Protocol::Poll(_));
        let mut conn = new_conn(transport, protocol, generation, peer);
        conn.awaits_tls = awaits_tls;
        (conn.lane, conn.ticket_or_time) = (lane, ticket);
        self.conns[slot as usize] = Some(Box::new(conn));
        self.rearm(slot);
        match begin {
            Some(begin) => self.guarded(slot, |d| d.begin_stream(slot, begin)),
            None if is_poll => self.guarded(slot, |d| d.begin_wait(slot)),
            None if !first.is_empty() => self.guarded(slot, |d| d.speak(slot, &first)),
            None => {}
        }
        // What came before the socket was registered is told by the first wait.
        Ok(())
    }

    /// The two halves of a connection, and how a stream is to begin.
    fn speaker(
        &self,
        stream: mio::net::TcpStream,
        speaks: Speaks,
    ) -> io::Result<(Transport, Protocol, Option<Begin>)> {
        let (now, config) = (self.now, &self.shared.config);
        let mqtt = || mqtt_proto::ServerConnection::new(config.mqtt.clone(), now);
        let protocol = match speaks {
            Speaks::Mqtt => Protocol::Mqtt(mqtt()),
            Speaks::MqttTls(tls) => {
                let transport = Transport::tls(stream, tls).map_err(io::Error::other)?;
                return Ok((transport, Protocol::Mqtt(mqtt()), None));
            }
            Speaks::Xmpp => Protocol::Xmpp(self.xmpp()),
            Speaks::XmppTls(tls) => {
                let transport = Transport::tls(stream, tls).map_err(io::Error::other)?;
                return Ok((transport, Protocol::Xmpp(self.xmpp()), None));
            }
            Speaks::XmppOverWebSocket => {
                let (ws, xmpp) = (config.websocket.clone(), config.xmpp.server.clone());
                // As for all that comes by HTTP, TLS is the matter of what stands in front of it.
                let tunnel = XmppOverWs::new(ws, xmpp, self.shared.engine.chance.bytes(), true, now);
                Protocol::XmppOverWebSocket(Box::new(tunnel))
            }
            Speaks::MqttOverWebSocket => {
                Protocol::MqttOverWebSocket(Box::new(MqttOverWs::new(config.websocket.clone(), mqtt())))
            }
            Speaks::Json(deflate) => {
                let ws = ws::ServerConnection::new(config.websocket.clone(), now).with_deflate(deflate);
                let socket = SocketConnection::new(config.json.clone(), ws, now);
                Protocol::Json(Box::new(socket))
            }
            Speaks::EventStream(begin) => {
                let mut begin = *begin;
                let headers = std::mem::take(&mut begin.headers);
                let events = EventStream::new(config.json.clone(), headers, now);
                let protocol = Protocol::EventStream(Box::new(events));
                return Ok((Transport::plain(stream), protocol, Some(begin)));
            }
            Speaks::Poll(wait) => {
                let until = now + wait.wait_ms;
                Protocol::Poll(Box::new(WaitingPoll { wait: *wait, until }))
            }
            Speaks::AfterHeader(waits) => Protocol::AfterHeader(waits),
            Speaks::Echo(deflate) => {
                let ws = ws::ServerConnection::new(WsConfig::for_echo_tests().into(), now);
                Protocol::Echo(Box::new(Echo(ws.with_deflate(deflate))))
            }
        };
        Ok((Transport::plain(stream), protocol, None))
    }

    fn xmpp(&self) -> Box<xmpp_proto::ServerConnection> {
        let config = self.shared.config.xmpp.server.clone();
        Box::new(xmpp_proto::ServerConnection::new(config, self.shared.engine.chance.bytes(), self.now))
    }

    pub(super) fn readable(&mut self, slot: u32) {
        if matches!(self.conn(slot).map(|c| &c.protocol), Some(Protocol::AfterHeader(_))) {
            return self.read_header(slot);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let out_max = self.shared.config.out_bytes_max;
        let mut reads = 0;
        let end = loop {
            let Some(conn) = self
                .conn(slot)
                .filter(|c| !c.paused && !c.starts_tls && !c.is_holding() && c.phase != Phase::Settling)
            else {
                break None;
            };
            if conn.backlog() > out_max {
                // It asks and does not listen to the answers: it is heard again when it has taken them.
                conn.is_held = true;
                break None;
            }
            if reads == READS_PER_TURN {
                self.again.push(slot);
                break None;
            }
            reads += 1;
            match conn.transport.read(&mut scratch) {
                Ok(Received::Bytes { n, more }) => {
                    if conn.is_open() && n > 0 {
                        self.shared.metrics.bytes_in.inc_by(n as u64);
                        self.tell_of_tls(slot);
                        self.speak(slot, &scratch[..n]);
                        self.shape(slot, n);
                    }
                    // The peer's end may lie right behind its last bytes, and would raise no edge of its own.
                    if !more && !self.conn(slot).is_some_and(|c| c.is_ending) {
                        break None;
                    }
                }
                Ok(Received::Nothing) => break None,
                Ok(Received::Closed) => break Some("peer_closed"),
                Err(error) => {
                    tracing::debug!(peer = %conn.peer, %error, "a connection broke");
                    break Some("broken");
                }
            }
        };
        self.scratch = scratch;
        if let Some(kind) = end {
            self.close_now(slot, kind);
        }
    }

    /// A peer whose protocol has words that cost it nothing, blanks between stanzas for one, is not read from for the rest of a
    /// second in which it has said very many (H77). What it says meanwhile comes at once, in one read.
    fn shape(&mut self, slot: u32, bytes: usize) {
        let (now, rate) = (self.now, self.shared.config.publishes_per_sec);
        let Some(conn) = self.conn(slot).filter(|c| rate > 0 && c.signed_in && c.protocol.is_xmpp()) else {
            return;
        };
        if !conn.reads.count(bytes, now) {
            conn.paused = true;
            self.rearm(slot);
        }
    }

    /// Lets the protocol read, and acts on what comes of it.
    fn speak(&mut self, slot: u32, bytes: &[u8]) {
        if self.refuses_as_proxy(slot, bytes) {
            return;
        }
        let (mut output, now) = (std::mem::take(&mut self.output), self.now);
        if let Some(conn) = self.conn(slot) {
            conn.protocol.as_mut().handle_bytes(bytes, now, &mut output);
        }
        self.act_on(slot, output);
        // XMPP has no sign-in that could be refused so: the stream itself is.
        if self.conn(slot).is_some_and(|c| c.lane == Lane::Refused && c.protocol.is_xmpp()) {
            self.say_goodbye(slot, Goodbye::Busy);
        }
    }

    /// Takes in the answer to an event.
    pub(super) fn answer(&mut self, slot: u32, reply: postrider_proto::Reply) {
        let (mut output, now) = (std::mem::take(&mut self.output), self.now);
        let Some(conn) = self.conn(slot) else { return };
        // Also after a close: the answer matters to the session.
        conn.protocol.as_mut().handle_reply(reply, now, &mut output);
        if conn.is_open() {
            self.act_on(slot, output);
        }
    }

    pub(super) fn say_goodbye(&mut self, slot: u32, why: Goodbye) {
        let (mut output, now) = (std::mem::take(&mut self.output), self.now);
        if let Some(conn) = self.conn(slot).filter(|c| c.is_open()) {
            conn.protocol.as_mut().handle_goodbye(why, now, &mut output);
        }
        self.act_on(slot, output);
    }

    /// Takes everything out of an output: bytes to the connection's buffer, events to their handlers, then the end.
    pub(super) fn act_on(&mut self, slot: u32, mut output: Output) {
        if !output.bytes.is_empty() {
            self.queue(slot, &output.bytes);
            output.bytes.clear();
        }
        if std::mem::take(&mut output.start_tls)
            && let Some(conn) = self.conn(slot)
        {
            conn.starts_tls = true;
        }
        let close = output.close.take();
        let mut events = std::mem::take(&mut output.events);
        // The scratch goes back first: acting on an event may let the protocol speak again.
        self.output = output;
        for event in events.drain(..) {
            self.act(slot, event);
        }
        if self.output.events.capacity() == 0 {
            self.output.events = events;
        }
        if let Some(close) = close {
            self.release(slot);
            self.close(slot, close);
        }
    }

    pub(super) fn queue(&mut self, slot: u32, bytes: &[u8]) {
        let mut spare = std::mem::take(&mut self.spare);
        if let Some(conn) = self.conn(slot) {
            if conn.out.capacity() == 0 {
                conn.out = spare.pop().unwrap_or_default();
            }
            conn.out.extend_from_slice(bytes);
        }
        self.spare = spare;
        self.mark_dirty(slot);
    }

    pub(super) fn mark_dirty(&mut self, slot: u32) {
        if let Some(conn) = self.conn(slot).filter(|c| !c.is_dirty) {
            conn.is_dirty = true;
            self.dirty.push(slot);
        }
    }

    fn write_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            self.guarded(slot, |d| d.write(slot));
        }
        // Closing a connection may have made others dirty.
        let made = std::mem::replace(&mut self.dirty, dirty);
        self.dirty.extend(made);
    }

    pub(super) fn write(&mut self, slot: u32) {
        let mut spare = std::mem::take(&mut self.spare);
        let now = self.now;
        let Some(conn) = self.conns.get_mut(slot as usize).and_then(|c| c.as_deref_mut()) else {
            self.spare = spare;
            return;
        };
        conn.is_dirty = false;
        let before = conn.backlog();
        let result = conn.flush(&mut spare);
        let (left, phase) = (conn.backlog(), conn.phase);
        let pending = left > 0 || conn.transport.has_pending();
        if pending {
            let since = conn.blocked_since().filter(|_| left == before);
            conn.busy().blocked_since = Some(since.unwrap_or(now));
        } else if let Some(busy) = &mut conn.busy {
            busy.blocked_since = None;
            conn.rest();
        }
        self.spare = spare;
        self.shared.metrics.writes.inc();
        self.shared.metrics.bytes_out.inc_by((before - left) as u64);
        match (result, phase) {
            (Err(_), _) => self.close_now(slot, "broken"),
            (Ok(()), Phase::Closing) if !pending => self.close_now(slot, "done"),
            (Ok(()), Phase::ClosingGently) if !pending => self.linger(slot),
            (Ok(()), _) if pending => self.rearm(slot),
            // Room again: what waited may go on.
            (Ok(()), Phase::Open) if self.conn(slot).is_some_and(|c| c.starts_tls) => {
                self.switch_to_tls(slot)
            }
            (Ok(()), Phase::Open) => {
                if self.conn(slot).is_some_and(|c| std::mem::take(&mut c.is_held)) {
                    self.again.push(slot);
                }
                self.continue_waiting(slot);
            }
            _ => {}
        }
    }

    /// Reads with the next turn, whether or not the socket raises an edge.
    pub(super) fn read_again(&mut self, slot: u32) {
        self.again.push(slot);
    }

    /// Our side is closed; whatever the peer still sends is read and dropped until it has read our reason and closes too.
    fn linger(&mut self, slot: u32) {
        if let Some(conn) = self.conn(slot) {
            conn.phase = Phase::Lingering;
            conn.transport.close_sending();
        }
        self.rearm(slot);
    }

    /// The protocol wants an end.
    pub(super) fn close(&mut self, slot: u32, close: Close) {
        let linger_until = self.now + LINGER_MS;
        let Some(conn) = self.conn(slot).filter(|c| c.is_open()) else { return };
        conn.phase = if close.gentle { Phase::ClosingGently } else { Phase::Closing };
        let busy = conn.busy();
        busy.deadline = Some(linger_until);
        busy.waiting.clear();
        self.shared.metrics.connections_closed.get_or_create(&label("kind", close.kind)).inc();
        if close.kind == "keepalive" {
            self.shared.metrics.keepalive_timeouts.inc();
        }
        self.waits_no_longer(slot);
        self.leave_session(slot);
        self.mark_dirty(slot);
        self.rearm(slot);
    }

    /// The session is told at once; the socket may still have bytes to write.
    fn leave_session(&mut self, slot: u32) {
        self.stop_waiting(slot);
        let (at, now) = (self.reference(slot), self.now);
        let resume_secs = (self.shared.config.xmpp.server.resume_ms / 1_000) as u32;
        // A QoS 2 publish whose commit is under way counts as received only once that is there: a client that comes back
        // and sends it again must not be taken for sending a new one.
        if self.conn(slot).is_none_or(|c| c.uncommitted > 0 || c.session.is_none()) {
            return;
        }
        // The session's number may be another's before this turn ends: what was acknowledged here would count as that one's.
        self.record_acks();
        let Some(conn) = self.conn(slot) else { return };
        let Some(session) = conn.session.take() else { return };
        let (orderly, expiry_secs) = (conn.orderly, conn.busy.as_ref().and_then(|b| b.goodbye_expiry_secs));
        let (saved, saved_bytes) = conn.protocol.take_saved(now).unzip();
        let saved_bytes = saved_bytes.unwrap_or(0);
        let saved_secs = (conn.protocol.is_xmpp() && saved.is_some()).then_some(resume_secs);
        let only_with_subscriptions = saved_secs.is_none() && conn.protocol.leaves_empty_sessions();
        let heard = conn.protocol.has_heard();
        let detach =
            Detach { orderly, heard, expiry_secs, saved, saved_bytes, saved_secs, only_with_subscriptions };
        let peer = conn.peer;
        self.shared.engine.disconnect(session, at, detach);
        // It counts as signed in until its socket is gone.
        tracing::debug!(%peer, session, "a session was left");
        let successor = self.conn(slot).and_then(|c| c.busy.as_mut()?.successor.take());
        if let Some(new) = successor {
            self.post_to(new, Mail::Proceed(new));
        }
    }

    /// Ends a connection here and now.
    pub(super) fn close_now(&mut self, slot: u32, kind: &'static str) {
        self.release(slot);
        let was_open = self.conn(slot).is_some_and(|c| c.is_open());
        if was_open {
            self.shared.metrics.connections_closed.get_or_create(&label("kind", kind)).inc();
        }
        self.leave_challenge(slot);
        self.leave_session(slot);
        if self.settles(slot) {
            return;
        }
        // The socket leaves the poll by being closed: nobody else holds it.
        self.take_out(slot);
    }

    /// Takes a connection out of the worker's books.
    pub(super) fn take_out(&mut self, slot: u32) -> Option<Box<Conn>> {
        let conn = self.conns.get_mut(slot as usize).and_then(Option::take)?;
        self.leave_lane(conn.peer, (conn.lane, conn.ticket()));
        self.generations[slot as usize] = self.generations[slot as usize].wrapping_add(1);
        self.free.push(slot);
        Some(conn)
    }

    /// The socket goes on elsewhere.
    pub(super) fn forget(&self, stream: &mut mio::net::TcpStream) -> io::Result<()> {
        self.poll.registry().deregister(stream)
    }

    /// The session waits for its commits: the socket is shut, the connection goes when they have come.
    fn settles(&mut self, slot: u32) -> bool {
        let until = self.now + SETTLE_MS;
        let Some(conn) = self.conn(slot).filter(|c| c.session.is_some()) else { return false };
        if conn.phase == Phase::Settling {
            // They did not come: the store is stuck, and the session is left as it is.
            conn.uncommitted = 0;
            self.leave_session(slot);
            return false;
        }
        conn.phase = Phase::Settling;
        conn.busy().deadline = Some(until);
        _ = conn.transport.tcp().shutdown(std::net::Shutdown::Both);
        self.rearm(slot);
        true
    }

    /// A commit for a publish of this connection came.
    pub(super) fn settle(&mut self, slot: u32) {
        let Some(conn) = self.conn(slot) else { return };
        conn.uncommitted = conn.uncommitted.saturating_sub(1);
        if conn.uncommitted > 0 {
            return;
        }
        match conn.phase {
            Phase::Open => {}
            Phase::Settling => self.close_now(slot, "settled"),
            _ => self.leave_session(slot),
        }
    }

    fn read_mail(&mut self) {
        let mut letters = std::mem::take(&mut self.letters);
        if self.mailbox.take(&mut letters) {
            self.wake_all();
        }
        for letter in letters.drain(..) {
            match letter {
                Mail::Wake(at) => self.wake(at),
                Mail::WakeAnew(at) => self.wake_anew(at),
                Mail::Live(live, targets) => self.deliver_live_mail(&live, targets),
                Mail::Close(at, why) => self.guarded_if_there(at, |d| d.farewell(at, why)),
                Mail::Succeed { old, new } => self.make_way(old, new),
                Mail::MakeRoom(at) => self.guarded_if_there(at, |d| d.make_room(at.slot)),
                Mail::Proceed(at) => self.guarded_if_there(at, |d| d.proceed(at.slot)),
                Mail::Vouched(at, outcome) => {
                    self.guarded_if_there(at, |d| d.enter_vouched(at.slot, outcome));
                }
                Mail::Reply(at, reply) => self.late_reply(at, reply),
                Mail::Replies(replies) => {
                    replies.into_iter().for_each(|(at, reply)| self.late_reply(at, reply))
                }
                Mail::Adopt(incoming) => self.admit(*incoming),
                Mail::Acknowledged(at, deliveries) => self.acknowledged(at, &deliveries),
                Mail::Shutdown => self.begin_stop(),
            }
        }
        self.letters = letters;
    }

    fn late_reply(&mut self, at: ConnectionRef, reply: Reply) {
        if self.find(at).is_some() {
            self.guarded(at.slot, |d| d.take_reply(at.slot, reply));
        } else if let Reply::Subscribed { token, .. } = reply {
            self.wanted.remove(&(at, token));
        }
    }

    fn farewell(&mut self, at: ConnectionRef, why: Farewell) {
        let goodbye = match why {
            Farewell::TakenOver => Goodbye::TakenOver,
            Farewell::Revoked => Goodbye::Revoked,
            Farewell::SessionEnded => Goodbye::SessionExpired,
        };
        self.say_goodbye(at.slot, goodbye);
    }

    /// An older connection of a client leaves for a newer one, which is told when it has: at once, or when the last commit
    /// for it has come.
    fn make_way(&mut self, old: ConnectionRef, new: ConnectionRef) {
        match self.find(old).filter(|c| c.session.is_some()) {
            Some(conn) => {
                let earlier = conn.busy().successor.replace(new);
                self.guarded(old.slot, |d| d.say_goodbye(old.slot, Goodbye::TakenOver));
                // Two wait for the same: the newest is let in, and finds what the oldest leaves. Let in before that has left, the
                // other one would find nothing, and leave a will for a client that said goodbye.
                if let Some(earlier) = earlier {
                    self.post_to(earlier, Mail::Close(earlier, Farewell::TakenOver));
                }
            }
            None => self.post_to(new, Mail::Proceed(new)),
        }
    }

    pub(super) fn post_to(&self, connection: ConnectionRef, mail: Mail) {
        if let Some(worker) = self.workers.get(usize::from(connection.shard)) {
            worker.post(mail);
        }
    }

    fn begin_stop(&mut self) {
        self.stopping_until = Some(self.now + LINGER_MS + 1_000);
        for (mut listener, _) in std::mem::take(&mut self.listeners) {
            _ = self.poll.registry().deregister(&mut listener);
        }
        for slot in 0..self.conns.len() as u32 {
            self.say_goodbye(slot, Goodbye::ServerShuttingDown);
        }
    }

    fn drop_all(mut self) {
        for slot in 0..self.conns.len() as u32 {
            self.close_now(slot, "shutdown");
        }
        self.record_acks();
    }
}

fn new_conn(transport: Transport, protocol: Protocol, generation: u32, peer: SocketAddr) -> Conn {
    Conn {
        transport,
        protocol,
        generation,
        peer: peer.ip(),
        session: None,
        out: Vec::new(),
        written: 0,
        armed: 0,
        position: Position::default(),
        busy: None,
        next_live: 0,
        uncommitted: 0,
        phase: Phase::Open,
        lane: Lane::Counted,
        signed_in: false,
        ticket_or_time: 0,
        is_dirty: false,
        is_draining: false,
        is_ending: false,
        is_held: false,
        more: false,
        paused: false,
        orderly: false,
        only_reads: false,
        owes_proof: false,
        starts_tls: false,
        awaits_tls: false,
        reads: Reads::default(),
    }
}
