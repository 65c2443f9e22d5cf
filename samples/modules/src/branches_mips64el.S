/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The branch forms of MIPS64 Release 2. Argument in a0, result in v0. After `start`, v0 is
 * the shifted state and a1 the bit that fell out; `flip` applies the polynomial. Most forms
 * use their delay slot: what stands there is executed whichever way the branch goes, or with
 * a likely branch only where it is taken. A branch gets 128 KiB and a jump through its region
 * of 256 MiB; a far target lies in .text.unlikely.
 */

	.set noreorder
	.set noat

	.macro form name
	.text
	.globl branch_\name
	.type branch_\name, %function
branch_\name:
	.pushsection .rodata
	.dword branch_\name
	.popsection
	.endm

	.macro done name
	.size branch_\name, . - branch_\name
	.endm

	.macro start
	andi $5, $4, 1
	dsrl $2, $4, 1
	.endm

	.macro flip
	lui $6, %hi(polynomial)
	ld $6, %lo(polynomial)($6)
	xor $2, $2, $6
	.endm

	.macro return
	jr $31
	nop
	.endm

	/* The shift is in the delay slot. */
	.macro plain name, when, operands:vararg
	form \name\()_near
	andi $5, $4, 1
	\name \operands, 1f
	dsrl $2, $4, 1
	.if \when
	return
1:	flip
	return
	.else
	flip
1:	return
	.endif
	done \name\()_near

	form \name\()_far
	andi $5, $4, 1
	.if \when
	\name \operands, cold_flip
	dsrl $2, $4, 1
	.else
	\name \operands, cold_return
	dsrl $2, $4, 1
	flip
	.endif
	return
	done \name\()_far
	.endm

	/* The last step of the polynomial is in the delay slot: done only if the bit is 1. */
	.macro likely name, operands:vararg
	form \name
	start
	lui $6, %hi(polynomial)
	ld $6, %lo(polynomial)($6)
	\name \operands, 1f
	xor $2, $2, $6
1:	return
	done \name
	.endm

	.macro linked				/* a frame around a form that calls */
	daddiu $29, $29, -16
	sd $31, 8($29)
	.endm

	.macro unlinked
	ld $31, 8($29)
	jr $31
	daddiu $29, $29, 16
	.endm

	.section .rodata, "a"
	.balign 8
polynomial:
	.dword 0xc96c5795d7870f42
	.globl branches_forms
	.hidden branches_forms
branches_forms:

	.data
	.balign 8
step_pointer:
	.dword cold_step
scratch:
	.dword 0

	.section .text.unlikely, "ax"
	.balign 8
cold_flip:
	j hot_flip
	nop
cold_return:
	jr $31
	nop
cold_step:
	linked
	jal hot_step
	nop
	unlinked

	.text
hot_flip:
	flip
	return
hot_step:
	andi $5, $4, 1
	bnez $5, hot_flip
	dsrl $2, $4, 1
	return
step_by_t0:				/* as hot_step, but returns through t0 */
	start
	beqz $5, 1f
	nop
	flip
1:	jr $8
	nop

	plain beq, 0, $5, $0
	plain bne, 1, $5, $0
	plain blez, 0, $5
	plain bgtz, 1, $5

	form bltz				/* -1 or 0 */
	start
	dsubu $5, $0, $5
	bltz $5, 1f
	nop
	return
1:	flip
	return
	done bltz

	form bgez
	start
	dsubu $5, $0, $5
	bgez $5, 1f
	nop
	flip
1:	return
	done bgez

	form bltzal				/* links whether it is taken or not */
	move $8, $31
	dsll $5, $4, 63
	bltzal $5, 1f
	dsrl $2, $4, 1
2:	move $31, $8
	return
1:	flip
	jr $31
	nop
	done bltzal

	form bgezal_bal
	linked
	bal 1f
	nop
	unlinked
1:	start
	beqz $5, 2f
	nop
	flip
