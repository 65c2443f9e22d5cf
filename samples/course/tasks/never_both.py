# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring text to life so that no CPU can ever write to it and execute it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache

import attrs

from archs import Arch
from archs import arch as arch_by_name
from machine.racing.finding import search
from machine.racing.loading import loading
from machine.racing.model import Race
from machine.racing.scenarios import Scenario
from machine.racing.state import Done, FlushText, Maintain, Op, Protect, Put, State, Sync
from samples.course.task import Answer, AnswerError, Check, Task, Verdict

STEPS = {
    "write": "writes the code, by the page's own address",
    "sync": "makes the other CPU fetch anew",
    "ro": "takes W: the page table says R--",
    "x": "gives X as well: R-X, or RWX if W was not taken",
    "rox": "takes W and gives X at once: R-X",
    "flush": "makes every TLB forget the page",
    "flush-own": "makes this CPU's TLB forget it",
    "live": "lets others call the code",
}
MOST = 12
BORN = "RW-"


@cache
def _loaded(arch: str) -> Scenario:
    """Return a page of text that is loaded under a design by which text is born writable."""
    return loading(arch_by_name(arch), "vmalloc")


def allowed(rights: str, step: str) -> str:
    """Return what the page table says after a step."""
    if step == "ro":
        return "R--"
    if step in ("x", "rox"):
        return "RWX" if step == "x" and "W" in rights else "R-X"
    return rights


def faults(steps: Sequence[str]) -> str:
    """Return what the page table says where the code is written and may not be; empty: nowhere."""
    rights = BORN
    for step in steps:
        if step == "write" and "W" not in rights:
            return rights
        rights = allowed(rights, step)
    return ""


def raced(arch: Arch, steps: Sequence[str]) -> Race:
    """Return the steps as CPUs meet them that try to execute the text at any moment."""
    whole = _loaded(arch.name).race
    writes: list[Op] = [op for op in whole.programs[0] if isinstance(op, Put)]
    syncs: list[Op] = [op for op in whole.programs[0] if isinstance(op, Maintain | Sync)]
    program: list[Op] = []
    rights = BORN
    for step in steps:
        rights = allowed(rights, step)
        does: Mapping[str, list[Op]] = {
            "write": writes,
            "sync": syncs,
            "flush": [FlushText(broadcast=True)],
            "flush-own": [FlushText(broadcast=False)],
            "live": [Done((0,))],
        }
        program += does.get(step, [Protect(rights)])
    return attrs.evolve(whole, programs=(tuple(program),), rights=BORN)


def at_live(arch: Arch, steps: Sequence[str]) -> State:
    """Return what CPUs have when the code is called: after the steps up to `live`."""
    whole = raced(arch, steps[: steps.index("live")] if "live" in steps else steps)
    state = whole.start()
    while following := whole.moves(state, 0):
        state = following[0][1]
    return state


def unready(arch: Arch, steps: Sequence[str]) -> list[str]:
    """Return what another CPU may still have when the code is called, besides what it should."""
    state = at_live(arch, steps)
    now, held = state.rights
    (place,) = raced(arch, steps).places
    step = raced(arch, steps).granule
    wanted = [place.new[at : at + step] for at in range(0, len(place.new), step)]
    found = []
    cells = [state.cells[cell] for cell in place.cells]
    if [code for code, _ in cells] != wanted:
        found.append("memory without the code")
    elif any(stale[0] for _, stale in cells):
        found.append("bytes fetched before they were written")
    if now != "R-X":
        found.append(f"a page table that says {now}")
    old = sorted(held[-1] - {now})
    if old:
        found.append(f"a TLB that says {', '.join(old)}")
    return found


def _text(arch: Arch) -> str:
    known = "\n".join(f"  {step:<10} {what}" for step, what in STEPS.items())
    return (
        f"A page for text is born {BORN} on {arch.name}. CPU 0 takes these steps:\n"
        f"{known}\n"
        "Another CPU tries to execute the page at any moment, as an attacker would. A TLB may hold\n"
        "whatever the page table has said since it was last flushed. No CPU may execute the page\n"
        "while one can write to it; and once it is live, everybody has the code and R-X. Order the\n"
        "steps."
    )


def _grade(answer: Answer) -> Verdict:
    steps = answer.words("steps", tuple(STEPS))
    if len(steps) > MOST:
        raise AnswerError(answer.file, f"steps: {len(steps)}, at most {MOST}")
    if steps.count("live") != 1:
        raise AnswerError(answer.file, f"steps: live {steps.count('live')} times, wanted once")
    late = steps[steps.index("live") + 1 :]
    scenario = attrs.evolve(_loaded(answer.arch.name), race=raced(answer.arch, steps))
    bad = search(scenario)
    found = "never"
    if bad.bad is not None:
        mine = [step.text for step in bad.schedule if step.actor == 0]
        after = f"after it {mine[-1]}" if mine else "before CPU 0 has done anything"
        found = f"{after}: {bad.bad.text}"
    left = unready(answer.arch, steps)
    barred = faults(steps)
    return Verdict(
        (
            Check(
                "the code is written",
                f"it faults: the page is {barred}" if barred else "where W is",
                "where W is",
                not barred,
            ),
            Check("executed while it can be written", found, "never", bad.bad is None),
            Check(
                "when it is live a CPU may have",
                "; ".join(left) or "the code, R-X",
                "the code, R-X",
                not left,
            ),
            Check("steps behind live", ", ".join(late) or "none", "none", not late),
        ),
        sum(step.startswith("flush") for step in steps),
    )


TASK = Task(
    name="never-both",
    title="Bring text to life so that no CPU can ever write to it and execute it.",
    text=_text,
    template=lambda _: f"steps = {json.dumps(['write', 'sync', 'rox', 'flush', 'live'])}\n",
    hints=(
        "What may the other CPU's TLB say between a change of the page table and the flush?",
        (
            "One step that takes W and gives X leaves a moment in which one CPU has the old right and "
            "another the new one. Take first, then give."
        ),
        "What was taken is taken when all TLBs were flushed; and what was given, is there then.",
    ),
    grade=_grade,
    unit="flushes",
    best={"x86_64": 2, "arm64": 2, "riscv64": 2},
)
