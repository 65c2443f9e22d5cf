# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's entries, called as a module calls them, against Python's own idea of the same."""

from __future__ import annotations

import errno
import functools
import re
import string
import struct
import zlib
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from emulator.faults import Fault, FaultKind
from kernels.modelled.api.lists import LEFT, RIGHT
from kernels.modelled.api.params import parameters
from kernels.modelled.structs import POINTER, PREV, layout, view
from kernels.modelled.table import DATA, FUNCTIONS
from machine.machine import Machine, Out

EACH = pytest.mark.parametrize("arch", archs.ALL, ids=lambda arch: arch.name)
GFP_KERNEL, GFP_ZERO = 0xCC0, 0x100
BITS = {"u8": 8, "u16": 16, "uint": 32, "ull": 64, "s8": 8, "s16": 16, "int": 32, "ll": 64}
SIGNED = {"s8", "s16", "int", "ll"}
# What these tests keep behind the node of a list, and of a tree.
NODE, KEY = layout("list_head").size, layout("rb_node").size
FEW = settings(max_examples=25, deadline=None)

# NUL-free, as C strings are; letters of several kinds and spaces among them.
cstrings = st.lists(st.sampled_from(b"aAbBzZ09 \t\n,;/\xe9"), max_size=12).map(bytes)


class Guest:
    """A machine whose kernel functions are called by name."""

    def __init__(self, arch):
        self.machine = Machine(arch)
        self.kernel = self.machine.kernel
        self.word = self.kernel.word

    def __call__(self, name, *args, returns="u64"):
        """Call a kernel function through the CPU."""
        return self.machine.call(self.kernel.address(name), *args, returns=returns)

    def symbol(self, name):
        """Return a kernel symbol's address."""
        return self.kernel.address(name)

    def callback(self, name, function, prototype):
        """Return the address of a guest function that Python implements."""
        self.kernel.supply(name, function, prototype)
        return self.kernel.address(name)

    @contextmanager
    def memory(self, *contents):
        """Put bytes (or that many zeros) into guest memory for a while; NULs end strings."""
        found = [self.machine.alloc(c if isinstance(c, int) else c + b"\0") for c in contents]
        yield found if len(found) > 1 else found[0]
        for address in found:
            self.machine.free(address)

    def string(self, address):
        """Return the C string at an address."""
        return self.kernel.string(address)

    @contextmanager
    def fails(self, kind, *words):
        """Expect a fault of a kind whose text has every word."""
        with pytest.raises(Fault) as caught:
            yield
        assert caught.value.kind is kind
        for word in words:
            assert word in str(caught.value)


@functools.cache
def _guest(name):
    return Guest(name)


def guest_of(arch):
    """Return the one machine of an architecture that these tests share."""
    return _guest(arch.name)


@pytest.fixture
def guest(arch):
    """Return the machine of each architecture."""
    return guest_of(arch)


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


# Log and printf ------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 4, 5, 6, 40])
def test_snprintf_says_how_long_it_would_be(guest, room):
    """The result of snprintf is the whole length, scnprintf what was stored; both terminate."""
    with guest.memory(64) as buffer:
        guest("memset", buffer, 0xFF, 64)
        assert guest("snprintf", buffer, room, "%s-%d", "ab", 42, returns="int") == 5
        stored = b"ab-42"[: max(room - 1, 0)]
        shown = stored + b"\0" if room else b""
        assert guest.machine.read(buffer, 64) == shown.ljust(64, b"\xff")
        assert guest("scnprintf", buffer, room, "%s-%d", "ab", 42, returns="int") == len(stored)


def test_kasprintf_allocates(guest):
    """The message comes back in memory of its own."""
    found = guest("kasprintf", GFP_KERNEL, "%u:%s", 7, "x")
    assert guest.string(found) == b"7:x"
    guest("kfree", found)


def test_printk_and_warnings_reach_the_log(guest):
    """A message has the level of its prefix; a warning comes after the cut line."""
    log = guest.machine.log
    start = len(log)
    guest("_printk", "\0013bad %d\n", 5)
    guest("__warn_printk", "odd %s\n", "thing")
    assert [(line.level, line.text) for line in log[start:]] == [
        (3, "bad 5"),
        (4, "------------[ cut here ]------------"),
        (4, "odd thing"),
    ]


