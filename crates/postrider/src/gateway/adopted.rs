//! Connections that began as HTTP requests: streams whose caller is known, and polls that wait.

use super::conn::{Parked, Phase};
use super::driver::Driver;
use super::mailbox::Mail;
use super::poll::WaitingPoll;
use super::{Full, Place, Protocol, Speaks, Wait};
use crate::tokens::Proof;
use postrider_core::port::{ConnectionRef, Position};
use postrider_core::session::Client;
use postrider_proto::Connect;
use std::net::SocketAddr;

/// A stream of events for a device that has proved who it is.
pub struct Begin {
    pub client: Client,
    pub proof: Proof,
    /// It has seen what lies before.
    pub position: Position,
    /// Lines for the head of the answer.
    pub headers: String,
}

impl Driver {
    /// Attaches a stream to its device's session, like any sign-in whose credentials are right.
    pub(super) fn begin_stream(&mut self, slot: u32, begin: Begin) {
        let Begin { client, proof, position, .. } = begin;
        if let Some(conn) = self.conn(slot) {
            conn.position = position;
        }
        let connect = Connect {
            level: 5,
            client_id: client.id.as_str().into(),
            clean_start: false,
            session_expiry_secs: u32::MAX,
            user: None,
            password: None,
            token: None,
            takes_pushes: true,
            is_proven: false,
            will: None,
            keepalive_secs: 0,
        };
        self.enter(slot, Parked { connect, client, assigned: None, proof });
    }

    /// A poll begins to wait; it goes straight back where there is something already, or where too many wait.
    pub(super) fn begin_wait(&mut self, slot: u32) {
        let at = self.reference(slot);
        let Some(conn) = self.conn(slot) else { return };
        conn.signed_in = true;
        let Protocol::Poll(poll) = &conn.protocol else { return };
        let Wait { device, position, .. } = poll.wait;
        // First the place in the list, then the look: what comes in between wakes it.
        let waits = self.shared.engine.wait(device, at);
        if !waits || self.shared.engine.has_pending(device, position) {
            self.give_back(slot, waits);
        }
    }

    /// The socket of a waiting poll leaves this worker.
    pub(super) fn give_back(&mut self, slot: u32, has_waited: bool) {
        if self.conn(slot).is_none_or(|c| !c.is_open()) {
            return;
        }
        self.stop_waiting(slot);
        let Some(conn) = self.take_out(slot) else { return };
        let (Protocol::Poll(poll), Some(mut stream)) = (conn.protocol, conn.transport.into_plain()) else {
            return;
        };
        if let Err(error) = self.forget(&mut stream) {
            tracing::debug!(%error, "a waiting request could not be answered");
            return;
        }
        let WaitingPoll { wait, .. } = *poll;
        (wait.give_back)(stream.into(), has_waited);
    }

    pub(super) fn stop_waiting(&mut self, slot: u32) {
        let at = self.reference(slot);
        if let Some(Protocol::Poll(poll)) = self.conn(slot).map(|c| &c.protocol) {
            let device = poll.wait.device;
            self.shared.engine.stop_waiting(device, at);
        }
    }

    /// Whether the connection is a poll whose time is over.
    pub(super) fn has_waited(&mut self, slot: u32) -> bool {
        let now = self.now;
        let over = |p: &Protocol| matches!(p, Protocol::Poll(poll) if poll.until <= now);
        self.conn(slot).is_some_and(|c| c.phase == Phase::Open && over(&c.protocol))
    }

    /// A request of the device acknowledged deliveries that this connection wrote; they are stored already.
    pub(super) fn acknowledged(&mut self, at: ConnectionRef, deliveries: &[u64]) {
        let Some(conn) = self.find(at) else { return };
        deliveries.iter().for_each(|delivery| _ = conn.take_sent(*delivery));
        if let Protocol::EventStream(stream) = &mut conn.protocol {
            stream.handle_acked(deliveries);
        }
        self.continue_waiting(at.slot);
    }
}

/// How the HTTP side reaches the gateway.
pub trait Door: Send + Sync {
    /// Holds a place for a socket before its request is answered: so a refusal can still be told. `is_known`: its client has
    /// proved who it is.
    fn reserve(&self, peer: SocketAddr, is_known: bool) -> Result<Place, Full>;
    /// Hands over a socket that began as HTTP, with the bytes already read from it.
    fn adopt(&self, stream: std::net::TcpStream, place: Place, speaks: Speaks, first: bytes::Bytes);
    /// Deliveries that were acknowledged by a request, for the connection that wrote them.
    fn acknowledged(&self, connection: ConnectionRef, deliveries: Vec<u64>);
}

impl Door for std::sync::Weak<super::Gateway> {
    fn reserve(&self, peer: SocketAddr, is_known: bool) -> Result<Place, Full> {
        self.upgrade().ok_or(Full::Stopping)?.reserve(peer, is_known)
    }

    fn adopt(&self, stream: std::net::TcpStream, place: Place, speaks: Speaks, first: bytes::Bytes) {
        // After the order to stop nobody is left to take it: the socket just closes.
        let Some(gateway) = self.upgrade() else { return };
        if let Err(error) = gateway.adopt(stream, place, speaks, first) {
            tracing::warn!(%error, "a socket could not be handed to the gateway");
        }
    }

    fn acknowledged(&self, connection: ConnectionRef, deliveries: Vec<u64>) {
        let Some(gateway) = self.upgrade() else { return };
        if let Some(worker) = gateway.workers.boxes.get(usize::from(connection.shard)) {
            worker.post(Mail::Acknowledged(connection, deliveries));
        }
    }
}
