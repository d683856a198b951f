"""The table of hostile MQTT input: bytes and the one reaction allowed, row by row. `H` numbers name the kind.

To add an attack, add a row. Rows of profile `default` rest on limits and rights that only strict settings
have; the others hold for every profile and are judged under `conformance`.
"""

import struct
from dataclasses import dataclass

from harness import CONFORMANCE, DEFAULT
from mqtt_wire import (AUTH, CONNACK, PINGREQ, PINGRESP, PUBACK, PUBCOMP, PUBREC, PUBREL, SUBACK, UNSUBACK, V5, V311,
                       ack_packet, binary, connect_packet, encode_property, packet, publish_packet, text,
                       unsubscribe_packet, varint)


@dataclass(frozen=True)
class Reaction:
    """What the server must do.

    close       ends the connection without a packet
    connack     CONNACK with one of `codes`, then the end
    refused     either of both: the table leaves it open
    disconnect  DISCONNECT with one of `codes`, then the end
    suback      SUBACK with just these `codes`; the connection lives on
    answer      a packet of `kind` with one of `codes` as reason; the connection lives on
    lives       the connection answers a ping afterwards
    any_end     whatever else, the connection ends
    whatever    only the canary judges
    """
    what: str
    codes: tuple = ()
    kind: int = None
    or_disconnect: tuple = ()


CLOSE, LIVES, ANY_END, WHATEVER = Reaction("close"), Reaction("lives"), Reaction("any_end"), Reaction("whatever")


def connack(*codes):
    return Reaction("connack", codes)


def refused(*codes):
    return Reaction("refused", codes)


def disconnect(*codes):
    return Reaction("disconnect", codes)


def suback(*codes, or_disconnect=()):
    return Reaction("suback", codes, or_disconnect=or_disconnect)


def answer(kind, *codes, or_disconnect=()):
    return Reaction("answer", codes, kind, or_disconnect)


@dataclass
class Row:
    h: int
    name: str
    version: int
    data: bytes
    reaction: Reaction
    signed_in: bool = True
    profile: str = CONFORMANCE


ROWS = []


def first(h, name, version, data, reaction, profile=CONFORMANCE):
    """The bytes are the first of a connection."""
    ROWS.append(Row(h, name, version, data, reaction, False, profile))


def later(h, name, version, data, reaction, profile=CONFORMANCE):
    """The bytes come after a good CONNECT."""
    ROWS.append(Row(h, name, version, data, reaction, True, profile))


def both(h, name, make, code5, profile=CONFORMANCE):
    """`make(version)` gives the bytes; 3.1.1 closes, 5 says one of `code5` first."""
    codes = code5 if isinstance(code5, tuple) else (code5,)
    later(h, name, V311, make(V311), CLOSE, profile)
    later(h, name, V5, make(V5), disconnect(*codes), profile)


def connect(version, flags=2, level=None, name=b"MQTT", props=b"\x00", payload=None, keepalive=60):
    """A CONNECT put together field by field, so that each can be wrong."""
    body = text(name) + bytes([version if level is None else level, flags]) + struct.pack("!H", keepalive)
    return packet(0x10, body + (props if version == V5 else b"") + (text("hostile") if payload is None else payload))


def connect_props(raw):
    return connect(V5, props=varint(len(raw)) + raw)


def publish(version, topic_bytes, props=b"\x00", qos=1, packet_id=7, payload=b"x"):
    body = binary(topic_bytes) + (struct.pack("!H", packet_id) if qos else b"")
    return packet(0x30 | qos << 1, body + (props if version == V5 else b"") + payload)


def publish_props(raw, qos=1, payload=b"x", topic_bytes=b"h/props"):
    return publish(V5, topic_bytes, varint(len(raw)) + raw, qos, payload=payload)


def subscribe(version, filter_bytes=b"h/a", option=0, packet_id=7, props=b"\x00"):
    return packet(0x82, struct.pack("!H", packet_id) + (props if version == V5 else b"") +
                  binary(filter_bytes) + bytes([option]))


def version_name(version):
    return "v5" if version == V5 else "v3"


