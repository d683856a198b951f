//! Webhooks as their owners see them; what is sent is tested where it is sent.

use super::*;

async fn put(world: &World, id: &str, body: Value) -> (u16, Value) {
    let (status, answer) = world.call("default-app-key", &format!("PUT /v1/webhooks/{id}"), body).await;
    (status, answer)
}

fn hook() -> Value {
    json!({ "url": "https://hooks.example/in?token=t" })
}

#[tokio::test]
async fn a_secret_is_shown_when_the_server_has_made_it_and_never_again() {
    let world = World::new();
    let (status, made) = put(&world, "crm", hook()).await;
    assert_eq!(status, 200, "{made}");
    let secret = made["secret"].as_str().unwrap();
    assert!(secret.starts_with("whsec_"), "{secret}");
    assert_eq!(made["state"], "active");
    for line in ["GET /v1/webhooks/crm", "GET /v1/webhooks", "GET /v1/webhooks/crm/failures"] {
        let shown = world.ok(200, line, Value::Null).await.to_string();
        assert!(!shown.contains("whsec_") && !shown.contains(&secret[6..]), "{shown}");
    }
    let again = put(&world, "crm", hook()).await.1;
    assert_eq!(again.get("secret"), None, "{again}");
}

#[tokio::test]
async fn nothing_that_is_stored_holds_the_secret_in_clear() {
    let world = World::new();
    let secret = format!("whsec_{}", "QUJD".repeat(8));
    put(&world, "crm", json!({ "url": "https://hooks.example/", "secret": secret })).await;
    let stored = world.store.webhook(AppNo(0), "crm").unwrap();
    let mut image = Vec::new();
    postrider_core::stored::put_command(
        &Command::PutWebhook(Box::new(postrider_core::webhooks::PutWebhook {
            app: AppNo(0),
            id: "crm".into(),
            seen: 0,
            settings: stored.settings.clone(),
            secrets: stored.secrets.clone(),
            enabled: true,
            webhooks_max: 1,
            now: 0,
        })),
        &mut image,
    );
    assert!(!image.windows(3).any(|window| window == b"ABC"), "the secret's bytes are there");
    assert!(!format!("{stored:?}").contains("sealed: ["), "a debug text shows what is sealed");
}

#[tokio::test]
async fn another_secret_signs_beside_the_one_before_for_a_while() {
    let world = World::new();
    let one = format!("whsec_{}", "QUJD".repeat(8));
    let two = format!("whsec_{}", "REVG".repeat(8));
    let with = |secret: &str| json!({ "url": "https://hooks.example/", "secret": secret });
    let until = |answer: &Value| answer["secrets_sign_until"].as_array().unwrap().clone();
    put(&world, "crm", with(&one)).await;
    assert_eq!(until(&put(&world, "crm", with(&one)).await.1), [Value::Null], "the same one is no rotation");
    let both = until(&put(&world, "crm", with(&two)).await.1);
    assert!(both.len() == 2 && both[0].is_null() && both[1].is_string(), "{both:?}");
    world.advance(24 * 3_600_000);
    assert_eq!(until(&world.ok(200, "GET /v1/webhooks/crm", Value::Null).await), [Value::Null]);

    let line = "POST /v1/webhooks/crm/secret";
    let made = world.ok(200, line, json!({ "overlap_secs": 60 })).await;
    assert!(made["secret"].as_str().unwrap().starts_with("whsec_"));
    assert_eq!(until(&world.ok(200, "GET /v1/webhooks/crm", Value::Null).await).len(), 2);
    world.ok(200, line, json!({ "secret": one, "overlap_secs": 0 })).await;
    let left = until(&world.ok(200, "GET /v1/webhooks/crm", Value::Null).await);
    assert_eq!(left, [Value::Null], "a secret that leaked signs no longer");
}

#[tokio::test]
async fn urls_that_lead_inside_are_refused_with_their_code() {
    let world = World::new();
    for url in [
        "http://hooks.example/",
        "https://127.0.0.1/",
        "https://[::ffff:127.0.0.1]/",
        "https://0x7f.1/",
        "https://2130706433/",
        "https://169.254.169.254/latest/meta-data/",
        "https://localhost/",
        "https://localhost./",
        "https://user@hooks.example/",
        "https://hooks.example:22/",
        "https://hooks.example/#x",
        "",
    ] {
        let (status, answer) = put(&world, "crm", json!({ "url": url })).await;
        assert_eq!((status, code(&answer)), (400, "webhook_url_refused"), "{url}: {answer}");
        assert_eq!(answer["error"]["field"], "/url");
    }
    assert_eq!(world.store.webhooks(AppNo(0)), []);
}

