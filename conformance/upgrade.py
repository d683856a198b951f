#!/usr/bin/env python3
"""Judges the upgrade of one release to another by what both say over their APIs.

    upgrade.py --old PATH_OF_A_RELEASE --new PATH_OF_THE_NEXT [--into FOLDER]

The old server does what a later release does by other rules, is asked for everything, and is killed so that
its journal is not closed. The new one has to say the same. `--into` keeps the folder as the old server
left it: the small folders in `tests/golden` of the store's crate whose names have `rules` in them.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time

from harness import eventually
from mqtt_wire import V5
from server import ADMIN_KEY, Server

SETTINGS = {
    "store.segment_bytes": 16384, "store.checkpoint_bytes": 22000, "store.reserve_bytes": 0, "limits.direct_max": 50, "limits.history_max": 70, "access.publish": '["public/#"]',
    "access.retain": "true",
}
LONG = {"ttl_secs": 2_592_000}
# What another start says otherwise, or another release.
APART = {"cursor", "next", "next_cursor", "epoch", "connected", "payload_expires_at"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, help="path of the earlier release")
    parser.add_argument("--new", required=True, help="path of the binary that takes its folder over")
    parser.add_argument("--into", help="folder to make")
    return parser.parse_args()


def collapse(target, devices):
    """Backlogs and keys, shared by messages to one device, to some and to all."""
    ids = [device.device_id for device in devices]
    for number in range(3):
        target.push({"device": ids[0]}, f"all {number}", collapse_key="a", backlog="all", **LONG)
    for number in range(3):
        target.push({"device": ids[1]}, f"own {number}", collapse_key="b", backlog={"last": 3}, **LONG)
        target.push({"devices": ids[2:6]}, f"some {number}", collapse_key="b", backlog={"last": 3}, **LONG)
    # Counts as many older ones as there are of the key, whoever has them.
    target.push("all", "everybody", collapse_key="b", backlog={"last": 4}, **LONG)
    target.push("all", "everybody again", collapse_key="b", backlog={"last": 2}, priority="high", **LONG)
    target.push("all", "others", collapse_key="c", **LONG)


def leave(target, devices):
    """A device that goes leaves urgent and other broadcasts; sessions end with what they shared."""
    for number, priority in enumerate(("normal", "high", "low", "high")):
        target.push("all", f"cast {number}", priority=priority, **LONG)
    target.call("DELETE", f"/v1/devices/{devices[7].device_id}")
    with target.sign_in(devices[8], V5) as member, target.sign_in(devices[9], V5) as other:
        for connection in (member, other):
            connection.subscribe("$share/crew/public/work", 1)
            connection.auto_ack = False
        for number in range(6):
            other.publish("public/work", b"piece %d" % number, 1)
    with target.sign_in(devices[8], V5, properties={"session_expiry": 1}):
        pass


def second_app(target):
    """Its reports count together with those of the first app."""
    admin = ADMIN_KEY
    target.call("POST", "/v1/apps", {"id": "second", "name": "Second"}, key=admin)
    key = target.call("POST", "/v1/apps/second/keys", {"name": "all", "scope": "app"}, key=admin)[1]["key"]
    made = target.call("POST", "/v1/devices", {"platform": "ios"}, key=key)[1]
    for number in range(40):
        body = {"audience": {"device": made["device_id"]}, "notification": {"title": f"n {number}", "body": "b"}}
        sent = target.call("POST", "/v1/messages", body, key=key, expect=202)[1]
        target.call("DELETE", f"/v1/messages/{sent['message_id']}", key=key)
    return key


def expire(target, devices):
    """More deliveries at once than one command ends by later rules."""
    ids = [device.device_id for device in devices if device is not devices[7]]
    one = {"audience": {"devices": ids[:50]}, "notification": {"title": "soon over", "body": "b"}, "ttl_secs": 2}
    target.call("POST", "/v1/messages/batch", {"messages": [one] * 41}, expect=200)

    def all_are_over():
        page = target.call("GET", "/v1/messages?limit=100")[1]["messages"]
        return sum(1 for message in page if message["states"].get("expired")) >= 41
    eventually(all_are_over, "messages expired")
    # What else is due in that second.
    time.sleep(1.5)


def pages(target, path, name, key):
    cursor, found = "", []
    while cursor is not None:
        page = target.call("GET", f"{path}{cursor}", key=key, expect=200)[1]
        found += page[name]
        cursor = page.get("next_cursor")
        cursor = cursor and f"&cursor={cursor}"
    return found


def events(target, key):
    found, after = [], ""
    while True:
        page = target.call("GET", f"/v1/events?limit=1000{after}", key=key, expect=200)[1]
        if not page["events"]:
            return found
        found += page["events"]
        after = f"&after={page['next']}"


def everything(target, keys):
    said = {"apps": target.call("GET", "/v1/apps", key=ADMIN_KEY, expect=200)[1]}
    for name, key in keys.items():
        messages = pages(target, "/v1/messages?limit=100", "messages", key)
        said[name] = {
            "devices": pages(target, "/v1/devices?limit=100", "devices", key),
            "messages": messages,
            "deliveries": [pages(target, f"/v1/messages/{message['message_id']}/deliveries?limit=100", "deliveries", key)
                           for message in messages],
            "events": events(target, key),
        }
    return json.loads(json.dumps(said))


def differences(before, after, place=""):
    """What the old release said and the new one does not. A new one may say more."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            if name not in APART:
                yield from differences(value, after.get(name), f"{place}.{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (old, new) in enumerate(zip(before, after)):
            yield from differences(old, new, f"{place}[{number}]")
    elif before != after:
        sizes = f" ({len(before)} and {len(after)})" if isinstance(before, list) and isinstance(after, list) else ""
        yield f"{place}{sizes}: {json.dumps(before)[:300]} is now {json.dumps(after)[:300]}"


def fill(target):
    devices = [target.register(tags=["t"]) for _ in range(60)]
    second = second_app(target)
    # By now there is a checkpoint, and what follows is in the journal only.
    collapse(target, devices)
    leave(target, devices)
    expire(target, devices)
    return {"default": None, "second": second}


def keep(data, into):
    os.makedirs(into, exist_ok=True)
    for name in sorted(os.listdir(data)):
        if name.endswith((".log", ".state")) or name.startswith(("STORE", "HISTORY")):
            shutil.copy(os.path.join(data, name), os.path.join(into, name))
            if name.startswith("journal-"):
                # Without the space that was allocated and not used; a record may end with zeros.
                with open(os.path.join(into, name), "r+b") as file:
                    used = len(file.read().rstrip(b"\0")) + 64
                    file.truncate(min(used, os.path.getsize(os.path.join(data, name))))


def main():
    options = arguments()
    with tempfile.TemporaryDirectory() as work:
        data, log = os.path.join(work, "data"), os.path.join(work, "server.log")
        server = Server(options.old, data, log_path=log, settings=SETTINGS)
        try:
            target = server.start().target()
            keys = fill(target)
            before = everything(target, keys)
        finally:
            server.kill()
        if options.into:
            keep(data, options.into)
        subprocess.run([options.new, "store", "upgrade", "--check", data], check=True)
        server = Server(options.new, data, log_path=log, settings=SETTINGS)
        try:
            after = everything(server.start().target(), keys)
        finally:
            server.stop()
    found = list(differences(before, after))
    for line in found[:40]:
        print(line)
    counted = {name: len(before[name]["messages"]) for name in keys}
    print(f"{len(found)} differences; reports that were compared: {counted}")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
