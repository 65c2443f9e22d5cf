# SPDX-License-Identifier: GPL-2.0-or-later
"""A PLT entry of the module's own for the function tracer.

A traced function branches to the tracer, which a branch may not reach. Every module
therefore brings room for one entry, in core and in init text, and the kernel fills it even
where it is not needed (arch/arm64/kernel/module.c: module_init_ftrace_plt).
"""

from __future__ import annotations

import numpy as np

from loader.finalize.subject import Subject


def fill(subject: Subject) -> None:
    """Write the entry that leads to the tracer, unless the kernel has none."""
    rules, template = subject.rules.ftrace, subject.arch.plt
    if rules is None or template is None or rules.tracer not in subject.environment.symbols:
        return
    tracer = subject.environment.symbols[rules.tracer]
    for name in rules.trampolines:
        section = subject.view.section(name)
        if section is None or section.index not in subject.addresses:
            continue
        code = template.encode(subject.addresses[section.index], tracer)
        if subject.layout.size_of(section) >= len(code):
            at = np.array([subject.linked.offsets[section.index]], np.intp)
            subject.write(at, np.frombuffer(code, np.uint8))
