"""What a server under measurement takes: its memory and its processor time, by all of its processes."""

import os
import re
import socket
import time


def pss(pid):
    """Proportional set size in bytes: user memory, what is shared divided by those who share it."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return int(re.search(r"^Pss:\s+(\d+) kB", rollup.read(), re.M).group(1)) * 1024


def tree(pid):
    """The process and its children, all generations."""
    found = [pid]
    for one in found:
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children") as children:
                    found += [int(child) for child in children.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def total(of, pid):
    """The sum over its processes; one may end meanwhile."""
    found = 0
    for one in tree(pid):
        try:
            found += of(one)
        except (FileNotFoundError, ProcessLookupError, AttributeError):
            continue
    return found


def memory(pid):
    return total(pss, pid)


def cpu_secs(pid):
    """User and system time so far."""
    def of(one):
        with open(f"/proc/{one}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total(of, pid)


def settled(pid, moves=64 * 1024):
    """The memory once it has stopped moving."""
    last = memory(pid)
    for _ in range(50):
        time.sleep(0.3)
        now = memory(pid)
        if abs(now - last) < moves:
            return now
        last = now
    return last


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_port(port, process=None, patience=60):
    """There is no event for "it listens" that all servers share; asking is the only way."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process is not None and process.poll() is not None:
                raise RuntimeError("the server ended") from None
            time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port} after {patience} s")
