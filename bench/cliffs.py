#!/usr/bin/env python3
"""What an operation costs while more and more lies open elsewhere: no column may be much dearer than the first.

    python3 bench/cliffs.py --server target/release/postrider [--sizes 1000,10000,100000]

For each size N a server of its own is filled, and the same operations are done: always as many of them, always for the same few
devices. Printed is the server's processor time (user and system, all threads) for one operation, in microseconds, and the ratio
of the last column to the first; above 1.5 the script ends with 1. Rows:

- `collapse`: N devices are away with an open message of one shared collapse key; a push with that key to one of them.
- `report`: the report of one of these pushes.
- `metrics`: a scrape of `/metrics` while these N inboxes are open.
- `quiet list`: a page of messages of another app, which sent ten.
- `receipt`: a device reports by HTTP a broadcast to N devices that nearly all have reported.
- `deliveries`: a page of 100 deliveries of it.
- `drain`: a push to a device that none of N live broadcasts is for, its poll, its acknowledgement.
- `device list`: a page of the 100 devices that these N broadcasts are open for.
- `expiry`: one of N deliveries that are due in the same second. The table ends with how late the last one ended.
"""

import argparse
import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

APP_KEY = "prk_bench-key-of-the-app-0123456789abcdef"
ADMIN_KEY = "prk_bench-key-of-the-admin-0123456789abcdef"
SETTINGS = {
    "xmpp.scram": "false",
    "http.pushes_per_sec": "0",
    "http.bytes_per_sec": "0",
    "limits.broadcasts_max": "1000000",
    "limits.direct_max": "10",
    # Checkpoints would be measured with whatever happens to be going on.
    "store.checkpoint_bytes": "100000000000",
    "store.min_free_bytes": "0",
    "store.min_free_percent": "0",
}
ALLOWED = 1.5
CROWD = 100
FEW = 500
KEY = {"collapse_key": "unread"}


