//! Listening sockets, and what comes in by them.

use super::admission::{Place, Road};
use super::named::AwaitsHeader;
use super::{Begin, Wait};
use bytes::Bytes;
use mio::net::{TcpListener, TcpStream};
use postrider_proto::ws::Deflate;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// What a connection speaks.
pub enum Speaks {
    Mqtt,
    MqttTls(Arc<rustls::ServerConfig>),
    /// XMPP, which may switch to TLS.
    Xmpp,
    /// XMPP with TLS from the first byte.
    XmppTls(Arc<rustls::ServerConfig>),
    /// XMPP in WebSocket messages (RFC 7395); the HTTP part is done.
    XmppOverWebSocket,
    /// MQTT in WebSocket messages; the HTTP part is done.
    MqttOverWebSocket,
    /// JSON frames in WebSocket messages; the HTTP part is done, and messages are compressed where that was agreed on.
    Json(Option<Deflate>),
    /// Server-sent events; who reads them is known.
    EventStream(Box<Begin>),
    /// A request that waits.
    Poll(Box<Wait>),
    /// Something else, behind the header of a proxy.
    AfterHeader(Box<AwaitsHeader>),
    /// Every WebSocket message goes back.
    Echo(Option<Deflate>),
}

impl Speaks {
    /// The listener that it came by.
    pub fn road(&self) -> Road {
        match self {
            Speaks::Mqtt => Road::Mqtt,
            Speaks::MqttTls(_) => Road::MqttTls,
            Speaks::Xmpp => Road::Xmpp,
            Speaks::XmppTls(_) => Road::XmppTls,
            _ => Road::Http,
        }
    }
}

/// What a listener of ours speaks.
#[derive(Clone)]
pub enum Listens {
    Mqtt,
    MqttTls(Arc<rustls::ServerConfig>),
    Xmpp,
    XmppTls(Arc<rustls::ServerConfig>),
}

impl From<Listens> for Speaks {
    fn from(listens: Listens) -> Speaks {
        match listens {
            Listens::Mqtt => Speaks::Mqtt,
            Listens::MqttTls(config) => Speaks::MqttTls(config),
            Listens::Xmpp => Speaks::Xmpp,
            Listens::XmppTls(config) => Speaks::XmppTls(config),
        }
    }
}

/// A connection on its way to a worker.
pub struct Incoming {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub speaks: Speaks,
    /// Bytes that were read with what came before.
    pub first: Bytes,
    /// The place that was held for it.
    pub place: Option<Place>,
}

impl Incoming {
    /// A connection as it comes from a listener.
    pub fn new(stream: TcpStream, peer: SocketAddr, speaks: Speaks) -> Incoming {
        Incoming { stream, peer, speaks, first: Bytes::new(), place: None }
    }

    /// A connection with a place, which knows whose it is.
    pub fn reserved(stream: TcpStream, place: Place, speaks: Speaks) -> Incoming {
        let peer = SocketAddr::from(([0, 0, 0, 0], 0));
        Incoming { stream, peer, speaks, first: Bytes::new(), place: Some(place) }
    }
}

/// Binds one address once for each worker, so that the kernel spreads the connections (`SO_REUSEPORT`).
/// Port 0 is resolved by the first.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    if workers > 1 && address.port() != 0 {
        // Shared ports would let a second server slip in beside the first without an error: try alone before.
        drop(std::net::TcpListener::bind(address)?);
    }
    let mut at = address;
    let mut listeners = Vec::with_capacity(workers);
    for _ in 0..workers {
        let listener = TcpListener::from_std(open(at, workers > 1)?);
        at = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((at, listeners))
}

/// A listening socket that does not block, on a port that others may share or not.
pub fn open(at: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit it, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&at.into())?;
    // A crowd that comes back at once would overflow the usual 128.
    socket.listen(4096)?;
    Ok(socket.into())
}
