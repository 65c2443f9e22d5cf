# SPDX-License-Identifier: GPL-2.0-or-later
"""User memory: what copies between it and the kernel, and Python's way to have some.

There are no processes here, but a system call's arguments have to lie somewhere that is not
the kernel's. So the lower half of the address space has memory for as long as somebody uses
it, with nothing mapped around it, and kernel functions that copy stop at the first page that
the user could not access, as the kernel's do (lib/usercopy.c, lib/strncpy_from_user.c,
lib/strnlen_user.c): a wrong user address is the caller's error, never a fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import attrs

from allocator import AllocationError, IntervalSet, Prot
from allocator.types import Interval, align_down, align_up
from kernels.modelled.api.common import errno, fill, pieces, state
from kernels.modelled.api.memory import duplicate, kmalloc_max_size
from kernels.modelled.kernel import Kernel
from kernels.modelled.table import function

USER = Interval(1 << 28, 1 << 32)  # below TASK_SIZE of every architecture
LOWER_HALF = 1 << 63
GFP_USER = 0xCC0


@attrs.define
class _Space:
    """The user's address space; what is mapped in it does not go with a load that failed."""

    lasting: ClassVar[bool] = True
    free: IntervalSet = attrs.field(factory=lambda: IntervalSet([USER]))


@contextmanager
def user_memory(k: Kernel, contents: bytes | int) -> Iterator[int]:
    """Give user memory that holds `contents`, or that many zeros, for a while.

    It ends where its page does, as far as alignment to 16 bytes lets, so that what goes on
    behind it is noticed. AllocationError where there is no room.
    """
    size = contents if isinstance(contents, int) else len(contents)
    page = k.memory.page_size
    space, mapped = state(k, _Space).free, align_up(max(size, 1), page)
    start = space.find(mapped + 2 * page, alignment=page)
    if start is None:
        raise AllocationError("user memory", size, (USER,), "no room left")
    held = Interval(start, start + mapped + 2 * page)
    first = start + page
    k.memory.populate(first, mapped, Prot.RW)
    space.remove(held)
    try:
        address = first + align_down(mapped - size, 16)
        if not isinstance(contents, int) and contents:
            k.memory.write(address, contents)
        yield address
    finally:
        k.memory.depopulate(first, mapped)
        space.add(held)


def reachable(k: Kernel, address: int, size: int, right: Prot) -> int:
    """Return how many of `size` bytes at `address` the user has before one that it has not."""
    done, page = 0, k.memory.page_size
    while done < size and address + size <= LOWER_HALF:
        found = k.memory.translate(address + done)
        if found is None or not found.prot & right:
            break
        done = min(size, align_down(address + done, page) + page - address)
    return done


@function(
    "unsigned long __arch_copy_from_user(void *to, const void __user *from, unsigned long n)",
    "unsigned long __asm_copy_from_user(void *to, const void __user *from, unsigned long n)",
    "long __copy_user_nocache(void *to, const void __user *from, unsigned int n)",
)
def raw_copy_from_user(k: Kernel, to: int, source: int, size: int) -> int:
    """Copy what can be; return how many bytes could not be."""
    done = reachable(k, source, size, Prot.R)
    for at, piece in pieces(k, source, done):
        k.memory.write(to + at - source, piece)
    return size - done


@function("unsigned long _copy_from_user(void *to, const void __user *from, unsigned long n)")
def copy_from_user(k: Kernel, to: int, source: int, size: int) -> int:
    """Copy what can be, and store zeros for the rest; return how many bytes that are."""
    left = raw_copy_from_user(k, to, source, size)
    fill(k, to + size - left, left, 0)
    return left


@function(
    "unsigned long _copy_to_user(void __user *to, const void *from, unsigned long n)",
    "unsigned long __arch_copy_to_user(void __user *to, const void *from, unsigned long n)",
    "unsigned long __asm_copy_to_user(void __user *to, const void *from, unsigned long n)",
)
def copy_to_user(k: Kernel, to: int, source: int, size: int) -> int:
    """Copy what can be; return how many bytes could not be."""
    done = reachable(k, to, size, Prot.W)
    for at, piece in pieces(k, source, done):
        k.memory.write(to + at - source, piece)
    return size - done


@function("long copy_from_user_nofault(void *to, const void __user *from, size_t n)")
def _copy_from_user_nofault(k: Kernel, to: int, source: int, size: int) -> int:
    return errno("EFAULT") if raw_copy_from_user(k, to, source, size) else 0


@function("long copy_to_user_nofault(void __user *to, const void *from, size_t n)")
def _copy_to_user_nofault(k: Kernel, to: int, source: int, size: int) -> int:
    return errno("EFAULT") if copy_to_user(k, to, source, size) else 0


