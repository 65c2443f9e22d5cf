// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * hello: parameters of four kinds, printk, and one function to call.
 */
#include "module.h"

static char *who = "world";
module_param(who, charp, 0444);
MODULE_PARM_DESC(who, "Whom to greet");

static int times = 1;
module_param(times, int, 0444);
MODULE_PARM_DESC(times, "How often");

static bool loud;
module_param(loud, bool, 0444);
MODULE_PARM_DESC(loud, "Whether to shout");

static int ids[4];
static unsigned int ids_count;
module_param_array(ids, int, &ids_count, 0444);
MODULE_PARM_DESC(ids, "Up to four numbers to print");

static unsigned int greetings;

/* Print a greeting with a number on it; return the number after it. */
unsigned int hello_greet(unsigned int n)
{
	greetings++;
	pr_info("hello: greeting %u\n", n);
	return n + 1;
}

static int __init hello_init(void)
{
	unsigned int i;

	for (i = 0; (int)i < times; i++) {
		if (loud)
			pr_warn("hello: HELLO, %s!\n", who);
		else
			pr_info("hello: Hello, %s!\n", who);
	}
	for (i = 0; i < ids_count; i++)
		pr_info("hello: id %d\n", ids[i]);
	return 0;
}

static void __exit hello_exit(void)
{
	pr_info("hello: goodbye after %u greetings\n", greetings);
}

module_init(hello_init);
module_exit(hello_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Greets; shows parameters and printk");
