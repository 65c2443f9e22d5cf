# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests must be told about an architecture, by level: one file each, `NAME.py` beside this.

A file ends in `FACTS = Facts(link=Link(...), ...)`, with one record for each level that the
architecture has; its numbers and code come from manuals, psABIs, assemblers and compilers,
never from our own records. Tests ask by `facts(arch).run.snippets`: that skips them where
the architecture lacks the level, and fails, naming the fact, where nobody has written it.
`tests/archs/test_facts.py` lists all that is missing. None says that there is no such thing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
import pytest

import archs
from tests.support.formats import Rule
from tests.support.operands import Case, Decoded

TYPE = 0x1234_5678  # that the calls of `type_checks` expect
LEVELS = ("link", "load", "run", "patch")
# Those of `Run.snippets` that tests of machines rest on; others serve what an architecture has.
SNIPPETS = (
    *("one", "two", "load", "store", "jump", "apply", "loop", "spin", "count", "recurse"),
    *("invalid", "weigh", "forward"),
)
MISSING: Any = object()  # stands for a fact of any type that nobody has written


# Symbols of start and end; version -> name and type of each field.
Alternatives = tuple[str, str, Mapping[tuple[int, int], Sequence[tuple[str, str]]]]


@attrs.frozen
class Reaches:
    """A branch or another instruction with a displacement.

    Parameters
    ----------
    row
        Number of its relocation.
    end
        Bytes from its start to where the displacement counts from.
    least, greatest
        Displacements as the manual prints them.
    source
        What a probe of it is assembled from; `far` leaves the field to a relocation.
    """

    row: int
    end: int
    least: int
    greatest: int
    source: str


@attrs.frozen(kw_only=True)
class Disassembled:
    """How llvm-mc is asked about instructions, and branches that an assembler was told about.

    Parameters
    ----------
    options
        Of llvm-mc.
    mark, shift, pattern
        Code of an instruction that holds a number, where that begins, and as llvm-mc prints it.
    branches
        Assembly of branches.
    leads
        Where they lead, in bytes from the first.
    """

    options: tuple[str, ...]
    mark: str
    shift: int
    pattern: str
    branches: str
    leads: tuple[int, ...]


@attrs.frozen
class Through:
    """Code that loads a slot of the global offset table (of `far`), and its relocations.

    Parameters
    ----------
    code
        In hex.
    records
        Offset, type, addend.
    slot
        Returns the slot's address that decoded instructions name.
    """

    code: str
    records: Sequence[tuple[int, int, int]]
    slot: Callable[[Decoded], int]


class _Level:
    """A fact that nobody has written fails the test that asks for it."""

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if value is MISSING:
            pytest.fail(f"facts for level {type(self).__name__.lower()}: {name} is missing")
        return value

    def missing(self) -> list[str]:
        """Return the names of the facts that nobody has written."""
        given = ((f.name, object.__getattribute__(self, f.name)) for f in attrs.fields(type(self)))
        return [name for name, value in given if value is MISSING]


