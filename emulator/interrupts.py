# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C while a guest runs: it ends the run, wherever it comes.

Python looks at signals where a function begins, so also where Unicorn's binding has just been
called back and catches nothing yet. What is raised there is printed and forgotten.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

import unicorn

from emulator.process import interrupt, is_same

_START = unicorn.Uc.emu_start.__code__
_noted: list[int] = []  # interrupts that nothing would have caught


def listen() -> None:
    """See to it that an interrupt is not lost, where interrupts have Python's own meaning."""
    if threading.current_thread() is not threading.main_thread():
        return
    now = signal.getsignal(signal.SIGINT)
    if now is signal.default_int_handler:
        signal.signal(signal.SIGINT, _came)
    elif now is interrupt:
        signal.signal(signal.SIGINT, _came_once)


def start(uc: unicorn.Uc, at: int, until: int, *, count: int = 0) -> None:
    """Start emulation at an address; KeyboardInterrupt for an interrupt that came meanwhile."""
    try:
        uc.emu_start(at, until, count=count)
    except unicorn.UcError:
        raised = uc._hook_exception  # noqa: SLF001 -- the binding forgets it for its own error
        if isinstance(raised, KeyboardInterrupt):
            raise raised from None
        raise
    finally:
        if _noted:
            _noted.clear()
            raise KeyboardInterrupt


def _came(number: int, frame: FrameType | None) -> None:
    """Raise what an interrupt is; note it where nothing catches what is raised."""
    if frame is not None and _is_binding(frame) and frame.f_code is not _START:
        around: FrameType | None = frame
        while around is not None and around.f_code is not _START:
            around = around.f_back
        if around is not None:
            _noted.append(number)
            around.f_locals["self"].emu_stop()
            return
    signal.default_int_handler(number, frame)


def _came_once(number: int, frame: FrameType | None) -> None:
    if not is_same():
        _came(number, frame)


def _is_binding(frame: FrameType) -> bool:
    return bool(frame.f_code.co_filename == _START.co_filename)
