# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions that somebody else than the emulator executes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import unicorn
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.arch.types import uc_engine
from unicorn.unicorn_py3.unicorn import uccallback

_INSTRUCTION = ctypes.CFUNCTYPE(ctypes.c_uint32, uc_engine, ctypes.c_void_p)


def on_instruction(uc: unicorn.Uc, number: int, work: Callable[[], bool]) -> None:
    """Let `work` do what an instruction does; False: the emulator does it.

    Parameters
    ----------
    number
        Unicorn's number of one that it calls back for.
    """

    def hook(_uc: unicorn.Uc, _key: object) -> int:
        return int(work())

    # The binding's table lacks some of what the library knows; all are called alike.
    called = uccallback(uc, _INSTRUCTION)(hook)
    uc._Uc__do_hook_add(uc_const.UC_HOOK_INSN, called, 1, 0, ctypes.c_int(number))  # noqa: SLF001 -- see above
