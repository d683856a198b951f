//! A server that answers for the gateway, and a client beside it.

use bytes::Bytes;
use postrider_proto::mqtt::{
    ClientConfig, ClientConnection, ClientEvent, ClientOutput, Inflight, Level, ServerConfig,
    ServerConnection, packet,
};
use postrider_proto::{
    Accepted, Close, Deliver, Delivered, Event, Fanned, Millis, Output, Publish, PublishOutcome, Qos, Reply,
    ServerProtocol, SubscribeOutcome, Text,
};
use std::sync::Arc;

/// Bytes from hex; blanks do not matter.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

pub fn message(topic: &str, payload: &str, qos: Qos) -> Publish {
    Publish {
        topic: Text::from(topic),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        qos,
        ..Publish::default()
    }
}

/// How to deliver, with everything optional left out.
pub fn plain(delivery: u64, qos: Qos) -> Deliver<'static> {
    Deliver {
        delivery,
        qos,
        retain: false,
        dup: false,
        subscription_ids: &[],
        expiry_left_secs: None,
        cursor: None,
        late_since: None,
    }
}

/// The server's side with an obliging gateway: it grants every wish at once.
pub struct Server {
    pub connection: ServerConnection,
    pub now: Millis,
    /// Events that were answered, and those that want no answer.
    pub events: Vec<Event>,
    pub bytes: Vec<u8>,
    pub close: Option<Close>,
    /// What the next sign-in gets.
    pub accepted: Option<Accepted>,
    pub publish_outcome: PublishOutcome,
    /// All but the sign-in is left unanswered.
    pub holds_answers: bool,
}

impl Server {
    pub fn new(config: ServerConfig) -> Self {
        Server {
            connection: ServerConnection::new(Arc::new(config), 0),
            now: 0,
            events: Vec::new(),
            bytes: Vec::new(),
            close: None,
            accepted: None,
            publish_outcome: PublishOutcome::Accepted,
            holds_answers: false,
        }
    }

    /// A server whose client signed in with this level; what was written for that is taken away.
    pub fn connected(level: Level, config: ServerConfig) -> Self {
        let mut server = Server::new(config);
        server.feed(&connect_bytes(level));
        assert!(server.connection.is_connected());
        server.bytes.clear();
        server.events.clear();
        server
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        let mut out = Output::default();
        self.connection.handle_bytes(bytes, self.now, &mut out);
        self.take(out);
    }

    pub fn reply(&mut self, reply: Reply) {
        let mut out = Output::default();
        self.connection.handle_reply(reply, self.now, &mut out);
        self.take(out);
    }

    pub fn deliver(&mut self, publish: Publish, how: Deliver<'_>) -> Delivered {
        self.connection.handle_deliver(&mut Fanned::new(publish), how, self.now, &mut self.bytes)
    }

    pub fn pass(&mut self, ms: u64) {
        self.now += ms;
        let mut out = Output::default();
        self.connection.handle_timeout(self.now, &mut out);
        self.take(out);
    }

    /// Keeps what came out, and answers what wants an answer.
    pub fn take(&mut self, out: Output) {
        self.bytes.extend_from_slice(&out.bytes);
        if let Some(close) = out.close {
            assert!(self.close.is_none(), "closed twice");
            self.close = Some(close);
        }
        for event in out.events {
            let reply = match &event {
                Event::Connect(_) => {
                    Some(Reply::Connect(Ok(Box::new(self.accepted.take().unwrap_or_default()))))
                }
                _ if self.holds_answers => None,
                Event::Publish { token, .. } if *token != 0 => {
                    Some(Reply::Publish { token: *token, outcome: self.publish_outcome })
                }
                Event::Subscribe { token, filters, .. } => {
                    let outcomes = filters.iter().map(|filter| match filter.valid {
                        true => SubscribeOutcome::Granted(filter.qos),
                        false => SubscribeOutcome::Refused(0x8F),
                    });
                    Some(Reply::Subscribe { token: *token, outcomes: outcomes.collect() })
                }
                Event::Unsubscribe { token, filters } => {
                    Some(Reply::Unsubscribe { token: *token, existed: vec![true; filters.len()] })
                }
                _ => None,
            };
            self.events.push(event);
            if let Some(reply) = reply {
                self.reply(reply);
            }
        }
    }

    pub fn published(&self) -> Vec<(String, String)> {
        let payload_of = |publish: &Publish| String::from_utf8_lossy(&publish.payload).into_owned();
        let publishes = self.events.iter().filter_map(|event| match event {
            Event::Publish { publish, .. } => Some((publish.topic.to_string(), payload_of(publish))),
            _ => None,
        });
        publishes.collect()
    }

