# SPDX-License-Identifier: GPL-2.0-or-later
"""The record that describes an architecture.

Everything that makes one architecture different stands in one file as one value of
this record; no other package asks for an architecture's name. An absent capability is
None, and code asks for the capability.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping

import attrs

from allocator.types import AddressMap, TextPoke
from archs.reloc import Reach, Reloc


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
        What it is used for: call, branch, address.
    """

    mnemonic: str
    reach: Reach
    what: str


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
        Returns the bytes of an entry at one address that jumps to another.
    align
        Alignment of the sections, in bytes.
    branches
        Relocation numbers of the branches that may go through an entry.
    placeholders
        Sections that must be executable although the file does not say so, with the
        bytes that they hold once a module is loaded.
    """

    section: str
    init_section: str
    size: int
    encode: Callable[[int, int], bytes]
    align: int
    branches: tuple[int, ...]
    placeholders: Mapping[str, int]


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
        Returns an iterator over the slots of a va_list: it is given the address of the
        va_list and a function that reads eight bytes of guest memory at an address.
    """

    arguments: tuple[str, ...]
    result: str
    stack_pointer: str
    program_counter: str
    link: str | None
    sign_extend_32: bool
    va_list: Callable[[int, Callable[[int], int]], Iterator[int]]


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
    canary
        Where compiled code reads the stack protector's canary: anchor and offset.
    percpu_from_zero
        Whether per-cpu symbols count from 0 (x86-64) instead of being addresses.
    code
        Kernel functions that are nothing but a few instructions, by name.
    ret
        A return instruction.
    exceptions
        How exceptions are reported.
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
    ret: bytes
    exceptions: Exceptions = attrs.field(factory=Exceptions)


@attrs.frozen(kw_only=True)
class Arch:
    """One architecture. Adding one: a file that ends in such a record, and a registry line.

    Fill it by level; each level makes the next set of registry-parametrised tests pass.

    1. *links*: `name`, `aliases`, `machine`, `relocations`, `clean_target`.
    2. *loads*: `address_map`, `trap`, `plt` (None: a branch out of reach is an error).
    3. *runs*: `calling`, `emulation`.
    4. *pokes*: `text_poke` (None: finished text is never written).
    5. *explains*: `branches`, `title`, `code_model`.

    Parameters
    ----------
    name, aliases
        The name used everywhere, and the ones accepted besides.
    title
        The manufacturer's spelling, for people.
    machine
        `e_machine` of its modules.
    relocations
        Every relocation the psABI defines for ET_REL, keyed by number.
    clean_target
        Whether the loader refuses a place that is not zero before relocation.
    prel32
        Whether tables such as `__ksymtab` hold 32-bit self-relative words
        (CONFIG_HAVE_ARCH_PREL32_RELOCATIONS) instead of pointers.
    address_map
        Returns the address map of one boot, given the seed of KASLR (None: off) and the
        size of the kernel image in bytes (None: Debian 6.12's).
    image_size
        Size of Debian 6.12's kernel image in bytes.
    trap
        Instruction that fills unused text.
    function_alignment
        Alignment of function entries in the kernel's configuration.
    """

    name: str
    aliases: tuple[str, ...]
    title: str
    machine: int
    relocations: Mapping[int, Reloc]
    clean_target: bool
    prel32: bool
    address_map: Callable[..., AddressMap]
    image_size: int
    trap: bytes
    function_alignment: int
    branches: tuple[Branch, ...]
    code_model: str
    plt: Plt | None
    text_poke: TextPoke | None
    calling: CallingConvention
    emulation: Emulation


def rows(*table: Reloc) -> Mapping[int, Reloc]:
    """Return a relocation table keyed by number; refuse a number that occurs twice."""
    keyed = {row.number: row for row in table}
    if len(keyed) != len(table):
        raise ValueError("a relocation number occurs twice")
    return keyed
