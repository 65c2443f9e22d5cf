# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers and UUIDs in strings (lib/kstrtox.c, lib/hexdump.c, lib/uuid.c)."""

from __future__ import annotations

import errno
import re
import uuid
from collections.abc import Callable

from kernels.modelled.api.common import text
from kernels.modelled.api.strings import TO_LOWER
from kernels.modelled.bounds import PIECE
from kernels.modelled.kernel import Kernel
from kernels.modelled.table import data, function

ULLONG_MAX = (1 << 64) - 1
# Numbers ---------------------------------------------------------------------------------


def _radix(digits: bytes, base: int) -> tuple[int, bytes]:
    """Return the base and the digits after a prefix (_parse_integer_fixup_radix)."""
    prefixed = digits[:2].lower() == b"0x"
    if base == 0:
        if prefixed and digits[2:3].isalnum() and digits[2:3].lower() <= b"f":
            base = 16
        else:
            base = 8 if digits[:1] == b"0" else 10
    return base, digits[2:] if base == 16 and prefixed else digits


MOST_DIGITS = 128  # 64 bits have 64 in base 2; no hostile million of them is converted


def _number(digits: bytes, base: int) -> tuple[int, int]:
    """Return the value of the leading digits and how many there are (_parse_integer)."""
    known = b"0123456789abcdef"[:base]
    lower = digits.lower()
    count = len(lower) - len(lower.lstrip(known))
    value = 0
    for digit in lower[:count].lstrip(b"0")[:MOST_DIGITS]:
        value = value * base + known.index(digit)
    return value, count


def parse_ull(digits: bytes, base: int) -> int:
    """Return the value of a whole string, or a negative errno (kstrtoull)."""
    digits = digits.removeprefix(b"+")
    base, digits = _radix(digits, base)
    value, count = _number(digits, base)
    if value > ULLONG_MAX:
        return -errno.ERANGE
    if count == 0 or digits[count:] not in (b"", b"\n"):
        return -errno.EINVAL
    return value


def _parse(digits: bytes, base: int, bits: int, *, signed: bool) -> tuple[int, int]:
    """Return error and value of a whole string that must fit `bits`."""
    negative = signed and digits[:1] == b"-"
    if negative:
        digits = digits[1:]
        if digits[:1] == b"+":
            return -errno.EINVAL, 0
    value = parse_ull(digits, base)
    if value < 0:
        return value, 0
    if value > (1 << bits - signed) - (not negative):
        return -errno.ERANGE, 0
    return 0, -value if negative else value


