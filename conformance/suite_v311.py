"""MQTT 3.1.1: the eleven scenes that public interoperability suites judge, and others beside them.

Each case has its own topics and client ids, so that cases can run side by side and against a server that
already holds other people's data. "Nothing came" is proved with a fence: a later message of the same
publisher on the same path.
"""

import time

from harness import Suite, check, equal, topic
from mqtt_wire import (CONNACK, PUBACK, PUBLISH, PUBREC, PUBREL, V31, V5, Will, ack_packet, connect_packet,
                       packet, publish_packet, subscribe_packet, text, unique)

SUITE = Suite("v311")
case = SUITE.case()


def contents(messages):
    return [(m.topic, m.payload, m.qos) for m in messages]


def fence(publisher, subscriber, tree, qos=1):
    """Everything `subscriber` got before a message that was published after all others."""
    publisher.publish(f"{tree}/fence", b"", qos)
    return subscriber.messages_until(f"{tree}/fence")


@case
def basic_publish_and_subscribe_at_each_qos(target):
    tree = topic()
    with target.client() as client:
        client.subscribe(f"{tree}/a", 2)
        for qos in (0, 1, 2):
            client.publish(f"{tree}/a", b"qos %d" % qos, qos)
        got = client.messages(3)
        equal(sorted(contents(got)), [(f"{tree}/a", b"qos %d" % q, q) for q in (0, 1, 2)], "messages")
        client.disconnect()


@case
def second_connect_closes_the_connection(target):
    client = target.client()
    client.send(connect_packet(client.client_id))
    client.wait_closed()


@case
def wrong_protocol_name_is_closed_without_connack(target):
    client = target.raw()
    client.send(packet(0x10, text("hj") + bytes([4, 2, 0, 60]) + text(unique())))
    equal([p.kind for p in client.wait_closed()], [], "packets before the close")


@case
def unknown_protocol_level_is_answered_with_code_one(target):
    client = target.raw(V5)
    client.send(packet(0x10, text("MQTT") + bytes([9, 2, 0, 60]) + text(unique())))
    got = client.wait_closed()
    check(all(p.kind == CONNACK and p.body[1] in (1, 0x84) for p in got), f"answer was {[str(p) for p in got]}")


@case
def retained_messages_come_to_new_subscribers_and_can_be_cleared(target):
    tree = topic()
    with target.client() as client:
        for level, qos in (("a", 0), ("b", 1), ("c/d", 2)):
            client.publish(f"{tree}/{level}", b"kept " + level.encode(), qos, retain=True)
        client.ping()
        client.subscribe(f"{tree}/#", 2)
        got = client.messages(3)
        check(all(m.retain for m in got), "messages from the past have the retain flag")
        equal(sorted(contents(got)), [(f"{tree}/a", b"kept a", 0), (f"{tree}/b", b"kept b", 1),
                                      (f"{tree}/c/d", b"kept c/d", 2)], "retained messages")
        client.unsubscribe([f"{tree}/#"])
        for level in ("a", "b", "c/d"):
            client.publish(f"{tree}/{level}", b"", 1, retain=True)
        client.subscribe(f"{tree}/#", 2)
        equal(fence(client, client, tree), [], "retained messages after they were cleared")


@case
def retained_message_to_an_existing_subscriber_has_no_retain_flag(target):
    tree = topic()
    with target.client() as client:
        client.subscribe(f"{tree}/a", 1)
        client.publish(f"{tree}/a", b"live", 1, retain=True)
        equal(client.message().retain, False, "retain flag")
        client.publish(f"{tree}/a", b"", 1, retain=True)


@case
def retained_message_is_replaced_by_a_newer_one(target):
    tree = topic()
    with target.client() as client:
        client.publish(f"{tree}/a", b"old", 1, retain=True)
        client.publish(f"{tree}/a", b"new", 1, retain=True)
        client.subscribe(f"{tree}/+", 1)
        equal([m.payload for m in fence(client, client, tree)], [b"new"], "retained payloads")
        client.publish(f"{tree}/a", b"", 1, retain=True)


@case
def subscribing_again_sends_the_retained_message_again(target):
    tree = topic()
    with target.client() as client:
        client.publish(f"{tree}/a", b"kept", 1, retain=True)
        for _ in range(2):
            client.subscribe(f"{tree}/a", 1)
            equal(client.message().payload, b"kept", "payload")
        client.publish(f"{tree}/a", b"", 1, retain=True)


