# SPDX-License-Identifier: GPL-2.0-or-later
"""hi20: why RISC-V adds 0x800 before it takes the upper 20 bits of a displacement.

AUIPC adds a multiple of 4 KiB, and the ADDI behind it a signed number of 12 bits. When the low
part is 0x800 or more it counts as negative, so the upper part has to be one larger. The pair
is executed twice: as the psABI fills it, and with the 0x800 left out.
"""

from __future__ import annotations

import attrs

from archs import arch as arch_by_name
from archs.reloc import Reloc
from machine.machine import ModelledMachine
from samples.bench import fill, listing, put, row
from samples.story import Grid, Lines, Story, Text

AUIPC_A0, ADDI_A0, RET = 0x0000_0517, 0x0005_0513, 0x0000_8067
DISTANCES = (0x1000, 0x17FF, 0x1800, 0x1FFF, -0x800, -0x801)


def main() -> Story:
    """Form addresses whose low twelve bits lie on both sides of 0x800."""
    arch = arch_by_name("riscv64")
    machine = ModelledMachine(arch)
    right = row(arch, "R_RISCV_PCREL_HI20")
    bare = tuple(attrs.evolve(part, bias=0) for part in right.parts)
    wrong = attrs.evolve(right, parts=bare)
    rows = []
    for distance in DISTANCES:
        with_bias = form(machine, right, distance)
        without = form(machine, wrong, distance)
        verdict = "" if without == distance else f"off by {without - distance:+#x}"
        rows.append(
            (
                f"{distance:+#x}",
                f"{distance & 0xFFF:#x}",
                f"{with_bias:+#x}",
                f"{without:+#x}",
                verdict,
            )
        )
    code = pair(machine, right, 0, 0x1800)
    story = Story("hi20", "RISC-V: the 0x800 in front of the upper twenty bits")
    story.facts = {"rows": [list(r) for r in rows]}
    story.parts = [
        Text(
            "auipc a0, HI20 ; addi a0, a0, LO12 ; ret, executed in the guest. a0 minus the "
            "address of auipc is where the pair leads."
        ),
        Grid(("wanted", "low 12", "(X+0x800)>>12", "X>>12", ""), tuple(rows), "wanted,low 12"),
        Lines(tuple(listing(arch, code, 0))),
        Text(
            "The addi of 0x1800 subtracts 0x800, so the auipc adds 0x2000. That also shifts "
            "the reach: not [-2 GiB, 2 GiB) but 2 KiB lower at both ends."
        ),
    ]
    return story


def pair(machine: ModelledMachine, high: Reloc, place: int, distance: int) -> bytes:
    """Return the pair at `place` for a target `distance` bytes behind it."""
    low = row(machine.arch, "R_RISCV_LO12_I")
    auipc = fill(high, AUIPC_A0.to_bytes(4, "little"), place=place, target=place + distance)
    addi = fill(low, ADDI_A0.to_bytes(4, "little"), place=place, target=distance)
    return auipc + addi


def form(machine: ModelledMachine, high: Reloc, distance: int) -> int:
    """Execute the pair; return the distance that it really forms."""
    code = pair(machine, high, 0, distance) + RET.to_bytes(4, "little")
    place = put(machine, code)
    return machine.call(place) - place
