# SPDX-License-Identifier: GPL-2.0-or-later
"""Alternatives where instructions have one size, so that a replacement always fits.

An entry of the table names a place, a capability of the CPU, and code of the same length
that is better there if the CPU has it. The kernel copies the code and adjusts what is
relative to its own address. On arm64 an entry may instead name a function of the kernel
that writes the code; the one that modules use writes NOPs, over the branch that jumps
around what the capability makes possible (arch/arm64/kernel/alternative.c;
arch/riscv/kernel/alternative.c).
"""

from __future__ import annotations

import numpy as np

from loader.errors import BadModule
from loader.finalize.subject import Subject


def apply(subject: Subject) -> None:
    """Apply the alternatives that this CPU wants.

    Raises
    ------
    BadModule
        When a replacement is longer than the place, or a function that nobody knows writes it.
    """
    rules = subject.rules.same_size
    table = subject.table(rules.section, rules.entry) if rules is not None else None
    if rules is None or table is None:
        return
    entries = table.entries
    places, sources = table.targets("place"), table.targets("replacement")
    lengths = entries["length"].astype(np.intp)
    called = rules.callback(entries)
    symbols = subject.environment.symbols
    writers = {symbols[name]: code for name, code in rules.callbacks.items() if name in symbols}
    wanted = rules.wanted(entries, subject.environment.features)
    for writer, length in {(int(sources[n]), int(lengths[n])) for n in wanted[called[wanted]]}:
        if writer not in writers:
            what = f"an alternative is written by {writer:#x}, which is none of "
            names = ", ".join(sorted(rules.callbacks))
            raise BadModule(subject.view.name, rules.section, what + names)
        chosen = wanted[called[wanted] & (sources[wanted] == writer) & (lengths[wanted] == length)]
        row = np.frombuffer(writers[writer](length), np.uint8)
        subject.write(subject.offsets(places[chosen], length), row)
    plain = wanted[~called[wanted]]
    if not plain.size:
        return
    widths = lengths[plain]
    for edge in (0, widths - 1):
        at, code_at = (
            subject.offsets(base[plain] + np.asarray(edge, np.uint64)) - edge
            for base in (places, sources)
        )
    subject.note(at, widths)
    image = subject.image.data
    each = (at, code_at, widths, places[plain], sources[plain])
    for start, source_at, size, place, source in zip(*(x.tolist() for x in each), strict=True):
        code = bytes(image[source_at : source_at + size])
        image[start : start + size] = rules.moved(code, source, place)
