# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted kernel's own symbols, kept so that looking up a few takes no time.

All names stand behind each other with a NUL around each, so that one is found by searching
for it; where they begin is sorted, so that its number is found, and by that its address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property

import attrs
import numpy as np
from numpy.typing import NDArray

_KEPT = 10_000  # names whose number is remembered


@attrs.frozen(eq=False)
class Symbols(Mapping[str, int]):
    """Symbol -> address, in the order of the kernel's table; of several the first.

    Parameters
    ----------
    text
        A NUL, and each name with a NUL behind it.
    addresses
        As many, in the same order.
    """

    text: bytes = attrs.field(repr=False)
    addresses: NDArray[np.uint64] = attrs.field(repr=False)
    _found: dict[str, int] = attrs.field(factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, names: tuple[str, ...], addresses: NDArray[np.uint64]) -> Symbols:
        """Return symbols by their names and addresses."""
        text = "\0".join(("", *names, "")).encode("latin-1")
        return cls(text if names else b"\0", np.asarray(addresses, np.uint64))

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where each name begins."""
        return np.flatnonzero(np.frombuffer(self.text, np.uint8)[:-1] == 0) + 1

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        order = np.argsort(self.addresses, kind="stable")
        return order, self.addresses[order]

    def _find(self, name: str) -> int:
        """Return a name's number, or -1; a search takes a millisecond, so it is kept."""
        number = self._found.get(name)
        if number is None:
            try:
                word = b"\0" + name.encode("latin-1") + b"\0"
                at = self.text.find(word) if "\0" not in name else -1
            except UnicodeEncodeError:
                at = -1
            number = -1 if at < 0 else int(np.searchsorted(self._starts, at + 1))
            if len(self._found) >= _KEPT:
                self._found.clear()
            self._found[name] = number
        return number

    def __getitem__(self, name: str) -> int:
        number = self._find(name)
        if number < 0:
            raise KeyError(name)
        return int(self.addresses[number])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) >= 0

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(self.text.decode("latin-1").split("\0")[1:-1]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def every(self) -> Iterator[tuple[str, int]]:
        """Yield every name and address, in the order of the kernel's table, equal names too."""
        names = self.text.decode("latin-1").split("\0")[1:-1]
        return zip(names, self.addresses.tolist(), strict=True)

    def matching(self, pattern: str) -> Iterator[tuple[str, int]]:
        """Yield names that a regular expression matches as a whole, and addresses."""
        for found in re.finditer(b"(?<=\0)(?:" + pattern.encode() + b")(?=\0)", self.text):
            name = found[0].decode("latin-1")
            yield name, self[name]

    def as_dict(self) -> dict[str, int]:
        """Return all of them at once, which looking each up would take minutes for."""
        return dict(reversed(list(self.every())))  # the first of equal names counts

    def around(self, address: int) -> tuple[str, int, int] | None:
        """Return the symbol at or before an address, how far that is, and how long it is.

        None where there is none. It is as long as the next one is away.
        """
        order, addresses = self._sorted
        after = int(np.searchsorted(addresses, np.uint64(address), "right"))
        if not after:
            return None
        start = addresses[after - 1]
        number = int(order[int(np.searchsorted(addresses, start, "left"))])
        begin = int(self._starts[number])
        name = self.text[begin : self.text.index(b"\0", begin)].decode("latin-1")
        size = int(addresses[after] - start) if after < len(addresses) else 0
        return name, address - int(start), size
