//! Conversations as readable files, in `tests/conversations/xmpp`: what the client sends, what the server answers, what the gateway is
//! told and answers. Each runs three times: with the client's bytes as they stand, cut into sevens, and one by one; the server's
//! answers are the same.
//!
//! ```text
//! # a comment
//! set plaintext           a setting of the listener; see `settings`
//! C> <iq .../>            the client sends; lines in a row are one piece
//! S> <iq .../>            the server writes just that; {name} stands for anything, and for the same when it comes again; {space} is a blank
//! E> connect u pw         an event; see `described`
//! A> connect ok           the gateway's answer to the oldest open question; see `answer`
//! D> 7 {"id":"m1"}        a push is delivered, with the token 7; `D> 7 topic a/b payload`, `D> 7 late 0 {...}`
//! T> 60000                so many milliseconds pass, and the server is told; `wait 60000`: it is not
//! X> not-authorized       the server closes; `now` behind it: at once and not gently
//! tls                     TLS is up; `tls bound`: with a channel that can be bound to
//! cut                     the connection breaks, and the client comes again; `goodbye`: the server ended it in order
//! ```

use crate::support::plain;
use bytes::Bytes;
use postrider_proto::xmpp::{
    AccountAction, AccountOutcome, Answer, ChannelBinding, NotAllowed, Request, SavedStream, ScramHash,
    ScramKeys, ServerConfig, ServerConnection, StanzaOutcome,
};
use postrider_proto::{
    Accepted, Close, Connect, ConnectRefusal, Deliver, Event, Fanned, Goodbye, Millis, Output, Publish,
    PublishOutcome, Qos, Reply, ServerProtocol, SubscribeOutcome,
};
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

pub const SEED: [u8; 32] = [7; 32];

#[test]
fn every_conversation_goes_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conversations/xmpp");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 20, "the conversations are in {}", folder.display());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        for step in [usize::MAX, 7, 1] {
            Conversation::new(format!("{name}, cut into {step}"), step).run(&text);
        }
    }
}

/// A question that awaits its answer.
enum Question {
    Connect,
    Keys(ScramHash),
    Account(u32),
    Publish(u32),
    Subscribe(u32),
    Unsubscribe(u32),
    Items(u32),
    Stanza(u32),
}

struct Conversation {
    name: String,
    step: usize,
    config: ServerConfig,
    connection: Option<ServerConnection>,
    saved: Option<Box<SavedStream>>,
    now: Millis,
    written: String,
    events: VecDeque<String>,
    questions: VecDeque<Question>,
    close: Option<Close>,
    known: HashMap<String, String>,
    line: usize,
}

impl Conversation {
    fn new(name: String, step: usize) -> Self {
        Conversation {
            name,
            step,
            config: ServerConfig::default(),
            connection: None,
            saved: None,
            now: 0,
            written: String::new(),
            events: VecDeque::new(),
            questions: VecDeque::new(),
            close: None,
            known: HashMap::from([("space".to_owned(), " ".to_owned())]),
            line: 0,
        }
    }

