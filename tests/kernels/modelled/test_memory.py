# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that modules ask for."""

from __future__ import annotations

import struct

import pytest

from emulator.faults import FaultKind
from kernels.modelled.structs import POINTER
from tests.support.guest import GFP_KERNEL, GFP_ZERO


@pytest.mark.parametrize("size", [1, 8, 100, 4096, 5000, 1 << 20])
def test_kmalloc_gives_memory_that_is_zero_when_asked(guest, size):
    """__GFP_ZERO zeroes even what was used before; kfree takes it back."""
    first = guest("__kmalloc_noprof", size, GFP_KERNEL)
    guest("memset", first, 0xAA, size)
    guest("kfree", first)
    again = guest("__kmalloc_noprof", size, GFP_KERNEL | GFP_ZERO)
    assert guest.machine.read(again, size) == bytes(size)
    assert guest("ksize", again) >= size
    guest("kfree", again)


def test_kmalloc_of_odd_sizes(guest):
    """Nothing gives the pointer that is not NULL, too much gives NULL, both may be freed."""
    assert guest("__kmalloc_noprof", 0, GFP_KERNEL) == 16
    assert guest("__kmalloc_noprof", (4 << 20) + 1, GFP_KERNEL) == 0
    assert guest("__kvmalloc_node_noprof", 1 << 31, 0, GFP_KERNEL, -1) == 0
    for nothing in (0, 16):
        guest("kfree", nothing)
        assert guest("ksize", nothing) == 0


@pytest.mark.parametrize(
    ("release", "address"),
    [("kfree", 0x1234), ("kvfree", 0x1234), ("vfree", 0x1234), ("free_percpu", 0x1234)],
)
def test_freeing_what_is_no_memory_stops(guest, release, address):
    """The fault names the function, the address and the reason."""
    with guest.fails(FaultKind.PANIC, release, hex(address)):
        guest(release, address)


def test_freeing_twice_or_by_the_wrong_name_stops(guest):
    """What is freed is gone; vmalloc memory is not kmalloc's nor the other way round."""
    block = guest("__kmalloc_noprof", 64, GFP_KERNEL)
    with guest.fails(FaultKind.PANIC, "vfree"):
        guest("vfree", block)
    guest("kfree", block)
    with guest.fails(FaultKind.PANIC, "kfree", "freed before"):
        guest("kfree", block)
    area = guest("vmalloc_noprof", 64)
    assert guest("is_vmalloc_addr", area, returns="bool")
    with guest.fails(FaultKind.PANIC, "vmalloc memory"):
        guest("kfree", area)
    guest("kvfree", area)


def test_krealloc_keeps_contents(guest):
    """Growing moves what was there; shrinking to nothing frees."""
    block = guest("kmemdup_noprof", b"contents", 8, GFP_KERNEL)
    grown = guest("krealloc_noprof", block, 4000, GFP_KERNEL)
    assert guest.machine.read(grown, 8) == b"contents"
    assert guest("ksize", block) == 0
    assert guest("krealloc_noprof", grown, 0, GFP_KERNEL) == 16
    assert guest("ksize", grown) == 0


def test_duplicates(guest):
    """kstrdup, kstrndup and kmemdup_nul copy strings; of NULL they give NULL."""
    for name, size, expected in (
        ("kstrdup", None, b"text"),
        ("kstrndup", 2, b"te"),
        ("kmemdup_nul", 3, b"tex"),
    ):
        args = [GFP_KERNEL] if size is None else [size, GFP_KERNEL]
        copy = guest(name, "text", *args)
        assert guest.string(copy) == expected
        guest("kfree", copy)
        assert guest(name, 0, *args) == 0


def test_slab_cache(guest):
    """Objects are constructed, counted and aligned; a cache that still has some is reported."""
    if not guest.kernel.layouts.has("kmem_cache_args"):
        pytest.skip(f"the types of {guest.machine.arch.name} have no such arguments")
    built = []
    ctor = guest.callback("api_ctor", built.append, "void api_ctor(void *x)")
    args = struct.pack("<4I2Q", 64, 0, 0, 0, 0, ctor)
    cache = guest("__kmem_cache_create_args", "things", 40, args, 0)
    assert guest("kmem_cache_size", cache) == 40
    thing = guest("kmem_cache_alloc_noprof", cache, GFP_KERNEL)
    assert built == [thing]
    assert thing % 64 == 0
    guest("kmem_cache_destroy", cache)
    assert guest.machine.log[-1].text.startswith("kmem_cache_destroy things: Slab cache still has")
    cache = guest("__kmem_cache_create_args", "others", 40, args, 0)
    guest("kmem_cache_free", cache, guest("kmem_cache_alloc_noprof", cache, GFP_KERNEL))
    lines = len(guest.machine.log)
    guest("kmem_cache_destroy", cache)
    assert len(guest.machine.log) == lines
    with guest.fails(FaultKind.PANIC, "kmem_cache_free"):
        guest("kmem_cache_free", guest.word(guest.symbol("kmalloc_caches") + POINTER), 0x1234)


def test_pages_come_aligned_in_runs(guest):
    """A run of an order is aligned to itself, and is given back with the same order only."""
    run = guest("get_free_pages_noprof", GFP_KERNEL | GFP_ZERO, 2)
    assert run % (4 << 12) == 0
    assert guest.machine.read(run, 4 << 12) == bytes(4 << 12)
    with guest.fails(FaultKind.PANIC, "order 1"):
        guest("free_pages", run, 1)
    guest("free_pages", run, 2)


def test_percpu_memory(guest):
    """What pcpu_alloc returns is an offset: adding the CPU's own gives zeroed memory."""
    base = guest("pcpu_alloc_noprof", 24, 16, 0, GFP_KERNEL)
    offset = guest.word(guest.symbol("__per_cpu_offset"))
    address = (base + offset) % (1 << 64)
    assert base % 16 == 0
    assert guest.machine.read(address, 24) == bytes(24)
    guest("free_percpu", base)
    with guest.fails(FaultKind.PANIC, "free_percpu"):
        guest("free_percpu", base)
