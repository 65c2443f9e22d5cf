# SPDX-License-Identifier: GPL-2.0-or-later
"""A fuzzer's run from the first input to the last: epochs, who works at them, what is kept.

An epoch's inputs follow from the corpus as it was when the epoch began and from the seed, so it does not
matter who runs them, or when.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import attrs

from execmem.fuzzing.engine import Done, Finding, Search, Seen, seeds_of
from execmem.fuzzing.folder import Folder
from execmem.fuzzing.mutate import Mutator

_FIRST, _MOST = 250, 2000  # inputs of the first epoch's parts, and of later ones


@attrs.frozen(kw_only=True)
class Part:
    """Inputs that one who works runs.

    Parameters
    ----------
    inputs
        Them; None: they are made.
    corpus, seed, count
        What they are made of.
    seen, known
        What is no news.
    until
        As of `Search.run`.
    shrink
        Make the input of this finding smaller, and nothing else.
    """

    inputs: tuple[bytes, ...] | None = None
    corpus: tuple[bytes, ...] = ()
    seed: int = 0
    count: int = 0
    seen: frozenset[Any] = frozenset()
    known: frozenset[str] = frozenset()
    until: float | None = None
    shrink: Finding | None = None


def work(search: Search, part: Part) -> Done:
    """Do a part."""
    if part.shrink is not None:
        return Done(executed=0, kept=(), finding=search.smaller(part.shrink))
    inputs = part.inputs
    made: Any = inputs
    if inputs is None:
        made = search.mutator.inputs(part.corpus, part.seed, part.count)
    return search.run(made, set(part.seen), set(part.known), part.until)


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
    corpus
        The inputs that came to new code, in the order in which they were found.
    crashes
        What goes wrong, each once, in the order in which it was found.
    seen
        Blocks, or edges with how often.
    spoiled
        Why machines had to be set up anew; empty: none had.
    """

    executions: int = 0
    seconds: float = 0.0
    corpus: list[bytes] = attrs.field(factory=list, repr=False)
    crashes: list[Finding] = attrs.field(factory=list)
    seen: Seen = attrs.field(factory=set, repr=False)
    spoiled: str = ""

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
        When to end; None: never for that.
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
        self._until = None if seconds is None else self._began + seconds
        self._keep, self._told, self._folder = keep, told, folder
        self._known: set[str] = set()
        self._epoch = 0
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
        self.fuzzed.executions += before
        self._most = None if self._most is None else self._most + before
        while not self._over():
            self._epoch += 1
            self._do(self._parts())
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
        left = inputs
        while left:
            part = self._part(inputs=tuple(left))
            executed = self._do([part])
            left = left[executed:]
        if not self.fuzzed.corpus:
            self._add(inputs[0] if inputs else b"", ())

    def _part(self, **more: Any) -> Part:
        return Part(
            seen=frozenset(self.fuzzed.seen),
            known=frozenset(self._known),
            until=self._until,
            **more,
        )

    def _parts(self) -> list[Part]:
        """Return an epoch: a part for each who works."""
        size = min(_FIRST << min(self._epoch - 1, 8), _MOST)
        crew = self._crew.size
        counts = [size] * crew
        if self._most is not None:
            left = self._most - self.fuzzed.executions
            counts = [max(min(size, left - size * number), 0) for number in range(crew)]
        corpus = tuple(self.fuzzed.corpus)
        return [
            self._part(corpus=corpus, seed=seed, count=count)
            for seed, count in zip(seeds_of(self._seed, self._epoch, crew), counts, strict=True)
            if count
        ]

    def _do(self, parts: Sequence[Part]) -> int:
        """Let parts be done, and take in what came of them in their order; return how many ran."""
        found: dict[int, Done] = {}
        for number, answer in self._crew.do(parts):
            done = self._died(parts[number], answer) if isinstance(answer, str) else answer
            if done.finding is not None and done.finding.key not in self._known:
                self._keep(done.finding)  # before anything else: whatever happens now
            found[number] = done
        executed = 0
        for number in sorted(found):
            done = found[number]
            executed += done.executed
            for data, places in done.kept:
                if any(place not in self.fuzzed.seen for place in places):
                    self._add(data, places)
            self.fuzzed.spoiled = done.spoiled or self.fuzzed.spoiled
            if done.finding is not None:
                self._found(done.finding)
        self.fuzzed.executions += executed
        self.fuzzed.seconds = time.monotonic() - self._began
        self._told(self.fuzzed)
        return executed

    def _add(self, data: bytes, places: Sequence[Any]) -> None:
        self.fuzzed.seen.update(places)
        self.fuzzed.corpus.append(data)
        if self._folder is not None:
            self._folder.add(data)

    def _found(self, finding: Finding) -> None:
        if finding.key in self._known:
            return
        self._known.add(finding.key)
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
        inputs = part.inputs
        if inputs is None:
            inputs = tuple(self._crew.mutator.inputs(part.corpus, part.seed, part.count))
        seen: Seen = set(part.seen)
        kept: list[tuple[bytes, tuple[Any, ...]]] = []
        for number, data in enumerate(inputs):
            one = attrs.evolve(part, inputs=(data,), seen=frozenset(seen))
            for _, done in self._crew.do([one]):
                if isinstance(done, str):
                    finding = Finding(
                        data=data, kind="emulator died", where=_place(done), text=done
                    )
                    return Done(executed=number + 1, kept=tuple(kept), finding=finding)
                kept += done.kept
                seen.update(place for _, places in done.kept for place in places)
                if done.finding is not None:
                    return Done(executed=number + 1, kept=tuple(kept), finding=done.finding)
        finding = Finding(data=b"", kind="emulator died", where="no single input", text=reason)
        return Done(executed=len(inputs), kept=tuple(kept), finding=finding)

    def _save(self) -> None:
        if self._folder is not None:
            fuzzed = self.fuzzed
            self._folder.save(self._seed, self._epoch, fuzzed.executions, fuzzed.corpus)


def _place(reason: str) -> str:
    """Return the place that a death tells, as far as it does."""
    _, at, rest = reason.partition(" at ")
    return rest.split(" (", 1)[0] if at else "an unknown place"
