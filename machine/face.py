# SPDX-License-Identifier: GPL-2.0-or-later
"""What every machine can do, whatever kernel answers in it.

`Machine(...)` makes the right one: a kernel that is given is booted, and without one, or with
`modelled=True`, the modelled kernel answers.

Long because it is nothing but what can be asked of a machine, each with what it promises.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self

from archs import Arch
from emulator.faults import BadCall
from emulator.registers import NamedRegisters
from kernels.log import LogLine
from kernels.tracing import (
    LIMIT,
    AnyProbe,
    CallTrace,
    Hit,
    OnCall,
    PatchRefused,
    TracedCall,
    TraceSite,
    UntilStopped,
)
from loader.btf import Btf
from loader.depends import ModuleTree
from loader.files import ModuleFile
from loader.loaded import LoadedSection, State
from machine.arguments import Argument
from machine.callbacks import Callback, Callbacks, Landing
from machine.control import Control, Handler
from machine.cores import CoreFile
from machine.coverage import Coverage, Executing
from machine.memorytrace import LIMIT as MEMORY_LIMIT
from machine.memorytrace import MemoryTrace
from machine.ptdump import PageTables
from machine.rounds import Rounds
from machine.sanitizing import Sanitizer
from machine.typed import TypedFunction, TypedFunctions
from machine.typedcalls import Call, Listening, OnTyped, call_of
from machine.types import GuestType, Types, View
from machine.watching import Touch, Watch, place_of

_MODELLED = ("machine.machine", "ModelledMachine")
_SERVER = ("machine.gdb.server", "Server")
_BOOTED = ("machine.booted.machine", "BootedMachine")
_DUMPED = ("machine.booted.dumped", "DumpedMachine")


class AnyModule(Protocol):
    """A module that a kernel has loaded."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def state(self) -> State:
        """Where in its life it is."""
        ...

    @property
    def taints(self) -> str:
        """How it taints the kernel: letters, as /sys/module/NAME/taint has them."""
        ...

    @property
    def symbols(self) -> Mapping[str, int]:
        """Functions, objects and global symbols: name -> address."""
        ...

    @property
    def sections(self) -> Mapping[int, LoadedSection]:
        """Section index -> name, memory type, address, size."""
        ...

    def address_of(self, name: str) -> int:
        """Return the address of a function or variable that is still in memory; BadCall."""
        ...

    def call(
        self,
        name: str,
        *args: Argument,
        instructions: int | None = ...,
        seconds: float | None = ...,
        returns: str = ...,
    ) -> int:
        """Call a function of the module and return its result."""
        ...

    @property
    def functions(self) -> TypedFunctions:
        """Its functions by name, with prototypes where types are known."""
        ...

    def unload(self, *, force: bool = False) -> None:
        """Take it out."""
        ...


