# SPDX-License-Identifier: GPL-2.0-or-later
"""Alternatives of one size: code that is moved still goes where it went."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import archs
from archs.environment import Boot
from emulator.disassembly import Disassembler

OLD, NEW = 0xFFFF_8000_0123_4560, 0xFFFF_8000_0120_0010


A64 = archs.arch("arm64")
# Instruction word, where its displacement stands, its unit in bytes, and its width.
BRANCHES = [
    (0x1400_0000, 0, 26),  # b
    (0x9400_0000, 0, 26),  # bl
    (0x5400_0001, 5, 19),  # b.ne
    (0x3400_0003, 5, 19),  # cbz w3
    (0xB500_0003, 5, 19),  # cbnz x3
    (0x3648_0003, 5, 14),  # tbz w3, #9
    (0x3748_0003, 5, 14),  # tbnz w3, #9
]


@given(
    st.lists(st.tuples(st.sampled_from(BRANCHES), st.integers(-0x1000, 0x1000)), max_size=5),
    st.integers(-0x400, 0x400),
)
@example([((0x1400_0000, 0, 26), 1)], 8)  # to the end of the replacement: stays inside
@settings(max_examples=150, deadline=None)
def test_branches_of_moved_code_keep_their_targets(words, apart):
    """A branch out of the replacement reaches the same address; one inside stays as it is."""
    code = b"".join(
        (word | (x & (1 << bits) - 1) << at).to_bytes(4, "little") for (word, at, bits), x in words
    )
    old, new = OLD, OLD + 4 * apart
    moved = archs.arm64.moved(code, old, new)
    for n, (_, x) in enumerate(words):
        before, after = code[4 * n : 4 * n + 4], moved[4 * n : 4 * n + 4]
        if 0 <= 4 * (n + x) <= len(code):
            assert after == before
            continue
        # capstone prints the target of a branch as an absolute number.
        targets = [
            int(Disassembler(A64).one(word, where + 4 * n).split("#")[-1], 16)
            for word, where in ((before, old), (after, new))
        ]
        assert targets[0] == targets[1]


@given(st.integers(0, (1 << 21) - 1), st.integers(0, 30), st.integers(0, 0x3000))
@settings(max_examples=80, deadline=None)
def test_moved_adrp_forms_the_same_page(pages, register, apart):
    """ADRP counts from its own page, so the number changes where the page does."""
    word = 0x9000_0000 | (pages & 3) << 29 | (pages >> 2) << 5 | register
    code = word.to_bytes(4, "little")
    new = NEW + apart // 4 * 4
    moved = archs.arm64.moved(code, NEW, new)
    both = [Disassembler(A64).one(c, at) for c, at in ((code, NEW), (moved, new))]
    assert both[0] == both[1]


RV = archs.arch("riscv64")


@given(st.integers(-(1 << 30), 1 << 30), st.integers(-0x8000, 0x8000))
@settings(max_examples=150, deadline=None)
def test_calls_of_moved_code_keep_their_targets(distance, apart):
    """AUIPC ra and JALR reach the same address from the new place."""
    upper = (distance + 0x800) >> 12
    low = distance - (upper << 12)
    # auipc ra, upper; jalr ra, low(ra)
    call = [(upper & 0xFFFFF) << 12 | 0x97, (low & 0xFFF) << 20 | 0x80E7]
    code = b"".join(word.to_bytes(4, "little") for word in call)
    moved = archs.riscv64.moved(code, OLD, OLD + 2 * apart)
    first, second = (int.from_bytes(moved[at : at + 4], "little") for at in (0, 4))
    sign = (second >> 20 ^ 0x800) - 0x800
    reached = OLD + 2 * apart + ((first >> 12 ^ 0x80000) - 0x80000 << 12) + sign
    assert reached == OLD + distance
    assert (first & 0xFFF, second & 0xFFFFF) == (0x97, call[1] & 0xFFFFF)


@given(st.integers(-(1 << 18), (1 << 18) - 1), st.integers(-0x800, 0x800))
@settings(max_examples=100, deadline=None)
def test_jumps_of_moved_code_keep_their_targets(half, apart):
    """JAL out of the replacement reaches the same address; inside it stays."""
    x = 2 * half
    bits = (x >> 20 & 1) << 31 | (x >> 1 & 0x3FF) << 21 | (x >> 11 & 1) << 20
    word = bits | (x >> 12 & 0xFF) << 12 | 0x6F
    code = word.to_bytes(4, "little") + (0x13).to_bytes(4, "little")
    moved = archs.riscv64.moved(code, OLD, OLD + 2 * apart)
    if 0 <= x < len(code):
        assert moved == code
        return
    shown = Disassembler(RV).one(moved, 0).split()[-1]
    assert int(shown, 16) + 2 * apart == x


def test_a_pair_that_is_no_call_stays():
    """AUIPC of another register is an address, which relocation wrote for the new place."""
    pair = (0x0000_1297).to_bytes(4, "little") + (0x0042_8067).to_bytes(4, "little")
    assert archs.riscv64.moved(pair, OLD, NEW) == pair


def cpuinfo(part: int, variant: int, revision: int, features: str = "fp asimd") -> Boot:
    """Return a boot on an Arm CPU."""
    lines = (
        "processor\t: 0",
        f"Features\t: {features}",
        "CPU implementer\t: 0x41",
        f"CPU variant\t: {variant:#x}",
        f"CPU part\t: {part:#x}",
        f"CPU revision\t: {revision}",
    )
    return Boot(cpuinfo="\n".join(lines) + "\n\n")


@pytest.mark.parametrize(
    ("boot", "capability", "there"),
    [
        # Documentation/arch/arm64/silicon-errata.rst and cpu_errata.c
        (cpuinfo(0xD03, 0, 4), "WORKAROUND_843419", True),
        (cpuinfo(0xD03, 0, 5), "WORKAROUND_843419", False),
        (cpuinfo(0xD08, 0, 3), "WORKAROUND_843419", False),
        (cpuinfo(0xD07, 1, 2), "WORKAROUND_DEVICE_LOAD_ACQUIRE", True),
        (cpuinfo(0xD07, 1, 3), "WORKAROUND_DEVICE_LOAD_ACQUIRE", False),
        (cpuinfo(0xD0B, 4, 1, "fp asimd atomics"), "HAS_LSE_ATOMICS", True),
        (cpuinfo(0xD08, 0, 3), "HAS_LSE_ATOMICS", False),
        (Boot(model="cortex-a53"), "WORKAROUND_843419", True),
        (Boot(model="cortex-a72"), "WORKAROUND_843419", False),
        (Boot(model="cortex-a72"), "HAS_FPSIMD", True),
        (Boot(model="cortex-a76"), "HAS_LSE_ATOMICS", True),
        (
            Boot(console="CPU features: detected: Virtualization Host Extensions"),
            "HAS_FPSIMD",
            False,
        ),
        (
            Boot(console="CPU features: detected: Virtualization Host Extensions"),
            "HAS_VIRT_HOST_EXTN",
            True,
        ),
        (Boot(), "ALWAYS_SYSTEM", True),
    ],
)
def test_capabilities_follow_from_the_cpu(boot, capability, there):
    """arm64 finds a capability by CPU revision or by what cpuinfo lists."""
    environment = A64.environment(boot)
    assert (capability in environment.features) is there


@pytest.mark.parametrize(
    ("boot", "there", "missing"),
    [
        (Boot(cpuinfo="isa\t: rv64imafdc_zicsr_zbb\n"), {"c", "zbb", "zicsr"}, {"h", "zba"}),
        (Boot(cpuinfo="isa\t: rv64imafdcv\n"), {"v", "zve32x"}, {"zbb"}),
        (Boot(model="sifive-u54"), {"i", "m", "a", "f", "d", "c"}, {"zbb", "zve32x"}),
        (Boot(model="rv64"), {"zbb", "h"}, {"svpbmt", "v"}),
        (Boot(model="rv64,v=true,svpbmt=true"), {"svpbmt", "v", "zve32x", "zbb"}, {"svnapot"}),
        (
            Boot(cpuinfo="isa: rv64imafdc\nmvendorid: 0x5b7\nmarchid: 0x0\nmimpid: 0x0\n"),
            {"ERRATA_THEAD_MAE"},
            {"svpbmt"},
        ),
        (
            Boot(cpuinfo="isa: rv64imafdc\nmvendorid: 0x5b7\nmarchid: 0x1\nmimpid: 0x0\n"),
            {"i"},
            {"ERRATA_THEAD_MAE"},
        ),
    ],
)
def test_extensions_follow_from_the_isa_string(boot, there, missing):
    """riscv64 reads extensions off the ISA string, or knows the emulator's model."""
    features = RV.environment(boot).features
    assert there <= features
    assert not missing & features
