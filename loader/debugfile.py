# SPDX-License-Identifier: GPL-2.0-or-later
"""Debugging information of a module: where it is, and its DWARF relocated.

A module's DWARF names places in sections, and relocations say which; so it is relocated as the
module is, by the same engine. Debug sections themselves lie nowhere, and count from 0. Distributions
strip modules and ship what they took away in a package of its own, which is found as debuggers find
it: by build id (`.build-id/xx/yyyy.debug`), or by the name and the checksum in `.gnu_debuglink`.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from allocator.errors import ExecmemError, printable
from allocator.types import Hex
from archs.dialect import MARKS
from archs.engine import apply
from loader.elf import ET_REL, IDENT, MAGIC, parse
from loader.elfview import ElfView, RelocationTable, Section
from loader.errors import BadModule, LoadError
from loader.files import RATIO, SMALL, read_module
from loader.work import SymbolValues, Work

FOLDERS = (Path("/usr/lib/debug"),)  # where distributions put it
LINES = ".debug_line"
BUILD_ID, DEBUG_LINK = ".note.gnu.build-id", ".gnu_debuglink"
SHF_COMPRESSED = 0x800
ZLIB, ZSTD = 1, 2  # ELFCOMPRESS_*
MAX_DEBUG = 1 << 30  # bytes of a section that was compressed
NOWHERE = 1 << 62  # addresses of sections that are not in memory, where no kernel has anything
APART = 1 << 36  # bytes between them
_NT_BUILD_ID = 3
_HOW = (
    "build the module with CONFIG_DEBUG_INFO, or install the kernel's debug package, or name what it "
    "has with --debug FILE"
)


@attrs.define(auto_exc=True, str=False)
class NoDebug(ExecmemError):
    """Nothing says which lines of source a module was made of.

    Parameters
    ----------
    name, reason
        Of what, and why not.
    hint
        What would make them known.
    """

    name: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f"; hint: {self.hint}" if self.hint else ""
        return printable(f"{self.name}: {self.reason}{hint}")


@attrs.frozen(eq=False)
class DebugFile:
    """A file with DWARF of a module: its bytes, and where it was found."""

    name: str
    data: bytes = attrs.field(repr=False)


def build_id(view: ElfView) -> str:
    """Return the build id of a module in hex; empty where it has none."""
    section = view.section(BUILD_ID)
    data = bytes(view.contents(section)) if section is not None else b""
    head = struct.Struct(f"{MARKS[view.dialect.order]}III")
    at = 0
    while at + head.size <= len(data):
        name, size, kind = head.unpack_from(data, at)
        start = at + head.size + (name + 3 & ~3)
        if kind == _NT_BUILD_ID and data[at + head.size : start].rstrip(b"\0") == b"GNU":
            return data[start : start + size].hex()
        at = start + (size + 3 & ~3)
    return ""


def has_lines(view: ElfView) -> bool:
    """Return whether a file itself says which lines it was made of."""
    section = view.section(LINES) or view.section(f".z{LINES[1:]}")
    return section is not None and bool(view.contents(section))


def find(
    view: ElfView,
    *,
    given: str | Path | None = None,
    beside: str | Path | None = None,
    folders: Iterable[Path] | None = None,
) -> DebugFile:
    """Return what has the DWARF of a module: the module itself, or a file of its debug package.

    Parameters
    ----------
    view
        The module.
    given
        A file that has it, or a folder that is laid out as /usr/lib/debug; nothing else is looked
        at then.
    beside
        The module's own file, beside which `.gnu_debuglink` may have another.
    folders
        Where debug packages are installed; by default `FOLDERS`.

    Raises
    ------
    NoDebug
        There is none, or it is another build's; with what would make it known.
    """
    if given is not None and not Path(given).is_dir():
        return _given(view, Path(given))
    if given is None and has_lines(view):
        return DebugFile(view.name, bytes(view.data))
    places = [Path(given)] if given is not None else list(FOLDERS if folders is None else folders)
    for path, checksum in _candidates(view, places, beside):
        try:
            data = read_module(path)
            other = parse(data, path.name)
        except LoadError:
            continue
        right = zlib.crc32(data) == checksum if checksum is not None else not _differs(view, other)
        if right and has_lines(other):
            return DebugFile(str(path), data)
    mine = build_id(view)
    looked = ", ".join(map(str, places))
    which = f"none in {looked} for build id {mine}" if mine else "no build id to look for one by"
    raise NoDebug(view.name, f"no debugging information in it ({LINES}), and {which}", _HOW)


def _given(view: ElfView, path: Path) -> DebugFile:
    """Return a file that a person names, if it is of this module's build."""
    try:
        data = read_module(path)
        other = parse(data, path.name)
    except BadModule as error:
        raise NoDebug(view.name, f"debugging information: {error}") from None
    why = _differs(view, other)
    if why:
        raise NoDebug(view.name, f"{path} is of another build: {why}")
    if not has_lines(other):
        raise NoDebug(view.name, f"{path} has no {LINES}", _HOW)
    return DebugFile(str(path), data)


