"""Who may do what, on the roads that hold a connection: tickets, resume tokens, JWTs, anonymous clients.

What requests may do is judged in Rust, for each route and field (`api/tests/access.rs`, `fields.rs`).
"""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import tempfile
import time

from harness import CONFORMANCE, DEFAULT, Suite, check, equal
from mqtt_wire import V5, V311, unique
from server import Server
from web_clients import Socket

SUITE = Suite("rights")
case = SUITE.case(DEFAULT, needs_http=True)
JWT_KEY = b"a key of the app's own server, of more than 32 bytes"


def to(device):
    return {"device": device.device_id}


def ticket_of(target, device, key=None):
    path = f"/v1/devices/{device.device_id}/tickets"
    return target.call("POST", path, key=key or f"{device.device_id}:{device.secret}", expect=201)[1]


def hello(token, **fields):
    return {"type": "hello", "token": token, **fields}


def opened(target, token, **fields):
    socket = Socket(target, hello=hello(token, **fields))
    socket.welcome = socket.frame("welcome")
    return socket


def publish(topic):
    return {"type": "publish", "topic": topic, "text": "x"}


@case
def a_ticket_on_a_websocket_reads_acknowledges_and_does_nothing_else(target):
    device = target.register(platform="web")
    own = f"devices/{device.device_id}/x"
    subscribe = {"type": "subscribe", "topics": [own], "qos": 1}
    with Socket(target, device) as phone:
        equal(phone.ask(subscribe)["granted"], [True], "with the secret")
    made = ticket_of(target, device)
    with opened(target, made["ticket"], clean=True, session_expiry_secs=0) as thief:
        for frame in (subscribe, {"type": "unsubscribe", "topics": [own]}, publish(own)):
            answer = thief.ask(frame)
            equal((answer["type"], answer.get("code")), ("error", "not_allowed"), frame["type"])
        message = target.push(to(device))["message_id"]
        came = thief.frame("push")
        thief.ack(came)
        target.await_state(message, device, "delivered")
        equal(thief.ask({"type": "receipt", "id": message, "step": "displayed"})["type"], "ok", "receipt")
        check(thief.welcome["resume_until"] <= made["expires_at"], "no resume token outlives the ticket")
        resumed = thief.welcome["resume_token"]
    with opened(target, resumed) as thief:
        equal(thief.ask(publish(own)).get("code"), "not_allowed", "a resume token of a ticket is one")
    # Neither `clean` nor the end of that connection has touched what the device subscribed to.
    with Socket(target, device) as phone:
        check(phone.welcome["resumed"], "the session is still there")
        equal(phone.ask(publish(own))["type"], "ok", "the device itself")
    shown = target.call("GET", f"/v1/devices/{device.device_id}", expect=200)[1]
    equal([s["filter"] for s in shown["subscriptions"]], [own], "subscriptions")


@case
def a_resume_token_goes_on_where_its_connection_was_and_no_chain_outlives_the_first(target):
    device = target.register(platform="web")
    own = f"devices/{device.device_id}/x"
    with Socket(target, device) as phone:
        first = phone.welcome
    token = first["resume_token"]
    for _ in range(3):
        with opened(target, token) as phone:
            equal(phone.ask(publish(own))["type"], "ok", "a resumed connection publishes")
            equal(phone.ask({"type": "subscribe", "topics": [own]})["granted"], [True], "and subscribes")
            check(phone.welcome["resume_until"] <= first["resume_until"], "the end stays the same")
            token = phone.welcome["resume_token"]
    bearer = {"Authorization": f"Bearer {token}"}
    path = f"/v1/devices/{device.device_id}"
    equal(target.call("GET", "/v1/inbox", headers=bearer)[0], 200, "reads over HTTP")
    for method, where in (("GET", path), ("PATCH", path), ("DELETE", path), ("POST", f"{path}/secret")):
        body = {"platform": "ios"} if method == "PATCH" else None
        equal(target.call(method, where, body, headers=bearer)[0], 403, f"{method} {where}")


