#!/usr/bin/env python3
"""Whether the server stays steady while XMPP sessions come and go and pushes flow, and whether it knows what arrived.

    steady.py --server PATH                                     the short form
    steady.py --server PATH --sessions 10000 --rate 2000 --seconds 300 --warm 75 --churn 1

Each second some percent of the sessions are cut: with a FIN, with a RST, or by leaving the socket open with nobody behind it.
They come back within some seconds, some on the same stream (XEP-0198), some on a new one. Every push is a request of its own
with an idempotency key, to one device. One push a second is for a device that is never there, and expires.

Judged:
- *Memory*: what the server has allocated (anonymous resident memory), each second after the warm-up. A straight line is laid
  through it; its growth over the run may be as large as its noise (3.3 standard errors, of the medians of 20 parts of the run), or
  as one per cent, or as one MiB: an allocator moves by that much. What is kept by design has its bound within the warm-up (reports:
  `limits.history_max`; contents: `limits.content_cache_bytes_max`) or is known: 200 bytes for each idempotency key, which is kept
  for the life of its message.
- *Nothing left over*: sessions, connections and sockets are in the end what they were in the beginning; threads too, but for at most
  four that the runtime has borrowed for a moment.
- *The ledger*: of every accepted push, what the events say is what the device's own log says, and so do the reports still kept.

Latency is printed, from the moment at which a push was due to its arrival at a device that was connected throughout; not judged.
"""

import argparse
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from itertools import count

from seen import Seen
from server import APP_KEY, Server
from xmpp_swarm import HttpPool, Loop, Member, attribute, raise_file_limit

KEY_BYTES = 200
MIB = 1 << 20
NOISE_ERRORS = 3.3
PARTS = 20
LIFE_SECS = 60
# Long enough for the server to find out by itself that nobody is behind a socket.
PROBE_SECS, ANSWER_SECS, LONG_AWAY_SECS = 5, 5, 15
SETTLES_WITHIN = 90
BORROWED_THREADS = 4
ABSENT = "absent"
# What is judged is what the server holds. For a checkpoint there is a second state for a moment; with thresholds of its own choice
# glibc keeps some of what that gives back: steps at checkpoints, with nothing between them. Whether the steps come to an end has not
# been shown. So the thresholds are fixed, and checkpoints come often, from the warm-up on.
CHECKPOINT_BYTES = 8 << 20
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def settings(options):
    return {
        "xmpp.allow_plaintext": "true", "xmpp.scram": "false", "xmpp.resume_secs": LONG_AWAY_SECS,
        "xmpp.probe_after_secs": PROBE_SECS, "xmpp.answer_timeout_secs": ANSWER_SECS,
        "http.pushes_per_sec": 0, "http.bytes_per_sec": 0, "limits.connects_per_minute_max": 0, "limits.idempotency_keep_secs": LIFE_SECS,
        "limits.history_max": 5 * options.rate, "limits.content_cache_bytes_max": 1 << 18,
        "store.checkpoint_bytes": CHECKPOINT_BYTES, "store.segment_bytes": CHECKPOINT_BYTES,
        "store.min_free_bytes": 0, "store.min_free_percent": 0,
    }


# --- devices ------------------------------------------------------------------------------------------

class Device:
    """One account, its log of what it was given, and the session that it has now."""

    def __init__(self, crowd, number, account):
        self.crowd, self.account = crowd, account
        self.source = f"127.0.0.{number % 200 + 2}"
        # Every fourth has no XEP-0198, and is asked by pings.
        self.manages = number % 4 != 0
        self.log = []
        self.session, self.since, self.stream = None, None, None

    def come(self):
        if not self.crowd.is_over:
            self.session = Session(self)

    def lost(self, session):
        """Not by our doing: it comes back at once."""
        if session is self.session:
            self.crowd.counts["lost to the server"] += not self.crowd.is_over
            self.away(0.5)

    def away(self, secs):
        self.stream = self.session.place_in_stream()
        self.session, self.since = None, None
        self.crowd.loop.after(secs, self.come)


