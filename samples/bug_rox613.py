# SPDX-License-Identifier: GPL-2.0-or-later
"""bug-rox613: text has two addresses, and a pass reads at the wrong one.

The ROX cache of 6.13-rc builds text in a writable copy; every pass that edits text has to turn an
address into the copy's (module_writable_address). In review (October 2024) FineIBT's pass read
callers' hashes before it did: it saw what the cache is filled with, took the callers for such that
do not check, and left them, while callees were rewritten. That was mended; of what was merged it
was said that CFI still broke, and a9bbe3413331 switched the cache off before 6.13. From 6.15 on
text is remapped and edited where it is.
"""

from __future__ import annotations

from typing import Any

from allocator.types import MemType
from archs import arch as arch_by_name
from emulator.faults import Fault
from machine.machine import ModelledMachine
from samples.bench import listing
from samples.story import Grid, Lines, Story, Text

HASH = 0x12345678
PADDING = 16  # in front of a function, with its hash
RETURN_42 = bytes.fromhex("b82a000000c3")
CALLER = 0x40


def _word(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, "little")


# As compiled (kCFI) and as rewritten (FineIBT): in front of a function, and in a caller.
KCFI_HEAD = b"\xb8" + _word(HASH) + b"\x90" * 11
FINEIBT_HEAD = bytes.fromhex("f30f1efa 4181ea") + _word(HASH) + bytes.fromhex("7402 0f0b 90")
KCFI_CHECK = b"\x41\xba" + _word(-HASH) + bytes.fromhex("450353f1 7402 0f0b")
FINEIBT_CHECK = b"\x41\xba" + _word(HASH) + bytes.fromhex("4983eb10 0f1f4000")
CALL = bytes.fromhex("41ffd3c3")  # call *%r11 ; ret


def main() -> Story:
    """Rewrite a function and its caller under both caches, reading at either address."""
    story = Story("bug-rox613", "Text with two addresses: the ROX cache of 6.13-rc and CFI")
    rows = []
    for design, copy in (("rox_cache_613", False), ("rox_cache_613", True), ("rox_cache", False)):
        where = "the copy" if copy else "the text"
        facts = load(design, read_copy=copy)
        story.facts[f"{design}, reads {where}"] = facts
        rows.append((design, where, facts["read"], facts["rewritten"], facts["result"]))
    arch = arch_by_name("x86_64")
    story.parts = [
        Text(
            "A call through a pointer may be led anywhere. So a number made of its type stands in "
            "front of each function, and callers compare it before they call (kCFI). FineIBT turns that "
            "round when the code is loaded: callers pass the number, and the function compares. All "
            "callers and functions have to be rewritten, or the numbers do not fit."
        ),
        Text(
            "A function that returns 42, and one that checks its hash and calls it. The pass "
            "rewrites what stands in front of the function, then the check of each caller: if it "
            "finds one."
        ),
        Lines((*listing(arch, KCFI_CHECK, 0), "", *listing(arch, FINEIBT_CHECK, 0))),
        Grid(("design", "the pass reads", "finds", "caller", "called"), tuple(rows)),
        Text(
            "There is no race in it: one CPU does it in every order. What finds it is to compare, "
            "at each place that a pass reads before the copy is made, the text with the copy: "
            f"they differ at {story.facts['rox_cache_613, reads the text']['differ']} of "
            f"{story.facts['rox_cache_613, reads the text']['places']} places, and at none under "
            "rox_cache, which has one address."
        ),
    ]
    return story


def load(design: str, *, read_copy: bool) -> dict[str, Any]:
    """Return what the pass read, whether it rewrote the caller, and what calling it gives."""
    machine = ModelledMachine(arch_by_name("x86_64"), design=design)
    memory, before = machine.memory, machine.memory.areas
    pending = machine.execmem.alloc(MemType.TEXT, 4096)
    text = pending.address
    lead = b"\x4c\x8d\x1d" + _word(PADDING - (CALLER + 7))  # lea function(%rip), %r11
    pending.write(0, KCFI_HEAD + RETURN_42)
    pending.write(CALLER, lead + KCFI_CHECK + CALL)
    check = CALLER + len(lead)

    written = [at for at in memory.areas - before if memory.read(at, PADDING) == KCFI_HEAD]
    copy = written[0] if written else text
    places = (0, check)
    differ = sum(memory.read(text + at, 6) != memory.read(copy + at, 6) for at in places)
    pending.write(0, FINEIBT_HEAD)
    read = memory.read((copy if read_copy else text) + check, 6)
    rewritten = read[:2] == KCFI_CHECK[:2]
    if rewritten:
        pending.write(check, FINEIBT_CHECK)
    pending.finish()
    try:
        result = str(machine.call(text + CALLER))
    except Fault as fault:
        result = fault.kind.value
    machine.check()
    return {
        "read": read.hex(" "),
        "rewritten": "rewritten" if rewritten else "left as it was",
        "result": result,
        "differ": differ,
        "places": len(places),
    }
