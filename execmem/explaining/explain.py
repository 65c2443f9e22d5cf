# SPDX-License-Identifier: GPL-2.0-or-later
"""The explorable page: everything that was decided about a module, in one file to play with.

Python loads the module, records the load and exports facts: where memory lies, what each
relocation computes, by which rule it must reach. The page (`execmem/page`) draws them and
moves the module; its rules are `loader.motion`'s, held to the link by tests. What it is made of
is a document, which goes into a file that stands alone (`execmem.pages`), or to a page that asks.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.errors import printable
from allocator.types import PAGE_SIZE, ExecmemType, Interval, MemType, size_text
from archs import Arch, Plt
from archs.reloc import Reloc
from execmem import pages
from execmem.relocs import Code
from loader.elfview import STT_FUNC, ElfView
from loader.listing import Listing
from loader.motion import Motion

if TYPE_CHECKING:
    from allocator.types import AddressMap
    from loader.loaded import LoadedModule
    from machine.machine import ModelledMachine
    from machine.module import Module

_STEPS = {
    "before": "Before: nothing of the module is in memory.",
    "allocate": "Allocate: every memory type gets a region; its address is known from here on.",
    "relocate": "Relocate: addresses are filled in, in a buffer; memory is as it was.",
    "finalise": "Finalise: what this CPU and its mitigations decide is edited, in the buffer too.",
    "write": "Write: the bytes go to memory, through the design's way.",
    "finish": "Finish: final protections, and instruction caches told.",
    "init": "Init: the module's own init function has run.",
    "seal": "Seal: ro_after_init data becomes read-only.",
    "free init": "Free init: text and data that only init needed are given back.",
}


@attrs.frozen
class Step:
    """The page table around a module after one phase of its load.

    Parameters
    ----------
    name
        The phase.
    spans
        Runs of equal leaves: start, end, leaf size, protection.
    events
        What was counted during the phase, zeros left out.
    """

    name: str
    spans: tuple[tuple[Interval, int, str], ...]
    events: dict[str, int]


class Placed(Protocol):
    """Memory of a module."""

    @property
    def address(self) -> int:
        """Where it begins."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...


@attrs.frozen(eq=False, kw_only=True)
class View:
    """One load of a module: an architecture, a design, and everything the page shows of it.

    Parameters
    ----------
    loaded
        What was decided about the module.
    design
        Of executable memory; of a booted kernel, which that is.
    kaslr
        By what seed addresses are random; None: they are not.
    bands
        Large areas of the address space: kind, and where.
    regions, freed
        Memory type -> what it took; the types that were given back since.
    steps
        The page table after each phase; none where nobody looked on.
    """

    loaded: LoadedModule
    design: str
    kaslr: int | None
    bands: tuple[tuple[str, Interval], ...]
    regions: Mapping[MemType, Placed]
    freed: frozenset[MemType]
    steps: tuple[Step, ...] = ()


def load(machine: ModelledMachine, bring: Callable[[], Module]) -> View:
    """Load a module while its phases are recorded.

    Parameters
    ----------
    machine
        Where it is loaded.
    bring
        Loads it, and the modules it needs, whose phases are left out.
    """
    recorder = _PhaseRecorder(machine)
    machine.loader.observe = recorder
    try:
        module = bring()
    finally:
        machine.loader.observe = lambda _phase: None
    regions = module.report.regions
    return View(
        loaded=module.loaded,
        design=machine.design,
        kaslr=machine.memory.address_map.kaslr,
        bands=bands(machine.memory.address_map, machine.memory.direct_map),
        regions=regions,
        freed=frozenset(k for k, region in regions.items() if module.regions.get(k) != region),
        steps=recorder.of_last_load(),
    )