class Session(Member):
    def __init__(self, device):
        self.device = device
        super().__init__(device.crowd.loop, device.crowd.server.places["xmpp"], device.account, manages=device.manages,
                         stream=device.stream, source=device.source)

    def place_in_stream(self):
        return (self.stream, self.handled) if self.stream else None

    def on_entered(self):
        self.device.since = time.monotonic()
        self.device.crowd.counts["resumed" if self.was_resumed else "begun"] += 1

    def on_message(self, stanza):
        message = attribute(b"id", stanza)
        self.device.log.append(message)
        subject = re.search(rb"<subject>(\d+)</subject>", stanza)
        self.device.crowd.pushes.arrived(int(subject[1]), self.device)

    def on_lost(self):
        self.device.lost(self)


class Crowd:
    def __init__(self, loop, server, options, chance):
        self.loop, self.server, self.options, self.chance = loop, server, options, chance
        self.counts, self.is_over = Counter(), False
        self.abandoned, self.devices = [], []

    def enter(self, accounts):
        self.devices = [Device(self, n, account) for n, account in enumerate(accounts)]
        for n in range(0, len(self.devices), 500):
            part = self.devices[n:n + 500]
            for device in part:
                device.come()
            self.loop.until(lambda: all(device.since for device in part), "the devices are signed in")

    def all_there(self):
        return all(device.since for device in self.devices)

    def churn(self):
        """A second's part of it."""
        number = round(len(self.devices) * self.options.churn / 100)
        there = [device for device in self.chance.sample(self.devices, min(2 * number, len(self.devices))) if device.since]
        for device in there[:number]:
            self.cut(device)

    def cut(self, device):
        way = self.chance.choice(("fin", "rst", "abandoned", "abandoned"))
        self.counts[way] += 1
        away = self.chance.uniform(0, 3)
        session = device.session
        if way == "abandoned":
            self.keep_open(session.abandon())
            if self.chance.random() < 0.1:
                away = LONG_AWAY_SECS
        elif way == "fin":
            session.close()
        else:
            session.reset()
        device.away(away)
        if self.chance.random() < 0.5:
            device.stream = None

    def keep_open(self, left):
        """Until long after the server had to have noticed."""
        self.abandoned.append(left)
        self.loop.after(2 * (PROBE_SECS + ANSWER_SECS), self.forget, left)

    def forget(self, left):
        self.abandoned.remove(left)
        left.close()

    def leave(self):
        self.is_over = True
        for device in self.devices:
            device.session.leave()


# --- pushes ---------------------------------------------------------------------------------------------

class Pushes:
    """Sends at the set rate, whatever the answers do; a request that was lost or refused is repeated with its key."""

    def __init__(self, loop, server, devices, options, chance):
        self.loop, self.devices, self.options, self.chance = loop, devices, options, chance
        self.pool = HttpPool(loop, server.places["http"], APP_KEY, 48)
        self.due, self.accepted, self.latencies, self.refusals = [], {}, [], Counter()
        self.begun, self.flows = None, False
        self.run_tag = random.SystemRandom().randrange(1 << 40)

    def start(self):
        self.begun, self.flows = time.monotonic(), True
        self.flow()

    def flow(self):
        if not self.flows:
            return
        now = time.monotonic()
        while (due := self.begun + len(self.due) / self.options.rate) <= now:
            number = len(self.due)
            self.due.append(due)
            if number % self.options.rate == 0:
                self.send(number, ABSENT, 1)
            else:
                self.send(number, self.chance.choice(self.devices).account[0], LIFE_SECS)
        self.loop.after(0.005, self.flow)

    def send(self, number, device, life):
        body = json.dumps({"audience": {"device": device}, "ttl_secs": life,
                           "notification": {"title": str(number), "body": "A push of some words, as they are sent to telephones."}})

        def answered(status, answer):
            if status == 202:
                self.accepted[json.loads(answer)["message_id"]] = device
            else:
                self.refusals[status] += 1
                self.loop.after(0.1, ask)

        def ask():
            self.pool.ask("POST", "/v1/messages", body, answered, headers=f"Idempotency-Key: {self.run_tag}-{number}\r\n")
        ask()

    def arrived(self, number, device):
        """Only pushes to devices that were there when they were due say something about latency."""
        if device.since and device.since < self.due[number]:
            self.latencies.append(time.monotonic() - self.due[number])

    def all_answered(self):
        return len(self.accepted) == len(self.due)

    def latency(self):
        found = sorted(self.latencies)
        p50, p99 = (found[int(len(found) * part)] * 1000 for part in (0.5, 0.99))
        return f"p50={p50:.1f} ms p99={p99:.1f} ms max={found[-1] * 1000:.0f} ms of {len(found)}"


