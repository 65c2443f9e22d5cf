# SPDX-License-Identifier: GPL-2.0-or-later
"""Static keys: every branch of a key follows it, whoever changes it, on every architecture."""

from __future__ import annotations

import pytest

from allocator.errors import PokeError
from emulator.faults import BadCall, Fault, FaultKind
from kernels.tracing import PatchRefused
from machine.face import Machine
from samples import modules


def branches(module):
    """Return what the two functions say that look at the key."""
    return [module.call("patchable_likely"), module.call("patchable_unlikely")]


def test_python_flips_the_branches(machine, patchable, unchanged):
    """Enabled, both branches see the key true; disabled, every byte is as it was."""
    check = unchanged("patchable")
    key = patchable.static_key("patchable_key")
    assert (key.count, branches(patchable)) == (0, [1, 1])
    before = machine.memory.events.pokes
    key.enable()
    assert (key.count, branches(patchable)) == (1, [2, 2])
    assert machine.memory.events.pokes == before + 2 == before + len(key.sites)
    key.enable()
    key.disable()
    key.disable()
    assert (key.count, branches(patchable)) == (0, [1, 1])
    check()


def test_the_module_flips_its_own_branches(patchable, unchanged):
    """static_key_enable and static_key_disable, called by guest code, do the same."""
    check = unchanged("patchable")
    for on in (1, 0, 0, 1, 1, 0):
        patchable.call("patchable_switch", on)
        assert branches(patchable) == [1 + on, 1 + on]
    check()


def test_users_are_counted(machine, patchable):
    """The key is true from the first inc to the last dec, in Python and in the kernel."""
    key = patchable.static_key("patchable_key")
    key.inc()
    machine.call(machine.kernel.address("static_key_slow_inc"), key.address)
    assert (key.count, branches(patchable)) == (2, [2, 2])
    key.dec()
    assert branches(patchable) == [2, 2]
    machine.call(machine.kernel.address("static_key_slow_dec"), key.address)
    assert (key.count, branches(patchable)) == (0, [1, 1])
    not_disabled = machine.kernel.address("static_key_fast_inc_not_disabled")
    assert machine.call(not_disabled, key.address, returns="bool") == 0
    key.enable()
    assert machine.call(not_disabled, key.address, returns="bool") == 1
    assert key.count == 2
    for _ in range(2):
        key.dec()
    machine.call(machine.kernel.address("static_key_slow_dec"), key.address)
    machine.kernel.flush_log()
    assert machine.log[-1].text == "jump label: negative count!"
    assert key.count == 0


def test_a_site_that_is_no_branch_is_refused(machine, patchable):
    """Where neither the NOP nor the jump stands nothing is written, nor the key changed."""
    key = patchable.static_key("patchable_key")
    site = key.sites[-1]
    old = machine.read(site.code, 2)
    machine.execmem.poke(
        site.code & -4, machine.arch.loads.trap * (4 // len(machine.arch.loads.trap))
    )
    with pytest.raises(PatchRefused, match="neither a NOP nor a jump") as caught:
        key.enable()
    assert caught.value.address == site.code
    assert machine.read(site.code, 2) != old
    assert key.count == 0
    assert machine.read(key.sites[0].code, 2) != b""
    assert "patchable" in str(caught.value)


def test_a_kernel_that_cannot_poke_says_so(arch):
    """Without text_poke the key stays false; guest code that asks stops with the reason."""
    machine = Machine(arch, text_poke=False, root=modules.root(arch.name))
    module = machine.load("patchable")
    with pytest.raises(PokeError, match="no text_poke"):
        module.static_key("patchable_key").enable()
    with pytest.raises(Fault, match="no text_poke") as caught:
        module.call("patchable_switch", 1)
    assert caught.value.kind is FaultKind.PANIC
    assert (module.static_key("patchable_key").count, branches(module)) == (0, [1, 1])


def test_unknown_keys(machine, patchable):
    """A name that nobody has is answered with what is like it."""
    with pytest.raises(BadCall, match="patchable_key"):
        patchable.static_key("patchable_kex")
    with pytest.raises(BadCall, match="no_such_key"):
        machine.static_key("no_such_key")


def test_the_kernels_own_self_test(arch, corpus):
    """test_static_keys passes: its init inverts keys of two modules and looks at each branch."""
    machine = Machine(arch, root=corpus)
    module = machine.load("test_static_keys")
    assert module.report.init_result == 0
    base = machine.modules["test_static_key_base"]
    for name, owner in [("true_key", module), ("base_true_key", base)]:
        assert owner.static_key(name).count == 1
        sites = [f"{name}_static_branch_likely", f"{name}_static_branch_unlikely"]
        assert [module.call(site, returns="bool") for site in sites] == [1, 1]
        machine.static_key(name) if owner is base else owner.static_key(name)
        owner.static_key(name).disable()
        assert [module.call(site, returns="bool") for site in sites] == [0, 0]
    assert machine.static_key("base_true_key").count == 0


def test_a_new_module_finds_keys_as_they_are(arch, corpus):
    """Branches on another module's key are set when the module is loaded (jump_label_add_module)."""
    machine = Machine(arch, root=corpus)
    base = machine.load("test_static_key_base", init=False)
    base.static_key("base_false_key").enable()
    base.static_key("base_true_key").disable()
    module = machine.load("test_static_keys", init=False)
    for form in ("likely", "unlikely"):
        assert module.call(f"base_false_key_static_branch_{form}", returns="bool") == 1
        assert module.call(f"base_true_key_static_branch_{form}", returns="bool") == 0
        assert module.call(f"true_key_static_branch_{form}", returns="bool") == 1
