#!/usr/bin/env python3
"""Distinctive secrets go in by every door, rightly and wrongly, at log level trace; then none of them may be found outside.

    leaks.py --server PATH

Looked through, in plain, hexadecimal, base64 and percent-encoding: the log, the metrics, every answer of the API but the one that
shows a secret once, the files of the data folder, the command line of the process.
"""

import argparse
import base64
import glob
import json
import os
import secrets
import sys
import tempfile
import urllib.parse

import h2_wire
from seen import Seen, read_all
from harness import check, equal
from mqtt_wire import V311, V5, Client
from server import Server
from suite_hostile_http import answers, connect, talk
from web_clients import Socket, Stream
from ws_wire import WebSocket


def drawn(name):
    """With letters that percent-encoding and base64 change, so that each form looks another."""
    return f"{name}-{secrets.token_hex(12)}~Zz"


def forms(secret):
    """(how it is written, the bytes to look for)."""
    plain = secret.encode()
    found = {"plain": plain, "hex": plain.hex().encode(), "HEX": plain.hex().upper().encode(), "percent": urllib.parse.quote(secret, safe="").encode(),
             "reversed": plain[::-1]}
    for shift in range(3):
        # Where the secret begins inside of a triple changes its letters; the first and last ones mix with their neighbours.
        code = base64.b64encode(b"\0" * shift + plain)
        found[f"base64 at {shift}"] = code[4 if shift else 0:-4]
    return found.items()


class WithKeys(Server):
    """A server with keys of its own."""
    keys = {}

    def environment(self):
        return {**super().environment(), **self.keys}


class Run:
    def __init__(self, server, app_key, admin_key):
        self.server, self.target, self.seen = server, server.target(), Seen(server)
        self.target.app_key, self.target.admin_key = app_key, admin_key
        self.secrets = {"app key": app_key, "admin key": admin_key}
        self.answers = {}

    def hide(self, name):
        self.secrets[name] = drawn(name.replace(" ", "-"))
        return self.secrets[name]

    def raw(self, line, headers="", body=b""):
        """Any request; its answer is looked through too."""
        head = f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        with connect(self.target) as sock:
            got = talk(sock, head.encode() + body)
        self.answers[f"{line[:40]} {len(self.answers)}"] = got
        return answers(got)[0][0]


def good_uses(run):
    target = run.target
    device = target.register(tags=["t"], alias="a")
    run.secrets["device secret"] = device.secret
    _, key = target.call("POST", "/v1/apps/default/keys", {"scope": "send", "name": "n"}, target.admin_key, expect=201)
    run.secrets["made key"] = key["key"]
    token = run.hide("provider token")
    bearer, json_type = f"Authorization: Bearer {target.app_key}\r\n", "Content-Type: application/json\r\n"
    tokens = json.dumps({"provider_tokens": {"fcm": token}}).encode()
    equal(run.raw(f"PATCH /v1/devices/{device.device_id}", bearer + json_type, tokens), 200, "provider token")
    for version in (V311, V5):
        with target.sign_in(device, version) as client:
            target.push({"device": device.device_id})
            client.message()
    over_web = Client(sock=WebSocket(target.http), client_id=device.device_id)
    over_web.connect(user=device.device_id, password=device.secret)
    over_web.drop()
    pair = f"{device.device_id}:{device.secret}"
    basic = base64.b64encode(pair.encode()).decode()
    run.secrets["Basic credentials"] = basic
    for credentials in (f"Bearer {pair}", f"Basic {basic}"):
        equal(run.raw(f"GET /v1/devices/{device.device_id}", f"Authorization: {credentials}\r\n"), 200, credentials[:6])
    by_web(run, device, basic)
    sock = h2_wire.connect(target.http)
    fields = (("authorization", f"Bearer {target.app_key}"),)
    sock.sendall(h2_wire.frame(h2_wire.HEADERS, 5, 1, h2_wire.head("GET", "/v1/devices", fields)) + h2_wire.frame(h2_wire.GOAWAY, 0, 0, b"\0" * 8))
    check(any(kind == h2_wire.HEADERS for kind, _, _ in h2_wire.frames(read_all(sock))), "no answer over HTTP/2")
    return device


def by_web(run, device, basic):
    """The JSON protocol, tickets in headers and in URLs, streams and polls."""
    with Socket(run.target, device) as phone:
        run.secrets["resume token"] = phone.welcome["resume_token"]
    with Socket(run.target, hello={"type": "hello", "token": run.secrets["resume token"]}) as phone:
        phone.frame("welcome")
    path = f"/v1/devices/{device.device_id}/tickets"
    made = run.target.call("POST", path, headers={"Authorization": f"Basic {basic}"}, expect=201)[1]
    ticket = run.secrets["ticket"] = made["ticket"]
    equal(run.raw(f"GET /v1/inbox?ticket={ticket}"), 200, "ticket")
    equal(run.raw("GET /v1/inbox?wait=1", f"Authorization: Bearer {ticket}\r\n"), 200, "ticket")
    with Stream(run.target, device, ticket=ticket):
        pass
    wrong = run.hide("wrong ticket")
    for hello in ({"token": wrong}, {"device": device.device_id, "secret": wrong}, {"device": "nobody", "secret": wrong}):
        with Socket(run.target, hello={"type": "hello", **hello}) as phone:
            phone.close_code()
    check(run.raw(f"GET /v1/stream?ticket={wrong}") == 401, "a wrong ticket")


