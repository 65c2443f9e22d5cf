# SPDX-License-Identifier: GPL-2.0-or-later
"""A design that comes from elsewhere, watched: what it owes is looked at after every call.

Our own designs are held to their contract by tests. Somebody else's may be an hour old, so
each call is followed by a look at the page table: does memory lie where it may, alone and
aligned, empty at birth, with the bytes that were written, under its final protection, and
have the neighbours kept theirs? Whatever it raises, returns or forgets becomes a
`DesignError` that names the design, the operation and the request.

Nobody knows what a design that failed has left behind, so it is not called again: memory
that is given back is left where it is, and anything else fails as the first time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from sortedcontainers import SortedDict

from allocator.designs.base import Allocation, Context, Design, Request, Store
from allocator.errors import AllocationError, DesignError, ExecmemError, printable
from allocator.physical import repeat
from allocator.plugins import said
from allocator.types import (
    Address,
    Consumer,
    ExecmemRange,
    Interval,
    MemType,
    Prot,
    align_down,
    align_up,
)

T = TypeVar("T")


class Checked(Design):
    """Another design, with every promise verified.

    Parameters
    ----------
    made
        The class of the design.
    """

    def __init__(self, context: Context, made: type[Design]) -> None:
        super().__init__(context)
        self.name = printable(made.name)
        self.aside = 0.0
        self._failure: DesignError | None = None
        self._held = SortedDict()  # address -> Allocation, until it is freed
        self._final: dict[int, Prot] = {}  # protection of what is finished
        with self._asked("create", None):
            self._design = made(context)

    # What Execmem asks ---------------------------------------------------------------------

    def where(self, mem_type: MemType, consumer: Consumer) -> ExecmemRange:
        """Return the legal ranges."""
        what = f"{mem_type.name} for {consumer.value}"
        with self._asked("where", None, what):
            found = self._design.where(mem_type, consumer)
            self._require(isinstance(found, ExecmemRange), f"returned {_shown(found)}, no range")
        return found

    def alloc(self, request: Request) -> Allocation:
        """Take memory for `request`."""
        with self._asked("alloc", request):
            found = self._design.alloc(request)
            with self._looking():
                self._require(
                    isinstance(found, Allocation), f"returned {_shown(found)}, no Allocation"
                )
                self._look_at_new(request, found)
        self._held[found.address] = found
        return found

    def write(self, allocation: Allocation, offset: int, data: bytes) -> None:
        """Store `data`, and find it again."""
        with self._asked("write", allocation):
            self._design.write(allocation, offset, data)
            with self._looking():
                found = self.memory.read(self._staged(allocation) + offset, len(data))
                at = _first_difference(found, data)
                self._require(at is None, f"byte {offset + (at or 0):#x} is not what was written")

    def finish(self, allocation: Allocation) -> None:
        """Make it final: protection and bytes are looked at."""
        with self._asked("finish", allocation):
            with self._looking():
                staged = self._staged(allocation)
                before = self.memory.read(staged, allocation.size)
            self._design.finish(allocation)
            with self._looking():
                final = allocation.type.final_prot
                if allocation.type is MemType.RO_AFTER_INIT:
                    final = Prot.RW
                self._final[allocation.address] = final
                self._look_at(allocation)
                self._look_at_neighbours(allocation)
                found = self.memory.read(allocation.address, allocation.size)
                at = _first_difference(found, before)
                self._require(at is None, f"byte {at or 0:#x} is not what was written")

    def seal(self, allocation: Allocation) -> None:
        """Make RO_AFTER_INIT memory read-only, and nothing else."""
        with self._asked("seal", allocation):
            self._design.seal(allocation)
            with self._looking():
                self._final[allocation.address] = Prot.R
                self._look_at(allocation)
                self._look_at_neighbours(allocation)

    def abandon(self, allocation: Allocation) -> None:
        """Give back an allocation that was not finished."""
        self._give_back("abandon", allocation)

    def free(self, allocation: Allocation) -> None:
        """Give the memory back."""
        self._give_back("free", allocation)

    def staged(self, allocation: Allocation) -> Address:
        """Return where the bytes of a pending allocation lie until it is finished."""
        with self._asked("staged", allocation):
            return self._staged(allocation)

    def store(self, what: Request | Allocation) -> Store:
        """Return who keeps such memory."""
        with self._asked("store", what):
            return self._design.store(what)

    def stores(self) -> tuple[Store, ...]:
        """Return every store once."""
        with self._asked("stores", None):
            return tuple(self._design.stores())

    def check(self, live: Iterable[Allocation]) -> None:
        """Assert what the design knows of itself; DesignError where that does not hold."""
        with self._asked("check", None):
            self._design.check(live)
            for allocation in self._held.values():
                self._look_at(allocation)

    def free_intervals(self) -> Iterator[Interval]:
        """Yield mapped memory that no allocation uses."""
        with self._asked("free_intervals", None):
            found = list(self._design.free_intervals())
            strange = [area for area in found if not isinstance(area, Interval)]
            self._require(not strange, f"returned {_shown(strange[:1])}, no Interval")
        return iter(found)

    # Looking -------------------------------------------------------------------------------

    @contextmanager
    def _asked(
        self, operation: str, about: Request | Allocation | None, what: str = ""
    ) -> Iterator[None]:
        """Let whatever happens inside become a DesignError, the first one for good."""
        if self._failure is not None:
            raise self._failure
        size, address = 0, None
        if about is not None:
            what, size = f"{about.type.name} for {about.consumer.value}", about.size
            address = about.address if isinstance(about, Allocation) else None
        failed = partial(DesignError, self.name, operation, what, size, address)
        try:
            yield
        except AllocationError:
            raise  # no room: a design may say so
        except _Broken as broken:
            self._failure = failed(str(broken))
        except DesignError as error:
            self._failure = error
        except ExecmemError as error:
            self._failure = failed(str(error))
            self._failure.__cause__ = error
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- it is raised below
            self._failure = failed(said(error))
            self._failure.__cause__ = error
        if self._failure is not None:
            raise self._failure

    @contextmanager
    def _looking(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.aside += time.perf_counter() - began

    def _require(self, holds: bool, reason: str) -> None:
        if not holds:
            raise _Broken(reason)

    def _staged(self, allocation: Allocation) -> Address:
        found = self._design.staged(allocation)
        self._require(type(found) is int, f"staged() returned {_shown(found)}, no address")
        return found

    def _look_at_new(self, request: Request, found: Allocation) -> None:
        asked = (request.type, request.consumer, request.size)
        got = (found.type, found.consumer, found.size)
        self._require(got == asked, f"answered another request: {_shown(found)}")
        numbers = type(found.address) is int and type(found.reserved) is int
        self._require(numbers, f"returned {_shown(found)}, whose numbers are none")
        taken, at = found.taken, f"{found.address:#x}"
        self._require(
            found.reserved >= found.size, f"reserved {found.reserved:#x} bytes only at {at}"
        )
        align = max(request.align, 1)
        self._require(found.address % align == 0, f"{at} is not aligned to {align:#x}")
        legal = any(interval.holds(taken) for interval in request.intervals)
        ranges = " or ".join(map(str, request.intervals))
        self._require(legal, f"{taken} is not in {ranges}")
        for other in self._around(taken):
            same = "the allocation" if other.address == found.address else "the taken memory"
            self._require(
                not other.taken.overlaps(taken),
                f"{taken} overlaps {other.taken}, {same} of {other.type.name} for "
                f"{other.consumer.value}",
            )
        self._look_at(found)
        self._look_at_neighbours(found)
        held = self.memory.read(self._staged(found), found.size)
        empty = bytes(found.size)
        trap = repeat(self.context.trap, found.size, found.address)
        clean = held == empty or (found.type.is_text and held == trap)
        wanted = "the trap pattern or zero" if found.type.is_text else "zero"
        dirty = _first_difference(held, trap if found.type.is_text else empty)
        self._require(clean, f"the memory at {at} is not {wanted} (byte {dirty or 0:#x})")

    def _look_at(self, allocation: Allocation) -> None:
        """Require that it is mapped, and finished memory as it must be, to the last byte."""
        taken, wanted = allocation.taken, self._final.get(allocation.address)
        for span in self.memory.page_table.spans(taken.start, taken.size):
            part = f"[{span.va:#x}, {span.va + span.size:#x})"
            name = allocation.type.name
            self._require(span.pa is not None, f"{part} of {name} is not mapped")
            if wanted is not None:
                known = "" if wanted is Prot.RW else ", its final_prot"
                self._require(
                    span.prot is wanted, f"{part} of {name} is {span.prot}, not {wanted}{known}"
                )

    def _look_at_neighbours(self, allocation: Allocation) -> None:
        """Require that who shares a page with it has kept its protection."""
        taken, page = allocation.taken, self.memory.page_size
        pages = Interval(align_down(taken.start, page), align_up(taken.end, page))
        for other in self._around(pages):
            if other.address != allocation.address and other.taken.overlaps(pages):
                self._look_at(other)

    def _around(self, area: Interval) -> Iterator[Allocation]:
        """Yield what may overlap an area, lowest first."""
        index = max(self._held.bisect_left(area.start) - 1, 0)
        while index < len(self._held):
            address, allocation = self._held.peekitem(index)
            if address >= area.end:
                return
            yield allocation
            index += 1

    def _give_back(self, operation: str, allocation: Allocation) -> None:
        if self._failure is not None:
            return
        taken = allocation.taken
        with self._asked(operation, allocation):
            getattr(self._design, operation)(allocation)
            with self._looking():
                self._held.pop(allocation.address, None)
                self._final.pop(allocation.address, None)
                if allocation.type.is_text:
                    self._look_at_freed(taken)
                self._look_at_neighbours(allocation)

    def _look_at_freed(self, taken: Interval) -> None:
        """Require that freed text, where it stays mapped, holds nothing but traps."""
        for span in self.memory.page_table.spans(taken.start, taken.size):
            if span.pa is not None and span.prot.executable:
                held = self.memory.physical.read(span.pa, span.size)
                trap = repeat(self.context.trap, span.size, span.va)
                self._require(held == trap, f"the freed text at {span.va:#x} can still be executed")


class _Broken(Exception):
    """A promise that was not kept."""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 -- whatever somebody's __repr__ raises
        text = f"<{type(value).__name__}: {type(error).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _first_difference(one: bytes, other: bytes) -> int | None:
    """Return the first place where two strings of bytes differ, or None."""
    if one == other:
        return None
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
