//! Client and server talk, in virtual time.

use crate::support::*;
use bytes::Bytes;
use postrider_proto::mqtt::packet::Disconnect;
use postrider_proto::mqtt::{
    ClientConfig, ClientConnection, ClientError, ClientEvent, Inflight, Level, ServerConfig,
};
use postrider_proto::{
    Accepted, Close, ConnectRefusal, Deliver, Delivered, Event, Goodbye, Output, Publish, PublishOutcome,
    PublishProperties, Qos, Reply, ServerProtocol, Subscription, Text, Will,
};
use std::sync::Arc;

const ALL_QOS: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];

fn own(text: &str) -> String {
    text.to_owned()
}

#[test]
fn a_client_of_each_level_signs_in_subscribes_and_unsubscribes() {
    for level in LEVELS {
        let mut pair = Pair::connect(client(level), ServerConfig::default());
        assert!(pair.client.is_connected(), "{level:?}");
        assert_eq!(pair.server.connection.level(), Some(level));
        let filters =
            vec![Subscription::new("a/#", Qos::AtLeastOnce), Subscription::new("a/#/b", Qos::AtMostOnce)];
        pair.client_writes(|client, bytes| {
            client.subscribe(filters, None, 0, bytes);
        });
        let refused = if level.is_v5() { 0x8F } else { 0x80 };
        assert_eq!(pair.heard.last(), Some(&ClientEvent::Subscribed { id: 1, codes: vec![1, refused] }));
        pair.client_writes(|client, bytes| {
            client.unsubscribe(vec![Text::from("a/#")], 0, bytes);
        });
        let codes = if level.is_v5() { vec![0] } else { vec![] };
        assert_eq!(pair.heard.last(), Some(&ClientEvent::Unsubscribed { id: 2, codes }));
    }
}

#[test]
fn publishes_of_each_qos_reach_the_server_once_and_are_acknowledged() {
    for level in LEVELS {
        let mut pair = Pair::connect(client(level), ServerConfig::default());
        for qos in ALL_QOS {
            let token = pair.publish(message("t", "x", qos));
            let answered = pair.heard.contains(&ClientEvent::Published { token, code: 0 });
            assert_eq!(answered, qos != Qos::AtMostOnce, "{level:?} {qos:?}");
        }
        assert_eq!(pair.server.published().len(), 3);
        assert_eq!(pair.client.unacked(), 0);
    }
}

#[test]
fn deliveries_of_each_qos_reach_the_client_and_are_acknowledged() {
    for level in LEVELS {
        let mut pair = Pair::connect(client(level), ServerConfig::default());
        for (delivery, qos) in ALL_QOS.into_iter().enumerate() {
            let how = plain(100 + delivery as u64, qos);
            assert_eq!(pair.server.deliver(message("t", "x", qos), how), Delivered::Written);
            pair.settle();
        }
        assert_eq!(pair.messages(), vec![(own("t"), own("x")); 3]);
        assert_eq!(pair.server.acked(), [101, 102], "{level:?}");
        assert_eq!(pair.server.connection.window(), 32);
    }
}

#[test]
fn a_delivery_carries_what_belongs_to_it() {
    let properties = PublishProperties {
        content_type: Some(Text::from("text/plain")),
        user: vec![(Text::from("k"), Text::from("v"))],
        expiry_secs: Some(1_000),
        ..PublishProperties::default()
    };
    let publish =
        Publish { properties: Some(Box::new(properties.clone())), ..message("t", "x", Qos::AtLeastOnce) };
    for subscription_ids in [&[][..], &[1, 300][..]] {
        let mut pair = Pair::connect(client(Level::V5), ServerConfig::default());
        let how = Deliver {
            retain: true,
            dup: true,
            subscription_ids,
            expiry_left_secs: Some(7),
            cursor: None,
            ..plain(1, Qos::AtLeastOnce)
        };
        pair.server.deliver(publish.clone(), how);
        pair.settle();
        let Some(ClientEvent::Message { publish, subscription_ids: ids, .. }) = pair.heard.last() else {
            panic!("no message")
        };
        assert_eq!(ids, subscription_ids);
        assert!(publish.retain && publish.dup && publish.qos == Qos::AtLeastOnce);
        let expected = PublishProperties { expiry_secs: Some(7), ..properties.clone() };
        assert_eq!(publish.properties.as_deref(), Some(&expected));
    }
}

