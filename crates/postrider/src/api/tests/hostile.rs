//! Hostile HTTP/1.1 and JSON (H81–H91 of the reliability study), over a raw socket. In every case: no panic, an answer of
//! the expected kind or a closed connection, and the server goes on.

use super::serving::{Live, read_all};
use super::*;
use crate::http::HttpConfig;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// The connection is closed without an answer.
const CLOSED: u16 = 0;

const AUTH: &str = "Authorization: Bearer default-app-key\r\n";

/// The statuses of all answers on the connection.
fn statuses(answer: &str) -> Vec<u16> {
    let found = answer.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok());
    let found: Vec<u16> = found.collect();
    if found.is_empty() { vec![CLOSED] } else { found }
}

async fn expect(live: &Live, name: &str, request: &[u8], expected: &[u16]) {
    let answer = live.talk(request).await.unwrap_or_else(|| panic!("{name}: the connection stays open"));
    let got = statuses(&answer);
    assert!(got.len() == 1 && expected.contains(&got[0]), "{name}: {got:?}, expected one of {expected:?}");
}

/// A `GET` that ends its connection.
fn get(path: &str, headers: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").into_bytes()
}

/// A `POST` of JSON.
fn post(path: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n{AUTH}{headers}\r\n{body}")
        .into_bytes()
}

#[tokio::test]
async fn h81_websocket_handshakes_that_are_none() {
    let live = Live::start(HttpConfig::default());
    let upgrade = |key: &str, version: &str, rest: &str| {
        let request = format!(
            "GET /mqtt HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}{version}{rest}\r\n"
        );
        request.into_bytes()
    };
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let version = "Sec-WebSocket-Version: 13\r\n";
    let mqtt = "Sec-WebSocket-Protocol: mqtt\r\nConnection: close\r\n";
    let many: String = (0..200).map(|i| format!("X-{i}: 1\r\n")).collect();
    for (name, request, expected) in [
        ("no key", upgrade("", version, mqtt), 400),
        ("short key", upgrade("Sec-WebSocket-Key: eA==\r\n", version, mqtt), 400),
        ("version 12", upgrade(key, "Sec-WebSocket-Version: 12\r\n", mqtt), 426),
        ("no version", upgrade(key, "", mqtt), 426),
        ("no subprotocol", upgrade(key, version, "Connection: close\r\n"), 400),
        (
            "other subprotocol",
            upgrade(key, version, "Sec-WebSocket-Protocol: wamp\r\nConnection: close\r\n"),
            400,
        ),
        ("foreign origin", upgrade(key, version, &format!("Origin: https://evil.example\r\n{mqtt}")), 403),
        ("null origin", upgrade(key, version, &format!("Origin: null\r\n{mqtt}")), 403),
        ("200 headers", upgrade(key, version, &format!("{many}{mqtt}")), 431),
        ("no upgrade", get("/mqtt", ""), 400),
    ] {
        expect(&live, name, &request, &[expected]).await;
    }
    assert!(live.is_well().await);
}

