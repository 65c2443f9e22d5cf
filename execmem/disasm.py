# SPDX-License-Identifier: GPL-2.0-or-later
"""What `execmem disasm` shows: a function as it stands in memory, with names and relocations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import attrs

from allocator.types import ADDRESS_MASK, Hex
from emulator.disassembly import Disassembler
from emulator.faults import BadCall
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
    """

    address: int
    code: bytes
    text: str
    target: str
    relocations: tuple[Relocation, ...]


@attrs.frozen(kw_only=True)
class Function:
    """A function: its name, section, address, size, and its instructions in order."""

    name: str
    section: str
    address: int
    size: int
    instructions: tuple[Instruction, ...]


def function(module: LoadedModule, name: str) -> Function:
    """Return a function of a loaded module, disassembled; BadCall where there is none."""
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
    return Function(
        name=name,
        section=section.name,
        address=address,
        size=size,
        instructions=tuple(_instructions(module, address, code, chosen)),
    )


def _instructions(
    module: LoadedModule, address: int, code: bytes, relocations: list[Relocation]
) -> Iterator[Instruction]:
    disassembler = Disassembler(module.view.arch)
    unit = len(module.view.arch.loads.trap)
    at = 0
    while at < len(code):
        found = disassembler.all(code[at:], address + at)
        for where, size, text in found:
            yield _instruction(module, where, code[at : at + size], text, relocations)
            at += size
        if at < len(code):  # what is no instruction: data, or one that capstone does not know
            yield _instruction(module, address + at, code[at : at + unit], "", relocations)
            at += unit


def _instruction(
    module: LoadedModule, address: int, code: bytes, text: str, relocations: list[Relocation]
) -> Instruction:
    target = ""
    numbers = _NUMBER.findall(text)
    if numbers:
        there = module.symbol_at(int(numbers[-1], 16) & ADDRESS_MASK)
        target = f"{there[0]}+{there[1]:#x}" if there and there[1] else there[0] if there else ""
    mine = tuple(r for r in relocations if address <= r.place < address + len(code))
    return Instruction(address=address, code=code, text=text, target=target, relocations=mine)


def lines(found: Function) -> Iterator[str]:
    """Yield a function's lines: address, bytes, text, target, and relocations below."""
    yield f"{found.address:#x} <{found.name}> in {found.section}, {found.size:#x} bytes:"
    width = max((len(each.code) for each in found.instructions), default=4)
    for each in found.instructions:
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
