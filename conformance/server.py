"""Starts and ends a postrider process, for `run.py`, `kill9.py` and `abuse.py`.

The server says on one line of its standard output where it listens; nothing here guesses ports or waits
for a while and hopes.
"""

import os
import queue
import random
import socket
import subprocess
import threading

from harness import CONFORMANCE, Target

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
APP_KEY = "outside-judge-app-key-0123456789abcdef"
ADMIN_KEY = "outside-judge-admin-key-0123456789abcdef"


class StartFailed(Exception):
    pass


def parse_ready_line(line):
    """`listening http=127.0.0.1:8080 mqtt=…` → {"http": ("127.0.0.1", 8080), …}"""
    found = {}
    for word in line.split()[1:]:
        name, _, place = word.partition("=")
        host, _, port = place.rpartition(":")
        found[name] = (host.strip("[]"), int(port))
    return found


_given = set()


def quiet_port():
    """A free port that was not given before, below those the system gives to outgoing connections.

    A client that tries the port of a killed server could otherwise be given that very port as its own and
    keep the server from coming back.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        if port in _given:
            continue
        # Servers of other cases start at the same time.
        _given.add(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Server:
    """`settings` are given as `--set`, `variables` to the process's environment."""

    def __init__(self, binary, data_dir, profile=None, log_path=None, ready_timeout=60, settings=None, variables=None):
        self.binary, self.data_dir, self.profile = binary, data_dir, profile
        self.log_path = log_path or os.path.join(data_dir, "..", "server.log")
        self.ready_timeout = ready_timeout
        self.settings, self.variables = dict(settings or {}), dict(variables or {})
        self.process = None
        self.places = {}

    def with_fixed_ports(self):
        """For a server that is to come back where it was."""
        self.places = {name: ("127.0.0.1", quiet_port()) for name in ("http", "ops", "mqtt", "xmpp")}
        return self

    def last_words(self, size=3000):
        with open(self.log_path, "rb") as log:
            return log.read()[-size:].decode(errors="replace")

    def command(self):
        words = [self.binary, "serve", "--data", self.data_dir]
        for name, value in self.settings.items():
            words += ["--set", f"{name}={value}"]
        if self.profile:
            words[2:2] = ["--config", os.path.join(ROOT, "profiles", f"{self.profile}.toml")]
        return words

    def environment(self):
        places = self.places
        wanted = {"HTTP": places.get("http"), "OPS": places.get("ops"), "MQTT": places.get("mqtt"),
                  "XMPP": places.get("xmpp")}
        made = dict(os.environ, POSTRIDER_APP_KEY=APP_KEY, POSTRIDER_ADMIN_KEY=ADMIN_KEY, **self.variables)
        for name, place in wanted.items():
            # After a restart the clients look for the server where it was.
            made[f"POSTRIDER_{name}_LISTEN"] = "%s:%d" % (place or ("127.0.0.1", 0))
        return made

    def spawn(self):
        """Starts the process and does not wait for it."""
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command(), env=self.environment(), stdout=subprocess.PIPE,
                                            stderr=log, text=True)
        self.lines = queue.Queue()
        threading.Thread(target=self.read_lines, args=(self.process, self.lines), daemon=True).start()
        return self

    def start(self):
        self.spawn()
        try:
            ready = self.lines.get(timeout=self.ready_timeout)
        except queue.Empty:
            self.kill()
            raise StartFailed(f"no ready line in {self.ready_timeout} s") from None
        if ready is None:
            raise StartFailed(f"server ended with {self.process.wait()}: {self.last_words(600)}")
        self.places = parse_ready_line(ready)
        return self

    def is_ready(self, within):
        """Whether the ready line came within so many seconds."""
        try:
            return self.lines.get(timeout=within) is not None
        except queue.Empty:
            return False

    @staticmethod
    def read_lines(process, lines):
        """Passes on the ready line and reads the rest away, so that the pipe never fills."""
        with process.stdout:
            for line in process.stdout:
                if line.startswith("listening "):
                    lines.put(line)
        lines.put(None)

    def target(self):
        target = Target(self.places["mqtt"], self.profile or "default", self.places.get("http"), APP_KEY, ADMIN_KEY,
                        xmpp=self.places.get("xmpp"))
        target.notes["binary"] = self.binary
        target.notes["xmpp_tls"] = self.places.get("xmpp_tls")
        return target

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self):
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()


def profile_of(name):
    """The file of a profile; the default one has none."""
    return CONFORMANCE if name == CONFORMANCE else None
