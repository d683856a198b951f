#!/usr/bin/env python3
"""What one tenant, device or address does to another app: its push latency while the first one is at it, over that at rest.

    fairness.py --server PATH [--seconds 3] [--rounds 3] [--rows WORD,WORD] [--list]

Each row starts a server of its own on loopback. An app "other" pushes to a device of its own at a steady rate, and another of
its devices signs in again and again. In turn nobody else does anything, and the row's attack runs in processes of their own.
A push is timed from the moment at which it was due. The table has
the ratio of the 99th percentiles and the share of sign-ins that failed; the target is a ratio of 2 at most, and none.
"""

import argparse
import base64
import contextlib
import json
import multiprocessing
import os
import resource
import socket
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "conformance"))

from server import ADMIN_KEY, APP_KEY, Server  # noqa: E402
from ws_wire import TEXT_FRAME, WebSocket  # noqa: E402
from xmpp_wire import Session  # noqa: E402

PUSHES_PER_SEC = 50
PUSHERS = 10
SIGN_INS_PER_SEC = 10
SETTINGS = {"limits.connects_per_minute_max": 0, "xmpp.scram": "false", "store.min_free_bytes": 0,
            "store.min_free_percent": 0, "xmpp.allow_plaintext": "true"}
ROWS = []


def row(name, setup=None, copies=1, **settings):
    def add(attack):
        ROWS.append((name, setup, attack, copies, settings))
        return attack
    return add


