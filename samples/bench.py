# SPDX-License-Identifier: GPL-2.0-or-later
"""What lessons share: a few instructions, relocated by the rows and run in the guest."""

from __future__ import annotations

from collections.abc import Iterable

from allocator.types import Interval, MemType
from archs import Arch
from archs.reloc import Reloc
from emulator.disassembly import Disassembler
from loader.listing import insert
from machine.machine import ModelledMachine

ADRP_X0, ADD_X0, RET = 0x9000_0000, 0x9100_0000, 0xD65F_03C0


def row(arch: Arch, name: str) -> Reloc:
    """Return a relocation by its psABI name; KeyError where the architecture has none."""
    return next(r for r in arch.link.relocations.values() if r.name == name)


def fill(found: Reloc, code: bytes, *, place: int, target: int) -> bytes:
    """Return the instruction with the row's X for `target` in its fields; what does not fit is lost."""
    x = found.op.evaluate({"S": target, "A": 0, "P": place})
    assert x is not None
    return insert(found, code, x)


def put(machine: ModelledMachine, code: bytes, *, skip: int = 0) -> int:
    """Return the address of new module text that holds `code`, `skip` bytes after a page begins."""
    pending = machine.execmem.alloc(MemType.TEXT, skip + len(code), align=0x1000)
    pending.write(skip, code)
    return pending.finish().address + skip


def listing(arch: Arch, code: bytes, address: int) -> list[str]:
    """Return one line per instruction: address, bytes, text."""
    return [
        f"{at:#x}  {code[at - address :][:size].hex(' '):<12} {text}"
        for at, size, text in Disassembler(arch).all(code, address)
    ]


def adrp_pair(arch: Arch, *, place: int, target: int) -> bytes:
    """Return a function of arm64 that returns the target, for `place`: ADRP, ADD, RET."""
    high, low = (row(arch, f"R_AARCH64_{name}") for name in ("ADR_PREL_PG_HI21", "ADD_ABS_LO12_NC"))
    adrp = fill(high, ADRP_X0.to_bytes(4, "little"), place=place, target=target)
    add = fill(low, ADD_X0.to_bytes(4, "little"), place=place + 4, target=target)
    return adrp + add + RET.to_bytes(4, "little")


def free_runs(interval: Interval, taken: Iterable[Interval]) -> list[Interval]:
    """Return what `taken`, ascending and disjoint, leaves of an interval."""
    found, at = [], interval.start
    for one in taken:
        if one.start > at:
            found.append(Interval(at, one.start))
        at = max(at, one.end)
    return [*found, Interval(at, interval.end)] if at < interval.end else found
