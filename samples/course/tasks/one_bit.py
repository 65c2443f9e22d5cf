# SPDX-License-Identifier: GPL-2.0-or-later
"""Change a packet in as few bits as it takes, so that a parser does not come back from it."""

from __future__ import annotations

from archs import Arch
from emulator.faults import Fault
from machine.machine import ModelledMachine
from samples.course.task import Answer, AnswerError, Check, Task, Verdict, plural
from samples.hostile import PACKET, TIMESTAMPS
from samples.modules import root

FUNCTION, LIMIT, HEAD = "formats_match", 100_000, 40  # options begin behind IPv4 and TCP


def matched(arch: Arch, packet: bytes) -> str:
    """Return what the parser says of a packet, or that it does not end."""
    machine = ModelledMachine(arch, root=root(arch.name))
    module = machine.load("formats")
    try:
        result = module.call(
            FUNCTION, packet, len(packet), TIMESTAMPS, returns="int", instructions=LIMIT
        )
    except Fault as fault:
        return "it does not end" if fault.kind.is_limit else fault.kind.value
    return f"it returns {result}"


def _text(arch: Arch) -> str:
    return (
        f"{FUNCTION} of formats.ko looks on {arch.name} for option {TIMESTAMPS} in a packet: {HEAD} bytes\n"
        f"of IPv4 and TCP, then the options in the last {len(PACKET) - HEAD} bytes. Options 0 and 1 are\n"
        "one byte. All others are that byte, a byte that says how long the option is with both, and\n"
        "what belongs to it. Change as few bits of the packet as it takes, so that it goes on for\n"
        f"{LIMIT:,} instructions and has not ended. The packet stays {len(PACKET)} bytes long."
    )


def _grade(answer: Answer) -> Verdict:
    packet = answer.code("packet")
    if len(packet) != len(PACKET):
        raise AnswerError(answer.file, f"packet: {len(packet)} bytes, wanted {len(PACKET)}")
    bits = int.from_bytes(packet, "big") ^ int.from_bytes(PACKET, "big")
    found = matched(answer.arch, packet)
    where = ", ".join(
        f"{at:#x}"
        for at, (one, other) in enumerate(zip(packet, PACKET, strict=True))
        if one != other
    )
    changed = f"{plural(bits.bit_count(), 'bit')}, in {where}" if bits else "nothing"
    return Verdict(
        (
            Check("changed", changed, "something", bool(bits)),
            Check(FUNCTION, found, "it does not end", found == "it does not end"),
        ),
        bits.bit_count(),
    )


def _template(_: Arch) -> str:
    lines = "".join(f"  {PACKET[at : at + 8].hex(' ')}\n" for at in range(0, len(PACKET), 8))
    return f'packet = """\n{lines}"""\n'


TASK = Task(
    name="one-bit",
    title="Change a packet in as few bits as it takes, so that a parser never comes back.",
    text=_text,
    template=_template,
    hints=(
        "The parser adds the length that an option says to where it is. When does that lead nowhere?",
        "An option of length 0 is gone over again and again. Which options have a length?",
        "02 04 is an option of 4 bytes: 4 has one bit.",
    ),
    grade=_grade,
    unit="bits",
    best={"x86_64": 1, "arm64": 1, "riscv64": 1, "mips64el": 1},
)
