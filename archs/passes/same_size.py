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

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from archs.environment import Environment
from archs.numbers import left_text
from archs.passes.subject import Index, Subject


def never(entries: NDArray[np.void]) -> NDArray[np.bool_]:
    """Return that no entry names a kernel function."""
    return np.zeros(entries.size, np.bool_)


def apply(
    subject: Subject,
    *,
    section: str,
    entry: np.dtype[np.void],
    wanted: Callable[[NDArray[np.void], Environment], tuple[Index, int]],
    moved: Callable[[bytes, int, int], bytes],
    callback: Callable[[NDArray[np.void]], NDArray[np.bool_]] = never,
    callbacks: Mapping[str, Callable[[int], bytes]] | None = None,
) -> None:
    """Apply the alternatives that this CPU wants.

    Parameters
    ----------
    section
        The table.
    entry
        Its entries: `place` and `replacement` (self-relative words), `length` in bytes, and
        what else decides.
    wanted
        Returns which entries apply in an environment, in the order to apply, and how many name
        something that is not known, and are left as compiled.
    moved
        Returns code that ran at the first address as it must read at the second.
    callback
        Returns which entries name a kernel function, instead of code, as their replacement.
    callbacks
        What the kernel's functions write, by symbol, given the length.

    What is refused is a replacement longer than its place, or one that a function writes which
    nobody knows.
    """
    table = subject.table(section, entry)
    if table is None:
        return
    callbacks = callbacks or {}
    entries = table.entries
    places, sources = table.targets("place"), table.targets("replacement")
    lengths = entries["length"].astype(np.intp)
    called = callback(entries)
    symbols = subject.environment.symbols
    writers = {symbols[name]: code for name, code in callbacks.items() if name in symbols}
    chosen, strange = wanted(entries, subject.environment)
    if strange:
        subject.report(left_text(strange, subject.environment.version))
    for writer, length in {(int(sources[n]), int(lengths[n])) for n in chosen[called[chosen]]}:
        if writer not in writers:
            what = f"an alternative is written by {writer:#x}, which is none of "
            names = ", ".join(sorted(callbacks))
            raise subject.refusal(section, what + names)
        its = chosen[called[chosen] & (sources[chosen] == writer) & (lengths[chosen] == length)]
        row = np.frombuffer(writers[writer](length), np.uint8)
        subject.write(subject.offsets(places[its], length), row)
    plain = chosen[~called[chosen]]
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
        image[start : start + size] = moved(code, source, place)
