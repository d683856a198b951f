//! Devices: they sign in, subscribe, read, acknowledge late, twice or never, lose their connection and come back.

use crate::ledger::About;
use crate::outgoing::read_envelope;
use crate::plan::{DevicePlan, Road};
use crate::sockets::{Said, Socket, Who};
use crate::streams::{Earlier, Question, Stream};
use crate::topics::{SHARED_JOBS, WILLS};
use crate::world::{Happening, World};
use postrider_core::access::INBOX_TOPIC;
use postrider_core::id::{DeviceRef, MessageId, Seq};
use postrider_core::port::Position;
use postrider_proto::mqtt::packet::Disconnect;
use postrider_proto::mqtt::{self, ClientConfig, ClientConnection, ClientEvent, ClientOutput, ClientSession};
use postrider_proto::{Publish, Qos, Subscription, Will};
use serde_json::json;
use std::sync::Arc;

pub const SECRET: &str = "s3cret";
/// Deliveries acknowledged lately, to be acknowledged once more.
const REMEMBERED: usize = 20;

/// What a device acknowledges a message by.
#[derive(Clone, Copy, Debug)]
pub enum Receipt {
    Packet(mqtt::Receipt),
    Delivery(Seq),
    Stream(Question),
}

/// The device's end of its connection.
enum Client {
    Mqtt(Box<ClientConnection>),
    Json(Socket),
    Xmpp(Box<Stream>),
}

impl Client {
    fn is_connected(&self) -> bool {
        match self {
            Client::Mqtt(mqtt) => mqtt.is_connected(),
            Client::Json(socket) => socket.is_open,
            Client::Xmpp(stream) => stream.is_ready(),
        }
    }
}

/// One device.
pub struct Device {
    pub index: usize,
    pub name: String,
    pub plan: DevicePlan,
    /// As it was told at its last registration.
    pub at: Option<DeviceRef>,
    pub registered: bool,
    pub link: Option<u64>,
    client: Option<Client>,
    /// Of MQTT.
    session: Option<ClientSession>,
    subscribed: bool,
    pub connecting: bool,
    /// To sign in with instead of the secret.
    ticket: Option<String>,
    /// Over WebSocket: acknowledged lately.
    acked: Vec<Seq>,
    /// The poll under way, and where the last one ended.
    pub poll: Option<u64>,
    pub cursor: Position,
    /// Of XMPP: what can be resumed, and how often it was in session.
    earlier: Option<Earlier>,
    pub sessions: u64,
    /// Until when its path is dead, and it sleeps; when its connection was cut last; and what waits until it wakes.
    pub dead_until: u64,
    pub asleep_until: u64,
    pub cut_at: u64,
    pub slept_over: Vec<Happening>,
}

impl Device {
    pub fn new(index: usize, plan: DevicePlan) -> Device {
        Device {
            index,
            name: format!("d{index}"),
            plan,
            at: None,
            registered: false,
            link: None,
            client: None,
            session: None,
            subscribed: false,
            connecting: false,
            ticket: None,
            acked: Vec::new(),
            poll: None,
            cursor: Position::default(),
            earlier: None,
            sessions: 0,
            dead_until: 0,
            asleep_until: 0,
            cut_at: 0,
            slept_over: Vec::new(),
        }
    }

    fn config(&self, will: Option<Box<Will>>) -> ClientConfig {
        ClientConfig {
            will,
            level: self.plan.level,
            client_id: self.name.as_str().into(),
            clean_start: self.plan.clean,
            keepalive_secs: 10,
            user: Some(format!("a{}/{}", self.plan.app, self.name).as_str().into()),
            password: Some(SECRET.into()),
            session_expiry_secs: Some(self.plan.session_secs),
            acks_by_hand: true,
            ..ClientConfig::default()
        }
    }

    pub fn is_signed_in(&self) -> bool {
        match &self.client {
            Some(Client::Mqtt(mqtt)) => self.subscribed && mqtt.is_connected(),
            Some(Client::Json(socket)) => socket.is_open,
            Some(Client::Xmpp(stream)) => stream.is_ready(),
            None => false,
        }
    }

