# SPDX-License-Identifier: GPL-2.0-or-later
"""The heap against a model: a dictionary of objects, and the rules of kmalloc.

kmalloc(9) says: at least the size asked for, aligned to it where it is a power of two, and
contents undefined (here the poison of include/linux/poison.h) unless zeroed.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator import KernelMemory, PhysicalMemory
from allocator.types import LARGE_PAGE_SIZE, MIB, PAGE_SIZE
from kernels.modelled.heap import POISON_FREE, POISON_INUSE, ZERO_SIZE_PTR, Heap

SIZES = st.one_of(
    st.integers(1, 64),
    st.integers(1, 3 * PAGE_SIZE),
    st.sampled_from([2048, 2049, 4096, 4097, LARGE_PAGE_SIZE, LARGE_PAGE_SIZE + 1]),
)


def new_heap(arch, size=64 * MIB):
    """Return a heap over memory of its own."""
    return Heap(KernelMemory(PhysicalMemory(size), arch.loads.address_map()))


@given(
    steps=st.lists(st.one_of(st.tuples(SIZES, st.booleans()), st.integers(0, 1 << 16)), max_size=40)
)
@settings(max_examples=25, deadline=None)
def test_against_a_model(arch, steps):
    """Objects never overlap and keep their bytes; what is freed is gone, once; all comes back."""
    heap = new_heap(arch)
    memory, before = heap.memory, heap.memory.physical.free_bytes
    model = {}
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            size, zero = step
            address = heap.alloc(size, zero=zero)
            assert address
            room = heap.size(address)
            assert room >= size
            assert memory.read(address, room) == bytes([0 if zero else POISON_INUSE]) * room
            if size & (size - 1) == 0 and size <= PAGE_SIZE:
                assert address % size == 0
            for other, contents in model.items():
                assert address + room <= other or other + len(contents) <= address
            model[address] = bytes([number]) * size
            memory.write(address, model[address])
        elif model:
            address = sorted(model)[step % len(model)]
            assert memory.read(address, len(model[address])) == model.pop(address)
            assert heap.free(address)
            assert not heap.free(address)
            assert heap.size(address) == 0
        assert heap.live() == {a: len(contents) for a, contents in model.items()}
    for address, contents in model.items():
        assert memory.read(address, len(contents)) == contents
        assert heap.free(address)
    heap.mark()
    assert memory.physical.free_bytes == before
    memory.check()


def test_nothing_asked_for(arch):
    """An object of no bytes is ZERO_SIZE_PTR, and it and NULL may always be freed."""
    heap = new_heap(arch)
    assert heap.alloc(0) == ZERO_SIZE_PTR
    assert heap.free(ZERO_SIZE_PTR)
    assert heap.free(0)
    assert heap.live() == {}


@pytest.mark.parametrize("size", [8, 100, 2048])
def test_freed_objects_are_poisoned(arch, size):
    """A small object that was freed holds the poison of freed memory."""
    heap = new_heap(arch)
    keep, address = heap.alloc(size), heap.alloc(size)
    room = heap.size(address)
    heap.free(address)
    assert heap.memory.read(address, room) == bytes([POISON_FREE]) * room
    assert heap.size(keep) == room


def test_what_is_no_object_is_not_freed(arch):
    """The middle of an object, a page and a wild address are no objects."""
    heap = new_heap(arch)
    address = heap.alloc(64)
    for wild in (address + 8, address & -PAGE_SIZE or 1, heap.memory.alloc_pages(), 0xDEAD):
        if wild != address:
            assert not heap.free(wild)
    assert heap.live() == {address: 64}


@pytest.mark.parametrize("size", [LARGE_PAGE_SIZE, LARGE_PAGE_SIZE + 1, 9 * MIB])
def test_large_objects(arch, size):
    """Objects beyond the largest contiguous run are contiguous virtually, and readable whole."""
    heap = new_heap(arch)
    before = heap.memory.physical.free_bytes
    address = heap.alloc(size, zero=True)
    heap.memory.write(address, b"\xee" * size)
    assert heap.memory.read(address, size) == b"\xee" * size
    assert heap.free(address)
    assert heap.memory.physical.free_bytes == before


def test_no_memory_left(arch):
    """Where memory ends an object is NULL, nothing is lost, and smaller ones still fit."""
    heap = new_heap(arch, 8 * MIB)
    before = heap.memory.physical.free_bytes
    assert heap.alloc(16 * MIB) == 0
    assert heap.vmalloc(16 * MIB) == 0
    assert heap.memory.physical.free_bytes == before
    taken = []
    while address := heap.alloc(MIB):
        taken.append(address)
    assert len(taken) == before // MIB
    assert all(heap.free(address) for address in taken)
    assert heap.memory.physical.free_bytes == before


def test_virtually_contiguous_memory(arch):
    """Memory of vmalloc is zero, whole pages, known to the heap and freed by it."""
    heap = new_heap(arch)
    before = heap.memory.physical.free_bytes
    address = heap.vmalloc(5000)
    assert heap.memory.read(address, 2 * PAGE_SIZE) == bytes(2 * PAGE_SIZE)
    assert (heap.size(address), heap.live()) == (2 * PAGE_SIZE, {address: 5000})
    assert heap.free(address)
    assert heap.memory.physical.free_bytes == before


def test_rolling_back(arch):
    """What came after a mark is freed, what was there stays, and no page is lost."""
    heap = new_heap(arch)
    old = heap.alloc(100)
    mark, before = heap.mark(), heap.memory.physical.free_bytes
    for size in (100, 16, 3000, 3 * MIB):
        heap.alloc(size)
    heap.roll_back(mark)
    assert heap.live() == {old: 100}
    assert heap.memory.physical.free_bytes == before
    again = heap.alloc(100)
    assert again not in (0, old)
    assert heap.memory.read(again, 100) == bytes([POISON_INUSE]) * 100
