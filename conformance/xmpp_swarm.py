"""Thousands of XMPP sessions, and HTTP requests beside them, in one thread: sockets that never wait, around one epoll.

Light on purpose, so that the server and not its crowd is what is busy. Stanzas are told apart by their tags and looked into by
patterns; a `>` in an attribute would mislead it. For what stanzas mean there is `xmpp_wire.py`.
"""

import base64
import hashlib
import heapq
import hmac
import itertools
import re
import resource
import secrets
import select
import socket
import struct
import time
from collections import deque
from functools import lru_cache

TAG = re.compile(rb"<(/?)([A-Za-z][^\s/>]*)[^>]*?(/?)>")
STANZAS = (b"message", b"iq", b"presence")
SASL = "urn:ietf:params:xml:ns:xmpp-sasl"
SM = "urn:xmpp:sm:3"
READ_BYTES = 65536


def raise_file_limit():
    """As many descriptors as this user may have; their number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def attribute(name, stanza):
    """The value of the first attribute of that name; None without one."""
    found = re.search(rb"\s" + name + rb"=(?:'([^']*)'|\"([^\"]*)\")", stanza)
    return (found[1] or found[2] or b"").decode() if found else None


# --- the loop -------------------------------------------------------------------------------------------

class Loop:
    def __init__(self):
        self.epoll = select.epoll()
        self.links = {}
        self.written = []
        self.timers, self.order = [], itertools.count()

    def after(self, secs, call, *args):
        heapq.heappush(self.timers, (time.monotonic() + secs, next(self.order), call, args))

    def turn(self, secs=0.2):
        """Waits so long at most, and does what is to be done."""
        self.flush()
        if self.timers:
            secs = min(secs, max(0.0, self.timers[0][0] - time.monotonic()))
        # epoll counts milliseconds, and rounds up.
        for number, what in self.epoll.poll(secs):
            link = self.links.get(number)
            if link is not None:
                link.on_ready(what)
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            _, _, call, args = heapq.heappop(self.timers)
            call(*args)
        self.flush()

    def flush(self):
        written, self.written = self.written, []
        for link in written:
            link.flush()

    def run(self, secs):
        until = time.monotonic() + secs
        while (left := until - time.monotonic()) > 0:
            self.turn(left)

    def until(self, question, words, within=60, moves=lambda: None):
        """Goes on until the answer is true; an AssertionError if for so many seconds it was not, and nothing in `moves` changed."""
        moved, last = time.monotonic(), moves()
        while not question():
            if (now := moves()) != last:
                moved, last = time.monotonic(), now
            assert time.monotonic() < moved + within, f"not in {within} s: {words}"
            self.turn(0.1)


class Link:
    """A connection. What is written in a turn goes out in one piece at its end."""

    def __init__(self, loop, place, source=None):
        self.loop, self.unsent, self.is_connected, self.waits_to_write = loop, b"", False, True
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source:
            # IP_BIND_ADDRESS_NO_PORT: the port is chosen with the destination in view, so that there are enough.
            self.socket.setsockopt(socket.IPPROTO_IP, 24, 1)
            self.socket.bind((source, 0))
        self.socket.connect_ex(place)
        self.number = self.socket.fileno()
        loop.links[self.number] = self
        loop.epoll.register(self.number, select.EPOLLIN | select.EPOLLOUT)

    def send(self, data):
        if not self.unsent:
            self.loop.written.append(self)
        self.unsent += data if isinstance(data, bytes) else data.encode()

    def flush(self):
        if not self.is_connected or self.socket is None:
            return
        try:
            sent = self.socket.send(self.unsent) if self.unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            return self.lose()
        self.unsent = self.unsent[sent:]
        if bool(self.unsent) != self.waits_to_write:
            self.waits_to_write = bool(self.unsent)
            self.loop.epoll.modify(self.number, select.EPOLLIN | (select.EPOLLOUT if self.unsent else 0))

    def on_ready(self, what):
        if what & select.EPOLLOUT:
            self.is_connected = True
            self.flush()
        if what & ~select.EPOLLOUT and self.socket is not None:
            try:
                data = self.socket.recv(READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self.on_bytes(data) if data else self.lose()

    def lose(self):
        self.close()
        self.on_lost()

    def on_bytes(self, data):
        raise NotImplementedError

    def on_lost(self):
        """The other side ended it, or the system did."""

    def abandon(self):
        """Nobody looks at it any more; gives the socket, which is still open."""
        left, self.socket = self.socket, None
        if left is not None:
            self.loop.epoll.unregister(self.number)
            del self.loop.links[self.number]
        return left

    def close(self):
        left = self.abandon()
        if left is not None:
            left.close()

    def reset(self):
        left = self.abandon()
        if left is not None:
            left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            left.close()


# --- SCRAM (RFC 5802, RFC 7677), without channel binding -------------------------------------------------

@lru_cache(maxsize=None)
def salted_password(hash_name, secret, salt, iterations):
    """Clients may keep it (RFC 5802 §5.1), and so this crowd's time is not spent on it."""
    return hashlib.pbkdf2_hmac(hash_name, secret.encode(), salt, iterations)


