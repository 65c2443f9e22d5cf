# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine whose kernel is a real one, booted in it: what `Machine(kernel=PATH)` is.

Everything that is asked of it the kernel itself does: its loader takes modules, its functions
are called, its log says what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex

import attrs

from allocator.types import ADDRESS_MASK
from archs import Arch
from archs import arch as arch_by_name
from emulator.boards.state import Mark, Still
from emulator.budget import DEFAULT
from emulator.disassembly import Disassembler
from emulator.faults import BadCall, Fault
from kernels.booted.kernel import BootedKernel
from kernels.booted.opening import SECONDS as BOOT_SECONDS
from kernels.booted.opening import Kept, Standing, open_kernel
from kernels.booted.reports import Report
from kernels.booted.requests import Requests
from kernels.booted.saved import read as read_saved
from kernels.booted.starting import Parameters
from kernels.errors import errno_name
from kernels.log import LogLine
from loader.depends import (
    ModuleTree,
    find,
    open_tree,
)
from loader.elf import parse as parse_elf
from loader.errors import KernelRefused
from loader.files import ModuleFile, module_name
from loader.kernel.image import KernelImage
from loader.loaded import State
from machine.arguments import Argument, Out, result_type
from machine.booted.controlled import controlled
from machine.booted.dumping import Dumpable
from machine.booted.interposing import Interposed, Interposing
from machine.booted.kernelway import KernelWay, Kernelwise
from machine.booted.limits import Limited
from machine.booted.module import (
    BootedModule,
    placed_of,
    report_of,
    sections_of,
    where_loading,
    with_regions,
)
from machine.booted.noting import Noting
from machine.booted.pagetables import page_tables
from machine.booted.process import Using
from machine.booted.repeated import BootedRounds
from machine.booted.sanitized import Sanitizable
from machine.booted.saving import Savable, kernel_of, resume
from machine.booted.snapshots import Snapshot
from machine.booted.trees import Trees
from machine.booted.words import OURS, needed, soft, words_of
from machine.control import Control, Handler
from machine.ptdump import PageTables
from machine.rounds import Rounds
from machine.sources import Placed, Sources

_SIZES = (16, 4, 2)  # bytes that an instruction may be looked for in


