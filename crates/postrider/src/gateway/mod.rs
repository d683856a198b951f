//! Where devices connect.
//!
//! A few workers, one for each core, each with an event loop of its own ([`driver`]) over as many connections as the kernel
//! gives it. All that a connection says is read, all that it causes is queued, and **each connection is written to once a
//! turn**, whatever number of messages that carries: under load, that is what makes the server faster as it gets busier.
//! A connection at rest owns no buffer, no task and no timer.
//!
//! To add a gateway: implement `postrider_proto::ServerProtocol`, add it to [`Protocol`] and to `listener::Speaks`, and
//! translate what is special about it in a file beside `mqtt.rs`.

mod accounts;
mod act;
pub mod admission;
mod adopted;
mod conn;
mod driver;
mod echo;
mod entering;
pub mod listener;
mod mailbox;
mod mqtt;
mod named;
mod outgoing;
mod poll;
#[cfg(test)]
mod tests;
mod timers;
mod transport;
mod wheel;
mod xmpp;

use crate::names::SealedNames;
use crate::networks::Networks;
use crate::proof::Proofs;
use crate::supervise::Supervisor;
use crate::tls::ServerTls;
use crate::tokens::Tokens;
pub use admission::Place;
use admission::{Admission, AdmissionLimits, Entered, Road};
pub use adopted::{Begin, Door};
use listener::Incoming;
pub use listener::Speaks;
use mailbox::{Mail, Workers};
pub(crate) use mqtt::publish_of;
pub use poll::{GiveBack, Wait};
use postrider_core::Engine;
use postrider_core::hub::Saved;
use postrider_core::id::AppNo;
use postrider_proto::json::{EventStream, JsonConfig, SocketConnection};
use postrider_proto::ws::{MqttOverWs, WsConfig, XmppOverWs};
use postrider_proto::{Millis, Reply as ProtoReply, ServerProtocol, mqtt as mqtt_proto, xmpp as xmpp_proto};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Marks the token of a delivery that has no inbox entry.
pub(crate) const TRANSIENT: u64 = 1 << 63;

/// Settings of all workers.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    pub admission: AdmissionLimits,
    /// Proxies whose connections begin with a PROXY header, by listener.
    pub mqtt_proxies: Networks,
    pub xmpp_proxies: Networks,
    pub mqtt: Arc<mqtt_proto::ServerConfig>,
    pub websocket: Arc<WsConfig>,
    pub json: Arc<JsonConfig>,
    pub xmpp: XmppSettings,
    /// The certificate that XMPP switches to TLS with.
    pub tls: Option<ServerTls>,
    /// The app of clients that name none.
    pub app: AppNo,
    /// Acknowledgements of nothing in a minute, of one connection; 0: no limit.
    pub bad_acks_per_minute_max: u32,
    /// Bytes queued to one connection before live messages are dropped (P14).
    pub out_bytes_max: usize,
    /// Live messages above QoS 0 that wait for one connection's window.
    pub waiting_max: usize,
    /// And their bytes.
    pub waiting_bytes_max: usize,
    /// Bytes of live messages that wait for one worker.
    pub mailbox_bytes_max: usize,
    /// Changes of accounts that wait for their keys to be derived.
    pub account_jobs_max: usize,
    /// How long a peer may take nothing before it is cut off (P14).
    pub slow_reader_ms: u64,
    /// Publishes of one connection (L16); 0: no limit.
    pub publishes_per_sec: u32,
    pub publishes_burst: u32,
}

/// What XMPP is allowed, beyond its protocol.
#[derive(Clone, Debug)]
pub struct XmppSettings {
    pub server: Arc<xmpp_proto::ServerConfig>,
    /// SCRAM with channel binding is offered.
    pub binds_channels: bool,
    /// Devices of an app may write to each other.
    pub device_messages: bool,
    /// For secrets that devices choose.
    pub proofs: Proofs,
}

/// The protocols, each a state machine without IO.
pub(crate) enum Protocol {
    Mqtt(mqtt_proto::ServerConnection),
    MqttOverWebSocket(Box<MqttOverWs<mqtt_proto::ServerConnection>>),
    Xmpp(Box<xmpp_proto::ServerConnection>),
    XmppOverWebSocket(Box<XmppOverWs>),
    Json(Box<SocketConnection>),
    EventStream(Box<EventStream>),
    Poll(Box<poll::WaitingPoll>),
    /// A proxy has not said yet for whom it is.
    AfterHeader(Box<named::AwaitsHeader>),
    Echo(Box<echo::Echo>),
}

