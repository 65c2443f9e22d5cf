# SPDX-License-Identifier: GPL-2.0-or-later
"""What a booted kernel made of a workload, as data."""

from __future__ import annotations

from typing import Any

import attrs

from allocator.types import Hex
from allocator.workloads import Operation, Workload


@attrs.frozen(kw_only=True)
class Flushed:
    """What a kernel executed to drop translations.

    Parameters
    ----------
    instructions
        By kind, of all memory.
    functions
        Calls by name.
    pages, whole
        Of memory of modules and of the direct map: pages that were dropped one by one, and times that
        everything was.
    elsewhere
        The same of memory elsewhere, as of the copy of a module's file.
    """

    instructions: dict[str, int]
    functions: dict[str, int]
    pages: int
    whole: float
    elsewhere: int

    @property
    def total(self) -> float:
        """Flushes of memory of modules and of the direct map: pages one by one, and everything."""
        return self.pages + self.whole


NOTHING = Flushed(instructions={}, functions={}, pages=0, whole=0.0, elsewhere=0)


@attrs.frozen(kw_only=True)
class KernelMeasures:
    """What a booted kernel made of a workload.

    Parameters
    ----------
    kernel, arch, page
        Its release, its architecture, and the bytes of a page.
    modules
        Modules that were loaded, unloaded ones included.
    refused
        Modules that were not, and what the kernel said.
    passed_over
        Operations that were not done.
    operations, done
        Operations of the workload, and how many of them were gone through.
    interrupted
        Whether an interrupt ended it before all were.
    ended
        What the kernel did not come back from, where that ended it.
    leaves
        By type: leaves that hold live memory of the type, by size.
    large_share
        By type: share of live bytes under large leaves.
    direct_map_before, direct_map_after
        Leaves of the direct map by size.
    flushes
        By step (`load`, `unload`), what was executed to drop translations.
    regions
        By module, what it holds: type, address and size.
    asked
        The workload as the kernel was asked for it.
    unmapped
        Live memory that the page tables do not map: module and type. Nobody should ever see any.
    programs
        BPF programs that are loaded at the end, the bytes of their code, and the leaves that map it by
        size.
    attached
        By consumer (kprobes, ftrace), what is registered at the end (`held`), areas of memory that were
        taken for it and are still there (`areas`), their bytes, and the leaves that map them by size.
    areas
        By key, such an area: where it is.
    notes
        What the measures do not show.
    """

    kernel: str
    arch: str
    page: int
    modules: int
    refused: dict[str, str]
    passed_over: int
    operations: int
    done: int
    interrupted: bool
    ended: str
    leaves: dict[str, dict[str, int]]
    large_share: dict[str, float]
    direct_map_before: dict[str, int]
    direct_map_after: dict[str, int]
    flushes: dict[str, Flushed]
    regions: dict[str, dict[str, tuple[int, int]]]
    asked: Workload
    unmapped: list[str]
    programs: dict[str, int]
    attached: dict[str, dict[str, int]]
    areas: dict[str, int]
    notes: tuple[str, ...]

    @property
    def direct_map_splits(self) -> int:
        """Large leaves of the direct map that are gone."""
        before, after = self.direct_map_before, self.direct_map_after
        return sum(max(0, before[size] - after.get(size, 0)) for size in list(before)[1:])

    def as_json(self) -> dict[str, Any]:
        """Return it as the JSON document shows it."""
        found = attrs.asdict(self, filter=lambda field, _: field.name not in ("regions", "asked"))
        found["areas"] = {key: Hex(at) for key, at in self.areas.items()}
        regions = {
            name: {kind: [Hex(at), size] for kind, (at, size) in held.items()}
            for name, held in self.regions.items()
        }
        return found | {"direct_map_splits": self.direct_map_splits, "regions": regions}


@attrs.define(kw_only=True)
class Done:
    """How far a workload has come.

    Parameters
    ----------
    operations, count
        Of the workload, and those that were gone through.
    asked
        What the kernel was asked for.
    refused
        Modules and programs that it refused, and what it said.
    passed_over
        Operations that were not done.
    interrupted, ended
        As measures tell.
    """

    operations: int
    count: int = 0
    asked: list[Operation] = attrs.field(factory=list)
    refused: dict[str, str] = attrs.field(factory=dict)
    passed_over: int = 0
    interrupted: bool = False
    ended: str = ""


@attrs.frozen(kw_only=True)
class Frames:
    """Where the kernel put a region: its address, and the physical one of each page."""

    address: int
    pages: list[int]