    fn run(mut self, text: &str) {
        let mut sending = String::new();
        for (number, line) in text.lines().enumerate() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            if word == "C>" {
                sending.push_str(&self.filled(rest.trim_start()));
                continue;
            }
            if !sending.is_empty() {
                self.send(&std::mem::take(&mut sending));
            }
            self.line = number + 1;
            self.obey(word, rest.trim_start());
        }
        if !sending.is_empty() {
            self.send(&sending);
        }
        self.expect_quiet();
    }

    fn obey(&mut self, word: &str, rest: &str) {
        match word {
            "" | "#" => {}
            "set" => settings(&mut self.config, rest),
            "S>" => self.expect_written(rest),
            "E>" => {
                let event = self.events.pop_front().unwrap_or_else(|| self.fail("there is no event"));
                let expected = self.matched(&event, rest);
                assert!(expected == Some(event.len()), "{}:{}: event\n  {event}", self.name, self.line);
            }
            "X>" => {
                let close = self.close.take().unwrap_or_else(|| self.fail("the connection is open"));
                let shown = format!("{}{}", close.kind, if close.gentle { "" } else { " now" });
                assert_eq!(shown, rest, "{}:{}", self.name, self.line);
            }
            "A>" => self.answer(rest),
            "D>" => self.deliver(rest),
            "T>" => {
                self.now += rest.parse::<Millis>().unwrap();
                self.with(|connection, now, out| connection.handle_timeout(now, out));
            }
            "wait" => self.now += rest.parse::<Millis>().unwrap(),
            "tls" => {
                let bound = ChannelBinding { exporter: Some([9; 32]), server_end_point: None };
                let channel = if rest == "bound" { bound } else { ChannelBinding::default() };
                self.with(|connection, _, _| connection.handle_tls(channel));
            }
            "goodbye" => self.with(|c, now, out| c.handle_goodbye(Goodbye::TakenOver, now, out)),
            "cut" => {
                self.expect_quiet();
                let now = self.now;
                self.saved = self.connection().take_saved_stream(now);
                self.connection = None;
                self.questions.clear();
            }
            "window" => {
                let window = self.connection().window();
                assert_eq!(window.to_string(), rest, "{}:{}", self.name, self.line);
            }
            "holds" => {
                let holds = self.connection().holds_back();
                assert_eq!(holds.to_string(), rest, "{}:{}", self.name, self.line);
            }
            _ => self.fail("what is that?"),
        }
    }

    fn connection(&mut self) -> &mut ServerConnection {
        let (config, now) = (&self.config, self.now);
        self.connection.get_or_insert_with(|| ServerConnection::new(Arc::new(config.clone()), SEED, now))
    }

    fn fail(&self, why: &str) -> ! {
        panic!("{}:{}: {why}\n  written: {}\n  events: {:?}", self.name, self.line, self.written, self.events)
    }

    /// All that came was expected.
    fn expect_quiet(&self) {
        if !self.written.is_empty() || !self.events.is_empty() || self.close.is_some() {
            self.fail("there is more");
        }
    }

    fn send(&mut self, text: &str) {
        self.expect_quiet();
        let step = self.step.min(text.len());
        for part in text.as_bytes().chunks(step) {
            self.with(|connection, now, out| connection.handle_bytes(part, now, out));
        }
    }

    fn with(&mut self, act: impl FnOnce(&mut ServerConnection, Millis, &mut Output)) {
        let (mut out, now) = (Output::default(), self.now);
        act(self.connection(), now, &mut out);
        self.written.push_str(std::str::from_utf8(&out.bytes).unwrap());
        for event in out.events {
            self.events.push_back(described(&event));
            self.questions.extend(question_of(&event));
        }
        if out.start_tls {
            self.events.push_back("start_tls".to_owned());
        }
        self.close = self.close.or(out.close);
    }

    fn expect_written(&mut self, expected: &str) {
        let written = std::mem::take(&mut self.written);
        match self.matched(&written, expected) {
            Some(len) => self.written = written[len..].to_owned(),
            None => {
                self.written = written;
                self.fail(&format!("not written: {expected}"));
            }
        }
    }

    /// How long the part of `text` is that the pattern describes, from its beginning.
    fn matched(&mut self, text: &str, pattern: &str) -> Option<usize> {
        let (mut at, mut rest) = (0, pattern);
        while let Some((literal, name, after)) = next_name(rest) {
            at += text[at..].starts_with(literal).then_some(literal.len())?;
            let end = match next_name(after) {
                _ if after.is_empty() => text.len(),
                Some(("", ..)) => return None,
                Some((literal, ..)) => at + text[at..].find(literal)?,
                None => at + text[at..].find(after)?,
            };
            let found = &text[at..end];
            let known = self.known.entry(name.to_owned()).or_insert_with(|| found.to_owned());
            if known != found {
                return None;
            }
            at = end;
            rest = after;
        }
        text[at..].starts_with(rest).then_some(at + rest.len())
    }

    /// The names in it replaced by what they stood for.
    fn filled(&self, pattern: &str) -> String {
        let (mut text, mut rest) = (String::new(), pattern);
        while let Some((literal, name, after)) = next_name(rest) {
            text.push_str(literal);
            text.push_str(self.known.get(name).unwrap_or_else(|| panic!("{name} is not known")));
            rest = after;
        }
        text + rest
    }

    fn answer(&mut self, rest: &str) {
        self.expect_quiet();
        let (_, how) = rest.split_once(' ').unwrap_or((rest, ""));
        let question = self.questions.pop_front().unwrap_or_else(|| self.fail("nothing was asked"));
        let saved = self.saved.take();
        let reply = match question {
            Question::Connect => Reply::Connect(match how {
                "ok" => Ok(Box::new(Accepted { stream: saved, ..Accepted::default() })),
                "bad" => Err(ConnectRefusal::BadCredentials),
                "often" => Err(ConnectRefusal::RateExceeded),
                _ => Err(ConnectRefusal::NotAuthorized),
            }),
            Question::Keys(_) if rest == "none" => Reply::Xmpp(Answer::NoKeys),
            Question::Keys(hash) => {
                Reply::Xmpp(Answer::Keys(Box::new(ScramKeys::derive(hash, how, b"salt of tests", 4_096))))
            }
            Question::Account(token) => {
                let outcome = match how {
                    "done" => AccountOutcome::Done,
                    "conflict" => AccountOutcome::Conflict,
                    _ => AccountOutcome::NotAllowed,
                };
                Reply::Xmpp(Answer::Account { token, outcome })
            }
            Question::Publish(token) => {
                let outcome =
                    if how == "ok" { PublishOutcome::Accepted } else { PublishOutcome::NotAuthorized };
                Reply::Publish { token, outcome }
            }
            Question::Subscribe(token) => {
                let granted = SubscribeOutcome::Granted(Qos::AtLeastOnce);
                let outcome = if how == "ok" { granted } else { SubscribeOutcome::Refused(0x87) };
                Reply::Subscribe { token, outcomes: vec![outcome] }
            }
            Question::Unsubscribe(token) => Reply::Unsubscribe { token, existed: vec![how == "ok"] },
            Question::Items(token) => {
                let publish =
                    Publish { payload: Bytes::copy_from_slice(how.as_bytes()), ..Publish::default() };
                let items = if how == "no" { Err(NotAllowed) } else { Ok(vec![publish]) };
                Reply::Xmpp(Answer::Items { token, items })
            }
            Question::Stanza(token) => {
                let outcome = if how == "ok" { StanzaOutcome::Accepted } else { StanzaOutcome::Unavailable };
                Reply::Xmpp(Answer::Stanza { token, outcome })
            }
        };
        self.with(|connection, now, out| connection.handle_reply(reply, now, out));
    }

    fn deliver(&mut self, rest: &str) {
        let (token, rest) = rest.split_once(' ').unwrap();
        let (topic, rest) = match rest.strip_prefix("topic ") {
            Some(rest) => rest.split_once(' ').unwrap(),
            None => ("$push/inbox", rest),
        };
        let (late_since, rest) = match rest.strip_prefix("late ").and_then(|rest| rest.split_once(' ')) {
            Some((since, rest)) => (Some(since.parse().unwrap()), rest),
            None => (None, rest),
        };
        let delivery = token.parse().unwrap();
        let qos = if delivery == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
        let payload = Bytes::copy_from_slice(rest.as_bytes());
        let mut fanned = Fanned::new(Publish { topic: topic.into(), payload, ..Publish::default() });
        let how = Deliver { late_since, ..plain(delivery, qos) };
        let (mut bytes, now) = (Vec::new(), self.now);
        let delivered = self.connection().handle_deliver(&mut fanned, how, now, &mut bytes);
        self.written.push_str(std::str::from_utf8(&bytes).unwrap());
        if bytes.is_empty() {
            self.events.push_back(format!("{delivered:?}"));
        }
    }
}

