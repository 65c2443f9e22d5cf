# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a booted kernel lands that calls Python: addresses in executable memory of its own making.

The memory is what its loader gives modules for text, full of returns; a breakpoint stands at each
address that is in use. A kernel that checks the type of what it calls (CFI) has a hash in front of
each function, which is made of names that BTF has not: such a kernel is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from emulator.boards.breaks import Break
from emulator.faults import BadCall
from kernels.booted.kernel import BootedKernel

_PAGE = 4096
_STEP = 32  # bytes from one address to the next
_TEXT = 0  # EXECMEM_MODULE_TEXT, and EXECMEM_DEFAULT (include/linux/execmem.h, since 6.10)
_CHECKED = ("CONFIG_CFI_CLANG", "CONFIG_CFI")  # the latter since 6.18
# Which function gives the memory, and what is in front of the size.
_GIVERS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("execmem_alloc", (_TEXT,)),
    ("module_alloc", ()),
)


class BootedLanding:
    """The addresses of one machine at which guest code calls Python.

    Parameters
    ----------
    kernel
        Its kernel.
    slots
        Yields the argument slots of a function that has just been entered.
    """

    def __init__(self, kernel: BootedKernel, slots: Callable[[], Iterator[int]]) -> None:
        self._kernel, self._slots = kernel, slots
        self._fill = b""
        self._pages: list[int] = []
        self._free: list[int] = []
        self._breaks: dict[int, Break] = {}

    def land(self, answer: Callable[[Iterator[int]], int], _count: int) -> int:
        """Return an address at which Python answers."""
        config = self._kernel.standing.image.config or {}
        checked = [name for name in _CHECKED if config.get(name) == "y"]
        if checked:
            why = f"this kernel checks the types of what it calls ({checked[0]})"
            raise BadCall("callback", why, "stub() a function of that type, and pass its address")
        if not self._free:
            self._more()
        address = self._free.pop()
        guest = self._kernel.guest

        def reached() -> int:
            returns = guest.return_address()
            return guest.return_from(returns, answer(self._slots()))

        self._breaks[address] = self._kernel.board.break_at(address, reached)
        return address

    def leave(self, address: int) -> None:
        """Let an address answer no more."""
        made = self._breaks.pop(address, None)
        if made is not None:
            self._kernel.board.no_break_at(address, made)
            self._free.append(address)

    def restored(self) -> None:
        """Take note that the machine is another now, which may have something else there."""
        if all(self._ours(page) for page in self._pages):
            return
        for address, made in self._breaks.items():
            self._kernel.board.no_break_at(address, made)
        self._breaks.clear()
        self._pages.clear()
        self._free.clear()

    def _ours(self, page: int) -> bool:
        try:
            return self._kernel.board.read(page, _PAGE) == self._fill
        except LookupError:
            return False

    def _more(self) -> None:
        kernel, guest = self._kernel, self._kernel.guest
        giver = next((each for each in _GIVERS if each[0] in kernel.symbols), None)
        if giver is None or "set_memory_x" not in kernel.symbols:
            names = " or ".join(name for name, _ in _GIVERS)
            raise BadCall("callback", f"this kernel has no {names} with set_memory_x")
        with kernel.watched(), guest.unwatched():
            page = guest.call(kernel.symbols[giver[0]], (*giver[1], _PAGE))
            if not page:
                raise BadCall("callback", "the kernel gives no executable memory")
            guest.call(kernel.symbols["set_memory_x"], (page, 1))
        ret = kernel.arch.runs.emulation.ret
        self._fill = (ret * (_PAGE // len(ret) + 1))[:_PAGE]
        kernel.board.rewrite(page, self._fill)
        self._pages.append(page)
        self._free += range(page + _PAGE - _STEP, page, -_STEP)
