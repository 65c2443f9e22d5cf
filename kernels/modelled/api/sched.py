# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs later, and who waits for it (kernel/sched/, kernel/kthread.c).

No preemption: things that were put off run only where the running code waits, or
when a call from outside has returned and the kernel is idle. What runs next is decided by
order alone (due timers by time, then work, then threads, each first come first served), and
time jumps to the next timer when nothing else is left; so every run is the same.

A kernel thread has a stack of its own. Where it waits, it is put aside *before* the function
that waits took effect, and later calls that function anew: a function that waits therefore
asks `block` first and changes nothing before. Whoever waits for what nobody will ever bring
is stopped: a real machine would hang.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import attrs

from allocator.errors import AccessError, AllocationError
from archs.layouts import NotKnown
from emulator.calls import Parked, stack_size
from emulator.faults import Fault, FaultKind, Stopped
from kernels.modelled.api.common import Deferred, errno, state, stop, text
from kernels.modelled.api.held import left
from kernels.modelled.api.rcu import grace_period, rcu_pending, withdraw_rcu
from kernels.modelled.api.time import NSEC_PER_JIFFY, NSEC_PER_SEC, advance, now
from kernels.modelled.kernel import Kernel
from kernels.modelled.table import Arguments, data, function
from kernels.prototypes import parse

_Result = TypeVar("_Result")
MAX_SCHEDULE_TIMEOUT = (1 << 63) - 1
NAME = 255  # bytes of a thread's name that are kept; the kernel shows 63
HUNG = 120 * NSEC_PER_SEC  # as khungtaskd's idea of too long (kernel/hung_task.c)
# How many things run before the kernel stops being idle, and before who waits for no set time
# is told that it waits in vain: something may queue itself again and again.
IDLE_STEPS, MOST_STEPS = 200, 5000
SWITCH = 50_000  # ns that each thing costs, so that such a one cannot stop time


@attrs.define(eq=False)
class KThread:
    """A kernel thread: not started, put aside at a place where it waits, or ended."""

    task: int
    name: str
    function: int
    argument: int
    stack: int
    context: Any = None
    ready: Callable[[], bool] | None = None
    deadline: int | None = None
    woken: bool = False
    started: bool = False
    ended: bool = False
    result: int = 0
    should_stop: bool = False
    should_park: bool = False


@attrs.define
class Scheduler:
    """What is to run: timers by address (when, in which order, what), work, threads by task."""

    timers: dict[int, tuple[int, int, Deferred]] = attrs.field(factory=dict)
    queue: deque[tuple[int, Deferred]] = attrs.field(factory=deque)
    running: list[int] = attrs.field(factory=list)  # keys of the queue's items under way
    threads: dict[int, KThread] = attrs.field(factory=dict)
    thread: KThread | None = None  # the one that runs; None: the call from outside
    depth: int = 0  # of the guest, where that thread runs
    woken: bool = False
    serial: int = 0


# The order of things -----------------------------------------------------------------------


def defer(k: Kernel, key: int, what: Deferred) -> None:
    """Put `what` at the end of the queue; `key` finds it again."""
    state(k, Scheduler).queue.append((key, _as_put_off(k, what)))
    k.work_pending = True


def _as_put_off(k: Kernel, what: Deferred) -> Deferred:
    """Return something put off that goes by the structures of whoever puts it off."""
    layouts = k.layouts
    if layouts is k.whose.own:
        return what

    def by(act: Callable[[Kernel], _Result]) -> Callable[[Kernel], _Result]:
        def kept(k: Kernel) -> _Result:
            with k.whose.by(layouts):
                return act(k)

        return kept

    return Deferred(what.name, by(what.act), by(what.target), by(what.undo))


def withdraw(k: Kernel, key: int) -> bool:
    """Take what is queued under `key` out again; False where nothing is."""
    queue = state(k, Scheduler).queue
    k.spend(len(queue))
    for item in queue:
        if item[0] == key:
            queue.remove(item)
            return True
    return False


def queued(k: Kernel, key: int) -> bool:
    """Return whether something is queued or under way under `key`."""
    s = state(k, Scheduler)
    k.spend(len(s.queue))
    return key in s.running or any(item[0] == key for item in s.queue)


def set_timer(k: Kernel, key: int, when: int, what: Deferred) -> None:
    """Let `what` happen once `when` (nanoseconds since boot) has come, instead of before."""
    s = state(k, Scheduler)
    s.serial += 1
    s.timers[key] = when, s.serial, _as_put_off(k, what)
    k.work_pending = True