@attrs.frozen(kw_only=True)
class Link(_Level):
    """What linking needs to be tested, and what the modules and objects of tests are made of.

    Parameters
    ----------
    triple
        GNU triple, and the machine whose unprefixed tools serve it.
    prefix
        Of the names of relocations.
    call, abs64, prel32
        Numbers of the relocations of a call, a pointer, a self-relative word that the kernel
        knows (None: it knows none).
    abs64_name
        Name of the one of a pointer.
    distance
        Numbers of the one or two (add, subtract) that store a 64-bit distance.
    export_word
        Bytes of a word in the tables of exports: 4 where it is self-relative.
    clean_target
        Whether the kernel insists that places hold zero.
    word32
        A relocation of a word of 32 bits, where `prel32` is None.
    call_code, more_of_call
        A call without a target, where its relocation sits, and its addend; and where further
        ones sit, with their numbers.
    ret, spin, return_0
        Code of a return, a jump to itself, a function that returns 0.
    keep
        Code that keeps the return address over calls, and brings it back.
    placeholders
        Sections that its modules must have, and whether they are executable.
    vermagic
        As sample modules have it: they are taken for modules of the kernel that is modelled.
    this_module_size, init_at, exit_at
        struct module of Linux 6.12, from the kernels' type information.
    directives
        Assembly at the start of a module.
    base, kernel
        Where a module may lie, and a function of the kernel within its reach.
    window
        Address and size of a region within which everything reaches everything.
    plt_beyond
        Whether branches that do not reach go through a PLT.
    rules
        The psABI: number -> rule.
    nothing
        Types that do nothing.
    sized
        Types whose S is the symbol's size.
    got
        X, before P is subtracted, of the types that use a global offset table: of S, A, the
        table's address, and the function from what a slot holds to its address.
    paired, high
        Types whose X is another relocation's, and those others.
    upper
        Types that count from the place and hold the upper half of X alone.
    added, subtracted, set_to
        Types that accumulate at one place.
    uleb128
        Types whose place is as long as its bytes say.
    source, got_source
        Assembly that uses every relocation that a linker can check; and those of a GOT.
    rewritten
        Sections that linkers fill by themselves.
    beyond_gas
        What binutils 2.40 cannot write: the type, the bytes that it relocates, the symbol.
    never_in_lld, late_in_lld
        Types that no lld knows, and those that lld learnt after Debian 12's 14 and 16.
    pyelftools
        Name of the table of `elftools.elf.enums`, or None.
    beyond_pyelftools, wrong_in_pyelftools
        Numbers that it does not have, and those that it has under another name.
    newer_than_readelf
        What binutils 2.40 does not know yet, or names after types that were withdrawn since.
    branches
        Mnemonic -> how far it reaches.
    branch_options
        Assembly in front of their sources.
    decoded, beyond_capstone
        Instructions with every type whose field is no plain word; and types whose instructions
        the disassembler does not know.
    got_loads
        Code that loads a slot of the global offset table.
    got_rows, tls_rows
        Types of code for a GOT, and for thread-local storage.
    absolute_rows, code_model_option
        Types of code of a small code model, and the option for the right one.
    narrow_row
        A type of a word that cannot hold an address, or None.
    names
        Names of relocations that pyelftools has none for.
    shown
        (Sample module, section) -> relocation types that it is there to show.
    disassembled
        What an independent disassembler says, where operands are known.
    """

    triple: tuple[str, str] = MISSING
    prefix: str = MISSING
    call: int = MISSING
    abs64: int = MISSING
    prel32: int | None = MISSING
    word32: int = 0
    abs64_name: str = MISSING
    distance: tuple[int, ...] = MISSING
    export_word: int = MISSING
    clean_target: bool = MISSING
    call_code: tuple[bytes, int, int] = MISSING
    more_of_call: Sequence[tuple[int, int]] = ()
    ret: bytes = MISSING
    spin: bytes = MISSING
    return_0: bytes = MISSING
    keep: tuple[bytes, bytes] = MISSING
    placeholders: tuple[tuple[str, bool], ...] = MISSING
    vermagic: str = MISSING
    this_module_size: int = MISSING
    init_at: int = MISSING
    exit_at: int = MISSING
    directives: str = MISSING
    base: int = MISSING
    kernel: int = MISSING
    window: tuple[int, int] = MISSING
    plt_beyond: bool = MISSING
    rules: Mapping[int, Rule] = MISSING
    nothing: Collection[int] = MISSING
    sized: Collection[int] = MISSING
    got: Mapping[int, Callable[[int, int, int, Callable[[int], int]], int]] = MISSING
    paired: Collection[int] = ()
    high: Collection[int] = ()
    upper: Collection[int] = ()
    added: Collection[int] = ()
    subtracted: Collection[int] = ()
    set_to: Collection[int] = ()
    uleb128: Collection[int] = ()
    source: str = MISSING
    got_source: str = MISSING
    rewritten: Collection[str] = ()
    beyond_gas: tuple[tuple[int, str, str], ...] = MISSING
    never_in_lld: Collection[int] = ()
    late_in_lld: Collection[int] = ()
    pyelftools: str | None = MISSING
    beyond_pyelftools: Collection[int] = ()
    wrong_in_pyelftools: Collection[int] = ()
    newer_than_readelf: Mapping[int, str | None] = MISSING
    branches: Mapping[str, Reaches] = MISSING
    branch_options: str = ""
    decoded: Sequence[Case] = MISSING
    beyond_capstone: Collection[int] = ()
    got_loads: Sequence[Through] = MISSING
    got_rows: tuple[int, ...] = MISSING
    tls_rows: tuple[int, ...] = MISSING
    absolute_rows: tuple[int, ...] = MISSING
    code_model_option: str = MISSING
    narrow_row: int | None = MISSING
    names: Mapping[int, str] = MappingProxyType({})
    shown: Mapping[tuple[str, str], set[str]] = MISSING
    disassembled: Disassembled | None = None


@attrs.frozen(kw_only=True)
class Load(_Level):
    """What loading needs to be tested.

    Parameters
    ----------
    image_base
        Where a kernel image is linked.
    image_step
        Bytes that KASLR moves it by, or a multiple of them.
    image_marks
        Offset -> bytes in the header of a flat image; None where the image is a vmlinux.
    types_of
        Of which kernel the types are, where that is not the one that is modelled.
    lacks
        What those types have no structure or member for: variables, structures, members.
    features
        What tables of modules may ask of CPUs, to fuzz them with: the names of our own record.
    debian
        Counted on the files of Debian's modules: how many, MiB of text, rodata, data; or None.
    runs
        KiB of a page -> entries that the manual says a run of pages, and one of large leaves, has.
    """

    image_base: int = MISSING
    image_step: int = 2 << 20
    image_marks: Mapping[int, bytes] | None = MISSING
    types_of: str = ""
    lacks: Collection[str] = ()
    features: frozenset[str] = MISSING
    debian: tuple[int, float, float, float] | None = MISSING
    runs: Mapping[int, tuple[int, int]] = MappingProxyType({})


