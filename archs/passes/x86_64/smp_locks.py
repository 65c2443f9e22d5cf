# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock prefixes: pointless where there is one CPU and never will be a second.

Each LOCK prefix in the module's core text becomes a prefix that does nothing
(arch/x86/kernel/alternative.c: alternatives_smp_module_add, alternatives_smp_unlock).
"""

from __future__ import annotations

import numpy as np

from allocator.types import MemType
from archs.passes.subject import Subject
from archs.versions import Since

LOCK, DS = 0xF0, 0x3E
# Whether only `.text` counts, or all core text since modules have memory by type.
ONE_SECTION = Since(((0, 0), True), ((6, 4), False))


def drop(subject: Subject) -> None:
    """Turn the lock prefixes into harmless ones on a machine with one CPU."""
    sites = subject.sites(".smp_locks")
    if not sites.size or subject.environment.possible_cpus > 1:
        return
    inside = subject.within(sites, MemType.TEXT)
    if ONE_SECTION.at(subject.environment.version):
        text = subject.section(".text")
        start, size = (0, 0) if text is None else (text.address, text.size)
        inside &= sites - np.uint64(start) < np.uint64(size)
    at = subject.offsets(sites[inside])
    at = at[subject.image[at] == LOCK]
    subject.write(at, np.array([DS], np.uint8))
