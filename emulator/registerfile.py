# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers of an engine by name, whatever is special about each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from unicorn import arm64_const

from archs import Arch

GROUPS = ("general", "float", "vector", "system")
_EXPONENT = 16  # bits, with the sign, above the mantissa of an x87 register
_MANTISSA = 64


class RegisterFile:
    """The registers of one engine.

    Parameters
    ----------
    uc
        The engine, which executes nothing meanwhile.
    arch
        What registers there are.
    constants
        Unicorn's of the architecture.
    """

    def __init__(self, uc: Any, arch: Arch, constants: ModuleType) -> None:
        self._uc, self._constants = uc, constants
        self._prefix = arch.runs.emulation.registers
        self._records = records = arch.runs.registers
        counter = arch.runs.calling.program_counter
        groups = {
            "general": (*records.general, counter),
            "float": records.float,
            "vector": records.vector,
            "system": (*records.system, *records.places),
        }
        self.groups = {name: group for group, names in groups.items() for name in names}
        self.widths = {name: records.widths.get(name, 64) for name in self.groups}

    def known(self, name: str) -> str | None:
        """Return by which of the names a register is known that may have several; None: by none."""
        if name in self.groups:
            return name
        number = getattr(self._constants, self._prefix + name.upper(), None)
        found = (each for each in self.groups if self._constant(each) == number)
        return None if number is None else next(found, None)

    def _constant(self, name: str) -> int | None:
        return getattr(self._constants, self._prefix + name.upper(), None)

    def get(self, name: str) -> int:
        """Return a register; KeyError where there is none such."""
        with self._reachable(name):
            return self._get(name)

    def set(self, name: str, value: int) -> None:
        """Set a register; KeyError where there is none such, ValueError where it stays another."""
        value &= (1 << self.widths[name]) - 1
        with self._reachable(name, setting=True):
            before = self._get(name)
            self._set(name, value)
            found = self._get(name)
            if found != value:
                self._set(name, before)
                raise ValueError(f"it would be {found:#x}")

    def _get(self, name: str) -> int:
        place = self._records.places.get(name)
        if isinstance(place, int):
            return int(self._uc.msr_read(place))
        if place is not None:
            op0, op1, crn, crm, op2 = place
            return int(
                self._uc.reg_read(arm64_const.UC_ARM64_REG_CP_REG, (crn, crm, op0, op1, op2))
            )
        value = self._uc.reg_read(self._number(name))
        if isinstance(value, tuple):  # mantissa, exponent
            value = value[1] << _MANTISSA | value[0]
        return int(value) & (1 << self.widths[name]) - 1

    def _set(self, name: str, value: int) -> None:
        place = self._records.places.get(name)
        if isinstance(place, int):
            self._uc.msr_write(place, value)
        elif place is not None:
            op0, op1, crn, crm, op2 = place
            number = arm64_const.UC_ARM64_REG_CP_REG
            self._uc.reg_write(number, (crn, crm, op0, op1, op2, value))
        elif self.widths[name] == _MANTISSA + _EXPONENT:
            parts = value & (1 << _MANTISSA) - 1, value >> _MANTISSA
            self._uc.reg_write(self._number(name), parts)
        else:
            self._uc.reg_write(self._number(name), value)

    def _number(self, name: str) -> int:
        stack = self._records.stack
        if stack is not None and name.startswith(stack[0]) and name[len(stack[0]) :].isdigit():
            top = self._uc.reg_read(self._number(stack[2])) >> stack[3]
            name = f"{stack[1]}{int(name[len(stack[0]) :]) + top & 7}"
        return int(getattr(self._constants, self._prefix + name.upper()))

    @contextmanager
    def _reachable(self, name: str, *, setting: bool = False) -> Iterator[None]:
        """Let a register be reached whatever the guest may do now."""
        unlock, enabled = self._records.unlock, self._records.enabled.get(name)
        if unlock is None or (self.groups[name] != "system" and enabled is None):
            yield
            return
        if name == unlock[0]:
            yield
            return
        before = self._uc.context_save()
        number = self._number(unlock[0])
        privilege = self._uc.reg_read(number)
        self._uc.reg_write(number, unlock[1])
        if enabled is not None:
            other = self._number(enabled[0])
            value = self._uc.reg_read(other)
            if setting and not value & enabled[1]:
                self._uc.context_restore(before)
                raise ValueError(f"{enabled[0]} has it disabled")
            self._uc.reg_write(other, value | enabled[1])
        try:
            yield
        finally:
            if setting:
                self._uc.reg_write(number, privilege)
            else:
                self._uc.context_restore(before)
