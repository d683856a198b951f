//! Hostile inputs H1 to H58 of reliability.md §4.5, as far as the protocol alone decides. Each row: bytes → exact reaction.

use crate::support::*;
use postrider_proto::mqtt::codec::Limits;
use postrider_proto::mqtt::{Level, ServerConfig};
use postrider_proto::{Close, Event, PublishOutcome, Qos, Reply, ServerProtocol};

/// What the server writes, and whether it closes.
#[derive(Clone, Copy, Debug)]
enum Reaction {
    /// Closes without a word.
    Close,
    /// Writes, and closes gently.
    Refuse(&'static str),
    /// Writes, and stays.
    Answer(&'static str),
}

use Reaction::{Answer, Close as CloseNow, Refuse};

#[track_caller]
fn assert_reaction(row: &str, server: &mut Server, bytes: &[u8], expected: Reaction) {
    server.written();
    server.feed(bytes);
    let (written, close) = match expected {
        CloseNow => ("", Some(false)),
        Refuse(written) => (written, Some(true)),
        Answer(written) => (written, None),
    };
    assert_eq!(server.written(), hex(written), "{row}: wrong answer; {:?}", server.close);
    assert_eq!(server.close.map(|close| close.gentle), close, "{row}: {:?}", server.close);
}

/// As the first bytes of a connection.
#[track_caller]
fn first(row: &str, bytes: &str, expected: Reaction) {
    assert_reaction(row, &mut Server::new(ServerConfig::default()), &hex(bytes), expected);
}

/// On a live connection of MQTT 3.1.1 and of 5.
#[track_caller]
fn live(row: &str, v3: &str, v3_expected: Reaction, v5: &str, v5_expected: Reaction) {
    live_v3(row, v3, v3_expected);
    live_v5(row, v5, v5_expected);
}

#[track_caller]
fn live_v3(row: &str, bytes: &str, expected: Reaction) {
    let mut server = Server::connected(Level::V311, ServerConfig::default());
    assert_reaction(&format!("{row}, v3"), &mut server, &hex(bytes), expected);
}

#[track_caller]
fn live_v5(row: &str, bytes: &str, expected: Reaction) {
    let mut server = Server::connected(Level::V5, ServerConfig::default());
    assert_reaction(&format!("{row}, v5"), &mut server, &hex(bytes), expected);
}

const MALFORMED: Reaction = Refuse("E0 01 81");
const PROTOCOL_ERROR: Reaction = Refuse("E0 01 82");
const TOPIC_INVALID: Reaction = Refuse("E0 01 90");

/// A CONNECT of 3.1.1 or 5 with these flags and this payload; `properties` only in 5, with their length.
fn connect(level: u8, flags: u8, properties: &str, payload: &str) -> String {
    let properties = if level == 5 { properties } else { "" };
    let body = format!("0004 4D515454 {level:02X} {flags:02X} 003C {properties} {payload}");
    format!("10 {:02X} {body}", hex(&body).len())
}

#[test]
fn h1_the_first_packet_is_a_connect() {
    for bytes in ["30 03 0001 74", "C0 00", "82 06 0001 0001 74 00", "E0", "00", "F0"] {
        first("H1", bytes, CloseNow);
    }
}

#[test]
fn h2_a_second_connect_ends_the_connection() {
    live("H2", &connect(4, 2, "", "0001 63"), CloseNow, &connect(5, 2, "00", "0001 63"), PROTOCOL_ERROR);
}

#[test]
fn h3_a_remaining_length_has_four_bytes_at_most() {
    first("H3", "10 FF FF FF FF 01", CloseNow);
    live("H3", "30 FF FF FF FF 01", CloseNow, "30 FF FF FF FF 01", MALFORMED);
}

#[test]
fn h4_a_variable_byte_integer_has_its_shortest_form() {
    live_v5("H4", "30 06 0001 74 8000 78", MALFORMED);
    live_v5("H4, remaining length", "C0 80 00", MALFORMED);
    first("H4, in CONNECT", &connect(5, 2, "8000", "0001 63"), Refuse("20 03 00 81 00"));
}

#[test]
fn h5_h6_what_is_declared_too_large_ends_at_its_header() {
    first("H5", "10 FF FF FF 7F", CloseNow);
    first("H6", "30 FF FF FF 7F", CloseNow);
    first("H6, at the first byte", "30", CloseNow);
    live("H5", "30 FF FF FF 7F", CloseNow, "30 FF FF FF 7F", Refuse("E0 01 95"));
    // The limit counts the whole packet: 65,536 bytes are taken, one more is not.
    let mut server = Server::connected(Level::V5, ServerConfig::default());
    assert_reaction("L9", &mut server, &hex("30 FC FF 03"), Answer(""));
    live_v5("L9", "30 FD FF 03", Refuse("E0 01 95"));
    first("L9, before sign-in", "10 FE 7F", CloseNow);
}

#[test]
fn h7_types_that_there_are_not() {
    live("H7", "00 00", CloseNow, "00 00", MALFORMED);
    live_v3("H7", "F0 00", CloseNow);
    live_v5("H7, AUTH without a method", "F0 00", PROTOCOL_ERROR);
}

#[test]
fn h8_flags_of_the_fixed_header_are_as_specified() {
    let with_flag = connect(4, 2, "", "0001 63").replacen("10", "11", 1);
    first("H8", &with_flag, CloseNow);
    let with_flag = connect(5, 2, "00", "0001 63").replacen("10", "11", 1);
    first("H8", &with_flag, Refuse("20 03 00 81 00"));
    for bytes in ["80 06 0001 0001 74 00", "60 02 0001", "C1 00", "A0 05 0001 0001 74", "41 02 0001", "E1 00"]
    {
        live("H8", bytes, CloseNow, bytes, MALFORMED);
    }
}

#[test]
fn h9_only_mqtt_is_mqtt() {
    for body in ["0004 4D515455 04", "0003 4D5154 04", "0000 04", "0002 686A 04"] {
        let body = format!("{body} 02 003C 0001 63");
        first("H9", &format!("10 {:02X} {body}", hex(&body).len()), CloseNow);
    }
    first("H9, 65,535 bytes", "10 8C 80 04 FFFF", CloseNow);
    first("a TLS hello", "16 03 01 02 00 01 00 01 FC 03 03", CloseNow);
    first("an HTTP request", "47 45 54 20 2F", CloseNow);
}

#[test]
fn h10_levels_that_there_are_not_are_answered() {
    first("H10", &connect(2, 2, "", "0001 63"), Refuse("20 02 00 01"));
    first("H10", &connect(3, 2, "", "0001 63"), Refuse("20 02 00 01"));
    first("H10", &connect(6, 2, "", "0001 63"), Refuse("20 03 00 84 00"));
    first("H10", &connect(127, 2, "", "0001 63"), Refuse("20 03 00 84 00"));
    first("H10, the bit of a bridge", &connect(255, 2, "", "0001 63"), Refuse("20 02 00 01"));
}

/// What is wrong in a CONNECT: 3.1.1 has no word for it, 5 has CONNACK (§4.13.1).
#[track_caller]
fn both_connects(row: &str, flags: u8, payload: &str, v5_code: &'static str) {
    first(&format!("{row}, v3"), &connect(4, flags, "", payload), CloseNow);
    first(&format!("{row}, v5"), &connect(5, flags, "00", payload), Refuse(v5_code));
}

const CONNACK_MALFORMED: &str = "20 03 00 81 00";
const CONNACK_PROTOCOL_ERROR: &str = "20 03 00 82 00";

#[test]
fn h11_to_h14_connect_flags_and_the_will() {
    both_connects("H11, reserved flag", 0x03, "0001 63", CONNACK_MALFORMED);
    both_connects("H12, will QoS without will", 0x0A, "0001 63", CONNACK_MALFORMED);
    both_connects("H12, will retain without will", 0x22, "0001 63", CONNACK_MALFORMED);
    both_connects("H13, will QoS 3", 0x1E, "0001 63 0001 77 0001 78", CONNACK_MALFORMED);
    both_connects("H14, will missing", 0x06, "0001 63", CONNACK_MALFORMED);
    both_connects("H14, will cut", 0x06, "0001 63 0005 77", CONNACK_MALFORMED);
}

#[test]
fn h15_the_topic_of_a_will_is_a_name() {
    first("H15, v3", &connect(4, 6, "", "0001 63 0001 23 0000"), CloseNow);
    first("H15, v5", &connect(5, 6, "00", "0001 63 00 0001 23 0000"), Refuse("20 03 00 90 00"));
    first("H15, empty", &connect(5, 6, "00", "0001 63 00 0000 0000"), Refuse("20 03 00 90 00"));
}

#[test]
fn h16_h17_user_and_password_are_where_their_flags_say() {
    first("H16", &connect(4, 0x42, "", "0001 63 0001 70"), CloseNow);
    first("H16, allowed in 5", &connect(5, 0x42, "00", "0001 63 0001 70"), Answer(CONNACK_V5));
    both_connects("H17, user missing", 0x82, "0001 63", CONNACK_MALFORMED);
    both_connects("H17, password missing", 0xC2, "0001 63 0001 75", CONNACK_MALFORMED);
    both_connects("H17, more after the end", 0x02, "0001 63 00", CONNACK_MALFORMED);
}

/// Receive maximum 32, maximum packet size 65,536, alias maximum 16.
const CONNACK_V5: &str = "20 0E 00 00 0B 21 0020 27 00010000 22 0010";

#[test]
fn h18_a_session_needs_a_name() {
    first("H18", &connect(4, 0, "", "0000"), Refuse("20 02 00 02"));
    first("H18, clean", &connect(4, 2, "", "0000"), Answer("20 02 00 00"));
    first("H18, v5", &connect(5, 0, "00", "0000"), Answer(CONNACK_V5));
}

#[test]
fn h19_client_ids_are_of_plain_characters_and_short() {
    let long = format!("0081 {}", "61".repeat(129));
    let fits = format!("0080 {}", "61".repeat(128));
    for id in ["0001 23", "0001 2B", "0002 C3A4", "0001 01", &long] {
        first("H19, v3", &connect(4, 2, "", id).replacen("10 8D", "10 8D01", 1), Refuse("20 02 00 02"));
        first("H19, v5", &connect(5, 2, "00", id).replacen("10 8E", "10 8E01", 1), Refuse("20 03 00 85 00"));
    }
    for id in ["0003 612F62", "000E 636C65616E2072657461696E6564", "0005 615F2E3A40"] {
        first("H19, v3", &connect(4, 2, "", id), Answer("20 02 00 00"));
    }
    first("H19, 128 bytes", &connect(4, 2, "", &fits).replacen("10 8C", "10 8C01", 1), Answer("20 02 00 00"));
    // U+0000 is ill-formed before it is anything else (H22).
    both_connects("H19, U+0000", 2, "0001 00", CONNACK_MALFORMED);
}

#[test]
fn l11_credentials_have_their_limits() {
    let user = format!("0001 63 0081 {}", "75".repeat(129));
    first("L11", &connect(4, 0x82, "", &user).replacen("10 90", "10 9001", 1), Refuse("20 02 00 04"));
    first("L11", &connect(5, 0x82, "00", &user).replacen("10 91", "10 9101", 1), Refuse("20 03 00 86 00"));
}

#[test]
fn h22_text_is_utf8() {
    for text in ["0002 C080", "0003 EDA080", "0001 00", "0001 C3", "0001 FF"] {
        let len = 2 + hex(text).len();
        live(
            "H22, topic",
            &format!("30 {len:02X} {text} 3131"),
            CloseNow,
            &format!("30 {:02X} {text} 00 31", len),
            MALFORMED,
        );
        both_connects("H22, client id", 2, text, CONNACK_MALFORMED);
        let properties_len = 1 + hex(text).len() + 3;
        live_v5(
            "H22, user property",
            &format!("30 {:02X} 0001 74 {properties_len:02X} 26 {text} 0001 76", 4 + properties_len),
            MALFORMED,
        );
    }
}

#[test]
fn h23_h24_control_characters_are_refused_in_topics_and_a_bom_is_kept() {
    for text in ["0001 01", "0001 1F", "0001 7F", "0002 C285", "0003 EFBFBF"] {
        let len = hex(text).len();
        live(
            "H23",
            &format!("30 {len:02X} {text}"),
            CloseNow,
            &format!("30 {:02X} {text} 00", len + 1),
            MALFORMED,
        );
    }
    let mut server = Server::connected(Level::V311, ServerConfig::default());
    server.feed(&hex("30 06 0004 EFBBBF61"));
    assert_eq!(server.published()[0].0, "\u{FEFF}a");
}

#[test]
fn h25_to_h29_publish_is_well_formed() {
    live("H25, QoS 3", "36 06 0001 74 0001 78", CloseNow, "36 07 0001 74 0001 00 78", MALFORMED);
    live("H26, DUP at QoS 0", "38 04 0001 74 78", CloseNow, "38 05 0001 74 00 78", MALFORMED);
    live("H27, id 0", "32 06 0001 74 0000 78", CloseNow, "32 07 0001 74 0000 00 78", PROTOCOL_ERROR);
    live("H27, subscribe", "82 06 0000 0001 74 00", CloseNow, "82 07 0000 00 0001 74 00", PROTOCOL_ERROR);
    live("H28, no topic", "30 03 0000 78", CloseNow, "30 04 0000 00 78", PROTOCOL_ERROR);
    live("H29, #", "30 04 0001 23 78", CloseNow, "30 05 0001 23 00 78", TOPIC_INVALID);
    live("H29, +", "30 06 0003 612F2B 78", CloseNow, "30 07 0003 612F2B 00 78", TOPIC_INVALID);
}

#[test]
fn h30_h31_topics_have_their_limits() {
    let slashes = |count: usize| format!("{count:04X} {}", "2F".repeat(count));
    live(
        "H30, 17 levels",
        &format!("30 12 {}", slashes(16)),
        CloseNow,
        &format!("30 13 {} 00", slashes(16)),
        TOPIC_INVALID,
    );
    live(
        "H30, 16 levels",
        &format!("30 11 {}", slashes(15)),
        Answer(""),
        &format!("30 12 {} 00", slashes(15)),
        Answer(""),
    );
    let long = format!("0201 {}", "61".repeat(513));
    live(
        "H30, 513 bytes",
        &format!("30 8304 {long}"),
        CloseNow,
        &format!("30 8404 {long} 00"),
        TOPIC_INVALID,
    );
    // All of 65,535 slashes: too large a packet by default, too many levels where it is not.
    for level in [Level::V311, Level::V5] {
        let config = ServerConfig { packet_bytes_max: 1 << 20, ..ServerConfig::default() };
        let mut server = Server::connected(level, config);
        let (body, expected) = match level {
            Level::V5 => (format!("30 828004 {} 00", slashes(65_535)), TOPIC_INVALID),
            _ => (format!("30 818004 {}", slashes(65_535)), CloseNow),
        };
        assert_reaction("H30, 65,535 slashes", &mut server, &hex(&body), expected);
    }
    live("H31", "30 04 00FF 7478", CloseNow, "30 05 00FF 74 00 78", MALFORMED);
}

#[test]
fn h32_filters_that_are_none_are_refused_in_the_suback() {
    let filters = [
        "0005 612F232F62",
        "0002 6123",
        "0004 612F622B",
        "0000",
        "0009 2473686172652F2F74",
        "0008 2473686172652F67",
        "000A 2473686172652F672B2F",
    ];
    for filter in filters {
        let len = 3 + hex(filter).len();
        live(
            "H32",
            &format!("82 {len:02X} 0001 {filter} 00"),
            Answer("90 03 0001 80"),
            &format!("82 {:02X} 0001 00 {filter} 00", len + 1),
            Answer("90 04 0001 00 8F"),
        );
    }
}

#[test]
fn h35_h36_h37_subscribe_is_well_formed() {
    live("H35", "82 02 0001", CloseNow, "82 03 0001 00", PROTOCOL_ERROR);
    live("H35, unsubscribe", "A2 02 0001", CloseNow, "A2 03 0001 00", PROTOCOL_ERROR);
    live("H36, reserved", "82 06 0001 0001 74 04", CloseNow, "82 07 0001 00 0001 74 40", MALFORMED);
    live("H36, QoS 3", "82 06 0001 0001 74 03", CloseNow, "82 07 0001 00 0001 74 03", MALFORMED);
    live_v5("H36, retain handling 3", "82 07 0001 00 0001 74 30", PROTOCOL_ERROR);
    live_v5("H37", "82 10 0001 00 000A 2473686172652F672F74 04", PROTOCOL_ERROR);
}

#[test]
fn h38_filters_beyond_the_limit_are_refused_one_by_one() {
    let many = |count: usize| "0001 74 00".repeat(count);
    let codes = |count: usize, code: &str| code.repeat(count);
    for (count, len_v3, len_v5, answer_len_v3, answer_len_v5) in
        [(17, "46", "47", "13", "14"), (10_000, "C2B802", "C3B802", "924E", "934E")]
    {
        let mut server = Server::connected(Level::V311, ServerConfig::default());
        server.feed(&hex(&format!("82 {len_v3} 0001 {}", many(count))));
        let expected = format!("90 {answer_len_v3} 0001 {} {}", codes(16, "00"), codes(count - 16, "80"));
        assert_eq!(server.written(), hex(&expected));
        let Some(Event::Subscribe { filters, .. }) = server.events.first() else { panic!() };
        assert_eq!(filters.len(), 16);

        let mut server = Server::connected(Level::V5, ServerConfig::default());
        server.feed(&hex(&format!("82 {len_v5} 0001 00 {}", many(count))));
        let expected = format!("90 {answer_len_v5} 0001 00 {} {}", codes(16, "00"), codes(count - 16, "97"));
        assert_eq!(server.written(), hex(&expected));
    }
}

#[test]
fn h39_to_h42_properties_are_known_in_place_and_once() {
    let connect_with = |properties: &str| {
        let len = hex(properties).len();
        connect(5, 2, &format!("{len:02X} {properties}"), "0001 63")
    };
    for twice in ["11 00000001", "21 0001", "22 0001", "27 00000100", "19 00", "17 01"] {
        first("H39", &connect_with(&format!("{twice} {twice}")), Refuse(CONNACK_PROTOCOL_ERROR));
    }
    live_v5("H39, alias", "30 0B 0001 74 06 23 0001 23 0001 78", PROTOCOL_ERROR);
    for unknown in ["00", "7F", "04", "2B", "8001"] {
        let len = hex(unknown).len();
        live_v5("H40", &format!("30 {:02X} 0001 74 {len:02X} {unknown}", 4 + len), MALFORMED);
    }
    live_v5("H40, not in PUBLISH", "30 09 0001 74 05 11 00000001", MALFORMED);
    first("H40, not in CONNECT", &connect_with("23 0001"), Refuse(CONNACK_MALFORMED));
    live_v5("H41, longer than the packet", "30 05 0001 74 7F 78", MALFORMED);
    live_v5("H41, five bytes", "30 09 0001 74 FFFFFFFF01 78", MALFORMED);
    live_v5("H41, a property cut by the block's end", "30 07 0001 74 02 02 0000", MALFORMED);
    first("H42, receive maximum", &connect_with("21 0000"), Refuse(CONNACK_PROTOCOL_ERROR));
    first("H42, packet size", &connect_with("27 00000000"), Refuse(CONNACK_PROTOCOL_ERROR));
    first("flags that are none", &connect_with("19 02"), Refuse(CONNACK_PROTOCOL_ERROR));
}

#[test]
fn h43_h44_aliases_are_granted_and_defined() {
    live_v5("H43, 0", "30 08 0001 74 03 23 0000 78", Refuse("E0 01 94"));
    live_v5("H43, 17", "30 08 0001 74 03 23 0011 78", Refuse("E0 01 94"));
    live_v5("H44", "30 07 0000 03 23 0001 78", PROTOCOL_ERROR);
    let mut server = Server::connected(Level::V5, ServerConfig::default());
    for _ in 0..10_000 {
        server.feed(&hex("30 08 0001 74 03 23 0010 78"));
    }
    assert_eq!((server.close, server.published().len()), (None, 10_000));
}

#[test]
fn h45_user_properties_are_few() {
    let packet = |count: usize| {
        let properties = "26 0001 6B 0001 76".repeat(count);
        let mut bytes = hex("30");
        let mut body = hex("0001 74");
        postrider_proto::mqtt::property::put_varint(&mut body, count * 7);
        body.extend(hex(&properties));
        postrider_proto::mqtt::property::put_varint(&mut bytes, body.len());
        bytes.extend(body);
        bytes
    };
    for (count, expected) in [(16, Answer("")), (17, Refuse("E0 01 97")), (5_000, Refuse("E0 01 97"))] {
        let mut server = Server::connected(Level::V5, ServerConfig::default());
        assert_reaction("H45", &mut server, &packet(count), expected);
    }
    let long = format!("30 8820 0001 74 8320 26 0FFB {} 0003 767676", "6B".repeat(0x0FFB));
    live_v5("H45, 4,099 bytes", &long, Refuse("E0 01 97"));
}

#[test]
fn h46_h47_properties_mean_what_they_may() {
    live_v5("H46", "30 07 0001 74 02 0B01 78", PROTOCOL_ERROR);
    live_v5("H46, 0", "82 09 0001 02 0B00 0001 74 00", PROTOCOL_ERROR);
    live_v5("H47, response topic", "30 09 0001 74 04 08 0001 23 78", PROTOCOL_ERROR);
    live_v5("H47, format 2", "30 07 0001 74 02 0102 78", PROTOCOL_ERROR);
    live_v5("H47, not UTF-8", "30 07 0001 74 02 0101 FF", Refuse("E0 01 99"));
    live_v5("H47, UTF-8", "30 07 0001 74 02 0101 78", Answer(""));
}

#[test]
fn h48_h49_unacknowledged_publishes_are_bounded() {
    // QoS 1 of 5: the answers are late.
    let mut server = Server::connected(Level::V5, ServerConfig::default());
    server.holds_answers = true;
    for _ in 0..32 {
        server.feed(&hex("32 07 0001 74 0001 00 78"));
    }
    assert_eq!(server.close, None);
    assert_reaction("H48", &mut server, &hex("32 07 0001 74 0002 00 78"), Refuse("E0 01 93"));
    // QoS 2: answered, and never released.
    for (level, expected) in [(Level::V311, CloseNow), (Level::V5, Refuse("E0 01 93"))] {
        let mut server = Server::connected(level, ServerConfig::default());
        let publish = |id: u16| match level {
            Level::V5 => hex(&format!("34 07 0001 74 {id:04X} 00 78")),
            _ => hex(&format!("34 06 0001 74 {id:04X} 78")),
        };
        for id in 1..=32 {
            server.feed(&publish(id));
        }
        server.feed(&publish(32));
        assert_eq!(server.close, None, "a duplicate takes no room");
        assert_reaction("H49", &mut server, &publish(33), expected);
    }
    // QoS 1 of 3.1.1 is not bounded here: the client cannot know a maximum, and nothing is kept for it.
    let mut server = Server::connected(Level::V311, ServerConfig::default());
    server.holds_answers = true;
    for _ in 0..1_000 {
        server.feed(&hex("32 06 0001 74 0001 78"));
    }
    assert_eq!(server.close, None);
}

#[test]
fn a_publish_answered_makes_room_in_the_receive_maximum() {
    let mut server =
        Server::connected(Level::V5, ServerConfig { receive_maximum: 1, ..ServerConfig::default() });
    for id in 1..100 {
        server.feed(&hex(&format!("32 07 0001 74 {id:04X} 00 78")));
        server.feed(&hex(&format!("34 07 0001 74 {id:04X} 00 78")));
        server.feed(&hex(&format!("62 02 {id:04X}")));
    }
    assert_eq!(server.close, None);
    // A refused QoS 2 publish is at its end, and its room is free.
    server.publish_outcome = PublishOutcome::NotAuthorized;
    for id in 1..100 {
        server.feed(&hex(&format!("34 07 0001 74 {id:04X} 00 78")));
    }
    assert_eq!(server.close, None);
}

#[test]
fn h50_acknowledgements_of_nothing_are_answered_or_ignored_but_not_for_ever() {
    live("H50, PUBREL", "62 02 0007", Answer("70 02 0007"), "62 02 0007", Answer("70 03 0007 92"));
    live("H50, PUBREC", "50 02 0007", Answer(""), "50 02 0007", Answer("62 03 0007 92"));
    live("H50, PUBACK", "40 02 0007", Answer(""), "40 02 0007", Answer(""));
    live("H50, PUBCOMP", "70 02 0007", Answer(""), "70 02 0007", Answer(""));
    live("H50, id 0", "40 02 0000", Answer(""), "40 02 0000", Answer(""));
    for level in LEVELS {
        let mut server = Server::connected(level, ServerConfig::default());
        for _ in 0..100 {
            server.feed(&hex("40 02 0007"));
        }
        assert_eq!(server.close, None);
        server.pass(60_000);
        for _ in 0..100 {
            server.feed(&hex("40 02 0007"));
        }
        assert_reaction("H50", &mut server, &hex("40 02 0007"), CloseNow);
        assert_eq!(server.close.map(|close| close.kind), Some("bad_acks"));
    }
}

#[test]
fn an_acknowledgement_of_the_wrong_kind_settles_nothing() {
    let mut server = Server::connected(Level::V5, ServerConfig::default());
    server.deliver(message("t", "x", Qos::ExactlyOnce), plain(1, Qos::ExactlyOnce));
    server.deliver(message("t", "x", Qos::AtLeastOnce), plain(2, Qos::AtLeastOnce));
    server.feed(&hex("40 02 0001 70 02 0001 70 02 0002"));
    assert_eq!((server.acked().len(), server.connection.window()), (0, 30));
}

#[test]
fn h51_what_only_servers_send_is_an_error() {
    for bytes in ["20 02 0000", "90 03 0001 00", "B0 02 0001", "D0 00"] {
        live("H51", bytes, CloseNow, bytes, PROTOCOL_ERROR);
    }
}

#[test]
fn h52_authentication_of_other_kinds_is_refused() {
    first("H52, data alone", &connect(5, 2, "04 16 0001 01", "0001 63"), Refuse(CONNACK_PROTOCOL_ERROR));
    first("H52, a method", &connect(5, 2, "04 15 0001 6D", "0001 63"), Refuse("20 03 00 8C 00"));
    live("H52, AUTH", "F0 00", CloseNow, "F0 06 18 04 15 0001 6D", PROTOCOL_ERROR);
}

#[test]
fn h53_a_session_without_expiry_cannot_get_one_at_its_end() {
    let mut server = Server::connected(Level::V5, ServerConfig::default());
    assert_reaction("H53", &mut server, &hex("E0 07 00 05 11 00000007 C0 00"), PROTOCOL_ERROR);
    assert!(server.events.is_empty());
}

#[test]
fn h55_a_connect_dripping_in_ends_at_its_deadline() {
    let mut server = Server::new(ServerConfig::default());
    for &byte in &connect_bytes(Level::V311)[..3] {
        server.feed(&[byte]);
        server.pass(4_000);
    }
    assert_eq!(server.close, Some(Close { kind: "connect_timeout", gentle: false }));
    assert_eq!((server.now, server.written()), (8_000.max(server.now), vec![]));
}

#[test]
fn h56_retained_publishes_are_refused_where_retain_is_not_available() {
    let config = ServerConfig { retain_available: false, ..ServerConfig::default() };
    let mut server = Server::connected(Level::V5, config.clone());
    assert_reaction("H56", &mut server, &hex("31 05 0001 74 00 78"), Refuse("E0 01 9A"));
    let mut server = Server::new(config.clone());
    let with_will = connect(5, 0x26, "00", "0001 63 00 0001 77 0000");
    assert_reaction("H56, will", &mut server, &hex(&with_will), Refuse("20 03 00 9A 00"));
    // 3.1.1 cannot be told: the gateway decides.
    let mut server = Server::connected(Level::V311, config);
    server.publish_outcome = PublishOutcome::NotAuthorized;
    assert_reaction("H56", &mut server, &hex("33 06 0001 74 0001 78"), Answer("40 02 0001"));
}

#[test]
fn what_is_not_available_is_refused() {
    let config = ServerConfig {
        maximum_qos: Qos::AtLeastOnce,
        wildcard_available: false,
        shared_available: false,
        ..ServerConfig::default()
    };
    for (bytes, expected) in [
        ("34 07 0001 74 0001 00 78", Refuse("E0 01 9B")),
        ("82 07 0001 00 0001 23 00", Refuse("E0 01 A2")),
        ("82 10 0001 00 000A 2473686172652F672F74 00", Refuse("E0 01 9E")),
    ] {
        let mut server = Server::connected(Level::V5, config.clone());
        assert_reaction("not available", &mut server, &hex(bytes), expected);
    }
    for (bytes, expected) in [
        ("34 06 0001 74 0001 78", CloseNow),
        ("82 06 0001 0001 23 00", Answer("90 03 0001 80")),
        ("82 0F 0001 000A 2473686172652F672F74 00", Answer("90 03 0001 80")),
    ] {
        let mut server = Server::connected(Level::V311, config.clone());
        assert_reaction("not available", &mut server, &hex(bytes), expected);
    }
    let mut server = Server::new(config);
    let with_will = connect(5, 0x16, "00", "0001 63 00 0001 77 0000");
    assert_reaction("will QoS", &mut server, &hex(&with_will), Refuse("20 03 00 9B 00"));
}

#[test]
fn h58_a_packet_cut_short_eats_the_next_one_and_fails() {
    live(
        "H58",
        "82 05 0001 00 C0 00 30 03 0001 74",
        CloseNow,
        "82 05 0001 00 C0 00 30 03 0001 74",
        MALFORMED,
    );
}

#[test]
fn what_is_sent_ahead_of_the_connack_is_bounded() {
    let mut connection = Server::new(ServerConfig::default()).connection;
    let mut out = postrider_proto::Output::default();
    connection.handle_bytes(&connect_bytes(Level::V5), 0, &mut out);
    connection.handle_bytes(&[0xC0; 16 * 1024], 0, &mut out);
    assert_eq!(out.close, None);
    connection.handle_bytes(&[0xC0], 0, &mut out);
    assert_eq!(out.close, Some(Close { kind: "ahead_of_answer", gentle: false }));
}

#[test]
fn a_client_whose_maximum_packet_size_has_no_room_for_a_connack_is_closed() {
    first("tiny packets", &connect(5, 2, "05 27 00000004", "0001 63"), CloseNow);
}

#[test]
fn answers_that_nobody_waits_for_change_nothing() {
    let mut server = Server::connected(Level::V5, ServerConfig::default());
    server.reply(Reply::Connect(Ok(Box::default())));
    server.reply(Reply::Publish { token: 0, outcome: PublishOutcome::Accepted });
    server.reply(Reply::Publish { token: 2 << 16 | 7, outcome: PublishOutcome::Accepted });
    assert_eq!((server.written(), server.close), (vec![], None));
}

#[test]
fn a_wider_profile_takes_what_the_narrow_one_refuses() {
    let limits = Limits { topic_levels_max: 100, ..Limits::default() };
    let mut server = Server::connected(Level::V311, ServerConfig { limits, ..ServerConfig::default() });
    let topic = format!("30 14 0012 {}", "2F".repeat(18));
    assert_reaction("wide", &mut server, &hex(&topic), Answer(""));
}
