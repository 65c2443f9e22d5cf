# SPDX-License-Identifier: GPL-2.0-or-later
"""Address maps: the numbers of Linux 6.12 as Debian builds it, with and without KASLR."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from allocator.types import GIB, KIB, MIB, AddressMap, ExecmemRange, ExecmemType, Interval
from tests.archs.facts import facts

SEEDS = st.integers(0, (1 << 64) - 1)


def test_x86_64_without_kaslr() -> None:
    """One window for everything, 1 GiB behind the start of the kernel text map."""
    there = archs.arch("x86_64").loads.address_map()
    window = Interval(0xFFFFFFFFC0000000, 0xFFFFFFFFFF000000)
    assert window.size == 1008 * MIB
    assert there.image.start == 0xFFFFFFFF81000000
    assert there.direct_map == 0xFFFF888000000000
    assert there.vmalloc.start == 0xFFFFC90000000000
    for kind in ExecmemType:
        assert there.range_of(kind) == ExecmemRange(range=window, alignment=4096)


def test_arm64_without_kaslr() -> None:
    """A 128 MiB window that ends with the image, then 2 GiB; kprobes and BPF lie in vmalloc."""
    there = archs.arch("arm64").loads.address_map()
    assert there.image == Interval(0xFFFF800080000000, 0xFFFF8000824F0000)
    text = there.range_of(ExecmemType.MODULE_TEXT)
    assert text.range == Interval(0xFFFF80007A4F0000, 0xFFFF8000824F0000)
    assert text.fallback == Interval(0xFFFF8000024F0000, 0xFFFF8000824F0000)
    for kind in (ExecmemType.FTRACE, ExecmemType.MODULE_DATA):
        assert there.range_of(kind) == text
    for kind in (ExecmemType.KPROBES, ExecmemType.BPF):
        assert there.range_of(kind).range == there.vmalloc
        assert there.range_of(kind).fallback is None
    # VMALLOC_END with VA_BITS=52: 8 MiB below a vmemmap of 62 TiB (struct page of 64 bytes)
    # that ends 1 GiB below the top of the address space.
    vmemmap = (1 << 64) - GIB - ((0xFFFF800000000000 - 0xFFF0000000000000) >> 6)
    assert there.vmalloc == Interval(0xFFFF800080000000, vmemmap - 8 * MIB)


@pytest.mark.parametrize(
    ("page", "bits", "version", "least", "vmemmap"),
    [
        # VMEMMAP_START of asm/memory.h, as modules of these kernels have it in their code:
        # Debian's 6.12, with pages of 4 and 16 KiB, and 6.1.
        (4 * KIB, 52, (6, 12), 48, 0xFFFFC1FFC0000000),
        (16 * KIB, 52, (6, 12), 47, 0xFFFFF03FC0000000),
        (4 * KIB, 48, (6, 1), 48, 0xFFFFFC0000000000),
        # -(VMEMMAP_SIZE) - 2 MiB of 5.10.
        (4 * KIB, 48, (5, 10), 48, 0xFFFFFDFFFFE00000),
        (64 * KIB, 52, (6, 12), 48, 0xFFFFFC1FC0000000),
    ],
)
def test_arm64_addresses_follow_from_their_bits_and_the_page(page, bits, version, least, vmemmap):
    """Modules lie in the upper half of the kernel's part, and struct pages where code counts them."""
    there = archs.arch("arm64").loads.address_map(
        page=page, config={"CONFIG_ARM64_VA_BITS": str(bits)}, version=version
    )
    top = 1 << 64
    assert there.direct_map == top - (1 << least)
    assert there.page_offset == top - (1 << bits)
    assert there.image.start == top - (1 << least - 1) + 2 * GIB
    gap = 8 * MIB if version >= (6, 9) else 256 * MIB
    assert there.vmalloc == Interval(there.image.start, vmemmap - gap)
    assert there.vmemmap == vmemmap + (there.direct_map - there.page_offset) // page * 64
    # Without a configuration the place of the image tells as much as it can.
    guessed = archs.arch("arm64").loads.address_map(
        page=page, version=version, start=there.image.start
    )
    assert guessed == there