def clear_timer(k: Kernel, key: int) -> bool:
    """Take a timer out; False where it was not set."""
    return state(k, Scheduler).timers.pop(key, None) is not None


def abandon(k: Kernel, owned: Callable[[int], bool]) -> None:
    """Let nothing run that was put off and whose function, by its address, is `owned`."""
    s = state(k, Scheduler)

    def goes(what: Deferred) -> bool:
        try:
            if not owned(what.target(k)):
                return False
            what.undo(k)
        except AccessError:  # its structure is gone
            return False
        except NotKnown:  # nor does it ever run
            return True
        return True

    s.timers = {key: timer for key, timer in s.timers.items() if not goes(timer[2])}
    s.queue = deque(item for item in s.queue if not goes(item[1]))
    withdraw_rcu(k, owned)
    for thread in s.threads.values():
        if not thread.ended and owned(thread.function):
            _end(thread, errno("EINTR"))


def idle(k: Kernel) -> None:
    """Run everything that is due; what faults ends up in the log, as an oops of a worker does."""
    s = state(k, Scheduler)
    s.woken = False
    left = IDLE_STEPS
    while left and _step(k, now(k), oops=True):
        left -= 1
    k.work_pending = not left or bool(
        s.timers or any(t.deadline is not None for t in s.threads.values())
    )


def sleep(k: Kernel, nanoseconds: int) -> None:
    """Let time pass, and everything happen that is due meanwhile."""
    until = now(k) + nanoseconds
    while not _over(k, until) and _step(k, until):
        pass
    advance(k, max(until - now(k), 0))


def _over(k: Kernel, until: int) -> bool:
    """Return whether a time has come and no timer is left that was due by then."""
    timers = state(k, Scheduler).timers.values()
    k.spend(len(timers))
    return now(k) >= until and all(when > until for when, _, _ in timers)


def _step(k: Kernel, until: int, *, oops: bool = False) -> bool:
    """Run the next thing, or let time jump to it, at most `until`; False where there is none."""
    s = state(k, Scheduler)
    k.spend(1 + len(s.timers) + len(s.threads))
    if rcu_pending(k):
        _perform(k, "rcu", grace_period, oops=oops)
        return True
    key = min(s.timers, key=lambda timer: s.timers[timer][:2], default=None)
    due = None if key is None else s.timers[key][0]
    if key is not None and due is not None and due <= now(k):
        what = s.timers.pop(key)[2]
        _perform(k, what.name, what.act, oops=oops)
        return True
    if s.queue:
        work, what = s.queue.popleft()
        s.running.append(work)
        try:
            _perform(k, what.name, what.act, oops=oops)
        finally:
            s.running.remove(work)
        return True
    for thread in s.threads.values():
        if thread is not s.thread and _runnable(k, thread):
            _perform(k, thread.name, partial(_switch, thread=thread), oops=oops)
            return True
    times = [t.deadline for t in s.threads.values() if t.deadline is not None and not t.ended]
    following = min([*times, *([] if due is None else [due])], default=None)
    if following is None or following > until:
        return False
    advance(k, max(following - now(k), 0))
    return True


def _perform(k: Kernel, name: str, act: Callable[[Kernel], object], *, oops: bool) -> None:
    advance(k, SWITCH)
    try:
        act(k)
    except (Fault, AccessError, NotKnown) as error:
        fault = error if isinstance(error, Fault) else _fault(k, name, error)
        if not oops or fault.kind.is_limit:  # which is the call's, whatever spent it
            raise fault from None
        k.oops(name, fault)


def _fault(k: Kernel, name: str, error: AccessError | NotKnown) -> Fault:
    if isinstance(error, AccessError):
        return k.access_fault(error, name)
    return k.serving.fault(FaultKind.UNKNOWN_STRUCTURE, f"{error.what}, in {name}", hint=error.hint)


