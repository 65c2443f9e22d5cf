# SPDX-License-Identifier: GPL-2.0-or-later
"""A fuzzer's run from the first input to the last: epochs, who works at them, what is kept.

An epoch's inputs follow from the corpus as it was when the epoch began and from the seed, so it does not
matter who runs them, or when.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import attrs

from execmem.fuzzing.engine import Done, Entry, Finding, Search, Seen, seeds_of
from execmem.fuzzing.folder import Folder
from execmem.fuzzing.mutate import Mutator
from execmem.fuzzing.operands import Hint

# Blocks of an input, and of how many epochs one tells edges, too: each block then costs a callback.
# Those with what is made of new entries do always, up to a point.
_OFTEN, _SELDOM, _HEAVY = ((200, 4), (1000, 8)), 16, 5000
# Inputs of an epoch's parts: few while they come to what is new, twice as many after each that does not.
_LEAST, _MOST = 100, 2000


@attrs.frozen(kw_only=True)
class Part:
    """Inputs that one who works runs.

    Parameters
    ----------
    inputs
        Them; None: they are made.
    corpus, hints, seed, count
        What they are made of.
    edges, paths
        As of `Search.run`.
    weights
        How often each of the corpus is to be taken.
    fresh
        Those of the corpus of which nothing was made yet.
    skip
        How many of the inputs were run.
    plain
        Nothing more is to be learned of what is new.
    seen, known
        What is no news.
    until
        As of `Search.run`.
    shrink
        Make the input of this finding smaller, and nothing else.
    """

    inputs: tuple[bytes, ...] | None = None
    corpus: tuple[bytes, ...] = ()
    hints: tuple[tuple[Hint, ...], ...] = ()
    edges: bool = False
    weights: tuple[float, ...] = ()
    paths: tuple[int, ...] = ()
    fresh: tuple[int, ...] = ()
    skip: int = 0
    plain: bool = False
    seed: int = 0
    count: int = 0
    seen: frozenset[Any] = frozenset()
    known: frozenset[str] = frozenset()
    until: float | None = None
    shrink: Finding | None = None

    @property
    def size(self) -> int:
        """How many inputs, with those that were run."""
        return self.count if self.inputs is None else len(self.inputs)

    def made(self, mutator: Mutator) -> Iterator[bytes]:
        """Yield the inputs, made by what they follow from."""
        made: Iterable[bytes] = self.inputs or ()
        if self.inputs is None:
            made = mutator.inputs(
                self.corpus, self.seed, self.count, self.hints, self.weights, self.fresh
            )
        return islice(made, self.skip, None)


def work(search: Search, part: Part) -> Done:
    """Do a part."""
    if part.shrink is not None:
        return Done(executed=0, kept=(), finding=search.smaller(part.shrink))
    made = part.made(search.mutator)
    return search.run(
        made,
        set(part.seen),
        set(part.known),
        part.until,
        edges=part.edges,
        paths=part.paths,
        plain=part.plain,
    )


class Crew(Protocol):
    """Who does parts."""

    @property
    def size(self) -> int:
        """How many are done at a time."""
        ...

    @property
    def mutator(self) -> Mutator:
        """What makes inputs, as those who work do."""
        ...

    def do(self, parts: Sequence[Part]) -> Iterator[tuple[int, Done | str]]:
        """Yield each part's number and what came of it, as it is done; a text: who did it died."""
        ...


@attrs.define(eq=False)
class Alone:
    """Work in this process."""

    search: Search
    size: int = 1

    @property
    def mutator(self) -> Mutator:
        """What makes inputs."""
        return self.search.mutator

    def do(self, parts: Sequence[Part]) -> Iterator[tuple[int, Done | str]]:
        """Yield what came of each part."""
        for number, part in enumerate(parts):
            yield number, work(self.search, part)


@attrs.define(kw_only=True)
class Fuzzed:
    """What a run came to.

    Parameters
    ----------
    executions, seconds
        How many inputs, in what time, of this run and those that it went on with.
    crashes
        What goes wrong, each once, in the order in which it was found.
    seen
        Blocks, or edges with how often.
    entries
        Those of the corpus, with what is known of them.
    spoiled
        Why machines had to be set up anew; empty: none had.
    lacking
        What inputs came to that this kernel does not have, each once: there they ended.
    """

    executions: int = 0
    seconds: float = 0.0
    crashes: list[Finding] = attrs.field(factory=list)
    seen: Seen = attrs.field(factory=set, repr=False)
    entries: list[Entry] = attrs.field(factory=list, repr=False)
    spoiled: str = ""
    lacking: list[Finding] = attrs.field(factory=list)

    @property
    def corpus(self) -> list[bytes]:
        """The inputs that came to new code, in the order in which they were found."""
        return [each.data for each in self.entries]

    @property
    def rate(self) -> float:
        """Inputs in a second."""
        return self.executions / self.seconds if self.seconds else 0.0


