# SPDX-License-Identifier: GPL-2.0-or-later
"""PLT entries of the module's own for the function tracer.

A traced function branches to the tracer, which a branch may not reach. Every module
therefore brings room for one entry, in core and in init text, and the kernel fills it even
where it is not needed; before Linux 6.2 there was one more, for a tracer that saves all registers
 (arch/arm64/kernel/module.c: module_init_ftrace_plt).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from archs.passes.subject import Subject


def fill(
    subject: Subject,
    *,
    sections: Iterable[str],
    tracers: Sequence[str],
    encode: Callable[[int, int], bytes],
) -> None:
    """Write the entries that lead to the tracers, as far as there is room, and as the kernel has them.

    Parameters
    ----------
    sections
        Sections of PLT entries, through which sites reach the tracers when they are far.
    tracers
        The kernel's symbols, an entry each.
    encode
        Returns the bytes of an entry, given its address and where it leads.
    """
    symbols = subject.environment.symbols
    for name in sections:
        section = subject.section(name)
        at = 0
        for tracer in tracers:
            if section is None or tracer not in symbols:
                break
            code = encode(section.address + at, symbols[tracer])
            if section.size < at + len(code):
                break
            subject.write(np.array([section.at + at], np.intp), np.frombuffer(code, np.uint8))
            at += len(code)
