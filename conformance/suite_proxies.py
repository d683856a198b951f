"""Every road by which a socket leaves the HTTP server, behind real proxies that share connections between users.

A proxy sends the next user's request over the connection that the last one's answer came by. So what a connection
still holds when an answer ends is somebody else's: two users, and no byte of one may reach the other.
"""

import atexit
import base64
import dataclasses
import http.client
import itertools
import json
import os
import shutil
import socket
import tempfile
import threading
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

from harness import DEFAULT, NotHere, Suite, check, equal
from mqtt_wire import Client
from proxies import Proxy
from server import Server
from web_clients import Http, Socket, Stream, basic
from ws_wire import TEXT_FRAME, WebSocket
from xmpp_wire import Lost, Session, STREAMS, text

SUITE = Suite("proxies")
PROXIES = ("nginx", "haproxy")
ROUNDS = 8
FRAMING = "urn:ietf:params:xml:ns:xmpp-framing"

_made = {}
_once = threading.Lock()
_sources = itertools.count(1)


def yard(target, proxy):
    """A server that trusts proxies of this machine, as it is seen through one of them."""
    if not target.notes.get("binary"):
        raise NotHere("the binary is not known")
    with _once:
        if "server" not in _made:
            folder = tempfile.mkdtemp(prefix="proxies-")
            settings = {"http.trusted_proxies": '["127.0.0.1"]', "http.auth_failures_burst": 3,
                        "gateway.per_address_max": 60}
            server = Server(target.notes["binary"], os.path.join(folder, "data"), None,
                            os.path.join(folder, "server.log"), settings=settings)
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            atexit.register(server.stop)
            _made["server"] = server.start()
        if proxy not in _made:
            _made[proxy] = Proxy(proxy, _made["server"].places["http"])
            atexit.register(_made[proxy].stop)
        return dataclasses.replace(_made["server"].target(), http=_made[proxy].place)


def fresh_source():
    """An address of a client that the proxy sees."""
    number = next(_sources)
    return f"127.6.{number // 250}.{number % 250 + 1}"


def through_each(function):
    """A case for each proxy. `function` gets the server as it is seen through it."""
    for proxy in PROXIES:
        def run(target, proxy=proxy):
            function(yard(target, proxy))
        SUITE.add(f"{function.__name__}[{proxy}]", run, DEFAULT, needs_http=True)
    return function


# Two users, each on the same road at the same time.


class Framed(Session):
    """XMPP in WebSocket messages (RFC 7395)."""

    def __init__(self, target, device):
        super().__init__(target.http, device.device_id, device.secret, tls=False)

    def open_socket(self):
        self.socket = WebSocket(self.place, "/xmpp-websocket", ("xmpp",))

    def open_stream(self):
        self.send(f'<open xmlns="{FRAMING}" to="{self.domain}" version="1.0"/>')
        equal(self.read_stanza().tag, f"{{{FRAMING}}}open", "the stream's answer")
        features = self.read_stanza()
        equal(features.tag, f"{{{STREAMS}}}features", "what follows it")
        return features

    def send(self, words):
        words = words.replace("<iq ", '<iq xmlns="jabber:client" ').replace("<presence", '<presence xmlns="jabber:client"')
        self.socket.send_frame(words.encode(), TEXT_FRAME)

    def read_stanza(self):
        ws = self.socket
        while (frame := ws.take_frame()) is None:
            came = ws.sock.recv(65536)
            if not came:
                raise Lost("the connection ended")
            ws.buffer += came
        equal(frame[0], TEXT_FRAME, "the kind of a frame")
        return ET.fromstring(frame[1])


def polled(target, device, go):
    """Titles that a poll brings, one request for each."""
    with Http(target, device) as user:
        for _ in range(ROUNDS):
            go()
            page = user.inbox("?wait=20")
            check(page["messages"], "the poll came back with nothing")
            user.ack(*page["messages"])
            yield from (m["message"]["notification"]["title"] for m in page["messages"])


def streamed(target, device, go):
    """One stream after another: each leaves, and the next begins on whatever connection is there."""
    for _ in range(ROUNDS):
        with Stream(target, device) as user, Http(target, device) as acks:
            go()
            _, frame = user.next()
            acks.ack(frame, path="/v1/stream/acks")
            yield frame["message"]["notification"]["title"]


