# SPDX-License-Identifier: GPL-2.0-or-later
"""What only mips64el has: halves that need each other, a window of its own, KASLR by 64 KiB."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import archs
from allocator.types import ExecmemType, Interval
from archs.dialect import Info
from loader.elf import parse
from loader.errors import RelocationError
from loader.layout import plan
from loader.link import link
from tests.support import ld
from tests.support.addresses import place
from tests.support.tools import assemble

MIPS = archs.arch("mips64el")
HEAD = ".set noreorder\n.set noat\n.text\nfunction:\n"
# -msym32: a sign-extended number of 32 bits; and all of an address.
SHORT = "lui $4, %hi({0})\ndaddiu $4, $4, %lo({0})\n"
LONG = (
    "lui $4, %highest({0})\ndaddiu $4, $4, %higher({0})\ndsll $4, $4, 16\n"
    "daddiu $4, $4, %hi({0})\ndsll $4, $4, 16\nld $4, %lo({0})($4)\n"
)
ANYWHERE = (
    0,
    0x7FFF_7FFF,
    0x7FFF_8000,
    0x1_2345_6789,
    0x7FFF_7FFF_7FFF_7FFF,
    0x7FFF_8000_8000_8000,
    0x9800_1234_8765_8000,
    0xC000_0000_0000_0000,
    0xFFFF_FFFF_8000_0000,
    0xFFFF_FFFF_FFFF_8000,
)


def built(source: str, folder: Path) -> bytes:
    """Return the object of a text."""
    return assemble(MIPS.machine, HEAD + source, folder)


def halves(image: bytes, **symbols: int) -> bytes:
    """Return the linked text of an object that lies where modules do."""
    addresses = place(plan(parse(image)), 0xFFFF_FFFF_C000_0000)
    return bytes(link(image, addresses, symbols)[parse(image).section(".text").index])


@pytest.mark.parametrize("far", [0x7FFF_8000, 0x1_2345_6789, 0xC000_0000_0000_0000])
def test_two_halves_hold_what_two_halves_can(far: int, tmp_path: Path) -> None:
    """Out of reach of a sign-extended number is an error that names the way out."""
    image = built(SHORT.format("far"), tmp_path)
    with pytest.raises(RelocationError, match=r"R_MIPS_HI16 against 'far' out of range") as caught:
        halves(image, far=far)
    assert "build it with -mno-sym32" in caught.value.failures[0].hint
    assert halves(image, far=far & 0xFFFF | 0xFFFF_FFFF_8000_0000)


@pytest.mark.parametrize("far", ANYWHERE)
def test_four_halves_hold_every_address(far: int, tmp_path: Path) -> None:
    """With HIGHER and HIGHEST in the object any address is linked, to the bytes of GNU ld."""
    image = built(LONG.format("far") + SHORT.format("near"), tmp_path)
    symbols = {"far": far, "near": 0xFFFF_FFFF_C001_2345}
    addresses = place(plan(parse(image)), 0xFFFF_FFFF_C000_0000)
    theirs = ld.link(image, addresses, symbols, tmp_path).sections
    index = parse(image).section(".text").index
    text = halves(image, **symbols)
    assert text == theirs[index]
    words = [int.from_bytes(text[at : at + 2], "little") for at in (0, 4, 12, 20)]
    value = 0
    for half in words:
        value = (value << 16) + (half ^ 0x8000) - 0x8000
    assert value % (1 << 64) == far


@pytest.mark.parametrize("place_of", [0xFFFF_FFFF_C000_0000, 0x1_2000_0000])
def test_what_the_assembler_does_not_write_is_linked_as_ld_links_it(
    place_of: int, tmp_path: Path
) -> None:
    """Types of Release 6, and of words and branches of other spellings."""
    source = "".join(
        f".reloc ., R_MIPS_{kind}, near + {addend}\n.word {word:#x}\n"
        for kind, word, addend in (
            ("PC16", 0x1000_0000, 8),
            ("PC21_S2", 0xD840_0000, 16),
            ("PC26_S2", 0xC800_0000, 4),
            ("PC19_S2", 0xEC48_0000, 12),
            ("PCHI16", 0xEC5E_0000, 0x7FFF),
            ("PCLO16", 0x6442_0000, 0x8001),
            ("PC32", 0, 3),
            ("26", 0x0C00_0000, 0),
        )
    )
    image = built(source, tmp_path)
    addresses = place(plan(parse(image)), place_of)
    symbols = {"near": place_of + 0x1_0000}
    theirs = ld.link(image, addresses, symbols, tmp_path).sections
    index = parse(image).section(".text").index
    assert bytes(link(image, addresses, symbols)[index]) == theirs[index]


def test_a_record_packs_types_its_own_way() -> None:
    """The dialect is the one of the 64-bit ELF Object File Specification for MIPS, 2.9.1."""
    assert MIPS.link.dialect.info is Info.MIPS64
    assert MIPS.link.relocations.companions == (28, 29)


def test_where_modules_lie() -> None:
    """MODULE_START and MODULE_END are those in the code of Debian's module_alloc."""
    there = MIPS.loads.address_map()
    window = there.range_of(ExecmemType.MODULE_TEXT).range
    assert window == Interval(0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_FFFC_D000)
    # [_text, _end) of vmlinux-6.1.0-47-5kc-malta, in pages.
    assert there.image == Interval(0xFFFF_FFFF_8010_0000, 0xFFFF_FFFF_812D_1000)


@given(seed=st.integers(0, (1 << 64) - 1))
def test_a_kernel_moves_behind_itself(seed: int) -> None:
    """determine_relocation_address: by multiples of 64 KiB, never over where it was loaded."""
    here, there = MIPS.loads.address_map(), MIPS.loads.address_map(kaslr=seed)
    moved = there.image.start - here.image.start
    assert moved % 0x1_0000 == 0
    assert here.image.size <= moved < 0x100_0000 + here.image.size + 0x1_0000
    window = ExecmemType.MODULE_TEXT
    assert there.range_of(window) == here.range_of(window)
