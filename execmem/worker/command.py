# SPDX-License-Identifier: GPL-2.0-or-later
"""A command that goes on in a child of the process that the user started.

It begins with what is imported here, before it knows whether it needs more.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from emulator.process import BlackBox, become_worker, interrupt, unraisable
from execmem.streams import INTERRUPTED
from execmem.worker.watch import GRACE, TICK, Watch, flush, keep_apart, send

PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
WANTED = (*PASSED, signal.SIGPIPE)  # who ends a process by these wants it to end
FILES = 4  # that a child opens before it could say that it cannot


def go_on_apart() -> None:
    """Go on in a child of this process, and let this one end as it does.

    Nothing else may run in this process. Where the child dies, one line on stderr says of
    what, and the exit code is 1.
    """
    if not hasattr(os, "fork") or not hasattr(os, "memfd_create"):
        sys.stderr.write("execmem: no workers here: a guest may end this process\n")
        return
    flush()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, children cannot be waited for
    handled = [n for n in PASSED if signal.getsignal(n) is not signal.SIG_IGN]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *handled})
    try:
        shared = BlackBox()
        _check_files(shared.descriptors[0])
        child = os.fork()
    except OSError as error:
        sys.stderr.write(f"execmem: no process for the guest: {error.strerror}\n")
        sys.exit(1)
    if not child:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        become_worker(shared)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt)
            sys.unraisablehook = unraisable
        keep_apart(shared)
        return
    os._exit(_attend(Watch(child, shared), handled))


def _check_files(descriptor: int) -> None:
    """Raise OSError where so many further files could not be opened."""
    opened: list[int] = []
    try:
        while len(opened) < FILES:
            opened.append(os.dup(descriptor))
    finally:
        for each in opened:
            os.close(each)


def _attend(watch: Watch, handled: Sequence[signal.Signals]) -> int:
    """Wait for the child of a command; return the exit code for both."""
    child, shared, interrupted = watch.child, watch.shared, math.inf
    while (code := _gone(child)) is None:
        found = signal.sigtimedwait((signal.SIGCHLD, *handled), TICK)
        if found is not None and found.si_signo != signal.SIGCHLD:
            if found.si_signo == signal.SIGINT:
                interrupted = min(interrupted, time.monotonic())
            if found.si_code <= 0:  # what a terminal sends, it sends to both
                send(child, found.si_signo)
        elif shared.deadline and time.monotonic() > interrupted + GRACE:
            # Python looks at an interrupt when a guest's code has returned.
            send(child, signal.SIGKILL)
            os.waitpid(child, 0)
            _say("execmem: interrupted")
            return INTERRUPTED
        else:
            watch.look()
    if code < 0 and -code in WANTED:
        signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
    if code >= 0:
        _say(*(f"execmem: {line}" for line in shared.noise().splitlines()))
        return code
    from execmem.worker.death import death

    _say(f"execmem: {death(shared, -code, late=watch.late)}")
    return 1


def _gone(child: int) -> int | None:
    """Return the exit code of a child, negative for a signal; None while it runs."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _say(*lines: str) -> None:
    """Write lines to stderr; the streams of Python are the child's."""
    if not lines:
        return
    from allocator.errors import printable

    with suppress(OSError):
        os.write(2, "".join(f"{printable(line)}\n" for line in lines).encode("utf-8", "replace"))
