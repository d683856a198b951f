#!/usr/bin/env python3
"""Memory of one idle XMPP session, beside Prosody and ejabberd in the same run (Debian packages `prosody`, `ejabberd`).

    python3 bench/xmpp_idle.py --server target/release/postrider [-n 1000] [--only postrider,prosody,ejabberd]

Each session opens a stream, signs in with SASL PLAIN without TLS, binds a resource and sends presence, as an account of its own. Printed is
the growth of the server's proportional set size (user memory, all its processes) divided by the sessions.
"""

import argparse
import base64
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time

from web_idle import APP_KEY, Server, pss, read_until, register

DOMAIN = "localhost"
OPEN = (f"<?xml version='1.0'?><stream:stream to='{DOMAIN}' xmlns='jabber:client' "
        "xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>").encode()


def session(place, user, password, tls=None):
    connection = socket.create_connection(place)
    connection.settimeout(30)
    connection.sendall(OPEN)
    read_until(connection, b"</stream:features>")
    if tls:
        connection.sendall(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
        read_until(connection, b"<proceed")
        connection = tls.wrap_socket(connection, server_hostname=DOMAIN)
        connection.sendall(OPEN)
        read_until(connection, b"</stream:features>")
    proof = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
    connection.sendall(f"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{proof}</auth>".encode())
    answer = read_until(connection, b">")
    if b"<success" not in answer:
        raise ConnectionError(f"not signed in: {answer!r}")
    connection.sendall(OPEN)
    read_until(connection, b"</stream:features>")
    connection.sendall(b"<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>")
    read_until(connection, b"</iq>")
    connection.sendall(b"<presence/><iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>")
    read_until(connection, b"<iq")
    return connection


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(place, process, secs=60):
    until = time.monotonic() + secs
    while time.monotonic() < until:
        try:
            socket.create_connection(place, 1).close()
            return
        except OSError:
            if process.poll() is not None:
                raise SystemExit("the server ended") from None
            time.sleep(0.2)
    raise SystemExit("the server does not listen")


def tree(pid):
    """The process and its children, all generations."""
    found = [pid]
    for one in found:
        with open(f"/proc/{one}/task/{one}/children") as children:
            found += [int(child) for child in children.read().split()]
    return found


def memory(pid):
    def of(one):
        try:
            return pss(one)
        except (FileNotFoundError, ProcessLookupError, AttributeError):
            return 0
    return sum(of(one) for one in tree(pid))


def settled(pid):
    last = memory(pid)
    for _ in range(30):
        time.sleep(0.5)
        now = memory(pid)
        if abs(now - last) < 64 * 1024:
            return now
        last = now
    return last


class Postrider:
    def __init__(self, program, count, tls):
        os.environ["POSTRIDER_XMPP_ALLOW_PLAINTEXT"] = str(not tls).lower()
        os.environ["POSTRIDER_TLS_SELF_SIGNED"] = str(bool(tls)).lower()
        self.server = Server(program)
        self.place, self.pid = self.server.xmpp, self.server.process.pid
        self.accounts = register(self.server, count)

    def stop(self):
        self.server.stop()


class Peer:
    def __init__(self, count):
        self.folder = tempfile.mkdtemp(prefix="xmpp-bench-")
        self.place = ("127.0.0.1", free_port())
        self.accounts = [(f"u{n}", "secret") for n in range(count)]
        self.process = self.start()
        self.pid = self.process.pid
        wait_for(self.place, self.process)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Prosody(Peer):
    def start(self):
        config = os.path.join(self.folder, "prosody.cfg.lua")
        with open(config, "w") as file:
            file.write(f'''data_path = "{self.folder}"
pidfile = "{self.folder}/pid"
run_as_root = true
modules_enabled = {{ "saslauth", "roster", "disco", "ping", "smacks", "csi_simple", "offline", "message" }}
modules_disabled = {{ "s2s", "tls" }}
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {self.place[1]} }}
c2s_direct_tls_ports = {{}}
c2s_require_encryption = false
allow_unencrypted_plain_auth = true
authentication = "insecure"
insecure_open_authentication = "Yes please, I know what I'm doing!"
log = {{ error = "{self.folder}/log" }}
VirtualHost "{DOMAIN}"
''')
        return subprocess.Popen(["prosody", "--config", config, "-F"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Ejabberd(Peer):
    def start(self):
        config = os.path.join(self.folder, "ejabberd.yml")
        with open(config, "w") as file:
            file.write(f'''hosts: ["{DOMAIN}"]
loglevel: error
auth_method: anonymous
anonymous_protocol: login_anon
allow_multiple_connections: true
listen:
  - port: {self.place[1]}
    ip: "127.0.0.1"
    module: ejabberd_c2s
    starttls: false
modules:
  mod_ping: {{}}
  mod_disco: {{}}
  mod_roster: {{}}
  mod_stream_mgmt: {{}}
''')
        library = subprocess.run("ls -d /usr/lib/*/ejabberd*/ebin /usr/share/ejabberd*/ebin 2>/dev/null | head -1", shell=True,
                                 capture_output=True, text=True).stdout.strip()
        libraries = os.path.dirname(os.path.dirname(library))
        environment = {**os.environ, "EJABBERD_CONFIG_PATH": config, "ERL_LIBS": libraries, "HOME": self.folder,
                       "EJABBERD_LOG_PATH": os.path.join(self.folder, "log"), "SPOOL_DIR": self.folder}
        command = ["erl", "-noinput", "-sname", f"bench{os.getpid()}", "-mnesia", "dir", f'"{self.folder}/mnesia"', "-s", "ejabberd"]
        return subprocess.Popen(command, env=environment, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--only", default="postrider,prosody,ejabberd")
    parser.add_argument("--tls", action="store_true", help="STARTTLS with TLS 1.3; of postrider only")
    options = parser.parse_args()
    tls = ssl._create_unverified_context() if options.tls else None
    makers = {"postrider": lambda n: Postrider(options.server, n, tls), "prosody": Prosody, "ejabberd": Ejabberd}
    for name in options.only.split(","):
        server = makers[name](options.n)
        try:
            warm = [session(server.place, *account, tls) for account in server.accounts[:50]]
            before = settled(server.pid)
            held = [session(server.place, *account, tls) for account in server.accounts[50:]]
            after = settled(server.pid)
            print(f"{name:10} {(after - before) / len(held):8.0f} bytes each", flush=True)
            for connection in warm + held:
                connection.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
