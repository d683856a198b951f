"""XMPP from outside: slixmpp, npm's @xmpp/client, a client on the command line, an androidpn phone, and hostile bytes."""

import base64
import hashlib
import shutil
import socket
import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from androidpn_phone import Phone, error_code
from harness import CONFORMANCE, DEFAULT, NotHere, Suite, Unmet, check, equal, topic
from mqtt_wire import V5
from xmpp_clients import Client
from xmpp_wire import (SASL, SM, SSL, STREAMS, TLS, Lost, Session, Stream, any_certificate, channel_bindings, condition,
                       scram_sha_256_plus, text)

SUITE = Suite("xmpp")
case = SUITE.case(CONFORMANCE, needs_http=True)
NODE = Path(__file__).parent / "node"
OPEN = f'<stream:stream to="localhost" xmlns="jabber:client" xmlns:stream="{STREAMS}" version="1.0">'


def to(device):
    return {"device": device.device_id}


def session(target, device, **fields):
    return Session(target.xmpp, device.device_id, device.secret, **fields)


def has_body(words):
    return lambda stanza: str(stanza["body"]) == words


def push(target, device, title, **fields):
    return target.push(to(device), title, **fields)["message_id"]


# slixmpp.


@case
def a_push_reaches_slixmpp_by_scram_over_starttls_and_is_displayed(target):
    device = target.register(platform="desktop")
    with Client(target, device) as client:
        check(client.ready.is_set(), f"not signed in: {client.refused}")
        equal(client.plugin("feature_mechanisms").mech.name, "SCRAM-SHA-256", "mechanism")
        message = push(target, device, "hello")
        came = client.wait_for(lambda m: m["subject"] == "hello", "the push")
        target.await_state(message, device, "delivered")
        marker = client.client.make_message(mto=came["from"])
        marker["displayed"]["id"] = came["id"]
        client.call(marker.send)
        target.await_state(message, device, "displayed")
        steps = [entry["step"] for entry in target.delivery(message, device)["timeline"]]
        equal(steps, ["accepted", "queued", "sent", "delivered", "displayed"], "timeline")


@case
def raw_bytes_carry_the_id_of_their_message_and_are_displayed_by_it(target):
    device = target.register(platform="desktop")
    for rest in ({"data_text": "hello"}, {"data_base64": "AAEC"}):
        body = {"audience": to(device), "ttl_secs": 3600, **rest}
        message = target.call("POST", "/v1/messages", body, expect=202)[1]["message_id"]
        with session(target, device) as client:
            came = client.next()
            equal(came.get("id"), message, "id of the stanza")
            client.send(f'<message to="localhost"><displayed xmlns="urn:xmpp:chat-markers:0" id="{message}"/></message>')
            target.await_state(message, device, "displayed")


@case
def salts_do_not_tell_which_devices_and_apps_there_are(target):
    def salt(name):
        with Stream(target.xmpp) as client:
            client.open_socket()
            client.open_stream()
            client.start_tls()
            first = base64.b64encode(f"n,,n={name},r=abcdefghijklmnop".encode()).decode()
            client.send(f'<auth xmlns="{SASL}" mechanism="SCRAM-SHA-256">{first}</auth>')
            challenge = base64.b64decode(client.read_stanza().text).decode()
            return challenge.split(",s=")[1].split(",")[0]

    device = target.register(platform="desktop").device_id
    for name in (device, "nobody-at-all"):
        equal(salt(name), salt(f"default/{name}"), f"salt of {name} with and without its app")
        equal(salt(name), salt(name), f"salt of {name}, asked twice")
    check(salt("no-app/x") != salt("default/no-app/x"), "whether an app exists shows")


@case
def each_mechanism_signs_in_and_a_wrong_password_does_not(target):
    device = target.register(platform="desktop")
    for mechanism in ("SCRAM-SHA-1", "SCRAM-SHA-256", "PLAIN"):
        with Client(target, device, mechanism) as client:
            check(client.ready.is_set(), f"{mechanism}: {client.refused}")
        wrong = type(device)(device.device_id, device.secret[:-1])
        with Client(target, wrong, mechanism) as client:
            check(not client.ready.is_set() and client.refused, f"{mechanism} let a wrong password in")


@case
def a_sign_in_is_tied_to_its_tls_connection(target):
    device = target.register(platform="desktop")
    for spoilt, wanted in ((b"", "success"), (b"x", "not-authorized")):
        with Stream(target.xmpp) as client:
            client.open_socket()
            client.open_stream()
            features = client.start_tls()
            offered = channel_bindings(features)
            check({"tls-server-end-point", "tls-exporter"} <= offered, f"offered: {offered}")
            certificate = hashlib.sha256(client.socket.getpeercert(binary_form=True) + spoilt).digest()
            equal(scram_sha_256_plus(client, device.device_id, device.secret, certificate), wanted, "verdict")


