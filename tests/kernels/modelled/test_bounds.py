# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host spends for a guest is bounded, whatever sizes, names and counts the guest chose."""

from __future__ import annotations

import binascii
import random
import struct
import subprocess
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from emulator.faults import Fault, FaultKind
from kernels.modelled.api.xxhash import xxh64
from kernels.modelled.bounds import PIECE
from kernels.modelled.costs import LOOK
from kernels.modelled.structs import view
from kernels.modelled.table import FUNCTIONS
from machine.face import Machine
from tests.machine.snippets import snippet

EACH = pytest.mark.parametrize("arch", archs.ALL, ids=lambda arch: arch.name)
MIB = 1 << 20
ERR_PTR = (1 << 64) - 22


class Guest:
    """A machine whose kernel functions are called through its CPU."""

    def __init__(self, arch, **options):
        self.machine = Machine(arch, **options)
        self.kernel = self.machine.kernel

    def __call__(self, name, *args, returns="u64", **limits):
        """Call a kernel function."""
        return self.machine.call(self.kernel.address(name), *args, returns=returns, **limits)

    def put(self, contents):
        """Return the address of virtually contiguous memory that holds `contents`."""
        at = self.kernel.heap.vmalloc(len(contents))
        self.machine.write(at, contents)
        return at


@pytest.fixture
def guest(arch):
    """Return a guest of each architecture."""
    return Guest(arch)


_GUESTS = {}


def shared(arch):
    """Return a guest that all examples of a property use."""
    return _GUESTS.setdefault(arch.name, Guest(arch))


def limited(action, kind):
    """Return the fault of a limit, which says how to raise it."""
    with pytest.raises(Fault) as caught:
        action()
    assert caught.value.kind is kind, caught.value
    assert caught.value.hint in str(caught.value)
    assert caught.value.hint
    return caught.value


# In pieces: the same as in one ----------------------------------------------------------------------


BITS = 8 * PIECE * 2 + 4321  # several pieces, and no whole words


