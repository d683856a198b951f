//! Places in the gateway for what begins as a request, and proxies that say for whom they connect.

use super::serving::{Handed, Live};
use super::*;
use crate::http::HttpConfig;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::AsyncWriteExt;

/// Has no place for anybody.
struct Crowded(Full);

impl Door for Crowded {
    fn reserve(&self, _: SocketAddr, _: bool) -> Result<Place, Full> {
        Err(self.0)
    }
    fn adopt(&self, _: std::net::TcpStream, _: Place, _: Speaks, _: bytes::Bytes) {
        panic!("a socket came without a place");
    }
    fn acknowledged(&self, _: ConnectionRef, _: Vec<u64>) {}
}

fn upgrade(path: &str, subprotocol: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    )
}

#[tokio::test]
async fn where_there_is_no_place_every_road_is_told_before_its_answer_begins() {
    for (full, status, told) in [
        (Full::Connections, "503", "too_many_connections"),
        (Full::Address, "429", "too_many_from_address"),
        (Full::Stopping, "503", "unavailable"),
    ] {
        let world = World::new();
        let credentials = BASE64_STANDARD.encode(world.device("d1").await);
        let api = Api { door: Arc::new(Crowded(full)), ..world.api.clone() };
        let live = Live::of(World { router: router(api), ..world }, HttpConfig::default());
        let by_device = |path: &str| {
            format!(
                "GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Basic {credentials}\r\nConnection: close\r\n\r\n"
            )
        };
        for request in [
            upgrade("/ws", "postrider.v1"),
            upgrade("/mqtt", "mqtt"),
            upgrade("/xmpp-websocket", "xmpp"),
            by_device("/v1/stream"),
            by_device("/v1/inbox?wait=5"),
        ] {
            let request = request.replace("Connection: Upgrade", "Connection: Upgrade, close");
            let answer = live.talk(request.as_bytes()).await.expect("it closes").to_ascii_lowercase();
            assert!(answer.starts_with(&format!("http/1.1 {status} ")), "{request}: {answer}");
            assert!(answer.contains(&format!("\"code\":\"{told}\"")), "{request}: {answer}");
            assert!(full == Full::Stopping || answer.contains("retry-after: "), "{request}: {answer}");
        }
    }
}

/// A live server that takes every connection from this machine for a proxy's.
async fn behind_proxy()
-> (Live, tokio::sync::mpsc::UnboundedReceiver<(std::net::TcpStream, SocketAddr, bytes::Bytes)>) {
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let world = World::new();
    let api = Api { door: Handed::new(tell), ..world.api.clone() };
    let proxies = ["127.0.0.0/8".parse().unwrap()].into_iter().collect();
    let config = HttpConfig { proxies, ..HttpConfig::default() };
    (Live::of(World { router: router(api), ..world }, config), told)
}

#[tokio::test]
async fn behind_a_proxy_each_client_has_its_own_address() {
    let (live, mut told) = behind_proxy().await;
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f".to_vec();
    v2.extend([198, 51, 100, 4, 192, 0, 2, 1, 0, 7, 0, 80, 0x04, 0, 0]);
    for (header, source) in [
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 55555 80\r\n".to_vec(), "203.0.113.9:55555"),
        (v2, "198.51.100.4:7"),
    ] {
        // Cut in the middle: the header is waited for.
        let mut stream = live.connect().await;
        stream.write_all(&header[..7]).await.unwrap();
        stream.flush().await.unwrap();
        tokio::task::yield_now().await;
        let rest = [&header[7..], upgrade("/mqtt", "mqtt").as_bytes()].concat();
        stream.write_all(&rest).await.unwrap();
        let (_, peer, _) = told.recv().await.unwrap();
        assert_eq!(peer, source.parse().unwrap());
    }
    // A health check of the proxy's own.
    let mut stream = live.connect().await;
    stream.write_all(&[b"PROXY UNKNOWN\r\n", upgrade("/mqtt", "mqtt").as_bytes()].concat()).await.unwrap();
    assert_eq!(told.recv().await.unwrap().1, stream.local_addr().unwrap());
}

#[tokio::test]
async fn a_proxy_that_does_not_say_for_whom_it_is_is_told_so_and_others_are_not_believed() {
    let (live, _told) = behind_proxy().await;
    let answer = live.talk(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("proxy_protocol.http"), "{answer}");
    let open = Live::start(HttpConfig::default());
    let header = b"PROXY TCP4 203.0.113.9 192.0.2.1 5 80\r\nGET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = open.talk(header).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}
