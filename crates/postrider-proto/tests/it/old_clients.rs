//! Bytes as the old clients of this field write them (conformance.md). COMPAT: all of it is for level 3, and only for it.

use crate::support::*;
use postrider_proto::mqtt::{Level, ServerConfig};
use postrider_proto::{Close, Event, Qos};

/// wmqtt's CONNECT: clean session, keep-alive 900 s, and an identifier of 23 bytes with a slash.
fn wmqtt_connect(flags: u8) -> Vec<u8> {
    let mut bytes = hex("10 25 0006 4D5149736470 03");
    bytes.push(flags);
    bytes.extend(hex("0384 0017"));
    bytes.extend(b"tokudu/0123456789abcdef");
    bytes
}

fn signed_in(flags: u8) -> Server {
    let mut server = Server::new(ServerConfig::default());
    server.feed(&wmqtt_connect(flags));
    assert_eq!(server.written(), hex("20 02 00 00"));
    server
}

#[test]
fn wmqtt_signs_in_with_a_slash_in_its_identifier() {
    let server = signed_in(0x02);
    let Some(Event::Connect(connect)) = server.events.first() else { panic!() };
    assert_eq!((connect.level, connect.client_id.as_str()), (3, "tokudu/0123456789abcdef"));
    assert_eq!((connect.clean_start, connect.keepalive_secs), (true, 900));
    assert_eq!(server.connection.level(), Some(Level::V31));
}

#[test]
fn wmqtt_asks_for_topic_name_compression_and_does_not_get_it() {
    let server = signed_in(0x03);
    assert!(server.connection.is_connected());
}

#[test]
fn the_connack_of_level_3_never_says_session_present() {
    let mut server = Server::new(ServerConfig::default());
    server.accepted = session(None);
    server.feed(&wmqtt_connect(0x00));
    assert_eq!(server.written(), hex("20 02 00 00"));
}

#[test]
fn wmqtt_pings_with_dup_set_from_the_second_time_on() {
    let mut server = signed_in(0x02);
    server.feed(&hex("C0 00 C8 00 C8 00"));
    assert_eq!(server.written(), hex("D0 00 D0 00 D0 00"));
}

#[test]
fn wmqtt_releases_with_flags_0_and_retries_with_dup() {
    let mut server = signed_in(0x02);
    server.feed(&hex("34 06 0001 74 0009 78"));
    server.feed(&hex("60 02 0009 68 02 0009"));
    assert_eq!(server.written(), hex("50 02 0009 70 02 0009 70 02 0009"));
    server.feed(&hex("8A 08 0002 0003 612F62 00"));
    assert_eq!(server.written(), hex("90 03 0002 00"));
}

#[test]
fn wmqtt_subscribes_at_qos_0_with_ids_from_2_on() {
    let mut server = signed_in(0x02);
    let mut subscribe = hex("82 1C 0002 0017");
    subscribe.extend(b"tokudu/0123456789abcdef");
    subscribe.push(0);
    server.feed(&subscribe);
    assert_eq!(server.written(), hex("90 03 0002 00"));
}

#[test]
fn header_and_payload_in_two_segments_are_one_packet() {
    let mut server = signed_in(0x02);
    server.feed(&hex("30 15 0010"));
    server.feed(b"tokudu/keepalive");
    assert_eq!(server.published(), []);
    server.feed(b"abc");
    assert_eq!(server.published(), [("tokudu/keepalive".to_owned(), "abc".to_owned())]);
}

#[test]
fn sam_signs_in_with_flags_0_and_3_and_no_keepalive() {
    for (flags, clean_start) in [(0x00, false), (0x03, true)] {
        let mut bytes = hex("10 25 0006 4D5149736470 03");
        bytes.push(flags);
        bytes.extend(hex("0000 0017"));
        bytes.extend(b"6b03eaa616055.816882890");
        let mut server = Server::new(ServerConfig { keepalive_zero_secs: 0, ..ServerConfig::default() });
        server.feed(&bytes);
        assert_eq!(server.written(), hex("20 02 00 00"));
        let Some(Event::Connect(connect)) = server.events.first() else { panic!() };
        assert_eq!((connect.clean_start, connect.keepalive_secs), (clean_start, 0));
        server.pass(30 * 24 * 3_600 * 1_000);
        assert_eq!(server.close, None);
    }
}

#[test]
fn sam_draws_its_packet_ids_by_chance_and_0_is_one_of_them() {
    let mut server = signed_in(0x00);
    server.feed(&hex("32 06 0001 74 0000 78"));
    assert_eq!(server.written(), hex("40 02 0000"));
    server.feed(&hex("34 06 0001 74 0000 78"));
    server.feed(&hex("60 02 0000"));
    assert_eq!(server.written(), hex("50 02 0000 70 02 0000"));
}

#[test]
fn sam_waits_for_the_close_after_its_disconnect() {
    let mut server = signed_in(0x00);
    server.feed(&hex("E0 00"));
    assert_eq!(server.close, Some(Close { kind: "disconnect", gentle: false }));
}

#[test]
fn at_level_3_the_user_flag_may_stand_without_a_user() {
    // 3.1 §3.1: the remaining length has precedence over the flags.
    for flags in ["82", "C2", "42"] {
        let mut server = Server::new(ServerConfig::default());
        server.feed(&hex(&format!("10 0F 0006 4D5149736470 03 {flags} 003C 0001 63")));
        let Some(Event::Connect(connect)) = server.events.first() else { panic!("{flags}") };
        assert_eq!((&connect.user, &connect.password), (&None, &None));
    }
}

#[test]
fn qos_is_lowered_to_the_subscriptions() {
    let mut server = signed_in(0x02);
    server.deliver(message("tokudu/x", "hi", Qos::ExactlyOnce), plain(0, Qos::AtMostOnce));
    assert_eq!(server.written(), hex("30 0C 0008 746F6B7564752F78 6869"));
}

#[test]
fn none_of_this_is_allowed_at_level_4() {
    for bytes in ["C8 00", "60 02 0009", "8A 08 0002 0003 612F62 00", "32 06 0001 74 0000 78"] {
        let mut server = Server::connected(Level::V311, ServerConfig::default());
        server.feed(&hex(bytes));
        assert!(server.close.is_some(), "{bytes}");
        assert!(server.written().is_empty());
    }
    let mut server = Server::new(ServerConfig::default());
    server.feed(&hex("10 0D 0004 4D515454 04 03 003C 0001 63"));
    assert_eq!(server.close.map(|close| close.kind), Some("malformed"));
}
