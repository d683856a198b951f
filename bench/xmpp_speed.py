#!/usr/bin/env python3
"""Logins, messages from one to another, and a message to everybody: XMPP, beside Prosody and ejabberd in the same run.

    python3 bench/xmpp_speed.py --server target/release/postrider [--only postrider,ejabberd,prosody] [--rounds 3]

The servers run side by side and take turns, row by row, in each round; accounts are made before. Printed are the median of the
rounds, the range, and the server's processor time (user and system, all its processes) for 1,000 operations until it has come
to rest. The generator shares the cores with the servers: **processor time is the figure to compare**, rates say little. Rows:

- `login`: a connection, SCRAM-SHA-256 with 4,096 iterations for all, bind, presence, and the answer to a ping behind it; 50 at a time.
- `one to one`: chat messages of 100 bytes in pairs, four under way in each; with XEP-0198 and without. postrider answers for each
  of them: it is on disk before it is sent on and stays there until it is acknowledged, which a client without XEP-0198 does by
  answering a ping. The others keep them in memory, and without XEP-0198 they ask for nothing.
- `broadcast`: one message to each of 5,000 sessions, one broadcast after the other: `POST /v1/messages` to `all` here (durable, with
  a report of each delivery), `announce/online` there.
"""

import argparse
import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../conformance"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from process import cpu_secs  # noqa: E402
from web_idle import APP_KEY  # noqa: E402
from xmpp_servers import DOMAIN, ITERATIONS, start  # noqa: E402
from xmpp_swarm import HttpPool, Loop, Member, raise_file_limit  # noqa: E402

MECHANISM = "SCRAM-SHA-256"
SECRET = "a secret of some length"
AT_ONCE = 50
BODY = "x" * 100
WINDOW = 4
# A server that asks for nothing more has come to rest.
REST_SECS = 0.5


class Registration(Member):
    """Makes an account in-band (XEP-0077), and is done. A server that is busy with keys may cut it: then it tries again."""

    def __init__(self, loop, place, user, on_done):
        self.on_done, self.place = on_done, place
        super().__init__(loop, place, (user, SECRET), domain=DOMAIN)

    def enter(self):
        yield from self.open()
        account = f"<username>{self.user}</username><password>{self.secret}</password>"
        yield from self.ask(f'<query xmlns="jabber:iq:register">{account}</query>', "set")

    def on_entered(self):
        self.close()
        self.on_done(self)

    def on_lost(self):
        if self.refusal is None:
            return Registration(self.loop, self.place, self.user, self.on_done)
        # It was made, and the answer was lost.
        if b"conflict" not in self.refusal.args[0]:
            raise self.refusal
        self.on_done(self)


class Session(Member):
    def __init__(self, loop, place, user, on_done, manages=False):
        self.on_done, self.on_arrival = on_done, None
        super().__init__(loop, place, (user, SECRET), MECHANISM, manages=manages, domain=DOMAIN)

    def on_entered(self):
        self.on_done(self)

    def on_message(self, stanza):
        if self.on_arrival is not None and b"<body>" in stanza:
            self.on_arrival(self)

    def on_lost(self):
        raise ConnectionError(f"{self.user} was lost: {self.refusal or self.rest}")


def many(loop, users, make, words):
    """As many as `AT_ONCE` under way, until all are done; gives them."""
    left, done = iter(users), []

    def next_one(before=None):
        if before is not None:
            done.append(before)
        user = next(left, None)
        if user is not None:
            make(user, next_one)
    for _ in range(AT_ONCE):
        next_one()
    loop.until(lambda: len(done) == len(users), words, 900)
    return done


