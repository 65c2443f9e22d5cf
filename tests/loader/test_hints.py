# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person is told to do about code that was compiled for something else."""

from __future__ import annotations

import pytest

import archs
from loader.elf import parse
from loader.errors import BadModule, RelocationError
from loader.layout import plan
from loader.link import link_view
from tests.support import elfwriter as elf
from tests.support.addresses import place
from tests.support.elfwriter import AARCH64, LOCAL, RISCV, X86_64, A, Rela, Sec, Sym, W, X, write

BASE = {X86_64: 0xFFFF_FFFF_C000_0000, AARCH64: 0xFFFF_8000_7A00_0000, RISCV: 0xFFFF_FFFF_0200_0000}
GOT = {X86_64: (9, 42), AARCH64: (311, 312), RISCV: (20,)}
# R_X86_64_32, R_AARCH64_ABS32 and MOVW_UABS_G1, R_RISCV_HI20: small and medlow code.
ABSOLUTE = {X86_64: (10,), AARCH64: (258, 265), RISCV: (26,)}
DATA = {X86_64: 10, AARCH64: 258}
OPTION = {X86_64: "-mcmodel=kernel", AARCH64: "-mcmodel=small", RISCV: "-mcmodel=medany"}
# TPOFF32 and TLSGD; TLSLE_ADD_TPREL_HI12 and TLSGD_ADR_PAGE21; TPREL_HI20 and TLS_GD_HI20.
TLS = {X86_64: (23, 19), AARCH64: (549, 513), RISCV: (29, 22)}


def hint(arch, number, flags=A | X):
    """Return the hint of the error that one relocation of a section with some flags ends in."""
    target = Sec("there", bytes(16), flags, align=16, relas=[Rela(0, number, "variable")])
    symbols = [Sym("variable", ".data", bind=LOCAL)]
    view = parse(write(arch.machine, [target, Sec(".data", bytes(8), A | W, align=8)], symbols))
    layout = plan(view)
    with pytest.raises(RelocationError) as caught:
        link_view(view, layout, place(layout, BASE[arch.machine]), {})
    return caught.value.failures[0].hint


def test_code_that_needs_a_got(arch):
    """What needs a global offset table is told how to get one, and how to do without."""
    for number in GOT[arch.machine]:
        assert hint(arch, number).startswith("--with-plt adds one")


def test_code_of_another_code_model(arch):
    """Absolute addresses that no kernel address fits are a matter of the code model."""
    for number in ABSOLUTE[arch.machine]:
        assert OPTION[arch.machine] in hint(arch, number)


@pytest.mark.parametrize("machine", DATA)
def test_narrow_words_in_data(machine):
    """A word of data that cannot hold an address is no matter of the code model."""
    text = hint(archs.by_machine(machine), DATA[machine], A | W)
    assert "eight bytes" in text
    assert "-mcmodel" not in text


def test_thread_local_storage(arch):
    """What uses thread-local storage is told that there is none, and what there is."""
    for number in TLS[arch.machine]:
        assert "__thread" in hint(arch, number)


def test_files_of_32_bits():
    """A 32-bit file is told how to become a 64-bit one."""
    with pytest.raises(BadModule, match="hint: build it with -m64"):
        parse(elf.header(write(X86_64, []), **{"class": 1, "machine": 3}))
