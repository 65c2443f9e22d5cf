# SPDX-License-Identifier: GPL-2.0-or-later
"""A fuzzer in a few lines, for lessons: `execmem fuzz` is the one for work.

An input that comes to code where none before it came is kept, and others are made of those that were
kept. The machine is put back after each.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import attrs

from emulator.faults import Fault
from machine.machine import ModelledMachine
from machine.rounds import Round
from samples.modules import root
from samples.story import Grid, Lines, Story, StoryPart

ARCH = "riscv64"
MOST = 20_000  # executions
LIMIT, SECONDS = 1_000_000, 0.02  # instructions of a round that hangs, and when they are counted


@attrs.frozen
class Found:
    """What a search came to.

    Parameters
    ----------
    executions
        Inputs until the one that something went wrong with.
    kept
        Those that came to new code: which execution, how many blocks then, the bytes.
    data, smallest
        What went wrong, and what is left of it without what does not matter.
    fault
        What happened.
    """

    executions: int
    kept: tuple[tuple[int, int, bytes], ...]
    data: bytes
    smallest: bytes
    fault: Fault

    @property
    def what(self) -> str:
        """What happened, and where, without addresses."""
        kind = "it does not end" if self.fault.kind.is_limit else self.fault.kind.value
        return f"{kind} in {self.fault.where.partition('+')[0]}"


def search(function: str, seeds: Sequence[bytes], *more: int, most: int = 64) -> Found:
    """Look for an input of a function of the module `formats` that something goes wrong with.

    Parameters
    ----------
    function
        Takes bytes, how many, and `more`.
    seeds
        Inputs to begin with.
    most
        Bytes of an input.
    """
    machine = ModelledMachine(ARCH, root=root(ARCH))
    machine.sanitize("guard")
    module = machine.load("formats")
    address = module.address_of(function)
    text = next(each for each in module.sections.values() if each.name == ".text")
    spans = [(text.address, text.address + text.size)]
    rounds = machine.rounds(spans, instructions=LIMIT, seconds=SECONDS)
    buffer, chance = rounds.buffer(most), random.Random(1)  # noqa: S311 -- chance, not a secret
    corpus, seen, kept = list(seeds), set[int](), list[tuple[int, int, bytes]]()
    with rounds:

        def run(data: bytes) -> Round:
            return rounds.run(lambda: rounds.call(address, (buffer.put(data), len(data), *more)))

        for number in range(MOST):
            data = corpus[number] if number < len(seeds) else mutated(corpus, chance, most)
            done = run(data)
            if done.fault is not None:
                smallest = smaller(data, run, done.fault)
                return Found(number + 1, tuple(kept), data, smallest, done.fault)
            if not seen.issuperset(done.blocks):
                seen.update(done.blocks)
                kept.append((number + 1, len(seen), data))
                corpus.append(data)
    raise AssertionError(f"{function}: {MOST} inputs, and nothing went wrong")


def told(story: Story, found: Found) -> list[StoryPart]:
    """Return what a search came to as a story tells it, and note its facts."""
    story.facts["search"] = {
        "executions": found.executions,
        "kept": len(found.kept),
        "found": found.what,
        "input": found.data.hex(),
        "smallest": found.smallest.hex(),
    }
    rows = [(str(number), str(blocks), _shown(data)) for number, blocks, data in found.kept[:6]]
    rows.append((str(found.executions), "", _shown(found.data)))
    lines = (f"Found: {found.what}", f"Smallest: {_shown(found.smallest)}")
    return [Grid(("execution", "blocks", "input"), tuple(rows), "execution"), Lines(lines)]


def _shown(data: bytes) -> str:
    return data.hex(" ") if len(data) <= 16 else f"... {data[-14:].hex(' ')}"


def mutated(corpus: Sequence[bytes], chance: random.Random, most: int) -> bytes:
    """Return something like an input of a corpus: bytes set, taken out, or repeated."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(data))
        end = min(at + chance.randint(1, 4), len(data))
        way = chance.randrange(4)
        if way == 0:
            data[at:at] = bytes([chance.choice((0, 1, 255, chance.randrange(256)))])
        elif way == 1 and at < len(data):
            data[at] = chance.randrange(256)
        elif way == 2:
            del data[at:end]
        else:
            data[at:at] = data[at:end]
    return bytes(data[:most])


def smaller(data: bytes, run: Callable[[bytes], Round], fault: Fault) -> bytes:
    """Return the input without what may be left out, in pieces of ever fewer bytes."""
    size = 8
    while size >= (4 if fault.kind.is_limit else 1):  # as each try that hangs takes long
        at = 0
        while at < len(data):
            without = data[:at] + data[at + size :]
            if _same(fault, run(without).fault):
                data = without
            else:
                at += size
        size //= 2
    return data


def _same(other: Fault, fault: Fault | None) -> bool:
    if fault is None or fault.kind is not other.kind:
        return False
    return fault.where == other.where or fault.kind.is_limit