def by_socket(target, device, go):
    for _ in range(ROUNDS):
        with Socket(target, device) as user:
            go()
            frame = user.frame("push")
            user.ack(frame)
            user.quiet()
            yield frame["message"]["notification"]["title"]


def by_mqtt(target, device, go):
    for _ in range(ROUNDS):
        with Client(client_id=device.device_id, sock=WebSocket(target.http)) as user:
            user.connect(clean=False, user=device.device_id, password=device.secret)
            user.subscribe("$push/inbox", 1)
            go()
            message = user.message()
            user.ping()
            yield json.loads(message.payload)["notification"]["title"]


def by_xmpp(target, device, go):
    for _ in range(ROUNDS):
        with Framed(target, device) as user:
            go()
            message = user.next()
            # Without stream management a ping's answer acknowledges what came before it.
            user.ask("get", '<ping xmlns="urn:xmpp:ping"/>')
            yield text(message, "subject")


ROADS = {"poll": polled, "stream": streamed, "websocket": by_socket, "mqtt_over_websocket": by_mqtt,
         "xmpp_over_websocket": by_xmpp}


def receives_only_its_own(target, road, name):
    device = target.register(platform="web")
    numbers = itertools.count()
    sent, got = [], []

    def go():
        title = f"{name} {next(numbers)}"
        target.push({"device": device.device_id}, title)
        sent.append(title)

    for title in ROADS[road](target, device, go):
        if not got or got[-1] != title:
            got.append(title)
        check(title.startswith(name), f"{name} got {title!r}")
    equal([title for title in sent if title not in got], [], f"{name}: what did not come")


def two_users(road):
    def run(target):
        with ThreadPoolExecutor(4) as pool:
            users = [pool.submit(receives_only_its_own, target, road, name) for name in ("ann", "bob")]
            asking = pool.submit(hears_only_its_own, target, 40)
            for one in [*users, asking]:
                one.result(120)
    run.__name__ = f"two_users_by_{road}_get_what_is_theirs"
    return run


def hears_only_its_own(target, times):
    """An app's server that asks for one device after the other, each time by a new connection."""
    mine = target.register(platform="web")
    for _ in range(times):
        status, device = target.call("GET", f"/v1/devices/{mine.device_id}")
        equal((status, device and device["device_id"]), (200, mine.device_id), "the answer")


for road in ROADS:
    through_each(two_users(road))


# One who smuggles, and one who asks behind him.


def handshake(subprotocol):
    return ("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {subprotocol}\r\n")


# Requests whose answer may come before a body is read.
SMUGGLED_BY = {
    "poll": ("GET", "/v1/inbox?wait=1", "", True),
    "poll_of_what_is_there": ("GET", "/v1/inbox", "", True),
    "stream": ("GET", "/v1/stream", "", True),
    "websocket": ("GET", "/ws", handshake("postrider.v1"), False),
    "mqtt_over_websocket": ("GET", "/mqtt", handshake("mqtt"), False),
    "xmpp_over_websocket": ("GET", "/xmpp-websocket", handshake("xmpp"), False),
    "head_of_a_stream": ("HEAD", "/v1/stream", "", True),
    "events": ("GET", "/v1/events?wait=1", "", False),
    "a_refused_post": ("POST", "/v1/messages", "Content-Type: application/json\r\n", False),
    "a_missing_path": ("POST", "/v1/nowhere", "", False),
    "a_form": ("POST", "/notification.do", "", False),
}


def bodies(victim):
    """What a server that does not read the body takes for a request, whole or with the victim's glued to it."""
    glued = f"DELETE /v1/devices/{victim} HTTP/1.1\r\nX: "
    whole = "GET /v1/devices/none-of-yours HTTP/1.1\r\nHost: x\r\n\r\n"
    for hidden in (glued, whole):
        yield f"Content-Length: {len(hidden)}\r\n", hidden
        yield "Transfer-Encoding: chunked\r\n", f"{len(hidden):x}\r\n{hidden}\r\n0\r\n\r\n"
        # The first chunk's size line begins what is hidden.
        yield f"Content-Length: {len(hidden)}\r\nExpect: 100-continue\r\n", hidden


