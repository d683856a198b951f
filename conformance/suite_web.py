"""Browsers and plain HTTP: the JSON protocol over WebSocket, server-sent events, long-poll and pull.

One inbox, whatever the road: what holds for an MQTT device is judged here once more for each.
"""

import json
import socket
import subprocess
import threading
import time
from pathlib import Path

from harness import DEFAULT, NotHere, Suite, check, equal, eventually
from mqtt_wire import V5
from web_clients import Http, Socket, Stream, basic

SUITE = Suite("web")
case = SUITE.case(DEFAULT, needs_http=True)
NODE = Path(__file__).parent / "node"


def to(device):
    return {"device": device.device_id}


def steps(delivery):
    return [entry["step"] for entry in delivery["timeline"]]


# WebSocket.


@case
def a_push_reaches_a_websocket_and_is_acknowledged_displayed_and_clicked(target):
    device = target.register(platform="web")
    with Socket(target, device) as phone:
        equal(phone.welcome["device"], device.device_id, "welcome")
        message = target.push(to(device), "hello", data={"k": "v"})["message_id"]
        came = phone.frame("push")
        equal((came["message"]["id"], came["message"]["notification"]["title"], came["message"]["data"]),
              (message, "hello", {"k": "v"}), "envelope")
        target.await_state(message, device, "sent")
        phone.ack(came)
        target.await_state(message, device, "delivered")
        for step in ("displayed", "clicked"):
            equal(phone.ask({"type": "receipt", "id": message, "step": step})["type"], "ok", "answer")
            target.await_state(message, device, step)
        equal(steps(target.delivery(message, device)),
              ["accepted", "queued", "sent", "delivered", "displayed", "clicked"], "timeline")


@case
def raw_data_travels_as_base64(target):
    device = target.register(platform="web")
    with Socket(target, device) as phone:
        body = {"audience": to(device), "data_base64": "AAEC/w==", "ttl_secs": 60}
        target.call("POST", "/v1/messages", body, expect=202)
        equal(phone.frame("push")["base64"], "AAEC/w==", "payload")


@case
def two_hundred_pushes_come_in_order_through_a_window_of_32(target):
    device = target.register(platform="web")
    with Socket(target, device) as phone:
        ids = [target.push(to(device), str(n))["message_id"] for n in range(200)]
        got, window = [], [phone.frame("push") for _ in range(32)]
        phone.quiet()
        while window:
            got += [frame["message"]["id"] for frame in window]
            phone.ack(*window)
            window = [phone.frame("push") for _ in range(min(32, 200 - len(got)))]
        equal(got, ids, "order")
        phone.quiet()


@case
def what_is_not_acknowledged_comes_again_and_may_be_acknowledged_there(target):
    device = target.register(platform="web")
    first, second = (target.push(to(device), t)["message_id"] for t in ("1", "2"))
    with Socket(target, device) as phone:
        one, two = phone.frame("push"), phone.frame("push")
        check("again" not in one, f"first time: {one}")
        phone.ack(two)
        target.await_state(second, device, "delivered")
    with Socket(target, device) as phone:
        again = phone.frame("push")
        equal((again["message"]["id"], again.get("again")), (first, True), "replay")
        phone.quiet()
        # The acknowledgement is one of the earlier connection's delivery.
        phone.ack(one)
        target.await_state(first, device, "delivered")
    with Socket(target, device) as phone:
        phone.quiet()


@case
def a_repeated_or_invented_acknowledgement_does_no_harm(target):
    device, other = target.register(platform="web"), target.register(platform="web")
    strange = target.push(to(other), "other's")["message_id"]
    with Socket(target, other) as owner, Socket(target, device) as phone:
        foreign = owner.frame("push")
        phone.send({"type": "ack", "deliveries": [foreign["delivery"], "999999999", "t7", "0"]})
        message = target.push(to(device))["message_id"]
        came = phone.frame("push")
        phone.ack(came)
        phone.ack(came, came)
        target.await_state(message, device, "delivered")
        equal(target.delivery(strange, other)["state"], "sent", "the other's delivery")


