# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's format language, against libc where the two agree and the kernel's documents.

Long because the list of conversions is, which all share the way to form a message.
"""

from __future__ import annotations

import ast
import ctypes
import errno
import ipaddress
import itertools
import struct
import uuid

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from allocator.errors import AccessError
from allocator.types import PAGE_SIZE, align_up
from kernels.modelled.printf import (
    FIELD_WIDTH_MAX,
    MESSAGE_LIMIT,
    NESTED_LIMIT,
    PRECISION_MAX,
    READ_LIMIT,
    format_message,
    pointer_hash,
    split_level,
)

BASE = 0xFFFF888000010000  # page-aligned, in a kernel half
LIBC = ctypes.CDLL(None)


@attrs.define
class Pages:
    """Memory that is readable in the pages of `data`, from BASE on; counts what is read."""

    data: bytes = attrs.field(
        default=b"", converter=lambda data: data.ljust(align_up(len(data), PAGE_SIZE), b"\xcc")
    )
    bytes_read: int = 0

    def read(self, address, size):
        """Return bytes or raise AccessError."""
        if not (address >= BASE and address + size <= BASE + len(self.data)):
            raise AccessError("read", address, size, "not mapped")
        self.bytes_read += size
        return self.data[address - BASE :][:size]

    def write(self, address, data):
        """Refuse: formatting changes no memory."""
        raise AssertionError


class Args:
    """Variadic arguments from a list, as unsigned register values."""

    def __init__(self, *values):
        self.values = list(values)

    def next(self):
        """Return the next one."""
        return self.values.pop(0) & (1 << 64) - 1


def text(fmt, *values, data=b"", **options):
    """Format with `values` and `data` at BASE; every argument must be used."""
    args = Args(*values)
    result = format_message(fmt.encode("latin-1"), args, Pages(data), **options)
    assert args.values == []
    return result.decode("latin-1")


def libc(fmt, *values):
    """Return what the host's snprintf forms."""
    buffer = ctypes.create_string_buffer(4096)
    size = LIBC.snprintf(buffer, ctypes.c_size_t(4096), fmt.encode(), *values)
    assert 0 <= size < 4096
    return buffer.raw[:size].decode("latin-1")


@st.composite
def directives(draw):
    """Return directive, conversion, `*` arguments and a mask of bits that may not all be zero.

    All of it lies where the kernel and C agree.

    C leaves undefined, or defines otherwise than the kernel: `#` but for o, x and X; a sign
    flag but for d and i; `0` for c and s; the lengths L and q of integers; `0` beside a precision (C drops the
    zero, the kernel pads with it); a precision with %#o (C counts the prefix as a digit); a
    bare `.` (zero in C, none in the kernel); a negative `*` precision (none in C, zero in the
    kernel); zero with precision 0 (nothing in C) or as %#x (without a prefix in C).
    """
    kind = draw(st.sampled_from("diouxXcs"))
    precision = draw(st.none() | st.integers(0, 300)) if kind != "c" else None
    flags = draw(st.text("-0+ #", max_size=4))
    if kind not in "oxX" or (kind == "o" and precision is not None):
        flags = flags.replace("#", "")
    if kind not in "di":
        flags = flags.replace("+", "").replace(" ", "")
    if kind in "cs" or precision is not None:
        flags = flags.replace("0", "")
    stars = []
    width = draw(st.none() | st.integers(1, 300))
    width_text = "" if width is None else str(width)
    if width is not None and draw(st.booleans()):
        stars.append(draw(st.sampled_from([width, -width])))
        width_text = "*"
    precision_text = "" if precision is None else f".{precision}"
    if precision is not None and draw(st.booleans()):
        stars.append(precision)
        precision_text = ".*"
    length = draw(st.sampled_from(["", "hh", "h", "l", "ll", "z", "t", "j"]))
    if kind in "cs":
        length = ""
    directive = f"%{flags}{width_text}{precision_text}{length}{kind}"
    bits = {"hh": 8, "h": 16, "": 32}.get(length, 64)
    special = kind not in "cs" and (precision == 0 or ("#" in flags and kind in "xX"))
    return directive, kind, stars, (1 << bits) - 1 if special else 0


