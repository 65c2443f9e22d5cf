# SPDX-License-Identifier: GPL-2.0-or-later
"""Motion: a module that is moved in arithmetic fares as one that is linked there."""

from __future__ import annotations

import random

import pytest

from loader.errors import RelocationError
from loader.link import MATERIALISED, link_view
from loader.loaded import LoadedModule
from loader.motion import Motion
from machine.face import Machine
from samples.modules import names, root

PAGE = 0x1000
SPANS = (1 << 12, 1 << 20, 1 << 27, 1 << 31, 1 << 33, 1 << 62)


def moves(count: int) -> list[tuple[int, int]]:
    """Return moves of text and data, around every reach there is; half of them together."""
    chance = random.Random(6)

    def move() -> int:
        far = chance.choice((-1, 1)) * chance.choice(SPANS) * chance.randrange(1, 5)
        return far + PAGE * chance.randrange(-600, 600)

    found = [(0, 0)]
    while len(found) < count:
        text = move()
        found.append((text, text if len(found) % 2 else move()))
    return found


def compare(module: LoadedModule, count: int) -> set[str]:
    """Hold `count` placements to the link's word; return how they ended."""
    motion = Motion.of(module)
    undefined = zip(
        module.view.undefined_indices.tolist(), module.view.undefined_names, strict=True
    )
    symbols = {name: int(module.linked.symbols[index]) for index, name in undefined}
    placed = {i: s for i, s in module.sections.items() if s.type is not None}
    ends = set()
    for text, data in moves(count):
        there = {
            index: (s.address + (text if s.type.is_text else data)) % (1 << 64)
            for index, s in placed.items()
        }
        outcome = motion.at(text=text, data=data)
        refusal = linked = None
        try:
            linked = link_view(module.view, module.layout, there, symbols, percpu=module.percpu)
        except RelocationError as error:
            refusal = error
        if linked is None:
            assert refusal is not None
            assert refusal.total == outcome.failed.size, (hex(text), hex(data))
            failed = [
                (module.view.sections[int(motion.section[one])].name, int(motion.offset[one]))
                for one in outcome.failed.tolist()
            ]
            if refusal.total <= MATERIALISED:
                said = [(failure.section, failure.offset) for failure in refusal.failures]
                assert sorted(failed) == sorted(said)
            ends.add("refused")
            continue
        assert not outcome.failed.size, (hex(text), hex(data))
        used = {init: use.used for init, use in linked.plt.items() if use.used}
        assert {init: count for init, count in outcome.used.items() if count} == used
        ends.add("through the PLT" if used else "direct")
    return ends


@pytest.mark.parametrize("stubs", [False, True], ids=["as built", "with PLT and GOT"])
def test_sample_modules_fare_as_the_link_says(arch, stubs):
    """At 24 placements of each sample module failures and PLT entries are those of the link."""
    ends = set()
    for name in names():
        machine = Machine(arch, root=root(arch.name), stub_sections=stubs)
        ends |= compare(machine.load(name, init=False).loaded, 24)
    assert {"direct", "refused"} <= ends
    if arch.plt is not None and (stubs or arch.plt.sorts):
        assert "through the PLT" in ends


@pytest.mark.parametrize("kaslr", [None, 3])
def test_real_modules_fare_as_the_link_says(arch, kaslr, corpus):
    """A filesystem, moved to 30 placements, fares as the link says."""
    machine = Machine(arch, root=corpus, kaslr=kaslr)
    module = machine.load("ext4", init=False).loaded
    assert {"direct", "refused"} <= compare(module, 30) | ({"direct"} if kaslr else set())


def test_moves_are_whole_pages():
    """A move that is no multiple of a page is refused: Page() would not follow it."""
    machine = Machine("arm64", root=root("arm64"))
    motion = Motion.of(machine.load("hello", init=False).loaded)
    with pytest.raises(ValueError, match="whole pages"):
        motion.at(text=0x10, data=0)
