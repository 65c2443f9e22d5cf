# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads and stores while a function is under way: `Machine.trace_memory`.

The emulator tells physical addresses. What is shown is the address in a section of a module, on the
stack of the call, or else in the kernel's map of all memory, at which the same bytes are. Where the
kernel is Python, what its functions access is not among them, nor what a tracer's own code does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs

from allocator.types import ADDRESS_MASK
from emulator.faults import BadCall
from kernels.tracing import UntilStopped
from machine.typedcalls import Call, Listening
from machine.watching import Ground

LIMIT = 10_000  # accesses that are kept
_PAGE = 4096
_STACK = 4  # pages on each side of the stack pointer that are looked for


class Tracing(Ground, Protocol):
    """What a machine knows of its memory."""

    def linear(self) -> int:
        """Return the address of physical 0 in the kernel's map of all memory."""
        ...

    def each_access(
        self, callback: Callable[[int, int, int, bytes | None], object]
    ) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        """Return what begins, what pauses and what ends telling of every access.

        `callback(pc, physical, size, data)` gets the bytes of a store.
        """
        ...

    def sections(self) -> Mapping[int, tuple[int, str]]:
        """Return address -> size and `module:section` of what is loaded."""
        ...

    def stack(self) -> int:
        """Return the stack pointer."""
        ...

    def text(self) -> range:
        """Return the addresses of the kernel's own code; empty where it has none."""
        ...


@attrs.frozen
class Accessed:
    """One load or store.

    Parameters
    ----------
    pc, where
        The instruction, and its place.
    kind
        `read` or `write`.
    address, size
        What was accessed; see above.
    value
        What was loaded, or stored.
    named
        What it lies in: a symbol, `module:section+0xoff`, `stack`, or empty.
    """

    pc: int
    where: str
    kind: str
    address: int
    size: int
    value: int
    named: str = ""

    def __str__(self) -> str:
        named = f" ({self.named})" if self.named else ""
        arrow = "<-" if self.kind == "write" else "->"
        return f"{self.where}: {self.address:#x}{named} {arrow} {self.value:#x} ({self.size})"


class MemoryTrace(UntilStopped):
    """The loads and stores of a function's calls, until `stop`. Made by `Machine.trace_memory`.

    `accesses` are those that were kept, `dropped` counts those beyond the limit, and `calls` the calls.
    """

    def __init__(
        self,
        ground: Tracing,
        symbolize: Callable[[int], str | None],
        on: Callable[[Callable[[Call], object], Callable[[Call], object]], Listening] | None,
        limit: int,
    ) -> None:
        self._ground, self._symbolize = ground, symbolize
        self.limit = limit
        self.accesses: list[Accessed] = []
        self.calls = self.dropped = 0
        self._depth = 0
        self._names: dict[int, str] = {}
        self._pages: dict[int, int] = {}
        self._stack: set[int] = set()
        self._linear = ground.linear()
        self._begin, self._pause, self._end = ground.each_access(self._accessed)
        self._looked = self._stopped = False
        self._listening: Listening | None = None
        try:
            if on is not None:
                self._listening = on(self._entered, self._left)
        except BaseException:
            self._end()
            raise
        if on is None:
            self._begin()

    def _entered(self, _call: Call) -> None:
        self.calls += 1
        self._depth += 1
        if self._depth == 1:
            self._looked = False
            self._begin()

    def _left(self, _call: Call) -> None:
        self._depth -= 1
        if not self._depth:
            self._pause()

    def _look(self) -> None:
        """Note by which addresses pages of modules and of the stack go."""
        self._pages.clear()
        for start, (size, _) in self._ground.sections().items():
            for page in range(start & -_PAGE, start + size, _PAGE):
                self._note(page)
        at = self._ground.stack() & -_PAGE
        self._stack = {
            page
            for page in range(at - _STACK * _PAGE, at + _STACK * _PAGE, _PAGE)
            if self._note(page)
        }

    def _note(self, page: int) -> bool:
        physical = self._ground.frame(page)
        if physical is not None:
            self._pages[physical] = page
        return physical is not None

    def _accessed(self, pc: int, physical: int, size: int, data: bytes | None) -> None:
        if not self._ground.text() and not self._in_module(pc):
            return
        if len(self.accesses) >= self.limit:
            self.dropped += 1
            return
        if not self._looked:
            self._looked = True
            self._look()
        page = self._pages.get(physical & -_PAGE)
        address = self._linear + physical if page is None else page + physical % _PAGE
        address &= ADDRESS_MASK
        raw = self._ground.read(physical, size) if data is None else data
        order: Any = self._ground.order
        self.accesses.append(
            Accessed(
                pc,
                self._name(pc),
                "read" if data is None else "write",
                address,
                size,
                int.from_bytes(raw, order),
                self._named(address),
            )
        )

    def _in_module(self, pc: int) -> bool:
        sections = self._ground.sections().items()
        return any(start <= pc < start + size for start, (size, _) in sections)

    def _name(self, address: int) -> str:
        found = self._names.get(address)
        if found is None:
            found = self._names[address] = self._symbolize(address) or f"{address:#x}"
        return found

    def _named(self, address: int) -> str:
        if address & -_PAGE in self._stack:
            return "stack"
        for start, (size, name) in self._ground.sections().items():
            if start <= address < start + size:
                return f"{name}+{address - start:#x}"
        return ""

    def stop(self) -> None:
        """Note nothing more; a second time does nothing."""
        if self._stopped:
            return
        self._stopped = True
        if self._listening is not None:
            self._listening.stop()
        self._pause()
        self._end()


def refused(error: RuntimeError) -> BadCall:
    """Return why accesses cannot be told of from now on."""
    return BadCall("trace_memory", str(error), "begin before the call")


def sections_of(loaded: Mapping[str, Any]) -> Mapping[int, tuple[int, str]]:
    """Return address -> size and `module:section` of modules of either kind, by name."""
    return {
        section.address: (section.size, f"{name}:{section.name}")
        for name, each in loaded.items()
        for section in each.sections.values()
        if section.size
    }