impl Protocol {
    pub fn as_mut(&mut self) -> &mut dyn ServerProtocol {
        match self {
            Protocol::Mqtt(mqtt) => mqtt,
            Protocol::MqttOverWebSocket(tunnel) => &mut **tunnel,
            Protocol::Xmpp(xmpp) => &mut **xmpp,
            Protocol::XmppOverWebSocket(tunnel) => &mut **tunnel,
            Protocol::Json(socket) => &mut **socket,
            Protocol::EventStream(stream) => &mut **stream,
            Protocol::Poll(poll) => &mut **poll,
            Protocol::AfterHeader(waits) => &mut **waits,
            Protocol::Echo(echo) => &mut **echo,
        }
    }

    /// Whether its session is worth keeping only where it subscribes to something: MQTT 3.1 knows no other way to say so, and
    /// the pushes of a JSON client wait in its inbox, session or not.
    pub fn leaves_empty_sessions(&self) -> bool {
        match self {
            Protocol::Mqtt(mqtt) => mqtt.level() == Some(mqtt_proto::Level::V31),
            Protocol::MqttOverWebSocket(tunnel) => tunnel.inner().level() == Some(mqtt_proto::Level::V31),
            _ => true,
        }
    }

    /// Whether the peer has said something since it was let in. Of other protocols nobody asks: their sessions are never told.
    pub fn has_heard(&self) -> bool {
        match self {
            Protocol::Mqtt(mqtt) => mqtt.has_heard(),
            Protocol::MqttOverWebSocket(tunnel) => tunnel.inner().has_heard(),
            _ => false,
        }
    }

    pub fn is_xmpp(&self) -> bool {
        matches!(self, Protocol::Xmpp(_) | Protocol::XmppOverWebSocket(_))
    }

    /// What the session's next connection is to find, and what that takes in memory.
    pub fn take_saved(&mut self, now: Millis) -> Option<(Saved, usize)> {
        let (mqtt, xmpp) = match self {
            Protocol::Mqtt(mqtt) => (mqtt.take_inflight(), None),
            Protocol::MqttOverWebSocket(tunnel) => (tunnel.inner_mut().take_inflight(), None),
            Protocol::Xmpp(xmpp) => (None, xmpp.take_saved_stream(now)),
            Protocol::XmppOverWebSocket(tunnel) => (None, tunnel.inner_mut().take_saved_stream(now)),
            _ => (None, None),
        };
        let inflight = mqtt.map(|inflight| (inflight.bytes(), inflight as Saved));
        let stream = xmpp.map(|stream| (stream.bytes(), stream as Saved));
        inflight.or(stream).map(|(bytes, saved)| (saved, bytes))
    }
}

/// An answer that comes to a worker by mail.
pub(crate) enum Reply {
    Protocol(ProtoReply),
    /// A SUBSCRIBE: the answer, then the retained messages of what was granted.
    Subscribed {
        token: u32,
        outcomes: Vec<postrider_proto::SubscribeOutcome>,
    },
}

type Label = [(&'static str, String); 1];

/// What operators see of the gateways.
#[derive(Clone, Default)]
pub struct GatewayMetrics {
    pub connections_accepted: Counter,
    /// By `kind`: why a connection ended.
    pub connections_closed: Family<Label, Counter>,
    /// By `limit`: why a connection was not let in.
    pub connections_refused: Family<Label, Counter>,
    pub messages_in: Counter,
    pub messages_out: Counter,
    /// By `reason`: live messages that a connection could not take.
    pub messages_dropped: Family<Label, Counter>,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    pub writes: Counter,
    /// Acknowledgements of deliveries that were not open for the device.
    pub bad_acks: Counter,
    pub panics: Counter,
    pub slow_readers_closed: Counter,
    pub keepalive_timeouts: Counter,
}

impl GatewayMetrics {
    fn count_dropped(&self, reason: &str, count: usize) {
        self.messages_dropped.get_or_create(&label("reason", reason)).inc_by(count as u64);
    }
}

pub(crate) fn label(name: &'static str, value: &str) -> Label {
    [(name, value.to_owned())]
}

/// What the workers share.
pub(crate) struct Shared {
    pub config: GatewayConfig,
    pub engine: Engine,
    pub tokens: Arc<Tokens>,
    pub admission: Admission,
    pub accounts: accounts::Accounts,
    pub metrics: GatewayMetrics,
    pub start: Instant,
}

/// Why there is no place for another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// There are as many as there may be.
    Connections,
    /// The address has as many as it may have.
    Address,
    /// The server stops.
    Stopping,
}

impl Full {
    /// The limit, for metrics.
    fn limit(self) -> &'static str {
        match self {
            Full::Connections => "connections",
            Full::Address => "per_address",
            Full::Stopping => "stopping",
        }
    }
}

