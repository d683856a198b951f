"""Other brokers, unchanged, that connect to the server as a bridge and pass messages both ways.

Each case starts a server of its own: a bridge of all topics would carry the messages of all other cases.
"""

import os
import shutil
import subprocess
import tempfile

from harness import CONFORMANCE, NotHere, Suite, equal, eventually
from mqtt_wire import V311, Client
from server import Server, quiet_port

SUITE = Suite("bridges")

# The first is what somebody writes who writes nothing but the address: it asks with the level 0x84.
VERSIONS = {"stock": "", "v31": "mqttv31", "v311": "mqttv311", "v5": "mqttv50"}


def mosquitto():
    found = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if not found:
        raise NotHere("mosquitto is not installed")
    return found


class Bridge:
    """A mosquitto that bridges all topics with `address`, both ways."""

    def __init__(self, folder, address, version):
        program = mosquitto()
        self.place = ("127.0.0.1", quiet_port())
        path = os.path.join(folder, "mosquitto.conf")
        with open(path, "w", encoding="utf-8") as config:
            config.write(f"listener {self.place[1]} 127.0.0.1\nallow_anonymous true\nuser root\n"
                         f"connection up\naddress {address[0]}:{address[1]}\ntopic # both 1\nrestart_timeout 1\n")
            if version:
                config.write(f"bridge_protocol_version {version}\n")
        self.log = open(os.path.join(folder, "mosquitto.log"), "w+", encoding="utf-8")
        self.process = subprocess.Popen([program, "-v", "-c", path], stdout=self.log, stderr=self.log)

    def listens(self):
        try:
            Client(self.place).drop()
        except OSError:
            return False
        return True

    def __enter__(self):
        eventually(self.listens, "mosquitto listens")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()


def connected(place):
    made = Client(place, V311)
    made.connect()
    return made


def listening(place, name):
    made = connected(place)
    made.subscribe(name, 1)
    return made


def texts(client, last):
    """The payloads up to `last`, which is among them."""
    found = []
    while not found or found[-1] != last:
        found.append(client.message(timeout=40).payload)
    return found


def passes_both_ways(version):
    def run(target):
        if not target.notes.get("binary"):
            raise NotHere("the binary is not known")
        mosquitto()
        with tempfile.TemporaryDirectory(prefix="bridge-") as folder:
            server = Server(target.notes["binary"], os.path.join(folder, "data"), CONFORMANCE,
                            os.path.join(folder, "server.log"))
            try:
                server.start()
                here = server.target().mqtt
                publisher = connected(here)
                publisher.publish("both/kept", b"kept here", qos=1, retain=True)
                with Bridge(folder, here, version) as bridge:
                    judge(here, bridge.place, publisher)
            finally:
                server.stop()
    return run


def judge(here, there, publisher):
    # What is kept here goes over as soon as the bridge is up.
    far = listening(there, "both/#")
    equal(far.message(timeout=40).payload, b"kept here", "what is kept goes over the bridge")
    near = listening(here, "both/#")
    equal(near.message().payload, b"kept here", "what is kept")
    for number in range(5):
        publisher.publish("both/down", b"down %d" % number, qos=1)
    equal(texts(far, b"down 4"), [b"down %d" % n for n in range(5)], "passed to the other broker")
    other = connected(there)
    for number in range(5):
        other.publish("both/up", b"up %d" % number, qos=1)
    other.publish("both/kept-there", b"kept there", qos=1, retain=True)
    # Nothing comes back to where it was published: each of both sides has seen each message once.
    wanted = [b"down %d" % n for n in range(5)] + [b"up %d" % n for n in range(5)] + [b"kept there"]
    equal(texts(near, b"kept there"), wanted, "passed to this server")
    equal(texts(far, b"kept there"), [b"up %d" % n for n in range(5)] + [b"kept there"], "at the other broker")
    publisher.publish("both/late-kept", b"late", qos=1, retain=True)
    equal(texts(far, b"late"), [b"late"], "a retained message passes")
    for place, name, payload in ((here, "both/kept-there", b"kept there"), (there, "both/late-kept", b"late")):
        newcomer = listening(place, name)
        message = newcomer.message()
        equal((message.payload, message.retain), (payload, True), f"{name} is kept on the other side")


for label, wanted in VERSIONS.items():
    SUITE.add(f"mosquitto_passes_messages_both_ways_{label}", passes_both_ways(wanted))
