# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols that are kept as one text, beside a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.booted.symbols import Symbols

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=255), min_size=1, max_size=8)
TABLE = st.lists(st.tuples(NAMES, st.integers(0, (1 << 64) - 1)), max_size=40)


def made(table: list[tuple[str, int]]) -> Symbols:
    """Return symbols by names and addresses."""
    names = tuple(name for name, _ in table)
    return Symbols.of(names, np.array([at for _, at in table], np.uint64))


@given(TABLE, NAMES)
def test_they_are_a_mapping_in_which_the_first_wins(
    table: list[tuple[str, int]], other: str
) -> None:
    """They are a mapping in which the first wins."""
    symbols, expected = made(table), dict(reversed(table))
    assert {name: symbols[name] for name in expected} == expected
    assert set(symbols) == set(expected)
    assert len(symbols) == len(expected)
    assert (other in symbols) == (other in expected)
    if other not in expected:
        with pytest.raises(KeyError):
            symbols[other]


@given(TABLE, st.integers(0, (1 << 64) - 1))
def test_around_an_address_is_the_nearest_before(table: list[tuple[str, int]], at: int) -> None:
    """Around an address is the nearest before."""
    before = [(address, name) for name, address in table if address <= at]
    found = made(table).around(at)
    if not before:
        assert found is None
        return
    start = max(address for address, _ in before)
    later = [address for _, address in table if address > at]
    assert found is not None
    assert found[0] in {name for address, name in before if address == start}
    assert found[1:] == (at - start, min(later) - start if later else 0)


@pytest.mark.parametrize("name", ["", "\0", "a\0b", "\N{SNOWMAN}"])
def test_what_is_no_name_is_not_there(name: str) -> None:
    """What is no name is not there."""
    assert name not in made([("a", 1), ("b", 2)])
