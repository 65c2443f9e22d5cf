# SPDX-License-Identifier: GPL-2.0-or-later
"""The modelled kernel: the services behind the symbols, put together.

What it is made of lies in files of its own: the image and its symbols, per-cpu memory and
tasks, memory as kernel functions reach it, what the guest pays, the log, and the calls from
the guest. Entries of the table get the kernel, and use it by short names.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from allocator import KernelMemory
from allocator.errors import ExecmemError
from allocator.types import ADDRESS_MASK
from archs import Arch
from archs.layouts import Layouts
from emulator.budget import Limits
from emulator.cpu import Cpu
from emulator.faults import Fault, Stopped
from kernels import protocol
from kernels.log import Log, LogLine
from kernels.modelled.access import Access
from kernels.modelled.costs import Costs
from kernels.modelled.dispatch import Dispatch
from kernels.modelled.heap import LIMIT, Heap
from kernels.modelled.image import ImageParts
from kernels.modelled.kasan import CheckedHeap, CheckedMemory
from kernels.modelled.modules import ModuleStructs
from kernels.modelled.percpu import Canary, PerCpu
from kernels.modelled.printk import Printk
from kernels.modelled.serving import Serving
from kernels.modelled.symtab import Symtab, SymtabMark, Unknown
from kernels.modelled.text.live import LiveText
from kernels.modelled.whose import Whose
from kernels.registry import Field, Record, Registry
from kernels.runner import GuestRunner
from loader.loaded import LoadedModule

RECORDS = 50_000
OOPSES = 1000  # that are kept


@attrs.frozen
class Mark:
    """The state that loading a module changes, at one time."""

    symbols: SymtabMark
    objects: frozenset[int]
    registered: dict[tuple[str, int], list[Record]]
    states: dict[type, object]


@attrs.frozen
class Remembered:
    """What a kernel remembers in Python, at one time: what a snapshot of memory does not have.

    Where the names of `Kernel` do not say it: frames that are held and how often that has changed,
    areas of vmalloc, lines of the log and how many were dropped.
    """

    heap: dict[str, Any]
    frames: tuple[bytes, tuple[dict[int, None], ...], int]
    changes: int
    areas: frozenset[int]
    registered: dict[tuple[str, int], list[Record]]
    states: dict[type, object]
    log: tuple[list[LogLine], int]
    calls: dict[str, int]
    entries: dict[type, int]
    stopped: dict[str, Stopped]
    oopses: int
    pending: bool


class Kernel:
    """The kernel of one machine.

    Parameters
    ----------
    arch, memory, cpus
        What it runs on; `cpu` is the CPU that it runs on now.
    runner
        Runs guest functions for it.
    loaded
        The loaded modules, by name, as whoever loads them keeps them.
    unknown
        What stands in for symbols that nobody implements.
    kasan
        Check every access to kmalloc memory.
    heap_limit
        Bytes that the guest's heap may come to.
    seed
        What random numbers follow.
    limits
        What the guest may take now, of instructions and time.
    layouts
        Where members of structures lie; by default as in the kernel that is modelled.

    `text` is what patches text of modules, where there is something that does; `modules` keeps
    what the guest sees of them; `plain` is the memory without anything that counts or checks;
    `states` are what subsystems remember, by class; `stopped` says by module what stopped its
    init, first first.
    """

    def __init__(
        self,
        arch: Arch,
        memory: KernelMemory,
        cpus: Sequence[Cpu],
        runner: GuestRunner,
        *,
        loaded: Mapping[str, LoadedModule],
        unknown: Unknown = Unknown.FAULT,
        kasan: bool = False,
        heap_limit: int = LIMIT,
        seed: int = 0,
        limits: Limits | None = None,
        layouts: Layouts | None = None,
    ) -> None:
        self.arch = arch
        self.limits = Limits() if limits is None else limits
        self.plain = memory
        self.cpus = tuple(cpus)
        self.runner = runner
        self.seed = seed
        self.registry = Registry()
        self.serving = Serving(arch, memory, cpus, runner)
        own = arch.loads.layouts if layouts is None else layouts
        self.whose = Whose(own, self.serving, runner, loaded)
        self.heap = heap = Heap(memory, heap_limit)
        reached = memory
        if kasan:
            if arch.runs.emulation.delay_slots is not None:
                # Looked at, a load or store in a slot leaves the emulator where it was (2272).
                reason = "accesses in delay slots cannot be checked (kasan)"
                raise ExecmemError(f"{arch.name}: {reason}")
            self.heap = heap = checked = CheckedHeap(
                memory, self.serving.origin, runner.refuse_access, heap_limit
            )
            reached = CheckedMemory(memory, checked)
            for cpu in self.cpus:
                cpu.on_access(checked.check)
        self.costs = Costs(self.serving, self.limits, heap, self.registry)
        self.access = Access(arch, memory, reached, self.costs, self.serving, runner.symbolize)
        self.memory = self.access.memory
        memory.on_fill = self.costs.filled
        self.printk = Printk(self.costs.spend)
        self.text: LiveText | None = None
        self.states: dict[type, object] = {}
        self.work_pending = False  # whether something may have to be done when nobody calls
        self.oopses: list[Fault] = []
        self.stopped: dict[str, Stopped] = {}
        placed = ImageParts(arch, memory)
        self.image = placed.interval
        self.return_address = placed.code(b"")
        self.percpu = PerCpu(
            arch, self.memory, self.cpus, self.serving, self.image.start, self._canary()
        )
        self.symtab = Symtab(self, placed, self.percpu, unknown)
        self._name_parts()
        self.symtab.define_fixed()
        self.copy = placed.code(arch.runs.emulation.copy)
        self.symtab.define_watched()
        Dispatch(
            self,
            self.symtab,
            access=self.access,
            costs=self.costs,
            serving=self.serving,
            printk=self.printk,
        )
        self._settle()
        self.modules = ModuleStructs(self, loaded)

    def _canary(self) -> Canary | None:
        """Return what register leads to the canary, and how far; None where none does."""
        place = self.arch.runs.emulation.canary
        if place is None or not self.layouts.has(place[1], "stack_canary"):
            return None
        return place[0], self.layouts.offset_of(place[1], "stack_canary")

    def _name_parts(self) -> None:
        """Give short names to what entries and the machine use of the parts."""
        self.call, self.symbolize = self.runner.call, self.runner.symbolize
        self.locate, self.request_module = self.runner.locate, self.runner.request_module
        access, costs, printk, symtab = self.access, self.costs, self.printk, self.symtab
        self.word, self.store, self.pieces = access.word, access.store, access.pieces
        self.string, self.string_pieces = access.string, access.string_pieces
        self.format, self.hold = access.format, access.hold
        self.va_list = access.va_list
        self.spend, self.account, self.entries = costs.spend, costs.account, costs.entries
        self.print, self.say, self.flush_log = printk.print, printk.say, printk.flush
        self.caller, self.return_to = self.serving.caller, self.serving.return_to
        self.access_fault = self.serving.access_fault
        self.new_task, self.reset_cpu = self.percpu.new_task, self.percpu.reset_cpu
        self.boot_tasks = self.percpu.boot_tasks
        self.address, self.knows, self.supply = symtab.address, symtab.knows, symtab.supply
        self.name_at, self.unknown_at = symtab.name_at, symtab.unknown_at
        self.stand_in, self.lacking = symtab.stand_in, symtab.lacking
        self.originals, self.prototype_at = symtab.originals, symtab.prototype_at
        self.symbols, self.stubs = symtab.addresses, symtab.stubs
        self.calls, self.fixups = symtab.calls, symtab.fixups

    def _settle(self) -> None:
        """Give the CPUs a page table to name, and let them keep what they hold now.

        The emulator walks none, so the page is empty.
        """
        system = self.arch.runs.emulation.system
        if system is not None and system.page_table is not None:
            found = self.memory.translate(self.memory.alloc_pages(0))
            assert found is not None
            name, value = system.page_table
            direct = self.memory.direct_map.start
            paging = self.memory.paging
            page, each = (n.bit_length() - 1 for n in (paging.page, paging.entries))
            levels = next(
                n for n in (3, 4, 5) if direct >= ADDRESS_MASK + 1 - (1 << page + each * n - 1)
            )
            for cpu in self.cpus:
                cpu.page_table = value(found.address, levels)
                cpu.write(name, cpu.page_table)
        for cpu in self.cpus:
            cpu.settle()

    # What the machine asks -------------------------------------------------------------------

    @property
    def cpu(self) -> Cpu:
        """The CPU that the kernel runs on now."""
        return self.serving.cpu

    @cpu.setter
    def cpu(self, cpu: Cpu) -> None:
        self.serving.cpu = cpu

    @property
    def layouts(self) -> Layouts:
        """Where members of structures lie, of whoever is served now."""
        return self.whose.layouts

    @property
    def current(self) -> int:
        """Address of the task that runs on this CPU."""
        return self.percpu.current

    @property
    def depth(self) -> int:
        """How many guest functions are under way, one called from the other."""
        return self.runner.depth

    @property
    def executing(self) -> str:
        """The kernel function that the guest is in; empty between calls."""
        return self.serving.function

    @property
    def log(self) -> Log:
        """The kernel log."""
        return self.printk.log

    @property
    def on_log(self) -> Callable[[LogLine], None] | None:
        """What is called with each line of the log."""
        return self.printk.on_line

    @on_log.setter
    def on_log(self, told: Callable[[LogLine], None] | None) -> None:
        self.printk.on_line = told

    @property
    def fixed(self) -> frozenset[str]:
        """Symbols with an address that nobody can stand in for: variables and guest code."""
        return self.symtab.fixed

    @property
    def missing(self) -> dict[str, int]:
        """Symbols that modules asked for and nobody implements -> times called."""
        return self.symtab.missing

    @property
    def stubbed(self) -> dict[str, int]:
        """Symbols that were supplied from outside -> times called."""
        return self.symtab.stubbed

    def alloc(self, size: int) -> int:
        """Return the address of `size` zeroed bytes of the guest's heap, or 0."""
        return self.heap.alloc(size, zero=True)

    def free(self, address: int) -> bool:
        """Free what `alloc` returned; False where it is no object."""
        return self.heap.free(address)

    def mark(self) -> Mark:
        """Return the kernel's state that loading a module changes, for `roll_back`."""
        return Mark(
            self.symtab.mark(),
            self.heap.mark(),
            self.registry.mark(),
            {kind: _copied(found) for kind, found in self.states.items()},
        )

    def roll_back(self, mark: Mark) -> None:
        """Forget symbols and objects that came after `mark`."""
        # Time, for one, does not go back.
        lasting = {kind: s for kind, s in self.states.items() if getattr(kind, "lasting", False)}
        self.states = mark.states | lasting
        self.symtab.roll_back(mark.symbols)
        self.heap.roll_back(mark.objects)
        self.registry.roll_back(mark.registered)

    def remembered(self) -> Remembered:
        """Return all that is remembered beside memory of the guest, for `become`."""
        printk = self.printk
        return Remembered(
            heap=self.heap.state(),
            frames=self.plain.physical.holds(),
            changes=self.plain.physical.changes,
            areas=self.plain.areas,
            registered=self.registry.mark(),
            states={kind: _copied(found) for kind, found in self.states.items()},
            log=(list(printk.log), printk.log.dropped),
            calls=dict(self.calls),
            entries=dict(self.entries),
            stopped=dict(self.stopped),
            oopses=len(self.oopses),
            pending=self.work_pending,
        )

    def become(self, was: Remembered) -> str:
        """Remember what `remembered` returned; return what is left otherwise, empty: nothing."""
        physical = self.plain.physical
        direct = self.plain.direct_map
        self.heap.become(was.heap, keep=lambda address: address in direct)
        if physical.changes != was.changes:
            physical.hold(was.frames)
            physical.changes = was.changes
        self.registry.roll_back(was.registered)
        self.states.clear()
        self.states.update({kind: _copied(found) for kind, found in was.states.items()})
        self.printk.flush()
        self.printk.log[:], self.printk.log.dropped = was.log
        for mine, its in ((self.calls, was.calls), (self.entries, was.entries)):
            mine.clear()
            mine.update(its)  # type: ignore[arg-type]  # each of its own kind
        self.stopped.clear()
        self.stopped.update(was.stopped)
        del self.oopses[was.oopses :]
        self.work_pending = was.pending
        return "" if self.plain.areas == was.areas else "it freed memory that was there before"

    # What entries use ------------------------------------------------------------------------

    def run_as(self, task: int, stack: int, address: int, slots: list[int], context: Any) -> int:
        """Run or go on with a guest function while `task` is current; see `GuestRunner.aside`."""
        with self.percpu.running(task):
            return self.runner.aside(stack, address, slots, context)

    def oops(self, what: str, fault: Fault) -> None:
        """Report a fault in something that nobody called, and go on."""
        if len(self.oopses) < OOPSES:
            self.oopses.append(fault)
        self.print(f"{what}: {fault}\n".encode(), 1)

    def register(
        self,
        kind: str,
        address: int,
        name: str = "",
        *,
        fields: Mapping[str, Field] | None = None,
        callbacks: Mapping[str, int] | None = None,
    ) -> Record:
        """Enter what a module registers, during the call that registers it.

        Parameters
        ----------
        kind, address, name, fields, callbacks
            As in `Record`; without a name, the symbol at `address` is it.
        """
        if len(self.registry) >= RECORDS and self.executing:
            self.costs.overflow(
                f"{RECORDS} registrations", "more are not kept: load fewer modules at once"
            )
        owner, symbol = self.locate(address)
        record = Record(
            kind=kind,
            name=name or symbol,
            address=address,
            owner=owner or self.locate(self.return_to())[0],
            fields=fields or {},
            callbacks=callbacks or {},
        )
        self.registry.add(record)
        self.account()
        return record


_FULFILLED: type[protocol.Kernel] = Kernel  # as mypy sees to


def _copied(found: object) -> object:
    """Return a copy of what a subsystem remembers: of its fields and what they contain."""
    made = copy.copy(found)
    kind = type(found)
    if attrs.has(kind):
        for field in attrs.fields(kind):
            setattr(made, field.name, _contained(getattr(found, field.name)))
    return made


def _contained(value: object) -> object:
    if isinstance(value, dict):
        return {key: _contained(item) for key, item in value.items()}
    if isinstance(value, list | deque | set):
        return type(value)(_contained(item) for item in value)
    return value