def test_arm64_an_image_tells_how_many_bits_an_address_has():
    """With 16 KiB an image at the place of 48 bits has those, not the usual 52."""
    address_map = archs.arch("arm64").loads.address_map
    there = address_map(page=16 * KIB, start=0xFFFF800080000000)
    assert there == address_map(page=16 * KIB, config={"CONFIG_ARM64_VA_BITS": "48"})
    for odd in ("", "0x30", "49", "-1"):
        assert address_map(config={"CONFIG_ARM64_VA_BITS": odd}) == address_map()


@pytest.mark.parametrize("page", [4 * KIB, 16 * KIB, 64 * KIB])
def test_arm64_text_is_poked_behind_the_device_tree(page):
    """FIX_TEXT_POKE0: 8 MiB below the top, a hole's page, 2 MiB, a page of the early console."""
    poke = archs.arch("arm64").text_poke.on(page)
    index = 1 + 2 * MIB // page - 1 + 2  # enum fixed_addresses of asm/fixmap.h
    assert poke.alias == Interval(
        (1 << 64) - 8 * MIB - index * page, (1 << 64) - 8 * MIB - (index - 1) * page
    )


def test_a_window_that_nobody_knows_is_refused():
    """Text of an architecture whose pages are never larger is not poked anywhere else."""
    with pytest.raises(ValueError, match="text_poke: no window is known for pages of 16 KiB"):
        archs.arch("x86_64").text_poke.on(16 * KIB)


def test_arm64_image_too_large_for_the_direct_window() -> None:
    """An image of 128 MiB or more leaves only the 2 GiB window (module_init_limits)."""
    there = archs.arch("arm64").loads.address_map(image_size=128 * MIB)
    text = there.range_of(ExecmemType.MODULE_TEXT)
    assert (text.range.size, text.fallback) == (2 * GIB, None)
    assert text.range.end == there.image.end
    less = archs.arch("arm64").loads.address_map(image_size=128 * MIB - 4096)
    assert less.range_of(ExecmemType.MODULE_TEXT).range.size == 128 * MIB


def test_riscv64_without_kaslr() -> None:
    """Modules have the 2 GiB that end with the image, BPF the last 128 MiB of them."""
    there = archs.arch("riscv64").loads.address_map()
    assert there.image.start == 0xFFFFFFFF80000000
    text = there.range_of(ExecmemType.MODULE_TEXT)
    assert text.range == Interval(0xFFFFFFFF01E6B000, 0xFFFFFFFF80000000)
    bpf = there.range_of(ExecmemType.BPF)
    assert bpf.range == Interval(0xFFFFFFFF78000000, 0xFFFFFFFF80000000)
    assert bpf.alignment == 4096
    assert there.range_of(ExecmemType.KPROBES).range == there.vmalloc


def recorded(oracle: Path, run: str) -> dict[ExecmemType, ExecmemRange]:
    """Return the ranges of a booted kernel, from its struct execmem_info."""
    found = json.loads((oracle / "boot" / run / "execmem.json").read_text("ascii"))
    for raw in map(bytes.fromhex, found.values()):
        words = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, 240, 8)]
        rows = [words[at : at + 6] for at in range(0, 30, 6)]
        if all(1 << 63 < start < end for start, end, *_ in rows):
            return {
                kind: ExecmemRange(
                    range=Interval(start, end),
                    fallback=Interval(first, last) if last else None,
                    alignment=more & 0xFFFF_FFFF,
                )
                for kind, (start, end, first, last, _, more) in zip(
                    # enum execmem_type of 6.12
                    (
                        ExecmemType.MODULE_TEXT,
                        ExecmemType.KPROBES,
                        ExecmemType.FTRACE,
                        ExecmemType.BPF,
                        ExecmemType.MODULE_DATA,
                    ),
                    rows,
                    strict=True,
                )
            }
    raise AssertionError(f"no ranges in the recording of {run}")


def test_ranges_equal_those_of_a_booted_kernel(arch: archs.Arch, oracle: Path) -> None:
    """Without KASLR every range, fallback and alignment is what the kernel set up."""
    there, real = arch.loads.address_map(), recorded(oracle, "base")
    if real[ExecmemType.KPROBES].range.start == 0xFF20000000000000:
        del real[ExecmemType.KPROBES]  # that boot had Sv57; the record describes Sv39
    assert {kind: there.range_of(kind) for kind in real} == real


