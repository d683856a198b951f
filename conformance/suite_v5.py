"""MQTT 5: the twenty-seven scenes that public interoperability suites judge, and others beside them.

Written to the specification; where it leaves a choice, the case takes the one that `profiles/conformance.toml`
makes, and says so.
"""

import time

import suite_v311
from harness import NotHere, Suite, check, equal, topic
from mqtt_wire import (DISCONNECT, PUBACK, PUBLISH, PUBREC, PUBREL, V5, V311, Will, ack_packet, options,
                       publish_packet, unique)
from suite_v311 import contents, fence

SUITE = Suite("v5")
case = SUITE.case()

KEEP = {"session_expiry": 300}


def forget(target, name):
    target.client(V5, name, clean=True).disconnect()


def expect_disconnect(client, *reasons):
    """The server says why and then closes."""
    got = client.wait_closed()
    said = [p.reason for p in got if p.kind == DISCONNECT]
    check(len(said) == 1 and said[0] in reasons,
          f"wanted DISCONNECT {[hex(r) for r in reasons]}, got {[hex(r) for r in said]} in {[str(p) for p in got]}")


@case
def basic_publish_and_subscribe_at_each_qos(target):
    tree = topic()
    with target.client(V5) as client:
        client.subscribe(f"{tree}/a", 2)
        for qos in (0, 1, 2):
            client.publish(f"{tree}/a", b"%d" % qos, qos)
            equal(contents([client.message()]), [(f"{tree}/a", b"%d" % qos, qos)], "message")
        client.disconnect()


