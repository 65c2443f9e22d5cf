# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUs that come and go (kernel/cpu.c): there is one, which is up all the time.

Whoever registers for a state is called for that CPU at once, and called again when it leaves.
"""

from __future__ import annotations

import attrs

from kernels.modelled.api.common import nothing, signed_int, state
from kernels.modelled.kernel import Kernel
from kernels.modelled.table import function


@attrs.define
class _States:
    teardowns: dict[int, int] = attrs.field(factory=dict)


@function(
    "int __cpuhp_setup_state(enum cpuhp_state state, const char *name, bool invoke,"
    " void *startup, void *teardown, bool multi_instance)",
    "int __cpuhp_setup_state_cpuslocked(enum cpuhp_state state, const char *name, bool invoke,"
    " void *startup, void *teardown, bool multi_instance)",
)
def _setup_state(
    k: Kernel, number: int, _name: int, invoke: int, startup: int, teardown: int, multi: int
) -> int:
    taken = state(k, _States).teardowns
    while number in taken:
        number += 1
    if invoke and startup and not multi:
        result = signed_int(k.call(startup, 0))
        if result:
            return result
    taken[number] = 0 if multi else teardown
    return number


@function(
    "void __cpuhp_remove_state(enum cpuhp_state state, bool invoke)",
    "void __cpuhp_remove_state_cpuslocked(enum cpuhp_state state, bool invoke)",
)
def _remove_state(k: Kernel, number: int, invoke: int) -> None:
    teardown = state(k, _States).teardowns.pop(number, 0)
    if invoke and teardown:
        k.call(teardown, 0)


nothing(
    "int __cpuhp_state_add_instance(enum cpuhp_state state, void *node, bool invoke)",
    "int __cpuhp_state_remove_instance(enum cpuhp_state state, void *node, bool invoke)",
    "void cpus_read_lock(void)",
    "void cpus_read_unlock(void)",
    "void migrate_disable(void)",
    "void migrate_enable(void)",
    "bool __riscv_isa_extension_available(const unsigned long *isa_bitmap, unsigned int bit)",
    "const struct x86_cpu_id *x86_match_cpu(const struct x86_cpu_id *match)",
)
