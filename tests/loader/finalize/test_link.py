# SPDX-License-Identifier: GPL-2.0-or-later
"""Finalisation through `link`: small arm64 and riscv64 objects with what must become of them.

Instruction encodings are the manuals' (Arm ARM C6.2; RISC-V unprivileged specification, 2 and
16), what stands where the kernel's (arch/arm64/kernel/{alternative,ftrace,module}.c,
arch/riscv/kernel/{alternative,ftrace}.c).
"""

from __future__ import annotations

import struct

import pytest

import archs
from archs.environment import Environment
from emulator.disassembly import Disassembler
from execmem.check.elfwriter import AARCH64, RISCV, A, Rela, Sec, Sym, W, X, write
from loader.elf import parse
from loader.errors import BadModule
from loader.layout import plan
from loader.link import link
from tests.archs.facts import facts
from tests.support.addresses import place

BASE = 0xFFFF_8000_7A00_0000
PATCH_NOPS, OPS, TRACER = 0xFFFF_8000_8001_0000, 0xFFFF_8000_8123_4568, 0xFFFF_8000_8002_CDD8
NOP, ADDI = 0xD503_201F, 0x13


def words(*values: int) -> bytes:
    """Return little-endian words."""
    return struct.pack(f"<{len(values)}I", *values)


def linked(
    machine: int, sections: list[Sec], environment: Environment, **symbols: int
) -> tuple[dict[int, bytes], dict[int, int]]:
    """Return final bytes and addresses by section index; ".text" names the first section."""
    names = [Sym(".text", ".text", bind=0, type=3), *map(Sym, symbols)]
    image = write(machine, sections, names)
    addresses = place(plan(parse(image)), BASE)
    return link(image, addresses, symbols, environment=environment, checks="kernel"), addresses


def alternatives(*entries: tuple[int, int | str, int, int]) -> Sec:
    """Return arm64's table: place, replacement (in .text, or a symbol), capability, length."""
    table, relas = b"", []
    for number, (at, replacement, capability, length) in enumerate(entries):
        code = isinstance(replacement, int)
        table += struct.pack("<iiHBB", 0, 0, capability, length, length if code else 0)
        relas.append(Rela(12 * number, facts("arm64").link.prel32, ".text", at))
        target = (".text", replacement) if code else (replacement, 0)
        relas.append(Rela(12 * number + 4, facts("arm64").link.prel32, *target))
    return Sec(".altinstructions", table, A, relas=relas)


# 0: mov w0, #0 ; 4: b +8 ; 8: ret ; 12: mov w0, #1
CODE = words(0x5280_0000, 0x1400_0002, 0xD65F_03C0, 0x5280_0020)


@pytest.mark.parametrize(
    ("features", "first"), [({"HAS_LSE_ATOMICS"}, 0x5280_0020), (set(), 0x5280_0000)]
)
def test_a_capability_chooses_the_replacement(features, first):
    """Entry with capability 37: the replacement stands there only on a CPU with LSE atomics."""
    sections = [Sec(".text", CODE, A | X, align=4), alternatives((0, 12, 37, 4))]
    result, _ = linked(AARCH64, sections, Environment(features=frozenset(features)))
    assert result[1] == words(first) + CODE[4:]


def test_a_callback_writes_nops():
    """With the flag in bit 15, alt_cb_patch_nops takes the branch away."""
    sections = [
        Sec(".text", CODE, A | X, align=4),
        alternatives((4, "alt_cb_patch_nops", 1 | 1 << 15, 4)),
    ]
    environment = Environment(
        features=frozenset({"ALWAYS_SYSTEM"}), symbols={"alt_cb_patch_nops": PATCH_NOPS}
    )
    result, _ = linked(AARCH64, sections, environment, alt_cb_patch_nops=PATCH_NOPS)
    assert result[1] == CODE[:4] + words(NOP) + CODE[8:]


