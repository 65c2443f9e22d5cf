# SPDX-License-Identifier: GPL-2.0-or-later
"""Free what a patch leads away from as soon as nobody executes it any more, and not before."""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs

from allocator import PokeStep
from allocator.types import MemType
from archs import Arch
from emulator.faults import Fault
from machine.machine import ModelledMachine
from samples.course.task import Answer, AnswerError, Check, Task, Verdict
from samples.jump import ARGUMENTS, FROM, TO
from samples.modules import root

OTHERS, MOST, SIZE = (1, 2), 12, 64
STEPS = {
    "store": "CPU 0 pokes the jump, so that memory has the new one",
    **{f"sync {cpu}": f"CPU {cpu} is made to fetch anew" for cpu in OTHERS},
    **{
        f"leave {cpu}": f"waits for a moment when CPU {cpu} is not in the trampoline"
        for cpu in OTHERS
    },
    "free": "the trampoline's memory is freed, and filled with traps",
}


@attrs.define
class Cpu:
    """What another CPU may be doing: it goes by the jump all the time, and nobody sees when."""

    fetches_old: bool = True  # may still have the old jump
    inside: bool = True  # may stand in the trampoline

    def why(self) -> str:
        """Say how it may execute what was freed, or nothing."""
        if self.fetches_old:
            return "may still have the old jump"
        return "may still stand in the trampoline" if self.inside else ""


def followed(steps: Sequence[str]) -> tuple[dict[int, Cpu], bool, bool]:
    """Return what the other CPUs may do when it is freed, and whether it was stored, and freed.

    What comes behind `free` comes too late.
    """
    cpus, stored = {cpu: Cpu() for cpu in OTHERS}, False
    for step in steps:
        does, _, cpu = step.partition(" ")
        if does == "free":
            return cpus, stored, True
        stored = stored or does == "store"
        if does == "sync":
            cpus[int(cpu)].fetches_old = not stored
        elif does == "leave":  # who still has the old jump may come back at once
            cpus[int(cpu)].inside = cpus[int(cpu)].fetches_old
    return cpus, stored, False


def played(arch: Arch, steps: Sequence[str]) -> list[str]:
    """Return what CPU 0's steps and then a call on each of the others come to, on a machine."""
    assert arch.live_patch is not None
    encode = arch.live_patch.jump
    machine = ModelledMachine(arch, root=root(arch.name), cpus=1 + len(OTHERS))
    gcd, lcm = [machine.load(module).symbols[name] for module, name in (FROM, TO)]
    trampoline, site = (machine.execmem.alloc(MemType.TEXT, SIZE) for _ in range(2))
    trampoline.write(0, encode(trampoline.address, gcd) or b"")
    old, new = (encode(site.address, to) or b"" for to in (trampoline.address, lcm))
    site.write(0, old)
    trampoline.finish()
    at = site.finish().address

    def arrive(cpu: int) -> str:
        try:
            return str(machine.call(at, *ARGUMENTS, cpu=cpu, instructions=10_000))
        except Fault as fault:
            return fault.kind.value

    for number in OTHERS:
        arrive(number)
    for step in steps:
        does, _, cpu = step.partition(" ")
        if does == "store":
            machine.poke(at, new, omit={PokeStep.SYNC})
        elif does == "sync":
            machine.cpus[int(cpu)].sync_icache(at, at + len(new))
        elif does == "free":
            machine.execmem.free(trampoline.address)
            break
    return [arrive(cpu) for cpu in OTHERS]


def _text(_: Arch) -> str:
    known = "\n".join(f"  {step:<8} {what}" for step, what in STEPS.items())
    return (
        f"A jump leads to {FROM[1]} by way of a trampoline. CPUs 1 and 2 go by it all the\n"
        f"time; they may have fetched it before, and may stand in the trampoline. CPU 0 makes it\n"
        f"a jump to {TO[1]}, and frees the trampoline. Say its steps, so that\n"
        "nobody executes freed memory:\n"
        f"{known}"
    )


def _grade(answer: Answer) -> Verdict:
    steps = answer.words("steps", tuple(STEPS))
    if len(steps) > MOST:
        raise AnswerError(answer.file, f"steps: {len(steps)}, at most {MOST}")
    for once in ("store", "free"):
        if steps.count(once) > 1:
            raise AnswerError(answer.file, f"steps: {once} {steps.count(once)} times, at most once")
    cpus, stored, freed = followed(steps)
    checks = [
        Check("the jump is stored", "yes" if stored else "no", "yes, before it is freed", stored),
        Check("the trampoline is freed", "yes" if freed else "no", "yes", freed),
    ]
    whys = {cpu: each.why() for cpu, each in cpus.items()}
    for cpu, why in whys.items():
        found = f"{why}, when it is freed" if why else "is out, and has the new jump"
        checks.append(Check(f"CPU {cpu}", found, "is out, and has the new jump", not why))
    if stored and freed:
        got = played(answer.arch, steps)
        right = played(answer.arch, ["store", *(f"sync {cpu}" for cpu in OTHERS)])
        checks.append(Check("calls then get", ", ".join(got), ", ".join(right), got == right))
    return Verdict(tuple(checks), len(steps))


TASK = Task(
    name="when-to-free",
    title="Free the code that a patch leads away from, when nobody executes it any more.",
    text=_text,
    template=lambda _: f"steps = {json.dumps(['store', 'leave 1', 'leave 2', 'free'])}\n",
    hints=(
        "There are two ways to execute freed memory: to jump there, and to be there already.",
        (
            "Who has left may come back while it still has the old jump. What must come first, so that "
            "it cannot?"
        ),
        "For each CPU, in this order: the store, its sync, its leave; and free after all of them.",
    ),
    grade=_grade,
    unit="steps",
    best={"x86_64": 6, "arm64": 6, "riscv64": 6},
)
