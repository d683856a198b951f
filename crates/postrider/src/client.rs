//! A blocking MQTT client on one socket, for `listen` and `demo`: `mqtt::ClientConnection` with a `Stream` and a clock.
//!
//! It does not reconnect; whoever holds it does. On top of it, [`Device`] is what an app on a phone would be: it signs
//! in, subscribes to its inbox, acknowledges by hand and reports what was shown.

use crate::dial::{Address, Stream};
use bytes::Bytes;
use postrider_core::access::{INBOX_TOPIC, RECEIPTS_TOPIC};
use postrider_proto::mqtt::packet::Disconnect;
use postrider_proto::mqtt::{ClientConfig, ClientConnection, ClientEvent, ClientOutput, Receipt};
use postrider_proto::{Publish, Qos, Subscription};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an answer may take that belongs to the protocol.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// How long the server keeps the session of a device that went away.
const SESSION_EXPIRY_SECS: u32 = 24 * 60 * 60;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// With MQTT's reason code.
    #[error("the server refused the sign-in: {1}")]
    Refused(u8, String),
    #[error("the connection was closed: {0}")]
    Closed(String),
    #[error("the server did not answer in time")]
    Silent,
}

impl ClientError {
    /// Trying again will not help: the credentials are wrong, or not allowed.
    pub fn is_final(&self) -> bool {
        // MQTT 5: malformed user or password, not authorized, banned; MQTT 3: 4, 5.
        match self {
            ClientError::Refused(code, _) => matches!(code, 0x86 | 0x87 | 0x8a | 4 | 5),
            // The certificate is not trusted, or not of this host.
            ClientError::Io(error) => error.kind() == ErrorKind::InvalidData,
            ClientError::Closed(_) | ClientError::Silent => false,
        }
    }
}

/// A signed-in connection.
pub struct MqttClient {
    stream: Stream,
    connection: ClientConnection,
    start: Instant,
    events: VecDeque<ClientEvent>,
}

impl MqttClient {
    pub fn connect(address: &Address, config: ClientConfig) -> Result<MqttClient, ClientError> {
        let stream = address.connect(ANSWER_WAIT)?;
        let connection = ClientConnection::new(Arc::new(config));
        let mut client = MqttClient { stream, connection, start: Instant::now(), events: VecDeque::new() };
        let mut bytes = Vec::new();
        client.connection.connect(client.now(), &mut bytes);
        client.stream.write_all(&bytes)?;
        match client.next(ANSWER_WAIT)? {
            Some(ClientEvent::Connected { .. }) => Ok(client),
            Some(ClientEvent::Refused { code, reason }) => {
                Err(ClientError::Refused(code, refusal(code, reason.as_deref())))
            }
            Some(_) | None => Err(ClientError::Silent),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The next event, or `None` when nothing came for so long. Pings in between as the keep-alive wants it.
    pub fn next(&mut self, wait: Duration) -> Result<Option<ClientEvent>, ClientError> {
        let until = Instant::now() + wait;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let mut left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if let Some(due) = self.connection.next_timeout() {
                left = left.min(Duration::from_millis(due.saturating_sub(self.now())));
            }
            self.read(left)?;
        }
    }

    /// Reads once, for at most so long, and does what is due.
    fn read(&mut self, wait: Duration) -> Result<(), ClientError> {
        // A time-out of zero would mean none at all.
        self.stream.set_read_timeout(wait.max(Duration::from_millis(1)))?;
        let (mut scratch, mut out) = ([0; 16 * 1024], ClientOutput::default());
        match self.stream.read(&mut scratch) {
            Ok(0) => return Err(ClientError::Closed("by the server".into())),
            Ok(n) => self.connection.handle_bytes(&scratch[..n], self.now(), &mut out),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error.into()),
        }
        self.connection.handle_timeout(self.now(), &mut out);
        self.stream.write_all(&out.bytes)?;
        self.events.extend(out.events);
        match out.close {
            // What came before is told first; the next read finds the end.
            Some(why) if self.events.is_empty() => Err(ClientError::Closed(why.into())),
            _ => Ok(()),
        }
    }

    pub fn subscribe(&mut self, filter: &str, qos: Qos) -> Result<(), ClientError> {
        let mut bytes = Vec::new();
        self.connection.subscribe(vec![Subscription::new(filter, qos)], None, self.now(), &mut bytes);
        Ok(self.stream.write_all(&bytes)?)
    }

    pub fn publish(&mut self, publish: Publish) -> Result<(), ClientError> {
        let mut bytes = Vec::new();
        let sent = self.connection.publish(publish, self.now(), &mut bytes);
        sent.map_err(|error| ClientError::Closed(error.to_string()))?;
        Ok(self.stream.write_all(&bytes)?)
    }

    pub fn ack(&mut self, receipt: Receipt) -> Result<(), ClientError> {
        let mut bytes = Vec::new();
        self.connection.ack(receipt, 0, self.now(), &mut bytes);
        Ok(self.stream.write_all(&bytes)?)
    }