@given(
    directive=directives(),
    value=st.integers(0, (1 << 64) - 1)
    | st.integers(0, 300)
    | st.integers((1 << 64) - 300, (1 << 64) - 1),
    string=st.binary(max_size=200).map(lambda data: data.replace(b"\0", b"")),
)
def test_conversions_are_those_of_c(directive, value, string):
    """Where the kernel and C define the same, the text is that of the host's snprintf()."""
    fmt, kind, stars, not_zero = directive
    if kind == "s":
        expected = libc(f"<{fmt}>", *map(ctypes.c_int, stars), ctypes.c_char_p(string))
        assert expected == text(f"<{fmt}>", *stars, BASE, data=string + b"\0")
        return
    assume(value & not_zero or not not_zero)
    expected = libc(f"<{fmt}>", *map(ctypes.c_int, stars), ctypes.c_uint64(value))
    assert expected == text(f"<{fmt}>", *stars, value)


@pytest.mark.parametrize(
    ("fmt", "values", "expected"),
    [
        ("no conversion", (), "no conversion"),
        ("100%%", (), "100%"),
        ("%5%|%l%", (), "%|%"),
        ("%c%c", (0x41, 0xFFFFFF00), "A\0"),
        ("%d", (0xDEADBEEF_FFFFFFFF,), "-1"),
        ("%u", (0xDEADBEEF_FFFFFFFF,), "4294967295"),
        ("%#x|%#X|%#o", (0, 0, 0), "0x0|0X0|0"),
        ("%.0d|%.*u", (0, 0, 0), "0|0"),
        ("%08.5d|%08.5d", (42, -42), "00000042|-0000042"),
        ("%#.3o", (8,), "0010"),
        ("%.d", (7,), "7"),
        ("%.*d", (-3, 7), "7"),
        ("%Ld|%Lx", (1 << 31, 1 << 63), "2147483648|8000000000000000"),
        ("%qd|%ju", (-(1 << 31), 1 << 63), "-2147483648|9223372036854775808"),
    ],
)
def test_numbers_by_the_kernels_rules(fmt, values, expected):
    """Where number() differs from C: zero, zero padding, prefixes, odd precisions."""
    assert expected == text(fmt, *values)


@pytest.mark.parametrize(
    ("fmt", "values", "expected"),
    [
        ("[%s]", (0,), "[(null)]"),
        ("[%10s]", (0,), "[    (null)]"),
        ("[%.3s]", (0,), "[(nu]"),
        ("[%s]", (1,), "[(efault)]"),
        ("[%s]", (PAGE_SIZE - 1,), "[(efault)]"),
        ("[%-9s]", (-4095,), "[(efault) ]"),
        ("[%s]", (PAGE_SIZE,), "[(efault)]"),  # the kernel would fault here
        ("[%.s]", (BASE,), "[word]"),
        ("[%4.*s]", (-5, BASE), "[    ]"),
        ("[%.0s]", (BASE,), "[]"),
        ("[%pks|%pus]", (BASE, 0), "[word|(null)]"),
        ("[%pk]", (BASE,), "[(einval)]"),
    ],
)
def test_strings_by_the_kernels_rules(fmt, values, expected):
    """What no string can be read from is named; a negative precision is zero, a bare `.` none."""
    assert expected == text(fmt, *values, data=b"word\0")


@pytest.mark.parametrize("bad", ["%n", "%f", "%y", "%", "%5", "%-.3", "%ll", "%lly"])
def test_an_unknown_conversion_ends_the_message(bad):
    """What the kernel does not know ends the message, and takes no argument."""
    assert text(f"before %d {bad}", 1) == "before 1 "
    if bad[-1] in "nfy":
        assert text(f"before %d {bad} after %d", 1) == "before 1 "


def test_the_format_ends_at_nul():
    """A format is a C string: nothing after its NUL counts."""
    assert text("a%d\0%d", 1) == "a1"


