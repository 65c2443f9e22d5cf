# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated computer: memory, CPUs, a kernel, and modules that come and go.

This is where the parts meet: execmem gives memory, the loader forms modules in it, the
CPU runs their code, the kernel answers their calls. Whatever a load changed is taken back
when it fails, dependencies included.

CPUs never run at the same time: one runs while nobody lets another one run (`on`, `start`),
so that any interleaving of several can be made, and made again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import attrs

from allocator import (
    AccessError,
    Allocation,
    DesignLike,
    Execmem,
    ExecmemError,
    KernelMemory,
    PageTable,
    PhysicalMemory,
    PokeStep,
    Site,
)
from allocator.errors import NoSuchName
from allocator.types import ADDRESS_MASK, GIB, PAGE_SIZE, MemType, align_down, size_text
from archs import Arch, Checks
from archs import arch as arch_by_name
from archs.environment import Environment
from emulator import process
from emulator.budget import DEFAULT, SECONDS, Budget, Limits, one_budget
from emulator.cpu import INSTRUCTION, TICK, Cpu
from emulator.disassembly import Disassembler
from emulator.faults import LIMIT_HINTS, BadCall, Fault, FaultKind, Stop, Stopped
from kernels.errors import errno_name
from kernels.log import LogLine
from kernels.modelled import traps
from kernels.modelled.api import bring_installed
from kernels.modelled.api.algorithms import (
    CLASSES,
    Algorithm,
    CryptoError,
    algorithm,
    registered,
)
from kernels.modelled.api.cpu import entropy
from kernels.modelled.api.held import left, taken
from kernels.modelled.api.params import FREE, SET, Parameter, parameters
from kernels.modelled.api.sched import abandon, idle, sleep
from kernels.modelled.api.time import NSEC_PER_SEC, advance, counter
from kernels.modelled.api.user import user_memory
from kernels.modelled.extable import fix
from kernels.modelled.heap import LIMIT as HEAP_LIMIT
from kernels.modelled.kasan import CheckedHeap
from kernels.modelled.kernel import Kernel
from kernels.modelled.prototypes import CType, parse
from kernels.modelled.symbols import Unknown
from kernels.modelled.text.ftrace import LIMIT, Call, Replacement, Trace
from kernels.modelled.text.jump_labels import StaticKey
from kernels.modelled.text.kprobes import Hit, Probe
from kernels.modelled.text.live import LiveText
from kernels.modelled.text.static_calls import StaticCall
from kernels.registry import Registry
from kernels.runner import Parked
from loader.admission import Notice, constructors_of, taints_text
from loader.depends import ModuleTree, find, modules_for, open_tree, tree_around
from loader.errors import BadParameter, InitFailed, MissingDependency, ModuleInUse
from loader.files import SUFFIXES, ModuleFile, decompress, is_file, module_name, read_module
from loader.loaded import LoadedModule, State
from loader.module import Loader
from loader.symbols import SymbolTable
from loader.versions import TreeFacts, facts_of
from machine.arguments import Argument, Out
from machine.device import Device, find_device, no_device
from machine.module import Module, ModuleReport
from machine.patching import Phase, Way, patch
from machine.thread import Thread

STACK_SIZE = 4 * PAGE_SIZE  # THREAD_SIZE of the three architectures
NESTING = 32  # calls into the guest from kernel functions that the guest called
RED_ZONE = 256
FAR = 1 << 20  # bytes of the largest variable that members are looked for in
STACKED = 64  # arguments that a call may have on the stack
KSYM_NAME_LEN = 512  # what kallsyms shows of a name, with its NUL
CPUS = 64  # the most that a machine has
_one_budget = one_budget(lambda machine: machine.limits)


@attrs.define
class _Seat:
    """What runs on a CPU: how deep calls nest on its stack."""

    cpu: Cpu
    stack: int
    top: int  # where a call's return address goes, and the frame that this is in
    top_frame: int
    banks: dict[int, Callable[[list[int]], None]] = attrs.field(factory=dict)
    depth: int = 0


