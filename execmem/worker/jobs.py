# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that does one job after the other, given over a socket.

It limits itself, so that limits hold even where nobody watches it: memory by RLIMIT_AS beyond
what it has when it starts, CPU time of a job by RLIMIT_CPU; when the other end of the socket
closes, it ends.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from allocator.errors import ExecmemError
from emulator.process import (
    LAST_WORDS,
    MEMORY,
    TRANSLATION,
    BlackBox,
    become_worker,
    limit_memory,
    limit_time,
)
from execmem.worker.watch import GRACE

START = 120.0  # seconds until a process has imported what it needs


class Worker:
    """The end of the socket that gives jobs.

    Parameters
    ----------
    job
        What is done; like its argument and result, it is sent by pickle.
    memory
        Bytes that a job may take beside the emulated machine.
    seconds
        Time for one job, after which the worker is given up: wall-clock time where somebody
        waits in `result`, CPU time in any case.
    """

    def __init__(self, job: Callable[[Any], Any], *, memory: int, seconds: float) -> None:
        self._start = (job, memory, seconds)
        self.seconds = seconds
        self._launch()

    def _launch(self) -> None:
        here, there = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
        self._shared = BlackBox()
        passed = (there.fileno(), *self._shared.descriptors)
        with there:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "execmem.worker.jobs", *map(str, passed)],
                env=environment,
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=self._shared.descriptors[1],
                stderr=self._shared.descriptors[1],
                start_new_session=True,  # an interrupt is for who gives the jobs
            )
        self.pipe = Connection(here.detach())
        self.started = False
        self.since = time.monotonic()
        self._send(self._start)

    def _send(self, message: object) -> None:
        with suppress(OSError):  # it died; `result` says so
            self.pipe.send(message)

    def give(self, argument: object) -> None:
        """Hand over the next job's argument."""
        self.since = time.monotonic()
        self._send(argument)

    @property
    def spent(self) -> float:
        """Seconds since the job was given; a new process's start is not the job's."""
        return time.monotonic() - self.since

    @property
    def left(self) -> float:
        """Seconds until the worker is given up."""
        return max(0.0, (self.seconds if self.started else START) - self.spent)

    def starts(self) -> bool:
        """Return whether what it has to say is that it has started; take note of it."""
        if not self.started:
            with suppress(EOFError, OSError):  # it died; `result` says so
                self.pipe.recv()
                self.started, self.since = True, time.monotonic()
                return True
        return False

    def result(self, timeout: float | None = None) -> tuple[Any, str]:
        """Return a job's result and "", or None and why there is none; the worker is new then.

        Parameters
        ----------
        timeout
            How long to wait at most, in seconds; None: until the job's time is over.
        """
        try:
            while self.pipe.poll(self.left if timeout is None else min(timeout, self.left)):
                if not self.starts():
                    return self.pipe.recv(), ""
            reason = f"no answer within {self.seconds if self.started else START:.0f} seconds"
            reason += self._last_words()
        except (EOFError, OSError):
            code = self.process.wait()
            reason = f"the worker died (exit code {code})"
            if code < 0:
                from execmem.worker.death import death

                reason = str(death(self._shared, -code))
        self.close()
        if not self.started:
            raise ExecmemError(f"a worker did not start: {reason}")
        self._launch()
        return None, reason

    def _last_words(self) -> str:
        """Return where a worker that does not answer has its guest, if it has one."""
        if not self._shared.deadline:
            return ""
        from execmem.worker.death import death

        self.process.send_signal(signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LAST_WORDS + GRACE)
        return f": {death(self._shared, signal.SIGABRT, late=True)}"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.pipe.close()
        self._shared.close()


def main(descriptor: int, *shared: int) -> None:
    """Do jobs until the socket closes."""
    import machine.machine  # noqa: F401 -- what it takes to start is not the jobs' memory

    pipe = Connection(descriptor)
    job, memory, seconds = pipe.recv()
    limit_memory(MEMORY + TRANSLATION + memory)
    box = BlackBox((shared[0], shared[1]))
    become_worker(box, with_parent=False, host=memory)  # the thread that made it may end before
    pipe.send(None)
    while True:
        try:
            argument = pipe.recv()
        except EOFError:
            return
        box.load("")
        limit_time(seconds)
        result = job(argument)
        gc.collect()  # a machine is a cycle, and maps two gigabytes
        pipe.send(result)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
