#!/usr/bin/env python3
"""What it costs one device to be reached: pull every 10, 60 and 300 seconds, long-poll, server-sent events, WebSocket, MQTT, XMPP.

    python3 bench/push_vs_pull.py --server target/release/postrider --minutes 15 [--svg docs/push-vs-pull.svg]

All devices live at the same time, each by its own way, and are sent the same pushes: one a minute, at a random second. Counted are,
by the kernel (`TCP_INFO`), the bytes and segments of each device's sockets: "on the wire" is payload plus 52 bytes a segment (IPv4, TCP with
time stamps). A wake-up is activity after five seconds of quiet, which is what a radio pays for. The delay is from the sender's request to the
device's having the push, the commit to disk included. What is printed is scaled to an hour.
"""

import argparse
import http.client
import json
import os
import random
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../conformance"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from web_idle import APP_KEY, Server, frame, read_until, register, request  # noqa: E402
from xmpp_idle import session  # noqa: E402

SEGMENT_BYTES = 52
QUIET_SECS = 5
# Heartbeats of the connections that choose them.
HEARTBEAT_SECS = 240


def tcp_info(connection):
    """(payload out, payload in, segments out, segments in); `struct tcp_info` of linux/tcp.h."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    acked, received, segs_out, segs_in = struct.unpack_from("=QQII", info, 120)
    return acked, received, segs_out, segs_in


class Device:
    """Counts what its sockets carry, and when each message came."""

    def __init__(self, server, credentials):
        self.server, (self.id, self.secret) = server, credentials
        self.wire, self.wakes, self.last = 0, 0, 0.0
        self.came, self.stop = {}, threading.Event()
        self.socket = None

    def active(self):
        now = time.monotonic()
        self.wakes += now - self.last > QUIET_SECS
        self.last = now

    def parts(self, connection, heartbeat=None):
        """What comes, each part an activity; `heartbeat` is said after a silence."""
        connection.settimeout(HEARTBEAT_SECS if heartbeat else None)
        while not self.stop.is_set():
            try:
                part = connection.recv(65536)
            except TimeoutError:
                self.active()
                connection.sendall(heartbeat)
                continue
            if not part:
                return
            self.active()
            yield part

    def has(self, text):
        for part in text.split(b'"id":"')[1:]:
            self.came.setdefault(part[:26].decode(), time.monotonic())

    def done_with(self, connection):
        out, into, segs_out, segs_in = tcp_info(connection)
        # A connection's own: SYN, SYN-ACK, ACK are in the segments; what its closing needs is not there yet.
        self.wire += out + into + (segs_out + segs_in + 4) * SEGMENT_BYTES
        connection.close()

    def run(self):
        try:
            self.live()
        except (ConnectionError, OSError):
            if not self.stop.is_set():
                raise
            # Ended in the middle of a wait, which is where it nearly always is.
            self.done_with(self.socket)


class Pull(Device):
    """Asks every so often, with `If-None-Match`; keeps its connection where the server does (a minute)."""

    def __init__(self, server, credentials, every):
        super().__init__(server, credentials)
        self.every, self.tag = every, None

    def live(self):
        connection = None
        self.stop.wait(random.random() * min(self.every, 20))
        while not self.stop.is_set():
            self.active()
            if connection is None or self.every >= 60:
                if connection is not None:
                    self.done_with(connection)
                connection = socket.create_connection(self.server.http)
            page = self.ask(connection, request("/v1/inbox", self.id, self.secret))
            self.has(page)
            acks = [part.split(b'"')[0].decode() for part in page.split(b'"delivery":"')[1:]]
            if acks:
                self.ask(connection, post("/v1/inbox/acks", self, {"deliveries": acks}))
            if self.every >= 60:
                self.done_with(connection)
                connection = None
            self.stop.wait(self.every)
        if connection is not None:
            self.done_with(connection)

    def ask(self, connection, text):
        if self.tag and text.startswith(b"GET"):
            text = text[:-2] + b"If-None-Match: " + self.tag + b"\r\n\r\n"
        connection.sendall(text)
        return self.answer(connection)

    def answer(self, connection):
        head = read_until(connection, b"\r\n\r\n")
        head, _, body = head.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        self.tag = fields.get(b"etag", self.tag)
        while len(body) < int(fields.get(b"content-length", 0)):
            body += connection.recv(65536)
        return body


class LongPoll(Pull):
    def __init__(self, server, credentials):
        super().__init__(server, credentials, 0)

    def live(self):
        connection = self.socket = socket.create_connection(self.server.http)
        while not self.stop.is_set():
            self.active()
            connection.sendall(request("/v1/inbox?wait=60", self.id, self.secret))
            page = self.answer(connection)
            self.active()
            self.has(page)
            acks = [part.split(b'"')[0].decode() for part in page.split(b'"delivery":"')[1:]]
            if acks:
                connection.sendall(post("/v1/inbox/acks", self, {"deliveries": acks}))
                self.answer(connection)
        self.done_with(connection)


class Stream(Pull):
    """Events on one connection, acknowledgements on another, opened when there is something."""

    def __init__(self, server, credentials):
        super().__init__(server, credentials, 0)

    def live(self):
        connection = self.socket = socket.create_connection(self.server.http)
        connection.sendall(request("/v1/stream", self.id, self.secret))
        for part in self.parts(connection):
            self.has(part)
            acks = [p.split(b'"')[0].decode() for p in part.split(b'"delivery":"')[1:]]
            if acks:
                other = socket.create_connection(self.server.http)
                other.sendall(post("/v1/stream/acks", self, {"deliveries": acks}))
                self.answer(other)
                self.done_with(other)
        self.done_with(connection)


class WebSocket(Device):
    def live(self):
        connection = self.socket = socket.create_connection(self.server.http)
        connection.sendall(b"GET /ws HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                           b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        read_until(connection, b"\r\n\r\n")
        hello = {"type": "hello", "device": self.id, "secret": self.secret, "heartbeat_secs": HEARTBEAT_SECS}
        connection.sendall(frame(json.dumps(hello)))
        for part in self.parts(connection, frame('{"type":"ping"}')):
            self.has(part)
            for name in part.split(b'"delivery":"')[1:]:
                connection.sendall(frame(json.dumps({"type": "ack", "deliveries": [name.split(b'"')[0].decode()]})))
        self.done_with(connection)


class Mqtt(Device):
    def live(self):
        from web_idle import mqtt
        connection = self.socket = mqtt(self.server, self.id, self.secret)
        for part in self.parts(connection, b"\xc0\x00"):
            self.has(part)
            if part[0] >> 4 == 3:
                # One push a minute: a packet is whole, and its id lies behind the topic.
                at = 1 + next(i for i in range(1, 5) if part[i] < 128)
                at += 2 + int.from_bytes(part[at:at + 2], "big")
                connection.sendall(b"\x40\x02" + part[at:at + 2])
        self.done_with(connection)


class Xmpp(Device):
    """With stream management, in clear like all the others. The server asks after a silence as long as their heartbeats."""

    SETTINGS = {"POSTRIDER_XMPP_ALLOW_PLAINTEXT": "true", "POSTRIDER_XMPP_PROBE_AFTER_SECS": str(HEARTBEAT_SECS)}

    def live(self):
        connection = self.socket = session(self.server.xmpp, self.id, self.secret)
        connection.sendall(b"<enable xmlns='urn:xmpp:sm:3' resume='true'/>")
        read_until(connection, b"<enabled")
        self.active()
        handled = 0
        for part in self.parts(connection):
            # Parts are small enough to come whole: one push a minute.
            for name in part.split(b'<message type="normal" id="')[1:]:
                self.came.setdefault(name[:26].decode(), time.monotonic())
                handled += 1
            if b"<r " in part:
                connection.sendall(f"<a xmlns='urn:xmpp:sm:3' h='{handled}'/>".encode())
        self.done_with(connection)


def post(path, device, body):
    text = json.dumps(body)
    head = request(path, device.id, device.secret).replace(b"GET ", b"POST ", 1)[:-2]
    return head + f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


def push(server, devices):
    """Sends to all; gives the id, and when it was asked."""
    begun = time.monotonic()
    connection = http.client.HTTPConnection(*server.http, timeout=30)
    headers = {"Authorization": f"Bearer {APP_KEY}", "Content-Type": "application/json"}
    body = {"audience": {"devices": [d.id for d in devices]}, "ttl_secs": 3600,
            "notification": {"title": "A title of usual length", "body": "And a body with a sentence or two of text, as apps send them."}}
    connection.request("POST", "/v1/messages", json.dumps(body), headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer["message_id"], begun


def measure(server, minutes):
    makers = {
        "pull every 10 s": lambda c: Pull(server, c, 10), "pull every 60 s": lambda c: Pull(server, c, 60),
        "pull every 300 s": lambda c: Pull(server, c, 300), "long-poll": lambda c: LongPoll(server, c),
        "server-sent events": lambda c: Stream(server, c), "WebSocket": lambda c: WebSocket(server, c),
        "MQTT": lambda c: Mqtt(server, c), "XMPP": lambda c: Xmpp(server, c),
    }
    devices = {name: make(c) for (name, make), c in zip(makers.items(), register(server, len(makers)))}
    threads = [threading.Thread(target=d.run, daemon=True) for d in devices.values()]
    for thread in threads:
        thread.start()
    begun, sent = time.monotonic(), {}
    for minute in range(minutes):
        time.sleep(max(0, begun + minute * 60 + random.random() * 60 - time.monotonic()))
        message, at = push(server, devices.values())
        sent[message] = at
    time.sleep(max(0, begun + minutes * 60 - time.monotonic()))
    for device in devices.values():
        device.stop.set()
        if device.socket is not None:
            device.socket.shutdown(socket.SHUT_RD)
    for thread in threads:
        thread.join(70)
    scale = 60 / minutes
    rows = []
    for name, device in devices.items():
        delays = [device.came[m] - at for m, at in sent.items() if m in device.came]
        mean = sum(delays) / len(delays) if delays else float("nan")
        rows.append((name, device.wire * scale, device.wakes * scale, mean, len(delays)))
    return rows, len(sent)


def svg(rows, path):
    """Bytes an hour as bars, and the mean delay beside them; both on a logarithmic scale they would need a legend, so numbers stand there."""
    top = max(row[1] for row in rows)
    height = 34 * len(rows) + 50
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" font-family="system-ui, sans-serif" font-size="14">',
             '<rect width="100%" height="100%" fill="#fff"/>',
             '<text x="16" y="28" font-weight="600">One device, one hour, sixty pushes: bytes on the wire, wake-ups, mean delay</text>']
    for i, (name, wire, wakes, delay, _) in enumerate(rows):
        y = 46 + 34 * i
        width = max(2, 330 * wire / top)
        late = f"{delay * 1000:,.0f} ms" if delay < 1 else f"{delay:,.0f} s"
        told = f"{wire / 1000:,.0f} KB · {wakes:,.0f} wake-ups · {late}"
        lines += [f'<text x="16" y="{y + 17}">{name}</text>', f'<rect x="160" y="{y}" width="{width:.0f}" height="24" rx="3" fill="#2f6fde"/>',
                  f'<text x="{168 + width:.0f}" y="{y + 17}" fill="#333">{told}</text>']
    with open(path, "w") as file:
        file.write("\n".join([*lines, "</svg>", ""]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--minutes", type=int, default=15)
    parser.add_argument("--svg", help="draw the picture here")
    options = parser.parse_args()
    os.environ.update(Xmpp.SETTINGS)
    server = Server(options.server)
    try:
        rows, pushes = measure(server, options.minutes)
    finally:
        server.stop()
    print("| way | bytes an hour on the wire | wake-ups an hour | mean delay | pushes received |\n| --- | --- | --- | --- | --- |")
    for name, wire, wakes, delay, got in rows:
        print(f"| {name} | {wire:,.0f} | {wakes:,.0f} | {delay:,.3f} s | {got} of {pushes} |")
    if options.svg:
        svg(rows, options.svg)


if __name__ == "__main__":
    main()
