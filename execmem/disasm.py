# SPDX-License-Identifier: GPL-2.0-or-later
"""What `execmem disasm` shows: a function as it stands in memory, with names and relocations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from allocator.files import read_regular
from allocator.types import ADDRESS_MASK, Hex
from archs import Arch
from emulator.disassembly import Disassembler
from emulator.faults import BadCall
from execmem.check.operands import LONGEST, target
from execmem.check.outcome import Unanswerable
from loader.elfview import STT_FUNC
from loader.lines import Line, Lines, told
from loader.listing import Listing, Relocation
from loader.loaded import LoadedModule

_NUMBER = re.compile(r"-?0x[0-9a-f]+")


@attrs.frozen(kw_only=True)
class Instruction:
    """An instruction.

    Parameters
    ----------
    address, code
        Where it is, and its bytes as they are in memory.
    text
        As capstone has it; empty where it is none.
    target
        `name+0xoff` of an address that it names, in the module; empty: none.
    relocations
        Those that fill it.
    lines
        The line of source that it was made of, and below it who called what is inlined there; empty
        where nothing says that.
    """

    address: int
    code: bytes
    text: str
    target: str
    relocations: tuple[Relocation, ...]
    lines: tuple[Line, ...] = ()


@attrs.frozen(kw_only=True)
class Function:
    """A function: its name, section, address, size, and its instructions in order."""

    name: str
    section: str
    address: int
    size: int
    instructions: tuple[Instruction, ...]


def function(module: LoadedModule, name: str, known: Lines | None = None) -> Function:
    """Return a function of a loaded module, disassembled; BadCall where there is none.

    Parameters
    ----------
    known
        The module's lines of source.
    """
    address = module.symbols.get(name)
    found = None if address is None else module.symbol_at(address)
    if address is None or found is None:
        near = get_close_matches(name, module.symbols, 3)
        hint = f"did you mean {', '.join(near)}?" if near else ""
        raise BadCall(name, f"module {module.name} has no such function", hint)
    size = found[2]
    index, section = next(
        (index, section)
        for index, section in module.sections.items()
        if section.address <= address < section.address + max(section.size, 1)
    )
    start = address - section.address
    code = bytes(module.linked.sections[index][start : start + size])
    listing = Listing.of(module)
    chosen = [
        relocation
        for relocation in listing.select(section=section.name)
        if address <= relocation.place < address + size
    ]
    instructions = _instructions(module, address, code, chosen)
    if known is not None:
        instructions = (attrs.evolve(each, lines=known.at(each.address)) for each in instructions)
    return Function(
        name=name,
        section=section.name,
        address=address,
        size=size,
        instructions=tuple(instructions),
    )


def _instructions(
    module: LoadedModule, address: int, code: bytes, relocations: list[Relocation]
) -> Iterator[Instruction]:
    arch = module.view.arch
    disassembler = Disassembler(arch)
    unit = len(arch.loads.trap)
    labels = _labels(module)
    at = 0
    while at < len(code):
        for where, size, text in disassembler.all(code[at:], address + at):
            leads = _leads(arch, code[at : at + LONGEST], where, text)
            yield Instruction(
                address=where,
                code=code[at : at + size],
                text=text,
                target="" if leads is None else _named(module, labels, leads),
                relocations=_within(relocations, where, size),
            )
            at += size
        if at < len(code):  # what is no instruction: data, or one that capstone does not know
            yield Instruction(
                address=address + at,
                code=code[at : at + unit],
                text="",
                target="",
                relocations=_within(relocations, address + at, unit),
            )
            at += unit


def _within(relocations: list[Relocation], address: int, size: int) -> tuple[Relocation, ...]:
    return tuple(r for r in relocations if address <= r.place < address + size)


def _leads(arch: Arch, code: bytes, address: int, text: str) -> int | None:
    """Return where a direct branch leads, else the last number of the text; None: nothing.

    Of some architectures capstone says how far a branch goes, and not where.
    """
    with suppress(Unanswerable):
        return target(arch, code, address)
    numbers = _NUMBER.findall(text)
    return int(numbers[-1], 16) & ADDRESS_MASK if numbers else None


def _labels(module: LoadedModule) -> dict[int, str]:
    """Return the names of what is no function of the module: address -> the first symbol there."""
    view = module.view
    placed = np.isin(view.symbols["shndx"], np.array(list(module.sections), np.uint16))
    placed &= view.symbols["info"] & 0xF < STT_FUNC
    found: dict[int, str] = {}
    for index in (*np.flatnonzero(placed).tolist(), *view.undefined_indices.tolist()):
        name = view.symbol_name(index)
        if name and not name.startswith(("$", ".L")):  # how code is read, and what is nobody's
            found.setdefault(int(module.linked.symbols[index]), name)
    return found


def _named(module: LoadedModule, labels: Mapping[int, str], address: int) -> str:
    there = module.symbol_at(address)
    if there is None:
        return labels.get(address, "")
    return f"{there[0]}+{there[1]:#x}" if there[1] else there[0]


class Sources:
    """Lines of source files below a folder; a file that is not there has none."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files: dict[str, list[str]] = {}

    def text(self, line: Line) -> str | None:
        """Return a line's text; None where the file or the line is not there."""
        if line.file not in self._files:
            self._files[line.file] = self._read(line)
        lines = self._files[line.file]
        return lines[line.line - 1] if 0 < line.line <= len(lines) else None

    def _read(self, line: Line) -> list[str]:
        """Return the file of the longest end of its path that is below the folder, and nothing else.

        A module's file says the path, and it may come from anybody.
        """
        home = self.folder.resolve()
        parts = [part for part in line.file.split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            path = self.folder.joinpath(*parts[start:])
            try:
                if not path.resolve().is_relative_to(home):
                    continue
                raw = read_regular(path)
            except (OSError, ValueError):
                continue
            return raw.decode("utf-8", "replace").splitlines()
        return []


def lines(found: Function, sources: Sources | None = None) -> Iterator[str]:
    """Yield a function's lines: address, bytes, text, target, and relocations below.

    Above an instruction stands the line of source that it was made of, where it is another than
    that of the one before; with what is inlined there, and with its text where that is there.
    """
    yield f"{found.address:#x} <{found.name}> in {found.section}, {found.size:#x} bytes:"
    width = max((len(each.code) for each in found.instructions), default=4)
    before = ""
    for each in found.instructions:
        place = told(each.lines)
        if place and place != before:
            yield place
            text = None if sources is None else sources.text(each.lines[0])
            if text is not None:
                yield f"    {text.strip()}"
        before = place or before
        text = each.text or f"(bytes {each.code.hex(' ')})"
        target = f"  <{each.target}>" if each.target else ""
        yield f"  {each.address:x}:  {each.code.hex(' '):<{3 * width}} {text}{target}"
        for relocation in each.relocations:
            addend = f"{relocation.addend:+#x}" if relocation.addend else ""
            via = f" through {relocation.via}" if relocation.via is not None else ""
            name = f"{relocation.symbol}{addend}{via}"
            yield f"  {relocation.place:x}:  {'':<{3 * width}} {relocation.type} {name}"


def as_json(found: Function) -> Mapping[str, Any]:
    """Return a function as a document."""
    return {
        "name": found.name,
        "section": found.section,
        "address": Hex(found.address),
        "size": found.size,
        "instructions": [
            {
                "address": Hex(each.address),
                "bytes": each.code.hex(),
                "text": each.text,
                "target": each.target,
                "lines": [
                    {
                        "file": line.file,
                        "line": line.line or None,
                        "column": line.column or None,
                        "function": line.function,
                    }
                    for line in each.lines
                ],
                "relocations": [
                    {
                        "place": Hex(r.place),
                        "type": r.type,
                        "symbol": r.symbol,
                        "addend": Hex(r.addend),
                        "via": None if r.via is None else str(r.via),
                    }
                    for r in each.relocations
                ],
            }
            for each in found.instructions
        ],
    }
