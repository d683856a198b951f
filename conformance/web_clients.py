"""Devices that are browsers and scripts: real WebSocket and SSE clients of other hands, and plain HTTP."""

import base64
import http.client
import json
import threading

import httpx
from httpx_sse import connect_sse
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from harness import Unmet, check

PATIENCE = 40


class Socket:
    """A device on `/ws`: the frames as they are, nothing done by itself."""

    def __init__(self, target, device=None, hello=None, patience=PATIENCE, **fields):
        host, port = target.http
        source = (target.fresh_source() or "", 0)
        self.connection = connect(f"ws://{host}:{port}/ws", open_timeout=PATIENCE, close_timeout=2,
                                  source_address=source, compression=None)
        self.patience = patience
        self.welcome = None
        if device is not None:
            hello = {"type": "hello", "device": device.device_id, "secret": device.secret, **fields}
        if hello is not None:
            self.send(hello)
            if device is not None:
                self.welcome = self.frame("welcome")

    def send(self, frame):
        self.connection.send(frame if isinstance(frame, (str, bytes)) else json.dumps(frame))

    def next(self, timeout=None):
        """The next frame; raises `ConnectionClosed` at the end."""
        try:
            return json.loads(self.connection.recv(timeout or self.patience))
        except TimeoutError:
            raise Unmet("no frame came") from None

    def frame(self, *types):
        """The next frame, which has one of these types."""
        frame = self.next()
        check(frame["type"] in types, f"wanted {types}, came {frame}")
        return frame

    def ack(self, *frames):
        self.send({"type": "ack", "deliveries": [frame["delivery"] for frame in frames]})

    def ask(self, frame, ref=1):
        """Sends with a `ref` and gives the answer; deliveries that come meanwhile are kept out."""
        self.send({**frame, "ref": ref})
        answer = self.next()
        check(answer.get("ref") == ref, f"wanted the answer to {ref}, came {answer}")
        return answer

    def close_code(self):
        """Reads to the end; gives the close code and the frames before it."""
        frames = []
        while True:
            try:
                frames.append(self.next())
            except ConnectionClosed as end:
                return (end.rcvd.code if end.rcvd else None), frames

    def quiet(self):
        """Nothing lies there: a pong is the next frame."""
        self.send({"type": "ping"})
        self.frame("pong")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()


def basic(device):
    return base64.b64encode(f"{device.device_id}:{device.secret}".encode()).decode()


class Stream:
    """A device on `/v1/stream`, read by httpx-sse on a thread, so that a test waits with a deadline."""

    def __init__(self, target, device, last_event_id=None, ticket=None):
        self.events, self.changed = [], threading.Condition()
        self.status = None
        self.ended = False
        host, port = target.http
        headers = {} if ticket else {"Authorization": f"Basic {basic(device)}"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        self.client = httpx.Client(timeout=httpx.Timeout(PATIENCE, read=60))
        url = f"http://{host}:{port}/v1/stream" + (f"?ticket={ticket}" if ticket else "")
        self.thread = threading.Thread(target=self._read, args=(url, headers), daemon=True)
        self.thread.start()
        self.welcome = self.next("welcome")

    def _read(self, url, headers):
        try:
            with connect_sse(self.client, "GET", url, headers=headers) as source:
                self.status = source.response.status_code
                for event in source.iter_sse():
                    with self.changed:
                        self.events.append(event)
                        self.changed.notify_all()
        except Exception:  # The end of a stream is told by `ended`, whatever ended it.
            pass
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def next(self, kind="message"):
        with self.changed:
            came = self.changed.wait_for(lambda: self.events or self.ended, PATIENCE)
            check(came and self.events, f"no event came (status {self.status}, ended {self.ended})")
            event = self.events.pop(0)
        check(event.event == kind, f"wanted {kind}, came {event}")
        return event, json.loads(event.data)

    def await_end(self):
        with self.changed:
            check(self.changed.wait_for(lambda: self.ended, PATIENCE), "the stream did not end")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()


class Http:
    """A device that asks over one HTTP connection, which it keeps."""

    def __init__(self, target, device):
        self.connection = http.client.HTTPConnection(*target.http, timeout=75)
        self.headers = {"Authorization": f"Basic {basic(device)}"}

    def call(self, method, path, body=None, **headers):
        fields = {**self.headers, **headers}
        data = None
        if body is not None:
            data, fields["Content-Type"] = json.dumps(body), "application/json"
        self.connection.request(method, path, data, fields)
        answer = self.connection.getresponse()
        raw = answer.read()
        return answer, json.loads(raw) if raw[:1] == b"{" else raw

    def inbox(self, query="", **headers):
        answer, page = self.call("GET", f"/v1/inbox{query}", **headers)
        check(answer.status == 200, f"HTTP {answer.status}: {page}")
        return page

    def ack(self, *frames, path="/v1/inbox/acks"):
        answer, told = self.call("POST", path, {"deliveries": [frame["delivery"] for frame in frames]})
        check(answer.status == 200, f"HTTP {answer.status}: {told}")
        return told["acknowledged"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()
