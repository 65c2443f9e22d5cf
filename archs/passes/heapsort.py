# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's sort(), for tables in which several entries have one key.

Heapsort is not stable, so where entries with equal keys end up depends on every exchange
that is made. A table sorted by such a key is only equal to the kernel's if the exchanges
are: the bottom-up variant, which since Linux 6.11 takes the two largest elements in one round
(lib/sort.c, sort_r).
"""

from __future__ import annotations

from collections.abc import Sequence

from archs.versions import MODELLED, Since, Version

TWICE = Since(((0, 0), False), ((6, 11), True))


def order(keys: Sequence[int], version: Version = MODELLED) -> list[int]:
    """Return the permutation that the kernel's sort() makes of entries with these keys."""
    size = len(keys)
    if size < 2:
        return list(range(size))
    if not TWICE.at(version):
        return _one_at_a_time(keys)
    # One number stands for an entry: its key's rank, then its index, which must not be compared.
    shift = size.bit_length()
    rest = (1 << shift) - 1
    ranks = {key: rank << shift for rank, key in enumerate(sorted(set(keys)))}
    heap = [ranks[key] | index for index, key in enumerate(keys)]
    root, step = size // 2, 1
    while True:
        if root:  # build the heap, or go on from where the second largest was taken
            root -= step
        elif size > 3:
            size -= 1
            heap[0], heap[size] = heap[size], heap[0]
            root = step = 1 + (heap[1] <= heap[2] | rest)
            size -= 1
            heap[root], heap[size] = heap[size], heap[root]
        else:
            break
        # Follow the larger children to a leaf, then climb to where the root's element belongs.
        low, right = root, 2 * root + 2
        while right < size:
            low = right - (heap[right - 1] > heap[right] | rest)
            right = 2 * low + 2
        if right == size:
            low = right - 1
        moved = heap[root] | rest
        while low != root and moved >= heap[low]:
            low = (low - 1) >> 1
        # Everything on the way from there up to the root moves one level up.
        hole, above = low, heap[low]
        while low != root:
            low = (low - 1) >> 1
            heap[low], above = above, heap[low]
        heap[hole] = above
    size -= 1
    heap[0], heap[size] = heap[size], heap[0]
    if size == 2 and heap[0] > heap[1] | rest:
        heap[0], heap[1] = heap[1], heap[0]
    return [entry & rest for entry in heap]


def _one_at_a_time(keys: Sequence[int]) -> list[int]:
    """Return what `order` does, as it was before: one element in a round."""
    heap = list(range(len(keys)))
    size, root = len(keys), len(keys) // 2
    while root or size > 1:
        if root:  # build the heap
            root -= 1
        else:
            size -= 1
            heap[0], heap[size] = heap[size], heap[0]
        low, right = root, 2 * root + 2
        while right < size:
            low = right - (keys[heap[right - 1]] >= keys[heap[right]])
            right = 2 * low + 2
        if right == size:
            low = right - 1
        while low != root and keys[heap[root]] >= keys[heap[low]]:
            low = (low - 1) >> 1
        hole, above = low, heap[low]
        while low != root:
            low = (low - 1) >> 1
            heap[low], above = above, heap[low]
        heap[hole] = above
    return heap
