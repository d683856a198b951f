#!/usr/bin/env python3
"""Measures servers side by side with `bench/loadgen` and writes one Markdown report.

Each measurement gets a fresh server process on core 0 and the generator on core 1; servers take turns within a
round, so that a busy minute of the machine hits all of them; three rounds; medians, and ratios to `raw` (the
kernel's own limit as a server) of the same round. Nothing here judges: it only measures and prints.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from process import free_port, wait_port
from rows import ROWS, quick
from servers import KNOWN, Options, RAW_NAME

HERE = os.path.dirname(os.path.abspath(__file__))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loadgen", default=os.path.join(HERE, "loadgen/target/release/loadgen"))
    parser.add_argument("--postrider", default=os.path.join(HERE, "../target/release/postrider"))
    parser.add_argument("--profile", default=os.path.join(HERE, "../profiles/bench.toml"))
    parser.add_argument("--mosquitto", default="mosquitto", help="path of the binary")
    parser.add_argument("--rumqttd", help="path of the binary; without it rumqttd is not measured")
    parser.add_argument("--before", help="path of an earlier build of postrider, to be measured beside this one")
    parser.add_argument("--before-profile", help="its settings, where it does not know those of --profile")
    parser.add_argument("--servers", help="names with commas, out of " + ", ".join(KNOWN))
    parser.add_argument("--rows", help="names with commas, out of " + ", ".join(row.name for row in ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small numbers: tests this driver, measures nothing")
    parser.add_argument("--server-core", default="0")
    parser.add_argument("--client-core", default="1")
    parser.add_argument("--timeout", type=int, default=240, help="seconds for one run of the generator")
    parser.add_argument("--out", required=True, help="the Markdown file")
    parser.add_argument("--raw-out", help="every JSON line of the generator, for a closer look")
    return parser.parse_args()


def chosen_servers(options):
    if options.servers:
        names = options.servers.split(",")
    else:
        unwanted = {name for name in ("rumqttd", "before") if not getattr(options, name)}
        names = [name for name in KNOWN if name not in unwanted]
    if RAW_NAME not in names:
        names.insert(0, RAW_NAME)  # Without it there are no ratios.
    paths = Options(options.loadgen, options.postrider, options.profile, options.mosquitto, options.rumqttd,
                    options.before, options.before_profile or options.profile)
    return [KNOWN[name](paths) for name in names]


def chosen_rows(options):
    wanted = options.rows.split(",") if options.rows else [row.name for row in ROWS]
    picked = [row for row in ROWS if row.name in wanted]
    return [quick(row) for row in picked] if options.quick else picked


# --- one measurement ----------------------------------------------------------------------------------

class Running:
    """A server process under measurement. The pid file is how a restart in mid-run is found again."""

    def __init__(self, server, folder, row, core):
        self.port, self.folder = free_port(), folder
        self.data = os.path.join(folder, "data")
        os.makedirs(self.data)
        self.pidfile = os.path.join(folder, "pid")
        self.log = os.path.join(folder, "server.log")
        words, self.environment = server.launch(self.port, self.data, folder, durable=row.offline)
        self.command = ["taskset", "-c", core, *words]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            env={**os.environ, **self.environment})
        with open(self.pidfile, "w") as file:
            file.write(str(self.process.pid))
        wait_port(self.port)

    def restart_script(self):
        """Ends the server without warning and starts it again on the same data, for the generator to run."""
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment.items())
        pidfile, log = shlex.quote(self.pidfile), shlex.quote(self.log)
        probe = f"import sys; sys.path.insert(0, {HERE!r}); import process; process.wait_port({self.port})"
        text = (f"kill -9 $(cat {pidfile})\n"
                f"while kill -0 $(cat {pidfile}) 2>/dev/null && ! grep -q ') Z ' /proc/$(cat {pidfile})/stat; do sleep 0.01; done\n"
                f"env {variables} {shlex.join(self.command)} >>{log} 2>&1 </dev/null &\n"
                f"echo $! >{pidfile}\n"
                f"{shlex.quote(sys.executable)} -c {shlex.quote(probe)}\n")
        path = os.path.join(self.folder, "restart.sh")
        with open(path, "w") as file:
            file.write(text)
        return f"sh {shlex.quote(path)}"

    def stop(self):
        with open(self.pidfile) as file:
            pid = int(file.read())
        for number in {pid, self.process.pid}:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


def measure(server, row, options):
    """The generator's JSON, or {"error": …}."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            running = Running(server, folder, row, options.server_core)
        except (RuntimeError, OSError) as error:
            return {"error": f"did not start: {error}"}
        try:
            return generate(server, row, running, options)
        finally:
            running.stop()


