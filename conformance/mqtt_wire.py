"""A small MQTT client for judging servers: versions 3.1, 3.1.1 and 5, one thread, blocking.

It shows every packet as it came and never hides a protocol error, which is why the suites do not use a
finished client library. It does not reconnect, does not ping by itself and checks nothing that a case
does not ask for.
"""

import itertools
import os
import socket
import struct
import time
from dataclasses import dataclass, field

V31, V311, V5 = 3, 4, 5

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE = 1, 2, 3, 4, 5, 6, 7, 8
SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = 9, 10, 11, 12, 13, 14, 15

KIND_NAMES = {
    CONNECT: "CONNECT", CONNACK: "CONNACK", PUBLISH: "PUBLISH", PUBACK: "PUBACK", PUBREC: "PUBREC",
    PUBREL: "PUBREL", PUBCOMP: "PUBCOMP", SUBSCRIBE: "SUBSCRIBE", SUBACK: "SUBACK",
    UNSUBSCRIBE: "UNSUBSCRIBE", UNSUBACK: "UNSUBACK", PINGREQ: "PINGREQ", PINGRESP: "PINGRESP",
    DISCONNECT: "DISCONNECT", AUTH: "AUTH",
}

# Generous: it bounds a hang, it is never what a passing case waits for.
PATIENCE_SECS = 40.0

BYTE, TWO, FOUR, VARINT, TEXT, BINARY, PAIR = range(7)

# MQTT 5, section 2.2.2.2.
PROPERTIES = {
    "payload_format": (0x01, BYTE), "message_expiry": (0x02, FOUR), "content_type": (0x03, TEXT),
    "response_topic": (0x08, TEXT), "correlation_data": (0x09, BINARY), "subscription_id": (0x0B, VARINT),
    "session_expiry": (0x11, FOUR), "assigned_client_id": (0x12, TEXT), "server_keepalive": (0x13, TWO),
    "auth_method": (0x15, TEXT), "auth_data": (0x16, BINARY), "request_problem_info": (0x17, BYTE),
    "will_delay": (0x18, FOUR), "request_response_info": (0x19, BYTE), "response_info": (0x1A, TEXT),
    "server_reference": (0x1C, TEXT), "reason_string": (0x1F, TEXT), "receive_maximum": (0x21, TWO),
    "topic_alias_maximum": (0x22, TWO), "topic_alias": (0x23, TWO), "maximum_qos": (0x24, BYTE),
    "retain_available": (0x25, BYTE), "user_property": (0x26, PAIR), "maximum_packet_size": (0x27, FOUR),
    "wildcard_available": (0x28, BYTE), "subscription_ids_available": (0x29, BYTE),
    "shared_available": (0x2A, BYTE),
}
PROPERTY_NAMES = {number: (name, kind) for name, (number, kind) in PROPERTIES.items()}
# These may come more than once and are always handed out as lists.
REPEATABLE = {"user_property", "subscription_id"}


class WireError(Exception):
    """What came is not MQTT, or not what the case may accept."""


class Closed(WireError):
    """The server closed the connection."""


class Silence(WireError):
    """Nothing that was waited for came in time."""


# --- encoding -----------------------------------------------------------------------------------------

def varint(number):
    out = bytearray()
    while True:
        number, low = divmod(number, 128)
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def text(value):
    return binary(value.encode() if isinstance(value, str) else value)


def binary(value):
    return struct.pack("!H", len(value)) + value


def packet(first_byte, body=b""):
    return bytes([first_byte]) + varint(len(body)) + body


def encode_property(name, value):
    number, kind = PROPERTIES[name]
    encoders = {
        BYTE: lambda v: bytes([v]), TWO: lambda v: struct.pack("!H", v), FOUR: lambda v: struct.pack("!I", v),
        VARINT: varint, TEXT: text, BINARY: binary, PAIR: lambda v: text(v[0]) + text(v[1]),
    }
    return bytes([number]) + encoders[kind](value)


def encode_properties(values):
    out = b""
    for name, value in (values or {}).items():
        many = value if name in REPEATABLE and isinstance(value, list) else [value]
        out += b"".join(encode_property(name, one) for one in many)
    return varint(len(out)) + out


@dataclass
class Will:
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: dict = None

    def flags(self):
        return 0x04 | self.qos << 3 | (0x20 if self.retain else 0)

    def encode(self, version):
        head = encode_properties(self.properties) if version == V5 else b""
        return head + text(self.topic) + binary(self.payload)


