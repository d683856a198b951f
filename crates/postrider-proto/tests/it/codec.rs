//! The codec trio: vectors, round trips, and no bytes that make it panic.

use crate::support::*;
use bytes::Bytes;
use postrider_proto::mqtt::ServerConfig;
use postrider_proto::mqtt::codec::{self, Limits, ProtocolError};
use postrider_proto::mqtt::packet::*;
use postrider_proto::{Publish, PublishProperties, Qos, RetainHandling, Subscription, Text, Will};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn decode(bytes: &[u8], level: Level) -> Result<Packet, ProtocolError> {
    let header = codec::header(bytes, Some(level), usize::MAX)?.expect("a whole header");
    assert_eq!(header.total_len(), bytes.len());
    codec::decode(header, &bytes[header.header_len..], level, &Limits::of_protocol())
}

fn encode(packet: &Packet, level: Level) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(packet, level, &mut bytes);
    bytes
}

fn assert_both_ways(level: Level, text: &str, packet: &Packet) {
    assert_eq!(encode(packet, level), hex(text), "{packet:?}");
    assert_eq!(&decode(&hex(text), level).unwrap(), packet, "{text}");
}

fn connect(level: Level) -> Connect {
    Connect {
        level,
        is_bridge: false,
        client_id: Text::from("c"),
        clean_start: true,
        keepalive_secs: 60,
        user: None,
        password: None,
        will: None,
        properties: ConnectProperties::default(),
    }
}

#[test]
fn connect_is_written_and_read_at_every_level() {
    for level in LEVELS {
        assert_eq!(encode(&Packet::Connect(Box::new(connect(level))), level), connect_bytes(level));
        assert_eq!(decode(&connect_bytes(level), level).unwrap(), Packet::Connect(Box::new(connect(level))));
    }
    let whole = Connect {
        clean_start: false,
        user: Some(Text::from("u")),
        password: Some(Bytes::from_static(b"p")),
        will: Some(Box::new(Will {
            publish: Publish { retain: true, ..message("w", "x", Qos::AtLeastOnce) },
            delay_secs: 5,
        })),
        properties: ConnectProperties {
            session_expiry_secs: Some(16),
            receive_maximum: Some(10),
            ..ConnectProperties::default()
        },
        ..connect(Level::V5)
    };
    assert_both_ways(
        Level::V5,
        "10 28 0004 4D515454 05 EC 003C 08 11 00000010 21 000A 0001 63 05 18 00000005 0001 77 0001 78 0001 75 0001 70",
        &Packet::Connect(Box::new(whole)),
    );
}

#[test]
fn connack_is_written_and_read_at_every_level() {
    let present = Packet::ConnAck(Box::new(ConnAck { session_present: true, ..ConnAck::default() }));
    assert_both_ways(Level::V311, "20 02 01 00", &present);
    assert_both_ways(Level::V5, "20 03 01 00 00", &present);
    assert_eq!(encode(&present, Level::V31), hex("20 02 00 00"));
    let refused = Packet::ConnAck(Box::new(ConnAck { code: 0x87, ..ConnAck::default() }));
    assert_both_ways(Level::V5, "20 03 00 87 00", &refused);
    let properties = ConnAckProperties {
        receive_maximum: Some(20),
        assigned_client_id: Some(Text::from("ab")),
        server_keepalive_secs: Some(60),
        ..ConnAckProperties::default()
    };
    let granted = Packet::ConnAck(Box::new(ConnAck { properties, ..ConnAck::default() }));
    assert_both_ways(Level::V5, "20 0E 00 00 0B 21 0014 12 0002 6162 13 003C", &granted);
}