def prop(name, value):
    return encode_property(name, value)


# --- before and around CONNECT ------------------------------------------------------------------------

first(1, "first packet is PUBLISH", V311, publish(V311, b"h/a"), CLOSE)
first(1, "first packet is PINGREQ", V311, b"\xc0\x00", CLOSE)
first(1, "first packet is SUBSCRIBE", V311, subscribe(V311), CLOSE)
first(1, "first packet is DISCONNECT", V311, b"\xe0\x00", CLOSE)
both(2, "second CONNECT", lambda v: connect_packet("again", v), 0x82)

first(3, "remaining length of five bytes", V311, b"\x10\xff\xff\xff\xff\x01", CLOSE)
both(3, "remaining length of five bytes, later", lambda v: b"\x30\xff\xff\xff\xff\x01", 0x81)
first(4, "non-minimal property length in CONNECT", V5, connect(V5, props=b"\x80\x00"), connack(0x81))
later(4, "non-minimal property length in PUBLISH", V5, publish(V5, b"h/a", b"\x80\x00"), disconnect(0x81))
first(5, "CONNECT of 256 MiB, then silence", V311, b"\x10\xff\xff\xff\x7f", CLOSE)
later(5, "PUBLISH of 256 MiB, then silence", V311, b"\x30\xff\xff\xff\x7f", CLOSE)
later(5, "PUBLISH of 256 MiB, then silence", V5, b"\x30\xff\xff\xff\x7f", disconnect(0x95))
first(6, "huge packet that is no CONNECT", V311, b"\x30\xff\xff\xff\x7f" + b"x" * 20000, CLOSE)

both(7, "packet type 0", lambda v: b"\x00\x00", 0x81)
first(7, "packet type 0 first", V311, b"\x00\x00", CLOSE)
later(7, "packet type 15", V311, b"\xf0\x00", CLOSE)

first(8, "CONNECT with flags 1", V311, b"\x11" + connect_packet("h")[1:], CLOSE)
first(8, "CONNECT with flags 1", V5, b"\x11" + connect_packet("h", V5)[1:], refused(0x81))
for byte, label, make in ((0x80, "SUBSCRIBE", lambda v: subscribe(v)),
                          (0xA0, "UNSUBSCRIBE", lambda v: unsubscribe_packet(["a"], 7, v)),
                          (0x60, "PUBREL", lambda v: ack_packet(PUBREL, 7)), (0xC1, "PINGREQ", lambda v: b"\xc0\x00"),
                          (0x41, "PUBACK", lambda v: ack_packet(PUBACK, 7)), (0xE1, "DISCONNECT", lambda v: b"\xe0\x00")):
    both(8, f"wrong flags of {label}", lambda v, b=byte, m=make: bytes([b]) + m(v)[1:], 0x81)

for bad in (b"MQTU", b"MQT", b"", b"mqtt", b"MQTTT", b"hj"):
    first(9, f"protocol name {bad.decode() or 'empty'}", V311, connect(V311, name=bad), CLOSE)
first(9, "protocol name of 65,535 bytes", V311, connect(V311, name=b"M" * 65535), CLOSE)
first(9, "MQIsdp with level 4", V311, connect(V311, name=b"MQIsdp"), refused(1))
first(9, "MQTT with level 3", V311, connect(V311, level=3), refused(1))
for level in (0, 2):
    first(10, f"protocol level {level}", V311, connect(V311, level=level), connack(1))
for level in (6, 255):
    first(10, f"protocol level {level}", V5, connect(V5, level=level), connack(1, 0x84))

first(11, "reserved CONNECT flag", V311, connect(V311, 0x03), CLOSE)
first(11, "reserved CONNECT flag", V5, connect(V5, 0x03), connack(0x81))
for flags, label in ((0x0A, "will QoS 1"), (0x22, "will retain")):
    first(12, f"{label} without a will", V311, connect(V311, flags), CLOSE)
    first(12, f"{label} without a will", V5, connect(V5, flags), connack(0x81, 0x82))
