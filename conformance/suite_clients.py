"""Real clients, unchanged: mosquitto_pub and mosquitto_sub, Paho for Python, MQTT.js over TCP and WebSocket.

A client that is not installed leaves its cases out; `run.py --strict` makes that a failure.
"""

import os
import queue
import shutil
import subprocess
import threading

from harness import NotHere, Suite, check, equal, topic
from mqtt_wire import unique

try:
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
except ImportError:
    paho = None

SUITE = Suite("clients")
NODE_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node")
PATIENCE_SECS = 40


# --- mosquitto's command line clients -----------------------------------------------------------------

MOSQUITTO_VERSIONS = {"31": "mqttv31", "311": "mqttv311", "5": "mqttv5"}


def tool(name):
    found = shutil.which(name)
    if not found:
        raise NotHere(f"{name} is not installed")
    return found


def place_options(target, version):
    host, port = target.mqtt
    return ["-h", host, "-p", str(port), "-V", MOSQUITTO_VERSIONS[version]]


def mosquitto_pub(target, version, *options):
    done = subprocess.run([tool("mosquitto_pub"), *place_options(target, version), *options],
                          capture_output=True, timeout=PATIENCE_SECS)
    check(done.returncode == 0, f"mosquitto_pub: {done.returncode} {done.stderr.decode()}")


