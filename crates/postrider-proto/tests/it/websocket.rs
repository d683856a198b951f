//! WebSocket frames (RFC 6455 §5 to §8), hostile inputs H57, H79 and H80, and MQTT over WebSocket.

use crate::support::*;
use bytes::Bytes;
use postrider_proto::mqtt::{Level, ServerConfig, ServerConnection};
use postrider_proto::ws::frame::{self, Opcode};
use postrider_proto::ws::{Message, MqttOverWs, ServerConnection as WsConnection, WsConfig, WsOutput};
use postrider_proto::{
    Close, Delivered, Event, Fanned, Goodbye, Output, PublishOutcome, Qos, Reply, ServerProtocol, Text,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::Arc;

const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

fn client_frame(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_client_frame(opcode, fin, payload, MASK, &mut bytes);
    bytes
}

fn echo(config: WsConfig) -> WsConnection {
    WsConnection::new(Arc::new(config), 0)
}

fn feed(connection: &mut WsConnection, bytes: &[u8]) -> WsOutput {
    let mut out = WsOutput::default();
    connection.handle_bytes(bytes, 0, &mut out);
    out
}

/// The close code that is written in answer to these bytes, as the first of a connection.
#[track_caller]
fn close_code(bytes: &[u8]) -> u16 {
    let mut connection = echo(WsConfig::default());
    let out = feed(&mut connection, bytes);
    assert!(out.close.is_some(), "not closed");
    assert!(connection.is_closed());
    written_close_code(&out.bytes)
}

#[track_caller]
fn written_close_code(bytes: &[u8]) -> u16 {
    let (header, payload) = frame::read_server_frame(bytes).unwrap().expect("a whole frame");
    assert_eq!(header.opcode, Opcode::Close);
    u16::from_be_bytes([payload[0], payload[1]])
}

fn text(text: &str) -> Message {
    Message::Text(Text::from(text))
}

#[test]
fn section_5_6_messages_arrive_as_they_were_sent() {
    for len in [0, 1, 125, 126, 127, 65_535, 65_536] {
        let payload = vec![b'*'; len];
        let mut connection = echo(WsConfig::default());
        let out = feed(&mut connection, &client_frame(Opcode::Binary, true, &payload));
        assert_eq!(out.messages, [Message::Binary(Bytes::from(payload.clone()))]);
        let out = feed(&mut connection, &client_frame(Opcode::Text, true, &payload));
        assert_eq!(out.messages, [text(&"*".repeat(len))]);
        assert_eq!((out.close, out.bytes), (None, vec![]));
    }
}

#[test]
fn section_5_4_fragments_are_one_message_and_control_frames_may_come_between() {
    let mut connection = echo(WsConfig::default());
    let mut bytes = client_frame(Opcode::Text, false, b"Hel");
    bytes.extend(client_frame(Opcode::Ping, true, b"?"));
    bytes.extend(client_frame(Opcode::Continuation, false, b""));
    bytes.extend(client_frame(Opcode::Continuation, true, b"lo"));
    let out = feed(&mut connection, &bytes);
    assert_eq!(out.messages, [text("Hello")]);
    assert_eq!(out.bytes, [0x8A, 1, b'?']);
}

#[test]
fn section_5_5_pings_are_answered_with_their_payload_and_pongs_are_not() {
    for len in [0, 1, 125] {
        let payload = vec![7; len];
        let mut connection = echo(WsConfig::default());
        let out = feed(&mut connection, &client_frame(Opcode::Ping, true, &payload));
        let mut expected = Vec::new();
        frame::write_frame(Opcode::Pong, &payload, &mut expected);
        assert_eq!(out.bytes, expected);
        let out = feed(&mut connection, &client_frame(Opcode::Pong, true, &payload));
        assert_eq!((out.bytes, out.close), (vec![], None));
    }
}

#[test]
fn section_5_5_1_a_close_is_answered_with_its_code() {
    for (payload, expected) in [
        (hex("03E8"), hex("88 02 03E8")),
        (hex("0BB8 62796521"), hex("88 02 0BB8")),
        (hex("1387"), hex("88 02 1387")),
        (vec![], hex("88 00")),
    ] {
        let mut connection = echo(WsConfig::default());
        let mut bytes = client_frame(Opcode::Close, true, &payload);
        bytes.extend(client_frame(Opcode::Ping, true, b"late"));
        let out = feed(&mut connection, &bytes);
        assert_eq!(out.bytes, expected);
        assert_eq!(out.close, Some(Close { kind: "peer_closed", gentle: false }));
    }
}

#[test]
fn after_our_own_close_nothing_is_sent_or_read() {
    let mut connection = echo(WsConfig::default());
    let mut out = WsOutput::default();
    connection.close(Goodbye::TakenOver.into(), &mut out);
    assert_eq!(written_close_code(&out.bytes), 4000);
    assert_eq!(out.close, Some(Close { kind: "taken_over", gentle: true }));
    let mut bytes = Vec::new();
    connection.send_text("late", &mut bytes);
    assert!(bytes.is_empty());
    assert!(feed(&mut connection, &client_frame(Opcode::Text, true, b"x")).messages.is_empty());
}

#[test]
fn h79_broken_frames_are_protocol_errors() {
    let mut within = client_frame(Opcode::Text, false, b"a");
    within.extend(client_frame(Opcode::Text, true, b"b"));
    let mut after_the_end = client_frame(Opcode::Text, true, b"a");
    after_the_end.extend(client_frame(Opcode::Continuation, true, b"b"));
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("not masked", hex("81 01 61")),
        ("RSV1, as permessage-deflate has it", hex("C1 81 00000000 61")),
        ("RSV2", hex("A1 80 00000000")),
        ("RSV3", hex("91 80 00000000")),
        ("reserved data opcode", hex("83 80 00000000")),
        ("reserved control opcode", hex("8B 80 00000000")),
        ("control frame of 126 bytes", hex("89 FE 007E 00000000")),
        ("fragmented control frame", hex("09 80 00000000")),
        ("continuation first", client_frame(Opcode::Continuation, true, b"x")),
        ("continuation of a finished message", after_the_end),
        ("a new message inside of one", within),
        ("length with the top bit", hex("82 FF 8000000000000000")),
        ("length not minimal, 16 bits", hex("82 FE 007D 00000000")),
        ("length not minimal, 64 bits", hex("82 FF 000000000000FFFF 00000000")),
        ("close with one byte", client_frame(Opcode::Close, true, &[3])),
    ];
    for (row, bytes) in rows {
        assert_eq!(close_code(&bytes), 1002, "{row}");
        let mut connection = echo(WsConfig::default());
        let out = bytes.iter().map(|&byte| feed(&mut connection, &[byte])).find(|out| out.close.is_some());
        assert_eq!(written_close_code(&out.expect(row).bytes), 1002, "{row}, byte by byte");
    }
}

