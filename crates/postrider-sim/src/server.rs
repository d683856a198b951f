//! One life of the server: the real engine over the real store, the real protocol state machines, and a driver as small as
//! can be that does in virtual time what `gateway/driver.rs` does over sockets, in the same order of turns.

use crate::act::Wanted;
use crate::chance::{SimChance, SimClock};
use crate::ledger::{About, Known, Ledger};
use crate::plan::{Plan, Road};
use crate::polls::{Answered, Waiting};
use crate::providers::Handover;
use postrider_core::Engine;
use postrider_core::access::Access;
use postrider_core::delivery::publish::Collected;
use postrider_core::delivery::receipt::{Ack, ReceiptSource};
use postrider_core::hub::Saved;
use postrider_core::id::*;
use postrider_core::limits::Limits;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_core::session::{Client, Detach};
use postrider_core::topics::SessionNo;
use postrider_proto::json::{JsonConfig, SocketConnection};
use postrider_proto::mqtt::{Level, ServerConfig, ServerConnection};
use postrider_proto::ws::{self, WsConfig};
use postrider_proto::{Connect, Goodbye, Output, Reply, ServerProtocol, SubscribeOutcome, xmpp};
use postrider_store::{EmbeddedStore, OpenError, Stepper};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

pub const TRANSIENT: u64 = 1 << 63;

/// What others tell the driver.
pub enum Mail {
    Wake(ConnectionRef),
    WakeAnew(ConnectionRef),
    Live(Live, Vec<LiveTarget>),
    Close(ConnectionRef, Farewell),
    /// The first is taken over by the second: it leaves, and then tells.
    Succeed {
        old: ConnectionRef,
        new: ConnectionRef,
    },
    /// The older connection has left.
    Proceed(ConnectionRef),
    /// Acknowledgements that came by a request, and were stored.
    Acknowledged(ConnectionRef, Vec<Seq>),
    Reply(ConnectionRef, Reply),
    /// A SUBSCRIBE was answered; whether it asked for the inbox.
    Subscribed(ConnectionRef, Reply, bool),
    /// An answer for an app server: request, and what to tell.
    Answer(u64, Answer),
    /// A provider got it; whether it was known before that it had ended.
    Forwarded {
        handover: Handover,
        has_ended: bool,
    },
}

/// What an app server is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Accepted(MessageId),
    Transient,
    Refused(String),
    /// Worth another try.
    Unavailable,
    Registered(DeviceRef),
    Done,
}

#[derive(Default)]
pub struct Mailbox(Mutex<Vec<Mail>>);

impl Mailbox {
    pub fn post(&self, mail: Mail) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(mail);
    }

    pub fn take(&self) -> Vec<Mail> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Connections for Mailbox {
    fn wake(&self, connections: &[ConnectionRef]) {
        connections.iter().for_each(|c| self.post(Mail::Wake(*c)));
    }

    fn wake_anew(&self, connections: &[ConnectionRef]) {
        connections.iter().for_each(|c| self.post(Mail::WakeAnew(*c)));
    }

    fn deliver(&self, live: &Live, targets: Vec<LiveTarget>) {
        self.post(Mail::Live(live.clone(), targets));
    }

    fn close(&self, connection: ConnectionRef, why: Farewell) {
        self.post(Mail::Close(connection, why));
    }
}

/// What a connection speaks.
pub enum Protocol {
    Mqtt(Box<ServerConnection>),
    Json(Box<SocketConnection>),
    Xmpp(Box<xmpp::ServerConnection>),
}

impl Protocol {
    pub fn as_mut(&mut self) -> &mut dyn ServerProtocol {
        match self {
            Protocol::Mqtt(mqtt) => &mut **mqtt,
            Protocol::Json(socket) => &mut **socket,
            Protocol::Xmpp(xmpp) => &mut **xmpp,
        }
    }

    fn leaves_empty_sessions(&self) -> bool {
        match self {
            Protocol::Mqtt(mqtt) => mqtt.level() == Some(Level::V31),
            Protocol::Json(_) | Protocol::Xmpp(_) => true,
        }
    }

    pub fn is_xmpp(&self) -> bool {
        matches!(self, Protocol::Xmpp(_))
    }