    /// A new client's end, and what it says first.
    fn dial(&mut self, road: Road, will: Option<Box<Will>>, with_ticket: bool, now: u64) -> Vec<u8> {
        match road {
            Road::Mqtt => {
                let config = Arc::new(self.config(will));
                let mut client = match self.session.take() {
                    Some(session) if !self.plan.clean => ClientConnection::resume(config, session),
                    _ => ClientConnection::new(config),
                };
                let mut bytes = Vec::new();
                client.connect(now, &mut bytes);
                self.client = Some(Client::Mqtt(Box::new(client)));
                bytes
            }
            Road::Json => {
                let mut socket = Socket::new(now);
                let bytes = socket.hello(
                    &Who {
                        device: format!("a{}/{}", self.plan.app, self.name),
                        secret: SECRET,
                        ticket: self.ticket.take().filter(|_| with_ticket),
                        clean: self.plan.clean,
                        session_secs: self.plan.session_secs,
                    },
                    now,
                );
                self.client = Some(Client::Json(socket));
                bytes
            }
            Road::Xmpp => {
                let user = format!("a{}/{}", self.plan.app, self.name);
                let earlier = self.earlier.take();
                let (stream, bytes) = Stream::dial(self.plan.stream, (user, SECRET), earlier, now);
                self.client = Some(Client::Xmpp(Box::new(stream)));
                bytes
            }
        }
    }

    /// A device has one session, whatever it speaks: what it remembers of an earlier one is void.
    pub fn forget_mqtt(&mut self) {
        (self.session, self.subscribed) = (None, false);
    }

    pub fn stream(&mut self) -> Option<&mut Stream> {
        match &mut self.client {
            Some(Client::Xmpp(stream)) => Some(stream),
            _ => None,
        }
    }

    fn mqtt(&mut self) -> Option<&mut ClientConnection> {
        match &mut self.client {
            Some(Client::Mqtt(mqtt)) => Some(mqtt),
            _ => None,
        }
    }

    fn socket(&mut self) -> Option<&mut Socket> {
        match &mut self.client {
            Some(Client::Json(socket)) => Some(socket),
            _ => None,
        }
    }
}

impl World {
    fn about(device: usize) -> About {
        About { push: None, device: Some(device) }
    }

    fn plan_connect(&mut self, device: usize, within_ms: u64) {
        if !self.devices[device].connecting {
            self.devices[device].connecting = true;
            let wait = self.random.between(1, within_ms.max(1));
            self.after(wait, Happening::DeviceConnects { device });
        }
    }

    pub fn device_connects(&mut self, device: usize) {
        if self.sleeps_over(device, || Happening::DeviceConnects { device }) {
            return;
        }
        self.devices[device].connecting = false;
        if self.server.is_none() || !self.devices[device].registered {
            return self.plan_connect(device, 2_000);
        }
        // An old connection that is still there is left to itself: the server will take it over.
        self.device_lets_go(device);
        let road = match &self.devices[device].plan.roads[..] {
            [one] => *one,
            several => self.random.pick(several).copied().unwrap_or(Road::Mqtt),
        };
        let with_ticket = road == Road::Json && self.random.permille(500);
        let link = self.open_link(device);
        let d = &mut self.devices[device];
        let will = self.plan.more_topics.then(|| Box::new(will_of(link)));
        let bytes = d.dial(road, will, with_ticket, self.now);
        d.link = Some(link);
        self.note(World::about(device), format!("device {device}: connects, {link}, {road:?}"));
        if self.path_is_dead(device, link) {
            return;
        }
        self.accept_link(link, road);
        self.send_up(link, bytes);
        let every = self.plan.trouble_every_ms;
        if !self.calm && every < 1_000_000 {
            let wait = self.random.between(1, every * 2);
            self.after(wait, Happening::DeviceActs { device, link });
        }
    }

    /// The device's side of the connection is gone; what outlives it is kept.
    fn device_lets_go(&mut self, device: usize) -> Option<u64> {
        let d = &mut self.devices[device];
        match d.client.take() {
            Some(Client::Mqtt(client)) => d.session = Some(client.into_session()),
            Some(Client::Xmpp(stream)) => d.earlier = stream.into_earlier(),
            _ => {}
        }
        d.link.take()
    }

    pub fn device_sees(&mut self, link: u64) {
        let Some(device) = self.links.get(&link).map(|l| l.device) else { return };
        if self.devices[device].link != Some(link)
            || self.sleeps_over(device, || Happening::DeviceSees { link })
        {
            return;
        }
        self.device_lets_go(device);
        self.note(World::about(device), format!("device {device}: {link} is gone"));
        let sleeps = !self.calm && self.random.permille(60);
        let within = match (self.calm || self.plan.storms, sleeps) {
            (_, true) => 20_000,
            (true, _) => 50,
            _ => 3_000,
        };
        self.plan_connect(device, within);
    }