def block(
    k: Kernel,
    ready: Callable[[], bool],
    until: int | None = None,
    hopeless: Callable[[], object] | None = None,
) -> bool:
    """Let others run until `ready()`; False where the time `until` came before.

    `hopeless` is called where nothing is left that could make it ready, to stop the guest with
    words of its own.

    Raises
    ------
    Fault
        Where nothing is left that could make it ready, and no time is set.
    """
    s = state(k, Scheduler)
    thread = s.thread
    if ready():
        if thread is not None:
            thread.deadline = None
        return True
    if thread is not None and k.depth == s.depth:
        if thread.deadline is not None and now(k) >= thread.deadline:
            thread.deadline = None
            return False
        if thread.deadline is None:
            thread.deadline = until
        thread.ready = ready
        thread.context = k.cpu.context()
        raise Parked
    patience = now(k) + HUNG if until is None else until
    left = MOST_STEPS
    while not ready():
        late = until is not None and _over(k, until)
        if left and not late and _step(k, patience):
            left -= until is None
            continue
        if until is None:
            if hopeless is not None:
                hopeless()
            stop(k, "deadlock: waits for what nobody is left to bring")
        advance(k, max(until - now(k), 0))
        return False
    return True


# Threads -----------------------------------------------------------------------------------


def _runnable(k: Kernel, thread: KThread) -> bool:
    if thread.ended or not thread.started:
        return False
    if thread.ready is None or thread.ready():
        return True
    return thread.deadline is not None and thread.deadline <= now(k)


def _switch(k: Kernel, thread: KThread) -> None:
    """Run a thread until it waits or ends."""
    s = state(k, Scheduler)
    before = s.thread, s.depth
    s.thread, s.depth = thread, k.depth + 1
    try:
        stack = thread.stack + stack_size(k.memory.page_size)
        result = k.run_as(thread.task, stack, thread.function, [thread.argument], thread.context)
        _end(thread, result)
    except Parked:
        pass
    except Fault as fault:
        _end(thread, 0)
        module = k.locate(thread.function)[0]
        left(k, 0, fault.cause or Stopped(module, fault), thread.task)
        raise
    finally:
        s.thread, s.depth = before


def _end(thread: KThread, result: int) -> None:
    thread.ended, thread.result = True, result
    thread.ready = thread.context = thread.deadline = None


def current_thread(k: Kernel) -> KThread | None:
    """Return the kernel thread that runs; None for the call from outside."""
    return state(k, Scheduler).thread


def create_thread(k: Kernel, name: str, function_: int, argument: int) -> int:
    """Return the task of a new thread that has not started; an errno where there is no memory."""
    try:
        stack = k.memory.vmalloc(stack_size(k.memory.page_size))
    except AllocationError:
        return errno("ENOMEM")
    try:
        task = k.new_task()
    except AllocationError:
        k.memory.vfree(stack)
        return errno("ENOMEM")
    thread = KThread(task, name, function_, argument, stack)
    state(k, Scheduler).threads[task] = thread
    return task


def wake(k: Kernel, task: int) -> bool:
    """Let a task go on; False where it was not waiting."""
    s = state(k, Scheduler)
    thread = s.threads.get(task)
    if thread is None:
        s.woken = True
        return True
    fresh = not thread.woken
    thread.started = thread.woken = True
    k.work_pending = True
    return fresh


def _woken(k: Kernel) -> Callable[[], bool]:
    s = state(k, Scheduler)
    holder: Scheduler | KThread = s if s.thread is None else s.thread
    return lambda: holder.woken


def _awake(k: Kernel) -> None:
    s = state(k, Scheduler)
    (s if s.thread is None else s.thread).woken = False


@function("void schedule(void)", "void io_schedule(void)")
def _schedule(k: Kernel) -> None:
    block(k, _woken(k))
    _awake(k)


