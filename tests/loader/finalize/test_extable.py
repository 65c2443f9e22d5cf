# SPDX-License-Identifier: GPL-2.0-or-later
"""The exception table, sorted."""

from __future__ import annotations

import random
import struct

import pytest

import archs
from archs.extable import HANDLED
from execmem.check.elfwriter import A, Rela, Sec, Sym, X, write
from loader.elf import parse
from loader.finalize import Environment
from loader.layout import plan
from loader.link import link
from tests.archs.facts import facts
from tests.support.addresses import place


def test_entries_are_sorted_and_still_say_the_same(arch: archs.Arch) -> None:
    """Instruction, fixup and data of every entry survive the move; instructions ascend."""
    chance = random.Random(7)
    wanted = sorted((4 * n, 0x800 + 4 * n, n) for n in range(200))
    shuffled = chance.sample(wanted, len(wanted))
    relas = []
    for n, (insn, fixup, _) in enumerate(shuffled):
        relas.append(Rela(12 * n, facts(arch).link.prel32, "text", insn))
        relas.append(Rela(12 * n + 4, facts(arch).link.prel32, "text", fixup))
    table = b"".join(struct.pack("<iiI", 0, 0, data) for _, _, data in shuffled)
    image = write(
        arch.machine,
        [Sec(".text", bytes(0x2000), A | X), Sec("__ex_table", table, A, align=4, relas=relas)],
        [Sym("text", ".text")],
    )
    addresses = place(plan(parse(image)), 0xFFFF_FFFF_C020_0000)
    contents = link(image, addresses, {}, environment=Environment())[2]
    start = addresses[2] - addresses[1]
    found = [
        (start + 12 * n + insn, start + 12 * n + 4 + fixup, data)
        for n, (insn, fixup, data) in enumerate(struct.iter_unpack("<iiI", contents))
    ]
    assert found == wanted


@pytest.mark.parametrize("count", [1, 3, 50])
def test_entries_of_kernels_before_5_16(arch: archs.Arch, count: int) -> None:
    """Pairs of words or pointers, and handlers' words, survive the move too, in any number."""
    chance = random.Random(count)
    wanted = sorted((4 * n, 0x800 + 4 * n, 0x1000 + 4 * n) for n in range(count))
    width, kind, fields = 4, facts(arch).link.prel32, 2
    if not arch.loads.prel32:  # riscv64
        width, kind = 8, facts(arch).link.abs64
    if HANDLED in arch.loads.extable:  # x86-64
        fields = 3
    relas = [
        Rela(width * (fields * n + field), kind, "text", entry[field])
        for n, entry in enumerate(chance.sample(wanted, count))
        for field in range(fields)
    ]
    table = bytes(width * fields * count)
    image = write(
        arch.machine,
        [Sec(".text", bytes(0x2000), A | X), Sec("__ex_table", table, A, align=8, relas=relas)],
        [Sym("text", ".text")],
    )
    addresses = place(plan(parse(image)), 0xFFFF_FFFF_C020_0000)
    contents = link(image, addresses, {}, environment=Environment())[2]
    start = addresses[2] - addresses[1]
    words = [word for (word,) in struct.iter_unpack("<i" if width == 4 else "<Q", contents)]
    if width == 4:
        words = [start + 4 * n + word for n, word in enumerate(words)]
    else:
        words = [word - addresses[1] for word in words]
    found = list(zip(*[iter(words)] * fields, strict=True))
    assert found == [entry[:fields] for entry in wanted]
