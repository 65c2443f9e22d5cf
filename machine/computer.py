# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of an emulated computer, and how they are connected.

Memory and CPUs come first, then the kernel, then what brings modules in; what one part needs
of another that is made later, it is given as a function.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NoReturn

from allocator import (
    DesignLike,
    Execmem,
    ExecmemError,
    KernelMemory,
    PhysicalMemory,
)
from allocator.errors import NoSuchName
from allocator.types import GIB, AddressMap, size_text
from archs import Arch, Checks
from archs import arch as arch_by_name
from archs.environment import Environment
from emulator import process
from emulator.budget import Limits
from emulator.calls import Calls
from emulator.cpu import INSTRUCTION, Cpu
from emulator.disassembly import Disassembler
from emulator.faults import FaultKind
from emulator.steered import TICK
from kernels.modelled.api import bring_installed
from kernels.modelled.api.cpu import entropy
from kernels.modelled.api.time import advance, counter
from kernels.modelled.heap import LIMIT as HEAP_LIMIT
from kernels.modelled.kernel import Kernel
from kernels.modelled.symtab import Unknown
from kernels.modelled.text.live import LiveText
from loader.build import build_of
from loader.errors import BadKernel
from loader.kernel.find import read_kernel
from loader.kernel.image import KernelImage
from loader.layouts import layouts_of
from loader.loaded import LoadedModule
from loader.module import Loader
from loader.symbols import SymbolTable
from machine.calling import Caller
from machine.explain import Explainer
from machine.insmod import Insmod
from machine.modprobe import Modprobe
from machine.module import Module
from machine.parameters import Parameters
from machine.patching import Patcher
from machine.places import Places
from machine.report import ModuleReport

CPUS = 64  # the most that a machine has
CONSTRUCTORS = "CONFIG_CONSTRUCTORS"


class _GuestCalls:
    """What the kernel asks of its machine; see `kernels.runner.GuestRunner`."""

    explainer: Explainer  # there as soon as something is explained
    modprobe: Modprobe

    def __init__(self, calls: Calls, places: Places) -> None:
        self._calls = calls
        self.call, self.aside = calls.nested, calls.aside
        self.symbolize, self.locate = places.symbolize, places.locate

    @property
    def depth(self) -> int:
        """How many guest functions are under way on this CPU."""
        return self._calls.stack.depth

    @property
    def entry(self) -> int:
        """Where the innermost guest function on this CPU began; 0 between calls."""
        return self._calls.stack.entry

    def request_module(self, name: str) -> bool:
        """Load the module that the guest asks for; False where that fails."""
        return self.modprobe.request(name)

    def refuse_access(self, kind: FaultKind, reason: str, address: int) -> NoReturn:
        """Stop the guest at an access that the sanitizer does not allow."""
        self.explainer.refuse_access(kind, reason, address)


