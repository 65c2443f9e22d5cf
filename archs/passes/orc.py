# SPDX-License-Identifier: GPL-2.0-or-later
"""The ORC unwind tables: sorted by address, so that the unwinder can search them.

Addresses and what they say stand in two tables, and move together. Where two entries have
one address, the one that says nothing (the end of a function) comes first, so that the
other is found (arch/x86/kernel/unwind_orc.c: unwind_module_init, orc_sort_cmp).
"""

from __future__ import annotations

import numpy as np

from archs.passes.subject import Subject
from archs.versions import Since

ADDRESS = np.dtype([("ip", "<i4")])
ENTRY = np.dtype([("sp_offset", "<i2"), ("bp_offset", "<i2"), ("what", "<u2")])
# Bits of `what` of which one is set where an entry says something: ORC_TYPE; before 6.4 the
# register that the stack pointer counts from, or the mark of an end.
SAYS = Since(((0, 0), 0x40F), ((6, 3), 0x80F), ((6, 4), 0x700))


def sort(subject: Subject) -> None:
    """Sort the unwind tables by address."""
    addresses = subject.table(".orc_unwind_ip", ADDRESS)
    entries = subject.table(".orc_unwind", ENTRY)
    if addresses is None or entries is None:
        return
    if addresses.entries.size != entries.entries.size:
        reason = f"{addresses.entries.size} addresses for {entries.entries.size} entries"
        raise subject.refusal(".orc_unwind", reason)
    ip = addresses.targets("ip")
    # One sort instead of two: addresses of the kernel half, less their highest bit.
    says = (entries.entries["what"] & SAYS.at(subject.environment.version) != 0).astype(np.uint64)
    order = np.argsort(ip << np.uint64(1) | says, kind="stable")
    addresses.point("ip", ip[order])
    entries.entries[:] = entries.entries[order]
    subject.claim(addresses)
    subject.claim(entries)
