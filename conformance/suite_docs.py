"""The documents: each command of README, guide, protocol pages and SDK is run as it stands, one page after the other, against
a server of its own.

A page is a session of one shell (`bash -euo pipefail`) in an empty folder: its `sh` blocks run in order, so that what one block
sets the next one has. The blocks are not rewritten. The server listens on free ports; curl, mosquitto_sub and postrider are led there by their own
configuration files and variables, so that `localhost:8080` in a document means this server. An answer that is a refusal ends
the session (`fail-with-body`).

The frames of the WebSocket page are sent to a server, and what it sends has the fields that the page shows. Other blocks are
judged by their language: JSON has to parse, TOML has to pass `postrider config check`, XML has to be well-formed;
`html` and `js` are compiled by the step `sdk`. A language that nobody knows fails, unless a mark says why it is not run.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as xml

from docs_blocks import blocks_of, commands_within, is_event_stream, json_values
from harness import DEFAULT, NotHere, Suite, check, equal
from server import ROOT, quiet_port
from web_clients import Socket

SUITE = Suite("docs")
PAGES = ["README.md", "README.zh-CN.md", "docs/guide.md", "sdk/web/README.md"]
PAGES += sorted(f"docs/protocol/{name}" for name in os.listdir(os.path.join(ROOT, "docs/protocol")) if name.endswith(".md"))
#: What a page may leave out: blocks with the mark `not run`.
NOT_RUN = {"README.md": 3, "README.zh-CN.md": 3, "sdk/web/README.md": 1}
#: Compiled with the types of the SDK by `npm run examples`.
COMPILED = {"sdk/web/README.md": ("html", "js", "ts")}
#: The newest pages may have no commands; these must.
COMMANDS_MIN = {"README.md": 2, "README.zh-CN.md": 2, "docs/guide.md": 5}
SESSION_SECS = 60
TOOLS = ("bash", "curl", "jq", "mosquitto_sub")
#: The ready line of `serve`.
READY = "listening "


def neighbours():
    """A free port whose successor is free as well: a page may have two receivers."""
    while True:
        port = quiet_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 1))
                return port
            except OSError:
                continue


class Session:
    """A folder with the tools' configuration, and the environment that leads them to the page's server."""

    def __init__(self, folder, binary):
        self.folder = folder
        self.ports = {name: quiet_port() for name in ("http", "ops", "mqtt", "xmpp")}
        programs = os.path.join(folder, "bin")
        os.makedirs(programs)
        os.symlink(os.path.abspath(binary), os.path.join(programs, "postrider"))
        home = os.path.join(folder, "home")
        os.makedirs(os.path.join(home, ".config"))
        self.write(home, ".curlrc", self.curl_settings())
        self.write(home, ".config/mosquitto_sub", f"-p {self.ports['mqtt']}\n")
        self.work = os.path.join(folder, "work")
        os.makedirs(self.work)
        self.variables = {
            # Receivers of webhooks use the libraries of the tests.
            "PATH": f"{programs}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            "NODE_PATH": os.path.join(ROOT, "conformance/node/node_modules"), "PORT": str(neighbours()), "HOME": home, "LANG": "C.UTF-8", "TMPDIR": folder,
            "POSTRIDER_SERVER": f"http://127.0.0.1:{self.ports['http']}",
            "POSTRIDER_MQTT": f"127.0.0.1:{self.ports['mqtt']}",
            # What the machine of the tests needs: a full disk, say.
            **{name: value for name, value in os.environ.items() if name.startswith("POSTRIDER_STORE_")},
            **{f"POSTRIDER_{name.upper()}_LISTEN": f"127.0.0.1:{port}" for name, port in self.ports.items()},
        }

    def curl_settings(self):
        led = [("localhost", 8080, "http"), ("127.0.0.1", 8080, "http"), ("localhost", 9090, "ops"), ("127.0.0.1", 9090, "ops")]
        lines = [f'connect-to = "{host}:{port}:127.0.0.1:{self.ports[name]}"' for host, port, name in led]
        return "\n".join(lines + ["fail-with-body", "show-error", "max-time = 30", ""])

    @staticmethod
    def write(folder, name, text):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)

    def run(self, script):
        """(exit status, what was said) of a script; whatever it started is ended with it."""
        self.write(self.folder, "session.sh", script)
        with open(os.path.join(self.folder, "said"), "w+", encoding="utf-8") as said:
            process = subprocess.Popen(["bash", os.path.join(self.folder, "session.sh")], cwd=self.work, env=self.variables,
                                       stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                status = process.wait(timeout=SESSION_SECS)
            except subprocess.TimeoutExpired:
                status = f"nothing after {SESSION_SECS} s"
            finally:
                subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], stderr=subprocess.DEVNULL, check=False)
                process.wait()
            said.seek(0)
            return status, said.read()


def beside(block, number):
    """A block that goes on: in the background, until it says that it is ready."""
    return f"""
