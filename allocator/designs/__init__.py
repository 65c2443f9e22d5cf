# SPDX-License-Identifier: GPL-2.0-or-later
"""The designs of executable memory, by name; one file each behind `base.Design`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from allocator.designs.base import Context, Design, Request
from allocator.designs.per_type import PerType
from allocator.designs.vmalloc import Vmalloc

__all__ = ["DESIGNS", "Context", "Design", "PerType", "Request", "Vmalloc"]

DESIGNS: Mapping[str, type[Design]] = MappingProxyType(
    {design.name: design for design in (Vmalloc, PerType)}
)