@case
def acknowledgements_of_nothing_end_the_connection(target):
    device = target.register(platform="web")
    with Socket(target, device) as phone:
        phone.send({"type": "ack", "deliveries": [str(900_000_000 + n) for n in range(1_000)]})
        code, frames = phone.close_code()
        equal((code, frames[-1]["reason"]), (1008, "policy"), "farewell")
    # It may come back, and what is there is acknowledged as ever.
    message = target.push(to(device))["message_id"]
    with Socket(target, device) as phone:
        phone.ack(phone.frame("push"))
        target.await_state(message, device, "delivered")


@case
def a_newer_connection_takes_over_whatever_it_speaks(target):
    device = target.register(platform="web")
    first = Socket(target, device)
    second = Socket(target, device)
    code, frames = first.close_code()
    equal((code, frames[-1]), (4000, {"type": "bye", "reason": "taken_over", "retry": False}), "farewell")
    with target.sign_in(device, V5) as phone:
        code, frames = second.close_code()
        equal((code, frames[-1]["reason"]), (4000, "taken_over"), "farewell to a WebSocket by MQTT")
        message = target.push(to(device))["message_id"]
        equal(json.loads(phone.message().payload)["id"], message, "the newer connection has the inbox")
    with Socket(target, device) as third, Stream(target, device) as stream:
        equal(third.close_code()[0], 4000, "farewell to a WebSocket by a stream")
        target.push(to(device))
        stream.next()


@case
def wrong_credentials_and_unknown_devices_look_alike(target):
    device = target.register(platform="web")
    for hello in ({"device": device.device_id, "secret": "wrong"}, {"device": "nobody", "secret": device.secret},
                  {"token": "prt1.0.AAAA.99999999999999.AAAA"}, {"token": "a.b.c"}):
        with Socket(target, hello={"type": "hello", **hello}) as phone:
            code, frames = phone.close_code()
            equal((code, frames[0]["code"], frames[-1]["reason"]), (4002, "bad_credentials", "not_authorized"),
                  f"{list(hello)}")


@case
def a_device_without_credentials_is_not_let_in(target):
    device = target.register(platform="web")
    with Socket(target, hello={"type": "hello", "device": device.device_id}) as phone:
        code, frames = phone.close_code()
        equal((code, frames[0]["code"]), (4002, "not_allowed"), "no anonymous clients here")


@case
def a_resume_token_signs_in_until_the_device_is_deleted(target):
    device = target.register(platform="web")
    with Socket(target, device) as phone:
        token = phone.welcome["resume_token"]
        equal(phone.ask({"type": "subscribe", "topics": ["public/r/#"]})["granted"], [True], "granted")
    with Socket(target, hello={"type": "hello", "token": token}) as phone:
        welcome = phone.frame("welcome")
        equal((welcome["device"], welcome["resumed"]), (device.device_id, True), "welcome")
        message = target.push(to(device))["message_id"]
        came = phone.frame("push")
        phone.ack(came)
        target.await_state(message, device, "delivered")
        target.call("DELETE", f"/v1/devices/{device.device_id}", expect=204)
        code, frames = phone.close_code()
        equal((code, frames[-1]["reason"]), (4001, "revoked"), "farewell")
    with Socket(target, hello={"type": "hello", "token": token}) as phone:
        equal(phone.close_code()[0], 4002, "the token of a deleted device")


@case
def topics_reach_websockets_and_mqtt_alike(target):
    device, other = target.register(platform="web"), target.register()
    mine = f"devices/{device.device_id}/up"
    with Socket(target, device) as phone, target.sign_in(other, V5) as watcher:
        asked = {"type": "subscribe", "topics": ["public/news/#", "devices/+/up", mine, "a/#/b"]}
        equal(phone.ask(asked, 7)["granted"], [True, False, True, False], "granted")
        watcher.subscribe("public/news/#", 1)
        path = "/v1/topics/public%2Fnews%2Fx/publish"
        target.call("POST", path, {"payload_text": "headline", "qos": 1}, expect=202)
        came = phone.frame("message")
        equal((came["topic"], came["text"]), ("public/news/x", "headline"), "message")
        check("delivery" in came, f"to be acknowledged: {came}")
        phone.ack(came)
        equal(watcher.message().payload, b"headline", "the same by MQTT")
        equal(phone.ask({"type": "publish", "topic": mine, "json": {"t": 21}}, 8)["type"], "ok", "publish")
        equal(phone.ask({"type": "publish", "topic": "public/news/x", "text": "no"}, 9)["code"], "not_allowed", "publish")
        equal(phone.ask({"type": "publish", "topic": "a/#", "text": "no"}, 10)["code"], "invalid_topic", "publish")
        equal(phone.ask({"type": "unsubscribe", "topics": ["public/news/#"]}, 11)["type"], "ok", "unsubscribe")
        target.call("POST", path, {"payload_text": "later", "qos": 1}, expect=202)
        phone.quiet()


