# SPDX-License-Identifier: GPL-2.0-or-later
"""The level *runs*: how functions are called, and what the emulated computer is."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import attrs

from archs.registers import Registers
from archs.system import System
from archs.traps import Trap

SystemRegister: TypeAlias = tuple[int, int, int, int, int]


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
        Whether 32-bit unsigned values are sign-extended in registers (riscv64, n64).
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


def consecutive_slots(slot: int, load: Callable[[int], int]) -> Iterator[int]:
    """Yield the slots of a va_list that is a pointer to consecutive doublewords."""
    while True:
        yield load(slot)
        slot += 8


class Anchor(enum.Enum):
    """Addresses that a register may have to hold before code runs."""

    PERCPU = "offset of this CPU's per-cpu copy"
    CURRENT = "current task"
    THREAD_INFO = "thread_info of the current task"
    IMAGE = "kernel image"


@attrs.frozen(kw_only=True)
class DelaySlots:
    """Branches that execute the instruction behind them before they go.

    Where that one makes the emulator look up a page, it forgets that it has executed it
    (Unicorn issue 2272). So pages are looked up before.

    Parameters
    ----------
    before
        Returns whether an instruction is such a branch.
    registers
        Every register that a program computes with.
    """

    before: Callable[[bytes], bool]
    registers: tuple[str, ...]


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
    at_sites
        Where the emulator loses the program counter: numbers of the exceptions that come from
        instructions at `System.sites`, of which the last that was reached is meant; of others
        the place is not known. None: it loses none.
    placed
        Numbers of those that it does not lose it at.
    names
        What they are, in words.
    """

    undefined: int | None = None
    invalid_is_trap: bool = False
    beyond: Mapping[int, int] = attrs.field(factory=dict)
    at_sites: tuple[int, ...] | None = None
    placed: tuple[int, ...] = ()
    names: Mapping[int, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class BlockClear:
    """An instruction that clears a block of memory, of which the emulator tells no memory hook.

    Parameters
    ----------
    hook
        The constant of the hook that is called for it.
    code
        What it is encoded by: op0, op1, CRn, CRm, op2.
    size
        Bytes that it clears, at a multiple of that.
    """

    hook: str
    code: tuple[int, ...]
    size: int


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
    paged_registers
        What some of them hold instead where pages are larger: bytes of a page -> registers.
    msrs
        Model specific registers that hold a fixed value, by number.
    unsaved
        Registers that a copy of all registers lacks, with the value that a call finds.
    unsaved_msrs
        Model specific registers that it lacks; they only keep what is written to them.
    system
        Instructions that ask the machine, and what answers them; None: the emulator does.
    canary
        Where compiled code reads the stack protector's canary: anchor, and the structure there
        whose member `stack_canary` it is; None where no register leads to it.
    thread_info
        Where `task` and `cpu` stand in struct thread_info, where that is not part of the task.
    current_variables
        Per-cpu variables that begin with the current task, where no register holds it.
    guard_variables
        Per-cpu variables that hold the canary, by which later compilers read it.
    guard_globals
        Variables of the whole kernel that hold it.
    trap
        Returns what a trap instruction says, given the code before and from there on.
    percpu_from_zero
        Whether per-cpu symbols count from 0 (x86-64) instead of being addresses.
    ticket_locks
        Whether spinlocks are ticket locks, as inlined unlocks take them to be; else queued ones.
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
        A return: an instruction, or two where the first has a delay slot.
    longest
        How many bytes an instruction that begins with these takes at most.
    shortened
        Mnemonics that capstone gives too few bytes: how many an instruction has that begins with
        these; None where some are missing.
    copy
        A function that copies a number of bytes (third argument) to its first argument from
        its second by stores of one text_poke granule; empty where text is never poked.
    exceptions
        How exceptions are reported.
    delay_slots
        Branches that go late; None: there are none.
    clears
        What clears memory in blocks; None: there is no such instruction.
    views
        A register, and its bits by which the emulator keeps apart what it looked up for loads and
        stores: they may be another view of memory. None: there is one.
    leftovers
        Two registers with different values, where the emulator gives what it has read last for one
        that may not be read.
    features
        What the emulated CPU has and modules look for, by the kernel's numbers
        (X86_FEATURE_*, KERNEL_HWCAP_*).
    capabilities
        What the CPU model can do, by the kernel's names.
    compares
        Instructions that compare, or subtract in order to: capstone's mnemonic -> the numbers of
        the two operands that are compared, with a minus where the second's negative is.
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
    canary: tuple[Anchor, str] | None
    percpu_from_zero: bool
    code: Mapping[str, bytes]
    fixup: Callable[[int], tuple[tuple[str, int], ...] | None]
    ret: bytes
    longest: Callable[[bytes], int]
    shortened: Mapping[str, Callable[[bytes], int | None]] = attrs.field(factory=dict)
    fixups: Mapping[str, tuple[int, int]] = attrs.field(factory=dict)
    copy: bytes = b""
    thread_info: Mapping[str, int] = attrs.field(factory=dict)
    current_variables: tuple[str, ...] = ()
    guard_variables: tuple[str, ...] = ()
    ticket_locks: bool = False
    guard_globals: tuple[str, ...] = ()
    trap: Callable[[bytes, bytes], Trap | None] = lambda _before, _code: None
    exceptions: Exceptions = attrs.field(factory=Exceptions)
    delay_slots: DelaySlots | None = None
    privilege: Mapping[str, int] = attrs.field(factory=dict)
    system_registers: Mapping[SystemRegister, int] = attrs.field(factory=dict)
    paged_registers: Mapping[int, Mapping[SystemRegister, int]] = attrs.field(factory=dict)
    msrs: Mapping[int, int] = attrs.field(factory=dict)
    unsaved: Mapping[str, int] = attrs.field(factory=dict)
    unsaved_msrs: tuple[int, ...] = ()
    system: System | None = None
    clears: BlockClear | None = None
    views: tuple[str, int] | None = None
    leftovers: tuple[str, ...] = ()
    features: frozenset[int] = frozenset()
    capabilities: frozenset[str] = frozenset()
    compares: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Run:
    """What running needs: how functions are called, and what CPU there is.

    Parameters
    ----------
    gregset
        The registers of `elf_gregset_t` (asm/elf.h) by the emulator's names, as core files have
        them; empty where a word of it is none.
    registers
        Those that can be asked for.
    """

    calling: CallingConvention
    emulation: Emulation
    gregset: tuple[str, ...] = ()
    registers: Registers = attrs.field(factory=Registers)