( {block.text.strip()}
) >terminal-{number} 2>&1 &
disown
until grep -q '^{READY}' terminal-{number}; do kill -0 $! || {{ cat terminal-{number}; exit 1; }}; sleep 0.05; done
"""


def script_of(blocks):
    parts = ["set -euo pipefail\n"]
    for number, block in enumerate(blocks):
        # Into a file of its own: a block may send its output elsewhere.
        parts.append(f"echo {shlex.quote(block.place)} >../place\n")
        parts.append(beside(block, number) if block.own_terminal else block.text)
    return "".join(parts) + "\n"


def run_commands(page, blocks, binary):
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        raise NotHere(f"{', '.join(missing)} is not installed")
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        session = Session(folder, binary)
        status, said = session.run(script_of(blocks))
        if status == 0 and '"error":' not in said:
            return
        with open(os.path.join(folder, "place"), encoding="utf-8") as file:
            place = file.read().strip()
        check(False, f"the commands at {place} ended with {status}, having said: {said[-1500:]}")


def judge_toml(block, binary):
    tomllib.loads(block.text)
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        Session.write(folder, "postrider.toml", block.text)
        done = subprocess.run([binary, "config", "check", "--config", "postrider.toml"], cwd=folder, capture_output=True,
                              text=True, timeout=SESSION_SECS, check=False)
        check(done.returncode == 0, f"{block.place}: config check says {done.stderr}")


def judge(block, page, binary):
    """Judges a block that is no command."""
    try:
        if block.language == "json":
            check(json_values(block.text), f"{block.place}: is empty")
        elif block.language == "toml":
            judge_toml(block, binary)
        elif block.language == "xml":
            xml.fromstring(block.text)
        elif block.language in ("nginx", "haproxy"):
            pass  # `suite_proxies.py` runs them.
        elif block.language == "text":
            check(is_event_stream(block.text), f"{block.place}: is no event stream; mark what is not to be judged")
        else:
            check(block.language in COMPILED.get(page, ()), f"{block.place}: nothing judges {block.language or 'no language'!r}")
    except (ValueError, xml.ParseError) as error:
        check(False, f"{block.place}: {error}")


def page_case(page):
    def run(target):
        blocks = blocks_of(page, ROOT)
        left_out = [block.place for block in blocks if block.not_run]
        binary = os.path.abspath(target.notes["binary"])
        equal(len(left_out), NOT_RUN.get(page, 0), f"blocks that are not run ({left_out})")
        blocks = [block for block in blocks if not block.not_run]
        commands = [block for block in blocks if block.language in ("sh", "bash")]
        check(len(commands) >= COMMANDS_MIN.get(page, 0), f"only {len(commands)} blocks of commands were found")
        for block in blocks:
            if block not in commands:
                judge(block, page, binary)
        if commands:
            run_commands(page, commands, binary)
    return run


for page in PAGES:
    SUITE.add("blocks_of_" + page.removesuffix(".md").replace("/", "_"), page_case(page), DEFAULT)


ASKS_A_SERVER = ("push", "message", "device", "app")


@SUITE.case(DEFAULT)
def commands_within_a_line_are_parsed_as_they_stand(target):
    """What is written out asks a server that is not there: one that is wrongly written ends with 2, another with 3. The rest
    is only named, or would start something: with `--help` behind it, its words are parsed and nothing is done."""
    nowhere = {**os.environ, "POSTRIDER_SERVER": "http://127.0.0.1:1", "POSTRIDER_APP_KEY": "prk_x", "POSTRIDER_ADMIN_KEY": "pra_x"}
    judged = 0
    for page in PAGES:
        for place, command in commands_within(page, ROOT):
            if "…" in command:
                continue
            words = shlex.split(command.split(">")[0])[1:]
            is_whole = words[0] in ASKS_A_SERVER and any(word.startswith("-") or word.isupper() for word in words)
            done = subprocess.run([target.notes["binary"], *words, *([] if is_whole else ["--help"])], env=nowhere,
                                  capture_output=True, text=True, timeout=SESSION_SECS, check=False)
            equal(done.returncode, 3 if is_whole else 0, f"{place}: `{command}`: {done.stderr}: status")
            judged += 1
    check(judged >= 10, f"only {judged} commands were found")


# --- the frames of the WebSocket page -----------------------------------------------------------------

def documented(kind, at=0):
    """The frames of this type that the page shows, in order."""
    blocks = [block for block in blocks_of("docs/protocol/websocket.md", ROOT) if block.language == "json"]
    found = [frame for block in blocks for frame in json_values(block.text) if frame["type"] == kind]
    check(len(found) > at, f"the page has no frame {kind} number {at}")
    return found[at]


def alike(frame, kind, at=0):
    equal(sorted(frame), sorted(documented(kind, at)), f"fields of {kind}")
    return frame


@SUITE.case(DEFAULT, needs_http=True)
def frames_of_the_websocket_page_are_those_of_the_server(target):
    device = target.register()
    hello = {**documented("hello"), "device": device.device_id, "secret": device.secret}
    with Socket(target, hello=hello) as first:
        token = alike(first.frame("welcome"), "welcome")["resume_token"]
    with Socket(target, hello={**documented("hello", 1), "token": token}) as socket:
        alike(socket.frame("welcome"), "welcome")
        shown = documented("push")["message"]
        audience = {"device": device.device_id}
        body = {"audience": audience, "notification": shown["notification"], "data": shown["data"]}
        target.call("POST", "/v1/messages", body, expect=202)
        push = alike(socket.frame("push"), "push")
        equal((sorted(push["message"]), push["message"]["data"]), (sorted(shown), shown["data"]), "the envelope")
        target.call("POST", "/v1/messages", {"audience": audience, "data_base64": documented("push", 1)["base64"]}, expect=202)
        raw = alike(socket.frame("push"), "push", 1)
        equal(raw["base64"], documented("push", 1)["base64"], "raw bytes")
        socket.send({**documented("ack"), "deliveries": [push["delivery"], raw["delivery"]]})
        equal(socket.ask({**documented("receipt"), "id": push["message"]["id"]})["type"], "ok", "answer to the receipt")
        topics_are_as_documented(target, device, socket)
        target.call("DELETE", f"/v1/devices/{device.device_id}", expect=204)
        equal(socket.frame("bye")["reason"], "revoked", "reason of the end")


def topics_are_as_documented(target, device, socket):
    subscribe = documented("subscribe")
    equal(alike(socket.ask(subscribe), "ok")["granted"], [True], "granted")
    publish = {"payload_text": "x", "qos": 1}
    target.call("POST", "/v1/topics/public%2Fnews/publish", publish, expect=202)
    socket.ack(alike(socket.frame("message"), "message"))
    retained = documented("message", 1)
    publish = {"payload_json": retained["json"], "content_type": "application/json", "retain": True, "qos": 0}
    target.call("POST", f"/v1/topics/{retained['topic'].replace('/', '%2F')}/publish", publish, expect=202)
    socket.send({**subscribe, "topics": [retained["topic"]], "qos": 0})
    answers = {frame["type"]: frame for frame in (socket.next(), socket.next())}
    equal(sorted(answers), ["message", "ok"], "answers to the subscription")
    alike(answers["message"], "message", 1)
    equal(socket.ask(documented("unsubscribe"))["type"], "ok", "answer to unsubscribe")
    own = documented("publish")
    equal(socket.ask({**own, "topic": own["topic"].replace("d-7", device.device_id)})["type"], "ok", "answer to publish")
    refused = alike(socket.ask({**own, "topic": "public/news"}), "error")
    equal(refused["code"], documented("error")["code"], "code")