#[test]
fn publish_is_written_and_read_at_every_level() {
    let publish = message("a/b", "hi", Qos::AtLeastOnce);
    let packet = Packet::Publish(PublishPacket { publish, id: 10, ..PublishPacket::default() });
    assert_both_ways(Level::V31, "32 09 0003 612F62 000A 6869", &packet);
    assert_both_ways(Level::V311, "32 09 0003 612F62 000A 6869", &packet);
    assert_both_ways(Level::V5, "32 0A 0003 612F62 000A 00 6869", &packet);
    let properties = PublishProperties {
        payload_is_utf8: true,
        expiry_secs: Some(2),
        content_type: Some(Text::from("t")),
        response_topic: Some(Text::from("r")),
        correlation: Some(Bytes::from_static(&[9])),
        user: vec![(Text::from("k"), Text::from("v"))],
    };
    let publish =
        Publish { retain: true, properties: Some(Box::new(properties)), ..message("a", "", Qos::AtMostOnce) };
    let packet = PublishPacket { publish, id: 0, alias: Some(3), subscription_ids: vec![1, 200] };
    assert_both_ways(
        Level::V5,
        "31 26 0001 61 22 02 00000002 23 0003 0B 01 0B C801 01 01 03 0001 74 08 0001 72 09 0001 09 26 0001 6B 0001 76",
        &Packet::Publish(packet),
    );
}

#[test]
fn acknowledgements_take_their_shortest_form() {
    let ok = Ack { id: 0x1234, code: 0 };
    for (level, code) in [(Level::V31, 0), (Level::V311, 0), (Level::V5, 0)] {
        assert_both_ways(level, "40 02 1234", &Packet::PubAck(Ack { code, ..ok }));
        assert_both_ways(level, "50 02 1234", &Packet::PubRec(ok));
        assert_both_ways(level, "62 02 1234", &Packet::PubRel(ok));
        assert_both_ways(level, "70 02 1234", &Packet::PubComp(ok));
    }
    assert_both_ways(Level::V5, "40 03 1234 10", &Packet::PubAck(Ack { code: 0x10, ..ok }));
    assert_both_ways(Level::V5, "62 03 1234 92", &Packet::PubRel(Ack { code: 0x92, ..ok }));
    // With a reason string and a user property: read, and not kept.
    let with_reason = hex("40 0F 1234 87 0B 1F 0001 78 26 0001 6B 0001 76");
    assert_eq!(decode(&with_reason, Level::V5).unwrap(), Packet::PubAck(Ack { code: 0x87, ..ok }));
    assert_eq!(decode(&hex("40 04 1234 00 00"), Level::V5).unwrap(), Packet::PubAck(ok));
    assert_eq!(decode(&hex("40 03 1234 00"), Level::V311), Err(ProtocolError::MALFORMED));
}

#[test]
fn subscribe_and_its_answer_are_written_and_read_at_every_level() {
    let plain = Subscription::new("a/+", Qos::AtLeastOnce);
    let subscribe = |filters| Subscribe { id: 2, subscription_id: None, filters, excess: 0 };
    let packet = Packet::Subscribe(subscribe(vec![plain.clone()]));
    assert_both_ways(Level::V31, "82 08 0002 0003 612F2B 01", &packet);
    assert_both_ways(Level::V311, "82 08 0002 0003 612F2B 01", &packet);
    let shared = Subscription {
        share: Some(Text::from("g")),
        retain_as_published: true,
        retain_handling: RetainHandling::DoNotSend,
        ..Subscription::new("t", Qos::ExactlyOnce)
    };
    let local = Subscription { no_local: true, ..plain };
    let packet = Subscribe { subscription_id: Some(5), ..subscribe(vec![shared, local]) };
    assert_both_ways(
        Level::V5,
        "82 18 0002 02 0B05 000A 2473686172652F672F74 2A 0003 612F2B 05",
        &Packet::Subscribe(packet),
    );
    let suback = Packet::SubAck(SubAck { id: 2, codes: vec![0, 1, 2, 0x80] });
    assert_both_ways(Level::V311, "90 06 0002 00010280", &suback);
    assert_both_ways(Level::V5, "90 07 0002 00 00010280", &suback);
}

