# SPDX-License-Identifier: GPL-2.0-or-later
"""Stops CPUs that run past their deadline: one thread for all of them.

Unicorn's own timeout starts a thread per run, which costs more than a short run.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

INTERVAL = 0.05


class Watched(Protocol):
    """A CPU: all that is asked of it here."""

    def expire(self) -> None:
        """Stop the run whose deadline has passed, if there is one; any thread may call this."""
        ...


class Watchdog:
    """A thread that lives as long as there is something to watch.

    `stopping` is held while a run is found late and stopped, and while one ends: so what is stopped
    is what was late, and not the run that begins next.
    """

    def __init__(self) -> None:
        self.stopping = threading.Lock()
        self._cpus: weakref.WeakSet[Watched] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._rests = threading.Event()

    def watch(self, cpu: Watched) -> None:
        """Stop `cpu` whenever its deadline has passed, as long as it lives."""
        with self._lock:
            self._cpus.add(cpu)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._loop, name="watchdog", daemon=True)
                self._thread.start()

    def restart(self) -> None:
        """Watch in a process that was forked, which has no threads."""
        # A thread that is not here may hold the other ones.
        self._lock, self._rests = threading.Lock(), threading.Event()
        self.stopping = threading.Lock()
        self._thread = None
        for cpu in list(self._cpus):
            self.watch(cpu)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Have no thread for a while, as for what changes threads one by one; nobody watches."""
        thread = self._thread
        self._rests.set()
        if thread is not None:
            thread.join()
        try:
            yield
        finally:
            self.restart()

    def _loop(self) -> None:
        while not self._rests.wait(INTERVAL):
            with self._lock:
                cpus = list(self._cpus)
            for cpu in cpus:
                cpu.expire()
                del cpu
            if not cpus:
                with self._lock:
                    if not self._cpus:
                        self._thread = None
                        return
            del cpus


WATCHDOG = Watchdog()
os.register_at_fork(after_in_child=WATCHDOG.restart)
