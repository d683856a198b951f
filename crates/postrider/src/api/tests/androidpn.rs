//! What app servers of androidpn's console send, as they send it.

use super::*;
use crate::api::auth::Peer;
use serde_json::json;

const FORM: &str = "application/x-www-form-urlencoded";

fn post(line: &str, form: &str) -> axum::http::request::Builder {
    assert!(form.is_ascii());
    Request::post(line).header("content-type", FORM)
}

fn from_here(mut request: Request<Body>) -> Request<Body> {
    request.extensions_mut().insert(Peer(([127, 0, 0, 1], 1234).into()));
    request
}

fn keyless() -> World {
    World::with(ApiLimits { androidpn_keyless: true, ..ApiLimits::default() }, Limits::default())
}

#[tokio::test]
async fn a_form_sends_to_one_or_to_all_and_leads_back() {
    let world = World::new();
    world.device("d1").await;
    world.device("d2").await;
    let form =
        "broadcast=N&username=d1&title=T%26t&message=M+m&uri=http%3A%2F%2Fx%2F&apiKey=default-send-key";
    let request = post("/notification.do?action=send", form).body(Body::from(form)).unwrap();
    let (status, headers, _) = world.request(request).await;
    assert_eq!((status.as_u16(), headers["location"].as_bytes()), (302, &b"notification.do"[..]));
    let sent = world.ok(200, "GET /v1/messages", Value::Null).await;
    assert_eq!(sent["messages"][0]["targeted"], 1);

    let form = "action=send&title=all&message=&uri=";
    let request = post("/notification_api.do", form).header("authorization", "Bearer default-app-key");
    let (status, _, answer) = world.request(request.body(Body::from(form)).unwrap()).await;
    assert_eq!(
        (status.as_u16(), &answer["result"], &answer["description"]),
        (200, &json!("0"), &json!("success"))
    );
    let sent = world.ok(200, "GET /v1/messages", Value::Null).await;
    assert_eq!(sent["messages"][0]["targeted"], 2);

    let users = world.ok(200, "GET /user_api.do", Value::Null).await;
    assert_eq!(users["users"].as_array().map(Vec::len), Some(2), "{users}");
    assert_eq!(world.ok(200, "GET /session.do", Value::Null).await["users"], json!([]));
    world.connect("d2");
    let online = world.ok(200, "GET /session.do", Value::Null).await;
    assert_eq!(online["users"][0]["username"], "d2");
}

#[tokio::test]
async fn what_is_not_understood_is_refused() {
    let world = World::new();
    for (line, form, key, status) in [
        ("/notification.do?action=send", "broadcast=N", "default-app-key", 400),
        ("/notification.do?action=send", "broadcast=N&username=nobody&title=t", "default-app-key", 422),
        ("/notification_api.do", "title=t", "default-app-key", 400),
        ("/notification_api.do?action=send", "title=t", "default-read-key", 403),
        ("/notification_api.do?action=send&apiKey=default-app-key", "title=t", "default-app-key", 400),
    ] {
        let request = post(line, form).header("authorization", format!("Bearer {key}"));
        let (got, _, answer) = world.request(request.body(Body::from(form)).unwrap()).await;
        assert_eq!(got.as_u16(), status, "{line} {form}: {answer}");
    }
    // A key in a query would be in every log.
    let request = Request::get("/notification.do?action=send&title=t&apiKey=default-app-key");
    let (status, _, answer) = world.request(request.body(Body::empty()).unwrap()).await;
    assert_eq!((status.as_u16(), code(&answer)), (400, "credentials_in_query"));
}

#[tokio::test]
async fn no_key_is_needed_from_this_machine_itself_where_the_operator_says_so() {
    let send = || {
        let request = Request::post("/notification_api.do?action=send&title=t");
        request.header("content-type", FORM).header("host", "localhost:8080")
    };
    let status = async |world: &World, request| world.request(request).await.0.as_u16();
    let plain = || send().body(Body::empty()).unwrap();
    assert_eq!(status(&World::new(), from_here(plain())).await, 401);
    let world = keyless();
    assert_eq!(status(&world, from_here(plain())).await, 200);
    assert_eq!(status(&world, plain()).await, 401, "another machine");
    for (name, value) in [
        ("x-forwarded-for", "192.0.2.1"),
        ("origin", "https://evil.example"),
        ("sec-fetch-site", "cross-site"),
    ] {
        let request = send().header(name, value).body(Body::empty()).unwrap();
        assert_eq!(status(&world, from_here(request)).await, 401, "{name}");
    }
    let wrong = send().header("authorization", "Bearer wrong").body(Body::empty()).unwrap();
    assert_eq!(status(&world, from_here(wrong)).await, 401);
}