class Machine(abc.ABC):
    """A kernel in an emulated computer, and the modules that it has loaded.

    Parameters
    ----------
    arch
        A name (`x86_64`, `arm64`, `riscv64`, or an alias) or a record; None: `kernel` tells it.
    kernel
        The kernel that modules are for: an image, a package or a tree, as `execmem kernel` takes
        it, or a `KernelImage`. It is booted, and its own loader takes modules
        (`machine.booted.machine.BootedMachine` has the other parameters).
    core
        A dump of the kernel's memory, an ELF core: it is what it was there
        (`machine.booted.dumped.DumpedMachine` has the other parameters).
    modelled
        Let the modelled kernel answer, with the facts of `kernel`
        (`machine.machine.ModelledMachine` has the other parameters).
    """

    arch: Arch

    def __new__(
        cls,
        _arch: object = None,
        *,
        kernel: object = None,
        core: object = None,
        modelled: bool = False,
        **_options: object,
    ) -> Self:
        """Return a machine of the kind that is asked for."""
        if cls is not Machine:
            return super().__new__(cls)
        home, name = _BOOTED if kernel is not None and not modelled else _MODELLED
        if core is not None:
            home, name = _DUMPED
        kind: type[Self] = getattr(import_module(home), name)
        return super().__new__(kind)

    def __init__(
        self,
        arch: str | Arch | None = None,
        *,
        kernel: Any = None,
        core: Any = None,
        modelled: bool = False,
        **options: Any,
    ) -> None:
        raise NotImplementedError  # each kind has its own

    @classmethod
    def resume(cls, path: str | Path, *, kernel: Any = None, **options: Any) -> Machine:
        """Return the machine that `save` wrote to a file.

        Parameters
        ----------
        path
            The file; it may come from anybody, nothing of it is executed on the host.
        kernel
            Its kernel, which the file does not hold, as for `Machine`; None: it is kept booted
            here, from a time before.
        options
            `root`, `keep`, `on_boot` and `on_console`, as for a machine whose kernel is booted.

        Raises
        ------
        BadSnapshot
            The file is damaged, another version wrote it, or it is of another kernel.
        BadKernel
            The kernel is not kept here, and was not given.
        """
        found: Machine = import_module(_BOOTED[0]).open_saved(path, kernel, options)
        return found

    @abc.abstractmethod
    def save(self, path: str | Path) -> None:
        """Write the machine to a file, for `resume`."""

    @abc.abstractmethod
    def core(
        self, path: str | Path, *, on_progress: Callable[[int, int], object] | None = None
    ) -> CoreFile:
        """Write an ELF core of the machine: its memory by both addresses, its registers."""

    @abc.abstractmethod
    def page_tables(self) -> PageTables:
        """Return the kernel's page tables as they are now, as its ptdump prints them; `machine.ptdump`."""

    @property
    @abc.abstractmethod
    def models(self) -> str:
        """What answers modules."""

    @property
    @abc.abstractmethod
    def tree(self) -> ModuleTree | None:
        """Where modules are looked up by name."""

    @property
    @abc.abstractmethod
    def modules(self) -> Mapping[str, AnyModule]:
        """The modules that are there, by name."""

    @property
    @abc.abstractmethod
    def log(self) -> Sequence[LogLine]:
        """The kernel log."""

    @abc.abstractmethod
    def load(
        self, module: str | Path | bytes | ModuleFile, /, *, init: bool = True, **params: object
    ) -> AnyModule:
        """Load a module with the modules it depends on, and run their init."""

    @abc.abstractmethod
    def call(
        self,
        address: int,
        *args: Argument,
        instructions: int | None = ...,
        seconds: float | None = ...,
        returns: str = ...,
    ) -> int:
        """Call the guest function at `address`."""

    @abc.abstractmethod
    def alloc(self, contents: bytes | int) -> int:
        """Return the address of guest memory that holds `contents`, or that many zeros."""

    @abc.abstractmethod
    def free(self, address: int) -> None:
        """Free what `alloc` returned."""

    @abc.abstractmethod
    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes of guest memory."""

    @abc.abstractmethod
    def write(self, address: int, data: bytes) -> None:
        """Store `data` in guest memory."""

    @abc.abstractmethod
    def user(self, contents: bytes | int) -> AbstractContextManager[int]:
        """Give user memory that holds `contents`, or that many zeros, for a while."""

    @abc.abstractmethod
    def sleep(self, seconds: float) -> None:
        """Let guest time pass, and what is due meanwhile happen."""

    @abc.abstractmethod
    def stub(
        self,
        name: str,
        behaviour: int | Callable[..., int | None] = ...,
        *,
        prototype: str | None = ...,
    ) -> object:
        """Let a constant or a Python function answer calls of a kernel function."""

    @abc.abstractmethod
    def replace(self, functions: Mapping[int | str, int | str]) -> UntilStopped:
        """Let calls of functions go to other functions."""

    @abc.abstractmethod
    def probe(self, place: int | str, handler: Callable[[Hit], object] | None = ...) -> AnyProbe:
        """Put a probe at an instruction."""

    @abc.abstractmethod
    def trace(
        self,
        pattern: str,
        *more: str,
        limit: int = ...,
        on_entry: OnCall | None = ...,
        on_exit: OnCall | None = ...,
    ) -> CallTrace:
        """Trace functions."""

    # Looking on ---------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def registers(self) -> NamedRegisters:
        """The registers of the CPU that runs: `registers["rax"]`, `registers["rax"] = 1`.

        In handlers they are those of the guest under way; between calls they count for nothing,
        because a call sets its own. System registers are among them (`emulator.registers`).
        """

    @property
    @abc.abstractmethod
    def uc(self) -> Any:
        """The Unicorn object behind the CPU that runs, for what nothing here has.

        Reading registers and memory, and hooks of your own, are safe; hooks count for code that is
        translated after them (`uc.ctl_flush_tb()` between calls). Addresses of memory are physical.
        Never start or stop it (`emu_start`, `emu_stop`), map memory, or restore contexts: the
        machine would go on with what is no longer so.
        """

    @property
    @abc.abstractmethod
    def ground(self) -> Executing:
        """Its memory, and what it executes, for those who look on."""

    @cached_property
    def coverages(self) -> list[Coverage]:
        """Those who note what is executed, now."""
        return []

    def typed(self, call: TracedCall, *, strings: bool = False) -> Call:
        """Return a call that was traced with arguments by name and type, as C declares them.

        Parameters
        ----------
        strings
            Whether text that arguments point at is kept: as it is now, so at the call's entry.
        """
        owner, name = call.site.module, call.function
        module = self.modules.get(owner)
        functions = self.functions if module is None else module.functions
        function = functions.get(name)
        if function is None:
            function = TypedFunction(
                name=name, address=call.site.entry, prototype=None, machine=self
            )
        return call_of(function, call, strings=strings)

    def on(
        self,
        function: str | TypedFunction,
        on_entry: OnTyped | None = None,
        on_exit: OnTyped | None = None,
        *,
        limit: int = LIMIT,
    ) -> Listening:
        """Call Python when a function of the guest is called, and when it has returned.

        It lasts until the result's `stop`, or to the end of a `with` block.

        Parameters
        ----------
        function
            `[MODULE:]FUNCTION`, or one of `functions`.
        on_entry, on_exit
            Called with the call (`machine.typedcalls.Call`): `call["name"]`, `call.result`. They may
            call guest functions.
        limit
            Calls to keep in the result's `calls`; further ones are told of, but not kept.

        Raises
        ------
        BadCall, PatchRefused
            There is no such function, or calls of it cannot be seen.
        """
        place = self._function_place(function)
        found = Listening(limit)

        def began(traced: TracedCall) -> None:
            call = self.typed(traced, strings=True)
            found.began(call)
            if on_entry is not None:
                on_entry(call)

        def ended(traced: TracedCall) -> None:
            call = found.ended(traced)
            if on_exit is not None and call is not None:
                on_exit(call)

        def hit(seen: Hit) -> None:
            title, _, name = place.rpartition(":")
            site = TraceSite(title, name, seen.address, seen.address)
            began(TracedCall(site, seen.arguments, 0))

        try:
            found.source = self.trace(place, limit=1 << 62, on_entry=began, on_exit=ended)
        except PatchRefused:
            if on_exit is not None:
                raise
            found.source = self.probe(place, hit)  # where nothing tells of returns
        return found

    def trace_memory(
        self, function: str | TypedFunction | None = None, *, limit: int = MEMORY_LIMIT
    ) -> MemoryTrace:
        """Note loads and stores while a function is under way, those of what it calls included.

        Until the result's `stop`, or as a context manager. Interrupts that come meanwhile count, too.

        Parameters
        ----------
        function
            As for `on`; a function of which returns are seen. None: whatever is called meanwhile.
        limit
            Accesses to keep; further ones are counted only.

        Raises
        ------
        BadCall, PatchRefused
            As `on`; or in the middle of code that would not tell.
        """

        def on(entered: OnTyped, left: OnTyped) -> Listening:
            assert function is not None
            return self.on(function, entered, left, limit=0)

        return MemoryTrace(self.ground, self.symbolize, None if function is None else on, limit)

    def _function_place(self, function: str | TypedFunction) -> str:
        """Return `[MODULE:]FUNCTION`, with the module where the kernel itself has none such."""
        if isinstance(function, str):
            title, _, name = function.rpartition(":")
            if title or (name in self.functions and self.ground.text()):
                return function
            having = [each for each in self.modules.values() if name in each.symbols]
        else:
            at, name = function.address, function.name
            having = [each for each in self.modules.values() if each.symbols.get(name) == at]
            if not having and self.ground.text():
                return name
        if len(having) == 1:
            return f"{having[0].name}:{name}"
        if having:
            names = ", ".join(sorted(each.name for each in having))
            raise BadCall(name, f"several modules have it: {names}")
        hint = "" if self.ground.text() else "functions of this kernel are Python: stub() has them"
        raise BadCall(name, "no module has such a function", hint)

    def coverage(self, *, kernel: bool = False) -> Coverage:
        """Note what modules execute, until the result's `stop` or as a context manager.

        Blocks and edges; drcov, lcov and JSON are made of them (`machine.covered`).

        Parameters
        ----------
        kernel
            Whether what the kernel itself executes counts, too. Each block that is noted takes
            about a microsecond, so that loops of the kernel take long.

        Raises
        ------
        BadCall
            In the middle of code that would not tell.
        """
        return Coverage(self.ground, self.coverages, kernel=kernel)

    def watch(
        self,
        what: int | str | View,
        size: int | None = None,
        kinds: str = "rw",
        callback: Callable[[Touch], object] | None = None,
        *,
        limit: int = LIMIT,
    ) -> Watch:
        """Watch memory to the byte until the result's `stop`, or as a context manager.

        Parameters
        ----------
        what
            An address, `[MODULE:]NAME[+OFFSET]`, a view (`view.at_("member")`) or a pointer.
        size
            Bytes; None: those of the type.
        kinds
            `r`, `w` or `rw`.
        callback
            Called with each access, of a store before it is done. It looks at registers and
            memory; it calls no guest functions.
        limit
            Accesses to keep; further ones are counted only.

        Raises
        ------
        BadCall
            There is no such memory, or code under way would not tell.
        """
        address, found = place_of(self, what, size)
        return Watch(self, self.ground, address, found, kinds, limit, callback)

    @abc.abstractmethod
    def sanitize(self, *checks: str) -> Sanitizer:
        """Put the machine under checks (`machine.sanitizing.CHECKS`), all where none is given.

        They last until the result's `stop`, or as a context manager. What they find is a `Fault`
        where it stops the guest, and is in the result's `findings`.
        """

    @abc.abstractmethod
    def control(self, handler: Handler) -> AbstractContextManager[Control]:
        """Have each call into the guest under control, until the end of a `with` block.

        It stops where it begins, at breakpoints and the like; then `handler(stopped, control)` is
        called, and returns how to go on (`machine.control`). What the machine calls for its own
        needs, such as memory for arguments, runs freely.

        Raises
        ------
        BadCall
            A call is under way, or somebody has it under control already.
        """

    def gdb(self, port: int = 0, **options: Any) -> Any:
        """Return a server that gdb connects to: a context manager (`machine.gdb.server.Server`).

        What is called in its `with` block is debugged: the first call waits for a gdb.

        Parameters
        ----------
        port
            Of this host; 0: any that is free, which the result's `port` is.
        options
            `path`, `host`, `at`, `init` and what else `Server` takes.

        Raises
        ------
        CannotListen
            The port is taken.
        """
        return getattr(import_module(_SERVER[0]), _SERVER[1])(self, port, **options)

    def rounds(self, spans: Iterable[tuple[int, int]], **options: Any) -> Rounds:
        """Return what does the same thing again and again, each time on the machine as it is now.

        Parameters
        ----------
        spans
            Code whose blocks are noted: first address, and end.
        options
            As of `machine.rounds.Rounds`.

        Raises
        ------
        BadCall
            A call is under way, or the machine cannot be put back.
        """
        del spans, options
        raise BadCall("rounds", f"{self.models} cannot be put back after a call")

    # Types --------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def btf(self) -> Mapping[str, Btf]:
        """The types that are known: of `vmlinux`, and of modules by their names."""

    @cached_property
    def types(self) -> Types:
        """Types by name, and values of them."""
        return Types(self, lambda: self.btf, f"no types are known of {self.models}")

    def type(self, name: str, module: str = "") -> GuestType:
        """Return a type by its name as C spells it: `struct list_head`, `u32`, `char *`.

        Parameters
        ----------
        module
            Whose types are meant, where several differ.

        Raises
        ------
        BadCall
            There is none, or several that differ, or no types are known.
        """
        return self.types.find(name, module)

    def view(self, kind: str | GuestType, address: int) -> View:
        """Return the value of a type that is at an address: `view("hid_device", at).rdesc`."""
        return self.types.view(kind, address)

    def new(self, kind: str | GuestType, /, **members: object) -> View:
        """Return a zeroed value of a type in new guest memory, with members set.

        Its memory is the caller's: `free(view.address_)`.
        """
        return self.types.new(kind, members)

    @property
    @abc.abstractmethod
    def functions(self) -> TypedFunctions:
        """The kernel's functions by name, with prototypes where types are known."""

    @property
    @abc.abstractmethod
    def landing(self) -> Landing:
        """Where guest code lands that calls Python."""

    @cached_property
    def callbacks(self) -> Callbacks:
        """Functions of Python that guest code calls, and what they belong to."""
        return Callbacks(self, self.types, self.landing)

    def callback(self, prototype: str | GuestType, function: Callable[..., Any]) -> Callback:
        """Return a function of Python that guest code can call, at its `address`, until `free`.

        Calls of `functions` and structures make their own of any function that they are given where
        a pointer to a function stands. Arguments come as their types say (numbers, pointers);
        what it raises comes out of the call that led here.

        Parameters
        ----------
        prototype
            The type of the function, or of a pointer to it: `irq_handler_t`,
            `machine.type("struct file_operations")["open"].type`.

        Raises
        ------
        BadCall
            It is no such type, something is passed by value, or it takes other arguments.
        """
        return self.callbacks.make(prototype, function)

    def _freed(self, address: int) -> None:
        """Take note that memory is freed: callbacks that belong to it go, too."""
        if "callbacks" in self.__dict__:
            self.callbacks.freed(address)

    @abc.abstractmethod
    def symbolize(self, address: int) -> str | None:
        """Return `name+0xoff/0xsize [module]` of a function, a kernel symbol's name, or None."""

    @abc.abstractmethod
    def disassemble(self, address: int) -> str:
        """Return the instruction at `address` as text; empty where nothing is mapped."""
