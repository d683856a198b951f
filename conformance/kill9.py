#!/usr/bin/env python3
"""Kills the server with SIGKILL again and again under load; nothing that was accepted may be lost.

    kill9.py --server PATH                     pushes over HTTP to registered MQTT devices
    kill9.py --server PATH --mode mqtt         anonymous MQTT publishers, QoS 1, to kept sessions

Prints one line, `balance accepted=… delivered=… lost=0 phantom=0 dup_unexplained=0 misorder=0 gap=0`, and exits
with 1 when one of the last five is not 0.
"""

import argparse
import http.client
import json
import os
import random
import re
import sys
import tempfile
import threading
import time

from harness import CONFORMANCE, Device, NotHere
from ledger import Ledger, Sight, balanced, words
from mqtt_wire import PUBACK, PUBLISH, V311, Client, Silence, WireError, ack_packet, publish_packet
from server import Server, StartFailed


class Run:
    """What the threads share: where the server is, which of its lives it is, and when to stop."""

    def __init__(self, server, ledger):
        self.server, self.ledger = server, ledger
        self.epoch = 0
        self.up = threading.Event()
        self.publishing = threading.Event()
        self.over = threading.Event()
        self.errors = []
        self.sessions_lost = 0

    def wait_up(self):
        while not self.over.is_set() and not self.up.wait(0.2):
            pass

    def fail(self, text):
        self.errors.append(text)
        print(f"error: {text}", file=sys.stderr, flush=True)


# --- receiving ----------------------------------------------------------------------------------------

class Receiver(threading.Thread):
    """A device: stays connected with a kept session, notes each message and only then acknowledges it."""

    def __init__(self, run, name, user=None, password=None, topic="$push/inbox", read=None):
        super().__init__(daemon=True)
        self.run_state, self.device = run, name
        self.user, self.password, self.topic, self.read = user, password, topic, read
        self.connections = 0
        self.subscribed = threading.Event()

    def run(self):
        while not self.run_state.over.is_set():
            self.run_state.wait_up()
            try:
                self.one_connection()
            except (WireError, OSError):
                # The server was killed, or is not back yet: a moment, so as not to spin.
                time.sleep(0.02)

    def one_connection(self):
        state = self.run_state
        epoch = state.epoch
        with Client(state.server.places["mqtt"], V311, self.device) as client:
            client.auto_ack = False
            answer = client.connect(clean=False, user=self.user, password=self.password)
            if not answer.session_present:
                # Only the first connection may find no session.
                state.sessions_lost += self.subscribed.is_set()
                client.subscribe(self.topic, 1)
            self.subscribed.set()
            self.connections += 1
            self.read_on(client, epoch)

    def read_on(self, client, epoch):
        while not self.run_state.over.is_set():
            try:
                came = client.wait(PUBLISH, timeout=1)
            except Silence:
                client.ping()
                continue
            intent, message_id = self.read(came.payload)
            self.run_state.ledger.receive(self.device, Sight(intent, message_id, epoch, self.connections))
            client.send(ack_packet(PUBACK, came.packet_id))


def read_envelope(payload):
    found = json.loads(payload)
    return as_intent(found["data"]["intent"]), found["id"]


def read_plain(payload):
    return as_intent(payload.decode().split(" ")[0]), None


def as_intent(text):
    publisher, device, number = text.split("~")
    return int(publisher), device, int(number)


def as_text(intent):
    return "~".join(str(part) for part in intent)


# --- publishing ---------------------------------------------------------------------------------------

