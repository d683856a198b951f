"""XMPP as bytes on a socket, for what no client library would ever send."""

import base64
import hashlib
import hmac
import secrets
import socket
import ssl
import threading
import time
import xml.etree.ElementTree as ET

try:
    from OpenSSL import SSL
except ImportError:
    SSL = None

STREAMS = "http://etherx.jabber.org/streams"
CLIENT = "{jabber:client}"
TLS, SASL, BIND = (f"urn:ietf:params:xml:ns:xmpp-{name}" for name in ("tls", "sasl", "bind"))
SM = "urn:xmpp:sm:3"


class Lost(ConnectionError):
    """The connection ended."""


def any_certificate():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Stream:
    """An XML stream, not signed in. `silence`: seconds without a byte after which `on_silence` is called."""

    def __init__(self, place, domain="localhost", silence=40):
        self.place, self.domain, self.silence = place, domain, silence
        self.prefix, self.number = secrets.token_hex(3), 0
        self.socket = None

    def open_socket(self):
        self.socket = socket.create_connection(self.place, timeout=self.silence)

    def open_stream(self):
        """Gives the features."""
        self.parser = ET.XMLPullParser(("start", "end"))
        self.depth, self.stream_id = 0, ""
        self.send(f'<stream:stream to="{self.domain}" xmlns="jabber:client" xmlns:stream="{STREAMS}" version="1.0">')
        features = self.read_stanza()
        if features.tag != f"{{{STREAMS}}}features":
            raise Lost(ET.tostring(features).decode())
        return features

    def start_tls(self):
        """Gives the features behind it. Without a server name: old clients know no SNI."""
        self.send(f'<starttls xmlns="{TLS}"/>')
        answer = self.read_stanza()
        if answer.tag != f"{{{TLS}}}proceed":
            raise Lost(ET.tostring(answer).decode())
        self.socket = any_certificate().wrap_socket(self.socket)
        return self.open_stream()

    def start_tls_that_exports(self, version):
        """STARTTLS by OpenSSL itself, since Python's own module exports no keys (RFC 9266). Gives the
        kinds of channel binding that are offered behind it, and the exported key."""
        self.send(f'<starttls xmlns="{TLS}"/>')
        self.read_stanza()
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        # It wants a socket that blocks.
        self.socket.settimeout(None)
        self.socket = SSL.Connection(context, self.socket)
        self.socket.set_connect_state()
        self.socket.do_handshake()
        offered = channel_bindings(self.open_stream())
        return offered, self.socket.export_keying_material(b"EXPORTER-Channel-Binding", 32)

    def direct_tls(self):
        """Gives the features of a listener that begins with TLS."""
        self.open_socket()
        self.socket = any_certificate().wrap_socket(self.socket)
        return self.open_stream()

    def send(self, text):
        self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def read_stanza(self):
        """The next child of the stream."""
        while True:
            for event, element in self.parser.read_events():
                self.depth += 1 if event == "start" else -1
                if event == "start" and self.depth == 1:
                    self.stream_id = element.get("id", "")
                elif event == "end" and self.depth == 1:
                    return element
                elif event == "end" and self.depth == 0:
                    raise Lost("the server ended the stream")
            try:
                came = self.socket.recv(65536)
            except TimeoutError:
                self.on_silence()
                continue
            if not came:
                raise Lost("the connection ended")
            self.parser.feed(came)

    def on_silence(self):
        raise TimeoutError(f"nothing came for {self.silence} s")

    def next_id(self):
        self.number += 1
        return f"{self.prefix}-{self.number - 1}"

    def ask(self, kind, query, to=None):
        """Sends an IQ and gives its answer; whatever comes in between is handled."""
        name = self.next_id()
        place = f' to="{to}"' if to else ""
        self.send(f'<iq id="{name}"{place} type="{kind}">{query}</iq>')
        while True:
            stanza = self.read_stanza()
            if stanza.get("id") == name and stanza.get("type") in ("result", "error"):
                return stanza
            self.handle(stanza)

    def handle(self, stanza):
        """For whoever lives on the stream."""

    def read_end(self):
        """The condition of the stream error, if one came before the end; '' otherwise."""
        condition = ""
        try:
            while True:
                stanza = self.read_stanza()
                if stanza.tag == f"{{{STREAMS}}}error":
                    condition = stanza[0].tag.partition("}")[2]
        except (Lost, ConnectionError, ssl.SSLError, ET.ParseError):
            return condition

    def close(self):
        if self.socket is not None:
            try:
                self.socket.close()
            except OSError:
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Living(Stream):
    """A client that lives in a thread of its own: it enters, handles what comes, and comes back after each loss."""

    def __init__(self, place, comes_back, **fields):
        super().__init__(place, **fields)
        self.comes_back = comes_back
        self.signed_in, self.stopped = threading.Event(), threading.Event()
        self.errors = []
        self.thread = None

    def enter(self):
        """Signs in, and sets `signed_in`."""
        raise NotImplementedError

    def live(self):
        while not self.stopped.is_set():
            try:
                self.enter()
                while True:
                    self.handle(self.read_stanza())
            except (Lost, OSError, ET.ParseError) as error:
                self.errors.append(str(error))
            finally:
                self.signed_in.clear()
                self.close()
            self.stopped.wait(self.comes_back)

    def start(self):
        """Lives until `stop`."""
        self.thread = threading.Thread(target=self.live, daemon=True)
        self.thread.start()
        return self

    def stop(self):
        self.stopped.set()
        self.close()


