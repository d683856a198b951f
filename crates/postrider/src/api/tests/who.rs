//! What a device says of itself, and what it shows to prove who it is.

use super::*;
use crate::tokens::Proof;
use postrider_core::access::Access;

async fn inbox_of(world: &World, device: &str) -> usize {
    let (status, answer) = world.call(device, "GET /v1/inbox", Value::Null).await;
    assert_eq!(status, 200, "{answer}");
    answer["messages"].as_array().unwrap().len()
}

/// A device that a page made with a key that everybody may read.
async fn stranger(world: &World) -> (String, String) {
    let (status, made) =
        world.call("default-register-key", "POST /v1/devices", json!({ "platform": "web" })).await;
    assert_eq!(status, 201, "{made}");
    let id = made["device_id"].as_str().unwrap().to_owned();
    let token = format!("{id}:{}", made["device_secret"].as_str().unwrap());
    (id, token)
}

#[tokio::test]
async fn a_device_that_a_page_registered_receives_nothing_that_is_for_a_user_or_a_group() {
    let world = World::new();
    let (id, stranger) = stranger(&world).await;
    let ann = json!({ "platform": "ios", "device_id": "anns", "alias": "ann", "tags": ["staff"] });
    world.ok(201, "POST /v1/devices", ann).await;
    let own = format!("/v1/devices/{id}");
    for (line, body) in [
        (format!("PUT {own}/alias"), json!({ "alias": "ann" })),
        (format!("DELETE {own}/alias"), Value::Null),
        (format!("PUT {own}/tags/staff"), Value::Null),
        (format!("DELETE {own}/tags/staff"), Value::Null),
        (format!("PATCH {own}"), json!({ "alias": "ann", "add_tags": ["staff"] })),
    ] {
        let (status, answer) = world.call(&stranger, &line, body).await;
        assert_eq!((status, code(&answer)), (403, "not_allowed"), "{line}: {answer}");
    }
    for audience in [json!({ "alias": "ann" }), json!({ "tag": "staff" }), json!({ "aliases": ["ann"] })] {
        let sent = world.ok(202, "POST /v1/messages", json!({ "audience": audience, "data": 1 })).await;
        assert_eq!(sent["targeted"], 1);
    }
    assert_eq!(inbox_of(&world, &stranger).await, 0);
}

#[tokio::test]
async fn devices_say_their_own_alias_and_tags_where_the_setting_lets_them() {
    let access = Access { own_alias_and_tags: true, ..Access::default() };
    let world = World::with_access(access);
    let device = world.device("d1").await;
    for (line, body) in [
        ("PUT /v1/devices/d1/alias", json!({ "alias": "ann" })),
        ("PUT /v1/devices/d1/tags/news", Value::Null),
    ] {
        assert_eq!(world.call(&device, line, body).await.0, 204, "{line}");
    }
    let (status, shown) = world.call(&device, "PATCH /v1/devices/d1", json!({ "add_tags": ["x"] })).await;
    assert_eq!((status, &shown["alias"], &shown["tags"]), (200, &json!("ann"), &json!(["news", "x"])));
}

#[tokio::test]
async fn devices_that_nobody_vouched_for_say_no_alias_and_tags_whatever_the_setting() {
    let access = Access { own_alias_and_tags: true, ..Access::default() };
    let world = World::with_access(access);
    let visitor = world.call("", "POST /demo/devices", json!({})).await.1;
    let visitor = (
        visitor["device_id"].as_str().unwrap().to_owned(),
        format!("{}:{}", visitor["device_id"].as_str().unwrap(), visitor["device_secret"].as_str().unwrap()),
    );
    let old = Registration {
        origin: None,
        quota: None,
        app: AppNo(0),
        id: "old".into(),
        secret_hash: Some(secret_hash(b"secret")),
        profile: Profile::default(),
        now: 1,
        idempotency: None,
    };
    let by_xmpp = Registration { id: "xmpp".into(), origin: Some(Origin::Xmpp), ..old.clone() };
    world.submit(Command::Register(Box::new(old)));
    world.submit(Command::Register(Box::new(by_xmpp)));
    let named = |id: &str| (id.to_owned(), format!("{id}:secret"));
    let all = [
        (stranger(&world).await, json!("register_key")),
        (visitor, json!("demo")),
        (named("xmpp"), json!("xmpp")),
        (named("old"), Value::Null),
    ];
    for ((id, token), by) in all {
        let line = format!("PUT /v1/devices/{id}/alias");
        let (status, answer) = world.call(&token, &line, json!({ "alias": "ann" })).await;
        assert_eq!((status, code(&answer)), (403, "not_allowed"), "{by}");
        assert_eq!(world.ok(200, &format!("GET /v1/devices/{id}"), Value::Null).await["registered_by"], by);
        // The app's server may say of any of them whose it is.
        world.ok(204, &line, json!({ "alias": "ann" })).await;
    }
}