@attrs.frozen(kw_only=True)
class Run(_Level):
    """What running code needs to be tested; code is hex or assembly.

    Parameters
    ----------
    snippets
        Functions that no sample module has, by name: position independent, without
        relocations; a, b, c ... are the arguments.
    rounds
        Instructions of one round of the snippet "count".
    ticket_locks
        Whether its kernel has ticket locks, not queued ones (ARCH_USE_QUEUED_SPINLOCKS).
    nested
        Instructions of one round of the snippet "loop" that calls a stub, which calls "one".
    clocks
        Functions that return what a clock of the CPU says.
    hertz
        How fast those run that do not run at 1 GHz.
    random
        Functions that return a random number of the CPU, with the bits that it has.
    wait
        Waits until a clock has moved on by as much as its argument, and returns by how much.
    poisons, poison_prefix, poison_return, poison_stop
        What spoils a CPU; assembly in front of it; returns of {0}; an undefined instruction.
    status
        A function that raises a floating-point flag, calls its argument and returns the flags
        (flag 1 and no other is left); and one that raises another. None: it has no such flags.
    registers
        Yields each system register: its number, a function that reads it, and one that writes
        its argument and reads it.
    seen
        What a kernel sees of its level: a function, and what its result must be like.
    refused, traps
        Instructions that belong to other levels, and that call them or a debugger.
    trap_mnemonic
        What the fill pattern is called by a disassembler.
    lethal
        Instructions over which the emulator dies, by class, found by `python -m
        tests.fuzz.code`. The first of each goes through the command line and a sweep.
    views
        Functions that return the word at their argument, each with memory looked up in another way
        before; none where code has one way.
    nop, harmless
        One instruction that does nothing, and a few in front of which those must be found.
    peek
        u64 peek(u64 *p): load it, return 0; where that is not possible (at the offset) return 7.
    count
        unsigned long note(void): *order = 2 * *order + n, return 0; and where a pool holds order.
    watch, ask
        Loops that load for ever from their argument, and of an instruction that the machine
        answers, where there is one by leaving the emulator.
    through
        int through(void *out, u64 a, u64 b, f *function): *out = function(a, b).
    percpu
        Functions that go to per-cpu variables, and what a fault must name.
    percpu_by_register
        Whether they find the CPU's copy by a register, and not by the table of all CPUs.
    type_checks, checks
        Calls of what the first argument points at, if it is of `TYPE` (clang's kCFI); and traps
        of other checks, with what they say.
    read_guard
        Code that reads a canary that is a global.
    aligned
        Whether loads and stores at addresses that are not aligned are exceptions.
    trap, one
        An instruction of BUG, and one that puts 1 into the result's register.
    va_list_flags, va_list_code
        For a compiler; what gcc 12 -Os makes of va_list.c: where functions stand, and the code;
        None where it depends on the place.
    va_list, va_list_first
        Memory of a va_list, and the names of what it gives before the stack (see test_registry).
    """

    snippets: Mapping[str, str] = MISSING
    rounds: int = MISSING
    ticket_locks: bool = False
    nested: int = 5
    clocks: Mapping[str, str] = MISSING
    hertz: Mapping[str, int] = MISSING
    random: Mapping[str, tuple[str, int]] = MISSING
    wait: str = MISSING
    poisons: Mapping[str, str] = MISSING
    poison_prefix: str = MISSING
    poison_return: str = MISSING
    poison_stop: str = MISSING
    status: tuple[str, str] | None = MISSING
    registers: Callable[[], Iterable[tuple[int, bytes, bytes]]] = MISSING
    seen: Mapping[str, tuple[str, Callable[[int], object]]] = MISSING
    refused: Mapping[str, str] = MISSING
    traps: Mapping[str, str] = MISSING
    trap_mnemonic: str = MISSING
    lethal: Mapping[str, tuple[str, ...]] = MISSING
    views: tuple[bytes, ...] = MISSING
    nop: str = MISSING
    harmless: str = MISSING
    peek: tuple[str, int] = MISSING
    count: tuple[Callable[[int], bytes], int] = MISSING
    watch: str = MISSING
    ask: str = MISSING
    through: str = MISSING
    percpu: Mapping[str, tuple[str, str]] = MISSING
    percpu_by_register: bool = MISSING
    type_checks: Mapping[str, str] = MISSING
    checks: Sequence[tuple[str, str]] = MISSING
    read_guard: str = MISSING
    aligned: bool = False
    trap: str = MISSING
    one: str = MISSING
    va_list_flags: str = MISSING
    va_list_code: tuple[Mapping[str, int], str] | None = MISSING
    va_list: Mapping[int, int | str] = MISSING
    va_list_first: Sequence[str] = MISSING