class Publisher(threading.Thread):
    """Sends to random devices, one message after the other, and repeats each until it is accepted."""

    def __init__(self, run, number, devices, seed, pause):
        super().__init__(daemon=True)
        self.run_state, self.number, self.devices = run, number, devices
        self.chance, self.pause = random.Random(seed), pause
        self.next_number = dict.fromkeys(devices, 0)

    def run(self):
        while self.run_state.publishing.is_set():
            device = self.chance.choice(self.devices)
            intent = (self.number, device, self.next_number[device])
            self.next_number[device] += 1
            self.send_until_accepted(intent)
            time.sleep(self.pause)

    def send_until_accepted(self, intent):
        state = self.run_state
        while not state.over.is_set():
            state.wait_up()
            state.ledger.intend(intent)
            try:
                message_id = self.attempt(intent)
            except (WireError, OSError, http.client.HTTPException):
                self.hang_up()
                time.sleep(0.02)
                continue
            if message_id is not None:
                state.ledger.accept(intent, message_id)
                return

    def hang_up(self):
        pass

    def attempt(self, intent):
        raise NotImplementedError


class HttpPublisher(Publisher):
    connection = None

    def hang_up(self):
        if self.connection:
            self.connection.close()
        self.connection = None

    def attempt(self, intent):
        if self.connection is None:
            self.connection = http.client.HTTPConnection(*self.run_state.server.places["http"], timeout=10)
        key = self.run_state.server.target().app_key
        body = {"audience": {"device": intent[1]}, "notification": {"title": "t", "body": "b"},
                "data": {"intent": as_text(intent)}, "ttl_secs": 86400}
        self.connection.request("POST", "/v1/messages", json.dumps(body), {
            "Authorization": f"Bearer {key}", "Content-Type": "application/json",
            "Idempotency-Key": as_text(intent)})
        answer = self.connection.getresponse()
        data = answer.read()
        if answer.status == 202:
            return json.loads(data)["message_id"]
        if answer.status not in (429, 500, 502, 503, 504):
            self.run_state.fail(f"HTTP {answer.status}: {data[:200]!r}")
        time.sleep(0.05)
        return None


class MqttPublisher(Publisher):
    client = None

    def hang_up(self):
        if self.client:
            self.client.drop()
        self.client = None

    def attempt(self, intent):
        """The answer is the message's id elsewhere; here the acknowledgement stands for it."""
        if self.client is None:
            self.client = Client(self.run_state.server.places["mqtt"])
            self.client.connect()
        payload = as_text(intent) + " " + "x" * 200
        packet_id = self.client.next_id()
        self.client.send(publish_packet(f"kill9/{intent[1]}", payload, 1, packet_id))
        self.client.wait(PUBACK, lambda p: p.packet_id == packet_id)
        return ""


# --- the scene ----------------------------------------------------------------------------------------

def registered_devices(run, count):
    target = run.server.target()
    made = [target.register() for _ in range(count)]
    return [Receiver(run, d.device_id, d.device_id, d.secret, read=read_envelope) for d in made]


def anonymous_subscribers(run, count):
    names = [f"kill9sub{number}" for number in range(count)]
    return [Receiver(run, name, topic=f"kill9/{name}", read=read_plain) for name in names]


def crash_loop(run, cycles, chance):
    slowest = 0.0
    for _ in range(cycles):
        time.sleep(chance.uniform(0.2, 3.0))
        run.up.clear()
        run.server.kill()
        run.epoch += 1
        begun = time.monotonic()
        run.server.start()
        slowest = max(slowest, time.monotonic() - begun)
        run.up.set()
    return slowest


def wait_all_received(run, patience):
    """Until nothing is missing, or until nothing moves any more."""
    left, moved = None, time.monotonic()
    while True:
        now = len(run.ledger.missing())
        if now == 0:
            return
        if now != left:
            left, moved = now, time.monotonic()
        if time.monotonic() - moved > patience:
            return
        time.sleep(0.2)


