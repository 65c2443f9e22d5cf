# SPDX-License-Identifier: GPL-2.0-or-later
"""kallsyms: the symbol table that a kernel carries, found in its bytes and decoded.

Nothing points at the tables, so they are found by what they must look like
(scripts/kallsyms.c, kernel/kallsyms.c):

* 256 *tokens*, strings that the names are packed with; the digits stand for themselves. An
  index of them follows.
* *names*: for each symbol a length (one byte, or two where the first has its top bit set) and
  as many tokens; the first character is the symbol's type. Before them their number.
* *markers*: where every 256th name begins.
* *addresses*, as 32-bit offsets in one of three ways, before the names (up to 6.4) or after
  the index: from a base; absolute where not negative, else backwards from a base, for
  per-cpu symbols; from the place itself (since 7.0).

The order of the tables and what lies between them changed several times; none of that is
relied upon.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from loader.errors import BadKernel

TOKENS = 256
STEP = 256  # names between markers
_DIGITS = b"".join(bytes((digit, 0)) for digit in b"0123456789")
_MAX_TOKEN = 128
_SORTED = 0.98  # of the addresses: absolute symbols may stand apart
ALIGN = 8  # of every table
KERNEL_BITS = 56  # of an address, above which all bits are set

Offsets = NDArray[np.int64]
NONE = "no table of tokens: built without CONFIG_KALLSYMS? An unstripped ELF vmlinux has symbols"


class NoKallsyms(BadKernel):
    """An image carries no symbol table."""


class Encoding(enum.Enum):
    """How addresses are stored."""

    ABSOLUTE_PERCPU = "absolute where not negative, else from a base"
    BASE = "from a base"
    PLACE = "from the place itself"
    ELF = "as they are, in an ELF file's own table"


@attrs.frozen(eq=False)
class Found:
    """The tables where they were found in an image.

    Parameters
    ----------
    count
        Symbols.
    names, lengths
        All names behind each other, each with its type in front, and their lengths.
    offsets
        As they are stored.
    at
        Where the offsets lie in the image.
    encoding, base
        How to make addresses of them, and what they count from, where they do; a base of 0
        is one that the kernel relocates when it starts.
    """

    count: int
    names: bytes
    lengths: NDArray[np.int64]
    offsets: NDArray[np.int32]
    at: int
    encoding: Encoding
    base: int | None

    @property
    def base_at(self) -> int:
        """Where the base lies in the image, where there is one."""
        behind = self.at + 4 * self.count
        return behind + -behind % ALIGN

    def addresses(self, place: Callable[[int], int]) -> NDArray[np.uint64]:
        """Return the addresses; `place` says where a byte of the image lies in memory."""
        if self.encoding is Encoding.PLACE:
            start = np.uint64(place(self.at))
            step = np.arange(self.count, dtype=np.uint64) * np.uint64(4)
            return start + step + self.offsets.astype(np.int64).astype(np.uint64)
        assert self.base is not None
        base = np.uint64(self.base)
        if self.encoding is Encoding.BASE:
            return self.offsets.view(np.uint32).astype(np.uint64) + base
        wide = self.offsets.astype(np.int64)
        return np.where(wide >= 0, wide, -1 - wide).astype(np.uint64) + np.where(
            wide >= 0, np.uint64(0), base
        )


class ImageSymbols(Mapping[str, int]):
    """A kernel's symbols: name -> address, in the order of the table; of several the first."""

    def __init__(self, found: Found, addresses: NDArray[np.uint64]) -> None:
        self.addresses = addresses
        self._found = found

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self._found.lengths)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every name, in the table's order, repeated ones too."""
        text = self._found.names.decode("latin-1")
        ends = self._ends.tolist()
        return tuple(text[a + 1 : b] for a, b in zip([0, *ends[:-1]], ends, strict=True))

    @cached_property
    def types(self) -> bytes:
        """The types, a letter each, as `nm` has them."""
        whole = np.frombuffer(self._found.names, np.uint8)
        letters: bytes = whole[self._ends - self._found.lengths].tobytes()
        return letters

    @cached_property
    def _by_name(self) -> dict[str, int]:
        pairs = zip(reversed(self.names), reversed(self.addresses.tolist()), strict=True)
        return dict(pairs)

    def __getitem__(self, name: str) -> int:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(self.names))

    def __len__(self) -> int:
        return len(self._by_name)

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        order = np.argsort(self.addresses, kind="stable")
        return order, self.addresses[order]

    def around(self, address: int) -> tuple[str, int] | None:
        """Return the symbol at or before an address, and how far behind it that is; None: none."""
        order, addresses = self._sorted
        after = int(np.searchsorted(addresses, np.uint64(address), "right"))
        if not after:
            return None
        start = addresses[after - 1]
        first = int(np.searchsorted(addresses, start, "left"))
        return self.names[int(order[first])], address - int(start)

    def end_of(self, address: int) -> int:
        """Return where the symbol at an address ends: the next one's address."""
        _, addresses = self._sorted
        after = int(np.searchsorted(addresses, np.uint64(address), "right"))
        return int(addresses[after]) if after < len(addresses) else address + 1

    @property
    def count(self) -> int:
        """Entries of the table."""
        return self._found.count

    @property
    def has_data(self) -> bool:
        """Whether variables are among them (CONFIG_KALLSYMS_ALL).

        Without it there are a few global ones, that mark where sections begin.
        """
        return any(letter in self.types for letter in b"bd")

    @property
    def encoding(self) -> Encoding:
        """How the addresses were stored."""
        return self._found.encoding


