// SPDX-License-Identifier: GPL-2.0-or-later
#include <kunit/test.h>
#include <linux/module.h>

static void before(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, 1, 1);
}

static noinline void store(volatile int *p)
{
	*p = 1;
}

static void breaks(struct kunit *test)
{
	store((int *)8);
}

static void after(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, 1, 1);
}

static struct kunit_case cases[] = {
	KUNIT_CASE(before), KUNIT_CASE(breaks), KUNIT_CASE(after), {}
};

static struct kunit_suite suite = { .name = "oopses", .test_cases = cases };

kunit_test_suite(suite);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("execmem test module");
