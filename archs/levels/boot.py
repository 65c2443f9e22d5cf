# SPDX-License-Identifier: GPL-2.0-or-later
"""The level *boots*: the smallest computer that Linux of the architecture starts on.

Nothing here runs anything: what is in memory when the kernel gets control, and the registers,
is data; `emulator.boards` builds the computer that it names.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence

import attrs

from allocator.errors import NoSuchName, did_you_mean
from archs.versions import Since


@attrs.frozen(kw_only=True)
class Plan:
    """What is to be started.

    Parameters
    ----------
    image
        The kernel's bytes as they lie in memory: offset from its first byte -> bytes.
    address
        The virtual address that its first byte is linked to.
    image_size
        Bytes that it takes there, uninitialised data included.
    entry
        Where it is entered, as an offset from its first byte.
    header
        The boot protocol's header, where the kernel's file had one (`struct setup_header`).
    memory
        Bytes of RAM.
    command_line
        What the kernel is told.
    initrd
        The initial file system.
    kaslr
        What the places of kernel and modules follow from; None: they are not random.
    """

    image: Mapping[int, bytes] = attrs.field(repr=False)
    address: int
    image_size: int
    entry: int
    header: bytes = attrs.field(default=b"", repr=False)
    memory: int
    command_line: str
    initrd: bytes = attrs.field(repr=False)
    kaslr: int | None = None


@attrs.frozen(kw_only=True)
class Start:
    """What is where when the kernel gets control.

    Parameters
    ----------
    contents
        Physical address -> bytes.
    image
        Physical address of the kernel's first byte.
    entry
        Where it is entered.
    registers
        Register -> value.
    """

    contents: Mapping[int, bytes] = attrs.field(repr=False)
    image: int
    entry: int
    registers: Mapping[str, int]


class Space(enum.Enum):
    """Where a piece of hardware answers."""

    MEMORY = "physical addresses"
    PORTS = "ports"


@attrs.frozen(kw_only=True)
class Part:
    """A piece of hardware: which driver of `emulator.hardware`, and where it answers.

    Parameters
    ----------
    kind
        The driver's name.
    start, size
        Addresses that it answers at; how many.
    space
        What the addresses are.
    """

    kind: str
    start: int
    size: int
    space: Space = Space.MEMORY


@attrs.frozen(kw_only=True)
class Bitmap:
    """Where a kernel keeps which features it found the CPU to have: a bit for each number.

    Parameters
    ----------
    variable
        The symbol.
    structure, member
        Where the bits are in it; empty: they are all of it.
    """

    variable: str
    structure: str = ""
    member: str = ""


@attrs.frozen(kw_only=True)
class Need:
    """Something that a kernel may be built without, and that booting it here takes.

    Parameters
    ----------
    option
        Of its configuration.
    functions
        A kernel that has it has one of these.
    what
        What it is for.
    """

    option: str
    functions: tuple[str, ...]
    what: str


@attrs.frozen
class Flag:
    """What the kernel's ptdump prints of some bits of an entry.

    Parameters
    ----------
    mask
        The bits.
    texts
        What these bits are -> what is printed.
    other
        What is printed where they are anything else.
    depths
        At which levels they mean that, counted from the pages: 0, 1 ...; none: at all of them.
    """

    mask: int
    texts: Mapping[int, str]
    other: str = ""
    depths: tuple[int, ...] = ()

    def of(self, entry: int, depth: int) -> str:
        """Return what is printed of an entry."""
        if self.depths and depth not in self.depths:
            return self.other
        return self.texts.get(entry & self.mask, self.other)


@attrs.frozen(kw_only=True)
class Dump:
    """How the kernel of an architecture prints page tables (ptdump, CONFIG_PTDUMP_DEBUGFS).

    Parameters
    ----------
    line
        With `start`, `end`, `size`, `unit`, `level`, `flags`, and `physical` where it begins in memory.
    units
        Of sizes, which begin with what one of the first has; each is 1,024 of the one before.
    levels
        What levels are called, from the pages up; the first table has the last name.
    flags
        What is printed of entries, in order.
    kept
        The bits of an entry in which two of one line do not differ.
    narrows, closes
        Bits that a leaf has only where all tables above have them, and bits that it has where one has
        them; in none of these do two of one line differ.
    missing
        What stands for the flags of an entry whose bit 0 is not set; None: flags do.
    empty
        What stands for them where nothing of an entry is kept; None: no line is printed.
    marks
        How many markers are passed at most where one line ends; 0: all that lie before.
    lower
        Whether the lower half of the addresses is gone through, too.
    over
        Entries of the first table that are passed over at the begin of the kernel's half.
    """

    line: str
    units: str
    levels: tuple[str, ...]
    flags: tuple[Flag, ...]
    kept: int
    narrows: int = 0
    closes: int = 0
    missing: str | None = None
    empty: str | None = ""
    marks: int = 0
    lower: bool = False
    over: int = 0

    def text(self, entry: int, depth: int) -> str:
        """Return what is printed of the flags of an entry."""
        if self.missing is not None and not entry & 1:
            return self.missing
        return "".join(flag.of(entry, depth) for flag in self.flags)


@attrs.frozen(kw_only=True)
class TableFormat:
    """How the page tables of a kernel's half of the addresses are read.

    Parameters
    ----------
    sizes
        Bits of an address, and of a page's size, as kernels may have them; likely ones first.
    shared
        Whether one table has both halves; else the kernel's has one of its own.
    leaf
        Bits of an entry of which one is set where it maps memory itself, above the last level.
    table
        A bit that is set where it leads to another table; 0: `leaf` tells it.
    large
        A bit that only entries above the last level have which map memory.
    run
        A bit of entries that are one of several in a row, which a TLB may keep as one.
    coded
        Whether such an entry says in the lowest bits of its address how many they are: as many as
        the lowest one that is set, twice. Else the architecture's `Paging` does.
    frame, shift
        The bits that are an address, which is so far to the left of them.
    link, page
        Entries, but for the address, that lead to a table, and that map a page of data that only a
        kernel reads and writes.
    roots
        What the kernel calls its table.
    written, executed
        Which bits of an entry that maps memory say that the kernel may store there, and execute,
        and what they are then; nothing where that is not known.
    dump
        How the kernel prints them.

    Bit 0 says that an entry is valid.
    """

    sizes: tuple[tuple[int, int], ...]
    shared: bool = True
    leaf: int = 0
    table: int = 0
    large: int = 0
    run: int = 0
    coded: bool = False
    frame: int
    shift: int = 0
    link: int
    page: int
    roots: tuple[str, ...] = ("swapper_pg_dir",)
    written: tuple[int, int] | None = None
    executed: tuple[int, int] | None = None
    dump: Dump | None = None


_NEVER: Since[bool] = Since(((0, 0), False))


@attrs.frozen
class FlushInstruction:
    """An instruction that drops translations.

    Parameters
    ----------
    kind
        Its name, with what it drops.
    code, mask
        Its bytes, and which of their bits count.
    when
        Register -> what it holds, where the instruction does other things, too.
    whole
        How many times it drops everything; half of one for one of two that do it together.
    operand
        Returns the register that has the address of the one page that it drops, by its bytes, and how
        far that is shifted; None: it drops no single page of the kernel's.
    everywhere
        Whether it reaches the TLBs of all CPUs.
    process
        Whether it drops all that is not global, which is how a process's half is mapped.
    """

    kind: str
    code: bytes
    mask: bytes
    when: Mapping[str, int] = attrs.field(factory=dict)
    whole: float = 0.0
    operand: Callable[[bytes], tuple[str, int]] | None = None
    everywhere: bool = False
    process: bool = False


@attrs.frozen(kw_only=True)
class Flushing:
    """How kernels of an architecture drop translations of their own addresses.

    Parameters
    ----------
    instructions
        What a CPU executes; the first that matches counts.
    step
        What addresses of instructions are multiples of.
    functions
        Functions of kernels that have all CPUs do it; a kernel has some of them.
    ranged
        The one of them that is given the first address and the end.
    protects_whole
        Whether everything is dropped where a change of protections reaches the direct map, too.
    always_whole
        Whether everything is dropped for every change of protections.
    splits_whole
        Whether everything is dropped where a large leaf is split.
    idle
        Whether a change of protections that changes nothing is flushed, as of data that was never
        executable.
    by_area
        Whether the direct map is flushed for all pages of an area where a part of it is changed.
    rox_at_once
        Whether text becomes read-only and executable in one step.
    resets
        How many times everything is dropped for each page whose place in the direct map is made
        invalid and valid again when its area is freed, beside the one time for the area.
    """

    instructions: tuple[FlushInstruction, ...]
    step: int
    functions: tuple[str, ...]
    ranged: str = "flush_tlb_kernel_range"
    protects_whole: bool = False
    always_whole: Since[bool] = _NEVER
    splits_whole: bool = False
    idle: bool = False
    by_area: bool = False
    rox_at_once: Since[bool] = _NEVER
    resets: int = 0


@attrs.frozen(kw_only=True)
class Boot:
    """What starting a kernel of an architecture needs.

    Parameters
    ----------
    board
        The computer, by its name in `emulator.boards`.
    ram
        Physical address of its memory.
    memory
        Bytes of it where nobody says otherwise.
    parts
        Its hardware.
    models
        The CPU models that a kernel may be given, by name; the first is what it is given where
        nobody says otherwise.
    model_prefix
        What the emulator calls a model: this, and the name in capitals, `_` for `-`.
    identity
        What the first of them says of itself otherwise than the model: leaf of CPUID -> register
        -> bits that are taken away, bits that are put there.
    command_line
        What a kernel is told by default.
    start
        Returns what is where.
    spin
        Instructions of a user program that calls `getppid` for ever.
    system_calls
        What the kernel calls its system call functions, newest spelling first; `{}` is the name. One that
        is spelt `sys_{}` takes its arguments itself, others `struct pt_regs`.
    system_call_arguments
        Where in `struct pt_regs` each argument is when the kernel was entered: a register may be saved
        twice, and functions of some versions look at one place, of others at the other.
    registers_size
        Bytes that are enough for `struct pt_regs`.
    padding
        What may stand between functions: never executed, as wide as an instruction.
    machine
        `e_machine` of user programs.
    console
        What a kernel prints with, on this hardware.
    once
        Function -> the word that a kernel that has it is not told, for each line to be printed
        once.
    takes
        Functions that a kernel times, to decide by: nanoseconds of each call. Else computing
        takes none.
    distance
        Returns how far from where it is linked to a kernel is moved before it starts, by KASLR's
        seed, that address, and its size; None: it moves itself.
    capabilities
        Where kernels keep what the CPU has, newest first.
    return_thunk
        The variable that points at the return thunk in force, where there are such.
    tables
        How its page tables are read.
    flushing
        How it drops translations.
    able
        The emulator's model that has most of what a CPU may have: for kernels that have chosen their
        instructions elsewhere.
    """

    board: str
    ram: int
    memory: int
    parts: Sequence[Part]
    models: tuple[str, ...]
    model_prefix: str
    identity: Mapping[int, Mapping[str, tuple[int, int]]] = attrs.field(factory=dict)
    command_line: str
    start: Callable[[Plan], Start]
    spin: bytes
    system_calls: tuple[str, ...]
    system_call_arguments: tuple[tuple[int, ...], ...]
    registers_size: int
    padding: tuple[bytes, ...]
    machine: int
    console: Need
    once: Mapping[str, str] = attrs.field(factory=dict)
    takes: Mapping[str, int] = attrs.field(factory=dict)
    distance: Callable[[int, int, int], int] | None = None
    capabilities: tuple[Bitmap, ...] = ()
    return_thunk: str = ""
    tables: TableFormat
    flushing: Flushing
    able: str

    def model(self, name: str = "") -> str:
        """Return the emulator's name of a CPU model; "" is the first.

        Raises
        ------
        NoSuchName
            Kernels are not given such a CPU; with the names of those that they are given.
        """
        chosen = name or self.models[0]
        if chosen not in (*self.models, self.able):
            known = ", ".join(self.models)
            asked = did_you_mean(name, self.models)
            raise NoSuchName(f"cpu {name!r}: {self.board} computers have {known}{asked}")
        return self.model_prefix + chosen.upper().replace("-", "_")