class Machine:
    """An emulated kernel of one architecture.

    Parameters
    ----------
    arch
        A name (`x86_64`, `arm64`, `riscv64`, or an alias) or a record.
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

    def __init__(
        self,
        arch: str | Arch,
        *,
        design: DesignLike = "default",
        text_poke: bool | None = None,
        kaslr: int | None = None,
        root: str | Path | None = None,
        unknown: str = "fault",
        checks: str = "hardware",
        errata: Iterable[str] = (),
        stub_sections: bool = False,
        memory: int = GIB,
        cpus: int = 1,
        kasan: bool = False,
        heap_limit: int = HEAP_LIMIT,
        seed: int = 0,
        force: bool = False,
        constructors: bool = False,
    ) -> None:
        bring_installed()
        self.arch = arch if isinstance(arch, Arch) else arch_by_name(arch)
        try:
            policy = Unknown(unknown)
        except ValueError:
            known = ", ".join(repr(choice.value) for choice in Unknown)
            raise ValueError(f"unknown={unknown!r}: expected one of {known}") from None
        if text_poke and self.arch.text_poke is None:
            raise ValueError(f"{self.arch.name} has no text_poke")
        if not 1 <= cpus <= CPUS:
            raise ValueError(f"cpus={cpus}: a machine has 1 to {CPUS}")
        process.admit(memory, cpus)
        self.memory = KernelMemory(PhysicalMemory(memory), self.arch.loads.address_map(kaslr))
        poke = None if text_poke is False else self.arch.text_poke
        self.execmem = Execmem(
            self.memory, trap=self.arch.loads.trap, text_poke=poke, design=design
        )
        self.design = self.execmem.design.name
        self.limits = Limits()
        self.cpus = tuple(
            Cpu(self.arch, self.memory, number, self.limits) for number in range(cpus)
        )
        self.cpu = self.cpus[0]  # the one that runs now
        loaded: dict[str, LoadedModule] = {}
        self.kernel = Kernel(
            self.arch,
            self.memory,
            self.cpus,
            _Runner(
                depth=lambda: self._seat.depth,
                call=self._nested,
                aside=self._aside,
                symbolize=self.symbolize,
                locate=self.locate,
                request_module=self._request,
                refuse_access=self._sanitizer_fault,
            ),
            loaded=loaded,
            unknown=policy,
            kasan=kasan,
            heap_limit=heap_limit,
            seed=seed,
            limits=self.limits,
        )
        self.breakpoints: dict[int, Callable[[Cpu], int]] = {}
        self.threads: dict[int, Thread] = {}  # by CPU
        for each in self.cpus:
            each.on_tick = partial(advance, self.kernel, TICK * INSTRUCTION)
            each.on_clock = partial(counter, self.kernel)
            each.on_entropy = partial(entropy, self.kernel)
            each.breakpoints = self.breakpoints
            each.on_access_failed = self._fix
            each.on_check = self._warn
            each.last_words = partial(self._last_words, each)
        self.loader = Loader(
            arch=self.arch,
            execmem=self.execmem,
            symbols=SymbolTable(self.kernel, refuse_unknown=policy is Unknown.REFUSE),
            percpu_alloc=self.kernel.percpu.alloc,
            percpu_free=self.kernel.percpu.free,
            percpu_write=self.kernel.percpu.write,
            checks=_checks(checks),
            errata=_known_errata(self.arch, errata),
            stub_sections=stub_sections,
            modules=loaded,
            # No mitigations: what is left of thunks and stubs runs natively.
            environment=Environment(
                features=self.arch.runs.emulation.capabilities,
                possible_cpus=cpus,
                symbols=self.kernel.symbols,
            ),
        )
        self.tree: ModuleTree | None = None if root is None else open_tree(root)
        gate = self.loader.gate
        gate.facts, gate.log = self._facts, self.kernel.say
        gate.force, gate.constructors = force, constructors
        self._tree_facts: TreeFacts | None = None
        self.modules: dict[str, Module] = {}
        self.leaks: list[str] = []
        self._disassembler = Disassembler(self.arch)
        self._unsaved = tuple(self.arch.runs.emulation.unsaved.values())
        self._return = self.kernel.return_address.to_bytes(8, "little")
        self._seats = [self._new_seat(each) for each in self.cpus]
        self._seat = self._seats[0]
        self._stopper: Cpu | None = None
        if self.arch.patching is not None:
            self.kernel.text = LiveText(
                self.arch,
                self.arch.patching,
                execmem=self.execmem,
                kernel=self.kernel,
                breakpoints=self.breakpoints,
                modules=self.loader.modules.values,
                where=self._where,
                running=self._running,
            )

    # Modules -------------------------------------------------------------------------------

    @_one_budget
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
        image, name, tree = self._source(module)
        mark, before = self.kernel.mark(), set(self.modules)
        with ExitStack() as undo:
            undo.callback(self.kernel.roll_back, mark)
            try:
                for needed in self._needed(image, name, tree):
                    path = find(tree, needed)
                    self._load_one(read_module(path), path.name, init=init, params={})
                loaded = self._load_one(image, name, init=init, params=params)
            except BaseException:
                # What it needed, and what the guest asked for meanwhile; users come last.
                for other in reversed([m for n, m in self.modules.items() if n not in before]):
                    self._remove(other)
                raise
            undo.pop_all()
        return loaded

    def _request(self, name: str) -> bool:
        """Load the module that the guest asks for by name or alias; False where that fails.

        Aliases are looked up in `modules.alias` only: to read every module would take long.
        """
        tree, title = self.tree, module_name(name)
        if title in self.loader.modules:
            return True
        if tree is None:
            return False
        found = [title] if title in tree.files else []
        if not found and (tree.folder / "modules.alias").is_file():
            found = modules_for(tree, name)
        for each in found:
            if each not in self.loader.modules:
                try:
                    self.load(each)
                except ExecmemError as error:
                    self.kernel.print(f"request_module {name}: {error}\n".encode(), 4)
                    return False
        return bool(found)

    def _source(
        self, module: str | Path | bytes | ModuleFile
    ) -> tuple[bytes, str, ModuleTree | None]:
        """Return a module's bytes, its file's name, and the tree that its dependencies are in."""
        if isinstance(module, ModuleFile):
            return module.image(), module.name, self.tree
        if isinstance(module, bytes | bytearray | memoryview):
            return decompress(bytes(module), "<bytes>"), "<bytes>", self.tree
        text = str(module)
        path = Path(module)
        if isinstance(module, Path) or "/" in text or text.endswith(SUFFIXES) or is_file(path):
            return read_module(path), path.name, self.tree or tree_around(path)
        path = find(self.tree, text)
        return read_module(path), path.name, self.tree

    def _needed(self, image: bytes, name: str, tree: ModuleTree | None) -> list[str]:
        """Return the modules to load first, in order, without those that are loaded."""
        if tree is None:
            return []
        title = module_name(name)
        if title in tree.needs:
            order = list(tree.to_load(title)[:-1])
        else:
            depends = _modinfo(image, name).get("depends", "").split(",")
            order = [n for d in depends if d for n in tree.to_load(d)]
        missing = [n for n in order if n not in tree.files and n not in self.loader.modules]
        if missing:
            hint = f"not in {tree.folder}"
            raise MissingDependency(name, tuple(dict.fromkeys(missing)), (), hint)
        return [n for n in dict.fromkeys(order) if n not in self.loader.modules]

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

    def _facts(self) -> TreeFacts | None:
        """Return what the tree that was named says about its kernel."""
        if self._tree_facts is None and self.tree is not None:
            self._tree_facts = facts_of(self.tree, self.arch)
        return self._tree_facts

    def _load_one(
        self, image: bytes, name: str, *, init: bool, params: Mapping[str, object]
    ) -> Module:
        first_line = self.kernel.log.total
        if process.box is not None:
            process.box.load(name)
        loaded = self.loader.form(image, name)
        regions = dict(loaded.regions)
        result = stopped = None
        since = taken(self.kernel)
        try:
            self.kernel.modules.coming(loaded)
            if self.kernel.text is not None:
                self.kernel.text.static_keys.adopt(loaded)
            self._set_parameters(loaded, params)
            if init:
                result = self._run_init(loaded)
        except BaseException as error:
            if isinstance(error, InitFailed):
                error.cause = self._first_stop(loaded.name)
            if isinstance(error, Fault):
                left(self.kernel, since, error.cause or Stopped(loaded.name, error))
            if isinstance(error, Fault) and error.kind is FaultKind.UNKNOWN_SYMBOL:
                # Nothing is wrong with the module: this kernel ends here. It stays as a
                # kernel would leave it after an oops in init, and its functions can be called.
                stopped = error
                self.kernel.stopped[loaded.name] = error.cause or Stopped(loaded.name, error)
                abandon(self.kernel, lambda at: loaded.region_at(at) is not None)
            else:
                if loaded.state is State.LIVE:
                    self.loader.begin_unload(loaded)
                self.kernel.modules.gone(loaded)
                self.loader.discard(loaded)
                raise
        self.kernel.flush_log()
        report = ModuleReport(
            name=loaded.name,
            arch=self.arch.name,
            design=self.design,
            regions=regions,
            sections=loaded.sections,
            relocations=loaded.linked.counts,
            plt_slots=sum(use.used for use in loaded.linked.plt.values()),
            plt_reserved=sum(use.reserved for use in loaded.linked.plt.values()),
            unknown=loaded.unknown,
            init_result=result,
            init_fault=stopped,
            log=self.kernel.log.since(first_line),
            taints=loaded.taints,
            notices=loaded.notices,
        )
        module = Module(self, loaded, report)
        self.modules[loaded.name] = module
        return module

    def _run_constructors(self, loaded: LoadedModule) -> None:
        """Run a module's constructors, where the kernel does that (do_mod_ctors)."""
        section = constructors_of(loaded.view) if self.loader.gate.constructors else None
        if section is not None:
            place = loaded.sections[section.index]
            for at in range(0, place.size & -8, 8):
                self.call(self.kernel.word(place.address + at))

    def _run_init(self, loaded: LoadedModule) -> int | None:
        self._run_constructors(loaded)
        address = self.kernel.modules.entry(loaded, "init")
        result = None
        if address:
            result = parse("int init(void)").result.from_register(self.call(address))
            if result < 0:
                raise InitFailed(loaded.name, -result, errno_name(-result))
        self.loader.settle(loaded)
        self.kernel.modules.live(loaded)
        return result

    def parameters_of(self, loaded: LoadedModule) -> tuple[Parameter, ...]:
        """Return what a module's `__param` table declares."""
        for section in loaded.sections.values():
            if section.name == "__param" and section.size:
                return parameters(self.memory, section.address, section.size)
        return ()

    def _set_parameters(self, loaded: LoadedModule, params: Mapping[str, object]) -> None:
        """Give each parameter to its own `set` operation, as parse_args() does."""
        if not params:
            return
        declared = {p.name: p for p in self.parameters_of(loaded)}
        for name, value in params.items():
            parameter = declared.get(name.replace("-", "_"))
            if parameter is None:
                takes = ", ".join(sorted(declared)) or "none"
                raise BadParameter(loaded.name, name, f"unknown; the module takes {takes}")
            text = _parameter_text(value)
            buffer = self.alloc(text.encode() + b"\0")
            try:
                setter = self.kernel.word(parameter.ops + SET)
                raw = self.call(setter, buffer, parameter.address)
            except AccessError:
                reason = "this kernel does not have its operations, " + (
                    self.kernel.name_at(parameter.ops) or f"{parameter.ops:#x}"
                )
                raise BadParameter(loaded.name, name, reason) from None
            finally:
                self.free(buffer)
            result = parse("int set(void)").result.from_register(raw)
            if result < 0:
                kind = _parameter_type(loaded, parameter.name)
                reason = f"'{text}' was refused: -{-result} ({errno_name(-result)})"
                raise BadParameter(loaded.name, name, reason + (kind and f", expected {kind}"))

    def _destroy_parameters(self, loaded: LoadedModule) -> None:
        """Let each parameter free what its `set` allocated (destroy_params)."""
        for parameter in self.parameters_of(loaded):
            if self.kernel.unknown_at(parameter.ops) is None:
                release = self.kernel.word(parameter.ops + FREE)
                if release:
                    self.call(release, parameter.arg)

    @_one_budget
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
        loaded = module.loaded
        if loaded.state is State.COMING:
            if loaded.users:
                raise ModuleInUse(loaded.name, tuple(sorted(loaded.users)))
            self._discard(loaded)
            return
        if not loaded.users and loaded.state is State.LIVE:
            begins, ends = (self.kernel.modules.entry(loaded, name) for name in ("init", "exit"))
            permanent, held = bool(begins and not ends), self.kernel.modules.held(loaded)
            if not force and (permanent or held):
                raise ModuleInUse(loaded.name, references=held, permanent=permanent)
            if permanent or held:
                self.loader.gate.taints.add("R")
        self.loader.begin_unload(loaded)
        if process.box is not None:
            process.box.load(loaded.name)
        address = self.kernel.modules.entry(loaded, "exit")
        self.kernel.modules.going(loaded)
        try:
            if address:
                self.call(address)
            self._destroy_parameters(loaded)
        finally:
            self.kernel.flush_log()
            self._discard(loaded)

    def _discard(self, loaded: LoadedModule) -> None:
        """Take a module out of memory, and what it left registered out of the registry."""
        if isinstance(self.kernel.heap, CheckedHeap):
            self.leaks += [f"{loaded.name} leaks {o}" for o in self.kernel.heap.leaks(loaded.name)]
        try:
            self.kernel.modules.gone(loaded)
            self.loader.discard(loaded)
        finally:
            self.kernel.registry.forget(loaded.name)
            self.kernel.stopped.pop(loaded.name, None)
            del self.modules[loaded.name]

    def _remove(self, module: Module) -> None:
        """Unload a dependency again, whatever its exit does."""
        tainted = set(self.loader.gate.taints)
        with suppress(ExecmemError):
            self.unload(module, force=True)
        self.loader.gate.taints &= tainted

    # Calls -----------------------------------------------------------------------------------

    @contextmanager
    def budget(
        self,
        *,
        instructions: int | None = DEFAULT,
        seconds: float | None = DEFAULT,
    ) -> Iterator[Budget]:
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
        with self.limits.whole(instructions, seconds) as budget:
            yield budget

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
        kind = _result_type(returns)
        self._check_call(address, args)
        limits = self.limits
        entered = limits.enter(*limits.given(instructions, seconds))
        try:
            if cpu is None and _are_slots(args):
                raw = self._run(address, args)
                if self.kernel.work_pending and not self._seat.depth:
                    self.idle()
                return kind.from_register(raw)
            with ExitStack() as buffers:
                if cpu is not None:
                    buffers.enter_context(self.on(cpu))
                slots = [self._slot(value, buffers) for value in args]
                raw = self._run(address, slots)
                for value, slot in zip(args, slots, strict=True):
                    if isinstance(value, Out):
                        value.data = self.memory.read(slot, len(value)) if len(value) else b""
                if self.kernel.work_pending and not self._seat.depth:
                    self.idle()
            return kind.from_register(raw)
        finally:
            limits.leave(entered)

    def _check_call(self, address: int, args: Sequence[Argument]) -> None:
        """Refuse what is no call of a guest function; BadCall."""
        if type(address) is not int or not 0 <= address <= ADDRESS_MASK:
            _check_address("call", address)
        count = len(args)
        if count > len(self.arch.runs.calling.arguments):
            most = len(self.arch.runs.calling.arguments) + STACKED
            if count > most:
                raise BadCall("call", f"{count} arguments, more than {most}")
        if count and address in self.kernel.stubs:
            prototype = self.kernel.prototype_at(address)
            if prototype is not None and not prototype.variadic:
                takes = len(prototype.params)
                # Where a structure is returned, its address comes first, unless it has a register.
                hidden = prototype.indirect and self.arch.runs.calling.indirect is None
                if count <= takes + hidden:
                    return
                reason = f"takes {takes} argument{'s' * (takes != 1)}, not {count}"
                raise BadCall(prototype.name, reason)

    @_one_budget
    def idle(self) -> None:
        """Run what is due and nobody waits for: timers, work, threads, RCU callbacks.

        It is done after every call, within its limits. A fault in it goes to the log, and to
        `kernel.oopses`; a limit that is reached is a Fault.
        """
        idle(self.kernel)

    @_one_budget
    def sleep(self, seconds: float) -> None:
        """Let guest time pass, and what is due meanwhile happen; Fault where that stops."""
        sleep(self.kernel, int(seconds * NSEC_PER_SEC))

    def _slot(self, value: Argument, buffers: ExitStack) -> int:
        """Return the 64-bit slot of an argument; memory for it lives as long as `buffers`."""
        if isinstance(value, int):
            if not -(1 << 63) <= value <= ADDRESS_MASK:
                raise BadCall("call", f"argument {value:#x} does not fit 64 bits")
            return value & ADDRESS_MASK
        if isinstance(value, str):
            data = value.encode() + b"\0"
        elif isinstance(value, Out):
            data = bytes(len(value))
        elif isinstance(value, bytes | bytearray):
            data = bytes(value)
        else:
            raise BadCall("call", f"cannot pass {type(value).__name__}: int, bytes, str or Out")
        address = self.alloc(data)
        # Not `self.free`: the function may have taken the buffer and freed it (kfree does).
        buffers.callback(self.kernel.heap.free, address)
        return address

    def _nested(self, address: int, *args: int) -> int:
        """Call back into the guest from a kernel function that the guest called."""
        slots = [a & ADDRESS_MASK for a in args]
        if self.limits.depth:
            return self._run(address, slots)
        with self.budget():
            return self._run(address, slots)

    def _aside(self, stack: int, address: int, slots: list[int], context: Any) -> int:
        """Run a guest function on a stack of its own, or go on with one that was put aside."""
        cpu = self._seat.cpu
        outer = cpu.context()
        try:
            if context is None:
                return self._enter(address, slots, stack)
            cpu.restore(context)
            return self._proceed(cpu.read(self.arch.runs.calling.program_counter))
        finally:
            cpu.restore(outer)

    def _run(self, address: int, slots: Sequence[int]) -> int:
        """Run a guest function; inside another run, on the rest of its stack."""
        seat = self._seat
        if not seat.depth:
            since = taken(self.kernel)
            try:
                return self._enter(address, slots)
            except Fault as fault:
                cause = fault.cause or Stopped(self.locate(address)[0], fault)
                left(self.kernel, since, cause)
                raise
        if seat.depth >= NESTING:
            pc = seat.cpu.read(self.arch.runs.calling.program_counter)
            raise Fault(FaultKind.PANIC, pc, self._where(pc), reason="callbacks nest too deep")
        context = seat.cpu.context()
        try:
            return self._enter(address, slots)
        finally:
            seat.cpu.restore(context)

    def _enter(self, address: int, slots: Sequence[int], stack: int | None = None) -> int:
        if process.box is not None:
            process.box.call(self._seat.depth, address, self._where)
        self._prepare(self._seat, slots, stack)
        return self._proceed(address)

    def _proceed(self, address: int) -> int:
        """Let the CPU run from `address` until the function under way returns."""
        seat = self._seat
        cpu, end = seat.cpu, self.kernel.return_address
        serving = self.kernel.serving
        # What a kernel function calls back is the guest's own code again.
        inside, serving.function = serving.function, ""
        seat.depth += 1
        failed = True
        try:
            cpu.run(address, end, instructions=None, seconds=None)
            failed = False
        except Stop as stop:
            fault = self.explain(stop)
            self._attribute(fault, address)
            raise fault from None
        except Parked:
            failed = False
            raise
        except Fault as fault:  # of a kernel function that the guest called
            self._attribute(fault, address)
            raise
        finally:
            seat.depth -= 1
            serving.function = inside
            if failed and not seat.depth:
                cpu.reset(fully=True)
        return cpu.read(self.arch.runs.calling.result)

    def _attribute(self, fault: Fault, address: int) -> None:
        """Say of a fault in the function at `address` what it may come from."""
        name = self.locate(address)[0]
        fault.cause = fault.cause or self._first_stop(name)
        loaded = self.loader.modules.get(name)
        if loaded is not None and fault.kind not in LIMIT_HINTS and loaded.foreign:
            fault.foreign = loaded.name

    def _first_stop(self, name: str) -> Stopped | None:
        """Return what stopped first of a module and of those that it depends on; None: nothing."""
        stopped = self.kernel.stopped
        if not stopped or name not in self.loader.modules:
            return None
        reached, ahead = {name}, [name]
        while ahead:
            fresh = self.loader.modules[ahead.pop()].providers - reached
            reached |= fresh
            ahead += fresh
        return next((stop for other, stop in stopped.items() if other in reached), None)

    def _new_seat(self, cpu: Cpu) -> _Seat:
        stack = self.memory.vmalloc(STACK_SIZE)
        top = stack + STACK_SIZE - 8
        found = self.memory.translate(top)
        assert found is not None
        return _Seat(cpu, stack, top, found.address)

    def _prepare(self, seat: _Seat, slots: Sequence[int], stack: int | None = None) -> None:
        """Set a CPU's registers and stack as a call with these arguments does."""
        calling, cpu = self.arch.runs.calling, seat.cpu
        if not seat.depth:
            self.kernel.reset_cpu()
            if self.kernel.text is not None:
                self.kernel.text.ftrace.begin()
        if stack is not None:
            stack_pointer = stack
        elif seat.depth:
            stack_pointer = cpu.read(calling.stack_pointer) - RED_ZONE
        else:
            stack_pointer = seat.stack + STACK_SIZE
        count = len(slots)
        if count > len(calling.arguments):
            count = len(calling.arguments)
            extra = b"".join(slot.to_bytes(8, "little") for slot in slots[count:])
            stack_pointer = align_down(stack_pointer - len(extra), 16)
            self.memory.write(stack_pointer, extra)
        elif seat.depth or stack is not None:
            stack_pointer = align_down(stack_pointer, 16)
        last = self.kernel.return_address
        if calling.link is None:
            last = stack_pointer = stack_pointer - 8
            if stack_pointer == seat.top:  # so often that looking it up would show
                self.memory.physical.write(seat.top_frame, self._return)
            else:
                self.memory.write(stack_pointer, self._return)
        bank = seat.banks.get(count)
        if bank is None:
            names = (calling.stack_pointer, *calling.arguments[:count])
            unsaved = self.arch.runs.emulation.unsaved
            bank = seat.banks[count] = cpu.bank((*names, calling.link or names[0], *unsaved))
        bank([stack_pointer, *slots[:count], last, *self._unsaved])

    # CPUs ------------------------------------------------------------------------------------

    @contextmanager
    def on(self, number: int) -> Iterator[Cpu]:
        """Be on CPU `number` meanwhile: calls run there, flushes of one CPU's TLB are its own.

        BadCall when there is no such CPU, or when stop_machine() holds it.
        """
        if not 0 <= number < len(self.cpus):
            raise BadCall("cpu", f"no CPU {number}; there are 0 to {len(self.cpus) - 1}")
        before = self.cpu.number
        if self._stopper is not None and number != self._stopper.number:
            raise BadCall("cpu", f"CPU {number} waits in stop_machine()")
        self._be(number)
        try:
            yield self.cpu
        finally:
            self._be(before)

    def _be(self, number: int) -> None:
        self._seat = self._seats[number]
        self.cpu = self.kernel.cpu = self._seat.cpu
        self.memory.this_cpu = number

    def start(self, address: int, *args: Argument, cpu: int, returns: str = "u64") -> Thread:
        """Prepare a call of the guest function at `address` on an idle CPU; run it by steps.

        BadCall when there is no such CPU, or something runs on it.
        """
        kind = _result_type(returns)
        self._check_call(address, args)
        with ExitStack() as buffers, self.on(cpu):
            seat = self._seat
            if seat.depth:
                raise BadCall("start", f"CPU {cpu} is busy")
            self._prepare(seat, [self._slot(value, buffers) for value in args])
            seat.depth = 1
            release = buffers.pop_all()
        thread = Thread(self, seat.cpu, address, kind)

        def ended() -> None:
            seat.depth = 0
            seat.cpu.reset(fully=True)
            del self.threads[cpu]
            release.close()

        thread.on_end = ended
        self.threads[cpu] = thread
        return thread

    @contextmanager
    def stop_machine(self) -> Iterator[None]:
        """Let no CPU but this one run meanwhile."""
        outer, self._stopper = self._stopper, self.cpu
        try:
            yield
        finally:
            self._stopper = outer

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
        with ExitStack() as stack:
            if cpu is not None:
                stack.enter_context(self.on(cpu))
            self.execmem.poke(address, data, expected, omit=omit, store=self._store)

    def _store(self, mm: PageTable | None, address: int, data: bytes) -> None:
        """Let this CPU store `data` at an address of an address space."""
        buffer = self.alloc(data)
        cpu = self.cpu
        cpu.switch_mm(mm)
        try:
            # The kernel's own work, which a guest without budget may not stop half way.
            with self.limits.apart(SECONDS):
                self._run(self.kernel.copy, [address, buffer, len(data)])
        finally:
            cpu.switch_mm(None)
            self.free(buffer)

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
        site = Site(address, new, expected)
        patch(self, (site,), way=way, force=force, on_phase=on_phase)

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
        patch(self, batch, way=way, force=force, on_phase=on_phase)

    # Memory ----------------------------------------------------------------------------------

    def alloc(self, contents: bytes | int) -> int:
        """Return the address of guest memory (kmalloc) that holds `contents`, or that many zeros."""
        size = contents if isinstance(contents, int) else len(contents)
        if size < 0:
            raise BadCall("alloc", f"{size} bytes")
        address = self.kernel.heap.alloc(max(size, 1), zero=True)
        if not address:
            raise BadCall(
                "alloc",
                f"no {size:#x} bytes of guest memory",
                f"its limit is {size_text(self.kernel.heap.limit)} (--heap-limit, heap_limit=)",
            )
        if not isinstance(contents, int) and contents:
            self.memory.write(address, bytes(contents))
        return address

    def free(self, address: int) -> None:
        """Free what `alloc` returned."""
        _check_address("free", address)
        if not self.kernel.heap.free(address):
            raise BadCall("free", f"{address:#x} is not an allocation")

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes of guest memory; AccessError where it is not readable."""
        _check_address("read", address)
        if size < 0:
            raise BadCall("read", f"{size} bytes")
        return self.memory.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Store `data` in guest memory; AccessError where it is not writable."""
        _check_address("write", address)
        self.memory.write(address, data)

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

    def _running(self) -> Iterator[tuple[Cpu, int | None]]:
        """Yield the CPUs that are in a call, and the address at which those that wait do."""
        for seat in self._seats:
            if seat.depth:
                thread = self.threads.get(seat.cpu.number)
                yield seat.cpu, None if thread is None else thread.pc

    # Live text -----------------------------------------------------------------------------

    @property
    def text(self) -> LiveText:
        """What patches the text of modules while it is live; ExecmemError where nothing does."""
        if self.kernel.text is None:
            raise ExecmemError(f"{self.arch.name}: live text cannot be patched")
        return self.kernel.text

    def trace(
        self,
        pattern: str,
        *more: str,
        limit: int = LIMIT,
        on_entry: Callable[[Call], object] | None = None,
        on_exit: Callable[[Call], object] | None = None,
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
        if record is None and self.tree is not None:
            for module in modules_for(self.tree, f"crypto-{name}"):
                if module not in self.modules:
                    self.load(module)
            record = registered(self.kernel, name, kind)
        if record is None:
            known = {r.name for r in self.registry if r.kind in CLASSES}
            hint = f"registered are {', '.join(sorted(known))}" if known else "load its module"
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
        if found is None and self.tree is not None:
            for module in modules_for(self.tree, f"devname:{name}"):
                if module not in self.modules:
                    self.load(module)
            found = find_device(self, name, minor)
        if found is None:
            raise no_device(self, name, minor)
        return found

    @contextmanager
    def user(self, contents: bytes | int) -> Iterator[int]:
        """Give user memory that holds `contents`, or that many zeros, for a while.

        For what a device is given by address inside of a structure.
        """
        with user_memory(self.kernel, contents) as address:
            yield address

    # Explaining ------------------------------------------------------------------------------

    def symbolize(self, address: int) -> str | None:
        """Return `name+0xoff/0xsize [module]` of a function, a kernel symbol's name, or None."""
        for loaded in self.loader.modules.values():
            if loaded.region_at(address) is not None:
                found = loaded.symbol_at(address)
                if found is None:
                    return None
                title = found[0][: KSYM_NAME_LEN - 1]
                return f"{title}+{found[1]:#x}/{found[2]:#x} [{loaded.name}]"
        return self.kernel.name_at(address)

    def locate(self, address: int) -> tuple[str, str]:
        """Return the module that `address` lies in and the symbol that it is; empty for none."""
        for loaded in self.loader.modules.values():
            if loaded.region_at(address) is not None:
                return loaded.name, loaded.names.get(address, "")
        return "", ""

    def _where(self, pc: int) -> str:
        for loaded in self.loader.modules.values():
            found = loaded.symbol_at(pc) if loaded.region_at(pc) else None
            if found is not None:
                return f"{found[0]}+{found[1]:#x} [{loaded.name}]"
        return self.kernel.name_at(pc) or f"{pc:#x}"

    def disassemble(self, address: int) -> str:
        """Return the instruction at `address` as text; empty where nothing is mapped."""
        code = b""
        for span in self.memory.page_table.spans(address, min(16, ADDRESS_MASK - address)):
            if span.pa is None:
                break
            code += self.memory.physical.read(span.pa, span.size)
        return self._disassembler.one(code, address) if code else ""

    def instruction_size(self, address: int) -> int:
        """Return the bytes of the instruction at `address`; 0 where there is none."""
        code = self.read(address, min(16, PAGE_SIZE - address % PAGE_SIZE))
        if len(code) < 16 and self.memory.translate(address + len(code)) is not None:
            code += self.read(address + len(code), 16 - len(code))
        return next((size for _, size, _ in self._disassembler.all(code, address)), 0)

    def explain(self, stop: Stop) -> Fault:
        """Return why the guest stopped, for a person."""
        reason, symbol = stop.reason, ""
        kind, budget = stop.kind, self.limits.budget
        if self.kernel.text is not None:
            stop.pc = self.kernel.text.kprobes.origin(stop.pc)
        if kind is FaultKind.INSTRUCTION_LIMIT:
            reason = f"{budget.instructions} instructions"
        elif kind is FaultKind.TIME_LIMIT:
            reason = f"{budget.seconds} seconds"
        elif kind in (FaultKind.TRAP, FaultKind.INSTRUCTION):
            said = traps.explain(self.kernel, self._module_at(stop.pc), stop.pc, self._where)
            if said is not None:
                kind, reason = said
            elif kind is FaultKind.TRAP and stop.number is not None:
                reason = f"exception {stop.number}"
        elif stop.address is not None and (found := self._unknown_variable(stop)):
            name, how = found
            kind = FaultKind.UNKNOWN_SYMBOL
            reason = f"'{name}', {stop.kind.value} as a {how}"
            symbol = name.partition("+")[0]
            self.kernel.calls[symbol] = self.kernel.calls.get(symbol, 0) + 1
        elif stop.address is not None:
            reason = self._access_reason(stop)
        return Fault(
            kind=kind,
            pc=stop.pc,
            where=self._where(stop.pc),
            instruction=self.disassemble(stop.pc),
            address=None if kind is FaultKind.UNKNOWN_SYMBOL else stop.address,
            reason=reason,
            hint=LIMIT_HINTS.get(kind, ""),
            symbol=symbol,
            cause=self._first_stop(self.locate(stop.pc)[0]),
        )

    def _unknown_variable(self, stop: Stop) -> tuple[str, str] | None:
        """Return what nobody implements that an access was meant for, and as what."""
        address = stop.address or 0
        places = [(address, "variable")]
        places += [(at, "per-cpu variable") for at in self.kernel.originals(address)]
        loaded = self._module_at(stop.pc)
        named = {} if loaded is None else self._named_at(loaded, stop.pc)
        # Far behind a symbol lies the next one's room: what the function itself names is meant.
        for at, how in places:
            name = self.kernel.unknown_at(at)
            if name is not None and name.partition("+")[0] in named.values():
                return name, how
        for at, how in places:
            before = [start for start in named if start <= at < start + FAR]
            if before and at in self.kernel.image:
                return f"{named[max(before)]}+{at - max(before):#x}", how
        found = ((self.kernel.unknown_at(at), how) for at, how in places)
        return next(((name, how) for name, how in found if name is not None), None)

    def _named_at(self, loaded: LoadedModule, pc: int) -> dict[int, str]:
        """Return the unknown symbols that the function around `pc` refers to, by address."""
        function = loaded.symbol_at(pc)
        found: dict[int, str] = {}
        if function is None:
            return found
        for table in loaded.view.tables:
            placed = loaded.sections.get(table.target.index)
            if placed is not None and 0 <= pc - placed.address < placed.size:
                start = pc - function[1] - placed.address
                offsets = table.records["offset"]
                inside = (offsets >= start) & (offsets < start + function[2])
                for index in set(table.records["symbol"][inside].tolist()):
                    name = loaded.view.symbol_name(index)
                    if name in loaded.unknown:
                        found[self.kernel.address(name)] = name
        return found

    def _last_words(self, cpu: Cpu) -> dict[str, str | int]:
        """Return what is known of a CPU over which the emulator dies."""
        pc = cpu.read(self.arch.runs.calling.program_counter)
        words: dict[str, str | int] = {"arch": self.arch.name, "pc": pc, "where": self._where(pc)}
        words["instruction"] = self.disassemble(pc)
        words["inside"] = self.kernel.executing
        code = b""
        for span in self.memory.page_table.spans(pc, min(process.CODE, ADDRESS_MASK - pc)):
            if span.pa is None:
                break
            code += self.memory.physical.read(span.pa, span.size)
        return words | {"code": code.hex()}

    def _sanitizer_fault(self, kind: FaultKind, reason: str, address: int) -> NoReturn:
        """Stop the guest at an access that it may not make, itself or in a kernel function."""
        pc = self.cpu.read(self.arch.runs.calling.program_counter)
        inside = self.kernel.executing
        raise Fault(
            kind=kind,
            pc=pc,
            where=self.kernel.caller() if inside else self._where(pc),
            instruction="" if inside else self.disassemble(pc),
            address=address,
            reason=f"{reason}, in {inside}()" if inside else reason,
        )

    def _access_reason(self, stop: Stop) -> str:
        assert stop.address is not None
        address = stop.address
        if address < PAGE_SIZE:
            return "NULL pointer"
        found = self.memory.translate(align_down(address, PAGE_SIZE))
        stack = self._seat.stack
        if found is None and stack - PAGE_SIZE <= address < stack:
            return "stack overflow: below the kernel stack"
        what = "not mapped" if found is None else f"mapped {found.prot}"
        for loaded in self.loader.modules.values():
            region = loaded.region_at(address)
            if region is not None:
                return f"{what}: {_region_text(loaded, region)}"
        name = self.kernel.name_at(address)
        if name is None and (originals := self.kernel.originals(address)):
            other = self.kernel.name_at(originals[0])
            return f"{what}: kernel symbol '{other}', which is no per-cpu variable"
        return f"{what}: kernel symbol '{name}'" if name else what

    def _module_at(self, pc: int) -> LoadedModule | None:
        return self.loader.modules.get(self.locate(pc)[0])

    def _warn(self, pc: int) -> int | None:
        """Return where to go on after a WARN at `pc`; None: it was none."""
        return traps.warn(self.kernel, self._module_at(pc), pc)

    def _fix(self, pc: int) -> int | None:
        """Return where to go on after a failed access at `pc` that was expected; None: it was not."""
        return fix(self.kernel, self.loader.modules.values(), pc)

    def check(self) -> None:
        """Assert every invariant of executable memory and of the page table."""
        self.execmem.check()


@attrs.frozen
class _Runner:
    """What the kernel needs of its machine; see `kernels.runner.Runner`."""

    _depth: Callable[[], int]
    call: Callable[..., int]
    aside: Callable[[int, int, list[int], Any], int]
    symbolize: Callable[[int], str | None]
    locate: Callable[[int], tuple[str, str]]
    request_module: Callable[[str], bool]
    refuse_access: Callable[[FaultKind, str, int], NoReturn]

    @property
    def depth(self) -> int:
        """How many guest functions are under way on this CPU."""
        return self._depth()


def _are_slots(args: Sequence[Argument]) -> TypeGuard[Sequence[int]]:
    """Return whether there is nothing to convert: arguments are as registers hold them."""
    for value in args:  # noqa: SIM110 -- in half the time of all()
        if type(value) is not int or not 0 <= value <= ADDRESS_MASK:
            return False
    return True


def _check_address(operation: str, value: object) -> None:
    """Refuse what is no address, such as a name; BadCall."""
    if isinstance(value, str):
        hint = "Module.call and Module.symbols take names"
        raise BadCall(operation, f"{value!r} is a name, not an address", hint)
    try:
        address = index(value)  # type: ignore[arg-type] # what is no number is refused
    except TypeError:
        raise BadCall(operation, f"{type(value).__name__} is no address: an int is") from None
    if not 0 <= address <= ADDRESS_MASK:
        raise BadCall(operation, f"{address:#x} is not in the address space")


def _checks(name: str) -> Checks:
    try:
        return Checks(name)
    except ValueError:
        known = ", ".join(check.value for check in Checks)
        raise NoSuchName(f"checks={name!r}: expected one of {known}") from None


def _known_errata(arch: Arch, numbers: Iterable[str]) -> tuple[str, ...]:
    wanted = tuple(numbers)
    for number in wanted:
        if number not in arch.errata:
            known = ", ".join(arch.errata) or "none"
            raise NoSuchName(f"{arch.name}: no erratum {number!r}; the loader knows {known}")
    return wanted


def _region_text(loaded: LoadedModule, region: Allocation) -> str:
    kind = region.type.name.lower()
    sealed = region.type is MemType.RO_AFTER_INIT and loaded.state is State.LIVE
    return f"{kind} of {loaded.name}{' (sealed after init)' if sealed else ''}"


def _modinfo(image: bytes, name: str) -> Mapping[str, str]:
    from loader.elf import parse as parse_elf

    return parse_elf(image, name).modinfo


def _parameter_type(loaded: LoadedModule, name: str) -> str:
    """Return what MODULE_PARM_TYPE says of a parameter; empty where it says nothing."""
    section, start = loaded.view.section(".modinfo"), f"parmtype={name}:".encode()
    entries = bytes(loaded.view.contents(section)).split(b"\0") if section is not None else []
    found = next((e for e in entries if e.startswith(start)), start)
    return found[len(start) :].decode("utf-8", "replace")


def _parameter_text(value: object) -> str:
    """Return a parameter's value as `insmod` would spell it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, list | tuple):
        return ",".join(_parameter_text(item) for item in value)
    return str(value)


@functools.cache
def _result_type(returns: str) -> CType:
    try:
        found = parse(f"{returns} result(void)")
    except ValueError as error:
        raise BadCall("call", f"returns={returns!r}: {error}") from None
    if found.indirect:
        raise BadCall("call", f"returns={returns!r}: a structure does not fit a register")
    return found.result


__all__ = ["Argument", "ExecmemError", "Machine", "Module", "Out"]
