# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands show: the same facts as tables for people and as JSON for programs.

Tables fit 80 columns and need no colour; addresses are hex, sizes in binary units.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allocator.types import AddressMap, ExecmemRange, ExecmemType, Hex, Interval, size_text
from archs import Arch, Branch
from execmem import documents, notices
from execmem.streams import say
from loader.layout import TOGETHER
from loader.link import Extent, extents

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from machine.machine import ModelledMachine
    from machine.module import Module
    from machine.reach import Measurement


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: str = "") -> Table:
    """Return a plain table; `right` names the columns that are aligned to the right.

    Columns before the last never wrap: a number that is cut is a wrong number.
    """
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        found.add_column(
            name,
            justify="right" if name and name in right.split(",") else "left",
            overflow="fold",
            no_wrap=name != columns[-1],
        )
    for row in rows:
        found.add_row(*map(str, row))
    return found


def print_json(document: Mapping[str, Any]) -> None:
    """Write one JSON document to stdout; `execmem` and `notices` are added."""
    sys.stdout.write(documents.text({"notices": notices.texts()} | dict(document)))


# Modules ---------------------------------------------------------------------------------------


def regions(machine: ModelledMachine, module: Module) -> list[dict[str, Any]]:
    """Return one entry per region, init ones too, with the leaves that map it."""
    found = []
    for kind, region in module.report.regions.items():
        live = module.regions.get(kind) == region
        translation = machine.memory.translate(region.address) if live else None
        found.append(
            {
                "type": kind.name,
                "address": Hex(region.address),
                "size": region.size,
                "prot": str(translation.prot) if translation else "freed",
                "leaf": size_text(translation.leaf) if translation else "",
                "fallback": region.fallback,
                "area": None if region.area is None else Hex(region.area.start),
            }
        )
    return found


def module_json(machine: ModelledMachine, module: Module) -> dict[str, Any]:
    """Return the machine-readable form of a loaded module."""
    report = module.report
    return {
        "name": report.name,
        "arch": report.arch,
        "design": report.design,
        "state": module.state.value,
        "regions": regions(machine, module),
        "sections": [
            {
                "index": index,
                "name": section.name,
                "type": section.type.name if section.type else "PERCPU",
                "address": Hex(section.address),
                "size": section.size,
            }
            for index, section in sorted(report.sections.items())
        ],
        "relocations": dict(report.relocations),
        "plt_slots": report.plt_slots,
        "plt_reserved": report.plt_reserved,
        "depends": sorted(module.loaded.providers),
        "exports": [export.name for export in module.loaded.exports],
        "parameters": [p.name for p in machine.parameters_of(module.loaded)],
        "registered": registered(machine, module.name),
        "unknown_symbols": list(report.unknown),
        "init_result": None if report.init_result is None else Hex(report.init_result),
        "init_fault": str(report.init_fault) if report.init_fault else None,
        "log": [line.text for line in report.log],
        "taints": report.taints,
        "notices": [str(notice) for notice in report.notices],
        "models": machine.models,
        "build": build_json(module),
    }


def build_json(module: Module) -> dict[str, Any]:
    """Return what a module was built for, and where each part is known from."""
    build = module.build
    facts = build.facts
    return {
        **{name: fact.value for name, fact in facts.items() if name != "version"},
        "version": list(build.version.value),
        "sources": {name: fact.source.value for name, fact in facts.items()},
        "shown": {
            name: {"value": fact.value, "source": fact.source.value}
            for name, fact in build.shown.items()
        },
        "conflicts": list(build.conflicts),
    }


def registered(machine: ModelledMachine, owner: str) -> list[dict[str, Any]]:
    """Return what a module has registered, in the order of registration."""
    return [
        {
            "kind": record.kind,
            "name": record.name,
            "address": Hex(record.address),
            "owner": record.owner,
            **record.fields,
            "callbacks": {
                name: {"address": Hex(address), "symbol": machine.symbolize(address)}
                for name, address in record.callbacks.items()
            },
        }
        for record in machine.registry.find(owner=owner)
    ]


def print_registered(out: Console, machine: ModelledMachine, owner: str) -> None:
    """Show what a module has registered: kind, name, what else is known, its callbacks."""
    rows = []
    for record in machine.registry.find(owner=owner):
        known = [f"{name}={_field(value)}" for name, value in record.fields.items() if value != ""]
        rows.append((record.kind, record.name, " ".join((*known, *record.callbacks))))
    if rows:
        out.print(table(("registered", "name", "what it says, and its callbacks"), rows))


def _field(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value[:6]) + (f",... ({len(value)})" if len(value) > 6 else "")
    return str(value)


