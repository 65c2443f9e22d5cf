# SPDX-License-Identifier: GPL-2.0-or-later
"""What tracing and probing show, whatever kernel it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Protocol, Self

import attrs

from allocator.errors import ExecmemError

LIMIT = 100_000  # calls or hits that are kept


@attrs.define(auto_exc=True, str=False)
class PatchRefused(ExecmemError):
    """A place where it may not be done as asked; nothing was changed.

    Parameters
    ----------
    what
        What was to be done: `probe`, `trace`, `flip`, ...
    address, where
        The place, and its name.
    reason, hint
        The rule, and what to do instead.
    """

    what: str
    address: int
    where: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        named = self.where.startswith("0x") or not self.address
        at = "" if named else f" ({self.address:#x})"
        hint = f"; hint: {self.hint}" if self.hint else ""
        return f"cannot {self.what} {self.where}{at}: {self.reason}{hint}"


class UntilStopped:
    """Something that lasts until `stop`; a context manager."""

    def stop(self) -> None:
        """Let everything be as it was before; a second time does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.stop()


@attrs.frozen
class Hit:
    """One arrival at a probe: the registers as the probed instruction finds them.

    Parameters
    ----------
    address
        The instruction.
    registers
        Name -> value.
    arguments
        The argument registers: at a function's first instruction, what it was called with.
    """

    address: int
    registers: Mapping[str, int] = attrs.field(repr=False)
    arguments: tuple[int, ...] = attrs.field(default=(), repr=False)


class AnyProbe(Protocol):
    """One probe, until `remove`; a context manager."""

    hits: list[Hit]

    @property
    def address(self) -> int:
        """Where it is."""
        ...

    @property
    def where(self) -> str:
        """Where it is, by name."""
        ...

    @property
    def count(self) -> int:
        """How often it was hit."""
        ...

    def remove(self) -> None:
        """Take it away."""
        ...

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Take it away."""
        ...


@attrs.frozen
class TraceSite:
    """Where a function can be traced; its module is `vmlinux` for the kernel's own."""

    module: str
    function: str
    entry: int
    address: int


@attrs.define(eq=False)
class TracedCall:
    """One call of a traced function.

    Parameters
    ----------
    site
        The function.
    arguments
        The argument registers at its entry, whatever of them it takes.
    caller
        The address that it returns to.
    result
        The result register at its return; None: it did not return.
    instructions
        How many it took, functions it called included; None: it did not return, or nobody
        counted (in a booted kernel).
    children
        The traced functions that it called.
    """

    site: TraceSite
    arguments: tuple[int, ...]
    caller: int
    result: int | None = None
    instructions: int | None = None
    children: list[TracedCall] = attrs.field(factory=list, repr=False)

    @property
    def function(self) -> str:
        """The function's name."""
        return self.site.function

    def walk(self, depth: int = 0) -> Iterator[tuple[int, TracedCall]]:
        """Yield (depth, call) of this call and of all below it, in order of entry."""
        stack = [(depth, self)]
        while stack:
            depth, call = stack.pop()
            yield depth, call
            stack += [(depth + 1, child) for child in reversed(call.children)]


OnCall = Callable[[TracedCall], object]


class CallTrace(UntilStopped):
    """Functions being traced, until `stop`.

    `calls` holds the outermost calls, `sites` what is traced by address, `recorded` counts the
    calls that were kept, `dropped` those beyond the limit.
    """

    def __init__(
        self,
        sites: dict[int, TraceSite],
        *,
        limit: int,
        on_entry: OnCall | None,
        on_exit: OnCall | None,
    ) -> None:
        self.sites = sites
        self.limit = limit
        self.on_entry, self.on_exit = on_entry, on_exit
        self.calls: list[TracedCall] = []
        self.recorded = self.dropped = 0

    def walk(self) -> Iterator[tuple[int, TracedCall]]:
        """Yield (depth, call) of every call, in order of entry."""
        for call in self.calls:
            yield from call.walk()
