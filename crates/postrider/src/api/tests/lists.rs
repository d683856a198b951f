//! What lists and reports show of what was sent, and how messages are found.

use super::*;

async fn found(world: &World, filter: &str) -> Vec<String> {
    let (mut titles, mut cursor) = (Vec::new(), String::new());
    loop {
        let line = format!("GET /v1/messages?limit=1{filter}{cursor}");
        let page = world.ok(200, &line, Value::Null).await;
        let messages = page["messages"].as_array().unwrap();
        titles.extend(messages.iter().map(|m| m["title"].as_str().unwrap_or("-").to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return titles,
        }
    }
}

#[tokio::test]
async fn a_report_shows_what_was_sent_to_whom_and_by_which_key_after_the_message_has_ended() {
    let world = World::new();
    world.device("d1").await;
    let body = json!({
        "audience": { "device": "d1" },
        "exclude": { "tag": "quiet" },
        "notification": { "title": "Lunch", "body": "At noon" },
    });
    let sent = world.ok(202, "POST /v1/messages", body).await;
    let line = format!("/v1/messages/{}", sent["message_id"].as_str().unwrap());
    world.ok(200, &format!("DELETE {line}"), Value::Null).await;
    let report = world.ok(200, &format!("GET {line}"), Value::Null).await;
    assert_eq!(report["audience"], json!({ "device": "d1" }));
    assert_eq!(report["exclude"], json!({ "tag": "quiet" }));
    assert_eq!((&report["title"], &report["body"]), (&json!("Lunch"), &json!("At noon")));
    assert_eq!(report["sent_by"], "id-of-default-app-key");
    let page = world.ok(200, "GET /v1/messages", Value::Null).await;
    assert_eq!(page["messages"][0], report);
}

#[tokio::test]
async fn messages_are_found_by_time_state_key_and_text() {
    let world = World::new();
    world.device("d1").await;
    for title in ["One", "Two", "Three"] {
        let body = json!({ "audience": { "device": "d1" }, "notification": { "title": title } });
        world.ok(202, "POST /v1/messages", body).await;
        world.advance(1000);
    }
    let page = world.ok(200, "GET /v1/messages", Value::Null).await;
    let middle = page["messages"][1]["accepted_at"].as_str().unwrap().to_owned();
    let key = page["messages"][0]["sent_by"].as_str().unwrap().to_owned();
    let id = page["messages"][2]["message_id"].as_str().unwrap();
    world.ok(200, &format!("DELETE /v1/messages/{id}"), Value::Null).await;
    assert_eq!(found(&world, "").await, ["Three", "Two", "One"]);
    assert_eq!(found(&world, &format!("&since={middle}")).await, ["Three", "Two"]);
    assert_eq!(found(&world, &format!("&until={middle}")).await, ["One"]);
    assert_eq!(found(&world, "&state=cancelled").await, ["One"]);
    assert_eq!(found(&world, "&text=tW").await, ["Two"]);
    assert_eq!(found(&world, "&text=d1&state=queued").await, ["Three", "Two"]);
    assert_eq!(found(&world, &format!("&sent_by={key}")).await.len(), 3);
    assert_eq!(found(&world, "&sent_by=key-of-nobody").await, [""; 0]);
    for wrong in ["since=soon", "state=lost", "texts=x"] {
        let (status, _) =
            world.call("default-app-key", &format!("GET /v1/messages?{wrong}"), Value::Null).await;
        assert_eq!(status, 400, "{wrong}");
    }
}

#[tokio::test]
async fn texts_are_not_kept_where_the_setting_says_so() {
    let world = World::with(ApiLimits::default(), Limits { report_texts: false, ..Limits::default() });
    world.device("d1").await;
    world.message_to("d1").await;
    let page = world.ok(200, "GET /v1/messages", Value::Null).await;
    let report = &page["messages"][0];
    assert_eq!((&report["title"], &report["body"]), (&Value::Null, &Value::Null));
    assert_eq!(report["audience"], json!({ "device": "d1" }));
}