#[test]
fn one_message_for_many_peers_is_each_peers_own() {
    let mut fanned = postrider_proto::Fanned::new(message("t", "x", Qos::ExactlyOnce));
    let mut got = Vec::new();
    for (level, qos, expiry) in [
        (Level::V311, Qos::AtLeastOnce, None),
        (Level::V31, Qos::ExactlyOnce, Some(5)),
        (Level::V311, Qos::AtMostOnce, None),
        (Level::V5, Qos::AtLeastOnce, None),
        (Level::V5, Qos::ExactlyOnce, Some(9)),
        (Level::V5, Qos::ExactlyOnce, Some(8)),
        (Level::V5, Qos::AtMostOnce, Some(7)),
    ] {
        let mut server = Server::connected(level, ServerConfig::default());
        let how = Deliver { expiry_left_secs: expiry, ..plain(1, qos) };
        server.connection.handle_deliver(&mut fanned, how, 0, &mut server.bytes);
        got.push(server.bytes);
    }
    let expected = [
        "32 06 0001 74 0001 78",
        "34 06 0001 74 0001 78",
        "30 04 0001 74 78",
        "32 07 0001 74 0001 00 78",
        "34 0C 0001 74 0001 05 02 00000009 78",
        "34 0C 0001 74 0001 05 02 00000008 78",
        "30 0A 0001 74 05 02 00000007 78",
    ];
    // The payload is one byte; the id two: the first two lines have their own.
    let expected: Vec<_> = expected.iter().map(|text| hex(text)).collect();
    assert_eq!(got[2..], expected[2..]);
    assert_eq!(got[0], hex("32 06 0001 74 0001 78"));
    assert_eq!(got[1], hex("34 06 0001 74 0001 78"));
}

#[test]
fn qos1_unacked_is_resent_with_dup_and_its_old_id_after_reconnect() {
    for level in [Level::V311, Level::V5] {
        let config = ClientConfig { acks_by_hand: true, ..client(level) };
        let mut pair = Pair::connect(config.clone(), ServerConfig::default());
        for delivery in [10, 11, 12] {
            pair.server.deliver(
                message("t", &delivery.to_string(), Qos::AtLeastOnce),
                plain(delivery, Qos::AtLeastOnce),
            );
        }
        pair.settle();
        let Some(ClientEvent::Message { receipt: Some(second), .. }) = pair.heard.get(2) else { panic!() };
        let second = *second;
        pair.client_writes(|client, bytes| client.ack(second, 0, 0, bytes));
        assert_eq!(pair.server.acked(), [11]);
        let Pair { client: old, mut server, .. } = pair;
        let kept = server.connection.take_inflight().expect("two are unsettled");
        assert_eq!(kept.deliveries().collect::<Vec<_>>(), [10, 12]);

        let resumed = ClientConnection::resume(Arc::new(config), old.into_session());
        let mut pair = Pair::connect_with(resumed, ServerConfig::default(), session(Some(kept)));
        assert_eq!(pair.server.connection.window(), 32);
        for delivery in [10, 12] {
            let how = plain(delivery, Qos::AtLeastOnce);
            assert_eq!(pair.server.deliver(message("t", "x", Qos::AtLeastOnce), how), Delivered::Written);
        }
        pair.settle();
        let receipts = pair.heard.iter().filter_map(|event| match event {
            ClientEvent::Message { publish, receipt: Some(receipt), .. } => Some((publish.dup, receipt.id)),
            _ => None,
        });
        assert_eq!(receipts.collect::<Vec<_>>(), [(true, 1), (true, 3)]);
    }
}

