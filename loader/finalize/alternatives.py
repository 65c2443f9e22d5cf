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
"""

from __future__ import annotations

import numpy as np

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


def apply(subject: Subject) -> None:
    """Apply the alternatives that this CPU wants.

    Raises
    ------
    BadModule
        When a replacement is longer than its place.
    """
    rules = subject.rules.variable_size
    table = subject.table(".altinstructions", ENTRY)
    if rules is None or table is None:
        return
    _level(table)
    subject.claim(table)
    numbers = subject.rules.features
    has = {numbers[name] for name in subject.environment.features if name in numbers}
    entries = table.entries
    places, sources = table.targets("place"), table.targets("replacement")
    if (entries["replaced"] > entries["length"]).any():
        number = int((entries["replaced"] > entries["length"]).argmax())
        reason = f"the replacement of {int(places[number]):#x} is longer than its place"
        raise BadModule(subject.view.name, ".altinstructions", reason)
    where = subject.offsets(places, entries["length"].astype(np.intp))
    filled = entries["replaced"] > 0
    start = np.zeros(places.size, np.intp)
    start[filled] = subject.offsets(sources[filled], entries["replaced"][filled].astype(np.intp))
    image = subject.image
    for n, (_, _, feature, flags, length, replaced) in enumerate(entries.tolist()):
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
    table = subject.table(".altinstructions", ENTRY)
    return np.empty(0, np.uint64) if table is None else table.targets("place")


def _level(table: Table) -> None:
    """Give consecutive entries of one place the longest of their lengths."""
    places = table.targets("place")
    starts = np.flatnonzero(np.append(True, places[1:] != places[:-1]))
    longest = np.maximum.reduceat(table.entries["length"], starts)
    table.entries["length"] = np.repeat(longest, np.diff(np.append(starts, places.size)))