impl Shared {
    /// Those who make room for a newer connection are told by their workers.
    fn push_out(&self, entered: &Entered, workers: &[Arc<mailbox::Mailbox>]) {
        for (at, limit) in &entered.pushed_out {
            self.metrics.connections_refused.get_or_create(&label("limit", limit)).inc();
            if let Some(worker) = workers.get(usize::from(at.shard)) {
                worker.post(Mail::MakeRoom(*at));
            }
        }
    }

    fn count_refused(&self, full: Full) {
        self.metrics.connections_refused.get_or_create(&label("limit", full.limit())).inc();
    }
}

/// The running gateways.
pub struct Gateway {
    workers: Arc<Workers>,
    shared: Arc<Shared>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    next: AtomicUsize,
}

impl Gateway {
    /// Starts the workers on listeners that are bound already, one of each kind for each worker. A worker that ends would
    /// leave its connections without anybody who serves them: the supervisor is told.
    pub fn start(
        engine: Engine,
        tokens: Arc<Tokens>,
        mut config: GatewayConfig,
        metrics: GatewayMetrics,
        (listeners, supervisor): (Vec<Vec<(mio::net::TcpListener, listener::Listens)>>, Supervisor),
    ) -> io::Result<Gateway> {
        let names = Arc::new(SealedNames::of(&*engine.store));
        config.json = Arc::new(JsonConfig { names, ..(*config.json).clone() });
        let admission = Admission::new(config.admission.clone());
        let shared = Arc::new(Shared {
            accounts: accounts::Accounts::new(config.account_jobs_max),
            config,
            engine,
            tokens,
            admission,
            metrics,
            start: Instant::now(),
        });
        let drivers = listeners
            .into_iter()
            .enumerate()
            .map(|(shard, mine)| driver::Driver::new(shard as u16, shared.clone(), mine))
            .collect::<io::Result<Vec<_>>>()?;
        let boxes = drivers.iter().map(|d| d.mailbox.clone()).collect();
        let workers = Arc::new(Workers { boxes, metrics: shared.metrics.clone() });
        shared.engine.attach_connections(workers.clone());
        let spawn = |mut driver: driver::Driver| {
            driver.workers = workers.boxes.clone();
            let (name, supervisor) = (format!("gateway-{}", driver.shard()), supervisor.clone());
            let watched = name.clone();
            let run = move || supervisor.watch(&watched, || driver.run());
            std::thread::Builder::new().name(name).spawn(run)
        };
        let threads = drivers.into_iter().map(spawn).collect::<io::Result<Vec<_>>>()?;
        let next = AtomicUsize::new(0);
        Ok(Gateway { workers, shared, threads: Mutex::new(threads), next })
    }

    /// Holds a place for a socket that is still the HTTP server's. `is_known`: its client has proved who it is.
    pub fn reserve(&self, peer: SocketAddr, is_known: bool) -> Result<Place, Full> {
        let admission = &self.shared.admission;
        let entered = match is_known {
            true => admission.enter_known(peer.ip()),
            false => admission.enter(peer.ip(), Road::Http, None),
        };
        let entered = entered.inspect_err(|full| self.shared.count_refused(*full))?;
        self.shared.push_out(&entered, &self.workers.boxes);
        Ok(Place::new(self.shared.clone(), peer, entered.ticket))
    }

    /// Takes over a socket that began as HTTP, with the bytes already read from it.
    pub fn adopt(
        &self,
        stream: std::net::TcpStream,
        place: Place,
        speaks: Speaks,
        first: bytes::Bytes,
    ) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let stream = mio::net::TcpStream::from_std(stream);
        let incoming = Incoming { first, ..Incoming::reserved(stream, place, speaks) };
        let worker = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.boxes.len();
        self.workers.boxes[worker].post(Mail::Adopt(Box::new(incoming)));
        Ok(())
    }

    pub fn tokens(&self) -> Arc<Tokens> {
        self.shared.tokens.clone()
    }

    /// Connections that are open, and those of them that have not signed in.
    pub fn counts(&self) -> (usize, usize) {
        (self.shared.admission.total(), self.shared.admission.unauthenticated())
    }

    /// Says goodbye to everybody and waits until the workers are done.
    pub fn stop(&self) {
        self.workers.boxes.iter().for_each(|w| w.post(Mail::Shutdown));
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // A panic was told where it happened.
        threads.into_iter().for_each(|thread| _ = thread.join());
    }
}
