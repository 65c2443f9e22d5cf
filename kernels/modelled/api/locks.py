# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks (kernel/locking/).

Who waits for a mutex or a semaphore lets others run meanwhile: threads, work, timers. Who
would spin, or waits for what nobody is left to give back, stops with the name of the lock and
of who holds it, where a kernel would hang; so does who takes twice what excludes itself, and
who gives back what is not held.

Lock words stand in guest memory in the kernel's own form, because modules inline the fast
paths. A spinlock word has two: arm64's and x86-64's queued lock (0 free, the lowest byte
set when held; mips64el's too) and riscv64's ticket lock (free where both halves are equal;
taking counts the upper half up, an inlined unlock the lower). The entries take a lock the way
that inlined unlocks give it back, and give it back to 0, which both forms read as free.
"""

from __future__ import annotations

from functools import partial
from typing import NoReturn

from kernels.modelled.api.common import empty_list, stop
from kernels.modelled.api.held import give, holder, take
from kernels.modelled.api.sched import block
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import offset_of
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import data, function

declare("mutex", "owner wait_list")
declare("rw_semaphore", "count owner wait_list")
declare("semaphore", "count wait_list")
MUTEX_OWNER, MUTEX_LIST = (offset_of("mutex", member) for member in ("owner", "wait_list"))
RWSEM_COUNT, RWSEM_OWNER, RWSEM_LIST = (
    offset_of("rw_semaphore", member) for member in ("count", "owner", "wait_list")
)
SEM_COUNT = offset_of("semaphore", "count")
LOCKED_BYTE, QUEUED, TICKET = 0xFF, 1, 1 << 16
OWNER_FLAGS = 7  # enum: waiters, handoff, pickup in the low bits of mutex.owner
WRITER, WRITER_MASK, READER = 0xFF, 0x1FF, 1 << 9  # include/asm-generic/qrwlock.h
RWSEM_WRITER, RWSEM_READER = 1, 1 << 8  # kernel/locking/rwsem.c

data("__mmiowb_state", 4, percpu=True)


def _title(k: Kernel, what: str, lock: int) -> str:
    """Return what a person knows a lock by."""
    module, symbol = k.locate(lock)
    name = f" '{symbol}'" if symbol else ""
    return f"{what}{name}{f' of {module}' if module else ''} at {lock:#x}"


def _deadlock(k: Kernel, what: str, lock: int) -> NoReturn:
    place, cause = holder(k, lock)
    since = f" since {place}" if place else ""
    reason = f"deadlock: {_title(k, what, lock)} is held already{since}, and nobody else runs"
    stop(k, reason, cause=cause)


def _not_held(k: Kernel, what: str, lock: int) -> NoReturn:
    stop(k, f"unlock of {_title(k, what, lock)}, which is not held")


# Spinlocks ---------------------------------------------------------------------------------


def _spinning(word: int) -> bool:
    return word >> 16 != word & 0xFFFF


@function(
    "void _raw_spin_lock(raw_spinlock_t *lock)",
    "void _raw_spin_lock_bh(raw_spinlock_t *lock)",
    "void _raw_spin_lock_irq(raw_spinlock_t *lock)",
    "unsigned long _raw_spin_lock_irqsave(raw_spinlock_t *lock)",
)
def spin_lock(k: Kernel, lock: int) -> int:
    """Take a spinlock; the saved interrupt state is always 0."""
    word = k.word(lock, 4)
    if _spinning(word):
        _deadlock(k, "spinlock", lock)
    k.store(lock, word + (TICKET if k.arch.runs.emulation.ticket_locks else QUEUED), 4)
    take(k, lock)
    return 0


@function(
    "int _raw_spin_trylock(raw_spinlock_t *lock)", "int _raw_spin_trylock_bh(raw_spinlock_t *lock)"
)
def _raw_spin_trylock(k: Kernel, lock: int) -> int:
    if _spinning(k.word(lock, 4)):
        return 0
    spin_lock(k, lock)
    return 1


@function(
    "void _raw_spin_unlock(raw_spinlock_t *lock)",
    "void _raw_spin_unlock_bh(raw_spinlock_t *lock)",
    "void _raw_spin_unlock_irq(raw_spinlock_t *lock)",
)
def spin_unlock(k: Kernel, lock: int) -> None:
    """Give a spinlock back."""
    if not _spinning(k.word(lock, 4)):
        _not_held(k, "spinlock", lock)
    k.store(lock, 0, 4)
    give(k, lock)


@function("void _raw_spin_unlock_irqrestore(raw_spinlock_t *lock, unsigned long flags)")
def _raw_spin_unlock_irqrestore(k: Kernel, lock: int, _flags: int) -> None:
    spin_unlock(k, lock)


@function("void queued_spin_lock_slowpath(struct qspinlock *lock, u32 val)")
def _queued_spin_lock_slowpath(k: Kernel, lock: int, _value: int) -> None:
    _deadlock(k, "spinlock", lock)


@function("int _atomic_dec_and_lock(atomic_t *atomic, spinlock_t *lock)")
def _atomic_dec_and_lock(k: Kernel, atomic: int, lock: int) -> int:
    left = k.word(atomic, 4) - 1
    if left == 0:
        spin_lock(k, lock)
    k.store(atomic, left, 4)
    return int(left == 0)


# Reader-writer spinlocks -------------------------------------------------------------------


@function(
    "void _raw_read_lock(rwlock_t *lock)",
    "void _raw_read_lock_bh(rwlock_t *lock)",
    "void _raw_read_lock_irq(rwlock_t *lock)",
    "unsigned long _raw_read_lock_irqsave(rwlock_t *lock)",
)
def _read_lock(k: Kernel, lock: int) -> int:
    word = k.word(lock, 4)
    if word & WRITER_MASK:
        _deadlock(k, "rwlock (by a writer)", lock)
    k.store(lock, word + READER, 4)
    take(k, lock)
    return 0


@function(
    "void _raw_read_unlock(rwlock_t *lock)",
    "void _raw_read_unlock_bh(rwlock_t *lock)",
    "void _raw_read_unlock_irq(rwlock_t *lock)",
)
def _read_unlock(k: Kernel, lock: int) -> None:
    word = k.word(lock, 4)
    if word < READER:
        _not_held(k, "rwlock (for reading)", lock)
    k.store(lock, word - READER, 4)
    if word == READER:
        give(k, lock)


@function("void _raw_read_unlock_irqrestore(rwlock_t *lock, unsigned long flags)")
def _read_unlock_irqrestore(k: Kernel, lock: int, _flags: int) -> None:
    _read_unlock(k, lock)


@function(
    "void _raw_write_lock(rwlock_t *lock)",
    "void _raw_write_lock_bh(rwlock_t *lock)",
    "void _raw_write_lock_irq(rwlock_t *lock)",
    "unsigned long _raw_write_lock_irqsave(rwlock_t *lock)",
)
def _write_lock(k: Kernel, lock: int) -> int:
    if k.word(lock, 4):
        _deadlock(k, "rwlock", lock)
    k.store(lock, WRITER, 4)
    take(k, lock)
    return 0


@function(
    "void _raw_write_unlock(rwlock_t *lock)",
    "void _raw_write_unlock_bh(rwlock_t *lock)",
    "void _raw_write_unlock_irq(rwlock_t *lock)",
)
def _write_unlock(k: Kernel, lock: int) -> None:
    if k.word(lock, 1) != WRITER:
        _not_held(k, "rwlock (for writing)", lock)
    k.store(lock, 0, 1)
    give(k, lock)


@function("void _raw_write_unlock_irqrestore(rwlock_t *lock, unsigned long flags)")
def _write_unlock_irqrestore(k: Kernel, lock: int, _flags: int) -> None:
    _write_unlock(k, lock)


@function(
    "void queued_read_lock_slowpath(struct qrwlock *lock)",
    "void queued_write_lock_slowpath(struct qrwlock *lock)",
)
def _queued_rwlock_slowpath(k: Kernel, lock: int) -> None:
    _deadlock(k, "rwlock", lock)


# Mutexes -----------------------------------------------------------------------------------


@function("void __mutex_init(struct mutex *lock, const char *name, struct lock_class_key *key)")
def _mutex_init(k: Kernel, lock: int, _name: int, _key: int) -> None:
    k.memory.write(lock, bytes(k.layouts.size_of("mutex")))
    empty_list(k, lock + MUTEX_LIST(k))
    give(k, lock)


def _mutex_owner(k: Kernel, lock: int) -> int:
    return k.word(lock + MUTEX_OWNER(k)) & ~OWNER_FLAGS


@function(
    "void mutex_lock(struct mutex *lock)",
    "void mutex_lock_io(struct mutex *lock)",
    "int mutex_lock_interruptible(struct mutex *lock)",
    "int mutex_lock_killable(struct mutex *lock)",
)
def mutex_lock(k: Kernel, lock: int) -> int:
    """Take a mutex; no signal ever interrupts."""
    if _mutex_owner(k, lock) == k.current:
        _deadlock(k, "mutex", lock)
    block(k, lambda: not _mutex_owner(k, lock), hopeless=partial(_deadlock, k, "mutex", lock))
    k.store(lock + MUTEX_OWNER(k), k.word(lock + MUTEX_OWNER(k)) | k.current)
    take(k, lock)
    return 0


@function("int mutex_trylock(struct mutex *lock)")
def _mutex_trylock(k: Kernel, lock: int) -> int:
    if _mutex_owner(k, lock):
        return 0
    mutex_lock(k, lock)
    return 1


@function("void mutex_unlock(struct mutex *lock)")
def _mutex_unlock(k: Kernel, lock: int) -> None:
    if not _mutex_owner(k, lock):
        _not_held(k, "mutex", lock)
    k.store(lock + MUTEX_OWNER(k), 0)
    give(k, lock)


@function("bool mutex_is_locked(struct mutex *lock)")
def _mutex_is_locked(k: Kernel, lock: int) -> int:
    return int(_mutex_owner(k, lock) != 0)


@function("int atomic_dec_and_mutex_lock(atomic_t *cnt, struct mutex *lock)")
def _atomic_dec_and_mutex_lock(k: Kernel, atomic: int, lock: int) -> int:
    left = k.word(atomic, 4) - 1
    if left == 0:
        mutex_lock(k, lock)
    k.store(atomic, left, 4)
    return int(left == 0)


# Semaphores --------------------------------------------------------------------------------


@function("void __init_rwsem(struct rw_semaphore *s, const char *n, struct lock_class_key *key)")
def _init_rwsem(k: Kernel, sem: int, _name: int, _key: int) -> None:
    k.memory.write(sem, bytes(k.layouts.size_of("rw_semaphore")))
    empty_list(k, sem + RWSEM_LIST(k))
    give(k, sem)


@function("int down_read_trylock(struct rw_semaphore *sem)")
def _down_read_trylock(k: Kernel, sem: int) -> int:
    count = k.word(sem + RWSEM_COUNT(k))
    if count & RWSEM_WRITER:
        return 0
    k.store(sem + RWSEM_COUNT(k), count + RWSEM_READER)
    take(k, sem)
    return 1


@function(
    "void down_read(struct rw_semaphore *sem)",
    "int down_read_interruptible(struct rw_semaphore *sem)",
    "int down_read_killable(struct rw_semaphore *sem)",
)
def _down_read(k: Kernel, sem: int) -> int:
    what = "rw_semaphore (by a writer)"
    if k.word(sem + RWSEM_COUNT(k)) & RWSEM_WRITER and k.word(sem + RWSEM_OWNER(k)) == k.current:
        _deadlock(k, what, sem)
    block(
        k,
        lambda: not k.word(sem + RWSEM_COUNT(k)) & RWSEM_WRITER,
        hopeless=partial(_deadlock, k, what, sem),
    )
    _down_read_trylock(k, sem)
    return 0


@function("int down_write_trylock(struct rw_semaphore *sem)")
def _down_write_trylock(k: Kernel, sem: int) -> int:
    if k.word(sem + RWSEM_COUNT(k)):
        return 0
    k.store(sem + RWSEM_COUNT(k), RWSEM_WRITER)
    k.store(sem + RWSEM_OWNER(k), k.current)
    take(k, sem)
    return 1


@function(
    "void down_write(struct rw_semaphore *sem)", "int down_write_killable(struct rw_semaphore *sem)"
)
def _down_write(k: Kernel, sem: int) -> int:
    if k.word(sem + RWSEM_COUNT(k)) & RWSEM_WRITER and k.word(sem + RWSEM_OWNER(k)) == k.current:
        _deadlock(k, "rw_semaphore", sem)
    hopeless = partial(_deadlock, k, "rw_semaphore", sem)
    block(k, lambda: not k.word(sem + RWSEM_COUNT(k)), hopeless=hopeless)
    _down_write_trylock(k, sem)
    return 0


@function("void up_read(struct rw_semaphore *sem)")
def _up_read(k: Kernel, sem: int) -> None:
    count = k.word(sem + RWSEM_COUNT(k))
    if count < RWSEM_READER:
        _not_held(k, "rw_semaphore (for reading)", sem)
    k.store(sem + RWSEM_COUNT(k), count - RWSEM_READER)
    if count == RWSEM_READER:
        give(k, sem)


@function("void up_write(struct rw_semaphore *sem)")
def _up_write(k: Kernel, sem: int) -> None:
    if not k.word(sem + RWSEM_COUNT(k)) & RWSEM_WRITER:
        _not_held(k, "rw_semaphore (for writing)", sem)
    k.store(sem + RWSEM_COUNT(k), 0)
    k.store(sem + RWSEM_OWNER(k), 0)
    give(k, sem)


@function("void downgrade_write(struct rw_semaphore *sem)")
def _downgrade_write(k: Kernel, sem: int) -> None:
    _up_write(k, sem)
    k.store(sem + RWSEM_COUNT(k), RWSEM_READER)
    take(k, sem)


@function("int down_trylock(struct semaphore *sem)")
def _down_trylock(k: Kernel, sem: int) -> int:
    count = k.word(sem + SEM_COUNT(k), 4)
    if count:
        k.store(sem + SEM_COUNT(k), count - 1, 4)
        take(k, sem)
    return int(count == 0)


@function(
    "void down(struct semaphore *sem)",
    "int down_interruptible(struct semaphore *sem)",
    "int down_killable(struct semaphore *sem)",
)
def _down(k: Kernel, sem: int) -> int:
    hopeless = partial(_deadlock, k, "semaphore", sem)
    block(k, lambda: k.word(sem + SEM_COUNT(k), 4) != 0, hopeless=hopeless)
    _down_trylock(k, sem)
    return 0


@function("void up(struct semaphore *sem)")
def _up(k: Kernel, sem: int) -> None:
    k.store(sem + SEM_COUNT(k), k.word(sem + SEM_COUNT(k), 4) + 1, 4)
    give(k, sem)


# Interrupts and preemption: there are none ---------------------------------------------------


@function(
    "void __local_bh_enable_ip(unsigned long ip, unsigned int cnt)",
    "void __local_bh_disable_ip(unsigned long ip, unsigned int cnt)",
)
def _local_bh(_k: Kernel, _ip: int, _count: int) -> None:
    return


@function(
    "int __cond_resched(void)",
    "int __SCT__cond_resched(void)",
    "int __SCT__might_resched(void)",
    "void __SCT__preempt_schedule(void)",
    "void __SCT__preempt_schedule_notrace(void)",
    "void preempt_schedule(void)",
    "void preempt_schedule_notrace(void)",
    "void yield(void)",
)
def _resched(_k: Kernel) -> int:
    return 0


@function("void __might_sleep(const char *file, int line)")
def _might_sleep(_k: Kernel, _file: int, _line: int) -> None:
    return


@function("int __cond_resched_lock(spinlock_t *lock)")
def _cond_resched_lock(k: Kernel, lock: int) -> int:
    if not _spinning(k.word(lock, 4)):
        _not_held(k, "spinlock", lock)
    return 0
