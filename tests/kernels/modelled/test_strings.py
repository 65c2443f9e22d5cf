# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory blocks, strings and numbers in strings, against Python's own idea of the same."""

from __future__ import annotations

import errno
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.faults import FaultKind
from machine.arguments import Out
from tests.support.guest import EACH, FEW, guest_of

BITS = {"u8": 8, "u16": 16, "uint": 32, "ull": 64, "s8": 8, "s16": 16, "int": 32, "ll": 64}
SIGNED = {"s8", "s16", "int", "ll"}
# NUL-free, as C strings are; letters of several kinds and spaces among them.
cstrings = st.lists(st.sampled_from(b"aAbBzZ09 \t\n,;/\xe9"), max_size=12).map(bytes)


# Memory and strings --------------------------------------------------------------------------


@EACH
@FEW
@given(data=st.binary(max_size=200), byte=st.integers(0, 255))
def test_memory_functions_do_what_bytes_do(arch, data, byte):
    """memset, memcpy, memchr, memchr_inv and memscan agree with bytes; results are pointers."""
    g = guest_of(arch)
    size = len(data)
    with g.memory(data, size + 1) as (src, dest):
        assert g("memcpy", dest, src, size) == dest
        assert g.machine.read(dest, size + 1) == data + b"\0"
        assert g("memcmp", dest, src, size, returns="int") == 0
        at = data.find(byte)
        assert g("memchr", src, byte, size) == (src + at if at >= 0 else 0)
        assert g("memscan", src, byte, size) == src + (at if at >= 0 else size)
        other = next((i for i, b in enumerate(data) if b != byte), None)
        assert g("memchr_inv", src, byte, size) == (0 if other is None else src + other)
        assert g("memset", dest, byte, size) == dest
        assert g.machine.read(dest, size + 1) == bytes([byte]) * size + b"\0"


@EACH
@FEW
@given(data=st.binary(min_size=1, max_size=64), shift=st.integers(-16, 16))
def test_memmove_survives_overlap(arch, data, shift):
    """A block that overlaps its destination arrives whole."""
    g = guest_of(arch)
    with g.memory(96) as area:
        g.machine.write(area + 16, data)
        g("memmove", area + 16 + shift, area + 16, len(data))
        assert g.machine.read(area + 16 + shift, len(data)) == data


@EACH
@FEW
@given(one=st.binary(max_size=40), two=st.binary(max_size=40))
def test_memcmp_has_the_sign_of_the_first_difference(arch, one, two):
    """Bytes compare as unsigned, in order."""
    g = guest_of(arch)
    size = min(len(one), len(two))
    got = g("memcmp", one, two, size, returns="int")
    a, b = one[:size], two[:size]
    assert (got > 0) - (got < 0) == (a > b) - (a < b)


@EACH
@FEW
@given(one=cstrings, two=cstrings, most=st.integers(0, 14))
def test_string_comparisons(arch, one, two, most):
    """strcmp, strncmp, strcasecmp and sysfs_streq order as the bytes before the NUL do."""
    g = guest_of(arch)

    def sign(name, *args):
        got = g(name, one + b"\0", two + b"\0", *args, returns="int")
        return (got > 0) - (got < 0)

    def order(a, b):
        return (a > b) - (a < b)

    assert sign("strcmp") == order(one, two)
    assert sign("strncmp", most) == order(one[:most], two[:most])
    # Latin-1's e acute is lower case already, so that bytes.lower() is what tolower() does.
    assert sign("strcasecmp") == order(one.lower(), two.lower())
    assert sign("strncasecmp", most) == order(one[:most].lower(), two[:most].lower())
    equal = one.removesuffix(b"\n") == two.removesuffix(b"\n")
    assert g("sysfs_streq", one + b"\0", two + b"\0", returns="bool") == equal


@EACH
@FEW
@given(text=cstrings, other=cstrings, most=st.integers(0, 14))
def test_string_searches(arch, text, other, most):
    """The functions that look into strings agree with bytes.find, rfind and strip."""
    g = guest_of(arch)

    def pointer(at):
        return s + at if at >= 0 else 0

    with g.memory(text, other) as (s, t):
        assert g("strlen", s) == len(text)
        assert g("strnlen", s, most) == min(len(text), most)
        assert g("strstr", s, t) == pointer(text.find(other))
        assert g("strnstr", s, t, most) == pointer(text[:most].find(other))
        for c in (0, *other[:2]):
            assert g("strchr", s, c) == pointer((text + b"\0").find(c))
            assert g("strrchr", s, c) == pointer((text + b"\0").rfind(c))
            assert g("strnchr", s, most, c) == pointer((text + b"\0")[:most].find(c))
        inside = next((i for i, c in enumerate(text) if c in other), -1)
        outside = next((i for i, c in enumerate(text) if c not in other), len(text))
        assert g("strspn", s, t) == outside
        assert g("strcspn", s, t) == (inside if inside >= 0 else len(text))
        assert g("strpbrk", s, t) == pointer(inside)
        assert g.string(g("skip_spaces", s)) == text.lstrip()
        assert g.string(g("strim", s)) == text.strip()


