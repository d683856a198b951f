//! Hostile HTTP/2 (H84), frame by frame. In every case the connection ends or the stream is refused, and the server goes on.

use super::serving::{Live, read_all};
use super::*;
use crate::http::HttpConfig;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `GET /v1/apps` with scheme and authority, by HPACK's static table and plain literals.
const REQUEST: &[u8] = b"\x82\x86\x04\x08/v1/apps\x41\x01x";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// Kinds and payloads of the frames in an answer.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while bytes.len() >= 9 {
        let len = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let end = bytes.len().min(9 + len);
        found.push((bytes[3], bytes[9..end].to_vec()));
        bytes = &bytes[end..];
    }
    found
}

/// Sends everything; the server must end the connection, with GOAWAY unless it just closes.
async fn is_ended(live: &Live, name: &str, bytes: &[u8]) {
    let mut stream = live.connect().await;
    _ = stream.write_all(bytes).await;
    let answer = read_all(&mut stream).await;
    assert!(answer.is_some(), "{name}: the connection stays open");
}

#[tokio::test]
async fn h84_floods_end_the_connection() {
    let live = Live::start(HttpConfig::default());
    let request = |id: u32| frame(HEADERS, END_HEADERS | END_STREAM, id, REQUEST);
    let mut resets = opening();
    for i in 0..2_000u32 {
        resets.extend(request(2 * i + 1));
        resets.extend(frame(RST_STREAM, 0, 2 * i + 1, &8u32.to_be_bytes()));
    }
    let mut continuations = opening();
    continuations.extend(frame(HEADERS, END_STREAM, 1, REQUEST));
    for _ in 0..2_000 {
        // A field that the decoder has to keep: literal, new name.
        continuations.extend(frame(CONTINUATION, 0, 1, &[&b"\x00\x01a\x7f\x00"[..], &[b'x'; 127]].concat()));
    }
    let large = [opening(), frame(DATA, 0, 1, &[0; 16_385])].concat();
    let hpack =
        [opening(), frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\xff\xff\xff\xff")].concat();
    let window = [opening(), frame(8, 0, 0, &0u32.to_be_bytes())].concat();
    let backwards = [opening(), request(5), request(3)].concat();
    let push = [opening(), frame(5, END_HEADERS, 1, b"\0\0\0\x02\x82")].concat();
    for (name, bytes) in [
        ("rapid reset", resets),
        ("CONTINUATION flood", continuations),
        ("frame above the maximum", large),
        ("broken HPACK", hpack),
        ("window of 0", window),
        ("stream ids going back", backwards),
        ("PUSH_PROMISE by a client", push),
        ("preface cut", PREFACE[..20].iter().chain(b"xxxxxxxxxxxxxxxxxxx").copied().collect()),
    ] {
        is_ended(&live, name, &bytes).await;
        assert!(live.is_well().await, "after {name}");
    }
}

/// Reads until a frame of this kind comes.
async fn read_until(stream: &mut tokio::net::TcpStream, kinds: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    let reading = async {
        loop {
            let n = stream.read(&mut part).await.unwrap_or(0);
            bytes.extend_from_slice(&part[..n]);
            if n == 0 || frames(&bytes).iter().any(|(kind, _)| kinds.contains(kind)) {
                return frames(&bytes);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("an answer")
}

#[tokio::test]
async fn h84_requests_that_are_malformed_end_their_stream_or_more() {
    let live = Live::start(HttpConfig::default());
    let connection = b"\x00\x0aconnection\x0akeep-alive";
    for (name, head) in [
        ("a pseudo header twice", [REQUEST, b"\x82"].concat()),
        ("connection field", [REQUEST, connection].concat()),
        ("no path", b"\x82\x86\x41\x01x".to_vec()),
        ("upper-case name", [REQUEST, b"\x00\x01A\x01x"].concat()),
    ] {
        let mut stream = live.connect().await;
        let bytes = [opening(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)].concat();
        stream.write_all(&bytes).await.unwrap();
        let answer = read_until(&mut stream, &[RST_STREAM, GOAWAY, HEADERS]).await;
        // An answer is fine only where it is a refusal: the first byte is the status, 400 is number 12 of the table.
        let refused = answer.iter().any(|(kind, payload)| match *kind {
            RST_STREAM | GOAWAY => true,
            HEADERS => payload.first() == Some(&0x8c),
            _ => false,
        });
        assert!(refused, "{name}: {answer:?}");
    }
    assert!(live.is_well().await);
}

#[tokio::test]
async fn h84_an_idle_connection_is_sent_away_whatever_it_chats() {
    let idle = Duration::from_millis(300);
    let live = Live::start(HttpConfig { idle_max: idle, head_time_max: idle, ..HttpConfig::default() });
    let mut stream = live.connect().await;
    stream.write_all(&opening()).await.unwrap();
    let chat = async {
        while stream.write_all(&frame(PING, 0, 0, &[0; 8])).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), chat).await.expect("the connection is ended");
}

/// SETTINGS_INITIAL_WINDOW_SIZE = 0 (RFC 9113 §6.5.2): answers get their heads out and nothing else.
#[tokio::test]
async fn h84_a_peer_that_grants_no_window_does_not_hold_its_answers_for_ever() {
    let short = Duration::from_millis(300);
    let live = Live::start(HttpConfig { write_stall_max: short, ..HttpConfig::default() });
    let mut stream = live.connect().await;
    let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0")].concat();
    for i in 0..50u32 {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, REQUEST));
    }
    stream.write_all(&bytes).await.unwrap();
    let answer = read_all(&mut stream).await.expect("the connection is ended");
    assert!(frames(&answer).iter().any(|(kind, _)| *kind == HEADERS), "requests were answered");
    assert!(live.is_well().await);
}

#[tokio::test]
async fn h84_empty_data_without_end_is_not_waited_for() {
    let limits = ApiLimits { body_grace: Duration::from_millis(300), ..ApiLimits::default() };
    let live = Live::of(World::with(limits, Limits::default()), HttpConfig::default());
    let mut stream = live.connect().await;
    // POST /v1/devices with an app's key, by plain literals.
    let mut head = b"\x83\x86\x04\x0b/v1/devices\x41\x01x\x0f\x10\x10application/json".to_vec();
    head.extend(b"\x0f\x08\x16Bearer default-app-key");
    stream.write_all(&[opening(), frame(HEADERS, END_HEADERS, 1, &head)].concat()).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let flood = async {
        loop {
            if writing.write_all(&frame(DATA, 0, 1, &[]).repeat(100)).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::task::yield_now().await;
        }
    };
    let mut seen = Vec::new();
    let answered = async {
        let mut part = [0; 4096];
        while !frames(&seen).iter().any(|(kind, _)| [HEADERS, GOAWAY, RST_STREAM].contains(kind)) {
            match reading.read(&mut part).await {
                Ok(n @ 1..) => seen.extend_from_slice(&part[..n]),
                _ => break,
            }
        }
    };
    let answered = tokio::time::timeout(Duration::from_secs(10), answered);
    tokio::select! { told = answered => told.expect("an answer or the end"), () = flood => {} }
    assert!(live.is_well().await);
}
