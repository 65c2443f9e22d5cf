# SPDX-License-Identifier: GPL-2.0-or-later
"""The designs of executable memory, by name; small files behind `base.Design`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from allocator.designs.base import Context, Design, Request
from allocator.designs.blocks import ThreeBlock, TwoBlock
from allocator.designs.bpf_prog_pack import BpfProgPack
from allocator.designs.find import (
    DEFAULT,
    Chosen,
    DesignLike,
    KnownDesign,
    absolute,
    find_design,
    known,
)
from allocator.designs.per_type import PerType
from allocator.designs.rox_cache import RoxCache, RoxCache613
from allocator.designs.strata import Strata
from allocator.designs.top_down import TopDown
from allocator.designs.upstream import Bbml2, RoxCache7x, RoxRfc
from allocator.designs.vmalloc import Vmalloc, VmallocElse

__all__ = [
    "COUNTEREXAMPLES",
    "DEFAULT",
    "DESIGNS",
    "UPSTREAM",
    "BpfProgPack",
    "Chosen",
    "Context",
    "Design",
    "DesignLike",
    "Known",
    "PerType",
    "Request",
    "RoxCache",
    "RoxCache613",
    "Strata",
    "ThreeBlock",
    "TopDown",
    "TwoBlock",
    "Vmalloc",
    "VmallocElse",
    "absolute",
    "choose",
    "known_designs",
]

DESIGNS: Mapping[str, type[Design]] = MappingProxyType(
    {
        design.name: design
        for design in (
            Vmalloc,
            TopDown,
            TwoBlock,
            ThreeBlock,
            PerType,
            BpfProgPack,
            RoxCache613,
            RoxCache,
            Strata,
        )
    }
)

# Those of later Linux, and proposed ones: chosen by name, on architectures that have what they need.
UPSTREAM: Mapping[str, type[Design]] = MappingProxyType(
    {design.name: design for design in (RoxCache7x, Bbml2, RoxRfc)}
)

# Designs that cannot work, to be chosen by name and looked at; nobody iterates over them.
COUNTEREXAMPLES: Mapping[str, type[Design]] = MappingProxyType({VmallocElse.name: VmallocElse})


def choose(design: DesignLike) -> Chosen:
    """Return the design that a name, a file or a class means; ExecmemError where none is meant."""
    return find_design(design, {**DESIGNS, **UPSTREAM}, COUNTEREXAMPLES)


def known_designs() -> list[KnownDesign]:
    """Return every design that can be chosen by name and can work, ours first."""
    return known({**DESIGNS, **UPSTREAM})
