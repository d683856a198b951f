#!/usr/bin/env python3
"""Starts the server with each number of its settings at the ends of what is allowed, and uses it.

    bounds.py --server PATH [--only SECTION.KEY]

The ends are those of docs/config.md. A server may refuse a number that contradicts another setting, in
words; it may not panic, end, or answer 500. What lies beyond the ends is refused by `config check`.
"""

import argparse
import base64
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from harness import check
from server import APP_KEY, ROOT, Server, StartFailed

ROW = re.compile(r"^\| `(\w+)` \| `[^|]*` \| (-?[\d_]+) – (-?[\d_]+) \|", re.MULTILINE)
ROOM = {"store.min_free_bytes": "0", "store.min_free_percent": "0", "store.reserve_bytes": "0"}
#: Refused by `serve` and `config check`: the settings are wrong.
EXIT_WRONG = 2


def numbers():
    """(section.key, least, most)"""
    with open(os.path.join(ROOT, "docs", "config.md"), encoding="utf-8") as page:
        parts = re.split(r"^## `\[(\w+)\]`$", page.read(), flags=re.MULTILINE)[1:]
    for section, text in zip(parts[::2], parts[1::2]):
        for key, least, most in ROW.findall(text):
            yield f"{section}.{key}", int(least.replace("_", "")), int(most.replace("_", ""))


def call(server, method, path, body=None, auth=f"Bearer {APP_KEY}"):
    connection = http.client.HTTPConnection(*server.places["http"], timeout=20)
    try:
        headers = {"Authorization": auth, "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def use(server):
    """A device, a push to it, and its inbox. A limit may refuse each; nothing may fail."""
    device = {"device_id": "d", "platform": "other", "device_secret": "A" * 43}
    push = {"audience": {"device": "d"}, "data": 1, "ttl_secs": 1}
    own = "Basic " + base64.b64encode(f"d:{device['device_secret']}".encode()).decode()
    for method, path, body, auth in [
        ("POST", "/v1/devices", device, None), ("POST", "/v1/messages", push, None),
        ("GET", "/v1/messages?limit=1", None, None), ("GET", "/v1/inbox?wait=0", None, own),
    ]:
        try:
            status, answer = call(server, method, path, body, auth or f"Bearer {APP_KEY}")
        except (http.client.HTTPException, OSError):
            # Cut by a limit, of time or of connections, say.
            continue
        check(status != 500, f"{method} {path}: {status} {answer[:200]}")


def at(binary, name, value):
    with tempfile.TemporaryDirectory() as work:
        log = os.path.join(work, "log")
        server = Server(binary, os.path.join(work, "data"), log_path=log, settings={**ROOM, name: value})
        try:
            server.start()
        except StartFailed:
            code = server.process.wait()
            # A store that has to be emptier than the disk is says so.
            said = code == EXIT_WRONG or "storage is low" in server.last_words(400)
            check(said, f"ended with {code}: {server.last_words(400)}")
            return "refused"
        try:
            use(server)
            check(server.process.poll() is None, f"ended: {server.last_words(400)}")
        finally:
            server.kill() if server.process.poll() is None else None
        check("panicked" not in server.last_words(100_000), server.last_words(800))
        return "served"


def beyond(binary, name, value):
    done = subprocess.run([binary, "config", "check", "--set", f"{name}={value}"], capture_output=True, text=True,
                          timeout=60, check=False)
    words = done.stdout + done.stderr
    check(done.returncode == EXIT_WRONG and name.split(".")[1] in words, f"{done.returncode}: {words[-300:]}")
    return "refused"


def cases(binary, only):
    for name, least, most in numbers():
        if only and name != only:
            continue
        for value in sorted({least, min(least + 1, most), most}):
            yield f"{name} = {value}", at, (binary, name, value)
        for value in (least - 1, most + 1):
            yield f"{name} = {value}", beyond, (binary, name, value)


def judge(case):
    words, work, arguments = case
    try:
        return words, work(*arguments), None
    except Exception as error:  # Whatever it is, the case failed.
        return words, "FAIL", f"{type(error).__name__}: {error}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--only")
    options = parser.parse_args()
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(judge, cases(options.server, options.only)))
    failed = [(words, why) for words, verdict, why in results if why]
    for words, why in failed:
        print(f"FAIL {words}: {why}")
    refused = [words for words, verdict, _ in results if verdict == "refused" and "-" not in words]
    print(f"refused in words at their ends or beyond: {len(refused)}")
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed or not results else 0)


if __name__ == "__main__":
    main()
