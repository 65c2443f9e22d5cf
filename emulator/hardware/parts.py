# SPDX-License-Identifier: GPL-2.0-or-later
"""The pieces of hardware by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from emulator.hardware.acpi import AcpiPm, Reset
from emulator.hardware.gicv2 import CpuInterface, Distributor
from emulator.hardware.i8254 import I8254
from emulator.hardware.i8259 import I8259
from emulator.hardware.mc146818 import Mc146818
from emulator.hardware.ns16550 import Ns16550
from emulator.hardware.part import Device, Wires
from emulator.hardware.pl011 import Pl011

PARTS: Mapping[str, Callable[[Wires], Device]] = {
    "acpi_pm": AcpiPm,
    "gic_cpu_interface": CpuInterface,
    "gic_distributor": Distributor,
    "i8254": I8254,
    "i8259": I8259,
    "mc146818": Mc146818,
    "ns16550": Ns16550,
    "pl011": Pl011,
    "reset": Reset,
}
