"""A real browser for `suite_browser.py`: Debian's Chromium, driven by node/browser.mjs.

`Browser` and `Tab` pass commands on. `Front` is a small proxy before the server that brings the test's page to the
same origin, and can refuse a road, swallow what the page sends, and cut.
"""

import itertools
import json
import os
import queue
import shutil
import socket
import subprocess
import threading

from harness import NotHere, Unmet, eventually

NODE_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node")
PATIENCE_SECS = 60


class Browser:
    """One process for all cases; each case has a context of its own, as a private window has."""

    def __init__(self):
        program = shutil.which("chromium")
        if not program:
            raise NotHere("chromium is not installed")
        if not os.path.isdir(os.path.join(NODE_FOLDER, "node_modules", "puppeteer-core")):
            raise NotHere("puppeteer-core is not installed: run `npm ci` in conformance/node")
        self.process = subprocess.Popen(["node", "browser.mjs", program], cwd=NODE_FOLDER, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.ids, self.waiting, self.writing = itertools.count(1), {}, threading.Lock()
        threading.Thread(target=self.pump, daemon=True).start()

    def pump(self):
        for line in self.process.stdout:
            said = json.loads(line)
            self.waiting.pop(said["id"]).put(said)

    def ask(self, command, **fields):
        number, came = next(self.ids), queue.Queue()
        self.waiting[number] = came
        with self.writing:
            self.process.stdin.write(json.dumps({"id": number, "command": command, **fields}) + "\n")
            self.process.stdin.flush()
        try:
            said = came.get(timeout=PATIENCE_SECS)
        except queue.Empty:
            raise Unmet(f"the browser did not answer {command} {fields}") from None
        if "error" in said:
            raise Unmet(f"{command} {fields}: {said['error']}")
        return said["value"]

    def window(self, *origins):
        return Window(self, self.ask("context", origins=list(origins)))

    def end(self):
        self.process.stdin.close()
        self.process.wait()


class Window:
    def __init__(self, browser, number):
        self.browser, self.number = browser, number

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.browser.ask("end", context=self.number)

    def open(self, url):
        return Tab(self.browser, self.browser.ask("open", context=self.number, url=url))

    def in_worker(self, body, **args):
        """The value of an async function's body, in the window's service worker."""
        return self.browser.ask("inWorker", context=self.number, body=body, args=args)


class Tab:
    def __init__(self, browser, number):
        self.browser, self.number = browser, number

    def ask(self, command, **fields):
        return self.browser.ask(command, tab=self.number, **fields)

    def run(self, body, **args):
        """The value of an async function's body, in the page."""
        return self.ask("run", body=body, args=args)

    def value(self, expression, **args):
        return self.run(f"return {expression}", **args)

    def until(self, expression, words=None, timeout=30, **args):
        """Waits until the expression is true, and answers its value."""
        def answer():
            try:
                return self.value(expression, **args)
            except Unmet as unmet:
                if "context was destroyed" in str(unmet):
                    return None  # The page is just being left for another.
                raise
        try:
            return eventually(answer, words or expression, timeout, every=0.05)
        except Unmet as unmet:
            raise Unmet(f"{unmet}; the page said {self.ask('log')[-5:]}") from None

    def click(self, selector):
        self.ask("click", selector=selector)

    def fill(self, selector, text):
        self.ask("fill", selector=selector, text=text)

    def load(self, url=None):
        self.ask("load", url=url)

    def close(self):
        self.ask("close")

    def complaints(self):
        """What went wrong in the page: exceptions, dialogs, and what its policy refused."""
        return [line for line in self.ask("log")
                if line.startswith(("error", "dialog")) or "Content Security Policy" in line]


class Front:
    """Listens on a port of its own and passes everything on to the server, but for the paths in `pages`."""

    def __init__(self, server, pages):
        self.server, self.pages = server, pages
        self.refused = set()  # of "websocket", "sse"
        self.upgrades = 0
        self.mute = False  # what a WebSocket's client sends is swallowed
        self.links, self.lock = set(), threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.origin = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shut(self.listener)
        self.cut()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def cut(self):
        """Ends all connections at once."""
        with self.lock:
            links, self.links = self.links, set()
        for link in links:
            shut(link)

    def serve(self, client):
        try:
            head = read_head(client)
            path = head.split(b" ", 2)[1].split(b"?")[0].decode()
            upgrade = b"\r\nupgrade: websocket" in head.lower()
            if path in self.pages:
                answer(client, "200 OK", self.pages[path])
            elif (upgrade and "websocket" in self.refused) or (path == "/v1/stream" and "sse" in self.refused):
                answer(client, "502 Bad Gateway", "")
            else:
                self.pass_on(client, head, upgrade)
        except (OSError, IndexError):
            pass
        finally:
            shut(client)

    def pass_on(self, client, head, upgrade):
        with socket.create_connection(self.server) as upstream:
            with self.lock:
                self.links |= {client, upstream}
                self.upgrades += upgrade
            # One request a connection, so that each is looked at.
            upstream.sendall(head if upgrade else without_keep_alive(head))
            back = threading.Thread(target=copy, args=(upstream, client), daemon=True)
            back.start()
            copy(client, upstream, lambda: upgrade and self.mute)
            shut(upstream)  # A browser never closes by halves.
            back.join()
        with self.lock:
            self.links -= {client, upstream}


def read_head(client):
    head = b""
    while b"\r\n\r\n" not in head:
        piece = client.recv(65536)
        if not piece:
            raise OSError("ended before its request")
        head += piece
    return head


def without_keep_alive(head):
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([lines[0], b"Connection: close", *lines[1:]])


def answer(client, status, body):
    raw = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(raw)}\r\nConnection: close\r\n\r\n"
    client.sendall(head.encode() + raw)


def copy(source, sink, swallow=lambda: False):
    try:
        while piece := source.recv(65536):
            if not swallow():
                sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        shut(source)
        shut(sink)


def shut(link):
    try:
        link.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    link.close()