@case
def will_is_published_when_the_connection_breaks(target):
    tree = topic()
    with target.client() as watcher:
        watcher.subscribe(f"{tree}/will", 2)
        target.client(will=Will(f"{tree}/will", b"gone", 2), keepalive=60).drop()
        equal(contents([watcher.message()]), [(f"{tree}/will", b"gone", 2)], "will")


@case
def will_is_published_when_the_connection_is_reset(target):
    tree = topic()
    with target.client() as watcher:
        watcher.subscribe(f"{tree}/will", 1)
        target.client(will=Will(f"{tree}/will", b"gone", 1)).abort()
        equal(watcher.message().payload, b"gone", "will")


@case
def will_is_not_published_after_disconnect(target):
    tree = topic()
    with target.client() as watcher:
        watcher.subscribe(f"{tree}/#", 1)
        target.client(will=Will(f"{tree}/will", b"gone", 1)).disconnect()
        equal(fence(watcher, watcher, tree), [], "messages")


@case
def will_can_be_retained(target):
    tree = topic()
    with target.client() as watcher:
        watcher.subscribe(f"{tree}/will", 1)
        target.client(will=Will(f"{tree}/will", b"gone", 1, retain=True)).drop()
        equal(watcher.message().retain, False, "retain flag of the live will")
        with target.client() as late:
            late.subscribe(f"{tree}/will", 1)
            equal(late.message().retain, True, "retain flag of the kept will")
            late.publish(f"{tree}/will", b"", 1, retain=True)


@case
def will_is_published_on_takeover(target):
    tree = topic()
    with target.client() as watcher:
        watcher.subscribe(f"{tree}/will", 1)
        first = target.client(client_id=unique(), will=Will(f"{tree}/will", b"taken over", 1))
        with target.client(client_id=first.client_id):
            equal(watcher.message().payload, b"taken over", "will")
            first.wait_closed()


@case
def overlapping_subscriptions_deliver_once_or_once_each(target):
    tree = topic()
    with target.client() as client:
        client.subscribe([(f"{tree}/#", 2), (f"{tree}/+", 1)])
        client.publish(f"{tree}/c", b"overlapping", 2)
        client.publish(f"{tree}/fence", b"", 2)
        got = []
        # The fence itself overlaps too, so it may come once or twice.
        while not got or got[-1].topic != f"{tree}/fence":
            got.append(client.message())
        qoses = sorted(m.qos for m in got[:-1])
        check(qoses in ([2], [1, 2]), f"copies came at QoS {qoses}: one at 2, or one of each")


@case
def keepalive_timeout_closes_and_publishes_the_will(target):
    tree = topic()
    with target.client() as watcher:
        watcher.subscribe(f"{tree}/will", 1)
        silent = target.client(keepalive=2, will=Will(f"{tree}/will", b"silent", 1))
        begun = time.monotonic()
        equal(watcher.message(timeout=20).payload, b"silent", "will")
        check(time.monotonic() - begun >= 2, "closed before the keepalive was over")
        silent.wait_closed()


@case
def pings_keep_a_connection_beyond_its_keepalive(target):
    with target.client(keepalive=1) as client:
        begun = time.monotonic()
        # Time is what is judged here: pings at half the keepalive for twice the limit.
        while time.monotonic() - begun < 3:
            client.ping()
            time.sleep(0.5)
        client.ping()


@case
def zero_length_client_id_is_accepted_with_clean_session(target):
    with target.client(client_id="", clean=True) as first, target.client(client_id="", clean=True) as second:
        first.ping()
        second.ping()


@case
def zero_length_client_id_is_refused_without_clean_session(target):
    client = target.raw(client_id="")
    answer = client.connect(clean=False, expect_code=None)
    equal(answer.reason, 2, "CONNACK code")
    client.wait_closed()


@case
def offline_messages_are_queued_for_a_kept_session(target):
    tree, name = topic(), unique()
    first = target.client(client_id=name, clean=False)
    first.subscribe(f"{tree}/+", 2)
    first.disconnect()
    with target.client() as publisher:
        for qos in (1, 2):
            publisher.publish(f"{tree}/q{qos}", b"waited", qos)
    back = target.raw(client_id=name)
    equal(back.connect(clean=False).session_present, True, "session present")
    equal(contents(back.messages(2)), [(f"{tree}/q1", b"waited", 1), (f"{tree}/q2", b"waited", 2)], "queued")
    back.disconnect()
    forget(target, name)


def forget(target, name):
    """Leaves nothing behind on a server that is not ours."""
    target.client(client_id=name, clean=True).disconnect()


