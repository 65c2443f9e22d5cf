# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that watches or changes what functions of a booted kernel do, put together.

It belongs to who looks on, not to the guest: nothing of it is in the guest's memory, so a
snapshot holds none of it. After `restore` or a `fork` what was put in place meanwhile is still
there, what was taken away stays away, and hits and calls that were seen are kept; calls under
way at that time have not returned. What the machine calls for its own needs, such as memory
for arguments, is neither seen nor changed. What stands in a module counts while that module is loaded,
and again when a snapshot brings it back.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from allocator.types import ADDRESS_MASK
from archs.arch import LevelMissing
from emulator.boards.board import Board
from emulator.faults import BadCall
from emulator.registers import NamedRegisters
from kernels.booted.kernel import BootedKernel
from kernels.booted.reports import Report
from kernels.prototypes import Prototype, parse
from kernels.tracing import LIMIT, Hit, OnCall
from loader.btf import Btf
from machine.booted.functions import Function, Functions
from machine.booted.ground import BootedGround
from machine.booted.landing import BootedLanding
from machine.booted.module import BootedModule
from machine.booted.probes import Probe, Probes
from machine.booted.stubs import Redirects, Replacement, Stub
from machine.booted.traces import Trace, Traces
from machine.face import Machine
from machine.typed import TypedFunctions


class Interposing:
    """Stubs, replacements, probes and traces of one machine.

    Parameters
    ----------
    kernel
        Its kernel.
    modules
        Returns the modules that are loaded now, by name.
    read
        Returns guest memory.
    """

    def __init__(
        self,
        kernel: BootedKernel,
        modules: Callable[[], Mapping[str, BootedModule]],
        read: Callable[[int, int], bytes],
    ) -> None:
        self.functions = Functions(kernel, modules)
        self._redirects = Redirects(kernel.guest)
        self._traces = Traces(kernel.guest, self.functions.is_text)
        encoding = kernel.arch.patching
        if encoding is None:
            raise LevelMissing(kernel.arch.name, "patch", "how its instructions are decoded")
        self._probes = Probes(kernel.guest, encoding.kprobes, read)
        self._replacements: list[Replacement] = []
        self.landing = BootedLanding(kernel, self._redirects.slots)

    @property
    def stubbed(self) -> dict[str, int]:
        """Functions that something else stands in for -> times called."""
        return {stub.name: stub.calls for stub in self._redirects.stubs}

    def stub(
        self,
        name: int | str,
        behaviour: int | Callable[..., int | None],
        prototype: str | None,
    ) -> Stub:
        """Let something stand in for a function; see `BootedMachine.stub`."""
        spot = self.functions.entry("stub", name)
        known = self._parsed(str(name), prototype) or self.functions.prototype(spot.function)
        if callable(behaviour):
            stated = prototype is not None
            return self._redirects.python(spot, behaviour, known, stated=stated)
        return self._redirects.constant(spot, behaviour, known)

    def _parsed(self, name: str, prototype: str | None) -> Prototype | None:
        if prototype is None:
            return None
        try:
            return parse(prototype)
        except ValueError as error:
            raise BadCall(name, str(error)) from None

    def replace(self, functions: Mapping[int | str, int | str]) -> Replacement:
        """Let calls of functions go to others; see `BootedMachine.replace`."""
        pairs = [
            (self.functions.entry("replace", old), self.functions.entry("replace", new))
            for old, new in functions.items()
        ]
        stubs: list[Stub] = []
        try:
            for old, new in pairs:
                stubs.append(self._redirects.another(old, new))
        except BadCall:
            for stub in stubs:
                stub.remove()
            raise
        self._replacements = [each for each in self._replacements if each.stands]
        made = Replacement(stubs, [new for _, new in pairs])
        self._replacements.append(made)
        return made

    def probe(
        self, place: int | str, handler: Callable[[Hit], object] | None, limit: int = LIMIT
    ) -> Probe:
        """Put a probe at an instruction; see `BootedMachine.probe`."""
        return self._probes.add(self.functions.spot("probe", place), handler, limit)

    def trace(
        self,
        *patterns: str,
        limit: int = LIMIT,
        on_entry: OnCall | None = None,
        on_exit: OnCall | None = None,
    ) -> Trace:
        """Trace functions; see `BootedMachine.trace`."""
        found: list[Function] = []
        for pattern in patterns:
            found += self.functions.matching(pattern)
        title = ", ".join(patterns)
        return self._traces.start(title, found, limit=limit, on_entry=on_entry, on_exit=on_exit)

    def stop(self) -> None:
        """Take everything away that looks on or stands in for something."""
        for stub in self._redirects.stubs:
            stub.remove()
        for replacement in self._replacements:
            replacement.stop()
        for probe in self._probes.all:
            probe.remove()
        for trace in self._traces.all:
            trace.stop()

    def restored(self) -> None:
        """Forget the calls under way: the machine is another now."""
        self._traces.forget()
        self.landing.restored()

    def unloading(self, module: BootedModule) -> None:
        """Refuse that a module goes that calls of others are led to; BadCall."""
        for replacement in self._replacements:
            for stub, target in replacement.pairs:
                if target.function.module is module and stub.spot.function.module is not module:
                    reason = f"calls of {stub.name} are led to it"
                    raise BadCall(module.name, reason, "stop the replacement first")


