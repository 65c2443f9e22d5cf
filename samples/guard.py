# SPDX-License-Identifier: GPL-2.0-or-later
"""guard: what finds a mistake with memory, without looking at each access.

A heap object that ends where a page ends, with nothing mapped behind it, stops whoever goes one
byte too far. The sample module `parser` has seven mistakes that parsers have; each is met once
without checks and once with them.
"""

from __future__ import annotations

from collections.abc import Mapping

from emulator.faults import Fault
from machine.machine import ModelledMachine
from samples.hostile import FILE_HEAD
from samples.modules import root
from samples.story import Grid, Story, Text

ARCH = "riscv64"
# Name -> records of a file: tag, size, contents (samples/modules/src/parser.c).
FILES: Mapping[str, bytes] = {
    "a name's NUL, one byte behind": b"n\x08#1234567",
    "a sum that goes on by one": b"c\x08!1234567",
    "a session used after its end": b"s\x08abcdefghe\x01~u\x01x",
    "a session ended twice": b"s\x08abcdefghe\x01~e\x01~",
    "a size computed in 16 bits": b"a\x03[\x02\x40",
    "a lock kept on an error": b"m\x01?",
    "memory forgotten on an error": b"k\x02+1",
}


def main() -> Story:
    """Let the parser read each file, without checks and with them."""
    story = Story("guard", "One byte too far")
    rows = []
    for name, records in FILES.items():
        plain, _ = _read(records, checked=False)
        _, found = _read(records, checked=True)
        story.facts[name] = {"plain": plain, "found": found}
        rows.append((name, plain, found))
    story.parts = [
        Text(
            "A parser with seven mistakes reads a file for each. Most of them do nothing that "
            "anybody sees. Then the same, with objects that end at the end of a page, closed "
            "pages where objects were freed, and a look at locks and memory when all is over:"
        ),
        Grid(("what is wrong", "without checks", "with checks"), tuple(rows)),
        Text(
            "No access is looked at: a page that is not mapped costs nothing until it is met. What "
            "costs is to give each object pages of its own. An object of 9 bytes ends up to seven "
            "bytes before its guard, as it must be aligned; what is written there is found when "
            "the object is freed, what is read there is not. --kasan looks at each byte."
        ),
    ]
    return story


def _read(records: bytes, *, checked: bool) -> tuple[str, str]:
    """Return what a user sees of a file being read, and what checks find."""
    machine = ModelledMachine(ARCH, root=root(ARCH))
    checks = machine.sanitize() if checked else None
    module, data = machine.load("parser"), FILE_HEAD + records
    try:
        count = module.call("parser_parse", data, len(data), returns="int", instructions=1_000_000)
        seen = f"{count} records"
        module.unload()
    except Fault as fault:
        seen = fault.kind.value
    found = "" if checks is None else ", ".join(each.kind.value for each in checks.findings)
    return seen, found
