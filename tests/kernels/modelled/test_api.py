# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's functions as a table, and those that print, count and measure."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.faults import FaultKind
from kernels.modelled.table import DATA, FUNCTIONS
from kernels.prototypes import parse
from machine.arguments import Out
from machine.face import Machine
from tests.archs.facts import facts
from tests.support.guest import EACH, FEW, GFP_KERNEL, Guest, guest_of

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
    with guest.memory(guest.kernel.layouts.size_of("ratelimit_state")) as rs:
        for member, value in (("interval", 250), ("burst", 2)):
            at = guest.kernel.layouts.offset_of("ratelimit_state", member)
            guest.kernel.store(rs + at, value, 4)
        passed = [guest("___ratelimit", rs, "f", returns="int") for _ in range(5)]
        assert passed == [1, 1, 0, 0, 0]
        guest("msleep", 2000)
        assert guest("___ratelimit", rs, "f", returns="int") == 1
        assert guest.machine.log[-1].text == "f: 3 callbacks suppressed"


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


# The table -----------------------------------------------------------------------------------


# Variables of structures that only the kernels of some architectures have.
OTHERS = {"pcpu_hot", "const_pcpu_hot", "boot_cpu_data", "kernel_map"}


def test_every_variable_can_be_made(arch):
    """Every declared variable gets an address and exactly as many bytes as it declares."""
    kernel = Machine(arch).kernel
    for name, variable in DATA.items():
        address = kernel.address(name)
        if not kernel.knows(name):
            assert name in {*OTHERS, *facts(arch).load.lacks}
            continue
        if variable.percpu:
            address = kernel.percpu.address(address)
        size = variable.size if isinstance(variable.size, int) else variable.size(kernel)
        assert len(kernel.memory.read(address, size)) == size
        if variable.fill is not None:
            assert len(variable.fill(kernel)) <= size, name


def test_no_symbol_is_both(arch):
    """A name is a function or a variable; entries name no architecture's own code."""
    assert not FUNCTIONS.keys() & DATA.keys()
    assert not FUNCTIONS.keys() & arch.runs.emulation.code.keys()


def test_every_declaration_is_one():
    """What is parsed at the first call only has a parser's name, and types that it knows."""
    assert {name: parse(entry.declaration).name for name, entry in FUNCTIONS.items()} == {
        name: name for name in FUNCTIONS
    }
