// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * mathlib: a library for other modules, with an export of every kind: plain, GPL
 * only, and data in a namespace.
 */
#include "module.h"

u64 mathlib_calls;
EXPORT_SYMBOL_NS(mathlib_calls, MATHLIB);

/* Return the greatest common divisor; gcd(0, n) is n. */
u64 mathlib_gcd(u64 a, u64 b)
{
	mathlib_calls++;
	while (b) {
		u64 rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}
EXPORT_SYMBOL(mathlib_gcd);

/* Return base to the power of exponent modulo m, for m below 2^32; 0 for m = 0. */
u64 mathlib_powmod(u64 base, u64 exponent, u64 m)
{
	u64 result;

	mathlib_calls++;
	if (!m || m >> 32)
		return 0;
	result = 1 % m;
	for (base %= m; exponent; exponent >>= 1) {
		if (exponent & 1)
			result = result * base % m;
		base = base * base % m;
	}
	return result;
}
EXPORT_SYMBOL_GPL(mathlib_powmod);

static int __init mathlib_init(void)
{
	mathlib_calls = 0;
	return 0;
}

static void __exit mathlib_exit(void)
{
	pr_info("mathlib: %llu calls\n", mathlib_calls);
}

module_init(mathlib_init);
module_exit(mathlib_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Exports functions and data to other modules");
