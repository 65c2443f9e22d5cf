# SPDX-License-Identifier: GPL-2.0-or-later
"""What stops the guest, said so that a person can find the place."""

from __future__ import annotations

import enum

import attrs

from allocator.errors import ExecmemError, printable


class FaultKind(enum.Enum):
    """Why the guest stopped."""

    READ = "read"
    WRITE = "write"
    FETCH = "fetch"
    INSTRUCTION = "invalid instruction"
    TRAP = "trap"
    UNKNOWN_SYMBOL = "unknown kernel symbol"
    UNKNOWN_STRUCTURE = "unknown kernel structure"
    INSTRUCTION_LIMIT = "instruction limit reached"
    TIME_LIMIT = "time limit reached"
    MEMORY_LIMIT = "memory limit reached"
    STACK_PROTECTOR = "stack protector"
    PANIC = "panic"
    CFI = "CFI failure"
    BUG = "kernel BUG"
    CHECK = "failed check"
    OUT_OF_BOUNDS = "out-of-bounds access"
    USE_AFTER_FREE = "use after free"
    DOUBLE_FREE = "double free"
    EMULATOR = "emulator died"
    LACKING = "page that the dump lacks"

    @property
    def is_unknown(self) -> bool:
        """Whether nothing was wrong but that the kernel ends here."""
        return self in (self.UNKNOWN_SYMBOL, self.UNKNOWN_STRUCTURE)

    @property
    def is_limit(self) -> bool:
        """Whether nothing was wrong but that the guest took too much."""
        return self in (self.INSTRUCTION_LIMIT, self.TIME_LIMIT, self.MEMORY_LIMIT)


# How each limit is raised, and how cleared.
LIMIT_HINTS = {
    FaultKind.INSTRUCTION_LIMIT: "raise it with --instructions N, clear it with 0"
    " (Machine.instructions, None)",
    FaultKind.TIME_LIMIT: "raise it with --seconds S, clear it with 0 (Machine.seconds, None)",
    FaultKind.MEMORY_LIMIT: "raise it with --heap-limit MIB (Machine(heap_limit=BYTES))",
}


@attrs.define
class Stop(Exception):
    """Why emulation ended before it reached its end."""

    kind: FaultKind
    pc: int
    address: int | None = None
    number: int | None = None
    reason: str = ""
    fault: Fault | None = None  # what was told of it


@attrs.frozen(str=False)
class Stopped:
    """What stopped first, where something else only follows from it.

    Parameters
    ----------
    module
        Whose init, or other function, stopped; empty where it is no module's.
    fault
        Why.
    """

    module: str
    fault: Fault

    def __str__(self) -> str:
        fault = self.fault
        said = str(fault)
        if fault.symbol:
            hint = f" (hint: {fault.hint})" if fault.hint else ""
            said = f"'{fault.symbol}' is not in the modelled kernel, at {fault.where}{hint}"
        return printable(f"stopped first: {f'{self.module}: ' if self.module else ''}{said}")


@attrs.define(auto_exc=True, str=False)
class Fault(ExecmemError):
    """The guest did what it may not do, or ran out of its limits.

    Parameters
    ----------
    kind
        What happened.
    pc
        Address of the instruction.
    where
        `symbol+0xoff [module]` around the pc, or the pc in hex.
    instruction
        Disassembly at the pc; empty where nothing is mapped.
    address
        For memory accesses: the address.
    reason
        What is wrong with it, and what it points at.
    hint
        What a person can do about it.
    symbol
        The kernel symbol that is missing, where that is what happened.
    cause
        What stopped before and led to this, where something did.
    foreign
        The module, where it was built for another kernel than the one that is modelled: this
        may be why.
    backtrace
        Who called it, innermost first, where the kernel says so.
    sources
        The lines of source of `where` and of each of `backtrace`, empty for one that has none;
        nothing where no line is known.
    """

    kind: FaultKind
    pc: int
    where: str
    instruction: str = ""
    address: int | None = None
    reason: str = ""
    hint: str = ""
    symbol: str = ""
    cause: Stopped | None = None
    foreign: str = ""
    backtrace: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        first = f"{self.cause}; then: " if self.cause is not None else ""
        text = f"{first}{self.kind.value}"
        if self.address is not None:
            text += f" of {self.address:#x}"
        if self.reason:
            text += f": {self.reason}"
        at = f" at {self.where}"
        if not self.where.startswith("0x"):
            at += f" (pc {self.pc:#x})"
        if self.sources and self.sources[0]:
            at += f", {self.sources[0]}"
        instruction = f": {self.instruction}" if self.instruction else ""
        hint = f"; hint: {self.hint}" if self.hint else ""
        built = f"; {self.foreign} was built for another kernel, see its notice" * bool(
            self.foreign
        )
        return printable(f"{text}{at}{instruction}{hint}{built}")


@attrs.define(auto_exc=True, str=False)
class BadCall(ExecmemError):
    """A call from outside that cannot be made: unknown function, wrong arguments."""

    function: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f"; hint: {self.hint}" if self.hint else ""
        return printable(f"{self.function}: {self.reason}{hint}")
