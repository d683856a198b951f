#!/usr/bin/env python3
"""Floods: crowds of peers that drip, stall, say nothing or do not read, while an honest device has to get its pushes.

    floods.py --server PATH [--case WORD]

Each case attacks a server of its own settings (short waits, small numbers), and during all of it a watch registers no longer than a
few seconds between a push and its arrival. Afterwards every place is free again, memory has not run away, and nothing panicked.
"""

import argparse
import os
import re
import resource
import selectors
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import h2_wire
from frames import OPEN_WEBSOCKET, text_frame
from harness import check, equal, eventually
from mqtt_wire import V311, V5, Client, connect_packet
from seen import Seen, read_all
from server import Server
from web_clients import Http, basic
from xmpp_wire import Session

SETTINGS = {
    "MQTT_CONNECT_TIMEOUT_SECS": 2, "HTTP_HEAD_TIMEOUT_SECS": 2, "HTTP_IDLE_SECS": 3, "HTTP_SLOW_READER_SECS": 3,
    "HTTP_BODY_TIMEOUT_SECS": 4, "GATEWAY_SLOW_READER_SECS": 3, "GATEWAY_UNAUTHENTICATED_MAX": 4000,
    "GATEWAY_UNAUTHENTICATED_PER_ADDRESS_MAX": 20, "HTTP_CONNECTIONS_PER_ADDRESS_MAX": 20,
    "XMPP_ALLOW_PLAINTEXT": "true", "LIMITS_CONNECTS_PER_MINUTE_MAX": 0, "STORE_MIN_FREE_BYTES": 0, "STORE_MIN_FREE_PERCENT": 0,
}
PUSH_WAIT_SECS = 10
"""How long a push may take while a flood is on: generous, for machines that are busy with something else."""
GROWTH_MAX_MIB = 200
CASES = []


def case(function):
    CASES.append((function.__name__.replace("_", " "), function))
    return function


# --- the server, seen from outside --------------------------------------------------------------------

class Watch(threading.Thread):
    """An honest device that is connected all the time, and an app that pushes to it, one after the other."""

    def __init__(self, target):
        super().__init__(daemon=True)
        self.target, self.over = target, threading.Event()
        self.device = target.register()
        self.client = target.sign_in(self.device, keepalive=600)
        self.count, self.slowest, self.error = 0, 0.0, None

    def run(self):
        try:
            while not self.over.is_set():
                self.push_once()
                self.over.wait(0.05)
        except Exception as error:
            self.error = error

    def push_once(self):
        begun = time.monotonic()
        message = self.target.push({"device": self.device.device_id}, "watch")["message_id"]
        check(message.encode() in self.client.message(PUSH_WAIT_SECS).payload, "the watch got another message")
        self.slowest = max(self.slowest, time.monotonic() - begun)
        self.count += 1

    def end(self):
        self.over.set()
        self.join()
        self.client.drop()
        if self.error:
            raise self.error
        check(self.count > 0, "the watch saw nothing")


# --- crowds -------------------------------------------------------------------------------------------

def addresses(count):
    return [f"127.0.0.{n}" for n in range(2, 2 + count)]


def open_many(place, sources, each):
    """Non-blocking connections, `each` of every address; those that the system refuses are left out."""
    crowd = []
    for source in sources:
        for _ in range(each):
            sock = socket.socket()
            sock.bind((source, 0))
            sock.settimeout(10)
            try:
                sock.connect(place)
            except OSError:
                sock.close()
                continue
            sock.setblocking(False)
            crowd.append(sock)
    return crowd


