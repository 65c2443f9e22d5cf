/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The branch forms of x86-64. Argument in %rdi, result in %rax. After `start`, %rax
 * is the shifted state and %ecx the bit that fell out; `flip` applies the polynomial.
 * A near target is rel8 and settled by the assembler; a far one lies in
 * .text.unlikely, so that it is rel32 with a relocation.
 */

	.macro form name
	.text
	.globl branch_\name
	.type branch_\name, @function
branch_\name:
	.pushsection .rodata
	.quad branch_\name
	.popsection
	.endm

	.macro done name
	.size branch_\name, . - branch_\name
	.endm

	.macro start
	movq %rdi, %rax
	shrq %rax
	movl %edi, %ecx
	andl $1, %ecx
	.endm

	.macro flip
	movabsq $0xc96c5795d7870f42, %rdx
	xorq %rdx, %rax
	.endm

	/* A jump that is taken when the bit is 1 (when=1) or when it is 0 (when=0). */
	.macro near name, when, setup, jump
	form \name\()_rel8
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
	done \name\()_rel8
	.endm

	.macro far name, when, setup, jump
	form \name\()_rel32
	start
	\setup
	.if \when
	\jump cold_flip
	.else
	\jump cold_ret
	flip
	.endif
	ret
	done \name\()_rel32
	.endm

	.macro jcc name, when, setup
	near \name, \when, "\setup", \name
	far \name, \when, "\setup", \name
	.endm

	.section .rodata, "a"
	.balign 8
	.globl branches_forms
	.hidden branches_forms
branches_forms:

	.data
	.balign 8
way:	.quad hot_ret, hot_flip
step_pointer:
	.quad hot_step

	.section .text.unlikely, "ax"
cold_flip:
	jmp hot_flip
cold_ret:
	jmp hot_ret
cold_step:
	call hot_step
	ret

	.text
hot_flip:
	flip
hot_ret:
	ret
hot_step:
	start
	jrcxz hot_ret
	jmp hot_flip
step_pops:				/* as hot_step, and removes one argument */
	start
	jrcxz 1f
	flip
1:	ret $8

	/* 1 - 1 or 0 - 1 in %ecx: equal or below */
	jcc je, 1, "cmpl $1, %ecx"
	jcc jne, 0, "cmpl $1, %ecx"
	jcc jb, 0, "cmpl $1, %ecx"
	jcc jae, 1, "cmpl $1, %ecx"
	jcc js, 0, "cmpl $1, %ecx"
	jcc jns, 1, "cmpl $1, %ecx"
	jcc jl, 0, "cmpl $1, %ecx"
	jcc jge, 1, "cmpl $1, %ecx"
	/* the bit against zero */
	jcc ja, 1, "cmpl $0, %ecx"
	jcc jbe, 0, "cmpl $0, %ecx"
	jcc jg, 1, "cmpl $0, %ecx"
	jcc jle, 0, "cmpl $0, %ecx"
	jcc jp, 0, "testl %ecx, %ecx"
	jcc jnp, 1, "testl %ecx, %ecx"
	/* -2^31 - 1 overflows, 0 - 1 does not */
	jcc jo, 1, "shll $31, %ecx; subl $1, %ecx"
	jcc jno, 0, "shll $31, %ecx; subl $1, %ecx"
	/* these count or test %rcx and exist in rel8 only */
	near jrcxz, 0, "", jrcxz
	near jecxz, 0, "btsq $40, %rcx", jecxz
	near loop, 1, "incl %ecx", loop
	near loope, 0, "testl %ecx, %ecx; movl $2, %ecx", loope
	near loopne, 1, "testl %ecx, %ecx; movl $2, %ecx", loopne

	form jmp_rel8
	start
	jmp 2f
1:	flip
	ret
2:	loop 3f				/* 1 - 1 = 0 falls through, 0 - 1 goes on */
	jmp 1b
3:	ret
	done jmp_rel8

	form jmp_rel32
	start
	testl %ecx, %ecx
	jz 1f
	jmp cold_flip
1:	jmp cold_ret
	done jmp_rel32

	form jmp_reg
	leaq hot_step(%rip), %rdx
	jmp *%rdx
	done jmp_reg

	form jmp_reg_absolute		/* the address as a sign-extended 32-bit number */
	movq $cold_step, %rdx
	jmp *%rdx
	done jmp_reg_absolute

	form jmp_reg_movabs		/* and as a whole one */
	movabsq $cold_step, %r11
	jmp *%r11
	done jmp_reg_movabs

	form jmp_mem
	jmp *step_pointer(%rip)
	done jmp_mem

	form jmp_mem_indexed
	start
	jmp *way(, %rcx, 8)
	done jmp_mem_indexed

	form call_rel32
	call hot_step
	ret
	done call_rel32

	form call_rel32_far
	call cold_step
	ret
	done call_rel32_far

	form call_reg
	leaq cold_step(%rip), %r10
	call *%r10
	ret
	done call_reg

	form call_mem
	call *step_pointer(%rip)
	ret
	done call_mem

	form call_mem_indexed
	start
	call *way(, %rcx, 8)
	ret
	done call_mem_indexed

	form ret_imm16
	pushq %rdi
	call step_pops
	ret
	done ret_imm16

	form ret_pushed			/* a return to an address that no call left */
	start
	pushq way(, %rcx, 8)
	ret
	done ret_pushed

	.section .rodata
	.globl branches_forms_end
	.hidden branches_forms_end
branches_forms_end:

	.section .init.text, "ax"
	.globl branches_from_init
	.type branches_from_init, @function
branches_from_init:
	pushq %rdi
	call cold_step
	popq %rdi
	jmp branch_call_rel32
	.size branches_from_init, . - branches_from_init

	.section .note.GNU-stack, "", @progbits