#[test]
fn section_7_4_codes_that_must_not_be_sent_are_protocol_errors() {
    for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        let bytes = client_frame(Opcode::Close, true, &code.to_be_bytes());
        assert_eq!(close_code(&bytes), 1002, "{code}");
    }
    for code in [1000u16, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
        let bytes = client_frame(Opcode::Close, true, &code.to_be_bytes());
        assert_eq!(close_code(&bytes), code);
    }
    let not_utf8 = client_frame(Opcode::Close, true, &[0x03, 0xE8, 0xCE, 0xBA, 0xE1]);
    assert_eq!(close_code(&not_utf8), 1007);
}

#[test]
fn section_8_1_text_is_utf8_and_found_wrong_at_once() {
    for bad in [&[0xFF][..], &[0xC0, 0x80], &[0xED, 0xA0, 0x80], &[0xF4, 0x90, 0x80, 0x80], b"ok\xE2\x28"] {
        assert_eq!(close_code(&client_frame(Opcode::Text, true, bad)), 1007, "{bad:?}");
        // Also when its message, and even its frame, is not at its end.
        assert_eq!(close_code(&client_frame(Opcode::Text, false, bad)), 1007, "{bad:?}");
        let mut long = bad.to_vec();
        long.extend([b'x'; 100]);
        let mut cut = client_frame(Opcode::Text, true, &long);
        cut.truncate(6 + bad.len());
        assert_eq!(close_code(&cut), 1007, "{bad:?}");
    }
    assert_eq!(
        close_code(&client_frame(Opcode::Text, true, &[0xE2, 0x82])),
        1007,
        "a cut character at the end"
    );
    // A character cut over frames is none of it.
    let mut connection = echo(WsConfig::default());
    let mut bytes = client_frame(Opcode::Text, false, &[0xE2]);
    bytes.extend(client_frame(Opcode::Continuation, false, &[0x82]));
    bytes.extend(client_frame(Opcode::Continuation, true, &[0xAC]));
    assert_eq!(feed(&mut connection, &bytes).messages, [text("€")]);
}