def find(image: bytes, name: str, order: str = "<") -> Found:
    """Return the symbol tables of a kernel image.

    Parameters
    ----------
    image
        The kernel's bytes, as they lie in its file or in memory.
    name
        For messages.
    order
        Byte order, `<` or `>`.

    Raises
    ------
    BadKernel
        Where there are none, or none that agree with each other.
    """
    at = -1
    while (at := image.find(_DIGITS, at + 1)) >= 0:
        tokens = _tokens(image, at, order)
        if tokens is not None:
            return _Search(image, name, order, *tokens).found()
    raise NoKallsyms(name, "kallsyms", NONE)


def _tokens(image: bytes, digits: int, order: str) -> tuple[int, int, list[bytes]] | None:
    """Return start and end of the tokens with their index, and the tokens; None: it is no table."""
    at = digits
    for _ in range(ord("0"), TOKENS):
        end = image.find(b"\0", at, at + _MAX_TOKEN)
        if end < 0:
            return None
        at = end + 1
    for align in (8, 4, 2):
        index = at + -at % align
        stored = image[index : index + 2 * TOKENS]
        if len(stored) < 2 * TOKENS:
            continue
        starts = np.frombuffer(stored, f"{order}u2").astype(np.int64)
        # What stands before the first token may end in anything: the index says where it begins.
        start = digits - int(starts[ord("0")])
        if start < 0 or starts[0] or (np.diff(starts) < 1).any():
            continue
        bounds = [*(starts + start).tolist(), at]
        tokens = [image[a : b - 1] for a, b in pairwise(bounds)]
        if b"\0".join(tokens) + b"\0" == image[start:at] and not any(0 in t for t in tokens):
            return start, index + 2 * TOKENS, tokens
    return None


