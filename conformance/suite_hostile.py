"""Hostile input: each row of `hostile_rows` and a few attacks that need more than bytes.

After each attack a canary, two clients that never met the attacker, has to connect and pass a message. The
server must not only survive; nobody else may notice.
"""

import socket
import time

from harness import CONFORMANCE, DEFAULT, NotHere, Suite, check, equal, topic
from hostile_rows import ROWS, publish, version_name
from mqtt_wire import (CONNACK, DISCONNECT, PINGRESP, PUBLISH, SUBACK, V5, V311, Client, Closed, Silence,
                       connect_packet, disconnect_packet, publish_packet, subscribe_packet, unique)
from ws_wire import TEXT_FRAME, HandshakeRefused, WebSocket

SUITE = Suite("hostile", rows={"MQTT": len(ROWS)})


# --- the canary ---------------------------------------------------------------------------------------

def canary(target):
    if target.profile == DEFAULT:
        return device_canary(target)
    tree = topic()
    with target.client() as subscriber, target.client(V5) as publisher:
        subscriber.subscribe(tree, 1)
        publisher.publish(tree, b"canary", 1)
        equal(subscriber.message().payload, b"canary", "canary")


def device_canary(target):
    device = target.register()
    with target.sign_in(device) as connection:
        message = target.push({"device": device.device_id}, "canary")["message_id"]
        check(message.encode() in connection.message().payload, "canary got another message")


# --- rows ---------------------------------------------------------------------------------------------

def attacker(target, version):
    """A signed-in connection. Its own address and device: limits must not join it with its neighbours."""
    if target.profile == DEFAULT:
        made = target.sign_in(target.register(), version, clean=True, inbox=False)
    else:
        made = target.raw(version, source=target.fresh_source())
        made.connect()
    made.auto_ack = False
    return made


def send_all(client, data):
    """Sends as far as the server lets: it may close in the middle, which is its right."""
    try:
        client.sock.settimeout(10)
        client.send(data)
    except OSError:
        pass


def expect_end(client):
    try:
        return client.wait_closed()
    except Silence:
        raise Silence("the connection stayed open") from None


def codes_of(packets, kind):
    return [p.reason for p in packets if p.kind == kind]


def judge_end(client, reaction):
    got = expect_end(client)
    said = [str(p) for p in got]
    if reaction.what == "close":
        equal(said, [], "packets before the close")
    elif reaction.what == "connack":
        check(len(got) == 1 and got[0].kind == CONNACK and got[0].reason in reaction.codes,
              f"wanted CONNACK {hexes(reaction.codes)}, got {said}")
    elif reaction.what == "refused":
        check(not got or (len(got) == 1 and got[0].kind == CONNACK and got[0].reason in reaction.codes),
              f"wanted a close or CONNACK {hexes(reaction.codes)}, got {said}")
    elif reaction.what == "disconnect":
        reasons = codes_of(got, DISCONNECT)
        check(len(reasons) == 1 and reasons[0] in reaction.codes,
              f"wanted DISCONNECT {hexes(reaction.codes)}, got {said[-3:]}")


def hexes(codes):
    return "/".join(f"0x{code:02x}" for code in codes)


def judge_life(client, reaction):
    """The reaction is a packet (or nothing), and the connection answers pings afterwards."""
    if reaction.what == "lives":
        client.ping()
        return
    came = client.next_packet()
    if came.kind == DISCONNECT and came.reason in reaction.or_disconnect:
        client.wait_closed()
        return
    if reaction.what == "suback":
        equal((came.kind, tuple(came.codes)), (SUBACK, reaction.codes), "answer")
    else:
        check(came.kind == reaction.kind and came.reason in reaction.codes,
              f"wanted reason {hexes(reaction.codes)}, got {came} reason 0x{came.reason:02x}")
    client.ping()


def judge_suback_or_close(client, reaction):
    try:
        came = client.next_packet()
    except Closed:
        return
    equal((came.kind, tuple(came.codes)), (SUBACK, reaction.codes), "answer")


def judge(client, reaction):
    if reaction.what in ("lives", "suback", "answer"):
        judge_life(client, reaction)
    elif reaction.what == "suback_or_close":
        judge_suback_or_close(client, reaction)
    elif reaction.what != "whatever":
        judge_end(client, reaction)


def row_case(row):
    def run(target):
        if row.signed_in:
            client = attacker(target, row.version)
        else:
            client = target.raw(row.version, source=target.fresh_source())
            client.auto_ack = False
        with client:
            send_all(client, row.data)
            judge(client, row.reaction)
        canary(target)
    run.__name__ = f"H{row.h} {version_name(row.version)} {row.name}"
    return run