class Registers:
    """The registers of a machine, for handlers of probes, stubs and traces.

    Parameters
    ----------
    board
        Its computer.
    """

    def __init__(self, board: Board) -> None:
        self._board = board

    def read(self, name: str) -> int:
        """Return a register by the emulator's name for it."""
        self._check(name)
        return self._board.get(name)

    def write(self, name: str, value: int) -> None:
        """Set a register; the program counter is none that counts in a handler."""
        self._check(name)
        self._board.set(name, value & ADDRESS_MASK)

    def _check(self, name: str) -> None:
        try:
            self._board.number(name)
        except AttributeError:
            raise BadCall(name, f"{self._board.arch.name} has no such register") from None


class Interposed(Machine):
    """A machine whose functions can be watched and changed, from outside."""

    interposing: Interposing
    kernel: BootedKernel

    @property
    @abc.abstractmethod
    def modules(self) -> dict[str, BootedModule]:
        """The modules that were loaded, by name."""

    @property
    def cpu(self) -> Registers:
        """The registers of the CPU, for handlers: `read(name)`, `write(name, value)`."""
        return Registers(self.kernel.board)

    @property
    def ground(self) -> BootedGround:
        """Its memory, for those who watch it."""
        return BootedGround(self.kernel, self.interposing.functions, self.modules)

    @property
    def registers(self) -> NamedRegisters:
        """The registers of the CPU."""
        return self.kernel.board.every

    @property
    def uc(self) -> Any:
        """The Unicorn object behind the CPU."""
        return self.kernel.board.uc

    @property
    def landing(self) -> BootedLanding:
        """Where guest code lands that calls Python."""
        return self.interposing.landing

    @property
    def warnings(self) -> list[Report]:
        """What the kernel warned of (WARN) since it booted: where, and who called it."""
        return self.kernel.warnings

    @property
    def btf(self) -> dict[str, Btf]:
        """The types that are known: of `vmlinux`, and of modules by their names."""
        return self.interposing.functions.btf

    @cached_property
    def functions(self) -> TypedFunctions:
        """The kernel's functions by name, with prototypes where it has types."""
        kernel = self.kernel
        return TypedFunctions(self, lambda: kernel.symbols, lambda: kernel.standing.types)

    @property
    def stubbed(self) -> dict[str, int]:
        """Functions that were stubbed or replaced and still are -> times called."""
        return self.interposing.stubbed

    def stub(
        self,
        name: int | str,
        behaviour: int | Callable[..., int | None] = 0,
        *,
        prototype: str | None = None,
    ) -> Stub:
        """Let a function return a constant, or what a Python callback does.

        It counts for whoever calls the function, kernel code too, until the result's `remove`
        or the end of a `with` block. Code that the compiler has inlined calls nothing.

        Parameters
        ----------
        name
            A function of the kernel, `MODULE:FUNCTION`, or an address.
        behaviour
            An int to return, or a callable that gets the arguments as ints: by the types of
            `prototype`, else as many as it takes, by the kernel's types where these have the
            function, else one unsigned register per parameter. It may call guest functions and
            read and write memory; what it raises comes out of the call that led here.
        prototype
            What the function takes and returns, as C; None: as the kernel's types say.

        Raises
        ------
        BadCall, PatchRefused
            There is no such function, or the prototype is none.
        """
        return self.interposing.stub(name, behaviour, prototype)

    def replace(self, functions: Mapping[int | str, int | str]) -> Replacement:
        """Let calls of functions go to other functions.

        `functions` maps places (as for `stub`) to places. It lasts until the result's `stop`, or
        the end of a `with` block; meanwhile modules that calls are led to are not unloaded.
        BadCall or PatchRefused where a place is none.
        """
        return self.interposing.replace(functions)

    def probe(
        self,
        place: int | str,
        handler: Callable[[Hit], object] | None = None,
        *,
        limit: int = LIMIT,
    ) -> Probe:
        """Put a probe at an instruction until the result's `remove`, or as a context manager.

        Parameters
        ----------
        place
            `FUNCTION[+OFFSET]` of the kernel, `MODULE:FUNCTION[+OFFSET]`, or an address.
        handler
            Called at each hit; it may set registers (`cpu`), call guest functions, and remove
            the probe.
        limit
            Hits to keep; further ones are counted only.

        Raises
        ------
        BadCall, PatchRefused
            No such place, or no instruction begins there.
        """
        return self.interposing.probe(place, handler, limit)

    def trace(
        self,
        pattern: str,
        *more: str,
        limit: int = LIMIT,
        on_entry: OnCall | None = None,
        on_exit: OnCall | None = None,
    ) -> Trace:
        """Trace functions until the result's `stop`, or as a context manager.

        Parameters
        ----------
        pattern, more
            `MODULE`, `MODULE:GLOB`, or `GLOB` for functions of the kernel itself.
        limit
            Calls to keep; further ones are counted only.
        on_entry, on_exit
            Called with each call as it begins and as it has returned; they may call guest
            functions.

        Raises
        ------
        BadCall, PatchRefused
            No such module, no function that matches, or too many do.
        """
        return self.interposing.trace(
            pattern, *more, limit=limit, on_entry=on_entry, on_exit=on_exit
        )
