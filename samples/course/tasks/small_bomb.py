# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the shortest LZ4 block that unpacks to more than there is room for."""

from __future__ import annotations

from archs import Arch
from emulator.faults import Fault, FaultKind
from machine.machine import ModelledMachine
from samples.course.task import Answer, AnswerError, Check, Task, Verdict, plural
from samples.modules import root

FUNCTION, ROOM, MOST = "formats_unlz4", 4096, 512
EINVAL = -22


def unpacked(arch: Arch, block: bytes) -> tuple[int | None, str]:
    """Return to how many bytes a block unpacks, or nothing and what stops it."""
    machine = ModelledMachine(arch, root=root(arch.name))
    machine.sanitize("guard")
    module = machine.load("formats")
    try:
        result = module.call(
            FUNCTION, block, len(block), ROOM, returns="int", instructions=1_000_000
        )
    except Fault as fault:
        behind = fault.kind is FaultKind.OUT_OF_BOUNDS
        return None, f"more than {ROOM:,} bytes" if behind else fault.kind.value
    return result, plural(result, "byte") if result >= 0 else f"{result}: no LZ4, or it did not fit"


def _text(arch: Arch) -> str:
    return (
        f"{FUNCTION} of formats.ko unpacks a block on {arch.name} into {ROOM:,} bytes. It compares\n"
        "the literals with the room that is left, and not what it copies. A block is, again and again:\n"
        "  1 byte   how many literals (upper 4 bits), bytes to copy (lower 4)\n"
        "  literals each stored as it is\n"
        "  2 bytes  how far back the copy begins, 1 or more, lowest byte first\n"
        "Where 4 bits are 15, bytes follow that are added to them (before the literals; behind the\n"
        "2 bytes): as long as one is 255, another follows. 4 more bytes are copied than is said.\n"
        "Write the shortest block that makes it store a byte too many."
    )


def _grade(answer: Answer) -> Verdict:
    block = answer.code("block")
    if not block or len(block) > MOST:
        raise AnswerError(answer.file, f"block: {len(block)} bytes; there may be 1 to {MOST}")
    _, found = unpacked(answer.arch, block)
    wanted = f"more than {ROOM:,} bytes"
    return Verdict((Check("it unpacks to", found, wanted, found == wanted),), len(block))


TASK = Task(
    name="small-bomb",
    title="Write the shortest LZ4 block that unpacks to more than there is room for.",
    text=_text,
    template=lambda _: '# 290 times A, and BCDE\nblock = "1f 41 0100 ff 0e 50 41424344 45"\n',
    hints=(
        "A byte of literals gives a byte; a byte of a copy's length gives up to 255.",
        "One literal and a copy that begins 1 byte back repeats it: the rest is length.",
        "After 1f 41 01 00 come 1 + 15 + 4 bytes, and 255 more for each ff. How many do 4,096 lack?",
    ),
    grade=_grade,
    unit="bytes",
    best={"x86_64": 20, "arm64": 20, "riscv64": 20, "mips64el": 20},
)