def connect_packet(client_id, version=V311, clean=True, keepalive=60, will=None, user=None, password=None,
                   properties=None):
    flags = (0x02 if clean else 0) | (will.flags() if will else 0)
    flags |= (0x80 if user is not None else 0) | (0x40 if password is not None else 0)
    name = "MQIsdp" if version == V31 else "MQTT"
    body = text(name) + bytes([version, flags]) + struct.pack("!H", keepalive)
    if version == V5:
        body += encode_properties(properties)
    body += text(client_id) + (will.encode(version) if will else b"")
    body += text(user) if user is not None else b""
    body += text(password) if password is not None else b""
    return packet(0x10, body)


def publish_packet(topic, payload=b"", qos=0, packet_id=1, retain=False, dup=False, version=V311,
                   properties=None):
    body = text(topic) + (struct.pack("!H", packet_id) if qos else b"")
    if version == V5:
        body += encode_properties(properties)
    payload = payload.encode() if isinstance(payload, str) else payload
    return packet(0x30 | dup << 3 | qos << 1 | retain, body + payload)


def subscribe_packet(filters, packet_id=1, version=V311, properties=None):
    """`filters` is a list of (filter, options byte)."""
    body = struct.pack("!H", packet_id)
    if version == V5:
        body += encode_properties(properties)
    return packet(0x82, body + b"".join(text(f) + bytes([options]) for f, options in filters))


def unsubscribe_packet(filters, packet_id=1, version=V311, properties=None):
    body = struct.pack("!H", packet_id)
    if version == V5:
        body += encode_properties(properties)
    return packet(0xA2, body + b"".join(text(f) for f in filters))


def ack_packet(kind, packet_id, reason=0):
    body = struct.pack("!H", packet_id) + (bytes([reason]) if reason else b"")
    return packet(kind << 4 | (2 if kind == PUBREL else 0), body)


def disconnect_packet(version=V311, reason=0, properties=None):
    if version != V5 or (not reason and not properties):
        return packet(0xE0)
    return packet(0xE0, bytes([reason]) + encode_properties(properties))


def options(qos=0, no_local=False, retain_as_published=False, retain_handling=0):
    """The options byte of a subscription, MQTT 5 section 3.8.3.1."""
    return qos | no_local << 2 | retain_as_published << 3 | retain_handling << 4


# --- decoding -----------------------------------------------------------------------------------------

class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if self.at + count > len(self.data):
            raise WireError(f"packet is cut short: {self.data.hex()}")
        self.at += count
        return self.data[self.at - count:self.at]

    def number(self, size):
        return int.from_bytes(self.take(size), "big")

    def varint(self):
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise WireError("variable byte integer has more than four bytes")

    def binary(self):
        return self.take(self.number(2))

    def text(self):
        return self.binary().decode()

    def rest(self):
        return self.take(len(self.data) - self.at)

    def left(self):
        return len(self.data) - self.at

    def properties(self):
        end = self.varint() + self.at
        values = {}
        while self.at < end:
            name, value = self.one_property()
            if name in REPEATABLE:
                values.setdefault(name, []).append(value)
            elif name in values:
                raise WireError(f"property {name} came twice")
            else:
                values[name] = value
        return values

    def one_property(self):
        number = self.varint()
        if number not in PROPERTY_NAMES:
            raise WireError(f"unknown property 0x{number:02x}")
        name, kind = PROPERTY_NAMES[number]
        readers = {
            BYTE: lambda: self.number(1), TWO: lambda: self.number(2), FOUR: lambda: self.number(4),
            VARINT: self.varint, TEXT: self.text, BINARY: self.binary, PAIR: lambda: (self.text(), self.text()),
        }
        return name, readers[kind]()


@dataclass
class Packet:
    kind: int
    flags: int
    body: bytes
    packet_id: int = None
    reason: int = 0
    session_present: bool = False
    topic: str = None
    payload: bytes = b""
    codes: list = field(default_factory=list)
    properties: dict = field(default_factory=dict)

    @property
    def qos(self):
        return self.flags >> 1 & 3

    @property
    def retain(self):
        return bool(self.flags & 1)

    @property
    def dup(self):
        return bool(self.flags & 8)

    def __str__(self):
        name = KIND_NAMES.get(self.kind, f"type {self.kind}")
        return f"{name}(flags={self.flags:x} {self.body[:48].hex()})"


