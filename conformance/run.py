#!/usr/bin/env python3
"""Runs the suites against a server and prints one line a case and `N passed, N failed` at the end.

    run.py --server PATH                  starts the binary, once for each profile
    run.py --external HOST:PORT           a foreign broker, with the suites that need nothing but MQTT
    run.py --list                         names the cases
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

from harness import CONFORMANCE, DEFAULT, NotHere, Target
from server import Server, StartFailed, profile_of

SUITES = ["v311", "v5", "old_clients", "hostile", "hostile_http", "hostile_xmpp", "clients", "bridges", "push", "web", "rights", "proxies",
          "browser", "xmpp", "webhooks", "docs", "generated"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="path of the postrider binary")
    parser.add_argument("--external", help="HOST:PORT of a foreign broker")
    parser.add_argument("--external-ws", help="HOST:PORT of that broker's WebSocket listener, path /mqtt")
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this suite; may be repeated")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=8, help="cases at a time (8)")
    parser.add_argument("--strict", action="store_true", help="a case that is left out counts as failed")
    parser.add_argument("--trace", action="store_true", help="print the stack of each failure")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args()


def place(words):
    host, _, port = words.rpartition(":")
    return host, int(port)


def load(options):
    names = options.suite or SUITES
    suites = [importlib.import_module(f"suite_{name}").SUITE for name in names]
    return [(suite, [case for case in suite.cases if options.case in case.name]) for suite in suites]


def run_case(case, target, options):
    """(verdict, words, seconds)"""
    begun = time.monotonic()
    try:
        case.run(target)
        verdict, words = "pass", ""
    except NotHere as reason:
        verdict, words = "FAIL" if options.strict else "skip", str(reason)
    except Exception as error:  # Whatever a case raises is the server's failure or the case's: both fail.
        words = f"{type(error).__name__}: {error}"
        verdict = "FAIL"
        if options.trace:
            words += "\n" + traceback.format_exc()
    return verdict, words, time.monotonic() - begun


def run_suite(suite, cases, target, options, tally):
    with ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda case: run_case(case, target, options), cases)
        for case, (verdict, words, seconds) in zip(cases, results):
            tally[verdict] = tally.get(verdict, 0) + 1
            tail = f"  {words}" if words else ""
            print(f"{verdict} {suite.name}/{case.name} ({seconds:.2f} s){tail}", flush=True)


def judge(target, profile, options, tally):
    for suite, cases in load(options):
        fitting = [case for case in cases if case.profile == profile and (target.http or not case.needs_http)]
        if fitting:
            run_suite(suite, fitting, target, options, tally)


def judge_own(options, tally):
    for profile in (CONFORMANCE, DEFAULT):
        wanted = [case for _, cases in load(options) for case in cases if case.profile == profile]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory(prefix="judge-") as folder:
            data_dir = os.path.join(folder, "data")
            server = Server(options.server, data_dir, profile_of(profile), os.path.join(folder, "server.log"))
            try:
                server.start()
                print(f"profile {profile}: {server.places}", flush=True)
                judge(server.target(), profile, options, tally)
                survived(server, profile, tally)
            except StartFailed as error:
                tally["FAIL"] = tally.get("FAIL", 0) + len(wanted)
                print(f"FAIL profile {profile} did not start: {error}")
                print(tail_of(server.log_path))
            finally:
                server.stop()


def survived(server, profile, tally):
    """The last case of each profile: after all that, the process lives and nothing in it panicked."""
    panics = [line for line in tail_of(server.log_path, 10_000_000).splitlines() if "panicked at" in line]
    verdict = "pass" if server.alive() and not panics else "FAIL"
    tally[verdict] = tally.get(verdict, 0) + 1
    words = "" if verdict == "pass" else f"  alive={server.alive()} panics={panics[:3]}"
    print(f"{verdict} server/{profile}_profile_survives_all_suites_without_a_panic{words}", flush=True)


def tail_of(path, size=4000):
    with open(path, "rb") as log:
        log.seek(0, os.SEEK_END)
        log.seek(max(0, log.tell() - size))
        return log.read().decode(errors="replace")


def main():
    options = arguments()
    if options.list:
        for suite, cases in load(options):
            print("\n".join(f"{suite.name}/{case.name} [{case.profile}]" for case in cases))
        return 0
    tally = {}
    if options.external:
        target = Target(place(options.external))
        if options.external_ws:
            target.notes["ws"] = place(options.external_ws)
        judge(target, CONFORMANCE, options, tally)
    elif options.server:
        judge_own(options, tally)
    else:
        sys.exit("give --server PATH or --external HOST:PORT")
    rows = {protocol: count for suite, _ in load(options) for protocol, count in suite.rows.items()}
    if rows:
        print("hostile rows: " + ", ".join(f"{protocol} {count}" for protocol, count in rows.items()) + f", in all {sum(rows.values())}")
    if tally.get("skip"):
        print(f"{tally['skip']} left out")
    failed = tally.get("FAIL", 0)
    print(f"{tally.get('pass', 0)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