@attrs.frozen(eq=False)
class _Search:
    """The tables around the tokens, which lie in [start, end) of the image."""

    image: bytes
    name: str
    order: str
    start: int
    end: int
    tokens: list[bytes]

    def found(self) -> Found:
        """Return everything, or say which table was not found."""
        markers_at, markers = self._markers()
        names_at, count_at, count = self._names(markers_at, markers)
        positions, lengths = self._positions(names_at, markers, count)
        names, sizes = self._expanded(positions, lengths)
        behind = self.end + -self.end % ALIGN
        before = (count_at - ALIGN - 4 * count) // ALIGN * ALIGN
        for at, place in ((behind, False), (before, False), (self.end + -self.end % 4, True)):
            how = self._encoding(at, count, place=place)
            if how is not None:
                return Found(count, names, sizes, self._offsets(at, count), at, *how)
        raise BadKernel(self.name, "kallsyms", "names without addresses")

    def _words(self, start: int, end: int) -> Offsets:
        size = max(0, min(end, len(self.image)) - start) // 4
        return np.frombuffer(self.image, f"{self.order}u4", size, start).astype(np.int64)

    def _markers(self) -> tuple[int, Offsets]:
        """Return the longest ascending run that begins with 0 before the tokens."""
        low = max(0, self.start - (32 << 20)) & ~3
        words = self._words(low, self.start)
        step = np.diff(words)
        good = (step >= 2 * STEP) & (step < 300 * STEP)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], good.view(np.int8), [0]))))
        runs = [
            (end - first, first)
            for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
            if words[first] == 0
        ]
        if not runs:
            raise BadKernel(self.name, "kallsyms", "tokens without markers")
        length, first = max(runs)
        return low + 4 * first, words[first : first + length + 1]

    def _names(self, markers_at: int, markers: Offsets) -> tuple[int, int, int]:
        """Return where the names begin, and where their number stands and what it is."""
        last, chunks = int(markers[-1]), len(markers)
        highest = (markers_at - last) & ~3
        for at in range(highest, max(7, highest - 300 * STEP), -4):
            for back in (4, 8):
                count = int.from_bytes(self.image[at - back : at - back + 4], self._byteorder)
                padded = back == 4 or self.image[at - 4 : at] == bytes(4)
                if padded and -(-count // STEP) == chunks and self._agrees(at, markers):
                    return at, at - back, count
        raise BadKernel(self.name, "kallsyms", "markers without names")

    @property
    def _byteorder(self) -> Literal["little", "big"]:
        return "little" if self.order == "<" else "big"

    def _agrees(self, at: int, markers: Offsets) -> bool:
        """Return whether the first names end where the markers say."""
        start = at
        for _ in range(STEP if len(markers) > 1 else 0):
            length = self.image[at]
            if length & 0x80:
                length = length & 0x7F | self.image[at + 1] << 7
                at += 1
            at += 1 + length
            if at >= len(self.image):
                return False
        return len(markers) == 1 or at - start == int(markers[1])

    def _positions(self, start: int, markers: Offsets, count: int) -> tuple[Offsets, Offsets]:
        """Return where each packed name begins and its tokens, all markers' names side by side."""
        raw = np.frombuffer(self.image, np.uint8)
        at = markers + start
        positions = np.empty((STEP, len(markers)), np.int64)
        lengths = np.empty((STEP, len(markers)), np.int64)
        limit = len(raw) - 2
        for step in range(STEP):
            at = np.minimum(at, limit)  # behind the last name of the last marker
            length = raw[at].astype(np.int64)
            long = (length & 0x80) != 0
            if long.any():
                length = np.where(long, length & 0x7F | raw[at + 1].astype(np.int64) << 7, length)
            at = at + 1 + long
            positions[step], lengths[step] = at, length
            at = at + length
        where, sizes = positions.T.ravel()[:count], lengths.T.ravel()[:count]
        if int((where + sizes).max()) > self.start and int(where[0]) < self.start:
            raise BadKernel(self.name, "kallsyms", "names run into the tokens")
        return where, sizes

    def _expanded(self, positions: Offsets, lengths: Offsets) -> tuple[bytes, Offsets]:
        """Return the names unpacked, behind each other, and their lengths."""
        widths = np.array([len(token) for token in self.tokens], np.int64)
        starts = np.cumsum(widths) - widths
        pool = np.frombuffer(b"".join(self.tokens), np.uint8)
        raw = np.frombuffer(self.image, np.uint8)
        codes = raw[_runs(positions, lengths)]
        sizes = widths[codes]
        text = pool[_runs(starts[codes], sizes)].tobytes()
        ends = np.concatenate(([0], np.cumsum(sizes)))
        borders = np.cumsum(lengths)
        return text, ends[borders] - ends[borders - lengths]

    def _offsets(self, at: int, count: int) -> NDArray[np.int32]:
        found = np.frombuffer(self.image, f"{self.order}i4", count, at)
        return found.astype(np.int32, copy=False)

    def _encoding(self, at: int, count: int, *, place: bool) -> tuple[Encoding, int | None] | None:
        """Return how the offsets at a place are meant, if they are any: addresses ascend.

        The base behind them is 0 where the kernel relocates it when it starts.
        """
        if at < 0 or at + 4 * count > len(self.image):
            return None
        offsets = self._offsets(at, count).astype(np.int64)
        if place:
            ascends = offsets[0] != 0 and _ascends(offsets + 4 * np.arange(count))
            return (Encoding.PLACE, None) if ascends else None
        behind = at + 4 * count
        behind += -behind % ALIGN
        base = int.from_bytes(self.image[behind : behind + 8], self._byteorder)
        if base and (base >> KERNEL_BITS != (1 << 64) - 1 >> KERNEL_BITS or base % ALIGN):
            return None
        if base and (offsets < 0).mean() > 0.5 and _ascends(np.maximum(-1 - offsets, 0)):
            return Encoding.ABSOLUTE_PERCPU, base
        unsigned = offsets & 0xFFFF_FFFF
        if offsets[1:].any() and int(unsigned.max()) < 1 << 31 and _ascends(unsigned):
            return Encoding.BASE, base
        return None


def _ascends(values: Offsets) -> bool:
    return values.size > 1 and float((np.diff(values) >= 0).mean()) > _SORTED


def _runs(starts: Offsets, lengths: Offsets) -> Offsets:
    """Return the indices of all runs behind each other: from each start as many as its length."""
    total = int(lengths.sum())
    if not total:
        return np.empty(0, np.int64)
    ends = np.cumsum(lengths)
    found: Offsets = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return found
