# SPDX-License-Identifier: GPL-2.0-or-later
"""Name a range for module text, so that the #else of the thread loads."""

from __future__ import annotations

from allocator.designs.vmalloc import Vmalloc
from allocator.errors import AllocationError
from allocator.types import ADDRESS_MASK, PAGE_SIZE, Consumer, ExecmemRange, Interval, MemType
from archs import Arch
from loader.errors import LoadError
from machine.machine import ModelledMachine
from samples.course.task import Answer, AnswerError, Check, Task, Verdict
from samples.modules import root

SEEDS = (None, 1, 2, 3)
MODULES = "hello", "mathuser"


def _text(arch: Arch) -> str:
    image = arch.loads.address_map().image.size
    return (
        "The #else of 2022 took module text from the vmalloc range of an architecture that names\n"
        f"no range of its own (`execmem demo vmalloc_else`). Name one for {arch.name}: where it\n"
        "starts and ends, in bytes from the start of the kernel image (which has\n"
        f"{image:#x} bytes), so that it holds under KASLR, too. {' and '.join(MODULES)} are loaded there on {len(SEEDS)} boots; and every call\n"
        "must reach from anywhere in the range to anywhere in the range and in the kernel image."
    )


def spare(arch: Arch) -> int:
    """Return how many bytes a range can have at most: what a call spans, beside the image."""
    assert arch.link.call is not None
    image = arch.loads.address_map().image.size
    return min(-arch.link.call.reach.lo, arch.link.call.reach.hi) - image & -PAGE_SIZE


def _grade(answer: Answer) -> Verdict:
    arch = answer.arch
    start, end = answer.number("start"), answer.number("end")
    if start % PAGE_SIZE or end % PAGE_SIZE:
        raise AnswerError(answer.file, f"start and end are whole pages, of {PAGE_SIZE:#x}")
    assert arch.link.call is not None
    reach, image = arch.link.call.reach, arch.loads.address_map().image.size
    apart = end <= 0 or start >= image
    checks = [
        Check("the range holds", f"{end - start:,} bytes", "a page or more", end > start),
        Check("beside the kernel image", "apart" if apart else "overlaps", "apart", apart),
    ]
    # From the last instruction of the one to the first of the other, and back.
    low, high = min(start, 0), max(end, image) - reach.align
    for what, x in (("longest call up", high - low), ("longest call down", low - high)):
        checks.append(Check(what, f"{x:+#x}", f"in {reach}", x in reach))
    if all(check.passed for check in checks):
        checks += _loaded(arch, start, end)
    return Verdict(tuple(checks), max(0, spare(arch) - (end - start)) // PAGE_SIZE)


def _loaded(arch: Arch, start: int, end: int) -> list[Check]:
    """Load the modules there, on several boots."""

    class Repaired(Vmalloc):
        """Text in the range of the answer."""

        name = "repaired"

        def where(self, mem_type: MemType, consumer: Consumer) -> ExecmemRange:
            if not mem_type.is_text:
                return super().where(mem_type, consumer)
            base = self.memory.address_map.image.start
            return ExecmemRange(range=Interval(base + start, base + end))

    base = arch.loads.address_map().image.start
    if base + start < 1 << 63 or base + end > ADDRESS_MASK:
        return [Check("the range is kernel memory", f"from {base + start:#x}", "kernel", False)]
    refused, entries, said = 0, 0, ""
    for seed in SEEDS:
        machine = ModelledMachine(arch, root=root(arch.name), design=Repaired, kaslr=seed)
        for name in MODULES:
            try:
                entries += machine.load(name).report.plt_slots
            except (LoadError, AllocationError) as error:
                refused += 1
                said = said or f": {str(error).splitlines()[0]}"
    boots = len(SEEDS)
    return [
        Check(f"loads refused on {boots} boots", f"{refused}{said}", "0", not refused),
        Check(f"PLT entries on {boots} boots", str(entries), "0", not entries),
    ]


TASK = Task(
    name="repair-else",
    title="Name a range for module text, so that the #else of the thread loads.",
    text=_text,
    template=lambda _: 'start = "0x0"\nend = "0x0"\n',
    hints=(
        "How far does a call get? The range, the image and what lies between must fit into that.",
        (
            "A range that ends where the image starts needs the distance from its own first byte to "
            "the last of the image: its size and the image's together."
        ),
        (
            "Let the range end where the image starts, at 0. It may start so low that the last "
            "instruction of the image is still reached: at the size of the image minus the reach."
        ),
    ),
    grade=_grade,
    unit="pages left out",
    best={"arm64": 0, "riscv64": 0},
)
