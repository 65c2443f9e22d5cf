# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that tells a debugger where a kernel's symbols lie: an ELF program without contents.

Its sections have addresses and sizes and no bytes, so that a debugger reads memory from the
machine, and knows from the section which symbols are functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import Interval
from archs import Arch
from archs.dialect import Dialect

_EXECUTABLE, _CURRENT = 2, 1  # ET_EXEC, EV_CURRENT
_PROGBITS, _SYMTAB, _STRTAB, _NOBITS = 1, 2, 3, 8
_WRITE, _ALLOC, _EXECINSTR = 1, 2, 4
_GLOBAL, _OBJECT, _FUNCTION = 1, 1, 2
_ABSOLUTE = 0xFFF1
_IDENT = 16
_EHDR = {32: 52, 64: 64}
_ALIGN = 16


@attrs.frozen
class Area:
    """Where something lies: code, or data.

    Parameters
    ----------
    name
        Of the section that stands for it.
    lies
        Where.
    code
        Whether it is executed.
    """

    name: str
    lies: Interval
    code: bool


@attrs.frozen
class _Part:
    name: str
    type: int
    flags: int = 0
    address: int = 0
    data: bytes = b""
    size: int = 0
    link: int = 0
    info: int = 0
    align: int = 1
    entry: int = 0


def symbol_file(
    arch: Arch,
    names: Sequence[str],
    addresses: NDArray[np.uint64],
    areas: Sequence[Area],
    *,
    flags: int = 0,
    more: Mapping[str, bytes] | None = None,
) -> bytes:
    """Return an ELF file of symbols.

    Parameters
    ----------
    arch
        The architecture.
    names, addresses
        The symbols, as many of both.
    areas
        What they lie in; those that lie nowhere are absolute.
    flags
        `e_flags`.
    more
        Contents of further sections, which take no memory, by name.
    """
    dialect = arch.link.dialect
    parts = [
        _Part(
            name=area.name,
            type=_NOBITS,
            flags=_ALLOC | (_EXECINSTR if area.code else _WRITE),
            address=area.lies.start,
            size=area.lies.size,
            align=_ALIGN,
        )
        for area in areas
    ]
    parts += [_Part(name, _PROGBITS, data=data) for name, data in (more or {}).items() if data]
    table, strings = _symbols(dialect, names, addresses, areas)
    parts.append(
        _Part(
            name=".symtab",
            type=_SYMTAB,
            data=table,
            link=len(parts) + 2,
            info=1,
            align=dialect.word,
            entry=dialect.symbol.itemsize,
        )
    )
    parts.append(_Part(".strtab", _STRTAB, data=strings))
    return _file(arch, parts, flags)


def _symbols(
    dialect: Dialect, names: Sequence[str], addresses: NDArray[np.uint64], areas: Sequence[Area]
) -> tuple[bytes, bytes]:
    """Return a symbol table by ascending addresses, and its strings."""
    order = np.argsort(addresses, kind="stable")
    sorted_by = np.asarray(addresses, np.uint64)[order]
    words = [names[number].encode("latin-1", "replace") for number in order.tolist()]
    lengths = np.fromiter((len(word) + 1 for word in words), np.int64, len(words))
    starts = np.cumsum(np.concatenate(([1], lengths)))[:-1]
    table = np.zeros(len(words) + 1, dialect.symbol)
    rows = table[1:]
    rows["name"], rows["value"], rows["shndx"] = starts, sorted_by, _ABSOLUTE
    kinds = np.full(len(words), _OBJECT, np.uint8)
    for number, area in enumerate(areas, 1):
        first = int(np.searchsorted(sorted_by, np.uint64(area.lies.start)))
        end = int(np.searchsorted(sorted_by, np.uint64(area.lies.end)))
        rows["shndx"][first:end] = number
        kinds[first:end] = _FUNCTION if area.code else _OBJECT
        # As long as the next one is away.
        until = np.append(sorted_by[first + 1 : end], np.uint64(area.lies.end))
        rows["size"][first:end] = until[: end - first] - sorted_by[first:end]
    rows["info"] = _GLOBAL << 4 | kinds
    return table.tobytes(), b"\0" + b"".join(word + b"\0" for word in words)


def _file(arch: Arch, parts: Sequence[_Part], flags: int) -> bytes:
    dialect = arch.link.dialect
    titles = bytearray(b"\0")
    named = []
    for name in (*[part.name for part in parts], ".shstrtab"):
        named.append(len(titles))
        titles += name.encode() + b"\0"
    parts = [*parts, _Part(".shstrtab", _STRTAB, data=bytes(titles))]
    header = _EHDR[dialect.bits]
    out = bytearray(header)
    rows = [bytes(dialect.section.size)]
    for part, title in zip(parts, named, strict=True):
        out += bytes(-len(out) % part.align)
        rows.append(
            dialect.section.pack(
                title,
                part.type,
                part.flags,
                part.address,
                len(out),
                part.size or len(part.data),
                part.link,
                part.info,
                part.align,
                part.entry,
            )
        )
        out += part.data
    out += bytes(-len(out) % 8)
    ident = b"\x7fELF" + dialect.ident + bytes((_CURRENT,))
    out[:_IDENT] = ident.ljust(_IDENT, b"\0")
    counts = (header, 0, 0, dialect.section.size, len(rows), len(parts))
    entry = parts[0].address
    fields = (_EXECUTABLE, arch.machine, _CURRENT, entry, 0, len(out), flags, *counts)
    dialect.header.pack_into(out, _IDENT, *fields)
    return bytes(out) + b"".join(rows)