class Events:
    """Follows the stream of events, and keeps how each delivery ended."""

    def __init__(self, loop, server):
        self.pool = HttpPool(loop, server.places["http"], APP_KEY, 1)
        self.verdicts, self.after, self.missed, self.is_over = {}, "", False, False
        self.ask()

    def ask(self):
        after = f"&after={self.after}" if self.after else ""
        self.pool.ask("GET", f"/v1/events?limit=1000&wait=1{after}", "", self.came)

    def came(self, status, body):
        if status == 200:
            page = json.loads(body)
            self.after, self.missed = page["next"], self.missed or page["missed"]
            for event in page["events"]:
                if event["step"] in ("delivered", "expired", "evicted", "rejected"):
                    self.verdicts.setdefault(event["message_id"], []).append((event["step"], event["device_id"]))
        if not self.is_over:
            self.ask()


# --- memory ---------------------------------------------------------------------------------------------

def line(values):
    """The slope of the straight line through values one apart, and its standard error."""
    middle, mean = (len(values) - 1) / 2, statistics.fmean(values)
    spread = sum((n - middle) ** 2 for n in range(len(values)))
    slope = sum((n - middle) * (value - mean) for n, value in enumerate(values)) / spread
    left = sum((value - mean - slope * (n - middle)) ** 2 for n, value in enumerate(values))
    return slope, (left / (len(values) - 2) / spread) ** 0.5


def growth(samples):
    """By how much they grow from the first to the last as a straight line, and its noise. Neighbours in time are alike, so one
    value is taken for each part of the run; without that the noise would look smaller than it is. It is the median: while a
    checkpoint is made, for a second or two, there is a second state."""
    size = len(samples) / PARTS
    parts = [statistics.median(samples[int(n * size):int((n + 1) * size)]) for n in range(PARTS)]
    slope, error = line(parts)
    return slope * PARTS, NOISE_ERRORS * error * PARTS


def allowed(samples, noise, keys_added):
    return max(noise, statistics.median(samples) / 100, MIB) + KEY_BYTES * keys_added


# --- the whole ------------------------------------------------------------------------------------------

