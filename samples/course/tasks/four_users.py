# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve whoever needs executable memory in a kernel without modules from as few leaves as there can be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from allocator import Execmem, KernelMemory, PhysicalMemory
from allocator.designs import Design
from allocator.designs.base import Allocation, Context, Place, Request
from allocator.designs.pool import CHUNK, Pool
from allocator.errors import printable
from allocator.types import (
    GIB,
    PAGE_SIZE,
    Consumer,
    ExecmemType,
    Interval,
    MemType,
    Prot,
    align_up,
    size_text,
)
from allocator.workloads import Alloc, BranchReach, Free, Measures, run, workload
from archs import Arch
from samples.course.task import Answer, AnswerError, Check, Task, Verdict, plural

USERS: Mapping[str, Consumer] = {
    each.value: each for each in Consumer if each is not Consumer.MODULE
}
ANYWHERE = Interval(-(1 << 64), 1 << 64)
FINE = 64  # bytes: an area's size, where slices need not be opened


def legal(arch: Arch, user: str) -> Interval:
    """Return the range that an architecture gives whoever asks for text."""
    kind = ExecmemType.of(MemType.TEXT, USERS[user])
    return arch.loads.address_map().range_of(kind).range


def granule(arch: Arch) -> int:
    """Return what the size of a piece is a multiple of: a page, where slices must be opened."""
    return FINE if arch.text_poke else PAGE_SIZE


def peaks(arch: Arch) -> dict[str, int]:
    """Return the most bytes that each has at a time."""
    now, most, held = dict.fromkeys(USERS, 0), dict.fromkeys(USERS, 0), dict[str, tuple[str, int]]()
    for operation in workload("no-modules", arch.name).operations:
        if isinstance(operation, Alloc):
            user, size = operation.consumer.value, align_up(operation.size, granule(arch))
            held[operation.key] = user, size
            now[user] += size
            most[user] = max(most[user], now[user])
        elif isinstance(operation, Free):
            user, size = held.pop(operation.key)
            now[user] -= size
    return most


def measured(arch: Arch, pools: Sequence[Sequence[str]], at: Sequence[int]) -> Measures:
    """Return what becomes of a workload whose users share pools, of a chunk each, at these places."""
    mine = {USERS[user]: number for number, users in enumerate(pools) for user in users}

    class Shared(Design):
        """A pool for those who share it, in one chunk."""

        name = "shared"

        def __init__(self, context: Context) -> None:
            super().__init__(context)
            poke, memory, fine = context.text_poke, context.memory, granule(arch)
            self.pools = [Pool(memory, fine, Prot.RX, context.trap, poke=poke) for _ in pools]

        def store(self, what: Request | Allocation) -> Pool:
            return self.pools[mine[what.consumer]]

        def stores(self) -> tuple[Pool, ...]:
            return tuple(self.pools)

        def places(self, request: Request) -> Iterable[Place]:
            start = at[mine[request.consumer]]
            chunk = Interval(start, start + CHUNK)
            if request.where.range.holds(chunk):
                yield Place(interval=chunk)

    memory = KernelMemory(PhysicalMemory(GIB), arch.loads.address_map())
    execmem = Execmem(memory, trap=arch.loads.trap, text_poke=arch.text_poke, design=Shared)
    reach = BranchReach(direct=ANYWHERE, plt=ANYWHERE, region=0)
    found = run(workload("no-modules", arch.name), execmem, reach)
    execmem.check()
    return found


def _text(arch: Arch) -> str:
    image = arch.loads.address_map().image
    most = peaks(arch)
    rows = "\n".join(
        f"  {user:<8} {size_text(most[user]):>12}, from {legal(arch, user).start:#x} to {legal(arch, user).end:#x}"
        for user in USERS
    )
    return (
        f"A kernel on {arch.name} loads no modules, and {len(USERS)} parts of it need executable memory.\n"
        f"A piece takes a multiple of {granule(arch):,} bytes. What each has at most at a time, and where it\n"
        "may lie (the end is not part of it):\n"
        f"{rows}\n"
        f"The kernel image is at {image.start:#x} to {image.end:#x}. A pool is\n"
        f"{size_text(CHUNK)} under one leaf, at a multiple of that; whoever shares it takes pieces out of it.\n"
        f"Say who shares a pool, and where each pool begins, so that everybody gets what\n"
        f"`execmem compare --workload no-modules` asks for, from fewer than {len(USERS)} leaves."
    )


def _parted(answer: Answer) -> tuple[list[list[str]], list[int]]:
    """Return who shares each pool, and where it begins; AnswerError."""
    pools, at = [each.split() for each in answer.words("pools")], answer.numbers("at")
    named = sorted(user for users in pools for user in users)
    if named != sorted(USERS) or not all(pools):
        reason = (
            f"pools: they have {', '.join(named) or 'nobody'}; wanted each once: {', '.join(USERS)}"
        )
        raise AnswerError(answer.file, printable(reason))
    if len(at) != len(pools):
        raise AnswerError(answer.file, f"at: {plural(len(at), 'place')} for {len(pools)} pools")
    for start in at:
        if start < 0 or start % CHUNK:
            raise AnswerError(answer.file, f"at: {start:#x} is no multiple of {CHUNK:#x}")
    return pools, at


def _grade(answer: Answer) -> Verdict:
    pools, at = _parted(answer)
    image, checks = answer.arch.loads.address_map().image, []
    for number, (users, start) in enumerate(zip(pools, at, strict=True)):
        chunk = Interval(start, start + CHUNK)
        outside = [user for user in users if not legal(answer.arch, user).holds(chunk)]
        found = "in the range of each"
        if outside:
            found = f"{start:#x} is not in that of {', '.join(outside)}"
        elif chunk.overlaps(image):
            found = "in the kernel image"
        elif start in at[:number]:
            found = f"where pool {at.index(start)} is"
        good = found == "in the range of each"
        checks.append(
            Check(f"pool {number}, {' '.join(users)}", found, "in the range of each", good)
        )
    if all(check.passed for check in checks):
        checks += _served(measured(answer.arch, pools, at))
    return Verdict(tuple(checks), len(pools))


def _served(found: Measures) -> Iterable[Check]:
    """Yield what became of the requests."""
    failed = found.failures
    why = f", first {failed[0].who}: no room for {failed[0].size:,} bytes" if failed else ""
    number = sum(found.leaves[MemType.TEXT.name].values())
    yield Check("requests refused", f"{len(failed)}{why}", "0", not failed)
    yield Check("leaves", str(number), f"fewer than {len(USERS)}", number < len(USERS))


def _template(arch: Arch) -> str:
    starts = (align_up(legal(arch, user).start, CHUNK) for user in USERS)
    at = "".join(f'  "{start:#x}",\n' for start in starts)
    return f"pools = {json.dumps(list(USERS))}\nat = [\n{at}]\n"


TASK = Task(
    name="four-users",
    title="Serve all users of executable memory without modules from few leaves.",
    text=_text,
    template=_template,
    hints=(
        "Nobody owns the memory: who may lie at the same place may share a pool that has room for both.",
        "Two may share from the higher of their starts to the lower of their ends, outside of the image.",
        (
            "Where nothing is left of that, there are two pools; and where a piece takes a page, add up "
            "what those who share have at most: it has to be less than 2 MiB."
        ),
    ),
    grade=_grade,
    unit="pools",
    best={"x86_64": 1, "arm64": 2, "riscv64": 2, "mips64el": 2},
)
