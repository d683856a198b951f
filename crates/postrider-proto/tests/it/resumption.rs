//! Any number of lost connections, at any byte: at-least-once and exactly-once hold.

use crate::support::*;
use postrider_proto::mqtt::{ClientConnection, ClientEvent, ClientOutput, Inflight, Level, ServerConfig};
use postrider_proto::{Delivered, Event, Qos};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One step of the story.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A message for the client comes into its inbox.
    Send(Qos),
    /// The client publishes.
    Publish(Qos),
    /// So many bytes travel one way.
    ToClient(usize),
    ToServer(usize),
    /// The connection is lost with all that was on its way, and the client comes back.
    Lose,
    /// The server ends with all that it knew of the connection, and goes on with this packet id.
    Crash(u16),
}

/// The same with a server that crashes; ids are few, so that they come round to those that the client holds.
fn harsh_step() -> impl Strategy<Value = Step> {
    prop_oneof![9 => step(), 1 => (1u16..6).prop_map(Step::Crash)]
}

fn step() -> impl Strategy<Value = Step> {
    let qos = || prop_oneof![Just(Qos::AtLeastOnce), Just(Qos::ExactlyOnce)];
    prop_oneof![
        3 => qos().prop_map(Step::Send),
        3 => qos().prop_map(Step::Publish),
        4 => (1usize..40).prop_map(Step::ToClient),
        4 => (1usize..40).prop_map(Step::ToServer),
        1 => Just(Step::Lose),
    ]
}

/// Two ends, the bytes on their way, and what an inbox would know.
struct World {
    level: Level,
    server: Server,
    client: ClientConnection,
    to_client: Vec<u8>,
    to_server: Vec<u8>,
    /// Unacknowledged deliveries in their order.
    inbox: BTreeMap<u64, Qos>,
    offered: Vec<u64>,
    next_delivery: u64,
    /// How often the client got each message, and the server each publish.
    got: BTreeMap<String, usize>,
    taken: BTreeMap<String, usize>,
    acked: BTreeMap<u64, usize>,
    sent: Vec<(String, Qos)>,
    published: Vec<(String, Qos)>,
}

const WINDOW: u16 = 4;

