"""The load of the abuse tests: publishers and devices that keep a ledger while the server is mistreated.

The ledger lives in this process, which nothing kills. Publishers repeat each message until it is accepted; devices
note each message first and acknowledge it then.
"""

import base64
import http.client
import json
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass

from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from harness import NotHere
from ledger import TOLERANCE_SECS, Ledger, Sight, balanced
from mqtt_wire import PUBACK, PUBLISH, V311, Client, Silence, WireError, ack_packet, publish_packet
from xmpp_wire import CLIENT, SM, Session

# Any client may do everything, limits that count one address's clients are off, and nothing is evicted.
OPEN_TO_ALL = {
    "access.anonymous": "true",
    "access.publish": '["#"]',
    "access.subscribe": '["#"]',
    "limits.connects_per_minute_max": 0,
    "limits.inbox_max": 1_000_000,
    "limits.inbox_bytes_max": 1_000_000_000,
    "gateway.publishes_per_sec": 0,
    "gateway.per_address_max": 0,
    "gateway.unauthenticated_per_address_max": 0,
    "gateway.failures_burst": 0,
    "http.pushes_per_sec": 0, "http.bytes_per_sec": 0,
    "store.min_free_bytes": 0,
    "store.min_free_percent": 0,
}


class Run:
    """What the threads share: where the server is, which of its lives it is, and when to stop."""

    def __init__(self, server, ledger):
        self.server, self.ledger = server, ledger
        self.epoch = 0
        self.up = threading.Event()
        self.publishing = threading.Event()
        self.over = threading.Event()
        self.refusals = Counter()
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
            except (WireError, OSError, http.client.HTTPException, WebSocketException, ValueError):
                # The server was killed, perhaps in the middle of an answer, or is not back yet: a moment, so as not to spin.
                time.sleep(0.02)

    def one_connection(self):
        with self.signed_in() as client:
            self.read_on(client, lambda: self.run_state.over.is_set())

    def signed_in(self):
        state = self.run_state
        self.epoch, self.opened = state.epoch, time.monotonic()
        client = Client(state.server.places["mqtt"], V311, self.device)
        client.auto_ack = False
        try:
            answer = client.connect(clean=False, user=self.user, password=self.password)
            if not answer.session_present:
                # Only the first connection may find no session.
                state.sessions_lost += self.subscribed.is_set()
                client.subscribe(self.topic, 1)
        except BaseException:
            client.drop()
            raise
        self.subscribed.set()
        self.connections += 1
        return client

    def read_on(self, client, enough):
        while not enough():
            try:
                came = client.wait(PUBLISH, timeout=1)
            except Silence:
                client.ping()
                continue
            intent, message_id = self.read(came.payload)
            sight = Sight(intent, message_id, self.epoch, self.connections, self.opened)
            self.run_state.ledger.receive(self.device, sight)
            client.send(ack_packet(PUBACK, came.packet_id))


class WebReceiver(Receiver):
    """The same by one of the roads of browsers and scripts: frames with deliveries, noted first and acknowledged then."""

    def one_connection(self):
        state = self.run_state
        self.epoch, self.opened = state.epoch, time.monotonic()
        self.connections += 1
        self.receive_until(state.over.is_set)

    def note(self, frames):
        """Gives those back that are to be acknowledged."""
        for frame in frames:
            found = frame["message"]
            sight = Sight(as_intent(found["data"]["intent"]), found["id"], self.epoch, self.connections, self.opened)
            self.run_state.ledger.receive(self.device, sight)
        return [frame["delivery"] for frame in frames]

    def http(self, timeout=10):
        return http.client.HTTPConnection(*self.run_state.server.places["http"], timeout=timeout)

    def ask(self, connection, method, path, body=None):
        basic = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise WireError(f"{method} {path}: HTTP {answer.status}")
        return answer


class SocketReceiver(WebReceiver):
    def receive_until(self, enough):
        host, port = self.run_state.server.places["http"]
        with connect(f"ws://{host}:{port}/ws", open_timeout=5, close_timeout=1, compression=None) as socket:
            socket.send(json.dumps({"type": "hello", "device": self.user, "secret": self.password}))
            while not enough():
                try:
                    frame = json.loads(socket.recv(1))
                except TimeoutError:
                    socket.send('{"type":"ping"}')
                    continue
                if frame["type"] == "welcome":
                    self.subscribed.set()
                elif frame["type"] == "push":
                    socket.send(json.dumps({"type": "ack", "deliveries": self.note([frame])}))


