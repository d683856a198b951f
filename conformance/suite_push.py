"""The product's own promise, from outside: a push goes in over HTTP and comes out at an MQTT device.

Runs with default settings: devices are registered and sign in with their secret.
"""

import json
import time

from harness import DEFAULT, Suite, Unmet, check, equal, eventually
from mqtt_wire import PUBACK, V5, V311, ack_packet, unique

ESTIMATE = "/v1/messages/estimate"

SUITE = Suite("push")
case = SUITE.case(DEFAULT, needs_http=True)


def envelope(message):
    equal(message.topic, "$push/inbox", "topic")
    return json.loads(message.payload)


def receipt(connection, message_id, step):
    connection.publish("$push/receipts", json.dumps({"id": message_id, "step": step}), 1)


def steps(delivery):
    return [entry["step"] for entry in delivery["timeline"]]


def to(device):
    return {"device": device.device_id}


def fence(target, connection, device):
    """Envelopes that came before one that is sent now."""
    last, got = target.push(to(device), "fence")["message_id"], []
    while True:
        came = envelope(connection.message())
        if came["id"] == last:
            return got
        got.append(came)


@case
def a_push_to_an_online_device_is_delivered_and_displayed(target):
    for version in (V311, V5):
        device = target.register()
        with target.sign_in(device, version) as connection:
            accepted = target.push(to(device), "hello", data={"k": "v"})
            equal((accepted["targeted"], accepted["durability"]), (1, "synced"), "answer")
            message = accepted["message_id"]
            came = envelope(connection.message())
            equal((came["id"], came["notification"]["title"], came["notification"]["body"], came["data"]),
                  (message, "hello", "b", {"k": "v"}), "envelope")
            check(came["sent_at"] and came["expires_at"] and came["app"], f"envelope lacks a field: {came}")
            target.await_state(message, device, "delivered")
            receipt(connection, message, "displayed")
            found = target.await_state(message, device, "displayed")
            check(steps(found).index("delivered") < steps(found).index("displayed"), f"timeline {found['timeline']}")
            equal(found["device_id"], device.device_id, "device of the report")


@case
def clicked_and_dismissed_are_recorded(target):
    device = target.register()
    with target.sign_in(device) as connection:
        for step in ("clicked", "dismissed"):
            message = target.push(to(device))["message_id"]
            connection.message()
            target.await_state(message, device, "delivered")
            receipt(connection, message, step)
            check(step in steps(target.await_state(message, device, step)), f"{step} is not in the timeline")


@case
def sent_is_not_delivered_before_the_puback(target):
    device = target.register()
    with target.sign_in(device) as connection:
        connection.auto_ack = False
        message = target.push(to(device))["message_id"]
        came = connection.message()
        check(target.delivery(message, device)["state"] in ("accepted", "queued", "sent"), "state before the PUBACK")
        connection.send(ack_packet(PUBACK, came.packet_id))
        target.await_state(message, device, "delivered")


@case
def offline_pushes_come_in_order_on_reconnect(target):
    device = target.register()
    target.sign_in(device).disconnect()
    messages = [target.push(to(device), f"n{number}")["message_id"] for number in range(3)]
    for message in messages:
        check(target.delivery(message, device)["state"] in ("accepted", "queued"), "state while away")
    with target.sign_in(device, inbox=False) as back:
        equal(back.connack.session_present, True, "session present")
        equal([envelope(back.message())["id"] for _ in messages], messages, "order")
        for message in messages:
            target.await_state(message, device, "delivered")


@case
def pushes_before_the_first_connection_wait(target):
    device = target.register()
    message = target.push(to(device))["message_id"]
    with target.sign_in(device) as connection:
        equal(envelope(connection.message())["id"], message, "id")
        target.await_state(message, device, "delivered")


@case
def unacknowledged_push_comes_again_and_only_once_more(target):
    device = target.register()
    first = target.sign_in(device)
    first.auto_ack = False
    message = target.push(to(device))["message_id"]
    equal(envelope(first.message())["id"], message, "id")
    first.drop()
    with target.sign_in(device, inbox=False) as back:
        again = back.message()
        equal((envelope(again)["id"], again.dup), (message, True), "message sent again")
        target.await_state(message, device, "delivered")
        equal(fence(target, back, device), [], "messages after the acknowledgement")
    with target.sign_in(device, inbox=False) as third:
        equal(fence(target, third, device), [], "messages at the third connection")


@case
def a_new_connection_takes_over(target):
    device = target.register()
    first = target.sign_in(device, V5)
    with target.sign_in(device, V5) as second:
        first.wait_closed()
        message = target.push(to(device))["message_id"]
        equal(envelope(second.message())["id"], message, "id")


