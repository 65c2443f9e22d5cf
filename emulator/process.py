# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that may be lost to a guest: what it may take, and what it leaves to be told.

The emulator is C code, and some code of a guest ends it: an assertion of its translator, a
crash. No Python runs afterwards. So a process that is there to be lost (a *worker*) shares a
`BlackBox` with the one that watches it. In it stands what the guest is doing while it does it;
and when a signal ends the process, what the CPU was about to execute, as far as that can still
be found out. In any other process `box` is None, and nothing is noted.

This file is all that a watcher needs, and imports no emulator.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import math
import mmap
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

# What ends a process that made a mistake.
CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
CODE = 256  # bytes of code that are left behind
LAST_WORDS = 3  # seconds that a dying process has for them
MEMORY = 1 << 30  # of a machine that is not told otherwise
# The emulator maps a buffer for translated code for each CPU, and some.
TRANSLATION = (1 << 30) + (1 << 28)
HOST = 2  # times the guest's memory: what the host may spend for it besides

_SIZE = 1 << 16
_NOTES = (8, 520, 1032)  # what is loaded, what was called, what that called
_NOTE = struct.Struct("<QH")  # address, size of the text
_NOTE_SIZE = 512
_WORDS = 2048
_LENGTH = struct.Struct("<I")
_NOISE = 1 << 16
_MEMOS = 4096

SAME = 0.1  # seconds within which an interrupt is one that was sent by two ways

LOADED, CALLED, NESTED = range(3)

_interrupted = -math.inf

# What a dying worker says, and as what: nobody knows any more who speaks for it.
_SAID = {"signal": int, "pc": int} | dict.fromkeys(
    ("arch", "where", "instruction", "inside", "code"), str
)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT as Python does, but for what `is_same` says of."""
    if not is_same():
        signal.default_int_handler(number, frame)


def is_same() -> bool:
    """Return whether an interrupt that comes now is the one that came just before.

    Who signals a group of processes signals a worker and the one that watches it, which passes
    on what it was sent. The second would come in the middle of what the first made end.
    """
    global _interrupted
    before, _interrupted = _interrupted, time.monotonic()
    return _interrupted < before + SAME


def unraisable(what: sys.UnraisableHookArgs) -> None:
    """Be `sys.unraisablehook`: of an interrupt print nothing, but let it come again.

    Python looks at signals in finalisers and in callbacks of weak references, too; what is raised
    there goes nowhere.
    """
    if not isinstance(what.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(what)
        return
    signal.signal(signal.SIGALRM, _come_again)
    signal.setitimer(signal.ITIMER_REAL, 2 * SAME)


def _come_again(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


class Witness(Protocol):
    """A CPU that can say where it is: all that is asked of it here."""

    @property
    def last_words(self) -> Callable[[], dict[str, str | int]] | None:
        """What says where it is, where somebody set it."""
        ...


class BlackBox:
    """Memory that a worker and its watcher share, and a file for what C code prints.

    Parameters
    ----------
    descriptors
        The two files, where another process made them.
    """

    def __init__(self, descriptors: tuple[int, int] | None = None) -> None:
        if descriptors is None:
            descriptors = _sealed("box", _SIZE), _sealed("noise", _NOISE)
        self.descriptors = descriptors
        self._memory = mmap.mmap(descriptors[0], _SIZE)
        self._deadline = memoryview(self._memory)[:8].cast("d")
        self.cpu: Witness | None = None
        self._until = 0.0
        self._labels: dict[int, bytes] = {}
        self._noted = [-1, -1, -1]

    def close(self) -> None:
        """Give the memory back."""
        self._deadline.release()
        self._memory.close()
        for descriptor in self.descriptors:
            os.close(descriptor)

    # In the worker ---------------------------------------------------------------------------

    def enter(self, cpu: Witness, deadline: float | None) -> tuple[Witness | None, float]:
        """Note that a CPU begins to execute, and until when it may; return what `leave` needs."""
        outer = self.cpu, self._until
        self.cpu, self._until = cpu, math.inf if deadline is None else deadline
        self._deadline[0] = self._until
        return outer

    def leave(self, outer: tuple[Witness | None, float] | None) -> None:
        """Note that it has ended, and what was under way before goes on."""
        self.cpu, self._until = outer or (None, 0.0)
        self._deadline[0] = self._until

    def load(self, name: str) -> None:
        """Note which module is worked on; what addresses mean may be different from now on."""
        self._labels.clear()
        self._noted = [-1, -1, -1]
        self._note(LOADED, 0, name.encode())
        self._note(CALLED, 0, b"")
        self._note(NESTED, 0, b"")

    def call(self, depth: int, address: int, where: Callable[[int], str]) -> None:
        """Note which function is called, from outside or by what was called from there."""
        slot = NESTED if depth else CALLED
        if self._noted[slot] == address:
            return
        label = self._labels.get(address)
        if label is None:
            if len(self._labels) >= _MEMOS:
                self._labels.clear()
            label = self._labels[address] = where(address).encode()
        self._noted[slot] = address
        self._note(slot, address, label)
        if not depth and self._noted[NESTED] != -1:
            self._noted[NESTED] = -1
            self._note(NESTED, 0, b"")

    def _note(self, slot: int, address: int, text: bytes) -> None:
        at, text = _NOTES[slot], text[: _NOTE_SIZE - _NOTE.size]
        _NOTE.pack_into(self._memory, at, address, len(text))
        self._memory[at + _NOTE.size : at + _NOTE.size + len(text)] = text

    def die(self, number: int) -> None:
        """Leave what can be found out about the CPU that executes."""
        words: dict[str, Any] = {"signal": number}
        self._leave_words(words)  # there may be time for no more
        if self.cpu is not None and self.cpu.last_words is not None:
            self._leave_words(words | self.cpu.last_words())

    def _leave_words(self, words: dict[str, Any]) -> None:
        text = json.dumps(words).encode()[: _SIZE - _WORDS - _LENGTH.size]
        _LENGTH.pack_into(self._memory, _WORDS, 0)
        self._memory[_WORDS + _LENGTH.size : _WORDS + _LENGTH.size + len(text)] = text
        _LENGTH.pack_into(self._memory, _WORDS, len(text))

    # For who watches it ------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """Until when the guest may execute; infinity for no limit, 0 while none executes."""
        return self._deadline[0]

    def note(self, slot: int) -> tuple[int, str]:
        """Return the address and the text of a note."""
        at = _NOTES[slot]
        address, size = _NOTE.unpack_from(self._memory, at)
        text = self._memory[at + _NOTE.size : at + _NOTE.size + min(size, _NOTE_SIZE)]
        return address, text.decode("utf-8", "replace")

    def last_words(self) -> dict[str, Any]:
        """Return what a dying worker left; empty where it left nothing.

        By then it may be a guest's: of what it left, only what `Witness.last_words` would say.
        """
        (size,) = _LENGTH.unpack_from(self._memory, _WORDS)
        start = _WORDS + _LENGTH.size
        try:
            found: dict[str, Any] = json.loads(self._memory[start : start + size] or b"{}")
        except (ValueError, RecursionError):  # it died over it
            return {}
        if not isinstance(found, dict):
            return {}
        return {key: said for key, said in found.items() if isinstance(said, _SAID.get(key, ()))}

    def noise(self) -> str:
        """Return what C code has printed."""
        descriptor = self.descriptors[1]
        size = min(os.lseek(descriptor, 0, os.SEEK_CUR), _NOISE)
        return os.pread(descriptor, size, 0).decode("utf-8", "replace")


def _sealed(name: str, size: int) -> int:
    """Return a file in memory that keeps its size.

    It cannot grow: a guest that makes the emulator talk fills no memory. It cannot shrink: who
    looks at what is not there any more would get SIGBUS.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


