//! What devices do over XMPP, and what only that protocol asks of the server: as `gateway/xmpp.rs` does it.

use crate::devices::Receipt;
use crate::ledger::About;
use crate::plan::Plan;
use crate::server::{Mail, Server, Turn, reference};
use crate::streams::{Heard, Question};
use crate::world::World;
use postrider_core::access::PEER_TOPIC;
use postrider_core::delivery::between::SendError;
use postrider_core::id::{AppNo, DeviceRef, MessageId};
use postrider_core::port::{Pending, Store};
use postrider_proto::Reply;
use postrider_proto::xmpp::{Answer, Request, ServerConfig, Stanza, StanzaOutcome};

/// Its times are those of a world that lasts a minute. TLS lies below the seam.
pub fn config(plan: &Plan) -> ServerConfig {
    ServerConfig {
        offers_tls: false,
        allows_plaintext: true,
        offers_legacy_auth: true,
        inflight_max: usize::from(plan.window),
        probe_after_ms: plan.probe_after_ms,
        answer_timeout_ms: plan.answer_timeout_ms,
        resume_ms: 20_000,
        ..ServerConfig::default()
    }
}

impl Server {
    pub fn act_on_xmpp(&mut self, link: u64, request: Request, t: &mut Turn<'_>) {
        match request {
            Request::Stanza { token, stanza } => self.send_stanza(link, token, stanza, t),
            // The simulated clients sign in by PLAIN or as of old, and ask for no items.
            Request::Keys { .. }
            | Request::WrongProof { .. }
            | Request::Account { .. }
            | Request::Items { .. } => {}
        }
    }

    /// The device is connected by XMPP.
    pub fn hears_peers(&self, at: DeviceRef) -> bool {
        self.conns.values().any(|c| c.at == Some(at) && c.session.is_some() && c.protocol.is_xmpp())
    }

    pub fn is_of_peer(&self, one: &Pending) -> bool {
        let content = self.store.content(one.blob);
        content.is_ok_and(|content| content.topic.as_deref() == Some(PEER_TOPIC))
    }

    fn send_stanza(&mut self, link: u64, token: u32, stanza: Stanza, t: &mut Turn<'_>) {
        let Stanza { to, is_lasting, bytes } = stanza;
        let Some(session) = self.conns.get(&link).and_then(|c| c.session) else { return };
        let named = to.split_once('/').and_then(|(app, name)| Some((self.store.app_by_id(app)?, name)));
        let own = self.engine.session_device(session).map(|at| at.app);
        let outcome = match named.filter(|(app, _)| own == Some(*app)) {
            None => StanzaOutcome::Unavailable,
            Some((_, name)) if is_lasting => {
                let mail = self.mail.clone();
                let done = move |sent: Result<(), SendError>| {
                    let answer = Answer::Stanza { token, outcome: outcome_of(sent) };
                    mail.post(Mail::Reply(reference(link), Reply::Xmpp(answer)));
                };
                if let Some(conn) = self.conns.get_mut(&link) {
                    conn.uncommitted += 1;
                }
                return self.engine.send_lasting(session, name, bytes, Box::new(done));
            }
            Some((_, name)) => outcome_of(self.engine.send_passing(session, name, bytes)),
        };
        self.answer(link, Reply::Xmpp(Answer::Stanza { token, outcome }), t);
    }
}

fn outcome_of(sent: Result<(), SendError>) -> StanzaOutcome {
    match sent {
        Ok(()) => StanzaOutcome::Accepted,
        Err(SendError::Unavailable) => StanzaOutcome::Unavailable,
        Err(SendError::InboxFull) => StanzaOutcome::QuotaExceeded,
        Err(SendError::TooLarge) => StanzaOutcome::NotAllowed,
        Err(SendError::TryLater) => StanzaOutcome::TryLater,
    }
}

impl World {
    pub fn device_reads_stream(&mut self, device: usize, link: u64, bytes: &[u8]) {
        let mut answers = Vec::new();
        let Some(stream) = self.devices[device].stream() else { return };
        let heard = stream.read(bytes, &mut answers);
        for one in heard {
            self.device_hears_stanza(device, link, one);
        }
        if !answers.is_empty() {
            self.send_up(link, answers);
        }
    }

