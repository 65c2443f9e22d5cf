# SPDX-License-Identifier: GPL-2.0-or-later
"""One function over many things, in several processes, that Ctrl-C ends wherever it comes.

An interrupt is raised between two instructions of Python, so also where the standard library has
just taken a lock that then nobody gives back (CPython's bpo-29988). While processes work it is
only noted, and raised where nothing is held.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from execmem.worker.fence import fenced

T = TypeVar("T")
R = TypeVar("R")

TICK = 0.1  # seconds after which an interrupt is seen at the latest


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Note an interrupt instead of raising it; what is yielded raises KeyboardInterrupt for it.

    One that nobody has asked for is raised at the end. Where interrupts do not become exceptions
    of this thread, nothing is changed.
    """
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    def check() -> None:
        if came:
            came.clear()
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
    check()


def each(function: Callable[[T], R], items: Sequence[T], jobs: int) -> Generator[R, None, None]:
    """Yield what a function returns for each of some items, as it is done.

    Parameters
    ----------
    function
        Of a module, so that it can be named to another process.
    items
        Every process gets all of them once; what they share is sent once with them.
    jobs
        Processes; with one, this one does the work, in order, and so does one behind a fence.
    """
    if jobs <= 1 or len(items) <= 1 or fenced() is not None:
        yield from map(function, items)
        return
    with (
        held_back() as check,
        ProcessPoolExecutor(jobs, initializer=_share, initargs=(function, items)) as pool,
    ):
        waiting = {pool.submit(_work, number) for number in range(len(items))}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=TICK, return_when=FIRST_COMPLETED)
                check()
                for future in done:
                    yield future.result()
        finally:
            for future in waiting:
                future.cancel()


_shared: list[Any] = []


def _share(*given: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever gave the work ends it
    _shared[:] = given


def _work(number: int) -> Any:
    function, items = _shared
    return function(items[number])
