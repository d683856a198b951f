//! Hostile inputs H59 to H78 of reliability.md §4.5, as far as the protocol alone decides. Each row: bytes → exact reaction,
//! and the same reaction however the bytes are cut.

use super::conversation::SEED;
use crate::support::cases;
use postrider_proto::xmpp::{
    ChannelBinding, Piece, Reader, ServerConfig, ServerConnection, StanzaLimits, XmlError, XmlLimits,
};
use postrider_proto::{Accepted, Event, Output, Reply, ServerProtocol};
use proptest::prelude::*;
use std::sync::Arc;

const OPEN: &str = "<stream:stream to='d' xmlns='jabber:client' \
                    xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";
const AUTH: &str = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AHUAcHc=</auth>";
const BIND: &str = "<iq id='b' type='set'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";

/// How the server ended it, `None` if it did not; and all that it wrote.
fn reaction(before: &[&[u8]], bytes: &[u8], step: usize) -> (Option<&'static str>, String) {
    let config = ServerConfig { allows_plaintext: true, ..ServerConfig::default() };
    let mut connection = ServerConnection::new(Arc::new(config), SEED, 0);
    for part in before {
        let (close, _) = feed(&mut connection, part);
        assert_eq!(close, None, "before the hostile part all is well");
    }
    let mut written = String::new();
    for part in bytes.chunks(step.max(1)) {
        let (close, said) = feed(&mut connection, part);
        written.push_str(&said);
        if close.is_some() {
            assert_eq!(connection.window(), 0);
            assert_eq!(connection.next_timeout(), None);
            return (close, written);
        }
    }
    (None, written)
}

fn feed(connection: &mut ServerConnection, bytes: &[u8]) -> (Option<&'static str>, String) {
    let mut out = Output::default();
    connection.handle_bytes(bytes, 0, &mut out);
    if out.events.iter().any(|event| matches!(event, Event::Connect(_))) {
        connection.handle_reply(Reply::Connect(Ok(Box::<Accepted>::default())), 0, &mut out);
    }
    (out.close.map(|close| close.kind), String::from_utf8(out.bytes).expect("the server writes UTF-8"))
}

#[track_caller]
fn row(row: &str, before: &[&[u8]], bytes: &[u8], expected: Option<&str>) {
    let whole = reaction(before, bytes, usize::MAX);
    assert_eq!(whole.0, expected, "{row}: {}", whole.1);
    if let Some(condition) = expected.filter(|word| *word != "tls_hello") {
        assert!(whole.1.contains(&format!("<{condition} xmlns=")), "{row}: {}", whole.1);
        assert!(whole.1.ends_with("</stream:stream>"), "{row}: {}", whole.1);
    }
    let steps: &[usize] = if bytes.len() > 100_000 { &[1_000] } else { &[1, 7, 1_000] };
    for step in steps {
        assert_eq!(reaction(before, bytes, *step), whole, "{row}, cut into {step}");
    }
}

fn first(name: &str, bytes: impl AsRef<[u8]>, expected: Option<&str>) {
    row(name, &[], bytes.as_ref(), expected);
}

fn in_stream(name: &str, bytes: impl AsRef<[u8]>, expected: Option<&str>) {
    row(name, &[OPEN.as_bytes()], bytes.as_ref(), expected);
}

fn in_session(name: &str, bytes: impl AsRef<[u8]>, expected: Option<&str>) {
    let before = [OPEN, AUTH, OPEN, BIND].map(str::as_bytes);
    row(name, &before, bytes.as_ref(), expected);
}

#[test]
fn h59_h60_the_forbidden_parts_of_xml() {
    let bomb = "<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]>";
    first("H59", format!("{bomb}{OPEN}"), Some("restricted-xml"));
    first("H59, external", "<!DOCTYPE x SYSTEM 'file:///etc/passwd'>", Some("restricted-xml"));
    for inside in ["<!-- x -->", "<?php x?>", "<!DOCTYPE x>", "<!ENTITY a 'b'>", "<![INCLUDE[x]]>"] {
        in_stream("H60", inside, Some("restricted-xml"));
        in_session("H60", format!("<message>{inside}"), Some("restricted-xml"));
    }
    in_session("H60", "<message><body>&custom;</body></message>", Some("restricted-xml"));
    in_session("H60, in a value", "<message id='&custom;'/>", Some("restricted-xml"));
    first("a second declaration", "<?xml version='1.0'?><?xml version='1.0'?>", Some("restricted-xml"));
    in_session(
        "references",
        "<message type='error'><body>&#x41;&#66;&lt;&gt;&amp;&quot;&apos;</body></message>",
        None,
    );
    for bad in ["&#0;", "&#x1F;", "&#xD800;", "&#x110000;", "&#;", "&#x;", "&#+1;", "&;", "&lt", "& "] {
        in_session(bad, format!("<message><body>{bad}</body></message>"), Some("not-well-formed"));
    }
    in_session("CDATA is text", "<message type='error'><body><![CDATA[<&>]]></body></message>", None);
    in_session("CDATA between stanzas", "<![CDATA[ ]]>", Some("restricted-xml"));
}