    fn device_hears_stanza(&mut self, device: usize, link: u64, heard: Heard) {
        let about = About { push: None, device: Some(device) };
        match heard {
            Heard::Ready { resumed } => self.device_in_session(device, link, resumed),
            Heard::Push { id, n } => {
                let about = About { push: Some(n), device: Some(device) };
                self.note(about, format!("device {device}: has push {n} ({id}) on {link}"));
                if self.ledger.shown(id, device) {
                    self.note_arrival(device, id.at());
                }
            }
            Heard::Peer { text } => {
                self.note(about, format!("device {device}: has \"{text}\" on {link}"));
                self.ledger.peer_heard(&text, device);
            }
            Heard::Asked(question) => {
                self.plan_ack(device, link, Receipt::Stream(question), None);
            }
            Heard::Told(ids) => self.device_has_acked(device, link, &ids),
            Heard::Refused { why } => {
                self.note(about, format!("device {device}: is told {why} on {link}"));
                if self.devices[device].stream().is_some_and(|stream| !stream.is_ready()) {
                    self.device_hangs_up(device, link, "refused");
                }
            }
            Heard::Overcounted { told, said } => {
                let what = format!("device {device} said {said} stanzas on {link}, and {told} were counted");
                self.ledger.break_rule("counts are true", about, what);
            }
        }
    }

    fn device_in_session(&mut self, device: usize, link: u64, resumed: bool) {
        let about = About { push: None, device: Some(device) };
        self.note(about, format!("device {device}: is in session on {link}, resumed: {resumed}"));
        let topics = self.devices[device].plan.topics && !self.devices[device].plan.stream.is_androidpn;
        let d = &mut self.devices[device];
        d.sessions += 1;
        if resumed {
            self.resumed += 1;
            return;
        }
        d.forget_mqtt();
        let mut bytes = Vec::new();
        if let Some(stream) = d.stream().filter(|_| topics) {
            stream.subscribe("public/news", &mut bytes);
            stream.subscribe("public/+", &mut bytes);
            stream.subscribe("public/secret", &mut bytes);
            self.send_up(link, bytes);
        }
    }

    fn device_has_acked(&mut self, device: usize, link: u64, ids: &[MessageId]) {
        for id in ids {
            self.ledger.device_acked(*id, device);
            let about = About { push: self.ledger.push_of(*id), device: Some(device) };
            self.note(about, format!("device {device}: acknowledges {id} on {link}"));
        }
    }

    /// It gets to what it was asked. A receipt names its message, and may come on a later stream; all else is one stream's.
    pub fn device_answers(&mut self, device: usize, link: u64, question: Question) {
        let repeats = self.devices[device].plan.repeats_acks && self.random.permille(300);
        let d = &mut self.devices[device];
        let Some(now_on) =
            d.link.filter(|now_on| *now_on == link || matches!(question, Question::Receipt(_)))
        else {
            return;
        };
        let Some(stream) = d.stream().filter(|stream| stream.is_ready()) else { return };
        let mut bytes = Vec::new();
        let ids = stream.answer(question, &mut bytes);
        if repeats {
            stream.repeat(&mut bytes);
        }
        self.device_has_acked(device, now_on, &ids);
        self.send_up(now_on, bytes);
    }

    /// Something that it does of its own accord. Phones of androidpn only listen.
    pub fn device_acts_on_stream(&mut self, device: usize, link: u64, topic: &str, text: &str) {
        let what = self.random.below(4);
        let retain = self.plan.more_topics && self.random.permille(300);
        let app = self.devices[device].plan.app;
        let others: Vec<usize> =
            self.devices.iter().filter(|d| d.plan.app == app && d.index != device).map(|d| d.index).collect();
        let other = self.random.pick(&others).copied();
        let to = other.map(|other| format!("a{app}/{}", self.devices[other].name));
        let plan = self.devices[device].plan.stream;
        let Some(stream) = self.devices[device].stream().filter(|s| s.is_ready() && !plan.is_androidpn)
        else {
            return;
        };
        let mut bytes = Vec::new();
        match (what, to) {
            (0, _) if plan.rests => {
                let is_inactive = !stream.is_inactive;
                stream.set_inactive(is_inactive, &mut bytes);
            }
            (1 | 2, Some(to)) => {
                stream.write_to(&to, text, &mut bytes);
                self.ledger.topics.peers.insert(text.to_owned(), (AppNo(app), other));
            }
            _ => stream.publish(topic, text, retain, &mut bytes),
        }
        self.send_up(link, bytes);
    }
}