2:	return
	done bgezal_bal

	likely bnel, $5, $0
	likely bgtzl, $5

	form beql
	start
	lui $6, %hi(polynomial)
	ld $6, %lo(polynomial)($6)
	xori $5, $5, 1
	beql $5, $0, 1f
	xor $2, $2, $6
1:	return
	done beql

	form blezl
	start
	lui $6, %hi(polynomial)
	ld $6, %lo(polynomial)($6)
	dsubu $5, $0, $5
	addiu $5, $5, 1
	blezl $5, 1f
	xor $2, $2, $6
1:	return
	done blezl

	form bltzl
	start
	lui $6, %hi(polynomial)
	ld $6, %lo(polynomial)($6)
	dsubu $5, $0, $5
	bltzl $5, 1f
	xor $2, $2, $6
1:	return
	done bltzl

	form bgezl
	start
	lui $6, %hi(polynomial)
	ld $6, %lo(polynomial)($6)
	addiu $5, $5, -1
	bgezl $5, 1f
	xor $2, $2, $6
1:	return
	done bgezl

	form load_in_slot			/* a load is done before the branch goes */
	start
	lui $7, %hi(polynomial)
	bnez $5, 1f
	ld $6, %lo(polynomial)($7)
	return
1:	jr $31
	xor $2, $2, $6
	done load_in_slot

	form store_in_slot
	start
	lui $7, %hi(scratch)
	beqz $5, 1f
	sd $2, %lo(scratch)($7)
	flip
	return
1:	ld $2, %lo(scratch)($7)
	return
	done store_in_slot

	form j_near
	start
	j 2f
	nop
1:	flip
	return
2:	bnez $5, 1b
	nop
	return
	done j_near

	form j_far
	start
	beqz $5, 1f
	nop
	j cold_flip
	nop
1:	j cold_return
	nop
	done j_far

	form jal_near
	linked
	jal hot_step
	nop
	unlinked
	done jal_near

	form jal_far
	linked
	jal cold_step
	nop
	unlinked
	done jal_far

	form jal_slot				/* the slot is executed before the function */
	linked
	daddiu $4, $4, -1
	jal hot_step
	daddiu $4, $4, 1
	unlinked
	done jal_slot

	form jr
	lui $25, %hi(hot_step)
	daddiu $25, $25, %lo(hot_step)
	jr $25
	nop
	done jr

	form jalr
	linked
	lui $25, %hi(cold_step)
	daddiu $25, $25, %lo(cold_step)
	jalr $25
	nop
	unlinked
	done jalr

	form jalr_t0				/* the other link register */
	lui $25, %hi(step_by_t0)
	daddiu $25, $25, %lo(step_by_t0)
	jalr $8, $25
	nop
	return
	done jalr_t0

	form jalr_ld
	linked
	lui $25, %hi(step_pointer)
	ld $25, %lo(step_pointer)($25)
	jalr $25
	nop
	unlinked
	done jalr_ld

	form jr_sd				/* a store and a load by one LUI each */
	lui $25, %hi(hot_step)
	daddiu $25, $25, %lo(hot_step)
	lui $7, %hi(scratch)
	sd $25, %lo(scratch)($7)
	lui $8, %hi(scratch)
	ld $8, %lo(scratch)($8)
	jr $8
	nop
	done jr_sd

	.section .rodata
	.globl branches_forms_end
	.hidden branches_forms_end
branches_forms_end:

	.section .init.text, "ax"
	.balign 8
	.globl branches_from_init
	.type branches_from_init, %function
branches_from_init:
	daddiu $29, $29, -16
	sd $4, 0($29)
	sd $31, 8($29)
	jal cold_step
	nop
	ld $4, 0($29)
	ld $31, 8($29)
	j branch_jal_near
	daddiu $29, $29, 16
	.size branches_from_init, . - branches_from_init

	.section .note.GNU-stack, "", %progbits
