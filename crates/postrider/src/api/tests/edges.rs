//! The HTTP server at its edges: requests that would leave it with a body announced, `HEAD` on every
//! route, peers that close their side early, and heads with bare line feeds.

use super::serving::{Live, read_all};
use super::*;
use crate::api::auth::Peer;
use crate::api::routes;
use crate::http::HttpConfig;
use axum::http::Method;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Counts the sockets that leave, and drops them.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Door for Counting {
    fn reserve(&self, _: SocketAddr, _: bool) -> Result<Place, Full> {
        Ok(Place::of_nobody())
    }
    fn adopt(&self, _: std::net::TcpStream, _: Place, _: Speaks, _: bytes::Bytes) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn acknowledged(&self, _: ConnectionRef, _: Vec<u64>) {}
}

/// A live server with one device, which has a message waiting where `has_message` says so.
async fn live_with_device(has_message: bool) -> (Live, Arc<Counting>, String) {
    let world = World::new();
    let door = Arc::new(Counting::default());
    let api = Api { door: door.clone(), ..world.api.clone() };
    let world = World { router: router(api.clone()), api, ..world };
    let credentials = world.device("d1").await;
    if has_message {
        world.message_to("d1").await;
    }
    (Live::of(world, HttpConfig::default()), door, BASE64_STANDARD.encode(credentials))
}

/// Requests by which a socket leaves the HTTP server: line and headers.
fn roads(basic: &str) -> Vec<(&'static str, String)> {
    let device = format!("Authorization: Basic {basic}\r\n");
    let upgrade = |subprotocol: &str| {
        format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {subprotocol}\r\n"
        )
    };
    vec![
        ("/v1/inbox?wait=5", device.clone()),
        ("/v1/stream", device),
        ("/ws", upgrade("postrider.v1")),
        ("/mqtt", upgrade("mqtt")),
        ("/xmpp-websocket", upgrade("xmpp")),
        ("/_test/echo", upgrade("x")),
    ]
}

/// Sends a head and, behind it, what would be read as the next request by who forgets the body.
async fn smuggle(live: &Live, head: &str, announced: &str, body: &str) -> String {
    let mut stream = live.connect().await;
    stream.write_all(format!("{head}{announced}\r\n").as_bytes()).await.unwrap();
    // Apart from the head, as a proxy may send it: the head alone looks like a whole request.
    tokio::task::yield_now().await;
    _ = stream.write_all(body.as_bytes()).await;
    let answer = read_all(&mut stream).await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_request_that_announces_a_body_never_leaves_the_http_server() {
    let (live, door, basic) = live_with_device(false).await;
    let hidden = "DELETE /v1/devices/d1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer default-app-key\r\n\r\n";
    let length = format!("Content-Length: {}\r\n", hidden.len());
    let chunked = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    for (path, headers) in roads(&basic) {
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}");
        for (announced, body) in [
            (length.as_str(), hidden),
            ("Content-Length: 1\r\n", "x"),
            ("Transfer-Encoding: chunked\r\n", &*chunked),
            ("Transfer-Encoding: chunked\r\n", hidden),
            ("Content-Length: 3\r\nExpect: 100-continue\r\n", ""),
        ] {
            let answer = smuggle(&live, &head, announced, body).await;
            let case = format!("{path} {announced:?}: {answer}");
            assert!(answer.starts_with("HTTP/1.1 400 "), "{case}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{case}");
            assert!(answer.contains("connection: close"), "{case}");
        }
    }
    assert_eq!(door.0.load(Ordering::SeqCst), 0);
    assert!(live.world.api.engine.store.device_by_id(AppNo(0), "d1").is_some());
}

#[tokio::test]
async fn a_request_without_a_body_leaves_by_every_road() {
    let (live, door, basic) = live_with_device(false).await;
    for (n, (path, headers)) in roads(&basic).into_iter().enumerate() {
        for length in ["", "Content-Length: 0\r\n"] {
            let mut stream = live.connect().await;
            let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}{length}\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            assert!(read_all(&mut stream).await.is_some(), "{path}: the door drops it");
        }
        let left = async {
            while door.0.load(Ordering::SeqCst) < 2 * (n + 1) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), left).await.expect(path);
    }
}

