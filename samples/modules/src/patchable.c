// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * patchable: text that a running kernel rewrites. Every function has a call site for the
 * tracer at its entry; two branches depend on a static key; a call and a tail call go
 * through a static call, which is inline where the architecture has that.
 */
#include "module.h"

struct static_key {
	int enabled;
	void *type;
};

void static_key_enable(struct static_key *key);
void static_key_disable(struct static_key *key);

/* What is written for each branch: its site, its target, and the key with the branch's bit. */
#if defined(__x86_64__)
#define BRANCH_NOP ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"
#define BRANCH_JUMP "jmp %l[yes]\n"
#define POINTER ".quad %c0 + %c1 - .\n"
#elif defined(__aarch64__)
#define BRANCH_NOP "nop\n"
#define BRANCH_JUMP "b %l[yes]\n"
#define POINTER ".quad %c0 + %c1 - .\n"
#elif defined(__mips__)
#define BRANCH_NOP "b 2f\n2: .insn\n"
#define BRANCH_JUMP "j %l[yes]\n"
#define ENTRY ".dword 1b, %l[yes], %0 + %1\n"
#else
#define BRANCH_NOP ".option push\n.option norvc\nnop\n.option pop\n"
#define BRANCH_JUMP ".option push\n.option norvc\nj %l[yes]\n.option pop\n"
#define POINTER ".quad %0 + %1 - .\n"
#endif
#ifndef ENTRY
#define ENTRY ".long 1b - ., %l[yes] - .\n" POINTER
#endif
#define BRANCH(code)                                                       \
	"1: " code ".pushsection __jump_table, \"aw\"\n.balign 8\n"        \
	ENTRY ".popsection\n"

struct static_key patchable_key;

/* Return 2 while the key is true, else 1; without it: straight on. */
noinline u64 patchable_unlikely(void)
{
	asm goto(BRANCH(BRANCH_NOP) : : "i"(&patchable_key), "i"(0) : : yes);
	return 1;
yes:
	return 2;
}

/* Return 2 while the key is true, else 1; with it: straight on. */
noinline u64 patchable_likely(void)
{
	asm goto(BRANCH(BRANCH_JUMP) : : "i"(&patchable_key), "i"(1) : : yes);
	return 2;
yes:
	return 1;
}

/* Make the key true or false, as a module does. */
void patchable_switch(bool on)
{
	if (on)
		static_key_enable(&patchable_key);
	else
		static_key_disable(&patchable_key);
}

#define opaque __attribute__((noipa))
#define no_tail_calls __attribute__((optimize("no-optimize-sibling-calls")))

/* Return the nth Fibonacci number, the slow way. */
opaque no_tail_calls u64 patchable_fib(u64 n)
{
	return n < 2 ? n : patchable_fib(n - 1) + patchable_fib(n - 2);
}

/* Return the weighted sum of more arguments than there are registers for. */
opaque u64 patchable_sum(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f, u64 g, u64 h, u64 i, u64 j)
{
	return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j;
}

struct pair {
	u64 quotient, rest;
};

/* Divide; the result takes two registers. */
opaque struct pair patchable_divide(u64 a, u64 b)
{
	return (struct pair){ a / b, a % b };
}

/* Return the sum of the decimal digits. */
u64 patchable_digits(u64 n)
{
	u64 sum = 0;

	while (n) {
		struct pair pair = patchable_divide(n, 10);

		sum += pair.rest;
		n = pair.quotient;
	}
	return sum;
}

opaque u64 patchable_double(u64 x)
{
	return 2 * x;
}

opaque u64 patchable_triple(u64 x)
{
	return 3 * x;
}

/* Return 2 * (x + 1), by a tail call. */
u64 patchable_next(u64 x)
{
	return patchable_double(x + 1);
}

/* The static call patchable_op; at first it doubles. */
struct static_call_key {
	void *func;
	void *sites;
};

struct static_call_key __SCK__patchable_op = { patchable_double, NULL };

#if defined(__x86_64__)
void __static_call_update(struct static_call_key *key, void *trampoline, void *func);
extern char __SCT__patchable_op[];

#define SITE(instruction, flags)                                           \
	"1: " instruction " __SCT__patchable_op\n"                         \
	".pushsection .static_call_sites, \"aw\"\n.balign 4\n"             \
	".long 1b - ., __SCK__patchable_op + " flags " - .\n.popsection\n"

asm(".pushsection .static_call.text, \"ax\"\n.balign 4\n"
    ".globl __SCT__patchable_op\n.type __SCT__patchable_op, @function\n"
    "__SCT__patchable_op:\n"
    ".byte 0xe9\n.long patchable_double - . - 4\n.byte 0x0f, 0xb9, 0xcc\n"
    ".size __SCT__patchable_op, . - __SCT__patchable_op\n.popsection\n");

/* Return the static call's result plus one. */
noinline u64 patchable_op(u64 x)
{
	u64 result;

	asm volatile(SITE("call", "0")
		     : "=a"(result), "+D"(x)
		     :
		     : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
	return result + 1;
}

/* Return the static call's result, by a tail call. */
asm(".pushsection .text\n.globl patchable_op_tail\n.type patchable_op_tail, @function\n"
    "patchable_op_tail:\n" SITE("jmp.d32", "1")
    ".size patchable_op_tail, . - patchable_op_tail\n.popsection\n");

#define update(to) __static_call_update(&__SCK__patchable_op, __SCT__patchable_op, to)
#else
static u64 through_key(u64 x)
{
	return ((u64 (*)(u64))*(void *volatile *)&__SCK__patchable_op.func)(x);
}

noinline u64 patchable_op(u64 x)
{
	return through_key(x) + 1;
}

u64 patchable_op_tail(u64 x)
{
	return through_key(x);
}

#define update(to) (*(void *volatile *)&__SCK__patchable_op.func = (to))
#endif

/* Let the static call triple instead of double, or double again. */
void patchable_choose(bool triple)
{
	update(triple ? (void *)patchable_triple : (void *)patchable_double);
}

static int __init patchable_init(void)
{
	return patchable_fib(10) == 55 ? 0 : -EINVAL;
}

static void __exit patchable_exit(void)
{
}

module_init(patchable_init);
module_exit(patchable_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Call sites for a tracer, static branches and static calls");
