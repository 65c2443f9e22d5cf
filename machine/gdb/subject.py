# SPDX-License-Identifier: GPL-2.0-or-later
"""What a debugger is shown of a machine beside registers and memory: modules, kernel, tasks.

The kinds of machines differ in where they know it from; `modelled.py` and `booted.py` say it.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence

import attrs

from archs import Arch
from archs.versions import Version
from loader.elfview import ElfView
from loader.loaded import State
from machine.face import Machine

CALLER = "called_from_outside"  # what calls that nobody in the guest makes return to
INIT = "init_module"  # what a module's init is called, whatever its own name is


@attrs.frozen(eq=False)
class Present:
    """A module in memory, those that are being loaded among them.

    Parameters
    ----------
    name
        Its name.
    view
        Its file.
    sections
        Section index -> address, of sections that are in memory now.
    state
        Where in its life it is.
    version
        Of the kernel that it is for, as far as its tables go.
    """

    name: str
    view: ElfView = attrs.field(repr=False)
    sections: Mapping[int, int]
    state: State
    version: Version

    @property
    def key(self) -> tuple[str, State, tuple[tuple[int, int], ...]]:
        """What tells whether a debugger knows it as it is."""
        return self.name, self.state, tuple(sorted(self.sections.items()))

    def symbol(self, name: str) -> int | None:
        """Return the address of a symbol; None where it is not in memory."""
        table = self.view.symbols
        for index in range(1, len(table)):
            section = self.sections.get(int(table["shndx"][index]))
            if section is not None and self.view.symbol_name(index) == name:
                return section + int(table["value"][index])
        return None

    def section_at(self, address: int) -> int | None:
        """Return the index of the section that an address lies in."""
        for index, start in self.sections.items():
            if start <= address < start + self.view.sections[index].size:
                return index
        return None


@attrs.frozen
class Task:
    """A task of the kernel that does not run.

    Parameters
    ----------
    pid, name
        As the kernel has them.
    address
        Of its `struct task_struct`.
    """

    pid: int
    name: str
    address: int


class Subject(abc.ABC):
    """A machine under a debugger."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @property
    def arch(self) -> Arch:
        """The architecture."""
        return self.machine.arch

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """Name of the file of the kernel's symbols."""

    @property
    def slide(self) -> int:
        """How far from where its file has them the kernel's symbols lie."""
        return 0

    @abc.abstractmethod
    def modules(self) -> Iterable[Present]:
        """Return the modules in memory."""

    @abc.abstractmethod
    def symbols(self) -> bytes:
        """Return an ELF file of the kernel's symbols, at addresses less `slide`."""

    @abc.abstractmethod
    def kernel_symbol(self, name: str) -> int | None:
        """Return the address of a symbol of the kernel; None where it has none such."""

    @property
    def gate(self) -> int | None:
        """Where the kernel is about to run a module's init; None: that is a call from outside."""
        return None

    def init_of(self, name: str) -> int | None:
        """Return where the init is of a module that is being loaded; None: nowhere yet."""
        for module in self.modules():
            if module.name == name and module.state is State.COMING:
                return module.symbol(INIT)
        return None

    @property
    @abc.abstractmethod
    def cpus(self) -> int:
        """How many CPUs there are."""

    def of_cpu(self, cpu: int, name: str) -> int | None:
        """Return a register of a CPU that does not run now; None: it is not told."""
        del cpu, name
        return None

    def tasks(self, sp: int) -> Sequence[Task]:
        """Return the tasks that do not run, where the kernel has such and its types are known.

        Parameters
        ----------
        sp
            The stack pointer of the one that runs.
        """
        del sp
        return ()

    def of_task(self, task: Task) -> Mapping[str, int]:
        """Return the registers of a task that are known, by the debugger's names."""
        del task
        return {}

    def without_tasks(self) -> str:
        """Return why tasks are not shown; empty where they are."""
        return ""

    @property
    def outermost(self) -> Sequence[int]:
        """Addresses from which on code has no caller, up to the next function."""
        return ()

    def flags(self) -> int:
        """Return `e_flags` of code here, as far as a module tells."""
        for module in self.modules():
            header = module.view.dialect.header.unpack_from(module.view.data, _IDENT)
            return int(header[6])
        return 0


_IDENT = 16  # bytes of an ELF file before e_type