    fn take_saved(&mut self, now: u64) -> Option<Saved> {
        match self {
            Protocol::Mqtt(mqtt) => mqtt.take_inflight().map(|inflight| inflight as Saved),
            Protocol::Json(_) => None,
            Protocol::Xmpp(xmpp) => xmpp.take_saved_stream(now).map(|stream| stream as Saved),
        }
    }
}

/// A sign-in that was checked, and waits for the client's older connection to leave.
pub struct Parked {
    pub connect: Box<Connect>,
    pub client: Client,
}

pub struct Conn {
    pub protocol: Protocol,
    pub session: Option<SessionNo>,
    pub at: Option<DeviceRef>,
    inbound: Vec<u8>,
    /// The peer's end was seen.
    ended: bool,
    pub out: Vec<u8>,
    pub in_pipe: usize,
    pub position: Position,
    pub sent: VecDeque<(Seq, UnixMillis)>,
    pub waiting: VecDeque<(Arc<Content>, LiveTarget)>,
    pub more: bool,
    pub closing: bool,
    pub orderly: bool,
    pub goodbye_expiry: Option<u32>,
    pub next_live: u32,
    pub uncommitted: u16,
    pub parked: Option<Parked>,
    /// The newer connection that waits for this one to leave.
    successor: Option<ConnectionRef>,
}

/// See the module.
pub struct Server {
    pub store: Arc<EmbeddedStore>,
    pub stepper: Stepper,
    pub engine: Engine,
    pub mail: Arc<Mailbox>,
    pub life: u64,
    pub conns: BTreeMap<u64, Conn>,
    mqtt: Arc<ServerConfig>,
    json: Arc<JsonConfig>,
    websocket: Arc<WsConfig>,
    xmpp: Arc<xmpp::ServerConfig>,
    /// Requests that wait for something to read, and answers to those that do no more.
    pub polls: BTreeMap<u64, Waiting>,
    pub answered: Vec<(u64, Answered)>,
    /// Bytes that go out after this turn, and connections that are over.
    pub written: Vec<(u64, Vec<u8>)>,
    pub closed: Vec<u64>,
    /// For the app servers.
    pub answers: Vec<(u64, Answer)>,
    draining: Vec<u64>,
    pub acks: Vec<Ack>,
    pub collected: Collected,
    pub replies: Vec<(ConnectionRef, Reply)>,
    /// Whose answer is on its way, by connection and token.
    pub wanted: BTreeMap<(u64, u32), Vec<Wanted>>,
}

/// What a turn needs of the world.
pub struct Turn<'a> {
    pub now: u64,
    pub ledger: &'a mut Ledger,
    /// Devices by name: app and index, and whether they want QoS 0.
    pub names: &'a BTreeMap<(u32, String), (usize, bool)>,
}

impl Turn<'_> {
    /// The ledger knows the device from its first sign-in on; how to speak about it.
    pub fn know(&mut self, at: DeviceRef, name: &str) -> Option<About> {
        let (index, qos0) = *self.names.get(&(at.app.0, name.to_owned()))?;
        let known = Known { index, name: name.to_owned(), qos0, delete_asked: false };
        self.ledger.devices.entry(at).or_insert(known);
        Some(About { push: None, device: Some(index) })
    }
}

pub fn reference(link: u64) -> ConnectionRef {
    ConnectionRef { shard: 0, slot: link as u32, generation: 0 }
}

