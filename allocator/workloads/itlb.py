# SPDX-License-Identifier: GPL-2.0-or-later
"""How often instruction fetch misses the TLB, for a mix of calls over given texts.

Large leaves are worth their trouble because an instruction TLB has few entries: one 2 MiB
leaf holds what needs 512 entries otherwise. The model is set-associative caches, whose sets, ways and
replacement are those of real cores (`cores`). It counts
misses of the first level, misses of the second, which are page walks, and what a walk reads of
page tables. How long that takes is left out, and so are data, which share the second level of
most cores, and translations that are fetched ahead.

The mix is synthetic and repeatable. A call picks a text, the popular ones far more often
(Zipf's law), and an address in it, low ones more often; from there it goes where the
module's own call sites lead: to the kernel image, to another module, or nowhere. Between
two calls other code runs on 4 KiB pages of its own (user space, mostly), and that is what
pushes entries out. Only misses on the given texts are counted.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import attrs

from allocator.pagetable import PageTable
from allocator.types import GIB, LARGE_PAGE_SIZE, PAGE_SIZE, Interval, Paging
from allocator.workloads.cores import CORES, Core, Policy, TlbShape


@attrs.frozen(kw_only=True)
class CallMix:
    """How calls are drawn.

    Parameters
    ----------
    calls
        Calls that are counted; a quarter as many run before, to fill the TLB.
    other_pages, other_accesses
        4 KiB pages of other code, and how many of them run between two calls.
    """

    calls: int = 2000
    other_pages: int = 1024
    other_accesses: int = 2
    seed: int = 1


@attrs.frozen
class CalledText:
    """A text that is called, and its call sites to the kernel, to other modules, and within."""

    text: Interval
    calls: tuple[int, int, int] = (1, 0, 0)


class _Queue:
    """A set whose entries stand in line: who is used goes to the end (LRU), or stays (FIFO)."""

    def __init__(self, ways: int, *, again: bool) -> None:
        self._ways, self._again = ways, again
        self._held = OrderedDict[int, None]()

    def access(self, key: int) -> bool:
        """Look a key up, and hold it; return whether it was there."""
        held = self._held
        if key in held:
            if self._again:
                held.move_to_end(key)
            return True
        if len(held) >= self._ways:
            held.popitem(last=False)
        held[key] = None
        return False


class _Tree:
    """A set with a binary tree over its ways, each node of which points to the half to be left."""

    def __init__(self, ways: int) -> None:
        self._ways = ways
        self._right = [False] * ways  # by node, the root being 1
        self._slots: dict[int, int] = {}
        self._keys: list[int] = []

    def access(self, key: int) -> bool:
        """Look a key up, and hold it; return whether it was there."""
        slot = self._slots.get(key)
        found = slot is not None
        if slot is None:
            slot = len(self._keys)
            if slot < self._ways:
                self._keys.append(key)
            else:
                node = 1
                while node < self._ways:
                    node = 2 * node + self._right[node]
                slot = node - self._ways
                del self._slots[self._keys[slot]]
                self._keys[slot] = key
            self._slots[key] = slot
        node = slot + self._ways
        while node > 1:
            self._right[node // 2] = not node % 2
            node //= 2
        return found


class _Entries:
    """One array of translations."""

    def __init__(self, shape: TlbShape) -> None:
        tree, again = shape.policy is Policy.PLRU, shape.policy is Policy.LRU
        self._sets = [
            _Tree(shape.ways) if tree else _Queue(shape.ways, again=again)
            for _ in range(shape.sets)
        ]

    def access(self, page: int, key: int) -> bool:
        """Look up `key` in the set of a page number, and hold it; return whether it was there."""
        return self._sets[page % len(self._sets)].access(key)


class Lookup(NamedTuple):
    """What one fetch took.

    Parameters
    ----------
    level
        The level that had the translation: 1, 2, or 0 for a page walk.
    least, most
        Entries of page tables that the walk reads, all upper levels being cached, and none.
    """

    level: int
    least: int = 0
    most: int = 0


class InstructionTlb:
    """The TLBs of a core, as instruction fetches see them; `large` is what ends a walk earlier."""

    def __init__(self, core: Core, *, large: int = LARGE_PAGE_SIZE) -> None:
        self._core, self._large_leaf = core, large
        self._small = _Entries(core.small)
        self._large = self._small if core.large is None else _Entries(core.large)
        self._second = None if core.second is None else _Entries(core.second)
        self._walks = None if core.walks is None else _Entries(core.walks)

    def access(self, address: int, leaf: int) -> bool:
        """Fetch from `address`, mapped by a leaf of `leaf` bytes; return whether level 1 hit."""
        return self.lookup(address, leaf).level == 1

    def lookup(self, address: int, leaf: int, run: int = 0) -> Lookup:
        """Fetch from an address, and return what that took.

        Parameters
        ----------
        leaf
            Bytes of the leaf that maps it.
        run
            Bytes of the aligned run of contiguous pages that it lies in; 0: a page.
        """
        core, small = self._core, leaf < self._large_leaf
        held = max(leaf, min(run, core.merges)) if small else leaf
        page = address // held
        key = page * held + (not small)  # a page and a large leaf may begin here
        first = self._small if small else self._large
        if first.access(page, key):
            return Lookup(1)
        if self._second is not None and self._second.access(page, key):
            return Lookup(2)
        depth = core.levels - (not small)
        if core.whole_walks:
            return Lookup(0, depth, depth)
        if self._walks is None:
            return Lookup(0, 1, depth)
        table = address // self._large_leaf
        reads = 1 if small and self._walks.access(table, table) else depth
        return Lookup(0, reads, reads)


@attrs.frozen(kw_only=True)
class Translations:
    """What calls cost on one core, per million.

    Parameters
    ----------
    misses
        Of the first level.
    walks
        Misses of the last level.
    reads
        Entries of page tables that walks read: at least, and at most. They are one number where
        what is published of the core's walks says it.
    """

    misses: float = 0.0
    walks: float = 0.0
    reads: tuple[float, float] = (0.0, 0.0)


def translations(
    targets: Sequence[CalledText],
    leaves: Mapping[int, int],
    image: Interval,
    *,
    runs: Mapping[int, int] | None = None,
    cores: Mapping[str, Core] = CORES,
    mix: CallMix | None = None,
    paging: Paging | None = None,
) -> dict[str, Translations]:
    """Return, per core, what fetches from the targets' texts cost per million calls.

    Parameters
    ----------
    leaves
        Page number (address / bytes of a page) -> bytes of the leaf that maps it; a page where
        missing.
    image
        The kernel image, which large leaves map.
    runs
        Page number -> bytes of the aligned run of contiguous pages that it lies in; a page where
        missing.
    paging
        How large pages and large leaves are.
    """
    mix, paging, runs = mix or CallMix(), paging or Paging(), runs or {}
    page, large = paging.page, paging.large
    if not targets:
        return dict.fromkeys(cores, Translations())
    warm_up = mix.calls // 4
    tlbs = {name: InstructionTlb(core, large=large) for name, core in cores.items()}
    marked = {name for name, core in cores.items() if core.runs}
    found = {name: [0, 0, 0, 0] for name in cores}
    for number, accesses in enumerate(_calls(targets, image, mix, warm_up + mix.calls)):
        for address, counts in accesses:
            leaf = large if address in image else leaves.get(address // page, page)
            run = runs.get(address // page, 0)
            in_run = page < leaf < large
            for name, tlb in tlbs.items():
                held = page if in_run and name not in marked else leaf
                took = tlb.lookup(address, held, run)
                if took.level != 1 and counts and number >= warm_up:
                    count = found[name]
                    count[0] += 1
                    count[1] += took.level == 0
                    count[2] += took.least
                    count[3] += took.most
    scale = 1e6 / mix.calls
    return {
        name: Translations(
            misses=misses * scale, walks=walks * scale, reads=(least * scale, most * scale)
        )
        for name, (misses, walks, least, most) in found.items()
    }


def misses_per_million(
    targets: Sequence[CalledText], leaves: Mapping[int, int], image: Interval, **more: Any
) -> dict[str, float]:
    """Return, per core, first-level misses on the targets' texts per million calls.

    Parameters are those of `translations`.
    """
    told = translations(targets, leaves, image, **more)
    return {name: each.misses for name, each in told.items()}


def mapped(
    table: PageTable, targets: Iterable[CalledText], page: int, largest: int
) -> tuple[dict[int, int], dict[int, int]]:
    """Return what `translations` asks of page tables: leaves above a page, and contiguous runs.

    Parameters
    ----------
    largest
        Bytes of the longest run that counts; a power of two.
    """
    leaves: dict[int, int] = {}
    frames: dict[int, int] = {}
    for target in targets:
        first, last = target.text.start // page, (target.text.end - 1) // page
        for leaf in table.leaves(target.text):
            held = range(max(first, leaf.va // page), min(last + 1, (leaf.va + leaf.size) // page))
            if leaf.size > page:
                leaves.update(dict.fromkeys(held, leaf.size))
            else:
                frames[leaf.va // page] = leaf.pa // page
    runs: dict[int, int] = {}
    size = 2
    while size * page <= largest:
        for at in [at for at in frames if not at % size and not frames[at] % size]:
            pages = range(at, at + size)
            if all(frames.get(one) == frames[at] + one - at for one in pages):
                runs.update(dict.fromkeys(pages, size * page))
        size *= 2
    return leaves, runs


def _calls(
    targets: Sequence[CalledText], image: Interval, mix: CallMix, count: int
) -> Iterator[list[tuple[int, bool]]]:
    """Yield per call the addresses that are fetched from, and whether a miss there counts."""
    chance = random.Random(mix.seed)  # noqa: S311 - a mix that can be repeated, no secret
    order = list(targets)
    chance.shuffle(order)
    weights = list(accumulate(1 / rank for rank in range(1, len(order) + 1)))

    def within(interval: Interval) -> int:
        return interval.start + int(interval.size * chance.random() ** 2)

    for target in chance.choices(order, cum_weights=weights, k=count):
        accesses = [(within(target.text), True)]
        kernel, modules, own = target.calls
        goes = chance.random() * max(kernel + modules + own, 1)
        if goes < kernel:
            accesses.append((within(image), False))
        elif goes < kernel + modules:
            callee = chance.choices(order, cum_weights=weights)[0]
            accesses.append((within(callee.text), True))
        # User space: the first gigabytes of the other half.
        accesses += (
            (GIB + chance.randrange(mix.other_pages) * PAGE_SIZE, False)
            for _ in range(mix.other_accesses)
        )
        yield accesses