WILL = text("h/will") + text("w")
first(13, "will QoS 3", V311, connect(V311, 0x1E, payload=text("h") + WILL), CLOSE)
first(13, "will QoS 3", V5, connect(V5, 0x1E, payload=text("h") + b"\x00" + WILL), connack(0x81))
for label, rest in (("missing", b""), ("cut", text("h/will") + b"\x00\x09w"), ("without payload", text("h/will"))):
    first(14, f"will fields {label}", V311, connect(V311, 0x06, payload=text("h") + rest), CLOSE)
    first(14, f"will fields {label}", V5, connect(V5, 0x06, payload=text("h") + b"\x00" + rest), connack(0x81))
for bad in ("h/#", "h/+", "", "$share/g/h"):
    payload = text("h") + text(bad) + text("w")
    first(15, f"will to '{bad}'", V311, connect(V311, 0x06, payload=payload), refused(2, 5))
    payload5 = text("h") + b"\x00" + text(bad) + text("w")
    first(15, f"will to '{bad}'", V5, connect(V5, 0x06, payload=payload5), connack(0x90, 0x87, 0x81, 0x82))

first(16, "password without user name", V311, connect(V311, 0x42, payload=text("h") + text("pw")), CLOSE)
first(17, "user name flag without the field", V311, connect(V311, 0x82), CLOSE)
first(17, "user name flag without the field", V5, connect(V5, 0x82), connack(0x81))
first(17, "bytes after the payload", V311, connect(V311, payload=text("h") + b"more"), CLOSE)
first(17, "bytes after the payload", V5, connect(V5, payload=text("h") + b"more"), connack(0x81))
first(17, "no client id at all", V311, connect(V311, payload=b""), CLOSE)
first(17, "CONNECT that ends in its header", V311, packet(0x10, text("MQTT") + b"\x04"), CLOSE)
first(18, "empty client id with clean session 0", V311, connect(V311, 0, payload=text("")), connack(2))
for bad in ("#", "+", "a/#", "a/b", "x" * 129):
    label = bad if len(bad) < 9 else f"of {len(bad)} bytes"
    first(19, f"client id {label}", V311, connect(V311, payload=text(bad)), refused(2, 4, 5), DEFAULT)
    first(19, f"client id {label}", V5, connect(V5, payload=text(bad)), refused(0x85, 0x86, 0x87), DEFAULT)

# --- text ---------------------------------------------------------------------------------------------

BAD_UTF8 = {"overlong slash": b"a\xc0\xaf", "overlong NUL": b"a\xc0\x80", "surrogate": b"a\xed\xa0\x80",
            "NUL": b"a\x00b", "cut sequence": b"a\xe2\x82", "lone continuation": b"a\x80",
            "beyond U+10FFFF": b"a\xf4\x90\x80\x80", "byte FF": b"a\xff"}
for label, bad in BAD_UTF8.items():
    both(22, f"{label} in a topic", lambda v, b=bad: publish(v, b), 0x81)
    both(22, f"{label} in a filter", lambda v, b=bad: subscribe(v, b), 0x81)
    first(22, f"{label} in a client id", V311, connect(V311, payload=binary(bad)), refused(2))
    first(22, f"{label} in a client id", V5, connect(V5, payload=binary(bad)), connack(0x81, 0x85))
    pair = b"\x26" + text("k") + binary(bad)
    later(22, f"{label} in a user property", V5, publish_props(pair), disconnect(0x81))
    later(22, f"{label} in a content type", V5, publish_props(b"\x03" + binary(bad)), disconnect(0x81))
for code in (0x01, 0x1F, 0x7F, 0x85, 0x9F, 0xFFFF, 0xFDD0):
    bad = b"h/" + chr(code).encode()
    both(23, f"U+{code:04X} in a topic", lambda v, b=bad: publish(v, b), (0x81, 0x90))

# --- PUBLISH ------------------------------------------------------------------------------------------

both(25, "QoS 3", lambda v: packet(0x36, text("h/a") + b"\x00\x07" + (b"\x00" if v == V5 else b"")), 0x81)
both(26, "QoS 0 with DUP", lambda v: publish_packet("h/a", b"x", 0, dup=True, version=v), 0x81)
for qos in (1, 2):
    both(27, f"QoS {qos} with packet id 0", lambda v, q=qos: publish(v, b"h/a", qos=q, packet_id=0), 0x82)