@EACH
@settings(max_examples=12, deadline=None)
@given(
    ones=st.sets(st.integers(0, BITS - 1), max_size=6),
    inverse=st.booleans(),
    start=st.integers(0, BITS + 70),
    shift=st.sampled_from([0, 8, 8 * 511]),
)
def test_bitmaps(arch, ones, inverse, start, shift):
    """Every search and count over a large bitmap is what it is over a list of bits."""
    g = shared(arch)
    value = sum(1 << n for n in ones)
    value = value ^ (1 << BITS) - 1 if inverse else value
    stray = 1 << BITS  # a bit of the last word that is not the bitmap's
    at = g.kernel.heap.vmalloc(BITS // 8 + shift + 16) + shift
    g.machine.write(at, (value | stray).to_bytes(BITS // 8 + 9, "little"))
    text = f"{value:0{BITS}b}"[::-1]

    def first(bit, begin=0):
        found = text.find(bit, begin) if begin < BITS else -1
        return BITS if found < 0 else found

    last = text.rfind("1")
    assert g("_find_first_bit", at, BITS) == first("1")
    assert g("_find_first_zero_bit", at, BITS) == first("0")
    assert g("_find_next_bit", at, BITS, start) == first("1", start)
    assert g("_find_next_zero_bit", at, BITS, start) == first("0", start)
    assert g("_find_last_bit", at, BITS) == (BITS if last < 0 else last)
    assert g("__bitmap_weight", at, BITS, returns="unsigned int") == text.count("1")
    g.kernel.heap.free(at - shift)


@EACH
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99),
    start=st.integers(0, 200),
    count=st.integers(-1, 200) | st.integers(8 * PIECE, 8 * PIECE + 200),
    on=st.booleans(),
)
def test_bits_are_set_and_cleared(arch, seed, start, count, on):
    """A range of bits changes and no other."""
    g = shared(arch)
    size = (start + max(count, 0)) // 64 * 8 + 16
    before = random.Random(seed).randbytes(size)
    at = g.put(before)
    g("__bitmap_set" if on else "__bitmap_clear", at, start, count)
    mask = (1 << max(count, 0)) - 1 << start
    value = int.from_bytes(before, "little")
    expected = value | mask if on else value & ~mask
    assert int.from_bytes(g.machine.read(at, size), "little") == expected
    g.kernel.heap.free(at)


@pytest.mark.parametrize("distance", [1, 4096, PIECE - 3, PIECE, 3 * PIECE])
@pytest.mark.parametrize("name", ["memcpy", "memmove"])
def test_large_copies_may_overlap(guest, name, distance):
    """Memory moves up and down over itself, however many pieces that takes."""
    size = 2 * PIECE + 100
    before = random.Random(1).randbytes(size + distance)
    for src, dest in ((0, distance), (distance, 0)):
        at = guest.put(before)
        assert guest(name, at + dest, at + src, size) == at + dest
        expected = bytearray(before)
        expected[dest : dest + size] = before[src : src + size]
        assert guest.machine.read(at, len(before)) == expected


def test_large_comparisons(guest):
    """The first byte that differs decides, in whichever piece it is."""
    size = 3 * PIECE
    one = bytearray(random.Random(2).randbytes(size))
    two = bytearray(one)
    a, b = guest.put(one), guest.put(two)
    assert guest("memcmp", a, b, size, returns="int") == 0
    for at in (size - 1, 2 * PIECE, PIECE - 1):
        guest.machine.write(b + at, bytes([one[at] ^ 0xFF]))
        assert guest("memcmp", a, b, size, returns="int") == one[at] - (one[at] ^ 0xFF)
        assert guest("memcmp", a, b, at, returns="int") == 0
    assert guest("memchr_inv", a, one[0], size) == a + next(
        n for n, byte in enumerate(one) if byte != one[0]
    )


def test_large_sums(guest):
    """Checksums and weights of several pieces, at odd addresses, are those of the whole."""
    size = 2 * PIECE + 77
    data = random.Random(3).randbytes(size + 1)
    for skip in (0, 1):
        at, piece = guest.put(data) + skip, data[skip : skip + size]
        assert guest("memweight", at, size) == sum(byte.bit_count() for byte in piece)
        assert (
            guest("crc32_le", 0xFFFFFFFF, at, size, returns="u32") == zlib.crc32(piece) ^ 0xFFFFFFFF
        )
        assert guest("xxh64", at, size, 7) == xxh64(piece, 7)
        state = guest.put(bytes(80))
        guest("xxh64_reset", state, 7)
        for start, count in ((0, 5), (5, PIECE + 1), (PIECE + 6, size - PIECE - 6)):
            guest("xxh64_update", state, at + start, count)
        assert guest("xxh64_digest", state) == xxh64(piece, 7)
        words = struct.unpack(f"<{(size + 1) // 2}H", piece + b"\0" * (size % 2))
        total = sum(words)
        assert guest("csum_partial", at, size, 0) % 0xFFFF == total % 0xFFFF


def test_large_hex(guest):
    """Hex goes both ways over several pieces, and ends at what is no digit."""
    data = random.Random(4).randbytes(PIECE + 300)
    at, out = guest.put(data), guest.put(bytes(2 * len(data)))
    assert guest("bin2hex", out, at, len(data)) == out + 2 * len(data)
    assert guest.machine.read(out, 2 * len(data)) == binascii.hexlify(data)
    back = guest.put(bytes(len(data)))
    assert guest("hex2bin", back, out, len(data), returns="int") == 0
    assert guest.machine.read(back, len(data)) == data
    guest.machine.write(out + 2 * PIECE + 1, b"x")
    assert guest("hex2bin", back, out, len(data), returns="int") == -22


@pytest.mark.parametrize("room", [700, 70_000, 1 << 22])
def test_deflate_and_inflate_by_pieces(guest, room):
    """Input of any length goes through a small buffer, and comes out as it was."""
    data = b"".join(b"%d " % n for n in range(100_000)) + random.Random(5).randbytes(100_000)
    stream, source = guest.put(bytes(128)), guest.put(data)
    out = guest.put(bytes(room))

    z = view(guest.kernel, "z_stream", stream)

    def through(name, source, size, finish):
        """Return all output of a stream that gets its input at once, and its last result."""
        found = b""
        guest.machine.write(stream, struct.pack("<QQQQQ", source, size, 0, out, room))
        for _ in range(10 + 2 * len(data) // room):
            z.put("next_out", out)
            z.put("avail_out", room)
            result = guest(name, stream, finish, returns="int")
            left = z.number("avail_out")
            found += guest.machine.read(out, room - left)
            if result == 1:
                break
        assert z.number("avail_in") == 0
        return found, result

    assert guest("zlib_deflateInit2", stream, 6, 8, 15, 8, 0, returns="int") == 0
    packed, result = through("zlib_deflate", source, len(data), 5)
    assert result == 1
    assert zlib.decompress(packed) == data
    assert guest("zlib_inflateInit2", stream, 15, returns="int") == 0
    plain, result = through("zlib_inflate", guest.put(packed), len(packed), 2)
    assert (plain == data, result) == (True, 1)
    assert z.number("total_out") == len(data)


# Names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "refused"), [("proc_mkdir", 0), ("debugfs_create_dir", (1 << 64) - 36)]
)
def test_names_are_as_long_as_the_kernels(guest, function, refused):
    """A name has at most 255 bytes: NULL from proc, ENAMETOOLONG from debugfs beyond."""
    before = len(guest.machine.registry)
    assert guest(function, guest.put(b"n" * 256 + b"\0"), 0) == refused
    assert guest(function, guest.put(b"n" * (1 << 20) + b"\0"), 0) == refused
    assert len(guest.machine.registry) == before
    parent = guest(function, guest.put(b"n" * 255 + b"\0"), 0)
    assert guest(function, guest.put(b"m" * 255 + b"\0"), parent) not in (0, refused)
    assert len(guest.machine.registry) == before + 2


def test_a_tree_goes_at_once(guest):
    """An entry goes with all below it, however deep, in time that grows with their number."""
    name, made = guest.put(b"d\0"), [0]
    for _ in range(3000):
        made += [guest("proc_mkdir", name, made[-1])]
    del made[0]
    other = guest("proc_mkdir", guest.put(b"other\0"), 0)
    guest("proc_remove", made[0])
    assert [record.address for record in guest.machine.registry] == [other]
    assert not set(made) & set(guest.kernel.heap.live())


# What is kept for the guest is the guest's ---------------------------------------------------------------


def _proc(guest):
    name = guest.machine.alloc(b"n" * 200 + b"\0")
    return "proc_mkdir", (name, 0)


def _rcu(guest):
    guest("__rcu_read_lock")
    return "call_rcu", (guest.machine.alloc(16), guest.kernel.address("kfree"))


def _device_action(guest):
    return "__devm_add_action", (guest.machine.alloc(64), guest.kernel.address("kfree"), 0)


@pytest.mark.parametrize("prepare", [_proc, _rcu, _device_action], ids=["proc", "rcu", "devres"])
def test_what_is_remembered_is_paid(arch, prepare):
    """Entries that the host keeps count as the guest's memory, and end at its limit."""
    guest = Guest(arch, heap_limit=MIB)
    name, args = prepare(guest)
    fault = limited(lambda: [guest(name, *args) for _ in range(3000)], FaultKind.MEMORY_LIMIT)
    assert "heap_limit" in fault.hint
    assert guest("__kmalloc_noprof", 4096, 0) == 0  # nothing is left for objects


def test_timers_at_every_address(arch):
    """Timers that overlap in memory are bounded like memory of their own."""
    guest = Guest(arch, heap_limit=MIB)
    at = guest.machine.alloc(8192)
    note = guest.kernel.address("kfree")

    def arm(timer):
        guest.machine.write(timer, bytes(24) + note.to_bytes(8, "little"))
        guest("mod_timer", timer, 1 << 62)

    limited(lambda: [arm(at + 2 * n) for n in range(3000)], FaultKind.MEMORY_LIMIT)


def test_what_goes_is_given_back(arch):
    """A guest may register and remove for ever."""
    guest = Guest(arch, heap_limit=MIB)
    name = guest.machine.alloc(b"n" * 200 + b"\0")
    for _ in range(3000):
        guest("proc_remove", guest("proc_mkdir", name, 0))
    assert guest.kernel.heap.host < 4096  # it is counted when the next one is registered


def test_a_function_holds_a_part_of_the_limit(arch):
    """A string of many MiB is counted, but not built where it would be more than may be held."""
    guest = Guest(arch, heap_limit=64 * MIB)
    at = guest.put(b"s" * (20 * MIB) + b"\0")
    assert guest("strlen", at) == 20 * MIB
    fault = limited(lambda: guest("strrchr", at, 0x74), FaultKind.MEMORY_LIMIT)
    assert "in strrchr()" in fault.reason
    assert "heap_limit" in fault.hint
    assert guest("strlen", at + 20 * MIB - 5) == 5


# Time in kernel functions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    "memset memcpy memcmp memweight crc32_be __crc32c_le xxh64 csum_partial memchr_inv"
    " __bitmap_weight bin2hex memset64".split(),
)
def test_the_kernels_work_is_paid(arch, name):
    """What a function does over many MiB costs instructions, so that both limits hold within."""
    guest = Guest(arch, memory=512 * MIB)
    at = guest.machine.memory.direct_map.start + 64 * MIB  # all of it is there
    size = 150 * MIB
    args = {
        "memset": (at, 0, size),
        "memset64": (at, 0, size // 8),
        "memcpy": (at + size, at, size),
        "memcmp": (at, at + size, size),
        "memchr_inv": (at, 0, size),
        "__bitmap_weight": (at, 8 * size),
        "bin2hex": (at + size, at, size),
        "memweight": (at, size),
        "csum_partial": (at, size, 0),
        "xxh64": (at, size, 0),
    }.get(name, (0, at, size))
    fault = limited(lambda: guest(name, *args, instructions=100), FaultKind.INSTRUCTION_LIMIT)
    assert fault.reason == f"100 instructions, in {name}()"


MEASURE = """
import resource, sys
from emulator.faults import Fault
from machine.face import Machine

MIB = 1 << 20
machine = Machine(sys.argv[1], memory=384 * MIB, heap_limit=64 * MIB)
start = machine.memory.direct_map.start + 64 * MIB
size = 120 * MIB
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, args in eval(sys.argv[2]):
    try:
        machine.call(machine.kernel.address(name), *args, seconds=20.0)
    except Fault as fault:
        print(name, fault, file=sys.stderr)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_lines_are_paid(guest):
    """One message of a million lines ends within, at the limit of the call."""
    text = guest.put(b"\n" * (MIB - 1) + b"\0")
    fault = limited(lambda: guest("_printk", text, instructions=1000), FaultKind.INSTRUCTION_LIMIT)
    assert "in _printk()" in str(fault)
    assert guest.machine.log.total < 1000 * LOOK + LOOK


def test_memory_of_the_host(arch):
    """Reading hundreds of MiB that nobody touched costs the host a few."""
    calls = """[
        ("_find_first_bit", (start, 8 * size)), ("_find_last_bit", (start, 8 * size)),
        ("_find_next_zero_bit", (start, 8 * size, 8 * size - 1)), ("__bitmap_weight", (start, size)),
        ("memcmp", (start, start + size, size)), ("memchr_inv", (start, 0, size)),
        ("memweight", (start, size)), ("crc32_le", (0, start, size)),
        ("strlen", (start,)), ("__memcpy", (start, start + 1, 0)),
        ("check_zeroed_user", (start, size)), ("__check_object_size", (start, size, 0)),
        ("kmemdup_noprof", (start, size, 0)), ("__crypto_memneq", (start, start + 1, size)),
        ("LZ4_decompress_safe", (start, start, size, size)),
    ]"""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, arch.name, calls],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 64, done.stderr


# Addresses have 64 bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [ERR_PTR, (1 << 64) - 1, 0, 1 << 63], ids=hex)
def test_every_function_with_the_same_wild_argument(arch, value):
    """Whatever is computed of an address stays an address: a fault, and no error of Python's."""
    guest = Guest(arch, memory=64 * MIB, unknown="zero")
    for name, function in FUNCTIONS.items():
        args = [value] * len(function.prototype.params)
        try:
            guest(name, *args, instructions=5000, seconds=5.0)
        except Fault as fault:
            if fault.__cause__ is not None and not isinstance(fault.__cause__, Fault):
                pytest.fail(f"{name}: {fault}")


def test_a_register_of_a_platform_device_at_an_error(guest):
    """The list head of a device at ERR_PTR is beyond the last address: a write fault."""
    with pytest.raises(Fault) as caught:
        guest("platform_device_register", ERR_PTR)
    assert caught.value.kind in (FaultKind.READ, FaultKind.WRITE)
    assert caught.value.address < 1 << 64


def test_limits_of_deferred_faults(guest):
    """A fault in what nobody called is in the log and in `oopses` once."""
    timer = guest.machine.alloc(64)
    guest("init_timer_key", timer, 0x10, 0, 0, 0)
    jiffies = guest.kernel.word(guest.kernel.address("jiffies"))
    guest("mod_timer", timer, jiffies)
    guest.machine.idle()
    (oops,) = guest.kernel.oopses
    assert [line.text for line in guest.machine.log] == [f"timer: {oops}"]
    guest.machine.idle()
    assert len(guest.kernel.oopses) == len(guest.machine.log) == 1
    assert guest.machine.call(snippet(guest.machine, "one")) == 1


def test_memory_that_a_guest_gets_is_paid(guest):
    """Filling hundreds of MiB ends at the limit, and nothing of them is left behind."""
    free = guest.machine.memory.physical.free_bytes
    fault = limited(
        lambda: guest("vmalloc_noprof", 300 * MIB, instructions=100), FaultKind.INSTRUCTION_LIMIT
    )
    assert fault.reason == "100 instructions, in vmalloc_noprof()"
    assert guest.machine.memory.physical.free_bytes == free
    assert guest.kernel.heap.used == 0
    assert guest("vmalloc_noprof", 3 * MIB) != 0
    guest.machine.check()
