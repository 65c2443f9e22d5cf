# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's symbols: a stub per function, memory per variable, and stand-ins for the unknown.

Every kernel function that modules call has a slot in the image. A slot holds a return
instruction; before it executes, the CPU calls back, the entry of the table does its work
and sets the result, and the guest returns by itself. Slots are execute-only: a module
that mistakes an unknown variable for a function, or reads one, faults with its name.

Functions that are nothing but instructions (retpoline thunks, __fentry__) are guest code
and cost no callback.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import attrs

from allocator import AllocationError
from allocator.types import ADDRESS_MASK, Interval, align_up
from archs.layouts import Layouts, NotKnown
from emulator.tlb import PAGE
from kernels.modelled.image import PART, SLOT, ImageParts
from kernels.modelled.percpu import CANARY, PerCpu
from kernels.modelled.services import Services
from kernels.modelled.table import DATA, FUNCTIONS, Data, Function
from kernels.prototypes import Prototype, parse

WIDE, WIDE_UNTIL = 16, PART // 2  # slots of one that is not called, while there is room
ZEROS = 1024  # bytes that stand in for a variable of unknown size


class Unknown(enum.Enum):
    """What happens with symbols that neither a module nor the kernel has."""

    FAULT = "fault"  # a stub that stops the guest when it is called
    ZERO = "zero"  # a function that returns 0, or a zeroed variable; the first call is logged
    TRACE = "trace"  # the same, and every call is logged with its arguments
    REFUSE = "refuse"  # the module is not loaded, unless its build vouched for the symbol


@attrs.define
class KernelStub:
    """What stands behind one stub: an entry of the table, a caller's own, or nothing."""

    name: str
    function: Function | None = None
    callback: Callable[..., int | None] | None = None
    parameters: int = 0  # of the callback
    supplied: bool = False
    lacking: NotKnown | None = None  # why it stands in for a variable that there is


@attrs.frozen
class SymtabMark:
    """Stubs, symbols and the ends of variables, at one time."""

    stubs: int
    addresses: Mapping[str, int]
    variables: int
    percpu: int
    stand_ins: Mapping[tuple[str, str], int]


