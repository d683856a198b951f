#!/usr/bin/env python3
"""The three flaws that androidpn had, each looked for: (a) a phone that receives nothing any more after a while, (b) a server
that becomes unsteady, (c) nobody who knows what arrived.

Phones of androidpn and clients with stream management live behind a path that goes dead without a word, as a NAT does; they
fall asleep; the server is killed and comes back. Pushes flow meanwhile. At the end every push that was accepted has to be in
its phone's own log and `delivered` in the report, and nothing else in either; and at no time may the report have claimed
what the log does not have.

    three_flaws.py --server PATH [--cycles N] [--phones N] [--seed N]
"""

import argparse
import base64
import http.client
import json
import random
import select
import socket
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from androidpn_phone import Phone
from harness import CONFORMANCE
from server import APP_KEY, Server
from xmpp_wire import BIND, CLIENT, SASL, SM, Living, Lost

# Of the settings: a lost path is found out within three times as long.
PROMPT = {"xmpp.probe_after_secs": 2, "xmpp.answer_timeout_secs": 3, "xmpp.scram": "false", "http.pushes_per_sec": 0, "http.bytes_per_sec": 0}
COMES_BACK = 1.0
SETTLES_WITHIN = 60


class DeadPath:
    """A TCP forwarder. While it is dead it takes bytes and connections, and passes nothing on. Flows of before never live
    again: once the path is back, whoever speaks on such a flow is told that nobody knows it."""

    def __init__(self, server):
        self.server = server
        self.is_dead = False
        self.generation = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.place = self.listener.getsockname()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.forward, args=(near,), daemon=True).start()

    def die(self):
        self.is_dead, self.generation = True, self.generation + 1

    def live(self):
        self.is_dead = False

    def forward(self, near):
        born = self.generation
        try:
            far = None if self.is_dead else socket.create_connection(self.server.places["xmpp"], timeout=5)
        except OSError:
            return near.close()
        try:
            self.carry(near, far, born)
        except OSError:
            pass
        near.close()
        # Its other end hears nothing of it while the path is dead: the socket is kept until it ends by itself.
        if far is not None and born == self.generation:
            far.close()
        elif far is not None:
            self.drain(far)

    def carry(self, near, far, born):
        while far is not None and born == self.generation:
            ready, _, _ = select.select([near, far], [], [], 0.2)
            for one in ready if born == self.generation else []:
                came = one.recv(65536)
                if not came:
                    return
                (far if one is near else near).sendall(came)
        # The flow is dead. What the phone says is lost; once the path is back, it is refused.
        while True:
            ready, _, _ = select.select([near], [], [], 0.2)
            if ready and (not near.recv(65536) or not self.is_dead):
                return

    @staticmethod
    def drain(far):
        """The server's answers go nowhere until it closes."""
        def swallow():
            far.settimeout(120)
            try:
                while far.recv(65536):
                    pass
            except OSError:
                pass
            far.close()
        threading.Thread(target=swallow, daemon=True).start()

    def close(self):
        self.listener.close()


class Sleeper(Phone):
    """A phone that can fall asleep: its socket stays and nobody reads it."""

    def __init__(self, place, **fields):
        super().__init__(place, **fields)
        self.silence = 1.5
        self.awake = threading.Event()
        self.awake.set()

    def handle(self, stanza):
        self.awake.wait()
        super().handle(stanza)

    def log(self):
        return [shown["id"] for shown in list(self.notifications)]

    def name(self):
        return self.username


