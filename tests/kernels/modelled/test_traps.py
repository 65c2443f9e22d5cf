# SPDX-License-Identifier: GPL-2.0-or-later
"""Traps of compilers' checks, BUG and WARN: named as what they are, and gone on from or not."""

from __future__ import annotations

import struct

import pytest

from archs import traps
from emulator.faults import Fault, FaultKind
from loader.files import ModuleFile
from machine.face import Machine
from tests.archs.facts import TYPE, cases, facts
from tests.support.written import built

OTHER = 0x0BAD_CAFE


def load(arch, functions, folder, more="", **options):
    """Return a loaded module of functions in assembly."""
    image = built(arch.machine, functions, folder, arch.loads.vermagic, more)
    return Machine(arch, **options).load(ModuleFile("mini.ko", image))


def relative(arch):
    """Skip the test where the kernel has no tables of self-relative words."""
    if facts(arch).link.prel32 is None:
        pytest.skip(f"the kernel of {arch.name} has no such table")


def typed(kind):
    """Return a table of functions that stand behind their type."""
    return f"""
        .balign 16
        .long   {kind}
        .globl  target_{kind}
        .type   target_{kind}, %function
target_{kind}:
        ret
        .size   target_{kind}, . - target_{kind}
"""


@pytest.mark.parametrize(("arch", "form"), cases("run", "type_checks"))
def test_a_call_through_the_wrong_type(arch, form, tmp_path):
    """A failed type check is a CFI failure that names target and types; a right one passes."""
    calls = facts(arch).run.type_checks
    if form is None:
        pytest.skip(f"no compiler checks types for {arch.name}")
    module = load(arch, calls, tmp_path, typed(TYPE) + typed(OTHER))
    right, wrong = (module.symbols[f"target_{kind}"] for kind in (TYPE, OTHER))
    assert module.call(form, right) == 1
    with pytest.raises(Fault) as caught:
        module.call(form, wrong)
    assert caught.value.kind is FaultKind.CFI
    target = "" if form == "away" else f"target target_{OTHER}+0x0 [mini], "
    assert f"{target}expected type {TYPE:#010x}, it has {OTHER:#010x}" in caught.value.reason
    assert str(caught.value).startswith("CFI failure: target ")


def test_a_check_that_only_the_table_knows(arch, tmp_path):
    """A trap that `.kcfi_traps` lists is a CFI failure, whatever stands before it."""
    relative(arch)
    table = '        .section .kcfi_traps, "a"\n        .long trap - .\n'
    module = load(arch, {"f": f"trap: {facts(arch).run.trap}"}, tmp_path, table)
    with pytest.raises(Fault, match="CFI failure: a call through a pointer"):
        module.call("f")


def bugs(words, flags):
    """Return a bug table about `trap`, whose entries have so many words before line and flags."""
    other = "        .long format - .\n" if words == 3 else ""
    return f"""
        .section .rodata.str, "a"
format: .asciz  "format"
file:   .asciz  "drivers/mini.c"
        .section __bug_table, "aw"
        .balign 4
        .long   trap - .
{other}        .long   file - .
        .short  123, {flags}
"""


@pytest.mark.parametrize("words", [2, 3])
def test_bug(arch, words, tmp_path):
    """A trap that the bug table lists is a BUG, with file and line."""
    relative(arch)
    module = load(arch, {"f": f"trap: {facts(arch).run.trap}"}, tmp_path, bugs(words, 0))
    with pytest.raises(Fault, match=r"kernel BUG: at drivers/mini\.c:123") as caught:
        module.call("f")
    assert caught.value.kind is FaultKind.BUG


@pytest.mark.parametrize("words", [2, 3])
@pytest.mark.parametrize(("flags", "times"), [(1, 3), (3, 1), (7, 0)])
def test_warn(arch, words, flags, times, tmp_path):
    """WARN logs and goes on, once where it says so (BUGFLAG_WARNING, ONCE, DONE)."""
    relative(arch)
    code = f"trap: {facts(arch).run.trap}; {facts(arch).run.one}"
    module = load(arch, {"f": code}, tmp_path, bugs(words, flags))
    for _ in range(3):
        assert module.call("f") == 1
    said = [line.text for line in module._machine.log if line.text.startswith("WARNING: CPU")]
    assert len(said) == times
    assert all("at drivers/mini.c:123 f+0x0/" in text for text in said)


def test_a_trap_that_nothing_lists(arch, tmp_path):
    """A trap without a meaning stays what it was."""
    module = load(arch, {"f": facts(arch).run.trap}, tmp_path)
    with pytest.raises(Fault) as caught:
        module.call("f")
    assert caught.value.kind in (FaultKind.TRAP, FaultKind.INSTRUCTION)


@pytest.mark.parametrize(("arch", "check"), cases("run", "checks"))
def test_checks_that_say_their_number(arch, check, tmp_path):
    """A sanitizer's trap holds the number of the check, which is named."""
    assert facts(arch).run
    if check is None:
        pytest.skip(f"traps of {arch.name} have no number")
    code, said = check
    module = load(arch, {"f": code}, tmp_path)
    with pytest.raises(Fault, match=said) as caught:
        module.call("f")
    assert caught.value.kind is FaultKind.CHECK


def test_code_before_a_trap_that_is_no_check():
    """UD2 behind anything else is not read as a type check."""
    move = b"\x41\xba" + struct.pack("<i", -TYPE)
    good = move + bytes.fromhex("450353fc") + b"\x74\x02"
    assert traps.x86_64(good.rjust(16, b"\x90"), b"\x0f\x0b").what == "cfi"
    for at in range(16):
        bad = bytearray(good.rjust(16, b"\x90"))
        bad[at] ^= 0x80
        found = traps.x86_64(bytes(bad), b"\x0f\x0b")
        operands = {*range(6, 10), 13}  # the type, the displacement
        assert (found.what == "cfi") == (at < 4 or at in operands), at
