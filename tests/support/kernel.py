# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's side of a load without a kernel: names, per-cpu memory, and a switch to fail."""

from __future__ import annotations

import attrs

from allocator.errors import AllocationError


class FakeKernel:
    """Knows the names it is given; every name has an address, stub or not."""

    def __init__(self, *names: str, base: int = 0xFFFF_FFFF_8100_0000) -> None:
        self._known = frozenset(names)
        self._base = base
        self._addresses: dict[str, int] = {}
        self.pointed_at: set[str] = set()

    def knows(self, name: str) -> bool:
        """Return whether the name was given."""
        return name in self._known

    def address(self, name: str, *, called: bool = True) -> int:
        """Return an address of its own for every name; remember which are not called."""
        if not called:
            self.pointed_at.add(name)
        return self._addresses.setdefault(name, self._base + 64 * len(self._addresses))


@attrs.define
class FakePercpu:
    """Per-cpu memory: what is reserved, and what was written where."""

    base: int = 0x2_0000
    full: bool = False
    live: dict[int, int] = attrs.field(factory=dict)
    written: dict[int, bytes] = attrs.field(factory=dict)

    def alloc(self, size: int, align: int) -> int:
        """Reserve memory, or fail when it is full."""
        if self.full:
            raise AllocationError("per-cpu memory", size, (), "full")
        at = -(-self.base // align) * align
        self.base = at + size
        self.live[at] = size
        return at

    def free(self, base: int) -> None:
        """Give it back; exactly once."""
        del self.live[base]

    def write(self, base: int, data: bytes) -> None:
        """Store initial contents."""
        assert len(data) <= self.live[base]
        self.written[base] = data