class StreamReceiver(WebReceiver):
    def receive_until(self, enough):
        stream, acks = self.http(timeout=1), self.http()
        try:
            answer = self.ask(stream, "GET", "/v1/stream")
            self.subscribed.set()
            lines = b""
            while not enough():
                try:
                    part = answer.read1(65536)
                except TimeoutError:
                    continue
                if not part:
                    return
                *whole, lines = (lines + part).split(b"\n")
                frames = [json.loads(line[6:]) for line in whole if line.startswith(b'data: {"type":"push"')]
                if frames:
                    self.ask(acks, "POST", "/v1/stream/acks", {"deliveries": self.note(frames)}).read()
        finally:
            stream.close()
            acks.close()


class PollReceiver(WebReceiver):
    def receive_until(self, enough):
        connection = self.http()
        try:
            while not enough():
                frames = json.loads(self.ask(connection, "GET", "/v1/inbox?wait=1").read())["messages"]
                self.subscribed.set()
                if frames:
                    self.ask(connection, "POST", "/v1/inbox/acks", {"deliveries": self.note(frames)}).read()
        finally:
            connection.close()


class XmppReceiver(WebReceiver):
    """Over STARTTLS; its arrival is known by the answer to a ping."""
    manages_stream = False

    def receive_until(self, enough):
        place = self.run_state.server.places["xmpp"]
        with Session(place, self.user, self.password, silence=1, available=False) as session:
            if self.manages_stream:
                session.send(f'<enable xmlns="{SM}"/>')
                session.next(f"{{{SM}}}enabled")
            session.send("<presence/>")
            self.subscribed.set()
            handled = 0
            while not enough():
                try:
                    stanza = session.read_stanza()
                except TimeoutError:
                    session.send(" ")
                    continue
                handled += stanza.tag.startswith(CLIENT)
                envelope = stanza.find("{urn:xmpp:json:0}json")
                if envelope is not None:
                    self.note([{"message": json.loads(envelope.text), "delivery": None}])
                elif stanza.tag == f"{{{SM}}}r":
                    session.send(f'<a xmlns="{SM}" h="{handled}"/>')
                else:
                    session.handle(stanza)


class ManagedXmppReceiver(XmppReceiver):
    """The same, by stream management."""
    manages_stream = True


ROADS = {"mqtt": Receiver, "websocket": SocketReceiver, "sse": StreamReceiver, "poll": PollReceiver,
         "xmpp": XmppReceiver, "xmpp_managed": ManagedXmppReceiver}


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
            self.send_until_accepted(self.next_intent(self.chance.choice(self.devices)))
            time.sleep(self.pause)

    def next_intent(self, device):
        intent = (self.number, device, self.next_number[device])
        self.next_number[device] += 1
        return intent

    def send_until_accepted(self, intent, ttl=None):
        """False: the run was over before."""
        state = self.run_state
        while not state.over.is_set():
            state.wait_up()
            state.ledger.intend(intent, ttl)
            try:
                message_id = self.attempt(intent, ttl)
            except (WireError, OSError, http.client.HTTPException):
                self.hang_up()
                time.sleep(0.02)
                continue
            if message_id is not None:
                state.ledger.accept(intent, message_id)
                return True
        return False

    def hang_up(self):
        pass

    def attempt(self, intent, ttl):
        raise NotImplementedError


class HttpPublisher(Publisher):
    connection = None

    def hang_up(self):
        if self.connection:
            self.connection.close()
        self.connection = None

    def attempt(self, intent, ttl):
        if self.connection is None:
            self.connection = http.client.HTTPConnection(*self.run_state.server.places["http"], timeout=10)
        key = self.run_state.server.target().app_key
        body = {"audience": {"device": intent[1]}, "notification": {"title": "t", "body": "b"},
                "data": {"intent": as_text(intent)}, "ttl_secs": ttl or 86400}
        self.connection.request("POST", "/v1/messages", json.dumps(body), {
            "Authorization": f"Bearer {key}", "Content-Type": "application/json",
            "Idempotency-Key": as_text(intent)})
        answer = self.connection.getresponse()
        data = answer.read()
        if answer.status == 202:
            return json.loads(data)["message_id"]
        if answer.status not in (429, 500, 502, 503, 504):
            self.run_state.fail(f"HTTP {answer.status}: {data[:200]!r}")
        self.run_state.refusals[answer.status, json.loads(data)["error"]["code"]] += 1
        time.sleep(0.05)
        return None