impl World {
    fn new(level: Level) -> World {
        let client = ClientConnection::new(Arc::new(client_config(level)));
        let mut world = World {
            level,
            server: new_server(),
            client,
            to_client: Vec::new(),
            to_server: Vec::new(),
            inbox: BTreeMap::new(),
            offered: Vec::new(),
            next_delivery: 1,
            got: BTreeMap::new(),
            taken: BTreeMap::new(),
            acked: BTreeMap::new(),
            sent: Vec::new(),
            published: Vec::new(),
        };
        world.client.connect(0, &mut world.to_server);
        world
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Send(qos) => {
                self.inbox.insert(self.next_delivery, qos);
                self.sent.push((format!("m{}", self.next_delivery), qos));
                self.next_delivery += 1;
            }
            Step::Publish(qos) => {
                let name = format!("p{}", self.published.len());
                if self.client.publish(message("t", &name, qos), 0, &mut self.to_server).is_ok() {
                    self.published.push((name, qos));
                }
            }
            Step::ToClient(len) => {
                let part: Vec<u8> = self.to_client.drain(..len.min(self.to_client.len())).collect();
                let mut out = ClientOutput::default();
                self.client.handle_bytes(&part, 0, &mut out);
                assert_eq!(out.close, None);
                self.to_server.extend(out.bytes);
                for event in out.events {
                    if let ClientEvent::Message { publish, .. } = event {
                        let name = String::from_utf8(publish.payload.to_vec()).unwrap();
                        *self.got.entry(name).or_default() += 1;
                    }
                }
            }
            Step::ToServer(len) => {
                let part: Vec<u8> = self.to_server.drain(..len.min(self.to_server.len())).collect();
                self.server.feed(&part);
                assert_eq!(self.server.close, None);
                self.note_events();
            }
            Step::Lose => self.lose(),
            Step::Crash(first_id) => {
                self.lose();
                self.server.accepted = session(Some(Inflight::after_loss(first_id)));
            }
        }
        self.drain_inbox();
        self.to_client.extend(self.server.written());
    }

    fn note_events(&mut self) {
        for event in std::mem::take(&mut self.server.events) {
            match event {
                Event::Publish { publish, .. } => {
                    let name = String::from_utf8(publish.payload.to_vec()).unwrap();
                    *self.taken.entry(name).or_default() += 1;
                }
                Event::Acked { delivery } => {
                    assert!(self.inbox.remove(&delivery).is_some(), "{delivery} acknowledged twice");
                    *self.acked.entry(delivery).or_default() += 1;
                }
                _ => {}
            }
        }
    }

    /// As the gateway does it: from the lowest unacknowledged entry, as far as the window goes.
    fn drain_inbox(&mut self) {
        use postrider_proto::ServerProtocol;
        for (delivery, qos) in self.inbox.clone() {
            if self.server.connection.window() == 0 {
                return;
            }
            if self.offered.contains(&delivery) {
                continue;
            }
            match self.server.deliver(message("t", &format!("m{delivery}"), qos), plain(delivery, qos)) {
                Delivered::Written => self.offered.push(delivery),
                other => panic!("{other:?} with an open window"),
            }
        }
    }

    fn lose(&mut self) {
        let mut old = std::mem::replace(&mut self.server, new_server());
        // A connection that was lost before its CONNECT came has left the kept state where it was.
        let inflight: Option<Box<Inflight>> = match old.accepted {
            Some(unused) => unused.inflight,
            None => old.connection.take_inflight(),
        };
        self.server.accepted = session(inflight);
        let fresh = ClientConnection::new(Arc::new(client_config(self.level)));
        let lost = std::mem::replace(&mut self.client, fresh);
        self.client = ClientConnection::resume(Arc::new(client_config(self.level)), lost.into_session());
        self.to_client.clear();
        self.to_server.clear();
        self.offered.clear();
        self.client.connect(0, &mut self.to_server);
    }

    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.apply(Step::ToServer(usize::MAX));
            self.apply(Step::ToClient(usize::MAX));
            if self.inbox.is_empty() && self.client.unacked() == 0 && self.to_server.is_empty() {
                return;
            }
        }
        panic!("never quiet: inbox {:?}, {} unacked publishes", self.inbox, self.client.unacked());
    }
}

fn new_server() -> Server {
    let config = ServerConfig { inflight_max: WINDOW, receive_maximum: WINDOW, ..ServerConfig::default() };
    Server::new(config)
}

fn client_config(level: Level) -> postrider_proto::mqtt::ClientConfig {
    postrider_proto::mqtt::ClientConfig { inflight_max: WINDOW, topic_alias_maximum: 2, ..client(level) }
}

fn assert_counts(names: &[(String, Qos)], counts: &BTreeMap<String, usize>) {
    for (name, qos) in names {
        let count = counts.get(name).copied().unwrap_or(0);
        match qos {
            Qos::ExactlyOnce => assert_eq!(count, 1, "{name} at QoS 2"),
            _ => assert!(count >= 1, "{name} at QoS 1 was lost"),
        }
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn at_least_once_and_exactly_once_hold_over_lost_connections(
        level in prop_oneof![Just(Level::V31), Just(Level::V311), Just(Level::V5)],
        steps in vec(step(), 1..120),
    ) {
        let mut world = World::new(level);
        for step in steps {
            world.apply(step);
        }
        world.finish();
        assert_counts(&world.sent, &world.got);
        assert_counts(&world.published, &world.taken);
        prop_assert!(world.acked.len() == world.sent.len() && world.acked.values().all(|count| *count == 1));
        prop_assert!(world.server.connection.take_inflight().is_none());
    }

    #[test]
    fn nothing_is_lost_where_the_server_forgot_what_the_client_remembers(
        level in prop_oneof![Just(Level::V31), Just(Level::V311), Just(Level::V5)],
        steps in vec(harsh_step(), 1..120),
    ) {
        let mut world = World::new(level);
        for step in steps {
            world.apply(step);
        }
        world.finish();
        for (name, _) in &world.sent {
            prop_assert!(world.got.contains_key(name), "{name} was lost");
        }
    }
}