@case
def a_subscription_outlives_the_connection_and_keeps_what_came_meanwhile(target):
    device = target.register(platform="web")
    path = "/v1/topics/public%2Flasting/publish"
    with Socket(target, device) as phone:
        phone.ask({"type": "subscribe", "topics": ["public/lasting"]})
    eventually(lambda: not target.call("GET", f"/v1/devices/{device.device_id}")[1]["connected"], "away")
    target.call("POST", path, {"payload_text": "while away", "qos": 1}, expect=202)
    with Socket(target, device) as phone:
        equal(phone.welcome["resumed"], True, "welcome")
        came = phone.frame("message")
        equal(came["text"], "while away", "kept")
        phone.ack(came)
        phone.quiet()
    with Socket(target, device, clean=True) as phone:
        equal(phone.welcome["resumed"], False, "welcome of a clean start")
        target.call("POST", path, {"payload_text": "unheard", "qos": 1}, expect=202)
        phone.quiet()


@case
def a_retained_message_comes_with_the_subscription(target):
    device = target.register(platform="web")
    body = {"payload_text": "still true", "retain": True, "qos": 1}
    target.call("POST", "/v1/topics/public%2Fretained%2Fweb/publish", body, expect=202)
    with Socket(target, device) as phone:
        phone.ask({"type": "subscribe", "topics": ["public/retained/+"]})
        came = phone.frame("message")
        equal((came["text"], came.get("retained")), ("still true", True), "retained")


@case
def silence_ends_a_websocket_and_a_ping_keeps_it(target):
    silent = Socket(target, target.register(platform="web"), heartbeat_secs=1, patience=30)
    equal(silent.welcome["heartbeat_secs"], 10, "the least that is granted")
    lively = Socket(target, target.register(platform="web"), heartbeat_secs=10, patience=30)
    code, frames = None, None

    def watch():
        nonlocal code, frames
        code, frames = silent.close_code()

    watcher = threading.Thread(target=watch)
    watcher.start()
    while watcher.is_alive():
        lively.quiet()
        watcher.join(2)
    equal((code, frames[-1]["reason"], frames[-1]["retry"]), (4003, "keepalive", True), "farewell")
    lively.quiet()


BAD_FRAMES = [
    "", "nonsense", "[]", "null", "1", '"x"', "{}", '{"type":7}', '{"type":"nothing"}', '{"type":"ping"',
    '{"type":"ping"}{"type":"ping"}', '{"type":"ping","type":"ping"}', '{"type":"ack"}',
    '{"type":"ack","deliveries":"1"}', '{"type":"ack","deliveries":[1]}', '{"type":"ack","deliveries":["-1"]}',
    '{"type":"ack","deliveries":["1e3"]}', '{"type":"ack","deliveries":["99999999999999999999"]}',
    '{"type":"ack","deliveries":[' + ",".join(['"1"'] * 1001) + "]}",
    '{"type":"subscribe"}', '{"type":"subscribe","topics":{}}', '{"type":"subscribe","topics":["a"],"qos":7}',
    '{"type":"subscribe","topics":["a"],"ref":-1}', '{"type":"subscribe","topics":["a"],"ref":4294967296}',
    '{"type":"publish"}', '{"type":"publish","topic":"a"}', '{"type":"publish","topic":"a","text":"x","json":1}',
    '{"type":"publish","topic":"a","base64":"?"}', '{"type":"publish","topic":7,"text":"x"}',
    '{"type":"publish","topic":"a","json":' + "[" * 40 + "]" * 40 + "}", "[" * 60_000,
    '{"type":"receipt","step":"displayed"}', '{"type":"receipt","id":7,"step":"displayed"}',
    '{"type":"hello","device":"again","secret":"x"}', '{"type":"ping","x":' + '{"a":' * 40 + "1" + "}" * 40 + "}",
]


