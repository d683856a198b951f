//! What ties requests to the log, and the page at `/`.

use super::World;
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::{Arc, Mutex};

async fn id_of(world: &World, asked: Option<&str>) -> String {
    let mut request = Request::builder().uri("/v1/devices");
    if let Some(asked) = asked {
        request = request.header("x-request-id", asked);
    }
    let (_, headers, _) = world.request(request.body(Body::empty()).unwrap()).await;
    headers["x-request-id"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_answer_has_an_id_of_its_own_or_the_callers_where_that_is_plain() {
    let world = World::new();
    let (first, second) = (id_of(&world, None).await, id_of(&world, None).await);
    assert_ne!(first, second);
    assert_eq!(id_of(&world, Some("edge-7:a.b/c")).await, "edge-7:a.b/c");
    for not_plain in ["", "two words", "a\"b", &"x".repeat(65)] {
        assert_ne!(id_of(&world, Some(not_plain)).await, not_plain);
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn at_debug_each_request_is_a_line_that_says_who_asked_and_what_came_of_it() {
    let world = World::new();
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    // Other tests may have met this place of the log first, when nobody listened.
    world.call("", "GET /v1/devices/d1", Value::Null).await;
    tracing::callsite::rebuild_interest_cache();
    lines.0.lock().unwrap().clear();
    let device = world.device("d1").await;
    world.call("default-read-key", "POST /v1/messages", json!({ "audience": "all" })).await;
    world.call(&device, "GET /v1/devices/d1?note=secret", Value::Null).await;
    world.call("", "GET /v1/devices/d1", Value::Null).await;
    drop(guard);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let logged: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["message"] == "request")
        .map(|line| json!([line["route"], line["status"], line["code"], line["app"], line["by"]]))
        .collect();
    for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        // An address, not how Rust would write one that may be missing.
        let peer = line["peer"].as_str().map(|peer| peer.parse::<std::net::SocketAddr>());
        assert!(matches!(peer, None | Some(Ok(_))) && !line.to_string().contains("Some("), "{line}");
    }
    let wanted = json!([
        ["/v1/devices", 201, null, "default", "id-of-default-app-key"],
        ["/v1/messages", 403, "not_allowed", "default", "id-of-default-read-key"],
        ["/v1/devices/{id}", 200, null, "default", "d1"],
        ["/v1/devices/{id}", 401, "missing_credentials", null, null],
    ]);
    assert_eq!(Value::from(logged), wanted, "{text}");
    let secret = device.split_once(':').unwrap().1;
    assert!(!text.contains(secret) && !text.contains("note="), "{text}");
}

#[tokio::test]
async fn the_first_page_says_that_the_server_runs_and_leads_on() {
    let world = World::new();
    let request = Request::builder().uri("/").body(Body::empty()).unwrap();
    let answer = tower::ServiceExt::oneshot(world.router.clone(), request).await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    let html = String::from_utf8(body.to_vec()).unwrap();
    assert!(html.contains(env!("CARGO_PKG_VERSION")));
    for link in html.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        let (status, _) = world.call("", &format!("GET {link}"), Value::Null).await;
        assert_eq!(status, 200, "{link}");
    }
}
