# SPDX-License-Identifier: GPL-2.0-or-later
"""auipc: a RISC-V instruction may begin two bytes before a page ends.

With compressed instructions everything is aligned to two bytes only, so one 32-bit AUIPC can
lie half on one page and half on the next. Whoever pokes it needs both pages in the window,
and whoever stores it must not assume four-byte alignment.
"""

from __future__ import annotations

from allocator.types import PAGE_SIZE, Hex
from archs import arch as arch_by_name
from machine.machine import ModelledMachine
from samples.bench import fill, listing, put, row
from samples.story import Grid, Lines, Story, Text

AUIPC_JALR = bytes.fromhex("97020000e7820200")  # auipc t0, 0 ; jalr t0, t0: call through t0
RETURN_7, RETURN_9 = bytes.fromhex("1d458280"), bytes.fromhex("25458280")  # li a0, N ; ret


def main() -> Story:
    """Poke a call that straddles a page, from one function to another."""
    arch = arch_by_name("riscv64")
    machine = ModelledMachine(arch)
    seven, nine = put(machine, RETURN_7), put(machine, RETURN_9)
    # A tail call, so that the caller's return address stays in ra.
    pair = row(arch, "R_RISCV_CALL_PLT")
    tail = AUIPC_JALR[:4] + bytes.fromhex("67800200")
    inside = PAGE_SIZE - 2
    here = put(machine, fill(pair, tail, place=0, target=0), skip=inside)
    results, codes = [], []
    for target in (seven, nine):
        old = machine.read(here, 8)
        new = fill(pair, tail, place=here, target=target)
        machine.execmem.poke(here, new, expected=old)
        codes.append(new)
        results.append(machine.call(here))
    poke = arch.text_poke
    assert poke is not None
    story = Story("auipc", "RISC-V: an instruction across two pages")
    story.facts = {
        "place": Hex(here),
        "results": [Hex(result) for result in results],
        "pages": poke.pages,
    }
    story.parts = [
        Text(
            f"auipc t0 ; jr t0 at {here:#x}: two bytes on one page, six on the next. It is poked "
            f"twice, {poke.pages} pages mapped in the window at once."
        ),
        Lines((*listing(arch, codes[0], here), "", *listing(arch, codes[1], here))),
        Grid(
            ("tail call to", "result"),
            ((f"{seven:#x}", str(results[0])), (f"{nine:#x}", str(results[1]))),
            "result",
        ),
        Text("arm64 never has this: its instructions are whole words, so one page is enough."),
    ]
    return story