#[test]
fn qos2_released_goes_on_with_pubrel_after_reconnect() {
    for level in [Level::V311, Level::V5] {
        let mut server = Server::connected(level, ServerConfig::default());
        server.deliver(message("t", "x", Qos::ExactlyOnce), plain(7, Qos::ExactlyOnce));
        server.deliver(message("t", "y", Qos::ExactlyOnce), plain(8, Qos::ExactlyOnce));
        server.written();
        server.feed(&hex("50 02 0001"));
        assert_eq!(server.written(), hex("62 02 0001"));
        let kept = server.connection.take_inflight();

        let mut server = Server::new(ServerConfig::default());
        server.accepted = session(kept);
        server.feed(&connect_bytes(level));
        let written = server.written();
        assert!(written.ends_with(&hex("62 02 0001")), "PUBREL follows the CONNACK");
        // The inbox still has both: the released one is not sent again, the other with its id and DUP.
        assert_eq!(
            server.deliver(message("t", "x", Qos::ExactlyOnce), plain(7, Qos::ExactlyOnce)),
            Delivered::Written
        );
        assert!(server.written().is_empty());
        server.deliver(message("t", "y", Qos::ExactlyOnce), plain(8, Qos::ExactlyOnce));
        assert_eq!(server.written()[..1], [0x3C]);
        server.feed(&hex("70 02 0001 50 02 0002 70 02 0002"));
        assert_eq!(server.acked(), [7, 8]);
    }
}

#[test]
fn packet_ids_go_on_where_the_session_says() {
    let mut server = Server::new(ServerConfig::default());
    server.accepted = session(Some(Inflight::starting_at(700)));
    server.feed(&connect_bytes(Level::V311));
    server.written();
    server.deliver(message("t", "x", Qos::AtLeastOnce), plain(1, Qos::AtLeastOnce));
    assert_eq!(server.written(), hex("32 06 0001 74 02BC 78"));
}

#[test]
fn a_qos2_publish_is_taken_once_over_duplicates_and_reconnects() {
    for level in [Level::V311, Level::V5] {
        let publish =
            if level.is_v5() { hex("3C 07 0001 74 0009 00 78") } else { hex("3C 06 0001 74 0009 78") };
        let mut server = Server::connected(level, ServerConfig::default());
        server.feed(&publish);
        server.feed(&publish);
        assert_eq!(server.written(), hex("50 02 0009 50 02 0009"));
        assert_eq!(server.published().len(), 1);
        let kept = server.connection.take_inflight();

        let mut server = Server::new(ServerConfig::default());
        server.accepted = session(kept);
        server.feed(&connect_bytes(level));
        server.written();
        server.feed(&publish);
        server.feed(&hex("62 02 0009"));
        assert_eq!(server.written(), hex("50 02 0009 70 02 0009"));
        assert_eq!(server.published().len(), 0);
        server.feed(&publish);
        assert_eq!(server.published().len(), 1, "released, so the id names a new message");
    }
}

#[test]
fn a_qos2_publish_unanswered_at_the_end_is_new_when_it_comes_again() {
    let mut server = Server::connected(Level::V311, ServerConfig::default());
    server.holds_answers = true;
    server.feed(&hex("34 06 0001 74 0009 78"));
    assert!(server.connection.take_inflight().is_none());

    // An answer that comes after the end, but before the state is taken, counts.
    let mut server = Server::connected(Level::V311, ServerConfig::default());
    server.holds_answers = true;
    server.feed(&hex("34 06 0001 74 0009 78 E0 00"));
    let Some(Event::Publish { token, .. }) = server.events.first() else { panic!() };
    let token = *token;
    server.reply(Reply::Publish { token, outcome: PublishOutcome::Accepted });
    assert!(server.written().is_empty());
    assert!(server.connection.take_inflight().is_some());
}

#[test]
fn the_clients_own_publishes_survive_a_reconnect() {
    for (session_present, dup) in [(true, true), (false, false)] {
        let config = client(Level::V5);
        let mut pair = Pair::connect(config.clone(), ServerConfig::default());
        pair.server.holds_answers = true;
        let token = pair.publish(message("t", "x", Qos::AtLeastOnce));
        let resumed = ClientConnection::resume(Arc::new(config), pair.client.into_session());
        let accepted = Accepted { session_present, ..Accepted::default() };
        let pair = Pair::connect_with(resumed, ServerConfig::default(), Some(accepted));
        let Some(Event::Publish { publish, .. }) = pair.server.events.get(1) else { panic!() };
        assert_eq!(publish.dup, dup);
        assert!(pair.heard.contains(&ClientEvent::Published { token, code: 0 }));
    }
}

