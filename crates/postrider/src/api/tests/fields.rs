//! Who may set what: every field of every body, with every kind of credentials that may make the call.

use super::*;
use crate::api::openapi;
use crate::tokens::Proof;
use std::collections::BTreeSet;

/// Who may set a field, among those who may make the call; said here independently of the code.
#[derive(Clone, Copy, PartialEq)]
enum Set {
    Anybody,
    /// Not who holds a key of the scope `register`.
    NotRegistrar,
    /// Not a device, whatever it shows.
    NotDevice,
}

/// Call, path, field, a body in which it stands.
type Row = (&'static str, &'static str, &'static str, Set, &'static str);

const DEVICES: &str = "/v1/devices";
const DEVICE: &str = "/v1/devices/d1";
const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("POST /v1/devices", DEVICES, "device_id", Set::NotRegistrar, r#"{"platform":"web","device_id":"d9"}"#),
    ("POST /v1/devices", DEVICES, "platform", Set::Anybody, r#"{"platform":"web"}"#),
    ("POST /v1/devices", DEVICES, "alias", Set::NotRegistrar, r#"{"platform":"web","alias":"ann"}"#),
    ("POST /v1/devices", DEVICES, "tags", Set::NotRegistrar, r#"{"platform":"web","tags":["vip"]}"#),
    ("POST /v1/devices", DEVICES, "attributes", Set::Anybody, r#"{"platform":"web","attributes":{"version":1}}"#),
    ("POST /v1/devices", DEVICES, "provider_tokens", Set::Anybody, r#"{"platform":"web","provider_tokens":{"fcm":"x"}}"#),
    ("POST /v1/devices", DEVICES, "device_secret", Set::Anybody, r#"{"platform":"web","device_secret":"SECRET"}"#),
    ("PATCH /v1/devices/{id}", DEVICE, "platform", Set::Anybody, r#"{"platform":"web"}"#),
    ("PATCH /v1/devices/{id}", DEVICE, "alias", Set::NotDevice, r#"{"alias":"ann"}"#),
    ("PATCH /v1/devices/{id}", DEVICE, "alias", Set::NotDevice, r#"{"alias":null}"#),
    ("PATCH /v1/devices/{id}", DEVICE, "tags", Set::NotDevice, r#"{"tags":["vip"]}"#),
    ("PATCH /v1/devices/{id}", DEVICE, "tags", Set::NotDevice, r#"{"tags":[]}"#),
    ("PATCH /v1/devices/{id}", DEVICE, "add_tags", Set::NotDevice, r#"{"add_tags":["vip"]}"#),
    ("PATCH /v1/devices/{id}", DEVICE, "remove_tags", Set::NotDevice, r#"{"remove_tags":["vip"]}"#),
    ("PATCH /v1/devices/{id}", DEVICE, "attributes", Set::Anybody, r#"{"attributes":{"version":1}}"#),
    ("PATCH /v1/devices/{id}", DEVICE, "provider_tokens", Set::Anybody, r#"{"provider_tokens":{"fcm":"x"}}"#),
    ("PUT /v1/devices/{id}/alias", "/v1/devices/d1/alias", "alias", Set::NotDevice, r#"{"alias":"ann"}"#),
    ("PUT /v1/devices/{id}/alias", "/v1/devices/d1/alias", "drop_pending", Set::NotDevice, r#"{"alias":"ann","drop_pending":true}"#),
    ("PATCH /v1/devices/{id}", DEVICE, "drop_pending", Set::Anybody, r#"{"drop_pending":true}"#),
    ("POST /v1/devices/{id}/secret", "/v1/devices/d1/secret", "device_secret", Set::Anybody, r#"{"device_secret":"SECRET"}"#),
];

/// Calls of which all fields may be set by whoever may make the call: they are of one kind of caller
/// only, and each field concerns that caller's own app or device.
const OF_ONE_KIND: &[&str] = &[
    "POST /v1/devices/prune",
    "POST /v1/messages",
    "POST /v1/messages/batch",
    "POST /v1/messages/estimate",
    "POST /v1/messages/{id}/receipts",
    "POST /v1/topics/{topic}/publish",
    "POST /v1/topics/publish",
    "POST /v1/apps",
    "POST /v1/apps/{id}/keys",
    "PATCH /v1/apps/{id}",
    "POST /v1/inbox/acks",
    "POST /v1/stream/acks",
    "POST /demo/push",
    "PUT /v1/webhooks/{id}",
    "POST /v1/webhooks/{id}/secret",
    "POST /v1/webhooks/{id}/replay",
];

const CALLERS: [&str; 7] = ["app", "send", "read", "register", "device", "jwt", "ticket"];

/// Whether such a caller may make the call at all.
fn may_call(call: &str, by: &str) -> bool {
    match call {
        "POST /v1/devices" => matches!(by, "app" | "register"),
        "POST /v1/devices/{id}/secret" => matches!(by, "app" | "device"),
        "PATCH /v1/devices/{id}" | "PUT /v1/devices/{id}/alias" => matches!(by, "app" | "device" | "jwt"),
        other => panic!("{other} has no rule"),
    }
}

fn may_set(set: Set, by: &str) -> bool {
    match set {
        Set::Anybody => true,
        Set::NotRegistrar => by != "register",
        Set::NotDevice => !matches!(by, "device" | "jwt"),
    }
}

#[tokio::test]
async fn a_field_is_set_by_those_who_may_and_refused_to_the_others_by_its_name() {
    for (call, path, field, set, body) in ROWS {
        for by in CALLERS {
            let world = World::new();
            let device = world.device("d1").await;
            let at = world.api.engine.store.device_by_id(AppNo(0), "d1").unwrap();
            let token = match by {
                "device" => device,
                "jwt" => world.jwt(json!({ "sub": "d1" })),
                "ticket" => world.api.tokens.ticket(&world.api.engine, at, "d1", Proof::Secret).unwrap().0,
                scope => format!("default-{scope}-key"),
            };
            let method = call.split(' ').next().unwrap();
            let body = serde_json::from_str(&body.replace("SECRET", SECRET)).unwrap();
            let before = world.ok(200, "GET /v1/devices/d1", Value::Null).await;
            let (status, answer) = world.call(&token, &format!("{method} {path}"), body).await;
            let what = format!("`{field}` of {call} by {by}: {answer}");
            if may_call(call, by) && may_set(*set, by) {
                assert!((200..300).contains(&status), "{what}");
                continue;
            }
            assert_eq!((status, code(&answer)), (403, "not_allowed"), "{what}");
            if may_call(call, by) {
                // It comes with an alias, which is refused first.
                let refused = if *field == "drop_pending" { "alias" } else { field };
                assert_eq!(answer["error"]["field"], json!(format!("/{refused}")), "{what}");
            }
            assert_eq!(world.ok(200, "GET /v1/devices/d1", Value::Null).await, before, "{what}");
        }
    }
}

/// The fields of all bodies, as the document has them: call and field.
fn described() -> BTreeSet<(String, String)> {
    let document: Value = serde_json::from_str(&openapi::text()).unwrap();
    let mut found = BTreeSet::new();
    for (path, calls) in document["paths"].as_object().unwrap() {
        for (method, call) in calls.as_object().unwrap() {
            let shape = &call["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            let Some(name) = shape.as_str().and_then(|r| r.rsplit('/').next()) else { continue };
            let fields = document["components"]["schemas"][name]["properties"].as_object();
            let call = format!("{} {path}", method.to_uppercase());
            found.extend(fields.into_iter().flatten().map(|(field, _)| (call.clone(), field.clone())));
        }
    }
    found
}

#[test]
fn every_field_of_every_body_has_its_row() {
    let described = described();
    assert!(described.len() > ROWS.len(), "the document has bodies");
    let rows: BTreeSet<_> = ROWS.iter().map(|row| (row.0.to_owned(), row.2.to_owned())).collect();
    let wanted = described.into_iter().filter(|(call, _)| !OF_ONE_KIND.contains(&call.as_str()));
    assert_eq!(rows, wanted.collect(), "say in ROWS who may set the field");
}