class _PhaseRecorder:
    """Keeps the page table's state after each phase; of the last module that was loaded."""

    def __init__(self, machine: ModelledMachine) -> None:
        self._machine = machine
        self._steps: list[Step] = []
        self._events = machine.memory.events.copy()
        self._windows = _windows(machine)
        self._initial = self._step("before")

    def __call__(self, phase: str) -> None:
        if phase == "allocate":
            before = self._steps[-1] if self._steps else self._initial
            self._steps = [attrs.evolve(before, name="before", events={})]
        self._steps.append(self._step(phase))

    def of_last_load(self) -> tuple[Step, ...]:
        return tuple(self._steps)

    def _step(self, name: str) -> Step:
        table = self._machine.memory.page_table
        spans: list[tuple[Interval, int, str]] = []
        for window in self._windows:
            for leaf in table.leaves(window):
                last = spans[-1] if spans else None
                alike = last is not None and last[1:] == (leaf.size, str(leaf.prot))
                if last is not None and alike and last[0].end == leaf.va:
                    spans[-1] = (Interval(last[0].start, leaf.va + leaf.size), *last[1:])
                else:
                    spans.append(
                        (Interval(leaf.va, leaf.va + leaf.size), leaf.size, str(leaf.prot))
                    )
        now = self._machine.memory.events
        events = {k: v for k, v in (now - self._events).as_dict().items() if v}
        self._events = now.copy()
        return Step(name, tuple(dict.fromkeys(spans)), events)


def _windows(machine: ModelledMachine) -> list[Interval]:
    """Return where modules may lie, merged, ascending."""
    found: list[Interval] = []
    ranges = [machine.memory.address_map.range_of(kind) for kind in ExecmemType]
    every = sorted({i for r in ranges for i in (r.range, r.fallback) if i is not None})
    for interval in every:
        if interval.size > 1 << 40:
            continue  # kprobes and bpf may lie anywhere in vmalloc; modules do not
        if found and interval.start <= found[-1].end:
            found[-1] = Interval(found[-1].start, max(found[-1].end, interval.end))
        else:
            found.append(interval)
    return found


# Export ----------------------------------------------------------------------------------------


def _hex(value: int) -> str:
    return f"{value:#x}"


def _pack(array: NDArray[Any]) -> str:
    """Return an array's little-endian bytes in base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def document(
    views: Sequence[View], progress: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """Return what the page is made of, as plain data.

    Parameters
    ----------
    progress
        Called now and then with a module's name, relocations told, and how many there are.
    """
    return {"views": [_view(view, progress) for view in views]}


def summary(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what each view of a document shows."""
    keys = ("module", "arch", "design", "count")
    return [{key: view[key] for key in keys} for view in document["views"]]