def _differs(view: ElfView, other: ElfView) -> str:
    """Return why two files are not of one build; empty where nothing says that they are not."""
    if view.arch.machine != other.arch.machine:
        return f"it is for {other.arch.name}, not for {view.arch.name}"
    mine, theirs = build_id(view), build_id(other)
    if mine and theirs:
        return "" if mine == theirs else f"its build id is {theirs}, not {mine}"
    sizes = {key: section.size for key, section in _by_place(other)}
    for key, section in _by_place(view):
        if section.executable and sizes.get(key) != section.size:
            size = "missing" if key not in sizes else f"{Hex(sizes[key])} bytes"
            return f"{section.name} is {size}, not {Hex(section.size)} bytes"
    return ""


def _candidates(
    view: ElfView, folders: Iterable[Path], beside: str | Path | None
) -> Iterator[tuple[Path, int | None]]:
    """Yield files that may have it, each with the CRC-32 that it must have, or None."""
    mine = build_id(view)
    folders = list(folders)
    if len(mine) > 2:
        for folder in folders:
            yield folder / ".build-id" / mine[:2] / f"{mine[2:]}.debug", None
    section = view.section(DEBUG_LINK)
    data = bytes(view.contents(section)) if section is not None else b""
    title, _, _ = data.partition(b"\0")
    name = title.decode("utf-8", "surrogateescape")
    at = (len(title) + 4) & ~3
    if not name or "/" in name or len(data) < at + 4:
        return
    (checksum,) = struct.unpack_from(f"{MARKS[view.dialect.order]}I", data, at)
    if beside is not None:
        home = Path(beside).absolute().parent
        yield home / name, checksum
        yield home / ".debug" / name, checksum
        for folder in folders:
            yield folder / home.relative_to(home.anchor) / name, checksum


def _by_place(view: ElfView) -> Iterator[tuple[tuple[str, int], Section]]:
    """Yield the sections that are loaded, each by its name and how many of it came before."""
    seen: dict[str, int] = {}
    for section in view.sections[1:]:
        if section.allocated:
            number = seen.get(section.name, 0)
            seen[section.name] = number + 1
            yield (section.name, number), section


# Relocation ------------------------------------------------------------------------------------


def relocated(debug: DebugFile, view: ElfView, addresses: Mapping[int, int]) -> bytes:
    """Return a file whose debug sections say addresses; one that is linked already, as it is.

    Parameters
    ----------
    view, addresses
        The module, and where its sections lie, by index. What lies nowhere gets addresses from
        `NOWHERE` on.

    Raises
    ------
    BadModule
        A relocation of a debug section that the architecture does not know, or that does not fit.
    """
    data = debug.data
    if int.from_bytes(data[16:18], _order(data)) != ET_REL:
        return data
    out = io.BytesIO()
    out.write(data)
    theirs = parse(data, debug.name)
    headers = theirs.dialect.header.unpack_from(data, IDENT)[5]
    size = theirs.dialect.section.size
    for section, contents in _sections(theirs, view, addresses):
        out.seek(0, io.SEEK_END)
        at = out.tell()
        out.write(contents)
        place = headers + section.index * size
        fields = list(theirs.dialect.section.unpack_from(data, place))
        fields[2], fields[4], fields[5] = section.flags & ~SHF_COMPRESSED, at, len(contents)
        out.seek(place)
        out.write(theirs.dialect.section.pack(*fields))
    return out.getvalue()


