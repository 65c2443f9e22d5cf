# SPDX-License-Identifier: GPL-2.0-or-later
"""Many modules, each by itself: parse, link, load, and on request init, in parallel.

Every module is worked on in a process that can be lost. A worker gets one module at a time
over a pipe and sends back a row; a worker that dies, or does not answer in time, is replaced,
and its module's row says so. Rows come in the order of the modules, whatever the order in
which workers finish, so that two sweeps of the same files differ in nothing but seconds.

Dependencies come from the `modules.dep` of the tree that a module lies in; without init they
are loaded without it too.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from allocator.errors import ExecmemError
from loader.errors import InitFailed, LoadError
from loader.files import SUFFIXES, module_name

Row: TypeAlias = dict[str, Any]
STARTING = 300.0  # seconds that a process may take to be ready
OUTCOMES = ("ok", "init-ok", "init-error", "fault", "refused")


@attrs.frozen(kw_only=True)
class Options:
    """How each module is worked on.

    Parameters
    ----------
    init
        Run init, and its dependencies' init.
    unknown
        Policy for symbols that nobody has; as `Machine` takes it.
    seconds
        Wall-clock time of one call into the guest.
    design
        Design of executable memory.
    grace
        Further seconds after which a worker that has not answered is given up.
    """

    init: bool = False
    unknown: str = "fault"
    seconds: float = 60.0
    design: str = "default"
    grace: float = 20.0


def modules_under(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Yield module files: those given, and all below the folders given, sorted by path.

    Raises
    ------
    ExecmemError
        For a path where nothing is.
    """
    for given in map(Path, paths):
        if given.is_dir():
            found = (path for path in given.rglob("*") if path.name.endswith(SUFFIXES))
            yield from sorted(path for path in found if path.is_file())
        elif given.exists():
            yield given
        else:
            raise ExecmemError(f"{given}: no such file or folder")


def examine(path: Path, options: Options) -> Row:
    """Return what becomes of one module: a row with its outcome."""
    from loader.elf import arch_of
    from loader.files import read_module
    from machine.faults import Fault
    from machine.machine import Machine

    start = time.monotonic()
    row: Row = _row(path)
    try:
        arch = arch_of(read_module(path), path.name)
        row["arch"] = arch.name
        machine = Machine(arch, design=options.design, unknown=options.unknown)
        machine.seconds = options.seconds
        try:
            module = machine.load(path, init=options.init)
        finally:
            row["missing"] = [name for name, calls in machine.missing.items() if calls]
        row["module"] = module.name
        row["relocations"] = sum(module.report.relocations.values())
        row["outcome"] = "init-ok" if options.init else "ok"
        if module.report.init_fault is not None:
            raise module.report.init_fault
    except InitFailed as error:
        row |= {"outcome": "init-error", "error": str(error)}
    except LoadError as error:
        row |= {"outcome": "refused", "error": str(error)}
    except Fault as error:
        row |= {"outcome": "fault", "error": str(error)}
    except ExecmemError as error:
        row |= {"outcome": "refused", "error": str(error)}
    row["seconds"] = round(time.monotonic() - start, 3)
    return row


Job: TypeAlias = Callable[[Path, Options], Row]


def _row(path: Path) -> Row:
    """Return the row of a module of which nothing is known yet."""
    return {
        "arch": None,
        "module": module_name(path.name),
        "file": str(path),
        "outcome": "refused",
        "error": None,
        "relocations": 0,
        "missing": [],
        "seconds": 0.0,
    }


def _work(pipe: Connection, options: Options, job: Job) -> None:
    """Do what comes over the pipe until it closes; a worker's main function."""
    import machine.machine  # noqa: F401 -- so that no module's time has it

    pipe.send(None)  # ready
    while True:
        try:
            path = pipe.recv()
        except EOFError:
            return
        pipe.send(job(path, options))


@attrs.define(eq=False)
class _Worker:
    """A process, its pipe, and the module it is at since when; None before it is ready."""

    process: SpawnProcess
    pipe: Connection
    index: int | None = None
    since: float = 0.0
    finished: bool = False


def sweep(
    paths: Iterable[Path], options: Options, jobs: int | None = None, job: Job = examine
) -> Iterator[Row]:
    """Yield one row for each module, in their order.

    Parameters
    ----------
    paths
        Module files.
    jobs
        Processes at a time; None: one for each CPU that this process may use.
    job
        What is done with each module.
    """
    files = list(paths)
    count = min(jobs or len(os.sched_getaffinity(0)), len(files))
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    done: dict[int, Row] = {}
    waiting = iter(enumerate(files))
    given = 0

    def start() -> _Worker:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, options, job), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here, since=time.monotonic())

    def give(worker: _Worker) -> None:
        """Give a worker that is ready its next module, where one is left."""
        worker.index, path = next(waiting, (None, None))
        worker.since, worker.finished = time.monotonic(), path is None
        if path is not None:
            worker.pipe.send(path)

    def lost(worker: _Worker, reason: str) -> None:
        """Replace a worker, and write its module's row."""
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        if worker.index is None:
            raise ExecmemError(f"a worker did not start: {reason}")
        row = _row(files[worker.index])
        row |= {"outcome": "fault", "error": reason}
        row["seconds"] = round(time.monotonic() - worker.since, 3)
        done[worker.index] = row
        fresh = start()
        worker.process, worker.pipe, worker.index = fresh.process, fresh.pipe, None
        worker.since = fresh.since

    try:
        workers.extend(start() for _ in range(count))
        while given < len(files):
            busy = [worker for worker in workers if not worker.finished]
            ready = wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in busy:
                if worker.pipe in ready:
                    try:
                        row = worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.process.join()
                        lost(worker, f"the worker died (exit code {worker.process.exitcode})")
                        continue
                    if worker.index is not None:
                        done[worker.index] = row
                    give(worker)
                    continue
                most = STARTING if worker.index is None else options.seconds + options.grace
                if time.monotonic() - worker.since > most:
                    lost(worker, f"no answer within {most:.0f} seconds")
            while given in done:
                yield done.pop(given)
                given += 1
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


@attrs.define
class Summary:
    """What rows come to."""

    outcomes: Counter[str] = attrs.field(factory=Counter)
    archs: Counter[str] = attrs.field(factory=Counter)
    missing: Counter[str] = attrs.field(factory=Counter)
    relocations: int = 0
    slowest: tuple[float, str] = (0.0, "")

    def add(self, row: Row) -> None:
        """Count a row."""
        self.outcomes[row["outcome"]] += 1
        self.archs[row["arch"] or "unknown"] += 1
        self.missing.update(row["missing"])
        self.relocations += row["relocations"]
        self.slowest = max(self.slowest, (row["seconds"], row["module"]))

    def document(self, seconds: float) -> Row:
        """Return the summary as the last line's document."""
        return {
            "summary": {
                "modules": self.outcomes.total(),
                "outcomes": {name: self.outcomes[name] for name in OUTCOMES},
                "archs": dict(sorted(self.archs.items())),
                "relocations": self.relocations,
                "missing": dict(sorted(self.missing.items(), key=lambda m: (-m[1], m[0]))),
                "slowest": {"module": self.slowest[1], "seconds": self.slowest[0]},
                "seconds": round(seconds, 3),
            }
        }
