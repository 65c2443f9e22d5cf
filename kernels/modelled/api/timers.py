# SPDX-License-Identifier: GPL-2.0-or-later
"""Timers (kernel/time/timer.c, kernel/time/hrtimer.c).

When a timer is due stands in guest memory, and whether it is pending, in the field that
timer_pending() reads; the order of timers is the scheduler's.
"""

from __future__ import annotations

from collections.abc import Callable

from allocator.types import ADDRESS_MASK
from kernels.modelled.api.common import Deferred
from kernels.modelled.api.sched import clear_timer, set_timer
from kernels.modelled.api.time import (
    HZ,
    INITIAL_JIFFIES,
    NSEC_PER_JIFFY,
    NSEC_PER_SEC,
    jiffies,
    now,
)
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import made, offset_of
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import function

# include/linux/timer_types.h, hrtimer_types.h
declare("timer_list", "entry.next entry.pprev expires function flags")
declare(
    "hrtimer",
    "node.node.__rb_parent_color node.expires _softexpires function state",
)
NEXT, PPREV, EXPIRES, FUNCTION = (
    offset_of("timer_list", member)
    for member in ("entry.next", "entry.pprev", "expires", "function")
)
HR_EXPIRES, HR_SOFT, HR_FUNCTION, HR_STATE = (
    offset_of("hrtimer", member) for member in ("node.expires", "_softexpires", "function", "state")
)
HRTIMER_MODE_REL = 1
HRTIMER_RESTART = 1


def arm(k: Kernel, timer: int, expires: int, target: Callable[[Kernel], int] | None = None) -> bool:
    """Let a timer_list expire at a jiffy; return whether it was pending.

    `target` returns the function that is called in the end, where it is not the timer's own.
    """
    was = k.word(timer + PPREV(k)) != 0
    k.store(timer + EXPIRES(k), expires)
    k.store(timer + PPREV(k), timer)
    wait = expires - INITIAL_JIFFIES
    what = Deferred(
        "timer",
        lambda k: fire(k, timer),
        target or (lambda k: k.word(timer + FUNCTION(k))),
        lambda k: _not_pending(k, timer),
    )
    set_timer(k, timer, NSEC_PER_SEC + wait * NSEC_PER_JIFFY, what)
    return was


def _not_pending(k: Kernel, timer: int) -> None:
    k.store(timer + NEXT(k), 0)
    k.store(timer + PPREV(k), 0)


def fire(k: Kernel, timer: int) -> None:
    """Call a timer's function; it is not pending any more."""
    _not_pending(k, timer)
    k.call(k.word(timer + FUNCTION(k)), timer)


def disarm(k: Kernel, timer: int) -> bool:
    """Stop a timer_list; return whether it was pending."""
    was = k.word(timer + PPREV(k)) != 0
    if was:
        _not_pending(k, timer)
    clear_timer(k, timer)
    return was


@function(
    "void init_timer_key(struct timer_list *timer, void *func, unsigned int flags,"
    " const char *name, struct lock_class_key *key)"
)
def _init_timer_key(k: Kernel, timer: int, func: int, flags: int, _name: int, _key: int) -> None:
    expires = k.word(timer + EXPIRES(k))  # which add_timer() reads, and nobody sets here
    members = {"expires": expires, "function": func, "flags": flags}
    k.memory.write(timer, made(k, "timer_list", members))


@function("int mod_timer(struct timer_list *timer, unsigned long expires)")
def _mod_timer(k: Kernel, timer: int, expires: int) -> int:
    if not k.word(timer + FUNCTION(k)):  # shut down
        return 0
    return int(arm(k, timer, expires))


@function("int mod_timer_pending(struct timer_list *timer, unsigned long expires)")
def _mod_timer_pending(k: Kernel, timer: int, expires: int) -> int:
    return _mod_timer(k, timer, expires) if k.word(timer + PPREV(k)) else 0


@function("int timer_reduce(struct timer_list *timer, unsigned long expires)")
def _timer_reduce(k: Kernel, timer: int, expires: int) -> int:
    if k.word(timer + PPREV(k)) and k.word(timer + EXPIRES(k)) <= expires:
        return 1
    return _mod_timer(k, timer, expires)


@function(
    "void add_timer(struct timer_list *timer)",
    "void add_timer_local(struct timer_list *timer)",
    "void add_timer_global(struct timer_list *timer)",
)
def _add_timer(k: Kernel, timer: int) -> None:
    _mod_timer(k, timer, k.word(timer + EXPIRES(k)))


@function("void add_timer_on(struct timer_list *timer, int cpu)")
def _add_timer_on(k: Kernel, timer: int, _cpu: int) -> None:
    _add_timer(k, timer)


@function(
    "int timer_delete(struct timer_list *timer)",
    "int timer_delete_sync(struct timer_list *timer)",
    "int timer_delete_sync_try(struct timer_list *timer)",
)
def _timer_delete(k: Kernel, timer: int) -> int:
    return int(disarm(k, timer))


@function(
    "int timer_shutdown(struct timer_list *timer)",
    "int timer_shutdown_sync(struct timer_list *timer)",
)
def _timer_shutdown(k: Kernel, timer: int) -> int:
    was = disarm(k, timer)
    k.store(timer + FUNCTION(k), 0)
    return int(was)


