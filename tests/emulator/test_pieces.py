# SPDX-License-Identifier: GPL-2.0-or-later
"""Where memory may be executed: as little as code needs, and whole pieces where they are mapped as one."""

from __future__ import annotations

from collections.abc import Callable

import unicorn
from unicorn import unicorn_const as uc_const

from emulator.boards.pieces import Pieces
from emulator.ram import Ram

START, SIZE, PIECE, PAGE = 0x4000_0000, 8 << 20, 2 << 20, 4096
AT = 0xFFFF_8000_1000_0000  # where a piece is seen


def pieces() -> tuple[unicorn.Uc, Pieces]:
    """Return an emulator and its memory."""
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    return uc, Pieces(uc, Ram(START, SIZE))


def executable(uc: unicorn.Uc) -> set[int]:
    """Return the physical addresses of pages that may be executed."""
    return {
        page
        for first, last, rights in uc.mem_regions()
        if rights & uc_const.UC_PROT_EXEC
        for page in range(first, last + 1, PAGE)
    }


def seen(pages: dict[int, int]) -> Callable[[int], int | None]:
    """Return what translates addresses of some pages."""
    return lambda address: pages.get(address & -PAGE)


def test_pages_that_follow_each_other() -> None:
    """What lies before them, or is mapped elsewhere, is data, and is told apart."""
    uc, found = pieces()
    first = START + 5 * PAGE
    pages = {AT: first, AT + PAGE: first + PAGE, AT + 2 * PAGE: first + 9 * PAGE}
    assert found.execute(AT + 0x123, seen(pages))
    assert executable(uc) == {first, first + PAGE}
    assert found.is_executed(first + PAGE)
    assert not found.is_executed(first - 1)
    assert not found.is_executed(first + 2 * PAGE)
    assert not found.execute(AT, seen(pages))  # it may be already
    assert not found.execute(AT - PAGE, seen(pages))
    assert not found.execute(AT, seen({AT: START - PAGE}))  # no memory


def test_a_piece_that_is_mapped_as_one() -> None:
    """A kernel's text is: it is asked about once, and no other piece with it."""
    uc, found = pieces()
    assert found.execute(AT + 77 * PAGE, lambda address: START + PIECE + address - AT)
    assert executable(uc) == set(range(START + PIECE, START + 2 * PIECE, PAGE))
    assert not found.execute(AT, lambda address: START + PIECE + address - AT)


def test_a_piece_of_many_parts_is_one() -> None:
    """Each part makes changes of the map slower."""
    uc, found = pieces()
    for number in range(5):
        page = START + 20 * number * PAGE
        assert found.execute(AT, seen({AT: page}))
        expected = {START + 20 * n * PAGE for n in range(number + 1)}
        assert executable(uc) == (
            expected if number < 4 else set(range(START, START + PIECE, PAGE))
        )
