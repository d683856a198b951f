"""Hostile HTTP: each row of `http_rows` over a raw socket, the one answer allowed, then a canary.

Every row ends with exactly one answer and the end of the connection: a second answer would mean that the server took a
part of a request for another one.
"""

import json
import socket

from harness import DEFAULT, Suite, check, equal
from http_rows import ROWS
from seen import read_all
from suite_hostile import device_canary

SUITE = Suite("hostile_http", rows={"HTTP": len(ROWS)})


def connect(target):
    source = target.fresh_source()
    sock = socket.create_connection(target.http, 10, (source, 0) if source else None)
    # The server has limits of its own; a million chunks take a busy machine a while.
    sock.settimeout(120)
    return sock


def talk(sock, data):
    """Sends as far as the server lets, and reads until it closes."""
    try:
        sock.sendall(data)
    except OSError:
        pass
    return read_all(sock)


def answers(data):
    """(status, headers, body) of each answer in the bytes."""
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        size = int(fields.get("content-length", len(rest)))
        found.append((int(lines[0].split()[1]), fields, rest[:size]))
        data = rest[size:]
    return found


def keys_of(target):
    """Made once for all rows: a device, and a key that only reads."""
    made = target.notes.get("http_rows")
    if made is None:
        device = target.register()
        _, key = target.call("POST", "/v1/apps/default/keys", {"scope": "read"}, target.admin_key, expect=201)
        made = {"@APP@": target.app_key, "@APP-UPPER@": target.app_key.upper(), "@APP-CUT@": target.app_key[:-1],
                "@ADMIN@": target.admin_key, "@READ@": key["key"], "@DEVICE@": device.device_id, "@SECRET@": device.secret}
        made = target.notes.setdefault("http_rows", made)
    return made


def fill(data, keys):
    """Puts the keys in; a length that was counted without them is counted anew."""
    filled = data
    for name, value in keys.items():
        filled = filled.replace(name.encode(), value.encode())
    before, after = (len(bytes_.partition(b"\r\n\r\n")[2]) for bytes_ in (data, filled))
    return filled.replace(b"Content-Length: %d\r\n" % before, b"Content-Length: %d\r\n" % after) if before != after else filled


def judge(row, got):
    said = answers(got)
    equal([status for status, _, _ in said], [row.status], f"statuses of {got[:300]!r}")
    _, fields, body = said[0]
    if row.status < 400:
        return
    error = json.loads(body)["error"] if body else {}
    equal(error.get("code"), row.code, f"code in {body[:300]!r}")
    if row.field is not None:
        equal(error.get("field"), row.field, f"field in {body[:300]!r}")
    check(not body or fields.get("content-type") == "application/json", f"content type {fields.get('content-type')}")


def row_case(row):
    def run(target):
        with connect(target) as sock:
            got = talk(sock, fill(row.data, keys_of(target)))
        judge(row, got)
        device_canary(target)
    return run


for row in ROWS:
    SUITE.add(f"H{row.h} {row.name}", row_case(row), DEFAULT, needs_http=True)