#[test]
fn h80_and_l22_sizes_and_floods_end_the_connection() {
    assert_eq!(
        close_code(&hex("82 FF 0000000000010001 00000000")),
        1009,
        "a frame over 64 KiB, at its header"
    );
    assert_eq!(close_code(&hex("82 FF 7FFFFFFFFFFFFFFF 00000000")), 1009, "63 bits of length");
    let half = vec![0; 40_000];
    let mut large = client_frame(Opcode::Binary, false, &half);
    large.extend(client_frame(Opcode::Continuation, true, &half));
    assert_eq!(close_code(&large), 1009, "a message over 64 KiB");
    let mut fragments = client_frame(Opcode::Binary, false, b"");
    for _ in 0..64 {
        fragments.extend(client_frame(Opcode::Continuation, false, b""));
    }
    assert_eq!(close_code(&fragments), 1008, "65 fragments");
    let ping = client_frame(Opcode::Ping, true, b"");
    let mut connection = echo(WsConfig::default());
    assert_eq!(feed(&mut connection, &ping.repeat(20)).close, None);
    let mut out = WsOutput::default();
    connection.handle_bytes(&ping.repeat(20), 10_000, &mut out);
    assert_eq!(out.close, None, "ten seconds later");
    connection.handle_bytes(&ping, 10_001, &mut out);
    assert_eq!(out.close, Some(Close { kind: "policy", gentle: true }));
}

#[test]
fn an_echo_endpoint_takes_16_mib_in_small_fragments() {
    let mut connection = echo(WsConfig::for_echo_tests());
    let part = vec![b'a'; 16 * 1024];
    let mut got = feed(&mut connection, &client_frame(Opcode::Text, false, &part));
    for _ in 0..1_022 {
        connection.handle_bytes(&client_frame(Opcode::Continuation, false, &part), 0, &mut got);
    }
    connection.handle_bytes(&client_frame(Opcode::Continuation, true, &part), 0, &mut got);
    let [Message::Text(whole)] = &got.messages[..] else { panic!("{:?}", got.close) };
    assert_eq!(whole.len(), 16 << 20);
}

// MQTT over WebSocket.

type Wrapped = MqttOverWs<ServerConnection>;

fn wrapped() -> Wrapped {
    let inner = ServerConnection::new(Arc::new(ServerConfig::default()), 0);
    MqttOverWs::new(Arc::new(WsConfig::default()), inner)
}

fn signed_in(level: Level) -> Wrapped {
    let mut connection = wrapped();
    let mut out = Output::default();
    connection.handle_bytes(&client_frame(Opcode::Binary, true, &connect_bytes(level)), 0, &mut out);
    connection.handle_reply(Reply::Connect(Ok(Box::default())), 0, &mut out);
    assert!(connection.inner().is_connected());
    connection
}