#[tokio::test]
async fn h82_requests_whose_end_is_disputed() {
    let live = Live::start(HttpConfig::default());
    let smuggled = "GET /v1/apps HTTP/1.1\r\nHost: x\r\n\r\n";
    let head =
        format!("POST /v1/messages/estimate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{AUTH}");
    let request = |rest: &str| format!("{head}{rest}").into_bytes();
    let extension = "x".repeat(1 << 20);
    // What one side might take for the end of the body is never the begin of another request: one answer, then the end.
    // With both CL and TE our parser goes by TE (RFC 9112 §6.3), here to a body that is empty and therefore no JSON.
    for (name, rest, expected) in [
        (
            "CL and TE",
            format!("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
            vec![400],
        ),
        (
            "TE and CL",
            format!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{smuggled}"),
            vec![400],
        ),
        ("two CL", format!("Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345{smuggled}"), vec![400]),
        (
            "TE ends in identity",
            format!("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}"),
            vec![400],
        ),
        ("TE not known", format!("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}"), vec![400]),
        ("CL with a sign", "Content-Length: +5\r\n\r\n12345".into(), vec![400]),
        ("CL too large", "Content-Length: 99999999999999999999\r\n\r\n12345".into(), vec![400, 413]),
        ("obs-fold", "X: a\r\n b\r\n\r\n".into(), vec![400]),
        ("space before the colon", "X : a\r\n\r\n".into(), vec![400]),
        ("chunk size overflows", "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n".into(), vec![400]),
        ("chunk size is no number", "Transfer-Encoding: chunked\r\n\r\n-1\r\n".into(), vec![400]),
        ("long chunk extension", format!("Transfer-Encoding: chunked\r\n\r\n1;{extension}\r\n"), vec![400]),
        ("NUL in a header", "X: a\0b\r\n\r\n".into(), vec![400]),
    ] {
        expect(&live, name, &request(&rest), &expected).await;
    }
    // RFC 9112 §2.2 lets a single LF end a line; others do not, so it is refused.
    expect(&live, "bare LF", b"GET /v1/apps HTTP/1.1\nHost: x\nConnection: close\n\n", &[400]).await;
    expect(&live, "no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", &[400, CLOSED]).await;
    expect(&live, "HTTP/9", b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", &[400]).await;
    assert!(live.is_well().await);
}

#[tokio::test]
async fn h83_heads_that_are_too_much() {
    let live = Live::start(HttpConfig::default());
    let fields = |n: usize| (0..n).map(|i| format!("X-{i}: 1\r\n")).collect::<String>();
    for (name, request, expected) in [
        ("65 fields", get("/v1/apps", &fields(63)), vec![431]),
        ("64 fields", get("/v1/apps", &fields(62)), vec![401]),
        ("16 KiB of fields", get("/v1/apps", &format!("X: {}\r\n", "x".repeat(16 * 1024))), vec![431]),
        ("1 MiB of fields", get("/v1/apps", &format!("X: {}\r\n", "x".repeat(1 << 20))), vec![431]),
        (
            "100 KiB of credentials",
            get("/v1/apps", &format!("Authorization: {}\r\n", "x".repeat(100 << 10))),
            vec![431],
        ),
        ("8 KiB of target", get(&format!("/{}", "x".repeat(8 * 1024)), ""), vec![414]),
        ("8 KiB of query", get(&format!("/v1/apps?{}", "x".repeat(8 * 1024)), ""), vec![414]),
        ("no Host", b"GET /v1/apps HTTP/1.1\r\nConnection: close\r\n\r\n".to_vec(), vec![400]),
        ("two Hosts", get("/v1/apps", "Host: y\r\n"), vec![400]),
        ("absolute, foreign", get("http://y/v1/apps", ""), vec![400]),
        ("absolute, own", get("http://x/v1/apps", ""), vec![401]),
        ("asterisk", b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec(), vec![404]),
        (
            "CONNECT",
            b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nConnection: close\r\n\r\n".to_vec(),
            vec![404, 405],
        ),
    ] {
        expect(&live, name, &request, &expected).await;
    }
    assert!(live.is_well().await);
}

#[tokio::test]
async fn h83_a_head_that_drips_and_a_peer_that_says_nothing_are_cut_off() {
    let short = Duration::from_millis(200);
    let live = Live::start(HttpConfig { head_time_max: short, ..HttpConfig::default() });
    expect(&live, "silence", b"", &[CLOSED]).await;
    let mut stream = live.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let start = std::time::Instant::now();
    let drip = async {
        while stream.write_all(b"X: y\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), drip).await.expect("the dripping connection is cut off");
    assert!(start.elapsed() >= short);
    // Who stops in the middle of a head is told before the end; a dripping one may have it overtaken by a reset.
    expect(&live, "half a head", b"GET / HTTP/1.1\r\nHost: x\r\n", &[408]).await;
    // Between requests there is more time, and it ends too.
    let idle = Duration::from_millis(300);
    let live = Live::start(HttpConfig { idle_max: idle, ..HttpConfig::default() });
    let mut stream = live.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let start = std::time::Instant::now();
    let answer = read_all(&mut stream).await.expect("the idle connection is closed");
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && start.elapsed() >= idle);
}

#[tokio::test]
async fn h85_json_that_is_none() {
    let live = Live::start(HttpConfig::default());
    let deep = format!("{}1{}", "[".repeat(33), "]".repeat(33));
    let digits = "1".repeat(100_000);
    for (name, body) in [
        ("depth", deep.as_str()),
        ("digits", &digits),
        ("1e999", "1e999"),
        ("a key twice", r#"{"audience":"all","audience":"all"}"#),
        ("lone surrogate", r#"{"audience":{"tag":"\ud800"}}"#),
        ("NUL", "{\"audience\":\"all\0\"}"),
        ("byte order mark", "\u{feff}{\"audience\":\"all\"}"),
        ("trailing data", r#"{"audience":"all"}{}"#),
        ("unknown field", r#"{"audience":"all","colour":1}"#),
        ("nothing", ""),
        ("a list", "[]"),
        ("null", "null"),
    ] {
        let length = format!("Content-Length: {}\r\n", body.len());
        let request = post("/v1/messages/estimate", &length, body);
        let answer = live.talk(&request).await.unwrap();
        assert_eq!(statuses(&answer), [400], "{name}: {answer}");
        assert!(answer.contains(r#"{"error":{"code":"invalid_"#), "{name}: {answer}");
    }
    let good = r#"{"audience":"all"}"#;
    let length = format!("Content-Length: {}\r\n", good.len());
    expect(&live, "good", &post("/v1/messages/estimate", &length, good), &[200]).await;
}

#[tokio::test]
async fn h86_bodies_that_are_too_much() {
    let live = Live::start(HttpConfig::default());
    let spaces = " ".repeat(256 * 1024 + 1 - 18);
    let body = format!("{spaces}{{\"audience\":\"all\"}}");
    let length = |n: usize| format!("Content-Length: {n}\r\n");
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(65_536));
    let path = "/v1/messages/estimate";
    for (name, request, expected) in [
        ("256 KiB + 1", post(path, &length(body.len()), &body), 413),
        ("256 KiB", post(path, &length(body.len() - 1), &body[1..]), 200),
        ("said to be large", post(path, &length(1 << 40), ""), 413),
        ("chunks without end", post(path, "Transfer-Encoding: chunked\r\n", &chunk.repeat(64)), 413),
        ("a batch of 4 MiB + 1", post("/v1/messages/batch", &length((4 << 20) + 1), ""), 413),
        ("gzip", post(path, "Content-Encoding: gzip\r\nContent-Length: 2\r\n", "{}"), 415),
    ] {
        expect(&live, name, &request, &[expected]).await;
    }
    for kind in ["text/plain", "application/json; charset=utf-16", "application/jsonx", "multipart/form-data"]
    {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{AUTH}Content-Type: {kind}\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        expect(&live, kind, request.as_bytes(), &[415]).await;
    }
    assert!(live.is_well().await);
}

#[tokio::test]
async fn h86_a_body_that_drips_is_not_waited_for() {
    let limits = ApiLimits { body_grace: Duration::from_millis(100), ..ApiLimits::default() };
    let live = Live::of(World::with(limits, Limits::default()), HttpConfig::default());
    let mut stream = live.connect().await;
    let head = post("/v1/messages/estimate", "Content-Length: 100\r\n", "{");
    stream.write_all(&head).await.unwrap();
    let answer = read_all(&mut stream).await.expect("the connection is closed");
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn h87_control_characters_where_names_are() {
    let live = Live::start(HttpConfig::default());
    let body = r#"{"audience":"all","data":1}"#;
    let length = format!("Content-Length: {}\r\n", body.len());
    for key in ["a\0b", "a\u{7f}b", "ä"] {
        let request = post("/v1/messages", &format!("Idempotency-Key: {key}\r\n{length}"), body);
        expect(&live, &format!("key {key:?}"), &request, &[400]).await;
    }
    // A line break ends the header; what follows is another header or an error, and the key is only what stood before.
    let request = post("/v1/messages", &format!("Idempotency-Key: a\r\nb\r\n{length}"), body);
    expect(&live, "CRLF in a key", &request, &[400]).await;
    let body = r#"{"payload_text":"x"}"#;
    let length = format!("Content-Length: {}\r\n", body.len());
    for topic in ["a%0d%0ab", "a%00", "a%7f"] {
        expect(&live, topic, &post(&format!("/v1/topics/{topic}/publish"), &length, body), &[400]).await;
    }
}

#[tokio::test]
async fn h88_paths_that_mean_another() {
    let live = Live::start(HttpConfig::default());
    for path in [
        "/v1/admin/%2e%2e/apps",
        "//v1/apps",
        "/v1//apps",
        "/x;/../v1/apps",
        "/v1/../v1/apps",
        "/v1/apps/",
        "/V1/apps",
        "/v1/apps%00",
        "/%c0%ae/v1/apps",
        "/v1/apps\\x",
        "/mqtt/../v1/apps",
    ] {
        let admin = format!("Authorization: Bearer {ADMIN_KEY}\r\n");
        expect(&live, path, &get(path, &admin), &[400, 404]).await;
    }
}

#[tokio::test]
async fn h90_polls_beyond_the_limit_are_refused_and_given_up_ones_make_room() {
    let live = Live::start(HttpConfig::default());
    let poll = get("/v1/events?wait=60", AUTH);
    let mut waiting = Vec::new();
    for _ in 0..32 {
        let mut stream = live.connect().await;
        stream.write_all(&poll).await.unwrap();
        waiting.push(stream);
    }
    while live.world.api.polls_waiting() < 32 {
        tokio::task::yield_now().await;
    }
    expect(&live, "one more", &poll, &[429]).await;
    drop(waiting);
    while live.world.api.polls_waiting() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn h91_credentials_in_every_wrong_way() {
    let live = Live::start(HttpConfig::default());
    for (name, path, headers, expected) in [
        ("twice", "/v1/devices", format!("{AUTH}{AUTH}"), 400),
        ("mixed", "/v1/devices", format!("{AUTH}Authorization: Basic ZDE6eA==\r\n"), 400),
        ("in the query", "/v1/devices?access_token=default-app-key", String::new(), 400),
        ("not ASCII", "/v1/devices", "Authorization: Bearer ä\r\n".into(), 400),
        ("none", "/v1/devices", String::new(), 401),
        ("right", "/v1/devices", AUTH.into(), 200),
    ] {
        expect(&live, name, &get(path, &headers), &[expected]).await;
    }
}
