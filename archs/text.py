# SPDX-License-Identifier: GPL-2.0-or-later
"""What each architecture makes of text that is changed while it may run.

Static keys, static calls, ftrace and kprobes all write instructions over instructions. The
rules (whose sites, in what order, what must stand there before) are the same everywhere and
stand in `kernels.modelled.text`; what the instructions are stands in these records, one file per
architecture beside this one. An absent capability is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import attrs


class Guest(Protocol):
    """A CPU that stands at a breakpoint, as the instruction being imitated sees it."""

    def read(self, name: str) -> int:
        """Return a register."""
        ...

    def write(self, name: str, value: int) -> None:
        """Set a register."""
        ...

    def load(self, address: int, size: int = 8) -> int:
        """Return the unsigned little-endian word of `size` bytes at `address`."""
        ...

    def store(self, address: int, value: int, size: int = 8) -> None:
        """Store the low `size` bytes of `value` at `address`."""
        ...


@attrs.frozen(kw_only=True)
class JumpLabels:
    """The two forms of a static branch.

    Parameters
    ----------
    nops
        Bytes of the site -> its NOP.
    jump
        Returns the jump from an address to a target in so many bytes, or None out of reach.
    size
        Returns how many bytes the NOP or jump has that `code` begins with; 0: it is neither.
    """

    nops: Mapping[int, bytes]
    jump: Callable[[int, int, int], bytes | None]
    size: Callable[[bytes], int]


@attrs.frozen(kw_only=True)
class StaticCalls:
    """Calls whose target is patched into them (CONFIG_HAVE_STATIC_CALL_INLINE).

    Parameters
    ----------
    sites, tramp_keys
        Sections of call sites, and of the trampolines that stand for keys not exported.
    update
        The kernel function that modules call.
    zero
        The kernel function that returns 0, which a site replaces by one instruction.
    encode
        Returns what stands at a site from now on, given its address, the code there, the
        target (0: nothing to call), whether it is a tail call and whether the target is
        `zero`; None where the code is no static call or the target out of reach.
    """

    sites: str
    tramp_keys: str
    update: str
    zero: str
    encode: Callable[[int, bytes, int, bool, bool], bytes | None]


@attrs.frozen
class Register:
    """A place that a trampoline shares with the tracer: a register."""

    name: str


@attrs.frozen
class OnStack:
    """A place that a trampoline shares with the tracer: so many bytes above the stack pointer."""

    offset: int


@attrs.frozen(kw_only=True)
class Ftrace:
    """The call sites at the entry of functions, and the trampolines they are pointed at.

    Parameters
    ----------
    table
        Section of addresses, one a function.
    locate
        Returns the site for an address of the table and the 16 bytes there, or None.
    size
        Bytes of a site.
    stub
        The kernel function that sites call as compiled, or None where they are NOPs.
    idle
        Returns whether code at an address traces nothing, given the address of `stub`.
    call
        Returns the site at an address that calls a trampoline, or None out of reach.
    plt_sections
        Sections with a slot for a PLT entry that leads to a trampoline out of reach.
    enter, exit, redirect
        Return a trampoline's code for its address, and the function that it calls and
        then goes on from: into the traced function, back to the traced function's caller;
        `redirect` goes to the function for good, as if that had been called.
    code_size
        Bytes of room that each of the three takes at most.
    site_end, parent, returns_to
        Where the tracer finds the address behind the site; where the return address is
        that it may replace; where `exit` wants the address to return to.
    """

    table: str
    locate: Callable[[int, bytes], int | None]
    size: int
    stub: str | None
    idle: Callable[[int, bytes, int | None], bool]
    call: Callable[[int, int], bytes | None]
    plt_sections: tuple[str, ...]
    enter: Callable[[int, int], bytes]
    exit: Callable[[int, int], bytes]
    redirect: Callable[[int, int], bytes]
    code_size: int
    site_end: Register | OnStack
    parent: Register | OnStack
    returns_to: Register | OnStack


@attrs.frozen(kw_only=True)
class Insn:
    """One instruction, as a probe that takes its place needs to know it.

    Parameters
    ----------
    size
        Bytes; 0: the code is no instruction.
    refusal
        Why it cannot be probed; empty: it can.
    simulate
        Does what the instruction does and returns the next program counter; None: it is
        executed out of line.
    copy
        Returns the instruction made for another address, or None out of reach; None: its
        bytes are good anywhere.
    exclusive
        1 where it begins an exclusive access (which an exception would break), -1 where
        it ends one.
    """

    size: int
    refusal: str = ""
    simulate: Callable[[Guest], int] | None = None
    copy: Callable[[int], bytes | None] | None = None
    exclusive: int = 0


@attrs.frozen(kw_only=True)
class Kprobes:
    """Breakpoints at any instruction.

    Parameters
    ----------
    breakpoint
        Returns the breakpoint that fits into an instruction of so many bytes.
    decode
        Returns the instruction at an address that `code` begins with.
    registers
        Registers to show at a hit, by Unicorn's names.
    """

    breakpoint: Callable[[int], bytes]
    decode: Callable[[bytes, int], Insn]
    registers: tuple[str, ...]


@attrs.frozen(kw_only=True)
class TextPatching:
    """Everything that patches text of a running kernel, on one architecture."""

    jump_labels: JumpLabels
    static_calls: StaticCalls | None
    ftrace: Ftrace
    kprobes: Kprobes


def word(value: int, size: int = 4) -> bytes:
    """Return the low bits of a value as a little-endian word."""
    return (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def sign(value: int, bits: int) -> int:
    """Return the low `bits` of a value, read as signed."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