class Http:
    """One connection that is kept, and opened again when it was closed."""

    def __init__(self, address, credentials):
        self.address, self.sock, self.buffer = address, None, b""
        self.credentials = credentials

    def call(self, method, path, body=None):
        """(status, JSON)"""
        payload = b"" if body is None else json.dumps(body).encode()
        head = (f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {self.credentials}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n").encode()
        for _ in range(2):
            try:
                if self.sock is None:
                    self.sock, self.buffer = socket.create_connection(self.address, timeout=60), b""
                    self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.sock.sendall(head + payload)
                return self.answer()
            except OSError:
                self.sock = None
        raise OSError("no answer")

    def answer(self):
        while b"\r\n\r\n" not in self.buffer:
            self.more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
        length = int(fields.get(b"content-length", 0))
        while len(self.buffer) < length:
            self.more()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        if fields.get(b"connection") == b"close":
            self.sock = None
        return int(head[9:12]), json.loads(body) if body.startswith((b"{", b"[")) else None

    def more(self):
        got = self.sock.recv(65_536)
        if not got:
            raise OSError("closed")
        self.buffer += got


def bearer(key):
    return f"Bearer {key}"


def basic(device):
    return "Basic " + base64.b64encode(f"{device[0]}:{device[1]}".encode()).decode()


class Place:
    """What an attack may use: addresses, keys, devices."""

    def __init__(self, places):
        self.http, self.mqtt, self.xmpp = places["http"], places["mqtt"], places["xmpp"]
        self.app, self.register_key, self.devices = APP_KEY, None, []

    def api(self, key=None):
        return Http(self.http, bearer(key or self.app))


def register(api, **profile):
    status, made = api.call("POST", "/v1/devices", {"platform": "other", **profile})
    if status != 201:
        raise OSError(f"registering answered {status}: {made}")
    return made["device_id"], made["device_secret"]


def until(end, step):
    """Calls `step` until the time is over; what fails is tried again."""
    while time.monotonic() < end:
        try:
            step()
        except OSError:
            time.sleep(0.01)


# --- the other app ------------------------------------------------------------------------------------

def mqtt_connect(device):
    client, user, password = b"x", f"other/{device[0]}".encode(), device[1].encode()
    body = b"\0\4MQTT\4\xc2\0\x3c" + b"".join(len(t).to_bytes(2, "big") + t for t in (client, user, password))
    return b"\x10" + bytes([len(body) & 0x7f | 0x80, len(body) >> 7]) + body


class Other:
    """Pushes at a steady rate, by several connections in turn, so that one that waits holds up no other; and signs in."""

    def __init__(self, place, key):
        self.place, self.key, self.over = place, key, threading.Event()
        api = Http(place.http, bearer(key))
        self.target, self.comer = register(api), register(api)
        self.late, self.sign_ins, self.failed = [], 0, 0

    def go_on(self, seconds):
        self.over.clear()
        begun = time.monotonic() + 0.1
        crowd = [threading.Thread(target=self.push, args=(begun, n), daemon=True) for n in range(PUSHERS)]
        crowd.append(threading.Thread(target=self.sign_in_again, daemon=True))
        for thread in crowd:
            thread.start()
        time.sleep(seconds)
        self.over.set()
        for thread in crowd:
            thread.join()

    def push(self, begun, count):
        api = Http(self.place.http, bearer(self.key))
        body = {"audience": {"device": self.target[0]}, "data": "x", "ttl_secs": 60}
        while not self.over.is_set():
            due = begun + count / PUSHES_PER_SEC
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                api.call("POST", "/v1/messages", body)
            except OSError:
                pass
            self.late.append(time.monotonic() - due)
            count += PUSHERS

    def sign_in_again(self):
        packet = mqtt_connect(self.comer)
        while not self.over.wait(1 / SIGN_INS_PER_SEC):
            self.sign_ins += 1
            try:
                with socket.create_connection(self.place.mqtt, timeout=5) as sock:
                    sock.sendall(packet)
                    self.failed += sock.recv(4) != b"\x20\x02\0\0"
            except OSError:
                self.failed += 1


def p99(values):
    return sorted(values)[min(len(values) - 1, len(values) * 99 // 100)]


# --- attacks ------------------------------------------------------------------------------------------

def one_device(place):
    place.devices = [register(place.api())]


def many_devices(count):
    def setup(place):
        api = place.api()
        place.devices = [register(api) for _ in range(count)]
    return setup


def masked(payload):
    """A whole text frame whose mask changes nothing, so that the attacker's time goes into sending."""
    size = bytes([0xfe]) + len(payload).to_bytes(2, "big")
    return b"\x81" + size + b"\0\0\0\0" + payload


def hello(place, device):
    web = WebSocket(place.http, "/ws", ("postrider.v1",))
    web.send_frame(json.dumps({"type": "hello", "device": device[0], "secret": device[1]}).encode(), TEXT_FRAME)
    while web.take_frame() is None:
        got = web.sock.recv(65_536)
        if not got:
            raise OSError("no welcome")
        web.buffer += got
    return web


@row("S2: acknowledges what was never sent, WebSocket", one_device)
def acks_by_socket(place, end):
    frame = masked(json.dumps({"type": "ack", "deliveries": [str(10**9 + n) for n in range(1000)]}).encode())
    flood(place, frame * 16, end)


def flood(place, frames, end):
    """A device that says the same again and again, and comes back when it was cut."""
    def step():
        sock = hello(place, place.devices[0]).sock
        sock.settimeout(max(0.1, end - time.monotonic()))
        while time.monotonic() < end:
            sock.sendall(frames)
    until(end, step)


@row("S2: the same by HTTP, 40 connections", one_device, copies=2)
def acks_by_request(place, end):
    body = {"deliveries": [str(10**9 + n) for n in range(1000)]}

    def one():
        api = Http(place.http, basic(place.devices[0]))
        until(end, lambda: api.call("POST", "/v1/inbox/acks", body))
    crowd = [threading.Thread(target=one) for _ in range(20)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()


def hold(open_one, count, end):
    """Keeps so many silent connections open, and opens those anew that are closed."""
    held = []
    while time.monotonic() < end:
        try:
            held.append(open_one(len(held)))
        except OSError:
            time.sleep(0.001)
        if len(held) >= count:
            held.pop(0).close()
            time.sleep(1 / 200)


@row("S4: silent WebSockets from the same address")
def silent_sockets(place, end):
    hold(lambda _: WebSocket(place.http, "/ws", ("postrider.v1",)).sock, 60, end)


@row("S5: XMPP headers from 41 addresses")
def silent_streams(place, end):
    header = (b"<stream:stream to='localhost' xmlns='jabber:client' version='1.0' "
              b"xmlns:stream='http://etherx.jabber.org/streams'>")

    def open_one(n):
        sock = socket.create_connection(place.xmpp, timeout=5, source_address=(f"127.0.1.{n % 41 + 1}", 0))
        sock.sendall(header)
        return sock
    hold(open_one, 2_500, end)


@row("S6: a collapse key that 2,000 devices share", many_devices(2_000))
def crowded_key(place, end):
    api = place.api()
    sent = [0]

    def step():
        some = [place.devices[(sent[0] + n) % len(place.devices)][0] for n in range(100)]
        sent[0] += 100
        messages = [{"audience": {"device": device}, "data": 1, "collapse_key": "unread"} for device in some]
        api.call("POST", "/v1/messages/batch", {"messages": messages})
    until(end, step)


def broadcasts(place):
    many_devices(500)(place)
    api = place.api()
    for _ in range(20):
        messages = [{"audience": "all", "data": 1} for _ in range(100)]
        api.call("POST", "/v1/messages/batch", {"messages": messages})


@row("S7: lists devices while 2,000 broadcasts are open", broadcasts, copies=2)
def lists(place, end):
    api = place.api()
    until(end, lambda: api.call("GET", "/v1/devices?limit=500"))


def with_register_key(place):
    made = Http(place.http, bearer(ADMIN_KEY)).call("POST", "/v1/apps/default/keys", {"name": "r", "scope": "register"})
    place.register_key = made[1]["key"]


@row("S8: registers large profiles, 8 connections", with_register_key, copies=8)
def large_profiles(place, end):
    api = place.api(place.register_key)
    body = {"platform": "web", "attributes": {f"a{n}": "x" * 1000 for n in range(100)}}
    until(end, lambda: api.call("POST", "/v1/devices", body))


@row("S9: 22 devices send messages to one that is away, XMPP", many_devices(23), copies=2)
def messages_of_devices(place, end):
    victim, *strangers = place.devices
    message = f"<message to='{victim[0]}@localhost' type='chat'><body>{'x' * 200}</body></message>" * 48

    def one(device):
        def step():
            with Session(place.xmpp, device[0], device[1], tls=False) as session:
                while time.monotonic() < end:
                    session.send(message)
                    session.socket.settimeout(0.01)
                    with contextlib.suppress(TimeoutError):
                        session.socket.recv(65_536)
        until(end, step)
    crowd = [threading.Thread(target=one, args=(device,)) for device in strangers[os.getpid() % 2::2]]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()


@row("S13: pushes 60 kB to 100 devices", many_devices(100), copies=2)
def fills_the_disk(place, end):
    api = place.api()
    body = {"audience": {"devices": [device[0] for device in place.devices]}, "data": "x" * 60_000}
    until(end, lambda: api.call("POST", "/v1/messages", body))


@row("S21: subscribes to the same topics in a loop", one_device)
def subscribes(place, end):
    device = place.devices[0]
    topics = [f"devices/{device[0]}/{n:03}" + "x" * 400 for n in range(16)]
    flood(place, masked(json.dumps({"type": "subscribe", "topics": topics, "qos": 1}).encode()) * 16, end)


@row("an honest tenant: broadcasts, lists, reads reports", many_devices(1_000), copies=3)
def honest(place, end):
    api = place.api()

    def step():
        sent = api.call("POST", "/v1/messages", {"audience": "all", "data": 1, "ttl_secs": 30})[1]
        api.call("GET", "/v1/devices?limit=100")
        if sent and "message_id" in sent:
            api.call("GET", f"/v1/messages/{sent['message_id']}")
    until(end, step)


# --- the table ----------------------------------------------------------------------------------------

def attacker(attack, place, end):
    # Real attackers have machines of their own: what they take of this one is not the server's doing.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        attack(place, end)
    except Exception as error:  # The row is about the other app.
        print(f"{attack.__name__}: {error}", file=sys.stderr)


def with_crowd(place, attack, copies, seconds, under):
    end = time.monotonic() + seconds + 0.5
    fork = multiprocessing.get_context("fork")
    crowd = [fork.Process(target=attacker, args=(attack, place, end)) for _ in range(copies)]
    for one in crowd:
        one.start()
    time.sleep(0.5)
    under.go_on(seconds)
    for one in crowd:
        one.join(10)
        if one.is_alive():
            one.kill()


def judge(binary, seconds, rounds, setup, attack, copies, settings):
    with tempfile.TemporaryDirectory() as folder:
        server = Server(binary, os.path.join(folder, "data"), settings={**SETTINGS, **settings})
        server.log_path = os.path.join(folder, "server.log")
        server.start()
        try:
            place = Place(server.places)
            admin = Http(place.http, bearer(ADMIN_KEY))
            admin.call("POST", "/v1/apps", {"id": "other"})
            key = admin.call("POST", "/v1/apps/other/keys", {"name": "o", "scope": "app"})[1]["key"]
            if setup:
                setup(place)
            rest, under = Other(place, key), Other(place, key)
            for _ in range(rounds):
                rest.go_on(seconds)
                with_crowd(place, attack, copies, seconds, under)
            return rest, under
        finally:
            server.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="path of the postrider binary")
    parser.add_argument("--seconds", type=float, default=3, help="of rest, and of an attack, in each round (3)")
    parser.add_argument("--rounds", type=int, default=3, help="of rest and attack in turn (3)")
    parser.add_argument("--rows", default="", help="only rows whose name contains one of these words")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    words = [word for word in options.rows.split(",") if word]
    chosen = [one for one in ROWS if not words or any(word in one[0] for word in words)]
    if options.list or not options.server:
        print("\n".join(name for name, *_ in chosen))
        return
    # Crowds need more sockets than a process usually may have; the server inherits it.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print("| row | p99 at rest | p99 under attack | ratio | worst | sign-ins that failed |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    worst = 0.0
    for name, setup, attack, copies, settings in chosen:
        rest, under = judge(options.server, options.seconds, options.rounds, setup, attack, copies, settings)
        idle, busy = p99(rest.late), p99(under.late)
        worst = max(worst, busy / idle)
        print(f"| {name} | {idle * 1e3:.1f} ms | {busy * 1e3:.1f} ms | {busy / idle:.1f} | "
              f"{max(under.late) * 1e3:.0f} ms | {under.failed} of {under.sign_ins} |", flush=True)
    print(f"\nThe largest ratio is {worst:.1f}; the target is 2.")


if __name__ == "__main__":
    main()