both(27, "SUBSCRIBE with packet id 0", lambda v: subscribe(v, packet_id=0), 0x82)
both(27, "UNSUBSCRIBE with packet id 0", lambda v: unsubscribe_packet(["a"], 0, v), 0x82)
for qos in (0, 1, 2):
    both(28, f"empty topic without alias at QoS {qos}", lambda v, q=qos: publish(v, b"", qos=q), 0x82)
for bad in (b"#", b"+", b"a/+/b", b"a/#", b"a#", b"a+b"):
    both(29, f"topic {bad.decode()}", lambda v, b=bad: publish(v, b), 0x90)
both(30, "topic of 65,535 slashes", lambda v: publish(v, b"/" * 65535), (0x90, 0x95), DEFAULT)
both(30, "topic of 17 levels", lambda v: publish(v, b"/".join([b"a"] * 17)), 0x90, DEFAULT)
both(30, "topic of 513 bytes", lambda v: publish(v, b"a" * 513), 0x90, DEFAULT)
both(31, "topic longer than the packet", lambda v: packet(0x30, b"\xff\xffh/a"), 0x81)
both(31, "PUBLISH of one byte", lambda v: packet(0x30, b"\x00"), 0x81)
both(31, "QoS 1 cut before its packet id", lambda v: packet(0x32, text("h/a")), 0x81)

# --- SUBSCRIBE, UNSUBSCRIBE ---------------------------------------------------------------------------

for bad in (b"a/#/b", b"a#", b"a/b+", b"+a/b", b"#/"):
    later(32, f"filter {bad.decode()}", V311, subscribe(V311, bad), Reaction("suback_or_close", (0x80,)))
    later(32, f"filter {bad.decode()}", V5, subscribe(V5, bad), suback(0x8F, or_disconnect=(0x81, 0x82, 0x8F)))
for bad in (b"", b"$share//t", b"$share/g", b"$share/g/", b"$share/g+/t", b"$share/#/t"):
    later(32, f"filter '{bad.decode()}'", V5, subscribe(V5, bad), suback(0x8F, or_disconnect=(0x81, 0x82, 0x8F)))
later(32, "empty filter", V311, subscribe(V311, b""), Reaction("suback_or_close", (0x80,)))
for wide in (b"#", b"+/+/+", b"$push/#", b"+", b"$SYS/#"):
    later(33, f"filter {wide.decode()} by a device", V311, subscribe(V311, wide), suback(0x80), DEFAULT)
    later(33, f"filter {wide.decode()} by a device", V5, subscribe(V5, wide), suback(0x87), DEFAULT)
both(35, "SUBSCRIBE without filters", lambda v: packet(0x82, b"\x00\x07" + (b"\x00" if v == V5 else b"")), 0x82)
both(35, "UNSUBSCRIBE without filters", lambda v: packet(0xA2, b"\x00\x07" + (b"\x00" if v == V5 else b"")), 0x82)
both(35, "SUBSCRIBE cut before the options", lambda v: packet(0x82, subscribe(v)[2:-1]), 0x81)
both(36, "subscription with QoS 3", lambda v: subscribe(v, option=3), (0x81, 0x82))
for bits in (0x40, 0x80):
    both(36, f"subscription with reserved bit {bits:#x}", lambda v, b=bits: subscribe(v, option=b), (0x81, 0x82))
later(36, "3.1.1 subscription with version 5 options", V311, subscribe(V311, option=0x04), CLOSE)
later(36, "retain handling 3", V5, subscribe(V5, option=0x30), disconnect(0x81, 0x82))
later(37, "no local with a shared subscription", V5, subscribe(V5, b"$share/g/t", 0x05), disconnect(0x82))

# --- properties ---------------------------------------------------------------------------------------

TWICE_IN_CONNECT = {"session_expiry": 1, "receive_maximum": 9, "maximum_packet_size": 9999, "topic_alias_maximum": 1,
                    "request_problem_info": 1, "request_response_info": 1}
