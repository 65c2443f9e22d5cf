# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames that gdb is told of: at each instruction of functions, the caller is who called.

What is decoded here is what gdb gets, by pyelftools; what it is held to is the stack pointer and
the return address that a function began with.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from archs import Arch
from machine.arguments import Out
from machine.control import Control, Resume, Stopped, Why
from machine.face import Machine
from machine.gdb.libraries import frames_of
from machine.gdb.modelled import ModelledSubject
from machine.machine import ModelledMachine

Rows = list[tuple[int, int, dict[Any, Any]]]
TEXT = b"the quick brown fox jumps over the lazy dog " * 12
STEPS = 1500  # instructions that are looked at


def rows_of(file: bytes) -> Rows:
    """Return from where to where each row of `.debug_frame` goes, and what it says."""
    found: Rows = []
    for entry in ELFFile(io.BytesIO(file)).get_dwarf_info().CFI_entries():
        if "initial_location" not in entry.header:
            continue
        end = entry.header["initial_location"] + entry.header["address_range"]
        table = entry.get_decoded().table
        starts = [row["pc"] for row in table]
        for row, after in zip(table, [*starts[1:], end], strict=True):
            if row["pc"] < after:
                found.append((row["pc"], after, row))
    return found


def test_callers_are_found_at_each_instruction(arch: Arch, corpus: Path) -> None:
    """Whether a function has its frame made, makes it, or has undone it; callees too."""
    if arch.debugs.unwind is None:
        pytest.skip(f"of {arch.name} gdb finds frames by itself")
    machine = Machine(arch, root=corpus)
    assert isinstance(machine, ModelledMachine)
    module = machine.load("lz4_compress")
    spans = {
        at: found[2] for at in module.symbols.values() if (found := module.loaded.symbol_at(at))
    }
    rows = rows_of(frames_of(list(ModelledSubject(machine).modules()), machine.read))
    calling, (back, stack) = arch.runs.calling, arch.debugs.columns
    names = {stack: calling.stack_pointer, arch.debugs.unwind.pointer: POINTERS[arch.name]}
    shadow: list[tuple[int, int, int]] = []  # function, stack pointer behind it, who called
    functions, checked, wrong = set(), 0, []

    def called(control: Control) -> tuple[int, int]:
        """Return what the stack pointer will be behind a function that begins, and who called it."""
        sp = control.get(calling.stack_pointer)
        if calling.link is not None:
            return sp, control.get(calling.link)
        return sp + 8, int.from_bytes(control.read(sp, 8), "little")

    def handler(stopped: Stopped, control: Control) -> Resume:
        nonlocal checked
        if stopped.why not in (Why.ENTRY, Why.STEP):
            return Resume.CONTINUE
        pc, sp = stopped.pc, control.get(calling.stack_pointer)
        while shadow and (sp, pc) == shadow[-1][1:]:
            shadow.pop()
        if pc in spans:
            if shadow and called(control) == shadow[-1][1:]:
                shadow.pop()  # a jump from the tail of another function
            shadow.append((pc, *called(control)))
        if shadow and shadow[-1][0] <= pc < shadow[-1][0] + spans[shadow[-1][0]]:
            (row,) = [each for start, end, each in rows if start <= pc < end]
            cfa, rule = row["cfa"], row[back]
            told = control.get(names[cfa.reg]) + cfa.offset
            if rule.type == "OFFSET":
                returns = int.from_bytes(control.read(told + rule.arg, 8), "little")
            else:
                assert rule.type == "SAME_VALUE", hex(pc)
                returns = control.get(calling.link or "")
            if (told, returns) != shadow[-1][1:]:
                wrong.append(machine.symbolize(pc))
            functions.add(shadow[-1][0])
            checked += 1
        return Resume.STEP if stopped.count < STEPS else Resume.CONTINUE

    with machine.control(handler):
        out, work = Out(len(TEXT)), Out(1 << 15)
        size = module.call("LZ4_compress_default", TEXT, out, len(TEXT), len(out), work)
    assert 0 < size < len(TEXT)
    assert not wrong
    assert len(functions) > 1
    assert checked > STEPS // 2


POINTERS = {"x86_64": "rbp", "arm64": "x29"}
