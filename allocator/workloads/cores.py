# SPDX-License-Identifier: GPL-2.0-or-later
"""What is published of the instruction side of real cores' TLBs, with where it says so.

What nobody publishes is None here, and the model says what it can without: of page walks, between
how many and how many reads. Replacement policies are published for none of them; the model's is
LRU.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from allocator.types import KIB


@attrs.frozen
class TlbShape:
    """The shape of one TLB: sets (selected by low page-number bits) of so many ways."""

    sets: int
    ways: int

    @property
    def entries(self) -> int:
        """How many translations it holds."""
        return self.sets * self.ways


@attrs.frozen(kw_only=True)
class Core:
    """The TLBs that instruction fetches of a core go through.

    Parameters
    ----------
    small, large
        The first level for pages, and for large leaves; `large` None: all sizes share `small`.
    second
        The second level, shared by all sizes; None: there is none, or nothing is published.
    merges
        Bytes of pages that one entry can hold where they are contiguous and aligned, by the
        hardware's own doing; 0: a page.
    levels
        Of page tables that a walk reads for a page of 4 KiB.
    walks
        A cache of the addresses of last-level tables, which leaves a walk one read; None:
        nothing is published of its size.
    sources
        Where that is published.
    """

    title: str
    arch: str
    small: TlbShape
    large: TlbShape | None = None
    second: TlbShape | None = None
    merges: int = 0
    levels: int = 4
    walks: TlbShape | None = None
    sources: tuple[str, ...] = ()


CORES: Mapping[str, Core] = MappingProxyType(
    {
        "skylake": Core(
            title="Intel Skylake",
            arch="x86_64",
            small=TlbShape(16, 8),
            large=TlbShape(1, 8),
            second=TlbShape(128, 12),
            sources=(
                (
                    "Intel 64 and IA-32 Optimization Reference Manual, Skylake: ITLB 4 KiB 128 "
                    "entries 8 ways, 2 MiB 8 entries per thread; STLB 1,536 entries 12 ways"
                ),
            ),
        ),
        "golden-cove": Core(
            title="Intel Golden Cove",
            arch="x86_64",
            small=TlbShape(32, 8),
            large=TlbShape(4, 8),
            second=TlbShape(128, 16),
            sources=(
                (
                    "Intel 64 and IA-32 Optimization Reference Manual, Golden Cove: ITLB 4 KiB 256 "
                    "entries, 2 MiB 32; STLB 2,048 entries"
                ),
            ),
        ),
        "zen3": Core(
            title="AMD Zen 3",
            arch="x86_64",
            small=TlbShape(1, 64),
            second=TlbShape(64, 8),
            merges=16 * KIB,
            sources=(
                (
                    "AMD Software Optimization Guide, family 19h: L1 ITLB 64 entries, fully "
                    "associative, all sizes; L2 ITLB 512 entries, 8 ways"
                ),
                "the same, for pages that are contiguous and aligned: 16 KiB in one entry",
            ),
        ),
        "neoverse-n1": Core(
            title="Arm Neoverse N1",
            arch="arm64",
            small=TlbShape(1, 48),
            second=TlbShape(256, 5),
            sources=(
                (
                    "Arm Neoverse N1 Technical Reference Manual: L1 instruction TLB 48 entries, "
                    "fully associative, all sizes; L2 TLB 1,280 entries, 5 ways"
                ),
            ),
        ),
        "cortex-a53": Core(
            title="Arm Cortex-A53",
            arch="arm64",
            small=TlbShape(1, 10),
            second=TlbShape(128, 4),
            walks=TlbShape(16, 4),
            sources=(
                (
                    "Arm Cortex-A53 Technical Reference Manual: micro TLB 10 entries, fully "
                    "associative; main TLB 512 entries, 4 ways; walk cache 64 entries, 4 ways"
                ),
            ),
        ),
        "u74": Core(
            title="SiFive U74",
            arch="riscv64",
            small=TlbShape(1, 40),
            second=TlbShape(512, 1),
            levels=3,
            sources=(
                (
                    "SiFive U74 Core Complex Manual: ITLB 40 entries, fully associative, all sizes; "
                    "L2 TLB 512 entries, direct-mapped"
                ),
            ),
        ),
    }
)