@case
def frames_that_cannot_be_read_are_refused_one_by_one_and_end_it_at_twenty(target):
    device = target.register(platform="web")
    for start in range(0, len(BAD_FRAMES), 19):
        with Socket(target, device) as phone:
            for bad in BAD_FRAMES[start:start + 19]:
                phone.send(bad)
                equal(phone.next().get("code"), "bad_frame", bad[:60])
            message = target.push(to(device))["message_id"]
            came = phone.frame("push")
            equal(came["message"]["id"], message, "it goes on")
            phone.ack(came)
            target.await_state(message, device, "delivered")
    with Socket(target, device) as phone:
        for _ in range(20):
            phone.send("{")
        code, frames = phone.close_code()
        equal((code, len(frames)), (1008, 21), "at twenty")


REFUSED = [
    ({"type": "receipt", "id": "nonsense", "step": "displayed"}, "invalid_payload"),
    ({"type": "receipt", "id": "01m84dqcec8h4p274tzpr4pfyb", "step": "expired"}, "invalid_payload"),
    ({"type": "receipt", "id": "01m84dqcec8h4p274tzpr4pfyb", "step": ""}, "invalid_payload"),
    ({"type": "publish", "topic": "", "text": "x"}, "invalid_topic"),
    ({"type": "publish", "topic": "a/+", "text": "x"}, "invalid_topic"),
    ({"type": "publish", "topic": "a\u0000b", "text": "x"}, "invalid_topic"),
    ({"type": "publish", "topic": "x" * 600, "text": "x"}, "invalid_topic"),
    ({"type": "publish", "topic": "/".join("a" * 40), "text": "x"}, "invalid_topic"),
    ({"type": "publish", "topic": "$SYS/x", "text": "x"}, "not_allowed"),
    ({"type": "publish", "topic": "$push/inbox", "text": "x"}, "not_allowed"),
    ({"type": "publish", "topic": "devices/someone/up", "text": "x"}, "not_allowed"),
    ({"type": "subscribe", "topics": []}, "quota_exceeded"),
    ({"type": "subscribe", "topics": ["a"] * 17}, "quota_exceeded"),
]


@case
def what_a_device_may_not_do_is_refused_with_its_code(target):
    device = target.register(platform="web")
    with Socket(target, device) as phone:
        for frame, code in REFUSED:
            answer = phone.ask(frame)
            equal((answer["type"], answer.get("code")), ("error", code), str(frame)[:80])
        phone.quiet()


@case
def before_the_hello_nothing_else_is_heard(target):
    for first, code in (('{"type":"ping"}', 1008), ("{}", 1008), (b"\x00\x01", 1003), ("x" * 70_000, 1009)):
        with Socket(target) as phone:
            phone.send(first)
            equal(phone.close_code()[0], code, str(first[:20]))
    with Socket(target, patience=20) as silent:
        equal(silent.close_code()[0], 1008, "no hello in time")


@case
def a_page_of_another_site_may_not_connect(target):
    host, port = target.http
    for path in ("/ws", "/mqtt"):
        with socket.create_connection((host, port), 10) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: https://evil.example\r\nUpgrade: websocket\r\n"
                        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n"
                        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
            check(raw.recv(4096).startswith(b"HTTP/1.1 403 "), f"{path} opened")


# Server-sent events.


@case
def a_push_reaches_a_stream_and_is_acknowledged_by_a_request(target):
    device = target.register(platform="web")
    with Stream(target, device) as stream, Http(target, device) as http:
        message = target.push(to(device), "hello")["message_id"]
        event, came = stream.next()
        equal((came["type"], came["message"]["id"], event.id), ("push", message, came["cursor"]), "event")
        equal(http.ack(came, path="/v1/stream/acks"), 1, "acknowledged")
        equal(target.delivery(message, device)["state"], "delivered", "at the answer it is stored")
        equal(http.ack(came, path="/v1/stream/acks"), 0, "once more")