def missing(machine: ModelledMachine) -> dict[str, Any]:
    """Return which kernel symbols were missing or supplied, and how often they were called."""
    return {"missing": machine.missing, "stubbed": machine.stubbed}


def print_missing(machine: ModelledMachine) -> None:
    """Say on stderr which kernel symbols were missing or supplied."""
    for what, symbols in missing(machine).items():
        called = [f"{n} ({count})" if count > 1 else n for n, count in symbols.items() if count]
        idle = len(symbols) - len(called)
        parts = [", ".join(called)] * bool(called) + [f"{idle} not called"] * bool(idle)
        if parts:
            say(f"{what} kernel symbols: {'; '.join(parts)}", err=True)


def print_module(
    out: Console, machine: ModelledMachine, module: Module, *, sections: bool = True
) -> None:
    """Show a loaded module: regions, sections, relocations, PLT entries, what is missing."""
    report, loaded = module.report, module.loaded
    title = f"{report.name}: {machine.arch.title}, design {report.design}, {module.state.value}"
    out.print(title, style="bold")
    if report.init_fault is not None:
        out.print(f"init stopped: {report.init_fault}")
    out.print(f"a module of {module.build.title}; models {machine.models}")
    if shown := module.build.shown:
        out.print("its bytes show: " + "; ".join(f"{n}: {fact}" for n, fact in shown.items()))
    if loaded.providers:
        out.print(f"uses {', '.join(sorted(loaded.providers))}")
    out.print()
    out.print(
        table(
            ("region", "address", "size", "prot", "leaf"),
            [
                (r["type"], f"{r['address']:#x}", size_text(r["size"]), r["prot"], r["leaf"])
                for r in regions(machine, module)
            ],
            right="size",
        )
    )
    print_areas(out, module)
    if sections:
        out.print()
        out.print(
            table(
                ("section", "in", "address", "size"),
                [
                    (s.name, s.type.name if s.type else "PERCPU", f"{s.address:#x}", f"{s.size:#x}")
                    for _, s in sorted(report.sections.items())
                ],
                right="size",
            )
        )
    out.print()
    print_relocations(out, module)
    if report.plt_reserved:
        out.print(f"PLT: {report.plt_slots} of {report.plt_reserved} entries used")
    if loaded.exports:
        out.print(f"exports {len(loaded.exports)} symbols")
    if report.unknown:
        out.print(
            f"{len(report.unknown)} kernel symbols are not implemented; calling one stops: "
            + ", ".join(report.unknown[:6])
            + (", ..." if len(report.unknown) > 6 else "")
        )


def print_areas(out: Console, module: Module) -> None:
    """Say what was allocated as one, of a module whose kernel does so (before Linux 6.4)."""
    areas = {r.area: kind.is_init for kind, r in module.report.regions.items() if r.area}
    for area, init in sorted(areas.items()):
        what = "init" if init else "core"
        out.print(f"{what} is one area: {area.start:#x}, {size_text(area.size)}")
    if not areas and TOGETHER.at(module.loaded.view.version):
        why = f"the design {module.report.design} keeps memory types apart, vmalloc does not"
        out.print(f"its kernel has an area for core and one for init; {why}")


def module_extents(module: Module) -> tuple[Extent, ...]:
    """Return how far the relocations of a module reach."""
    return extents(module.loaded.arch, module.loaded.linked.records)


def print_relocations(out: Console, module: Module) -> None:
    """Show relocation types with their formula and how much of their reach is used."""
    rows = module.loaded.arch.link.relocations
    names = {row.name: row for row in rows.values()}
    spans = {extent.row.name: extent for extent in module_extents(module)}
    out.print(
        table(
            ("relocation", "count", "value", "farthest", "reach, used"),
            [
                (name, count, names[name].op.formula, *_reach_cells(spans.get(name)))
                for name, count in module.report.relocations.items()
            ],
            right="count,farthest",
        )
    )


def _reach_cells(extent: Extent | None) -> tuple[str, str]:
    if extent is None or not extent.row.op.relative:
        return "", ""
    far = extent.lo if -extent.lo > extent.hi else extent.hi
    text = f"{far:+#x}"
    if extent.row.reach is None:
        return text, "any"
    below, above = size_text(-extent.row.reach.lo), size_text(extent.row.reach.hi)
    reach = f"+-{above}" if below == above else extent.row.reach.text()
    return text, f"{reach}, {extent.share:.1%}"


# Architectures -----------------------------------------------------------------------------------


