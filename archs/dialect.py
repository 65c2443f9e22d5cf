# SPDX-License-Identifier: GPL-2.0-or-later
"""How an architecture's object files are written: ELF's dialects, each as a record.

ELF leaves to each architecture how wide addresses are, which byte comes first, whether a
relocation brings its addend or finds it in the word that it changes, and how `r_info` is packed.
What follows from that, the records of a file as dtypes, is derived here, and so is the way from
them to the one form that everything else knows: SYMBOL and RELA, which are those of ELF64,
little-endian, with addends. Files of that dialect are viewed, not copied.
"""

from __future__ import annotations

import enum
import struct
from functools import cached_property
from typing import Any, Literal, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

Order: TypeAlias = Literal["little", "big"]
MARKS = {"little": "<", "big": ">"}  # as struct and numpy spell it

SHT_RELA, SHT_REL = 4, 9

SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("shndx", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)
HEADER = np.dtype(
    [
        ("name", "<u4"),
        ("type", "<u4"),
        ("flags", "<u8"),
        ("address", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("link", "<u4"),
        ("info", "<u4"),
        ("align", "<u8"),
        ("entry", "<u8"),
    ]
)
RELA = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<u8")])

# Of files of 64 and of 32 bits: the file header from e_type on, and section headers (name, type,
# flags, address, offset, size, link, info, alignment, bytes of an entry).
_HEADERS = {64: "HHIQQQIHHHHHH", 32: "HHIIIIIHHHHHH"}
_SECTIONS = {64: "IIQQQQIIQQ", 32: "IIIIIIIIII"}
_SYMBOLS = {
    64: ("name", "info", "other", "shndx", "value", "size"),
    32: ("name", "value", "size", "info", "other", "shndx"),
}


class Info(enum.Enum):
    """How a relocation's type and symbol are packed.

    MIPS64 has up to three types in a record, applied one after the other, and a special symbol
    for the second. Their bytes stand in the same order whatever the byte order. Here they are one
    number, `type | type2 << 8 | type3 << 16 | ssym << 24`, so that a plain type has its plain
    number, and a combination is a row of its own.
    """

    STANDARD = "one number"
    MIPS64 = "symbol, ssym, type3, type2, type"


@attrs.frozen(kw_only=True)
class Dialect:
    """How object files are written.

    Parameters
    ----------
    bits
        64 or 32: the file's class, and the width of addresses.
    order
        Which byte of a number comes first. Of instructions their own rows say so (`Part.order`).
    addends_in_place
        Whether relocations are REL: an addend stands in the fields that its row fills. Where one
        row's fields hold only a part of it, `Reloc.low` says which row has the rest.
    info
        How `r_info` is packed.
    """

    bits: int = 64
    order: Order = "little"
    addends_in_place: bool = False
    info: Info = Info.STANDARD

    def __str__(self) -> str:
        return f"ELF{self.bits} {self.order}-endian"

    @cached_property
    def ident(self) -> bytes:
        """What tells the dialect in a file, behind the magic: class and byte order."""
        return bytes((self.bits // 32, 1 if self.order == "little" else 2))

    # Numbers -----------------------------------------------------------------------------------

    @cached_property
    def word(self) -> int:
        """Bytes of an address."""
        return self.bits // 8

    @cached_property
    def pointer(self) -> np.dtype[Any]:
        """An address, as an array's dtype."""
        return self.unsigned(self.word)

    def unsigned(self, size: int) -> np.dtype[Any]:
        """Return the dtype of numbers of so many bytes."""
        return np.dtype(f"{MARKS[self.order]}u{size}")

    def pack(self, value: int) -> bytes:
        """Return an address as it stands in memory."""
        return (value & (1 << self.bits) - 1).to_bytes(self.word, self.order)

    # The file ----------------------------------------------------------------------------------

    @cached_property
    def header(self) -> struct.Struct:
        """The file header from e_type on."""
        return struct.Struct(MARKS[self.order] + _HEADERS[self.bits])

    @cached_property
    def section(self) -> struct.Struct:
        """A section header."""
        return struct.Struct(MARKS[self.order] + _SECTIONS[self.bits])

    @cached_property
    def symbol(self) -> np.dtype[Any]:
        """A symbol; SYMBOL itself where it is the same."""
        names = _SYMBOLS[self.bits]
        widths = [min(SYMBOL[name].itemsize, self.word) for name in names]
        found = np.dtype([(n, self.unsigned(w)) for n, w in zip(names, widths, strict=True)])
        return SYMBOL if found == SYMBOL else found

    @cached_property
    def version(self) -> np.dtype[Any]:
        """A record of `__versions` (struct modversion_info)."""
        return np.dtype([("crc", self.pointer), ("name", f"S{64 - self.word}")])

    @property
    def relocation_type(self) -> int:
        """Type of the sections that hold relocations."""
        return SHT_REL if self.addends_in_place else SHT_RELA

    @cached_property
    def relocation(self) -> np.dtype[Any]:
        """A relocation, in files of 32 bits with type and symbol in `info`; RELA where it is the same."""
        number = self.unsigned(4)
        fields: list[tuple[str, Any]] = [("offset", self.pointer)]
        if self.info is Info.MIPS64:
            fields += [("symbol", number), ("type", ">u4")]
        elif self.bits == 32:
            fields += [("info", number)]
        elif self.order == "little":
            fields += [("type", number), ("symbol", number)]
        else:
            fields += [("symbol", number), ("type", number)]
        if not self.addends_in_place:
            fields += [("addend", self.pointer)]
        found = np.dtype(fields)
        return RELA if found == RELA else found

    # To what everything else knows ---------------------------------------------------------------

    def symbols(self, data: bytes, count: int, offset: int) -> NDArray[np.void]:
        """Return symbols of a file as an array of SYMBOL."""
        found = np.frombuffer(data, self.symbol, count, offset)
        if self.symbol is SYMBOL:
            return found
        records = np.empty(count, SYMBOL)
        for name in SYMBOL.names or ():
            records[name] = found[name]
        return records

    def relocations(self, data: bytes, count: int, offset: int) -> NDArray[np.void]:
        """Return relocations of a file as an array of RELA; addends that stand elsewhere are 0."""
        found = np.frombuffer(data, self.relocation, count, offset)
        if self.relocation is RELA:
            return found
        records = np.zeros(found.size, RELA)
        records["offset"] = found["offset"]
        if "info" in (found.dtype.names or ()):
            records["type"], records["symbol"] = found["info"] & 0xFF, found["info"] >> 8
        else:
            records["type"], records["symbol"] = found["type"], found["symbol"]
        if not self.addends_in_place:
            addend = found["addend"]
            records["addend"] = addend.astype(f"i{self.word}").astype(np.int64).view(np.uint64)
        return records


NATIVE = Dialect()