#[test]
fn the_window_is_the_smaller_of_the_clients_receive_maximum_and_ours() {
    for (level, receive_maximum, expected) in [
        (Level::V5, Some(2), 2),
        (Level::V5, Some(500), 32),
        (Level::V5, None, 32),
        (Level::V311, Some(2), 32),
    ] {
        let config = ClientConfig { receive_maximum, acks_by_hand: true, ..client(level) };
        let mut pair = Pair::connect(config, ServerConfig::default());
        assert_eq!(pair.server.connection.window(), expected);
        for delivery in 0..expected as u64 {
            let delivered =
                pair.server.deliver(message("t", "x", Qos::AtLeastOnce), plain(delivery, Qos::AtLeastOnce));
            assert_eq!(delivered, Delivered::Written);
        }
        let before = pair.server.bytes.len();
        let one_more = pair.server.deliver(message("t", "x", Qos::AtLeastOnce), plain(99, Qos::AtLeastOnce));
        assert_eq!((one_more, pair.server.bytes.len()), (Delivered::WindowFull, before));
        let at_qos0 = pair.server.deliver(message("t", "x", Qos::AtMostOnce), plain(0, Qos::AtMostOnce));
        assert_eq!(at_qos0, Delivered::Written);
    }
}

#[test]
fn a_client_keeps_to_the_servers_receive_maximum() {
    let mut pair =
        Pair::connect(client(Level::V5), ServerConfig { receive_maximum: 3, ..ServerConfig::default() });
    assert_eq!(pair.connack().receive_maximum, Some(3));
    pair.server.holds_answers = true;
    for _ in 0..3 {
        pair.publish(message("t", "x", Qos::AtLeastOnce));
    }
    let refused = pair.client.publish(message("t", "x", Qos::AtLeastOnce), 0, &mut Vec::new());
    assert_eq!(refused, Err(ClientError::WindowFull));
    assert_eq!(pair.server.close, None);
}

#[test]
fn a_server_uses_aliases_as_the_client_grants_them() {
    for qos in ALL_QOS {
        let mut server = Server::new(ServerConfig::default());
        server.feed(&hex("10 11 0004 4D515454 05 02 003C 03 22 0001 0001 63"));
        server.written();
        let mut sizes = Vec::new();
        for topic in ["long/topic", "long/topic", "other", "long/topic"] {
            server.deliver(message(topic, "x", qos), plain(1, qos));
            sizes.push(server.written());
        }
        let id = |text: &str| if qos == Qos::AtMostOnce { String::new() } else { text.to_owned() };
        let first = 0x30 | (qos as u8) << 1;
        let len = |body: u8| if qos == Qos::AtMostOnce { body } else { body + 2 };
        let topic = "6C6F6E672F746F706963";
        let expected = [
            format!("{first:02X} {:02X} 000A {topic} {} 03 23 0001 78", len(17), id("0001")),
            format!("{first:02X} {:02X} 0000 {} 03 23 0001 78", len(7), id("0002")),
            format!("{first:02X} {:02X} 0005 6F74686572 {} 00 78", len(9), id("0003")),
            format!("{first:02X} {:02X} 0000 {} 03 23 0001 78", len(7), id("0004")),
        ];
        assert_eq!(sizes, expected.map(|text| hex(&text)));
    }
}

#[test]
fn both_ends_understand_the_servers_aliases() {
    let config = ClientConfig { topic_alias_maximum: 2, ..client(Level::V5) };
    let mut pair = Pair::connect(config, ServerConfig::default());
    for topic in ["a", "b", "c", "b", "a", "c"] {
        pair.server.deliver(message(topic, "", Qos::AtMostOnce), plain(0, Qos::AtMostOnce));
    }
    pair.settle();
    let topics: Vec<_> = pair.messages().into_iter().map(|(topic, _)| topic).collect();
    assert_eq!(topics, ["a", "b", "c", "b", "a", "c"]);
}

#[test]
fn a_clients_alias_stands_for_its_topic_until_it_is_defined_anew() {
    let mut server = Server::connected(Level::V5, ServerConfig::default());
    server.feed(&hex("30 08 0001 61 03 23 0002 31  30 07 0000 03 23 0002 32"));
    server.feed(&hex("30 08 0001 62 03 23 0002 33  30 07 0000 03 23 0002 34"));
    let expected = [("a", "1"), ("a", "2"), ("b", "3"), ("b", "4")];
    assert_eq!(server.published(), expected.map(|(topic, payload)| (own(topic), own(payload))));
}

