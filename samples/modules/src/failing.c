// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * failing: an init that takes something, changes its mind and gives it back.
 */
#include "module.h"

static int error = EINVAL;
module_param(error, int, 0444);
MODULE_PARM_DESC(error, "Error number that init returns, negated; 0 succeeds");

static void *taken;

static int __init failing_init(void)
{
	taken = kmalloc(128, GFP_KERNEL);
	if (!taken)
		return -ENOMEM;
	if (!error)
		return 0;
	pr_err("failing: giving up with error %d\n", error);
	kfree(taken);
	return -error;
}

static void __exit failing_exit(void)
{
	kfree(taken);
}

module_init(failing_init);
module_exit(failing_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Fails in init, or not");
