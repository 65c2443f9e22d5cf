# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inputs on one machine, and says which were new and which went wrong."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import attrs

from emulator.faults import Fault, FaultKind
from execmem.fuzzing.mutate import Mutator
from execmem.fuzzing.operands import Hint, hints_of
from execmem.fuzzing.targets import Target
from machine.rounds import INSTRUCTIONS, Round, Rounds

_CUTS = 64  # rounds that cutting an input of the corpus short may take
EACH = _CUTS + 4  # rounds that an input takes at most
_STUDIED = 20_000  # blocks that one executes at most that is cut short, and whose comparisons are looked at
_SHRINKS, _HANGS = 400, 24  # rounds that making an input smaller may take, and where it hangs
_FRAMES = 6  # of a backtrace, that tell one finding from another
_OFFSET = re.compile(r"\+0x[0-9a-f]+(/0x[0-9a-f]+)?")
_SIZE = re.compile(r"(\+0x[0-9a-f]+)/0x[0-9a-f]+")
_ABSOLUTE = re.compile(r"(?<!\+)0x[0-9a-f]+")
HANG = "hang"
_LACKING = frozenset(kind.value for kind in FaultKind if kind.is_unknown)
Seen = set[Any]  # blocks, or edges with how often they were taken


@attrs.frozen(kw_only=True)
class Finding:
    """An input that something goes wrong with.

    Parameters
    ----------
    data
        The input.
    kind
        What goes wrong.
    where
        `symbol+0xoff [module]`.
    backtrace
        Who called it, innermost first, as far as that is known.
    text
        What was said of it.
    sources
        Lines of source, of `where` and of each of `backtrace`.
    """

    data: bytes
    kind: str
    where: str
    backtrace: tuple[str, ...] = ()
    text: str = ""
    sources: tuple[str, ...] = ()

    @property
    def lacking(self) -> bool:
        """Whether it is no fault of the guest's: what it asks for is not in this kernel."""
        return self.kind in _LACKING

    @property
    def key(self) -> str:
        """What makes it the same as another: kind, functions and modules, and no address.

        In a module the offset counts, too: compilers make one function of many.
        """
        frames = [_OFFSET.sub("", frame) for frame in self.backtrace[:_FRAMES]]
        first = _OFFSET.sub("", self.where)
        if self.where.endswith("]"):
            first = _SIZE.sub(r"\1", self.where)
        return " < ".join(_ABSOLUTE.sub("?", each) for each in [self.kind, first, *frames])

    @property
    def name(self) -> str:
        """What a folder for it is called."""
        digest = hashlib.sha256(self.key.encode()).hexdigest()[:8]
        words = re.sub(r"[^A-Za-z0-9]+", "-", f"{self.kind} {_OFFSET.sub('', self.where)}")
        return f"{words.strip('-')[:60]}-{digest}"


@attrs.frozen(kw_only=True)
class Entry:
    """An input of the corpus.

    Parameters
    ----------
    data
        The input.
    places
        What it was the first to come to.
    hints
        What its bytes were compared with (`operands`).
    weight
        Blocks that it executes.
    path
        What tells its edges from those of others.
    """

    data: bytes
    places: tuple[Any, ...]
    hints: tuple[Hint, ...] = ()
    weight: int = 0
    path: int = 0


@attrs.frozen(kw_only=True)
class Done:
    """What came of some inputs.

    Parameters
    ----------
    executed
        How many were run, with those that were run to learn more of others.
    kept
        Those that came to what no other had.
    used
        How many were taken of those that were there.
    finding
        What the last one found that was not known; None: nothing.
    spoiled
        Why the machine has to be set up anew; empty: it has not.
    paths
        How many executions took which of the paths that were asked for.
    """

    executed: int
    kept: tuple[Entry, ...]
    used: int = 0
    finding: Finding | None = None
    spoiled: str = ""
    paths: dict[int, int] = attrs.field(factory=dict)