#[test]
fn a_message_larger_than_the_client_takes_is_dropped_silently() {
    for topic_alias_maximum in [0, 4] {
        let config = ClientConfig { packet_bytes_max: 64, topic_alias_maximum, ..client(Level::V5) };
        let mut pair = Pair::connect(config, ServerConfig::default());
        let large = "x".repeat(64);
        let delivered =
            pair.server.deliver(message("t", &large, Qos::AtLeastOnce), plain(1, Qos::AtLeastOnce));
        assert_eq!((delivered, pair.server.bytes.len()), (Delivered::TooLarge, 0));
        assert_eq!(pair.server.connection.window(), 32);
        let delivered = pair.server.deliver(message("t", "x", Qos::AtLeastOnce), plain(2, Qos::AtLeastOnce));
        assert_eq!(delivered, Delivered::Written);
    }
}

#[test]
fn silence_of_one_and_a_half_keepalives_ends_the_connection() {
    for level in LEVELS {
        let mut server = Server::connected(level, ServerConfig::default());
        server.pass(50_000);
        server.feed(&hex("C0 00"));
        assert_eq!(server.written(), hex("D0 00"));
        assert_eq!(server.connection.next_timeout(), Some(140_000));
        server.pass(89_999);
        assert_eq!(server.close, None);
        server.pass(1);
        assert_eq!(server.close, Some(Close { kind: "keepalive", gentle: level.is_v5() }));
        assert_eq!(server.written(), if level.is_v5() { hex("E0 01 8D") } else { vec![] });
    }
}

#[test]
fn half_a_packet_is_no_sign_of_life() {
    let mut server = Server::connected(Level::V311, ServerConfig::default());
    server.pass(89_000);
    server.feed(&hex("C0"));
    server.pass(1_000);
    assert_eq!(server.close.map(|close| close.kind), Some("keepalive"));
}

#[test]
fn a_client_pings_by_itself_and_gives_a_dead_server_up() {
    let mut pair = Pair::connect(client(Level::V5), ServerConfig::default());
    for _ in 0..10 {
        pair.pass(60_000);
    }
    assert_eq!(pair.heard.iter().filter(|event| **event == ClientEvent::Pong).count(), 10);
    assert_eq!((pair.client_close, pair.server.close), (None, None));
    let mut out = postrider_proto::mqtt::ClientOutput::default();
    pair.client.handle_timeout(660_000, &mut out);
    pair.client.handle_timeout(720_000, &mut out);
    assert_eq!(out.close, Some("ping_timeout"));
}

#[test]
fn an_mqtt5_client_is_told_the_servers_keepalive_when_it_asks_for_more_or_none() {
    for (asked, told, in_force) in [(120, Some(60), 60), (0, Some(60), 60), (60, None, 60), (30, None, 30)] {
        let server = ServerConfig { server_keepalive_secs: Some(60), ..ServerConfig::default() };
        let pair = Pair::connect(ClientConfig { keepalive_secs: asked, ..client(Level::V5) }, server);
        assert_eq!(pair.connack().server_keepalive_secs, told);
        assert_eq!(pair.server.connection.keepalive_secs(), in_force);
        assert_eq!(pair.server.connection.next_timeout(), Some(u64::from(in_force) * 1_500));
    }
}

#[test]
fn a_v3_client_without_keepalive_has_the_idle_limit_only() {
    for (idle_secs, expected) in [(0, None), (3_600, Some(3_600_000))] {
        let server = ServerConfig { keepalive_zero_secs: idle_secs, ..ServerConfig::default() };
        let pair = Pair::connect(ClientConfig { keepalive_secs: 0, ..client(Level::V31) }, server);
        assert_eq!(pair.server.connection.next_timeout(), expected);
    }
}

