# SPDX-License-Identifier: GPL-2.0-or-later
"""The NOPs of a boot: kernels before 5.13 chose them by the CPU's vendor.

Intel's and later AMD's are the ones that are left; AMD's up to family 15 got others, and every
NOP of five bytes that a tracer or a static branch may become was written anew
(arch/x86/kernel/alternative.c: arch_init_ideal_nops; jump_label.c: jump_label_apply_nops).
"""

from __future__ import annotations

import numpy as np

from archs.environment import Environment
from archs.insn_x86_64 import K8_ATOMIC_NOP, K8_NOPS, NOPS
from archs.passes.ftrace import ADDRESS
from archs.passes.jump_labels import ENTRY
from archs.passes.subject import Subject
from archs.versions import Since

OPTION, K8 = "nops", "k8"
BY_VENDOR = Since(((0, 0), True), ((5, 13), False))


def nops_of(environment: Environment) -> tuple[bytes, ...]:
    """Return the NOPs that fill room, by length."""
    return K8_NOPS if environment.options.get(OPTION) == K8 else NOPS


def choose(subject: Subject) -> None:
    """Write the NOP of five bytes of this boot at the sites of tracers and static branches."""
    if subject.environment.options.get(OPTION) != K8:
        return
    sites = []
    for name, form, field in (
        ("__mcount_loc", ADDRESS, "address"),
        ("__jump_table", ENTRY, "code"),
    ):
        table = subject.table(name, form)
        if table is not None:
            sites.append(table.targets(field))
    for places in sites:
        at = subject.offsets(places, len(NOPS[5]))
        found = (subject.bytes_at(at, len(NOPS[5])) == np.frombuffer(NOPS[5], np.uint8)).all(axis=1)
        subject.write(at[found], np.frombuffer(K8_ATOMIC_NOP, np.uint8))
