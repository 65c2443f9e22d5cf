# SPDX-License-Identifier: GPL-2.0-or-later
"""Read-copy update (kernel/rcu/): readers are counted, and what waits for them runs after them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

from kernels.modelled.api.common import Deferred, state, stop
from kernels.modelled.api.held import give, holder, take
from kernels.modelled.api.memory import kvfree
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import offset_of, size_of
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import function

declare("callback_head", "next func")
RCU_HEAD, RCU_FUNCTION = size_of("callback_head"), offset_of("callback_head", "func")
READERS = -1  # in the table of what is held: it has no address


@attrs.define
class _Rcu:
    """Readers under way, and what waits for them, in order."""

    readers: int = 0
    waiting: deque[Deferred] = attrs.field(factory=deque)


def call_rcu(k: Kernel, head: int, act: Callable[[Kernel], object], function_: int = 0) -> None:
    """Let `act` happen after the readers that are under way.

    Parameters
    ----------
    head
        The caller's rcu_head.
    act
        What happens.
    function_
        The guest function that it calls.
    """
    if head:
        k.memory.write(head, bytes(RCU_HEAD(k)))
    state(k, _Rcu).waiting.append(Deferred("rcu", act, lambda _k: function_))
    k.work_pending = True


def withdraw_rcu(k: Kernel, owned: Callable[[int], bool]) -> None:
    """Let nothing happen that calls a function at an address which is `owned`."""
    rcu = state(k, _Rcu)
    rcu.waiting = deque(what for what in rcu.waiting if not owned(what.target(k)))


def rcu_pending(k: Kernel) -> bool:
    """Return whether something waits for readers, and none is under way."""
    rcu = state(k, _Rcu)
    return bool(rcu.waiting) and not rcu.readers


def grace_period(k: Kernel) -> None:
    """Run what was given to call_rcu, now that no reader is under way."""
    rcu = state(k, _Rcu)
    while rcu.waiting and not rcu.readers:
        rcu.waiting.popleft().act(k)


@function("void __rcu_read_lock(void)")
def _rcu_read_lock(k: Kernel) -> None:
    state(k, _Rcu).readers += 1
    take(k, READERS)


@function("void __rcu_read_unlock(void)")
def _rcu_read_unlock(k: Kernel) -> None:
    rcu = state(k, _Rcu)
    if not rcu.readers:
        stop(k, "rcu_read_unlock without rcu_read_lock")
    rcu.readers -= 1
    if not rcu.readers:
        give(k, READERS)
    if rcu.waiting:
        k.work_pending = True


@function(
    "void synchronize_rcu(void)",
    "void synchronize_rcu_expedited(void)",
    "void synchronize_net(void)",
    "void rcu_barrier(void)",
)
def _synchronize_rcu(k: Kernel) -> None:
    if state(k, _Rcu).readers:
        place, cause = holder(k, READERS)
        since = f", entered at {place}" if place else ""
        stop(k, f"deadlock: waits for readers inside rcu_read_lock{since}", cause=cause)
    grace_period(k)


@function(
    "void call_rcu(struct rcu_head *head, rcu_callback_t func)",
    "void call_rcu_hurry(struct rcu_head *head, rcu_callback_t func)",
)
def _call_rcu(k: Kernel, head: int, func: int) -> None:
    k.store(head + RCU_FUNCTION(k), func)
    call_rcu(k, head, lambda k: k.call(func, head), func)


@function("void kvfree_call_rcu(struct rcu_head *head, void *ptr)")
def _kvfree_call_rcu(k: Kernel, head: int, pointer: int) -> None:
    call_rcu(k, head, lambda k: kvfree(k, pointer))


@function("int init_srcu_struct(struct srcu_struct *ssp)")
def _init_srcu_struct(_k: Kernel, _ssp: int) -> int:
    return 0


@function("int __srcu_read_lock(struct srcu_struct *ssp)")
def _srcu_read_lock(k: Kernel, _ssp: int) -> int:
    _rcu_read_lock(k)
    return 0


@function("void __srcu_read_unlock(struct srcu_struct *ssp, int idx)")
def _srcu_read_unlock(k: Kernel, _ssp: int, _index: int) -> None:
    _rcu_read_unlock(k)


@function(
    "void synchronize_srcu(struct srcu_struct *ssp)",
    "void srcu_barrier(struct srcu_struct *ssp)",
    "void cleanup_srcu_struct(struct srcu_struct *ssp)",
)
def _synchronize_srcu(k: Kernel, _ssp: int) -> None:
    _synchronize_rcu(k)
