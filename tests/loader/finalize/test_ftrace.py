# SPDX-License-Identifier: GPL-2.0-or-later
"""Room for the function tracer: told by what stands at a site, and never taken from instructions."""

from __future__ import annotations

import struct

import capstone
import pytest

import archs
from archs.environment import Environment
from execmem.check.elfwriter import AARCH64, FUNC, LOCAL, RISCV, X86_64, A, Rela, Sec, Sym, X, write
from loader.elf import parse
from loader.finalize import finalise
from loader.layout import plan
from loader.link import link_view
from tests.archs.facts import facts
from tests.support.addresses import place
from tests.support.finalising import BASE

OPS, CALLER = 0xFFFF_FFFF_8234_5678, 0xFFFF_FFFF_8123_4844
KERNEL = {"ftrace_nop_ops": OPS, "ftrace_caller": CALLER}
NOP = {AARCH64: bytes.fromhex("1f2003d5"), RISCV: bytes.fromhex("13000000")}
C_NOP = bytes.fromhex("0100")
MOV_X9_LR = bytes.fromhex("e9031eaa")
BTI_C, PACIASP = bytes.fromhex("5f2403d5"), bytes.fromhex("3f2303d5")
ADD = bytes.fromhex("0004000b")  # add w0, w0, w0, lsl #1
RV_ADD = bytes.fromhex("3295")  # add a0, a0, a2
LITERAL = struct.pack("<Q", OPS)


def prepared(machine, text, sites, functions, *, relas=(), symbols=()):
    """Return code and table after the tracer's sites were prepared, and what was left undone."""
    records = [Rela(8 * n, facts(machine).link.abs64, "text", at) for n, at in enumerate(sites)]
    sections = [
        Sec(".text", text, A | X, align=16, relas=relas),
        Sec(facts(machine).patch.mcount, bytes(8 * len(sites)), A, align=8, relas=records),
    ]
    names = [Sym(f"f{at:x}", ".text", at, 4, FUNC, LOCAL) for at in functions]
    image = write(machine, sections, [Sym("text", ".text", bind=LOCAL), *names, *symbols])
    view = parse(image)
    layout = plan(view)
    addresses = place(layout, BASE)
    linked = link_view(view, layout, addresses, {s.name: CALLER for s in symbols})
    passes = archs.by_machine(machine).finalise
    others = [step.name for step in passes if step.name != "ftrace"]
    found = finalise(view, layout, addresses, linked, Environment(symbols=KERNEL), without=others)
    code, table = (
        bytes(linked.sections[n])
        for n in (1, next(s.index for s in view.sections if s.name == facts(machine).patch.mcount))
    )
    start = addresses[1]
    return code, [a - start for (a,) in struct.iter_unpack("<Q", table)], found.notes


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("body", [ADD, PACIASP, NOP[AARCH64]])
def test_arm64_two_nops(marked, body):
    """Of two NOPs at the entry the first keeps LR; nothing in front or behind changes."""
    nops = 2 * NOP[AARCH64]
    text = (nops + body + ADD + ADD) * 3
    code, table, notes = prepared(AARCH64, text, [40, 0, 20], [0, 20, 40] if marked else [])
    assert code == (MOV_X9_LR + NOP[AARCH64] + body + ADD + ADD) * 3
    assert table == [0, 20, 40]
    assert not notes


def test_arm64_two_nops_behind_bti():
    """The two NOPs may stand behind a landing pad, where the function begins."""
    text = (BTI_C + 2 * NOP[AARCH64] + ADD) * 2
    code, _, notes = prepared(AARCH64, text, [4, 20], [0, 16])
    assert code == (BTI_C + MOV_X9_LR + NOP[AARCH64] + ADD) * 2
    assert not notes


def test_arm64_call_ops():
    """Eight bytes in front of the function become the literal, the first NOP in it keeps LR."""
    text = (4 * NOP[AARCH64] + ADD + ADD) * 2
    code, _, notes = prepared(AARCH64, text, [0, 24], [8, 32])
    assert code == (LITERAL + MOV_X9_LR + NOP[AARCH64] + ADD + ADD) * 2
    assert not notes


def test_arm64_call_ops_with_bti():
    """A landing pad between the literal and the NOPs stays."""
    text = 2 * NOP[AARCH64] + BTI_C + 2 * NOP[AARCH64] + ADD
    code, _, notes = prepared(AARCH64, text, [0], [8])
    assert code == LITERAL + BTI_C + MOV_X9_LR + NOP[AARCH64] + ADD
    assert not notes


def test_arm64_call_ops_misaligned():
    """Where the literal would not be aligned the kernel warns and leaves the site alone."""
    text = NOP[AARCH64] + 4 * NOP[AARCH64] + ADD
    code, _, (note,) = prepared(AARCH64, text, [4], [12])
    assert code == text
    assert "f" in note
    assert "left as compiled" in note


def test_arm64_more_nops_than_room():
    """Four NOPs at a function's own entry are two of room and two of its body."""
    text = 4 * NOP[AARCH64] + ADD
    code, _, _ = prepared(AARCH64, text, [0], [0])
    assert code == MOV_X9_LR + 3 * NOP[AARCH64] + ADD


