# SPDX-License-Identifier: GPL-2.0-or-later
"""Write scattered places of finished text with as few flushes as there can be."""

from __future__ import annotations

from allocator import Execmem, KernelMemory, PhysicalMemory, PokeError
from allocator.types import MIB, PAGE_SIZE, MemType
from archs import Arch
from samples.course.task import Answer, AnswerError, Check, Task, Verdict

PAGES, WORD, MOST = 16, 8, 64
# Offsets of what is to change, 8 bytes each: pages 0, 1, 1, 2, 3, 5, 6, 6, 9, 10, 12, 15.
SITES = (
    0x0F10,
    0x1008,
    0x1FF0,
    0x2010,
    0x3080,
    0x5E00,
    0x6000,
    0x6100,
    0x9F80,
    0xA000,
    0xC400,
    0xF7C0,
)
HELD = len({site // PAGE_SIZE for site in SITES})  # pages that hold a place


def each(arch: Arch) -> int:
    """Return the flushes of one mapping: when it is taken away, and before it on some."""
    poke = arch.text_poke
    assert poke is not None
    return 1 + poke.flush_first


def _text(arch: Arch) -> str:
    poke = arch.text_poke
    assert poke is not None
    sites = ", ".join(f"{site:#x}" for site in SITES)
    return (
        f"{len(SITES)} places of {WORD} bytes in {PAGES} pages of finished text change, at offsets\n"
        f"{sites}.\n"
        "Each write is one poke, and may take along what is between, which stays as it is.\n"
        f"{poke.name} maps {poke.pages} page{'s' * (poke.pages > 1)} at once, and flushes each time "
        f"it{' maps them and' * poke.flush_first} takes them away.\n"
        "Say which bytes to write: offset and size of each write, in any order. It may cost what\n"
        f"one write for each page that holds a place costs: {HELD * each(arch)}."
    )


def _grade(answer: Answer) -> Verdict:
    arch, writes = answer.arch, answer.pairs("writes")
    if len(writes) > MOST:
        raise AnswerError(answer.file, f"writes: {len(writes)}, at most {MOST}")
    size, trap = PAGES * PAGE_SIZE, arch.loads.trap
    memory = KernelMemory(PhysicalMemory(64 * MIB), arch.loads.address_map())
    execmem = Execmem(memory, trap=trap, text_poke=arch.text_poke)
    pending = execmem.alloc(MemType.TEXT, size, align=PAGE_SIZE)
    old = (trap * size)[:size]
    pending.write(0, old)
    start = pending.finish().address
    wanted = bytearray(old)
    for number, site in enumerate(SITES):
        wanted[site : site + WORD] = bytes([number + 1] * WORD)
    before, refused = memory.events.copy(), []
    for offset, length in writes:
        if not (offset >= 0 and length > 0 and offset + length <= size):
            refused.append(f"[{offset:#x}, {length:#x}] is not in the text")
            continue
        try:
            execmem.poke(start + offset, bytes(wanted[offset : offset + length]))
        except PokeError as error:
            refused.append(error.reason)
    flushes = (memory.events - before).tlb_flushes
    found = execmem.memory.read(start, size)
    left = [site for site in SITES if found[site : site + WORD] != wanted[site : site + WORD]]
    missed = f", not at {', '.join(f'{site:#x}' for site in left[:3])}" if left else ""
    done, most = len(SITES) - len(left), HELD * each(arch)
    return Verdict(
        (
            Check("writes refused", "; ".join(refused[:2]) or "0", "0", not refused),
            Check("places that changed", f"{done}{missed}", str(len(SITES)), not left),
            Check("flushes", str(flushes), f"{most} or fewer", flushes <= most),
        ),
        flushes,
    )


TASK = Task(
    name="fewest-flushes",
    title="Write scattered places of finished text with as few flushes as there can be.",
    text=_text,
    template=lambda _: "writes = [\n" + "".join(f'  ["{s:#x}", {WORD}],\n' for s in SITES) + "]\n",
    hints=(
        "What is written in one poke is mapped at once. Which places lie in one page?",
        "A write from one place to the next in the same page costs one flush instead of two.",
        (
            "Where two pages are mapped at once, pair pages that are neighbours; a third page in a "
            "write begins the next mapping."
        ),
    ),
    grade=_grade,
    unit="flushes",
    best={"x86_64": 6, "arm64": 10, "riscv64": 12},
)
