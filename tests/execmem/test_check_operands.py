# SPDX-License-Identifier: GPL-2.0-or-later
"""Operands of instructions by LLVM's numbers: LLVM's disassembler is asked about many encodings."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import archs
from archs import Arch
from archs.operands import UNKNOWN, Patterns, Templates
from emulator.disassembly import Disassembler
from execmem.check import operands
from execmem.check.outcome import Unanswerable
from tests.archs.facts import Disassembled, facts
from tests.support import tools

PLACE = 0x10_0000
ARCHES = [arch for arch in archs.archs() if arch.link.operands is not None]


def known(arch: Arch) -> Disassembled:
    """Return what is known of its disassembly, or fail."""
    found = facts(arch).link.disassembled
    assert isinstance(found, Disassembled), "its facts have no `disassembled`"
    return found


def numbered(asked: Disassembled, number: int) -> bytes:
    """Return the instruction that marks the end of an answer, with a number in it."""
    mark = bytes.fromhex(asked.mark)
    return (int.from_bytes(mark, "little") | number << asked.shift).to_bytes(len(mark), "little")


def llvm_says(
    tool: str, asked: Disassembled, codes: Sequence[bytes]
) -> list[tuple[str, tuple[int | None, ...]] | None]:
    """Return the name and operands of each instruction; None where LLVM sees none, or several."""
    lines = []
    for number, code in enumerate(codes):
        lines += [code, numbered(asked, number)]
    text = "".join(" ".join(f"{byte:#x}" for byte in line) + "\n" for line in lines)
    command = [tool, "--disassemble", "--show-inst", *asked.options]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    found: list[tuple[str, tuple[int | None, ...]] | None] = [None] * len(codes)
    between: list[tuple[str, tuple[int | None, ...]]] = []
    due = 0
    for block in re.split(r"\n(?=[^\n]*<MCInst )", "\n" + done.stdout):
        name = re.search(r"<MCInst #\d+ (\w+)", block)
        if name is None:
            continue
        numbers = re.findall(r"<MCOperand (\w+):(-?\w*)>", block)
        mark = re.search(asked.pattern, block)
        if mark is not None and due <= int(mark.group(1)) < due + 400:
            if int(mark.group(1)) == due and len(between) == 1:
                found[due] = between[0]
            due, between = int(mark.group(1)) + 1, []
            continue
        values = tuple(int(text) if kind == "Imm" else None for kind, text in numbers)
        between.append((name.group(1), values))
    return found


def encodings(arch: Arch, chance: random.Random, each: int) -> Iterator[bytes]:
    """Yield instructions of every form that is known, with random fields."""
    tables = arch.link.operands
    if isinstance(tables, Patterns):
        for form in tables.forms:
            if form.operands == UNKNOWN:
                continue
            bits = form.pattern
            for _ in range(each):
                word = 0
                for fixed, width, high, low in re.findall(
                    r"([01?]+)(?![\d\]])|[A-Z](\d+)|[a-z]\[(\d+)(?::(\d+))?\]", bits
                ):
                    if fixed:
                        for bit in fixed:
                            word = word << 1 | (chance.getrandbits(1) if bit == "?" else int(bit))
                        continue
                    count = int(width or 0) or int(high) - int(low or high) + 1
                    word = word << count | chance.getrandbits(count)
                yield word.to_bytes(form.size, "little")
        return
    assert isinstance(tables, Templates)
    disassembler = Disassembler(arch)
    for key in tables.opcodes:
        opcode, _, digit = key.partition("/")
        code, before = bytes.fromhex(opcode), b""
        if code[0] in tables.mandatory and len(code) > 1:
            before, code = code[:1], code[1:]
        for _ in range(each):
            rex = chance.choice([b"", b"\x48", bytes([0x40 | chance.getrandbits(4)])])
            wide = before or chance.choice([b"", b"", b"\x66"])
            second = chance.getrandbits(8)
            if digit:
                second = second & ~0x38 | int(digit) << 3
            whole = wide + rex + code + bytes([second]) + chance.randbytes(12)
            size = disassembler.size(whole[:15], PLACE)
            if size is not None:
                yield whole[:size]


@pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
@pytest.mark.parametrize("version", ["newest", "14"])
def test_llvm_agrees(arch: Arch, version: str) -> None:
    """What is answered is what LLVM answers, old and new, about every form that is known."""
    tool = tools.llvm("llvm-mc") if version == "newest" else tools.tool("llvm-mc-14")
    asked = known(arch)
    codes = list(encodings(arch, random.Random(arch.machine), 12))
    equal = 0
    kinds = set()
    for code, theirs in zip(codes, llvm_says(tool, asked, codes), strict=True):
        try:
            ours = operands.decode(arch, code, PLACE)
        except Unanswerable:
            continue
        if theirs is None or ours.operands is None:
            continue
        name, values = theirs
        assert ours.operands == values, f"{code.hex()} {name}"
        assert ours.size == len(code)
        equal += 1
        kinds.add(name)
    assert equal > len(codes) // 2
    assert len(kinds) > 30


@pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
def test_any_bytes(arch: Arch) -> None:
    """Any bytes are an instruction, or are refused; those that LLVM knows are never read wrongly."""
    chance = random.Random(7)
    for _ in range(2000):
        code = chance.randbytes(chance.randrange(16))
        try:
            found = operands.decode(arch, code, PLACE)
        except Unanswerable:
            continue
        assert 0 < found.size <= len(code)


@pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
def test_target(arch: Arch, tmp_path: Path) -> None:
    """A branch leads where the assembler was told to let it lead; pairs do too."""
    asked = known(arch)
    code = tools.code(arch.machine, asked.branches + "\n", tmp_path)
    at, led = 0, []
    for _ in asked.leads:
        led.append(operands.target(arch, code[at : at + 16], PLACE + at) - PLACE)
        at += operands.decode(arch, code[at:], PLACE + at).size
    assert tuple(led) == asked.leads


def test_refusals() -> None:
    """What is not known, or no number, is said by name."""
    riscv = archs.arch("riscv64")
    with pytest.raises(Unanswerable, match="operand 0 of `jal 8` is no number"):
        operands.operand(riscv, bytes.fromhex("ef008000"), PLACE, 0)
    with pytest.raises(Unanswerable, match="has 2 operands by LLVM's count, and no number 2"):
        operands.operand(riscv, bytes.fromhex("ef008000"), PLACE, 2)
    with pytest.raises(Unanswerable, match=r"the operands of `fadd.d .*` are not known"):
        operands.operand(riscv, bytes.fromhex("537aa302"), PLACE, 0)
    with pytest.raises(Unanswerable, match="no direct branch"):
        operands.target(riscv, bytes.fromhex("13000000"), PLACE)
    with pytest.raises(Unanswerable, match="no whole instruction"):
        operands.decode(riscv, b"\x13", PLACE)
    with pytest.raises(Unanswerable, match="no instruction at"):
        operands.decode(archs.arch("x86_64"), b"\x06", PLACE)
