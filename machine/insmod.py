# SPDX-License-Identifier: GPL-2.0-or-later
"""One module: brought in, initialised, let go and taken out, as insmod and rmmod have it done.

What a load changed is taken back where it fails, but for what the guest itself did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

from allocator import ExecmemError
from emulator import process
from emulator.budget import one_budget
from emulator.faults import Fault, Stopped
from kernels.errors import errno_name
from kernels.modelled.api.held import left, taken
from kernels.modelled.api.sched import abandon
from kernels.modelled.kasan import CheckedHeap
from kernels.modelled.kernel import Kernel
from kernels.prototypes import parse
from loader.admission import constructors_of
from loader.errors import InitFailed, ModuleInUse
from loader.loaded import LoadedModule, State
from loader.module import Loader
from machine.calling import Caller
from machine.explain import Explainer
from machine.module import Module
from machine.parameters import Parameters
from machine.report import ModuleReport

_one_budget = one_budget(lambda insmod: insmod.limits)


class Insmod:
    """Loads modules into one machine and unloads them.

    Parameters
    ----------
    loader
        Forms them.
    kernel
        What they are let into.
    caller
        Calls their functions.
    explainer
        Knows what stopped before.
    parameters
        Sets what is given to a module.
    present
        Makes what a user gets of a module.

    `modules` are those that are there, `leaks` what those did not free that are gone, where
    that is checked.
    """

    def __init__(
        self,
        loader: Loader,
        kernel: Kernel,
        caller: Caller,
        explainer: Explainer,
        parameters: Parameters,
        present: Callable[[LoadedModule, ModuleReport], Module],
    ) -> None:
        self._loader = loader
        self._kernel = kernel
        self._caller = caller
        self.limits = caller.limits
        self._explainer = explainer
        self._parameters = parameters
        self._present = present
        self.modules: dict[str, Module] = {}
        self.leaks: list[str] = []
        # Told of a module whose init is over, or that goes: its memory is about to be others'.
        self.changing: Callable[[LoadedModule], object] = lambda _loaded: None
        # Told of a module that is there, and of one that goes.
        self.came: Callable[[LoadedModule], object] = lambda _loaded: None
        self.leaving: Callable[[LoadedModule], object] = lambda _loaded: None

    def load(self, image: bytes, name: str, *, init: bool, params: Mapping[str, object]) -> Module:
        """Form a module and run its init; its bytes are those of a file with that name."""
        first_line = self._kernel.log.total
        if process.box is not None:
            process.box.load(name)
        loaded = self._loader.form(image, name)
        regions = dict(loaded.regions)
        result = stopped = None
        since = taken(self._kernel)
        try:
            self._kernel.modules.coming(loaded)
            if self._kernel.text is not None:
                self._kernel.text.static_keys.add_module(loaded)
            self._parameters.set(loaded, params)
            if init:
                result = self._run_init(loaded)
        except BaseException as error:
            if isinstance(error, InitFailed):
                error.cause = self._explainer.first_stop(loaded.name)
            if isinstance(error, Fault):
                left(self._kernel, since, error.cause or Stopped(loaded.name, error))
            if isinstance(error, Fault) and error.kind.is_unknown:
                # Nothing is wrong with the module: this kernel ends here. It stays as a
                # kernel would leave it after an oops in init, and its functions can be called.
                stopped = error
                self._kernel.stopped[loaded.name] = error.cause or Stopped(loaded.name, error)
                abandon(self._kernel, lambda at: loaded.region_at(at) is not None)
            else:
                self.changing(loaded)
                if loaded.state is State.LIVE:
                    self._loader.begin_unload(loaded)
                self._kernel.modules.gone(loaded)
                self._loader.discard(loaded)
                raise
        self._kernel.flush_log()
        self.changing(loaded)
        report = ModuleReport(
            name=loaded.name,
            arch=self._loader.arch.name,
            design=self._loader.execmem.design.name,
            regions=regions,
            sections=loaded.sections,
            relocations=loaded.linked.counts,
            plt_slots=sum(use.used for use in loaded.linked.plt.values()),
            plt_reserved=sum(use.reserved for use in loaded.linked.plt.values()),
            unknown=loaded.unknown,
            init_result=result,
            init_fault=stopped,
            log=self._kernel.log.since(first_line),
            taints=loaded.taints,
            notices=loaded.notices,
        )
        module = self._present(loaded, report)
        self.modules[loaded.name] = module
        self.came(loaded)
        return module

    def _run_constructors(self, loaded: LoadedModule) -> None:
        """Run a module's constructors, where the kernel does that (do_mod_ctors)."""
        section = constructors_of(loaded.view) if self._loader.gate.constructors else None
        if section is not None:
            place = loaded.sections[section.index]
            pointer = self._loader.arch.link.dialect.word
            for at in range(0, place.size - pointer + 1, pointer):
                self._caller.call(self._kernel.word(place.address + at, pointer))

    def _run_init(self, loaded: LoadedModule) -> int | None:
        self._run_constructors(loaded)
        address = self._kernel.modules.entry(loaded, "init")
        result = None
        if address:
            result = parse("int init(void)").result.from_register(self._caller.call(address))
            if result < 0:
                raise InitFailed(loaded.name, -result, errno_name(-result))
        self._loader.settle(loaded)
        self._kernel.modules.live(loaded)
        return result

    @_one_budget
    def unload(self, module: Module, *, force: bool = False) -> None:
        """Run a module's exit and take it out of memory (delete_module); see `Machine.unload`."""
        loaded = module.loaded
        if loaded.state is State.COMING:
            if loaded.users:
                raise ModuleInUse(loaded.name, tuple(sorted(loaded.users)))
            self._discard(loaded)
            return
        if not loaded.users and loaded.state is State.LIVE:
            begins, ends = (self._kernel.modules.entry(loaded, name) for name in ("init", "exit"))
            permanent, held = bool(begins and not ends), self._kernel.modules.held(loaded)
            if not force and (permanent or held):
                raise ModuleInUse(loaded.name, references=held, permanent=permanent)
            if permanent or held:
                self._loader.gate.taints.add("R")
        self._loader.begin_unload(loaded)
        if process.box is not None:
            process.box.load(loaded.name)
        address = self._kernel.modules.entry(loaded, "exit")
        self._kernel.modules.going(loaded)
        try:
            if address:
                self._caller.call(address)
            self._parameters.destroy(loaded)
        finally:
            self._kernel.flush_log()
            self._discard(loaded)

    def _discard(self, loaded: LoadedModule) -> None:
        """Take a module out of memory, and what it left registered out of the registry."""
        self.changing(loaded)
        self.leaving(loaded)
        if isinstance(self._kernel.heap, CheckedHeap):
            self.leaks += [f"{loaded.name} leaks {o}" for o in self._kernel.heap.leaks(loaded.name)]
        try:
            self._kernel.modules.gone(loaded)
            self._loader.discard(loaded)
        finally:
            self._kernel.registry.forget(loaded.name)
            self._kernel.stopped.pop(loaded.name, None)
            del self.modules[loaded.name]

    def remove(self, module: Module) -> None:
        """Unload a dependency again, whatever its exit does."""
        tainted = set(self._loader.gate.taints)
        with suppress(ExecmemError):
            self.unload(module, force=True)
        self._loader.gate.taints &= tainted
