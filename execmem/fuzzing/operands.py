# SPDX-License-Identifier: GPL-2.0-or-later
"""What bytes of an input were compared with: where a value of one side stands in it, put the other's.

That is what RedQueen calls input-to-state correspondence (Aschermann et al., NDSS 2019), without its
colouring: which of several places it was is left to trying.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from emulator.compares import LONGEST, Pair

# Where, how many bytes, whether the first is the most significant, and what is to be there; of no
# bytes: by how many the input is to be longer. A single byte that is no length has 1 there.
Hint = tuple[int, int, int, int]
WIDEST = LONGEST + 1  # bytes of one: a string with its end
_MOST = 64  # hints of an input, and as many cases
_PLACES = 6  # of a value in it, more say nothing
_CASES = 64  # of a switch
_LONGER = 1 << 16
_WIDTHS = (8, 4, 2, 1)
_MASK = (1 << 64) - 1


def hints_of(data: bytes, pairs: Iterable[Pair], low: int = 0) -> tuple[Hint, ...]:
    """Return what an input may be changed to, by what it was seen to be compared with.

    Parameters
    ----------
    data
        The input.
    pairs
        Values that were compared, and not equal.
    low
        Bytes of numbers at its beginning, which are no part of its length.
    """
    found: dict[Hint, None] = {}
    numbers: list[tuple[int, int]] = []
    for left, right in pairs:
        if isinstance(left, bytes) and isinstance(right, bytes):
            found |= dict.fromkeys((*_of_bytes(data, left, right), *_of_bytes(data, right, left)))
        elif isinstance(left, int) and isinstance(right, int):
            numbers.append((left, right))
    for left, right in numbers:
        for value, other in ((left, right), (right, left)):
            if value == other:
                continue
            for hint in _of_value(data, value, other):
                found[hint] = None
            if (
                value in (len(data), len(data) - low)
                and value
                and 0 < abs(other - value) <= _LONGER
            ):
                found[0, 0, 0, other - value] = None
        if len(found) >= _MOST:
            break
    cases: dict[Hint, None] = {}
    for value, number in _cases(numbers):
        for at in _places(data, bytes((value,))):
            cases[at, 1, 1, number] = None
    return (*tuple(found)[:_MOST], *tuple(cases)[:_MOST])


def _of_bytes(data: bytes, value: bytes, other: bytes) -> Iterator[Hint]:
    """Yield where bytes stand in an input that others were compared with, or a string may begin."""
    for end in dict.fromkeys((b"", b"\0")) if len(value) != len(other) else (b"",):
        wanted = other + end
        if wanted:
            for at in _places(data, value) if value else (len(data),):
                yield at, len(wanted), 1, int.from_bytes(wanted, "big")


def _of_value(data: bytes, value: int, other: int) -> Iterator[Hint]:
    for width in _WIDTHS:
        top = 1 << 8 * width
        number = value
        if value >= top:
            if value < (1 << 64) - (top >> 1):
                continue
            number = value & top - 1  # a negative one
        if not _fits(other, width):
            continue
        for big in (0, 1) if width > 1 else (0,):
            piece = number.to_bytes(width, "big" if big else "little")
            for at in _places(data, piece):
                yield at, width, big, other & top - 1


def _places(data: bytes, piece: bytes) -> Iterator[int]:
    at = -1
    for _ in range(_PLACES):
        at = data.find(piece, at + 1)
        if at < 0:
            return
        yield at


def _cases(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield a byte's value and another one, for each case of a switch that compilers make a table of.

    They subtract the first case, and compare what is left with how many there are.
    """
    limits: dict[int, list[int]] = {}
    for pair in pairs:
        for value, limit in (pair, pair[::-1]):
            if limit <= _CASES:
                limits.setdefault(value, []).append(limit)
    for value, first in pairs:
        if value < 256 and first < 256:
            for left in {value - first & (1 << bits) - 1 for bits in (8, 16, 32, 64)}:
                for limit in limits.get(left, ()):
                    for number in range(first, min(first + limit + 1, 256)):
                        if number != value:
                            yield value, number


def _fits(value: int, width: int) -> bool:
    top = 1 << 8 * width
    return value < top or value >= (1 << 64) - (top >> 1)
