"""Scenarios that mistreat the machine below the server: its power, its disk, its clock."""

import datetime
import glob
import os
import subprocess
import time
from contextlib import contextmanager, suppress

from harness import NotHere, eventually
from load import OPEN_TO_ALL, HttpPublisher, Load, Size, start_and_wait
from mqtt_wire import Client
from powerloss import PowerLoss, build

MIB = 1024 * 1024
SMALL_STORE = {"store.segment_bytes": MIB, "store.checkpoint_bytes": 2 * MIB, "store.reserve_bytes": MIB}


# --- power --------------------------------------------------------------------------------------------

def power(stage):
    """The power fails: after each kill only what was synced is found, and of the rest a part by chance."""
    unsynced = cost_without_sync(stage)
    # The judge is judged: where the server does not sync, a cut has to cost what it had accepted.
    stage.require(unsynced > 0, "a power cut costs nothing although nothing was synced: the cuts do not cut")
    server, plug = plugged_server(stage, "synced")
    with Load(server, Size(), stage.seed) as load:
        cycles = stage.times(12)
        for _ in range(cycles):
            time.sleep(stage.chance.uniform(0.1, 1.5))
            load.down()
            server.kill()
            plug.cut(stage.chance)
            server.start()
            load.back()
        stage.require(plug.bytes_lost > 0, "no cut met an unsynced write")
        return stage.end(load, cuts=cycles, syncs=plug.syncs, unsynced_bytes_lost=plug.bytes_lost,
                         lost_if_relaxed=unsynced)


def plugged_server(stage, sync):
    server = stage.server({**OPEN_TO_ALL, **SMALL_STORE, "store.sync": sync})
    plug = PowerLoss(build(stage.folder), server.data_dir, server.data_dir + ".log")
    server.variables.update(plug.variables)
    return server, plug


def cost_without_sync(stage):
    """How many of a hundred accepted messages a power cut takes from a server that is told not to sync."""
    server, plug = plugged_server(stage, "relaxed")
    try:
        target = server.start().target()
        device = target.register()
        pushed = [target.push({"device": device.device_id})["message_id"] for _ in range(100)]
        server.kill()
        plug.cut()
        target = server.start().target()
        return sum(target.delivery(message_id, device) is None for message_id in pushed)
    finally:
        server.stop()


# --- disk ---------------------------------------------------------------------------------------------

# (bytes left free, killed and started meanwhile): below the limit that is kept free; not one block left.
FILLINGS = [(4 * MIB, False), (0, False), (0, True)]


def disk(stage):
    """The disk runs full under load: refused with `storage_low`, drained all the same, taken again when there is space."""
    facts = {}
    with small_disk(stage, 64 * MIB) as data_dir:
        settings = {**OPEN_TO_ALL, **SMALL_STORE, "store.min_free_bytes": 8 * MIB}
        server = stage.server(settings, data_dir=data_dir)
        with Load(server, Size(), stage.seed) as load:
            for leave, restarts in FILLINGS * stage.times(1):
                time.sleep(stage.chance.uniform(1, 2))
                fill_once(stage, load, leave)
                if restarts:
                    restart_on_full_disk(load)
                facts["ready_again"] = f"{take_again(load):.2f}s"
            refused = sum(load.run.refusals.values())
            stage.require(set(load.run.refusals) == {(503, "storage_low")}, f"refusals: {dict(load.run.refusals)}")
            return stage.end(load, refused=refused, **facts)


@contextmanager
def small_disk(stage, size):
    """A tmpfs of its own. Only root may mount one; elsewhere the scenario is left out, and said so."""
    place = os.path.join(stage.folder, "disk")
    os.mkdir(place)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", place]
    mounted = subprocess.run(words, capture_output=True, text=True)
    if mounted.returncode != 0:
        raise NotHere(f"a tmpfs of a fixed size could not be mounted: {mounted.stderr.strip()}")
    try:
        yield os.path.join(place, "data")
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def filler(load):
    return os.path.join(os.path.dirname(load.server.data_dir), "filler")


def fill(path, leave):
    """Takes all free space but `leave` bytes."""
    with open(path, "ab") as file:
        while True:
            stat = os.statvfs(os.path.dirname(path))
            more = stat.f_bavail * stat.f_frsize - leave
            if more <= 0:
                return
            # The server may have taken the last of it meanwhile: then look again.
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, more)


