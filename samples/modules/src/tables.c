// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tables: read-only data. 16 KiB of numbers that the compiler works out, a switch
 * that it turns into a jump table, and a table of places in the form that the kernel
 * uses for its own: each entry the distance from itself to its target, or on mips64el,
 * whose loader knows no distances, its address, of which 32 bits are enough.
 */
#include "module.h"

#define POLY 0xc96c5795d7870f42 /* CRC-64/XZ, reflected */

/*
 * The CRC of a message is linear, so a table entry is the XOR of what its set bits
 * give alone, and a single bit gives POLY moved on by some number of steps. B(n) is
 * POLY after n steps; enumerators are constants one after the other, where a macro
 * that expanded itself would double 64 times.
 */
#define STEP(x) (((x) >> 1) ^ ((x) & 1 ? POLY : 0))
#define NEXT8(p, a, b, c, d, e, f, g, h)                                  \
	a = STEP((u64)p), b = STEP((u64)a), c = STEP((u64)b),             \
	d = STEP((u64)c), e = STEP((u64)d), f = STEP((u64)e),             \
	g = STEP((u64)f), h = STEP((u64)g)
enum {
	B0 = POLY, B1 = STEP((u64)B0), B2 = STEP((u64)B1), B3 = STEP((u64)B2),
	B4 = STEP((u64)B3), B5 = STEP((u64)B4), B6 = STEP((u64)B5), B7 = STEP((u64)B6),
	NEXT8(B7, B8, B9, B10, B11, B12, B13, B14, B15),
	NEXT8(B15, B16, B17, B18, B19, B20, B21, B22, B23),
	NEXT8(B23, B24, B25, B26, B27, B28, B29, B30, B31),
	NEXT8(B31, B32, B33, B34, B35, B36, B37, B38, B39),
	NEXT8(B39, B40, B41, B42, B43, B44, B45, B46, B47),
	NEXT8(B47, B48, B49, B50, B51, B52, B53, B54, B55),
	NEXT8(B55, B56, B57, B58, B59, B60, B61, B62, B63),
};

#define BIT(i, bit, n) ((i) >> (bit) & 1 ? (u64)(n) : 0)
#define ENTRY(i, a, b, c, d, e, f, g, h)                                  \
	BIT(i, 7, a) ^ BIT(i, 6, b) ^ BIT(i, 5, c) ^ BIT(i, 4, d) ^       \
	BIT(i, 3, e) ^ BIT(i, 2, f) ^ BIT(i, 1, g) ^ BIT(i, 0, h)
#define ROW4(i, ...)                                                      \
	ENTRY(i, __VA_ARGS__), ENTRY(i + 1, __VA_ARGS__),                 \
	ENTRY(i + 2, __VA_ARGS__), ENTRY(i + 3, __VA_ARGS__)
#define ROW16(i, ...)                                                     \
	ROW4(i, __VA_ARGS__), ROW4(i + 4, __VA_ARGS__),                   \
	ROW4(i + 8, __VA_ARGS__), ROW4(i + 12, __VA_ARGS__)
#define ROW64(i, ...)                                                     \
	ROW16(i, __VA_ARGS__), ROW16(i + 16, __VA_ARGS__),                \
	ROW16(i + 32, __VA_ARGS__), ROW16(i + 48, __VA_ARGS__)
#define SLICE(...)                                                        \
	{ ROW64(0, __VA_ARGS__), ROW64(64, __VA_ARGS__),                  \
	  ROW64(128, __VA_ARGS__), ROW64(192, __VA_ARGS__) }

/* [k][i]: what byte i gives after k more bytes of zero. */
static const u64 crc_table[8][256] = {
	SLICE(B0, B1, B2, B3, B4, B5, B6, B7),
	SLICE(B8, B9, B10, B11, B12, B13, B14, B15),
	SLICE(B16, B17, B18, B19, B20, B21, B22, B23),
	SLICE(B24, B25, B26, B27, B28, B29, B30, B31),
	SLICE(B32, B33, B34, B35, B36, B37, B38, B39),
	SLICE(B40, B41, B42, B43, B44, B45, B46, B47),
	SLICE(B48, B49, B50, B51, B52, B53, B54, B55),
	SLICE(B56, B57, B58, B59, B60, B61, B62, B63),
};

