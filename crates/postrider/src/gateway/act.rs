//! What a peer says becomes calls of the engine; what the engine answers becomes replies.

use super::conn::{Budget, Lane, Parked};
use super::driver::Driver;
use super::mailbox::Mail;
use super::mqtt::{self, Wanted};
use super::{Protocol, Reply, TRANSIENT};
use crate::planted;
use crate::tokens::{Proof, keep_what_is_said};
use postrider_core::access::{INBOX_TOPIC, RECEIPTS_TOPIC};
use postrider_core::delivery::publish::all_taken;
use postrider_core::delivery::receipt::{Ack, DeviceReceipt, ReceiptSource};
use postrider_core::id::{AppNo, DeviceRef};
use postrider_core::model::{ProfileChange, Reason, Step};
use postrider_core::port::Position;
use postrider_core::session::{Attach, Client, SignInError};
use postrider_core::topics::SessionNo;
use postrider_proto as proto;
use postrider_proto::xmpp::Answer;
use postrider_proto::{Connect, ConnectRefusal, Event, Goodbye, PublishOutcome, SubscribeOutcome};
use std::collections::VecDeque;
use std::ops::Range;

/// MQTT 5 §3.9.3: a filter that is not one.
const FILTER_INVALID: u8 = 0x8f;

/// A sign-in whose credentials are right.
struct SignIn {
    client: Client,
    assigned: Option<String>,
    proof: Proof,
    /// What a JWT says of the device that is new.
    news: Option<(DeviceRef, ProfileChange)>,
}

impl Driver {
    pub(super) fn act(&mut self, slot: u32, event: Event) {
        let Some(conn) = self.conn(slot) else { return };
        if let Some(held) = conn.busy.as_mut().and_then(|b| b.held.as_mut()) {
            return held.push_back(event);
        }
        match event {
            Event::Connect(connect) => self.connect(slot, *connect),
            Event::Publish { token, .. } if self.only_reads(slot, &event) => self.forbid(slot, token),
            Event::Subscribe { token, .. } | Event::Unsubscribe { token, .. }
                if self.only_reads(slot, &event) =>
            {
                self.forbid(slot, token);
            }
            Event::Publish { token, publish } => self.publish(slot, token, publish),
            Event::Receipt { token, id, step } => {
                self.charge(slot);
                self.take_receipts(slot, token, mqtt::receipt_of(&id, &step).map(|one| vec![one]));
            }
            Event::Ping => {
                let time_ms = self.shared.engine.clock.now();
                self.answer(slot, proto::Reply::Ping { time_ms });
            }
            Event::Subscribe { token, filters, id } => self.subscribe(slot, token, filters, id),
            Event::Unsubscribe { token, filters } => self.unsubscribe(slot, token, filters),
            Event::Acked { delivery } => self.ended(slot, delivery, Step::Delivered, Reason::None),
            Event::Refused { delivery, .. } => self.ended(slot, delivery, Step::Rejected, Reason::Refused),
            Event::Disconnect { with_will, session_expiry_secs } => {
                if let Some(conn) = self.conn(slot) {
                    conn.orderly = !with_will;
                    conn.busy().goodbye_expiry_secs = session_expiry_secs;
                }
            }
            Event::WindowOpened => self.begin_inbox(slot),
            Event::Xmpp(request) => self.act_on_xmpp(slot, *request),
        }
    }

    /// Whether the connection has not the right to do that: it signed in by a ticket.
    fn only_reads(&mut self, slot: u32, event: &Event) -> bool {
        let is_reading = match event {
            Event::Publish { publish, .. } => &*publish.topic == RECEIPTS_TOPIC,
            Event::Subscribe { filters, .. } => filters.iter().all(|f| &*f.filter == INBOX_TOPIC),
            _ => false,
        };
        !is_reading && self.conn(slot).is_some_and(|c| c.only_reads)
    }