#[tokio::test]
async fn what_is_no_webhook_is_refused() {
    let world = World::new();
    let url = "https://hooks.example/";
    for (id, body, refused) in [
        ("a b", json!({ "url": url }), "invalid_parameter"),
        (&"x".repeat(65), json!({ "url": url }), "invalid_parameter"),
        ("a", json!({}), "invalid_field"),
        ("a", json!({ "url": url, "events": ["shown"] }), "invalid_field"),
        ("a", json!({ "url": url, "secret": "secret" }), "invalid_field"),
        ("a", json!({ "url": url, "secret": "whsec_AAAA" }), "invalid_field"),
        ("a", json!({ "url": url, "batch_max": 0 }), "invalid_field"),
        ("a", json!({ "url": url, "batch_max": 501 }), "invalid_field"),
        ("a", json!({ "url": url, "other": 1 }), "invalid_field"),
    ] {
        let line = format!("PUT /v1/webhooks/{}", id.replace(' ', "%20"));
        let (status, answer) = world.call("default-app-key", &line, body.clone()).await;
        assert_eq!((status, code(&answer)), (400, refused), "{id} {body}");
    }
    for line in [
        "GET /v1/webhooks/no",
        "DELETE /v1/webhooks/no",
        "POST /v1/webhooks/no/test",
        "POST /v1/webhooks/no/secret",
    ] {
        let (status, answer) = world.call("default-app-key", line, Value::Null).await;
        assert_eq!((status, code(&answer)), (404, "no_such_webhook"), "{line}");
    }
}

#[tokio::test]
async fn an_app_has_so_many_webhooks_and_no_more() {
    let world = World::new();
    for n in 0..world.api.limits.webhooks_max {
        assert_eq!(put(&world, &format!("w{n}"), hook()).await.0, 200);
    }
    let (status, answer) = put(&world, "more", hook()).await;
    assert_eq!((status, code(&answer)), (403, "webhook_quota"));
    assert_eq!(put(&world, "w0", hook()).await.0, 200, "one that is there can be changed");
    world.ok(204, "DELETE /v1/webhooks/w0", Value::Null).await;
    assert_eq!(put(&world, "more", hook()).await.0, 200);
}

#[tokio::test]
async fn a_replay_begins_behind_a_cursor_or_at_a_time() {
    let world = World::new();
    world.device("d1").await;
    world.message_to("d1").await;
    world.advance(10_000);
    let between = world.clock.now();
    world.message_to("d1").await;
    let events = world.ok(200, "GET /v1/events", Value::Null).await;
    let events = events["events"].as_array().unwrap();
    put(&world, "crm", hook()).await;
    let position = || world.store.webhook(AppNo(0), "crm").unwrap().progress.position;
    assert_eq!(position(), events.len() as u64, "a new webhook begins with what comes");
    let replay = async |from: String| {
        let body = json!({ "from": from });
        world.call("default-app-key", "POST /v1/webhooks/crm/replay", body).await
    };
    assert_eq!(replay(events[0]["cursor"].as_str().unwrap().into()).await.0, 200);
    assert_eq!(position(), 1);
    let before = events.iter().filter(|event| {
        let at = event["occurred_at"].as_str().unwrap();
        crate::api::times::parse_time(at).unwrap() < between
    });
    let before = before.count() as u64;
    for from in [between.to_string(), postrider_proto::date_time(between)] {
        assert_eq!(replay(from).await.0, 200);
        assert_eq!(position(), before);
    }
    assert_eq!(replay("0".into()).await.0, 200);
    assert_eq!(position(), 0);
    let (status, answer) = replay("yesterday".into()).await;
    assert_eq!((status, code(&answer)), (400, "invalid_field"), "{answer}");
}

#[tokio::test]
async fn an_event_has_one_id_however_often_it_is_read() {
    let world = World::new();
    world.device("d1").await;
    world.message_to("d1").await;
    let ids = async || {
        let page = world.ok(200, "GET /v1/events", Value::Null).await;
        let events = page["events"].as_array().unwrap().clone();
        events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (first, second) = (ids().await, ids().await);
    assert_eq!(first, second);
    let different: std::collections::BTreeSet<_> = first.iter().collect();
    assert!(different.len() == first.len() && first.iter().all(|id| id.starts_with("evt_")));
}

#[tokio::test]
async fn a_test_tells_how_it_went_and_nothing_else() {
    let world = World::new();
    put(&world, "crm", hook()).await;
    let tested = world.ok(200, "POST /v1/webhooks/crm/test", Value::Null).await;
    assert_eq!(tested["outcome"], "lookup");
    assert_eq!(tested.as_object().unwrap().keys().collect::<Vec<_>>(), ["duration_ms", "outcome"]);
}
