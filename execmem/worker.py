# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that can be lost, so that a guest ends none that a user started.

Whatever a module does to the process that works on it (memory, endless loops, a crash of the
emulator) is between it and that process: a death is told as a `Fault`. There are three ways
into one, with the same limits and the same last words (`machine.process`):

* a command goes on in a child of its own (`go_on_apart`), while the process that the user
  started waits, passes signals on and ends as the child did, unless that died;
* a script's function runs in a copy of the script (`isolated`);
* a sweep's jobs go one after the other over a socket to a program (`Worker`), not to a
  `multiprocessing` child, because a worker of a cluster is one, and those may not have children.
"""

from __future__ import annotations

import gc
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TextIO, TypeVar

from allocator.errors import ExecmemError, printable
from allocator.types import GIB
from machine.process import (
    CALLED,
    LAST_WORDS,
    LOADED,
    NESTED,
    TRANSLATION,
    BlackBox,
    become_worker,
    limit_memory,
    limit_time,
    overdue,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

INTERRUPTED = 130  # 128 and SIGINT's number, as a shell has it
START = 120.0  # seconds until a process has imported what it needs
MACHINE = GIB + TRANSLATION  # what a machine maps
# A guest stops soon after its time is over; where the emulator does not let it, this ends it.
GRACE = 1.0
TICK = 0.1  # seconds between two looks at a worker's time
# Who ends a process by these wants it to end.
WANTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)

P = ParamSpec("P")
T = TypeVar("T")


# How it is told -------------------------------------------------------------------------------


def death(shared: BlackBox, number: int, *, late: bool = False) -> ExecmemError:
    """Return how a worker's death is told: a Fault, where a guest was executing.

    Parameters
    ----------
    number
        The signal that ended it.
    late
        It was ended because the guest did not stop at its time.
    """
    from machine.faults import Fault, FaultKind

    words = shared.last_words()
    name = signal.Signals(number).name
    parts = ["the emulator did not let it stop" if late else name]
    if number == signal.SIGKILL and not late:
        parts[0] += " (out of memory?)"
    parts += [] if late else _printed(shared)
    inside = words.get("inside")
    if inside:
        parts.append(f"in {inside}()")
    if not shared.deadline:
        _, module = shared.note(LOADED)
        during = f" while it worked on {module}" if module else ""
        return ExecmemError(f"the process died of {', '.join(parts)}{during}")
    at, called = shared.note(CALLED)
    pc, where = words.get("pc"), words.get("where", "")
    instruction = words.get("instruction", "")
    if pc is None:  # nobody knows where it was, but what was called
        nested, name = shared.note(NESTED)
        parts.append("somewhere in this call")
        pc, where = (nested, name) if name else (at, called)
    else:
        code = bytes.fromhex(words.get("code", ""))
        found = None if late or inside else _culprit(words["arch"], code, pc)
        if found is not None:
            where = _further(where, found[0] - pc)
            pc, instruction = found
        elif not late:
            parts.append("at or behind the beginning of this block")
        if called and called.partition("+")[0] != where.partition("+")[0]:
            parts.append(f"called from {called}")
    kind = FaultKind.TIME_LIMIT if late else FaultKind.EMULATOR
    return Fault(kind, pc, where or f"{pc:#x}", instruction, reason=", ".join(parts))


def _printed(shared: BlackBox) -> list[str]:
    """Return the last line that C code printed, without the folders of its builder."""
    lines = [line.strip() for line in shared.noise().splitlines() if line.strip()]
    return [re.sub(r"\S*/(?=[\w.-]+:\d)", "", lines[-1])[:200]] if lines else []


def _further(where: str, by: int) -> str:
    """Return `symbol+0xoff [module]` for a place that lies further on."""
    return re.sub(r"\+0x([0-9a-f]+)", lambda m: f"+{int(m[1], 16) + by:#x}", where, count=1)


def _culprit(arch: str, code: bytes, pc: int) -> tuple[int, str] | None:
    """Return address and text of the instruction that by itself ends an emulator, or None."""
    from machine.culprit import find

    try:
        return find(arch, code, pc, alone)
    except (ExecmemError, OSError):
        return None


def _gone(child: int) -> int | None:
    """Return the exit code of a child, negative for a signal; None while it runs."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _end(child: int, *, gently: bool = True) -> None:
    """Ask a child for its last words, and see to it that it ends soon."""
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGABRT if gently else signal.SIGKILL)


# Commands -------------------------------------------------------------------------------------


def go_on_apart() -> None:
    """Go on in a child of this process, and let this one end as it does.

    Nothing else may run in this process. Where the child dies, one line on stderr says of
    what, and the exit code is 1.
    """
    if not hasattr(os, "fork") or not hasattr(os, "memfd_create"):
        sys.stderr.write("execmem: no workers here: a guest may end this process\n")
        return
    sys.stdout.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, children cannot be waited for
    handled = [n for n in WANTED[:4] if signal.getsignal(n) is not signal.SIG_IGN]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *handled})
    try:
        shared = BlackBox()
        child = os.fork()
    except OSError as error:
        raise ExecmemError(f"no process for the guest: {error.strerror}") from None
    if not child:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        become_worker(shared)
        _keep_apart(shared)
        return
    os._exit(_attend(child, shared, handled))


