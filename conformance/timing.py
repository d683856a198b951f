#!/usr/bin/env python3
"""Does the time of a refusal tell anything about a secret? Welch's t-test over interleaved refusals, for `soak`.

    timing.py --server PATH [--rounds N]

Each pair of classes must differ by less than 1 ms in the mean, the fastest and slowest tenth left out (A19 allows 5). t is only shown: with enough
rounds any difference becomes significant, and what protects is that secrets are compared by their SHA-256 alone.
"""

import argparse
import http.client
import math
import os
import random
import statistics
import sys
import tempfile
import time

from server import APP_KEY, Server

DIFFERENCE_MAX_SECS = 0.001


def classes(device, other):
    """What is tried: each is refused with the same answer."""
    return {
        "unknown device": f"nobody-at-all:{other.secret}",
        "known device, wrong secret": f"{device.device_id}:{other.secret}",
        "known device, all but the last letter right": f"{device.device_id}:{device.secret[:-1]}{'A' if device.secret[-1] != 'A' else 'B'}",
        "unknown key": "x" * len(APP_KEY),
        "key, all but the last letter right": APP_KEY[:-1] + "~",
    }


def measure(connection, token):
    begun = time.perf_counter()
    connection.request("GET", "/v1/devices", headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 401 or b'"bad_credentials"' not in body:
        raise AssertionError(f"{answer.status} {body[:200]!r}")
    return time.perf_counter() - begun


def trimmed(values):
    values, cut = sorted(values), len(values) // 10
    return values[cut:len(values) - cut]


def welch(a, b):
    spread = statistics.variance(a) / len(a) + statistics.variance(b) / len(b)
    return (statistics.mean(a) - statistics.mean(b)) / math.sqrt(spread)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--rounds", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="timing-") as folder:
        # Nobody is told to come later: the refusals are to be alike.
        settings = {"POSTRIDER_HTTP_AUTH_FAILURES_BURST": "1000000"}
        server = Server(options.server, os.path.join(folder, "data"), None, os.path.join(folder, "log"), variables=settings).start()
        try:
            target = server.target()
            tokens = classes(target.register(), target.register())
            times = {name: [] for name in tokens}
            connection = http.client.HTTPConnection(*target.http, timeout=15)
            for _ in range(options.rounds):
                for name in random.sample(list(tokens), len(tokens)):
                    times[name].append(measure(connection, tokens[name]))
        finally:
            server.stop()
    failed, names = 0, list(tokens)
    for i, first in enumerate(names):
        for second in names[i + 1:]:
            a, b = trimmed(times[first]), trimmed(times[second])
            difference = statistics.mean(a) - statistics.mean(b)
            failed += abs(difference) >= DIFFERENCE_MAX_SECS
            print(f"{'pass' if abs(difference) < DIFFERENCE_MAX_SECS else 'FAIL'} {first} / {second}: {difference * 1e6:+.1f} µs, t = {welch(a, b):+.1f}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
