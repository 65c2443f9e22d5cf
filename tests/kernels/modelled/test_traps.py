# SPDX-License-Identifier: GPL-2.0-or-later
"""Traps of compilers' checks, BUG and WARN: named as what they are, and gone on from or not."""

from __future__ import annotations

import struct

import pytest

import archs
from archs import traps
from emulator.faults import Fault, FaultKind
from loader.files import ModuleFile
from machine.machine import Machine
from tests.support.elfwriter import AARCH64, RISCV, X86_64
from tests.support.written import built

TYPE, OTHER = 0x1234_5678, 0x0BAD_CAFE
# A function with a type in front, and calls of what the first argument points at.
TARGET = f"nop; .balign 16; .long {OTHER}"
X86 = {
    "r11": f"mov %rdi, %r11; movl $-{TYPE}, %r10d; addl -4(%r11), %r10d; je 1f; ud2; 1: mov $1, %eax",
    "rax": f"mov %rdi, %rax; movl $-{TYPE}, %r10d; addl -4(%rax), %r10d; je 1f; ud2; 1: mov $1, %eax",
    "r12": f"mov %rdi, %r12; movl $-{TYPE}, %r10d; addl -4(%r12), %r10d; je 1f; ud2; 1: mov $1, %eax",
    "away": f"lea 11(%rdi), %r11; movl $-{TYPE}, %r10d; addl -15(%r11), %r10d; je 1f; ud2; 1: mov $1, %eax",
}
ARM = {
    f"x{n}": (
        f"mov x{n}, x0; ldur w9, [x{n}, #-4]; movz w17, #{TYPE & 0xFFFF};"
        f" movk w17, #{TYPE >> 16}, lsl #16; cmp w9, w17; b.eq 1f; brk #{0x8000 | 17 << 5 | n};"
        " 1: mov x0, #1"
    )
    for n in (16, 3)
}
RV = {
    name: (
        f"mv {name}, a0; .option push; .option norvc; lw t1, -4({name});"
        f" lui t2, {(TYPE + 0x800 >> 12) & 0xFFFFF}; addiw t2, t2, {(TYPE & 0xFFF ^ 0x800) - 0x800};"
        " beq t1, t2, 1f; ebreak; 1: .option pop; li a0, 1"
    )
    for name in ("a5", "t3")
}
CALLS = {X86_64: X86, AARCH64: ARM, RISCV: RV}
TRAP = {X86_64: "ud2", AARCH64: "brk #0x800", RISCV: "ebreak"}
ONE = {X86_64: "mov $1, %eax", AARCH64: "mov x0, #1", RISCV: "li a0, 1"}
PADDING = {X86_64: ".skip 11, 0x90", AARCH64: "", RISCV: ""}


def load(arch, functions, folder, more="", **options):
    """Return a loaded module of functions in assembly."""
    image = built(arch.machine, functions, folder, arch.loads.vermagic, more)
    return Machine(arch, **options).load(ModuleFile("mini.ko", image))


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


@pytest.mark.parametrize("form", sorted({*X86, *ARM, *RV}))
def test_a_call_through_the_wrong_type(arch, form, tmp_path):
    """A failed type check is a CFI failure that names target and types; a right one passes."""
    calls = CALLS[arch.machine]
    if form not in calls:
        pytest.skip(f"{arch.name} has no such form")
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
    table = '        .section .kcfi_traps, "a"\n        .long trap - .\n'
    module = load(arch, {"f": f"trap: {TRAP[arch.machine]}"}, tmp_path, table)
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
    module = load(arch, {"f": f"trap: {TRAP[arch.machine]}"}, tmp_path, bugs(words, 0))
    with pytest.raises(Fault, match=r"kernel BUG: at drivers/mini\.c:123") as caught:
        module.call("f")
    assert caught.value.kind is FaultKind.BUG


@pytest.mark.parametrize("words", [2, 3])
@pytest.mark.parametrize(("flags", "times"), [(1, 3), (3, 1), (7, 0)])
def test_warn(arch, words, flags, times, tmp_path):
    """WARN logs and goes on, once where it says so (BUGFLAG_WARNING, ONCE, DONE)."""
    code = f"trap: {TRAP[arch.machine]}; {ONE[arch.machine]}"
    module = load(arch, {"f": code}, tmp_path, bugs(words, flags))
    for _ in range(3):
        assert module.call("f") == 1
    said = [line.text for line in module._machine.log if line.text.startswith("WARNING: CPU")]
    assert len(said) == times
    assert all("at drivers/mini.c:123 f+0x0/" in text for text in said)


def test_a_trap_that_nothing_lists(arch, tmp_path):
    """A trap without a meaning stays what it was."""
    module = load(arch, {"f": TRAP[arch.machine]}, tmp_path)
    with pytest.raises(Fault) as caught:
        module.call("f")
    assert caught.value.kind in (FaultKind.TRAP, FaultKind.INSTRUCTION)


@pytest.mark.parametrize(
    ("machine", "code", "said"),
    [
        # What clang writes for -fsanitize=shift, signed-integer-overflow, bounds with traps.
        (AARCH64, "brk #0x5514", "UBSAN: shift out of bounds"),
        (AARCH64, "brk #0x5500", "UBSAN: addition overflow"),
        (AARCH64, "brk #0x5512", "UBSAN: array index out of bounds"),
        (AARCH64, "brk #0x5503", "UBSAN: division by zero"),
        (AARCH64, "brk #0x913", "KASAN: write of 0x8 bytes"),
        (AARCH64, "brk #0x902", "KASAN: read of 0x4 bytes"),
        (X86_64, ".byte 0x67, 0x0f, 0xb9, 0x40, 0x14", "UBSAN: shift out of bounds"),
        (X86_64, ".byte 0x67, 0x0f, 0xb9, 0x00", "UBSAN: addition overflow"),
        (X86_64, ".byte 0x67, 0x0f, 0xb9, 0x40, 0x0d", "UBSAN: negation overflow"),
    ],
)
def test_checks_that_say_their_number(machine, code, said, tmp_path):
    """A sanitizer's trap holds the number of the check, which is named."""
    module = load(archs.by_machine(machine), {"f": code}, tmp_path)
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
