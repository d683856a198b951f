//! Each call as it is meant to be used, and its own refusals.

use super::*;

#[tokio::test]
async fn a_device_is_registered_shown_changed_and_deleted() {
    let world = World::new();
    let request = json!({
        "platform": "ios", "alias": "ann", "tags": ["b", "a", "b"],
        "attributes": { "age": 7, "name": "Ann", "beta": true }, "provider_tokens": { "apns": "t" },
    });
    let made = world.ok(201, "POST /v1/devices", request).await;
    let id = made["device_id"].as_str().unwrap();
    assert_eq!(made["device_secret"].as_str().unwrap().len(), 43);
    assert!(made.get("repeated").is_none());
    let shown = world.ok(200, &format!("GET /v1/devices/{id}"), Value::Null).await;
    assert_eq!(shown["tags"], json!(["a", "b"]));
    assert_eq!(shown["attributes"], json!({ "age": 7, "beta": true, "name": "Ann" }));
    assert_eq!(shown["providers"], json!(["apns"]));
    assert_eq!((&shown["connected"], &shown["inbox_len"]), (&json!(false), &json!(0)));
    assert_eq!(shown["created_at"], "2023-11-14T22:13:20.000Z");
    let change = json!({
        "alias": null, "add_tags": ["c"], "remove_tags": ["a"], "attributes": { "age": null, "n": 1 },
    });
    let shown = world.ok(200, &format!("PATCH /v1/devices/{id}"), change).await;
    assert_eq!((&shown["alias"], &shown["tags"]), (&Value::Null, &json!(["b", "c"])));
    assert_eq!(shown["attributes"], json!({ "beta": true, "n": 1, "name": "Ann" }));
    world.ok(204, &format!("PUT /v1/devices/{id}/tags/new%2Fs%20x"), Value::Null).await;
    world.ok(204, &format!("DELETE /v1/devices/{id}/tags/b"), Value::Null).await;
    world.ok(204, &format!("PUT /v1/devices/{id}/alias"), json!({ "alias": "bob" })).await;
    let shown = world.ok(200, &format!("GET /v1/devices/{id}"), Value::Null).await;
    assert_eq!((&shown["alias"], &shown["tags"]), (&json!("bob"), &json!(["c", "new/s x"])));
    world.ok(204, &format!("DELETE /v1/devices/{id}/alias"), Value::Null).await;
    world.ok(204, &format!("DELETE /v1/devices/{id}"), Value::Null).await;
    assert_eq!(code(&world.ok(404, &format!("GET /v1/devices/{id}"), Value::Null).await), "no_such_device");
}

#[tokio::test]
async fn a_registration_may_be_repeated_and_shows_its_secret_once() {
    let world = World::new();
    let key = [("idempotency-key", "install-1")];
    let body = json!({ "platform": "web" });
    let by = "default-app-key";
    let (status, first) = world.call_with(by, "POST /v1/devices", body.clone(), &key).await;
    assert_eq!(status, 201);
    let (status, again) = world.call_with(by, "POST /v1/devices", body, &key).await;
    assert_eq!(status, 200);
    let expected = json!({ "device_id": first["device_id"], "device_secret": null, "repeated": true });
    assert_eq!(again, expected);
    let token =
        format!("{}:{}", first["device_id"].as_str().unwrap(), first["device_secret"].as_str().unwrap());
    let line = format!("GET /v1/devices/{}", first["device_id"].as_str().unwrap());
    assert_eq!(world.call(&token, &line, Value::Null).await.0, 200);
    let other = json!({ "platform": "ios" });
    let (status, answer) = world.call_with(by, "POST /v1/devices", other, &key).await;
    assert_eq!((status, code(&answer)), (409, "idempotency_mismatch"));
    // The same key on a message is another request, not this one.
    let message = json!({ "audience": "all", "data": 1 });
    assert_eq!(world.call_with(by, "POST /v1/messages", message, &key).await.0, 202);
}

#[tokio::test]
async fn a_registration_that_cannot_be_is_refused() {
    let limits = Limits { devices_max: 1, tags_max: 2, ..Limits::default() };
    let world = World::with(ApiLimits::default(), limits);
    for (body, field) in [
        (json!({ "platform": "ios", "device_id": "a/b" }), "/device_id"),
        (json!({ "platform": "ios", "device_id": "" }), "/device_id"),
        (json!({ "platform": "ios", "device_id": "x".repeat(65) }), "/device_id"),
        (json!({ "platform": "beos" }), "/platform"),
        (json!({ "platform": "ios", "alias": "a\nb" }), "/alias"),
        (json!({ "platform": "ios", "tags": ["a", "b", "c"] }), "/tags"),
        (json!({ "platform": "ios", "tags": ["x".repeat(65)] }), "/tags"),
        (json!({ "platform": "ios", "tagz": [] }), "/tagz"),
        (json!({ "platform": "ios", "attributes": { "a": [1] } }), "/attributes/a"),
    ] {
        let answer = world.ok(400, "POST /v1/devices", body.clone()).await;
        assert_eq!((code(&answer), &answer["error"]["field"]), ("invalid_field", &json!(field)), "{body}");
    }
    world.device("d1").await;
    let again = json!({ "platform": "ios", "device_id": "d2" });
    assert_eq!(code(&world.ok(403, "POST /v1/devices", again).await), "device_quota");
    let world = World::new();
    world.device("d1").await;
    let again = json!({ "platform": "ios", "device_id": "d1" });
    assert_eq!(code(&world.ok(409, "POST /v1/devices", again).await), "device_exists");
}

