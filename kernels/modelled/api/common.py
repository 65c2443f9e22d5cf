# SPDX-License-Identifier: GPL-2.0-or-later
"""What entries of every subsystem need: to stop the guest, and to remember between calls.

State belongs to one kernel and dies with it. Whatever guest code could look at (lock words,
reference counts, list links) stays in guest memory in the kernel's own layout instead, so
that a module's inlined fast path and an entry always agree.
"""

from __future__ import annotations

import errno as _errno
import functools
from collections.abc import Callable, Iterator, Sized
from typing import Any, NoReturn, TypeVar, cast

import attrs

from allocator.types import ADDRESS_MASK
from emulator.faults import Fault, FaultKind, Stopped
from kernels.modelled.bounds import PIECE
from kernels.modelled.costs import ENTRY
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import PREV
from kernels.modelled.table import function
from kernels.prototypes import parse

INT_MAX = (1 << 31) - 1
SOME = 4096  # bytes that are worked on one by one between two looks at the limits
UNLIMITED = 1 << 64  # a length that no string reaches

# include/linux/errno.h: errors that user space never sees.
_KERNEL_ERRNO = {"ERESTARTSYS": 512, "EPROBE_DEFER": 517, "ENOTSUPP": 524, "EIOCBQUEUED": 529}

_INT = parse("int result(void)").result
_State = TypeVar("_State")


@attrs.frozen
class Deferred:
    """Something put off.

    Parameters
    ----------
    name
        What it is, for messages.
    act
        What to do.
    target
        Returns the guest function that it will call; 0 for none.
    undo
        Lets guest memory say again that nothing is put off.
    """

    name: str
    act: Callable[[Kernel], object]
    target: Callable[[Kernel], int] = lambda _k: 0
    undo: Callable[[Kernel], object] = lambda _k: None


def stop(
    k: Kernel, reason: str, kind: FaultKind = FaultKind.PANIC, cause: Stopped | None = None
) -> NoReturn:
    """Stop the guest in the kernel function that it called: say what is wrong, and who called."""
    pc = k.cpu.read(k.arch.runs.calling.program_counter)
    raise Fault(kind, pc, k.caller(), reason=reason, cause=cause)


def state(k: Kernel, kind: type[_State]) -> _State:
    """Return this kernel's own `kind`, made at its first use.

    The entries that its containers have by now are the guest's to pay, `COST` bytes each.
    """
    found = k.states.get(kind)
    if not isinstance(found, kind):
        found = k.states[kind] = kind()
    containers, cost = _containers(cast("Any", kind))
    entries = sum(len(getattr(found, name)) for name in containers) * cost
    if entries != k.entries.get(kind, 0):
        k.account(kind, entries)
    return found


@functools.cache
def _containers(kind: Any) -> tuple[tuple[str, ...], int]:
    """Return the fields of a subsystem's memory that grow, and what an entry of them costs."""
    made = kind()
    names = [field.name for field in attrs.fields(kind)] if attrs.has(kind) else []
    found = (n for n in names if isinstance(getattr(made, n), Sized))
    return tuple(found), getattr(kind, "COST", ENTRY)


def errno(name: str) -> int:
    """Return what a function returns that fails with an error of include/uapi/asm-generic."""
    return -(_KERNEL_ERRNO.get(name) or getattr(_errno, name))


def _return_zero(_k: Kernel, *_args: object) -> int:
    return 0


def nothing(*prototypes: str) -> None:
    """Declare functions that succeed and have nothing to do on this machine: they return 0."""
    function(*prototypes)(_return_zero)


def signed_int(raw: int) -> int:
    """Return the C int that a guest function's 64-bit result register holds."""
    return _INT.from_register(raw)


def pieces(k: Kernel, address: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield (address, contents) of [address, address + size), touching no page early."""
    return k.pieces(address, size)


def each_byte(k: Kernel, address: int, size: int) -> Iterator[int]:
    """Yield the bytes of [address, address + size), each for the price of a load."""
    for _, piece in k.pieces(address, size):
        for at in range(0, len(piece), SOME):
            some = piece[at : at + SOME]
            k.spend(len(some))
            yield from some


def copy(k: Kernel, dest: int, src: int, size: int) -> None:
    """Move memory in pieces; the two may overlap."""
    if size <= PIECE:
        if size:
            k.memory.write(dest, k.memory.read(src, size))
    elif src < dest < src + size:
        for end in range(size, 0, -PIECE):
            start = max(end - PIECE, 0)
            copy(k, dest + start, src + start, end - start)
    else:
        for at, piece in k.pieces(src, size):
            k.memory.write(dest + ((at - src) & ADDRESS_MASK), piece)


def fill(k: Kernel, address: int, size: int, byte: int) -> None:
    """Store `size` times `byte`; a size beyond what is mapped faults instead of being built."""
    pattern = bytes([byte & 0xFF]) * min(size, PIECE)
    for done in range(0, size, PIECE):
        k.memory.write(address + done, pattern[: size - done])


def words(*values: int) -> bytes:
    """Return 64-bit words as they stand in memory, of whatever was computed."""
    return b"".join((value & ADDRESS_MASK).to_bytes(8, "little") for value in values)


def text(k: Kernel, address: int, limit: int = UNLIMITED) -> bytes:
    """Return the string at `address` without its NUL, at most `limit` bytes."""
    return k.string(address, limit)


# Lists: struct list_head ---------------------------------------------------


def nodes(k: Kernel, head: int) -> Iterator[int]:
    """Yield the nodes of a list."""
    node = k.word(head)
    while node != head:
        yield node
        node = k.word(node)


def empty_list(k: Kernel, head: int) -> None:
    """Make a list, or a node that is in none."""
    k.memory.write(head, words(head, head))


def last_node(k: Kernel, head: int) -> int:
    """Return the last node of a list; the head of an empty one."""
    return k.word(head + PREV)


def list_insert(k: Kernel, node: int, before: int) -> None:
    """Put a node behind the node (or head) `before`."""
    after = k.word(before)
    k.memory.write(node, words(after, before))
    k.store(before, node)
    k.store(after + PREV, node)


def list_del_init(k: Kernel, node: int) -> None:
    """Take a node out of the list it is in, if it is in one."""
    after, before = k.word(node), k.word(node + PREV)
    if after and after != node:
        k.store(before, after)
        k.store(after + PREV, before)
        empty_list(k, node)
