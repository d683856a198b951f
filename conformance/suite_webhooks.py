"""Webhooks, judged by the genuine libraries of Standard Webhooks of PyPI and npm; each case has a server of its own.

A receiver that is away for an hour is one that is away for so long that its events wait: what time there does, the
back-off, is shortened by the settings and tested in `crates/postrider-outbound/src/attempts.rs`.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading

from harness import DEFAULT, NotHere, Suite, check, equal, eventually
from server import ROOT, Server
from webhook_receiver import Receiver, verifier

SUITE = Suite("webhooks")
case = SUITE.case(DEFAULT, needs_http=True)
OPEN = {"webhooks.allow_http": "true", "webhooks.ports": "", "webhooks.allow_networks": "127.0.0.0/8",
        "webhooks.retry_max_secs": 1, "webhooks.answer_secs": 2}
SECRET = "whsec_" + base64.b64encode(b"outside-judge-webhook-secret-01").decode()
OTHER = "whsec_" + base64.b64encode(b"outside-judge-webhook-secret-02").decode()
MESSAGES = 60


@contextlib.contextmanager
def server_for(target, **settings):
    with tempfile.TemporaryDirectory(prefix="webhooks-") as folder:
        server = Server(target.notes["binary"], os.path.join(folder, "data"), None, os.path.join(folder, "log"),
                        settings={**OPEN, **settings})
        server.with_fixed_ports()
        try:
            server.start()
            yield server
        finally:
            server.stop()


def put(target, name, receiver, **fields):
    body = {"url": receiver.url(), "secret": SECRET, **fields}
    return target.call("PUT", f"/v1/webhooks/{name}", body, expect=200)[1]


def hook(target, name):
    return target.call("GET", f"/v1/webhooks/{name}", expect=200)[1]


def outcomes(target, name):
    return [failure["outcome"] for failure in target.call("GET", f"/v1/webhooks/{name}/failures", expect=200)[1]["failures"]]


def stream(target):
    """All events of the app."""
    events, after = [], ""
    while True:
        page = target.call("GET", f"/v1/events?limit=1000{after}", expect=200)[1]
        if not page["events"]:
            return events
        events += page["events"]
        after = f"&after={page['next']}"


def send(target, device, count):
    """Messages that are cancelled: each leaves two events."""
    for _ in range(count):
        body = {"audience": {"device": device.device_id}, "data": 1}
        message = target.call("POST", "/v1/messages", body, expect=202)[1]["message_id"]
        target.call("DELETE", f"/v1/messages/{message}", expect=200)


@case
def a_receiver_that_was_away_while_the_server_was_killed_misses_nothing_and_gets_nothing_twice_under_two_ids(target):
    script = [503, "close", 500, 204, 429, 301, 204, "close"]
    with Receiver(SECRET, script) as receiver, server_for(target) as server:
        own = server.target()
        device = own.register()
        put(own, "w", receiver, batch_max=7)
        send(own, device, MESSAGES // 4)
        receiver.leave()
        send(own, device, MESSAGES // 4)
        server.kill()
        server.start()
        own = server.target()
        send(own, device, MESSAGES // 4)
        eventually(lambda: hook(own, "w")["failed_attempts"] > 0, "the webhook notices that its receiver is away")
        server.kill()
        receiver.come()
        server.start()
        own = server.target()
        send(own, device, MESSAGES // 4)
        wanted = [event["id"] for event in stream(own)]
        check(len(wanted) >= 2 * MESSAGES, f"{len(wanted)} events of {MESSAGES} messages")
        receiver.wait(lambda: len(set(receiver.ids_taken())) >= len(wanted), f"{len(wanted)} events")
        receiver.judge(wanted)
        eventually(lambda: hook(own, "w")["lag_secs"] == 0 and hook(own, "w")["state"] == "active", "it has caught up")
        said = set(outcomes(own, "w"))
        check("connect" in said or "broken" in said, f"failures {said}")


@case
def what_is_posted_is_what_the_stream_gives(target):
    with Receiver(SECRET) as receiver, server_for(target) as server:
        own = server.target()
        device = own.register()
        put(own, "w", receiver)
        send(own, device, 3)
        rows = stream(own)
        receiver.wait(lambda: len(receiver.ids_taken()) >= len(rows), "the events")
        posted = [event for request in receiver.taken for event in request.events]
        without_cursor = [[{**row, "cursor": ""} for row in all_of] for all_of in (posted, rows)]
        equal(without_cursor[0], without_cursor[1], "the events")
        page = own.call("GET", f"/v1/events?after={posted[0]['cursor']}", expect=200)[1]
        equal(page["events"][0]["id"], posted[1]["id"], "the event behind the cursor of the first one")


@case
def only_the_steps_that_were_asked_for_come(target):
    with Receiver(SECRET) as receiver, server_for(target) as server:
        own = server.target()
        device = own.register()
        put(own, "w", receiver, events=["cancelled"])
        send(own, device, 4)
        receiver.wait(lambda: len(receiver.ids_taken()) >= 4, "the ends")
        equal({event["step"] for request in receiver.taken for event in request.events}, {"cancelled"}, "steps")


@case
def while_secrets_change_the_old_and_the_new_one_verify(target):
    with Receiver() as receiver, server_for(target) as server:
        own = server.target()
        device = own.register()
        put(own, "w", receiver)
        made = own.call("POST", "/v1/webhooks/w/secret", {"overlap_secs": 3600}, expect=200)[1]["secret"]
        send(own, device, 1)
        receiver.wait(lambda: receiver.taken, "a request")
        both = receiver.taken[0]
        for secret in (SECRET, made):
            verifier(secret).verify(both.raw, both.headers)
        equal(len(both.headers["webhook-signature"].split(" ")), 2, "signatures")
        own.call("POST", "/v1/webhooks/w/secret", {"secret": OTHER, "overlap_secs": 0}, expect=200)
        count = len(receiver.taken)
        send(own, device, 1)
        receiver.wait(lambda: len(receiver.taken) > count, "another request")
        last = receiver.taken[-1]
        verifier(OTHER).verify(last.raw, last.headers)
        equal(len(last.headers["webhook-signature"].split(" ")), 1, "signatures")


@case
def the_library_of_npm_verifies_too(target):
    if not shutil.which("node") or not os.path.isdir(os.path.join(ROOT, "conformance/node/node_modules/standardwebhooks")):
        raise NotHere("node or standardwebhooks is not installed")
    process = subprocess.Popen(["node", os.path.join(ROOT, "conformance/node/webhook.cjs"), SECRET], stdout=subprocess.PIPE, text=True)
    try:
        port = json.loads(process.stdout.readline())["port"]
        with server_for(target) as server:
            own = server.target()
            own.call("PUT", "/v1/webhooks/w", {"url": f"http://127.0.0.1:{port}/", "secret": SECRET}, expect=200)
            tested = own.call("POST", "/v1/webhooks/w/test", expect=200)[1]
            equal(tested["outcome"], "status_2xx", "the test")
            said = json.loads(process.stdout.readline())
            equal((said["verified"], said["type"]), (True, "webhook.test"), "what the receiver said")
            send(own, own.register(), 1)
            said = json.loads(process.stdout.readline())
            equal((said["verified"], said["type"]), (True, "delivery.events"), "what the receiver said")
    finally:
        process.kill()
        process.wait()


def redirecting(to):
    def answer(handler):
        handler.send_response(307)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
    return answer


def endless(handler):
    handler.wfile.write(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        handler.wfile.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")


def silent(handler):
    threading.Event().wait(20)


def no_http(handler):
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n")


@case
def receivers_that_mean_ill_get_nowhere_and_hold_up_nobody(target):
    with contextlib.ExitStack() as stack:
        inside = stack.enter_context(Receiver())
        kinds = {"redirecting": redirecting(inside.url()), "endless": endless, "silent": silent, "no-http": no_http}
        ill = {name: stack.enter_context(Receiver(SECRET, answer=answer)) for name, answer in kinds.items()}
        well = stack.enter_context(Receiver(SECRET))
        server = stack.enter_context(server_for(target))
        own = server.target()
        device = own.register()
        for name, receiver in ill.items():
            put(own, name, receiver)
        put(own, "well", well)
        send(own, device, MESSAGES // 4)
        wanted = [event["id"] for event in stream(own)]
        well.wait(lambda: len(set(well.ids_taken())) >= len(wanted), "the well receiver gets all")
        well.judge(wanted)
        said = {"redirecting": "status_3xx", "endless": "status_5xx", "silent": "timeout", "no-http": "broken"}
        for name, outcome in said.items():
            eventually(lambda name=name, outcome=outcome: outcome in outcomes(own, name), f"{name} fails with {outcome}")
        check(not inside.all, "a redirect was followed")
        check("not-for-logs" not in server.last_words(10_000_000), "the query of a URL stands in the log")


@case
def urls_that_lead_inside_are_refused_by_their_code(target):
    rows = ["http://hooks.example.org/", "https://127.0.0.1/", "https://[::ffff:127.0.0.1]/", "https://0x7f.1/",
            "https://2130706433/", "https://169.254.169.254/", "https://localhost/", "https://localhost./",
            "https://user@hooks.example.org/", "https://hooks.example.org:22/", "https://[64:ff9b::7f00:1]/",
            "https://[2002:7f00:1::]/", "https://10.0.0.1/", "https://100.64.0.1/", "https://224.0.0.1/"]
    for url in rows:
        status, answer = target.call("PUT", "/v1/webhooks/inside", {"url": url})
        equal((status, answer["error"]["code"]), (400, "webhook_url_refused"), url)
    equal(target.call("GET", "/v1/webhooks/inside")[0], 404, "the webhook")


@case
def a_certificate_that_nobody_trusts_is_refused_until_the_operator_trusts_it(target):
    with tempfile.TemporaryDirectory() as folder:
        pem = os.path.join(folder, "receiver.pem")
        made = subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                               "-keyout", pem + ".key", "-out", pem + ".crt", "-subj", "/CN=127.0.0.1", "-days", "2",
                               "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"], capture_output=True, check=False) \
            if shutil.which("openssl") else None
        if made is None or made.returncode:
            raise NotHere("openssl makes no certificate here")
        with open(pem, "wb") as both:
            for part in (".key", ".crt"):
                with open(pem + part, "rb") as file:
                    both.write(file.read())
        with Receiver(SECRET, tls=pem) as receiver:
            for settings, outcome in [({}, "tls"), ({"webhooks.ca_file": pem + ".crt"}, "status_2xx")]:
                with server_for(target, **settings) as server:
                    own = server.target()
                    own.call("PUT", "/v1/webhooks/w", {"url": receiver.url("https"), "secret": SECRET}, expect=200)
                    equal(own.call("POST", "/v1/webhooks/w/test", expect=200)[1]["outcome"], outcome, "the test")


@case
def a_secret_lies_in_no_file_and_without_its_key_the_webhook_waits(target):
    with Receiver(SECRET) as receiver, server_for(target) as server:
        own = server.target()
        device = own.register()
        put(own, "w", receiver)
        send(own, device, 1)
        receiver.wait(lambda: receiver.taken, "a request")
        server.stop()
        key_file = os.path.join(server.data_dir, "secrets.key")
        equal(os.stat(key_file).st_mode & 0o777, 0o600, "the mode of the key file")
        raw = base64.b64decode(SECRET[6:])
        for folder, _, names in os.walk(server.data_dir):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    bytes_of = file.read()
                check(raw not in bytes_of and SECRET[6:].encode() not in bytes_of, f"the secret stands in {name}")
        check(SECRET[6:] not in server.last_words(10_000_000), "the secret stands in the log")
        os.rename(key_file, key_file + ".away")
        server.start()
        own = server.target()
        send(own, device, 1)
        eventually(lambda: hook(own, "w")["state"] == "parked", "the webhook is parked")
        check("a webhook is parked" in server.last_words(10_000_000), "the log does not name it")
        equal(own.call("POST", "/v1/webhooks/w/test")[1]["error"]["code"], "secrets_unavailable", "the test")
        server.stop()
        os.rename(key_file + ".away", key_file)
        server.start()
        own = server.target()
        wanted = [event["id"] for event in stream(own)]
        receiver.wait(lambda: len(set(receiver.ids_taken())) >= len(wanted), "all events")
        receiver.judge(wanted)


@case
def gone_stops_a_webhook_and_a_replay_brings_back_what_is_kept(target):
    with Receiver(SECRET, [410]) as receiver, server_for(target) as server:
        own = server.target()
        device = own.register()
        put(own, "w", receiver)
        send(own, device, 1)
        eventually(lambda: hook(own, "w")["state"] == "gone", "the webhook is stopped")
        put(own, "w", receiver)
        wanted = [event["id"] for event in stream(own)]
        receiver.wait(lambda: len(set(receiver.ids_taken())) >= len(wanted), "all events")
        receiver.taken.clear()
        own.call("POST", "/v1/webhooks/w/replay", {"from": "2020-01-01T00:00:00Z"}, expect=200)
        receiver.wait(lambda: len(receiver.ids_taken()) >= len(wanted), "all events again")
        equal(receiver.ids_taken(), wanted, "the events of the replay")
        metrics = own_metrics(server)
        check('postrider_webhook_lag_seconds{app="default"} 0' in metrics, "no lag in the metrics")
        check('postrider_webhook_requests_total{app="default",outcome="failed"} 1' in metrics, "no failure in the metrics")


def own_metrics(server):
    import urllib.request
    with urllib.request.urlopen("http://%s:%d/metrics" % server.places["ops"], timeout=20) as answer:
        return answer.read().decode()
