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

import numpy as np
from numpy.typing import NDArray

from allocator.types import MemType
from loader.errors import BadModule
from loader.finalize.subject import U64, Subject, Table

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


def apply(subject: Subject) -> None:
    """Apply the alternatives that this CPU wants.

    Raises
    ------
    BadModule
        When the table makes no sense: it is of no known form.
    """
    rules = subject.rules.variable_size
    table = _table(subject)
    if rules is None or table is None:
        return
    _level(table)
    subject.claim(table)
    numbers = subject.rules.features
    has = {numbers[name] for name in subject.environment.features if name in numbers}
    entries = table.entries
    places, sources = table.targets("place"), table.targets("replacement")
    where = subject.offsets(places, entries["length"].astype(np.intp))
    filled = entries["replaced"] > 0
    start = np.zeros(places.size, np.intp)
    start[filled] = subject.offsets(sources[filled], entries["replaced"][filled].astype(np.intp))
    image = subject.image
    features, flags_of = _wanted(entries)
    columns = features.tolist(), flags_of.tolist()
    sizes = entries["length"].tolist(), entries["replaced"].tolist()
    for n, (feature, flags, length, replaced) in enumerate(zip(*columns, *sizes, strict=True)):
        at, source = int(where[n]), int(start[n])
        code = image[at : at + length].tobytes()
        if (feature in has) != bool(flags & NOT):
            new: bytes | None = image[source : source + replaced].tobytes()
            if flags & DIRECT_CALL:
                new = rules.direct_call(code, int(places[n]), new or b"", subject.environment)
            if new is None:
                continue
            filler = rules.filler * (length - len(new))
            code = rules.moved(new + filler, int(sources[n]), int(places[n]), replaced)
        image[at : at + length] = np.frombuffer(rules.packed(code), np.uint8)
    subject.note(where, entries["length"].astype(np.intp))


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
    """Return the table in the form in which every entry makes sense; BadModule for none."""
    section = subject.view.section(SECTION)
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
    raise BadModule(subject.view.name, where, f"no entries {'; nor '.join(reasons)}")


def _nonsense(subject: Subject, table: Table) -> str:
    """Return what speaks against an entry's form; empty for nothing."""
    entries = table.entries
    places, sources = table.targets("place"), table.targets("replacement")
    lengths, replaced = (entries[name].astype(np.intp) for name in ("length", "replaced"))
    code = subject.within(places, MemType.TEXT, MemType.INIT_TEXT)
    code &= subject.room(places, lengths)
    home = subject.view.section(REPLACEMENTS)
    inside = replaced == 0
    if home is not None and home.index in subject.addresses:
        start = np.uint64(subject.addresses[home.index])
        offset = sources - start
        inside |= offset + replaced.astype(np.uint64) <= np.uint64(subject.layout.size_of(home))
    for good, what in (
        (code, "it is no code of the module"),
        (replaced <= lengths, "its replacement is longer than its place"),
        (inside, f"its replacement is not in {REPLACEMENTS}"),
    ):
        if not good.all():
            number = int(good.argmin())
            return f"entry {number} is about {int(places[number]):#x}, but {what}"
    return ""


def _level(table: Table) -> None:
    """Give consecutive entries of one place the longest of their lengths."""
    places = table.targets("place")
    starts = np.flatnonzero(np.append(True, places[1:] != places[:-1]))
    longest = np.maximum.reduceat(table.entries["length"], starts)
    table.entries["length"] = np.repeat(longest, np.diff(np.append(starts, places.size)))
