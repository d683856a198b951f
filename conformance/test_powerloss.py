"""The power cut is judged first: `python3 -m unittest test_powerloss`."""

import os
import random
import subprocess
import sys
import tempfile
import unittest

from powerloss import Disk, PowerLoss, build

SEEDS = range(60)


def outcomes(play):
    """All that a disk may hold after these steps, over many seeds."""
    found = set()
    for seed in SEEDS:
        disk = Disk({"old": b"old"})
        for step in play:
            disk.step(*step)
        names, _ = disk.cut(random.Random(seed))
        found.add(tuple(sorted((name, bytes(content)) for name, content in names.items())))
    return found


CREATE = ("c", 1, 0, 0, b"new")
WRITE = ("w", 1, 0, 0, b"x" * 1024)
SYNC = [("b", 1, 7, 1024, b""), ("e", 1, 7, 0, b"")]
SYNC_NAMES = [("B", 2, 8, 0, b""), ("E", 2, 8, 0, b"")]
OLD = ("old", b"old")


class DiskTest(unittest.TestCase):
    def test_what_was_synced_is_there_whatever_the_seed(self):
        self.assertEqual(outcomes([CREATE, WRITE, *SYNC, *SYNC_NAMES]), {(("new", b"x" * 1024), OLD)})

    def test_a_name_that_was_not_synced_may_be_gone(self):
        self.assertEqual(outcomes([CREATE, WRITE, *SYNC]), {(OLD,), (("new", b"x" * 1024), OLD)})

    def test_unsynced_bytes_come_whole_or_torn_or_not(self):
        contents = {dict(names)["new"] for names in outcomes([CREATE, *SYNC_NAMES, WRITE])}
        self.assertLessEqual({b"", b"x" * 1024, b"x" * 512, bytes(512) + b"x" * 512}, contents)

    def test_a_write_after_the_begin_of_a_sync_is_not_covered_by_it(self):
        play = [CREATE, *SYNC_NAMES, ("b", 1, 7, 0, b""), WRITE, ("e", 1, 7, 0, b"")]
        self.assertIn((("new", b""), OLD), outcomes(play))

    def test_a_sync_that_did_not_end_covers_nothing(self):
        self.assertIn((("new", b""), OLD), outcomes([CREATE, *SYNC_NAMES, WRITE, SYNC[0]]))

    def test_reserved_blocks_read_as_zeros(self):
        play = [CREATE, *SYNC_NAMES, ("b", 1, 7, 4, b""), ("e", 1, 7, 0, b"")]
        self.assertEqual(outcomes(play), {(("new", bytes(4)), OLD)})

    def test_a_rename_replaces_once_the_folder_is_synced(self):
        play = [CREATE, WRITE, *SYNC, ("r", 0, 0, 0, b"new\0old")]
        self.assertIn((OLD,), outcomes(play))
        self.assertEqual(outcomes([*play, *SYNC_NAMES]), {(("old", b"x" * 1024),)})


SCRIPT = """
import os, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
file = os.open(sys.argv[1] + "/kept", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
os.pwrite(file, b"kept", 0)
os.fdatasync(file)
os.fsync(folder)
os.pwrite(file, b"lost", 4)
os.rename(sys.argv[1] + "/kept", sys.argv[1] + "/renamed")
os.kill(os.getpid(), 9)
"""


class LibraryTest(unittest.TestCase):
    """With a process of its own; Python calls the same functions of the C library as the server does."""

    def test_a_killed_process_leaves_what_it_synced(self):
        with tempfile.TemporaryDirectory() as folder:
            library, seen = build(folder), set()
            for seed in SEEDS:
                data = os.path.join(folder, f"data{seed}")
                os.mkdir(data)
                power = PowerLoss(library, data, os.path.join(folder, "log"))
                subprocess.run([sys.executable, "-c", SCRIPT, data], env=dict(os.environ, **power.variables))
                power.cut(random.Random(seed))
                (name,) = os.listdir(data)
                with open(os.path.join(data, name), "rb") as file:
                    seen.add((name, file.read()))
            self.assertEqual({name for name, _ in seen}, {"kept", "renamed"})
            self.assertEqual({content for _, content in seen}, {b"kept", b"keptlost"})


if __name__ == "__main__":
    unittest.main()