class Modern(Living):
    """A client with XEP-0198 that resumes where it can."""

    def __init__(self, place, user, secret):
        super().__init__(place, COMES_BACK, silence=1.5)
        self.user, self.secret = user, secret
        self.seen, self.resumptions, self.begun = [], 0, 0
        self.stream, self.handled, self.counts = None, 0, False
        self.awake = threading.Event()
        self.awake.set()

    def on_silence(self):
        self.send(" ")

    def enter(self):
        self.counts = False
        self.open_socket()
        self.open_stream()
        self.start_tls()
        token = base64.b64encode(f"\0{self.user}\0{self.secret}".encode()).decode()
        self.send(f'<auth xmlns="{SASL}" mechanism="PLAIN">{token}</auth>')
        answer = self.read_stanza()
        if answer.tag != f"{{{SASL}}}success":
            raise Lost(ET.tostring(answer).decode())
        self.open_stream()
        if self.stream is not None:
            self.send(f'<resume xmlns="{SM}" previd="{self.stream}" h="{self.handled}"/>')
            answer = self.read_stanza()
            if answer.tag == f"{{{SM}}}resumed":
                self.resumptions += 1
                self.counts = True
                if answer.get("h") == "0":
                    # What it said first on the stream was lost on the way (XEP-0198 §5): without it nothing is sent to it.
                    self.send("<presence/>")
                return self.signed_in.set()
            self.stream = None
        self.ask("set", f'<bind xmlns="{BIND}"><resource>modern</resource></bind>')
        self.send(f'<enable xmlns="{SM}" resume="true"/>')
        self.stream, self.handled, self.counts = self.read_stanza().get("id"), 0, True
        self.begun += 1
        self.send("<presence/>")
        self.signed_in.set()

    def handle(self, stanza):
        self.awake.wait()
        if stanza.tag == f"{{{SM}}}r":
            return self.send(f'<a xmlns="{SM}" h="{self.handled}"/>')
        if stanza.tag.startswith(CLIENT):
            if stanza.tag == f"{CLIENT}message":
                self.seen.append(stanza.get("id"))
            self.handled += self.counts

    def log(self):
        return list(self.seen)

    def name(self):
        return self.user


