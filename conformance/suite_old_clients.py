"""Clients of the field's first years, byte for byte: IBM's wmqtt on the phone and SAM for PHP on the web page.

COMPAT: both speak MQTT 3.1 and break rules that later versions made strict; the bytes here are those seen on
the wire, so these cases send them raw.
"""

import os
import struct
import time
import uuid

from harness import Suite, check, equal, topic
from mqtt_wire import (CONNACK, PINGRESP, PUBACK, PUBCOMP, PUBREC, SUBACK, V31, V5, packet, publish_packet,
                       text)

SUITE = Suite("old_clients")
case = SUITE.case()

BOUND_MID_HEADER = 2


def phone_id():
    """`tokudu/` and 16 hex digits: just 23 bytes."""
    return "tokudu/" + os.urandom(8).hex()


def page_id():
    """PHP's uniqid with more entropy: 23 characters, new for each page view."""
    digits = uuid.uuid4().hex
    return f"{digits[:13]}.{int(digits[13:21], 16) % 10**9:09d}"


def send_in_two_segments(client, data, cut=BOUND_MID_HEADER):
    """wmqtt writes header and payload apart. The pause lets the first segment be read alone."""
    client.send(data[:cut])
    time.sleep(0.02)
    client.send(data[cut:])


def wmqtt_connect(client_id, flags=0x02):
    return packet(0x10, text("MQIsdp") + bytes([3, flags]) + struct.pack("!H", 900) + text(client_id))


def sam_connect(client_id, flags=0x00):
    return packet(0x10, text("MQIsdp") + bytes([3, flags]) + b"\x00\x00" + text(client_id))


def wmqtt_phone(target, client_id=None, flags=0x02):
    """Signs in as the phone does and checks the CONNACK, whose first byte means compression to it."""
    client = target.raw(V31, client_id or phone_id())
    send_in_two_segments(client, wmqtt_connect(client.client_id, flags))
    equal(client.wait(CONNACK).body, b"\x00\x00", "CONNACK body")
    return client


def wmqtt_subscribe(client, name, packet_id=2, first_byte=0x82):
    send_in_two_segments(client, packet(first_byte, struct.pack("!H", packet_id) + text(name) + b"\x00"))
    equal(client.wait(SUBACK).body, struct.pack("!H", packet_id) + b"\x00", "SUBACK body")


def sam_page(target, flags=0x00):
    client = target.raw(V31, page_id())
    client.send(sam_connect(client.client_id, flags))
    equal(client.wait(CONNACK).reason, 0, "CONNACK code")
    return client


def sam_goodbye(client):
    """SAM reads until the server closes, for ten seconds at most: it must not have to wait."""
    begun = time.monotonic()
    client.send(b"\xe0\x00")
    client.wait_closed()
    check(time.monotonic() - begun < 1, "the server did not close at once on DISCONNECT")


@case
def wmqtt_connects_with_the_captured_bytes(target):
    client = target.raw(V31, phone_id())
    data = wmqtt_connect(client.client_id)
    equal(data[:14].hex(), "102500064d514973647003020384", "the capture")
    send_in_two_segments(client, data)
    equal(client.wait(CONNACK).body, b"\x00\x00", "CONNACK body")
    client.disconnect()


@case
def wmqtt_topic_name_compression_bit_is_ignored(target):
    with wmqtt_phone(target, flags=0x03) as client:
        wmqtt_subscribe(client, client.client_id)


@case
def wmqtt_kept_session_still_gets_a_connack_whose_first_byte_is_zero(target):
    name = phone_id()
    for _ in range(2):
        with wmqtt_phone(target, name, flags=0x00) as client:
            wmqtt_subscribe(client, name)
            client.disconnect()
    wmqtt_phone(target, name).disconnect()


@case
def wmqtt_pings_with_dup_set_from_the_second_on(target):
    with wmqtt_phone(target) as client:
        for first_byte in (0xC0, 0xC8, 0xC8, 0xC8):
            client.send(bytes([first_byte, 0]))
            equal(client.wait(PINGRESP).body, b"", "PINGRESP body")


