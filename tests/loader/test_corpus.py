# SPDX-License-Identifier: GPL-2.0-or-later
"""Distribution modules at places chosen at random, against the scalar model, byte for byte.

Text, data and read-only data of a module lie as far apart as their instructions allow, and so
does the kernel. Small modules are compared completely; of large ones a sample is drawn that
holds records of every type, since the model works on one record at a time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import capstone
import numpy as np

import archs
from allocator.types import MemType
from archs.reloc import Stub
from loader.elf import parse
from loader.elfview import ElfView
from loader.files import read_module
from loader.layout import Layout, plan
from loader.link import link_view
from tests.archs.facts import facts
from tests.archs.test_registry import disassembler
from tests.support import scalar
from tests.support.psabi import World
from tests.support.scalar import MASK64

SAMPLE = 2000  # records of a module


def scattered(view: ElfView, layout: Layout, chance: random.Random) -> World:
    """Return an address for every section and undefined name, each memory type for itself."""
    low, size = facts(view.arch).link.window

    def somewhere(align: int) -> int:
        return low + chance.randrange(size // align) * align

    starts: dict[MemType, int] = {kind: somewhere(4096) for kind in layout.aligns}
    addresses = {i: starts[p.type] + p.offset for i, p in layout.placements.items()}
    percpu = 0x2_1000 if view.arch.runs.emulation.percpu_from_zero else somewhere(4096)
    return World(view, addresses, {name: somewhere(64) for name in view.undefined}, percpu)


def sample(world: World, table: int, most: int, chance: random.Random) -> list[int]:
    """Return indices of at most about `most` records of a table, some of every type."""
    records = world.view.tables[table].records
    if records.size <= most:
        return list(range(records.size))
    chosen = set(chance.sample(range(records.size), most))
    _, first = np.unique(records["type"], return_index=True)
    return world.closure(world.view.tables[table], chosen | set(first.tolist()))


def test_every_module_links_as_the_model_says(arch: archs.Arch, corpus: Path) -> None:
    """At random places every record gives the model's bytes, or leads to its target by an entry."""
    modules = sorted(corpus.glob("lib/modules/*/kernel/**/*.ko*"))
    entries, compared = 0, 0
    for path in modules:
        chance = random.Random(path.name)
        view = parse(read_module(path), path.name)
        layout = plan(view)
        world = scattered(view, layout, chance)
        addresses = world.addresses
        linked = link_view(view, layout, addresses, world.symbols, percpu=world.percpu)
        total = sum(t.records.size for t in view.tables if t.target.index in addresses)
        for number, table in enumerate(view.tables):
            index = table.target.index
            if index not in addresses:
                continue
            most = table.records.size * SAMPLE // max(total, SAMPLE) + 1
            chosen = sample(world, number, most, chance)
            them = world.records(table, chosen)
            ours = bytes(linked.sections[index])
            image = bytearray(view.contents(view.sections[index]))
            far = [r for r in them if is_far(arch, r)]
            for record in far:
                assert followed(arch, view, addresses, linked.sections, index, record) == (
                    record.value + record.addend & MASK64
                ), f"{path.name}: {table.target.name}+{record.offset:#x}"
                image[record.offset : record.offset + 4] = ours[record.offset : record.offset + 4]
            gone = {id(r) for r in far}
            scalar.apply(arch.machine, image, [r for r in them if id(r) not in gone])
            if len(them) < table.records.size:
                for record in them:
                    span = slice(record.offset, record.offset + scalar.width(arch.machine, record))
                    assert ours[span] == image[span], f"{path.name}: {table.target.name}: {record}"
            else:
                assert ours == bytes(image), f"{path.name}: {table.target.name}"
            entries += len(far)
            compared += len(them)
    assert compared > 100 * len(modules) > 0
    # Only where the kernel's modules have a PLT may (and, so far apart, must) they use one.
    assert bool(entries) is facts(arch).link.plt_beyond


def is_far(arch: archs.Arch, record: scalar.Record) -> bool:
    """Return whether a branch does not reach its target by itself."""
    row = arch.link.relocations[record.type]
    return row.stub is Stub.PLT and not scalar.fits(
        arch.machine, record.type, scalar.value_of(arch.machine, record)
    )


def followed(
    arch: archs.Arch,
    view: ElfView,
    addresses: Mapping[int, int],
    sections: Mapping[int, memoryview],
    index: int,
    record: scalar.Record,
) -> int:
    """Return where an arm64 branch ends that goes through an entry of its text's PLT."""
    engine = disassembler(arch)
    word = bytes(sections[index][record.offset : record.offset + 4])
    (branch,) = engine.disasm(word, record.place)
    assert branch.mnemonic in ("b", "bl")
    entry = branch.operands[0].imm & MASK64
    init = view.sections[index].name.startswith(".init")
    plt = view.section(".init.plt" if init else ".plt")
    assert plt is not None
    offset = entry - addresses[plt.index]
    insns: list[capstone.CsInsn] = list(
        engine.disasm(bytes(sections[plt.index][offset : offset + 12]), entry)
    )
    adrp, add, jump = insns
    assert [adrp.mnemonic, add.mnemonic, jump.mnemonic] == ["adrp", "add", "br"]
    return int(adrp.operands[1].imm + add.operands[2].imm) & MASK64
