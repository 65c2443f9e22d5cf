# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions as text, by capstone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from archs import Arch

if TYPE_CHECKING:
    import capstone

LONGEST = 15  # bytes that an instruction has


class Disassembler:
    """Disassembles code of one architecture; capstone is set up at the first use."""

    def __init__(self, arch: Arch) -> None:
        self._emulation = arch.runs.emulation

    @cached_property
    def _engine(self) -> capstone.Cs:
        return self._made()

    def _made(self) -> capstone.Cs:
        import capstone  # which brings every architecture that there is

        kind = getattr(capstone, self._emulation.capstone_prefix)
        mode = 0
        for name in self._emulation.capstone_mode:
            mode |= getattr(capstone, name)
        return capstone.Cs(kind, mode)

    @cached_property
    def _detailed(self) -> capstone.Cs:
        engine = self._made()
        engine.detail = True
        return engine

    def one(self, code: bytes, address: int) -> str:
        """Return the first instruction of `code`; its bytes where there is no valid one."""
        for _, _, text in self._read(code, address, 1):
            return text
        return f"(bytes {code[:4].hex(' ')})"

    def size(self, code: bytes, address: int) -> int | None:
        """Return the bytes of the first instruction of `code`; None where there is no valid one."""
        for _, size, _ in self._read(code, address, 1):
            return size
        return None

    def transfers(self, code: bytes, address: int) -> bool:
        """Return whether the first instruction of `code` may go on elsewhere than behind itself."""
        import capstone

        kinds = (
            *(capstone.CS_GRP_JUMP, capstone.CS_GRP_CALL, capstone.CS_GRP_RET),
            *(capstone.CS_GRP_INT, capstone.CS_GRP_IRET, capstone.CS_GRP_BRANCH_RELATIVE),
        )
        return any(
            instruction.group(kind)
            for instruction in self._detailed.disasm(code, address, 1)
            for kind in kinds
        )

    def detailed(self, code: bytes, address: int) -> capstone.CsInsn | None:
        """Return the first instruction of `code` with its operands; None where there is no valid one."""
        return next(self._detailed.disasm(code, address, 1), None)

    def all(self, code: bytes, address: int) -> list[tuple[int, int, str]]:
        """Return (address, size, text) of every instruction up to the first invalid one."""
        return list(self._read(code, address, 0))

    def _read(self, code: bytes, address: int, most: int) -> Iterator[tuple[int, int, str]]:
        """Yield (address, size, text), at most so many (0: all); those capstone cuts short whole."""
        shortened, at, ahead = self._emulation.shortened, 0, True
        while ahead:
            ahead = False
            for where, size, mnemonic, operands in self._engine.disasm_lite(
                code[at:], address + at, most
            ):
                start, whole = where - address, int(size)
                if mnemonic in shortened:
                    known = shortened[mnemonic](code[start : start + LONGEST])
                    if known is None:
                        return
                    whole = known
                yield where, whole, f"{mnemonic} {operands}".strip()
                if whole != size and not most:
                    at, ahead = start + whole, True
                    break