def arch_json(arch: Arch) -> dict[str, Any]:
    """Return what makes an architecture different."""
    here = None if arch.load is None else arch.load.address_map()
    return {
        "name": arch.name,
        "aliases": list(arch.aliases),
        "machine": arch.machine,
        "image": None if here is None else _span(here.image),
        "direct_map": None if here is None else Hex(here.direct_map),
        "vmalloc": None if here is None else _span(here.vmalloc),
        "ranges": {}
        if here is None
        else {
            kind.value: _span(here.range_of(kind).range)
            | {
                "fallback": [Hex(f.start), Hex(f.end)]
                if (f := here.range_of(kind).fallback)
                else None
            }
            for kind in ExecmemType
        },
        "branches": [
            {
                "mnemonic": b.mnemonic,
                "what": b.what,
                "lo": Hex(b.reach.lo),
                "hi": Hex(b.reach.hi),
                "region": _region(b),
            }
            for b in arch.link.branches
        ],
        "code_model": arch.link.code_model,
        "plt_entry_bytes": arch.plt.size if arch.plt else None,
        "text_poke": None
        if arch.text_poke is None
        else {
            "name": arch.text_poke.name,
            "pages": arch.text_poke.pages,
            "granule": arch.text_poke.granule,
            "window": Hex(arch.text_poke.window),
            "private": arch.text_poke.private,
            "flushes_all_cpus": arch.text_poke.broadcast,
            "sync": arch.text_poke.sync,
        },
        "live_patch": None
        if arch.live_patch is None
        else {
            "name": arch.live_patch.name,
            "breakpoint": arch.live_patch.breakpoint.hex() if arch.live_patch.breakpoint else None,
            "rule": arch.live_patch.rule,
        },
        "trap": None if arch.load is None else arch.load.trap.hex(),
        "relocations": sum(not row.unsupported for row in arch.link.relocations.values()),
        "relocations_refused": sum(bool(row.unsupported) for row in arch.link.relocations.values()),
    }


def _span(interval: Interval) -> dict[str, Any]:
    """Return a half-open interval of addresses."""
    return {"start": Hex(interval.start), "end": Hex(interval.end)}


def _alias(arch: Arch) -> str:
    """Return where the alias of a poke is mapped."""
    if arch.text_poke is None:
        return ""
    return "private address space" if arch.text_poke.private else "fixmap"


ARCHS_NAME, ARCHS_COLUMN = 17, 20  # characters of the first column, and of each other