#[test]
fn unsubscribe_and_its_answer_are_written_and_read_at_every_level() {
    let packet =
        Packet::Unsubscribe(Unsubscribe { id: 3, filters: vec![Text::from("a"), Text::from("$share/g/b")] });
    assert_both_ways(Level::V311, "A2 11 0003 0001 61 000A 2473686172652F672F62", &packet);
    assert_both_ways(Level::V5, "A2 12 0003 00 0001 61 000A 2473686172652F672F62", &packet);
    assert_both_ways(Level::V311, "B0 02 0003", &Packet::UnsubAck(UnsubAck { id: 3, codes: vec![] }));
    assert_both_ways(
        Level::V5,
        "B0 05 0003 00 0011",
        &Packet::UnsubAck(UnsubAck { id: 3, codes: vec![0, 0x11] }),
    );
}

#[test]
fn pings_disconnect_and_auth_are_written_and_read() {
    for level in LEVELS {
        assert_both_ways(level, "C0 00", &Packet::PingReq);
        assert_both_ways(level, "D0 00", &Packet::PingResp);
        assert_both_ways(level, "E0 00", &Packet::Disconnect(Box::default()));
    }
    let with_code = Disconnect { code: 0x8E, ..Disconnect::default() };
    assert_both_ways(Level::V5, "E0 01 8E", &Packet::Disconnect(Box::new(with_code)));
    let with_expiry = Disconnect { code: 4, session_expiry_secs: Some(7), ..Disconnect::default() };
    assert_both_ways(Level::V5, "E0 07 04 05 11 00000007", &Packet::Disconnect(Box::new(with_expiry)));
    let auth = Auth { code: 0x18, method: Some(Text::from("m")), ..Auth::default() };
    assert_both_ways(Level::V5, "F0 06 18 04 15 0001 6D", &Packet::Auth(Box::new(auth)));
}

#[test]
fn topic_and_payload_are_slices_of_one_buffer() {
    let Packet::Publish(packet) = decode(&hex("30 07 0003 612F62 6869"), Level::V311).unwrap() else {
        panic!()
    };
    let topic = packet.publish.topic.as_bytes();
    let after_topic = topic.as_ptr() as usize + topic.len();
    assert_eq!(after_topic, packet.publish.payload.as_ptr() as usize);
}

#[test]
fn a_will_and_a_client_id_do_not_share_the_buffer_of_the_password() {
    let bytes = hex("10 19 0004 4D515454 04 C6 003C 0001 63 0001 77 0001 78 0001 75 0001 70");
    let Packet::Connect(connect) = decode(&bytes, Level::V311).unwrap() else { panic!() };
    let will = connect.will.as_ref().unwrap();
    assert!(connect.client_id.as_bytes().is_unique());
    assert!(connect.password.as_ref().unwrap().is_unique());
    assert_eq!(will.publish.topic.as_str(), "w");
}

// Round trips.

fn text() -> impl Strategy<Value = Text> {
    "[a-zA-Z0-9äß🚀 ]{0,12}".prop_map(Text::from)
}

fn topic() -> impl Strategy<Value = Text> {
    "[a-z/]{1,20}".prop_map(Text::from)
}

fn blob() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn pairs() -> impl Strategy<Value = Vec<(Text, Text)>> {
    vec((text(), text()), 0..3)
}

fn qos() -> impl Strategy<Value = Qos> {
    (0u8..3).prop_map(|qos| Qos::from_u8(qos).unwrap())
}

fn publish_properties() -> impl Strategy<Value = Option<Box<PublishProperties>>> {
    let parts = (
        any::<bool>(),
        option::of(any::<u32>()),
        option::of(text()),
        option::of(topic()),
        option::of(blob()),
        pairs(),
    );
    let properties =
        parts.prop_map(|(payload_is_utf8, expiry_secs, content_type, response_topic, correlation, user)| {
            PublishProperties {
                payload_is_utf8,
                expiry_secs,
                content_type,
                response_topic,
                correlation,
                user,
            }
        });
    // No property at all is read back as none.
    properties
        .prop_map(|properties| (properties != PublishProperties::default()).then(|| Box::new(properties)))
}

