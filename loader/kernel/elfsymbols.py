# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbols of an ELF vmlinux: those that kallsyms has, and those that it was built without.

The linker's table has everything; what the kernel's own build leaves out of kallsyms
(scripts/mksysmap) is left out here.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from archs.dialect import HEADER, SYMBOL
from loader.errors import BadKernel
from loader.kernel.symbols import Encoding, Found

_SHDR, _SYM = 64, 24
_SYMTAB, _NOBITS = 2, 8
_WRITE, _ALLOC, _EXECUTE = 1, 2, 4
_ABSOLUTE, _RESERVED = 0xFFF1, 0xFF00
_FILE, _SECTION = 4, 3  # kinds of symbols that name no place
# scripts/mksysmap of 6.12, as far as such symbols are in an ELF file that is linked.
_LEFT_OUT = re.compile(
    r"\$|\.L|__efistub_|(?:__pi_|__kvm_nvhe_)(?:\$|\.L|__kcfi_typeid_)|__kcfi_typeid_"
    r"|__[A-Za-z0-9]*Thunk_|__crc_|__kstrtab_|__kstrtabns_|L0$"
)


def has_symbols(data: bytes) -> bool:
    """Return whether an ELF file has the linker's symbol table: it is not stripped."""
    return bool((_sections(data)["type"] == _SYMTAB).any())


def symbols_of(data: bytes, name: str) -> tuple[Found, NDArray[np.uint64]] | None:
    """Return the table of an ELF file as if kallsyms had it, and the addresses; None: stripped.

    Parameters
    ----------
    data
        A 64-bit little-endian ELF file that is linked.
    name
        For messages.

    Raises
    ------
    BadKernel
        Its table is damaged.
    """
    headers = _sections(data)
    tables = np.flatnonzero(headers["type"] == _SYMTAB)
    count = len(headers)
    if not tables.size:
        return None
    table = headers[int(tables[0])]
    if int(table["link"]) >= count or int(table["entry"]) != _SYM:
        raise BadKernel(name, "ELF symbols", "name no table of strings")
    strings = headers[int(table["link"])]
    for part in (table, strings):
        if int(part["offset"]) + int(part["size"]) > len(data):
            raise BadKernel(name, "ELF symbols", "are cut off")
    records = np.frombuffer(data, SYMBOL, int(table["size"]) // _SYM, int(table["offset"]))
    at, size = int(strings["offset"]), int(strings["size"])
    text = data[at : at + size]
    kinds = records["info"] & 0xF
    inside = (records["shndx"] < min(count, _RESERVED)) & (records["shndx"] > 0)
    wanted = (
        (inside | (records["shndx"] == _ABSOLUTE))
        & (records["name"] != 0)
        & (records["name"] < size)
        & (kinds != _FILE)
        & (kinds != _SECTION)
    )
    letters = _letters(headers)
    names: list[bytes] = []
    chosen: list[int] = []
    for index in np.flatnonzero(wanted).tolist():
        begin = int(records["name"][index])
        title = text[begin : text.find(b"\0", begin)]
        section = int(records["shndx"][index])
        letter = "A" if section == _ABSOLUTE else letters[section]
        if not letter or _LEFT_OUT.match(title.decode("latin-1")):
            continue
        local = not records["info"][index] >> 4
        names.append((letter.lower() if local else letter).encode() + title)
        chosen.append(index)
    addresses = records["value"][chosen].astype(np.uint64)
    order = np.argsort(addresses, kind="stable")
    ordered = [names[i] for i in order.tolist()]
    found = Found(
        count=len(ordered),
        names=b"".join(ordered),
        lengths=np.array([len(each) for each in ordered], np.int64),
        offsets=np.empty(0, np.int32),
        at=0,
        encoding=Encoding.ELF,
        base=None,
    )
    return (found, addresses[order]) if ordered else None


def _sections(data: bytes) -> NDArray[np.void]:
    """Return the section headers of a 64-bit little-endian ELF file; none where it has none."""
    start = int.from_bytes(data[40:48], "little")
    entry, count = (int.from_bytes(data[at : at + 2], "little") for at in (58, 60))
    if not start or entry != _SHDR or start + count * entry > len(data):
        return np.empty(0, HEADER)
    return np.frombuffer(data, HEADER, count, start)


def _letters(headers: NDArray[np.void]) -> list[str]:
    """Return the letter that nm has for each section's symbols; empty: they are not in memory."""
    letters = []
    columns = (headers[name].tolist() for name in ("flags", "type", "address"))
    for flags, kind, address in zip(*columns, strict=True):
        if not flags & _ALLOC and not address:  # what is empty may not be marked
            letters.append("")
        elif flags & _EXECUTE:
            letters.append("T")
        elif kind == _NOBITS:
            letters.append("B")
        else:
            letters.append("D" if flags & _WRITE else "R")
    return letters
