"""What is measured: the rows of the performance targets, as options of the generator and figures of its JSON."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Figure:
    key: str
    label: str
    digits: int = 0
    to_raw: bool = True


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    mode: str
    options: tuple
    figures: tuple
    offline: bool = False


TRAFFIC = (
    Figure("delivered_per_s", "delivered/s"),
    Figure("server_cpu_s_per_million", "CPU s/M", 2),
    Figure("p50_ms", "p50 ms", 2),
    Figure("p99_ms", "p99 ms", 2),
)
IDLE = (
    # Raw keeps six bytes a connection: no ratio worth printing.
    Figure("user_bytes_per_conn", "user bytes each (PSS)", to_raw=False),
    Figure("server_cpu_us_per_connect", "CPU µs per connect", 1),
    Figure("server_us_per_ping", "CPU µs per ping", 1),
    Figure("connects_per_s", "connects/s"),
)
OFFLINE = (
    Figure("publish_per_s", "acked/s", to_raw=False),
    Figure("server_bytes_per_stored_msg", "memory each", to_raw=False),
    Figure("disk_bytes_each", "disk each", to_raw=False),
    Figure("drain_per_s", "drained/s", to_raw=False),
    Figure("drain_s", "drain s", 2, to_raw=False),
    Figure("delivered", "arrived", to_raw=False),
)


def words(text):
    return tuple(text.split())


def fanout(subscribers, window, messages, warmup, qos):
    return Row(f"fanout-{subscribers}-qos{qos}",
               f"Fan-out to {subscribers:,}, window {window}, QoS {qos}", "fanout",
               words(f"-n {subscribers} --outstanding {window} --msgs {messages} --warmup {warmup} --qos {qos}"), TRAFFIC)


def unicast(qos):
    return Row(f"unicast-qos{qos}", f"Unicast: each message to one of 10,000 devices, QoS {qos}", "unicast",
               words(f"-n 10000 --msgs 80000 --warmup 5000 --qos {qos}"), TRAFFIC)


ROWS = [
    Row("idle", "Idle: 18,000 connections, a ping every 20 s", "idle",
        words("-n 18000 --keepalive 20 --hold 10 --stall 30"), IDLE),
    fanout(1000, 50, 250, 50, 0),
    fanout(1000, 50, 250, 50, 1),
    fanout(10000, 5, 20, 2, 0),
    fanout(10000, 5, 20, 2, 1),
    Row("fanout-1000-rate", "Fan-out to 1,000 at 20 messages/s, QoS 0: latency without a queue", "fanout",
        words("-n 1000 --msgs 60 --rate 20 --qos 0"), TRAFFIC),
    unicast(0),
    unicast(1),
    Row("offline", "Offline: 10,000 kept sessions × 10 messages, QoS 1; kill -9 while all are away", "offline",
        words("-n 10000 --msgs 10"), OFFLINE, offline=True),
]

SMALL = {"-n": {"18000": "200", "1000": "50", "10000": "100"},
         "--msgs": {"250": "40", "20": "10", "80000": "2000", "60": "10"},
         "--warmup": {"50": "5", "5000": "100"}, "--hold": {"10": "2"}, "--keepalive": {"20": "1"}}


def quick(row):
    """The same row with small numbers."""
    smaller = list(row.options)
    for index in range(0, len(smaller) - 1, 2):
        smaller[index + 1] = SMALL.get(smaller[index], {}).get(smaller[index + 1], smaller[index + 1])
    return replace(row, options=tuple(smaller), title=row.title + " (quick: smaller)")