/// The payloads of the binary frames in `bytes`, and the close code behind them.
fn unwrap_frames(mut bytes: &[u8]) -> (Vec<Vec<u8>>, Option<u16>) {
    let mut payloads = Vec::new();
    while let Some((header, payload)) = frame::read_server_frame(bytes).unwrap() {
        bytes = &bytes[header.header_len + payload.len()..];
        match header.opcode {
            Opcode::Binary => payloads.push(payload.to_vec()),
            Opcode::Close => return (payloads, Some(u16::from_be_bytes([payload[0], payload[1]]))),
            other => panic!("{other:?}"),
        }
    }
    assert!(bytes.is_empty());
    (payloads, None)
}

#[test]
fn h57_two_packets_in_one_frame_and_one_packet_in_many_frames_are_legal() {
    let mut connection = signed_in(Level::V311);
    let mut out = Output::default();
    connection.handle_bytes(&client_frame(Opcode::Binary, true, &hex("C0 00 C0 00")), 0, &mut out);
    assert_eq!(unwrap_frames(&out.bytes), (vec![hex("D0 00 D0 00")], None));

    let payload = vec![b'x'; 95];
    let mut packet = hex("30 62 0001 74");
    packet.extend(&payload);
    let mut out = Output::default();
    for &byte in &packet {
        connection.handle_bytes(&client_frame(Opcode::Binary, true, &[byte]), 0, &mut out);
    }
    let [Event::Publish { publish, .. }] = &out.events[..] else { panic!("{:?}", out.close) };
    assert_eq!(publish.payload, payload);
}

#[test]
fn h57_a_text_frame_is_refused() {
    let mut connection = signed_in(Level::V311);
    let mut out = Output::default();
    connection.handle_bytes(&client_frame(Opcode::Text, true, b"\xC0"), 0, &mut out);
    assert_eq!(written_close_code(&out.bytes), 1003);
    assert_eq!(out.close, Some(Close { kind: "unsupported_data", gentle: true }));
}

#[test]
fn a_pong_does_not_fall_into_the_frame_of_an_answer() {
    let mut connection = signed_in(Level::V311);
    let mut out = Output::default();
    let mut bytes = client_frame(Opcode::Binary, false, &hex("C0 00 C0"));
    bytes.extend(client_frame(Opcode::Ping, true, b"!"));
    bytes.extend(client_frame(Opcode::Continuation, true, &hex("00")));
    connection.handle_bytes(&bytes, 0, &mut out);
    assert_eq!(out.bytes, hex("82 02 D000 8A 01 21 82 02 D000"));
}

#[test]
fn deliveries_and_acknowledgements_go_through() {
    let mut connection = signed_in(Level::V5);
    let mut bytes = Vec::new();
    let large = "y".repeat(10_000);
    let mut fanned = Fanned::new(message("t", &large, Qos::AtLeastOnce));
    let delivered = connection.handle_deliver(&mut fanned, plain(5, Qos::AtLeastOnce), 0, &mut bytes);
    assert_eq!((delivered, connection.window()), (Delivered::Written, 31));
    let (payloads, _) = unwrap_frames(&bytes);
    assert!(payloads.len() == 1 && payloads[0].ends_with(large.as_bytes()));
    let mut out = Output::default();
    connection.handle_bytes(&client_frame(Opcode::Binary, true, &hex("40 02 0001")), 0, &mut out);
    assert!(matches!(out.events[..], [Event::Acked { delivery: 5 }]));
}

#[test]
fn a_packet_larger_than_the_part_that_is_unmasked_at_a_time_is_whole() {
    let mut connection = signed_in(Level::V311);
    let payload: Vec<u8> = (0..20_000u32).map(|at| at as u8).collect();
    let mut packet = hex("30 A39C01 0001 74");
    packet.extend(&payload);
    let mut out = Output::default();
    connection.handle_bytes(&client_frame(Opcode::Binary, true, &packet), 0, &mut out);
    let [Event::Publish { publish, .. }] = &out.events[..] else { panic!("{:?}", out.close) };
    assert_eq!(publish.payload, payload);
}