@case
def a_sign_in_is_tied_to_the_keys_of_its_tls_connection(target):
    if SSL is None:
        raise NotHere("pyOpenSSL is not installed")
    device = target.register(platform="desktop")
    for spoilt, wanted in ((0, "success"), (1, "not-authorized")):
        with Stream(target.xmpp) as client:
            client.open_socket()
            client.open_stream()
            offered, key = client.start_tls_that_exports(SSL.TLS1_3_VERSION)
            check("tls-exporter" in offered, f"offered: {offered}")
            bound = bytes([key[0] ^ spoilt]) + key[1:]
            equal(scram_sha_256_plus(client, device.device_id, device.secret, bound, "tls-exporter"), wanted, "verdict")
    with Stream(target.xmpp) as client:
        client.open_socket()
        client.open_stream()
        offered, _ = client.start_tls_that_exports(SSL.TLS1_2_VERSION)
        # RFC 9266 §4: there it is unique only with an extension that not every client has.
        equal(offered, {"tls-server-end-point"}, "with TLS 1.2")


@case
def a_listener_that_begins_with_tls_needs_no_starttls(target):
    device = target.register(platform="desktop")
    with Stream(target.notes["xmpp_tls"]) as client:
        features = client.direct_tls()
        equal(features.find(f"{{{TLS}}}starttls"), None, "STARTTLS inside of TLS")
        certificate = hashlib.sha256(client.socket.getpeercert(binary_form=True)).digest()
        equal(scram_sha_256_plus(client, device.device_id, device.secret, certificate), "success", "sign-in")


@case
def slixmpp_resumes_after_a_cut_and_nothing_is_lost_or_doubled(target):
    device = target.register(platform="desktop")
    with Client(target, device) as client:
        check(client.ready.is_set(), f"not signed in: {client.refused}")
        first = push(target, device, "before")
        client.wait_for(lambda m: m["subject"] == "before", "the first push")
        target.await_state(first, device, "delivered")
        client.cut()
        missed = push(target, device, "meanwhile")
        client.call(client.dial)
        check(client.ready.wait(20), "not back")
        equal(client.resumptions, 1, "resumptions")
        client.wait_for(lambda m: m["subject"] == "meanwhile", "what came meanwhile")
        target.await_state(missed, device, "delivered")
        after = push(target, device, "after")
        client.wait_for(lambda m: m["subject"] == "after", "the last push")
        target.await_state(after, device, "delivered")
        equal([str(m["subject"]) for m in client.messages], [], "what is left")


@case
def pubsub_nodes_are_topics(target):
    reader, writer = (target.register(platform="desktop") for _ in range(2))
    node = topic()
    with Client(target, reader) as client, target.sign_in(writer, V5, inbox=False) as mqtt:
        pubsub = client.plugin("xep_0060")
        client.call(pubsub.subscribe, "localhost", node)
        mqtt.publish(node, b'{"n":1}', 1)
        event = client.wait_for(lambda m: m.xml.find(".//{urn:xmpp:json:0}json") is not None,
                                "the event of an MQTT publish")
        equal(event.xml.find(".//{urn:xmpp:json:0}json").text, '{"n":1}', "payload")
        mqtt.subscribe(node, 1)
        client.call(pubsub.publish, "localhost", node, payload=ET.fromstring("<note xmlns='urn:x'>hi</note>"))
        check(b"hi" in mqtt.message().payload, "an MQTT subscriber gets what slixmpp publishes")
        mqtt.publish(node, b'{"n":2}', 1, retain=True)
        items = client.call(pubsub.get_items, "localhost", node)
        check('"n":2' in str(items).replace("&quot;", '"'), f"the retained message: {items}")
        client.call(pubsub.unsubscribe, "localhost", node)