def test_panic_stops(guest):
    """A panic logs its message as an emergency and never returns."""
    with guest.fails(FaultKind.PANIC, "no way 3"):
        guest("panic", "no way %d", 3)
    line = guest.machine.log[-1]
    assert (line.level, line.text) == (0, "Kernel panic - not syncing: no way 3")


def test_print_hex_dump_lays_bytes_out(guest):
    """Groups are words in CPU order; the last line is as long as its bytes."""
    start = len(guest.machine.log)
    data = bytes(range(0x30, 0x30 + 20))
    guest("print_hex_dump", "\0016", "p: ", 2, 16, 4, data, len(data), 1)
    assert [line.text for line in guest.machine.log[start:]] == [
        "p: 00000000: 33323130 37363534 3b3a3938 3f3e3d3c  0123456789:;<=>?",
        "p: 00000010: 43424140                             @ABC",
    ]


def test_ratelimit_lets_a_burst_through(guest):
    """Within an interval `burst` calls pass; after it the suppressed are counted in the log."""
    with guest.memory(32) as rs:
        guest.machine.write(rs, struct.pack("<6IQ", 0, 250, 2, 0, 0, 0, 0))
        passed = [guest("___ratelimit", rs, "f", returns="int") for _ in range(5)]
        assert passed == [1, 1, 0, 0, 0]
        guest("msleep", 2000)
        assert guest("___ratelimit", rs, "f", returns="int") == 1
        assert guest.machine.log[-1].text == "f: 3 callbacks suppressed"


# Memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 8, 100, 4096, 5000, 1 << 20])
def test_kmalloc_gives_memory_that_is_zero_when_asked(guest, size):
    """__GFP_ZERO zeroes even what was used before; kfree takes it back."""
    first = guest("__kmalloc_noprof", size, GFP_KERNEL)
    guest("memset", first, 0xAA, size)
    guest("kfree", first)
    again = guest("__kmalloc_noprof", size, GFP_KERNEL | GFP_ZERO)
    assert guest.machine.read(again, size) == bytes(size)
    assert guest("ksize", again) >= size
    guest("kfree", again)


def test_kmalloc_of_odd_sizes(guest):
    """Nothing gives the pointer that is not NULL, too much gives NULL, both may be freed."""
    assert guest("__kmalloc_noprof", 0, GFP_KERNEL) == 16
    assert guest("__kmalloc_noprof", (4 << 20) + 1, GFP_KERNEL) == 0
    assert guest("__kvmalloc_node_noprof", 1 << 31, 0, GFP_KERNEL, -1) == 0
    for nothing in (0, 16):
        guest("kfree", nothing)
        assert guest("ksize", nothing) == 0


@pytest.mark.parametrize(
    ("release", "address"),
    [("kfree", 0x1234), ("kvfree", 0x1234), ("vfree", 0x1234), ("free_percpu", 0x1234)],
)
def test_freeing_what_is_no_memory_stops(guest, release, address):
    """The fault names the function, the address and the reason."""
    with guest.fails(FaultKind.PANIC, release, hex(address)):
        guest(release, address)


def test_freeing_twice_or_by_the_wrong_name_stops(guest):
    """What is freed is gone; vmalloc memory is not kmalloc's nor the other way round."""
    block = guest("__kmalloc_noprof", 64, GFP_KERNEL)
    with guest.fails(FaultKind.PANIC, "vfree"):
        guest("vfree", block)
    guest("kfree", block)
    with guest.fails(FaultKind.PANIC, "kfree", "freed before"):
        guest("kfree", block)
    area = guest("vmalloc_noprof", 64)
    assert guest("is_vmalloc_addr", area, returns="bool")
    with guest.fails(FaultKind.PANIC, "vmalloc memory"):
        guest("kfree", area)
    guest("kvfree", area)


def test_krealloc_keeps_contents(guest):
    """Growing moves what was there; shrinking to nothing frees."""
    block = guest("kmemdup_noprof", b"contents", 8, GFP_KERNEL)
    grown = guest("krealloc_noprof", block, 4000, GFP_KERNEL)
    assert guest.machine.read(grown, 8) == b"contents"
    assert guest("ksize", block) == 0
    assert guest("krealloc_noprof", grown, 0, GFP_KERNEL) == 16
    assert guest("ksize", grown) == 0