    /// Something goes wrong with a connection, or the device wants something else.
    pub fn device_acts(&mut self, device: usize, link: u64) {
        if self.calm
            || self.devices[device].link != Some(link)
            || self.sleeps_over(device, || Happening::DeviceActs { device, link })
        {
            return;
        }
        match self.random.below(10) {
            0 if self.plan.storms => {
                let links: Vec<u64> = self.devices.iter().filter_map(|d| d.link).collect();
                links.into_iter().for_each(|link| self.cut(link));
            }
            0..=4 => self.cut(link),
            5 => return self.device_takes_over(device, link),
            6 => {
                let mut bytes = Vec::new();
                match self.devices[device].client.as_mut().filter(|c| c.is_connected()) {
                    Some(Client::Mqtt(mqtt)) => mqtt.disconnect(Disconnect::default(), self.now, &mut bytes),
                    Some(Client::Json(socket)) => socket.close(&mut bytes),
                    Some(Client::Xmpp(stream)) => stream.close(&mut bytes),
                    None => {}
                }
                self.note(World::about(device), format!("device {device}: says goodbye on {link}"));
                self.send_up(link, bytes);
                self.after(1, Happening::DeviceSees { link });
                let latency = self.plan.latency_max_ms;
                self.after(latency + 1, Happening::ServerSees { link });
            }
            7 if self.devices[device].plan.forges => {
                let bytes = self.forged_ack(device);
                self.send_up(link, bytes);
            }
            _ => self.device_publishes(device, link),
        }
        let wait = self.random.between(1, self.plan.trouble_every_ms * 2);
        self.after(wait, Happening::DeviceActs { device, link });
    }

    /// Signs in again while the old connection lives; impatiently, twice, while a publish on the old one is being committed.
    fn device_takes_over(&mut self, device: usize, link: u64) {
        let impatient = self.random.permille(500);
        if impatient {
            self.device_publishes(device, link);
        }
        self.device_connects(device);
        if impatient {
            self.plan_connect(device, self.plan.latency_max_ms + 20);
        }
    }

    /// An acknowledgement of what was never sent.
    fn forged_ack(&mut self, device: usize) -> Vec<u8> {
        let number = self.random.below(5_000);
        let kind = *self.random.pick(&[0x40u8, 0x50, 0x70]).unwrap_or(&0x40);
        let now = self.now;
        let mut bytes = Vec::new();
        if let Some(stream) = self.devices[device].stream() {
            if stream.is_ready() {
                stream.forge(number, &mut bytes);
            }
            return bytes;
        }
        match self.devices[device].socket() {
            Some(socket) if socket.is_open => socket.ack(&[1_000_000 + number], now, &mut bytes),
            Some(_) => {}
            None => {
                bytes.extend_from_slice(&[kind, 2]);
                bytes.extend_from_slice(&(60_000 + number as u16).to_be_bytes());
            }
        }
        bytes
    }

    fn device_publishes(&mut self, device: usize, link: u64) {
        let qos = *self
            .random
            .pick(&[Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce])
            .unwrap_or(&Qos::AtLeastOnce);
        let mut bytes = Vec::new();
        let topic = *self.random.pick(&["public/news", "public/secret"]).unwrap_or(&"public/news");
        let retain = self.plan.more_topics && self.random.permille(300);
        let payload = format!("from {device} at {}", self.now);
        if self.devices[device].stream().is_some() {
            return self.device_acts_on_stream(device, link, topic, &payload);
        }
        match self.devices[device].client.as_mut().filter(|c| c.is_connected()) {
            Some(Client::Mqtt(mqtt)) => {
                let (topic, payload) = (topic.into(), payload.into());
                let publish = Publish { topic, payload, qos, retain, ..Publish::default() };
                let _ = mqtt.publish(publish, self.now, &mut bytes);
            }
            Some(Client::Json(socket)) => {
                let frame = json!({"type": "publish", "ref": 7, "topic": topic, "text": payload, "qos": qos as u8, "retain": retain});
                socket.say(&frame, self.now, &mut bytes);
            }
            Some(Client::Xmpp(_)) | None => {}
        }
        self.send_up(link, bytes);
    }

