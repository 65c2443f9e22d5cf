# SPDX-License-Identifier: GPL-2.0-or-later
"""A function that is called in a copy of this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from allocator.errors import ExecmemError
from emulator.process import BlackBox
from execmem.worker.child import call_apart
from execmem.worker.death import death

P = ParamSpec("P")
T = TypeVar("T")


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
        answer, code, late = call_apart(shared, function, *args, **kwargs)
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