@case
def wmqtt_retries_of_subscribe_have_dup_set(target):
    with wmqtt_phone(target) as client:
        wmqtt_subscribe(client, client.client_id, 2, 0x82)
        wmqtt_subscribe(client, client.client_id, 2, 0x8A)


@case
def wmqtt_releases_with_flags_zero_and_retries_with_dup(target):
    tree = topic()
    with target.client() as watcher, wmqtt_phone(target) as phone:
        watcher.subscribe(f"{tree}/a", 2)
        phone.auto_ack = False
        for packet_id, releases in ((2, [0x60]), (3, [0x68]), (4, [0x60, 0x68])):
            phone.send(publish_packet(f"{tree}/a", b"%d" % packet_id, 2, packet_id))
            phone.wait(PUBREC)
            for first_byte in releases:
                phone.send(packet(first_byte, struct.pack("!H", packet_id)))
                equal(phone.wait(PUBCOMP).packet_id, packet_id, "packet id of PUBCOMP")
            equal(watcher.message().payload, b"%d" % packet_id, "payload")


@case
def wmqtt_receives_qos2_with_its_own_flags(target):
    tree = topic()
    with wmqtt_phone(target) as phone, target.client() as publisher:
        phone.auto_ack = False
        phone.send(packet(0x82, b"\x00\x02" + text(tree) + b"\x02"))
        phone.wait(SUBACK)
        publisher.publish(tree, b"x", 2)
        came = phone.message()
        phone.send(packet(0x58, struct.pack("!H", came.packet_id)))
        phone.wait(6)
        phone.send(packet(0x78, struct.pack("!H", came.packet_id)))
        phone.send(b"\xc8\x00")
        phone.wait(PINGRESP)


@case
def wmqtt_will_with_flags_0x0e_is_published(target):
    tree = topic()
    with target.client() as watcher:
        watcher.subscribe(tree, 1)
        phone = target.raw(V31, phone_id())
        body = text("MQIsdp") + b"\x03\x0e\x03\x84" + text(phone.client_id) + text(tree) + text("gone")
        send_in_two_segments(phone, packet(0x10, body))
        phone.wait(CONNACK)
        phone.drop()
        equal(watcher.message().payload, b"gone", "will")


@case
def wmqtt_publishes_its_keepalive_message(target):
    with target.client() as watcher, wmqtt_phone(target) as phone:
        watcher.subscribe("tokudu/keepalive", 0)
        send_in_two_segments(phone, publish_packet("tokudu/keepalive", phone.client_id))
        while watcher.message().payload.decode() != phone.client_id:
            pass


@case
def wmqtt_packets_may_be_split_after_each_byte(target):
    name = phone_id()
    stream = wmqtt_connect(name) + packet(0x82, b"\x00\x02" + text(name) + b"\x00") + b"\xc0\x00\xc8\x00"
    with target.raw(V31, name) as client:
        for byte in stream:
            client.send(bytes([byte]))
        for _ in range(2):
            client.wait(PINGRESP)


@case
def wmqtt_takeover_ends_the_first_connection(target):
    first = wmqtt_phone(target)
    wmqtt_subscribe(first, first.client_id)
    with wmqtt_phone(target, first.client_id) as second:
        equal(first.wait_closed(), [], "packets before connectionLost")
        wmqtt_subscribe(second, second.client_id)
        with target.client() as publisher:
            publisher.publish(second.client_id, b"to the second")
        equal(second.message().payload, b"to the second", "payload")


@case
def wmqtt_gets_nothing_that_was_sent_while_it_was_away(target):
    name = phone_id()
    phone = wmqtt_phone(target, name)
    wmqtt_subscribe(phone, name)
    phone.send(b"\xe0\x00")
    phone.wait_closed()
    with target.client() as publisher:
        publisher.publish(name, b"missed", 1)
        with wmqtt_phone(target, name) as back:
            wmqtt_subscribe(back, name)
            publisher.publish(name, b"seen", 1)
            came = back.message()
            equal((came.payload, came.qos), (b"seen", 0), "message, lowered to the subscription's QoS")


