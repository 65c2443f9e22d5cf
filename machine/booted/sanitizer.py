# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks that a machine whose kernel is booted is put under."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from emulator.boards.board import Board
from kernels.booted.kernel import BootedKernel
from kernels.findings import Finding, FindingKind
from kernels.guarding import PoolState
from machine.booted.functions import Functions
from machine.booted.guarded import GuardedHeap
from machine.booted.locks import Locks
from machine.booted.module import BootedModule
from machine.sanitizing import Sanitizer

_PAGE = 4096


class BootedSanitizer(Sanitizer):
    """Checks of a machine whose kernel is booted; see `Sanitizer`.

    Parameters
    ----------
    checks
        Which.
    kernel, functions
        Its kernel, and the functions of that.
    modules
        Returns the modules that are loaded now, by name.
    name, disassemble
        Return what lies at an address, and the instruction there.
    """

    def __init__(
        self,
        checks: Iterable[str],
        kernel: BootedKernel,
        functions: Functions,
        modules: Callable[[], Mapping[str, BootedModule]],
        name: Callable[[int], str | None],
        disassemble: Callable[[int], str],
    ) -> None:
        super().__init__(checks)
        self._modules = modules
        self._board: Board = kernel.board
        self.loading = ""  # the module that is being loaded
        self.heap: GuardedHeap | None = None
        guest = kernel.guest
        if self.checks & {"guard", "leaks"}:
            self.heap = GuardedHeap(guest, functions, name, self._owner, disassemble, self)
            self.at_end(self.heap.end)
        if "uninit" in self.checks:
            where = "the modelled kernel, with Machine(kasan=True)"
            self.lacks.append(f"uninit: each access is looked at only in {where}")
        if "locks" in self.checks:
            locks = Locks(guest, functions, name, self)
            self.at_end(locks.end)

    def _owner(self, address: int) -> str:
        for module in self._modules().values():
            for kind, at in module.regions.items():
                if kind.is_text and at.address <= address < at.address + at.size:
                    return module.name
        return ""

    @property
    def unguarded(self) -> int:
        """How many objects of modules found no place in the pool, and have no guard."""
        return 0 if self.heap is None else self.heap.pool.unguarded

    @property
    def held(self) -> int:
        """How many guarded objects there are that are not freed."""
        return 0 if self.heap is None else len(self.heap.pool.live())

    def look(self) -> None:
        """Look at the red zones of all objects now, and not only when they are freed."""
        if self.heap is not None:
            self.heap.look()

    def loaded(self, module: BootedModule) -> None:
        """Check what a load has mapped."""
        if "wx" not in self.checks:
            return
        tables, words = self._board.tables(), self._board.ram.words
        for kind, at in module.regions.items():
            for address in range(at.address, at.address + at.size, _PAGE):
                if tables.is_open(words, address):
                    reason = f"{kind.name.lower()} of {module.name} is writable and executable"
                    self.found(Finding(FindingKind.WX, module.name, reason, address))
                    break

    def unloaded(self, name: str) -> None:
        """Check what a module that is gone has not freed."""
        if "leaks" not in self.checks or self.heap is None:
            return
        for held in self.heap.pool.live(name):
            told = held.told()
            where = told.allocated[0] if told.allocated else ""
            reason = f"{name} leaks {told}"
            callers = told.allocated[1:]
            self.found(Finding(FindingKind.LEAK, where, reason, held.address, told, callers))

    def alloc(self, size: int) -> int | None:
        """Return the address of a guarded object for whoever calls from outside; None: none."""
        return None if self.heap is None else self.heap.alloc_outside(size)

    def free(self, address: int) -> bool:
        """Free what `alloc` returned; False where that is none of the guarded ones."""
        return self.heap is not None and self.heap.free_outside(address)

    def state(self) -> PoolState | None:
        """Return what is allocated, for `set_state`."""
        return None if self.heap is None else self.heap.state()

    def set_state(self, state: PoolState | None) -> None:
        """Have allocated what was then."""
        if self.heap is not None and state is not None:
            self.heap.set_state(state)
