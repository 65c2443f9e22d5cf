# SPDX-License-Identifier: GPL-2.0-or-later
"""Static calls: an update reaches every call, by patching where the architecture does that."""

from __future__ import annotations

import pytest

from kernels.tracing import PatchRefused


def results(module):
    """Return what the call, the tail call and the trampoline give for 5, minus what is added."""
    return [module.call("patchable_op", 5) - 1, module.call("patchable_op_tail", 5)]


def test_updates_reach_every_call(machine, patchable, unchanged):
    """The module and Python change the target; call and tail call follow; then all is as before."""
    patchable.call("patchable_choose", 0)
    check = unchanged("patchable")
    call = patchable.static_call("patchable_op")
    assert call.target == patchable.symbols["patchable_double"]
    patchable.call("patchable_choose", 1)
    assert results(patchable) == [15, 15]
    assert call.target == patchable.symbols["patchable_triple"]
    call.update(patchable.symbols["patchable_double"])
    assert results(patchable) == [10, 10]
    check()


def inline(machine):
    """Skip where static calls are not patched into their sites."""
    calls = machine.arch.patching.static_calls
    if calls is None:
        pytest.skip(f"{machine.arch.name} calls through the key")
    return calls


def test_inline_sites_call_the_target_itself(machine, patchable):
    """After an update no site goes through the trampoline: the disassembler names the target."""
    inline(machine)
    call = patchable.static_call("patchable_op")
    target = patchable.symbols["patchable_triple"]
    call.update(target)
    assert {site.tail for site in call.sites} == {True, False}
    for site in call.sites:
        mnemonic = "jmp" if site.tail else "call"
        assert machine.disassemble(site.address) == f"{mnemonic} {target:#x}"
    assert machine.disassemble(call.trampoline) == f"jmp {target:#x}"
    assert machine.call(call.trampoline, 7) == 21


def test_nothing_to_call(machine, patchable):
    """A target of 0 makes the call a NOP, the tail call a return, and another target revives both."""
    inline(machine)
    call = patchable.static_call("patchable_op")
    double = call.target
    call.update(0)
    texts = {machine.disassemble(site.address) for site in call.sites}
    assert texts == {"nop dword ptr [rax + rax]", "ret"}
    patchable.call("patchable_op_tail", 5)  # returns, whatever was in the register
    assert machine.disassemble(call.trampoline) == "ret"
    call.update(double)
    assert results(patchable) == [10, 10]


def test_returning_zero_needs_no_call(machine, patchable):
    """__static_call_return0 becomes an instruction; the tail call and the trampoline go there."""
    calls = inline(machine)
    call = patchable.static_call("patchable_op")
    call.update(machine.kernel.address(calls.zero))
    (site,) = (s for s in call.sites if not s.tail)
    assert "xor eax, eax" in machine.disassemble(site.address)
    assert results(patchable) == [0, 0]
    call.update(patchable.symbols["patchable_double"])
    assert results(patchable) == [10, 10]


def test_a_target_out_of_reach_is_refused(machine, patchable, unchanged):
    """Nothing is changed where one call does not reach the target, the key included."""
    inline(machine)
    check = unchanged("patchable")
    call = patchable.static_call("patchable_op")
    before = call.target
    with pytest.raises(PatchRefused, match="out of reach"):
        call.update(0x1000)
    assert call.target == before
    check()