    pub fn acked(&self) -> Vec<u64> {
        let deliveries = self.events.iter().filter_map(|event| match event {
            Event::Acked { delivery } => Some(*delivery),
            _ => None,
        });
        deliveries.collect()
    }

    pub fn written(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// The shortest CONNECT of a level: client id `c`, clean, keep-alive 60.
pub fn connect_bytes(level: Level) -> Vec<u8> {
    match level {
        Level::V31 => hex("10 0F 0006 4D5149736470 03 02 003C 0001 63"),
        Level::V311 => hex("10 0D 0004 4D515454 04 02 003C 0001 63"),
        Level::V5 => hex("10 0E 0004 4D515454 05 02 003C 00 0001 63"),
    }
}

/// Both ends with a perfect network between them.
pub struct Pair {
    pub client: ClientConnection,
    pub server: Server,
    /// What the client told its user.
    pub heard: Vec<ClientEvent>,
    pub client_close: Option<&'static str>,
    to_server: Vec<u8>,
}

impl Pair {
    pub fn connect(client: ClientConfig, server: ServerConfig) -> Pair {
        Pair::connect_with(ClientConnection::new(Arc::new(client)), server, None)
    }

    /// Connects with a client that may resume, and what the server kept of the session.
    pub fn connect_with(client: ClientConnection, server: ServerConfig, accepted: Option<Accepted>) -> Pair {
        let mut pair = Pair {
            client,
            server: Server::new(server),
            heard: Vec::new(),
            client_close: None,
            to_server: Vec::new(),
        };
        pair.server.accepted = accepted;
        pair.client.connect(0, &mut pair.to_server);
        pair.settle();
        pair
    }

    /// Carries bytes both ways until nobody has anything to say.
    pub fn settle(&mut self) {
        loop {
            let to_server = std::mem::take(&mut self.to_server);
            self.server.feed(&to_server);
            let to_client = self.server.written();
            if to_server.is_empty() && to_client.is_empty() {
                return;
            }
            let mut out = ClientOutput::default();
            self.client.handle_bytes(&to_client, self.server.now, &mut out);
            self.keep(out);
        }
    }

    fn keep(&mut self, out: ClientOutput) {
        self.to_server.extend_from_slice(&out.bytes);
        self.heard.extend(out.events);
        self.client_close = self.client_close.or(out.close);
    }

    /// Time passes for both.
    pub fn pass(&mut self, ms: u64) {
        self.server.pass(ms);
        let mut out = ClientOutput::default();
        self.client.handle_timeout(self.server.now, &mut out);
        self.keep(out);
        self.settle();
    }

    pub fn publish(&mut self, publish: Publish) -> u64 {
        let token = self.client.publish(publish, self.server.now, &mut self.to_server).unwrap();
        self.settle();
        token
    }

    /// Lets the user of the client write something, and carries it over.
    pub fn client_writes(&mut self, write: impl FnOnce(&mut ClientConnection, &mut Vec<u8>)) {
        write(&mut self.client, &mut self.to_server);
        self.settle();
    }

    pub fn messages(&self) -> Vec<(String, String)> {
        let text_of = |publish: &Publish| String::from_utf8_lossy(&publish.payload).into_owned();
        let messages = self.heard.iter().filter_map(|event| match event {
            ClientEvent::Message { publish, .. } => Some((publish.topic.to_string(), text_of(publish))),
            _ => None,
        });
        messages.collect()
    }

    pub fn connack(&self) -> &packet::ConnAckProperties {
        let found = self.heard.iter().find_map(|event| match event {
            ClientEvent::Connected { properties, .. } => Some(&**properties),
            _ => None,
        });
        found.expect("the client should be connected")
    }
}

/// What the gateway would answer for a session that it kept.
pub fn session(inflight: Option<Box<Inflight>>) -> Option<Accepted> {
    Some(Accepted { session_present: true, inflight, ..Accepted::default() })
}

pub const LEVELS: [Level; 3] = [Level::V31, Level::V311, Level::V5];

/// A client of a level that keeps its session.
pub fn client(level: Level) -> ClientConfig {
    ClientConfig {
        level,
        client_id: Text::from("device/1"),
        clean_start: false,
        session_expiry_secs: Some(3_600),
        ..ClientConfig::default()
    }
}

/// Few enough for every build; no file is written when one fails, since a failure becomes a named test.
pub fn cases() -> proptest::prelude::ProptestConfig {
    proptest::prelude::ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(256),
        failure_persistence: None,
        ..Default::default()
    }
}
