# SPDX-License-Identifier: GPL-2.0-or-later
"""Accesses that were expected to fail: where the exception table says to go on."""

from __future__ import annotations

import pytest

from archs import Arch
from archs.extable import HANDLED
from emulator.faults import Fault
from execmem.check.elfwriter import FUNC, A, Rela, Sec, Sym, X
from machine.face import Machine
from tests.archs.facts import facts
from tests.support.checked import made


def _module(arch: Arch, handler: str) -> bytes:
    """Return a module with `peek`, and an exception table as kernels before 5.16 have it."""
    code, resume = facts(arch).run.peek
    known = facts(arch).link
    width = known.export_word
    kind = known.prel32 if width == 4 else known.abs64
    relas = [
        Rela(0, kind, "peek"),
        Rela(width, kind, "peek", resume),
    ]
    symbols = [Sym("peek", ".text.peek", 0, 4, FUNC)]
    if HANDLED in arch.loads.extable:
        relas.append(Rela(8, facts(arch).link.prel32, handler))
        symbols.append(Sym(handler))
    table = bytes(width * len(relas))
    sections = [
        Sec(".text.peek", bytes.fromhex(code), A | X, align=4),
        Sec("__ex_table", table, A, align=8, relas=relas),
    ]
    return made(arch.machine, magic="5.10.0-1 SMP mod_unload", extra=sections, symbols=symbols)


@pytest.mark.parametrize("handler", ["ex_handler_default", "ex_handler_fault"])
def test_tables_of_kernels_before_5_16(arch: Arch, handler: str) -> None:
    """A load of a user's address that is not there goes on where the table says."""
    machine = Machine(arch.name)
    module = machine.load(_module(arch, handler))
    assert module.call("peek", 0x1000) == 7
    place = machine.alloc(8)
    assert module.call("peek", place) == 0


def test_a_handler_that_nobody_knows(arch: Arch) -> None:
    """What an entry asks for is not guessed: the access is a fault."""
    if HANDLED not in arch.loads.extable:
        pytest.skip("its tables never named handlers")
    module = Machine(arch.name).load(_module(arch, "ex_handler_wrmsr_unsafe"))
    with pytest.raises(Fault, match="read of 0x1000"):
        module.call("peek", 0x1000)
