# SPDX-License-Identifier: GPL-2.0-or-later
"""Words that every package shares: addresses, memory types, ranges, protections.

Plain frozen values without behaviour of their own; `archs` imports this module and
nothing else of `allocator`, so that an architecture stays a record of facts.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeAlias

import attrs

Address: TypeAlias = int

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

# Of most kernels; `Paging` has those of the others.
PAGE_SIZE = 4 * KIB
LARGE_PAGE_SIZE = 2 * MIB
HUGE_PAGE_SIZE = GIB

ADDRESS_MASK = (1 << 64) - 1


class Hex(int):
    """A number of up to 64 bits that is written in hex: an address, a register, a displacement.

    Programs that read JSON keep 53 bits of a number, so documents hold it as a string.

    >>> Hex(0xFFFF800000000000), Hex(0), Hex(-0x80000000)
    (0xffff800000000000, 0x0, -0x80000000)
    """

    def __str__(self) -> str:
        return f"{int(self):#x}"

    __repr__ = __str__


def align_up(value: int, alignment: int) -> int:
    """Return the least multiple of `alignment` (a power of two) that is not below `value`."""
    return (value + alignment - 1) & -alignment


def align_down(value: int, alignment: int) -> int:
    """Return the greatest multiple of `alignment` (a power of two) that is not above `value`."""
    return value & -alignment


def size_text(size: int) -> str:
    """Return a size in binary units, to two decimals.

    >>> size_text(0x200000), size_text(12), size_text(0x1800), size_text(1500)
    ('2 MiB', '12 B', '6 KiB', '1.46 KiB')
    """
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.2f}".rstrip("0").rstrip(".") + f" {name}"
    return f"{size} B"


class Prot(enum.Flag):
    """What a mapping allows. `W` and `X` never meet: the page table enforces it."""

    NONE = 0
    R = 1
    W = 2
    X = 4
    RW = R | W
    RX = R | X

    def __str__(self) -> str:
        return "".join(c if self & Prot[c] else "-" for c in "RWX")

    @property
    def executable(self) -> bool:
        """Whether instructions can be fetched."""
        return bool(self & Prot.X)


# Membership by identity: bit tests on enum flags would dominate small reads.
READABLE = tuple(Prot(bits) for bits in range(8) if bits & Prot.R.value)
WRITABLE = tuple(Prot(bits) for bits in range(8) if bits & Prot.W.value)


class MemType(enum.Enum):
    """The seven memory types of a module, in the kernel's order (enum mod_mem_type).

    `is_text`: it is executed. `is_init`: it is freed once init has returned. `final_prot`: its
    protection once finished (and, for RO_AFTER_INIT, sealed).
    """

    TEXT = 0
    DATA = 1
    RODATA = 2
    RO_AFTER_INIT = 3
    INIT_TEXT = 4
    INIT_DATA = 5
    INIT_RODATA = 6

    def __init__(self, number: int) -> None:
        # Attributes, because they are asked for all the time.
        self.is_text = number in (0, 4)
        self.is_init = number >= 4
        self.final_prot = Prot.RX if self.is_text else Prot.RW if number in (1, 5) else Prot.R

    __hash__ = object.__hash__


# What a module's core and its init were before Linux 6.4: an area each, in this order.
CORE_AND_INIT = (
    (MemType.TEXT, MemType.RODATA, MemType.RO_AFTER_INIT, MemType.DATA),
    (MemType.INIT_TEXT, MemType.INIT_RODATA, MemType.INIT_DATA),
)


class Consumer(enum.Enum):
    """Who asks for executable memory; ranges and granularity differ per consumer."""

    MODULE = "module"
    KPROBES = "kprobes"
    FTRACE = "ftrace"
    BPF = "bpf"
    THUNK = "thunk"

    __hash__ = object.__hash__


class ExecmemType(enum.Enum):
    """The kernel's range classes (enum execmem_type); MODULE_TEXT is also the default."""

    MODULE_TEXT = "module_text"
    KPROBES = "kprobes"
    FTRACE = "ftrace"
    BPF = "bpf"
    MODULE_DATA = "module_data"

    __hash__ = object.__hash__

    @classmethod
    def of(cls, mem_type: MemType, consumer: Consumer) -> ExecmemType:
        """Return the range class that serves `mem_type` for `consumer`."""
        if not mem_type.is_text:
            return cls.MODULE_DATA
        if consumer in (Consumer.MODULE, Consumer.THUNK):
            return cls.MODULE_TEXT
        return cls(consumer.value)


