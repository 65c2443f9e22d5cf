# SPDX-License-Identifier: GPL-2.0-or-later
"""Move finished code and its data as little as it takes, without changing a byte of it."""

from __future__ import annotations

import attrs

from allocator.types import KIB, PAGE_SIZE, MemType
from archs import Arch
from machine.machine import ModelledMachine
from samples.bench import adrp_pair
from samples.course.task import Answer, AnswerError, Check, Task, Verdict

ROOM = 64 * KIB
WORD = 4
START = 0x7B0  # of the code, in its page
PAIRS = {0x0: 0x18, 0x40: 0x7F0, 0x8A4: 0x1008}  # where in the code -> what of the data it means
AWAY = 0x15000  # from the page where the code begins to the data
TAKEN = 0x2B20  # from the old start on, somebody else's


@attrs.define
class Bench:
    """Room for code, and the code as it was relocated once at its old place."""

    arch: Arch
    machine: ModelledMachine = attrs.field(init=False)
    page: int = attrs.field(init=False)
    code: bytes = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.machine = machine = ModelledMachine(self.arch)
        self.page = machine.execmem.alloc(MemType.TEXT, ROOM, align=PAGE_SIZE).finish().address
        code = bytearray()
        for at, target in PAIRS.items():
            code += bytes(at - len(code))
            code += adrp_pair(self.arch, place=self.start + at, target=self.data + target)
        self.code = bytes(code)

    @property
    def start(self) -> int:
        """Where the code was."""
        return self.page + START

    @property
    def data(self) -> int:
        """Where its data was."""
        return self.page + AWAY

    def leads(self, move: int) -> dict[int, int]:
        """Return for each pair by how much what it forms has moved, executed in a copy."""
        self.machine.execmem.poke(self.start + move, self.code)
        return {
            at: self.machine.call(self.start + move + at) - self.data - target
            for at, target in PAIRS.items()
        }


def _text(arch: Arch) -> str:
    bench = Bench(arch)
    pairs = "".join(
        f"  adrp at {bench.start + at:#x}, add behind it: {bench.data + target:#x}\n"
        for at, target in PAIRS.items()
    )
    return (
        f"Code at {bench.start:#x} forms addresses of its data, which begins at\n"
        f"{bench.data:#x}. It is relocated, and nobody has its relocations any more:\n"
        + pairs
        + f"Code may have no byte below {bench.start + TAKEN:#x} any more. Say by how much the\n"
        "code moves up, and by how much its data does, so that the same bytes form the new\n"
        "addresses of the data, and both move as little as it takes."
    )


def _grade(answer: Answer) -> Verdict:
    code, data, bench = answer.number("code"), answer.number("data"), Bench(answer.arch)
    last = (ROOM - START - len(bench.code)) // WORD * WORD
    if code % WORD or not 0 <= code <= last:
        reason = f"code = {code:#x}: a multiple of {WORD} in [0x0, {last:#x}]"
        raise AnswerError(answer.file, reason)
    checks = [Check("code moves by", f"{code:#x}", f"{TAKEN:#x} or more", code >= TAKEN)]
    checks += [
        Check(
            f"what {bench.start + at:#x} forms moves by", f"{led:+#x}", f"{data:+#x}", led == data
        )
        for at, led in bench.leads(code).items()
    ]
    return Verdict(tuple(checks), code + abs(data))


TASK = Task(
    name="same-bytes",
    title="Move finished code and its data, without changing a byte of it.",
    text=_text,
    template=lambda _: f'code = "{TAKEN:#x}"\ndata = "{TAKEN:#x}"\n',
    hints=(
        "By which amounts can what an ADRP forms change at all? Data can only move by these.",
        (
            "Copy code within its page, and its ADRPs form what they did. Which ADRP is the first to "
            "leave its page when the code moves a little down, or up?"
        ),
        (
            "Data moves by whole pages, code by as many pages plus or minus what keeps each ADRP in "
            "its page: the one near a page's start allows a little less, none allows 0xb20 more."
        ),
    ),
    grade=_grade,
    unit="bytes moved",
    best={"arm64": 0x2FAC + 0x3000},
)
