# SPDX-License-Identifier: GPL-2.0-or-later
"""Wait queues and completions (kernel/sched/wait.c, wait_bit.c, swait.c, completion.c).

The lists of who waits are in guest memory, since wait_event() is inlined around them: a
loop that enters its queue, looks at its condition and calls schedule(). Here is no real
parallelism to lose a wake-up to, so the shared queues for bits and variables are one queue,
whose waiters all look again.
"""

from __future__ import annotations

from kernels.modelled.api.common import (
    empty_list,
    errno,
    last_node,
    list_del_init,
    list_insert,
    nodes,
    state,
    words,
)
from kernels.modelled.api.sched import (
    MAX_SCHEDULE_TIMEOUT,
    Scheduler,
    block,
    current_thread,
    schedule_timeout,
    wake,
)
from kernels.modelled.api.time import NSEC_PER_JIFFY, now
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import made, offset_of, size_of
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import data, function

# include/linux/wait.h, wait_bit.h, swait.h: what the heads and entries of queues have in common.
declare("wait_queue_head", "head")
declare("wait_queue_entry", "flags private func entry")
declare("wait_bit_key", "flags bit_nr")
declare("wait_bit_queue_entry", "key wq_entry")
declare("swait_queue_head", "lock task_list")
declare("swait_queue", "task task_list")
declare("completion", "done wait")
HEAD, DONE = offset_of("wait_queue_head", "head"), offset_of("completion", "done")
SWAIT_TASK, SWAIT_LIST = (offset_of("swait_queue", member) for member in ("task", "task_list"))
ENTRY_FLAGS, ENTRY_TASK, ENTRY_FUNCTION, ENTRY_LIST = (
    offset_of("wait_queue_entry", member) for member in ("flags", "private", "func", "entry")
)
EXCLUSIVE, WOKEN = 1, 2
KEY_SIZE = offset_of("wait_bit_queue_entry", "wq_entry")
ALL = 1 << 30


def init_head(k: Kernel, head: int) -> None:
    """Make a wait queue empty."""
    k.memory.write(head, bytes(k.layouts.size_of("wait_queue_head")))
    empty_list(k, head + HEAD(k))


@function(
    "void __init_waitqueue_head(struct wait_queue_head *wq_head, const char *name,"
    " struct lock_class_key *key)",
    "void __init_swait_queue_head(struct swait_queue_head *q, const char *name,"
    " struct lock_class_key *key)",
)
def _init_head(k: Kernel, head: int, _name: int, _key: int) -> None:
    init_head(k, head)


@function("void init_wait_entry(struct wait_queue_entry *wq_entry, int flags)")
def _init_wait_entry(k: Kernel, entry: int, flags: int) -> None:
    func = k.address("autoremove_wake_function")
    members = {"flags": flags, "private": k.current, "func": func}
    k.memory.write(entry, made(k, "wait_queue_entry", members))
    empty_list(k, entry + ENTRY_LIST(k))


def _enter(k: Kernel, head: int, entry: int, *, last: bool) -> bool:
    """Put an entry in the queue unless it is in one; return whether the queue was empty."""
    link = entry + ENTRY_LIST(k)
    was_empty = k.word(head + HEAD(k)) == head + HEAD(k)
    if k.word(link) in (link, 0):
        list_insert(k, link, last_node(k, head + HEAD(k)) if last else head + HEAD(k))
    return was_empty


@function(
    "void prepare_to_wait(struct wait_queue_head *wq_head, struct wait_queue_entry *wq_entry,"
    " int state)"
)
def _prepare_to_wait(k: Kernel, head: int, entry: int, _state: int) -> None:
    k.store(entry + ENTRY_FLAGS(k), k.word(entry + ENTRY_FLAGS(k), 4) & ~EXCLUSIVE, 4)
    _enter(k, head, entry, last=False)


@function(
    "bool prepare_to_wait_exclusive(struct wait_queue_head *wq_head,"
    " struct wait_queue_entry *wq_entry, int state)"
)
def _prepare_to_wait_exclusive(k: Kernel, head: int, entry: int, _state: int) -> int:
    k.store(entry + ENTRY_FLAGS(k), k.word(entry + ENTRY_FLAGS(k), 4) | EXCLUSIVE, 4)
    return int(_enter(k, head, entry, last=True))


