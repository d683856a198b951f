"""Hostile XMPP: each row of `xmpp_rows` on a stream of its own, the one reaction allowed, then a canary."""

import base64
import xml.etree.ElementTree as ET

from harness import CONFORMANCE, Suite, check, equal
from suite_hostile import canary
from xmpp_rows import CONNECTED, OPENED, ROWS, SESSION, SIGNED_IN
from xmpp_wire import SASL, Session, Stream, condition

SUITE = Suite("hostile_xmpp", rows={"XMPP": len(ROWS)})
PING = '<iq type="get" id="canary"><ping xmlns="urn:xmpp:ping"/></iq>'


def stream_at(stage, target, device):
    """A stream that stands where the row wants it, in clear: TLS has rows of its own in `suite_xmpp`."""
    if stage in (SIGNED_IN, SESSION):
        return Session(target.xmpp, device.device_id, device.secret, tls=False, binds=stage == SESSION)
    stream = Stream(target.xmpp)
    stream.open_socket()
    if stage == OPENED:
        stream.open_stream()
    else:
        stream.parser, stream.depth = ET.XMLPullParser(("start", "end")), 0
    return stream


def fill(data, devices):
    one, other = devices
    token = base64.b64encode(f"\0{one.device_id}\0{one.secret}".encode())
    filled = data.replace(b"@TOKEN@", token).replace(b"@SELF@", one.device_id.encode()).replace(b"@OTHER@", other.device_id.encode())
    encoded = base64.b64encode(b"\0@SELF@\0wrong")
    return filled.replace(encoded, base64.b64encode(f"\0{one.device_id}\0wrong".encode()))


def devices_of(target):
    """The first is the row's own; the second is never there, and serves them all."""
    other = target.notes.get("xmpp_rows") or target.notes.setdefault("xmpp_rows", target.register(platform="desktop"))
    return target.register(platform="desktop"), other


def local(stanza):
    return stanza.tag.rpartition("}")[2]


def come_first(stream):
    """What comes before the answer to a ping that is sent now."""
    stream.send(PING)
    came = []
    while True:
        stanza = stream.read_stanza()
        if stanza.get("id") == "canary":
            return came
        came.append(stanza)


def judge(row, stream):
    what, wanted = row.reaction.what, row.reaction.condition
    if what == "ends":
        return equal(stream.read_end(), wanted, "condition")
    if row.stage != SESSION:
        came = [stream.read_stanza()]
        if what == "failure":
            check(came[0].tag == f"{{{SASL}}}failure", f"a failure: {ET.tostring(came[0])}")
            # The stream lives: a sign-in that is right is taken.
            stream.send(f'<auth xmlns="{SASL}" mechanism="PLAIN">!</auth>')
            equal(local(stream.read_stanza()), "failure", "the stream lives")
    else:
        came = [stanza for stanza in come_first(stream) if local(stanza) != "enabled"]
    if what == "lives":
        return equal([ET.tostring(s) for s in came], [], "nothing came")
    equal(len(came), 1, f"one answer, not {[ET.tostring(s) for s in came]}")
    if what == "error":
        equal(condition(came[0]), wanted, f"condition of {ET.tostring(came[0])}")
    elif what == "element":
        equal(local(came[0]), wanted, "what came")
    else:
        equal((local(came[0]), local(came[0][0])), (what, wanted), "what came")


def row_case(row):
    def run(target):
        devices = devices_of(target)
        with stream_at(row.stage, target, devices[0]) as stream:
            if row.stage == SESSION:
                come_first(stream)
            try:
                stream.send(fill(row.data, devices))
            except OSError:
                pass  # It was refused before it was sent whole.
            judge(row, stream)
        canary(target)
    return run


for row in ROWS:
    SUITE.add(f"H{row.h} {row.name} ({row.stage})" if row.stage != CONNECTED else f"H{row.h} {row.name}", row_case(row), CONFORMANCE, needs_http=True)
