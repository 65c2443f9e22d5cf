// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sealed: a variable that init computes and that nobody may change afterwards. The
 * seeds and the code that mixes them live in init sections, which are gone by then.
 */
#include "module.h"

static u64 sealed_value __ro_after_init = 1;

static u64 sealed_words[4] __initdata = {
	0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9, 0x94d049bb133111eb, 0x2545f4914f6cdd1d,
};
static const u64 sealed_mask __initconst = 0x0123456789abcdef;

/* Return what init left: the sum of the four words, XOR the mask. */
u64 sealed_get(void)
{
	return sealed_value;
}

/* Store to the sealed variable, which faults after init; return what is there then. */
u64 sealed_try_write(u64 value)
{
	*(volatile u64 *)&sealed_value = value;
	return *(volatile u64 *)&sealed_value;
}

/* noipa: the compiler may not work the sum out beforehand. */
static u64 __init __attribute__((noipa)) mix(const u64 *words, unsigned int count,
					      const u64 *mask)
{
	u64 sum = 0;

	while (count--)
		sum += *words++;
	return sum ^ *mask;
}

static int __init sealed_init(void)
{
	sealed_value = mix(sealed_words, ARRAY_SIZE(sealed_words), &sealed_mask);
	sealed_words[0] = 0;
	return 0;
}

static void __exit sealed_exit(void)
{
	pr_info("sealed: %llx\n", sealed_value);
}

module_init(sealed_init);
module_exit(sealed_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A variable that is read-only after init");