@case
def a_new_secret_ends_the_connection_and_the_tokens_of_the_old_one(target):
    device = target.register(platform="web", tags=["rotated"])
    path = f"/v1/devices/{device.device_id}"
    ticket = ticket_of(target, device)["ticket"]
    with Socket(target, device) as phone:
        resume = phone.welcome["resume_token"]
        message = target.push(to(device))["message_id"]
        made = target.call("POST", f"{path}/secret", expect=200)[1]
        code, _ = phone.close_code()
        equal(code, 4001, "close code")
    for token in (ticket, resume, f"{device.device_id}:{device.secret}"):
        equal(target.call("GET", "/v1/inbox", headers={"Authorization": f"Bearer {token}"})[0], 401, "over HTTP")
    for old in (ticket, resume):
        with Socket(target, hello=hello(old)) as phone:
            equal(phone.close_code()[0], 4002, "over WebSocket")
    refused = target.raw(V311, device.device_id, source=target.fresh_source())
    check(refused.connect(None, user=device.device_id, password=device.secret).reason != 0, "over MQTT")
    new = type(device)(device.device_id, made["device_secret"])
    with Socket(target, new) as phone:
        equal(phone.frame("push")["message"]["id"], message, "the inbox is kept")
    equal(target.call("GET", path, expect=200)[1]["tags"], ["rotated"], "so is the device")


def jwt(**claims):
    part = lambda words: base64.urlsafe_b64encode(words).rstrip(b"=")
    signed = b".".join(part(json.dumps(words).encode()) for words in ({"alg": "HS256", "typ": "JWT"}, claims))
    return (signed + b"." + part(hmac.digest(JWT_KEY, signed, hashlib.sha256))).decode()


@contextlib.contextmanager
def server_that_believes_jwts(target, **settings):
    """A server of its own, of the same binary."""
    with tempfile.TemporaryDirectory() as folder:
        key = os.path.join(folder, "jwt.key")
        with open(key, "wb") as file:
            file.write(JWT_KEY)
        settings = {"jwt.key_file": key, "jwt.algorithm": "HS256", **settings}
        binary = target.notes["binary"]
        server = Server(binary, os.path.join(folder, "data"), log_path=os.path.join(folder, "log"), settings=settings)
        server.start()
        try:
            yield server.target()
        finally:
            server.stop()


@case
def a_jwt_over_a_websocket_says_alias_and_tags_before_the_welcome(outer):
    with server_that_believes_jwts(outer) as target:
        device = target.register(platform="web")
        now = int(time.time())
        token = jwt(sub=device.device_id, exp=now + 300, alias="ann", tags=["vip"])
        with opened(target, token) as phone:
            for audience in ({"alias": "ann"}, {"tag": "vip"}):
                equal(target.push(audience)["targeted"], 1, str(audience))
                phone.ack(phone.frame("push"))
            check(phone.welcome["resume_until"] <= (now + 300) * 1000, "no token outlives the JWT")
            equal(phone.ask(publish(f"devices/{device.device_id}/x"))["type"], "ok", "all that a device may")
        refused = [jwt(sub=device.device_id, exp=now + 300, alias="x" * 65), jwt(sub=device.device_id, exp=2**64 - 1),
                   jwt(sub=device.device_id, exp=now + 300, nbf=now + 200), jwt(sub="nobody", exp=now + 300, alias="ann")]
        for token in refused:
            with Socket(target, hello=hello(token)) as phone:
                code, frames = phone.close_code()
                equal((code, frames[0]["code"]), (4002, "bad_credentials"), "refused")
        equal(target.call("GET", "/v1/devices?alias=ann", expect=200)[1]["devices"][0]["device_id"], device.device_id,
              "what was refused changed nothing")


@SUITE.case(CONFORMANCE, needs_http=True)
def an_anonymous_client_does_not_enter_an_app_that_its_user_name_says(target):
    app = unique("bank").lower().replace("/", "-")
    target.call("POST", "/v1/apps", {"id": app}, key=target.admin_key, expect=201)
    key = target.call("POST", f"/v1/apps/{app}/keys", {"scope": "app"}, key=target.admin_key, expect=201)[1]["key"]
    for version in (V311, V5):
        for user in (f"{app}/whoever", f"{app}/"):
            client = target.raw(version, unique("thief"))
            answer = client.connect(None, user=user, password="x")
            check(answer.reason != 0, f"{user} was let in")
    equal(target.call("GET", "/v1/topics/x", key=key, expect=200)[1]["subscribers"], 0, "nobody is there")
    made = target.call("POST", "/v1/devices", {"platform": "iot"}, key=key, expect=201)[1]
    device = target.raw(V311, made["device_id"])
    device.connect(user=f"{app}/{made['device_id']}", password=made["device_secret"])
    # Another user name is nobody's, and says no app: such a client belongs to the listener's.
    target.raw(V311, unique("old")).connect(user="no-such-app/whoever", password="x")
