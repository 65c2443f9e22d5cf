# SPDX-License-Identifier: GPL-2.0-or-later
"""A computer that goes back to what it was."""

from __future__ import annotations

import abc
import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import unicorn
from unicorn import unicorn_const as uc_const

from archs import Arch
from emulator.boards.access import PAGE
from emulator.boards.breaks import Breaks
from emulator.boards.state import Mark, State, Still, context_bytes
from emulator.boards.steering import Steering
from emulator.clock import Clock
from emulator.hardware.part import Device, Wires
from emulator.ram import Frozen

_UC_CTL = unicorn.unicorn_py3.unicorn.uclib.uc_ctl
_FLUSH_TLB = uc_const.UC_CTL_TLB_FLUSH | uc_const.UC_CTL_IO_WRITE << 30  # UC_CTL_WRITE of unicorn.h


class Rewinding(Steering):
    """What a computer does to go back."""

    breaks: Breaks
    clock: Clock
    devices: list[Device]
    sites: set[int]
    wires: Wires
    _soon: Any
    _soon_at: int
    _until: int
    _waited: int

    def __init__(self, arch: Arch) -> None:
        super().__init__(arch)
        self.broken = ""  # why it can only go back
        self._context: unicorn.unicorn.UcContext | None = None
        self._fresh: list[int] = []  # addresses of code that was, since memory was frozen
        self._restored: State | None = None  # what was gone back to last
        self._touched = False  # whether a part was spoken to since the last return
        self._watching: Any = None  # the hook that tells of code that is translated

    def registers(self) -> Mapping[str, int]:
        """Return the registers that the emulator's own copy leaves out."""
        return {}

    def set_registers(self, values: Mapping[str, int]) -> None:
        """Set them."""
        assert not values

    @abc.abstractmethod
    def _watch_sites(self, addresses: Iterable[int]) -> None: ...

    @abc.abstractmethod
    def _soon_from(self, start: int) -> None: ...

    @abc.abstractmethod
    def _not_soon(self) -> None: ...

    def context(self) -> bytes:
        """Return what the emulator keeps of the CPU."""
        if self._context is None:
            self._context = self.uc.context_save()
        else:
            self.uc.context_update(self._context)
        return context_bytes(self._context)

    def translate_anew(self, start: int, end: int) -> None:
        """Let the blocks at addresses be translated again, so that hooks reach them."""
        self.uc.ctl_remove_cache(start, end)

    def forget_code(self) -> None:
        """Let code be translated again: it has changed behind the emulator's back."""
        self.uc.ctl_flush_tb()

    def forget_addresses(self) -> None:
        """Let addresses be translated again: page tables have changed in the same way."""
        _UC_CTL(self.uc._uch, _FLUSH_TLB)  # noqa: SLF001 -- what the C library calls it by

    # Going back -----------------------------------------------------------------------------------

    def save(self) -> State:
        """Return everything but the memory."""
        devices = tuple(device.state() for device in self.devices)
        return State(
            self.context(),
            dict(self.registers()),
            (self.clock.now, self.clock.seed),
            devices,
            tuple(self.wires.pending),
            len(self.wires.console),
            tuple(self.sites),
        )

    def restore(self, state: State) -> None:
        """Set everything but the memory."""
        context = self.uc.context_save()
        ctypes.memmove(context.context, state.context, len(state.context))
        self._restore(context, state)

    def _restore(self, context: unicorn.unicorn.UcContext, state: State) -> None:
        self.uc.context_restore(context)
        if state.registers:
            self.set_registers(state.registers)
        clock, wires = self.clock, self.wires
        clock.now, clock.seed = state.clock
        if self._touched or state is not self._restored:
            for device, values in zip(self.devices, state.devices, strict=True):
                device.set_state(values)
            self._touched, self._restored = False, state
        wires.pending[:] = state.pending
        if len(wires.console) != state.console:
            del wires.console[state.console :]
            wires.kept = min(wires.kept, state.console)
        if len(state.sites) != len(self.sites):
            self._watch_sites(state.sites)
        self.breaks.forget()
        self._waited = 0
        self.broken = ""
        self.watching.refresh()

    def freeze(self) -> Still:
        """Return the computer as it is now, memory and all; `back` makes it that again."""
        if self._watching is None:
            self._watching = self.uc.hook_add(uc_const.UC_HOOK_EDGE_GENERATED, self._translated)
        self._fresh.clear()
        still = Still(self.ram.freeze(), self.uc.context_save(), self.save())
        self.forget_addresses()  # of pages that may be written without a copy
        return still

    def back(self, still: Still) -> None:
        """Go back to what was frozen."""
        if self.ram.frozen is not still.frozen:
            self.ram.thaw(still.frozen)
            self.forget_code()
        else:
            stale = bool(self._fresh) and self._stale()
            self.ram.drop()
            if stale:
                self.forget_code()
        self._fresh.clear()
        self._restore(still.context, still.state)
        self.forget_addresses()

    def mark(self) -> Mark:
        """Return the computer as it is now, between two instructions: what has changed of it.

        It costs less than `freeze`, and leaves more to do to `back_to`.
        """
        if self.ram.frozen is None:
            self.freeze()
        frozen = self.ram.frozen
        assert frozen is not None
        numbers = self.ram.changed()
        state = self.save()
        pages = tuple(self.ram.pages(numbers))
        return Mark(
            frozen=frozen,
            pages=pages,
            context=self.uc.context_save(),
            state=state,
            soon=None if self._soon is None else self._soon_at,
            waited=self._waited,
            passing=self.breaks.passing,
        )

    def back_to(self, mark: Mark) -> None:
        """Go back to a mark."""
        self._not_soon()
        if self.ram.frozen is mark.frozen:
            self.ram.drop()
        else:
            self.ram.thaw(mark.frozen)
        for start, data in mark.pages:
            self.ram.view[start : start + len(data)] = data
        self._fresh.clear()
        self.forget_code()
        self._restore(mark.context, mark.state)
        self.forget_addresses()
        self._waited = mark.waited
        self.breaks.passing = mark.passing
        if mark.soon is not None:
            self._soon_from(mark.soon)

    def _translated(self, _uc: unicorn.Uc, block: Any, _before: Any, _data: object) -> None:
        if block.pc != self._until:  # nothing is executed there, and nothing kept
            self._fresh.append(block.pc)

    def _stale(self) -> bool:
        """Return whether code was translated that is not there when memory goes back."""
        pages = set()
        for address in {address & -PAGE for address in self._fresh}:
            physical = self.translate(address)
            if physical is None:
                return True
            pages.add((physical - self.ram.start) // PAGE)
        return bool(pages.intersection(self.ram.changed().tolist()))

    def give_up(self, context: unicorn.unicorn.UcContext) -> None:
        """Let the CPU be where it once was, and all else as it is: a call that did not return."""
        registers = self.registers()
        self.uc.context_restore(context)
        self.set_registers(registers)
        self.breaks.forget()

    def thaw(self, frozen: Frozen, state: State) -> None:
        """Become what was frozen: memory and all else."""
        self.ram.thaw(frozen)
        self.restore(state)
        self.forget_code()
        self.forget_addresses()
