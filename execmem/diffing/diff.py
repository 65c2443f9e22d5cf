# SPDX-License-Identifier: GPL-2.0-or-later
"""Our modules beside a real kernel's, byte by byte, at two points.

Every recorded module is linked at the addresses that the kernel chose, then finalised for
the CPU and the command line of that boot, and compared after each of the two steps. What
the kernel's bytes are is known by a hash per section, and for small modules by the bytes
themselves: a section whose hash is right is right; else its differing bytes are counted, or
the whole section where only the hash is known. Every differing byte is attributed to the
mechanism that decides it; what nobody claims is *unexplained*.

One module's file is read once for all of its boots; modules are compared in parallel.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from archs import Checks
from execmem.diffing.differences import ModuleDiff, Range, RunDiff, kind_of
from execmem.diffing.flipped import flipped
from execmem.pool import each
from loader.elf import parse
from loader.elfview import (
    STT_FUNC,
    STT_OBJECT,
    ElfView,
)
from loader.errors import LoadError
from loader.finalize import Environment, Finalised, finalise
from loader.layout import Layout, plan
from loader.link import link_view
from loader.linked import Linked
from loader.recording import RecordedBoot, RecordedSection, Recording, image_of

RELOCATED, FINAL = "relocated", "final"
RUNTIME = "running_kernel"

Progression = Callable[[int, int], None]


@attrs.frozen(eq=False)
class Prediction:
    """What execmem makes of a recorded module: one buffer at either point.

    Parameters
    ----------
    relocated
        The buffer after relocation; `linked.image` is the buffer after finalisation.
    """

    view: ElfView
    layout: Layout
    linked: Linked
    relocated: NDArray[np.uint8]
    finalised: Finalised

    @cached_property
    def owners(self) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """For each byte of the buffer the number of the last mechanism that claims it."""
        names = ("", *self.finalised.edits)
        owner = np.zeros(self.relocated.size, np.uint8)
        for number, edits in enumerate(self.finalised.edits.values(), 1):
            owner[edits.mask(owner.size)] = number
        return owner, names


def link_there(
    recording: Recording, view: ElfView, environment: Environment
) -> tuple[Layout, Linked]:
    """Lay a recorded module out and link it where the kernel put it; LoadError where that cannot be."""
    errata = tuple(n for n in view.arch.errata if f"WORKAROUND_{n}" in environment.features)
    layout = plan(view, errata=errata)
    linked = link_view(
        view,
        layout,
        recording.addresses,
        recording.symbols,
        checks=Checks.KERNEL,
        percpu=recording.percpu,
        errata=errata,
    )
    return layout, linked


def predict(
    recording: Recording,
    view: ElfView,
    environment: Environment,
    *,
    without: Sequence[str] = (),
) -> Prediction:
    """Link and finalise a recorded module where the kernel put it.

    Parameters
    ----------
    view
        The module's file, parsed.
    environment
        The boot.
    without
        Mechanisms to leave out.

    Raises
    ------
    LoadError
        When the module cannot be linked or finalised so.
    """
    layout, linked = link_there(recording, view, environment)
    relocated = linked.image.copy()
    done = finalise(view, layout, recording.addresses, linked, environment, without=without)
    return Prediction(view, layout, linked, relocated, done)


def compare(recording: Recording, prediction: Prediction, *, ranges: bool = False) -> ModuleDiff:
    """Return what differs between a prediction and the kernel's bytes.

    Parameters
    ----------
    ranges
        List every differing range too, which needs the raw bytes.
    """
    linked, layout = prediction.linked, prediction.layout
    laid_out = tuple(s.name for s in recording.sections if _laid_out(s, recording, layout))
    chosen = [
        s for s in recording.compared if layout.size_of(prediction.view.sections[s.index]) == s.size
    ]
    owner, names = prediction.owners
    differing: Counter[tuple[str, str]] = Counter()
    changed: Counter[tuple[str, str]] = Counter()
    raw: tuple[bytes | None, bytes | None] | None = None
    hashed: list[str] = []
    found: list[Range] = []
    relocated = 0
    for section in chosen:
        at, end = linked.offsets[section.index], linked.offsets[section.index] + section.size
        kind = kind_of(section)
        points = (
            (RELOCATED, prediction.relocated[at:end], section.relocated),
            (FINAL, linked.image[at:end], section.final),
        )
        touched = prediction.relocated[at:end] != linked.image[at:end]
        for number, count in enumerate(np.bincount(owner[at:end][touched])):
            if count:
                changed[kind, names[number]] += int(count)
        before: NDArray[np.uint8] | None = points[0][1]
        for point, ours, wanted in points:
            if hashlib.sha256(ours.data).hexdigest() == wanted:
                continue
            kept, change = raw = raw or recording.raw()
            if point == RELOCATED:
                theirs = before = _part(kept, section)
            else:
                changes = _part(change, section)
                theirs = None if before is None or changes is None else before ^ changes
            if theirs is None:
                hashed.append(section.name)
            wrong = np.ones(section.size, np.bool_) if theirs is None else ours != theirs
            if point == RELOCATED:
                relocated += int(wrong.sum())
            elif theirs is None:
                differing[kind, _only(owner[at:end], names)] += section.size
            else:
                for number, count in enumerate(np.bincount(owner[at:end][wrong])):
                    if count:
                        differing[kind, names[number]] += int(count)
            if ranges:
                mechanism = np.zeros_like(owner[at:end]) if point == RELOCATED else owner[at:end]
                found += _ranges(prediction, section, point, ours, theirs, wrong, mechanism, names)
    return ModuleDiff(
        recording.folder,
        recording.arch_name,
        recording.run,
        recording.name,
        sections=len(chosen),
        size=sum(s.size for s in chosen),
        relocations=linked.records.type.size,
        laid_out=laid_out,
        relocated=relocated,
        changed=changed,
        differing=differing,
        hashed=tuple(sorted(set(hashed))),
        ranges=tuple(found),
    )


def _part(kept: bytes | None, section: RecordedSection) -> NDArray[np.uint8] | None:
    """Return a section's bytes out of those of all sections."""
    if kept is None:
        return None
    return np.frombuffer(kept, np.uint8, section.size, section.offset)