class Session(Stream):
    """Signed in by PLAIN, by default inside of TLS, bound, and available. Pings are answered; all else is kept."""

    def __init__(self, place, user, secret, resource="wire", available=True, tls=True, binds=True, **fields):
        super().__init__(place, **fields)
        self.user = user
        self.kept = []
        self.open_socket()
        self.open_stream()
        if tls:
            self.start_tls()
        self.sign_in(secret)
        if not binds:
            return
        bind = self.ask("set", f'<bind xmlns="{BIND}"><resource>{resource}</resource></bind>')
        self.jid = bind.find(f".//{{{BIND}}}jid").text
        if available:
            self.send("<presence/>")

    def sign_in(self, secret):
        token = base64.b64encode(f"\0{self.user}\0{secret}".encode()).decode()
        self.send(f'<auth xmlns="{SASL}" mechanism="PLAIN">{token}</auth>')
        answer = self.read_stanza()
        if answer.tag != f"{{{SASL}}}success":
            raise PermissionError(answer[0].tag.partition("}")[2])
        self.open_stream()

    def handle(self, stanza):
        if stanza.tag == f"{CLIENT}iq" and stanza.find("{urn:xmpp:ping}ping") is not None:
            self.send(f'<iq id="{stanza.get("id")}" type="result"/>')
        else:
            self.kept.append(stanza)

    def next(self, tag="message"):
        """The next stanza of that kind."""
        while True:
            for place, stanza in enumerate(self.kept):
                if stanza.tag in (CLIENT + tag, tag):
                    return self.kept.pop(place)
            self.handle(self.read_stanza())

    def quiet(self):
        """Nothing but presence and pings has come and none is on its way: what was asked last is answered last."""
        self.ask("get", '<ping xmlns="urn:xmpp:ping"/>')
        left = [s for s in self.kept if s.tag not in (f"{CLIENT}presence",)]
        assert not left, [ET.tostring(s) for s in left]


def channel_bindings(features):
    """What XEP-0440 tells."""
    return {binding.get("type") for binding in features.iter("{urn:xmpp:sasl-cb:0}channel-binding")}


def scram_sha_256_plus(stream, user, secret, binding, kind="tls-server-end-point"):
    """Signs in by SCRAM-SHA-256-PLUS (RFC 5802, RFC 5929, RFC 9266); the server's last word, or its refusal."""
    def say(element, words):
        stream.send(f'<{element} xmlns="{SASL}"{words[0]}>{base64.b64encode(words[1].encode()).decode()}</{element}>')
        answer = stream.read_stanza()
        return answer.tag.partition("}")[2], answer

    header, nonce = f"p={kind},,", secrets.token_hex(8)
    first = f"n={user},r={nonce}"
    name, answer = say("auth", (' mechanism="SCRAM-SHA-256-PLUS"', header + first))
    if name != "challenge":
        return answer[0].tag.partition("}")[2]
    challenge = base64.b64decode(answer.text).decode()
    fields = dict(part.split("=", 1) for part in challenge.split(","))
    assert fields["r"].startswith(nonce), challenge
    salted = hashlib.pbkdf2_hmac("sha256", secret.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
    bound = base64.b64encode(header.encode() + binding).decode()
    last = f"c={bound},r={fields['r']}"
    message = f"{first},{challenge},{last}".encode()

    def mac(key, words):
        return hmac.digest(key, words, "sha256")

    client_key = mac(salted, b"Client Key")
    signature = mac(hashlib.sha256(client_key).digest(), message)
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(client_key, signature))).decode()
    name, answer = say("response", ("", f"{last},p={proof}"))
    if name != "success":
        return answer[0].tag.partition("}")[2]
    proves = base64.b64encode(mac(mac(salted, b"Server Key"), message)).decode()
    assert base64.b64decode(answer.text).decode() == f"v={proves}", "the server proves itself"
    return name


def condition(stanza):
    """The name of a stanza's error."""
    error = stanza.find(f"{CLIENT}error")
    return None if error is None else error[0].tag.partition("}")[2]


def text(stanza, name):
    """What stands in a child of that name."""
    found = stanza.find(CLIENT + name)
    return None if found is None else found.text


def until(question, words, within=30):
    """Waits for something that has no event."""
    deadline = time.monotonic() + within
    while not question():
        assert time.monotonic() < deadline, f"not in {within} s: {words}"
        time.sleep(0.05)
