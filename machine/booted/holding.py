# SPDX-License-Identifier: GPL-2.0-or-later
"""What `struct module` says of a module that is loaded: its taints, what it uses, who uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from archs.layouts import Layouts
from loader.gate import taints_of_bits

_BASE = 1  # MODULE_REF_BASE (kernel/module/main.c): of the kernel itself, as long as it is there
_MOST = 4096  # of a list


@attrs.frozen
class Holding:
    """A module in the kernel's memory.

    Parameters
    ----------
    address
        Its struct module.
    layouts
        The layouts of the kernel's structures.
    read
        Returns guest memory.
    """

    address: int
    layouts: Layouts = attrs.field(repr=False)
    read: Callable[[int, int], bytes] = attrs.field(repr=False)

    def _number(self, address: int, structure: str, path: str) -> int:
        member = self.layouts.member(structure, path)
        return member.read(self.read(address + member.offset, member.size))

    @property
    def taints(self) -> str:
        """How it taints the kernel: letters, as /sys/module/NAME/taint has them."""
        return taints_of_bits(self._number(self.address, "module", "taints"))

    @property
    def references(self) -> int:
        """How many hold it, modules that use it included; 0 where none can be taken out."""
        if not self.layouts.has("module", "refcnt"):
            return 0
        return self._number(self.address, "module", "refcnt.counter") - _BASE

    @property
    def depends(self) -> tuple[str, ...]:
        """The modules that it uses, in alphabetical order."""
        return tuple(sorted(self._others("target")))

    @property
    def users(self) -> tuple[str, ...]:
        """The modules that use it, in alphabetical order."""
        return tuple(sorted(self._others("source")))

    def _others(self, side: str) -> Iterator[str]:
        if not self.layouts.has("module_use"):  # without CONFIG_MODULE_UNLOAD nobody counts
            return
        head = self.address + self.layouts.offset_of("module", f"{side}_list")
        inside = self.layouts.offset_of("module_use", f"{side}_list")
        name = self.layouts.member("module", "name")
        at = self._next(head)
        for _ in range(_MOST):
            if at == head:
                return
            other = self._number(at - inside, "module_use", side)
            text = self.read(other + name.offset, name.size).partition(b"\0")[0]
            yield text.decode("utf-8", "backslashreplace")
            at = self._next(at)

    def _next(self, at: int) -> int:
        return int.from_bytes(self.read(at, 8), "little")
