# SPDX-License-Identifier: GPL-2.0-or-later
"""The record that describes an architecture.

Everything that makes one architecture different stands in one file as one value of
this record; no other package asks for an architecture's name. An absent capability is
None, and code asks for the capability.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.errors import ExecmemError
from allocator.types import PAGE_SIZE, AddressMap, TextPoke
from archs.environment import Boot, Environment
from archs.reloc import Reach, Reloc, Rows
from archs.system import System
from archs.text import Guest, TextPatching
from archs.traps import Trap

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Index = NDArray[np.intp]


@attrs.frozen
class Fill:
    """One relocation that fills a field: its number, bytes from the instruction to P, and A."""

    relocation: int
    at: int = 0
    addend: int = 0


@attrs.frozen(kw_only=True)
class Probe:
    """How to execute an instruction in order to see how far it gets.

    Parameters
    ----------
    code
        The instruction, or the pair, with empty fields.
    fills
        The relocations that fill them.
    setup
        Code that runs right before it, so that a conditional branch is taken.
    result
        Register that holds the formed address; None: the guest goes there.
    """

    code: bytes
    fills: tuple[Fill, ...]
    setup: bytes = b""
    result: str | None = None


@attrs.frozen(kw_only=True)
class Branch:
    """An instruction that holds a displacement, and how far it gets.

    Parameters
    ----------
    mnemonic
        As the assembler spells it.
    reach
        Displacements, from the instruction's own address.
    what
        What it is used for: call, jump, branch, data.
    probe
        How to execute it; None where nobody can.
    """

    mnemonic: str
    reach: Reach
    what: str
    probe: Probe | None = None


@attrs.frozen(kw_only=True)
class Plt:
    """A PLT entry: a stub within branch reach that jumps anywhere within its own.

    Parameters
    ----------
    section, init_section
        Sections that hold the entries of core and of init text.
    size
        Bytes per entry.
    encode
        Returns the bytes of an entry, given its address and where it leads: the target, or
        the slot that holds the target where there is a `got_section`.
    got_section
        Section of 8-byte slots that entries load their target from, or None.
    sorts
        Whether the loader visits the branches of a section sorted by type, symbol and
        addend, leaving out those within the section, and compares an entry with the one
        before only; else it visits them in file order and finds any earlier entry.
    align
        Alignment of the sections, in bytes.
    branches
        Relocation numbers of the branches that may go through an entry.
    placeholders
        Sections that must be executable although the file does not say so, with the
        bytes that they hold once a module is loaded.
    required
        Whether the loader refuses a module without the sections.
    """

    section: str
    init_section: str
    size: int
    encode: Callable[[int, int], bytes]
    got_section: str | None
    sorts: bool
    align: int
    branches: tuple[int, ...]
    placeholders: Mapping[str, int]
    required: bool = False


@attrs.frozen(kw_only=True)
class Erratum:
    """An instruction that some CPUs must not find at some places, and the way around it.

    Parameters
    ----------
    rows
        Relocations of the instruction.
    mask
        The places with all these address bits set are forbidden.
    safe_align
        Returns the section alignment that keeps each of the given offsets off them.
    near
        Returns an equivalent instruction (word, place, target) or None out of its reach.
    veneer
        Returns a veneer (word, veneer's address, place, target) that goes back behind place.
    detour
        Returns the branch (place, veneer's address) that takes the instruction's place, or
        None out of its reach.
    """

    rows: tuple[int, ...]
    mask: int
    safe_align: Callable[[NDArray[np.uint64]], NDArray[np.uint64]]
    near: Callable[[int, int, int], bytes | None]
    veneer: Callable[[int, int, int, int], bytes]
    detour: Callable[[int, int], bytes | None]


@attrs.frozen(kw_only=True)
class CallingConvention:
    """How a C function of the kernel is called (registers by Unicorn's names, lower case).

    Parameters
    ----------
    arguments
        Registers of the integer arguments, in order; further ones go on the stack.
    result
        Register of the result.
    stack_pointer, program_counter
        Register names.
    link
        Register that holds the return address; None where it is pushed on the stack.
    sign_extend_32
        Whether 32-bit unsigned values are sign-extended in registers (riscv64).
    va_list
        Returns an iterator over the slots of a va_list: it is given what a function gets that
        takes one, and a function that reads eight bytes of guest memory at an address.
    va_list_is_pointer
        Whether a va_list is a pointer to its slots, so that a function that takes one gets that
        pointer; else it gets the address of the object, or of a copy of it.
    indirect
        Register of the address where a structure goes that is returned in memory; None where
        that is the first argument.
    """

    arguments: tuple[str, ...]
    result: str
    stack_pointer: str
    program_counter: str
    link: str | None
    sign_extend_32: bool
    va_list: Callable[[int, Callable[[int], int]], Iterator[int]]
    va_list_is_pointer: bool = False
    indirect: str | None = None


Emulator: TypeAlias = Callable[[int, Guest], None]


@attrs.frozen(kw_only=True)
class LivePatch:
    """How an instruction is replaced that another CPU may be executing.

    Parameters
    ----------
    name
        The kernel functions that do it.
    concurrent
        Returns whether new bytes may simply be written over old ones meanwhile (old, new).
    rule
        When that is so, in words that complete "other CPUs may be executing it: ...".
    jump
        Returns the instruction (place, target) that only jumps, or None out of its reach.
    breakpoint
        Written over the first byte until the rest is; None: all CPUs are stopped instead.
    emulator
        Returns what does the new instruction's work, at its address, for a CPU that met the
        breakpoint; None where the breakpoint's handler does not know the instruction.
    emulates
        What the handler knows, in words.
    """

    name: str
    concurrent: Callable[[bytes, bytes], bool]
    rule: str
    jump: Callable[[int, int], bytes | None]
    breakpoint: bytes | None = None
    emulator: Callable[[bytes], Emulator | None] = lambda _new: None
    emulates: str = ""


class Anchor(enum.Enum):
    """Addresses that a register may have to hold before code runs."""

    PERCPU = "offset of this CPU's per-cpu copy"
    CURRENT = "current task"
    IMAGE = "kernel image"


@attrs.frozen(kw_only=True)
class Exceptions:
    """How the emulator reports this architecture's exceptions; its doing, not the hardware's.

    Parameters
    ----------
    undefined
        Number by which an undefined instruction comes as an interrupt.
    invalid_is_trap
        Whether the error "invalid instruction" stands for a trap.
    beyond
        Interrupt number -> bytes that the program counter has moved past the instruction.
    """

    undefined: int | None = None
    invalid_is_trap: bool = False
    beyond: Mapping[int, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ModuleStruct:
    """struct module of the modelled kernel, Linux 6.12 (BTF of Debian's configuration).

    Parameters
    ----------
    size
        Bytes, as `.gnu.linkonce.this_module` has them in a module of that build.
    members
        Member -> offset, of those that somebody writes or reads.
    release
        How the version of such a kernel begins.
    """

    size: int
    members: Mapping[str, int] = attrs.field(repr=False)
    release: str = "6.12"


# Where members stand in struct module (include/linux/module.h) on every 64-bit architecture:
# in builds of 5.10 to 7.2 alike, and in those of 6.12.
MODULE_HEAD = {"state": 0, "list": 8, "name": 24, "mkobj": 80, "version": 184, "srcversion": 192}
MODULE_NAME_SIZE = 56
_MODULE_6_12 = {
    **MODULE_HEAD,
    "syms": 208,
    "num_syms": 224,
    "kp": 264,
    "num_kp": 272,
    "num_gpl_syms": 276,
    "gpl_syms": 280,
    "num_exentries": 300,
    "extable": 304,
    "init": 312,
    "mem": 320,
}


def module_struct(size: int, **members: int) -> ModuleStruct:
    """Return struct module of 6.12, given its size and the members behind those of the architecture."""
    return ModuleStruct(size=size, members={**_MODULE_6_12, **members})


@attrs.frozen(kw_only=True)
class Emulation:
    """What the emulated computer needs to know; constants by their Unicorn/capstone names.

    Parameters
    ----------
    prefix
        The constants' architecture part, as in `UC_ARCH_<prefix>`.
    mode, model
        Names of the mode and CPU model constants.
    registers
        Prefix of register constants.
    capstone_mode
        Names of the mode constants to disassemble with.
    page_size_varies
        Whether the emulator's TLB starts out with other pages than 4 KiB and must be told
        (32-bit Arm once had pages of 1 KiB).
    anchors
        Registers that hold a kernel address while code runs.
    constants
        Registers that hold a fixed value.
    privilege
        Registers that are set last, because less can be set then.
    system_registers
        The same for those that only an instruction names: op0, op1, CRn, CRm, op2.
    msrs
        Model specific registers that hold a fixed value, by number.
    unsaved
        Registers that a copy of all registers lacks, with the value that a call finds.
    unsaved_msrs
        Model specific registers that it lacks; they only keep what is written to them.
    system
        Instructions that ask the machine, and what answers them; None: the emulator does.
    canary
        Where compiled code reads the stack protector's canary: anchor and offset.
    current_variables
        Per-cpu variables that begin with the current task, where no register holds it.
    guard_variables
        Per-cpu variables that hold the canary, by which later compilers read it.
    trap
        Returns what a trap instruction says, given the code before and from there on.
    percpu_from_zero
        Whether per-cpu symbols count from 0 (x86-64) instead of being addresses.
    code
        Kernel functions that are nothing but a few instructions, by name.
    fixups
        Of those that access user memory: where in them they do, and where they go on when
        that fails.
    fixup
        What an entry of a module's `__ex_table` says, beside where to go on, of registers to
        set after a failed access: the entry's last word -> register names and values; None
        where that cannot be done here.
    ret
        A return instruction.
    longest
        How many bytes an instruction that begins with these takes at most.
    copy
        A function that copies a number of bytes (third argument) to its first argument from
        its second by stores of one text_poke granule; empty where text is never poked.
    exceptions
        How exceptions are reported.
    features
        What the emulated CPU has and modules look for, by the kernel's numbers
        (X86_FEATURE_*, KERNEL_HWCAP_*).
    capabilities
        What the CPU model can do, by the kernel's names.
    """

    prefix: str
    mode: str
    model: str
    registers: str
    capstone_prefix: str
    capstone_mode: tuple[str, ...]
    page_size_varies: bool
    anchors: Mapping[str, Anchor]
    constants: Mapping[str, int]
    canary: tuple[Anchor, int]
    percpu_from_zero: bool
    code: Mapping[str, bytes]
    fixup: Callable[[int], tuple[tuple[str, int], ...] | None]
    ret: bytes
    longest: Callable[[bytes], int]
    fixups: Mapping[str, tuple[int, int]] = attrs.field(factory=dict)
    copy: bytes = b""
    current_variables: tuple[str, ...] = ()
    guard_variables: tuple[str, ...] = ()
    trap: Callable[[bytes, bytes], Trap | None] = lambda _before, _code: None
    exceptions: Exceptions = attrs.field(factory=Exceptions)
    privilege: Mapping[str, int] = attrs.field(factory=dict)
    system_registers: Mapping[tuple[int, int, int, int, int], int] = attrs.field(factory=dict)
    msrs: Mapping[int, int] = attrs.field(factory=dict)
    unsaved: Mapping[str, int] = attrs.field(factory=dict)
    unsaved_msrs: tuple[int, ...] = ()
    system: System | None = None
    features: frozenset[int] = frozenset()
    capabilities: frozenset[str] = frozenset()


@attrs.frozen(kw_only=True)
class Entry:
    """One form of the room that a compiler leaves for the function tracer.

    Parameters
    ----------
    code
        What may stand from an address of the table on: bytes, and which of their bits count.
    function
        Where the function may begin, counted from that address; empty: anywhere.
    align
        What the address must be a multiple of.
    calls
        The kernel's symbol that the branch at the address must lead to; empty: none.
    idle
        Returns what is written while nothing is traced, given the addresses and the kernel's
        symbols: bytes from the address on, and code (a row for each address).
    """

    code: tuple[tuple[bytes, bytes], ...]
    function: tuple[int, ...] = ()
    align: int = 1
    calls: str = ""
    idle: Callable[[U64, Mapping[str, int]], tuple[tuple[int, U8], ...]]


def exactly(*codes: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return codes of which every bit counts."""
    return tuple((code, b"\xff" * len(code)) for code in codes)


def same(at: int, code: bytes) -> Callable[[U64, Mapping[str, int]], tuple[tuple[int, U8], ...]]:
    """Return what writes the same code at every address, so many bytes behind it."""
    row = np.frombuffer(code, np.uint8)
    return lambda sites, _symbols: ((at, np.broadcast_to(row, (sites.size, row.size))),)


@attrs.frozen(kw_only=True)
class Ftrace:
    """The sites of the function tracer, and what stands there while nothing is traced.

    Parameters
    ----------
    section
        Table of the sites' addresses.
    entries
        The forms that a site may have. Where the function's symbol does not tell one from
        another, the first of those that most sites of a module have is taken.
    trampolines
        Sections of one PLT entry each, through which sites reach `tracer` when it is far.
    tracer
        The kernel's symbol.
    """

    section: str
    entries: tuple[Entry, ...]
    trampolines: tuple[str, ...] = ()
    tracer: str = ""


@attrs.frozen(kw_only=True)
class SameSize:
    """Alternatives whose replacement is as long as what it replaces.

    Parameters
    ----------
    section
        The table.
    entry
        Its entries: `place` and `replacement` (self-relative words), `length` in bytes, and
        what else decides.
    wanted
        Returns which entries apply to a CPU with the given features, in the order to apply.
    moved
        Returns code that ran at the first address as it must read at the second.
    callback
        Returns which entries name a kernel function, instead of code, as their replacement.
    callbacks
        What the kernel's functions write, by symbol, given the length.
    """

    section: str
    entry: np.dtype[np.void]
    wanted: Callable[[NDArray[np.void], frozenset[str]], NDArray[np.intp]]
    moved: Callable[[bytes, int, int], bytes]
    callback: Callable[[NDArray[np.void]], NDArray[np.bool_]] = lambda entries: np.zeros(
        entries.size, np.bool_
    )
    callbacks: Mapping[str, Callable[[int], bytes]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class VariableSize:
    """Alternatives where instructions differ in size, and NOPs fill what is left (x86-64).

    Parameters
    ----------
    filler
        The shortest NOP.
    moved
        Returns code that stood at the first address as it must read at the second; the last
        number is how many bytes of it the replacement has, the rest is filler.
    packed
        Returns code with its NOPs put together.
    direct_call
        Returns the replacement of an indirect call by a direct one, given the call, its
        address, what stands there for the replacement, and the environment; None where
        nobody knows what the pointer holds.
    """

    filler: bytes
    moved: Callable[[bytes, int, int, int], bytes]
    packed: Callable[[bytes], bytes]
    direct_call: Callable[[bytes, int, bytes, Environment], bytes | None]


@attrs.frozen(kw_only=True)
class Thunks:
    """Branches through thunks that mitigations rewrite, and how (x86-64).

    Places and targets are arrays of addresses, code is an array with a row per place.

    Parameters
    ----------
    longest
        Bytes of the longest direct branch.
    length
        Returns the lengths of the direct branches that rows of code begin with; 0 for others.
    targets
        Returns where the direct branches go.
    aim
        Returns the same branches, aimed at other targets.
    registers
        Symbols of the indirect thunks, by register number.
    indirect
        Returns what takes the place of branches (rows of one length) to the thunks of
        registers, given their places; None where they stay.
    returns
        Returns the code that takes the place of return branches.
    padding
        Returns the bodies of the call thunks in front of functions at the places.
    filler
        What the padding in front of a function holds until then.
    is_call, call_size
        Which rows of code are direct calls of that size, the only ones that are counted.
    untracked
        Functions whose callers are not tracked.
    """

    longest: int
    length: Callable[[U8], Index]
    targets: Callable[[U8, U64], U64]
    aim: Callable[[U8, U64, U64], U8]
    registers: tuple[str, ...]
    indirect: Callable[[U8, U64, U64, Environment], U8 | None]
    returns: Callable[[U64, Environment], U8]
    padding: Callable[[U64, Environment], U8]
    filler: int
    is_call: Callable[[U8], NDArray[np.bool_]]
    call_size: int
    untracked: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Finalisation:
    """What the kernel does to a module between relocation and init.

    Parameters
    ----------
    order
        Names of the mechanisms (`loader.finalize.MECHANISMS`), in the kernel's order.
    environment
        Returns what a boot means for modules.
    features
        Feature -> number in the module's tables.
    ftrace
        Sites of the function tracer.
    static_call
        Returns the code of static call sites, given the code before, the places, the functions
        (0: none), which are tail calls, and the environment.
    thunks
        Branches that mitigations rewrite.
    same_size, variable_size
        Alternatives, where instructions have one size or several.
    extable_handlers
        Whether an entry of an exception table named a handler, before Linux 5.16.
    """

    order: tuple[str, ...]
    environment: Callable[[Boot], Environment] | None = None
    features: Mapping[str, int] = attrs.field(factory=dict, repr=False)
    ftrace: Ftrace | None = None
    static_call: Callable[[U8, U64, U64, NDArray[np.bool_], Environment], U8] | None = None
    thunks: Thunks | None = None
    same_size: SameSize | None = None
    variable_size: VariableSize | None = None
    extable_handlers: bool = False


@attrs.frozen(kw_only=True)
class Link:
    """What linking needs: relocations, and the instructions that they fill.

    Parameters
    ----------
    relocations
        Every relocation the psABI defines for ET_REL, keyed by number.
    clean_target
        Whether the loader refuses a place that is not zero before relocation.
    branches
        Instructions that hold a displacement.
    code_model
        What compilers assume of where code and data are, for people.
    code_model_option
        The compiler's option for it.
    code_model_absolute
        Relocations narrower than an address by which its code holds absolute addresses.
    """

    relocations: Rows = attrs.field(converter=Rows, repr=False)
    clean_target: bool
    branches: tuple[Branch, ...] = ()
    code_model: str = ""
    code_model_option: str = ""
    code_model_absolute: tuple[int, ...] = ()

    @property
    def calls(self) -> list[int]:
        """Relocations of the instructions that call and jump to functions."""
        probes = [b.probe for b in self.branches if b.what in ("call", "jump") and b.probe]
        return sorted({fill.relocation for probe in probes for fill in probe.fills})


@attrs.frozen(kw_only=True)
class Load:
    """What loading needs: where modules may lie, and what their kernel expects of them.

    Parameters
    ----------
    address_map
        Returns the address map of one boot, given the seed of KASLR (None: off) and the
        size of the kernel image in bytes (None: Debian 6.12's).
    image_size
        Size of Debian 6.12's kernel image in bytes.
    trap
        Instruction that fills unused text.
    plt
        Stubs for branches that do not reach, or None: such a branch is an error.
    got_section
        Section of the global offset table, where a module may have one.
    errata
        CPU errata that the loader can work around, by number.
    prel32
        Whether tables such as `__ksymtab` hold 32-bit self-relative words
        (CONFIG_HAVE_ARCH_PREL32_RELOCATIONS) instead of pointers.
    page_sizes
        Bytes that a kernel's pages may have.
    function_alignment
        Alignment of function entries in the kernel's configuration.
    vermagic
        What the kernel that is modelled calls itself and its build (VERMAGIC_STRING).
    livepatching
        Whether it is built with CONFIG_LIVEPATCH.
    structure_sizes
        Kernel structures whose size depends on the architecture or its kernel's configuration,
        and their bytes.
    module_struct
        struct module in the kernel's configuration.
    """

    address_map: Callable[..., AddressMap]
    image_size: int
    trap: bytes
    plt: Plt | None = None
    got_section: str | None = None
    errata: Mapping[str, Erratum] = attrs.field(factory=dict)
    prel32: bool
    page_sizes: tuple[int, ...] = (PAGE_SIZE,)
    function_alignment: int
    vermagic: str
    livepatching: bool
    structure_sizes: tuple[tuple[str, int], ...]
    module_struct: ModuleStruct


@attrs.frozen(kw_only=True)
class Run:
    """What running needs: how functions are called, and what CPU there is."""

    calling: CallingConvention
    emulation: Emulation


@attrs.frozen(kw_only=True)
class Patch:
    """How finished text is written.

    Parameters
    ----------
    text_poke
        How one poke is done (`Emulation.copy` has the function that stores).
    live
        How text is written that may be executed meanwhile; None: it is not.
    text
        The instructions of static keys, static calls, ftrace and kprobes; None: there are none.
    """

    text_poke: TextPoke
    live: LivePatch | None = None
    text: TextPatching | None = None


@attrs.define(auto_exc=True, str=False)
class LevelMissing(ExecmemError, ValueError):
    """Something needs a level that an architecture does not have."""

    arch: str
    level: str
    lacks: str

    def __str__(self) -> str:
        return f"{self.arch} has no level {self.level!r}: {self.lacks} is not known of it"


@attrs.frozen(kw_only=True)
class Arch:
    """One architecture, as levels. Adding one: a file that ends in such a record, and a line.

    Each level is a record of its own, and makes the next set of registry-parametrised tests
    pass; without it, what needs it says so by name.

    Parameters
    ----------
    name, aliases
        The name used everywhere, and the ones accepted besides.
    title
        The manufacturer's spelling, for people.
    machine
        `e_machine` of its modules.
    link
        *links*: what relocations mean.
    load
        *loads*: where modules may lie. Code that cannot do without asks for `loads`.
    run
        *runs*: calling convention and emulated CPU. Code that cannot do without asks for `runs`.
    patch
        *pokes and traces*: how finished text is written; None: it never is.
    finalisation
        *finalises*: what the kernel edits in a module before its init runs; None: nothing.
    """

    name: str
    aliases: tuple[str, ...] = ()
    title: str
    machine: int
    link: Link
    load: Load | None = None
    run: Run | None = None
    patch: Patch | None = None
    finalisation: Finalisation | None = None

    @property
    def loads(self) -> Load:
        """The level that loading needs; LevelMissing where there is none."""
        if self.load is None:
            raise LevelMissing(self.name, "load", "where its modules may lie")
        return self.load

    @property
    def runs(self) -> Run:
        """The level that running needs; LevelMissing where there is none."""
        if self.run is None:
            raise LevelMissing(self.name, "run", "how its functions are called")
        return self.run

    # What an absent level has none of.

    @property
    def plt(self) -> Plt | None:
        """Stubs for branches that do not reach."""
        return None if self.load is None else self.load.plt

    @property
    def got_section(self) -> str | None:
        """Section of the global offset table."""
        return None if self.load is None else self.load.got_section

    @property
    def errata(self) -> Mapping[str, Erratum]:
        """CPU errata that the loader can work around, by number."""
        return {} if self.load is None else self.load.errata

    @property
    def text_poke(self) -> TextPoke | None:
        """How finished text is written."""
        return None if self.patch is None else self.patch.text_poke

    @property
    def live_patch(self) -> LivePatch | None:
        """How text is written that may be executed meanwhile."""
        return None if self.patch is None else self.patch.live

    @property
    def patching(self) -> TextPatching | None:
        """The instructions of static keys, static calls, ftrace and kprobes."""
        return None if self.patch is None else self.patch.text


def rows(*table: Reloc) -> Rows:
    """Return a relocation table keyed by number; refuse a number that occurs twice."""
    keyed = Rows({row.number: row for row in table})
    if len(keyed) != len(table):
        raise ValueError("a relocation number occurs twice")
    return keyed
