#!/usr/bin/env python3
"""A panic ends the connection in whose name it happens, and nothing else (P15).

    panics.py --server PATH      a binary built with `--features planted-panics`

All connections are of one worker, so that they share everything that can be shared.
"""

import argparse
import http.client
import json
import os
import sys
import tempfile

from seen import Seen
from harness import check, equal, eventually
from mqtt_wire import PUBACK, V5, V311, Closed, publish_packet
from server import Server

SETTINGS = {"POSTRIDER_GATEWAY_WORKERS": "1", "POSTRIDER_HTTP_WORKERS": "1", "POSTRIDER_ACCESS_PUBLISH": "#", "POSTRIDER_ACCESS_SUBSCRIBE": "#",
            "POSTRIDER_STORE_MIN_FREE_BYTES": "0", "POSTRIDER_STORE_MIN_FREE_PERCENT": "0"}
BYSTANDERS = 20


class World:
    def __init__(self, server):
        self.target, self.seen = server.target(), Seen(server)
        self.bystanders = [self.sign_in() for _ in range(BYSTANDERS)]

    def sign_in(self, version=V311):
        device = self.target.register()
        return device, self.target.sign_in(device, version, keepalive=600)

    def nobody_else_suffers(self):
        """Everybody who was there is there, on the same connection, and gets pushes and publishes."""
        for device, client in self.bystanders:
            client.ping()
            message = self.target.push({"device": device.device_id})["message_id"]
            check(message.encode() in client.message().payload, "a bystander's push")
        with self.sign_in()[1] as newcomer:
            newcomer.subscribe("after", 1)
            self.bystanders[0][1].publish("after", b"x", 1)
            equal(newcomer.message().payload, b"x", "a publish afterwards")

    def panics(self, of):
        return self.seen.metric(f"postrider_{of}_panics_total")


def ended(client):
    try:
        client.wait_closed()
    except (Closed, OSError):
        pass


def in_a_publish(world):
    for qos in (0, 1, 2):
        _, client = world.sign_in(V5)
        client.send(publish_packet("t", b"panic in publish", qos, 7, version=V5))
        ended(client)
    return "gateway", 3


def while_others_publish(world):
    """What the others' publishes of the same moment need is committed and answered all the same."""
    _, client = world.sign_in()
    for number, (_, other) in enumerate(world.bystanders):
        other.send(publish_packet("t", b"good", 1, 1000 + number))
        if number == BYSTANDERS // 2:
            client.send(publish_packet("t", b"panic in publish", 1, 7))
    for number, (_, other) in enumerate(world.bystanders):
        equal(other.wait(PUBACK).packet_id, 1000 + number, "PUBACK")
    ended(client)
    return "gateway", 1


def in_a_live_delivery(world):
    """The subscriber's connection ends, not the publisher's."""
    _, subscriber = world.sign_in()
    subscriber.subscribe("live", 0)
    publisher = world.bystanders[0][1]
    publisher.publish("live", b"panic in live", 0)
    ended(subscriber)
    publisher.ping()
    return "gateway", 1


def in_a_live_delivery_from_the_api(world):
    _, subscriber = world.sign_in()
    subscriber.subscribe("live", 0)
    world.target.call("POST", "/v1/topics/live/publish", {"payload_text": "panic in live", "qos": 0}, expect=202)
    ended(subscriber)
    return "gateway", 1


def in_a_drain(world):
    device, client = world.sign_in()
    message = world.target.call("POST", "/v1/messages", {"audience": {"device": device.device_id}, "data_text": "panic in drain"}, expect=202)[1]
    ended(client)
    world.target.call("DELETE", f"/v1/messages/{message['message_id']}", expect=200)
    with world.target.sign_in(device) as back:
        back.ping()
    return "gateway", 1


def in_a_handler(world):
    """500 for that request; the next one on the same connection is answered as ever."""
    connection = http.client.HTTPConnection(*world.target.http, timeout=15)
    headers = {"Authorization": f"Bearer {world.target.app_key}", "Content-Type": "application/json"}
    for text, status in (("panic in handler", 500), ("x", 202), ("panic in handler", 500), ("x", 202)):
        connection.request("POST", "/v1/messages", json.dumps({"audience": "all", "data_text": text, "durability": "transient"}), headers)
        answer = connection.getresponse()
        body = json.loads(answer.read())
        equal(answer.status, status, f"status of {text}")
        if status == 500:
            equal(body["error"]["code"], "internal", "code")
    connection.close()
    for _, client in world.bystanders:
        equal(len([client.message() for _ in range(2)]), 2, "the pushes in between")
    return "api", 2


CASES = [in_a_publish, while_others_publish, in_a_live_delivery, in_a_live_delivery_from_the_api, in_a_drain, in_a_handler]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="panics-") as folder:
        server = Server(options.server, os.path.join(folder, "data"), None, os.path.join(folder, "log"), variables=SETTINGS).start()
        try:
            world = World(server)
            world.nobody_else_suffers()
            for case in CASES:
                before = {of: world.panics(of) for of in ("gateway", "api")}
                try:
                    of, count = case(world)
                    world.nobody_else_suffers()
                    eventually(lambda: world.panics(of) - before[of] == count, f"{count} panics of the {of} are counted")
                    eventually(lambda: world.seen.metric("postrider_connections") == BYSTANDERS, "its place is free again")
                    print(f"pass panics/{case.__name__}", flush=True)
                except Exception as error:
                    failed += 1
                    print(f"FAIL panics/{case.__name__}  {type(error).__name__}: {error}", flush=True)
            check(server.alive(), "the server has ended")
        finally:
            server.stop()
    print(f"{len(CASES) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
