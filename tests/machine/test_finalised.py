# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules in the guest are finalised for the CPU that runs them."""

from __future__ import annotations

import struct

import pytest

from execmem import Machine
from tests.support.elfwriter import AARCH64, FUNC, RISCV, A, Rela, Sec, Sym, X
from tests.support.modules import PREL32, module

LSE, ZBB, CALLBACK = 37, 30, 1 << 15


def words(*values: int) -> bytes:
    """Return little-endian words."""
    return struct.pack(f"<{len(values)}I", *values)


def test_atomics_of_the_emulated_arm_cpu_are_used() -> None:
    """The branch around the large-system atomics is gone, and they do what they say."""
    code = words(
        0x1400_0003,  # b 12: as compiled, around what needs the capability
        0xB820_0022,  # ldadd w0, w2, [x1]: w2 = [x1], [x1] += w0
        0x1400_0002,  # b 16
        0x5280_0022,  # mov w2, #1
        0x2A02_03E0,  # mov w0, w2
        0xD65F_03C0,  # ret
    )
    table = Sec(
        ".altinstructions",
        struct.pack("<iiHBB", 0, 0, LSE | CALLBACK, 4, 0),
        A,
        relas=[Rela(0, PREL32[AARCH64], "add"), Rela(4, PREL32[AARCH64], "alt_cb_patch_nops")],
    )
    image = module(
        AARCH64,
        extra=[Sec(".text.add", code, A | X, align=4), table],
        symbols=[Sym("add", ".text.add", 0, len(code), FUNC), Sym("alt_cb_patch_nops")],
    )
    machine = Machine("arm64")
    loaded = machine.load(image, init=False)
    counter = machine.alloc((41).to_bytes(8, "little"))
    assert loaded.call("add", 3, counter) == 41
    assert int.from_bytes(machine.read(counter, 8), "little") == 44


@pytest.mark.parametrize(("extension", "result"), [(ZBB, 1), (ord("c") - ord("a"), 2)])
def test_extensions_of_the_emulated_riscv_cpu_are_known(extension: int, result: int) -> None:
    """It has compressed instructions but no Zbb: that replacement must not be taken."""
    # li a0, 1 ; ret ; li a0, 2
    code = words(0x0010_0513, 0x0000_8067, 0x0020_0513)
    table = Sec(
        ".alternative",
        struct.pack("<iiHHI", 0, 0, 0, 4, extension),
        A,
        relas=[Rela(0, PREL32[RISCV], "pick"), Rela(4, PREL32[RISCV], "pick", 8)],
    )
    image = module(
        RISCV,
        extra=[Sec(".text.pick", code, A | X, align=4), table],
        symbols=[Sym("pick", ".text.pick", 0, len(code), FUNC)],
    )
    assert Machine("riscv64").load(image, init=False).call("pick") == result