class Auditor(threading.Thread):
    """Asks the server during the run what is delivered: what it once confirmed may never come again."""

    def __init__(self, run):
        super().__init__(daemon=True)
        self.run_state, self.asked = run, 0

    def run(self):
        chance = random.Random(1)
        while not self.run_state.over.is_set():
            self.run_state.wait_up()
            epoch = self.run_state.epoch
            with self.run_state.ledger.lock:
                recent = list(self.run_state.ledger.accepted.items())[-300:]
            for intent, message_id in chance.sample(recent, min(len(recent), 10)):
                self.ask(intent, message_id, epoch)
            time.sleep(0.05)

    def ask(self, intent, message_id, epoch):
        try:
            found = self.run_state.server.target().delivery(message_id, Device(intent[1], ""))
        except (OSError, http.client.HTTPException, ValueError):
            return
        if found and found["state"] == "delivered":
            self.asked += 1
            self.run_state.ledger.confirm(intent[1], intent, epoch)


def count_open(run, patience=20):
    """Accepted deliveries that the server does not report as delivered, plus its own accounting gap."""
    target = run.server.target()
    waiting = list(run.ledger.accepted.items())
    deadline = time.monotonic() + patience
    while waiting and time.monotonic() < deadline:
        waiting = [(intent, message) for intent, message in waiting
                   if (target.delivery(message, Device(intent[1], "")) or {}).get("state") != "delivered"]
    return len(waiting) + accounting_gap(run)


def accounting_gap(run):
    if "ops" not in run.server.places:
        return 0
    connection = http.client.HTTPConnection(*run.server.places["ops"], timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.findall(r"^postrider_accounting_gap(?:\{[^}]*\})? (\S+)", text, re.MULTILINE)
    return int(sum(abs(float(value)) for value in found))


def play(options, folder):
    http_mode = options.mode == "http"
    profile = None if http_mode else CONFORMANCE
    ledger = Ledger()
    server = Server(options.server, os.path.join(folder, "data"), profile, os.path.join(folder, "server.log"))
    run = Run(server.with_fixed_ports().start(), ledger)
    try:
        run.up.set()
        receivers = (registered_devices if http_mode else anonymous_subscribers)(run, options.devices)
        start_and_wait(receivers)
        run.publishing.set()
        kind = HttpPublisher if http_mode else MqttPublisher
        names = [receiver.device for receiver in receivers]
        publishers = [kind(run, n, names, options.seed + n, options.pause) for n in range(options.publishers)]
        extra = [Auditor(run)] if http_mode else []
        for thread in publishers + extra:
            thread.start()
        slowest = crash_loop(run, options.cycles, random.Random(options.seed))
        run.publishing.clear()
        for publisher in publishers:
            publisher.join(30)
        wait_all_received(run, options.patience)
        ledger.open_at_end = count_open(run) if http_mode else 0
        return run, slowest
    except StartFailed as error:
        sys.exit(f"the server did not come back (life {run.epoch}): {error}\n{server.last_words()}")
    finally:
        run.over.set()
        server.stop()


def start_and_wait(receivers):
    for receiver in receivers:
        receiver.start()
    for receiver in receivers:
        if not receiver.subscribed.wait(30):
            raise NotHere(f"{receiver.device} could not subscribe")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--mode", choices=["http", "mqtt"], default="http")
    parser.add_argument("--devices", type=int, default=40)
    parser.add_argument("--publishers", type=int, default=8)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two messages of a publisher")
    parser.add_argument("--patience", type=float, default=20, help="seconds without progress that end the drain")
    parser.add_argument("--seed", type=int, default=None)
    return parser.parse_args()


def main():
    options = arguments()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    print(f"kill9 mode={options.mode} seed={options.seed} cycles={options.cycles} devices={options.devices} "
          f"publishers={options.publishers}", flush=True)
    with tempfile.TemporaryDirectory(prefix="kill9-") as folder:
        run, slowest = play(options, folder)
    result = run.ledger.balance(attempts_excuse=options.mode == "mqtt")
    repeats = sum(len(sights) - len(run.ledger.received_intents(device)) for device, sights in run.ledger.seen.items())
    print(f"crashes={options.cycles} ready_max={slowest:.2f}s repeats={repeats} sessions_lost={run.sessions_lost}")
    print(words(result), flush=True)
    good = balanced(result) and not run.errors and not run.sessions_lost and result["accepted"] > 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
