# SPDX-License-Identifier: GPL-2.0-or-later
"""All registers that the emulator knows of a CPU, by name.

A register is read twice, into bytes of two kinds: those that come out the same were written. So a
value has the size that the emulator gives it, and one that it does not give (a system register that
the CPU may not access as it is now, or that its model has not) is told from one that is zero.
Where the emulator gives what it has read before instead, that shows after reading two others.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, MutableMapping
from functools import cached_property
from types import ModuleType
from typing import Any

import unicorn
from unicorn import unicorn_const as uc_const

from archs import Arch
from emulator.faults import BadCall

_LARGEST = 64  # bytes of a register
_WORD = 8
_NONE = ("INVALID", "ENDING")


class NamedRegisters(MutableMapping[str, Any]):
    """The registers of one CPU: `registers["rax"]`, `registers["rax"] = 1`, `dict(registers)`.

    Names are the emulator's, in lower case; `pc` and `sp` are there on every architecture. Of up
    to 64 bits they are ints, larger ones what the emulator's binding has for them. They may be
    read while the guest runs, so nothing is changed for it (as `emulator.registerfile` does). System
    registers that only an instruction names go by their own names too, or by its fields, (op0, op1, CRn, CRm, op2), or by
    number (an MSR), where the architecture has such.

    Parameters
    ----------
    uc
        The engine.
    arch
        Whose registers they are.
    constants
        Unicorn's constants of the architecture.
    """

    def __init__(self, uc: unicorn.Uc, arch: Arch, constants: ModuleType) -> None:
        self._uc, self._arch, self._constants = uc, arch, constants
        self._box = (ctypes.c_uint8 * _LARGEST)()
        self._pointer = ctypes.cast(self._box, ctypes.c_void_p)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        prefix = self._arch.runs.emulation.registers
        found = {
            name.removeprefix(prefix).lower(): number
            for name, number in vars(self._constants).items()
            if name.startswith(prefix) and not name.endswith(_NONE)
        }
        calling = self._arch.runs.calling
        found["pc"] = found[calling.program_counter]
        found["sp"] = found[calling.stack_pointer]  # of x86-64 all of it, and not a quarter
        return found

    @cached_property
    def _general(self) -> frozenset[int]:
        """The numbers of those that code computes with."""
        patching = self._arch.patching
        names = () if patching is None else patching.kprobes.registers
        return frozenset(self._numbers[name] for name in (*names, "pc", "sp"))

    def _number(self, name: str) -> int:
        found = self._numbers.get(name.lower())
        if found is None:
            raise BadCall(name, f"{self._arch.name} has no such register", self._near(name))
        return found

    def _near(self, name: str) -> str:
        from difflib import get_close_matches

        near = get_close_matches(name, [*self._numbers, *self._named], 3)
        return f"did you mean {', '.join(near)}?" if near else ""

    def _raw(self, number: int) -> bytes | None:
        """Return the bytes that the emulator gives; None where it gives none."""
        taken = []
        for fill in (0x00, 0xFF):
            ctypes.memset(self._box, fill, _LARGEST)
            if self._uc._do_reg_read(number, self._pointer) != uc_const.UC_ERR_OK:  # noqa: SLF001 -- the binding hides what was written
                return None
            taken.append(bytes(self._box))
        low, high = taken
        size = next((n for n in range(_LARGEST, 0, -1) if low[n - 1] == high[n - 1]), 0)
        return low[:size] if size and self._given(number) else None

    def _given(self, number: int) -> bool:
        """Return whether a value is a register's own, and not what was left by the one before."""
        names = self._arch.runs.emulation.leftovers
        others = [self._numbers[name] for name in names]
        if not others or number in others or number in self._general:
            return True
        pairs = [(self._word(other), self._word(number)) for other in others]
        return any(left != found for left, found in pairs)

    def _word(self, number: int) -> int:
        ctypes.memset(self._box, 0, _LARGEST)
        self._uc._do_reg_read(number, self._pointer)  # noqa: SLF001 -- as above
        return int.from_bytes(bytes(self._box[:_WORD]), "little")

    def __getitem__(self, name: str | int | tuple[int, ...]) -> Any:
        place = self._place(name)
        if place is not None:
            return self._system(place)
        assert isinstance(name, str)
        number = self._number(name)
        raw = self._raw(number)
        if raw is None:
            raise BadCall(name, "cannot be read as the CPU is now")
        if len(raw) > _WORD:
            return self._uc.reg_read(number)
        return int.from_bytes(raw, "little")

    def __setitem__(self, name: str | int | tuple[int, ...], value: Any) -> None:
        place = self._place(name)
        if place is not None:
            self._set_system(place, value)
            return
        assert isinstance(name, str)
        number, before = self._number(name), self[name]
        if isinstance(before, int) and isinstance(value, int):
            raw = self._raw(number)
            assert raw is not None
            bits = 8 * len(raw)
            if not -(1 << bits - 1) <= value < 1 << bits:
                raise BadCall(name, f"{value:#x} does not fit {bits} bits")
            value &= (1 << bits) - 1
        try:
            self._uc.reg_write(number, value)
        except (unicorn.UcError, TypeError, ValueError, ctypes.ArgumentError) as error:
            raise BadCall(name, f"cannot be set to {value!r}: {error}") from None
        if value != before and self[name] == before:
            raise BadCall(name, f"keeps its value ({before!r})")

    def _place(self, name: str | int | tuple[int, ...]) -> int | tuple[int, ...] | None:
        """Return how an instruction names a system register; None for one of the emulator's names."""
        if not isinstance(name, str):
            return name
        return None if name.lower() in self._numbers else self._named.get(name.lower())

    @property
    def _named(self) -> Mapping[str, int | tuple[int, ...]]:
        return self._arch.runs.registers.places

    def _system(self, where: int | tuple[int, ...]) -> int:
        read = getattr(self._uc, "msr_read" if isinstance(where, int) else "cpr_read", None)
        if read is None:
            raise BadCall("registers", f"{self._arch.name} has no system register {where!r}")
        try:
            return int(read(where) if isinstance(where, int) else read(*where))
        except (unicorn.UcError, TypeError, ValueError) as error:
            raise BadCall("registers", f"system register {where!r}: {error}") from None

    def _set_system(self, where: int | tuple[int, ...], value: int) -> None:
        self._system(where)
        if isinstance(where, int):
            self._uc.msr_write(where, value)
        else:
            self._uc.cpr_write(*where, value)

    def __delitem__(self, name: str) -> None:
        raise BadCall(name, "a register cannot be taken away")

    def __iter__(self) -> Iterator[str]:
        """Yield the names of those that can be read as the CPU is now."""
        for name, number in self._numbers.items():
            if self._raw(number) is not None:
                yield name
        yield from (name for name in self._named if name not in self._numbers)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in {*self._numbers, *self._named}

    def __repr__(self) -> str:
        patching = self._arch.patching
        names = () if patching is None else patching.kprobes.registers
        shown = ", ".join(f"{name}={self[name]:#x}" for name in names)
        return f"<registers of {self._arch.name}: {shown}>"
