//! Requests with an `Idempotency-Key` that leave no row in the store: transient messages, and publishes on topics.

use super::*;

const BY: &str = "default-app-key";

#[tokio::test]
async fn a_transient_message_is_sent_once_under_its_key() {
    let world = World::new();
    world.device("d1").await;
    for (number, how) in [json!({ "ttl_secs": 0 }), json!({ "durability": "transient" })].iter().enumerate() {
        let name = format!("otp-{number}");
        let key = [("idempotency-key", name.as_str())];
        let mut body = json!({ "audience": { "device": "d1" }, "data": "one-time code" });
        body.as_object_mut().unwrap().extend(how.as_object().unwrap().clone());
        let (status, first) = world.call_with(BY, "POST /v1/messages", body.clone(), &key).await;
        assert_eq!((status, first.get("repeated")), (202, None));
        for _ in 0..2 {
            let (status, again) = world.call_with(BY, "POST /v1/messages", body.clone(), &key).await;
            assert_eq!((status, &again["message_id"]), (202, &first["message_id"]));
            assert_eq!(again["repeated"], true);
            assert_eq!(again["durability"], "transient");
        }
        // The key names one request, whichever way it is sent.
        let mut other = body.clone();
        other["data"] = json!("another code");
        let stored = json!({ "audience": { "device": "d1" }, "data": "one-time code" });
        for other in [other, stored] {
            let (status, answer) = world.call_with(BY, "POST /v1/messages", other, &key).await;
            assert_eq!((status, code(&answer)), (409, "idempotency_mismatch"));
        }
        // And no other app's.
        world.clock.0.fetch_add(1_000, Ordering::SeqCst);
        assert_eq!(world.api.engine.transient_keys(), number + 1);
    }
    // Whoever did not hear the first answer still gets it when the device has gone meanwhile.
    let body = json!({ "audience": { "device": "d1" }, "data": "one-time code", "ttl_secs": 0 });
    world.ok(204, "DELETE /v1/devices/d1", Value::Null).await;
    let key = [("idempotency-key", "otp-0")];
    assert_eq!(world.call_with(BY, "POST /v1/messages", body, &key).await.0, 202);
}

#[tokio::test]
async fn a_key_of_a_stored_message_is_no_key_of_a_transient_one() {
    let world = World::new();
    world.device("d1").await;
    let key = [("idempotency-key", "k")];
    let stored = json!({ "audience": { "device": "d1" }, "data": 1 });
    assert_eq!(world.call_with(BY, "POST /v1/messages", stored, &key).await.0, 202);
    let transient = json!({ "audience": { "device": "d1" }, "data": 1, "ttl_secs": 0 });
    let (status, answer) = world.call_with(BY, "POST /v1/messages", transient, &key).await;
    assert_eq!((status, code(&answer)), (409, "idempotency_mismatch"));
}

#[tokio::test]
async fn transient_messages_of_a_batch_are_sent_once_as_well() {
    let world = World::new();
    world.device("d1").await;
    let one = json!({ "audience": { "device": "d1" }, "data": 1, "ttl_secs": 0 });
    let own = json!({ "audience": { "device": "d1" }, "data": 2, "ttl_secs": 0, "idempotency_key": "own" });
    let batch = json!({ "messages": [one, own, own] });
    let key = [("idempotency-key", "b")];
    let (_, first) = world.call_with(BY, "POST /v1/messages/batch", batch.clone(), &key).await;
    let (_, again) = world.call_with(BY, "POST /v1/messages/batch", batch, &key).await;
    assert_eq!(first["results"][2]["repeated"], true, "the same key twice in one batch");
    for i in 0..3 {
        assert_eq!(again["results"][i]["message_id"], first["results"][i]["message_id"]);
        assert_eq!(again["results"][i]["repeated"], true);
    }
}

#[tokio::test]
async fn a_publish_on_a_topic_is_done_once_under_its_key() {
    let world = World::new();
    let line = "POST /v1/topics/news%2Fall/publish";
    let key = [("idempotency-key", "k")];
    let body = json!({ "payload_text": "x", "retain": true });
    let (status, first) = world.call_with(BY, line, body.clone(), &key).await;
    assert_eq!((status, first.get("repeated")), (202, None));
    world.ok(202, line, json!({ "payload_text": "newer", "retain": true })).await;
    let (status, again) = world.call_with(BY, line, body.clone(), &key).await;
    assert_eq!((status, &again["repeated"], &again["sessions"]), (202, &json!(true), &first["sessions"]));
    let kept = world.api.engine.store.retained(AppNo(0), "news/all", 1, world.clock.now()).remove(0);
    let content = world.api.engine.store.content(kept.blob).unwrap();
    assert_eq!(&content.payload[..], b"newer", "the repetition did nothing");
    let (status, answer) = world.call_with(BY, line, json!({ "payload_text": "y" }), &key).await;
    assert_eq!((status, code(&answer)), (409, "idempotency_mismatch"));
    let long = "k".repeat(65);
    let (status, answer) = world.call_with(BY, line, body, &[("idempotency-key", &*long)]).await;
    assert_eq!((status, code(&answer)), (400, "invalid_header"));
}

#[tokio::test]
async fn what_a_release_before_remembered_is_still_answered_as_the_first_time() {
    let world = World::new();
    world.device("d1").await;
    let body = json!({ "audience": { "device": "d1" }, "data": 1 });
    let key = [("idempotency-key", "k")];
    // As releases up to November 2026 stored it.
    let id = MessageId::new(1, 2);
    let target = Target { device: DeviceNo(0), qos: 1, retain: false, subscription_ids: Vec::new() };
    let before = postrider_core::delivery::request::digest(
        b"Device(\"d1\")NoneNoneSome(Json(Number(1)))NoneNoneNormalNonefalse",
    );
    let idempotency = postrider_core::command::Idempotency {
        key: postrider_core::delivery::request::digest(b"k"),
        request: before,
        keep_until: u64::MAX,
        keys_max: 10,
    };
    let limits = Limits::default();
    world.submit(Command::Accept(Box::new(postrider_core::command::NewMessage {
        app: AppNo(0),
        id,
        targets: Targets::Direct(vec![target]),
        accepted_at: world.clock.now(),
        expires_at: world.clock.now() + 1_000_000,
        priority: Priority::Normal,
        collapse_key: None,
        backlog: Backlog::All,
        idempotency: Some(idempotency),
        tracked: true,
        push: true,
        reject_when_full: false,
        inbox_max: limits.inbox_max,
        peer_inbox_max: 0,
        room: None,
        inbox_bytes_max: limits.inbox_bytes_max,
        content: Some(Arc::new(Content::default())),
        submission: None,
    })));
    let (status, again) = world.call_with(BY, "POST /v1/messages", body, &key).await;
    assert_eq!((status, again["message_id"].as_str()), (202, Some(&*id.to_string())), "{again}");
    assert_eq!(again["repeated"], true);
}
