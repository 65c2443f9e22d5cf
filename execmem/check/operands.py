# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads operands of instructions by the tables of their architecture, without LLVM."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from archs import Arch
from archs.operands import Form, Leads, Pair, Patterns, Templates
from emulator.disassembly import Disassembler
from execmem.check.outcome import Unanswerable

MASK = (1 << 64) - 1
LONGEST = 15  # bytes of an instruction

Operand: TypeAlias = int | None


@attrs.frozen(kw_only=True)
class Instruction:
    """An instruction with its operands as LLVM counts them.

    Parameters
    ----------
    size
        In bytes.
    operands
        Numbers; None for what is none (a register). None for all: they are not known.
    leads
        The address that it branches to; None: it is no direct branch.
    """

    size: int
    operands: tuple[Operand, ...] | None
    leads: int | None = None


def decode(arch: Arch, code: bytes, address: int) -> Instruction:
    """Return the first instruction of `code`, which stands at an address.

    Unanswerable where there is none, or nobody has said how to read any.
    """
    tables = arch.link.operands
    if isinstance(tables, Patterns):
        return _patterned(tables, code, address)
    if isinstance(tables, Templates):
        return _opcoded(arch, tables, code, address)
    raise Unanswerable(f"operands of instructions of {arch.title} are not known here")


def named(arch: Arch, code: bytes, address: int) -> str:
    """Return an instruction as text; its bytes where nobody can disassemble it."""
    if arch.run is None:
        return code[:4].hex(" ")
    return Disassembler(arch).one(code[:LONGEST], address)


def operand(arch: Arch, code: bytes, address: int, number: int) -> int:
    """Return an operand, as 64 bits; Unanswerable where it is none, or not known."""
    found = decode(arch, code, address)
    text = named(arch, code, address)
    if found.operands is None:
        raise Unanswerable(f"the operands of `{text}` are not known here by LLVM's numbers")
    if number >= len(found.operands):
        count = len(found.operands)
        raise Unanswerable(f"`{text}` has {count} operands by LLVM's count, and no number {number}")
    value = found.operands[number]
    if value is None:
        raise Unanswerable(f"operand {number} of `{text}` is no number")
    return value & MASK


def target(arch: Arch, code: bytes, address: int) -> int:
    """Return where a direct branch leads; Unanswerable where it is none, or not known."""
    found = decode(arch, code, address)
    if found.leads is None:
        text = named(arch, code, address)
        raise Unanswerable(f"`{text}` is no direct branch whose target is known here")
    return found.leads & MASK


# Words of fixed fields ----------------------------------------------------------------------------


def _patterned(tables: Patterns, code: bytes, address: int) -> Instruction:
    size = tables.size(code)
    if size is None:
        raise Unanswerable(f"there is no whole instruction at {address:#x}")
    word = int.from_bytes(code[:size], "little")
    form = tables.find(word, size)
    if form is None:
        return Instruction(size=size, operands=None)
    values = form.values(word)
    leads = None if values is None else _led(form.leads, values, address, size)
    for pair in tables.pairs if leads is None else ():
        leads = _paired(tables, pair, form, code, address)
    return Instruction(size=size, operands=values, leads=leads)


def _led(leads: Leads | None, values: tuple[Operand, ...], address: int, size: int) -> int | None:
    if leads is None:
        return None
    value = values[leads.operand]
    assert value is not None  # tables name numbers
    if leads.region:
        return (address + size) & -leads.region | value
    return address + leads.unit * value


def _paired(tables: Patterns, pair: Pair, form: Form, code: bytes, address: int) -> int | None:
    """Return where two instructions lead together; None where they are no such pair."""
    rest = code[form.size :]
    size = tables.size(rest)
    if form.name != pair.first or size is None:
        return None
    word, second = (
        int.from_bytes(code[: form.size], "little"),
        int.from_bytes(rest[:size], "little"),
    )
    other = tables.find(second, size)
    if other is None or other.name != pair.second:
        return None
    if form.field("D").of(word) != other.field("S").of(second):
        return None
    bits = 32 - pair.shift
    page = form.field("i").of(word)
    page -= page >> (bits - 1) << bits
    low = attrs.evolve(other.field("i"), signed=True).of(second)
    return address + (page << pair.shift) + low


# Opcodes with a tail ------------------------------------------------------------------------------


def _opcoded(arch: Arch, tables: Templates, code: bytes, address: int) -> Instruction:
    code = code[:LONGEST]
    size = Disassembler(arch).size(code, address)
    if size is None:
        raise Unanswerable(f"there is no instruction at {address:#x} ({code[:8].hex(' ')})")
    code = code[:size]
    at = 0
    while at < size and code[at] in tables.prefixes:
        at += 1
    mandatory = [byte for byte in code[:at] if byte in tables.mandatory]
    wide = False
    if at < size and code[at] & 0xF0 == 0x40:  # REX
        wide = bool(code[at] & 8)
        at += 1
    start = at
    if code[at : at + 1] == b"\x0f":
        at += 2 if code[at + 1 : at + 2] in (b"\x38", b"\x3a") else 1
    at += 1
    if at > size:
        raise Unanswerable(f"there is no whole instruction at {address:#x}")
    digit = code[at] >> 3 & 7 if at < size else None
    template = tables.find(code[start:at].hex(), mandatory, digit)
    if template is None or (template[:1] == "j" and 0x66 in mandatory):
        # With 0x66, processors disagree about the size of a displacement.
        return Instruction(size=size, operands=None)
    return _filled(template.split(), code, start, at, address, wide=wide)


def _filled(
    template: list[str], code: bytes, start: int, at: int, address: int, *, wide: bool
) -> Instruction:
    """Read what a template says stands behind an opcode."""
    memory: tuple[Operand, ...] | None = None
    if {"E", "=E", "X"} & set(template):
        # The disassembler has seen that it is whole; padding is for where it has not.
        memory, at = _memory(code + bytes(LONGEST), at)
    operands: list[Operand] = []
    leads = None
    rest = code[at:]
    for item in template:
        kind = item[-1]
        if kind in "EX" and memory is not None:
            operands += memory
        elif kind == "X":
            return Instruction(size=len(code), operands=None)
        elif kind in "R-E":
            operands += [None] * len(item)
        elif kind == "c":
            operands.append(code[_last(code, start)] & 0xF)
        elif not rest:
            return Instruction(size=len(code), operands=None)
        else:
            signs = {"i": wide or len(rest) == 1, "s": len(rest) != 2, "u": False}
            value = int.from_bytes(rest, "little", signed=signs.get(kind, True))
            operands.append(value)
            if kind == "j":
                leads = address + len(code) + value
    return Instruction(size=len(code), operands=tuple(operands), leads=leads)


def _last(code: bytes, start: int) -> int:
    """Return where the opcode's last byte stands."""
    if code[start] != 0x0F:
        return start
    return start + (2 if code[start + 1] in (0x38, 0x3A) else 1)


def _memory(code: bytes, at: int) -> tuple[tuple[Operand, ...] | None, int]:
    """Read ModRM and what belongs to it: base, scale, index, displacement, segment; the end.

    None for a register.
    """
    modrm = code[at]
    at += 1
    mod, rm, scale = modrm >> 6, modrm & 7, 1
    if mod == 3:
        return None, at
    width = (0, 1, 4)[mod]
    if rm == 4:
        sib = code[at]
        at += 1
        scale = 1 << (sib >> 6)
        rm = sib & 7
    if mod == 0 and rm == 5:
        width = 4
    value = int.from_bytes(code[at : at + width], "little", signed=True)
    return (None, scale, None, value, None), at + width