class Crowd:
    """Many sockets at once: writes to all that are open, reads what they get, knows who was closed."""

    def __init__(self, sockets):
        self.got = {sock: b"" for sock in sockets}
        self.open = set(sockets)
        self.selector = selectors.DefaultSelector()
        for sock in sockets:
            self.selector.register(sock, selectors.EVENT_READ)

    def read(self, secs):
        """Reads for so long, or until all are closed."""
        until = time.monotonic() + secs
        while self.open and (left := until - time.monotonic()) > 0:
            for key, _ in self.selector.select(left):
                self.read_one(key.fileobj)

    def read_one(self, sock):
        try:
            part = sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        self.got[sock] += part
        if not part:
            self.leave(sock)

    def leave(self, sock):
        self.selector.unregister(sock)
        self.open.discard(sock)
        sock.close()

    def send(self, data):
        for sock in list(self.open):
            try:
                sock.send(data)
            except BlockingIOError:
                pass
            except OSError:
                # Closed by the other side; what it said before is still to be read.
                pass

    def drip(self, data, secs):
        """A byte to everybody, then a look at the answers, until all are closed or the time is over."""
        until, at = time.monotonic() + secs, 0
        while self.open and time.monotonic() < until:
            self.send(data[at % len(data):at % len(data) + 1])
            at += 1
            self.read(0.2)

    def close(self):
        for sock in list(self.open):
            self.leave(sock)


def all_closed(crowd, words):
    equal(len(crowd.open), 0, f"{words}: connections that are open still")


# --- drips --------------------------------------------------------------------------------------------

@case
def connects_that_drip(seen):
    crowd = Crowd(open_many(seen.target.mqtt, addresses(10), 20))
    crowd.drip(connect_packet("drip", user="u" * 60, password="p" * 900), 10)
    all_closed(crowd, "dripping CONNECTs")
    equal(set(crowd.got.values()), {b""}, "what they were told")


@case
def heads_that_drip(seen):
    crowd = Crowd(open_many(seen.target.http, addresses(10), 20))
    crowd.drip(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000, 12)
    all_closed(crowd, "dripping heads")


@case
def heads_that_stop_halfway_are_told_408(seen):
    crowd = Crowd(open_many(seen.target.http, addresses(10), 20))
    crowd.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nX: ")
    crowd.read(12)
    all_closed(crowd, "halved heads")
    equal({got[:12] for got in crowd.got.values()}, {b"HTTP/1.1 408"}, "answers")


@case
def bodies_that_drip_are_told_408(seen):
    crowd = Crowd(open_many(seen.target.http, addresses(10), 20))
    head = f"POST /v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {seen.target.app_key}\r\n"
    crowd.send(f"{head}Content-Type: application/json\r\nContent-Length: 200000\r\n\r\n".encode())
    crowd.drip(b'{"audience": "all"', 15)
    all_closed(crowd, "dripping bodies")
    told = {got[:12] for got in crowd.got.values() if got}
    check(told <= {b"HTTP/1.1 408"} and told, f"answers: {told}")


# --- silence and crowds -------------------------------------------------------------------------------

@case
def half_open_connections_are_let_go(seen):
    crowd = Crowd(open_many(seen.target.mqtt, addresses(40), 15) + open_many(seen.target.http, addresses(40), 15))
    equal(len(crowd.open), 1200, "connections that were let in")
    crowd.read(12)
    all_closed(crowd, "silent connections")
    equal(set(crowd.got.values()), {b""}, "what they were told")


@case
def a_connect_flood_from_199_addresses(seen):
    before = seen.metric("postrider_gateway_connections_refused_total")
    crowd = Crowd(open_many(seen.target.mqtt, addresses(199), 25))
    opened = len(crowd.got)
    waiting = seen.metric("postrider_connections_unauthenticated")
    check(waiting <= 4000, f"{waiting} wait to sign in, the limit is 4,000")
    crowd.read(15)
    all_closed(crowd, "the flood")
    refused = seen.metric("postrider_gateway_connections_refused_total") - before
    check(opened < 1000 or refused >= opened / 25 * 4, f"of {opened} only {refused} were refused")


@case
def a_connect_flood_of_http(seen):
    before = seen.metric("postrider_api_connections_refused_total")
    crowd = Crowd(open_many(seen.target.http, addresses(100), 30))
    opened = len(crowd.got)
    crowd.read(15)
    all_closed(crowd, "the flood")
    refused = seen.metric("postrider_api_connections_refused_total") - before
    equal(sum(got.startswith(b"HTTP/1.1 503") for got in crowd.got.values()), refused, "answers 503")
    check(refused >= opened / 3 - 10, f"of {opened} only {refused} were refused")


