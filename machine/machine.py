# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated computer: memory, CPUs, a kernel, and modules that come and go.

This is where the parts meet: execmem gives memory, the loader forms modules in it, the
CPU runs their code, the kernel answers their calls. Whatever a load changed is taken back
when it fails, dependencies included.

CPUs never run at the same time: one runs while nobody lets another one run (`on`, `start`),
so that any interleaving of several can be made, and made again.
Long because it is all that a machine can do, a method each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from allocator import (
    ExecmemError,
    PokeStep,
    Site,
)
from emulator.budget import DEFAULT, Budget
from emulator.cpu import Cpu
from emulator.faults import BadCall, Fault, Stop
from emulator.registers import NamedRegisters
from kernels.log import LogLine
from kernels.modelled.api.algorithms import (
    CLASSES,
    Algorithm,
    CryptoError,
    algorithm,
    registered,
)
from kernels.modelled.api.params import ModuleParameter
from kernels.modelled.api.sched import sleep
from kernels.modelled.api.time import NSEC_PER_SEC
from kernels.modelled.api.user import user_memory
from kernels.modelled.text.ftrace import Replacement, Trace
from kernels.modelled.text.jump_labels import StaticKey
from kernels.modelled.text.kprobes import Probe
from kernels.modelled.text.static_calls import StaticCall
from kernels.registry import Registry
from kernels.tracing import LIMIT, Hit, TracedCall
from loader.btf import Btf
from loader.build import build_of
from loader.depends import ModuleTree
from loader.elfview import VMLINUX
from loader.files import ModuleFile
from loader.gate import Notice, taints_text
from loader.loaded import LoadedModule, State
from machine.arguments import Argument, Out
from machine.computer import Computer
from machine.control import Control, Handler
from machine.controlled import controlled
from machine.cores import CoreFile
from machine.cores import modelled as modelled_core
from machine.device import Device, find_device, instead, no_device
from machine.face import Machine
from machine.ground import ModelledGround, ModelledLanding
from machine.module import Module
from machine.patching import Phase, Way
from machine.ptdump import PageTables
from machine.ptdump import modelled as printed
from machine.repeated import ModelledRounds
from machine.report import ModuleReport
from machine.rounds import Rounds
from machine.sanitized import ModelledSanitizer
from machine.sanitizing import chosen
from machine.thread import Thread
from machine.typed import TypedFunction, TypedFunctions
from machine.typedcalls import Listening, OnTyped

_NOT_DATA = (
    "the modelled kernel is Python, and holds functions of it: what timers, work, "
    "threads, files and stubs call"
)