@case
def takeover_passes_on_what_the_old_connection_did_not_acknowledge(target):
    device = target.register()
    first = target.sign_in(device)
    first.auto_ack = False
    messages = [target.push(to(device))["message_id"] for _ in range(3)]
    first.messages(3)
    with target.sign_in(device, inbox=False) as second:
        equal([envelope(second.message())["id"] for _ in messages], messages, "messages at the new connection")


@case
def collapse_key_replaces_what_waits(target):
    device = target.register()
    target.sign_in(device).disconnect()
    old = target.push(to(device), "old", collapse_key="score")["message_id"]
    other = target.push(to(device), "other", collapse_key="weather")["message_id"]
    new = target.push(to(device), "new", collapse_key="score")["message_id"]
    with target.sign_in(device, inbox=False) as back:
        came = [envelope(back.message()) for _ in range(2)]
        equal([e["id"] for e in came], [other, new], "ids")
        equal(came[1]["collapse_key"], "score", "collapse key")
        equal(fence(target, back, device), [], "more messages")
    found = target.await_state(old, device, "superseded")
    equal(found.get("reason"), "collapsed", "reason")


@case
def ttl_ends_a_waiting_push(target):
    device = target.register()
    target.sign_in(device).disconnect()
    short = target.push(to(device), ttl_secs=1)["message_id"]
    long = target.push(to(device), ttl_secs=600)["message_id"]
    found = target.await_state(short, device, "expired")
    equal(found.get("reason"), "ttl", "reason")
    with target.sign_in(device, inbox=False) as back:
        equal(envelope(back.message())["id"], long, "id")
        equal(fence(target, back, device), [], "more messages")


@case
def ttl_zero_reaches_only_who_is_there_and_says_that_it_keeps_no_record(target):
    present, absent = target.register(), target.register()
    with target.sign_in(present) as connection:
        here = target.push(to(present), ttl_secs=0)
        equal((here["durability"], here["targeted"]), ("transient", 1), "answer")
        equal(envelope(connection.message())["id"], here["message_id"], "id")
    away = target.push(to(absent), ttl_secs=0)
    equal((away["durability"], away["targeted"]), ("transient", 0), "answer")
    with target.sign_in(absent) as late:
        equal(fence(target, late, absent), [], "messages")


@case
def cancel_takes_back_what_waits(target):
    device = target.register()
    target.sign_in(device).disconnect()
    message = target.push(to(device))["message_id"]
    status, _ = target.call("DELETE", f"/v1/messages/{message}")
    check(status in (200, 202, 204), f"DELETE answered {status}")
    target.await_state(message, device, "cancelled")
    with target.sign_in(device, inbox=False) as back:
        equal(fence(target, back, device), [], "messages")


@case
def cancel_does_not_change_what_was_delivered(target):
    device = target.register()
    with target.sign_in(device) as connection:
        message = target.push(to(device))["message_id"]
        connection.message()
        target.await_state(message, device, "delivered")
        target.call("DELETE", f"/v1/messages/{message}")
        equal(target.delivery(message, device)["state"], "delivered", "state")


@case
def a_broadcast_reaches_the_tagged_and_nobody_else(target):
    tag = unique("tag")
    inside, outside = [target.register([tag]) for _ in range(4)], target.register(["other"])
    connections = [target.sign_in(device) for device in inside[:3]]
    with target.sign_in(outside) as stranger:
        accepted = target.push({"tag": tag}, "to all")
        equal(accepted["targeted"], 4, "targeted")
        message = accepted["message_id"]
        for connection in connections:
            equal(envelope(connection.message())["id"], message, "id")
        equal(fence(target, stranger, outside), [], "messages of the untagged device")
    # One was away.
    with target.sign_in(inside[3]) as late:
        equal(envelope(late.message())["id"], message, "id at the late device")
    for device in inside:
        target.await_state(message, device, "delivered")
    counted(target, message, delivered=4)
    for connection in connections:
        connection.drop()


def counted(target, message, **wanted):
    def agrees():
        counts = target.call("GET", f"/v1/messages/{message}", expect=200)[1]
        counts = counts["states"]
        return all(counts.get(name) == value for name, value in wanted.items())
    eventually(agrees, f"counts {wanted}")


@case
def audiences_can_be_combined(target):
    red, big = unique("red"), unique("big")
    both, only_red = target.register([red, big]), target.register([red], platform="ios")
    equal(target.push({"and": [{"tag": red}, {"tag": big}]})["targeted"], 1, "and")
    equal(target.push({"or": [{"tag": red}, {"tag": big}]})["targeted"], 2, "or")
    equal(target.push({"and": [{"tag": red}, {"not": {"tag": big}}]})["targeted"], 1, "not")
    equal(target.push({"and": [{"tag": red}, {"platform": "ios"}]})["targeted"], 1, "platform")
    equal(target.push({"devices": [both.device_id, only_red.device_id]})["targeted"], 2, "devices")