@given(size=st.integers(0, 3 * PAGE_SIZE), offset=st.integers(0, PAGE_SIZE - 1))
def test_a_string_may_end_before_an_unmapped_page(size, offset):
    """A string is read no further than the page of its NUL or of its last wanted byte."""
    start = BASE + offset
    room = -(offset + size) % PAGE_SIZE
    whole = b"x" * (offset + size + room)
    assert text(f"%.{size}s", start, data=whole) == "x" * size
    if room == 0:
        assert text("%s", start, data=whole) == "(efault)"
    else:
        ended = whole[: offset + size] + b"\0" + whole[offset + size + 1 :]
        assert text("%s", start, data=ended) == "x" * size


def test_plain_pointers_are_hashed():
    """%p is a 32-bit identifier in 16 digits; the same pointer gives the same one."""
    first, again, other = text("%p %p %p", BASE, BASE, BASE + 8).split()
    assert first == again != other
    assert len(first) == 16
    assert int(first, 16) == pointer_hash(BASE) < 1 << 32
    assert text("%pK", BASE) == first
    assert text("%20p|%-20p|", BASE, BASE) == f"{first.lstrip('0'):>20}|{first.lstrip('0'):<20}|"


@pytest.mark.parametrize("fmt", ["%p", "%px", "%pK", "%pe"])
def test_null_is_no_secret(fmt):
    """NULL prints as sixteen zeros: it is no address (6.12; kernels before 5.8 say (null))."""
    assert text(fmt, 0) == "0" * 16


def test_error_pointers_are_no_secrets():
    """Error pointers are not hashed."""
    assert text("%p|%px", -11, -11) == "fffffffffffffff5|fffffffffffffff5"


def test_raw_pointers():
    """%px is %lx with sixteen digits, unless a width is given."""
    assert text("%px %20px %#px", BASE, BASE, 0xAB) == f"{BASE:016x} {BASE:>20x} 0x000000000000ab"


@pytest.mark.parametrize("number", [n for n in errno.errorcode if n <= 133])
def test_error_names_are_those_of_errno(number):
    """%pe prints a name whose errno is the pointer's."""
    name = text("%pe", -number)
    assert name[0] == "-"
    assert getattr(errno, name[1:]) == number


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-512, "-ERESTARTSYS"),
        (-517, "-EPROBE_DEFER"),
        (-524, "-ENOTSUPP"),
        (-530, "-ERECALLCONFLICT"),
        (-41, "-41"),
        (-1234, "-1234"),
        (-4095, "-4095"),
    ],
)
def test_error_names_inside_the_kernel(value, expected):
    """Errors that never reach user space have names too; those without print as a number."""
    assert text("%pe", value) == expected


def test_only_error_pointers_are_errors():
    """%pe of an address is %p."""
    assert text("%pe", -4096) == text("%p", -4096)


def symbolize(address):
    """Know one function of a module and one of the kernel."""
    if BASE <= address < BASE + 0x110:
        return f"versatile_init+{address - BASE:#x}/0x110"
    if BASE + 0x110 <= address < BASE + 0x200:
        return f"hello_init+{address - BASE - 0x110:#x}/0xf0 [hello]"
    return None


@pytest.mark.parametrize(
    ("fmt", "address", "expected"),
    [
        ("%pS", BASE, "versatile_init+0x0/0x110"),
        ("%ps", BASE, "versatile_init"),
        ("%pSR", BASE + 9, "versatile_init+0x9/0x110"),
        ("%pB", BASE + 0x110, "versatile_init+0x110/0x110"),
        ("%pB", BASE + 0x114, "hello_init+0x4/0xf0 [hello]"),
        ("%pS", BASE + 0x110, "hello_init+0x0/0xf0 [hello]"),
        ("%ps", BASE + 0x114, "hello_init [hello]"),
        ("%30pS|", BASE, "      versatile_init+0x0/0x110|"),
        ("%.5ps", BASE, "versa"),
        ("%pS", 0x1234, "0x1234"),
        ("%pB", 0x1234, "0x1234"),
    ],
)
def test_symbols(fmt, address, expected):
    """Symbols come with offset, size and module; %ps leaves out the numbers, %pB looks back."""
    assert text(fmt, address, symbolize=symbolize) == expected


def test_symbols_without_a_table():
    """An address that has no symbol prints in hex."""
    assert text("%pS", BASE) == f"{BASE:#x}"


