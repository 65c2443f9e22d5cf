# SPDX-License-Identifier: GPL-2.0-or-later
"""Workloads at scale, and the lookup of all workloads by name.

They take minutes to hours under some designs, so nothing runs them unasked. Like the others they
are fixed sequences: a kernel developer writes one to a file (`execmem compare --workload NAME
--arch ARCH --record FILE`) and replays the file's lines against a patch.

What lies in the kernel image itself is not executable memory of an allocator: of ftrace and of live
patches only the modules' functions are written here.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType

from allocator.errors import ExecmemError
from allocator.types import GIB, KIB, Consumer, MemType
from allocator.workloads.operations import (
    Alloc,
    Free,
    Load,
    Module,
    Operation,
    Patch,
    Quiet,
    Region,
    Unload,
    Workload,
)
from allocator.workloads.sources import (
    SERVER,
    TRAMPOLINE,
    WORKLOADS,
    WorkloadSource,
    attach,
    modules,
    named,
    program_size,
)
from allocator.workloads.table import debian

FUNCTION = 256  # bytes of text per function that ftrace can trace, about what Debian's modules have
HOURS = 24


def bpf_day(
    _arch: str, *, programs: int = 1_000_000, live: int = 10_000, seed: int = 1
) -> Iterator[Operation]:
    """Yield a day of BPF programs: by day twice as many come as by night, each lives for a while.

    Parameters
    ----------
    live
        Programs that are alive on average; lives are of exponential length.
    """
    chance = random.Random(seed)  # noqa: S311 - a run that can be repeated, no secret
    ends: list[tuple[float, int]] = []
    for number in range(programs):
        hour = HOURS * number // programs
        while ends and ends[0][0] <= number:
            yield Free(f"bpf-{heapq.heappop(ends)[1]}")
        yield Alloc(key=f"bpf-{number}", size=program_size(chance), consumer=Consumer.BPF, align=8)
        mean = live * (4 / 3 if 8 <= hour < 20 else 2 / 3)
        heapq.heappush(ends, (number + chance.expovariate(1 / mean), number))


def tree_again(arch: str, *, times: int = 100) -> Iterator[Operation]:
    """Yield the loads of a distribution's whole tree and its unloads, users first, again and again."""
    table = debian(arch)
    loads = list(modules(table, table))
    unloads = [Unload(one.module.name) for one in reversed(loads) if isinstance(one, Load)]
    for _ in range(times):
        yield from loads
        yield Quiet()
        yield from unloads
        yield Quiet()


def ftrace_all(arch: str, *, times: int = 10) -> Iterator[Operation]:
    """Yield a server on which all functions of all modules are traced, and then not any more."""
    yield from (loads := list(named(SERVER)(arch)))
    yield Quiet()
    yield from attach(Consumer.FTRACE, range(100))
    patches = [
        Patch(one.module.name, max(1, region.size // FUNCTION))
        for one in loads
        if isinstance(one, Load)
        for region in one.module.regions
        if region.type is MemType.TEXT
    ]
    for _ in range(2 * times):
        yield from patches


def live_patches(
    arch: str, *, patches: int = 200, functions: int = 5, seed: int = 1
) -> Iterator[Operation]:
    """Yield a server with live patches, each of some functions of one module; half are taken back."""
    chance = random.Random(seed)  # noqa: S311 - a run that can be repeated, no secret
    loads = [one for one in named(SERVER)(arch) if isinstance(one, Load)]
    yield from loads
    there: list[tuple[str, str]] = []
    for number in range(patches):
        target, name = chance.choice(loads).module.name, f"livepatch-{number}"
        sizes = {
            MemType.TEXT: chance.randrange(KIB, 32 * KIB),
            MemType.DATA: chance.randrange(KIB, 4 * KIB),
            MemType.RODATA: chance.randrange(256, 8 * KIB),
            MemType.RO_AFTER_INIT: 96,
            MemType.INIT_TEXT: 64,
        }
        regions = tuple(Region(kind, size, 64) for kind, size in sizes.items())
        yield Load(
            Module(name=name, regions=regions, calls=(functions, functions, 0), depends=(target,))
        )
        for function in range(functions):
            key = f"{name}-{function}"
            yield Alloc(key=key, size=TRAMPOLINE, consumer=Consumer.FTRACE, align=8)
        yield Patch(target, functions)
        there.append((name, target))
        if number % 2:
            name, target = there.pop(chance.randrange(len(there)))
            yield Patch(target, functions)
            yield from (Free(f"{name}-{function}") for function in range(functions))
            yield Unload(name)


AT_SCALE: Mapping[str, WorkloadSource] = MappingProxyType(
    {
        "bpf-day": WorkloadSource("a day of 1,000,000 BPF programs, about 10,000 alive", bpf_day),
        "tree-100": WorkloadSource(
            "every module of Debian 6.12 loaded and unloaded 100 times", tree_again, 4 * GIB
        ),
        "tree-3": WorkloadSource(
            "every module of Debian 6.12 loaded and unloaded 3 times",
            partial(tree_again, times=3),
            4 * GIB,
        ),
        "ftrace-all": WorkloadSource(
            "all functions of a server traced and not, 10 times", ftrace_all
        ),
        "livepatch": WorkloadSource("200 live patches on a server, half taken back", live_patches),
    }
)


def sources() -> dict[str, WorkloadSource]:
    """Return all workloads by name, those at scale last."""
    return {**WORKLOADS, **AT_SCALE}


def workload(name: str, arch: str) -> Workload:
    """Return the workload called `name` for an architecture.

    ExecmemError where there is none of that name, or no table for the architecture.
    """
    source = sources().get(name)
    if source is None:
        raise ExecmemError(f"no workload {name!r}; there are {', '.join(sources())}")
    operations = tuple(source.build(arch))
    return Workload(name=name, arch=arch, operations=operations, memory=source.memory)