/// The text before the next `{name}`, the name, and what follows. JSON has braces too, but never around a word alone.
fn next_name(pattern: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    loop {
        let start = from + pattern[from..].find('{')?;
        let end = start + pattern[start..].find('}')?;
        let name = &pattern[start + 1..end];
        if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Some((&pattern[..start], name, &pattern[end + 1..]));
        }
        from = start + 1;
    }
}

fn settings(config: &mut ServerConfig, words: &str) {
    for word in words.split(' ') {
        match word {
            "plaintext" => config.allows_plaintext = true,
            "no-tls" => config.offers_tls = false,
            "host" => config.host = "push.example".to_owned(),
            "registration" => config.offers_registration = true,
            "legacy" => config.offers_legacy_auth = true,
            "small-inflight" => config.inflight_max = 2,
            "small-queue" => config.resume_stanzas_max = 3,
            _ => panic!("there is no setting {word}"),
        }
    }
}

fn described(event: &Event) -> String {
    match event {
        Event::Connect(connect) => {
            let Connect { user, password, is_proven, .. } = &**connect;
            let user = user.as_ref().unwrap();
            match password {
                Some(password) => format!("connect {user} {}", String::from_utf8_lossy(password)),
                None => format!("connect {user}{}", if *is_proven { " proven" } else { "" }),
            }
        }
        Event::Publish { publish, .. } => {
            let retain = if publish.retain { " retain" } else { "" };
            format!("publish{retain} {} {}", publish.topic, String::from_utf8_lossy(&publish.payload))
        }
        Event::Subscribe { filters, .. } => format!("subscribe {}", filters[0].filter),
        Event::Unsubscribe { filters, .. } => format!("unsubscribe {}", filters[0]),
        Event::Acked { delivery } => format!("acked {delivery}"),
        Event::Disconnect { .. } => "disconnect".to_owned(),
        Event::Receipt { id, step, .. } => format!("receipt {id} {step}"),
        Event::WindowOpened => "window".to_owned(),
        Event::Xmpp(request) => match &**request {
            Request::WrongProof { user } => format!("wrong proof {user}"),
            Request::Keys { user, hash } => format!("keys {user} {hash:?}"),
            Request::Account { user, action, .. } => match action {
                AccountAction::Create { password } => format!("create {user} {password}"),
                AccountAction::ChangePassword { password } => format!("password {user} {password}"),
                AccountAction::Remove => format!("remove {user}"),
            },
            Request::Items { topic, .. } => format!("items {topic}"),
            Request::Stanza { stanza, .. } => {
                let lasting = if stanza.is_lasting { "lasting" } else { "passing" };
                format!("stanza {} {lasting} {}", stanza.to, String::from_utf8_lossy(&stanza.bytes))
            }
        },
        other => format!("{other:?}"),
    }
}

fn question_of(event: &Event) -> Option<Question> {
    Some(match event {
        Event::Connect(_) => Question::Connect,
        Event::Publish { token, .. } => Question::Publish(*token),
        Event::Subscribe { token, .. } => Question::Subscribe(*token),
        Event::Unsubscribe { token, .. } => Question::Unsubscribe(*token),
        Event::Xmpp(request) => match &**request {
            Request::WrongProof { .. } => return None,
            Request::Keys { hash, .. } => Question::Keys(*hash),
            Request::Account { token, .. } => Question::Account(*token),
            Request::Items { token, .. } => Question::Items(*token),
            Request::Stanza { token, .. } => Question::Stanza(*token),
        },
        _ => return None,
    })
}
