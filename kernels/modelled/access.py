# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory as kernel functions reach it: words, strings, pieces, formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from allocator import KernelMemory
from allocator.types import ADDRESS_MASK
from archs import Arch
from kernels.modelled.bounds import PIECE, WORK, GuestMemory
from kernels.modelled.costs import Costs
from kernels.modelled.printf import format_message
from kernels.modelled.serving import Serving
from kernels.modelled.table import Arguments


@attrs.define
class _VaList:
    """The slots that a va_list object still holds."""

    slots: Iterator[int]

    def next(self) -> int:
        """Return the next slot."""
        return next(self.slots)


class Access:
    """Memory for kernel functions.

    Parameters
    ----------
    arch
        Whose va_list it is.
    plain, reached
        The memory without anything that checks accesses, and with it.
    costs, serving
        Who pays, and for what.
    symbolize
        Address -> name, for formats that show one.

    `memory` is what kernel functions read and write.
    """

    def __init__(
        self,
        arch: Arch,
        plain: KernelMemory,
        reached: KernelMemory,
        costs: Costs,
        serving: Serving,
        symbolize: Callable[[int], str | None],
    ) -> None:
        self._calling = arch.runs.calling
        self._plain = plain
        self._page = plain.page_size
        self._reached = reached
        self._costs = costs
        self._spend = costs.spend
        self._serving = serving
        self._symbolize = symbolize
        self.memory: KernelMemory = GuestMemory(reached, costs.spend, self.hold)

    def hold(self, size: int, address: int | None = None) -> None:
        """Say that `size` bytes more of the host's memory are held while this function works.

        Where that is too much, and they are those at `address`, they must all be there first:
        what is wrong with a wild size is that it is wild.
        """
        if self._costs.hold(size):
            for _ in self.pieces(address, size) if address is not None else ():
                pass
            held = self._costs.held
            self._costs.overflow(f"{held:#x} bytes at once in {self._serving.function}()")

    def pieces(self, address: int, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield (address, contents) of [address, address + size), of pages that are all there.

        No page is touched before the one in front of it was given, and no more than PIECE bytes
        are held; each piece is paid for.
        """
        address &= ADDRESS_MASK
        plain = self._plain is self._reached
        while size > 0:
            found = self._plain.translate(address) if plain and size > self._page else None
            whole = self._page if found is None else min(found.leaf, PIECE)
            count = min(size, whole - address % whole)
            self._spend(1 + count // WORK)
            yield address, self._reached.read(address, count)
            address = (address + count) & ADDRESS_MASK
            size -= count

    def word(self, address: int, size: int = 8) -> int:
        """Return the little-endian word of `size` bytes at `address`."""
        self._spend()
        return int.from_bytes(self._reached.read(address & ADDRESS_MASK, size), "little")

    def store(self, address: int, value: int, size: int = 8) -> None:
        """Store the low `size` bytes of `value` at `address`."""
        self._spend()
        image = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self._reached.write(address & ADDRESS_MASK, image)

    def string(self, address: int, limit: int = 1 << 20) -> bytes:
        """Return the NUL-terminated string at `address`, without the NUL, at most `limit` bytes.

        Read page by page, so that a string may end just before an unmapped page.
        """
        parts = []
        for piece in self.string_pieces(address, limit):
            self.hold(len(piece))
            parts.append(piece)
        return b"".join(parts)

    def string_pieces(self, address: int, limit: int) -> Iterator[bytes]:
        """Yield what stands in a string, page by page; see `string`."""
        while limit > 0:
            address &= ADDRESS_MASK
            piece = self._plain.read(address, min(limit, self._page - address % self._page))
            end = piece.find(0)
            size = len(piece) if end < 0 else end
            self._spend(1 + size // WORK)
            if self._plain is not self._reached:  # only what the string has is touched
                self._reached.read(address, min(size + 1, len(piece)))
            yield piece[:size]
            if end >= 0:
                return
            address += size
            limit -= size

    def format(self, fmt: int, args: Arguments) -> bytes:
        """Return what the kernel's vsnprintf would form of the format at `fmt`."""
        return format_message(
            self.string(fmt),
            args,
            self._plain,
            symbolize=self._symbolize,
            va_list=self.va_list_at,
            page=self._page,
        )

    def va_list(self, value: int) -> _VaList:
        """Return the slots that a va_list still holds, given as the argument that it is passed as."""
        return _VaList(self._calling.va_list(value, self.word))

    def va_list_at(self, address: int) -> _VaList:
        """Return the slots that the va_list object at `address` still holds (a `va_list *`)."""
        return self.va_list(self.word(address) if self._calling.va_list_is_pointer else address)
