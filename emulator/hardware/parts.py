# SPDX-License-Identifier: GPL-2.0-or-later
"""The pieces of hardware by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from emulator.hardware.gicv2 import CpuInterface, Distributor
from emulator.hardware.part import Device, Wires
from emulator.hardware.pl011 import Pl011

PARTS: Mapping[str, Callable[[Wires], Device]] = {
    "gic_cpu_interface": CpuInterface,
    "gic_distributor": Distributor,
    "pl011": Pl011,
}
