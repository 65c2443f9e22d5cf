# SPDX-License-Identifier: GPL-2.0-or-later
"""flow: alloc, write, finish; with text_poke and without.

The thread's interface in three calls. Where the architecture can poke, text is read-only and
executable from birth and bytes go in through an alias; where it cannot, memory is writable
until finish and executable after. Nobody who uses it sees a difference, and no moment has
both rights.
"""

from __future__ import annotations

from typing import Any

from allocator.errors import ExecmemError
from allocator.types import MemType, Prot
from archs import Arch, archs
from machine.machine import ModelledMachine
from samples.story import Grid, Story, Text

SIZE = 64


def main() -> Story:
    """Follow one allocation of text through its life, both ways."""
    story = Story("flow", "alloc, write, finish: with text_poke and without")
    rows = []
    for arch in archs():
        for poke in (True, False) if arch.text_poke is not None else (False,):
            found = _life(arch, poke=poke)
            story.facts[f"{arch.name} {'poke' if poke else 'plain'}"] = found
            rows.append(
                (
                    arch.title,
                    "text_poke" if poke else "none",
                    *found["protections"],
                    str(found["pokes"]),
                    found["late write"],
                )
            )
    story.parts = [
        Text(
            f"{SIZE} bytes of text under the default design; what the page table says after each "
            "call, how many writes went through the alias, and what a write after finish gets."
        ),
        Grid(
            ("arch", "write by", "alloc", "write", "finish", "pokes", "late write"),
            tuple(rows),
            "pokes",
        ),
        Text("The bytes and the last protection are the same in every row."),
    ]
    return story


def _life(arch: Arch, *, poke: bool) -> dict[str, Any]:
    machine = ModelledMachine(arch, text_poke=None if poke else False)
    code = (arch.runs.emulation.ret * SIZE)[:SIZE]
    before = machine.memory.events.pokes
    protections = []

    def look(address: int) -> None:
        found = machine.memory.translate(address)
        assert found is not None
        assert Prot.W | Prot.X not in found.prot
        protections.append(str(found.prot))

    pending = machine.execmem.alloc(MemType.TEXT, SIZE)
    look(pending.address)
    pending.write(0, code)
    look(pending.address)
    allocation = pending.finish()
    look(allocation.address)
    try:
        pending.write(0, code)
        late = "stored"
    except ExecmemError as error:
        late = type(error).__name__
    machine.call(allocation.address)
    return {
        "protections": protections,
        "pokes": machine.memory.events.pokes - before,
        "late write": late,
        "bytes": machine.read(allocation.address, SIZE).hex(),
        "wanted": code.hex(),
    }
