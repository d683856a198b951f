//! A small client of the JSON protocol over WebSocket frames, as `docs/protocol/websocket.md` describes it.

use postrider_core::id::{MessageId, Seq};
use postrider_proto::json::PlainNames;
use postrider_proto::ws::frame::{Opcode, read_server_frame, write_client_frame};
use serde_json::{Value, json};

/// How often it will be heard of.
const HEARTBEAT_SECS: u64 = 10;
/// How long it waits for a pong.
const PATIENCE_MS: u64 = 10_000;

/// The client's end of one connection.
pub struct Socket {
    held: Vec<u8>,
    pub is_open: bool,
    written_at: u64,
    pinged_at: Option<u64>,
}

/// What the server said that a device acts on.
#[derive(Debug)]
pub enum Said {
    Welcome {
        resumed: bool,
        ticket: Option<String>,
    },
    /// A push has an id and a number.
    Message {
        delivery: Option<Seq>,
        push: Option<(MessageId, u64)>,
    },
    Error {
        code: String,
    },
    Bye {
        reason: String,
    },
}

impl Socket {
    pub fn new(now: u64) -> Socket {
        Socket { held: Vec::new(), is_open: false, written_at: now, pinged_at: None }
    }

    /// A frame, masked; the mask is nothing to the simulation.
    pub fn say(&mut self, frame: &Value, now: u64, bytes: &mut Vec<u8>) {
        self.written_at = now;
        write_client_frame(Opcode::Text, true, frame.to_string().as_bytes(), [7, 1, 8, 2], bytes);
    }

    pub fn hello(&mut self, who: &Who<'_>, now: u64) -> Vec<u8> {
        let mut hello = json!({
            "type": "hello", "heartbeat_secs": HEARTBEAT_SECS, "clean": who.clean,
            "session_expiry_secs": who.session_secs,
        });
        match &who.ticket {
            Some(ticket) => hello["token"] = ticket.as_str().into(),
            None => (hello["device"], hello["secret"]) = (who.device.as_str().into(), who.secret.into()),
        }
        let mut bytes = Vec::new();
        self.say(&hello, now, &mut bytes);
        bytes
    }

    pub fn ack(&mut self, deliveries: &[Seq], now: u64, bytes: &mut Vec<u8>) {
        let names: Vec<String> =
            deliveries.iter().map(|d| postrider_proto::json::delivery_name(*d, &PlainNames)).collect();
        self.say(&json!({"type": "ack", "deliveries": names}), now, bytes);
    }

    pub fn close(&mut self, bytes: &mut Vec<u8>) {
        write_client_frame(Opcode::Close, true, &1000u16.to_be_bytes(), [7, 1, 8, 2], bytes);
    }

    /// A ping where it is time for one; `false`: the server is silent, and the connection is over.
    pub fn look_at_clock(&mut self, now: u64, bytes: &mut Vec<u8>) -> bool {
        if self.pinged_at.is_some_and(|at| now >= at + PATIENCE_MS) {
            return false;
        }
        if self.is_open && self.pinged_at.is_none() && now >= self.written_at + HEARTBEAT_SECS * 1000 {
            self.pinged_at = Some(now);
            self.say(&json!({"type": "ping"}), now, bytes);
        }
        true
    }

    /// What whole frames in the bytes say; what is cut waits for the rest.
    pub fn read(&mut self, bytes: &[u8]) -> Vec<Said> {
        self.held.extend_from_slice(bytes);
        let mut said = Vec::new();
        let held = std::mem::take(&mut self.held);
        let mut rest = &held[..];
        while let Ok(Some((header, payload))) = read_server_frame(rest) {
            if header.opcode == Opcode::Text
                && let Ok(frame) = serde_json::from_slice(payload)
            {
                said.extend(self.understand(&frame));
            }
            rest = &rest[header.header_len + payload.len()..];
        }
        self.held = rest.to_vec();
        said
    }

    fn understand(&mut self, frame: &Value) -> Option<Said> {
        let text = |name: &str| frame[name].as_str().map(str::to_owned);
        match frame["type"].as_str()? {
            "welcome" => {
                self.is_open = true;
                Some(Said::Welcome { resumed: frame["resumed"].as_bool()?, ticket: text("resume_token") })
            }
            "push" | "message" => {
                let delivery = text("delivery")
                    .and_then(|name| postrider_proto::json::read_delivery(&name, &PlainNames));
                let envelope = &frame["message"];
                let id = envelope["id"].as_str().and_then(|id| id.parse().ok());
                Some(Said::Message { delivery, push: id.zip(envelope["data"]["n"].as_u64()) })
            }
            "pong" => {
                self.pinged_at = None;
                None
            }
            "error" => Some(Said::Error { code: text("code")? }),
            "bye" => Some(Said::Bye { reason: text("reason")? }),
            _ => None,
        }
    }
}

/// Who signs in, and how.
pub struct Who<'a> {
    /// `app/device`.
    pub device: String,
    pub secret: &'a str,
    /// Instead of both.
    pub ticket: Option<String>,
    pub clean: bool,
    pub session_secs: u32,
}