class MqttPublisher(Publisher):
    client = None

    def hang_up(self):
        if self.client:
            self.client.drop()
        self.client = None

    def attempt(self, intent, ttl):
        """The answer is the message's id elsewhere; here the acknowledgement stands for it."""
        if self.client is None:
            self.client = Client(self.run_state.server.places["mqtt"])
            self.client.connect()
        payload = as_text(intent) + " " + "x" * 200
        packet_id = self.client.next_id()
        self.client.send(publish_packet(f"abuse/{intent[1]}", payload, 1, packet_id))
        self.client.wait(PUBACK, lambda p: p.packet_id == packet_id)
        return ""


class Sleeper(HttpPublisher):
    """A device that is away when its messages are sent, and its sender: judges the end of messages (P6).

    Each time it is sent one of a short life and one of a long one, comes back after the first one's end, and
    reads until the second came. Order makes that a fence: the first would have come before.
    """

    def __init__(self, run, number, receiver, seed):
        super().__init__(run, number, [receiver.device], seed, 0)
        self.receiver = receiver

    def run(self):
        state = self.run_state
        while state.publishing.is_set():
            short, fence = (self.next_intent(self.receiver.device) for _ in range(2))
            ttl = self.chance.choice([1, 2, 4])
            if not self.send_until_accepted(short, ttl) or not self.send_until_accepted(fence):
                return
            self.sleep_until(state.ledger.terms[short].accepted + ttl + TOLERANCE_SECS, short)
            self.read_until(fence)

    def sleep_until(self, end, short):
        while (left := end - time.monotonic()) > 0 and not self.run_state.over.is_set():
            self.watch(short)
            time.sleep(min(left, 0.3))

    def watch(self, intent):
        """Asks whether it has ended already. The time is taken after the answer, in the server's favour."""
        if self.run_state.up.is_set():
            try:
                found = delivery(self.run_state, intent)
            except (OSError, http.client.HTTPException, ValueError):
                return
            if found and found["state"] == "expired":
                self.run_state.ledger.expire(intent)

    def read_until(self, fence):
        state = self.run_state
        while not state.over.is_set():
            state.wait_up()
            try:
                with self.receiver.signed_in() as client:
                    self.receiver.read_on(client, lambda: self.has_seen(fence))
                    # What it acknowledged last is on its way; its own goodbye comes after that.
                    client.auto_ack = True
                    client.disconnect()
                    return
            except (WireError, OSError):
                time.sleep(0.02)

    def has_seen(self, intent):
        return self.run_state.over.is_set() or intent in self.run_state.ledger.received_intents(self.receiver.device)


# --- asking the server --------------------------------------------------------------------------------

def delivery(run, intent, connection=None):
    """What the server says of an accepted delivery; None where it does not know it."""
    target = run.server.target()
    mine = connection or http.client.HTTPConnection(*target.http, timeout=15)
    try:
        path = f"/v1/messages/{run.ledger.accepted[intent]}/deliveries/{intent[1]}"
        mine.request("GET", path, headers={"Authorization": f"Bearer {target.app_key}"})
        answer = mine.getresponse()
        data = answer.read()
        return json.loads(data) if answer.status == 200 else None
    finally:
        if connection is None:
            mine.close()


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
                recent = [intent for intent, message in list(self.run_state.ledger.accepted.items())[-300:] if message]
            for intent in chance.sample(recent, min(len(recent), 10)):
                self.ask(intent, epoch)
            time.sleep(0.05)

    def ask(self, intent, epoch):
        try:
            found = delivery(self.run_state, intent)
        except (OSError, http.client.HTTPException, ValueError):
            return
        if found and found["state"] == "delivered":
            self.asked += 1
            self.run_state.ledger.confirm(intent[1], intent, epoch)
        if found and found["state"] == "expired":
            self.run_state.ledger.expire(intent)


def count_open(run, patience):
    """Accepted pushes of whose end the server does not know, plus its own accounting gap.

    Ends when all have ended or when for `patience` seconds none more has.
    """
    waiting = [intent for intent, message in run.ledger.accepted.items() if message]
    connection = http.client.HTTPConnection(*run.server.places["http"], timeout=15)
    moved = time.monotonic()
    while waiting and time.monotonic() - moved < patience:
        still = [intent for intent in waiting if not has_ended(run, intent, connection)]
        moved = time.monotonic() if len(still) < len(waiting) else moved
        waiting = still
    connection.close()
    return len(waiting) + accounting_gap(run)