def attack(evil, line, headers, announced, body):
    """Sends the head, waits for an answer or a while, sends the body; gives all that came back."""
    method, path = line
    evil.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}{announced}\r\n".encode())
    came = b""
    try:
        evil.settimeout(1.5)
        came += evil.recv(65536)
    except TimeoutError:
        pass
    try:
        evil.sendall(body.encode())
        evil.settimeout(0.3)
        while more := evil.recv(65536):
            came += more
    except OSError:
        pass
    return came


def is_unharmed(target, victim, announced):
    """The victim, and the server of its app, are answered what they asked."""
    for _ in range(3):
        status, device = target.call("GET", f"/v1/devices/{victim.device_id}")
        equal((status, device and device.get("device_id")), (200, victim.device_id),
              f"what the victim's server was answered behind {announced!r}")
    with Http(target, victim) as honest:
        answer, device = honest.call("GET", f"/v1/devices/{victim.device_id}")
        equal((answer.status, isinstance(device, dict) and device["device_id"]), (200, victim.device_id),
              f"what the victim was answered behind {announced!r}")


def nothing_is_smuggled_by(name):
    method, path, headers, as_device = SMUGGLED_BY[name]

    def run(target):
        evil, victim = target.register(platform="web"), target.register(platform="web")
        own = f"Authorization: Basic {basic(evil)}\r\n" if as_device else ""
        for announced, body in bodies(victim.device_id):
            # The proxy may share the connection to the server while the attacker's is open, or once it is closed.
            with socket.create_connection(target.http, timeout=20) as connection:
                came = attack(connection, (method, path), headers + own, announced, body)
                is_unharmed(target, victim, announced)
            is_unharmed(target, victim, announced)
            check(victim.device_id.encode() not in came, f"{announced!r}: the attacker was told {came!r}")
            answers = came.count(b"HTTP/1.1 ") - came.count(b"HTTP/1.1 100")
            check(answers <= 1, f"{announced!r}: {answers} answers to one request: {came!r}")
    run.__name__ = f"nothing_is_smuggled_by_{name}"
    return run


for name in SMUGGLED_BY:
    through_each(nothing_is_smuggled_by(name))


# Whose address counts.


def wrong_key(target, source, **headers):
    connection = http.client.HTTPConnection(*target.http, timeout=20, source_address=(source, 0))
    try:
        connection.request("GET", "/v1/devices", headers={"Authorization": "Bearer wrong", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


@through_each
def each_client_has_its_own_allowance_of_wrong_keys(target):
    guesser, other = fresh_source(), fresh_source()
    equal([wrong_key(target, guesser) for _ in range(4)], [401, 401, 401, 429], "the one who guesses")
    equal(wrong_key(target, other), 401, "another client of the proxy")
    # Whatever the client writes itself stands to the left of what the proxy adds.
    equal([wrong_key(target, guesser, **{"X-Forwarded-For": f"203.0.113.{n}"}) for n in range(3)], [429] * 3,
          "the one who guesses, in other names")


@through_each
def a_page_of_the_host_that_the_proxy_serves_may_connect(target):
    host = "%s:%d" % target.http
    for origin, wanted in ((f"http://{host}", 101), ("http://evil.example", 403)):
        with socket.create_connection(target.http, timeout=20) as page:
            page.sendall(f"GET /ws HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n{handshake('postrider.v1')}\r\n".encode())
            equal(int(page.recv(4096).split()[1]), wanted, origin)


# Paths that a proxy decodes.


@SUITE.case(DEFAULT, needs_http=True)
def topics_are_named_beside_the_path_where_a_proxy_decodes_paths(target):
    seen = yard(target, "nginx")
    decoded = dataclasses.replace(seen, http=_made["nginx"].decoding)
    topic = "public/a b"
    equal(decoded.call("POST", "/v1/topics/public%2Fa%20b/publish", {"payload_text": "x"})[0], 404, "by the path")
    body = {"topic": topic, "payload_text": "kept", "retain": True}
    decoded.call("POST", "/v1/topics/publish", body, expect=202)
    shown = decoded.call("GET", "/v1/topics?topic=public/a%20b", expect=200)[1]
    equal((shown["topic"], bool(shown["retained"])), (topic, True), "the topic")