class Search:
    """A target on a machine; a context manager.

    Parameters
    ----------
    machine
        The machine.
    target
        What is done with an input.
    exact
        Tell edges and how often they were taken, and not only blocks: several times slower.
    limits
        `instructions` and `seconds` of a round, as of `machine.rounds.Rounds`.
    """

    def __init__(self, machine: Any, target: Target, *, exact: bool = False, **limits: Any) -> None:
        self.target = target
        limits = {
            **limits,
            "instructions": limits.get("instructions", INSTRUCTIONS) * target.patience,
        }
        self._rounds: Rounds = machine.rounds(target.spans, exact=exact, **limits)
        self._exact = exact
        self.mutator = Mutator(target.most, target.fields, target.words)

    def __enter__(self) -> Self:
        self.target.prepare(self._rounds)
        self._rounds.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._rounds.__exit__(*error)

    def run_one(self, data: bytes) -> Round:
        """Run an input."""
        self._rounds.brief = False
        return self._rounds.run(self.target.work(self._rounds, data))

    def run(
        self,
        inputs: Iterable[bytes],
        seen: Seen,
        known: set[str],
        until: float | None = None,
        *,
        edges: bool = False,
        paths: Iterable[int] = (),
        plain: bool = False,
    ) -> Done:
        """Run inputs, up to the first that finds what is not known.

        Parameters
        ----------
        seen
            What was come to before; what is new is added.
        known
            Keys of findings that are no news.
        until
            A moment of the monotonic clock, after which no other is begun; None: never.
        edges
            Whether an edge between blocks that are both known is new, too.
        paths
            Those of which it is counted how often they were taken.
        plain
            Run nothing else to learn more of what is new.
        """
        taken = dict.fromkeys(paths, 0)
        kept: list[Entry] = []
        executed = used = 0
        finding: Finding | None = None
        self._rounds.watch(edges or self._exact)
        work, run, rounds = self.target.work, self._rounds.run, self._rounds
        rounds.brief = True
        for data in inputs:
            if until is not None and time.monotonic() >= until:
                break
            executed += 1
            used += 1
            found = run(work(rounds, data))
            new: tuple[Any, ...] = ()
            if found.blocks or found.edges:
                new = tuple(dict.fromkeys(e for e in self._places(found) if e not in seen))
                seen.update(new)
                if found.edges and (path := _path(found)) in taken:
                    taken[path] += 1
            finding = None
            if found.fault is not None or found.said:
                finding = finding_of(data, found, self.target.title)
            if finding is not None and finding.key not in known:
                finding = self._whole(finding)
                break
            if new and plain:
                kept.append(Entry(data=data, places=new))
            elif new and finding is None and not self._rounds.spoiled:
                entry, more = self._study(data, new, seen)
                executed += more
                kept.append(entry)
                seen.update(entry.places)
                rounds.watch(edges or self._exact)
                rounds.brief = True
            finding = None
            if self._rounds.spoiled:
                break
        return Done(
            executed=executed,
            used=used,
            kept=tuple(kept),
            finding=finding,
            spoiled="" if finding else self._rounds.spoiled,
            paths={path: count for path, count in taken.items() if count},
        )

    def _study(self, data: bytes, new: Sequence[Any], seen: Seen) -> tuple[Entry, int]:
        """Return an input that is worth keeping, cut short, and what is to be known of it."""
        rounds = self._rounds
        rounds.watch(edges=True)
        whole = self.run_one(data)
        there = dict.fromkeys(self._places(whole))
        places = tuple(dict.fromkeys([*new, *(each for each in there if each not in seen)]))
        if whole.fault is not None or whole.said or rounds.spoiled:
            return Entry(data=data, places=places), 1
        weight = sum(whole.edges.values())
        if weight > _STUDIED:  # each edge of each round is a call of Python
            return Entry(data=data, places=places, weight=weight, path=_path(whole)), 1
        wanted = {each for each in places if each in there}
        executed = 1

        def same(shorter: bytes) -> bool:
            nonlocal executed
            if executed > _CUTS or rounds.spoiled:
                return False
            executed += 1
            found = self.run_one(shorter)
            return not (found.fault or found.said) and wanted <= set(self._places(found))

        data = cut(cut_sized(data, same, self.mutator.fixed), same, self.mutator.fixed)
        path = _path(self.run_one(data))
        hints: tuple[Hint, ...] = ()
        if not rounds.spoiled:
            pairs = rounds.compared(self.target.work(rounds, data))
            hints = hints_of(data, pairs, self.mutator.fixed)
            executed += 1
        entry = Entry(data=data, places=places, hints=hints, weight=weight, path=path)
        return entry, executed + 1

    def _places(self, found: Round) -> Iterable[Any]:
        """Return what a round came to: blocks and edges; or edges with how often, in AFL's steps."""
        if not found.edges:
            return found.blocks
        if self._exact:
            return [(*edge, min(count.bit_length(), 8)) for edge, count in found.edges.items()]
        return [*found.edges, *(block for _, block in found.edges)]

    def smaller(self, finding: Finding) -> Finding:
        """Return the finding with the smallest input that is found to show it: AFL's tmin in short."""
        best, left = finding, _HANGS if finding.kind == HANG else _SHRINKS

        def shows(data: bytes) -> bool:
            nonlocal best, left
            if left <= 0 or self._rounds.spoiled or data == best.data:
                return False
            left -= 1
            self._rounds.brief = True
            found = finding_of(
                data, self._rounds.run(self.target.work(self._rounds, data)), self.target.title
            )
            if found is None or found.key != finding.key:
                return False
            best = found
            return True

        cut(finding.data, shows)
        for at in range(len(best.data)):
            if best.data[at] not in b"0\0":
                shows(best.data[:at] + b"0" + best.data[at + 1 :])
        return self._whole(best)

    def _whole(self, finding: Finding) -> Finding:
        """Return a finding with all that is said of it."""
        if self._rounds.spoiled:
            return finding
        found = finding_of(finding.data, self.run_one(finding.data), self.target.title)
        return found if found is not None and found.key == finding.key else finding


