//! Users sign out, devices are found by when they were seen and pruned, apps are renamed and deleted.

use super::*;

#[tokio::test]
async fn what_waits_for_a_user_who_signs_out_is_not_shown_to_the_next() {
    let world = World::with(ApiLimits::default(), Limits { direct_max: 1, ..Limits::default() });
    world.device("d1").await;
    world.device("d2").await;
    let broadcast = json!({ "audience": "all", "data": 1 });
    for by in ["inbox", "alias", "profile", "none"] {
        let direct = world.message_to("d1").await;
        let sent = world.ok(202, "POST /v1/messages", broadcast.clone()).await;
        let wide = sent["message_id"].as_str().unwrap().to_owned();
        assert_eq!(world.ok(200, "GET /v1/devices/d1", Value::Null).await["inbox_len"], 2);
        match by {
            "inbox" => {
                let cleared = world.ok(200, "DELETE /v1/devices/d1/inbox", Value::Null).await;
                assert_eq!(cleared, json!({ "cancelled": 2 }));
            }
            "alias" => {
                let bob = json!({ "alias": "bob", "drop_pending": true });
                world.ok(204, "PUT /v1/devices/d1/alias", bob).await;
            }
            "profile" => {
                let ann = json!({ "alias": "ann", "drop_pending": true });
                world.ok(200, "PATCH /v1/devices/d1", ann).await;
            }
            _ => _ = world.ok(204, "DELETE /v1/devices/d1/alias?drop_pending=true", Value::Null).await,
        }
        assert_eq!(world.ok(200, "GET /v1/devices/d1", Value::Null).await["inbox_len"], 0, "{by}");
        for id in [direct, wide] {
            let line = format!("GET /v1/messages/{id}/deliveries/d1");
            let delivery = world.ok(200, &line, Value::Null).await;
            assert_eq!((&delivery["state"], &delivery["reason"]), (&json!("cancelled"), &json!("recalled")));
        }
    }
    // The other device keeps its own, and without the wish nothing is dropped.
    assert_eq!(world.ok(200, "GET /v1/devices/d2", Value::Null).await["inbox_len"], 4);
    world.message_to("d1").await;
    world.ok(204, "PUT /v1/devices/d1/alias", json!({ "alias": "cy" })).await;
    assert_eq!(world.ok(200, "GET /v1/devices/d1", Value::Null).await["inbox_len"], 1);
}