class Campaign:
    """A fuzzer.

    Parameters
    ----------
    crew
        Who runs inputs.
    seeds
        What to begin with.
    seed
        What all that is random follows from.
    executions, seconds
        When to end, counted from when what there is has been run; None: never for that.
    keep
        Called with each new finding, as it was found, before any other input runs there; and with it
        made smaller.
    told
        Called with how far it is.
    folder
        Where the corpus is kept, and what was found before; None: nowhere.
    """

    def __init__(
        self,
        crew: Crew,
        seeds: Sequence[bytes],
        *,
        seed: int = 0,
        executions: int | None = None,
        seconds: float | None = None,
        keep: Callable[[Finding], object] = lambda _finding: None,
        told: Callable[[Fuzzed], object] = lambda _fuzzed: None,
        folder: Folder | None = None,
    ) -> None:
        self._crew, self._seeds, self._seed = crew, list(seeds), seed
        self._most = executions
        self._began = time.monotonic()
        self._seconds = seconds
        self._until: float | None = None
        self._keep, self._told, self._folder = keep, told, folder
        self._known: set[str] = set()
        self._fresh: list[int] = []  # entries of which nothing was made yet
        self._taken: dict[int, int] = {}  # how often each path was
        self._epoch, self._size = 0, _LEAST
        self.fuzzed = Fuzzed()

    def run(self) -> Fuzzed:
        """Fuzz, until it is time to end."""
        before = 0
        kept = []
        if self._folder is not None:
            self._known |= set(self._folder.known())
            kept = self._folder.corpus()
            if self._folder.before is not None:
                state = self._folder.before
                self._seed, self._epoch = state["seed"], state["epoch"]
                before = state["executions"]
        self._begin(list(dict.fromkeys([*kept, *self._seeds])))
        if self._seconds is not None:  # of fuzzing: setting up takes what it takes
            self._until = time.monotonic() + self._seconds
        self.fuzzed.executions += before
        self._most = None if self._most is None else self._most + before
        while not self._over():
            self._epoch += 1
            before = len(self.fuzzed.entries)
            self._do(self._parts())
            fresh = len(self.fuzzed.entries) > before
            self._size = _LEAST if fresh else min(2 * self._size, _MOST)
            self._save()
        self._save()
        return self.fuzzed

    def _over(self) -> bool:
        most = self._most
        if most is not None and self.fuzzed.executions >= most:
            return True
        return self._until is not None and time.monotonic() >= self._until

    def _begin(self, inputs: list[bytes]) -> None:
        """Run what there is; what comes to nothing new is dropped, but for the first."""
        if inputs:
            self._do([self._part(inputs=tuple(inputs), edges=True)])
        if not self.fuzzed.entries:
            self._add(Entry(data=inputs[0] if inputs else b"", places=()))

    def _part(self, **more: Any) -> Part:
        return Part(
            seen=frozenset(self.fuzzed.seen),
            known=frozenset(self._known),
            until=self._until,
            **more,
        )

    def _parts(self) -> list[Part]:
        """Return an epoch: a part for each who works."""
        crew, entries, size = self._crew.size, self.fuzzed.entries, self._size
        edges = self._edges()
        made = {
            "corpus": tuple(self.fuzzed.corpus),
            "hints": tuple(each.hints for each in entries),
            "weights": tuple(1 / (1 + self._taken.get(each.path, 0)) for each in entries),
            "paths": tuple(each.path for each in entries) if edges else (),
            "edges": edges,
        }
        left = None if self._most is None else self._most - self.fuzzed.executions
        fresh, self._fresh = self._fresh, []
        parts = []
        for number, seed in enumerate(seeds_of(self._seed, self._epoch, crew)):
            first = tuple(fresh[number::crew])
            count = size + sum(self._firsts(each) for each in first)
            if left is not None:
                count = min(count, left)
                left -= count
            if count:
                parts.append(self._part(fresh=first, seed=seed, count=count, **made))
        return parts

    def _firsts(self, number: int) -> int:
        """Return how many inputs are made of an entry when it is new."""
        corpus, hints = self.fuzzed.corpus, self.fuzzed.entries[number].hints
        return len(self._crew.mutator.firsts(corpus, number, hints))

    def _edges(self) -> bool:
        """Return whether an epoch tells edges, by how many blocks it costs and what is hoped for."""
        entries = self.fuzzed.entries
        weight = sum(each.weight for each in entries) // len(entries)
        often = next((often for most, often in _OFTEN if weight <= most), _SELDOM)
        return (bool(self._fresh) and weight <= _HEAVY) or self._epoch % often == 0

    def _do(self, parts: Sequence[Part]) -> None:
        """Let parts be done, to their ends, and take in what came of them in their order."""
        left = list(parts)
        while left:
            done = self._once(left)
            left = [
                self._rest(part, part.skip + each.used)
                for part, each in zip(left, done, strict=True)
                if (each.finding is not None or each.spoiled) and part.skip + each.used < part.size
            ]

    def _rest(self, part: Part, skip: int) -> Part:
        seen, known = frozenset(self.fuzzed.seen), frozenset(self._known)
        return attrs.evolve(part, skip=skip, seen=seen, known=known)

    def _once(self, parts: Sequence[Part]) -> list[Done]:
        """Let parts be done, each up to its first finding."""
        found: dict[int, Done] = {}
        died: dict[int, str] = {}
        for number, answer in self._crew.do(parts):
            if isinstance(answer, str):
                died[number] = answer
            else:
                found[number] = answer
                self._told_of(answer)
        for number in sorted(died):  # when nobody has anything to tell any more
            found[number] = self._died(parts[number], died[number])
            self._told_of(found[number])
        executed = 0
        for number in sorted(found):
            done = found[number]
            executed += done.executed
            for path, count in done.paths.items():
                self._taken[path] = self._taken.get(path, 0) + count
            for entry in done.kept:
                if any(place not in self.fuzzed.seen for place in entry.places):
                    self._add(entry)
            self.fuzzed.spoiled = done.spoiled or self.fuzzed.spoiled
            if done.finding is not None:
                self._found(done.finding)
        self.fuzzed.executions += executed
        self.fuzzed.seconds = time.monotonic() - self._began
        self._told(self.fuzzed)
        return [found[number] for number in range(len(parts))]

    def _told_of(self, done: Done) -> None:
        """Keep a finding before anything else, whatever happens then."""
        found = done.finding
        if found is not None and not found.lacking and found.key not in self._known:
            self._keep(found)

    def _add(self, entry: Entry) -> None:
        self.fuzzed.seen.update(entry.places)
        self._fresh.append(len(self.fuzzed.entries))
        self.fuzzed.entries.append(entry)
        if self._folder is not None:
            self._folder.add(entry.data)

    def _found(self, finding: Finding) -> None:
        if finding.key in self._known:
            return
        self._known.add(finding.key)
        if finding.lacking:
            self.fuzzed.lacking.append(finding)
            return
        smaller = finding
        for _, done in self._crew.do([Part(shrink=finding)]):
            if isinstance(done, Done) and done.finding is not None:
                smaller = done.finding
        self._keep(smaller)
        self.fuzzed.crashes.append(smaller)

    def _died(self, part: Part, reason: str) -> Done:
        """Return the part up to the input that ended who did it: they follow from it, one by one."""
        if part.shrink is not None:
            return Done(executed=0, kept=(), finding=part.shrink)
        inputs = tuple(part.made(self._crew.mutator))
        seen: Seen = set(part.seen)
        kept: list[Entry] = []
        for number, data in enumerate(inputs):
            one = attrs.evolve(part, inputs=(data,), skip=0, seen=frozenset(seen))
            for _, done in self._crew.do([one]):
                if isinstance(done, str):
                    text = done
                    if not self._dies(one):
                        text += ", over an input that was made of this one to cut it short"
                    finding = Finding(
                        data=data, kind="emulator died", where=_place(done), text=text
                    )
                    used = number + 1
                    return Done(executed=used, used=used, kept=tuple(kept), finding=finding)
                kept += done.kept
                seen.update(place for each in done.kept for place in each.places)
                if done.finding is not None:
                    return Done(
                        executed=number + 1, used=number + 1, kept=tuple(kept), finding=done.finding
                    )
        finding = Finding(data=b"", kind="emulator died", where="no single input", text=reason)
        used = len(inputs)
        return Done(executed=used, used=used, kept=tuple(kept), finding=finding)

    def _dies(self, part: Part) -> bool:
        """Return whether an input alone ends who runs it."""
        once = attrs.evolve(part, plain=True)
        return any(isinstance(done, str) for _, done in self._crew.do([once]))

    def _save(self) -> None:
        if self._folder is not None:
            fuzzed = self.fuzzed
            self._folder.save(self._seed, self._epoch, fuzzed.executions, fuzzed.corpus)


def _place(reason: str) -> str:
    """Return the place that a death tells, as far as it does."""
    _, at, rest = reason.partition(" at ")
    return rest.split(" (", 1)[0] if at else "an unknown place"
