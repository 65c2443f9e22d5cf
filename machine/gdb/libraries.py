# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules as gdb lists libraries, so that it knows their symbols without being told where they lie.

A module is relocatable, so each of its allocated sections has an address of its own, in the order
of the file (gdb's manual, "Library List Format"). A section that is not in memory, as the kernel
keeps some out and frees those of init, is none of these in the file that the debugger gets.

A debugger reads a library once for each name. So a module whose init is there has another.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from allocator.types import Interval
from archs.levels.debug import Frames, Unwind
from loader.elfview import SHF_ALLOC, STT_FUNC, Section
from loader.loaded import State
from machine.gdb.frames import debug_frame, outermost
from machine.gdb.subject import Present
from machine.gdb.symbolfile import Area, symbol_file

_IDENT = 16
# Places of fields: of a file header, from e_type on, and of a section header.
_SHOFF, _SHNUM = 5, 11
_FLAGS = 2


def path_of(module: Present) -> str:
    """Return what a module's file is called that the server gives."""
    folder = "" if module.state is State.LIVE else f"/{module.state.value}"
    return f"{folder}/{module.name}.ko"


def library_list(modules: Sequence[Present]) -> bytes:
    """Return the list of modules, and of what says where their frames are."""
    parts = ["<library-list>"]
    for module in modules:
        parts.append(f"<library name={quoteattr(path_of(module))}>")
        there = _in_file(module)
        parts += [
            f'<section address="{address:#x}"/>'
            for index, address in sorted(module.sections.items())
            if index < there and module.view.sections[index].allocated
        ]
        parts.append("</library>")
    if has_frames(modules):
        name = quoteattr(frames_path(modules))
        parts.append(f'<library name={name}><section address="0x0"/></library>')
    parts.append("</library-list>")
    return "".join(parts).encode()


def _in_file(module: Present) -> int:
    """Return how many sections the file has: a loader may have added some."""
    return int(module.view.dialect.header.unpack_from(module.view.data, _IDENT)[_SHNUM])


def file_of(module: Present) -> bytes:
    """Return a module's file, in which only sections that are in memory are allocated."""
    view = module.view
    data, row, header = bytearray(view.data), view.dialect.section, view.dialect.header
    start = int(header.unpack_from(data, _IDENT)[_SHOFF])
    for section in view.sections[: _in_file(module)]:
        if section.allocated and section.index not in module.sections:
            at = start + section.index * row.size
            values = list(row.unpack_from(data, at))
            values[_FLAGS] &= ~SHF_ALLOC
            row.pack_into(data, at, *values)
    return bytes(data)


def frames_of(
    modules: Sequence[Present], read: Callable[[int, int], bytes], outer: Sequence[int] = ()
) -> bytes:
    """Return an ELF file that says where modules' functions have their frames; empty for nothing.

    It is a file by itself, because addresses in it count from its text, which modules have pieces
    of on both sides.

    Parameters
    ----------
    modules, read
        The modules, and what returns guest memory.
    outer
        Addresses from which on code has no caller: a kernel's file that a user has does not say it.
    """
    found = [each for module in modules for each in _frames(module, read)]
    if not found:
        return b""
    arch = modules[0].view.arch
    nowhere = Area(".text", Interval(0, 0), code=True)
    contents = b""
    for part in found:  # each by itself: what lies between them is not the modules'
        contents += debug_frame(part, arch.debugs, at=len(contents))
    contents += outermost(arch.debugs, [(address, 2) for address in outer], at=len(contents))
    empty = np.empty(0, np.uint64)
    return symbol_file(arch, (), empty, (nowhere,), more={".debug_frame": contents})


def frames_path(modules: Sequence[Present]) -> str:
    """Return what that file is called, which is another for other modules."""
    keys = repr([module.key for module in modules]).encode()
    return f"/frames-of-modules-{zlib.crc32(keys):08x}"


def has_frames(modules: Sequence[Present]) -> bool:
    """Return whether anything would stand in that file."""
    for module in modules:
        how = module.view.arch.debugs.unwind
        if how is not None and (how.scan or (how.tables and _tables(module, how))):
            return True
    return False


def _frames(module: Present, read: Callable[[int, int], bytes]) -> Iterator[Frames]:
    """Yield the frames of a module's functions: by its tables, or by the code of each section."""
    view = module.view
    how = view.arch.debugs.unwind
    if how is None:
        return
    if how.tables is not None:
        placed = _tables(module, how)
        if placed:
            places = [module.sections[each.index] for each in placed]
            contents = [read(at, each.size) for at, each in zip(places, placed, strict=True)]
            yield how.tables(contents[0], contents[1], places[0], module.version)
    elif how.scan is not None:
        for index, start in module.sections.items():
            section = view.sections[index]
            if section.executable and section.size:
                yield how.scan(read(start, section.size), start, _functions(module, index))


def _tables(module: Present, how: Unwind) -> list[Section]:
    """Return the sections with a module's tables of frames; nothing where it has not all of them."""
    found = [module.view.section(name) for name in how.sections]
    placed = [each for each in found if each is not None and each.index in module.sections]
    return placed if len(placed) == len(how.sections) else []


def _functions(module: Present, section: int) -> NDArray[np.uint64]:
    """Return where the functions of a section begin."""
    table = module.view.symbols
    chosen = (table["info"] & 0xF == STT_FUNC) & (table["shndx"] == section)
    return np.unique(table["value"][chosen]) + np.uint64(module.sections[section])