@case
def wrong_passwords_from_many_addresses(seen):
    device = seen.target.register()
    crowd = Crowd(open_many(seen.target.mqtt, addresses(50), 10))
    crowd.send(connect_packet(device.device_id, V5, user=device.device_id, password="wrong"))
    crowd.read(12)
    all_closed(crowd, "the guessers")
    reasons = {got[3] for got in crowd.got.values() if got[:1] == b"\x20"}
    check(reasons <= {0x86, 0x9F} and reasons, f"reasons: {reasons}")
    with seen.target.sign_in(device) as honest:
        honest.ping()


# --- readers ------------------------------------------------------------------------------------------

def deaf_devices(seen, count, filter_, qos):
    made = []
    for _ in range(count):
        device = seen.target.register(tags=["deaf"])
        client = Client(seen.target.mqtt, V311, device.device_id, sock=small_window(seen.target.mqtt))
        client.connect(clean=False, user=device.device_id, password=device.secret, keepalive=600)
        client.subscribe(filter_, qos)
        made.append((device, client))
    return made


@case
def devices_that_stop_reading_get_their_pushes_later(seen):
    """No more than a window of pushes is on its way to each; the others wait in the inbox, and who comes back gets all."""
    deaf = deaf_devices(seen, 5, "$push/inbox", 1)
    body = {"audience": {"tag": "deaf"}, "ttl_secs": 3600}
    for n in range(80):
        seen.target.call("POST", "/v1/messages", {**body, "data_text": f"{n:06}" + "x" * 30_000}, expect=202)
    for device, client in deaf:
        client.abort()
        with seen.target.sign_in(device) as back:
            got = [back.message(20).payload[:6] for _ in range(80)]
            equal(got, [b"%06d" % n for n in range(80)], "pushes after coming back")


@case
def web_clients_that_stop_reading_get_their_pushes_later(seen):
    """The same by WebSocket and event stream: what waits for them waits in the inbox, not in memory."""
    made = [seen.target.register(tags=["deafweb"], platform="web") for _ in range(6)]
    deaf = []
    for n, device in enumerate(made):
        sock = small_window(seen.target.http)
        if n % 2:
            sock.sendall(f"GET /v1/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {basic(device)}\r\n\r\n".encode())
        else:
            sock.sendall(OPEN_WEBSOCKET + text_frame({"type": "hello", "device": device.device_id, "secret": device.secret}))
        got = b""
        while b'"welcome"' not in got:
            got += sock.recv(4096)
        deaf.append(sock)
    body = {"audience": {"tag": "deafweb"}, "ttl_secs": 3600}
    for n in range(60):
        seen.target.call("POST", "/v1/messages", {**body, "data": f"{n:06}" + "x" * 30_000}, expect=202)
    for sock in deaf:
        sock.close()
    for device in made:
        with Http(seen.target, device) as back:
            got = back.inbox("?limit=100")["messages"]
            equal([frame["message"]["data"][:6] for frame in got], ["%06d" % n for n in range(60)], "pushes after coming back")


@case
def sockets_that_say_no_hello_or_drip_it(seen):
    crowd = Crowd(open_many(seen.target.http, addresses(10), 20))
    crowd.send(OPEN_WEBSOCKET)
    crowd.drip(text_frame({"type": "hello", "device": "d" * 60, "secret": "s" * 60}), 12)
    all_closed(crowd, "sockets without a hello")
    check(all(b"policy" in got for got in crowd.got.values()), "they were not told why")


@case
def polls_that_wait_and_are_left(seen):
    """A crowd that waits costs a connection each, is released when it leaves, and does not keep others from waiting."""
    made = [seen.target.register(platform="web") for _ in range(20)]
    before = seen.metric("postrider_connections")
    crowd = Crowd(open_many(seen.target.http, addresses(20), 20))
    for n, sock in enumerate(crowd.open):
        sock.sendall(f"GET /v1/inbox?wait=60 HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {basic(made[n % 20])}\r\n\r\n".encode())
    # Two of a device wait, the others are answered at once, and go.
    eventually(lambda: seen.metric("postrider_connections") == before + 40, "forty polls wait", 20, 0.1)
    crowd.close()