for row in ROWS:
    made = row_case(row)
    SUITE.add(made.__name__, made, row.profile, needs_http=row.profile == DEFAULT)


# --- attacks that need more than bytes ----------------------------------------------------------------

def attack(h, words, profile=CONFORMANCE, needs_http=False):
    def register(function):
        def run(target):
            function(target)
            canary(target)
        SUITE.add(f"H{h} {words}", run, profile, needs_http or profile == DEFAULT)
        return function
    return register


@attack(20, "client id of another device with own valid credential", DEFAULT)
def foreign_client_id(target):
    victim, thief = target.register(), target.register()
    # The name is passed over: refused, it would tell which devices there are. The session is the thief's own.
    for version in (V311, V5):
        with target.sign_in(victim, version) as undisturbed:
            client = target.raw(version, victim.device_id, source=target.fresh_source())
            answer = client.connect(user=thief.device_id, password=thief.secret, expect_code=None)
            equal(answer.reason, 0, "CONNACK code")
            client.disconnect()
            undisturbed.ping()


@attack(20, "wrong secret", DEFAULT)
def wrong_secret(target):
    device = target.register()
    for version, codes in ((V311, (4, 5)), (V5, (0x86, 0x87))):
        client = target.raw(version, device.device_id, source=target.fresh_source())
        answer = client.connect(user=device.device_id, password="not the secret", expect_code=None)
        check(answer.reason in codes, f"CONNACK code 0x{answer.reason:02x}")
        client.wait_closed()


@attack(20, "no credential at all", DEFAULT)
def no_credential(target):
    for version, codes in ((V311, (4, 5)), (V5, (0x86, 0x87))):
        client = target.raw(version, source=target.fresh_source())
        answer = client.connect(expect_code=None)
        check(answer.reason in codes, f"CONNACK code 0x{answer.reason:02x}")
        client.wait_closed()


@attack(21, "the same device connects a hundred times", DEFAULT)
def flapping(target):
    device, source = target.register(), target.fresh_source()
    held, refusals = None, []
    for _ in range(100):
        client = Client(target.mqtt, V5, device.device_id, source=source)
        answer = client.connect(user=device.device_id, password=device.secret, expect_code=None)
        if answer.reason:
            refusals.append(answer.reason)
            break
        held = client
    equal(refusals, [0x9F], "CONNACK of the first refusal")
    held.ping()


@attack(24, "byte order mark inside a topic is kept")
def byte_order_mark(target):
    tree = topic() + "/\ufeffa\ufeff"
    for version in (V311, V5):
        with target.client(version) as client:
            client.subscribe(tree, 0)
            client.publish(tree, b"x")
            equal(client.message().topic, tree, "topic")


@attack(34, "# does not match $SYS")
def system_topics_hidden(target):
    tree = topic()
    with target.client() as client:
        client.subscribe("#", 0)
        client.publish(f"{tree}/fence", b"")
        seen = [m.topic for m in client.messages_until(f"{tree}/fence") if m.topic.startswith("$")]
        equal(seen, [], "system topics")


@attack(38, "5,000 filters in one SUBSCRIBE", DEFAULT)
def many_filters(target):
    with attacker(target, V5) as client:
        filters = [(f"f/{n}", 0) for n in range(5000)]
        client.send(subscribe_packet(filters, 7, V5))
        came = client.next_packet()
        if came.kind == DISCONNECT:
            check(came.reason in (0x95, 0x97), f"reason 0x{came.reason:02x}")
            return
        equal(len(came.codes), 5000, "codes in the SUBACK")
        check(set(came.codes[32:]) <= {0x97, 0x87}, f"codes beyond the limit: {set(came.codes[32:])}")
        client.ping()


@attack(48, "one publish more than the receive maximum allows")
def over_receive_maximum(target):
    client = target.raw(V5)
    limit = client.connect().properties.get("receive_maximum", 65535)
    if limit > 1000:
        raise NotHere(f"receive maximum {limit}")
    client.auto_ack = False
    client.send(b"".join(publish(V5, b"h/a", qos=2, packet_id=n) for n in range(1, limit + 2)))
    equal(codes_of(expect_end(client), DISCONNECT), [0x93], "reasons")


@attack(53, "packets after DISCONNECT are ignored")
def after_disconnect(target):
    tree = topic()
    for version in (V311, V5):
        with target.client() as watcher:
            watcher.subscribe(f"{tree}/#", 1)
            client = target.client(version)
            client.send(disconnect_packet(version) + publish_packet(f"{tree}/late", b"x", 0, version=version))
            client.wait_closed()
            watcher.publish(f"{tree}/fence", b"", 1)
            equal(watcher.messages_until(f"{tree}/fence"), [], "messages")


