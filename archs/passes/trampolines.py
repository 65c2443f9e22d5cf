# SPDX-License-Identifier: GPL-2.0-or-later
"""A PLT entry of the module's own for the function tracer.

A traced function branches to the tracer, which a branch may not reach. Every module
therefore brings room for one entry, in core and in init text, and the kernel fills it even
where it is not needed (arch/arm64/kernel/module.c: module_init_ftrace_plt).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from archs.passes.subject import Subject


def fill(
    subject: Subject,
    *,
    sections: Iterable[str],
    tracer: str,
    encode: Callable[[int, int], bytes],
) -> None:
    """Write the entry that leads to the tracer, unless the kernel has none.

    Parameters
    ----------
    sections
        Sections of one PLT entry each, through which sites reach the tracer when it is far.
    tracer
        The kernel's symbol.
    encode
        Returns the bytes of an entry, given its address and where it leads.
    """
    if tracer not in subject.environment.symbols:
        return
    for name in sections:
        section = subject.section(name)
        if section is None:
            continue
        code = encode(section.address, subject.environment.symbols[tracer])
        if section.size >= len(code):
            subject.write(np.array([section.at], np.intp), np.frombuffer(code, np.uint8))