@case
def subscribers_that_stop_reading_are_cut_off(seen):
    """At QoS 0 nothing waits for them: what they do not take is dropped and counted, and they are closed."""
    names = ("postrider_gateway_slow_readers_closed_total", "postrider_gateway_messages_dropped_total")
    before = [seen.metric(name) for name in names]
    deaf = deaf_devices(seen, 3, "public/#", 0)
    for _ in range(300):
        seen.target.call("POST", "/v1/topics/public%2Fflood/publish", {"payload_text": "x" * 60_000, "qos": 0}, expect=202)
    eventually(lambda: seen.metric(names[0]) - before[0] == 3, "slow readers are closed", 20, 0.2)
    check(seen.metric(names[1]) > before[1], "nothing was dropped")
    for _, client in deaf:
        client.abort()


def small_window(place):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(10)
    sock.connect(place)
    return sock


@case
def answers_that_are_not_read(seen):
    """Twenty requests for a long answer, one behind the other, and nobody reads."""
    crowd = [small_window(seen.target.http) for _ in range(15)]
    for sock in crowd:
        sock.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 40)
    # The server's end arrives behind what is unread, so its own count tells.
    eventually(lambda: seen.metric("postrider_api_connections") <= 2, "deaf clients are cut off", 25, 0.2)
    for sock in crowd:
        sock.close()


@case
def answers_read_a_byte_at_a_time(seen):
    """Who reads is served, however slowly, as long as something goes on."""
    sock = small_window(seen.target.http)
    with sock:
        sock.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        first = b"".join(sock.recv(1) for _ in range(2000) if time.sleep(0.001) is None)
        rest = read_all(sock)
    size = int(re.search(rb"content-length: (\d+)", first).group(1))
    equal(len((first + rest).partition(b"\r\n\r\n")[2]), size, "bytes of the answer")


# --- XMPP ---------------------------------------------------------------------------------------------

def taken_in(stream, data, secs):
    """How much of an endless repetition of `data` the server takes in that time. What it answers is read."""
    sent, until, left = 0, time.monotonic() + secs, data
    stream.socket.setblocking(False)
    while time.monotonic() < until:
        try:
            size = stream.socket.send(left)
            sent, left = sent + size, left[size:] or data
        except BlockingIOError:
            time.sleep(0.01)
        try:
            if not stream.socket.recv(1 << 20):
                raise AssertionError("the stream ended")
        except BlockingIOError:
            pass
    return sent


@case
def xmpp_streams_that_chatter_are_slowed_down(seen):
    """H77: blanks, presences and pings as fast as the socket takes them. The server stops reading for the rest of each second."""
    secs = 4
    # 64 KiB over 250 KiB a second, and what the two sockets hold.
    most = (250 + 64) * 1024 * (secs + 1) + 8 * 1024 * 1024

    def chatter(data):
        device = seen.target.register(platform="desktop")
        with Session(seen.target.xmpp, device.device_id, device.secret, tls=False) as stream:
            return taken_in(stream, data, secs)

    ping = b"<iq id='p' type='get'><ping xmlns='urn:xmpp:ping'/></iq>"
    with ThreadPoolExecutor() as pool:
        for sent in pool.map(chatter, (b" " * 65_536, b"<presence/>" * 5_000, ping * 1_000)):
            check(sent < most, f"{sent} bytes were taken in {secs} s, of at most {most}")


# --- HTTP/2 -------------------------------------------------------------------------------------------

def ended(sock, secs=25):
    """What came until the server ended the connection."""
    sock.settimeout(secs)
    try:
        return read_all(sock)
    except TimeoutError:
        raise AssertionError(f"the connection is open after {secs} s") from None


def flood_until_closed(sock, data, secs=20, reads=True):
    """Sends whole frames without end, and reads what comes or does not; the server has to close."""
    until, left = time.monotonic() + secs, data
    sock.setblocking(False)
    with sock:
        while time.monotonic() < until:
            try:
                left = left[sock.send(left):] or data
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                return
            try:
                if reads and not sock.recv(1 << 20):
                    return
            except BlockingIOError:
                pass
            except OSError:
                return
    raise AssertionError(f"the flood goes on after {secs} s")


@case
def http2_that_never_grants_a_window(seen):
    socks = []
    for source in addresses(5):
        sock = h2_wire.connect(seen.target.http, source, h2_wire.settings(initial_window_size=0))
        sock.sendall(b"".join(h2_wire.get(2 * n + 1) for n in range(100)))
        socks.append(sock)
    for sock in socks:
        kinds = {kind for kind, _, _ in h2_wire.frames(ended(sock))}
        check(h2_wire.HEADERS in kinds, f"no answer begun: {kinds}")


