// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * checksums: three of them; the tables are made at init, one in memory from kmalloc,
 * one in the module's own data.
 */
#include "module.h"

static u32 *crc32_table;
static u16 crc16_table[256] = { 1 }; /* not zero, so .data and not .bss */

/* Return the CRC-32 of a buffer that follows data whose CRC-32 is `seed` (0 for none). */
u32 checksums_crc32(const u8 *data, size_t size, u32 seed)
{
	u32 crc = ~seed;

	while (size--)
		crc = crc32_table[(u8)crc ^ *data++] ^ crc >> 8;
	return ~crc;
}

/* Return the Adler-32 of a buffer. */
u32 checksums_adler32(const u8 *data, size_t size)
{
	u32 low = 1, high = 0;

	while (size--) {
		low = (low + *data++) % 65521;
		high = (high + low) % 65521;
	}
	return high << 16 | low;
}

/* Return the CRC-16/XMODEM of a buffer that follows data with CRC `crc` (0 for none). */
u16 checksums_crc16(const u8 *data, size_t size, u16 crc)
{
	while (size--)
		crc = crc16_table[(u8)(crc >> 8) ^ *data++] ^ (u16)(crc << 8);
	return crc;
}

static int __init checksums_init(void)
{
	unsigned int i, bit;

	crc32_table = kmalloc(256 * sizeof(*crc32_table), GFP_KERNEL);
	if (!crc32_table)
		return -ENOMEM;
	for (i = 0; i < 256; i++) {
		u32 low = i;
		u16 high = (u16)(i << 8);

		for (bit = 0; bit < 8; bit++) {
			low = low >> 1 ^ (low & 1 ? 0xedb88320 : 0);
			high = (u16)(high << 1) ^ (high & 0x8000 ? 0x1021 : 0);
		}
		crc32_table[i] = low;
		crc16_table[i] = high;
	}
	return 0;
}

static void __exit checksums_exit(void)
{
	kfree(crc32_table);
}

module_init(checksums_init);
module_exit(checksums_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("CRC-32, Adler-32 and CRC-16 by tables made at init");