def test_kaslr_ranges_have_the_shape_of_a_booted_kernel(oracle: Path, arch: archs.Arch) -> None:
    """With KASLR the same ranges move, keep their size, and have a fallback or not."""
    if not (oracle / "boot" / "kaslr").is_dir():
        pytest.skip("no boot with KASLR was recorded")
    there, real = arch.loads.address_map(kaslr=1), recorded(oracle, "kaslr")
    for kind, want in real.items():
        got = there.range_of(kind)
        assert (got.range.size, got.fallback) == (want.range.size, want.fallback)


def within(reach: int, one: Interval, other: Interval) -> bool:
    """Return whether every address of one is less than `reach` from every one of the other."""
    return max(one.end, other.end) - min(one.start, other.start) <= reach


def _windows(there: AddressMap) -> list[ExecmemRange]:
    return [there.range_of(kind) for kind in ExecmemType]


@given(seed=SEEDS)
@settings(max_examples=50)
def test_kaslr_keeps_the_rules_of_every_architecture(arch: archs.Arch, seed: int) -> None:
    """A seed always gives one map; the image keeps its size; text is within reach of it."""
    there = arch.loads.address_map(kaslr=seed)
    assert there == arch.loads.address_map(kaslr=seed)
    assert there.kaslr == seed
    assert there.image.size == arch.loads.address_map().image.size
    assert there.image.start % facts(arch).load.image_step == 0
    text = there.range_of(ExecmemType.MODULE_TEXT)
    # Calls, or PLT entries, must reach the whole image from anywhere in the window.
    for interval in filter(None, (text.range, text.fallback)):
        assert within(2 * GIB, interval, there.image)
    for window in _windows(there):
        assert window.range.start % 4096 == window.range.end % 4096 == 0
        assert 1 << 63 <= window.range.start < window.range.end <= 1 << 64


@given(seed=SEEDS)
@settings(max_examples=50)
def test_kaslr_on_x86_64(seed: int) -> None:
    """The image stays in its 1 GiB, the window starts 1 to 1024 pages late, all in the top 2 GiB."""
    there = archs.arch("x86_64").loads.address_map(kaslr=seed)
    assert Interval(0xFFFFFFFF81000000, 0xFFFFFFFFC0000000).holds(there.image)
    window = there.range_of(ExecmemType.MODULE_TEXT).range
    assert 1 <= (window.start - 0xFFFFFFFFC0000000) / 4096 <= 1024
    assert window.end == 0xFFFFFFFFFF000000


@given(seed=SEEDS)
@settings(max_examples=50)
def test_kaslr_on_arm64(seed: int) -> None:
    """The image moves in the middle half of vmalloc, inside a 2 GiB window without fallback."""
    there = archs.arch("arm64").loads.address_map(kaslr=seed)
    text = there.range_of(ExecmemType.MODULE_TEXT)
    assert text.range.size == 2 * GIB
    assert text.range.holds(there.image)
    assert text.fallback is None
    quarter = there.vmalloc.size // 4
    assert there.vmalloc.start + quarter - 2 * MIB <= there.image.start
    assert there.image.start < there.vmalloc.start + 3 * quarter


@given(seed=SEEDS)
@settings(max_examples=50)
def test_kaslr_on_riscv64(seed: int) -> None:
    """The image moves within the last 2 GiB; modules have the 2 GiB that end with it."""
    there = archs.arch("riscv64").loads.address_map(kaslr=seed)
    assert 0xFFFFFFFF80000000 <= there.image.start < there.image.end <= 1 << 64
    window = there.range_of(ExecmemType.MODULE_TEXT).range
    assert window == Interval(there.image.end - 2 * GIB, there.image.start)


def test_seeds_move_the_image(arch: archs.Arch) -> None:
    """Different seeds give different maps, and none gives the map without KASLR."""
    starts = {arch.loads.address_map(kaslr=seed).image.start for seed in range(64)}
    assert len(starts) > 32
    assert arch.loads.address_map(kaslr=3) != arch.loads.address_map()


def test_an_image_lies_where_it_is_linked_to(arch: archs.Arch) -> None:
    """Place and size of a kernel that is given move the image, and modules stay clear of it."""
    usual = arch.loads.address_map().image
    start, size = usual.start + 4 * MIB, 16 * MIB
    there = arch.loads.address_map(image_size=size, start=start, text_size=8 * MIB)
    assert there.image == Interval(start, start + size)
    window = there.range_of(ExecmemType.MODULE_TEXT).range
    assert window.size > 64 * MIB