class BootedMachine(Savable, Sanitizable, Dumpable, Limited, Kernelwise, Interposed, Trees, Using):
    """A booted kernel, and the modules that it has loaded.

    Parameters
    ----------
    arch
        What it must be for; None: the kernel tells it.
    kernel
        An image, a package, a tree or `running`, as `execmem kernel` takes it; or a `KernelImage`.
    root
        Folder that holds `lib/modules/VERSION`, for modules by name and dependencies; None: the
        kernel's own, where that is given as a folder that holds its modules.
    memory
        Bytes of RAM; None: as the architecture has it.
    command_line
        More words for the kernel's command line.
    cpu
        The CPU's model, one of `arch.boots.models`; "" is the first. What it has decides what the
        kernel finds, and which alternatives of its code it takes.
    without
        Functions that do nothing while it boots, and return 0.
    kaslr
        What the places of kernel and modules follow from, a number of your choice; None: the
        kernel is where it is linked to, and modules where they are without KASLR.
    boot_seconds
        Time of the host that the boot may take; None: any.
    keep
        Whether a booted kernel is kept in the cache, and taken from there.
    on_boot, on_console
        Called with the kernel's release before it boots, and with what it prints meanwhile.

    Raises
    ------
    BadKernel
        There is no such kernel, or it cannot be read.
    BootFailed
        It did not come up.
    """

    def __init__(
        self,
        arch: str | Arch | None = None,
        *,
        kernel: str | Path | KernelImage | Kept,
        modelled: bool = False,
        root: str | Path | None = None,
        memory: int | None = None,
        command_line: str = "",
        cpu: str = "",
        without: Sequence[str] = (),
        kaslr: int | None = None,
        boot_seconds: float | None = BOOT_SECONDS,
        keep: bool = True,
        on_boot: Callable[[str], object] | None = None,
        on_console: Callable[[bytes], object] | None = None,
        **options: object,
    ) -> None:
        if modelled:
            raise TypeError("modelled=True: that is a ModelledMachine")
        for name in options:
            if name not in OURS:
                raise TypeError(f"{name}: a booted machine has no such parameter")
            raise BadCall(
                "Machine", f"{name}: a booted kernel decides that itself (modelled=True: ours does)"
            )
        wanted = arch if isinstance(arch, Arch) or arch is None else arch_by_name(arch)
        size, left = memory or 0, tuple(without)
        parameters = Parameters(
            memory=size, command_line=command_line, cpu=cpu, without=left, kaslr=kaslr
        )
        standing = open_kernel(
            kernel,
            parameters,
            arch=wanted,
            keep=keep,
            seconds=boot_seconds,
            on_boot=on_boot,
            on_console=on_console,
        )
        self._folder = None if isinstance(kernel, KernelImage | Kept) else Path(kernel)
        self._hold(standing, None if root is None else open_tree(root))

    def _hold(self, standing: Standing, tree: ModuleTree | None) -> None:
        """Be the machine of a kernel that stands."""
        self.kernel = BootedKernel(standing)
        self.kernel.symbolize = self.symbolize
        self._sources = Sources(lambda name: placed_of(self._modules.get(name)))
        self.kernel.sourced = self._sources.told
        self.arch = standing.arch
        self._tree = tree
        self.mounted = False
        self._noting = Noting(self)
        self._modules: dict[str, BootedModule] = {}
        self.sanitizer = None
        self._loads = 0  # under way, each for the one before
        self.interposing = Interposing(self.kernel, lambda: self._modules, self.read)
        self._requests = Requests(
            self.kernel.guest, lambda: standing.types, self.request, lambda: bool(self._loads)
        )
        self._disassembler = Disassembler(self.arch)
        functions = self.interposing.functions
        self._way = KernelWay(self.kernel, functions, self.read, self.open, self.disassemble)

    @property
    def models(self) -> str:
        """What answers modules."""
        return f"Linux {self.kernel.release}, booted"

    # Modules ------------------------------------------------------------------------------------

    @property
    def modules(self) -> dict[str, BootedModule]:
        """The modules that were loaded, by name."""
        return self._modules

    def load(
        self, module: str | Path | bytes | ModuleFile, /, *, init: bool = True, **params: object
    ) -> BootedModule:
        """Let the kernel load a module, after those that it depends on.

        Parameters
        ----------
        module
            A path, the file's bytes (as `ModuleFile` with its name), or a name that is looked
            up under `root`.
        init
            Must be True: the kernel's loader runs the init itself.
        params
            Module parameters, as `insmod` takes them.

        Raises
        ------
        KernelRefused
            With the errno of init_module(2) and what the kernel logged; dependencies are out again.
        LoadError
            There is no such module.
        Fault
            Its init did not come back. What it held it holds: `restore` goes back.
        """
        if not init:
            raise BadCall("load", "a booted kernel runs the init of what it loads")
        file, tree = self._source(module)
        before, outer = set(self.modules), self._asked
        self._asked = tree
        self._loads += 1
        try:
            with self.budget():
                for name in needed(file, tree, self.modules):
                    if name not in self.modules:  # as something that another asked for
                        self.insert(ModuleFile.read(find(tree, name)))
                loaded = self.insert(file, params)
                if self._loads == 1:
                    self._requests.settle()
                return loaded
        except KernelRefused:
            for name in reversed([n for n in self.modules if n not in before]):
                with suppress(KernelRefused):
                    self.unload(self.modules[name])
            raise
        finally:
            self._asked = outer
            self._loads -= 1
            if not self._loads:
                self._requests.drop()

    def unload(self, module: BootedModule, *, force: bool = False) -> None:
        """Let the kernel take a module out (delete_module).

        Parameters
        ----------
        force
            As `rmmod --force`, where the kernel allows it.

        Raises
        ------
        KernelRefused
            With the errno: somebody uses it, or it has no exit.
        BadCall
            Calls of other functions are led to it.
        """
        self.interposing.unloading(module)
        before = len(self.log)
        with self.kernel.watched():
            result = self.kernel.modules.remove(module.name, force=force)
        if result:
            said = tuple(line.text for line in self.log[before:])
            raise KernelRefused(
                module.name, "delete_module", -result, errno_name(-result), said, module.held_by
            )
        for coverage in self.coverages:
            coverage.settle()
        if self.sanitizer is not None:
            self.sanitizer.unloaded(module.name)
        module.state = State.UNLOADED
        self.modules.pop(module.name, None)

    def insert(self, file: ModuleFile, params: Mapping[str, object] | None = None) -> BootedModule:
        """Let the kernel load a module, after what it asks for softly; raises as `load`.

        Those that it depends on are there, or the kernel says what it misses.
        """
        for name in soft(file):
            self.request(name)
        with self._noting.loading():
            return self._insert(file, params)

    def _insert(self, file: ModuleFile, params: Mapping[str, object] | None) -> BootedModule:
        image = file.image()
        view = parse_elf(image, file.name)
        before = len(self.log)
        name = view.modinfo.get("name") or module_name(file.name)
        try:
            with self.kernel.watched():
                inserted = self.kernel.modules.insert(image, words_of(params or {}))
        except Fault as fault:
            last = self.kernel.modules.last
            told = where_loading(fault, view, name, last)
            loading = Placed(view, dict(last))
            sources = self._sources.of(
                told.where, told.backtrace, lambda other: loading if other == name else None
            )
            raise attrs.evolve(told, sources=sources or told.sources) from None
        said = tuple(self.log[before:])
        for coverage in self.coverages:
            coverage.settle(name, view, sections_of(view, inserted))
        if inserted.result:
            number = -inserted.result
            lines = tuple(line.text for line in said)
            what = "init" if inserted.module else "init_module"
            raise KernelRefused(name, what, number, errno_name(number), lines)
        inserted = with_regions(view, inserted)
        report = report_of(
            self.arch,
            self.kernel.release,
            name,
            view,
            inserted,
            said,
            self.kernel.reports_since(before),
            self._noting.gained(name),
        )
        module = BootedModule(self, view, name, inserted, report)
        self.modules[name] = module
        if self.sanitizer is not None:
            self.sanitizer.loaded(module)
        return module

    # Calls --------------------------------------------------------------------------------------

    def call(
        self,
        address: int,
        *args: Argument,
        instructions: int | None = DEFAULT,
        seconds: float | None = DEFAULT,
        returns: str = "u64",
    ) -> int:
        """Call the guest function at `address`; see `BootedModule.call`."""
        kind = result_type(returns)
        if isinstance(address, str):
            hint = "Machine.function takes a name"
            raise BadCall("call", f"{address!r} is a name, not an address", hint)
        with ExitStack() as buffers:
            slots = [self._slot(value, buffers) for value in args]
            raw = self.kernel.call(address, slots, instructions=instructions, seconds=seconds)
            for value, slot in zip(args, slots, strict=True):
                if isinstance(value, Out):
                    value.data = self.read(slot, len(value)) if len(value) else b""
        return kind.from_register(raw)

    def function(self, name: str) -> int:
        """Return the address of a kernel function or variable; BadCall where there is none."""
        found = self.kernel.symbols.get(name)
        if found is None:
            raise BadCall(name, f"Linux {self.kernel.release} has no such symbol")
        return found

    def _slot(self, value: Argument, buffers: ExitStack) -> int:
        if isinstance(value, SupportsIndex):
            number = index(value)
            if not -(1 << 63) <= number <= ADDRESS_MASK:
                raise BadCall("call", f"argument {number:#x} does not fit 64 bits")
            return number & ADDRESS_MASK
        if isinstance(value, str):
            data = value.encode() + b"\0"
        elif isinstance(value, Out):
            data = bytes(len(value))
        elif isinstance(value, bytes | bytearray):
            data = bytes(value)
        else:
            raise BadCall("call", f"cannot pass {type(value).__name__}: int, bytes, str or Out")
        address = self.alloc(data)
        buffers.callback(self._free_quietly, address)
        return address

    def _free_quietly(self, address: int) -> None:
        if not self.kernel.board.broken:
            self.free(address)

    # Memory -------------------------------------------------------------------------------------

    def alloc(self, contents: bytes | int) -> int:
        """Return the address of guest memory that holds `contents`, or that many zeros."""
        size = contents if isinstance(contents, int) else len(contents)
        if size < 0:
            raise BadCall("alloc", f"{size} bytes")
        address = None if self.sanitizer is None else self.sanitizer.alloc(max(size, 1))
        if address is None:
            with self.kernel.watched():
                address = self.kernel.guest.alloc(max(size, 1))
        if not address:
            raise BadCall("alloc", f"no {size:#x} bytes of guest memory")
        if not isinstance(contents, int) and contents:
            self.write(address, bytes(contents))
        return address

    def free(self, address: int) -> None:
        """Free what `alloc` returned."""
        if self.sanitizer is None or not self.sanitizer.free(address):
            with self.kernel.watched():
                self.kernel.guest.free(address)
        self._freed(address)

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes of guest memory; BadCall where nothing is mapped."""
        if size < 0:
            raise BadCall("read", f"{size} bytes")
        try:
            return self.kernel.board.read(address, size)
        except (LookupError, IndexError) as error:
            raise BadCall("read", str(error)) from None

    def write(self, address: int, data: bytes) -> None:
        """Store `data` in guest memory, whatever its protection; BadCall where nothing is mapped."""
        try:
            self.kernel.board.rewrite(address, data)
        except (LookupError, IndexError) as error:
            raise BadCall("write", str(error)) from None

    @contextmanager
    def user(self, contents: bytes | int) -> Iterator[int]:
        """Give user memory of the process that holds `contents`, or that many zeros, for a while."""
        size = contents if isinstance(contents, int) else len(contents)
        with self.kernel.watched():
            address = self.kernel.guest.user(max(size, 1))
        try:
            if not isinstance(contents, int) and contents:
                self.write(address, bytes(contents))
            yield address
        finally:
            if not self.kernel.board.broken:
                self.kernel.guest.free_user(address, max(size, 1))

    # Time ---------------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """Let guest time pass, and what is due meanwhile happen."""
        with self.kernel.watched():
            self.kernel.guest.call_by_name(("msleep",), int(seconds * 1000))

    @property
    def time(self) -> float:
        """Seconds of guest time since power on."""
        return self.kernel.board.clock.now / 1e9

    # Going back ---------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return the machine as it is now, for `restore`."""
        return self._standing(self.kernel.board.freeze())

    def mark(self) -> Snapshot:
        """Return the machine as it is now, for a few times of `restore` in this call."""
        return self._standing(self.kernel.board.mark())

    def _standing(self, still: Still | Mark) -> Snapshot:
        inside = self.kernel.guest.inside
        checks, guarded = self._guarded()
        modules, listed = dict(self.modules), self._noting.listed
        return Snapshot(still, modules, self.mounted, inside, listed, checks, guarded)

    def restore(self, snapshot: Snapshot) -> None:
        """Become what the machine was: memory, registers, modules, time, log.

        Stubs, probes and traces are no part of it: they stay as they are now (`interposing.py`).
        BadCall in a handler where that would be the middle of another call.
        """
        if snapshot.inside != self.kernel.guest.inside:
            raise BadCall("restore", "a snapshot of the middle of another call, or of none")
        for coverage in self.coverages:
            coverage.gone()
        self._checks_end(snapshot)
        board = self.kernel.board
        if isinstance(snapshot.still, Mark):
            board.back_to(snapshot.still)
        else:
            board.back(snapshot.still)
        self._checks_back(snapshot)
        self.kernel.restored()
        self.interposing.restored()
        self.mounted = snapshot.mounted
        self._noting.listed = snapshot.listed
        if self.modules != snapshot.modules:
            for module in self.modules.values():
                module.state = State.UNLOADED
            self._modules = dict(snapshot.modules)
            for module in self.modules.values():
                module.state = State.LIVE

    def rounds(self, spans: Iterable[tuple[int, int]], **options: Any) -> Rounds:
        """Return what does the same again and again, on the machine as it is now; `Machine.rounds`."""
        return BootedRounds(self, spans, **options)

    @contextmanager
    def fork(self) -> Iterator[BootedMachine]:
        """Go back, at the end of a `with` block, to what the machine was at its begin."""
        snapshot = self.snapshot()
        try:
            yield self
        finally:
            self.restore(snapshot)

    # Looking ------------------------------------------------------------------------------------

    def control(self, handler: Handler) -> AbstractContextManager[Control]:
        """Have each call into the guest under control; see `machine.control`."""
        return controlled(self, handler)

    @property
    def reports(self) -> list[Report]:
        """What the kernel found wrong (WARN, KASAN, UBSAN, lockdep ...), from its first line on."""
        return self.kernel.reports

    @property
    def log(self) -> list[LogLine]:
        """The kernel log."""
        return self.kernel.log

    def symbolize(self, address: int) -> str | None:
        """Return `name+0xoff/0xsize [module]` of a function, a kernel symbol's name, or None."""
        for module in self.modules.values():
            found = module.symbol_at(address)
            if found is not None:
                return found
        return self.kernel.name_at(address)

    def disassemble(self, address: int) -> str:
        """Return the instruction at `address` as text; empty where nothing is mapped."""
        for size in _SIZES:
            try:
                return self._disassembler.one(self.kernel.board.read(address, size), address)
            except (LookupError, IndexError):
                continue
        return ""

    def page_tables(self) -> PageTables:
        """Return the kernel's page tables as they are now, as its ptdump prints them."""
        return page_tables(self.kernel)

    @cached_property
    def image(self) -> KernelImage:
        """The kernel's file, taken apart."""
        return self.kernel.standing.image


def open_saved(
    path: str | Path, kernel: str | Path | KernelImage | None, options: dict[str, Any]
) -> BootedMachine:
    """Return the machine in a file; see `Machine.resume`."""
    found = read_saved(path)
    image, name, parameters = kernel_of(found)
    machine = BootedMachine(
        kernel=Kept(image, name) if kernel is None else kernel,
        memory=parameters.memory,
        command_line=parameters.command_line,
        cpu=parameters.cpu,
        without=parameters.without,
        kaslr=parameters.kaslr,
        **options,
    )
    resume(machine, found)
    return machine
