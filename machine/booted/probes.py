# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes of a booted kernel and its modules: the registers whenever an instruction is reached.

Nothing in the guest's memory changes, so every instruction can be probed, exclusive accesses and
what the kernel rewrites included; only what is no instruction's beginning is refused, which is
found by decoding from the function's start, as can_probe() does (kernel/kprobes.c). An
instruction that is executed again, after a page fault or as a repeated string instruction, is
reached again.

What a hit costs (6.12, all three architectures): 1 to 5 microseconds where it is only counted, 15
to 30 where its registers are kept, 20 to 45 with a handler, for which the emulator's run ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from archs.text import Kprobes as Encoding
from emulator.boards.breaks import Break
from kernels.booted.guest import Guest
from kernels.tracing import LIMIT, Hit, PatchRefused, UntilStopped
from machine.booted.functions import LONGEST, Spot

ORDER = 1  # of breakpoints: behind the kernel's watchers, before what goes elsewhere


class Probe(UntilStopped):
    """One probe, until `remove`; a context manager. Made by `Machine.probe`.

    `hits` holds the first hits, as many as `limit` says; `count` is how many there were.
    """

    def __init__(
        self, probes: Probes, spot: Spot, handler: Callable[[Hit], object] | None, limit: int
    ) -> None:
        self._probes = probes
        self.spot = spot
        self.handler = handler
        self.limit = limit
        self.hits: list[Hit] = []
        self.reached = 0

    @property
    def count(self) -> int:
        """How often it was hit."""
        return self.reached

    @property
    def address(self) -> int:
        """Where it is."""
        return self.spot.address

    @property
    def where(self) -> str:
        """Where it is, by name."""
        return self.spot.where

    def remove(self) -> None:
        """Take the probe away; a second time does nothing."""
        self._probes.remove(self)

    stop = remove


class Probes:
    """The probes of one machine.

    Parameters
    ----------
    guest
        Its kernel.
    encoding
        The architecture's instructions.
    read
        Returns guest memory.
    """

    def __init__(self, guest: Guest, encoding: Encoding, read: Callable[[int, int], bytes]) -> None:
        self._guest = guest
        self._board = board = guest.board
        self._encoding = encoding
        self._read = read
        self._registers = board.reader(encoding.registers)
        names = encoding.registers
        self._arguments = tuple(
            names.index(name) for name in board.arch.runs.calling.arguments if name in names
        )
        self._breaks: dict[Probe, Break] = {}

    @property
    def all(self) -> list[Probe]:
        """Those that are there."""
        return list(self._breaks)

    def add(self, spot: Spot, handler: Callable[[Hit], object] | None, limit: int = LIMIT) -> Probe:
        """Put a probe at an instruction; PatchRefused where none begins."""
        self._check(spot)
        probe = Probe(self, spot, handler, limit)
        self._breaks[probe] = self._board.break_at(
            spot.address,
            partial(self._reached, probe),
            inside=handler is None,
            order=ORDER,
            outside=f"a probe at {spot.where} notes it",
        )
        return probe

    def remove(self, probe: Probe) -> None:
        """Take a probe away; a second time does nothing."""
        made = self._breaks.pop(probe, None)
        if made is not None:
            self._board.no_break_at(probe.address, made)

    def _reached(self, probe: Probe) -> None:
        if self._guest.apart or not probe.spot.function.there:
            return
        probe.reached += 1
        kept = len(probe.hits) < probe.limit
        if not kept and probe.handler is None:
            return
        values = self._registers()
        arguments = tuple(values[index] for index in self._arguments)
        registers = dict(zip(self._encoding.registers, values, strict=True))
        hit = Hit(probe.address, registers, arguments)
        if kept:
            probe.hits.append(hit)
        if probe.handler is not None:
            probe.handler(hit)

    def _check(self, spot: Spot) -> None:
        """Refuse a place at which no instruction begins."""
        function, address = spot.function, spot.address
        code = self._read(function.address, address - function.address)
        code += self._read(address, min(LONGEST, function.address + function.size - address))
        at, before = function.address, function.address
        while at < address:
            offset = at - function.address
            size = self._encoding.decode(code[offset : offset + LONGEST], at).size
            if not size:
                break
            before, at = at, at + size
        offset = at - function.address
        last = at == address and self._encoding.decode(code[offset:], at).size
        if at > address:
            reason, hint = "the middle of an instruction", f"one begins at {before:#x}"
        elif at < address or not last:
            reason, hint = f"{at:#x} holds no instruction", ""
        else:
            return
        raise PatchRefused("probe", address, spot.where, reason, hint)