@function(
    "long prepare_to_wait_event(struct wait_queue_head *wq_head,"
    " struct wait_queue_entry *wq_entry, int state)"
)
def _prepare_to_wait_event(k: Kernel, head: int, entry: int, _state: int) -> int:
    _enter(k, head, entry, last=bool(k.word(entry + ENTRY_FLAGS(k), 4) & EXCLUSIVE))
    return 0  # no signal is ever pending


@function("void finish_wait(struct wait_queue_head *wq_head, struct wait_queue_entry *wq_entry)")
def _finish_wait(k: Kernel, _head: int, entry: int) -> None:
    list_del_init(k, entry + ENTRY_LIST(k))


@function("void add_wait_queue(struct wait_queue_head *wq_head, struct wait_queue_entry *entry)")
def _add_wait_queue(k: Kernel, head: int, entry: int) -> None:
    k.store(entry + ENTRY_FLAGS(k), k.word(entry + ENTRY_FLAGS(k), 4) & ~EXCLUSIVE, 4)
    list_insert(k, entry + ENTRY_LIST(k), head + HEAD(k))


@function(
    "void add_wait_queue_exclusive(struct wait_queue_head *wq_head, struct wait_queue_entry *entry)"
)
def _add_wait_queue_exclusive(k: Kernel, head: int, entry: int) -> None:
    k.store(entry + ENTRY_FLAGS(k), k.word(entry + ENTRY_FLAGS(k), 4) | EXCLUSIVE, 4)
    list_insert(k, entry + ENTRY_LIST(k), last_node(k, head + HEAD(k)))


@function("void remove_wait_queue(struct wait_queue_head *wq_head, struct wait_queue_entry *entry)")
def _remove_wait_queue(k: Kernel, _head: int, entry: int) -> None:
    list_del_init(k, entry + ENTRY_LIST(k))


# Waking ------------------------------------------------------------------------------------


def wake_up(k: Kernel, head: int, mode: int, count: int, key: int) -> int:
    """Call the function of each waiter, until `count` exclusive ones were woken (0: all)."""
    if not k.word(head + HEAD(k)):  # never initialised: a zeroed structure
        return 0
    left = count or ALL
    for link in list(nodes(k, head + HEAD(k))):
        entry = link - ENTRY_LIST(k)
        exclusive = k.word(entry + ENTRY_FLAGS(k), 4) & EXCLUSIVE
        woken = k.call(k.word(entry + ENTRY_FUNCTION(k)), entry, mode, 0, key)
        if woken & 0xFFFF_FFFF and exclusive:
            left -= 1
            if not left:
                break
    return 0


@function(
    "int __wake_up(struct wait_queue_head *wq_head, unsigned int mode, int nr, void *key)",
)
def _wake_up(k: Kernel, head: int, mode: int, count: int, key: int) -> int:
    return wake_up(k, head, mode, count, key)


@function(
    "void __wake_up_sync(struct wait_queue_head *wq_head, unsigned int mode)",
)
def _wake_up_sync(k: Kernel, head: int, mode: int) -> None:
    wake_up(k, head, mode, 1, 0)


@function(
    "void __wake_up_sync_key(struct wait_queue_head *wq_head, unsigned int mode, void *key)",
    "void __wake_up_locked_key(struct wait_queue_head *wq_head, unsigned int mode, void *key)",
)
def _wake_up_key(k: Kernel, head: int, mode: int, key: int) -> None:
    wake_up(k, head, mode, 1, key)


@function("void __wake_up_locked(struct wait_queue_head *wq_head, unsigned int mode, int nr)")
def _wake_up_locked(k: Kernel, head: int, mode: int, count: int) -> None:
    wake_up(k, head, mode, count, 0)


@function(
    "int default_wake_function(struct wait_queue_entry *entry, unsigned int mode, int flags,"
    " void *key)"
)
def _default_wake(k: Kernel, entry: int, _mode: int, _flags: int, _key: int) -> int:
    return int(wake(k, k.word(entry + ENTRY_TASK(k))))


