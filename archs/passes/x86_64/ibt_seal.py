# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions whose address nobody takes lose the mark that permits indirect calls.

The ENDBR at their entry becomes a NOP of the same size, so that a CPU with indirect branch
tracking faults on a call that should not be (arch/x86/kernel/alternative.c:
apply_seal_endbr).
"""

from __future__ import annotations

import numpy as np

from archs.passes.subject import Subject
from archs.versions import Since

ENDBR64 = np.frombuffer(bytes.fromhex("f30f1efa"), np.uint8)
# What stands there afterwards (gen_endbr_poison): osp nopl (%rax), nopl -42(%rax).
POISON = Since(((0, 0), bytes.fromhex("660f1f00")), ((6, 15), bytes.fromhex("0f1f40d6")))


def seal(subject: Subject) -> None:
    """Overwrite the ENDBR of the functions that are never called indirectly."""
    sites = subject.sites(".ibt_endbr_seal")
    if not sites.size:
        return
    at = subject.offsets(sites, ENDBR64.size)
    at = at[(subject.bytes_at(at, ENDBR64.size) == ENDBR64).all(axis=1)]
    subject.write(at, np.frombuffer(POISON.at(subject.environment.version), np.uint8))
