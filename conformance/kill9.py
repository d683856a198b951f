#!/usr/bin/env python3
"""Kills the server with SIGKILL again and again under load; nothing that was accepted may be lost.

    kill9.py --server PATH                     pushes over HTTP to registered MQTT devices
    kill9.py --server PATH --mode mqtt         anonymous MQTT publishers, QoS 1, to kept sessions
    kill9.py --server PATH --mode web          pushes to devices on WebSockets, event streams and polls
    kill9.py --server PATH --mode xmpp         pushes to XMPP devices over STARTTLS, with stream management and without

Prints one line, `balance accepted=… delivered=… expired=… lost=0 phantom=0 …`, and exits with 1 when one of those
after `expired` is not 0. `abuse.py` does worse.
"""

import argparse
import os
import random
import sys
import tempfile
import time

from ledger import words
from load import OPEN_TO_ALL, Load, Size, fresh_seed, log_of
from server import Server, StartFailed


def crash_loop(load, cycles, chance):
    slowest = 0.0
    for _ in range(cycles):
        time.sleep(chance.uniform(0.2, 3.0))
        load.down()
        load.server.kill()
        begun = time.monotonic()
        load.server.start()
        slowest = max(slowest, time.monotonic() - begun)
        load.back()
    return slowest


def size_of(options):
    of_mode = {"http": ("devices", "push_publishers"), "mqtt": ("subscribers", "mqtt_publishers")}
    of_mode["web"] = of_mode["xmpp"] = of_mode["http"]
    by_mode = {"web": ("websocket", "sse", "poll"), "xmpp": ("xmpp", "xmpp_managed")}
    roads = by_mode.get(options.mode, ("mqtt",))
    receivers, publishers = of_mode[options.mode]
    none = dict(devices=0, subscribers=0, push_publishers=0, mqtt_publishers=0, sleepers=0)
    return Size(**{**none, receivers: options.devices, publishers: options.publishers}, pause=options.pause, roads=roads)


def play(options, folder):
    settings = {"mqtt": OPEN_TO_ALL, "xmpp": {"tls.self_signed": "true", "limits.connects_per_minute_max": 0}}.get(options.mode, {})
    server = Server(options.server, os.path.join(folder, "data"), None, log_of(folder), settings=settings)
    try:
        with Load(server, size_of(options), options.seed, options.patience) as load:
            slowest = crash_loop(load, options.cycles, random.Random(options.seed))
            return load, load.settle(), slowest
    except StartFailed as error:
        sys.exit(f"the server did not come back: {error}\n{server.last_words()}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--mode", choices=["http", "mqtt", "web", "xmpp"], default="http")
    parser.add_argument("--devices", type=int, default=40)
    parser.add_argument("--publishers", type=int, default=8)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two messages of a publisher")
    parser.add_argument("--patience", type=float, default=20, help="seconds without progress that end the drain")
    parser.add_argument("--seed", type=int, default=None)
    return parser.parse_args()


def main():
    options = arguments()
    options.seed = fresh_seed(options.seed)
    print(f"kill9 mode={options.mode} seed={options.seed} cycles={options.cycles} devices={options.devices} "
          f"publishers={options.publishers}", flush=True)
    with tempfile.TemporaryDirectory(prefix="kill9-") as folder:
        load, balance, slowest = play(options, folder)
    print(f"crashes={options.cycles} ready_max={slowest:.2f}s repeats={load.repeats()} "
          f"sessions_lost={load.run.sessions_lost}")
    print(words(balance), flush=True)
    return 0 if load.is_good(balance) else 1


if __name__ == "__main__":
    sys.exit(main())
