# SPDX-License-Identifier: GPL-2.0-or-later
"""Place text so that exactly one call needs a PLT entry."""

from __future__ import annotations

from functools import cache

from allocator.types import PAGE_SIZE
from archs import Arch
from loader.motion import Motion
from machine.machine import ModelledMachine
from samples.course.task import Answer, AnswerError, Check, Task, Verdict
from samples.modules import root

MODULE = "mathuser"


@cache
def motion(arch: str, module: str = MODULE) -> Motion:
    """Return how a module fares wherever it is moved."""
    machine = ModelledMachine(arch, root=root(arch))
    return Motion.of(machine.load(module, init=False).loaded)


def _text(arch: Arch) -> str:
    return (
        f"{MODULE}.ko calls two functions of mathlib.ko, and from its init text the kernel's\n"
        f"printk. `execmem load {MODULE} --arch {arch.name}` shows where it lies, and\n"
        f"`execmem relocs {MODULE} --arch {arch.name}` every distance. Move its text (init text\n"
        "goes along; data, mathlib.ko and the kernel stay) so that nothing is refused and exactly\n"
        "one PLT entry is used. Give the move in bytes, whole pages, with a sign."
    )


def _grade(answer: Answer) -> Verdict:
    move = answer.number("move")
    if move % PAGE_SIZE:
        raise AnswerError(answer.file, f"move = {move:#x} is no multiple of {PAGE_SIZE:#x}")
    outcome = motion(answer.arch.name).at(text=move, data=0)
    used = sum(outcome.used.values())
    return Verdict(
        (
            Check(
                "relocations refused",
                str(len(outcome.failed)),
                "0",
                not len(outcome.failed),
            ),
            Check("PLT entries used", str(used), "1", used == 1),
        ),
        abs(move) // PAGE_SIZE,
    )


TASK = Task(
    name="one-plt",
    title="Place text so that exactly one call needs a PLT entry.",
    text=_text,
    template=lambda _: 'move = "0x0"\n',
    hints=(
        (
            "A BL gets 128 MiB, 0x8000000 bytes, either way. Which call has the longest way now, and "
            "in which direction?"
        ),
        (
            "Init text calls printk, which lies 0x3fff50 above the call: whoever moves down loses this "
            "one first, while all others still reach."
        ),
        (
            "X = +0x3fff50 grows by as much as text moves down, and must reach 0x8000000, but no "
            "further than that. 0x8000000 - 0x3fff50 is how much that takes; round it up to pages."
        ),
    ),
    grade=_grade,
    unit="pages moved",
    best={"arm64": 31745},
)
