"""What all suites share: a case, the server under judgement, and plain assertions.

A case is a function that takes a `Target` and raises when the server is wrong. It waits for events, never
for time to pass, unless the passing of time is what it judges.
"""

import http.client
import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Callable

from mqtt_wire import Client, V5, V311, unique

CONFORMANCE, DEFAULT = "conformance", "default"


class Unmet(AssertionError):
    """The server did not do what the case demands."""


class NotHere(Exception):
    """The case cannot be judged on this machine or server: it is left out, and said so."""


def check(condition, words):
    if not condition:
        raise Unmet(words)


def equal(got, wanted, what):
    if got != wanted:
        raise Unmet(f"{what}: got {got!r}, wanted {wanted!r}")


def eventually(question, words, timeout=40.0, every=0.02):
    """Asks until the answer is true. For state that has no event to wait for, such as a report over HTTP."""
    deadline = time.monotonic() + timeout
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Unmet(f"not in {timeout:.0f} s: {words}")
        time.sleep(every)


@dataclass
class Case:
    name: str
    run: Callable
    profile: str = CONFORMANCE
    needs_http: bool = False


class Suite:
    """Collects cases; `@suite.case()` takes the name from the function. `rows`: how many rows of a table, by protocol."""

    def __init__(self, name, rows=None):
        self.name = name
        self.rows = rows or {}
        self.cases = []

    def case(self, profile=CONFORMANCE, needs_http=False):
        def register(function):
            self.add(function.__name__, function, profile, needs_http)
            return function
        return register

    def add(self, name, function, profile=CONFORMANCE, needs_http=False):
        self.cases.append(Case(name, function, profile, needs_http))


@dataclass
class Device:
    device_id: str
    secret: str


_sources = itertools.count(0)


@dataclass
class Target:
    """The server a case talks to. `http` is None for a foreign broker."""
    mqtt: tuple
    profile: str = CONFORMANCE
    http: tuple = None
    app_key: str = ""
    admin_key: str = ""
    xmpp: tuple = None
    notes: dict = field(default_factory=dict)

    def client(self, version=V311, client_id=None, **fields):
        """A connected client."""
        made = Client(self.mqtt, version, client_id)
        made.connect(**fields)
        return made

    def raw(self, version=V311, client_id=None, source=None):
        """A client that has only opened its TCP connection."""
        return Client(self.mqtt, version, client_id, source=source)

    def fresh_source(self):
        """A loopback address of its own, so that limits by address do not join unrelated cases.

        A foreign broker may sit elsewhere; then the system chooses.
        """
        if not self.mqtt[0].startswith("127."):
            return None
        number = next(_sources)
        return f"127.2.{number // 250 % 250}.{number % 250 + 1}"

    # The HTTP API.

    def call(self, method, path, body=None, key=None, headers=None, expect=None):
        """(status, decoded JSON or None)."""
        connection = http.client.HTTPConnection(*self.http, timeout=60)
        fields = {"Authorization": f"Bearer {key or self.app_key}", **(headers or {})}
        data = None
        if body is not None:
            data, fields["Content-Type"] = json.dumps(body), "application/json"
        try:
            connection.request(method, path, data, fields)
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        if expect is not None and answer.status != expect:
            raise Unmet(f"{method} {path}: HTTP {answer.status}, wanted {expect}: {raw[:300]!r}")
        return answer.status, json.loads(raw) if raw[:1] in (b"{", b"[") else None

    def register(self, tags=(), alias=None, platform="android"):
        body = {"platform": platform, "tags": list(tags)}
        if alias:
            body["alias"] = alias
        connection_status, made = self.call("POST", "/v1/devices", body)
        check(connection_status in (200, 201), f"POST /v1/devices: HTTP {connection_status}: {made}")
        return Device(made["device_id"], made["device_secret"])

    def sign_in(self, device, version=V311, clean=False, inbox=True, **fields):
        """A device's connection as an SDK would make it."""
        if version == V5 and not clean:
            fields.setdefault("properties", {"session_expiry": 3600})
        made = Client(self.mqtt, version, device.device_id, source=self.fresh_source())
        made.connack = made.connect(clean=clean, user=device.device_id, password=device.secret, **fields)
        if inbox:
            made.subscribe("$push/inbox", 1)
        return made

    def push(self, audience, title="t", headers=None, expect=202, **fields):
        body = {"audience": audience, "notification": {"title": title, "body": "b"}, "ttl_secs": 3600, **fields}
        return self.call("POST", "/v1/messages", body, headers=headers, expect=expect)[1]

    def delivery(self, message_id, device):
        path = f"/v1/messages/{message_id}/deliveries/{device.device_id}"
        status, found = self.call("GET", path)
        return found if status == 200 else None

    def await_state(self, message_id, device, state):
        def reached():
            found = self.delivery(message_id, device)
            return found if found and found["state"] == state else None
        try:
            return eventually(reached, state)
        except Unmet:
            raise Unmet(f"delivery is not {state} but {self.delivery(message_id, device)}") from None


def topic(*levels):
    """A topic tree of this case alone."""
    return "/".join([unique("t"), *levels])
