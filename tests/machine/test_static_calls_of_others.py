# SPDX-License-Identifier: GPL-2.0-or-later
"""A static call whose key another module has goes where that key says when the caller is loaded."""

from __future__ import annotations

import pytest

import archs
from execmem import Machine
from execmem.check.elfwriter import GLOBAL, OBJECT, A, Rela, Sec, Sym, W
from loader.files import ModuleFile
from tests.archs.facts import facts
from tests.support.modules import module

KEY, TRAMPOLINE = "__SCK__give", "__SCT__give"


def provider(arch: archs.Arch, function: str) -> bytes:
    """Return a module that exports a static call's trampoline, and keeps its key to itself."""
    relas = [Rela(0, facts(arch).link.abs64, function)] if function else []
    key = Sec(".data.keys", bytes(16), A | W, align=8, relas=relas)
    symbols = [Sym(KEY, ".data.keys", 0, 16, OBJECT, GLOBAL)]
    exported = (TRAMPOLINE, "given", "other")
    return module(arch.machine, "provider", exported=exported, extra=[key], symbols=symbols)


def user(arch: archs.Arch) -> bytes:
    """Return a module whose function calls the static call, and nothing else, at its start."""
    number = facts(arch).link.prel32
    relas = [Rela(0, number, "user_work"), Rela(4, number, TRAMPOLINE)]
    table = Sec(".static_call_sites", bytes(8), A | W, align=4, relas=relas)
    return module(arch.machine, "user", depends="provider", undefined=(TRAMPOLINE,), extra=[table])


@pytest.mark.parametrize("function", ["given", ""])
def test_the_key_of_another_module_counts(arch: archs.Arch, function: str) -> None:
    """The call is what the key says, NOP where it says nothing, and again after an update."""
    if not any(step.name == "static_calls" for step in arch.finalise):
        pytest.skip(f"{arch.name} writes no static calls")
    machine = Machine(arch)
    first = machine.load(ModuleFile("provider.ko", provider(arch, function)), init=False)

    def called() -> int | None:
        """Return where the call of a fresh caller leads; None where it is none."""
        loaded = machine.load(ModuleFile("user.ko", user(arch)), init=False)
        place = loaded.symbols["user_work"]
        text = machine.disassemble(place)
        loaded.unload()
        return int(text.split()[-1], 0) if text.startswith("call") else None

    assert called() == (first.symbols[function] if function else None)
    machine.write(first.symbols[KEY], first.symbols["other"].to_bytes(8, "little"))
    assert called() == first.symbols["other"]