class Sender(threading.Thread):
    """Pushes to one phone after the other, with a key each, and tries again until it is accepted."""

    def __init__(self, server, phones, every):
        super().__init__(daemon=True)
        self.server, self.phones, self.every = server, phones, every
        self.accepted, self.attempts = {}, 0
        self.ends = threading.Event()

    def call(self, method, path, body=None, key=None):
        connection = http.client.HTTPConnection(*self.server.places["http"], timeout=15)
        headers = {"Authorization": f"Bearer {APP_KEY}", "Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def run(self):
        number = 0
        while not self.ends.is_set():
            phone = self.phones[number % len(self.phones)]
            body = {"audience": {"device": phone.name()}, "ttl_secs": 3600,
                    "notification": {"title": f"push {number}", "body": "b"}}
            while not self.ends.is_set():
                self.attempts += 1
                try:
                    status, answer = self.call("POST", "/v1/messages", body, key=f"push-{number}")
                except (OSError, http.client.HTTPException, ValueError):
                    status, answer = 0, None
                if status == 202:
                    self.accepted[answer["message_id"]] = phone
                    break
                time.sleep(0.1)
            number += 1
            self.ends.wait(self.every)

    def state(self, message):
        return self.call("GET", f"/v1/messages/{message}/deliveries/{self.accepted[message].name()}")[1]["state"]


class Judge:
    def __init__(self, options):
        self.options = options
        self.random = random.Random(options.seed)
        self.faults = []

    def begin(self, folder):
        self.server = Server(self.options.server, str(folder / "data"), CONFORMANCE, str(folder / "server.log"),
                             settings=PROMPT).with_fixed_ports().start()
        self.path = DeadPath(self.server)
        old = [Sleeper(self.path.place, comes_back=COMES_BACK).start() for _ in range(self.options.phones)]
        modern = [Modern(self.path.place, *self.register(n)).start() for n in range(self.options.phones)]
        self.phones = old + modern
        for phone in self.phones:
            assert phone.signed_in.wait(60), phone.errors
        self.sender = Sender(self.server, self.phones, 0.02)
        self.sender.start()

    def register(self, number):
        body = {"device_id": f"modern-{number}", "platform": "desktop"}
        made = Sender(self.server, [], 0).call("POST", "/v1/devices", body)[1]
        return made["device_id"], made["device_secret"]

    def cycle(self, number):
        """One thing goes wrong, and heals."""
        what = ("path", "sleep", "server")[number % 3] if number < 3 else self.random.choice(["path", "path", "sleep", "server"])
        if what == "path":
            self.path.die()
            time.sleep(self.random.uniform(0.5, 7))
            self.path.live()
        elif what == "sleep":
            asleep = self.random.sample(self.phones, len(self.phones) // 2)
            for phone in asleep:
                phone.awake.clear()
            time.sleep(self.random.uniform(0.5, 7))
            for phone in asleep:
                phone.awake.set()
        else:
            self.server.kill()
            time.sleep(self.random.uniform(0, 1))
            self.server.start()
        back = self.wait_for_phones()
        self.claims()
        print(f"cycle {number}: {what}; all back after {back:.1f} s; {len(self.sender.accepted)} accepted", flush=True)

    def wait_for_phones(self):
        """Seconds until each phone has something that was accepted from now on."""
        begun, before = time.monotonic(), len(self.sender.accepted)
        waiting = set(self.phones)
        while waiting and time.monotonic() < begun + SETTLES_WITHIN:
            newer = list(self.sender.accepted.items())[before:]
            waiting -= {phone for message, phone in newer if message in phone.log()}
            time.sleep(0.02)
        for phone in waiting:
            self.faults.append(f"(a) {phone.name()} receives nothing {SETTLES_WITHIN} s after; {phone.errors[-3:]}")
        return time.monotonic() - begun

    def claims(self):
        """At no time may the report claim what the phone's own log does not have (c)."""
        for message in self.random.sample(sorted(self.sender.accepted), min(20, len(self.sender.accepted))):
            state = self.sender.state(message)
            if state == "delivered" and message not in self.sender.accepted[message].log():
                self.faults.append(f"(c) {message} is said to be delivered, and its phone does not have it")

    def balance(self):
        self.sender.ends.set()
        self.sender.join(30)
        accepted = self.sender.accepted
        deadline = time.monotonic() + SETTLES_WITHIN
        open_ones = set(accepted)
        while open_ones and time.monotonic() < deadline:
            open_ones = {message for message in open_ones if self.sender.state(message) != "delivered"}
            time.sleep(0.1)
        logs = {phone: phone.log() for phone in self.phones}
        lost = [m for m, phone in accepted.items() if m not in logs[phone]]
        unproven = [m for m in open_ones if m in logs[accepted[m]]]
        phantoms = [m for phone, log in logs.items() for m in log if accepted.get(m) is not phone]
        doubles = sum(len(log) - len(set(log)) for log in logs.values())
        for fault, found in (("lost", lost), ("unproven", unproven), ("phantom", phantoms)):
            if found:
                self.faults.append(f"{fault}: {len(found)}, such as {found[:3]}")
        registered_anew = sum(phone.registrations - 1 for phone in self.phones if isinstance(phone, Sleeper))
        if registered_anew:
            self.faults.append(f"{registered_anew} phones lost their account")
        resumed = sum(phone.resumptions for phone in self.phones if isinstance(phone, Modern))
        print(f"{doubles} came twice, {resumed} streams were resumed")
        print(f"balance accepted={len(accepted)} delivered={len(accepted) - len(open_ones)} lost={len(lost)} "
              f"phantom={len(phantoms)} unproven={len(unproven)}")

    def run(self, folder):
        try:
            self.begin(folder)
            for number in range(self.options.cycles):
                self.cycle(number)
            self.balance()
            log = (folder / "server.log").read_text(errors="replace")
            if "panicked at" in log:
                self.faults.append("the server panicked")
        finally:
            for phone in getattr(self, "phones", []):
                phone.awake.set()
                phone.stop()
            self.server.stop()
        for fault in self.faults:
            print("FAULT", fault)
        return 1 if self.faults else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="path of the postrider binary")
    parser.add_argument("--cycles", type=int, default=6, help="things that go wrong (6)")
    parser.add_argument("--phones", type=int, default=4, help="phones of each kind (4)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="flaws-") as folder:
        return Judge(options).run(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
