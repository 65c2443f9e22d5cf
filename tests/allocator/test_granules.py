# SPDX-License-Identifier: GPL-2.0-or-later
"""Chunks of the designs where a large leaf has 32 or 512 MiB."""

from __future__ import annotations

import pytest

from allocator.execmem import Execmem
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory
from allocator.types import (
    GIB,
    KIB,
    MIB,
    AddressMap,
    ExecmemRange,
    ExecmemType,
    Interval,
    MemType,
    Paging,
)

TRAP = b"\xcc"
IMAGE = Interval(0xFFFF800080000000, 0xFFFF8000824F0000)
DIRECT = Interval(IMAGE.end - 128 * MIB, IMAGE.end)


@pytest.fixture(scope="session")
def arm64_map():
    """Return arm64 with KASLR off: 91 MiB of direct window beside the image, 2 GiB with PLT."""
    plt = Interval(IMAGE.end - 2 * GIB, IMAGE.end)
    return AddressMap(
        image=IMAGE,
        direct_map=0xFFFF000000000000,
        vmalloc=Interval(0xFFFF800080000000, 0xFFFFFDFFC0000000),
        ranges={ExecmemType.MODULE_TEXT: ExecmemRange(range=DIRECT, fallback=plt)},
    )


def take(execmem, mem_type, size):
    """Allocate and finish without writing."""
    return execmem.alloc(mem_type, size).finish()


@pytest.mark.parametrize(
    ("page", "size", "sizes"),
    [
        (4 * KIB, 4 * MIB, [2 * MIB]),
        (16 * KIB, 128 * MIB, [2 * MIB]),
        (16 * KIB, 256 * MIB, [32 * MIB]),
        (64 * KIB, GIB, [2 * MIB]),
    ],
)
def test_a_leaf_that_is_too_large_for_the_memory_is_not_asked_for(
    x86_map, x86_poke, page, size, sizes
):
    """Chunks of 2 MiB in pages do instead, and are counted as small ones."""
    memory = KernelMemory(PhysicalMemory(size, paging=Paging(page)), x86_map)
    execmem = Execmem(memory, trap=TRAP, text_poke=x86_poke, design="strata")
    before = memory.physical.free_bytes
    text = [take(execmem, MemType.TEXT, 1000) for _ in range(3)]
    assert text[1].address - text[0].address == 1024
    assert [before - memory.physical.free_bytes] == sizes
    assert memory.events.small_refills == (sizes[0] != memory.large_size)
    execmem.check()


def test_a_window_without_room_for_a_large_leaf_has_chunks_in_pages(arm64_map, arm64_poke):
    """128 MiB hold no leaf of 512: text takes 2 MiB at a time, and so does data elsewhere."""
    memory = KernelMemory(PhysicalMemory(4 * GIB, paging=Paging(64 * KIB)), arm64_map)
    execmem = Execmem(memory, trap=TRAP, text_poke=arm64_poke, design="strata")
    text = take(execmem, MemType.TEXT, 1000)
    assert DIRECT.holds(text.taken)
    assert text.taken.end == IMAGE.start // (2 * MIB) * 2 * MIB
    assert memory.events.small_refills == 1
    execmem.check()
