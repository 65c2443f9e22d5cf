# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's sort, exchange by exchange."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from archs.passes.heapsort import order


def exchanged(keys):
    """Return the permutation by exchanges of whole entries, one comparison at a time."""
    entries = [(key, index) for index, key in enumerate(keys)]

    def compare(a, b):
        return (entries[a][0] > entries[b][0]) - (entries[a][0] < entries[b][0])

    def swap(a, b):
        entries[a], entries[b] = entries[b], entries[a]

    n, a, shift = len(keys), len(keys) // 2, 0
    if not a:
        return [index for _, index in entries]
    while True:
        if a:
            a -= 1 << shift
        elif n > 3:
            n -= 1
            swap(0, n)
            shift = compare(1, 2) <= 0
            a = 1 << shift
            n -= 1
            swap(a, n)
        else:
            break
        b = a
        while 2 * b + 2 < n:
            b = 2 * b + 1 if compare(2 * b + 1, 2 * b + 2) > 0 else 2 * b + 2
        if 2 * b + 2 == n:
            b = 2 * b + 1
        while b != a and compare(a, b) >= 0:
            b = (b - 1) // 2
        c = b
        while b != a:
            b = (b - 1) // 2
            swap(b, c)
    n -= 1
    swap(0, n)
    if n == 2 and compare(0, 1) > 0:
        swap(0, 1)
    return [index for _, index in entries]


@given(st.lists(st.integers(0, 6), max_size=60))
def test_entries_of_one_key_end_where_the_exchanges_leave_them(keys):
    """The permutation is the one that lib/sort.c makes, and it sorts."""
    found = order(keys)
    assert found == exchanged(keys)
    assert [keys[index] for index in found] == sorted(keys)
