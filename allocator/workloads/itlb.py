# SPDX-License-Identifier: GPL-2.0-or-later
"""How often instruction fetch misses the TLB, for a mix of calls over given texts.

Large leaves are worth their trouble because an instruction TLB has few entries: one 2 MiB
leaf holds what needs 512 entries otherwise. The model is a set-associative cache with LRU
replacement per set, and the numbers of sets and ways are those of real cores. It counts
misses of the first level; what a miss costs (a second-level TLB, a page walk) is left out.

The mix is synthetic and repeatable. A call picks a text, the popular ones far more often
(Zipf's law), and an address in it, low ones more often; from there it goes where the
module's own call sites lead: to the kernel image, to another module, or nowhere. Between
two calls other code runs on 4 KiB pages of its own (user space, mostly), and that is what
pushes entries out. Only misses on the given texts are counted.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType

import attrs

from allocator.types import GIB, LARGE_PAGE_SIZE, PAGE_SIZE, Interval, Paging


@attrs.frozen
class TlbShape:
    """The shape of one TLB: sets (selected by low page-number bits) of so many ways."""

    sets: int
    ways: int


@attrs.frozen(kw_only=True)
class Core:
    """The first-level instruction TLB of a core; `large` None: all sizes share `small`."""

    title: str
    arch: str
    small: TlbShape
    large: TlbShape | None = None


CORES: Mapping[str, Core] = MappingProxyType(
    {
        # Intel 64 and IA-32 Optimization Reference Manual, Skylake server: 128 entries of
        # 8 ways for 4 KiB, 8 fully associative entries per thread for 2 MiB.
        "skylake": Core(
            title="Intel Skylake", arch="x86_64", small=TlbShape(16, 8), large=TlbShape(1, 8)
        ),
        # Software Optimization Guide, family 19h: 64 entries, fully associative, all sizes.
        "zen3": Core(title="AMD Zen 3", arch="x86_64", small=TlbShape(1, 64)),
        # Neoverse N1 TRM, L1 instruction TLB: 48 entries, fully associative, all sizes.
        "neoverse-n1": Core(title="Arm Neoverse N1", arch="arm64", small=TlbShape(1, 48)),
        # SiFive U74 core complex manual: 40 entries, fully associative, all sizes.
        "u74": Core(title="SiFive U74", arch="riscv64", small=TlbShape(1, 40)),
    }
)


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


class InstructionTlb:
    """A first-level instruction TLB with LRU replacement in each set."""

    def __init__(self, core: Core) -> None:
        self._small = [OrderedDict[int, None]() for _ in range(core.small.sets)]
        self._ways = core.small.ways
        large = core.large
        self._large = (
            self._small if large is None else [OrderedDict[int, None]() for _ in range(large.sets)]
        )
        self._large_ways = self._ways if large is None else large.ways

    def access(self, address: int, leaf: int) -> bool:
        """Fetch from `address`, mapped by a leaf of `leaf` bytes; return whether it hit."""
        page = address // leaf
        small = leaf < LARGE_PAGE_SIZE
        sets, ways = (self._small, self._ways) if small else (self._large, self._large_ways)
        held = sets[page % len(sets)]
        key = page * leaf + (not small)  # a page and a large leaf may begin here
        if key in held:
            held.move_to_end(key)
            return True
        if len(held) >= ways:
            held.popitem(last=False)
        held[key] = None
        return False


def misses_per_million(
    targets: Sequence[CalledText],
    leaves: Mapping[int, int],
    image: Interval,
    *,
    cores: Mapping[str, Core] = CORES,
    mix: CallMix | None = None,
    paging: Paging | None = None,
) -> dict[str, float]:
    """Return, per core, first-level misses on the targets' texts per million calls.

    Parameters
    ----------
    leaves
        Page number (address / bytes of a page) -> bytes of the leaf that maps it; a page where
        missing.
    image
        The kernel image, which large leaves map.
    paging
        How large pages and large leaves are.
    """
    mix, paging = mix or CallMix(), paging or Paging()
    page, large = paging.page, paging.large
    if not targets:
        return dict.fromkeys(cores, 0.0)
    warm_up = mix.calls // 4
    tlbs = {name: InstructionTlb(core) for name, core in cores.items()}
    misses = dict.fromkeys(cores, 0)
    for number, accesses in enumerate(_calls(targets, image, mix, warm_up + mix.calls)):
        for address, counts in accesses:
            leaf = large if address in image else leaves.get(address // page, page)
            for name, tlb in tlbs.items():
                if not tlb.access(address, leaf) and counts and number >= warm_up:
                    misses[name] += 1
    return {name: count * 1e6 / mix.calls for name, count in misses.items()}


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
