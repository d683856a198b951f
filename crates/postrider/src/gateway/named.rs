//! Connections of proxies that say for whom they are (the PROXY protocol), before anything else is read.
//!
//! The header is only looked at until it is whole, and then taken out of the socket to its last byte: what follows, be it a
//! TLS handshake, is read by the connection that begins then, under the address of the client.

use super::conn::Lane;
use super::driver::Driver;
use super::listener::{Incoming, Speaks};
use super::{Protocol, label};
use mio::net::TcpStream;
use postrider_proto::proxy::{self, HEADER_MAX, NotAHeader, Read as Header};
use postrider_proto::{
    Close, Deliver, Delivered, Fanned, Goodbye, Millis, Output, Reply as ProtoReply, ServerProtocol,
};
use std::io::{self, Read};
use std::net::SocketAddr;

/// From the connection to the whole header; a proxy sends it at once.
const HEADER_MS: Millis = 5_000;
/// One line for so many refusals: a proxy that is set up wrong makes one for each of its clients.
const WARN_EVERY_MS: Millis = 10_000;

/// A connection whose header has not come.
pub struct AwaitsHeader {
    /// What it speaks behind the header.
    then: Option<Speaks>,
    peer: SocketAddr,
    until: Millis,
}

impl ServerProtocol for AwaitsHeader {
    /// The driver reads the header by itself.
    fn handle_bytes(&mut self, _: &[u8], _: Millis, _: &mut Output) {}

    fn handle_reply(&mut self, _: ProtoReply, _: Millis, _: &mut Output) {}

    fn handle_deliver(&mut self, _: &mut Fanned, _: Deliver<'_>, _: Millis, _: &mut Vec<u8>) -> Delivered {
        Delivered::NotReady
    }

    fn handle_timeout(&mut self, now: Millis, out: &mut Output) {
        if now >= self.until {
            out.close = Some(Close { kind: "no_proxy_header", gentle: false });
        }
    }

    fn handle_goodbye(&mut self, _: Goodbye, _: Millis, out: &mut Output) {
        out.close = Some(Close { kind: "shutting_down", gentle: false });
    }

    fn next_timeout(&self) -> Option<Millis> {
        Some(self.until)
    }

    fn window(&self) -> usize {
        0
    }
}

impl Driver {
    /// A connection of a proxy: it counts for nobody until its header has come.
    pub(super) fn await_header(&mut self, stream: TcpStream, peer: SocketAddr, then: Speaks) {
        if !self.shared.admission.enter_unnamed() {
            let limit = label("limit", "unnamed");
            self.shared.metrics.connections_refused.get_or_create(&limit).inc();
            return;
        }
        let waits = AwaitsHeader { then: Some(then), peer, until: self.now + HEADER_MS };
        let incoming = Incoming::new(stream, peer, Speaks::AfterHeader(Box::new(waits)));
        if let Err(error) = self.add(incoming, (Lane::Unnamed, 0)) {
            tracing::debug!(%peer, %error, "a connection could not begin");
            self.shared.admission.unnamed_left();
        }
    }

    /// Something came on a connection that begins with a header.
    pub(super) fn read_header(&mut self, slot: u32) {
        let Some(conn) = self.conn(slot).filter(|c| c.is_open()) else { return };
        let mut bytes = [0; HEADER_MAX];
        let is_ending = conn.is_ending;
        let there = match conn.transport.tcp().peek(&mut bytes) {
            Ok(0) => return self.close_now(slot, "peer_closed"),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => return self.close_now(slot, "broken"),
        };
        match proxy::read(&bytes[..there]) {
            Ok(Header::Header { len, source }) => self.begin_named(slot, &mut bytes[..len], source),
            // More raises an edge of its own.
            Ok(Header::Incomplete { .. }) if !is_ending => {}
            Ok(Header::Incomplete { .. }) => self.close_now(slot, "peer_closed"),
            Err(why) => self.refuse_header(slot, why),
        }
    }

    fn begin_named(&mut self, slot: u32, header: &mut [u8], source: Option<SocketAddr>) {
        let Some(conn) = self.take_out(slot) else { return };
        let (Protocol::AfterHeader(waits), Some(mut stream)) = (conn.protocol, conn.transport.into_plain())
        else {
            return;
        };
        let taken = stream.read_exact(header).and_then(|()| self.forget(&mut stream));
        let AwaitsHeader { then: Some(speaks), peer, .. } = *waits else { return };
        if let Err(error) = taken {
            return tracing::debug!(%peer, %error, "a connection of a proxy broke");
        }
        self.admit(Incoming::new(stream, source.unwrap_or(peer), speaks));
    }

    fn refuse_header(&mut self, slot: u32, NotAHeader(why): NotAHeader) {
        let peer = self.conn(slot).map(|c| tracing::field::display(c.peer));
        if self.now >= self.header_warned_at + WARN_EVERY_MS {
            self.header_warned_at = self.now;
            tracing::warn!(
                peer,
                why,
                "a connection of a proxy named in the section proxy_protocol was refused"
            );
        }
        self.close_now(slot, "no_proxy_header");
    }

    /// Whether a peer speaks like a proxy that the settings do not name: then it is told apart from clients that err.
    pub(super) fn refuses_as_proxy(&mut self, slot: u32, bytes: &[u8]) -> bool {
        let Some(conn) = self.conn(slot).filter(|c| !c.signed_in && proxy::is_likely(bytes)) else {
            return false;
        };
        let peer = conn.peer;
        if self.now >= self.header_warned_at + WARN_EVERY_MS {
            self.header_warned_at = self.now;
            tracing::warn!(%peer, "a PROXY header came from an address that the section proxy_protocol does not name");
        }
        self.close_now(slot, "proxy_not_trusted");
        true
    }
}
