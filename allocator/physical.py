# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory: one host buffer, handed out in frames by a buddy allocator.

A large leaf needs 2 MiB (with pages of 4 KiB) that are contiguous *and* aligned in physical memory, and a kernel
that has run for a while may have none: vmalloc then silently maps 512 small pages instead
(mm/vmalloc.c, VM_ALLOW_HUGE_VMAP is only a wish). A design's large leaves are therefore
worth reporting only if contiguity is modelled, which is what the buddy system is for.

The buffer is anonymous memory without reservation: a gigabyte that nobody touches costs
nothing. An emulator maps it as a whole (`address`), so a guest store and a host write meet
in the same bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from allocator.errors import AllocationError, LifecycleError
from allocator.types import GIB, Paging, size_text

_PRESENT, _SWAPPED = 1 << 63, 1 << 62  # of /proc/self/pagemap
FILLED = 1 << 20  # bytes that are built at once to fill memory
FEW = 24  # numbers that Python compares sooner than numpy


def repeat(pattern: bytes, size: int, phase: int = 0) -> bytes:
    """Return `size` bytes of `pattern` repeated, starting `phase` bytes into it."""
    phase %= len(pattern)
    return (pattern * ((phase + size) // len(pattern) + 1))[phase : phase + size]


def cuts_of(numbers: NDArray[np.uint64], step: int) -> list[int]:
    """Return where stretches begin whose numbers are `step` apart, and where the last one ends."""
    count = len(numbers)
    if count > FEW:
        broken = numbers[1:] - numbers[:-1] != step
        return [0, *(broken.nonzero()[0] + 1).tolist(), count]
    few = numbers.tolist()
    return [0, *(at for at in range(1, count) if few[at] - few[at - 1] != step), count]


class PhysicalMemory:
    """Frames of a page and naturally aligned runs of them, backed by one host buffer.

    Parameters
    ----------
    size
        Bytes; a multiple of a page. Frame 0 is never handed out, so that a physical
        address of 0 is always a mistake.
    paging
        How large a page is, and what a large leaf maps; 4 KiB and 2 MiB by default.
    """

    def __init__(self, size: int = GIB, *, paging: Paging | None = None) -> None:
        self.paging = paging or Paging()
        self._page = page = self.paging.page
        self._shift = page.bit_length() - 1
        if size < 2 * page or size % page:
            raise AllocationError(
                "physical memory", size, (), f"not a multiple of {size_text(page)}"
            )
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        self._buffer = mmap.mmap(-1, size, flags=flags)
        self.size = size
        self.view = memoryview(self._buffer)
        frames = size >> self._shift
        self._observers: tuple[Callable[[int, int, bytes | None], object], ...] = ()
        self._used = bytearray(frames)
        self._used[0] = 1
        # Free blocks per order, by first frame number; a dict is an ordered set here.
        self._free: list[dict[int, None]] = [{} for _ in range(frames.bit_length())]
        self._free_frames = 0
        self.changes = 0  # times that frames were taken or given back
        self._insert_range(1, frames)

    @property
    def address(self) -> int:
        """Host address of the buffer, for an emulator that maps it."""
        return int(np.frombuffer(self._buffer, np.uint8).ctypes.data)

    @property
    def free_bytes(self) -> int:
        """Bytes in frames that nobody holds."""
        return self._free_frames << self._shift

    def free_in_runs(self, order: int) -> int:
        """Return how many of these bytes lie in aligned runs of 2**order frames."""
        runs = sum(
            len(blocks) << above for above, blocks in enumerate(self._free) if above >= order
        )
        return runs << self._shift

    def alloc_run(self, order: int) -> int | None:
        """Return the physical address of 2**order contiguous, aligned frames, or None."""
        for found in range(order, len(self._free)):
            if self._free[found]:
                frame, _ = self._free[found].popitem()
                break
        else:
            return None
        while found > order:  # keep the lower half, free the upper one
            found -= 1
            self._free[found][frame + (1 << found)] = None
        self._take(frame, frame + (1 << order))
        return frame << self._shift

    def alloc_frame(self) -> int:
        """Return the physical address of one frame; AllocationError when none is left."""
        address = self.alloc_run(0)
        if address is None:
            raise self._exhausted(1)
        return address

    def alloc_frames(self, count: int) -> NDArray[np.uint64]:
        """Return `count` frame addresses, from the smallest free blocks first.

        Like the kernel's bulk page allocator this gives no contiguity promise, and it
        leaves large blocks whole as long as it can. AllocationError when `count` frames
        are not left; then none is taken.
        """
        if count > self._free_frames:
            raise self._exhausted(count)
        runs: list[NDArray[np.uint64]] = []
        while count:
            order = next(order for order, blocks in enumerate(self._free) if blocks)
            frame, _ = self._free[order].popitem()
            taken = min(count, 1 << order)
            self._take(frame, frame + taken)
            self._free_frames -= (1 << order) - taken  # _insert_range adds the rest again
            self._insert_range(frame + taken, frame + (1 << order))
            runs.append(np.arange(frame, frame + taken, dtype=np.uint64))
            count -= taken
        frames = runs[0] if len(runs) == 1 else np.concatenate(runs)
        return frames << np.uint64(self._shift)

    def free(self, address: int, order: int = 0) -> None:
        """Give back a run; LifecycleError when any frame of it is free already."""
        if address % (self._page << order):
            raise LifecycleError("free frames", address, f"not aligned to order {order}")
        frame = address >> self._shift
        self._give(frame, frame + (1 << order))

    def free_frames(self, frames: NDArray[np.uint64]) -> None:
        """Give back frames in any order; LifecycleError, and none freed, on a double free."""
        if not len(frames):
            return
        numbers = np.sort(frames) >> np.uint64(self._shift)
        runs = [
            (int(numbers[first]), int(numbers[last - 1]) + 1)
            for first, last in pairwise(cuts_of(numbers, 1))
        ]
        for (_, stop), (start, _) in pairwise(runs):
            if start < stop:
                raise LifecycleError("free frames", start << self._shift, "named twice")
        for start, stop in runs:
            self._require_used(start, stop)
        for start, stop in runs:
            self._give(start, stop)

    def fragment(self, *, leave: int = 0) -> NDArray[np.uint64]:
        """Hold one frame of every free run for a large leaf but `leave` of them; return those frames.

        Afterwards there is memory but no contiguity, as on a machine whose memory is full
        of page cache. `free_frames` of the result undoes it.
        """
        runs, order = [], self.paging.large_order
        while (run := self.alloc_run(order)) is not None:
            runs.append(run)
        for run in runs[:leave]:
            self.free(run, order)
        for run in runs[leave:]:
            first = run >> self._shift
            self._give(first + 1, first + (1 << order))
        return np.array(runs[leave:], np.uint64)

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at a physical address."""
        return bytes(self.view[address : address + size])

    def write(self, address: int, data: bytes) -> None:
        """Store `data` at a physical address."""
        self.view[address : address + len(data)] = data

    def copy(self) -> list[tuple[int, bytes]]:
        """Return what is other than zero, or was: physical address and bytes of each run."""
        host = mmap.PAGESIZE
        edges = np.flatnonzero(np.diff(self._touched(), prepend=False, append=False)) * host
        return [(int(at), self.read(int(at), int(end - at))) for at, end in edges.reshape(-1, 2)]

    def restore(self, copied: list[tuple[int, bytes]]) -> None:
        """Become what was copied."""
        host = mmap.PAGESIZE
        fresh = self._touched()
        for at, data in copied:
            self.view[at : at + len(data)] = data
            fresh[at // host : (at + len(data)) // host] = False
        for number in np.flatnonzero(fresh).tolist():
            self.view[number * host : (number + 1) * host] = bytes(host)

    def _touched(self) -> NDArray[np.bool_]:
        """Return which pages of the host somebody has touched: all others are zero."""
        host = mmap.PAGESIZE
        with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
            file.seek(self.address // host * 8)
            entries = np.frombuffer(file.read(self.size // host * 8), np.uint64)
        found: NDArray[np.bool_] = entries & np.uint64(_PRESENT | _SWAPPED) != 0
        return found

    def holds(self) -> tuple[bytes, tuple[dict[int, None], ...], int]:
        """Return which frames somebody holds, for `hold`."""
        return bytes(self._used), tuple(map(dict, self._free)), self._free_frames

    def hold(self, holds: tuple[bytes, tuple[dict[int, None], ...], int]) -> None:
        """Let those frames be held that were when `holds` was called, and free ones come in its order."""
        used, free, self._free_frames = holds
        self._used[:] = used
        self._free[:] = map(dict, free)

    def observe(self, told: Callable[[int, int, bytes | None], object]) -> Callable[[], None]:
        """Call `told(address, size, data)` before each `read`, and with data before each `write`.

        Returns what ends that. The emulated CPU needs neither of them.
        """
        self.__class__ = _Observed
        self._observers = (*self._observers, told)

        def end() -> None:
            self._observers = tuple(each for each in self._observers if each is not told)
            if not self._observers:
                self.__class__ = PhysicalMemory

        return end

    def fill(self, address: int, size: int, pattern: bytes) -> None:
        """Repeat `pattern`, aligned to its own length, over `size` bytes."""
        step = FILLED // len(pattern) * len(pattern)
        piece = repeat(pattern, min(size, step), address)
        for done in range(0, size, step):
            self.write(address + done, piece[: size - done])

    def zero(self, address: int, size: int) -> None:
        """Clear `size` bytes."""
        self.fill(address, size, b"\0")

    def used(self) -> NDArray[np.bool_]:
        """Return, per frame, whether somebody holds it."""
        return np.frombuffer(bytes(self._used), np.bool_)

    def check(self) -> None:
        """Assert that free blocks are aligned, disjoint, merged, and the rest is in use."""
        used = np.ones(len(self._used), np.uint8)
        for order, blocks in enumerate(self._free):
            for frame in blocks:
                assert frame % (1 << order) == 0, f"frame {frame:#x} in order {order}"
                assert used[frame : frame + (1 << order)].all(), f"frame {frame:#x} free twice"
                assert frame ^ (1 << order) not in blocks, f"frame {frame:#x} not merged"
                used[frame : frame + (1 << order)] = 0
        assert used.tobytes() == bytes(self._used), "a frame is neither free nor in use"
        assert self._free_frames == self._used.count(0)
        assert used[0], "frame 0 is free"

    def _exhausted(self, count: int) -> AllocationError:
        return AllocationError(
            "physical memory",
            count * self._page,
            (),
            f"{size_text(self.free_bytes)} of {size_text(self.size)} free",
        )

    def _require_used(self, start: int, stop: int) -> None:
        if not 0 < start < stop <= len(self._used):
            raise LifecycleError("free frames", start << self._shift, "no such frame to free")
        free = self._used.find(0, start, stop)
        if free >= 0:
            raise LifecycleError("free frames", free << self._shift, "free already")

    def _take(self, start: int, stop: int) -> None:
        self.changes += 1
        self._used[start:stop] = b"\1" * (stop - start)
        self._free_frames -= stop - start

    def _give(self, start: int, stop: int) -> None:
        self.changes += 1
        self._require_used(start, stop)
        self._used[start:stop] = bytes(stop - start)
        self._insert_range(start, stop)

    def _insert_range(self, start: int, stop: int) -> None:
        self._free_frames += stop - start
        while start < stop:
            order = min((start & -start).bit_length(), (stop - start).bit_length()) - 1
            self._insert(start, order)
            start += 1 << order

    def _insert(self, frame: int, order: int) -> None:
        while order + 1 < len(self._free):
            buddy = frame ^ (1 << order)
            if buddy not in self._free[order]:
                break
            del self._free[order][buddy]
            frame &= buddy
            order += 1
        self._free[order][frame] = None


class _Observed(PhysicalMemory):
    """Memory whose reads and writes somebody is told of; else that costs nothing."""

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at a physical address."""
        for told in self._observers:
            told(address, size, None)
        return super().read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Store `data` at a physical address."""
        for told in self._observers:
            told(address, len(data), data)
        super().write(address, data)
