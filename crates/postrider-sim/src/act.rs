//! What a peer says becomes calls of the engine, as in `gateway/act.rs`.

use crate::ledger::About;
use crate::server::{Mail, Parked, Server, TRANSIENT, Turn, reference};
use postrider_core::access::INBOX_TOPIC;
use postrider_core::delivery::publish::Publish as CorePublish;
use postrider_core::delivery::receipt::Ack;
use postrider_core::id::*;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_core::session::{Attach, Client, SignInError, Will};
use postrider_proto as proto;
use postrider_proto::mqtt::Inflight;
use postrider_proto::xmpp::SavedStream;
use postrider_proto::{Connect, ConnectRefusal, Event, Output, Qos, Reply};
use std::sync::Arc;

impl Server {
    pub fn act(&mut self, link: u64, event: Event, t: &mut Turn<'_>) {
        match event {
            Event::Connect(connect) => self.connect(link, connect, t),
            Event::Publish { token, publish } => self.publish(link, token, publish, t),
            // The simulated apps show nothing to anybody.
            Event::Receipt { .. } => {}
            Event::WindowOpened => self.begin_inbox(link, t),
            Event::Xmpp(request) => self.act_on_xmpp(link, *request, t),
            Event::Ping => self.answer(link, Reply::Ping { time_ms: t.now }, t),
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
                if !with_will {
                    t.ledger.topics.goodbyes.insert(link);
                }
                if let Some(conn) = self.conns.get_mut(&link) {
                    conn.orderly = !with_will;
                    conn.goodbye_expiry = session_expiry_secs;
                }
            }
        }
    }

    fn connect(&mut self, link: u64, connect: Box<Connect>, t: &mut Turn<'_>) {
        match self.client_of(&connect) {
            Ok(client) => self.enter(link, Parked { connect, client }, t),
            Err(refusal) => self.answer(link, Reply::Connect(Err(refusal)), t),
        }
    }

    fn client_of(&self, connect: &Connect) -> Result<Client, ConnectRefusal> {
        if let Some(token) = &connect.token {
            return self.client_of_ticket(token).ok_or(ConnectRefusal::BadCredentials);
        }
        let refused = ConnectRefusal::BadCredentials;
        let (app, name) = connect.user.as_ref().and_then(|u| u.split_once('/')).ok_or(refused)?;
        let app = self.store.app_by_id(app).ok_or(refused)?;
        self.engine.sign_in(app, name, connect.password.as_deref().unwrap_or_default()).map_err(refusal_of)
    }

    /// A ticket is good for one life of the server, and for the device that it was given to.
    fn client_of_ticket(&self, ticket: &str) -> Option<Client> {
        let mut parts = ticket.split('/');
        let life: u64 = parts.next()?.parse().ok()?;
        let (app, device, name) = (parts.next()?, parts.next()?, parts.next()?);
        let at = DeviceRef { app: AppNo(app.parse().ok()?), device: DeviceNo(device.parse().ok()?) };
        let right = life == self.life && self.store.device_by_id(at.app, name) == Some(at);
        self.engine.sign_in_proven(at.app, name).ok().filter(|_| right)
    }

    fn enter(&mut self, link: u64, parked: Parked, t: &mut Turn<'_>) {
        let me = reference(link);
        match self.engine.admit(&parked.client).map_err(refusal_of) {
            Ok(Some(old)) if old != me => {
                if let Some(conn) = self.conns.get_mut(&link) {
                    conn.parked = Some(parked);
                }
                self.mail.post(Mail::Succeed { old, new: me });
            }
            Ok(_) => self.sign_in(link, parked, t),
            Err(refusal) => self.answer(link, Reply::Connect(Err(refusal)), t),
        }
    }

    /// The window opened by itself: what was held back, or came while it was shut, lies behind no position that counts.
    fn begin_inbox(&mut self, link: u64, t: &mut Turn<'_>) {
        if let Some(conn) = self.conns.get_mut(&link) {
            conn.position = Position::default();
        }
        self.want_drain(link);
        self.continue_waiting(link, t);
    }

    /// The older connection has left, and what it had in flight is with the session.
    pub fn proceed(&mut self, link: u64, t: &mut Turn<'_>) {
        if let Some(parked) = self.conns.get_mut(&link).and_then(|c| c.parked.take()) {
            self.sign_in(link, parked, t);
        }
    }

    fn sign_in(&mut self, link: u64, Parked { connect, client }: Parked, t: &mut Turn<'_>) {
        let reply = self.attach(link, &connect, client, t).map(Box::new);
        self.answer(link, Reply::Connect(reply), t);
        self.want_drain(link);
    }

    fn attach(
        &mut self,
        link: u64,
        connect: &Connect,
        client: Client,
        t: &mut Turn<'_>,
    ) -> Result<proto::Accepted, ConnectRefusal> {
        let (app, name) = (client.app, client.id.clone());
        let will = connect.will.as_deref().map(will_of);
        if will.as_ref().is_some_and(|will| self.engine.may_leave_will(&name, will).is_err()) {
            return Err(ConnectRefusal::NotAuthorized);
        }
        let at = client.device.map(|device| DeviceRef { app, device });
        let attach = Attach {
            client,
            connection: reference(link),
            clean: connect.clean_start,
            expiry_secs: connect.session_expiry_secs,
            will,
            takes_pushes: connect.takes_pushes,
            hears_peers: self.conns.get(&link).is_some_and(|c| c.protocol.is_xmpp()),
        };
        let first_token = if connect.clean_start { 0 } else { self.engine.chance.bits128() as u32 };
        let attached = self.engine.connect(attach).map_err(refusal_of)?;
        if let Some(conn) = self.conns.get_mut(&link) {
            conn.session = Some(attached.session);
            conn.at = at;
            conn.next_live = first_token;
        }
        if let Some(about) = at.and_then(|at| t.know(at, &name)) {
            let present = attached.present;
            let line = format!("server: {name} signs in on {link}, session present: {present}");
            t.ledger.note(t.now, about, line);
        }
        let (inflight, stream) = match attached.saved.map(|saved| saved.downcast::<Inflight>()) {
            Some(Ok(inflight)) => (Some(inflight), None),
            Some(Err(other)) => (None, other.downcast::<SavedStream>().ok()),
            None => (None, None),
        };
        let first_id = (first_token as u16).max(1);
        let lost = attached.state_lost;
        let somewhere =
            || if lost { Inflight::after_loss(first_id) } else { Inflight::starting_at(first_id) };
        // A 3.1 client cannot be told that its session is gone, and may still hold ids.
        let may_hold = attached.present || (connect.level == 3 && !connect.clean_start);
        let inflight = inflight.or_else(|| may_hold.then(somewhere));
        let welcome = at.filter(|_| connect.takes_pushes).map(|at| Box::new(self.welcome(at, &name, t.now)));
        let session_present = attached.present;
        Ok(proto::Accepted { session_present, inflight, stream, welcome, ..proto::Accepted::default() })
    }

    fn welcome(&self, at: DeviceRef, name: &str, now: u64) -> proto::Welcome {
        let ticket = format!("{}/{}/{}/{name}", self.life, at.app.0, at.device.0);
        proto::Welcome {
            app: format!("a{}", at.app.0).as_str().into(),
            device: name.into(),
            time_ms: now,
            ticket: Some((ticket.as_str().into(), u64::MAX)),
        }
    }

    pub fn answer(&mut self, link: u64, reply: Reply, t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        let mut output = Output::default();
        conn.protocol.as_mut().handle_reply(reply, t.now, &mut output);
        if !conn.closing {
            self.act_on(link, output, t);
        }
    }

    pub fn publish(&mut self, link: u64, token: u32, publish: proto::Publish, t: &mut Turn<'_>) {
        let Some(session) = self.conns.get(&link).and_then(|c| c.session) else { return };
        let content = Content {
            topic: Some(publish.topic.to_string()),
            payload: publish.payload.clone(),
            properties: None,
        };
        let request = CorePublish {
            content: Arc::new(content),
            qos: publish.qos as u8,
            retain: publish.retain,
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

    pub fn commit_publishes(&mut self) {
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

    pub fn subscribe(&mut self, link: u64, token: u32, filters: &[proto::Subscription]) {
        let Some(session) = self.conns.get(&link).and_then(|c| c.session) else { return };
        let wanted = filters.iter().map(|f| StoredSubscription {
            filter: f.filter.to_string(),
            share: f.share.as_ref().map(|s| s.to_string()),
            qos: f.qos as u8,
            no_local: f.no_local,
            retain_as_published: f.retain_as_published,
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
        let unshared =
            filters.iter().enumerate().filter(|(_, f)| f.share.is_none() && &*f.filter != INBOX_TOPIC);
        let retained =
            unshared.map(|(place, f)| Wanted { place, filter: f.filter.to_string(), qos: f.qos as u8 });
        self.wanted.insert((link, token), retained.collect());
        if asks_inbox && let Some(conn) = self.conns.get_mut(&link) {
            conn.position = Position::default();
        }
    }

    pub fn ended(&mut self, link: u64, delivery: u64, (step, reason): (Step, Reason), t: &mut Turn<'_>) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        if delivery & TRANSIENT == 0 {
            let place = conn.sent.iter().position(|(seq, _)| *seq == delivery);
            let sent_at = place.and_then(|p| conn.sent.remove(p)).map(|(_, at)| at);
            let device = conn.at.and_then(|at| t.ledger.devices.get(&at)).map(|k| k.index);
            let about = About { push: t.ledger.push_of_seq(delivery), device };
            t.ledger.note(t.now, about, format!("server: {step:?} of {delivery} comes on {link}"));
            if let Some(session) = conn.session
                && (sent_at.is_some() || self.engine.is_open_for(session, delivery))
            {
                self.acks.push(Ack { session, seq: delivery, step, reason, sent_at });
            }
        }
        self.continue_waiting(link, t);
    }
}

/// A filter whose retained messages are wanted.
pub struct Wanted {
    pub place: usize,
    pub filter: String,
    pub qos: u8,
}

fn will_of(will: &proto::Will) -> Will {
    let proto::Publish { topic, payload, qos, retain, .. } = will.publish.clone();
    let content = Content { topic: Some(topic.to_string()), payload, properties: None };
    let (content, qos) = (Arc::new(content), qos as u8);
    Will { content, qos, retain, expiry_secs: None, delay_secs: will.delay_secs }
}

fn refusal_of(error: SignInError) -> ConnectRefusal {
    match error {
        SignInError::BadCredentials => ConnectRefusal::BadCredentials,
        SignInError::NotAllowed => ConnectRefusal::NotAuthorized,
        SignInError::TooOften => ConnectRefusal::RateExceeded,
        SignInError::Unavailable => ConnectRefusal::Unavailable,
    }
}
