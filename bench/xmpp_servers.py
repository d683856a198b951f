"""The XMPP servers that are measured beside each other (Debian packages `prosody`, `ejabberd`): how each is configured and started.

`auth`: `open` lets everybody in with any password; `scram` keeps accounts, which sign in with SCRAM-SHA-256, 4,096 iterations, and
which clients register in-band. The first account, `u0`, may send to everybody. None has TLS.
"""

import os
import shutil
import signal
import subprocess
import tempfile

from process import free_port, wait_port
from web_idle import Server

DOMAIN = "localhost"
ADMIN = "u0"
ITERATIONS = 4096


class Postrider:
    name = "postrider"

    def __init__(self, program, auth, tls=False):
        self.server = Server(program, XMPP_ALLOW_PLAINTEXT=not tls, TLS_SELF_SIGNED=tls, XMPP_REGISTRATION=auth == "scram",
                             XMPP_REGISTRATIONS_BURST=0, GATEWAY_PUBLISHES_PER_SEC=0)
        self.place, self.pid = self.server.xmpp, self.server.process.pid

    def stop(self):
        self.server.stop()


class Peer:
    name = ""

    def __init__(self, auth):
        self.folder = tempfile.mkdtemp(prefix="xmpp-bench-")
        self.place = ("127.0.0.1", free_port())
        self.process = self.start(auth)
        self.pid = self.process.pid
        wait_port(self.place[1], self.process)

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Prosody(Peer):
    name = "prosody"
    AUTH = {
        "open": '''authentication = "insecure"
insecure_open_authentication = "Yes please, I know what I'm doing!"''',
        "scram": f'''authentication = "internal_hashed"
password_hash = "SHA-256"
default_iteration_count = {ITERATIONS}
allow_registration = true''',
    }

    def start(self, auth):
        more = ', "register_ibr", "announce"' if auth == "scram" else ""
        config = self.write("prosody.cfg.lua", f'''data_path = "{self.folder}"
pidfile = "{self.folder}/pid"
run_as_root = true
modules_enabled = {{ "saslauth", "roster", "disco", "ping", "smacks", "csi_simple", "offline", "message"{more} }}
modules_disabled = {{ "s2s", "tls" }}
admins = {{ "{ADMIN}@{DOMAIN}" }}
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {self.place[1]} }}
c2s_direct_tls_ports = {{}}
c2s_require_encryption = false
allow_unencrypted_plain_auth = true
{self.AUTH[auth]}
log = {{ error = "{self.folder}/log" }}
VirtualHost "{DOMAIN}"
''')
        return subprocess.Popen(["prosody", "--config", config, "-F"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Ejabberd(Peer):
    name = "ejabberd"
    AUTH = {
        "open": "auth_method: anonymous\nanonymous_protocol: login_anon\nallow_multiple_connections: true",
        "scram": "auth_method: internal\nauth_password_format: scram\nauth_scram_hash: sha256\nregistration_timeout: infinity",
    }
    SCRAM_MODULES = "  mod_adhoc: {}\n  mod_register:\n    ip_access: all\n    access: all\n  mod_announce:\n    access: announce\n"

    def start(self, auth):
        config = self.write("ejabberd.yml", f'''hosts: ["{DOMAIN}"]
loglevel: error
{self.AUTH[auth]}
acl:
  admin:
    user: ["{ADMIN}@{DOMAIN}"]
access_rules:
  announce:
    allow: admin
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
{self.SCRAM_MODULES if auth == "scram" else ""}''')
        library = subprocess.run("ls -d /usr/lib/*/ejabberd*/ebin /usr/share/ejabberd*/ebin 2>/dev/null | head -1", shell=True,
                                 capture_output=True, text=True).stdout.strip()
        libraries = os.path.dirname(os.path.dirname(library))
        environment = {**os.environ, "EJABBERD_CONFIG_PATH": config, "ERL_LIBS": libraries, "HOME": self.folder,
                       "EJABBERD_LOG_PATH": os.path.join(self.folder, "log"), "SPOOL_DIR": self.folder}
        command = ["erl", "-noinput", "-sname", f"bench{os.getpid()}", "-mnesia", "dir", f'"{self.folder}/mnesia"', "-s", "ejabberd"]
        return subprocess.Popen(command, env=environment, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


PEERS = {made.name: made for made in (Prosody, Ejabberd)}


def start(name, program, auth, tls=False):
    return Postrider(program, auth, tls) if name == Postrider.name else PEERS[name](auth)