class MosquittoSub:
    """A running mosquitto_sub. With -d it says when its subscription is granted, so nobody has to guess."""

    def __init__(self, target, version, *options):
        # Into a pipe it would keep its words back until its buffer is full.
        command = [tool("stdbuf"), "-oL", tool("mosquitto_sub"), *place_options(target, version), "-d", "-F", "GOT %t %q %r %p", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines, self.early = queue.Queue(), []
        threading.Thread(target=self.pump, daemon=True).start()

    def pump(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def wait_line(self, part):
        seen = []
        while True:
            try:
                line = self.next_line(part)
            except queue.Empty:
                raise AssertionError(f"mosquitto_sub never said {part!r}; said {seen}") from None
            check(line is not None, f"mosquitto_sub ended before {part!r}; said {seen}")
            seen.append(line)
            if part in line:
                return line
            if line.startswith("GOT "):
                # What was queued comes before the answer to SUBSCRIBE.
                self.early.append(line)

    def next_line(self, part):
        if part == "GOT " and self.early:
            return self.early.pop(0)
        return self.lines.get(timeout=PATIENCE_SECS)

    def __enter__(self):
        try:
            self.wait_line("Subscribed (mid:")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def message(self):
        """(topic, qos, retain, payload)"""
        _, name, qos, retain, payload = (self.wait_line("GOT ") + " ").split(" ", 4)
        return name, int(qos), int(retain), payload.rstrip()


def mosquitto_qos(version):
    def run(target):
        name = topic()
        with MosquittoSub(target, version, "-t", name, "-q", "2") as subscriber:
            for qos in (0, 1, 2):
                mosquitto_pub(target, version, "-t", name, "-q", str(qos), "-m", f"qos{qos}")
                equal(subscriber.message(), (name, qos, 0, f"qos{qos}"), "message")
    return run


def mosquitto_retain(version):
    def run(target):
        name = topic()
        mosquitto_pub(target, version, "-t", name, "-q", "1", "-r", "-m", "kept")
        with MosquittoSub(target, version, "-t", name, "-q", "1") as subscriber:
            equal(subscriber.message(), (name, 1, 1, "kept"), "message")
        mosquitto_pub(target, version, "-t", name, "-q", "1", "-r", "-n")
    return run


def mosquitto_will(version):
    def run(target):
        name = topic()
        with MosquittoSub(target, version, "-t", name, "-q", "1") as watcher:
            with MosquittoSub(target, version, "-t", f"{name}/other", "--will-topic", name, "--will-payload", "gone",
                              "--will-qos", "1"):
                pass
            equal(watcher.message(), (name, 1, 0, "gone"), "will")
    return run


def mosquitto_offline(version):
    def run(target):
        name, client_id = topic(), unique()
        kept = ["-t", name, "-q", "1", "-c", "-i", client_id]
        kept += ["-x", "300"] if version == "5" else []
        with MosquittoSub(target, version, *kept):
            pass
        for number in range(5):
            mosquitto_pub(target, version, "-t", name, "-q", "1", "-m", str(number))
        with MosquittoSub(target, version, *kept) as back:
            equal([back.message()[3] for _ in range(5)], list("01234"), "queued messages")
        # The same id with a clean session leaves nothing behind.
        mosquitto_pub(target, version, "-t", name, "-i", client_id, "-n")
    return run


for label in MOSQUITTO_VERSIONS:
    for make in (mosquitto_qos, mosquitto_retain, mosquitto_will, mosquitto_offline):
        SUITE.add(f"{make.__name__}_v{label}", make(label))


@SUITE.case()
def mosquitto_v5_properties(target):
    name = topic()
    with MosquittoSub(target, "5", "-t", name, "-q", "1") as subscriber:
        mosquitto_pub(target, "5", "-t", name, "-q", "1", "-m", "x", "-D", "publish", "content-type", "a/b",
                      "-D", "publish", "user-property", "k", "v", "-D", "publish", "message-expiry-interval", "100")
        equal(subscriber.message()[3], "x", "payload")


# --- Paho for Python ----------------------------------------------------------------------------------

class PahoClient:
    """Paho in its own thread, with its callbacks as queues."""

    def __init__(self, target, protocol, client_id=None, kept=False, transport="tcp", will=None):
        if paho is None:
            raise NotHere("paho-mqtt is not installed")
        self.messages, self.events = queue.Queue(), queue.Queue()
        more = {} if protocol == paho.MQTTv5 else {"clean_session": not kept}
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id or unique(), protocol=protocol,
                                  transport=transport, **more)
        self.client.on_connect = lambda c, u, flags, reason, p: self.events.put(("connected", flags, reason))
        self.client.on_subscribe = lambda c, u, mid, reasons, p: self.events.put(("subscribed", mid, reasons))
        self.client.on_message = lambda c, u, message: self.messages.put(message)
        if transport == "websockets":
            self.client.ws_set_options(path="/mqtt")
        if will:
            self.client.will_set(will[0], will[1], 1)
        self.begin(target, protocol, kept, transport)

    def begin(self, target, protocol, kept, transport):
        more = {}
        if protocol == paho.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 300 if kept else 0
            more = {"clean_start": not kept, "properties": properties}
        host, port = websocket_place(target) if transport == "websockets" else target.mqtt
        self.client.connect(host, port, keepalive=60, **more)
        self.client.loop_start()
        _, self.flags, reason = self.events.get(timeout=PATIENCE_SECS)
        check(not reason.is_failure, f"connect was refused: {reason}")

    def subscribe(self, name, qos):
        self.client.subscribe(name, qos)
        event, _, reasons = self.events.get(timeout=PATIENCE_SECS)
        equal((event, [r.value for r in reasons]), ("subscribed", [qos]), "subscription")

    def publish(self, name, payload, qos=1, **more):
        self.client.publish(name, payload, qos, **more).wait_for_publish(PATIENCE_SECS)

    def message(self):
        return self.messages.get(timeout=PATIENCE_SECS)

    def end(self):
        self.client.disconnect()
        self.client.loop_stop()

    def cut(self):
        """Loses the connection without DISCONNECT and stays away."""
        self.client.loop_stop()
        self.client.socket().close()


def websocket_place(target):
    place = target.notes.get("ws") or target.http
    if place is None:
        raise NotHere("no WebSocket listener is known")
    return place


def paho_protocols():
    return {"v31": 3, "v311": 4, "v5": 5}


def paho_qos(protocol, transport="tcp"):
    def run(target):
        name, client = topic(), PahoClient(target, protocol, transport=transport)
        client.subscribe(name, 2)
        for qos in (0, 1, 2):
            client.publish(name, f"qos {qos}", qos)
            came = client.message()
            equal((came.topic, came.payload, came.qos), (name, b"qos %d" % qos, qos), "message")
        client.end()
    return run


def paho_retain_and_will(protocol):
    def run(target):
        name, watcher = topic(), PahoClient(target, protocol)
        watcher.publish(f"{name}/kept", "kept", retain=True)
        watcher.subscribe(f"{name}/#", 1)
        equal((watcher.message().retain), True, "retain flag")
        watcher.publish(f"{name}/kept", "", retain=True)
        equal(watcher.message().payload, b"", "payload of the clearing message")
        PahoClient(target, protocol, will=(f"{name}/will", "gone")).cut()
        equal(watcher.message().payload, b"gone", "will")
        watcher.end()
    return run


def paho_offline(protocol):
    def run(target):
        name, client_id = topic(), unique()
        first = PahoClient(target, protocol, client_id, kept=True)
        first.subscribe(name, 1)
        first.end()
        publisher = PahoClient(target, protocol)
        for number in range(20):
            publisher.publish(name, str(number))
        back = PahoClient(target, protocol, client_id, kept=True)
        equal([back.message().payload for _ in range(20)], [b"%d" % n for n in range(20)], "queued messages")
        back.end()
        publisher.end()
        PahoClient(target, protocol, client_id).end()
    return run


for label, number in paho_protocols().items():
    SUITE.add(f"paho_qos_{label}", paho_qos(number))
    SUITE.add(f"paho_retain_and_will_{label}", paho_retain_and_will(number))
    SUITE.add(f"paho_offline_{label}", paho_offline(number))
SUITE.add("paho_qos_v311_websocket", paho_qos(4, "websockets"))
SUITE.add("paho_qos_v5_websocket", paho_qos(5, "websockets"))


# --- MQTT.js ------------------------------------------------------------------------------------------

def mqttjs(scene, version, transport):
    def run(target):
        if not os.path.isdir(os.path.join(NODE_FOLDER, "node_modules")):
            raise NotHere("MQTT.js is not installed: run `npm ci` in conformance/node")
        host, port = websocket_place(target) if transport == "ws" else target.mqtt
        url = f"ws://{host}:{port}/mqtt" if transport == "ws" else f"mqtt://{host}:{port}"
        done = subprocess.run([tool("node"), "mqttjs.mjs", url, str(version), scene], cwd=NODE_FOLDER,
                              capture_output=True, text=True, timeout=2 * PATIENCE_SECS)
        check(done.returncode == 0, done.stderr.strip()[-800:])
    return run


for transport in ("tcp", "ws"):
    for version, label in ((3, "v31"), (4, "v311"), (5, "v5")):
        for scene in ("qos", "retain", "will", "offline", "many"):
            if version != 3 or (scene == "qos" and transport == "tcp"):
                SUITE.add(f"mqttjs_{scene}_{label}_{transport}", mqttjs(scene, version, transport))
    SUITE.add(f"mqttjs_properties_v5_{transport}", mqttjs("properties", 5, transport))
