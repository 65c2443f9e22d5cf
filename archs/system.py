# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions that ask the machine and not the program: clocks, entropy, privilege.

The emulator answers some of them from its host, so that no two runs are equal, and some as
no kernel would see them. Those are found in the code before it runs, or refused by the
emulator, and their work is done here: one file per architecture, as a function of the
instruction's bytes and the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeAlias

import attrs

NSEC_PER_SEC = 10**9


class Processor(Protocol):
    """A CPU that stands at such an instruction."""

    number: int  # which CPU it is
    page_table: int  # what the register holds that leads to the kernel's page table
    linked: tuple[int, int] | None  # what a conditional store goes by: address and contents

    def read(self, name: str) -> int:
        """Return a register."""
        ...

    def write(self, name: str, value: int) -> None:
        """Set a register."""
        ...

    def clock(self) -> int:
        """Return nanoseconds since boot, after the little that it takes to look."""
        ...

    def entropy(self) -> int:
        """Return 64 bits of the machine's seed."""
        ...

    def load(self, address: int, size: int) -> int:
        """Return the word of `size` bytes at an address; AccessError where it may not be read."""
        ...

    def store(self, address: int, value: int, size: int) -> None:
        """Store a word of `size` bytes; AccessError where it may not be written."""
        ...

    def forget(self) -> None:
        """Drop what this CPU has looked up in page tables."""
        ...

    def wait(self) -> None:
        """Let time pass until the next interrupt."""
        ...


# Bytes of the instruction whose work was done; or why that is refused; None: nothing known.
Done: TypeAlias = int | str | None


@attrs.frozen(kw_only=True)
class System:
    """What the emulated computer does about such instructions.

    Parameters
    ----------
    perform
        Does the work of the instruction that code begins with.
    sites
        Yields where in code there may be instructions that the emulator would answer itself, or
        whose place it would lose (`Exceptions.at_sites`).
    calls
        Instructions, by the emulator's names, that it calls back for: what does their work,
        and returns why that is refused, or None.
    port_input
        The emulator's constant of the instruction that reads a port; empty where none does.
    page_table
        Returns what the register holds that leads to the page table at a physical address,
        given that and how many levels it has; and the register's name. None: software walks it.
    """

    perform: Callable[[bytes, Processor], Done]
    sites: Callable[[bytes], Iterator[int]]
    page_table: tuple[str, Callable[[int, int], int]] | None
    calls: Mapping[str, Callable[[Processor], str | None]] = attrs.field(factory=dict)
    port_input: str = ""


def ticks(cpu: Processor, frequency: int) -> int:
    """Return the ticks since boot of a clock of so many hertz."""
    return cpu.clock() * frequency // NSEC_PER_SEC


def occurrences(code: bytes, pattern: bytes) -> Iterator[int]:
    """Yield every offset at which `pattern` stands."""
    at = code.find(pattern)
    while at >= 0:
        yield at
        at = code.find(pattern, at + 1)