def generate(server, row, running, options):
    command = ["taskset", "-c", options.client_core, options.loadgen, row.mode, *row.options,
               "--port", str(running.port), "--label", server.name, "--server-pidfile", running.pidfile]
    if row.offline:
        command += ["--server-dir", running.data, "--between", running.restart_script()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {options.timeout} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no answer"])[-1][:200]}
    return with_derived(json.loads(lines[-1]))


def with_derived(found):
    """Figures that the generator gives in parts."""
    if found.get("pubacks") and "disk_stored" in found:
        found["disk_bytes_each"] = (found["disk_stored"] - found["disk_before"]) / found["pubacks"]
    return found


def measure_all(servers, rows, options):
    """{(row, server): [result of each round]}"""
    results = {(row.name, server.name): [] for row in rows for server in servers}
    for number in range(options.rounds):
        for row in rows:
            for server in servers:
                if row.offline and not server.keeps_sessions:
                    continue
                begun = time.monotonic()
                found = measure(server, row, options)
                results[row.name, server.name].append(found)
                say = found.get("error") or "exact: " + found.get("exact", found.get("complete", "?"))
                print(f"round {number + 1} {row.name} {server.name}: {say} ({time.monotonic() - begun:.1f} s)",
                      flush=True)
                if options.raw_out:
                    with open(options.raw_out, "a") as file:
                        file.write(json.dumps({"round": number + 1, "row": row.name, "server": server.name, **found}) + "\n")
    return results


# --- the report ---------------------------------------------------------------------------------------

def readable(value, digits):
    return f"{value:,.{digits}f}"


def cell(values, digits):
    """Median, and the range when there is more than one run."""
    if not values:
        return "–"
    middle = readable(statistics.median(values), digits)
    if len(values) == 1:
        return middle
    return f"{middle} [{readable(min(values), digits)}–{readable(max(values), digits)}]"


def ratio(own, raw, figure):
    """Median of the rounds' ratios. Where raw's figure is nearly nothing, a ratio says nothing."""
    pairs = [(a.get(figure.key), b.get(figure.key)) for a, b in zip(own, raw)]
    found = [a / b for a, b in pairs if a is not None and b]
    return f"{statistics.median(found):.2f}" if found and figure.to_raw else "–"


def table(row, servers, results):
    raw = results.get((row.name, RAW_NAME), [])
    with_ratio = not row.offline
    head = ["server"]
    for figure in row.figures:
        head += [figure.label] + (["× raw"] if with_ratio and figure.to_raw else [])
    lines = [f"## {row.title}", "", "| " + " | ".join(head + ["exact"]) + " |", "|" + " --- |" * (len(head) + 1)]
    for server in servers:
        own = results[row.name, server.name]
        if not own:
            continue
        cells = [server.name]
        for figure in row.figures:
            cells.append(cell([r[figure.key] for r in own if r.get(figure.key) is not None], figure.digits))
            if with_ratio and figure.to_raw:
                cells.append(ratio(own, raw, figure))
        lines.append("| " + " | ".join(cells + [exactness(own)]) + " |")
    return lines + [""]


def exactness(own):
    """How many of the runs delivered everything once and in order, and what went wrong in the others."""
    good = sum(r.get("exact", r.get("complete")) == "yes" for r in own)
    errors = sorted({r["error"] for r in own if "error" in r})
    lost = [r["lost"] for r in own if r.get("lost")]
    words = f"{good}/{len(own)}" + (f", lost {max(lost):,}" if lost else "")
    return words + (": " + "; ".join(errors) if errors else "")


def cpu_model():
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def memory_gib():
    with open("/proc/meminfo") as file:
        return int(file.readline().split()[1]) / 1024 ** 2


def load_average():
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def report(servers, rows, results, options, begun, load_before):
    now = datetime.datetime.now(datetime.timezone.utc)
    kind = "**Quick mode: small numbers, which test the driver and measure nothing.**" if options.quick else ""
    lines = [
        "# Benchmark", "", kind, "" if kind else None,
        f"- Machine: {cpu_model()}, {os.cpu_count()} CPUs, {memory_gib():.0f} GiB",
        f"- Kernel: {platform.system()} {platform.release()}",
        f"- Date: {now:%Y-%m-%d %H:%M} UTC, {(time.time() - begun) / 60:.0f} minutes, {options.rounds} rounds",
        f"- Load average: {load_before} before, {load_average()} after",
        f"- Server on core {options.server_core}, generator on core {options.client_core}, loopback",
        *[f"- {server.name}: {server.version()}; {server.settings}" for server in servers],
        "", "Median of the rounds, range in brackets; `× raw` is the median of the ratios to raw in the same round.",
        "`exact` counts the runs in which every message came once, whole and in order.", "",
    ]
    for row in rows:
        lines += table(row, servers, results)
    return "\n".join(line for line in lines if line is not None)


def main():
    options = arguments()
    servers, rows = chosen_servers(options), chosen_rows(options)
    for server in servers:
        if not server.installed():
            sys.exit(f"{server.name}: {server.binary} is not there; see bench/README.md")
    begun, load_before = time.time(), load_average()
    results = measure_all(servers, rows, options)
    with open(options.out, "w") as file:
        file.write(report(servers, rows, results, options, begun, load_before))
    print(f"written: {options.out}")
    return 1 if any("error" in found for many in results.values() for found in many) else 0


if __name__ == "__main__":
    sys.exit(main())