class Symtab:
    """Names and addresses of the kernel.

    Parameters
    ----------
    kernel
        What fills variables, and is told that one is read.
    image, percpu
        Where stubs, variables and per-cpu variables lie.
    unknown
        What stands in for symbols that nobody implements.

    `slots` are what stands behind each slot of the image; `calls` counts the calls of each
    function; `fixups` is the kernel's own exception table.
    """

    def __init__(
        self, kernel: Services, image: ImageParts, percpu: PerCpu, unknown: Unknown
    ) -> None:
        self._kernel = kernel
        self._image = image
        self._percpu = percpu
        self._emulation = kernel.arch.runs.emulation
        self.unknown = unknown
        self.calls: dict[str, int] = {}
        self.fixups: dict[int, int] = {}
        self._addresses: dict[str, int] = {}
        self._zeros: dict[int, str] = {}
        self._lacking: set[str] = set()  # variables of structures that this kernel has not
        self._stand_ins: dict[tuple[str, str], int] = {}  # name, release -> address
        self._asked: dict[str, None] = {}  # unknown symbols, those of failed loads too
        self.slots: list[KernelStub] = []
        self._variables_end = image.variables.start

    def define_fixed(self) -> None:
        """Put the guest code into the image."""
        for name, code in self._emulation.code.items():
            start = self._addresses[name] = self._image.code(code)
            if name in self._emulation.fixups:
                access, resume = self._emulation.fixups[name]
                self.fixups[start + access] = start + resume

    def define_watched(self) -> None:
        """Put the variables that are watched into the image: these stay where they are."""
        for variable in DATA.values():
            if variable.read is not None:
                self.address(variable.name)

    # By name -------------------------------------------------------------------------------

    def _declared(self, name: str) -> Data | None:
        """Return a variable of the kernel's; some only an architecture's compiler asks for."""
        percpu = name in self._emulation.guard_variables
        if percpu or name in self._emulation.guard_globals:
            canary = CANARY.to_bytes(8, "little")
            return Data(name=name, size=8, percpu=percpu, fill=lambda _kernel: canary)
        return None if name in self._lacking else DATA.get(name)

    def knows(self, name: str) -> bool:
        """Return whether the kernel implements, declares or was given `name`."""
        if name in self._addresses:
            stub = self._stub_of(name)
            if stub is None:
                return self._addresses[name] not in self._zeros
            return stub.function is not None or stub.callback is not None
        return name in FUNCTIONS or self._declared(name) is not None

    @property
    def addresses(self) -> Mapping[str, int]:
        """The symbols that have an address by now, as a live view."""
        return MappingProxyType(self._addresses)

    @property
    def fixed(self) -> frozenset[str]:
        """Symbols with an address that nobody can stand in for: variables and guest code."""
        return frozenset(name for name in self._addresses if self._stub_of(name) is None)

    @property
    def lenient(self) -> bool:
        """Whether unknown symbols do not stop the guest."""
        return self.unknown in (Unknown.ZERO, Unknown.TRACE)

    @property
    def missing(self) -> dict[str, int]:
        """Symbols that modules asked for and nobody implements -> times called."""
        return {name: self.calls.get(name, 0) for name in self._asked if not self.knows(name)}

    @property
    def stubbed(self) -> dict[str, int]:
        """Symbols that were supplied from outside -> times called."""
        names = [stub.name for stub in self.slots if stub.supplied]
        return {name: self.calls.get(name, 0) for name in names}

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
            found = self._known(variable) if variable else None
            if found is None:
                variable = None
                found = self._new_stub(name, variable=not called)
            self._addresses[name] = found
            if variable is not None and self._declared(name) is None:
                self._zeros[found] = name
        return found

    def lacking(self, name: str, layouts: Layouts) -> NotKnown | None:
        """Return what layouts lack for the kernel variable of a name; None: nothing."""
        variable = self._declared(name)
        if variable is None or isinstance(variable.size, int):
            return None
        try:
            with self._kernel.whose.by(layouts):
                variable.size(self._kernel)
        except NotKnown as error:
            return error
        return None

    def stand_in(self, name: str, layouts: Layouts) -> int | None:
        """Return the address of what a module gets for a variable of a structure that it may not read.

        Its own kernel has other members there: reading it stops by the structure's name. None
        where the layouts lack nothing.
        """
        if layouts is self._kernel.whose.own:
            return None
        error = self.lacking(name, layouts)
        if error is None:
            return None
        found = self._stand_ins.get((name, layouts.release))
        if found is None:
            found = self._stand_ins[name, layouts.release] = self._new_stub(name, variable=True)
            self.slots[-1].lacking = error
        return found

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
        stub = self._stub_of(name) if name in self._addresses else None
        if stub is None:
            if name in self._addresses or self._declared(name) is not None:
                raise ValueError(f"kernel symbol {name!r} is a variable or guest code")
            self._addresses[name] = self._new_stub(name)
            stub = self.slots[-1]
        stub.supplied = True
        if prototype is not None and callable(behaviour):
            given = behaviour
            parse(prototype)  # now, not at the first call
            stub.function = Function(prototype, lambda _kernel, *args: given(*args))
            stub.callback = None
            return
        stub.callback = behaviour if callable(behaviour) else _constant(behaviour)
        stub.parameters = _positional(stub.callback)

    def _new_stub(self, name: str, *, variable: bool = False) -> int:
        """Return the address of a new stub; one for a variable has room for its members' names."""
        room = self._image.stubs
        address = room.start + len(self.slots) * SLOT
        if address >= room.end:
            what = "kernel symbols"
            raise AllocationError(what, SLOT, (room,), "the image has no room for more")
        stub = KernelStub(name, FUNCTIONS.get(name))
        wide = variable and stub.function is None and address < room.start + WIDE_UNTIL
        self.slots += [stub] * (WIDE if wide else 1)
        self._image.write(address, self._emulation.ret)
        return address

    def _known(self, variable: Data) -> int | None:
        """Return the address of a new variable; None: of a structure that this kernel has not."""
        try:
            # It is the kernel's own, for whomever it is asked first.
            with self._kernel.whose.by(None):
                return self._variable(variable)
        except NotKnown:
            self._lacking.add(variable.name)
            self._asked[variable.name] = None
            return None

    def _variable(self, variable: Data) -> int:
        size = align_up(_size(variable, self._kernel), 16)
        if variable.read is not None:
            size = align_up(size, PAGE)
        if variable.percpu:
            base = self._percpu.place(variable.name, size)
        else:
            align = (
                variable.align if isinstance(variable.align, int) else variable.align(self._kernel)
            )
            base = align_up(self._variables_end, PAGE if variable.read else align)
            room = self._image.variables
            if base + size > room.end:
                what = "kernel variables"
                raise AllocationError(what, size, (room,), "the image has no room for more")
            self._variables_end = base + size
        # The address must be known before: contents may point at the variable itself.
        self._addresses[variable.name] = base
        for _ in self._percpu.on_each() if variable.percpu else (None,):
            contents = b"" if variable.fill is None else variable.fill(self._kernel)
            address = self._percpu.address(base) if variable.percpu else base
            self._kernel.memory.write(address, contents.ljust(size, b"\0"))
        if variable.read is not None:
            for cpu in self._kernel.cpus:
                cpu.watch(base, partial(variable.read, self._kernel))
        return base

    def _stub_of(self, name: str) -> KernelStub | None:
        return self.stub_around(self._addresses[name])

    # By address ----------------------------------------------------------------------------

    @property
    def stubs(self) -> Interval:
        """Where the stubs of kernel functions lie."""
        return self._image.stubs

    def stub_around(self, address: int) -> KernelStub | None:
        """Return the stub that an address lies in, or None."""
        if address not in self._image.stubs:
            return None
        index = (address - self._image.stubs.start) // SLOT
        return self.slots[index] if index < len(self.slots) else None

    def prototype_at(self, address: int) -> Prototype | None:
        """Return what the kernel function whose stub is at `address` is called with, if known."""
        stub = self.stub_around(address)
        if stub is None or stub.function is None or (address - self._image.stubs.start) % SLOT:
            return None
        return stub.function.prototype

    def zeros_at(self, address: int) -> str | None:
        """Return the unknown symbol for which there is zeroed memory at `address`, or None."""
        return self._zeros.get(address)

    def name_at(self, address: int) -> str | None:
        """Return the kernel symbol at or around `address`, for messages."""
        if (found := self._in_stub(address)) is not None:
            return found[0]
        for name, start in self._addresses.items():
            if start == address:
                return name
        return "the kernel image" if address in self._image.interval else None

    def unknown_at(self, address: int) -> str | None:
        """Return the name (and offset) where `address` belongs to a symbol that nobody implements."""
        found = self._in_stub(address)
        if found is None or found[1].function is not None or found[1].callback is not None:
            return None
        return found[0]

    def originals(self, address: int) -> list[int]:
        """Return the symbols' addresses that `address` may be a copy of, and are not per-cpu.

        Something in the image was taken for a per-cpu variable: by this CPU, or another one.
        """
        number = self._kernel.cpu.number
        offsets = [self._percpu.offset, *self._percpu.offsets[:number]]
        offsets += self._percpu.offsets[number + 1 :]
        found = ((address - offset) & ADDRESS_MASK for offset in offsets)
        return [at for at in found if self._image.interval.start <= at < self._variables_end]

    def _in_stub(self, address: int) -> tuple[str, KernelStub] | None:
        """Return the name of a stub that an address lies in, with how far in, and the stub."""
        stub = self.stub_around(address)
        if stub is None:
            return None
        start = index = (address - self._image.stubs.start) // SLOT
        while start and self.slots[start - 1] is stub:
            start -= 1
        offset = (index - start) * SLOT + (address - self._image.stubs.start) % SLOT
        return stub.name + (f"+{offset:#x}" if offset else ""), stub

    # Loads that fail -------------------------------------------------------------------------

    def mark(self) -> SymtabMark:
        """Return what loading a module changes, for `roll_back`."""
        return SymtabMark(
            len(self.slots),
            dict(self._addresses),
            self._variables_end,
            self._percpu.mark(),
            dict(self._stand_ins),
        )

    def roll_back(self, mark: SymtabMark) -> None:
        """Forget symbols that came after `mark`."""
        del self.slots[mark.stubs :]
        self._addresses.clear()  # in place: `addresses` is a view of it
        self._addresses.update(mark.addresses)
        self._stand_ins = dict(mark.stand_ins)
        known = set(mark.addresses.values())
        self._zeros = {at: name for at, name in self._zeros.items() if at in known}
        self._variables_end = mark.variables
        self._percpu.roll_back(mark.percpu)


def _size(variable: Data, kernel: Services) -> int:
    return variable.size if isinstance(variable.size, int) else variable.size(kernel)


def _constant(value: int) -> Callable[[], int]:
    return lambda: value


def _positional(callback: Callable[..., object]) -> int:
    """Return how many arguments a callback takes; with *args, six registers."""
    parameters = inspect.signature(callback).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 6
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
