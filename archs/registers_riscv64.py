# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers of riscv64 (privileged specification, 2.2: those of S-mode)."""

from __future__ import annotations

from archs.registers import Registers

_MACHINE = 3  # the privilege with which the emulator lets one read and write all of them
_FLOATING = 0x6000  # mstatus.FS

REGISTERS = Registers(
    general=tuple(f"x{number}" for number in range(1, 32)),
    float=(*(f"f{number}" for number in range(32)), "fcsr"),
    system=(
        *("sstatus", "sie", "stvec", "scounteren", "sscratch", "sepc", "scause", "stval", "sip"),
        *("satp", "mstatus", "medeleg", "mideleg", "priv"),
    ),
    widths={"fcsr": 32, "priv": 8},
    enabled={"fcsr": ("mstatus", _FLOATING)},
    unlock=("priv", _MACHINE),
)
