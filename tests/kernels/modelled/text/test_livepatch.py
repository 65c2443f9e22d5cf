# SPDX-License-Identifier: GPL-2.0-or-later
"""A livepatch at work: its function takes another's place and uses what the target hides."""

from __future__ import annotations

import pytest

from allocator.types import MemType
from execmem.check.elfwriter import FUNC, LIVEPATCH, A, Rela, Sec, Sym, X
from loader.errors import InitFailed, ModuleInUse
from tests.archs.facts import facts
from tests.support.modules import module as mini_module

TRIPLE = ".klp.sym.patchable.patchable_triple,0"
HIDDEN = ".klp.sym.vmlinux.hidden_in_the_kernel,0"


def livepatch(machine, target="patchable", symbol=TRIPLE):
    """Return a module with two new functions: one for a module's symbol, one for the kernel's."""
    code, at, kind, addend = facts(machine).patch.tail
    bodies = {"fixed_double": (target, symbol), "fixed_next": ("vmlinux", HIDDEN)}
    extra, symbols = [], []
    for name, (whose, wanted) in bodies.items():
        relas = {whose: [Rela(at, kind, wanted, addend)]}
        text, data = f".text.{name}", bytes.fromhex(code)
        extra.append(Sec(text, data, A | X, align=16, livepatch=relas))
        symbols += [Sym(name, text, 0, len(data), FUNC), Sym(wanted, LIVEPATCH)]
    options = {"extra": extra, "symbols": symbols, "info": "livepatch=Y"}
    return mini_module(machine, "fix", undefined=(), **options)


@pytest.fixture
def patch(machine):
    """Return what loads the livepatch, whether its target is there or not."""
    machine.stub("hidden_in_the_kernel", lambda x: 1000 + x)

    def load(*target):
        return machine.load(livepatch(machine.arch.machine, *target), init=False)

    return load


def text_of(machine, module):
    """Return the text of a module as it stands."""
    region = module.regions[MemType.TEXT]
    return machine.read(region.address, region.size)


@pytest.mark.parametrize("first", ["target", "livepatch"])
def test_a_function_is_replaced_by_one_of_a_livepatch(machine, patch, first):
    """New functions reach symbols that nobody exports; afterwards every byte is as before."""
    if first == "target":
        target = machine.load("patchable")
        fix = patch()
    else:
        fix = patch()
        target = machine.load("patchable")
    assert "patchable_triple" not in machine.loader.symbols.exports
    before, state = text_of(machine, target), machine.execmem.allocations()
    assert (target.call("patchable_double", 5), target.call("patchable_next", 5)) == (10, 12)
    with machine.replace({"patchable:patchable_double": "fix:fixed_double"}):
        assert target.call("patchable_double", 5) == 3 * (5 + 1)
        # Its callers get there too.
        assert target.call("patchable_next", 5) == 3 * (5 + 1 + 1)
        with machine.replace({"patchable:patchable_next": "fix:fixed_next"}):
            assert target.call("patchable_next", 5) == 1000 + 5 + 1
        with pytest.raises(ModuleInUse, match="replacement of patchable_double"):
            fix.unload()
    assert (text_of(machine, target), machine.execmem.allocations()) == (before, state)
    assert (target.call("patchable_double", 5), target.call("patchable_next", 5)) == (10, 12)
    fix.unload()
    target.unload()
    machine.check()


def test_a_target_that_comes_again(machine, patch):
    """A livepatch reaches a target that went and came again, and is itself as before between."""
    fix = patch()
    alone, places = text_of(machine, fix), set()
    for before in (None, "mathlib"):
        if before is not None:
            machine.load(before)
        target = machine.load("patchable")
        places.add(target.symbols["patchable_triple"])
        assert fix.call("fixed_double", 6) == 3 * (6 + 1)
        target.unload()
        assert text_of(machine, fix) == alone
    assert len(places) == 2


def test_a_target_whose_init_fails(machine, patch):
    """When the load that a livepatch was written for fails, the livepatch is as before."""
    fix = patch("failing", ".klp.sym.failing.failing_init,0")
    before, pokes = text_of(machine, fix), machine.execmem.report().events.pokes
    with pytest.raises(InitFailed):
        machine.load("failing")
    assert text_of(machine, fix) == before
    assert machine.execmem.report().events.pokes >= pokes + 2  # written, and cleared
