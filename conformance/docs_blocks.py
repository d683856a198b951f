"""What `suite_docs.py` reads from a document: its fenced blocks, and the commands that stand within a line.

A comment before a block says what cannot be seen from the block itself:

    <!-- docs: in a terminal of its own -->     it goes on until it is stopped; what follows runs beside it
    <!-- docs: not run, REASON -->              counted, and limited by `suite_docs.NOT_RUN`
"""

import json
import os
import re
from dataclasses import dataclass

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
MARK = re.compile(r"<!-- docs: (.+?) -->\s*\Z")
OWN_TERMINAL = "in a terminal of its own"
NOT_RUN = re.compile(r"not run, (.+)")


@dataclass
class Block:
    place: str
    language: str
    text: str
    own_terminal: bool = False
    not_run: str = ""


def blocks_of(path, root):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        text = file.read()
    found, before = [], 0
    for match in FENCE.finditer(text):
        place = f"{path}:{text.count(chr(10), 0, match.start()) + 1}"
        block = Block(place, match[1], match[2])
        mark = MARK.search(text[before:match.start()])
        if mark:
            why = NOT_RUN.fullmatch(mark[1])
            if not why and mark[1] != OWN_TERMINAL:
                raise ValueError(f"{place}: the mark {mark[1]!r} is not known")
            block.own_terminal, block.not_run = not why, why[1] if why else ""
        found.append(block)
        before = match.end()
    return found


def commands_within(path, root):
    """(place, command) of each `postrider …` in backquotes outside of the blocks."""
    with open(os.path.join(root, path), encoding="utf-8") as file:
        text = file.read()
    lines = FENCE.sub(lambda match: "\n" * match[0].count("\n"), text).split("\n")
    for number, line in enumerate(lines, 1):
        for command in re.findall(r"`(postrider [^`]+)`", line):
            yield f"{path}:{number}", command


def json_values(text):
    """The values of a block: one, or one after the other."""
    decoder, values, at = json.JSONDecoder(), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = decoder.raw_decode(text, at)
        values.append(value)
    return values


def is_event_stream(text):
    """Whether each line is one of an event stream, and all data is JSON."""
    for line in text.splitlines():
        if line.startswith("data: "):
            json.loads(line[len("data: "):])
        elif line and not re.match(r"(:|id: |event: |retry: \d+$)", line):
            return False
    return True
