# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that can be lost: it gets one job after the other over a socket and answers each.

Whatever a module does to the process that works on it (memory, endless loops, a crash of the
emulator) is between it and that process. The process limits itself, so that limits hold even
where nobody watches it: memory by RLIMIT_AS beyond what it has when it starts, CPU time of a
job by RLIMIT_CPU; when the other end of the socket closes, it ends.

It is a program of its own, not a `multiprocessing` child, because a worker of a cluster is
one, and those may not have children.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from allocator.errors import ExecmemError
from allocator.types import GIB

START = 120.0  # seconds until a process has imported what it needs
# What a machine maps beside its memory of 1 GiB: the emulator's translation buffer, and some.
MACHINE = 2 * GIB + GIB // 4


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
        with there:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "execmem.sweep.worker", str(there.fileno())],
                env=environment,
                pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
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
        except (EOFError, OSError):
            reason = f"the worker died (exit code {self.process.wait()})"
        self.close()
        if not self.started:
            raise ExecmemError(f"a worker did not start: {reason}")
        self._launch()
        return None, reason

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.pipe.close()


def _limit(kind: int, value: int) -> None:
    """Set a soft limit, as far as the hard one allows."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main(descriptor: int) -> None:
    """Do jobs until the socket closes."""
    import machine.machine  # noqa: F401 -- what it takes to start is not the jobs' memory

    pipe = Connection(descriptor)
    job, memory, seconds = pipe.recv()
    mapped = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    _limit(resource.RLIMIT_AS, mapped * resource.getpagesize() + MACHINE + memory)
    _limit(resource.RLIMIT_CORE, 0)
    pipe.send(None)
    while True:
        try:
            argument = pipe.recv()
        except EOFError:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds) + 1)
        result = job(argument)
        gc.collect()  # a machine is a cycle, and maps two gigabytes
        pipe.send(result)


if __name__ == "__main__":
    main(int(sys.argv[1]))
