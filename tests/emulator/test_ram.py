# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that can be frozen and gone back to, beside a plain byte array."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.ram import Frozen, Ram

PAGE = 4096
START, SIZE = 0x4000_0000, 16 * PAGE


@dataclass
class Model:
    """What the memory should hold."""

    now: bytearray = field(default_factory=lambda: bytearray(SIZE))
    kept: list[tuple[Frozen, bytes]] = field(default_factory=list)


STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=5000)),
    st.tuples(st.just("freeze"), st.just(0), st.just(b"")),
    st.tuples(st.just("drop"), st.just(0), st.just(b"")),
    st.tuples(st.just("thaw"), st.integers(0, 3), st.just(b"")),
)


@settings(deadline=None)  # mapping takes as long as the host lets it
@given(st.lists(STEP, max_size=12))
def test_memory_is_what_a_byte_array_is(steps: list[tuple[str, int, bytes]]) -> None:
    """Memory is what a byte array is."""
    ram, model = Ram(START, SIZE), Model()
    for what, number, data in steps:
        if what == "write":
            fits = data[: SIZE - number]
            ram.write(START + number, fits)
            model.now[number : number + len(fits)] = fits
        elif what == "freeze":
            model.kept.append((ram.freeze(), bytes(model.now)))
        elif model.kept and what == "drop":
            last = next(held for held in model.kept if held[0] is ram.frozen)
            ram.drop()
            model.now[:] = last[1]
        elif model.kept:
            chosen = model.kept[number % len(model.kept)]
            ram.thaw(chosen[0])
            model.now[:] = chosen[1]
        assert ram.view.tobytes() == bytes(model.now)


def test_only_what_was_written_since_has_changed() -> None:
    """Only what was written since has changed."""
    ram = Ram(START, SIZE)
    ram.write(START + PAGE, b"before")
    ram.freeze()
    assert ram.changed().tolist() == []
    ram.write(START + 3 * PAGE + 17, b"after")
    assert ram.read(START + 5 * PAGE, 4) == bytes(4)
    assert ram.changed().tolist() == [3]
    ram.drop()
    assert ram.changed().tolist() == []
    assert ram.read(START + PAGE, 6) == b"before"


def test_a_page_of_zeros_takes_no_room_in_a_file() -> None:
    """A page of zeros takes no room in a file."""
    ram = Ram(START, 256 * PAGE)
    ram.write(START + 100 * PAGE, b"x")
    fd = os.memfd_create("test")
    ram.save(fd)
    found = os.fstat(fd)
    assert found.st_size == 256 * PAGE
    assert found.st_blocks * 512 == PAGE
    os.close(fd)


@pytest.mark.parametrize("at", [START - 1, START + SIZE, START + SIZE - 1])
def test_there_is_nothing_beside_it(at: int) -> None:
    """There is nothing beside it."""
    ram = Ram(START, SIZE)
    with pytest.raises(IndexError, match=f"{at:#x}"):
        ram.read(at, 2)
    with pytest.raises(IndexError):
        ram.write(at, b"ab")


def there(ram: Ram) -> int:
    """Return how many of the memory's pages the host has (vm/pagemap: bits 62 and 63)."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        file.seek(ram.address // PAGE * 8)
        entries = file.read(ram.size // PAGE * 8)
    return sum(entries[at + 7] >> 6 != 0 for at in range(0, len(entries), 8))


def test_freezing_again_looks_at_what_may_be_other_than_zero_only() -> None:
    """Memory that nobody wrote is not looked at again, which would make the host have it."""
    ram = Ram(START, 4096 * PAGE)
    ram.write(START + 100 * PAGE, b"x")
    ram.freeze()
    ram.write(START + 2000 * PAGE, b"y")
    frozen = ram.freeze()
    ram.write(START + 100 * PAGE, bytes(1))
    ram.write(START + 3000 * PAGE, b"z")
    again = ram.freeze()
    assert there(ram) < 100
    assert os.fstat(again.fd).st_blocks * 512 == 2 * PAGE
    assert os.pread(frozen.fd, 1, 100 * PAGE) == b"x"
    assert [os.pread(again.fd, 1, at * PAGE) for at in (100, 2000, 3000)] == [b"\0", b"y", b"z"]
