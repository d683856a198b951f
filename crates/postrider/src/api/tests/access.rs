//! Who may call what: every route with every kind of credentials.

use super::*;
use crate::api::auth::Needs;
use crate::api::routes;
use crate::tokens::Proof;

/// Whom a route serves, said here once more and independently of the code.
#[derive(Clone, Copy, PartialEq)]
enum Serves {
    Anybody,
    Admin,
    Send,
    Read,
    Manage,
    ManageOrSelf,
    /// The same; a device shows its secret.
    ManageOrSecret,
    /// A device only where the setting `access.own_alias_and_tags` is on.
    ManageOrTrustedSelf,
    ReadOrSelf,
    Device,
    /// Each device for itself, and nobody names one.
    AnyDevice,
    /// The device that the message is for, also by a ticket.
    Receiver,
    /// Each device for itself, also by a ticket, and nobody names one.
    AnyReader,
    /// The device that the path names, also by a ticket.
    ThatReader,
    Register,
}

/// Route, whom it serves, the path for the test, its body, the status of success.
type Row = (&'static str, Serves, &'static str, &'static str, u16);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("POST /v1/devices", Serves::Register, "/v1/devices", r#"{"platform":"ios"}"#, 201),
    ("GET /v1/devices", Serves::Read, "/v1/devices", "", 200),
    ("GET /v1/devices/{id}", Serves::ReadOrSelf, "/v1/devices/d1", "", 200),
    ("PATCH /v1/devices/{id}", Serves::ManageOrSelf, "/v1/devices/d1", r#"{"platform":"web"}"#, 200),
    ("DELETE /v1/devices/{id}", Serves::ManageOrSelf, "/v1/devices/d1", "", 204),
    ("POST /v1/devices/{id}/secret", Serves::ManageOrSecret, "/v1/devices/d1/secret", "", 200),
    ("PUT /v1/devices/{id}/tags/{tag}", Serves::ManageOrTrustedSelf, "/v1/devices/d1/tags/x", "", 204),
    ("DELETE /v1/devices/{id}/tags/{tag}", Serves::ManageOrTrustedSelf, "/v1/devices/d1/tags/x", "", 204),
    ("PUT /v1/devices/{id}/alias", Serves::ManageOrTrustedSelf, "/v1/devices/d1/alias", r#"{"alias":"ann"}"#, 204),
    ("DELETE /v1/devices/{id}/alias", Serves::ManageOrTrustedSelf, "/v1/devices/d1/alias", "", 204),
    ("DELETE /v1/devices/{id}/inbox", Serves::ManageOrSelf, "/v1/devices/d1/inbox", "", 200),
    ("POST /v1/devices/prune", Serves::Manage, "/v1/devices/prune", r#"{"unseen_secs":86400}"#, 200),
    ("POST /v1/messages", Serves::Send, "/v1/messages", r#"{"audience":"all","data":1}"#, 202),
    ("GET /v1/messages", Serves::Read, "/v1/messages", "", 200),
    ("POST /v1/messages/batch", Serves::Send, "/v1/messages/batch", r#"{"messages":[{"audience":"all","data":1}]}"#, 200),
    ("POST /v1/messages/estimate", Serves::Read, "/v1/messages/estimate", r#"{"audience":"all"}"#, 200),
    ("GET /v1/messages/{id}", Serves::Read, "/v1/messages/MESSAGE", "", 200),
    ("DELETE /v1/messages/{id}", Serves::Send, "/v1/messages/MESSAGE", "", 200),
    ("GET /v1/messages/{id}/deliveries", Serves::Read, "/v1/messages/MESSAGE/deliveries", "", 200),
    ("GET /v1/messages/{id}/deliveries/{device}", Serves::Read, "/v1/messages/MESSAGE/deliveries/d1", "", 200),
    ("POST /v1/messages/{id}/receipts", Serves::Receiver, "/v1/messages/MESSAGE/receipts", r#"{"step":"displayed"}"#, 200),
    ("GET /v1/events", Serves::Read, "/v1/events", "", 200),
    ("GET /v1/webhooks", Serves::Read, "/v1/webhooks", "", 200),
    ("PUT /v1/webhooks/{id}", Serves::Manage, "/v1/webhooks/w1", r#"{"url":"https://a.example/"}"#, 200),
    ("GET /v1/webhooks/{id}", Serves::Read, "/v1/webhooks/HOOK", "", 200),
    ("DELETE /v1/webhooks/{id}", Serves::Manage, "/v1/webhooks/HOOK", "", 204),
    ("POST /v1/webhooks/{id}/test", Serves::Manage, "/v1/webhooks/HOOK/test", "", 200),
    ("POST /v1/webhooks/{id}/secret", Serves::Manage, "/v1/webhooks/HOOK/secret", "", 200),
    ("POST /v1/webhooks/{id}/replay", Serves::Manage, "/v1/webhooks/HOOK/replay", r#"{"from":"0"}"#, 200),
    ("GET /v1/webhooks/{id}/failures", Serves::Read, "/v1/webhooks/HOOK/failures", "", 200),
    ("GET /v1/topics", Serves::Read, "/v1/topics?topic=a/b", "", 200),
    ("POST /v1/topics/publish", Serves::Send, "/v1/topics/publish", r#"{"topic":"a/b","payload_text":"x"}"#, 202),
    ("GET /v1/topics/publish", Serves::Read, "/v1/topics/publish", "", 200),
    ("GET /v1/topics/{topic}", Serves::Read, "/v1/topics/a%2Fb", "", 200),
    ("POST /v1/topics/{topic}/publish", Serves::Send, "/v1/topics/a%2Fb/publish", r#"{"payload_text":"x"}"#, 202),
    ("POST /v1/apps", Serves::Admin, "/v1/apps", r#"{"id":"third"}"#, 201),
    ("GET /v1/apps", Serves::Admin, "/v1/apps", "", 200),
    ("GET /v1/apps/{id}", Serves::Admin, "/v1/apps/default", "", 200),
    ("PATCH /v1/apps/{id}", Serves::Admin, "/v1/apps/other", r#"{"name":"x"}"#, 200),
    ("DELETE /v1/apps/{id}", Serves::Admin, "/v1/apps/other", "", 204),
    ("POST /v1/apps/{id}/keys", Serves::Admin, "/v1/apps/default/keys", r#"{"scope":"read"}"#, 201),
    ("GET /v1/apps/{id}/keys", Serves::Admin, "/v1/apps/default/keys", "", 200),
    ("DELETE /v1/apps/{id}/keys/{key}", Serves::Admin, "/v1/apps/default/keys/id-of-default-read-key", "", 204),
    ("POST /v1/admin/audit", Serves::Admin, "/v1/admin/audit", "", 200),
    ("GET /v1/admin/jobs", Serves::Admin, "/v1/admin/jobs", "", 200),
    ("POST /v1/admin/jobs/{id}/retry", Serves::Admin, "/v1/admin/jobs/1/retry", "", 204),
    ("POST /v1/devices/{id}/tickets", Serves::ThatReader, "/v1/devices/d1/tickets", "", 201),
    ("GET /v1/inbox", Serves::AnyReader, "/v1/inbox", "", 200),
    ("POST /v1/inbox/acks", Serves::AnyReader, "/v1/inbox/acks", r#"{"deliveries":["1"]}"#, 200),
    ("GET /v1/stream", Serves::AnyReader, "/v1/stream", "", 200),
    ("POST /v1/stream/acks", Serves::AnyReader, "/v1/stream/acks", r#"{"deliveries":["1"]}"#, 200),
    ("POST /notification.do", Serves::Send, "/notification.do?action=send&title=t", "", 302),
    ("GET /notification.do", Serves::Send, "/notification.do?action=send&title=t", "", 302),
    ("POST /notification_api.do", Serves::Send, "/notification_api.do?action=send&title=t", "", 200),
    ("GET /notification_api.do", Serves::Send, "/notification_api.do?action=send&title=t", "", 200),
    ("GET /user.do", Serves::Read, "/user.do", "", 200),
    ("GET /user_api.do", Serves::Read, "/user_api.do", "", 200),
    ("GET /session.do", Serves::Read, "/session.do", "", 200),
    ("GET /", Serves::Anybody, "/", "", 200),
    ("GET /sdk/{file}", Serves::Anybody, "/sdk/postrider.js", "", 200),
    ("GET /demo", Serves::Anybody, "/demo", "", 200),
    ("GET /demo/{file}", Serves::Anybody, "/demo/index.html", "", 200),
    ("POST /demo/devices", Serves::Anybody, "/demo/devices", "{}", 201),
    ("POST /demo/push", Serves::AnyDevice, "/demo/push", r#"{"data":1}"#, 202),
    ("GET /demo/messages/{id}", Serves::Device, "/demo/messages/MESSAGE", "", 200),
    ("GET /docs/errors", Serves::Anybody, "/docs/errors", "", 200),
    ("GET /openapi.json", Serves::Anybody, "/openapi.json", "", 200),
    // Not a WebSocket handshake, and no other credentials than MQTT's own.
    ("GET /mqtt", Serves::Anybody, "/mqtt", "", 400),
    ("GET /ws", Serves::Anybody, "/ws", "", 400),
    ("GET /xmpp-websocket", Serves::Anybody, "/xmpp-websocket", "", 400),
    ("GET /_test/echo", Serves::Anybody, "/_test/echo", "", 400),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Nobody,
    WrongKey,
    RevokedKey,
    AppKey,
    SendKey,
    ReadKey,
    RegisterKey,
    OtherAppsKey,
    Device,
    Jwt,
    Ticket,
    /// What a WebSocket is told to come back with.
    ResumeToken,
    OtherDevice,
    OthersTicket,
    WrongSecret,
    Admin,
}

const CALLERS: [By; 16] = [
    By::Nobody,
    By::WrongKey,
    By::RevokedKey,
    By::AppKey,
    By::SendKey,
    By::ReadKey,
    By::RegisterKey,
    By::OtherAppsKey,
    By::Device,
    By::Jwt,
    By::Ticket,
    By::ResumeToken,
    By::OtherDevice,
    By::OthersTicket,
    By::WrongSecret,
    By::Admin,
];

/// What the matrix says: `None` stands for success.
fn refusal(serves: Serves, by: By, path: &str) -> Option<(u16, &'static str)> {
    let names_something = ["/d1", "MESSAGE", "/HOOK"].iter().any(|name| path.contains(name));
    let not_found = match path {
        path if path.contains("MESSAGE") => "no_such_message",
        path if path.contains("/HOOK") => "no_such_webhook",
        _ => "no_such_device",
    };
    let elsewhere = names_something.then_some((404, not_found));
    let forbidden = Some((403, "not_allowed"));
    match by {
        _ if serves == Serves::Anybody => None,
        By::Nobody => Some((401, "missing_credentials")),
        By::WrongKey | By::RevokedKey | By::WrongSecret => Some((401, "bad_credentials")),
        By::Admin => {
            if serves == Serves::Admin {
                None
            } else {
                forbidden
            }
        }
        _ if serves == Serves::Admin => forbidden,
        By::Device | By::Jwt => match serves {
            Serves::ManageOrSelf | Serves::ReadOrSelf | Serves::Device | Serves::AnyDevice => None,
            Serves::Receiver | Serves::AnyReader | Serves::ThatReader => None,
            Serves::ManageOrSecret if by == By::Device => None,
            _ => forbidden,
        },
        By::Ticket | By::ResumeToken => match serves {
            Serves::Receiver | Serves::AnyReader | Serves::ThatReader => None,
            _ => forbidden,
        },
        By::OtherDevice => match serves {
            Serves::Device | Serves::Receiver => Some((404, "no_such_message")),
            Serves::AnyDevice | Serves::AnyReader => None,
            _ => forbidden,
        },
        By::OthersTicket => match serves {
            Serves::Receiver => Some((404, "no_such_message")),
            Serves::AnyReader => None,
            _ => forbidden,
        },
        _ if matches!(serves, Serves::Device | Serves::AnyDevice) => forbidden,
        _ if matches!(serves, Serves::Receiver | Serves::AnyReader | Serves::ThatReader) => forbidden,
        By::RegisterKey if serves == Serves::Register => None,
        By::RegisterKey => forbidden,
        By::OtherAppsKey => elsewhere,
        By::AppKey => None,
        By::SendKey => match serves {
            Serves::ManageOrSelf | Serves::ManageOrSecret | Serves::ManageOrTrustedSelf => forbidden,
            Serves::Register | Serves::Manage => forbidden,
            _ => None,
        },
        By::ReadKey => match serves {
            Serves::Read | Serves::ReadOrSelf => None,
            _ => forbidden,
        },
    }
}

impl World {
    /// Registers both devices of the matrix; gives a message to the first.
    async fn message_to_new_device(&self, id: &str) -> String {
        self.device(id).await;
        self.message_to(id).await
    }

    /// What such a caller shows.
    async fn token_of(&self, by: By) -> String {
        let engine = &self.api.engine;
        let made = |id: &str, is_resume: bool| {
            let at = engine.store.device_by_id(AppNo(0), id).unwrap();
            let made = match is_resume {
                true => self.api.tokens.resume_token(engine, at, id, Proof::Secret),
                false => self.api.tokens.ticket(engine, at, id, Proof::Secret),
            };
            made.unwrap().0
        };
        match by {
            By::Nobody => String::new(),
            By::WrongKey => "prk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into(),
            By::RevokedKey => {
                let revoke = "DELETE /v1/apps/default/keys/id-of-default-send-key";
                assert_eq!(self.call(ADMIN_KEY, revoke, Value::Null).await.0, 204);
                "default-send-key".into()
            }
            By::AppKey => "default-app-key".into(),
            By::SendKey => "default-send-key".into(),
            By::ReadKey => "default-read-key".into(),
            By::RegisterKey => "default-register-key".into(),
            By::OtherAppsKey => "other-app-key".into(),
            By::Device => self.changed_secret("d1").await,
            By::Jwt => self.jwt(json!({ "sub": "d1" })),
            By::Ticket => made("d1", false),
            By::ResumeToken => made("d1", true),
            By::OtherDevice => self.device("d2").await,
            By::OthersTicket => {
                self.device("d2").await;
                made("d2", false)
            }
            By::WrongSecret => "d1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into(),
            By::Admin => ADMIN_KEY.into(),
        }
    }

    /// Gives the device a new secret; gives what it signs in with.
    async fn changed_secret(&self, id: &str) -> String {
        let made = self.ok(200, &format!("POST /v1/devices/{id}/secret"), Value::Null).await;
        format!("{id}:{}", made["device_secret"].as_str().unwrap())
    }
}

#[tokio::test]
async fn each_route_serves_whom_it_should_and_nobody_else() {
    for (route, serves, path, body, success) in ROWS {
        for by in CALLERS {
            // A world of its own for each, since many calls change something.
            let world = World::new();
            let message = world.message_to_new_device("d1").await;
            world.job(AppNo(0), 1);
            if path.contains("/HOOK") {
                world.ok(200, "PUT /v1/webhooks/HOOK", json!({ "url": "https://a.example/" })).await;
            }
            let token = world.token_of(by).await;
            let method = route.split(' ').next().unwrap();
            let line = format!("{method} {}", path.replace("MESSAGE", &message));
            let body = if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() };
            let (status, answer) = world.call(&token, &line, body).await;
            match refusal(*serves, by, path) {
                Some((refused, why)) => {
                    assert_eq!((status, code(&answer)), (refused, why), "{route} by {by:?}: {answer}");
                }
                None => assert_eq!(status, *success, "{route} by {by:?}: {answer}"),
            }
            if by == By::OtherAppsKey {
                assert!(!answer.to_string().contains("\"d1\""), "{route}: {answer}");
            }
        }
    }
}

#[test]
fn every_route_has_its_row() {
    let mut routes: Vec<_> = routes().into_iter().map(|r| format!("{} {}", r.method, r.path)).collect();
    let mut rows: Vec<_> = ROWS.iter().map(|row| row.0.to_owned()).collect();
    routes.sort();
    rows.sort();
    assert_eq!(routes, rows);
}

#[test]
fn the_document_says_whom_each_route_serves() {
    for (route, serves, ..) in ROWS {
        let needs = match serves {
            Serves::Anybody => None,
            Serves::Admin => Some(Needs::Admin),
            Serves::Send => Some(Needs::App(KeyScope::Send)),
            Serves::Read => Some(Needs::App(KeyScope::Read)),
            Serves::Manage => Some(Needs::App(KeyScope::App)),
            Serves::ManageOrSelf | Serves::ManageOrSecret | Serves::ManageOrTrustedSelf => {
                Some(Needs::AppOrDevice(KeyScope::App))
            }
            Serves::ReadOrSelf => Some(Needs::AppOrDevice(KeyScope::Read)),
            Serves::Device | Serves::AnyDevice => Some(Needs::Device),
            Serves::Receiver | Serves::AnyReader | Serves::ThatReader => Some(Needs::Reader),
            Serves::Register => Some(Needs::App(KeyScope::Register)),
        };
        assert_eq!(crate::api::openapi::said_needs(route), needs, "{route}");
    }
}

#[tokio::test]
async fn unknown_and_wrong_and_deleted_look_alike() {
    let world = World::new();
    let device = world.device("d1").await;
    world.device("d2").await;
    world.ok(204, "DELETE /v1/devices/d1", Value::Null).await;
    let mut answers = Vec::new();
    for token in ["nonsense", "prk_nonsense", "d2:nonsense", "nobody:nonsense", "no-app/d2:nonsense", &device]
    {
        answers.push(world.call(token, "GET /v1/devices/d2", Value::Null).await);
    }
    assert!(answers.iter().all(|a| *a == answers[0] && a.0 == 401), "{answers:?}");
}

#[tokio::test]
async fn a_device_may_use_basic_and_name_its_app() {
    use base64::Engine as _;
    let world = World::new();
    let token = world.device("a:b").await;
    let basic = base64::prelude::BASE64_STANDARD.encode(&token);
    let headers = [("authorization", format!("Basic {basic}"))];
    let headers = headers.each_ref().map(|(n, v)| (*n, v.as_str()));
    assert_eq!(world.call_with("", "GET /v1/devices/a:b", Value::Null, &headers).await.0, 200);
    assert_eq!(world.call(&format!("default/{token}"), "GET /v1/devices/a:b", Value::Null).await.0, 200);
    assert_eq!(world.call(&format!("other/{token}"), "GET /v1/devices/a:b", Value::Null).await.0, 401);
}

#[tokio::test]
async fn wrong_credentials_are_counted_by_address_and_right_ones_still_pass() {
    let world = World::new();
    for _ in 0..30 {
        assert_eq!(world.call("wrong", "GET /v1/devices", Value::Null).await.0, 401);
    }
    let request = Request::get("/v1/devices").header("authorization", "Bearer wrong").body(Body::empty());
    let (status, headers, answer) = world.request(request.unwrap()).await;
    assert_eq!((status.as_u16(), code(&answer)), (429, "too_many_failures"));
    assert_eq!(headers["retry-after"], "60");
    world.ok(200, "GET /v1/devices", Value::Null).await;
    world.advance(60_000);
    assert_eq!(world.call("wrong", "GET /v1/devices", Value::Null).await.0, 401);
    assert_eq!(world.call("wrong", "GET /v1/devices", Value::Null).await.0, 429);
}

#[tokio::test]
async fn credentials_are_given_once_and_in_the_header() {
    let world = World::new();
    let probe = |headers: Vec<(&'static str, String)>, query: &'static str| {
        let world = &world;
        async move {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            world.call_with("", &format!("GET /v1/devices{query}"), Value::Null, &headers).await
        }
    };
    let header = |v: &str| ("authorization", v.to_owned());
    let good = || header("Bearer default-app-key");
    assert_eq!(probe(vec![good()], "").await.0, 200);
    for (headers, query, expected) in [
        (vec![good(), good()], "", "ambiguous_credentials"),
        (vec![good(), header("Basic ZDE6eA==")], "", "ambiguous_credentials"),
        (vec![header("Bearer default-app-key, Basic ZDE6eA==")], "", "ambiguous_credentials"),
        (vec![header("Digest x")], "", "ambiguous_credentials"),
        (vec![header("Bearer")], "", "ambiguous_credentials"),
        (vec![header("Basic !!!")], "", "ambiguous_credentials"),
        (vec![], "?access_token=default-app-key", "credentials_in_query"),
        (vec![good()], "?limit=1&api_key=x", "credentials_in_query"),
    ] {
        let (status, answer) = probe(headers, query).await;
        assert_eq!((status, code(&answer)), (400, expected), "{query}");
    }
}