@case
def devices_of_an_app_write_to_each_other_also_while_one_is_away(target):
    one, other = (target.register(platform="desktop") for _ in range(2))
    with Client(target, one) as sender:
        with Client(target, other, receipts=False) as receiver:
            full = str(receiver.client.boundjid)
            for address in (f"{other.device_id}@localhost", full):
                sender.call(sender.client.send_message, mto=address, mbody=f"for {address}")
                came = receiver.wait_for(has_body(f"for {address}"), "a chat")
                equal(str(came["from"]), str(sender.client.boundjid), "from")
            # The acknowledgement of the last one goes ahead of this.
            receiver.call(receiver.plugin("xep_0199").send_ping, "localhost")
        sender.call(sender.client.send_message, mto=f"{other.device_id}@localhost", mbody="wait for me")
        # What is asked later is answered later: it is stored by then.
        sender.call(sender.plugin("xep_0199").send_ping, "localhost")
        with session(target, other) as receiver:
            message = receiver.next()
            equal(text(message, "body"), "wait for me", "offline message")
            check(message.find("{urn:xmpp:delay}delay") is not None, "what waited, however shortly, has no stamp")
        sender.call(sender.client.send_message, mto="nobody-at-all@localhost", mbody="x")
        refused = sender.wait_for(lambda m: m["type"] == "error", "an error for a device that is not there")
        equal(refused["error"]["condition"], "service-unavailable", "condition")


@case
def an_iq_goes_between_full_addresses_and_is_refused_for_who_is_away(target):
    one, other = (target.register(platform="desktop") for _ in range(2))
    with session(target, one) as asker, session(target, other) as asked:
        asked.ask("get", '<ping xmlns="urn:xmpp:ping"/>')
        asker.send(f'<iq id="n1" type="set" to="{asked.jid}"><notification xmlns="androidpn:iq:notification">'
                   "<title>t</title></notification></iq>")
        came = asked.next("iq")
        equal((came.get("id"), came.get("from")), ("n1", asker.jid), "the IQ")
        asked.send(f'<iq id="n1" type="result" to="{came.get("from")}"/>')
        equal(asker.next("iq").get("type"), "result", "its answer")
    with session(target, one) as asker:
        gone = asker.ask("get", '<query xmlns="urn:x"/>', to=f"{other.device_id}@localhost/wire")
        equal(condition(gone), "service-unavailable", "who is away")


@case
def a_device_that_speaks_mqtt_gets_no_stanzas_and_its_own_pushes(target):
    one, other = (target.register(platform="desktop") for _ in range(2))
    with session(target, one) as sender, target.sign_in(other, V5) as mqtt:
        sender.send(f'<message id="m" to="{other.device_id}@localhost" type="chat"><body>x</body></message>')
        equal(condition(sender.next()), "service-unavailable", "a stanza for MQTT")
        message = push(target, other, "for mqtt")
        check(message.encode() in mqtt.message().payload, "its push")


# Stream management and presence, on the wire.


@case
def pushes_wait_for_presence_and_come_late_with_a_stamp(target):
    device = target.register(platform="desktop")
    message = push(target, device, "early")
    with session(target, device, available=False) as client:
        client.quiet()
        client.send("<presence/>")
        equal(text(client.next(), "subject"), "early", "after presence")
        client.quiet()
        target.await_state(message, device, "delivered")
        client.send('<presence type="unavailable"/>')
        client.quiet()
        push(target, device, "while unavailable")
        client.quiet()
        client.send("<presence/>")
        equal(text(client.next(), "subject"), "while unavailable", "available again")


@case
def a_sleeping_client_gets_only_what_is_urgent(target):
    device = target.register(platform="desktop")
    with session(target, device) as client:
        client.send('<inactive xmlns="urn:xmpp:csi:0"/>')
        client.quiet()
        push(target, device, "can wait")
        push(target, device, "cannot wait", priority="high")
        equal(text(client.next(), "subject"), "cannot wait", "urgent")
        client.quiet()
        client.send('<active xmlns="urn:xmpp:csi:0"/>')
        equal(text(client.next(), "subject"), "can wait", "awake")


@case
def what_is_not_acknowledged_comes_again_on_the_next_stream(target):
    device = target.register(platform="desktop")
    with session(target, device) as client:
        client.send(f'<enable xmlns="{SM}"/>')
        equal(client.next(f"{{{SM}}}enabled").get("id"), None, "no resumption asked for")
        message = push(target, device, "twice")
        equal(client.next().get("id"), message, "id")
        # It asks, and is not answered.
        client.next(f"{{{SM}}}r")
        equal(target.delivery(message, device)["state"], "sent", "state")
    with session(target, device) as client:
        equal(client.next().get("id"), message, "again")
        client.quiet()
        target.await_state(message, device, "delivered")


@case
def a_stream_that_was_taken_over_ends_with_conflict(target):
    device = target.register(platform="desktop")
    with session(target, device) as old, session(target, device, resource="other") as new:
        equal(old.read_end(), "conflict", "the older stream")
        push(target, device, "for the newer one")
        equal(text(new.next(), "subject"), "for the newer one", "the newer stream")