def _keep_apart(shared: BlackBox) -> None:
    """Let what C code prints go to the black box, and what we say go where it went before."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is not None and _is(old, descriptor):
            ours = open(os.dup(descriptor), "w", encoding=old.encoding, errors=old.errors)  # noqa: SIM115, PTH123 -- for good
            ours.reconfigure(line_buffering=old.line_buffering, write_through=old.write_through)
            setattr(sys, name, ours)
            setattr(sys, f"__{name}__", ours)  # where the size of a terminal is asked for
        os.dup2(shared.descriptors[1], descriptor)


def _is(file: TextIO, descriptor: int) -> bool:
    """Return whether a file is the one of a descriptor, and not what a test puts there."""
    try:
        return file.fileno() == descriptor
    except (OSError, ValueError):
        return False


def _attend(child: int, shared: BlackBox, handled: Sequence[signal.Signals]) -> int:
    """Wait for the child of a command; return the exit code for both."""
    asked, interrupted = 0.0, math.inf
    while (code := _gone(child)) is None:
        found = signal.sigtimedwait((signal.SIGCHLD, *handled), TICK)
        if found is not None and found.si_signo != signal.SIGCHLD:
            if found.si_signo == signal.SIGINT:
                interrupted = min(interrupted, time.monotonic())
            # What a terminal sends, it sends to both.
            if found.si_code <= 0:
                with suppress(ProcessLookupError):
                    os.kill(child, found.si_signo)
        elif shared.deadline and time.monotonic() > interrupted + GRACE:
            # Python looks at an interrupt when a guest's code has returned.
            _end(child, gently=False)
            os.waitpid(child, 0)
            _write("execmem: interrupted")
            return INTERRUPTED
        elif not asked and overdue(shared, GRACE):
            asked = time.monotonic()
            _end(child)
        elif asked and time.monotonic() > asked + LAST_WORDS + GRACE:
            _end(child, gently=False)
    if code < 0 and -code in WANTED:
        signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
    if code < 0:
        _write(f"execmem: {death(shared, -code, late=bool(asked))}")
        return 1
    _write(*shared.noise().splitlines())
    return code


def _write(*lines: str) -> None:
    """Write lines to stderr; the streams of Python are the child's."""
    with suppress(OSError):
        os.write(2, "".join(f"{printable(line)}\n" for line in lines).encode("utf-8", "replace"))


# Scripts --------------------------------------------------------------------------------------


def isolated(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a copy of this process, and return what it returns.

    A guest that ends the emulator ends the copy. Nothing that the function changes is changed
    here; what it returns comes by pickle.

    Raises
    ------
    Fault
        The copy died over a guest.
    ExecmemError
        It died for another reason.
    """
    shared = BlackBox()
    try:
        answer, code, late = _apart(shared, function, *args, **kwargs)
        if answer is None:
            if code < 0:
                raise death(shared, -code, late=late)
            raise ExecmemError(f"the process ended with exit code {code} before it returned")
    finally:
        shared.close()
    done, value = answer
    if not done:
        raise value
    result: T = value
    return result


def alone(function: Callable[[], object]) -> bool:
    """Return whether a copy of this process survives a function."""
    shared = BlackBox()
    try:
        return _apart(shared, function)[0] is not None
    finally:
        shared.close()


def _apart(
    shared: BlackBox, function: Callable[..., object], *args: object, **kwargs: object
) -> tuple[tuple[bool, Any] | None, int, bool]:
    """Call a function in a child; return what came of it, the exit code, and if it was late."""
    from multiprocessing import Pipe

    here, there = Pipe(duplex=False)
    sys.stdout.flush()
    with warnings.catch_warnings():
        # Threads are not copied. Ours, which watches the time, starts anew.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        status = 1
        try:
            here.close()
            become_worker(shared)
            _keep_apart(shared)
            _answer(there, function, *args, **kwargs)
            sys.stdout.flush()
            status = 0
        finally:
            os._exit(status)
    there.close()
    code: int | None = None
    answer, asked = None, 0.0
    try:
        with here:
            while True:
                if here.poll(TICK):
                    with suppress(EOFError, OSError):
                        answer = here.recv()
                    break
                if not asked and overdue(shared, GRACE):
                    asked = time.monotonic()
                    _end(child)
                elif asked and time.monotonic() > asked + LAST_WORDS + GRACE:
                    _end(child, gently=False)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        if code is None:  # interrupted
            _end(child, gently=False)
            os.waitpid(child, 0)
    return answer, code, bool(asked)


def _answer(
    there: Connection, function: Callable[..., object], *args: object, **kwargs: object
) -> None:
    """Send what a function returns or raises."""
    try:
        answer = True, function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 -- it is raised again on the other side
        answer = False, error
    try:
        there.send(answer)
    except Exception as error:  # noqa: BLE001 -- whatever pickle trips over
        what = f"{type(answer[1]).__name__} cannot be sent from process to process: {error}"
        there.send((False, ExecmemError(what)))


# Sweeps ---------------------------------------------------------------------------------------


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
        from multiprocessing.connection import Connection

        here, there = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
        self._shared = BlackBox()
        passed = (there.fileno(), *self._shared.descriptors)
        with there:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "execmem.worker", *map(str, passed)],
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
    from multiprocessing.connection import Connection

    import machine.machine  # noqa: F401 -- what it takes to start is not the jobs' memory

    pipe = Connection(descriptor)
    job, memory, seconds = pipe.recv()
    limit_memory(MACHINE + memory)
    box = BlackBox((shared[0], shared[1]))
    become_worker(box)
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