    fn forbid(&mut self, slot: u32, token: u32) {
        self.charge(slot);
        if token != 0 {
            let outcome = PublishOutcome::NotAuthorized;
            self.answer(slot, proto::Reply::Publish { token, outcome });
        }
    }

    fn connect(&mut self, slot: u32, connect: Connect) {
        if self.conn(slot).is_some_and(|c| c.lane == Lane::Refused) {
            return self.turn_away(slot, &connect, ConnectRefusal::Busy);
        }
        if let Some(conn) = self.conn(slot).filter(|_| connect.is_proven) {
            conn.owes_proof = false;
        }
        match self.sign_in_of(&connect) {
            Ok(SignIn { client, assigned, proof, news: None }) => {
                self.enter(slot, Parked { connect, client, assigned, proof });
            }
            Ok(SignIn { client, assigned, proof, news: Some(news) }) => {
                let me = self.reference(slot);
                let Some(conn) = self.conn(slot) else { return };
                conn.busy().parked = Some(Box::new(Parked { connect, client, assigned, proof }));
                let mailbox = self.mailbox.clone();
                keep_what_is_said(&self.shared.engine, news, move |outcome| {
                    mailbox.post(Mail::Vouched(me, outcome));
                });
            }
            Err(refusal) => self.turn_away(slot, &connect, refusal),
        }
    }

    /// What the app's server said of the device in a JWT is stored: from here on a push to its alias
    /// or tags reaches it.
    pub(super) fn enter_vouched(&mut self, slot: u32, outcome: Result<(), SignInError>) {
        let Some(parked) = self.conn(slot).and_then(|c| c.busy.as_mut()?.parked.take()) else { return };
        match outcome {
            Ok(()) => self.enter(slot, *parked),
            Err(error) => self.turn_away(slot, &parked.connect, mqtt::refusal_of(error)),
        }
    }

    /// Who it is, is known: signs in at once, or when the client's older connection has left.
    pub(super) fn enter(&mut self, slot: u32, parked: Parked) {
        let me = self.reference(slot);
        match self.shared.engine.admit(&parked.client).map_err(mqtt::refusal_of) {
            Ok(Some(old)) if old != me => {
                if let Some(conn) = self.conn(slot) {
                    conn.busy().parked = Some(Box::new(parked));
                }
                self.post_to(old, Mail::Succeed { old, new: me });
            }
            Ok(_) => self.sign_in(slot, parked),
            Err(refusal) => self.turn_away(slot, &parked.connect, refusal),
        }
    }

    /// The window opened by itself: what was held back, or came while it was shut, lies behind no position that counts.
    fn begin_inbox(&mut self, slot: u32) {
        if let Some(conn) = self.conn(slot) {
            conn.position = Position::default();
        }
        self.want_drain(slot);
        self.continue_waiting(slot);
    }

    fn turn_away(&mut self, slot: u32, connect: &Connect, refusal: ConnectRefusal) {
        let refusal = self.refused(slot, connect, refusal);
        self.answer(slot, proto::Reply::Connect(Err(refusal)));
    }

    /// The older connection has left, and what it had in flight is with the session.
    pub(super) fn proceed(&mut self, slot: u32) {
        let parked = self.conn(slot).and_then(|c| c.busy.as_mut()?.parked.take());
        if let Some(parked) = parked {
            self.sign_in(slot, *parked);
        }
    }

    fn sign_in(&mut self, slot: u32, parked: Parked) {
        let Parked { connect, client, assigned, proof } = parked;
        let reply = match self.attach(slot, &connect, (client, proof), assigned) {
            Ok(accepted) => {
                if let Some(conn) = self.conn(slot) {
                    conn.only_reads = matches!(proof, Proof::Ticket { .. });
                    conn.rest();
                }
                Ok(Box::new(accepted))
            }
            Err(refusal) => Err(self.refused(slot, &connect, refusal)),
        };
        self.answer(slot, proto::Reply::Connect(reply));
        self.rearm(slot);
        self.want_drain(slot);
    }