for name, value in TWICE_IN_CONNECT.items():
    first(39, f"{name} twice in CONNECT", V5, connect_props(prop(name, value) * 2), connack(0x82))
TWICE_IN_PUBLISH = {"payload_format": 1, "message_expiry": 9, "topic_alias": 1, "response_topic": "r",
                    "correlation_data": b"c", "content_type": "t"}
for name, value in TWICE_IN_PUBLISH.items():
    later(39, f"{name} twice in PUBLISH", V5, publish_props(prop(name, value) * 2), disconnect(0x82))
for number in (0x00, 0x7F, 0x04, 0xFF):
    raw = varint(number) + b"\x00"
    first(40, f"property 0x{number:02x} in CONNECT", V5, connect_props(raw), connack(0x81))
    later(40, f"property 0x{number:02x} in PUBLISH", V5, publish_props(raw), disconnect(0x81))
first(40, "topic alias in CONNECT", V5, connect_props(prop("topic_alias", 1)), connack(0x81, 0x82))
first(40, "will delay outside a will", V5, connect_props(prop("will_delay", 1)), connack(0x81, 0x82))
later(40, "session expiry in PUBLISH", V5, publish_props(prop("session_expiry", 1)), disconnect(0x81, 0x82))
later(40, "content type in SUBSCRIBE", V5, subscribe(V5, props=b"\x04" + prop("content_type", "a")), disconnect(0x81, 0x82))
first(41, "property length longer than the CONNECT", V5, connect(V5, props=b"\x7f"), connack(0x81))
first(41, "property length of five bytes", V5, connect(V5, props=b"\xff\xff\xff\xff\x01"), connack(0x81))
later(41, "property length longer than the PUBLISH", V5, publish(V5, b"h/a", b"\x7f", payload=b""), disconnect(0x81))
later(41, "property length of five bytes in PUBLISH", V5, publish(V5, b"h/a", b"\xff\xff\xff\xff\x01"), disconnect(0x81))
later(41, "property cut by its own length", V5, publish(V5, b"h/a", b"\x02\x02\x00"), disconnect(0x81))
later(41, "property length that ends inside a property", V5,
      publish(V5, b"h/a", b"\x03" + prop("message_expiry", 9)), disconnect(0x81))
first(42, "receive maximum 0", V5, connect_props(prop("receive_maximum", 0)), connack(0x82))
first(42, "maximum packet size 0", V5, connect_props(prop("maximum_packet_size", 0)), connack(0x82))
for name in ("request_problem_info", "request_response_info"):
    first(42, f"{name} 2", V5, connect_props(prop(name, 2)), connack(0x82, 0x81))
later(43, "topic alias 0", V5, publish_props(prop("topic_alias", 0)), disconnect(0x94))
later(43, "topic alias 65,535", V5, publish_props(prop("topic_alias", 65535)), disconnect(0x94))
later(44, "alias used before it was defined", V5, publish_props(prop("topic_alias", 1), topic_bytes=b""), disconnect(0x82))
later(44, "alias defined anew 10,000 times", V5,
      b"".join(publish_props(prop("topic_alias", 1), 0, topic_bytes=b"h/%d" % n) for n in range(10_000)), LIVES)
later(45, "5,000 user properties", V5, publish_props(prop("user_property", ("k", "v")) * 5000),
      answer(PUBACK, 0x97, or_disconnect=(0x95, 0x97)), DEFAULT)
later(46, "subscription identifier in PUBLISH", V5, publish_props(prop("subscription_id", 1)), disconnect(0x82))
later(46, "subscription identifier 0", V5, subscribe(V5, props=b"\x02\x0b\x00"), disconnect(0x82))
later(46, "two subscription identifiers", V5, subscribe(V5, props=b"\x04\x0b\x01\x0b\x02"), disconnect(0x82))
for bad in ("r/#", "r/+"):
    later(47, f"response topic {bad}", V5, publish_props(prop("response_topic", bad)), disconnect(0x82))