@given(data=st.binary(min_size=64, max_size=64), size=st.integers(-70, 70))
def test_hex_strings(data, size):
    """%*ph prints as many bytes as the width says, at most 64, with its separator."""
    count = min(abs(size), 64)
    pairs = [f"{byte:02x}" for byte in data[:count]]
    for letter, separator in (("", " "), ("C", ":"), ("D", "-"), ("N", "")):
        assert separator.join(pairs) == text(f"%*ph{letter}", size, BASE, data=data)


def test_hex_string_without_a_width():
    """%ph prints one byte."""
    assert text("%ph", BASE, data=b"\xc0\xff") == "c0"


@pytest.mark.parametrize(
    ("fmt", "expected"),
    [
        ("%pM", "00:01:02:03:04:05"),
        ("%pMR", "05:04:03:02:01:00"),
        ("%pMF", "00-01-02-03-04-05"),
        ("%pm", "000102030405"),
        ("%pmR", "050403020100"),
        ("%20pM", "   00:01:02:03:04:05"),
        ("%pM; %pM", "00:01:02:03:04:05; 00:01:02:03:04:05"),
    ],
)
def test_mac_addresses(fmt, expected):
    """The forms of printk-formats.rst."""
    assert text(fmt, *[BASE] * fmt.count("%"), data=bytes(range(6))) == expected


@given(data=st.binary(min_size=4, max_size=4))
def test_ipv4_addresses(data):
    """%pI4 is the usual form, %pi4 with leading zeros; h and l read little-endian."""
    address = ipaddress.IPv4Address(data)
    assert str(address) == text("%pI4", BASE, data=data) == text("%pI4n", BASE, data=data)
    assert str(ipaddress.IPv4Address(data[::-1])) == text("%pI4h", BASE, data=data)
    assert str(ipaddress.IPv4Address(data[::-1])) == text("%pI4l", BASE, data=data)
    assert ".".join(f"{byte:03}" for byte in data) == text("%pi4", BASE, data=data)


@given(words=st.lists(st.sampled_from([0, 0, 1, 0xFFFF, 0x5EFE, 0x12]), min_size=8, max_size=8))
def test_ipv6_addresses(words):
    """%pI6 is the long form, %pi6 without colons, %pI6c that of RFC 5952."""
    data = struct.pack("!8H", *words)
    address = ipaddress.IPv6Address(data)
    assert address.exploded == text("%pI6", BASE, data=data)
    assert data.hex() == text("%pi6", BASE, data=data)
    short = text("%pI6c", BASE, data=data)
    assert ipaddress.IPv6Address(short) == address
    # RFC 5952 section 5: a known IPv4 suffix is dotted (mapped addresses and ISATAP).
    if address.ipv4_mapped or (words[4] == 0 and words[5] == 0x5EFE):
        assert short.endswith(f":{ipaddress.IPv4Address(data[12:])}")
    else:
        assert short == address.compressed


@pytest.mark.parametrize(
    ("fmt", "expected"),
    [
        ("%pIS", "1.2.3.4"),
        ("%piS", "001.002.003.004"),
        ("%pISc", "1.2.3.4"),
        ("%pISpc", "1.2.3.4:12345"),
        ("%pISpfc", "1.2.3.4:12345"),
        ("%pISsc", "1.2.3.4"),
        ("%pISph", "4.3.2.1:12345"),
    ],
)
def test_ipv4_socket_addresses(fmt, expected):
    """The forms of printk-formats.rst for struct sockaddr_in."""
    sockaddr = struct.pack("=H", 2) + struct.pack("!H", 12345) + bytes([1, 2, 3, 4]) + bytes(8)
    assert text(fmt, BASE, data=sockaddr) == expected


@pytest.mark.parametrize(
    ("fmt", "expected"),
    [
        ("%pIS", "0001:0002:0003:0004:0005:0006:0007:0008"),
        ("%piS", "00010002000300040005000600070008"),
        ("%pISc", "1:2:3:4:5:6:7:8"),
        ("%pISpc", "[1:2:3:4:5:6:7:8]:12345"),
        ("%pISfc", "[1:2:3:4:5:6:7:8]/123456789"),
        ("%pISsc", "[1:2:3:4:5:6:7:8]%1234567890"),
        ("%pISpfc", "[1:2:3:4:5:6:7:8]:12345/123456789"),
    ],
)
def test_ipv6_socket_addresses(fmt, expected):
    """The forms of printk-formats.rst for struct sockaddr_in6."""
    sockaddr = struct.pack("<H", 10) + struct.pack("!HI8H", 12345, 123456789, *range(1, 9))
    assert text(fmt, BASE, data=sockaddr + struct.pack("<I", 1234567890)) == expected