    /// A name for the log: only one that a device has. Any other may be a key or a secret in the wrong place.
    pub(super) fn loggable<'a>(&self, name: Option<&'a str>) -> &'a str {
        let is_device = |name: &&str| {
            let (app, id) = self.app_and_name(name);
            self.shared.engine.store.device_by_id(app, id).is_some()
        };
        name.map_or("none", |name| Some(name).filter(is_device).unwrap_or("of no device"))
    }

    /// Wrong credentials are counted by address. Right ones always pass, also from an address that guesses: behind it may
    /// be a thousand honest phones, and a secret of 256 bits is not guessed.
    fn refused(&mut self, slot: u32, connect: &Connect, refusal: ConnectRefusal) -> ConnectRefusal {
        let (peer, now) = (self.conn(slot).map(|c| c.peer), self.now);
        let (client, user) =
            (self.loggable(Some(&connect.client_id)), self.loggable(connect.user.as_deref()));
        match peer.filter(|_| refusal == ConnectRefusal::BadCredentials) {
            Some(peer) if !self.shared.admission.count_failure(peer, now) => {
                // One line an attempt would let whoever guesses fill the log.
                tracing::debug!(%peer, client, user, ?refusal, "a sign-in was refused, one of many");
                ConnectRefusal::RateExceeded
            }
            _ if refusal == ConnectRefusal::Busy => {
                let peer = peer.map(tracing::field::display);
                tracing::debug!(peer, client, "there was no place for a connection");
                refusal
            }
            _ => {
                let peer = peer.map(tracing::field::display);
                tracing::info!(peer, client, user, ?refusal, "a sign-in was refused");
                refusal
            }
        }
    }

    fn attach(
        &mut self,
        slot: u32,
        connect: &Connect,
        (client, proof): (Client, Proof),
        assigned: Option<String>,
    ) -> Result<proto::Accepted, ConnectRefusal> {
        let will = connect.will.as_deref().map(mqtt::will_of);
        if let Some(will) = &will {
            let left = self.shared.engine.may_leave_will(&client.id, will);
            left.map_err(|_| ConnectRefusal::NotAuthorized)?;
        }
        // Whoever only reads leaves the session, with the topics in it, as it is.
        let only_reads = matches!(proof, Proof::Ticket { .. });
        let attach = Attach {
            client,
            connection: self.reference(slot),
            clean: connect.clean_start && !only_reads,
            expiry_secs: if only_reads { u32::MAX } else { connect.session_expiry_secs },
            will,
            takes_pushes: connect.takes_pushes,
            hears_peers: self.conn(slot).is_some_and(|c| c.protocol.is_xmpp()),
        };
        let client = connect.takes_pushes.then(|| attach.client.clone());
        let first_token = if connect.clean_start { 0 } else { self.shared.engine.chance.bits128() as u32 };
        let name = tracing::enabled!(tracing::Level::DEBUG).then(|| attach.client.id.clone());
        let attached = self.shared.engine.connect(attach).map_err(mqtt::refusal_of)?;
        let peer = self.conn(slot).map(|c| tracing::field::display(c.peer));
        let session = attached.session;
        tracing::debug!(peer, client = name, session, "a client connected");
        let now = self.shared.engine.clock.now();
        if let Some(conn) = self.conn(slot) {
            conn.session = Some(attached.session);
            // Tokens of an earlier connection may still be in flight: begin elsewhere.
            conn.next_live = first_token;
            let (address, ticket) = (conn.peer, conn.sign_in(now));
            self.shared.admission.waits_no_longer(address, ticket);
        }
        let (inflight, stream) = match attached.saved.map(|saved| saved.downcast::<proto::mqtt::Inflight>()) {
            Some(Ok(inflight)) => (Some(inflight), None),
            Some(Err(other)) => (None, other.downcast::<proto::xmpp::SavedStream>().ok()),
            None => (None, None),
        };
        // After a restart the client may still hold ids that nobody here knows: begin somewhere else among them.
        let first_id = (first_token as u16).max(1);
        let somewhere = || match attached.state_lost {
            true => proto::mqtt::Inflight::after_loss(first_id),
            false => proto::mqtt::Inflight::starting_at(first_id),
        };
        // And a 3.1 client cannot be told that its session is gone: it would take a QoS 2 message under such an id for an old one.
        let may_hold = attached.present || (connect.level == 3 && !connect.clean_start);
        let inflight = inflight.or_else(|| may_hold.then(somewhere));
        let differs = connect.level == 5 && attached.expiry_secs != connect.session_expiry_secs;
        Ok(proto::Accepted {
            session_present: attached.present,
            assigned_client_id: assigned.map(Into::into),
            session_expiry_secs: differs.then_some(attached.expiry_secs),
            inflight,
            stream,
            welcome: client.map(|client| Box::new(self.welcome(&client, proof))),
        })
    }

    fn welcome(&self, client: &Client, proof: Proof) -> proto::Welcome {
        let engine = &self.shared.engine;
        let at = client.device.map(|device| DeviceRef { app: client.app, device });
        let ticket = at.and_then(|at| self.shared.tokens.resume_token(engine, at, &client.id, proof));
        proto::Welcome {
            app: engine.store.app(client.app).map_or_else(String::new, |app| app.id).into(),
            device: client.id.as_str().into(),
            time_ms: engine.clock.now(),
            ticket: ticket.map(|(ticket, until)| (ticket.into(), until)),
        }
    }

    /// Who this is: a registered device by a token, or by user name and password, else an anonymous
    /// client by its identifier.
    fn sign_in_of(&self, connect: &Connect) -> Result<SignIn, ConnectRefusal> {
        let Some(token) = &connect.token else {
            let (client, assigned) = self.client_of(connect)?;
            return Ok(SignIn { client, assigned, proof: Proof::Secret, news: None });
        };
        let engine = &self.shared.engine;
        let checked = self.shared.tokens.check(engine, token).map_err(mqtt::refusal_of)?;
        let news = checked.news(engine);
        Ok(SignIn { client: checked.client, assigned: None, proof: checked.proof, news })
    }

    fn client_of(&self, connect: &Connect) -> Result<(Client, Option<String>), ConnectRefusal> {
        let engine = &self.shared.engine;
        let (app, name) = match &connect.user {
            Some(user) => self.app_and_name(user),
            None => (self.shared.config.app, connect.client_id.as_str()),
        };
        if connect.is_proven {
            let client = engine.sign_in_proven(app, name).map_err(mqtt::refusal_of)?;
            return Ok((client, None));
        }
        if connect.user.is_some() {
            let known = engine.store.device_by_id(app, name).is_some();
            // Anonymous clients belong to the listener's app: who names another one has to be a device of it.
            let is_elsewhere = app != self.shared.config.app;
            if known || is_elsewhere || !engine.access.anonymous || connect.level == 0 {
                let secret = connect.password.as_deref().unwrap_or_default();
                let client = engine.sign_in(app, name, secret).map_err(mqtt::refusal_of)?;
                return self.own_name(client, connect);
            }
        }
        if connect.client_id.is_empty() {
            let name = format!("auto-{:032x}", engine.chance.bits128());
            let client = engine.sign_in_anonymous(app, &name).map_err(mqtt::refusal_of)?;
            return Ok((client, Some(name)));
        }
        let client = engine.sign_in_anonymous(app, &connect.client_id).map_err(|error| match error {
            SignInError::BadCredentials => ConnectRefusal::ClientIdInvalid,
            other => mqtt::refusal_of(other),
        })?;
        Ok((client, None))
    }

    /// A device's session is named by the device. Its client identifier may be anything but another device's (A8).
    fn own_name(
        &self,
        client: Client,
        connect: &Connect,
    ) -> Result<(Client, Option<String>), ConnectRefusal> {
        let given = connect.client_id.as_str();
        if given.is_empty() {
            let assigned = client.id.clone();
            return Ok((client, Some(assigned)));
        }
        // Another name than the device's is passed over: a session is the device's, whatever it is called. Were names of
        // other devices refused, a device could find out which there are.
        Ok((client, None))
    }

    /// `app/device`, or a device of the listener's own app.
    pub(super) fn app_and_name<'a>(&self, user: &'a str) -> (AppNo, &'a str) {
        let named = user.split_once('/');
        let app = named.and_then(|(app, name)| Some((self.shared.engine.store.app_by_id(app)?, name)));
        app.unwrap_or((self.shared.config.app, user))
    }

    fn publish(&mut self, slot: u32, token: u32, publish: proto::Publish) {
        self.shared.metrics.messages_in.inc();
        self.charge(slot);
        let at = self.reference(slot);
        let Some(session) = self.conn(slot).and_then(|c| c.session) else { return };
        if &*publish.topic == RECEIPTS_TOPIC {
            return self.take_receipts(slot, token, mqtt::receipts_of(&publish.payload));
        }
        let request = mqtt::publish_request(&publish);
        planted::panic_in("publish", &publish.payload);
        let before = self.collected.commands.len();
        let routed = self.shared.engine.publish(session, &request, &mut self.collected);
        let live = std::mem::take(&mut self.collected.live);
        let outcome = match routed {
            Ok(routed) => {
                let outcome = if routed.matched == 0 {
                    PublishOutcome::NoSubscribers
                } else {
                    PublishOutcome::Accepted
                };
                if token != 0 && routed.durable {
                    self.replies.push((at, token, outcome, before..self.collected.commands.len()));
                    if let Some(conn) = self.conn(slot) {
                        conn.uncommitted += 1;
                    }
                }
                self.fan_out(publish, &request, live);
                if routed.durable {
                    return;
                }
                outcome
            }
            Err(error) => {
                tracing::debug!(session, topic = &*publish.topic, %error, "a publish was refused");
                mqtt::outcome_of(error)
            }
        };
        if token != 0 {
            self.answer(slot, proto::Reply::Publish { token, outcome });
        }
    }

    /// One publish off the connection's budget; an empty one pauses reading until it has refilled.
    pub(super) fn charge(&mut self, slot: u32) {
        let (rate, burst, now) =
            (self.shared.config.publishes_per_sec, self.shared.config.publishes_burst, self.now);
        if rate == 0 {
            return;
        }
        if let Some(conn) = self.conn(slot) {
            let budget = conn.busy().budget.get_or_insert_with(|| Budget::new(burst, now));
            if !budget.take(rate, burst, now) {
                conn.paused = true;
                self.rearm(slot);
            }
        }
    }

    fn take_receipts(&mut self, slot: u32, token: u32, receipts: Option<Vec<DeviceReceipt>>) {
        let at = self.reference(slot);
        let session = self.conn(slot).and_then(|c| c.session);
        let device = session.and_then(|s| self.shared.engine.session_device(s));
        let (Some(device), Some(receipts)) = (device, receipts) else {
            if token != 0 {
                self.answer(slot, proto::Reply::Publish { token, outcome: PublishOutcome::PayloadInvalid });
            }
            return;
        };
        if token != 0
            && let Some(conn) = self.conn(slot)
        {
            conn.uncommitted += 1;
        }
        let mailbox = self.mailbox.clone();
        let done = Box::new(move |taken: Result<usize, _>| {
            let outcome = if taken.is_ok() { PublishOutcome::Accepted } else { PublishOutcome::Unavailable };
            if token != 0 {
                mailbox.post(Mail::Reply(at, Reply::Protocol(proto::Reply::Publish { token, outcome })));
            }
        });
        let source = ReceiptSource::App { at: device, receipts: &receipts, done };
        self.shared.engine.record_receipts(source);
    }

    /// One commit for everything that this turn's publishes need.
    pub(super) fn commit_publishes(&mut self) {
        if self.collected.commands.is_empty() {
            return;
        }
        let commands = std::mem::take(&mut self.collected.commands);
        let replies = std::mem::take(&mut self.replies);
        let mailbox = self.mailbox.clone();
        self.shared.engine.commit(
            commands,
            Box::new(move |outcome| {
                let came_of = |commands| match &outcome {
                    Ok(all) => all_taken(all.get::<Range<usize>>(commands).unwrap_or_default()),
                    Err(error) => Err(error.clone().into()),
                };
                let told = |(at, token, accepted, commands)| {
                    let outcome = came_of(commands).map_or_else(mqtt::outcome_of, |()| accepted);
                    (at, Reply::Protocol(proto::Reply::Publish { token, outcome }))
                };
                if !replies.is_empty() {
                    mailbox.post(Mail::Replies(replies.into_iter().map(told).collect()));
                }
            }),
        );
    }

    fn subscribe(&mut self, slot: u32, token: u32, filters: Vec<proto::Subscription>, id: Option<u32>) {
        self.charge(slot);
        let at = self.reference(slot);
        let Some(session) = self.conn(slot).and_then(|c| c.session) else { return };
        let valid: Vec<usize> = (0..filters.len()).filter(|i| filters[*i].valid).collect();
        let wanted = valid.iter().map(|i| mqtt::subscription_of(&filters[*i], id)).collect();
        let mailbox = self.mailbox.clone();
        let count = filters.len();
        let places = valid.clone();
        let done = Box::new(move |results: Vec<Result<u8, u8>>| {
            let mut outcomes = vec![SubscribeOutcome::Refused(FILTER_INVALID); count];
            for (place, result) in places.iter().zip(&results) {
                outcomes[*place] = match result {
                    Ok(qos) => SubscribeOutcome::Granted(mqtt::qos_of(*qos)),
                    Err(code) => SubscribeOutcome::Refused(*code),
                };
            }
            mailbox.post(Mail::Reply(at, Reply::Subscribed { token, outcomes }));
        });
        let new = self.shared.engine.subscribe(session, wanted, done);
        if self.shared.engine.is_being_stored(session)
            && let Some(conn) = self.conn(slot)
        {
            conn.busy().held = Some(VecDeque::new());
        }
        if filters.iter().any(|f| f.valid && &*f.filter == INBOX_TOPIC)
            && let Some(conn) = self.conn(slot)
        {
            // Pushes that lay there while nobody asked for them are behind the position already. From this moment newer ones
            // may go out, ahead of the answer, and must not overtake them.
            conn.position = Position::default();
        }
        let picked = valid.iter().zip(new).filter(|(i, is_new)| mqtt::wants_retained(&filters[**i], *is_new));
        let wanted = picked.map(|(place, _)| {
            let filter = &filters[*place];
            Wanted { place: *place, filter: filter.filter.to_string(), qos: filter.qos as u8, id }
        });
        // The answer comes by this worker's own mail, so it is read after this.
        self.wanted.insert((at, token), wanted.collect());
    }

    /// The SUBSCRIBE is answered, or never will be: acts on what was said behind it, and reads on.
    pub(super) fn release(&mut self, slot: u32) {
        let held = self.conn(slot).and_then(|c| c.busy.as_mut()?.held.take());
        let Some(held) = held else { return };
        held.into_iter().for_each(|event| self.act(slot, event));
        if let Some(conn) = self.conn(slot) {
            conn.rest();
            self.again.push(slot);
        }
    }

    fn unsubscribe(&mut self, slot: u32, token: u32, filters: Vec<proto::Text>) {
        self.charge(slot);
        let at = self.reference(slot);
        let Some(session) = self.conn(slot).and_then(|c| c.session) else { return };
        let filters = filters.iter().map(|f| split_share(f)).collect();
        let mailbox = self.mailbox.clone();
        self.shared.engine.unsubscribe(
            session,
            filters,
            Box::new(move |existed| {
                mailbox.post(Mail::Reply(at, Reply::Protocol(proto::Reply::Unsubscribe { token, existed })));
            }),
        );
    }

    pub(super) fn take_reply(&mut self, slot: u32, reply: Reply) {
        match reply {
            Reply::Protocol(reply) => {
                let is_commit = matches!(reply, proto::Reply::Publish { .. } | proto::Reply::Xmpp(_));
                if matches!(reply, proto::Reply::Xmpp(Answer::Account { .. }))
                    && let Some(conn) = self.conn(slot)
                {
                    conn.busy().changes_account = false;
                }
                self.answer(slot, reply);
                if is_commit {
                    self.settle(slot);
                }
            }
            Reply::Subscribed { token, outcomes } => {
                let wanted = self.wanted.remove(&(self.reference(slot), token)).unwrap_or_default();
                let granted =
                    |w: &Wanted| matches!(outcomes.get(w.place), Some(SubscribeOutcome::Granted(_)));
                let retained: Vec<Wanted> = wanted.into_iter().filter(granted).collect();
                self.answer(slot, proto::Reply::Subscribe { token, outcomes });
                self.release(slot);
                for wanted in retained.iter().filter(|w| w.filter != INBOX_TOPIC) {
                    self.send_retained(slot, wanted);
                }
                // Pushes may lie there that nobody had asked for; whatever was said of retained messages.
                self.want_drain(slot);
            }
        }
    }

    /// A delivery ended: by the peer's acknowledgement or refusal.
    fn ended(&mut self, slot: u32, delivery: u64, step: Step, reason: Reason) {
        let Some(conn) = self.conn(slot) else { return };
        if delivery & TRANSIENT == 0 {
            let sent_at = conn.take_sent(delivery);
            if let Some(session) = conn.session
                && (sent_at.is_some() || self.is_own(slot, session, delivery))
            {
                self.acks.push(Ack { session, seq: delivery, step, reason, sent_at });
            }
        }
        self.continue_waiting(slot);
    }

    /// Whether a delivery that this connection did not write is open for its device all the same: an earlier connection wrote
    /// it. Acknowledgements of anything else go no further, and too many of them end the connection.
    fn is_own(&mut self, slot: u32, session: SessionNo, delivery: u64) -> bool {
        if self.conn(slot).is_none_or(|c| !c.is_open()) {
            return false;
        }
        let is_first = self.strays.insert((session, delivery));
        if is_first && self.shared.engine.is_open_for(session, delivery) {
            return true;
        }
        self.shared.metrics.bad_acks.inc();
        let (now, max) = (self.now, self.shared.config.bad_acks_per_minute_max);
        // The other protocols count by themselves what they never sent.
        let Some(conn) = self.conn(slot).filter(|c| max > 0 && matches!(c.protocol, Protocol::Json(_)))
        else {
            return false;
        };
        let budget = conn.busy().bad_acks.get_or_insert_with(|| Budget::new(max, now));
        // A minute's worth at once, and back at that rate.
        if !budget.take_at(f64::from(max) / 60.0, max, now) {
            tracing::debug!(peer = %conn.peer, "a connection acknowledges what it was never sent");
            self.say_goodbye(slot, Goodbye::BadAcks);
        }
        false
    }

    pub(super) fn record_acks(&mut self) {
        if !self.acks.is_empty() {
            self.shared.engine.record_receipts(ReceiptSource::Connections(&self.acks));
            self.acks.clear();
        }
        self.strays.clear();
    }
}

/// `$share/{group}/{filter}` (MQTT 5 §4.8.2).
fn split_share(filter: &str) -> (Option<String>, String) {
    match filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/')) {
        Some((group, filter)) => (Some(group.to_owned()), filter.to_owned()),
        None => (None, filter.to_owned()),
    }
}