#[tokio::test]
async fn devices_are_listed_in_pages_and_filtered() {
    let world = World::new();
    for i in 0..5 {
        let platform = if i % 2 == 0 { "ios" } else { "web" };
        let device = json!({ "device_id": format!("d{i}"), "platform": platform, "tags": ["t"] });
        world.ok(201, "POST /v1/devices", device).await;
    }
    let mut seen = Vec::new();
    let mut cursor = String::new();
    for _ in 0..3 {
        let page = world.ok(200, &format!("GET /v1/devices?limit=2&tag=t{cursor}"), Value::Null).await;
        seen.extend(page["devices"].as_array().unwrap().iter().map(|d| d["device_id"].to_string()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => cursor.clear(),
        }
    }
    assert_eq!(seen.join(","), r#""d0","d1","d2","d3","d4""#);
    assert!(cursor.is_empty());
    let page = world.ok(200, "GET /v1/devices?platform=ios", Value::Null).await;
    assert_eq!(page["devices"].as_array().unwrap().len(), 3);
    for (query, why) in [
        ("limit=0", "invalid_parameter"),
        ("limit=1001", "invalid_parameter"),
        ("limit=x", "invalid_parameter"),
        ("colour=red", "invalid_parameter"),
        ("limit=1&limit=2", "invalid_parameter"),
        ("cursor=x", "invalid_cursor"),
        ("cursor=YXBwLTE", "invalid_cursor"),
    ] {
        let answer = world.ok(400, &format!("GET /v1/devices?{query}"), Value::Null).await;
        assert_eq!(code(&answer), why, "{query}");
    }
}

#[tokio::test]
async fn a_message_is_accepted_reported_and_traced_to_its_click() {
    let world = World::new();
    let device = world.device("d1").await;
    let message = json!({
        "audience": { "device": "d1" }, "notification": { "title": "Hi", "body": "two\nlines" },
        "data": { "n": 1 }, "ttl_secs": 60, "collapse_key": "c", "priority": "high", "backlog": { "last": 3 },
    });
    let sent = world.ok(202, "POST /v1/messages", message).await;
    let id = sent["message_id"].as_str().unwrap().to_owned();
    assert_eq!(sent, json!({ "message_id": id, "targeted": 1, "durability": "synced" }));
    assert_eq!(world.ok(200, "GET /v1/devices/d1", Value::Null).await["inbox_len"], 1);
    world.advance(1_000);
    for step in ["delivered", "displayed", "clicked"] {
        let line = format!("POST /v1/messages/{id}/receipts");
        assert_eq!(
            world.call(&device, &line, json!({ "step": step })).await,
            (200, json!({ "recorded": true }))
        );
        assert_eq!(
            world.call(&device, &line, json!({ "step": step })).await,
            (200, json!({ "recorded": false }))
        );
    }
    let report = world.ok(200, &format!("GET /v1/messages/{id}"), Value::Null).await;
    assert_eq!((&report["states"], &report["targeted"]), (&json!({ "clicked": 1 }), &json!(1)));
    assert_eq!((&report["priority"], &report["collapse_key"]), (&json!("high"), &json!("c")));
    assert_eq!(report["expires_at"], "2023-11-14T22:14:20.000Z");
    let trace = world.ok(200, &format!("GET /v1/messages/{id}/deliveries/d1"), Value::Null).await;
    let steps: Vec<_> = trace["timeline"].as_array().unwrap().iter().map(|m| m["step"].clone()).collect();
    assert_eq!(json!(steps), json!(["accepted", "queued", "delivered", "displayed", "clicked"]));
    let last = &trace["timeline"][4];
    assert_eq!(
        (&last["at"], &last["at_unix_ms"]),
        (&json!("2023-11-14T22:13:21.000Z"), &json!(1_700_000_001_000u64))
    );
    let page = world.ok(200, &format!("GET /v1/messages/{id}/deliveries?state=clicked"), Value::Null).await;
    assert_eq!(page["deliveries"][0]["device_id"], "d1");
    let page = world.ok(200, &format!("GET /v1/messages/{id}/deliveries?state=queued"), Value::Null).await;
    assert_eq!(page, json!({ "deliveries": [], "next_cursor": null }));
    assert_eq!(code(&world.ok(404, "GET /v1/messages/nonsense", Value::Null).await), "no_such_message");
    world.device("d2").await;
    let line = format!("GET /v1/messages/{id}/deliveries/d2");
    assert_eq!(code(&world.ok(404, &line, Value::Null).await), "no_such_delivery");
}

#[tokio::test]
async fn attributes_keep_their_integers_and_everything_of_a_device_is_optional() {
    let world = World::new();
    let made = world.ok(201, "POST /v1/devices", json!({})).await;
    let line = format!("GET /v1/devices/{}", made["device_id"].as_str().unwrap());
    assert_eq!(world.ok(200, &line, Value::Null).await["platform"], "other");

    let attributes =
        json!({ "user": 9_007_199_254_740_993u64, "version": 12, "size": 1.5, "beta": true, "os": "17.1" });
    let device = json!({ "device_id": "d1", "attributes": attributes });
    world.ok(201, "POST /v1/devices", device).await;
    let shown = world.ok(200, "GET /v1/devices/d1", Value::Null).await;
    assert_eq!(shown["attributes"].to_string(), attributes.to_string());
    let change = json!({ "attributes": { "user": i64::MIN, "size": null, "beta": false } });
    let shown = world.ok(200, "PATCH /v1/devices/d1", change).await;
    let expected = json!({ "user": i64::MIN, "version": 12, "beta": false, "os": "17.1" });
    assert_eq!(shown["attributes"].to_string(), expected.to_string());

    for (line, body) in [
        ("POST /v1/devices", r#"{"attributes":{"n":9223372036854775808}}"#),
        ("POST /v1/devices", r#"{"attributes":{"n":3.14159265358979323846}}"#),
        ("PATCH /v1/devices/d1", r#"{"attributes":{"n":1e-400}}"#),
        ("PATCH /v1/devices/d1", r#"{"attributes":{"n":[1]}}"#),
    ] {
        let (method, path) = line.split_once(' ').unwrap();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", "Bearer default-app-key")
            .header("content-type", "application/json")
            .body(Body::from(body))
            .unwrap();
        let (status, _, answer) = world.request(request).await;
        let field = &answer["error"]["field"];
        assert_eq!((status.as_u16(), code(&answer), field), (400, "invalid_field", &json!("/attributes/n")));
    }
}

#[tokio::test]
async fn a_message_is_accepted_once_under_its_key() {
    let world = World::new();
    world.device("d1").await;
    let by = "default-send-key";
    let key = [("idempotency-key", "k")];
    let body = json!({ "audience": { "device": "d1" }, "data": 1 });
    let (_, first) = world.call_with(by, "POST /v1/messages", body.clone(), &key).await;
    let (status, again) = world.call_with(by, "POST /v1/messages", body.clone(), &key).await;
    assert_eq!((status, &again["message_id"], &again["repeated"]), (202, &first["message_id"], &json!(true)));
    let other = json!({ "audience": { "device": "d1" }, "data": 2 });
    let (status, answer) = world.call_with(by, "POST /v1/messages", other, &key).await;
    assert_eq!((status, code(&answer)), (409, "idempotency_mismatch"));
    let long = "k".repeat(65);
    for headers in [vec![("idempotency-key", "")], vec![("idempotency-key", &*long)], vec![key[0], key[0]]] {
        let (status, answer) = world.call_with(by, "POST /v1/messages", body.clone(), &headers).await;
        assert_eq!((status, code(&answer)), (400, "invalid_header"), "{headers:?}");
    }
    assert_eq!(world.ok(200, "GET /v1/devices/d1", Value::Null).await["inbox_len"], 1);
    // Whoever did not hear the first answer still gets it when the device has gone meanwhile.
    world.ok(204, "DELETE /v1/devices/d1", Value::Null).await;
    let (status, again) = world.call_with(by, "POST /v1/messages", body, &key).await;
    assert_eq!((status, &again["message_id"]), (202, &first["message_id"]));
}

#[tokio::test]
async fn a_message_that_cannot_be_is_refused_with_its_field() {
    let world = World::new();
    world.device("d1").await;
    let with = |field: &str, value: Value| {
        let mut message = json!({ "audience": "all", "data": 1 });
        message[field] = value;
        message
    };
    let big = "x".repeat(70_000);
    for (message, status, why, field) in [
        (json!({ "data": 1 }), 400, "invalid_field", json!("/audience")),
        (json!({ "audience": "all" }), 400, "invalid_field", json!("/notification")),
        (with("audience", json!("some")), 400, "invalid_audience", json!("/audience")),
        (with("audience", json!({ "tags": "x" })), 400, "invalid_audience", json!("/audience")),
        (
            with("audience", json!({ "and": [{ "tag": 1 }] })),
            400,
            "invalid_audience",
            json!("/audience/and/0/tag"),
        ),
        (with("audience", json!({ "and": [] })), 400, "invalid_audience", json!("/audience")),
        (with("audience", json!({ "device": "nobody" })), 422, "unknown_recipient", Value::Null),
        (with("ttl_secs", json!(2_592_001)), 400, "invalid_field", json!("/ttl_secs")),
        (with("ttl_secs", json!(-1)), 400, "invalid_field", json!("/ttl_secs")),
        (with("collapse_key", json!("")), 400, "invalid_field", json!("/collapse_key")),
        (with("priority", json!("urgent")), 400, "invalid_field", json!("/priority")),
        (with("backlog", json!({ "last": 0 })), 400, "invalid_field", json!("/backlog")),
        (with("data_text", json!("x")), 400, "invalid_field", json!("/data")),
        (with("notification", json!({ "titel": "x" })), 400, "invalid_field", json!("/notification/titel")),
        (
            with("notification", json!({ "title": "a\u{0}" })),
            400,
            "invalid_field",
            json!("/notification/title"),
        ),
        (
            with("notification", json!({ "title": "a\tb" })),
            400,
            "invalid_field",
            json!("/notification/title"),
        ),
        (with("data", json!(big)), 413, "payload_too_large", Value::Null),
        (with("colour", json!(1)), 400, "invalid_field", json!("/colour")),
        (json!({ "audience": "all", "data_base64": "*" }), 400, "invalid_field", json!("/data_base64")),
    ] {
        let answer = world.ok(status, "POST /v1/messages", message.clone()).await;
        let got = (code(&answer), answer["error"]["field"].clone());
        let text = message.to_string();
        assert_eq!(got, (why, field), "{:.100} {answer}", text);
    }
}

#[tokio::test]
async fn refusals_speak_json_and_say_how_to_mend_it() {
    let world = World::new();
    let post = |body: Value| world.call("default-app-key", "POST /v1/messages", body);
    for (body, field, part) in [
        (json!({ "audience": "all", "notificaton": {} }), "/notificaton", "did you mean `notification`?"),
        (json!({ "audience": "all", "data": 1, "priority": "hgih" }), "/priority", "Did you mean `high`?"),
        (json!({ "audience": { "tagz": "x" }, "data": 1 }), "/audience", "Did you mean `tag`?"),
        (
            json!({ "audience": { "platform": "iphone" }, "data": 1 }),
            "/audience/platform",
            "must be one of `android`",
        ),
        (
            json!({ "audience": "all", "notification": "x" }),
            "/notification",
            "must be an object, not a string",
        ),
        (
            json!({ "audience": "all", "data": 1, "ttl_secs": "9" }),
            "/ttl_secs",
            "whole number, 0 or more, not a string",
        ),
        (json!({ "data": 1 }), "/audience", "`audience` is missing."),
        (
            json!({ "audience": { "all": true }, "data": 1 }),
            "/audience/all",
            "write `\"all\"`, without an object",
        ),
        (
            json!({ "audience": "all", "data": 1, "backlog": { "latest": 1 } }),
            "/backlog/latest",
            "write `\"latest\"`, without an object",
        ),
    ] {
        let (status, answer) = post(body.clone()).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!((status, &answer["error"]["field"]), (400, &json!(field)), "{body} {answer}");
        assert!(message.contains(part), "{message}");
        for word in ["struct", "u64", "variant", "deserialize", "enum", "unit"] {
            assert!(!message.contains(word), "{message}");
        }
    }
    for (line, field, part) in [
        ("GET /v1/devices?limt=5", "limt", "There is no parameter `limt`; did you mean `limit`?"),
        ("GET /v1/devices?limit=x", "limit", "`limit` must be a whole number"),
        ("GET /v1/devices?platform=iphone", "platform", "`platform` must be one of `android`"),
    ] {
        let answer = world.ok(400, line, Value::Null).await;
        assert_eq!(
            (code(&answer), &answer["error"]["field"]),
            ("invalid_parameter", &json!(field)),
            "{answer}"
        );
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
    }
}

#[tokio::test]
async fn raw_payloads_travel_as_they_are() {
    let world = World::new();
    world.device("d1").await;
    for (field, value, payload) in
        [("data_text", "häh", "häh".as_bytes()), ("data_base64", "AP8=", b"\x00\xff")]
    {
        let mut message = json!({ "audience": { "device": "d1" } });
        message[field] = json!(value);
        world.ok(202, "POST /v1/messages", message).await;
        let at = world.api.engine.store.device_by_id(AppNo(0), "d1").unwrap();
        let pending = world.api.engine.store.pending(at, Position::default(), 10, world.clock.now());
        let content = world.api.engine.store.content(pending.last().unwrap().blob).unwrap();
        assert_eq!(&*content.payload, payload);
    }
}

#[tokio::test]
async fn what_is_transient_is_told_so() {
    let world = World::new();
    world.device("d1").await;
    for more in [json!({ "ttl_secs": 0 }), json!({ "durability": "transient" })] {
        let mut message = json!({ "audience": { "device": "d1" }, "data": 1 });
        message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let sent = world.ok(202, "POST /v1/messages", message).await;
        assert_eq!((&sent["durability"], &sent["targeted"]), (&json!("transient"), &json!(0)));
    }
}

#[tokio::test]
async fn a_batch_answers_each_message_by_itself() {
    let world = World::new();
    world.device("d1").await;
    let good = json!({ "audience": { "device": "d1" }, "data": 1 });
    let batch = json!({ "messages": [
        good, { "audience": "all", "colour": 1 }, { "audience": { "device": "nobody" }, "data": 1 }, good,
    ] });
    let by = "default-app-key";
    let key = [("idempotency-key", "batch-1")];
    let (status, answer) = world.call_with(by, "POST /v1/messages/batch", batch.clone(), &key).await;
    assert_eq!(status, 200);
    let results = answer["results"].as_array().unwrap();
    assert_eq!((results.len(), &results[0]["targeted"], &results[3]["targeted"]), (4, &json!(1), &json!(1)));
    assert_eq!((code(&results[1]), &results[1]["error"]["field"]), ("invalid_field", &json!("/colour")));
    assert_eq!(code(&results[2]), "unknown_recipient");
    let (_, again) = world.call_with(by, "POST /v1/messages/batch", batch, &key).await;
    for i in [0, 3] {
        assert_eq!(again["results"][i]["message_id"], results[i]["message_id"]);
        assert_eq!(again["results"][i]["repeated"], true);
    }
    assert_ne!(results[0]["message_id"], results[3]["message_id"]);
    let many = json!({ "messages": vec![good; 501] });
    assert_eq!(code(&world.ok(400, "POST /v1/messages/batch", many).await), "invalid_field");
    let none = json!({ "messages": [] });
    assert_eq!(code(&world.ok(400, "POST /v1/messages/batch", none).await), "invalid_field");
}

#[tokio::test]
async fn an_app_sends_as_much_as_it_may() {
    let limits = ApiLimits { pushes_per_sec: 10, pushes_burst: 4, ..ApiLimits::default() };
    let world = World::with(limits, Limits::default());
    let message = json!({ "audience": "all", "data": 1 });
    let batch = json!({ "messages": vec![message.clone(); 3] });
    world.ok(200, "POST /v1/messages/batch", batch).await;
    // Another key of the app does not help; another app is not concerned.
    assert_eq!(world.call("default-send-key", "POST /v1/messages", message.clone()).await.0, 202);
    assert_eq!(code(&world.ok(429, "POST /v1/messages", message.clone()).await), "rate_limited");
    assert_eq!(world.call("other-app-key", "POST /v1/messages", message.clone()).await.0, 202);
    world.advance(100);
    world.ok(202, "POST /v1/messages", message).await;
}

#[tokio::test]
async fn an_app_brings_as_many_bytes_as_it_may_and_its_public_keys_take_none_of_them() {
    let limits = ApiLimits { bytes_per_sec: 10 * 1024, bytes_burst: 40 * 1024, ..ApiLimits::default() };
    let world = World::with(limits, Limits::default());
    let message = json!({ "audience": "all", "data": "x".repeat(12 * 1024) });
    let device = json!({ "platform": "web", "name": "x".repeat(30 * 1024) });
    for _ in 0..3 {
        // Refused for what it says, and charged for it all the same.
        assert_eq!(world.call("default-register-key", "POST /v1/devices", device.clone()).await.0 / 100, 4);
        world.ok(202, "POST /v1/messages", message.clone()).await;
    }
    let refused = world.ok(429, "POST /v1/messages", message.clone()).await;
    assert_eq!(code(&refused), "rate_limited");
    assert!(refused["error"]["message"].as_str().unwrap().contains("bytes"), "{refused}");
    let refused = world.call("default-register-key", "POST /v1/devices", device).await;
    assert_eq!((refused.0, code(&refused.1)), (429, "rate_limited"));
    assert_eq!(world.call("other-app-key", "POST /v1/messages", message.clone()).await.0, 202);
    world.advance(2_000);
    world.ok(202, "POST /v1/messages", message).await;
}

#[tokio::test]
async fn an_estimate_counts_and_explains() {
    let world = World::new();
    for id in ["d1", "d2"] {
        world.device(id).await;
    }
    world.ok(204, "PUT /v1/devices/d2/tags/beta", Value::Null).await;
    world.connect("d1");
    let ask = json!({ "audience": { "not": { "tag": "beta" } }, "device": "d2" });
    let estimate = world.ok(200, "POST /v1/messages/estimate", ask).await;
    let expected = json!({
        "count": 1, "connected": 1, "by_platform": { "android": 1 },
        "device": { "included": false, "clause": "not.tag \"beta\"" },
    });
    assert_eq!(estimate, expected);
    let ask = json!({ "audience": "all", "device": "nobody" });
    assert_eq!(code(&world.ok(404, "POST /v1/messages/estimate", ask).await), "no_such_device");
    assert_eq!(world.ok(200, "GET /v1/devices/d1", Value::Null).await["connected"], true);
}

/// The codes of the warnings of an answer.
fn warned(answer: &Value) -> Vec<&str> {
    let warnings = answer["warnings"].as_array().map_or(&[][..], |w| w);
    warnings.iter().map(|w| w["code"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn names_that_no_device_has_are_named_in_the_answer() {
    let world = World::new();
    world.device("d1").await;
    let audience = json!({ "devices": ["d1", "gone-1", "gone-2"] });
    let message = json!({ "audience": audience, "data": 1 });
    let sent = world.ok(202, "POST /v1/messages", message.clone()).await;
    assert_eq!((&sent["targeted"], &sent["unknown"]), (&json!(1), &json!(["gone-1", "gone-2"])));
    let expected = json!([{
        "code": "unknown_device", "message": "No device of this app has the id `gone-1`, `gone-2`.",
        "field": "/audience", "names": ["gone-1", "gone-2"],
    }]);
    assert_eq!(sent["warnings"], expected);
    let batch = json!({ "messages": [message] });
    let results = world.ok(200, "POST /v1/messages/batch", batch).await;
    assert_eq!(results["results"][0]["warnings"], expected);
    let estimate = world.ok(200, "POST /v1/messages/estimate", json!({ "audience": audience })).await;
    assert_eq!((&estimate["warnings"], &estimate["count"]), (&expected, &json!(1)));

    let exclude = json!({ "audience": "all", "exclude": { "alias": "bob" }, "data": 1 });
    let sent = world.ok(202, "POST /v1/messages", exclude).await;
    assert_eq!((&sent["unknown"], &sent["warnings"][0]["field"]), (&json!(["bob"]), &json!("/exclude")));
    let refused = json!({ "audience": { "alias": "bob" }, "data": 1 });
    let refused = world.ok(422, "POST /v1/messages", refused).await;
    assert!(refused["error"]["message"].as_str().unwrap().contains("`bob`"), "{refused}");
    let sound = world.ok(202, "POST /v1/messages", json!({ "audience": "all", "data": 1 })).await;
    assert!(sound.get("unknown").is_none() && sound.get("warnings").is_none(), "{sound}");
}

#[tokio::test]
async fn a_push_to_nobody_says_so() {
    let world = World::new();
    world.device("d1").await;
    for (audience, expected) in [
        (json!({ "tag": "newz" }), &["nobody_targeted", "unused_tag"][..]),
        (json!({ "topic": "news/none" }), &["nobody_targeted", "no_subscribers"]),
        (json!({ "platform": "ios" }), &["nobody_targeted", "unused_platform"]),
        (json!({ "and": ["all", { "device": "gone" }] }), &["nobody_targeted", "unknown_device"]),
        (json!({ "not": "all" }), &["nobody_targeted"]),
        (json!({ "or": ["all", { "tag": "newz" }] }), &["unused_tag"]),
    ] {
        let message = json!({ "audience": audience, "data": 1 });
        let sent = world.ok(202, "POST /v1/messages", message).await;
        assert_eq!(warned(&sent), expected, "{audience}");
        let estimate = world.ok(200, "POST /v1/messages/estimate", json!({ "audience": audience })).await;
        assert_eq!(warned(&estimate), expected, "{audience}");
    }
    let message = json!({ "audience": "all", "data": 1, "ttl_secs": 0 });
    assert_eq!(warned(&world.ok(202, "POST /v1/messages", message).await), ["nobody_connected"]);
}

#[tokio::test]
async fn messages_are_listed_newest_first_and_cancelled() {
    let world = World::new();
    world.device("d1").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(world.message_to("d1").await);
        world.advance(1);
    }
    let page = world.ok(200, "GET /v1/messages?limit=2", Value::Null).await;
    assert_eq!(
        (&page["messages"][0]["message_id"], &page["messages"][1]["message_id"]),
        (&json!(ids[2]), &json!(ids[1]))
    );
    let cursor = page["next_cursor"].as_str().unwrap();
    let page = world.ok(200, &format!("GET /v1/messages?limit=2&cursor={cursor}"), Value::Null).await;
    assert_eq!((&page["messages"][0]["message_id"], &page["next_cursor"]), (&json!(ids[0]), &Value::Null));
    let line = format!("DELETE /v1/messages/{}", ids[0]);
    assert_eq!(world.ok(200, &line, Value::Null).await["cancelled"], 1);
    assert_eq!(world.ok(200, &line, Value::Null).await["cancelled"], 0);
    let report = world.ok(200, &format!("GET /v1/messages/{}", ids[0]), Value::Null).await;
    assert_eq!(report["states"], json!({ "cancelled": 1 }));
    assert_eq!(report["reasons"], json!([{ "state": "cancelled", "reason": "recalled", "count": 1 }]));
    assert!(report["cancelled_at"].is_string());
}

#[tokio::test]
async fn events_are_read_in_order_and_resumed() {
    let world = World::new();
    world.device("d1").await;
    let id = world.message_to("d1").await;
    world.ok(200, &format!("DELETE /v1/messages/{id}"), Value::Null).await;
    let mut after = String::new();
    let mut steps = Vec::new();
    loop {
        let page = world.ok(200, &format!("GET /v1/events?limit=1{after}"), Value::Null).await;
        let Some(event) = page["events"].get(0) else { break };
        assert_eq!((&event["message_id"], &event["count"]), (&json!(id), &json!(1)));
        assert_eq!(event["cursor"], page["next"]);
        steps.push(event["step"].as_str().unwrap().to_owned());
        after = format!("&after={}", page["next"].as_str().unwrap());
    }
    assert_eq!(steps.last().unwrap(), "cancelled");
    let (_, others) = world.call("other-app-key", "GET /v1/events", Value::Null).await;
    assert_eq!(others["events"], json!([]));
    let foreign = format!("GET /v1/events?after={:x}-0", world.api.engine.store.epoch() ^ 1);
    assert_eq!(code(&world.ok(409, &foreign, Value::Null).await), "cursor_from_other_history");
    for bad in ["x", "1", "-1", "1-", "1--1", "1-99999999999999999999"] {
        let answer = world.ok(400, &format!("GET /v1/events?after={bad}"), Value::Null).await;
        assert_eq!(code(&answer), "invalid_cursor", "{bad}");
    }
    assert_eq!(code(&world.ok(400, "GET /v1/events?wait=61", Value::Null).await), "invalid_parameter");
}

#[tokio::test]
async fn who_waits_for_events_is_woken_by_the_first() {
    let world = World::new();
    world.device("d1").await;
    let next = world.ok(200, "GET /v1/events", Value::Null).await["next"].as_str().unwrap().to_owned();
    let line = format!("GET /v1/events?wait=60&after={next}");
    let (events, id) = tokio::join!(world.ok(200, &line, Value::Null), world.message_to("d1"));
    assert_eq!(events["events"][0]["message_id"], json!(id));
}

#[tokio::test]
async fn only_so_many_wait_for_events_at_a_time() {
    let limits = ApiLimits { polls_max: 1, ..ApiLimits::default() };
    let world = World::with(limits, Limits::default());
    world.device("d1").await;
    let line = "GET /v1/events?wait=60";
    let next = async {
        let refused = world.ok(429, line, Value::Null).await;
        assert_eq!(code(&refused), "too_many_polls");
        let (status, _) = world.call("other-app-key", "GET /v1/events", Value::Null).await;
        assert_eq!(status, 200);
    };
    {
        // Dropped unanswered, as when the client goes away: its place is free again.
        let waiting = world.ok(200, line, Value::Null);
        tokio::pin!(waiting);
        tokio::select! { biased; _ = &mut waiting => panic!("nothing happened yet"), () = next => {} }
    }
    let (events, _) = tokio::join!(world.ok(200, line, Value::Null), world.message_to("d1"));
    assert!(!events["events"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn a_topic_is_published_to_and_shows_its_subscribers() {
    let world = World::new();
    world.device("d1").await;
    let session = world.connect("d1");
    let subscription = StoredSubscription {
        filter: "public/+".into(),
        share: None,
        qos: 1,
        no_local: false,
        retain_as_published: false,
        id: None,
    };
    world.api.engine.subscribe(session, vec![subscription], Box::new(|granted| assert_eq!(granted, [Ok(1)])));
    let publish = json!({ "payload_json": { "n": 1 }, "qos": 1, "retain": true });
    let answer = world.ok(202, "POST /v1/topics/public%2Fnews/publish", publish).await;
    assert_eq!(answer, json!({ "topic": "public/news", "sessions": 1 }));
    let topic = world.ok(200, "GET /v1/topics/public%2Fnews", Value::Null).await;
    let expected = json!({
        "topic": "public/news", "subscribers": 1, "retained": { "qos": 1, "expires_at": null },
    });
    assert_eq!(topic, expected);
    let clear = json!({ "payload_text": "", "retain": true });
    world.ok(202, "POST /v1/topics/public%2Fnews/publish", clear).await;
    assert_eq!(world.ok(200, "GET /v1/topics/public%2Fnews", Value::Null).await["retained"], Value::Null);
    let good = json!({ "payload_text": "x" });
    let long = "x".repeat(513);
    for bad in ["a%2F%2B", "%23", "$SYS%2Fx", "$push%2Finbox", "a%00b", "a%0Ab", &long, &"a%2F".repeat(17)] {
        let answer = world.ok(400, &format!("POST /v1/topics/{bad}/publish"), good.clone()).await;
        assert_eq!(code(&answer), "invalid_topic", "{bad:.30}");
    }
    for body in [
        json!({}),
        json!({ "payload_text": "a", "payload_base64": "" }),
        json!({ "payload_text": "", "qos": 3 }),
    ] {
        let answer = world.ok(400, "POST /v1/topics/t/publish", body.clone()).await;
        assert_eq!(code(&answer), "invalid_field", "{body}");
    }
    let large = json!({ "payload_text": "x".repeat(65_537) });
    assert_eq!(code(&world.ok(413, "POST /v1/topics/t/publish", large).await), "payload_too_large");
}

#[tokio::test]
async fn apps_and_keys_come_and_go() {
    let world = World::new();
    let admin = |line: &'static str, body: Value| world.call(ADMIN_KEY, line, body);
    let (status, app) = admin("POST /v1/apps", json!({ "id": "shop", "name": "The shop" })).await;
    assert_eq!((status, &app["name"], &app["devices"]), (201, &json!("The shop"), &json!(0)));
    assert_eq!(code(&admin("POST /v1/apps", json!({ "id": "shop" })).await.1), "app_exists");
    assert_eq!(code(&admin("POST /v1/apps", json!({ "id": "Shop!" })).await.1), "invalid_field");
    assert_eq!(code(&admin("GET /v1/apps/none", Value::Null).await.1), "no_such_app");
    let (status, key) = admin("POST /v1/apps/shop/keys", json!({ "scope": "send", "name": "ci" })).await;
    assert_eq!(status, 201);
    let text = key["key"].as_str().unwrap();
    assert!(text.starts_with("prk_") && text.len() == 47);
    let message = json!({ "audience": "all", "data": 1 });
    assert_eq!(world.call(text, "POST /v1/messages", message.clone()).await.0, 202);
    let (_, list) = admin("GET /v1/apps/shop/keys", Value::Null).await;
    assert!(list["keys"][0].get("key").is_none());
    let line = format!("DELETE /v1/apps/shop/keys/{}", key["id"].as_str().unwrap());
    assert_eq!(world.call(ADMIN_KEY, &line, Value::Null).await.0, 204);
    assert_eq!(world.call(text, "POST /v1/messages", message).await.0, 401);
    let (_, list) = admin("GET /v1/apps/shop/keys", Value::Null).await;
    assert!(list["keys"][0]["revoked_at"].is_string());
    assert_eq!(code(&admin("DELETE /v1/apps/shop/keys/none", Value::Null).await.1), "no_such_key");
    let (status, answer) = admin("POST /v1/apps/shop/keys", json!({ "scope": "admin" })).await;
    assert_eq!((status, code(&answer)), (400, "invalid_field"));
    let (_, page) = admin("GET /v1/apps?limit=2", Value::Null).await;
    let rest = format!("GET /v1/apps?limit=2&cursor={}", page["next_cursor"].as_str().unwrap());
    let (_, page) = world.call(ADMIN_KEY, &rest, Value::Null).await;
    assert_eq!((&page["apps"][0]["id"], &page["next_cursor"]), (&json!("shop"), &Value::Null));
}

#[tokio::test]
async fn the_books_balance() {
    let world = World::new();
    world.device("d1").await;
    world.message_to("d1").await;
    let (status, audit) = world.call(ADMIN_KEY, "POST /v1/admin/audit", Value::Null).await;
    assert_eq!((status, &audit["balanced"]), (200, &json!(true)));
    assert_eq!(audit["apps"][0], json!({ "id": "default", "created": 1, "ended": 0, "open": 1, "gap": 0 }));
    let (_, app) = world.call(ADMIN_KEY, "GET /v1/apps/default", Value::Null).await;
    assert_eq!(app["deliveries"], json!({ "created": 1, "open": 1, "ended": {} }));
}

#[tokio::test]
async fn a_store_that_takes_nothing_is_told_with_a_time_to_wait() {
    let world = World::new();
    world.device("d1").await;
    for (error, why, secs) in [
        (StoreError::StorageLow { free_bytes: 1 }, "storage_low", 10),
        (StoreError::Overloaded, "overloaded", 1),
        (StoreError::Failed("disk".into()), "unavailable", 1),
    ] {
        world.store.fail_next(error);
        let message = json!({ "audience": { "device": "d1" }, "data": 1 });
        let answer = world.ok(503, "POST /v1/messages", message).await;
        assert_eq!((code(&answer), &answer["error"]["retry_after_secs"]), (why, &json!(secs)));
    }
    let message = json!({ "audience": { "device": "d1" }, "data": 1 });
    world.ok(202, "POST /v1/messages", message).await;
}

#[tokio::test]
async fn the_answer_waits_for_stable_storage() {
    let world = World::new();
    world.device("d1").await;
    world.store.hold();
    let sending = world.message_to("d1");
    tokio::pin!(sending);
    let first =
        std::future::poll_fn(|cx| std::task::Poll::Ready(sending.as_mut().poll(cx).is_pending())).await;
    assert!(first, "answered before the store told");
    world.store.release_all();
    sending.await;
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_the_same_shape() {
    let world = World::new();
    for (line, status, why) in [
        ("GET /nothing", 404, "no_such_route"),
        ("GET /v1", 404, "no_such_route"),
        ("GET /v1/devices/", 404, "no_such_route"),
        ("GET //v1/apps", 404, "no_such_route"),
        ("GET /v1/admin/%2e%2e/apps", 404, "no_such_route"),
        ("GET /x;/../v1/apps", 404, "no_such_route"),
        ("GET /v1/devices/%00", 404, "no_such_device"),
        ("GET /v1/devices/%c0%ae", 400, "invalid_parameter"),
        ("GET /v1/devices/..%2f..%2fapps", 404, "no_such_device"),
        ("PUT /v1/messages", 405, "method_not_allowed"),
        ("DELETE /v1/apps", 405, "method_not_allowed"),
    ] {
        let (got, answer) = world.call("default-app-key", line, Value::Null).await;
        assert_eq!((got, code(&answer)), (status, why), "{line}");
    }
    let request = Request::put("/v1/devices").body(Body::empty()).unwrap();
    let (_, headers, _) = world.request(request).await;
    assert_eq!(headers["allow"], "POST,GET,HEAD");
}

#[test]
fn times_are_shown_as_people_write_them() {
    for (ms, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_399_999, "2000-02-28T23:59:59.999Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (951_868_800_000, "2000-03-01T00:00:00.000Z"),
        (1_709_164_800_001, "2024-02-29T00:00:00.001Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
    ] {
        assert_eq!(super::super::Time(ms).to_string(), text);
    }
}

#[tokio::test]
async fn a_topic_can_be_named_beside_the_path() {
    let world = World::new();
    let body = |topic: &str| json!({ "topic": topic, "payload_text": "kept", "retain": true });
    let published = world.ok(202, "POST /v1/topics/publish", body("a/b c/publish")).await;
    assert_eq!(published["topic"], "a/b c/publish");
    for line in ["GET /v1/topics?topic=a/b%20c/publish", "GET /v1/topics/a%2Fb%20c%2Fpublish"] {
        let shown = world.ok(200, line, Value::Null).await;
        assert_eq!((&shown["topic"], shown["retained"].is_object()), (&json!("a/b c/publish"), true));
    }
    // The path and the body may both name it, when they agree.
    world.ok(202, "POST /v1/topics/a%2Fb/publish", body("a/b")).await;
    let other = world.ok(400, "POST /v1/topics/a%2Fb/publish", body("a/c")).await;
    assert_eq!((code(&other), &other["error"]["field"]), ("invalid_field", &json!("/topic")));
    let missing = world.ok(400, "POST /v1/topics/publish", json!({ "payload_text": "x" })).await;
    assert_eq!(missing["error"]["field"], "/topic");
    assert_eq!(code(&world.ok(400, "POST /v1/topics/publish", body("$sys")).await), "invalid_topic");
    assert_eq!(code(&world.ok(400, "GET /v1/topics", Value::Null).await), "invalid_parameter");
    // A topic with the name of the call is one like others.
    world.ok(202, "POST /v1/topics/publish/publish", json!({ "payload_text": "x" })).await;
    assert_eq!(world.ok(200, "GET /v1/topics/publish", Value::Null).await["topic"], "publish");
}

#[tokio::test]
async fn a_batch_goes_no_further_than_the_room_of_its_app() {
    let limits = Limits { app_messages_max: 2, direct_max: 1, broadcasts_max: 1, ..Limits::default() };
    let world = World::with(ApiLimits::default(), limits);
    for device in ["d1", "d2"] {
        world.device(device).await;
    }
    let to = |audience: Value| json!({ "audience": audience, "data": 1 });
    let batch = json!({ "messages": [to(json!("all")), to(json!("all")), to(json!({ "device": "d1" })),
        to(json!({ "device": "d2" }))] });
    let answer = world.ok(200, "POST /v1/messages/batch", batch).await;
    let codes = |answer: &Value| -> Vec<Value> {
        answer["results"].as_array().unwrap().iter().map(|r| r["error"]["code"].clone()).collect()
    };
    let wanted = [Value::Null, json!("too_many_broadcasts"), Value::Null, json!("app_full")];
    assert_eq!(codes(&answer), wanted, "{answer}");
}
