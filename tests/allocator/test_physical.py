# SPDX-License-Identifier: GPL-2.0-or-later
"""The buddy allocator and the bytes behind it."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Runs
from hypothesis.stateful import (
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from allocator.errors import AllocationError, LifecycleError
from allocator.physical import PhysicalMemory, repeat
from allocator.types import KIB, LARGE_PAGE_SIZE, MIB, PAGE_SIZE, Paging

LARGE_ORDER = 9  # of 2 MiB in pages of 4 KiB


class Buddies(RuleBasedStateMachine):
    """Allocate and free against a set of frame numbers."""

    page = PAGE_SIZE
    runs = Runs("runs")

    @initialize(pages=st.integers(2, 2048))
    def start(self, pages):
        """Any number of frames, mostly not a power of two."""
        self.physical = PhysicalMemory(pages * self.page, paging=Paging(self.page))
        self.pages = pages
        self.held = {0}

    def hold(self, numbers):
        """No frame is handed out twice or from outside."""
        assert self.held.isdisjoint(numbers), "handed out twice"
        assert all(number < self.pages for number in numbers)
        self.held.update(numbers)

    @rule(target=runs, order=st.integers(0, 11))
    def take_run(self, order):
        """Take an aligned run, which is refused only when there is none."""
        address = self.physical.alloc_run(order)
        if address is None:
            size = 1 << order
            aligned = (range(n, n + size) for n in range(0, self.pages - size + 1, size))
            assert not any(self.held.isdisjoint(run) for run in aligned), "a free run is refused"
            return multiple()
        assert address % (self.page << order) == 0
        numbers = list(range(address // self.page, (address // self.page) + (1 << order)))
        self.hold(numbers)
        return numbers

    @rule(target=runs, count=st.integers(1, 700))
    def take_frames(self, count):
        """All frames asked for, or none."""
        if count > self.pages - len(self.held):
            with pytest.raises(AllocationError):
                self.physical.alloc_frames(count)
            return multiple()
        frames = self.physical.alloc_frames(count)
        assert frames.dtype == np.uint64
        numbers = (frames // np.uint64(self.page)).tolist()
        assert count == len(set(numbers))
        self.hold(numbers)
        return numbers

    @rule(numbers=consumes(runs), shuffle=st.randoms(use_true_random=False))
    def give_back(self, numbers, shuffle):
        """Frames come back in any order."""
        shuffle.shuffle(numbers)
        self.physical.free_frames(np.array(numbers, np.uint64) * np.uint64(self.page))
        self.held.difference_update(numbers)

    @rule(numbers=runs)
    def free_one_of_them_twice(self, numbers):
        """Free twice: it is refused whole, however it is dressed."""
        first = numbers[0]
        self.physical.free(first * self.page)
        for again in ([first], numbers, [first, first]):
            with pytest.raises(LifecycleError):
                self.physical.free_frames(np.array(again, np.uint64) * np.uint64(self.page))
        with pytest.raises(LifecycleError):
            self.physical.free(first * self.page)
        # Single frames are interchangeable only by address: take all, give back all but it.
        rest = self.physical.alloc_frames(self.pages - len(self.held) + 1)
        wanted = np.uint64(first * self.page)
        assert wanted in rest
        self.physical.free_frames(rest[rest != wanted])

    @invariant()
    def consistent(self):
        """Free and held frames are the model's."""
        if not hasattr(self, "physical"):
            return
        self.physical.check()
        assert (self.pages - len(self.held)) * self.page == self.physical.free_bytes
        assert self.held == set(np.flatnonzero(self.physical.used()).tolist())


class BuddiesOf16KiB(Buddies):
    """The same with frames of 16 KiB."""

    page = 16 * KIB


class BuddiesOf64KiB(Buddies):
    """The same with frames of 64 KiB."""

    page = 64 * KIB


