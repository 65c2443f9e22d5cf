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


def one_at_a_time(keys):
    """Return the permutation of lib/sort.c before Linux 6.11, element by element."""
    entries = [(key, index) for index, key in enumerate(keys)]
    n, a = len(keys), len(keys) // 2
    while a or n > 1:
        if a:
            a -= 1
        else:
            n -= 1
            entries[0], entries[n] = entries[n], entries[0]
        b = a
        while 2 * b + 2 < n:
            b = 2 * b + 1 if entries[2 * b + 1][0] >= entries[2 * b + 2][0] else 2 * b + 2
        if 2 * b + 2 == n:
            b = 2 * b + 1
        while b != a and entries[a][0] >= entries[b][0]:
            b = (b - 1) // 2
        c = b
        while b != a:
            b = (b - 1) // 2
            entries[b], entries[c] = entries[c], entries[b]
    return [index for _, index in entries]


@given(st.lists(st.integers(0, 6), max_size=60))
def test_older_kernels_took_one_element_in_a_round(keys):
    """The permutation is that of the version, and it sorts."""
    found = order(keys, (6, 10))
    assert found == one_at_a_time(keys)
    assert [keys[index] for index in found] == sorted(keys)
    assert order(keys, (6, 11)) == exchanged(keys)
