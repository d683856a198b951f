#!/usr/bin/env python3
"""The server says when it is ill, and a restored folder is known.

    ill.py --server PATH [--planted PATH]     PATH of --planted: a binary built with `--features planted-panics`

Every case has a server of its own.
"""

import argparse
import base64
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

from harness import check, equal, eventually
from server import ADMIN_KEY, APP_KEY, Server

SETTINGS = {"store.min_free_bytes": "0", "store.min_free_percent": "0", "gateway.workers": "1", "http.workers": "2"}
#: How `serve` ends when a part of it ended.
EXIT_PART_ENDED = 70


class Place:
    """A folder, and servers on it."""

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        self.data = os.path.join(folder, "data")
        self.started = []

    def server(self, **settings):
        settings = {**SETTINGS, **{name.replace("__", "."): value for name, value in settings.items()}}
        server = Server(self.binary, self.data, None, os.path.join(self.folder, "log"), settings=settings)
        self.started.append(server)
        return server

    def end(self):
        for server in self.started:
            if server.process is not None and server.process.poll() is None:
                server.kill()

    def log(self):
        with open(os.path.join(self.folder, "log"), encoding="utf-8") as log:
            return log.read()


def readiness(server):
    connection = http.client.HTTPConnection(*server.places["ops"], timeout=5)
    connection.request("GET", "/readyz")
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def thread_ends(place, name, **settings):
    server = place.server(**settings).start()
    target = server.target()
    equal(readiness(server)[0], 200, "ready before")
    told = []

    def is_told():
        try:
            status, body = readiness(server)
        except (OSError, http.client.HTTPException, ValueError):
            # It tells for some seconds only, and a busy machine may pass those without us.
            return bool(told) or server.process.poll() is not None
        if status == 503 and body.get("refuses"):
            told.append(body["refuses"])
        return bool(told)

    try:
        target.call("POST", "/v1/messages", {"audience": "all", "data_text": f"panic in thread {name}", "durability": "transient"})
        # Something for each of them to come by.
        target.call("POST", "/v1/devices", {"platform": "other"})
    except (OSError, http.client.HTTPException, AssertionError):
        pass
    eventually(is_told, f"/readyz says that {name} ended")
    reason = told[0] if told else place.log()
    check("panicked" in reason, f"the reason: {reason}")
    equal(server.process.wait(timeout=30), EXIT_PART_ENDED, "exit code")
    # Nothing was lost, and the next start finds a folder in order.
    again = place.server().start()
    equal(readiness(again)[0], 200, "ready again")
    again.stop()


def the_writer_panics(place):
    thread_ends(place, "writer")


def the_checkpointer_panics(place):
    thread_ends(place, "checkpoint", store__checkpoint_secs="1")


def the_time_thread_panics(place):
    thread_ends(place, "time")


def a_gateway_worker_panics(place):
    thread_ends(place, "gateway")


def the_http_listener_panics(place):
    thread_ends(place, "http")


