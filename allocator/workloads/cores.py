# SPDX-License-Identifier: GPL-2.0-or-later
"""What is published of the instruction side of real cores' TLBs, with where it says so.

What nobody publishes is None here, and the model says what it can without: of page walks, between
how many and how many reads. `unverified` names what is said somewhere and was found in no text that
could be opened, or only in texts that disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

import attrs

from allocator.types import KIB


class Policy(Enum):
    """Which entry of a full set makes room."""

    LRU = "LRU"  # that was used longest ago
    PLRU = "tree-PLRU"  # at each node of a binary tree the half that was not used last
    FIFO = "FIFO"  # that came first


@attrs.frozen
class TlbShape:
    """The shape of one TLB: sets (selected by low page-number bits) of so many ways.

    Parameters
    ----------
    policy
        LRU where nothing is published. PLRU takes a power of two of ways.
    """

    sets: int
    ways: int
    policy: Policy = Policy.LRU

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
    runs
        Whether one entry holds a run that page tables mark as one; where nothing is published, no.
    levels
        Of page tables that a walk reads for a page of 4 KiB.
    walks
        A cache of the addresses of last-level tables, which leaves a walk one read; None:
        nothing is published of its size.
    whole_walks
        Whether every walk begins at the root, because upper levels are cached nowhere.
    sources
        What was read, and where in it that stands.
    unverified
        What is not certain of the above.
    """

    title: str
    arch: str
    small: TlbShape
    large: TlbShape | None = None
    second: TlbShape | None = None
    merges: int = 0
    runs: bool = False
    levels: int = 4
    walks: TlbShape | None = None
    whole_walks: bool = False
    sources: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()


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
                    "Intel Optimization Reference Manual 248966-045, table 2-15, as quoted by Intel's "
                    "tuning forum (thread 1371605): ITLB 4 KiB 128 entries 8 ways, 2 MiB 8 a thread"
                ),
                "the same thread, CPUID of a Skylake server: STLB 1,536 entries for 4 KiB and 2 MiB",
                "WikiChip, Skylake (client), key changes: STLB 12 ways, 6 before",
            ),
            unverified=("ways of the STLB: CPUID (descriptor 0xc3) says 6",),
        ),
        "golden-cove": Core(
            title="Intel Golden Cove",
            arch="x86_64",
            small=TlbShape(32, 8, Policy.PLRU),
            large=TlbShape(4, 8, Policy.PLRU),
            second=TlbShape(128, 16, Policy.PLRU),
            sources=(
                (
                    "notes on Hennessy and Patterson, Computer Architecture, chapter 2, Intel Core "
                    "i9-12900: ITLB 256 entries for 4 KiB, 32 for 2 MiB, 8 ways, pseudo-LRU; STLB "
                    "2,048 entries for all sizes, 16 ways, pseudo-LRU"
                ),
            ),
            unverified=("that its pseudo-LRU is a tree",),
        ),
        "zen2": Core(
            title="AMD Zen 2",
            arch="x86_64",
            small=TlbShape(1, 64),
            second=TlbShape(64, 8),
            merges=16 * KIB,
            sources=(
                (
                    "7-cpu.com, Zen2: ITLB 64 entries, fully associative, all sizes; L2 ITLB 512 "
                    "entries, 8 ways, 4 KiB and 2 MiB"
                ),
                (
                    "WikiChip, Zen 2, memory subsystem: upper levels lie in the L2 DTLB, for walks of "
                    "both sides"
                ),
            ),
            unverified=(
                (
                    "that contiguous pages become one entry of the ITLB, and 16 KiB of them: "
                    "linux-mm says 16 or 32 KiB, and not of which TLB"
                ),
            ),
        ),
        "cortex-a76": Core(
            title="Arm Cortex-A76",
            arch="arm64",
            small=TlbShape(1, 48),
            second=TlbShape(256, 5),
            runs=True,  # 64 KiB and 2 MiB are among the sizes of the first level
            sources=(
                (
                    "Arm Cortex-A76 Core Technical Reference Manual, A5.2.1: instruction L1 TLB 48 "
                    "entries, fully associative, for 4, 16, 64 KiB, 2 and 32 MiB"
                ),
                "the same, A5.2.3: L2 TLB 1,280 entries, 5 ways; upper levels lie there, too",
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
                    "Arm Cortex-A53 MPCore Technical Reference Manual (DDI 0500), 5.1: micro TLB 10 "
                    "entries, fully associative; main TLB 512 entries, 4 ways; walk cache 64 entries, "
                    "4 ways"
                ),
                "the same, 5.2.2: the main TLB holds all sizes but 1 GiB",
                (
                    "Arm Cortex-A35 Technical Reference Manual, A6.2: the walk cache of the same shape "
                    "holds all but the last level, and nothing of what ends above it"
                ),
            ),
            unverified=("that the micro TLB holds 2 MiB in one entry",),
        ),
        "c910": Core(
            title="XuanTie C910",
            arch="riscv64",
            small=TlbShape(1, 32, Policy.PLRU),
            second=TlbShape(256, 4, Policy.FIFO),
            levels=3,
            whole_walks=True,
            sources=(
                (
                    "openc910 (RTL), ct_mmu_iutlb_entry.v and ct_mmu_iplru.v: 32 entries, fully "
                    "associative, all sizes, a tree of 31 bits"
                ),
                (
                    "the same, ct_mmu_jtlb_tag_array.v: 256 sets of 4 ways, with a pointer of 4 bits "
                    "a set"
                ),
                "the same, ct_mmu_ptw.v: every walk begins at satp",
            ),
        ),
    }
)
