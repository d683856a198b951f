//! Acknowledgements of what was never given out cost nobody else anything.

use super::*;

async fn acknowledge(world: &World, by: &str, deliveries: &[String]) -> (u16, Value) {
    world.call(by, "POST /v1/inbox/acks", json!({ "deliveries": deliveries })).await
}

fn commands(world: &World) -> u64 {
    world.api.engine.store.stats().commands
}

#[tokio::test]
async fn acknowledgements_of_nothing_become_no_command_and_are_refused_after_the_first_thousand() {
    let world = World::new();
    let (phone, other) = (world.device("phone").await, world.device("other").await);
    world.message_to("phone").await;
    let (_, page) = world.call(&phone, "GET /v1/inbox", Value::Null).await;
    let delivery = page["messages"][0]["delivery"].as_str().unwrap().to_owned();
    let before = commands(&world);
    // A name tells nothing; a bare number, as an earlier release gave it out, is of no delivery.
    assert!(delivery.len() == 22 && delivery.parse::<u64>().is_err(), "{delivery}");
    let numbers: Vec<String> = (1..9).map(|n| n.to_string()).collect();
    assert_eq!(acknowledge(&world, &phone, &numbers).await, (200, json!({ "acknowledged": 0 })));
    // Another device's, one twice, and numbers that there are not.
    assert_eq!(acknowledge(&world, &other, std::slice::from_ref(&delivery)).await.1["acknowledged"], 0);
    let mut invented: Vec<String> = (1_000_000..1_000_980).map(|n| n.to_string()).collect();
    assert_eq!(acknowledge(&world, &phone, &invented).await.1["acknowledged"], 0);
    assert_eq!(commands(&world), before);
    // What is good among them is taken, once.
    let twice = [delivery.clone(), delivery.clone(), "77".to_owned()];
    assert_eq!(acknowledge(&world, &phone, &twice).await, (200, json!({ "acknowledged": 1 })));
    assert_eq!(commands(&world), before + 1);
    invented.truncate(20);
    let (status, refused) = acknowledge(&world, &phone, &invented).await;
    assert_eq!((status, code(&refused)), (429, "acks_too_often"));
    // That device alone waits, and not for good.
    assert_eq!(acknowledge(&world, &other, &invented).await.0, 200);
    world.advance(60_000);
    assert_eq!(acknowledge(&world, &phone, &invented).await.0, 200);
    assert_eq!(commands(&world), before + 1);
}