#[test]
fn the_connack_tells_what_the_server_does_not_have() {
    let server = ServerConfig {
        retain_available: false,
        wildcard_available: false,
        shared_available: false,
        maximum_qos: Qos::AtLeastOnce,
        session_expiry_secs_max: 100,
        topic_alias_maximum: 0,
        receive_maximum: u16::MAX,
        ..ServerConfig::default()
    };
    let pair = Pair::connect(client(Level::V5), server);
    let told = pair.connack();
    assert_eq!((told.retain_available, told.maximum_qos), (Some(false), Some(1)));
    assert_eq!((told.wildcard_available, told.shared_available), (Some(false), Some(false)));
    assert_eq!((told.session_expiry_secs, told.topic_alias_maximum), (Some(100), None));
    assert_eq!((told.receive_maximum, told.packet_bytes_max), (None, Some(65_536)));
    let Some(Event::Connect(connect)) = pair.server.events.first() else { panic!() };
    assert_eq!(connect.session_expiry_secs, 100);
}

#[test]
fn a_client_without_a_name_is_told_the_assigned_one() {
    let accepted = Accepted { assigned_client_id: Some(Text::from("auto-1")), ..Accepted::default() };
    let nameless = ClientConfig { client_id: Text::default(), clean_start: true, ..client(Level::V5) };
    let pair = Pair::connect_with(
        ClientConnection::new(Arc::new(nameless)),
        ServerConfig::default(),
        Some(accepted),
    );
    assert_eq!(pair.connack().assigned_client_id.as_deref(), Some("auto-1"));
}

#[test]
fn the_will_comes_with_all_its_fields() {
    let properties = PublishProperties {
        content_type: Some(Text::from("t")),
        expiry_secs: Some(9),
        correlation: Some(Bytes::from_static(b"c")),
        ..PublishProperties::default()
    };
    let publish = Publish {
        retain: true,
        properties: Some(Box::new(properties)),
        ..message("will/topic", "gone", Qos::ExactlyOnce)
    };
    let will = Box::new(Will { publish, delay_secs: 30 });
    let pair = Pair::connect(
        ClientConfig { will: Some(will.clone()), ..client(Level::V5) },
        ServerConfig::default(),
    );
    let Some(Event::Connect(connect)) = pair.server.events.first() else { panic!() };
    assert_eq!(connect.will.as_ref(), Some(&will));
}

#[test]
fn session_expiry_of_v3_follows_from_the_clean_session() {
    for (clean_start, expected) in [(true, 0), (false, u32::MAX)] {
        let pair =
            Pair::connect(ClientConfig { clean_start, ..client(Level::V311) }, ServerConfig::default());
        let Some(Event::Connect(connect)) = pair.server.events.first() else { panic!() };
        assert_eq!((connect.session_expiry_secs, connect.clean_start), (expected, clean_start));
    }
}

#[test]
fn a_refused_sign_in_is_told_why_and_closed_gently() {
    for (refusal, v3, v5) in [
        (ConnectRefusal::ClientIdInvalid, 2, 0x85),
        (ConnectRefusal::BadCredentials, 4, 0x86),
        (ConnectRefusal::NotAuthorized, 5, 0x87),
        (ConnectRefusal::RateExceeded, 3, 0x9F),
        (ConnectRefusal::Banned, 5, 0x8A),
        (ConnectRefusal::Unavailable, 3, 0x88),
        (ConnectRefusal::TopicInvalid, 5, 0x90),
        (ConnectRefusal::QuotaExceeded, 3, 0x97),
        (ConnectRefusal::RetainNotSupported, 5, 0x9A),
    ] {
        for level in LEVELS {
            let mut server = Server::new(ServerConfig::default());
            let mut out = Output::default();
            server.connection.handle_bytes(&connect_bytes(level), 0, &mut out);
            server.reply(Reply::Connect(Err(refusal)));
            let expected = if level.is_v5() { vec![0x20, 3, 0, v5, 0] } else { vec![0x20, 2, 0, v3] };
            assert_eq!(server.written(), expected);
            assert!(server.close.unwrap().gentle);
        }
    }
}

