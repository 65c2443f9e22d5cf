# SPDX-License-Identifier: GPL-2.0-or-later
"""Address maps and text_poke descriptions by hand, so that no architecture is needed."""

from __future__ import annotations

import pytest

from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory
from allocator.types import KIB, MIB, AddressMap, ExecmemRange, ExecmemType, Interval, TextPoke

LARGER_PAGES = (16 * KIB, 64 * KIB)


@pytest.fixture(scope="session")
def x86_map():
    """Return x86-64 with KASLR off: one window for all classes, no fallback."""
    return AddressMap(
        image=Interval(0xFFFFFFFF81000000, 0xFFFFFFFF83C30000),
        direct_map=0xFFFF888000000000,
        vmalloc=Interval(0xFFFFC90000000000, 0xFFFFE90000000000),
        ranges={
            ExecmemType.MODULE_TEXT: ExecmemRange(
                range=Interval(0xFFFFFFFFC0000000, 0xFFFFFFFFFF000000), alignment=4096
            )
        },
    )


@pytest.fixture(scope="session")
def tiny_map():
    """Return arm64-like classes: 3 MiB of window that is not 2 MiB-aligned, 8 MiB of fallback."""
    return AddressMap(
        image=Interval(0xFFFF800080000000, 0xFFFF800082000000),
        direct_map=0xFFFF000000000000,
        vmalloc=Interval(0xFFFF800080000000, 0xFFFFFDFFC0000000),
        ranges={
            ExecmemType.MODULE_TEXT: ExecmemRange(
                range=Interval(0xFFFF80007A001000, 0xFFFF80007A301000),
                fallback=Interval(0xFFFF800000000000, 0xFFFF800000800000),
            ),
            ExecmemType.KPROBES: ExecmemRange(
                range=Interval(0xFFFF800080000000, 0xFFFFFDFFC0000000)
            ),
        },
    )


@pytest.fixture(scope="session")
def x86_poke():
    """Return text_poke of x86-64: two pages in a private user-half address space."""
    return TextPoke(
        name="text_poke",
        window=0x7FFFF0000000,
        pages=2,
        granule=1,
        windows=dict.fromkeys(LARGER_PAGES, 0x7FFFF0000000),
    )


@pytest.fixture(scope="session")
def arm64_poke():
    """Return aarch64_insn_write: one fixmap page, whole instructions."""
    return TextPoke(
        name="aarch64_insn_write",
        window=0xFFFFFDFFFE000000,
        pages=1,
        granule=4,
        windows=dict.fromkeys(LARGER_PAGES, 0xFFFFFDFFFE000000),
    )


@pytest.fixture
def memory(x86_map):
    """Return kernel memory over 64 MiB with the x86-64 map."""
    return KernelMemory(PhysicalMemory(64 * MIB), x86_map)
