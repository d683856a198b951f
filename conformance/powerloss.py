"""Plays a power cut on a data folder: what was synced stays, of the rest a part by chance.

`powerloss.c`, preloaded into the server, writes down what it does to the folder; after a SIGKILL `cut` computes from
that what a disk could hold had the power failed at that moment, and makes the folder so. The rules are those of
the store's own `FaultyFiles`: a file's content lasts by `fsync` or `fdatasync` of the file, a name by `fsync` of the
folder; what was not synced is there wholly, not at all, up to some point, or sector by sector.
"""

import os
import shutil
import struct
import subprocess

HEAD = struct.Struct("<cIQQI")
SECTOR = 512
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "powerloss.c")


def build(folder):
    """Compiles the library; its path."""
    made = os.path.join(folder, "powerloss.so")
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", made, SOURCE, "-ldl"],
                   check=True)
    return made


class Content:
    """One file: what lasts of it, and what was done to it since."""

    def __init__(self, lasting=b""):
        self.lasting = bytearray(lasting)
        self.changes = []
        self.synced = 0

    def sync(self, upto, size):
        """All changes before `upto` last now, and the length: blocks reserved beyond read as zeros."""
        for change in self.changes[self.synced:upto]:
            apply(self.lasting, *change)
        self.synced = max(self.synced, upto)
        if size > len(self.lasting):
            self.lasting.extend(bytes(size - len(self.lasting)))

    def after_cut(self, chance):
        """(content, bytes lost)"""
        content, rest = bytearray(self.lasting), self.changes[self.synced:]
        how = chance.choice(["none", "all", "prefix", "sectors"]) if chance else "none"
        kept = {"none": 0, "all": len(rest)}[how] if how in ("none", "all") else chance.randint(0, len(rest))
        for change in rest[:kept] if how != "sectors" else []:
            apply(content, *change)
        lost = sum(len(data) for _, data in rest[kept:] if data is not None)
        if how == "sectors":
            lost = sum(apply_torn(content, at, data, chance) for at, data in rest)
        elif rest[kept:] and how == "prefix":
            # The write that the cut met.
            lost -= len(rest[kept][1] or b"") - apply_torn(content, *rest[kept], chance)
        return content, lost


def apply(content, at, data):
    """A write at a place; with `data` None, cutting or extending to a length."""
    end = at if data is None else at + len(data)
    if end > len(content):
        content.extend(bytes(end - len(content)))
    if data is None:
        del content[at:]
    else:
        content[at:end] = data


def apply_torn(content, at, data, chance):
    """A change of which each sector is there by chance. How many bytes are not."""
    if data is None:
        if chance.random() < 0.5:
            apply(content, at, None)
        return 0
    lost, start = 0, 0
    while start < len(data):
        # Sectors are the disk's, not the write's.
        end = min(len(data), start + SECTOR - (at + start) % SECTOR)
        if chance.random() < 0.5:
            apply(content, at + start, data[start:end])
        else:
            lost += end - start
        start = end
    return lost


class Disk:
    """The folder as the records of one life leave it."""

    def __init__(self, names):
        self.lasting = {name: Content(data) for name, data in names.items()}
        self.names = dict(self.lasting)
        self.unsynced_names, self.names_synced = [], 0
        self.files, self.begun = {}, {}
        self.syncs = 0

    def play(self, log):
        at = 0
        while at + HEAD.size <= len(log):
            kind, file, a, b, size = HEAD.unpack_from(log, at)
            at += HEAD.size
            self.step(kind.decode(), file, a, b, log[at:at + size])
            at += size

    def step(self, kind, file, a, b, data):
        if kind in "co":
            self.open(file, data.decode())
        elif kind == "w":
            self.files[file].changes.append((a, data))
        elif kind == "l":
            self.files[file].changes.append((a, None))
        elif kind == "b":
            self.begun[a] = (len(self.files[file].changes), b)
        elif kind == "e":
            self.files[file].sync(*self.begun.pop(a))
            self.syncs += 1
        elif kind == "B":
            self.begun[a] = len(self.unsynced_names)
        elif kind == "E":
            self.sync_names(self.begun.pop(a))
        elif kind in "ru":
            self.rename(*(part.decode() for part in data.split(b"\0")))
        else:
            raise RuntimeError(f"the store wrote in a way that powerloss.c does not follow: {kind!r}")

    def open(self, file, name):
        if name not in self.names:
            self.change_names({name: Content()})
        self.files[file] = self.names[name]

    def rename(self, name, to=None):
        """`to` None: removed."""
        self.change_names({name: None} if to is None else {name: None, to: self.names[name]})

    def change_names(self, change):
        enact(self.names, change)
        self.unsynced_names.append(change)

    def sync_names(self, upto):
        for change in self.unsynced_names[self.names_synced:upto]:
            enact(self.lasting, change)
        self.names_synced = max(self.names_synced, upto)

    def cut(self, chance):
        """({name: content}, bytes lost). Unsynced names come in their order: file systems keep a journal of them.

        Without chance nothing is left but what was synced.
        """
        names, rest = dict(self.lasting), self.unsynced_names[self.names_synced:]
        for change in rest[:chance.randint(0, len(rest)) if chance else 0]:
            enact(names, change)
        found = {name: content.after_cut(chance) for name, content in names.items()}
        return {name: content for name, (content, _) in found.items()}, sum(lost for _, lost in found.values())


def enact(names, change):
    for name, content in change.items():
        names.pop(name, None)
        if content is not None:
            names[name] = content


class PowerLoss:
    """Of one data folder over the server's lives. Call `cut` after each kill and before each start."""

    def __init__(self, library, data_dir, log):
        self.data_dir, self.log = data_dir, log
        self.variables = {"LD_PRELOAD": library, "POWERLOSS_DIR": data_dir, "POWERLOSS_LOG": log}
        self.found = {}
        self.bytes_lost = self.syncs = 0

    def cut(self, chance=None):
        disk = Disk(self.found)
        with open(self.log, "rb") as log:
            disk.play(log.read())
        self.found, lost = disk.cut(chance)
        self.bytes_lost += lost
        self.syncs += disk.syncs
        self.write_folder()
        os.remove(self.log)

    def write_folder(self):
        shutil.rmtree(self.data_dir)
        os.mkdir(self.data_dir, 0o700)
        for name, content in self.found.items():
            fd = os.open(os.path.join(self.data_dir, name), os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
