# SPDX-License-Identifier: GPL-2.0-or-later
"""Patch what is queued when it must be, so that the handler's table is always sorted."""

from __future__ import annotations

from collections.abc import Sequence

from allocator.types import PAGE_SIZE, MemType
from archs import Arch
from emulator.faults import Fault
from machine.machine import ModelledMachine
from machine.patching import Phase
from machine.racing.state import bsearch
from samples.course.task import Answer, AnswerError, Check, Task, Verdict, plural
from samples.jump import ARGUMENTS, FROM, TO
from samples.modules import root

# Sites by number of their place in memory, in the order in which they are asked for.
ASKED = (2, 5, 7, 6, 8, 1, 3, 4, 0, 9)
APART, SYNCS = 0x40, 3  # bytes between two sites; synchronisations of all CPUs in a batch


def batches(after: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the sites that are patched at once, where the queue is patched after some requests."""
    ends = sorted({*after, len(ASKED)})
    return [ASKED[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


def looked(table: Sequence[int], site: int) -> list[int]:
    """Return where a search by halves looks for a site, one after the other."""
    found, base, left = [], 0, len(table)
    while left > 0:
        pivot = base + left // 2
        found.append(table[pivot])
        if table[pivot] == site:
            break
        if site > table[pivot]:
            base, left = pivot + 1, left - 1
        left //= 2
    return found


class Sites:
    """Jumps in text of their own, on a machine whose second CPU calls them."""

    def __init__(self, arch: Arch) -> None:
        assert arch.live_patch is not None
        self.machine = ModelledMachine(arch, root=root(arch.name), cpus=2)
        gcd, lcm = [self.machine.load(module).symbols[name] for module, name in (FROM, TO)]
        pending = self.machine.execmem.alloc(MemType.TEXT, PAGE_SIZE, align=PAGE_SIZE)
        self.places = [pending.address + number * APART for number in range(len(ASKED))]
        jump = arch.live_patch.jump
        self.olds, self.news = ([jump(at, to) or b"" for at in self.places] for to in (gcd, lcm))
        for number, old in enumerate(self.olds):
            pending.write(number * APART, old)
        pending.finish()

    def patch(self, batch: Sequence[int]) -> list[int]:
        """Patch sites with a table in this order; return those at which CPU 1 met a trap."""
        table, trapped = [self.places[number] for number in batch], []

        def meet(_: Phase) -> None:
            for number in batch:
                at = self.places[number]
                if not bsearch(table, at):
                    self.machine.breakpoints.pop(at, None)
                try:
                    self.machine.call(at, *ARGUMENTS, cpu=1, instructions=10_000)
                except Fault:
                    if number not in trapped:
                        trapped.append(number)

        sites = [(self.places[n], self.news[n], self.olds[n]) for n in batch]
        self.machine.patch_many(sites, on_phase=meet)
        return trapped


def _text(_: Arch) -> str:
    asked = ", ".join(f"{number * APART:#x}" for number in ASKED)
    return (
        f"{len(ASKED)} jumps in a page are to change, and are asked for in this order of offsets:\n"
        f"  {asked}\n"
        "Each is put at the end of a queue. When the queue is patched, it is the table in which the\n"
        f"breakpoint's handler searches by halves; that takes {SYNCS} synchronisations of all CPUs,\n"
        "however many sites there are. Say after which requests the queue is patched (1 is after\n"
        "the first); after the last it always is. Another CPU executes every jump meanwhile."
    )


def _grade(answer: Answer) -> Verdict:
    after = answer.numbers("after")
    for each in after:
        if not 1 <= each <= len(ASKED):
            reason = f"after has {each}; there are requests 1 to {len(ASKED)}"
            raise AnswerError(answer.file, reason)
    sites, checks = Sites(answer.arch), []
    found = batches(after)
    for batch in found:
        table, trapped = [site * APART for site in batch], sites.patch(batch)
        said = plural(0, "site")
        if trapped:
            first = trapped[0] * APART
            way = ", ".join(f"{each:#x}" for each in looked(table, first))
            said = (
                f"{plural(len(trapped), 'site')}, the first {first:#x}: the search looks at {way}, "
                "and ends"
            )
        named = ", ".join(f"{each:#x}" for each in table)
        checks.append(Check(f"not found in {named}", said, plural(0, "site"), not trapped))
    return Verdict(tuple(checks), len(found))


TASK = Task(
    name="fewest-batches",
    title="Patch the queue when it has to be, so that every breakpoint is found.",
    text=_text,
    template=lambda _: "after = []\n",
    hints=(
        "A search by halves finds all that is in a table if, and only if, the table is sorted.",
        "Look for requests that lie below the one before them.",
        "One batch ends before each request whose offset is lower than the one before it.",
    ),
    grade=_grade,
    unit="batches",
    best={"x86_64": 4},
)
