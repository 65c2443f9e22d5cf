# SPDX-License-Identifier: GPL-2.0-or-later
"""Work queues and tasklets (kernel/workqueue.c, kernel/softirq.c).

A queue keeps nothing but its name: all work is one line, run in the order in which it was
queued, one at a time. That is what every queue promises at least, and an ordered one exactly.
"""

from __future__ import annotations

import attrs

from kernels.modelled.api.common import Deferred, state, stop, text
from kernels.modelled.api.memory import duplicate
from kernels.modelled.api.rcu import call_rcu
from kernels.modelled.api.sched import block, defer, queued, set_timer, withdraw
from kernels.modelled.api.time import NSEC_PER_JIFFY, jiffies, now
from kernels.modelled.api.timers import PPREV, arm, disarm
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import offset_of
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import Arguments, data, function

# include/linux/workqueue_types.h, workqueue.h, interrupt.h
declare("work_struct", "data entry func")
declare("delayed_work", "work timer wq cpu")
declare("rcu_work", "work rcu wq")
declare("tasklet_struct", "state count use_callback func data")
PENDING = 1  # the lowest bit of a work's data
WORK_DATA, WORK_FUNCTION = (offset_of("work_struct", member) for member in ("data", "func"))
TIMER, QUEUE = offset_of("delayed_work", "timer"), offset_of("delayed_work", "wq")
RCU_HEAD, RCU_QUEUE = offset_of("rcu_work", "rcu"), offset_of("rcu_work", "wq")
TASKLET_STATE, TASKLET_COUNT, TASKLET_CALLBACK, TASKLET_FUNCTION, TASKLET_DATA = (
    offset_of("tasklet_struct", member)
    for member in ("state", "count", "use_callback", "func", "data")
)
QUEUE_NAME = 32  # WQ_NAME_LEN

_SYSTEM = (
    "system_wq",
    "system_highpri_wq",
    "system_long_wq",
    "system_unbound_wq",
    "system_freezable_wq",
    "system_power_efficient_wq",
    "system_freezable_power_efficient_wq",
    "system_bh_wq",
    "system_bh_highpri_wq",
)


def _system_queue(name: str) -> None:
    # The variable is a pointer; the queue, which is its name, lies behind it.
    def contents(k: Kernel) -> bytes:
        return (k.address(name) + 8).to_bytes(8, "little") + name.encode()

    data(name, 8 + QUEUE_NAME + 16, fill=contents)


for _name in _SYSTEM:
    _system_queue(_name)


@function(
    "struct workqueue_struct *alloc_workqueue(const char *fmt, unsigned int flags,"
    " int max_active, ...)"
)
def _alloc_workqueue(k: Kernel, fmt: int, _flags: int, _most: int, args: Arguments) -> int:
    name = k.format(fmt, args)[: QUEUE_NAME - 1]
    return duplicate(k, name.ljust(QUEUE_NAME, b"\0"), 0)


@function(
    "void workqueue_set_max_active(struct workqueue_struct *wq, int max_active)",
    "void workqueue_set_min_active(struct workqueue_struct *wq, int min_active)",
)
def _workqueue_set_active(_k: Kernel, _queue: int, _count: int) -> None:
    return


# Queueing ----------------------------------------------------------------------------------


def _claim(k: Kernel, work: int) -> bool:
    """Set the pending bit; False where it was set."""
    word = k.word(work + WORK_DATA(k))
    k.store(work + WORK_DATA(k), word | PENDING)
    return not word & PENDING


def _enqueue(k: Kernel, queue: int, work: int) -> None:
    k.store(work + WORK_DATA(k), k.word(work + WORK_DATA(k)) & 0xFF | PENDING)
    what = Deferred(
        f"workqueue {_title(k, queue)}",
        lambda k: _run(k, work),
        lambda k: _function(k, work),
        lambda k: k.store(work + WORK_DATA(k), k.word(work + WORK_DATA(k)) & ~PENDING),
    )
    defer(k, work, what)


def _function(k: Kernel, work: int) -> int:
    return k.word(work + WORK_FUNCTION(k))


