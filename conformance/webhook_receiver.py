"""A receiver of webhooks that remembers what came, and does what it is told: takes, refuses, closes, is away.

Each request is verified with the library of Standard Webhooks of PyPI before it counts.
"""

import http.server
import json
import socket
import ssl
import threading
import time

from harness import NotHere, Unmet, check, equal

try:
    from standardwebhooks.webhooks import Webhook, WebhookVerificationError
except ImportError:
    Webhook = None

PATIENCE_SECS = 60


def verifier(secret):
    if Webhook is None:
        raise NotHere("standardwebhooks is not installed")
    return Webhook(secret)


class Request:
    def __init__(self, headers, body):
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.raw, self.id = body, self.headers.get("webhook-id")
        self.body = json.loads(body)

    @property
    def events(self):
        return self.body["data"].get("events", [])


class Receiver:
    """Its port stays while it is away. `answers` are used up one a request: a status, "close", or a callable for the
    handler; after them everything is taken."""

    def __init__(self, secret=None, answers=(), tls=None, answer=None):
        self.secret, self.answers, self.answer = secret, list(answers), answer
        self.tls, self.lock = tls, threading.Lock()
        self.taken, self.all, self.refused, self.server = [], [], [], None
        self.port = 0

    def __enter__(self):
        return self.come()

    def __exit__(self, *_):
        self.leave()

    def come(self):
        handler = type("Handler", (Handler,), {"owner": self})
        self.server = Listening(("127.0.0.1", self.port), handler)
        if self.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.tls)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def leave(self):
        if self.server:
            self.server.shutdown()
            self.server.cut()
            self.server.server_close()
            self.server = None

    def url(self, scheme="http"):
        return f"{scheme}://127.0.0.1:{self.port}/receipts?token=not-for-logs"

    def came(self, headers, body):
        """What to answer."""
        with self.lock:
            request = Request(headers, body)
            if self.secret:
                try:
                    verifier(self.secret).verify(body, request.headers)
                except WebhookVerificationError as error:
                    self.refused.append(str(error))
                    return 401
            self.all.append(request)
            answer = self.answers.pop(0) if self.answers else self.answer or 204
            if isinstance(answer, int) and answer // 100 == 2:
                self.taken.append(request)
            return answer

    def wait(self, question, words, patience=PATIENCE_SECS):
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with self.lock:
                if question():
                    return
            time.sleep(0.02)
        raise Unmet(f"not in {patience} s: {words}; taken {len(self.taken)}, came {len(self.all)}, refused {self.refused[:2]}")

    def ids_taken(self):
        return [event["id"] for request in self.taken for event in request.events]

    def judge(self, wanted):
        """Nothing is missing, in order, and nothing came twice under two ids."""
        check(not self.refused, f"signatures that do not verify: {self.refused[:3]}")
        of_event, of_request = {}, {}
        for request in self.all:
            ids = [event["id"] for event in request.events]
            equal(of_request.setdefault(request.id, ids), ids, f"the events of {request.id}, which came again")
            for one in ids:
                equal(of_event.setdefault(one, request.id), request.id, f"the request that holds {one}")
        first_times = list(dict.fromkeys(self.ids_taken()))
        equal(first_times, wanted, "the events, in order")


class Listening(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args):
        self.sockets = set()
        super().__init__(*args)

    def process_request(self, request, client_address):
        self.sockets.add(request)
        super().process_request(request, client_address)

    def cut(self):
        for one in list(self.sockets):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def handle_error(self, request, client_address):
        pass  # A peer that closes is what some cases want.


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner = None

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.owner.came(self.headers, body)
        if callable(answer):
            answer(self)
            self.close_connection = True
        elif answer == "close":
            self.close_connection = True
        else:
            self.send_response(answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_):
        pass