@case
def second_connect_is_a_protocol_error(target):
    client = target.client(V5)
    client.send(b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x02ab")
    expect_disconnect(client, 0x82)


@case
def retained_messages_keep_their_properties(target):
    tree, note = topic(), {"user_property": [("a", "2"), ("c", "3")], "content_type": "x/y"}
    with target.client(V5) as client:
        for qos in (0, 1, 2):
            client.publish(f"{tree}/{qos}", b"kept", qos, retain=True, properties=note)
        client.ping()
        client.subscribe(f"{tree}/+", 2)
        for came in client.messages(3):
            equal(came.retain, True, "retain flag")
            equal(came.properties["user_property"], note["user_property"], "user properties")
            equal(came.properties["content_type"], "x/y", "content type")
        client.unsubscribe([f"{tree}/+"])
        for qos in (0, 1, 2):
            client.publish(f"{tree}/{qos}", b"", 1, retain=True)
        client.subscribe(f"{tree}/+", 2)
        equal(fence(client, client, tree), [], "retained messages after they were cleared")


@case
def will_keeps_its_properties(target):
    tree, note = topic(), {"user_property": [("a", "2"), ("a", "3")], "content_type": "x/y", "payload_format": 1}
    with target.client(V5) as watcher:
        watcher.subscribe(f"{tree}/will", 2)
        target.client(V5, will=Will(f"{tree}/will", b"gone", 2, properties=note)).drop()
        came = watcher.message()
        equal({name: came.properties.get(name) for name in note}, note, "will properties")


@case
def will_is_published_on_disconnect_with_will(target):
    tree = topic()
    with target.client(V5) as watcher:
        watcher.subscribe(f"{tree}/#", 1)
        target.client(V5, will=Will(f"{tree}/will", b"asked for", 1)).disconnect(reason=4)
        equal(watcher.message().payload, b"asked for", "will")
        target.client(V5, will=Will(f"{tree}/will", b"not asked for", 1)).disconnect()
        equal(fence(watcher, watcher, tree), [], "messages after a normal disconnect")


@case
def offline_messages_are_queued_for_a_kept_session(target):
    tree, name = topic(), unique()
    first = target.client(V5, name, clean=True, properties=KEEP)
    first.subscribe(f"{tree}/+", 2)
    first.disconnect()
    with target.client(V5) as publisher:
        for qos in (1, 2):
            publisher.publish(f"{tree}/q{qos}", b"waited", qos)
    back = target.raw(V5, name)
    equal(back.connect(clean=False, properties=KEEP).session_present, True, "session present")
    equal(contents(back.messages(2)), [(f"{tree}/q1", b"waited", 1), (f"{tree}/q2", b"waited", 2)], "queued")
    back.disconnect()
    forget(target, name)


@case
def wildcards_at_the_first_level_do_not_match_dollar_topics(target):
    tree = topic()
    with target.client(V5) as client:
        client.subscribe([("+/+", 2), ("#", 2)])
        client.publish(f"${tree}/a", b"hidden", 1, expect_reason=(0, 0x10, 0x87))
        client.publish(f"{tree}/fence", b"", 1)
        hidden = [m.topic for m in client.messages_until(f"{tree}/fence") if m.topic.startswith("$")]
        equal(hidden, [], "dollar topics that came")


@case
def unsubscribe_answers_each_filter(target):
    tree = topic()
    with target.client(V5) as client, target.client(V5) as publisher:
        client.subscribe([f"{tree}/a", f"{tree}/b", f"{tree}/c"], 2)
        equal(client.unsubscribe([f"{tree}/a", f"{tree}/none"]).codes, [0, 0x11], "UNSUBACK codes")
        for level in "abc":
            publisher.publish(f"{tree}/{level}", b"", 1)
        equal([m.topic for m in client.messages(2)], [f"{tree}/b", f"{tree}/c"], "topics")


# --- sessions -----------------------------------------------------------------------------------------

@case
def session_with_expiry_zero_ends_with_the_connection(target):
    name = unique()
    target.client(V5, name, properties={"session_expiry": 0}).disconnect()
    with target.raw(V5, name) as back:
        equal(back.connect(clean=False).session_present, False, "session present")


@case
def session_expiry_is_obeyed(target):
    name, tree = unique(), topic()
    first = target.client(V5, name, properties={"session_expiry": 1})
    first.subscribe(f"{tree}/a", 1)
    first.disconnect()
    with target.raw(V5, name) as soon:
        equal(soon.connect(clean=False, properties={"session_expiry": 1}).session_present, True, "before expiry")
        soon.disconnect()
    time.sleep(3)  # The passing of time is what is judged.
    with target.raw(V5, name) as late:
        equal(late.connect(clean=False).session_present, False, "session present after expiry")


@case
def session_expiry_can_be_changed_by_disconnect(target):
    name = unique()
    target.client(V5, name, properties={"session_expiry": 300}).disconnect(properties={"session_expiry": 0})
    with target.raw(V5, name) as back:
        equal(back.connect(clean=False).session_present, False, "session present")
    target.client(V5, name, properties={"session_expiry": 1}).disconnect(properties={"session_expiry": 300})
    with target.raw(V5, name) as back:
        equal(back.connect(clean=False).session_present, True, "session present after it was prolonged")


@case
def clean_start_discards_the_old_session(target):
    name, tree = unique(), topic()
    first = target.client(V5, name, properties=KEEP)
    first.subscribe(f"{tree}/a", 1)
    first.disconnect()
    with target.raw(V5, name) as back:
        equal(back.connect(clean=True, properties=KEEP).session_present, False, "session present")
        back.publish(f"{tree}/a", b"x", 1)
        back.subscribe(f"{tree}/fence", 1)
        equal(fence(back, back, tree), [], "messages by the old subscription")
    forget(target, name)


@case
def takeover_says_session_taken_over(target):
    first = target.client(V5, unique())
    with target.client(V5, first.client_id):
        expect_disconnect(first, 0x8E)


@case
def unacknowledged_messages_are_sent_again_on_reconnect(target):
    tree, name = topic(), unique()
    first = target.client(V5, name, properties=KEEP)
    first.subscribe(f"{tree}/+", 2)
    first.auto_ack = False
    with target.client(V5) as publisher:
        for qos in (1, 2):
            publisher.publish(f"{tree}/q{qos}", b"again", qos)
        before = contents(first.messages(2))
        first.drop()
        back = target.client(V5, name, clean=False, properties=KEEP)
        again = back.messages(2)
        equal(contents(again), before, "messages after the reconnect")
        check(all(m.dup for m in again), "messages sent again have the DUP flag")
        back.disconnect()
    forget(target, name)


@case
def acknowledged_messages_are_not_sent_again(target):
    tree, name = topic(), unique()
    first = target.client(V5, name, properties=KEEP)
    first.subscribe(f"{tree}/+", 1)
    with target.client(V5) as publisher:
        publisher.publish(f"{tree}/a", b"one", 1)
        first.message()
        first.ping()
        first.drop()
        back = target.client(V5, name, clean=False, properties=KEEP)
        equal(fence(publisher, back, tree), [], "messages after the reconnect")
        back.disconnect()
    forget(target, name)


# --- properties of messages ---------------------------------------------------------------------------

@case
def user_properties_pass_in_order(target):
    tree, pairs = topic(), [("a", "2"), ("c", "3"), ("a", "1"), ("", ""), ("ü", "日本")]
    with target.client(V5) as client:
        client.subscribe(f"{tree}/a", 2)
        for qos in (0, 1, 2):
            client.publish(f"{tree}/a", b"x", qos, properties={"user_property": pairs})
            equal(client.message().properties["user_property"], pairs, "user properties")


@case
def payload_format_and_content_type_pass(target):
    tree, note = topic(), {"payload_format": 1, "content_type": "my format"}
    with target.client(V5) as client:
        client.subscribe(f"{tree}/a", 2)
        for qos in (0, 1, 2):
            client.publish(f"{tree}/a", b"text", qos, properties=note)
            came = client.message().properties
            equal({name: came.get(name) for name in note}, note, "properties")


@case
def request_and_response(target):
    tree = topic()
    with target.client(V5) as asker, target.client(V5) as answerer:
        asker.subscribe(f"{tree}/answers", 2)
        answerer.subscribe(f"{tree}/questions", 2)
        note = {"response_topic": f"{tree}/answers", "correlation_data": b"\x00\xff334"}
        asker.publish(f"{tree}/questions", b"?", 1, properties=note)
        asked = answerer.message().properties
        answerer.publish(asked["response_topic"], b"!", 1,
                         properties={"correlation_data": asked["correlation_data"]})
        got = asker.message()
        equal((got.payload, got.properties["correlation_data"]), (b"!", b"\x00\xff334"), "answer")


@case
def publication_expiry_drops_late_messages_and_counts_down(target):
    tree, name = topic(), unique()
    first = target.client(V5, name, properties=KEEP)
    first.subscribe(f"{tree}/#", 2)
    first.disconnect()
    with target.client(V5) as publisher:
        for qos in (1, 2):
            publisher.publish(f"{tree}/short", b"", qos, properties={"message_expiry": 1})
            publisher.publish(f"{tree}/long", b"", qos, properties={"message_expiry": 100})
        publisher.publish(f"{tree}/ever", b"", 1)
    time.sleep(3)  # The passing of time is what is judged.
    back = target.client(V5, name, clean=False, properties=KEEP)
    got = back.messages(3)
    equal([m.topic for m in got], [f"{tree}/long", f"{tree}/long", f"{tree}/ever"], "topics")
    for came in got[:2]:
        check(1 <= came.properties["message_expiry"] < 100, f"expiry came as {came.properties}")
    check("message_expiry" not in got[2].properties, "a message without expiry got one")
    back.disconnect()
    forget(target, name)


@case
def retained_message_expires(target):
    tree = topic()
    with target.client(V5) as client:
        client.publish(f"{tree}/a", b"short", 1, retain=True, properties={"message_expiry": 1})
        time.sleep(2.5)  # The passing of time is what is judged.
        client.subscribe(f"{tree}/#", 1)
        equal(fence(client, client, tree), [], "messages")


# --- subscription options -----------------------------------------------------------------------------

@case
def no_local_keeps_own_messages_away(target):
    tree = topic()
    with target.client(V5) as own, target.client(V5) as other:
        own.subscribe([(f"{tree}/a", options(2, no_local=True))])
        own.subscribe(f"{tree}/fence", 1)
        other.subscribe([(f"{tree}/#", options(2))])
        own.publish(f"{tree}/a", b"mine", 1)
        equal(other.message().payload, b"mine", "payload at the other client")
        other.publish(f"{tree}/a", b"other's", 1)
        equal([m.payload for m in fence(other, own, tree)], [b"other's"], "payloads at the own client")


@case
def retain_as_published_keeps_the_flag(target):
    tree = topic()
    with target.client(V5) as client:
        client.subscribe([(f"{tree}/kept", options(1, retain_as_published=True)), (f"{tree}/plain", options(1))])
        for level in ("kept", "plain"):
            for retain in (False, True):
                client.publish(f"{tree}/{level}", b"x", 1, retain=retain)
                wanted = retain and level == "kept"
                equal(client.message().retain, wanted, f"retain flag, published {retain}, subscribed {level}")
            client.publish(f"{tree}/{level}", b"", 1, retain=True)
            client.message()


@case
def retain_handling_decides_when_retained_messages_come(target):
    tree = topic()
    expected = {0: [1, 1], 1: [1, 0], 2: [0, 0]}
    with target.client(V5) as client:
        client.publish(f"{tree}/a", b"kept", 1, retain=True)
        client.subscribe(f"{tree}/fence", 1)
        for handling, counts in expected.items():
            for wanted in counts:
                client.subscribe([(f"{tree}/+", options(1, retain_handling=handling))])
                equal(kept_before_fence(client, tree), wanted, f"retained messages at handling {handling}")
            client.unsubscribe([f"{tree}/+"])
        client.publish(f"{tree}/a", b"", 1, retain=True)


def kept_before_fence(client, tree):
    """Two filters match the fence, so a server may send it twice: a second one is not counted either."""
    mark = unique().encode()
    client.publish(f"{tree}/fence", mark, 1)
    count = 0
    while True:
        came = client.message()
        if came.payload == mark:
            return count
        count += came.topic == f"{tree}/a"


@case
def subscription_identifiers_come_with_the_message(target):
    tree = topic()
    with target.client(V5) as first, target.client(V5) as second:
        first.subscribe(f"{tree}/a", 2, {"subscription_id": 456789})
        second.subscribe(f"{tree}/+", 2, {"subscription_id": 2})
        second.subscribe(f"{tree}/#", 2, {"subscription_id": 268435455})
        first.publish(f"{tree}/a", b"x", 1)
        equal(first.message().properties["subscription_id"], [456789], "identifier at the first client")
        # profiles/conformance.toml: one copy with all the identifiers.
        equal(sorted(second.message().properties["subscription_id"]), [2, 268435455], "identifiers")


@case
def resubscribing_without_identifier_removes_it(target):
    tree = topic()
    with target.client(V5) as client:
        client.subscribe(f"{tree}/a", 1, {"subscription_id": 7})
        client.subscribe(f"{tree}/a", 1)
        client.publish(f"{tree}/a", b"x", 1)
        check("subscription_id" not in client.message().properties, "the old identifier came")


@case
def overlapping_subscriptions_deliver_once_at_the_highest_qos(target):
    tree = topic()
    with target.client(V5) as client:
        client.subscribe([(f"{tree}/#", options(2)), (f"{tree}/+", options(1))])
        client.publish(f"{tree}/c", b"overlapping", 2)
        client.unsubscribe([f"{tree}/+"])
        client.publish(f"{tree}/fence", b"", 2)
        qoses = sorted(m.qos for m in client.messages_until(f"{tree}/fence"))
        check(qoses in ([2], [1, 2]), f"copies came at QoS {qoses}: one at 2, or one of each")


@case
def a_refused_subscription_is_answered_with_0x80(target):
    # Public suites know no other refusal code; the code is a setting of the profile.
    with target.client(V5) as client:
        client.subscribe([("test/nosubscribe", 2)], expect=[0x80])
        client.ping()


# --- connecting ---------------------------------------------------------------------------------------

@case
def empty_client_id_is_assigned_one(target):
    with target.raw(V5, "") as client:
        name = client.connect(clean=True, properties=KEEP).properties["assigned_client_id"]
        check(name, "assigned client id is empty")
        client.disconnect()
    with target.raw(V5, name) as back:
        equal(back.connect(clean=False).session_present, True, "session present under the assigned id")


@case
def empty_client_id_is_accepted_without_clean_start(target):
    with target.raw(V5, "") as client:
        check("assigned_client_id" in client.connect(clean=False).properties, "no client id was assigned")


@case
def server_keepalive_overrides_a_longer_one(target):
    with target.raw(V5) as client:
        equal(client.connect(keepalive=120).properties.get("server_keepalive"), 60, "server keepalive")


@case
def keepalive_timeout_is_said_and_publishes_the_will(target):
    tree = topic()
    with target.client(V5) as watcher:
        watcher.subscribe(f"{tree}/will", 1)
        silent = target.client(V5, keepalive=2, will=Will(f"{tree}/will", b"silent", 1))
        equal(watcher.message(timeout=20).payload, b"silent", "will")
        expect_disconnect(silent, 0x8D)


@case
def connack_says_only_what_is_supported(target):
    with target.raw(V5) as client:
        said = client.connect().properties
        for name in ("retain_available", "wildcard_available", "subscription_ids_available", "shared_available"):
            equal(said.get(name, 1), 1, name)
        check(said.get("receive_maximum", 65535) > 0, "receive maximum 0")
        check(said.get("maximum_qos", 2) != 2 or "maximum_qos" not in said, "maximum QoS 2 must be left out")


# --- topic aliases, packet sizes, flow ----------------------------------------------------------------

@case
def client_topic_alias_stands_for_its_topic(target):
    tree = topic()
    with target.raw(V5) as client:
        limit = client.connect().properties.get("topic_alias_maximum", 0)
        check(limit >= 1, "no topic alias granted")
        client.subscribe(f"{tree}/#", 2)
        client.publish(f"{tree}/a", b"0", 1, properties={"topic_alias": 1})
        client.publish("", b"1", 1, properties={"topic_alias": 1})
        client.publish(f"{tree}/b", b"2", 1, properties={"topic_alias": limit})
        client.publish("", b"3", 1, properties={"topic_alias": limit})
        equal([m.topic for m in client.messages(4)], [f"{tree}/{level}" for level in "aabb"], "topics")


@case
def client_topic_alias_does_not_outlive_the_connection(target):
    tree, name = topic(), unique()
    first = target.client(V5, name, properties=KEEP)
    first.publish(f"{tree}/a", b"x", 1, properties={"topic_alias": 1})
    first.disconnect()
    back = target.client(V5, name, clean=False)
    back.send(publish_packet("", b"x", 1, 5, version=V5, properties={"topic_alias": 1}))
    expect_disconnect(back, 0x82, 0x94)


@case
def topic_alias_zero_is_refused(target):
    client = target.client(V5)
    client.send(publish_packet(topic(), b"x", 1, 5, version=V5, properties={"topic_alias": 0}))
    expect_disconnect(client, 0x94)


@case
def topic_alias_above_the_granted_maximum_is_refused(target):
    client = target.raw(V5)
    limit = client.connect().properties.get("topic_alias_maximum", 0)
    client.send(publish_packet(topic(), b"x", 1, 5, version=V5, properties={"topic_alias": limit + 1}))
    expect_disconnect(client, 0x94)


@case
def server_uses_a_topic_alias_when_it_may(target):
    tree = topic()
    with target.client(V5, properties={"topic_alias_maximum": 1}) as client:
        client.subscribe(f"{tree}/a", 2)
        for qos in (0, 1, 2):
            client.publish(f"{tree}/a", b"%d" % qos, qos)
        got = client.messages(3)
        equal([m.topic_on_wire for m in got], [f"{tree}/a", "", ""], "topics on the wire")
        equal([m.properties.get("topic_alias") for m in got], [1, 1, 1], "aliases")


@case
def server_uses_no_topic_alias_when_it_may_not(target):
    tree = topic()
    with target.client(V5) as client:
        client.subscribe(f"{tree}/a", 1)
        for _ in range(3):
            client.publish(f"{tree}/a", b"x", 1)
            check("topic_alias" not in client.message().properties, "an alias came")


@case
def maximum_packet_size_of_the_client_drops_larger_messages(target):
    tree = topic()
    with target.client(V5, properties={"maximum_packet_size": 64}) as client, target.client(V5) as publisher:
        client.subscribe(f"{tree}/#", 2)
        publisher.publish(f"{tree}/a", b"x" * 100, 1)
        publisher.publish(f"{tree}/a", b"small", 1)
        equal(client.message().payload, b"small", "payload")


@case
def a_message_too_large_for_a_client_does_not_block_its_queue(target):
    tree, name = topic(), unique()
    first = target.client(V5, name, properties=KEEP)
    first.subscribe(f"{tree}/#", 2)
    first.disconnect()
    with target.client(V5) as publisher:
        for payload in (b"x" * 300, b"one", b"y" * 300, b"two"):
            publisher.publish(f"{tree}/a", payload, 2)
    back = target.client(V5, name, clean=False, properties={"maximum_packet_size": 128, "session_expiry": 300})
    equal([m.payload for m in back.messages(2)], [b"one", b"two"], "payloads")
    back.disconnect()
    forget(target, name)


@case
def maximum_packet_size_of_the_server_is_enforced(target):
    client = target.raw(V5)
    limit = client.connect().properties.get("maximum_packet_size")
    if limit is None or limit > 2_000_000:
        raise NotHere("the server grants packets of any size")
    client.send(publish_packet(topic(), b"x" * limit, 1, 5, version=V5))
    expect_disconnect(client, 0x95)


@case
def flow_control_receive_maximum_of_the_server_is_enforced(target):
    client = target.raw(V5)
    limit = client.connect().properties.get("receive_maximum", 65535)
    if limit > 1000:
        raise NotHere(f"receive maximum {limit} is too large to be worth the test")
    client.auto_ack = False
    tree = topic()
    for packet_id in range(1, limit + 2):
        client.send(publish_packet(f"{tree}/a", b"x", 2, packet_id, version=V5))
    expect_disconnect(client, 0x93)


@case
def flow_control_a_reason_is_read_by_a_client_that_still_writes(target):
    """The server closes gently: a reset would destroy the DISCONNECT that is on its way."""
    client = target.raw(V5)
    limit = client.connect().properties.get("receive_maximum", 65535)
    if limit > 1000:
        raise NotHere(f"receive maximum {limit} is too large to be worth the test")
    client.auto_ack = False
    tree = topic()
    for packet_id in range(1, limit + 2):
        client.send(publish_packet(f"{tree}/a", b"x", 2, packet_id, version=V5))
    came = []
    while not came or came[-1].kind != DISCONNECT:
        came.append(client.next_packet())
        if came[-1].kind == PUBREC:
            client.send(ack_packet(PUBREL, came[-1].packet_id))
    equal(came[-1].reason, 0x93, "reason")
    client.drop()


@case
def flow_control_receive_maximum_of_the_client_is_kept(target):
    tree = topic()
    with target.client(V5, properties={"receive_maximum": 3}) as client, target.client(V5) as publisher:
        client.auto_ack = False
        client.subscribe(f"{tree}/a", 1)
        for number in range(10):
            publisher.publish(f"{tree}/a", b"%d" % number, 1)
        held = client.messages(3)
        client.ping()
        equal([p for p in client.waiting if p.kind == PUBLISH], [], "messages beyond the receive maximum")
        for number in range(3, 10):
            client.send(ack_packet(PUBACK, held.pop(0).packet_id))
            held.append(client.message())
            equal(held[-1].payload, b"%d" % number, "payload")


@case
def flow_control_qos0_is_not_held_back(target):
    tree = topic()
    with target.client(V5, properties={"receive_maximum": 1}) as client, target.client(V5) as publisher:
        client.auto_ack = False
        client.subscribe([f"{tree}/one", f"{tree}/two"], 1)
        publisher.publish(f"{tree}/one", b"held", 1)
        client.message()
        publisher.publish(f"{tree}/one", b"behind", 1)
        publisher.publish(f"{tree}/two", b"passes", 0)
        equal(client.message().payload, b"passes", "payload")


# --- wills, shared subscriptions ----------------------------------------------------------------------

@case
def will_delay_is_obeyed(target):
    tree, name = topic(), unique()
    with target.client(V5) as watcher:
        watcher.subscribe(f"{tree}/will", 1)
        will = Will(f"{tree}/will", b"late", 1, properties={"will_delay": 2})
        dying = target.client(V5, name, will=will, properties={"session_expiry": 60})
        begun = time.monotonic()
        dying.drop()
        equal(watcher.message(timeout=15).payload, b"late", "will")
        check(time.monotonic() - begun > 1, "the will came before its delay")
    forget(target, name)


@case
def will_delay_ends_with_the_session(target):
    tree = topic()
    with target.client(V5) as watcher:
        watcher.subscribe(f"{tree}/will", 1)
        will = Will(f"{tree}/will", b"at once", 1, properties={"will_delay": 60})
        target.client(V5, will=will, properties={"session_expiry": 0}).drop()
        equal(watcher.message().payload, b"at once", "will")


@case
def will_is_withdrawn_when_the_client_returns_in_time(target):
    tree, name = topic(), unique()
    with target.client(V5) as watcher:
        watcher.subscribe(f"{tree}/#", 1)
        will = Will(f"{tree}/will", b"late", 1, properties={"will_delay": 1})
        target.client(V5, name, will=will, properties={"session_expiry": 60}).drop()
        with target.client(V5, name, clean=False, properties={"session_expiry": 60}) as back:
            time.sleep(2.5)  # The passing of time is what is judged.
            equal(fence(back, watcher, tree), [], "messages")
    forget(target, name)


@case
def shared_subscription_gives_each_message_to_one_member(target):
    tree, group = topic(), unique("g")
    with target.client(V5) as one, target.client(V5) as two, target.client(V5) as watcher:
        for member in (one, two):
            member.subscribe(f"$share/{group}/{tree}/#", 2)
            member.subscribe(f"{tree}x/fence", 2)
        watcher.subscribe(f"{tree}/#", 2)
        wanted = [b"%d" % number for number in range(20)]
        for payload in wanted:
            watcher.publish(f"{tree}/a", payload, 1)
        watcher.publish(f"{tree}x/fence", b"", 1)
        shares = [[m.payload for m in member.messages_until(f"{tree}x/fence")] for member in (one, two)]
        equal(sorted(shares[0] + shares[1]), sorted(wanted), "messages of both members")
        check(all(shares), f"one member got all: {[len(s) for s in shares]}")
        equal([m.payload for m in watcher.messages(20)], wanted, "messages of the plain subscriber")


@case
def shared_subscription_gets_no_retained_messages(target):
    tree, group = topic(), unique("g")
    with target.client(V5) as client:
        client.publish(f"{tree}/a", b"kept", 1, retain=True)
        client.subscribe([f"$share/{group}/{tree}/a", f"{tree}/fence"], 1)
        equal(fence(client, client, tree), [], "messages")
        client.publish(f"{tree}/a", b"", 1, retain=True)


@case
def shared_subscription_hands_on_what_a_member_leaves(target):
    group, name = unique("g"), topic()
    with target.client(V5) as good, target.client(V5, properties={"receive_maximum": 1}) as stuck:
        stuck.auto_ack = False
        for member in (stuck, good):
            member.subscribe(f"$share/{group}/{name}", 1)
        for number in range(10):
            good.publish(name, b"%d" % number, 1)
        held = stuck.message().payload
        stuck.drop()
        got = [message.payload for message in good.messages(10)]
        equal(sorted(got), [b"%d" % n for n in range(10)], f"messages, of which the other one had {held}")


@case
def shared_subscription_goes_on_when_a_member_leaves(target):
    tree, group = topic(), unique("g")
    first = target.client(V5)
    first.auto_ack = False
    first.subscribe(f"$share/{group}/{tree}/a", 1)
    with target.client(V5) as publisher, target.client(V5) as second:
        publisher.publish(f"{tree}/a", b"held", 1)
        first.message()
        second.subscribe(f"$share/{group}/{tree}/a", 1)
        first.disconnect()
        publisher.publish(f"{tree}/a", b"next", 1)
        check(second.message().payload in (b"held", b"next"), "the second member got a foreign message")


# --- more ---------------------------------------------------------------------------------------------

@case
def puback_may_say_that_nobody_subscribes(target):
    with target.client(V5) as client:
        check(client.publish(topic(), b"x", 1).reason in (0, 0x10), "reason")
        check(client.publish(topic(), b"x", 2).reason in (0, 0x10), "reason")


@case
def pubrel_for_an_unknown_id_is_answered_with_0x92(target):
    with target.client(V5) as client:
        client.send(ack_packet(PUBREL, 4242))
        equal(client.wait(7).reason, 0x92, "reason of PUBCOMP")


@case
def pubrec_with_an_error_ends_the_handshake(target):
    tree = topic()
    with target.client(V5, properties={"receive_maximum": 1}) as client, target.client(V5) as publisher:
        client.auto_ack = False
        client.subscribe(f"{tree}/a", 2)
        for payload in (b"refused", b"next"):
            publisher.publish(f"{tree}/a", payload, 2)
        client.send(ack_packet(PUBREC, client.message().packet_id, 0x97))
        equal(client.message().payload, b"next", "payload after the refusal")


@case
def version_5_and_older_clients_talk_to_each_other(target):
    tree = topic()
    with target.client(V5) as new, target.client(V311) as old:
        for client in (new, old):
            client.subscribe(f"{tree}/a", 1)
        new.publish(f"{tree}/a", b"from new", 1, properties={"user_property": [("k", "v")]})
        equal(old.message().payload, b"from new", "payload at the old client")
        equal(new.message().payload, b"from new", "payload at the new client")
        old.publish(f"{tree}/a", b"from old", 1)
        equal(new.message().payload, b"from old", "payload at the new client")


@case
def a_session_passes_from_version_311_to_5(target):
    tree, name = topic(), unique()
    first = target.client(V311, name, clean=False)
    first.subscribe(f"{tree}/a", 1)
    first.disconnect()
    with target.client(V311) as publisher:
        publisher.publish(f"{tree}/a", b"waited", 1)
    back = target.raw(V5, name)
    equal(back.connect(clean=False, properties=KEEP).session_present, True, "session present")
    equal(back.message().payload, b"waited", "payload")
    back.disconnect()
    forget(target, name)


@case
def unknown_authentication_method_is_refused(target):
    client = target.raw(V5)
    answer = client.connect(properties={"auth_method": "NO-SUCH-METHOD"}, expect_code=None)
    equal(answer.reason, 0x8C, "CONNACK reason")
    client.wait_closed()


def also_in_version_5(function):
    """Cases whose words are the same in both versions run again with version 5 clients."""
    class AsV5:
        def __init__(self, target):
            self.target = target

        def client(self, version=V5, client_id=None, **fields):
            if fields.get("clean") is False:
                fields.setdefault("properties", KEEP)
            return self.target.client(V5, client_id, **fields)

        def __getattr__(self, name):
            return getattr(self.target, name)

    def run(target):
        function(AsV5(target))
    run.__name__ = function.__name__
    return run


for shared in (
        suite_v311.retained_message_to_an_existing_subscriber_has_no_retain_flag,
        suite_v311.retained_message_is_replaced_by_a_newer_one,
        suite_v311.will_is_published_when_the_connection_breaks,
        suite_v311.will_is_published_when_the_connection_is_reset,
        suite_v311.will_is_not_published_after_disconnect,
        suite_v311.will_can_be_retained,
        suite_v311.will_is_published_on_takeover,
        suite_v311.pings_keep_a_connection_beyond_its_keepalive,
        suite_v311.delivery_is_at_the_lower_qos_of_publish_and_subscription,
        suite_v311.subscribing_again_replaces_the_qos,
        suite_v311.wildcards_match_as_specified,
        suite_v311.topics_with_leading_slash_space_and_case_are_different,
        suite_v311.payloads_pass_unchanged,
        suite_v311.order_is_kept_at_each_qos,
        suite_v311.two_hundred_filters_in_many_subscribes_all_work,
        suite_v311.disconnect_makes_the_server_close_at_once):
    SUITE.add(shared.__name__, also_in_version_5(shared))