fn publish(level: Level) -> impl Strategy<Value = Publish> {
    let parts = (topic(), blob(), qos(), any::<bool>(), any::<bool>(), publish_properties());
    parts.prop_map(move |(topic, payload, qos, retain, dup, properties)| Publish {
        topic,
        payload,
        qos,
        retain,
        dup: dup && qos > Qos::AtMostOnce,
        properties: properties.filter(|_| level.is_v5()),
    })
}

fn publish_packet(level: Level) -> impl Strategy<Value = Packet> {
    let parts = (publish(level), 1u16.., option::of(1u16..), vec(1u32..268_435_456, 0..3));
    parts.prop_map(move |(publish, id, alias, subscription_ids)| {
        let id = if publish.qos == Qos::AtMostOnce { 0 } else { id };
        Packet::Publish(match level {
            Level::V5 => PublishPacket { publish, id, alias, subscription_ids },
            _ => PublishPacket { publish, id, ..PublishPacket::default() },
        })
    })
}

fn connect_packet(level: Level) -> impl Strategy<Value = Packet> {
    let will = (publish(level), any::<u32>()).prop_map(move |(publish, delay_secs)| {
        let delay_secs = if level.is_v5() { delay_secs } else { 0 };
        Box::new(Will { publish: Publish { dup: false, ..publish }, delay_secs })
    });
    let properties =
        (option::of(any::<u32>()), option::of(1u16..), option::of(1u32..), option::of(any::<u16>()), pairs());
    let parts = (
        text(),
        any::<bool>(),
        any::<u16>(),
        option::of(text()),
        option::of(blob()),
        option::of(will),
        properties,
    );
    parts.prop_map(move |(client_id, clean_start, keepalive_secs, user, password, will, properties)| {
        let (session_expiry_secs, receive_maximum, packet_bytes_max, topic_alias_maximum, pairs) = properties;
        let properties = ConnectProperties {
            session_expiry_secs,
            receive_maximum,
            packet_bytes_max,
            topic_alias_maximum,
            user: pairs,
            ..ConnectProperties::default()
        };
        let properties = if level.is_v5() { properties } else { ConnectProperties::default() };
        // 3.1.1 has no password without a user.
        let password = password.filter(|_| user.is_some());
        Packet::Connect(Box::new(Connect {
            level,
            client_id,
            clean_start,
            is_bridge: false,
            keepalive_secs,
            user,
            password,
            will,
            properties,
        }))
    })
}

fn subscribe_packet(level: Level) -> impl Strategy<Value = Packet> {
    let handling = prop_oneof![
        Just(RetainHandling::Send),
        Just(RetainHandling::SendIfNew),
        Just(RetainHandling::DoNotSend)
    ];
    let parts = (topic(), option::of("[a-z]{1,5}"), qos(), any::<bool>(), any::<bool>(), handling);
    let filter =
        parts.prop_map(move |(filter, share, qos, no_local, retain_as_published, retain_handling)| {
            let share = share.map(Text::from);
            let plain = Subscription { share: share.clone(), ..Subscription::new(&filter, qos) };
            let no_local = no_local && share.is_none();
            match level {
                Level::V5 => Subscription { no_local, retain_as_published, retain_handling, ..plain },
                _ => plain,
            }
        });
    (1u16.., option::of(1u32..1_000), vec(filter, 1..4)).prop_map(move |(id, subscription_id, filters)| {
        let subscription_id = subscription_id.filter(|_| level.is_v5());
        Packet::Subscribe(Subscribe { id, subscription_id, filters, excess: 0 })
    })
}

fn ack_packet(level: Level) -> impl Strategy<Value = Packet> {
    (4u8..8, any::<u16>(), any::<u8>()).prop_map(move |(kind, id, code)| {
        let ack = Ack { id, code: if level.is_v5() { code } else { 0 } };
        match kind {
            4 => Packet::PubAck(ack),
            5 => Packet::PubRec(ack),
            6 => Packet::PubRel(ack),
            _ => Packet::PubComp(ack),
        }
    })
}

