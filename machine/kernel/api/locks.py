# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks of a machine with one CPU and one task (kernel/locking/, kernel/rcu/).

There is nobody to wait for: a lock that is taken stays taken for ever. So what would hang
a kernel, or be found by its lock debugging, stops the guest with the name of the lock:
taking twice what excludes itself, and giving back what is not held.

Lock words stand in guest memory in the kernel's own form, because modules inline the fast
paths. A spinlock word has two: arm64's and x86-64's queued lock (0 free, the lowest byte
set when held) and riscv64's ticket lock (free where both halves are equal; taking counts
the upper half up, an inlined unlock the lower). The entries take a lock the ticket way,
which either form reads as held, and give it back to 0, which both read as free.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import attrs

from machine.kernel.api.common import empty_list, state, stop
from machine.kernel.api.memory import kvfree
from machine.kernel.kernel import Kernel
from machine.kernel.structs import offset_of
from machine.kernel.structs import struct as declare
from machine.kernel.table import data, function

declare("mutex", "owner:u64 wait_lock:u32 osq:u32 wait_list:list")
declare("rw_semaphore", "count:u64 owner:u64 osq:u32 wait_lock:u32 wait_list:list")
declare("semaphore", "lock:u32 count:u32 wait_list:list")
declare("qrwlock", "cnts:u32 wait_lock:u32")
declare("callback_head", "next:ptr func:fn")
MUTEX_LIST, RWSEM_LIST = offset_of("mutex", "wait_list"), offset_of("rw_semaphore", "wait_list")
SEM_COUNT, RCU_FUNCTION = offset_of("semaphore", "count"), offset_of("callback_head", "func")
LOCKED_BYTE, TICKET = 0xFF, 1 << 16
OWNER_FLAGS = 7  # enum: waiters, handoff, pickup in the low bits of mutex.owner
WRITER, WRITER_MASK, READER = 0xFF, 0x1FF, 1 << 9  # include/asm-generic/qrwlock.h
RWSEM_WRITER, RWSEM_READER = 1, 1 << 8  # kernel/locking/rwsem.c

data("__mmiowb_state", 4, percpu=True)


def _deadlock(k: Kernel, what: str, lock: int) -> None:
    stop(k, f"deadlock: {what} at {lock:#x} is held already, and nobody else runs")


def _not_held(k: Kernel, what: str, lock: int) -> None:
    stop(k, f"unlock of {what} at {lock:#x}, which is not held")


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
    k.store(lock, word + TICKET, 4)
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
    k.memory.write(lock, bytes(MUTEX_LIST))
    empty_list(k, lock + MUTEX_LIST)


def _mutex_owner(k: Kernel, lock: int) -> int:
    return k.word(lock) & ~OWNER_FLAGS


@function(
    "void mutex_lock(struct mutex *lock)",
    "void mutex_lock_io(struct mutex *lock)",
    "int mutex_lock_interruptible(struct mutex *lock)",
    "int mutex_lock_killable(struct mutex *lock)",
)
def mutex_lock(k: Kernel, lock: int) -> int:
    """Take a mutex; no signal ever interrupts."""
    if _mutex_owner(k, lock):
        _deadlock(k, "mutex", lock)
    k.store(lock, k.word(lock) | k.current)
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
    k.store(lock, 0)


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
    k.memory.write(sem, bytes(RWSEM_LIST))
    empty_list(k, sem + RWSEM_LIST)


@function("int down_read_trylock(struct rw_semaphore *sem)")
def _down_read_trylock(k: Kernel, sem: int) -> int:
    count = k.word(sem)
    if count & RWSEM_WRITER:
        return 0
    k.store(sem, count + RWSEM_READER)
    return 1


@function(
    "void down_read(struct rw_semaphore *sem)",
    "int down_read_interruptible(struct rw_semaphore *sem)",
    "int down_read_killable(struct rw_semaphore *sem)",
)
def _down_read(k: Kernel, sem: int) -> int:
    if not _down_read_trylock(k, sem):
        _deadlock(k, "rw_semaphore (by a writer)", sem)
    return 0


@function("int down_write_trylock(struct rw_semaphore *sem)")
def _down_write_trylock(k: Kernel, sem: int) -> int:
    if k.word(sem):
        return 0
    k.memory.write(sem, struct.pack("<QQ", RWSEM_WRITER, k.current))
    return 1


