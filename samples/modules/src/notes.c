// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * notes: a misc device that keeps what is written to it, and gives it back.
 *
 * Memory of a caller is another world: it is only copied to and from, and an address
 * that is none makes the call fail, not the kernel.
 */
#include "module.h"

#define O_APPEND 02000
#define NOTES_SIZE _IO('n', 0)
#define NOTES_CLEAR _IO('n', 1)
#define NOTES_FIND _IO('n', 2)

struct find {
	u32 byte; /* what to look for */
	u32 place; /* filled in */
};

static u8 page[4096];
static size_t length;
static u32 opened;

static int notes_open(struct inode *inode, struct file *file)
{
	(void)inode;
	if (file->private_data == NULL)
		return -EINVAL;
	opened++;
	return 0;
}

static int notes_release(struct inode *inode, struct file *file)
{
	(void)inode;
	(void)file;
	opened--;
	return 0;
}

static long notes_read(struct file *file, char __user *to, size_t count, long long *place)
{
	size_t start = (size_t)*place;

	(void)file;
	if (start >= length)
		return 0;
	if (count > length - start)
		count = length - start;
	if (copy_to_user(to, page + start, count))
		return -EFAULT;
	*place += (long long)count;
	return (long)count;
}

static long notes_write(struct file *file, const char __user *from, size_t count, long long *place)
{
	size_t start = file->f_flags & O_APPEND ? length : (size_t)*place;

	if (start >= sizeof(page) && count)
		return -ENOSPC;
	if (count > sizeof(page) - start)
		count = sizeof(page) - start;
	if (copy_from_user(page + start, from, count))
		return -EFAULT;
	if (start + count > length)
		length = start + count;
	*place = (long long)(start + count);
	return (long)count;
}

static long notes_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct find find;

	(void)file;
	switch (command) {
	case NOTES_SIZE:
		return (long)length;
	case NOTES_CLEAR:
		length = 0;
		return 0;
	case NOTES_FIND:
		if (copy_from_user(&find, (const void __user *)argument, sizeof(find)))
			return -EFAULT;
		for (find.place = 0; find.place < length; find.place++)
			if (page[find.place] == find.byte)
				break;
		if (find.place == length)
			return -ENOENT;
		if (copy_to_user((void __user *)argument, &find, sizeof(find)))
			return -EFAULT;
		return 0;
	}
	return -ENOTTY;
}

/* How many have it open. */
u32 notes_opened(void)
{
	return opened;
}

static const struct file_operations notes_fops = {
	.owner = &__this_module,
	.read = notes_read,
	.write = notes_write,
	.unlocked_ioctl = notes_ioctl,
	.open = notes_open,
	.release = notes_release,
};

static struct miscdevice notes = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "notes",
	.fops = &notes_fops,
};

static int __init notes_init(void)
{
	return misc_register(&notes);
}

static void __exit notes_exit(void)
{
	misc_deregister(&notes);
}

module_init(notes_init);
module_exit(notes_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A device that keeps what is written to it");
