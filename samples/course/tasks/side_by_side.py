# SPDX-License-Identifier: GPL-2.0-or-later
"""Lay texts and init texts so that what stays lies side by side, and what is free is one piece."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from allocator import KernelMemory, PhysicalMemory
from allocator.errors import AllocationError
from allocator.types import MIB, ExecmemType, Interval, Prot
from archs import Arch
from samples.course.task import Answer, AnswerError, Check, Task, Verdict, plural

PAGES = 9  # of the chunk
# What happens to which module, and how many pages its text and its init text take.
STEPS = (
    ("load", "A"),
    ("load", "B"),
    ("init", "A"),
    ("load", "C"),
    ("unload", "A"),
    ("init", "C"),
    ("load", "D"),
    ("init", "B"),
    ("init", "D"),
)
SIZES = {"A": (2, 3), "B": (1, 2), "C": (1, 2), "D": (3, 1)}
KINDS = "text", "init"
STAYS = [module for module in SIZES if ("unload", module) not in STEPS]
REST = PAGES - sum(SIZES[module][0] for module in STAYS)  # pages that are free at last


@attrs.define
class Laid:
    """What became of an order.

    Parameters
    ----------
    refused
        What could not be had, and why.
    used
        Pages of the chunk that ever held something.
    rest
        What a request for all that is free at last comes to.
    """

    refused: list[str]
    used: set[int]
    rest: str = ""


def laid(arch: Arch, first: Mapping[tuple[str, str], int]) -> Laid:
    """Return what becomes of texts that are laid at these pages of a chunk, by module and kind."""
    memory = KernelMemory(PhysicalMemory(64 * MIB), arch.loads.address_map())
    page = memory.page_size
    base = memory.address_map.range_of(ExecmemType.MODULE_TEXT).range.start
    held: dict[tuple[str, str], int] = {}
    found = Laid([], set())

    def take(number: int, module: str, kind: str, size: int) -> None:
        start = first[module, kind]
        where = f"step {number}, {kind} of {module} at page {start}"
        if start + size > PAGES:
            found.refused.append(
                f"{where}: {plural(size, 'page')} end behind the last, {PAGES - 1}"
            )
            return
        place = Interval(base + start * page, base + (start + size) * page)
        try:
            held[module, kind] = memory.vmalloc(place.size, prot=Prot.RX, within=place, guard=False)
        except AllocationError:
            there = {
                other
                for other, at in held.items()
                for taken in range(SIZES[other[0]][KINDS.index(other[1])])
                if place.start <= at + taken * page < place.end
            }
            whose = " and ".join(f"{what} of {whose}" for whose, what in sorted(there))
            found.refused.append(f"{where}: there is {whose}")
            return
        found.used |= set(range(start, start + size))

    for number, (does, module) in enumerate(STEPS, 1):
        if does == "load":
            for kind, size in zip(KINDS, SIZES[module], strict=True):
                take(number, module, kind, size)
        else:
            at = held.pop((module, "init" if does == "init" else "text"), None)
            if at is not None:
                memory.vfree(at)
    chunk = Interval(base, base + PAGES * page)
    largest = memory.free_space.largest(chunk) // page
    try:
        memory.vmalloc(REST * page, within=chunk, guard=False)
    except AllocationError:
        found.rest = f"the largest free piece has {plural(largest, 'page')}"
    return found


def _text(arch: Arch) -> str:
    said = {"init": "init of {} ends", "unload": "unload {}"}
    lines = []
    for number, (does, module) in enumerate(STEPS, 1):
        text, init = SIZES[module]
        what = f"load {module}: {text} + {init}" if does == "load" else said[does].format(module)
        lines.append(f"{number} {what}")
    third = len(lines) // 3
    rows = zip(lines[:third], lines[third : 2 * third], lines[2 * third :], strict=True)
    return (
        f"{len(SIZES)} modules come to a chunk of {PAGES} pages on {arch.name}, with as many pages of text\n"
        "and of init text:\n"
        + "".join(f"  {one:<20}{other:<20}{last}\n" for one, other, last in rows)
        + "When init ends, its text is freed; when a module is unloaded, its text is. Then somebody asks\n"
        f"for {REST} pages in one piece, which is all that is free. Say for {', '.join(SIZES)} at which page of the\n"
        f"chunk, 0 to {PAGES - 1}, text and init text begin, so that everything fits."
    )


def _grade(answer: Answer) -> Verdict:
    first = {}
    for kind in KINDS:
        numbers = answer.numbers(kind)
        if len(numbers) != len(SIZES):
            raise AnswerError(answer.file, f"{kind}: {len(numbers)} pages, wanted {len(SIZES)}")
        for number, module in zip(numbers, SIZES, strict=True):
            if not 0 <= number < PAGES:
                reason = f"{kind}: {module} at page {number}; there are 0 to {PAGES - 1}"
                raise AnswerError(answer.file, reason)
            first[module, kind] = number
    found = laid(answer.arch, first)
    refused = "; ".join(found.refused[:2])
    fits = f"{REST} pages in one piece"
    checks = [Check("what is refused", refused or "nothing", "nothing", not refused)]
    if not refused:
        checks.append(Check("free at last", found.rest or fits, fits, not found.rest))
    return Verdict(tuple(checks), len(found.used))


TASK = Task(
    name="side-by-side",
    title="Lay texts and init texts so that what stays lies side by side.",
    text=_text,
    template=lambda _: (
        "# The lowest page that fits; for D there is none.\n"
        "text = [0, 5, 2, 3]\ninit = [2, 6, 3, 8]\n"
    ),
    hints=(
        "Which texts are still there at last? They are laid while others are in the way.",
        "What stays may lie at both ends of the chunk: what is free between is one piece, too.",
        (
            "B goes to one end, C and D to the other. When C comes, only A's init text has gone; "
            "when D comes, A's text and C's init text have."
        ),
    ),
    grade=_grade,
    unit="pages that were ever used",
    best={"x86_64": 8, "arm64": 8, "riscv64": 8, "mips64el": 8},
)
