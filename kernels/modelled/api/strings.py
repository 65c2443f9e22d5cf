# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory blocks and strings (lib/string.c).

Blocks move as wholes and strings are read page by page, so that a string may end right
before an unmapped page, as it may on hardware.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from kernels.modelled.api.common import INT_MAX, UNLIMITED, copy, fill, pieces, stop, text
from kernels.modelled.bounds import PIECE
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import POINTER
from kernels.modelled.table import data, function

# lib/ctype.c: Latin-1 with the no-break space among the spaces.
SPACES = bytes([*range(9, 14), 32, 160])
_UPPER = [*range(65, 91), *(c for c in range(192, 223) if c != 215)]
_LOWER = [*range(97, 123), *(c for c in range(223, 256) if c != 247)]
TO_LOWER = bytes(c + 32 if c in _UPPER else c for c in range(256))
U, L, D, C, P, S, X, SP = (1 << bit for bit in range(8))


def _ctype_of(c: int) -> int:
    if c in (32, 160):
        return S | SP
    if c < 32 or c == 127:
        return C | (S if c in SPACES else 0)
    if 48 <= c < 58:
        return D
    if c in _UPPER or c in _LOWER:
        return (U if c in _UPPER else L) | (X if chr(c) in "abcdefABCDEF" else 0)
    return P if c < 127 or c > 160 else 0


data("_ctype", 256, fill=lambda _k: bytes(map(_ctype_of, range(256))))
data("hex_asc", 17, fill=lambda _k: b"0123456789abcdef\0")
data("hex_asc_upper", 17, fill=lambda _k: b"0123456789ABCDEF\0")
data("byte_rev_table", 256, fill=lambda _k: bytes(int(f"{c:08b}"[::-1], 2) for c in range(256)))


def _difference(one: bytes, two: bytes) -> int:
    """Return the difference of the first bytes that differ, 0 where none do."""
    if one == two:
        return 0
    differing = int.from_bytes(one, "little") ^ int.from_bytes(two, "little")
    at = ((differing & -differing).bit_length() - 1) // 8
    return one[at] - two[at]


# Memory blocks ---------------------------------------------------------------------------


@function(
    "void *memcpy(void *dest, const void *src, size_t count)",
    "void *__memcpy(void *dest, const void *src, size_t count)",
    "void *memmove(void *dest, const void *src, size_t count)",
    "void *__memmove(void *dest, const void *src, size_t count)",
    "void memcpy_fromio(void *to, const volatile void __iomem *from, size_t count)",
    "void __memcpy_fromio(void *to, const volatile void __iomem *from, size_t count)",
    "void memcpy_toio(volatile void __iomem *to, const void *from, size_t count)",
    "void __memcpy_toio(volatile void __iomem *to, const void *from, size_t count)",
)
def memcpy(k: Kernel, dest: int, src: int, size: int) -> int:
    """Copy through a host buffer: overlap does not matter."""
    copy(k, dest, src, size)
    return dest


@function(
    "void *memset(void *s, int c, size_t count)",
    "void *__memset(void *s, int c, size_t count)",
    "void memset_io(volatile void __iomem *dst, int c, size_t count)",
    "void __memset_io(volatile void __iomem *dst, int c, size_t count)",
)
def _memset(k: Kernel, start: int, byte: int, size: int) -> int:
    fill(k, start, size, byte)
    return start


@function("void memzero_explicit(void *s, size_t count)")
def _memzero_explicit(k: Kernel, start: int, size: int) -> None:
    fill(k, start, size, 0)


def _words(size: int, bits: int) -> Callable[[Kernel, int, int, int], int]:
    def handler(k: Kernel, start: int, value: int, count: int) -> int:
        word = (value & (1 << bits) - 1).to_bytes(size, "little")
        most = PIECE // size
        for done in range(0, count, most):
            k.memory.write(start + size * done, word * min(most, count - done))
        return start

    return handler


