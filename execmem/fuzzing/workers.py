# SPDX-License-Identifier: GPL-2.0-or-later
"""Several processes that fuzz; one that dies costs an input, and that one is a finding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import attrs
import capstone  # noqa: F401 -- before the fence, which then lets it be read

from allocator.errors import ExecmemError
from execmem.fuzzing.campaign import Part, work
from execmem.fuzzing.engine import EACH, Done, Entry, Finding, Search
from execmem.fuzzing.mutate import Mutator
from execmem.fuzzing.operands import WIDEST
from execmem.fuzzing.setting import Setting
from execmem.worker.jobs import Worker

_SECONDS = 900.0  # of a part, booting included
_MEMORY = 2 << 30
_searches: list[Search] = []  # of a worker: one, or none yet


def _call(setting: Setting, part: Part) -> Done:
    """Do a part in a worker; its machine is there from the first one on."""
    if not _searches:
        _searches.append(setting.search().__enter__())
    done = work(_searches[0], part)
    if done.spoiled:
        _searches.pop().__exit__()
    return done


def _answer(setting: Setting, part: Part) -> dict[str, Any]:
    """Return what came of a part as JSON has it: nobody knows who speaks for a worker by then."""
    try:
        return as_json(_call(setting, part))
    except Exception as error:  # noqa: BLE001 -- it is told where there is somebody
        if isinstance(error, ExecmemError):
            return {"refused": str(error)}
        return {"failed": f"{type(error).__name__}: {error}"}


def as_json(done: Done) -> dict[str, Any]:
    """Return what came of a part as JSON has it; `read` reads it."""
    finding = None
    if done.finding is not None:
        finding = {**attrs.asdict(done.finding), "data": done.finding.data.hex()}
    return {
        "executed": done.executed,
        "kept": [
            [each.data.hex(), list(each.places), list(each.hints), each.weight, each.path]
            for each in done.kept
        ],
        "used": done.used,
        "paths": list(done.paths.items()),
        "finding": finding,
        "spoiled": done.spoiled,
    }


def read(answer: Any, part: Part) -> Done | str:
    """Return what a worker says came of a part; a text: why that is none.

    Raises
    ------
    ExecmemError
        It could not set the target up.
    """
    wrong = "the worker's answer is none: a guest may have spoken for it"
    if not isinstance(answer, dict):
        return wrong
    if "refused" in answer or "failed" in answer:
        raise ExecmemError(f"a worker: {answer.get('refused') or answer.get('failed')!s:.500}")
    try:
        finding = answer["finding"]
        made = None
        if finding is not None:
            made = Finding(
                data=bytes.fromhex(finding["data"]),
                kind=_text(finding["kind"]),
                where=_text(finding["where"]),
                backtrace=tuple(map(_text, finding["backtrace"])),
                text=_text(finding["text"]),
                sources=tuple(map(_text, finding["sources"])),
            )
        kept = tuple(map(_entry, answer["kept"]))
        executed, used = _count(answer["executed"]), _count(answer["used"])
        spoiled = _text(answer["spoiled"])
        paths = {_place(path): _count(count) for path, count in answer["paths"]}
        most = len(part.inputs) if part.inputs is not None else part.count
        if used > most or not used <= executed <= used * EACH:
            return wrong
    except (KeyError, TypeError, ValueError):
        return wrong
    return Done(executed=executed, used=used, kept=kept, finding=made, spoiled=spoiled, paths=paths)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("a number of inputs is one")
    return value


def _entry(value: Any) -> Entry:
    data, places, hints, weight, path = value
    for hint in hints:
        if len(hint) != 4 or not all(type(number) is int for number in hint):
            raise TypeError("a hint is four numbers")
        if not (
            0 <= hint[1] <= WIDEST and hint[0] >= 0 and abs(hint[3]) < 1 << 8 * max(hint[1], 8)
        ):
            raise ValueError("a hint is of a few bytes")
    return Entry(
        data=bytes.fromhex(data),
        places=tuple(map(_place, places)),
        hints=tuple((at, width, big, number) for at, width, big, number in hints),
        weight=_count(weight),
        path=_place(path),
    )


def _place(value: Any) -> Any:
    numbers = value if isinstance(value, list) else [value]
    if not all(type(number) is int for number in numbers):
        raise TypeError("a place is a number, or some")
    return tuple(value) if isinstance(value, list) else value


def worker(setting: Setting, sandbox: str) -> Worker:
    """Return a process that fuzzes; `sandbox` as of `Workers`."""
    return Worker(
        partial(_answer, setting),
        memory=_MEMORY,
        seconds=_SECONDS,
        fenced=sandbox != "no",
        whole=sandbox == "require",
        readable=setting.reads(),
    )


class Workers:
    """Processes that fuzz.

    Parameters
    ----------
    setting
        What.
    jobs
        How many processes.
    mutator
        What makes inputs, as in each of them.
    sandbox
        `yes`: they give up what a guest's code should not have, `require`: or do nothing, `no`.
    """

    def __init__(self, setting: Setting, jobs: int, mutator: Mutator, sandbox: str = "yes") -> None:
        self.size, self.mutator = jobs, mutator
        self._workers: list[Worker] = []
        try:
            for _ in range(jobs):
                self._workers.append(worker(setting, sandbox))
        except BaseException:
            self.close()
            raise

    def do(self, parts: Sequence[Part]) -> Iterator[tuple[int, Done | str]]:
        """Yield what came of each part, as it is done."""
        assert len(parts) <= len(self._workers)
        busy = dict(enumerate(parts))
        for number, part in busy.items():
            self._workers[number].give(part)
        while busy:
            ready: Any = wait([self._workers[number].pipe for number in busy], timeout=1.0)
            for number in list(busy):
                each = self._workers[number]
                answered = each.pipe in ready and not each.starts()
                if answered or not each.left:
                    del busy[number]
                    found, reason = each.result(None if answered else 0.0)
                    yield number, reason or read(found, parts[number])

    def close(self) -> None:
        """End the processes."""
        for each in self._workers:
            each.close()