@attrs.frozen(kw_only=True)
class Patch(_Level):
    """What patching text needs to be tested.

    Parameters
    ----------
    site
        Where the NOP of the snippet "site" stands.
    jump_reach
        Size of a branch of static keys -> bits of displacement, but for the sign.
    imitated
        Instructions relative to where they stand, or that leave the straight line.
    writable
        Registers that those may use.
    flags
        Register of the flags, the bits that code may change, and those that stay; or None.
    refused_probes
        Instructions that cannot be probed, and why.
    exclusive
        A load-exclusive, an addition, a store-exclusive and a move; None: there is none.
    load
        An instruction that loads from its argument.
    allowed, others
        Instructions that may replace one another while they run, and others: mnemonics, and
        code in that order, by GNU as; None where that depends on sizes only.
    tail
        Adds one to the argument and goes on into another function: code, where its relocation
        sits, type, addend.
    mcount
        Section of ftrace's sites.
    mcount_site
        Text with a site at 0, and the symbol, type and addend of the call at 1, or None.
    alternatives
        The kernel's own table of them: symbols of its start and end, and the fields of an entry
        (struct alt_instr) from a version on; `at` is the code's distance, `new` that of what
        replaces it, `cap` the feature, `size` bytes of code.
    runtime_constants
        Bytes of an operand that the kernel fills in as it boots (asm/runtime-const.h): of a
        pointer, of a shift.
    """

    site: int = MISSING
    jump_reach: Mapping[int, int] = MISSING
    imitated: Sequence[str] = MISSING
    writable: Sequence[str] = MISSING
    flags: tuple[str, int, int] | None = MISSING
    refused_probes: Sequence[tuple[str, str]] = MISSING
    exclusive: str | None = MISSING
    load: str = MISSING
    allowed: tuple[str, str] | None = MISSING
    others: tuple[str, str] | None = MISSING
    tail: tuple[str, int, int, int] = MISSING
    mcount: str = MISSING
    mcount_site: tuple[bytes, tuple[str, int, int] | None] = MISSING
    alternatives: Alternatives = MISSING
    runtime_constants: tuple[int, int] = MISSING


@attrs.frozen(kw_only=True)
class Facts:
    """The facts of an architecture; None for levels that it does not have."""

    link: Link | None = None
    load: Load | None = None
    run: Run | None = None
    patch: Patch | None = None


def needs(arch: archs.Arch, level: str) -> None:
    """Skip the test where an architecture lacks a level, or does not finalise."""
    if not getattr(arch, level):
        pytest.skip(f"{arch.name} has no level {level!r}")


@attrs.frozen
class _Asked:
    """What a test asks; a level that the architecture lacks skips it."""

    arch: archs.Arch
    written: Facts

    def _level(self, name: str) -> Any:
        needs(self.arch, name)
        found = getattr(self.written, name)
        if found is None:
            pytest.fail(f"{self.arch.name}: there are no facts for level {name}")
        return found

    @property
    def link(self) -> Link:
        """What linking needs."""
        return self._level("link")

    @property
    def load(self) -> Load:
        """What loading needs."""
        return self._level("load")

    @property
    def run(self) -> Run:
        """What running needs."""
        return self._level("run")

    @property
    def patch(self) -> Patch:
        """What patching text needs."""
        return self._level("patch")


def written(name: str) -> Facts:
    """Return what stands in the file of an architecture; nothing where there is no file."""
    try:
        found = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        return Facts()
    return found.FACTS


def facts(arch: archs.Arch | str | int) -> _Asked:
    """Return the facts of an architecture: its record, its name or its e_machine."""
    if isinstance(arch, str):
        arch = archs.arch(arch)
    elif isinstance(arch, int):
        known = archs.by_machine(arch)
        assert known is not None
        arch = known
    return _Asked(arch, written(arch.name))


def known(arch: archs.Arch, level: str, fact: str) -> Any:
    """Return a fact while tests are collected, or None where there is none."""
    record = getattr(written(arch.name), level)
    if getattr(arch, level) is None or record is None or fact in record.missing():
        return None
    return getattr(record, fact)


def cases(level: str, fact: str) -> list[Any]:
    """Return the parameters (architecture, case) of a test for each case of a fact.

    Where an architecture has none there is one case, None, for `facts` to say why.
    """
    return [
        pytest.param(arch, one, id=f"{arch.name}-{one if isinstance(one, str) else number}")
        for arch in archs.ALL
        for number, one in enumerate(known(arch, level, fact) or [None])
    ]
