# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock prefixes: pointless where there is one CPU and never will be a second.

Each LOCK prefix in the module's core text becomes a prefix that does nothing
(arch/x86/kernel/alternative.c: alternatives_smp_module_add, alternatives_smp_unlock).
"""

from __future__ import annotations

import numpy as np

from allocator.types import MemType
from archs.passes.subject import Subject

LOCK, DS = 0xF0, 0x3E


def drop(subject: Subject) -> None:
    """Turn the lock prefixes into harmless ones on a machine with one CPU."""
    sites = subject.sites(".smp_locks")
    if not sites.size or subject.environment.possible_cpus > 1:
        return
    at = subject.offsets(sites[subject.within(sites, MemType.TEXT)])
    at = at[subject.image[at] == LOCK]
    subject.write(at, np.array([DS], np.uint8))
