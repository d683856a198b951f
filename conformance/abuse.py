#!/usr/bin/env python3
"""Mistreats the real server under load; nothing that was accepted may be lost, come too late, or end too early.

    abuse.py --server PATH                          every scenario, once
    abuse.py --server PATH --only power --times 5   one of them, five times as long
    abuse.py --list

Each scenario has publishers of both kinds (pushes over HTTP with idempotency keys, MQTT publishes to kept sessions),
devices that stay, devices that are away when their messages end, and a ledger; each prints its seed and one line,
`balance accepted=… delivered=… expired=… lost=0 phantom=0 dup_unexplained=0 misorder=0 early=0 late=0 gap=0`, and
fails where one of those after `expired` is not 0. A scenario that this machine cannot play is left out, and said so;
with `--strict` it fails.
"""

import argparse
import os
import random
import sys
import tempfile
import time
import traceback

import abuse_machine
import abuse_process
from harness import NotHere, Unmet
from ledger import words
from load import fresh_seed, log_of
from server import Server, StartFailed

SCENARIOS = {play.__name__: play for play in (
    abuse_process.recovery, abuse_process.checkpoint, abuse_process.pause, abuse_process.stop,
    abuse_machine.power, abuse_machine.disk, abuse_machine.clock)}


class Stage:
    """What a scenario is given: a folder, chance, and how long it may be."""

    def __init__(self, options, folder, seed):
        self.options, self.folder, self.seed = options, folder, seed
        self.chance = random.Random(seed)
        self.failures = []
        self.servers = []

    def times(self, count):
        return count * self.options.times

    def server(self, settings, data_dir=None):
        data_dir = data_dir or os.path.join(self.folder, f"data{len(self.servers)}")
        self.servers.append(Server(self.options.server, data_dir, None, log_of(self.folder), settings=settings))
        return self.servers[-1]

    def require(self, condition, text):
        if not condition:
            self.failures.append(text)

    def end(self, load, **facts):
        """Lets the load come to its end; (balance, facts)."""
        balance = load.settle()
        self.require(load.is_good(balance), "the balance is not even")
        self.require(not load.run.sessions_lost, f"{load.run.sessions_lost} sessions were lost")
        with open(log_of(self.folder), errors="replace") as log:
            panics = [line for line in log if "panicked at" in line]
        self.require(not panics, f"panics: {panics[:3]}")
        return balance, {**facts, "repeats": load.repeats()}


def play(name, options):
    """Whether it went well; None: not here."""
    seed = fresh_seed(options.seed)
    print(f"── {name} seed={seed}", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"abuse-{name}-") as folder:
        stage = Stage(options, folder, seed)
        try:
            balance, facts = SCENARIOS[name](stage)
            facts = {"scenario": name, **facts, "took": f"{time.monotonic() - begun:.0f}s"}
            print(" ".join(f"{key}={value}" for key, value in facts.items()))
            print(words(balance), flush=True)
        except NotHere as reason:
            print(f"left out: {reason}", flush=True)
            return False if options.strict else None
        except (StartFailed, Unmet) as error:
            stage.failures.append(str(error))
        except Exception as error:  # Whatever else a scenario raises is the server's failure or its own: both fail.
            traceback.print_exc()
            stage.failures.append(repr(error))
        if stage.failures and stage.servers:
            print(stage.servers[-1].last_words(), flush=True)
        for failure in stage.failures:
            print(f"FAIL {name}: {failure}", flush=True)
        return not stage.failures


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server")
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="only this scenario; may be repeated")
    parser.add_argument("--times", type=int, default=1, help="how often the abuse of each is repeated (1)")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--strict", action="store_true", help="a scenario that is left out counts as failed")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args()


def main():
    options = arguments()
    if options.list:
        print("\n".join(f"{name}: {scenario.__doc__}" for name, scenario in SCENARIOS.items()))
        return 0
    if not options.server:
        sys.exit("give --server PATH")
    options.server = os.path.abspath(options.server)
    results = {name: play(name, options) for name in options.only or SCENARIOS}
    failed = [name for name, good in results.items() if good is False]
    print(f"{sum(good is True for good in results.values())} scenarios passed, {len(failed)} failed"
          + (f": {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
