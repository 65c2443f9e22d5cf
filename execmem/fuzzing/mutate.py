# SPDX-License-Identifier: GPL-2.0-or-later
"""How inputs are changed: in the manner of AFL's havoc and splice, and fields as fields.

An own one, because none that is kept can be asked for an input and no more, twice with the same answer:
docs/design.md has what was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

EDGES: tuple[int, ...] = (
    *(0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 256, 511, 512, 1000, 1023),
    *(1024, 4095, 4096, 0x7FFF, 0x8000, 0xFFFF, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31),
    *((1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
_SIZES = (1, 1, 1, 2, 2, 4, 4, 8)
_STACK = (1, 1, 1, 2, 2, 3, 4, 8, 16)  # changes of one input
_NEAR = 35  # most that a number is changed by
_RECENT = 8  # entries of the corpus that are chosen as often as all others
Field = tuple[int, int]  # offset and size of a number


class Mutator:
    """Makes inputs.

    Parameters
    ----------
    most
        Bytes of an input.
    fields
        Numbers at fixed places, from the beginning on; what is behind them may move.
    words
        Bytes that the code under test compares with, as far as they are known.
    """

    def __init__(
        self, most: int, fields: Sequence[Field] = (), words: Sequence[bytes] = ()
    ) -> None:
        self._most, self._fields, self._words = most, tuple(fields), tuple(words)
        self._fixed = max((at + size for at, size in fields), default=0)
        self._ways: tuple[Callable[[bytearray, Random, int], None], ...] = (
            *(_flip, _byte, _number, _near, _edge, _edge, _insert, _delete, _repeat, _overwrite),
            *((self._word, self._word) if self._words else ()),
        )

    def inputs(self, corpus: Sequence[bytes], seed: int, count: int) -> Iterator[bytes]:
        """Yield so many inputs, which follow from the corpus and the seed."""
        random = Random(seed)  # noqa: S311 -- to be repeated, not to be secret
        for _ in range(count):
            yield self.one(corpus, random)

    def one(self, corpus: Sequence[bytes], random: Random) -> bytes:
        """Return an input that is made of one of the corpus, or of two."""
        rand = random.random
        recent = corpus[-_RECENT:] if rand() < 0.5 else corpus
        data = bytearray(recent[int(rand() * len(recent))])
        if len(corpus) > 1 and rand() < 0.1:
            self._splice(data, corpus[int(rand() * len(corpus))], random)
        for _ in range(_STACK[int(rand() * len(_STACK))]):
            if self._fields and rand() < 0.5:
                self._field(data, random)
            elif len(data) > self._fixed:
                self._ways[int(rand() * len(self._ways))](data, random, self._fixed)
            else:
                (self._word if self._words and rand() < 0.3 else _insert)(data, random, self._fixed)
        del data[self._most :]
        return bytes(data)

    def _splice(self, data: bytearray, other: bytes, random: Random) -> None:
        low = self._fixed
        at = low + int(random.random() * max(len(data) - low + 1, 1))
        its = low + int(random.random() * max(len(other) - low + 1, 1))
        data[at:] = other[its:]

    def _field(self, data: bytearray, random: Random) -> None:
        """Change a number as a number."""
        at, size = self._fields[int(random.random() * len(self._fields))]
        if len(data) < at + size:
            data.extend(bytes(at + size - len(data)))
        _set_number(data, at, size, random, "little")

    def _word(self, data: bytearray, random: Random, low: int) -> None:
        word = self._words[int(random.random() * len(self._words))]
        at = _place(data, random, low)
        if random.random() < 0.7:
            data[at : at + len(word)] = word
        else:
            data[at:at] = word


def _place(data: bytearray, random: Random, low: int) -> int:
    return low + int(random.random() * (len(data) - low)) if len(data) > low else len(data)


def _flip(data: bytearray, random: Random, low: int) -> None:
    if len(data) > low:
        data[_place(data, random, low)] ^= 1 << int(random.random() * 8)


def _byte(data: bytearray, random: Random, low: int) -> None:
    if len(data) > low:
        data[_place(data, random, low)] = int(random.random() * 256)


def _number(data: bytearray, random: Random, low: int) -> None:
    size = _SIZES[int(random.random() * len(_SIZES))]
    at = _place(data, random, low)
    if at + size <= len(data):
        _set_number(data, at, size, random, "little" if random.random() < 0.7 else "big")


def _set_number(data: bytearray, at: int, size: int, random: Random, order: str) -> None:
    kind, byteorder = random.random(), "big" if order == "big" else "little"
    if kind < 0.4:
        number = EDGES[int(random.random() * len(EDGES))]
    elif kind < 0.7:
        number = int.from_bytes(data[at : at + size], byteorder)  # type: ignore[arg-type]
        number += int(random.random() * (2 * _NEAR + 1)) - _NEAR
    elif kind < 0.85:
        number = int.from_bytes(data[at : at + size], byteorder)  # type: ignore[arg-type]
        number ^= 1 << int(random.random() * 8 * size)
    else:
        number = random.getrandbits(8 * size)
    number &= (1 << 8 * size) - 1
    data[at : at + size] = number.to_bytes(size, byteorder)  # type: ignore[arg-type]


def _near(data: bytearray, random: Random, low: int) -> None:
    if len(data) > low:
        at = _place(data, random, low)
        data[at] = data[at] + int(random.random() * (2 * _NEAR + 1)) - _NEAR & 0xFF


def _edge(data: bytearray, random: Random, low: int) -> None:
    if len(data) > low:
        number = EDGES[int(random.random() * 18)] & 0xFF
        data[_place(data, random, low)] = number


def _insert(data: bytearray, random: Random, low: int) -> None:
    size = 1 << int(random.random() * 6)
    at = low + int(random.random() * (len(data) - low + 1)) if len(data) > low else len(data)
    kind = random.random()
    if kind < 0.4:
        data[at:at] = random.randbytes(size)
    else:
        data[at:at] = bytes((int(random.random() * 256) if kind < 0.7 else 0,)) * size


def _delete(data: bytearray, random: Random, low: int) -> None:
    if len(data) > low:
        at = _place(data, random, low)
        del data[at : at + (1 << int(random.random() * 6))]


def _repeat(data: bytearray, random: Random, low: int) -> None:
    if len(data) > low:
        at = _place(data, random, low)
        data[at:at] = data[at : at + (1 << int(random.random() * 6))]


def _overwrite(data: bytearray, random: Random, low: int) -> None:
    if len(data) > low:
        at, its = _place(data, random, low), _place(data, random, low)
        size = min(1 << int(random.random() * 5), len(data) - at)
        data[at : at + size] = data[its : its + size]
