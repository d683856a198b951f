//! A live server on a socket: its end, its hand-over of WebSockets, its ops listener.

use super::*;
use crate::api::health::{Ops, router as ops_router};
use crate::gateway::{Door, Full, Place, Speaks};
use crate::http::{HttpConfig, serve};
use bytes::Bytes;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A server that listens, and stops when told or dropped.
pub struct Live {
    pub address: SocketAddr,
    pub world: World,
    pub stop: watch::Sender<bool>,
    pub ended: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Live {
    pub fn start(config: HttpConfig) -> Live {
        Live::of(World::new(), config)
    }

    pub fn of(world: World, config: HttpConfig) -> Live {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = watch::channel(false);
        let metrics = world.api.metrics.http.clone();
        let ended = tokio::spawn(serve(listener, world.router.clone(), config, metrics, stopping));
        Live { address, world, stop, ended }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and reads all that comes until the server closes. `None`: it did not close in time.
    pub async fn talk(&self, bytes: &[u8]) -> Option<String> {
        let mut stream = self.connect().await;
        // The server may close before it has read everything: then what it said is still to be read.
        _ = stream.write_all(bytes).await;
        read_all(&mut stream).await.map(|answer| String::from_utf8_lossy(&answer).into_owned())
    }

    /// It still answers an honest request.
    pub async fn is_well(&self) -> bool {
        let request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        self.talk(request).await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200 "))
    }
}

/// Everything until the end, or until the connection is reset.
pub async fn read_all(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let mut part = [0; 4096];
    let reading = async {
        while let Ok(n @ 1..) = stream.read(&mut part).await {
            all.extend_from_slice(&part[..n]);
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.ok()?;
    Some(all)
}

#[tokio::test]
async fn http_1_keeps_its_connection_and_http_2_speaks_too() {
    let live = Live::start(HttpConfig::default());
    let mut stream = live.connect().await;
    for _ in 0..2 {
        stream.write_all(b"GET /v1/devices HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 401");
        let mut rest = vec![0; 65_536];
        let mut seen = String::new();
        while !seen.ends_with("}}") {
            let n = stream.read(&mut rest).await.unwrap();
            seen += std::str::from_utf8(&rest[..n]).unwrap();
        }
    }
    assert!(live.is_well().await);
}

/// Tells of each socket.
pub struct Handed {
    tell: tokio::sync::mpsc::UnboundedSender<(std::net::TcpStream, SocketAddr, Bytes)>,
    reserved: Mutex<Option<SocketAddr>>,
}

impl Handed {
    pub fn new(
        tell: tokio::sync::mpsc::UnboundedSender<(std::net::TcpStream, SocketAddr, Bytes)>,
    ) -> Arc<Handed> {
        Arc::new(Handed { tell, reserved: Mutex::default() })
    }
}

impl Door for Handed {
    fn reserve(&self, peer: SocketAddr, _: bool) -> Result<Place, Full> {
        *self.reserved.lock().unwrap() = Some(peer);
        Ok(Place::of_nobody())
    }

    fn adopt(&self, stream: std::net::TcpStream, _: Place, _: Speaks, first: Bytes) {
        let peer = self.reserved.lock().unwrap().unwrap();
        self.tell.send((stream, peer, first)).unwrap();
    }

    fn acknowledged(&self, _: ConnectionRef, _: Vec<u64>) {}
}

#[tokio::test]
async fn a_websocket_is_handed_over_with_the_bytes_that_came_early() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let world = World::new();
    let api = Api { door: Handed::new(tell), ..world.api.clone() };
    let live = Live::of(World { router: router(api), ..world }, HttpConfig::default());
    let mut client = live.connect().await;
    let request = "GET /mqtt HTTP/1.1\r\nHost: h\r\nOrigin: http://h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: x, mqtt\r\n\r\nearly";
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut stream, peer, first) = told.recv().await.unwrap();
    assert_eq!((&*first, peer), (&b"early"[..], client.local_addr().unwrap()));
    stream.set_nonblocking(false).unwrap();
    client.write_all(b"late").await.unwrap();
    let mut late = [0; 4];
    stream.read_exact(&mut late).unwrap();
    assert_eq!(&late, b"late");
    stream.write_all(b"bye").unwrap();
    drop(stream);
    let answer = String::from_utf8(read_all(&mut client).await.unwrap()).unwrap().to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{answer}");
    assert!(
        answer.contains("sec-websocket-protocol: mqtt\r\n") && answer.ends_with("\r\n\r\nbye"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_order_to_stop_ends_those_who_wait() {
    let live = Live::start(HttpConfig::default());
    let mut stream = live.connect().await;
    let poll = "GET /v1/events?wait=60 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer default-app-key\r\n\r\n";
    stream.write_all(poll.as_bytes()).await.unwrap();
    let idle = live.connect().await;
    while live.world.api.polls_waiting() == 0 {
        tokio::task::yield_now().await;
    }
    live.stop.send_replace(true);
    let answer = read_all(&mut stream).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
    tokio::time::timeout(Duration::from_secs(5), live.ended).await.unwrap().unwrap().unwrap();
    drop(idle);
    assert!(TcpStream::connect(live.address).await.is_err());
}

#[tokio::test]
async fn one_address_has_only_so_many_connections() {
    let live = Live::start(HttpConfig { connections_per_address_max: 1, ..HttpConfig::default() });
    let mut first = live.connect().await;
    let second = live.connect().await;
    // The one that has been silent for longer makes room, and is told so.
    let answer = read_all(&mut first).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 503 "));
    let metrics = &live.world.api.metrics.http;
    assert_eq!((metrics.connections.get(), metrics.refused.get()), (1, 1));
    drop(second);
    // The seat is free as soon as the server has seen the end.
    while !live.is_well().await {}
}

#[tokio::test]
async fn the_operations_listener_tells_health_and_numbers() {
    let world = World::new();
    world.device("d1").await;
    world.message_to("d1").await;
    let metrics = world.api.metrics.clone();
    let ops = Ops::new(
        (world.api.engine.clone(), Default::default(), world.api.webhooks.clone()),
        metrics,
        Default::default(),
        || (7, 2),
    );
    let ops = ops_router(ops);
    let get = async |path: &str| {
        let response = ops.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    };
    assert_eq!(get("/healthz").await, (200, "ok\n".into()));
    assert_eq!(get("/readyz").await, (200, r#"{"ready":true,"sessions_connected":0}"#.into()));
    let (status, text) = get("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "postrider_accounting_gap{app=\"default\"} 0",
        "postrider_deliveries_open{app=\"default\"} 1",
        "postrider_deliveries_ended_total{app=\"other\",state=\"expired\"} 0",
        "postrider_messages_accepted_total{app=\"default\"} 1",
        "postrider_api_requests_total{method=\"POST\",route=\"/v1/messages\",status=\"202\"} 1",
        "postrider_connections 7",
        "postrider_connections_unauthenticated 2",
        "postrider_store_sync_seconds_total",
        "postrider_gateway_messages_in_total 0",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let told = include_str!("../../../../../docs/metrics.md");
    let served = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let untold: Vec<&str> = served.filter(|name| !told.contains(&format!("| `{name}"))).collect();
    assert_eq!(untold, [""; 0], "docs/metrics.md does not tell of these");
    world.store.refuse(Some(StoreError::StorageLow { free_bytes: 0 }));
    let (status, text) = get("/readyz").await;
    assert_eq!((status, text.contains("storage is low")), (503, true));
}

#[tokio::test]
async fn a_handler_that_panics_answers_500_and_nothing_else_suffers() {
    let world = World::new();
    let api = world.api.clone();
    let broken = Router::new()
        .route(
            "/panic",
            axum::routing::get(|| async {
                if true {
                    panic!("on purpose")
                }
            }),
        )
        .layer(axum::middleware::from_fn_with_state(api.clone(), super::super::around))
        .with_state(api.clone());
    let response = broken.oneshot(Request::get("/panic").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status().as_u16(), 500);
    assert_eq!(api.metrics.panics.get(), 1);
}
