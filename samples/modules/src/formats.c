// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * formats: reads three things that come from elsewhere, much shortened: what a HID device says of
 * itself, a packet's TCP options, an LZ4 block. In each one check is missing that a kernel needs.
 */
#include "module.h"

#define STACK 2

struct globals {
	u32 size;
	u32 count;
};

/*
 * Return how many bits the input report has that a descriptor describes, or an errno.
 * Push (0xa4) does not look whether its stack is full.
 */
int formats_report(const u8 *data, size_t size)
{
	volatile struct globals *stack = kmalloc(STACK * sizeof(*stack), GFP_KERNEL);
	struct globals now = {};
	int depth = 0, open = 0, bits = 0;
	size_t at = 0;

	if (!stack)
		return -ENOMEM;
	while (at < size) {
		u8 item = data[at++];
		u32 length = item & 3, value = 0, byte;

		if (length == 3)
			length = 4;
		if (length > size - at)
			goto wrong;
		for (byte = 0; byte < length; byte++)
			value |= (u32)data[at++] << 8 * byte;
		switch (item & 0xfc) {
		case 0x74:
			now.size = value;
			break;
		case 0x94:
			now.count = value;
			break;
		case 0xa4:
			stack[depth].size = now.size;
			stack[depth].count = now.count;
			depth++;
			break;
		case 0xb4:
			if (!depth)
				goto wrong;
			depth--;
			now.size = stack[depth].size;
			now.count = stack[depth].count;
			break;
		case 0xa0:
			open++;
			break;
		case 0xc0:
			if (!open)
				goto wrong;
			open--;
			break;
		case 0x80:
			if (now.size > 32 || now.count > 1024)
				goto wrong;
			bits += now.size * now.count;
			break;
		case 0xfc:
			goto wrong;
		}
	}
	kfree((void *)stack);
	return open ? -EINVAL : bits;
wrong:
	kfree((void *)stack);
	return -EINVAL;
}

/*
 * Return whether a packet of IPv4 is TCP and has an option.
 * One that says that it is 0 bytes long is gone over, again and again.
 */
int formats_match(const u8 *packet, size_t size, u32 option)
{
	size_t head, at, end;

	if (size < 20 || packet[0] >> 4 != 4)
		return 0;
	head = (packet[0] & 15) * 4;
	if (head < 20 || packet[9] != 6 || size < head + 20)
		return 0;
	end = head + (packet[head + 12] >> 4) * 4;
	if (end > size)
		return 0;
	for (at = head + 20; at < end;) {
		if (packet[at] == option)
			return 1;
		if (packet[at] < 2)
			at++;
		else if (at + 1 < end)
			at += ((const volatile u8 *)packet)[at + 1];
		else
			return 0;
	}
	return 0;
}

/* Return a length that begins in a token and goes on in bytes; what follows is at *at. */
static size_t length_of(size_t length, const u8 *data, size_t size, size_t *at)
{
	u8 more = 255;

	if (length == 15)
		while (more == 255 && *at < size) {
			more = data[(*at)++];
			length += more;
		}
	return length;
}

/*
 * Return how many bytes come out of an LZ4 block, which are stored where there is room, or an errno.
 * What is copied from before is not compared with the room that is left.
 */
int formats_unlz4(const u8 *data, size_t size, size_t room)
{
	volatile u8 *out;
	size_t at = 0, done = 0, length, offset;
	int result = -EINVAL;

	if (!room)
		return -EINVAL;
	out = kmalloc(room, GFP_KERNEL);
	if (!out)
		return -ENOMEM;
	while (at < size) {
		u8 token = data[at++];

		length = length_of(token >> 4, data, size, &at);
		if (length > size - at || length > room - done)
			goto end;
		while (length--)
			out[done++] = data[at++];
		if (at == size)
			break;
		if (size - at < 2)
			goto end;
		offset = data[at] | data[at + 1] << 8;
		at += 2;
		if (!offset || offset > done)
			goto end;
		length = length_of(token & 15, data, size, &at) + 4;
		while (length--) {
			out[done] = out[done - offset];
			done++;
		}
	}
	result = done;
end:
	kfree((void *)out);
	return result;
}

static int __init formats_init(void)
{
	return 0;
}

static void __exit formats_exit(void)
{
}

module_init(formats_init);
module_exit(formats_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Three parsers of what comes from elsewhere, with a check missing in each");
