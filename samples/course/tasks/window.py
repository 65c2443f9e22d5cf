# SPDX-License-Identifier: GPL-2.0-or-later
"""Say what has to lie in the window that calls reach, so that a whole distribution fits."""

from __future__ import annotations

import json

from allocator.types import PAGE_SIZE, ExecmemType, MemType, align_up
from allocator.workloads.table import debian
from archs import Arch
from samples.course.task import Answer, AnswerError, Check, Task, Verdict

LEAST = 64  # bytes: two modules share no cache line
CORE = {kind.name: kind for kind in MemType if not kind.is_init}


def room(arch: Arch) -> int:
    """Return the bytes from where calls reach the whole image to where it begins."""
    here = arch.loads.address_map()
    return here.image.start - here.range_of(ExecmemType.MODULE_TEXT).range.start


def _text(arch: Arch) -> str:
    return (
        f"{len(debian(arch.name)):,} modules of a distribution are to lie in {room(arch):,} bytes,\n"
        "from where every call reaches the kernel. Say which types of memory lie there (of\n"
        f"{', '.join(CORE)}),\n"
        f"to what an area is rounded up (`unit`, bytes, {LEAST} or more) and how much is left\n"
        "unmapped behind each (`guard`, bytes). Data is reached by ADRP, up to 4 GiB away."
    )


def _grade(answer: Answer) -> Verdict:
    near = answer.words("near", tuple(CORE))
    unit, guard = answer.number("unit"), answer.number("guard")
    if unit < LEAST or unit & (unit - 1):
        raise AnswerError(answer.file, f"unit = {unit}: a power of two, {LEAST} or more")
    if guard < 0 or (guard and (guard | unit) % PAGE_SIZE):
        reason = f"guard = {guard}: whole pages of {PAGE_SIZE}, behind units that are whole pages"
        raise AnswerError(answer.file, reason)
    modules, total, fit, full = debian(answer.arch.name), 0, 0, False
    space = room(answer.arch)
    kinds = {CORE[name] for name in near}
    for key in sorted(modules):
        regions = [one for one in modules[key].regions if one.type in kinds]
        total += sum(align_up(one.size, unit) + guard for one in regions)
        full = full or total > space
        fit += not full
    calls = [name for name, kind in CORE.items() if kind.is_text and kind not in kinds]
    return Verdict(
        (
            Check(
                "types that call, and lie elsewhere", ", ".join(calls) or "none", "none", not calls
            ),
            Check("modules that fit", f"{fit:,}", f"{len(modules):,}", fit == len(modules)),
            Check("bytes of the window", f"{total:,}", f"{space:,} or fewer", total <= space),
        ),
        total,
    )


TASK = Task(
    name="window",
    title="Let a whole distribution's modules fit where calls reach.",
    text=_text,
    template=lambda _: f"near = {json.dumps(list(CORE))}\nunit = 4096\nguard = 4096\n",
    hints=(
        "Who has to be near? Only what has calls in it.",
        "A guard page behind 300 bytes of text costs more than the text.",
        "Text alone, rounded up to a cache line, without guards.",
    ),
    grade=_grade,
    unit="bytes of the window",
    best={"arm64": 82_066_944},
)
