# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine code by architecture: the few functions that no sample module has.

Position independent, without relocations; a, b, c ... are the arguments. An architecture
without an entry skips the tests that need one. Comments say what the bytes were assembled
from, or, in C, what they compute.
"""

from __future__ import annotations

import pytest

from allocator.types import MemType
from archs import Arch
from machine.machine import Machine

_X86_64 = {
    # mov $1,%eax; ret
    "one": "b801000000c3",
    # mov $2,%eax; ret
    "two": "b802000000c3",
    # mov (%rdi),%rax; ret
    "load": "488b07c3",
    # mov %rsi,(%rdi); ret
    "store": "488937c3",
    # mov %rdi,%rax; mov %rsi,%rdi; mov %rdx,%rsi; jmp *%rax
    "jump": "4889f84889f74889d6ffe0",
    # push %rbx; mov %rdi,%rax; mov %rsi,%rbx; mov %rsi,%rdi; call *%rax; add %rbx,%rax; pop %rbx; ret
    "apply": "534889f84889f34889f7ffd04801d85bc3",
    # push %rbx; mov %rdi,%rbx; 1: call *%rbx; jmp 1b
    "loop": "534889fbffd3ebfc",
    # jmp .
    "spin": "ebfe",
    # 1: incq (%rdi); jmp 1b
    "count": "48ff07ebfb",
    # 1: call 1b
    "recurse": "e8fbffffff",
    # ud2
    "invalid": "0f0b",
    # return a + 2 * b + 3 * c + ... + 10 * j
    "weigh": (
        "486b4424200a4c8b5424104f8d04804d6bc906488d14524a8d04d04c6b542418094c01d0"
        "4c01c84c6b4c2408074c01c8488d04884801f84c01c04801d0488d0470c3"
    ),
    # return ((f)a)(b, b + 1, ..., b + 9)
    "forward": (
        "504889f84889f7488d4e034c8d4709488d560241504c8d4708488d760141504c8d47074c"
        "8d4f0541504c8d470641504c8d4704ffd04883c428c3"
    ),
    # mov $1,%eax; ret
    "straddle": "b801000000c3",
    # nop5; mov $1,%eax; ret; 1: incq (%rdi); mov $2,%eax; ret
    "site": "0f1f440000b801000000c348ff07b802000000c3",
    # call 1f
    "call": "e806000000",
    # jmp 1f
    "hop": "e906000000",
    # mov $17,%al; mov $17,%ah; movzwl %ax,%eax; ret
    "pair": "b011b4110fb7c0c3",
    # mov $34,%al; mov $34,%ah
    "other": "b022b422",
    # push %rdi; popf; nop6; mov $1,%eax; ret; mov $2,%eax; ret
    "flags": "579d660f1f440000b801000000c3b802000000c3",
}
_ARM64 = {
    # mov x0,#1; ret
    "one": "200080d2c0035fd6",
    # mov x0,#2; ret
    "two": "400080d2c0035fd6",
    # ldr x0,[x0]; ret
    "load": "000040f9c0035fd6",
    # str x1,[x0]; ret
    "store": "010000f9c0035fd6",
    # mov x9,x0; mov x0,x1; mov x1,x2; br x9
    "jump": "e90300aae00301aae10302aa20011fd6",
    # stp x29,x30,[sp,#-32]!; str x19,[sp,#16]; mov x9,x0; mov x19,x1; mov x0,x1; blr x9; add x0,x0,x19; ldr x19,[sp,#16]; ldp x29,x30,[sp],#32; ret
    "apply": ("fd7bbea9f30b00f9e90300aaf30301aae00301aa20013fd60000138bf30b40f9fd7bc2a8c0035fd6"),
    # mov x19,x0; 1: blr x19; b 1b
    "loop": "f30300aa60023fd6ffffff17",
    # b .
    "spin": "00000014",
    # 1: ldr x1,[x0]; add x1,x1,#1; str x1,[x0]; b 1b
    "count": "010040f921040091010000f9fdffff17",
    # 1: stp x29,x30,[sp,#-16]!; bl 1b
    "recurse": "fd7bbfa9ffffff97",
    # udf #0
    "invalid": "00000000",
    # mov x9,x30; nop; mov x0,#1; mov x30,x9; ret; 1: ldr x1,[x0]; add x1,x1,#1; str x1,[x0]; mov x0,#2; ret
    "site": ("e9031eaa1f2003d5200080d2fe0309aac0035fd6010040f921040091010000f9400080d2c0035fd6"),
    # bl 1f
    "call": "04000094",
    # b 1f
    "hop": "04000014",
    # movz x0,#0x1111; movk x0,#0x1111,lsl #16; ret
    "pair": "202282d22022a2f2c0035fd6",
    # movz x0,#0x2222; movk x0,#0x2222,lsl #16
    "other": "404484d24044a4f2",
    # return a + 2 * b + 3 * c + ... + 10 * j
    "weigh": (
        "e82740a94a0180d28408048b4204028b8400008b4004018b297d0a9b080d088b270d078b"
        "c90080d2a520099be700058be50080d2c67c059bc308038be700038be700048be000008b"
        "c0035fd6"
    ),
    # return ((f)a)(b, b + 1, ..., b + 9)
    "forward": (
        "ff8300d1e80300aae00301aa21240091071c009106180091fd7b01a9fd43009105140091"
        "04100091e10700f901200091e10300f9030c0091020800910104009100013fd6fd7b41a9"
        "ff830091c0035fd6"
    ),
}
_RISCV64 = {
    # li a0,1; ret
    "one": "05458280",
    # li a0,2; ret
    "two": "09458280",
    # ld a0,0(a0); ret
    "load": "08618280",
    # sd a1,0(a0); ret
    "store": "0ce18280",
    # mv a5,a0; mv a0,a1; mv a1,a2; jr a5
    "jump": "aa872e85b2858287",
    # addi sp,sp,-16; sd s0,0(sp); sd ra,8(sp); mv a5,a0; mv s0,a1; mv a0,a1; jalr a5; add a0,a0,s0; ld s0,0(sp); ld ra,8(sp); addi sp,sp,16; ret
    "apply": "411122e006e4aa872e842e85829722950264a26041018280",
    # mv s0,a0; 1: jalr s0; j 1b
    "loop": "2a840294fdbf",
    # 1: j 1b
    "spin": "01a0",
    # 1: ld a1,0(a0); addi a1,a1,1; sd a1,0(a0); j 1b
    "count": "0c6185050ce1edbf",
    # 1: addi sp,sp,-16; sd ra,8(sp); jal ra,1b
    "recurse": "411106e4eff0dfff",
    # c.unimp
    "invalid": "0000",
    # mv t0,ra; .option norvc; nop; .option rvc; li a0,1; mv ra,t0; ret; 1: ld a1,0(a0); addi a1,a1,1; sd a1,0(a0); li a0,2; ret
    "site": "8682130000000545968082800c6185050ce109458280",
    # jal ra,1f
    "call": "ef00a000",
    # .option norvc; jal x0,1f
    "hop": "6f00a000",
    # .option norvc; lui a0,0x11111; addi a0,a0,0x111; ret
    "pair": "371511111305151167800000",
    # .option norvc; lui a0,0x22222; addi a0,a0,0x222
    "other": "3725222213052522",
    # return a + 2 * b + 3 * c + ... + 10 * j
    "weigh": (
        "2263294e8e083303c303254e8a069a9802633303c3039a981943b3876702be989d473308"
        "f80295473307f7028d47c298b698aa98139515003306f602ba98b29846958280"
    ),
    # return ((f)a)(b, b + 1, ..., b + 9)
    "forward": (
        "0111938795003ee4938785003ee02a83938875002e851388650093875500138745009386"
        "350013862500850506ec0293e26005618280"
    ),
    # .option norvc; li a0,1; ret
    "straddle": "1305100067800000",
}

# Where the NOP of the snippet "site" stands.
SITE = {"x86_64": 0, "arm64": 4, "riscv64": 2}

CODE = {"x86_64": _X86_64, "arm64": _ARM64, "riscv64": _RISCV64}


def code(arch: Arch, name: str) -> bytes:
    """Return the bytes of the snippet `name`, or skip the test."""
    found = CODE.get(arch.name, {}).get(name)
    if found is None:
        pytest.skip(f"no snippet {name!r} for {arch.name}")
    return bytes.fromhex(found)


def put(machine: Machine, code: bytes) -> int:
    """Place code in executable memory and return its address."""
    pending = machine.execmem.alloc(MemType.TEXT, len(code))
    pending.write(0, code)
    return pending.finish().address


def snippet(machine: Machine, name: str) -> int:
    """Place the snippet `name` in executable memory and return its address."""
    return put(machine, code(machine.arch, name))
