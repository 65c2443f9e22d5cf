# SPDX-License-Identifier: GPL-2.0-or-later
"""Write a design of executable memory that survives modules that come and go."""

from __future__ import annotations

import attrs

from allocator import Execmem, KernelMemory, PhysicalMemory
from allocator.designs import DesignLike
from allocator.errors import DesignError
from allocator.types import GIB, Interval, MemType
from allocator.workloads import BranchReach, Measures, run, workload
from archs import Arch
from samples.course.task import Answer, Check, Task, Verdict

STEPS = 500  # operations of the workload
ANYWHERE = Interval(-(1 << 64), 1 << 64)


def _text(arch: Arch) -> str:
    return (
        "A design says where memory of a type may lie, and which store maps and frees it\n"
        f"(docs/howto/design.md). This one is to survive {STEPS} loads and unloads on {arch.name}:\n"
        "no request refused, every invariant of memory kept, and a large leaf for text at last.\n"
        "What stands here stays within 4 MiB of the start of its range, in pages."
    )


TEMPLATE = '''from allocator.designs import Vmalloc
from allocator.designs.base import Place
from allocator.types import Interval


class Mine(Vmalloc):
    """Pages, all of them near the start of their range."""

    name = "mine"

    def places(self, request):
        for number, whole in enumerate(request.intervals):
            end = min(whole.start + (4 << 20), whole.end)
            near = Interval(whole.start, end)
            yield Place(
                interval=near, fallback=bool(number), highest=False
            )
'''


def measured(arch: Arch, design: DesignLike) -> Measures:
    """Return what a design makes of the workload.

    DesignError where one from outside fails; AssertionError where it leaves memory wrong.
    """
    call = arch.link.call
    direct = ANYWHERE if call is None else Interval(call.reach.lo, call.reach.hi)
    region = call.region.size if call is not None and call.region else 0
    reach = BranchReach(direct=direct, plt=ANYWHERE, region=region)
    memory = KernelMemory(PhysicalMemory(GIB), arch.loads.address_map())
    execmem = Execmem(memory, trap=arch.loads.trap, text_poke=arch.text_poke, design=design)
    whole = workload("churn", arch.name)
    few = attrs.evolve(whole, operations=whole.operations[:STEPS])
    found = run(few, execmem, reach)
    execmem.check()
    return found


def _grade(answer: Answer) -> Verdict:
    try:
        found = measured(answer.arch, answer.file)
    except (DesignError, AssertionError) as error:
        return Verdict((Check("memory as it has to be", str(error), "no complaint", False),))
    leaves = sum(sum(sizes.values()) for sizes in found.leaves.values())
    share = found.large_share[MemType.TEXT.name]
    first = found.failures[0] if found.failures else None
    why = f", first {first.who}, {first.what}: {first.reason}" if first is not None else ""
    refused = len(found.failures)
    return Verdict(
        (
            Check("memory as it has to be", "no complaint", "no complaint", True),
            Check("requests refused", f"{refused}{why}", "0", not refused),
            Check("text under large leaves", f"{share:.0%}", "90% or more", share >= 0.9),
        ),
        leaves if not refused else None,
    )


TASK = Task(
    name="churn",
    title="Write a design of executable memory that survives modules that come and go.",
    text=_text,
    template=lambda _: TEMPLATE,
    hints=(
        "How much address space has each range? `request.intervals` are all of it.",
        "Vmalloc maps page by page; which store of `allocator.designs` carves areas out of 2 MiB?",
        (
            "A design derives from `allocator.designs.Design`, makes a Pool of `allocator.designs.pool` "
            "for each final protection in `__init__(self, context)`, as `Pool(context.memory, 64, "
            "Prot.RX, context.trap, poke=context.text_poke)`, names the one of a request in `store(self, "
            "what)` by `what.type.final_prot`, and all of them in `stores(self)`. RO_AFTER_INIT needs "
            "pages of its own: a Pool with `large=False`."
        ),
    ),
    grade=_grade,
    unit="leaves",
    best={"x86_64": 19, "arm64": 15, "riscv64": 15, "mips64el": 17},
    suffix=".py",
)