def kstrto(bits: int, *, signed: bool) -> Callable[[Kernel, int, int, int], int]:
    """Return the function that parses an integer of a size and stores it when it fits."""

    def handler(k: Kernel, s: int, base: int, result: int) -> int:
        error, value = _parse(text(k, s), base, bits, signed=signed)
        if not error:
            k.store(result, value, bits // 8)
        return error

    return handler


_INTEGERS = {
    "ull": ("unsigned long long", 64, False),
    "ll": ("long long", 64, True),
    "ul": ("unsigned long", 64, False),
    "l": ("long", 64, True),
    "uint": ("unsigned int", 32, False),
    "int": ("int", 32, True),
    "u16": ("u16", 16, False),
    "s16": ("s16", 16, True),
    "u8": ("u8", 8, False),
    "s8": ("s8", 8, True),
}
for _name, (_type, _bits, _signed) in _INTEGERS.items():
    _prefix = "_kstrto" if _name in ("ul", "l") else "kstrto"
    function(f"int {_prefix}{_name}(const char *s, unsigned int base, {_type} *res)")(
        kstrto(_bits, signed=_signed)
    )

_BOOLEANS = {
    **dict.fromkeys("yYtT1", 1),
    **dict.fromkeys("nNfF0", 0),
    **dict.fromkeys(("on", "oN", "On", "ON"), 1),
    **dict.fromkeys(("of", "oF", "Of", "OF"), 0),
}


@function("int kstrtobool(const char *s, bool *res)")
def kstrtobool(k: Kernel, s: int, result: int) -> int:
    """Parse y, n, t, f, 1, 0, on, off: one letter decides, two where it is an o."""
    start = text(k, s, 2).decode("latin-1") if s else ""
    value = _BOOLEANS.get(start if start[:1] in ("o", "O") else start[:1])
    if value is None:
        return -errno.EINVAL
    k.store(result, value, 1)
    return 0


def _simple(k: Kernel, s: int, end: int, base: int) -> int:
    whole = text(k, s)
    base, digits = _radix(whole, base)
    value, count = _number(digits, base)
    if end:
        k.store(end, s + len(whole) - len(digits) + count)
    return value


@function(
    "unsigned long simple_strtoul(const char *cp, char **endp, unsigned int base)",
    "unsigned long long simple_strtoull(const char *cp, char **endp, unsigned int base)",
)
def _simple_strtoul(k: Kernel, s: int, end: int, base: int) -> int:
    return _simple(k, s, end, base)


@function(
    "long simple_strtol(const char *cp, char **endp, unsigned int base)",
    "long long simple_strtoll(const char *cp, char **endp, unsigned int base)",
)
def _simple_strtol(k: Kernel, s: int, end: int, base: int) -> int:
    if k.word(s, 1) == ord("-"):
        return -_simple(k, s + 1, end, base)
    return _simple(k, s, end, base)


@function("unsigned long long memparse(const char *ptr, char **retptr)")
def _memparse(k: Kernel, s: int, end: int) -> int:
    whole = text(k, s)
    base, digits = _radix(whole, 0)
    value, count = _number(digits, base)
    shift = b"kmgtpe".find(digits[count : count + 1].lower() or b"?")
    if end:
        k.store(end, s + len(whole) - len(digits) + count + (shift >= 0))
    return value << 10 * (shift + 1)


@function("int hex_to_bin(unsigned char ch)")
def hex_to_bin(_k: Kernel, ch: int) -> int:
    """Return the value of a hex digit, -1 for any other character."""
    return b"0123456789abcdef".find(TO_LOWER[ch]) if ch < 128 else -1


@function("int hex2bin(u8 *dst, const char *src, size_t count)")
def _hex2bin(k: Kernel, dest: int, src: int, count: int) -> int:
    for at in range(0, count, PIECE // 2):
        digits = k.memory.read(src + 2 * at, min(PIECE, 2 * (count - at)))
        good = len(digits) - len(digits.lstrip(b"0123456789abcdefABCDEF"))
        k.memory.write(dest + at, bytes.fromhex(digits[: good & -2].decode()))
        if good < len(digits):
            return -errno.EINVAL
    return 0


@function("char *bin2hex(char *dst, const void *src, size_t count)")
def _bin2hex(k: Kernel, dest: int, src: int, count: int) -> int:
    for at in range(0, count, PIECE):
        digits = k.memory.read(src + at, min(PIECE, count - at)).hex().encode()
        k.memory.write(dest + 2 * at, digits)
    return dest + 2 * count


# UUIDs (lib/uuid.c): the text's first three groups are little-endian in a GUID -------------------

_UUID = re.compile(rb"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

data("guid_null", 16)
data("uuid_null", 16)


def _uuid(k: Kernel, text_: int, *, little: bool) -> bytes | None:
    found = _UUID.match(k.string(text_, 36))
    if found is None:
        return None
    parsed = uuid.UUID(found[0].decode())
    return parsed.bytes_le if little else parsed.bytes


@function("bool uuid_is_valid(const char *uuid)")
def _uuid_is_valid(k: Kernel, text_: int) -> int:
    return int(_uuid(k, text_, little=False) is not None)


@function("int guid_parse(const char *uuid, guid_t *u)")
def _guid_parse(k: Kernel, text_: int, at: int) -> int:
    found = _uuid(k, text_, little=True)
    if found is None:
        return -errno.EINVAL
    k.memory.write(at, found)
    return 0


@function("int uuid_parse(const char *uuid, uuid_t *u)")
def _uuid_parse(k: Kernel, text_: int, at: int) -> int:
    found = _uuid(k, text_, little=False)
    if found is None:
        return -errno.EINVAL
    k.memory.write(at, found)
    return 0
