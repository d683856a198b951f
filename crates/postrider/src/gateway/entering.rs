//! How connections come in, and how they count until they are gone.

use super::Place;
use super::conn::Lane;
use super::driver::{Driver, LISTENERS};
use super::listener::{Incoming, Listens};
use mio::{Interest, Token};
use postrider_core::port::ConnectionRef;
use postrider_proto::Goodbye;
use std::io;
use std::net::{IpAddr, SocketAddr};

impl Driver {
    pub(super) fn accept(&mut self, listener: usize) {
        // Some at a time: a crowd that arrives must not starve those who are there.
        for _ in 0..64 {
            let (accepted, speaks) = {
                let (socket, speaks) = &self.listeners[listener];
                (socket.accept(), speaks.clone())
            };
            match accepted {
                Ok((stream, peer)) if self.is_proxy(&speaks, peer) => {
                    self.await_header(stream, peer, speaks.into())
                }
                Ok((stream, peer)) => self.admit(Incoming::new(stream, peer, speaks.into())),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e)
                    if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
                Err(error) => {
                    // Mostly too many open files: to try at once would only burn time and fill the log.
                    tracing::warn!(%error, "accepting a connection failed; trying again in a while");
                    return self.listeners_later.push(listener);
                }
            }
        }
        self.retry_accept(listener);
    }

    /// The edge is used up while more may wait: asking anew raises it again.
    fn retry_accept(&mut self, listener: usize) {
        let (socket, _) = &mut self.listeners[listener];
        let again = self.poll.registry().reregister(socket, Token(LISTENERS + listener), Interest::READABLE);
        if let Err(error) = again {
            tracing::error!(%error, "a listener is lost");
        }
    }

    /// Once a second, with the wheel.
    pub(super) fn retry_listeners(&mut self) {
        for listener in std::mem::take(&mut self.listeners_later) {
            if listener < self.listeners.len() {
                self.retry_accept(listener);
            }
        }
    }

    /// Whether the connection begins with a header that says for whom it is.
    fn is_proxy(&self, listens: &Listens, peer: SocketAddr) -> bool {
        let config = &self.shared.config;
        let proxies = match listens {
            Listens::Mqtt | Listens::MqttTls(_) => &config.mqtt_proxies,
            Listens::Xmpp | Listens::XmppTls(_) => &config.xmpp_proxies,
        };
        proxies.contain(peer.ip())
    }

    pub(super) fn admit(&mut self, mut incoming: Incoming) {
        self.shared.metrics.connections_accepted.inc();
        let Some(lane) = self.enter_lane(&mut incoming) else { return };
        let peer = incoming.peer;
        if let Err(error) = self.add(incoming, lane) {
            tracing::debug!(%peer, %error, "a connection could not begin");
            self.leave_lane(peer.ip(), lane);
        }
    }

    /// A place for the connection. Where there is none it is let in all the same, to be told so; `None`: not even that.
    fn enter_lane(&mut self, incoming: &mut Incoming) -> Option<(Lane, u64)> {
        let at = self.next_reference();
        let admission = &self.shared.admission;
        if let Some((peer, ticket)) = incoming.place.take().and_then(Place::take) {
            incoming.peer = peer;
            admission.arrived(peer.ip(), ticket, at);
            return Some((Lane::Counted, ticket));
        }
        let peer = incoming.peer;
        match admission.enter(peer.ip(), incoming.speaks.road(), Some(at)) {
            Ok(entered) => {
                self.shared.push_out(&entered, &self.workers);
                Some((Lane::Counted, entered.ticket))
            }
            Err(full) => {
                self.shared.count_refused(full);
                tracing::debug!(%peer, ?full, "there is no place for a connection");
                admission.enter_refused().then_some((Lane::Refused, 0))
            }
        }
    }

    pub(super) fn leave_lane(&self, peer: IpAddr, (lane, ticket): (Lane, u64)) {
        let admission = &self.shared.admission;
        match lane {
            Lane::Counted => admission.leave(peer, ticket),
            Lane::Refused => admission.refused_left(),
            Lane::Unnamed => admission.unnamed_left(),
        }
    }

    /// The connection only lingers: it is not one of those who wait to sign in any more.
    pub(super) fn waits_no_longer(&mut self, slot: u32) {
        let Some(conn) = self.conn(slot) else { return };
        let (peer, ticket) = (conn.peer, conn.take_ticket());
        self.shared.admission.waits_no_longer(peer, ticket);
    }

    /// It has not signed in, and a newer connection has got its place.
    pub(super) fn make_room(&mut self, slot: u32) {
        if self.conn(slot).is_none_or(|c| c.signed_in) {
            return;
        }
        self.say_goodbye(slot, Goodbye::Busy);
        self.write(slot);
        self.close_now(slot, "busy");
    }

    /// What the next connection of this worker will be called.
    fn next_reference(&self) -> ConnectionRef {
        let slot = self.free.last().copied().unwrap_or(self.conns.len() as u32);
        self.reference(slot)
    }
}
