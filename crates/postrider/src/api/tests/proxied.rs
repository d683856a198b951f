//! Clients behind proxies: whose address counts, and whose does not.

use super::serving::{Live, read_all};
use super::*;
use crate::http::HttpConfig;
use tokio::io::AsyncWriteExt;

/// Notes the address of each socket that leaves, and drops it.
#[derive(Default)]
struct Noting(Mutex<Vec<SocketAddr>>);

impl Door for Noting {
    fn reserve(&self, peer: SocketAddr, _: bool) -> Result<Place, Full> {
        self.0.lock().unwrap().push(peer);
        Ok(Place::of_nobody())
    }
    fn adopt(&self, _: std::net::TcpStream, _: Place, _: Speaks, _: bytes::Bytes) {}
    fn acknowledged(&self, _: ConnectionRef, _: Vec<u64>) {}
}

fn behind(trusted: &[&str], api_limits: ApiLimits) -> (Live, Arc<Noting>) {
    let world = World::with(api_limits, Limits::default());
    let door = Arc::new(Noting::default());
    let api = Api { door: door.clone(), ..world.api.clone() };
    let trusted_proxies = trusted.iter().map(|network| network.parse().unwrap()).collect();
    let config = HttpConfig { trusted_proxies, connections_per_address_max: 3, ..HttpConfig::default() };
    (Live::of(World { router: router(api.clone()), api, ..world }, config), door)
}

async fn status(live: &Live, path: &str, headers: &str) -> u16 {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    let answer = live.talk(request.as_bytes()).await.unwrap();
    answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn wrong_keys_are_counted_by_the_client_that_a_trusted_proxy_names() {
    let limits = || ApiLimits { auth_failures_burst: 1, ..ApiLimits::default() };
    let wrong = "Authorization: Bearer wrong\r\n";
    let from = |address: &str| format!("{wrong}X-Forwarded-For: {address}\r\n");
    let (live, _) = behind(&["127.0.0.0/8"], limits());
    assert_eq!(status(&live, "/v1/devices", &from("203.0.113.1")).await, 401);
    assert_eq!(status(&live, "/v1/devices", &from("203.0.113.1")).await, 429);
    assert_eq!(status(&live, "/v1/devices", &from("203.0.113.2")).await, 401);
    // What a client writes itself stands to the left of what its proxy adds.
    assert_eq!(status(&live, "/v1/devices", &from("203.0.113.9, 203.0.113.1")).await, 429);
    let forwarded = format!("{wrong}Forwarded: for=203.0.113.3\r\n");
    assert_eq!(status(&live, "/v1/devices", &forwarded).await, 401);
    // Nobody else's word counts.
    let (live, _) = behind(&["192.0.2.0/24"], limits());
    assert_eq!(status(&live, "/v1/devices", &from("203.0.113.1")).await, 401);
    assert_eq!(status(&live, "/v1/devices", &from("203.0.113.2")).await, 429);
}

#[tokio::test]
async fn a_socket_that_leaves_takes_the_address_of_its_client_along() {
    let (live, door) = behind(&["127.0.0.1"], ApiLimits::default());
    let device = live.world.device("d1").await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (n, (path, headers)) in [
        ("/v1/stream", format!("Authorization: Bearer {device}\r\n")),
        ("/v1/inbox?wait=1", format!("Authorization: Bearer {device}\r\n")),
        ("/ws", upgrade.to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        let mut stream = live.connect().await;
        let head =
            format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}X-Forwarded-For: 203.0.113.{n}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        read_all(&mut stream).await.expect("the door drops it");
    }
    let seen: Vec<String> = door.0.lock().unwrap().iter().map(|peer| peer.ip().to_string()).collect();
    assert_eq!(seen, ["203.0.113.0", "203.0.113.1", "203.0.113.2"]);
}

#[tokio::test]
async fn a_trusted_proxy_may_open_as_many_connections_as_it_needs() {
    let (live, _) = behind(&["127.0.0.1"], ApiLimits::default());
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(live.connect().await);
    }
    assert!(live.is_well().await);
    let (live, _) = behind(&[], ApiLimits::default());
    for _ in 0..3 {
        held.push(live.connect().await);
    }
    // Of anybody else the oldest makes room for the fourth.
    assert_eq!(status(&live, "/openapi.json", "").await, 200);
    assert!(read_all(&mut held[10]).await.unwrap().starts_with(b"HTTP/1.1 503 "));
}

#[tokio::test]
async fn a_page_is_of_the_host_that_its_browser_asked_for() {
    let (live, door) = behind(&["127.0.0.1"], ApiLimits::default());
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: https://app.example\r\n";
    let request = |more: &str| format!("GET /ws HTTP/1.1\r\nHost: upstream\r\n{upgrade}{more}\r\n");
    let mut stream = live.connect().await;
    let through_proxy = request("X-Forwarded-For: 203.0.113.1\r\nX-Forwarded-Host: app.example\r\n");
    stream.write_all(through_proxy.as_bytes()).await.unwrap();
    let answer = read_all(&mut stream).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(door.0.lock().unwrap().len(), 1);
    // Without a proxy that says so, the page is foreign.
    let mut stream = live.connect().await;
    stream.write_all(request("").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = read_all(&mut stream).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 403 "), "{}", String::from_utf8_lossy(&answer));
}