    pub fn device_looks_at_clock(&mut self, device: usize) {
        let (now, mut output) = (self.now, ClientOutput::default());
        if now < self.devices[device].asleep_until {
            return;
        }
        let calm = self.calm;
        let Some(link) = self.devices[device].link else { return };
        let Some(client) = &mut self.devices[device].client else { return };
        if !client.is_connected() && self.links.get(&link).is_some_and(|l| l.life != self.life) {
            // The server that it spoke to is gone, and nobody answers the sign-in.
            return self.device_sees(link);
        }
        match client {
            Client::Mqtt(mqtt) if mqtt.next_timeout().is_some_and(|at| at <= now) => {
                mqtt.handle_timeout(now, &mut output);
                self.device_output(device, link, output);
            }
            Client::Mqtt(_) => {}
            Client::Json(socket) => {
                let mut bytes = Vec::new();
                if !socket.look_at_clock(now, &mut bytes) {
                    return self.device_hangs_up(device, link, "no pong");
                }
                if !bytes.is_empty() {
                    self.send_up(link, bytes);
                }
            }
            Client::Xmpp(stream) => {
                let mut bytes = Vec::new();
                if !stream.look_at_clock(now, &mut bytes) {
                    return self.device_hangs_up(device, link, "no answer");
                }
                if calm && stream.is_inactive {
                    stream.set_inactive(false, &mut bytes);
                }
                if !bytes.is_empty() {
                    self.send_up(link, bytes);
                }
            }
        }
    }

    pub fn device_hangs_up(&mut self, device: usize, link: u64, why: &str) {
        self.note(World::about(device), format!("device {device}: closes {link}: {why}"));
        self.device_lets_go(device);
        let delay = self.latency();
        self.after(delay, Happening::ServerSees { link });
        self.plan_connect(device, 2_000);
    }

    pub fn device_reads(&mut self, device: usize, link: u64, bytes: &[u8]) {
        if self.devices[device].link != Some(link)
            || self.sleeps_over(device, || Happening::Read { device, link, bytes: bytes.to_vec() })
        {
            return;
        }
        let now = self.now;
        match &mut self.devices[device].client {
            Some(Client::Mqtt(mqtt)) => {
                let mut output = ClientOutput::default();
                mqtt.handle_bytes(bytes, now, &mut output);
                self.device_output(device, link, output);
            }
            Some(Client::Json(socket)) => {
                for said in socket.read(bytes) {
                    self.device_hears(device, link, said);
                }
            }
            Some(Client::Xmpp(_)) => self.device_reads_stream(device, link, bytes),
            None => {}
        }
    }

    /// The server said something over WebSocket.
    fn device_hears(&mut self, device: usize, link: u64, said: Said) {
        match said {
            Said::Welcome { resumed, ticket } => {
                let d = &mut self.devices[device];
                d.ticket = ticket;
                if !resumed {
                    d.forget_mqtt();
                }
                self.device_greeted(device, link, resumed);
            }
            Said::Message { delivery, push } => {
                if let Some((id, n)) = push {
                    let about = About { push: Some(n), device: Some(device) };
                    self.note(
                        about,
                        format!("device {device}: has push {n} ({id}) on {link} as {delivery:?}"),
                    );
                }
                if let Some(delivery) = delivery {
                    self.plan_ack(device, link, Receipt::Delivery(delivery), push.map(|p| p.0));
                }
            }
            Said::Error { code } => {
                self.note(World::about(device), format!("device {device}: is told {code} on {link}"));
            }
            Said::Bye { reason } => {
                self.note(
                    World::about(device),
                    format!("device {device}: is told goodbye on {link}: {reason}"),
                );
            }
        }
    }

    /// Over WebSocket pushes come unasked; topics are subscribed to, and what was acknowledged lately is so once more.
    fn device_greeted(&mut self, device: usize, link: u64, resumed: bool) {
        let subscribes = self.devices[device].plan.topics && (!resumed || self.random.permille(200));
        let repeats = self.devices[device].plan.repeats_acks;
        let mut topics = vec!["public/news", "public/secret"];
        if self.plan.more_topics {
            topics.extend(["public/+", SHARED_JOBS]);
        }
        let now = self.now;
        let d = &mut self.devices[device];
        let acked = if repeats { d.acked.clone() } else { Vec::new() };
        let Some(socket) = d.socket() else { return };
        let mut bytes = Vec::new();
        if !acked.is_empty() {
            socket.ack(&acked, now, &mut bytes);
        }
        if subscribes {
            let topics = json!({"type": "subscribe", "ref": 1, "topics": topics});
            socket.say(&topics, now, &mut bytes);
        }
        if !bytes.is_empty() {
            self.send_up(link, bytes);
        }
    }

    fn device_output(&mut self, device: usize, link: u64, output: ClientOutput) {
        if !output.bytes.is_empty() {
            self.send_up(link, output.bytes);
        }
        for event in output.events {
            self.device_event(device, link, event);
        }
        if let Some(kind) = output.close {
            self.device_hangs_up(device, link, kind);
        }
    }

