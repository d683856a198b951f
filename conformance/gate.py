#!/usr/bin/env python3
"""Rights that go in the middle: the server comes back with a topic denied, to devices that had subscribed to it.

    gate.py --server PATH

What lay in their inboxes, what is retained, what is published live, by a will, and to a group: none of it may reach them, and what is still
allowed reaches them all the same, on the same ways.
"""

import argparse
import os
import sys
import tempfile

from harness import check, equal
from mqtt_wire import V5, Will
from server import Server

OPEN = {"POSTRIDER_ACCESS_PUBLISH": "#", "POSTRIDER_ACCESS_SUBSCRIBE": "#", "POSTRIDER_ACCESS_RETAIN": "true",
        "POSTRIDER_STORE_MIN_FREE_BYTES": "0", "POSTRIDER_STORE_MIN_FREE_PERCENT": "0"}
SAFE, DOOR = "house/safe", "house/door"


def before(target):
    """Subscriptions that are allowed still, and messages that will wait for their owners."""
    reader, member = target.register(), target.register()
    target.sign_in(reader, V5, inbox=False).subscribe("house/#", 1)
    target.sign_in(member, V5, inbox=False).subscribe("$share/g/house/#", 1)
    return reader, member


def publish_everywhere(target, words, **fields):
    with target.sign_in(target.register(), V5, inbox=False) as publisher:
        for topic in (SAFE, DOOR):
            publisher.publish(topic, words, 1, **fields)


def die_with_will(target, topic):
    will = Will(topic, b"will")
    target.sign_in(target.register(), V5, inbox=False, will=will).abort()


def after(target, reader, member, denied):
    wanted = [DOOR] if denied else [SAFE, DOOR]
    with target.sign_in(reader, V5, inbox=False) as back:
        check(back.connack.session_present, "the session is gone")
        equal(sorted({back.message().topic for _ in wanted}), sorted(wanted), "replayed")
        back.subscribe("house/#", 1)
        equal(sorted({back.message().topic for _ in wanted}), sorted(wanted), "retained")
        publish_everywhere(target, b"live")
        for topic in (SAFE, DOOR):
            die_with_will(target, topic)
        # Live and by will; whatever slipped through would come among these or before the fence.
        publish_everywhere(target, b"fence")
        got = []
        while not got or got[-1] != (DOOR, b"fence"):
            came = back.message()
            got.append((came.topic, came.payload))
        equal({topic for topic, _ in got}, set(wanted), "live")
    with target.sign_in(member, V5, inbox=False) as back:
        got = []
        while not got or got[-1] != (DOOR, b"fence"):
            came = back.message()
            got.append((came.topic, came.payload))
        equal({topic for topic, _ in got}, set(wanted), "shared, replayed")


def life(options, folder, settings):
    return Server(options.server, os.path.join(folder, "data"), None, os.path.join(folder, "log"), variables=settings).start()


def run(options, denied):
    with tempfile.TemporaryDirectory(prefix="gate-") as folder:
        server = life(options, folder, OPEN)
        try:
            target = server.target()
            reader, member = before(target)
            publish_everywhere(target, b"before", retain=True)
        finally:
            server.stop()
        server = life(options, folder, {**OPEN, **({"POSTRIDER_ACCESS_SUBSCRIBE_DENY": SAFE} if denied else {})})
        try:
            after(server.target(), reader, member, denied)
        finally:
            server.stop()
    print(f"pass gate/{'denied' if denied else 'allowed'} in the middle", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    options = parser.parse_args()
    # First that everything arrives where nothing was denied: else the second would prove nothing.
    run(options, denied=False)
    run(options, denied=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