def test_an_unknown_callback_is_refused():
    """What a function of the kernel writes cannot be guessed."""
    sections = [
        Sec(".text", CODE, A | X, align=4),
        alternatives((4, "magic", 1 | 1 << 15, 4)),
    ]
    environment = Environment(
        features=frozenset({"ALWAYS_SYSTEM"}), symbols={"alt_cb_patch_nops": PATCH_NOPS}
    )
    with pytest.raises(BadModule, match="alt_cb_patch_nops"):
        linked(AARCH64, sections, environment, magic=PATCH_NOPS + 0x100)


def test_a_place_outside_is_refused():
    """A table that names no place of the module is damage."""
    sections = [Sec(".text", CODE, A | X, align=4), alternatives((0x10_0000, 12, 1, 4))]
    with pytest.raises(BadModule, match="outside"):
        linked(AARCH64, sections, Environment(features=frozenset({"ALWAYS_SYSTEM"})))


def test_trampolines_lead_to_the_tracer():
    """Core and init text get an entry that branches to ftrace_caller, wherever that is."""
    sections = [
        Sec(".text", CODE, A | X, align=4),
        *(Sec(name, b"\0", A) for name in (".plt", ".init.plt")),
        *(
            Sec(name, b"\0", A)
            for name in (".text.ftrace_trampoline", ".init.text.ftrace_trampoline")
        ),
    ]
    result, addresses = linked(AARCH64, sections, Environment(symbols={"ftrace_caller": TRACER}))
    for index in (4, 5):
        lines = [
            text
            for _, _, text in Disassembler(archs.arch("arm64")).all(result[index], addresses[index])
        ]
        assert lines == [
            f"adrp x16, #{TRACER & ~0xFFF:#x}",
            f"add x16, x16, #{TRACER & 0xFFF:#x}",
            "br x16",
        ]
    untraced, _ = linked(AARCH64, sections, Environment())
    assert untraced[4] == bytes(12)


def test_traced_functions_of_riscv_get_whole_instructions():
    """Four compressed NOPs become two of four bytes, at sites that the table lists sorted."""
    compressed, full = b"\x01\x00" * 4, words(ADDI, ADDI)
    sections = [
        Sec(".text", compressed + b"\x82\x80" + compressed + b"\x82\x80", A | X, align=2),
        Sec(
            "__patchable_function_entries",
            bytes(16),
            A | W,
            align=8,
            relas=[Rela(0, 2, ".text", 10), Rela(8, 2, ".text", 0)],
        ),
    ]
    result, addresses = linked(RISCV, sections, Environment())
    assert result[1] == (full + b"\x82\x80") * 2
    assert struct.unpack("<2Q", result[2]) == (addresses[1], addresses[1] + 10)


@pytest.mark.parametrize(
    ("features", "wanted"),
    [
        (set(), 0),
        ({"zbb"}, 1),
        ({"ERRATA_THEAD_MAE"}, 2),
        ({"zbb", "ERRATA_THEAD_MAE"}, 2),  # the vendor's entries come last
        ({"b", "v"}, 0),
    ],
)
def test_extension_and_vendor_choose_the_replacement(features, wanted):
    """The immediate of addi: 0 as compiled, 1 for Zbb (number 30), 2 for T-Head's memory attributes."""
    code = [n << 20 | 0x0005_0513 for n in range(3)]
    table, relas = b"", []
    for number, (vendor, patch) in enumerate(((0x5B7, 0), (0, 30))):
        table += struct.pack("<iiHHI", 0, 0, vendor, 4, patch)
        for field, target in ((0, 0), (4, 4 * (2 - number))):
            relas.append(Rela(16 * number + field, facts("riscv64").link.prel32, ".text", target))
    sections = [
        Sec(".text", words(*code), A | X, align=4),
        Sec(".alternative", table, A, relas=relas),
    ]
    result, _ = linked(RISCV, sections, Environment(features=frozenset(features)))
    assert result[1] == words(code[wanted], *code[1:])
