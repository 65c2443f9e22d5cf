# SPDX-License-Identifier: GPL-2.0-or-later
"""A module as its user sees it: what lies where, and functions to call."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from allocator import Allocation
from allocator.types import MemType
from emulator.budget import DEFAULT
from emulator.faults import BadCall
from loader.btf import BadBtf, Btf
from loader.build import Build
from loader.elfview import STT_FUNC
from loader.kernel.image import KernelImage
from loader.layouts import types_of
from loader.loaded import LoadedModule, LoadedSection, State
from loader.module import Loader
from machine.arguments import Argument
from machine.calling import Caller
from machine.drawing import Land, svg
from machine.report import ModuleReport
from machine.typed import Calling, TypedFunctions

if TYPE_CHECKING:
    from kernels.modelled.text.ftrace import Trace
    from kernels.modelled.text.jump_labels import StaticKey
    from kernels.modelled.text.kprobes import Probe
    from kernels.modelled.text.live import LiveText
    from kernels.modelled.text.static_calls import StaticCall
    from kernels.tracing import Hit


class Unloader(Protocol):
    """What takes modules out of memory."""

    def unload(self, module: Module, *, force: bool = False) -> None:
        """Run a module's exit and take it out of memory."""
        ...


class Keeper(Land, Calling, Protocol):
    """The machine that a module is loaded in, as far as modules ask it for something."""

    @property
    def btf(self) -> Mapping[str, Btf]:
        """The types that are known: of the kernel, and of modules by their names."""
        ...

    caller: Caller
    loader: Loader

    @property
    def text(self) -> LiveText:
        """What patches the text of modules while it is live."""
        ...

    @property
    def insmod(self) -> Unloader:
        """What takes modules out of memory."""
        ...


class Module:
    """A loaded module; made by `Machine.load`."""

    def __init__(self, machine: Keeper, loaded: LoadedModule, report: ModuleReport) -> None:
        self._machine = machine
        self._call = machine.caller.call
        self.loaded = loaded
        self.report = report
        self._functions: dict[str, int] = {}
        self._types: tuple[KernelImage, Btf | None] | None = None

    @property
    def name(self) -> str:
        """The module's name."""
        return self.loaded.name

    @cached_property
    def build(self) -> Build:
        """What the module was built for, as far as the kernel that is given and its file tell."""
        assert self.loaded.build is not None
        return self.loaded.build

    @property
    def taints(self) -> str:
        """How the module taints the kernel: letters, as /sys/module/NAME/taint has them."""
        return self.loaded.taints

    @property
    def state(self) -> State:
        """Where in its life the module is."""
        return self.loaded.state

    @property
    def symbols(self) -> Mapping[str, int]:
        """Functions, objects and global symbols: name -> address."""
        return self.loaded.symbols

    @property
    def sections(self) -> Mapping[int, LoadedSection]:
        """Section index -> name, memory type, address, size."""
        return self.loaded.sections

    @property
    def regions(self) -> Mapping[MemType, Allocation]:
        """Memory type -> allocation, of those that are still there."""
        return self.loaded.regions

    @cached_property
    def functions(self) -> TypedFunctions:
        """Its functions by name, with their prototypes where its kernel is given and it has types."""
        machine, loaded = self._machine, self.loaded
        table = loaded.view.symbols
        chosen = np.flatnonzero(table["info"] & 0xF == STT_FUNC).tolist()
        names = {loaded.view.symbol_name(index) for index in chosen}

        def there() -> Mapping[str, int]:
            return {
                name: at
                for name, at in self.symbols.items()
                if name in names and loaded.region_at(at) is not None
            }

        return TypedFunctions(machine, there, lambda: machine.btf.get(self.name))

    def address_of(self, name: str) -> int:
        """Return the address of a function or variable that is still in memory.

        Raises
        ------
        BadCall
            Naming what is like it.
        """
        if self.loaded.state not in (State.LIVE, State.COMING):
            raise BadCall(name, f"module {self.name} is {self.loaded.state.value}")
        if not isinstance(name, str):
            hint = "Machine.call takes an address"
            raise BadCall("call", f"{name!r} is no name of a function", hint)
        address = self.symbols.get(name)
        if address is None:
            close = difflib.get_close_matches(name, self.symbols, 3)
            hint = f"did you mean {', '.join(close)}?" if close else ""
            raise BadCall(name, f"module {self.name} has no such symbol", hint)
        percpu = any(
            s.type is None and 0 <= address - s.address <= s.size for s in self.sections.values()
        )
        if not percpu and self.loaded.region_at(address) is None:
            raise BadCall(name, "lies in init memory, which was freed after init")
        return address

    def call(
        self,
        name: str,
        *args: Argument,
        instructions: int | None = DEFAULT,
        seconds: float | None = DEFAULT,
        returns: str = "u64",
        cpu: int | None = None,
    ) -> int:
        """Call a function of the module and return its result.

        Parameters
        ----------
        name
            A function's symbol, local ones too.
        args
            Ints; bytes or str (copied into guest memory, str NUL-terminated, for the time
            of the call); `Out(n)` for a zeroed buffer that can be read afterwards.
        instructions, seconds
            Limits of this call; None: no limit; by default the machine's.
        returns
            C type of the result: the register is converted to it ("int": signed 32 bits).
        cpu
            Number of the CPU to run on; by default the one that the machine is on.

        Raises
        ------
        BadCall
            Unknown function, or arguments that cannot be passed.
        Fault
            The guest stopped.
        """
        live = self.loaded.state is State.LIVE
        address = self._functions.get(name) if live else None
        if address is None:
            address = self.address_of(name)
            region = self.loaded.region_at(address)
            if region is None or not region.type.is_text:
                raise BadCall(name, "is not a function: it lies in data")
            if live:  # what is in memory now stays until the module goes
                self._functions[name] = address
        return self._call(
            address, *args, instructions=instructions, seconds=seconds, returns=returns, cpu=cpu
        )

    def trace(self, glob: str = "*", **options: Any) -> Trace:
        """Trace this module's functions whose name matches; see `Machine.trace`."""
        text = self._machine.text
        return text.ftrace.start(text.matching(f"{self.name}:{glob}"), **options)

    def probe(self, place: str, handler: Callable[[Hit], object] | None = None) -> Probe:
        """Probe this module at `FUNCTION[+OFFSET]`; see `Machine.probe`."""
        text = self._machine.text
        return text.kprobes.add(text.place(f"{self.name}:{place}"), handler)

    def static_key(self, name: str) -> StaticKey:
        """Return a static key by the name of this module's variable."""
        return self._machine.text.static_key(name, self.address_of(name))

    def static_call(self, name: str) -> StaticCall:
        """Return a static call that this module defines (DEFINE_STATIC_CALL) by its name."""
        return self._machine.text.static_call(name, self.address_of)

    def unload(self, *, force: bool = False) -> None:
        """Run the module's exit and take it out of memory; see `Machine.unload`."""
        self._machine.insmod.unload(self, force=force)

    def _repr_svg_(self) -> str:
        return svg(self._machine, [self])

    def types_over(self, kernel: KernelImage) -> Btf | None:
        """Return the module's own types, which stand on those of its kernel; None: there are none."""
        if self._types is None or self._types[0] is not kernel:
            try:
                self._types = kernel, types_of(self.loaded.view, kernel)
            except BadBtf:
                self._types = kernel, None  # a notice has said so
        return self._types[1]

    def __repr__(self) -> str:
        where = ", ".join(f"{kind.name} {r.interval}" for kind, r in self.regions.items())
        return f"<Module {self.name} ({self.report.arch}, {self.state.value}): {where}>"
