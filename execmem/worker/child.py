# SPDX-License-Identifier: GPL-2.0-or-later
"""One function called in a child of this process, whatever becomes of that."""

from __future__ import annotations

import os
import pickle
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from allocator.errors import ExecmemError
from emulator.process import HOST, MEMORY, BlackBox, become_worker, limit_memory
from execmem.worker.fence import fence, prepare
from execmem.worker.watch import TICK, Watch, flush, keep_apart, send


def alone(function: Callable[[], object]) -> bool:
    """Return whether a copy of this process, fenced where it can be, survives a function."""
    prepare()
    shared = BlackBox()
    try:
        return call_apart(shared, partial(_fenced, function))[0] is not None
    finally:
        shared.close()


def _fenced(function: Callable[[], object]) -> None:
    fence()
    function()


def call_apart(
    shared: BlackBox, function: Callable[..., object], *args: object, **kwargs: object
) -> tuple[tuple[bool, Any] | None, int, bool]:
    """Call a function in a child; return what came of it, the exit code, and if it was late."""
    here, there = Pipe(duplex=False)
    flush()
    with warnings.catch_warnings():
        # Threads are not copied. Ours, which watches the time, starts anew.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        status = 1
        try:
            here.close()
            become_worker(shared)
            limit_memory(HOST * MEMORY)  # a machine that is made here is not limited by it
            keep_apart(shared)
            _answer(there, function, *args, **kwargs)
            flush()
            status = 0
        finally:
            os._exit(status)
    there.close()
    watch, answer = Watch(child, shared), None
    try:
        with here:
            while not here.poll(TICK):
                watch.look()
            with suppress(EOFError, OSError):
                answer = here.recv()
    except BaseException:
        send(child, signal.SIGKILL)
        raise
    finally:
        status = os.waitpid(child, 0)[1]
    return answer, os.waitstatus_to_exitcode(status), watch.late


def _answer(
    there: Connection, function: Callable[..., object], *args: object, **kwargs: object
) -> None:
    """Send what a function returns or raises."""
    answer: tuple[bool, object]
    try:
        answer = True, function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 -- it is raised again on the other side
        answer = False, error
    try:
        sent = pickle.dumps(answer)
        pickle.loads(sent)  # noqa: S301 -- our own; some errors can be written, and not read
    except Exception as error:  # noqa: BLE001 -- whatever pickle trips over
        done, what = answer
        text = f"{type(what).__name__} cannot be sent from process to process: {error}"
        sent = pickle.dumps((False, ExecmemError(text if done else str(what))))
    there.send_bytes(sent)
