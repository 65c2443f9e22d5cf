# SPDX-License-Identifier: GPL-2.0-or-later
"""What code compares: the values of both sides at each comparison that it executes.

Unicorn has a hook of its own for operands of comparisons; it tells of x86's alone. So instructions
are looked at, and registers and memory read just before they execute: slow, for who wants to know of a
single run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import unicorn
from unicorn import unicorn_const as uc_const

from archs import Arch
from emulator.disassembly import Disassembler

if TYPE_CHECKING:
    import capstone

_MOST = 2000  # pairs of a run that are noted
_REGISTER, _NUMBER, _MEMORY = 1, 2, 3  # CS_OP_*
_MASK = (1 << 64) - 1
Pair = tuple[int, int]  # values of the two sides
_Side = Callable[[], int]


class Compares:
    """Notes the values that code compares, from its making until `stop`.

    Parameters
    ----------
    uc
        The engine.
    arch
        Its architecture.
    spans
        Addresses that count: first, and end.
    read
        Returns bytes of guest memory; none where there is none.
    anew
        Lets all code be translated again.
    """

    def __init__(
        self,
        uc: unicorn.Uc,
        arch: Arch,
        spans: Iterable[tuple[int, int]],
        read: Callable[[int, int], bytes],
        anew: Callable[[], object],
    ) -> None:
        self._uc, self._arch, self._read = uc, arch, read
        self._spans, self._anew = tuple(spans), anew
        self._disassembler = Disassembler(arch)
        self._kinds = arch.runs.emulation.compares
        self._sites: dict[int, tuple[_Side, _Side] | None] = {}
        self._found: dict[Pair, None] = {}
        self._hooks = [
            uc.hook_add(uc_const.UC_HOOK_CODE, self._before, None, start, end - 1)
            for start, end in self._spans
        ]
        anew()

    def _before(self, _uc: unicorn.Uc, address: int, size: int, _data: object) -> None:
        if len(self._found) >= _MOST:
            return
        try:
            site = self._sites[address]
        except KeyError:
            site = self._sites[address] = self._site(address, size)
        if site is not None:
            self._found[site[0](), site[1]()] = None

    def _site(self, address: int, size: int) -> tuple[_Side, _Side] | None:
        """Return what reads both sides of the instruction at an address; None: it compares nothing."""
        instruction = self._disassembler.detailed(self._read(address, size), address)
        if instruction is None:
            return None
        which = self._kinds.get(instruction.mnemonic)
        operands = instruction.operands
        if which is None or len(operands) <= int(which[1]):
            return None
        first = self._side(instruction, operands[int(which[0])], 1)
        second = self._side(instruction, operands[int(which[1])], -1 if which[2:] else 1)
        if first is None or second is None:
            return None
        return first, second

    def _side(self, instruction: capstone.CsInsn, operand: Any, sign: int) -> _Side | None:
        bits = 8 * getattr(operand, "size", 8)  # of x86 alone has a size
        mask = (1 << bits) - 1
        if operand.type == _NUMBER:
            number = operand.imm * sign & mask
            return lambda: number
        if operand.type == _REGISTER and sign > 0:
            return self._register(instruction.reg_name(operand.reg))
        if operand.type == _MEMORY and sign > 0:
            memory, behind = operand.mem, instruction.address + instruction.size
            base = self._register(instruction.reg_name(memory.base)) if memory.base else None
            if memory.segment:  # relative to one: not worth knowing its base
                return None
            index = self._register(instruction.reg_name(memory.index)) if memory.index else None
            here = instruction.reg_name(memory.base) == self._arch.runs.calling.program_counter

            def value() -> int:
                at = memory.disp
                if here:
                    at += behind
                elif base is not None:
                    at += base()
                if index is not None:
                    at += index() * memory.scale
                return int.from_bytes(self._read(at & _MASK, bits // 8), "little")

            return value
        return None

    def _register(self, name: str) -> _Side | None:
        emulation, uc = self._arch.runs.emulation, self._uc
        constants = getattr(unicorn, f"{emulation.prefix.lower()}_const")
        number = getattr(constants, emulation.registers + name.upper(), None)
        if number is None:
            return None
        return lambda: int(uc.reg_read(number)) & _MASK

    def stop(self) -> list[Pair]:
        """Note nothing more, and return what was compared, each two values once."""
        for hook in self._hooks:
            self._uc.hook_del(hook)
        self._anew()
        return list(self._found)
