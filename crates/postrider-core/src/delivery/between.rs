//! From one device to another of the same app. What is sent is the gateways' matter: only sessions of a protocol that
//! understands it get it.

use crate::Engine;
use crate::access::PEER_TOPIC;
use crate::command::*;
use crate::model::*;
use crate::port::*;
use crate::topics::SessionNo;
use bytes::Bytes;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("no such device, or it is not connected and nothing may wait for it")]
    Unavailable,
    #[error("the inbox is full")]
    InboxFull,
    #[error("the payload is too large")]
    TooLarge,
    #[error("the store takes nothing now")]
    TryLater,
}

pub type SendDone = Box<dyn FnOnce(Result<(), SendError>) + Send>;

impl Engine {
    /// Puts something into another device's inbox, where it waits until it is acknowledged or too old. `done` is called once it
    /// is on stable storage.
    pub fn send_lasting(&self, from: SessionNo, to: &str, payload: Bytes, done: SendDone) {
        match self.lasting(from, to, payload) {
            Err(error) => done(Err(error)),
            Ok(message) => self.commit(
                vec![Command::Accept(message)],
                Box::new(move |outcomes| {
                    done(match outcomes.ok().and_then(|all| all.into_iter().next()) {
                        Some(Outcome::Accepted(accepted)) if accepted.full == 0 => Ok(()),
                        Some(
                            Outcome::Accepted(_) | Outcome::Refused(Refusal::InboxFull | Refusal::AppFull),
                        ) => Err(SendError::InboxFull),
                        Some(Outcome::Refused(_)) => Err(SendError::Unavailable),
                        _ => Err(SendError::TryLater),
                    });
                }),
            ),
        }
    }

    fn lasting(&self, from: SessionNo, to: &str, payload: Bytes) -> Result<Box<NewMessage>, SendError> {
        if payload.len() > self.limits.payload_bytes_max {
            return Err(SendError::TooLarge);
        }
        let hub = self.hub();
        let app = hub.get(from).ok_or(SendError::Unavailable)?.app;
        let at = self.store.device_by_id(app, to).ok_or(SendError::Unavailable)?;
        // For a device that is away: as its last connection did. Nobody could ever read, or take away, what waits for a phone
        // that speaks another protocol.
        let connected = hub.by_device(at).filter(|s| s.connection.is_some());
        let understands = connected.map_or_else(|| self.store.hears_peers(at), |s| s.hears_peers);
        if !understands || !self.store.is_registered(at) {
            return Err(SendError::Unavailable);
        }
        if self.is_full(app) {
            return Err(SendError::InboxFull);
        }
        drop(hub);
        let target = Target { device: at.device, qos: 1, retain: false, subscription_ids: Vec::new() };
        let content = Arc::new(content(payload));
        Ok(Box::new(NewMessage {
            // It does not end with a session, as what was subscribed to does.
            push: true,
            reject_when_full: true,
            peer_inbox_max: self.limits.peer_inbox_max.max(1),
            ..self.new_message(app, Targets::Direct(vec![target]), content)
        }))
    }

    /// Hands something to another device if it is connected now.
    pub fn send_passing(&self, from: SessionNo, to: &str, payload: Bytes) -> Result<(), SendError> {
        let hub = self.hub();
        let app = hub.get(from).ok_or(SendError::Unavailable)?.app;
        let session = hub.find(app, to).and_then(|no| hub.get(no)).filter(|s| s.hears_peers);
        let connection = session.and_then(|s| s.connection).ok_or(SendError::Unavailable)?;
        drop(hub);
        let target = LiveTarget { connection, qos: 0, retain: false, subscription_ids: Vec::new() };
        let live = Live { content: Arc::new(content(payload)), expires_at: None };
        self.connections().deliver(&live, vec![target]);
        Ok(())
    }
}

fn content(payload: Bytes) -> Content {
    Content { topic: Some(PEER_TOPIC.to_owned()), payload, properties: None }
}
