# SPDX-License-Identifier: GPL-2.0-or-later
"""Assembly for each architecture that uses every relocation a linker can check.

What a compiler would not write stands behind `.reloc`. `far` is a kernel symbol within
reach of calls, `near` within reach of the shortest branch, `small` and `tiny` are numbers.
`SOURCES` gives the same bytes in every linker; `GOT_SOURCES` needs a global offset table,
whose place and order is each linker's own; `BEYOND_GAS` are records that the assembler of
binutils 2.40 has no way to write: the type, the bytes that it relocates, and the symbol.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.support.elfwriter import AARCH64, RISCV, X86_64

SOURCES = {
    X86_64: """
        .text
function:
        call    far
        jmp     far + 3
        jne     far
        call    function
        lea     far(%rip), %rax
        cmpb    $7, local(%rip)
        movl    $0x12345678, local + 16(%rip)
        mov     $far, %rax
        mov     far(, %rbx, 8), %rcx
        movabs  $far, %rdx
        mov     $small, %eax
        .byte   0xeb
        .reloc  ., R_X86_64_PC8, near - 1
        .byte   0
        .section .text.unlikely, "ax"
        call    function
        jmp     function + 5
        .data
local:  .quad   function, far + 8, local - 8
        .long   far - .
        .quad   far - .
        .long   small
        .short  tiny
        .byte   tiny
        .reloc  ., R_X86_64_PC16, near
        .short  0
        .globl  object
        .type   object, @object
        .size   object, 24
object: .long   object@SIZE, object@SIZE + 5
        .quad   object@SIZE - 25
""",
    AARCH64: """
        .text
function:
        bl      far
        b       far + 4
        b.ne    near
        cbz     x3, near
        tbnz    x3, #40, near
        adr     x3, near + 1
        ldr     x4, near
        adrp    x5, far
        add     x5, x5, :lo12:far
        ldrb    w6, [x5, :lo12:far + 3]
        ldrh    w6, [x5, :lo12:far + 2]
        ldr     w6, [x5, :lo12:far + 4]
        str     x6, [x5, :lo12:far + 8]
        ldr     q6, [x5, :lo12:far]
        adrp    x7, :pg_hi21_nc:far
        movz    x8, #:abs_g3:far
        movk    x8, #:abs_g2_nc:far
        movk    x8, #:abs_g1_nc:far
        movk    x8, #:abs_g0_nc:far
        movz    x9, #:abs_g1:small
        movz    x9, #:abs_g0:tiny
        movz    x9, #:abs_g2:small
        movz    x9, #:abs_g0_s:tiny
        movz    x9, #:abs_g0_s:tiny - 0x43
        movn    x9, #:abs_g0_s:tiny
        movz    x9, #:abs_g1_s:small - 0x20000000
        movn    x9, #:abs_g1_s:small
        movz    x9, #:abs_g2_s:small
        movn    x9, #:abs_g2_s:small - 0x20000000
        movz    x9, #:prel_g0:near
        movz    x9, #:prel_g0:function - 0x1234
        movk    x9, #:prel_g0_nc:far
        movz    x9, #:prel_g1:far
        movk    x9, #:prel_g1_nc:far
        movz    x9, #:prel_g2:far - 0x60000000
        movk    x9, #:prel_g2_nc:far
        movz    x9, #:prel_g3:far
        .section .text.unlikely, "ax"
        bl      function
        b       function + 4
        .data
        .balign 8
local:  .xword  function, far + 8, local - 8
        .word   far - .
        .xword  far - .
        .word   small
        .hword  tiny
        .hword  near - .
""",
    RISCV: """
        .option norelax
        .text
function:
        call    far
        .reloc  ., R_RISCV_CALL, far + 2
        auipc   ra, 0
        jalr    ra
        jal     near
        .reloc  ., R_RISCV_BRANCH, near
        .word   0x00b50063
        .reloc  ., R_RISCV_BRANCH, near + 4
        .word   0x00b56063
        .reloc  ., R_RISCV_RVC_JUMP, near
        .half   0xa001
        .reloc  ., R_RISCV_RVC_BRANCH, near
        .half   0xc101
1:      auipc   a0, %pcrel_hi(far + 0x7fe)
        addi    a1, a0, %pcrel_lo(1b)
        ld      a2, %pcrel_lo(1b)(a0)
        sd      a2, %pcrel_lo(1b)(a0)