@case
def sam_status_page_opens_and_closes_without_a_byte(target):
    for _ in range(20):
        target.raw(V31).drop()
    target.client().disconnect()


@case
def sam_publishes_at_qos0_and_says_goodbye(target):
    tree = topic()
    with target.client() as watcher:
        watcher.subscribe(tree, 0)
        page = sam_page(target)
        page.send(publish_packet(tree, b"from the page"))
        sam_goodbye(page)
        equal(watcher.message().payload, b"from the page", "payload")


@case
def sam_clean_start_sets_a_reserved_bit(target):
    sam_goodbye(sam_page(target, flags=0x03))


@case
def sam_publishes_at_qos1_with_packet_id_zero(target):
    tree = topic()
    with target.client() as watcher:
        watcher.subscribe(tree, 1)
        page = sam_page(target)
        for packet_id in (0, 1, 65535):
            page.send(publish_packet(tree, b"%d" % packet_id, 1, packet_id))
            equal(page.wait(PUBACK).packet_id, packet_id, "packet id of PUBACK")
            equal(watcher.message().payload, b"%d" % packet_id, "payload")
        sam_goodbye(page)


@case
def sam_publishes_at_qos2_and_releases_with_flags_zero(target):
    tree = topic()
    with target.client() as watcher:
        watcher.subscribe(tree, 2)
        page = sam_page(target)
        page.auto_ack = False
        page.send(publish_packet(tree, b"twice shaken", 2, 4711))
        page.wait(PUBREC)
        page.send(b"\x60\x02\x12\x67")
        equal(page.wait(PUBCOMP).packet_id, 4711, "packet id of PUBCOMP")
        sam_goodbye(page)
        equal(watcher.message().payload, b"twice shaken", "payload")


@case
def sam_keepalive_zero_never_times_out(target):
    with sam_page(target) as page:
        time.sleep(3)  # The passing of time is what is judged.
        page.send(publish_packet(topic(), b"x", 1, 7))
        page.wait(PUBACK)


@case
def sam_leaves_no_session_behind(target):
    """Flags 0x00 ask for a kept session under an id that is never used again: one leak a page view."""
    page = sam_page(target)
    page.send(publish_packet(topic(), b"x", 1, 7))
    page.wait(PUBACK)
    sam_goodbye(page)
    # 3.1.1 under the same id: only its CONNACK tells whether a session was kept.
    with target.raw(client_id=page.client_id) as probe:
        equal(probe.connect(clean=False).session_present, False, "session present")


@case
def a_session_that_has_a_subscription_is_kept(target):
    """The counterpart: what SAM's rule throws away must not be more than the empty session."""
    name = phone_id()
    phone = wmqtt_phone(target, name, flags=0x00)
    wmqtt_subscribe(phone, name)
    phone.drop()
    with target.raw(client_id=name) as probe:
        equal(probe.connect(clean=False).session_present, True, "session present")
    target.client(client_id=name, clean=True).disconnect()


@case
def the_classic_scene_from_php_page_to_phone(target):
    """The seed of this field: a web page publishes to `tokudu/<phone>`, the phone rings."""
    with wmqtt_phone(target) as phone:
        wmqtt_subscribe(phone, phone.client_id)
        for number in range(5):
            page = sam_page(target)
            page.send(publish_packet(phone.client_id, b"message %d" % number))
            sam_goodbye(page)
            came = phone.message()
            equal((came.topic, came.payload, came.flags), (phone.client_id, b"message %d" % number, 0), "message")
        phone.send(b"\xc0\x00\xc8\x00")
        phone.wait(PINGRESP)
        phone.wait(PINGRESP)


@case
def strict_versions_still_refuse_what_only_level_3_may_send(target):
    """Leniency ends at level 3: `C8 00` from a 3.1.1 or 5 client is malformed."""
    for version in (4, V5):
        client = target.client(version)
        client.send(b"\xc8\x00")
        got = client.wait_closed()
        check(all(p.kind != PINGRESP for p in got), f"version {version}: the flawed ping was answered")
