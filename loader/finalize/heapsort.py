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
    at, key = list(range(len(keys))), list(keys)
    size, root, step = len(keys), len(keys) // 2, 1
    if size < 2:
        return at
    while True:
        if root:  # build the heap, or go on from where the second largest was taken
            root -= step
        elif size > 3:
            size -= 1
            at[0], at[size], key[0], key[size] = at[size], at[0], key[size], key[0]
            root = step = 1 + (key[1] <= key[2])
            size -= 1
            at[root], at[size], key[root], key[size] = at[size], at[root], key[size], key[root]
        else:
            break
        # Follow the larger children to a leaf, then climb to where the root's element belongs.
        low, right = root, 2 * root + 2
        while right < size:
            low = right - 1 if key[right - 1] > key[right] else right
            right = 2 * low + 2
        if right == size:
            low = right - 1
        moved = key[root]
        while low != root and moved >= key[low]:
            low = (low - 1) // 2
        # Everything on the way from there up to the root moves one level up.
        hole, above, higher = low, at[low], key[low]
        while low != root:
            low = (low - 1) // 2
            at[low], above = above, at[low]
            key[low], higher = higher, key[low]
        at[hole], key[hole] = above, higher
    size -= 1
    at[0], at[size], key[0], key[size] = at[size], at[0], key[size], key[0]
    if size == 2 and key[0] > key[1]:
        at[0], at[1] = at[1], at[0]
    return at
