"""Scenarios that mistreat the process: killed while it recovers or makes a checkpoint, paused, stopped."""

import json
import os
import signal
import subprocess
import time

from load import OPEN_TO_ALL, Load, Size
from mqtt_wire import DISCONNECT, V5, Client

# So small that checkpoints are made all the time.
SMALL_FILES = {"store.segment_bytes": 65_536, "store.checkpoint_bytes": 65_536, "store.reserve_bytes": 65_536}
SERVER_SHUTTING_DOWN = 0x8B


def recovery(stage):
    """kill -9 before the server is back, several times in a row, at any point of its start."""
    with Load(stage.server(OPEN_TO_ALL), Size(), stage.seed) as load:
        # Nothing to recover is soon recovered.
        time.sleep(2)
        ready_secs, hits, kills = 0.1, 0, 0
        for _ in range(stage.times(8)):
            time.sleep(stage.chance.uniform(0.2, 1.0))
            load.down()
            load.server.kill()
            for _ in range(stage.chance.randint(2, 5)):
                load.server.spawn()
                hits += not load.server.is_ready(within=stage.chance.uniform(0, ready_secs))
                load.server.kill()
                kills += 1
            begun = time.monotonic()
            load.server.start()
            ready_secs = time.monotonic() - begun
            load.back()
        stage.require(hits * 2 > kills, f"only {hits} of {kills} kills came before the server was ready")
        return stage.end(load, kills=kills, before_ready=hits, ready=f"{ready_secs:.2f}s")


def checkpoint(stage):
    """kill -9 while a checkpoint is being made: every second one when its unfinished file has been seen."""
    with Load(stage.server({**OPEN_TO_ALL, **SMALL_FILES}), Size(), stage.seed) as load:
        unfinished, cycles = 0, stage.times(16)
        for cycle in range(cycles):
            time.sleep(stage.chance.uniform(0.1, 0.6))
            if cycle % 2:
                wait_for_unfinished(load.server.data_dir)
            load.down()
            load.server.kill()
            unfinished += has_unfinished(load.server.data_dir)
            load.server.start()
            load.back()
        stage.require(unfinished > 0, "no kill left an unfinished checkpoint")
        return stage.end(load, kills=cycles, unfinished=unfinished)


def has_unfinished(data_dir):
    return any(name.startswith("checkpoint-") and name.endswith(".tmp") for name in os.listdir(data_dir))


def wait_for_unfinished(data_dir, patience=5):
    """Comes back at once when there is one; a checkpoint takes a few milliseconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not has_unfinished(data_dir):
        time.sleep(0.0005)


def pause(stage):
    """SIGSTOP in the middle of the load, shorter and longer than the clients' patience of ten seconds."""
    with Load(stage.server(OPEN_TO_ALL), Size(), stage.seed) as load:
        pauses = [0.1, 12.0, 0.7, 3.0] * stage.times(1)
        if stage.times(1) > 1:
            pauses.append(60.0)
        for secs in pauses:
            time.sleep(stage.chance.uniform(0.3, 1.0))
            load.server.process.send_signal(signal.SIGSTOP)
            time.sleep(secs)
            load.server.process.send_signal(signal.SIGCONT)
        time.sleep(1)
        return stage.end(load, pauses=len(pauses), paused=f"{sum(pauses):.1f}s")


def stop(stage):
    """SIGTERM under load: in time, with a goodbye, and with nothing left for the next start to mend."""
    with Load(stage.server(OPEN_TO_ALL), Size(), stage.seed) as load:
        slowest, goodbyes, cycles = 0.0, 0, stage.times(10)
        for _ in range(cycles):
            time.sleep(stage.chance.uniform(0.2, 0.8))
            watcher = Client(load.server.places["mqtt"], V5)
            watcher.connect()
            begun = time.monotonic()
            # The load goes on until the server is gone.
            load.server.process.terminate()
            farewell = [came for came in watcher.wait_closed() if came.kind == DISCONNECT]
            goodbyes += [came.reason for came in farewell] == [SERVER_SHUTTING_DOWN]
            # `http.stop_secs` for requests under way, the same again for all else.
            code = load.server.process.wait(timeout=10)
            load.down()
            slowest = max(slowest, time.monotonic() - begun)
            stage.require(code == 0, f"the stopped server ended with {code}")
            stage.require(was_closed_in_order(load.server), "the data folder was not closed in order")
            load.server.start()
            load.back()
        stage.require(goodbyes == cycles, f"only {goodbyes} of {cycles} goodbyes")
        return stage.end(load, stops=cycles, slowest=f"{slowest:.2f}s", goodbyes=goodbyes)


def was_closed_in_order(server):
    words = [server.binary, "--json", "store", "check", server.data_dir]
    report = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return report["good"] and report["closed_in_order"]
