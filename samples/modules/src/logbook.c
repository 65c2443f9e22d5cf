// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * logbook: a list under a mutex, counters under a spinlock, memory by kmalloc and
 * text by snprintf; and, compiled so, a stack protector in what has an array.
 */
#include "module.h"

struct entry {
	struct list_head link;
	u32 number;
	u32 length;
	char text[];
};

static LIST_HEAD(entries);
static struct mutex lock; /* guards the list */
static spinlock_t count_lock;
static u32 count;
static struct lock_class_key lock_key;

static u32 count_up(void)
{
	u32 number;

	spin_lock(&count_lock);
	number = ++count;
	spin_unlock(&count_lock);
	return number;
}

/* Append a text; return its number, counted from 1, or a negative error number. */
int logbook_add(const char *text)
{
	size_t length = strlen(text);
	struct entry *entry = kmalloc(sizeof(*entry) + length + 1, GFP_KERNEL);

	if (!entry)
		return -ENOMEM;
	memcpy(entry->text, text, length + 1);
	entry->length = (u32)length;
	mutex_lock(&lock);
	entry->number = count_up();
	list_add_tail(&entry->link, &entries);
	mutex_unlock(&lock);
	pr_info("logbook: entry %u at %p, %d characters\n", entry->number, entry, (int)length);
	return (int)entry->number;
}

/*
 * Write the entries into a buffer of n bytes, one a line: number, first character,
 * text, length in hexadecimal and the first bytes (at most four). A line longer than
 * 79 characters is cut there; where one does not fit, the rest is left out. Return how many characters were written; a NUL follows them where n > 0.
 */
long logbook_render(char *out, size_t n)
{
	struct list_head *link;
	char line[80];
	size_t used = 0;

	if (n)
		out[0] = '\0';
	mutex_lock(&lock);
	for (link = entries.next; link != &entries; link = link->next) {
		struct entry *entry = container_of(link, struct entry, link);
		int shown = entry->length < 4 ? (int)entry->length : 4;
		int length = snprintf(line, sizeof(line), "%u%% %c|%s|%llx|%*ph\n",
				      entry->number, entry->length ? entry->text[0] : '-',
				      entry->text, (u64)entry->length, shown, entry->text);

		if (length >= (int)sizeof(line))
			length = (int)sizeof(line) - 1;
		if (used + (size_t)length >= n)
			break;
		memcpy(out + used, line, (size_t)length + 1);
		used += (size_t)length;
	}
	mutex_unlock(&lock);
	return (long)used;
}

/* Remove and free the oldest entry; return its number, or 0 where there is none. */
u32 logbook_drop(void)
{
	struct entry *entry = NULL;
	u32 number = 0;

	mutex_lock(&lock);
	if (entries.next != &entries) {
		entry = container_of(entries.next, struct entry, link);
		number = entry->number;
		list_del(&entry->link);
	}
	mutex_unlock(&lock);
	kfree(entry);
	return number;
}

static int __init logbook_init(void)
{
	__mutex_init(&lock, "&lock", &lock_key);
	pr_info("logbook: open\n");
	return 0;
}

static void __exit logbook_exit(void)
{
	u32 dropped = 0;

	while (logbook_drop())
		dropped++;
	pr_info("logbook: closed, %u entries dropped\n", dropped);
}

module_init(logbook_init);
module_exit(logbook_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Locks, lists, allocation and formatted text");