@case
def a_device_changes_its_password_and_removes_itself(target):
    device = target.register(platform="desktop")
    with session(target, device) as client:
        query = f'<query xmlns="jabber:iq:register"><username>{device.device_id}</username><password>another</password></query>'
        equal(client.ask("set", query).get("type"), "result", "change")
    try:
        session(target, device)
        raise Unmet("the old password is still good")
    except PermissionError as refused:
        equal(str(refused), "not-authorized", "the old password")
    changed = type(device)(device.device_id, "another")
    with Client(target, changed, "SCRAM-SHA-256") as client:
        check(client.ready.is_set(), f"SCRAM with the new password: {client.refused}")
    with session(target, changed) as client:
        answer = client.ask("set", '<query xmlns="jabber:iq:register"><remove/></query>')
        equal(answer.get("type"), "result", "removal")
        equal(client.read_end(), "not-authorized", "and then the stream ends")
    equal(target.call("GET", f"/v1/devices/{device.device_id}")[0], 404, "it is gone")


# Other clients.


def node_client(target, device, service):
    if not (NODE / "node_modules/@xmpp/client").is_dir() or not shutil.which("node"):
        raise NotHere("npm's @xmpp/client is not installed")
    words = ["node", "xmpp.mjs", service, device.device_id, device.secret]
    # Its certificate is nobody's.
    environment = {"NODE_TLS_REJECT_UNAUTHORIZED": "0", "NODE_NO_WARNINGS": "1", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    run = subprocess.Popen(words, cwd=NODE, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        check(run.stdout.readline().startswith(f"ready {device.device_id}@localhost/"), f"{service} connects")
        message = target.push(to(device), "t", notification={"title": "t", "body": "for node"})["message_id"]
        equal(run.stdout.readline(), "for node\n", f"{service} receives")
        target.await_state(message, device, "delivered")
    finally:
        run.kill()
        run.wait()


@case
def npms_client_receives_over_tcp(target):
    node_client(target, target.register(platform="desktop"), "xmpp://%s:%d" % target.xmpp)


@case
def npms_client_receives_over_websocket(target):
    node_client(target, target.register(platform="web"), "ws://%s:%d/xmpp-websocket" % target.http)


@case
def a_client_of_the_command_line_sends(target):
    program = shutil.which("go-sendxmpp")
    if program is None:
        raise NotHere("go-sendxmpp is not installed")
    one, other = (target.register(platform="desktop") for _ in range(2))
    with session(target, other) as receiver:
        words = [program, "-u", f"{one.device_id}@localhost", "-p", one.secret, "-j", "%s:%d" % target.xmpp, "-n",
                 f"{other.device_id}@localhost"]
        done = subprocess.run(words, input="from the shell\n", text=True, capture_output=True, timeout=30)
        equal(done.returncode, 0, done.stderr)
        equal(text(receiver.next(), "body").strip(), "from the shell", "body")


# androidpn.


@case
def an_androidpn_phone_registers_receives_and_proves_it_without_a_word(target):
    phone = Phone(target.xmpp, comes_back=0.2).start()
    try:
        check(phone.signed_in.wait(20), str(phone.errors))
        device = type("", (), {"device_id": phone.username})
        body = {"title": "T<&>", "body": "M \U0001f600", "click": "http://x/?a=1&b=2"}
        message = target.push(to(device), "", notification=body)["message_id"]
        phone.wait_for(["T<&>"])
        shown = phone.notifications[-1]
        equal((shown["id"], shown["message"], shown["uri"], shown["apiKey"]),
              (message, "M \U0001f600", "http://x/?a=1&b=2", "1234567890"), "notification")
        target.await_state(message, device, "delivered")
    finally:
        phone.stop()
    missed = [target.push(to(device), f"missed {n}")["message_id"] for n in range(5)]
    again = Phone(target.xmpp, phone.username, phone.password, comes_back=0.2).start()
    try:
        again.wait_for([f"missed {n}" for n in range(5)])
        for message in missed:
            target.await_state(message, device, "delivered")
        equal((again.registrations, [n["title"] for n in again.notifications]), (0, [f"missed {n}" for n in range(5)]),
              "what it got, in order")
    finally:
        again.stop()


@case
def an_androidpn_phone_with_a_wrong_password_registers_anew_on_the_same_stream(target):
    known = Phone(target.xmpp)
    known.connect()
    known.register()
    with known:
        taken = known.ask("set", '<query xmlns="jabber:iq:register">'
                                 f"<password>x</password><username>{known.username}</username></query>")
        equal(error_code(taken), "409", "a name that is taken")
    phone = Phone(target.xmpp, known.username, "wrong").start()
    try:
        check(phone.signed_in.wait(20), str(phone.errors))
        equal((phone.errors, phone.registrations), (["401"], 1), "what it went through")
        check(phone.username != known.username, "it has a new account")
    finally:
        phone.stop()


@case
def a_phone_that_takes_a_notification_and_vanishes_has_not_received_it(target):
    phone = Phone(target.xmpp)
    phone.enter()
    device = type("", (), {"device_id": phone.username})
    message = push(target, device, "into the void")
    while phone.read_stanza().get("id") != message:
        pass
    phone.close()
    again = Phone(target.xmpp, phone.username, phone.password, comes_back=0.2).start()
    try:
        again.wait_for(["into the void"])
        target.await_state(message, device, "delivered")
    finally:
        again.stop()


# Hostile.


@case
def hostile_H69_what_comes_in_clear_behind_starttls_is_thrown_away(target):
    with Stream(target.xmpp) as client:
        client.open_socket()
        client.open_stream()
        query = "<query xmlns='jabber:iq:register'><username>injected</username><password>x</password></query>"
        client.send(f'<starttls xmlns="{TLS}"/><iq id="i" type="set">{query}</iq>')
        equal(client.read_stanza().tag, f"{{{TLS}}}proceed", "answer")
        client.socket = any_certificate().wrap_socket(client.socket)
        client.open_stream()
        equal(client.ask("get", "<query xmlns='jabber:iq:register'/>").get("type"), "result", "TLS goes on")
    equal(target.call("GET", "/v1/devices/injected")[0], 404, "the injected account")


@case
def hostile_a_failed_handshake_closes_and_nothing_behind_it_is_read(target):
    with Stream(target.xmpp) as client:
        client.open_socket()
        client.open_stream()
        client.send(f'<starttls xmlns="{TLS}"/>')
        client.read_stanza()
        query = "<query xmlns='jabber:iq:register'><username>in-clear</username><password>x</password></query>"
        try:
            client.send(f'{OPEN}<iq id="i" type="set">{query}</iq>')
            came = b""
            while part := client.socket.recv(4096):
                came += part
        except ConnectionError:
            came = b""
        check(b"<" not in came, f"words in clear: {came}")
    equal(target.call("GET", "/v1/devices/in-clear")[0], 404, "the account")


@case
def hostile_a_tls_hello_on_the_plain_port_is_closed_at_once(target):
    with socket.create_connection(target.xmpp, timeout=3) as raw:
        raw.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200))
        begun = time.monotonic()
        try:
            equal(raw.recv(100), b"", "an end")
        except ConnectionError:
            pass
        check(time.monotonic() - begun < 2, "at once, so that clients fall back")