def test_duplicates(guest):
    """kstrdup, kstrndup and kmemdup_nul copy strings; of NULL they give NULL."""
    for name, size, expected in (
        ("kstrdup", None, b"text"),
        ("kstrndup", 2, b"te"),
        ("kmemdup_nul", 3, b"tex"),
    ):
        args = [GFP_KERNEL] if size is None else [size, GFP_KERNEL]
        copy = guest(name, "text", *args)
        assert guest.string(copy) == expected
        guest("kfree", copy)
        assert guest(name, 0, *args) == 0


def test_slab_cache(guest):
    """Objects are constructed, counted and aligned; a cache that still has some is reported."""
    built = []
    ctor = guest.callback("api_ctor", built.append, "void api_ctor(void *x)")
    args = struct.pack("<4I2Q", 64, 0, 0, 0, 0, ctor)
    cache = guest("__kmem_cache_create_args", "things", 40, args, 0)
    assert guest("kmem_cache_size", cache) == 40
    thing = guest("kmem_cache_alloc_noprof", cache, GFP_KERNEL)
    assert built == [thing]
    assert thing % 64 == 0
    guest("kmem_cache_destroy", cache)
    assert guest.machine.log[-1].text.startswith("kmem_cache_destroy things: Slab cache still has")
    cache = guest("__kmem_cache_create_args", "others", 40, args, 0)
    guest("kmem_cache_free", cache, guest("kmem_cache_alloc_noprof", cache, GFP_KERNEL))
    lines = len(guest.machine.log)
    guest("kmem_cache_destroy", cache)
    assert len(guest.machine.log) == lines
    with guest.fails(FaultKind.PANIC, "kmem_cache_free"):
        guest("kmem_cache_free", guest.word(guest.symbol("kmalloc_caches") + POINTER), 0x1234)


def test_pages_come_aligned_in_runs(guest):
    """A run of an order is aligned to itself, and is given back with the same order only."""
    run = guest("get_free_pages_noprof", GFP_KERNEL | GFP_ZERO, 2)
    assert run % (4 << 12) == 0
    assert guest.machine.read(run, 4 << 12) == bytes(4 << 12)
    with guest.fails(FaultKind.PANIC, "order 1"):
        guest("free_pages", run, 1)
    guest("free_pages", run, 2)


def test_percpu_memory(guest):
    """What pcpu_alloc returns is an offset: adding the CPU's own gives zeroed memory."""
    base = guest("pcpu_alloc_noprof", 24, 16, 0, GFP_KERNEL)
    offset = guest.word(guest.symbol("__per_cpu_offset"))
    address = (base + offset) % (1 << 64)
    assert base % 16 == 0
    assert guest.machine.read(address, 24) == bytes(24)
    guest("free_percpu", base)
    with guest.fails(FaultKind.PANIC, "free_percpu"):
        guest("free_percpu", base)


# Locks ---------------------------------------------------------------------------------------

LOCKS = {
    "mutex": ("mutex_lock", "mutex_unlock", "mutex_trylock"),
    "spinlock": ("_raw_spin_lock", "_raw_spin_unlock", "_raw_spin_trylock"),
    "rw_semaphore": ("down_write", "up_write", "down_write_trylock"),
    "rwlock": ("_raw_write_lock", "_raw_write_unlock", None),
}


@pytest.mark.parametrize("what", LOCKS)
def test_locks_exclude(guest, what):
    """Taking twice is a deadlock, giving back what is free a bug; between them all is well."""
    take, give, try_ = LOCKS[what]
    with guest.memory(64) as lock:
        for _ in range(2):
            with guest.fails(FaultKind.PANIC, "unlock", what, hex(lock)):
                guest(give, lock)
            guest(take, lock)
            with guest.fails(FaultKind.PANIC, "deadlock", what, hex(lock)):
                guest(take, lock)
            if try_:
                assert guest(try_, lock, returns="int") == 0
            guest(give, lock)
            assert guest.machine.read(lock, 64) == bytes(64)
        if try_:
            assert guest(try_, lock, returns="int") == 1
            guest(give, lock)


