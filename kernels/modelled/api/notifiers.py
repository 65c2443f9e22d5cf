# SPDX-License-Identifier: GPL-2.0-or-later
"""Notifier chains (kernel/notifier.c): blocks in guest memory, sorted by priority, really called.

A head is a lock and a pointer to the first block; only where the pointer lies differs.
"""

from __future__ import annotations

from collections.abc import Iterator

from kernels.modelled.api.common import errno
from kernels.modelled.api.registration import enter
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import OffsetOf, offset_of, size_of, view
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import data, function

STOP_MASK = 0x8000
declare("atomic_notifier_head", "lock head")
declare("blocking_notifier_head", "rwsem head")
declare("raw_notifier_head", "head")
_KINDS = ("atomic", "blocking", "raw")
_CHAINS = "panic_notifier_list reboot_notifier_list".split()

for _name in _CHAINS:
    data(_name, size_of("blocking_notifier_head"))


def blocks(k: Kernel, at: int) -> Iterator[tuple[int, int]]:
    """Yield (address of the pointer, block) along a chain whose first pointer is at `at`."""
    while block := k.word(at):
        yield at, block
        at = view(k, "notifier_block", block).at("next")


def _insert(k: Kernel, at: int, block: int, *, unique: bool = False) -> int:
    found = view(k, "notifier_block", block)
    priority = found.number("priority")
    for pointer, other in blocks(k, at):
        if other == block:
            return errno("EEXIST")
        theirs = view(k, "notifier_block", other).number("priority")
        if theirs == priority and unique:
            return errno("EBUSY")
        if theirs < priority:
            at = pointer
            break
        at = view(k, "notifier_block", other).at("next")
    found.put("next", k.word(at))
    k.store(at, block)
    enter(k, "notifier", "notifier_block", block, name="", fields=("priority",))
    return 0


def _take_out(k: Kernel, at: int, block: int) -> int:
    for pointer, other in blocks(k, at):
        if other == block:
            k.store(pointer, view(k, "notifier_block", block).number("next"))
            k.registry.remove("notifier", block)
            return 0
    return errno("ENOENT")


def _call(k: Kernel, at: int, event: int, argument: int) -> int:
    result = 0  # NOTIFY_DONE
    for _, block in list(blocks(k, at)):
        callback = view(k, "notifier_block", block).number("notifier_call")
        result = k.call(callback, block, event, argument) & 0xFFFF_FFFF
        if result & STOP_MASK:
            break
    return result


def _kind(name: str, first: OffsetOf) -> None:
    head = f"struct {name}_notifier_head *nh"

    @function(f"int {name}_notifier_chain_register({head}, struct notifier_block *n)")
    def _register(k: Kernel, at: int, block: int) -> int:
        return _insert(k, at + first(k), block)

    if name != "raw":

        @function(
            f"int {name}_notifier_chain_register_unique_prio({head}, struct notifier_block *n)"
        )
        def _register_unique(k: Kernel, at: int, block: int) -> int:
            return _insert(k, at + first(k), block, unique=True)

    @function(f"int {name}_notifier_chain_unregister({head}, struct notifier_block *n)")
    def _unregister(k: Kernel, at: int, block: int) -> int:
        return _take_out(k, at + first(k), block)

    @function(f"int {name}_notifier_call_chain({head}, unsigned long val, void *v)")
    def _call_chain(k: Kernel, at: int, event: int, argument: int) -> int:
        return _call(k, at + first(k), event, argument)


for _name in _KINDS:
    _kind(_name, offset_of(f"{_name}_notifier_head", "head"))