def sections(
    debug: DebugFile, view: ElfView, addresses: Mapping[int, int]
) -> list[tuple[Section, bytes]]:
    """Return the debug sections of a relocatable file, with bytes as in `relocated`; errors too."""
    return list(_sections(parse(debug.data, debug.name), view, addresses))


def _sections(
    theirs: ElfView, view: ElfView, addresses: Mapping[int, int]
) -> Iterator[tuple[Section, bytes]]:
    """Yield the debug sections of a file, unpacked and relocated."""
    placed = {key: addresses.get(section.index) for key, section in _by_place(view)}
    found = {section.index: 0 for section in theirs.sections[1:]}
    for number, (key, section) in enumerate(_by_place(theirs)):
        address = placed.get(key)
        found[section.index] = NOWHERE + number * APART if address is None else address
    values = SymbolValues.of_module(theirs, found, dict.fromkeys(theirs.undefined, 0), None)
    tables = {table.target.index: table for table in theirs.tables}
    for section in theirs.sections[1:]:
        if section.name.startswith(".debug_") and not section.allocated:
            packed = section.flags & SHF_COMPRESSED
            contents = _unpacked(theirs, section) if packed else bytes(theirs.contents(section))
            table = tables.get(section.index)
            yield section, _applied(theirs, table, contents, values) if table else contents


def _order(data: bytes) -> Any:
    return "big" if data[:4] == MAGIC and data[5:6] == b"\2" else "little"


def _applied(view: ElfView, table: RelocationTable, contents: bytes, values: SymbolValues) -> bytes:
    """Return a debug section's bytes with its relocations applied; it lies at 0."""
    section = table.target
    if not table.records.size:
        return contents
    if view.dialect.addends_in_place:
        reason = "its addends stand in the words themselves, which is not known of debug sections"
        raise BadModule(view.name, section.name, reason)
    spots = np.array([[0, 0, len(contents), 0]], np.uint64)
    work = Work(view, values, (view.tables.index(table),), spots)
    image = np.frombuffer(contents.ljust(len(contents) + 16, b"\0"), np.uint8).copy()
    piece, rows = work.whole, view.arch.link.relocations
    outside = piece.outside(rows)
    if outside.size:
        reason = f"{outside.size} relocations lie outside of it"
        raise BadModule(view.name, section.name, reason)
    for failure in apply(rows, image, piece.records):
        first = int(piece.records.type[failure.index[0]])
        row = rows.get(first)
        what = row.name if row is not None else f"relocation type {first}"
        raise BadModule(view.name, section.name, f"{what}: {failure.problem.value}")
    return image[: len(contents)].tobytes()


def _unpacked(view: ElfView, section: Section) -> bytes:
    """Return the bytes of a compressed section (SHF_COMPRESSED)."""
    raw = bytes(view.contents(section))
    head = struct.Struct(MARKS[view.dialect.order] + ("IIQQ" if view.dialect.bits == 64 else "III"))
    if len(raw) < head.size:
        raise BadModule(view.name, section.name, "compressed, and shorter than the header of that")
    kind, *rest = head.unpack_from(raw)
    size = rest[-2]
    most = min(MAX_DEBUG, max(SMALL, RATIO * len(raw)))
    if size > most:
        raise BadModule(view.name, section.name, f"{size:#x} bytes, more than {most:#x}")
    try:
        if kind == ZLIB:
            out = zlib.decompressobj().decompress(raw[head.size :], size + 1)
        elif kind == ZSTD:
            import zstandard

            out = zstandard.ZstdDecompressor().decompress(raw[head.size :], max_output_size=size)
        else:
            raise BadModule(view.name, section.name, f"compressed in the unknown way {kind}")
    except ImportError:
        reason = "zstd needs the 'zstandard' package: pip install 'execmem[zstd]'"
        raise BadModule(view.name, section.name, reason) from None
    except (zlib.error, ValueError) as error:
        raise BadModule(view.name, section.name, f"damaged: {error}") from None
    if len(out) != size:
        raise BadModule(view.name, section.name, f"{len(out):#x} bytes, not {size:#x}")
    return out
