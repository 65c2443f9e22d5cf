/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The branch forms of A64. Argument and result in x0. After `start`, x0 is the
 * shifted state and x1 the bit that fell out; `flip` applies the polynomial. A near
 * target is settled by the assembler; a far one lies in .text.unlikely and has a
 * relocation. x16 and x17 are left alone: a veneer may use them.
 */

	.macro form name
	.text
	.balign 4
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
	and x1, x0, #1
	lsr x0, x0, #1
	.endm

	.macro flip
	mov x2, #0x0f42
	movk x2, #0xd787, lsl #16
	movk x2, #0x5795, lsl #32
	movk x2, #0xc96c, lsl #48
	eor x0, x0, x2
	.endm

	/* A jump that is taken when the bit is 1 (when=1) or when it is 0 (when=0). */
	.macro near name, when, setup, jump:vararg
	form \name\()_near
	start
	\setup
	\jump 1f
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

	.macro far name, when, setup, jump:vararg
	form \name\()_far
	start
	\setup
	.if \when
	\jump cold_flip
	.else
	\jump cold_ret
	flip
	.endif
	ret
	done \name\()_far
	.endm

	.macro both name, when, setup, jump:vararg
	near \name, \when, "\setup", \jump
	far \name, \when, "\setup", \jump
	.endm

	.macro always cond			/* conditions that hold whatever the flags */
	form b_\cond
	start
	cmp x1, #1
	b.\cond 2f
	brk #0
1:	flip
	ret
2:	b.eq 1b
	ret
	done b_\cond
	.endm

	.macro linked				/* a frame around a form that calls */
	stp x29, x30, [sp, #-16]!
	mov x29, sp
	.endm

	.macro unlinked
	ldp x29, x30, [sp], #16
	ret
	.endm

	.section .rodata, "a"
	.balign 8
	.globl branches_forms
	.hidden branches_forms
branches_forms:

	.data
	.balign 8
step_pointer:
	.quad cold_step

	.section .text.unlikely, "ax"
	.balign 8
cold_polynomial:
	.quad 0xc96c5795d7870f42
cold_flip:
	b hot_flip
cold_ret:
	b hot_ret
cold_step:
	linked
	bl hot_step
	unlinked

	.text
	.balign 8
hot_polynomial:
	.quad 0xc96c5795d7870f42
hot_flip:
	flip
hot_ret:
	ret
hot_step:
	start
	cbz x1, hot_ret
	b hot_flip

	/* 1 - 1 or 0 - 1: equal or lower */
	both b_eq, 1, "cmp x1, #1", b.eq
	both b_ne, 0, "cmp x1, #1", b.ne
	both b_hs, 1, "cmp x1, #1", b.hs
	both b_lo, 0, "cmp x1, #1", b.lo
	both b_mi, 0, "cmp x1, #1", b.mi
	both b_pl, 1, "cmp x1, #1", b.pl
	both b_ge, 1, "cmp x1, #1", b.ge
	both b_lt, 0, "cmp x1, #1", b.lt
	/* the bit against zero */
	both b_hi, 1, "cmp x1, #0", b.hi
	both b_ls, 0, "cmp x1, #0", b.ls
	both b_gt, 1, "cmp x1, #0", b.gt
	both b_le, 0, "cmp x1, #0", b.le
	/* -2^63 - 1 overflows, 0 - 1 does not */
	both b_vs, 1, "lsl x1, x1, #63; subs x1, x1, #1", b.vs
	both b_vc, 0, "lsl x1, x1, #63; subs x1, x1, #1", b.vc
	always al
	always nv
	/* the w forms look at 32 bits: a bit set above must not matter */
	both cbz_x, 0, "lsl x1, x1, #40", cbz x1,
	both cbnz_x, 1, "lsl x1, x1, #40", cbnz x1,
	both cbz_w, 0, "orr x1, x1, #0x10000000000", cbz w1,
	both cbnz_w, 1, "orr x1, x1, #0x10000000000", cbnz w1,
	both tbz_0, 0, "", tbz x1, #0,
	both tbnz_0, 1, "", tbnz x1, #0,
	both tbz_31, 0, "lsl x1, x1, #31", tbz w1, #31,
	both tbnz_31, 1, "lsl x1, x1, #31", tbnz w1, #31,
	both tbz_32, 0, "lsl x1, x1, #32", tbz x1, #32,
	both tbnz_63, 1, "lsl x1, x1, #63", tbnz x1, #63,

	form b_near
	start
	b 2f
1:	flip
	ret
2:	cbnz x1, 1b
	ret
	done b_near

	form b_far
	start
	cbz x1, 1f
	b cold_flip
1:	b cold_ret
	done b_far

	form bl_near
	linked
	bl hot_step
	unlinked
	done bl_near

	form bl_far
	linked
	bl cold_step
	unlinked
	done bl_far

	form br_adr
	adr x9, hot_step
	br x9
	done br_adr

	form br_adr_far
	adr x9, cold_step
	br x9
	done br_adr_far

	form br_adrp
	adrp x9, cold_step
	add x9, x9, #:lo12:cold_step
	br x9
	done br_adrp

	form blr_adrp_ldr
	linked
	adrp x9, step_pointer
	ldr x9, [x9, #:lo12:step_pointer]
	blr x9
	unlinked
	done blr_adrp_ldr

	form blr_literal			/* the address from the pool behind the code */
	linked
	ldr x10, 1f
	blr x10
	unlinked
	.balign 8
1:	.quad hot_step
	done blr_literal

	form ldr_literal
	start
	cbz x1, 1f
	ldr x2, hot_polynomial
	eor x0, x0, x2
1:	ret
	done ldr_literal

	form ldr_literal_far
	start
	cbz x1, 1f
	ldr x2, cold_polynomial
	eor x0, x0, x2
1:	ret
	done ldr_literal_far

	form ret_x9				/* a return through another register */
	adr x9, 1f
	ret x9
	brk #0
1:	start
	cbz x1, 2f
	flip
2:	ret
	done ret_x9

	.section .rodata
	.globl branches_forms_end
	.hidden branches_forms_end
branches_forms_end:

	.section .init.text, "ax"
	.balign 4
	.globl branches_from_init
	.type branches_from_init, %function
branches_from_init:
	stp x0, x30, [sp, #-16]!
	bl cold_step
	ldp x0, x30, [sp], #16
	b branch_bl_near
	.size branches_from_init, . - branches_from_init

	.section .note.GNU-stack, "", %progbits
