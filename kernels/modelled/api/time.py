# SPDX-License-Identifier: GPL-2.0-or-later
"""Time that only passes when somebody looks or waits (kernel/time/).

A clock of the host would make every run different. Here each reading costs a microsecond
and each sleep or delay what it asks for, so that loops which wait for a clock end, and two
runs of the same code see the same times.
"""

from __future__ import annotations

import random
import struct
from typing import ClassVar

import attrs

from kernels.modelled.api.common import state
from kernels.modelled.kernel import Kernel
from kernels.modelled.table import data, function

HZ = 250
NSEC_PER_SEC = 10**9
NSEC_PER_JIFFY = NSEC_PER_SEC // HZ
READING = 1000  # ns
LOOKING = NSEC_PER_JIFFY // 4  # what reading jiffies costs: loops that wait for it count jiffies
INITIAL_JIFFIES = -300 * HZ & 0xFFFF_FFFF  # include/linux/jiffies.h: wraps 5 minutes after boot
BOOT = 1_700_000_000  # seconds since 1970 at which every machine boots
MAX_JIFFY_OFFSET = ((1 << 63) - 1 >> 1) - 1

for _name in ("jiffies", "jiffies_64"):
    data(
        _name,
        8,
        fill=lambda k: jiffies(k).to_bytes(8, "little"),
        read=lambda k: advance(k, LOOKING),
    )
data("loops_per_jiffy", 8, fill=lambda _k: (4096).to_bytes(8, "little"))
data("tsc_khz", 4, fill=lambda _k: (1_000_000).to_bytes(4, "little"))


@attrs.define
class Clock:
    """Nanoseconds since boot."""

    lasting: ClassVar[bool] = True
    now: int = NSEC_PER_SEC


def advance(k: Kernel, nanoseconds: int) -> int:
    """Let time pass; return nanoseconds since boot."""
    clock = state(k, Clock)
    before = clock.now
    clock.now += max(nanoseconds, 0)
    if before // NSEC_PER_JIFFY != clock.now // NSEC_PER_JIFFY:
        for name in ("jiffies", "jiffies_64"):
            k.store(k.address(name), _jiffies_at(clock.now))
    return clock.now


def counter(k: Kernel) -> int:
    """Return nanoseconds since boot, as an instruction reads them that looks at a clock.

    No two looks take quite the same time, as on hardware: code that collects entropy tells by
    that whether the clock is any good.
    """
    jitter = state(k, _Jitter)
    if jitter.source is None:
        jitter.source = random.Random(k.seed)  # noqa: S311 -- repeatable, no secret
    return advance(k, READING + jitter.source.getrandbits(6))


@attrs.define
class _Jitter:
    lasting: ClassVar[bool] = True
    source: random.Random | None = None


def now(k: Kernel) -> int:
    """Return nanoseconds since boot; looking costs nothing."""
    return state(k, Clock).now


def jiffies(k: Kernel) -> int:
    """Return the jiffies of now."""
    return _jiffies_at(state(k, Clock).now)


def _jiffies_at(now: int) -> int:
    return INITIAL_JIFFIES + (now - NSEC_PER_SEC) // NSEC_PER_JIFFY


@function(
    "ktime_t ktime_get(void)",
    "ktime_t ktime_get_raw(void)",
    "u64 ktime_get_mono_fast_ns(void)",
    "u64 sched_clock(void)",
)
def _ktime_get(k: Kernel) -> int:
    return advance(k, READING)


@function(
    "ktime_t ktime_get_with_offset(enum tk_offsets offs)",
    "ktime_t ktime_get_coarse_with_offset(enum tk_offsets offs)",
)
def _ktime_get_with_offset(k: Kernel, offset: int) -> int:
    # enum tk_offsets: TK_OFFS_REAL, TK_OFFS_BOOT, TK_OFFS_TAI; nobody suspends here.
    return advance(k, READING) + (0 if offset == 1 else BOOT * NSEC_PER_SEC)


@function("time64_t ktime_get_seconds(void)")
def _ktime_get_seconds(k: Kernel) -> int:
    return advance(k, READING) // NSEC_PER_SEC


@function("time64_t ktime_get_real_seconds(void)")
def _ktime_get_real_seconds(k: Kernel) -> int:
    return BOOT + _ktime_get_seconds(k)


@function(
    "void ktime_get_real_ts64(struct timespec64 *ts)",
    "void ktime_get_coarse_real_ts64(struct timespec64 *ts)",
)
def _ktime_get_real_ts64(k: Kernel, ts: int) -> None:
    seconds, nanoseconds = divmod(advance(k, READING), NSEC_PER_SEC)
    k.memory.write(ts, struct.pack("<qq", BOOT + seconds, nanoseconds))


@function(
    "void ktime_get_ts64(struct timespec64 *ts)", "void ktime_get_raw_ts64(struct timespec64 *ts)"
)
def _ktime_get_ts64(k: Kernel, ts: int) -> None:
    k.memory.write(ts, struct.pack("<qq", *divmod(advance(k, READING), NSEC_PER_SEC)))


@function("void getboottime64(struct timespec64 *ts)")
def _getboottime64(k: Kernel, ts: int) -> None:
    k.memory.write(ts, struct.pack("<qq", BOOT, 0))


@function("void __udelay(unsigned long usecs)", "void udelay(unsigned long usecs)")
def _udelay(k: Kernel, usecs: int) -> None:
    advance(k, usecs * 1000)


@function("void __ndelay(unsigned long nsecs)", "void ndelay(unsigned long nsecs)")
def _ndelay(k: Kernel, nsecs: int) -> None:
    advance(k, nsecs)


@function("void __const_udelay(unsigned long xloops)")
def _const_udelay(k: Kernel, loops: int) -> None:
    advance(k, loops * 1_000_000_000 >> 32)  # 2**32 loops are a second


@function("unsigned long __msecs_to_jiffies(const unsigned int m)")
def _msecs_to_jiffies(_k: Kernel, msecs: int) -> int:
    return MAX_JIFFY_OFFSET if msecs >> 31 else -(-msecs * HZ // 1000)


@function("unsigned long __usecs_to_jiffies(const unsigned int u)")
def _usecs_to_jiffies(_k: Kernel, usecs: int) -> int:
    return -(-usecs * HZ // 1_000_000)


@function("unsigned int jiffies_to_msecs(const unsigned long j)")
def _jiffies_to_msecs(_k: Kernel, count: int) -> int:
    return count * (1000 // HZ)


@function("unsigned int jiffies_to_usecs(const unsigned long j)")
def _jiffies_to_usecs(_k: Kernel, count: int) -> int:
    return count * (1_000_000 // HZ)


@function(
    "unsigned long nsecs_to_jiffies(u64 n)",
    "u64 nsecs_to_jiffies64(u64 n)",
)
def _nsecs_to_jiffies(_k: Kernel, nsecs: int) -> int:
    return nsecs // NSEC_PER_JIFFY