#[test]
fn each_end_of_the_inner_protocol_has_its_close_code() {
    let mut connection = signed_in(Level::V5);
    let mut out = Output::default();
    connection.handle_goodbye(Goodbye::TakenOver, 0, &mut out);
    assert_eq!(unwrap_frames(&out.bytes), (vec![hex("E0 01 8E")], Some(4000)));
    assert_eq!(out.close, Some(Close { kind: "taken_over", gentle: true }));

    let mut connection = signed_in(Level::V311);
    let mut out = Output::default();
    connection.handle_bytes(&client_frame(Opcode::Binary, true, &hex("E0 00")), 0, &mut out);
    assert_eq!(unwrap_frames(&out.bytes), (vec![], Some(1000)));
    assert_eq!(out.close, Some(Close { kind: "disconnect", gentle: false }));

    let mut connection = signed_in(Level::V311);
    let mut out = Output::default();
    connection.handle_bytes(&client_frame(Opcode::Binary, true, &hex("00 00")), 0, &mut out);
    assert_eq!(unwrap_frames(&out.bytes), (vec![], Some(1008)));

    let mut connection = signed_in(Level::V311);
    let mut out = Output::default();
    connection.handle_timeout(connection.next_timeout().unwrap(), &mut out);
    assert_eq!(unwrap_frames(&out.bytes), (vec![], Some(4003)));
    assert_eq!((connection.next_timeout(), connection.window()), (None, 0));
}

#[test]
fn an_answer_after_the_close_counts_for_the_session_and_writes_nothing() {
    let mut connection = signed_in(Level::V311);
    let mut out = Output::default();
    connection.handle_bytes(&client_frame(Opcode::Binary, true, &hex("34 06 0001 74 0009 78")), 0, &mut out);
    let [Event::Publish { token, .. }] = out.events[..] else { panic!() };
    connection.handle_bytes(&client_frame(Opcode::Close, true, &[]), 0, &mut out);
    let written = out.bytes.len();
    connection.handle_reply(Reply::Publish { token, outcome: PublishOutcome::Accepted }, 0, &mut out);
    assert_eq!(out.bytes.len(), written);
    assert!(connection.inner_mut().take_inflight().is_some());
}

fn messages_of(config: &WsConfig, parts: &[&[u8]]) -> (Vec<Message>, Vec<u8>, Option<Close>) {
    let mut connection = echo(config.clone());
    let mut out = WsOutput::default();
    for part in parts {
        connection.handle_bytes(part, 0, &mut out);
    }
    (out.messages, out.bytes, out.close)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn frames_cut_anywhere_are_the_same_frames(
        frames in vec((0usize..6, any::<bool>(), vec(any::<u8>(), 0..150)), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let opcodes =
            [Opcode::Continuation, Opcode::Text, Opcode::Binary, Opcode::Ping, Opcode::Pong, Opcode::Close];
        let stream: Vec<u8> =
            frames.iter().flat_map(|(kind, fin, payload)| client_frame(opcodes[*kind], *fin, payload)).collect();
        let config = WsConfig::default();
        let whole = messages_of(&config, &[&stream]);
        let (head, tail) = stream.split_at(cut.index(stream.len()));
        prop_assert_eq!(&messages_of(&config, &[head, tail]), &whole);
        let bytewise: Vec<&[u8]> = stream.chunks(1).collect();
        prop_assert_eq!(&messages_of(&config, &bytewise), &whole);
    }

    #[test]
    fn no_bytes_make_the_websocket_panic(bytes in vec(any::<u8>(), 0..200)) {
        messages_of(&WsConfig::default(), &[&bytes]);
        let mut connection = signed_in(Level::V5);
        connection.handle_bytes(&bytes, 0, &mut Output::default());
    }
}
