# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols whose names are as long as languages that mangle them make them."""

from __future__ import annotations

import pytest

from emulator.faults import Fault
from execmem.check.elfwriter import FUNC, GLOBAL, LOCAL, A, Sec, Sym, X
from loader.elf import parse
from loader.files import ModuleFile
from machine.face import Machine
from tests.archs.facts import facts
from tests.support.modules import module

LENGTHS = (127, 128, 200, 600, 1023, 1024, 1100, 5000, 70_000)


def name_of(size):
    """Return a name of so many bytes."""
    return "_RN" + "v" * (size - 3)


def load(arch, **options):
    """Load a minimal module."""
    image = module(arch.machine, runs=True, **{"undefined": (), **options})
    return Machine(arch).load(ModuleFile("mini.ko", image))


@pytest.mark.parametrize("bind", [LOCAL, GLOBAL])
@pytest.mark.parametrize("size", LENGTHS)
def test_a_defined_name_of_any_length(arch, size, bind):
    """A function is found and called by its whole name; kallsyms shows 511 bytes of it."""
    code = facts(arch).link.ret
    names = [Sym(name_of(size), ".text.long", 0, len(code), FUNC, bind)]
    loaded = load(arch, extra=[Sec(".text.long", code, A | X, align=16)], symbols=names)
    loaded.call(name_of(size))
    shown = loaded._machine.symbolize(loaded.symbols[name_of(size)])
    assert shown.partition("+")[0] == name_of(size)[:511]


@pytest.mark.parametrize("size", LENGTHS)
def test_an_undefined_name_of_any_length(arch, size):
    """A symbol that nobody has is named in full when it is called."""
    with pytest.raises(Fault, match=f"'{name_of(size)}'"):
        load(arch, undefined=(name_of(size),)).call("mini_work")


@pytest.mark.parametrize("size", LENGTHS)
def test_an_exported_name_of_any_length(arch, size):
    """A name of any length is exported, and used by another module."""
    machine = Machine(arch)
    images = {
        "base": module(arch.machine, "base", undefined=(), exported=(name_of(size),), runs=True),
        "user": module(arch.machine, "user", undefined=(name_of(size),), runs=True),
    }
    for title, image in images.items():
        machine.load(ModuleFile(f"{title}.ko", image))
    machine.modules["user"].call("user_work")
    assert machine.modules["base"].loaded.users == {"user"}


@pytest.mark.parametrize("size", LENGTHS)
def test_a_section_name_of_any_length(size):
    """Compilers put a function into a section that is called after it."""
    image = module(62, extra=[Sec(f".text.{name_of(size)}", b"\xc3", A | X)])
    assert parse(image).find(f".text.{name_of(size)}") is not None