impl Server {
    /// Recovers from what is on the disk.
    pub fn open(
        plan: &Plan,
        files: postrider_store::faulty::FaultyFiles,
        clock: &Arc<SimClock>,
        (life, denies): (u64, bool),
    ) -> Result<Server, OpenError> {
        let config = crate::disk::config(plan);
        let (store, stepper) = EmbeddedStore::open_stepped(config, Arc::new(files))?;
        let store = Arc::new(store);
        let limits = Limits {
            inbox_max: plan.inbox_max,
            direct_max: plan.direct_max,
            connects_per_minute_max: 0,
            ..Limits::default()
        };
        let access = Access {
            publish: vec!["devices/{device}/#".into(), "public/#".into()],
            retain: true,
            subscribe_deny: if denies { vec!["public/secret".into()] } else { Vec::new() },
            ..Access::default()
        };
        let chance = Arc::new(SimChance::new(plan.seed ^ life << 32));
        let engine = Engine::new(store.clone(), limits, access, clock.clone(), chance);
        let mail = Arc::new(Mailbox::default());
        engine.attach_connections(mail.clone());
        let mqtt = ServerConfig { inflight_max: plan.window, ..ServerConfig::default() };
        let json = JsonConfig { window: usize::from(plan.window), ..JsonConfig::default() };
        Ok(Server {
            store,
            stepper,
            engine,
            mail,
            life,
            conns: BTreeMap::new(),
            mqtt: mqtt.into(),
            json: json.into(),
            websocket: Arc::default(),
            xmpp: crate::stanzas::config(plan).into(),
            polls: BTreeMap::new(),
            answered: Vec::new(),
            written: Vec::new(),
            closed: Vec::new(),
            answers: Vec::new(),
            draining: Vec::new(),
            acks: Vec::new(),
            collected: Collected::default(),
            replies: Vec::new(),
            wanted: BTreeMap::new(),
        })
    }

    pub fn accept(&mut self, link: u64, road: Road, now: u64) {
        let protocol = match road {
            Road::Mqtt => Protocol::Mqtt(Box::new(ServerConnection::new(self.mqtt.clone(), now))),
            Road::Json => {
                let ws = ws::ServerConnection::new(self.websocket.clone(), now);
                let socket = SocketConnection::new(self.json.clone(), ws, now);
                Protocol::Json(Box::new(socket))
            }
            Road::Xmpp => {
                let seed = self.engine.chance.bytes();
                Protocol::Xmpp(Box::new(xmpp::ServerConnection::new(self.xmpp.clone(), seed, now)))
            }
        };
        let conn = Conn {
            protocol,
            session: None,
            at: None,
            inbound: Vec::new(),
            ended: false,
            out: Vec::new(),
            in_pipe: 0,
            position: Position::default(),
            sent: VecDeque::new(),
            waiting: VecDeque::new(),
            more: false,
            closing: false,
            orderly: false,
            goodbye_expiry: None,
            next_live: 0,
            uncommitted: 0,
            parked: None,
            successor: None,
        };
        self.conns.insert(link, conn);
    }

    pub fn receive(&mut self, link: u64, bytes: &[u8]) {
        if let Some(conn) = self.conns.get_mut(&link) {
            conn.inbound.extend_from_slice(bytes);
        }
    }

    /// The connection broke, as far as the server can tell.
    pub fn broke(&mut self, link: u64) {
        if let Some(conn) = self.conns.get_mut(&link) {
            conn.ended = true;
        }
    }

    /// The network took bytes on to the device.
    pub fn flowed(&mut self, link: u64, bytes: usize) {
        if let Some(conn) = self.conns.get_mut(&link) {
            conn.in_pipe = conn.in_pipe.saturating_sub(bytes);
        }
    }

    /// Everything that happened since the last turn, in the order of the real driver.
    pub fn turn(&mut self, t: &mut Turn<'_>) {
        let links: Vec<u64> = self.conns.keys().copied().collect();
        for link in &links {
            self.read(*link, t);
        }
        self.read_mail(t);
        self.commit_publishes();
        self.record_acks(t);
        for link in std::mem::take(&mut self.draining) {
            self.drain(link, t);
        }
        self.flush(t);
        self.record_acks(t);
        for link in links {
            self.look_at_time(link, t);
        }
        self.end_waits(t);
        self.flush(t);
    }

    fn record_acks(&mut self, t: &mut Turn<'_>) {
        if !self.acks.is_empty() {
            let acks = std::mem::take(&mut self.acks);
            for ack in &acks {
                if let Some(at) = self.engine.session_device(ack.session) {
                    let device = t.ledger.devices.get(&at).map(|k| k.index);
                    let line = format!("server: the end of {} is taken: {:?}", ack.seq, ack.step);
                    t.ledger.note(t.now, About { push: t.ledger.push_of_seq(ack.seq), device }, line);
                    t.ledger.ack_taken(at, ack.seq);
                }
            }
            self.engine.record_receipts(ReceiptSource::Connections(&acks));
        }
    }