def decode(kind, flags, body, version):
    result, reader = Packet(kind, flags, body), Reader(body)
    if kind == PUBLISH:
        decode_publish(result, reader, version)
    elif kind == CONNACK:
        result.session_present = bool(reader.number(1) & 1)
        result.reason = reader.number(1)
        # A server that refuses a version may answer in the form of an older one.
        result.properties = reader.properties() if version == V5 and reader.left() else {}
    elif kind in (PUBACK, PUBREC, PUBREL, PUBCOMP):
        result.packet_id = reader.number(2)
        decode_reason(result, reader, version)
    elif kind in (SUBACK, UNSUBACK):
        result.packet_id = reader.number(2)
        result.properties = reader.properties() if version == V5 else {}
        result.codes = list(reader.rest())
    elif kind in (DISCONNECT, AUTH):
        decode_reason(result, reader, version)
    if reader.left():
        raise WireError(f"bytes left over in {result}")
    return result


def decode_publish(result, reader, version):
    result.topic = reader.text()
    if result.qos == 3:
        raise WireError("PUBLISH with QoS 3")
    if result.qos:
        result.packet_id = reader.number(2)
        if result.packet_id == 0:
            raise WireError("PUBLISH with packet id 0")
    if version == V5:
        result.properties = reader.properties()
    result.payload = reader.rest()


def decode_reason(result, reader, version):
    if version == V5 and reader.left():
        result.reason = reader.number(1)
        result.properties = reader.properties() if reader.left() else {}


# --- the client ---------------------------------------------------------------------------------------

_serial = itertools.count(1)


def unique(word="c"):
    """A name no other case, run or process uses; at most 23 bytes, the limit of MQTT 3.1."""
    return f"{word[:6]}{os.getpid() % 0x10000:x}x{time.time_ns() // 1000 % 0x1000000:x}x{next(_serial):x}"


