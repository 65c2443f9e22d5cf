# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving x86-64 kernels: beside handle_relocations() of the kernel's decompressor, word by word."""

from __future__ import annotations

import struct
from random import Random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.errors import BadKernel
from loader.kernel.relocs import moved
from loader.kernel.segments import Loaded, Segment

START, SIZE = 0xFFFF_FFFF_8100_0000, 0x4000
MASK32, MASK64 = (1 << 32) - 1, (1 << 64) - 1
OLD, NEW = (6, 12, 1), (7, 2, 0)


@attrs.frozen
class Image:
    """What is asked of an image."""

    contents: bytes
    behind: bytes
    version: tuple[int, int, int] = NEW
    name: str = "bzImage"
    segments: tuple[Segment, ...] = ()

    @property
    def loaded(self) -> Loaded:
        """What is put into memory."""
        return Loaded(address=START, contents={0: self.contents}, size=SIZE, entry=0)


def by_hand(data: bytes, behind: bytes, distance: int, *, inverse: bool) -> bytes:
    """Return what the decompressor makes of it (arch/x86/boot/compressed/misc.c)."""
    memory, at = bytearray(data), len(behind) - 4

    def entry() -> int:
        nonlocal at
        (word,) = struct.unpack_from("<i", behind, at)
        at -= 4
        return word

    def add(word: int, size: int, value: int) -> None:
        place = (word - START) & MASK64
        number = int.from_bytes(memory[place : place + size], "little") + value
        memory[place : place + size] = (number & (1 << 8 * size) - 1).to_bytes(size, "little")

    while word := entry():
        add(word, 4, distance)
    while inverse and (word := entry()):
        add(word, 4, -distance)
    while word := entry():
        add(word, 8, distance)
    return bytes(memory)


def table(lists: list[list[int]]) -> bytes:
    """Return lists of offsets as they stand in a file: each behind a zero, the last one last."""
    words = [w for each in lists for w in (0, *((START + at) & MASK32 for at in sorted(each)))]
    return struct.pack(f"<{len(words)}I", *words)


def offsets(size: int) -> st.SearchStrategy[list[int]]:
    """Return places of words that do not overlap, at odd addresses, too."""
    steps = st.lists(st.integers(size, 300), min_size=1, max_size=40)
    return steps.map(lambda found: [sum(found[:number]) for number in range(len(found))])


@given(
    seed=st.integers(0, MASK32),
    short=offsets(4),
    inverse=offsets(4),
    wide=offsets(8),
    distance=st.integers(0, 500).map(lambda n: n << 21),
    junk=st.binary(max_size=9),
    version=st.sampled_from([OLD, NEW]),
)
def test_words_become_what_the_decompressor_makes_of_them(
    seed: int,
    short: list[int],
    inverse: list[int],
    wide: list[int],
    distance: int,
    junk: bytes,
    version: tuple[int, int, int],
) -> None:
    """Every word of each list, at any offset, and no other."""
    contents = Random(seed).randbytes(SIZE)
    lists = [wide, inverse, short] if version is OLD else [wide, short]
    image = Image(contents, junk + table(lists), version)
    wanted = by_hand(contents, image.behind, distance, inverse=version is OLD)
    assert moved(image, distance) == {0: wanted}


@pytest.mark.parametrize(
    "behind",
    [b"", b"\0\0\0", struct.pack("<4I", 0, 0, 0, 5), table([[SIZE], [1]]), table([[], []])],
)
def test_what_is_no_list_is_refused(behind: bytes) -> None:
    """An image without relocations, or with something else behind it, says so."""
    with pytest.raises(BadKernel, match=r"bzImage: relocations: .*vmlinux\.relocs"):
        moved(Image(bytes(SIZE), behind), 1 << 21)