#[test]
fn packets_ahead_of_the_connack_wait_for_it() {
    for level in LEVELS {
        let mut connection = Server::new(ServerConfig::default()).connection;
        let mut out = Output::default();
        let mut stream = connect_bytes(level);
        stream.extend(hex("C0 00 C0"));
        connection.handle_bytes(&stream, 0, &mut out);
        connection.handle_bytes(&hex("00 E0 00"), 0, &mut out);
        assert_eq!((out.events.len(), out.bytes.len()), (1, 0));
        connection.handle_reply(Reply::Connect(Ok(Box::default())), 0, &mut out);
        assert!(out.bytes.ends_with(&hex("D0 00 D0 00")), "{:?}", out.bytes);
        assert!(matches!(out.events[1], Event::Disconnect { with_will: false, .. }));
        assert_eq!(out.close, Some(Close { kind: "disconnect", gentle: false }));
    }
}

#[test]
fn a_disconnect_ends_it_at_once_and_says_what_becomes_of_will_and_session() {
    for (bytes, with_will, expiry) in
        [("E0 00", false, None), ("E0 01 04", true, None), ("E0 07 00 05 11 00000007", false, Some(7))]
    {
        let mut server = Server::new(ServerConfig::default());
        server.feed(&hex("10 13 0004 4D515454 05 02 003C 05 11 00000010 0001 63"));
        server.written();
        server.feed(&hex(bytes));
        server.feed(&hex("C0 00"));
        let Some(Event::Disconnect { with_will: will, session_expiry_secs }) = server.events.last() else {
            panic!()
        };
        assert_eq!((*will, *session_expiry_secs), (with_will, expiry));
        assert_eq!(server.close, Some(Close { kind: "disconnect", gentle: false }));
        assert!(server.written().is_empty());
    }
}

#[test]
fn the_servers_farewell_has_its_reason() {
    for (why, kind, code) in [
        (Goodbye::TakenOver, "taken_over", 0x8E),
        (Goodbye::ServerShuttingDown, "shutting_down", 0x8B),
        (Goodbye::Revoked, "revoked", 0x87),
        (Goodbye::QuotaExceeded, "quota_exceeded", 0x97),
        (Goodbye::SlowReader, "slow_reader", 0x97),
        (Goodbye::BadAcks, "bad_acks", 0x97),
        (Goodbye::Busy, "busy", 0x89),
        (Goodbye::Unavailable, "unavailable", 0x89),
        (Goodbye::SessionExpired, "session_expired", 0xA0),
    ] {
        for level in LEVELS {
            let mut server = Server::connected(level, ServerConfig::default());
            let mut out = Output::default();
            server.connection.handle_goodbye(why, 0, &mut out);
            assert_eq!(out.close, Some(Close { kind, gentle: level.is_v5() }));
            assert_eq!(out.bytes, if level.is_v5() { vec![0xE0, 1, code] } else { vec![] });
            let delivered = server.deliver(message("t", "", Qos::AtMostOnce), plain(0, Qos::AtMostOnce));
            assert_eq!((delivered, server.connection.window()), (Delivered::NotReady, 0));
        }
    }
}

#[test]
fn a_publish_that_is_not_allowed_is_refused_in_5_and_acknowledged_in_3() {
    for (outcome, code) in [
        (PublishOutcome::NoSubscribers, 0x10),
        (PublishOutcome::NotAuthorized, 0x87),
        (PublishOutcome::QuotaExceeded, 0x97),
        (PublishOutcome::TopicInvalid, 0x90),
        (PublishOutcome::PayloadInvalid, 0x99),
    ] {
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            for level in LEVELS {
                let mut pair = Pair::connect(client(level), ServerConfig::default());
                pair.server.publish_outcome = outcome;
                let token = pair.publish(message("t", "x", qos));
                // The end of a QoS 2 hand-shake has no code of its own; a refusal ends it early.
                let told = level.is_v5() && (qos == Qos::AtLeastOnce || code >= 0x80);
                let code = if told { code } else { 0 };
                assert!(
                    pair.heard.contains(&ClientEvent::Published { token, code }),
                    "{outcome:?} {level:?}"
                );
                assert_eq!(pair.server.close, None);
            }
        }
    }
}

