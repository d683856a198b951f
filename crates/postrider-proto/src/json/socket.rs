//! `json::SocketConnection`: the JSON protocol over a WebSocket, the server's side.

use super::frame::{self, Frame, Hello};
use super::{JsonConfig, refusal};
use crate::mqtt::topic;
use crate::ws::{self, CloseCode, Message, WsOutput};
use crate::{
    Accepted, Connect, Deliver, Delivered, Event, Fanned, Goodbye, Millis, Output, PublishOutcome, Qos,
    Reply, RetainHandling, ServerProtocol, SubscribeOutcome, Subscription, Text,
};
use std::sync::Arc;

/// Credentials in a `hello` (L11, L39).
const NAME_BYTES_MAX: usize = 256;
const SECRET_BYTES_MAX: usize = 8 * 1024;

#[derive(Debug)]
pub struct SocketConnection {
    config: Arc<JsonConfig>,
    ws: ws::ServerConnection,
    state: State,
    /// The peer has to be heard of this often; a half more is forgiven.
    heartbeat_secs: u32,
    connected_at: Millis,
    /// Written, not acknowledged.
    inflight: Vec<u64>,
    /// Asked, not answered.
    requests: Vec<Request>,
    last_token: u32,
    bad_frames: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitsHello,
    AwaitsReply,
    Open,
    Closed,
}

/// What an answer belongs to.
#[derive(Clone, Copy, Debug)]
struct Request {
    token: u32,
    /// The client's own number for it; without one only errors are told.
    reference: Option<u32>,
}

impl SocketConnection {
    /// `ws`: after its handshake.
    pub fn new(config: Arc<JsonConfig>, ws: ws::ServerConnection, now: Millis) -> Self {
        SocketConnection {
            heartbeat_secs: config.heartbeat_secs,
            config,
            ws,
            state: State::AwaitsHello,
            connected_at: now,
            inflight: Vec::new(),
            requests: Vec::new(),
            last_token: 0,
            bad_frames: 0,
        }
    }

    fn say(&mut self, text: &str, out: &mut Output) {
        self.ws.send_text(text, &mut out.bytes);
    }

