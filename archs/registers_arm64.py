# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers of arm64 (Arm ARM, D19.2: their encodings)."""

from __future__ import annotations

from archs.registers import Registers

_VECTORS = tuple(f"q{number}" for number in range(32))

REGISTERS = Registers(
    general=(*(f"x{number}" for number in range(31)), "sp", "pstate"),
    vector=(*_VECTORS, "fpcr", "fpsr"),
    system=("sp_el0", "tpidr_el0", "tpidrro_el0", "tpidr_el1"),
    places={
        "sctlr_el1": (3, 0, 1, 0, 0),
        "cpacr_el1": (3, 0, 1, 0, 2),
        "ttbr0_el1": (3, 0, 2, 0, 0),
        "ttbr1_el1": (3, 0, 2, 0, 1),
        "tcr_el1": (3, 0, 2, 0, 2),
        "spsr_el1": (3, 0, 4, 0, 0),
        "elr_el1": (3, 0, 4, 0, 1),
        "esr_el1": (3, 0, 5, 2, 0),
        "far_el1": (3, 0, 6, 0, 0),
        "par_el1": (3, 0, 7, 4, 0),
        "mair_el1": (3, 0, 10, 2, 0),
        "vbar_el1": (3, 0, 12, 0, 0),
        "contextidr_el1": (3, 0, 13, 0, 1),
        "cntkctl_el1": (3, 0, 14, 1, 0),
        "midr_el1": (3, 0, 0, 0, 0),
        "mpidr_el1": (3, 0, 0, 0, 5),
    },
    widths={**dict.fromkeys(_VECTORS, 128), "pstate": 32, "fpcr": 32, "fpsr": 32},
)
