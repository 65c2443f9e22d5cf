# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers of mips64el."""

from __future__ import annotations

from archs.registers import Registers

REGISTERS = Registers(
    general=(*(str(number) for number in range(1, 32)), "hi", "lo"),
    float=(*(f"f{number}" for number in range(32)), "fcsr"),
    system=("cp0_status", "cp0_config3", "cp0_userlocal"),
    widths={"fcsr": 32, "cp0_status": 32, "cp0_config3": 32},
)