    fn read(&mut self, link: u64, t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        let bytes = std::mem::take(&mut conn.inbound);
        let ended = conn.ended;
        if !bytes.is_empty() && !conn.closing {
            let mut output = Output::default();
            conn.protocol.as_mut().handle_bytes(&bytes, t.now, &mut output);
            self.act_on(link, output, t);
        }
        if ended {
            self.close(link, t);
            self.forget(link);
        }
    }

    fn look_at_time(&mut self, link: u64, t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link).filter(|c| !c.closing) else { return };
        if conn.protocol.as_mut().next_timeout().is_some_and(|at| at <= t.now) {
            let mut output = Output::default();
            conn.protocol.as_mut().handle_timeout(t.now, &mut output);
            self.act_on(link, output, t);
        }
    }

    pub fn act_on(&mut self, link: u64, output: Output, t: &mut Turn<'_>) {
        if let Some(conn) = self.conns.get_mut(&link) {
            conn.out.extend_from_slice(&output.bytes);
        }
        for event in output.events {
            self.act(link, event, t);
        }
        if output.close.is_some() {
            self.close(link, t);
        }
    }

    fn read_mail(&mut self, t: &mut Turn<'_>) {
        for mail in self.mail.take() {
            match mail {
                Mail::Wake(at) if self.polls.contains_key(&u64::from(at.slot)) => {
                    self.give_back(u64::from(at.slot), t);
                }
                Mail::Wake(at) => self.want_drain(u64::from(at.slot)),
                Mail::WakeAnew(at) => self.drain_anew(u64::from(at.slot)),
                Mail::Live(live, targets) => {
                    targets.into_iter().for_each(|target| self.deliver_live(&live.content, target, t));
                }
                Mail::Close(at, why) => {
                    let why = match why {
                        Farewell::TakenOver => Goodbye::TakenOver,
                        Farewell::Revoked => Goodbye::Revoked,
                        Farewell::SessionEnded => Goodbye::SessionExpired,
                    };
                    self.say_goodbye(u64::from(at.slot), why, t);
                }
                Mail::Succeed { old, new } => self.make_way(old, new, t),
                Mail::Proceed(at) => self.proceed(u64::from(at.slot), t),
                Mail::Acknowledged(at, seqs) => {
                    let link = u64::from(at.slot);
                    if let Some(conn) = self.conns.get_mut(&link) {
                        conn.sent.retain(|(seq, _)| !seqs.contains(seq));
                        self.continue_waiting(link, t);
                    }
                }
                Mail::Reply(at, reply) => {
                    let link = u64::from(at.slot);
                    self.answer(link, reply, t);
                    self.settle(link, t);
                }
                Mail::Subscribed(at, reply, asks_inbox) => {
                    let link = u64::from(at.slot);
                    let retained = self.granted(link, &reply);
                    self.answer(link, reply, t);
                    retained.iter().for_each(|wanted| self.send_retained(link, wanted, t));
                    if asks_inbox {
                        self.want_drain(link);
                    }
                }
                Mail::Answer(request, answer) => self.answers.push((request, answer)),
                Mail::Forwarded { handover, has_ended } => self.was_forwarded(handover, has_ended, t),
            }
        }
    }

    /// The filters of a SUBSCRIBE that were granted.
    fn granted(&mut self, link: u64, reply: &Reply) -> Vec<Wanted> {
        let Reply::Subscribe { token, outcomes } = reply else { return Vec::new() };
        let wanted = self.wanted.remove(&(link, *token)).unwrap_or_default();
        let granted = |w: &Wanted| matches!(outcomes.get(w.place), Some(SubscribeOutcome::Granted(_)));
        wanted.into_iter().filter(granted).collect()
    }

    fn say_goodbye(&mut self, link: u64, why: Goodbye, t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link).filter(|c| !c.closing) else { return };
        let mut output = Output::default();
        conn.protocol.as_mut().handle_goodbye(why, t.now, &mut output);
        self.act_on(link, output, t);
    }

    /// An older connection leaves for a newer one, which is told when it has.
    fn make_way(&mut self, old: ConnectionRef, new: ConnectionRef, t: &mut Turn<'_>) {
        let link = u64::from(old.slot);
        match self.conns.get_mut(&link).filter(|c| c.session.is_some()) {
            Some(conn) => {
                let earlier = conn.successor.replace(new);
                self.say_goodbye(link, Goodbye::TakenOver, t);
                // Two wait for the same: the newest is let in.
                if let Some(earlier) = earlier {
                    self.mail.post(Mail::Close(earlier, Farewell::TakenOver));
                }
            }
            None => self.mail.post(Mail::Proceed(new)),
        }
    }

    fn settle(&mut self, link: u64, t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        conn.uncommitted = conn.uncommitted.saturating_sub(1);
        if conn.uncommitted == 0 && conn.closing {
            self.leave(link, t);
            self.forget(link);
        }
    }

    /// The protocol or the peer ends it: the session is told at once, the bytes still go.
    pub fn close(&mut self, link: u64, t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        conn.closing = true;
        conn.waiting.clear();
        self.leave(link, t);
    }

    fn leave(&mut self, link: u64, t: &mut Turn<'_>) {
        if self.conns.get(&link).is_none_or(|c| c.uncommitted > 0 || c.session.is_none()) {
            return;
        }
        // The session's number may be another's before this turn ends.
        self.record_acks(t);
        let Some(conn) = self.conns.get_mut(&link) else { return };
        let Some(session) = conn.session.take() else { return };
        let saved = conn.protocol.take_saved(t.now);
        let resume_secs = (self.xmpp.resume_ms / 1_000) as u32;
        let saved_secs = (conn.protocol.is_xmpp() && saved.is_some()).then_some(resume_secs);
        let only_with_subscriptions = saved_secs.is_none() && conn.protocol.leaves_empty_sessions();
        let heard = matches!(&conn.protocol, Protocol::Mqtt(mqtt) if mqtt.has_heard());
        let detach = Detach {
            orderly: conn.orderly,
            heard,
            expiry_secs: conn.goodbye_expiry,
            saved,
            saved_bytes: 0,
            saved_secs,
            only_with_subscriptions,
        };
        let successor = conn.successor.take();
        self.engine.disconnect(session, reference(link), detach);
        if let Some(new) = successor {
            self.mail.post(Mail::Proceed(new));
        }
    }

    /// The socket is gone; what waits for a commit stays until that came.
    pub fn forget(&mut self, link: u64) {
        if self.conns.get(&link).is_some_and(|c| c.session.is_none()) {
            self.conns.remove(&link);
            self.closed.push(link);
        }
    }

    pub fn want_drain(&mut self, link: u64) {
        let open = self.conns.get(&link).is_some_and(|c| !c.closing && c.session.is_some());
        if open && !self.draining.contains(&link) {
            self.draining.push(link);
        }
    }

    pub fn has_work(&self) -> bool {
        !self.mail.is_empty() || !self.draining.is_empty() || !self.answered.is_empty()
    }

    /// The newest connection of each device that is signed in, for the check of takeovers.
    pub fn signed_in(&self) -> BTreeMap<DeviceRef, u64> {
        let open = self.conns.iter().filter(|(_, c)| !c.closing && c.session.is_some());
        open.filter_map(|(link, c)| Some((c.at?, *link))).collect()
    }

    pub fn store_submit(&self, command: postrider_core::command::Command, done: Done) {
        self.store.submit(vec![command], done);
    }

    /// Accepts pushes of an app server; the answer comes by mail.
    pub fn push(&self, request: u64, app: AppNo, push: postrider_core::delivery::accept::Push) {
        use postrider_core::delivery::accept::AcceptError;
        let mail = self.mail.clone();
        let done =
            move |mut results: Vec<Result<postrider_core::delivery::accept::Accepted, AcceptError>>| {
                let answer = match results.pop() {
                    Some(Ok(accepted)) if accepted.transient => Answer::Transient,
                    Some(Ok(accepted)) => Answer::Accepted(accepted.id),
                    Some(Err(AcceptError::Store(_))) | None => Answer::Unavailable,
                    Some(Err(error)) => Answer::Refused(error.to_string()),
                };
                mail.post(Mail::Answer(request, answer));
            };
        self.engine.accept(app, vec![push], Box::new(done));
    }
}