class Bench:
    """One server, and what is asked of it."""

    def __init__(self, name, options):
        self.name, self.options, self.loop = name, options, Loop()
        self.server = start(name, options.server, "scram")
        def make(user, done):
            return Registration(self.loop, self.server.place, user, done)
        try:
            many(self.loop, self.users(options.everybody), make, "all are registered")
        except BaseException:
            self.server.stop()
            raise

    @staticmethod
    def users(count):
        return [f"u{n}" for n in range(count)]

    def sessions(self, count, manages=False):
        def make(user, done):
            return Session(self.loop, self.server.place, user, done, manages)
        return many(self.loop, self.users(count), make, "all are signed in")

    def part(self, sessions):
        for session in sessions:
            session.close()
        self.loop.run(REST_SECS)

    def measured(self, work):
        """`work` gives the number of operations; the result is (operations a second, processor seconds for 1,000)."""
        before, begun = cpu_secs(self.server.pid), time.monotonic()
        operations = work()
        secs = time.monotonic() - begun
        self.loop.run(REST_SECS)
        return operations / secs, (cpu_secs(self.server.pid) - before) / operations * 1000

    def login(self):
        sessions = []

        def work():
            sessions.extend(self.sessions(self.options.logins))
            return len(sessions)
        found = self.measured(work)
        assert {session.iterations for session in sessions} == {ITERATIONS}, {session.iterations for session in sessions}
        self.part(sessions)
        return found

    def one_to_one(self, manages):
        sessions = self.sessions(2 * self.options.pairs, manages)
        arrived, flows = [0], [True]

        def send(sender, receiver):
            sender.send(f'<message to="{receiver.user}@{DOMAIN}" type="chat" id="m"><body>{BODY}</body></message>')

        def work():
            for sender, receiver in pairs:
                for _ in range(WINDOW):
                    send(sender, receiver)
            self.loop.run(self.options.secs)
            flows[0] = False
            sent = arrived[0] + len(pairs) * WINDOW
            self.loop.until(lambda: arrived[0] == sent, "what is under way has arrived")
            return arrived[0]

        def arrival_of(sender):
            def arrival(receiver):
                arrived[0] += 1
                if flows[0]:
                    send(sender, receiver)
            return arrival
        pairs = list(zip(sessions[::2], sessions[1::2]))
        for sender, receiver in pairs:
            receiver.on_arrival = arrival_of(sender)
        found = self.measured(work)
        self.part(sessions)
        return found

    def broadcast(self, manages):
        sessions = self.sessions(self.options.everybody, manages)
        arrived = [0]

        def arrival(_):
            arrived[0] += 1
        for session in sessions:
            session.on_arrival = arrival
        admin = next(session for session in sessions if session.user == "u0")

        def work():
            begun, number = time.monotonic(), 0
            while time.monotonic() < begun + self.options.secs:
                number += 1
                self.to_everybody(admin)
                self.loop.until(lambda: arrived[0] == number * len(sessions), f"a broadcast to all: {arrived[0]}")
            return arrived[0]
        found = self.measured(work)
        self.part(sessions)
        return found

    def to_everybody(self, admin):
        if self.name != "postrider":
            return admin.send(f'<message to="{DOMAIN}/announce/online"><body>{BODY}</body></message>')
        pool = HttpPool(self.loop, self.server.server.http, APP_KEY, 1)

        def came(status, answer):
            assert status == 202, answer
            pool.close()
        pool.ask("POST", "/v1/messages", json.dumps({"audience": "all", "notification": {"body": BODY}, "ttl_secs": 3600}), came)


ROWS = {
    "login": lambda bench: bench.login(),
    "one to one": lambda bench: bench.one_to_one(False),
    "one to one with XEP-0198": lambda bench: bench.one_to_one(True),
    "broadcast": lambda bench: bench.broadcast(False),
    "broadcast with XEP-0198": lambda bench: bench.broadcast(True),
}


def spread(values, digits):
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f}–{max(values):,.{digits}f}]"


def table(found, rows, names):
    print("| row | server | a second | CPU seconds for 1,000 | ejabberd ÷ this |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        for name in names:
            own = found[row, name]
            ratios = [peer[1] / mine[1] for peer, mine in zip(found.get((row, "ejabberd"), []), own)]
            ratio = f"{statistics.median(ratios):.1f}" if ratios else "–"
            print(f"| {row} | {name} | {spread([rate for rate, _ in own], 0)} | {spread([cpu for _, cpu in own], 4)} | {ratio} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--only", default="postrider,ejabberd,prosody")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default=",".join(ROWS), help="only these, separated by commas")
    parser.add_argument("--logins", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=250)
    parser.add_argument("--everybody", type=int, default=5000)
    parser.add_argument("--secs", type=float, default=5, help="of a row of messages")
    options = parser.parse_args()
    raise_file_limit()
    names, rows = options.only.split(","), options.rows.split(",")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(unknown)}")
    print(f"load average {os.getloadavg()[0]:.1f} at the start", flush=True)
    benches, found = [], {(row, name): [] for row in rows for name in names}
    try:
        for name in names:
            begun = time.monotonic()
            benches.append(Bench(name, options))
            print(f"{name}: {options.everybody} accounts registered in {time.monotonic() - begun:.0f} s", flush=True)
        for number in range(options.rounds):
            for row in rows:
                for bench in benches:
                    found[row, bench.name].append(ROWS[row](bench))
                    rate, cpu = found[row, bench.name][-1]
                    load = os.getloadavg()[0]
                    print(f"round {number + 1} {row} {bench.name}: {rate:.0f}/s, {cpu:.4f} s, load average {load:.1f}", flush=True)
    finally:
        for bench in benches:
            bench.server.stop()
    table(found, rows, names)


if __name__ == "__main__":
    main()