class Judge:
    def __init__(self, options, server):
        self.options, self.server, self.faults = options, server, []
        self.loop, self.chance = Loop(), random.Random(options.seed)
        self.samples, self.sent_at, self.is_over = [], [], False

    def register(self, number):
        """As many devices, and the one that is never there."""
        pool, made = HttpPool(self.loop, self.server.places["http"], APP_KEY, 16), {}

        def register(name):
            def came(status, answer):
                assert status == 201, answer
                made[name] = (name, json.loads(answer)["device_secret"])
            pool.ask("POST", "/v1/devices", json.dumps({"device_id": name, "platform": "desktop"}), came)
        names = [f"steady-{n}" for n in range(number)]
        for name in [*names, ABSENT]:
            register(name)
        self.loop.until(lambda: len(made) == number + 1, "all devices are registered", 300)
        pool.close()
        return [made[name] for name in names]

    def counts(self):
        """What the server holds, by its own metrics and by the system."""
        names = ("sessions_connected", "connections", "connections_unauthenticated", "api_connections", "accounting_gap")
        found = {name: int(self.seen.metric(f"postrider_{name}")) for name in names}
        return {**found, "sockets": self.seen.sockets_open(), "threads": self.seen.threads()}

    def each_second(self):
        if self.is_over:
            return
        self.loop.after(1, self.each_second)
        self.crowd.churn()
        self.samples.append(self.seen.allocated_bytes())
        self.sent_at.append(len(self.pushes.due))

    def run(self):
        self.seen = Seen(self.server)
        accounts = self.register(self.options.sessions)
        self.loop.until(lambda: self.seen.metric("postrider_api_connections") == 0, "HTTP has calmed down")
        self.at_start = self.counts()
        self.crowd = Crowd(self.loop, self.server, self.options, self.chance)
        self.crowd.enter(accounts)
        self.pushes = self.crowd.pushes = Pushes(self.loop, self.server, self.crowd.devices, self.options, self.chance)
        self.events = Events(self.loop, self.server)
        self.pushes.start()
        self.each_second()
        self.loop.run(self.options.warm)
        cpu, own_cpu, at = self.seen.cpu_secs(), time.process_time(), len(self.samples)
        self.loop.run(self.options.seconds)
        self.cpu, self.own_cpu, self.is_over = self.seen.cpu_secs() - cpu, time.process_time() - own_cpu, True
        self.judge_memory(at)
        self.settle()
        self.judge_ledger()
        self.judge_leftovers()

    def settle(self):
        """No more is cut or sent; what is on its way arrives."""
        self.pushes.flows = False
        accepted, verdicts = self.pushes.accepted, self.events.verdicts

        def wait(question, words):
            moves = lambda: (len(accepted), len(verdicts), sum(self.crowd.counts.values()))
            self.loop.until(question, words, SETTLES_WITHIN, moves)
        wait(lambda: self.crowd.all_there() and self.pushes.all_answered(), "all are back, all is accepted")
        wait(lambda: len(verdicts) >= len(accepted), "everything has ended")
        wait(lambda: self.counts()["connections"] == self.options.sessions, "the connections are those of the devices")
        counts = self.counts()
        self.demand((counts["sessions_connected"], counts["accounting_gap"]) == (self.options.sessions, 0), f"while all are there: {counts}")

    def demand(self, is_so, words):
        if not is_so:
            self.faults.append(words)

    def judge_memory(self, at):
        samples, pushes = self.samples[at:], self.sent_at[at:]
        grown, noise = growth(samples)
        life = self.options.rate * LIFE_SECS
        keys_added = min(pushes[-1], life) - min(pushes[0], life)
        bound = allowed(samples, noise, keys_added)
        middle, least, most = (of(samples) / MIB for of in (statistics.median, min, max))
        words = f"the line grows by {grown / MIB:+.2f} MiB in {len(samples)} s, its noise is {noise / MIB:.2f}, allowed {bound / MIB:.2f}"
        print(f"memory: {middle:.1f} MiB [{least:.1f} to {most:.1f}]; {words}")
        self.demand(grown <= bound, f"(b) memory: {words}")

    def judge_ledger(self):
        accepted, verdicts = self.pushes.accepted, self.events.verdicts
        logs = {device.account[0]: Counter(device.log) for device in self.crowd.devices}
        logs[ABSENT] = Counter()
        wrong = []
        for message, device in accepted.items():
            says = [("delivered", device)] if logs[device][message] else [("expired", device)]
            if verdicts.get(message) != says:
                wrong.append(f"{message}: its device's log says {says}, the events say {verdicts.get(message)}")
        phantoms = [message for device, log in logs.items() for message in log if accepted.get(message) != device]
        delivered = sum(accepted.get(message) == device for device, log in logs.items() for message in log)
        expired = len(accepted) - delivered
        absent = sum(device == ABSENT for device in accepted.values())
        reports = self.judge_reports(logs)
        twice = sum(log.total() - len(log) for log in logs.values())
        print(f"ledger: {len(accepted)} accepted, {delivered} delivered by the devices' own logs ({twice} of them came again), "
              f"{expired} expired, {absent} of these for nobody; "
              f"the events agree on {len(accepted) - len(wrong)}, and {reports} reports that are still kept")
        print(f"balance accepted={len(accepted)} delivered={delivered} expired={expired} "
              f"lost={expired - absent} phantom={len(phantoms)}")
        self.demand(not wrong, f"(c) {len(wrong)} verdicts differ: {wrong[:3]}")
        self.demand(expired == absent, f"(c) {expired - absent} pushes did not reach their devices in their life of {LIFE_SECS} s")
        self.demand(not phantoms, f"(c) {len(phantoms)} came that were not accepted for that device: {phantoms[:3]}")
        self.demand(not self.events.missed, "(c) the stream of events had a gap")

    def judge_reports(self, logs):
        """Gives how many there were."""
        pool, reports = HttpPool(self.loop, self.server.places["http"], APP_KEY, 1), {}
        cursor, pages = [""], []

        def came(status, body):
            assert status == 200, body
            page = json.loads(body)
            reports.update((message["message_id"], message["states"]) for message in page["messages"])
            cursor[0] = page.get("next_cursor")
            pages.append(page)
        for number in count(1):
            after = f"&cursor={cursor[0]}" if cursor[0] else ""
            pool.ask("GET", f"/v1/messages?limit=1000{after}", "", came)
            self.loop.until(lambda: len(pages) == number, "a page of reports")
            if not cursor[0]:
                break
        pool.close()
        device_of = self.pushes.accepted

        def of_log(message):
            return {"delivered" if logs[device_of[message]][message] else "expired": 1}
        wrong = [(message, states) for message, states in reports.items() if {k: n for k, n in states.items() if n} != of_log(message)]
        self.demand(not wrong, f"(c) {len(wrong)} reports differ from the logs: {wrong[:3]}")
        return len(reports)

    def judge_leftovers(self):
        self.crowd.leave()
        self.events.is_over = True
        self.loop.until(lambda: not self.events.pool.count or self.events.pool.idle, "the last page of events")
        for pool in (self.events.pool, self.pushes.pool):
            pool.close()

        def is_as_before():
            now = self.counts()
            # The HTTP runtime borrows threads for what may block, and gives them back when it likes.
            now["threads"] -= BORROWED_THREADS
            return all(now[name] <= self.at_start[name] for name in now)
        try:
            self.loop.until(is_as_before, "", SETTLES_WITHIN)
        except AssertionError:
            self.faults.append(f"(b) left over: {self.counts()}, at the start {self.at_start}")
        print(f"left over: {self.counts()}; at the start {self.at_start}")
        self.demand("panicked at" not in self.server.last_words(1 << 24), "the server panicked")

    def tell(self):
        print(f"pushes: {self.pushes.latency()}; refused {dict(self.pushes.refusals)}")
        secs = self.options.seconds
        print(f"CPU seconds a second: server {self.cpu / secs:.2f}, this judge {self.own_cpu / secs:.2f}")
        print(f"sessions: {dict(self.crowd.counts)}; load average {os.getloadavg()[0]:.1f}")
        for fault in self.faults:
            print("FAULT", fault)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="path of the postrider binary")
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--rate", type=int, default=200, help="pushes a second")
    parser.add_argument("--seconds", type=int, default=20, help="of measurement (20)")
    parser.add_argument("--warm", type=int, default=8, help="seconds before it (8)")
    parser.add_argument("--churn", type=float, default=5, help="percent of the sessions that are cut each second (5)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    raise_file_limit()
    print(f"steady sessions={options.sessions} rate={options.rate} seconds={options.seconds} churn={options.churn} "
          f"seed={options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="steady-") as folder:
        server = Server(options.server, os.path.join(folder, "data"), None, os.path.join(folder, "server.log"),
                        settings=settings(options), variables=GIVES_BACK).start()
        try:
            judge = Judge(options, server)
            judge.run()
            judge.tell()
        finally:
            server.stop()
    return 1 if judge.faults else 0


if __name__ == "__main__":
    sys.exit(main())