@pytest.mark.parametrize("nop", [2 * C_NOP, NOP[RISCV]])
@pytest.mark.parametrize("count", [2, 4])
def test_riscv64_at_the_entry(nop, count):
    """Eight bytes of room, or the first eight of more, become two NOPs of four bytes."""
    text = (count * nop + RV_ADD) * 3
    size = len(text) // 3
    code, _, notes = prepared(RISCV, text, [0, size, 2 * size], [0, size, 2 * size])
    assert code == (2 * NOP[RISCV] + (count - 2) * nop + RV_ADD) * 3
    assert not notes


@pytest.mark.parametrize("nop", [2 * C_NOP, NOP[RISCV]])
def test_riscv64_call_ops(nop):
    """The literal stands in front of the function, AUIPC t0 to the tracer's page and a NOP in it."""
    text = (4 * nop + 4 * RV_ADD) * 2
    code, _, notes = prepared(RISCV, text, [0, 24], [8, 32])
    assert not notes
    for at in (0, 24):
        assert code[at : at + 8] == LITERAL
        assert code[at + 12 : at + 24] == NOP[RISCV] + 4 * RV_ADD
        engine = capstone.Cs(capstone.CS_ARCH_RISCV, capstone.CS_MODE_RISCV64)
        (insn,) = engine.disasm(code[at + 8 : at + 12], 0)
        register, page = insn.op_str.split(", ")
        assert (insn.mnemonic, register) == ("auipc", "t0")
        near = BASE + at + 8 + (int(page, 0) << 12)
        assert -0x800 <= (CALLER - near + (1 << 31)) % (1 << 32) - (1 << 31) < 0x800


def test_x86_64_calls_of_others():
    """Only a call of the tracer, or a NOP of five bytes, is room for it."""
    nop = bytes.fromhex("0f1f440000")
    text = b"\xe8\0\0\0\0\xc3" * 2 + nop + b"\xc3" + b"\x48\x89\xf8\x90\x90\xc3"
    relas = [Rela(1, 2, "__fentry__", -4), Rela(7, 2, "text", -4)]
    code, table, (note,) = prepared(
        X86_64, text, [0, 6, 12, 18], [0, 6, 12, 18], relas=relas, symbols=[Sym("__fentry__")]
    )
    assert code[:6] == nop + b"\xc3"
    assert code[7:11] == struct.pack("<i", -11)
    assert code[12:] == text[12:]
    assert table == [0, 6, 12, 18]
    assert "f6+0x0, f12+0x0" in note.replace("f12", "f12")


@pytest.mark.parametrize(
    ("machine", "body"),
    [(AARCH64, PACIASP + 4 * ADD), (RISCV, 12 * RV_ADD), (X86_64, b"\x53" * 20)],
)
def test_instructions_are_never_overwritten(machine, body):
    """A site where the function's own instructions stand is left as it is, and named."""
    code, _, (note,) = prepared(machine, body, [0], [0])
    assert code == body
    assert "f0+0x0" in note


@pytest.mark.parametrize("machine", [AARCH64, RISCV])
def test_a_site_at_the_end(machine):
    """Room that the section does not have is not there."""
    code, _, notes = prepared(machine, NOP[machine], [0], [0])
    assert code == NOP[machine]
    assert notes


@pytest.mark.parametrize("machine", [AARCH64, RISCV])
def test_sites_without_symbols_follow_the_others(machine):
    """Where no symbol tells where the function begins, a site is as most others are."""
    nop = NOP[machine]
    body = ADD if machine == AARCH64 else 2 * RV_ADD
    text = (4 * nop + 2 * body) * 4
    code, _, _ = prepared(machine, text, [0, 24, 48, 72], [8, 32, 56])
    assert code[72:80] == LITERAL
    code, _, _ = prepared(machine, text, [0, 24, 48, 72], [0, 24, 48])
    assert code[72:80] == (MOV_X9_LR + nop if machine == AARCH64 else 2 * nop)
    assert code[80:] == text[80:]


def test_functions_that_the_linker_dropped(arch):
    """Zeros in the table are skipped."""
    machine = arch.machine
    text, call = facts(arch).patch.mcount_site
    relas = [Rela(1, call[1], call[0], call[2])] if call is not None else []
    symbols = [Sym(call[0])] if call is not None else []
    records = [Rela(8, facts(machine).link.abs64, "text")]
    image = write(
        machine,
        [
            Sec(".text", text, A | X, align=16, relas=relas),
            Sec(facts(arch).patch.mcount, bytes(16), A, align=8, relas=records),
        ],
        [Sym("text", ".text", type=FUNC, bind=LOCAL), *symbols],
    )
    view = parse(image)
    layout = plan(view)
    addresses = place(layout, BASE)
    linked = link_view(view, layout, addresses, {"__fentry__": CALLER} if relas else {})
    assert not finalise(view, layout, addresses, linked, Environment(symbols=KERNEL)).notes