    fn device_event(&mut self, device: usize, link: u64, event: ClientEvent) {
        match event {
            ClientEvent::Connected { session_present, .. } => {
                let d = &mut self.devices[device];
                d.subscribed &= session_present;
                if !d.subscribed || self.random.permille(200) {
                    self.device_subscribes(device, link);
                }
            }
            ClientEvent::Subscribed { codes, .. } => {
                self.devices[device].subscribed = codes.first().is_some_and(|c| *c < 0x80);
                if !self.devices[device].subscribed {
                    // The store took nothing: once more, on a new connection.
                    self.cut(link);
                }
            }
            ClientEvent::Message { publish, receipt, .. } => {
                self.device_message(device, link, &publish, receipt)
            }
            ClientEvent::Refused { code, .. } => {
                self.note(World::about(device), format!("device {device}: refused with {code}"));
            }
            _ => {}
        }
    }

    fn device_subscribes(&mut self, device: usize, link: u64) {
        let plan = self.devices[device].plan.clone();
        let mut filters = vec![Subscription::new(INBOX_TOPIC, plan.inbox_qos)];
        if plan.topics {
            filters.push(Subscription::new("public/news", Qos::AtLeastOnce));
            filters.push(Subscription::new("public/secret", Qos::AtLeastOnce));
        }
        if plan.topics && self.plan.more_topics {
            filters.push(Subscription::new("public/+", Qos::AtLeastOnce));
            filters.push(Subscription::new(SHARED_JOBS, Qos::AtLeastOnce));
        }
        let mut bytes = Vec::new();
        let now = self.now;
        if let Some(client) = self.devices[device].mqtt() {
            client.subscribe(filters, None, now, &mut bytes);
        }
        self.send_up(link, bytes);
    }

    fn device_message(
        &mut self,
        device: usize,
        link: u64,
        publish: &Publish,
        receipt: Option<mqtt::Receipt>,
    ) {
        let push = read_envelope(&publish.payload);
        if let Some((id, n, _)) = push {
            let about = About { push: Some(n), device: Some(device) };
            self.note(
                about,
                format!("device {device}: has push {n} ({id}) on {link} as {}", receipt.map_or(0, |r| r.id)),
            );
        }
        if let Some(receipt) = receipt {
            self.plan_ack(device, link, Receipt::Packet(receipt), push.map(|p| p.0));
        }
    }

    pub fn plan_ack(&mut self, device: usize, link: u64, receipt: Receipt, id: Option<MessageId>) {
        let max = if self.calm { 50 } else { self.devices[device].plan.ack_max_ms };
        let wait = self.random.between(0, max);
        self.after(wait, Happening::DeviceAcks { link, device, receipt, id });
    }

    pub fn device_acks(&mut self, link: u64, device: usize, receipt: Receipt, id: Option<MessageId>) {
        if self.sleeps_over(device, || Happening::DeviceAcks { link, device, receipt, id }) {
            return;
        }
        if let Receipt::Stream(question) = receipt {
            return self.device_answers(device, link, question);
        }
        // A delivery may also be acknowledged on a later connection of the same kind; a packet is one connection's.
        let link = match (self.devices[device].link, receipt) {
            (Some(now), _) if now == link => link,
            (Some(later), Receipt::Delivery(_)) => later,
            _ => return,
        };
        let repeats = self.devices[device].plan.repeats_acks && self.random.permille(300);
        let now = self.now;
        let mut bytes = Vec::new();
        let d = &mut self.devices[device];
        match (d.client.as_mut().filter(|c| c.is_connected()), receipt) {
            (Some(Client::Mqtt(client)), Receipt::Packet(receipt)) => {
                client.ack(receipt, 0, now, &mut bytes);
                if repeats && receipt.qos == Qos::AtLeastOnce {
                    bytes.extend_from_within(..);
                }
            }
            (Some(Client::Json(socket)), Receipt::Delivery(delivery)) => {
                socket.ack(&[delivery], now, &mut bytes);
                if repeats {
                    bytes.extend_from_within(..);
                }
                d.acked.push(delivery);
                d.acked.drain(..d.acked.len().saturating_sub(REMEMBERED));
            }
            _ => {}
        }
        self.note(World::about(device), format!("device {device}: acknowledges {receipt:?} on {link}"));
        if let Some(id) = id.filter(|_| !bytes.is_empty()) {
            self.ledger.device_acked(id, device);
            let about = About { push: self.ledger.push_of(id), device: Some(device) };
            self.note(about, format!("device {device}: acknowledges {id} on {link}"));
        }
        self.send_up(link, bytes);
    }
}

/// Says which connection it is of.
fn will_of(link: u64) -> Will {
    let payload = format!("will {link}").into();
    let publish = Publish { topic: WILLS.into(), payload, qos: Qos::AtLeastOnce, ..Publish::default() };
    Will { publish, delay_secs: (link % 3) as u32 * 2 }
}
