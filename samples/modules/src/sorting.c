// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sorting: calls through pointers. The order is a table of functions in data, whose
 * entries the loader fills in.
 */
#include "module.h"

struct order {
	int (*compare)(const int *a, const int *b);
	void (*swap)(int *a, int *b);
};

static unsigned int swaps;

static int compare_ascending(const int *a, const int *b)
{
	return (*a > *b) - (*a < *b);
}

static int compare_descending(const int *a, const int *b)
{
	return compare_ascending(b, a);
}

static void swap_counted(int *a, int *b)
{
	int kept = *a;

	*a = *b;
	*b = kept;
	swaps++;
}

/* Not const: the compiler must go through the pointer. */
static struct order orders[2] = {
	{ compare_ascending, swap_counted },
	{ compare_descending, swap_counted },
};

static noinline void sift_down(int *a, size_t root, size_t count, const struct order *order)
{
	size_t child;

	while ((child = 2 * root + 1) < count) {
		if (child + 1 < count && order->compare(&a[child], &a[child + 1]) < 0)
			child++;
		if (order->compare(&a[root], &a[child]) >= 0)
			return;
		order->swap(&a[root], &a[child]);
		root = child;
	}
}

static noinline void heap_sort(int *a, size_t count, const struct order *order)
{
	size_t i;

	for (i = count / 2; i-- > 0;)
		sift_down(a, i, count, order);
	for (i = count; i-- > 1;) {
		order->swap(&a[0], &a[i]);
		sift_down(a, 0, i, order);
	}
}

/* Sort n ints, least first; return how many swaps it took. */
unsigned int sorting_sort(int *a, size_t n)
{
	swaps = 0;
	heap_sort(a, n, &orders[0]);
	return swaps;
}

/* Sort n ints, greatest first; return how many swaps it took. */
unsigned int sorting_sort_descending(int *a, size_t n)
{
	swaps = 0;
	heap_sort(a, n, &orders[1]);
	return swaps;
}

/* Return an index of `key` in n ints sorted least first, or -1. */
long sorting_bsearch(const int *a, size_t n, int key)
{
	size_t low = 0, high = n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		int sign = orders[0].compare(&key, &a[middle]);

		if (!sign)
			return (long)middle;
		if (sign < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return -1;
}

static int __init sorting_init(void)
{
	return 0;
}

static void __exit sorting_exit(void)
{
}

module_init(sorting_init);
module_exit(sorting_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Heap sort and binary search through function pointers");