@case
def a_stream_goes_on_as_acknowledgements_come(target):
    device = target.register(platform="web")
    ids = [target.push(to(device), str(n))["message_id"] for n in range(100)]
    with Stream(target, device) as stream, Http(target, device) as http:
        got = []
        while len(got) < 100:
            frames = [stream.next()[1] for _ in range(min(32, 100 - len(got)))]
            got += [frame["message"]["id"] for frame in frames]
            check(not stream.events, f"more than the window: {stream.events}")
            equal(http.ack(*frames), len(frames), "acknowledged")
        equal(got, ids, "order")


@case
def a_stream_goes_on_behind_the_last_event_id(target):
    device = target.register(platform="web")
    ids = [target.push(to(device), str(n))["message_id"] for n in range(3)]
    with Stream(target, device) as stream:
        first = stream.next()[0]
    with Stream(target, device, last_event_id=first.id) as stream:
        equal([stream.next()[1]["message"]["id"] for _ in range(2)], ids[1:], "behind it")
    for place in (None, "dead-0-99", "nonsense"):
        with Stream(target, device, last_event_id=place) as stream:
            equal(stream.next()[1]["message"]["id"], ids[0], f"from the oldest, with {place}")


@case
def a_newer_stream_ends_the_older_with_a_farewell(target):
    device = target.register(platform="web")
    with Stream(target, device) as old, Stream(target, device):
        event, bye = old.next("bye")
        equal((bye["reason"], bye["retry"], event.retry), ("taken_over", False, 60_000), "farewell")
        old.await_end()


@case
def a_ticket_opens_a_stream_by_its_url(target):
    device = target.register(platform="web")
    with Http(target, device) as http:
        answer, made = http.call("POST", f"/v1/devices/{device.device_id}/tickets")
        equal(answer.status, 201, "ticket")
        with Stream(target, device, ticket=made["ticket"]) as stream:
            target.push(to(device))
            stream.next()
        bearer = {"Authorization": f"Bearer {made['ticket']}"}
        equal(target.call("GET", "/v1/inbox", headers=bearer)[0], 200, "as a bearer")
        equal(target.call("GET", "/v1/devices", headers=bearer)[0], 403, "for itself only")
        forged = made["ticket"][:-2] + ("AA" if not made["ticket"].endswith("AA") else "BB")
        equal(target.call("GET", f"/v1/inbox?ticket={forged}", headers={"Authorization": ""})[0], 400, "ambiguous")
        equal(target.call("GET", "/v1/inbox", headers={"Authorization": f"Bearer {forged}"})[0], 401, "forged")


# Long-poll and pull.


@case
def a_pull_gets_everything_in_order_and_never_again_what_it_acknowledged(target):
    device = target.register(platform="web")
    ids = [target.push(to(device), str(n))["message_id"] for n in range(25)]
    with Http(target, device) as http:
        got, after = [], ""
        while True:
            page = http.inbox(f"?limit=10{after}")
            got += [frame["message"]["id"] for frame in page["messages"]]
            if not page["more"]:
                break
            after = f"&after={page['next']}"
        equal(got, ids, "by cursor")
        page = http.inbox("?limit=10")
        equal([f["message"]["id"] for f in page["messages"]], ids[:10], "not acknowledged: there again")
        equal(http.ack(*page["messages"]), 10, "acknowledged")
        equal([f["message"]["id"] for f in http.inbox()["messages"]], ids[10:], "the rest")
        target.await_state(ids[0], device, "delivered")


@case
def a_pull_that_changes_nothing_costs_a_304(target):
    device = target.register(platform="web")
    target.push(to(device))
    with Http(target, device) as http:
        answer, page = http.call("GET", "/v1/inbox")
        tag = answer.getheader("ETag")
        again, body = http.call("GET", "/v1/inbox", **{"If-None-Match": tag})
        equal((again.status, body, again.getheader("ETag")), (304, b"", tag), "unchanged")
        target.push(to(device))
        equal(http.call("GET", "/v1/inbox", **{"If-None-Match": tag})[0].status, 200, "changed")