/// The path with something in place of each parameter.
fn filled(path: &str) -> String {
    let mut filled = path.replace("{file}", "index.html").replace("{device}", "d1");
    if path.starts_with("/v1/devices") {
        filled = filled.replace("{id}", "d1");
    }
    for (name, value) in [("{id}", "default"), ("{topic}", "t"), ("{tag}", "t"), ("{key}", "k")] {
        filled = filled.replace(name, value);
    }
    filled
}

/// What somebody's reading changes on the server, where it changes anything.
fn traces(live: &Live) -> (u64, bool, usize) {
    let api = &live.world.api;
    let at = api.engine.store.device_by_id(AppNo(0), "d1").unwrap();
    let events = api.engine.store.events(AppNo(0), 0, 1_000).unwrap();
    (events.next, api.engine.is_connected(at), api.polls_waiting())
}

#[tokio::test]
async fn head_opens_nothing_and_has_no_body_on_every_route() {
    let (live, door, basic) = live_with_device(true).await;
    let before = traces(&live);
    let callers = [
        String::new(),
        "Authorization: Bearer default-app-key\r\n".to_owned(),
        format!("Authorization: Bearer {ADMIN_KEY}\r\n"),
        format!("Authorization: Basic {basic}\r\n"),
    ];
    let upgrade = roads(&basic).into_iter().find(|(path, _)| *path == "/ws").unwrap().1;
    let mut lines: Vec<String> = routes().iter().map(|route| filled(route.path)).collect();
    lines.dedup();
    lines.extend(
        ["/v1/inbox?wait=5", "/v1/events?wait=5", "/nowhere", "/notification.do?action=send&title=x"]
            .map(String::from),
    );
    let mut seen = 0;
    for path in &lines {
        for caller in &callers {
            for more in ["", &upgrade] {
                let request =
                    format!("HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{caller}{more}\r\n");
                let answer = live.talk(request.as_bytes()).await.expect(path);
                let case = format!("{request}→ {answer}");
                assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{case}");
                assert!(answer.ends_with("\r\n\r\n") && !answer.contains("\r\n\r\n{"), "{case}");
                assert!(!answer.starts_with("HTTP/1.1 101 "), "{case}");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, lines.len() * 8);
    assert_eq!(door.0.load(Ordering::SeqCst), 0, "no socket left the HTTP server");
    assert_eq!(traces(&live), before, "nothing was sent, received, connected or waited for");
}

#[tokio::test]
async fn head_says_what_get_would() {
    let (live, _, basic) = live_with_device(true).await;
    for (path, expected) in [
        ("/v1/stream", "text/event-stream"),
        ("/v1/inbox", "application/json"),
        ("/v1/inbox?wait=5", "application/json"),
    ] {
        let request = format!(
            "HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Basic {basic}\r\n\r\n"
        );
        let answer = live.talk(request.as_bytes()).await.expect(path);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains(&format!("content-type: {expected}\r\n")), "{answer}");
    }
    let get = |method: &str| {
        format!("{method} /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes()
    };
    let length = |answer: &str| {
        let line = answer.lines().find(|line| line.starts_with("content-length: ")).map(str::to_owned);
        line.expect("a length")
    };
    let (whole, head) = (live.talk(&get("GET")).await.unwrap(), live.talk(&get("HEAD")).await.unwrap());
    assert_eq!(length(&whole), length(&head));
}

#[tokio::test]
async fn http_2_answers_to_head_have_no_body_either() {
    let world = World::new();
    for route in routes().iter().filter(|route| route.method == Method::GET) {
        let request =
            Request::builder().method("HEAD").uri(filled(route.path)).version(axum::http::Version::HTTP_2);
        let request = request.header("authorization", "Bearer default-app-key").body(Body::empty()).unwrap();
        let kind = crate::http::Kind::of(&request, true);
        let mut response = world.router.clone().oneshot(request).await.unwrap();
        kind.fit(&mut response, true);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(body.is_empty(), "{}: {body:?}", route.path);
    }
}

#[tokio::test]
async fn a_request_whose_sender_has_closed_its_side_is_answered() {
    let (live, _, _) = live_with_device(false).await;
    let body = r#"{"audience":{"tag":"nobody"},"data":1}"#;
    let auth = "Host: x\r\nAuthorization: Bearer default-app-key\r\n";
    let post = format!(
        "POST /v1/messages HTTP/1.1\r\n{auth}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let get = format!("GET /v1/devices HTTP/1.1\r\n{auth}\r\n");
    // One that waits is answered at once instead: nobody may be left to hear it later.
    let wait = format!("GET /v1/events?wait=60 HTTP/1.1\r\n{auth}\r\n");
    for (request, status) in [(&post, "202"), (&get, "200"), (&wait, "200")] {
        for _ in 0..20 {
            let mut stream = live.connect().await;
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let answer = read_all(&mut stream).await.expect("the connection ends");
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}→ {answer}");
        }
    }
    assert_eq!(live.world.api.polls_waiting(), 0);
}

#[tokio::test]
async fn a_head_with_a_bare_line_feed_is_refused_and_the_connection_ends() {
    let live = Live::start(HttpConfig::default());
    let next = "GET /v1/apps HTTP/1.1\r\nHost: x\r\n\r\n";
    for head in [
        "GET /openapi.json HTTP/1.1\nHost: x\n\n",
        "GET /openapi.json HTTP/1.1\r\nHost: x\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n",
        "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\n",
    ] {
        let answer = live.talk(format!("{head}{next}").as_bytes()).await.expect("the connection ends");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head:?}: {answer}");
    }
    // However it comes: behind another request, with its body, in one piece with them.
    let bad = "GET /openapi.json HTTP/1.1\r\nHost: x\nX: a\r\n\r\n";
    let post = "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\n\n{}";
    let answer = live.talk(format!("{next}{post}{bad}{next}").as_bytes()).await.expect("the connection ends");
    let told: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(told, ["401", "401", "400"], "{answer}");
    // In a body they are just bytes.
    let body = "{\n\"audience\":\n\"all\"\n\n}";
    let request = format!(
        "POST /v1/messages/estimate HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Authorization: Bearer default-app-key\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = live.talk(request.as_bytes()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn an_answer_before_the_body_is_read_says_whether_the_connection_goes_on() {
    let live = Live::start(HttpConfig::default());
    let post = |headers: &str| {
        format!("POST /v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n{headers}\r\n")
    };
    let next = "GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    // The body is there already: it is read, and the next request is the next request.
    let answer = live.talk(format!("{}{{}}{next}", post("Content-Length: 2\r\n")).as_bytes()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("HTTP/1.1 200 "), "{answer:.300}");
    // It is not: whoever shares the connection is told that it ends.
    for headers in ["Content-Length: 2\r\n", "Content-Length: 2\r\nExpect: 100-continue\r\n"] {
        let answer = live.talk(post(headers).as_bytes()).await.expect("the connection ends");
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert!(answer.contains("connection: close"), "{headers:?}: {answer}");
    }
    // Too much to read for nothing.
    let long = "x".repeat(200_000);
    let request = format!("{}{long}", post("Content-Length: 200000\r\n"));
    let answer = live.talk(request.as_bytes()).await.expect("the connection ends");
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("connection: close"), "{answer:.300}");
}

/// Sends a body as it stands.
async fn raw_call(world: &World, line: &str, by: &str, kind: Option<&str>, body: &str) -> (u16, Value) {
    let (method, path) = line.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(path).header("authorization", by);
    if let Some(kind) = kind {
        request = request.header("content-type", kind);
    }
    let (status, _, answer) = world.request(request.body(Body::from(body.to_owned())).unwrap()).await;
    (status.as_u16(), answer)
}

const KEY: &str = "Bearer default-app-key";

#[tokio::test]
async fn a_body_that_is_no_object_is_refused_by_every_call() {
    let world = World::new();
    let device = world.device("d1").await;
    let described: Value = serde_json::from_str(&crate::api::openapi::text()).unwrap();
    let mut calls = 0;
    for (path, operations) in described["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            if operation["requestBody"]["content"]["application/json"].is_null() {
                continue;
            }
            let line = format!("{} {}", method.to_uppercase(), filled(path));
            for body in ["[]", "[null]", r#"["a","b",null,[],{},{}]"#, "\"x\"", "1", "true", "null"] {
                for by in [KEY.to_owned(), format!("Bearer {ADMIN_KEY}"), format!("Bearer {device}")] {
                    let (status, answer) = raw_call(&world, &line, &by, Some("application/json"), body).await;
                    assert!([400, 403].contains(&status), "{line} {body}: {status} {answer}");
                }
            }
            calls += 1;
        }
    }
    assert!(calls > 10, "{calls}");
    // Inside of a body, too.
    let (status, answer) = raw_call(
        &world,
        "POST /v1/messages",
        KEY,
        Some("application/json"),
        r#"{"audience":"all","notification":["t"]}"#,
    )
    .await;
    assert_eq!((status, &answer["error"]["field"]), (400, &json!("/notification")), "{answer}");
    let batch = r#"{"messages":[["all"],{"audience":"all","data":1}]}"#;
    let (status, answer) =
        raw_call(&world, "POST /v1/messages/batch", KEY, Some("application/json"), batch).await;
    assert_eq!((status, code(&answer["results"][0])), (200, "invalid_field"), "{answer}");
    assert!(answer["results"][1]["message_id"].is_string(), "{answer}");
}

