# SPDX-License-Identifier: GPL-2.0-or-later
"""What code compares: the values of both sides at each comparison that it executes, or calls for.

Unicorn has a hook of its own for operands of comparisons; it tells of x86's alone. So instructions
are looked at, and registers and memory read just before they execute: slow, for who wants to know of a
single run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
# Values of the two sides: numbers, or bytes that a function was asked to compare.
Pair = tuple[int, int] | tuple[bytes, bytes]
# Functions that compare memory at their first two arguments: which says how many bytes, if one does,
# and whether they are strings (lib/string.c, include/linux/string.h, include/crypto/utils.h).
COMPARING: Mapping[str, tuple[int | None, bool]] = {
    "memcmp": (2, False),
    "bcmp": (2, False),
    "__crypto_memneq": (2, False),
    "strcmp": (None, True),
    "strncmp": (2, True),
    "strcasecmp": (None, True),
    "strncasecmp": (2, True),
    "sysfs_streq": (None, True),
    "strstr": (None, True),
    "strnstr": (2, True),
}
_PAGE = 4096
LONGEST = 32  # bytes of them that are looked at
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
    functions
        Addresses of functions of `COMPARING`: address -> name. Who is told of calls in another way
        calls `called`.
    """

    def __init__(
        self,
        uc: unicorn.Uc,
        arch: Arch,
        spans: Iterable[tuple[int, int]],
        read: Callable[[int, int], bytes],
        anew: Callable[[], object],
        functions: Mapping[int, str] | None = None,
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
        self._functions = dict(functions or {})
        names = arch.runs.calling.arguments[:3]
        self._arguments = [self._register(name) for name in names]
        self._hooks += [
            uc.hook_add(uc_const.UC_HOOK_CODE, self._entered, None, at, at)
            for at in self._functions
        ]
        anew()

    def _entered(self, _uc: unicorn.Uc, address: int, _size: int, _data: object) -> None:
        self.called(self._functions[address])

    def called(self, name: str) -> None:
        """Note what a function is going to compare that has just been called."""
        if name not in COMPARING or len(self._found) >= _MOST:
            return
        which, text = COMPARING[name]
        first, second, size = (0 if read is None else read() for read in self._arguments)
        most = LONGEST if which is None else min(size, LONGEST)
        left, right = self._bytes(first, most), self._bytes(second, most)
        if text:
            left, right = left.partition(b"\0")[0], right.partition(b"\0")[0]
        if left != right:
            self._found[left, right] = None

    def _bytes(self, address: int, most: int) -> bytes:
        """Return what stands at an address, as far as there is memory."""
        whole = self._read(address, most)
        if len(whole) == most:
            return whole
        return self._read(address, min(most, -address % _PAGE))

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

    @property
    def found(self) -> list[Pair]:
        """What was compared, each two values once."""
        return list(self._found)

    def stop(self) -> None:
        """Note nothing more."""
        for hook in self._hooks:
            self._uc.hook_del(hook)
        self._anew()