def _title(k: Kernel, queue: int) -> str:
    return text(k, queue, QUEUE_NAME).decode("utf-8", "replace") if queue else "?"


def _run(k: Kernel, work: int) -> None:
    # Not pending any more before it runs: it may queue itself again.
    k.store(work + WORK_DATA(k), k.word(work + WORK_DATA(k)) & ~PENDING)
    k.call(_function(k, work), work)


@function("bool queue_work_on(int cpu, struct workqueue_struct *wq, struct work_struct *work)")
def queue_work(k: Kernel, _cpu: int, queue: int, work: int) -> int:
    """Queue work; 0 where it was queued already."""
    if not _claim(k, work):
        return 0
    _enqueue(k, queue, work)
    return 1


@function("bool queue_work_node(int node, struct workqueue_struct *wq, struct work_struct *work)")
def _queue_work_node(k: Kernel, node: int, queue: int, work: int) -> int:
    return queue_work(k, node, queue, work)


def _delay(k: Kernel, queue: int, work: int, delay: int) -> None:
    k.store(work + QUEUE(k), queue)
    if delay:
        arm(k, work + TIMER(k), jiffies(k) + delay, lambda k: _function(k, work))
    else:
        _enqueue(k, queue, work)


@function(
    "bool queue_delayed_work_on(int cpu, struct workqueue_struct *wq, struct delayed_work *dwork,"
    " unsigned long delay)"
)
def _queue_delayed_work(k: Kernel, _cpu: int, queue: int, work: int, delay: int) -> int:
    if not _claim(k, work):
        return 0
    _delay(k, queue, work, delay)
    return 1


@function(
    "bool mod_delayed_work_on(int cpu, struct workqueue_struct *wq, struct delayed_work *dwork,"
    " unsigned long delay)"
)
def _mod_delayed_work(k: Kernel, _cpu: int, queue: int, work: int, delay: int) -> int:
    was = _cancel_delayed(k, work)
    _claim(k, work)
    _delay(k, queue, work, delay)
    return int(was)


@function("void delayed_work_timer_fn(struct timer_list *t)")
def _delayed_work_timer_fn(k: Kernel, timer: int) -> None:
    work = timer - TIMER(k)
    _enqueue(k, k.word(work + QUEUE(k)), work)


@function("bool queue_rcu_work(struct workqueue_struct *wq, struct rcu_work *rwork)")
def _queue_rcu_work(k: Kernel, queue: int, work: int) -> int:
    if not _claim(k, work):
        return 0
    k.store(work + RCU_QUEUE(k), queue)
    call_rcu(k, work + RCU_HEAD(k), lambda k: _enqueue(k, queue, work), _function(k, work))
    return 1


# Taking back and waiting -------------------------------------------------------------------


def _cancel(k: Kernel, work: int) -> bool:
    was = withdraw(k, work)
    if was:
        k.store(work + WORK_DATA(k), k.word(work + WORK_DATA(k)) & ~PENDING)
    return was


def _cancel_delayed(k: Kernel, work: int) -> bool:
    was = k.word(work + TIMER(k) + PPREV(k)) != 0 and disarm(k, work + TIMER(k))
    if was:
        k.store(work + WORK_DATA(k), k.word(work + WORK_DATA(k)) & ~PENDING)
    return _cancel(k, work) or was


def _finish(k: Kernel, work: int) -> bool:
    """Wait until work is neither queued nor running; False where it never was."""
    if not queued(k, work):
        return False
    block(k, lambda: not queued(k, work))
    return True


@function(
    "bool flush_work(struct work_struct *work)", "bool flush_rcu_work(struct rcu_work *rwork)"
)
def _flush_work(k: Kernel, work: int) -> int:
    return int(_finish(k, work))


@function("bool flush_delayed_work(struct delayed_work *dwork)")
def _flush_delayed_work(k: Kernel, work: int) -> int:
    if k.word(work + TIMER(k) + PPREV(k)) and disarm(k, work + TIMER(k)):
        _enqueue(k, k.word(work + QUEUE(k)), work)
    return int(_finish(k, work))


@function("bool cancel_work(struct work_struct *work)")
def _cancel_work(k: Kernel, work: int) -> int:
    return int(_cancel(k, work))


