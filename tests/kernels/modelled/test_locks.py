# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks, and what waits for readers."""

from __future__ import annotations

import struct

import pytest

from emulator.faults import FaultKind
from tests.archs.facts import facts
from tests.support.guest import GFP_KERNEL

LOCKS = {
    "mutex": ("mutex_lock", "mutex_unlock", "mutex_trylock"),
    "spinlock": ("_raw_spin_lock", "_raw_spin_unlock", "_raw_spin_trylock"),
    "rw_semaphore": ("down_write", "up_write", "down_write_trylock"),
    "rwlock": ("_raw_write_lock", "_raw_write_unlock", None),
}


@pytest.mark.parametrize("what", LOCKS)
def test_locks_exclude(guest, what):
    """Taking twice is a deadlock, giving back what is free a bug; between them all is well."""
    take, give, try_ = LOCKS[what]
    with guest.memory(64) as lock:
        for _ in range(2):
            with guest.fails(FaultKind.PANIC, "unlock", what, hex(lock)):
                guest(give, lock)
            guest(take, lock)
            with guest.fails(FaultKind.PANIC, "deadlock", what, hex(lock)):
                guest(take, lock)
            if try_:
                assert guest(try_, lock, returns="int") == 0
            guest(give, lock)
            assert guest.machine.read(lock, 64) == bytes(64)
        if try_:
            assert guest(try_, lock, returns="int") == 1
            guest(give, lock)


@pytest.mark.parametrize(
    ("take", "give", "exclusive"),
    [
        ("down_read", "up_read", "down_write"),
        ("_raw_read_lock", "_raw_read_unlock", "_raw_write_lock"),
    ],
)
def test_readers_share(guest, take, give, exclusive):
    """Two readers may hold what no writer may take beside them."""
    with guest.memory(64) as lock:
        guest(take, lock)
        guest(take, lock)
        with guest.fails(FaultKind.PANIC, "deadlock"):
            guest(exclusive, lock)
        guest(give, lock)
        guest(give, lock)
        with guest.fails(FaultKind.PANIC, "unlock"):
            guest(give, lock)
        guest(exclusive, lock)
        with guest.fails(FaultKind.PANIC, "deadlock"):
            guest(take, lock)


def test_spinlock_words_agree_with_inlined_fast_paths(guest):
    """A queued lock taken inline is held; a ticket lock given back inline is free."""
    with guest.memory(4) as lock:
        guest.machine.write(lock, struct.pack("<I", 1))  # cmpxchg 0 -> 1 of a queued lock
        assert guest("_raw_spin_trylock", lock, returns="int") == 0
        guest("_raw_spin_unlock", lock)
        assert guest.word(lock, 4) == 0
        for turn in range(3):
            guest("_raw_spin_lock", lock)
            owner, following = struct.unpack("<HH", guest.machine.read(lock, 4))
            if facts(guest.machine.arch).run.ticket_locks:
                assert (owner, following) == (turn, turn + 1)
                guest.machine.write(lock, struct.pack("<H", owner + 1))  # a ticket lock's unlock
            else:
                assert (owner, following) == (1, 0)
                guest.machine.write(lock, b"\0")  # a queued lock's


def test_mutex_init_makes_an_empty_list(guest):
    """The waiters' list is empty, which is a list that points at itself."""
    with guest.memory(b"\xff" * 32) as lock:
        guest("__mutex_init", lock, "name", 0)
        assert struct.unpack("<4Q", guest.machine.read(lock, 32)) == (0, 0, lock + 16, lock + 16)
        assert guest("mutex_is_locked", lock, returns="bool") == 0
        guest("mutex_lock", lock)
        assert guest("mutex_is_locked", lock, returns="bool") == 1


def test_semaphore_counts(guest):
    """Each down takes from the count until nothing is left."""
    with guest.memory(24) as sem:
        guest.machine.write(sem + 4, struct.pack("<I", 1))
        guest("down", sem)
        assert guest("down_trylock", sem, returns="int") == 1
        with guest.fails(FaultKind.PANIC, "deadlock"):
            guest("down", sem)
        guest("up", sem)
        assert guest("down_trylock", sem, returns="int") == 0


def test_rcu_callbacks_wait_for_readers(guest):
    """A callback runs once, after a grace period, never while a reader reads."""
    ran = []
    func = guest.callback("api_rcu", ran.append, "void api_rcu(void *head)")
    with guest.memory(16) as head:
        guest("__rcu_read_lock")
        guest("call_rcu", head, func)
        with guest.fails(FaultKind.PANIC, "deadlock", "rcu_read_lock"):
            guest("synchronize_rcu")
        assert ran == []
        guest("__rcu_read_unlock")
        guest("synchronize_rcu")
        guest("rcu_barrier")
        assert ran == [head]
    block = guest("__kmalloc_noprof", 32, GFP_KERNEL)
    guest("__rcu_read_lock")
    guest("kvfree_call_rcu", block, block)
    assert guest("ksize", block)
    guest("__rcu_read_unlock")
    assert guest("ksize", block) == 0
    with guest.fails(FaultKind.PANIC, "rcu_read_unlock"):
        guest("__rcu_read_unlock")


def test_the_stack_protector_has_its_own_fault(guest):
    """__stack_chk_fail says what happened and who called it."""
    with guest.fails(FaultKind.STACK_PROTECTOR, "canary"):
        guest("__stack_chk_fail")
