# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks that a machine whose kernel is Python is put under."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from allocator import KernelMemory
from allocator.types import ADDRESS_MASK
from emulator.faults import Fault
from kernels.findings import Finding, FindingKind, HeapObject
from kernels.guarding import Wrong
from kernels.modelled.api import held
from kernels.modelled.guarded import GuardedObjects
from kernels.modelled.kasan import CheckedHeap, Object
from kernels.modelled.kernel import Kernel
from loader.loaded import LoadedModule
from machine.calling import Caller
from machine.explain import Explainer
from machine.insmod import Insmod
from machine.sanitizing import Sanitizer


class ModelledSanitizer(Sanitizer):
    """Checks of a machine whose kernel is Python; see `Sanitizer`.

    Parameters
    ----------
    checks
        Which.
    kernel, memory
        Its kernel and memory.
    caller, insmod, explainer
        The parts of the machine that are told of calls, of modules that come and go, of faults.

    Raises
    ------
    AllocationError
        There is no memory for guarded objects.
    """

    def __init__(
        self,
        checks: Iterable[str],
        kernel: Kernel,
        memory: KernelMemory,
        caller: Caller,
        insmod: Insmod,
        explainer: Explainer,
    ) -> None:
        super().__init__(checks)
        self._kernel, self._memory = kernel, memory
        self._objects: GuardedObjects | None = None
        serving = kernel.serving
        for part in (explainer, serving):
            self.at_end(partial(setattr, part, "found", part.found))
            part.found = self._stopped
        if isinstance(kernel.heap, CheckedHeap):
            if "guard" in self.checks:
                self.lacks.append("guard: this machine looks at each byte already (kasan)")
        elif self.checks & {"guard", "leaks"}:
            self._guard(explainer)
        if "uninit" in self.checks:
            self._look_for_fresh()
        if "leaks" in self.checks:
            insmod.leaving = self._leaving
            self.at_end(lambda: setattr(insmod, "leaving", lambda _loaded: None))
        if "locks" in self.checks:
            if not kernel.arch.runs.emulation.ticket_locks and kernel.arch.runs.calling.link:
                said = "spinlocks that are built into modules are not seen"
                self.lacks.append(f"locks: {said}")
            caller.around = self._around
            self.at_end(lambda: setattr(caller, "around", None))
        if "wx" in self.checks:
            insmod.came = self._came
            self.at_end(lambda: setattr(insmod, "came", lambda _loaded: None))

    def _guard(self, explainer: Explainer) -> None:
        kernel, serving = self._kernel, self._kernel.serving
        objects = GuardedObjects(self._memory, serving.origin, explainer.refuse)
        self._objects = kernel.heap.apart = objects
        for part in (explainer, serving):
            self.at_end(partial(setattr, part, "blame", part.blame))
            part.blame = self._blame
        # What is allocated stays where it is, and can be freed.
        self.at_end(objects.end)

    def _look_for_fresh(self) -> None:
        heap = self._kernel.heap
        if not isinstance(heap, CheckedHeap):
            said = "each access is looked at only with Machine(kasan=True) (--kasan)"
            self.lacks.append(f"uninit: {said}")
            return
        heap.on_fresh = self._fresh
        self.at_end(lambda: setattr(heap, "on_fresh", None))

    def _fresh(self, address: int, size: int, found: Object) -> None:
        pc = self._kernel.cpu.read(self._kernel.arch.runs.calling.program_counter)
        if pc in self._kernel.image:  # a copy, which decides nothing by what it copies
            return
        where = self._kernel.symbolize(pc) or f"{pc:#x}"
        told = HeapObject(found.address, found.size, (found.allocated.place,))
        reason = f"read of {size} bytes, {address - found.address} bytes into {found}"
        self.found(Finding(FindingKind.UNINITIALISED, where, reason, address, told))

    @property
    def unguarded(self) -> int:
        """How many objects found no place with a guard, and have none."""
        return 0 if self._objects is None else self._objects.pool.unguarded

    def look(self) -> None:
        """Look at the red zones of all objects now, and not only when they are freed."""
        if self._objects is None:
            return
        for each in self._objects.pool.live():
            wrong = self._objects.pool.overwritten(each)
            if wrong is not None:
                self.found(Finding(wrong.kind, "", wrong.reason, each.address, wrong.object))

    def _blame(self, address: int, write: bool) -> Wrong | None:
        assert self._objects is not None
        return self._objects.pool.blame(address & ADDRESS_MASK, 0, write=write)

    def _stopped(self, wrong: Wrong, fault: Fault) -> None:
        self.found(
            Finding(
                wrong.kind,
                fault.where,
                fault.reason,
                fault.address,
                wrong.object,
                fault.backtrace,
                fault,
            )
        )

    def _leaving(self, loaded: LoadedModule) -> None:
        name = loaded.name
        if self._objects is not None:
            for each in self._objects.pool.live(name):
                told = each.told()
                where, reason = told.allocated[0], f"{name} leaks {told}"
                self.found(Finding(FindingKind.LEAK, where, reason, each.address, told))
        elif isinstance(self._kernel.heap, CheckedHeap):
            for one in self._kernel.heap.leaks(name):
                reason, where = f"{name} leaks {one}", one.allocated.place
                self.found(Finding(FindingKind.LEAK, where, reason, one.address))

    def _came(self, loaded: LoadedModule) -> None:
        for address in self._memory.wx_aliases():
            reason = "memory is writable and executable by one address or another"
            self.found(Finding(FindingKind.WX, loaded.name, reason, address))

    def _around(self, address: int) -> Callable[[], None]:
        kernel = self._kernel
        before = held.taken(kernel)

        def returned() -> None:
            for lock, place in held.still(kernel, before):
                where = kernel.symbolize(address) or f"{address:#x}"
                reason = f"the lock at {lock:#x} that {place} took is held after the call"
                self.found(Finding(FindingKind.LOCK, where, reason, lock))

        return returned