def test_unknown_socket_families():
    """Any other address family is (einval), any other letter is named."""
    assert text("%pIS %pI5 %pi", BASE, BASE, BASE, data=bytes(28)) == "(einval) (%pI?) (%pi?)"


@given(data=st.binary(min_size=16, max_size=16))
def test_uuids(data):
    """%pU and %pUb are a UUID, %pUl a GUID with three little-endian fields, capitals upper."""
    big, little = str(uuid.UUID(bytes=data)), str(uuid.UUID(bytes_le=data))
    formed = text("%pU|%pUb|%pUB|%pUl|%pUL", *[BASE] * 5, data=data)
    assert formed.split("|") == [big, big, big.upper(), little, little.upper()]


@given(bits=st.integers(0, 200), value=st.integers(0, (1 << 200) - 1))
def test_bitmaps(bits, value):
    """%*pb prints as many bits as the width says, in words of 32; %*pbl their ranges."""
    data = (value | 1 << 255).to_bytes(32, "little")  # what lies beyond must not show
    value &= (1 << bits) - 1
    words = text("%*pb", bits, BASE, data=data).split(",")
    assert [len(word) for word in words[1:]] == [8] * max(-(-bits // 32) - 1, 0)
    assert int("".join(words) or "0", 16) == value
    assert len("".join(words)) == -(-bits // 4)
    ranges = text("%*pbl", bits, BASE, data=data)
    listed = [
        range(int(first), int(last or first) + 1)
        for first, _, last in (part.partition("-") for part in ranges.split(",") if part)
    ]
    assert value == sum(1 << bit for run in listed for bit in run)
    assert all(b.start > a.stop for a, b in itertools.pairwise(listed))


def test_bitmaps_as_documented():
    """The example of printk-formats.rst: bits 0, 3-6 and 8-10."""
    data = (0x0779).to_bytes(8, "little")
    assert text("%*pb %*pbl", 16, BASE, 16, BASE, data=data) == "0779 0,3-6,8-10"


ESCAPED = bytes.fromhex("1b 62 20 5c 43 07 22 90 0d 5d")


@pytest.mark.parametrize(
    ("fmt", "expected"),
    [
        ("%*pE", r'\eb \C\a"\220\r]'),
        ("%*pEhp", r'\x1bb \C\x07"\x90\x0d]'),
        # The document prints the quote as \042; since 5.13 ESCAPE_SPECIAL covers it.
        ("%*pEa", r"\e\142\040\\\103\a\"\220\r\135"),
    ],
)
def test_escaped_buffers_as_documented(fmt, expected):
    """The examples of printk-formats.rst."""
    assert text(fmt, len(ESCAPED), BASE, data=ESCAPED) == expected


@given(data=st.binary(min_size=1, max_size=50))
def test_escapes_can_be_read_back(data):
    """What is wholly octal or hex is what a C or Python literal means."""
    for fmt in ("%*pEo", "%*pEh", "%*pEoh"):
        escaped = text(fmt, len(data), BASE, data=data)
        assert ast.literal_eval(f"b'{escaped}'") == data
        assert len(escaped) == 4 * len(data)


def test_escape_classes():
    """Each letter escapes its class and nothing else; without a width one byte is escaped."""
    data = b"\0\n\x1bA\xe9"
    assert text("%5pEn", BASE, data=data) == "\\0\n\x1bA\xe9"
    assert text("%5pEs", BASE, data=data) == "\0\\n\x1bA\xe9"
    assert text("%5pEc", BASE, data=data) == "\0\n\\eA\xe9"
    assert text("%5pE", BASE, data=data) == "\\0\\n\\eA\xe9"  # Latin-1 letters are printable
    assert text("%pE|%0pE", BASE, BASE, data=data) == "\\0|\\0"
    assert text("%*pE|%*ph", 0, BASE, 0, BASE, data=data) == "|"


@pytest.mark.parametrize(
    ("code", "fmt", "expected"),
    [
        (0x32314742, "%p4cc", "BG12 little-endian (0x32314742)"),
        (0x20303159, "%p4cc", "Y10  little-endian (0x20303159)"),
        (0xB231564E, "%p4cc", "NV12 big-endian (0xb231564e)"),
        (0x10111213, "%p4cc", ".... little-endian (0x10111213)"),
        (0x67503030, "%p4ch", "gP00 (0x67503030)"),
        (0x67503030, "%p4chR", "00Pg (0x30305067)"),
        (0x67503030, "%p4cl", "gP00 (0x67503030)"),
        (0x67503030, "%p4cb", "00Pg (0x30305067)"),
        (0, "%p4", "(%p4?)"),
    ],
)
def test_fourcc(code, fmt, expected):
    """The examples of printk-formats.rst, and dots for what cannot be printed."""
    assert text(fmt, BASE, data=struct.pack("<I", code)) == expected


@pytest.mark.parametrize(
    ("fmt", "fields", "expected"),
    [
        ("%pr", (0x60000000, 0x6FFFFFFF, 0, 0x2200), "[mem 0x60000000-0x6fffffff flags 0x2200]"),
        ("%pR", (0x60000000, 0x6FFFFFFF, 0, 0x2200), "[mem 0x60000000-0x6fffffff pref]"),
        ("%pR", (0x60000000, 0x60000000, 0, 0x2200), "[mem 0x60000000 pref]"),
        ("%pR", (0, 0xFFF, 0, 0x20102200), "[mem size 0x00001000 64bit pref]"),
        ("%pR", (0x3F8, 0x3FF, 0, 0x100), "[io  0x03f8-0x03ff]"),
        ("%pR", (9, 9, 0, 0x400), "[irq 9]"),
        ("%pR", (0, 0xFF, 0, 0x1000), "[bus 00-ff]"),
        ("%pR", (1, 2, 0, 0), "[??? 0x00000001-0x00000002 flags 0x0]"),
        ("%pra", (1, 2, 0, 0), "[range 0x0000000000000001-0x0000000000000002]"),
        ("%pra", (1, 1, 0, 0), "[range 0x0000000000000001]"),
    ],
)
def test_resources(fmt, fields, expected):
    """The forms of printk-formats.rst, and those of the kinds that it leaves out."""
    assert text(fmt, BASE, data=struct.pack("<4Q", *fields)) == expected


@pytest.mark.parametrize("fmt", ["%pa", "%pap", "%pad", "%pNF", "%ppte", "%ppgd", "%pp4d"])
def test_words_by_reference(fmt):
    """Addresses, features and page table entries are read and print as 0x and 16 digits."""
    assert text(fmt, BASE, data=struct.pack("<Q", 0xC0FFEE)) == "0x0000000000c0ffee"


REFERENCES = (
    "%ph %pb %pbl %pM %pm %pI4 %pi6 %pI6c %pIS %pE %pU %pV %pR %pr %pra %pa %pad %pNF %p4cc %ppte "
    "%pd %pd2 %pD4 %pg %ptR %pC %pGg %pOF %pfw"
).split()


@pytest.mark.parametrize("fmt", REFERENCES)
def test_what_cannot_be_reached_is_named(fmt):
    """What is passed by reference says (null) or (efault) where there is nothing to read."""
    assert text(fmt, 0) == "(null)"
    assert text(fmt, 0xAB) == "(efault)"
    assert text(fmt, -11) == "(efault)"


@pytest.mark.parametrize("fmt", [fmt for fmt in REFERENCES[:20] if fmt[2] != "b"])
def test_unmapped_references_are_named(fmt):
    """A reference into unmapped memory is (efault) and no exception."""
    assert text(f"<{fmt}>", BASE) == "<(efault)>"


@pytest.mark.parametrize("fmt", REFERENCES[20:])
def test_kernel_structures_print_as_pointers(fmt):
    """A reference to a structure of the kernel's own prints its address."""
    assert text(f"<{fmt}>", BASE) == f"<{BASE:016x}>"


def test_all_letters_after_a_pointer_belong_to_it():
    """Letters and digits after %p are taken, known or not; other characters are text."""
    assert text("%pxyz9-a", BASE) == f"{BASE:016x}-a"
    assert text("%pZ", BASE) == text("%p", BASE)


def test_nested_formats():
    """%pV forms struct va_format's message with its own arguments."""
    data = struct.pack("<2Q", BASE + 16, 0x7000) + b"%s=%d\0x\0"
    lists = {0x7000: (BASE + 22, 5)}
    formed = text("<%pV|%d>", BASE, 7, data=data, va_list=lambda at: Args(*lists[at]))
    assert formed == "<x=5|7>"
    assert text("<%pV>", BASE, data=data) == f"<{BASE:016x}>"


def test_nested_formats_end():
    """A %pV that names itself ends with (efault)."""
    data = struct.pack("<2Q", BASE + 16, 0) + b"a%pV\0"
    formed = text("%pV", BASE, data=data, va_list=lambda _at: Args(BASE))
    assert formed == "a" * NESTED_LIMIT + "(efault)"


def test_nested_arguments_may_be_unreadable():
    """A va_list in unmapped memory is (efault)."""

    def unreadable(address):
        raise AccessError("read", address, 8, "not mapped")

    data = struct.pack("<2Q", BASE + 16, 0) + b"%d\0"
    assert text("<%pV>", BASE, data=data, va_list=unreadable) == "<(efault)>"


def test_widths_are_capped():
    """A width or precision of any size gives no more than the kernel's limits or ours."""
    assert FIELD_WIDTH_MAX > MESSAGE_LIMIT
    for fmt, values in (
        ("%1000000000d", (1,)),
        ("%*s", (-(1 << 31), BASE)),
        (f"%{'9' * 10000}c", (65,)),
        ("%*d" * 100, (1 << 30, 1) * 100),
    ):
        formed = format_message(fmt.encode(), Args(*values), Pages(b"x\0"))
        assert len(formed) == MESSAGE_LIMIT
    assert len(text("%.1000000000d", 1)) == PRECISION_MAX
    assert len(text("%.*x", 1 << 30, 1)) == PRECISION_MAX


def test_strings_are_capped():
    """A string without an end stops at the limit of a message."""
    memory = Pages(b"x" * (2 * MESSAGE_LIMIT))
    assert len(format_message(b"%s%s", Args(BASE, BASE), memory)) == MESSAGE_LIMIT


def test_reads_are_capped():
    """A format that reads much and prints little reads no more than READ_LIMIT."""
    memory = Pages(bytes(MESSAGE_LIMIT))
    values = Args(*[FIELD_WIDTH_MAX, BASE] * 100)
    formed = format_message(b"%*pbl" * 100, values, memory)
    assert memory.bytes_read <= READ_LIMIT
    assert formed == b"(efault)".rjust(FIELD_WIDTH_MAX)[:MESSAGE_LIMIT]


@given(
    fmt=st.text(
        "%-+ #0123456789*.hlLqztjdiouxXcspnhbMmIiESUVKN4acCDdgGOtfFRrAe\0\xe9", max_size=30
    ),
    values=st.lists(st.sampled_from([0, 1, 65, BASE, BASE + 4090, (1 << 64) - 2]), max_size=40),
)
def test_no_format_escapes(fmt, values):
    """Any format gives a message, whatever its arguments point at."""
    args = Args(*values, *[0] * 30)
    formed = format_message(fmt.encode("latin-1"), args, Pages(bytes(range(256)) * 16))
    assert len(formed) <= MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"\x010panic", (0, b"panic")),
        (b"\x017debug", (7, b"debug")),
        (b"\x01cmore", (None, b"more")),
        (b"\x01c\x014both", (4, b"both")),
        (b"\x014\x016twice", (4, b"twice")),
        (b"\x018no level", (None, b"\x018no level")),
        (b"\x01", (None, b"\x01")),
        (b"plain \x013", (None, b"plain \x013")),
        (b"", (None, b"")),
    ],
)
def test_levels(message, expected):
    """KERN_SOH and a digit are a level, KERN_SOH and c a continuation; all else is text."""
    assert split_level(message) == expected