def open_socket(address, source=None):
    bind = (source, 0) if source else None
    sock = socket.create_connection(address, timeout=PATIENCE_SECS, source_address=bind)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Client:
    """One connection. `address` is (host, port); `sock` may be anything with sendall, recv, settimeout, close."""

    def __init__(self, address=None, version=V311, client_id=None, sock=None, source=None):
        self.version = version
        self.client_id = unique() if client_id is None else client_id
        self.sock = sock or open_socket(address, source)
        self.buffer = b""
        self.waiting = []
        # Answer QoS hand-shakes as they come; a case that wants to be silent switches it off.
        self.auto_ack = True
        self.aliases = {}
        self._ids = itertools.count(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.drop()

    # Sending.

    def send(self, data):
        self.sock.sendall(data)

    def next_id(self):
        return (next(self._ids) - 1) % 65535 + 1

    def connect(self, expect_code=0, **fields):
        """Signs in; returns the CONNACK. `expect_code=None` leaves the judgement to the case."""
        self.send(connect_packet(self.client_id, self.version, **fields))
        answer = self.wait(CONNACK)
        if expect_code is not None and answer.reason != expect_code:
            raise WireError(f"CONNACK 0x{answer.reason:02x}, wanted 0x{expect_code:02x}")
        return answer

    def subscribe(self, filters, qos=0, properties=None, expect=None):
        """`filters`: one filter, or a list of filters or (filter, options). Returns the codes of the SUBACK."""
        listed = [filters] if isinstance(filters, str) else filters
        pairs = [(f, qos) if isinstance(f, str) else f for f in listed]
        packet_id = self.next_id()
        self.send(subscribe_packet(pairs, packet_id, self.version, properties))
        codes = self.wait(SUBACK, lambda p: p.packet_id == packet_id).codes
        wanted = [o & 3 for _, o in pairs] if expect is None else expect
        if codes != wanted:
            raise WireError(f"SUBACK {codes}, wanted {wanted}")
        return codes

    def unsubscribe(self, filters):
        packet_id = self.next_id()
        self.send(unsubscribe_packet(filters, packet_id, self.version))
        return self.wait(UNSUBACK, lambda p: p.packet_id == packet_id)

    def publish(self, topic, payload=b"", qos=0, retain=False, properties=None, expect_reason=(0, 0x10)):
        """Publishes and sees the hand-shake through. 0x10 says that nobody subscribes, which is no failure."""
        packet_id = self.next_id() if qos else None
        self.send(publish_packet(topic, payload, qos, packet_id, retain, False, self.version, properties))
        if not qos:
            return None
        first = self.wait(PUBACK if qos == 1 else PUBREC, lambda p: p.packet_id == packet_id)
        if expect_reason is not None and first.reason not in expect_reason:
            raise WireError(f"publish was answered 0x{first.reason:02x}")
        if qos == 2 and first.reason < 0x80:
            if not self.auto_ack:
                self.send(ack_packet(PUBREL, packet_id))
            self.wait(PUBCOMP, lambda p: p.packet_id == packet_id)
        return first

    def ping(self):
        self.send(packet(0xC0))
        return self.wait(PINGRESP)

    def disconnect(self, reason=0, properties=None):
        """Says goodbye and waits until the server has closed, so that what follows is ordered after it."""
        self.send(disconnect_packet(self.version, reason, properties))
        self.wait_closed()

    def drop(self):
        """Ends the TCP connection without a word."""
        self.sock.close()

    def abort(self):
        """Ends the TCP connection with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # Receiving.

    def wait(self, kind, match=None, timeout=PATIENCE_SECS):
        """The next packet of this kind; others stay in `waiting` for later."""
        deadline, seen = time.monotonic() + timeout, 0
        while True:
            for index in range(seen, len(self.waiting)):
                found = self.waiting[index]
                if found.kind == kind and (match is None or match(found)):
                    return self.waiting.pop(index)
            seen = len(self.waiting)
            self.waiting.append(self.read_packet(deadline, KIND_NAMES[kind]))

    def next_packet(self, timeout=PATIENCE_SECS):
        if self.waiting:
            return self.waiting.pop(0)
        return self.read_packet(time.monotonic() + timeout, "a packet")

    def message(self, timeout=PATIENCE_SECS):
        return self.wait(PUBLISH, timeout=timeout)

    def messages(self, count, timeout=PATIENCE_SECS):
        return [self.message(timeout) for _ in range(count)]

    def messages_until(self, topic, timeout=PATIENCE_SECS):
        """All messages that come before the first one on `topic`: the fence a publisher set."""
        got = []
        while True:
            found = self.message(timeout)
            if found.topic == topic:
                return got
            got.append(found)

    def wait_closed(self, timeout=PATIENCE_SECS):
        """Reads until the server closes; returns the packets that came before. A reset counts as closed."""
        deadline = time.monotonic() + timeout
        got, self.waiting = self.waiting, []
        try:
            while True:
                got.append(self.read_packet(deadline, "the end of the connection"))
        except Closed:
            self.sock.close()
            return got

    def read_packet(self, deadline, wanted):
        while True:
            taken = self.take_packet()
            if taken is not None:
                return taken
            self.fill(deadline, wanted)

    def fill(self, deadline, wanted):
        left = deadline - time.monotonic()
        if left <= 0:
            raise Silence(f"no {wanted} in time; had {[str(p) for p in self.waiting]}")
        self.sock.settimeout(left)
        try:
            data = self.sock.recv(65536)
        except (TimeoutError, socket.timeout):
            raise Silence(f"no {wanted} in time; had {[str(p) for p in self.waiting]}") from None
        except OSError as error:
            raise Closed(f"connection broke while waiting for {wanted}: {error}") from None
        if not data:
            raise Closed(f"server closed while waiting for {wanted}; had {[str(p) for p in self.waiting]}")
        self.buffer += data

    def take_packet(self):
        frame = split_frame(self.buffer)
        if frame is None:
            return None
        first, body, size = frame
        self.buffer = self.buffer[size:]
        came = decode(first >> 4, first & 15, body, self.version)
        if came.kind == PUBLISH and self.version == V5:
            self.resolve_alias(came)
        if self.auto_ack:
            self.answer(came)
        return came

    def resolve_alias(self, came):
        alias = came.properties.get("topic_alias")
        came.topic_on_wire = came.topic
        if alias is not None and came.topic:
            self.aliases[alias] = came.topic
        elif alias is not None:
            came.topic = self.aliases[alias]

    def answer(self, came):
        replies = {PUBREC: PUBREL, PUBREL: PUBCOMP}
        if came.kind == PUBLISH and came.qos:
            self.send(ack_packet(PUBACK if came.qos == 1 else PUBREC, came.packet_id))
        elif came.kind in replies and came.reason < 0x80:
            try:
                self.send(ack_packet(replies[came.kind], came.packet_id))
            except (BrokenPipeError, ConnectionResetError):
                pass  # The server has closed, as it should after our DISCONNECT; what it sent before is still to be read.


def split_frame(data):
    """(first byte, body, whole size) of the packet at the start of `data`, or None while it is incomplete."""
    value, shift = 0, 0
    for index in range(1, 6):
        if index >= len(data):
            return None
        if index == 5:
            raise WireError(f"remaining length of five bytes: {data[:6].hex()}")
        value |= (data[index] & 0x7F) << shift
        shift += 7
        if data[index] < 0x80:
            break
    end = index + 1 + value
    return (data[0], data[index + 1:end], end) if len(data) >= end else None