def _view(view: View, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    loaded, arch = view.loaded, view.loaded.arch
    listing, motion = Listing.of(loaded), Motion.of(loaded)
    x, high = _pairs(listing, motion)
    used = np.unique(motion.symbol)
    names = {number: loaded.view.symbol_name(number) for number in used.tolist()}
    groups = {
        index: 0 if s.type is None else 1 if s.type.is_text else 2
        for index, s in loaded.sections.items()
    }
    told = sorted({table.target.index for table in listing.tables})
    return {
        "module": loaded.name,
        "arch": arch.name,
        "title": arch.title,
        "design": view.design,
        "kaslr": None if view.kaslr is None else str(view.kaslr),
        "bands": [
            {"kind": kind, "start": _hex(i.start), "end": _hex(i.end), "size": size_text(i.size)}
            for kind, i in view.bands
        ],
        "branches": [
            {"mnemonic": b.mnemonic, "lo": _hex(b.reach.lo), "hi": _hex(b.reach.hi), "what": b.what}
            for b in arch.link.branches
        ],
        "code_model": arch.link.code_model,
        "plt": None if motion.plt is None else _plt(motion.plt),
        "rows": {str(n): _row(arch, n) for n in np.unique(motion.type).tolist()},
        "regions": [
            {
                "type": kind.name,
                "group": 1 if kind.is_text else 2,
                "start": _hex(region.address),
                "size": region.size,
                "prot": str(kind.final_prot),
                "freed": kind in view.freed,
            }
            for kind, region in view.regions.items()
        ],
        "sections": [
            {
                "index": index,
                "name": s.name,
                "type": s.type.name if s.type else "PERCPU",
                "group": groups[index],
                "start": _hex(s.address),
                "size": s.size,
                "exec": loaded.view.sections[index].executable,
            }
            for index, s in sorted(loaded.sections.items())
        ],
        "functions": _functions(loaded.view, loaded.sections),
        "names": list(names.values()),
        "count": int(motion.x.size),
        "section": _pack(motion.section),
        "offset": _pack(motion.offset.astype("<u4")),
        "type": _pack(motion.type.astype("<u2")),
        "symbol": _pack(np.searchsorted(used, motion.symbol).astype("<u4")),
        "addend": _pack(motion.addend),
        "target": _pack(motion.target),
        "place_group": _pack(motion.moves[0]),
        "target_group": _pack(motion.moves[1]),
        "x": _pack(x),
        "high": _pack(high),
        "a": _pack(motion.a),
        "b": _pack(motion.b),
        **_classes(motion),
        "entries": [
            {
                "init": init,
                "name": loaded.sections[e.section].name,
                "section": e.section,
                "start": _hex(e.address),
                "reserved": e.reserved,
                "visits": _pack(e.visits.astype("<u4")),
                "slots": None if e.slots is None else _hex(e.slots),
                "slots_group": e.slots_group,
            }
            for init, e in sorted(motion.entries.items())
        ],
        "contents": {
            str(index): _pack(
                np.frombuffer(loaded.view.contents(loaded.view.sections[index]), "u1")
            )
            for index in told
        },
        **_texts(listing, partial(progress, loaded.name)),
        "steps": [_step(step, view) for step in view.steps],
    }


def bands(here: AddressMap, direct_map: Interval) -> tuple[tuple[str, Interval], ...]:
    """Return the large areas of an address space, by kind, each named once."""
    found: dict[tuple[str, Interval], None] = {
        ("kernel image", here.image): None,
        ("direct map", direct_map): None,
        ("vmalloc", here.vmalloc): None,
    }
    for kind in (ExecmemType.MODULE_TEXT, ExecmemType.MODULE_DATA):
        spec = here.range_of(kind)
        found["module window", spec.range] = None
        if spec.fallback is not None:
            found["fallback window", spec.fallback] = None
    return tuple(found)


def _plt(plt: Plt) -> dict[str, Any]:
    """Return what decides whether a branch gets an entry: its size, order and reach."""
    reach = plt.reach
    return {
        "size": plt.size,
        "sorts": plt.sorts,
        "terms": [[t.sign, "".join(t.letters), t.granule, t.bias] for t in plt.op.terms],
        "bits": plt.op.bits,
        "lo": None if reach is None else _hex(reach.lo),
        "hi": None if reach is None else _hex(reach.hi),
    }


def _row(arch: Arch, number: int) -> dict[str, Any]:
    row: Reloc = arch.link.relocations[number]
    reach = row.reach
    return {
        "name": row.name,
        "formula": row.op.formula,
        "terms": [[t.sign, "".join(t.letters), t.granule, t.bias] for t in row.op.terms],
        "bits": row.op.bits,
        "sums": row.accumulates,
        "relative": row.op.relative,
        "address": row.op.shows_address,
        "follows": row.op.granule <= PAGE_SIZE,
        "stub": row.stub is not None,
        "got": row.got is not None,
        "uleb": row.uleb,
        "size": row.size,
        "lo": None if reach is None else _hex(reach.lo),
        "hi": None if reach is None else _hex(reach.hi),
        "align": 1 if reach is None else reach.align,
        "parts": [
            {
                "size": part.size,
                "offset": part.offset,
                "bias": part.bias,
                "mask": _hex(part.mask),
                "movz": part.movz,
                "slices": [[s.x, s.bits, s.word] for s in part.slices],
            }
            for part in row.parts
        ],
    }


def _functions(view: ElfView, sections: Any) -> list[list[Any]]:
    """Return section, offset, size and name of every function, in order of place."""
    info, shndx = view.symbols["info"] & 0xF, view.symbols["shndx"]
    chosen = np.flatnonzero((info == STT_FUNC) & np.isin(shndx, list(sections)))
    found = [
        [int(s["shndx"]), int(s["value"]), int(s["size"]), view.symbol_name(number)]
        for number, s in zip(chosen.tolist(), view.symbols[chosen], strict=True)
    ]
    return sorted(found, key=lambda each: each[:2])  # of those at one place the last counts


def _pairs(listing: Listing, motion: Motion) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Return X with low parts given that of their HI20, and by id the HI20's id or -1."""
    x, high = motion.x.copy(), np.full(motion.x.size, -1, np.int32)
    rows = motion.rows
    numbers = np.unique(motion.type).tolist()
    low = [n for n in numbers if rows[n].op.high_half]
    if not low:
        return x, high
    highs = np.flatnonzero(np.isin(motion.type, [n for n in numbers if rows[n].high]))
    lows = np.flatnonzero(np.isin(motion.type, low))
    order = highs[np.argsort(motion.place[highs], kind="stable")]
    labels = listing.linked.symbols[motion.symbol[lows]]
    at = np.searchsorted(motion.place[order], labels)
    high[lows] = order[np.minimum(at, order.size - 1)]
    x[lows] = motion.x[high[lows]]
    return x, high


def _classes(motion: Motion) -> dict[str, Any]:
    """Return the checked relocations by row and motion, each class sorted by X.

    Whether a class still reaches is then two binary searches, however large it is.
    """
    ids = motion.checked
    order = ids[np.lexsort((motion.x[ids], motion.b[ids], motion.a[ids], motion.type[ids]))]
    keys = list(
        zip(
            motion.type[order].tolist(),
            motion.a[order].tolist(),
            motion.b[order].tolist(),
            strict=True,
        )
    )
    classes, at = [], 0
    for (number, a, b), members in groupby(keys):
        size = sum(1 for _ in members)
        classes.append({"row": number, "a": a, "b": b, "start": at, "end": at + size})
        at += size
    return {"order": _pack(order.astype("<u4")), "classes": classes}


def _texts(listing: Listing, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Return the code before and after each relocation, every text once, and where it starts."""
    code, known = Code(listing), dict[str, int]()
    starts, sizes, before, after = [], [], [], []
    chosen = listing.select()
    for count, relocation in enumerate(chosen):
        around = code.around(relocation)
        (_, first), (_, then) = code.texts(relocation)
        # Data has no text: the page shows its words, which it computes itself.
        starts.append(relocation.offset if around is None else around.start)
        sizes.append(0 if around is None else around.size)
        before.append(-1 if around is None else known.setdefault(first, len(known)))
        after.append(-1 if around is None else known.setdefault(then, len(known)))
        if count % 1024 == 0:
            progress(count, len(chosen))
    return {
        "texts": list(known),
        "code_start": _pack(np.array(starts, "<u4")),
        "code_size": _pack(np.array(sizes, "<u1")),
        "before": _pack(np.array(before, "<i4")),
        "after": _pack(np.array(after, "<i4")),
    }


def _step(step: Step, view: View) -> dict[str, Any]:
    own = [Interval(r.address, r.address + r.size) for r in view.regions.values()]
    return {
        "name": step.name,
        "what": _STEPS[step.name],
        "spans": [
            {
                "start": _hex(i.start),
                "end": _hex(i.end),
                "leaf": size_text(leaf),
                "prot": prot,
                "own": any(i.overlaps(region) for region in own),
            }
            for i, leaf, prot in step.spans
        ],
        "events": step.events,
    }


# The file --------------------------------------------------------------------------------------


def html(document: dict[str, Any]) -> str:
    """Return the page with the document inside."""
    first = document["views"][0]
    titles = _and(v["title"] for v in document["views"])
    return pages.alone(printable(f"{first['module']}: {titles}"), document)


def _and(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))