def cut(data: bytes, same: Callable[[bytes], bool], low: int = 0) -> bytes:
    """Return data without what it can do without, from the end on and in halves, as AFL's tmin.

    Parameters
    ----------
    same
        Returns whether shorter data will do.
    low
        Bytes at the beginning that stay.
    """
    size = max((len(data) - low) // 2, 1)
    while size:
        at = len(data)
        while at > low:
            at = max(at - size, low)
            shorter = data[:at] + data[at + size :]
            if same(shorter):
                data = shorter
        size //= 2
    return data


def _path(found: Round) -> int:
    """Return a number for the edges that a round took: of numbers alone, so the same everywhere."""
    return hash(frozenset(found.edges))


def cut_sized(data: bytes, same: Callable[[bytes], bool], low: int = 0) -> bytes:
    """Return data with shorter pieces, where a byte says how long the piece behind it is."""
    at = low
    while at < len(data):
        size = data[at]
        if size and at + 1 + size <= len(data):
            for less in (0, 1, 2, 3, 8, size // 2):
                shorter = data[:at] + bytes((less,)) + data[at + 1 : at + 1 + less]
                shorter += data[at + 1 + size :]
                if less < size and same(shorter):
                    data = shorter
                    break
        at += 1
    return data


def finding_of(data: bytes, found: Round, title: str) -> Finding | None:
    """Return what is wrong with a round; None: nothing."""
    if found.fault is not None:
        return of_fault(data, found.fault, title)
    for kind, where, backtrace, text in found.said:
        return Finding(data=data, kind=kind, where=where or title, backtrace=backtrace, text=text)
    return None


def of_fault(data: bytes, fault: Fault, title: str) -> Finding:
    """Return the finding that a fault is; a limit's place is the target, wherever it was reached."""
    kind, where, backtrace = fault.kind, fault.where, fault.backtrace
    if kind.is_limit:
        where, backtrace = title, ()
    return Finding(
        data=data,
        kind=HANG if kind.is_limit else kind.value,
        where=where,
        backtrace=tuple(backtrace),
        text=str(fault),
        sources=tuple(fault.sources),
    )


def seeds_of(seed: int, epoch: int, count: int) -> Sequence[int]:
    """Return the seeds of the parts of an epoch."""
    return [
        int.from_bytes(hashlib.sha256(f"{seed}:{epoch}:{part}".encode()).digest()[:8], "little")
        for part in range(count)
    ]