for _bits in (16, 32, 64):
    function(f"void *memset{_bits}(u{_bits} *s, u{_bits} v, size_t count)")(
        _words(_bits // 8, _bits)
    )


@function("int memcmp(const void *cs, const void *ct, size_t count)")
def _memcmp(k: Kernel, one: int, two: int, size: int) -> int:
    for at in range(0, size, PIECE):
        count = min(PIECE, size - at)
        found = _difference(k.memory.read(one + at, count), k.memory.read(two + at, count))
        if found:
            return found
    return 0


@function("int bcmp(const void *a, const void *b, size_t len)")
def _bcmp(k: Kernel, one: int, two: int, size: int) -> int:
    return int(bool(_memcmp(k, one, two, size)))


@function("void *memchr(const void *s, int c, size_t n)")
def memchr(k: Kernel, start: int, byte: int, size: int) -> int:
    """Find a byte; pages after the one that holds it are not touched."""
    for address, piece in pieces(k, start, size):
        at = piece.find(byte & 0xFF)
        if at >= 0:
            return address + at
    return 0


@function("void *memscan(void *addr, int c, size_t size)")
def _memscan(k: Kernel, start: int, byte: int, size: int) -> int:
    return memchr(k, start, byte, size) or start + size


@function("void *memchr_inv(const void *start, int c, size_t bytes)")
def _memchr_inv(k: Kernel, start: int, byte: int, size: int) -> int:
    for address, piece in pieces(k, start, size):
        rest = piece.lstrip(bytes([byte & 0xFF]))
        if rest:
            return address + len(piece) - len(rest)
    return 0


@function("void memcpy_and_pad(void *dest, size_t dest_len, const void *src, size_t n, int pad)")
def _memcpy_and_pad(k: Kernel, dest: int, room: int, src: int, size: int, pad: int) -> None:
    memcpy(k, dest, src, min(room, size))
    if room > size:
        fill(k, dest + size, room - size, pad)


@function("size_t memweight(const void *ptr, size_t bytes)")
def _memweight(k: Kernel, start: int, size: int) -> int:
    return sum(int.from_bytes(piece, "little").bit_count() for _, piece in pieces(k, start, size))


@function(
    "unsigned long __crypto_memneq(const void *a, const void *b, size_t size)",
    "unsigned long crypto_memneq(const void *a, const void *b, size_t size)",
)
def _crypto_memneq(k: Kernel, one: int, two: int, size: int) -> int:
    return int(bool(_memcmp(k, one, two, size)))


@function("void __crypto_xor(u8 *dst, const u8 *src1, const u8 *src2, unsigned int size)")
def _crypto_xor(k: Kernel, dest: int, one: int, two: int, size: int) -> None:
    for at in range(0, size, PIECE):
        count = min(PIECE, size - at)
        k.store(dest + at, k.word(one + at, count) ^ k.word(two + at, count), count)


@function("void __fortify_panic(const u8 reason, const size_t avail, const size_t size)")
def _fortify_panic(k: Kernel, reason: int, avail: int, size: int) -> None:
    stop(k, _fortify_text(reason, avail, size))


@function("void __fortify_report(const u8 reason, const size_t avail, const size_t size)")
def _fortify_report(k: Kernel, reason: int, avail: int, size: int) -> None:
    k.print(_fortify_text(reason, avail, size).encode() + b"\n", 4)


# enum fortify_func of include/linux/fortify-string.h; the lowest bit of a reason says "write".
_FORTIFIED = (
    "strncpy strnlen strlen strscpy strlcat strcat strncat memset memcpy memmove memscan memcmp"
    " memchr memchr_inv kmemdup strcpy"
).split()


def _fortify_text(reason: int, avail: int, size: int) -> str:
    name = _FORTIFIED[reason >> 1] if reason >> 1 < len(_FORTIFIED) else "unknown"
    way = "write" if reason & 1 else "read"
    return f"{name}: detected buffer overflow: {size} byte {way} of buffer size {avail}"


# Strings ---------------------------------------------------------------------------------


@function("size_t strlen(const char *s)")
def _strlen(k: Kernel, s: int) -> int:
    return _strnlen(k, s, UNLIMITED)


@function("size_t strnlen(const char *s, size_t count)")
def _strnlen(k: Kernel, s: int, most: int) -> int:
    return sum(map(len, k.string_pieces(s, most)))


def _order(one: bytes, two: bytes) -> int:
    return (one > two) - (one < two)


@function("int strcmp(const char *cs, const char *ct)")
def _strcmp(k: Kernel, one: int, two: int) -> int:
    return _order(text(k, one), text(k, two))


@function("int strncmp(const char *cs, const char *ct, size_t count)")
def _strncmp(k: Kernel, one: int, two: int, most: int) -> int:
    return _order(text(k, one, most), text(k, two, most))


@function("int strcasecmp(const char *s1, const char *s2)")
def _strcasecmp(k: Kernel, one: int, two: int) -> int:
    return _strncasecmp(k, one, two, UNLIMITED)


@function("int strncasecmp(const char *s1, const char *s2, size_t len)")
def _strncasecmp(k: Kernel, one: int, two: int, most: int) -> int:
    low = [text(k, s, most).translate(TO_LOWER) for s in (one, two)]
    room = max(map(len, low))
    return _difference(low[0].ljust(room, b"\0"), low[1].ljust(room, b"\0"))


@function("char *strcpy(char *dest, const char *src)")
def _strcpy(k: Kernel, dest: int, src: int) -> int:
    k.memory.write(dest, text(k, src) + b"\0")
    return dest


@function("char *stpcpy(char *dest, const char *src)")
def _stpcpy(k: Kernel, dest: int, src: int) -> int:
    contents = text(k, src)
    k.memory.write(dest, contents + b"\0")
    return dest + len(contents)


@function("char *strncpy(char *dest, const char *src, size_t count)")
def _strncpy(k: Kernel, dest: int, src: int, size: int) -> int:
    contents = text(k, src, size)
    k.memory.write(dest, contents)
    fill(k, dest + len(contents), size - len(contents), 0)
    return dest


@function(
    "ssize_t sized_strscpy(char *dest, const char *src, size_t count)",
    "ssize_t strscpy(char *dest, const char *src, size_t count)",
)
def _strscpy(k: Kernel, dest: int, src: int, size: int) -> int:
    if not 0 < size <= INT_MAX:
        return -errno.E2BIG
    contents = text(k, src, size)
    k.memory.write(dest, contents[: size - 1] + b"\0")
    return len(contents) if len(contents) < size else -errno.E2BIG


@function("char *strcat(char *dest, const char *src)")
def _strcat(k: Kernel, dest: int, src: int) -> int:
    _strcpy(k, dest + len(text(k, dest)), src)
    return dest


@function("char *strncat(char *dest, const char *src, size_t count)")
def _strncat(k: Kernel, dest: int, src: int, most: int) -> int:
    k.memory.write(dest + len(text(k, dest)), text(k, src, most) + b"\0")
    return dest


@function("size_t strlcat(char *dest, const char *src, size_t count)")
def _strlcat(k: Kernel, dest: int, src: int, size: int) -> int:
    have, more = len(text(k, dest, size)), text(k, src)
    if have >= size:
        stop(k, f"strlcat: no NUL in the {size} bytes at {dest:#x}")
    k.memory.write(dest + have, more[: size - have - 1] + b"\0")
    return have + len(more)


@function("char *strnchr(const char *s, size_t count, int c)")
def strnchr(k: Kernel, s: int, most: int, c: int) -> int:
    """Find a character, the terminating NUL included, within `most` bytes."""
    contents = text(k, s, most)
    at = (contents + b"\0")[:most].find(c & 0xFF)
    return s + at if at >= 0 else 0


@function("char *strchr(const char *s, int c)")
def _strchr(k: Kernel, s: int, c: int) -> int:
    return strnchr(k, s, UNLIMITED, c)


@function("char *strchrnul(const char *s, int c)")
def _strchrnul(k: Kernel, s: int, c: int) -> int:
    return _strchr(k, s, c) or s + len(text(k, s))


@function("char *strrchr(const char *s, int c)")
def _strrchr(k: Kernel, s: int, c: int) -> int:
    at = (text(k, s) + b"\0").rfind(c & 0xFF)
    return s + at if at >= 0 else 0


@function("char *strnstr(const char *s1, const char *s2, size_t len)")
def strnstr(k: Kernel, s: int, sought: int, most: int) -> int:
    """Find a string in the first `most` bytes of another."""
    at = text(k, s, most).find(text(k, sought))
    return s + at if at >= 0 else 0


@function("char *strstr(const char *s1, const char *s2)")
def _strstr(k: Kernel, s: int, sought: int) -> int:
    return strnstr(k, s, sought, UNLIMITED)


@function("size_t strspn(const char *s, const char *accept)")
def _strspn(k: Kernel, s: int, accept: int) -> int:
    contents = text(k, s)
    return len(contents) - len(contents.lstrip(text(k, accept) or b"\0"))


@function("size_t strcspn(const char *s, const char *reject)")
def strcspn(k: Kernel, s: int, reject: int) -> int:
    """Count the bytes before the first that is in `reject`, or before the NUL."""
    contents, stops = text(k, s), text(k, reject)
    return min((at for c in stops if (at := contents.find(c)) >= 0), default=len(contents))


@function("char *strpbrk(const char *cs, const char *ct)")
def _strpbrk(k: Kernel, s: int, accept: int) -> int:
    at = strcspn(k, s, accept)
    return s + at if at < len(text(k, s)) else 0


@function("char *strsep(char **s, const char *ct)")
def _strsep(k: Kernel, pointer: int, delimiters: int) -> int:
    start = k.word(pointer)
    if start:
        end = _strpbrk(k, start, delimiters)
        if end:
            k.memory.write(end, b"\0")
        k.store(pointer, end + 1 if end else 0)
    return start


@function("char *skip_spaces(const char *str)")
def skip_spaces(k: Kernel, s: int) -> int:
    """Return the address of the first character that is no space."""
    contents = text(k, s)
    return s + len(contents) - len(contents.lstrip(SPACES))


@function("char *strim(char *s)")
def _strim(k: Kernel, s: int) -> int:
    contents = text(k, s)
    if contents:
        k.memory.write(s + len(contents.rstrip(SPACES)), b"\0")
    return skip_spaces(k, s)


@function("char *strreplace(char *str, char old, char new)")
def _strreplace(k: Kernel, s: int, old: int, new: int) -> int:
    k.memory.write(s, text(k, s).replace(bytes([old]), bytes([new])))
    return s


@function("bool sysfs_streq(const char *s1, const char *s2)")
def sysfs_streq(k: Kernel, one: int, two: int) -> int:
    """Compare, but for one newline at the end of either."""
    return int(text(k, one).removesuffix(b"\n") == text(k, two).removesuffix(b"\n"))


def _match(
    k: Kernel, array: int, count: int, sought: int, equal: Callable[[Kernel, int, int], int]
) -> int:
    for index in range(count):
        item = k.word(array + POINTER * index)
        if not item:
            break
        if equal(k, item, sought):
            return index
    return -errno.EINVAL


@function("int match_string(const char * const *array, size_t n, const char *string)")
def _match_string(k: Kernel, array: int, count: int, sought: int) -> int:
    return _match(k, array, count, sought, lambda k, a, b: not _strcmp(k, a, b))


@function("int __sysfs_match_string(const char * const *array, size_t n, const char *s)")
def _sysfs_match_string(k: Kernel, array: int, count: int, sought: int) -> int:
    return _match(k, array, count, sought, sysfs_streq)
