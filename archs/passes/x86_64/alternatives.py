# SPDX-License-Identifier: GPL-2.0-or-later
"""Alternatives: code that is replaced by better code where the CPU has a feature (x86-64).

The compiler leaves the code that runs anywhere, padded to the length of the longest
replacement; a table names for each place the feature and the replacement, which stands in
a section of its own. The kernel takes the entries in order, so that a later one wins.
Where alternatives nest, consecutive entries name one place, and all get the longest
length. A replacement is copied to another address, so what is relative to the
instruction is adjusted; what is left of the room is filled with as few NOPs as
possible, and that also where nothing is replaced. An entry may say that a call through a
pointer of the kernel becomes a direct call of what the pointer holds
(arch/x86/kernel/alternative.c: apply_alternatives).

Entries have 14 bytes, and 12 in modules of kernels before 6.3. Nothing says which, so a form
is taken only if every entry makes sense in it: places are code, replacements lie in their
section and fit.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from allocator.types import MemType
from archs.environment import Environment
from archs.insn_x86_64 import CALL, INT3, JUMP, JUMP8, NOPS, Instruction, decode
from archs.numbers import Numbers, left_text
from archs.passes.subject import U64, Index, Subject, Table
from archs.passes.x86_64.ideal_nops import nops_of
from archs.passes.x86_64.paravirt import NOTHING, PV_OPS, function_of, pv_ops_text
from archs.versions import Since

ENTRY = np.dtype(
    [
        ("place", "<i4"),
        ("replacement", "<i4"),
        ("feature", "<u2"),
        ("flags", "<u2"),
        ("length", "u1"),
        ("replaced", "u1"),
    ]
)
NOT, DIRECT_CALL = 1, 2
# Before 6.3 the highest bit of the feature was NOT, and there were no other flags.
OLD_ENTRY = np.dtype([*ENTRY.descr[:3], *ENTRY.descr[4:]])
OLD_NOT = 1 << 15
SECTION = ".altinstructions"
REPLACEMENTS = ".altinstr_replacement"
# Whether those lengths get into the table: in 6.12, not in 7.2; between them somewhere.
WRITTEN = Since(((0, 0), True), ((6, 13), False))
LONGEST_NOP = 8  # that older kernels made (ASM_NOP_MAX)


def apply(subject: Subject, *, features: Numbers) -> None:
    """Apply the alternatives that this CPU wants; refuse a table of no known form.

    Parameters
    ----------
    features
        By which numbers tables of modules name them.
    """
    table = _table(subject)
    if table is None:
        return
    levelled = _levelled(table)
    if WRITTEN.at(subject.environment.version):
        table.entries["length"] = levelled
    subject.claim(table)
    held, unknown, unheld = features.held(subject.environment), 0, 0
    gap, pack = GAP.at(subject.environment.version), PACKED.at(subject.environment.version)
    nops = nops_of(subject.environment)
    entries = table.entries
    places, sources = table.targets("place"), table.targets("replacement")
    where = subject.offsets(places, levelled)
    filled = entries["replaced"] > 0
    start = np.zeros(places.size, np.intp)
    start[filled] = subject.offsets(sources[filled], entries["replaced"][filled].astype(np.intp))
    image = subject.image
    wanted, flags_of = _wanted(entries)
    columns = wanted.tolist(), flags_of.tolist()
    sizes = levelled.tolist(), entries["replaced"].tolist()
    for n, (feature, flags, length, replaced) in enumerate(zip(*columns, *sizes, strict=True)):
        at, source = int(where[n]), int(start[n])
        if held.known is not None and feature not in held.known:
            unknown += 1
            continue
        code = image[at : at + length].tobytes()
        if (feature in held.there) != bool(flags & NOT):
            new: bytes | None = image[source : source + replaced].tobytes()
            if flags & DIRECT_CALL:
                new = _direct_call(code, int(places[n]), new or b"", subject.environment)
            if new is None:
                unheld += subject.environment.version not in PV_OPS
                continue
            filler = NOPS[1] * (length - len(new))
            code = _moved(new + filler, int(sources[n]), int(places[n]), replaced, gap=gap)
        image[at : at + length] = np.frombuffer(pack(code, nops), np.uint8)
    subject.note(where, levelled)
    if unknown:
        subject.report(left_text(unknown, subject.environment.version))
    if unheld:
        subject.report(pv_ops_text(unheld, subject.environment))


def places(subject: Subject) -> U64:
    """Return the places that have alternatives."""
    table = _table(subject)
    return np.empty(0, np.uint64) if table is None else table.targets("place")


def _wanted(entries: NDArray[np.void]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return the feature that each entry names, and its flags."""
    features = entries["feature"]
    if entries.dtype == ENTRY:
        return features, entries["flags"]
    inverted = (features & OLD_NOT != 0).astype(np.uint16) * np.uint16(NOT)
    return features & np.uint16(OLD_NOT - 1), inverted


def _table(subject: Subject) -> Table | None:
    """Return the table in the form in which every entry makes sense; refuse one without."""
    section = subject.section(SECTION)
    if section is None or not section.size:
        return None
    reasons = []
    for form in (ENTRY, OLD_ENTRY):
        if section.size % form.itemsize:
            reason = f"size {section.size:#x} is no multiple of {form.itemsize}"
        else:
            table = subject.table(SECTION, form)
            if table is None:
                return None
            reason = _nonsense(subject, table)
            if not reason:
                return table
        reasons.append(f"of {form.itemsize} bytes: {reason}")
    where = f"section {section.index} ({SECTION})"
    raise subject.refusal(where, f"no entries {'; nor '.join(reasons)}")


