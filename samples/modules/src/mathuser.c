// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * mathuser: stands on mathlib. Calls into another module, and reads its data.
 */
#include "module.h"

extern u64 mathlib_calls;
u64 mathlib_gcd(u64 a, u64 b);
u64 mathlib_powmod(u64 base, u64 exponent, u64 m);

/* Return the least common multiple; 0 if either is 0. */
u64 mathuser_lcm(u64 a, u64 b)
{
	return a && b ? a / mathlib_gcd(a, b) * b : 0;
}

/* Return whether odd n > a + 1 passes one Miller-Rabin round to base a. */
static noinline bool passes(u64 n, u64 a)
{
	u64 odd = n - 1, x;

	while (!(odd & 1))
		odd >>= 1;
	x = mathlib_powmod(a, odd, n);
	if (x == 1 || x == n - 1)
		return true;
	for (odd <<= 1; odd < n - 1; odd <<= 1) {
		x = x * x % n;
		if (x == n - 1)
			return true;
	}
	return false;
}

/*
 * Return 1 if n is prime, for n below 2^32: the bases 2, 7 and 61 leave no false
 * witness there (Jaeschke 1993). Larger n are not tested and give 0.
 */
int mathuser_is_probable_prime(u64 n)
{
	static const u8 bases[] = { 2, 7, 61 };
	unsigned int i;

	if (n < 2 || n >> 32)
		return 0;
	for (i = 0; i < ARRAY_SIZE(bases); i++)
		if (n % bases[i] == 0)
			return n == bases[i];
	for (i = 0; i < ARRAY_SIZE(bases); i++)
		if (!passes(n, bases[i]))
			return 0;
	return 1;
}

/* Return how many calls mathlib has counted, in whoever's name. */
u64 mathuser_calls(void)
{
	return mathlib_calls;
}

static int __init mathuser_init(void)
{
	if (mathuser_lcm(4, 6) != 12)
		return -EINVAL;
	pr_info("mathuser: lcm(4, 6) = 12\n");
	return 0;
}

static void __exit mathuser_exit(void)
{
}

module_init(mathuser_init);
module_exit(mathuser_exit);
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS(MATHLIB);
MODULE_DESCRIPTION("Uses functions and data of mathlib");
