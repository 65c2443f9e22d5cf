# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated kernel: an image with a stub per symbol, and the services behind the stubs.

The image lies where the architecture's kernel lies, so that reach is what it would be.
Every kernel function that modules call has a slot in it. A slot holds a return
instruction; before it executes, the CPU calls back, the entry of the table does its work
and sets the result, and the guest returns by itself. Slots are execute-only: a module
that mistakes an unknown variable for a function, or reads one, faults with its name.

Functions that are nothing but instructions (retpoline thunks, __fentry__) are guest code
and cost no callback.
"""

from __future__ import annotations

import copy
import enum
import inspect
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import attrs

from allocator import AccessError, AddressMap, AllocationError, IntervalSet, KernelMemory, Prot
from allocator.errors import ExecmemError
from allocator.plugins import said
from allocator.types import ADDRESS_MASK, LARGE_PAGE_SIZE, MIB, PAGE_SIZE, Interval, align_up
from archs import Anchor, Arch
from emulator.budget import Limits
from emulator.cpu import Cpu
from emulator.faults import LIMIT_HINTS, Fault, FaultKind, Stopped
from kernels.modelled.bounds import HELD, PIECE, WORK, GuestMemory, Log, LogLine
from kernels.modelled.heap import LIMIT, Heap
from kernels.modelled.kasan import CheckedHeap, CheckedMemory, Report, Site
from kernels.modelled.printf import format_message, split_level
from kernels.modelled.prototypes import CType, Prototype, parse
from kernels.modelled.registry import Field, Record, Registry
from kernels.modelled.table import DATA, FUNCTIONS, Arguments, Data, Function

if TYPE_CHECKING:
    from kernels.modelled.modules import ModuleStructs
    from kernels.modelled.text.live import LiveText

SLOT = 64  # bytes: room to tell which unknown variable a field belongs to
WIDE, WIDE_UNTIL = 16, LARGE_PAGE_SIZE // 2  # slots of one that is not called, while there is room
CODE, STUBS, VARIABLES, NEEDED = (n * LARGE_PAGE_SIZE for n in range(4))
RETURN_SLOT = 4 * SLOT  # not at the start of a page: Unicorn would look at the page before
PERCPU_SIZE = 64 * PAGE_SIZE
PERCPU_STATIC = 16 * PAGE_SIZE
TASK_SIZE = 4 * PAGE_SIZE
LOOK = 256  # loads and the like, between looks at the limits
LOG_LINES = 200_000
LOG_LIMIT = 16 * MIB  # bytes of the host's memory that the log of a guest takes
RECORDS = 50_000
ENTRY = 1024  # bytes that an entry which a subsystem remembers costs the host
OOPSES = 1000  # that are kept
LINE_LIMIT = MIB
ZEROS = 1024  # bytes that stand in for a variable of unknown size
CANARY = 0x5AFE_C0DE_0BAD_F00D & ~0xFF  # the lowest byte is 0, as the kernel's is

# Slots, heap objects, symbols, the ends of the variables and of the static per-cpu area, what
# is registered, and what subsystems remember.
Mark: TypeAlias = tuple[
    int,
    frozenset[int],
    dict[str, int],
    tuple[int, int],
    dict[tuple[str, int], list[Record]],
    dict[type, object],
]
# What a handler may trip over when the guest's arguments are absurd.
_TRIPPED = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError),
    *(ValueError, struct.error, zlib.error),
)
UNSIGNED_LONG = CType(size=8, signed=False, pointer=False, text="unsigned long")


class Unknown(enum.Enum):
    """What happens with symbols that neither a module nor the kernel has."""

    FAULT = "fault"  # a stub that stops the guest when it is called
    ZERO = "zero"  # a function that returns 0, or a zeroed variable; the first call is logged
    TRACE = "trace"  # the same, and every call is logged with its arguments
    REFUSE = "refuse"  # the module is not loaded, unless its build vouched for the symbol


@attrs.define
class _Slots:
    """The variadic arguments of a call: registers left over, then the stack."""

    registers: Iterator[int]
    stack: Iterator[int]

    def next(self) -> int:
        """Return the next slot."""
        value = next(self.registers, None)
        return next(self.stack) if value is None else value


@attrs.define
class _VaList:
    """The slots that a va_list object still holds."""

    slots: Iterator[int]

    def next(self) -> int:
        """Return the next slot."""
        return next(self.slots)


class Parked(Exception):
    """The kernel thread under way waits; its context was saved, and others run now."""


@attrs.define
class Slot:
    """What stands behind one stub: an entry of the table, a caller's own, or nothing."""

    name: str
    function: Function | None = None
    callback: Callable[..., int | None] | None = None
    parameters: int = 0  # of the callback
    supplied: bool = False


