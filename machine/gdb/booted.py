# SPDX-License-Identifier: GPL-2.0-or-later
"""What a debugger is shown of a machine whose kernel is booted: by its own symbols and types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from allocator.types import ADDRESS_MASK, Interval
from archs.levels.debug import Sleeping
from archs.versions import Version
from emulator.faults import BadCall
from kernels.booted.modules import Loading
from loader.elf import parse as parse_elf
from loader.elfview import ElfView
from loader.files import module_name
from loader.loaded import State
from machine.booted.machine import BootedMachine
from machine.gdb.frames import debug_frame, joined, outermost, unknown
from machine.gdb.subject import CALLER, Present, Subject, Task
from machine.gdb.symbolfile import Area, symbol_file
from machine.types import View

_MOST = 4096  # tasks
_STACK = 1 << 16  # bytes that a task's stack has at most
# What is executed, of the kernel's image: pairs of symbols around it.
_CODE = ((".text", "_stext", "_etext"), (".init.text", "_sinittext", "_einittext"))
_GATE = "do_init_module"
_IMAGE = ("_text", "_end")


class BootedSubject(Subject):
    """A machine whose kernel is booted.

    Parameters
    ----------
    machine
        The machine.
    """

    machine: BootedMachine

    def __init__(self, machine: BootedMachine) -> None:
        super().__init__(machine)
        self._views: dict[Loading, ElfView] = {}

    @property
    def title(self) -> str:
        """Name of the file of the kernel's symbols."""
        return f"/vmlinux-{self.machine.kernel.release}"

    @property
    def slide(self) -> int:
        """How far from where it is linked to the kernel is."""
        return int(self.machine.kernel.standing.started.slide) & ADDRESS_MASK

    def kernel_symbol(self, name: str) -> int | None:
        """Return the address of a symbol of the kernel; None where it has none such."""
        return self.machine.kernel.symbols.get(name)

    @property
    def cpus(self) -> int:
        """How many CPUs there are."""
        return 1

    # Modules ------------------------------------------------------------------------------------

    def modules(self) -> Iterator[Present]:
        """Yield the modules in memory: those that were loaded, and those that are being loaded."""
        for module in self.machine.modules.values():
            if module.view is None:  # of a dump: nobody has its file
                continue
            placed = {
                index: section.address
                for index, section in module.sections.items()
                if section.type is None or not section.type.is_init
            }
            if module.state is State.LIVE:
                yield Present(module.name, module.view, placed, module.state, self._version)
        for load in self.machine.kernel.modules.loading:
            if load.addresses:
                view = self._views.get(load)
                if view is None:
                    self._views.clear()
                    view = self._views[load] = parse_elf(load.image, "<module>")
                name = view.modinfo.get("name") or module_name(view.name)
                yield Present(name, view, dict(load.addresses), State.COMING, self._version)

    @property
    def gate(self) -> int | None:
        """Where the kernel is about to run a module's init."""
        return self.machine.kernel.symbols.get(_GATE)

    # The kernel ---------------------------------------------------------------------------------

    def symbols(self) -> bytes:
        """Return the kernel's own symbols (kallsyms), where they were linked to."""
        symbols = self.machine.kernel.symbols
        names = symbols.text.decode("latin-1").split("\0")[1:-1]
        upper = symbols.addresses >> np.uint64(63) != 0
        addresses = symbols.addresses.copy()
        addresses[upper] -= np.uint64(self.slide)
        names.append(CALLER)
        addresses = np.append(addresses, np.uint64(self._trap - 1))
        return symbol_file(
            self.arch,
            names,
            addresses,
            list(self._areas()),
            flags=self.flags(),
            more={".debug_frame": self._frames()},
        )

    @property
    def _version(self) -> Version:
        told = [*self.machine.kernel.standing.facts["version"], 0, 0]
        return int(told[0]), int(told[1])

    @property
    def _trap(self) -> int:
        """Where calls return to, in the kernel as it is linked."""
        return self.machine.kernel.guest.trap - self.slide & ADDRESS_MASK

    def _frames(self) -> bytes:
        """Return what the kernel's own unwind tables say, or only where calls come from."""
        debug, symbols = self.arch.debugs, self.machine.kernel.symbols
        how, read, slide = debug.unwind, self.machine.read, self.slide
        found = None
        if how is not None and how.tables is not None:
            if all(name in symbols for pair in how.symbols for name in pair):
                first, second = [
                    read(symbols[start], max(symbols[end] - symbols[start], 0))
                    for start, end in how.symbols
                ]
                found = how.tables(first, second, symbols[how.symbols[0][0]], self._version)
        elif how is not None and how.scan is not None and all(n in symbols for n in _CODE[0][1:]):
            start, end = (symbols[name] for name in _CODE[0][1:])
            found = how.scan(read(start, end - start), start, np.unique(symbols.addresses))
        if found is None:
            places = [(at - slide & ADDRESS_MASK, self._length(at)) for at in self.outermost]
            return outermost(debug, places)
        return debug_frame(joined((found, unknown(self.outermost))), debug, slide)

    @property
    def outermost(self) -> Sequence[int]:
        """Where calls from outside return to, and where tasks begin."""
        symbols = self.machine.kernel.symbols
        firsts = {symbols[name] for name in self.arch.debugs.firsts if name in symbols}
        return sorted({self.machine.kernel.guest.trap - 1, *firsts})

    def _length(self, address: int) -> int:
        """Return how far it is to the next symbol."""
        found = self.machine.kernel.symbols.around(address)
        return 2 if found is None else max(found[2] - found[1], 2)

    def _areas(self) -> Iterator[Area]:
        """Yield code and data of the kernel's image, by ascending addresses."""
        symbols, slide = self.machine.kernel.symbols, self.slide

        def place(name: str) -> int | None:
            return symbols[name] - slide & ADDRESS_MASK if name in symbols else None

        start, end = map(place, _IMAGE)
        found = [
            (first, last, name)
            for name, first, last in ((n, place(a), place(b)) for n, a, b in _CODE)
            if first is not None and last is not None and first < last
        ]
        at, number = start, 0
        for first, last, name in sorted(found):
            if at is not None and at < first:
                yield Area(f".data.{number}", Interval(at, first), code=False)
                number += 1
            yield Area(name, Interval(first, last), code=True)
            at = last
        if at is not None and end is not None and at < end:
            yield Area(f".data.{number}", Interval(at, end), code=False)

    # Tasks --------------------------------------------------------------------------------------

    @cached_property
    def _sleeping(self) -> Sleeping | None:
        return self.arch.debugs.sleeping

    def without_tasks(self) -> str:
        """Return why tasks are not shown; empty where they are."""
        if not self.machine.btf:
            return "tasks are not shown: the kernel has no types (CONFIG_DEBUG_INFO_BTF)"
        if "init_task" not in self.machine.kernel.symbols:
            return "tasks are not shown: the kernel has no symbol init_task (CONFIG_KALLSYMS_ALL)"
        return ""

    def tasks(self, sp: int) -> Sequence[Task]:
        """Return the tasks that do not run; none where the kernel's types are not known."""
        if self.without_tasks():
            return ()
        try:
            return list(self._tasks(sp))
        except BadCall:  # types or memory of another shape
            return ()

    def _tasks(self, sp: int) -> Iterator[Task]:
        machine = self.machine
        kind = machine.type("struct task_struct")
        inside = kind.member("tasks").offset
        first = at = machine.kernel.symbols["init_task"]
        for _ in range(_MOST):
            task = machine.view(kind, at)
            if not int(task.stack) <= sp < int(task.stack) + _STACK:
                yield Task(int(task.pid), task.comm.string_, at)
            at = int(task.tasks.next) - inside & ADDRESS_MASK
            if at == first:
                return

    def of_task(self, task: Task) -> Mapping[str, int]:
        """Return the registers of a task that are known, by the debugger's names."""
        how = self._sleeping
        if how is None:
            return {}
        view = self.machine.view("struct task_struct", task.address)
        try:
            found = {name: _number(view, path) for name, path in how.registers.items()}
            if how.pointer:
                stack = _number(view, how.pointer)
                frame = self.machine.view(f"struct {how.frame}", stack)
                found |= {name: _number(frame, path) for name, path in how.framed.items()}
                found[self.arch.debugs.stack] = stack + frame.type_.size
        except BadCall:
            return {}
        return {name: value & ADDRESS_MASK for name, value in found.items()}


def _number(view: View, path: str) -> int:
    """Return what a member is, by its path: `thread.s[0]`."""
    value = view
    for word in path.split("."):
        name, _, subscript = word.partition("[")
        value = value[name]
        if subscript:
            value = value[int(subscript.rstrip("]"))]
    return int(value)