def print_archs(out: Console, archs: Sequence[Arch]) -> None:
    """Show the architectures side by side, in as many tables as the width needs."""
    tables = -(-len(archs) // max(1, (out.width - ARCHS_NAME) // ARCHS_COLUMN))
    across = -(-len(archs) // tables)
    for first in range(0, len(archs), across):
        _print_archs(out, archs[first : first + across])
        out.print()
    print_branches(out, archs)


def _print_archs(out: Console, archs: Sequence[Arch]) -> None:
    facts = [arch_json(a) for a in archs]
    maps = [None if a.load is None else a.load.address_map() for a in archs]

    def row(name: str, cells: Iterable[object]) -> tuple[object, ...]:
        return (name, *cells)

    def placed(name: str, cell: Callable[[AddressMap], str]) -> tuple[object, ...]:
        """Return a row about places, which only the level load has."""
        return row(name, ("-" if each is None else cell(each) for each in maps))

    def text(of: AddressMap) -> ExecmemRange:
        return of.range_of(ExecmemType.MODULE_TEXT)

    def fallback(of: AddressMap) -> str:
        other = text(of).fallback
        return size_text(other.size) if other else "none"

    rows = [
        placed("kernel image", lambda m: f"{m.image.start:#x}"),
        placed("  size", lambda m: size_text(m.image.size)),
        placed("module text from", lambda m: f"{text(m).range.start:#x}"),
        placed("  to", lambda m: f"{text(m).range.end:#x}"),
        placed("  size", lambda m: size_text(text(m).range.size)),
        placed("  fallback", fallback),
        placed("vmalloc from", lambda m: f"{m.vmalloc.start:#x}"),
        row("PLT entry", (f"{a.plt.size} B" if a.plt else "none" for a in archs)),
        row("text_poke", (a.text_poke.name if a.text_poke else "none" for a in archs)),
        row("  step", (f"{a.text_poke.pages} pages" if a.text_poke else "" for a in archs)),
        row("  granule", (f"{a.text_poke.granule} B" if a.text_poke else "" for a in archs)),
        row("  alias", (_alias(a) for a in archs)),
        row("trap", (a.load.trap.hex(" ") if a.load else "-" for a in archs)),
        row("relocation types", (f["relocations"] for f in facts)),
        row("  refused by name", (f["relocations_refused"] for f in facts)),
    ]
    out.print(table(("", *(a.title for a in archs)), rows))


def print_branches(out: Console, archs: Sequence[Arch]) -> None:
    """Show how far each branch and address-forming instruction gets, as the psABIs say."""
    out.print(
        table(
            ("arch", "instruction", "for", "about", "reach from the instruction"),
            [
                (a.title, b.mnemonic, b.what, _about(b), str(b.reach))
                for a in archs
                for b in a.link.branches
            ],
        )
    )


def _region(branch: Branch) -> Hex | None:
    """Return the size of the region that an instruction's reach counts in."""
    return None if branch.region is None else Hex(branch.region.size)


def _about(branch: Branch) -> str:
    """Return how far an instruction gets, roughly."""
    return f"+-{size_text(branch.reach.hi)}" if branch.region is None else branch.text()


def reach_json(arch: Arch, found: Measurement) -> dict[str, Any]:
    """Return one measured instruction; displacements count from the instruction's own address."""
    branch, measured = found.branch, found.measured
    return {
        "arch": arch.name,
        "instruction": branch.mnemonic,
        "what": branch.what,
        "lo": Hex(branch.reach.lo),
        "hi": Hex(branch.reach.hi),
        "region": _region(branch),
        "measured": None if measured is None else [Hex(measured.lo), Hex(measured.hi)],
        "step": found.step,
        "example": found.text,
        "lands_past_lo": None if found.past_lo is None else Hex(found.past_lo),
        "lands_past_hi": None if found.past_hi is None else Hex(found.past_hi),
    }


def print_reach(out: Console, measured: Iterable[tuple[Arch, Measurement]]) -> None:
    """Show psABI and measured reach, one under the other, and where a step too far leads."""
    rows: list[Sequence[object]] = []
    for arch, found in measured:
        rows.append((arch.title, found.branch.mnemonic, f"psABI    {found.branch.reach}", ""))
        reach = "not measured" if found.measured is None else f"measured {found.measured}"
        rows.append(("", "", reach, _astray(found)))
    out.print(table(("arch", "instruction", "reach from the instruction", "one step past"), rows))


def _astray(found: Measurement) -> str:
    """Return how far from its target a displacement leads that is one step out of reach."""
    if found.measured is None or found.past_lo is None or found.past_hi is None:
        return ""
    below = abs(found.past_lo - (found.measured.lo - found.step))
    above = abs(found.past_hi - found.measured.hi)
    return f"{below:#x}" if below == above else f"{below:#x} {above:#x}"


# Kernels ---------------------------------------------------------------------------------------


def print_kernel(out: Console, found: Mapping[str, Any]) -> None:
    """Show what is known of a kernel, and what is not."""
    exports = f"{found['exports']:,}, {found['exports_gpl']:,} of them GPL-only"
    if found["namespaces"]:
        exports += f", {len(found['namespaces'])} namespaces"
    percpu, page = found["percpu"], found["page_size"]
    rows = [
        ("release", found["release"]),
        ("architecture", found["arch"]),
        ("page size", size_text(page) if page else None),
        ("build id", found["build_id"]),
        ("packed as", ", ".join(found["wrappers"]) or "not packed"),
        ("image", Interval(*found["image"])),
        ("per-cpu variables", None if percpu is None else Interval(*percpu)),
        ("symbols", f"{found['symbols']:,}"),
        ("exports", exports if found["exports"] else None),
        ("types", f"{found['types']:,}" if found["types"] else None),
        ("options", None if found["config"] is None else f"{found['config']:,}"),
        *((f"{what} from", where) for what, where in found["sources"].items()),
    ]
    shown = table(("what", "value"), [(name, value) for name, value in rows if value is not None])
    shown.show_header = False
    out.print(shown)
    if found["unknown"]:
        out.print()
        out.print(table(("not known", "known with"), sorted(found["unknown"].items())))
    for name, value in found["options"].items():
        out.print(f"{name} = {'not set' if value is None else value}")
    for name, place in found["places"].items():
        if place["address"] is None and not place["exported"]:
            out.print(f"{name}: no such symbol")
            continue
        marks = "exported" + (", GPL-only" if place["gpl"] else "") if place["exported"] else ""
        parts = (place["address"], place["prototype"] or name, marks, place["namespace"])
        out.print("  ".join(str(part) for part in parts if part))
    for name, text in found["definitions"].items():
        lines = f"{name}: no such type" if text is None else text.replace("\t", "    ")
        for line in lines.split("\n"):
            out.print(line)