@case
def what_is_published_right_behind_a_subscribe_is_kept_for_the_session(target):
    """SUBSCRIBE and two PUBLISHes in one write, of a client that acknowledges nothing and whose session is to last."""
    tree, name = topic(), unique()
    first = target.client(client_id=name, clean=False)
    first.auto_ack = False
    first.send(subscribe_packet([(f"{tree}/+", 1)], packet_id=7)
               + publish_packet(f"{tree}/a", b"1", 1, packet_id=8) + publish_packet(f"{tree}/b", b"2", 1, packet_id=9))
    for packet_id in (8, 9):
        first.wait(PUBACK, lambda answer, wanted=packet_id: answer.body[:2] == bytes([0, wanted]))
    first.drop()
    with target.client(client_id=name, clean=False) as back:
        equal(contents(back.messages(2)), [(f"{tree}/a", b"1", 1), (f"{tree}/b", b"2", 1)], "after the reconnect")
        back.disconnect()
    forget(target, name)


@case
def offline_messages_keep_their_order(target):
    tree, name = topic(), unique()
    first = target.client(client_id=name, clean=False)
    first.subscribe(f"{tree}/a", 1)
    first.disconnect()
    wanted = [b"%d" % number for number in range(50)]
    with target.client() as publisher:
        for payload in wanted:
            publisher.publish(f"{tree}/a", payload, 1)
    with target.client(client_id=name, clean=False) as back:
        equal([m.payload for m in back.messages(50)], wanted, "order")
        back.disconnect()
    forget(target, name)


@case
def unacknowledged_messages_are_sent_again_on_reconnect(target):
    tree, name = topic(), unique()
    first = target.client(client_id=name, clean=False)
    first.subscribe(f"{tree}/+", 2)
    first.auto_ack = False
    with target.client() as publisher:
        for qos in (1, 2):
            publisher.publish(f"{tree}/q{qos}", b"again", qos)
        before = contents(first.messages(2))
        first.drop()
        back = target.client(client_id=name, clean=False)
        again = back.messages(2)
        equal(contents(again), before, "messages after the reconnect")
        check(all(m.dup for m in again), "messages sent again have the DUP flag")
        back.disconnect()
    forget(target, name)


@case
def qos2_is_released_but_not_sent_again_after_pubrec(target):
    tree, name = topic(), unique()
    first = target.client(client_id=name, clean=False)
    first.subscribe(f"{tree}/a", 2)
    first.auto_ack = False
    with target.client() as publisher:
        publisher.publish(f"{tree}/a", b"once", 2)
        came = first.message()
        first.send(ack_packet(PUBREC, came.packet_id))
        equal(first.wait(PUBREL).packet_id, came.packet_id, "packet id of PUBREL")
        first.drop()
        back = target.client(client_id=name, clean=False)
        equal(back.wait(PUBREL).packet_id, came.packet_id, "packet id of PUBREL after the reconnect")
        publisher.publish(f"{tree}/a", b"fence", 2)
        equal(back.message().payload, b"fence", "payload: the released message must not come again")
        back.disconnect()
    forget(target, name)


@case
def qos2_publish_sent_twice_is_delivered_once(target):
    tree = topic()
    with target.client() as watcher, target.client() as publisher:
        watcher.subscribe(f"{tree}/#", 2)
        publisher.auto_ack = False
        for dup in (False, True):
            publisher.send(publish_packet(f"{tree}/a", b"once", 2, 77, dup=dup))
            equal(publisher.wait(PUBREC).packet_id, 77, "packet id of PUBREC")
        publisher.send(ack_packet(PUBREL, 77))
        publisher.wait(7)
        publisher.auto_ack = True
        equal(len(fence(publisher, watcher, tree, 2)), 1, "copies")


@case
def qos2_state_of_a_publisher_survives_its_reconnect(target):
    tree, name = topic(), unique()
    with target.client() as watcher:
        watcher.subscribe(f"{tree}/#", 2)
        first = target.client(client_id=name, clean=False)
        first.auto_ack = False
        first.send(publish_packet(f"{tree}/a", b"once", 2, 9))
        first.wait(PUBREC)
        first.drop()
        back = target.client(client_id=name, clean=False)
        back.send(publish_packet(f"{tree}/a", b"once", 2, 9, dup=True))
        back.wait(PUBREC)
        back.wait(7)
        equal(len(fence(back, watcher, tree, 2)), 1, "copies")
        back.disconnect()
    forget(target, name)


@case
def wildcards_at_the_first_level_do_not_match_dollar_topics(target):
    tree = topic()
    with target.client() as client:
        client.subscribe([("+/+", 1), ("#", 1)])
        client.publish(f"${tree}/a", b"hidden", 1)
        client.publish(f"{tree}/fence", b"", 1)
        got = client.messages_until(f"{tree}/fence")
        hidden = [m.topic for m in got if m.topic.startswith("$")]
        equal(hidden, [], "dollar topics that came")