@case
def an_alias_reaches_all_devices_of_a_person(target):
    alias = unique("ann")
    devices = [target.register(alias=alias) for _ in range(2)]
    accepted = target.push({"alias": alias})
    equal(accepted["targeted"], 2, "targeted")
    for device in devices:
        with target.sign_in(device) as connection:
            equal(envelope(connection.message())["id"], accepted["message_id"], "id")


@case
def an_estimate_counts_without_sending(target):
    tag = unique("tag")
    devices = [target.register([tag]) for _ in range(3)]
    with target.sign_in(devices[0]) as connection:
        body = {"audience": {"tag": tag}}
        found = target.call("POST", ESTIMATE, body, expect=200)[1]
        equal((found["count"], found["connected"]), (3, 1), "count and connected")
        equal(fence(target, connection, devices[0]), [], "messages")


@case
def the_same_idempotency_key_gives_the_same_message(target):
    device = target.register()
    with target.sign_in(device) as connection:
        key = {"Idempotency-Key": unique("key")}
        first = target.push(to(device), "once", headers=key)["message_id"]
        equal(target.push(to(device), "once", headers=key)["message_id"], first, "message id of the repeat")
        equal([e["id"] for e in fence(target, connection, device)], [first], "messages")


@case
def the_same_idempotency_key_with_another_body_is_refused(target):
    device, key = target.register(), {"Idempotency-Key": unique("key")}
    target.push(to(device), "one", headers=key)
    target.push(to(device), "two", headers=key, expect=409)


@case
def a_push_without_or_with_a_wrong_key_is_refused(target):
    device = target.register()
    body = {"audience": to(device), "notification": {"title": "t"}}
    for key, wanted in (("wrong", 401), (" ", 400)):
        status, _ = target.call("POST", "/v1/messages", body, key=key)
        equal(status, wanted, f"status with key {key!r}")


@case
def nonsense_is_refused_with_400(target):
    device = target.register()
    good = {"audience": to(device), "notification": {"title": "t", "body": "b"}}
    for change in ({"audience": {"nobody": 1}}, {"ttl_secs": -1}, {"ttl_secs": 10**10}, {"audience": None},
                   {"no_such_field": 1}):
        status, _ = target.call("POST", "/v1/messages", {**good, **change})
        check(status in (400, 422), f"{change}: HTTP {status}")


@case
def a_push_to_an_unknown_device_targets_nobody(target):
    status, answer = target.call("POST", "/v1/messages", {
        "audience": {"device": "no-such-device"}, "notification": {"title": "t", "body": "b"}})
    equal((status, answer["error"]["code"]), (422, "unknown_recipient"), "answer")


@case
def a_device_may_not_read_the_inbox_of_another(target):
    victim, spy = target.register(), target.register()
    with target.sign_in(spy) as connection:
        for wanted in (f"$push/inbox/{victim.device_id}", "$push/+", f"$push/{victim.device_id}/inbox"):
            codes = connection.subscribe([wanted], 1, expect=[0x80])
            equal(codes, [0x80], wanted)
        target.push(to(victim), "secret")
        equal(fence(target, connection, spy), [], "messages of the other device")


@case
def a_receipt_for_a_foreign_message_changes_nothing(target):
    owner, spy = target.register(), target.register()
    with target.sign_in(owner) as one, target.sign_in(spy) as two:
        message = target.push(to(owner))["message_id"]
        one.message()
        target.await_state(message, owner, "delivered")
        receipt(two, message, "clicked")
        two.ping()
        equal(target.delivery(message, owner)["state"], "delivered", "state")


@case
def two_hundred_pushes_come_in_order_and_once(target):
    device = target.register()
    with target.sign_in(device) as connection:
        sent = [target.push(to(device), str(number))["message_id"] for number in range(200)]
        equal([envelope(connection.message())["id"] for _ in sent], sent, "order")
        equal(fence(target, connection, device), [], "more messages")


@case
def accepted_to_received_takes_less_than_half_a_second(target):
    device = target.register()
    with target.sign_in(device) as connection:
        took = []
        for _ in range(20):
            begun = time.monotonic()
            target.push(to(device))
            connection.message()
            took.append(time.monotonic() - begun)
        if sorted(took)[10] > 0.5:
            raise Unmet(f"median {sorted(took)[10]:.3f} s")


@case
def a_client_id_tells_nothing_of_other_devices(target):
    one, other = target.register(), target.register()
    with target.sign_in(other) as connection:
        for name in (other.device_id, "of-nobody-at-all"):
            for version in (V311, V5):
                client = target.raw(version, client_id=name)
                client.connect(user=one.device_id, password=one.secret, clean=True)
                client.disconnect()
        # The other's connection is not taken over.
        message = target.push(to(other), "still there")["message_id"]
        equal(envelope(connection.message())["id"], message, "the push of the other")
