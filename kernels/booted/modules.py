# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules of a booted kernel: its own loader takes them, and says where it put them."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from kernels.booted.guest import Guest
from loader.elfview import ElfView

_FORCE, _NONBLOCK = 0o1000, 0o4000  # O_TRUNC, O_NONBLOCK of delete_module(2)
_SHDR, _SHDR_ADDRESS = 64, 16  # Elf64_Shdr, and sh_addr in it


@attrs.frozen(kw_only=True)
class Inserted:
    """What became of a module.

    Parameters
    ----------
    result
        0, or the errno of init_module(2), negative.
    addresses
        Section index -> address as the kernel placed it; empty where it came to no relocation.
    module
        Address of its `struct module`; 0 where it was not found.
    """

    result: int
    addresses: dict[int, int]
    module: int = 0


class Modules:
    """The modules of a kernel.

    Parameters
    ----------
    guest
        The kernel.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._headers: tuple[int, int] | None = None  # section headers and struct module
        self.before_init: Callable[[int], None] | None = None  # called with struct module
        watched = {
            "apply_relocate_add": self._relocating,
            "do_init_module": self._starting,
        }
        for name, handler in watched.items():
            if name in guest.symbols:
                guest.board.break_at(guest.symbols[name], handler)

    def insert(self, image: bytes, parameters: str = "") -> Inserted:
        """Give a module to init_module(2), as insmod does.

        Parameters
        ----------
        image
            The file's bytes, unpacked.
        parameters
            `name=value` and so on, with blanks between.

        Raises
        ------
        Ended
            It did not come back: an oops, a panic, a limit.
        """
        guest = self._guest
        words = parameters.encode() + b"\0"
        at = (len(image) + 7) & -8
        size = (at + len(words) + 0xFFF) & -0x1000
        user = guest.user(size)
        self._headers = None
        try:
            guest.board.write(user, image)
            guest.board.write(user + at, words)
            result = guest.system_call("init_module", user, len(image), user + at)
        finally:
            if not guest.board.broken:
                guest.free_user(user, size)
        addresses: dict[int, int] = {}
        module = 0
        if self._headers is not None:
            module = self._headers[1]
            addresses = self._addresses
        return Inserted(result=result, addresses=addresses, module=module)

    def remove(self, name: str, *, force: bool = False) -> int:
        """Give a module's name to delete_module(2); 0, or the errno, negative."""
        guest = self._guest
        words = name.encode() + b"\0"
        user = guest.user(0x1000)
        try:
            guest.board.write(user, words)
            return guest.system_call("delete_module", user, _NONBLOCK | (_FORCE if force else 0))
        finally:
            if not guest.board.broken:
                guest.free_user(user, 0x1000)

    def _relocating(self) -> None:
        """Note section headers, as apply_relocate_add() is given them."""
        if self._headers is None:
            calling = self._guest.arch.runs.calling
            get = self._guest.board.get
            self._headers = get(calling.arguments[0]), get(calling.arguments[4])
            self._addresses = self._sections(self._headers[0])

    def _sections(self, headers: int) -> dict[int, int]:
        return {}

    def _starting(self) -> None:
        """Note struct module, as do_init_module() is given it."""
        module = self._guest.board.get(self._guest.arch.runs.calling.arguments[0])
        if self.before_init is not None:
            self.before_init(module)


__all__ = ["ElfView", "Inserted", "Modules"]
