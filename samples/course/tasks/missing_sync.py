# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the sync that is missing from a protocol that changes a jump while others execute it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product

import attrs

from archs import Arch
from samples.course.task import Answer, AnswerError, Check, Task, Verdict, plural
from samples.jump import FROM, TO, Jump

STEPS = {
    "break": "writes the breakpoint over the first byte",
    "tail": "writes what of the new jump is behind the first store",
    "first": "writes what of the new jump is in the first store",
    "all": "writes the new jump, store by store",
    "sync": "makes every other CPU fetch anew",
    "stop": "lets no other CPU execute",
    "start": "lets them go on, with what they have fetched",
}
MOST = 12  # steps of an answer


@attrs.define
class Memory:
    """The bytes of one instruction as other CPUs may have them.

    Each granule is in memory once, but a CPU may have fetched any of the values that it had since
    the last sync: nothing says which, nor that it fetched all granules at one time.
    """

    granule: int
    now: list[bytes]
    views: list[set[bytes]] = attrs.field(init=False)
    stopped: bool = False

    def __attrs_post_init__(self) -> None:
        self.sync()

    def sync(self) -> None:
        """Let every CPU have what is in memory, and nothing else."""
        self.views = [{piece} for piece in self.now]

    def write(self, number: int, piece: bytes) -> Iterator[None]:
        """Store a granule; other CPUs may run before the next store."""
        self.now[number] = piece
        self.views[number].add(piece)
        yield

    def met(self) -> set[bytes]:
        """Return every instruction that a CPU may execute now."""
        return set() if self.stopped else {b"".join(each) for each in product(*self.views)}


def pieces(code: bytes, granule: int) -> list[bytes]:
    """Return the granules of an instruction."""
    return [code[at : at + granule] for at in range(0, len(code), granule)]


def run(
    steps: Sequence[str], old: bytes, new: bytes, granule: int, trap: bytes | None
) -> Iterator[tuple[int, str, set[bytes]]]:
    """Yield after each store and step its number, its name and what other CPUs may execute."""
    memory, wanted = Memory(granule, pieces(old, granule)), pieces(new, granule)
    for number, step in enumerate(steps, 1):
        stores: list[tuple[int, bytes]] = []
        if step == "break" and trap is not None:
            stores = [(0, trap)]
        elif step in ("tail", "first", "all"):
            first, last = int(step == "tail"), 1 if step == "first" else len(wanted)
            stores = [(each, wanted[each]) for each in range(first, last)]
        elif step == "sync":
            memory.sync()
        elif step in ("stop", "start"):
            memory.stopped = step == "stop"
        for each, piece in stores:
            for _ in memory.write(each, piece):
                yield number, step, memory.met()
        if not stores:
            yield number, step, memory.met()


def torn(steps: Sequence[str], jump: Jump) -> list[tuple[int, str, bytes]]:
    """Return what is neither jump and may be executed: after which step, and the bytes."""
    poke, live = jump.machine.arch.text_poke, jump.machine.arch.live_patch
    assert poke is not None
    assert live is not None
    found, seen = [], set[bytes]()
    trap = live.breakpoint
    for number, step, met in run(steps, jump.old, jump.new, poke.granule, trap):
        for code in sorted(met - {jump.old, jump.new} - seen):
            # Who meets the breakpoint is led on, whatever is behind it.
            if trap is None or not code.startswith(trap):
                seen.add(code)
                found.append((number, step, code))
    return found


def at_last(steps: Sequence[str], jump: Jump) -> set[bytes]:
    """Return what other CPUs may execute when all is done."""
    poke, live = jump.machine.arch.text_poke, jump.machine.arch.live_patch
    assert poke is not None
    assert live is not None
    every = [met for _, _, met in run(steps, jump.old, jump.new, poke.granule, live.breakpoint)]
    return every[-1] if every else {jump.old}


