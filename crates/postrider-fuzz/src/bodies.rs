//! The bodies over what is public: each takes any bytes and panics where something is wrong.

use postrider_proto::mqtt::codec::{self, Limits};
use postrider_proto::mqtt::{
    self, ClientConfig, ClientConnection, ClientOutput, Level, Packet, ServerConfig,
};
use postrider_proto::mqtt::{ServerConnection, topic};
use postrider_proto::ws::{self, Message, MqttOverWs, WsConfig, WsOutput};
use postrider_proto::{
    Close, Deliver, Event, Fanned, Output, Publish, PublishOutcome, Qos, Reply, ServerProtocol,
    SubscribeOutcome, Subscription, Text,
};
use std::sync::Arc;

const LEVELS: [Level; 3] = [Level::V31, Level::V311, Level::V5];

const CONNECTS: [&[u8]; 4] = [
    b"\x10\x0F\0\x06MQIsdp\x03\x02\0\x3C\0\x01c",
    b"\x10\x0D\0\x04MQTT\x04\x02\0\x3C\0\x01c",
    b"\x10\x11\0\x04MQTT\x05\x02\0\x3C\x03\x22\0\x04\0\x01c",
    b"",
];

/// Any bytes after a sign-in, at every level, cut by what the bytes themselves say; and the gateway's answers to them.
pub fn mqtt_server_bytes(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let mut connection = ServerConnection::new(Arc::new(ServerConfig::default()), 0);
    feed(&mut connection, CONNECTS[usize::from(choice) % CONNECTS.len()]);
    let mut fanned = Fanned::new(Publish { topic: Text::from("t"), ..Publish::default() });
    for (delivery, qos) in [Qos::AtLeastOnce, Qos::ExactlyOnce].into_iter().enumerate() {
        let how = Deliver {
            delivery: delivery as u64,
            qos,
            retain: false,
            dup: false,
            subscription_ids: &[],
            expiry_left_secs: None,
            cursor: None,
            late_since: None,
        };
        connection.handle_deliver(&mut fanned, how, 0, &mut Vec::new());
    }
    for part in data.chunks(1 + usize::from(choice >> 2)) {
        if feed(&mut connection, part) {
            assert_eq!(connection.window(), 0);
            break;
        }
    }
    let _ = connection.take_inflight();
}

/// Lets the connection read and answers its events; true when it wants to close.
fn feed(connection: &mut ServerConnection, bytes: &[u8]) -> bool {
    let mut out = Output::default();
    connection.handle_bytes(bytes, 0, &mut out);
    let mut is_closed = out.close.is_some();
    while !out.events.is_empty() {
        for event in std::mem::take(&mut out.events) {
            let reply = match event {
                Event::Connect(_) => Reply::Connect(Ok(Box::default())),
                Event::Publish { token, .. } => Reply::Publish { token, outcome: PublishOutcome::Accepted },
                Event::Subscribe { token, filters, .. } => {
                    let granted = |f: &Subscription| SubscribeOutcome::Granted(f.qos);
                    Reply::Subscribe { token, outcomes: filters.iter().map(granted).collect() }
                }
                Event::Unsubscribe { token, filters } => {
                    Reply::Unsubscribe { token, existed: vec![true; filters.len()] }
                }
                _ => continue,
            };
            connection.handle_reply(reply, 0, &mut out);
            is_closed |= out.close.is_some();
        }
    }
    is_closed
}

/// Any bytes where the header of a proxy is expected: what is read of it is there, however it is cut.
pub fn proxy_header(data: &[u8]) {
    use postrider_proto::proxy::{Read, read};
    let whole = read(data);
    if let Ok(Read::Header { len, .. }) = whole {
        assert!(len <= data.len());
        assert_eq!(read(&data[..len]), whole);
    }
    // However little is there, what is asked for belongs to the header.
    let mut there = 0;
    while let Ok(Read::Incomplete { at_least }) = read(&data[..there]) {
        assert!(at_least > 0);
        there += at_least;
        if there > data.len() {
            return;
        }
    }
    match (read(&data[..there]), whole) {
        (Ok(Read::Header { len, .. }), Ok(_)) => assert_eq!(len, there),
        (read_so, whole) => assert!(read_so.is_err() && whole.is_err(), "{read_so:?} {whole:?}"),
    }
}