@case
def who_polls_too_often_is_told_to_wait(target):
    device = target.register(platform="web")
    with Http(target, device) as http:
        answers = [http.call("GET", "/v1/inbox")[0] for _ in range(30)]
        refused = [a for a in answers if a.status == 429]
        check(refused, "thirty empty pulls at once were answered")
        check(all(int(a.getheader("Retry-After")) >= 1 for a in refused), "no Retry-After")
        target.push(to(device))
        equal(len(http.inbox()["messages"]), 1, "what is there is given out all the same")
        answers = [http.call("GET", "/v1/inbox")[0].status for _ in range(300)]
        check(429 in answers, "who never acknowledges gets the same as fast as it asks")


@case
def a_poll_that_waits_is_woken_by_a_push_and_its_connection_goes_on(target):
    device = target.register(platform="web")
    with Http(target, device) as http:
        for n in range(3):
            push = threading.Timer(0.3, lambda: target.push(to(device), str(n)))
            push.start()
            page = http.inbox("?wait=30")
            push.join()
            equal([f["message"]["notification"]["title"] for f in page["messages"]], [str(n)], "woken")
            equal(http.ack(*page["messages"]), 1, "on the same connection")
        begun = time.monotonic()
        equal(http.inbox("?wait=1")["messages"], [], "in vain")
        check(time.monotonic() - begun > 0.9, "it did not wait")


@case
def a_poll_reads_beside_a_connection_and_two_may_wait(target):
    device = target.register(platform="web")
    with target.sign_in(device, V5) as phone:
        phone.auto_ack = False
        pages = []

        def wait():
            with Http(target, device) as http:
                # One that comes while two others wait is told so, and tries again.
                while (answer := http.call("GET", "/v1/inbox?wait=30"))[0].status != 200:
                    time.sleep(0.05)
                pages.append(answer[1]["messages"])

        waiting = [threading.Thread(target=wait) for _ in range(2)]
        for thread in waiting:
            thread.start()
        with Http(target, device) as http:
            def third():
                answer, told = http.call("GET", "/v1/inbox?wait=1")
                if answer.status == 200:
                    # It had a place before one of the two: it leaves it to them, who ask more often than this.
                    time.sleep(0.5)
                    return False
                return answer.status == 429 and answer.getheader("Retry-After") and told["error"]["code"] == "polls_too_often"
            eventually(third, "a third does not wait")
        message = target.push(to(device))["message_id"]
        for thread in waiting:
            thread.join(10)
        equal([[f["message"]["id"] for f in page] for page in pages], [[message], [message]], "both")
        equal(json.loads(phone.message().payload)["id"], message, "and the connection, which was not taken over")


@case
def a_poll_is_refused_where_it_cannot_be_served(target):
    device = target.register(platform="web")
    with Http(target, device) as http:
        for query, status, code in (("?wait=61", 400, "invalid_parameter"), ("?wait=-1", 400, "invalid_parameter"),
                                    ("?limit=0", 400, "invalid_parameter"), ("?limit=1001", 400, "invalid_parameter"),
                                    ("?after=x", 400, "invalid_cursor"), ("?after=1-2", 400, "invalid_cursor"),
                                    ("?after=1-2-3-4", 400, "invalid_cursor"), ("?after=%2B1-2-3", 400, "invalid_cursor"),
                                    ("?after=dead-1-2", 409, "cursor_from_other_history"),
                                    ("?nonsense=1", 400, "invalid_parameter"), ("?token=x", 400, "credentials_in_query")):
            answer, told = http.call("GET", f"/v1/inbox{query}")
            equal((answer.status, told["error"]["code"]), (status, code), query)
        for body in ({}, {"deliveries": "1"}, {"deliveries": [1]}, {"deliveries": ["x"]}, {"deliveries": ["1"] * 1001},
                     {"deliveries": ["1"], "more": 1}):
            answer, told = http.call("POST", "/v1/inbox/acks", body)
            equal((answer.status, told["error"]["code"]), (400, "invalid_field"), str(body)[:40])


