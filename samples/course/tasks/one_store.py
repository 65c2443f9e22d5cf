# SPDX-License-Identifier: GPL-2.0-or-later
"""Choose where a jump leads, so that one store changes it and nobody can meet half of it."""

from __future__ import annotations

import math

from allocator import PokeStep
from allocator.types import PAGE_SIZE, MemType
from archs import Arch
from emulator.faults import Fault
from machine.machine import ModelledMachine
from samples.course.task import Answer, AnswerError, Check, Task, Verdict
from samples.course.tasks.missing_sync import pieces
from samples.jump import ARGUMENTS, FROM, TO
from samples.modules import root

PAGES = 8
ROOM = PAGES * PAGE_SIZE
KEYS = "jump", "old", "new"
SHOWN = 0x40, 0x1040, 0x1440, 0x3880  # distances whose jumps a reader sees


def _text(arch: Arch) -> str:
    poke = arch.text_poke
    assert poke is not None
    return (
        f"A jump of {len(_encoded(arch, 0, 64))} bytes is changed while another CPU executes it. A store\n"
        f"of {poke.granule} is whole; a jump of which only one such store changes can be met old or\n"
        f"new, and never half. In {ROOM // 1024} KiB of text choose the offsets of the jump, of the\n"
        f"function it leads to (`old`) and of the one it is to lead to (`new`), each a multiple of\n"
        f"{arch.loads.function_alignment}, old and new at least {PAGE_SIZE} apart. From 0x0 it is\n"
        + "\n".join(f"  {_encoded(arch, 0, to).hex(' ')}  to {to:#x}" for to in SHOWN)
    )


def _encoded(arch: Arch, at: int, to: int) -> bytes:
    assert arch.live_patch is not None
    return arch.live_patch.jump(at, to) or b""


def _grade(answer: Answer) -> Verdict:
    arch = answer.arch
    step = arch.loads.function_alignment
    places = {key: answer.number(key) for key in KEYS}
    for key, offset in places.items():
        if offset % step or not 0 <= offset <= ROOM - 64:
            reason = f"{key} = {offset:#x}: a multiple of {step} in [0x0, {ROOM - 64:#x}]"
            raise AnswerError(answer.file, reason)
    poke = arch.text_poke
    assert poke is not None
    machine = ModelledMachine(arch, root=root(arch.name), cpus=2)
    leads = [machine.load(module).symbols[function] for module, function in (FROM, TO)]
    pending = machine.execmem.alloc(MemType.TEXT, ROOM, align=ROOM)
    at, old, new = (pending.address + places[key] for key in KEYS)
    first, second = _encoded(arch, at, old), _encoded(arch, at, new)
    apart = min(abs(places[a] - places[b]) for a, b in (("jump", "old"), ("jump", "new")))
    checks = [
        Check(
            "old and new apart",
            f"{abs(old - new):,}",
            f"{PAGE_SIZE:,}",
            abs(old - new) >= PAGE_SIZE,
        ),
        Check("the jump beside the functions", f"{apart:,} apart", "64 or more", apart >= 64),
    ]
    pairs = list(zip(pieces(first, poke.granule), pieces(second, poke.granule), strict=True))
    differ = [number for number, (one, other) in enumerate(pairs) if one != other]
    one_only = len(differ) == 1
    checks.append(Check("stores that differ", f"{len(differ)} of {len(pairs)}", "1", one_only))
    if all(check.passed for check in checks):
        for offset, lead in zip((places["old"], places["new"]), leads, strict=True):
            pending.write(offset, _encoded(arch, pending.address + offset, lead))
        pending.write(places["jump"], first)
        pending.finish()
        gcd, lcm = str(math.gcd(*ARGUMENTS)), str(math.lcm(*ARGUMENTS))
        met = [_call(machine, at)]
        place = at + differ[0] * poke.granule
        machine.poke(place, pairs[differ[0]][1], omit={PokeStep.SYNC})
        met.append(_call(machine, at))
        machine.cpus[1].sync_icache(at, at + len(second))
        met.append(_call(machine, at))
        checks.append(
            Check(
                "CPU 1 got before, after the store, after the sync",
                ", ".join(met),
                f"{gcd}, {gcd} or {lcm}, {lcm}",
                met[0] == gcd and met[1] in (gcd, lcm) and met[2] == lcm,
            )
        )
    return Verdict(tuple(checks), len(differ))


def _call(machine: ModelledMachine, at: int) -> str:
    try:
        return str(machine.call(at, *ARGUMENTS, cpu=1, instructions=10_000))
    except Fault as fault:
        return fault.kind.value


TASK = Task(
    name="one-store",
    title="Choose where a jump leads, so that one store changes it and none is torn.",
    text=_text,
    template=lambda _: 'jump = "0x0"\nold = "0x1000"\nnew = "0x3440"\n',
    hints=(
        (
            "Which bits of the distance go into which store? Compare the jumps that the file shows, "
            "two by two."
        ),
        (
            "Two distances that differ only in bits of one store: their difference is a multiple of "
            "the lowest bit there, and carries nowhere."
        ),
        (
            "Try old and new that are 0x1000 apart, with the jump at 0x0: on x86-64 that changes the "
            "second byte of four, on RISC-V bits 12 to 15."
        ),
    ),
    grade=_grade,
    unit="stores",
    best={"x86_64": 1, "riscv64": 1},
)
