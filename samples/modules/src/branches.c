// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * branches: every form of branch that the architecture has, each in a function of
 * its own (branch_*, in branches_<arch>.S). All of them compute one and the same
 * number, a step of a shift register whose lowest bit decides which way the branch
 * goes, so a branch that lands in the wrong place gives itself away.
 */
#include "module.h"

typedef u64 (*form_t)(u64 x);

extern const form_t branches_forms[] __attribute__((visibility("hidden")));
extern const form_t branches_forms_end[] __attribute__((visibility("hidden")));
u64 branches_from_init(u64 x);

/* Return the next state: shifted right, XOR the polynomial where a 1 fell out. */
u64 branches_step(u64 x)
{
	return x >> 1 ^ (x & 1 ? 0xc96c5795d7870f42 : 0);
}

/* Return how many forms this architecture has. */
unsigned long branches_count(void)
{
	return (unsigned long)(branches_forms_end - branches_forms);
}

/* Return the index of the first form that does not turn x into its next state, or -1. */
long branches_check(u64 x)
{
	unsigned long i;

	for (i = 0; i < branches_count(); i++)
		if (branches_forms[i](x) != branches_step(x))
			return (long)i;
	return -1;
}

/*
 * Run all forms on n states in a row, the first one ~n, and return the state after
 * them, which is the same number on every architecture; 0 if a form went astray.
 */
u64 branches_all(u64 n)
{
	u64 x = ~n;

	for (; n; n--) {
		if (branches_check(x) >= 0)
			return 0;
		x = branches_step(x);
	}
	return x;
}

static int __init branches_init(void)
{
	if (branches_from_init(1) != branches_step(1))
		return -EINVAL;
	return branches_all(2) ? 0 : -EINVAL;
}

static void __exit branches_exit(void)
{
}

module_init(branches_init);
module_exit(branches_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Every form of branch, within a section and across sections");