#[tokio::test]
async fn devices_that_registered_themselves_have_a_quota_and_those_never_seen_make_room() {
    let world = World::with(ApiLimits::default(), Limits { own_devices_max: 3, ..Limits::default() });
    let mut strangers = Vec::new();
    for _ in 0..3 {
        strangers.push(stranger(&world).await);
    }
    assert_eq!(inbox_of(&world, &strangers[0].1).await, 0);
    let register = async || registers_from(&world, 9, "/v1/devices").await;
    // Nobody makes room who has just registered and is perhaps on the way.
    assert_eq!(code(&register().await.1), "device_quota");
    world.ok(201, "POST /v1/devices", json!({ "platform": "web" })).await;
    world.advance(600_000);
    assert_eq!(register().await.0, 201);
    let there =
        async |id: &str| world.call("default-app-key", &format!("GET /v1/devices/{id}"), Value::Null).await.0;
    assert_eq!(there(&strangers[0].0).await, 200, "who was there stays");
    assert_eq!((there(&strangers[1].0).await, there(&strangers[2].0).await), (404, 200), "the oldest goes");
    assert_eq!(inbox_of(&world, &strangers[2].1).await, 0);
    assert_eq!(code(&register().await.1), "device_quota");
    assert_eq!(
        world.api.metrics.registrations_refused.get_or_create(&[("limit", "quota".to_owned())]).get(),
        2
    );
    // Two were there, and the third is too young.
    assert_eq!(world.api.engine.store.own_devices(AppNo(0)).count, 3);
}

#[tokio::test]
async fn a_jwt_of_the_apps_server_says_alias_and_tags() {
    let world = World::new();
    world.device("d1").await;
    world.ok(200, "PATCH /v1/devices/d1", json!({ "tags": ["old"] })).await;
    let shown = async || world.ok(200, "GET /v1/devices/d1", Value::Null).await;
    let look = async |claims: Value| world.call(&world.jwt(claims), "GET /v1/inbox", Value::Null).await.0;
    assert_eq!(look(json!({ "sub": "d1", "alias": "ann", "tags": ["b", "a"] })).await, 200);
    let device = shown().await;
    assert_eq!((&device["alias"], &device["tags"]), (&json!("ann"), &json!(["a", "b"])));
    // What it does not say stays, and null takes away.
    assert_eq!(look(json!({ "sub": "d1" })).await, 200);
    assert_eq!(shown().await["alias"], json!("ann"));
    assert_eq!(look(json!({ "sub": "d1", "alias": null })).await, 200);
    let device = shown().await;
    assert_eq!((&device["alias"], &device["tags"]), (&Value::Null, &json!(["a", "b"])));
    // What cannot be an alias or a tag is not believed, and neither is the rest.
    for claims in [
        json!({ "sub": "d1", "alias": "x".repeat(65) }),
        json!({ "sub": "d1", "alias": "" }),
        json!({ "sub": "d1", "tags": ["a\nb"] }),
        json!({ "sub": "d1", "tags": "a" }),
        json!({ "sub": "d1", "alias": 7 }),
    ] {
        assert_eq!(look(claims.clone()).await, 401, "{claims}");
    }
    assert_eq!(shown().await["tags"], json!(["a", "b"]));
}

#[tokio::test]
async fn a_ticket_ends_with_the_first_of_its_chain_or_the_jwt_that_it_came_from() {
    let world = World::new();
    let device = world.device("d1").await;
    let renew = async |by: String| {
        let (status, made) = world.call(&by, "POST /v1/devices/d1/tickets", Value::Null).await;
        assert_eq!(status, 201, "{made}");
        (made["ticket"].as_str().unwrap().to_owned(), made["expires_at"].as_u64().unwrap())
    };
    let now = || world.api.engine.clock.now();
    let (mut ticket, end) = renew(device).await;
    assert_eq!(end, now() + 3_600_000);
    for _ in 0..3 {
        world.advance(1_000_000);
        let renewed = renew(ticket.clone()).await;
        assert_eq!(renewed.1, end);
        ticket = renewed.0;
    }
    world.advance(600_000);
    assert_eq!(world.call(&ticket, "GET /v1/inbox", Value::Null).await.0, 401);
    // The JWT is good for ten minutes.
    let ends_at = now() / 1_000 * 1_000 + 600_000;
    let (ticket, end) = renew(world.jwt(json!({ "sub": "d1" }))).await;
    assert_eq!(end, ends_at);
    let engine = &world.api.engine;
    let at = engine.store.device_by_id(AppNo(0), "d1").unwrap();
    let resume = world.api.tokens.resume_token(engine, at, "d1", Proof::Jwt { ends_at }).unwrap();
    assert_eq!(resume.1, ends_at);
    world.advance(600_000);
    for token in [ticket, resume.0] {
        assert_eq!(world.call(&token, "GET /v1/inbox", Value::Null).await.0, 401);
    }
}

