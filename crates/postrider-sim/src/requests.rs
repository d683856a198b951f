//! App servers: they push, cancel, register and delete, and ask again with the same key until they have an answer.

use crate::devices::SECRET;
use crate::ledger::{About, Known, Outcome, Push, Whom};
use crate::server::{Answer, Mail};
use crate::topics::{BOARD, JOBS};
use crate::world::{Happening, World};
use postrider_core::audience::Audience;
use postrider_core::command::Command;
use postrider_core::delivery::accept::{Push as CorePush, PushData};
use postrider_core::delivery::publish::{Publish as CorePublish, PublishError};
use postrider_core::devices::{DeviceError, NewDevice};
use postrider_core::id::{AppNo, MessageId};
use postrider_core::model::{Content, Origin, Priority, Profile, ProofKeys};
use postrider_core::port::StoreError;
use serde_json::json;
use std::sync::Arc;

/// Tries of a request while faults go on; afterwards there is no end.
const TRIES_MAX: u32 = 8;

#[derive(Clone, Debug)]
pub enum Kind {
    Push {
        n: u64,
        push: Box<CorePush>,
    },
    Cancel {
        n: u64,
        id: MessageId,
    },
    /// On the board: its number.
    Topic {
        topic: &'static str,
        word: Option<u64>,
    },
    Register {
        device: usize,
        key: String,
    },
    Delete {
        device: usize,
    },
}

/// One request and how far it is.
#[derive(Clone, Debug)]
pub struct Request {
    pub app: AppNo,
    pub kind: Kind,
    pub attempts: u32,
    pub done: bool,
}

impl World {
    pub fn sender_acts(&mut self) {
        if self.calm {
            return;
        }
        let wait = self.random.between(1, self.plan.request_every_ms * 2);
        self.after(wait, Happening::SenderActs);
        if self.plan.cycles.is_some() {
            let push = self.draw_cycle_push();
            return self.ask(push);
        }
        let app = AppNo(self.random.below(2) as u32);
        match self.random.below(20) {
            0 => self.ask_cancel(),
            1 if self.plan.devices_come_and_go => self.ask_delete(),
            1..=3 => self.ask(Request {
                app,
                kind: Kind::Register { device: usize::MAX, key: String::new() },
                attempts: 0,
                done: false,
            }),
            4 | 5 => {
                let topic = self.draw_topic();
                self.ask(Request { app, kind: Kind::Topic { topic, word: None }, attempts: 0, done: false });
            }
            _ => {
                let push = self.draw_push(app, None);
                self.ask(push);
            }
        }
    }

    /// A push, to whom chance will; or a plain one to one device.
    pub fn draw_push(&mut self, app: AppNo, canary_for: Option<usize>) -> Request {
        let n = self.next_push;
        self.next_push += 1;
        let mine: Vec<String> =
            self.devices.iter().filter(|d| d.plan.app == app.0).map(|d| d.name.clone()).collect();
        let audience = match (canary_for, self.random.below(10)) {
            (Some(device), _) => Whom::Devices(vec![self.devices[device].name.clone()]),
            (None, 0..=2) => Whom::All,
            (None, 3) => Whom::Tagged,
            _ => {
                let count = self.random.between(1, 3);
                Whom::Devices((0..count).filter_map(|_| self.random.pick(&mine).cloned()).collect())
            }
        };
        let plain = canary_for.is_some();
        let ttl_secs = match self.random.below(8) {
            0 if !plain => self.random.between(1, 3),
            1 if !plain => self.random.between(4, 20),
            2 if !plain && self.random.permille(200) => 0,
            _ => 3_600,
        };
        let collapse = (!plain && self.random.permille(200)).then(|| format!("k{}", self.random.below(2)));
        let urgent = self.random.permille(150);
        let keyed = plain || self.random.permille(900);
        // The two apps use the same keys: they are told apart by the app.
        let key = keyed.then(|| format!("key-{}", n / 2));
        let core_audience = match &audience {
            Whom::Devices(names) => {
                Audience::Devices(if names.is_empty() { vec!["d0".into()] } else { names.clone() })
            }
            Whom::Tagged => Audience::Tag("t".into()),
            Whom::All => Audience::All,
        };
        let key = key.map(|k| if n % 2 == app.0 as u64 % 2 { k } else { format!("{k}-{n}") });
        let push = CorePush {
            audience: core_audience,
            exclude: None,
            notification: None,
            data: serde_json::value::to_raw_value(&json!({
                "n": n,
                "urgent": urgent,
                "text": "x".repeat(self.random.below(300) as usize),
            }))
            .ok()
            .map(PushData::Json),
            ttl_secs: Some(ttl_secs),
            collapse_key: collapse.clone(),
            priority: if urgent { Priority::High } else { Priority::Normal },
            backlog: None,
            transient: false,
            reject_when_full: false,
            idempotency_key: key.clone(),
            idempotency_owner: 0,
            sent_by: String::new(),
        };
        let known =
            Push { app, audience, ttl_secs, collapse, key, outcome: Outcome::Unknown, cancel_asked: false };
        self.ledger.pushes.insert(n, known);
        Request { app, kind: Kind::Push { n, push: Box::new(push) }, attempts: 0, done: false }
    }

