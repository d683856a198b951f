"""An androidpn phone: the unmodified client over asmack (Smack 3.1.0), as its bytes on the wire show it.

It knows no SASL and no resource binding. It insists on STARTTLS and believes any certificate, registers by XEP-0077, signs
in by XEP-0078, never answers a notification, and answers what it does not know with a 501.
"""

import hashlib
import re
import secrets
import socket
import threading
import time
import xml.etree.ElementTree as ET

from xmpp_wire import TLS, Living, Lost

NOTIFICATION = "{androidpn:iq:notification}notification"
RESOURCE = "AndroidpnClient"
# It sends a blank after so many seconds of silence, and comes back after so many.
KEEPALIVE, COMES_BACK = 30, 10


class Phone(Living):
    def __init__(self, place, username=None, password=None, comes_back=COMES_BACK, domain="127.0.0.1"):
        super().__init__(place, comes_back, domain=domain, silence=KEEPALIVE)
        self.username, self.password = username, password
        self.notifications = []
        self.news = threading.Condition()
        self.registrations = 0

    def connect(self):
        """Opens the stream, switches to TLS and opens it anew; nothing else is said in clear."""
        self.open_socket()
        if self.open_stream().find(f"{{{TLS}}}starttls") is None:
            raise Lost("TLS required by client, and not offered by server")
        features = self.start_tls()
        for offered in ("{http://jabber.org/features/iq-auth}auth", "{http://jabber.org/features/iq-register}register"):
            assert features.find(offered) is not None, f"{offered} is not offered"

    def on_silence(self):
        self.send(" ")

    # What it does.

    def register(self):
        """Draws an account and registers it."""
        self.username, self.password = secrets.token_hex(16), secrets.token_hex(16)
        self.registrations += 1
        answer = self.ask("set", '<query xmlns="jabber:iq:register">'
                                 f"<password>{self.password}</password><username>{self.username}</username></query>")
        assert answer.get("type") == "result" or error_code(answer) == "409", ET.tostring(answer)

    def sign_in(self):
        fields = self.ask("get", f'<query xmlns="jabber:iq:auth"><username>{self.username}</username></query>')
        query = fields.find("{jabber:iq:auth}query")
        if query is not None and query.find("{jabber:iq:auth}digest") is not None:
            digest = hashlib.sha1((self.stream_id + self.password).encode()).hexdigest()
            secret = f"<digest>{digest}</digest>"
        else:
            secret = f"<password>{self.password}</password>"
        return self.ask("set", f'<query xmlns="jabber:iq:auth"><username>{self.username}</username>{secret}'
                               f"<resource>{RESOURCE}</resource></query>")

    def enter(self):
        """Everything up to its presence; with a 401 it forgets its account and registers anew on the same stream."""
        self.connect()
        if self.username is None:
            self.register()
        answer = self.sign_in()
        if answer.get("type") == "error":
            self.errors.append(error_code(answer))
            if "401" not in ET.tostring(answer).decode():
                raise Lost("it does not know what to do with that error, and sits there")
            self.register()
            answer = self.sign_in()
        assert answer.get("type") == "result", ET.tostring(answer)
        self.send(f'<iq id="{self.next_id()}" type="get"><query xmlns="jabber:iq:roster" ></query></iq>')
        self.send(f'<presence id="{self.next_id()}"></presence>')
        self.signed_in.set()

    def handle(self, stanza):
        notification = stanza.find(NOTIFICATION)
        if notification is not None:
            shown = {re.sub("{.*}", "", child.tag): child.text or "" for child in notification}
            with self.news:
                self.notifications.append(shown)
                self.news.notify_all()
        elif stanza.tag == "{jabber:client}iq" and stanza.get("type") in ("get", "set"):
            to = f' to="{stanza.get("from")}"' if stanza.get("from") else ""
            self.send(f'<iq id="{stanza.get("id")}"{to} from="{self.username}@{self.domain}/{RESOURCE}" type="error">'
                      '<error code="501" type="CANCEL">'
                      '<feature-not-implemented xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/></error></iq>')

    # Its life.

    def stop(self):
        """Says goodbye, as when the app is closed."""
        self.stopped.set()
        try:
            self.send('<presence type="unavailable"></presence></stream:stream>')
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if self.thread is not None:
            self.thread.join(5)

    def cut(self):
        """The path goes away without a word."""
        self.socket.shutdown(socket.SHUT_RDWR)

    def wait_for(self, titles, within=30):
        """Waits until all of these were shown."""
        deadline = time.monotonic() + within
        with self.news:
            while not set(titles) <= {shown["title"] for shown in self.notifications}:
                left = deadline - time.monotonic()
                assert left > 0, f"only {[n['title'] for n in self.notifications]} of {titles}; {self.errors}"
                self.news.wait(left)


def error_code(answer):
    error = answer.find("{jabber:client}error")
    return error.get("code") if error is not None else None