@case
def hostile_H70_sasl(target):
    device = target.register(platform="desktop")

    def auth(words):
        return f'<auth xmlns="{SASL}" {words}</auth>'

    with Stream(target.xmpp) as client:
        client.open_socket()
        client.open_stream()
        client.start_tls()
        for words, wanted in (('mechanism="CRAM-MD5">', "invalid-mechanism"), ('mechanism="PLAIN">!!!', "incorrect-encoding"),
                              # \0 in front: other\0user\0secret acts as somebody else.
                              ('mechanism="PLAIN">b3RoZXIAdQBw', "invalid-authzid")):
            client.send(auth(words))
            answer = client.read_stanza()
            equal((answer.tag, answer[0].tag.partition("}")[2]), (f"{{{SASL}}}failure", wanted), words)
        equal(client.read_end(), "policy-violation", "after three")
    with session(target, device) as client:
        client.quiet()


@case
def hostile_a_stream_that_says_nothing_is_closed(target):
    with socket.create_connection(target.xmpp, timeout=30) as raw:
        begun = time.monotonic()
        equal(raw.recv(100), b"", "an end")
        check(3 < time.monotonic() - begun < 15, "after the five seconds of L2")


@SUITE.case(DEFAULT, needs_http=True)
def without_tls_nobody_signs_in(target):
    device = target.register(platform="desktop")
    with Stream(target.xmpp) as client:
        client.open_socket()
        features = client.open_stream()
        equal(features.find(f"{{{TLS}}}starttls"), None, "no certificate, no STARTTLS")
        client.send(f'<auth xmlns="{SASL}" mechanism="PLAIN">AGEAYg==</auth>')
        equal(client.read_stanza()[0].tag.partition("}")[2], "encryption-required", "PLAIN")
    try:
        session(target, device)
        raise Unmet("it was let in")
    except Lost:
        pass
