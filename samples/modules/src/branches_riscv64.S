/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The branch forms of RV64IC. Argument and result in a0. After `start`, a0 is the
 * shifted state and a1 the bit that fell out; `flip` applies the polynomial. A near
 * target lies in the same section, a far one in .text.unlikely. The assembler turns a
 * conditional branch to another section into a pair of instructions, so those are
 * written as numbers; a1 is x11. Compressed jumps stay within their section.
 */

	.macro form name
	.text
	.globl branch_\name
	.type branch_\name, %function
branch_\name:
	.pushsection .rodata
	.quad branch_\name
	.popsection
	.endm

	.macro done name
	.size branch_\name, . - branch_\name
	.endm

	.macro start
	andi a1, a0, 1
	srli a0, a0, 1
	.endm

	.macro flip
	ld a2, polynomial
	xor a0, a0, a2
	.endm

	/* A jump that is taken when the bit is 1 (when=1) or when it is 0 (when=0). */
	.macro near name, when, funct3, rs1, rs2
	form \name\()_near
	start
	.option push
	.option norvc
	\name x\rs1, x\rs2, 1f
	.option pop
	.if \when
	ret
1:	flip
	ret
	.else
	flip
1:	ret
	.endif
	done \name\()_near
	.endm

	.macro far name, when, funct3, rs1, rs2
	form \name\()_far
	start
	.if \when
	.reloc ., R_RISCV_BRANCH, cold_flip
	.insn 0x63 | \funct3 << 12 | \rs1 << 15 | \rs2 << 20
	.else
	.reloc ., R_RISCV_BRANCH, cold_ret
	.insn 0x63 | \funct3 << 12 | \rs1 << 15 | \rs2 << 20
	flip
	.endif
	ret
	done \name\()_far
	.endm

	.macro both name, when, funct3, rs1, rs2
	near \name, \when, \funct3, \rs1, \rs2
	far \name, \when, \funct3, \rs1, \rs2
	.endm

	.macro linked				/* a frame around a form that calls */
	addi sp, sp, -16
	sd ra, 8(sp)
	.endm

	.macro unlinked
	ld ra, 8(sp)
	addi sp, sp, 16
	ret
	.endm

	.section .rodata, "a"
	.balign 8
polynomial:
	.quad 0xc96c5795d7870f42
	.globl branches_forms
	.hidden branches_forms
branches_forms:

	.data
	.balign 8
step_pointer:
	.quad cold_step
scratch:
	.quad 0

	.section .text.unlikely, "ax"
	.balign 2
cold_flip:
	j hot_flip
cold_ret:
	j hot_ret
cold_step:
	linked
	call hot_step
	unlinked

	.text
hot_flip:
	flip
hot_ret:
	ret
hot_step:
	start
	beqz a1, hot_ret
	j hot_flip
step_by_t0:				/* as hot_step, but returns through t0 */
	start
	beqz a1, 1f
	flip
1:	jr t0

	both beq, 0, 0, 11, 0
	both bne, 1, 1, 11, 0
	both blt, 1, 4, 0, 11
	both bge, 0, 5, 0, 11
	both bltu, 1, 6, 0, 11
	both bgeu, 0, 7, 0, 11

	form blt_signed				/* -1 or 0 below 0: signed, not unsigned */
	start
	neg a1, a1
	bltz a1, 1f
	ret
1:	flip
	ret
	done blt_signed

	form bgeu_unsigned			/* -1 or 0 against 1 */
	start
	neg a1, a1
	li a3, 1
	bgeu a1, a3, 1f
	ret
1:	flip
	ret
	done bgeu_unsigned

	form c_beqz
	start
	c.beqz a1, 1f
	flip
1:	ret
	done c_beqz

	form c_bnez
	start
	c.bnez a1, 1f
	ret
1:	flip
	ret
	done c_bnez

	form c_j
	start
	c.j 2f
1:	flip
	ret
2:	bnez a1, 1b
	ret
	done c_j

	form c_jr
	lla a5, hot_step
	c.jr a5
	done c_jr

	form c_jalr
	linked
	lla a5, cold_step
	c.jalr a5
	unlinked
	done c_jalr

	form jal_zero_near
	start
	.option push
	.option norvc
	jal zero, 2f
	.option pop
1:	flip
	ret
2:	bnez a1, 1b
	ret
	done jal_zero_near

	form jal_zero_far
	start
	beqz a1, 1f
	j cold_flip
1:	j cold_ret
	done jal_zero_far

	form jal_near
	linked
	jal ra, 1f
	unlinked
1:	start
	beqz a1, 2f
	flip
2:	ret
	done jal_near

	form jal_far
	linked
	jal ra, cold_step
	unlinked
	done jal_far

	form jal_t0				/* the other link register */
	jal t0, step_by_t0
	ret
	done jal_t0

	form jalr
	linked
	lla a5, hot_step
	.option push
	.option norvc
	jalr ra, 0(a5)
	.option pop
	unlinked
	done jalr

	form jalr_offset
	lla a5, hot_step
	addi a5, a5, -1364
	jalr zero, 1364(a5)
	done jalr_offset

	form jalr_same_register			/* reads its target before it writes its link */
	lla t0, step_by_t0
	jalr t0, 0(t0)
	ret
	done jalr_same_register

	form auipc_jalr				/* the pair as two relocations */
1:	auipc t1, %pcrel_hi(cold_step)
	jalr zero, %pcrel_lo(1b)(t1)
	done auipc_jalr

	form auipc_ld
	linked
	ld a5, step_pointer
	jalr a5
	unlinked
	done auipc_ld

	form auipc_sd				/* a store and a load by one AUIPC each */
	lla a5, hot_step
	sd a5, scratch, t1
	ld a6, scratch
	jr a6
	done auipc_sd

	form call_near
	linked
	call hot_step
	unlinked
	done call_near

	form call_far
	linked
	call cold_step
	unlinked
	done call_far

	form tail_near
	tail hot_step
	done tail_near

	form tail_far
	tail cold_step
	done tail_far

	.section .rodata
	.globl branches_forms_end
	.hidden branches_forms_end
branches_forms_end:

	.section .init.text, "ax"
	.balign 2
	.globl branches_from_init
	.type branches_from_init, %function
branches_from_init:
	addi sp, sp, -16
	sd a0, 0(sp)
	sd ra, 8(sp)
	call cold_step
	ld a0, 0(sp)
	ld ra, 8(sp)
	addi sp, sp, 16
	tail branch_call_near
	.size branches_from_init, . - branches_from_init

	.section .note.GNU-stack, "", %progbits
