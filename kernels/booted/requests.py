# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules that the kernel itself asks for: request_module() runs modprobe, which there is none of.

So what it would run is read where it would be started (kernel/umh.c,
call_usermodehelper_exec()), and done here.
"""

from __future__ import annotations

from collections.abc import Callable

from kernels.booted.guest import Guest
from loader.btf import Btf
from loader.btf_records import Kind

_EXEC, _FREE = "call_usermodehelper_exec", "call_usermodehelper_freeinfo"
_MODPROBE = "modprobe"
_MOST = 8  # words of a command line
_WAITS = 2  # UMH_WAIT_PROC: until the program ends


class Requests:
    """Answers what a kernel asks for.

    Parameters
    ----------
    guest
        The kernel.
    types
        Returns its types, or None; without them nothing is answered.
    load
        Loads what has a name or alias; returns whether that was possible.
    busy
        Returns whether a module is being loaded.
    """

    def __init__(
        self,
        guest: Guest,
        types: Callable[[], Btf | None],
        load: Callable[[str], bool],
        busy: Callable[[], bool],
    ) -> None:
        self._guest = guest
        self._types = types
        self._load = load
        self._busy = busy
        self._later: list[str] = []
        if _EXEC in guest.symbols:
            guest.board.break_at(guest.symbols[_EXEC], self._asked)

    def _asked(self) -> int | None:
        """Load what modprobe is asked for, for the process; leave anything else to the kernel."""
        guest, board, calling = self._guest, self._guest.board, self._guest.arch.runs.calling
        info = board.get(calling.arguments[0])
        if not guest.on_own_stack():
            return None  # a thread of the kernel's, which has no memory to give a file in
        words = self._words(info)
        if not words or not words[0].endswith(_MODPROBE):
            return None
        returns = guest.return_address()
        if self._busy() and not board.get(calling.arguments[1]) & _WAITS:
            # Who does not wait may be the very module that the other one needs: modprobe runs beside.
            self._later.append(words[-1])
            done = True
        else:
            done = self._load(words[-1])
        if _FREE not in guest.symbols:  # it fails to run it then, which few look at
            return None
        guest.call(guest.symbols[_FREE], (info,))
        return guest.return_from(returns, 0 if done else 256)  # the program's exit status

    def settle(self) -> None:
        """Load what nobody waited for, and what that asks for in turn."""
        while self._later:
            self._load(self._later.pop(0))

    def drop(self) -> None:
        """Forget what nobody waited for."""
        self._later.clear()

    def _words(self, info: int) -> list[str]:
        types = self._types()
        outer = None if types is None else types.find("subprocess_info", Kind.STRUCT)
        place = None if types is None or outer is None else types.place(outer.number, "argv")
        if place is None:
            return []
        guest = self._guest
        array, words = guest.word(info + place.bytes), []
        for index in range(_MOST):
            at = guest.word(array + 8 * index)
            if not at:
                break
            words.append(guest.string(at, 256))
        return words