# Rounding: to whole seconds, so that several timers expire together. --------------------------


def _round(k: Kernel, value: int, current: int, *, up: bool, cpu: int | None = None) -> int:
    """Return the whole second of a jiffy, three jiffies apart for each CPU."""
    skew = 3 * (k.cpu.number if cpu is None else cpu)
    rest = (value + skew) % HZ
    rounded = value - rest if rest < HZ // 4 and not up else value - rest + HZ
    return rounded if rounded > current else value


@function("unsigned long round_jiffies(unsigned long j)")
def _round_jiffies(k: Kernel, value: int) -> int:
    return _round(k, value, jiffies(k), up=False)


@function("unsigned long __round_jiffies(unsigned long j, int cpu)")
def _round_jiffies_of(k: Kernel, value: int, cpu: int) -> int:
    return _round(k, value, jiffies(k), up=False, cpu=cpu)


@function("unsigned long round_jiffies_up(unsigned long j)")
def _round_jiffies_up(k: Kernel, value: int) -> int:
    return _round(k, value, jiffies(k), up=True)


@function("unsigned long round_jiffies_relative(unsigned long j)")
def _round_jiffies_relative(k: Kernel, value: int) -> int:
    current = jiffies(k)
    return _round(k, value + current, current, up=False) - current


@function("unsigned long round_jiffies_up_relative(unsigned long j)")
def _round_jiffies_up_relative(k: Kernel, value: int) -> int:
    current = jiffies(k)
    return _round(k, value + current, current, up=True) - current


# High resolution ---------------------------------------------------------------------------


@function(
    "void hrtimer_init(struct hrtimer *timer, clockid_t clock_id, enum hrtimer_mode mode)",
)
def _hrtimer_init(k: Kernel, timer: int, _clock: int, _mode: int) -> None:
    k.memory.write(timer, made(k, "hrtimer", {"node.node.__rb_parent_color": timer}))  # in no tree


@function(
    "void hrtimer_setup(struct hrtimer *timer, void *function, clockid_t clock_id,"
    " enum hrtimer_mode mode)"
)
def _hrtimer_setup(k: Kernel, timer: int, func: int, clock: int, mode: int) -> None:
    _hrtimer_init(k, timer, clock, mode)
    k.store(timer + HR_FUNCTION(k), func)


def _expire(k: Kernel, timer: int, when: int) -> None:
    k.store(timer + HR_EXPIRES(k), when)
    k.store(timer + HR_SOFT(k), when)


def _arm_hrtimer(k: Kernel, timer: int, when: int) -> None:
    when &= ADDRESS_MASK
    _expire(k, timer, when)
    k.store(timer + HR_STATE(k), 1, 1)
    what = Deferred(
        "hrtimer",
        lambda k: _fire_hrtimer(k, timer),
        lambda k: k.word(timer + HR_FUNCTION(k)),
        lambda k: k.store(timer + HR_STATE(k), 0, 1),
    )
    set_timer(k, timer, when, what)


def _fire_hrtimer(k: Kernel, timer: int) -> None:
    k.store(timer + HR_STATE(k), 0, 1)
    again = k.call(k.word(timer + HR_FUNCTION(k)), timer) & 0xFFFF_FFFF
    if again == HRTIMER_RESTART and not k.word(timer + HR_STATE(k), 1):
        _arm_hrtimer(k, timer, k.word(timer + HR_EXPIRES(k)))


@function(
    "void hrtimer_start_range_ns(struct hrtimer *timer, ktime_t tim, u64 delta_ns,"
    " const enum hrtimer_mode mode)"
)
def _hrtimer_start(k: Kernel, timer: int, when: int, _delta: int, mode: int) -> None:
    _arm_hrtimer(k, timer, when + (now(k) if mode & HRTIMER_MODE_REL else 0))


@function(
    "int hrtimer_cancel(struct hrtimer *timer)", "int hrtimer_try_to_cancel(struct hrtimer *timer)"
)
def _hrtimer_cancel(k: Kernel, timer: int) -> int:
    k.store(timer + HR_STATE(k), 0, 1)
    return int(clear_timer(k, timer))


@function("bool hrtimer_active(const struct hrtimer *timer)")
def _hrtimer_active(k: Kernel, timer: int) -> int:
    return int(k.word(timer + HR_STATE(k), 1) != 0)


@function("u64 hrtimer_forward(struct hrtimer *timer, ktime_t now, ktime_t interval)")
def _hrtimer_forward(k: Kernel, timer: int, current: int, interval: int) -> int:
    expires = k.word(timer + HR_EXPIRES(k))
    if current < expires or k.word(timer + HR_STATE(k), 1):
        return 0
    overruns = (current - expires) // max(interval, 1) + 1
    expires += overruns * max(interval, 1)
    _expire(k, timer, expires)
    return overruns


@function("ktime_t __hrtimer_get_remaining(const struct hrtimer *timer, bool adjust)")
def _hrtimer_get_remaining(k: Kernel, timer: int, _adjust: int) -> int:
    return k.word(timer + HR_EXPIRES(k)) - now(k)
