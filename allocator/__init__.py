# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory modelled once: frames, page table, kernel memory, and Execmem with its designs."""

from __future__ import annotations

from allocator.designs import COUNTEREXAMPLES, DESIGNS, Context, Design, DesignLike, Request
from allocator.designs.base import Allocation
from allocator.errors import (
    AccessError,
    AllocationError,
    DesignError,
    ExecmemError,
    LifecycleError,
    MappingError,
    PokeError,
)
from allocator.events import Events
from allocator.execmem import Execmem, Observer, Pending, Report
from allocator.faces import ModuleAlloc
from allocator.intervals import IntervalSet
from allocator.memory import KernelMemory
from allocator.pagetable import Leaf, PageTable, Span, Translation
from allocator.physical import PhysicalMemory
from allocator.types import (
    AddressMap,
    Consumer,
    ExecmemRange,
    ExecmemType,
    Interval,
    Memory,
    MemType,
    PokeStep,
    Prot,
    Site,
    TextPoke,
)

__all__ = [
    "COUNTEREXAMPLES",
    "DESIGNS",
    "AccessError",
    "AddressMap",
    "Allocation",
    "AllocationError",
    "Consumer",
    "Context",
    "Design",
    "DesignError",
    "DesignLike",
    "Events",
    "Execmem",
    "ExecmemError",
    "ExecmemRange",
    "ExecmemType",
    "Interval",
    "IntervalSet",
    "KernelMemory",
    "Leaf",
    "LifecycleError",
    "MappingError",
    "MemType",
    "Memory",
    "ModuleAlloc",
    "Observer",
    "PageTable",
    "Pending",
    "PhysicalMemory",
    "PokeError",
    "PokeStep",
    "Prot",
    "Report",
    "Request",
    "Site",
    "Span",
    "TextPoke",
    "Translation",
]
