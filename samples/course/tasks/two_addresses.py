# SPDX-License-Identifier: GPL-2.0-or-later
"""Say where to write what runs elsewhere: the ROX cache of 6.13-rc builds text in a copy."""

from __future__ import annotations

import attrs

from allocator import Pending
from allocator.errors import ExecmemError
from allocator.types import PAGE_SIZE, MemType, Prot
from archs import Arch
from machine.machine import ModelledMachine
from samples.course.task import Answer, AnswerError, Check, Task, Verdict

DESIGN, WORD, POKE = "rox_cache_613", 4, "poke"
SIZE = 2 * PAGE_SIZE
BUILT = {"text": MemType.TEXT, "init text": MemType.INIT_TEXT, "rodata": MemType.RODATA}
LIVE = "live text"
# What is to be changed: in which area, at which offset.
PLACES = ("text", 0x1F80), ("rodata", 0x0310), (LIVE, 0x0040), ("init text", 0x0FFC), ("text", 0x24)


@attrs.define
class Built:
    """A module that is being built, beside one that is live.

    Parameters
    ----------
    areas, copies
        Where each area begins that runs, and where its copy does, if it has one.
    """

    arch: Arch
    machine: ModelledMachine = attrs.field(init=False)
    areas: dict[str, int] = attrs.field(factory=dict)
    copies: dict[str, int] = attrs.field(factory=dict)
    pending: dict[str, Pending] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.machine = machine = ModelledMachine(self.arch, design=DESIGN)
        memory = machine.memory
        live = machine.execmem.alloc(MemType.TEXT, SIZE)
        live.write(0, bytes(SIZE))
        self.areas[LIVE] = live.finish().address
        for name, kind in BUILT.items():
            before = memory.areas
            pending = machine.execmem.alloc(kind, SIZE)
            mark = bytes(name, "ascii") * (SIZE // len(name))
            pending.write(0, mark)
            self.areas[name], self.pending[name] = pending.address, pending
            for at in memory.areas - before:
                if at != pending.address and memory.read(at, len(mark)) == mark:
                    self.copies[name] = at

    def put(self, at: int | str, area: str, data: bytes) -> str:
        """Store what belongs into an area; say what becomes of it, nothing where it is stored."""
        if at == POKE:
            if area != LIVE:
                return "poke: nobody executes it yet, and finish copies over what was poked"
            self.machine.poke(self.areas[area] + dict(PLACES)[area], data)
            return ""
        assert isinstance(at, int)
        page = self.machine.memory.translate(at)
        if page is None:
            return f"{at:#x} is not mapped"
        if not page.prot & Prot.W:
            return f"{at:#x} is {page.prot}"
        try:
            self.machine.memory.write(at, data)
        except (ExecmemError, ValueError) as error:
            return str(error)
        return ""

    def finished(self) -> None:
        """Bring the module to life."""
        for pending in self.pending.values():
            pending.finish()


def _text(arch: Arch) -> str:
    built = Built(arch)
    lines = []
    for name, at in built.areas.items():
        copy = f", built in a copy at {built.copies[name]:#x}" if name in built.copies else ""
        lines.append(f"  {name:<9} runs at {at:#x}{copy}\n")
    places = "".join(f"  {built.areas[area] + offset:#x}\n" for area, offset in PLACES)
    return (
        f"Under {DESIGN} a module is being built, beside one that is live; {SIZE // 1024} KiB each:\n"
        + "".join(lines)
        + f"A pass of the loader has {WORD} bytes for each of these addresses, at which they run:\n"
        + places
        + f'Say where it stores them, in this order; "{POKE}" where only a poke will do.'
    )


def _grade(answer: Answer) -> Verdict:
    given, built = answer.addresses("writes", POKE), Built(answer.arch)
    if len(given) != len(PLACES):
        raise AnswerError(answer.file, f"writes: {len(given)}, wanted {len(PLACES)}")
    said = [
        built.put(at, area, bytes([number + 1] * WORD))
        for number, (at, (area, _)) in enumerate(zip(given, PLACES, strict=True))
    ]
    built.finished()
    checks, wrong = [], 0
    for number, (area, offset) in enumerate(PLACES):
        wanted, at = bytes([number + 1] * WORD), built.areas[area] + offset
        held = built.machine.memory.read(at, WORD)
        found = said[number] or held.hex(" ")
        right = not said[number] and held == wanted
        wrong += not right
        checks.append(Check(f"{area}+{offset:#x} holds then", found, wanted.hex(" "), right))
    return Verdict(tuple(checks), wrong)


def _template(arch: Arch) -> str:
    built = Built(arch)
    return (
        "writes = [\n"
        + "".join(f'  "{built.areas[area] + offset:#x}",\n' for area, offset in PLACES)
        + "]\n"
    )


TASK = Task(
    name="two-addresses",
    title="Say where to write what runs elsewhere.",
    text=_text,
    template=_template,
    hints=(
        "Which areas have a copy, and which are written where they are?",
        "In a copy a byte lies as far from its start as the one that runs from the area's start.",
        (
            "Copy + (address - start of the area); the address itself where there is no copy; live "
            "text is poked."
        ),
    ),
    grade=_grade,
    unit="places missed",
    best={"x86_64": 0, "arm64": 0, "riscv64": 0},
)
