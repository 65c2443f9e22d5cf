# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists, trees and sorting (lib/list_debug.c, lib/list_sort.c, lib/sort.c, lib/bsearch.c, lib/rbtree.c).

The comparison functions are guest code and are called for every comparison. A corrupt list
is a BUG in the modelled kernel's configuration (BUG_ON_DATA_CORRUPTION), so it stops.
"""

from __future__ import annotations

from collections.abc import Callable

from kernels.modelled.api.common import copy, nodes, signed_int, stop, words
from kernels.modelled.bounds import PIECE
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import PREV, offset_of
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import function

LIST_POISON1, LIST_POISON2 = 0xDEAD_0000_0000_0100, 0xDEAD_0000_0000_0122
KEY = 512  # bytes that a node costs the host while a list is sorted
SWAP_BUILTIN = 3  # lib/sort.c: smaller "addresses" choose one of its own
REFCOUNT_SATURATED = 0xC000_0000  # INT_MIN / 2


# Lists -------------------------------------------------------------------------------------


def _corrupt(k: Kernel, message: str) -> None:
    k.print(message.encode() + b"\n", 3)
    stop(k, message)


@function(
    "bool __list_add_valid_or_report(struct list_head *new, struct list_head *prev,"
    " struct list_head *next)"
)
def _list_add_valid(k: Kernel, new: int, before: int, after: int) -> int:
    if not before or not after:
        _corrupt(k, f"list_add corruption. {'next' if before else 'prev'} is NULL.")
    back, forth = k.word(after + PREV), k.word(before)
    if back != before:
        _corrupt(
            k,
            f"list_add corruption. next->prev should be prev ({before:016x}), but was {back:016x}."
            f" (next={after:016x}).",
        )
    if forth != after:
        _corrupt(
            k,
            f"list_add corruption. prev->next should be next ({after:016x}), but was {forth:016x}."
            f" (prev={before:016x}).",
        )
    if new in (before, after):
        _corrupt(k, f"list_add double add: new={new:016x}, prev={before:016x}, next={after:016x}.")
    return 1


@function("bool __list_del_entry_valid_or_report(struct list_head *entry)")
def _list_del_entry_valid(k: Kernel, entry: int) -> int:
    after, before = k.word(entry), k.word(entry + PREV)
    start = f"list_del corruption, {entry:016x}"
    if not after or not before:
        _corrupt(k, f"{start}->{'next' if not after else 'prev'} is NULL")
    if after == LIST_POISON1:
        _corrupt(k, f"{start}->next is LIST_POISON1 ({LIST_POISON1:016x})")
    if before == LIST_POISON2:
        _corrupt(k, f"{start}->prev is LIST_POISON2 ({LIST_POISON2:016x})")
    for side, found, place in (
        ("prev->next", k.word(before), f"prev={before:016x}"),
        ("next->prev", k.word(after + PREV), f"next={after:016x}"),
    ):
        if found != entry:
            _corrupt(
                k,
                f"list_del corruption. {side} should be {entry:016x}, but was {found:016x}."
                f" ({place})",
            )
    return 1


@function("void list_sort(void *priv, struct list_head *head, list_cmp_func_t *cmp)")
def _list_sort(k: Kernel, priv: int, head: int, compare: int) -> None:
    class Key:
        """A node that Python's stable sort compares as list_sort's caller does."""

        def __init__(self, node: int) -> None:
            self.node = node

        def __lt__(self, other: Key) -> bool:
            # Only "greater than zero" has a meaning: a comparison may be a plain bool.
            return signed_int(k.call(compare, priv, other.node, self.node)) > 0

    keys = []
    for node in nodes(k, head):
        k.hold(KEY)
        keys.append(node)
    ring = [head, *sorted(keys, key=Key)]
    for before, node, after in zip([ring[-1], *ring], ring, [*ring[1:], head], strict=False):
        k.memory.write(node, words(after, before))


# Arrays ------------------------------------------------------------------------------------


def _heap_sort(
    base: int,
    count: int,
    size: int,
    compare: Callable[[int, int], int],
    swap: Callable[[int, int], object],
) -> None:
    """Sort in place; `compare` and `swap` get addresses of elements."""

    def sift(root: int, end: int) -> None:
        while (child := 2 * root + 1) < end:
            one = base + child * size
            if child + 1 < end and compare(one, one + size) < 0:
                child, one = child + 1, one + size
            if compare(base + root * size, one) >= 0:
                return
            swap(base + root * size, one)
            root = child

    for root in range(count // 2 - 1, -1, -1):
        sift(root, count)
    for end in range(count - 1, 0, -1):
        swap(base, base + end * size)
        sift(0, end)


def _swapper(
    k: Kernel, size: int, swap: int, extra: tuple[int, ...]
) -> Callable[[int, int], object]:
    if swap >= SWAP_BUILTIN:
        return lambda one, two: k.call(swap, one, two, size, *extra)

    def exchange(one: int, two: int) -> None:
        for at in range(0, size, PIECE):
            count = min(PIECE, size - at)
            contents = k.memory.read(one + at, count)
            copy(k, one + at, two + at, count)
            k.memory.write(two + at, contents)

    return exchange


@function(
    "void sort(void *base, size_t num, size_t size, cmp_func_t cmp_func, swap_func_t swap_func)"
)
def _sort(k: Kernel, base: int, count: int, size: int, compare: int, swap: int) -> None:
    _heap_sort(
        base,
        count,
        size,
        lambda one, two: signed_int(k.call(compare, one, two)),
        _swapper(k, size, swap, ()),
    )


@function(
    "void sort_r(void *base, size_t num, size_t size, cmp_r_func_t cmp_func,"
    " swap_r_func_t swap_func, const void *priv)"
)
def _sort_r(
    k: Kernel, base: int, count: int, size: int, compare: int, swap: int, priv: int
) -> None:
    _heap_sort(
        base,
        count,
        size,
        lambda one, two: signed_int(k.call(compare, one, two, priv)),
        _swapper(k, size, swap, (priv,)),
    )


@function(
    "void *bsearch(const void *key, const void *base, size_t num, size_t size, cmp_func_t cmp)"
)
def _bsearch(k: Kernel, key: int, base: int, count: int, size: int, compare: int) -> int:
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        at = base + middle * size
        order = signed_int(k.call(compare, key, at))
        if order == 0:
            return at
        low, high = (low, middle) if order < 0 else (middle + 1, high)
    return 0


# Red-black trees ---------------------------------------------------------------------------
# struct rb_node: parent and colour (1 black), right, left. An entry that changes a tree
# keeps both rules: no red node has a red child, every path has as many black nodes.

declare("rb_node", "__rb_parent_color rb_right rb_left")
RIGHT, LEFT = offset_of("rb_node", "rb_right"), offset_of("rb_node", "rb_left")
PARENT = offset_of("rb_node", "__rb_parent_color")
BLACK = 1


def _parent(k: Kernel, node: int) -> int:
    return k.word(node + PARENT(k)) & ~3


def _colour(k: Kernel, node: int) -> int:
    return k.word(node + PARENT(k)) & BLACK


def _black(k: Kernel, node: int) -> bool:
    return not node or _colour(k, node) == BLACK


def _hang(k: Kernel, node: int, parent: int) -> None:
    k.store(node + PARENT(k), parent | _colour(k, node))


def _paint(k: Kernel, node: int, colour: int) -> None:
    k.store(node + PARENT(k), _parent(k, node) | colour)


def _replace(k: Kernel, root: int, old: int, new: int) -> None:
    """Make the parent of `old` point at `new` instead."""
    parent = _parent(k, old)
    if not parent:
        k.store(root, new)
    else:
        k.store(parent + (LEFT(k) if k.word(parent + LEFT(k)) == old else RIGHT(k)), new)
    if new:
        _hang(k, new, parent)


def _rotate(k: Kernel, root: int, node: int, side: int) -> None:
    """Move `node` down to `side`; its other child takes its place."""
    other = LEFT(k) + RIGHT(k) - side
    child = k.word(node + other)
    inner = k.word(child + side)
    _replace(k, root, node, child)
    k.store(node + other, inner)
    if inner:
        _hang(k, inner, node)
    k.store(child + side, node)
    _hang(k, node, child)


@function("void rb_insert_color(struct rb_node *node, struct rb_root *root)")
def _rb_insert_color(k: Kernel, node: int, root: int) -> None:
    while not _black(k, parent := _parent(k, node)):
        above = _parent(k, parent)
        side = LEFT(k) if k.word(above + LEFT(k)) == parent else RIGHT(k)
        other = LEFT(k) + RIGHT(k) - side
        uncle = k.word(above + other)
        if not _black(k, uncle):
            _paint(k, parent, BLACK)
            _paint(k, uncle, BLACK)
            _paint(k, above, 0)
            node = above
            continue
        if k.word(parent + other) == node:
            _rotate(k, root, parent, side)
            node, parent = parent, node
        _paint(k, parent, BLACK)
        _paint(k, above, 0)
        _rotate(k, root, above, other)
    _paint(k, k.word(root), BLACK)


@function("void rb_erase(struct rb_node *node, struct rb_root *root)")
def _rb_erase(k: Kernel, node: int, root: int) -> None:
    right, left = k.word(node + RIGHT(k)), k.word(node + LEFT(k))
    black = _colour(k, node)
    if right and left:
        # The next node, which has no left child, takes the place and the colour.
        heir = _outermost(k, right, LEFT(k))
        black = _colour(k, heir)
        child, parent = k.word(heir + RIGHT(k)), _parent(k, heir)
        if parent == node:
            parent = heir
        else:
            _replace(k, root, heir, child)
            k.store(heir + RIGHT(k), right)
            _hang(k, right, heir)
        _replace(k, root, node, heir)
        k.store(heir + LEFT(k), left)
        _hang(k, left, heir)
        _paint(k, heir, _colour(k, node))
    else:
        child, parent = right or left, _parent(k, node)
        _replace(k, root, node, child)
    if black:
        _rebalance(k, root, child, parent)


def _rebalance(k: Kernel, root: int, node: int, parent: int) -> None:
    """Make up for a black node that is missing on the path to `node`, a child of `parent`."""
    while parent and _black(k, node):
        side = LEFT(k) if k.word(parent + LEFT(k)) == node else RIGHT(k)
        other = LEFT(k) + RIGHT(k) - side
        sibling = k.word(parent + other)
        if not _black(k, sibling):
            _paint(k, sibling, BLACK)
            _paint(k, parent, 0)
            _rotate(k, root, parent, side)
            sibling = k.word(parent + other)
        near, far = k.word(sibling + side), k.word(sibling + other)
        if _black(k, near) and _black(k, far):
            _paint(k, sibling, 0)
            node, parent = parent, _parent(k, parent)
            continue
        if _black(k, far):
            _paint(k, near, BLACK)
            _paint(k, sibling, 0)
            _rotate(k, root, sibling, other)
            sibling = k.word(parent + other)
            far = k.word(sibling + other)
        _paint(k, sibling, _colour(k, parent))
        _paint(k, parent, BLACK)
        _paint(k, far, BLACK)
        _rotate(k, root, parent, side)
        return
    if node:
        _paint(k, node, BLACK)


def _outermost(k: Kernel, node: int, side: int) -> int:
    while node and (further := k.word(node + side)):
        node = further
    return node


def _neighbour(k: Kernel, node: int, side: int) -> int:
    if k.word(node + PARENT(k)) == node:  # RB_CLEAR_NODE: in no tree
        return 0
    further = k.word(node + side)
    if further:
        return _outermost(k, further, LEFT(k) + RIGHT(k) - side)
    while (parent := _parent(k, node)) and k.word(parent + side) == node:
        node = parent
    return parent


@function("struct rb_node *rb_next(const struct rb_node *node)")
def _rb_next(k: Kernel, node: int) -> int:
    return _neighbour(k, node, RIGHT(k))


@function("struct rb_node *rb_prev(const struct rb_node *node)")
def _rb_prev(k: Kernel, node: int) -> int:
    return _neighbour(k, node, LEFT(k))


@function("struct rb_node *rb_first(const struct rb_root *root)")
def _rb_first(k: Kernel, root: int) -> int:
    return _outermost(k, k.word(root), LEFT(k))


@function("struct rb_node *rb_last(const struct rb_root *root)")
def _rb_last(k: Kernel, root: int) -> int:
    return _outermost(k, k.word(root), RIGHT(k))


# Reference counts (lib/refcount.c) -----------------------------------------------------------

_SATURATION = (
    "saturated; leaking memory",
    "saturated; leaking memory",
    "addition on 0; use-after-free",
    "underflow; use-after-free",
    "decrement hit 0; leaking memory",
)


@function("void refcount_warn_saturate(refcount_t *r, enum refcount_saturation_type t)")
def _refcount_warn_saturate(k: Kernel, count: int, kind: int) -> None:
    k.store(count, REFCOUNT_SATURATED, 4)
    what = _SATURATION[kind] if 0 <= kind < len(_SATURATION) else "unknown saturation event!?"
    k.print(f"refcount_t: {what}.\n".encode(), 4)