@case
def http2_rapid_reset(seen):
    for source in addresses(5):
        sock = h2_wire.connect(seen.target.http, source)
        pairs = (h2_wire.get(2 * n + 1) + h2_wire.frame(h2_wire.RST_STREAM, 0, 2 * n + 1, struct.pack("!I", 8)) for n in range(20_000))
        try:
            sock.sendall(b"".join(pairs))
        except OSError:
            pass
        goaway = [payload for kind, _, payload in h2_wire.frames(ended(sock)) if kind == h2_wire.GOAWAY]
        check(not goaway or goaway[-1][4:8] == struct.pack("!I", h2_wire.ENHANCE_YOUR_CALM), f"GOAWAY {goaway}")


@case
def http2_empty_data(seen):
    sock = h2_wire.connect(seen.target.http, "127.0.0.2")
    fields = (("authorization", f"Bearer {seen.target.app_key}"), ("content-type", "application/json"))
    sock.sendall(h2_wire.frame(h2_wire.HEADERS, h2_wire.END_HEADERS, 1, h2_wire.head("POST", "/v1/messages", fields)))
    flood_until_closed(sock, h2_wire.frame(h2_wire.DATA, 0, 1) * 1000)


@case
def http2_settings(seen):
    flood_until_closed(h2_wire.connect(seen.target.http, "127.0.0.2"), h2_wire.settings(header_table_size=0) * 1000)


@case
def http2_pings(seen):
    flood_until_closed(h2_wire.connect(seen.target.http, "127.0.0.2"), h2_wire.frame(h2_wire.PING, payload=b"floods!!") * 1000)


@case
def http2_pings_whose_answers_are_not_read(seen):
    sock = small_window(seen.target.http)
    sock.sendall(h2_wire.PREFACE + h2_wire.settings())
    flood_until_closed(sock, h2_wire.frame(h2_wire.PING, payload=b"floods!!") * 1000, reads=False)


# --- running ------------------------------------------------------------------------------------------

def released(seen, connections):
    """Every place is free again: of the gateways, of those not signed in, of the API."""
    def counts():
        # The watch's own API connections come and go.
        now = [seen.metric(f"postrider_{name}") for name in ("connections", "connections_unauthenticated", "api_connections")]
        return now[0] == connections and now[1] == 0 and now[2] <= 1
    # Who was slowed down is read to its end, as slowly: some MiB stand in the sockets.
    eventually(counts, f"all places free but {connections}", 90, 0.1)


def run_case(name, function, seen):
    begun, memory = time.monotonic(), seen.resident_mib()
    watch = Watch(seen.target)
    watch.start()
    try:
        function(seen)
        check(seen.ready(), "not ready in the flood")
    finally:
        watch.end()
    released(seen, 0)
    growth = seen.resident_mib() - memory
    check(growth < GROWTH_MAX_MIB, f"resident memory grew by {growth:.0f} MiB")
    print(f"pass floods/{name} ({time.monotonic() - begun:.1f} s)  {watch.count} pushes, the slowest {watch.slowest * 1000:.0f} ms, "
          f"memory {growth:+.0f} MiB", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="path of the postrider binary")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    return parser.parse_args()


def main():
    options = arguments()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    failed = passed = 0
    with tempfile.TemporaryDirectory(prefix="floods-") as folder:
        server = Server(options.server, os.path.join(folder, "data"), None, os.path.join(folder, "server.log"),
                        variables={f"POSTRIDER_{name}": str(value) for name, value in SETTINGS.items()})
        server.start()
        seen = Seen(server)
        try:
            for name, function in CASES:
                if options.case not in name:
                    continue
                try:
                    run_case(name, function, seen)
                    passed += 1
                except Exception as error:
                    failed += 1
                    print(f"FAIL floods/{name}  {type(error).__name__}: {error}", flush=True)
                    traceback.print_exc()
            check(server.alive(), "the server has ended")
            equal(seen.metric("postrider_gateway_panics_total") + seen.metric("postrider_api_panics_total"), 0, "panics")
        finally:
            server.stop()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