@function(
    "bool cancel_work_sync(struct work_struct *work)",
    "bool disable_work_sync(struct work_struct *work)",
)
def _cancel_work_sync(k: Kernel, work: int) -> int:
    was = _cancel(k, work)
    return int(_finish(k, work) or was)


@function("bool cancel_delayed_work(struct delayed_work *dwork)")
def _cancel_delayed_work(k: Kernel, work: int) -> int:
    return int(_cancel_delayed(k, work))


@function(
    "bool cancel_delayed_work_sync(struct delayed_work *dwork)",
    "bool disable_delayed_work_sync(struct delayed_work *dwork)",
)
def _cancel_delayed_work_sync(k: Kernel, work: int) -> int:
    was = _cancel_delayed(k, work)
    return int(_finish(k, work) or was)


@attrs.define
class _Flushes:
    count: int = 0


@function(
    "void __flush_workqueue(struct workqueue_struct *wq)",
    "void drain_workqueue(struct workqueue_struct *wq)",
)
def _flush_workqueue(k: Kernel, _queue: int) -> None:
    marker = -1 - state(k, _Flushes).count  # what is queued behind it is not waited for
    state(k, _Flushes).count += 1
    defer(k, marker, Deferred("flush", lambda _k: None))
    block(k, lambda: not queued(k, marker))


@function("void destroy_workqueue(struct workqueue_struct *wq)")
def _destroy_workqueue(k: Kernel, queue: int) -> None:
    _flush_workqueue(k, queue)
    if not k.heap.free(queue):
        stop(k, f"destroy_workqueue of {queue:#x}: no work queue")


@function("struct work_struct *current_work(void)")
def _current_work(_k: Kernel) -> int:
    return 0


@function("unsigned int work_busy(struct work_struct *work)")
def _work_busy(k: Kernel, work: int) -> int:
    return int(queued(k, work))


# Tasklets ----------------------------------------------------------------------------------


@function("void tasklet_setup(struct tasklet_struct *t, void *callback)")
def _tasklet_setup(k: Kernel, tasklet: int, callback: int) -> None:
    k.memory.write(tasklet, bytes(k.layouts.size_of("tasklet_struct")))
    k.store(tasklet + TASKLET_CALLBACK(k), 1, 1)
    k.store(tasklet + TASKLET_FUNCTION(k), callback)


@function("void tasklet_init(struct tasklet_struct *t, void *func, unsigned long data)")
def _tasklet_init(k: Kernel, tasklet: int, func: int, argument: int) -> None:
    _tasklet_setup(k, tasklet, func)
    k.store(tasklet + TASKLET_CALLBACK(k), 0, 1)
    k.store(tasklet + TASKLET_DATA(k), argument)


@function(
    "void __tasklet_schedule(struct tasklet_struct *t)",
    "void __tasklet_hi_schedule(struct tasklet_struct *t)",
)
def _tasklet_schedule(k: Kernel, tasklet: int) -> None:
    defer(k, tasklet, _tasklet(tasklet))


def _tasklet(tasklet: int) -> Deferred:
    return Deferred(
        "tasklet",
        lambda k: _run_tasklet(k, tasklet),
        lambda k: k.word(tasklet + TASKLET_FUNCTION(k)),
        lambda k: k.store(tasklet + TASKLET_STATE(k), 0),
    )


def _run_tasklet(k: Kernel, tasklet: int) -> None:
    if k.word(tasklet + TASKLET_COUNT(k), 4):  # disabled: it is asked again, later
        set_timer(k, tasklet, now(k) + NSEC_PER_JIFFY, _tasklet(tasklet))
        return
    k.store(tasklet + TASKLET_STATE(k), 0)
    callback = k.word(tasklet + TASKLET_CALLBACK(k), 1)
    argument = tasklet if callback else k.word(tasklet + TASKLET_DATA(k))
    k.call(k.word(tasklet + TASKLET_FUNCTION(k)), argument)


@function("void tasklet_kill(struct tasklet_struct *t)")
def _tasklet_kill(k: Kernel, tasklet: int) -> None:
    _finish(k, tasklet)
