# SPDX-License-Identifier: GPL-2.0-or-later
"""Words of a race: what patching CPUs do, the sites, and everything that steps change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import attrs

T = TypeVar("T")

# What patching CPUs do ---------------------------------------------------------------------------


@attrs.frozen
class Arm:
    """Let the trap handler know sites, in this order; none: forget them."""

    sites: tuple[int, ...]


@attrs.frozen
class MapAlias:
    """Map a page of the alias to a frame, or to nothing (None)."""

    page: int
    frame: int | None


@attrs.frozen
class FlushAlias:
    """Drop what TLBs know of pages of the alias: this CPU's, or those of all that poke."""

    pages: tuple[int, ...]
    broadcast: bool


@attrs.frozen
class Put:
    """Store one granule through a page of the alias, or where it is mapped itself (None)."""

    page: int | None
    cell: int
    data: bytes


@attrs.frozen
class Maintain:
    """Execute one instruction of `LivePatch.maintenance` for some granules."""

    name: str
    cells: tuple[int, ...]


@attrs.frozen
class Sync:
    """Make one CPU fetch anew what stands in some granules."""

    executor: int
    cells: tuple[int, ...]


@attrs.frozen
class Protect:
    """Change what the text's page allows, as page tables say."""

    rights: str


@attrs.frozen
class FlushText:
    """Drop what TLBs know of the text's page."""

    broadcast: bool


@attrs.frozen
class Stop:
    """Wait until a CPU stands between two instructions, and keep it there."""

    executor: int


@attrs.frozen
class LookInside:
    """Give up if a CPU stands inside of what is going to be replaced."""


@attrs.frozen
class Go:
    """Let the CPUs go that were stopped."""


@attrs.frozen
class Lock:
    """Take text_mutex."""


@attrs.frozen
class Unlock:
    """Give text_mutex back."""


@attrs.frozen
class Done:
    """Sites, by number, are patched: from now on nobody may do what was there before."""

    places: tuple[int, ...]


Op: TypeAlias = (
    Arm
    | MapAlias
    | FlushAlias
    | Put
    | Maintain
    | Sync
    | Protect
    | FlushText
    | Stop
    | LookInside
    | Go
    | Lock
    | Unlock
    | Done
)


# What there is -----------------------------------------------------------------------------------


class Bad(NamedTuple):
    """What must not happen, and where it did."""

    kind: str
    text: str


KINDS = {
    "torn": "an instruction is executed that nobody wrote",
    "unpredictable": "an instruction is executed that may not be replaced under a CPU",
    "stray": "a breakpoint is met that no handler knows",
    "stale": "the old instruction is executed after the patch was made",
    "alias": "a store goes to another frame than the alias was mapped to",
    "lost": "what was written is not there at the end",
    "window": "text is executed while some CPU can write to it",
    "foreign": "a store goes into memory that is somebody else's",
    "freed": "a CPU still reaches memory that has been given back",
    "sealed": "what is sealed can still be written to",
    "fault": "a store goes where nothing may be written",
    "stuck": "CPUs wait for one another",
}


@attrs.frozen
class Place:
    """One site that is patched.

    Parameters
    ----------
    cells
        Its granules, by number, in order.
    old, new
        What stands there before and afterwards.
    old_sizes, new_sizes
        Bytes of each of their instructions; what stands behind the new ones is never executed.
    others
        What else may stand there in the end, of the same sizes: several CPUs patch it.
    """

    address: int
    cells: tuple[int, ...]
    old: bytes
    new: bytes
    old_sizes: tuple[int, ...]
    new_sizes: tuple[int, ...]
    others: tuple[bytes, ...] = ()

    def instructions(self, offset: int) -> list[tuple[bytes, str]]:
        """Return the instructions that may be met at an offset, and whose they are."""
        found = []
        for whose, code, sizes in (
            ("old", self.old, self.old_sizes),
            ("new", self.new, self.new_sizes),
            *(("new", other, self.new_sizes) for other in self.others),
        ):
            at = 0
            for size in sizes:
                if at == offset:
                    found.append((code[at : at + size], whose))
                at += size
        return found

    def size(self, whose: str) -> int:
        """Return the bytes of all that is executed there: of the old, the new, or either code."""
        return max(
            sum(sizes)
            for name, sizes in (("old", self.old_sizes), ("new", self.new_sizes))
            if whose in (name, "same")
        )


# Now; by executor: what stood there, and how many steps of maintenance it has yet to get through.
Cell: TypeAlias = tuple[bytes, tuple[frozenset[tuple[bytes, int]], ...]]
Pte: TypeAlias = tuple[int | None, tuple[frozenset[int], ...]]  # by patcher
Rights: TypeAlias = tuple[str, tuple[frozenset[str], ...]]  # by CPU, patchers first


class Executor(NamedTuple):
    """A CPU that executes sites: visits that are left, where it stands, and what it did.

    `offset` is -1 in the handler of a trap that it took at `site`; behind an instruction of
    several, `doing` says whose.
    """

    visits: int
    site: int = -1
    offset: int = 0
    doing: str = ""
    stopped: bool = False
    log: tuple[tuple[int, str], ...] = ()


class State(NamedTuple):
    """Everything that steps change."""

    at: tuple[int, ...]  # by patcher: its next operation
    cells: tuple[Cell, ...]
    aliases: tuple[Pte, ...]
    rights: Rights
    armed: tuple[int, ...]
    done: tuple[bool, ...]  # by place
    owner: int
    executors: tuple[Executor, ...]
    bads: tuple[Bad | None, ...]  # by CPU: who has gone wrong goes on no more


Lookup: TypeAlias = Callable[[Sequence[int], int], bool]


def anywhere(table: Sequence[int], address: int) -> bool:
    """Look for a site in the whole table."""
    return address in table


def bsearch(table: Sequence[int], address: int) -> bool:
    """Look for a site as the kernel's bsearch() does: in a table that must be sorted."""
    base, left = 0, len(table)
    while left > 0:
        pivot = base + left // 2
        if table[pivot] == address:
            return True
        if address > table[pivot]:
            base = pivot + 1
            left -= 1
        left //= 2
    return False


def put_in(items: tuple[T, ...], index: int, item: T) -> tuple[T, ...]:
    """Return items with another one at a place."""
    return (*items[:index], item, *items[index + 1 :])