@attrs.frozen(order=True)
class Interval:
    """A half-open address interval [start, end)."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes in the interval."""
        return self.end - self.start

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def holds(self, other: Interval) -> bool:
        """Return whether `other` lies wholly inside."""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, other: Interval) -> bool:
        """Return whether the two share an address."""
        return self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        return f"[{self.start:#x}, {self.end:#x})"


@attrs.frozen
class Paging:
    """The translation granule of a kernel: what an entry on each level of its tables maps.

    Entries have 8 bytes and a table fills a page, so with larger pages all leaves grow.

    Parameters
    ----------
    page
        Bytes of a page (PAGE_SIZE); a power of two, 4 KiB at least.
    run, large_run
        Bytes of a run: an aligned row of pages, or of large leaves, whose entries say that a TLB may
        hold all of them as one (arm64's contiguous bit, RISC-V's Svnapot). 0: there is none.

    >>> [size_text(leaf) for leaf in Paging().leaves]
    ['4 KiB', '2 MiB', '1 GiB']
    >>> [size_text(leaf) for leaf in Paging(16 * KIB).leaves]
    ['16 KiB', '32 MiB']
    >>> [size_text(leaf) for leaf in Paging(run=64 * KIB).leaves]
    ['4 KiB', '64 KiB', '2 MiB', '1 GiB']
    """

    page: int = attrs.field(default=PAGE_SIZE)
    run: int = attrs.field(default=0, kw_only=True)
    large_run: int = attrs.field(default=0, kw_only=True)

    @page.validator
    def _is_page(self, _attribute: object, page: int) -> None:
        if page < PAGE_SIZE or page & (page - 1):
            raise ValueError(
                f"a page has a power of two of bytes, {PAGE_SIZE} at least, not {page}"
            )

    @run.validator
    def _is_run(self, _attribute: object, run: int) -> None:
        if run and not (self.page < run < self.large and run & (run - 1) == 0):
            raise ValueError(
                f"a run of pages has 2, 4, 8 ... of them and not a table, not {run} bytes"
            )

    @large_run.validator
    def _is_large_run(self, _attribute: object, run: int) -> None:
        if run and not (self.large < run < self.upper and run & (run - 1) == 0):
            raise ValueError(
                f"a run of large leaves has 2, 4, 8 ... of them and not a table, not {run} bytes"
            )

    @property
    def entries(self) -> int:
        """Entries of a table (PTRS_PER_PTE)."""
        return self.page // 8

    @property
    def large(self) -> int:
        """Bytes of a large leaf: what an entry of the second level maps (PMD_SIZE)."""
        return self.page * self.entries

    @property
    def upper(self) -> int:
        """Bytes that an entry of the third level maps (PUD_SIZE), as a leaf or as a table."""
        return self.large * self.entries

    @property
    def leaves(self) -> tuple[int, ...]:
        """Bytes of all leaves, the smallest first; a run is one.

        On the third level only pages of 4 KiB have one (pud_sect_supported() of arm64).
        """
        top = self.upper if self.page == PAGE_SIZE else 0
        return tuple(filter(None, (self.page, self.run, self.large, self.large_run, top)))

    def entries_of(self, leaf: int) -> int:
        """Return how many entries of a table a leaf of so many bytes takes: of a run, several."""
        return {self.run: self.run // self.page, self.large_run: self.large_run // self.large}.get(
            leaf, 1
        )

    @property
    def large_order(self) -> int:
        """Order of the pages that a large leaf maps (PMD_ORDER)."""
        return self.entries.bit_length() - 1

    def order(self, size: int) -> int:
        """Return the order of so many bytes: how often a page is to be doubled."""
        return (size // self.page).bit_length() - 1


@attrs.frozen(kw_only=True)
class ExecmemRange:
    """Where one class of executable memory may live (struct execmem_range)."""

    range: Interval
    fallback: Interval | None = None
    alignment: int = 1


@attrs.frozen(kw_only=True)
class AddressMap:
    """The kernel half of one boot: where image, direct map, vmalloc and execmem lie.

    Parameters
    ----------
    image
        The kernel image [_text, _end).
    direct_map
        First address of the direct map; physical address 0 lies there.
    vmalloc
        The vmalloc range (stacks, buffers; the thread's `#else` range for text).
    ranges
        An ExecmemRange for every ExecmemType that the architecture defines; those it
        leaves out inherit MODULE_TEXT (execmem_init_missing).
    kaslr
        The seed that chose random offsets, or None without KASLR.
    vmemmap
        Address of the struct page of physical page 0; nothing is mapped there.
    page_offset
        What compiled code takes for the address of the direct map (PAGE_OFFSET); where that
        is another one, a variable makes up for it. None: the same.
    space
        The part of the address space that is the kernel's: the upper half of 64 bits.
    live_splits
        Whether there are CPUs that may split a leaf while it is in use, where others must not. Then a
        run may change in part, too, and what a leaf is split into are runs as far as they go.
    """

    image: Interval
    direct_map: int
    vmalloc: Interval
    ranges: Mapping[ExecmemType, ExecmemRange]
    kaslr: int | None = None
    vmemmap: int = 0
    page_offset: int | None = None
    space: Interval = Interval(1 << 63, 1 << 64)
    live_splits: bool = False

    def range_of(self, kind: ExecmemType) -> ExecmemRange:
        """Return the range of `kind`, MODULE_TEXT's where the architecture names none."""
        found = self.ranges.get(kind)
        return found if found is not None else self.ranges[ExecmemType.MODULE_TEXT]


@attrs.frozen(kw_only=True)
class TextPoke:
    """How an architecture writes finished text: through a short-lived writable alias.

    Parameters
    ----------
    name
        The kernel function that does it.
    window
        Address of the alias mapping; with other pages than those of 4 KiB, `windows` says it.
    pages
        Pages mapped per step.
    granule
        Bytes; address and length must be multiples of it. Only a store of this size is whole.
    private
        Whether the alias is mapped in an address space of its own, which no other CPU has
        loaded, instead of in the kernel's fixmap.
    broadcast
        Whether dropping the alias flushes the TLBs of all CPUs, or of this one.
    flush_first
        Whether this CPU's TLB is flushed when the alias has been mapped, too: it may hold what
        another CPU mapped there before, and flushed from its own TLB only.
    sync
        What makes the CPUs fetch the new bytes, in words.
    windows
        Bytes of a page -> address of the alias mapping.
    page
        Bytes of a page.
    gathers
        Whether all sites of a batch are mapped at once, and dropped with one flush.
    """

    name: str
    window: Address
    pages: int
    granule: int
    private: bool = False
    broadcast: bool = False
    flush_first: bool = False
    sync: str = ""
    windows: Mapping[int, Address] = attrs.field(factory=dict)
    page: int = PAGE_SIZE
    gathers: bool = False

    @property
    def alias(self) -> Interval:
        """The addresses of the alias mapping."""
        return Interval(self.window, self.window + self.pages * self.page)

    def used(self, size: int) -> Interval:
        """Return the first `size` bytes of the alias mapping."""
        return Interval(self.window, self.window + size)

    def on(self, page: int) -> TextPoke:
        """Return how text is poked where a page has `page` bytes; ValueError if that is unknown."""
        if page == self.page:
            return self
        if page not in self.windows:
            raise ValueError(f"{self.name}: no window is known for pages of {size_text(page)}")
        return attrs.evolve(self, window=self.windows[page], page=page)


@attrs.frozen(kw_only=True)
class TlbRules:
    """How a kernel of an architecture drops translations of kernel addresses from all TLBs.

    Parameters
    ----------
    name
        What it executes, in words.
    interrupts
        Whether every other CPU is interrupted to do it; else one instruction reaches all.
    ceiling
        Pages that are dropped one by one; of more, the whole TLB.
    """

    name: str
    interrupts: bool
    ceiling: int


class PokeStep(enum.Enum):
    """What a poke does besides storing; leaving one out shows what it is for."""

    ALIAS = "alias"
    FLUSH = "flush"
    SYNC = "sync"


class Site(NamedTuple):
    """One place of a batch: the new bytes, and the old ones where they are to be checked."""

    address: Address
    new: bytes
    old: bytes | None = None


class Memory(Protocol):
    """Kernel virtual memory as the loader sees it: no CPU needed."""

    def read(self, address: Address, size: int) -> bytes:
        """Return `size` bytes at `address`; AccessError where a page is not readable."""
        ...

    def write(self, address: Address, data: bytes) -> None:
        """Store `data` at `address`; AccessError where a page is not writable."""
        ...