def descriptors_run_out_and_nothing_ends(place):
    """S10: segments are rolled while idle connections hold what the process may open."""
    server = place.server(store__segment_bytes="200000", store__checkpoint_bytes="200000")
    command = ["sh", "-c", 'ulimit -n 256; exec "$0" "$@"', *server.command()]
    server.command = lambda: command
    server.start()
    target = server.target()
    device = target.register()
    idle = [socket.create_connection(server.places["http"]) for _ in range(150)]
    idle += [socket.create_connection(server.places["mqtt"]) for _ in range(150)]
    connection = None
    pushed = 0
    for _ in range(400):
        try:
            if connection is None:
                connection = http.client.HTTPConnection(*server.places["http"], timeout=10)
            body = {"audience": {"device": device.device_id}, "data_text": "x" * 3000}
            connection.request("POST", "/v1/messages", json.dumps(body), {"Authorization": f"Bearer {APP_KEY}", "Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status == 202:
                pushed += 1
                continue
            equal(answer.status, 503, "an answer to a push")
        except (OSError, http.client.HTTPException):
            pass
        connection = None
        if idle:
            # One seat is made free for the pushes.
            idle.pop(0).close()
    check(server.alive(), f"the server ended: {server.last_words()}")
    check(pushed >= 100, f"{pushed} pushes were taken")
    for waiting in idle:
        waiting.close()
    eventually(lambda: readiness(server)[0] == 200, "ready afterwards")
    report = target.call("GET", f"/v1/devices/{device.device_id}")[1]
    equal(report["inbox_len"], pushed, "what was taken is there")
    server.stop()


def first_keys(place):
    """U1, U28: a start that fails takes no key; keys lie in a file until somebody noted them, and in no JSON line."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POSTRIDER_")}
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    ports = {"listen.http": "127.0.0.1:0", "listen.ops": "127.0.0.1:0", "listen.mqtt": "127.0.0.1:0", "listen.xmpp": "off"}
    busy = {**ports, "listen.mqtt": "127.0.0.1:%d" % taken.getsockname()[1]}
    no_file = {**ports, "tls.certificate": "/nowhere.pem", "tls.key": "/nowhere.pem"}

    def command(settings):
        words = [place.binary, "serve", "--data", place.data]
        for name, value in {**SETTINGS, **settings}.items():
            words += ["--set", f"{name}={value}"]
        return words

    for settings in (busy, no_file):
        failed = subprocess.run(command(settings), env=clean, capture_output=True, text=True, timeout=60, check=False)
        equal(failed.returncode, 1, "a start that fails")
        check(not os.path.exists(os.path.join(place.data, "first-keys")), "no keys were made")
    for settings, are_shown in (({"log.format": "json"}, False), ({}, True)):
        with subprocess.Popen(command({**ports, **settings}), env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            check(process.stdout.readline().startswith("listening "), "the ready line")
            process.send_signal(signal.SIGTERM)
            log = process.communicate(timeout=60)[1]
        path = os.path.join(place.data, "first-keys")
        equal(os.stat(path).st_mode & 0o777, 0o600, "mode of the file")
        with open(path, encoding="utf-8") as file:
            keys = dict(line.split("=", 1) for line in file.read().split())
        equal(sorted(keys), ["POSTRIDER_ADMIN_KEY", "POSTRIDER_APP_KEY"], "what is in it")
        for key in keys.values():
            equal(key in log, are_shown, f"shown with {settings}")
        if not are_shown:
            for line in log.splitlines():
                json.loads(line)
    reset = subprocess.run([place.binary, "key", "reset", "--data", place.data, "--revoke"], env=clean, capture_output=True, text=True, timeout=60, check=False)
    equal(reset.returncode, 0, reset.stderr)
    made = dict(line.split("=", 1) for line in reset.stdout.split())
    check(not os.path.exists(path), "they were shown")
    with subprocess.Popen(command(ports), env=clean, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        http_at = process.stdout.readline().split("http=")[1].split()[0]
        for key, status in ((made["POSTRIDER_APP_KEY"], 200), (keys["POSTRIDER_APP_KEY"], 401)):
            connection = http.client.HTTPConnection(http_at, timeout=10)
            connection.request("GET", "/v1/devices", headers={"Authorization": f"Bearer {key}"})
            equal(connection.getresponse().status, status, "a key")
        running = subprocess.run([place.binary, "key", "reset", "--data", place.data], env=clean, capture_output=True, text=True, timeout=60, check=False)
        check(running.returncode == 1 and "running" in running.stderr, running.stderr)
        process.send_signal(signal.SIGTERM)
        equal(process.wait(timeout=60), 0, "stopped")


def a_revoked_preset_key_is_passed_over(place):
    """S11."""
    server = place.server().start()
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
    connection = http.client.HTTPConnection(*server.places["http"], timeout=10)
    connection.request("DELETE", "/v1/apps/default/keys/preset-1", headers=admin)
    equal(connection.getresponse().status, 204, "revoked")
    server.stop()
    again = place.server().start()
    connection = http.client.HTTPConnection(*again.places["http"], timeout=10)
    connection.request("GET", "/v1/devices", headers={"Authorization": f"Bearer {APP_KEY}"})
    equal(connection.getresponse().status, 401, "the revoked key")
    check("passed over" in place.log(), "it is told")
    again.stop()


def the_lock_file_may_be_removed(place):
    """S28."""
    server = place.server().start()
    os.remove(os.path.join(place.data, "LOCK"))
    second = place.server().spawn()
    equal(second.process.wait(timeout=60), 1, "a second process")
    check("in use" in place.log(), "it says why")
    check(server.alive(), "the first one goes on")
    looked = subprocess.run([place.binary, "store", "check", place.data], capture_output=True, text=True, timeout=60, check=False)
    check(looked.returncode == 1 and "running" in looked.stderr, looked.stderr)
    server.stop()
    for folder, words in ((place.data + "-not-there", "no folder"), (place.folder, "no data folder")):
        looked = subprocess.run([place.binary, "store", "check", folder], capture_output=True, text=True, timeout=60, check=False)
        check(looked.returncode == 1 and words in looked.stderr, f"{folder}: {looked.stderr}")


def signals_that_ask_for_nothing_end_nothing(place):
    """U5."""
    server = place.server().start()
    for asked in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        server.process.send_signal(asked)
        eventually(lambda name=asked.name: name in place.log(), f"{asked.name} is noted")
    equal(readiness(server)[0], 200, "ready")
    server.stop()


def a_restored_folder_is_known(place):
    """F2: a stopped folder's copy, one of a running server, and a copy that is started twice."""
    server = place.server().start()
    target = server.target()
    device = target.register()

    def push(text):
        server.target().push({"device": device.device_id}, title=text)

    push("first")
    common = cursors(server, device)
    running = place.data + "-running"
    shutil.copytree(place.data, running)
    server.stop()
    stopped = place.data + "-stopped"
    shutil.copytree(place.data, stopped)
    server = place.server().start()
    equal([status(server, device, line) for line in common], [200, 200, 200], "a restart")
    names = deliveries(server, device)
    for n in range(5):
        push(f"lost {n}")
    lost = cursors(server, device)
    kept, gone = names, deliveries(server, device)[len(names):]
    server.stop()
    for backup in (stopped, running, running):
        shutil.rmtree(place.data)
        shutil.copytree(backup, place.data)
        server = place.server().start()
        for n in range(8):
            push(f"after the restore {n}")
        equal([status(server, device, line) for line in lost], [409, 409, 409], f"cursors of what was lost, on {backup}")
        equal([status(server, device, line) for line in common], [200, 200, 200], f"cursors from before the copy, on {backup}")
        # Each of the lost numbers is another message's now, which the device has not seen.
        now = deliveries(server, device)
        equal((now[:len(kept)], len(now), set(now) & set(gone)), (kept, len(kept) + 8, set()), "names of deliveries")
        equal(acknowledge(server, device, gone), 0, "acknowledgements of what was lost")
        equal(deliveries(server, device), now, "the inbox after them")
        equal(acknowledge(server, device, now[:1] + now[-1:]), 2, "acknowledgements of what is there")
        lost, gone = cursors(server, device), now[len(kept):]
        server.stop()


def ask(server, device, line):
    connection = http.client.HTTPConnection(*server.places["http"], timeout=10)
    basic = base64.b64encode(f"{device.device_id}:{device.secret}".encode()).decode()
    by = f"Basic {basic}" if line.startswith("/v1/inbox") else f"Bearer {APP_KEY}"
    connection.request("GET", line, headers={"Authorization": by})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def deliveries(server, device):
    return [message["delivery"] for message in ask(server, device, "/v1/inbox")[1]["messages"]]


def acknowledge(server, device, names):
    connection = http.client.HTTPConnection(*server.places["http"], timeout=10)
    basic = base64.b64encode(f"{device.device_id}:{device.secret}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/inbox/acks", json.dumps({"deliveries": names}), headers)
    return json.loads(connection.getresponse().read())["acknowledged"]


def cursors(server, device):
    inbox = ask(server, device, "/v1/inbox")[1]["next"]
    events = ask(server, device, "/v1/events")[1]["next"]
    for _ in range(2):
        server.target().register()
    devices = ask(server, device, "/v1/devices?limit=1")[1]["next_cursor"]
    return [f"/v1/inbox?after={inbox}", f"/v1/events?after={events}", f"/v1/devices?limit=1&cursor={devices}"]


def status(server, device, line):
    code, body = ask(server, device, line)
    if code != 200:
        equal(body["error"]["code"], "cursor_from_other_history", line)
    return code


CASES = [descriptors_run_out_and_nothing_ends, first_keys, a_revoked_preset_key_is_passed_over, the_lock_file_may_be_removed,
         signals_that_ask_for_nothing_end_nothing, a_restored_folder_is_known]
PLANTED = [the_writer_panics, the_checkpointer_panics, the_time_thread_panics, a_gateway_worker_panics, the_http_listener_panics]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--planted")
    parser.add_argument("--case", default="")
    options = parser.parse_args()
    cases = [(case, options.server) for case in CASES] + [(case, options.planted) for case in PLANTED if options.planted]
    cases = [(case, binary) for case, binary in cases if options.case in case.__name__]
    failed = 0
    for case, binary in cases:
        with tempfile.TemporaryDirectory(prefix="ill-") as folder:
            place = Place(os.path.abspath(binary), folder)
            try:
                case(place)
                print(f"pass ill/{case.__name__}", flush=True)
            except Exception as error:  # pylint: disable=broad-except
                failed += 1
                print(f"FAIL ill/{case.__name__}  {type(error).__name__}: {error}", flush=True)
            finally:
                place.end()
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
