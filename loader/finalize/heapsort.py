# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's sort(), for tables in which several entries have one key.

Heapsort is not stable, so where entries with equal keys end up depends on every exchange
that is made. A table sorted by such a key is only equal to the kernel's if the exchanges
are: the bottom-up variant that takes the two largest elements in one round (lib/sort.c,
sort_r, since Linux 6.11).
"""

from __future__ import annotations

from collections.abc import Sequence


def order(keys: Sequence[int]) -> list[int]:
    """Return the permutation that the kernel's sort() makes of entries with these keys."""
    at = list(range(len(keys)))
    key = list(keys)

    def swap(i: int, j: int) -> None:
        at[i], at[j] = at[j], at[i]
        key[i], key[j] = key[j], key[i]

    size, root, step = len(keys), len(keys) // 2, 1
    if size < 2:
        return at
    while True:
        if root:  # build the heap, or go on from where the second largest was taken
            root -= step
        elif size > 3:
            size -= 1
            swap(0, size)
            step = 1 + (key[1] <= key[2])
            root = step
            size -= 1
            swap(root, size)
        else:
            break
        # Follow the larger children to a leaf, then climb to where the root's element belongs.
        low = root
        while 2 * low + 2 < size:
            left = 2 * low + 1
            low = left if key[left] > key[left + 1] else left + 1
        if 2 * low + 2 == size:
            low = 2 * low + 1
        moved = key[root]
        while low != root and moved >= key[low]:
            low = (low - 1) // 2
        # Everything on the way from there up to the root moves one level up.
        hole = low
        while low != root:
            low = (low - 1) // 2
            swap(low, hole)
    size -= 1
    swap(0, size)
    if size == 2 and key[0] > key[1]:
        swap(0, 1)
    return at
