# SPDX-License-Identifier: GPL-2.0-or-later
"""Lead a fuzzer, a byte at a time, from a descriptor that is right to one that a parser cannot take."""

from __future__ import annotations

from collections.abc import Sequence

from archs import Arch
from emulator.faults import FaultKind
from machine.machine import ModelledMachine
from machine.rounds import Round
from samples.course.task import Answer, AnswerError, Check, Task, Verdict, plural
from samples.modules import root

FUNCTION, LIMIT, LONGEST, MOST = "formats_report", 100_000, 64, 16
# A size of 8 bits, 2 of them, an input.
SEED, PUSH = bytes.fromhex("750895028102"), 0xA4
FOUND = FaultKind.OUT_OF_BOUNDS.value


def apart(one: bytes, other: bytes) -> int:
    """Return how many bytes are set, put in or taken out to make the one of the other."""
    row = list(range(len(other) + 1))
    for at, byte in enumerate(one, 1):
        before, row[0] = row[0], at
        for to, wanted in enumerate(other, 1):
            before, row[to] = (
                row[to],
                min(before + (byte != wanted), row[to] + 1, row[to - 1] + 1),
            )
    return row[-1]


def fuzzed(arch: Arch, inputs: Sequence[bytes]) -> list[tuple[int, int, str]]:
    """Return what a fuzzer makes of each input, until one of them is found.

    Returns
    -------
    list
        How many bytes it is from the nearest that was kept, how many blocks are executed for the
        first time, and what stops it. What is further than a byte no such fuzzer makes, nor runs.
    """
    machine = ModelledMachine(arch, root=root(arch.name))
    machine.sanitize("guard")
    module = machine.load("formats")
    text = next(each for each in module.sections.values() if each.name == ".text")
    spans = [(text.address, text.address + text.size)]
    rounds = machine.rounds(spans, instructions=LIMIT)
    buffer, address = rounds.buffer(LONGEST), module.address_of(FUNCTION)
    kept, seen, found = [SEED], set[int](), list[tuple[int, int, str]]()
    with rounds:

        def run(data: bytes) -> Round:
            return rounds.run(lambda: rounds.call(address, (buffer.put(data), len(data))))

        for data in (SEED, *inputs):
            far = min(apart(data, each) for each in kept)
            if far > 1:
                found.append((far, 0, ""))
                continue
            done = run(data)
            new = set(done.blocks) - seen
            seen |= new
            found.append((far, len(new), done.fault.kind.value if done.fault else ""))
            if done.fault is not None:
                break
            if new:
                kept.append(data)
    return found[1:]


def _text(arch: Arch) -> str:
    return (
        f"A fuzzer runs {FUNCTION} of formats.ko on {arch.name}. It begins with\n"
        f"  {SEED.hex(' ')}\n"
        "and makes an input of one that it has kept: it sets one byte, puts one in, or takes one out.\n"
        "An input that comes to code where none before it came is kept; all others are thrown away.\n"
        "The lower 2 bits of an item say how many bytes belong to it, a number (3: four bytes):\n"
        "  74 size   94 count   80 input   a0 open   c0 close\n"
        "  a4 push   b4 pop     (75: a size, in one byte)\n"
        "Refused are an item whose bytes are not all there, a pop or a close too many, and an input of\n"
        "a size over 32. A third push is stored behind the stack. Say the inputs, in their order, of\n"
        "which the last one does it."
    )


def _grade(answer: Answer) -> Verdict:
    inputs = answer.codes("inputs")
    if len(inputs) > MOST:
        raise AnswerError(answer.file, f"inputs: {len(inputs)}, at most {MOST}")
    for data in inputs:
        if len(data) > LONGEST:
            raise AnswerError(answer.file, f"inputs: one of {len(data)} bytes, at most {LONGEST}")
    checks = []
    for number, (far, new, stopped) in enumerate(fuzzed(answer.arch, inputs), 1):
        last = number == len(inputs)
        came = f"{plural(new, 'new block')}: {'kept' if new else 'thrown away'}"
        said = stopped or came
        if far > 1:
            said = f"{far} bytes from any that was kept: never made"
        good = far <= 1 and (stopped == FOUND if stopped else bool(new) and not last)
        checks.append(Check(f"input {number}", said, FOUND if last else "kept", good))
    late = len(inputs) - len(checks)
    checks.append(Check("inputs behind it", str(late), "0", not late))
    if not inputs:
        checks.append(Check("found", "nothing", FOUND, passed=False))
    return Verdict(tuple(checks), len(inputs))


def _template(_: Arch) -> str:
    pushes = (bytes([PUSH]) * number + SEED for number in (1, 2, 3))
    return "inputs = [\n" + "".join(f'  "{data.hex(" ")}",\n' for data in pushes) + "]\n"


TASK = Task(
    name="byte-by-byte",
    title="Lead a fuzzer, a byte at a time, to the input that a parser cannot take.",
    text=_text,
    template=_template,
    hints=(
        "A second push executes the same code as the first. What else could the same byte change?",
        "What refuses a descriptor is code, too, and nothing has come there yet.",
        (
            "Put in one push. Then set a byte to a push, so that what followed it has not all its bytes "
            "any more: that is refused, and kept. The third is put in wherever you like before that."
        ),
    ),
    grade=_grade,
    unit="inputs",
    best={"x86_64": 3, "arm64": 3, "riscv64": 3, "mips64el": 3},
)
