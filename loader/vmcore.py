# SPDX-License-Identifier: GPL-2.0-or-later
"""Cores of kernels: ELF files of type ET_CORE, as /proc/vmcore and QEMU's dump-guest-memory have them.

Segments say which memory lies where by both addresses; several may share bytes of the file. Notes
say what CPUs did (NT_PRSTATUS), and what a kernel tells of itself (VMCOREINFO). A page that no
segment has was left out by whoever wrote the file (makedumpfile): nobody knows what was in it.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.files import open_regular, reason_of
from archs.dialect import MARKS, Order
from loader.errors import BadCore

ET_CORE = 4
PT_LOAD, PT_NOTE = 1, 4
NT_PRSTATUS = 1
CORE, VMCOREINFO = b"CORE", b"VMCOREINFO"
PAGE = 4096
_ANY = 7  # rights of a segment, as the kernel writes them
_EHDR, _PHDR, _SHDR = struct.Struct("16sHHIQQQIHHHHHH"), 56, 64
_SHORT = 0xFFFF  # e_phnum where the number stands in the first section header (PN_XNUM)
_INFO_AT = 44  # of sh_info in that
_NOTE = struct.Struct("III")
_MOST = 1 << 20  # segments, and bytes of a note, that are read
_NOTES = 1 << 26  # bytes of all notes
# elf_prstatus (linux/elfcore.h): what is before pr_pid, before pr_reg, and behind it.
_PID_AT, _REGISTERS_AT, _BEHIND = 32, 112, 8
_PHDRS = (
    *(("type", "u4"), ("flags", "u4"), ("offset", "u8"), ("address", "u8"), ("physical", "u8")),
    *(("stored", "u8"), ("size", "u8"), ("align", "u8")),
)
# How files begin that hold the same, packed.
_PACKED = {
    b"KDUMP   ": "is a compressed dump (kdump format)",
    b"DISKDUMP": "is a compressed dump (diskdump format)",
    b"makedumpfile\0": "is a flattened dump",
}
_CONVERT = "makedumpfile -E writes an ELF file of it"
_SYMBOL, _ADDRESS = "SYMBOL(", re.compile("[0-9a-f]{1,16}")
_LINE = re.compile(r"([A-Z-]+)(?:\(([^)\n]*)\))?=([^\n]*)")


@attrs.frozen
class Extent:
    """Memory in a core.

    Parameters
    ----------
    address, physical
        Where it lies.
    offset, size
        Where in the file, or behind its head, and how many bytes of it.
    """

    address: int
    physical: int
    offset: int
    size: int


@attrs.frozen
class Note:
    """A note: who wrote it, what kind of it is, what it says."""

    owner: bytes
    type: int
    data: bytes = attrs.field(repr=False)


def prstatus(values: Sequence[int], pid: int, order: Order) -> Note:
    """Return what a CPU's registers were.

    Parameters
    ----------
    values
        The registers of `elf_gregset_t`, in its order.
    pid
        Of the task.
    """
    mark = MARKS[order]
    data = bytearray(_REGISTERS_AT + 8 * len(values) + _BEHIND)
    struct.pack_into(f"{mark}I", data, _PID_AT, pid)
    struct.pack_into(f"{mark}{len(values)}Q", data, _REGISTERS_AT, *values)
    return Note(CORE, NT_PRSTATUS, bytes(data))


def head(
    machine: int,
    flags: int,
    order: Order,
    notes: Iterable[Note],
    extents: Sequence[Extent],
) -> bytes:
    """Return the begin of a core: everything before the memory, whole pages.

    Parameters
    ----------
    machine, flags
        `e_machine` and `e_flags`.
    extents
        Memory, with offsets that count from the end of what is returned.
    """
    mark = MARKS[order]
    packed = b"".join(_packed(note, mark) for note in notes)
    count = len(extents) + 1
    long = count >= _SHORT
    notes_at = _EHDR.size + _PHDR * count + (_SHDR if long else 0)
    start = notes_at + len(packed)
    start += -start % PAGE
    ident = b"\x7fELF" + bytes([2, 1 if mark == "<" else 2, 1]) + bytes(9)
    out = bytearray(
        struct.Struct(mark + _EHDR.format).pack(
            *(ident, ET_CORE, machine, 1, 0, _EHDR.size, 0, flags, _EHDR.size, _PHDR),
            *(min(count, _SHORT), _SHDR if long else 0, int(long), 0),
        )
    )
    if long:  # the number of segments stands in a section header
        struct.pack_into(f"{mark}Q", out, 40, notes_at - _SHDR)
    table = np.zeros(count, [(name, mark + kind) for name, kind in _PHDRS])
    table[0] = (PT_NOTE, 0, notes_at, 0, 0, len(packed), len(packed), 4)
    rows = [(each.offset + start, each.address, each.physical, each.size) for each in extents]
    table["type"][1:], table["flags"][1:], table["align"][1:] = PT_LOAD, _ANY, PAGE
    for name, column in zip(
        ("offset", "address", "physical", "stored"), zip(*rows, strict=True), strict=False
    ):
        table[name][1:] = column
    table["size"] = table["stored"]
    out += table.tobytes()
    if long:
        section = bytearray(_SHDR)
        struct.pack_into(f"{mark}I", section, _INFO_AT, count)
        out += section
    out += packed
    return bytes(out).ljust(start, b"\0")


def _packed(note: Note, mark: str) -> bytes:
    owner = note.owner + b"\0"
    first = struct.pack(f"{mark}III", len(owner), len(note.data), note.type)
    return first + owner + bytes(-len(owner) % 4) + note.data + bytes(-len(note.data) % 4)


def store(file: IO[bytes], begin: bytes, size: int, pieces: Iterable[tuple[int, bytes]]) -> int:
    """Write a core; where it holds only zeros the file has holes. Its size in bytes.

    Parameters
    ----------
    begin
        What `head` returned.
    size
        Bytes of memory behind it.
    pieces
        What may be other than zero: offset, whole pages.
    """
    file.write(begin)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a pipe has no holes
        at = 0
        for start, data in pieces:
            while at < start:
                at += file.write(bytes(min(start - at, 1 << 24)))
            at += file.write(data)
        while at < size:
            at += file.write(bytes(min(size - at, 1 << 24)))
        return len(begin) + size
    for start, data in pieces:
        pages = np.frombuffer(data, np.uint64).reshape(-1, PAGE // 8).any(axis=1)
        edges = np.flatnonzero(np.diff(pages, prepend=False, append=False)).reshape(-1, 2)
        for first, last in edges.tolist():
            file.seek(len(begin) + start + first * PAGE)
            file.write(data[first * PAGE : last * PAGE])
    file.truncate(len(begin) + size)
    return len(begin) + size


def info_in(memory: memoryview, release: str = "") -> bytes | None:
    """Return what a kernel has prepared in its memory to tell of itself (VMCOREINFO), or None.

    The kernel keeps the note ready at the begin of a page (kernel/vmcore_info.c).

    Parameters
    ----------
    release
        Of the kernel, as `uname -r` prints it; "": of any.
    """
    owner = VMCOREINFO + b"\0"
    first = np.frombuffer(memory, "<u4").reshape(-1, PAGE // 4)[:, 0]
    text = b"OSRELEASE=" + release.encode() + (b"\n" if release else b"")
    for number in np.flatnonzero(first == len(owner)).tolist():
        at = number * PAGE
        _, size, kind = struct.unpack_from("<III", memory, at)
        start = at + _NOTE.size + len(owner) + -len(owner) % 4
        if kind or size > PAGE or bytes(memory[at + _NOTE.size :][: len(owner)]) != owner:
            continue
        found = bytes(memory[start : start + size])
        if found.startswith(text):
            return found
    return None


# Reading ----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True, eq=False)
class Vmcore:
    """A core, opened.

    Parameters
    ----------
    name
        The file.
    machine, order
        `e_machine`, byte order.
    data
        The file's bytes.
    extents
        Memory, as the segments have it; bytes that a segment has in memory and not in the file are
        left out, as whoever filters a dump means them to be.
    notes
        All notes.
    """

    name: str
    machine: int
    order: Order
    data: mmap.mmap | bytes = attrs.field(repr=False)
    extents: tuple[Extent, ...] = attrs.field(repr=False)
    notes: tuple[Note, ...] = attrs.field(repr=False)

    def registers(self, count: int) -> list[tuple[int, ...]]:
        """Return the registers of each CPU, as many as an `elf_gregset_t` has."""
        mark = MARKS[self.order]
        return [
            struct.unpack_from(f"{mark}{count}Q", note.data, _REGISTERS_AT)
            for note in self.notes
            if (note.owner, note.type) == (CORE, NT_PRSTATUS)
            and len(note.data) >= _REGISTERS_AT + 8 * count
        ]

    @property
    def info(self) -> str:
        """What the kernel tells of itself (VMCOREINFO); empty where the file does not have it."""
        found = [note.data for note in self.notes if note.owner == VMCOREINFO]
        return found[0].rstrip(b"\0").decode("utf-8", "backslashreplace") if found else ""

    def told(self, release: str = "") -> bytes | None:
        """Return VMCOREINFO out of a note, or else out of the memory; None where there is none.

        QEMU's dumps have no such note, but the memory in which the kernel keeps one.
        """
        if self.info:
            return self.info.encode("utf-8", "backslashreplace")
        for each in self.physical():
            start = each.offset + -each.physical % PAGE
            size = (each.offset + each.size - start) // PAGE * PAGE
            if size > 0:
                found = info_in(memoryview(self.data)[start : start + size], release)
                if found is not None:
                    return found
        return None

    def physical(self) -> list[Extent]:
        """Return the memory by physical address, each byte once."""
        found: list[Extent] = []
        end = 0
        for each in sorted(self.extents, key=lambda e: (e.physical, -e.size)):
            skipped = max(end - each.physical, 0)
            if skipped < each.size:
                found.append(
                    Extent(
                        address=each.address + skipped,
                        physical=each.physical + skipped,
                        offset=each.offset + skipped,
                        size=each.size - skipped,
                    )
                )
                end = each.physical + each.size
        return found


def read(path: str | Path) -> Vmcore:
    """Return a core by its file; its memory is read when it is asked for.

    Raises
    ------
    BadCore
        There is none that can be read; of a packed one with what would unpack it.
    """
    name = str(path)
    try:
        with open_regular(path) as file:
            start = file.read(16)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if start else b""
    except (OSError, ValueError) as error:
        raise BadCore(name, "file", reason_of(error)) from None
    return parse(data, name)


def parse(data: mmap.mmap | bytes, name: str) -> Vmcore:
    """Return a core by its bytes; raises as `read`."""
    for magic, what in _PACKED.items():
        if data[: len(magic)] == magic:
            raise BadCore(name, "file", f"{what}, which is not read here: {_CONVERT}")
    if len(data) < _EHDR.size or data[:4] != b"\x7fELF" or data[4] != 2 or data[5] not in (1, 2):
        raise BadCore(name, "ELF header", "is no ELF file of 64 bits")
    order: Order = "little" if data[5] == 1 else "big"
    mark = MARKS[order]
    header = struct.unpack_from(mark + _EHDR.format, data)
    _, kind, machine, _, _, table_at, sections_at, _, _, width, count, *_ = header
    if kind != ET_CORE:
        raise BadCore(name, "ELF header", f"type {kind}, and a core has {ET_CORE}")
    if count == _SHORT and 0 < sections_at <= len(data) - _SHDR:
        (count,) = struct.unpack_from(f"{mark}I", data, sections_at + _INFO_AT)
    if width != _PHDR or count > _MOST or table_at + count * width > len(data):
        raise BadCore(name, "program headers", "are cut off, or of a form that is not known")
    kinds = [(field, mark + size) for field, size in _PHDRS]
    table = np.frombuffer(data, kinds, count, table_at) if count else np.zeros(0, kinds)
    extents = tuple(_extents(table, len(data), name))
    if not extents:
        raise BadCore(name, "program headers", "there is no memory in it")
    notes = tuple(_notes(table, data, mark, name))
    return Vmcore(name=name, machine=machine, order=order, data=data, extents=extents, notes=notes)


def _extents(table: NDArray[np.void], size: int, name: str) -> Iterator[Extent]:
    for row in table[table["type"] == PT_LOAD].tolist():
        _, _, offset, address, physical, stored, memory, _ = row
        if not stored:
            continue
        if offset + stored > size:
            end = f"ends at {offset + stored:#x}, the file at {size:#x}"
            raise BadCore(name, "memory", f"is cut off: what lies at {physical:#x} {end}")
        length = min(stored, memory)
        if max(address, physical) + length > 1 << 64:
            raise BadCore(name, "memory", f"a segment at {physical:#x} goes beyond all addresses")
        yield Extent(address, physical, offset, length)


def _notes(
    table: NDArray[np.void], data: mmap.mmap | bytes, mark: str, name: str
) -> Iterator[Note]:
    for row in table[table["type"] == PT_NOTE].tolist():
        at, size = row[2], row[5]
        if size > _NOTES or at + size > len(data):
            raise BadCore(name, "notes", "are cut off, or larger than notes are")
        part = data[at : at + size]
        at = 0
        while at + _NOTE.size <= len(part):
            owner, length, kind = struct.unpack_from(f"{mark}III", part, at)
            first = at + _NOTE.size
            start = first + owner + -owner % 4
            if owner > _MOST or length > _MOST or start + length > len(part):
                raise BadCore(name, "notes", f"one at {at:#x} ends behind the others")
            yield Note(
                part[first : first + owner].rstrip(b"\0"), kind, part[start : start + length]
            )
            at = start + length + -length % 4


def facts(info: str) -> Mapping[str, str]:
    """Return what VMCOREINFO says: `SYMBOL(name)`, `OFFSET(struct.member)`, `OSRELEASE` -> value."""
    found: dict[str, str] = {}
    for line in info.splitlines():
        match = _LINE.fullmatch(line)
        if match is not None:
            key = match[1] if match[2] is None else f"{match[1]}({match[2]})"
            found.setdefault(key, match[3])
    return found


def symbols_told(info: Mapping[str, str]) -> dict[str, int]:
    """Return the addresses of symbols that a kernel tells of, by name.

    Of arrays, whose length it tells, it tells the first element: of `mem_section`, a pointer, that is
    not where the variable is.
    """
    names = {
        key.removeprefix(_SYMBOL)[:-1]: value
        for key, value in info.items()
        if key.startswith(_SYMBOL) and _ADDRESS.fullmatch(value)
    }
    return {n: int(value, 16) for n, value in names.items() if f"LENGTH({n})" not in info}
