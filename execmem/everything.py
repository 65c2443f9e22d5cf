# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole tree of modules in one guest, under one design: how long, how much memory, how far.

Loading one module says little about reach: it is the last of thousands that finds the window
full, its callees far away and its calls in need of PLT entries. So every module of a tree is
loaded, dependencies first, and what counts is summed up on the way. A module that is refused
is counted, and the others go on.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console

from allocator.errors import ExecmemError
from allocator.types import GIB, Hex, MemType, size_text
from archs.reloc import Reloc
from execmem.report import module_extents, table
from execmem.sweep.summary import kind_of
from machine.machine import ModelledMachine

MEMORY = 4 * GIB  # of the guest; untouched memory costs nothing


@attrs.define
class Reached:
    """How far the relocations of one type reach in all modules."""

    row: Reloc
    count: int = 0
    lo: int = 0
    hi: int = 0
    share: float = 0.0


@attrs.define
class Whole:
    """A guest with all modules of a tree.

    Parameters
    ----------
    machine
        The guest.
    seconds
        Wall-clock time of loading.
    resident
        Bytes by which the host process grew.
    refused
        Kind of error -> how many modules it kept out.
    reached
        Relocation type -> how far it reaches.
    plt_slots
        PLT entries in use.
    before_first_plt
        Modules loaded before the first that uses one; None where none does.
    """

    machine: ModelledMachine
    seconds: float = 0.0
    resident: int = 0
    refused: Counter[str] = attrs.field(factory=Counter)
    reached: dict[str, Reached] = attrs.field(factory=dict)
    plt_slots: int = 0
    before_first_plt: int | None = None

    @property
    def guest(self) -> int:
        """Bytes of the guest's memory that are in use."""
        physical = self.machine.memory.physical
        return physical.size - physical.free_bytes

    @property
    def text(self) -> tuple[int, int]:
        """Lowest and highest address of text, half-open."""
        spans = [
            region
            for module in self.machine.modules.values()
            for kind, region in module.regions.items()
            if kind is MemType.TEXT
        ]
        if not spans:
            return 0, 0
        return min(s.address for s in spans), max(s.address + s.size for s in spans)

    def as_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        report = self.machine.execmem.report()
        return {
            "arch": self.machine.arch.name,
            "design": self.machine.design,
            "modules": len(self.machine.modules),
            "refused": self.refused.total(),
            "errors": [{"error": e, "count": n} for e, n in self.refused.most_common()],
            "seconds": round(self.seconds, 3),
            "guest_bytes": self.guest,
            "resident_bytes": self.resident,
            "bytes": {kind.name: report.bytes[kind] for kind in MemType if report.bytes.get(kind)},
            "leaves": {
                kind.name: {size_text(size).replace(" ", ""): n for size, n in sizes.items()}
                for kind, sizes in report.leaves.items()
            },
            "large_share": {kind.name: share for kind, share in report.large_share.items()},
            "padding_bytes": report.padding_bytes,
            "fallbacks": report.fallbacks,
            "text": [Hex(address) for address in self.text],
            "plt_slots": self.plt_slots,
            "modules_before_first_plt": self.before_first_plt,
            "relocations": {
                name: {
                    "count": found.count,
                    "lo": Hex(found.lo),
                    "hi": Hex(found.hi),
                    "share": round(found.share, 4),
                }
                for name, found in sorted(self.reached.items())
            },
        }


def load_all(
    machine: ModelledMachine,
    names: Iterable[str],
    *,
    init: bool = False,
    after_each: Callable[[], object] = lambda: None,
) -> Whole:
    """Load modules by name, each with its dependencies, and say what came of it.

    Parameters
    ----------
    machine
        A machine with a module tree.
    names
        Names under its root.
    init
        Run their init too; a module whose init fails is refused.
    after_each
        Called after each name.
    """
    whole = Whole(machine)
    before, start = _resident(), time.monotonic()
    seen: set[str] = set()
    for name in names:
        if name not in machine.modules:
            try:
                machine.load(name, init=init)
            except ExecmemError as error:
                whole.refused[kind_of(str(error))] += 1
        for loaded in machine.modules.keys() - seen:
            _count(whole, loaded, len(seen))
            seen.add(loaded)
        after_each()
    whole.seconds = time.monotonic() - start
    whole.resident = max(0, _resident() - before)
    return whole


def _count(whole: Whole, name: str, earlier: int) -> None:
    """Take a module's reach and PLT entries into account."""
    module = whole.machine.modules[name]
    for extent in module_extents(module):
        found = whole.reached.setdefault(extent.row.name, Reached(extent.row))
        found.lo = min(found.lo, extent.lo) if found.count else extent.lo
        found.hi = max(found.hi, extent.hi) if found.count else extent.hi
        found.count += extent.count
        found.share = max(found.share, extent.share)
    if module.report.plt_slots:
        whole.plt_slots += module.report.plt_slots
        if whole.before_first_plt is None:
            whole.before_first_plt = earlier


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def show(out: Console, found: dict[str, Any]) -> None:
    """Show what `Whole.as_json` returned."""
    title = f"{found['arch']}, design {found['design']}: {found['modules']} modules"
    refused = f", {found['refused']} refused" if found["refused"] else ""
    out.print(f"{title}{refused}, {found['seconds']:.1f} s", style="bold")
    out.print(
        f"guest memory {size_text(found['guest_bytes'])}, "
        f"the process grew by {size_text(found['resident_bytes'])}"
    )
    lo, hi = found["text"]
    plt = f"{found['plt_slots']} PLT entries"
    if found["modules_before_first_plt"] is not None:
        plt += f", the first after {found['modules_before_first_plt']} modules"
    out.print(f"text within {size_text(hi - lo)} from {lo:#x}; {plt}")
    out.print()
    out.print(
        table(
            ("memory", "bytes", "leaves", "under large ones"),
            [
                (
                    kind,
                    size_text(size),
                    ", ".join(f"{n} x {leaf}" for leaf, n in found["leaves"][kind].items() if n),
                    f"{found['large_share'].get(kind, 0.0):.0%}",
                )
                for kind, size in found["bytes"].items()
            ],
            right="bytes,under large ones",
        )
    )
    out.print()
    out.print(
        table(
            ("relocation", "count", "lowest", "highest", "of its reach"),
            [
                (
                    name,
                    reach["count"],
                    f"{reach['lo']:+#x}",
                    f"{reach['hi']:+#x}",
                    f"{reach['share']:.1%}",
                )
                for name, reach in found["relocations"].items()
                if reach["share"]
            ],
            right="count,lowest,highest,of its reach",
        )
    )
    for each in found["errors"]:
        out.print(f"{each['count']} x {each['error']}")