@function(
    "long schedule_timeout(long timeout)",
    "long schedule_timeout_uninterruptible(long t)",
    "long schedule_timeout_interruptible(long t)",
    "long schedule_timeout_killable(long t)",
    "long schedule_timeout_idle(long t)",
    "long io_schedule_timeout(long t)",
)
def schedule_timeout(k: Kernel, timeout: int) -> int:
    """Wait to be woken, at most `timeout` jiffies; return how many are left."""
    until = None if timeout >= MAX_SCHEDULE_TIMEOUT else now(k) + timeout * NSEC_PER_JIFFY
    found = block(k, _woken(k), until)
    _awake(k)
    if until is None:
        return timeout
    return max((until - now(k)) // NSEC_PER_JIFFY, 0) if found else 0


@function(
    "int schedule_hrtimeout(ktime_t *expires, const enum hrtimer_mode mode)",
)
def _schedule_hrtimeout(k: Kernel, expires: int, mode: int) -> int:
    return _schedule_hrtimeout_range(k, expires, 0, mode)


@function("int schedule_hrtimeout_range(ktime_t *expires, u64 delta, const enum hrtimer_mode mode)")
def _schedule_hrtimeout_range(k: Kernel, expires: int, _delta: int, mode: int) -> int:
    until = k.word(expires) + (now(k) if mode & 1 else 0) if expires else None
    found = block(k, _woken(k), until)
    _awake(k)
    return errno("EINTR") if found else 0


@function("void msleep(unsigned int msecs)")
def _msleep(k: Kernel, msecs: int) -> None:
    block(k, lambda: False, now(k) + msecs * 1_000_000)


@function("unsigned long msleep_interruptible(unsigned int msecs)")
def _msleep_interruptible(k: Kernel, msecs: int) -> int:
    _msleep(k, msecs)
    return 0


@function("void usleep_range_state(unsigned long min, unsigned long max, unsigned int state)")
def _usleep_range_state(k: Kernel, least: int, _most: int, _state: int) -> None:
    block(k, lambda: False, now(k) + least * 1000)


@function("int wake_up_process(struct task_struct *p)")
def _wake_up_process(k: Kernel, task: int) -> int:
    return int(wake(k, task))


@function("int wake_up_state(struct task_struct *p, unsigned int state)")
def _wake_up_state(k: Kernel, task: int, _state: int) -> int:
    return int(wake(k, task))


# struct task_struct: what kthread_create() returns. Only its address means something here.


@function(
    "struct task_struct *kthread_create_on_node(void *threadfn, void *data, int node,"
    " const char *namefmt, ...)"
)
def _kthread_create_on_node(
    k: Kernel, function_: int, argument: int, _node: int, fmt: int, args: Arguments
) -> int:
    name = k.format(fmt, args)[:NAME].decode("utf-8", "replace")
    return create_thread(k, name, function_, argument)


@function(
    "struct task_struct *kthread_create_on_cpu(void *threadfn, void *data, unsigned int cpu,"
    " const char *namefmt)"
)
def _kthread_create_on_cpu(k: Kernel, function_: int, argument: int, _cpu: int, name: int) -> int:
    return create_thread(k, text(k, name, NAME).decode("utf-8", "replace"), function_, argument)


@function("void kthread_bind(struct task_struct *k, unsigned int cpu)")
def _kthread_bind(_k: Kernel, _task: int, _cpu: int) -> None:
    return


@function("int kthread_stop(struct task_struct *k)", "int kthread_stop_put(struct task_struct *k)")
def _kthread_stop(k: Kernel, task: int) -> int:
    thread = state(k, Scheduler).threads.get(task)
    if thread is None:
        stop(k, f"kthread_stop of {task:#x}, which is no kernel thread")
    if not thread.started:
        _end(thread, errno("EINTR"))  # its function is never called
    thread.should_stop = thread.woken = True
    block(k, lambda: thread.ended)
    del state(k, Scheduler).threads[task]
    k.memory.vfree(thread.stack)
    return parse("int result(void)").result.from_register(thread.result)


@function("bool kthread_should_stop(void)", "bool kthread_freezable_should_stop(bool *frozen)")
def _kthread_should_stop(k: Kernel, *_frozen: int) -> int:
    thread = current_thread(k)
    return int(thread is not None and thread.should_stop)


@function("bool kthread_should_park(void)")
def _kthread_should_park(k: Kernel) -> int:
    thread = current_thread(k)
    return int(thread is not None and thread.should_park)


@function("void *kthread_data(struct task_struct *k)")
def _kthread_data(k: Kernel, task: int) -> int:
    thread = state(k, Scheduler).threads.get(task)
    return thread.argument if thread else 0


@function("bool set_freezable(void)", "bool freezing_slow_path(struct task_struct *p)")
def _freezing(_k: Kernel, *_task: int) -> int:
    return 0


@function("bool __refrigerator(bool check_kthr_stop)")
def _refrigerator(_k: Kernel, _check: int) -> int:
    return 0


@function(
    "void set_user_nice(struct task_struct *p, long nice)",
    "void sched_set_fifo(struct task_struct *p)",
    "void sched_set_fifo_low(struct task_struct *p)",
    "void sched_set_normal(struct task_struct *p, int nice)",
    "void __put_task_struct(struct task_struct *t)",
    "void __set_task_comm(struct task_struct *t, const char *b, bool e)",
    "int set_cpus_allowed_ptr(struct task_struct *p, const struct cpumask *mask)",
)
def _attribute_of_a_task(_k: Kernel, *_args: int) -> int:
    return 0


data("freezer_active", 16)  # a static key that is off