def _nonsense(subject: Subject, table: Table) -> str:
    """Return what speaks against an entry's form; empty for nothing."""
    entries = table.entries
    places, sources = table.targets("place"), table.targets("replacement")
    lengths, replaced = (entries[name].astype(np.intp) for name in ("length", "replaced"))
    code = subject.within(places, MemType.TEXT, MemType.INIT_TEXT)
    code &= subject.room(places, lengths)
    home = subject.section(REPLACEMENTS)
    inside = replaced == 0
    if home is not None:
        offset = sources - np.uint64(home.address)
        inside |= offset + replaced.astype(np.uint64) <= np.uint64(home.size)
    for good, what in (
        (code, "it is no code of the module"),
        (replaced <= lengths, "its replacement is longer than its place"),
        (inside, f"its replacement is not in {REPLACEMENTS}"),
    ):
        if not good.all():
            number = int(good.argmin())
            return f"entry {number} is about {int(places[number]):#x}, but {what}"
    return ""


def _levelled(table: Table) -> Index:
    """Return the lengths of entries, where consecutive ones of a place all have the longest."""
    places = table.targets("place")
    starts = np.flatnonzero(np.append(True, places[1:] != places[:-1]))
    longest = np.maximum.reduceat(table.entries["length"], starts)
    return np.repeat(longest, np.diff(np.append(starts, places.size))).astype(np.intp)


@lru_cache(maxsize=4096)
def _relative(code: bytes) -> tuple[tuple[int, Instruction, tuple[int, int]], ...]:
    """Return the fields of code that are relative: instruction's offset, instruction, field."""
    found, at = [], 0
    while (insn := decode(code, at)) is not None:
        if insn.is_branch:
            found.append((at, insn, insn.immediate))
        if insn.relative:
            found.append((at, insn, insn.displacement))
        at += insn.length
    return tuple(found)


def _moved(
    code: bytes, source: int, place: int, size: int, *, gap: bytes = bytes((INT3,))
) -> bytes:
    """Return code with what is relative to its own address adjusted (apply_relocation).

    Parameters
    ----------
    gap
        What fills the room behind a jump that became shorter.
    """
    fields, shift = _relative(code), source - place
    if not fields:
        return code
    new = bytearray(code)
    for at, insn, (offset, width) in fields:
        field, end = slice(at + offset, at + offset + width), at + insn.length
        away = int.from_bytes(new[field], "little", signed=True)
        if not 0 <= end + away <= size:  # else the target moves along
            value = away + shift & (1 << 8 * width) - 1
            new[field] = value.to_bytes(width, "little")
        near = away + shift + 3  # behind a jump of two bytes instead of five
        if insn.opcode[0] == JUMP and -128 <= near < 128:
            short = bytes((JUMP8, near & 0xFF))
            new[at:end] = short + gap * (insn.length - 2)
    return bytes(new)


@lru_cache(maxsize=4096)
def packed(code: bytes, _nops: tuple[bytes, ...] = NOPS) -> bytes:
    """Return code with each run of NOPs made into one (optimize_nops)."""
    new, at = bytearray(code), 0
    while (insn := decode(code, at)) is not None:
        first, at = at, at + insn.length
        if not insn.is_nop:
            continue
        if at == len(code):
            break
        while (insn := decode(code, at)) is not None and insn.is_nop:
            at += insn.length
        new[first:at] = _nop(at - first)
    return bytes(new)


def _nop(length: int) -> bytes:
    """Return what does nothing for `length` bytes; beyond the longest NOP, a jump over INT3."""
    if length < len(NOPS):
        return NOPS[length]
    jump = bytes((JUMP8, length - 2)) if length < 128 else bytes((JUMP,))
    jump += b"" if length < 128 else (length - 5).to_bytes(4, "little")
    return jump.ljust(length, bytes((INT3,)))


@lru_cache(maxsize=4096)
def packed_ones(code: bytes, nops: tuple[bytes, ...]) -> bytes:
    """Return code with each run of NOPs of one byte made into few, as before Linux 6.4."""
    new, at = bytearray(code), 0
    while (insn := decode(code, at)) is not None:
        first, at = at, at + insn.length
        if code[first:at] != NOPS[1]:
            continue
        while code[at : at + 1] == NOPS[1]:
            at += 1
        whole, rest = divmod(at - first, LONGEST_NOP)
        new[first:at] = nops[LONGEST_NOP] * whole + nops[rest]
    return bytes(new)


# Since 6.4 (optimize_nops, recompute_jump): what fills up is never executed.
PACKED = Since(((0, 0), packed_ones), ((6, 4), packed))
GAP = Since(((0, 0), NOPS[1]), ((6, 4), bytes((INT3,))))


def _direct_call(
    code: bytes, place: int, replacement: bytes, environment: Environment
) -> bytes | None:
    """Return a call of what `call *disp(%rip)` finds in pv_ops (alt_replace_call)."""
    symbols = environment.symbols
    if code[:2] != b"\xff\x15" or len(code) != 6 or replacement[:1] != bytes((CALL,)):
        return None
    slot = place + 6 + int.from_bytes(code[2:], "little", signed=True)
    number, rest = divmod(slot - symbols.get("pv_ops", 0), 8)
    name = "" if rest else function_of(number, environment)
    if name not in symbols or "BUG_func" not in symbols:
        return None
    if name == NOTHING:
        return b""
    # The replacement calls BUG_func, which stands for the function.
    away = int.from_bytes(replacement[1:], "little") + symbols[name] - symbols["BUG_func"]
    return bytes((CALL,)) + (away & 0xFFFF_FFFF).to_bytes(4, "little")