class Server:
    def __init__(self, program):
        self.folder = tempfile.TemporaryDirectory()
        env = {f"POSTRIDER_{name}_LISTEN": "127.0.0.1:0" for name in ("HTTP", "OPS", "MQTT")}
        env |= {"POSTRIDER_APP_KEY": APP_KEY, "POSTRIDER_ADMIN_KEY": ADMIN_KEY}
        settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
        settings += ["--set", "listen.xmpp=off"]
        data = os.path.join(self.folder.name, "data")
        self.process = subprocess.Popen([program, "serve", "--data", data, *settings], stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, env={**os.environ, **env})
        self.places = {}
        for line in self.process.stdout:
            if line.startswith("listening"):
                words = (word.split("=", 1) for word in line.split()[1:])
                self.places = {name: place.rsplit(":", 1) for name, place in words}
                break
        else:
            raise RuntimeError("the server ended")

    def place(self, name):
        host, port = self.places[name]
        return host, int(port)

    def cpu(self):
        """Processor time of all its threads, ended ones too: the clock of the process, clock_getcpuclockid(3)."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.folder.cleanup()


class Pipe:
    """One connection with many requests under way: the generator must not be what is measured."""

    def __init__(self, place, depth=64):
        self.socket, self.depth, self.rest = socket.create_connection(place, 30), depth, b""
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self, requests, each=None):
        requests = list(requests)
        for start in range(0, len(requests), self.depth):
            some = requests[start:start + self.depth]
            self.socket.sendall(b"".join(some))
            for n in range(len(some)):
                status, body = self.answer()
                if status >= 300:
                    raise RuntimeError(f"{some[n][:300]}: {status} {body[:300]}")
                if each:
                    each(start + n, body)

    def answer(self):
        while (end := self.rest.find(b"\r\n\r\n")) < 0:
            self.more()
        head = self.rest[:end]
        length = int(re.search(rb"(?i)\ncontent-length: (\d+)", head).group(1))
        while len(self.rest) < end + 4 + length:
            self.more()
        body = self.rest[end + 4:end + 4 + length]
        self.rest = self.rest[end + 4 + length:]
        return int(head.split(b" ", 2)[1]), body

    def more(self):
        data = self.socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.rest += data


def bearer(key):
    return f"Bearer {key}"


def basic(device):
    return "Basic " + base64.b64encode(":".join(device).encode()).decode()


def request(method, path, authorization, body=None):
    text = "" if body is None else json.dumps(body)
    kind = "" if body is None else "Content-Type: application/json\r\n"
    return (f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: {authorization}\r\n{kind}"
            f"Content-Length: {len(text)}\r\n\r\n{text}").encode()


class Bench:
    def __init__(self, program, size):
        self.size, self.server, self.costs, self.late = size, Server(program), {}, None
        self.http = Pipe(self.server.place("http"))

    def measure(self, name, count, work, rounds=3):
        """The cheapest of some rounds: what else the machine does only adds."""
        found = []
        for turn in range(rounds):
            before = self.server.cpu()
            work(turn)
            found.append((self.server.cpu() - before) / count * 1e6)
        self.costs[name] = min(found)

    def app(self, method, path, body=None, key=APP_KEY):
        return request(method, path, bearer(key), body)

    def one(self, raw):
        found = []
        self.http.run([raw], lambda _, body: found.append(json.loads(body or b"null")))
        return found[0]

    def register(self, count, tag):
        devices = []
        profile = {"platform": "other", "tags": [tag]}
        made = lambda _, body: devices.append((json.loads(body)["device_id"], json.loads(body)["device_secret"]))
        self.http.run((self.app("POST", "/v1/devices", profile) for _ in range(count)), made)
        return devices

    def push_to_each(self, devices, more, size=250):
        """One push to each, in batches unless `size` is 1; gives the ids."""
        messages = [{"audience": {"device": device}, "data": 1, **more} for device, _ in devices]
        if size == 1:
            ids = []
            self.http.run((self.app("POST", "/v1/messages", message) for message in messages),
                          lambda _, body: ids.append(json.loads(body)["message_id"]))
            return ids
        batches = [messages[at:at + size] for at in range(0, len(messages), size)]
        ids = []

        def note(_, body):
            for result in json.loads(body)["results"]:
                ids.append(result["message_id"])
        self.http.run((self.app("POST", "/v1/messages/batch", {"messages": batch}) for batch in batches), note)
        return ids

    def run(self):
        self.devices = self.register(self.size, "all")
        self.crowd = self.register(CROWD, "crowd")
        self.few = self.devices[:FEW]
        self.collapse()
        self.receipts()
        self.broadcasts()
        self.expiry()
        self.server.stop()

    def collapse(self):
        self.push_to_each(self.devices, KEY)
        ids = []
        self.measure("collapse", FEW, lambda _: ids.extend(self.push_to_each(self.few, KEY, size=1)))
        show = [self.app("GET", f"/v1/messages/{message}") for message in ids[-FEW:]]
        self.measure("report", FEW, lambda _: self.http.run(show))
        scrape = b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n"
        # Made when it is needed: an idle connection is cut.
        ops = Pipe(self.server.place("ops"), 1)
        self.measure("metrics", 100, lambda _: ops.run([scrape] * 100))
        self.one(self.app("POST", "/v1/apps", {"id": "quiet", "name": "quiet"}, ADMIN_KEY))
        key = self.one(self.app("POST", "/v1/apps/quiet/keys", {"name": "k", "scope": "app"}, ADMIN_KEY))["key"]
        other = self.one(self.app("POST", "/v1/devices", {"platform": "other"}, key))["device_id"]
        for _ in range(10):
            self.one(self.app("POST", "/v1/messages", {"audience": {"device": other}, "data": 1}, key))
        page = self.app("GET", "/v1/messages?limit=20", key=key)
        self.measure("quiet list", 200, lambda _: self.http.run([page] * 200))

    def receipts(self):
        message = self.one(self.app("POST", "/v1/messages", {"audience": {"tag": "all"}, "data": 1}))["message_id"]
        report = lambda device: request("POST", f"/v1/messages/{message}/receipts", basic(device), {"step": "delivered"})
        last = [self.devices[-150 * turn - 150:len(self.devices) - 150 * turn] for turn in range(3)]
        self.http.run(report(device) for device in self.devices[:-450])
        self.measure("receipt", 150, lambda turn: self.http.run(map(report, last[turn])))
        page = self.app("GET", f"/v1/messages/{message}/deliveries?limit=100")
        self.measure("deliveries", 50, lambda _: self.http.run([page] * 50))

    def broadcasts(self):
        cast = self.app("POST", "/v1/messages", {"audience": {"tag": "crowd"}, "data": 1})
        self.http.run(cast for _ in range(self.size))

        def cycles(_):
            self.push_to_each(self.few, {}, size=1)
            given = []

            def note(_, body):
                given.append([message["delivery"] for message in json.loads(body)["messages"]])
            self.http.run((request("GET", "/v1/inbox", basic(device)) for device in self.few), note)
            acks = zip(self.few, given)
            self.http.run(request("POST", "/v1/inbox/acks", basic(device), {"deliveries": of}) for device, of in acks)
        # The first round takes what lies there from the rows before.
        cycles(0)
        self.measure("drain", FEW, cycles)
        page = self.app("GET", "/v1/devices?tag=crowd&limit=100")
        self.measure("device list", 50, lambda _: self.http.run([page] * 50))

    def expiry(self):
        """Few are ended in rounds, so that their processor time can be told from that of an idle server."""
        rounds = max(1, min(10, 20_000 // self.size))
        cost, late = [], []
        for _ in range(rounds):
            seconds = 3 + self.size // 4_000
            due = int(time.time()) + seconds
            ids = []
            for at in range(0, self.size, 5_000):
                life = {"ttl_secs": due - int(time.time())}
                ids += self.push_to_each(self.devices[at:at + 5_000], life)
            if time.time() > due - 0.5:
                raise RuntimeError("the messages could not be sent in time")
            time.sleep(due - 0.5 - time.time())
            before, began = self.server.cpu(), time.time()
            # The first that was accepted ends last.
            show = self.app("GET", f"/v1/messages/{ids[0]}")
            time.sleep(max(0, due + 1 - time.time()))
            while self.one(show)["states"].get("expired") != 1:
                time.sleep(0.02)
            late.append(time.time() - due)
            cost.append((self.server.cpu() - before, time.time() - began))
        time.sleep(1)
        before = self.server.cpu()
        time.sleep(2)
        idle = (self.server.cpu() - before) / 2
        spent = [cpu - idle * wall for cpu, wall in cost]
        self.costs["expiry"] = sum(spent) / (rounds * self.size) * 1e6
        self.late = max(late)


def version(program):
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.strip()


def table(sizes, benches):
    print("| µs of the server's processor time for each | " + " | ".join(f"N = {n:,}" for n in sizes) + " | last : first |")
    print("| --- |" + " ---: |" * (len(sizes) + 1))
    worst = 0
    for name in benches[0].costs:
        costs = [bench.costs[name] for bench in benches]
        ratio = costs[-1] / costs[0]
        worst = max(worst, ratio)
        print(f"| {name} | " + " | ".join(f"{cost:,.1f}" for cost in costs) + f" | {ratio:.2f} |")
    late = ", ".join(f"{bench.late:.1f} s (N = {bench.size:,})" for bench in benches)
    print(f"\nThe last of N deliveries due in one second had ended after {late}.")
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--server", default="target/release/postrider")
    parser.add_argument("--sizes", default="1000,10000,100000")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    print(f"{version(args.server)}, {os.uname().machine}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    benches = []
    for size in sizes:
        bench = Bench(args.server, size)
        try:
            bench.run()
        finally:
            if bench.server.process.poll() is None:
                bench.server.process.kill()
        print(f"N = {size:,} is done", file=sys.stderr)
        benches.append(bench)
    worst = table(sizes, benches)
    return 0 if worst <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
