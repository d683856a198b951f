//! One life of the server: the real engine over the real store, the real MQTT state machines, and a driver as small as can
//! be that does in virtual time what `gateway/driver.rs` does over sockets, in the same order of turns.

use crate::chance::{SimChance, SimClock};
use crate::ledger::{About, Known, Ledger, Sending};
use crate::plan::Plan;
use bytes::Bytes;
use postrider_core::Engine;
use postrider_core::access::{Access, INBOX_TOPIC};
use postrider_core::delivery::drain::Outgoing;
use postrider_core::delivery::publish::{Collected, Publish as CorePublish};
use postrider_core::delivery::receipt::Ack;
use postrider_core::hub::Saved;
use postrider_core::id::*;
use postrider_core::limits::Limits;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_core::session::{Attach, Client, Detach};
use postrider_core::topics::SessionNo;
use postrider_proto as proto;
use postrider_proto::mqtt::{Inflight, ServerConfig, ServerConnection};
use postrider_proto::{Deliver, Delivered, Event, Fanned, Goodbye, Output, Qos, Reply, ServerProtocol};
use postrider_store::{EmbeddedStore, OpenError, Stepper};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

const TRANSIENT: u64 = 1 << 63;
/// What a connection's buffer holds before draining stops.
const OUT_MAX: usize = 2_048;
/// What the network holds of one connection.
pub const PIPE_MAX: usize = 1_024;

/// What others tell the driver.
pub enum Mail {
    Wake(ConnectionRef),
    Live(Live, Vec<LiveTarget>),
    Close(ConnectionRef, Farewell),
    Reply(ConnectionRef, Reply),
    /// A SUBSCRIBE was answered; whether it asked for the inbox.
    Subscribed(ConnectionRef, Reply, bool),
    /// An answer for an app server: request, and what to tell.
    Answer(u64, Answer),
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

    fn deliver(&self, live: &Live, targets: Vec<LiveTarget>) {
        self.post(Mail::Live(live.clone(), targets));
    }

    fn close(&self, connection: ConnectionRef, why: Farewell) {
        self.post(Mail::Close(connection, why));
    }
}

struct Conn {
    protocol: ServerConnection,
    session: Option<SessionNo>,
    at: Option<DeviceRef>,
    inbound: Vec<u8>,
    /// The peer's end was seen.
    ended: bool,
    out: Vec<u8>,
    in_pipe: usize,
    position: Position,
    sent: VecDeque<(Seq, UnixMillis)>,
    waiting: VecDeque<(Arc<Content>, LiveTarget)>,
    more: bool,
    closing: bool,
    orderly: bool,
    goodbye_expiry: Option<u32>,
    next_live: u32,
    uncommitted: u16,
}

/// See the module.
pub struct Server {
    pub store: Arc<EmbeddedStore>,
    pub stepper: Stepper,
    pub engine: Engine,
    pub mail: Arc<Mailbox>,
    conns: BTreeMap<u64, Conn>,
    config: Arc<ServerConfig>,
    /// Bytes that go out after this turn, and connections that are over.
    pub written: Vec<(u64, Vec<u8>)>,
    pub closed: Vec<u64>,
    /// For the app servers.
    pub answers: Vec<(u64, Answer)>,
    draining: Vec<u64>,
    acks: Vec<Ack>,
    collected: Collected,
    replies: Vec<(ConnectionRef, Reply)>,
}

/// What a turn needs of the world.
pub struct Turn<'a> {
    pub now: u64,
    pub ledger: &'a mut Ledger,
    /// Devices by name: app and index, and whether they want QoS 0.
    pub names: &'a BTreeMap<(u32, String), (usize, bool)>,
}

