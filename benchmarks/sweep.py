# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps: throughput of one process and of all, memory from beginning to end, and kills.

The modules are those of `EXECMEM_CORPUS` (else the samples) and the samples, again and again
under other names. Each number of processes gets as many rounds, in turns; the clock runs from
the first row to the last, because starting is in no proportion to a sweep that is worth it.
With `--kills`, a further sweep is killed that often at random moments and resumed; its rows
must be those of the first one.

    python -m benchmarks.sweep                             # 60 modules, three rounds
    python -m benchmarks.sweep --modules 4000 --rounds 1 --kills 3
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import count, islice
from pathlib import Path

import attrs

from execmem.sweep import files_under
from samples.modules import root


def modules(folder: Path, wanted: int) -> None:
    """Fill a folder with so many modules, links to real ones under other names."""
    corpus = os.environ.get("EXECMEM_CORPUS")
    real = [*(files_under([corpus]) if corpus else ()), *files_under([root("arm64").parent])]
    endless = ((turn, path) for turn in count() for path in real)
    for number, (turn, path) in enumerate(islice(endless, wanted)):
        (folder / f"{turn:03}").mkdir(exist_ok=True)
        (folder / f"{turn:03}" / f"{number:05}-{path.name}").symlink_to(path.resolve())


@attrs.define
class Sweep:
    """One sweep: seconds from the first row to the last, CPU time, memory meanwhile in MiB."""

    output: Path
    seconds: float = 0.0
    cpu: float = 0.0
    main: list[float] = attrs.field(factory=list)
    workers: list[float] = attrs.field(factory=list)

    def run(self, folder: Path, jobs: int, *, limit: float | None = None) -> bool:
        """Run until it is done, or for `limit` seconds; return whether it is done."""
        command = [sys.executable, "-m", "execmem", "sweep", str(folder), "--jobs", str(jobs)]
        command += ["--output", str(self.output), "--resume", "--json"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        began, first = time.monotonic(), None
        before = os.times()
        while process.poll() is None:
            time.sleep(0.1)
            if first is None and self.output.exists() and self.output.stat().st_size > 500:
                first = time.monotonic()
            if limit is not None and time.monotonic() - began > limit:
                process.kill()
            self.sample(process.pid)
        self.seconds = time.monotonic() - (first or began)
        after = os.times()  # with the workers', whom the main process waits for
        self.cpu = sum(after[2:4]) - sum(before[2:4])
        return process.returncode == 0

    def sample(self, main: int) -> None:
        """Note the resident memory of the main process, and of its largest worker."""
        try:
            children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
            workers = [resident(int(child)) for child in children]
            self.main.append(resident(main))
        except (OSError, IndexError):
            return  # it has just ended
        if workers:
            self.workers.append(max(workers))

    def rows(self) -> tuple[list[dict[str, object]], dict[str, object]]:
        """Return rows and summary without times."""
        *rows, last = map(json.loads, self.output.read_text().splitlines())
        for row in rows:
            del row["seconds"]
        return rows, {k: v for k, v in last["summary"].items() if k not in ("seconds", "slowest")}


def resident(pid: int) -> float:
    """Return the MiB of a process that are in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def halves(samples: list[float]) -> str:
    """Return the peaks of the first and the second half."""
    middle = len(samples) // 2 or 1
    return f"{max(samples[:middle], default=0):5.0f} {max(samples[middle:], default=0):5.0f}"


def main() -> None:
    """Print one line for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", type=int, default=60, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--kills", type=int, default=0, metavar="N")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "modules")
        folder.mkdir()
        modules(folder, options.modules)
        found: dict[int, list[Sweep]] = {jobs: [] for jobs in sorted({1, cores})}
        for number in range(options.rounds):
            for jobs, sweeps in found.items():
                sweeps.append(Sweep(Path(work, f"{jobs}-{number}")))
                if not sweeps[-1].run(folder, jobs):
                    raise SystemExit("a sweep was refused")
        rows, summary = found[1][0].rows()
        print(f"{len(rows)} modules, {summary['relocations']} relocations: {summary['outcomes']}")
        print("peak memory in MiB, first and second half of the time")
        print(
            f"{'processes':>9} {'seconds':>8} {'a second':>8} {'x':>5} {'CPU s':>6}  main         worker"
        )
        single = statistics.median(sweep.seconds for sweep in found[1])
        for jobs, sweeps in found.items():
            if any(sweep.rows() != (rows, summary) for sweep in sweeps):
                raise SystemExit("two sweeps disagree")
            seconds = statistics.median(sweep.seconds for sweep in sweeps)
            print(
                f"{jobs:9} {seconds:8.1f} {len(rows) / seconds:8.1f} {single / seconds:5.2f}"
                f" {statistics.median(sweep.cpu for sweep in sweeps):6.1f}"
                f"  {halves(sweeps[0].main)}  {halves(sweeps[0].workers)}"
            )
        if options.kills:
            killed = Sweep(Path(work, "killed"))
            spans = [random.uniform(0.05, 0.3) * seconds for _ in range(options.kills)]
            ended = [killed.run(folder, cores, limit=span) for span in spans]
            if not killed.run(folder, cores) or killed.rows() != (rows, summary):
                raise SystemExit("the sweep that was killed differs")
            print(f"killed {ended.count(False)} times at random and resumed: the same result")


if __name__ == "__main__":
    main()