#[test]
fn h61_h64_sizes() {
    let filled = |len: usize| {
        let frame = "<iq id='1' type='get'><query xmlns='jabber:iq:auth'></query></iq>".len();
        format!(
            "<iq id='1' type='get'><query xmlns='jabber:iq:auth'>{}</query></iq>",
            "x".repeat(len - frame)
        )
    };
    in_stream("H61", filled(10_000), None);
    in_stream("H61", filled(10_001), Some("policy-violation"));
    let message = |len: usize| format!("<message type='error'>{}</message>", "x".repeat(len - 32));
    in_session("H61, after", message(64 * 1024), None);
    in_session("H61, after", message(64 * 1024 + 1), Some("policy-violation"));
    in_session("H64", format!("<{}", "x".repeat(1 << 20)), Some("policy-violation"));
    in_session("H64", format!("<{}/>", "x".repeat(257)), Some("policy-violation"));
    in_session("a name of 256", format!("<message type='error'><{}/></message>", "x".repeat(256)), None);
    in_session("a value of 4 KiB", format!("<message type='error' id='{}'/>", "x".repeat(4_096)), None);
    in_session("a value above", format!("<message id='{}'/>", "x".repeat(4_097)), Some("policy-violation"));
    in_session("H64", "<message id=x/>", Some("not-well-formed"));
    first(
        "a header that does not end",
        format!("<stream:stream {}", " ".repeat(20_000)),
        Some("policy-violation"),
    );
}

#[test]
fn h62_h63_depth_attributes_and_namespaces() {
    let deep = |depth: usize| {
        format!("<message type='error'>{}{}</message>", "<x>".repeat(depth - 1), "</x>".repeat(depth - 1))
    };
    in_session("H62", deep(16), None);
    in_session("H62", deep(17), Some("policy-violation"));
    in_session("H62", "<x>".repeat(100_000), Some("policy-violation"));
    let many =
        |count: usize, name: &str| -> String { (0..count).map(|i| format!(" {name}{i}='u{i}'")).collect() };
    in_session("H63", format!("<message type='error'{}/>", many(31, "a")), None);
    in_session("H63", format!("<message type='error'{}/>", many(32, "a")), Some("policy-violation"));
    in_session("H63", format!("<message{}/>", many(80_000, "a")), Some("policy-violation"));
    in_session("H63", format!("<message type='error'{}/>", many(8, "xmlns:a")), None);
    in_session("H63", format!("<message type='error'{}/>", many(9, "xmlns:a")), Some("policy-violation"));
    in_session("H63", format!("<message{}/>", many(8_000, "xmlns:a")), Some("policy-violation"));
}

/// A tree takes many times the memory of its bytes: so its parts are counted too.
#[test]
fn small_parts_are_counted() {
    let elements = |count: usize| {
        format!("<iq id='1' type='get'><query xmlns='jabber:iq:auth'>{}</query></iq>", "<a/>".repeat(count))
    };
    in_stream("64 parts", elements(59), None);
    in_stream("65 parts", elements(60), Some("policy-violation"));
    in_session("1,024 parts", format!("<message type='error'>{}</message>", "<a b='1'/>".repeat(511)), None);
    in_session(
        "1,026 parts",
        format!("<message type='error'>{}</message>", "<a b='1'/>".repeat(512)),
        Some("policy-violation"),
    );
}

