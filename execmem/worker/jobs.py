# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that does one job after the other, given over a socket.

It limits itself, so that limits hold even where nobody watches it: memory by RLIMIT_AS beyond
what it has when it starts, CPU time of a job by RLIMIT_CPU; when the other end of the socket
closes, it ends. Before its first job it gives up what code of a guest should not have (`fence`).

Jobs go to it by pickle; what it answers is JSON, as nobody knows who speaks for it by then.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
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
from execmem.worker.allowed import ONE_THREAD
from execmem.worker.fence import Fence, NotFenced, fence
from execmem.worker.watch import GRACE

START = 120.0  # seconds until a process has imported what it needs
STALLED = 10  # seconds that one may take over an answer that it has begun
LONGEST = 1 << 28  # bytes of an answer
ENDED = "the process was ended"


class Worker:
    """The end of the socket that gives jobs.

    Parameters
    ----------
    job
        What is done; like its argument, it is sent by pickle. Its result is what JSON has.
    memory
        Bytes that a job may take beside the emulated machine.
    seconds
        Time for one job, after which the worker is given up: wall-clock time where somebody
        waits in `result`, CPU time in any case.
    fenced
        Whether it gives up what a guest's code should not have.
    whole
        Whether it does nothing where the host lets it not give up all of that.
    readable
        Files and folders that the job reads, beside Python and this program.
    folder
        Where it works: what relative names count from; None: where this process does.

    Attributes
    ----------
    fence
        What it gave up; None: nothing, or it has not started.
    closed
        Whether it was ended for good; who waited for a result then has none.
    """

    def __init__(
        self,
        job: Callable[[Any], Any],
        *,
        memory: int,
        seconds: float,
        fenced: bool = False,
        whole: bool = False,
        readable: Iterable[str | Path] = (),
        folder: Path | None = None,
    ) -> None:
        paths = tuple(map(str, readable)) if fenced else None
        self._start = (job, memory, seconds, paths, whole)
        self._folder = folder
        self.seconds = seconds
        self.fence: Fence | None = None
        self.closed = False
        self._waited = threading.Lock()  # held by who waits for a result
        self._launch()

    def _launch(self) -> None:
        here, there = socket.socketpair()
        # Who is neither dead nor alive holds nobody up.
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", STALLED, 0))
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(START), 0))
        path = os.pathsep.join(str(Path(p).absolute()) for p in sys.path)
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
        self._shared = BlackBox()
        passed = (there.fileno(), *self._shared.descriptors)
        with there:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "execmem.worker.jobs", *map(str, passed)],
                cwd=self._folder,
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
        """Return whether what it has to say is that it has started; take note of it.

        Raises
        ------
        NotFenced
            It could not give up all that it was to give up, and does nothing.
        """
        if not self.started:
            with suppress(EOFError, OSError):  # it died; `result` says so
                told = self._receive()  # no guest has run in it yet
                self.fence = None if told is None else Fence(*map(tuple, told))
                self.started, self.since = True, time.monotonic()
                if self._start[-1] and (self.fence is None or not self.fence.whole):
                    raise NotFenced(self.fence.kept if self.fence is not None else ())
                return True
        return False

    def _receive(self) -> Any:
        """Return what it says next; OSError where that is nothing that it should say."""
        try:
            return json.loads(self.pipe.recv_bytes(LONGEST))
        except (ValueError, RecursionError):
            raise OSError("no answer of a worker") from None

    def result(self, timeout: float | None = None) -> tuple[Any, str]:
        """Return a job's result and "", or None and why there is none; the worker is new then.

        Parameters
        ----------
        timeout
            How long to wait at most, in seconds; None: until the job's time is over.
        """
        try:
            with self._waited:
                return self._result(timeout)
        finally:
            if self.closed:  # by another thread, meanwhile
                self.close()

    def _result(self, timeout: float | None) -> tuple[Any, str]:
        try:
            while self.pipe.poll(self.left if timeout is None else min(timeout, self.left)):
                if not self.starts():
                    return self._receive(), ""
            reason = f"no answer within {self.seconds if self.started else START:.0f} seconds"
            reason += self._last_words()
        except (EOFError, OSError):
            if self.closed:
                return None, ENDED
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            self.process.kill()  # it is not ours any more, where it says what it should not
            code = self.process.wait()
            reason = f"the worker died (exit code {code})"
            if code < 0:
                from execmem.worker.death import death

                reason = str(death(self._shared, -code))
        self._end()
        if self.closed:
            return None, ENDED
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
        """End the process, if it was not ended; a thread that waits for its answer has none."""
        self.closed = True
        self.process.kill()
        if self._waited.acquire(blocking=False):  # else who waits does it
            try:
                self._end()
            finally:
                self._waited.release()

    def _end(self) -> None:
        if self.pipe.closed:
            return
        self.process.kill()
        self.process.wait()
        self.pipe.close()
        self._shared.close()


def main(descriptor: int, *shared: int) -> None:
    """Do jobs until the socket closes."""
    import machine.machine  # noqa: F401 -- what it takes to start is not the jobs' memory

    pipe = Connection(descriptor)
    job, memory, seconds, readable, whole = pipe.recv()
    limit_memory(MEMORY + TRANSLATION + memory)
    box = BlackBox((shared[0], shared[1]))
    become_worker(box, with_parent=False, host=memory)  # the thread that made it may end before
    fenced = None if readable is None else fence(readable)
    _answer(pipe, None if fenced is None else (fenced.removed, fenced.kept))
    if whole and (fenced is None or not fenced.whole):
        return
    while True:
        try:
            argument = pipe.recv()
        except EOFError:
            return
        box.load("")
        limit_time(seconds)
        result = job(argument)
        gc.collect()  # a machine is a cycle, and maps two gigabytes
        _answer(pipe, result)


def _answer(pipe: Connection, answer: object) -> None:
    pipe.send_bytes(json.dumps(answer).encode())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
