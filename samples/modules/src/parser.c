// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * parser: reads a file of records, with mistakes in it that parsers have. Each is behind
 * a few bytes that somebody has to find; with -DCLEAN (parserclean.c) there is none.
 *
 * A file is "PRS" and a version, 1. A record is a tag, the size of its contents, and the
 * contents. Which mistake a tag has is written beside it.
 */
#include "module.h"

#ifdef CLEAN
#define clean 1
#else
#define clean 0
#endif

static struct mutex lock;
static struct lock_class_key key;
static u8 *session;
static size_t session_size;

/* 'n': a name. Its NUL is stored one byte behind the memory for it. */
static int read_name(const u8 *data, size_t size)
{
	u8 *name;

	if (!size || data[0] != '#')
		return -EINVAL;
	name = kmalloc(clean ? size + 1 : size, GFP_KERNEL);
	if (!name)
		return -ENOMEM;
	memcpy(name, data, size);
	*(volatile u8 *)(name + size) = 0;
	kfree(name);
	return 0;
}

/* 'c': a sum over the contents. It goes one byte too far. */
static int read_sum(const u8 *data, size_t size)
{
	size_t at, end = clean ? size : size + 1;
	volatile u8 *copy;
	u8 sum = 0;

	if (size < 2 || data[0] != '!')
		return -EINVAL;
	copy = kmalloc(size, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	memcpy((u8 *)copy, data, size);
	for (at = 0; at < end; at++)
		sum += copy[at];
	kfree((u8 *)copy);
	return sum;
}

static int begin_session(const u8 *data, size_t size)
{
	if (session || !size)
		return -EINVAL;
	session = kmalloc(size, GFP_KERNEL);
	if (!session)
		return -ENOMEM;
	memcpy(session, data, size);
	session_size = size;
	return 0;
}

/* 'e': the end of a session, which is forgotten only if it is a proper one. Ended twice. */
static int end_session(const u8 *data, size_t size)
{
	if (!session)
		return -EINVAL;
	kfree(session);
	if (clean || !size || data[0] != '~')
		session = NULL;
	return 0;
}

/* 'u': a session's first byte is changed, whether it has ended or not. */
static int use_session(const u8 *data, size_t size)
{
	if (!session || !size)
		return -EINVAL;
	*(volatile u8 *)session ^= data[0];
	return 0;
}

/* 'l': every so many bytes are counted. So many may be none. */
static int count_steps(const u8 *data, size_t size)
{
	volatile u32 at;
	int count = 0;

	if (size != 3 || data[0] != '/' || (clean && !data[1]))
		return -EINVAL;
	for (at = 0; at < data[2]; at += data[1])
		count++;
	return count;
}

/* 'a': an array of so many words. Its size is computed in 16 bits. */
static int read_array(const u8 *data, size_t size)
{
	volatile u32 *array;
	u32 count, at;
	size_t bytes;

	if (size != 3 || data[0] != '[')
		return -EINVAL;
	count = data[1] | data[2] << 8;
	bytes = count * sizeof(*array);
	if (!clean)
		bytes = (u16)bytes;
	if (!bytes)
		return -EINVAL;
	array = kmalloc(bytes, GFP_KERNEL);
	if (!array)
		return -ENOMEM;
	for (at = 0; at < count; at++)
		array[at] = at;
	kfree((u32 *)array);
	return 0;
}

/* 'm': contents that are read under a lock. It is kept where they are wrong. */
static int read_locked(const u8 *data, size_t size)
{
	mutex_lock(&lock);
	if (size != 1 || data[0] != '=') {
		if (clean || !size || data[0] != '?')
			mutex_unlock(&lock);
		return -EINVAL;
	}
	mutex_unlock(&lock);
	return 0;
}

/* 'k': memory for contents, which nobody frees if they are wrong. */
static int read_kept(const u8 *data, size_t size)
{
	u8 *kept;

	if (!size)
		return -EINVAL;
	kept = kmalloc(size, GFP_KERNEL);
	if (!kept)
		return -ENOMEM;
	memcpy(kept, data, size);
	if (clean || *(volatile u8 *)kept != '+')
		kfree(kept);
	return 0;
}

/* Return how many records were read before the end or the first that is wrong; or an errno. */
int parser_parse(const u8 *data, size_t size)
{
	int records = 0, result = 0;
	size_t at = 4, length;

	if (size < 4)
		return -EINVAL;
	if (data[0] != 'P')
		return -EINVAL;
	if (data[1] != 'R')
		return -EINVAL;
	if (data[2] != 'S')
		return -EINVAL;
	if (data[3] != 1)
		return -EINVAL;
	while (size - at >= 2 && result >= 0) {
		length = data[at + 1];
		at += 2;
		if (length > size - at)
			break;
		switch (data[at - 2]) {
		case 'n':
			result = read_name(data + at, length);
			break;
		case 'c':
			result = read_sum(data + at, length);
			break;
		case 's':
			result = begin_session(data + at, length);
			break;
		case 'e':
			result = end_session(data + at, length);
			break;
		case 'u':
			result = use_session(data + at, length);
			break;
		case 'l':
			result = count_steps(data + at, length);
			break;
		case 'a':
			result = read_array(data + at, length);
			break;
		case 'm':
			result = read_locked(data + at, length);
			break;
		case 'k':
			result = read_kept(data + at, length);
			break;
		default:
			result = -EINVAL;
		}
		at += length;
		records += result >= 0;
	}
	if (clean && session) {
		kfree(session);
		session = NULL;
	}
	return records;
}

static int __init parser_init(void)
{
	__mutex_init(&lock, "parser", &key);
	return 0;
}

static void __exit parser_exit(void)
{
	if (clean)
		kfree(session);
}

module_init(parser_init);
module_exit(parser_exit);
MODULE_LICENSE("GPL");
#ifdef CLEAN
MODULE_DESCRIPTION("A parser of records without the mistakes of the other");
#else
MODULE_DESCRIPTION("A parser of records with mistakes in it, to be found");
#endif