def has_ended(run, intent, connection):
    state = (delivery(run, intent, connection) or {}).get("state")
    if state == "expired":
        run.ledger.expire(intent)
    return state in ("delivered", "expired")


def accounting_gap(run):
    if "ops" not in run.server.places:
        return 0
    connection = http.client.HTTPConnection(*run.server.places["ops"], timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.findall(r"^postrider_accounting_gap(?:\{[^}]*\})? (\S+)", text, re.MULTILINE)
    return int(sum(abs(float(value)) for value in found))


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


# --- the whole ----------------------------------------------------------------------------------------

@dataclass
class Size:
    """How many of what. Pushes go to registered devices, publishes to anonymous kept sessions."""
    devices: int = 12
    subscribers: int = 8
    push_publishers: int = 4
    mqtt_publishers: int = 2
    sleepers: int = 4
    # Seconds between two messages of a publisher.
    pause: float = 0.005
    # How registered devices receive, in turn.
    roads: tuple = ("mqtt", "websocket", "sse", "poll")


class Load:
    """Starts the server with its devices and publishers; `settle` ends the sending and waits for the rest."""

    def __init__(self, server, size, seed, patience=20):
        self.server, self.size, self.seed, self.patience = server, size, seed, patience
        self.run = Run(server, Ledger())

    def __enter__(self):
        try:
            self.server.with_fixed_ports().start()
            self.run.up.set()
            self.start_threads()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.run.over.set()
        self.server.stop()

    def start_threads(self):
        run, size = self.run, self.size
        devices = self.registered_devices(size.devices, size.roads)
        subscribers = self.anonymous_subscribers(size.subscribers)
        away = self.registered_devices(size.sleepers)
        start_and_wait(devices + subscribers)
        for device in away:
            device.signed_in().disconnect()
        pushed, published = ([r.device for r in group] for group in (devices, subscribers))
        sleepers = [Sleeper(run, 200 + n, device, self.seed + 200 + n) for n, device in enumerate(away)]
        self.publishers = sleepers + [
            HttpPublisher(run, n, pushed, self.seed + n, size.pause) for n in range(size.push_publishers)
        ] + [
            MqttPublisher(run, 100 + n, published, self.seed + 100 + n, size.pause)
            for n in range(size.mqtt_publishers)
        ]
        run.publishing.set()
        for thread in self.publishers + ([Auditor(run)] if pushed else []):
            thread.start()

    def registered_devices(self, count, roads=("mqtt",)):
        target = self.server.target()
        made = [(target.register(), ROADS[roads[n % len(roads)]]) for n in range(count)]
        return [by(self.run, d.device_id, d.device_id, d.secret, read=read_envelope) for d, by in made]

    def anonymous_subscribers(self, count):
        names = [f"abusesub{number}" for number in range(count)]
        return [Receiver(self.run, name, topic=f"abuse/{name}", read=read_plain) for name in names]

    def down(self):
        """The server is about to be ended: nobody needs to try."""
        self.run.up.clear()

    def back(self):
        self.run.epoch += 1
        self.run.up.set()

    def settle(self):
        """No more is sent; what was accepted has to arrive. Returns the balance."""
        self.run.publishing.clear()
        deadline = time.monotonic() + 60
        for publisher in self.publishers:
            publisher.join(max(0.0, deadline - time.monotonic()))
            if publisher.is_alive():
                self.run.fail(f"publisher {publisher.number} could not get rid of its last message")
        wait_all_received(self.run, self.patience)
        self.run.ledger.open_at_end = count_open(self.run, self.patience)
        return self.run.ledger.balance()

    def is_good(self, balance):
        nothing_else = not self.run.errors and not self.run.sessions_lost
        return balanced(balance) and nothing_else and balance["accepted"] > 0

    def repeats(self):
        ledger = self.run.ledger
        return sum(len(sights) - len(ledger.received_intents(device)) for device, sights in ledger.seen.items())


def start_and_wait(receivers):
    for receiver in receivers:
        receiver.start()
    for receiver in receivers:
        if not receiver.subscribed.wait(30):
            raise NotHere(f"{receiver.device} could not subscribe")


def fresh_seed(wanted):
    return random.SystemRandom().randrange(1 << 32) if wanted is None else wanted


def log_of(folder):
    return os.path.join(folder, "server.log")
