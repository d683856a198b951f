//! Devices: they sign in, subscribe, read, acknowledge late, twice or never, lose their connection and come back.

use crate::ledger::About;
use crate::plan::DevicePlan;
use crate::server::read_envelope;
use crate::world::{Happening, World};
use postrider_core::access::INBOX_TOPIC;
use postrider_core::id::{DeviceRef, MessageId};
use postrider_proto::mqtt::packet::Disconnect;
use postrider_proto::mqtt::{
    ClientConfig, ClientConnection, ClientEvent, ClientOutput, ClientSession, Receipt,
};
use postrider_proto::{Publish, Qos, Subscription};
use std::sync::Arc;

pub const SECRET: &str = "s3cret";

/// One device.
pub struct Device {
    pub index: usize,
    pub name: String,
    pub plan: DevicePlan,
    /// As it was told at its last registration.
    pub at: Option<DeviceRef>,
    pub registered: bool,
    pub link: Option<u64>,
    client: Option<ClientConnection>,
    session: Option<ClientSession>,
    subscribed: bool,
    pub connecting: bool,
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
        }
    }

    fn config(&self) -> ClientConfig {
        ClientConfig {
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
        self.subscribed && self.client.as_ref().is_some_and(ClientConnection::is_connected)
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
        self.devices[device].connecting = false;
        if self.server.is_none() || !self.devices[device].registered {
            return self.plan_connect(device, 2_000);
        }
        // An old connection that is still there is left to itself: the server will take it over.
        self.device_lets_go(device);
        let link = self.open_link(device);
        let d = &mut self.devices[device];
        let config = Arc::new(d.config());
        let mut client = match d.session.take() {
            Some(session) if !d.plan.clean => ClientConnection::resume(config, session),
            _ => ClientConnection::new(config),
        };
        let mut bytes = Vec::new();
        client.connect(self.now, &mut bytes);
        (d.client, d.link) = (Some(client), Some(link));
        self.note(World::about(device), format!("device {device}: connects, {link}"));
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
        if let Some(client) = d.client.take() {
            d.session = Some(client.into_session());
        }
        d.link.take()
    }

    pub fn device_sees(&mut self, link: u64) {
        let Some(device) = self.links.get(&link).map(|l| l.device) else { return };
        if self.devices[device].link != Some(link) {
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
        if self.calm || self.devices[device].link != Some(link) {
            return;
        }
        match self.random.below(10) {
            0 if self.plan.storms => {
                let links: Vec<u64> = self.devices.iter().filter_map(|d| d.link).collect();
                links.into_iter().for_each(|link| self.cut(link));
            }
            0..=4 => self.cut(link),
            5 => {
                // Signs in again while the old connection lives.
                self.device_connects(device);
                return;
            }
            6 => {
                let mut bytes = Vec::new();
                if let Some(client) = &mut self.devices[device].client
                    && client.is_connected()
                {
                    client.disconnect(Disconnect::default(), self.now, &mut bytes);
                    self.note(World::about(device), format!("device {device}: says goodbye on {link}"));
                }
                self.send_up(link, bytes);
                self.after(1, Happening::DeviceSees { link });
                let latency = self.plan.latency_max_ms;
                self.after(latency + 1, Happening::ServerSees { link });
            }
            7 if self.devices[device].plan.forges => {
                // An acknowledgement of what was never sent.
                let id = 60_000 + self.random.below(5_000) as u16;
                let kind = *self.random.pick(&[0x40u8, 0x50, 0x70]).unwrap_or(&0x40);
                let mut bytes = vec![kind, 2];
                bytes.extend_from_slice(&id.to_be_bytes());
                self.send_up(link, bytes);
            }
            _ => self.device_publishes(device, link),
        }
        let wait = self.random.between(1, self.plan.trouble_every_ms * 2);
        self.after(wait, Happening::DeviceActs { device, link });
    }

    fn device_publishes(&mut self, device: usize, link: u64) {
        let qos = *self
            .random
            .pick(&[Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce])
            .unwrap_or(&Qos::AtLeastOnce);
        let mut bytes = Vec::new();
        let topic = *self.random.pick(&["public/news", "public/secret"]).unwrap_or(&"public/news");
        let payload = format!("from {device} at {}", self.now);
        let publish = Publish { topic: topic.into(), payload: payload.into(), qos, ..Publish::default() };
        if let Some(client) = self.devices[device].client.as_mut().filter(|c| c.is_connected()) {
            let _ = client.publish(publish, self.now, &mut bytes);
        }
        self.send_up(link, bytes);
    }

    pub fn device_looks_at_clock(&mut self, device: usize) {
        let (now, mut output) = (self.now, ClientOutput::default());
        let Some(link) = self.devices[device].link else { return };
        let Some(client) = &mut self.devices[device].client else { return };
        if client.next_timeout().is_some_and(|at| at <= now) {
            client.handle_timeout(now, &mut output);
            self.device_output(device, link, output);
        } else if !client.is_connected() && self.links.get(&link).is_some_and(|l| l.life != self.life) {
            // The server that it spoke to is gone, and nobody answers the sign-in.
            self.device_sees(link);
        }
    }

    pub fn device_reads(&mut self, device: usize, link: u64, bytes: &[u8]) {
        if self.devices[device].link != Some(link) {
            return;
        }
        let now = self.now;
        let Some(client) = &mut self.devices[device].client else { return };
        let mut output = ClientOutput::default();
        client.handle_bytes(bytes, now, &mut output);
        self.device_output(device, link, output);
    }

    fn device_output(&mut self, device: usize, link: u64, output: ClientOutput) {
        if !output.bytes.is_empty() {
            self.send_up(link, output.bytes);
        }
        for event in output.events {
            self.device_event(device, link, event);
        }
        if let Some(kind) = output.close {
            self.note(World::about(device), format!("device {device}: closes {link}: {kind}"));
            self.device_lets_go(device);
            let delay = self.latency();
            self.after(delay, Happening::ServerSees { link });
            self.plan_connect(device, 2_000);
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
        let mut bytes = Vec::new();
        if let Some(client) = &mut self.devices[device].client {
            client.subscribe(filters, None, self.now, &mut bytes);
        }
        self.send_up(link, bytes);
    }

    fn device_message(&mut self, device: usize, link: u64, publish: &Publish, receipt: Option<Receipt>) {
        let push = read_envelope(&publish.payload);
        if let Some((id, n, _)) = push {
            let about = About { push: Some(n), device: Some(device) };
            self.note(
                about,
                format!("device {device}: has push {n} ({id}) on {link} as {}", receipt.map_or(0, |r| r.id)),
            );
        }
        if let Some(receipt) = receipt {
            let max = if self.calm { 50 } else { self.devices[device].plan.ack_max_ms };
            let wait = self.random.between(0, max);
            let id = push.map(|p| p.0);
            self.after(wait, Happening::DeviceAcks { link, device, receipt, id });
        }
    }

    pub fn device_acks(&mut self, link: u64, device: usize, receipt: Receipt, id: Option<MessageId>) {
        if self.devices[device].link != Some(link) {
            return;
        }
        let repeats = self.devices[device].plan.repeats_acks && self.random.permille(300);
        let now = self.now;
        let mut bytes = Vec::new();
        if let Some(client) = self.devices[device].client.as_mut().filter(|c| c.is_connected()) {
            client.ack(receipt, 0, now, &mut bytes);
            if repeats && receipt.qos == Qos::AtLeastOnce {
                bytes.extend_from_within(..);
            }
        }
        self.note(
            World::about(device),
            format!("device {device}: acknowledges packet {} on {link}", receipt.id),
        );
        if let Some(id) = id.filter(|_| !bytes.is_empty()) {
            self.ledger.device_acked(id, device);
            let about = About { push: self.ledger.push_of(id), device: Some(device) };
            self.note(about, format!("device {device}: acknowledges {id} on {link}"));
        }
        self.send_up(link, bytes);
    }
}