def _laid_out(section: RecordedSection, recording: Recording, layout: Layout) -> bool:
    """Return whether the kernel gave a section another size, or another place in its region."""
    planned = layout.placements.get(section.index)
    if planned is None:
        return False
    region = recording.regions.get(planned.type)
    moved = region is not None and section.address != region[0] + planned.offset
    return moved or section.size != planned.size


def _only(owner: NDArray[np.uint8], names: tuple[str, ...]) -> str:
    """Return who may be to blame for a section of which only the hash is known."""
    claimed = [names[number] for number in np.unique(owner).tolist()]
    return RUNTIME if RUNTIME in claimed else claimed[-1] if len(claimed) < 3 else ""


def _ranges(
    prediction: Prediction,
    section: RecordedSection,
    point: str,
    ours: NDArray[np.uint8],
    theirs: NDArray[np.uint8] | None,
    wrong: NDArray[np.bool_],
    owner: NDArray[np.uint8],
    names: tuple[str, ...],
) -> Iterator[Range]:
    """Yield runs of differing bytes that one mechanism decides."""
    kind, functions = kind_of(section), _FunctionNames(prediction.view)
    label = np.where(wrong, owner.astype(np.int16), -1)
    edges = np.flatnonzero(np.diff(label, prepend=-1, append=-1)).tolist()
    # Whole instructions where they have one size, else whole sites of a mechanism.
    step, done = len(prediction.view.arch.loads.trap) if kind == "text" else 1, 0
    for first, last in pairwise(edges):
        if label[first] < 0 or first < done:
            continue
        start, end = first // step * step, min(-(-last // step) * step, section.size)
        mechanism = names[int(owner[first])]
        if point == RELOCATED:
            mechanism = _relocation(prediction, section.address + start, section.address + end)
        if kind == "text" and step == 1 and mechanism in prediction.finalised.edits:
            site, width = _site(prediction, mechanism, section.index, first)
            start, end = min(start, site), max(end, site + width)
        done = end
        yield Range(
            point,
            section.name,
            start,
            section.address + start,
            functions.at(section.index, start),
            kind,
            mechanism,
            ours[start:end].tobytes(),
            None if theirs is None else theirs[start:end].tobytes(),
        )


def _relocation(prediction: Prediction, start: int, end: int) -> str:
    """Return the type of the first relocation that writes to [start, end)."""
    records, rows = prediction.linked.records, prediction.view.arch.link.relocations
    near = (records.place < np.uint64(end)) & (records.place >= np.uint64(max(start - 8, 0)))
    for number in np.flatnonzero(near).tolist():
        row, place = rows.get(int(records.type[number])), int(records.place[number])
        if row is not None and place + rows.widths[row.number] > start:
            return row.name
    return "relocation"


def _site(prediction: Prediction, mechanism: str, section: int, offset: int) -> tuple[int, int]:
    """Return offset and width of the site that holds a byte of a section."""
    edits, base = prediction.finalised.edits[mechanism], prediction.linked.offsets[section]
    inside = (edits.at <= base + offset) & (base + offset < edits.at + edits.width)
    number = int(np.flatnonzero(inside)[-1])
    return int(edits.at[number]) - base, int(edits.width[number])