#[test]
fn h65_encodings() {
    let header = |encoding: &str| format!("<?xml version='1.0' encoding='{encoding}'?>{OPEN}");
    first("UTF-8", header("utf-8"), None);
    first("H65", header("utf-16"), Some("unsupported-encoding"));
    first("H65", header("iso-8859-1"), Some("unsupported-encoding"));
    first("H65, a UTF-16 byte order mark", b"\xFE\xFF\0<", Some("unsupported-encoding"));
    first("H65, a UTF-16 byte order mark", b"\xFF\xFE<\0", Some("unsupported-encoding"));
    let bad: [&[u8]; 6] = [b"\xFF", b"\xC0\x80", b"\xED\xA0\x80", b"\xF4\x90\x80\x80", b"\xE2\x82<", b"\x80"];
    for bad in bad {
        in_session(
            "H65",
            [b"<message><body>".as_slice(), bad, b"</body></message>"].concat(),
            Some("bad-format"),
        );
        in_session(
            "H65, in a value",
            [b"<message id='".as_slice(), bad, b"'/>"].concat(),
            Some("bad-format"),
        );
    }
    in_session("found at once", b"<message><body>x\xFF", Some("bad-format"));
    in_session(
        "characters that XML has not",
        "<message><body>\u{1}</body></message>",
        Some("not-well-formed"),
    );
    in_session("characters that XML has not", "<message id='\u{FFFE}'/>", Some("not-well-formed"));
}

#[test]
fn h66_h67_headers() {
    let header = |from: &str, to: &str| OPEN.replace(from, to);
    first("H66", header("jabber:client", "jabber:server"), Some("invalid-namespace"));
    first("H66", header("http://etherx.jabber.org/streams", "urn:x"), Some("invalid-namespace"));
    first("H66", header("version='1.0'", "version='2.0'"), Some("unsupported-version"));
    first("H66", header("version='1.0'", ""), Some("unsupported-version"));
    first("any host is this one", header("to='d'", "to='10.0.0.1'"), None);
    first("no host", header("to='d'", ""), None);
    first("other prefixes", header("stream:", "s:").replace("xmlns:stream", "xmlns:s"), None);
    first(
        "H66, a prefix that was not declared",
        header("xmlns:stream=", "xmlns:other="),
        Some("bad-namespace-prefix"),
    );
    first("no stream", "<message>", Some("invalid-namespace"));
    first("an HTTP request", "GET / HTTP/1.1\r\n", Some("not-well-formed"));
    first("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03", Some("tls_hello"));
    in_stream("H67", OPEN, Some("invalid-xml"));
    let (close, written) = reaction(&[OPEN.as_bytes()], b"</stream:stream><message>", usize::MAX);
    assert_eq!((close, written.as_str()), (Some("disconnect"), "</stream:stream>"), "H67");
    in_stream("another end", "</stream>", Some("not-well-formed"));
    in_stream("text", "hello", Some("not-well-formed"));
    in_stream("H68", "<presence/>", Some("not-authorized"));
    in_stream(
        "H74",
        "<compress xmlns='http://jabber.org/protocol/compress'><method>zlib</method></compress>",
        None,
    );
}

#[test]
fn what_is_not_well_formed() {
    let rows = [
        "<message></iq>",
        "<message><body></message>",
        "<message id='1' id='2'/>",
        "<message xmlns:a='u' xmlns:b='u' a:x='1' b:x='2'/>",
        "<message id='<'/>",
        "<message id='1'to='2'/>",
        "<message id/>",
        "<message id='1/>'/",
        "<1/>",
        "<-/>",
        "< message/>",
        "<:message/>",
        "<a:b:c/>",
        "<message xmlns:a=''/>",
        "<message xmlns:xmlns='u'/>",
        "<message xmlns:xml='u'/>",
        "</message>",
    ];
    for bytes in rows {
        in_session(bytes, format!("{bytes}<x/>"), Some("not-well-formed"));
    }
    in_session("a prefix that was not declared", "<a:message/>", Some("bad-namespace-prefix"));
    in_session(
        "a prefix of an element that has ended",
        "<message type='error'><x xmlns:a='u'/><a:y/></message>",
        Some("bad-namespace-prefix"),
    );
    in_session("another namespace", "<message xmlns='jabber:server'/>", Some("unsupported-stanza-type"));
    in_session("no stanza", "<mess/>", Some("unsupported-stanza-type"));
}

#[test]
fn half_stanzas_wait_and_hold_no_more_than_what_came() {
    for half in ["<", "<message", "<message id='", "<message><body>x", "<message><![CDATA[x", "</"] {
        in_session("half a stanza", half, None);
    }
}