box: BlackBox | None = None  # of this process, while it is a worker
_host: int | None = None


def become_worker(shared: BlackBox, *, with_parent: bool = True, host: int | None = None) -> None:
    """Make this process one that may be lost: it leaves last words, and no core file.

    Parameters
    ----------
    with_parent
        Whether it ends when the thread that made it does.
    host
        Bytes that it may take for a guest beside the guest's own memory; None: `HOST` times that.
    """
    global box, _host
    box, _host = shared, host
    limit(resource.RLIMIT_CORE, 0)
    _leave_last_words(shared)
    if with_parent:
        _end_with_parent()


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_handlers: list[Any] = []  # C code holds no reference


def _leave_last_words(shared: BlackBox) -> None:
    """Have last words left when a signal ends the process, and end it all the same.

    Python's own handlers run when C code has returned, which it does not.
    """
    libc = ctypes.CDLL(None)
    set_handler = libc.signal
    set_handler.argtypes = (ctypes.c_int, ctypes.c_void_p)
    set_handler.restype = ctypes.c_void_p

    def dying(number: int) -> None:
        for each in (*CRASHES, signal.SIGALRM):
            set_handler(each, None)  # SIG_DFL
        libc.alarm(LAST_WORDS)
        gc.disable()
        with contextlib.suppress(BaseException):
            shared.die(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)

    handler = _HANDLER(dying)
    _handlers[:] = [handler]
    for number in CRASHES:
        set_handler(number, ctypes.cast(handler, ctypes.c_void_p))


def _end_with_parent() -> None:
    """End when the process that watches has ended."""
    PR_SET_PDEATHSIG = 1  # noqa: N806 -- its name
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def limit(kind: int, value: int) -> None:
    """Set a soft limit of this process, as far as the hard one allows."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def limit_memory(more: int) -> None:
    """Let this process map no more than so many bytes beside what it has mapped."""
    mapped = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    limit(resource.RLIMIT_AS, mapped + more)


def limit_time(seconds: float) -> None:
    """Let this process use no more than so many seconds of CPU time from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds) + 1)


def admit(memory: int, cpus: int) -> None:
    """Bound what a worker may map from now on: one more guest's memory, and what it costs."""
    if box is not None:
        limit_memory(memory + cpus * TRANSLATION + (HOST * memory if _host is None else _host))


def rss() -> int:
    """Return the bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def overdue(shared: BlackBox, grace: float) -> bool:
    """Return whether a worker's guest executes although its time was over `grace` seconds ago."""
    deadline = shared.deadline
    return deadline > 0 and deadline < time.monotonic() - grace