    fn draw_topic(&mut self) -> &'static str {
        let all = ["public/news", "public/secret", JOBS, BOARD];
        let known = if self.plan.more_topics { &all[..] } else { &all[..2] };
        self.random.pick(known).copied().unwrap_or("public/news")
    }

    fn ask_cancel(&mut self) {
        let accepted: Vec<(u64, AppNo, MessageId)> = self
            .ledger
            .pushes
            .iter()
            .rev()
            .take(8)
            .filter_map(|(n, p)| match p.outcome {
                Outcome::Accepted(id) => Some((*n, p.app, id)),
                _ => None,
            })
            .collect();
        let Some((n, app, id)) = self.random.pick(&accepted).copied() else { return };
        if let Some(push) = self.ledger.pushes.get_mut(&n) {
            push.cancel_asked = true;
        }
        self.ask(Request { app, kind: Kind::Cancel { n, id }, attempts: 0, done: false });
    }

    fn ask_delete(&mut self) {
        let registered: Vec<usize> =
            self.devices.iter().filter(|d| d.registered && d.at.is_some()).map(|d| d.index).collect();
        let Some(device) = self.random.pick(&registered).copied() else { return };
        let app = AppNo(self.devices[device].plan.app);
        if let Some(known) = self.devices[device].at.and_then(|at| self.ledger.devices.get_mut(&at)) {
            known.delete_asked = true;
        }
        self.devices[device].registered = false;
        self.ask(Request { app, kind: Kind::Delete { device }, attempts: 0, done: false });
    }

    pub fn ask(&mut self, mut request: Request) {
        if let Kind::Register { device, key } = &mut request.kind {
            let gone: Vec<usize> = self
                .devices
                .iter()
                .filter(|d| d.plan.app == request.app.0 && !d.registered && d.at.is_none())
                .map(|d| d.index)
                .collect();
            let Some(gone) = self.random.pick(&gone) else { return };
            (*device, *key) = (*gone, format!("register-{gone}-{}", self.now));
            // No second registration while this one is on its way.
            self.devices[*gone].at = Some(postrider_core::id::DeviceRef {
                app: request.app,
                device: postrider_core::id::DeviceNo(u32::MAX),
            });
        }
        let no = self.requests.len() as u64 + 1;
        self.requests.insert(no, request);
        self.attempt(no);
    }

    fn attempt(&mut self, no: u64) {
        let Some(request) = self.requests.get_mut(&no) else { return };
        request.attempts += 1;
        let attempt = request.attempts;
        let latency = self.latency();
        let lost = !self.calm && self.random.permille(self.plan.request_lost);
        if !lost {
            self.after(latency, Happening::RequestArrives { request: no });
        }
        let patience = self.random.between(1_500, 4_000);
        self.after(patience, Happening::RequestTimeout { request: no, attempt });
    }

    pub fn request_timeout(&mut self, no: u64, attempt: u32) {
        let calm = self.calm;
        let Some(request) = self.requests.get_mut(&no) else { return };
        if request.done || request.attempts != attempt {
            return;
        }
        let keyless = matches!(&request.kind, Kind::Push { push, .. } if push.idempotency_key.is_none());
        let topic = matches!(request.kind, Kind::Topic { .. });
        let must = matches!(request.kind, Kind::Register { .. } | Kind::Delete { .. });
        if keyless || topic || (request.attempts >= TRIES_MAX && !calm && !must) {
            request.done = true;
            return;
        }
        self.attempt(no);
    }

    pub fn request_arrives(&mut self, no: u64) {
        let (Some(server), Some(request)) = (&self.server, self.requests.get(&no).cloned()) else { return };
        let mail = server.mail.clone();
        let stored = move |outcome: Result<Vec<_>, postrider_core::port::StoreError>| {
            let answer = if outcome.is_ok() { Answer::Done } else { Answer::Unavailable };
            mail.post(Mail::Answer(no, answer));
        };
        match request.kind {
            Kind::Push { n, push } => {
                server.push(no, request.app, *push);
                self.note(About { push: Some(n), device: None }, format!("server: push {n} is submitted"));
            }
            Kind::Cancel { n, id } => {
                let command = Command::Cancel { app: request.app, message: id, now: self.now };
                server.store_submit(command, Box::new(stored));
                self.note(
                    About { push: Some(n), device: None },
                    format!("server: push {n} is to be cancelled"),
                );
            }
            Kind::Topic { topic, .. } => {
                let retain = topic == BOARD;
                // Numbered as they come in, so that a later word has a greater number.
                let word = self.events;
                if let Some(Request { kind: Kind::Topic { word: kept, .. }, .. }) = self.requests.get_mut(&no)
                {
                    *kept = retain.then_some(word);
                }
                let payload = format!("news {}", if retain { word } else { no }).into();
                let content = Content { topic: Some(topic.into()), payload, properties: None };
                let publish = CorePublish { content: Arc::new(content), qos: 1, retain, expiry_secs: None };
                let done = Box::new(move |outcome: Result<usize, PublishError>| {
                    // No app of the simulation ever fills its room.
                    stored(outcome.map(|_| Vec::new()).map_err(|why| match why {
                        PublishError::Store(error) => error,
                        other => StoreError::Failed(other.to_string()),
                    }))
                });
                let _ = server.engine.publish_from_app(request.app, publish, done);
            }
            Kind::Register { device, key } => self.register(no, request.app, device, key),
            Kind::Delete { device } => {
                if let Some(at) = self.devices[device].at {
                    server.engine.delete_device(at, Box::new(stored));
                    self.note(
                        About { push: None, device: Some(device) },
                        format!("server: {device} is to be deleted"),
                    );
                }
            }
        }
    }

    fn register(&mut self, no: u64, app: AppNo, device: usize, key: String) {
        let Some(server) = &self.server else { return };
        let d = &self.devices[device];
        let tags = if d.plan.tagged { vec!["t".to_owned()] } else { Vec::new() };
        let new = NewDevice {
            id: Some(d.name.clone()),
            secret: SECRET.into(),
            is_secret_brought: false,
            proof_keys: ProofKeys::default(),
            profile: Profile { tags, ..Profile::default() },
            origin: Origin::AppServer,
            idempotency_key: Some(key),
            idempotency_owner: 0,
        };
        let mail = server.mail.clone();
        server.engine.register(
            app,
            new,
            Box::new(move |result| {
                let answer = match result {
                    Ok(registered) => Answer::Registered(registered.at),
                    Err(DeviceError::Store(_)) => Answer::Unavailable,
                    Err(error) => Answer::Refused(error.to_string()),
                };
                mail.post(Mail::Answer(no, answer));
            }),
        );
        self.note(
            About { push: None, device: Some(device) },
            format!("server: {device} is to be registered"),
        );
    }

    pub fn answer_leaves(&mut self, request: u64, answer: Answer) {
        let latency = self.latency();
        if self.calm || !self.random.permille(self.plan.answer_lost) {
            self.after(latency, Happening::AnswerArrives { request, answer });
        }
    }

    pub fn answer_arrives(&mut self, no: u64, answer: Answer) {
        let Some(request) = self.requests.get_mut(&no) else { return };
        if answer == Answer::Unavailable {
            // Asked again when the patience ends.
            return;
        }
        let (first, app) = (!request.done, request.app);
        request.done = true;
        match request.kind.clone() {
            Kind::Push { n, .. } => {
                self.note(
                    About { push: Some(n), device: None },
                    format!("sender: push {n} is answered {answer:?}"),
                );
                match answer {
                    Answer::Accepted(id) => self.ledger.accepted(n, id),
                    Answer::Transient => self.set_outcome(n, Outcome::Transient),
                    Answer::Refused(why) => {
                        if why.contains("idempotency") {
                            let about = About { push: Some(n), device: None };
                            self.ledger.break_rule("one answer a key", about, format!("push {n}: {why}"));
                        }
                        self.set_outcome(n, Outcome::Refused);
                    }
                    _ => {}
                }
            }
            Kind::Register { device, .. } => self.registered(device, answer, first),
            Kind::Delete { device } if first => self.devices[device].at = None,
            Kind::Topic { word: Some(word), .. } => {
                let stored = self.ledger.topics.board.entry(app).or_default();
                *stored = word.max(*stored);
            }
            _ => {}
        }
    }

    fn registered(&mut self, device: usize, answer: Answer, first: bool) {
        let (Answer::Registered(at), true) = (&answer, first) else { return };
        let d = &mut self.devices[device];
        d.at = Some(*at);
        d.registered = true;
        let qos0 = d.plan.inbox_qos == postrider_proto::Qos::AtMostOnce;
        let known = Known { index: device, name: d.name.clone(), qos0, delete_asked: false };
        self.ledger.devices.entry(*at).or_insert(known);
        self.note(
            About { push: None, device: Some(device) },
            format!("sender: {device} is registered as {at:?}"),
        );
    }

    fn set_outcome(&mut self, n: u64, outcome: Outcome) {
        if let Some(push) = self.ledger.pushes.get_mut(&n) {
            push.outcome = outcome;
        }
    }

    /// When all is well: one push to every device, and one to all.
    pub fn send_canaries(&mut self) {
        for device in 0..self.devices.len() {
            if self.devices[device].registered {
                let app = AppNo(self.devices[device].plan.app);
                let push = self.draw_push(app, Some(device));
                self.ask(push);
            }
        }
        self.after(crate::world::CANARY_MS, Happening::Reckoning);
    }
}