class Kernel:
    """The kernel of one machine.

    Parameters
    ----------
    arch, memory, cpus
        What it runs on; `cpu` is the CPU that it runs on now.
    call
        Runs a guest function: address and arguments -> result.
    run
        Runs a guest function, or goes on with one, on another stack: task, stack, address
        and argument, or task and context -> result.
    depth
        Returns how many guest functions are under way, one called from the other.
    symbolize
        Address -> `name+0xoff/0xsize [module]`, or None.
    locate
        Address -> the module that it lies in and the symbol that it is, empty for none.
    unknown
        What stands in for symbols that nobody implements.
    report
        Raises a fault: where given, every access to kmalloc memory is checked.
    heap_limit
        Bytes that the guest's heap may come to.
    seed
        What random numbers follow.
    limits
        What the guest may take now, of instructions and time.

    `text` is what patches text of modules, where there is something that does; `modules` keeps
    what the guest sees of them; `plain` is the memory without anything that counts or checks.
    """

    def __init__(
        self,
        arch: Arch,
        memory: KernelMemory,
        cpus: Sequence[Cpu],
        *,
        call: Callable[..., int],
        run: Callable[..., int],
        depth: Callable[[], int],
        symbolize: Callable[[int], str | None],
        locate: Callable[[int], tuple[str, str]],
        unknown: Unknown = Unknown.FAULT,
        report: Report | None = None,
        heap_limit: int = LIMIT,
        seed: int = 0,
        limits: Limits | None = None,
    ) -> None:
        self.arch = arch
        self.limits = Limits() if limits is None else limits
        self.plain = self._reached = memory
        self.cpus = tuple(cpus)
        self.cpu = cpus[0]
        self.call = call
        self._run = run
        self.symbolize = symbolize
        self.locate = locate
        self.registry = Registry()
        self.seed = seed
        self.heap = Heap(memory, heap_limit)
        self.executing = ""  # the kernel function that the guest is in
        if report is not None:
            self.heap = CheckedHeap(memory, self._site, report, heap_limit)
            self._reached = CheckedMemory(memory, self.heap)
            for cpu in self.cpus:
                cpu.on_access(self.heap.check)
        self._spent = self._held = 0
        self.entries: dict[type, int] = {}  # what subsystems' memories cost the host
        self.memory: KernelMemory = GuestMemory(self._reached, self.spend, self.hold)
        memory.on_fill = self._filled
        self.unknown = unknown
        self.log = Log()
        self.on_log: Callable[[LogLine], None] | None = None
        self.calls: dict[str, int] = {}
        self.text: LiveText | None = None
        self.modules: ModuleStructs | None = None
        self.states: dict[type, object] = {}  # what subsystems remember, by its class
        self.depth = depth
        self.stirred = False  # whether something may have to be done when nobody calls
        self.on_idle: Callable[[], None] | None = None
        self.request_module: Callable[[str], bool] | None = None
        self.oopses: list[Fault] = []
        self.stopped: dict[str, Stopped] = {}  # by the module whose init it was, first first
        self._addresses: dict[str, int] = {}
        self._zeros: dict[int, str] = {}
        self._asked: dict[str, None] = {}  # unknown symbols, those of failed loads too
        self.fixups: dict[int, int] = {}  # of its own exception table
        self._slots: list[Slot] = []
        self._partial = ""
        self._level = 4
        image = memory.address_map.image
        self.image = image
        self._map(memory.address_map)
        self._code_end = image.start + RETURN_SLOT + SLOT
        self._variables_end = image.start + VARIABLES
        self.return_address = self._code(b"")
        self._stubs = Interval(image.start + STUBS, image.start + VARIABLES)
        self._percpu_area()
        for name, code in arch.runs.emulation.code.items():
            start = self._addresses[name] = self._code(code)
            if name in arch.runs.emulation.fixups:
                access, resume = arch.runs.emulation.fixups[name]
                self.fixups[start + access] = start + resume
        self.copy = self._code(arch.runs.emulation.copy)
        for variable in DATA.values():
            if variable.read is not None:  # these stay where they are
                self.address(variable.name)
        for cpu in self.cpus:
            cpu.on_execute(self._stubs.start, self._stubs.end, self._execute)
            cpu.on_fetch = self._called_variable
        self._settle()

    # The image ---------------------------------------------------------------------------

    def _map(self, address_map: AddressMap) -> None:
        """Map the parts of the image that exist: code, stubs (execute-only) and variables."""
        if address_map.image.size < NEEDED:
            raise ValueError(f"a kernel image needs {NEEDED:#x} bytes for stubs and variables")
        for offset, prot in ((CODE, Prot.RX), (STUBS, Prot.X), (VARIABLES, Prot.RW)):
            frames = self.memory.physical.alloc_run(9)
            if frames is None:
                reason = "no contiguous physical memory"
                raise AllocationError("the kernel image", LARGE_PAGE_SIZE, (), reason)
            fill = self.arch.loads.trap if prot & Prot.X else b"\0"
            self.memory.physical.fill(frames, LARGE_PAGE_SIZE, fill)
            at = address_map.image.start + offset
            self.memory.page_table.map_contiguous(at, frames, prot, size=LARGE_PAGE_SIZE)
            if prot & Prot.X:
                # As mark_rodata_ro(): no writable alias of kernel text in the direct map.
                alias = self.memory.direct_map.start + frames
                self.memory.page_table.change(alias, LARGE_PAGE_SIZE, off=Prot.W)

    def _settle(self) -> None:
        """Give the CPUs a page table to name, and let them keep what they hold now.

        The emulator walks none, so the page is empty.
        """
        system = self.arch.runs.emulation.system
        if system is not None:
            found = self.memory.translate(self.memory.alloc_pages(0))
            assert found is not None
            name, value = system.page_table
            direct = self.memory.direct_map.start
            levels = next(
                n for n in (3, 4, 5) if direct >= ADDRESS_MASK + 1 - (1 << 12 + 9 * n - 1)
            )
            for cpu in self.cpus:
                cpu.page_table = value(found.address, levels)
                cpu.write(name, cpu.page_table)
        for cpu in self.cpus:
            cpu.settle()

    def _store(self, address: int, code: bytes) -> None:
        found = self.memory.translate(address)
        assert found is not None
        self.memory.physical.write(found.address, code)

    def _code(self, code: bytes) -> int:
        address = self._code_end
        self._store(address, code)
        self._code_end += align_up(max(len(code), 1), SLOT)
        return address

    def _percpu_area(self) -> None:
        """Set up each CPU's per-cpu area, current task, and the registers that lead to them."""
        # Per-cpu symbols are places in the image (or count from 0, where a segment register
        # adds the rest); adding the CPU's offset gives its copy.
        base = (
            0
            if self.arch.runs.emulation.percpu_from_zero
            else self.image.start + NEEDED - PERCPU_SIZE
        )
        self.percpu_offsets: list[int] = []
        self._tasks: list[int] = []
        emulation = self.arch.runs.emulation
        for cpu in self.cpus:
            area = self._percpu_room(cpu.number)
            task = self.memory.alloc_pages((TASK_SIZE // PAGE_SIZE - 1).bit_length())
            self.percpu_offsets.append((area - base) & ADDRESS_MASK)
            self._tasks.append(task)
            anchors = {
                Anchor.PERCPU: self.percpu_offsets[-1],
                Anchor.CURRENT: task,
                Anchor.IMAGE: self.image.start,
            }
            for name, anchor in emulation.anchors.items():
                cpu.write(name, anchors[anchor])
            anchor, offset = emulation.canary
            self.memory.write(anchors[anchor] + offset, CANARY.to_bytes(8, "little"))
        self.boot_tasks = tuple(self._tasks)  # each CPU's own
        self._percpu_static = base + PAGE_SIZE
        self._percpu_free = IntervalSet([Interval(base + PERCPU_STATIC, base + PERCPU_SIZE)])
        self._percpu_live: dict[int, Interval] = {}

    def _percpu_room(self, number: int) -> int:
        """Return memory for a CPU's copies, with nothing where other symbols would have theirs.

        What is taken for a per-cpu variable and is none lies somewhere else in the image: the
        CPU's offset leads from there below the copies, and must not lead to memory.
        """
        if self.arch.runs.emulation.percpu_from_zero:  # 2 GiB below the direct map
            return self.memory.alloc_pages((PERCPU_SIZE // PAGE_SIZE - 1).bit_length())
        start = self.memory.address_map.vmalloc.end - (2 * number + 1) * NEEDED
        room = Interval(start, start + PERCPU_SIZE)
        return self.memory.vmalloc(PERCPU_SIZE, within=room, guard=False)

    # Per-cpu memory ------------------------------------------------------------------------

    @property
    def percpu_offset(self) -> int:
        """What leads from a per-cpu symbol to this CPU's copy of it."""
        return self.percpu_offsets[self.cpu.number]

    @property
    def current(self) -> int:
        """Address of the task that runs on this CPU."""
        return self._tasks[self.cpu.number]

    def _on_each_cpu(self) -> Iterator[None]:
        """Be on one CPU after the other, and finally on this one again."""
        before = self.cpu
        try:
            for cpu in self.cpus:
                self.cpu = cpu
                yield
        finally:
            self.cpu = before

    def percpu_alloc(self, size: int, align: int) -> int:
        """Return the symbol base of `size` per-cpu bytes, zeroed; AllocationError without room."""
        found = self._percpu_free.find(size, alignment=max(align, 8))
        if found is None:
            base = self._percpu_static - PAGE_SIZE
            room = Interval(base + PERCPU_STATIC, base + PERCPU_SIZE)
            raise AllocationError("per-cpu memory", size, (room,), "no room left")
        taken = Interval(found, found + align_up(size, 8))
        self._percpu_free.remove(taken)
        self._percpu_live[found] = taken
        for _ in self._on_each_cpu():
            self.memory.fill(self.percpu_address(found), taken.size, b"\0")
        return found

    def percpu_free(self, base: int) -> None:
        """Give per-cpu memory back."""
        self._percpu_free.add(self._percpu_live.pop(base))

    def percpu_write(self, base: int, contents: bytes) -> None:
        """Store the initial contents of a per-cpu section, in each CPU's copy."""
        for _ in self._on_each_cpu():
            self.memory.write(self.percpu_address(base), contents)

    def percpu_address(self, base: int) -> int:
        """Return the address of this CPU's copy of a per-cpu symbol."""
        return (base + self.percpu_offset) & ADDRESS_MASK

    # Tasks ---------------------------------------------------------------------------------

    def new_task(self) -> int:
        """Return a task_struct, zeroed but for what compilers read of it."""
        task = self.memory.alloc_pages((TASK_SIZE // PAGE_SIZE - 1).bit_length())
        self.memory.fill(task, TASK_SIZE, b"\0")
        anchor, offset = self.arch.runs.emulation.canary
        if anchor is Anchor.CURRENT:
            self.memory.write(task + offset, CANARY.to_bytes(8, "little"))
        return task

    def run_as(self, task: int, *what: object) -> int:
        """Run or go on with a guest function while `task` is current; see `run`."""
        number = self.cpu.number
        before, self._tasks[number] = self._tasks[number], task
        self._show_current()
        try:
            return self._run(*what)
        finally:
            self._tasks[number] = before
            self._show_current()

    def reset_cpu(self) -> None:
        """Give this CPU the registers of a kernel thread that nobody has used yet."""
        number = self.cpu.number
        self.cpu.reset()
        if self._tasks[number] != self.boot_tasks[number]:
            self._show_current()

    def _show_current(self) -> None:
        """Put the current task where code looks for it: a register, or a per-cpu variable."""
        for name, anchor in self.arch.runs.emulation.anchors.items():
            if anchor is Anchor.CURRENT:
                self.cpu.write(name, self.current)
        for name in self.arch.runs.emulation.current_variables:
            if name in self._addresses:
                self.store(self.percpu_address(self._addresses[name]), self.current)

    def stir(self) -> None:
        """Say that something is to be done once the call from outside is over."""
        self.stirred = True

    def oops(self, what: str, fault: Fault) -> None:
        """Report a fault in something that nobody called, and go on."""
        if len(self.oopses) < OOPSES:
            self.oopses.append(fault)
        self.print(f"{what}: {fault}\n".encode(), 1)

    # Symbols -------------------------------------------------------------------------------

    def _declared(self, name: str) -> Data | None:
        """Return a variable of the kernel's; some only an architecture's compiler asks for."""
        if name in self.arch.runs.emulation.guard_variables:
            canary = CANARY.to_bytes(8, "little")
            return Data(name=name, size=8, percpu=True, fill=lambda _kernel: canary)
        return DATA.get(name)

    def knows(self, name: str) -> bool:
        """Return whether the kernel implements, declares or was given `name`."""
        if name in self._addresses:
            slot = self._slot_of(name)
            if slot is None:
                return self._addresses[name] not in self._zeros
            return slot.function is not None or slot.callback is not None
        return name in FUNCTIONS or self._declared(name) is not None

    @property
    def stubs(self) -> Interval:
        """Where the stubs of kernel functions lie."""
        return self._stubs

    @property
    def fixed(self) -> frozenset[str]:
        """Symbols with an address that nobody can stand in for: variables and guest code."""
        return frozenset(name for name in self._addresses if self._slot_of(name) is None)

    def prototype_at(self, address: int) -> Prototype | None:
        """Return what the kernel function whose stub is at `address` is called with, if known."""
        number, offset = divmod(address - self._stubs.start, SLOT)
        if address not in self._stubs or offset or number >= len(self._slots):
            return None
        found = self._slots[number].function
        return None if found is None else found.prototype

    @property
    def symbols(self) -> Mapping[str, int]:
        """The symbols that have an address by now, as a live view."""
        return MappingProxyType(self._addresses)

    def address(self, name: str, *, called: bool = True) -> int:
        """Return the address of a kernel symbol; an unknown one gets something that stands in.

        Parameters
        ----------
        called
            Whether an unknown symbol is called; else it may be a variable, and where the
            policy is not to stop, it is zeroed memory.
        """
        found = self._addresses.get(name)
        if found is None:
            variable = self._declared(name)
            if variable is None and name not in FUNCTIONS:
                self._asked[name] = None
                if self.lenient and not called:
                    variable = Data(name=name, size=ZEROS)
            found = self._variable(variable) if variable else self._stub(name, variable=not called)
            self._addresses[name] = found
            if variable is not None and self._declared(name) is None:
                self._zeros[found] = name
        return found

    @property
    def missing(self) -> dict[str, int]:
        """Symbols that modules asked for and nobody implements -> times called."""
        return {name: self.calls.get(name, 0) for name in self._asked if not self.knows(name)}

    @property
    def lenient(self) -> bool:
        """Whether unknown symbols do not stop the guest."""
        return self.unknown in (Unknown.ZERO, Unknown.TRACE)

    @property
    def stubbed(self) -> dict[str, int]:
        """Symbols that were supplied from outside -> times called."""
        names = [slot.name for slot in self._slots if slot.supplied]
        return {name: self.calls.get(name, 0) for name in names}

    def _stub(self, name: str, *, variable: bool = False) -> int:
        """Return the address of a new stub; one for a variable has room for its members' names."""
        address = self._stubs.start + len(self._slots) * SLOT
        if address >= self._stubs.end:
            what = "kernel symbols"
            raise AllocationError(what, SLOT, (self._stubs,), "the image has no room for more")
        slot = Slot(name, FUNCTIONS.get(name))
        wide = variable and slot.function is None and address < self._stubs.start + WIDE_UNTIL
        self._slots += [slot] * (WIDE if wide else 1)
        self._store(address, self.arch.runs.emulation.ret)
        return address

    def _variable(self, variable: Data) -> int:
        size = align_up(variable.size, 16)
        if variable.read is not None:
            size = align_up(size, PAGE_SIZE)
        if variable.percpu:
            base, self._percpu_static = self._percpu_static, self._percpu_static + size
        else:
            base = align_up(self._variables_end, PAGE_SIZE if variable.read else variable.align)
            room = Interval(self.image.start + VARIABLES, self.image.start + NEEDED)
            if base + size > room.end:
                what = "kernel variables"
                raise AllocationError(what, size, (room,), "the image has no room for more")
            self._variables_end = base + size
        # The address must be known before: contents may point at the variable itself.
        self._addresses[variable.name] = base
        for _ in self._on_each_cpu() if variable.percpu else (None,):
            contents = b"" if variable.fill is None else variable.fill(self)
            address = self.percpu_address(base) if variable.percpu else base
            self.memory.write(address, contents.ljust(size, b"\0"))
        if variable.read is not None:
            for cpu in self.cpus:
                cpu.watch(base, partial(variable.read, self))
        return base

    def supply(
        self, name: str, behaviour: int | Callable[..., int | None], prototype: str | None = None
    ) -> None:
        """Let a caller stand in for a symbol: a constant result, or a Python callback.

        Parameters
        ----------
        behaviour
            An int to return, or a callable that gets the arguments as ints: by the types of
            `prototype` where one is given, else one unsigned register per parameter.
        """
        slot = self._slot_of(name) if name in self._addresses else None
        if slot is None:
            if name in self._addresses or self._declared(name) is not None:
                raise ValueError(f"kernel symbol {name!r} is a variable or guest code")
            self._addresses[name] = self._stub(name)
            slot = self._slots[-1]
        slot.supplied = True
        if prototype is not None and callable(behaviour):
            given = behaviour
            slot.function = Function(parse(prototype), lambda _kernel, *args: given(*args))
            slot.callback = None
            return
        slot.callback = behaviour if callable(behaviour) else _constant(behaviour)
        slot.parameters = _positional(slot.callback)

    def _slot_of(self, name: str) -> Slot | None:
        address = self._addresses[name]
        if address not in self._stubs:
            return None
        return self._slots[(address - self._stubs.start) // SLOT]

    def name_at(self, address: int) -> str | None:
        """Return the kernel symbol at or around `address`, for messages."""
        if address in self._stubs:
            index = (address - self._stubs.start) // SLOT
            if index < len(self._slots):
                return self._within(self._slots[index].name, address)
        for name, start in self._addresses.items():
            if start == address:
                return name
        return "the kernel image" if address in self.image else None

    def unknown_at(self, address: int) -> str | None:
        """Return the name (and offset) where `address` belongs to a symbol that nobody implements."""
        if address not in self._stubs:
            return None
        index = (address - self._stubs.start) // SLOT
        if index >= len(self._slots):
            return None
        slot = self._slots[index]
        if slot.function is not None or slot.callback is not None:
            return None
        return self._within(slot.name, address)

    def originals(self, address: int) -> list[int]:
        """Return the symbols' addresses that `address` may be a copy of, and are not per-cpu.

        Something in the image was taken for a per-cpu variable: by this CPU, or another one.
        """
        number = self.cpu.number
        offsets = [self.percpu_offset, *self.percpu_offsets[:number]]
        offsets += self.percpu_offsets[number + 1 :]
        found = ((address - offset) & ADDRESS_MASK for offset in offsets)
        return [at for at in found if self.image.start <= at < self._variables_end]

    def _within(self, name: str, address: int) -> str:
        """Return a symbol's name and how far behind its address something lies."""
        offset = address - self._addresses.get(name, address)
        return name + (f"+{offset:#x}" if offset else "")

    def mark(self) -> Mark:
        """Return the kernel's state that loading a module changes, for `roll_back`."""
        ends = self._variables_end, self._percpu_static
        return (
            len(self._slots),
            self.heap.mark(),
            dict(self._addresses),
            ends,
            self.registry.mark(),
            {kind: _copied(found) for kind, found in self.states.items()},
        )

    def roll_back(self, mark: Mark) -> None:
        """Forget symbols and objects that came after `mark`."""
        count, objects, addresses, ends, registered, states = mark
        # Time, for one, does not go back.
        lasting = {kind: s for kind, s in self.states.items() if getattr(kind, "lasting", False)}
        self.states = states | lasting
        del self._slots[count:]
        self._addresses.clear()  # in place: `symbols` is a view of it
        self._addresses.update(addresses)
        known = set(addresses.values())
        self._zeros = {at: name for at, name in self._zeros.items() if at in known}
        self._variables_end, self._percpu_static = ends
        self.heap.roll_back(objects)
        self.registry.roll_back(registered)

    # Calls from the guest --------------------------------------------------------------------

    def _execute(self, address: int) -> None:
        index, offset = divmod(address - self._stubs.start, SLOT)
        if offset:
            return  # behind the return instruction: a trap follows
        if index >= len(self._slots):
            raise Fault(FaultKind.FETCH, address, f"{address:#x}", address=address)
        slot = self._slots[index]
        self.calls[slot.name] = self.calls.get(slot.name, 0) + 1
        outer, self.executing = self.executing, slot.name
        held = self._held = self._held if outer else 0
        try:
            self._serve(slot, address)
        finally:
            self.executing, self._held = outer, held

    def _serve(self, slot: Slot, address: int) -> None:
        """Do what stands behind a stub, and set the result."""
        calling = self.arch.runs.calling
        if slot.callback is not None:
            count = slot.parameters
            result = slot.callback(
                *(value for value, _ in zip(self._raw(), range(count), strict=False))
            )
            kind = UNSIGNED_LONG
        elif slot.function is not None:
            prototype = slot.function.prototype
            raw = self._raw()
            args: list[object] = []
            if prototype.indirect:
                args.append(self.cpu.read(calling.indirect) if calling.indirect else next(raw))
            args += [p.type.from_register(next(raw)) for p in prototype.params]
            if prototype.variadic:
                args.append(_Slots(raw, iter(())))
            try:
                result = slot.function.handler(self, *args)
            except AccessError as error:
                raise self.access_fault(error, f"{slot.name}()") from None
            except AllocationError as error:
                hint = "there is more with Machine(memory=BYTES)"
                self._overflow(f"{slot.name}(): {error}", hint)
            except ExecmemError:
                raise
            except Exception as error:
                ours = slot.function.ours
                if slot.supplied or (ours and not isinstance(error, _TRIPPED)):
                    raise  # a handler of the caller's own; a fault of execmem's
                # The arguments are the guest's: what a handler makes of absurd ones is its fault.
                reason = f"{slot.name}() with arguments that make no sense: {error!r}"
                if not ours:
                    reason = f"{slot.name}() of {slot.function.handler.__module__}: {said(error)}"
                raise Fault(FaultKind.PANIC, address, self.caller(), reason=reason) from error
            kind = prototype.result
        elif self.lenient:
            self._log_unknown(slot.name)
            result, kind = 0, UNSIGNED_LONG
        else:
            raise Fault(
                FaultKind.UNKNOWN_SYMBOL,
                address,
                self.caller(),
                reason=f"'{slot.name}'",
                hint=f"supply it with --stub {slot.name}[=VALUE]",
                symbol=slot.name,
            )
        if kind.size:
            image = kind.to_register(result or 0, sign_extend_32=calling.sign_extend_32)
            self.cpu.write(calling.result, image)

    def _log_unknown(self, name: str) -> None:
        """Say that an unknown function was called: once, or each time with its arguments."""
        if self.unknown is Unknown.TRACE:
            values = zip(self._raw(), range(len(self.arch.runs.calling.arguments)), strict=False)
            args = ", ".join(f"{value:#x}" for value, _ in values)
        elif self.calls[name] == 1:
            args = "..."
        else:
            return
        self.flush_log()
        self._level = 4
        self._emit(f"unknown {name}({args}) = 0, called from {self.caller()}")

    def _called_variable(self, address: int) -> int | None:
        """Let a call of what could have been a variable return 0; None: it is not one."""
        name = self._zeros.get(address)
        if name is None:
            return None
        self.calls[name] = self.calls.get(name, 0) + 1
        self._log_unknown(name)
        calling = self.arch.runs.calling
        back = self.return_to()
        if calling.link is None:
            self.cpu.write(calling.stack_pointer, self.cpu.read(calling.stack_pointer) + 8)
        self.cpu.write(calling.result, 0)
        return back

    def _raw(self) -> Iterator[int]:
        """Yield the argument slots of the call being executed: registers, then the stack."""
        calling = self.arch.runs.calling
        for name in calling.arguments:
            yield self.cpu.read(name) & ADDRESS_MASK
        stack = self.cpu.read(calling.stack_pointer) + (8 if calling.link is None else 0)
        while True:
            yield self.word(stack)
            stack += 8

    def return_to(self) -> int:
        """Return where the call being executed returns to."""
        calling = self.arch.runs.calling
        if calling.link is not None:
            return self.cpu.read(calling.link)
        return self.word(self.cpu.read(calling.stack_pointer))

    def caller(self) -> str:
        """Return where the call being executed returns to, for messages."""
        try:
            address = self.return_to()
        except AccessError as error:
            return f"an unknown place: no stack at {error.address:#x}"
        return self.symbolize(address) or f"{address:#x}"

    def _site(self) -> Site:
        """Return who is in which kernel function."""
        if not self.executing:
            return Site("a place outside the guest", "", "")
        at = self.return_to()
        return Site(self.symbolize(at) or f"{at:#x}", self.locate(at)[0], self.executing)

    # What modules register --------------------------------------------------------------------

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
            self._overflow(
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

    # What entries use --------------------------------------------------------------------------

    def spend(self, work: int = 1) -> None:
        """Let the guest pay for what the kernel does; loops whose length it chose call this.

        A CPU cannot be stopped while the kernel works for it, so the limits are looked at here,
        each time that LOOK steps were done since the last look, for the price of an instruction.

        Parameters
        ----------
        work
            Steps, each of about the length of a load from memory.
        """
        self._spent += work
        if self._spent >= LOOK:
            looks, self._spent = divmod(self._spent, LOOK)
            budget = self.limits.budget
            if budget.left is not None:
                budget.take(looks)
                if budget.left <= 0:
                    self._exhausted(FaultKind.INSTRUCTION_LIMIT, budget.instructions)
            if budget.late:
                self._exhausted(FaultKind.TIME_LIMIT, budget.seconds)

    def _exhausted(self, kind: FaultKind, limit: float | None) -> NoReturn:
        unit = "seconds" if kind is FaultKind.TIME_LIMIT else "instructions"
        inside = f"in {self.executing}()" if self.executing else "between calls of the guest"
        pc, where = self._place()
        reason = f"{limit} {unit}, {inside}"
        raise Fault(kind, pc, where, reason=reason, hint=LIMIT_HINTS[kind])

    def access_fault(self, error: AccessError, what: str) -> Fault:
        """Return the fault of what the kernel could not reach for the guest, in `what`."""
        kind = FaultKind.WRITE if error.access == "write" else FaultKind.READ
        pc, where = self._place()
        reason = f"{error.reason}, in {what}"
        return Fault(kind, pc, where, address=error.address, reason=reason)

    def _place(self) -> tuple[int, str]:
        """Return where the guest is: in a kernel function, or where it was last."""
        pc = self.cpu.read(self.arch.runs.calling.program_counter)
        return pc, self.caller() if self.executing else self.symbolize(pc) or f"{pc:#x}"

    def hold(self, size: int, address: int | None = None) -> None:
        """Say that `size` bytes more of the host's memory are held while this function works.

        Where that is too much, and they are those at `address`, they must all be there first:
        what is wrong with a wild size is that it is wild.
        """
        self._held += size
        if self._held > self.heap.limit // HELD and self.executing:
            for _ in self.pieces(address, size) if address is not None else ():
                pass
            self._overflow(f"{self._held:#x} bytes at once in {self.executing}()")

    def _filled(self, size: int) -> None:
        """Let the guest pay for memory that it gets."""
        if self.executing:
            self.spend(size // WORK)

    def account(self, kind: type | None = None, entries: int = 0) -> None:
        """Take what the host keeps for the guest from what the guest's heap may come to.

        Parameters
        ----------
        kind, entries
            A subsystem, and what the entries that it remembers cost by now.
        """
        if kind is not None:
            self.entries[kind] = entries
        before = self.heap.host
        self.heap.host = self.registry.cost + sum(self.entries.values())
        if self.heap.full and self.heap.host > before and self.limits.depth:
            self._overflow(f"{self.heap.limit:#x} bytes of objects and what is kept of them")

    def pieces(self, address: int, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield (address, contents) of [address, address + size), of pages that are all there.

        No page is touched before the one in front of it was given, and no more than PIECE bytes
        are held; each piece is paid for.
        """
        address &= ADDRESS_MASK
        plain = self.plain is self._reached
        while size > 0:
            found = self.plain.translate(address) if plain and size > PAGE_SIZE else None
            whole = PAGE_SIZE if found is None else min(found.leaf, PIECE)
            count = min(size, whole - address % whole)
            self.spend(1 + count // WORK)
            yield address, self._reached.read(address, count)
            address = (address + count) & ADDRESS_MASK
            size -= count

    def word(self, address: int, size: int = 8) -> int:
        """Return the little-endian word of `size` bytes at `address`."""
        self.spend()
        return int.from_bytes(self._reached.read(address & ADDRESS_MASK, size), "little")

    def store(self, address: int, value: int, size: int = 8) -> None:
        """Store the low `size` bytes of `value` at `address`."""
        self.spend()
        image = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self._reached.write(address & ADDRESS_MASK, image)

    def string(self, address: int, limit: int = 1 << 20) -> bytes:
        """Return the NUL-terminated string at `address`, without the NUL, at most `limit` bytes.

        Read page by page, so that a string may end just before an unmapped page.
        """
        parts = []
        for piece in self.string_pieces(address, limit):
            self.hold(len(piece))
            parts.append(piece)
        return b"".join(parts)

    def string_pieces(self, address: int, limit: int) -> Iterator[bytes]:
        """Yield what stands in a string, page by page; see `string`."""
        while limit > 0:
            address &= ADDRESS_MASK
            piece = self.plain.read(address, min(limit, PAGE_SIZE - address % PAGE_SIZE))
            end = piece.find(0)
            size = len(piece) if end < 0 else end
            self.spend(1 + size // WORK)
            if self.plain is not self._reached:  # only what the string has is touched
                self._reached.read(address, min(size + 1, len(piece)))
            yield piece[:size]
            if end >= 0:
                return
            address += size
            limit -= size

    def format(self, fmt: int, args: Arguments) -> bytes:
        """Return what the kernel's vsnprintf would form of the format at `fmt`."""
        return format_message(
            self.string(fmt), args, self.plain, symbolize=self.symbolize, va_list=self.va_list_at
        )

    def va_list(self, value: int) -> _VaList:
        """Return the slots that a va_list still holds, given as the argument that it is passed as."""
        return _VaList(self.arch.runs.calling.va_list(value, self.word))

    def va_list_at(self, address: int) -> _VaList:
        """Return the slots that the va_list object at `address` still holds (a `va_list *`)."""
        is_pointer = self.arch.runs.calling.va_list_is_pointer
        return self.va_list(self.word(address) if is_pointer else address)

    def print(self, message: bytes, level: int | None = None) -> None:
        """Append to the kernel log; a message without newline waits for its continuation."""
        found, text = split_level(message)
        if not message.startswith(b"\x01c"):  # KERN_CONT
            self.flush_log()
        if not self._partial:
            self._level = found if found is not None else (level if level is not None else 4)
        whole = self._partial + text.decode("utf-8", "replace")
        self._partial = ""
        *lines, rest = whole.split("\n")
        if len(rest) > LINE_LIMIT:
            lines, rest = [*lines, rest], ""
        for line in lines:
            self.spend()
            self._emit(line)
        self._partial = rest

    def _overflow(self, what: str, hint: str = LIMIT_HINTS[FaultKind.MEMORY_LIMIT]) -> NoReturn:
        """Stop the guest before what it leaves behind outgrows the host."""
        pc, where = self._place()
        raise Fault(FaultKind.MEMORY_LIMIT, pc, where, reason=what, hint=hint)

    def say(self, level: int, text: str) -> None:
        """Append what the kernel's loader says of a module."""
        self.flush_log()
        self._level = level
        self._emit(text, loading=True)

    def _emit(self, text: str, *, loading: bool = False) -> None:
        line = LogLine(self._level, text, loading)
        self.log.add(line, LOG_LINES, LOG_LIMIT)
        if self.on_log is not None:
            self.on_log(line)

    def flush_log(self) -> None:
        """Complete a line that no newline ended."""
        if self._partial:
            text, self._partial = self._partial, ""
            self._emit(text)


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


def _constant(value: int) -> Callable[[], int]:
    return lambda: value


def _positional(callback: Callable[..., object]) -> int:
    """Return how many arguments a callback takes; with *args, six registers."""
    parameters = inspect.signature(callback).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 6
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
