# SPDX-License-Identifier: GPL-2.0-or-later
"""Why the guest stopped, for a person."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NoReturn

from allocator import Allocation
from allocator.types import MemType, align_down
from archs import Arch
from archs.layouts import NotKnown
from emulator import process
from emulator.calls import Calls
from emulator.cpu import Cpu
from emulator.faults import LIMIT_HINTS, Fault, FaultKind, Stop, Stopped
from kernels.findings import FindingKind
from kernels.guarding import Wrong
from kernels.modelled import traps
from kernels.modelled.api import held
from kernels.modelled.extable import fix
from kernels.modelled.kernel import Kernel
from loader.loaded import LoadedModule, State
from machine.places import Places

# Address, whether it is a store -> what is wrong; None: nothing that is known.
Blame = Callable[[int, bool], Wrong | None]

FAR = 1 << 20  # bytes of the largest variable that members are looked for in


class Explainer:
    """Says of stops what they mean and what they come from.

    Parameters
    ----------
    arch, kernel
        Where the guest ran.
    places
        What lies where.
    calls
        What was under way.
    """

    def __init__(self, arch: Arch, kernel: Kernel, places: Places, calls: Calls) -> None:
        self._arch = arch
        self._kernel = kernel
        self._places = places
        self._calls = calls
        self._modules = places.modules
        self.where = places.where
        self.taken: Callable[[], int] = partial(held.taken, kernel)  # locks, by now
        # Says what is wrong with an access to a guarded object: address, whether it is a store.
        # Says where the kernel is that a module was built for; nothing where that is not known.
        self.blame: Blame = _nobody
        # Told of what is wrong, and the fault that it ended in.
        self.found: Callable[[Wrong, Fault], object] = lambda _wrong, _fault: None
        self.own_kernel: Callable[[LoadedModule], str] = lambda _loaded: ""

    def explain(self, stop: Stop) -> Fault:
        """Return why the guest stopped, for a person."""
        reason, symbol = stop.reason, ""
        kind, budget = stop.kind, self._calls.limits.budget
        if self._kernel.text is not None:
            stop.pc = self._kernel.text.kprobes.origin(stop.pc)
        wrong = None if stop.address is None else self.blame(stop.address, kind is FaultKind.WRITE)
        if wrong is not None:
            kind, reason = wrong.kind.fault, wrong.reason
        elif kind is FaultKind.INSTRUCTION_LIMIT:
            reason = f"{budget.instructions} instructions"
        elif kind is FaultKind.TIME_LIMIT:
            reason = f"{budget.seconds} seconds"
        elif kind in (FaultKind.TRAP, FaultKind.INSTRUCTION):
            said = traps.explain(
                self._kernel, self._places.module_at(stop.pc), stop.pc, self._places.where
            )
            if said is not None:
                kind, reason = said
            elif kind is FaultKind.TRAP and stop.number is not None:
                names = self._arch.runs.emulation.exceptions.names
                reason = names.get(stop.number, f"exception {stop.number}")
        elif stop.address is not None and (found := self._unknown_variable(stop)):
            name, how = found
            symbol = name.partition("+")[0]
            lacking = self._lacking(symbol, stop.pc)
            if lacking is not None:
                return Fault(
                    FaultKind.UNKNOWN_STRUCTURE,
                    stop.pc,
                    self._places.where(stop.pc),
                    reason=f"{lacking.what}: '{name}', {stop.kind.value} as a {how}",
                    hint=lacking.hint,
                    cause=self.first_stop(self._places.locate(stop.pc)[0]),
                    sources=self._places.sources(stop.pc),
                )
            kind = FaultKind.UNKNOWN_SYMBOL
            reason = f"'{name}', {stop.kind.value} as a {how}"
            self._kernel.calls[symbol] = self._kernel.calls.get(symbol, 0) + 1
        elif stop.address is not None:
            reason = self._access_reason(stop)
        fault = Fault(
            kind=kind,
            pc=stop.pc,
            where=self._places.where(stop.pc),
            instruction=self._places.disassemble(stop.pc),
            address=None if kind is FaultKind.UNKNOWN_SYMBOL else stop.address,
            reason=reason,
            hint=LIMIT_HINTS.get(kind, ""),
            symbol=symbol,
            cause=self.first_stop(self._places.locate(stop.pc)[0]),
            sources=self._places.sources(stop.pc),
        )
        if wrong is not None:
            self.found(wrong, fault)
        return fault

    def attribute(self, fault: Fault, address: int) -> None:
        """Say of a fault in the function at `address` what it may come from."""
        name = self._places.locate(address)[0]
        fault.cause = fault.cause or self.first_stop(name)
        loaded = self._modules.get(name)
        told = fault.kind in LIMIT_HINTS or fault.kind is FaultKind.UNKNOWN_STRUCTURE
        if loaded is not None and not told and loaded.foreign:
            fault.foreign = loaded.name
        if loaded is not None and fault.kind.is_unknown:
            fault.hint = self.own_kernel(loaded) or fault.hint

    def left(self, fault: Fault, address: int, since: int) -> None:
        """Note that the function at `address` stopped, with the locks that it took after `since`."""
        cause = fault.cause or Stopped(self._places.locate(address)[0], fault)
        held.left(self._kernel, since, cause)

    def first_stop(self, name: str) -> Stopped | None:
        """Return what stopped first of a module and of those that it depends on; None: nothing."""
        stopped = self._kernel.stopped
        if not stopped or name not in self._modules:
            return None
        reached, ahead = {name}, [name]
        while ahead:
            fresh = self._modules[ahead.pop()].providers - reached
            reached |= fresh
            ahead += fresh
        return next((stop for other, stop in stopped.items() if other in reached), None)

    def _unknown_variable(self, stop: Stop) -> tuple[str, str] | None:
        """Return what nobody implements that an access was meant for, and as what."""
        address = stop.address or 0
        places = [(address, "variable")]
        places += [(at, "per-cpu variable") for at in self._kernel.originals(address)]
        loaded = self._places.module_at(stop.pc)
        named = {} if loaded is None else self._named_at(loaded, stop.pc)
        # Far behind a symbol lies the next one's room: what the function itself names is meant.
        for at, how in places:
            name = self._kernel.unknown_at(at)
            if name is not None and name.partition("+")[0] in named.values():
                return name, how
        for at, how in places:
            before = [start for start in named if start <= at < start + FAR]
            if before and at in self._kernel.image:
                return f"{named[max(before)]}+{at - max(before):#x}", how
        found = ((self._kernel.unknown_at(at), how) for at, how in places)
        return next(((name, how) for name, how in found if name is not None), None)

    def _lacking(self, name: str, pc: int) -> NotKnown | None:
        """Return what is not known of a kernel variable that code at `pc` was given, if it is one."""
        loaded = self._places.module_at(pc)
        if loaded is None or loaded.layouts is None:
            return None
        return self._kernel.lacking(name, loaded.layouts)

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
                        found[self._kernel.address(name)] = name
                    elif loaded.layouts is not None:
                        at = self._kernel.stand_in(name, loaded.layouts)
                        found |= {} if at is None else {at: name}
        return found

    def _access_reason(self, stop: Stop) -> str:
        assert stop.address is not None
        address = stop.address
        page = self._places.memory.page_size
        if address < page:
            return "NULL pointer"
        found = self._places.memory.translate(align_down(address, page))
        stack = self._calls.stack.start
        if found is None and stack - page <= address < stack:
            return "stack overflow: below the kernel stack"
        what = "not mapped" if found is None else f"mapped {found.prot}"
        for loaded in self._modules.values():
            region = loaded.region_at(address)
            if region is not None:
                return f"{what}: {_region_text(loaded, region)}"
        name = self._kernel.name_at(address)
        if name is None and (originals := self._kernel.originals(address)):
            other = self._kernel.name_at(originals[0])
            return f"{what}: kernel symbol '{other}', which is no per-cpu variable"
        return f"{what}: kernel symbol '{name}'" if name else what

    def refuse_access(
        self, kind: FaultKind, reason: str, address: int, wrong: Wrong | None = None
    ) -> NoReturn:
        """Stop the guest at an access that it may not make, itself or in a kernel function."""
        pc = self._calls.stack.cpu.read(self._arch.runs.calling.program_counter)
        inside = self._kernel.executing
        fault = Fault(
            kind=kind,
            pc=pc,
            where=self._kernel.caller() if inside else self._places.where(pc),
            instruction="" if inside else self._places.disassemble(pc),
            address=address,
            reason=f"{reason}, in {inside}()" if inside else reason,
            sources=() if inside else self._places.sources(pc),
        )
        named = next((each for each in FindingKind if each.fault is kind), None)
        if wrong is None and named is not None:
            wrong = Wrong(named, reason)
        if wrong is not None:
            self.found(wrong, fault)
        raise fault

    def refuse(self, wrong: Wrong, address: int) -> NoReturn:
        """Stop the guest at what is wrong with a free."""
        self.refuse_access(wrong.kind.fault, wrong.reason, address, wrong)

    def last_words(self, cpu: Cpu) -> dict[str, str | int]:
        """Return what is known of a CPU over which the emulator dies."""
        pc = cpu.read(self._arch.runs.calling.program_counter)
        words: dict[str, str | int] = {
            "arch": self._arch.name,
            "pc": pc,
            "where": self._places.where(pc),
        }
        words["instruction"] = self._places.disassemble(pc)
        words["inside"] = self._kernel.executing
        code = self._places.code(pc, process.CODE)
        return words | {"code": code.hex()}

    def warn(self, pc: int) -> int | None:
        """Return where to go on after a WARN at `pc`; None: it was none."""
        return traps.warn(self._kernel, self._places.module_at(pc), pc)

    def fix(self, pc: int) -> int | None:
        """Return where to go on after a failed access at `pc` that was expected; None: it was not."""
        return fix(self._kernel, self._modules.values(), pc)


def _nobody(_address: int, _write: bool) -> None:
    """Blame nobody."""


def _region_text(loaded: LoadedModule, region: Allocation) -> str:
    kind = region.type.name.lower()
    sealed = region.type is MemType.RO_AFTER_INIT and loaded.state is State.LIVE
    return f"{kind} of {loaded.name}{' (sealed after init)' if sealed else ''}"