@function(
    "void down_write(struct rw_semaphore *sem)", "int down_write_killable(struct rw_semaphore *sem)"
)
def _down_write(k: Kernel, sem: int) -> int:
    if not _down_write_trylock(k, sem):
        _deadlock(k, "rw_semaphore", sem)
    return 0


@function("void up_read(struct rw_semaphore *sem)")
def _up_read(k: Kernel, sem: int) -> None:
    count = k.word(sem)
    if count < RWSEM_READER:
        _not_held(k, "rw_semaphore (for reading)", sem)
    k.store(sem, count - RWSEM_READER)


@function("void up_write(struct rw_semaphore *sem)")
def _up_write(k: Kernel, sem: int) -> None:
    if not k.word(sem) & RWSEM_WRITER:
        _not_held(k, "rw_semaphore (for writing)", sem)
    k.memory.write(sem, bytes(16))


@function("void downgrade_write(struct rw_semaphore *sem)")
def _downgrade_write(k: Kernel, sem: int) -> None:
    _up_write(k, sem)
    k.store(sem, RWSEM_READER)


@function("int down_trylock(struct semaphore *sem)")
def _down_trylock(k: Kernel, sem: int) -> int:
    count = k.word(sem + SEM_COUNT, 4)
    if count:
        k.store(sem + SEM_COUNT, count - 1, 4)
    return int(count == 0)


@function(
    "void down(struct semaphore *sem)",
    "int down_interruptible(struct semaphore *sem)",
    "int down_killable(struct semaphore *sem)",
)
def _down(k: Kernel, sem: int) -> int:
    if _down_trylock(k, sem):
        _deadlock(k, "semaphore", sem)
    return 0


@function("void up(struct semaphore *sem)")
def _up(k: Kernel, sem: int) -> None:
    k.store(sem + SEM_COUNT, k.word(sem + SEM_COUNT, 4) + 1, 4)


# RCU ---------------------------------------------------------------------------------------


@attrs.define
class _Rcu:
    """Readers under way, and what waits for them, in order."""

    readers: int = 0
    waiting: list[Callable[[Kernel], object]] = attrs.field(factory=list)


def call_rcu(k: Kernel, head: int, act: Callable[[Kernel], object]) -> None:
    """Let `act` happen after the readers that are under way; `head` is the caller's rcu_head."""
    if head:
        k.memory.write(head, bytes(16))
    state(k, _Rcu).waiting.append(act)
    k.stir()


def rcu_pending(k: Kernel) -> bool:
    """Return whether something waits for readers, and none is under way."""
    rcu = state(k, _Rcu)
    return bool(rcu.waiting) and not rcu.readers


def grace_period(k: Kernel) -> None:
    """Run what was given to call_rcu, now that no reader is under way."""
    rcu = state(k, _Rcu)
    while rcu.waiting and not rcu.readers:
        rcu.waiting.pop(0)(k)


@function("void __rcu_read_lock(void)")
def _rcu_read_lock(k: Kernel) -> None:
    state(k, _Rcu).readers += 1


@function("void __rcu_read_unlock(void)")
def _rcu_read_unlock(k: Kernel) -> None:
    rcu = state(k, _Rcu)
    if not rcu.readers:
        stop(k, "rcu_read_unlock without rcu_read_lock")
    rcu.readers -= 1
    if rcu.waiting:
        k.stir()


@function(
    "void synchronize_rcu(void)",
    "void synchronize_rcu_expedited(void)",
    "void synchronize_net(void)",
    "void rcu_barrier(void)",
)
def _synchronize_rcu(k: Kernel) -> None:
    if state(k, _Rcu).readers:
        stop(k, "deadlock: waits for readers inside rcu_read_lock")
    grace_period(k)


@function(
    "void call_rcu(struct rcu_head *head, rcu_callback_t func)",
    "void call_rcu_hurry(struct rcu_head *head, rcu_callback_t func)",
)
def _call_rcu(k: Kernel, head: int, func: int) -> None:
    call_rcu(k, head, lambda k: k.call(func, head))
    k.store(head + RCU_FUNCTION, func)


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