/* Return the CRC-64/XZ of a buffer, eight bytes a step. */
u64 tables_crc64(const u8 *data, size_t size)
{
	u64 crc = ~0ull;
	unsigned int k;

	for (; size >= 8; size -= 8, data += 8) {
		u64 next = 0;

		for (k = 0; k < 8; k++)
			next ^= crc_table[7 - k][(u8)(crc >> 8 * k) ^ data[k]];
		crc = next;
	}
	for (; size; size--)
		crc = crc_table[0][(u8)crc ^ *data++] ^ crc >> 8;
	return ~crc;
}

static u64 gcd(u64 a, u64 b)
{
	while (b) {
		u64 rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

/*
 * Return a op b on 64-bit integers. Operations: 0 add, 1 subtract, 2 multiply,
 * 3 divide, 4 remainder (both 0 for b = 0), 5 and, 6 or, 7 xor, 8 shift left,
 * 9 shift right, 10 arithmetic shift right (by b modulo 64), 11 rotate left,
 * 12 minimum, 13 maximum (unsigned), 14 signed less than, 15 greatest common
 * divisor. Anything else gives ~0.
 */
u64 tables_dispatch(unsigned int op, u64 a, u64 b)
{
	switch (op) {
	case 0:
		return a + b;
	case 1:
		return a - b;
	case 2:
		return a * b;
	case 3:
		return b ? a / b : 0;
	case 4:
		return b ? a % b : 0;
	case 5:
		return a & b;
	case 6:
		return a | b;
	case 7:
		return a ^ b;
	case 8:
		return a << (b & 63);
	case 9:
		return a >> (b & 63);
	case 10:
		return (s64)a >> (b & 63);
	case 11:
		return a << (b & 63) | a >> (-b & 63);
	case 12:
		return a < b ? a : b;
	case 13:
		return a > b ? a : b;
	case 14:
		return (s64)a < (s64)b;
	case 15:
		return gcd(a, b);
	default:
		return ~0ull;
	}
}

static __used u64 place_square(u64 a)
{
	return a * a;
}

static __used u64 place_negate(u64 a)
{
	return -a;
}

static __used u64 place_swap(u64 a)
{
	return a << 32 | a >> 32;
}

#if defined(__mips__)
#define PLACE(symbol) ".long " symbol "\n"
#define from(entry) ((const char *)0)
#else
#define PLACE(symbol) ".long " symbol " - .\n"
#define from(entry) ((const char *)(entry))
#endif

/* Each entry is the signed 32-bit distance from itself, or from 0, to a function. */
extern const s32 tables_places[3] __attribute__((visibility("hidden")));
asm(".pushsection .rodata\n"
    ".balign 4\n"
    ".globl tables_places\n"
    ".hidden tables_places\n"
    ".type tables_places, %object\n"
    "tables_places:\n"
    PLACE("place_square")
    PLACE("place_negate")
    PLACE("place_swap")
    ".size tables_places, . - tables_places\n"
    ".popsection\n");

/* Apply a function found by its distance: 0 square, 1 negate, 2 swap halves; else ~0. */
u64 tables_place(unsigned int which, u64 a)
{
	const s32 *entry = &tables_places[which];

	if (which >= ARRAY_SIZE(tables_places))
		return ~0ull;
	return ((u64 (*)(u64))(from(entry) + *entry))(a);
}

static int __init tables_init(void)
{
	static const u8 check[] __initconst = "123456789";

	return tables_crc64(check, 9) == 0x995dc9bbdf1939fa ? 0 : -EINVAL;
}

static void __exit tables_exit(void)
{
}

module_init(tables_init);
module_exit(tables_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Read-only tables, a jump table, place-relative references");
