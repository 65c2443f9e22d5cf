# SPDX-License-Identifier: GPL-2.0-or-later
"""The worst TLB: it keeps every translation that was ever valid, until a flush that reaches it.

A CPU may look up any address at any moment, so whatever a page table said since the last flush
may still be in a TLB, all of it at once. Two CPUs are enough: the one that does the kernel's
work, which hears local flushes and alone loads the address space of the text_poke window, and
one that hears flushes of all CPUs only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from allocator.memory import KernelMemory
from allocator.pagetable import PageTable
from allocator.types import Interval, Prot

Seen = dict[int, set[tuple[int, Prot]]]
HERE, ELSEWHERE = 0, 1


class WorstTlb:
    """Translations that CPUs may still hold of one kernel memory.

    Parameters
    ----------
    memory
        Its page tables are wrapped for good.
    deaf
        Number of the range of a flush, from 1, that nobody hears; 0: none.
    aside
        A range whose flushes do not count.

    `heard` counts the ranges of all flushes, `needless` has those that drop only what still holds.
    """

    def __init__(
        self, memory: KernelMemory, *, deaf: int = 0, aside: Interval | None = None
    ) -> None:
        self._memory = memory
        self._deaf = deaf
        self._aside = aside
        self.heard = 0
        self.needless: list[Interval] = []
        self._seen: dict[int, tuple[Seen, Seen]] = {}
        self._watch(memory.page_table, "map unmap change set_pte clear_pte collapse")
        self._watch(memory.poking_mm, "map unmap change set_pte clear_pte")
        memory.on_tlb_flush(self._flush)

    def _watch(self, table: PageTable, methods: str) -> None:
        self._seen[id(table)] = ({}, {})
        for name in methods.split():
            setattr(table, name, self._wrapped(table, name, getattr(table, name)))

    def _wrapped(self, table: PageTable, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        page, large = table.paging.page, table.paging.large

        def call(va: int, *args: Any, **kwargs: Any) -> Any:
            if name in ("unmap", "change"):
                self._look(table, Interval(va, va + args[0]))
            elif name == "clear_pte":
                self._look(table, Interval(va, va + page))
            elif name == "collapse":
                self._look(table, Interval(va, va + large))
            return real(va, *args, **kwargs)

        return call

    def _look(self, table: PageTable, interval: Interval) -> None:
        """Remember what the range leads to now, on every CPU that has loaded the table."""
        cpus = (HERE,) if table is self._memory.poking_mm else (HERE, ELSEWHERE)
        for va, entry in self._entries(table, interval):
            for cpu in cpus:
                self._seen[id(table)][cpu].setdefault(va, set()).add(entry)

    @staticmethod
    def _entries(table: PageTable, interval: Interval) -> list[tuple[int, tuple[int, Prot]]]:
        page = table.paging.page
        return [
            (span.va + at, (span.pa + at, span.prot))
            for span in table.spans(interval.start, interval.size)
            if span.pa is not None and span.prot is not Prot.NONE
            for at in range(0, span.size, page)
        ]

    def _flush(self, start: int, end: int, all_cpus: bool) -> None:
        if Interval(start, end) == self._aside:
            return
        self.heard += 1
        if self.heard == self._deaf:
            return
        if not self.stale(Interval(start, end)):
            self.needless.append(Interval(start, end))
        for views in self._seen.values():
            for cpu in (HERE, ELSEWHERE) if all_cpus else (HERE,):
                for va in [va for va in views[cpu] if start <= va < end]:
                    del views[cpu][va]

    def stale(self, within: Interval | None = None) -> list[str]:
        """Return what some CPU may do that the page table does not allow, or may not that it does."""
        found = []
        for table in (self._memory.page_table, self._memory.poking_mm):
            for cpu, seen in enumerate(self._seen[id(table)]):
                for va, entries in seen.items():
                    if within is not None and va not in within:
                        continue
                    now = table.translate(va)
                    for frame, prot in entries:
                        if now is None or now.address != frame:
                            found.append(f"CPU {cpu}: {va:#x} leads to {frame:#x} {prot} no more")
                        elif now.prot is not prot:
                            found.append(f"CPU {cpu}: {va:#x} is {now.prot}, was {prot}")
        return found
