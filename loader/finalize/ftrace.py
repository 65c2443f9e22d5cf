# SPDX-License-Identifier: GPL-2.0-or-later
"""Call sites of the function tracer: sorted, and made to do nothing until tracing begins.

The compiler leaves a call (or room for one) at the entry of every function and its
address in a table. The kernel sorts the table and writes the architecture's "not traced"
instructions at each site (kernel/trace/ftrace.c: ftrace_process_locs, ftrace_update_code;
arch: ftrace_init_nop).
"""

from __future__ import annotations

import numpy as np

from loader.finalize.subject import Subject

ADDRESS = np.dtype([("address", "<u8")])


def prepare(subject: Subject) -> None:
    """Sort the table of call sites and write what stands at a site that is not traced."""
    rules = subject.rules.ftrace
    table = subject.table(rules.section, ADDRESS) if rules is not None else None
    if rules is None or table is None:
        return
    sites = np.sort(table.entries["address"])
    table.entries["address"] = sites
    subject.claim(table)
    starts = sites - np.uint64(rules.before)
    code = np.frombuffer(rules.idle(subject.environment.symbols), np.uint8)
    subject.write(subject.offsets(starts, code.size), code)