later(47, "payload format 2", V5, publish_props(prop("payload_format", 2)), disconnect(0x82, 0x81))
later(47, "payload format 1 with other bytes", V5, publish_props(prop("payload_format", 1), payload=b"\xff\xfe"),
      answer(PUBACK, 0x99, or_disconnect=(0x99,)))

# --- acknowledgements and strange packets -------------------------------------------------------------

later(49, "60,000 QoS 2 publishes and no PUBREL", V5,
      b"".join(publish(V5, b"h/a", qos=2, packet_id=n, payload=b"") for n in range(1, 60_001)), disconnect(0x93))
later(49, "60,000 QoS 2 publishes and no PUBREL", V311,
      b"".join(publish(V311, b"h/a", qos=2, packet_id=n, payload=b"") for n in range(1, 60_001)), WHATEVER)
later(50, "PUBREL for an unknown id", V311, ack_packet(PUBREL, 99), answer(PUBCOMP, 0))
later(50, "PUBREL for an unknown id", V5, ack_packet(PUBREL, 99), answer(PUBCOMP, 0x92))
later(50, "PUBREC for an unknown id", V5, ack_packet(PUBREC, 99), answer(PUBREL, 0x92))
later(50, "PUBREC for an unknown id", V311, ack_packet(PUBREC, 99), LIVES)
for version in (V311, V5):
    later(50, "PUBACK for an unknown id", version, ack_packet(PUBACK, 99), LIVES)
    later(50, "PUBCOMP for an unknown id", version, ack_packet(PUBCOMP, 99), LIVES)
    later(50, "1,000 PUBACKs for unknown ids", version, ack_packet(PUBACK, 99) * 1000, ANY_END, DEFAULT)
both(50, "PUBACK of one byte", lambda v: packet(0x40, b"\x00"), 0x81)
later(50, "PUBACK with trailing bytes", V311, packet(0x40, b"\x00\x07\x00"), CLOSE)
SERVER_ONLY = {CONNACK: b"\x00\x00", SUBACK: b"\x00\x07\x00", UNSUBACK: b"\x00\x07", PINGRESP: b""}
SERVER_ONLY_5 = {CONNACK: b"\x00\x00\x00", SUBACK: b"\x00\x07\x00\x00", UNSUBACK: b"\x00\x07\x00\x00", PINGRESP: b""}
for kind, label in ((CONNACK, "CONNACK"), (SUBACK, "SUBACK"), (UNSUBACK, "UNSUBACK"), (PINGRESP, "PINGRESP")):
    both(51, f"client sends {label}",
         lambda v, k=kind: packet(k << 4, (SERVER_ONLY_5 if v == V5 else SERVER_ONLY)[k]), 0x82)
both(51, "PINGREQ with a body", lambda v: packet(PINGREQ << 4, b"x"), 0x81)
later(52, "AUTH although CONNECT named no method", V5, packet(AUTH << 4, b"\x18\x00"), disconnect(0x82))
later(52, "AUTH with an unknown reason", V5, packet(AUTH << 4, b"\x42\x00"), disconnect(0x82, 0x81))
first(52, "authentication data without method", V5, connect_props(prop("auth_data", b"x")), connack(0x82))
first(52, "AUTH as the first packet", V5, packet(AUTH << 4, b"\x18\x00"), CLOSE)
later(53, "DISCONNECT with session expiry after CONNECT had none", V5,
      packet(0xE0, b"\x00\x05" + prop("session_expiry", 60)), disconnect(0x82))
later(53, "DISCONNECT with a reason only servers give", V5, packet(0xE0, b"\x8b\x00"), Reaction("any_end"))
later(53, "DISCONNECT with a body", V311, packet(0xE0, b"x"), ANY_END)
later(56, "retained publish by a device", V5, packet(0x33, text("h/a") + b"\x00\x07\x00" + b"x"),
      answer(PUBACK, 0x87, 0x9A, or_disconnect=(0x87, 0x9A)), DEFAULT)
later(56, "empty retained publish to a foreign topic", V5, packet(0x33, text("other/a") + b"\x00\x07\x00"),
      answer(PUBACK, 0x87, 0x9A, or_disconnect=(0x87, 0x9A)), DEFAULT)