@pytest.mark.parametrize(
    ("take", "give", "exclusive"),
    [
        ("down_read", "up_read", "down_write"),
        ("_raw_read_lock", "_raw_read_unlock", "_raw_write_lock"),
    ],
)
def test_readers_share(guest, take, give, exclusive):
    """Two readers may hold what no writer may take beside them."""
    with guest.memory(64) as lock:
        guest(take, lock)
        guest(take, lock)
        with guest.fails(FaultKind.PANIC, "deadlock"):
            guest(exclusive, lock)
        guest(give, lock)
        guest(give, lock)
        with guest.fails(FaultKind.PANIC, "unlock"):
            guest(give, lock)
        guest(exclusive, lock)
        with guest.fails(FaultKind.PANIC, "deadlock"):
            guest(take, lock)


def test_spinlock_words_agree_with_inlined_fast_paths(guest):
    """A queued lock taken inline is held; a ticket lock given back inline is free."""
    with guest.memory(4) as lock:
        guest.machine.write(lock, struct.pack("<I", 1))  # cmpxchg 0 -> 1 of a queued lock
        assert guest("_raw_spin_trylock", lock, returns="int") == 0
        guest("_raw_spin_unlock", lock)
        assert guest.word(lock, 4) == 0
        for turn in range(3):
            guest("_raw_spin_lock", lock)
            owner, following = struct.unpack("<HH", guest.machine.read(lock, 4))
            assert (owner, following) == (turn, turn + 1)
            guest.machine.write(lock, struct.pack("<H", owner + 1))  # a ticket lock's unlock


def test_mutex_init_makes_an_empty_list(guest):
    """The waiters' list is empty, which is a list that points at itself."""
    with guest.memory(b"\xff" * 32) as lock:
        guest("__mutex_init", lock, "name", 0)
        assert struct.unpack("<4Q", guest.machine.read(lock, 32)) == (0, 0, lock + 16, lock + 16)
        assert guest("mutex_is_locked", lock, returns="bool") == 0
        guest("mutex_lock", lock)
        assert guest("mutex_is_locked", lock, returns="bool") == 1


def test_semaphore_counts(guest):
    """Each down takes from the count until nothing is left."""
    with guest.memory(24) as sem:
        guest.machine.write(sem + 4, struct.pack("<I", 1))
        guest("down", sem)
        assert guest("down_trylock", sem, returns="int") == 1
        with guest.fails(FaultKind.PANIC, "deadlock"):
            guest("down", sem)
        guest("up", sem)
        assert guest("down_trylock", sem, returns="int") == 0


def test_rcu_callbacks_wait_for_readers(guest):
    """A callback runs once, after a grace period, never while a reader reads."""
    ran = []
    func = guest.callback("api_rcu", ran.append, "void api_rcu(void *head)")
    with guest.memory(16) as head:
        guest("__rcu_read_lock")
        guest("call_rcu", head, func)
        with guest.fails(FaultKind.PANIC, "deadlock", "rcu_read_lock"):
            guest("synchronize_rcu")
        assert ran == []
        guest("__rcu_read_unlock")
        guest("synchronize_rcu")
        guest("rcu_barrier")
        assert ran == [head]
    block = guest("__kmalloc_noprof", 32, GFP_KERNEL)
    guest("__rcu_read_lock")
    guest("kvfree_call_rcu", block, block)
    assert guest("ksize", block)
    guest("__rcu_read_unlock")
    assert guest("ksize", block) == 0
    with guest.fails(FaultKind.PANIC, "rcu_read_unlock"):
        guest("__rcu_read_unlock")


def test_the_stack_protector_has_its_own_fault(guest):
    """__stack_chk_fail says what happened and who called it."""
    with guest.fails(FaultKind.STACK_PROTECTOR, "canary"):
        guest("__stack_chk_fail")


# Lists, sorting, trees -----------------------------------------------------------------------


def compare_u32(guest):
    """Return the address of a guest function that compares two u32 by value."""

    def compare(one, two):
        a, b = guest.word(one, 4), guest.word(two, 4)
        return (a > b) - (a < b)

    return guest.callback("api_cmp", compare, "int api_cmp(const void *a, const void *b)")


