// SPDX-License-Identifier: GPL-2.0-or-later
/* A function for each thing that a kernel's checks report; each returns a number of its own. */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/slab.h>

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static char small[8];

int bug_none(void)
{
	return 1;
}

int bug_out_of_bounds(int behind)
{
	volatile char *p = kmalloc(32, GFP_KERNEL);

	p[31 + behind] = 1;
	kfree((void *)p);
	return 2;
}

int bug_use_after_free(void)
{
	volatile char *p = kmalloc(32, GFP_KERNEL);

	kfree((void *)p);
	return p[3] * 0 + 3;
}

int bug_double_free(void)
{
	char *p = kmalloc(32, GFP_KERNEL);

	kfree(p);
	kfree(p);
	return 4;
}

int bug_bounds(int index)
{
	volatile int found = small[index];

	return found * 0 + 5;
}

int bug_shift(int by)
{
	volatile int shifted = 1 << by;

	return shifted * 0 + 6;
}

int bug_sleep(void)
{
	preempt_disable();
	might_sleep();
	preempt_enable();
	return 7;
}

int bug_order(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);
	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
	return 8;
}

int bug_list(void)
{
	static LIST_HEAD(head);
	struct list_head *entry = kzalloc(sizeof(*entry), GFP_KERNEL);

	list_add(entry, &head);
	list_del(entry);
	list_del(entry);
	return 9;
}

int bug_warn(void)
{
	WARN(1, "this is %d\n", 42);
	return 10;
}

int bug_null(void)
{
	*(volatile int *)8 = 1;
	return 11;
}

static int takes_one(int x)
{
	return x;
}

int bug_cfi(void)
{
	int (*wrong)(void) = (int (*)(void))(void *)takes_one;

	OPTIMIZER_HIDE_VAR(wrong);
	return wrong() * 0 + 12;
}

static int __init reports_init(void)
{
	return 0;
}

static void __exit reports_exit(void)
{
}

module_init(reports_init);
module_exit(reports_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("execmem test module");