@function(
    "int autoremove_wake_function(struct wait_queue_entry *entry, unsigned int mode, int sync,"
    " void *key)",
    "int var_wake_function(struct wait_queue_entry *entry, unsigned int mode, int sync, void *k)",
    "int wake_bit_function(struct wait_queue_entry *entry, unsigned int mode, int sync, void *k)",
)
def _autoremove_wake(k: Kernel, entry: int, _mode: int, _flags: int, _key: int) -> int:
    woken = wake(k, k.word(entry + ENTRY_TASK(k)))
    if woken:
        list_del_init(k, entry + ENTRY_LIST(k))
    return int(woken)


@function(
    "int woken_wake_function(struct wait_queue_entry *entry, unsigned int mode, int sync, void *k)"
)
def _woken_wake(k: Kernel, entry: int, _mode: int, _flags: int, _key: int) -> int:
    k.store(entry + ENTRY_FLAGS(k), k.word(entry + ENTRY_FLAGS(k), 4) | WOKEN, 4)
    return int(wake(k, k.word(entry + ENTRY_TASK(k))))


@function("long wait_woken(struct wait_queue_entry *entry, unsigned int mode, long timeout)")
def _wait_woken(k: Kernel, entry: int, _mode: int, timeout: int) -> int:
    thread = current_thread(k)
    if not k.word(entry + ENTRY_FLAGS(k), 4) & WOKEN and not (thread and thread.should_stop):
        timeout = schedule_timeout(k, timeout)
    k.store(entry + ENTRY_FLAGS(k), k.word(entry + ENTRY_FLAGS(k), 4) & ~WOKEN, 4)
    return timeout


# Bits and variables ------------------------------------------------------------------------


def _bit_wait_table(k: Kernel) -> bytes:
    link = k.address("bit_wait_table") + HEAD(k)
    return made(k, "wait_queue_head", {"head": words(link, link)})


data("bit_wait_table", size_of("wait_queue_head"), fill=_bit_wait_table)


@function(
    "struct wait_queue_head *bit_waitqueue(unsigned long *word, int bit)",
    "struct wait_queue_head *__var_waitqueue(void *p)",
)
def _shared_queue(k: Kernel, *_what: int) -> int:
    return k.address("bit_wait_table")


@function("void init_wait_var_entry(struct wait_bit_queue_entry *entry, void *var, int flags)")
def _init_wait_var_entry(k: Kernel, entry: int, var: int, flags: int) -> None:
    k.memory.write(entry, made(k, "wait_bit_queue_entry", {"key.flags": var, "key.bit_nr": -1}))
    _init_wait_entry(k, entry + KEY_SIZE(k), flags)


@function(
    "void wake_up_bit(unsigned long *word, int bit)",
    "void wake_up_var(void *var)",
)
def _wake_up_shared(k: Kernel, *_what: int) -> None:
    wake_up(k, k.address("bit_wait_table"), 3, 0, 0)


