# SPDX-License-Identifier: GPL-2.0-or-later
"""How inputs are changed: in the manner of AFL's havoc and splice, and fields as fields.

An own one, because none that is kept can be asked for an input and no more, twice with the same answer:
docs/design.md has what was tried.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from random import Random
from typing import Literal

from execmem.fuzzing.operands import Hint

EDGES: tuple[int, ...] = (
    *(0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 256, 511, 512, 1000, 1023),
    *(1024, 4095, 4096, 0x7FFF, 0x8000, 0xFFFF, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31),
    *((1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
_SIZES = (1, 1, 1, 2, 2, 4, 4, 8)
_LENGTHS = (*range(18), 24, 31, 32, 48, 63, 64, 127, 128, 255)
_HINTED, _SPLICED, _WEIGHED = 0.25, 0.35, 0.7  # how often, of all inputs
_JOINED = 32  # others that a new entry is put together with
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
        self.fixed = max((at + size for at, size in fields), default=0)
        self._ways: tuple[Callable[[bytearray, Random, int], None], ...] = (
            *(_flip, _byte, _number, _near, _edge, _edge, _insert, _delete, _repeat, _overwrite),
            *(_sized, _sized),
            *((self._word, self._word) if self._words else ()),
        )

    def inputs(
        self,
        corpus: Sequence[bytes],
        seed: int,
        count: int,
        hints: Sequence[Sequence[Hint]] = (),
        weights: Sequence[float] = (),
        fresh: Sequence[int] = (),
    ) -> Iterator[bytes]:
        """Yield so many inputs, which follow from the corpus and the seed.

        Parameters
        ----------
        hints
            What those of the corpus may be changed to, as of `operands`.
        weights
            How often each of them is to be taken, in relation to others.
        fresh
            Those whose hints are followed first, one by one.
        """
        random = Random(seed)  # noqa: S311 -- to be repeated, not to be secret
        for number in fresh:
            for data in self.firsts(corpus, number, hints[number]):
                if not count:
                    return
                count -= 1
                yield data
        sums = list(accumulate(weights))
        for _ in range(count):
            yield self.one(corpus, random, hints, sums)

    def firsts(self, corpus: Sequence[bytes], number: int, hints: Sequence[Hint]) -> list[bytes]:
        """Return what is made of an entry when it is new, each once."""
        followed = self.followed(corpus[number], hints)
        return list(dict.fromkeys((*followed, *self.joined(corpus, number))))

    def followed(self, data: bytes, hints: Sequence[Hint]) -> Iterator[bytes]:
        """Yield what each hint makes of an input; a byte may be one, or how long what follows is."""
        for hint in hints:
            at, width, big, _ = hint
            long = width == 1 and not big and self.fixed <= at and at + 1 + data[at] <= len(data)
            for sized in (False, True) if long else (False,):
                made = bytearray(data)
                _follow(made, hint, 0, sized=sized)
                yield bytes(made[: self._most])

    def joined(self, corpus: Sequence[bytes], number: int) -> Iterator[bytes]:
        """Yield an input with what others have behind their common beginning, and the other way round.

        What ends in a zero, which may be a piece without contents, also with something in it.
        """
        random = Random(len(corpus))  # noqa: S311 -- to be repeated, not to be secret
        for each in random.sample(range(len(corpus)), min(len(corpus), _JOINED)):
            for first, second in ((number, each), (each, number)):
                made = bytearray(corpus[first])
                self._append(made, corpus[second])
                yield bytes(made[: self._most])
                if len(made) > self.fixed and not made[-1]:
                    _resize(made, len(made) - 1, 1)
                    yield bytes(made[: self._most])

    def one(
        self,
        corpus: Sequence[bytes],
        random: Random,
        hints: Sequence[Sequence[Hint]] = (),
        sums: Sequence[float] = (),
    ) -> bytes:
        """Return an input that is made of one of the corpus, or of two."""
        rand = random.random
        if sums and rand() < _WEIGHED:
            chosen = bisect(sums, rand() * sums[-1])
        else:
            low = max(len(corpus) - _RECENT, 0) if rand() < 0.5 else 0
            chosen = low + int(rand() * (len(corpus) - low))
        data = bytearray(corpus[chosen])
        if hints and hints[chosen] and rand() < _HINTED:
            hint = hints[chosen][int(rand() * len(hints[chosen]))]
            sized = rand() < 0.5 and not hint[2] and hint[0] >= self.fixed
            _follow(data, hint, (0, 0, 1, -1)[int(rand() * 4)], sized=sized)
            if rand() < 0.5:
                return bytes(data[: self._most])
        if len(corpus) > 1 and rand() < _SPLICED:
            other = corpus[int(rand() * len(corpus))]
            if rand() < 0.2:
                self._splice(data, other, random)
            else:
                self._append(data, other)
            if rand() < 0.5:
                return bytes(data[: self._most])
        for _ in range(_STACK[int(rand() * len(_STACK))]):
            if self._fields and rand() < 0.5:
                self._field(data, random)
            elif len(data) > self.fixed:
                self._ways[int(rand() * len(self._ways))](data, random, self.fixed)
            else:
                (self._word if self._words and rand() < 0.3 else _insert)(data, random, self.fixed)
        del data[self._most :]
        return bytes(data)

    def _splice(self, data: bytearray, other: bytes, random: Random) -> None:
        low = self.fixed
        at = low + int(random.random() * max(len(data) - low + 1, 1))
        its = low + int(random.random() * max(len(other) - low + 1, 1))
        data[at:] = other[its:]

    def _append(self, data: bytearray, other: bytes) -> None:
        """Append what another has behind the beginning that is the same in both."""
        at = self.fixed
        while at < min(len(data), len(other)) and data[at] == other[at]:
            at += 1
        data += other[at:]

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


def _follow(data: bytearray, hint: Hint, more: int, *, sized: bool) -> None:
    """Put there what was compared with what is there.

    Parameters
    ----------
    more
        What is added to it.
    sized
        It says how long what follows is, which becomes as long.
    """
    at, width, big, number = hint
    number += more
    if width == 1 and sized:
        _resize(data, at, number & 0xFF)
    elif width:
        order: Literal["big", "little"] = "big" if big else "little"
        data[at : at + width] = (number & (1 << 8 * width) - 1).to_bytes(width, order)
    elif number > 0:
        data += bytes(number)
    else:
        del data[max(len(data) + number, 0) :]


def _sized(data: bytearray, random: Random, low: int) -> None:
    """Change how long something is of which a byte says so: both at once."""
    if len(data) <= low:
        return
    at = _place(data, random, low)
    if at + 1 + data[at] <= len(data):
        _resize(data, at, _LENGTHS[int(random.random() * len(_LENGTHS))])


def _resize(data: bytearray, at: int, size: int) -> None:
    old = min(data[at], len(data) - at - 1)
    data[at] = size
    if size <= old:
        del data[at + 1 + size : at + 1 + old]
    else:
        data[at + 1 + old : at + 1 + old] = bytes((data[at + old] if old else 0,)) * (size - old)


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