def wrong_uses(run, device):
    target, wrong = run.target, run.hide("wrong password")
    for version in (V311, V5):
        client = target.raw(version, device.device_id)
        check(client.connect(user=device.device_id, password=wrong, expect_code=None).reason != 0, "a wrong password signed in")
        client.drop()
        client = target.raw(version, device.device_id)
        check(client.connect(user=target.app_key, password=target.admin_key, expect_code=None).reason != 0, "keys are no device's credentials")
        client.drop()
    jwt = "eyJhbGciOiJIUzI1NiJ9." + base64.urlsafe_b64encode(run.hide("claim").encode()).decode() + "." + run.hide("signature")
    run.secrets["token"] = jwt
    for credentials in (f"Bearer {wrong}", f"Bearer {device.device_id}:{wrong}", f"Bearer {jwt}", f"Digest {wrong}", f"Bearer {wrong} {wrong}", wrong,
                        "Basic " + base64.b64encode(f"{device.device_id}:{wrong}".encode()).decode()):
        check(run.raw("GET /v1/devices", f"Authorization: {credentials}\r\n") in (400, 401), "wrong credentials")
    for name in ("access_token", "key", "token"):
        equal(run.raw(f"GET /v1/devices?{name}={target.app_key}"), 400, "a key in the query")
    # A key where a name belongs: a slip that log files must not keep.
    run.raw(f"GET /v1/unknown/{target.app_key}")
    run.raw(f"GET /v1/devices?limit={wrong}", f"Authorization: Bearer {target.app_key}\r\n")
    run.raw("POST /v1/devices", f"Authorization: Bearer {target.app_key}\r\nContent-Type: application/json\r\nX-Api-Key: {wrong}\r\nCookie: {wrong}\r\n",
            b'{"platform": ')
    run.raw("BREAK", f"Authorization: Bearer {target.app_key}\r\nbroken\r\n")


def look_at_everything(run, device):
    bearer, admin = (f"Authorization: Bearer {key}\r\n" for key in (run.target.app_key, run.target.admin_key))
    for path in ("/v1/devices", f"/v1/devices/{device.device_id}", "/v1/messages", "/v1/events", "/openapi.json"):
        equal(run.raw(f"GET {path}", bearer), 200, path)
    for path in ("/v1/apps", "/v1/apps/default", "/v1/apps/default/keys"):
        equal(run.raw(f"GET {path}", admin), 200, path)
    run.answers["/metrics"] = run.seen.metrics().encode()
    with open(f"/proc/{run.server.process.pid}/cmdline", "rb") as line:
        run.answers["command line"] = line.read()


def places(run):
    """(what, its bytes)."""
    yield from run.answers.items()
    for path in [run.server.log_path, *glob.glob(os.path.join(run.server.data_dir, "**"), recursive=True)]:
        if os.path.isfile(path):
            with open(path, "rb") as file:
                yield os.path.basename(path), file.read()


def allowed(secret, place):
    """A provider's token is kept to be sent to the provider, so the journal has it. An answer may repeat a wrong parameter to its sender."""
    return secret == "provider token" and place.startswith(("journal", "checkpoint", "contents")) or \
        secret == "wrong password" and place.startswith("GET /v1/devices?limit=")


def leaks(run):
    """(bytes looked through, leaks, what was found where it may be)."""
    looked, found, expected = 0, [], []
    for place, data in places(run):
        looked += len(data)
        for name, secret in run.secrets.items():
            hits = [how for how, bytes_ in forms(secret) if bytes_ in data]
            if hits:
                (expected if allowed(name, place) else found).append(f"{name} in {place} ({', '.join(hits)})")
    return looked, found, expected


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="path of the postrider binary")
    options = parser.parse_args()
    app_key, admin_key = drawn("app-key"), drawn("admin-key")
    with tempfile.TemporaryDirectory(prefix="leaks-") as folder:
        server = WithKeys(options.server, os.path.join(folder, "data"), None, os.path.join(folder, "server.log"))
        server.keys = {"POSTRIDER_LOG": "trace", "POSTRIDER_APP_KEY": app_key, "POSTRIDER_ADMIN_KEY": admin_key}
        server.start()
        try:
            run = Run(server, app_key, admin_key)
            device = good_uses(run)
            wrong_uses(run, device)
            look_at_everything(run, device)
        finally:
            server.stop()
        looked, found, expected = leaks(run)
        log_lines = open(server.log_path).read().count("\n")
    print("\n".join(f"FAIL {line}" for line in found), end="\n" if found else "")
    print(f"{len(run.secrets)} secrets, {looked} bytes looked through, {log_lines} lines of log, {len(found)} leaks")
    # A log without lines would prove nothing, nor a search that does not find what is known to be there.
    return 1 if found or log_lines < 50 or not expected else 0


if __name__ == "__main__":
    sys.exit(main())