TestBuddies = Buddies.TestCase
TestBuddies.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestBuddiesOf16KiB = BuddiesOf16KiB.TestCase
TestBuddiesOf64KiB = BuddiesOf64KiB.TestCase
TestBuddiesOf16KiB.settings = TestBuddiesOf64KiB.settings = settings(
    TestBuddies.settings, max_examples=10
)


def test_everything_freed_merges_to_the_initial_runs():
    """After all frames came back one by one, the large runs are there again."""
    physical = PhysicalMemory(8 * MIB)
    frames = physical.alloc_frames(physical.free_bytes // PAGE_SIZE)
    assert physical.free_bytes == 0
    with pytest.raises(AllocationError, match="0 B of 8 MiB free"):
        physical.alloc_frame()
    for frame in frames[::-1].tolist():
        physical.free(frame)
    physical.check()
    assert physical.alloc_run(LARGE_ORDER + 1) == 4 * MIB
    assert physical.alloc_run(LARGE_ORDER) == 2 * MIB
    assert physical.alloc_run(LARGE_ORDER) is None  # frame 0 is never free


def test_single_frames_leave_large_runs_whole():
    """Frames are taken from the smallest free blocks, so 2 MiB runs last longest."""
    physical = PhysicalMemory(8 * MIB)
    small = physical.alloc_frames(511)  # all below 2 MiB but frame 0
    assert small.max() < LARGE_PAGE_SIZE
    assert [physical.alloc_run(LARGE_ORDER) is not None for _ in range(4)] == [True] * 3 + [False]


def test_fragment_leaves_memory_but_no_large_run():
    """fragment() holds one frame per run; freeing its result brings every run back."""
    physical = PhysicalMemory(16 * MIB)
    before = physical.free_bytes
    pinned = physical.fragment(leave=1)
    assert physical.alloc_run(LARGE_ORDER) is not None
    assert physical.alloc_run(LARGE_ORDER) is None
    assert physical.free_bytes == before - LARGE_PAGE_SIZE - len(pinned) * PAGE_SIZE
    physical.free_frames(pinned)
    physical.check()
    assert physical.alloc_run(LARGE_ORDER) is not None


@pytest.mark.parametrize("address", [0, 0x1800, 1 << 40, -PAGE_SIZE])
def test_a_frame_that_does_not_exist_is_not_freed(address):
    """Frame 0, half a frame and addresses outside memory are refused."""
    physical = PhysicalMemory(MIB)
    with pytest.raises(LifecycleError):
        physical.free(address)
    physical.check()


@pytest.mark.parametrize("size", [0, PAGE_SIZE, 5000, -PAGE_SIZE])
def test_a_size_that_holds_no_frame_is_refused(size):
    """Memory is whole pages, and more than the one that is never handed out."""
    with pytest.raises(AllocationError):
        PhysicalMemory(size)


def test_host_address_and_view_are_the_same_bytes():
    """What is written physically stands at the host address that an emulator maps."""
    physical = PhysicalMemory(MIB)
    physical.write(0x1FFE, b"abcd")
    assert ctypes.string_at(physical.address + 0x1FFE, 4) == b"abcd"
    ctypes.memmove(physical.address + 0x3000, b"xyz", 3)
    assert physical.read(0x3000, 3) == bytes(physical.view[0x3000:0x3003]) == b"xyz"
    physical.zero(0x3000, 2)
    assert physical.read(0x3000, 3) == b"\0\0z"


@pytest.mark.parametrize("pattern", [b"\xcc", b"ab", b"abcd"])
def test_fill_repeats_the_pattern_aligned(pattern):
    """A fill that starts inside a pattern continues it, so every instruction is whole."""
    physical = PhysicalMemory(MIB)
    physical.fill(0x1001, 13, pattern)
    expected = bytes(pattern[address % len(pattern)] for address in range(0x1001, 0x100E))
    assert physical.read(0x1001, 13) == expected == repeat(pattern, 13, 0x1001)
    assert physical.read(0x100E, 1) == b"\0"