#[test]
fn a_publish_that_cannot_be_stored_closes_without_an_acknowledgement() {
    for level in LEVELS {
        let mut server = Server::connected(level, ServerConfig::default());
        server.publish_outcome = PublishOutcome::Unavailable;
        let publish = if level.is_v5() { "32 07 0001 74 0001 00 78" } else { "32 06 0001 74 0001 78" };
        server.feed(&hex(publish));
        assert_eq!(server.close, Some(Close { kind: "unavailable", gentle: level.is_v5() }));
        assert_eq!(server.written(), if level.is_v5() { hex("E0 01 89") } else { vec![] });
    }
}

#[test]
fn a_delivery_refused_by_the_client_is_reported_with_its_code() {
    let mut server = Server::connected(Level::V5, ServerConfig::default());
    server.deliver(message("t", "x", Qos::AtLeastOnce), plain(5, Qos::AtLeastOnce));
    server.deliver(message("t", "x", Qos::ExactlyOnce), plain(6, Qos::ExactlyOnce));
    server.written();
    server.feed(&hex("40 03 0001 83 50 03 0002 99"));
    let refused: Vec<_> = server.events.iter().map(|event| format!("{event:?}")).collect();
    assert_eq!(refused, ["Refused { delivery: 5, code: 131 }", "Refused { delivery: 6, code: 153 }"]);
    assert_eq!((server.written(), server.connection.window()), (vec![], 32));
}

#[test]
fn the_client_says_goodbye() {
    for level in LEVELS {
        let mut pair = Pair::connect(client(level), ServerConfig::default());
        pair.client_writes(|client, bytes| client.disconnect(Disconnect::default(), 0, bytes));
        assert!(matches!(pair.server.events.last(), Some(Event::Disconnect { with_will: false, .. })));
        assert_eq!(pair.server.close, Some(Close { kind: "disconnect", gentle: false }));
    }
}

/// A CONNECT of 3.x with the bit of a bridge in its level.
fn bridge_connect(level: u8) -> Vec<u8> {
    match level {
        0x83 => hex("10 10 0006 4D5149736470 83 02 003C 0002 6231"),
        level => hex(&format!("10 0E 0004 4D515454 {level:02X} 02 003C 0002 6231")),
    }
}

#[test]
fn a_bridge_is_taken_in_and_gets_nothing_of_its_own_back_and_retain_flags_as_they_were_published() {
    for (stated, level) in [(0x83, 3), (0x84, 4)] {
        let mut server = Server::new(ServerConfig::default());
        server.feed(&bridge_connect(stated));
        assert_eq!(server.bytes, hex("20 02 00 00"), "{stated:02X}");
        let Some(Event::Connect(connect)) = server.events.first() else { panic!("no sign-in") };
        assert_eq!((connect.level, connect.client_id.as_str()), (level, "b1"));
        server.feed(&hex("82 06 0001 0001 23 01"));
        server.feed(&hex("82 11 0002 000C 2473686172652F672F6A2F23 01"));
        let of_bridge = |event: &Event| match event {
            Event::Subscribe { filters, .. } => Some((filters[0].no_local, filters[0].retain_as_published)),
            _ => None,
        };
        let options: Vec<_> = server.events.iter().filter_map(of_bridge).collect();
        // No own messages back would be an error for a shared subscription (MQTT 5, 3.8.3.1).
        assert_eq!(options, [(true, true), (false, true)], "{stated:02X}");
    }
    let mut plain = Server::connected(Level::V311, ServerConfig::default());
    plain.feed(&hex("82 06 0001 0001 23 01"));
    let Some(Event::Subscribe { filters, .. }) = plain.events.first() else { panic!("no subscription") };
    assert!(!filters[0].no_local && !filters[0].retain_as_published);
}

#[test]
fn unknown_levels_are_refused_in_the_form_that_their_client_reads() {
    for (level, answer) in [
        (0x00, "20 02 00 01"),
        (0x03, "20 02 00 01"),
        (0x80, "20 02 00 01"),
        (0x82, "20 02 00 01"),
        (0x85, "20 02 00 01"),
        (0xFF, "20 02 00 01"),
        (0x06, "20 03 00 84 00"),
        (0x7F, "20 03 00 84 00"),
    ] {
        let mut server = Server::new(ServerConfig::default());
        server.feed(&bridge_connect(level));
        assert_eq!(server.bytes, hex(answer), "{level:02X}");
        assert!(server.close.is_some(), "{level:02X}");
    }
}