fn reference(link: u64) -> ConnectionRef {
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
            subscribe_deny: if denies { vec!["public/secret".into()] } else { Vec::new() },
            ..Access::default()
        };
        let chance = Arc::new(SimChance::new(plan.seed ^ life << 32));
        let engine = Engine::new(store.clone(), limits, access, clock.clone(), chance);
        let mail = Arc::new(Mailbox::default());
        engine.attach_connections(mail.clone());
        let config = Arc::new(ServerConfig { inflight_max: plan.window, ..ServerConfig::default() });
        Ok(Server {
            store,
            stepper,
            engine,
            mail,
            conns: BTreeMap::new(),
            config,
            written: Vec::new(),
            closed: Vec::new(),
            answers: Vec::new(),
            draining: Vec::new(),
            acks: Vec::new(),
            collected: Collected::default(),
            replies: Vec::new(),
        })
    }

    pub fn accept(&mut self, link: u64, now: u64) {
        let conn = Conn {
            protocol: ServerConnection::new(self.config.clone(), now),
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
            self.engine.ack(&acks);
        }
    }

    fn read(&mut self, link: u64, t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        let bytes = std::mem::take(&mut conn.inbound);
        let ended = conn.ended;
        if !bytes.is_empty() && !conn.closing {
            let mut output = Output::default();
            conn.protocol.handle_bytes(&bytes, t.now, &mut output);
            self.act_on(link, output, t);
        }
        if ended {
            self.close(link);
            self.forget(link);
        }
    }

    fn look_at_time(&mut self, link: u64, t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link).filter(|c| !c.closing) else { return };
        if conn.protocol.next_timeout().is_some_and(|at| at <= t.now) {
            let mut output = Output::default();
            conn.protocol.handle_timeout(t.now, &mut output);
            self.act_on(link, output, t);
        }
    }

    fn act_on(&mut self, link: u64, output: Output, t: &mut Turn<'_>) {
        if let Some(conn) = self.conns.get_mut(&link) {
            conn.out.extend_from_slice(&output.bytes);
        }
        for event in output.events {
            self.act(link, event, t);
        }
        if output.close.is_some() {
            self.close(link);
        }
    }

    fn act(&mut self, link: u64, event: Event, t: &mut Turn<'_>) {
        match event {
            Event::Connect(connect) => {
                let reply = self.attach(link, &connect, t).map(Box::new);
                self.answer(link, Reply::Connect(reply), t);
                self.want_drain(link);
            }
            Event::Publish { token, publish } => self.publish(link, token, publish, t),
            // Not of MQTT.
            Event::Receipt { .. } | Event::Ping | Event::WindowOpened | Event::Xmpp(_) => {}
            Event::Subscribe { token, filters, .. } => self.subscribe(link, token, &filters),
            Event::Unsubscribe { token, filters } => {
                let existed = vec![false; filters.len()];
                self.answer(link, Reply::Unsubscribe { token, existed }, t);
            }
            Event::Acked { delivery } => self.ended(link, delivery, (Step::Delivered, Reason::None), t),
            Event::Refused { delivery, .. } => {
                self.ended(link, delivery, (Step::Rejected, Reason::Refused), t)
            }
            Event::Disconnect { with_will, session_expiry_secs } => {
                if let Some(conn) = self.conns.get_mut(&link) {
                    conn.orderly = !with_will;
                    conn.goodbye_expiry = session_expiry_secs;
                }
            }
        }
    }

    fn attach(
        &mut self,
        link: u64,
        connect: &proto::Connect,
        t: &mut Turn<'_>,
    ) -> Result<proto::Accepted, proto::ConnectRefusal> {
        let refused = proto::ConnectRefusal::BadCredentials;
        let (app, name) = connect.user.as_ref().and_then(|u| u.split_once('/')).ok_or(refused)?;
        let app = self.store.app_by_id(app).ok_or(refused)?;
        let secret = connect.password.as_deref().unwrap_or_default();
        let client: Client = self.engine.sign_in(app, name, secret).map_err(|_| refused)?;
        let at = client.device.map(|device| DeviceRef { app, device });
        let attach = Attach {
            client,
            connection: reference(link),
            clean: connect.clean_start,
            expiry_secs: connect.session_expiry_secs,
            will: None,
            takes_pushes: false,
        };
        let first_token = if connect.clean_start { 0 } else { self.engine.chance.bits128() as u32 };
        let attached = self.engine.connect(attach).map_err(|_| proto::ConnectRefusal::RateExceeded)?;
        if let Some(conn) = self.conns.get_mut(&link) {
            conn.session = Some(attached.session);
            conn.at = at;
            conn.next_live = first_token;
        }
        if let (Some(at), Some((index, qos0))) = (at, t.names.get(&(app.0, name.to_owned()))) {
            let known = Known { index: *index, name: name.to_owned(), qos0: *qos0, delete_asked: false };
            t.ledger.devices.entry(at).or_insert(known);
            let about = About { push: None, device: Some(*index) };
            let present = attached.present;
            t.ledger.note(
                t.now,
                about,
                format!("server: {name} signs in on {link}, session present: {present}"),
            );
        }
        let inflight = attached.saved.and_then(|saved| saved.downcast::<Inflight>().ok());
        let first_id = (first_token as u16).max(1);
        let lost = attached.state_lost;
        let somewhere =
            || if lost { Inflight::after_loss(first_id) } else { Inflight::starting_at(first_id) };
        // A 3.1 client cannot be told that its session is gone, and may still hold ids.
        let may_hold = attached.present || (connect.level == 3 && !connect.clean_start);
        let inflight = inflight.or_else(|| may_hold.then(somewhere));
        Ok(proto::Accepted { session_present: attached.present, inflight, ..proto::Accepted::default() })
    }

    fn answer(&mut self, link: u64, reply: Reply, t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        let mut output = Output::default();
        conn.protocol.handle_reply(reply, t.now, &mut output);
        if !conn.closing {
            self.act_on(link, output, t);
        }
    }

    fn publish(&mut self, link: u64, token: u32, publish: proto::Publish, t: &mut Turn<'_>) {
        let Some(session) = self.conns.get(&link).and_then(|c| c.session) else { return };
        let content = Content {
            topic: Some(publish.topic.to_string()),
            payload: publish.payload.clone(),
            properties: None,
        };
        let request = CorePublish {
            content: Arc::new(content),
            qos: publish.qos as u8,
            retain: false,
            expiry_secs: None,
        };
        let routed = self.engine.publish(session, &request, &mut self.collected);
        let live = std::mem::take(&mut self.collected.live);
        let outcome = match routed {
            Ok(routed) if routed.durable && token != 0 => {
                let outcome = proto::PublishOutcome::Accepted;
                self.replies.push((reference(link), Reply::Publish { token, outcome }));
                if let Some(conn) = self.conns.get_mut(&link) {
                    conn.uncommitted += 1;
                }
                None
            }
            Ok(_) => Some(proto::PublishOutcome::Accepted),
            Err(_) => Some(proto::PublishOutcome::NotAuthorized),
        };
        for target in live {
            self.deliver_live(&request.content, target, t);
        }
        if let Some(outcome) = outcome.filter(|_| token != 0) {
            self.answer(link, Reply::Publish { token, outcome }, t);
        }
    }

    fn commit_publishes(&mut self) {
        if self.collected.commands.is_empty() {
            return;
        }
        let commands = std::mem::take(&mut self.collected.commands);
        let replies = std::mem::take(&mut self.replies);
        let mail = self.mail.clone();
        let done = move |outcome: Result<_, StoreError>| {
            let failed = outcome.is_err();
            for (at, reply) in replies {
                let reply = match reply {
                    Reply::Publish { token, .. } if failed => {
                        Reply::Publish { token, outcome: proto::PublishOutcome::Unavailable }
                    }
                    other => other,
                };
                mail.post(Mail::Reply(at, reply));
            }
        };
        self.engine.commit(commands, Box::new(done));
    }

    fn subscribe(&mut self, link: u64, token: u32, filters: &[proto::Subscription]) {
        let Some(session) = self.conns.get(&link).and_then(|c| c.session) else { return };
        let wanted = filters.iter().map(|f| StoredSubscription {
            filter: f.filter.to_string(),
            share: None,
            qos: f.qos as u8,
            no_local: false,
            retain_as_published: false,
            id: None,
        });
        let asks_inbox = filters.iter().any(|f| &*f.filter == INBOX_TOPIC);
        let mail = self.mail.clone();
        let done = move |results: Vec<Result<u8, u8>>| {
            let outcomes = results.iter().map(|r| match r {
                Ok(qos) => proto::SubscribeOutcome::Granted(Qos::from_u8(*qos).unwrap_or_default()),
                Err(code) => proto::SubscribeOutcome::Refused(*code),
            });
            let reply = Reply::Subscribe { token, outcomes: outcomes.collect() };
            mail.post(Mail::Subscribed(reference(link), reply, asks_inbox));
        };
        self.engine.subscribe(session, wanted.collect(), Box::new(done));
        if asks_inbox && let Some(conn) = self.conns.get_mut(&link) {
            conn.position = Position::default();
        }
    }

    fn ended(&mut self, link: u64, delivery: u64, (step, reason): (Step, Reason), t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        if delivery & TRANSIENT == 0 {
            let place = conn.sent.iter().position(|(seq, _)| *seq == delivery);
            let sent_at = place.and_then(|p| conn.sent.remove(p)).map(|(_, at)| at);
            let device = conn.at.and_then(|at| t.ledger.devices.get(&at)).map(|k| k.index);
            let about = About { push: t.ledger.push_of_seq(delivery), device };
            t.ledger.note(t.now, about, format!("server: {step:?} of {delivery} comes on {link}"));
            if let Some(session) = conn.session {
                self.acks.push(Ack { session, seq: delivery, step, reason, sent_at });
            }
        }
        self.continue_waiting(link, t);
    }

    fn read_mail(&mut self, t: &mut Turn<'_>) {
        for mail in self.mail.take() {
            match mail {
                Mail::Wake(at) => self.want_drain(u64::from(at.slot)),
                Mail::Live(live, targets) => {
                    targets.into_iter().for_each(|target| self.deliver_live(&live.content, target, t));
                }
                Mail::Close(at, why) => {
                    let why = match why {
                        Farewell::TakenOver => Goodbye::TakenOver,
                        Farewell::Revoked => Goodbye::Revoked,
                        Farewell::SessionEnded => Goodbye::SessionExpired,
                    };
                    let link = u64::from(at.slot);
                    let Some(conn) = self.conns.get_mut(&link).filter(|c| !c.closing) else { continue };
                    let mut output = Output::default();
                    conn.protocol.handle_goodbye(why, t.now, &mut output);
                    self.act_on(link, output, t);
                }
                Mail::Reply(at, reply) => {
                    let link = u64::from(at.slot);
                    self.answer(link, reply, t);
                    self.settle(link);
                }
                Mail::Subscribed(at, reply, asks_inbox) => {
                    let link = u64::from(at.slot);
                    self.answer(link, reply, t);
                    if asks_inbox {
                        self.want_drain(link);
                    }
                }
                Mail::Answer(request, answer) => self.answers.push((request, answer)),
            }
        }
    }

    fn settle(&mut self, link: u64) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        conn.uncommitted = conn.uncommitted.saturating_sub(1);
        if conn.uncommitted == 0 && conn.closing {
            self.leave(link);
            self.forget(link);
        }
    }

    /// The protocol or the peer ends it: the session is told at once, the bytes still go.
    fn close(&mut self, link: u64) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        conn.closing = true;
        conn.waiting.clear();
        self.leave(link);
    }

    fn leave(&mut self, link: u64) {
        let Some(conn) = self.conns.get_mut(&link).filter(|c| c.uncommitted == 0) else { return };
        let Some(session) = conn.session.take() else { return };
        let saved = conn.protocol.take_inflight().map(|i| i as Saved);
        let only_with_subscriptions = conn.protocol.level() == Some(proto::mqtt::Level::V31);
        let detach = Detach {
            orderly: conn.orderly,
            expiry_secs: conn.goodbye_expiry,
            saved,
            only_with_subscriptions,
        };
        self.engine.disconnect(session, reference(link), detach);
    }

    /// The socket is gone; what waits for a commit stays until that came.
    fn forget(&mut self, link: u64) {
        if self.conns.get(&link).is_some_and(|c| c.session.is_none()) {
            self.conns.remove(&link);
            self.closed.push(link);
        }
    }

    fn want_drain(&mut self, link: u64) {
        let open = self.conns.get(&link).is_some_and(|c| !c.closing && c.session.is_some());
        if open && !self.draining.contains(&link) {
            self.draining.push(link);
        }
    }

    fn drain(&mut self, link: u64, t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link).filter(|c| !c.closing) else { return };
        let Some(session) = conn.session else { return };
        let window = conn.protocol.window();
        if window == 0 || conn.out.len() > OUT_MAX {
            conn.more = true;
            return;
        }
        let mut position = conn.position;
        let deliveries = self.engine.drain(session, &mut position, window);
        let Some(conn) = self.conns.get_mut(&link) else { return };
        conn.position = position;
        conn.more = deliveries.len() == window;
        let mut sent = Vec::new();
        for delivery in deliveries {
            if self.conns.get(&link).is_some_and(|c| !c.sent.iter().any(|(seq, _)| *seq == delivery.seq)) {
                self.send(link, session, delivery, &mut sent, t);
            }
        }
        if !sent.is_empty() {
            let at = self.engine.sent(session, &sent);
            if let Some(conn) = self.conns.get_mut(&link) {
                conn.sent.extend(sent.iter().map(|seq| (*seq, at)));
            }
        }
    }

    fn send(&mut self, link: u64, session: SessionNo, d: Outgoing, sent: &mut Vec<Seq>, t: &mut Turn<'_>) {
        let durable = self.stepper.durable();
        let Some(conn) = self.conns.get_mut(&link) else { return };
        let how = Deliver {
            delivery: d.seq,
            qos: Qos::from_u8(d.qos).unwrap_or_default(),
            retain: d.retain,
            dup: d.sent_before,
            subscription_ids: &[],
            expiry_left_secs: None,
            cursor: None,
            late_since: None,
        };
        let before = conn.out.len();
        let delivered = conn.protocol.handle_deliver(&mut fanned(&d.content), how, t.now, &mut conn.out);
        let end = match delivered {
            Delivered::Written => {
                // A PUBREL, for what the peer has already or to free an id, is no transmission.
                let written = conn.out.get(before..).unwrap_or_default();
                let behind_release =
                    if written.first() == Some(&0x62) { written.get(4) } else { written.first() };
                if behind_release.is_some_and(|first| first >> 4 == 3) {
                    note_sending(conn.at, (link, durable), &d, &self.engine.access, t);
                }
                if how.qos != Qos::AtMostOnce {
                    return sent.push(d.seq);
                }
                (Step::HandedOver, Reason::NoAcknowledgement)
            }
            Delivered::TooLarge => (Step::Rejected, Reason::TooLarge),
            Delivered::WindowFull | Delivered::NotReady => {
                conn.position.urgent = conn.position.urgent.min(d.seq - 1);
                conn.position.normal = conn.position.normal.min(d.seq - 1);
                conn.more = true;
                return;
            }
        };
        self.acks.push(Ack { session, seq: d.seq, step: end.0, reason: end.1, sent_at: None });
    }

    fn deliver_live(&mut self, content: &Arc<Content>, target: LiveTarget, t: &mut Turn<'_>) {
        let link = u64::from(target.connection.slot);
        let Some(conn) = self.conns.get_mut(&link).filter(|c| !c.closing) else { return };
        if target.qos > 0 && (!conn.waiting.is_empty() || conn.protocol.window() == 0) {
            if conn.waiting.len() < 100 {
                conn.waiting.push_back((content.clone(), target));
            }
            return;
        }
        self.put_live(link, content, &target, t);
    }

    fn put_live(&mut self, link: u64, content: &Arc<Content>, target: &LiveTarget, t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        conn.next_live = conn.next_live.wrapping_add(1);
        let delivery = if target.qos > 0 { TRANSIENT | u64::from(conn.next_live) } else { 0 };
        let how = Deliver {
            delivery,
            qos: Qos::from_u8(target.qos).unwrap_or_default(),
            retain: target.retain,
            dup: false,
            subscription_ids: &[],
            expiry_left_secs: None,
            cursor: None,
            late_since: None,
        };
        conn.protocol.handle_deliver(&mut fanned(content), how, t.now, &mut conn.out);
    }

    fn continue_waiting(&mut self, link: u64, t: &mut Turn<'_>) {
        while let Some(conn) = self.conns.get_mut(&link).filter(|c| !c.closing && !c.waiting.is_empty()) {
            if conn.protocol.window() == 0 {
                return;
            }
            let Some((content, target)) = conn.waiting.pop_front() else { break };
            self.put_live(link, &content, &target, t);
        }
        if self.conns.get(&link).is_some_and(|c| c.more) {
            self.want_drain(link);
        }
    }

    fn flush(&mut self, t: &mut Turn<'_>) {
        let links: Vec<u64> = self.conns.keys().copied().collect();
        for link in links {
            let Some(conn) = self.conns.get_mut(&link) else { continue };
            let n = conn.out.len().min(PIPE_MAX.saturating_sub(conn.in_pipe));
            if n > 0 {
                let bytes: Vec<u8> = conn.out.drain(..n).collect();
                conn.in_pipe += n;
                self.written.push((link, bytes));
                if conn.out.len() <= OUT_MAX {
                    self.continue_waiting(link, t);
                }
            }
            if self.conns.get(&link).is_some_and(|c| c.closing && c.out.is_empty()) {
                self.forget(link);
            }
        }
    }

    pub fn has_work(&self) -> bool {
        !self.mail.is_empty() || !self.draining.is_empty()
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

fn fanned(content: &Content) -> Fanned {
    let topic = match &content.topic {
        Some(topic) => proto::Text::from(topic.as_str()),
        None => proto::Text::from_static(INBOX_TOPIC),
    };
    Fanned::new(proto::Publish { topic, payload: content.payload.clone(), ..proto::Publish::default() })
}

/// Which push a payload is.
pub fn read_envelope(payload: &Bytes) -> Option<(MessageId, u64, bool)> {
    let value: serde_json::Value = serde_json::from_slice(payload).ok()?;
    let id = value.get("id")?.as_str()?.parse().ok()?;
    let data = value.get("data")?;
    Some((id, data.get("n")?.as_u64()?, data.get("urgent")?.as_bool()?))
}

fn note_sending(
    at: Option<DeviceRef>,
    (link, durable): (u64, Seq),
    d: &Outgoing,
    access: &Access,
    t: &mut Turn<'_>,
) {
    let Some(at) = at else { return };
    let device = t.ledger.devices.get(&at).map(|k| k.index);
    let name = t.ledger.devices.get(&at).map(|k| k.name.clone()).unwrap_or_default();
    if let Some(topic) = &d.content.topic {
        let about = About { push: None, device };
        t.ledger.note(t.now, about, format!("server: {} on {topic} goes out on {link}", d.seq));
        if !access.may_receive(&name, topic) {
            t.ledger.break_rule("one gate", about, format!("{topic} goes to {name}, who may not have it"));
        }
        return;
    }
    let Some((id, n, urgent)) = read_envelope(&d.content.payload) else {
        let about = About { push: None, device };
        return t.ledger.break_rule("no phantom", about, format!("{} is no push of ours", d.seq));
    };
    let about = About { push: Some(n), device };
    t.ledger.note(t.now, about, format!("server: push {n} ({}) goes out on {link} to {name}", d.seq));
    t.ledger.sending(Sending { at, seq: d.seq, id, n, link, durable, urgent, now: t.now });
}