/// The ids of all pages of a list.
async fn all_pages(world: &World, query: &str) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = world.ok(200, &format!("GET /v1/devices?limit=2{query}{cursor}"), Value::Null).await;
        let devices = page["devices"].as_array().unwrap();
        assert!(devices.len() <= 2);
        ids.extend(devices.iter().map(|d| d["device_id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
}

/// `d0` to `d4`, registered a day after each other; `d1` was seen at the end, and `d2` is connected.
async fn five_devices() -> World {
    let world = World::new();
    for i in 0..5 {
        world.device(&format!("d{i}")).await;
        world.advance(86_400_000);
    }
    let at = world.api.engine.store.device_by_id(AppNo(0), "d1").unwrap();
    world.api.engine.store.seen(at, world.clock.now());
    world.connect("d2");
    world
}

#[tokio::test]
async fn devices_are_found_by_when_they_were_seen() {
    let world = five_devices().await;
    assert_eq!(all_pages(&world, "").await, ["d0", "d1", "d2", "d3", "d4"]);
    assert_eq!(all_pages(&world, "&connected=true").await, ["d2"]);
    assert_eq!(all_pages(&world, "&connected=false").await, ["d0", "d1", "d3", "d4"]);
    // The fourth day is 2023-11-17; what is connected is seen now.
    assert_eq!(all_pages(&world, "&seen_before=2023-11-18T00:00:00Z").await, ["d0", "d3"]);
    assert_eq!(all_pages(&world, "&seen_after=2023-11-18T00:00:00Z").await, ["d1", "d2", "d4"]);
    assert_eq!(all_pages(&world, "&sort=last_seen&connected=false").await, ["d0", "d3", "d4", "d1"]);
    let bad = world.ok(400, "GET /v1/devices?seen_before=yesterday", Value::Null).await;
    assert_eq!((code(&bad), &bad["error"]["field"]), ("invalid_parameter", &json!("seen_before")));
    let foreign = world.ok(200, "GET /v1/devices?limit=1", Value::Null).await;
    let line = format!("GET /v1/devices?sort=last_seen&cursor={}", foreign["next_cursor"].as_str().unwrap());
    assert_eq!(code(&world.ok(400, &line, Value::Null).await), "invalid_cursor");
}

#[tokio::test]
async fn devices_that_nobody_sees_are_pruned_some_at_a_time() {
    let world = five_devices().await;
    let waiting = world.message_to("d0").await;
    let mut request = json!({ "unseen_secs": 86_400, "limit": 1, "dry_run": true });
    let counted = world.ok(200, "POST /v1/devices/prune", request.clone()).await;
    assert_eq!((&counted["devices"], &counted["deleted"]), (&json!(["d0"]), &json!(false)));
    request["dry_run"] = json!(false);
    let mut pruned = Vec::new();
    loop {
        let done = world.ok(200, "POST /v1/devices/prune", request.clone()).await;
        assert_eq!(done["deleted"], true);
        pruned.extend(done["devices"].as_array().unwrap().clone());
        if done["next_cursor"].is_null() {
            break;
        }
        request["cursor"] = done["next_cursor"].clone();
    }
    assert_eq!(json!(pruned), json!(["d0", "d3"]));
    assert_eq!(all_pages(&world, "").await, ["d1", "d2", "d4"]);
    let report = world.ok(200, &format!("GET /v1/messages/{waiting}"), Value::Null).await;
    let expected = json!([{ "state": "erased", "reason": "unregistered", "count": 1 }]);
    assert_eq!(report["reasons"], expected);
    let soon = json!({ "unseen_secs": 3600 });
    assert_eq!(code(&world.ok(400, "POST /v1/devices/prune", soon).await), "invalid_field");
}

#[tokio::test]
async fn an_app_is_renamed_and_deleted_with_all_that_it_has() {
    let world = World::new();
    let renamed = world.call(ADMIN_KEY, "PATCH /v1/apps/other", json!({ "name": "New" })).await;
    assert_eq!((renamed.0, &renamed.1["name"]), (200, &json!("New")));
    let by = "other-app-key";
    let (_, made) = world.call(by, "POST /v1/devices", json!({ "device_id": "d1" })).await;
    let device = format!("other/d1:{}", made["device_secret"].as_str().unwrap());
    for audience in [json!({ "device": "d1" }), json!("all")] {
        let message = json!({ "audience": audience, "data": 1 });
        assert_eq!(world.call(by, "POST /v1/messages", message).await.0, 202);
    }
    assert_eq!(world.call(&device, "GET /v1/inbox", Value::Null).await.0, 200);
    let gone = world.call(ADMIN_KEY, "DELETE /v1/apps/default", Value::Null).await;
    assert_eq!((gone.0, code(&gone.1)), (409, "app_in_use"));

    assert_eq!(world.call(ADMIN_KEY, "DELETE /v1/apps/other", Value::Null).await.0, 204);
    assert_eq!(world.call(by, "GET /v1/messages", Value::Null).await.0, 401);
    assert_eq!(world.call(&device, "GET /v1/inbox", Value::Null).await.0, 401);
    assert_eq!(world.call(ADMIN_KEY, "GET /v1/apps/other", Value::Null).await.0, 404);
    assert_eq!(world.call(ADMIN_KEY, "DELETE /v1/apps/other", Value::Null).await.0, 404);
    while world.api.engine.store.closing_app().is_some() {
        world.api.engine.tick();
    }
    let audit = world.api.engine.store.audit();
    let (_, books) = audit.apps.iter().find(|(no, _)| *no == AppNo(1)).unwrap();
    assert_eq!((books.created, books.ended, books.open, books.gap()), (2, 2, 0, 0));
    assert!(world.api.engine.store.all_devices(AppNo(1)).is_empty());
    // Its id may be used anew, by an app that has nothing of it.
    let (status, again) = world.call(ADMIN_KEY, "POST /v1/apps", json!({ "id": "other" })).await;
    assert_eq!((status, &again["devices"], &again["messages"]), (201, &json!(0), &json!(0)));
}