#[test]
fn what_comes_ahead_of_an_answer_is_bounded() {
    let config = ServerConfig { allows_plaintext: true, ..ServerConfig::default() };
    let mut connection = ServerConnection::new(Arc::new(config), SEED, 0);
    let mut out = Output::default();
    connection.handle_bytes(format!("{OPEN}{AUTH}").as_bytes(), 0, &mut out);
    for _ in 0..10 {
        connection.handle_bytes(&[b' '; 1_000], 0, &mut out);
        assert!(out.close.is_none());
    }
    connection.handle_bytes(b" ", 0, &mut out);
    assert_eq!(out.close.map(|close| close.kind), Some("policy-violation"));
    // The answer comes all the same, and nothing goes out.
    let mut late = Output::default();
    connection.handle_reply(Reply::Connect(Ok(Box::default())), 0, &mut late);
    assert!(late.bytes.is_empty() && !connection.is_connected());
}

#[test]
fn tls_may_come_first() {
    let mut connection = ServerConnection::new(Arc::default(), SEED, 0);
    connection.handle_tls(ChannelBinding { exporter: None, server_end_point: Some(Box::new([1; 32])) });
    let (close, written) = feed(&mut connection, OPEN.as_bytes());
    assert_eq!(close, None);
    assert!(
        written.contains("SCRAM-SHA-256-PLUS") && written.contains("\"tls-server-end-point\""),
        "{written}"
    );
    assert!(!written.contains("starttls"), "{written}");
}

/// The pieces of a stream and how it ended, read in parts of that size.
fn pieces(bytes: &[u8], step: usize) -> (Vec<Piece>, Option<XmlError>) {
    let (mut reader, mut pieces) = (Reader::default(), Vec::new());
    for part in bytes.chunks(step) {
        let mut input = part;
        loop {
            match reader.next(
                &mut input,
                &XmlLimits::default(),
                StanzaLimits { bytes_max: 300, parts_max: 12 },
            ) {
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => break,
                Err(error) => return (pieces, Some(error)),
            }
        }
    }
    (pieces, None)
}

/// Bits of XML, well and badly put together.
fn xml() -> impl Strategy<Value = Vec<u8>> {
    let bits = prop::sample::select(vec![
        "<a>",
        "</a>",
        "<b x='1'",
        " y=\"2\"",
        "/>",
        ">",
        "<",
        "&lt;",
        "&x;",
        "&#65;",
        "text",
        "ü",
        "😀",
        " ",
        "\r\n",
        "<![CDATA[",
        "]]>",
        "<!--",
        "<?xml version='1.0'?>",
        "xmlns='u'",
        "xmlns:p='v'",
        "<p:c",
        "</p:c>",
        "</stream:stream>",
        "'",
        "\"",
    ]);
    let bits = prop_oneof![20 => bits.prop_map(|bit| bit.as_bytes().to_vec()), 1 => prop::collection::vec(any::<u8>(), 1..4)];
    prop::collection::vec(bits, 0..40).prop_map(|bits| bits.concat())
}

/// What clients say, to be cut up and put together otherwise.
fn said() -> Vec<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conversations/xmpp");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let texts: Vec<String> = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let lines = texts.iter().flat_map(|text| text.lines());
    lines.filter_map(|line| line.strip_prefix("C> ")).map(str::to_owned).collect()
}

fn parts_of_what_is_said() -> impl Strategy<Value = Vec<u8>> {
    let part = (prop::sample::select(said()), any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let part = part.prop_map(|(line, a, b)| {
        let (a, b) = (a.index(line.len() + 1), b.index(line.len() + 1));
        // Whole in most cases, else without its head or its tail.
        let cut = if a % 4 == 0 { a.min(b)..a.max(b) } else { 0..line.len() };
        line.as_bytes()[cut].to_vec()
    });
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn no_bytes_make_the_server_panic(choice in any::<u8>(), xml in xml(), said in parts_of_what_is_said()) {
        super::fuzz_body::xmpp_server_bytes(&[&[choice], said.as_slice(), &xml].concat());
        super::fuzz_body::xmpp_server_bytes(&[&[choice], xml.as_slice(), &said].concat());
    }

    #[test]
    fn where_bytes_are_cut_makes_no_difference(xml in xml(), has_header in any::<bool>()) {
        let header = if has_header { OPEN.as_bytes() } else { b"" };
        let bytes = [header, &xml].concat();
        let whole = pieces(&bytes, usize::MAX);
        for step in [1, 2, 5, 64] {
            prop_assert_eq!(&pieces(&bytes, step), &whole);
        }
    }
}