class Scram:
    def __init__(self, mechanism, user, secret):
        self.hash, self.secret = {"SCRAM-SHA-1": "sha1", "SCRAM-SHA-256": "sha256"}[mechanism], secret
        self.nonce = secrets.token_urlsafe(18)
        self.bare = f"n={user},r={self.nonce}"
        self.iterations = None

    def first(self):
        return "n,," + self.bare

    def last(self, challenge):
        fields = dict(part.split("=", 1) for part in challenge.split(","))
        assert fields["r"].startswith(self.nonce), "the nonce is not ours"
        self.iterations = int(fields["i"])
        salted = salted_password(self.hash, self.secret, base64.b64decode(fields["s"]), self.iterations)
        words = f"c=biws,r={fields['r']}"
        message = f"{self.bare},{challenge},{words}".encode()
        key = self.mac(salted, b"Client Key")
        signature = self.mac(hashlib.new(self.hash, key).digest(), message)
        self.proves = b"v=" + base64.b64encode(self.mac(self.mac(salted, b"Server Key"), message))
        return f"{words},p={base64.b64encode(bytes(a ^ b for a, b in zip(key, signature))).decode()}"

    def mac(self, key, words):
        return hmac.digest(key, words, self.hash)


# --- XMPP -----------------------------------------------------------------------------------------------

class Refused(Exception):
    """The server said no."""


class Member(Link):
    """One session of the swarm: signs in, binds or resumes, tells its presence; then pings are answered, XEP-0198 is kept, and
    messages go to `on_message`. `on_entered` is called once it is there for messages.

    `account`: (name, secret). `manages`: asks for XEP-0198. `stream`: (id, handled) of a lost stream to be resumed.
    """

    def __init__(self, loop, place, account, mechanism="PLAIN", manages=False, stream=None, domain="localhost", source=None):
        super().__init__(loop, place, source)
        self.user, self.secret = account
        self.mechanism, self.manages, self.domain = mechanism, manages, domain
        (self.stream, self.handled), self.counts = stream or (None, 0), False
        self.was_resumed, self.iterations, self.refusal = False, None, None
        self.rest = b""
        self.script = self.enter()
        next(self.script)

    # What comes.

    def on_bytes(self, data):
        self.rest += data
        begin = end = 0
        depth = 0
        for tag in TAG.finditer(self.rest):
            closes, name, is_empty = tag.groups()
            if name == b"stream:stream":
                end = tag.end()
                if closes:
                    return self.lose()
                continue
            if depth == 0:
                begin, stanza_name = tag.start(), name
            depth += -1 if closes else 0 if is_empty else 1
            if depth == 0:
                end = tag.end()
                self.take(stanza_name, self.rest[begin:end])
                if self.socket is None:
                    return
        self.rest = self.rest[end:]

    def take(self, name, stanza):
        self.handled += self.counts and name in STANZAS
        if name == b"stream:error":
            self.refusal = stanza
        elif self.script is None:
            self.handle(name, stanza)
        else:
            try:
                self.script.send((name, stanza))
            except StopIteration:
                self.script = None
                self.on_entered()
            except Refused as error:
                self.refusal = error
                self.lose()

    def answer(self, *names):
        """The next stanza of these names; others are handled."""
        while True:
            name, stanza = yield
            if name in names and not (name == b"iq" and attribute(b"type", stanza) in ("get", "set")):
                return name, stanza
            self.handle(name, stanza)

    def handle(self, name, stanza):
        if name == b"message":
            self.on_message(stanza)
        elif name == b"r":
            self.send(f'<a xmlns="{SM}" h="{self.handled}"/>')
        elif name == b"iq" and attribute(b"type", stanza) == "get":
            sender = attribute(b"from", stanza)
            to = f' to="{sender}"' if sender else ""
            self.send(f'<iq id="{attribute(b"id", stanza)}"{to} type="result"/>')

    # What it says.

    def open(self):
        self.send(f'<stream:stream to="{self.domain}" version="1.0" xmlns="jabber:client" '
                  'xmlns:stream="http://etherx.jabber.org/streams">')
        return self.answer(b"stream:features", b"features")

    def enter(self):
        yield from self.open()
        yield from self.sign_in()
        yield from self.open()
        if self.stream is not None and (yield from self.resume()):
            return
        yield from self.ask('<bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"><resource>swarm</resource></bind>', "set")
        if self.manages:
            self.send(f'<enable xmlns="{SM}" resume="true"/>')
            _, enabled = yield from self.answer(b"enabled", b"failed")
            self.stream, self.handled, self.counts = attribute(b"id", enabled), 0, True
        # What is asked last is answered last: then the presence has been seen.
        self.send("<presence/>")
        yield from self.ask('<ping xmlns="urn:xmpp:ping"/>', "get")

    def ask(self, query, kind):
        self.send(f'<iq id="swarm" type="{kind}">{query}</iq>')
        _, result = yield from self.answer(b"iq")
        if attribute(b"type", result) != "result":
            raise Refused(result)

    def sign_in(self):
        if self.mechanism == "PLAIN":
            return self.say("auth", f"\0{self.user}\0{self.secret}")
        return self.sign_in_by_scram()

    def sign_in_by_scram(self):
        scram = Scram(self.mechanism, self.user, self.secret)
        challenge = yield from self.say("auth", scram.first())
        success = yield from self.say("response", scram.last(challenge.decode()))
        if success != scram.proves:
            raise Refused(b"the server does not prove itself")
        self.iterations = scram.iterations

    def say(self, element, words):
        mechanism = f' mechanism="{self.mechanism}"' if element == "auth" else ""
        self.send(f'<{element} xmlns="{SASL}"{mechanism}>{base64.b64encode(words.encode()).decode()}</{element}>')
        name, answer = yield from self.answer(b"challenge", b"success", b"failure")
        if name == b"failure":
            raise Refused(answer)
        return base64.b64decode(re.sub(rb"<[^>]*>", b"", answer))

    def resume(self):
        self.send(f'<resume xmlns="{SM}" previd="{self.stream}" h="{self.handled}"/>')
        answer, _ = yield from self.answer(b"resumed", b"failed")
        self.was_resumed = self.counts = answer == b"resumed"
        return self.was_resumed

    def leave(self):
        """Ends the stream as one should; the server closes."""
        self.send("</stream:stream>")

    # For whoever makes use of it.

    def on_entered(self):
        pass

    def on_message(self, stanza):
        pass