    /// Says goodbye. That it arrives is not waited for.
    pub fn disconnect(mut self) {
        let mut bytes = Vec::new();
        self.connection.disconnect(Disconnect::default(), self.now(), &mut bytes);
        _ = self.stream.write_all(&bytes);
    }
}

fn refusal(code: u8, reason: Option<&str>) -> String {
    let known = match code {
        0x86 | 4 => "the device is not known here, or its secret is wrong",
        0x87 | 5 => "not allowed",
        0x88 | 3 => "the server takes nobody now",
        0x89 => "the server is busy",
        0x8a => "banned",
        0x9f => "too many connects in a short time",
        _ => "",
    };
    match (reason, known) {
        (Some(reason), _) if !reason.is_empty() => reason.to_owned(),
        (_, "") => format!("code {code:#04x}"),
        (_, known) => known.to_owned(),
    }
}

/// A device, as the app on a phone would be one.
pub struct Device {
    client: MqttClient,
    /// Ids of the latest pushes: one that comes again (its acknowledgement was lost) is not shown again.
    seen: VecDeque<String>,
}

/// A push as the device gets it.
#[derive(Debug)]
pub struct Push {
    pub payload: Bytes,
    /// The envelope, where the payload is one.
    pub envelope: Option<Value>,
    /// It was taken before.
    pub repeated: bool,
    receipt: Option<Receipt>,
}

impl Push {
    /// What a payload says.
    pub fn of(payload: Bytes) -> Push {
        let is_envelope = |value: &Value| value["id"].is_string();
        let envelope = serde_json::from_slice::<Value>(&payload).ok().filter(is_envelope);
        Push { payload, envelope, repeated: false, receipt: None }
    }

    /// The message's id.
    pub fn id(&self) -> Option<&str> {
        self.envelope.as_ref()?["id"].as_str()
    }
}

const SEEN_MAX: usize = 1_000;

impl Device {
    /// Signs in and subscribes to the inbox.
    pub fn connect(address: &Address, id: &str, secret: &str) -> Result<Device, ClientError> {
        let config = ClientConfig {
            client_id: id.into(),
            clean_start: false,
            keepalive_secs: 30,
            user: Some(id.into()),
            password: Some(Bytes::copy_from_slice(secret.as_bytes())),
            session_expiry_secs: Some(SESSION_EXPIRY_SECS),
            acks_by_hand: true,
            ..ClientConfig::default()
        };
        let mut client = MqttClient::connect(address, config)?;
        client.subscribe(INBOX_TOPIC, Qos::AtLeastOnce)?;
        // What waited may come before the answer to the subscription: it is kept for `next`.
        let mut early = VecDeque::new();
        loop {
            match client.next(ANSWER_WAIT)? {
                Some(ClientEvent::Subscribed { codes, .. }) => match codes.first() {
                    Some(code) if *code >= 0x80 => {
                        return Err(ClientError::Refused(*code, refusal(*code, None)));
                    }
                    _ => break,
                },
                Some(event) => early.push_back(event),
                None => return Err(ClientError::Silent),
            }
        }
        early.append(&mut client.events);
        client.events = early;
        Ok(Device { client, seen: VecDeque::new() })
    }

    /// The next push, or `None` when none came for so long.
    pub fn next(&mut self, wait: Duration) -> Result<Option<Push>, ClientError> {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.client.next(left)? {
                Some(ClientEvent::Message { publish, receipt, .. }) => {
                    return Ok(Some(self.push(publish, receipt)));
                }
                Some(ClientEvent::Disconnected { code, reason }) => {
                    let why = reason.as_deref().map_or_else(|| format!("code {code:#04x}"), str::to_owned);
                    return Err(ClientError::Closed(why));
                }
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn push(&mut self, publish: Publish, receipt: Option<Receipt>) -> Push {
        let mut push = Push { receipt, ..Push::of(publish.payload) };
        if let Some(id) = push.id().map(str::to_owned) {
            push.repeated = self.seen.contains(&id);
            self.seen.push_back(id);
            if self.seen.len() > SEEN_MAX {
                self.seen.pop_front();
            }
        }
        push
    }

    /// Acknowledges it: from now on it is delivered.
    pub fn ack(&mut self, push: &Push) -> Result<(), ClientError> {
        push.receipt.map_or(Ok(()), |receipt| self.client.ack(receipt))
    }

    /// Reports a step: `displayed`, `clicked`, `dismissed`, `replied`.
    pub fn report(&mut self, message: &str, step: &str) -> Result<(), ClientError> {
        let payload = json!({ "id": message, "step": step }).to_string();
        self.client.publish(Publish {
            topic: RECEIPTS_TOPIC.into(),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            ..Publish::default()
        })
    }

    pub fn disconnect(self) {
        self.client.disconnect();
    }
}