def fill_once(stage, load, leave):
    """Devices that were away come to the full disk, and everything that waits for them is drained."""
    run = load.run
    away = load.registered_devices(3)
    for device in away:
        device.signed_in().disconnect()
    # A publisher of its own for each round: numbers show order only within one.
    sender = HttpPublisher(run, 300 + run.epoch + len(run.ledger.seen), [d.device for d in away], stage.seed, 0)
    waiting = [sender.next_intent(device.device) for device in away for _ in range(40)]
    for intent in waiting:
        sender.send_until_accepted(intent)
    before = sum(run.refusals.values())
    fill(filler(load), leave)
    eventually(lambda: sum(run.refusals.values()) > before + 20, "nothing is refused on a full disk", timeout=30)
    start_and_wait(away)
    eventually(lambda: not set(waiting) & set(run.ledger.missing()), "devices do not drain on a full disk", timeout=30)
    stage.require(load.server.alive(), "the server ended on a full disk")


def restart_on_full_disk(load):
    """A crash does not wait until somebody has tidied up. What is left of the reserve has to do."""
    load.down()
    load.server.kill()
    load.server.start()
    load.back()


def take_again(load):
    """Frees the space; how long it took until a message was accepted."""
    os.remove(filler(load))
    begun, before = time.monotonic(), len(load.run.ledger.accepted)
    eventually(lambda: len(load.run.ledger.accepted) > before + 20, "nothing is accepted on a free disk", timeout=30)
    return time.monotonic() - begun


# --- clock --------------------------------------------------------------------------------------------

HOUR, DAY = 3600, 86400
# (while it runs, while it is down): the wall clock against the real one. Each kind of jump forward and back is there.
JUMPS = [(HOUR, 400 * DAY), (-HOUR, -400 * DAY), (400 * DAY, -HOUR), (-400 * DAY, HOUR), (0, 0)]


def clock(stage):
    """The wall clock jumps while the server runs and while it is down; no message may notice."""
    hand = os.path.join(stage.folder, "faketime")
    server = stage.server({**OPEN_TO_ALL, "log.level": "info,postrider::gateway=debug"})
    server.variables.update(LD_PRELOAD=faketime_library(), FAKETIME_TIMESTAMP_FILE=hand, FAKETIME_NO_CACHE="1",
                            FAKETIME_DONT_FAKE_MONOTONIC="1")
    set_clock(hand, 0)
    with Load(server, Size(), stage.seed) as load:
        for running, down in JUMPS * stage.times(1):
            time.sleep(stage.chance.uniform(0.5, 1.5))
            set_clock(hand, running)
            see_clock(load, running)
            time.sleep(stage.chance.uniform(0.5, 1.5))
            load.down()
            server.kill() if stage.chance.random() < 0.5 else server.stop()
            set_clock(hand, down)
            server.start()
            load.back()
            see_clock(load, down)
        answer = stage.end(load, jumps=2 * len(JUMPS) * stage.times(1))
    backward = ids_backward(load.run.ledger)
    stage.require(backward == 0, f"{backward} ids are older than that of the message before")
    return answer


def faketime_library():
    found = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not found:
        raise NotHere("libfaketime is not installed (Debian: faketime)")
    return found[0]


def set_clock(hand, offset_secs):
    with open(hand + ".new", "w") as file:
        file.write(f"{offset_secs:+d}\n")
    os.replace(hand + ".new", hand)


def see_clock(load, offset_secs):
    """A sign-in that is refused is logged, with the wall clock's time: the jump has to be there."""
    device = load.server.target().register().device_id
    client = Client(load.server.places["mqtt"], client_id=device)
    client.connect(expect_code=None, user=device, password="wrong")
    client.drop()

    def seen():
        with open(load.server.log_path, errors="replace") as log:
            stamp = [line for line in log if "a sign-in was refused" in line and device in line][-1:]
        when = [datetime.datetime.fromisoformat(line.split()[0]).timestamp() for line in stamp]
        return when and abs(when[0] - time.time() - offset_secs) < 60
    eventually(seen, f"the server does not see the wall clock moved by {offset_secs} s", timeout=20)


def ids_backward(ledger):
    """The first ten characters of an id are its time. A publisher's next message is accepted after the one before."""
    last, backward = {}, 0
    for intent, message_id in ledger.accepted.items():
        if message_id:
            backward += message_id[:10] < last.get(intent[0], "")
            last[intent[0]] = message_id[:10]
    return backward
