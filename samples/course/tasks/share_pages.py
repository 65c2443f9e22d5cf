# SPDX-License-Identifier: GPL-2.0-or-later
"""Share few pages among pieces of code, so that no page has to be writable and executable."""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs

from allocator.errors import MappingError, printable
from allocator.types import ExecmemType, Prot
from archs import Arch
from emulator.faults import Fault
from machine.machine import ModelledMachine
from samples.course.task import Answer, AnswerError, Check, Task, Verdict

# What happens to which pieces, in order.
STEPS = (
    ("write", "A"),
    ("finish", "A"),
    ("write", "B"),
    ("write", "C"),
    ("finish", "C"),
    ("free", "A"),
    ("write", "D"),
    ("finish", "BD"),
    ("write", "E"),
    ("free", "C"),
    ("write", "F"),
    ("write", "G"),
    ("free", "B"),
    ("finish", "EF"),
    ("finish", "G"),
)
PIECES = "".join(sorted({piece for _, pieces in STEPS for piece in pieces}))
MOST, SIZE = 4, 512  # pages that an answer may take, bytes of a piece


@attrs.define
class Lived:
    """What became of the pieces.

    Parameters
    ----------
    refused
        By page: at which step, and what was to be executed and what to be written then.
    calls, faults
        How often a piece was called while it was live, and how often it could not be executed.
    """

    refused: dict[int, str]
    calls: int = 0
    faults: int = 0


def give(machine: ModelledMachine, address: int, prot: Prot) -> None:
    """Give a page its rights, one after the other; MappingError: the page table refuses them."""
    size = machine.memory.page_size
    if Prot.X not in prot:
        machine.memory.set_memory_nx(address, size)
    if Prot.W not in prot:
        machine.memory.set_memory_ro(address, size)
    if Prot.X in prot:
        machine.memory.set_memory_x(address, size)
    if Prot.W in prot:
        machine.memory.set_memory_rw(address, size)


def lived(arch: Arch, pages: Sequence[str]) -> Lived:
    """Return what becomes of the pieces in their pages, on a machine."""
    machine = ModelledMachine(arch, text_poke=False)
    memory, found = machine.memory, Lived({})
    within = memory.address_map.range_of(ExecmemType.MODULE_TEXT).range
    area = memory.reserve(len(pages) * memory.page_size, within)
    assert area is not None
    starts = range(area.start, area.end, memory.page_size)
    for start in starts:
        memory.populate(start, memory.page_size, Prot.RW, pattern=arch.loads.trap)
    at = {
        piece: starts[n] + SIZE * PIECES.index(piece)
        for n, has in enumerate(pages)
        for piece in has
    }
    state = dict.fromkeys(PIECES, "")
    code = arch.runs.emulation.ret
    for number, (does, pieces) in enumerate(STEPS, 1):
        state |= dict.fromkeys(pieces, does)
        for page, has in enumerate(pages):
            writes = [piece for piece in has if state[piece] == "write"]
            live = [piece for piece in has if state[piece] == "finish"]
            prot = (Prot.W if writes else Prot.NONE) | (Prot.X if live else Prot.NONE)
            try:
                give(machine, starts[page], Prot.R | prot)
            except MappingError:
                why = f"{', '.join(live)} executed and {', '.join(writes)} written"
                found.refused.setdefault(page, f"step {number}, {does} {' '.join(pieces)}: {why}")
        for piece in pieces if does == "write" else "":
            leaf = memory.translate(at[piece])
            if leaf is not None and Prot.W in leaf.prot:
                memory.write(at[piece], code)
                memory.sync_icache(at[piece], at[piece] + len(code))
        for piece in (each for each in PIECES if state[each] == "finish"):
            found.calls += 1
            try:
                machine.call(at[piece], instructions=100)
            except Fault:
                found.faults += 1
    return found


def _text(arch: Arch) -> str:
    lines = [
        f"{number:>2} {does} {' '.join(pieces)}" for number, (does, pieces) in enumerate(STEPS, 1)
    ]
    third = -(-len(lines) // 3)
    rows = zip(lines[:third], lines[third : 2 * third], lines[2 * third :], strict=True)
    poke = arch.text_poke.name if arch.text_poke is not None else "text_poke"
    return (
        f"A kernel on {arch.name} does not use {poke}. {len(PIECES)} pieces of code, of {SIZE} bytes\n"
        "each, come and go:\n"
        + "".join(f"  {one:<16}{other:<16}{last}\n" for one, other, last in rows)
        + "From write to finish a page must let a piece be written, from finish to free (or for ever)\n"
        "be executed; no page may do both at once. Its rights may change in between as often as you like,\n"
        f"and a piece stays where it was written. Say which pieces share a page: {MOST} pages or fewer."
    )


def _grade(answer: Answer) -> Verdict:
    pages = ["".join(page.split()) for page in answer.words("pages")]
    placed = sorted("".join(pages))
    if placed != sorted(PIECES) or not all(pages):
        named = " ".join(placed) or "none"
        reason = f"pages: they hold {named}, wanted {PIECES}, each in one"
        raise AnswerError(answer.file, printable(reason))
    found = lived(answer.arch, pages)
    checks = [
        Check(
            f"page {number}, {' '.join(page)}",
            found.refused.get(number, "never both"),
            "never both",
            number not in found.refused,
        )
        for number, page in enumerate(pages)
    ]
    checks.append(
        Check("calls that fault", f"{found.faults} of {found.calls}", "0", not found.faults)
    )
    checks.append(Check("pages", str(len(pages)), f"{MOST} or fewer", len(pages) <= MOST))
    return Verdict(tuple(checks), len(pages))


TASK = Task(
    name="share-pages",
    title="Share pages among pieces of code, none of them writable and executable.",
    text=_text,
    template=lambda _: f"pages = {json.dumps([' '.join(PIECES)])}\n",
    hints=(
        "Which pieces are executed while another is written? They cannot be in one page.",
        "What is finished in one step may share a page; and what is written after others were freed.",
        "B and D are finished at once, and so are E and F. Who is freed before E is written, and who only before G?",
    ),
    grade=_grade,
    unit="pages",
    best={"x86_64": 3, "arm64": 3, "riscv64": 3, "mips64el": 3},
)