#[tokio::test]
async fn data_reaches_the_device_as_it_was_written() {
    let world = World::new();
    let device = world.device("d1").await;
    let data = r#"{"pi":3.14159265358979323846,"sum":123456789012345678901234567890.5,"tiny":1e-400,"zero":-0,"one":1.0,"e":1E+2}"#;
    let spaced = data.replace(':', " : ").replace(',', ",\n\t");
    let one = format!(r#"{{"audience":{{"device":"d1"}},"data":{spaced}}}"#);
    let (status, answer) = raw_call(&world, "POST /v1/messages", KEY, Some("application/json"), &one).await;
    assert_eq!(status, 202, "{answer}");
    // One of the batch is wrong, so that each is read by itself.
    let batch = format!(r#"{{"messages":[{one},{{"audience":"nobody"}}]}}"#);
    let (status, answer) =
        raw_call(&world, "POST /v1/messages/batch", KEY, Some("application/json"), &batch).await;
    assert_eq!(status, 200, "{answer}");
    let own = format!(r#"{{"data":{spaced}}}"#);
    let by = format!("Bearer {device}");
    assert_eq!(raw_call(&world, "POST /demo/push", &by, Some("application/json"), &own).await.0, 202);
    let mut request = Request::get("/v1/inbox").header("authorization", by).body(Body::empty()).unwrap();
    request.extensions_mut().insert(Peer(([192, 0, 2, 1], 1234).into()));
    let body =
        world.router.clone().oneshot(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(text.matches(&format!("\"data\":{data}")).count(), 3, "{text}");
    // What no number of ours holds is refused, in words.
    for number in ["18446744073709551616", "-9223372036854775809", "1e999"] {
        let body = format!(r#"{{"audience":"all","data":{number}}}"#);
        let (status, answer) =
            raw_call(&world, "POST /v1/messages", KEY, Some("application/json"), &body).await;
        assert_eq!((status, code(&answer)), (400, "invalid_json"), "{number}");
    }
}

#[tokio::test]
async fn a_repetition_may_write_its_keys_in_another_order() {
    let world = World::new();
    world.device("d1").await;
    let send = async |data: &str| {
        let body = format!(r#"{{"audience":{{"device":"d1"}},"data":{data},"idempotency_key":"k"}}"#);
        raw_call(&world, "POST /v1/messages", KEY, Some("application/json"), &body).await
    };
    let first = send(r#"{"a":1,"b":[2]}"#).await;
    let again = send(r#"{ "b": [2], "a": 1 }"#).await;
    assert_eq!((first.0, again.0), (202, 202));
    assert_eq!((&again.1["message_id"], &again.1["repeated"]), (&first.1["message_id"], &json!(true)));
    assert_eq!(send(r#"{"a":1,"b":[3]}"#).await.0, 409);
}

#[tokio::test]
async fn line_breaks_of_forms_are_accepted_and_other_control_characters_are_not() {
    let world = World::new();
    for (field, text, status) in [
        ("body", "a\nb", 202),
        ("body", "a\r\nb", 202),
        ("body", "a\rb", 202),
        ("body", "a\tb", 202),
        ("title", "a\r\nb", 202),
        ("title", "a\nb", 202),
        ("subtitle", "a\nb", 202),
        ("title", "a\tb", 400),
        ("body", "a\u{0}b", 400),
        ("body", "a\u{1b}b", 400),
        ("title", "a\u{7f}b", 400),
        ("body", "a\u{85}b", 400),
        ("click", "https://x\r\ny", 400),
        ("image", "https://x\ny", 400),
    ] {
        let message = json!({ "audience": "all", "notification": { field: text } });
        world.ok(status, "POST /v1/messages", message.clone()).await;
    }
    // Who tries the demo has the same bounds.
    let device = world.device("d1").await;
    let (status, answer) =
        world.call(&device, "POST /demo/push", json!({ "notification": { "title": "a\u{0}" } })).await;
    assert_eq!((status, code(&answer)), (400, "invalid_field"));
}

#[tokio::test]
async fn refused_credentials_and_types_say_what_to_send() {
    let world = World::new();
    for (by, wanted) in [
        ("default-app-key", "Bearer KEY"),
        ("Bearer ", "Bearer KEY"),
        ("bearer", "Bearer KEY"),
        ("Digest x", "Bearer KEY"),
    ] {
        let (status, answer) = raw_call(&world, "GET /v1/devices", by, None, "").await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.contains(wanted), "{by:?}: {message}");
    }
    let (_, answer) = world.call("", "GET /v1/devices", Value::Null).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("Bearer KEY"), "{answer}");
    for kind in [None, Some("application/x-www-form-urlencoded"), Some("text/plain")] {
        let (status, answer) = raw_call(&world, "POST /v1/messages", KEY, kind, "{}").await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(status == 415 && message.contains("Content-Type: application/json"), "{message}");
    }
}

#[tokio::test]
async fn pages_of_other_sites_register_no_visitor_of_the_demo() {
    let world = World::new();
    let status = async |headers: &[(&str, &str)]| {
        let mut request = Request::post("/demo/devices").header("host", "here");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        world.request(request.body(Body::from("{}")).unwrap()).await.0.as_u16()
    };
    let kind = ("content-type", "application/json");
    assert_eq!(status(&[kind]).await, 201);
    assert_eq!(status(&[kind, ("origin", "http://here")]).await, 201);
    assert_eq!(status(&[]).await, 415);
    assert_eq!(status(&[("content-type", "text/plain")]).await, 415);
    assert_eq!(status(&[kind, ("origin", "http://evil.example")]).await, 403);
    let request = Request::get("/demo").body(Body::empty()).unwrap();
    let (_, headers, _) = world.request(request).await;
    assert!(!headers["content-security-policy"].to_str().unwrap().contains("https:"));
}

#[tokio::test]
async fn a_pull_with_what_is_there_in_a_weak_tag_or_a_list_is_not_modified() {
    let world = World::new();
    let device = world.device("d1").await;
    world.message_to("d1").await;
    let pull = async |known: Option<&str>| {
        let mut request = Request::get("/v1/inbox").header("authorization", format!("Bearer {device}"));
        if let Some(known) = known {
            request = request.header("if-none-match", known);
        }
        let (status, headers, _) = world.request(request.body(Body::empty()).unwrap()).await;
        (status.as_u16(), headers["etag"].to_str().unwrap().to_owned())
    };
    let (status, tag) = pull(None).await;
    assert_eq!(status, 200);
    for known in [tag.clone(), format!("W/{tag}"), format!("\"y\", W/{tag}"), "*".into()] {
        assert_eq!(pull(Some(&known)).await, (304, tag.clone()), "{known}");
    }
    assert_eq!(pull(Some("\"y\"")).await.0, 200);
}
