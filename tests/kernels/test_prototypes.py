# SPDX-License-Identifier: GPL-2.0-or-later
"""Prototypes: what a declaration says about the registers of a call."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.prototypes import CType, parse

# C types of the host compiler's ABI, an LP64 one as the kernel's three are.
HOST = {
    "int": ctypes.c_int,
    "unsigned": ctypes.c_uint,
    "unsigned int": ctypes.c_uint,
    "short": ctypes.c_short,
    "short int": ctypes.c_short,
    "unsigned short": ctypes.c_ushort,
    "signed char": ctypes.c_byte,
    "unsigned char": ctypes.c_ubyte,
    "long": ctypes.c_long,
    "long unsigned int": ctypes.c_ulong,
    "unsigned long": ctypes.c_ulong,
    "long long": ctypes.c_longlong,
    "unsigned long long int": ctypes.c_ulonglong,
    "size_t": ctypes.c_size_t,
    "ssize_t": ctypes.c_ssize_t,
    "u8": ctypes.c_uint8,
    "s8": ctypes.c_int8,
    "__le16": ctypes.c_uint16,
    "s16": ctypes.c_int16,
    "u32": ctypes.c_uint32,
    "__be32": ctypes.c_uint32,
    "s32": ctypes.c_int32,
    "u64": ctypes.c_uint64,
    "s64": ctypes.c_int64,
    "bool": ctypes.c_bool,
    "_Bool": ctypes.c_bool,
    "const void *": ctypes.c_void_p,
}


def type_of(text: str) -> CType:
    """Return the type of a parameter declared by `text`."""
    return parse(f"void f({text})").params[0].type


@pytest.mark.parametrize("text", HOST)
def test_sizes_are_the_lp64_abis(text):
    """A type's size is the one that an LP64 C compiler gives it."""
    assert ctypes.sizeof(HOST[text]) == type_of(text).size


@given(text=st.sampled_from(sorted(HOST)), value=st.integers(0, (1 << 64) - 1))
def test_conversion_is_that_of_c(text, value):
    """A register is converted to a type as C converts an unsigned 64-bit number to it."""
    expected = HOST[text](value).value or 0
    assert int(expected) == type_of(text).to_register(value) - (1 << 64 if expected < 0 else 0)
    if type_of(text).boolean:
        value &= 0xFF  # a register holds a _Bool in its low byte
        expected = bool(value)
    assert int(expected) == type_of(text).from_register(value)


@pytest.mark.parametrize(
    ("prototype", "name", "result", "params", "variadic"),
    [
        (
            "void *__kmalloc_noprof(size_t size, gfp_t flags)",
            "__kmalloc_noprof",
            "void *",
            [("size", "size_t", 8), ("flags", "gfp_t", 4)],
            False,
        ),
        ("int _printk(const char *fmt, ...)", "_printk", "int", [("fmt", "const char *", 8)], True),
        (
            "u16 crc16(u16 crc, const u8 *p, size_t len)",
            "crc16",
            "u16",
            [("crc", "u16", 2), ("p", "const u8 *", 8), ("len", "size_t", 8)],
            False,
        ),
        (
            "void sort(void *base, int (*cmp)(const void *, const void *), swap_func_t swap)",
            "sort",
            "void",
            [
                ("base", "void *", 8),
                ("cmp", "int (*)(const void *, const void *)", 8),
                ("swap", "swap_func_t", 8),
            ],
            False,
        ),
        (
            "extern unsigned long f(unsigned long long, struct list_head **head, u8 mac[6]);",
            "f",
            "extern unsigned long",
            [
                ("", "unsigned long long", 8),
                ("head", "struct list_head **", 8),
                ("mac", "u8 [6]", 8),
            ],
            False,
        ),
        (
            "bool f(enum dma_data_direction dir, unknown_t *p, int work(void), char (*rows)[4])",
            "f",
            "bool",
            [
                ("dir", "enum dma_data_direction", 4),
                ("p", "unknown_t *", 8),
                ("work", "int (void)", 8),
                ("rows", "char (*)[4]", 8),
            ],
            False,
        ),
        (
            "__printf(1, 0) int vprintk(const char *fmt, va_list args) __cold",
            "vprintk",
            "int",
            [("fmt", "const char *", 8), ("args", "va_list", 8)],
            False,
        ),
        ("void schedule(void)", "schedule", "void", [], False),
        ("void schedule()", "schedule", "void", [], False),
    ],
)
def test_declarations(prototype, name, result, params, variadic):
    """Name, result, parameters and `...` are read as C reads them."""
    found = parse(prototype)
    assert (name, result, variadic) == (found.name, found.result.text, found.variadic)
    assert params == [(p.name, p.type.text, p.type.size) for p in found.params]


