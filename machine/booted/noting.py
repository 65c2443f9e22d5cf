# SPDX-License-Identifier: GPL-2.0-or-later
"""What each load registered: the kernel's lists before and after, and the drivers in between.

A load may be in the middle of another, whose init asks for a module. What the inner one registers
is its own, and the rest the outer one's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import attrs

from archs.layouts import Layouts
from emulator.faults import BadCall
from kernels.booted.kernel import BootedKernel
from kernels.registry import Record
from machine.booted import registered

_DRIVER_REGISTER = "driver_register"


class Keeper(registered.Files, Protocol):
    """The machine whose loads are noted."""

    @property
    def kernel(self) -> BootedKernel:
        """Its kernel."""
        ...

    @property
    def layouts(self) -> Layouts:
        """The layouts of its kernel's structures."""
        ...

    def read(self, address: int, size: int) -> bytes:
        """Return guest memory."""
        ...


@attrs.frozen
class Listed:
    """What was registered when somebody last looked.

    Parameters
    ----------
    records
        By the kernel's lists.
    fresh
        Whether nothing was executed since.
    """

    records: list[Record]
    fresh: bool


@attrs.frozen
class _Load:
    """A load under way."""

    before: list[Record]
    drivers: list[int] = attrs.field(factory=list)  # struct device_driver
    others: list[Record] = attrs.field(factory=list)  # of the loads in the middle of it


class Noting:
    """Notes what loads register, from `begin` on.

    Parameters
    ----------
    machine
        Whose loads.
    """

    def __init__(self, machine: Keeper) -> None:
        self._machine = machine
        self._watching = False
        self._records: list[Record] | None = None
        self._calls = 0  # of the guest, when the records were made
        self._loads: list[_Load] = []

    def begin(self) -> None:
        """Note what is registered by each load from now on."""
        kernel = self._machine.kernel
        at = kernel.symbols.get(_DRIVER_REGISTER)
        if at is not None and not self._watching:
            self._watching = True
            kernel.board.break_at(at, self._registering)
        self._list()

    @property
    def listed(self) -> Listed | None:
        """What was registered when it was last looked at; None: nobody notes that."""
        if self._records is None:
            return None
        return Listed(self._records, self._calls == self._machine.kernel.guest.calls)

    @listed.setter
    def listed(self, listed: Listed | None) -> None:
        self._records = None if listed is None else listed.records
        self._calls = self._machine.kernel.guest.calls if listed and listed.fresh else -1

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Note what is registered meanwhile; nothing of a load that failed is another's."""
        if self._records is None:
            yield
            return
        if self._calls != self._machine.kernel.guest.calls:
            self._list()
        load = _Load(self._records)
        self._loads.append(load)
        try:
            yield
        finally:
            self._loads.pop()
            if self._loads:
                self._loads[-1].others.extend(load.others)

    def gained(self, module: str) -> tuple[Record, ...] | None:
        """Return what the load under way has registered; None where nobody notes that."""
        if not self._loads or self._records is None:
            return None
        load = self._loads[-1]
        guest = self._machine.kernel.guest
        with guest.unwatched():
            before = [*load.before, *load.others]
            added, self._records = registered.gained(self._machine, module, before)
        self._calls = guest.calls
        load.others.extend(added)  # for the load that this one is in the middle of
        drivers = dict.fromkeys(load.drivers)
        return (*added, *(record for at in drivers for record in self._driver(at, module)))

    def everything(self) -> list[Record]:
        """Return what is registered now."""
        with self._machine.kernel.guest.unwatched():
            return registered.everything(self._machine)

    def _list(self) -> None:
        self._records = self.everything()
        self._calls = self._machine.kernel.guest.calls

    def _registering(self) -> None:
        if self._loads:
            kernel = self._machine.kernel
            self._loads[-1].drivers.append(kernel.board.get(kernel.arch.runs.calling.arguments[0]))

    def _driver(self, address: int, module: str) -> Iterator[Record]:
        """Yield the record of a driver, if it is registered still and types tell its name."""
        try:
            known = self._machine.layouts.has("device_driver", "p")
            if known and self._pointer(address, "device_driver", "p"):
                bus = self._pointer(address, "device_driver", "bus")
                title = self._string(bus, "bus_type", "name") if bus else ""
                name = self._string(address, "device_driver", "name")
                yield registered.driver(title, name, address, module)
        except BadCall:
            return  # it is gone, with the memory that it was in

    def _pointer(self, address: int, structure: str, path: str) -> int:
        at = address + self._machine.layouts.offset_of(structure, path)
        return int.from_bytes(self._machine.read(at, 8), "little")

    def _string(self, address: int, structure: str, path: str) -> str:
        return self._machine.kernel.guest.string(self._pointer(address, structure, path), 256)