@EACH
@FEW
@given(text=cstrings, room=st.integers(0, 14))
def test_copies_are_bounded_and_terminated(arch, text, room):
    """Where strscpy cuts it says -E2BIG; strncpy pads with NULs and may leave none."""
    g = guest_of(arch)
    with g.memory(text, 32) as (s, dest):
        fits = len(text) < room
        got = g("sized_strscpy", dest, s, room, returns="ssize_t")
        assert got == (len(text) if fits else -errno.E2BIG)
        if room:
            assert g.string(dest) == text[: room - 1]
        g("memset", dest, 0xFF, 32)
        assert g("strncpy", dest, s, room) == dest
        assert g.machine.read(dest, 32) == text[:room].ljust(room, b"\0").ljust(32, b"\xff")
        g("strcpy", dest, s)
        assert g("strcat", dest, s) == dest
        assert g.string(dest) == text + text


@EACH
@FEW
@given(text=cstrings)
def test_strsep_splits(arch, text):
    """Every call gives the next token, empty ones too, until the pointer becomes NULL."""
    g = guest_of(arch)
    with g.memory(text, 8) as (s, pointer):
        g.machine.write(pointer, s.to_bytes(8, "little"))
        tokens = []
        while token := g("strsep", pointer, ",;"):
            tokens.append(g.string(token))
        assert tokens == re.split(b"[,;]", text)


def test_a_bad_pointer_faults_in_the_entry(guest):
    """What an entry cannot reach is the guest's fault, and the message names the entry."""
    with guest.fails(FaultKind.READ, "strlen()", "not mapped"):
        guest("strlen", 8)
    with guest.fails(FaultKind.WRITE, "memset()"):
        guest("memset", guest.machine.memory.direct_map.end, 0, 1 << 62)


# Numbers in strings --------------------------------------------------------------------------


@EACH
@FEW
@given(
    value=st.integers(-(1 << 66), 1 << 66) | st.integers(-300, 300),
    shape=st.sampled_from(["{}", "+{}", "{}\n", "{:#x}", "{:#X}", "0{:o}"]),
    kind=st.sampled_from(sorted(BITS)),
)
def test_kstrto_takes_what_fits_and_nothing_else(arch, value, shape, kind):
    """A number in range is stored; one beyond is -ERANGE; a sign in the wrong place -EINVAL."""
    g = guest_of(arch)
    text = ("-" if value < 0 and "+" not in shape else "") + shape.format(abs(value))
    value = value if "+" not in shape else abs(value)
    bits, signed = BITS[kind], kind in SIGNED
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    result = Out(bits // 8)
    got = g(f"kstrto{kind}", text, 0, result, returns="int")
    if value < 0 and not signed:
        assert got == -errno.EINVAL
    elif not low <= value < high:
        assert got == -errno.ERANGE
    else:
        assert got == 0
        assert int.from_bytes(bytes(result), "little", signed=signed) == value


@pytest.mark.parametrize(
    "text", ["", "+", "-", "0x", "0xg", "12 ", " 1", "1\n\n", "08", "1e3", "--1", "-+1", "1,2"]
)
def test_kstrto_refuses_garbage(guest, text):
    """A string that is not wholly a number is -EINVAL, and nothing is stored."""
    result = Out(4)
    assert guest("kstrtoint", text, 0, result, returns="int") == -errno.EINVAL
    assert bytes(result) == bytes(4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((t, 1) for t in ("y", "Yes", "1", "on", "On", "oN!", "true")),
        *((t, 0) for t in ("n", "No", "0", "off", "OF", "false")),
        *((t, None) for t in ("", "2", "o", "ok", "x")),
    ],
)
def test_kstrtobool_looks_at_the_first_letters(guest, text, expected):
    """One letter decides, two where it is an o; anything else is -EINVAL."""
    result = Out(1)
    got = guest("kstrtobool", text, result, returns="int")
    assert got == (0 if expected is not None else -errno.EINVAL)
    assert bytes(result)[0] == (expected or 0)


@pytest.mark.parametrize(
    ("text", "base", "value", "used"),
    [
        ("123abc", 10, 123, 3),
        ("0x1fz", 0, 31, 4),
        ("077x", 0, 63, 3),
        ("-5,", 10, -5, 2),
        ("z", 0, 0, 0),
    ],
)
def test_simple_strtol_stops_at_the_first_other_character(guest, text, base, value, used):
    """The old parser takes what it can and tells where it stopped."""
    with guest.memory(text.encode(), 8) as (s, end):
        assert guest("simple_strtol", s, end, base, returns="long") == value
        assert guest.word(end) == s + used


@EACH
@FEW
@given(data=st.binary(max_size=40))
def test_hex_there_and_back(arch, data):
    """bin2hex and hex2bin are each other's inverse; a bad digit is -EINVAL."""
    g = guest_of(arch)
    with g.memory(2 * len(data) + 1, len(data) + 1) as (digits, back):
        assert g("bin2hex", digits, data + b"\0", len(data)) == digits + 2 * len(data)
        assert g.string(digits) == data.hex().encode()
        assert g("hex2bin", back, digits, len(data), returns="int") == 0
        assert g.machine.read(back, len(data)) == data
    assert g("hex2bin", Out(2), "a?bc", 2, returns="int") == -errno.EINVAL


def test_hex_to_bin_knows_every_character(guest):
    """Exactly the 22 hex digits have a value."""
    for c in range(256):
        digit = chr(c) in string.hexdigits
        assert guest("hex_to_bin", c, returns="int") == (int(chr(c), 16) if digit else -1)