    fn fail(&mut self, code: &str, sentence: &str, reference: Option<u32>, out: &mut Output) {
        let reference = reference.map_or(String::new(), |r| format!(r#""ref":{r},"#));
        let sentence = frame::quoted(sentence);
        self.say(&format!(r#"{{"type":"error",{reference}"code":"{code}","message":{sentence}}}"#), out);
    }

    fn end(&mut self, code: CloseCode, out: &mut Output) {
        if self.state == State::Closed {
            return;
        }
        self.say(&bye(code), out);
        self.close(code, out);
    }

    fn close(&mut self, code: CloseCode, out: &mut Output) {
        self.state = State::Closed;
        let mut end = WsOutput::default();
        self.ws.close(code, &mut end);
        out.bytes.extend_from_slice(&end.bytes);
        out.close = out.close.or(end.close);
    }

    fn handle_message(&mut self, message: Message, out: &mut Output) {
        let Message::Text(text) = message else { return self.end(CloseCode::UNSUPPORTED_DATA, out) };
        match frame::read(&text, &*self.config.names) {
            Ok(frame) => self.handle_frame(frame, out),
            Err(why) => self.refuse_frame(&why, out),
        }
    }

    fn refuse_frame(&mut self, why: &str, out: &mut Output) {
        self.fail("bad_frame", why, None, out);
        self.bad_frames = self.bad_frames.saturating_add(1);
        if self.state != State::Open || self.bad_frames >= self.config.bad_frames_max {
            self.end(CloseCode::POLICY, out);
        }
    }

    fn handle_frame(&mut self, frame: Frame, out: &mut Output) {
        match (self.state, frame) {
            (State::AwaitsHello, Frame::Hello(hello)) => self.hello(hello, out),
            (State::Open, Frame::Hello(_)) => self.refuse_frame("There was a `hello` already.", out),
            (State::Open, frame) => self.handle_open(frame, out),
            // Whatever comes behind the `hello` waits for nothing: the answer is on its way.
            (State::AwaitsReply, Frame::Ping) => {}
            _ => self.refuse_frame("The first frame is `hello`, and `welcome` comes before the next.", out),
        }
    }

    fn hello(&mut self, hello: Hello, out: &mut Output) {
        let is_too_long = hello.device.as_ref().is_some_and(|d| d.len() > NAME_BYTES_MAX)
            || hello.user_agent.as_ref().is_some_and(|a| a.len() > 128)
            || [&hello.secret, &hello.token]
                .iter()
                .any(|s| s.as_ref().is_some_and(|s| s.len() > SECRET_BYTES_MAX));
        if is_too_long || (hello.device.is_none() && hello.token.is_none()) {
            return self.refuse_frame(
                "A `hello` needs `device` and `secret`, or `token`; none of them endless.",
                out,
            );
        }
        let (min, max) = (self.config.heartbeat_secs_min, self.config.heartbeat_secs_max);
        self.heartbeat_secs = hello.heartbeat_secs.unwrap_or(self.config.heartbeat_secs).clamp(min, max);
        self.state = State::AwaitsReply;
        let device = hello.device.as_deref().unwrap_or_default();
        let has_secret = hello.secret.is_some();
        out.events.push(Event::Connect(Box::new(Connect {
            level: 5,
            client_id: device.into(),
            clean_start: hello.clean,
            session_expiry_secs: hello.session_expiry_secs.unwrap_or(u32::MAX),
            user: (has_secret && hello.token.is_none()).then(|| device.into()),
            password: hello.secret.map(Into::into),
            token: hello.token.as_deref().map(Text::from),
            takes_pushes: true,
            is_proven: false,
            will: None,
            keepalive_secs: self.heartbeat_secs.min(u32::from(u16::MAX)) as u16,
        })));
    }

    fn handle_open(&mut self, frame: Frame, out: &mut Output) {
        match frame {
            Frame::Ping => out.events.push(Event::Ping),
            Frame::Ack(deliveries) => {
                for delivery in deliveries {
                    let known = self.inflight.iter().position(|d| *d == delivery);
                    if let Some(place) = known {
                        self.inflight.remove(place);
                    }
                    // One of an earlier connection counts too; a live message is gone with its own.
                    if known.is_some() || !frame::is_live(delivery) {
                        out.events.push(Event::Acked { delivery });
                    }
                }
                if self.inflight.is_empty() {
                    self.inflight = Vec::new();
                }
            }
            Frame::Receipt { id, step, reference } => {
                if let Some(token) = self.ask(reference, out) {
                    out.events.push(Event::Receipt { token, id, step });
                }
            }
            Frame::Subscribe { topics, qos, reference } => self.subscribe(&topics, qos, reference, out),
            Frame::Unsubscribe { topics, reference } => {
                if let Some(token) = self.ask(reference, out) {
                    out.events.push(Event::Unsubscribe { token, filters: topics });
                }
            }
            Frame::Publish { publish, reference } => self.publish(publish, reference, out),
            Frame::Hello(_) => {}
        }
    }

    /// A number for a request that will be answered; `None` where too many are open.
    fn ask(&mut self, reference: Option<u32>, out: &mut Output) -> Option<u32> {
        if self.requests.len() >= self.config.requests_max {
            self.fail("quota_exceeded", "Too many requests are unanswered.", reference, out);
            return None;
        }
        self.last_token = self.last_token.checked_add(1).unwrap_or(1);
        self.requests.push(Request { token: self.last_token, reference });
        Some(self.last_token)
    }

    fn answered(&mut self, token: u32) -> Option<Request> {
        let place = self.requests.iter().position(|r| r.token == token)?;
        let request = self.requests.remove(place);
        if self.requests.is_empty() {
            self.requests = Vec::new();
        }
        Some(request)
    }

    fn subscribe(&mut self, topics: &[Text], qos: u8, reference: Option<u32>, out: &mut Output) {
        if topics.is_empty() || topics.len() > self.config.filters_max {
            let sentence = format!("From 1 to {} topics in one `subscribe`.", self.config.filters_max);
            return self.fail("quota_exceeded", &sentence, reference, out);
        }
        let Some(token) = self.ask(reference, out) else { return };
        let (bytes_max, levels_max) = (self.config.topic_bytes_max, self.config.topic_levels_max);
        let filter = |whole: &Text| match topic::parse_filter(whole, bytes_max, levels_max) {
            Ok(parsed) => (parsed.filter, parsed.share, true),
            Err(_) => (whole.clone(), None, false),
        };
        let subscription = |whole: &Text| {
            let (filter, share, valid) = filter(whole);
            Subscription {
                filter,
                share,
                qos: Qos::from_u8(qos).unwrap_or_default(),
                no_local: true,
                retain_as_published: false,
                retain_handling: RetainHandling::Send,
                valid,
            }
        };
        let filters = topics.iter().map(subscription).map(shared_hears_all).collect();
        out.events.push(Event::Subscribe { token, filters, id: None });
    }

    fn publish(&mut self, publish: crate::Publish, reference: Option<u32>, out: &mut Output) {
        let (bytes_max, levels_max) = (self.config.topic_bytes_max, self.config.topic_levels_max);
        if topic::check_name(&publish.topic, bytes_max, levels_max).is_err() {
            return self.fail("invalid_topic", "That is not a topic to publish to.", reference, out);
        }
        if publish.qos == Qos::AtMostOnce {
            out.events.push(Event::Publish { token: 0, publish });
            if let Some(reference) = reference {
                self.say(&format!(r#"{{"type":"ok","ref":{reference}}}"#), out);
            }
        } else if let Some(token) = self.ask(reference, out) {
            out.events.push(Event::Publish { token, publish });
        }
    }

    fn connected(&mut self, accepted: &Accepted, out: &mut Output) {
        self.state = State::Open;
        let welcome = welcome(accepted, self.heartbeat_secs);
        self.say(&welcome, out);
    }

    fn published(&mut self, token: u32, outcome: PublishOutcome, out: &mut Output) {
        let Some(Request { reference, .. }) = self.answered(token) else { return };
        let (code, sentence) = match outcome {
            PublishOutcome::Accepted | PublishOutcome::NoSubscribers => {
                if let Some(reference) = reference {
                    self.say(&format!(r#"{{"type":"ok","ref":{reference}}}"#), out);
                }
                return;
            }
            PublishOutcome::NotAuthorized => ("not_allowed", "The device may not do that."),
            PublishOutcome::QuotaExceeded => ("quota_exceeded", "A limit of the app is reached."),
            PublishOutcome::TopicInvalid => ("invalid_topic", "That is not a topic to publish to."),
            PublishOutcome::PayloadInvalid => {
                ("invalid_payload", "The payload is too large, or cannot be read.")
            }
            PublishOutcome::Unavailable => ("unavailable", "The store takes nothing now: try again."),
        };
        self.fail(code, sentence, reference, out);
    }

    fn subscribed(&mut self, token: u32, outcomes: &[SubscribeOutcome], out: &mut Output) {
        let Some(Request { reference, .. }) = self.answered(token) else { return };
        let granted: Vec<bool> = outcomes.iter().map(|o| matches!(o, SubscribeOutcome::Granted(_))).collect();
        match reference {
            Some(reference) => {
                let granted = granted.iter().map(bool::to_string).collect::<Vec<_>>().join(",");
                self.say(&format!(r#"{{"type":"ok","ref":{reference},"granted":[{granted}]}}"#), out);
            }
            None if granted.contains(&false) => {
                self.fail("not_allowed", "A topic of a `subscribe` was not granted.", None, out);
            }
            None => {}
        }
    }
}

/// A shared subscription cannot leave out what its own member published (MQTT 5 §3.8.3.1).
fn shared_hears_all(subscription: Subscription) -> Subscription {
    Subscription { no_local: subscription.share.is_none(), ..subscription }
}

/// The frame that answers a sign-in.
pub(super) fn welcome(accepted: &Accepted, heartbeat_secs: u32) -> String {
    let resumed = accepted.session_present;
    let Some(of) = accepted.welcome.as_deref() else {
        return format!(r#"{{"type":"welcome","resumed":{resumed},"heartbeat_secs":{heartbeat_secs}}}"#);
    };
    let (app, device) = (frame::quoted(&of.app), frame::quoted(&of.device));
    let ticket = of.ticket.as_ref().map_or(String::new(), |(ticket, until)| {
        format!(r#","resume_token":{},"resume_until":{until}"#, frame::quoted(ticket))
    });
    format!(
        r#"{{"type":"welcome","app":{app},"device":{device},"resumed":{resumed},"heartbeat_secs":{heartbeat_secs},"time":{}{ticket}}}"#,
        of.time_ms
    )
}

/// The frame before the end.
pub(super) fn bye(code: CloseCode) -> String {
    let after = if code.may_retry { r#","retry_after_ms":1000"# } else { "" };
    format!(r#"{{"type":"bye","reason":"{}","retry":{}{after}}}"#, code.word, code.may_retry)
}

impl ServerProtocol for SocketConnection {
    fn handle_bytes(&mut self, bytes: &[u8], now: Millis, out: &mut Output) {
        if self.state == State::Closed {
            return;
        }
        let mut read = WsOutput { bytes: std::mem::take(&mut out.bytes), ..WsOutput::default() };
        self.ws.handle_bytes(bytes, now, &mut read);
        // Pongs and the answer to a close are in there already; a peer that closed still said what it said before.
        out.bytes = read.bytes;
        for message in read.messages {
            if self.state != State::Closed {
                self.handle_message(message, out);
            }
        }
        if let Some(close) = read.close {
            if close.kind == "peer_closed" && self.state == State::Open {
                out.events.push(Event::Disconnect { with_will: false, session_expiry_secs: None });
            }
            self.state = State::Closed;
            out.close.get_or_insert(close);
        }
    }

    fn handle_reply(&mut self, reply: Reply, _: Millis, out: &mut Output) {
        if self.state == State::Closed {
            return;
        }
        match reply {
            Reply::Connect(Ok(accepted)) => self.connected(&accepted, out),
            Reply::Connect(Err(why)) => {
                let (code, _, sentence, retry) = refusal(why);
                self.fail(code, sentence, None, out);
                match retry {
                    Some(ms) => {
                        let close =
                            if ms > 10_000 { CloseCode::TOO_OFTEN } else { CloseCode::TRY_AGAIN_LATER };
                        let word = close.word;
                        self.say(
                            &format!(
                                r#"{{"type":"bye","reason":"{word}","retry":true,"retry_after_ms":{ms}}}"#
                            ),
                            out,
                        );
                        self.close(close, out);
                    }
                    None => self.end(CloseCode::NOT_AUTHORIZED, out),
                }
            }
            Reply::Publish { token, outcome } => self.published(token, outcome, out),
            Reply::Subscribe { token, outcomes } => self.subscribed(token, &outcomes, out),
            Reply::Unsubscribe { token, .. } => {
                if let Some(Request { reference: Some(reference), .. }) = self.answered(token) {
                    self.say(&format!(r#"{{"type":"ok","ref":{reference}}}"#), out);
                }
            }
            Reply::Ping { time_ms } => self.say(&format!(r#"{{"type":"pong","time":{time_ms}}}"#), out),
            // Nothing of XMPP's is asked.
            Reply::Xmpp(_) => {}
        }
    }

    fn handle_deliver(
        &mut self,
        message: &mut Fanned,
        how: Deliver<'_>,
        _: Millis,
        bytes: &mut Vec<u8>,
    ) -> Delivered {
        if self.state != State::Open {
            return Delivered::NotReady;
        }
        let is_acked = how.qos != Qos::AtMostOnce;
        if is_acked && self.window() == 0 {
            return Delivered::WindowFull;
        }
        let mut text = Vec::with_capacity(message.publish().payload.len() + 128);
        let how = Deliver { cursor: None, ..how };
        frame::write_delivery(message, &how, &*self.config.names, &mut text);
        self.ws.send_utf8(&text, bytes);
        if is_acked {
            self.inflight.push(how.delivery);
        }
        Delivered::Written
    }

    fn handle_timeout(&mut self, now: Millis, out: &mut Output) {
        if self.next_timeout().is_none_or(|due| due > now) {
            return;
        }
        match self.state {
            State::AwaitsHello => self.end(CloseCode::POLICY, out),
            _ => self.end(CloseCode::KEEPALIVE, out),
        }
    }

    fn handle_goodbye(&mut self, why: Goodbye, _: Millis, out: &mut Output) {
        self.end(why.into(), out);
    }

    fn next_timeout(&self) -> Option<Millis> {
        match self.state {
            State::AwaitsHello => Some(self.connected_at + self.config.hello_ms),
            State::AwaitsReply | State::Open => {
                Some(self.ws.heard_at() + u64::from(self.heartbeat_secs) * 1_500)
            }
            State::Closed => None,
        }
    }

    fn window(&self) -> usize {
        if self.state == State::Open { self.config.window.saturating_sub(self.inflight.len()) } else { 0 }
    }
}