class ModelledMachine(Computer, Machine):
    """An emulated kernel of one architecture, modelled in Python.

    `build` says what the kernel that is given was built for; without one, the modelled kernel.

    Parameters
    ----------
    arch
        A name (`x86_64`, `arm64`, `riscv64`, or an alias) or a record; None: `kernel` tells it.
    kernel
        The kernel that modules are for: an image, a package or a tree, as `execmem kernel` takes
        it, or a `KernelImage`. What it exports, where it lies and how it is configured counts.
    modelled
        Must be True where a kernel is given: the modelled one answers, with its facts.
    design
        How executable memory is managed: a name of `allocator.DESIGNS` or of an installed
        package's design, `default`, a file (`./mine.py`), or a class derived from
        `allocator.Design`.
    text_poke
        False: do without text_poke, as on an architecture that has none; None: as it has.
    kaslr
        Seed of the kernel's random offsets; None: no KASLR.
    root
        Folder that holds `lib/modules/VERSION`, for modules by name and dependencies.
    unknown
        Symbols that neither a module nor the kernel has: `fault` gives them a stub that
        stops the guest when it is called; `zero` lets functions return 0 and variables be
        zeroed memory, and logs the first call of each; `trace` logs every call with the
        argument registers; `refuse` refuses to load the module unless its build vouched
        for them.
    checks
        How strict relocation is: `hardware` refuses what a field cannot hold, `kernel`
        checks what the kernel's loader checks and truncates the rest.
    errata
        CPU errata that the loader works around, by number.
    stub_sections
        Add PLT and GOT sections to modules that were built without.
    memory
        Bytes of physical memory; untouched memory costs nothing.
    cpus
        How many CPUs (harts) there are, 1 to 64. CPU 0 does everything that is not told
        otherwise.
    kasan
        Check every access to kmalloc memory to the byte; what a module has not freed when it
        goes is in `leaks`.
    heap_limit
        Bytes that the guest may allocate; beyond, it gets no memory.
    seed
        What the guest's random numbers follow, and the little by which looks at a clock differ.
    force
        Load modules as `modprobe --force` does: what they were built for does not count, and
        the kernel is tainted. The attribute of this name may be changed at any time.
    constructors
        Model a kernel with CONFIG_CONSTRUCTORS, which runs a module's before its init.
    """

    sanitizer: ModelledSanitizer | None = None

    # Modules -------------------------------------------------------------------------------

    def load(
        self, module: str | Path | bytes | ModuleFile, /, *, init: bool = True, **params: object
    ) -> Module:
        """Load a module with the modules it depends on, and run their init.

        Parameters
        ----------
        module
            A path, the file's bytes (as `ModuleFile` with its name), or a name that is
            looked up under `root`.
        init
            False: stop before init; the module stays in the state COMING.
        params
            Module parameters, as `insmod` takes them.

        Raises
        ------
        LoadError
            The module or one that it needs was refused; everything is as before.
        Fault
            Its init stopped; everything is as before. Where it stopped only because the
            kernel has no such symbol, the module stays, in the state COMING, and
            `Module.report.init_fault` says where.
        """
        try:
            return self.modprobe.load(module, init=init, params=params)
        finally:
            self.execmem.quiet()

    @property
    def modules(self) -> dict[str, Module]:
        """The modules that are there, by name."""
        return self.insmod.modules

    @property
    def leaks(self) -> list[str]:
        """What modules have not freed that are gone, where `kasan` checks that."""
        return self.insmod.leaks

    @property
    def tree(self) -> ModuleTree | None:
        """Where modules are looked up by name."""
        return self.modprobe.tree

    @property
    def force(self) -> bool:
        """Whether modules are loaded as `modprobe --force` does."""
        return self.loader.gate.force

    @force.setter
    def force(self, force: bool) -> None:
        self.loader.gate.force = force

    @property
    def taints(self) -> str:
        """How modules have tainted the kernel: letters, as /proc/sys/kernel/tainted has bits."""
        return taints_text(self.loader.gate.taints)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What was assumed about the modules that were loaded, in order."""
        return tuple(self.loader.gate.notices)

    def page_tables(self) -> PageTables:
        """Return the kernel's page tables as they are now, as that of its architecture prints them."""
        return printed(self.memory, self.arch)

    @property
    def models(self) -> str:
        """What answers modules: which kernel is modelled, and whose facts apply to it."""
        model = build_of(None, arch=self.arch).title
        if self.loader.gate.kernel is None:
            return model
        return f"{model}, with the facts of {self.build.title}"

    def _new_module(self, loaded: LoadedModule, report: ModuleReport) -> Module:
        return Module(self, loaded, report)

    @property
    def btf(self) -> dict[str, Btf]:
        """The types that are known: of `vmlinux`, and of modules by their names."""
        kernel = self.loader.gate.kernel
        if kernel is None or kernel.btf is None:
            return {}
        found = {VMLINUX: kernel.btf}
        own = {name: module.types_over(kernel) for name, module in self.modules.items()}
        return found | {name: types for name, types in own.items() if types is not None}

    @cached_property
    def functions(self) -> TypedFunctions:
        """The kernel's functions by name, with prototypes where a kernel is given."""
        return TypedFunctions(self, lambda: self.kernel.symbols, lambda: self.btf.get(VMLINUX))

    @property
    def registers(self) -> NamedRegisters:
        """The registers of the CPU that runs."""
        return self.cpu.registers

    @property
    def uc(self) -> Any:
        """The Unicorn object behind the CPU that runs."""
        return self.cpu.uc

    @cached_property
    def landing(self) -> ModelledLanding:
        """Where guest code lands that calls Python."""
        return ModelledLanding(self.kernel)

    def _changing(self, loaded: LoadedModule) -> None:
        """Let those who note what is executed decide whose it is, before a module's memory goes."""
        for coverage in self.coverages:
            if loaded.name in self.modules and loaded.state is not State.COMING:
                coverage.settle()  # its init memory is no more
            else:
                coverage.settle(loaded.name, loaded.view, loaded.sections)

    @property
    def ground(self) -> ModelledGround:
        """Its memory, for those who watch it."""
        serving, loaded = self.kernel.serving, self.loader.modules
        return ModelledGround(self.arch, self.memory, self.cpus, serving, loaded)

    def sanitize(self, *checks: str) -> ModelledSanitizer:
        """Put the machine under checks until the result's `stop`, or as a context manager.

        Parameters
        ----------
        checks
            Names of `machine.sanitizing.CHECKS`; all where none is given. Others than these are
            switched off.

        Raises
        ------
        BadCall
            There is no such check, or a call is under way.
        AllocationError
            There is no memory for guarded objects.
        """
        names = chosen(checks)
        if self.calls.stack.depth:
            raise BadCall("sanitize", "a call is under way", "begin before the call")
        if self.sanitizer is not None:
            self.sanitizer.stop()
        made = ModelledSanitizer(
            names, self.kernel, self.memory, self.caller, self.insmod, self.explainer
        )
        made.at_end(lambda: setattr(self, "sanitizer", None))
        self.sanitizer = made
        return made

    def control(self, handler: Handler) -> AbstractContextManager[Control]:
        """Have each call into the guest under control; see `machine.control`."""
        return controlled(self, handler)

    def parameters_of(self, loaded: LoadedModule) -> tuple[ModuleParameter, ...]:
        """Return what a module's `__param` table declares."""
        return self._parameters.of(loaded)

    def unload(self, module: Module, *, force: bool = False) -> None:
        """Run a module's exit and take it out of memory (delete_module).

        Parameters
        ----------
        force
            Also where the guest holds references to it, or it has an init and no exit (taint R).

        Raises
        ------
        LoadError
            Others use it, or it is not to be taken out without force.
        """
        self.insmod.unload(module, force=force)

    def save(self, _path: str | Path) -> None:
        """Refuse to write the machine to a file: much of what it knows is Python's own.

        Raises
        ------
        BadCall
            Always; a machine whose kernel is booted can be saved.
        """
        raise BadCall("save", _NOT_DATA, "a machine whose kernel is booted (kernel=) can be saved")

    def core(
        self, path: str | Path, *, on_progress: Callable[[int, int], object] | None = None
    ) -> CoreFile:
        """Write an ELF core of the machine: every mapped page by both addresses, each CPU.

        What of the kernel is Python (tasks, lists, its log) is in no memory and so in no core; the
        result's `lacks` says so.

        Raises
        ------
        ExecmemError
            The file cannot be written.
        """
        return modelled_core(path, self.arch, self.memory, self.cpus, on_progress)

    def rounds(self, spans: Iterable[tuple[int, int]], **options: Any) -> Rounds:
        """Return what does the same again and again, on the machine as it is now; `Machine.rounds`."""
        return ModelledRounds(self, spans, **options)

    # Calls -----------------------------------------------------------------------------------

    def budget(
        self,
        *,
        instructions: int | None = DEFAULT,
        seconds: float | None = DEFAULT,
    ) -> AbstractContextManager[Budget]:
        """Let everything meanwhile take from one budget, as if it were one call from outside.

        Every call from outside (`load`, `unload`, `call`, `idle`, `sleep`, a step of a thread)
        does so for itself, and for whatever it brings: the init of dependencies, callbacks,
        timers, work, threads. When the budget is spent the call ends in a Fault, and nothing
        runs on. Inside of another budget there is never more than that one has left.

        Parameters
        ----------
        instructions, seconds
            Limits; None: none. By default the machine's, or those of the budget around.
        """
        return self.limits.whole(instructions, seconds)

    @property
    def instructions(self) -> int | None:
        """Most instructions of a call from outside that has no limit of its own; None: no limit."""
        return self.limits.instructions

    @instructions.setter
    def instructions(self, most: int | None) -> None:
        self.limits.instructions = most

    @property
    def seconds(self) -> float | None:
        """Most time of a call from outside that has no limit of its own; None: no limit."""
        return self.limits.seconds

    @seconds.setter
    def seconds(self, most: float | None) -> None:
        self.limits.seconds = most

    def call(
        self,
        address: int,
        *args: Argument,
        instructions: int | None = DEFAULT,
        seconds: float | None = DEFAULT,
        returns: str = "u64",
        cpu: int | None = None,
    ) -> int:
        """Call the guest function at `address`, on CPU number `cpu`; see `Module.call`."""
        return self.caller.call(
            address, *args, instructions=instructions, seconds=seconds, returns=returns, cpu=cpu
        )

    def idle(self) -> None:
        """Run what is due and nobody waits for: timers, work, threads, RCU callbacks.

        It is done after every call, within its limits. A fault in it goes to the log, and to
        `kernel.oopses`; a limit that is reached is a Fault.
        """
        self.caller.idle()

    def sleep(self, seconds: float) -> None:
        """Let guest time pass, and what is due meanwhile happen; Fault where that stops."""
        with self.budget():
            sleep(self.kernel, int(seconds * NSEC_PER_SEC))

    # CPUs ------------------------------------------------------------------------------------

    @property
    def cpu(self) -> Cpu:
        """The CPU that runs now."""
        return self.calls.stack.cpu

    @property
    def threads(self) -> dict[int, Thread]:
        """The calls that are stepped, by CPU."""
        return self.caller.threads

    @overload
    def on(self, function: int, /) -> AbstractContextManager[Cpu]: ...

    @overload
    def on(
        self,
        function: str | TypedFunction,
        on_entry: OnTyped | None = ...,
        on_exit: OnTyped | None = ...,
        *,
        limit: int = ...,
    ) -> Listening: ...

    def on(
        self,
        function: int | str | TypedFunction,
        on_entry: OnTyped | None = None,
        on_exit: OnTyped | None = None,
        *,
        limit: int = LIMIT,
    ) -> AbstractContextManager[Cpu] | Listening:
        """Be on a CPU meanwhile, where a number is given: calls run there, flushes are its own.

        BadCall when there is no such CPU, or when stop_machine() holds it. Of functions see
        `machine.face.Machine.on`.
        """
        if isinstance(function, int):
            return self.calls.on(function)
        return super().on(function, on_entry, on_exit, limit=limit)

    def start(self, address: int, *args: Argument, cpu: int, returns: str = "u64") -> Thread:
        """Prepare a call of the guest function at `address` on an idle CPU; run it by steps.

        BadCall when there is no such CPU, or something runs on it.
        """
        return self.caller.start(address, *args, cpu=cpu, returns=returns)

    def stop_machine(self) -> AbstractContextManager[None]:
        """Let no CPU but this one run meanwhile."""
        return self.calls.stop_machine()

    # Patching --------------------------------------------------------------------------------

    def poke(
        self,
        address: int,
        data: bytes,
        *,
        expected: bytes | None = None,
        omit: Collection[PokeStep] = (),
        cpu: int | None = None,
    ) -> None:
        """Poke as `Execmem.poke` does, by stores that a CPU executes; PokeError, Fault."""
        self._patcher.poke(address, data, expected=expected, omit=omit, cpu=cpu)

    def patch(
        self,
        address: int,
        new: bytes,
        *,
        expected: bytes | None = None,
        way: Way | None = None,
        force: bool = False,
        on_phase: Callable[[Phase], object] | None = None,
    ) -> None:
        """Replace an instruction that other CPUs may be executing; see `machine.patching`."""
        sites = (Site(address, new, expected),)
        self._patcher.patch(sites, way=way, force=force, on_phase=on_phase)

    def patch_many(
        self,
        sites: Iterable[Site | tuple[int, bytes, bytes | None]],
        *,
        way: Way | None = None,
        force: bool = False,
        on_phase: Callable[[Phase], object] | None = None,
    ) -> None:
        """Replace instructions that other CPUs may be executing, all in the same phases."""
        batch = tuple(Site(*site) for site in sites)
        self._patcher.patch(batch, way=way, force=force, on_phase=on_phase)

    # Memory ----------------------------------------------------------------------------------

    def alloc(self, contents: bytes | int) -> int:
        """Return the address of guest memory (kmalloc) that holds `contents`, or that many zeros."""
        return self.caller.alloc(contents)

    def free(self, address: int) -> None:
        """Free what `alloc` returned."""
        self.caller.free(address)
        self._freed(address)

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes of guest memory; AccessError where it is not readable."""
        return self.caller.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Store `data` in guest memory; AccessError where it is not writable."""
        self.caller.write(address, data)

    def stub(
        self,
        name: str,
        behaviour: int | Callable[..., int | None] = 0,
        *,
        prototype: str | None = None,
    ) -> None:
        """Supply a kernel symbol: a constant result, or a Python callback (see Kernel.supply).

        BadCall where that would change nothing: a loaded module exports it or is linked
        without it, or it is a variable or guest code.
        """
        export = self.loader.symbols.exports.get(name)
        if export is not None:
            hint = "Machine.replace lets calls of a module's function go elsewhere"
            raise BadCall(name, f"module {export.owner} exports it, and others use that", hint)
        if name not in self.kernel.symbols:
            without = [
                m.name for m in self.loader.modules.values() if name in m.view.weak_undefined
            ]
            if without:
                reason = f"{', '.join(sorted(without))} is linked without it, as it may be"
                raise BadCall(name, reason, "supply it before the module is loaded")
        elif name in self.kernel.fixed:
            users = [m.name for m in self.loader.modules.values() if name in m.view.undefined]
            linked = f", to which {', '.join(sorted(users))} is linked" if users else ""
            hint = "Machine.write changes a variable; only functions can be supplied"
            raise BadCall(name, f"is a variable or guest code of the kernel{linked}", hint)
        try:
            self.kernel.supply(name, behaviour, prototype)
        except ValueError as error:  # a variable that nobody asked for yet, or a bad prototype
            raise BadCall(name, str(error)) from None

    # Live text -----------------------------------------------------------------------------

    def trace(
        self,
        pattern: str,
        *more: str,
        limit: int = LIMIT,
        on_entry: Callable[[TracedCall], object] | None = None,
        on_exit: Callable[[TracedCall], object] | None = None,
    ) -> Trace:
        """Trace functions until the result's `stop`, or as a context manager.

        Parameters
        ----------
        pattern, more
            `MODULE` or `MODULE:GLOB`.
        limit
            Calls to keep; further ones are counted only.
        on_entry, on_exit
            Called with each call as it begins and as it has returned.

        Raises
        ------
        BadCall, PatchRefused
            No such module, no function that matches, or somebody else holds one.
        """
        sites = [pair for each in (pattern, *more) for pair in self.text.matching(each)]
        return self.text.ftrace.start(sites, limit=limit, on_entry=on_entry, on_exit=on_exit)

    def probe(self, place: int | str, handler: Callable[[Hit], object] | None = None) -> Probe:
        """Put a probe at an instruction until the result's `remove`, or as a context manager.

        Parameters
        ----------
        place
            An address, or `MODULE:FUNCTION[+OFFSET]`.
        handler
            Called at each hit.

        Raises
        ------
        BadCall, PatchRefused
            No such place, or one that cannot be probed.
        """
        return self.text.kprobes.add(self.text.place(place), handler)

    def replace(self, functions: Mapping[int | str, int | str]) -> Replacement:
        """Let calls of functions go to other functions, as live patching does.

        `functions` maps places (as for `probe`) to places. It lasts until the result's
        `stop`, or the end of a `with` block; PatchRefused where it is not possible.
        """
        return self.text.replace(functions)

    def static_key(self, name: str) -> StaticKey:
        """Return a static key by the name of a variable of the kernel or exported by a module."""
        return self.text.static_key(name, self._variable(name))

    def static_call(self, name: str) -> StaticCall:
        """Return a static call by its name, of the kernel or exported by a module."""
        return self.text.static_call(name, self._variable)

    def _variable(self, name: str) -> int:
        export = self.loader.symbols.exports.get(name)
        if export is not None:
            return export.address
        if not self.kernel.knows(name):
            raise BadCall(name, "neither a module exports it nor has the kernel it")
        return self.kernel.address(name)

    @property
    def registry(self) -> Registry:
        """What modules have registered."""
        return self.kernel.registry

    @property
    def missing(self) -> dict[str, int]:
        """Symbols that modules asked for and nobody implements -> times called."""
        return dict(sorted(self.kernel.missing.items()))

    @property
    def stubbed(self) -> dict[str, int]:
        """Kernel symbols that were supplied with `stub` -> times called."""
        return self.kernel.stubbed

    @property
    def log(self) -> list[LogLine]:
        """The kernel log."""
        return self.kernel.log

    # Algorithms -------------------------------------------------------------------------------

    def crypto(self, name: str, *, kind: str | None = None) -> Algorithm:
        """Return a crypto algorithm that a module registered, to compute with.

        Parameters
        ----------
        name
            The algorithm's name (`md4`) or its driver's (`md4-generic`); of several, the one
            of the highest priority. Where it is not registered, the modules under `root`
            that have it as their alias are loaded first, as the kernel would request them.
        kind
            `shash`, `skcipher`, `aead`, `rng`, `scomp`, `compress` or `cipher`; None: any.

        Raises
        ------
        CryptoError
            Nobody has it.
        """
        record = registered(self.kernel, name, kind)
        if record is None:
            self.modprobe.load_alias(f"crypto-{name}")
            record = registered(self.kernel, name, kind)
        if record is None:
            known = {r.name for r in self.registry if r.kind in CLASSES}
            hint = instead(self.kernel, known)
            raise CryptoError(name, "look up", 0, f"no such {kind or 'algorithm'}; {hint}")
        return algorithm(self.kernel, record)

    # Devices ----------------------------------------------------------------------------------

    def device(self, name: str, *, minor: int | None = None) -> Device:
        """Return a misc or character device that a module registered, to be opened.

        Parameters
        ----------
        name
            What it is called in `/dev`, or was registered as. Where it is not registered, the
            modules under `root` that have it as their alias are loaded first, as opening
            its node would.
        minor
            Which one, of a driver that has several; the first by default.

        Raises
        ------
        DeviceError
            Nobody has it.
        """
        found = find_device(self, name, minor)
        if found is None:
            self.modprobe.load_alias(f"devname:{name}")
            found = find_device(self, name, minor)
        if found is None:
            raise no_device(self, name, minor)
        return found

    def user(self, contents: bytes | int) -> AbstractContextManager[int]:
        """Give user memory that holds `contents`, or that many zeros, for a while.

        For what a device is given by address inside of a structure.
        """
        return user_memory(self.kernel, contents)

    # Explaining ------------------------------------------------------------------------------

    def symbolize(self, address: int) -> str | None:
        """Return `name+0xoff/0xsize [module]` of a function, a kernel symbol's name, or None."""
        return self.places.symbolize(address)

    def locate(self, address: int) -> tuple[str, str]:
        """Return the module that `address` lies in and the symbol that it is; empty for none."""
        return self.places.locate(address)

    def disassemble(self, address: int) -> str:
        """Return the instruction at `address` as text; empty where nothing is mapped."""
        return self.places.disassemble(address)

    def instruction_size(self, address: int) -> int:
        """Return the bytes of the instruction at `address`; 0 where there is none."""
        return self.places.instruction_size(address)

    def explain(self, stop: Stop) -> Fault:
        """Return why the guest stopped, for a person."""
        return self.explainer.explain(stop)

    def check(self) -> None:
        """Assert every invariant of executable memory and of the page table."""
        self.execmem.check()


__all__ = ["Argument", "ExecmemError", "ModelledMachine", "Module", "Out"]
