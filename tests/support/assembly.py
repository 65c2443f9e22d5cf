# SPDX-License-Identifier: GPL-2.0-or-later
"""Assembly for each architecture that uses every relocation a linker can check.

What a compiler would not write stands behind `.reloc`. `far` is a kernel symbol within
reach of calls, `near` within reach of the shortest branch, `small` and `tiny` are numbers.
"""

from __future__ import annotations

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
        .reloc  ., R_RISCV_SUB16, near
        .reloc  ., R_RISCV_ADD16, far
        .half   0
        .reloc  ., R_RISCV_ADD8, near
        .reloc  ., R_RISCV_SUB8, function
        .byte   0
        .reloc  ., R_RISCV_RELAX
        .reloc  ., R_RISCV_NONE
        .byte   0
""",
}