def _bit(k: Kernel, word: int, bit: int) -> bool:
    return bool(k.word(word + bit // 8, 1) >> bit % 8 & 1)


@function(
    "int out_of_line_wait_on_bit(unsigned long *word, int bit, void *action, unsigned int mode)"
)
def _wait_on_bit(k: Kernel, word: int, bit: int, _action: int, _mode: int) -> int:
    block(k, lambda: not _bit(k, word, bit))
    return 0


@function(
    "int out_of_line_wait_on_bit_timeout(unsigned long *word, int bit, void *action,"
    " unsigned int mode, unsigned long timeout)"
)
def _wait_on_bit_timeout(
    k: Kernel, word: int, bit: int, _action: int, _mode: int, timeout: int
) -> int:
    until = now(k) + timeout * NSEC_PER_JIFFY
    return 0 if block(k, lambda: not _bit(k, word, bit), until) else errno("EAGAIN")


@function(
    "int out_of_line_wait_on_bit_lock(unsigned long *word, int bit, void *action,"
    " unsigned int mode)"
)
def _wait_on_bit_lock(k: Kernel, word: int, bit: int, action: int, mode: int) -> int:
    _wait_on_bit(k, word, bit, action, mode)
    at = word + bit // 8
    k.store(at, k.word(at, 1) | 1 << bit % 8, 1)
    return 0


@function(
    "int bit_wait(struct wait_bit_key *key, int mode)",
    "int bit_wait_io(struct wait_bit_key *key, int mode)",
)
def _bit_wait(k: Kernel, _key: int, _mode: int) -> int:
    schedule_timeout(k, MAX_SCHEDULE_TIMEOUT)
    return 0


# Simple wait queues: the entry is a task and a list node -----------------------------------


def _swake(k: Kernel, head: int, *, every: bool) -> None:
    for node in list(nodes(k, head + HEAD(k))):
        wake(k, k.word(node - SWAIT_LIST(k) + SWAIT_TASK(k)))
        list_del_init(k, node)
        if not every:
            break


@function("void swake_up_one(struct swait_queue_head *q)")
def _swake_up_one(k: Kernel, head: int) -> None:
    _swake(k, head, every=False)


@function("void swake_up_all(struct swait_queue_head *q)")
def _swake_up_all(k: Kernel, head: int) -> None:
    _swake(k, head, every=True)


@function(
    "long prepare_to_swait_event(struct swait_queue_head *q, struct swait_queue *wait, int state)"
)
def _prepare_to_swait(k: Kernel, head: int, wait: int, _state: int) -> int:
    k.store(wait + SWAIT_TASK(k), k.current)
    if k.word(wait + SWAIT_LIST(k)) == wait + SWAIT_LIST(k):
        list_insert(k, wait + SWAIT_LIST(k), last_node(k, head + HEAD(k)))
    return 0


@function("void finish_swait(struct swait_queue_head *q, struct swait_queue *wait)")
def _finish_swait(k: Kernel, _head: int, wait: int) -> None:
    list_del_init(k, wait + SWAIT_LIST(k))


@function("int rcuwait_wake_up(struct rcuwait *w)")
def _rcuwait_wake_up(k: Kernel, waiter: int) -> int:
    task = k.word(waiter)
    return int(wake(k, task)) if task else 0


# Completions -------------------------------------------------------------------------------
# struct completion: a count, UINT_MAX / 2 after complete_all(); its queue is not used here.

FOREVER = 0x7FFF_FFFF


@function("void complete(struct completion *x)")
def complete(k: Kernel, completion: int) -> None:
    """Let one waiter go on."""
    done = k.word(completion + DONE(k), 4)
    if done != FOREVER:
        k.store(completion + DONE(k), done + 1, 4)


@function("void complete_all(struct completion *x)")
def _complete_all(k: Kernel, completion: int) -> None:
    k.store(completion + DONE(k), FOREVER, 4)


@function("void complete_and_exit(struct completion *x, long code)")
def _complete_and_exit(k: Kernel, completion: int, _code: int) -> None:
    complete(k, completion)
    scheduler = state(k, Scheduler)
    if scheduler.thread is not None:
        block(k, lambda: False)  # never goes on


def _wait_for(k: Kernel, completion: int, until: int | None) -> bool:
    if not block(k, lambda: k.word(completion + DONE(k), 4) != 0, until):
        return False
    done = k.word(completion + DONE(k), 4)
    if done != FOREVER:
        k.store(completion + DONE(k), done - 1, 4)
    return True


@function(
    "void wait_for_completion(struct completion *x)",
    "void wait_for_completion_io(struct completion *x)",
    "int wait_for_completion_interruptible(struct completion *x)",
    "int wait_for_completion_killable(struct completion *x)",
)
def _wait_for_completion(k: Kernel, completion: int) -> int:
    _wait_for(k, completion, None)
    return 0


@function(
    "unsigned long wait_for_completion_timeout(struct completion *x, unsigned long timeout)",
    "unsigned long wait_for_completion_io_timeout(struct completion *x, unsigned long timeout)",
    "long wait_for_completion_interruptible_timeout(struct completion *x, unsigned long timeout)",
    "long wait_for_completion_killable_timeout(struct completion *x, unsigned long timeout)",
)
def _wait_for_completion_timeout(k: Kernel, completion: int, timeout: int) -> int:
    until = now(k) + timeout * NSEC_PER_JIFFY
    if not _wait_for(k, completion, until):
        return 0
    return max((until - now(k)) // NSEC_PER_JIFFY, 1)


@function("bool try_wait_for_completion(struct completion *x)")
def _try_wait_for_completion(k: Kernel, completion: int) -> int:
    return int(k.word(completion + DONE(k), 4) != 0 and _wait_for(k, completion, None))


@function("bool completion_done(struct completion *x)")
def _completion_done(k: Kernel, completion: int) -> int:
    return int(k.word(completion + DONE(k), 4) != 0)