@EACH
@FEW
@given(values=st.lists(st.integers(0, 50), max_size=20), sought=st.integers(0, 50))
def test_sort_and_bsearch(arch, values, sought):
    """Sorting orders as sorted does; bsearch finds what is there and nothing else."""
    g = guest_of(arch)
    compare = compare_u32(g)
    with g.memory(struct.pack(f"<{len(values)}I", *values)) as base:
        g("sort", base, len(values), 4, compare, 0)
        got = struct.unpack(f"<{len(values)}I", g.machine.read(base, 4 * len(values)))
        assert list(got) == sorted(values)
        at = g("bsearch", struct.pack("<I", sought), base, len(values), 4, compare)
        assert (got[(at - base) // 4] == sought) if at else (sought not in values)


def test_sort_uses_the_callers_swap(guest):
    """A swap function moves every element that moves."""
    values, swaps = [3, 1, 2, 0], []

    def swap(one, two, size):
        a, b = guest.machine.read(one, size), guest.machine.read(two, size)
        guest.machine.write(one, b)
        guest.machine.write(two, a)
        swaps.append(size)

    swapper = guest.callback("api_swap", swap, "void api_swap(void *a, void *b, int size)")
    with guest.memory(struct.pack("<4I", *values)) as base:
        guest("sort", base, 4, 4, compare_u32(guest), swapper)
        assert struct.unpack("<4I", guest.machine.read(base, 16)) == (0, 1, 2, 3)
    assert swaps
    assert set(swaps) == {4}


def ring(guest, head, count):
    """Link `count` nodes of 24 bytes after `head` into a list; return their addresses."""
    nodes = [head + 24 * (n + 1) for n in range(count)]
    around = [head, *nodes]
    for index, node in enumerate(around):
        after, before = around[(index + 1) % len(around)], around[index - 1]
        guest.machine.write(node, struct.pack("<QQ", after, before))
    return nodes


@EACH
@FEW
@given(values=st.lists(st.integers(0, 5), max_size=12))
def test_list_sort_is_stable(arch, values):
    """Equal nodes keep their order, although the comparison only says greater or not."""
    g = guest_of(arch)
    greater = g.callback(
        "api_greater",
        lambda _priv, a, b: g.word(a + NODE) > g.word(b + NODE),
        "int api_greater(void *priv, const void *a, const void *b)",
    )
    with g.memory(24 * (len(values) + 1)) as head:
        nodes = ring(g, head, len(values))
        for node, value in zip(nodes, values, strict=True):
            g.machine.write(node + NODE, struct.pack("<Q", value))
        g("list_sort", 0, head, greater)
        forth, back, at = [], [], head
        while (at := g.word(at)) != head:
            forth.append(at)
        while (at := g.word(at + PREV)) != head:
            back.append(at)
        expected = [node for _, node in sorted(zip(values, nodes, strict=True))]
        assert forth == expected
        assert back == expected[::-1]


def test_list_checks_find_corruption(guest):
    """A sound list passes; a broken link and a node that was deleted stop with the kernel's words."""
    with guest.memory(24 * 4) as head:
        one, two, three = ring(guest, head, 3)
        assert guest("__list_del_entry_valid_or_report", two, returns="bool") == 1
        guest.machine.write(two, struct.pack("<QQ", 0xDEAD000000000100, 0xDEAD000000000122))
        with guest.fails(FaultKind.PANIC, "LIST_POISON1"):
            guest("__list_del_entry_valid_or_report", two)
        with guest.fails(FaultKind.PANIC, "prev->next should be"):
            guest.machine.write(one, struct.pack("<Q", three))
            guest.machine.write(two, struct.pack("<QQ", three, one))
            guest("__list_del_entry_valid_or_report", two)
        with guest.fails(FaultKind.PANIC, "double add"):
            guest.machine.write(head, struct.pack("<QQ", head, head))
            guest("__list_add_valid_or_report", head, head, head)


def rb_check(guest, root):
    """Return the keys in order, having checked parents, colours and black heights."""

    def walk(node, parent, *, red):
        if not node:
            return 1, []
        colour = guest.word(node)
        assert colour & ~3 == parent
        assert not (red and not colour & 1), "a red node has a red child"
        low, left = walk(guest.word(node + LEFT), node, red=not colour & 1)
        high, right = walk(guest.word(node + RIGHT), node, red=not colour & 1)
        assert low == high, "paths differ in black nodes"
        return low + (colour & 1), [*left, guest.word(node + KEY), *right]

    return walk(guest.word(root), 0, red=True)[1]


def rb_insert(guest, root, node, key):
    """Link a node where its key belongs, then balance."""
    parent, link = 0, root
    while at := guest.word(link):
        parent, link = at, at + (LEFT if key < guest.word(at + KEY) else RIGHT)
    guest.machine.write(node, struct.pack("<QQQQ", parent, 0, 0, key))
    guest.machine.write(link, node.to_bytes(8, "little"))
    guest("rb_insert_color", node, root)


@EACH
@settings(max_examples=15, deadline=None)
@given(keys=st.lists(st.integers(0, 1000), unique=True, max_size=20), data=st.data())
def test_trees_stay_balanced(arch, keys, data):
    """After every insertion and removal the rules hold; walking gives the keys in order."""
    g = guest_of(arch)
    with g.memory(8 + 32 * len(keys)) as root:
        nodes = {key: root + 8 + 32 * index for index, key in enumerate(keys)}
        for count, key in enumerate(keys, 1):
            rb_insert(g, root, nodes[key], key)
            assert rb_check(g, root) == sorted(keys[:count])
        walked, node = [], g("rb_first", root)
        while node:
            walked.append(g.word(node + KEY))
            node = g("rb_next", node)
        assert walked == sorted(keys)
        if keys:
            last = g("rb_last", root)
            assert g.word(last + KEY) == max(keys)
            before = g("rb_prev", last)
            assert (g.word(before + KEY) if before else None) == (sorted(keys)[-2:-1] or [None])[0]
        left = set(keys)
        for key in data.draw(st.permutations(keys)):
            g("rb_erase", nodes[key], root)
            left.remove(key)
            assert rb_check(g, root) == sorted(left)


# Bits, sums, time ----------------------------------------------------------------------------


@EACH
@FEW
@given(bits=st.integers(1, 200), value=st.integers(0, (1 << 200) - 1), start=st.integers(0, 210))
def test_bitmaps(arch, bits, value, start):
    """Searches and weights see exactly the bits that belong to the bitmap."""
    g = guest_of(arch)
    ones = [n for n in range(bits) if value >> n & 1]
    zeros = [n for n in range(bits) if not value >> n & 1]
    with g.memory(value.to_bytes(32, "little")) as at:
        assert g("_find_first_bit", at, bits) == next(iter(ones), bits)
        assert g("_find_first_zero_bit", at, bits) == next(iter(zeros), bits)
        assert g("_find_next_bit", at, bits, start) == next((n for n in ones if n >= start), bits)
        after = next((n for n in zeros if n >= start), bits)
        assert g("_find_next_zero_bit", at, bits, start) == after
        assert g("_find_last_bit", at, bits) == (ones[-1] if ones else bits)
        assert g("__bitmap_weight", at, bits) == len(ones)
        g("__bitmap_set", at, 3, bits // 2)
        mask = (1 << bits // 2) - 1 << 3
        assert g.word(at, 32) == value | mask
        g("__bitmap_clear", at, 3, bits // 2)
        assert g.word(at, 32) == value & ~mask
    assert g("__sw_hweight32", value & 0xFFFFFFFF) == (value & 0xFFFFFFFF).bit_count()


@EACH
@FEW
@given(data=st.binary(max_size=60), seed=st.integers(0, 0xFFFFFFFF))
def test_crc32_continues(arch, data, seed):
    """crc32_le is zlib's without the inversions, and goes on where it stopped."""
    g = guest_of(arch)
    expected = zlib.crc32(data, seed ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    assert g("crc32_le", seed, data + b"\0", len(data), returns="u32") == expected
    half = g("crc32_le", seed, data + b"\0", len(data) // 2, returns="u32")
    rest = data[len(data) // 2 :]
    assert g("crc32_le", half, rest + b"\0", len(rest), returns="u32") == expected


@pytest.mark.parametrize(("name", "check"), [("__crc32c_le", 0x1CF96D7C), ("crc32_be", 0x0376E6E7)])
def test_crc_check_values(guest, name, check):
    """The published check values of CRC-32C (inverted: 0xe3069283) and CRC-32/MPEG-2."""
    assert guest(name, 0xFFFFFFFF, "123456789", 9, returns="u32") == check


def test_chacha_block(guest):
    """RFC 8439, 2.3.2; HChaCha20 of draft-irtf-cfrg-xchacha, 2.2.1."""
    key = bytes(range(32))
    constants = b"expand 32-byte k"
    nonce = bytes.fromhex("000000090000004a00000000")
    with guest.memory(constants + key + struct.pack("<I", 1) + nonce) as state:
        stream = Out(64)
        guest("chacha_block_generic", state, stream, 20)
        assert bytes(stream).hex() == (
            "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
            "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
        )
        assert guest.word(state + len(constants + key), 4) == 2
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    out = Out(32)
    guest("hchacha_block_generic", constants + key + nonce, out, 20)
    assert bytes(out).hex() == "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"


def test_time_passes_when_it_is_looked_at(guest):
    """Readings grow; a sleep takes what it says, in nanoseconds and in jiffies."""
    before, ticks = guest("ktime_get"), guest.word(guest.symbol("jiffies"))
    assert guest("ktime_get") > before
    guest("msleep", 400)
    assert 400_000_000 < guest("ktime_get") - before < 401_000_000
    assert guest.word(guest.symbol("jiffies")) - ticks == 100  # HZ is 250
    assert guest("__msecs_to_jiffies", 5) == 2
    assert guest("jiffies_to_msecs", 3, returns="unsigned int") == 12


def test_random_bytes_repeat_from_boot(arch):
    """Two machines draw the same bytes, and not the same bytes twice."""
    drawn = []
    for _ in range(2):
        g, out = Guest(arch), Out(16)
        g("get_random_bytes", out, 16)
        drawn.append((bytes(out), g("get_random_u32", returns="u32")))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


# Parameters ----------------------------------------------------------------------------------


class Param:
    """A struct kernel_param in guest memory, set and shown through its operations."""

    def __init__(self, guest, ops, arg, name=b"knob"):
        self.guest = guest
        self.ops = guest.symbol(ops)
        self.name = guest.machine.alloc(name + b"\0")
        row = struct.pack("<QQQHbBxxxxQ", self.name, 0, self.ops, 0o644, -1, 0, arg)
        self.address = guest.machine.alloc(row)

    def set(self, text):
        """Return the error of setting it; None: without a value."""
        value = 0 if text is None else text
        call = self.guest.machine.call
        return call(
            view(self.guest.kernel, "kernel_param_ops", self.ops).number("set"),
            value,
            self.address,
            returns="int",
        )

    def get(self):
        """Return what its file in sysfs shows."""
        buffer = Out(4096)
        call = self.guest.machine.call
        size = call(
            view(self.guest.kernel, "kernel_param_ops", self.ops).number("get"),
            buffer,
            self.address,
            returns="int",
        )
        return bytes(buffer)[:size].decode()


@pytest.mark.parametrize(
    ("kind", "text", "shown"),
    [
        ("byte", "255", "255\n"),
        ("byte", "256", errno.ERANGE),
        ("short", "-32768", "-32768\n"),
        ("ushort", "0xffff", "65535\n"),
        ("int", "-5", "-5\n"),
        ("int", "2147483648", errno.ERANGE),
        ("int", "five", errno.EINVAL),
        ("uint", "4294967295", "4294967295\n"),
        ("long", "-1", "-1\n"),
        ("ulong", "0x8000000000000000", "9223372036854775808\n"),
        ("ullong", "1\n", "1\n"),
        ("hexint", "31", "0x00001f\n"),
        ("bool", "on", "Y\n"),
        ("bool", None, "Y\n"),
        ("bool", "maybe", errno.EINVAL),
        ("bool_enable_only", "y", "Y\n"),
        ("invbool", "y", "N\n"),
        ("invbool", "n", "Y\n"),
        ("bint", "y", "1\n"),
    ],
)
def test_parameter_types(guest, kind, text, shown):
    """Each type takes what its range holds and shows it as sysfs does."""
    with guest.memory(8) as variable:
        param = Param(guest, f"param_ops_{kind}", variable)
        if isinstance(shown, int):
            assert param.set(text) == -shown
            assert guest.word(variable) == 0
        else:
            assert param.set(text) == 0
            if kind != "invbool":
                assert param.get() == shown
            else:
                assert guest.word(variable, 1) == (shown == "Y\n")
                assert param.get() == ("Y\n" if shown == "N\n" else "N\n")


def test_a_switch_that_only_goes_on(guest):
    """bool_enable_only refuses to go back."""
    with guest.memory(8) as variable:
        param = Param(guest, "param_ops_bool_enable_only", variable)
        assert [param.set(text) for text in "n1n"] == [0, 0, -errno.EROFS]
        assert guest.word(variable, 1) == 1


def test_string_parameters(guest):
    """A charp keeps a copy of its own and frees the one before; string fills a buffer or refuses."""
    default = guest.machine.alloc(b"default\0")
    with guest.memory(default.to_bytes(8, "little"), 8, 16) as (pointer, buffer, kps):
        param = Param(guest, "param_ops_charp", pointer)
        assert param.get() == "default\n"
        assert param.set("one") == 0
        live = guest.kernel.heap.live().keys()
        assert default in live
        assert param.set("two") == 0
        assert len(guest.kernel.heap.live()) == len(live)
        assert param.get() == "two\n"
        assert param.set("x" * 1025) == -errno.ENOSPC
        guest.machine.write(kps, struct.pack("<IxxxxQ", 4, buffer))
        fixed = Param(guest, "param_ops_string", kps)
        assert fixed.set("abc") == 0
        assert fixed.get() == "abc\n"
        assert fixed.set("abcd") == -errno.ENOSPC


def test_array_parameters(guest):
    """An array takes as many elements as it has room for, and counts them."""
    with guest.memory(16, 4, 32) as (elements, number, array):
        ops = guest.symbol("param_ops_int")
        guest.machine.write(array, struct.pack("<IIQQQ", 3, 4, number, ops, elements))
        param = Param(guest, "param_array_ops", array)
        assert param.set("1,-2,0x10") == 0
        assert struct.unpack("<4i", guest.machine.read(elements, 16)) == (1, -2, 16, 0)
        assert guest.word(number, 4) == 3
        assert param.get() == "1,-2,16\n"
        assert param.set("7") == 0
        assert param.get() == "7\n"
        assert param.set("1,2,3,4") == -errno.EINVAL
        assert guest.machine.log[-1].text == "knob: can only take 3 arguments"
        assert param.set("1,x") == -errno.EINVAL
        assert param.set(None) == -errno.EINVAL


def test_the_parameter_table_can_be_read(guest):
    """Every row of a __param section becomes a Parameter."""
    with guest.memory(b"alpha", b"beta") as (alpha, beta):
        rows = struct.pack("<QQQHbBxxxxQ", alpha, 0, 0x10, 0o644, -1, 1, 0x20)
        rows += struct.pack("<QQQHbBxxxxQ", beta, 0, 0x30, 0, 2, 0, 0x40)
        with guest.memory(rows) as table:
            one, two = parameters(guest.machine.memory, table, len(rows))
    assert (one.name, one.address, one.ops, one.arg) == ("alpha", table, 0x10, 0x20)
    assert (one.perm, one.level, one.flags) == (0o644, -1, 1)
    assert (two.name, two.address, two.level) == ("beta", table + 40, 2)


# The table -----------------------------------------------------------------------------------


def test_every_variable_can_be_made(arch):
    """Every declared variable gets an address and exactly as many bytes as it declares."""
    kernel = Machine(arch).kernel
    for name, variable in DATA.items():
        address = kernel.address(name)
        if variable.percpu:
            address = kernel.percpu.address(address)
        assert len(kernel.memory.read(address, variable.size)) == variable.size
        if variable.fill is not None:
            assert len(variable.fill(kernel)) <= variable.size, name


def test_no_symbol_is_both(arch):
    """A name is a function or a variable; entries name no architecture's own code."""
    assert not FUNCTIONS.keys() & DATA.keys()
    assert not FUNCTIONS.keys() & arch.runs.emulation.code.keys()
