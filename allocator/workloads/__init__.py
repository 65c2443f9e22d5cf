# SPDX-License-Identifier: GPL-2.0-or-later
"""Workloads: what is asked of executable memory, and what a design made of it, measured.

Pure: sizes instead of modules, no loader and no emulator. A workload is a sequence of
operations (`operations`), from a table of real sizes (`table`), a seeded source
(`sources`) or a recorded trace; `run` carries it out against one Execmem.
"""

from __future__ import annotations

from allocator.workloads.operations import (
    Alloc,
    Free,
    Load,
    Module,
    Operation,
    Pages,
    Patch,
    Quiet,
    Region,
    Seal,
    Settle,
    TraceError,
    Unload,
    Workload,
    read_trace,
    write_trace,
)
from allocator.workloads.overtime import Costs, Moment, OverTime, Spread
from allocator.workloads.reach import BranchReach
from allocator.workloads.run import Measures, RefusedOperation, Runner, run
from allocator.workloads.scale import AT_SCALE, sources, workload
from allocator.workloads.sources import WORKLOADS
from allocator.workloads.table import debian, load_order

__all__ = [
    "AT_SCALE",
    "WORKLOADS",
    "Alloc",
    "BranchReach",
    "Costs",
    "Free",
    "Load",
    "Measures",
    "Module",
    "Moment",
    "Operation",
    "OverTime",
    "Pages",
    "Patch",
    "Quiet",
    "RefusedOperation",
    "Region",
    "Runner",
    "Seal",
    "Settle",
    "Spread",
    "TraceError",
    "Unload",
    "Workload",
    "debian",
    "load_order",
    "read_trace",
    "run",
    "sources",
    "workload",
    "write_trace",
]