class Computer(abc.ABC):
    """Makes and connects the parts; the parameters are those of `Machine`."""

    def __init__(
        self,
        arch: str | Arch | None = None,
        *,
        kernel: str | Path | KernelImage | None = None,
        modelled: bool = False,
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
        image = None if kernel is None else given(kernel, modelled=modelled)
        self.arch = arch_for(arch, image)
        self.build = build_of(None, image, self.arch)
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
        page = self.build.page_size.value
        self.memory = KernelMemory(
            PhysicalMemory(memory, paging=self.arch.loads.paging(page)),
            address_map_of(self.arch, kaslr, image),
        )
        poke = None if text_poke is False else self.arch.text_poke
        self.execmem = Execmem(
            self.memory, trap=self.arch.loads.trap, text_poke=poke, design=design
        )
        self.design = self.execmem.design.name
        self.limits = Limits()
        self.cpus = tuple(
            Cpu(self.arch, self.memory, number, self.limits) for number in range(cpus)
        )
        self.breakpoints: dict[int, Callable[[Cpu], int]] = {}
        loaded: dict[str, LoadedModule] = {}
        layouts = None if image is None else layouts_of(image)
        self.places = Places(self.memory, loaded, Disassembler(self.arch))
        self.calls = Calls(self.arch, self.memory, self.cpus, self.limits, self._begin)
        runner = _GuestCalls(self.calls, self.places)
        self.kernel = Kernel(
            self.arch,
            self.memory,
            self.cpus,
            runner,
            loaded=loaded,
            unknown=policy,
            kasan=kasan,
            heap_limit=heap_limit,
            seed=seed,
            limits=self.limits,
            layouts=layouts,
        )
        self.places.name_at = self.kernel.name_at
        self.explainer = runner.explainer = Explainer(
            self.arch, self.kernel, self.places, self.calls
        )
        self._connect_cpus()
        self.loader = Loader(
            arch=self.arch,
            execmem=self.execmem,
            symbols=SymbolTable(
                self.kernel,
                refuse_unknown=policy is Unknown.REFUSE,
                exported=(image.exports or None) if image is not None else None,
                stand_in=self.kernel.stand_in,
            ),
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
                version=self.build.version.value,
            ),
        )
        self.calls.attach(self.kernel.serving, self.kernel.return_address, self.explainer)
        self.caller = Caller(self.arch, self.memory, self.kernel, self.calls)
        self._parameters = Parameters(self.memory, self.kernel, self.caller)
        self.insmod = Insmod(
            self.loader,
            self.kernel,
            self.caller,
            self.explainer,
            self._parameters,
            self._new_module,
        )
        self.insmod.changing = self._changing
        self.modprobe = runner.modprobe = Modprobe(
            self.arch, self.kernel, loaded, self.insmod, root, image
        )
        self.explainer.own_kernel = self.modprobe.own_kernel
        gate = self.loader.gate
        gate.facts, gate.log = self.modprobe.facts, self.kernel.say
        gate.kernel, gate.layouts, gate.force = image, layouts, force
        gate.constructors = constructors or (self.build.config or {}).get(CONSTRUCTORS) == "y"
        self._patcher = Patcher(
            self.execmem, self.kernel, self.places, self.calls, self.caller, self.breakpoints
        )
        if self.arch.patching is not None:
            self.kernel.text = LiveText(
                self.arch,
                self.arch.patching,
                execmem=self.execmem,
                kernel=self.kernel,
                breakpoints=self.breakpoints,
                modules=loaded.values,
                where=self.places.where,
                running=self.caller.running,
            )

    @abc.abstractmethod
    def _new_module(self, loaded: LoadedModule, report: ModuleReport) -> Module:
        """Return the module that a user sees of one that was loaded."""

    @abc.abstractmethod
    def _changing(self, loaded: LoadedModule) -> None:
        """Take note that a module's init is over, or that it goes."""

    def _connect_cpus(self) -> None:
        """Let CPUs ask the kernel what is its to know, and who explains what went wrong."""
        for each in self.cpus:
            each.on_tick = partial(advance, self.kernel, TICK * INSTRUCTION)
            each.on_clock = partial(counter, self.kernel)
            each.on_entropy = partial(entropy, self.kernel)
            each.breakpoints = self.breakpoints
            each.on_access_failed = self.explainer.fix
            each.on_check = self.explainer.warn
            each.last_words = partial(self.explainer.last_words, each)

    def _begin(self) -> None:
        """Set the CPU up that a call from outside is going to run on."""
        self.kernel.reset_cpu()
        if self.kernel.text is not None:
            self.kernel.text.ftrace.begin()

    @property
    def text(self) -> LiveText:
        """What patches the text of modules while it is live; ExecmemError where nothing does."""
        if self.kernel.text is None:
            raise ExecmemError(f"{self.arch.name}: live text cannot be patched")
        return self.kernel.text


def given(kernel: str | Path | KernelImage, *, modelled: bool) -> KernelImage:
    """Return the kernel that a machine is to have; BadKernel where it cannot."""
    image = kernel if isinstance(kernel, KernelImage) else read_kernel(kernel)
    what = f"Linux {image.release}" if image.release else "the kernel"
    if not modelled:
        reason = (
            f"{what} is not booted for this; --modelled (modelled=True) applies its facts "
            "to the kernel that is modelled"
        )
        raise BadKernel(image.name, "kernel", reason)
    known = image.arch.loads.page_sizes
    if image.page_size not in (None, *known):
        size, all_known = size_text(image.page_size or 0), ", ".join(map(size_text, known))
        reason = f"{what} has pages of {size}; {image.arch.name} has those of {all_known}"
        raise BadKernel(image.name, "pages", reason)
    return image


def arch_for(arch: str | Arch | None, image: KernelImage | None) -> Arch:
    """Return the architecture that is asked for, which a kernel tells, too."""
    if arch is None and image is None:
        raise ValueError("a machine needs an architecture (arch), or a kernel that tells it")
    if image is not None and arch is None:
        return image.arch
    found = arch if isinstance(arch, Arch) else arch_by_name(arch or "")
    if image is not None and found is not image.arch:
        raise BadKernel(
            image.name, "architecture", f"is for {image.arch.name}, not for {found.name}"
        )
    return found


def address_map_of(arch: Arch, kaslr: int | None, image: KernelImage | None) -> AddressMap:
    """Return where things lie: as in a kernel that is given, so far as it says that."""
    if image is None:
        return arch.loads.address_map(kaslr)
    lies = image.interval
    end = image.symbols.get("_etext")
    text_size = None if end is None else end - lies.start
    build = build_of(None, image, arch)
    return arch.loads.address_map(
        kaslr,
        lies.size,
        start=lies.start,
        text_size=text_size,
        page=build.page_size.value,
        config=image.config,
        version=build.version.value,
    )


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