class _FunctionNames:
    """Which function or object contains an offset of a section."""

    def __init__(self, view: ElfView) -> None:
        self._view = view
        kinds = view.symbols["info"] & 0xF
        self._named = np.flatnonzero((kinds == STT_FUNC) | (kinds == STT_OBJECT))

    def at(self, section: int, offset: int) -> str:
        symbols = self._view.symbols[self._named]
        inside = np.uint64(offset) - symbols["value"]
        found = self._named[(symbols["shndx"] == section) & (inside < symbols["size"])]
        if not found.size:
            return ""
        symbol = int(found[0])
        return f"{self._view.symbol_name(symbol)}+{offset - int(self._view.symbols['value'][symbol]):#x}"


# Runs ------------------------------------------------------------------------------------------


@attrs.frozen
class FileTask:
    """One module's file with every boot in which it was recorded."""

    recordings: tuple[Recording, ...]
    environments: tuple[Environment, ...]
    trees: tuple[Path, ...]
    ranges: bool
    without: tuple[str, ...]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; `result` is what was compared until then."""

    def __init__(self, result: tuple[RunDiff, ...]) -> None:
        super().__init__()
        self.result = result


def compare_runs(
    runs: Sequence[RecordedBoot],
    *,
    modules: Sequence[str] = (),
    trees: Sequence[Path] = (),
    ranges: bool = False,
    without: Sequence[str] = (),
    jobs: int = 1,
    progress: Progression | None = None,
) -> tuple[RunDiff, ...]:
    """Compare every module of the given boots.

    Parameters
    ----------
    modules
        Only these, by the kernel's names.
    trees
        Folders to look in for module files that the recording lacks.
    ranges
        List every differing range.
    without
        Mechanisms to leave out.
    jobs
        Processes.
    progress
        Called with the modules done and their number.

    Raises
    ------
    Interrupted
        Ctrl-C; it has what was compared until then.
    """
    runs = [attrs.evolve(run, trees=(*run.trees, *trees)) for run in runs]
    tasks = _tasks(runs, modules, tuple(trees), ranges, tuple(without))
    found: dict[tuple[Path, str], list[ModuleDiff]] = {(r.folder, r.name): [] for r in runs}
    interrupted = False
    try:
        # A boot has 160,000 symbols: every process gets all of them once.
        with closing(each(_work, tasks, jobs)) as answers:
            for done, diffs in enumerate(answers, 1):
                for diff in diffs:
                    found[diff.folder, diff.run].append(diff)
                if progress is not None:
                    progress(done, len(tasks))
    except KeyboardInterrupt:
        interrupted = True
    result = tuple(
        RunDiff(
            run.arch_name,
            run.name,
            run.kernel,
            tuple(sorted(diffs, key=lambda d: d.name)),
            run.refusals,
        )
        for run in runs
        if (diffs := found[run.folder, run.name]) or not interrupted
    )
    if interrupted:
        raise Interrupted(result)
    return result


def _tasks(
    runs: Sequence[RecordedBoot],
    modules: Sequence[str],
    trees: tuple[Path, ...],
    ranges: bool,
    without: tuple[str, ...],
) -> list[FileTask]:
    """Return the work, the largest files first."""
    by_file: dict[tuple[str, str], list[tuple[Recording, Environment]]] = defaultdict(list)
    for run in runs:
        environment = run.environment
        if any(recording.static_keys is None for recording in run.recordings):
            keys = {**flipped(run, trees), **environment.static_keys}
            environment = attrs.evolve(environment, static_keys=keys)
        for recording in run.recordings:
            if not modules or recording.name in modules:
                key = recording.arch_name, recording.sha256
                by_file[key].append((recording, _then(recording, environment)))
    tasks = [
        FileTask(tuple(r for r, _ in pairs), tuple(e for _, e in pairs), trees, ranges, without)
        for pairs in by_file.values()
    ]
    return sorted(tasks, key=lambda t: -sum(s.size for s in t.recordings[0].sections))


def _then(recording: Recording, environment: Environment) -> Environment:
    """Return the environment with what the kernel's keys and calls were when a module came."""
    return attrs.evolve(
        environment,
        static_keys={**environment.static_keys, **(recording.static_keys or {})},
        static_calls={**environment.static_calls, **recording.static_calls},
    )


def _work(task: FileTask) -> list[ModuleDiff]:
    first = task.recordings[0]
    image = image_of(first, task.trees)
    if image is None:
        reason = f"{first.file} is not in the recording; name a folder that has it with --root"
        return [ModuleDiff(r.folder, r.arch_name, r.run, r.name, reason) for r in task.recordings]
    found = []
    for recording, environment in zip(task.recordings, task.environments, strict=True):
        try:
            view = parse(image, Path(first.file).name)
            prediction = predict(recording, view, environment, without=task.without)
            found.append(compare(recording, prediction, ranges=task.ranges))
        except LoadError as error:
            who = (recording.folder, recording.arch_name, recording.run, recording.name)
            found.append(ModuleDiff(*who, str(error), refused=True))
    return found