@attack(54, "keepalive 0 and 65,535 are replaced", DEFAULT)
def extreme_keepalives(target):
    for wanted in (0, 65535):
        device = target.register()
        with target.sign_in(device, V5, keepalive=wanted) as client:
            given = client.connack.properties.get("server_keepalive")
            check(given is not None and 0 < given <= 1200, f"keepalive {wanted} became {given}")


@attack(55, "a CONNECT that drips byte by byte is closed", DEFAULT)
def dripping_connect(target):
    client = target.raw(source=target.fresh_source())
    begun, data = time.monotonic(), connect_packet("drip")
    for byte in data:
        try:
            client.send(bytes([byte]))
            client.read_packet(time.monotonic() + 2, "the end")
        except Silence:
            check(time.monotonic() - begun < 12, "still open after 12 s")
        except (Closed, OSError):
            break
    check(time.monotonic() - begun > 1, "closed before any patience")


@attack(55, "a connection that says nothing is closed", DEFAULT)
def silent_connection(target):
    client = target.raw(source=target.fresh_source())
    equal(client.wait_closed(timeout=15), [], "packets")


@attack(60, "half a packet, then a reset, a hundred times")
def halves_and_resets(target):
    for cut in range(1, 101):
        client = target.raw()
        client.send((connect_packet(unique()) + subscribe_packet([("h/a", 1)]))[:cut % 40 + 1])
        client.abort()


@attack(60, "a client that does not read does not hold up the others")
def deaf_subscriber(target):
    tree = topic()
    deaf = target.raw()
    deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect()
    deaf.subscribe(f"{tree}/#", 0)
    with target.client() as publisher, target.client() as reader:
        reader.subscribe(f"{tree}/#", 0)
        for number in range(300):
            publisher.publish(f"{tree}/a", b"%04d" % number + b"x" * 30000)
            equal(reader.message().payload[:4], b"%04d" % number, "payload")
    deaf.drop()


# --- over WebSocket -----------------------------------------------------------------------------------

def ws_place(target):
    place = target.notes.get("ws") or target.http
    if place is None:
        raise NotHere("no WebSocket listener is known")
    return place


def ws_client(target, client_id=None):
    return Client(sock=WebSocket(ws_place(target)), client_id=client_id)


@attack(57, "MQTT in a text frame is closed")
def text_frame(target):
    client = ws_client(target)
    client.sock.send_frame(connect_packet("h"), TEXT_FRAME)
    equal(client.wait_closed(), [], "packets")


@attack(57, "an upgrade without the mqtt subprotocol is answered 400")
def no_subprotocol(target):
    for protocols in ((), ("chat",)):
        try:
            WebSocket(ws_place(target), protocols=protocols).close()
        except HandshakeRefused as refusal:
            equal(refusal.status, 400, "status")
        else:
            raise AssertionError(f"the upgrade with {protocols} was accepted")


@attack(57, "two packets in one frame and one packet in a hundred frames are legal")
def frames_and_packets(target):
    tree, name = topic(), unique()
    client = ws_client(target, name)
    equal(client.sock.protocol, "mqtt", "subprotocol")
    client.sock.send_frame(connect_packet(name) + subscribe_packet([(tree, 1)], 3))
    client.wait(SUBACK)
    data = publish_packet(tree, b"x" * 100, 1, 4)
    for byte in data:
        client.sock.send_frame(bytes([byte]))
    equal(client.wait(PUBLISH).payload, b"x" * 100, "payload")
    half = len(data) // 2
    client.sock.send_frame(data[:half], final=False)
    client.sock.send_frame(b"", 0, final=False)
    client.sock.send_frame(data[half:] + b"\xc0\x00", 0)
    equal(client.wait(PUBLISH).payload, b"x" * 100, "payload of a fragmented message")
    client.wait(PINGRESP)
    client.drop()


@attack(58, "a packet that a frame breaks off goes on with the next frame's bytes")
def broken_off_packet(target):
    client = ws_client(target)
    client.connect()
    # 4,096 bytes are promised: the CONNECT that follows is their continuation, not a new packet.
    client.sock.send_frame(b"\x30\x80\x20")
    client.sock.send_frame((b"\x7f\xff" + connect_packet("again")).ljust(4096, b"x"))
    equal(client.wait_closed(), [], "packets")


@attack(57, "an unmasked frame is closed")
def unmasked_frame(target):
    client = ws_client(target)
    data = connect_packet("h")
    client.sock.sock.sendall(bytes([0x82, len(data)]) + data)
    equal(client.wait_closed(), [], "packets")