@case
def publish_to_an_unknown_dollar_topic_is_acknowledged(target):
    with target.client() as client:
        client.publish(f"${topic()}/b", b"", 1)
        client.ping()


@case
def unsubscribe_stops_only_the_named_filters(target):
    tree = topic()
    with target.client() as client, target.client() as publisher:
        client.subscribe([f"{tree}/a", f"{tree}/b", f"{tree}/c"], 2)
        client.unsubscribe([f"{tree}/a"])
        for level in "abc":
            publisher.publish(f"{tree}/{level}", b"", 1)
        equal([m.topic for m in client.messages(2)], [f"{tree}/b", f"{tree}/c"], "topics")


@case
def unsubscribe_from_what_is_not_subscribed_is_acknowledged(target):
    with target.client() as client:
        client.unsubscribe([topic()])


@case
def a_refused_subscription_is_answered_with_0x80(target):
    with target.client() as client:
        client.subscribe([("test/nosubscribe", 2)], expect=[0x80])
        client.ping()


@case
def a_refused_filter_does_not_harm_its_neighbours(target):
    tree = topic()
    with target.client() as client:
        client.subscribe([(f"{tree}/a", 1), ("test/nosubscribe", 2), (f"{tree}/b", 2)], expect=[1, 0x80, 2])
        client.publish(f"{tree}/b", b"ok", 1)
        equal(client.message().topic, f"{tree}/b", "topic")


@case
def delivery_is_at_the_lower_qos_of_publish_and_subscription(target):
    tree = topic()
    for subscribed in (0, 1, 2):
        with target.client() as client:
            client.subscribe(f"{tree}/a", subscribed)
            for published in (0, 1, 2):
                client.publish(f"{tree}/a", b"%d" % published, published)
                equal(client.message().qos, min(subscribed, published), f"QoS {published} to {subscribed}")


@case
def subscribing_again_replaces_the_qos(target):
    tree = topic()
    with target.client() as client:
        client.subscribe(f"{tree}/a", 2)
        client.subscribe(f"{tree}/a", 0)
        client.publish(f"{tree}/a", b"x", 2)
        equal(client.message().qos, 0, "QoS")
        client.publish(f"{tree}/a", b"fence", 2)
        equal(client.message().payload, b"fence", "payload: one copy a message")


@case
def wildcards_match_as_specified(target):
    tree = topic()
    table = {
        f"{tree}/+": ["a", "b", ""], f"{tree}/#": ["", "a", "b", "a/b", "a/b/c", None],
        f"{tree}/+/b": ["a/b"], f"{tree}/a/#": ["a", "a/b", "a/b/c"], f"{tree}/+/+/c": ["a/b/c"],
        f"{tree}/a": ["a"],
    }
    sent = [None, "", "a", "b", "a/b", "a/b/c"]
    with target.client() as publisher:
        for pattern, levels in table.items():
            with target.client() as client:
                client.subscribe(pattern, 0)
                client.subscribe(f"{tree}x/fence", 0)
                for level in sent:
                    publisher.publish(tree if level is None else f"{tree}/{level}", b"")
                publisher.publish(f"{tree}x/fence", b"")
                got = sorted(m.topic for m in client.messages_until(f"{tree}x/fence"))
                equal(got, sorted(tree if v is None else f"{tree}/{v}" for v in levels), pattern)


@case
def topics_with_leading_slash_space_and_case_are_different(target):
    tree = topic()
    names = [f"/{tree}/a", f"{tree}/a", f"{tree}/A", f"{tree}/a ", f"{tree}/ä", f"{tree}//a"]
    with target.client() as client:
        for name in names:
            client.subscribe(name, 0)
        for name in names:
            client.publish(name, name.encode())
        equal([m.topic for m in client.messages(len(names))], names, "topics")


@case
def payloads_pass_unchanged(target):
    tree = topic()
    payloads = [b"", b"\x00", bytes(range(256)), b"\xff" * 127, b"x" * 128, b"y" * 16383, b"z" * 16384, b"w" * 50000]
    with target.client() as client:
        client.subscribe(f"{tree}/a", 1)
        for payload in payloads:
            client.publish(f"{tree}/a", payload, 1)
            check(client.message().payload == payload, f"payload of {len(payload)} bytes came changed")


