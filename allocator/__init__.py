# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory modelled once: frames, page table, kernel memory, and Execmem with its designs.

The names are brought from their files when they are asked for: who needs an error or a type
does not wait for numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allocator.designs import COUNTEREXAMPLES as COUNTEREXAMPLES
    from allocator.designs import DESIGNS as DESIGNS
    from allocator.designs import Context as Context
    from allocator.designs import Design as Design
    from allocator.designs import DesignLike as DesignLike
    from allocator.designs import Request as Request
    from allocator.designs.base import Allocation as Allocation
    from allocator.errors import AccessError as AccessError
    from allocator.errors import AllocationError as AllocationError
    from allocator.errors import DesignError as DesignError
    from allocator.errors import ExecmemError as ExecmemError
    from allocator.errors import LifecycleError as LifecycleError
    from allocator.errors import MappingError as MappingError
    from allocator.errors import PokeError as PokeError
    from allocator.events import Events as Events
    from allocator.execmem import Execmem as Execmem
    from allocator.execmem import Observer as Observer
    from allocator.execmem import Pending as Pending
    from allocator.execmem import Report as Report
    from allocator.faces import ModuleAlloc as ModuleAlloc
    from allocator.intervals import IntervalSet as IntervalSet
    from allocator.memory import KernelMemory as KernelMemory
    from allocator.pagetable import Leaf as Leaf
    from allocator.pagetable import PageTable as PageTable
    from allocator.pagetable import Span as Span
    from allocator.pagetable import Translation as Translation
    from allocator.physical import PhysicalMemory as PhysicalMemory
    from allocator.types import AddressMap as AddressMap
    from allocator.types import Consumer as Consumer
    from allocator.types import ExecmemRange as ExecmemRange
    from allocator.types import ExecmemType as ExecmemType
    from allocator.types import Interval as Interval
    from allocator.types import Memory as Memory
    from allocator.types import MemType as MemType
    from allocator.types import PokeStep as PokeStep
    from allocator.types import Prot as Prot
    from allocator.types import Site as Site
    from allocator.types import TextPoke as TextPoke

_HOME = {
    "AccessError": "allocator.errors",
    "AddressMap": "allocator.types",
    "Allocation": "allocator.designs.base",
    "AllocationError": "allocator.errors",
    "COUNTEREXAMPLES": "allocator.designs",
    "Consumer": "allocator.types",
    "Context": "allocator.designs",
    "DESIGNS": "allocator.designs",
    "Design": "allocator.designs",
    "DesignError": "allocator.errors",
    "DesignLike": "allocator.designs",
    "Events": "allocator.events",
    "Execmem": "allocator.execmem",
    "ExecmemError": "allocator.errors",
    "ExecmemRange": "allocator.types",
    "ExecmemType": "allocator.types",
    "Interval": "allocator.types",
    "IntervalSet": "allocator.intervals",
    "KernelMemory": "allocator.memory",
    "Leaf": "allocator.pagetable",
    "LifecycleError": "allocator.errors",
    "MappingError": "allocator.errors",
    "MemType": "allocator.types",
    "Memory": "allocator.types",
    "ModuleAlloc": "allocator.faces",
    "Observer": "allocator.execmem",
    "PageTable": "allocator.pagetable",
    "Pending": "allocator.execmem",
    "PhysicalMemory": "allocator.physical",
    "PokeError": "allocator.errors",
    "PokeStep": "allocator.types",
    "Prot": "allocator.types",
    "Report": "allocator.execmem",
    "Request": "allocator.designs",
    "Site": "allocator.types",
    "Span": "allocator.pagetable",
    "TextPoke": "allocator.types",
    "Translation": "allocator.pagetable",
}

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


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'allocator' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value