#[tokio::test]
async fn a_new_secret_ends_what_the_old_one_began_and_keeps_device_and_inbox() {
    let world = World::new();
    let old = world.device("d1").await;
    world.ok(200, "PATCH /v1/devices/d1", json!({ "alias": "ann", "tags": ["news"] })).await;
    world.message_to("d1").await;
    world.connect("d1");
    let closed = world.closed.clone();
    let ticket = world.call(&old, "POST /v1/devices/d1/tickets", Value::Null).await.1;
    let ticket = ticket["ticket"].as_str().unwrap().to_owned();
    assert_eq!(inbox_of(&world, &ticket).await, 1);
    let made = world.ok(200, "POST /v1/devices/d1/secret", Value::Null).await;
    let new = format!("d1:{}", made["device_secret"].as_str().unwrap());
    assert_ne!(old, new);
    assert_eq!(closed.lock().unwrap().as_slice(), [Farewell::Revoked]);
    for token in [&old, &ticket] {
        assert_eq!(world.call(token, "GET /v1/inbox", Value::Null).await.0, 401);
    }
    assert_eq!(inbox_of(&world, &new).await, 1);
    let shown = world.ok(200, "GET /v1/devices/d1", Value::Null).await;
    assert_eq!((&shown["alias"], &shown["tags"]), (&json!("ann"), &json!(["news"])));
    // By itself, with a secret that it has drawn; a lost answer is asked for again with the app's key or the new secret.
    let own = json!({ "device_secret": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8" });
    let (status, made) = world.call(&new, "POST /v1/devices/d1/secret", own.clone()).await;
    assert_eq!((status, &made["device_secret"]), (200, &own["device_secret"]));
    assert_eq!(world.call(&new, "POST /v1/devices/d1/secret", Value::Null).await.0, 401);
    let newest = format!("d1:{}", own["device_secret"].as_str().unwrap());
    assert_eq!(inbox_of(&world, &newest).await, 1);
    for (by, refused) in [("default-send-key", 403), ("default-register-key", 403), ("other-app-key", 404)] {
        assert_eq!(world.call(by, "POST /v1/devices/d1/secret", Value::Null).await.0, refused, "{by}");
    }
    assert_eq!(
        world.ok(404, "POST /v1/devices/nobody/secret", Value::Null).await["error"]["code"],
        "no_such_device"
    );
}

#[tokio::test]
async fn a_device_brings_its_own_secret_so_that_a_lost_answer_can_be_repeated() {
    let world = World::new();
    let secret = "_-ECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    let new = json!({ "platform": "web", "device_secret": secret });
    for by in ["default-register-key", "default-app-key"] {
        let first = world.call(by, "POST /v1/devices", new.clone()).await;
        let again = world.call(by, "POST /v1/devices", new.clone()).await;
        assert_eq!((first.0, again.0), (201, 200), "{again:?}");
        assert_eq!(first.1["device_id"], again.1["device_id"]);
        assert_eq!((&first.1["device_secret"], &again.1["device_secret"]), (&json!(secret), &json!(secret)));
        let token = format!("{}:{secret}", first.1["device_id"].as_str().unwrap());
        assert_eq!(inbox_of(&world, &token).await, 0);
        // Another request with the same secret is a mistake of the client.
        let other = json!({ "platform": "ios", "device_secret": secret });
        assert_eq!(code(&world.call(by, "POST /v1/devices", other).await.1), "idempotency_mismatch");
    }
    for bad in
        ["", "short", &"A".repeat(42), &"A".repeat(44), &"+".repeat(43), &format!("{}=", "A".repeat(43))]
    {
        let new = json!({ "platform": "web", "device_secret": bad });
        let (status, answer) = world.call("default-app-key", "POST /v1/devices", new).await;
        assert_eq!((status, &answer["error"]["field"]), (400, &json!("/device_secret")), "{bad}");
    }
}

#[tokio::test]
async fn an_idempotency_key_belongs_to_the_key_that_used_it() {
    let world = World::new();
    let key = [("idempotency-key", "user-42")];
    let new = json!({ "platform": "web" });
    let register = async |by: &str| world.call_with(by, "POST /v1/devices", new.clone(), &key).await;
    let stranger = register("default-register-key").await;
    let backend = register("default-app-key").await;
    assert_eq!((stranger.0, backend.0), (201, 201));
    assert_ne!(stranger.1["device_id"], backend.1["device_id"]);
    assert!(backend.1["device_secret"].is_string());
    let again = register("default-app-key").await;
    assert_eq!((again.0, &again.1["device_id"]), (200, &backend.1["device_id"]));
    for (line, message) in [
        ("POST /v1/messages", json!({ "audience": "all", "data": 1 })),
        ("POST /v1/messages/batch", json!({ "messages": [{ "audience": "all", "data": 1 }] })),
    ] {
        let send = async |by: &str| {
            let answer = world.call_with(by, line, message.clone(), &key).await.1;
            let result = answer["results"].get(0).unwrap_or(&answer).clone();
            result["message_id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
        };
        let (first, other, again) =
            (send("default-send-key").await, send("default-app-key").await, send("default-send-key").await);
        assert_ne!(first, other, "{line}");
        assert_eq!(first, again, "{line}");
    }
}

#[tokio::test]
async fn names_that_no_path_can_carry_are_refused() {
    let world = World::new();
    for id in [".", ".."] {
        let new = json!({ "platform": "web", "device_id": id });
        let answer = world.ok(400, "POST /v1/devices", new).await;
        assert_eq!(answer["error"]["field"], "/device_id");
        let new = json!({ "platform": "web", "tags": [id] });
        assert_eq!(world.ok(400, "POST /v1/devices", new).await["error"]["field"], "/tags");
    }
    for id in ["...", ".a", "a..", "a:b", "-"] {
        world.ok(201, "POST /v1/devices", json!({ "platform": "web", "device_id": id })).await;
        world.ok(200, &format!("GET /v1/devices/{id}"), Value::Null).await;
    }
}

#[tokio::test]
async fn a_name_that_an_anonymous_client_has_taken_is_the_apps_to_give() {
    let world = World::with_access(Access::open());
    let engine = &world.api.engine;
    let attach = |client| Attach {
        client,
        connection: ConnectionRef { shard: 0, slot: 2, generation: 1 },
        clean: false,
        expiry_secs: 3600,
        will: None,
        takes_pushes: false,
        hears_peers: false,
    };
    for lasting in [false, true] {
        let name = format!("phone-{lasting}");
        let session =
            engine.connect(attach(engine.sign_in_anonymous(AppNo(0), &name).unwrap())).ok().unwrap().session;
        if lasting {
            let wanted = StoredSubscription {
                filter: "a/b".into(),
                share: None,
                qos: 1,
                no_local: false,
                retain_as_published: false,
                id: None,
            };
            engine.subscribe(session, vec![wanted], Box::new(|granted| assert_eq!(granted, [Ok(1)])));
        }
        let device = world.device(&name).await;
        assert_eq!(world.closed.lock().unwrap().drain(..).collect::<Vec<_>>(), [Farewell::Revoked]);
        let shown = world.ok(200, &format!("GET /v1/devices/{name}"), Value::Null).await;
        assert_eq!((&shown["anonymous"], &shown["subscriptions"]), (&json!(false), &json!([])));
        world.message_to(&name).await;
        assert_eq!(inbox_of(&world, &device).await, 1);
        assert!(engine.sign_in_anonymous(AppNo(0), &name).is_err());
        assert_eq!(engine.connected_count(), 0);
        // Who registers twice is refused, and the device stays.
        world.ok(409, "POST /v1/devices", json!({ "platform": "web", "device_id": name })).await;
        assert_eq!(inbox_of(&world, &device).await, 1);
    }
}

/// A registration with the public key, from that address.
async fn registers_from(world: &World, last: u8, path: &str) -> (u16, Value) {
    let mut request = Request::post(path)
        .header("authorization", "Bearer default-register-key")
        .header("content-type", "application/json")
        .body(Body::from(r#"{"platform":"web"}"#))
        .unwrap();
    request.extensions_mut().insert(Peer(([203, 0, 113, last], 1).into()));
    let (status, headers, answer) = world.request(request).await;
    assert_eq!(headers.contains_key("retry-after"), status.as_u16() == 429);
    (status.as_u16(), answer)
}

#[tokio::test]
async fn an_address_registers_so_many_devices_and_then_one_in_a_while() {
    let world = World::new();
    for n in 0..20 {
        let path = if n % 2 == 0 { "/v1/devices" } else { "/demo/devices" };
        assert_eq!(registers_from(&world, 1, path).await.0, 201, "{n}");
    }
    for path in ["/v1/devices", "/demo/devices"] {
        let (status, answer) = registers_from(&world, 1, path).await;
        assert_eq!((status, code(&answer)), (429, "too_many_registrations"));
    }
    // Others are not concerned, and neither is the app's server.
    assert_eq!(registers_from(&world, 2, "/v1/devices").await.0, 201);
    for _ in 0..40 {
        world.ok(201, "POST /v1/devices", json!({ "platform": "web" })).await;
    }
    world.advance(10_000);
    assert_eq!(registers_from(&world, 1, "/v1/devices").await.0, 201);
    assert_eq!(registers_from(&world, 1, "/v1/devices").await.0, 429);
    let refused = &world.api.metrics.registrations_refused;
    assert_eq!(refused.get_or_create(&[("limit", "address".to_owned())]).get(), 3);
}

#[tokio::test]
async fn one_key_registers_so_many_devices_from_all_addresses() {
    let limits = ApiLimits { key_registrations_burst: 5, ..ApiLimits::default() };
    let world = World::with(limits, Limits::default());
    for address in 0..5 {
        assert_eq!(registers_from(&world, address, "/v1/devices").await.0, 201);
    }
    assert_eq!(code(&registers_from(&world, 9, "/v1/devices").await.1), "too_many_registrations");
    world.advance(100);
    assert_eq!(registers_from(&world, 9, "/v1/devices").await.0, 201);
}

#[tokio::test]
async fn what_a_device_says_of_itself_is_small() {
    let world = World::new();
    let tokens = |number: usize, bytes: usize| {
        let token = |n| (format!("t{n}"), json!("x".repeat(bytes)));
        json!({ "platform": "web", "provider_tokens": serde_json::Map::from_iter((0..number).map(token)) })
    };
    let small = tokens(2, 4_000);
    let (large, huge) = (
        tokens(3, 4_000),
        json!({ "platform": "web", "tags":
        (0..1_000).map(|n| format!("{n:064}")).collect::<Vec<_>>(), "alias": "ann", "attributes": { "a": "x".repeat(1_024) },
        "provider_tokens": { "a": "x".repeat(4_000) } }),
    );
    let register = async |by: &str, body: &Value| world.call(by, "POST /v1/devices", body.clone()).await;
    assert_eq!(register("default-register-key", &small).await.0, 201);
    let (status, answer) = register("default-register-key", &large).await;
    assert_eq!((status, code(&answer)), (413, "profile_too_large"));
    assert_eq!(register("default-app-key", &large).await.0, 201);
    assert_eq!(code(&register("default-app-key", &huge).await.1), "profile_too_large");
    let device = world.device("d1").await;
    let line = "PATCH /v1/devices/d1";
    assert_eq!(code(&world.call(&device, line, large.clone()).await.1), "profile_too_large");
    world.ok(200, line, large).await;
    // It may go on with what the app's server gave it, and make it smaller, but not larger.
    let less = json!({ "provider_tokens": { "t0": "y" } });
    assert_eq!(world.call(&device, line, less).await.0, 200);
    let more = json!({ "provider_tokens": { "t0": "y".repeat(4_000) } });
    assert_eq!(code(&world.call(&device, line, more).await.1), "profile_too_large");
}

#[tokio::test]
async fn a_device_changes_itself_only_so_often() {
    let world = World::new();
    let device = world.device("d1").await;
    let change = async |by: &str| world.call(by, "PATCH /v1/devices/d1", json!({ "platform": "ios" })).await;
    for _ in 0..30 {
        assert_eq!(change(&device).await.0, 200);
    }
    assert_eq!(code(&change(&device).await.1), "changes_too_often");
    let secret = world.call(&device, "POST /v1/devices/d1/secret", Value::Null).await;
    assert_eq!(code(&secret.1), "changes_too_often");
    let claims = json!({ "sub": "d1", "tags": ["a"] });
    assert_eq!(
        code(&world.call(&world.jwt(claims), "GET /v1/inbox", Value::Null).await.1),
        "changes_too_often"
    );
    assert_eq!(change("default-app-key").await.0, 200);
    world.advance(1_000);
    assert_eq!(change(&device).await.0, 200);
}
