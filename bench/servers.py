"""The servers that are measured: how each is configured, started and named. One class a server.

Settings are chosen so that no server is throttled by a limit the others do not have; what differs is said in
`settings`, which goes into the report.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass

RAW_NAME = "raw"
APP_KEY = "bench-app-key-0123456789abcdef0123"


@dataclass
class Options:
    loadgen: str
    postrider: str
    profile: str
    mosquitto: str
    rumqttd: str
    before: str
    before_profile: str


def first_line(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "version unknown"
    return ((done.stdout + done.stderr).strip().splitlines() or ["version unknown"])[0]


class Server:
    name = ""
    binary = ""
    settings = ""
    keeps_sessions = True

    def installed(self):
        return bool(self.binary) and shutil.which(self.binary) is not None

    def version(self):
        return first_line([self.binary, "--version"])

    def launch(self, port, data, folder, durable):
        """(command, extra environment). `durable`: the row ends the process without warning."""
        raise NotImplementedError

    @staticmethod
    def write(folder, name, text):
        path = os.path.join(folder, name)
        with open(path, "w") as file:
            file.write(text)
        return path


class Raw(Server):
    """The kernel's own limit as a server."""
    name = RAW_NAME
    settings = "one send a message, no sessions, no checks"
    keeps_sessions = False
    more = ()

    def __init__(self, options):
        self.binary = options.loadgen

    def version(self):
        return "bench/loadgen rawserver"

    def launch(self, port, data, folder, durable):
        return [self.binary, "rawserver", "--port", str(port), *self.more], {}


class RawCoalesced(Raw):
    name = "raw-coalesce"
    settings = "all messages of one read in one send to each subscriber"
    more = ("--coalesce",)


class Postrider(Server):
    name = "postrider"
    settings = "profiles/bench.toml; a QoS 1 publish is acknowledged when it is on disk"

    def __init__(self, options):
        self.binary, self.profile = options.postrider, options.profile

    def launch(self, port, data, folder, durable):
        places = {f"POSTRIDER_{name}_LISTEN": "127.0.0.1:0" for name in ("HTTP", "OPS", "XMPP")}
        places["POSTRIDER_MQTT_LISTEN"] = f"127.0.0.1:{port}"
        places["POSTRIDER_APP_KEY"] = APP_KEY
        return [self.binary, "serve", "--config", self.profile, "--data", data], places


class Before(Postrider):
    """An earlier build, for what a change costs."""
    name = "before"

    def __init__(self, options):
        self.binary, self.profile = options.before, options.before_profile


class Mosquitto(Server):
    name = "mosquitto"
    settings = ("max_inflight 100, max_queued 100,000, persistence off; "
                "in the offline row on, saved every second")

    def __init__(self, options):
        # Debian keeps it where only root's path leads.
        self.binary = shutil.which(options.mosquitto) or shutil.which("/usr/sbin/mosquitto") or options.mosquitto

    def version(self):
        return first_line([self.binary, "-h"])

    def launch(self, port, data, folder, durable):
        lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "log_dest none", "user root",
                 "max_inflight_messages 100", "max_queued_messages 100000", "max_connections -1"]
        if durable:
            lines += ["persistence true", f"persistence_location {data}/", "autosave_interval 1"]
        else:
            lines += ["persistence false"]
        return [self.binary, "-c", self.write(folder, "mosquitto.conf", "\n".join(lines) + "\n")], {}


RUMQTTD_CONFIG = """\
id = 0

[router]
id = 0
max_connections = 30000
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10

[v4.1]
name = "bench"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 0
    [v4.1.connections]
    connection_timeout_ms = 60000
    max_payload_size = 20480
    max_inflight_count = 500
    dynamic_filters = true

[console]
listen = "127.0.0.1:0"
"""


class Rumqttd(Server):
    name = "rumqttd"
    settings = "max_connections 30,000, inflight 500, outgoing batch 200, memory only"

    def __init__(self, options):
        self.binary = options.rumqttd

    def launch(self, port, data, folder, durable):
        path = self.write(folder, "rumqttd.toml", RUMQTTD_CONFIG.format(port=port))
        return [self.binary, "--config", path], {}


KNOWN = {made.name: made for made in (Raw, RawCoalesced, Postrider, Before, Mosquitto, Rumqttd)}
