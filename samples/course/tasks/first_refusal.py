# SPDX-License-Identifier: GPL-2.0-or-later
"""Say which relocation does not reach any more, and what it would have to hold."""

from __future__ import annotations

from functools import cache

from allocator.types import PAGE_SIZE
from archs import Arch
from archs.op import signed
from archs.reloc import Reloc
from samples.course.task import Answer, Check, Task, Verdict
from samples.course.tasks.one_plt import MODULE, motion


@cache
def least(arch: str) -> int:
    """Return by how many bytes data may not move down: the first whole pages that are refused."""
    far = PAGE_SIZE
    while not len(motion(arch).at(text=0, data=-far).failed):
        far *= 2
    near = far // 2
    while far - near > PAGE_SIZE:
        middle = (near + far) // 2 & -PAGE_SIZE
        refused = len(motion(arch).at(text=0, data=-middle).failed)
        near, far = (near, middle) if refused else (middle, far)
    return far


def refused(arch: str) -> list[tuple[Reloc, int]]:
    """Return what is refused then, each with its X."""
    moves, far = motion(arch), -least(arch)
    return [
        (moves.rows[int(moves.type[one])], signed(int(moves.x[one]) + int(moves.b[one]) * far))
        for one in moves.at(text=0, data=far).failed.tolist()
    ]


def _checked(arch: str) -> list[Reloc]:
    """Return the types of the module whose X has to lie in a reach."""
    moves = motion(arch)
    found = {
        moves.rows[int(moves.type[one])].name: moves.rows[int(moves.type[one])]
        for one in moves.checked
    }
    return [found[name] for name in sorted(found)]


def _text(arch: Arch) -> str:
    return (
        f"{MODULE}.ko is loaded as `execmem relocs {MODULE} --arch {arch.name}` shows it.\n"
        f"Then its data and rodata move down by {least(arch.name):#x} bytes; its text and\n"
        "everything of others stay. Exactly one relocation does not reach any more. Say its type,\n"
        "and what X, the number that its formula gives, has become. X has to lie in:\n"
        + "\n".join(f"  {row.name:<28} {row.reach}" for row in _checked(arch.name))
    )


def _grade(answer: Answer) -> Verdict:
    ((row, x),) = refused(answer.arch.name)
    kind, value = answer.word("type"), signed(answer.number("x"))
    moves = motion(answer.arch.name)
    there = sorted({moves.rows[int(number)].name for number in set(moves.type.tolist())})
    found = kind if kind in there else f"{kind}: {MODULE}.ko has only {', '.join(there)}"
    if kind in there and kind != row.name:
        found += ", which all reach"
    checks = [Check("the type", found, "the one out of reach", kind == row.name)]
    if kind == row.name:
        assert row.reach is not None
        checks.append(Check("X", f"{value:+#x}", f"not in {row.reach}", value not in row.reach))
    checks.append(Check("X is off by", f"{value - x:+#x}", "+0x0", value == x))
    return Verdict(tuple(checks), abs(value - x))


TASK = Task(
    name="first-refusal",
    title="Say which relocation does not reach any more, and what X has become.",
    text=_text,
    template=lambda _: 'type = "R_"\nx = "0x0"\n',
    hints=(
        "Which relocations lead from text to data or rodata? Only their X changes.",
        "In a formula with S and P, X changes by as much as S moved: here S moves down and P stays.",
        (
            "For each of them subtract the move from the X that `execmem relocs` shows, and compare "
            "with the reach of its type. One is just outside."
        ),
    ),
    grade=_grade,
    unit="bytes off",
    best={"x86_64": 0, "arm64": 0, "riscv64": 0, "mips64el": 0},
)