#[tokio::test]
async fn without_a_key_the_host_is_loopback_and_only_a_form_sends() {
    let world = keyless();
    let status = async |method: &str, line: &str, headers: &[(&str, &str)]| {
        let mut request = Request::builder().method(method).uri(line);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        world.request(from_here(request.body(Body::empty()).unwrap())).await.0.as_u16()
    };
    let send = "/notification_api.do?action=send&title=t";
    let form = ("content-type", FORM);
    for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.5.5.5:80", "[::1]:8080"] {
        assert_eq!(status("POST", send, &[("host", host), form]).await, 200, "{host}");
        assert_eq!(status("GET", "/user.do", &[("host", host)]).await, 200, "{host}");
    }
    // A page whose name leads here (DNS rebinding) is of the same origin as its own requests.
    for host in
        ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.0.2.1", "", "a@localhost:x"]
    {
        let rebound =
            [("host", host), form, ("origin", "http://evil.example"), ("sec-fetch-site", "same-origin")];
        assert_eq!(status("POST", send, &rebound).await, 401, "{host}");
        assert_eq!(status("POST", send, &rebound[..2]).await, 401, "{host}");
        assert_eq!(status("GET", "/user.do", &[("host", host)]).await, 401, "{host}");
    }
    // A picture's `GET`, and what any page may send without asking.
    let host = ("host", "localhost");
    assert_eq!(status("GET", send, &[host]).await, 401);
    assert_eq!(status("POST", send, &[host]).await, 401);
    assert_eq!(status("POST", send, &[host, ("content-type", "text/plain")]).await, 415);
    // What proxies in front give themselves away by.
    for (name, value) in [("via", "1.1 x"), ("forwarded", "for=x"), ("x-forwarded-proto", "https")] {
        assert_eq!(status("POST", send, &[host, form, (name, value)]).await, 401, "{name}");
    }
    let mut old = from_here(
        Request::post(send)
            .header("host", "localhost")
            .header("content-type", FORM)
            .body(Body::empty())
            .unwrap(),
    );
    *old.version_mut() = axum::http::Version::HTTP_10;
    assert_eq!(world.request(old).await.0.as_u16(), 401, "nginx speaks HTTP/1.0 where it is not told");
}

#[tokio::test]
async fn a_long_form_needs_its_key_in_the_header() {
    let world = World::new();
    let form = format!("action=send&title=t&message={}&apiKey=default-app-key", "x".repeat(17 * 1024));
    let request = || Request::post("/notification_api.do").header("content-type", FORM);
    let (status, _, answer) = world.request(request().body(Body::from(form.clone())).unwrap()).await;
    assert_eq!((status.as_u16(), code(&answer)), (413, "body_too_large"));
    let keyed = request().header("authorization", "Bearer default-app-key");
    let (status, _, _) = world.request(keyed.body(Body::from(form.clone())).unwrap()).await;
    assert_eq!(status.as_u16(), 200);
    // A wrong key is told before the body is looked at.
    let wrong = request().header("authorization", "Bearer wrong").header("content-length", "1000000000");
    let (status, _, _) = world.request(wrong.body(Body::empty()).unwrap()).await;
    assert_eq!(status.as_u16(), 401);
}

#[tokio::test]
async fn a_form_with_control_characters_is_refused() {
    let world = World::new();
    for (message, status) in [("a%0D%0Ab", 200), ("a%00b", 400), ("a%1Bb", 400)] {
        let form = format!("action=send&title=t&message={message}");
        let request = Request::post("/notification_api.do").header("content-type", FORM);
        let request =
            request.header("authorization", "Bearer default-app-key").body(Body::from(form)).unwrap();
        assert_eq!(world.request(request).await.0.as_u16(), status, "{message}");
    }
}

#[tokio::test]
async fn it_is_not_there_unless_it_is_switched_on() {
    let world = World::with_exactly(ApiLimits::default(), Limits::default());
    let (status, answer) = world.call("default-app-key", "GET /user.do", Value::Null).await;
    assert_eq!((status, code(&answer)), (404, "no_such_route"));
}