@case
def packets_may_be_cut_anywhere(target):
    tree, name = topic(), unique()
    stream = connect_packet(name) + subscribe_packet([(tree, 1)], 3) + publish_packet(tree, b"cut", 1, 4)
    with target.raw(client_id=name) as client:
        for byte in stream:
            client.send(bytes([byte]))
        equal(client.wait(PUBLISH).payload, b"cut", "payload")
        client.wait(PUBACK)


@case
def many_packets_may_share_a_segment(target):
    tree, name = topic(), unique()
    stream = connect_packet(name) + subscribe_packet([(tree, 1)], 3)
    stream += b"".join(publish_packet(tree, b"%d" % i, 1, 10 + i) for i in range(100)) + packet(0xC0)
    with target.raw(client_id=name) as client:
        client.send(stream)
        equal([m.payload for m in client.messages(100)], [b"%d" % i for i in range(100)], "payloads")
        client.wait(13)


@case
def order_is_kept_at_each_qos(target):
    tree = topic()
    for qos in (0, 1, 2):
        with target.client() as client:
            client.subscribe(f"{tree}/{qos}", qos)
            for number in range(60):
                client.publish(f"{tree}/{qos}", b"%d" % number, qos)
            equal([m.payload for m in client.messages(60)], [b"%d" % n for n in range(60)], f"order at QoS {qos}")


@case
def same_client_id_takes_over(target):
    first = target.client(client_id=unique())
    with target.client(client_id=first.client_id) as second:
        first.wait_closed()
        second.ping()


@case
def takeover_keeps_the_subscriptions_of_a_kept_session(target):
    tree, name = topic(), unique()
    first = target.client(client_id=name, clean=False)
    first.subscribe(f"{tree}/a", 1)
    second = target.raw(client_id=name)
    equal(second.connect(clean=False).session_present, True, "session present")
    first.wait_closed()
    second.publish(f"{tree}/a", b"here", 1)
    equal(second.message().payload, b"here", "payload")
    second.disconnect()
    forget(target, name)


@case
def session_present_is_told_of_an_empty_session_once_the_client_has_heard_of_it(target):
    for speaks in (False, True):
        name = unique()
        first = target.client(client_id=name, clean=False)
        if speaks:
            first.publish(topic(), b"x", 1)
        first.abort()
        eventually_left(target, name, speaks)


def eventually_left(target, name, present):
    """The server may hear of the reset after the next CONNECT: then it takes the old connection over, which is the same."""
    back = target.raw(client_id=name)
    equal(back.connect(clean=False).session_present, present, "session present")
    back.drop()
    forget(target, name)


@case
def clean_session_removes_what_was_kept(target):
    tree, name = topic(), unique()
    first = target.client(client_id=name, clean=False)
    first.subscribe(f"{tree}/a", 1)
    first.disconnect()
    forget(target, name)
    back = target.raw(client_id=name)
    equal(back.connect(clean=False).session_present, False, "session present")
    back.publish(f"{tree}/a", b"x", 1)
    back.subscribe(f"{tree}/fence", 1)
    equal(fence(back, back, tree), [], "messages by the old subscription")
    back.disconnect()
    forget(target, name)


@case
def disconnect_makes_the_server_close_at_once(target):
    client = target.client()
    begun = time.monotonic()
    client.disconnect()
    check(time.monotonic() - begun < 1, "the server took its time to close")


@case
def answers_come_within_half_a_second(target):
    begun = time.monotonic()
    client = target.client()
    client.ping()
    check(time.monotonic() - begun < 0.5, "CONNACK and PINGRESP took over 0.5 s")
    client.disconnect()


@case
def two_hundred_filters_in_many_subscribes_all_work(target):
    tree = topic()
    with target.client() as client:
        for start in range(0, 200, 10):
            client.subscribe([f"{tree}/{n}" for n in range(start, start + 10)], 0)
        for number in (0, 99, 199):
            client.publish(f"{tree}/{number}", b"")
            equal(client.message().topic, f"{tree}/{number}", "topic")


@case
def version_31_clients_are_served(target):
    tree = topic()
    with target.client(version=V31) as client:
        client.subscribe(f"{tree}/a", 2)
        for qos in (0, 1, 2):
            client.publish(f"{tree}/a", b"%d" % qos, qos)
            equal(client.message().qos, qos, "QoS")


@case
def unacknowledged_publishes_do_not_stop_pings(target):
    tree = topic()
    with target.client() as client, target.client() as publisher:
        client.auto_ack = False
        client.subscribe(f"{tree}/a", 1)
        for number in range(40):
            publisher.publish(f"{tree}/a", b"%d" % number, 1)
        client.ping()
