#!/usr/bin/env python3
"""Makes the data folders that every later release has to open: `tests/golden` of the store's crate.

    golden.py --server PATH_OF_A_RELEASE --into FOLDER

Run it once for each release (or format) with that release's own binary, and commit what it makes. The
folder has a bit of everything: apps, keys, devices of each kind, sessions, retained messages, direct and
broadcast messages in every state, a checkpoint, and a journal behind it that was not closed in order.
"""

import argparse
import json
import os
import shutil
import tempfile

from harness import eventually
from mqtt_wire import V5, V311
from server import ADMIN_KEY, Server

SETTINGS = {
    "store.segment_bytes": 16384, "store.checkpoint_bytes": 16384, "store.reserve_bytes": 0,
    "limits.direct_max": 4, "access.publish": '["public/#"]', "access.retain": "true", "limits.idempotency_keep_secs": 86400,
}
LONG = {"ttl_secs": 2_592_000}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="path of the postrider binary")
    parser.add_argument("--into", required=True, help="folder to make")
    parser.add_argument("--set", action="append", default=[], help="SETTING=VALUE, beside those of the script")
    return parser.parse_args()


def apps_and_keys(target):
    admin = ADMIN_KEY
    target.call("POST", "/v1/apps", {"id": "second", "name": "Zweite App 第二"}, key=admin)
    for scope in ("app", "send", "read", "register"):
        target.call("POST", "/v1/apps/second/keys", {"name": f"key {scope}", "scope": scope}, key=admin)
    made = target.call("POST", "/v1/apps/default/keys", {"name": "old", "scope": "read"}, key=admin)[1]
    target.call("DELETE", f"/v1/apps/default/keys/{made['id']}", key=admin)


def devices(target):
    found = [target.register(tags=["news", f"n{i % 3}"], alias=f"user-{i % 2}", platform=platform)
             for i, platform in enumerate(("android", "ios", "harmony", "web", "desktop", "iot", "other"))]
    body = {"attributes": {"city": "Köln", "version": 12.5, "beta": True}, "provider_tokens": {"fcm": "token"}}
    target.call("PATCH", f"/v1/devices/{found[0].device_id}", body)
    gone = target.register()
    target.push({"device": gone.device_id}, "to nobody", **LONG)
    target.call("DELETE", f"/v1/devices/{gone.device_id}")
    return found


def sessions(target, found):
    with target.sign_in(found[0], V5) as connection:
        connection.subscribe("public/weather/#", 1)
        connection.publish("public/retained", b"kept", 1, retain=True)
        connection.publish("public/weather/now", b"sunny", 1)
    with target.sign_in(found[1], V311) as connection:
        connection.subscribe("public/+/now", 2)
        connection.publish("public/weather/now", b"cloudy", 2)
    with target.sign_in(found[0], V5) as connection:
        connection.auto_ack = False
        connection.publish("public/weather/later", b"rain", 1)


def messages(target, found):
    ids = [device.device_id for device in found]
    for i in range(3):
        target.push({"device": ids[2]}, f"collapse {i}", collapse_key="unread", **LONG)
        target.push({"device": ids[3]}, f"last {i}", collapse_key="last", backlog={"last": 2}, **LONG)
    for i, priority in enumerate(("high", "normal", "low")):
        target.push({"device": ids[4]}, f"priority {i}", priority=priority, data={"n": i}, **LONG)
    target.push("all", "everybody", priority="high", data={"filler": "x" * 3000}, **LONG)
    target.push({"devices": ids[:3]}, "three of them", **LONG)
    cancelled = target.push({"tag": "news"}, "cancelled", **LONG)["message_id"]
    target.call("DELETE", f"/v1/messages/{cancelled}")
    target.push({"device": ids[3]}, "soon over", ttl_secs=1)
    for _ in range(2):
        target.push({"device": ids[6]}, "once", headers={"Idempotency-Key": "golden-1"}, **LONG)
    with target.sign_in(found[6]) as connection:
        connection.message()
    seen = target.push({"device": ids[5]}, "seen", **LONG)["message_id"]
    with target.sign_in(found[5]) as connection:
        while json.loads(connection.message().payload)["id"] != seen:
            pass
        eventually(lambda: target.delivery(seen, found[5])["state"] == "delivered", "delivered")
        connection.publish("$push/receipts", ('{"id": "%s", "step": "displayed"}' % seen).encode(), 1)
        connection.publish("$push/receipts", ('{"id": "%s", "step": "clicked"}' % seen).encode(), 1)
        eventually(lambda: target.delivery(seen, found[5])["state"] == "clicked", "clicked")


def expired(target, found):
    def is_over():
        page = target.call("GET", "/v1/messages?limit=100")[1]["messages"]
        return any(message["states"].get("expired") for message in page)
    eventually(is_over, "a message expired")


def fill(server):
    target = server.start().target()
    apps_and_keys(target)
    found = devices(target)
    sessions(target, found)
    for _ in range(4):
        messages(target, found)
    server.stop()
    target = server.start().target()
    messages(target, found)
    expired(target, found)


def main():
    options = arguments()
    settings = SETTINGS | dict(setting.split("=", 1) for setting in options.set)
    with tempfile.TemporaryDirectory() as work:
        data, log = os.path.join(work, "data"), os.path.join(work, "server.log")
        server = Server(options.server, data, log_path=log, settings=settings)
        try:
            fill(server)
        finally:
            server.kill()
        os.makedirs(options.into, exist_ok=True)
        for name in sorted(os.listdir(data)):
            if name.endswith((".log", ".state")) or name.startswith(("STORE", "HISTORY")):
                shutil.copy(os.path.join(data, name), os.path.join(options.into, name))


if __name__ == "__main__":
    main()