/// Any bytes of a server to a client that has signed in, subscribed and published.
pub fn mqtt_client_bytes(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let level = LEVELS[usize::from(choice) % 3];
    let config =
        ClientConfig { level, topic_alias_maximum: 4, packet_bytes_max: 1 << 16, ..ClientConfig::default() };
    let mut client = ClientConnection::new(Arc::new(config));
    let (mut bytes, mut out) = (Vec::new(), ClientOutput::default());
    client.connect(0, &mut bytes);
    if choice & 0x40 != 0 {
        client.handle_bytes(
            if level == Level::V5 { b"\x20\x03\0\0\0" } else { b"\x20\x02\0\0" },
            0,
            &mut out,
        );
        client.subscribe(vec![Subscription::new("a/#", Qos::ExactlyOnce)], None, 0, &mut bytes);
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            let publish = Publish { topic: Text::from("t"), qos, ..Publish::default() };
            _ = client.publish(publish, 0, &mut bytes);
        }
    }
    for part in data.chunks(1 + usize::from(choice >> 2 & 7)) {
        client.handle_bytes(part, 1, &mut out);
        if out.close.is_some() {
            break;
        }
    }
    let _ = client.into_session();
}

fn decode(bytes: &[u8], level: Level) -> Option<Packet> {
    let header = codec::header(bytes, Some(level), 1 << 20).ok()??;
    let body = bytes.get(header.header_len..header.total_len())?;
    codec::decode(header, body, level, &Limits::of_protocol()).ok()
}

/// What is read can be written, and is then read as the same.
pub fn mqtt_codec_round_trip(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let level = LEVELS[usize::from(choice) % 3];
    let Some(packet) = decode(data, level) else { return };
    // A CONNECT brings its own level.
    let level = if let Packet::Connect(connect) = &packet { connect.level } else { level };
    let mut bytes = Vec::new();
    mqtt::codec::encode(&packet, level, &mut bytes);
    let Some(again) = decode(&bytes, level) else { panic!("what was written cannot be read: {packet:?}") };
    let mut bytes_again = Vec::new();
    codec::encode(&again, level, &mut bytes_again);
    assert_eq!(bytes, bytes_again);
}

fn matches_slowly(filter: &[&str], name: &[&str]) -> bool {
    match (filter, name) {
        (["#"], _) => true,
        ([], []) => true,
        (["+", filter @ ..], [_, name @ ..]) => matches_slowly(filter, name),
        ([wanted, filter @ ..], [level, name @ ..]) => wanted == level && matches_slowly(filter, name),
        _ => false,
    }
}

/// A filter and a name, with a line break between: the matcher agrees with a slow one that is obviously right.
pub fn topic_matcher(data: &[u8]) {
    let Some((filter, name)) = std::str::from_utf8(data).ok().and_then(|text| text.split_once('\n')) else {
        return;
    };
    if topic::check_filter(filter, 512, 16).is_err() || topic::check_name(name, 512, 16).is_err() {
        return;
    }
    let is_hidden = name.starts_with('$') && filter.starts_with(['#', '+']);
    let (filter_levels, name_levels): (Vec<&str>, Vec<&str>) =
        (filter.split('/').collect(), name.split('/').collect());
    assert_eq!(topic::matches(filter, name), !is_hidden && matches_slowly(&filter_levels, &name_levels));
}

fn messages(data: &[u8], step: usize) -> (Vec<Message>, Vec<u8>, Option<Close>) {
    let mut connection = ws::ServerConnection::new(Arc::new(WsConfig::default()), 0);
    let mut out = WsOutput::default();
    for part in data.chunks(step) {
        connection.handle_bytes(part, 0, &mut out);
    }
    (out.messages, out.bytes, out.close)
}

/// Any bytes on a WebSocket, and the same bytes cut otherwise: the messages are the same. Then MQTT over it.
pub fn ws_server_bytes(data: &[u8]) {
    assert_eq!(messages(data, 1), messages(data, 7));
    assert_eq!(messages(data, 7), messages(data, data.len().max(1)));
    let inner = ServerConnection::new(Arc::new(ServerConfig::default()), 0);
    let mut connection = MqttOverWs::new(Arc::new(WsConfig::default()), inner);
    connection.handle_bytes(data, 0, &mut Output::default());
}
