# SPDX-License-Identifier: GPL-2.0-or-later
"""Per-cpu variables that the kernel does not have are named, whichever way code goes to them."""

from __future__ import annotations

import pytest

from emulator.faults import Fault, FaultKind
from kernels.modelled.percpu import CANARY
from loader.files import ModuleFile
from machine.machine import Machine
from tests.support.elfwriter import AARCH64, RISCV, X86_64
from tests.support.written import built

# Function -> its code, and what the fault must name.
X86 = {
    "relative": ("mov %gs:one(%rip), %rax", "one"),
    "relative_field": ("mov %gs:one+0x88(%rip), %rax", "one+0x88"),
    "absolute": ("mov %gs:one, %rax", "one"),
    "write": ("mov %rdi, %gs:one+8", "one+0x8"),
    "increment": ("incl %gs:two(%rip)", "two"),
    "far_field": ("mov %gs:one+0x2000(%rip), %rax", "one+0x2000"),
    "add_offset": ("mov $two, %rdi; add %gs:this_cpu_off(%rip), %rdi; mov (%rdi), %rax", "two"),
    "register_r11": (
        "mov $one, %r11; add %gs:this_cpu_off, %r11; mov 0x18(%r11), %rax",
        "one+0x18",
    ),
    "indexed": ("mov $3, %eax; mov %gs:two(, %rax, 8), %rax", "two+0x18"),
    "of_a_cpu": (
        "xor %eax, %eax; mov __per_cpu_offset(, %rax, 8), %rdx; mov two+0x10(%rdx), %rax",
        "two+0x10",
    ),
    "string": ("mov $two, %rsi; add %gs:this_cpu_off, %rsi; lodsb", "two"),
}
ARM = {
    "register": ("adrp x0, one; add x0, x0, :lo12:one; mrs x1, tpidr_el1; ldr x0, [x0, x1]", "one"),
    "field": (
        "adrp x0, one; add x0, x0, :lo12:one; mrs x1, tpidr_el1; add x0, x0, x1; ldr w0, [x0, #0x88]",
        "one+0x88",
    ),
    "write": (
        "adrp x9, two; add x9, x9, :lo12:two; mrs x8, tpidr_el1; add x8, x8, x9; str x1, [x8, #8]",
        "two+0x8",
    ),
    "far_field": (
        "adrp x0, one; add x0, x0, :lo12:one; mrs x1, tpidr_el1; add x0, x0, x1; ldr w0, [x0, #0x2000]",
        "one+0x2000",
    ),
    "pair": (
        "adrp x17, two; add x17, x17, :lo12:two; mrs x16, tpidr_el1; add x17, x17, x16; ldp x0, x1, [x17, #16]",
        "two+0x10",
    ),
    "exclusive": (
        "adrp x2, two; add x2, x2, :lo12:two; mrs x3, tpidr_el1; add x2, x2, x3; ldxr w0, [x2]",
        "two",
    ),
    "of_a_cpu": (
        "adrp x0, __per_cpu_offset; ldr x0, [x0, :lo12:__per_cpu_offset]; adrp x1, one; add x1, x1, :lo12:one; ldr x0, [x1, x0]",
        "one",
    ),
}
RISCV_OFFSET = "la t0, __per_cpu_offset; ld t0, 0(t0);"
RV = {
    "register": (RISCV_OFFSET + "la a0, one; add a0, a0, t0; ld a0, 0(a0)", "one"),
    "field": (RISCV_OFFSET + "la s1, one; add s1, s1, t0; lw a0, 0x88(s1)", "one+0x88"),
    "write": (RISCV_OFFSET + "la t6, two; add t6, t6, t0; sd a0, 8(t6)", "two+0x8"),
    "far_field": (
        RISCV_OFFSET + "la a0, one; li a1, 0x2000; add a0, a0, t0; add a0, a0, a1; ld a0, 0(a0)",
        "one+0x2000",
    ),
    "atomic": (RISCV_OFFSET + "la a2, two; add a2, a2, t0; amoadd.w a0, a1, (a2)", "two"),
}
CODE = {X86_64: X86, AARCH64: ARM, RISCV: RV}
CASES = [(machine, name) for machine, table in CODE.items() for name in table]


@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize("name", sorted({name for _, name in CASES}))
def test_a_missing_variable_is_named(arch, name, cpus, tmp_path):
    """The fault names the variable and how far in it was read or written, on every CPU."""
    if name not in CODE[arch.machine]:
        pytest.skip(f"{arch.name} has no such form")
    functions = {each: code for each, (code, _) in CODE[arch.machine].items()}
    image = built(arch.machine, functions, tmp_path, arch.loads.vermagic)
    machine = Machine(arch, cpus=cpus)
    module = machine.load(ModuleFile("mini.ko", image))
    cpu = 0 if name == "of_a_cpu" or arch.machine == RISCV else cpus - 1
    with pytest.raises(Fault) as caught:
        module.call(name, 0, 0, cpu=cpu)
    wanted = CODE[arch.machine][name][1]
    assert caught.value.kind is FaultKind.UNKNOWN_SYMBOL
    assert f"'{wanted}'" in caught.value.reason
    assert "as a per-cpu variable" in caught.value.reason
    assert caught.value.symbol == wanted.partition("+")[0]
    assert {"one", "two"} <= machine.missing.keys()


def test_a_variable_that_is_not_per_cpu(arch, tmp_path):
    """A variable of the kernel that is taken for a per-cpu one is named as what it is."""
    table = {X86_64: X86["relative"], AARCH64: ARM["register"], RISCV: RV["register"]}
    code = table[arch.machine][0].replace("one", "jiffies")
    image = built(arch.machine, {"f": code}, tmp_path, arch.loads.vermagic)
    module = Machine(arch).load(ModuleFile("mini.ko", image))
    with pytest.raises(Fault, match="'jiffies', which is no per-cpu variable"):
        module.call("f")


def test_the_canary_by_its_symbol(tmp_path):
    """`__ref_stack_chk_guard` is the canary of each CPU, and can be read alone."""
    forms = {
        "relative": "mov %gs:__ref_stack_chk_guard(%rip), %rax",
        "absolute": "mov %gs:__ref_stack_chk_guard, %rax",
        "compared": (
            "mov %gs:__ref_stack_chk_guard, %rdx; sub %gs:__ref_stack_chk_guard(%rip), %rdx;"
            " mov %rdx, %rax"
        ),
    }
    machine = Machine("x86_64", cpus=2)
    image = built(X86_64, forms, tmp_path, machine.arch.loads.vermagic)
    module = machine.load(ModuleFile("mini.ko", image))
    for cpu in (0, 1):
        assert module.call("relative", cpu=cpu) == module.call("absolute", cpu=cpu) == CANARY
        assert module.call("compared", cpu=cpu) == 0
    assert not machine.missing