@case
def curl_alone_can_register_pull_and_acknowledge(target):
    host, port = target.http
    base = f"http://{host}:{port}"

    def curl(*arguments):
        try:
            run = subprocess.run(["curl", "-s", "--max-time", "20", *arguments], capture_output=True, timeout=30)
        except FileNotFoundError:
            raise NotHere("curl is not installed") from None
        return run.stdout.decode()

    made = json.loads(curl("-H", f"Authorization: Bearer {target.app_key}", "--json", '{"platform":"web"}', f"{base}/v1/devices"))
    who = f"{made['device_id']}:{made['device_secret']}"
    push = {"audience": {"device": made["device_id"]}, "notification": {"title": "from curl"}}
    sent = json.loads(curl("-H", f"Authorization: Bearer {target.app_key}", "--json", json.dumps(push), f"{base}/v1/messages"))
    page = json.loads(curl("-u", who, f"{base}/v1/inbox?wait=10"))
    equal(page["messages"][0]["message"]["id"], sent["message_id"], "pulled")
    acks = {"deliveries": [page["messages"][0]["delivery"]]}
    equal(json.loads(curl("-u", who, "--json", json.dumps(acks), f"{base}/v1/inbox/acks")), {"acknowledged": 1}, "acknowledged")
    http2 = curl("-u", who, "--http2-prior-knowledge", "-w", "%{http_code}", f"{base}/v1/inbox?wait=10")
    check("needs_http_1_1" in http2 and http2.endswith("505"), f"waiting over HTTP/2: {http2}")
    stream = curl("-N", "-u", who, "--max-time", "2", f"{base}/v1/stream")
    check(stream.startswith("retry: 2000\nevent: welcome\n"), f"stream: {stream[:200]!r}")


@case
def clients_of_other_hands_receive(target):
    """npm's `ws` and `eventsource`."""
    if not (NODE / "node_modules/ws").is_dir():
        raise NotHere("the npm packages are not installed")
    for client in ("ws", "eventsource"):
        device = target.register(platform="web")
        host, port = target.http
        arguments = ["node", "web.mjs", client, f"{host}:{port}", device.device_id, device.secret]
        run = subprocess.Popen(arguments, cwd=NODE, stdout=subprocess.PIPE, text=True)
        try:
            equal(run.stdout.readline(), "ready\n", f"{client} connects")
            message = target.push(to(device), "for node")["message_id"]
            equal(run.stdout.readline(), f"{message} for node\n", f"{client} receives")
            target.await_state(message, device, "delivered")
        finally:
            run.kill()
            run.wait()


@case
def a_page_of_an_unlisted_site_reads_no_answer(target):
    device = target.register(platform="web")
    with Http(target, device) as http:
        answer, _ = http.call("GET", "/v1/inbox", Origin="https://evil.example")
        equal(answer.getheader("Access-Control-Allow-Origin"), None, "unlisted")
        own = f"http://{target.http[0]}:{target.http[1]}"
        answer, _ = http.call("GET", "/v1/inbox", Origin=own)
        equal(answer.getheader("Access-Control-Allow-Origin"), own, "its own")
        answer, _ = http.call("OPTIONS", "/v1/inbox/acks", Origin=own, **{"Access-Control-Request-Method": "POST"})
        equal(answer.status, 204, "preflight")
        check("authorization" in answer.getheader("Access-Control-Allow-Headers"), "headers")


@case
def a_key_to_register_with_can_do_nothing_else(target):
    made = target.call("POST", "/v1/apps/default/keys", {"scope": "register"}, key=target.admin_key, expect=201)[1]
    key = made["key"]
    status, device = target.call("POST", "/v1/devices", {"platform": "web"}, key=key)
    equal(status, 201, "registers")
    for body in ({"platform": "web", "alias": "ann"}, {"platform": "web", "device_id": "mine"}, {"platform": "web", "tags": ["vip"]}):
        equal(target.call("POST", "/v1/devices", body, key=key)[0], 403, str(body))
    for method, path in (("GET", "/v1/devices"), ("GET", "/v1/messages"), ("POST", "/v1/messages")):
        equal(target.call(method, path, {} if method == "POST" else None, key=key)[0], 403, path)
    bearer = {"Authorization": f"Basic {basic_of(device)}"}
    equal(target.call("GET", "/v1/inbox", headers=bearer)[0], 200, "the device signs in")


def basic_of(made):
    class Made:
        device_id, secret = made["device_id"], made["device_secret"]
    return basic(Made)
