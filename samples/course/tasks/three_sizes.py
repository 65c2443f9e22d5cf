# SPDX-License-Identifier: GPL-2.0-or-later
"""Say for which sizes a guard page finds one byte too far at once, later, or never."""

from __future__ import annotations

from archs import Arch
from emulator.faults import Fault
from kernels.findings import FindingKind
from machine.machine import ModelledMachine
from samples.course.task import Answer, AnswerError, Check, Task, Verdict
from samples.hostile import FILE_HEAD
from samples.modules import root

# Key -> which record it is, its first byte, and when the mistake is to be found.
KEYS = {
    "written_at_once": (b"n", b"#", "at once"),
    "written_later": (b"n", b"#", "when it is freed"),
    "read_never": (b"c", b"!", "never"),
}
LEAST, MOST = 2, 250


def found(arch: Arch, record: bytes, first: bytes, size: int) -> str:
    """Return when the mistake of a record of so many bytes is found."""
    machine = ModelledMachine(arch, root=root(arch.name))
    checks = machine.sanitize("guard")
    module = machine.load("parser")
    data = FILE_HEAD + record + bytes([size]) + first + b"1" * (size - 1)
    try:
        module.call("parser_parse", data, len(data), returns="int", instructions=1_000_000)
    except Fault:
        kinds = [each.kind for each in checks.findings]
        return "when it is freed" if FindingKind.OVERWRITTEN in kinds else "at once"
    return "never"


def _text(arch: Arch) -> str:
    return (
        f"parser.ko has on {arch.name} two mistakes that go one byte too far: of a name of n bytes,\n"
        "which lies in memory of n bytes, the NUL is *written* behind it; of n bytes in memory\n"
        "of n bytes one more is *read* for a sum. With guards each object ends as close before a\n"
        "closed page as its alignment lets it, to 8 bytes; what is between has a pattern, which is\n"
        "compared when the object is freed. Say a size each, as small as there is, from\n"
        f"{LEAST} bytes: for which a byte written too far is found at once; for which only when the\n"
        "object is freed; and for which a byte read too far is never found."
    )


def _grade(answer: Answer) -> Verdict:
    checks, total = [], 0
    for key, (record, first, wanted) in KEYS.items():
        size = answer.number(key)
        if not LEAST <= size <= MOST:
            raise AnswerError(answer.file, f"{key} = {size}: {LEAST} to {MOST} bytes")
        when = found(answer.arch, record, first, size)
        checks.append(Check(f"{key}, {size} bytes: found", when, wanted, when == wanted))
        total += size
    return Verdict(tuple(checks), total)


TASK = Task(
    name="three-sizes",
    title="Say which sizes a guard page finds at once, later, or never.",
    text=_text,
    template=lambda _: "".join(f"{key} = 250\n" for key in KEYS),
    hints=(
        "How far from the page is the end of an object of 8 bytes, and of one of 9?",
        "An object whose size is a multiple of 8 ends where the page begins.",
        "What is read leaves no trace in the pattern; what is written does.",
    ),
    grade=_grade,
    unit="bytes",
    best={"x86_64": 12, "arm64": 12, "riscv64": 12, "mips64el": 12},
)