# --- HTTP -----------------------------------------------------------------------------------------------

class HttpLink(Link):
    """A connection that is kept, with one request on it at a time. `on_answer(status, body)`; status 0: it was lost."""

    def __init__(self, loop, place, source=None):
        super().__init__(loop, place, source)
        self.host, self.got, self.on_answer = "%s:%d" % place, b"", None

    def request(self, method, path, key, body, on_answer, headers=""):
        self.on_answer = on_answer
        self.send(f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {key}\r\n{headers}"
                  f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}")

    def on_bytes(self, data):
        self.got += data
        head, between, body = self.got.partition(b"\r\n\r\n")
        if not between:
            return
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if len(body) >= int(length[1]):
            self.got = b""
            self.tell(int(head[9:12]), body)

    def on_lost(self):
        self.tell(0, b"")

    def tell(self, status, body):
        call, self.on_answer = self.on_answer, None
        if call is not None:
            call(status, body)


class HttpPool:
    """Up to so many requests at once, each on a kept connection of its own; the others wait in order."""

    def __init__(self, loop, place, key, size):
        self.loop, self.place, self.key = loop, place, key
        self.idle, self.count, self.size = [], 0, size
        self.waiting = deque()

    def ask(self, method, path, body, on_answer, headers=""):
        self.waiting.append((method, path, body, on_answer, headers))
        self.go_on()

    def go_on(self):
        while self.waiting and (link := self.free_link()):
            method, path, body, on_answer, headers = self.waiting.popleft()
            link.request(method, path, self.key, body, self.returning(link, on_answer), headers)

    def free_link(self):
        while self.idle:
            link = self.idle.pop()
            if link.socket is not None:
                return link
            self.count -= 1
        if self.count < self.size:
            self.count += 1
            return HttpLink(self.loop, self.place)
        return None

    def returning(self, link, on_answer):
        def came(status, body):
            self.idle.append(link)
            on_answer(status, body)
            self.go_on()
        return came

    def close(self):
        for link in self.idle:
            link.close()
