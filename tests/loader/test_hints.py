# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person is told to do about code that was compiled for something else."""

from __future__ import annotations

import pytest

from execmem.check import elfwriter as elf
from execmem.check.elfwriter import LOCAL, X86_64, A, Rela, Sec, Sym, W, X, write
from loader.elf import parse
from loader.errors import BadModule, RelocationError
from loader.layout import plan
from loader.link import link_view
from tests.archs.facts import facts
from tests.support.addresses import place


def hint(arch, number, flags=A | X):
    """Return the hint of the error that one relocation of a section with some flags ends in."""
    target = Sec("there", bytes(16), flags, align=16, relas=[Rela(0, number, "variable")])
    symbols = [Sym("variable", ".data", bind=LOCAL)]
    view = parse(write(arch.machine, [target, Sec(".data", bytes(8), A | W, align=8)], symbols))
    layout = plan(view)
    with pytest.raises(RelocationError) as caught:
        link_view(view, layout, place(layout, facts(arch).link.base), {})
    return caught.value.failures[0].hint


def test_code_that_needs_a_got(arch):
    """What needs a global offset table is told how to get one, and how to do without."""
    for number in facts(arch).link.got_rows:
        assert hint(arch, number).startswith("--with-plt adds one")


def test_code_of_another_code_model(arch):
    """Absolute addresses that no kernel address fits are a matter of the code model."""
    for number in facts(arch).link.absolute_rows:
        assert facts(arch).link.code_model_option in hint(arch, number)


def test_narrow_words_in_data(arch):
    """A word of data that cannot hold an address is no matter of the code model."""
    narrow = facts(arch).link.narrow_row
    if narrow is None:
        pytest.skip(f"{arch.name} has no such word")
    text = hint(arch, narrow, A | W)
    assert "eight bytes" in text
    assert "-mcmodel" not in text


def test_thread_local_storage(arch):
    """What uses thread-local storage is told that there is none, and what there is."""
    for number in facts(arch).link.tls_rows:
        assert "__thread" in hint(arch, number)


def test_files_of_32_bits():
    """A 32-bit file is told how to become a 64-bit one."""
    with pytest.raises(BadModule, match="hint: build it with -m64"):
        parse(elf.header(write(X86_64, []), **{"class": 1, "machine": 3}))