2:      auipc   a0, %pcrel_hi(local)
        sw      a2, %pcrel_lo(2b)(a0)
        lui     a3, %hi(small)
        addi    a3, a3, %lo(small)
        sd      a3, %lo(small)(a3)
        .section .text.unlikely, "ax"
        call    function
        .data
        .balign 8
local:  .dword  function, far + 8, local - 8
        .word   small
        .reloc  ., R_RISCV_32_PCREL, far
        .word   0
        .reloc  ., R_RISCV_ADD64, far
        .reloc  ., R_RISCV_SUB64, function
        .dword  0
        .reloc  ., R_RISCV_ADD32, far + 5
        .reloc  ., R_RISCV_SUB32, function
        .word   0
        .reloc  ., R_RISCV_SUB16, function
        .reloc  ., R_RISCV_ADD16, near + 0x7654
        .half   0
        .reloc  ., R_RISCV_SET32, far + 5
        .reloc  ., R_RISCV_SUB32, function
        .word   -1
        .reloc  ., R_RISCV_SET16, near + 0x89a
        .reloc  ., R_RISCV_SUB16, function
        .half   -1
        .reloc  ., R_RISCV_SET8, near + 5
        .reloc  ., R_RISCV_SUB8, function
        .byte   -1
        .reloc  ., R_RISCV_SET6, function + 37
        .reloc  ., R_RISCV_SUB6, function
        .byte   0xc3
        .reloc  ., R_RISCV_ADD8, near
        .reloc  ., R_RISCV_SUB8, function
        .byte   0
        .reloc  ., R_RISCV_RELAX
        .reloc  ., R_RISCV_NONE
        .byte   0
""",
}

GOT_SOURCES = {
    X86_64: """
        .text
function:
        mov     far@GOTPCREL(%rip), %rax
        call    *near@GOTPCREL(%rip)
        cmpl    $7, far@GOTPCREL(%rip)
        .reloc  ., R_X86_64_GOTPCREL, far - 4
        .long   0
        movabs  $far@GOT, %rax
        movabs  $far@GOTOFF, %rcx
        movabs  $far@PLTOFF, %rcx
        .data
        .quad   far@GOTOFF, near@GOTOFF
        .reloc  ., R_X86_64_GOT32, far
        .long   0
        .reloc  ., R_X86_64_GOTPC32, _GLOBAL_OFFSET_TABLE_
        .long   0
        .reloc  ., R_X86_64_GOTPCREL64, near + 3
        .quad   0
        .reloc  ., R_X86_64_GOTPC64, _GLOBAL_OFFSET_TABLE_
        .quad   0
        .reloc  ., R_X86_64_GOTPLT64, near
        .quad   0
""",
    AARCH64: """
        .text
function:
        adrp    x1, :got:far
        ldr     x1, [x1, :got_lo12:far]
        ldr     x2, :got:near
        ldr     x1, [x1, :gotpage_lo15:far]
        ldr     x2, [x1, #:gotoff_lo15:near]
        movz    x1, #:gotoff_g1:far
        movk    x1, #:gotoff_g0_nc:far
""",
    RISCV: """
        .option norelax
        .text
function:
1:      auipc   a0, %got_pcrel_hi(far)
        ld      a0, %pcrel_lo(1b)(a0)
2:      auipc   a1, %got_pcrel_hi(near)
        ld      a1, %pcrel_lo(2b)(a1)
        ld      a2, %pcrel_lo(1b)(a0)
""",
}

BEYOND_GAS: Mapping[int, tuple[tuple[int, str, str], ...]] = {
    X86_64: (),
    AARCH64: (
        (300, "010080d2", "near"),  # movz x1, #0
        (303, "0100a0f2", "far"),  # movk x1, #0, lsl #16
        (304, "0100c0d2", "far"),
        (305, "0100c0f2", "far"),
        (306, "0100e0d2", "far"),
        (307, "0000000000000000", "far"),
        (308, "00000000", "near"),
        (314, "00000000", "far"),
        (315, "00000000", "near"),
    ),
    RISCV: (
        (41, "00000000", "near"),
        (59, "00000000", "far"),
        (60, "808000", "near"),
        (61, "808000", "function"),
    ),
}
