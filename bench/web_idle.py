#!/usr/bin/env python3
"""Memory of one waiting connection: WebSocket, event stream, long-poll and MQTT, of registered devices, one kind after the other.

    python3 bench/web_idle.py --server target/release/postrider [-n 3000]

What is printed is the growth of the server's proportional set size (user memory; the kernel's part of a socket is not in it)
divided by the connections. Each connection belongs to a device of its own, registered before the measurement.
"""

import argparse
import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile

from process import settled

KINDS = ("websocket", "sse", "long-poll", "mqtt")
APP_KEY = "prk_bench-key-of-the-app-0123456789abcdef"


class Server:
    """postrider on free ports, without the limits that count one address's connections. Settings are given as
    `SECTION_NAME=value`."""

    def __init__(self, program, **settings):
        self.folder = tempfile.TemporaryDirectory()
        listen = {f"POSTRIDER_{name}_LISTEN": "127.0.0.1:0" for name in ("HTTP", "OPS", "MQTT", "XMPP")}
        listen |= {f"POSTRIDER_{name}": str(value).lower() for name, value in settings.items()}
        limits = ("[gateway]\nper_address_max = 0\nunauthenticated_per_address_max = 0\nunauthenticated_max = 0\n"
                  "[http]\nconnections_max = 100000\nconnections_per_address_max = 100000\n")
        config = os.path.join(self.folder.name, "bench.toml")
        with open(config, "w") as file:
            file.write(limits)
        data = os.path.join(self.folder.name, "data")
        self.process = subprocess.Popen(
            [program, "serve", "--config", config, "--data", data], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **listen, "POSTRIDER_APP_KEY": APP_KEY})
        words = dict(word.split("=") for word in self.process.stdout.readline().split()[1:])
        self.http, self.mqtt, self.xmpp = (self.place(words.get(name, ":0")) for name in ("http", "mqtt", "xmpp"))

    @staticmethod
    def place(text):
        host, _, port = text.rpartition(":")
        return host, int(port)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.folder.cleanup()


def register(server, count):
    connection = http.client.HTTPConnection(*server.http, timeout=30)
    headers = {"Authorization": f"Bearer {APP_KEY}", "Content-Type": "application/json"}
    devices = []
    for _ in range(count):
        connection.request("POST", "/v1/devices", '{"platform":"web"}', headers)
        made = json.loads(connection.getresponse().read())
        devices.append((made["device_id"], made["device_secret"]))
    return devices


def read_until(connection, end):
    data = b""
    while end not in data:
        part = connection.recv(4096)
        if not part:
            raise ConnectionError(f"closed after {data[:200]!r}")
        data += part
    return data


def frame(text):
    payload = text.encode()
    mask = b"\x01\x02\x03\x04"
    head = b"\x81" + (bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big"))
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def websocket(server, device, secret):
    connection = socket.create_connection(server.http)
    connection.sendall(b"GET /ws HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                       b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    read_until(connection, b"\r\n\r\n")
    connection.sendall(frame(json.dumps({"type": "hello", "device": device, "secret": secret, "heartbeat_secs": 600})))
    read_until(connection, b'"welcome"')
    return connection


def request(path, device, secret):
    basic = base64.b64encode(f"{device}:{secret}".encode()).decode()
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Basic {basic}\r\n\r\n".encode()


def sse(server, device, secret):
    connection = socket.create_connection(server.http)
    connection.sendall(request("/v1/stream", device, secret))
    read_until(connection, b"event: welcome")
    return connection


def long_poll(server, device, secret):
    connection = socket.create_connection(server.http)
    connection.sendall(request("/v1/inbox?wait=60", device, secret))
    return connection


def mqtt(server, device, secret):
    def text(words):
        return len(words).to_bytes(2, "big") + words.encode()
    connect = text("MQTT") + b"\x04\xc2\x02\x58" + text(device) + text(device) + text(secret)
    subscribe = b"\x00\x01" + text("$push/inbox") + b"\x01"
    connection = socket.create_connection(server.mqtt)
    connection.sendall(b"\x10" + (bytes([len(connect)]) if len(connect) < 128 else bytes([len(connect) % 128 | 128, len(connect) // 128])) + connect)
    connection.recv(4)
    connection.sendall(b"\x82" + bytes([len(subscribe)]) + subscribe)
    connection.recv(5)
    return connection


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("-n", type=int, default=3000)
    options = parser.parse_args()
    opens = {"websocket": websocket, "sse": sse, "long-poll": long_poll, "mqtt": mqtt}
    print(f"load average {os.getloadavg()[0]:.1f}; {options.n} connections of each kind, a server of its own for each")
    for kind in KINDS:
        server = Server(options.server)
        try:
            devices = register(server, options.n)
            # The first ones make what all share: buffers of workers, tables.
            warm = [opens[kind](server, *device) for device in devices[:100]]
            before = settled(server.process.pid, 16 * 1024)
            held = [opens[kind](server, *device) for device in devices[100:]]
            after = settled(server.process.pid, 16 * 1024)
            print(f"{kind:10} {(after - before) / len(held):7.0f} bytes each", flush=True)
            for connection in warm + held:
                connection.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