fn other_packet(level: Level) -> impl Strategy<Value = Packet> {
    let codes = vec(any::<u8>(), 1..5);
    let suback = (any::<u16>(), codes.clone()).prop_map(|(id, codes)| Packet::SubAck(SubAck { id, codes }));
    let unsuback = (any::<u16>(), codes).prop_map(move |(id, codes)| {
        Packet::UnsubAck(UnsubAck { id, codes: if level.is_v5() { codes } else { Vec::new() } })
    });
    let unsubscribe = (1u16.., vec(text(), 1..4))
        .prop_map(|(id, filters)| Packet::Unsubscribe(Unsubscribe { id, filters }));
    let disconnect = (any::<u8>(), option::of(any::<u32>()), option::of(text())).prop_map(
        move |(code, expiry, reason)| {
            let packet = Disconnect { code, session_expiry_secs: expiry, reason, server_reference: None };
            Packet::Disconnect(Box::new(if level.is_v5() { packet } else { Disconnect::default() }))
        },
    );
    prop_oneof![suback, unsuback, unsubscribe, disconnect, Just(Packet::PingReq), Just(Packet::PingResp)]
}

fn packet(level: Level) -> impl Strategy<Value = Packet> {
    prop_oneof![
        publish_packet(level),
        connect_packet(level),
        subscribe_packet(level),
        ack_packet(level),
        other_packet(level)
    ]
}

fn level() -> impl Strategy<Value = Level> {
    prop_oneof![Just(Level::V31), Just(Level::V311), Just(Level::V5)]
}

fn level_and_packet() -> impl Strategy<Value = (Level, Packet)> {
    level().prop_flat_map(|level| (Just(level), packet(level)))
}

/// What a server makes of a stream that comes in these parts.
fn reaction(parts: &[&[u8]]) -> (Vec<u8>, String) {
    let config = ServerConfig { client_id_is_strict: false, ..ServerConfig::default() };
    let mut server = Server::new(config);
    // Answers would come after all that is in one part, and so depend on the cuts.
    server.holds_answers = true;
    for part in parts {
        server.feed(part);
    }
    (server.bytes, format!("{:?} {:?}", server.events, server.close))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn what_is_written_is_read_back((level, packet) in level_and_packet()) {
        let bytes = encode(&packet, level);
        prop_assert_eq!(decode(&bytes, level).unwrap(), packet);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(level in level(), bytes in vec(any::<u8>(), 0..80)) {
        if let Ok(Some(header)) = codec::header(&bytes, Some(level), usize::MAX) {
            let body = &bytes[header.header_len..];
            let _ = codec::decode(header, &body[..body.len().min(header.body_len)], level, &Limits::default());
        }
    }

    #[test]
    fn a_packet_with_some_bytes_changed_is_read_or_refused(
        (level, packet) in level_and_packet(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encode(&packet, level);
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(Some(header)) = codec::header(&bytes, Some(level), usize::MAX) {
            let body = &bytes[header.header_len..];
            let cut = &body[..body.len().min(header.body_len)];
            let _ = codec::decode(header, cut, level, &Limits::of_protocol());
        }
    }

    #[test]
    fn a_stream_cut_anywhere_is_the_same_stream(
        level in level(),
        packets in level().prop_flat_map(|level| vec(packet(level), 1..5)),
        cuts in vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut stream = connect_bytes(level);
        for packet in &packets {
            codec::encode(packet, level, &mut stream);
        }
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        places.extend([0, stream.len()]);
        places.sort_unstable();
        let parts: Vec<&[u8]> = places.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
        let bytewise: Vec<&[u8]> = stream.chunks(1).collect();
        let whole = reaction(&[&stream]);
        prop_assert_eq!(&reaction(&parts), &whole);
        prop_assert_eq!(&reaction(&bytewise), &whole);
    }

    #[test]
    fn no_bytes_make_the_server_panic(level in level(), bytes in vec(any::<u8>(), 0..200)) {
        reaction(&[&connect_bytes(level), &bytes]);
        reaction(&[&bytes]);
    }
}