def stops(jump: Jump) -> int:
    """Return how often other CPUs have to be stopped."""
    poke, live = jump.machine.arch.text_poke, jump.machine.arch.live_patch
    assert poke is not None
    assert live is not None
    return int(live.breakpoint is None and len(jump.new) > poke.granule)


def _steps(arch: Arch) -> dict[str, str]:
    """Return the steps that there are."""
    live = arch.live_patch
    has = live is not None and live.breakpoint is not None
    return {step: what for step, what in STEPS.items() if has or step != "break"}


def _text(arch: Arch) -> str:
    jump = Jump(arch)
    poke = arch.text_poke
    assert poke is not None
    most = stops(jump)
    known = "\n".join(f"  {step:<6} {what}" for step, what in _steps(arch).items())
    return (
        f"CPU 0 changes a jump to {FROM[1]} into one to {TO[1]}: {len(jump.new)} bytes, in stores\n"
        f"of {poke.granule}. Other CPUs execute it all the time, and may have fetched each store's\n"
        "bytes at any time since the last sync. Repair the steps:\n"
        f"{known}\n"
        "No CPU may meet what is neither jump (whoever meets the breakpoint is led on while the\n"
        "steps go on); at the end all have the new one; other CPUs are stopped "
        f"{plural(most, 'time')} at most."
    )


def _template(arch: Arch) -> str:
    live, jump = arch.live_patch, Jump(arch)
    if live is not None and live.breakpoint is not None:
        steps = ["break", "sync", "tail", "first", "sync"]
    else:
        steps = ["stop", "all", "start"] if stops(jump) else ["all"]
    return f"steps = {json.dumps(steps)}\n"


def _grade(answer: Answer) -> Verdict:
    steps = answer.words("steps", tuple(_steps(answer.arch)))
    if len(steps) > MOST:
        raise AnswerError(answer.file, f"steps: {len(steps)}, at most {MOST}")
    jump = Jump(answer.arch)
    bad, last, wanted = torn(steps, jump), at_last(steps, jump), stops(jump)
    found = "0"
    if bad:
        number, step, code = bad[0]
        found = (
            f"{len(bad)}, the first after step {number} ({step}): {code.hex(' ')}, with which the "
            f"call gets {got(jump, code)}"
        )
    stale = [
        "the old jump" if code == jump.old else code.hex(" ") for code in sorted(last - {jump.new})
    ]
    running = _stopped(steps) is False
    halts = steps.count("stop")
    return Verdict(
        (
            Check("what is neither jump", found, "0", not bad),
            Check(
                "at the end CPUs may have",
                ", ".join(stale) or ("the new jump" if last else "nothing: they are stopped"),
                "the new jump",
                last == {jump.new},
            ),
            Check("stopped at the end", "no" if running else "yes", "no", running),
            Check("other CPUs stopped", str(halts), f"{wanted} or fewer", halts <= wanted),
        ),
        steps.count("sync"),
    )


def _stopped(steps: Sequence[str]) -> bool:
    held = [step for step in steps if step in ("stop", "start")]
    return bool(held) and held[-1] == "stop"


def got(jump: Jump, code: bytes) -> str:
    """Return what a CPU gets that executes these bytes: it is tried."""
    machine, at = jump.machine, jump.address
    before = machine.read(at, len(code))
    machine.poke(at, code)
    met = jump.arrive()
    machine.poke(at, before)
    return met


TASK = Task(
    name="missing-sync",
    title="Find the sync that is missing, so that no CPU meets half an instruction.",
    text=_text,
    template=_template,
    hints=(
        (
            "After each store ask: which mixtures of bytes may a CPU have that fetched some before "
            "and some after?"
        ),
        (
            "Before the first byte becomes the new one, everybody must have the new rest. And at the "
            "end nobody may still have what was there before."
        ),
        (
            "With a breakpoint: a sync after each of the three stores. Without one: while others are "
            "stopped, and before they start."
        ),
    ),
    grade=_grade,
    unit="syncs",
    best={"x86_64": 3, "arm64": 1, "riscv64": 1},
)
