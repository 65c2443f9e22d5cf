# SPDX-License-Identifier: GPL-2.0-or-later
"""A computer's registers by name, and its memory by virtual address."""

from __future__ import annotations

import abc
import ctypes
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import ClassVar

import unicorn
from unicorn import unicorn_const as uc_const

from archs import Arch
from emulator.boards.pieces import Pieces
from emulator.paging import Run, Tables
from emulator.ram import Ram
from emulator.registers import NamedRegisters
from emulator.watching import Watching

PAGE = 4096  # what Unicorn protects and maps by


class Access(abc.ABC):
    """What a computer holds, for whoever looks at it or sets it while nothing runs."""

    lasting: ClassVar[tuple[str, ...]]  # registers that outlast a call; see `kept`

    uc: unicorn.Uc
    ram: Ram
    memory: Pieces
    watching: Watching

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        emulation, calling = arch.runs.emulation, arch.runs.calling
        self._constants = import_module(f"unicorn.{emulation.prefix.lower()}_const")
        self._prefix = emulation.registers
        self._numbers: dict[str, int] = {}
        self._box = ctypes.c_uint64()
        self._pointer = ctypes.byref(self._box)
        # Raises `Lacking` for an address that leads to memory which a dump does not have.
        self.lacking: Callable[[int], object] | None = None
        self._pc = self.number(calling.program_counter)
        self._sp = self.number(calling.stack_pointer)

    @abc.abstractmethod
    def translate(self, address: int) -> int | None:
        """Return the physical address that the guest's page tables give; None for none."""

    @abc.abstractmethod
    def tables(self) -> Tables:
        """Return the kernel's page tables, as the CPU's registers have them."""

    @abc.abstractmethod
    def translate_anew(self, start: int, end: int) -> None:
        """Let the blocks at addresses be translated again, so that hooks reach them."""

    # Registers ----------------------------------------------------------------------------------

    def kept(self) -> Mapping[str, int]:
        """Return the registers that calls leave otherwise than the boot did, by name.

        What the last exception told is none of them: it has been read, or never will be.
        """
        return {name: int(self.uc.reg_read(self.number(name))) for name in self.lasting}

    def keep(self, values: Mapping[str, int]) -> None:
        """Set them."""
        for name in self.lasting:
            self.uc.reg_write(self.number(name), values[name])

    def number(self, name: str) -> int:
        """Return Unicorn's number of a register."""
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = getattr(self._constants, self._prefix + name.upper())
        return found

    def get(self, name: str) -> int:
        """Return a register."""
        return self.get_number(self.number(name))

    def set(self, name: str, value: int) -> None:
        """Set a register."""
        self.set_number(self.number(name), value)

    def get_number(self, number: int) -> int:
        """Return a register of 64 bits or less by Unicorn's number."""
        # The binding looks the register's type up each time.
        self._box.value = 0
        status = self.uc._do_reg_read(number, self._pointer)  # noqa: SLF001 -- see above
        if status != uc_const.UC_ERR_OK:
            raise unicorn.UcError(status)
        return self._box.value

    def set_number(self, number: int, value: int) -> None:
        """Set a register of 64 bits or less by Unicorn's number."""
        self._box.value = value
        status = self.uc._do_reg_write(number, self._pointer)  # noqa: SLF001 -- see above
        if status != uc_const.UC_ERR_OK:
            raise unicorn.UcError(status)

    @property
    def every(self) -> NamedRegisters:
        """All registers by name, for who wants more than `get` and `set`."""
        return NamedRegisters(self.uc, self.arch, self._constants)

    def reader(self, names: Sequence[str]) -> Callable[[], tuple[int, ...]]:
        """Return what reads several registers of 64 bits or less at once."""
        count = len(names)
        numbers = (ctypes.c_int * count)(*map(self.number, names))
        values = (ctypes.c_uint64 * count)()
        start = ctypes.addressof(values)
        places = (ctypes.c_void_p * count)(*(start + 8 * at for at in range(count)))
        size = ctypes.sizeof(values)

        def read() -> tuple[int, ...]:
            ctypes.memset(values, 0, size)
            status = self.uc._do_reg_read_batch(numbers, places, count)  # noqa: SLF001 -- as above
            if status != uc_const.UC_ERR_OK:
                raise unicorn.UcError(status)
            return tuple(values)

        return read

    @property
    def pc(self) -> int:
        """The program counter."""
        return self.get_number(self._pc)

    @pc.setter
    def pc(self, value: int) -> None:
        self.set_number(self._pc, value)

    @property
    def sp(self) -> int:
        """The stack pointer."""
        return self.get_number(self._sp)

    @sp.setter
    def sp(self, value: int) -> None:
        self.set_number(self._sp, value)

    # Memory -------------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Return bytes at a virtual address; LookupError where nothing is mapped."""
        return b"".join(self.ram.read(at, length) for at, length in self._pieces(address, size))

    def write(self, address: int, data: bytes) -> None:
        """Store bytes at a virtual address; LookupError where nothing is mapped."""
        taken = 0
        pieces = self._pieces(address, len(data))
        self.watching.check()
        for at, length in pieces:
            self.ram.write(at, data[taken : taken + length])
            taken += length
        self.watching.refresh()

    def rewrite(self, address: int, data: bytes) -> None:
        """Store bytes at a virtual address where code may be; LookupError as `write`."""
        pieces = self._pieces(address, len(data))
        self.write(address, data)
        if any(self.memory.is_executed(physical) for physical, _ in pieces):
            self.translate_anew(address, address + len(data))

    def _pieces(self, address: int, size: int) -> list[tuple[int, int]]:
        pieces = []
        while size > 0:
            length = min(size, PAGE - address % PAGE)
            physical = self.translate(address)
            if physical is None:
                if self.lacking is not None:
                    self.lacking(address)
                raise LookupError(f"nothing is mapped at {address:#x}")
            pieces.append((physical, length))
            address, size = address + length, size - length
        return pieces

    def mapped(self) -> list[Run]:
        """Return what the kernel has mapped of memory in its half of the addresses, by address."""
        start, end = self.ram.start, self.ram.start + self.ram.size
        runs = self.tables().runs(self.ram.words)
        return [
            Run(run.address + low - run.physical, low, high - low)
            for run in runs
            for low, high in ((max(run.physical, start), min(run.physical + run.size, end)),)
            if low < high
        ]