@pytest.mark.parametrize(
    "text",
    [
        "char *p",
        "struct page *",
        "int (*fn)(void)",
        "u32 a[]",
        "int fn(int)",
        "va_list",
        "void **p",
    ],
)
def test_what_decays_is_an_address(text):
    """Pointers, arrays and functions are unsigned 64-bit addresses."""
    found = type_of(text)
    assert (found.pointer, found.size, found.signed) == (True, 8, False)
    assert found.from_register(0xFFFFFFFFC0000000) == 0xFFFFFFFFC0000000


@pytest.mark.parametrize(
    ("prototype", "token"),
    [
        ("int f(kuid_t uid)", "'kuid_t'"),
        ("float f(void)", "'float'"),
        ("int f(struct timespec64 ts)", "'struct timespec64' by value"),
        ("union u f(void)", "'union u' by value"),
        ("int f(short long x)", "'short long'"),
        ("int f(unsigned signed x)", "'unsigned signed'"),
        ("int f(void x)", "'x' is void"),
        ("int f(int a b)", "'b'"),
        ("int f(u32 int)", "'int'"),
        ("int f(int,)", "no type"),
        ("int f(..., int x)", "'...'"),
        ("int f(int a = 1)", "'='"),
        ("int f(int *a]", "no function"),
        ("int f", "no function"),
        ("int f(int)(int)", "no function"),
        ("f(int)", "no type"),
        ("int (void)", "'int'"),
        ("", "no function"),
    ],
)
def test_refusals_name_the_token(prototype, token):
    """What is no prototype, or of unknown size, is refused with the token and the text."""
    with pytest.raises(ValueError) as refused:
        parse(prototype)
    assert token in str(refused.value)
    assert repr(prototype) in str(refused.value)


def test_unsigned_32_bit_values_follow_the_psabi():
    """On riscv64 a u32 is sign-extended in its register, elsewhere zero-extended."""
    u32, u16, u64 = type_of("u32"), type_of("u16"), type_of("u64")
    assert u32.to_register(0x80000001) == 0x80000001
    assert u32.to_register(0x80000001, sign_extend_32=True) == 0xFFFFFFFF80000001
    assert u16.to_register(0x8001, sign_extend_32=True) == 0x8001
    assert u64.to_register(0x80000001, sign_extend_32=True) == 0x80000001


def test_char_is_unsigned():
    """A plain char is unsigned: the kernel is built with -funsigned-char."""
    assert type_of("char c").from_register(0xFF) == 0xFF
    assert type_of("signed char c").from_register(0xFF) == -1


def test_void_is_nothing():
    """A void result carries no value in either direction."""
    void = parse("void f(void)").result
    assert (void.size, void.from_register(123), void.to_register(123)) == (0, 0, 0)


@given(
    text=st.sampled_from([*HOST, "enum e", "gfp_t", "umode_t", "loff_t", "dev_t", "char"]),
    value=st.integers(-(1 << 63), (1 << 64) - 1),
    garbage=st.integers(0, (1 << 64) - 1),
    sign_extend_32=st.booleans(),
)
def test_register_round_trip(text, value, garbage, sign_extend_32):
    """A value survives its register image, whatever stands above the type's bits there."""
    found = type_of(text)
    low = 0 if found.boolean else -(1 << 8 * found.size - 1) if found.signed else 0
    high = 1 if found.boolean else (1 << 8 * found.size - found.signed) - 1
    value = low + (value - low) % (high - low + 1)
    image = found.to_register(value, sign_extend_32=sign_extend_32)
    assert 0 <= image < 1 << 64
    assert value == found.from_register(image)
    dirty = image & ((1 << 8 * found.size) - 1) | garbage << 8 * found.size & (1 << 64) - 1
    assert value == found.from_register(dirty)


def test_parsing_is_cached():
    """The same prototype is parsed once."""
    assert parse("int f(int x)") is parse("int f(int x)")


def test_a_structure_can_be_returned_in_memory():
    """Its address is passed and returned; a pointer to a structure is no such thing."""
    found = parse("struct zstd_parameters zstd_get_params(int level, unsigned long long size)")
    assert found.indirect
    assert found.result.pointer
    assert [p.name for p in found.params] == ["level", "size"]
    assert not parse("struct page *f(void)").indirect