@function(
    "unsigned long clear_user(void __user *to, unsigned long n)",
    "unsigned long __clear_user(void __user *to, unsigned long n)",
    "unsigned long __arch_clear_user(void __user *to, unsigned long n)",
)
def _clear_user(k: Kernel, to: int, size: int) -> int:
    done = reachable(k, to, size, Prot.W)
    fill(k, to, done, 0)
    return size - done


@function("int check_zeroed_user(const void __user *from, size_t size)")
def _check_zeroed_user(k: Kernel, source: int, size: int) -> int:
    if reachable(k, source, size, Prot.R) < size:
        return errno("EFAULT")
    return int(not any(any(piece) for _, piece in pieces(k, source, size)))


# Strings: bounded by a count, and by what the user has -----------------------------------------


def _string(k: Kernel, address: int, most: int) -> bytes | None:
    """Return at most `most` bytes of a string, with its NUL where it is among them.

    None where the user has not all of it.
    """
    found, done, page = b"", 0, k.memory.page_size
    while done < most:
        step = min(most - done, page - (address + done) % page)
        if reachable(k, address + done, step, Prot.R) < step:
            return None
        text, end, _ = k.memory.read(address + done, step).partition(b"\0")
        found += text + end
        if end:
            break
        done += step
    return found


@function("long strncpy_from_user(char *dst, const char __user *src, long count)")
def _strncpy_from_user(k: Kernel, to: int, source: int, count: int) -> int:
    found = _string(k, source, max(count, 0))
    if found is None:
        return errno("EFAULT")
    k.memory.write(to, found)
    return len(found) - found.endswith(b"\0")


@function("long strnlen_user(const char __user *str, long n)")
def _strnlen_user(k: Kernel, source: int, count: int) -> int:
    found = _string(k, source, max(count, 0))
    if not found:
        return 0
    return len(found) + (not found.endswith(b"\0"))


@function("char *strndup_user(const char __user *s, long n)")
def _strndup_user(k: Kernel, source: int, count: int) -> int:
    found = _string(k, source, max(count, 0))
    if not found:
        return errno("EFAULT")
    if not found.endswith(b"\0"):
        return errno("EINVAL")
    return duplicate(k, found, GFP_USER) or errno("ENOMEM")


# Copies in memory of the kernel's own (mm/util.c) ------------------------------------------------


def _memdup(k: Kernel, source: int, size: int, end: bytes = b"") -> int:
    if size > kmalloc_max_size(k):
        return errno("ENOMEM")
    if reachable(k, source, size, Prot.R) < size:
        return errno("EFAULT")
    found = (k.memory.read(source, size) if size else b"") + end
    return duplicate(k, found, GFP_USER) or errno("ENOMEM")


@function(
    "void *memdup_user(const void __user *src, size_t len)",
    "void *vmemdup_user(const void __user *src, size_t len)",
)
def _memdup_user(k: Kernel, source: int, size: int) -> int:
    return _memdup(k, source, size)


@function("void *memdup_user_nul(const void __user *src, size_t len)")
def _memdup_user_nul(k: Kernel, source: int, size: int) -> int:
    return _memdup(k, source, size, b"\0")


# A buffer as a file (fs/libfs.c) ---------------------------------------------------------------


@function(
    "ssize_t simple_read_from_buffer(void __user *to, size_t count, loff_t *ppos,"
    " const void *from, size_t available)"
)
def _simple_read(k: Kernel, to: int, count: int, place: int, source: int, size: int) -> int:
    at = _place(k, place)
    if at < 0:
        return errno("EINVAL")
    count = min(count, max(size - at, 0))
    return _moved(k, place, at, count, copy_to_user(k, to, source + at, count))


@function(
    "ssize_t simple_write_to_buffer(void *to, size_t available, loff_t *ppos,"
    " const void __user *from, size_t count)"
)
def _simple_write(k: Kernel, to: int, size: int, place: int, source: int, count: int) -> int:
    at = _place(k, place)
    if at < 0:
        return errno("EINVAL")
    count = min(count, max(size - at, 0))
    return _moved(k, place, at, count, copy_from_user(k, to + at, source, count))


def _place(k: Kernel, place: int) -> int:
    value = k.word(place)
    return value - (1 << 64) if value >> 63 else value


def _moved(k: Kernel, place: int, at: int, count: int, left: int) -> int:
    """Move a file's position on by what was copied of `count` bytes, and return that."""
    if not count:
        return 0
    if left == count:
        return errno("EFAULT")
    k.store(place, at + count - left)
    return count - left
